// SPDX-License-Identifier: GPL-2.0-or-later
/* FLUSH and FUA while acknowledged mappings are not written yet (rule B2). */
#include "chain-private.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

/*
 * Queues come here only when an image has uncommitted mappings. Those images
 * commit, all at once, and are flushed by their own step 4, which they share with
 * whoever else flushes. Then the others that take, or took, writes (promise P21)
 * are flushed one after the other. The base of a merge is flushed by its job: what
 * is there counts only when that has ended well.
 */

struct image_flush {
	struct meta_flush wait;
	struct chain_flush *flush;
	const struct io_dev *dev;
};

struct chain_flush {
	struct chain_target *ct;
	void (*fn)(void *arg, int error);
	void *arg;
	int error;
	u32 pending; /* commits under way, and one while they are started */
	u32 nr_images; /* that commit */
	struct image_flush images[QC_MAX_FLUSH];
	const struct layer_table *table;
	u32 next; /* in its list of images */
	u32 epoch; /* keeps @table */
	struct io_op io;
};

static bool commits(const struct chain_flush *f, const struct io_dev *dev)
{
	u32 i;

	for (i = 0; i < f->nr_images; i++)
		if (f->images[i].dev == dev)
			return true;
	return false;
}

static void flush_next(struct chain_flush *f)
{
	while (chain_flush_step(f->table, &f->next, &f->io)) {
		if (commits(f, f->io.dev))
			continue;
		io_submit(f->ct->loop, &f->io);
		return;
	}
	loop_epoch_exit(f->ct->loop, f->epoch);
	f->fn(f->arg, f->error);
	free(f);
}

static void dev_flushed(struct io_op *op, int error)
{
	struct chain_flush *f = container_of(op, struct chain_flush, io);

	if (error && !f->error)
		f->error = error;
	flush_next(f);
}

static void image_done(struct chain_flush *f, int error)
{
	if (error && !f->error)
		f->error = error;
	if (--f->pending)
		return;
	f->io = (struct io_op){ .done = dev_flushed };
	flush_next(f);
}

static void image_flushed(struct meta_flush *wait, int error)
{
	image_done(container_of(wait, struct image_flush, wait)->flush, error);
}

static void commit_image(struct chain_flush *f, struct writer *w)
{
	struct image_flush *i;

	if (!w->meta || !writer_matters(w) || meta_clean(w->meta))
		return;
	assert(f->nr_images < ARRAY_SIZE(f->images));
	i = &f->images[f->nr_images++];
	i->flush = f;
	i->dev = w->img->dev;
	i->wait.fn = image_flushed;
	f->pending++;
	meta_flush(w->meta, &i->wait);
}

void chain_flush(struct chain_target *ct, void (*fn)(void *arg, int error), void *arg)
{
	struct chain_flush *f = calloc(1, sizeof(*f));
	struct writer *w;

	assert_on_loop(ct->loop);
	if (!f) {
		fn(arg, -ENOMEM);
		return;
	}
	f->ct = ct;
	f->fn = fn;
	f->arg = arg;
	f->table = ct->map.table;
	f->epoch = loop_epoch_enter(ct->loop);
	f->pending = 1;
	chain_for_each_writer(w, ct)
		commit_image(f, w);
	image_done(f, 0);
}

static void request_flushed(void *arg, int error)
{
	chain_finish(arg, error);
}

void chain_flush_deferred(struct loop *loop, struct loop_msg *msg)
{
	struct request *req = container_of(msg, struct request, msg);

	chain_flush(req->target->private, request_flushed, req);
}
