// SPDX-License-Identifier: GPL-2.0-or-later
/* Refcounts of an open image: allocate, release, and grow their tables ahead. */
#include <assert.h>
#include <errno.h>
#include <qchain/leaks.h>
#include <qchain/refcount.h>
#include <stdlib.h>
#include <string.h>
#include <uapi/qcow2.h>

#include "qcow2-layout.h"

/*
 * No free cluster lies below @cursor: allocation takes the first free one from
 * there and moves the cursor up, a release moves it down.
 *
 * A missing refcount block is a transaction of its own, ahead of need (rule B1,
 * step 0): the block (and, when the table is full, a larger table) is written
 * whole, flushed, then named by one sector. Its clusters are handed out after
 * that transaction is linked, so the flush of step 2 of whoever uses them makes
 * the naming durable before any entry is written that relies on it.
 */

struct refcounts {
	struct image *img;
	struct meta *meta;
	u64 *reftable; /* host-endian */
	u32 nr_reftable; /* entries, whole clusters */
	u64 cursor;
	struct busy *busy; /* of the leak scan that runs, or NULL */

	/* what -EUCLEAN was about; NULL: nothing yet */
	const char *fault;
	u64 fault_host;

	/* growth: one at a time */
	bool growing;
	bool waking; /* its waiters run */
	int grow_error; /* of the last one */
	struct cds_list_head waiters; /* struct meta_wait */
	struct meta_wait grow_wait;
	struct meta_join grow_join;
	u64 grow_index; /* of the first missing block */
	u32 grow_blocks;
	u64 *grow_table; /* the larger table, or NULL */
	u32 grow_table_entries;
	struct old_table *old_table; /* until the transaction has it */
	u32 nr_old_tables; /* unmapped, not yet released */
};

static u64 block_entries(const struct image *img)
{
	return 1ull << (img->cluster_bits + 3 - img->refcount_order);
}

u64 refcounts_limit(const struct refcounts *rc)
{
	const struct io_dev *dev = rc->img->dev;

	if (!dev->blockdev)
		return 1ull << (55 - rc->img->cluster_bits);
	return io_dev_bytes(dev) >> rc->img->cluster_bits;
}

bool refcounts_busy(const struct refcounts *rc)
{
	return rc->growing || rc->nr_old_tables;
}

void refcounts_watch(struct refcounts *rc, struct busy *busy)
{
	rc->busy = busy;
}

void refcounts_touch(struct refcounts *rc, u64 host, u64 bytes)
{
	u64 c, last = (host + bytes - 1) >> rc->img->cluster_bits;

	for (c = host >> rc->img->cluster_bits; rc->busy && c <= last; c++)
		busy_set(rc->busy, c);
}

bool refcounts_block(const struct refcounts *rc, u64 index, u64 *host)
{
	if (index >= rc->nr_reftable)
		return false;
	*host = rc->reftable[index];
	return true;
}

static int miscounted(struct refcounts *rc, u64 cluster, const char *what)
{
	rc->fault = what;
	rc->fault_host = cluster << rc->img->cluster_bits;
	return -EUCLEAN;
}

void refcounts_fault(const struct refcounts *rc, u64 *host, const char **what)
{
	*host = rc->fault_host;
	*what = rc->fault ? rc->fault : "a table lies where another one does";
}

/* ---- one count ---------------------------------------------------------------- */

/* Entry @i of big-endian memory @data, 1 << @order bits wide. */
static u64 count_get(const void *data, u64 i, u32 order)
{
	const u8 *p = data;
	u64 value = 0;
	u32 bytes, k;

	if (order < 3)
		return p[i >> (3 - order)] >> ((i & ((8 >> order) - 1)) << order) &
		       ((1u << (1 << order)) - 1);
	bytes = 1u << (order - 3);
	for (k = 0; k < bytes; k++)
		value = value << 8 | p[i * bytes + k];
	return value;
}

static void count_set(void *data, u64 i, u32 order, u64 value)
{
	u8 *p = data;
	u32 bytes, k;

	if (order < 3) {
		u32 shift = (i & ((8 >> order) - 1)) << order;
		u8 mask = ((1u << (1 << order)) - 1) << shift;
		u8 *byte = &p[i >> (3 - order)];

		*byte = (*byte & ~mask) | (value << shift & mask);
		return;
	}
	bytes = 1u << (order - 3);
	for (k = bytes; k--; value >>= 8)
		p[i * bytes + k] = value;
}

/* The cached block that counts @cluster; *@i: the entry in it. */
static int count_block(struct refcounts *rc, u64 cluster, struct meta_wait *wait,
		       struct meta_block **block, u64 *i)
{
	u64 per_block = (u64)meta_block_bytes(rc->meta) * 8 >> rc->img->refcount_order;
	u64 r = cluster / block_entries(rc->img);
	u64 in = cluster % block_entries(rc->img);

	if (r >= rc->nr_reftable || !rc->reftable[r])
		return -ENOENT;
	*i = in % per_block;
	return meta_get(rc->meta, rc->reftable[r] + (in << rc->img->refcount_order) / 8, wait,
			block);
}

static void count_put(struct refcounts *rc, struct meta_block *block, u64 i, u64 value)
{
	u32 order = rc->img->refcount_order;
	u32 bytes = order > 3 ? 1u << (order - 3) : 1;

	count_set(block->data, i, order, value);
	meta_mark_dirty(block, (i << order) / 8, bytes);
}

/* ---- the table that was replaced: its clusters go one by one ------------------------- */

struct old_table {
	struct meta_unmap unmap;
	struct meta_wait wait;
	struct refcounts *rc;
	u64 next; /* host offset of what is not released yet */
};

static void old_table_end(struct old_table *old)
{
	old->rc->nr_old_tables--;
	free(old);
}

/* A cluster that cannot be released is leaked; the others are not. */
static void old_table_release(struct meta_wait *wait)
{
	struct old_table *old = container_of(wait, struct old_table, wait);
	u64 cluster = image_cluster_bytes(old->rc->img);

	while (old->next < old->unmap.host + old->unmap.bytes) {
		if (refcounts_release(old->rc, old->next, cluster, wait) == -EAGAIN)
			return;
		old->next += cluster;
	}
	old_table_end(old);
}

/* Only the metadata thread ever reads the table: no grace is needed. */
static void old_table_durable(struct meta_unmap *unmap, int error)
{
	struct old_table *old = container_of(unmap, struct old_table, unmap);

	if (error)
		old_table_end(old);
	else
		old_table_release(&old->wait);
}

static int old_table_create(struct refcounts *rc)
{
	struct old_table *old = calloc(1, sizeof(*old));

	if (!old)
		return -ENOMEM;
	*old = (struct old_table){
		.unmap = { .host = rc->img->reftable_offset, .durable = old_table_durable,
			   .bytes = (u64)rc->nr_reftable * sizeof(u64) },
		.wait = { .fn = old_table_release }, .rc = rc, .next = rc->img->reftable_offset,
	};
	rc->old_table = old;
	return 0;
}

/* The open transaction names the new one. */
static void old_table_unmap(struct refcounts *rc)
{
	struct old_table *old = rc->old_table;

	refcounts_touch(rc, old->unmap.host, old->unmap.bytes);
	meta_txn_unmap(rc->meta, &old->unmap);
	rc->nr_old_tables++;
	rc->old_table = NULL;
}

/* ---- growth --------------------------------------------------------------------- */

/* Who waits asks again while @waking is set, and so learns of the error. */
static void grow_end(struct refcounts *rc, int error)
{
	struct meta_wait *w, *tmp;
	CDS_LIST_HEAD(waiters);

	free(rc->grow_table);
	free(rc->old_table);
	rc->grow_table = NULL;
	rc->old_table = NULL;
	rc->growing = false;
	rc->grow_error = error;
	cds_list_splice(&rc->waiters, &waiters);
	CDS_INIT_LIST_HEAD(&rc->waiters);
	rc->waking = true;
	cds_list_for_each_entry_safe(w, tmp, &waiters, node) {
		cds_list_del(&w->node);
		w->fn(w);
	}
	rc->waking = false;
}

static u64 grow_first(const struct refcounts *rc)
{
	return rc->grow_index * block_entries(rc->img);
}

static u64 grow_host(const struct refcounts *rc)
{
	return grow_first(rc) << rc->img->cluster_bits;
}

/* Blocks, then the new table, if any. */
static u64 grow_clusters(const struct refcounts *rc)
{
	u64 table = (u64)rc->grow_table_entries * sizeof(u64);

	return rc->grow_blocks + (table >> rc->img->cluster_bits);
}

static void grow_adopt_table(struct refcounts *rc)
{
	struct image *img = rc->img;
	u64 old_bytes = (u64)rc->nr_reftable * sizeof(u64);

	overlap_remove(img, img->reftable_offset, old_bytes);
	free(rc->reftable);
	rc->reftable = rc->grow_table;
	rc->nr_reftable = rc->grow_table_entries;
	rc->grow_table = NULL;
	img->reftable_offset = grow_host(rc) + ((u64)rc->grow_blocks << img->cluster_bits);
	img->reftable_clusters = (u64)rc->nr_reftable * sizeof(u64) >> img->cluster_bits;
}

static void grow_linked(struct meta_join *join, int error)
{
	struct refcounts *rc = container_of(join, struct refcounts, grow_join);
	u32 i;

	if (!error) {
		if (rc->grow_table)
			grow_adopt_table(rc);
		for (i = 0; i < rc->grow_blocks; i++)
			rc->reftable[rc->grow_index + i] =
				grow_host(rc) + ((u64)i << rc->img->cluster_bits);
		overlap_add(rc->img, grow_host(rc), grow_clusters(rc) << rc->img->cluster_bits);
	}
	grow_end(rc, error);
}

static void fill_blocks(const struct refcounts *rc, u8 *blocks)
{
	u64 n = grow_clusters(rc);
	u64 i;

	for (i = 0; i < n; i++)
		count_set(blocks, i, rc->img->refcount_order, 1);
}

static void fill_table(const struct refcounts *rc, void *data)
{
	__be64 *be = data;
	u32 i;

	for (i = 0; i < rc->grow_table_entries; i++)
		be[i] = __builtin_bswap64(rc->grow_table[i]);
}

/* What to name: an entry of the table, or the table in the header. */
static int grow_set(struct refcounts *rc, struct meta_block *block)
{
	u64 at = rc->img->reftable_offset + rc->grow_index * sizeof(u64);
	struct {
		__be64 offset;
		__be32 clusters;
	} __attribute__((packed)) header;
	__be64 entry = __builtin_bswap64(grow_host(rc));

	if (!rc->grow_table)
		return meta_txn_set(rc->meta, block, at - block->offset, &entry, sizeof(entry));
	header.offset = __builtin_bswap64(grow_host(rc) +
					  ((u64)rc->grow_blocks << rc->img->cluster_bits));
	header.clusters = __builtin_bswap32((u64)rc->grow_table_entries * sizeof(u64) >>
					    rc->img->cluster_bits);
	return meta_txn_set(rc->meta, block,
			    offsetof(struct qcow2_disk_header, refcount_table_offset), &header,
			    sizeof(header));
}

/* Rerun until the sector to change is in the cache, then join the transaction. */
static int grow_join(struct refcounts *rc)
{
	u64 bytes = grow_clusters(rc) << rc->img->cluster_bits;
	u64 at = rc->grow_table ? 0 : rc->img->reftable_offset + rc->grow_index * sizeof(u64);
	struct meta_block *block;
	u8 *data;
	int ret;

	ret = meta_get(rc->meta, at, &rc->grow_wait, &block);
	if (ret)
		return ret;
	data = io_alloc(bytes);
	if (!data)
		return -ENOMEM;
	memset(data, 0, bytes);
	fill_blocks(rc, data);
	if (rc->grow_table)
		fill_table(rc, data + ((u64)rc->grow_blocks << rc->img->cluster_bits));
	ret = meta_txn_fresh(rc->meta, grow_host(rc), data, bytes);
	if (ret) {
		free(data);
		return ret;
	}
	ret = grow_set(rc, block);
	if (ret)
		return ret;
	refcounts_touch(rc, grow_host(rc), bytes);
	if (rc->grow_table)
		old_table_unmap(rc);
	meta_txn_join(rc->meta, &rc->grow_join);
	meta_kick(rc->meta);
	return 0;
}

static void grow_run(struct meta_wait *wait)
{
	struct refcounts *rc = container_of(wait, struct refcounts, grow_wait);
	int ret = grow_join(rc);

	if (ret && ret != -EAGAIN)
		grow_end(rc, ret);
}

static void grow_name_blocks(struct refcounts *rc)
{
	u32 i;

	for (i = 0; i < rc->grow_blocks; i++)
		rc->grow_table[rc->grow_index + i] =
			grow_host(rc) + ((u64)i << rc->img->cluster_bits);
}

/*
 * A larger table behind its blocks: the blocks from @grow_index on count
 * themselves and the table; half as large again as the old one.
 */
static int grow_plan_table(struct refcounts *rc)
{
	const struct image *img = rc->img;
	u64 per_cluster = image_cluster_bytes(img) / sizeof(u64);
	u64 entries, clusters;
	int ret = old_table_create(rc);

	if (ret)
		return ret;
	rc->grow_blocks = 0;
	do {
		rc->grow_blocks++;
		entries = max(rc->grow_index + rc->grow_blocks, rc->nr_reftable * 3ull / 2 + 1);
		clusters = DIV_ROUND_UP(entries, per_cluster);
	} while (rc->grow_blocks + clusters > rc->grow_blocks * block_entries(img));
	if (clusters << img->cluster_bits > QC_MAX_REFTABLE_BYTES)
		return -EFBIG;
	rc->grow_table_entries = clusters * per_cluster;
	rc->grow_table = calloc(rc->grow_table_entries, sizeof(u64));
	if (!rc->grow_table)
		return -ENOMEM;
	memcpy(rc->grow_table, rc->reftable, rc->nr_reftable * sizeof(u64));
	grow_name_blocks(rc);
	return 0;
}

/* Nothing counts these clusters, so look whether tables lie there (rule B7). */
static int grow_check_place(struct refcounts *rc)
{
	u64 end = grow_first(rc) + grow_clusters(rc);
	u64 c;

	if (end > refcounts_limit(rc))
		return -ENOSPC;
	for (c = grow_first(rc); c < end; c++)
		if (overlap_what(rc->img, c << rc->img->cluster_bits))
			return miscounted(rc, c, "a table that nothing counts");
	return 0;
}

/* Start the growth for missing block @index; the caller waits. */
static void grow_start(struct refcounts *rc, u64 index)
{
	int ret;

	rc->grow_index = index;
	rc->grow_blocks = 1;
	rc->grow_table_entries = 0;
	rc->growing = true;
	ret = index >= rc->nr_reftable ? grow_plan_table(rc) : 0;
	if (!ret)
		ret = grow_check_place(rc);
	if (!ret)
		ret = grow_join(rc);
	if (ret && ret != -EAGAIN)
		grow_end(rc, ret);
}

/* 0: it is there already. */
static int grow_and_wait(struct refcounts *rc, u64 index, struct meta_wait *wait)
{
	if (rc->waking && rc->grow_error)
		return rc->grow_error;
	if (!rc->growing)
		grow_start(rc, index);
	if (!rc->growing) /* it came to its end at once */
		return rc->grow_error;
	cds_list_add_tail(&wait->node, &rc->waiters);
	return -EAGAIN;
}

/* ---- allocate and release -------------------------------------------------------- */

/*
 * Take up to @want free clusters from @cursor on, within one cached block and below @limit.
 * 0: *@got of them at @cursor (0: none left in this block, the cursor moved).
 */
static int take_from_block(struct refcounts *rc, u64 limit, u32 want, struct meta_wait *wait,
			   u32 *got)
{
	u64 per_block = (u64)meta_block_bytes(rc->meta) * 8 >> rc->img->refcount_order;
	u32 order = rc->img->refcount_order;
	struct meta_block *block;
	u64 i;
	int ret;

	*got = 0;
	ret = count_block(rc, rc->cursor, wait, &block, &i);
	if (ret)
		return ret;
	while (i < per_block && rc->cursor < limit && count_get(block->data, i, order)) {
		i++;
		rc->cursor++;
	}
	while (i < per_block && rc->cursor + *got < limit && *got < want &&
	       !count_get(block->data, i, order)) {
		if (overlap_what(rc->img, (rc->cursor + *got) << rc->img->cluster_bits))
			return *got ? 0 : miscounted(rc, rc->cursor,
						     "a table that is counted as free");
		count_put(rc, block, i, 1);
		refcounts_touch(rc, (rc->cursor + *got) << rc->img->cluster_bits, 1);
		(*got)++;
		i++;
	}
	return 0;
}

static int alloc_below(struct refcounts *rc, u64 limit, u32 want, struct meta_wait *wait,
		       u64 *host, u32 *got)
{
	int ret;

	do {
		if (rc->cursor >= limit)
			return -ENOSPC;
		ret = take_from_block(rc, limit, want, wait, got);
		if (ret == -ENOENT)
			ret = grow_and_wait(rc, rc->cursor / block_entries(rc->img), wait);
		if (ret)
			return ret;
	} while (!*got);
	*host = rc->cursor << rc->img->cluster_bits;
	rc->cursor += *got;
	return 0;
}

/* Rule E2: the last clusters of a device are kept for tables. */
int refcounts_alloc(struct refcounts *rc, u32 want, struct meta_wait *wait, u64 *host, u32 *got)
{
	u64 limit = refcounts_limit(rc);

	if (rc->img->dev->blockdev)
		limit -= layout_reserve(limit, rc->img->cluster_bits);
	return alloc_below(rc, limit, want, wait, host, got);
}

int refcounts_alloc_table(struct refcounts *rc, struct meta_wait *wait, u64 *host)
{
	u32 got;

	return alloc_below(rc, refcounts_limit(rc), 1, wait, host, &got);
}

/* All blocks must be there before the first count changes: asked for in one go. */
static int release_prepare(struct refcounts *rc, u64 first, u64 last, struct meta_wait *wait)
{
	struct meta_block *block;
	u64 c, i;
	int ret;

	for (c = first; c <= last; c++) {
		ret = count_block(rc, c, wait, &block, &i);
		if (ret && ret != -ENOENT)
			return ret;
		if (ret || !count_get(block->data, i, rc->img->refcount_order))
			return miscounted(rc, c, "a cluster that was in use is counted as free");
	}
	return 0;
}

int refcounts_release(struct refcounts *rc, u64 host, u64 bytes, struct meta_wait *wait)
{
	u64 first = host >> rc->img->cluster_bits;
	u64 last = (host + bytes - 1) >> rc->img->cluster_bits;
	struct meta_block *block;
	u64 c, i, count;
	int ret = release_prepare(rc, first, last, wait);

	for (c = first; !ret && c <= last; c++) {
		ret = count_block(rc, c, wait, &block, &i);
		assert(!ret);
		count = count_get(block->data, i, rc->img->refcount_order) - 1;
		count_put(rc, block, i, count);
		if (!count && c < rc->cursor)
			rc->cursor = c;
	}
	return ret;
}

int refcounts_lower(struct refcounts *rc, u64 cluster, u64 count, struct meta_wait *wait)
{
	struct meta_block *block;
	u64 i;
	int ret = count_block(rc, cluster, wait, &block, &i);

	if (ret)
		return ret == -ENOENT ? -EUCLEAN : ret;
	if (count_get(block->data, i, rc->img->refcount_order) <= count)
		return 0;
	count_put(rc, block, i, count);
	if (!count && cluster < rc->cursor)
		rc->cursor = cluster;
	return 0;
}

int refcounts_claim(struct refcounts *rc, u64 host, bool alone, struct meta_wait *wait)
{
	struct meta_block *block;
	u64 i, count;
	int ret = count_block(rc, host >> rc->img->cluster_bits, wait, &block, &i);

	if (ret)
		return ret == -ENOENT ? -EUCLEAN : ret;
	count = count_get(block->data, i, rc->img->refcount_order);
	if (!count || (alone && count != 1))
		count_put(rc, block, i, 1);
	return 0;
}

/* ---- open and close ----------------------------------------------------------------- */

static int read_table(struct refcounts *rc, struct qc_err *err)
{
	struct image *img = rc->img;
	u64 bytes = (u64)img->reftable_clusters << img->cluster_bits;
	u32 i;

	rc->nr_reftable = bytes / sizeof(u64);
	rc->reftable = malloc(bytes);
	if (!rc->reftable)
		return qc_err_set(err, -ENOMEM, "%s: out of memory", img->dev->path);
	if (io_dev_pread(img->dev, rc->reftable, bytes, img->reftable_offset))
		return qc_err_set(err, -EIO, "%s: cannot read the refcount table at %llu",
				  img->dev->path, (unsigned long long)img->reftable_offset);
	for (i = 0; i < rc->nr_reftable; i++) {
		u64 entry = __builtin_bswap64(rc->reftable[i]);

		if (entry & (image_cluster_bytes(img) - 1) || entry >= io_dev_bytes(img->dev))
			return qc_err_set(err, -EUCLEAN,
					  "%s: refcount table entry %u is 0x%llx, expected a "
					  "multiple of the cluster size inside the image; run "
					  "qchainctl check --repair",
					  img->dev->path, i, (unsigned long long)entry);
		rc->reftable[i] = entry;
	}
	return 0;
}

int refcounts_open(struct image *img, struct meta *meta, struct refcounts **result,
		   struct qc_err *err)
{
	struct refcounts *rc = calloc(1, sizeof(*rc));
	int ret;

	if (!rc)
		return qc_err_set(err, -ENOMEM, "%s: out of memory", img->dev->path);
	rc->img = img;
	rc->meta = meta;
	rc->grow_wait.fn = grow_run;
	rc->grow_join.fn = grow_linked;
	CDS_INIT_LIST_HEAD(&rc->waiters);
	ret = read_table(rc, err);
	if (!ret)
		ret = overlap_build(img, rc->reftable, rc->nr_reftable, err);
	if (ret) {
		refcounts_close(rc);
		return ret;
	}
	*result = rc;
	return 0;
}

void refcounts_close(struct refcounts *rc)
{
	if (!rc)
		return;
	assert(!rc->growing);
	free(rc->reftable);
	free(rc);
}
