// SPDX-License-Identifier: GPL-2.0-or-later
/* Loading a window: read the L2 entries of all layers at once, fold, publish. */
#include "chain-private.h"

#include <errno.h>
#include <qchain/mutant.h>
#include <stdlib.h>
#include <string.h>

/*
 * Layers that nobody writes are read from their devices, all in one batch. The
 * entries of one that has a writer come from its cache, in the very event that
 * folds and publishes (rule C1): what is published is what was acknowledged.
 */

/* One table of one layer, as far as the window needs it. */
struct load_part {
	struct io_op io;
	struct window_load *load;
	const struct image *img;
	u16 layer;
	void *buf;
	u32 skip; /* bytes of @buf before the first entry */
	u64 first; /* guest offset of the first entry */
	u32 nr_entries;
};

struct window_load {
	struct cds_list_head node;
	struct chain_target *ct;
	u64 index;
	u64 start; /* guest bytes */
	u64 len;
	struct cds_list_head waiters; /* struct load_wait */
	struct load_part *parts;
	u32 nr_parts;
	u32 pending;
	u32 epoch; /* while @parts are read: their images stay open */
	int error;
	struct meta_wait wait;
	u64 generation; /* of the layers that @parts were collected from */
};

static void load_start(struct window_load *load);

static void load_free(struct window_load *load)
{
	u32 i;

	for (i = 0; i < load->nr_parts; i++)
		free(load->parts[i].buf);
	free(load->parts);
	free(load);
}

/* A load that finds everything in the cache ends at once: no recursion then. */
static void start_queued(struct chain_target *ct)
{
	struct window_load *load;

	if (ct->load_starting)
		return;
	ct->load_starting = true;
	while (!cds_list_empty(&ct->load_queue) && ct->nr_loads < CHAIN_MAX_LOADS) {
		load = cds_list_first_entry(&ct->load_queue, struct window_load, node);
		cds_list_del(&load->node);
		cds_list_add_tail(&load->node, &ct->loads);
		ct->nr_loads++;
		load_start(load);
	}
	ct->load_starting = false;
}

static void load_end(struct window_load *load, int error)
{
	struct chain_target *ct = load->ct;
	struct load_wait *w, *tmp;
	CDS_LIST_HEAD(waiters);

	cds_list_del(&load->node);
	ct->nr_loads--;
	ct->stat_loads++;
	cds_list_splice(&load->waiters, &waiters);
	load_free(load);
	cds_list_for_each_entry_safe(w, tmp, &waiters, node) {
		cds_list_del(&w->node);
		w->fn(w, error);
	}
	start_queued(ct);
}

/* ---- folding ----------------------------------------------------------------------- */

/* Everything the fold needs, in one allocation each. */
struct load_fold {
	struct fold_layer *layers;
	struct fold_source *sources;
	u32 nr_sources;
	struct meta_block **pinned;
	u32 nr_pinned;
};

/* Where the tables of @img for @load's window are, one after the other. */
struct table_cursor {
	u64 pos; /* guest */
	u64 table; /* host offset of the table; 0: none */
	u64 first; /* guest offset of the first entry in the window */
	u32 index; /* of that entry in its table */
	u32 nr;
};

static bool next_table(const struct window_load *load, const struct image *img,
		       struct table_cursor *cur)
{
	u64 end = min(load->start + load->len, img->virtual_size);
	u32 bits = image_l2_coverage_bits(img);

	while (cur->pos < end) {
		u64 table_end = ((cur->pos >> bits) + 1) << bits;
		u64 stop = min(end, table_end);

		cur->table = image_l2_offset(img, cur->pos);
		cur->first = ALIGN_DOWN(cur->pos, image_cluster_bytes(img));
		cur->index = (cur->first >> img->cluster_bits) & ((1u << img->l2_bits) - 1);
		cur->nr = (stop - cur->first + image_cluster_bytes(img) - 1) >> img->cluster_bits;
		cur->pos = table_end;
		if (cur->table)
			return true;
	}
	return false;
}

static void add_source(struct load_fold *f, struct fold_layer *l, const void *table, u64 first,
		       u32 nr)
{
	f->sources[f->nr_sources++] = (struct fold_source){
		.img = l->img, .table = table, .first = first, .nr_entries = nr,
		.layer = l->layer, .writable = l->writable,
	};
	l->nr_sources++;
}

/* What may be seen: all that was, or may be, acknowledged (rule C1). */
static const void *seen_entries(const struct writer *w, const struct meta_block *block)
{
	return w->early && !MUTANT(STALE_FOLD) ? block->data : meta_linked(block);
}

/* The entries of an image that is written, out of its cache: one source a block. */
static int fold_written(struct window_load *load, struct load_fold *f, struct fold_layer *l,
			const struct writer *w)
{
	struct meta *meta = w->meta;
	u32 per_block = meta_block_bytes(meta) / l->img->l2_entry_bytes;
	struct table_cursor cur = { .pos = load->start };
	struct meta_block *block;
	int ret;

	while (next_table(load, l->img, &cur)) {
		while (cur.nr) {
			u32 in = cur.index % per_block;
			u32 n = min(cur.nr, per_block - in);
			u64 at = cur.table + (u64)cur.index * l->img->l2_entry_bytes;

			ret = meta_get(meta, at, &load->wait, &block);
			if (ret)
				return ret;
			meta_pin(block);
			f->pinned[f->nr_pinned++] = block;
			add_source(f, l, (char *)seen_entries(w, block) +
				   in * l->img->l2_entry_bytes, cur.first, n);
			cur.index += n;
			cur.nr -= n;
			cur.first += (u64)n << l->img->cluster_bits;
		}
	}
	return 0;
}

static void fold_parts(struct window_load *load, struct load_fold *f, struct fold_layer *l,
		       u32 *part)
{
	for (; *part < load->nr_parts && load->parts[*part].layer == l->layer; (*part)++) {
		struct load_part *p = &load->parts[*part];

		add_source(f, l, (char *)p->buf + p->skip, p->first, p->nr_entries);
	}
}

/* Cached blocks of images that are written, as many as a window can touch. */
static u32 max_blocks(const struct window_load *load)
{
	const struct layer_table *table = load->ct->map.table;
	u32 depth, blocks = 0;

	for (depth = 0; depth < table->nr; depth++) {
		const struct writer *w = table->by_id[table->order[depth]]->writer;

		if (w && w->meta)
			blocks += load->len / writer_block_coverage(w) + 2;
	}
	return blocks;
}

static int fold_collect(struct window_load *load, const struct layer_table *table,
			struct load_fold *f)
{
	u32 depth, part = 0;
	int ret = 0;

	for (depth = 0; depth < table->nr && !ret; depth++) {
		struct fold_layer *l = &f->layers[depth];
		const struct writer *w;

		l->layer = table->order[depth];
		l->img = table->by_id[l->layer]->img;
		w = table->by_id[l->layer]->writer;
		l->writable = w != NULL;
		l->sources = f->sources + f->nr_sources;
		if (w && w->meta)
			ret = fold_written(load, f, l, w);
		else
			fold_parts(load, f, l, &part);
	}
	return ret;
}

static int fold_publish(struct window_load *load, const struct layer_table *table,
			const struct load_fold *f)
{
	struct fold_bad bad = { 0 };
	struct extent *extents;
	u32 nr;
	int ret;

	ret = fold_extents(f->layers, table->nr, load->start, load->len, &extents, &nr, &bad);
	if (ret)
		return ret;
	ret = map_install(&load->ct->map, load->index, extents, nr, load->len >> SECTOR_SHIFT);
	free(extents);
	if (bad.what)
		chain_corrupt(load->ct, bad.layer, bad.guest, bad.host, bad.what);
	return ret;
}

static void load_start_over(struct window_load *load)
{
	while (load->nr_parts)
		free(load->parts[--load->nr_parts].buf);
	free(load->parts);
	load->parts = NULL;
	load_start(load);
}

/*
 * All parts are read. Reruns from the start when a metadata block is missing, or
 * when a layer, or who writes it, has changed since they were (rule C1).
 */
static void load_fold(struct window_load *load)
{
	struct chain_target *ct = load->ct;
	const struct layer_table *table = ct->map.table;
	u32 blocks = max_blocks(load);
	struct load_fold f = {
		.layers = calloc(table->nr, sizeof(*f.layers)),
		.sources = calloc(load->nr_parts + blocks + 1, sizeof(*f.sources)),
		.pinned = calloc(blocks + 1, sizeof(*f.pinned)),
	};
	int ret = -ENOMEM;

	if (load->generation != ct->generation)
		ret = -ESTALE;
	else if (f.layers && f.sources && f.pinned)
		ret = fold_collect(load, table, &f);
	if (!ret)
		ret = fold_publish(load, table, &f);
	while (f.nr_pinned)
		meta_unpin(f.pinned[--f.nr_pinned]);
	free(f.layers);
	free(f.sources);
	free(f.pinned);
	if (ret == -EAGAIN)
		return;
	if (ret == -ESTALE) {
		load_start_over(load);
		return;
	}
	load_end(load, ret);
	chain_retire(ct);
}

static void load_again(struct meta_wait *wait)
{
	load_fold(container_of(wait, struct window_load, wait));
}

/* ---- reading -------------------------------------------------------------------------- */

static void part_read(struct io_op *op, int error)
{
	struct window_load *load = container_of(op, struct load_part, io)->load;

	if (error && !load->error)
		load->error = error;
	if (--load->pending)
		return;
	loop_epoch_exit(load->ct->loop, load->epoch);
	if (load->error)
		load_end(load, load->error);
	else
		load_fold(load);
}

static int add_part(struct window_load *load, u32 *room, const struct image *img, u16 layer,
		    const struct table_cursor *cur)
{
	u64 at = cur->table + (u64)cur->index * img->l2_entry_bytes;
	u64 end = at + (u64)cur->nr * img->l2_entry_bytes;
	u64 from = ALIGN_DOWN(at, img->dev->block_bytes);
	struct load_part *p;

	if (load->nr_parts == *room) {
		*room = *room ? *room * 2 : 16;
		p = realloc(load->parts, *room * sizeof(*p));
		if (!p)
			return -ENOMEM;
		load->parts = p;
	}
	p = &load->parts[load->nr_parts];
	*p = (struct load_part){
		.load = load, .img = img, .layer = layer, .skip = at - from,
		.first = cur->first, .nr_entries = cur->nr,
	};
	p->io = (struct io_op){
		.dev = img->dev, .type = IO_READ, .offset = from,
		.len = ALIGN_UP(end, img->dev->block_bytes) - from, .done = part_read,
	};
	p->buf = io_alloc(p->io.len);
	if (!p->buf)
		return -ENOMEM;
	p->io.base = p->buf;
	load->nr_parts++;
	return 0;
}

static int collect_parts(struct window_load *load)
{
	const struct layer_table *table = load->ct->map.table;
	u32 depth, room = 0;
	int ret = 0;

	for (depth = 0; depth < table->nr && !ret; depth++) {
		u16 id = table->order[depth];
		const struct image *img = table->by_id[id]->img;
		struct table_cursor cur = { .pos = load->start };

		if (img->format == IMAGE_RAW || table->by_id[id]->writer)
			continue;
		while (!ret && next_table(load, img, &cur))
			ret = add_part(load, &room, img, id, &cur);
	}
	return ret;
}

static void load_start(struct window_load *load)
{
	const struct map *map = &load->ct->map;
	u32 i;
	int ret;

	if (load->index >= map->nr_windows) { /* it got shorter meanwhile */
		load_end(load, -EIO);
		return;
	}
	load->generation = load->ct->generation;
	load->len = map_window_bytes(map, load->index);
	ret = collect_parts(load);
	if (ret) {
		load_end(load, ret);
		return;
	}
	if (load->nr_parts)
		load->epoch = loop_epoch_enter(load->ct->loop);
	load->pending = load->nr_parts;
	for (i = 0; i < load->nr_parts; i++)
		io_submit(load->ct->loop, &load->parts[i].io);
	if (!load->nr_parts)
		load_fold(load);
}

static struct window_load *load_find(struct chain_target *ct, u64 index)
{
	struct window_load *load;

	cds_list_for_each_entry(load, &ct->loads, node)
		if (load->index == index)
			return load;
	cds_list_for_each_entry(load, &ct->load_queue, node)
		if (load->index == index)
			return load;
	return NULL;
}

void chain_load(struct chain_target *ct, u64 index, struct load_wait *wait)
{
	struct window_load *load;

	if (map_loaded(&ct->map, index)) {
		wait->fn(wait, 0);
		return;
	}
	load = load_find(ct, index);
	if (load) {
		cds_list_add_tail(&wait->node, &load->waiters);
		return;
	}
	load = calloc(1, sizeof(*load));
	if (!load) {
		wait->fn(wait, -ENOMEM);
		return;
	}
	load->ct = ct;
	load->index = index;
	load->start = index << ct->map.window_bits;
	load->wait.fn = load_again;
	CDS_INIT_LIST_HEAD(&load->waiters);
	cds_list_add_tail(&wait->node, &load->waiters);
	if (ct->nr_loads >= CHAIN_MAX_LOADS) {
		cds_list_add_tail(&load->node, &ct->load_queue);
		return;
	}
	cds_list_add_tail(&load->node, &ct->loads);
	ct->nr_loads++;
	load_start(load);
}

/* ---- ahead ------------------------------------------------------------------------------ */

static void ahead_loaded(struct load_wait *wait, int error)
{
	free(wait);
}

static bool is_known(struct chain_target *ct, u64 index)
{
	return map_loaded(&ct->map, index) || load_find(ct, index);
}

/* A view has its map for one merge, which ends without waiting for more than it has asked for. */
void chain_load_ahead(struct chain_target *ct, u64 index)
{
	u64 end = min(index + CHAIN_LOADS_AHEAD, ct->map.nr_windows);
	struct load_wait *wait;

	for (; index < end && !ct->of && !ct->stopping; index++) {
		if (ct->nr_loads >= CHAIN_LOADS_AHEAD || !map_has_room(&ct->map))
			return;
		if (is_known(ct, index))
			continue;
		wait = malloc(sizeof(*wait));
		if (!wait)
			return;
		wait->fn = ahead_loaded;
		chain_load(ct, index, wait);
	}
}
