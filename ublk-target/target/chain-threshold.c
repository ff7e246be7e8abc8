// SPDX-License-Identifier: GPL-2.0-or-later
/* Tells, once, when an image takes clusters beyond a place: its volume wants to grow. */
#include "chain-private.h"
#include "target-private.h"

#include <errno.h>
#include <qchain/online.h>
#include <string.h>

struct threshold_call {
	struct chain_target *ct;
	const char *node;
	u64 bytes;
	int ret;
};

void writer_allocated(struct writer *w, u64 end)
{
	json_object *data;
	u64 threshold = w->threshold;

	w->allocated_end = max(w->allocated_end, end);
	if (!threshold || w->allocated_end <= threshold)
		return;
	w->threshold = 0;
	data = json_object_new_object();
	json_object_object_add(data, "node-name", json_object_new_string(w->layer->node_name));
	json_object_object_add(data, "amount-exceeded",
			       json_object_new_uint64(w->allocated_end - threshold));
	json_object_object_add(data, "write-threshold", json_object_new_uint64(threshold));
	target_event(w->ct->ti, "BLOCK_WRITE_THRESHOLD", data);
}

/* Who writes to the layer called @node; NULL: nobody, or there is none. */
static struct writer *find_writer(const struct chain_target *ct, const char *node, bool *found)
{
	const struct layer_table *t = ct->map.table;

	*found = false;
	for (u32 i = 0; i < t->nr; i++) {
		if (strcmp(t->by_id[t->order[i]]->node_name, node))
			continue;
		*found = true;
		return t->by_id[t->order[i]]->writer;
	}
	return NULL;
}

static void set_run(struct loop *loop, void *arg)
{
	struct threshold_call *call = arg;
	bool found;
	struct writer *w = find_writer(call->ct, call->node, &found);

	if (!found)
		call->ret = -ENOENT;
	else if (!w)
		call->ret = -EROFS;
	else if (!w->meta)
		call->ret = -EOPNOTSUPP;
	else
		w->threshold = call->bytes;
}

int chain_set_write_threshold(struct target *ti, const char *node, u64 bytes, struct qc_err *err)
{
	struct threshold_call call = { .ct = ti->private, .node = node, .bytes = bytes };

	if (ti->type == &target_chain)
		loop_call(call.ct->loop, set_run, &call);
	else
		call.ret = -ENOENT;
	switch (call.ret) {
	case -ENOENT:
		return qc_err_set(err, -ENOENT, "Device '%.80s' not found", node);
	case -EROFS:
		return qc_err_set(err, -EROFS, "%s: takes no writes, must be the active layer or "
				  "what a merge writes to", node);
	case -EOPNOTSUPP:
		return qc_err_set(err, -EOPNOTSUPP, "%s: is raw and as long as it will be, must be "
				  "qcow2", node);
	default:
		return call.ret;
	}
}

u64 chain_write_threshold(const struct chain_target *ct, const char *node)
{
	bool found;
	const struct writer *w = find_writer(ct, node, &found);

	return w ? w->threshold : 0;
}
