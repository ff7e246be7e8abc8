// SPDX-License-Identifier: GPL-2.0-or-later
/* A change of mapping, told once, top to bottom: the stages of struct write_op. */
#include "chain-private.h"

#include <assert.h>
#include <errno.h>
#include <qchain/mutant.h>
#include <stdlib.h>
#include <string.h>

/*
 * write_op_run() is the only driver. A stage returns STAGE_NEXT, STAGE_WAIT
 * (something will call write_op_run() again, and the stage starts over: it must
 * find its own progress) or -errno. Nothing that waits is part of a
 * transaction: an operation joins when its data is on the device.
 */

enum { STAGE_NEXT, STAGE_WAIT, STAGE_DONE };

void write_ops_run(struct cds_list_head *waiting)
{
	struct write_op *op, *tmp;
	CDS_LIST_HEAD(ops);

	cds_list_splice(waiting, &ops);
	CDS_INIT_LIST_HEAD(waiting);
	cds_list_for_each_entry_safe(op, tmp, &ops, node) {
		cds_list_del(&op->node);
		write_op_run(op);
	}
}

/* ---- detain: one operation at a time on a cluster (rule B4) ----------------------- */

u64 writer_block_coverage(const struct writer *w)
{
	return (u64)(meta_block_bytes(w->meta) / w->img->l2_entry_bytes) << w->img->cluster_bits;
}

static struct cds_list_head *cell_bucket(const struct write_op *op)
{
	return &op->writer->cells[op->start / writer_block_coverage(op->writer) % CELL_BUCKETS];
}

static u64 cell_start(const struct write_op *op)
{
	return op->first_cluster << op->writer->img->cluster_bits;
}

static u64 cell_end(const struct write_op *op)
{
	return (op->first_cluster + op->nr_clusters) << op->writer->img->cluster_bits;
}

/* The operation of @w, if any, that holds a cluster of [@start, @end). */
static struct write_op *cell_find(const struct writer *w, u64 start, u64 end)
{
	u64 coverage = writer_block_coverage(w);
	u64 i, first = start / coverage, last = (end - 1) / coverage;
	struct write_op *other;

	for (i = first; i <= last && i < first + CELL_BUCKETS; i++)
		cds_list_for_each_entry(other, &w->cells[i % CELL_BUCKETS], cell)
			if (cell_start(other) < end && start < cell_end(other))
				return other;
	return NULL;
}

/*
 * Those of former active layers count, too: what such an operation fills from
 * the map must not be newer than the snapshot that it belongs to.
 */
static struct write_op *who_detains(const struct write_op *op)
{
	u64 start = cell_start(op), end = cell_end(op);
	struct write_op *other = NULL;
	const struct writer *w;

	cds_list_for_each_entry(w, &op->writer->ct->closing, node) {
		if (w == op->writer || other || MUTANT(OLD_FILLS_NEW))
			break;
		if (w->meta)
			other = cell_find(w, start, end);
	}
	return other ? other : cell_find(op->writer, start, end);
}

static int write_detain(struct write_op *op)
{
	struct write_op *other;

	if (op->in_cell)
		return STAGE_NEXT;
	other = who_detains(op);
	if (other) {
		cds_list_add_tail(&op->node, &other->cell_waiters);
		return STAGE_WAIT;
	}
	op->in_cell = true;
	cds_list_add_tail(&op->cell, cell_bucket(op));
	return STAGE_NEXT;
}

static void release_cell(struct write_op *op)
{
	if (!op->in_cell)
		return;
	cds_list_del(&op->cell);
	op->in_cell = false;
	write_ops_run(&op->cell_waiters);
}

/* ---- plan: what becomes of each cluster, and where its data goes ------------------ */

static u32 clusters_to_allocate(const struct write_op *op, u32 from)
{
	u32 n = from;

	while (n < op->nr_clusters && op->plans[n].alloc)
		n++;
	return n - from;
}

static int write_op_allocate(struct write_op *op)
{
	u64 host;
	u32 want, got;
	int ret;

	while (op->nr_allocated < op->nr_clusters) {
		want = clusters_to_allocate(op, op->nr_allocated);
		if (!want) {
			op->nr_allocated++;
			continue;
		}
		ret = refcounts_alloc(op->writer->rc, want, &op->wait, &host, &got);
		if (ret)
			return ret;
		op->writer->stat_allocated += got;
		writer_allocated(op->writer, host + got * image_cluster_bytes(op->writer->img));
		for (; got--; host += image_cluster_bytes(op->writer->img)) {
			struct cluster_plan *p = &op->plans[op->nr_allocated++];

			p->host = host;
			p->entry |= host;
		}
	}
	return 0;
}

/* Discarding what no table maps and nothing lies below changes nothing. */
static bool nothing_to_zero(const struct write_op *op)
{
	u32 index = write_op_l1_index(op);

	return op->type != OP_WRITE && !op->nounmap &&
	       (op->type == OP_UNMAP || !op->writer->below) &&
	       !(l1_get(&op->writer->img->l1, index) & QCOW2_OFFSET_MASK) &&
	       !table_find(op->writer, index);
}

static int write_plan(struct write_op *op)
{
	int ret = 0;

	if (!op->planned && nothing_to_zero(op))
		return STAGE_DONE;
	if (!op->planned) {
		ret = write_op_table(op);
		if (!ret && op->parent->fill && !MUTANT(COPY_OVER_GUEST))
			ret = write_op_is_mapped(op);
		if (ret > 0)
			return STAGE_DONE;
		if (!ret)
			ret = write_op_decide(op);
		op->planned = !ret;
	}
	if (!ret)
		ret = write_op_allocate(op);
	if (ret == -EAGAIN)
		return STAGE_WAIT;
	if (ret == -ENOSPC && (op->parent->fill || op->parent->into)) {
		op->writer->starved_bytes = io_dev_bytes(op->writer->img->dev);
		return ret;
	}
	if (ret == -ENOSPC && !cds_list_empty(&op->writer->node))
		return -ESTALE; /* closing: the active layer may have room */
	if (ret == -ENOSPC) {
		writer_park(op);
		return STAGE_WAIT;
	}
	queue_unpark(op);
	if (ret == -EUCLEAN)
		writer_miscounted(op->writer);
	return ret ? ret : STAGE_NEXT;
}

/* ---- fill: what the guest did not write of a granule comes from the map ----------------- */

static u64 op_end(const struct write_op *op)
{
	return op->start + op->len;
}

static u64 valid_start(const struct write_op *op)
{
	return op->plans[0].valid_start;
}

static u64 valid_end(const struct write_op *op)
{
	return op->plans[op->nr_clusters - 1].valid_end;
}

static int guest_data(struct write_op *op)
{
	struct request *req = op->parent->req;
	void *to = (u8 *)op->bounce + (op->start - valid_start(op));
	u32 offset = op->start - req->offset;

	if (op->zero_data)
		memset(to, 0, op->len);
	else if (req->base)
		memcpy(to, (u8 *)req->base + offset, op->len);
	else
		return req->ops->copy_from(req, offset, to, op->len);
	return 0;
}

static int get_bounce(struct write_op *op)
{
	int ret;

	op->bounce_bytes = valid_end(op) - valid_start(op);
	ret = chain_bounce_get(op->writer->ct, op->bounce_bytes, &op->wait, &op->bounce);
	if (ret)
		return ret;
	op->fill_pos = valid_start(op);
	return guest_data(op);
}

static void fill_end_io(struct request *req, int error)
{
	struct write_op *op = container_of(req, struct write_op, fill);

	if (error)
		op->error = error;
	write_op_run(op);
}

static const struct request_ops fill_ops = { .end_io = fill_end_io };

/* Read [pos, end) of the present content; what lies beyond its end is zero. */
static bool fill_range(struct write_op *op, u64 end)
{
	u64 size = writer_size(op->writer);
	u64 pos = op->fill_pos;
	void *to = (u8 *)op->bounce + (pos - valid_start(op));

	if (pos >= size) {
		memset(to, 0, end - pos);
		op->fill_pos = end;
		return false;
	}
	end = min(min(end, size), pos + QC_MAX_REQUEST_BYTES);
	op->fill = (struct request){ .ops = &fill_ops, .loop = op->writer->ct->loop,
				     .target = op->writer->shows, .op = REQ_READ, .offset = pos,
				     .len = end - pos, .base = to };
	op->fill_pos = end;
	if (chain_map(op->writer->shows, &op->fill) == TARGET_SUBMITTED)
		return true;
	op->error = op->fill.error; /* the driver sees it after this stage */
	return false;
}

static bool needs_bounce(const struct write_op *op)
{
	return op->zero_data || valid_start(op) < op->start || valid_end(op) > op_end(op);
}

/* Does it need bytes that it was not given? (rule C3) */
static bool reads_below(const struct write_op *op)
{
	return valid_start(op) < op->start ||
	       min(valid_end(op), writer_size(op->writer)) > op_end(op);
}

static int write_fill(struct write_op *op)
{
	int ret;

	if (op->type != OP_WRITE || !needs_bounce(op))
		return STAGE_NEXT;
	if (reads_below(op) && !writer_may_read_below(op->writer)) {
		cds_list_add_tail(&op->node, &op->writer->ct->fill_waiters);
		return STAGE_WAIT;
	}
	if (!op->bounce) {
		ret = get_bounce(op);
		if (ret)
			return ret == -EAGAIN ? STAGE_WAIT : ret;
	}
	while (op->fill_pos < op->start)
		if (fill_range(op, op->start))
			return STAGE_WAIT;
	op->fill_pos = max(op->fill_pos, op_end(op));
	while (op->fill_pos < valid_end(op))
		if (fill_range(op, valid_end(op)))
			return STAGE_WAIT;
	return STAGE_NEXT;
}

/* ---- data: every byte range that becomes valid, on the device --------------------- */

/*
 * The request's own loop writes: while it does, this one goes on with metadata;
 * and a kernel buffer is registered with that loop's ring only. The I/O is the
 * operation's, which holds the cell until it is told.
 */

static void data_told(struct loop *loop, struct loop_msg *msg)
{
	struct write_op *op = container_of(msg, struct write_op, data_msg);

	if (op->data_error)
		op->error = op->data_error;
	op->data_done = true;
	write_op_run(op);
}

static void data_written(struct io_op *io, int error)
{
	struct write_op *op = io->owner;

	if (error)
		op->data_error = error;
	if (--op->ios)
		return;
	if (loop_is_current(op->writer->ct->loop))
		data_told(op->writer->ct->loop, &op->data_msg);
	else
		loop_send(op->writer->ct->loop, &op->data_msg, data_told);
}

static void data_submit(struct loop *loop, struct loop_msg *msg)
{
	struct write_op *op = container_of(msg, struct write_op, data_msg);
	u32 i, n = op->ios;

	for (i = 0; i < n; i++)
		io_submit(loop, &op->data[i]);
}

/* An operation that is alone saves itself the way there and back. */
static struct loop *data_loop(const struct write_op *op)
{
	const struct request *req = op->parent->req;

	if (op->writer->nr_ops == 1 && (op->bounce || req->base))
		return op->writer->ct->loop;
	return req->loop;
}

static void data_start(struct write_op *op)
{
	struct loop *loop = data_loop(op);

	if (loop_is_current(loop))
		data_submit(loop, &op->data_msg);
	else
		loop_send(loop, &op->data_msg, data_submit);
}

/* Where the bytes of @guest are: in the bounce, the request's memory or its kernel buffer. */
static void data_source(const struct write_op *op, u64 guest, struct io_op *io)
{
	const struct request *req = op->parent->req;

	if (op->bounce)
		io->base = (u8 *)op->bounce + (guest - valid_start(op));
	else if (req->base)
		io->base = (u8 *)req->base + (guest - req->offset);
	io->buf_offset = guest - req->offset;
	io->fixed_index = req->fixed_index;
}

static u64 data_host(const struct write_op *op, u32 i, u64 guest)
{
	u64 cluster = (op->first_cluster + i) << op->writer->img->cluster_bits;

	return op->plans[i].host + (guest - cluster);
}

/* One write for each run of clusters that lie side by side. */
static u32 collect_data(struct write_op *op)
{
	u32 i, n = 0;

	for (i = 0; i < op->nr_clusters; i++) {
		const struct cluster_plan *p = &op->plans[i];
		u64 host = data_host(op, i, p->valid_start);
		u32 len = p->valid_end - p->valid_start;

		if (n && op->data[n - 1].offset + op->data[n - 1].len == host) {
			op->data[n - 1].len += len;
			continue;
		}
		op->data[n++] = (struct io_op){
			.dev = op->writer->img->dev, .type = IO_WRITE, .offset = host, .len = len,
			.owner = op, .done = data_written,
		};
		data_source(op, p->valid_start, &op->data[n - 1]);
	}
	return n;
}

/*
 * Places that are reserved without data: a regular file must reach to the end
 * of the last one, or a checker takes the entry for damage.
 */
static u32 collect_reserved(struct write_op *op)
{
	static const u8 zeroes[4096] __attribute__((aligned(4096)));
	u64 cluster = image_cluster_bytes(op->writer->img);
	u32 len = min(cluster, (u64)sizeof(zeroes));
	u64 end = 0;
	u32 i;

	for (i = 0; i < op->nr_clusters; i++)
		if (op->plans[i].alloc)
			end = max(end, op->plans[i].host + cluster);
	op->data[0] = (struct io_op){
		.dev = op->writer->img->dev, .type = IO_WRITE, .offset = end - len, .len = len,
		.base = (void *)zeroes, .owner = op, .done = data_written,
	};
	return end ? 1 : 0;
}

static int write_data(struct write_op *op)
{
	u32 n;

	if (op->data_done || (op->type != OP_WRITE && op->writer->img->dev->blockdev))
		return STAGE_NEXT;
	op->data = op->nr_clusters == 1 ? &op->one_io :
		   malloc(op->nr_clusters * sizeof(*op->data));
	if (!op->data)
		return -ENOMEM;
	n = op->type == OP_WRITE ? collect_data(op) : collect_reserved(op);
	if (!n)
		return STAGE_NEXT;
	op->ios = n;
	data_start(op);
	return STAGE_WAIT;
}

/* ---- link: the entries join the open transaction ---------------------------------- */

/* The changed entries, as they will be: big-endian, from the op's first cluster on. */
static void new_entries(const struct write_op *op, void *entries)
{
	const struct image *img = op->writer->img;
	u32 i;

	memcpy(entries, write_op_entries(op), (size_t)op->nr_clusters * img->l2_entry_bytes);
	for (i = 0; i < op->nr_clusters; i++)
		if (op->plans[i].changed)
			image_l2_set(img, entries, i, op->plans[i].entry, op->plans[i].bitmap);
}

static int set_entries(struct write_op *op)
{
	u32 bytes = op->nr_clusters * op->writer->img->l2_entry_bytes;
	u8 entries[4096];

	assert(bytes <= sizeof(entries));
	new_entries(op, entries);
	return meta_txn_set(op->writer->meta, op->block,
			    (u8 *)write_op_entries(op) - (u8 *)op->block->data, entries, bytes);
}

static bool op_changes(const struct write_op *op)
{
	u32 i;

	for (i = 0; i < op->nr_clusters; i++)
		if (op->plans[i].changed)
			return true;
	return false;
}

static int write_link(struct write_op *op)
{
	struct writer *w = op->writer;
	u32 i;
	int ret;

	if (!op_changes(op))
		return STAGE_DONE;
	ret = write_op_block(op);
	if (!ret)
		ret = writer_reserve_log(op);
	if (!ret)
		ret = set_entries(op);
	if (ret)
		return ret == -EAGAIN ? STAGE_WAIT : ret;
	for (i = 0; i < op->nr_clusters; i++)
		if (op->plans[i].changed && op->plans[i].unmap_host)
			writer_unmap(w, op->plans[i].unmap_host, op->plans[i].unmap_bytes);
	writer_acknowledge(op);
	return STAGE_WAIT;
}

static const struct {
	const char *name;
	int (*fn)(struct write_op *op);
} write_stages[] = {
	{ "detain", write_detain }, /* own the clusters; later operations wait */
	{ "plan", write_plan }, /* decide, allocate */
	{ "fill", write_fill }, /* head and tail from the map */
	{ "data", write_data }, /* to its place */
	{ "link", write_link }, /* entries join the transaction; then writer_acknowledge() */
};

static void again(struct meta_wait *wait)
{
	write_op_run(container_of(wait, struct write_op, wait));
}

void write_op_run(struct write_op *op)
{
	int ret;

	assert_on_loop(op->writer->ct->loop);
	if (op->running) { /* what it was about to wait for is there already */
		op->again = true;
		return;
	}
	op->running = true;
	do {
		op->again = false;
		/* after a failure places are unsure: nothing goes there any more */
		if (op->writer->failed && !op->error)
			op->error = -EIO;
		request_set_stage(op->parent->req, write_stages[op->stage].name);
		ret = op->error ? op->error : write_stages[op->stage].fn(op);
		if (ret == STAGE_NEXT)
			op->stage++;
	} while (ret == STAGE_NEXT || (ret == STAGE_WAIT && op->again));
	op->running = false;
	if (ret != STAGE_WAIT)
		write_op_done(op, ret == STAGE_DONE ? 0 : ret);
}

/* ---- the end ------------------------------------------------------------------------ */

/* What was allocated for it and never named goes back. */
static void undo_allocation(struct write_op *op)
{
	u32 i;

	for (i = 0; op->planned && i < op->nr_allocated; i++)
		if (op->plans[i].alloc)
			writer_release_now(op->writer, op->plans[i].host,
					  image_cluster_bytes(op->writer->img));
}

static void op_release(struct write_op *op)
{
	if (op->block)
		meta_unpin(op->block);
	if (op->table)
		table_put(op->table);
	chain_bounce_put(op->writer->ct, op->bounce_bytes, op->bounce);
	if (op->data != &op->one_io)
		free(op->data);
	if (op->plans != &op->one_plan)
		free(op->plans);
}

void write_op_done(struct write_op *op, int error)
{
	struct slow_request *s = op->parent;

	if (error)
		undo_allocation(op);
	queue_unpark(op);
	release_cell(op);
	op->writer->nr_ops--;
	op_release(op);
	if (error == -ESTALE) {
		slow_request_redo(op);
		return;
	}
	pool_put(&s->ct->write_ops, op);
	slow_request_op_done(s, error);
}

struct write_op *write_op_create(struct slow_request *s, struct writer *w, u64 start, u64 end,
				 u8 type)
{
	const struct image *img = w->img;
	struct write_op *op = pool_get(&s->ct->write_ops);

	if (!op)
		return NULL;
	op->writer = w;
	op->parent = s;
	op->type = type;
	op->nounmap = s->req->flags & REQ_NOUNMAP && type == OP_ZERO;
	op->zero_data = s->req->op != REQ_WRITE;
	op->start = start;
	op->len = end - start;
	op->first_cluster = start >> img->cluster_bits;
	op->nr_clusters = ((end - 1) >> img->cluster_bits) - op->first_cluster + 1;
	op->wait.fn = again;
	CDS_INIT_LIST_HEAD(&op->cell_waiters);
	op->plans = op->nr_clusters == 1 ? &op->one_plan :
		    calloc(op->nr_clusters, sizeof(*op->plans));
	if (!op->plans) {
		pool_put(&s->ct->write_ops, op);
		return NULL;
	}
	w->nr_ops++;
	return op;
}
