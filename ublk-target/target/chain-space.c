// SPDX-License-Identifier: GPL-2.0-or-later
/* Space: giving clusters back when that is safe, and waiting when there is none. */
#include "chain-private.h"

#include <errno.h>
#include <qchain/log.h>
#include <stdlib.h>

/*
 * Freeing runs backwards (rule B1): the unmapping is linked, then durable; then
 * grace, because requests issued under the old map may still read or write the
 * place; then the refcount goes down, and only then can it be allocated again.
 */

#define FULL_POLL_NS 500000000ull

struct reclaim {
	struct chain_target *ct;
	struct meta_unmap unmap;
	struct grace_waiter grace;
	struct meta_wait wait;
};

static void reclaim_release(struct meta_wait *wait)
{
	struct reclaim *r = container_of(wait, struct reclaim, wait);
	struct chain_target *ct = r->ct;
	int ret = refcounts_release(ct->rc, r->unmap.host, r->unmap.bytes, wait);

	if (ret == -EAGAIN)
		return;
	if (ret)
		log_warn("%s: cluster at %llu cannot be given back (error %d); "
			 "qchainctl check --repair finds it",
			 ct->chain->layers[0].path, (unsigned long long)r->unmap.host, -ret);
	free(r);
	ct->nr_reclaims--;
	chain_unpark(ct);
}

static void reclaim_drained(struct grace_waiter *waiter)
{
	reclaim_release(&container_of(waiter, struct reclaim, grace)->wait);
}

static void reclaim_durable(struct meta_unmap *unmap, int error)
{
	struct reclaim *r = container_of(unmap, struct reclaim, unmap);

	if (!error) {
		grace_wait(&r->ct->grace, &r->grace);
		return;
	}
	r->ct->nr_reclaims--;
	free(r);
}

static struct reclaim *reclaim_create(struct chain_target *ct, u64 host, u64 bytes)
{
	struct reclaim *r = calloc(1, sizeof(*r));

	if (!r)
		return NULL; /* leaked until the next check */
	r->ct = ct;
	r->unmap.host = host;
	r->unmap.bytes = bytes;
	r->unmap.durable = reclaim_durable;
	r->grace.drained = reclaim_drained;
	r->wait.fn = reclaim_release;
	ct->nr_reclaims++;
	return r;
}

int chain_unmap(struct chain_target *ct, u64 host, u64 bytes)
{
	struct reclaim *r = reclaim_create(ct, host, bytes);

	if (!r)
		return -ENOMEM;
	meta_txn_unmap(ct->meta, &r->unmap);
	return 0;
}

void chain_release_now(struct chain_target *ct, u64 host, u64 bytes)
{
	struct reclaim *r = reclaim_create(ct, host, bytes);

	if (r)
		reclaim_release(&r->wait);
}

/* ---- full ------------------------------------------------------------------------- */

static void say_full(struct chain_target *ct, bool full)
{
	const struct chain_layer *top = &ct->chain->layers[0];
	json_object *data;

	if (ct->full == full)
		return;
	ct->full = full;
	if (full)
		log_warn("%s: full (%llu bytes), writes that need space wait; extend the volume",
			 top->path, (unsigned long long)top->img->dev->size_bytes);
	else
		log_info("%s: writes go on", top->path);
	data = json_object_new_object();
	json_object_object_add(data, "node-name", json_object_new_string(top->node_name));
	json_object_object_add(data, "operation", json_object_new_string("write"));
	json_object_object_add(data, "action", json_object_new_string(full ? "stop" : "ignore"));
	json_object_object_add(data, "nospace", json_object_new_boolean(full));
	json_object_object_add(data, "reason", json_object_new_string(
			       full ? "No space left on device" : "space again"));
	target_event(ct->ti, "BLOCK_IO_ERROR", data);
}

void chain_park(struct write_op *op)
{
	struct chain_target *ct = op->ct;

	cds_list_add_tail(&op->node, &ct->parked);
	meta_housekeep(ct->meta); /* what is unmapped becomes free with it */
	if (!ct->full_timer.deadline_ns)
		loop_timer_set(ct->loop, &ct->full_timer, ct->nr_reclaims ? 1 : FULL_POLL_NS / 10);
}

/* Let every parked operation ask again. */
void chain_unpark(struct chain_target *ct)
{
	struct write_op *op, *tmp;
	CDS_LIST_HEAD(ops);

	if (cds_list_empty(&ct->parked))
		return;
	cds_list_splice(&ct->parked, &ops);
	CDS_INIT_LIST_HEAD(&ct->parked);
	cds_list_for_each_entry_safe(op, tmp, &ops, node) {
		cds_list_del(&op->node);
		write_op_run(op);
	}
}

static void fail_parked(struct chain_target *ct)
{
	struct write_op *op, *tmp;
	CDS_LIST_HEAD(ops);

	cds_list_splice(&ct->parked, &ops);
	CDS_INIT_LIST_HEAD(&ct->parked);
	cds_list_for_each_entry_safe(op, tmp, &ops, node) {
		cds_list_del(&op->node);
		op->error = -ENOSPC;
		write_op_run(op);
	}
}

/* While operations are parked: has the device grown, was something freed? */
void chain_full_timer(struct loop *loop, struct loop_timer *timer)
{
	struct chain_target *ct = container_of(timer, struct chain_target, full_timer);
	struct io_dev *dev = ct->img->dev;
	u64 before = dev->size_bytes;

	if (cds_list_empty(&ct->parked)) {
		say_full(ct, false);
		return;
	}
	dev->ops->refresh_size(dev);
	if (dev->size_bytes > before) {
		chain_unpark(ct);
	} else if (ct->nr_reclaims) {
		meta_housekeep(ct->meta);
	} else {
		say_full(ct, true);
		if (ct->on_full == ON_FULL_FAIL || ct->stopping)
			fail_parked(ct);
	}
	loop_timer_set(loop, &ct->full_timer, FULL_POLL_NS);
}
