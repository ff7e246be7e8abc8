// SPDX-License-Identifier: GPL-2.0-or-later
/* A chain grows while it is served. */
#include "chain-private.h"
#include "target-private.h"

#include <errno.h>
#include <qchain/log.h>
#include <qchain/mutant.h>
#include <qchain/online.h>
#include <stdlib.h>
#include <string.h>

/*
 *   map      longer; guests are still stopped at the old end
 *   image    of the active layer: chain-grow.c; durable
 *   device   longer: the next request may go there
 */

struct resize {
	struct chain_target *ct;
	u64 from;
	u64 to;
	int ret;
};

/* ---- the map ---------------------------------------------------------------------- */

/* What readers may still use of the shorter map. */
struct old_map {
	struct grace_waiter waiter;
	struct map_array array;
};

static void old_unused(struct grace_waiter *waiter)
{
	map_array_free(&container_of(waiter, struct old_map, waiter)->array);
}

static void old_drained(struct grace_waiter *waiter)
{
	free(container_of(waiter, struct old_map, waiter));
}

/* Loads that are under way, of the window at the old end above all, start over. */
static void map_changed(struct chain_target *ct)
{
	ct->generation++;
	chain_retire(ct);
}

static void begin_run(struct loop *loop, void *arg)
{
	struct resize *r = arg;
	struct chain_target *ct = r->ct;
	struct old_map *old;

	if (chain_is_sealing(ct)) {
		r->ret = -EBUSY;
		return;
	}
	old = calloc(1, sizeof(*old));
	r->ret = old ? map_resize(&ct->map, r->to, &old->array) : -ENOMEM;
	if (r->ret) {
		free(old);
		return;
	}
	map_changed(ct);
	old->waiter.quiescent = old_unused;
	old->waiter.drained = old_drained;
	grace_wait(&ct->grace, &old->waiter);
}

static void undo_run(struct loop *loop, void *arg)
{
	struct resize *r = arg;

	map_resize(&r->ct->map, r->from, NULL); /* shorter: cannot fail */
	map_changed(r->ct);
}

static void publish_run(struct loop *loop, void *arg)
{
	struct resize *r = arg;
	struct target *ti = r->ct->ti;

	r->ct->chain->virtual_size = r->to;
	__atomic_store_n(&ti->size_bytes, ALIGN_DOWN(r->to, (u64)ti->limits.logical_block),
			 __ATOMIC_RELEASE);
}

/* ---- what may grow --------------------------------------------------------------------- */

static int check(const struct chain_target *ct, const char *node, u64 bytes, struct qc_err *err)
{
	const struct chain_layer *top = &ct->chain->layers[0];

	if (strcmp(node, top->node_name))
		return qc_err_set(err, -EOPNOTSUPP, "%s: is not the active layer (%s), which alone "
				  "changes its size", node, top->node_name);
	if (!IS_ALIGNED(bytes, SECTOR_SIZE))
		return qc_err_set(err, -EINVAL, "The new size must be a multiple of %u",
				  SECTOR_SIZE);
	if (layer_table_is_read_only(ct->map.table) || !ct->active)
		return qc_err_set(err, -EROFS, "%s: the device is read-only, must be writable",
				  top->path);
	if (bytes < top->img->virtual_size)
		return qc_err_set(err, -EINVAL, "%s: %llu bytes are fewer than it has (%llu); a "
				  "device shrinks only while nobody serves it", top->path,
				  (unsigned long long)bytes,
				  (unsigned long long)top->img->virtual_size);
	if (top->img->format == IMAGE_RAW)
		return qc_err_set(err, -EOPNOTSUPP, "%s: raw, what grows in use must be qcow2; "
				  "take a snapshot, whose overlay can grow, or take the "
				  "device down and use qchainctl resize", top->path);
	return writer_check_grow(top->img, top->path, bytes, err);
}

int chain_resize(struct target *ti, const char *node, u64 bytes, struct qc_err *err)
{
	struct chain_target *ct = ti->private;
	struct resize r = { .ct = ct, .to = bytes };
	const struct chain_layer *top;
	int ret;

	if (ti->type != &target_chain)
		return qc_err_set(err, -EINVAL, "%s: not a chain", ti->type->name);
	ret = check(ct, node, bytes, err);
	top = &ct->chain->layers[0];
	r.from = ct->chain->virtual_size;
	if (ret || bytes == r.from)
		return ret;
	loop_call(ct->loop, begin_run, &r);
	if (r.ret == -EBUSY)
		return qc_err_set(err, r.ret, "%s: a layer below it is still being sealed, must be "
				  "sealed; try again", top->path);
	if (r.ret)
		return qc_err_set(err, r.ret, "%s: out of memory", top->path);
	if (MUTANT(SIZE_TOLD_EARLY))
		loop_call(ct->loop, publish_run, &r);
	ret = writer_grow(ct->active, bytes,
			  ct->chain->nr_layers > 1 ? top[1].img->virtual_size : 0, err);
	loop_call(ct->loop, ret ? undo_run : publish_run, &r);
	if (!ret)
		log_info("%s: %llu bytes now, was %llu", top->path, (unsigned long long)bytes,
			 (unsigned long long)r.from);
	return ret;
}
