// SPDX-License-Identifier: GPL-2.0-or-later
/* The layer table: which image is at which depth, what is written, what is flushed. */
#include "chain-private.h"

#include <assert.h>
#include <errno.h>
#include <qchain/mutant.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/*
 * A table is never changed but replaced: build the next one, store one pointer,
 * free the old one after grace. Ids stay with a layer for the run and are never
 * given again, so that an extent always means the same image (rule C1).
 */

void layer_table_free(struct layer_table *t)
{
	if (!t)
		return;
	free(t->order);
	free(t->by_id);
	free(t->depth_of);
	free(t);
}

static struct layer_table *layer_table_create(u32 nr, u32 nr_ids)
{
	struct layer_table *t = calloc(1, sizeof(*t));

	if (!t)
		return NULL;
	t->nr = nr;
	t->nr_ids = nr_ids;
	t->order = calloc(nr, sizeof(*t->order));
	t->by_id = calloc(nr_ids, sizeof(*t->by_id));
	t->depth_of = calloc(nr_ids, sizeof(*t->depth_of));
	if (t->order && t->by_id && t->depth_of)
		return t;
	layer_table_free(t);
	return NULL;
}

struct layer *layer_create(struct image *img, const char *path, const char *node_name)
{
	struct layer *layer = calloc(1, sizeof(*layer));

	if (!layer)
		return NULL;
	layer->img = img;
	layer->data_dev = image_data_dev(img);
	layer->path = strdup(path);
	snprintf(layer->node_name, sizeof(layer->node_name), "%s", node_name);
	if (layer->path)
		return layer;
	free(layer);
	return NULL;
}

void layer_free(struct layer *layer)
{
	if (layer)
		free(layer->path);
	free(layer);
}

int chain_make_layers(struct chain_target *ct)
{
	u32 i, n = ct->chain->nr_layers;
	struct layer_table *t = layer_table_create(n, n);

	ct->map.table = t;
	if (!t)
		return -ENOMEM;
	for (i = 0; i < n; i++) { /* ids grow upwards: the base is 0 */
		const struct chain_layer *from = &ct->chain->layers[i];
		u16 id = n - 1 - i;

		t->order[i] = id;
		t->depth_of[id] = i;
		t->by_id[id] = layer_create(from->img, from->path, from->node_name);
		if (!t->by_id[id])
			return -ENOMEM;
	}
	t->write_layer = n - 1;
	t->read_only = ct->chain->read_only;
	if (!t->read_only)
		t->flush[0] = ct->chain->layers[0].img->dev;
	return 0;
}

void chain_free_layers(struct chain_target *ct)
{
	struct layer_table *t = ct->map.table;
	u32 i;

	for (i = 0; t && i < t->nr_ids; i++)
		layer_free(t->by_id[i]);
	layer_table_free(t);
}

struct layer_table *layer_table_next(const struct layer_table *t, u32 depth, u32 nr,
				     struct layer *top)
{
	u32 i, in = top != NULL;
	struct layer_table *n = layer_table_create(t->nr - nr + in, t->nr_ids + in);

	if (!n)
		return NULL;
	n->write_layer = top ? t->nr_ids : t->write_layer;
	if (top)
		n->order[0] = n->write_layer;
	memcpy(n->order + in, t->order, depth * sizeof(*n->order));
	memcpy(n->order + in + depth, t->order + depth + nr,
	       (t->nr - depth - nr) * sizeof(*n->order));
	for (i = 0; i < n->nr; i++) {
		n->by_id[n->order[i]] = i < in ? top : t->by_id[n->order[i]];
		n->depth_of[n->order[i]] = i;
	}
	return n;
}

/* How far the active layer is handed over stays, too: its merge goes on beside this one. */
void layer_table_follow(struct layer_table *n, const struct layer_table *t)
{
	n->read_only = t->read_only;
	memcpy(n->flush, t->flush, sizeof(n->flush));
	if (MUTANT(HANDED_FORGOTTEN))
		return;
	n->receives = t->receives;
	n->handed_end = t->handed_end;
	n->fence_end = t->fence_end;
}

int layer_table_inherit(struct layer_table *n, const struct layer_table *t, struct io_dev *dev)
{
	u32 i, slot = 0;

	n->flush[slot++] = dev;
	for (i = 0; i < QC_MAX_FLUSH; i++) {
		if (!t->flush[i] || MUTANT(FLUSH_TOP_ONLY))
			continue;
		if (slot == QC_MAX_FLUSH)
			return -EBUSY;
		n->flush[slot++] = t->flush[i];
	}
	return 0;
}

void layer_table_add_flush(struct layer_table *t, struct io_dev *dev)
{
	u32 i = 0;

	while (i < QC_MAX_FLUSH && t->flush[i])
		i++;
	assert(i < QC_MAX_FLUSH);
	__atomic_store_n(&t->flush[i], dev, __ATOMIC_RELEASE);
}

void layer_table_drop_flush(struct layer_table *t, const struct io_dev *dev)
{
	u32 i;

	for (i = 0; i < QC_MAX_FLUSH; i++)
		if (t->flush[i] == dev)
			__atomic_store_n(&t->flush[i], NULL, __ATOMIC_RELEASE);
}
