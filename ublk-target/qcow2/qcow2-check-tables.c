// SPDX-License-Identifier: GPL-2.0-or-later OR MIT
/* The checker's walk through snapshots, bitmaps and refcount tables. */
#include <stdlib.h>

#include "qcow2-check.h"

#define BITMAP_ENTRY_RESERVED 0xff000000000001feull
#define BITMAP_ENTRY_ALL_ONES 1ull
/* Version 3 wants the large VM state size and the disk size in each entry. */
#define SNAPSHOT_EXTRA_V3_BYTES offsetof(struct qcow2_disk_snapshot_extra, icount)

/* ---- the refcount table --------------------------------------------------------- */

/* Why there cannot be a refcount table as the header says, or NULL. */
static const char *reftable_fault(const struct check *c, u64 offset, u32 clusters)
{
	if (!clusters)
		return "missing";
	if ((u64)clusters << c->img->cluster_bits > QC_MAX_REFTABLE_BYTES)
		return "too large";
	if (!IS_ALIGNED(offset, c->cluster_bytes) || offset >> 56)
		return "not aligned";
	return NULL;
}

int check_load_reftable(struct check *c)
{
	u64 bytes = (u64)c->reftable_entries * sizeof(u64);
	int ret;

	free(c->reftable);
	free(c->block_states);
	free(c->blocks_sorted);
	c->blocks_sorted = NULL;
	c->block_index = ~0ull;
	c->reftable = malloc(max(bytes, (u64)sizeof(u64)));
	c->block_states = calloc(max(c->reftable_entries, 1u), 1);
	if (!c->reftable || !c->block_states)
		return check_failed(c, -ENOMEM, "no memory for the refcount table");
	ret = check_read(c, c->reftable, bytes, c->reftable_offset);
	if (ret < 0)
		return check_failed(c, ret, "refcount table: read at 0x%llx failed (%s)",
				    (unsigned long long)c->reftable_offset, strerror(-ret));
	for (u32 i = 0; i < c->reftable_entries; i++)
		c->reftable[i] = load_be64(&c->reftable[i]);
	return 0;
}

/* Without a table all refcounts are 0; only new tables help. */
static int read_reftable(struct check *c, const struct qcow2_disk_header *h)
{
	u64 offset = load_be64(&h->refcount_table_offset);
	u32 clusters = load_be32(&h->refcount_table_clusters);
	const char *fault = reftable_fault(c, offset, clusters);

	if (fault) {
		c->rebuild = true;
		check_corrupt(c, "refcount table %s (offset 0x%llx, %u clusters)", fault,
			      (unsigned long long)offset, clusters);
		if (!(c->fix & CHECK_FIX_ERRORS))
			c->result->check_errors++;
		return check_load_reftable(c);
	}
	c->reftable_offset = offset;
	c->reftable_entries = (clusters << c->img->cluster_bits) / sizeof(u64);
	return check_load_reftable(c);
}

static void walk_block(struct check *c, u32 i)
{
	u64 entry = c->reftable[i];
	u64 offset = entry & ~QCOW2_REFTABLE_RESERVED;
	u64 cluster = offset >> c->img->cluster_bits;
	bool used;

	if (entry & QCOW2_REFTABLE_RESERVED) {
		check_corrupt(c, "refcount table entry %u: reserved bits set (0x%016llx)", i,
			      (unsigned long long)entry);
		c->rebuild = true;
		return;
	}
	if (!IS_ALIGNED(offset, c->cluster_bytes)) {
		check_corrupt(c, "refcount table entry %u: block not aligned (0x%llx), must be a "
			      "multiple of 2^%u",
			      i, (unsigned long long)offset, c->img->cluster_bits);
		c->rebuild = true;
		return;
	}
	if (cluster >= c->nr_clusters) {
		check_corrupt(c, "refcount table entry %u: block beyond the end (0x%llx)", i,
			      (unsigned long long)offset);
		c->rebuild |= c->fix & CHECK_FIX_ERRORS;
		return;
	}
	if (!offset)
		return;
	used = check_in_window(c, cluster) && check_counted(c, cluster);
	check_count(c, offset, c->cluster_bytes);
	/* Refcounts of one bit cannot count the second use, which was told. */
	if (used && check_counted(c, cluster) == 1)
		c->rebuild |= c->fix & CHECK_FIX_ERRORS;
	if (!check_in_window(c, cluster) || check_counted(c, cluster) == 1)
		return;
	check_corrupt_count(c, "refcount block %u at cluster %llu: the cluster is used %llu "
			    "times", i,
			    (unsigned long long)cluster,
			    (unsigned long long)check_counted(c, cluster));
	c->rebuild = true;
}

void check_walk_refcounts(struct check *c)
{
	for (u32 i = 0; i < c->reftable_entries; i++) {
		if (c->reftable[i])
			walk_block(c, i);
	}
}

/* ---- snapshots ------------------------------------------------------------------ */

/* One entry; its id, name and extra data are only skipped. */
static int read_snapshot(struct check *c, struct table_stream *s, struct check_snapshot *snapshot)
{
	u64 at = table_stream_offset(s);
	const struct qcow2_disk_snapshot *disk;
	u32 extra, names;
	const u8 *p;
	int ret;

	ret = table_stream_skip(s, ALIGN_UP(at, 8) - at);
	if (!ret)
		ret = table_stream_get(s, sizeof(*disk), &p);
	if (ret)
		return ret;
	disk = (const struct qcow2_disk_snapshot *)p;
	snapshot->l1_offset = load_be64(&disk->l1_table_offset);
	snapshot->l1_entries = load_be32(&disk->l1_size);
	extra = load_be32(&disk->extra_data_size);
	names = load_be16(&disk->id_size) + load_be16(&disk->name_size);
	if (extra > QCOW2_MAX_SNAPSHOT_EXTRA)
		return -E2BIG;
	if (c->img->version >= 3 && extra < SNAPSHOT_EXTRA_V3_BYTES)
		c->nr_short_snapshots++;
	return table_stream_skip(s, extra + names);
}

static int read_snapshots(struct check *c, struct table_stream *s)
{
	u32 nr_short = 0;

	for (u32 i = 0; i < c->nr_snapshots; i++) {
		int ret = read_snapshot(c, s, &c->snapshots[i]);

		if (ret)
			return check_failed(c, ret == -ERANGE || ret == -E2BIG ? -EILSEQ : ret,
					    "snapshot table entry %u %s", i,
					    ret == -ERANGE ? "beyond the end of the table" :
					    ret == -E2BIG ? "with too much extra data" :
					    "could not be read");
		if (c->nr_short_snapshots == nr_short)
			continue;
		nr_short = c->nr_short_snapshots;
		check_corrupt(c, "snapshot table entry %u has too little extra data for version "
			      "3, must be at least %zu bytes",
			      i, SNAPSHOT_EXTRA_V3_BYTES);
	}
	c->snapshots_bytes = table_stream_offset(s) - c->snapshots_offset;
	return 0;
}

static int read_snapshot_table(struct check *c, const struct qcow2_disk_header *h)
{
	struct table_stream s;
	int ret;

	c->snapshots_offset = load_be64(&h->snapshots_offset);
	c->nr_snapshots = load_be32(&h->nb_snapshots);
	if (!c->nr_snapshots)
		return 0;
	if (c->nr_snapshots > QC_MAX_SNAPSHOTS ||
	    !IS_ALIGNED(c->snapshots_offset, c->cluster_bytes))
		return check_failed(c, -EILSEQ, "snapshot table not valid (offset 0x%llx, %u "
				    "entries), must be aligned and at most %u",
				    (unsigned long long)c->snapshots_offset, c->nr_snapshots,
				    QC_MAX_SNAPSHOTS);
	c->snapshots = calloc(c->nr_snapshots, sizeof(*c->snapshots));
	if (!c->snapshots || table_stream_init(&s, c->img->dev, c->snapshots_offset,
					       QC_MAX_SNAPSHOT_TABLE_BYTES))
		return check_failed(c, -ENOMEM, "no memory for %u snapshots", c->nr_snapshots);
	ret = read_snapshots(c, &s);
	table_stream_exit(&s);
	return ret;
}

static int walk_snapshot(struct check *c, u32 i)
{
	const struct check_snapshot *snapshot = &c->snapshots[i];

	if (!IS_ALIGNED(snapshot->l1_offset, c->cluster_bytes)) {
		check_corrupt(c, "snapshot %u: L1 table not aligned (0x%llx), must be a multiple "
			      "of 2^%u",
			      i, (unsigned long long)snapshot->l1_offset, c->img->cluster_bits);
		return 0;
	}
	if (snapshot->l1_entries > QC_MAX_L1_BYTES / sizeof(u64)) {
		check_corrupt(c, "snapshot %u: L1 table too large (%u entries), must be at most "
			      "%zu", i,
			      snapshot->l1_entries, QC_MAX_L1_BYTES / sizeof(u64));
		return 0;
	}
	return check_walk_l1(c, snapshot->l1_offset, snapshot->l1_entries, false);
}

int check_walk_snapshots(struct check *c)
{
	int ret = 0;

	if (c->data_file && c->nr_snapshots)
		check_corrupt(c, "%u snapshots in an image with an external data file, must be 0",
			      c->nr_snapshots);
	for (u32 i = 0; i < c->nr_snapshots && !ret; i++)
		ret = walk_snapshot(c, i);
	if (!ret && !c->without_refcounts)
		check_count(c, c->snapshots_offset, c->snapshots_bytes);
	return ret;
}

/* ---- bitmaps -------------------------------------------------------------------- */

static int walk_bitmap_entry(struct check *c, const struct image_bitmap *bitmap, u32 i, u64 entry)
{
	u64 offset = entry & QCOW2_OFFSET_MASK;

	if ((entry & BITMAP_ENTRY_RESERVED) || !IS_ALIGNED(offset, c->cluster_bytes) ||
	    (offset && (entry & BITMAP_ENTRY_ALL_ONES))) {
		char name[PRINTABLE_BYTES];

		check_corrupt(c, "bitmap '%s' entry %u not valid (0x%016llx)",
			      printable(name, bitmap->name, strlen(bitmap->name)), i,
			      (unsigned long long)entry);
		return -EILSEQ;
	}
	if (offset)
		check_count(c, offset, c->cluster_bytes);
	return 0;
}

static int walk_bitmap_entries(struct check *c, const struct image_bitmap *bitmap,
			       struct table_stream *s)
{
	const u8 *p;
	int ret;

	for (u32 i = 0; i < bitmap->table_entries; i++) {
		ret = table_stream_get(s, sizeof(u64), &p);
		if (!ret)
			ret = walk_bitmap_entry(c, bitmap, i, load_be64(p));
		if (ret)
			return ret;
	}
	return 0;
}

static int walk_bitmap(struct check *c, const struct image_bitmap *bitmap)
{
	u64 bytes = (u64)bitmap->table_entries * sizeof(u64);
	char name[PRINTABLE_BYTES];
	struct table_stream s;
	int ret;

	check_count(c, bitmap->table_offset, bytes);
	ret = table_stream_init(&s, c->img->dev, bitmap->table_offset, bytes);
	if (!ret)
		ret = walk_bitmap_entries(c, bitmap, &s);
	table_stream_exit(&s);
	if (ret)
		return check_failed(c, ret == -ERANGE ? -EILSEQ : ret,
				    "bitmap '%s' cannot be counted (%s); delete it with qemu-img "
				    "bitmap --remove",
				    printable(name, bitmap->name, strlen(bitmap->name)),
				    strerror(-ret));
	return 0;
}

/*
 * image_open() could not read them (one of the faults says why) and left them
 * out, so their clusters would look like leaks. Dropping them is a repair: they
 * were of no use any more.
 */
static int drop_bitmaps(struct check *c)
{
	check_corrupt(c, "bitmaps cannot be read");
	if (!(c->fix & CHECK_FIX_ERRORS))
		return check_failed(c, -EILSEQ, "bitmaps cannot be counted; repair all errors to "
				    "drop them");
	if (!check_judges(c))
		return 0;
	c->drop_bitmaps = true;
	c->writing = false; /* the header is written again, without their bit */
	c->result->corruptions--;
	c->result->corruptions_fixed++;
	return check_begin_write(c);
}

int check_walk_bitmaps(struct check *c)
{
	struct image *img = c->img;
	int ret = 0;

	if (!(img->autoclear & QCOW2_AUTOCLEAR_BITMAPS))
		return 0;
	if (!img->nr_bitmaps)
		return img->nr_faults ? drop_bitmaps(c) : 0;
	if (!img->bitmaps)
		return check_failed(c, -EINVAL, "bitmap directory was not loaded");
	check_count(c, img->bitmap_dir_offset, img->bitmap_dir_bytes);
	for (u32 i = 0; i < img->nr_bitmaps && !ret; i++)
		ret = walk_bitmap(c, &img->bitmaps[i]);
	return ret;
}

/* ---- before the walk ------------------------------------------------------------- */

int check_read_tables(struct check *c)
{
	u8 sector[SECTOR_SIZE];
	const struct qcow2_disk_header *h = (const struct qcow2_disk_header *)sector;
	int ret = check_read(c, sector, sizeof(sector), 0);

	if (ret < 0)
		return check_failed(c, ret, "header: read failed (%s)", strerror(-ret));
	ret = read_snapshot_table(c, h);
	return ret ? ret : read_reftable(c, h);
}
