// SPDX-License-Identifier: GPL-2.0-or-later
/* A layer's image has another name on the host now: what is said of it uses that. */
#include "chain-private.h"
#include "target-private.h"

#include <errno.h>
#include <qchain/online.h>
#include <stdlib.h>
#include <string.h>

/*
 * A merge that has the turn reads names on a worker: one that begins anew, or plans a header.
 * A name that comes meanwhile is shown at once, and replaces the old one when the turn ends.
 * So nobody who renames images is refused, or waits.
 */

/* Metadata loop, in ct->renames, until the turn ends. */
struct rename {
	struct cds_list_head node;
	char *layer; /* by node name */
	char *for_chain; /* of the path, taken over */
	char *for_table;
};

static void rename_free(struct rename *r)
{
	if (!r)
		return;
	free(r->layer);
	free(r->for_chain);
	free(r->for_table);
	free(r);
}

static struct rename *rename_create(const char *layer, const char *path)
{
	struct rename *r = calloc(1, sizeof(*r));

	if (!r)
		return NULL;
	r->layer = strdup(layer);
	r->for_chain = strdup(path);
	r->for_table = strdup(path);
	if (r->layer && r->for_chain && r->for_table)
		return r;
	rename_free(r);
	return NULL;
}

static bool find_layer(const struct chain *chain, const char *name, u32 *depth)
{
	for (*depth = 0; *depth < chain->nr_layers; ++*depth)
		if (!strcmp(chain->layers[*depth].node_name, name))
			return true;
	return false;
}

static void replace(char **path, char **with)
{
	free(*path);
	*path = *with;
	*with = NULL;
}

void chain_renames_apply(struct chain_target *ct)
{
	const struct layer_table *t = ct->map.table;
	struct rename *r, *tmp;
	u32 depth;

	cds_list_for_each_entry_safe(r, tmp, &ct->renames, node) {
		if (find_layer(ct->chain, r->layer, &depth)) { /* else it was merged meanwhile */
			replace(&ct->chain->layers[depth].path, &r->for_chain);
			replace(&t->by_id[t->order[depth]]->path, &r->for_table);
		}
		cds_list_del(&r->node);
		rename_free(r);
	}
}

const char *chain_layer_path(const struct chain_target *ct, u32 depth)
{
	const struct chain_layer *layer = &ct->chain->layers[depth];
	const char *path = layer->path;
	const struct rename *r;

	cds_list_for_each_entry(r, &ct->renames, node)
		if (!strcmp(r->layer, layer->node_name))
			path = r->for_chain;
	return path;
}

struct rename_call {
	struct chain_target *ct;
	struct rename *rename; /* taken over when there is such a layer */
};

static void rename_run(struct loop *loop, void *arg)
{
	struct rename_call *call = arg;
	struct chain_target *ct = call->ct;
	u32 depth;

	if (!find_layer(ct->chain, call->rename->layer, &depth))
		return;
	cds_list_add_tail(&call->rename->node, &ct->renames);
	call->rename = NULL;
	if (!ct->turn)
		chain_renames_apply(ct);
}

int chain_rename_layer(struct target *ti, const char *node, const char *path, struct qc_err *err)
{
	struct rename_call call = { .ct = ti->private };

	if (ti->type != &target_chain)
		return qc_err_set(err, -EINVAL, "%s: not a chain", ti->type->name);
	call.rename = rename_create(node, path);
	if (!call.rename)
		return qc_err_set(err, -ENOMEM, "%s: out of memory", node);
	loop_call(call.ct->loop, rename_run, &call);
	if (!call.rename)
		return 0;
	rename_free(call.rename);
	return qc_err_set(err, -ENOENT, "%s: no layer has this node name", node);
}
