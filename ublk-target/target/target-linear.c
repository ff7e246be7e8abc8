// SPDX-License-Identifier: GPL-2.0-or-later
/* linear: one image container as it is; the smallest real target. */
#include "target-private.h"

#include <errno.h>
#include <string.h>

/* A newcomer's tour: ctr opens, map remaps and submits, done ends the request. */

static int linear_ctr(struct target *ti, int argc, char **argv, struct qc_err *err)
{
	bool read_only = argc == 2 && !strcmp(argv[1], "read-only=on");
	struct io_dev *dev;
	int ret;

	if (argc != 1 && !read_only)
		return qc_err_set(err, -EINVAL,
				  "linear: %d words given, expected PATH [read-only=on]", argc);
	ret = io_dev_open(argv[0], read_only ? 0 : IO_DEV_WRITE, &dev, err);
	if (ret)
		return ret;
	ti->private = dev;
	ti->size_bytes = ALIGN_DOWN(io_dev_bytes(dev), dev->block_bytes);
	ti->limits.read_only = read_only;
	return 0;
}

static void linear_dtr(struct target *ti)
{
	io_dev_close(ti->private);
}

static void linear_done(struct io_op *op, int error)
{
	struct request *req = container_of(op, struct request, io);

	if (error || op->type == IO_FLUSH || !(req->flags & REQ_FUA)) {
		target_end_io(req, error);
		return;
	}
	op->type = IO_FLUSH; /* FUA: durable before it ends */
	io_submit(req->loop, op);
}

static enum target_map_result linear_map(struct target *ti, struct request *req)
{
	static const u8 types[] = {
		[REQ_READ] = IO_READ, [REQ_WRITE] = IO_WRITE, [REQ_FLUSH] = IO_FLUSH,
	};

	if (req->op >= ARRAY_SIZE(types)) {
		req->error = -EOPNOTSUPP;
		return TARGET_DONE;
	}
	req->io = (struct io_op){
		.dev = ti->private,
		.type = types[req->op],
		.offset = req->offset,
		.len = req->len,
		.base = req->base,
		.fixed_index = req->fixed_index,
		.done = linear_done,
	};
	io_submit(req->loop, &req->io);
	return TARGET_SUBMITTED;
}

static void linear_limits(struct target *ti, struct target_limits *limits)
{
	struct io_dev *dev = ti->private;

	limits->logical_block = dev->block_bytes;
	limits->physical_block = max(limits->physical_block, dev->block_bytes);
	limits->dma_align_mask = dev->mem_align_bytes - 1;
}

const struct target_type target_linear = {
	.name = "linear",
	.ctr = linear_ctr,
	.dtr = linear_dtr,
	.map = linear_map,
	.limits = linear_limits,
};
