/* SPDX-License-Identifier: GPL-2.0-or-later OR MIT */
/* A guest request, as transports hand it to a target. */
#ifndef QCHAIN_REQUEST_H
#define QCHAIN_REQUEST_H

#include <qchain/io.h>
#include <qchain/limits.h>
#include <qchain/loop.h>
#include <qchain/types.h>

enum req_op {
	REQ_READ,
	REQ_WRITE,
	REQ_FLUSH,
	REQ_DISCARD,
	REQ_WRITE_ZEROES,
	REQ_BLOCK_STATUS,
};

#define REQ_FUA 1u /* write, write zeroes, discard: durable before end_io */
#define REQ_NOUNMAP 2u /* write zeroes: keep the space allocated */

/* One answer of REQ_BLOCK_STATUS. */
struct block_status {
	u64 len;
	u32 depth; /* 0: no layer has it, 1: the top layer, 2: the one below, ... */
	bool zero; /* reads as zeroes */
	bool allocated; /* some layer maps it: base:allocation "not a hole" */
	bool compressed;
	bool has_offset;
	u64 host_offset;
	u16 layer;
};

struct request;
struct target;

/*
 * struct request_queue - requests that share a bounded number of tags: a
 * hardware queue of ublk, a connection of NBD
 * Reads go on while there are tags (and bytes), whatever writes wait for (rule E2).
 */
struct request_queue {
	/* set once */
	char name[24];
	u32 tags;
	u64 bytes; /* memory that requests share, too; 0: each has its own */
	/* metadata thread of the target */
	u32 parked; /* tags whose request waits for space */
	u64 parked_bytes;
	bool low; /* so many that less than a quarter is left */
	struct cds_list_head node; /* while some are parked */
};

/* One tag; several requests may be parts of what it stands for. */
struct request_tag {
	struct request_queue *queue; /* set once */
	u32 bytes; /* of the queue's, while it is in use; set before its first request */
	u32 parked; /* metadata thread: operations that wait for space */
};

/*
 * struct request_ops - how the transport of a request is reached
 * @end_io: the request is over; @error 0 or -errno. On the request's loop.
 * @copy_from, @copy_to: bytes of a request whose data is a kernel buffer
 *        (@base NULL), synchronously, any thread; NULL for memory buffers.
 */
struct request_ops {
	void (*end_io)(struct request *req, int error);
	int (*copy_from)(struct request *req, u32 offset, void *buf, u32 len);
	int (*copy_to)(struct request *req, u32 offset, const void *buf, u32 len);
};

/*
 * struct request
 *
 * Filled by the transport, which owns the memory (preallocated per tag) and
 * hands it over with target_submit() until end_io. Offsets and lengths are
 * multiples of the target's logical block size, inside the target, data at
 * most QC_MAX_REQUEST_BYTES, discard and zeroes at most QC_MAX_DISCARD_BYTES.
 */
struct request {
	/* transport: set before target_submit() */
	const struct request_ops *ops;
	struct loop *loop;
	struct target *target;
	struct request_tag *tag; /* may be NULL */
	u64 offset;
	u32 len;
	u8 op; /* enum req_op */
	u8 flags;
	u16 fixed_index; /* kernel buffer, when base is NULL */
	void *base; /* mem_align of the target's limits */
	struct block_status *status; /* REQ_BLOCK_STATUS: room for status_max */
	u32 status_max;
	u32 status_nr; /* answered */

	/* target only */
	u32 pending; /* sub-operations under way, plus one while issuing */
	u32 epoch;
	int error;
	u8 retries; /* windows that were missing */
	struct cds_list_head node; /* where it is parked */
	struct loop_msg msg;
	struct io_op io;
	u64 start_ns; /* the core's: when it was submitted */
	/* any thread, atomic: what it waits for; NULL: its I/O */
	const char *stage;
	const void *slow; /* the target's state for it */
	u32 flush_next; /* image of a flush that goes through several */
};

/* Name what @req waits for from now on: a constant, for `status`. */
static inline void request_set_stage(struct request *req, const char *stage)
{
	__atomic_store_n(&req->stage, stage, __ATOMIC_RELAXED);
}

#endif
