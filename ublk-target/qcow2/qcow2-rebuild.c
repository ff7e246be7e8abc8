// SPDX-License-Identifier: GPL-2.0-or-later OR MIT
/* New refcount tables from the counts of the checker, beside the old ones. */
#include <stdlib.h>

#include "qcow2-check.h"
#include "qcow2-layout.h"
#include "qcow2-refbits.h"

/*
 * The new tables go to clusters that nothing uses and that the old tables do
 * not lie in; all of it is durable before the one header sector that names
 * them. In the new tables the old ones are free from the start: nothing refers
 * to them once the header is written. At a cut there is the old image or the
 * new one.
 *
 * A snapshot table whose entries are too short goes the same way: its pointer
 * is in the same sector.
 */

/* struct rebuild - what is going to be written */
struct rebuild {
	struct check *c;
	u64 limit; /* clusters that may be used: the device, or room in a file */
	u64 cursor; /* below it nothing is free */
	u64 *blocks; /* offset of each new block, 0: none */
	u32 nr_blocks; /* of the table's room */
	u64 table_at;
	u32 table_clusters;
	u8 *snapshots; /* new table, or NULL */
	u64 snapshots_bytes;
	u64 snapshots_at;
};

/* ---- free clusters ------------------------------------------------------------- */

static bool is_free(struct check *c, u64 cluster)
{
	u64 offset = cluster << c->img->cluster_bits;

	return check_counted(c, cluster) == 0 && !check_is_block(c, cluster) &&
	       !check_in_table(c, offset, c->reftable_offset,
			       (u64)c->reftable_entries * sizeof(u64)) &&
	       !check_in_table(c, offset, c->snapshots_offset, c->snapshots_bytes);
}

/* The first @nr free clusters in a row; *@offset of the first. */
static int take_clusters(struct rebuild *r, u32 nr, u64 *offset)
{
	struct check *c = r->c;
	u64 cluster, run = 0;

	while (r->cursor < r->limit && !is_free(c, r->cursor))
		r->cursor++;
	for (cluster = r->cursor; cluster < r->limit && run < nr; cluster++)
		run = is_free(c, cluster) ? run + 1 : 0;
	if (run < nr)
		return check_failed(c, -ENOSPC, "no room for new refcount tables (%u clusters of "
				    "2^%u in a row), the device ends at 0x%llx; extend it",
				    nr, c->img->cluster_bits, (unsigned long long)c->dev_bytes);
	cluster -= nr;
	*offset = cluster << c->img->cluster_bits;
	c->nr_clusters = max(c->nr_clusters, cluster + nr);
	for (; nr; nr--)
		check_set_count(c, cluster++, 1);
	return 0;
}

/* ---- planning -------------------------------------------------------------------- */

static bool block_needed(const struct check *c, u64 index)
{
	u64 cluster = index * c->refcounts_per_block;
	u64 end = min(cluster + c->refcounts_per_block, c->nr_clusters);

	for (; cluster < end; cluster++) {
		if (check_counted(c, cluster))
			return true;
	}
	return false;
}

/* Blocks need blocks: again until nothing is missing. */
static int plan_blocks(struct rebuild *r)
{
	bool added;
	int ret;

	do {
		added = false;
		for (u32 i = 0; i < r->nr_blocks; i++) {
			if (r->blocks[i] || !block_needed(r->c, i))
				continue;
			ret = take_clusters(r, 1, &r->blocks[i]);
			if (ret)
				return ret;
			added = true;
		}
	} while (added);
	return 0;
}

/* A table that reaches to the last cluster that can be used. */
static int plan_table(struct rebuild *r)
{
	struct check *c = r->c;
	u64 blocks = DIV_ROUND_UP(r->limit, c->refcounts_per_block);
	u64 bytes = ALIGN_UP(blocks * sizeof(u64), c->cluster_bytes);

	if (bytes > QC_MAX_REFTABLE_BYTES)
		return check_failed(c, -EFBIG, "refcount table would have %llu bytes, must be at "
				    "most %u",
				    (unsigned long long)bytes, QC_MAX_REFTABLE_BYTES);
	r->table_clusters = bytes >> c->img->cluster_bits;
	r->nr_blocks = bytes / sizeof(u64);
	r->blocks = calloc(r->nr_blocks, sizeof(u64));
	if (!r->blocks)
		return check_failed(c, -ENOMEM, "no memory for a new refcount table");
	return take_clusters(r, r->table_clusters, &r->table_at);
}

/* ---- the snapshot table ------------------------------------------------------------ */

/* One entry with all extra data that version 3 wants; returns its new length. */
static u32 lengthen_snapshot(const struct check *c, const u8 *old, u32 old_bytes, u8 *result)
{
	struct qcow2_disk_snapshot *disk = (struct qcow2_disk_snapshot *)result;
	struct qcow2_disk_snapshot_extra *extra =
		(struct qcow2_disk_snapshot_extra *)(result + sizeof(*disk));
	u32 have = load_be32(&((const struct qcow2_disk_snapshot *)old)->extra_data_size);
	u32 want = max(have, (u32)offsetof(struct qcow2_disk_snapshot_extra, icount));
	u32 names = old_bytes - sizeof(*disk) - have;

	memcpy(result, old, sizeof(*disk) + have);
	memset(result + sizeof(*disk) + have, 0, want - have);
	disk->extra_data_size = htobe32(want);
	if (have < sizeof(u64))
		store_be64(&extra->vm_state_size_large, load_be32(&disk->vm_state_size));
	if (have < 2 * sizeof(u64))
		store_be64(&extra->disk_size, c->img->virtual_size);
	memcpy(result + sizeof(*disk) + want, old + sizeof(*disk) + have, names);
	return sizeof(*disk) + want + names;
}

/* Entries begin at multiples of 8. */
static int lengthen_snapshots(struct rebuild *r, const u8 *old)
{
	struct check *c = r->c;
	u64 from = 0, to = 0;

	for (u32 i = 0; i < c->nr_snapshots; i++) {
		const struct qcow2_disk_snapshot *disk;
		u32 bytes;

		from = ALIGN_UP(from, 8);
		disk = (const struct qcow2_disk_snapshot *)(old + from);
		bytes = sizeof(*disk) + load_be32(&disk->extra_data_size) +
			load_be16(&disk->id_size) + load_be16(&disk->name_size);
		/* The device may have changed since the table was read. */
		if (from + bytes > c->snapshots_bytes)
			return check_failed(c, -EILSEQ, "snapshot table changed while it was "
					    "checked");
		to = ALIGN_UP(to, 8);
		to += lengthen_snapshot(c, old + from, bytes, r->snapshots + to);
		from += bytes;
	}
	r->snapshots_bytes = to;
	return 0;
}

static int plan_snapshots(struct rebuild *r)
{
	struct check *c = r->c;
	u64 most = c->snapshots_bytes + 24ull * c->nr_snapshots;
	u8 *old;
	int ret;

	if (!c->nr_short_snapshots)
		return 0;
	old = malloc(c->snapshots_bytes);
	r->snapshots = calloc(1, ALIGN_UP(most, c->cluster_bytes));
	if (!old || !r->snapshots)
		ret = check_failed(c, -ENOMEM, "no memory for a new snapshot table");
	else
		ret = check_read(c, old, c->snapshots_bytes, c->snapshots_offset);
	if (!ret)
		ret = lengthen_snapshots(r, old);
	free(old);
	if (ret)
		return ret;
	if (r->snapshots_bytes > QC_MAX_SNAPSHOT_TABLE_BYTES)
		return check_failed(c, -EFBIG, "snapshot table would have %llu bytes, must be at "
				    "most %u",
				    (unsigned long long)r->snapshots_bytes,
				    QC_MAX_SNAPSHOT_TABLE_BYTES);
	return take_clusters(r, DIV_ROUND_UP(r->snapshots_bytes, c->cluster_bytes),
			     &r->snapshots_at);
}

/* ---- writing ------------------------------------------------------------------------ */

static int write_at(struct check *c, const char *what, const void *buf, u64 bytes, u64 offset)
{
	int ret = io_dev_pwrite(c->img->dev, buf, bytes, offset);

	return ret < 0 ? check_failed(c, ret, "new %s at 0x%llx: write failed (%s)", what,
				      (unsigned long long)offset, strerror(-ret)) : 0;
}

static int write_blocks(struct rebuild *r)
{
	struct check *c = r->c;
	int ret = 0;

	for (u32 i = 0; i < r->nr_blocks && !ret; i++) {
		u64 first = i * c->refcounts_per_block;

		if (!r->blocks[i])
			continue;
		memset(c->block, 0, c->cluster_bytes);
		for (u64 k = 0; k < c->refcounts_per_block && first + k < c->nr_clusters; k++)
			refcount_set(c->block, c->img->refcount_order, k,
				     check_counted(c, first + k));
		ret = write_at(c, "refcount block", c->block, c->cluster_bytes, r->blocks[i]);
	}
	c->block_index = ~0ull;
	return ret;
}

static int write_table(struct rebuild *r)
{
	struct check *c = r->c;
	u64 bytes = (u64)r->table_clusters << c->img->cluster_bits;

	for (u32 i = 0; i < r->nr_blocks; i++)
		store_be64(&r->blocks[i], r->blocks[i]);
	return write_at(c, "refcount table", r->blocks, bytes, r->table_at);
}

/* Both pointers are in one sector. */
static int write_pointers(struct rebuild *r)
{
	struct check *c = r->c;
	u8 sector[SECTOR_SIZE];
	struct qcow2_disk_header *h = (struct qcow2_disk_header *)sector;
	int ret = check_read(c, sector, sizeof(sector), 0);

	if (ret < 0)
		return check_failed(c, ret, "header: read failed (%s)", strerror(-ret));
	store_be64(&h->refcount_table_offset, r->table_at);
	h->refcount_table_clusters = htobe32(r->table_clusters);
	if (r->snapshots)
		store_be64(&h->snapshots_offset, r->snapshots_at);
	ret = write_at(c, "header", sector, sizeof(sector), 0);
	if (ret)
		return ret;
	ret = io_dev_flush(c->img->dev);
	return ret < 0 ? check_failed(c, ret, "flush failed (%s)", strerror(-ret)) : 0;
}

static int write_all(struct rebuild *r)
{
	struct check *c = r->c;
	int ret = check_begin_write(c);

	if (!ret)
		ret = write_blocks(r);
	if (!ret)
		ret = write_table(r);
	if (!ret && r->snapshots)
		ret = write_at(c, "snapshot table", r->snapshots,
			       ALIGN_UP(r->snapshots_bytes, c->cluster_bytes), r->snapshots_at);
	if (ret)
		return ret;
	ret = io_dev_flush(c->img->dev);
	if (ret < 0)
		return check_failed(c, ret, "flush failed (%s)", strerror(-ret));
	return write_pointers(r);
}

/* ---- all of it ------------------------------------------------------------------------ */

/* Uses by everything but the tables that are replaced. */
static int count_anew(struct check *c)
{
	int ret;

	check_clear_counts(c);
	c->again = true;
	c->without_refcounts = true;
	ret = check_walk(c);
	/* The snapshot table goes only if a new one is written. */
	if (!c->nr_short_snapshots)
		check_count(c, c->snapshots_offset, c->snapshots_bytes);
	c->again = false;
	c->without_refcounts = false;
	return ret;
}

/* What is on disk now. */
static int adopt(struct rebuild *r)
{
	struct check *c = r->c;

	c->reftable_offset = r->table_at;
	c->reftable_entries = r->nr_blocks;
	c->img->reftable_offset = r->table_at;
	c->img->reftable_clusters = r->table_clusters;
	if (r->snapshots) {
		c->snapshots_offset = r->snapshots_at;
		c->snapshots_bytes = r->snapshots_bytes;
		c->nr_short_snapshots = 0;
		c->img->snapshots_offset = r->snapshots_at;
		c->img->snapshots_bytes = r->snapshots_bytes;
	}
	c->dev_bytes = ALIGN_UP(image_dev_bytes(c->img), SECTOR_SIZE);
	return check_load_reftable(c);
}

int check_rebuild(struct check *c)
{
	struct rebuild r = { .c = c };
	int ret;

	if (c->window_most < c->room)
		return check_failed(c, -EFBIG, "too many clusters for new refcount tables "
				    "(%llu), must be at most %llu",
				    (unsigned long long)c->room,
				    (unsigned long long)c->window_most);
	r.limit = c->img->dev->blockdev ? c->dev_bytes >> c->img->cluster_bits : c->room;
	ret = count_anew(c);
	if (!ret)
		ret = plan_snapshots(&r);
	if (!ret)
		ret = plan_table(&r);
	if (!ret)
		ret = plan_blocks(&r);
	if (!ret)
		ret = write_all(&r);
	if (!ret)
		ret = adopt(&r);
	free(r.blocks);
	free(r.snapshots);
	return ret;
}
