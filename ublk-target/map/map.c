// SPDX-License-Identifier: GPL-2.0-or-later
/* Windows and pieces: looking up, publishing, evicting. */
#include "map-private.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/*
 * windows[] is one large mapping that the kernel fills on demand: 8 bytes per
 * window, 16 MiB of address space for 64 TiB in windows of 32 MiB.
 */

int map_init(struct map *map, u64 size_bytes, u32 window_bits, u64 budget_bytes,
	     struct layer_table *table)
{
	void *windows;

	*map = (struct map){
		.size_bytes = size_bytes,
		.window_bits = window_bits,
		.nr_windows = (size_bytes + (1ull << window_bits) - 1) >> window_bits,
		.table = table,
		.budget_bytes = budget_bytes,
	};
	CDS_INIT_LIST_HEAD(&map->retired_pieces);
	CDS_INIT_LIST_HEAD(&map->retired_windows);
	if (!map->nr_windows)
		return 0;
	windows = mmap(NULL, map->nr_windows * sizeof(*map->windows), PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (windows == MAP_FAILED)
		return -errno;
	map->windows = windows;
	return 0;
}

/* ---- lookup: any loop ------------------------------------------------------- */

static struct window *window_load(const struct map *map, u64 index)
{
	return __atomic_load_n(&map->windows[index], __ATOMIC_ACQUIRE);
}

static struct piece *piece_load(struct window *w, u32 i)
{
	return __atomic_load_n(&w->pieces[i], __ATOMIC_ACQUIRE);
}

bool map_loaded(const struct map *map, u64 index)
{
	return window_load(map, index) != NULL;
}

/* Pieces never change their bounds in place, so @start may be read of any. */
static u32 find_piece(struct window *w, u32 sect)
{
	u32 lo = 0, hi = w->nr_pieces;

	while (hi - lo > 1) {
		u32 mid = (lo + hi) / 2;

		if (piece_load(w, mid)->start <= sect)
			lo = mid;
		else
			hi = mid;
	}
	return lo;
}

static u32 find_extent(const struct piece *p, u32 sect)
{
	u32 lo = 0, hi = p->nr;

	while (hi - lo > 1) {
		u32 mid = (lo + hi) / 2;

		if (p->extents[mid].start <= sect)
			lo = mid;
		else
			hi = mid;
	}
	return lo;
}

static u32 extent_end(const struct piece *p, u32 i)
{
	return i + 1 < p->nr ? p->extents[i + 1].start : p->end;
}

struct resolve {
	struct run *runs;
	u32 nr;
	u32 done; /* bytes of the request */
};

static void add_run(struct resolve *r, struct extent e, u32 len)
{
	struct run *last = r->nr ? &r->runs[r->nr - 1] : NULL;

	if (last && last->kind == e.kind && last->layer == e.layer && last->flags == e.flags &&
	    (e.kind != EXTENT_DATA || last->host + last->len == e.host) &&
	    e.kind != EXTENT_COMPRESSED && !(e.flags & EXTENT_PLACE)) {
		last->len += len;
	} else {
		r->runs[r->nr++] = (struct run){
			.host = e.host, .len = len, .offset = r->done,
			.layer = e.layer, .kind = e.kind, .flags = e.flags,
		};
	}
	r->done += len;
}

/* Runs of sectors [sect, end) of one window. */
static void resolve_window(struct window *w, u32 sect, u32 end, struct resolve *r)
{
	u32 pi = find_piece(w, sect);

	while (sect < end) {
		struct piece *p = piece_load(w, pi);
		u32 i;

		for (i = find_extent(p, sect); i < p->nr && sect < end; i++) {
			u32 stop = min(end, extent_end(p, i));

			add_run(r, extent_skip(p->extents[i], sect - p->extents[i].start),
				(stop - sect) << SECTOR_SHIFT);
			sect = stop;
		}
		pi++;
	}
}

int map_resolve(const struct map *map, u64 offset, u32 len, struct run *runs)
{
	struct resolve r = { .runs = runs };
	u64 mask = (1ull << map->window_bits) - 1;

	while (r.done < len) {
		u64 pos = offset + r.done;
		struct window *w = window_load(map, pos >> map->window_bits);
		u64 end = min(offset + len, (pos | mask) + 1);

		if (!w)
			return -EAGAIN;
		if (!__atomic_load_n(&w->referenced, __ATOMIC_RELAXED))
			__atomic_store_n(&w->referenced, 1, __ATOMIC_RELAXED);
		resolve_window(w, (pos & mask) >> SECTOR_SHIFT,
			       ((end - 1) & mask) / SECTOR_SIZE + 1, &r);
	}
	return r.nr;
}

/* ---- memory: metadata thread -------------------------------------------------- */

static u64 piece_bytes(const struct piece *p)
{
	return sizeof(*p) + p->nr * sizeof(p->extents[0]);
}

static u64 window_bytes(const struct window *w)
{
	return sizeof(*w) + w->nr_pieces * sizeof(w->pieces[0]);
}

static void retire_piece(struct map *map, struct piece *p)
{
	map->used_bytes -= piece_bytes(p);
	map->nr_extents -= p->nr;
	cds_list_add_tail(&p->retired, &map->retired_pieces);
}

static void retire_window(struct map *map, struct window *w)
{
	map->used_bytes -= window_bytes(w);
	cds_list_add_tail(&w->retired, &map->retired_windows);
}

static struct piece *piece_create(struct map *map, const struct extent *extents, u32 nr, u32 end)
{
	struct piece *p = malloc(sizeof(*p) + nr * sizeof(*extents));

	if (!p)
		return NULL;
	p->start = extents[0].start;
	p->end = end;
	p->nr = nr;
	memcpy(p->extents, extents, nr * sizeof(*extents));
	map->used_bytes += piece_bytes(p);
	map->nr_extents += nr;
	return p;
}

static struct window *window_create(struct map *map, u32 nr_pieces)
{
	struct window *w = malloc(sizeof(*w) + nr_pieces * sizeof(w->pieces[0]));

	if (!w)
		return NULL;
	w->nr_pieces = nr_pieces;
	w->referenced = 1;
	map->used_bytes += window_bytes(w);
	return w;
}

static void window_drop(struct map *map, u64 index)
{
	struct window *w = map->windows[index];
	u32 i;

	__atomic_store_n(&map->windows[index], NULL, __ATOMIC_RELEASE);
	for (i = 0; i < w->nr_pieces; i++)
		retire_piece(map, w->pieces[i]);
	retire_window(map, w);
	map->nr_loaded--;
}

/* The clock: a window that was looked at since the hand passed is spared once. */
static void map_evict(struct map *map, u64 keep)
{
	u64 steps = 2 * map->nr_windows;

	while (map->used_bytes > map->budget_bytes && map->nr_loaded > 1 && steps--) {
		u64 i = map->clock_hand;
		struct window *w = map->windows[i];

		map->clock_hand = (i + 1) % map->nr_windows;
		if (!w || i == keep)
			continue;
		if (__atomic_exchange_n(&w->referenced, 0, __ATOMIC_RELAXED))
			continue;
		window_drop(map, i);
	}
}

/* Pieces are filled to three quarters, so that small changes do not split them. */
#define PIECE_FILL (QC_MAX_PIECE_EXTENTS * 3 / 4)

static u32 pieces_for(u32 nr)
{
	return nr <= QC_MAX_PIECE_EXTENTS ? 1 : DIV_ROUND_UP(nr, PIECE_FILL);
}

/* Pieces that nobody has seen. */
static int drop_pieces(struct map *map, struct piece **pieces, u32 nr)
{
	while (nr--) {
		map->used_bytes -= piece_bytes(pieces[nr]);
		map->nr_extents -= pieces[nr]->nr;
		free(pieces[nr]);
	}
	return -ENOMEM;
}

/* Cut @extents into pieces[0..pieces_for(nr)); undone on failure. */
static int cut_pieces(struct map *map, const struct extent *extents, u32 nr, u32 end_sect,
		      struct piece **pieces)
{
	u32 n = pieces_for(nr);
	u32 i, from = 0;

	for (i = 0; i < n; i++) {
		u32 take = (nr - from) / (n - i);
		u32 end = from + take < nr ? extents[from + take].start : end_sect;

		pieces[i] = piece_create(map, extents + from, take, end);
		if (!pieces[i])
			goto err_free;
		from += take;
	}
	return 0;

err_free:
	return drop_pieces(map, pieces, i);
}

int map_install(struct map *map, u64 index, const struct extent *extents, u32 nr, u32 end_sect)
{
	struct window *w = window_create(map, pieces_for(nr));

	if (!w)
		return -ENOMEM;
	if (cut_pieces(map, extents, nr, end_sect, w->pieces)) {
		map->used_bytes -= window_bytes(w);
		free(w);
		return -ENOMEM;
	}
	if (map->windows[index])
		window_drop(map, index);
	__atomic_store_n(&map->windows[index], w, __ATOMIC_RELEASE);
	map->nr_loaded++;
	map_evict(map, index);
	return 0;
}

/* ---- changes ---------------------------------------------------------------- */

/* The extents of one piece with updates laid over it. */
struct rebuild {
	struct extent *out;
	u32 nr;
	u32 room;
};

static int rebuild_add(struct rebuild *r, struct extent e, u32 start)
{
	struct extent *larger;

	e.start = start;
	if (r->nr && extent_continues(&r->out[r->nr - 1], &e))
		return 0;
	if (r->nr == r->room) {
		r->room = r->room ? r->room * 2 : 2 * QC_MAX_PIECE_EXTENTS;
		larger = realloc(r->out, r->room * sizeof(e));
		if (!larger)
			return -ENOMEM;
		r->out = larger;
	}
	r->out[r->nr++] = e;
	return 0;
}

/* The old extents of [from, to). */
static int rebuild_keep(struct rebuild *r, const struct piece *p, u32 from, u32 to)
{
	u32 i;
	int ret = 0;

	if (from >= to)
		return 0;
	for (i = find_extent(p, from); i < p->nr && p->extents[i].start < to && !ret; i++) {
		struct extent e = p->extents[i];
		u32 start = max(from, e.start);

		ret = rebuild_add(r, extent_skip(e, start - e.start), start);
	}
	return ret;
}

static int rebuild_piece(struct rebuild *r, const struct piece *p, u64 window_start,
			 const struct map_update *updates, u32 nr)
{
	u32 pos = p->start;
	u32 i;
	int ret = 0;

	for (i = 0; i < nr && !ret; i++) {
		u64 first = max(updates[i].offset, window_start);
		u64 last = updates[i].offset + updates[i].len - window_start;
		u32 start = max(p->start, (u32)((first - window_start) >> SECTOR_SHIFT));
		u32 end = min((u64)p->end, last >> SECTOR_SHIFT);
		u64 skip = window_start + ((u64)start << SECTOR_SHIFT) - updates[i].offset;

		ret = rebuild_keep(r, p, pos, start);
		if (!ret)
			ret = rebuild_add(r, extent_skip(updates[i].extent, skip >> SECTOR_SHIFT),
					  start);
		pos = end;
	}
	return ret ? ret : rebuild_keep(r, p, pos, p->end);
}

/* One piece became several: the window gets a new list of pieces. */
static int window_replace(struct map *map, u64 index, u32 at, struct piece **pieces, u32 nr)
{
	struct window *old = map->windows[index];
	struct window *w = window_create(map, old->nr_pieces - 1 + nr);

	if (!w)
		return -ENOMEM;
	memcpy(w->pieces, old->pieces, at * sizeof(w->pieces[0]));
	memcpy(w->pieces + at, pieces, nr * sizeof(w->pieces[0]));
	memcpy(w->pieces + at + nr, old->pieces + at + 1,
	       (old->nr_pieces - at - 1) * sizeof(w->pieces[0]));
	__atomic_store_n(&map->windows[index], w, __ATOMIC_RELEASE);
	retire_window(map, old);
	return 0;
}

static int publish_piece(struct map *map, u64 index, u32 at, const struct rebuild *r)
{
	struct window *w = map->windows[index];
	struct piece *old = w->pieces[at];
	u32 n = pieces_for(r->nr);
	struct piece **pieces = malloc(n * sizeof(*pieces));
	int ret = pieces ? cut_pieces(map, r->out, r->nr, old->end, pieces) : -ENOMEM;

	if (!ret && n == 1)
		__atomic_store_n(&w->pieces[at], pieces[0], __ATOMIC_RELEASE);
	else if (!ret && window_replace(map, index, at, pieces, n))
		ret = drop_pieces(map, pieces, n);
	if (!ret)
		retire_piece(map, old);
	free(pieces);
	return ret;
}

static bool update_touches(const struct map_update *u, u64 start, u64 end)
{
	return u->offset < end && u->offset + u->len > start;
}

/* All updates of one window, from @updates[0]; piece by piece, from the back. */
static int apply_window(struct map *map, u64 index, const struct map_update *updates, u32 nr)
{
	u64 window_start = index << map->window_bits;
	struct rebuild r = { 0 };
	u32 at = map->windows[index]->nr_pieces;
	int ret = 0;

	while (at-- && !ret) {
		struct piece *p = map->windows[index]->pieces[at];
		u64 start = window_start + ((u64)p->start << SECTOR_SHIFT);
		u64 end = window_start + ((u64)p->end << SECTOR_SHIFT);
		u32 first = 0, n = 0;

		while (first < nr && !update_touches(&updates[first], start, end))
			first++;
		while (first + n < nr && update_touches(&updates[first + n], start, end))
			n++;
		if (!n)
			continue;
		r.nr = 0;
		ret = rebuild_piece(&r, p, window_start, updates + first, n);
		if (!ret)
			ret = publish_piece(map, index, at, &r);
	}
	free(r.out);
	return ret;
}

/*
 * Out of memory must not leave an old mapping in place: the window is dropped,
 * its next reader folds it anew.
 */
int map_apply(struct map *map, const struct map_update *updates, u32 nr)
{
	u64 index, next = 0;
	u32 first = 0;

	while (first < nr) {
		u64 end_of_window;
		u32 n = 0;

		index = max(next, map_window_of(map, updates[first].offset));
		end_of_window = (index + 1) << map->window_bits;
		while (first + n < nr && updates[first + n].offset < end_of_window)
			n++;
		if (index < map->nr_windows && map->windows[index] &&
		    apply_window(map, index, updates + first, n))
			window_drop(map, index);
		/* an update that reaches into the next window is looked at again */
		first += n;
		if (updates[first - 1].offset + updates[first - 1].len > end_of_window)
			first--;
		next = index + 1;
	}
	map_evict(map, map->nr_windows);
	return 0;
}

void map_take_retired(struct map *map, struct cds_list_head *pieces,
		      struct cds_list_head *windows)
{
	cds_list_splice(&map->retired_pieces, pieces);
	cds_list_splice(&map->retired_windows, windows);
	CDS_INIT_LIST_HEAD(&map->retired_pieces);
	CDS_INIT_LIST_HEAD(&map->retired_windows);
}

void map_free_retired(struct cds_list_head *pieces, struct cds_list_head *windows)
{
	struct piece *p, *ptmp;
	struct window *w, *wtmp;

	cds_list_for_each_entry_safe(p, ptmp, pieces, retired)
		free(p);
	cds_list_for_each_entry_safe(w, wtmp, windows, retired)
		free(w);
	CDS_INIT_LIST_HEAD(pieces);
	CDS_INIT_LIST_HEAD(windows);
}

void map_exit(struct map *map)
{
	u64 i;

	for (i = 0; i < map->nr_windows; i++)
		if (map->windows[i])
			window_drop(map, i);
	map_free_retired(&map->retired_pieces, &map->retired_windows);
	if (map->windows)
		munmap(map->windows, map->nr_windows * sizeof(*map->windows));
}
