// SPDX-License-Identifier: GPL-2.0-or-later
/* A layer's image has another name on the host now: what is said of it uses that. */
#include "chain-private.h"
#include "target-private.h"

#include <errno.h>
#include <qchain/online.h>
#include <stdlib.h>
#include <string.h>

struct rename_call {
	struct chain_target *ct;
	const char *node;
	char *for_chain; /* of the path, taken over */
	char *for_table;
	bool found;
};

static void replace(char **path, char **with)
{
	free(*path);
	*path = *with;
	*with = NULL;
}

static void rename_run(struct loop *loop, void *arg)
{
	struct rename_call *call = arg;
	struct chain *chain = call->ct->chain;
	const struct layer_table *t = call->ct->map.table;

	for (u32 i = 0; i < chain->nr_layers && !call->found; i++) {
		if (strcmp(chain->layers[i].node_name, call->node))
			continue;
		call->found = true;
		replace(&chain->layers[i].path, &call->for_chain);
		replace(&t->by_id[t->order[i]]->path, &call->for_table);
	}
}

int chain_rename_layer(struct target *ti, const char *node, const char *path, struct qc_err *err)
{
	struct rename_call call = { .ct = ti->private, .node = node };
	int ret = 0;

	if (ti->type != &target_chain)
		return qc_err_set(err, -EINVAL, "%s: not a chain", ti->type->name);
	call.for_chain = strdup(path);
	call.for_table = strdup(path);
	if (!call.for_chain || !call.for_table)
		ret = qc_err_set(err, -ENOMEM, "%s: out of memory", node);
	else
		loop_call(call.ct->loop, rename_run, &call);
	if (!ret && !call.found)
		ret = qc_err_set(err, -ENOENT, "%s: no layer has this node name", node);
	free(call.for_chain);
	free(call.for_table);
	return ret;
}
