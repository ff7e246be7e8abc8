// SPDX-License-Identifier: GPL-2.0-or-later OR MIT
/* The checker's walk through L1 and L2 tables: counts uses, judges entries. */
#include "qcow2-check.h"

/* ---- one L2 entry ------------------------------------------------------------- */

/*
 * struct l2_walk - one L2 table on its way
 * @dirty_from, @dirty_to: entries that were repaired in c->l2; exclusive
 */
struct l2_walk {
	u64 offset;
	bool active;
	bool may_write;
	bool asked; /* may_write holds */
	u64 next_contiguous;
	u32 dirty_from, dirty_to;
	u32 fixed;
};

/* What is wrong with an entry and can be put right without a guess. */
#define WRONG_RESERVED 1u
#define WRONG_COPIED 2u /* on a compressed cluster */
#define WRONG_BITMAP 4u /* on a compressed cluster */
#define WRONG_UNALLOCATED 8u /* subclusters allocated in a cluster without a place */
#define WRONG_PLACE 16u /* not aligned, and nothing is stored there */
/* What cannot. */
#define WRONG_DATA_FILE 32u /* compressed, in an image with a data file */
#define WRONG_OTHER 64u

#define WRONG_FIXABLE                                                          \
	(WRONG_RESERVED | WRONG_COPIED | WRONG_BITMAP | WRONG_UNALLOCATED | WRONG_PLACE)
/* Not counted as a use while it is wrong. */
#define WRONG_UNCOUNTED (WRONG_BITMAP | WRONG_DATA_FILE)

enum l2_type { L2_UNALLOCATED, L2_ZERO, L2_PLACE, L2_COMPRESSED };

/* As QEMU sorts entries, whatever is wrong with them. */
static enum l2_type entry_type(const struct check *c, u64 entry)
{
	if (entry & QCOW2_COMPRESSED)
		return L2_COMPRESSED;
	if (entry & QCOW2_OFFSET_MASK)
		return L2_PLACE;
	if ((entry & QCOW2_ZERO) && !image_has_extl2(c->img))
		return L2_ZERO;
	return c->data_file && (entry & QCOW2_COPIED) ? L2_PLACE : L2_UNALLOCATED;
}

static u32 judge_compressed(struct check *c, u64 entry, u64 bitmap, u64 offset, u32 i)
{
	u32 wrong = 0;

	if (entry & QCOW2_COPIED) {
		check_corrupt(c, "L2 table 0x%llx entry %u: COPIED flag on a compressed cluster "
			      "(0x%016llx)",
			      (unsigned long long)offset, i, (unsigned long long)entry);
		wrong |= WRONG_COPIED;
	}
	if (c->data_file) {
		check_corrupt(c, "L2 table 0x%llx entry %u: compressed cluster in an image with "
			      "an external data file (0x%016llx)",
			      (unsigned long long)offset, i, (unsigned long long)entry);
		return wrong | WRONG_DATA_FILE;
	}
	if (bitmap) {
		check_corrupt(c, "L2 table 0x%llx entry %u: compressed cluster with a subcluster "
			      "bitmap (0x%016llx)",
			      (unsigned long long)offset, i, (unsigned long long)bitmap);
		wrong |= WRONG_BITMAP;
	}
	return wrong;
}

static u32 judge_place(struct check *c, u64 entry, u64 bitmap, u64 offset, u32 i)
{
	u64 host = entry & QCOW2_OFFSET_MASK;
	bool stored = image_has_extl2(c->img) ? bitmap & QCOW2_SC_ALLOC_MASK :
						!(entry & QCOW2_ZERO);
	u32 wrong = 0;

	if ((u32)(bitmap >> 32) & (u32)bitmap) {
		check_corrupt(c, "L2 table 0x%llx entry %u: subcluster both allocated and zero "
			      "(bitmap 0x%016llx)",
			      (unsigned long long)offset, i, (unsigned long long)bitmap);
		wrong |= WRONG_OTHER;
	}
	if (!IS_ALIGNED(host, c->cluster_bytes)) {
		check_corrupt(c, "L2 table 0x%llx entry %u: cluster not aligned (0x%llx), must "
			      "be a multiple of 2^%u",
			      (unsigned long long)offset, i, (unsigned long long)host,
			      c->img->cluster_bits);
		wrong |= stored ? WRONG_OTHER : WRONG_PLACE;
	}
	return wrong;
}

/* Told and counted each; returns what can be done about it. */
static u32 judge_entry(struct check *c, u64 entry, u64 bitmap, u64 offset, u32 i)
{
	enum l2_type type = entry_type(c, entry);
	u32 wrong = 0;

	if (type == L2_COMPRESSED)
		return judge_compressed(c, entry, bitmap, offset, i);
	if (entry & QCOW2_L2_RESERVED) {
		check_corrupt(c, "L2 table 0x%llx entry %u: reserved bits set (0x%016llx)",
			      (unsigned long long)offset, i, (unsigned long long)entry);
		wrong |= WRONG_RESERVED;
	}
	if (type == L2_PLACE)
		return wrong | judge_place(c, entry, bitmap, offset, i);
	if (type == L2_UNALLOCATED && (bitmap & QCOW2_SC_ALLOC_MASK)) {
		check_corrupt(c, "L2 table 0x%llx entry %u: subclusters allocated in a cluster "
			      "without a place (bitmap 0x%016llx)",
			      (unsigned long long)offset, i, (unsigned long long)bitmap);
		wrong |= WRONG_UNALLOCATED;
	}
	return wrong;
}

/* ---- repair of one entry -------------------------------------------------------- */

static bool may_write(struct check *c, struct l2_walk *w)
{
	const char *hit;

	if (w->asked)
		return w->may_write;
	w->asked = true;
	hit = check_l2_overlap(c, w->offset);
	if (hit)
		check_say(c, "L2 table 0x%llx overlaps the %s: its entries are not repaired",
			  (unsigned long long)w->offset, hit);
	w->may_write = !hit;
	return w->may_write;
}

/* Put right what needs no guess; returns what is still wrong. */
static u32 fix_entry(struct check *c, struct l2_walk *w, u32 i, u64 *entry, u64 *bitmap, u32 wrong)
{
	u32 fixable = wrong & WRONG_FIXABLE;

	if (!fixable || !(c->fix & CHECK_FIX_ERRORS) || !check_judges(c) || !may_write(c, w))
		return wrong;
	if (fixable & WRONG_RESERVED)
		*entry &= ~QCOW2_L2_RESERVED;
	if (fixable & WRONG_COPIED)
		*entry &= ~QCOW2_COPIED;
	if (fixable & WRONG_BITMAP)
		*bitmap = 0;
	if (fixable & WRONG_UNALLOCATED)
		*bitmap &= ~QCOW2_SC_ALLOC_MASK;
	/* Nothing was stored there, so the entry keeps its meaning. */
	if (fixable & WRONG_PLACE)
		*entry = image_has_extl2(c->img) ? 0 : QCOW2_ZERO;
	image_l2_set(c->img, c->l2, i, *entry, *bitmap);
	if (!w->dirty_to)
		w->dirty_from = i;
	w->dirty_to = i + 1;
	w->fixed += __builtin_popcount(fixable);
	return wrong & ~WRONG_FIXABLE;
}

static int write_fixed(struct check *c, struct l2_walk *w)
{
	int ret;

	if (!w->fixed)
		return 0;
	ret = check_write_l2(c, w->offset, w->dirty_from, w->dirty_to - 1);
	if (ret)
		return ret;
	c->result->corruptions -= w->fixed;
	c->result->corruptions_fixed += w->fixed;
	return 0;
}

/* ---- counting -------------------------------------------------------------------- */

static void count_compressed(struct check *c, struct l2_walk *w, u64 entry)
{
	u32 offset_bits = 62 - (c->img->cluster_bits - 8);
	u64 offset = entry & ((1ull << offset_bits) - 1);
	u64 sectors = ((entry & ~(QCOW2_COPIED | QCOW2_COMPRESSED)) >> offset_bits) + 1;

	check_count(c, offset, sectors * SECTOR_SIZE - offset % SECTOR_SIZE);
	if (!w->active || !check_judges(c))
		return;
	c->result->allocated_clusters++;
	c->result->compressed_clusters++;
	c->result->fragmented_clusters++; /* by nature */
}

static void count_place(struct check *c, struct l2_walk *w, u64 entry)
{
	u64 host = entry & QCOW2_OFFSET_MASK;

	if (w->active && check_judges(c)) {
		c->result->allocated_clusters++;
		if (w->next_contiguous && host != w->next_contiguous)
			c->result->fragmented_clusters++;
		w->next_contiguous = host + c->cluster_bytes;
	}
	if (!c->data_file)
		check_count(c, host, c->cluster_bytes);
}

static void walk_entry(struct check *c, struct l2_walk *w, u32 i)
{
	u64 entry = image_l2_entry(c->img, c->l2, i);
	u64 bitmap = image_l2_bitmap(c->img, c->l2, i);
	u32 wrong;

	if (!entry && !bitmap)
		return;
	wrong = judge_entry(c, entry, bitmap, w->offset, i);
	if (wrong)
		wrong = fix_entry(c, w, i, &entry, &bitmap, wrong);
	if (wrong & WRONG_UNCOUNTED)
		return;
	switch (entry_type(c, entry)) {
	case L2_COMPRESSED:
		count_compressed(c, w, entry);
		break;
	case L2_PLACE:
		count_place(c, w, entry);
		break;
	case L2_ZERO:
	case L2_UNALLOCATED:
		break;
	}
}

/* ---- tables ----------------------------------------------------------------------- */

static int walk_l2(struct check *c, u64 offset, bool active)
{
	struct l2_walk w = { .offset = offset, .active = active };
	int ret = check_read(c, c->l2, c->cluster_bytes, offset);

	if (ret < 0)
		return check_failed(c, ret, "L2 table 0x%llx: read failed (%s)",
				    (unsigned long long)offset, strerror(-ret));
	for (u32 i = 0; i < 1u << c->img->l2_bits; i++)
		walk_entry(c, &w, i);
	return write_fixed(c, &w);
}

/* Reserved bits have no meaning: what they hide is kept. */
static void fix_l1_entry(struct check *c, u64 table, u32 index, u64 entry, bool active)
{
	if (!(c->fix & CHECK_FIX_ERRORS) || !check_judges(c))
		return;
	entry &= ~QCOW2_L1_RESERVED;
	if (check_write_l1(c, table, index, entry))
		return;
	if (active)
		l1_set(&c->img->l1, index, entry);
	c->result->corruptions--;
	c->result->corruptions_fixed++;
}

static int walk_l1_entry(struct check *c, u64 table, u32 index, u64 entry, bool active)
{
	u64 l2 = entry & QCOW2_OFFSET_MASK;

	if (entry & QCOW2_L1_RESERVED) {
		check_corrupt(c, "L1 table 0x%llx entry %u: reserved bits set (0x%016llx)",
			      (unsigned long long)table, index, (unsigned long long)entry);
		fix_l1_entry(c, table, index, entry, active);
	}
	check_count(c, l2, c->cluster_bytes);
	if (!IS_ALIGNED(l2, c->cluster_bytes))
		check_corrupt(c, "L1 table 0x%llx entry %u: L2 table not aligned (0x%llx), must "
			      "be a multiple of 2^%u",
			      (unsigned long long)table, index, (unsigned long long)l2,
			      c->img->cluster_bits);
	return walk_l2(c, l2, active);
}

static int walk_l1_entries(struct check *c, struct table_stream *s, u64 table, u32 entries,
			   bool active)
{
	const u8 *p;
	u64 entry;
	int ret;

	for (u32 i = 0; i < entries; i++) {
		ret = table_stream_get(s, sizeof(u64), &p);
		if (ret == -ERANGE)
			return 0; /* beyond the end all is zero */
		if (ret)
			return check_failed(c, ret, "L1 table 0x%llx: read failed (%s)",
					    (unsigned long long)table, strerror(-ret));
		entry = load_be64(p);
		ret = entry ? walk_l1_entry(c, table, i, entry, active) : 0;
		if (ret)
			return ret;
	}
	return 0;
}

int check_walk_l1(struct check *c, u64 offset, u32 entries, bool active)
{
	u64 bytes = (u64)entries * sizeof(u64);
	struct table_stream s;
	int ret;

	if (!entries)
		return 0;
	check_count(c, offset, bytes);
	ret = table_stream_init(&s, c->img->dev, offset, bytes);
	if (ret)
		return check_failed(c, ret, "L1 table 0x%llx: no memory to read it",
				    (unsigned long long)offset);
	ret = walk_l1_entries(c, &s, offset, entries, active);
	table_stream_exit(&s);
	return ret;
}

int check_walk(struct check *c)
{
	int ret;

	check_count(c, 0, c->cluster_bytes);
	ret = check_walk_l1(c, c->img->l1_offset, c->img->l1_size, true);
	if (!ret)
		ret = check_walk_snapshots(c);
	if (!ret && !c->without_refcounts)
		check_count(c, c->reftable_offset, (u64)c->reftable_entries * sizeof(u64));
	if (!ret)
		ret = check_walk_bitmaps(c);
	if (!ret && !c->without_refcounts)
		check_walk_refcounts(c);
	return ret;
}
