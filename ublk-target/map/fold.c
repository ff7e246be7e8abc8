// SPDX-License-Identifier: GPL-2.0-or-later
/* Folding: the L2 entries of all layers of a window become one list of extents. */
#include "map-private.h"

#include <errno.h>
#include <stdlib.h>

/*
 * From the top layer down we keep the gaps: what no layer above has mapped.
 * Each layer fills parts of the gaps with stretches and leaves smaller gaps.
 * What is left under the base reads as zero. The cost is one look at each entry
 * that lies in a gap; entries under mapped ranges are never decoded.
 */

struct gap {
	u64 start; /* guest bytes */
	u64 end;
};

struct stretch {
	struct extent e;
	u32 end; /* sectors, as e.start */
};

struct fold {
	u64 start; /* of the window, guest bytes */
	struct stretch *out;
	u32 nr_out;
	u32 room_out;
	struct gap *gaps; /* of the layer at hand */
	u32 nr_gaps;
	u32 room_gaps;
	struct gap *below; /* what it leaves */
	u32 nr_below;
	u32 room_below;
	struct fold_bad *bad;
	int error;
};

/* Room for one more element; NULL-safe, errors are kept in @f. */
static void *reserve(struct fold *f, void *array, u32 nr, u32 *room, size_t size)
{
	u32 want = *room ? *room * 2 : 64;
	void *larger;

	if (nr < *room)
		return array;
	larger = realloc(array, want * size);
	if (!larger) {
		f->error = -ENOMEM;
		return array;
	}
	*room = want;
	return larger;
}

/* Leave [start, end) to the layers below. */
static void leave(struct fold *f, u64 start, u64 end)
{
	if (f->nr_below && f->below[f->nr_below - 1].end == start) {
		f->below[f->nr_below - 1].end = end;
		return;
	}
	f->below = reserve(f, f->below, f->nr_below, &f->room_below, sizeof(*f->below));
	if (!f->error)
		f->below[f->nr_below++] = (struct gap){ start, end };
}

/* Fill [start, end) with @e, merged with the stretch before it where it goes on. */
static void fill(struct fold *f, u64 start, u64 end, struct extent e)
{
	u32 end_sect = (end - f->start) >> SECTOR_SHIFT;
	struct stretch *last = f->nr_out ? &f->out[f->nr_out - 1] : NULL;

	e.start = (start - f->start) >> SECTOR_SHIFT;
	if (last && last->end == e.start && extent_continues(&last->e, &e)) {
		last->end = end_sect;
		return;
	}
	f->out = reserve(f, f->out, f->nr_out, &f->room_out, sizeof(*f->out));
	if (!f->error)
		f->out[f->nr_out++] = (struct stretch){ e, end_sect };
}

static void fill_bad(struct fold *f, const struct fold_layer *l, u64 start, u64 end, u64 host,
		     const char *what)
{
	if (f->bad && !f->bad->what)
		*f->bad = (struct fold_bad){ l->layer, start, host, what };
	fill(f, start, end, (struct extent){ .layer = l->layer, .kind = EXTENT_BAD });
}

/*
 * Data at @host. In a read-only regular file what lies beyond its end reads as
 * zero; a file that is being written is left to the engine, because it grows.
 */
static void fill_data(struct fold *f, const struct fold_layer *l, u64 start, u64 end, u64 host,
		      u8 flags)
{
	struct extent data = { .host = host, .layer = l->layer, .kind = EXTENT_DATA,
			       .flags = flags };
	struct extent zero = { .layer = l->layer, .kind = EXTENT_ZERO };
	const struct io_dev *dev = image_data_dev(l->img);
	u64 file_end = ALIGN_UP(io_dev_bytes(dev), SECTOR_SIZE);
	u64 have = end - start;

	if (!dev->blockdev && !l->writable && host + have > file_end)
		have = host < file_end ? file_end - host : 0;
	if (have)
		fill(f, start, start + have, data);
	if (start + have < end)
		fill(f, start + have, end, zero);
}

static void fold_cluster(struct fold *f, const struct fold_layer *l, u64 start, u64 end,
			 const struct cluster_info *c, u64 entry, u64 in_sub)
{
	struct extent zero = { .layer = l->layer, .kind = EXTENT_ZERO };
	const char *what;

	switch (c->kind) {
	case CLUSTER_UNALLOCATED:
	case CLUSTER_RESERVED:
		leave(f, start, end);
		return;
	case CLUSTER_ZERO_PLACE:
		zero.flags = EXTENT_PLACE;
		zero.host = c->host + in_sub;
		__attribute__((fallthrough));
	case CLUSTER_ZERO:
		fill(f, start, end, zero);
		return;
	case CLUSTER_COMPRESSED:
		fill(f, start, end, (struct extent){ .layer = l->layer, .host = entry,
						     .kind = EXTENT_COMPRESSED });
		return;
	case CLUSTER_DATA:
		what = l->writable ? overlap_what(l->img, c->host) : NULL;
		if (what)
			fill_bad(f, l, start, end, c->host, what);
		else
			fill_data(f, l, start, end, c->host + in_sub,
				  c->copied ? EXTENT_COPIED : 0);
		return;
	default:
		fill_bad(f, l, start, end, c->host, c->bad);
	}
}

/* One gap, as far as one table reaches: entry by entry. */
static void fold_entries(struct fold *f, const struct fold_layer *l, const struct fold_source *s,
			 u64 start, u64 end)
{
	const struct image *img = l->img;
	u64 sub = 1ull << img->subcluster_bits;
	struct cluster_info c;
	u64 pos, stop;

	for (pos = start; pos < end && !f->error; pos = stop) {
		u32 index = (pos - s->first) >> img->cluster_bits;
		u64 entry = image_l2_entry(img, s->table, index);
		u64 bitmap = image_l2_bitmap(img, s->table, index);
		u32 sc = (pos >> img->subcluster_bits) & (img->subclusters - 1);

		stop = min(end, ALIGN_DOWN(pos, sub) + sub);
		image_decode(img, entry, bitmap, sc, &c);
		fold_cluster(f, l, pos, stop, &c, entry & ~(QCOW2_COPIED | QCOW2_COMPRESSED),
			     pos & (sub - 1));
	}
}

static u64 source_end(const struct fold_source *s)
{
	return s->first + ((u64)s->nr_entries << s->img->cluster_bits);
}

/* One gap through one qcow2 layer; between its tables nothing is mapped. */
static void fold_gap_qcow2(struct fold *f, const struct fold_layer *l, u64 start, u64 end)
{
	u64 pos = start;
	u32 i;

	for (i = 0; i < l->nr_sources && pos < end; i++) {
		const struct fold_source *s = &l->sources[i];

		if (source_end(s) <= pos || s->first >= end)
			continue;
		if (pos < s->first)
			leave(f, pos, s->first);
		pos = max(pos, s->first);
		fold_entries(f, l, s, pos, min(end, source_end(s)));
		pos = min(end, source_end(s));
	}
	if (pos < end)
		leave(f, pos, end);
}

static void fold_gap(struct fold *f, const struct fold_layer *l, struct gap gap)
{
	struct extent zero = { .layer = l->layer, .kind = EXTENT_ZERO };
	u64 size = l->img->virtual_size;
	u64 end = min(gap.end, max(gap.start, size));

	if (gap.start < end && l->img->format == IMAGE_RAW)
		fill_data(f, l, gap.start, end, gap.start, EXTENT_COPIED);
	else if (gap.start < end)
		fold_gap_qcow2(f, l, gap.start, end);
	if (end < gap.end) /* beyond the end of a layer: zero, and its own (rule D4) */
		fill(f, end, gap.end, zero);
}

static void fold_layer(struct fold *f, const struct fold_layer *l)
{
	struct gap *swap = f->gaps;
	u32 room = f->room_gaps;
	u32 i;

	f->nr_below = 0;
	for (i = 0; i < f->nr_gaps && !f->error; i++)
		fold_gap(f, l, f->gaps[i]);
	f->gaps = f->below;
	f->room_gaps = f->room_below;
	f->nr_gaps = f->nr_below;
	f->below = swap;
	f->room_below = room;
}

static int stretch_cmp(const void *a, const void *b)
{
	const struct stretch *x = a, *y = b;

	return x->e.start < y->e.start ? -1 : x->e.start > y->e.start;
}

/* Sort the stretches, merge neighbours, keep the extents. */
static int fold_finish(struct fold *f, struct extent **result, u32 *nr)
{
	struct extent *extents;
	u32 i, n = 0;

	qsort(f->out, f->nr_out, sizeof(*f->out), stretch_cmp);
	extents = malloc(f->nr_out * sizeof(*extents));
	if (!extents)
		return -ENOMEM;
	for (i = 0; i < f->nr_out; i++)
		if (!n || !extent_continues(&extents[n - 1], &f->out[i].e))
			extents[n++] = f->out[i].e;
	*result = extents;
	*nr = n;
	return 0;
}

int fold_extents(const struct fold_layer *layers, u32 nr_layers, u64 start, u64 len,
		 struct extent **result, u32 *nr, struct fold_bad *bad)
{
	struct fold f = { .start = start, .bad = bad };
	u32 i;
	int ret;

	leave(&f, start, start + len);
	f.gaps = f.below;
	f.room_gaps = f.room_below;
	f.nr_gaps = f.nr_below;
	f.below = NULL;
	f.room_below = 0;
	for (i = 0; i < nr_layers && f.nr_gaps && !f.error; i++)
		fold_layer(&f, &layers[i]);
	for (i = 0; i < f.nr_gaps && !f.error; i++)
		fill(&f, f.gaps[i].start, f.gaps[i].end, (struct extent){ .kind = EXTENT_NONE });
	ret = f.error ? f.error : fold_finish(&f, result, nr);
	free(f.gaps);
	free(f.below);
	free(f.out);
	return ret;
}
