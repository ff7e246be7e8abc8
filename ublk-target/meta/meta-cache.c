// SPDX-License-Identifier: GPL-2.0-or-later
/* Cached blocks of the tables of one image. */
#include "meta-private.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/*
 * Whoever misses waits on the block; when it has been read the waiters run and
 * ask again. A block that could not be read answers -EIO while its waiters run,
 * then it is dropped: the next one to ask tries the disk again.
 */

static struct cds_list_head *bucket(struct meta *meta, u64 offset)
{
	return &meta->hash[(offset / meta->block_bytes) % META_HASH_BUCKETS];
}

static struct meta_block *find(struct meta *meta, u64 offset)
{
	struct meta_block *b;

	cds_list_for_each_entry(b, bucket(meta, offset), hash)
		if (b->offset == offset)
			return b;
	return NULL;
}

static void drop(struct meta *meta, struct meta_block *b)
{
	assert(!b->pins && !b->dirty);
	cds_list_del(&b->hash);
	cds_list_del(&b->lru);
	meta->nr_blocks--;
	free(b->data);
	free(b->linked);
	free(b);
}

static void shrink(struct meta *meta)
{
	struct meta_block *b, *tmp;

	if (meta->nr_blocks < meta->max_blocks)
		return;
	cds_list_for_each_entry_safe(b, tmp, &meta->lru, lru) {
		if (b->pins || b->dirty || b->state != BLOCK_READY)
			continue;
		drop(meta, b);
		if (meta->nr_blocks < meta->max_blocks)
			return;
	}
}

static void run_waiters(struct meta_block *b, struct cds_list_head *waiters)
{
	struct meta_wait *w, *tmp;

	cds_list_for_each_entry_safe(w, tmp, waiters, node) {
		cds_list_del(&w->node);
		w->fn(w);
	}
}

/* While the waiters run the block is pinned: each finds it. */
static void block_loaded(struct io_op *op, int error)
{
	struct meta_block *b = container_of(op, struct meta_block, io);
	struct meta *meta = b->meta;
	CDS_LIST_HEAD(waiters);

	meta->loading--;
	if (b->state != BLOCK_STALE)
		b->state = error ? BLOCK_UNREADABLE : BLOCK_READY;
	cds_list_splice(&b->waiters, &waiters);
	CDS_INIT_LIST_HEAD(&b->waiters);
	meta_pin(b);
	run_waiters(b, &waiters);
	meta_unpin(b);
	if (b->state != BLOCK_READY)
		drop(meta, b);
}

static struct meta_block *block_create(struct meta *meta, u64 offset, u8 state)
{
	struct meta_block *b = calloc(1, sizeof(*b));

	if (!b)
		return NULL;
	b->data = io_alloc(meta->block_bytes);
	if (!b->data) {
		free(b);
		return NULL;
	}
	b->offset = offset;
	b->meta = meta;
	b->state = state;
	CDS_INIT_LIST_HEAD(&b->waiters);
	cds_list_add(&b->hash, bucket(meta, offset));
	cds_list_add_tail(&b->lru, &meta->lru);
	meta->nr_blocks++;
	return b;
}

static int load(struct meta *meta, u64 offset, struct meta_block **result)
{
	struct meta_block *b = block_create(meta, offset, BLOCK_LOADING);

	if (!b)
		return -ENOMEM;
	meta->loading++;
	meta->stats.block_reads++;
	b->io = (struct io_op){ .dev = meta->dev, .type = IO_READ, .offset = offset,
				.len = meta->block_bytes, .base = b->data,
				.done = block_loaded };
	io_submit(meta->loop, &b->io);
	*result = b;
	return 0;
}

int meta_get(struct meta *meta, u64 offset, struct meta_wait *wait, struct meta_block **result)
{
	u64 start = offset - offset % meta->block_bytes;
	struct meta_block *b = find(meta, start);
	int ret;

	assert_on_loop(meta->loop);
	if (b && b->state == BLOCK_READY) {
		cds_list_del(&b->lru);
		cds_list_add_tail(&b->lru, &meta->lru);
		*result = b;
		return 0;
	}
	if (b && b->state == BLOCK_UNREADABLE)
		return -EIO;
	if (!b) {
		shrink(meta);
		ret = load(meta, start, &b);
		if (ret)
			return ret;
	}
	cds_list_add_tail(&wait->node, &b->waiters);
	return -EAGAIN;
}

void meta_pin(struct meta_block *block)
{
	block->pins++;
}

void meta_unpin(struct meta_block *block)
{
	assert(block->pins);
	block->pins--;
}

void meta_mark_dirty(struct meta_block *block, u32 at, u32 bytes)
{
	u32 unit = min(block->meta->dev->block_bytes, block->meta->block_bytes);
	u32 i;

	if (!block->dirty)
		cds_list_add_tail(&block->dirty_node, &block->meta->dirty);
	for (i = at / unit; i <= (at + bytes - 1) / unit; i++)
		block->dirty |= 1u << i;
	meta_txn_dirtied(block->meta);
}

void meta_forget(struct meta *meta, u64 offset, u64 bytes)
{
	u64 pos;

	for (pos = offset; pos < offset + bytes; pos += meta->block_bytes) {
		struct meta_block *b = find(meta, pos);

		if (!b || b->state == BLOCK_UNREADABLE || b->pins)
			continue;
		if (b->state == BLOCK_LOADING) { /* nobody finds it; dropped when read */
			cds_list_del(&b->hash);
			CDS_INIT_LIST_HEAD(&b->hash);
			b->state = BLOCK_STALE;
			continue;
		}
		if (b->dirty)
			cds_list_del(&b->dirty_node);
		b->dirty = 0;
		drop(meta, b);
	}
}

int meta_block_put(struct meta *meta, u64 offset, const void *data, struct meta_block **result)
{
	struct meta_block *b;

	meta_forget(meta, offset, meta->block_bytes);
	if (find(meta, offset)) /* in use as something else */
		return -EUCLEAN;
	shrink(meta);
	b = block_create(meta, offset, BLOCK_READY);
	if (!b)
		return -ENOMEM;
	b->linked = io_alloc(meta->block_bytes);
	if (!b->linked) {
		drop(meta, b);
		return -ENOMEM;
	}
	memcpy(b->data, data, meta->block_bytes);
	memcpy(b->linked, data, meta->block_bytes);
	meta_pin(b);
	*result = b;
	return 0;
}

void meta_block_drop(struct meta *meta, struct meta_block *block)
{
	meta_unpin(block);
	drop(meta, block);
}

u32 meta_block_bytes(const struct meta *meta)
{
	return meta->block_bytes;
}

int meta_create(struct loop *loop, struct io_dev *dev, u32 block_bytes, u32 max_blocks,
		const struct meta_ops *ops, void *arg, struct meta **result)
{
	struct meta *meta = calloc(1, sizeof(*meta));
	u32 i;

	if (!meta)
		return -ENOMEM;
	meta->loop = loop;
	meta->dev = dev;
	meta->ops = ops;
	meta->arg = arg;
	meta->block_bytes = block_bytes;
	meta->max_blocks = max_blocks;
	for (i = 0; i < META_HASH_BUCKETS; i++)
		CDS_INIT_LIST_HEAD(&meta->hash[i]);
	CDS_INIT_LIST_HEAD(&meta->lru);
	CDS_INIT_LIST_HEAD(&meta->dirty);
	meta_txn_init(meta);
	meta_flush_init(meta);
	*result = meta;
	return 0;
}

void meta_destroy(struct meta *meta)
{
	struct meta_block *b, *tmp;

	if (!meta)
		return;
	assert(!meta->loading && !meta->committing);
	meta_txn_exit(meta);
	cds_list_for_each_entry_safe(b, tmp, &meta->lru, lru) {
		b->pins = 0;
		b->dirty = 0;
		drop(meta, b);
	}
	free(meta);
}
