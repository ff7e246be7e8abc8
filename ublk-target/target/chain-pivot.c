// SPDX-License-Identifier: GPL-2.0-or-later
/* The end of a commit of the active layer: its base takes its place. */
#include "chain-merge.h"

#include <errno.h>
#include <qchain/crash-point.h>
#include <qchain/log.h>
#include <stdlib.h>
#include <string.h>

/*
 *   idle      all of the old active layer was handed over; what it freed is free
 *   closed    its header says that it was closed                            a worker
 *   publish   the layer table without it: the base is the active layer
 *   grace     nobody reads it any more
 *   gone      its writer, then its image                                    a worker
 *
 * On the disk nothing changes with that: the old layer is empty, and names the base.
 * Until the device's record says that the base is the top (qchainctl's work), the
 * next start finds the old chain, which reads the same.
 */

#define PIVOT_POLL_NS 1000000ull

static void over(struct merge *m, int ret)
{
	if (ret && !m->job->err.code)
		m->job->err = m->err;
	job_prepared(m->job, ret);
}

static void failed(struct merge *m, int error)
{
	turn_end(m->ct);
	over(m, error);
}

/* ---- the old layer goes ------------------------------------------------------------ */

static void close_top(struct chain_work *work)
{
	struct merge *m = container_of(work, struct merge, work);

	image_close(m->layers[0].img);
}

static void top_closed(struct chain_work *work)
{
	struct merge *m = container_of(work, struct merge, work);
	const struct chain_target *ct = m->ct;

	log_info("%s: is empty and closed, %s is the active layer", m->layers[0].path,
		 ct->chain->layers[0].path);
	layer_free(m->table->by_id[m->table->order[0]]);
	free(m->layers[0].path);
	over(m, 0);
}

/* A fold may still be reading a table through the writer's cache. */
static void forget_writer(struct loop *loop, struct loop_timer *timer)
{
	struct merge *m = container_of(timer, struct merge, timer);

	if (!meta_idle(m->top->meta)) {
		loop_timer_set(loop, timer, PIVOT_POLL_NS);
		return;
	}
	writer_destroy(m->top);
	m->work.run = close_top;
	m->work.done = top_closed;
	chain_work(m->ct, &m->work);
}

static void nobody_reads(struct grace_waiter *waiter)
{
	struct merge *m = container_of(waiter, struct merge, grace);

	m->timer.fn = forget_writer;
	forget_writer(m->ct->loop, &m->timer);
}

/* ---- publish ------------------------------------------------------------------------- */

static void publish(struct merge *m)
{
	struct chain_target *ct = m->ct;
	struct layer_table *old = ct->map.table;
	struct chain_layer *layers = ct->chain->layers;

	m->table->read_only = old->read_only;
	m->table->write_layer = m->base->id;
	memset(m->table->flush, 0, sizeof(m->table->flush));
	layer_table_add_flush(m->table, m->base->img->dev);
	__atomic_store_n(&ct->map.table, m->table, __ATOMIC_RELEASE);
	ct->active = m->base;
	ct->receiving = NULL;
	chain_layers_changed(ct);
	ct->chain->layers = m->layers;
	ct->chain->nr_layers--;
	m->base->layer->merging = false;
	m->base = NULL;
	m->pivots = false;
	merge_layers_gone(m, 1);
	m->table = old;
	m->layers = layers;
	crash_point("commit.pivot");
	m->grace.drained = nobody_reads;
	grace_wait(&ct->grace, &m->grace);
}

static void close_header(struct chain_work *work)
{
	struct merge *m = container_of(work, struct merge, work);
	int ret = io_dev_flush(m->top->img->dev);

	if (ret)
		qc_err_set(&m->err, ret, "%s: not closed, its volume could not be flushed (%s)",
			   m->top->img->dev->path, strerror(-ret));
	else
		writer_mark_closed(m->top);
}

static void header_closed(struct chain_work *work)
{
	struct merge *m = container_of(work, struct merge, work);
	int ret;

	m->top->closing = false;
	if (m->err.code)
		m->top->failed = true;
	crash_point("commit.closed");
	ret = m->top->failed ? -EIO : merge_forget(m, 0, 1);
	if (ret) {
		if (!m->err.code)
			qc_err_set(&m->err, ret, "%s: not closed (%s)", m->top->layer->path,
				   strerror(-ret));
		failed(m, ret);
		return;
	}
	publish(m);
}

/* ---- idle ------------------------------------------------------------------------------- */

static void wait_idle(struct loop *loop, struct loop_timer *timer)
{
	struct merge *m = container_of(timer, struct merge, timer);

	if (!m->top->failed && !writer_idle(m->top)) {
		writer_scan_stop(m->top);
		meta_housekeep(m->top->meta);
		loop_timer_set(loop, timer, PIVOT_POLL_NS);
		return;
	}
	m->top->closing = true;
	m->work.run = close_header;
	m->work.done = header_closed;
	chain_work(m->ct, &m->work);
}

static int make_next(struct merge *m)
{
	const struct chain *chain = m->ct->chain;
	u32 left = chain->nr_layers - 1;

	m->table = layer_table_drop(m->ct->map.table, 0, 1);
	m->layers = calloc(left, sizeof(*m->layers));
	if (!m->table || !m->layers)
		return qc_err_set(&m->err, -ENOMEM, "%s: out of memory", chain->layers[0].path);
	memcpy(m->layers, chain->layers + 1, left * sizeof(*m->layers));
	return 0;
}

static void begin_pivot(struct loop *loop, struct loop_timer *timer)
{
	struct merge *m = container_of(timer, struct merge, timer);
	int ret;

	if (!turn_try(m->ct, m->job->id)) {
		loop_timer_set(loop, timer, PIVOT_POLL_NS);
		return;
	}
	ret = make_next(m);
	if (ret) {
		failed(m, ret);
		return;
	}
	m->top = m->ct->active;
	m->timer.fn = wait_idle;
	wait_idle(loop, timer);
}

void pivot_prepare(struct job *job, void *arg)
{
	struct merge *m = arg;

	if (job->cancelled) { /* ready, and cancelled without force */
		job_prepared(job, 0);
		return;
	}
	m->timer.fn = begin_pivot;
	begin_pivot(m->ct->loop, &m->timer);
}
