// SPDX-License-Identifier: GPL-2.0-or-later
/* THE write order (rule B1): the one place that issues metadata writes. */
#include "meta-private.h"

#include <assert.h>
#include <errno.h>
#include <qchain/mutant.h>
#include <stdlib.h>
#include <string.h>

/*
 * A commit is the row of stages below, one after the other, each begun when all
 * I/O of the one before has ended. docs/crash-consistency.md numbers what each
 * of them promises; the numbers stand at the stages.
 */

/* So many times step 1 is tried in a row: then the device is given up. */
#define META_MAX_TRIES 100u
#define META_RETRY_NS 100000000ull
/* A transaction of so many changes is committed, whoever asks or not. */
#define META_LARGE 8192u

static void txn_reset(struct meta_txn *txn)
{
	CDS_INIT_LIST_HEAD(&txn->fresh);
	CDS_INIT_LIST_HEAD(&txn->dirty);
	CDS_INIT_LIST_HEAD(&txn->sets);
	CDS_INIT_LIST_HEAD(&txn->unmaps);
	CDS_INIT_LIST_HEAD(&txn->joined);
	txn->mark = 0;
	txn->nr = 0;
	txn->empty = true;
}

static void txn_stage_run(struct meta *meta);
static bool nothing_to_write(struct meta *meta);

/* ---- collecting ------------------------------------------------------------- */

u64 meta_open_seq(const struct meta *meta)
{
	return meta->open_seq;
}

static void touch_open(struct meta *meta)
{
	assert_on_loop(meta->loop);
	meta->open->empty = false;
	meta->open->nr++;
}

static u32 device_blocks(const struct meta *meta, u32 at, u32 bytes)
{
	u32 unit = min(meta->dev->block_bytes, meta->block_bytes);
	u32 first = at / unit;
	u32 last = (at + bytes - 1) / unit;

	return (2u << last) - (1u << first);
}

static void put_write(struct txn_write *w)
{
	u32 i;

	cds_list_del(&w->node);
	if (w->block)
		meta_unpin(w->block);
	for (i = 0; w->blocks && i < w->io.len / w->meta->block_bytes; i++)
		meta_unpin(w->blocks[i]);
	free(w->blocks);
	free(w->data);
	free(w);
}

static void put_writes(struct cds_list_head *writes)
{
	struct txn_write *w, *tmp;

	cds_list_for_each_entry_safe(w, tmp, writes, node)
		put_write(w);
}

/* A write of one block, with memory of its own. */
static struct txn_write *write_create(struct meta_block *b, struct cds_list_head *list)
{
	struct txn_write *w = calloc(1, sizeof(*w));
	void *data = io_alloc(b->meta->block_bytes);

	if (!w || !data) {
		free(w);
		free(data);
		return NULL;
	}
	w->meta = b->meta;
	w->block = b;
	w->data = data;
	meta_pin(b);
	cds_list_add_tail(&w->node, list);
	return w;
}

/* The first set of the open transaction in @b: from now on it is two blocks. */
static int begin_sets(struct meta *meta, struct meta_block *b)
{
	void *linked = b->linked ? b->linked : io_alloc(meta->block_bytes);

	if (!linked)
		return -ENOMEM;
	b->set = write_create(b, &meta->open->sets);
	if (!b->set) {
		if (!b->linked)
			free(linked);
		return -ENOMEM;
	}
	if (!b->linked)
		memcpy(linked, b->data, meta->block_bytes);
	b->linked = linked;
	return 0;
}

int meta_txn_set(struct meta *meta, struct meta_block *block, u32 at, const void *data,
		 u32 bytes)
{
	assert(at + bytes <= meta->block_bytes);
	if (block->dirty)
		return -EUCLEAN;
	if (!block->fresh && !block->set && begin_sets(meta, block))
		return -ENOMEM;
	memcpy((char *)block->data + at, data, bytes);
	if (!block->fresh)
		block->set->mask |= device_blocks(meta, at, bytes);
	touch_open(meta);
	return 0;
}

static struct txn_write *fresh_create(struct meta *meta, u64 host, void *data, u32 bytes)
{
	struct txn_write *w = calloc(1, sizeof(*w));

	if (!w)
		return NULL;
	w->meta = meta;
	w->data = data;
	w->io.offset = host;
	w->io.len = bytes;
	return w;
}

static void fresh_add(struct meta *meta, struct txn_write *w)
{
	cds_list_add_tail(&w->node, &meta->open->fresh);
	touch_open(meta);
}

int meta_txn_fresh(struct meta *meta, u64 host, void *data_owned, u32 bytes)
{
	struct txn_write *w = fresh_create(meta, host, data_owned, bytes);

	if (!w)
		return -ENOMEM;
	fresh_add(meta, w);
	return 0;
}

int meta_txn_table(struct meta *meta, u64 host, void *data_owned, u32 bytes)
{
	struct txn_write *w = fresh_create(meta, host, data_owned, bytes);
	u32 i, n = bytes / meta->block_bytes;
	int ret = -ENOMEM;

	if (!w)
		return ret;
	w->blocks = calloc(n, sizeof(struct meta_block *));
	if (!w->blocks)
		goto err_free;
	for (i = 0; i < n; i++) {
		u32 at = i * meta->block_bytes;

		ret = meta_block_put(meta, host + at, (u8 *)data_owned + at, &w->blocks[i]);
		if (ret)
			goto err_drop;
		w->blocks[i]->fresh = w;
	}
	fresh_add(meta, w);
	return 0;

err_drop:
	while (i--)
		meta_block_drop(meta, w->blocks[i]);
err_free:
	free(w->blocks);
	free(w);
	return ret;
}

void meta_txn_unmap(struct meta *meta, struct meta_unmap *unmap)
{
	cds_list_add_tail(&unmap->node, &meta->open->unmaps);
	touch_open(meta);
}

void meta_txn_join(struct meta *meta, struct meta_join *join)
{
	cds_list_add_tail(&join->node, &meta->open->joined);
	touch_open(meta);
}

void meta_txn_mark(struct meta *meta, u64 mark)
{
	meta->open->mark = max(meta->open->mark, mark);
}

/* ---- closing ------------------------------------------------------------------ */

/*
 * Promise 3: what steps 1 and 3 will write is copied here, once: the blocks show
 * the entries of the next transaction from now on.
 */
static void txn_close(struct meta *meta)
{
	struct meta_txn *txn = meta->open;
	struct txn_write *w;
	u32 i;

	cds_list_for_each_entry(w, &txn->fresh, node)
		for (i = 0; w->blocks && i < w->io.len / meta->block_bytes; i++) {
			memcpy((u8 *)w->data + i * meta->block_bytes, w->blocks[i]->data,
			       meta->block_bytes);
			w->blocks[i]->fresh = NULL;
		}
	cds_list_for_each_entry(w, &txn->sets, node) {
		memcpy(w->data, w->block->data, meta->block_bytes);
		w->block->set = NULL;
	}
	meta->committing = txn;
	meta->open = txn == &meta->txns[0] ? &meta->txns[1] : &meta->txns[0];
	meta->open_seq++;
	meta->kicked = false;
}

/* ---- the stages --------------------------------------------------------------- */

static void stage_io_done(struct meta *meta, int error)
{
	if (error && !meta->error)
		meta->error = error;
	if (--meta->stage_ios == 0)
		txn_stage_run(meta);
}

static void txn_write_done(struct io_op *op, int error)
{
	struct txn_write *w = container_of(op, struct txn_write, io);

	stage_io_done(w->meta, error);
}

static void submit(struct meta *meta, struct txn_write *w, u64 offset, void *base, u32 len)
{
	w->io = (struct io_op){ .dev = meta->dev, .type = IO_WRITE, .offset = offset,
				.len = len, .base = base, .done = txn_write_done };
	meta->stats.block_writes++;
	meta->stage_ios++;
	io_submit(meta->loop, &w->io);
}

/* The device blocks of @w from the first to the last changed one. */
static void submit_block(struct meta *meta, struct txn_write *w)
{
	u32 unit = min(meta->dev->block_bytes, meta->block_bytes);
	u32 first = __builtin_ctz(w->mask);
	u32 last = 31 - __builtin_clz(w->mask);

	if (MUTANT(MIXED_SECTOR))
		memcpy(w->data, w->block->data, meta->block_bytes);
	submit(meta, w, w->block->offset + first * unit, (u8 *)w->data + first * unit,
	       (last - first + 1) * unit);
}

static void submit_dirty(struct meta *meta)
{
	struct meta_block *b, *tmp;
	struct txn_write *w;

	cds_list_for_each_entry_safe(b, tmp, &meta->dirty, dirty_node) {
		w = write_create(b, &meta->committing->dirty);
		if (!w) {
			meta->error = -ENOMEM; /* stays dirty: the next try has it */
			return;
		}
		memcpy(w->data, b->data, meta->block_bytes);
		w->mask = b->dirty;
		cds_list_del(&b->dirty_node);
		b->dirty = 0;
		submit_block(meta, w);
	}
}

static void submit_sets(struct meta *meta)
{
	struct txn_write *w;

	cds_list_for_each_entry(w, &meta->committing->sets, node)
		submit_block(meta, w);
}

/* Step 1. Promise 1: nothing that an entry will name is missing when it appears. */
static void stage_fresh(struct meta *meta)
{
	struct txn_write *w;

	cds_list_for_each_entry(w, &meta->committing->fresh, node)
		submit(meta, w, w->io.offset, w->data, w->io.len);
	submit_dirty(meta);
	if (MUTANT(LINK_WITH_FRESH))
		submit_sets(meta);
}

static void flush_done(struct io_op *op, int error)
{
	stage_io_done(container_of(op, struct meta, flush), error);
}

/*
 * Step 2. Promise 2: everything an entry will name is durable before it. The
 * flush is also step 4 of the transactions linked before it began.
 */
static void stage_flush(struct meta *meta)
{
	meta->tries = 0;
	put_writes(&meta->committing->dirty);
	cds_list_splice(&meta->unmapped, &meta->flushing);
	CDS_INIT_LIST_HEAD(&meta->unmapped);
	if (MUTANT(NO_STEP_2))
		return;
	meta->stats.flushes++;
	meta->stage_ios++;
	meta->flush = (struct io_op){ .dev = meta->dev, .type = IO_FLUSH, .done = flush_done };
	io_submit(meta->loop, &meta->flush);
}

void meta_run_unmaps(struct cds_list_head *unmaps, int error)
{
	struct meta_unmap *u, *tmp;
	CDS_LIST_HEAD(list);

	cds_list_splice(unmaps, &list);
	CDS_INIT_LIST_HEAD(unmaps);
	cds_list_for_each_entry_safe(u, tmp, &list, node) {
		cds_list_del(&u->node);
		u->durable(u, error);
	}
}

/* Step 3. Promise 3: a reachable sector is written once at a time, as it was closed. */
static void stage_link(struct meta *meta)
{
	meta_run_unmaps(&meta->flushing, 0);
	submit_sets(meta);
}

/* ... of a fresh table: @data is what was written of @b. */
static void adopt_fresh(struct meta_block *b, const void *data)
{
	if (b->set) {
		memcpy(b->linked, data, b->meta->block_bytes);
		return;
	}
	free(b->linked);
	b->linked = NULL;
}

/* The disk has it: what is linked of the changed blocks is what was written. */
static void adopt_sets(struct meta_txn *txn)
{
	struct txn_write *w;

	cds_list_for_each_entry(w, &txn->sets, node) {
		struct meta_block *b = w->block;

		free(b->linked);
		b->linked = NULL;
		if (!b->set)
			continue; /* nothing newer: as the data */
		b->linked = w->data;
		w->data = NULL;
	}
}

static void run_joined(struct cds_list_head *joined, int error)
{
	struct meta_join *j, *tmp;

	cds_list_for_each_entry_safe(j, tmp, joined, node) {
		cds_list_del(&j->node);
		j->fn(j, error);
	}
}

/* Written, or lost: then the cache goes on showing what was acknowledged. */
static void end_writes(struct meta *meta, struct meta_txn *txn, int error)
{
	struct txn_write *w;
	u32 i;

	put_writes(&txn->dirty);
	if (error) {
		cds_list_splice(&txn->fresh, &meta->lost);
		cds_list_splice(&txn->sets, &meta->lost);
		return;
	}
	adopt_sets(txn);
	cds_list_for_each_entry(w, &txn->fresh, node) {
		if (!w->blocks)
			meta_forget(meta, w->io.offset, w->io.len);
		for (i = 0; w->blocks && i < w->io.len / meta->block_bytes; i++)
			adopt_fresh(w->blocks[i], (u8 *)w->data + i * meta->block_bytes);
	}
	put_writes(&txn->fresh);
	put_writes(&txn->sets);
}

/* Linked, or failed for good: tell who waits, take the next transaction. */
static void txn_finish(struct meta *meta, int error)
{
	struct meta_txn *txn = meta->committing;
	u64 mark = error ? 0 : txn->mark;
	CDS_LIST_HEAD(joined);
	CDS_LIST_HEAD(unmaps);

	end_writes(meta, txn, error);
	cds_list_splice(&txn->unmaps, error ? &unmaps : &meta->unmapped);
	cds_list_splice(&txn->joined, &joined);
	txn_reset(txn);
	meta->committing = NULL;
	meta->stats.commits++;
	run_joined(&joined, error);
	meta->ops->linked(meta->arg, mark);
	meta_run_unmaps(&unmaps, error);
	if (!error)
		meta_flush_linked(meta);
	if (!meta->failed && !nothing_to_write(meta) && !meta->timer.deadline_ns)
		loop_timer_set(meta->loop, &meta->timer, META_OLD_NS);
	if (meta->kicked)
		meta_kick(meta);
}

static void stage_linked(struct meta *meta)
{
	txn_finish(meta, 0);
}

static const struct {
	const char *name;
	void (*fn)(struct meta *meta);
} txn_stages[] = {
	{ "fresh", stage_fresh },
	{ "flush", stage_flush },
	{ "link", stage_link },
	{ "linked", stage_linked },
};

#define STAGE_FLUSH 1u

/* ---- failures ------------------------------------------------------------------- */

void meta_fail(struct meta *meta, int error)
{
	CDS_LIST_HEAD(unmaps);

	if (meta->failed)
		return;
	meta->failed = true;
	cds_list_splice(&meta->flushing, &unmaps);
	cds_list_splice(&meta->unmapped, &unmaps);
	CDS_INIT_LIST_HEAD(&meta->flushing);
	CDS_INIT_LIST_HEAD(&meta->unmapped);
	meta->ops->failed(meta->arg, error);
	meta_run_unmaps(&unmaps, error);
	meta_flush_fail(meta, error);
}

/* Sectors of step 1 that did not arrive are dirty again. */
static void redirty(struct meta *meta)
{
	struct txn_write *w;

	cds_list_for_each_entry(w, &meta->committing->dirty, node)
		meta_mark_dirty(w->block, w->io.offset - w->block->offset, w->io.len);
	put_writes(&meta->committing->dirty);
}

/*
 * A stage failed. Before step 2 the disk's tables are as they were: tried again.
 * A flush that failed may have dropped any write before it, also those of earlier
 * transactions and of the guest, and the next one would not say so.
 */
static void txn_abort(struct meta *meta)
{
	int error = meta->error ? meta->error : -EIO;

	meta->error = 0;
	if (!meta->failed && meta->stage <= STAGE_FLUSH && ++meta->tries < META_MAX_TRIES) {
		meta->stats.retries++;
		redirty(meta);
		meta->stage = 0;
		loop_timer_set(meta->loop, &meta->retry, META_RETRY_NS);
		return;
	}
	meta->stats.aborts++;
	meta_fail(meta, error);
	txn_finish(meta, error);
}

static void retry_timer(struct loop *loop, struct loop_timer *timer)
{
	txn_stage_run(container_of(timer, struct meta, retry));
}

/* ---- running ---------------------------------------------------------------------- */

/* Run stages until one has I/O under way; @meta->stage is the next one. */
static void txn_stage_run(struct meta *meta)
{
	while (meta->stage_ios == 0) {
		if (meta->error || meta->failed) {
			txn_abort(meta);
			return;
		}
		meta->stage_ios++; /* keeps completions of this stage from running ahead */
		if (meta->stage == ARRAY_SIZE(txn_stages) - 1) {
			meta->stage_ios = 0;
			stage_linked(meta);
			return;
		}
		txn_stages[meta->stage++].fn(meta);
		meta->stage_ios--;
	}
}

static void txn_commit(struct meta *meta)
{
	txn_close(meta);
	meta->stage = 0;
	meta->error = 0;
	txn_stage_run(meta);
}

void meta_kick(struct meta *meta)
{
	assert_on_loop(meta->loop);
	meta->kicked = meta->committing && !meta->open->empty;
	if (!meta->committing && !meta->open->empty)
		txn_commit(meta);
}

void meta_kick_later(struct meta *meta)
{
	if (meta->open->nr >= META_LARGE)
		meta_kick(meta);
	else
		meta_txn_dirtied(meta);
}

static bool nothing_joined(const struct meta *meta)
{
	return !meta->committing && meta->open->empty;
}

bool meta_clean(const struct meta *meta)
{
	return !meta->failed && nothing_joined(meta);
}

/* ---- housekeeping ---------------------------------------------------------------- */

static bool nothing_to_write(struct meta *meta)
{
	return nothing_joined(meta) &&
	       (meta->failed ||
		(cds_list_empty(&meta->dirty) && cds_list_empty(&meta->unmapped) &&
		 cds_list_empty(&meta->flushing)));
}

bool meta_idle(struct meta *meta)
{
	return !meta->loading && nothing_to_write(meta) && meta_flush_idle(meta);
}

void meta_housekeep(struct meta *meta)
{
	if (meta->retry.deadline_ns) {
		loop_timer_cancel(&meta->retry);
		txn_stage_run(meta);
	} else if (!meta->committing && !nothing_to_write(meta)) {
		txn_commit(meta);
	}
}

/* A commit that is under way sets the timer again when it ends. */
static void housekeep_timer(struct loop *loop, struct loop_timer *timer)
{
	struct meta *meta = container_of(timer, struct meta, timer);

	if (!meta->committing)
		meta_housekeep(meta);
}

void meta_get_stats(const struct meta *meta, struct meta_stats *stats)
{
	*stats = meta->stats;
}

void meta_txn_dirtied(struct meta *meta)
{
	if (!meta->timer.deadline_ns && !meta->committing)
		loop_timer_set(meta->loop, &meta->timer, META_OLD_NS);
}

void meta_txn_init(struct meta *meta)
{
	txn_reset(&meta->txns[0]);
	txn_reset(&meta->txns[1]);
	meta->open = &meta->txns[0];
	meta->open_seq = 1;
	CDS_INIT_LIST_HEAD(&meta->lost);
	CDS_INIT_LIST_HEAD(&meta->unmapped);
	CDS_INIT_LIST_HEAD(&meta->flushing);
	meta->timer.fn = housekeep_timer;
	meta->retry.fn = retry_timer;
}

void meta_txn_exit(struct meta *meta)
{
	loop_timer_cancel(&meta->timer);
	put_writes(&meta->lost);
}
