// SPDX-License-Identifier: GPL-2.0-or-later
/* Where metadata lies: no guest data may be written there (rule B7). */
#include <errno.h>
#include <qchain/image.h>
#include <stdlib.h>
#include <uapi/qcow2.h>

/*
 * A set of cluster numbers, open addressing, linear probing. A slot is the
 * cluster number + 1 shifted up by 4, with the kind below: 0 is an empty slot.
 */

enum overlap_kind {
	OVERLAP_REMOVED,
	OVERLAP_HEADER,
	OVERLAP_L1,
	OVERLAP_L2,
	OVERLAP_REFTABLE,
	OVERLAP_REFBLOCK,
	OVERLAP_SNAPSHOTS,
	OVERLAP_SNAPSHOT_L1,
	OVERLAP_SNAPSHOT_L2,
	OVERLAP_BITMAPS,
	OVERLAP_METADATA, /* added while serving */
};

static const char *const overlap_names[] = {
	[OVERLAP_HEADER] = "header",
	[OVERLAP_L1] = "L1 table",
	[OVERLAP_L2] = "L2 table",
	[OVERLAP_REFTABLE] = "refcount table",
	[OVERLAP_REFBLOCK] = "refcount block",
	[OVERLAP_SNAPSHOTS] = "snapshot table",
	[OVERLAP_SNAPSHOT_L1] = "L1 table of a snapshot",
	[OVERLAP_SNAPSHOT_L2] = "L2 table of a snapshot",
	[OVERLAP_BITMAPS] = "bitmap table",
	[OVERLAP_METADATA] = "metadata",
};

struct overlap {
	u64 *slots;
	u64 nr_slots; /* power of two */
	u64 used; /* removed ones included */
	u64 twice; /* host offset, for the message */
	enum overlap_kind twice_kind;
};

static u64 slot_of(const struct overlap *o, u64 cluster)
{
	u64 i = (cluster * 0x9e3779b97f4a7c15ull) >> 20;

	for (i &= o->nr_slots - 1; o->slots[i]; i = (i + 1) & (o->nr_slots - 1))
		if (o->slots[i] >> 4 == cluster + 1)
			break;
	return i;
}

static int overlap_grow(struct overlap *o)
{
	struct overlap larger = { .nr_slots = o->nr_slots ? o->nr_slots * 2 : 1024 };
	u64 i;

	larger.slots = calloc(larger.nr_slots, sizeof(*larger.slots));
	if (!larger.slots)
		return -ENOMEM;
	for (i = 0; i < o->nr_slots; i++) {
		if (!(o->slots[i] & 15)) /* empty or removed */
			continue;
		larger.slots[slot_of(&larger, (o->slots[i] >> 4) - 1)] = o->slots[i];
		larger.used++;
	}
	free(o->slots);
	o->slots = larger.slots;
	o->nr_slots = larger.nr_slots;
	o->used = larger.used;
	return 0;
}

/* Snapshots share L2 tables with each other and with the active L1. */
static bool may_share(enum overlap_kind old, enum overlap_kind new)
{
	return old == OVERLAP_REMOVED ||
	       (old == OVERLAP_SNAPSHOT_L2 && (new == old || new == OVERLAP_L2));
}

/* -EEXIST: a cluster has another use already; it stays @img->overlap->twice. */
static int overlap_put(const struct image *img, u64 host, u64 bytes, enum overlap_kind kind)
{
	struct overlap *o = img->overlap;
	u64 last = (host + bytes - 1) >> img->cluster_bits;
	u64 c;

	for (c = host >> img->cluster_bits; bytes && c <= last; c++) {
		u64 i;

		if (o->used * 2 >= o->nr_slots && overlap_grow(o))
			return -ENOMEM;
		i = slot_of(o, c);
		if (!may_share(o->slots[i] & 15, kind)) {
			o->twice = c << img->cluster_bits;
			o->twice_kind = kind;
			return -EEXIST;
		}
		if (!o->slots[i])
			o->used++;
		o->slots[i] = (c + 1) << 4 | kind;
	}
	return 0;
}

int overlap_add(struct image *img, u64 host, u64 bytes)
{
	return img->overlap ? overlap_put(img, host, bytes, OVERLAP_METADATA) : 0;
}

void overlap_remove(struct image *img, u64 host, u64 bytes)
{
	struct overlap *o = img->overlap;
	u64 c;

	for (c = host >> img->cluster_bits; o && c <= (host + bytes - 1) >> img->cluster_bits;
	     c++) {
		u64 i = slot_of(o, c);

		if (o->slots[i])
			o->slots[i] &= ~15ull;
	}
}

const char *overlap_what(const struct image *img, u64 host)
{
	const struct overlap *o = img->overlap;

	if (!o)
		return NULL;
	return overlap_names[o->slots[slot_of(o, host >> img->cluster_bits)] & 15];
}

void overlap_free(struct overlap *overlap)
{
	if (overlap)
		free(overlap->slots);
	free(overlap);
}

/* ---- building ------------------------------------------------------------- */

static int put_blocks(const struct image *img, const u64 *reftable, u32 nr)
{
	u32 i;
	int ret = 0;

	for (i = 0; i < nr && !ret; i++)
		if (reftable[i] & ~QCOW2_REFTABLE_RESERVED)
			ret = overlap_put(img, reftable[i] & ~QCOW2_REFTABLE_RESERVED,
					  image_cluster_bytes(img), OVERLAP_REFBLOCK);
	return ret;
}

static int put_l2_tables(const struct image *img, const struct l1 *l1, u32 nr,
			 enum overlap_kind kind)
{
	u32 i;
	int ret = 0;

	for (i = l1_next(l1, 0, nr); i < nr && !ret; i = l1_next(l1, i + 1, nr))
		if (l1_get(l1, i) & QCOW2_OFFSET_MASK)
			ret = overlap_put(img, l1_get(l1, i) & QCOW2_OFFSET_MASK,
					  image_cluster_bytes(img), kind);
	return ret;
}

static int put_snapshot(const struct image *img, const struct image_snapshot *s)
{
	struct l1 l1;
	int ret = l1_read(img->dev, s->l1_offset, s->l1_size, &l1);

	if (ret < 0)
		return ret;
	ret = put_l2_tables(img, &l1, s->l1_size, OVERLAP_SNAPSHOT_L2);
	if (!ret)
		ret = overlap_put(img, s->l1_offset, (u64)s->l1_size * sizeof(u64),
				  OVERLAP_SNAPSHOT_L1);
	l1_exit(&l1);
	return ret;
}

static int put_bitmaps(const struct image *img)
{
	u32 i;
	int ret = overlap_put(img, img->bitmap_dir_offset, img->bitmap_dir_bytes,
			      OVERLAP_BITMAPS);

	for (i = 0; img->bitmaps && i < img->nr_bitmaps && !ret; i++)
		ret = overlap_put(img, img->bitmaps[i].table_offset,
				  (u64)img->bitmaps[i].table_entries * sizeof(u64),
				  OVERLAP_BITMAPS);
	return ret;
}

static int put_all(const struct image *img, const u64 *reftable, u32 nr_reftable)
{
	u32 i;
	int ret = overlap_put(img, 0, 1, OVERLAP_HEADER);

	for (i = 0; i < img->nr_snapshots && !ret; i++)
		ret = put_snapshot(img, &img->snapshots[i]);
	if (!ret)
		ret = put_bitmaps(img);
	if (!ret)
		ret = overlap_put(img, img->snapshots_offset, img->snapshots_bytes,
				  OVERLAP_SNAPSHOTS);
	if (!ret)
		ret = put_l2_tables(img, &img->l1, img->l1_size, OVERLAP_L2);
	if (!ret)
		ret = overlap_put(img, img->l1_offset, (u64)img->l1_size * sizeof(u64),
				  OVERLAP_L1);
	if (!ret)
		ret = put_blocks(img, reftable, nr_reftable);
	if (!ret)
		ret = overlap_put(img, img->reftable_offset,
				  (u64)img->reftable_clusters << img->cluster_bits,
				  OVERLAP_REFTABLE);
	return ret;
}

int overlap_build(struct image *img, const u64 *reftable, u32 nr_reftable, struct qc_err *err)
{
	int ret;

	img->overlap = calloc(1, sizeof(*img->overlap));
	if (!img->overlap || overlap_grow(img->overlap))
		ret = -ENOMEM;
	else
		ret = put_all(img, reftable, nr_reftable);
	if (!ret)
		return 0;
	if (ret == -EEXIST)
		ret = qc_err_set(err, -EUCLEAN,
				 "%s: corrupt: the cluster at %llu is %s and %s, each may have one "
				 "use; serve it with --read-only or run qchainctl check --repair",
				 img->dev->path, (unsigned long long)img->overlap->twice,
				 overlap_what(img, img->overlap->twice),
				 overlap_names[img->overlap->twice_kind]);
	overlap_free(img->overlap);
	img->overlap = NULL;
	return qc_err_set(err, ret, "%s: cannot read the tables to protect: %s", img->dev->path,
			  ret == -ENOMEM ? "out of memory" : "I/O error");
}
