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
	/* from the switch on: metadata loop */
	struct writer *old; /* compared, not looked at, once it is sealed */
	struct chain_layer *gone;
	struct layer **gone_layers;
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
	free(r->gone);
	free(r->gone_layers);
	free(r);
}

/* ---- after the switch: the layers that went are closed ------------------------------------ */

static void close_layers(struct chain_work *work)
{
	struct revert *r = container_of(work, struct revert, work);

	for (u32 i = 0; i < r->nr; i++)
		image_close(r->gone[i].img);
}

static void layers_closed(struct chain_work *work)
{
	struct revert *r = container_of(work, struct revert, work);

	for (u32 i = 0; i < r->nr; i++) {
		log_info("%s: is no layer any more, closed", r->gone[i].path);
		layer_free(r->gone_layers[i]);
		free(r->gone[i].path);
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

/* The table to come: the overlay, then what stays. */
static struct layer_table *make_table(struct revert *r)
{
	struct layer_table *below = layer_table_drop(r->ct->map.table, 0, r->nr), *table = NULL;

	if (!below)
		qc_err_set(r->err, -ENOMEM, "%s: out of memory", r->layer->path);
	else
		layer_table_push(below, r->layer, &table, r->err);
	layer_table_free(below);
	return table;
}

static struct chain_layer *make_layers(const struct revert *r)
{
	const struct chain *chain = r->ct->chain;
	struct chain_layer *layers = calloc(chain->nr_layers - r->nr + 1, sizeof(*layers));

	if (!layers)
		return NULL;
	layers[0].img = r->layer->img;
	layers[0].path = strdup(r->layer->path);
	memcpy(layers[0].node_name, r->layer->node_name, sizeof(layers[0].node_name));
	memcpy(layers + 1, chain->layers + r->nr, (chain->nr_layers - r->nr) * sizeof(*layers));
	if (layers[0].path)
		return layers;
	free(layers);
	return NULL;
}

/* What goes, and no window shows it any more. */
static int take_gone(struct revert *r)
{
	const struct layer_table *t = r->ct->map.table;
	bool *gone = calloc(t->nr_ids, sizeof(*gone));

	r->gone = calloc(r->nr, sizeof(*r->gone));
	r->gone_layers = calloc(r->nr, sizeof(*r->gone_layers));
	if (!gone || !r->gone || !r->gone_layers) {
		free(gone);
		return -ENOMEM;
	}
	for (u32 i = 0; i < r->nr; i++) {
		gone[t->order[i]] = true;
		r->gone[i] = r->ct->chain->layers[i];
		r->gone_layers[i] = t->by_id[t->order[i]];
	}
	map_forget(&r->ct->map, gone);
	chain_retire(r->ct);
	free(gone);
	return 0;
}

static void switch_down(struct revert *r, struct layer_table *table, struct chain_layer *layers)
{
	struct chain_target *ct = r->ct;

	writer_start(r->writer, table->write_layer);
	free(ct->chain->layers);
	ct->chain->layers = layers;
	ct->chain->nr_layers -= r->nr - 1;
	r->old = ct->active;
	r->old->old_table = ct->map.table;
	__atomic_store_n(&ct->map.table, table, __ATOMIC_RELEASE);
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
	struct layer_table *table;
	struct chain_layer *layers;

	r->ret = -ETIMEDOUT;
	if (!r->ct->hold || r->ct->stopping || !at_rest(r->ct)) {
		qc_err_set(r->err, r->ret, "%s: writes are not held any more, or the device is "
			   "going down; try again", r->layer->path);
		return;
	}
	r->ret = -ENOMEM;
	layers = make_layers(r);
	table = layers ? make_table(r) : NULL;
	if (!table || take_gone(r)) {
		if (layers)
			free(layers[0].path);
		free(layers);
		layer_table_free(table);
		r->ret = r->err->code ? r->err->code :
			 qc_err_set(r->err, -ENOMEM, "%s: out of memory", r->layer->path);
		return;
	}
	switch_down(r, table, layers);
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
