// SPDX-License-Identifier: GPL-2.0-or-later
/* An online snapshot: an overlay becomes the active layer, the old one is sealed. */
#include "chain-merge.h"
#include "target-private.h"

#include <errno.h>
#include <qchain/log.h>
#include <qchain/mutant.h>
#include <qchain/online.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/*
 *   prepare   the overlay's writer: refcounts, mark in its header   control thread
 *   switch    one store: the layer table with the overlay on top    metadata loop
 *   settle    grace: no I/O of older tables is under way
 *   drain     the old writer's operations and transactions have ended
 *   flush     the old image
 *   close     its header says that it was closed                    a worker
 *   sealed    a FLUSH does not include it any more; nobody writes it
 *
 * Between switch and sealed the old writer is in ct->closing. Its operations go
 * on: what was issued before the switch belongs to the snapshot. Nothing new
 * starts there, and what had not started goes to the overlay (-ESTALE).
 *
 * Nobody may read below the overlay's writer, to fill a granule, before the
 * settling: a write in place to the old image may be under way there. And an
 * operation of the old writer must not fill from what was written after the
 * switch: who_detains() in chain-write.c keeps the two apart.
 */

#define SEAL_POLL_NS 1000000ull

bool writer_may_read_below(const struct writer *w)
{
	const struct writer *older;

	cds_list_for_each_entry(older, &w->ct->closing, node) {
		if (older == w)
			return true;
		if (!older->settled)
			return MUTANT(FILL_BEFORE_GRACE);
	}
	return true;
}

bool chain_is_sealing(const struct chain_target *ct)
{
	const struct writer *w;

	cds_list_for_each_entry(w, &ct->closing, node)
		if (!w->dead)
			return true;
	return false;
}

/* ---- sealing ------------------------------------------------------------------------ */

/*
 * What a merge that failed had mapped there is above it, too. What the device needs
 * stays for the next daemon: this one is read-only.
 */
static void drop_log(struct writer *w)
{
	if (!w->logged || writer_matters(w))
		return;
	intent_log_detach(w->ct->log, w->log_layer);
	w->logged = false;
}

static void seal_failed(struct writer *w, int error)
{
	w->dead = true;
	drop_log(w);
	log_error("%s: cannot be sealed, its last writes may be lost", w->layer->path);
	writer_failed(w, error);
}

static void seal_forget(struct loop *loop, struct loop_timer *timer)
{
	struct writer *w = container_of(timer, struct writer, seal_timer);

	if (w->meta && !meta_idle(w->meta)) {
		loop_timer_set(loop, timer, SEAL_POLL_NS);
		return;
	}
	cds_list_del(&w->node);
	log_info("%s: sealed", w->layer->path);
	writer_destroy(w);
}

/*
 * A fold may be reading a table through the writer's cache. It starts over, from
 * the image, and so does every later one.
 */
static void sealed(struct chain_work *work)
{
	struct writer *w = container_of(work, struct writer, seal_work);
	struct chain_target *ct = w->ct;

	layer_table_drop_flush(ct->map.table, w->img->dev);
	w->layer->writer = NULL;
	chain_layers_changed(ct);
	w->seal_timer.fn = seal_forget;
	seal_forget(ct->loop, &w->seal_timer);
}

/* A regular file has grown since it was opened; what lies beyond its end is zero. */
static void seal_close(struct chain_work *work)
{
	struct writer *w = container_of(work, struct writer, seal_work);

	w->img->dev->ops->refresh_size(w->img->dev);
	writer_mark_closed(w);
	io_dev_end_writing(w->img->dev);
}

static void seal_flushed(struct io_op *op, int error)
{
	struct writer *w = container_of(op, struct writer, seal_flush);

	if (error) {
		seal_failed(w, error);
		return;
	}
	w->closing = true;
	w->seal_work.run = seal_close;
	w->seal_work.done = sealed;
	chain_work(w->ct, &w->seal_work);
}

static void seal_drain(struct loop *loop, struct loop_timer *timer)
{
	struct writer *w = container_of(timer, struct writer, seal_timer);

	if (!writer_idle(w) && !MUTANT(SEAL_EARLY)) {
		writer_scan_hurry(w);
		if (w->meta)
			meta_housekeep(w->meta);
		loop_timer_set(loop, timer, SEAL_POLL_NS);
		return;
	}
	if (w->failed) {
		seal_failed(w, -EIO);
		return;
	}
	w->seal_flush = (struct io_op){ .dev = w->img->dev, .type = IO_FLUSH,
					.done = seal_flushed };
	io_submit(loop, &w->seal_flush);
}

static void settled(struct grace_waiter *waiter)
{
	struct writer *w = container_of(waiter, struct writer, grace);

	w->settled = true;
	layer_table_free(w->old_table);
	w->old_table = NULL;
	write_ops_run(&w->ct->fill_waiters);
	seal_drain(w->ct->loop, &w->seal_timer);
}

void writer_seal(struct writer *w)
{
	cds_list_add_tail(&w->node, &w->ct->closing);
	w->seal_timer.fn = seal_drain;
	w->grace.drained = settled;
	grace_wait(&w->ct->grace, &w->grace);
}

/* ---- the switch ----------------------------------------------------------------------- */

struct snapshot {
	struct chain_target *ct;
	const char *node;
	bool held;
	struct layer *layer;
	struct writer *writer;
	struct chain_order order;
	struct qc_err *err;
	int ret;
};

static void switch_active(struct snapshot *s)
{
	struct chain_target *ct = s->ct;
	struct writer *old = ct->active;

	merges_before_switch(ct);
	writer_start(s->writer, s->order.table->write_layer);
	chain_order_publish(ct, &s->order);
	old->old_table = s->order.table;
	s->order.table = NULL;
	ct->active = s->writer;
	chain_layers_changed(ct);
	merges_after_switch(ct);
	writer_seal(old);
	/* what has not begun, or waits for space, goes to the overlay (rule E2) */
	writer_put_off(old, 0, UINT64_MAX);
}

/* What may have changed since the order was made is looked at, and taken over. */
static int bring_up_to_date(const struct snapshot *s)
{
	const struct chain_target *ct = s->ct;
	const char *top = ct->chain->layers[0].path;

	if (ct->map.table->read_only || ct->stopping)
		return qc_err_set(s->err, -EROFS, "%s: the device is read-only or going down, must "
				  "be writable", top);
	if (s->held && !ct->hold)
		return qc_err_set(s->err, -ETIMEDOUT, "%s: writes are not held any more, a "
				  "snapshot now would not be of the group's instant; try again",
				  top);
	if (layer_table_inherit(s->order.table, ct->map.table, s->layer->img->dev))
		return qc_err_set(s->err, -EBUSY, "%s: %u snapshots are not sealed yet, one more "
				  "only when the oldest is; try again", s->layer->path,
				  QC_MAX_FLUSH - 1);
	return 0;
}

static void snapshot_run(struct loop *loop, void *arg)
{
	struct snapshot *s = arg;

	s->ret = bring_up_to_date(s);
	if (!s->ret)
		switch_active(s);
}

/* ---- what may be an overlay -------------------------------------------------------------- */

static bool is_empty(const struct image *img)
{
	return l1_next(&img->l1, 0, img->l1_size) == img->l1_size && img->nr_snapshots == 0;
}

/*
 * Does the header of @img name layer @top? The same words, or words that lead to
 * it: a confined daemon may not see the folder any more.
 */
static int check_backing(const struct chain_layer *top, const struct image *img, const char *path,
			 struct qc_err *err)
{
	const char *slash = strrchr(path, '/');
	char name[2 * QC_MAX_BACKING_NAME];
	struct image_ident named;

	if (!img->backing_name || !img->backing_format)
		return qc_err_set(err, -EINVAL, "%s: has no backing or no backing format, must "
				  "name %s", path, top->path);
	if (img->backing_name[0] == '/' || !slash)
		snprintf(name, sizeof(name), "%s", img->backing_name);
	else
		snprintf(name, sizeof(name), "%.*s/%s", (int)min(slash - path, 1000L), path,
			 img->backing_name);
	if (strcmp(img->backing_format, image_format_name(top->img->format)))
		return qc_err_set(err, -EINVAL, "%s: says that its backing is %s, must be %s", path,
				  img->backing_format, image_format_name(top->img->format));
	if (!strcmp(name, top->path) || (!image_ident_of(name, &named) &&
					 image_ident_same(&named, &top->img->dev->ident)))
		return 0;
	return qc_err_set(err, -EINVAL, "%s: its backing is %s, must be %s", path,
			  img->backing_name, top->path);
}

/* What the device was announced with must hold for the overlay, too (rule A5). */
static int check_limits(const struct target *ti, const struct image *img, const char *path,
			struct qc_err *err)
{
	const struct target_limits *l = &ti->limits;

	if (img->dev->block_bytes > l->logical_block ||
	    img->dev->mem_align_bytes - 1 > l->dma_align_mask)
		return qc_err_set(err, -EINVAL, "%s: logical blocks of %u bytes (alignment %u), "
				  "the device was announced with %u (%u); take a volume like the "
				  "others", path, img->dev->block_bytes, img->dev->mem_align_bytes,
				  l->logical_block, l->dma_align_mask + 1);
	if (1u << img->subcluster_bits < l->logical_block)
		return qc_err_set(err, -EINVAL, "%s: (sub)clusters of %u bytes, must be at least "
				  "the device's logical block of %u", path,
				  1u << img->subcluster_bits, l->logical_block);
	return 0;
}

int chain_check_overlay(const struct chain_target *ct, const struct image *img, const char *path,
			u32 depth, struct qc_err *err)
{
	u32 i;
	int ret;

	if (img->format != IMAGE_QCOW2 || !img->dev->writable)
		return qc_err_set(err, -EINVAL, "%s: an overlay must be qcow2 and open for writing",
				  path);
	if (img->virtual_size != ct->map.size_bytes)
		return qc_err_set(err, -EINVAL, "%s: virtual size %llu, must be that of the chain, "
				  "%llu", path, (unsigned long long)img->virtual_size,
				  (unsigned long long)ct->map.size_bytes);
	if (!is_empty(img))
		return qc_err_set(err, -EINVAL, "%s: is not empty, an overlay must be new", path);
	for (i = 0; i < ct->chain->nr_layers; i++)
		if (image_ident_same(&ct->chain->layers[i].img->dev->ident, &img->dev->ident))
			return qc_err_set(err, -ELOOP, "%s: is in the chain already (%s)", path,
					  ct->chain->layers[i].node_name);
	ret = check_backing(&ct->chain->layers[depth], img, path, err);
	return ret ? ret : check_limits(ct->ti, img, path, err);
}

static int check_names(const struct snapshot *s, const char *node_name)
{
	const struct chain *chain = s->ct->chain;
	u32 depth;

	if (s->node && strcmp(s->node, chain->layers[0].node_name))
		return qc_err_set(s->err, -EINVAL, "%s: is not the active layer, which is %s; a "
				  "snapshot is taken of that", s->node,
				  chain->layers[0].node_name);
	if (merge_find_node(chain, node_name, &depth))
		return qc_err_set(s->err, -EEXIST, "%s: a layer has this node name (%s), "
				  "expected another", node_name, chain->layers[depth].path);
	return 0;
}

/* All that takes time is made before the event. */
static int prepare(struct snapshot *s, struct image *overlay, const char *path,
		   const char *node_name)
{
	int ret = chain_check_overlay(s->ct, overlay, path, 0, s->err);

	if (!ret)
		ret = check_names(s, node_name);
	if (ret)
		return ret;
	s->layer = layer_create(overlay, path, node_name);
	if (!s->layer)
		return qc_err_set(s->err, -ENOMEM, "%s: out of memory", path);
	ret = chain_order_plan(s->ct, 0, 0, s->layer, &s->order, s->err);
	return ret ? ret : writer_open(s->ct, s->layer, true, &s->writer, s->err);
}

static int take_snapshot(struct snapshot *s, struct image *overlay, const char *path,
			 const char *node_name)
{
	s->ret = prepare(s, overlay, path, node_name);
	if (!s->ret)
		loop_call(s->ct->loop, snapshot_run, s);
	chain_order_exit(&s->order);
	if (!s->ret)
		return 0;
	if (s->writer) {
		writer_mark_closed(s->writer);
		writer_destroy(s->writer);
	}
	layer_free(s->layer);
	return s->ret;
}

int chain_snapshot(struct target *ti, const char *node, struct image *overlay, const char *path,
		   const char *node_name, bool held, struct qc_err *err)
{
	struct snapshot s = { .ct = ti->private, .node = node, .held = held, .err = err };
	int ret;

	if (ti->type != &target_chain)
		return qc_err_set(err, -EINVAL, "%s: not a chain, nothing can stand on it",
				  ti->type->name);
	ret = chain_turn_take(s.ct, true, err);
	if (ret)
		return ret;
	ret = take_snapshot(&s, overlay, path, node_name);
	chain_turn_give(s.ct);
	return ret;
}
