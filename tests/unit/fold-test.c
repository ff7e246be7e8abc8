// SPDX-License-Identifier: GPL-2.0-or-later
/* Folding random layer stacks, against a walk through the layers for each sector. */
#include "random.h"
#include "unit.h"

#include <qchain/map.h>
#include <stdlib.h>
#include <string.h>
#include <uapi/qcow2.h>

#define MAX_LAYERS 6u
#define MAX_SOURCES 4u
#define MAX_ENTRIES 200u
#define DEV_BYTES (1ull << 40)
#define CASES 6000u

/* What one (sub)cluster of a layer is, as the test made it. */
struct cell {
	u8 kind; /* enum extent_kind; EXTENT_NONE: the layer below decides */
	u8 flags;
	u64 host; /* of its first byte; compressed: the entry without flags */
};

/* One L2 table, or a part of it: the entries and what they were made from. */
struct made_source {
	u64 first;
	u32 nr;
	u8 table[MAX_ENTRIES * 16];
	struct cell cells[MAX_ENTRIES * 32]; /* nr << (cluster_bits - subcluster_bits) */
};

struct made_layer {
	struct image img;
	struct io_dev dev;
	u32 nr_sources;
	struct fold_source sources[MAX_SOURCES];
	struct made_source *made[MAX_SOURCES];
};

struct stack {
	u32 nr;
	struct fold_layer layers[MAX_LAYERS];
	struct made_layer made[MAX_LAYERS];
	u64 start; /* of the window */
	u64 len;
};

static struct stack st;

/* ---- making layers -------------------------------------------------------- */

static u32 cells_per_cluster(const struct image *img)
{
	return 1u << (img->cluster_bits - img->subcluster_bits);
}

static void set_entry(struct made_source *m, const struct image *img, u32 i, u64 entry,
		      u64 bitmap)
{
	image_l2_set(img, m->table, i, entry, bitmap);
}

static void set_cells(struct made_source *m, const struct image *img, u32 i, struct cell cell)
{
	u32 n = cells_per_cluster(img);
	u32 k;

	for (k = 0; k < n; k++)
		m->cells[i * n + k] = cell;
}

/* A place for a cluster; now and then one beyond the end of a regular file. */
static u64 draw_host(struct rnd *r, const struct image *img)
{
	u64 clusters = rnd_once(r, 8) ? DEV_BYTES >> img->cluster_bits :
					img->dev->size_bytes >> img->cluster_bits;

	if (img->dev->blockdev)
		clusters = DEV_BYTES >> img->cluster_bits;
	return rnd_between(r, 1, max(clusters, 2ull) - 1) << img->cluster_bits;
}

static u64 bad_entry(struct rnd *r, const struct image *img, u64 *bitmap)
{
	u64 place = draw_host(r, img);

	*bitmap = 0;
	switch (rnd_below(r, image_has_extl2(img) ? 5 : 3)) {
	case 0: /* reserved bits */
		return place | 1ull << rnd_between(r, 1, 8);
	case 1: /* more of them */
		return place | 1ull << rnd_between(r, 56, 61);
	case 2: /* inside the header cluster */
		return QCOW2_COMPRESSED | rnd_below(r, 1u << img->cluster_bits);
	case 3:
		*bitmap = 1ull << 7 | 1ull << 39;
		return place;
	default: /* data without a place */
		*bitmap = rnd(r) | 1;
		*bitmap &= QCOW2_SC_ALLOC_MASK;
		return 0;
	}
}

static void make_compressed(struct rnd *r, struct made_source *m, const struct image *img, u32 i)
{
	u64 offset = image_cluster_bytes(img) + rnd_below(r, img->dev->size_bytes / 2);
	u32 bytes = rnd_between(r, 1, image_cluster_bytes(img) / 2);
	u64 entry = image_compressed_entry(img, offset, bytes);
	struct cell cell = { .kind = EXTENT_COMPRESSED,
			     .host = entry & ~QCOW2_COMPRESSED };

	set_entry(m, img, i, entry, 0);
	set_cells(m, img, i, cell);
}

static void make_extended(struct rnd *r, struct made_source *m, const struct image *img, u32 i,
			  u64 place)
{
	bool copied = place && rnd_once(r, 2);
	u32 alloc = place ? rnd(r) & rnd(r) : 0;
	u32 zero = rnd(r) & rnd(r) & ~alloc;
	u32 sc;

	if (rnd_once(r, 4)) /* long stretches, too */
		alloc = place ? ~zero : 0;
	set_entry(m, img, i, place | (copied ? QCOW2_COPIED : 0), (u64)zero << 32 | alloc);
	for (sc = 0; sc < 32; sc++) {
		struct cell cell = { .kind = EXTENT_NONE };

		if (zero >> sc & 1)
			cell.kind = EXTENT_ZERO;
		if (zero >> sc & 1 && place)
			cell.flags = EXTENT_PLACE;
		if (alloc >> sc & 1)
			cell = (struct cell){ EXTENT_DATA, copied ? EXTENT_COPIED : 0, 0 };
		if (cell.flags & EXTENT_PLACE || cell.kind == EXTENT_DATA)
			cell.host = place + ((u64)sc << img->subcluster_bits);
		m->cells[i * 32 + sc] = cell;
	}
}

static void make_standard(struct rnd *r, struct made_source *m, const struct image *img, u32 i,
			  u64 place)
{
	bool copied = place && rnd_once(r, 2);
	bool zero = img->version >= 3 && rnd_once(r, 3);
	struct cell cell = { .kind = EXTENT_NONE };

	if (zero)
		cell = (struct cell){ EXTENT_ZERO, place ? EXTENT_PLACE : 0, place };
	else if (place)
		cell = (struct cell){ EXTENT_DATA, copied ? EXTENT_COPIED : 0, place };
	set_entry(m, img, i, place | (copied ? QCOW2_COPIED : 0) | (zero ? QCOW2_ZERO : 0), 0);
	set_cells(m, img, i, cell);
}

static void make_entry(struct rnd *r, struct made_source *m, const struct image *img, u32 i,
		       u64 *next)
{
	u64 place = rnd_once(r, 2) ? *next : rnd_once(r, 3) ? 0 : draw_host(r, img);
	u64 bitmap;

	if (rnd_once(r, 24)) {
		u64 entry = bad_entry(r, img, &bitmap);

		set_entry(m, img, i, entry, bitmap);
		set_cells(m, img, i, (struct cell){ .kind = EXTENT_BAD });
	} else if (rnd_once(r, 8)) {
		make_compressed(r, m, img, i);
	} else if (rnd_once(r, 4)) { /* nothing: long gaps for the layers below */
		set_entry(m, img, i, 0, 0);
		set_cells(m, img, i, (struct cell){ .kind = EXTENT_NONE });
	} else if (image_has_extl2(img)) {
		make_extended(r, m, img, i, place);
	} else {
		make_standard(r, m, img, i, place);
	}
	if (place) /* clusters side by side, so that extents merge */
		*next = place + image_cluster_bytes(img);
}

static void make_source(struct rnd *r, struct made_layer *l, u64 first, u32 nr, u16 id)
{
	struct made_source *m = calloc(1, sizeof(*m));
	u64 next = draw_host(r, &l->img);
	u32 i;

	CU_ASSERT_FATAL(m != NULL);
	m->first = first;
	m->nr = nr;
	for (i = 0; i < nr; i++) {
		if (next + image_cluster_bytes(&l->img) > DEV_BYTES)
			next = image_cluster_bytes(&l->img);
		make_entry(r, m, &l->img, i, &next);
	}
	l->made[l->nr_sources] = m;
	l->sources[l->nr_sources++] = (struct fold_source){
		.img = &l->img, .table = m->table, .first = first, .nr_entries = nr, .layer = id,
	};
}

/* Tables that cover parts of the window; what lies between has no table. */
static void make_sources(struct rnd *r, struct made_layer *l, u16 id)
{
	u64 cluster = image_cluster_bytes(&l->img);
	u64 pos = ALIGN_DOWN(st.start, cluster);
	u64 end = min(st.start + st.len, l->img.virtual_size);

	while (pos < end && l->nr_sources < MAX_SOURCES) {
		u64 left = DIV_ROUND_UP(end - pos, cluster);
		u32 nr = rnd_between(r, 1, min(left, (u64)MAX_ENTRIES));

		if (rnd_once(r, 2))
			nr = min(left, (u64)MAX_ENTRIES);
		if (!rnd_once(r, 4))
			make_source(r, l, pos, nr, id);
		pos += nr * cluster;
	}
}

/* Sizes around the window: shorter than the overlay, longer, ending inside. */
static u64 draw_size(struct rnd *r)
{
	u64 end = st.start + st.len;

	switch (rnd_below(r, 4)) {
	case 0:
		return ALIGN_UP(1 + rnd_below(r, end), SECTOR_SIZE);
	case 1:
		return st.start + ALIGN_UP(1 + rnd_below(r, st.len), SECTOR_SIZE);
	case 2:
		return end;
	default:
		return end + 4096 * rnd_below(r, 100);
	}
}

static void make_raw(struct rnd *r, struct made_layer *l)
{
	l->dev.size_bytes = draw_size(r) - (l->dev.blockdev ? 0 : rnd_below(r, SECTOR_SIZE));
	l->img.format = IMAGE_RAW;
	l->img.cluster_bits = 16;
	l->img.subcluster_bits = 16;
	l->img.virtual_size = ALIGN_UP(l->dev.size_bytes, SECTOR_SIZE);
}

static void make_qcow2(struct rnd *r, struct made_layer *l, u16 id)
{
	bool extl2 = rnd_once(r, 3);
	u32 bits = extl2 ? rnd_between(r, 14, 17) : rnd_between(r, 9, 16);

	l->img.format = IMAGE_QCOW2;
	l->img.version = extl2 || !rnd_once(r, 4) ? 3 : 2;
	l->img.cluster_bits = bits;
	l->img.subcluster_bits = bits - (extl2 ? 5 : 0);
	l->img.subclusters = extl2 ? 32 : 1;
	l->img.l2_entry_bytes = extl2 ? 16 : 8;
	l->img.l2_bits = bits - (extl2 ? 4 : 3);
	l->img.virtual_size = draw_size(r);
	make_sources(r, l, id);
}

static void make_layer(struct rnd *r, u32 depth)
{
	struct made_layer *l = &st.made[depth];
	bool base = depth == st.nr - 1;
	u16 id = st.nr - 1 - depth;
	u32 i;

	memset(l, 0, sizeof(*l));
	l->img.dev = &l->dev;
	l->dev.path = (char *)"layer";
	l->dev.blockdev = rnd_once(r, 2);
	l->dev.size_bytes = l->dev.blockdev ? DEV_BYTES : 65536 * rnd_between(r, 8, 400) +
							  SECTOR_SIZE * rnd_below(r, 128);
	if (base && rnd_once(r, 2))
		make_raw(r, l);
	else
		make_qcow2(r, l, id);
	st.layers[depth] = (struct fold_layer){
		.img = &l->img, .layer = id, .nr_sources = l->nr_sources,
		.sources = l->sources, .writable = depth == 0 && rnd_once(r, 2),
	};
	for (i = 0; i < l->nr_sources; i++)
		l->sources[i].writable = st.layers[depth].writable;
}

static void make_stack(struct rnd *r)
{
	u32 i;

	st.nr = rnd_between(r, 1, MAX_LAYERS);
	st.start = rnd_below(r, 64) << rnd_between(r, 12, 20);
	st.len = SECTOR_SIZE * rnd_between(r, 1, 2000);
	if (rnd_once(r, 2))
		st.len = ALIGN_UP(st.len, 65536);
	for (i = 0; i < st.nr; i++)
		make_layer(r, i);
}

static void free_stack(void)
{
	u32 i, k;

	for (i = 0; i < st.nr; i++)
		for (k = 0; k < st.made[i].nr_sources; k++)
			free(st.made[i].made[k]);
}

/* ---- the oracle: one sector at a time ------------------------------------- */

/* Data of a regular file that nobody writes ends with the file. */
static struct cell cut_at_file_end(const struct fold_layer *l, struct cell c)
{
	const struct io_dev *dev = l->img->dev;

	if (c.kind == EXTENT_DATA && !dev->blockdev && !l->writable &&
	    c.host >= ALIGN_UP(dev->size_bytes, SECTOR_SIZE))
		return (struct cell){ .kind = EXTENT_ZERO };
	return c;
}

static struct cell cell_of(const struct made_layer *made, u64 guest)
{
	const struct image *img = &made->img;
	u32 i;

	for (i = 0; i < made->nr_sources; i++) {
		const struct made_source *m = made->made[i];
		u64 in = guest - m->first;
		struct cell c;

		if (guest < m->first || in >> img->cluster_bits >= m->nr)
			continue;
		c = m->cells[in >> img->subcluster_bits];
		if (c.kind == EXTENT_DATA || c.flags & EXTENT_PLACE)
			c.host += in & ((1ull << img->subcluster_bits) - 1);
		return c;
	}
	return (struct cell){ .kind = EXTENT_NONE };
}

static struct cell oracle(u64 guest, u16 *layer)
{
	u32 i;

	for (i = 0; i < st.nr; i++) {
		const struct fold_layer *l = &st.layers[i];
		struct cell c = { .kind = EXTENT_ZERO };

		*layer = l->layer;
		if (guest >= l->img->virtual_size)
			return c;
		if (l->img->format == IMAGE_RAW)
			c = (struct cell){ EXTENT_DATA, EXTENT_COPIED, guest };
		else
			c = cell_of(&st.made[i], guest);
		if (c.kind != EXTENT_NONE)
			return cut_at_file_end(l, c);
	}
	*layer = 0;
	return (struct cell){ .kind = EXTENT_NONE };
}

/* ---- comparing ------------------------------------------------------------ */

static bool has_host(u8 kind, u8 flags)
{
	return kind == EXTENT_DATA || kind == EXTENT_COMPRESSED || flags & EXTENT_PLACE;
}

/* The extent of sector @sect of the window says what the oracle says. */
static bool same(const struct extent *e, u32 sect)
{
	u16 layer;
	struct cell c = oracle(st.start + (u64)sect * SECTOR_SIZE, &layer);
	u64 host = e->host;

	if (e->kind == EXTENT_DATA || e->flags & EXTENT_PLACE)
		host += (u64)(sect - e->start) * SECTOR_SIZE;
	return e->kind == c.kind && e->layer == layer && e->flags == c.flags &&
	       (!has_host(c.kind, c.flags) || host == c.host);
}

static bool check_extents(const struct extent *extents, u32 nr)
{
	u32 end = st.len / SECTOR_SIZE;
	u32 i, sect;

	if (!nr || extents[0].start != 0)
		return false;
	for (i = 0; i < nr; i++) {
		u32 stop = i + 1 < nr ? extents[i + 1].start : end;

		if (extents[i].start >= stop)
			return false;
		for (sect = extents[i].start; sect < stop; sect++)
			if (!same(&extents[i], sect))
				return false;
	}
	return true;
}

/* Neighbours that could be one extent are one. */
static bool coalesced(const struct extent *extents, u32 nr)
{
	u32 i;

	for (i = 1; i < nr; i++) {
		const struct extent *a = &extents[i - 1], *b = &extents[i];
		u64 host = a->host;

		if (a->kind == EXTENT_DATA || a->flags & EXTENT_PLACE)
			host += (u64)(b->start - a->start) * SECTOR_SIZE;
		if (a->kind == b->kind && a->layer == b->layer && a->flags == b->flags &&
		    (!has_host(a->kind, a->flags) || host == b->host))
			return false;
	}
	return true;
}

/* A violation is reported exactly when an extent is bad, and it is one of these. */
static bool check_bad(const struct extent *extents, u32 nr, const struct fold_bad *bad)
{
	u32 i;
	u16 layer;

	for (i = 0; i < nr; i++)
		if (extents[i].kind == EXTENT_BAD)
			break;
	if (i == nr)
		return !bad->what;
	return bad->what && oracle(bad->guest, &layer).kind == EXTENT_BAD && layer == bad->layer;
}

static bool fold_case(u64 seed)
{
	struct rnd r = { seed };
	struct fold_bad bad = { .what = NULL };
	struct extent *extents = NULL;
	u32 nr = 0;
	bool good;

	make_stack(&r);
	good = !fold_extents(st.layers, st.nr, st.start, st.len, &extents, &nr, &bad) &&
	       check_extents(extents, nr) && coalesced(extents, nr) &&
	       check_bad(extents, nr, &bad);
	free(extents);
	free_stack();
	return good;
}

static void test_random_stacks(void)
{
	u64 seed = rnd_seed("fold");
	u32 i;

	for (i = 0; i < CASES; i++) {
		if (fold_case(seed + i))
			continue;
		printf("\n    case QCHAIN_SEED=%llu fails", (unsigned long long)(seed + i));
		CU_FAIL("folded extents differ from the oracle");
		return;
	}
}

/* ---- cases with names ----------------------------------------------------- */

/* A qcow2 layer of 64 KiB clusters on a block device, one table from guest 0 on. */
static void plain_layer(u32 depth, u16 id, u64 virtual_size, u64 *entries, u32 nr)
{
	struct made_layer *l = &st.made[depth];
	struct made_source *m = calloc(1, sizeof(*m));
	u32 i;

	memset(l, 0, sizeof(*l));
	CU_ASSERT_FATAL(m != NULL);
	l->dev = (struct io_dev){ .path = (char *)"plain", .blockdev = true,
				  .size_bytes = DEV_BYTES };
	l->img = (struct image){ .dev = &l->dev, .format = IMAGE_QCOW2, .version = 3,
				 .cluster_bits = 16, .subcluster_bits = 16, .subclusters = 1,
				 .l2_entry_bytes = 8, .l2_bits = 13,
				 .virtual_size = virtual_size };
	for (i = 0; i < nr; i++)
		set_entry(m, &l->img, i, entries[i], 0);
	l->made[0] = m;
	l->nr_sources = 1;
	l->sources[0] = (struct fold_source){ .img = &l->img, .table = m->table,
					      .nr_entries = nr, .layer = id };
	st.layers[depth] = (struct fold_layer){ .img = &l->img, .layer = id, .nr_sources = 1,
						.sources = l->sources };
}

static void expect_extent(const struct extent *e, u32 start, u8 kind, u16 layer, u64 host)
{
	CU_ASSERT_EQUAL(e->start, start);
	CU_ASSERT_EQUAL(e->kind, kind);
	CU_ASSERT_EQUAL(e->layer, layer);
	CU_ASSERT_EQUAL(e->host, host);
}

/* Rule D4: the short middle layer hides what the base has beyond its end. */
static void test_short_middle_layer(void)
{
	u64 nothing[4] = { 0 };
	u64 base[4] = { 0x10000, 0x20000, 0x30000, 0x40000 };
	struct extent *extents;
	u32 nr;

	st.nr = 3;
	plain_layer(0, 2, 0x40000, nothing, 4);
	plain_layer(1, 1, 0x18200, nothing, 2);
	plain_layer(2, 0, 0x40000, base, 4);
	CU_ASSERT_EQUAL_FATAL(fold_extents(st.layers, 3, 0, 0x40000, &extents, &nr, NULL), 0);
	CU_ASSERT_EQUAL_FATAL(nr, 2);
	expect_extent(&extents[0], 0, EXTENT_DATA, 0, 0x10000);
	expect_extent(&extents[1], 0x18200 / SECTOR_SIZE, EXTENT_ZERO, 1, 0);
	free(extents);
	free_stack();
}

/* Nobody maps it, down to a base that is long enough. */
static void test_nothing_mapped(void)
{
	struct extent *extents;
	u32 nr;

	CU_ASSERT_EQUAL_FATAL(fold_extents(NULL, 0, 0, 0x40000, &extents, &nr, NULL), 0);
	CU_ASSERT_EQUAL_FATAL(nr, 1);
	expect_extent(&extents[0], 0, EXTENT_NONE, 0, 0);
	free(extents);
}

/* A raw file of odd length: its last sector is data, the next is zero. */
static void test_odd_raw_base(void)
{
	u64 nothing[2] = { 0 };
	struct extent *extents;
	u32 nr;

	st.nr = 2;
	plain_layer(0, 1, 0x20000, nothing, 2);
	memset(&st.made[1], 0, sizeof(st.made[1]));
	st.made[1].dev = (struct io_dev){ .path = (char *)"raw", .size_bytes = 1000 };
	st.made[1].img = (struct image){ .dev = &st.made[1].dev, .format = IMAGE_RAW,
					 .virtual_size = 1024 };
	st.layers[1] = (struct fold_layer){ .img = &st.made[1].img };
	CU_ASSERT_EQUAL_FATAL(fold_extents(st.layers, 2, 0, 0x20000, &extents, &nr, NULL), 0);
	CU_ASSERT_EQUAL_FATAL(nr, 2);
	expect_extent(&extents[0], 0, EXTENT_DATA, 0, 0);
	expect_extent(&extents[1], 2, EXTENT_ZERO, 0, 0);
	free(extents);
	free_stack();
}

/*
 * Rule B7: data of the layer that is written must not lie on its metadata. In
 * a layer that nobody writes it is only strange.
 */
static void test_data_on_metadata(void)
{
	u64 entries[3] = { 0x50000 | QCOW2_COPIED, 0x60000 | QCOW2_COPIED,
			   0x70000 | QCOW2_COPIED };
	struct fold_bad bad = { .what = NULL };
	struct extent *extents;
	u32 nr;

	st.nr = 1;
	plain_layer(0, 4, 0x30000, entries, 3);
	CU_ASSERT_EQUAL_FATAL(overlap_build(&st.made[0].img, NULL, 0, NULL), 0);
	CU_ASSERT_EQUAL(overlap_add(&st.made[0].img, 0x60000, 0x10000), 0);
	CU_ASSERT_EQUAL_FATAL(fold_extents(st.layers, 1, 0, 0x30000, &extents, &nr, &bad), 0);
	CU_ASSERT_EQUAL(nr, 1);
	CU_ASSERT_PTR_NULL(bad.what);
	free(extents);
	st.layers[0].writable = true;
	CU_ASSERT_EQUAL_FATAL(fold_extents(st.layers, 1, 0, 0x30000, &extents, &nr, &bad), 0);
	CU_ASSERT_EQUAL_FATAL(nr, 3);
	expect_extent(&extents[1], 0x80, EXTENT_BAD, 4, 0);
	CU_ASSERT_PTR_NOT_NULL(bad.what);
	CU_ASSERT_EQUAL(bad.layer, 4);
	CU_ASSERT_EQUAL(bad.guest, 0x10000);
	CU_ASSERT_EQUAL(bad.host, 0x60000);
	free(extents);
	overlap_free(st.made[0].img.overlap);
	free_stack();
}

/* One compressed cluster is one extent with its entry, wherever the window begins. */
static void test_compressed(void)
{
	u64 entries[2];
	struct extent *extents;
	u32 nr;

	st.nr = 1;
	plain_layer(0, 0, 0x20000, entries, 0);
	entries[0] = image_compressed_entry(&st.made[0].img, 0x50123, 777);
	entries[1] = image_compressed_entry(&st.made[0].img, 0x60000, 65536);
	free_stack();
	plain_layer(0, 0, 0x20000, entries, 2);
	CU_ASSERT_EQUAL_FATAL(fold_extents(st.layers, 1, 0x8000, 0x10000, &extents, &nr, NULL),
			      0);
	CU_ASSERT_EQUAL_FATAL(nr, 2);
	expect_extent(&extents[0], 0, EXTENT_COMPRESSED, 0, entries[0] & ~QCOW2_COMPRESSED);
	expect_extent(&extents[1], 0x40, EXTENT_COMPRESSED, 0, entries[1] & ~QCOW2_COMPRESSED);
	free(extents);
	free_stack();
}

int main(void)
{
	static const struct unit_test tests[] = {
		{ "random stacks", test_random_stacks },
		{ "short middle layer", test_short_middle_layer },
		{ "nothing mapped", test_nothing_mapped },
		{ "raw base of odd length", test_odd_raw_base },
		{ "data on metadata", test_data_on_metadata },
		{ "compressed", test_compressed },
		{ NULL, NULL },
	};

	return unit_main("fold", tests);
}
