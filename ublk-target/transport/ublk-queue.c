// SPDX-License-Identifier: GPL-2.0-or-later
/* One hardware queue of a ublk device: its loop, its tags, and how a request goes through. */
#include "ublk-private.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <qchain/log.h>

/*
 * The life of a tag. Everything but create and destroy runs on the queue's
 * thread; nothing on the way of a request locks, allocates or logs.
 *
 *   FETCH -> driver -> tag_fetched -> tag_start -> target_submit -> end_io
 *              ^                                                      |
 *              +------------- COMMIT_AND_FETCH <- tag_commit ---------+
 *
 * A fetch that ends with ABORT ends its tag for good: the device was stopped.
 *
 * Data, in the order in which it is preferred:
 *   kernel buffer  the driver registered the request's pages in our ring, slot
 *                  = tag; the target's I/O names the slot, and whoever needs
 *                  the bytes copies them through /dev/ublkcN (copy_from, copy_to)
 *   bounce         that registration failed (rare): one of few buffers of the
 *                  queue, filled and emptied by user copy; tags wait in line
 *   own memory     copy mode: the driver copies between the pages and the tag's
 *                  buffer when it hands a request over and when it takes it back
 */

#define UBLK_BOUNCE_BUFFERS 2
#define UBLK_DRAIN_POLL_US 1000

struct ublk_bounce {
	struct cds_list_head node;
	void *memory;
};

struct ublk_tag {
	struct io_completion completion; /* of its fetch */
	struct request req;
	struct ublk_queue *queue;
	void *buffer; /* copy mode; never moves */
	struct ublk_bounce *bounce; /* borrowed for this request, or NULL */
	struct cds_list_head node; /* waits for a bounce buffer */
	struct request_tag tag;
	bool submitted; /* the target has it */
	u16 id;
};

struct ublk_queue {
	/* set once */
	struct ublk_dev *dev;
	struct loop *loop;
	char name[16];
	u16 id;
	u16 depth;
	const struct ublksrv_io_desc *descs; /* the driver's, one per tag */
	size_t descs_bytes;
	struct ublk_tag *tags;
	u8 *memory; /* locked: buffers of the tags, or the bounce buffers */
	size_t memory_bytes;
	struct ublk_bounce bounces[UBLK_BOUNCE_BUFFERS];

	/* queue thread only */
	bool closing; /* submit nothing more */
	bool bounce_running;
	int setup_error;
	u32 in_flight; /* requests that the target has */
	struct request_queue requests;
	struct cds_list_head bounce_free;
	struct cds_list_head bounce_wait;

	/* any thread, atomic; written by the queue's */
	u32 live_tags;
};

/* ---- commands to the driver ---------------------------------------------------- */

void ublk_io_sqe(struct io_uring_sqe *sqe, int fd, u32 op, const struct ublksrv_io_cmd *cmd,
		 u64 addr)
{
	sqe->opcode = IORING_OP_URING_CMD;
	sqe->fd = fd;
	sqe->cmd_op = op;
	sqe->addr = addr;
	memcpy((char *)sqe + offsetof(struct io_uring_sqe, cmd), cmd, sizeof(*cmd));
}

static void tag_command(struct ublk_tag *tag, u32 op, s32 result)
{
	struct ublk_queue *q = tag->queue;
	struct ublksrv_io_cmd cmd = {
		.q_id = q->id,
		.tag = tag->id,
		.result = result,
		.addr = (uintptr_t)tag->buffer,
	};

	ublk_io_sqe(io_uring_engine_sqe(q->loop->io, &tag->completion), q->dev->cdev_fd, op,
		    &cmd, q->dev->zero_copy ? ublk_auto_buf_addr(tag->id) : 0);
}

/* Give the request back, whole or failed (never short), and ask for the next. */
static void tag_commit(struct ublk_tag *tag, int error)
{
	struct request *req = &tag->req;
	bool data = req->op == REQ_READ || req->op == REQ_WRITE;

	assert(error <= 0);
	tag_command(tag, tag->queue->dev->commit_op, error ? error : data ? (s32)req->len : 0);
}

/* ---- the bytes of a request in the kernel --------------------------------------- */

static int user_copy(struct request *req, u32 offset, void *buf, u32 len, bool to_kernel)
{
	const struct ublk_tag *tag = container_of(req, struct ublk_tag, req);
	u64 pos = ublk_user_copy_pos(tag->queue->id, tag->id, offset);
	int fd = tag->queue->dev->cdev_fd;
	ssize_t n;

	while (len) {
		n = to_kernel ? pwrite(fd, buf, len, pos) : pread(fd, buf, len, pos);
		if (n < 0 && errno != EINTR)
			return -errno;
		if (n == 0)
			return -EIO;
		if (n > 0) {
			buf = (char *)buf + n;
			pos += n;
			len -= n;
		}
	}
	return 0;
}

static int tag_copy_from(struct request *req, u32 offset, void *buf, u32 len)
{
	return user_copy(req, offset, buf, len, false);
}

static int tag_copy_to(struct request *req, u32 offset, const void *buf, u32 len)
{
	return user_copy(req, offset, (void *)buf, len, true);
}

static void tag_end_io(struct request *req, int error);

static const struct request_ops tag_memory_ops = {
	.end_io = tag_end_io,
};

static const struct request_ops tag_kernel_ops = {
	.end_io = tag_end_io,
	.copy_from = tag_copy_from,
	.copy_to = tag_copy_to,
};

/* ---- requests --------------------------------------------------------------------- */

int ublk_request_op(u32 op_flags)
{
	switch (op_flags & 0xff) {
	case UBLK_IO_OP_READ:
		return REQ_READ;
	case UBLK_IO_OP_WRITE:
		return REQ_WRITE;
	case UBLK_IO_OP_FLUSH:
		return REQ_FLUSH;
	case UBLK_IO_OP_DISCARD:
		return REQ_DISCARD;
	case UBLK_IO_OP_WRITE_ZEROES:
		return REQ_WRITE_ZEROES;
	default:
		return -EOPNOTSUPP;
	}
}

u8 ublk_request_flags(u32 op_flags)
{
	return (op_flags & UBLK_IO_F_FUA ? REQ_FUA : 0) |
	       (op_flags & UBLK_IO_F_NOUNMAP ? REQ_NOUNMAP : 0);
}

/* 0, or why the request cannot be what the driver says it is. */
static int tag_describe(struct ublk_tag *tag, const struct ublksrv_io_desc *desc)
{
	struct request *req = &tag->req;
	int op = ublk_request_op(desc->op_flags);
	bool data = op == REQ_READ || op == REQ_WRITE;
	u32 max_bytes = data ? tag->queue->dev->info.max_io_buf_bytes : QC_MAX_DISCARD_BYTES;

	req->op = op < 0 ? REQ_FLUSH : op; /* what tag_commit() may look at */
	if (op < 0)
		return op;
	req->flags = ublk_request_flags(desc->op_flags);
	req->offset = 0;
	req->len = 0;
	if (op == REQ_FLUSH)
		return 0;
	if (desc->nr_sectors > max_bytes >> SECTOR_SHIFT)
		return -EINVAL;
	req->offset = desc->start_sector << SECTOR_SHIFT;
	req->len = desc->nr_sectors << SECTOR_SHIFT;
	return 0;
}

static void tag_submit(struct ublk_tag *tag)
{
	tag->queue->in_flight++;
	tag->submitted = true;
	target_submit(tag->queue->dev->target, &tag->req);
}

/* Start waiting tags while there are buffers; one that ends at once frees its own. */
static void bounce_run(struct ublk_queue *q)
{
	struct ublk_tag *tag;
	int error;

	if (q->bounce_running)
		return;
	q->bounce_running = true;
	while (!cds_list_empty(&q->bounce_wait) && !cds_list_empty(&q->bounce_free)) {
		tag = cds_list_first_entry(&q->bounce_wait, struct ublk_tag, node);
		cds_list_del(&tag->node);
		tag->bounce = cds_list_first_entry(&q->bounce_free, struct ublk_bounce, node);
		cds_list_del(&tag->bounce->node);
		tag->req.base = tag->bounce->memory;
		error = tag->req.op == REQ_WRITE ?
				tag_copy_from(&tag->req, 0, tag->req.base, tag->req.len) : 0;
		if (error) {
			q->in_flight++;
			tag_end_io(&tag->req, error);
		} else {
			tag_submit(tag);
		}
	}
	q->bounce_running = false;
}

static int bounce_end(struct ublk_tag *tag, int error)
{
	struct ublk_queue *q = tag->queue;

	if (!error && tag->req.op == REQ_READ)
		error = tag_copy_to(&tag->req, 0, tag->req.base, tag->req.len);
	cds_list_add(&tag->bounce->node, &q->bounce_free);
	tag->bounce = NULL;
	return error;
}

static void tag_end_io(struct request *req, int error)
{
	struct ublk_tag *tag = container_of(req, struct ublk_tag, req);
	struct ublk_queue *q = tag->queue;
	bool bounced = tag->bounce;

	tag->submitted = false;
	if (bounced)
		error = bounce_end(tag, error);
	q->in_flight--;
	if (q->closing)
		return; /* whoever recovers the device gets it again */
	tag_commit(tag, error);
	if (bounced)
		bounce_run(q);
}

static void tag_start(struct ublk_tag *tag)
{
	struct ublk_queue *q = tag->queue;
	const struct ublksrv_io_desc *desc = &q->descs[tag->id];
	struct request *req = &tag->req;
	int error = tag_describe(tag, desc);

	if (error) {
		tag_commit(tag, error);
		return;
	}
	if (!(desc->op_flags & UBLK_IO_F_NEED_REG_BUF)) {
		req->base = tag->buffer;
		req->ops = tag->buffer ? &tag_memory_ops : &tag_kernel_ops;
		tag_submit(tag);
		return;
	}
	__atomic_fetch_add(&q->dev->fallbacks, 1, __ATOMIC_RELAXED);
	req->ops = &tag_memory_ops;
	cds_list_add_tail(&tag->node, &q->bounce_wait);
	bounce_run(q);
}

static void tag_fetched(struct io_completion *completion, int res, u32 cqe_flags)
{
	struct ublk_tag *tag = container_of(completion, struct ublk_tag, completion);
	struct ublk_queue *q = tag->queue;

	assert_on_loop(q->loop);
	if (q->closing)
		return;
	if (res == UBLK_IO_RES_OK) {
		tag_start(tag);
		return;
	}
	__atomic_fetch_sub(&q->live_tags, 1, __ATOMIC_RELAXED);
	__atomic_fetch_add(&q->dev->ended_tags, 1, __ATOMIC_RELEASE);
	if (res != UBLK_IO_RES_ABORT)
		__atomic_fetch_add(&q->dev->failed_tags, 1, __ATOMIC_RELAXED);
}

/* ---- making a queue ------------------------------------------------------------------ */

static int queue_map_descs(struct ublk_queue *q)
{
	size_t page = sysconf(_SC_PAGESIZE);
	size_t one = ALIGN_UP(UBLK_MAX_QUEUE_DEPTH * sizeof(struct ublksrv_io_desc), page);
	void *at;

	q->descs_bytes = ALIGN_UP(q->depth * sizeof(struct ublksrv_io_desc), page);
	at = mmap(NULL, q->descs_bytes, PROT_READ, MAP_SHARED | MAP_POPULATE, q->dev->cdev_fd,
		  UBLKSRV_CMD_BUF_OFFSET + q->id * one);
	if (at == MAP_FAILED)
		return -errno;
	q->descs = at;
	return 0;
}

/* Locked and present: a page fault could need the very device that we serve. */
static int queue_map_memory(struct ublk_queue *q)
{
	u32 buffers = q->dev->zero_copy ? UBLK_BOUNCE_BUFFERS : q->depth;
	void *at;

	q->memory_bytes = (size_t)buffers * q->dev->info.max_io_buf_bytes;
	at = mmap(NULL, q->memory_bytes, PROT_READ | PROT_WRITE,
		  MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (at == MAP_FAILED)
		return -errno;
	q->memory = at;
	return mlock(at, q->memory_bytes) < 0 ? -errno : 0;
}

static void queue_init_tags(struct ublk_queue *q)
{
	u32 bytes = q->dev->info.max_io_buf_bytes;
	struct ublk_tag *tag;
	u32 i;

	for (i = 0; i < q->depth; i++) {
		tag = &q->tags[i];
		tag->completion.fn = tag_fetched;
		tag->queue = q;
		tag->id = i;
		tag->req.loop = q->loop;
		tag->req.target = q->dev->target;
		tag->req.fixed_index = i;
		tag->req.tag = &tag->tag;
		tag->tag.queue = &q->requests;
		if (!q->dev->zero_copy)
			tag->buffer = q->memory + (size_t)i * bytes;
	}
	for (i = 0; q->dev->zero_copy && i < UBLK_BOUNCE_BUFFERS; i++) {
		q->bounces[i].memory = q->memory + (size_t)i * bytes;
		cds_list_add_tail(&q->bounces[i].node, &q->bounce_free);
	}
}

static int queue_create_loop(struct ublk_queue *q)
{
	struct io_engine *io;
	int ret;

	/* All fetches, and as many I/Os again before they are handed over. */
	ret = io_uring_engine_create(2 * max(q->depth, (u16)64), &io);
	if (ret)
		return ret;
	ret = loop_create(q->name, io, &q->loop);
	if (ret)
		return ret;
	return loop_start(q->loop, -1);
}

static int queue_init(struct ublk_queue *q)
{
	int ret;

	q->tags = calloc(q->depth, sizeof(*q->tags));
	if (!q->tags)
		return -ENOMEM;
	ret = queue_map_descs(q);
	if (!ret)
		ret = queue_map_memory(q);
	if (!ret)
		ret = queue_create_loop(q);
	if (ret)
		return ret;
	queue_init_tags(q);
	return 0;
}

static void queue_free(struct ublk_queue *q)
{
	if (q->loop)
		loop_stop(q->loop);
	loop_destroy(q->loop);
	if (q->memory)
		munmap(q->memory, q->memory_bytes);
	if (q->descs)
		munmap((void *)q->descs, q->descs_bytes);
	free(q->tags);
	free(q);
}

int ublk_queue_create(struct ublk_dev *dev, u16 id, struct ublk_queue **result,
		      struct qc_err *err)
{
	struct ublk_queue *q = calloc(1, sizeof(*q));
	int ret;

	if (!q)
		return qc_err_set(err, -ENOMEM, "ublkb%u: out of memory", dev->info.dev_id);
	q->dev = dev;
	q->id = id;
	q->depth = dev->info.queue_depth;
	snprintf(q->name, sizeof(q->name), "ublk%u-q%u", dev->info.dev_id, id);
	snprintf(q->requests.name, sizeof(q->requests.name), "%s", q->name);
	q->requests.tags = q->depth;
	CDS_INIT_LIST_HEAD(&q->bounce_free);
	CDS_INIT_LIST_HEAD(&q->bounce_wait);
	ret = queue_init(q);
	if (!ret)
		ret = target_attach(dev->target, q->loop);
	if (ret) {
		queue_free(q);
		return qc_err_set(err, ret,
				  "ublkb%u: queue %u cannot be set up (%s); try fewer or shorter "
				  "queues", dev->info.dev_id, id, strerror(-ret));
	}
	*result = q;
	return 0;
}

/* ---- starting and ending, on the queue's thread ------------------------------------- */

/*
 * What only costs safety under pressure when it is not allowed. The thread is not bound to
 * the processors of its queue: those are where its requests come from, and whoever sends
 * them from one thread would share a processor with us while others are idle.
 */
static void queue_prepare_thread(struct ublk_queue *q)
{
	if (prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) < 0)
		log_warn("%s: may wait for its own device when memory is short (%s), "
			 "CAP_SYS_RESOURCE is needed", q->name, strerror(errno));
}

static void queue_fetch_fn(struct loop *loop, void *arg)
{
	struct ublk_queue *q = arg;
	u32 i;

	queue_prepare_thread(q);
	if (q->dev->zero_copy)
		q->setup_error = io_uring_register_buffers_sparse(io_uring_engine_ring(loop->io),
								  q->depth);
	if (q->setup_error)
		return;
	__atomic_store_n(&q->live_tags, q->depth, __ATOMIC_RELAXED);
	for (i = 0; i < q->depth; i++)
		tag_command(&q->tags[i], q->dev->fetch_op, 0);
}

int ublk_queue_fetch(struct ublk_queue *q, struct qc_err *err)
{
	loop_call(q->loop, queue_fetch_fn, q);
	if (!q->setup_error)
		return 0;
	return qc_err_set(err, q->setup_error,
			  "ublkb%u: %u buffer slots of queue %u cannot be registered (%s); try a "
			  "smaller queue depth, or without zero copy", q->dev->info.dev_id,
			  q->depth, q->id, strerror(-q->setup_error));
}

u32 ublk_queue_live_tags(const struct ublk_queue *q)
{
	return __atomic_load_n(&q->live_tags, __ATOMIC_RELAXED);
}

struct queue_walk {
	struct ublk_queue *queue;
	void (*visit)(const struct request *req, void *arg);
	void *arg;
};

static void queue_walk_fn(struct loop *loop, void *arg)
{
	struct queue_walk *walk = arg;
	u32 i;

	for (i = 0; i < walk->queue->depth; i++)
		if (walk->queue->tags[i].submitted)
			walk->visit(&walk->queue->tags[i].req, walk->arg);
}

void ublk_queue_walk(struct ublk_queue *q, void (*visit)(const struct request *req, void *arg),
		     void *arg)
{
	struct queue_walk walk = { .queue = q, .visit = visit, .arg = arg };

	loop_call(q->loop, queue_walk_fn, &walk);
}

struct queue_drain {
	struct ublk_queue *queue;
	u32 in_flight;
};

static void queue_drain_fn(struct loop *loop, void *arg)
{
	struct queue_drain *drain = arg;
	struct ublk_queue *q = drain->queue;

	q->closing = true;
	CDS_INIT_LIST_HEAD(&q->bounce_wait);
	drain->in_flight = q->in_flight;
}

void ublk_queue_destroy(struct ublk_queue *q)
{
	struct queue_drain drain = { .queue = q };

	if (!q)
		return;
	for (;;) {
		loop_call(q->loop, queue_drain_fn, &drain);
		if (!drain.in_flight)
			break;
		usleep(UBLK_DRAIN_POLL_US);
	}
	target_detach(q->dev->target, q->loop);
	queue_free(q);
}
