// SPDX-License-Identifier: GPL-2.0-or-later
/* THE write order (rule B1): the one place that issues metadata writes. */
#include "meta-private.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/*
 * A commit is the row of stages below, one after the other, each begun when all
 * I/O of the one before has ended. docs/crash-consistency.md numbers what each
 * of them promises; the numbers stand at the stages.
 */

#define HOUSEKEEP_NS 500000000ull
/* So many commits in a row failed: the device is dead, and stopping must end. */
#define META_MAX_ABORTS 100u

/* One entry range in a reachable sector, waiting for step 3. */
struct txn_set {
	struct cds_list_head node;
	struct meta_block *block;
	u32 at;
	u32 bytes;
	u8 data[];
};

/* One write under way: a fresh table, dirty sectors, or a block's new content. */
struct txn_write {
	struct cds_list_head node;
	struct meta *meta;
	struct meta_block *block; /* NULL: a fresh table */
	void *data;
	struct io_op io;
};

static void txn_reset(struct meta_txn *txn)
{
	CDS_INIT_LIST_HEAD(&txn->sets);
	CDS_INIT_LIST_HEAD(&txn->fresh);
	CDS_INIT_LIST_HEAD(&txn->writes);
	CDS_INIT_LIST_HEAD(&txn->unmaps);
	CDS_INIT_LIST_HEAD(&txn->joined);
	txn->empty = true;
}

static void txn_stage_run(struct meta *meta);
static bool nothing_to_write(struct meta *meta);

/* ---- collecting ------------------------------------------------------------- */

u64 meta_open_seq(const struct meta *meta)
{
	return meta->open_seq;
}

int meta_txn_set(struct meta *meta, struct meta_block *block, u32 at, const void *data,
		 u32 bytes)
{
	struct txn_set *set = malloc(sizeof(*set) + bytes);

	assert_on_loop(meta->loop);
	assert(at + bytes <= meta->block_bytes);
	if (!set)
		return -ENOMEM;
	set->block = block;
	set->at = at;
	set->bytes = bytes;
	memcpy(set->data, data, bytes);
	meta_pin(block);
	cds_list_add_tail(&set->node, &meta->open->sets);
	meta->open->empty = false;
	return 0;
}

int meta_txn_fresh(struct meta *meta, u64 host, void *data_owned, u32 bytes)
{
	struct txn_write *w = calloc(1, sizeof(*w));

	assert_on_loop(meta->loop);
	if (!w)
		return -ENOMEM;
	w->meta = meta;
	w->data = data_owned;
	w->io.offset = host;
	w->io.len = bytes;
	cds_list_add_tail(&w->node, &meta->open->fresh);
	meta->open->empty = false;
	return 0;
}

void meta_txn_unmap(struct meta *meta, struct meta_unmap *unmap)
{
	cds_list_add_tail(&unmap->node, &meta->open->unmaps);
	meta->open->empty = false;
}

void meta_txn_join(struct meta *meta, struct meta_join *join)
{
	assert_on_loop(meta->loop);
	cds_list_add_tail(&join->node, &meta->open->joined);
	meta->open->empty = false;
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

static void txn_write_submit(struct meta *meta, struct txn_write *w, u64 offset, void *base,
			     u32 len)
{
	w->io = (struct io_op){ .dev = meta->dev, .type = IO_WRITE, .offset = offset,
				.len = len, .base = base, .done = txn_write_done };
	meta->stats.block_writes++;
	meta->stage_ios++;
	io_submit(meta->loop, &w->io);
}

/* Write device blocks first..last of @b out of a copy; @w keeps it until the end. */
static void write_range(struct meta *meta, struct txn_write *w, struct meta_block *b, u32 mask)
{
	u32 unit = min(meta->dev->block_bytes, meta->block_bytes);
	u32 first = __builtin_ctz(mask);
	u32 last = 31 - __builtin_clz(mask);
	char *from = (char *)w->data + first * unit;

	txn_write_submit(meta, w, b->offset + first * unit, from, (last - first + 1) * unit);
}

static struct txn_write *shadow(struct meta *meta, struct meta_block *b)
{
	struct txn_write *w = calloc(1, sizeof(*w));
	void *data = io_alloc(meta->block_bytes);

	if (!w || !data) {
		free(w);
		free(data);
		return NULL;
	}
	memcpy(data, b->data, meta->block_bytes);
	w->meta = meta;
	w->block = b;
	w->data = data;
	meta_pin(b);
	cds_list_add_tail(&w->node, &meta->committing->writes);
	return w;
}

static void put_writes(struct cds_list_head *writes)
{
	struct txn_write *w, *tmp;

	cds_list_for_each_entry_safe(w, tmp, writes, node) {
		cds_list_del(&w->node);
		if (w->block)
			meta_unpin(w->block);
		free(w->data);
		free(w);
	}
}

/* Step 1. Promise 1: nothing that an entry will name is missing when it appears. */
static void stage_fresh(struct meta *meta)
{
	struct meta_block *b, *tmp;
	struct txn_write *w;

	cds_list_for_each_entry(w, &meta->committing->fresh, node)
		txn_write_submit(meta, w, w->io.offset, w->data, w->io.len);
	cds_list_for_each_entry_safe(b, tmp, &meta->dirty, dirty_node) {
		u32 mask = b->dirty;

		w = shadow(meta, b);
		if (!w) {
			meta->error = -ENOMEM; /* stays dirty: the next commit has it */
			break;
		}
		cds_list_del(&b->dirty_node);
		b->dirty = 0;
		write_range(meta, w, b, mask);
	}
}

/* Written sectors that did not arrive are dirty again. */
static void redirty(struct meta *meta)
{
	struct txn_write *w;

	cds_list_for_each_entry(w, &meta->committing->writes, node)
		meta_mark_dirty(w->block, w->io.offset - w->block->offset, w->io.len);
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
	put_writes(&meta->committing->writes);
	cds_list_splice(&meta->unmapped, &meta->flushing);
	CDS_INIT_LIST_HEAD(&meta->unmapped);
	meta->stats.flushes++;
	meta->stage_ios++;
	meta->flush = (struct io_op){ .dev = meta->dev, .type = IO_FLUSH, .done = flush_done };
	io_submit(meta->loop, &meta->flush);
}

static void run_durable(struct meta *meta)
{
	struct meta_unmap *u, *tmp;
	CDS_LIST_HEAD(durable);

	cds_list_splice(&meta->flushing, &durable);
	CDS_INIT_LIST_HEAD(&meta->flushing);
	cds_list_for_each_entry_safe(u, tmp, &durable, node) {
		cds_list_del(&u->node);
		u->durable(u, 0);
	}
}

static void cancel_unmaps(struct cds_list_head *unmaps, int error)
{
	struct meta_unmap *u, *tmp;

	cds_list_for_each_entry_safe(u, tmp, unmaps, node) {
		cds_list_del(&u->node);
		u->durable(u, error);
	}
}

static struct txn_write *shadow_of(struct meta *meta, struct meta_block *b)
{
	struct txn_write *w;

	cds_list_for_each_entry(w, &meta->committing->writes, node)
		if (w->block == b)
			return w;
	w = shadow(meta, b);
	if (w)
		w->io.len = 0; /* until submitted: the mask of changed device blocks */
	return w;
}

/*
 * Step 3. Promise 3: a reachable sector is written once, with entries of this
 * transaction only; the cache follows when the disk has it.
 */
static void stage_link(struct meta *meta)
{
	u32 unit = min(meta->dev->block_bytes, meta->block_bytes);
	struct txn_write *w;
	struct txn_set *set;
	u32 i;

	run_durable(meta);
	cds_list_for_each_entry(set, &meta->committing->sets, node) {
		w = shadow_of(meta, set->block);
		if (!w) {
			meta->error = -ENOMEM;
			return;
		}
		memcpy((char *)w->data + set->at, set->data, set->bytes);
		for (i = set->at / unit; i <= (set->at + set->bytes - 1) / unit; i++)
			w->io.len |= 1u << i;
	}
	cds_list_for_each_entry(w, &meta->committing->writes, node)
		write_range(meta, w, w->block, w->io.len);
}

static void drop_sets(struct meta_txn *txn)
{
	struct txn_set *set, *tmp;

	cds_list_for_each_entry_safe(set, tmp, &txn->sets, node) {
		cds_list_del(&set->node);
		meta_unpin(set->block);
		free(set);
	}
}

/* The cache follows the disk: changed entries, and places that are tables now. */
static void update_cache(struct meta *meta, const struct meta_txn *txn, int error)
{
	struct txn_write *w;
	struct txn_set *set;

	cds_list_for_each_entry(set, &txn->sets, node)
		if (!error)
			memcpy((char *)set->block->data + set->at, set->data, set->bytes);
	cds_list_for_each_entry(w, &txn->fresh, node)
		meta_forget(meta, w->io.offset, w->io.len);
}

/* Linked, or failed: hand the joined operations back, take the next transaction. */
static void txn_finish(struct meta *meta, int error)
{
	struct meta_txn *txn = meta->committing;
	struct meta_join *j, *tmp;
	CDS_LIST_HEAD(fresh);
	CDS_LIST_HEAD(joined);
	CDS_LIST_HEAD(unmaps);

	update_cache(meta, txn, error);
	put_writes(&txn->writes);
	drop_sets(txn);
	cds_list_splice(&txn->fresh, &fresh);
	cds_list_splice(&txn->unmaps, error ? &unmaps : &meta->unmapped);
	cds_list_splice(&txn->joined, &joined);
	txn_reset(txn);
	meta->committing = NULL;
	meta->stats.commits++;
	cds_list_for_each_entry_safe(j, tmp, &joined, node) {
		cds_list_del(&j->node);
		j->fn(j, error);
	}
	meta->ops->linked(meta->arg);
	/* late: until its own join ran, a fresh table is looked into */
	put_writes(&fresh);
	cancel_unmaps(&unmaps, error);
	if (!meta->failed && !nothing_to_write(meta))
		loop_timer_set(meta->loop, &meta->timer, HOUSEKEEP_NS);
	if (meta->kicked)
		meta_kick(meta);
}

static void stage_linked(struct meta *meta)
{
	meta->aborts_in_row = 0;
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

/*
 * A stage failed. Before step 2 the disk's tables are as they were. A flush
 * that failed may have dropped any write before it, also those of earlier
 * transactions and of the guest, and the next one would not say so.
 */
static void txn_abort(struct meta *meta)
{
	int error = meta->error;

	meta->error = 0;
	meta->stats.aborts++;
	if (meta->stage <= STAGE_FLUSH && ++meta->aborts_in_row < META_MAX_ABORTS) {
		redirty(meta);
	} else {
		meta->failed = true;
		cds_list_splice(&meta->flushing, &meta->committing->unmaps);
		cds_list_splice(&meta->unmapped, &meta->committing->unmaps);
		CDS_INIT_LIST_HEAD(&meta->flushing);
		CDS_INIT_LIST_HEAD(&meta->unmapped);
		meta->ops->failed(meta->arg, error);
	}
	txn_finish(meta, error);
}

/* Run stages until one has I/O under way; @meta->stage is the next one. */
static void txn_stage_run(struct meta *meta)
{
	while (meta->stage_ios == 0) {
		if (meta->error) {
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

static void fail_open(struct meta *meta)
{
	assert(!meta->committing);
	meta->committing = meta->open;
	meta->open = meta->committing == &meta->txns[0] ? &meta->txns[1] : &meta->txns[0];
	meta->open_seq++;
	txn_finish(meta, -EIO);
}

static void txn_commit(struct meta *meta)
{
	meta->kicked = false;
	if (meta->failed) {
		fail_open(meta);
		return;
	}
	meta->committing = meta->open;
	meta->open = meta->committing == &meta->txns[0] ? &meta->txns[1] : &meta->txns[0];
	meta->open_seq++;
	meta->stage = 0;
	meta->error = 0;
	txn_stage_run(meta);
}

void meta_kick(struct meta *meta)
{
	assert_on_loop(meta->loop);
	if (meta->committing) {
		meta->kicked = true;
		return;
	}
	if (!meta->open->empty)
		txn_commit(meta);
	else
		meta->kicked = false;
}

/* ---- housekeeping ---------------------------------------------------------------- */

static bool nothing_to_write(struct meta *meta)
{
	return !meta->committing && meta->open->empty &&
	       (meta->failed ||
		(cds_list_empty(&meta->dirty) && cds_list_empty(&meta->unmapped) &&
		 cds_list_empty(&meta->flushing)));
}

bool meta_idle(struct meta *meta)
{
	return !meta->loading && nothing_to_write(meta);
}

void meta_housekeep(struct meta *meta)
{
	if (!meta->committing && !meta->failed && !nothing_to_write(meta))
		txn_commit(meta);
}

static void housekeep_timer(struct loop *loop, struct loop_timer *timer)
{
	meta_housekeep(container_of(timer, struct meta, timer));
}

void meta_get_stats(const struct meta *meta, struct meta_stats *stats)
{
	*stats = meta->stats;
}

void meta_txn_dirtied(struct meta *meta)
{
	if (!meta->timer.deadline_ns && !meta->committing)
		loop_timer_set(meta->loop, &meta->timer, HOUSEKEEP_NS);
}

void meta_txn_init(struct meta *meta)
{
	txn_reset(&meta->txns[0]);
	txn_reset(&meta->txns[1]);
	meta->open = &meta->txns[0];
	CDS_INIT_LIST_HEAD(&meta->unmapped);
	CDS_INIT_LIST_HEAD(&meta->flushing);
	meta->timer.fn = housekeep_timer;
}

void meta_txn_exit(struct meta *meta)
{
	loop_timer_cancel(&meta->timer);
}
