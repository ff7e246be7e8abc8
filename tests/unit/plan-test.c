// SPDX-License-Identifier: GPL-2.0-or-later
/* What becomes of a cluster: the decisions of write_op_decide(), row by row. */
#include "../../ublk-target/target/chain-private.h"
#include "random.h"
#include "unit.h"

#include <errno.h>
#include <string.h>

#define CLUSTER 0x10000u
#define GUEST 0x20000u /* of the cluster that is looked at */
#define INDEX 2u
#define PLACE 0x50000u
#define NEW_PLACE 0x90000u
#define VIRTUAL_BYTES (1ull << 30)
#define COPIED QCOW2_COPIED
#define ALL_ZERO QCOW2_SC_ZERO_MASK
#define ALL_DATA QCOW2_SC_ALLOC_MASK
#define ZERO_BIT(sc) (1ull << (32 + (sc)))
#define DATA_BIT(sc) (1ull << (sc))

/* ---- a target with one image and one table of entries --------------------- */

static struct io_dev dev = { .path = (char *)"mem", .blockdev = true, .size_bytes = 1ull << 40 };
static struct image img;
static struct layer layer = { .img = &img, .path = (char *)"mem", .node_name = "mem" };
static struct layer *by_id[1] = { &layer };
static struct layer_table table;
static struct target ti;
static struct chain_target ct;
static struct writer writer;
static struct new_table nt;
static u8 entries[4096] __attribute__((aligned(8)));
static struct cluster_plan plans[4];
static struct write_op op;

static void make_target(u32 version, bool extl2, bool below)
{
	img = (struct image){
		.dev = &dev, .format = IMAGE_QCOW2, .version = version, .cluster_bits = 16,
		.subcluster_bits = extl2 ? 11 : 16, .subclusters = extl2 ? 32 : 1,
		.l2_entry_bytes = extl2 ? 16 : 8, .l2_bits = extl2 ? 12 : 13,
		.virtual_size = VIRTUAL_BYTES,
	};
	table = (struct layer_table){ .nr = 1, .by_id = by_id };
	layer.corrupt = false;
	ct = (struct chain_target){ .ti = &ti,
				    .map = { .table = &table, .size_bytes = VIRTUAL_BYTES } };
	writer = (struct writer){ .ct = &ct, .layer = &layer, .img = &img, .below = below };
	layer.writer = &writer;
	nt = (struct new_table){ .writer = &writer, .data = entries };
	memset(entries, 0, sizeof(entries));
}

static int decide(u8 type, bool nounmap, u64 start, u64 len)
{
	memset(plans, 0xa5, sizeof(plans));
	op = (struct write_op){ .writer = &writer, .type = type, .nounmap = nounmap,
				.start = start, .len = len, .table = &nt, .plans = plans };
	op.first_cluster = start / CLUSTER;
	op.nr_clusters = (start + len - 1) / CLUSTER - op.first_cluster + 1;
	return write_op_decide(&op);
}

static u64 compressed_entry(void)
{
	return image_compressed_entry(&img, 0x70123, 3000);
}

/* ---- rows ----------------------------------------------------------------- */

#define COMPRESSED (~0ull) /* stands for compressed_entry() */

/* Offset in the cluster and length. */
#define PART 0x1000u, 0x200u
#define WHOLE 0u, CLUSTER

struct row {
	const char *name;
	u8 type;
	bool nounmap;
	u8 version;
	bool below;
	u64 entry; /* as it is */
	u64 bitmap;
	u32 from;
	u32 len;
	/* what is decided */
	bool changed;
	bool alloc;
	u64 host;
	u64 new_entry; /* when it is changed, without the place allocated later */
	u64 new_bitmap;
	u32 valid_start;
	u32 valid_end;
	u8 kind;
	u8 flags;
	u64 unmap_host;
};

static bool row_agrees(const struct row *r)
{
	const struct cluster_plan *p = &plans[0];
	struct cluster_info c;
	u64 unmap = r->unmap_host, bytes = r->unmap_host ? CLUSTER : 0;

	if (unmap == COMPRESSED) {
		image_decode(&img, compressed_entry(), 0, 0, &c);
		unmap = c.host;
		bytes = c.compressed_bytes;
	}
	if (p->changed != r->changed || p->alloc != r->alloc)
		return false;
	if (p->unmap_host != unmap || p->unmap_bytes != bytes)
		return false;
	if (r->type != OP_WRITE && !r->changed)
		return true; /* nothing is written, nothing published */
	return p->host == r->host && (!r->changed || (p->entry == r->new_entry &&
						       p->bitmap == r->new_bitmap)) &&
	       p->valid_start == GUEST + r->valid_start &&
	       p->valid_end == GUEST + r->valid_end && p->kind == r->kind &&
	       p->flags == r->flags;
}

static void print_plan(const char *name)
{
	const struct cluster_plan *p = &plans[0];

	printf("\n    %s: changed %d alloc %d host 0x%llx entry 0x%llx bitmap 0x%llx valid 0x%llx "
	       "to 0x%llx kind %u flags %u unmap 0x%llx+%llu",
	       name, p->changed, p->alloc, (unsigned long long)p->host,
	       (unsigned long long)p->entry, (unsigned long long)p->bitmap,
	       (unsigned long long)p->valid_start, (unsigned long long)p->valid_end, p->kind,
	       p->flags, (unsigned long long)p->unmap_host, (unsigned long long)p->unmap_bytes);
}

static void run_rows(const struct row *rows, u32 nr, bool extl2)
{
	u32 i;

	for (i = 0; i < nr; i++) {
		const struct row *r = &rows[i];
		bool good;

		make_target(r->version, extl2, r->below);
		image_l2_set(&img, entries, INDEX,
			     r->entry == COMPRESSED ? compressed_entry() : r->entry, r->bitmap);
		CU_ASSERT_EQUAL(decide(r->type, r->nounmap, GUEST + r->from, r->len), 0);
		good = row_agrees(r);
		if (!good)
			print_plan(r->name);
		CU_ASSERT(good);
	}
}

#define WRITE_ROW(text, below, entry, bitmap, ...)                                             \
	{ text, OP_WRITE, false, 3, below, entry, bitmap, __VA_ARGS__ }
#define WHOLE_DATA 0, CLUSTER, EXTENT_DATA, EXTENT_COPIED

static void test_write_standard(void)
{
	static const struct row rows[] = {
		/* partial writes: changed, alloc, host, entry, bitmap, valid, kind, unmap */
		WRITE_ROW("unallocated", true, 0, 0, PART, 1, 1, 0, COPIED, 0, WHOLE_DATA, 0),
		WRITE_ROW("unallocated, base", false, 0, 0, PART, 1, 1, 0, COPIED, 0, WHOLE_DATA,
			  0),
		WRITE_ROW("data", true, PLACE | COPIED, 0, PART, 0, 0, PLACE, 0, 0, 0x1000, 0x1200,
			  EXTENT_DATA, EXTENT_COPIED, 0),
		WRITE_ROW("shared data", true, PLACE, 0, PART, 1, 1, 0, COPIED, 0, WHOLE_DATA,
			  PLACE),
		WRITE_ROW("zero", true, QCOW2_ZERO, 0, PART, 1, 1, 0, COPIED, 0, WHOLE_DATA, 0),
		WRITE_ROW("zero with place", true, PLACE | COPIED | QCOW2_ZERO, 0, PART, 1, 0,
			  PLACE, PLACE | COPIED, 0, WHOLE_DATA, 0),
		WRITE_ROW("zero with shared place", true, PLACE | QCOW2_ZERO, 0, PART, 1, 1, 0,
			  COPIED, 0, WHOLE_DATA, PLACE),
		WRITE_ROW("compressed", true, COMPRESSED, 0, PART, 1, 1, 0, COPIED, 0, WHOLE_DATA,
			  COMPRESSED),
		WRITE_ROW("whole, data", true, PLACE | COPIED, 0, WHOLE, 0, 0, PLACE, 0, 0,
			  WHOLE_DATA, 0),
		WRITE_ROW("whole, unallocated", true, 0, 0, WHOLE, 1, 1, 0, COPIED, 0, WHOLE_DATA,
			  0),
		{ "version 2, unallocated", OP_WRITE, false, 2, true, 0, 0, PART, 1, 1, 0, COPIED,
		  0, WHOLE_DATA, 0 },
	};

	run_rows(rows, ARRAY_SIZE(rows), false);
}

static void test_write_extended(void)
{
	static const struct row rows[] = {
		WRITE_ROW("unallocated", true, 0, 0, PART, 1, 1, 0, COPIED, DATA_BIT(2), 0x1000,
			  0x1800, EXTENT_DATA, EXTENT_COPIED, 0),
		WRITE_ROW("unallocated, zeroes beside", true, 0, ZERO_BIT(2) | ZERO_BIT(9), PART,
			  1, 1, 0, COPIED, DATA_BIT(2) | ZERO_BIT(9), 0x1000, 0x1800, EXTENT_DATA,
			  EXTENT_COPIED, 0),
		WRITE_ROW("data", true, PLACE | COPIED, DATA_BIT(2), 0x1100, 0x200, 0, 0, PLACE,
			  0, 0, 0x1100, 0x1300, EXTENT_DATA, EXTENT_COPIED, 0),
		WRITE_ROW("zero in a place", true, PLACE | COPIED, ZERO_BIT(2) | DATA_BIT(3),
			  0x1100, 0x200, 1, 0, PLACE, PLACE | COPIED, DATA_BIT(2) | DATA_BIT(3),
			  0x1000, 0x1800, EXTENT_DATA, EXTENT_COPIED, 0),
		WRITE_ROW("place without it", true, PLACE | COPIED, DATA_BIT(9), PART, 1, 0, PLACE,
			  PLACE | COPIED, DATA_BIT(2) | DATA_BIT(9), 0x1000, 0x1800, EXTENT_DATA,
			  EXTENT_COPIED, 0),
		WRITE_ROW("from data into nothing", true, PLACE | COPIED, DATA_BIT(2), 0x1200,
			  0x1000, 1, 0, PLACE, PLACE | COPIED,
			  DATA_BIT(2) | DATA_BIT(3) | DATA_BIT(4), 0x1200, 0x2800, EXTENT_DATA,
			  EXTENT_COPIED, 0),
		WRITE_ROW("from nothing into data", true, PLACE | COPIED, DATA_BIT(4), 0x1200,
			  0x1000, 1, 0, PLACE, PLACE | COPIED,
			  DATA_BIT(2) | DATA_BIT(3) | DATA_BIT(4), 0x1000, 0x2200, EXTENT_DATA,
			  EXTENT_COPIED, 0),
		WRITE_ROW("shared", true, PLACE, DATA_BIT(2), PART, 1, 1, 0, COPIED, ALL_DATA,
			  WHOLE_DATA, PLACE),
		WRITE_ROW("compressed", true, COMPRESSED, 0, PART, 1, 1, 0, COPIED, ALL_DATA,
			  WHOLE_DATA, COMPRESSED),
		WRITE_ROW("whole", true, 0, ALL_ZERO, WHOLE, 1, 1, 0, COPIED, ALL_DATA,
			  WHOLE_DATA, 0),
	};

	run_rows(rows, ARRAY_SIZE(rows), true);
}

#define ZERO_ROW(text, below, entry, bitmap, ...)                                              \
	{ text, OP_ZERO, false, 3, below, entry, bitmap, __VA_ARGS__ }
#define KEEP_ROW(text, below, entry, bitmap, ...)                                              \
	{ text, OP_ZERO, true, 3, below, entry, bitmap, __VA_ARGS__ }
#define DISCARD_ROW(text, below, entry, bitmap, ...)                                           \
	{ text, OP_DISCARD, false, 3, below, entry, bitmap, __VA_ARGS__ }
#define NOTHING 0, 0
#define WHOLE_ZERO 0, CLUSTER, EXTENT_ZERO, 0
#define WHOLE_PLACE 0, CLUSTER, EXTENT_ZERO, EXTENT_PLACE
#define WHOLE_NONE 0, CLUSTER, EXTENT_NONE, 0

static void test_zero_standard(void)
{
	static const struct row rows[] = {
		ZERO_ROW("unallocated", true, 0, 0, WHOLE, 1, 0, 0, QCOW2_ZERO, 0, WHOLE_ZERO, 0),
		ZERO_ROW("unallocated, base", false, 0, 0, WHOLE, NOTHING),
		ZERO_ROW("data", true, PLACE | COPIED, 0, WHOLE, 1, 0, 0, QCOW2_ZERO, 0,
			 WHOLE_ZERO, PLACE),
		ZERO_ROW("data, base", false, PLACE | COPIED, 0, WHOLE, 1, 0, 0, 0, 0, WHOLE_NONE,
			 PLACE),
		ZERO_ROW("shared data", true, PLACE, 0, WHOLE, 1, 0, 0, QCOW2_ZERO, 0, WHOLE_ZERO,
			 PLACE),
		ZERO_ROW("zero", true, QCOW2_ZERO, 0, WHOLE, NOTHING),
		ZERO_ROW("zero with place", true, PLACE | COPIED | QCOW2_ZERO, 0, WHOLE, NOTHING),
		ZERO_ROW("compressed", true, COMPRESSED, 0, WHOLE, 1, 0, 0, QCOW2_ZERO, 0,
			 WHOLE_ZERO, COMPRESSED),
		KEEP_ROW("keep, unallocated", true, 0, 0, WHOLE, 1, 1, 0, COPIED | QCOW2_ZERO, 0,
			 WHOLE_PLACE, 0),
		KEEP_ROW("keep, data", true, PLACE | COPIED, 0, WHOLE, 1, 0, PLACE,
			 PLACE | COPIED | QCOW2_ZERO, 0, WHOLE_PLACE, 0),
		KEEP_ROW("keep, shared data", true, PLACE, 0, WHOLE, 1, 1, 0, COPIED | QCOW2_ZERO,
			 0, WHOLE_PLACE, PLACE),
		KEEP_ROW("keep, zero", true, QCOW2_ZERO, 0, WHOLE, 1, 1, 0, COPIED | QCOW2_ZERO,
			 0, WHOLE_PLACE, 0),
		KEEP_ROW("keep, zero with place", true, PLACE | COPIED | QCOW2_ZERO, 0, WHOLE,
			 NOTHING),
		KEEP_ROW("keep, compressed", true, COMPRESSED, 0, WHOLE, 1, 1, 0,
			 COPIED | QCOW2_ZERO, 0, WHOLE_PLACE, COMPRESSED),
	};

	run_rows(rows, ARRAY_SIZE(rows), false);
}

static void test_discard_standard(void)
{
	static const struct row rows[] = {
		DISCARD_ROW("unallocated", true, 0, 0, WHOLE, 1, 0, 0, QCOW2_ZERO, 0, WHOLE_ZERO,
			    0),
		DISCARD_ROW("unallocated, base", false, 0, 0, WHOLE, NOTHING),
		DISCARD_ROW("data", true, PLACE | COPIED, 0, WHOLE, 1, 0, 0, QCOW2_ZERO, 0,
			    WHOLE_ZERO, PLACE),
		DISCARD_ROW("data, base", false, PLACE | COPIED, 0, WHOLE, 1, 0, 0, 0, 0,
			    WHOLE_NONE, PLACE),
		DISCARD_ROW("zero", true, QCOW2_ZERO, 0, WHOLE, NOTHING),
		DISCARD_ROW("zero with place", true, PLACE | COPIED | QCOW2_ZERO, 0, WHOLE, 1, 0, 0,
			    QCOW2_ZERO, 0, WHOLE_ZERO, PLACE),
		DISCARD_ROW("zero with place, base", false, PLACE | COPIED | QCOW2_ZERO, 0, WHOLE,
			    1, 0, 0, 0, 0, WHOLE_NONE, PLACE),
		DISCARD_ROW("compressed", true, COMPRESSED, 0, WHOLE, 1, 0, 0, QCOW2_ZERO, 0,
			    WHOLE_ZERO, COMPRESSED),
		/* version 2 has no zero flag: an older layer must not show */
		{ "version 2, data", OP_DISCARD, false, 2, true, PLACE | COPIED, 0, WHOLE,
		  NOTHING },
		{ "version 2, compressed", OP_DISCARD, false, 2, true, COMPRESSED, 0, WHOLE,
		  NOTHING },
		{ "version 2, base", OP_DISCARD, false, 2, false, PLACE | COPIED, 0, WHOLE, 1, 0, 0,
		  0, 0, WHOLE_NONE, PLACE },
		{ "version 2, base, compressed", OP_DISCARD, false, 2, false, COMPRESSED, 0, WHOLE,
		  1, 0, 0, 0, 0, WHOLE_NONE, COMPRESSED },
	};

	run_rows(rows, ARRAY_SIZE(rows), false);
}

#define SC_2_4 0x1000u, 0x1800u
#define DATA_2_4 (DATA_BIT(2) | DATA_BIT(3) | DATA_BIT(4))
#define ZERO_2_4 (ZERO_BIT(2) | ZERO_BIT(3) | ZERO_BIT(4))

static void test_zero_extended(void)
{
	static const struct row rows[] = {
		ZERO_ROW("part, unallocated", true, 0, 0, SC_2_4, 1, 0, 0, 0, ZERO_2_4, 0x1000,
			 0x2800, EXTENT_ZERO, 0, 0),
		ZERO_ROW("part, zero already", true, 0, ALL_ZERO, SC_2_4, NOTHING),
		ZERO_ROW("whole, unallocated", true, 0, 0, WHOLE, 1, 0, 0, 0, ALL_ZERO, WHOLE_ZERO,
			 0),
		ZERO_ROW("whole, data", true, PLACE | COPIED, ALL_DATA, WHOLE, 1, 0, 0, 0, ALL_ZERO,
			 WHOLE_ZERO, PLACE),
		ZERO_ROW("whole, data, base", false, PLACE | COPIED, ALL_DATA, WHOLE, 1, 0, 0, 0, 0,
			 WHOLE_NONE, PLACE),
		ZERO_ROW("whole, zero already", true, 0, ALL_ZERO, WHOLE, NOTHING),
		ZERO_ROW("whole, compressed", true, COMPRESSED, 0, WHOLE, 1, 0, 0, 0, ALL_ZERO,
			 WHOLE_ZERO, COMPRESSED),
		KEEP_ROW("keep, data", true, PLACE | COPIED, ALL_DATA, WHOLE, 1, 0, PLACE,
			 PLACE | COPIED, ALL_ZERO, WHOLE_PLACE, 0),
		KEEP_ROW("keep, unallocated", true, 0, 0, WHOLE, 1, 1, 0, COPIED, ALL_ZERO,
			 WHOLE_PLACE, 0),
		KEEP_ROW("keep, kept already", true, PLACE | COPIED, ALL_ZERO, WHOLE, NOTHING),
		DISCARD_ROW("part, base", false, 0, ZERO_2_4 | ZERO_BIT(9), SC_2_4, 1, 0, 0, 0,
			    ZERO_BIT(9), 0x1000, 0x2800, EXTENT_NONE, 0, 0),
		DISCARD_ROW("part, compressed", true, COMPRESSED, 0, SC_2_4, NOTHING),
		DISCARD_ROW("whole, place", true, PLACE | COPIED, ALL_ZERO, WHOLE, 1, 0, 0, 0,
			    ALL_ZERO, WHOLE_ZERO, PLACE),
	};

	run_rows(rows, ARRAY_SIZE(rows), true);
}

/* The place stays for the subclusters beside: what is published says so, too. */
static void test_zero_part_of_a_place(void)
{
	static const struct row rows[] = {
		ZERO_ROW("data", true, PLACE | COPIED, DATA_2_4 | DATA_BIT(9), SC_2_4, 1, 0, PLACE,
			 PLACE | COPIED, ZERO_2_4 | DATA_BIT(9), 0x1000, 0x2800, EXTENT_ZERO,
			 EXTENT_PLACE, 0),
		DISCARD_ROW("discard", true, PLACE | COPIED, DATA_2_4 | DATA_BIT(9), SC_2_4, 1, 0,
			    PLACE, PLACE | COPIED, ZERO_2_4 | DATA_BIT(9), 0x1000, 0x2800,
			    EXTENT_ZERO, EXTENT_PLACE, 0),
		ZERO_ROW("shared", true, PLACE, DATA_2_4, SC_2_4, 1, 0, PLACE, PLACE, ZERO_2_4,
			 0x1000, 0x2800, EXTENT_ZERO, EXTENT_PLACE, 0),
	};

	run_rows(rows, ARRAY_SIZE(rows), true);
}

/* A part of a compressed cluster has no bits of its own: zeroes are written. */
static void test_zero_part_of_compressed(void)
{
	make_target(3, true, true);
	image_l2_set(&img, entries, INDEX, compressed_entry(), 0);
	CU_ASSERT_EQUAL(decide(OP_ZERO, false, GUEST + 0x1000, 0x1800), 0);
	CU_ASSERT_EQUAL(op.type, OP_WRITE);
	CU_ASSERT(plans[0].alloc);
	CU_ASSERT_EQUAL(plans[0].valid_end - plans[0].valid_start, CLUSTER);
	CU_ASSERT_EQUAL(plans[0].kind, EXTENT_DATA);
}

/* Zeroes up to the end of the image are zeroes up to the end of its cluster. */
static void test_end_of_the_image(void)
{
	make_target(3, true, true);
	img.virtual_size = GUEST + 0x1400;
	ct.map.size_bytes = img.virtual_size;
	image_l2_set(&img, entries, INDEX, PLACE | COPIED, ALL_DATA);
	CU_ASSERT_EQUAL(decide(OP_DISCARD, false, GUEST, 0x1400), 0);
	CU_ASSERT_EQUAL(plans[0].entry, 0);
	CU_ASSERT_EQUAL(plans[0].bitmap, ALL_ZERO);
	CU_ASSERT_EQUAL(plans[0].unmap_host, PLACE);
	CU_ASSERT_EQUAL(plans[0].valid_end, GUEST + 0x1400);
	/* a write there fills to the end of its subcluster (rule B6) */
	image_l2_set(&img, entries, INDEX, 0, 0);
	CU_ASSERT_EQUAL(decide(OP_WRITE, false, GUEST + 0x1000, 0x400), 0);
	CU_ASSERT_EQUAL(plans[0].valid_start, GUEST + 0x1000);
	CU_ASSERT_EQUAL(plans[0].valid_end, GUEST + 0x1800);
}

/* Several clusters: each on its own, and the odd ends of the first and the last. */
static void test_several(void)
{
	make_target(3, false, true);
	image_l2_set(&img, entries, INDEX, PLACE | COPIED, 0);
	image_l2_set(&img, entries, INDEX + 1, 0, 0);
	image_l2_set(&img, entries, INDEX + 2, PLACE + CLUSTER, 0);
	CU_ASSERT_EQUAL(decide(OP_WRITE, false, GUEST + 0x200, 2 * CLUSTER), 0);
	CU_ASSERT_FALSE(plans[0].changed);
	CU_ASSERT_EQUAL(plans[0].valid_start, GUEST + 0x200);
	CU_ASSERT_EQUAL(plans[0].valid_end, GUEST + CLUSTER);
	CU_ASSERT(plans[1].alloc);
	CU_ASSERT_EQUAL(plans[1].unmap_host, 0);
	CU_ASSERT(plans[2].alloc);
	CU_ASSERT_EQUAL(plans[2].unmap_host, PLACE + CLUSTER);
	CU_ASSERT_EQUAL(plans[2].valid_end, GUEST + 3 * CLUSTER);
}

/* ---- what must not be written (rule B7) ----------------------------------- */

static void expect_corrupt(u64 entry, u64 bitmap)
{
	image_l2_set(&img, entries, INDEX, entry, bitmap);
	CU_ASSERT_EQUAL(decide(OP_WRITE, false, GUEST, 512), -EIO);
	CU_ASSERT(layer.corrupt);
	CU_ASSERT(table.read_only);
}

static void test_bad_entries(void)
{
	make_target(3, false, true);
	expect_corrupt(PLACE | 1ull << 4, 0); /* reserved */
	make_target(3, false, true);
	expect_corrupt(PLACE + 512, 0); /* not aligned */
	make_target(3, false, true);
	expect_corrupt(1ull << 41, 0); /* beyond the end */
	make_target(2, false, true);
	expect_corrupt(PLACE | QCOW2_ZERO, 0); /* unknown to version 2 */
	make_target(3, true, true);
	expect_corrupt(PLACE, ZERO_BIT(7) | DATA_BIT(7)); /* somewhere else in the cluster */
}

static void test_metadata_place(void)
{
	make_target(3, false, true);
	CU_ASSERT_EQUAL_FATAL(overlap_build(&img, NULL, 0, NULL), 0);
	CU_ASSERT_EQUAL(overlap_add(&img, PLACE, CLUSTER), 0);
	expect_corrupt(PLACE | COPIED, 0);
	overlap_free(img.overlap);
	img.overlap = NULL;
}

/* ---- any entry, any range: what must hold --------------------------------- */

static u64 draw_entry(struct rnd *r, u64 *bitmap)
{
	u64 entry = rnd_once(r, 3) ? 0 : PLACE;
	u32 alloc = rnd(r) & rnd(r), zero = rnd(r) & rnd(r) & ~alloc;

	*bitmap = 0;
	if (rnd_once(r, 6))
		return compressed_entry();
	if (entry && !rnd_once(r, 3))
		entry |= COPIED;
	if (image_has_extl2(&img))
		*bitmap = (u64)zero << 32 | (entry ? alloc : 0);
	else if (img.version >= 3 && rnd_once(r, 3))
		entry |= QCOW2_ZERO;
	return entry;
}

static bool is_zero(const struct cluster_info *c)
{
	return c->kind == CLUSTER_ZERO || c->kind == CLUSTER_ZERO_PLACE;
}

static bool from_below(const struct cluster_info *c)
{
	return c->kind == CLUSTER_UNALLOCATED || c->kind == CLUSTER_RESERVED;
}

/* A subcluster outside of what the guest asked for reads as it did. */
static bool reads_the_same(const struct cluster_info *a, const struct cluster_info *b)
{
	if (a->kind == CLUSTER_DATA || a->kind == CLUSTER_COMPRESSED)
		return a->kind == b->kind && a->host == b->host;
	return is_zero(a) == is_zero(b) && from_below(a) == from_below(b);
}

struct sub_range {
	u64 start;
	u64 end;
	struct cluster_info old;
	struct cluster_info new;
};

static bool write_holds(const struct sub_range *s)
{
	const struct cluster_plan *p = &plans[0];
	bool touched = s->start < op.start + op.len && s->end > op.start;
	bool filled = p->valid_start <= s->start && p->valid_end >= s->end;
	bool in_place = s->old.kind == CLUSTER_DATA && s->old.host == s->new.host;

	if (touched || filled) /* data, all of it valid, in a place of our own */
		return s->new.kind == CLUSTER_DATA && s->new.copied && (filled || in_place);
	return reads_the_same(&s->old, &s->new);
}

static bool zero_holds(const struct sub_range *s)
{
	const struct cluster_plan *p = &plans[0];
	bool touched = s->start < op.start + op.len && s->end > op.start;
	bool may_leave = op.type == OP_DISCARD && (img.version < 3 ||
						   s->old.kind == CLUSTER_COMPRESSED);

	if (!touched)
		return reads_the_same(&s->old, &s->new);
	if (!p->changed && may_leave)
		return reads_the_same(&s->old, &s->new);
	if (!is_zero(&s->new) && (writer.below || !from_below(&s->new)))
		return false;
	return !p->changed || p->kind == (is_zero(&s->new) ? EXTENT_ZERO : EXTENT_NONE);
}

/* The old place is given up exactly when the new entry does not name it. */
static bool unmap_holds(const struct cluster_info *old, u64 entry, u64 new_entry)
{
	const struct cluster_plan *p = &plans[0];

	if (entry & QCOW2_COMPRESSED)
		return p->unmap_host == (entry == new_entry ? 0 : old->host);
	return p->unmap_host == ((entry & QCOW2_OFFSET_MASK) ==
				 (new_entry & QCOW2_OFFSET_MASK) ? 0 : entry & QCOW2_OFFSET_MASK);
}

static bool case_holds(u64 entry, u64 bitmap)
{
	const struct cluster_plan *p = &plans[0];
	u64 new_entry = p->changed ? p->entry | (p->alloc ? NEW_PLACE : 0) : entry;
	u64 new_bitmap = p->changed ? p->bitmap : bitmap;
	struct sub_range s;
	u32 sc;

	for (sc = 0; sc < img.subclusters; sc++) {
		s.start = GUEST + sc * (CLUSTER / img.subclusters);
		s.end = s.start + CLUSTER / img.subclusters;
		image_decode(&img, entry, bitmap, sc, &s.old);
		image_decode(&img, new_entry, new_bitmap, sc, &s.new);
		if (s.new.kind == CLUSTER_BAD)
			return false;
		if (op.type == OP_WRITE ? !write_holds(&s) : !zero_holds(&s))
			return false;
	}
	if (p->alloc && (p->host || !p->changed))
		return false;
	if (op.type == OP_WRITE && (p->valid_start > op.start || p->valid_end < op.start + op.len))
		return false;
	image_decode(&img, entry, bitmap, 0, &s.old);
	return unmap_holds(&s.old, entry, new_entry);
}

static bool random_case(u64 seed)
{
	struct rnd r = { seed };
	bool extl2 = rnd_once(&r, 2);
	u8 type = rnd_below(&r, 3);
	u32 granule, from, to;
	u64 entry, bitmap;
	bool nounmap;

	make_target(extl2 || !rnd_once(&r, 4) ? 3 : 2, extl2, rnd_once(&r, 2));
	if (type == OP_ZERO && img.version < 3)
		type = OP_WRITE; /* so the splitter does */
	granule = type == OP_WRITE ? 512 : CLUSTER / img.subclusters;
	from = rnd_below(&r, CLUSTER / granule);
	to = rnd_between(&r, from + 1, CLUSTER / granule);
	if (rnd_once(&r, 3)) {
		from = 0;
		to = CLUSTER / granule;
	}
	nounmap = type == OP_ZERO && rnd_once(&r, 2);
	entry = draw_entry(&r, &bitmap);
	image_l2_set(&img, entries, INDEX, entry, bitmap);
	return !decide(type, nounmap, GUEST + from * granule, (u64)(to - from) * granule) &&
	       case_holds(entry, bitmap);
}

static void test_random(void)
{
	u64 seed = rnd_seed("plan");
	u32 i;

	for (i = 0; i < 200000; i++) {
		if (random_case(seed + i))
			continue;
		print_plan("fails");
		printf("\n    case QCHAIN_SEED=%llu", (unsigned long long)(seed + i));
		CU_FAIL("a decision loses data or space");
		return;
	}
}

int main(void)
{
	static const struct unit_test tests[] = {
		{ "writes, standard", test_write_standard },
		{ "writes, extended", test_write_extended },
		{ "zeroes, standard", test_zero_standard },
		{ "discards, standard", test_discard_standard },
		{ "zeroes and discards, extended", test_zero_extended },
		{ "zeroes in a part of a place", test_zero_part_of_a_place },
		{ "zeroes in a part of a compressed cluster", test_zero_part_of_compressed },
		{ "end of the image", test_end_of_the_image },
		{ "several clusters", test_several },
		{ "bad entries", test_bad_entries },
		{ "a place on metadata", test_metadata_place },
		{ "any entry, any range", test_random },
		{ NULL, NULL },
	};

	return unit_main("plan", tests);
}
