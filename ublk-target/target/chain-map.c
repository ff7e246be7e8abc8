// SPDX-License-Identifier: GPL-2.0-or-later
/* The fast path: resolve a request in the map, submit it to the layers, or defer it. */
#include "chain-save.h"

#include <errno.h>
#include <qchain/mutant.h>
#include <stdlib.h>
#include <string.h>

/*
 * Runs on every loop that has requests. Whatever the map answers is issued from
 * here; all else (a window that is not loaded, a change of mapping, compressed
 * data) goes to the metadata thread as a message.
 */

static const u8 zeroes[QC_MAX_REQUEST_BYTES];

static struct chain_target *chain_of(const struct request *req)
{
	return req->target->private;
}

static enum target_map_result defer(struct request *req)
{
	request_set_stage(req, "metadata thread");
	loop_send(chain_of(req)->loop, &req->msg, chain_deferred);
	return TARGET_SUBMITTED;
}

/* ---- completion ---------------------------------------------------------------- */

/*
 * Images are flushed one after the other: there are two only as long as the
 * former active layer is not sealed.
 */
bool chain_flush_step(const struct layer_table *t, u32 *next, struct io_op *op)
{
	struct io_dev *dev;

	while (*next < QC_MAX_FLUSH) {
		dev = __atomic_load_n(&t->flush[(*next)++], __ATOMIC_ACQUIRE);
		if (!dev || (MUTANT(HAND_UNFLUSHED) && t->handed_end &&
			     dev == t->by_id[t->receives]->img->dev))
			continue;
		op->dev = dev;
		op->type = IO_FLUSH;
		return true;
	}
	return false;
}

static void flush_next(struct request *req)
{
	if (chain_flush_step(req->slow, &req->flush_next, &req->io)) {
		io_submit(req->loop, &req->io);
		return;
	}
	loop_epoch_exit(req->loop, req->epoch);
	target_end_io(req, req->error);
}

static void flush_done(struct io_op *op, int error)
{
	struct request *req = container_of(op, struct request, io);

	if (error && !req->error)
		req->error = error;
	flush_next(req);
}

/*
 * The queue may flush alone when no mapping that was acknowledged is uncommitted
 * (rule B2). One that is linked meanwhile was written before our flush begins.
 */
static void submit_flush(struct request *req)
{
	if (__atomic_load_n(&chain_of(req)->uncommitted, __ATOMIC_ACQUIRE) &&
	    !(MUTANT(FUA_IN_PLACE) && req->op == REQ_WRITE)) {
		request_set_stage(req, "flush");
		loop_send(chain_of(req)->loop, &req->msg, chain_flush_deferred);
		return;
	}
	req->slow = __atomic_load_n(&chain_of(req)->map.table, __ATOMIC_ACQUIRE);
	req->flush_next = 0;
	req->epoch = loop_epoch_enter(req->loop);
	req->io = (struct io_op){ .done = flush_done };
	flush_next(req);
}

/* One part of @req has ended; the last one ends the request. */
static void put_part(struct request *req, int error)
{
	if (error && !req->error)
		req->error = error;
	if (--req->pending)
		return;
	loop_epoch_exit(req->loop, req->epoch);
	if (req->error == -ENODATA) { /* a kernel buffer beyond a file's end */
		req->retries = CHAIN_MAX_RETRIES;
		req->error = 0;
		defer(req);
	} else if (!req->error && req->op == REQ_WRITE && req->flags & REQ_FUA) {
		submit_flush(req);
	} else {
		target_end_io(req, req->error);
	}
}

static void single_done(struct io_op *op, int error)
{
	put_part(container_of(op, struct request, io), error);
}

/* @pending of a request that waits: the io_ops that it needs. */
static void wake_op_waiters(struct loop *loop)
{
	struct request *req;

	while (!cds_list_empty(&loop->op_waiters)) {
		req = cds_list_first_entry(&loop->op_waiters, struct request, node);
		if (req->pending > loop->nr_free_ops)
			return;
		cds_list_del(&req->node);
		request_set_stage(req, NULL);
		if (chain_map(req->target, req) == TARGET_DONE)
			target_end_io(req, req->error);
	}
}

static void part_done(struct io_op *op, int error)
{
	struct request *req = op->owner;
	struct loop *loop = req->loop;

	op->owner = NULL; /* for chain_locate() */
	cds_list_add(&op->node, &loop->free_ops);
	loop->nr_free_ops++;
	put_part(req, error);
	wake_op_waiters(loop);
}

/* ---- issuing ---------------------------------------------------------------------- */

static void fill_zeroes(struct request *req, const struct run *run)
{
	int ret = 0;

	if (req->base)
		memset((char *)req->base + run->offset, 0, run->len);
	else
		ret = req->ops->copy_to(req, run->offset, zeroes, run->len);
	if (ret && !req->error)
		req->error = ret;
}

static void submit_run(struct request *req, const struct run *run, struct io_dev *dev,
		       struct io_op *op, void (*done)(struct io_op *op, int error))
{
	op->dev = dev;
	op->type = req->op == REQ_READ ? IO_READ : IO_WRITE;
	op->offset = run->host;
	op->len = run->len;
	op->base = req->base ? (char *)req->base + run->offset : NULL;
	op->buf_offset = run->offset;
	op->fixed_index = req->fixed_index;
	op->owner = req;
	op->done = done;
	req->pending++;
	io_submit(req->loop, op);
}

static struct io_op *take_op(struct loop *loop)
{
	struct io_op *op = cds_list_first_entry(&loop->free_ops, struct io_op, node);

	cds_list_del(&op->node);
	loop->nr_free_ops--;
	return op;
}

static void issue(struct request *req, const struct layer_table *table, const struct run *runs,
		  int nr)
{
	int i;

	req->epoch = loop_epoch_enter(req->loop);
	req->pending = 1;
	for (i = 0; i < nr; i++) {
		struct io_dev *dev;

		if (runs[i].kind != EXTENT_DATA) {
			fill_zeroes(req, &runs[i]);
			continue;
		}
		dev = layer_dev(table->by_id[runs[i].layer]);
		if (nr == 1)
			submit_run(req, &runs[i], dev, &req->io, single_done);
		else
			submit_run(req, &runs[i], dev, take_op(req->loop), part_done);
	}
	put_part(req, 0);
}

/* ---- deciding ------------------------------------------------------------------------ */

/* Does what is written at guest offset @offset go to the layer of @run, all of it? */
static bool is_written_to(const struct layer_table *table, u64 offset, const struct run *run)
{
	if (offset >= __atomic_load_n(&table->fence_end, __ATOMIC_ACQUIRE))
		return run->layer == table->write_layer;
	return offset + run->len <= __atomic_load_n(&table->handed_end, __ATOMIC_ACQUIRE) &&
	       run->layer == table->receives;
}

/* May @run be served without the metadata thread? (rule B3 for writes) */
static bool is_direct(const struct request *req, const struct layer_table *table,
		      const struct run *run)
{
	if (run->kind == EXTENT_NONE || run->kind == EXTENT_ZERO)
		return req->op == REQ_READ;
	if (run->kind != EXTENT_DATA)
		return false;
	if ((run->host | run->len) & (layer_dev(table->by_id[run->layer])->block_bytes - 1))
		return false;
	return req->op == REQ_READ ||
	       (run->flags & EXTENT_COPIED && is_written_to(table, req->offset + run->offset, run));
}

/* Does @req overwrite something that has to be saved before? */
static bool is_unsaved(const struct chain_target *ct, const struct request *req)
{
	const struct saver *saver = __atomic_load_n(&ct->saver, __ATOMIC_ACQUIRE);
	u64 end = req->offset + req->len;

	return saver && req->op == REQ_WRITE &&
	       saver_first_unsaved(saver, req->offset, end) < end;
}

/*
 * The runs of a range and the table that they are read by. The table is loaded
 * first; a run that it does not know was published after a younger one.
 */
static int resolve(struct chain_target *ct, u64 offset, u32 len, struct run *runs,
		   const struct layer_table **table)
{
	int nr, i;

	do {
		*table = __atomic_load_n(&ct->map.table, __ATOMIC_ACQUIRE);
		nr = map_resolve(&ct->map, offset, len, runs);
		for (i = 0; i < nr && runs[i].layer < (*table)->nr_ids; i++)
			;
	} while (i < nr);
	return nr;
}

static enum target_map_result map_data(struct chain_target *ct, struct request *req)
{
	const struct layer_table *table;
	struct run *runs = req->loop->scratch;
	int nr = resolve(ct, req->offset, req->len, runs, &table);
	int i;

	if (nr < 0)
		return defer(req);
	if (req->op == REQ_WRITE && layer_table_is_read_only(table)) {
		req->error = -EROFS;
		return TARGET_DONE;
	}
	for (i = 0; i < nr; i++)
		if (!is_direct(req, table, &runs[i]))
			return defer(req);
	if (is_unsaved(ct, req))
		return defer(req);
	if (nr > 1 && req->loop->nr_free_ops < (u32)nr) {
		req->pending = nr;
		request_set_stage(req, "free operations");
		cds_list_add_tail(&req->node, &req->loop->op_waiters);
		return TARGET_SUBMITTED;
	}
	issue(req, table, runs, nr);
	return TARGET_SUBMITTED;
}

static void status_of_run(const struct layer_table *table, const struct run *run,
			  struct block_status *st)
{
	*st = (struct block_status){
		.len = run->len,
		.zero = run->kind == EXTENT_NONE || run->kind == EXTENT_ZERO,
		.allocated = run->kind != EXTENT_NONE && run->kind != EXTENT_ZERO,
		.compressed = run->kind == EXTENT_COMPRESSED,
		.depth = run->kind == EXTENT_NONE ? 0 : table->depth_of[run->layer] + 1,
		.has_offset = run->kind == EXTENT_DATA,
		.host_offset = run->host,
		.layer = run->layer,
	};
}

/* As far as the first window reaches; the transport asks again for the rest. */
static enum target_map_result map_status(struct chain_target *ct, struct request *req)
{
	const struct layer_table *table;
	u64 window = 1ull << ct->map.window_bits;
	u64 end = ALIGN_DOWN(req->offset, window) + window;
	u32 len = min(min((u64)req->len, end - req->offset), (u64)QC_MAX_REQUEST_BYTES);
	struct run *runs = req->loop->scratch;
	int nr = resolve(ct, req->offset, len, runs, &table);
	int i;

	if (nr < 0)
		return defer(req);
	req->status_nr = min((u32)nr, req->status_max);
	for (i = 0; i < (int)req->status_nr; i++)
		status_of_run(table, &runs[i], &req->status[i]);
	return TARGET_DONE;
}

static enum target_map_result map_flush(struct chain_target *ct, struct request *req)
{
	req->error = 0;
	if (ct->ti->limits.read_only)
		return TARGET_DONE;
	submit_flush(req);
	return TARGET_SUBMITTED;
}

enum target_map_result chain_map(struct target *ti, struct request *req)
{
	struct chain_target *ct = ti->private;

	if (chain_is_held(ct, req))
		return defer(req);
	switch (req->op) {
	case REQ_READ:
	case REQ_WRITE:
		return map_data(ct, req);
	case REQ_FLUSH:
		return map_flush(ct, req);
	case REQ_BLOCK_STATUS:
		return map_status(ct, req);
	default:
		return defer(req);
	}
}

/* ---- back from the metadata thread ------------------------------------------------------ */

static void retry_run(struct loop *loop, struct loop_msg *msg)
{
	struct request *req = container_of(msg, struct request, msg);

	request_set_stage(req, NULL);
	if (chain_map(req->target, req) == TARGET_DONE)
		target_end_io(req, req->error);
}

static void finish_run(struct loop *loop, struct loop_msg *msg)
{
	struct request *req = container_of(msg, struct request, msg);

	target_end_io(req, req->error);
}

void chain_retry(struct request *req)
{
	loop_send(req->loop, &req->msg, retry_run);
}

void chain_finish(struct request *req, int error)
{
	req->error = error;
	loop_send(req->loop, &req->msg, finish_run);
}

/* ---- a loop's memory ------------------------------------------------------------------- */

int chain_loop_init(struct loop *loop)
{
	struct io_op *ops = calloc(CHAIN_LOOP_OPS, sizeof(*ops));
	u32 i;

	loop->scratch = malloc(QC_MAX_REQUEST_BYTES / SECTOR_SIZE * sizeof(struct run));
	if (!ops || !loop->scratch) {
		free(ops);
		free(loop->scratch);
		loop->scratch = NULL;
		return -ENOMEM;
	}
	loop->ops = ops;
	for (i = 0; i < CHAIN_LOOP_OPS; i++)
		cds_list_add_tail(&ops[i].node, &loop->free_ops);
	loop->nr_free_ops = CHAIN_LOOP_OPS;
	return 0;
}

void chain_loop_exit(struct loop *loop)
{
	free(loop->scratch);
	free(loop->ops);
	loop->scratch = NULL;
	loop->ops = NULL;
	loop->nr_free_ops = 0;
	CDS_INIT_LIST_HEAD(&loop->free_ops);
}
