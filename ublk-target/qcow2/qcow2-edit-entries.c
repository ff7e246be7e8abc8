// SPDX-License-Identifier: GPL-2.0-or-later OR MIT
/* Setting L2 entries of a closed image whose data is in place: the intent log's replay. */
#include "qcow2-edit.h"

#include <qchain/mutant.h>
#include <stdlib.h>

#include "qcow2.h"

/*
 * First every place that an entry names is claimed: its count may not have reached
 * the disk, and no table of ours may be allocated there. What the entries replace
 * is not given back: the caller looks for leaks afterwards.
 */

/* Sets of one transaction: each may hold a block of the cache. */
#define ENTRIES_PER_COMMIT 1024u

struct entries {
	const struct image_entry *list;
	u32 nr;
};

static int claim(struct editor *ed, u64 entry)
{
	u64 host = entry & QCOW2_OFFSET_MASK;

	if (overlap_what(ed->img, host))
		return qc_err_set(ed->err, -EUCLEAN, "%s: an entry names %llu, where %s lies",
				  ed->img->dev->path, (unsigned long long)host,
				  overlap_what(ed->img, host));
	return editor_claim(ed, host, entry & QCOW2_COPIED);
}

static int claim_all(struct editor *ed, const struct entries *e)
{
	u32 i;
	int ret = 0;

	for (i = 0; i < e->nr && !ret; i++)
		if (!(e->list[i].entry & QCOW2_COMPRESSED) &&
		    e->list[i].entry & QCOW2_OFFSET_MASK)
			ret = claim(ed, e->list[i].entry);
	return ret;
}

/* The table for L1 entry @index as it is: none, or one that a snapshot shares. */
static int read_old(struct editor *ed, u32 index, u8 *data)
{
	u64 old = l1_get(&ed->img->l1, index) & QCOW2_OFFSET_MASK;
	u64 bytes = image_cluster_bytes(ed->img);
	int ret;

	memset(data, 0, bytes);
	ret = old ? io_dev_pread(ed->img->dev, data, bytes, old) : 0;
	return ret ? qc_err_set(ed->err, ret, "%s: cannot read the L2 table at %llu",
				ed->img->dev->path, (unsigned long long)old) : 0;
}

static int add_table(struct editor *ed, u32 index, u64 host)
{
	u64 bytes = image_cluster_bytes(ed->img);
	u64 at = ed->img->l1_offset + index * sizeof(u64);
	struct meta_block *block;
	u8 *data = io_alloc(bytes);
	__be64 l1;
	int ret = data ? l1_reserve(&ed->img->l1, index) : -ENOMEM;

	if (!ret)
		ret = read_old(ed, index, data);

	if (!ret)
		ret = editor_block(ed, at, &block);
	if (!ret)
		ret = meta_txn_table(ed->meta, host, data, bytes);
	if (ret) {
		free(data);
		return ret;
	}
	store_be64(&l1, host | QCOW2_COPIED);
	ret = meta_txn_set(ed->meta, block, at - block->offset, &l1, sizeof(l1));
	if (ret)
		return ret;
	l1_set(&ed->img->l1, index, host | QCOW2_COPIED);
	return overlap_add(ed->img, host, bytes);
}

static int own_table(struct editor *ed, u32 index)
{
	u64 l1 = l1_get(&ed->img->l1, index), host;
	int ret;

	if (l1 & QCOW2_OFFSET_MASK && l1 & QCOW2_COPIED)
		return 0;
	ret = editor_alloc_table(ed, &host);
	return ret ? ret : add_table(ed, index, host);
}

static int set_entry(struct editor *ed, const struct image_entry *e)
{
	struct image *img = ed->img;
	u64 index = e->cluster >> img->l2_bits;
	u64 in_table = e->cluster & ((1ull << img->l2_bits) - 1);
	struct meta_block *block;
	u8 entry[16];
	u64 at;
	int ret;

	if (index >= img->l1_size)
		return qc_err_set(ed->err, -EUCLEAN, "%s: guest cluster %llu is beyond its end",
				  img->dev->path, (unsigned long long)e->cluster);
	ret = own_table(ed, index);
	if (ret)
		return ret;
	at = (l1_get(&img->l1, index) & QCOW2_OFFSET_MASK) + in_table * img->l2_entry_bytes;
	image_l2_set(img, entry, 0, e->entry, e->bitmap);
	ret = editor_block(ed, at, &block);
	return ret ? ret : meta_txn_set(ed->meta, block, at - block->offset, entry,
					img->l2_entry_bytes);
}

static int set_all(struct editor *ed, void *arg)
{
	const struct entries *e = arg;
	u32 i;
	int ret = editor_refcounts(ed);

	if (!ret && !MUTANT(REPLAY_UNCLAIMED))
		ret = claim_all(ed, e);
	for (i = 0; i < e->nr && !ret; i++) {
		ret = set_entry(ed, &e->list[i]);
		if (!ret && (i + 1) % ENTRIES_PER_COMMIT == 0)
			ret = editor_commit(ed);
	}
	if (!ret && MUTANT(REPLAY_UNCLAIMED))
		ret = claim_all(ed, e);
	return ret ? ret : editor_commit(ed);
}

int image_set_entries(struct image *img, const struct image_entry *list, u32 nr,
		      struct qc_err *err)
{
	struct entries e = { .list = list, .nr = nr };

	return editor_run_unclean(img, set_all, &e, err);
}
