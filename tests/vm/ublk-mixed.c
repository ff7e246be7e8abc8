// SPDX-License-Identifier: GPL-2.0-or-later
/* A target that does each half of a request in another way, by another thread, at once. */
#include "ublk-mixed.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/*
 * Zero copy promises two ways to the data of one request: ring I/O on the
 * registered buffer, and user copy by any thread. The first half goes straight
 * to the disk below; a helper thread copies the second half out or in while
 * that I/O is still under way.
 */

struct mixed {
	struct io_dev *dev;
	struct loop *helper;
	u8 *buffer; /* helper's */
};

/* Requests of both halves are over when both are; on the request's loop. */
static void mixed_part_done(struct request *req, int error)
{
	if (error && !req->error)
		req->error = error;
	if (--req->pending == 0)
		target_end_io(req, req->error);
}

static void mixed_io_done(struct io_op *op, int error)
{
	mixed_part_done(container_of(op, struct request, io), error);
}

static void mixed_copied(struct loop *loop, struct loop_msg *msg)
{
	struct request *req = container_of(msg, struct request, msg);

	mixed_part_done(req, (int)(intptr_t)req->slow);
}

static u32 mixed_half(const struct target *ti, const struct request *req)
{
	return ALIGN_DOWN(req->len / 2, ti->limits.logical_block);
}

static void mixed_copy(struct loop *loop, struct loop_msg *msg)
{
	struct request *req = container_of(msg, struct request, msg);
	struct mixed *m = req->target->private;
	u32 half = mixed_half(req->target, req), len = req->len - half;
	int ret;

	if (req->op == REQ_WRITE) {
		ret = req->ops->copy_from(req, half, m->buffer, len);
		if (!ret)
			ret = io_dev_pwrite(m->dev, m->buffer, len, req->offset + half);
	} else {
		ret = io_dev_pread(m->dev, m->buffer, len, req->offset + half);
		if (!ret)
			ret = req->ops->copy_to(req, half, m->buffer, len);
	}
	req->slow = (void *)(intptr_t)ret;
	loop_send(req->loop, &req->msg, mixed_copied);
}

static enum target_map_result mixed_map(struct target *ti, struct request *req)
{
	struct mixed *m = ti->private;
	bool split = req->op != REQ_FLUSH && !req->base;
	u32 first = split ? mixed_half(ti, req) : req->len;

	if (req->op > REQ_FLUSH) {
		req->error = -EOPNOTSUPP;
		return TARGET_DONE;
	}
	req->pending = (split ? 1 : 0) + (first || req->op == REQ_FLUSH ? 1 : 0);
	if (split)
		loop_send(m->helper, &req->msg, mixed_copy);
	req->io = (struct io_op){
		.dev = m->dev,
		.type = req->op == REQ_READ ? IO_READ : req->op == REQ_WRITE ? IO_WRITE : IO_FLUSH,
		.offset = req->offset,
		.len = first,
		.base = req->base,
		.fixed_index = req->fixed_index,
		.done = mixed_io_done,
	};
	if (first || req->op == REQ_FLUSH)
		io_submit(req->loop, &req->io);
	return TARGET_SUBMITTED;
}

static void mixed_nothing(struct loop *loop, void *arg)
{
}

/* The helper may still be in the loop_send() of its last answer to @loop. */
static void mixed_detach(struct target *ti, struct loop *loop)
{
	struct mixed *m = ti->private;

	loop_call(m->helper, mixed_nothing, NULL);
}

static const struct target_type target_mixed = {
	.name = "mixed",
	.map = mixed_map,
	.detach = mixed_detach,
};

static int mixed_helper(struct mixed *m)
{
	struct io_engine *io;
	int ret = io_uring_engine_create(64, &io);

	if (!ret)
		ret = loop_create("mixed", io, &m->helper);
	return ret ? ret : loop_start(m->helper, -1);
}

int mixed_create(const char *path, struct target **result, struct qc_err *err)
{
	struct target *ti = calloc(1, sizeof(*ti));
	struct mixed *m = calloc(1, sizeof(*m));
	int ret;

	m->buffer = io_alloc(QC_MAX_REQUEST_BYTES);
	ret = io_dev_open(path, IO_DEV_WRITE, &m->dev, err);
	if (!ret)
		ret = mixed_helper(m);
	if (ret)
		return qc_err_set(err, ret, "mixed: %s", strerror(-ret));
	CDS_INIT_LIST_HEAD(&ti->attached);
	ti->type = &target_mixed;
	ti->private = m;
	ti->size_bytes = m->dev->size_bytes;
	ti->limits = (struct target_limits){
		.logical_block = m->dev->block_bytes,
		.physical_block = 4096,
		.io_min = 4096,
		.io_opt = 4096,
		.dma_align_mask = m->dev->mem_align_bytes - 1,
	};
	*result = ti;
	return 0;
}

void mixed_destroy(struct target *ti)
{
	struct mixed *m = ti->private;

	loop_stop(m->helper);
	loop_destroy(m->helper);
	io_dev_close(m->dev);
	free(m->buffer);
	free(m);
	free(ti);
}
