// SPDX-License-Identifier: GPL-2.0-or-later
/* An image that is being written gets longer; what is new in it reads as zero. */
#include "chain-private.h"

#include <errno.h>
#include <qchain/crash-point.h>
#include <qchain/edit.h>
#include <qchain/mutant.h>
#include <semaphore.h>
#include <string.h>
#include <unistd.h>

/*
 *   table    the L1 table gets room for the new size; durable
 *   zero     the rest of the last cluster, and what a longer backing has beyond the
 *            old end: zeroes, by ordinary operations; durable
 *   size     the header; durable
 *   longer   all that is folded or planned from now on knows the new end
 *
 * Until the last step what lies beyond the old end reads as zero because it lies there,
 * afterwards because the tables say so. A window that was folded before that says ZERO
 * where the tables have a cluster that reaches beyond the end, or nothing: a write into
 * that cluster would change no entry, and not be published; a merge would take the
 * zeroes for the layer's own. So all windows from the old end on are folded anew.
 *
 * Whatever ends it before the size leaves an image of the old size, whose tables know
 * zeroes beyond its end; a later growth writes them again (rule B6).
 */

struct growth {
	struct writer *w;
	u64 to;
	u64 zero_until;
	u64 pos; /* zeroes are there up to here */
	bool cover; /* only where nothing is mapped; then it is done */
	struct l1_growth l1;
	struct request zero;
	struct meta_wait wait;
	struct meta_flush flush;
	sem_t done;
	const char *step;
	int ret;
};

static void growth_end(struct growth *g, int error)
{
	g->ret = error;
	sem_post(&g->done);
}

/* ---- the map ------------------------------------------------------------------------- */

/* A layer can be longer than the device. */
static void forget_windows(struct chain_target *ct, u64 from, u64 to)
{
	to = min(to, ct->map.size_bytes);
	if (from < to)
		map_forget_range(&ct->map, from, to);
	chain_retire(ct);
}

static void end_size(struct growth *g)
{
	forget_windows(g->w->ct, g->w->img->virtual_size, g->to);
	g->w->img->virtual_size = g->to;
	chain_layers_changed(g->w->ct);
}

/* ---- the header ---------------------------------------------------------------------- */

static void size_durable(struct meta_flush *flush, int error)
{
	struct growth *g = container_of(flush, struct growth, flush);

	if (!error) {
		crash_point("resize.sized");
		end_size(g);
	}
	growth_end(g, error);
}

static void put_size(struct meta_wait *wait)
{
	struct growth *g = container_of(wait, struct growth, wait);
	__be64 size = __builtin_bswap64(g->to);
	struct meta_block *header;
	int ret = meta_get(g->w->meta, 0, wait, &header);

	if (!ret)
		ret = meta_txn_set(g->w->meta, header, offsetof(struct qcow2_disk_header, size),
				   &size, sizeof(size));
	if (ret == -EAGAIN)
		return;
	if (ret) {
		growth_end(g, ret);
		return;
	}
	g->flush.fn = size_durable;
	meta_flush(g->w->meta, &g->flush);
}

/* ---- zeroes ---------------------------------------------------------------------------- */

static void zeroes_durable(struct meta_flush *flush, int error)
{
	struct growth *g = container_of(flush, struct growth, flush);

	if (error) {
		growth_end(g, error);
		return;
	}
	if (g->cover) {
		growth_end(g, 0);
		return;
	}
	crash_point("resize.zeroed");
	g->step = "the header";
	g->wait.fn = put_size;
	put_size(&g->wait);
}

static void zero_next(struct growth *g);

static void zero_end_io(struct request *req, int error)
{
	struct growth *g = container_of(req, struct growth, zero);

	if (error) {
		growth_end(g, error);
		return;
	}
	g->pos += req->len;
	zero_next(g);
}

static const struct request_ops zero_ops = { .end_io = zero_end_io };

static void zero_next(struct growth *g)
{
	struct chain_target *ct = g->w->ct;

	if (g->pos >= g->zero_until || MUTANT(GROWS_UNZEROED)) {
		g->flush.fn = zeroes_durable;
		meta_flush(g->w->meta, &g->flush);
		return;
	}
	g->zero = (struct request){
		.ops = &zero_ops, .loop = ct->loop, .target = ct->ti, .op = REQ_WRITE_ZEROES,
		.offset = g->pos, .len = min(g->zero_until - g->pos, (u64)QC_MAX_DISCARD_BYTES),
	};
	if (g->cover)
		chain_fill_into(g->w, &g->zero);
	else
		chain_write_into(g->w, &g->zero); /* waits for no space */
}

/* ---- the L1 table ------------------------------------------------------------------------ */

static void table_there(struct l1_growth *l1, int error)
{
	struct growth *g = container_of(l1, struct growth, l1);

	if (error) {
		growth_end(g, error);
		return;
	}
	crash_point("resize.table");
	g->step = "zeroes beyond the old end";
	zero_next(g);
}

static void growth_run(struct loop *loop, void *arg)
{
	struct growth *g = arg;
	struct image *img = g->w->img;

	g->step = "the L1 table";
	img->dev->ops->refresh_size(img->dev);
	g->l1 = (struct l1_growth){
		.writer = g->w, .fn = table_there,
		.entries = DIV_ROUND_UP(g->to, 1ull << image_l2_coverage_bits(img)),
	};
	if (g->l1.entries > img->l1_size)
		writer_grow_l1(&g->l1);
	else
		table_there(&g->l1, 0);
}

/* ---- all of it ---------------------------------------------------------------------------- */

int writer_check_grow(const struct image *img, const char *path, u64 bytes, struct qc_err *err)
{
	if (img->nr_snapshots && img->version < 3)
		return qc_err_set(err, -EOPNOTSUPP, "%s: version 2 image with internal snapshots, "
				  "its size cannot change; remove them, or convert it to version 3",
				  path);
	return image_check_growth(img, bytes, err);
}

static void grow(struct growth *g, void (*run)(struct loop *loop, void *arg))
{
	sem_init(&g->done, 0, 0);
	loop_call(g->w->ct->loop, run, g);
	while (sem_wait(&g->done) < 0)
		;
	sem_destroy(&g->done);
}

static void raw_longer(struct loop *loop, void *arg)
{
	struct growth *g = arg;

	end_size(g);
	growth_end(g, 0);
}

static int grow_raw(struct growth *g, struct qc_err *err)
{
	struct io_dev *dev = g->w->img->dev;
	int ret = 0;
	s64 size;

	if (!dev->blockdev)
		ret = ftruncate(dev->fd, g->to) ? -errno : io_dev_flush(dev);
	if (ret)
		return qc_err_set(err, ret, "%s: not resized (%s)", g->w->layer->path,
				  strerror(-ret));
	crash_point("commit.lengthened");
	size = dev->ops->refresh_size(dev);
	if (size < (s64)g->to)
		return qc_err_set(err, -ENOSPC, "%s: has %lld bytes, must have %llu to take what "
				  "comes down into it; make the volume larger", g->w->layer->path,
				  (long long)size, (unsigned long long)g->to);
	grow(g, raw_longer);
	return 0;
}

int writer_grow(struct writer *w, u64 bytes, u64 below_bytes, struct qc_err *err)
{
	u64 from = w->img->virtual_size;
	u64 end = max(ALIGN_UP(from, image_cluster_bytes(w->img)), below_bytes);
	struct growth g = { .w = w, .to = bytes, .pos = from, .zero_until = min(bytes, end) };

	if (w->img->format == IMAGE_RAW)
		return grow_raw(&g, err);
	grow(&g, growth_run);
	if (g.ret)
		return qc_err_set(err, g.ret, "%s: not resized, %s could not be written (%s)",
				  w->layer->path, g.step, strerror(-g.ret));
	return 0;
}

static void cover_run(struct loop *loop, void *arg)
{
	zero_next(arg);
}

int writer_cover(struct writer *w, u64 from, u64 to, struct qc_err *err)
{
	struct growth g = { .w = w, .pos = from, .zero_until = to, .cover = true };

	grow(&g, cover_run);
	if (g.ret)
		return qc_err_set(err, g.ret, "%s: zeroes where its backing ends could not be "
				  "written (%s)", w->layer->path, strerror(-g.ret));
	return 0;
}
