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

static u64 count_windows(u64 size_bytes, u32 window_bits)
{
	return (size_bytes + (1ull << window_bits) - 1) >> window_bits;
}

static int array_create(u64 nr, struct window ***result)
{
	void *windows = mmap(NULL, nr * sizeof(**result), PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (windows == MAP_FAILED)
		return -errno;
	*result = windows;
	return 0;
}

void map_array_free(struct map_array *array)
{
	if (array->windows)
		munmap(array->windows, array->nr * sizeof(*array->windows));
	array->windows = NULL;
}

int map_init(struct map *map, u64 size_bytes, u32 window_bits, u64 budget_bytes,
	     struct layer_table *table)
{
	*map = (struct map){
		.size_bytes = size_bytes,
		.window_bits = window_bits,
		.nr_windows = count_windows(size_bytes, window_bits),
		.room_windows = count_windows(size_bytes, window_bits),
		.table = table,
		.budget_bytes = budget_bytes,
	};
	CDS_INIT_LIST_HEAD(&map->loaded);
	CDS_INIT_LIST_HEAD(&map->retired_pieces);
	CDS_INIT_LIST_HEAD(&map->retired_windows);
	return map->nr_windows ? array_create(map->nr_windows, &map->windows) : 0;
}

/* ---- lookup: any loop ------------------------------------------------------- */

static struct window *window_load(const struct map *map, u64 index)
{
	struct window **windows = __atomic_load_n(&map->windows, __ATOMIC_ACQUIRE);

	return __atomic_load_n(&windows[index], __ATOMIC_ACQUIRE);
}

static struct piece *piece_load(struct window *w, u32 i)
{
	return __atomic_load_n(&w->pieces[i], __ATOMIC_ACQUIRE);
}

bool map_loaded(const struct map *map, u64 index)
{
	return window_load(map, index) != NULL;
}

/*
 * The bounds of a window's pieces never change in place. They stand beside each
 * other in the window, so that the search touches no piece but the right one.
 */
static u32 *window_starts(const struct window *w)
{
	return (u32 *)&w->pieces[w->nr_pieces];
}

static u32 find_piece(const struct window *w, u32 sect)
{
	const u32 *starts = window_starts(w);
	u32 lo = 0, hi = w->nr_pieces;

	while (hi - lo > 1) {
		u32 mid = (lo + hi) / 2;

		if (starts[mid] <= sect)
			lo = mid;
		else
			hi = mid;
	}
	return lo;
}

/* The last of extents [@lo, @hi) that starts at or before @sect; the first does. */
static u32 bisect_extents(const struct piece *p, u32 sect, u32 lo, u32 hi)
{
	while (hi - lo > 1) {
		u32 mid = (lo + hi) / 2;

		if (p->extents[mid].start <= sect)
			lo = mid;
		else
			hi = mid;
	}
	return lo;
}

/*
 * Extents of one piece are much of a size: the search begins where the right one
 * is if they were all alike, and widens in doubling steps. One or two cache lines
 * usually, twice a bisection at worst.
 */
static u32 find_extent(const struct piece *p, u32 sect)
{
	u32 at = (u64)(sect - p->start) * p->density >> 32;
	u32 step = 1, lo;

	if (p->extents[at].start > sect) {
		while (at > step && p->extents[at - step].start > sect) {
			at -= step;
			step *= 2;
		}
		lo = at > step ? at - step : 0;
		return bisect_extents(p, sect, lo, at);
	}
	while (at + step < p->nr && p->extents[at + step].start <= sect) {
		at += step;
		step *= 2;
	}
	return bisect_extents(p, sect, at, min(at + step, p->nr));
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

static u64 piece_size(u32 nr)
{
	return sizeof(struct piece) + nr * sizeof(struct extent);
}

static u64 piece_bytes(const struct piece *p)
{
	return map_memory(piece_size(p->nr));
}

static u64 window_size(u32 nr_pieces)
{
	return sizeof(struct window) + nr_pieces * (sizeof(struct piece *) + sizeof(u32));
}

static u64 window_bytes(const struct window *w)
{
	return map_memory(window_size(w->nr_pieces));
}

static void retire_piece(struct map *map, struct piece *p)
{
	map->used_bytes -= piece_bytes(p);
	map->retired_bytes += piece_bytes(p);
	map->nr_extents -= p->nr;
	cds_list_add_tail(&p->retired, &map->retired_pieces);
}

static void retire_window(struct map *map, struct window *w)
{
	map->used_bytes -= window_bytes(w);
	map->retired_bytes += window_bytes(w);
	cds_list_add_tail(&w->node, &map->retired_windows);
}

static struct piece *piece_create(struct map *map, const struct extent *extents, u32 nr, u32 end)
{
	struct piece *p = malloc(piece_size(nr));

	if (!p)
		return NULL;
	p->start = extents[0].start;
	p->end = end;
	p->nr = nr;
	p->density = min(((u64)nr << 32) / (end - p->start), (u64)UINT32_MAX);
	memcpy(p->extents, extents, nr * sizeof(*extents));
	map->used_bytes += piece_bytes(p);
	map->nr_extents += nr;
	return p;
}

static struct window *window_create(struct map *map, u64 index, u32 nr_pieces)
{
	struct window *w = malloc(window_size(nr_pieces));

	if (!w)
		return NULL;
	w->index = index;
	w->nr_pieces = nr_pieces;
	w->referenced = 1;
	map->used_bytes += window_bytes(w);
	return w;
}

/* @w is complete. */
static void window_publish(struct map *map, struct window *w)
{
	u32 *starts = window_starts(w);
	u32 i;

	for (i = 0; i < w->nr_pieces; i++)
		starts[i] = w->pieces[i]->start;
	__atomic_store_n(&map->windows[w->index], w, __ATOMIC_RELEASE);
}

static void window_drop(struct map *map, struct window *w)
{
	u32 i;

	__atomic_store_n(&map->windows[w->index], NULL, __ATOMIC_RELEASE);
	for (i = 0; i < w->nr_pieces; i++)
		retire_piece(map, w->pieces[i]);
	cds_list_del(&w->node);
	retire_window(map, w);
	map->nr_loaded--;
}

/* Windows that one call spares, at most: its cost is bounded, however hot all are. */
#define EVICT_SPARE 64u

/* The clock: a window that was looked at since the hand passed is spared once. */
static void map_evict(struct map *map, u64 keep)
{
	u32 spared = 0;

	while (map->used_bytes > map->budget_bytes && map->nr_loaded > 1) {
		struct window *w = cds_list_first_entry(&map->loaded, struct window, node);

		cds_list_del(&w->node);
		cds_list_add_tail(&w->node, &map->loaded);
		if (w->index == keep)
			continue;
		if (__atomic_exchange_n(&w->referenced, 0, __ATOMIC_RELAXED) &&
		    spared++ < EVICT_SPARE)
			continue;
		window_drop(map, w);
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
	struct window *w = window_create(map, index, pieces_for(nr));

	if (!w)
		return -ENOMEM;
	if (cut_pieces(map, extents, nr, end_sect, w->pieces)) {
		map->used_bytes -= window_bytes(w);
		free(w);
		return -ENOMEM;
	}
	if (map->windows[index])
		window_drop(map, map->windows[index]);
	window_publish(map, w);
	cds_list_add_tail(&w->node, &map->loaded);
	map->nr_loaded++;
	map_evict(map, index);
	return 0;
}

/* ---- changes ---------------------------------------------------------------- */

static int rebuild_room(struct rebuild *r, u32 more)
{
	struct extent *larger;
	u32 room = r->room ? r->room : 2 * QC_MAX_PIECE_EXTENTS;

	while (room < r->nr + more)
		room *= 2;
	if (room == r->room)
		return 0;
	larger = realloc(r->out, room * sizeof(*larger));
	if (!larger)
		return -ENOMEM;
	r->out = larger;
	r->room = room;
	return 0;
}

static int rebuild_add(struct rebuild *r, struct extent e, u32 start)
{
	e.start = start;
	if (r->nr && extent_continues(&r->out[r->nr - 1], &e))
		return 0;
	if (rebuild_room(r, 1))
		return -ENOMEM;
	r->out[r->nr++] = e;
	return 0;
}

/* Neighbours: none of them goes on where the one before it stops. */
static int rebuild_append(struct rebuild *r, const struct extent *extents, u32 nr)
{
	int ret = nr ? rebuild_add(r, extents[0], extents[0].start) : 0;

	if (ret || nr < 2)
		return ret;
	if (rebuild_room(r, nr - 1))
		return -ENOMEM;
	memcpy(r->out + r->nr, extents + 1, (nr - 1) * sizeof(*extents));
	r->nr += nr - 1;
	return 0;
}

static int rebuild_prepend(struct rebuild *r, const struct piece *p)
{
	u32 skip;

	if (rebuild_room(r, p->nr))
		return -ENOMEM;
	skip = r->nr && extent_continues(&p->extents[p->nr - 1], &r->out[0]);
	memmove(r->out + p->nr, r->out + skip, (r->nr - skip) * sizeof(*r->out));
	memcpy(r->out, p->extents, p->nr * sizeof(*r->out));
	r->nr += p->nr - skip;
	return 0;
}

/* The old extents of [from, to). */
static int rebuild_keep(struct rebuild *r, const struct piece *p, u32 from, u32 to)
{
	u32 first, last, start;
	struct extent e;
	int ret;

	if (from >= to)
		return 0;
	first = find_extent(p, from);
	last = find_extent(p, to - 1);
	e = p->extents[first];
	start = max(from, e.start);
	ret = rebuild_add(r, extent_skip(e, start - e.start), start);
	return ret ? ret : rebuild_append(r, p->extents + first + 1, last - first);
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

/* Pieces [@from, @to) became @nr others: the window gets a new list of pieces. */
static struct window *window_replace(struct map *map, struct window *old, u32 from, u32 to,
				     struct piece **pieces, u32 nr)
{
	struct window *w = window_create(map, old->index, old->nr_pieces - (to - from) + nr);

	if (!w)
		return NULL;
	memcpy(w->pieces, old->pieces, from * sizeof(w->pieces[0]));
	memcpy(w->pieces + from, pieces, nr * sizeof(w->pieces[0]));
	memcpy(w->pieces + from + nr, old->pieces + to,
	       (old->nr_pieces - to) * sizeof(w->pieces[0]));
	window_publish(map, w);
	cds_list_add(&w->node, &old->node);
	cds_list_del(&old->node);
	return w;
}

/*
 * struct apply - a batch of updates on its way through the pieces of one window
 * @group: pieces [@from, @to) as they will be: changed ones, and small neighbours
 * @done: pieces before it were published by this batch, or looked at
 */
struct apply {
	struct map *map;
	struct window *w;
	struct rebuild *group;
	struct rebuild *piece;
	u32 from;
	u32 to; /* == from: there is no group */
	u32 done;
};

/* Ends the group; @a->to is where its last new piece ends then. */
static int publish_group(struct apply *a)
{
	u32 n = pieces_for(a->group->nr), i;
	struct piece *one, **pieces = n == 1 ? &one : malloc(n * sizeof(*pieces));
	struct window *old = a->w;
	u32 end = old->pieces[a->to - 1]->end;
	int ret = pieces ? cut_pieces(a->map, a->group->out, a->group->nr, end, pieces) : -ENOMEM;

	if (!ret && (n > 1 || a->to - a->from > 1)) {
		a->w = window_replace(a->map, old, a->from, a->to, pieces, n);
		if (!a->w) {
			a->w = old;
			ret = drop_pieces(a->map, pieces, n);
		}
	}
	for (i = a->from; !ret && i < a->to; i++)
		retire_piece(a->map, old->pieces[i]);
	if (!ret && a->w == old)
		__atomic_store_n(&old->pieces[a->from], pieces[0], __ATOMIC_RELEASE);
	if (a->w != old)
		retire_window(a->map, old);
	if (pieces != &one)
		free(pieces);
	a->to = a->from + n;
	a->from = a->done = a->to;
	return ret;
}

static bool fits(const struct rebuild *r, u32 more)
{
	return r->nr + more <= QC_MIN_PIECE_EXTENTS;
}

/* Changed piece @at is in a->piece: it goes on with the group, or begins one. */
static int group_add(struct apply *a, u32 at)
{
	struct rebuild *swap = a->group;

	if (a->to > a->from) {
		a->to = at + 1;
		return rebuild_append(a->group, a->piece->out, a->piece->nr);
	}
	a->group = a->piece;
	a->piece = swap;
	a->from = at;
	a->to = at + 1;
	if (at == a->done || !fits(a->group, a->w->pieces[at - 1]->nr))
		return 0;
	a->from--;
	return rebuild_prepend(a->group, a->w->pieces[at - 1]);
}

static bool update_touches(const struct map_update *u, u64 start, u64 end)
{
	return u->offset < end && u->offset + u->len > start;
}

/*
 * Piece @*at: rebuild it if an update touches it; what a group before it cannot
 * take in ends that group, and @*at follows its pieces' new numbers.
 */
static int apply_piece(struct apply *a, u32 *at, const struct map_update *updates, u32 nr)
{
	u64 window_start = a->w->index << a->map->window_bits;
	const struct piece *p = a->w->pieces[*at];
	u64 start = window_start + ((u64)p->start << SECTOR_SHIFT);
	u64 end = window_start + ((u64)p->end << SECTOR_SHIFT);
	bool open = a->to > a->from;
	u32 n = 0;
	int ret;

	while (n < nr && update_touches(&updates[n], start, end))
		n++;
	if (!n && open && fits(a->group, p->nr)) {
		a->to = *at + 1;
		return rebuild_append(a->group, p->extents, p->nr);
	}
	a->piece->nr = 0;
	ret = n ? rebuild_piece(a->piece, p, window_start, updates, n) : 0;
	if (!ret && open && !(n && fits(a->group, a->piece->nr))) {
		ret = publish_group(a);
		*at = a->to;
	}
	return ret || !n ? ret : group_add(a, *at);
}

/* All updates of one window, piece by piece. */
static int apply_window(struct map *map, struct window *w, const struct map_update *updates,
			u32 nr)
{
	u64 window_start = w->index << map->window_bits;
	struct apply a = { .map = map, .w = w, .group = &map->rebuilds[0],
			   .piece = &map->rebuilds[1] };
	u32 first_sect = (max(updates[0].offset, window_start) - window_start) >> SECTOR_SHIFT;
	u32 at, first = 0;
	int ret = 0;

	for (at = find_piece(w, first_sect); at < a.w->nr_pieces && !ret; at++) {
		u64 start = window_start + ((u64)a.w->pieces[at]->start << SECTOR_SHIFT);

		while (first < nr && updates[first].offset + updates[first].len <= start)
			first++;
		if (first == nr && a.to == a.from)
			break;
		ret = apply_piece(&a, &at, updates + first, nr - first);
	}
	if (!ret && a.to > a.from)
		ret = publish_group(&a);
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
		    apply_window(map, map->windows[index], updates + first, n))
			window_drop(map, map->windows[index]);
		/* an update that reaches into the next window is looked at again */
		first += n;
		if (updates[first - 1].offset + updates[first - 1].len > end_of_window)
			first--;
		next = index + 1;
	}
	map_evict(map, map->nr_windows);
	return 0;
}

static bool window_names(const struct window *w, const bool *layers)
{
	u32 i, j;

	for (i = 0; i < w->nr_pieces; i++)
		for (j = 0; j < w->pieces[i]->nr; j++)
			if (w->pieces[i]->extents[j].kind != EXTENT_NONE &&
			    layers[w->pieces[i]->extents[j].layer])
				return true;
	return false;
}

void map_forget(struct map *map, const bool *layers)
{
	struct window *w, *tmp;

	cds_list_for_each_entry_safe(w, tmp, &map->loaded, node)
		if (window_names(w, layers))
			window_drop(map, w);
}

void map_forget_range(struct map *map, u64 start, u64 end)
{
	u64 index, last = map_window_of(map, end - 1);

	for (index = map_window_of(map, start); index <= last; index++)
		if (map->windows[index])
			window_drop(map, map->windows[index]);
}

void map_take_retired(struct map *map, struct cds_list_head *pieces,
		      struct cds_list_head *windows)
{
	cds_list_splice(&map->retired_pieces, pieces);
	cds_list_splice(&map->retired_windows, windows);
	CDS_INIT_LIST_HEAD(&map->retired_pieces);
	CDS_INIT_LIST_HEAD(&map->retired_windows);
	map->retired_bytes = 0;
}

void map_free_retired(struct cds_list_head *pieces, struct cds_list_head *windows)
{
	struct piece *p, *ptmp;
	struct window *w, *wtmp;

	cds_list_for_each_entry_safe(p, ptmp, pieces, retired)
		free(p);
	cds_list_for_each_entry_safe(w, wtmp, windows, node)
		free(w);
	CDS_INIT_LIST_HEAD(pieces);
	CDS_INIT_LIST_HEAD(windows);
}

/* ---- another size ----------------------------------------------------------- */

/* The same windows in an array of @nr; readers find either. */
static int array_replace(struct map *map, u64 nr, struct map_array *old)
{
	struct window **windows = NULL;
	struct window *w;
	int ret = array_create(nr, &windows);

	if (ret)
		return ret;
	cds_list_for_each_entry(w, &map->loaded, node)
		windows[w->index] = w;
	*old = (struct map_array){ map->windows, map->room_windows };
	__atomic_store_n(&map->windows, windows, __ATOMIC_RELEASE);
	map->room_windows = nr;
	return 0;
}

int map_resize(struct map *map, u64 size_bytes, struct map_array *old)
{
	u64 nr = count_windows(size_bytes, map->window_bits);
	u64 first = map_window_of(map, min(size_bytes, map->size_bytes));
	struct window *w, *tmp;
	int ret = nr > map->room_windows ? array_replace(map, nr, old) : 0;

	if (ret)
		return ret;
	cds_list_for_each_entry_safe(w, tmp, &map->loaded, node)
		if (w->index >= first)
			window_drop(map, w);
	map->size_bytes = size_bytes;
	map->nr_windows = nr;
	return 0;
}

void map_exit(struct map *map)
{
	free(map->rebuilds[0].out);
	free(map->rebuilds[1].out);
	while (map->nr_loaded)
		window_drop(map, cds_list_first_entry(&map->loaded, struct window, node));
	map_free_retired(&map->retired_pieces, &map->retired_windows);
	map_array_free(&(struct map_array){ map->windows, map->room_windows });
}
