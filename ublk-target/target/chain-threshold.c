// SPDX-License-Identifier: GPL-2.0-or-later
/* A volume that is made larger beside the I/O: tells when it wants to be, hears how that goes. */
#include "chain-private.h"
#include "target-private.h"

#include <errno.h>
#include <qchain/log.h>
#include <qchain/online.h>
#include <stdio.h>
#include <string.h>

/* A start that finds the volume full leaves whoever extends it the time to say so. */
#define HELLO_NS 3000000000ull
/* How long a volume that is extended may take, where writes are to fail on a full one. */
#define EXTEND_NS 30000000000ull

struct volume_call {
	struct chain_target *ct;
	const char *node;
	u64 threshold;
	enum volume_growth growth;
	const char *reason;
	int ret;
};

const char *volume_growth_name(enum volume_growth growth)
{
	static const char *const names[VOLUME_GROWTHS] = {
		[VOLUME_FIXED] = "fixed", [VOLUME_GROWS] = "grows", [VOLUME_STUCK] = "stuck",
	};

	return names[growth];
}

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

bool writer_will_grow(struct writer *w)
{
	u64 now = loop_now_ns(w->ct->loop);

	if (w->growth == VOLUME_GROWS && now - w->full_ns > EXTEND_NS)
		w->growth = VOLUME_FIXED; /* nobody does it */
	return w->growth == VOLUME_GROWS ||
	       (w->growth == VOLUME_FIXED && now - w->start_ns < HELLO_NS);
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

/* The writer that a call is about; NULL: call->ret says why there is none. */
static struct writer *called_writer(struct volume_call *call)
{
	bool found;
	struct writer *w = find_writer(call->ct, call->node, &found);

	if (!found)
		call->ret = -ENOENT;
	else if (!w)
		call->ret = -EROFS;
	else if (!w->meta)
		call->ret = -EOPNOTSUPP;
	return call->ret ? NULL : w;
}

/* Whoever says something of the volume may have made it larger. */
static void look_at_size(struct writer *w)
{
	struct io_dev *dev = w->img->dev;
	u64 before = io_dev_bytes(dev);

	dev->ops->refresh_size(dev);
	if (io_dev_bytes(dev) > before)
		writer_grown(w);
}

static void threshold_run(struct loop *loop, void *arg)
{
	struct volume_call *call = arg;
	struct writer *w = called_writer(call);

	if (!w)
		return;
	w->threshold = call->threshold;
	look_at_size(w);
}

static void say_growth(struct writer *w)
{
	json_object *data = json_object_new_object();

	if (w->growth == VOLUME_STUCK)
		log_warn("%s: cannot be made larger: %s", w->layer->path, w->growth_reason);
	else
		log_info("%s: is made larger again", w->layer->path);
	json_object_object_add(data, "node-name", json_object_new_string(w->layer->node_name));
	json_object_object_add(data, "state",
			       json_object_new_string(volume_growth_name(w->growth)));
	if (w->growth_reason[0])
		json_object_object_add(data, "reason", json_object_new_string(w->growth_reason));
	target_event(w->ct->ti, "QCHAIN_VOLUME_GROWTH", data);
}

static void growth_run(struct loop *loop, void *arg)
{
	struct volume_call *call = arg;
	struct writer *w = called_writer(call);
	enum volume_growth before;

	if (!w)
		return;
	before = w->growth;
	w->growth = call->growth;
	snprintf(w->growth_reason, sizeof(w->growth_reason), "%s",
		 call->growth == VOLUME_STUCK ? call->reason : "");
	if ((before == VOLUME_STUCK) != (w->growth == VOLUME_STUCK))
		say_growth(w);
	look_at_size(w);
}

static int run(struct target *ti, void (*fn)(struct loop *loop, void *arg),
	       struct volume_call *call, struct qc_err *err)
{
	call->ct = ti->private;
	if (ti->type == &target_chain)
		loop_call(call->ct->loop, fn, call);
	else
		call->ret = -ENOENT;
	switch (call->ret) {
	case -ENOENT:
		return qc_err_set(err, -ENOENT, "Device '%.80s' not found", call->node);
	case -EROFS:
		return qc_err_set(err, -EROFS, "%s: takes no writes, must be the active layer or "
				  "what a merge writes to", call->node);
	case -EOPNOTSUPP:
		return qc_err_set(err, -EOPNOTSUPP, "%s: is raw and as long as it will be, must be "
				  "qcow2", call->node);
	default:
		return call->ret;
	}
}

int chain_set_write_threshold(struct target *ti, const char *node, u64 bytes, struct qc_err *err)
{
	struct volume_call call = { .node = node, .threshold = bytes };

	return run(ti, threshold_run, &call, err);
}

int chain_tell_growth(struct target *ti, const char *node, enum volume_growth growth,
		      const char *reason, struct qc_err *err)
{
	struct volume_call call = { .node = node, .growth = growth, .reason = reason };

	return run(ti, growth_run, &call, err);
}

void chain_add_volume(const struct chain_target *ct, const char *node, json_object *object)
{
	bool found;
	const struct writer *w = find_writer(ct, node, &found);
	bool grows = w && w->meta, full;

	json_object_object_add(object, "write_threshold",
			       json_object_new_int64(grows ? w->threshold : 0));
	if (!grows)
		return;
	full = w->full || w->starved_bytes == io_dev_bytes(w->img->dev);
	json_object_object_add(object, "qchain-allocated-end",
			       json_object_new_int64(w->allocated_end));
	json_object_object_add(object, "qchain-writer", json_object_new_int64(w->start_ns));
	json_object_object_add(object, "qchain-full", json_object_new_boolean(full));
	json_object_object_add(object, "qchain-growth",
			       json_object_new_string(volume_growth_name(w->growth)));
}

json_object *writer_growth_json(const struct writer *w)
{
	json_object *o = json_object_new_object();

	json_object_object_add(o, "state", json_object_new_string(volume_growth_name(w->growth)));
	if (w->growth_reason[0])
		json_object_object_add(o, "reason", json_object_new_string(w->growth_reason));
	return o;
}
