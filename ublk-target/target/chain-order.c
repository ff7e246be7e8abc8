// SPDX-License-Identifier: GPL-2.0-or-later
/* The next order of the layers: made ahead, published in one event. */
#include "chain-private.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/*
 * Whoever changes the order of the layers has the turn (chain-turn.c), so what the
 * order is made of stays as it is until then: it is made by the control thread, or
 * by a worker, in time that grows with the depth. The event of the metadata loop
 * stores it, at any depth. What may have changed of the layer table meanwhile
 * (read-only, what is flushed, how far a layer is handed over) is taken over there.
 */

/* The chain's array without @nr layers from @depth on, with @top (NULL: none) above. */
static struct chain_layer *make_layers(const struct chain *chain, u32 depth, u32 nr,
				       const struct layer *top, char *path)
{
	u32 left = chain->nr_layers - nr;
	struct chain_layer *layers = calloc(left + 1, sizeof(*layers)), *to = layers;

	if (!layers)
		return NULL;
	if (top) {
		to->img = top->img;
		to->path = path;
		memcpy(to->node_name, top->node_name, sizeof(to->node_name));
		to++;
	}
	memcpy(to, chain->layers, depth * sizeof(*to));
	memcpy(to + depth, chain->layers + depth + nr, (left - depth) * sizeof(*to));
	return layers;
}

static bool *make_gone(const struct layer_table *t, u32 depth, u32 nr)
{
	bool *gone = calloc(t->nr_ids, sizeof(*gone));

	for (u32 i = depth; gone && i < depth + nr; i++)
		gone[t->order[i]] = true;
	return gone;
}

static int check_room(const struct layer_table *t, u32 nr, const struct layer *top,
		      struct qc_err *err)
{
	if (t->nr - nr < QC_MAX_CHAIN_DEPTH && t->nr_ids < QC_MAX_LAYERS)
		return 0;
	return qc_err_set(err, -EMLINK, "%s: chain too deep (%u layers, %u in this run), at most "
			  "%u (%u); merge some", top->path, t->nr - nr + 1, t->nr_ids + 1,
			  QC_MAX_CHAIN_DEPTH, QC_MAX_LAYERS);
}

int chain_order_plan(const struct chain_target *ct, u32 depth, u32 nr, struct layer *top,
		     struct chain_order *result, struct qc_err *err)
{
	const struct layer_table *t = ct->map.table;
	struct chain_order *o = result;
	int ret = top ? check_room(t, nr, top, err) : 0;

	if (ret)
		return ret;
	o->path = top ? strdup(top->path) : NULL;
	o->table = layer_table_next(t, depth, nr, top);
	o->layers = make_layers(ct->chain, depth, nr, top, o->path);
	o->gone = make_gone(t, depth, nr);
	if (o->table && o->layers && o->gone && (!top || o->path))
		return 0;
	chain_order_exit(o);
	return qc_err_set(err, -ENOMEM, "%s: out of memory", ct->chain->layers[0].path);
}

void chain_order_publish(struct chain_target *ct, struct chain_order *o)
{
	struct layer_table *table = ct->map.table;
	struct chain_layer *layers = ct->chain->layers;

	ct->chain->layers = o->layers;
	ct->chain->nr_layers = o->table->nr;
	__atomic_store_n(&ct->map.table, o->table, __ATOMIC_RELEASE);
	o->table = table;
	o->layers = layers;
	o->path = NULL;
}

void chain_order_exit(struct chain_order *o)
{
	layer_table_free(o->table);
	free(o->layers);
	free(o->path);
	free(o->gone);
	*o = (struct chain_order){ 0 };
}
