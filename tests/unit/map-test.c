// SPDX-License-Identifier: GPL-2.0-or-later
/* The map against an array of sectors: install, apply, resolve, evict. */
#include "random.h"
#include "unit.h"

#include <errno.h>
#include <qchain/map.h>
#include <stdlib.h>
#include <string.h>

#define WINDOW_BITS 19u
#define WINDOW_SECT (1u << (WINDOW_BITS - SECTOR_SHIFT))
#define MAP_SECT (9 * WINDOW_SECT + 77)
#define MAX_UPDATES 400u
#define STEPS 8000u

/* What one sector is; @host of this very sector (compressed: the entry). */
struct sector {
	u64 host;
	u16 layer;
	u8 kind;
	u8 flags;
};

static struct sector model[MAP_SECT];
static struct map map;
static struct run runs[QC_MAX_REQUEST_BYTES / SECTOR_SIZE];
static struct map_update updates[MAX_UPDATES];

static void init(u64 budget_bytes)
{
	memset(model, 0, sizeof(model));
	CU_ASSERT_EQUAL_FATAL(map_init(&map, (u64)MAP_SECT * SECTOR_SIZE, WINDOW_BITS,
				       budget_bytes, NULL), 0);
}

static bool moves(u8 kind, u8 flags)
{
	return kind == EXTENT_DATA || flags & EXTENT_PLACE;
}

static bool goes_on(const struct sector *a, const struct sector *b)
{
	if (a->kind != b->kind || a->layer != b->layer || a->flags != b->flags)
		return false;
	if (moves(a->kind, a->flags))
		return b->host == a->host + SECTOR_SIZE;
	return a->kind != EXTENT_COMPRESSED || a->host == b->host;
}

static struct extent extent_of(const struct sector *s, u32 start)
{
	return (struct extent){ .host = s->host, .start = start, .layer = s->layer,
				.kind = s->kind, .flags = s->flags };
}

static u32 window_sectors(u64 index)
{
	return map_window_bytes(&map, index) / SECTOR_SIZE;
}

/* Publish window @index as the model has it; @r: cut extents here and there. */
static void install(u64 index, struct rnd *r)
{
	static struct extent extents[WINDOW_SECT];
	const struct sector *s = &model[index * WINDOW_SECT];
	u32 n = 0, i;

	for (i = 0; i < window_sectors(index); i++)
		if (!i || !goes_on(&s[i - 1], &s[i]) || (r && rnd_once(r, 50)))
			extents[n++] = extent_of(&s[i], i);
	CU_ASSERT_EQUAL_FATAL(map_install(&map, index, extents, n, window_sectors(index)), 0);
	CU_ASSERT(map_loaded(&map, index));
}

static void free_retired(void)
{
	CDS_LIST_HEAD(pieces);
	CDS_LIST_HEAD(windows);

	map_take_retired(&map, &pieces, &windows);
	map_free_retired(&pieces, &windows);
}

/* ---- checking ------------------------------------------------------------- */

static bool check_run(const struct run *run, const struct sector *s)
{
	u32 i;

	for (i = 0; i < run->len / SECTOR_SIZE; i++) {
		u64 host = run->host + (moves(run->kind, run->flags) ? i * SECTOR_SIZE : 0);

		if (run->kind != s[i].kind || run->layer != s[i].layer ||
		    run->flags != s[i].flags)
			return false;
		if ((moves(run->kind, run->flags) || run->kind == EXTENT_COMPRESSED) &&
		    host != s[i].host)
			return false;
	}
	return true;
}

/* Neighbours that one I/O could serve are one run. */
static bool merged(const struct run *a, const struct run *b)
{
	bool alike = a->kind == b->kind && a->layer == b->layer && a->flags == b->flags;

	if (a->kind == EXTENT_DATA)
		return !alike || a->host + a->len != b->host;
	return !alike || a->kind == EXTENT_COMPRESSED || a->flags & EXTENT_PLACE;
}

static bool resolves(u32 from, u32 nr)
{
	u64 first = from / WINDOW_SECT, last = (from + nr - 1) / WINDOW_SECT;
	int n = map_resolve(&map, (u64)from * SECTOR_SIZE, nr * SECTOR_SIZE, runs);
	u32 pos = 0;
	int i;

	for (; first <= last; first++)
		if (!map_loaded(&map, first))
			return n == -EAGAIN;
	for (i = 0; i < n; i++) {
		if (runs[i].offset != pos * SECTOR_SIZE || !runs[i].len ||
		    !check_run(&runs[i], &model[from + pos]))
			return false;
		if (i && !merged(&runs[i - 1], &runs[i]))
			return false;
		pos += runs[i].len / SECTOR_SIZE;
	}
	return n > 0 && pos == nr;
}

struct counted {
	u64 bytes;
	u64 extents;
	u64 windows;
};

/* The structure itself: pieces tile their window, are small and are counted. */
static bool check_window(u64 index, struct counted *c)
{
	const struct window *w = map.windows[index];
	u32 pos = 0, i, k;

	if (w->index != index)
		return false;
	for (i = 1; i < w->nr_pieces; i++) /* small neighbours are one piece */
		if (w->pieces[i - 1]->nr + w->pieces[i]->nr <= QC_MIN_PIECE_EXTENTS)
			return false;
	c->windows++;
	c->bytes += map_memory(sizeof(*w) + w->nr_pieces * (sizeof(w->pieces[0]) + sizeof(u32)));
	for (i = 0; i < w->nr_pieces; i++) {
		const struct piece *p = w->pieces[i];

		if (p->start != pos || !p->nr || p->nr > QC_MAX_PIECE_EXTENTS ||
		    p->extents[0].start != pos || p->end <= p->extents[p->nr - 1].start)
			return false;
		for (k = 1; k < p->nr; k++)
			if (p->extents[k - 1].start >= p->extents[k].start)
				return false;
		c->bytes += map_memory(sizeof(*p) + p->nr * sizeof(p->extents[0]));
		c->extents += p->nr;
		pos = p->end;
	}
	return pos == window_sectors(index);
}

static void check_map(void)
{
	struct counted c = { 0 };
	u64 i;

	for (i = 0; i < map.nr_windows; i++)
		if (map.windows[i])
			CU_ASSERT_FATAL(check_window(i, &c));
	CU_ASSERT_EQUAL_FATAL(c.bytes, map.used_bytes);
	CU_ASSERT_EQUAL_FATAL(c.extents, map.nr_extents);
	CU_ASSERT_EQUAL_FATAL(c.windows, map.nr_loaded);
	CU_ASSERT_FATAL(map.used_bytes <= map.budget_bytes || map.nr_loaded <= 1);
	for (i = 0; i < map.nr_windows; i++)
		CU_ASSERT_FATAL(resolves(i * WINDOW_SECT, window_sectors(i)));
}

/* ---- changing ------------------------------------------------------------- */

static void put(struct map_update *u, u32 from, u32 nr, struct extent e)
{
	u32 i;

	*u = (struct map_update){ .offset = (u64)from * SECTOR_SIZE,
				  .len = (u64)nr * SECTOR_SIZE, .extent = e };
	for (i = 0; i < nr; i++) {
		u64 host = e.host + (moves(e.kind, e.flags) ? (u64)i * SECTOR_SIZE : 0);

		model[from + i] = (struct sector){ host, e.layer, e.kind, e.flags };
	}
}

static struct extent draw_extent(struct rnd *r, u32 from)
{
	struct extent e = { .layer = rnd_below(r, 3), .start = rnd(r) };

	switch (rnd_below(r, 8)) {
	case 0:
		e.kind = EXTENT_ZERO;
		break;
	case 1:
		e.kind = EXTENT_ZERO;
		e.flags = EXTENT_PLACE;
		break;
	case 2:
		e.kind = EXTENT_COMPRESSED;
		break;
	case 3:
		e.kind = rnd_once(r, 2) ? EXTENT_NONE : EXTENT_BAD;
		return e;
	default:
		e.kind = EXTENT_DATA;
		e.flags = rnd_once(r, 4) ? 0 : EXTENT_COPIED;
	}
	if (moves(e.kind, e.flags) || e.kind == EXTENT_COMPRESSED)
		e.host = SECTOR_SIZE * rnd_below(r, 1ull << 40);
	if (rnd_once(r, 2) && moves(e.kind, e.flags)) /* goes on with what such updates left */
		e.host = (1ull << 30) + (u64)from * SECTOR_SIZE;
	return e;
}

/* Sorted, not overlapping; many small ones, or a few that cross windows. */
static u32 draw_updates(struct rnd *r)
{
	bool small = rnd_once(r, 2);
	u32 pos = rnd_below(r, MAP_SECT);
	u32 n = 0, most = small ? MAX_UPDATES : 6;

	while (pos < MAP_SECT && n < most) {
		u32 len = small ? rnd_between(r, 1, 3) : rnd_between(r, 1, 3 * WINDOW_SECT);

		len = min(len, MAP_SECT - pos);
		put(&updates[n++], pos, len, draw_extent(r, pos));
		pos += len + (rnd_once(r, 2) ? 0 : rnd_between(r, 1, small ? 4 : WINDOW_SECT));
		if (rnd_once(r, small ? 200 : 4))
			break;
	}
	return n;
}

static void step(struct rnd *r)
{
	u32 from = rnd_below(r, MAP_SECT);

	switch (rnd_below(r, 6)) {
	case 0:
	case 1:
		install(rnd_below(r, map.nr_windows), r);
		break;
	case 2:
	case 3:
		CU_ASSERT_EQUAL(map_apply(&map, updates, draw_updates(r)), 0);
		break;
	case 4:
		free_retired();
		break;
	default:
		CU_ASSERT_FATAL(resolves(from, rnd_between(r, 1, min(MAP_SECT - from, 2048u))));
	}
}

static void run_random(const char *what, u64 budget_bytes)
{
	struct rnd r = { rnd_seed(what) };
	u32 i;

	init(budget_bytes);
	for (i = 0; i < STEPS; i++) {
		step(&r);
		if (i % 25 == 0)
			check_map();
	}
	check_map();
	map_exit(&map);
}

static void test_random(void)
{
	run_random("map", 1ull << 40);
}

static void test_random_small_budget(void)
{
	run_random("map, small budget", 20000);
}

static void test_random_no_budget(void)
{
	run_random("map, no budget", 0);
}

/* ---- cases with names ----------------------------------------------------- */

static u32 count_retired(void)
{
	struct cds_list_head *pos;
	u32 n = 0;

	cds_list_for_each(pos, &map.retired_pieces)
		n++;
	return n;
}

/* Window @index with an extent for each sector. */
static void install_fine(u64 index)
{
	struct map_update u;
	u32 i;

	for (i = 0; i < window_sectors(index); i++)
		put(&u, index * WINDOW_SECT + i, 1,
		    (struct extent){ .kind = EXTENT_DATA, .host = (u64)i * MiB });
	install(index, NULL);
}

static void test_split(void)
{
	u32 i;

	init(1ull << 40);
	install(0, NULL);
	CU_ASSERT_EQUAL(map.nr_extents, 1);
	CU_ASSERT_EQUAL(map.windows[0]->nr_pieces, 1);
	for (i = 0; i < MAX_UPDATES; i++)
		put(&updates[i], 2 * i, 1, (struct extent){ .kind = EXTENT_DATA,
							    .host = (u64)i * MiB });
	map_apply(&map, updates, MAX_UPDATES);
	CU_ASSERT_EQUAL(map.nr_extents, 2 * MAX_UPDATES);
	CU_ASSERT(map.windows[0]->nr_pieces >= 2 * MAX_UPDATES / QC_MAX_PIECE_EXTENTS);
	CU_ASSERT_EQUAL(count_retired(), 1);
	check_map();
	map_exit(&map);
}

/* Rule C7: a batch publishes each piece that it touches once, and no other. */
static void test_piece_published_once(void)
{
	struct window *w;
	u32 i, start;

	init(1ull << 40);
	install_fine(1);
	w = map.windows[1];
	CU_ASSERT_FATAL(w->nr_pieces >= 4);
	start = WINDOW_SECT + w->pieces[1]->start;
	for (i = 0; i < 5; i++)
		put(&updates[i], start + 3 * i, 1, (struct extent){ .kind = EXTENT_ZERO });
	put(&updates[5], WINDOW_SECT + w->pieces[2]->start - 1, 2,
	    (struct extent){ .kind = EXTENT_NONE });
	map_apply(&map, updates, 6);
	CU_ASSERT_EQUAL(count_retired(), 2);
	CU_ASSERT(map.windows[1] == w);
	check_map();
	map_exit(&map);
}

/* Pieces that lost most of their extents become one, in one publish. */
static void test_join(void)
{
	struct extent zero = { .kind = EXTENT_ZERO };
	u32 i, n;

	init(1ull << 40);
	install_fine(1);
	n = map.windows[1]->nr_pieces;
	CU_ASSERT_FATAL(n >= 4);
	for (i = 0; i < n; i++) { /* two extents are left of each */
		const struct piece *p = map.windows[1]->pieces[i];

		put(&updates[i], WINDOW_SECT + p->start, p->end - p->start - 1, zero);
	}
	map_apply(&map, updates, n);
	CU_ASSERT_EQUAL(map.windows[1]->nr_pieces, 1);
	CU_ASSERT_EQUAL(map.nr_extents, 2 * n);
	CU_ASSERT_EQUAL(count_retired(), n);
	check_map();
	map_exit(&map);
}

/* A small change joins the small neighbours on both sides, and no others. */
static void test_join_neighbours(void)
{
	struct extent zero = { .kind = EXTENT_ZERO };
	u32 start, end, i;

	init(1ull << 40);
	install_fine(1);
	start = WINDOW_SECT + map.windows[1]->pieces[1]->start;
	end = WINDOW_SECT + map.windows[1]->pieces[1]->end;
	for (i = start; i + 60 < end; i++) { /* one by one: its neighbours stay large */
		put(&updates[0], i, 1, zero);
		map_apply(&map, updates, 1);
	}
	CU_ASSERT(map.windows[1]->nr_pieces >= 4);
	put(&updates[0], WINDOW_SECT, map.windows[1]->pieces[0]->end - 9, zero);
	map_apply(&map, updates, 1);
	CU_ASSERT_EQUAL(map.windows[1]->pieces[0]->end, end - WINDOW_SECT);
	check_map();
	map_exit(&map);
}

/* Eviction looks at loaded windows only: a disk may have a hundred million others. */
static void test_evict_far_apart(void)
{
	struct extent e = { .kind = EXTENT_ZERO };
	u64 nr = 1ull << 27;
	u32 i;

	CU_ASSERT_EQUAL_FATAL(map_init(&map, nr << WINDOW_BITS, WINDOW_BITS, 0, NULL), 0);
	for (i = 0; i < 20000; i++) {
		u64 index = (i * 0x9e3779b97f4a7c15ull) % nr;

		CU_ASSERT_EQUAL_FATAL(map_install(&map, index, &e, 1, WINDOW_SECT), 0);
		CU_ASSERT_EQUAL_FATAL(map.nr_loaded, 1);
		free_retired();
	}
	map_exit(&map);
}

/* What goes on where its neighbour stops joins it. */
static void test_merge(void)
{
	struct extent e = { .kind = EXTENT_DATA, .host = 8 * MiB, .layer = 1 };
	u32 i;

	init(1ull << 40);
	install(0, NULL);
	for (i = 0; i < 10; i++) {
		put(&updates[0], 100 + i, 1, e);
		e.host += SECTOR_SIZE;
		map_apply(&map, updates, 1);
		CU_ASSERT_EQUAL(map.nr_extents, 3);
	}
	e.host = 8 * MiB - SECTOR_SIZE;
	put(&updates[0], 99, 1, e);
	map_apply(&map, updates, 1);
	CU_ASSERT_EQUAL(map.nr_extents, 3);
	put(&updates[0], 0, WINDOW_SECT, (struct extent){ .kind = EXTENT_ZERO });
	map_apply(&map, updates, 1);
	CU_ASSERT_EQUAL(map.nr_extents, 1);
	check_map();
	map_exit(&map);
}

/* One update over three windows, the middle one not loaded, and the disk's end. */
static void test_across_windows(void)
{
	struct extent e = { .kind = EXTENT_DATA, .host = 1ull << 50, .layer = 2,
			    .flags = EXTENT_COPIED };

	init(1ull << 40);
	install(0, NULL);
	install(2, NULL);
	put(&updates[0], WINDOW_SECT - 1, WINDOW_SECT + 2, e);
	put(&updates[1], 2 * WINDOW_SECT + 1, 1, (struct extent){ .kind = EXTENT_ZERO });
	map_apply(&map, updates, 2);
	CU_ASSERT_FALSE(map_loaded(&map, 1));
	check_map();
	install(1, NULL);
	CU_ASSERT_EQUAL(map_resolve(&map, (WINDOW_SECT - 1) * SECTOR_SIZE,
				    (WINDOW_SECT + 2) * SECTOR_SIZE, runs), 1);
	CU_ASSERT_EQUAL(runs[0].host, 1ull << 50);
	install(9, NULL);
	put(&updates[0], MAP_SECT - 1, 1, e);
	map_apply(&map, updates, 1);
	CU_ASSERT(resolves(MAP_SECT - 3, 3));
	check_map();
	map_exit(&map);
}

static u64 bytes_of_one_window(void)
{
	u64 bytes;

	init(1ull << 40);
	install(0, NULL);
	bytes = map.used_bytes;
	map_exit(&map);
	return bytes;
}

/* The clock: who was read since the hand passed is spared, who was not goes. */
static void test_eviction(void)
{
	u64 bytes = bytes_of_one_window();
	u32 i;

	init(3 * bytes);
	for (i = 0; i < 4; i++) /* the fourth one: all were new, the hand goes round */
		install(i, NULL);
	CU_ASSERT_EQUAL(map.nr_loaded, 3);
	CU_ASSERT_FALSE(map_loaded(&map, 0));
	CU_ASSERT(resolves(WINDOW_SECT, 1));
	install(4, NULL);
	CU_ASSERT(map_loaded(&map, 1));
	CU_ASSERT_FALSE(map_loaded(&map, 2));
	CU_ASSERT(map_loaded(&map, 4));
	check_map();
	map_exit(&map);
}

/* Installed over an older one: the old one is retired, the new one shown. */
/* Windows that the range touches, also only with its last sector; no others. */
static void test_forget_range(void)
{
	u64 window = 1ull << WINDOW_BITS;

	init(1ull << 40);
	install(0, NULL);
	install(1, NULL);
	install(2, NULL);
	install(3, NULL);
	map_forget_range(&map, window + SECTOR_SIZE, 2 * window + SECTOR_SIZE);
	CU_ASSERT_TRUE(map_loaded(&map, 0));
	CU_ASSERT_FALSE(map_loaded(&map, 1));
	CU_ASSERT_FALSE(map_loaded(&map, 2));
	CU_ASSERT_TRUE(map_loaded(&map, 3));
	map_forget_range(&map, 0, window);
	CU_ASSERT_FALSE(map_loaded(&map, 0));
	CU_ASSERT_EQUAL(map.nr_loaded, 1);
	free_retired();
	map_exit(&map);
}

static void test_install_again(void)
{
	init(1ull << 40);
	install(3, NULL);
	put(&updates[0], 3 * WINDOW_SECT + 5, 7, (struct extent){ .kind = EXTENT_ZERO });
	install(3, NULL);
	CU_ASSERT_EQUAL(map.nr_loaded, 1);
	CU_ASSERT_EQUAL(count_retired(), 1);
	check_map();
	free_retired();
	CU_ASSERT_EQUAL(count_retired(), 0);
	map_exit(&map);
}

/* The search begins where extents of one size would be: all are far from it. */
static void test_uneven(void)
{
	static const u32 dense[] = { 0, WINDOW_SECT / 2, WINDOW_SECT - 200 };
	u32 k, i;

	for (k = 0; k < ARRAY_SIZE(dense); k++) {
		init(1ull << 40);
		for (i = 0; i < WINDOW_SECT; i++)
			model[i] = (struct sector){ .host = (1ull << 40) + i * SECTOR_SIZE,
						    .layer = 7, .kind = EXTENT_DATA };
		for (i = dense[k]; i < dense[k] + 200; i++)
			model[i] = (struct sector){ .host = (u64)i << 20, .layer = i & 1,
						    .kind = EXTENT_DATA };
		install(0, NULL);
		CU_ASSERT(map.nr_extents <= QC_MAX_PIECE_EXTENTS);
		for (i = 0; i < WINDOW_SECT; i++)
			CU_ASSERT_FATAL(resolves(i, 1));
		map_exit(&map);
	}
}

static void test_empty_disk(void)
{
	CU_ASSERT_EQUAL_FATAL(map_init(&map, 0, WINDOW_BITS, 0, NULL), 0);
	CU_ASSERT_EQUAL(map.nr_windows, 0);
	map_exit(&map);
}

/* What is there stays, but for the window at the end; readers find the old array or the new. */
static void test_resize(void)
{
	u64 half = (u64)MAP_SECT / 2 * SECTOR_SIZE - 3 * SECTOR_SIZE;
	struct map_array old = { NULL };
	struct window **before, *kept;
	u64 last, i;

	memset(model, 0, sizeof(model));
	CU_ASSERT_EQUAL_FATAL(map_init(&map, half, WINDOW_BITS, 1ull << 40, NULL), 0);
	last = map.nr_windows - 1;
	for (i = 0; i <= last; i++)
		install(i, NULL);
	before = map.windows;
	kept = map.windows[0];
	CU_ASSERT_EQUAL_FATAL(map_resize(&map, (u64)MAP_SECT * SECTOR_SIZE, &old), 0);
	CU_ASSERT_PTR_EQUAL(old.windows, before);
	CU_ASSERT_PTR_EQUAL(old.windows[0], kept);
	CU_ASSERT_PTR_EQUAL(map.windows[0], kept);
	CU_ASSERT(!map_loaded(&map, last));
	for (i = last; i < map.nr_windows; i++)
		install(i, NULL);
	check_map();
	free_retired();
	map_array_free(&old);
	CU_ASSERT_EQUAL(map_resize(&map, half, NULL), 0);
	CU_ASSERT_EQUAL(map.nr_windows, last + 1);
	CU_ASSERT(map_loaded(&map, last - 1));
	CU_ASSERT(!map_loaded(&map, last));
	install(last, NULL);
	check_map();
	CU_ASSERT_EQUAL(map_resize(&map, (u64)MAP_SECT * SECTOR_SIZE, NULL), 0); /* there is room */
	CU_ASSERT(!map_loaded(&map, map.nr_windows - 1));
	map_exit(&map);
}

int main(void)
{
	static const struct unit_test tests[] = {
		{ "random", test_random },
		{ "random, small budget", test_random_small_budget },
		{ "random, no budget", test_random_no_budget },
		{ "a piece becomes several", test_split },
		{ "a piece is published once", test_piece_published_once },
		{ "small pieces become one", test_join },
		{ "small neighbours join", test_join_neighbours },
		{ "neighbours merge", test_merge },
		{ "across windows", test_across_windows },
		{ "eviction", test_eviction },
		{ "eviction, windows far apart", test_evict_far_apart },
		{ "installed again", test_install_again },
		{ "a range is forgotten", test_forget_range },
		{ "extents of uneven size", test_uneven },
		{ "empty disk", test_empty_disk },
		{ "another size", test_resize },
		{ NULL, NULL },
	};

	return unit_main("map", tests);
}
