// SPDX-License-Identifier: GPL-2.0-or-later
/* The leak scan, step by step: walk the tables, flush, sweep the refcounts. */
#include <qchain/leaks.h>
#include <qchain/mutant.h>
#include <stdlib.h>

#include "qcow2-refbits.h"
#include "qcow2.h"

/*
 * A window of clusters at a time, the row of stages below. A stage is called
 * until it says STAGE_NEXT; it finds its own place in struct leaks. Tables are
 * read from the disk, not through the cache, which is the guest's: what is
 * newer in the cache names only clusters that are busy.
 */

/* Beside enum leaks_step. */
#define STAGE_NEXT 16
/* As many entries of 0 of an L1 table are passed in one step. */
#define LEAKS_L1_ENTRIES 4096u
/* A count that stands for "many": never judged. */
#define COUNT_MANY 255u

/* A piece of a table in memory. */
struct piece {
	u8 *data;
	u64 offset;
	u32 bytes; /* 0: none */
};

struct leaks {
	/* set once */
	struct image *img;
	struct refcounts *rc;
	u64 nr_clusters; /* to judge, as it was when the scan began */
	u32 window;
	struct busy busy;
	struct piece upper; /* of an L1 or bitmap table */
	struct piece lower; /* of an L2 table or refcount block */
	u8 *counts; /* of the window */

	/* the place */
	u32 stage;
	u64 first; /* cluster of the window */
	u64 end;
	u32 source; /* L1 table: 0 is the active one, then the snapshots'; bitmap */
	u32 index; /* its entry */
	u32 pos; /* bytes of the L2 table that were counted */
	u64 cluster; /* of the sweep */
	bool flushed;

	struct leaks_result result;
};

/* ---- counting --------------------------------------------------------------- */

static int fault(struct leaks *l, u64 host, const char *what)
{
	l->result.fault_host = host;
	l->result.fault = what;
	return -EUCLEAN;
}

static void count(struct leaks *l, u64 host, u64 bytes)
{
	u64 c = host >> l->img->cluster_bits;
	u64 end = ((host + bytes - 1) >> l->img->cluster_bits) + 1;

	end = min(end, l->end);
	for (c = max(c, l->first); bytes && c < end; c++)
		l->counts[c - l->first] += l->counts[c - l->first] < COUNT_MANY;
}

static int count_cluster(struct leaks *l, u64 host)
{
	if (!IS_ALIGNED(host, image_cluster_bytes(l->img)))
		return fault(l, host, "cluster offset not aligned");
	if (host)
		count(l, host, image_cluster_bytes(l->img));
	return 0;
}

static int count_entry(struct leaks *l, u64 entry)
{
	struct cluster_info c;

	if (!(entry & QCOW2_COMPRESSED))
		return count_cluster(l, entry & QCOW2_OFFSET_MASK);
	image_decode(l->img, entry, 0, 0, &c);
	if (c.kind == CLUSTER_BAD)
		return fault(l, c.host, c.bad);
	count(l, c.host, c.compressed_bytes);
	return 0;
}

/* ---- reading ------------------------------------------------------------------ */

static void read_piece(const struct leaks *l, struct piece *p, u64 offset, u32 bytes,
		       struct io_op *io)
{
	u32 len = ALIGN_UP(bytes, max(l->img->dev->block_bytes, SECTOR_SIZE));

	p->offset = offset;
	p->bytes = bytes;
	*io = (struct io_op){ .dev = l->img->dev, .type = IO_READ, .offset = offset, .len = len,
			      .base = p->data };
}

/*
 * The piece of the table at @offset, @bytes long, that holds its byte @at:
 * LEAKS_READ when it has to be read first. -EUCLEAN: no table can be there.
 */
static int get_piece(struct leaks *l, struct piece *p, u64 offset, u64 bytes, u64 at,
		     struct io_op *io)
{
	u64 start = ALIGN_DOWN(at, LEAKS_READ_BYTES);

	if (p->bytes && p->offset == offset + start)
		return 0;
	if (!IS_ALIGNED(offset, image_cluster_bytes(l->img)) || !offset)
		return fault(l, offset, "table not aligned");
	if (l->img->dev->blockdev && offset + bytes > image_dev_bytes(l->img))
		return fault(l, offset, "table beyond the end of the device");
	read_piece(l, p, offset + start, min(bytes - start, (u64)LEAKS_READ_BYTES), io);
	return LEAKS_READ;
}

/* ---- a window begins: what has one place, and is known ---------------------------- */

static void count_table(struct leaks *l, u64 offset, u64 entries)
{
	count(l, offset, entries * sizeof(u64));
}

static int stage_begin(struct leaks *l, struct io_op *io, struct meta_wait *wait)
{
	const struct image *img = l->img;
	u64 block;
	u32 i;

	l->end = min(l->nr_clusters, l->first + l->window);
	memset(l->counts, 0, l->window);
	count(l, 0, image_cluster_bytes(img));
	count_table(l, img->l1_offset, img->l1_size);
	count(l, img->reftable_offset, (u64)img->reftable_clusters << img->cluster_bits);
	for (i = 0; refcounts_block(l->rc, i, &block); i++)
		count(l, block, block ? image_cluster_bytes(img) : 0);
	count(l, img->snapshots_offset, img->snapshots_bytes);
	for (i = 0; i < img->nr_snapshots; i++)
		count_table(l, img->snapshots[i].l1_offset, img->snapshots[i].l1_size);
	count(l, img->bitmap_dir_offset, img->bitmap_dir_bytes);
	for (i = 0; i < img->nr_bitmaps; i++)
		count_table(l, img->bitmaps[i].table_offset, img->bitmaps[i].table_entries);
	l->source = 0;
	l->index = 0;
	l->pos = 0;
	return STAGE_NEXT;
}

/* ---- L1 and L2 tables ----------------------------------------------------------------- */

static int count_l2(struct leaks *l)
{
	const struct image *img = l->img;
	u32 i;
	int ret = 0;

	for (i = 0; i < l->lower.bytes / img->l2_entry_bytes && !ret; i++)
		ret = count_entry(l, image_l2_entry(img, l->lower.data, i));
	return ret;
}

/*
 * One piece of the L2 table at @table. It is asked for anew for each piece: a
 * table that is shared may be replaced meanwhile, the copy goes on where the
 * old one ends, and what the old one's place holds by then is not looked at.
 */
static int walk_l2(struct leaks *l, u64 table, struct io_op *io)
{
	u64 bytes = image_cluster_bytes(l->img);
	int ret = table ? get_piece(l, &l->lower, table, bytes, l->pos, io) : STAGE_NEXT;

	if (ret)
		return ret;
	ret = count_l2(l);
	if (ret)
		return ret;
	l->pos += l->lower.bytes;
	l->lower.bytes = 0;
	if (l->pos < bytes)
		return LEAKS_MORE;
	count(l, table, bytes);
	l->pos = 0;
	return STAGE_NEXT;
}

/* The active table is in memory, as it is now; its tables are read from the disk. */
static int get_l1_entry(struct leaks *l, struct io_op *io, u64 *entry)
{
	const struct image_snapshot *s;
	u64 at = l->index * sizeof(u64);
	int ret;

	if (!l->source) {
		*entry = image_l1_on_disk(l->img, l->index) & QCOW2_OFFSET_MASK;
		return 0;
	}
	s = &l->img->snapshots[l->source - 1];
	ret = get_piece(l, &l->upper, s->l1_offset, s->l1_size * sizeof(u64), at, io);
	if (!ret)
		*entry = load_be64(l->upper.data + at % LEAKS_READ_BYTES) & QCOW2_OFFSET_MASK;
	return ret;
}

static u32 l1_entries(const struct leaks *l)
{
	return l->source ? l->img->snapshots[l->source - 1].l1_size : l->img->l1_size;
}

static int stage_tables(struct leaks *l, struct io_op *io, struct meta_wait *wait)
{
	u64 entry;
	u32 n;
	int ret;

	for (n = 0; n < LEAKS_L1_ENTRIES && l->index < l1_entries(l); n++, l->index++) {
		ret = get_l1_entry(l, io, &entry);
		if (!ret)
			ret = walk_l2(l, entry, io);
		if (ret != STAGE_NEXT)
			return ret;
		if (entry) {
			l->index++;
			return LEAKS_MORE;
		}
	}
	if (l->index < l1_entries(l))
		return LEAKS_MORE;
	l->index = 0;
	l->upper.bytes = 0;
	if (l->source++ < l->img->nr_snapshots)
		return LEAKS_MORE;
	l->source = 0;
	return STAGE_NEXT;
}

/* ---- bitmaps ---------------------------------------------------------------------------- */

static int count_bitmap_piece(struct leaks *l)
{
	u32 i;
	int ret = 0;

	for (i = 0; i < l->upper.bytes / sizeof(u64) && !ret; i++)
		ret = count_cluster(l, load_be64(l->upper.data + i * sizeof(u64)) &
					       QCOW2_OFFSET_MASK);
	return ret;
}

static int stage_bitmaps(struct leaks *l, struct io_op *io, struct meta_wait *wait)
{
	const struct image_bitmap *b;
	int ret;

	if (l->source == l->img->nr_bitmaps)
		return STAGE_NEXT;
	b = &l->img->bitmaps[l->source];
	if (l->index < b->table_entries) {
		ret = get_piece(l, &l->upper, b->table_offset, b->table_entries * sizeof(u64),
				l->index * sizeof(u64), io);
		if (!ret)
			ret = count_bitmap_piece(l);
		if (ret)
			return ret;
		l->index += l->upper.bytes / sizeof(u64);
	} else {
		l->index = 0;
		l->source++;
	}
	l->upper.bytes = 0;
	return LEAKS_MORE;
}

/* ---- the flush (promise P23) -------------------------------------------------------------- */

/*
 * The daemon that died may have unmapped what the walk did not find, without a
 * flush: if that is lost after the place was given away, the old entry names it.
 */
static int stage_flush(struct leaks *l, struct io_op *io, struct meta_wait *wait)
{
	l->flushed = !l->flushed;
	l->cluster = l->first;
	if (!l->flushed || MUTANT(FREE_EARLY))
		return STAGE_NEXT;
	*io = (struct io_op){ .dev = l->img->dev, .type = IO_FLUSH };
	return LEAKS_FLUSH;
}

/* ---- the sweep ------------------------------------------------------------------------------ */

static u64 counts_per_block(const struct image *img)
{
	return 8 * image_cluster_bytes(img) >> img->refcount_order;
}

static bool may_judge(const struct leaks *l, u64 cluster)
{
	return l->counts[cluster - l->first] < COUNT_MANY &&
	       (!busy_test(&l->busy, cluster) || MUTANT(FREE_TOUCHED));
}

/* @cluster has @refcount on disk. */
static int judge(struct leaks *l, u64 refcount, struct meta_wait *wait)
{
	u64 used = l->counts[l->cluster - l->first];
	int ret;

	if (refcount == used || !may_judge(l, l->cluster))
		return 0;
	if (refcount < used)
		return fault(l, l->cluster << l->img->cluster_bits, "in use, but not counted");
	ret = refcounts_lower(l->rc, l->cluster, used, wait);
	if (ret)
		return ret;
	l->result.freed += !used;
	l->result.lowered += used != 0;
	return 0;
}

/* No refcount block: nothing there is counted. */
static int sweep_hole(struct leaks *l, u64 end, struct meta_wait *wait)
{
	int ret = 0;

	for (; l->cluster < end && !ret; l->cluster += !ret)
		ret = judge(l, 0, wait);
	return ret;
}

static int sweep_piece(struct leaks *l, u64 end, struct meta_wait *wait)
{
	u32 order = l->img->refcount_order;
	u64 per_piece = (u64)l->lower.bytes * 8 >> order;
	u64 start = ALIGN_DOWN(l->cluster, per_piece);
	int ret = 0;

	for (end = min(end, start + per_piece); l->cluster < end && !ret; l->cluster += !ret)
		ret = judge(l, refcount_get(l->lower.data, order, l->cluster - start), wait);
	return ret;
}

static int stage_sweep(struct leaks *l, struct io_op *io, struct meta_wait *wait)
{
	u64 per_block = counts_per_block(l->img);
	u64 index = l->cluster / per_block, in = l->cluster % per_block;
	u64 end = min(l->end, (index + 1) * per_block);
	u64 block = 0;
	int ret;

	if (l->cluster == l->end)
		return STAGE_NEXT;
	if (!refcounts_block(l->rc, index, &block) || !block) {
		ret = sweep_hole(l, min(end, l->cluster + LEAKS_READ_BYTES), wait);
	} else {
		ret = get_piece(l, &l->lower, block, image_cluster_bytes(l->img),
				(in << l->img->refcount_order) / 8, io);
		if (!ret)
			ret = sweep_piece(l, end, wait);
		else if (ret == LEAKS_READ)
			return ret;
	}
	if (ret == -EAGAIN)
		return LEAKS_WAIT;
	if (ret)
		return ret;
	l->lower.bytes = 0;
	return LEAKS_MORE;
}

static int stage_end(struct leaks *l, struct io_op *io, struct meta_wait *wait)
{
	l->first = l->end;
	return l->first == l->nr_clusters ? LEAKS_DONE : STAGE_NEXT;
}

/* ---- driving ----------------------------------------------------------------- */

typedef int (*leaks_stage_fn)(struct leaks *l, struct io_op *io, struct meta_wait *wait);

static const leaks_stage_fn leaks_stages[] = {
	stage_begin, stage_tables, stage_bitmaps, stage_flush, stage_sweep, stage_end,
};

int leaks_step(struct leaks *l, struct io_op *io, struct meta_wait *wait)
{
	int ret = l->busy.lost ? -ENOMEM : leaks_stages[l->stage](l, io, wait);

	if (ret != STAGE_NEXT)
		return ret;
	l->stage = (l->stage + 1) % ARRAY_SIZE(leaks_stages);
	return LEAKS_MORE;
}

/* The walk of the active tables is taken for the first half of a window. */
void leaks_get_result(const struct leaks *l, struct leaks_result *result)
{
	u64 window = l->end - l->first;
	bool active = leaks_stages[l->stage] == stage_tables && !l->source;
	u64 walked = active ? window * l->index / max(l->img->l1_size, 1u) : window;
	u64 swept = l->cluster > l->first ? l->cluster - l->first : 0;

	*result = l->result;
	result->percent = 100 * (2 * l->first + walked + swept) / (2 * l->nr_clusters);
}

/*
 * Those of the device. A file may end before clusters that are counted: the daemon
 * died before their data was written.
 */
static u64 clusters_to_judge(const struct image *img, const struct refcounts *rc)
{
	u64 nr = DIV_ROUND_UP(image_dev_bytes(img), image_cluster_bytes(img));
	u64 block, i;

	for (i = 0; !img->dev->blockdev && refcounts_block(rc, i, &block); i++)
		if (block)
			nr = max(nr, (i + 1) * counts_per_block(img));
	return nr;
}

int leaks_create(struct image *img, struct refcounts *rc, u32 window, struct leaks **result)
{
	struct leaks *l = calloc(1, sizeof(*l));
	u64 nr = clusters_to_judge(img, rc);

	if (!l)
		return -ENOMEM;
	l->img = img;
	l->rc = rc;
	l->nr_clusters = nr;
	l->window = min(nr, window);
	l->counts = malloc(l->window);
	l->upper.data = io_alloc(LEAKS_READ_BYTES);
	l->lower.data = io_alloc(LEAKS_READ_BYTES);
	if (!l->counts || !l->upper.data || !l->lower.data || busy_init(&l->busy, nr)) {
		leaks_destroy(l);
		return -ENOMEM;
	}
	refcounts_watch(rc, &l->busy);
	*result = l;
	return 0;
}

void leaks_destroy(struct leaks *l)
{
	if (!l)
		return;
	refcounts_watch(l->rc, NULL);
	busy_exit(&l->busy);
	free(l->upper.data);
	free(l->lower.data);
	free(l->counts);
	free(l);
}
