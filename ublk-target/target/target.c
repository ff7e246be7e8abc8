// SPDX-License-Identifier: GPL-2.0-or-later
/* The core of the targets: finding a type, checking a request, optional callbacks. */
#include "target-private.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct target_type *const target_types[] = {
	&target_chain,
	&target_linear,
	&target_zero,
	&target_error,
};

static const struct target_type *target_find(const char *name)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(target_types); i++)
		if (!strcmp(target_types[i]->name, name))
			return target_types[i];
	return NULL;
}

struct target *target_alloc(const struct target_type *type)
{
	struct target *ti = calloc(1, sizeof(*ti));

	if (!ti)
		return NULL;
	ti->type = type;
	ti->limits = (struct target_limits){
		.logical_block = SECTOR_SIZE,
		.physical_block = 4096,
		.io_min = 4096,
		.io_opt = 64 * KiB,
		.dma_align_mask = SECTOR_SIZE - 1,
	};
	CDS_INIT_LIST_HEAD(&ti->attached);
	return ti;
}

void target_ask_limits(struct target *ti)
{
	if (ti->type->limits)
		ti->type->limits(ti, &ti->limits);
}

int target_create(const char *name, int argc, char **argv, struct target **result,
		  struct qc_err *err)
{
	const struct target_type *type = target_find(name);
	struct target *ti;
	int ret;

	if (!type)
		return qc_err_set(err, -EINVAL,
				  "%s: unknown target type, expected qcow2-chain, linear, "
				  "zero or error", name);
	ti = target_alloc(type);
	if (!ti)
		return qc_err_set(err, -ENOMEM, "%s: out of memory", name);
	ret = type->ctr ? type->ctr(ti, argc, argv, err) : 0;
	if (ret) {
		free(ti);
		return ret;
	}
	target_ask_limits(ti);
	*result = ti;
	return 0;
}

void target_destroy(struct target *ti)
{
	if (!ti)
		return;
	if (ti->type->dtr)
		ti->type->dtr(ti);
	free(ti);
}

int target_attach(struct target *ti, struct loop *loop)
{
	int ret = stats_attach(ti, loop);

	if (ret == 0 && ti->type->attach)
		ret = ti->type->attach(ti, loop);
	if (ret)
		stats_detach(ti, loop);
	return ret;
}

void target_detach(struct target *ti, struct loop *loop)
{
	if (ti->type->detach)
		ti->type->detach(ti, loop);
	stats_detach(ti, loop);
}

void target_presuspend(struct target *ti)
{
	if (ti->type->presuspend)
		ti->type->presuspend(ti);
}

int target_suspend(struct target *ti, struct qc_err *err)
{
	return ti->type->suspend ? ti->type->suspend(ti, err) : 0;
}

void target_status(struct target *ti, json_object *result)
{
	if (ti->type->status)
		ti->type->status(ti, result);
}

void target_locate(const struct request *req, struct request_info *info)
{
	const struct target *ti = req->target;
	const char *stage = __atomic_load_n(&req->stage, __ATOMIC_RELAXED);

	assert_on_loop(req->loop);
	*info = (struct request_info){
		.offset = req->offset, .len = req->len, .op = req->op,
		.waited_ns = loop_now_ns(req->loop) - req->start_ns,
		.stage = stage ? stage : "I/O",
	};
	snprintf(info->queue, sizeof(info->queue), "%s",
		 req->tag ? req->tag->queue->name : req->loop->name);
	if (ti->type->locate)
		ti->type->locate(ti, req, info);
}

static bool req_is_write(const struct request *req)
{
	return req->op == REQ_WRITE || req->op == REQ_DISCARD || req->op == REQ_WRITE_ZEROES;
}

/* What no target has to look at: bounds, alignment, mode. */
static int target_check(const struct target *ti, const struct request *req)
{
	u64 size = __atomic_load_n(&ti->size_bytes, __ATOMIC_ACQUIRE);
	u32 block = ti->limits.logical_block;

	if (req->op == REQ_FLUSH)
		return 0;
	if (req_is_write(req) && ti->limits.read_only)
		return -EPERM;
	if (!IS_ALIGNED(req->offset | req->len, block) || !req->len)
		return -EINVAL;
	if (req->offset > size || req->len > size - req->offset)
		return req_is_write(req) ? -ENOSPC : -EIO;
	return 0;
}

void target_submit(struct target *ti, struct request *req)
{
	int error;

	req->target = ti;
	req->error = 0;
	req->retries = 0;
	request_set_stage(req, NULL);
	error = target_check(ti, req);
	if (error) {
		stats_invalid(req);
		req->ops->end_io(req, error);
		return;
	}
	stats_begin(req);
	if (ti->type->map(ti, req) == TARGET_DONE)
		target_end_io(req, req->error);
}

void target_end_io(struct request *req, int error)
{
	assert_on_loop(req->loop);
	stats_end(req, error);
	if (error)
		trouble_tell(req, error);
	req->ops->end_io(req, error);
}

void target_set_event(struct target *ti, target_event_fn fn, void *arg)
{
	/* Its loops run already, and a leak scan may have ended: the argument goes first. */
	ti->event_arg = arg;
	__atomic_store_n(&ti->event, fn, __ATOMIC_RELEASE);
}

void target_event(struct target *ti, const char *name, json_object *data_owned)
{
	target_event_fn fn = __atomic_load_n(&ti->event, __ATOMIC_ACQUIRE);

	if (fn)
		fn(ti->event_arg, name, data_owned);
	else
		json_object_put(data_owned);
}
