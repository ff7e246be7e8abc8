// SPDX-License-Identifier: GPL-2.0-or-later
/* The end of a commit of the active layer: its base takes its place. */
#include "chain-merge.h"

#include <errno.h>
#include <qchain/crash-point.h>
#include <qchain/log.h>
#include <stdlib.h>
#include <string.h>

/*
 *   plan      the next order of layers                                      a worker
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

	image_close(m->order.layers[0].img);
}

static void top_closed(struct chain_work *work)
{
	struct merge *m = container_of(work, struct merge, work);
	const struct chain_target *ct = m->ct;

	log_info("%s: is empty and closed, %s is the active layer", m->order.layers[0].path,
		 ct->chain->layers[0].path);
	layer_free(m->order.table->by_id[m->order.table->order[0]]);
	free(m->order.layers[0].path);
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
	struct layer_table *next = m->order.table;

	merge_forget_ids(ct, m->order.gone);
	next->read_only = ct->map.table->read_only;
	next->write_layer = m->base->id;
	layer_table_add_flush(next, m->base->img->dev);
	chain_order_publish(ct, &m->order);
	ct->active = m->base;
	ct->receiving = NULL;
	chain_layers_changed(ct);
	m->base->layer->merging = false;
	m->base = NULL;
	m->pivots = false;
	merge_layers_gone(m, 1);
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

	m->top->closing = false;
	if (m->err.code)
		m->top->failed = true;
	crash_point("commit.closed");
	if (m->top->failed) {
		if (!m->err.code)
			qc_err_set(&m->err, -EIO, "%s: not closed (%s)", m->top->layer->path,
				   strerror(EIO));
		failed(m, -EIO);
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

static void plan(struct chain_work *work)
{
	struct merge *m = container_of(work, struct merge, work);

	chain_order_plan(m->ct, 0, 1, NULL, &m->order, &m->err);
}

static void planned(struct chain_work *work)
{
	struct merge *m = container_of(work, struct merge, work);

	if (m->err.code) {
		failed(m, m->err.code);
		return;
	}
	m->top = m->ct->active;
	m->timer.fn = wait_idle;
	wait_idle(m->ct->loop, &m->timer);
}

static void begin_pivot(struct loop *loop, struct loop_timer *timer)
{
	struct merge *m = container_of(timer, struct merge, timer);

	if (!turn_try(m->ct, m->job->id)) {
		loop_timer_set(loop, timer, PIVOT_POLL_NS);
		return;
	}
	m->work.run = plan;
	m->work.done = planned;
	chain_work(m->ct, &m->work);
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
