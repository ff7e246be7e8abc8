/* SPDX-License-Identifier: GPL-2.0-or-later OR MIT */
/* The map: where every guest byte of the chain lives, whatever the depth. */
#ifndef QCHAIN_MAP_H
#define QCHAIN_MAP_H

#include <assert.h>

#include <qchain/image.h>
#include <qchain/limits.h>
#include <qchain/loop.h>
#include <qchain/types.h>
#include <urcu/list.h>

/*
 * The guest's address space is cut into windows, the unit of loading (folding)
 * and eviction; a window's content into pieces of at most QC_MAX_PIECE_EXTENTS,
 * the unit of publishing (rule C7). Windows and pieces are immutable once
 * published, except for the pointer of a piece in its window.
 *
 * Writer: the metadata thread alone (rule C1). Readers: any attached loop,
 * without a lock; what they saw may be used until their loop takes its next
 * message. Old memory is freed when every loop was quiescent.
 */

enum extent_kind {
	EXTENT_NONE, /* no layer maps it: zeroes */
	EXTENT_DATA,
	EXTENT_ZERO, /* a layer says zero, or ends before it */
	EXTENT_COMPRESSED, /* host: the L2 entry without flags */
	EXTENT_BAD, /* corrupt: -EIO */
};

#define EXTENT_COPIED 1u /* refcount 1: may be written in place in its layer */
#define EXTENT_PLACE 2u /* zero, but space is reserved for it */

/* Tiles its piece: ends where the next one starts. */
struct extent {
	u64 host; /* byte offset in the layer's container */
	u32 start; /* 512-byte sectors from the start of the window */
	u16 layer; /* id in the layer table */
	u8 kind; /* enum extent_kind */
	u8 flags;
};

static_assert(sizeof(struct extent) == 16, "an extent is 16 bytes (rule C7)");

struct piece {
	struct cds_list_head retired;
	u32 start; /* sectors from the start of the window */
	u32 end;
	u32 nr;
	u32 density; /* extents per 2^32 sectors: where a search begins */
	struct extent extents[];
};

struct window {
	struct cds_list_head node; /* metadata thread: loaded, then retired */
	u64 index;
	u32 nr_pieces;
	u8 referenced; /* any loop, relaxed: read since the clock's hand passed */
	/* behind them as many u32: where each of them starts */
	struct piece *pieces[];
};

/* What an allocation of @bytes takes, the allocator's own share included (rule C8). */
static inline u64 map_memory(u64 bytes)
{
	return ALIGN_UP(bytes + sizeof(size_t), 2 * sizeof(size_t));
}

/* A layer as the map names it. Ids are stable for the run (rule C1). */
struct layer {
	struct image *img;
	struct io_dev *data_dev; /* the image's; here it spares each request a look at @img */
	struct writer *writer; /* the target's, metadata thread only; NULL: nobody writes it */
	char node_name[QC_MAX_NODE_NAME + 1];
	char *path;
	bool corrupt; /* metadata thread: reported already */
	bool merging; /* metadata thread: a commit writes, or gives up, what it is */
};

static inline struct io_dev *layer_dev(const struct layer *layer)
{
	return layer->data_dev ? layer->data_dev : image_data_dev(layer->img);
}

/*
 * struct layer_table - one pointer, loaded for each request after it was received
 * (rule C3). By depth, [0] is the active layer.
 *
 * Immutable once published but for @read_only, @flush, @receives and the two ends
 * behind it, which are atomic.
 * Freed after grace, when the I/O that was issued under it has ended, too.
 */
struct layer_table {
	u32 nr;
	u32 nr_ids; /* an extent whose layer is not below it is newer than the table */
	u16 write_layer; /* id */
	u16 receives; /* id: of the layer that the active one is committed into */
	bool read_only;
	/*
	 * While that goes on (rule C4), guest offsets, atomic: what lies before
	 * @handed_end is written to @receives, what lies from there on before
	 * @fence_end is not written now. @handed_end goes up to @fence_end, or both
	 * go back to 0.
	 */
	u64 handed_end;
	u64 fence_end;
	u16 *order; /* ids by depth */
	struct layer **by_id; /* NULL: merged away; only an EXTENT_NONE may still say it */
	u16 *depth_of; /* by id */
	struct io_dev *flush[QC_MAX_FLUSH]; /* what a FLUSH makes durable; NULL: none */
};

/* Any thread that keeps @table. */
static inline bool layer_table_is_read_only(const struct layer_table *table)
{
	return __atomic_load_n(&table->read_only, __ATOMIC_RELAXED);
}

/* The extents of one piece, or of several that become one, with updates laid over. */
struct rebuild {
	struct extent *out;
	u32 nr;
	u32 room;
};

struct map {
	/* set once */
	u32 window_bits;
	struct window **windows; /* published */
	struct layer_table *table; /* published */
	/* metadata thread only */
	u64 size_bytes;
	u64 nr_windows; /* of @size_bytes */
	u64 room_windows; /* of the array */
	u64 budget_bytes;
	u64 used_bytes;
	struct cds_list_head loaded; /* struct window: the clock's hand is at the first */
	u64 nr_loaded;
	u64 nr_extents;
	struct cds_list_head retired_pieces;
	struct cds_list_head retired_windows;
	u64 retired_bytes; /* memory of both, which does not count as used any more */
	struct rebuild rebuilds[2]; /* memory of map_apply(), kept: a window's extents at most */
};

/* One stretch of a request, as map_resolve() found it. */
struct run {
	u64 host;
	u32 len; /* bytes */
	u32 offset; /* in the request */
	u16 layer;
	u8 kind;
	u8 flags;
};

int map_init(struct map *map, u64 size_bytes, u32 window_bits, u64 budget_bytes,
	     struct layer_table *table);
void map_exit(struct map *map);

/*
 * map_resolve - the runs of [@offset, @offset + @len), adjacent ones merged
 * Any attached loop; no lock, no allocation. @runs has room for len / 512.
 * Returns their number, or -EAGAIN: a window is not loaded.
 */
int map_resolve(const struct map *map, u64 offset, u32 len, struct run *runs);

static inline u64 map_window_of(const struct map *map, u64 offset)
{
	return offset >> map->window_bits;
}

/* May windows be loaded that nobody waits for? Not into the last quarter of the budget. */
static inline bool map_has_room(const struct map *map)
{
	return map->used_bytes < map->budget_bytes / 4 * 3;
}

static inline u64 map_window_bytes(const struct map *map, u64 index)
{
	u64 start = index << map->window_bits;

	return min(map->size_bytes - start, 1ull << map->window_bits);
}

bool map_loaded(const struct map *map, u64 index);

/* ---- metadata thread -------------------------------------------------------- */

/*
 * map_install - publish window @index with @extents (sorted, tiling, from
 * sector 0 to @end_sect); evicts others to keep the budget, never @index.
 */
int map_install(struct map *map, u64 index, const struct extent *extents, u32 nr,
		u32 end_sect);

/* A changed range, in guest bytes, 512-aligned. */
struct map_update {
	u64 offset;
	u64 len;
	struct extent extent; /* host is that of @offset; start is ignored */
};

/*
 * map_apply - publish changed ranges: sorted, not overlapping. Windows that are
 * not loaded are skipped (the next fold sees the change). Each piece is
 * published once; small neighbours of a changed piece join it, so that a window
 * never has more pieces than twice its extents / QC_MIN_PIECE_EXTENTS, and one.
 */
int map_apply(struct map *map, const struct map_update *updates, u32 nr);

/* Room for windows that a map has had; readers may still use it. */
struct map_array {
	struct window **windows; /* NULL: none */
	u64 nr;
};

/*
 * map_resize - the map is @size_bytes long from now on; windows that reach beyond the
 * smaller of both sizes are dropped. -errno: nothing has changed.
 * @old: empty; what it holds then is to be freed when every loop was quiescent. A
 *	map that gets shorter needs none.
 */
int map_resize(struct map *map, u64 size_bytes, struct map_array *old);
void map_array_free(struct map_array *array);

/* Drop every window with an extent of a layer whose id is set in @layers. */
void map_forget(struct map *map, const bool *layers);
/* Drop every window of [@start, @end). */
void map_forget_range(struct map *map, u64 start, u64 end);

/* Move what was replaced since the last call to @pieces / @windows. */
void map_take_retired(struct map *map, struct cds_list_head *pieces,
		      struct cds_list_head *windows);
void map_free_retired(struct cds_list_head *pieces, struct cds_list_head *windows);

/* ---- grace (rule C2) --------------------------------------------------------- */

/*
 * struct grace_waiter - both on the metadata loop
 * @quiescent: memory that was unpublished before grace_wait() may be freed
 * @drained: I/O that was issued before grace_wait() has ended; may be NULL
 */
struct grace_waiter {
	struct cds_list_head node;
	void (*quiescent)(struct grace_waiter *waiter);
	void (*drained)(struct grace_waiter *waiter);
};

struct grace_loop; /* one per attached loop */

struct grace {
	struct loop *home; /* the metadata loop; it takes part, too */
	struct cds_list_head loops;
	struct cds_list_head next; /* waiters of the round after this one */
	struct cds_list_head current;
	u32 unquiet; /* loops that have not answered */
	u32 undrained;
	u64 since_ns; /* when the round began */
	bool running;
};

void grace_init(struct grace *grace, struct loop *home);
/* On the metadata loop. Removing needs a loop without I/O in flight. */
int grace_add_loop(struct grace *grace, struct loop *loop);
void grace_remove_loop(struct grace *grace, struct loop *loop);
void grace_wait(struct grace *grace, struct grace_waiter *waiter);
/* Call @visit for each loop whose I/O of the older epoch has not ended. */
void grace_owing(const struct grace *grace, void (*visit)(const struct loop *loop, void *arg),
		 void *arg);

/* ---- folding ------------------------------------------------------------------ */

/*
 * struct fold_source - the L2 entries of one table of one layer in a window
 * @table: big-endian, first entry is that of guest offset @first
 */
struct fold_source {
	const struct image *img;
	const void *table;
	u64 first;
	u32 nr_entries;
	u16 layer;
	bool writable; /* places are checked with image_place_check (rule B7) */
};

struct fold_layer {
	const struct image *img;
	u16 layer;
	bool writable;
	u32 nr_sources; /* sorted by first */
	const struct fold_source *sources;
};

/*
 * fold_extents - the extents of [@start, @start + @len) from layers top to bottom
 * A pure function: no I/O. *@result is malloc'ed, sorted, tiling, coalesced.
 * @bad: first violation found, for the event; may be NULL.
 */
struct fold_bad {
	u16 layer;
	u64 guest;
	u64 host;
	const char *what; /* NULL: none */
};

int fold_extents(const struct fold_layer *layers, u32 nr_layers, u64 start, u64 len,
		 struct extent **result, u32 *nr, struct fold_bad *bad);

#endif
