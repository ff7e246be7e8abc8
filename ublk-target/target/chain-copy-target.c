// SPDX-License-Identifier: GPL-2.0-or-later
/* The image that a job copies a device into: marked until it is whole, a target of its own. */
#include "chain-copy-target.h"
#include "target-private.h"

#include <errno.h>
#include <qchain/crash-point.h>
#include <qchain/log.h>
#include <stdlib.h>
#include <string.h>

/*
 *   mark     an incompatible feature of the header, durable before anything else: nobody
 *            takes a part of a copy for a whole one
 *   flush    what was copied, and the tables that name it
 *   unmark   one sector, durable
 *   close
 */

#define TARGET_CACHE_BYTES (8u * 1024u * 1024u)

/* ---- the end ------------------------------------------------------------------------ */

static void close_target(struct chain_work *work)
{
	struct copy_target *t = container_of(work, struct copy_target, close);

	t->ct->chain->layers[0].img = NULL; /* the caller's */
	target_destroy(t->target);
	t->target = NULL;
	__atomic_store_n(t->busy, false, __ATOMIC_RELEASE);
}

static void target_closed(struct chain_work *work)
{
	struct copy_target *t = container_of(work, struct copy_target, close);

	t->ended(t, t->error);
}

static void begin_close(struct copy_target *t)
{
	t->close.run = close_target;
	t->close.done = target_closed;
	chain_work(t->of, &t->close);
}

static void flush_back(struct loop *loop, struct loop_msg *msg)
{
	struct copy_target *t = container_of(msg, struct copy_target, flush_msg);

	if (t->error)
		qc_err_set(&t->err, t->error, "%s: what was copied could not be made durable (%s)",
			   t->img->dev->path, strerror(-t->error));
	begin_close(t);
}

static void flush_over(struct copy_target *t, int error)
{
	t->error = error;
	loop_send(t->of->loop, &t->flush_msg, flush_back);
}

static void unmark_durable(struct meta_flush *flush, int error)
{
	flush_over(container_of(flush, struct copy_target, meta_flush), error);
}

static int unmark(struct copy_target *t)
{
	struct writer *w = t->ct->active;
	__be64 word;

	if (!(t->img->incompatible & QCOW2_INCOMPAT_QCHAIN_UNFINISHED))
		return 0;
	if (!w->header)
		return -EIO;
	t->img->incompatible &= ~QCOW2_INCOMPAT_QCHAIN_UNFINISHED;
	word = __builtin_bswap64(t->img->incompatible);
	return meta_txn_set(w->meta, w->header,
			    offsetof(struct qcow2_disk_header, incompatible_features), &word,
			    sizeof(word));
}

static void target_flushed(struct request *req, int error)
{
	struct copy_target *t = container_of(req, struct copy_target, flush);

	crash_point("backup.flushed");
	error = error ? error : unmark(t);
	if (error || !t->ct->active->meta) {
		flush_over(t, error);
		return;
	}
	t->meta_flush.fn = unmark_durable;
	meta_flush(t->ct->active->meta, &t->meta_flush);
}

static const struct request_ops flush_ops = { .end_io = target_flushed };

static void flush_target(struct loop *loop, struct loop_msg *msg)
{
	struct copy_target *t = container_of(msg, struct copy_target, flush_msg);

	t->flush = (struct request){ .ops = &flush_ops, .loop = loop, .op = REQ_FLUSH };
	target_submit(t->target, &t->flush);
}

void copy_target_end(struct copy_target *t, int error,
		     void (*ended)(struct copy_target *t, int error))
{
	t->ended = ended;
	t->error = error;
	if (error)
		begin_close(t);
	else
		loop_send(t->ct->loop, &t->flush_msg, flush_target);
}

void copy_target_drop(struct copy_target *t)
{
	close_target(&t->close);
}

/* ---- opening ------------------------------------------------------------------------ */

int copy_target_check(const struct chain_target *of, const struct image *img, struct qc_err *err)
{
	if (img->virtual_size != of->ti->size_bytes)
		return qc_err_set(err, -EINVAL, "Source and target image have different sizes");
	if (img->backing_name && img->cluster_bits > COPY_TARGET_MAX_BITS)
		return qc_err_set(err, -EOPNOTSUPP, "%s: has a backing and clusters of %llu bytes, "
				  "must be at most %u", img->dev->path,
				  (unsigned long long)image_cluster_bytes(img),
				  1u << COPY_TARGET_MAX_BITS);
	return 0;
}

static int mark(struct image *img, struct qc_err *err)
{
	if (img->format == IMAGE_RAW || img->version < 3) {
		log_warn("%s: cannot be marked as unfinished, as qcow2 of version 3 can; it is of "
			 "no use unless the job ends well", img->dev->path);
		return 0;
	}
	img->incompatible |= QCOW2_INCOMPAT_QCHAIN_UNFINISHED;
	if (image_write_features(img))
		return qc_err_set(err, -EIO, "%s: cannot write the header", img->dev->path);
	return 0;
}

/* A chain of that image alone. */
static int make_chain(struct chain_target *ct, struct image *img)
{
	struct chain *chain = calloc(1, sizeof(*chain));

	ct->chain = chain;
	if (!chain)
		return -ENOMEM;
	chain->layers = calloc(1, sizeof(*chain->layers));
	if (!chain->layers)
		return -ENOMEM;
	chain->nr_layers = 1;
	chain->virtual_size = img->virtual_size;
	chain->layers[0].img = img;
	chain->layers[0].path = strdup(img->dev->path);
	return chain->layers[0].path ? 0 : -ENOMEM;
}

/* What the header names is below it, although it is not open. */
static void set_below(struct loop *loop, void *arg)
{
	struct chain_target *ct = arg;

	if (ct->active)
		ct->active->below = ct->active->img->backing_name != NULL;
}

static int serve_target(struct copy_target *t, struct qc_err *err)
{
	struct chain_target *ct = chain_alloc(t->target);
	int ret;

	if (!ct)
		return -ENOMEM;
	t->ct = ct;
	ct->may_lose = true; /* the mark says so */
	ct->on_full = ON_FULL_FAIL;
	ret = make_chain(ct, t->img);
	if (!ret)
		ret = chain_serve(ct, TARGET_CACHE_BYTES, err);
	if (!ret) {
		target_ask_limits(t->target);
		loop_call(ct->loop, set_below, ct);
		return 0;
	}
	if (ct->chain && ct->chain->nr_layers)
		ct->chain->layers[0].img = NULL;
	chain_free(ct);
	return ret;
}

int copy_target_open(struct copy_target *t, struct chain_target *of, struct image *img,
		     bool *busy, struct qc_err *err)
{
	int ret = mark(img, err);

	if (ret)
		return ret;
	t->of = of;
	t->img = img;
	t->busy = busy;
	t->target = target_alloc(&target_chain);
	ret = t->target ? serve_target(t, err) : -ENOMEM;
	if (ret) {
		free(t->target);
		return qc_err_set(err, ret, "%s: out of memory", img->dev->path);
	}
	*busy = true;
	if (!t->target->limits.read_only && t->target->size_bytes == of->ti->size_bytes)
		return 0;
	copy_target_drop(t);
	return qc_err_set(err, -EINVAL, "%s: its device's blocks of %u bytes do not fit its "
			  "clusters or length", img->dev->path, img->dev->block_bytes);
}
