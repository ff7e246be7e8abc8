// SPDX-License-Identifier: GPL-2.0-or-later
/* Requests that wait: the tags that parked writes keep (rule E2), and what status tells. */
#include "chain-private.h"

#include <qchain/log.h>
#include <stdio.h>

/*
 * A write that waits for space keeps its tag, and with it, on NBD, its part of
 * the connection's memory. Reads and flushes go on as long as there are tags
 * left. When less than a quarter is left, people are told.
 *
 * An operation is counted from the moment that it parks until it has its place
 * or has failed, not while it merely asks again: nothing flickers.
 */

/* ---- counting --------------------------------------------------------------------- */

static struct request_tag *tag_of(const struct write_op *op)
{
	return op->parent->req->tag;
}

static bool is_low(const struct request_queue *q)
{
	return 4 * (q->tags - q->parked) < q->tags ||
	       (q->bytes && 4 * (q->bytes - min(q->bytes, q->parked_bytes)) < q->bytes);
}

/* An event of ours: QEMU has no name for it. */
static void say_low(const struct writer *w, const struct request_queue *q)
{
	json_object *data = json_object_new_object();

	log_warn("%s: %s: %u of %u requests wait for space, reads wait too when all do; extend "
		 "the volume", w->layer->path, q->name, q->parked, q->tags);
	json_object_object_add(data, "node-name", json_object_new_string(w->layer->node_name));
	json_object_object_add(data, "queue", json_object_new_string(q->name));
	json_object_object_add(data, "tags", json_object_new_int64(q->tags));
	json_object_object_add(data, "parked", json_object_new_int64(q->parked));
	target_event(w->ct->ti, "QCHAIN_QUEUE_LOW", data);
}

void queue_park(struct write_op *op)
{
	struct request_tag *tag = tag_of(op);
	struct request_queue *q;

	request_set_stage(op->parent->req, "space");
	if (!tag || op->waits_for_space)
		return;
	op->waits_for_space = true;
	if (tag->parked++)
		return;
	q = tag->queue;
	if (!q->parked++)
		cds_list_add_tail(&q->node, &op->writer->ct->queues);
	q->parked_bytes += tag->bytes;
	if (is_low(q) && !q->low) {
		q->low = true;
		say_low(op->writer, q);
	}
}

/* The queue may be gone once its last parked request goes on. */
void queue_unpark(struct write_op *op)
{
	struct request_tag *tag = tag_of(op);
	struct request_queue *q;

	if (!op->waits_for_space)
		return;
	op->waits_for_space = false;
	if (--tag->parked)
		return;
	q = tag->queue;
	q->parked_bytes -= tag->bytes;
	if (!--q->parked)
		cds_list_del(&q->node);
	q->low = q->low && is_low(q);
}

bool queue_is_low(const struct write_op *op)
{
	return op->waits_for_space && tag_of(op)->queue->low;
}

json_object *queues_json(const struct chain_target *ct)
{
	json_object *list = json_object_new_array(), *one;
	struct request_queue *q;

	cds_list_for_each_entry(q, &ct->queues, node) {
		one = json_object_new_object();
		json_object_object_add(one, "queue", json_object_new_string(q->name));
		json_object_object_add(one, "tags", json_object_new_int64(q->tags));
		json_object_object_add(one, "parked", json_object_new_int64(q->parked));
		json_object_object_add(one, "low", json_object_new_boolean(q->low));
		json_object_array_add(list, one);
	}
	return list;
}

/* ---- where a request is -------------------------------------------------------------- */

/* Younger ones are on their way; the looking costs their loop time. */
#define LOCATE_AFTER_NS 1000000ull

static const struct io_dev *dev_of(const struct request *req)
{
	u32 i;

	for (i = 0; req->loop->nr_free_ops < CHAIN_LOOP_OPS && i < CHAIN_LOOP_OPS; i++)
		if (req->loop->ops[i].owner == req)
			return req->loop->ops[i].dev;
	return req->io.dev;
}

void chain_locate(const struct target *ti, const struct request *req, struct request_info *info)
{
	const struct io_dev *dev;

	if (__atomic_load_n(&req->stage, __ATOMIC_RELAXED)) /* the metadata thread has it */
		return;
	if (req->op == REQ_FLUSH)
		info->stage = "flush";
	info->old = req->loop->draining && req->epoch != req->loop->epoch;
	dev = info->waited_ns > LOCATE_AFTER_NS ? dev_of(req) : NULL;
	if (dev)
		snprintf(info->image, sizeof(info->image), "%s", dev->path);
}
