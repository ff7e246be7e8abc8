// SPDX-License-Identifier: GPL-2.0-or-later
/* An online revert: an overlay of a lower layer becomes the active layer, what was above goes. */
#include "chain-private.h"
#include "target-private.h"

#include <errno.h>
#include <qchain/crash-point.h>
#include <qchain/log.h>
#include <qchain/online.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/*
 *   hold      no write starts any more (chain-hold.c)
 *   rest      what had begun ends, and is linked and durable: the intent log has
 *             nothing of the old active layer, nor waits anything for space
 *   mark      the overlay's header says that it is open for writing: from here on
 *             `up` takes it for the top, should we die
 *   switch    windows that show a layer that goes are dropped; one store: the layer
 *             table with the overlay on the layer that it stands on
 *   release   writes start again, in the overlay
 *   seal      the old active layer, as after a snapshot
 *   grace     nobody reads the layers that went
 *   close     their images                                          a worker
 *
 * What the layers that stay hold reads the same as before, so windows that show
 * nothing else are kept.
 */

#define REST_MS 800u
#define HOLD_MS 1000u
#define POLL_NS 1000000ull
#define CLOSE_MS 5000u

struct revert {
	struct chain_target *ct;
	u32 nr; /* layers that go, from the top */
	struct layer *layer; /* the overlay's */
	struct writer *writer;
	struct qc_err *err;
	int ret;
	struct chain_order order; /* to come; then the former one */
	/* from the switch on: metadata loop */
	struct writer *old; /* compared, not looked at, once it is sealed */
	struct grace_waiter grace;
	struct loop_timer timer;
	struct chain_work work;
	sem_t closed;
	int users; /* caller, and what comes after the switch */
};

static void put_revert(struct revert *r)
{
	if (__atomic_sub_fetch(&r->users, 1, __ATOMIC_ACQ_REL))
		return;
	sem_destroy(&r->closed);
	chain_order_exit(&r->order);
	free(r);
}

/* ---- after the switch: the layers that went are closed ------------------------------------ */

static void close_layers(struct chain_work *work)
{
	struct revert *r = container_of(work, struct revert, work);

	for (u32 i = 0; i < r->nr; i++)
		image_close(r->order.layers[i].img);
}

static void layers_closed(struct chain_work *work)
{
	struct revert *r = container_of(work, struct revert, work);
	const struct layer_table *t = r->order.table;

	for (u32 i = 0; i < r->nr; i++) {
		log_info("%s: is no layer any more, closed", r->order.layers[i].path);
		layer_free(t->by_id[t->order[i]]);
		free(r->order.layers[i].path);
	}
	sem_post(&r->closed);
	put_revert(r);
}

static bool is_sealed(const struct revert *r)
{
	const struct writer *w;

	cds_list_for_each_entry(w, &r->ct->closing, node)
		if (w == r->old)
			return false;
	return true;
}

static void wait_sealed(struct loop *loop, struct loop_timer *timer)
{
	struct revert *r = container_of(timer, struct revert, timer);

	if (!is_sealed(r)) {
		loop_timer_set(loop, timer, POLL_NS);
		return;
	}
	r->work.run = close_layers;
	r->work.done = layers_closed;
	chain_work(r->ct, &r->work);
}

static void nobody_reads(struct grace_waiter *waiter)
{
	struct revert *r = container_of(waiter, struct revert, grace);

	r->timer.fn = wait_sealed;
	wait_sealed(r->ct->loop, &r->timer);
}

/* ---- the switch ----------------------------------------------------------------------------- */

static void switch_down(struct revert *r)
{
	struct chain_target *ct = r->ct;

	map_forget(&ct->map, r->order.gone);
	chain_retire(ct);
	writer_start(r->writer, r->order.table->write_layer);
	chain_order_publish(ct, &r->order);
	r->old = ct->active;
	ct->active = r->writer;
	ct->generation++;
	writer_seal(r->old);
	r->users++;
	r->grace.drained = nobody_reads;
	grace_wait(&ct->grace, &r->grace);
}

static bool at_rest(struct chain_target *ct)
{
	return cds_list_empty(&ct->closing) && writer_idle(ct->active) && !ct->uncommitted;
}

static void revert_run(struct loop *loop, void *arg)
{
	struct revert *r = arg;
	struct chain_target *ct = r->ct;

	r->ret = -ETIMEDOUT;
	if (!ct->hold || ct->stopping || !at_rest(ct) ||
	    layer_table_inherit(r->order.table, ct->map.table, r->layer->img->dev)) {
		qc_err_set(r->err, r->ret, "%s: writes are not held any more, or the device is "
			   "going down; try again", r->layer->path);
		return;
	}
	switch_down(r);
	r->ret = 0;
}

/* ---- rest ------------------------------------------------------------------------------- */

static void rest_run(struct loop *loop, void *arg)
{
	struct revert *r = arg;
	struct writer *w = r->ct->active;

	r->ret = at_rest(r->ct) ? 0 : -EAGAIN;
	if (!r->ret || !w)
		return;
	writer_scan_hurry(w);
	if (w->meta)
		meta_housekeep(w->meta);
}

static int wait_rest(struct revert *r)
{
	const struct timespec pause = { .tv_nsec = POLL_NS };

	for (u32 ms = 0; ms < REST_MS; ms++) {
		loop_call(r->ct->loop, rest_run, r);
		if (!r->ret)
			return 0;
		nanosleep(&pause, NULL);
	}
	return qc_err_set(r->err, -EBUSY, "%s: does not come to rest (what it has written is not "
			  "on its volume yet, waits for space, or was not sealed); see qchainctl "
			  "status, and try again", r->ct->chain->layers[0].path);
}

/* Held: nothing of the layers that go is to be acknowledged once the overlay is marked. */
static int revert_held(struct revert *r)
{
	int ret = wait_rest(r);

	if (!ret)
		ret = chain_order_plan(r->ct, 0, r->nr, r->layer, &r->order, r->err);
	if (ret)
		return ret;
	crash_point("revert.rest");
	ret = writer_open(r->ct, r->layer, true, &r->writer, r->err);
	crash_point("revert.marked");
	if (ret)
		return ret;
	loop_call(r->ct->loop, revert_run, r);
	crash_point("revert.switched");
	if (!r->ret)
		return 0;
	writer_mark_closed(r->writer);
	writer_destroy(r->writer);
	return r->ret;
}

/* ---- asking for it ---------------------------------------------------------------------- */

static int check_revert(struct target *ti, const char *node, struct image *overlay,
			const char *path, u32 *depth, struct qc_err *err)
{
	struct chain_target *ct = ti->private;

	if (ti->type != &target_chain)
		return qc_err_set(err, -EINVAL, "%s: not a chain, has no snapshots",
				  ti->type->name);
	for (*depth = 0; *depth < ct->chain->nr_layers; ++*depth)
		if (!strcmp(ct->chain->layers[*depth].node_name, node))
			break;
	if (*depth == ct->chain->nr_layers)
		return qc_err_set(err, -ENOENT, "Cannot find device='' nor node-name='%.80s'",
				  node);
	if (!*depth)
		return qc_err_set(err, -EINVAL, "%s: is the active layer, which a snapshot is "
				  "taken of; must be below it", node);
	if (layer_table_is_read_only(ct->map.table) || !ct->active)
		return qc_err_set(err, -EROFS, "%s: the device is read-only, must be writable",
				  ct->chain->layers[0].path);
	return chain_check_overlay(ct, overlay, path, *depth, err);
}

static bool wait_closed(struct revert *r)
{
	struct timespec until;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += CLOSE_MS / 1000;
	while (sem_timedwait(&r->closed, &until) < 0)
		if (errno != EINTR)
			return false;
	return true;
}

int chain_revert(struct target *ti, const char *node, struct image *overlay, const char *path,
		 const char *node_name, bool *closed, struct qc_err *err)
{
	struct revert *r = calloc(1, sizeof(*r));
	u32 depth = 0;
	int ret = check_revert(ti, node, overlay, path, &depth, err);

	if (!ret && r)
		r->layer = layer_create(overlay, path, node_name);
	if (ret || !r || !r->layer) {
		free(r);
		return ret ? ret : qc_err_set(err, -ENOMEM, "%s: out of memory", path);
	}
	r->ct = ti->private;
	r->nr = depth;
	r->err = err;
	r->users = 1;
	sem_init(&r->closed, 0, 0);
	ret = chain_hold(ti, HOLD_MS, err);
	if (!ret) {
		ret = revert_held(r);
		chain_release(ti, NULL);
	}
	if (ret)
		layer_free(r->layer);
	else
		*closed = wait_closed(r);
	put_revert(r);
	return ret;
}
