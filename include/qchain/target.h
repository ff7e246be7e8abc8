/* SPDX-License-Identifier: GPL-2.0-or-later OR MIT */
/* Targets: the device-mapper shape, in userspace. */
#ifndef QCHAIN_TARGET_H
#define QCHAIN_TARGET_H

#include <json-c/json.h>
#include <qchain/err.h>
#include <qchain/request.h>
#include <qchain/throttle.h>
#include <qchain/types.h>

struct target;

/*
 * struct target_limits - what a transport reports about the device
 * Bytes throughout. @dma_align_mask: as the kernel's, e.g. 511.
 */
struct target_limits {
	u32 logical_block;
	u32 physical_block;
	u32 io_min;
	u32 io_opt;
	u32 dma_align_mask;
	u32 discard_granularity; /* 0: no discard */
	u32 max_discard;
	u32 max_write_zeroes;
	bool read_only;
	bool in_memory; /* files on tmpfs and nothing else: I/O is a copy, one at a time */
};

/* map(): what happened to the request. */
enum target_map_result {
	TARGET_SUBMITTED, /* the target ends it */
	TARGET_DONE, /* nothing to wait for: ended by the core, req->error */
};

/*
 * target_ctr_fn - build ti->private from words, as dmsetup's table line.
 * Control thread. 0, or -errno with @err set; nothing is left behind then.
 */
typedef int (*target_ctr_fn)(struct target *ti, int argc, char **argv, struct qc_err *err);
/* Undo ctr; no request is in flight. Control thread. */
typedef void (*target_dtr_fn)(struct target *ti);
/*
 * target_map_fn - take one request. Thread of req->loop. Never blocks, locks,
 * allocates or logs. The fast path.
 */
typedef enum target_map_result (*target_map_fn)(struct target *ti, struct request *req);
/*
 * target_attach_fn - @loop will submit requests from now on; detach: it has
 * none in flight and submits no more. Control thread; the loop runs or not yet.
 */
typedef int (*target_attach_fn)(struct target *ti, struct loop *loop);
typedef void (*target_detach_fn)(struct target *ti, struct loop *loop);
/*
 * target_presuspend_fn - requests that wait for something from outside (space)
 * fail from now on, so that the exports can be stopped by force. Control thread.
 */
typedef void (*target_presuspend_fn)(struct target *ti);
/*
 * suspend: everything acknowledged is on disk and consistent; -EIO: what was not
 * flushed before may be lost. Control thread.
 */
typedef int (*target_suspend_fn)(struct target *ti, struct qc_err *err);
typedef void (*target_resume_fn)(struct target *ti);
/* status: add keys to @result; what query-status and `status` show. */
typedef void (*target_status_fn)(struct target *ti, json_object *result);
/*
 * target_locate_fn - fill in stage, image and old of @info for @req, which the
 * target has. Thread of req->loop.
 */
struct request_info;
typedef void (*target_locate_fn)(const struct target *ti, const struct request *req,
				 struct request_info *info);
/* limits: fill in what differs from the defaults (512, no discard). */
typedef void (*target_limits_fn)(struct target *ti, struct target_limits *limits);

/*
 * target_event_fn - something that an administrator wants to know: a QMP event
 * @name: "BLOCK_IMAGE_CORRUPTED", "BLOCK_IO_ERROR", ...; @data_owned: its data.
 * Called on the metadata thread, or on that of a request that failed; must not block.
 */
typedef void (*target_event_fn)(void *arg, const char *name, json_object *data_owned);

/* What a request counts as. Block status counts as nothing. */
enum stat_kind { STAT_READ, STAT_WRITE, STAT_FLUSH, STAT_UNMAP, STAT_NR };

struct target_count {
	u64 operations; /* that went well, as the bytes and the time */
	u64 bytes;
	u64 failed;
	u64 invalid; /* refused by target_submit() */
	u64 time_ns; /* summed over operations, from submission to end */
};

/*
 * struct target_stats - what went through one loop, or all of them
 * A loop alone writes its own, with plain additions; anybody reads them, each
 * number for itself. Zeroes that are written count as writes, as in QEMU. Times
 * are those of loop_batch_ns(): exact to one batch of completions.
 */
struct target_stats {
	struct target_count kinds[STAT_NR];
	u64 highest; /* end of the last guest byte that was ever written */
	u64 last_ns; /* when the last one ended; 0: none yet */
	struct latency_probe *probe; /* set once: of the target */
};

/* All callbacks but map may be NULL; the core checks that in one place. */
struct target_type {
	const char *name;
	target_ctr_fn ctr;
	target_dtr_fn dtr;
	target_map_fn map;
	target_attach_fn attach;
	target_detach_fn detach;
	target_presuspend_fn presuspend;
	target_suspend_fn suspend;
	target_resume_fn resume;
	target_status_fn status;
	target_locate_fn locate;
	target_limits_fn limits;
};

/*
 * struct target - one instance
 * @size_bytes: set by ctr; atomic, grows with resize
 */
struct target {
	const struct target_type *type;
	void *private;
	u64 size_bytes;
	struct target_limits limits;
	target_event_fn event; /* atomic: set while its loops run */
	void *event_arg;
	u64 trouble_ns; /* any thread, atomic: no event about a failed request before that */
	struct latency_probe probe; /* what comes from attached loops */
	/* control thread only */
	struct cds_list_head attached; /* struct attached_loop */
	struct target_stats detached; /* sum of the loops that are gone */
};

/* Find the type by name and construct; "qcow2-chain", "linear", "zero", "error". */
int target_create(const char *type, int argc, char **argv, struct target **result,
		  struct qc_err *err);
void target_destroy(struct target *ti);
int target_attach(struct target *ti, struct loop *loop);
void target_detach(struct target *ti, struct loop *loop);
void target_presuspend(struct target *ti);
int target_suspend(struct target *ti, struct qc_err *err);
void target_status(struct target *ti, json_object *result);

/* A request under way, as `status` shows it. */
struct request_info {
	u64 offset;
	u64 waited_ns;
	u32 len;
	u8 op; /* enum req_op */
	bool old; /* a grace waits for it */
	const char *stage; /* a constant */
	char queue[24];
	char image[128]; /* that its I/O is on; "" when that is not known */
};

/* What there is to know about @req; thread of req->loop. */
void target_locate(const struct request *req, struct request_info *info);
/* The sum over all loops, now and before. Control thread. */
void target_get_stats(const struct target *ti, struct target_stats *result);

/*
 * target_submit - hand a request over; ops->end_io tells the end, on the same
 * loop, possibly before this returns. Requests that the device's size or mode
 * forbids end at once: -EINVAL, -ENOSPC beyond the end of a write, -EPERM on a
 * read-only target, -EIO beyond the end of a read.
 */
void target_submit(struct target *ti, struct request *req);

/* Set once, before the first request; and called by targets. */
void target_set_event(struct target *ti, target_event_fn fn, void *arg);
void target_event(struct target *ti, const char *name, json_object *data_owned);

/* Called by targets: end @req with @error; thread of req->loop. */
void target_end_io(struct request *req, int error);

#endif
