// SPDX-License-Identifier: GPL-2.0-or-later
/* A chain grows while it is served. */
#include "chain-private.h"
#include "target-private.h"

#include <errno.h>
#include <qchain/crash-point.h>
#include <qchain/edit.h>
#include <qchain/log.h>
#include <qchain/online.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>

/*
 *   table    the active layer's L1 table gets room for the new size; durable
 *   show     the map, and what operations take for the end of the image, are longer;
 *            guests are still stopped at the old end
 *   zero     the rest of the last cluster, and what a longer backing has beyond the
 *            old end: zeroes of the active layer, by ordinary operations; durable
 *   size     the header; durable
 *   publish  the device is longer: the next request may go there
 *
 * Whatever ends it before the size leaves an image of the old size, whose tables know
 * zeroes beyond its end; a later growth writes them again (rule B6).
 */

struct resize {
	struct chain_target *ct;
	struct writer *w;
	u64 from;
	u64 to;
	u64 zero_until;
	u64 pos; /* zeroes are there up to here */
	struct l1_growth l1;
	struct request zero;
	struct meta_wait wait;
	struct meta_flush flush;
	bool shown;
	sem_t done;
	const char *step;
	int ret;
};

/* ---- the map, and what operations take for the end ------------------------------- */

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

/* All that is folded or planned from now on knows the image as @bytes long. */
static void set_end(struct chain_target *ct, u64 bytes)
{
	ct->chain->layers[0].img->virtual_size = bytes;
	ct->chain->virtual_size = bytes;
	ct->generation++;
	chain_retire(ct);
}

static int show(struct resize *r)
{
	struct chain_target *ct = r->ct;
	struct old_map *old = calloc(1, sizeof(*old));
	int ret = old ? map_resize(&ct->map, r->to, &old->array) : -ENOMEM;

	if (ret) {
		free(old);
		return ret;
	}
	set_end(ct, r->to);
	r->shown = true;
	old->waiter.quiescent = old_unused;
	old->waiter.drained = old_drained;
	grace_wait(&ct->grace, &old->waiter);
	return 0;
}

static void hide(struct resize *r)
{
	map_resize(&r->ct->map, r->from, NULL); /* shorter: cannot fail */
	set_end(r->ct, r->from);
}

/* ---- the end ------------------------------------------------------------------------- */

static void resize_end(struct resize *r, int error)
{
	if (error && r->shown)
		hide(r);
	r->ret = error;
	sem_post(&r->done);
}

static void publish(struct resize *r)
{
	crash_point("resize.sized");
	__atomic_store_n(&r->ct->ti->size_bytes,
			 ALIGN_DOWN(r->to, (u64)r->ct->ti->limits.logical_block),
			 __ATOMIC_RELEASE);
	resize_end(r, 0);
}

/* ---- the header ---------------------------------------------------------------------- */

static void size_durable(struct meta_flush *flush, int error)
{
	struct resize *r = container_of(flush, struct resize, flush);

	if (error)
		resize_end(r, error);
	else
		publish(r);
}

static void put_size(struct meta_wait *wait)
{
	struct resize *r = container_of(wait, struct resize, wait);
	__be64 size = __builtin_bswap64(r->to);
	struct meta_block *header;
	int ret = meta_get(r->w->meta, 0, wait, &header);

	if (!ret)
		ret = meta_txn_set(r->w->meta, header, offsetof(struct qcow2_disk_header, size),
				   &size, sizeof(size));
	if (ret == -EAGAIN)
		return;
	if (ret) {
		resize_end(r, ret);
		return;
	}
	r->flush.fn = size_durable;
	meta_flush(r->w->meta, &r->flush);
}

/* ---- zeroes ---------------------------------------------------------------------------- */

static void zeroes_durable(struct meta_flush *flush, int error)
{
	struct resize *r = container_of(flush, struct resize, flush);

	if (error) {
		resize_end(r, error);
		return;
	}
	crash_point("resize.zeroed");
	r->step = "the header";
	r->wait.fn = put_size;
	put_size(&r->wait);
}

static void zero_next(struct resize *r);

static void zero_end_io(struct request *req, int error)
{
	struct resize *r = container_of(req, struct resize, zero);

	if (error) {
		resize_end(r, error);
		return;
	}
	r->pos += req->len;
	zero_next(r);
}

static const struct request_ops zero_ops = { .end_io = zero_end_io };

static void zero_next(struct resize *r)
{
	if (r->pos >= r->zero_until) {
		r->flush.fn = zeroes_durable;
		meta_flush(r->w->meta, &r->flush);
		return;
	}
	r->zero = (struct request){
		.ops = &zero_ops, .loop = r->ct->loop, .target = r->ct->ti,
		.op = REQ_WRITE_ZEROES, .offset = r->pos,
		.len = min(r->zero_until - r->pos, (u64)QC_MAX_DISCARD_BYTES),
	};
	chain_write_into(r->w, &r->zero); /* waits for no space */
}

/* ---- the L1 table ------------------------------------------------------------------------ */

static void table_there(struct l1_growth *l1, int error)
{
	struct resize *r = container_of(l1, struct resize, l1);

	if (!error) {
		crash_point("resize.table");
		r->step = "zeroes beyond the old end";
		error = show(r);
	}
	if (error) {
		resize_end(r, error);
		return;
	}
	r->pos = r->from;
	zero_next(r);
}

static u64 entries_for(const struct image *img, u64 bytes)
{
	return DIV_ROUND_UP(bytes, 1ull << image_l2_coverage_bits(img));
}

static void resize_run(struct loop *loop, void *arg)
{
	struct resize *r = arg;
	struct image *img = r->w->img;

	r->step = "the L1 table";
	img->dev->ops->refresh_size(img->dev);
	r->l1 = (struct l1_growth){ .writer = r->w, .fn = table_there,
				    .entries = entries_for(img, r->to) };
	if (r->l1.entries > img->l1_size)
		writer_grow_l1(&r->l1);
	else
		table_there(&r->l1, 0);
}

/* ---- what may grow --------------------------------------------------------------------- */

static int check_image(const struct image *img, const char *path, u64 bytes, struct qc_err *err)
{
	if (img->format == IMAGE_RAW)
		return qc_err_set(err, -EOPNOTSUPP, "%s: raw, an active layer that grows must be "
				  "qcow2; take a snapshot first, or take the device down and use "
				  "qchainctl resize", path);
	if (img->nr_snapshots && img->version < 3)
		return qc_err_set(err, -EOPNOTSUPP, "%s: version 2 image with internal snapshots, "
				  "its size cannot change; remove them, or convert it to version 3",
				  path);
	return image_check_growth(img, bytes, err);
}

static int check(const struct chain_target *ct, const char *node, u64 bytes, struct qc_err *err)
{
	const struct chain_layer *top = &ct->chain->layers[0];

	if (strcmp(node, top->node_name))
		return qc_err_set(err, -EOPNOTSUPP, "%s: is not the active layer (%s), which alone "
				  "changes its size", node, top->node_name);
	if (!IS_ALIGNED(bytes, SECTOR_SIZE))
		return qc_err_set(err, -EINVAL, "The new size must be a multiple of %u",
				  SECTOR_SIZE);
	if (ct->map.table->read_only || !ct->active)
		return qc_err_set(err, -EROFS, "%s: the device is read-only, must be writable",
				  top->path);
	if (bytes < top->img->virtual_size)
		return qc_err_set(err, -EINVAL, "%s: %llu bytes are fewer than it has (%llu); a "
				  "device shrinks only while nobody serves it", top->path,
				  (unsigned long long)bytes,
				  (unsigned long long)top->img->virtual_size);
	return check_image(top->img, top->path, bytes, err);
}

/* Up to where the new range must be made zero: cluster, or backing, may have something. */
static u64 zero_until(const struct chain *chain, u64 from, u64 to)
{
	u64 end = ALIGN_UP(from, image_cluster_bytes(chain->layers[0].img));

	if (chain->nr_layers > 1)
		end = max(end, chain->layers[1].img->virtual_size);
	return min(to, end);
}

static void is_sealing(struct loop *loop, void *arg)
{
	struct resize *r = arg;

	r->ret = chain_is_sealing(r->ct) ? -EBUSY : 0;
}

int chain_resize(struct target *ti, const char *node, u64 bytes, struct qc_err *err)
{
	struct chain_target *ct = ti->private;
	struct resize r = { .ct = ct, .to = bytes };
	const char *path;
	int ret;

	if (ti->type != &target_chain)
		return qc_err_set(err, -EINVAL, "%s: not a chain", ti->type->name);
	ret = check(ct, node, bytes, err);
	path = ct->chain->layers[0].path;
	r.w = ct->active;
	r.from = ct->chain->virtual_size;
	if (ret || bytes == r.from)
		return ret;
	loop_call(ct->loop, is_sealing, &r);
	if (r.ret)
		return qc_err_set(err, r.ret, "%s: a layer below it is still being sealed, must be "
				  "sealed; try again", path);
	r.zero_until = zero_until(ct->chain, r.from, bytes);
	sem_init(&r.done, 0, 0);
	loop_call(ct->loop, resize_run, &r);
	while (sem_wait(&r.done) < 0)
		;
	sem_destroy(&r.done);
	if (r.ret)
		return qc_err_set(err, r.ret, "%s: not resized, %s could not be written (%s)",
				  path, r.step, strerror(-r.ret));
	log_info("%s: %llu bytes now, was %llu", path, (unsigned long long)bytes,
		 (unsigned long long)r.from);
	return 0;
}
