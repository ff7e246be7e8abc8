// SPDX-License-Identifier: GPL-2.0-or-later
/* Moves what layers hold from target to target: a scan, a copier run, a flush. */
#include "transfer-private.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/*
 *   scan      block status of the whole source: every table is read and checked
 *             before the first byte is written, and the bytes to move are known
 *   copy      the same walk again; each extent that is wanted is a region
 *   flush     of the target, then the job ends
 *
 * A loop can be attached to one target only, so requests for another are carried
 * to its loop and back by messages, together with their lane.
 */

#define TRANSFER_CHUNK_BYTES QC_MAX_REQUEST_BYTES
/* Adjacent extents become one region up to this. */
#define REGION_BYTES (64u * 1024u * 1024u)
#define READY_POLL_NS 1000000ull
#define ROOM_POLL_NS 500000000ull

static void scan_run(struct transfer *t);
static void copy_ended(struct transfer *t);
static void end(struct transfer *t, int error);

/* ---- scan ---------------------------------------------------------------------------- */

static void scan_timer(struct loop *loop, struct loop_timer *timer)
{
	scan_run(container_of(timer, struct transfer, timer));
}

/* 1: it may begin; 0: it is asked again; -errno. */
static int ask_ready(struct transfer *t)
{
	int ret = t->ready || !t->o.ops || !t->o.ops->ready ? 1 : t->o.ops->ready(t->o.arg);

	if (!ret)
		loop_timer_set(t->loop, &t->timer, READY_POLL_NS);
	if (ret == 1 && !t->ready)
		transfer_rewind(t);
	t->ready = ret == 1;
	return ret;
}

/* What its owner has begun ends first. */
static void scan_cancelled(struct transfer *t)
{
	if (transfer_is_asking(t))
		return;
	if (t->o.ops && t->o.ops->busy && t->o.ops->busy(t->o.arg))
		loop_timer_set(t->loop, &t->timer, READY_POLL_NS);
	else
		end(t, -ECANCELED);
}

/* A table could not be read: true when the job rests, and asks again afterwards. */
static bool tables_rest(struct transfer *t, int error)
{
	if (job_error(t->job, true, error) != JOB_ACTION_STOP)
		return false;
	t->source.error = 0;
	t->compare.error = 0;
	return true;
}

static void note_room(struct transfer *t)
{
	if (t->o.ops && t->o.ops->room)
		t->room = t->o.ops->room(t->o.arg);
}

static const struct copier_ops transfer_copier_ops;

static u32 nr_lanes(const struct transfer *t)
{
	bool in_memory = t->o.source->limits.in_memory && t->o.target->limits.in_memory;

	return in_memory ? COPIER_LANES_IN_MEMORY : TRANSFER_LANES;
}

static int make_copier(struct transfer *t)
{
	struct copier_options options = {
		.lanes = nr_lanes(t), .chunk_bytes = TRANSFER_CHUNK_BYTES,
		.memory_bytes = TRANSFER_MEMORY_BYTES,
		.zero_bytes = QC_MAX_DISCARD_BYTES, .private_bytes = sizeof(struct lane),
		.speed = t->job->speed, .probe = t->o.probe,
	};

	return copier_create(t->loop, &options, &transfer_copier_ops, t, &t->copier);
}

static void scan_done(struct transfer *t)
{
	int ret = make_copier(t);

	if (ret) {
		end(t, ret);
		return;
	}
	t->scanning = false;
	transfer_rewind(t);
	job_set_remaining(t->job, t->wanted);
	note_room(t);
	copier_start(t->copier);
}

static void scan_run(struct transfer *t)
{
	struct copy_region region;
	int ret;

	if (t->ended || !t->scanning)
		return;
	if (t->job->cancelled) {
		scan_cancelled(t);
		return;
	}
	if (t->pausing) {
		job_paused(t->job);
		return;
	}
	ret = ask_ready(t);
	if (ret < 0)
		end(t, ret);
	if (ret <= 0)
		return;
	while ((ret = transfer_next_region(t, &region)) == 1)
		t->wanted += region.zero ? 0 : region.len;
	if (transfer_is_asking(t))
		return;
	if (!ret)
		scan_done(t);
	else if (!tables_rest(t, ret))
		end(t, ret);
}

/* ---- copy: regions ---------------------------------------------------------------------- */

static int transfer_next(void *arg, struct copy_region *region)
{
	struct transfer *t = arg;
	struct retry *r;
	int ret;

	if (!cds_list_empty(&t->again)) {
		r = cds_list_first_entry(&t->again, struct retry, node);
		cds_list_del(&r->node);
		*region = r->region;
		free(r);
		ret = 1;
	} else {
		ret = transfer_next_region(t, region);
	}
	t->nr_regions += ret == 1;
	if (ret < 0 && ret != -EAGAIN && tables_rest(t, ret))
		return -EAGAIN;
	return ret || !t->nr_regions ? ret : -EAGAIN;
}

/* The job rests; then the region is done again, and counted again. */
static int keep_for_later(struct transfer *t, const struct copy_region *region)
{
	struct retry *r = malloc(sizeof(*r));

	if (!r)
		return -ENOMEM;
	r->region = *region;
	cds_list_add_tail(&r->node, &t->again);
	if (!region->zero)
		job_set_remaining(t->job, t->job->total - t->job->done + region->len);
	return 0;
}

static void drop_again(struct transfer *t)
{
	struct retry *r, *tmp;

	cds_list_for_each_entry_safe(r, tmp, &t->again, node)
		free(r);
	CDS_INIT_LIST_HEAD(&t->again);
}

/* Somebody else may have made it go on, and it rests for another reason now. */
static void look_for_room(struct loop *loop, struct loop_timer *timer)
{
	struct transfer *t = container_of(timer, struct transfer, room_timer);
	struct qc_err ignored = { 0 };

	if (t->ended || !t->job->user_paused || t->job->io_status != JOB_IO_NOSPACE)
		return;
	if (t->job->state == JOB_PAUSED && t->o.ops->room(t->o.arg) > t->room)
		job_resume(t->job, &ignored);
	else
		loop_timer_set(loop, timer, ROOM_POLL_NS);
}

/* A volume may have grown between the write that failed and now, and files shrink the room. */
static void wait_for_room(struct transfer *t)
{
	if (!t->o.ops || !t->o.ops->room || t->room_timer.deadline_ns)
		return;
	t->room = min(t->room, t->o.ops->room(t->o.arg));
	loop_timer_set(t->loop, &t->room_timer, ROOM_POLL_NS);
}

static void region_failed(struct transfer *t, const struct copy_region *region, int error)
{
	enum job_action action;

	if (error == -ECANCELED) {
		copier_stop(t->copier, error);
		return;
	}
	action = job_error(t->job, t->read_failed, error);
	if (action == JOB_ACTION_STOP && error == -ENOSPC)
		wait_for_room(t);
	if (action == JOB_ACTION_STOP && !keep_for_later(t, region))
		return;
	if (!t->job->err.code)
		qc_err_set(&t->job->err, error, "copying at guest offset %llu failed (%s)",
			   (unsigned long long)region->src_offset, strerror(-error));
	if (action == JOB_ACTION_IGNORE)
		t->error = error;
	else
		copier_stop(t->copier, error);
}

static void transfer_done(void *arg, const struct copy_region *region, int error)
{
	struct transfer *t = arg;

	t->nr_regions--;
	if (error)
		region_failed(t, region, error);
	if (!t->nr_regions)
		copier_kick(t->copier);
}

/* ---- copy: lanes ------------------------------------------------------------------------- */

static void lane_moved(struct lane *l, int error)
{
	struct transfer *t = l->t;

	if (!error && !l->io->zero) /* zeroes are little work */
		job_progress(t->job, l->io->len);
	if (error)
		t->read_failed = false;
	copy_io_done(l->io, error);
}

static struct lane *lane_of(struct transfer *t, struct copy_io *io)
{
	struct lane *l = io->private;

	l->t = t;
	l->io = io;
	return l;
}

/* The range of granules that differ; none: @from == @to. */
static void find_difference(struct lane *l)
{
	const u8 *a = l->io->buf, *b = l->mem;
	u32 len = l->io->len, granule = l->t->o.compare_bytes, at, n;

	l->from = len;
	l->to = 0;
	for (at = 0; at < len; at += n) {
		/* the granules of the target, not of the chunk */
		n = min(len - at, granule - (u32)((l->io->src_offset + at) & (granule - 1)));
		if (!memcmp(a + at, b + at, n))
			continue;
		l->from = min(l->from, at);
		l->to = at + n;
	}
	if (!l->to)
		l->from = 0;
}

static void lane_part_read(struct lane *l, int error)
{
	if (error)
		l->error = error;
	if (--l->pending)
		return;
	l->from = 0;
	l->to = l->io->len;
	if (!l->error && l->t->o.compare)
		find_difference(l);
	l->t->read_failed |= l->error;
	copy_io_done(l->io, l->error);
}

static void read_end_io(struct request *req, int error)
{
	lane_part_read(container_of(req, struct lane, req), error);
}

static void other_back(struct loop *loop, struct loop_msg *msg)
{
	struct lane *l = container_of(msg, struct lane, other_msg);

	lane_part_read(l, l->other.error);
}

static void other_end_io(struct request *req, int error)
{
	struct lane *l = container_of(req, struct lane, other);

	req->error = error;
	loop_send(l->t->loop, &l->other_msg, other_back);
}

static const struct request_ops read_ops = { .end_io = read_end_io };
static const struct request_ops other_ops = { .end_io = other_end_io };

/* On the loop of @compare; beyond its end it reads as zero. */
static void other_submit(struct loop *loop, struct loop_msg *msg)
{
	struct lane *l = container_of(msg, struct lane, other_msg);
	u64 at = l->io->src_offset, size = l->t->compare.size;
	u32 len = at >= size ? 0 : min((u64)l->io->len, size - at);

	memset((u8 *)l->mem + len, 0, l->io->len - len);
	if (!len) {
		l->other.error = 0;
		loop_send(l->t->loop, &l->other_msg, other_back);
		return;
	}
	l->other = (struct request){ .ops = &other_ops, .loop = loop, .op = REQ_READ,
				     .offset = at, .len = len, .base = l->mem };
	target_submit(l->t->o.compare, &l->other);
}

static void transfer_read(void *arg, struct copy_io *io)
{
	struct transfer *t = arg;
	struct lane *l = lane_of(t, io);

	l->error = 0;
	l->pending = t->o.compare ? 2 : 1;
	if (t->o.compare) {
		l->mem = (u8 *)t->mem + io->buf_at;
		loop_send(t->compare.loop, &l->other_msg, other_submit);
	}
	l->req = (struct request){ .ops = &read_ops, .loop = t->loop, .op = REQ_READ,
				   .offset = io->src_offset, .len = io->len, .base = io->buf };
	target_submit(t->o.source, &l->req);
}

static void write_back(struct loop *loop, struct loop_msg *msg)
{
	struct lane *l = container_of(msg, struct lane, msg);

	lane_moved(l, l->error);
}

static void write_end_io(struct request *req, int error)
{
	struct lane *l = container_of(req, struct lane, req);

	l->error = error;
	if (req->loop == l->t->loop)
		lane_moved(l, error);
	else
		loop_send(l->t->loop, &l->msg, write_back);
}

static const struct request_ops write_ops = { .end_io = write_end_io };

static void write_submit(struct loop *loop, struct loop_msg *msg)
{
	struct lane *l = container_of(msg, struct lane, msg);
	struct copy_io *io = l->io;

	l->req = (struct request){
		.ops = &write_ops, .loop = loop, .op = io->zero ? REQ_WRITE_ZEROES : REQ_WRITE,
		.offset = io->dst_offset, .len = io->len, .base = io->zero ? NULL : io->buf,
	};
	if (!io->zero) {
		l->req.offset += l->from;
		l->req.len = l->to - l->from;
		l->req.base = (u8 *)io->buf + l->from;
	}
	target_submit(l->t->o.target, &l->req);
}

static void transfer_write(void *arg, struct copy_io *io)
{
	struct transfer *t = arg;
	struct lane *l = lane_of(t, io);

	if (!io->zero && l->from == l->to) { /* the same through the new backing */
		lane_moved(l, 0);
		return;
	}
	if (t->o.target_loop)
		loop_send(t->o.target_loop, &l->msg, write_submit);
	else
		write_submit(t->loop, &l->msg);
}

/* ---- flush and end -------------------------------------------------------------------------- */

static void end(struct transfer *t, int error)
{
	if (t->ended)
		return;
	t->ended = true;
	loop_timer_cancel(&t->timer);
	loop_timer_cancel(&t->room_timer);
	job_end(t->job, error);
}

/* @t is gone afterwards, perhaps: what it goes on as may end at once. */
static void go_on(struct transfer *t)
{
	int ret;

	t->then = t->o.ops->then;
	ret = t->then->start(t->job, &t->job->err);
	if (ret)
		job_end(t->job, ret);
}

static void flush_back(struct loop *loop, struct loop_msg *msg)
{
	struct transfer *t = container_of(msg, struct transfer, flush_msg);

	if (t->error || t->job->cancelled || !t->o.ops || !t->o.ops->then)
		end(t, t->error);
	else
		go_on(t);
}

static void flush_end_io(struct request *req, int error)
{
	struct transfer *t = container_of(req, struct transfer, flush);

	t->error = error;
	loop_send(t->loop, &t->flush_msg, flush_back);
}

static const struct request_ops flush_ops = { .end_io = flush_end_io };

static void flush_submit(struct loop *loop, struct loop_msg *msg)
{
	struct transfer *t = container_of(msg, struct transfer, flush_msg);

	t->flush = (struct request){ .ops = &flush_ops, .loop = loop, .op = REQ_FLUSH };
	target_submit(t->o.target, &t->flush);
}

/* A question that is on its way comes back first. */
static void copy_ended(struct transfer *t)
{
	if (transfer_is_asking(t))
		return;
	if (t->error) {
		end(t, t->error);
		return;
	}
	if (t->o.target_loop)
		loop_send(t->o.target_loop, &t->flush_msg, flush_submit);
	else
		flush_submit(t->loop, &t->flush_msg);
}

static void transfer_ended(void *arg, int error)
{
	struct transfer *t = arg;

	t->copied = true;
	t->error = error ? error : t->error;
	copy_ended(t);
}

static void transfer_at_rest(void *arg)
{
	job_paused(((struct transfer *)arg)->job);
}

static const struct copier_ops transfer_copier_ops = {
	.next = transfer_next,
	.read = transfer_read,
	.write = transfer_write,
	.done = transfer_done,
	.paused = transfer_at_rest,
	.ended = transfer_ended,
};

void transfer_answered(struct transfer *t)
{
	if (t->scanning)
		scan_run(t);
	else if (t->copied)
		copy_ended(t);
	else
		copier_kick(t->copier);
}

/* ---- the job --------------------------------------------------------------------- */

static int transfer_start(struct job *job, struct qc_err *err)
{
	struct transfer *t = job->private;

	if (t->o.compare) {
		t->mem = io_alloc(TRANSFER_MEMORY_BYTES);
		if (!t->mem)
			return qc_err_set(err, -ENOMEM, "%s: out of memory", job->id);
	}
	t->scanning = true;
	scan_run(t);
	return 0;
}

static void transfer_pause(struct job *job)
{
	struct transfer *t = job->private;

	if (t->then) {
		t->then->pause(job);
		return;
	}
	t->pausing = true;
	if (!t->scanning)
		copier_pause(t->copier);
	else if (!transfer_is_asking(t))
		scan_run(t);
}

static void transfer_resume(struct job *job)
{
	struct transfer *t = job->private;

	if (t->then) {
		t->then->resume(job);
		return;
	}
	t->pausing = false;
	if (t->scanning) {
		scan_run(t);
		return;
	}
	note_room(t);
	copier_resume(t->copier);
	copier_kick(t->copier);
}

static bool transfer_cancel(struct job *job, bool force)
{
	struct transfer *t = job->private;

	if (t->then)
		return t->then->cancel(job, force);
	if (t->scanning)
		scan_run(t);
	else if (!t->copied)
		copier_stop(t->copier, -ECANCELED);
	return true;
}

static void transfer_complete(struct job *job)
{
	struct transfer *t = job->private;

	if (t->then) /* else it ends by itself: it was restarted when it was ready */
		t->then->complete(job);
}

static void transfer_set_speed(struct job *job, u64 speed)
{
	struct transfer *t = job->private;

	if (t->then)
		t->then->set_speed(job, speed);
	else if (t->copier)
		copier_set_speed(t->copier, speed);
}

static void transfer_prepare(struct job *job)
{
	struct transfer *t = job->private;

	if (t->o.ops && t->o.ops->prepare)
		t->o.ops->prepare(job, t->o.arg);
	else
		job_prepared(job, 0);
}

static void transfer_free(struct transfer *t)
{
	if (t->o.ops && t->o.ops->clean)
		t->o.ops->clean(t->o.arg);
	drop_again(t);
	copier_destroy(t->copier);
	free(t->mem);
	free(t);
}

static void transfer_clean(struct job *job)
{
	loop_timer_cancel(&((struct transfer *)job->private)->room_timer);
	transfer_free(job->private);
	job->private = NULL;
}

#define TRANSFER_TYPE(type)                                                             \
	{                                                                               \
		.name = type, .block = true, .start = transfer_start,                  \
		.pause = transfer_pause, .resume = transfer_resume,                    \
		.cancel = transfer_cancel, .complete = transfer_complete,              \
		.set_speed = transfer_set_speed,                                       \
		.prepare = transfer_prepare, .clean = transfer_clean,                  \
	}

static const struct job_type transfer_types[] = {
	TRANSFER_TYPE("commit"), TRANSFER_TYPE("stream"), TRANSFER_TYPE("export"),
	TRANSFER_TYPE("rebase"),
};

static const struct job_type *type_of(const char *name)
{
	u32 i;

	for (i = 0; i < ARRAY_SIZE(transfer_types) - 1; i++)
		if (!strcmp(transfer_types[i].name, name))
			break;
	return &transfer_types[i];
}

void *transfer_arg(const struct job *job)
{
	return ((const struct transfer *)job->private)->o.arg;
}

bool transfer_is_pausing(const struct job *job)
{
	return ((const struct transfer *)job->private)->pausing;
}

static void take_options(struct transfer *t, const struct transfer_options *options)
{
	t->o = *options;
	t->o.region_bytes = options->region_bytes ? options->region_bytes : REGION_BYTES;
	t->o.align = options->align ? options->align : 1;
	cursor_init(&t->source, t, t->o.source, t->loop);
	cursor_init(&t->compare, t, t->o.compare, t->o.compare_loop);
}

bool transfer_is_at_rest(const struct job *job)
{
	return job_is_at_rest(job) && !transfer_is_asking(job->private);
}

void transfer_restart(struct job *job, const struct transfer_options *options)
{
	struct transfer *t = job->private;

	assert(transfer_is_at_rest(job));
	loop_timer_cancel(&t->timer);
	copier_destroy(t->copier);
	t->copier = NULL;
	drop_again(t);
	take_options(t, options);
	t->then = NULL;
	t->ready = t->copied = t->read_failed = false;
	t->scanning = job->working;
	t->error = 0;
	t->wanted = 0;
	t->nr_regions = 0;
}

void transfer_wait_for_room(struct job *job)
{
	wait_for_room(job->private);
}

int transfer_create(struct jobs *jobs, const char *type, const struct job_options *job_options,
		    const struct transfer_options *options, struct job **result,
		    struct qc_err *err)
{
	struct transfer *t = calloc(1, sizeof(*t));
	int ret;

	if (!t) {
		if (options->ops && options->ops->clean)
			options->ops->clean(options->arg);
		return qc_err_set(err, -ENOMEM, "%s: out of memory", type);
	}
	t->timer.fn = scan_timer;
	t->room_timer.fn = look_for_room;
	CDS_INIT_LIST_HEAD(&t->again);
	t->loop = job_options->loop;
	take_options(t, options);
	ret = job_create(jobs, type_of(type), job_options, t, result, err);
	if (ret) {
		transfer_free(t);
		return ret;
	}
	t->job = *result;
	return 0;
}
