// SPDX-License-Identifier: GPL-2.0-or-later OR MIT
/* The checker's writes to tables that stay where they are, and to the header. */
#include <stdlib.h>

#include "qcow2-check.h"

/* A repair keeps the guest's content: bitmaps and raw data files stay true. */
#define AUTOCLEAR_KEPT (QCOW2_AUTOCLEAR_BITMAPS | QCOW2_AUTOCLEAR_RAW_DATA)

static u64 kept_autoclear(const struct check *c)
{
	u64 kept = c->img->autoclear & AUTOCLEAR_KEPT;

	return c->drop_bitmaps ? kept & ~QCOW2_AUTOCLEAR_BITMAPS : kept;
}

static int write_features(struct check *c, u64 incompatible, u64 autoclear)
{
	struct image *img = c->img;
	int ret;

	if (img->version < 3 || (img->incompatible == incompatible && img->autoclear == autoclear))
		return 0;
	img->incompatible = incompatible;
	img->autoclear = autoclear;
	ret = image_write_features(img);
	return ret < 0 ? check_failed(c, ret, "header: write failed (%s)", strerror(-ret)) : 0;
}

int check_begin_write(struct check *c)
{
	int ret;

	if (c->writing)
		return 0;
	ret = write_features(c, c->img->incompatible, kept_autoclear(c));
	c->writing = !ret;
	return ret;
}

int check_mark_clean(struct check *c)
{
	u64 marks = QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT;

	return write_features(c, c->img->incompatible & ~marks, kept_autoclear(c));
}

/* ---- what must not be overwritten -------------------------------------------------- */

static int compare_u64(const void *a, const void *b)
{
	u64 x = *(const u64 *)a, y = *(const u64 *)b;

	return x < y ? -1 : x > y;
}

static int sort_blocks(struct check *c)
{
	if (c->blocks_sorted)
		return 0;
	c->blocks_sorted = malloc(((size_t)c->reftable_entries + 1) * sizeof(u64));
	if (!c->blocks_sorted)
		return -ENOMEM;
	c->nr_blocks_sorted = 0;
	for (u32 i = 0; i < c->reftable_entries; i++) {
		u64 offset = c->reftable[i] & ~QCOW2_REFTABLE_RESERVED;

		if (offset)
			c->blocks_sorted[c->nr_blocks_sorted++] =
				ALIGN_DOWN(offset, c->cluster_bytes);
	}
	qsort(c->blocks_sorted, c->nr_blocks_sorted, sizeof(u64), compare_u64);
	return 0;
}

bool check_is_block(struct check *c, u64 cluster)
{
	u64 offset = cluster << c->img->cluster_bits;

	/* Without memory nothing is written. */
	return sort_blocks(c) || bsearch(&offset, c->blocks_sorted, c->nr_blocks_sorted,
					 sizeof(u64), compare_u64);
}

bool check_in_table(const struct check *c, u64 offset, u64 table, u64 bytes)
{
	u64 first = ALIGN_DOWN(table, c->cluster_bytes);
	u64 end = ALIGN_UP(table + bytes, c->cluster_bytes);

	return bytes && ranges_overlap(offset, c->cluster_bytes, first, end - first);
}

/* The L1 tables of snapshots are not written, but others' entries are in them. */
static bool in_snapshot(const struct check *c, u64 offset)
{
	for (u32 i = 0; i < c->nr_snapshots; i++) {
		if (check_in_table(c, offset, c->snapshots[i].l1_offset,
			     (u64)c->snapshots[i].l1_entries * sizeof(u64)))
			return true;
	}
	return false;
}

const char *check_l2_overlap(struct check *c, u64 offset)
{
	const struct image *img = c->img;

	if (!IS_ALIGNED(offset, c->cluster_bytes))
		return "cluster beside it";
	if (offset >= c->dev_bytes)
		return "end of the image";
	if (offset == 0)
		return "header";
	if (check_in_table(c, offset, img->l1_offset, (u64)img->l1_size * sizeof(u64)))
		return "L1 table";
	if (check_in_table(c, offset, c->reftable_offset, (u64)c->reftable_entries * sizeof(u64)))
		return "refcount table";
	if (check_in_table(c, offset, c->snapshots_offset, c->snapshots_bytes))
		return "snapshot table";
	if (check_in_table(c, offset, img->bitmap_dir_offset, img->bitmap_dir_bytes))
		return "bitmap directory";
	if (in_snapshot(c, offset))
		return "L1 table of a snapshot";
	return check_is_block(c, offset >> img->cluster_bits) ? "refcount blocks" : NULL;
}

/* ---- entries ------------------------------------------------------------------------ */

int check_write_l2(struct check *c, u64 offset, u32 first, u32 last)
{
	u64 from = ALIGN_DOWN((u64)first * c->img->l2_entry_bytes, SECTOR_SIZE);
	u64 to = ALIGN_UP(((u64)last + 1) * c->img->l2_entry_bytes, SECTOR_SIZE);
	int ret = check_begin_write(c);

	if (ret)
		return ret;
	ret = io_dev_pwrite(c->img->dev, c->l2 + from, to - from, offset + from);
	return ret < 0 ? check_failed(c, ret, "L2 table 0x%llx: write failed (%s)",
				      (unsigned long long)offset, strerror(-ret)) : 0;
}

int check_write_l1(struct check *c, u64 table, u32 index, u64 entry)
{
	u64 disk;
	int ret = check_begin_write(c);

	if (ret)
		return ret;
	store_be64(&disk, entry);
	ret = io_dev_pwrite(c->img->dev, &disk, sizeof(disk), table + (u64)index * sizeof(u64));
	return ret < 0 ? check_failed(c, ret, "L1 table 0x%llx: write failed (%s)",
				      (unsigned long long)table, strerror(-ret)) : 0;
}
