// SPDX-License-Identifier: GPL-2.0-or-later
/* Space: giving clusters back when that is safe, and waiting when there is none. */
#include "chain-private.h"

#include <errno.h>
#include <qchain/log.h>
#include <qchain/mutant.h>
#include <stdlib.h>

/*
 * Freeing runs backwards (rule B1): the unmapping is linked, then durable; then
 * grace, because requests issued under the old map may still read or write the
 * place; then the refcount goes down, and only then can it be allocated again.
 */

#define FULL_POLL_NS 500000000ull

struct reclaim {
	struct writer *writer;
	struct meta_unmap unmap;
	struct grace_waiter grace;
	struct meta_wait wait;
};

static void reclaim_release(struct meta_wait *wait)
{
	struct reclaim *r = container_of(wait, struct reclaim, wait);
	struct writer *w = r->writer;
	int ret = refcounts_release(w->rc, r->unmap.host, r->unmap.bytes, wait);

	if (ret == -EAGAIN)
		return;
	if (ret) {
		w->scanned = false;
		if (ret == -EUCLEAN)
			writer_miscounted(w);
		log_warn("%s: cluster at %llu cannot be given back (error %d); "
			 "qchainctl check --repair finds it",
			 w->layer->path, (unsigned long long)r->unmap.host, -ret);
	}
	free(r);
	w->nr_reclaims--;
	writer_unpark(w);
}

static void reclaim_drained(struct grace_waiter *waiter)
{
	reclaim_release(&container_of(waiter, struct reclaim, grace)->wait);
}

static void reclaim_durable(struct meta_unmap *unmap, int error)
{
	struct reclaim *r = container_of(unmap, struct reclaim, unmap);

	if (!error && r->writer->holds) {
		cds_list_add_tail(&r->unmap.node, &r->writer->held);
		return;
	}
	if (!error) {
		grace_wait(&r->writer->ct->grace, &r->grace);
		return;
	}
	r->writer->nr_reclaims--;
	free(r);
}

static struct reclaim *reclaim_create(struct writer *w, u64 host, u64 bytes)
{
	struct reclaim *r = calloc(1, sizeof(*r));

	if (!r) {
		w->scanned = false; /* leaked until the next scan */
		return NULL;
	}
	r->writer = w;
	r->unmap.host = host;
	r->unmap.bytes = bytes;
	r->unmap.durable = reclaim_durable;
	r->grace.drained = reclaim_drained;
	r->wait.fn = reclaim_release;
	w->nr_reclaims++;
	return r;
}

int writer_unmap(struct writer *w, u64 host, u64 bytes)
{
	struct reclaim *r = reclaim_create(w, host, bytes);

	refcounts_touch(w->rc, host, bytes);
	if (!r)
		return -ENOMEM;
	if (MUTANT(FREE_EARLY))
		grace_wait(&w->ct->grace, &r->grace);
	else
		meta_txn_unmap(w->meta, &r->unmap);
	return 0;
}

void writer_release_held(struct writer *w)
{
	struct meta_unmap *unmap, *tmp;
	struct reclaim *r;

	w->holds = false;
	cds_list_for_each_entry_safe(unmap, tmp, &w->held, node) {
		r = container_of(unmap, struct reclaim, unmap);
		cds_list_del(&unmap->node);
		grace_wait(&w->ct->grace, &r->grace);
	}
}

void writer_release_now(struct writer *w, u64 host, u64 bytes)
{
	struct reclaim *r = reclaim_create(w, host, bytes);

	if (r)
		reclaim_release(&r->wait);
}

/* ---- full ------------------------------------------------------------------------- */

static void say_full(struct writer *w, bool full)
{
	const struct layer *top = w->layer;
	json_object *data;

	if (w->full == full)
		return;
	w->full = full;
	w->full_ns = full ? loop_now_ns(w->ct->loop) : 0;
	if (full)
		log_warn("%s: full (%llu bytes), writes that need space wait%s",
			 top->path, (unsigned long long)io_dev_bytes(top->img->dev),
			 w->growth == VOLUME_GROWS ? " until it has grown" : "; extend the volume");
	else
		log_info("%s: writes go on", top->path);
	data = json_object_new_object();
	json_object_object_add(data, "node-name", json_object_new_string(top->node_name));
	json_object_object_add(data, "operation", json_object_new_string("write"));
	json_object_object_add(data, "action", json_object_new_string(full ? "stop" : "ignore"));
	json_object_object_add(data, "nospace", json_object_new_boolean(full));
	json_object_object_add(data, "reason", json_object_new_string(
			       full ? "No space left on device" : "space again"));
	target_event(w->ct->ti, "BLOCK_IO_ERROR", data);
}

void writer_park(struct write_op *op)
{
	struct writer *w = op->writer;

	cds_list_add_tail(&op->node, &w->parked);
	queue_park(op);
	meta_housekeep(w->meta); /* what is unmapped becomes free with it */
	if (queue_is_low(op) && w->ct->on_full == ON_FULL_FAIL && w->full)
		loop_timer_set(w->ct->loop, &w->full_timer, 1); /* not in its own time */
	else if (!w->full_timer.deadline_ns)
		loop_timer_set(w->ct->loop, &w->full_timer,
			       w->nr_reclaims ? 1 : FULL_POLL_NS / 10);
}

/* Let every parked operation ask again. */
void writer_unpark(struct writer *w)
{
	write_ops_run(&w->parked);
}

static void fail_parked(struct writer *w)
{
	struct write_op *op;

	cds_list_for_each_entry(op, &w->parked, node)
		op->error = -ENOSPC;
	write_ops_run(&w->parked);
}

/*
 * Rule A4: before a device is called full, what is unmapped is committed and,
 * after grace, reused; then a scan looks for leaks, once.
 */
static bool space_may_come(struct writer *w)
{
	if (w->nr_reclaims || refcounts_busy(w->rc)) {
		meta_housekeep(w->meta);
		return true;
	}
	if (!w->scan && !w->scanned && !w->ct->stopping)
		writer_scan_start(w);
	writer_scan_hurry(w);
	return w->scan;
}

void writer_grown(struct writer *w)
{
	say_full(w, false);
	writer_unpark(w);
}

/* While operations are parked: has the device grown, was something freed? */
void writer_full_timer(struct loop *loop, struct loop_timer *timer)
{
	struct writer *w = container_of(timer, struct writer, full_timer);
	struct io_dev *dev = w->img->dev;
	u64 before = io_dev_bytes(dev);

	if (cds_list_empty(&w->parked)) {
		say_full(w, false);
		return;
	}
	dev->ops->refresh_size(dev);
	if (io_dev_bytes(dev) > before) {
		writer_grown(w);
	} else if (!space_may_come(w)) {
		say_full(w, true);
		if (w->ct->stopping || (w->ct->on_full == ON_FULL_FAIL && !writer_will_grow(w)))
			fail_parked(w);
	}
	loop_timer_set(loop, &w->full_timer, FULL_POLL_NS);
}
