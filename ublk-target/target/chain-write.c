// SPDX-License-Identifier: GPL-2.0-or-later
/* A change of mapping, told once, top to bottom: the stages of struct write_op. */
#include "chain-private.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/*
 * write_op_run() is the only driver. A stage returns STAGE_NEXT, STAGE_WAIT
 * (something will call write_op_run() again, and the stage starts over: it must
 * find its own progress) or -errno. Nothing that waits is part of a
 * transaction: an operation joins when its data is on the device.
 */

enum { STAGE_NEXT, STAGE_WAIT, STAGE_DONE };

static void op_done(struct write_op *op, int error);

/* ---- detain: one operation at a time on a cluster (rule B4) ----------------------- */

#define CELL_BUCKETS 256u

static u64 l2_window_bytes(const struct chain_target *ct)
{
	return (u64)(meta_block_bytes(ct->meta) / ct->img->l2_entry_bytes)
	       << ct->img->cluster_bits;
}

static struct cds_list_head *cell_bucket(const struct write_op *op)
{
	return &op->ct->cells[op->start / l2_window_bytes(op->ct) % CELL_BUCKETS];
}

static int write_detain(struct write_op *op)
{
	struct write_op *other;

	if (op->in_cell)
		return STAGE_NEXT;
	cds_list_for_each_entry(other, cell_bucket(op), cell) {
		if (!ranges_overlap(op->first_cluster, op->nr_clusters, other->first_cluster,
				    other->nr_clusters))
			continue;
		cds_list_add_tail(&op->node, &other->cell_waiters);
		return STAGE_WAIT;
	}
	op->in_cell = true;
	cds_list_add_tail(&op->cell, cell_bucket(op));
	return STAGE_NEXT;
}

static void release_cell(struct write_op *op)
{
	struct write_op *w, *tmp;
	CDS_LIST_HEAD(waiters);

	if (!op->in_cell)
		return;
	cds_list_del(&op->cell);
	op->in_cell = false;
	cds_list_splice(&op->cell_waiters, &waiters);
	CDS_INIT_LIST_HEAD(&op->cell_waiters);
	cds_list_for_each_entry_safe(w, tmp, &waiters, node) {
		cds_list_del(&w->node);
		write_op_run(w);
	}
}

/* ---- table: the entries, as they are now ------------------------------------------ */

static u32 l1_index(const struct write_op *op)
{
	return op->start >> image_l2_coverage_bits(op->ct->img);
}

static void table_put(struct new_table *nt)
{
	if (--nt->refs)
		return;
	if (nt->state <= TABLE_READY) { /* nobody joined with it */
		cds_list_del(&nt->node);
		if (nt->host)
			chain_release_now(nt->ct, nt->host, image_cluster_bytes(nt->ct->img));
		free(nt->data);
	}
	if (nt->l1_block)
		meta_unpin(nt->l1_block);
	free(nt);
}

static void wake_table_waiters(struct new_table *nt)
{
	struct write_op *w, *tmp;
	CDS_LIST_HEAD(waiters);

	cds_list_splice(&nt->waiters, &waiters);
	CDS_INIT_LIST_HEAD(&nt->waiters);
	cds_list_for_each_entry_safe(w, tmp, &waiters, node) {
		cds_list_del(&w->node);
		write_op_run(w);
	}
}

static void table_linked(struct meta_join *join, int error)
{
	struct new_table *nt = container_of(join, struct new_table, join);
	struct chain_target *ct = nt->ct;

	cds_list_del(&nt->node);
	nt->data = NULL; /* went with the transaction */
	nt->state = error ? TABLE_FAILED : TABLE_LINKED;
	if (error) {
		chain_release_now(ct, nt->host, image_cluster_bytes(ct->img));
	} else {
		ct->img->l1[nt->l1_index] = nt->host | QCOW2_COPIED;
		overlap_add(ct->img, nt->host, image_cluster_bytes(ct->img));
	}
	wake_table_waiters(nt);
	table_put(nt);
}

static struct new_table *table_find(struct chain_target *ct, u32 index)
{
	struct new_table *nt;

	cds_list_for_each_entry(nt, &ct->new_tables, node)
		if (nt->l1_index == index)
			return nt;
	return NULL;
}

static struct new_table *table_create(struct chain_target *ct, u32 index, u64 old_host)
{
	u64 bytes = image_cluster_bytes(ct->img);
	struct new_table *nt = calloc(1, sizeof(*nt));

	if (!nt)
		return NULL;
	nt->data = io_alloc(bytes);
	if (!nt->data) {
		free(nt);
		return NULL;
	}
	memset(nt->data, 0, bytes);
	nt->ct = ct;
	nt->l1_index = index;
	nt->old_host = old_host;
	nt->join.fn = table_linked;
	CDS_INIT_LIST_HEAD(&nt->waiters);
	cds_list_add_tail(&nt->node, &ct->new_tables);
	return nt;
}

/* The copy of a table that a snapshot shares: block by block, its entries as they are. */
static int table_copy(struct write_op *op, struct new_table *nt)
{
	struct meta *meta = op->ct->meta;
	struct meta_block *block;
	int ret;

	while (nt->old_host && nt->copied_bytes < image_cluster_bytes(op->ct->img)) {
		ret = meta_get(meta, nt->old_host + nt->copied_bytes, &op->wait, &block);
		if (ret)
			return ret;
		memcpy(nt->data + nt->copied_bytes, block->data, meta_block_bytes(meta));
		nt->copied_bytes += meta_block_bytes(meta);
	}
	return 0;
}

/* Whoever comes drives it on; what is done already is not done again. */
static int table_build(struct write_op *op, struct new_table *nt)
{
	struct chain_target *ct = op->ct;
	u32 got;
	int ret;

	if (nt->state != TABLE_BUILDING)
		return 0;
	if (!nt->l1_block) {
		ret = meta_get(ct->meta, ct->img->l1_offset + nt->l1_index * sizeof(u64),
			       &op->wait, &nt->l1_block);
		if (ret)
			return ret;
		meta_pin(nt->l1_block);
	}
	ret = table_copy(op, nt);
	if (!ret && !nt->host)
		ret = refcounts_alloc(ct->rc, 1, &op->wait, &nt->host, &got);
	if (!ret)
		nt->state = TABLE_READY;
	return ret;
}

/*
 * Make sure that @op->block or a usable @op->table is set. 0, -EAGAIN (waits),
 * -ENOSPC, -EIO.
 */
static int write_op_table(struct write_op *op)
{
	struct image *img = op->ct->img;
	u64 l1 = img->l1[l1_index(op)];
	u64 in_table = op->first_cluster & ((1ull << img->l2_bits) - 1);
	u64 at = (l1 & QCOW2_OFFSET_MASK) + in_table * img->l2_entry_bytes;
	struct new_table *nt = op->table;
	int ret;

	if (op->block)
		return 0;
	if (nt && nt->state >= TABLE_LINKED) {
		op->table = NULL;
		table_put(nt);
		nt = NULL;
	}
	if (!nt && l1 & QCOW2_OFFSET_MASK && l1 & QCOW2_COPIED) {
		ret = meta_get(op->ct->meta, at, &op->wait, &op->block);
		if (!ret)
			meta_pin(op->block);
		return ret;
	}
	if (!nt)
		nt = table_find(op->ct, l1_index(op));
	if (!nt)
		nt = table_create(op->ct, l1_index(op), l1 & QCOW2_OFFSET_MASK);
	if (!nt)
		return -ENOMEM;
	if (!op->table) {
		op->table = nt;
		nt->refs++;
	}
	return table_build(op, nt);
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
		ret = refcounts_alloc(op->ct->rc, want, &op->wait, &host, &got);
		if (ret)
			return ret;
		op->ct->stat_allocated += got;
		for (; got--; host += image_cluster_bytes(op->ct->img)) {
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
	u64 l1 = op->ct->img->l1[l1_index(op)];

	return op->type != OP_WRITE && !op->nounmap && !op->ct->below &&
	       !(l1 & QCOW2_OFFSET_MASK) && !table_find(op->ct, l1_index(op));
}

static int write_plan(struct write_op *op)
{
	int ret = 0;

	if (!op->planned && nothing_to_zero(op))
		return STAGE_DONE;
	if (!op->planned) {
		ret = write_op_table(op);
		if (!ret)
			ret = write_op_decide(op);
		op->planned = !ret;
	}
	if (!ret)
		ret = write_op_allocate(op);
	if (ret == -EAGAIN)
		return STAGE_WAIT;
	if (ret == -ENOSPC) {
		chain_park(op);
		return STAGE_WAIT;
	}
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
	ret = chain_bounce_get(op->ct, op->bounce_bytes, &op->wait, &op->bounce);
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

/* Read [pos, end) of the chain's present content; what lies beyond its end is zero. */
static bool fill_range(struct write_op *op, u64 end)
{
	u64 size = op->ct->map.size_bytes;
	u64 pos = op->fill_pos;
	void *to = (u8 *)op->bounce + (pos - valid_start(op));

	if (pos >= size) {
		memset(to, 0, end - pos);
		op->fill_pos = end;
		return false;
	}
	end = min(min(end, size), pos + QC_MAX_REQUEST_BYTES);
	op->fill = (struct request){ .ops = &fill_ops, .loop = op->ct->loop,
				     .target = op->ct->ti, .op = REQ_READ, .offset = pos,
				     .len = end - pos, .base = to };
	op->fill_pos = end;
	if (chain_map(op->ct->ti, &op->fill) == TARGET_SUBMITTED)
		return true;
	op->error = op->fill.error; /* the driver sees it after this stage */
	return false;
}

static bool needs_bounce(const struct write_op *op)
{
	return op->zero_data || !op->parent->req->base || valid_start(op) < op->start ||
	       valid_end(op) > op_end(op);
}

static int write_fill(struct write_op *op)
{
	int ret;

	if (op->type != OP_WRITE || !needs_bounce(op))
		return STAGE_NEXT;
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

static void data_written(struct io_op *io, int error)
{
	struct write_op *op = io->owner;

	if (error)
		op->error = error;
	if (--op->ios)
		return;
	op->data_done = true;
	write_op_run(op);
}

static void *data_memory(const struct write_op *op, u64 guest)
{
	const struct request *req = op->parent->req;

	if (op->bounce)
		return (u8 *)op->bounce + (guest - valid_start(op));
	return (u8 *)req->base + (guest - req->offset);
}

static u64 data_host(const struct write_op *op, u32 i, u64 guest)
{
	u64 cluster = (op->first_cluster + i) << op->ct->img->cluster_bits;

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
			.dev = op->ct->img->dev, .type = IO_WRITE, .offset = host, .len = len,
			.base = data_memory(op, p->valid_start), .owner = op,
			.done = data_written,
		};
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
	u64 cluster = image_cluster_bytes(op->ct->img);
	u32 len = min(cluster, (u64)sizeof(zeroes));
	u64 end = 0;
	u32 i;

	for (i = 0; i < op->nr_clusters; i++)
		if (op->plans[i].alloc)
			end = max(end, op->plans[i].host + cluster);
	op->data[0] = (struct io_op){
		.dev = op->ct->img->dev, .type = IO_WRITE, .offset = end - len, .len = len,
		.base = (void *)zeroes, .owner = op, .done = data_written,
	};
	return end ? 1 : 0;
}

static int write_data(struct write_op *op)
{
	u32 i, n;

	if (op->data_done || (op->type != OP_WRITE && op->ct->img->dev->blockdev))
		return STAGE_NEXT;
	op->data = malloc(op->nr_clusters * sizeof(*op->data));
	if (!op->data)
		return -ENOMEM;
	n = op->type == OP_WRITE ? collect_data(op) : collect_reserved(op);
	if (!n)
		return STAGE_NEXT;
	op->ios = n;
	for (i = 0; i < n; i++)
		io_submit(op->ct->loop, &op->data[i]);
	return STAGE_WAIT;
}

/* ---- link: the entries join the open transaction ---------------------------------- */

static void op_linked(struct meta_join *join, int error)
{
	struct write_op *op = container_of(join, struct write_op, join);

	if (!error) {
		cds_list_add_tail(&op->node, &op->ct->linked);
		return;
	}
	op->error = error; /* by its driver: it may be what kicked the commit */
	write_op_run(op);
}

/* The table's first user brings it into the transaction: whole, then its L1 entry. */
static int table_join(struct new_table *nt)
{
	struct chain_target *ct = nt->ct;
	u64 at = ct->img->l1_offset + nt->l1_index * sizeof(u64);
	__be64 l1 = __builtin_bswap64(nt->host | QCOW2_COPIED);
	int ret;

	if (nt->state == TABLE_JOINED)
		return 0;
	ret = meta_txn_set(ct->meta, nt->l1_block, at - nt->l1_block->offset, &l1, sizeof(l1));
	if (ret)
		return ret;
	ret = meta_txn_fresh(ct->meta, nt->host, nt->data, image_cluster_bytes(ct->img));
	assert(!ret); /* the set cannot be taken back */
	if (nt->old_host)
		chain_unmap(ct, nt->old_host, image_cluster_bytes(ct->img));
	nt->seq = meta_open_seq(ct->meta);
	nt->state = TABLE_JOINED;
	nt->refs++;
	meta_txn_join(ct->meta, &nt->join);
	return 0;
}

/* The changed entries, as they will be: big-endian, from the op's first cluster on. */
static void new_entries(const struct write_op *op, void *entries)
{
	const struct image *img = op->ct->img;
	u32 i;

	memcpy(entries, write_op_entries(op), (size_t)op->nr_clusters * img->l2_entry_bytes);
	for (i = 0; i < op->nr_clusters; i++)
		if (op->plans[i].changed)
			image_l2_set(img, entries, i, op->plans[i].entry, op->plans[i].bitmap);
}

static int set_entries(struct write_op *op)
{
	u32 bytes = op->nr_clusters * op->ct->img->l2_entry_bytes;
	u8 entries[4096];
	void *at = write_op_entries(op);
	int ret;

	assert(bytes <= sizeof(entries));
	new_entries(op, entries);
	if (op->block)
		return meta_txn_set(op->ct->meta, op->block, (u8 *)at - (u8 *)op->block->data,
				    entries, bytes);
	ret = table_join(op->table);
	if (!ret)
		memcpy(at, entries, bytes);
	return ret;
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
	struct chain_target *ct = op->ct;
	struct new_table *nt = op->table;
	u32 i;
	int ret;

	if (!op_changes(op))
		return STAGE_DONE;
	if (nt && nt->state == TABLE_JOINED && nt->seq != meta_open_seq(ct->meta)) {
		cds_list_add_tail(&op->node, &nt->waiters);
		return STAGE_WAIT;
	}
	ret = write_op_table(op);
	if (!ret)
		ret = set_entries(op);
	if (ret)
		return ret == -EAGAIN ? STAGE_WAIT : ret;
	for (i = 0; i < op->nr_clusters; i++)
		if (op->plans[i].changed && op->plans[i].unmap_host)
			chain_unmap(ct, op->plans[i].unmap_host, op->plans[i].unmap_bytes);
	op->join.fn = op_linked;
	meta_txn_join(ct->meta, &op->join);
	meta_kick(ct->meta);
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
	{ "link", write_link }, /* entries join the transaction; then op_linked() */
};

static void again(struct meta_wait *wait)
{
	write_op_run(container_of(wait, struct write_op, wait));
}

void write_op_run(struct write_op *op)
{
	int ret;

	assert_on_loop(op->ct->loop);
	if (op->running) { /* what it was about to wait for is there already */
		op->again = true;
		return;
	}
	op->running = true;
	do {
		op->again = false;
		/* after a failure places are unsure: nothing goes there any more */
		if (op->ct->failed && !op->error)
			op->error = -EIO;
		ret = op->error ? op->error : write_stages[op->stage].fn(op);
		if (ret == STAGE_NEXT)
			op->stage++;
	} while (ret == STAGE_NEXT || (ret == STAGE_WAIT && op->again));
	op->running = false;
	if (ret != STAGE_WAIT)
		op_done(op, ret == STAGE_DONE ? 0 : ret);
}

/* ---- publish and acknowledge ------------------------------------------------------ */

static int add_update(struct chain_target *ct, const struct cluster_plan *p, u64 host)
{
	u64 end = min(p->valid_end, ct->map.size_bytes);
	struct map_update *larger;

	if (ct->nr_updates == ct->room_updates) {
		ct->room_updates = ct->room_updates ? ct->room_updates * 2 : 256;
		larger = realloc(ct->updates, ct->room_updates * sizeof(*larger));
		if (!larger)
			return -ENOMEM;
		ct->updates = larger;
	}
	ct->updates[ct->nr_updates++] = (struct map_update){
		.offset = p->valid_start, .len = end - p->valid_start,
		.extent = { .host = host, .layer = ct->map.table->write_layer,
			    .kind = p->kind, .flags = p->flags },
	};
	return 0;
}

static void add_updates(struct write_op *op)
{
	u32 i;

	for (i = 0; i < op->nr_clusters; i++) {
		const struct cluster_plan *p = &op->plans[i];

		if (p->changed && p->valid_start < op->ct->map.size_bytes &&
		    add_update(op->ct, p, data_host(op, i, p->valid_start)))
			abort(); /* an old mapping must not stay published */
	}
}

static int update_cmp(const void *a, const void *b)
{
	const struct map_update *x = a, *y = b;

	return x->offset < y->offset ? -1 : x->offset > y->offset;
}

/* A transaction is linked: publish all of it at once, then let go (promise 4). */
static void chain_linked(void *arg)
{
	struct chain_target *ct = arg;
	struct write_op *op, *tmp;
	CDS_LIST_HEAD(linked);

	cds_list_splice(&ct->linked, &linked);
	CDS_INIT_LIST_HEAD(&ct->linked);
	ct->nr_updates = 0;
	cds_list_for_each_entry(op, &linked, node)
		add_updates(op);
	if (ct->nr_updates)
		qsort(ct->updates, ct->nr_updates, sizeof(*ct->updates), update_cmp);
	map_apply(&ct->map, ct->updates, ct->nr_updates);
	chain_retire(ct);
	cds_list_for_each_entry_safe(op, tmp, &linked, node) {
		cds_list_del(&op->node);
		op_done(op, 0);
	}
}

const struct meta_ops chain_meta_ops = {
	.linked = chain_linked,
	.failed = chain_failed,
};

/* What was allocated for it and never named goes back. */
static void undo_allocation(struct write_op *op)
{
	u32 i;

	for (i = 0; op->planned && i < op->nr_allocated; i++)
		if (op->plans[i].alloc)
			chain_release_now(op->ct, op->plans[i].host,
					  image_cluster_bytes(op->ct->img));
}

static void op_free(struct write_op *op)
{
	if (op->block)
		meta_unpin(op->block);
	if (op->table)
		table_put(op->table);
	chain_bounce_put(op->ct, op->bounce_bytes, op->bounce);
	free(op->data);
	free(op->plans);
	free(op);
}

/* ---- a request, cut into operations ----------------------------------------------- */

static void split_run(struct slow_request *s);

static void op_done(struct write_op *op, int error)
{
	struct slow_request *s = op->parent;

	if (error)
		undo_allocation(op);
	release_cell(op);
	op->ct->nr_ops--;
	op_free(op);
	if (error && !s->error)
		s->error = error;
	s->active--;
	split_run(s);
}

static struct write_op *op_create(struct slow_request *s, u64 start, u64 end, u8 type)
{
	const struct image *img = s->ct->img;
	struct write_op *op = calloc(1, sizeof(*op));

	if (!op)
		return NULL;
	op->ct = s->ct;
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
	op->plans = calloc(op->nr_clusters, sizeof(*op->plans));
	if (!op->plans) {
		free(op);
		return NULL;
	}
	s->ct->nr_ops++;
	return op;
}

/* Version 2 has no zero flag: zeroes are written, unless dropping the place does. */
static bool must_write_zeroes(const struct slow_request *s)
{
	return s->req->op == REQ_WRITE_ZEROES && s->ct->img->version < 3 &&
	       (s->ct->below || s->req->flags & REQ_NOUNMAP);
}

static u8 split_type(const struct slow_request *s)
{
	if (s->req->op == REQ_WRITE || must_write_zeroes(s))
		return OP_WRITE;
	return s->req->op == REQ_DISCARD || s->ct->img->version < 3 ? OP_DISCARD : OP_ZERO;
}

/*
 * The next piece of the request: within one block of L2 entries; for zeroes and
 * discards whole granules, with the odd ends written (zeroes) or left (discard).
 * *@type is OP_WRITE for an odd end. Returns its end.
 */
static u64 next_piece(const struct slow_request *s, u8 *type)
{
	u64 window = l2_window_bytes(s->ct);
	u64 granule = 1ull << s->ct->img->subcluster_bits;
	u64 cluster = image_cluster_bytes(s->ct->img);
	u64 end = min(s->end, ALIGN_DOWN(s->pos, window) + window);

	*type = split_type(s);
	if (*type == OP_WRITE)
		return min(end, s->pos + QC_MAX_REQUEST_BYTES);
	if (s->pos % granule ||
	    (ALIGN_DOWN(end, granule) <= s->pos && end != s->ct->map.size_bytes)) {
		*type = OP_WRITE;
		return min(end, ALIGN_UP(s->pos + 1, granule));
	}
	if (end != s->ct->map.size_bytes)
		end = ALIGN_DOWN(end, granule);
	/* A part of a cluster is a piece of its own: it may have to be written. */
	if (s->pos % cluster)
		return min(end, ALIGN_UP(s->pos, cluster));
	if (ALIGN_DOWN(end, cluster) > s->pos && end != s->ct->map.size_bytes)
		return ALIGN_DOWN(end, cluster);
	return end;
}

static void flush_written(struct io_op *io, int error)
{
	struct slow_request *s = container_of(io, struct slow_request, flush);
	struct request *req = s->req;

	free(s);
	chain_finish(req, error);
}

static void split_end(struct slow_request *s)
{
	struct request *req = s->req;
	int error = s->error;

	if (!error && req->flags & REQ_FUA) {
		s->flush = (struct io_op){ .dev = s->ct->img->dev, .type = IO_FLUSH,
					   .done = flush_written };
		io_submit(s->ct->loop, &s->flush);
		return;
	}
	free(s);
	chain_finish(req, error);
}

/* Start operations, a bounded number at a time; the last one ends the request. */
static void split_run(struct slow_request *s)
{
	if (s->cutting)
		return;
	s->cutting = true;
	while (s->pos < s->end && !s->error && s->active < CHAIN_MAX_SPLIT) {
		u64 start = s->pos;
		struct write_op *op;
		u8 type;

		s->pos = next_piece(s, &type);
		if (type == OP_WRITE && s->req->op == REQ_DISCARD)
			continue; /* an odd end: left as it is */
		op = op_create(s, start, s->pos, type);
		if (!op) {
			s->error = -ENOMEM;
			break;
		}
		s->active++;
		write_op_run(op);
	}
	s->cutting = false;
	if (!s->active && (s->pos >= s->end || s->error))
		split_end(s);
}

void chain_write(struct chain_target *ct, struct request *req)
{
	struct slow_request *s;

	if (ct->map.table->read_only || !ct->img) {
		chain_finish(req, -EROFS);
		return;
	}
	s = calloc(1, sizeof(*s));
	if (!s) {
		chain_finish(req, -ENOMEM);
		return;
	}
	s->ct = ct;
	s->req = req;
	s->pos = req->offset;
	s->end = req->offset + req->len;
	if (ct->meta)
		split_run(s);
	else
		chain_raw_write(s);
}

/* ---- a raw active layer: what the fast path could not do -------------------------- */

static void raw_written(struct io_op *io, int error)
{
	struct slow_request *s = container_of(io, struct slow_request, flush);

	free(s->mem);
	s->mem = NULL;
	if (error)
		s->error = error;
	chain_raw_write(s);
}

static int raw_data(struct slow_request *s, u32 len)
{
	const struct request *req = s->req;
	u32 offset = s->pos - req->offset;

	if (req->op == REQ_WRITE && req->base)
		memcpy(s->mem, (u8 *)req->base + offset, len);
	else if (req->op == REQ_WRITE)
		return req->ops->copy_from(s->req, offset, s->mem, len);
	else
		memset(s->mem, 0, len);
	return 0;
}

void chain_raw_write(struct slow_request *s)
{
	u32 len = min(s->end - s->pos, (u64)QC_MAX_REQUEST_BYTES);

	if (s->error || s->pos == s->end || s->req->op == REQ_DISCARD) {
		split_end(s);
		return;
	}
	s->mem = io_alloc(len);
	s->error = s->mem ? raw_data(s, len) : -ENOMEM;
	if (s->error) {
		free(s->mem);
		split_end(s);
		return;
	}
	s->flush = (struct io_op){ .dev = s->ct->img->dev, .type = IO_WRITE, .offset = s->pos,
				   .len = len, .base = s->mem, .done = raw_written };
	s->pos += len;
	io_submit(s->ct->loop, &s->flush);
}
