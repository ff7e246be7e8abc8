// SPDX-License-Identifier: GPL-2.0-or-later
/* The job that copies the device, as it was at one instant, into another image. */
#include "chain-copy-target.h"
#include "chain-merge.h"
#include "chain-save.h"
#include "target-private.h"

#include <errno.h>
#include <qchain/copier.h>
#include <qchain/crash-point.h>
#include <qchain/online.h>
#include <stdlib.h>
#include <string.h>

/*
 *   mark     the target's header says that it is unfinished, durably
 *   begin    the instant (chain-save.c): from here on guests' writes wait for copies
 *   copy     two copiers: one goes through the device, at its speed, with pauses, out of the
 *            guest's way; one copies what a guest's write waits for, at once
 *   flush    all of it is durable in the target
 *   unmark   durably; then the target is closed
 *
 * Whatever ends the job before, the mark stays, and no write waits any more: a guest never
 * depends on the target for longer than that takes to fail.
 */

#define BACKUP_MIN_BITS 16u
#define BACKUP_MAX_BITS COPY_TARGET_MAX_BITS
#define BACKUP_LANES 64u
#define BACKUP_MEMORY_BYTES (16u << 20)
#define URGENT_LANES 32u
#define URGENT_MEMORY_BYTES (4u << 20)
#define STATUS_MAX 64u
/* Questions in one event, while nothing is copied. */
#define LOOKS_MAX 256u

struct backup;

struct backup_copier {
	struct backup *b;
	struct copier *copier;
	bool urgent;
	bool ended;
};

struct backup_lane {
	struct request req;
	struct loop_msg msg;
	struct copy_io *io;
	struct backup_copier *c;
	u64 start; /* what it has taken */
	u64 end;
	int error;
};

/* Metadata loop of the device, from the start of the job on. */
struct backup {
	struct saver saver;
	struct chain_target *ct;
	struct job *job;
	struct copy_target to;
	enum job_on_error on_source_error;
	enum job_on_error on_target_error;
	struct backup_copier sweep;
	struct backup_copier urgent;
	u64 pos; /* of the sweep */
	/* what is there: of the block status of @asked */
	struct request status;
	struct block_status st[STATUS_MAX];
	u64 asked;
	u32 nr_status;
	u32 looks;
	bool asking;
	bool submitting; /* chain_map() is on the stack */
	struct loop_timer kick;
	/* BACKUP_TOP: what is of no other layer is left out first */
	bool choosing;
	u16 layer;
	/* the end */
	bool stopping;
	bool unwatched; /* the saver has ended */
	bool closing;
	int error;
};

static void stop(struct backup *b, int error);
static void close_when_quiet(struct backup *b);

/* ---- errors ------------------------------------------------------------------------- */

static void tell_failure(struct backup *b, u64 pos, bool is_read, int error)
{
	if (!b->job->err.code)
		qc_err_set(&b->job->err, error, "%s: %s at guest offset %llu failed (%s)",
			   is_read ? b->ct->chain->layers[0].path : b->to.img->dev->path,
			   is_read ? "reading" : "writing", (unsigned long long)pos,
			   strerror(-error));
}

/* A write waits for it: the job fails, the guest goes on. */
static void urgent_failed(struct backup *b, u64 pos, bool is_read, int error)
{
	if (b->stopping)
		return;
	job_error_by(b->job, JOB_ON_ERROR_REPORT, is_read, error);
	tell_failure(b, pos, is_read, error);
	stop(b, error);
}

/* "ignore": it counts as saved, and the job fails in the end. */
static void skip(struct backup *b, u64 start, u64 end)
{
	u64 from = start, to = end;

	while (saver_take(&b->saver, &from, &to)) {
		saver_saved(&b->saver, from, to);
		from = to;
		to = end;
	}
}

static void sweep_failed(struct backup *b, const struct backup_lane *l, bool is_read, int error)
{
	enum job_action action;

	if (b->stopping)
		return;
	action = job_error_by(b->job, is_read ? b->on_source_error : b->on_target_error, is_read,
			      error);
	if (action == JOB_ACTION_STOP)
		return; /* unsaved, as before: copied when the job goes on */
	tell_failure(b, l->start, is_read, error);
	if (action == JOB_ACTION_IGNORE)
		skip(b, l->start, l->end);
	else
		stop(b, error);
}

/* ---- lanes -------------------------------------------------------------------------- */

static void lane_over(struct backup_lane *l, bool is_read, int error)
{
	struct backup *b = l->c->b;

	if (error && l->c->urgent)
		urgent_failed(b, l->start, is_read, error);
	if (error)
		saver_give_back(&b->saver, l->start, l->end);
	else
		saver_saved(&b->saver, l->start, l->end);
	if (error && !l->c->urgent)
		sweep_failed(b, l, is_read, error);
	if (!error)
		job_progress(b->job, l->end - l->start);
	copy_io_done(l->io, error);
}

/* Of its chunk, what is left: false: nothing. */
static bool lane_take(struct backup_copier *c, struct copy_io *io)
{
	struct backup_lane *l = io->private;

	l->c = c;
	l->io = io;
	l->start = io->src_offset;
	l->end = io->src_offset + io->len;
	return saver_take(&c->b->saver, &l->start, &l->end);
}

static void *lane_memory(const struct backup_lane *l)
{
	return (u8 *)l->io->buf + (l->start - l->io->src_offset);
}

static void lane_read(struct request *req, int error)
{
	struct backup_lane *l = container_of(req, struct backup_lane, req);

	if (error)
		lane_over(l, true, error);
	else
		copy_io_done(l->io, 0);
}

static void lane_back(struct loop *loop, struct loop_msg *msg)
{
	struct backup_lane *l = container_of(msg, struct backup_lane, msg);

	lane_over(l, false, l->error);
}

static void lane_written(struct request *req, int error)
{
	struct backup_lane *l = container_of(req, struct backup_lane, req);

	l->error = error;
	loop_send(l->c->b->ct->loop, &l->msg, lane_back);
}

static const struct request_ops lane_read_ops = { .end_io = lane_read };
static const struct request_ops lane_write_ops = { .end_io = lane_written };

static void copy_read(void *arg, struct copy_io *io)
{
	struct backup_copier *c = arg;
	struct backup_lane *l = io->private;
	struct chain_target *ct = c->b->ct;

	if (!lane_take(c, io)) {
		copy_io_done(io, 0);
		return;
	}
	l->req = (struct request){ .ops = &lane_read_ops, .loop = ct->loop, .target = ct->ti,
				   .op = REQ_READ, .offset = l->start, .len = l->end - l->start,
				   .base = lane_memory(l) };
	if (chain_map(ct->ti, &l->req) == TARGET_DONE)
		lane_read(&l->req, l->req.error);
}

static void lane_submit(struct loop *loop, struct loop_msg *msg)
{
	struct backup_lane *l = container_of(msg, struct backup_lane, msg);
	bool zero = l->io->zero;

	l->req = (struct request){ .ops = &lane_write_ops, .loop = loop,
				   .op = zero ? REQ_WRITE_ZEROES : REQ_WRITE, .offset = l->start,
				   .len = l->end - l->start, .base = zero ? NULL : lane_memory(l) };
	target_submit(l->c->b->to.target, &l->req);
}

static void copy_write(void *arg, struct copy_io *io)
{
	struct backup_copier *c = arg;
	struct backup_lane *l = io->private;

	if (io->zero)
		lane_take(c, io);
	if (l->start == l->end)
		copy_io_done(io, 0);
	else
		loop_send(copy_target_loop(&c->b->to), &l->msg, lane_submit);
}

/* ---- the sweep ---------------------------------------------------------------------- */

static void kick_sweep(struct loop *loop, struct loop_timer *timer)
{
	copier_kick(container_of(timer, struct backup, kick)->sweep.copier);
}

static void status_known(struct request *req, int error)
{
	struct backup *b = container_of(req, struct backup, status);

	b->nr_status = error ? 0 : req->status_nr;
	b->asking = false;
	if (b->submitting)
		return;
	copier_kick(b->sweep.copier);
	close_when_quiet(b);
}

static const struct request_ops status_ops = { .end_io = status_known };

/* False: the answer kicks the sweep. Where it is an error, reading it will be one, too. */
static bool know_status(struct backup *b, u64 pos)
{
	u64 left = b->saver.size_bytes - pos;

	if (b->asked == pos)
		return true;
	b->asked = pos;
	b->asking = b->submitting = true;
	b->status = (struct request){ .ops = &status_ops, .loop = b->ct->loop, .target = b->ct->ti,
				      .op = REQ_BLOCK_STATUS, .offset = pos,
				      .len = min(left, (u64)QC_MAX_REQUEST_BYTES),
				      .status = b->st, .status_max = STATUS_MAX };
	if (chain_map(b->ct->ti, &b->status) == TARGET_DONE)
		status_known(&b->status, b->status.error);
	b->submitting = false;
	return !b->asking;
}

/* How far what lies at @pos, a border of granules, is alike: zero or not. */
static void cut_region(const struct backup *b, u64 pos, struct copy_region *region)
{
	u64 granule = 1ull << b->saver.granule_bits, size = b->saver.size_bytes, end = pos;
	bool zero = b->nr_status && b->st[0].zero;
	u32 i;

	for (i = 0; i < b->nr_status && b->st[i].zero == zero; i++)
		end += b->st[i].len;
	if (zero && end != size)
		end = ALIGN_DOWN(end, granule);
	zero = zero && end > pos;
	if (!zero)
		end = min(ALIGN_UP(max(end, pos + 1), granule), size);
	*region = (struct copy_region){ .src_offset = pos, .dst_offset = pos, .len = end - pos,
					.zero = zero };
}

/* The granules from @pos on of which the layer holds nothing need no copy. */
static u64 leave_out(struct backup *b, u64 pos)
{
	u64 granule = 1ull << b->saver.granule_bits, end = pos;
	u32 i;

	for (i = 0; i < b->nr_status && (!b->st[i].depth || b->st[i].layer != b->layer); i++)
		end += b->st[i].len;
	if (end != b->saver.size_bytes)
		end = ALIGN_DOWN(end, granule);
	if (end == pos)
		return min(pos + granule, b->saver.size_bytes);
	skip(b, pos, end);
	return end;
}

/* BACKUP_TOP: through all of it, a part in each event. 0: done; -EAGAIN. */
static int choose(struct backup *b)
{
	for (; b->pos < b->saver.size_bytes; b->pos = leave_out(b, b->pos)) {
		if (++b->looks % LOOKS_MAX == 0) {
			loop_timer_set(b->ct->loop, &b->kick, 0);
			return -EAGAIN;
		}
		if (!know_status(b, b->pos))
			return -EAGAIN;
	}
	b->choosing = false;
	b->pos = 0;
	turn_end(b->ct);
	return 0;
}

/* Round and round: errors and the other copier leave something behind. */
static int sweep_next(void *arg, struct copy_region *region)
{
	struct backup *b = ((struct backup_copier *)arg)->b;
	struct saver *s = &b->saver;

	if (s->draining || b->asking || (b->choosing && choose(b)))
		return -EAGAIN;
	if (!s->nr_unsaved)
		return 0;
	b->pos = saver_next(s, b->pos);
	if (b->pos == s->size_bytes)
		b->pos = saver_next(s, 0);
	if (b->pos == s->size_bytes || !know_status(b, b->pos))
		return -EAGAIN;
	cut_region(b, b->pos, region);
	b->pos += region->len;
	return 1;
}

static int urgent_next(void *arg, struct copy_region *region)
{
	struct backup *b = ((struct backup_copier *)arg)->b;
	u64 start, end;

	if (!saver_wish(&b->saver, &start, &end))
		return -EAGAIN;
	*region = (struct copy_region){ .src_offset = start, .dst_offset = start,
					.len = end - start };
	return 1;
}

/* What one copier has taken is not the other one's work any more. */
static void copy_done(void *arg, const struct copy_region *region, int error)
{
	copier_kick(((struct backup_copier *)arg)->b->sweep.copier);
}

static void copy_paused(void *arg)
{
	job_paused(((struct backup_copier *)arg)->b->job);
}

static void copy_ended(void *arg, int error)
{
	struct backup_copier *c = arg;

	c->ended = true;
	if (!c->urgent)
		stop(c->b, 0);
	close_when_quiet(c->b);
}

static const struct copier_ops sweep_ops = {
	.next = sweep_next, .read = copy_read, .write = copy_write, .done = copy_done,
	.paused = copy_paused, .ended = copy_ended,
};

static const struct copier_ops urgent_ops = {
	.next = urgent_next, .read = copy_read, .write = copy_write, .done = copy_done,
	.ended = copy_ended,
};

/* ---- the end ------------------------------------------------------------------------ */

/* Only the first reason counts. */
static void stop(struct backup *b, int error)
{
	if (b->stopping)
		return;
	b->stopping = true;
	b->error = error ? error : b->job->err.code;
	if (b->choosing)
		turn_end(b->ct);
	b->choosing = false;
	loop_timer_cancel(&b->kick);
	saver_end(&b->saver);
	copier_stop(b->urgent.copier, 0);
	copier_stop(b->sweep.copier, 0);
}

static void target_ended(struct copy_target *t, int error)
{
	struct backup *b = container_of(t, struct backup, to);

	if (error && !b->job->err.code)
		b->job->err = t->err;
	job_end(b->job, error);
}

/* Nothing is under way any more, here or there. */
static void close_when_quiet(struct backup *b)
{
	if (!b->sweep.ended || !b->urgent.ended || !b->unwatched || b->asking || b->closing)
		return;
	b->closing = true;
	copy_target_end(&b->to, b->error, target_ended);
}

/* ---- the saver ---------------------------------------------------------------------- */

static void instant_settled(struct saver *s)
{
	crash_point("backup.settled");
	copier_kick(container_of(s, struct backup, saver)->sweep.copier);
}

static void write_waits(struct saver *s)
{
	copier_kick(container_of(s, struct backup, saver)->urgent.copier);
}

static void nobody_looks(struct saver *s)
{
	struct backup *b = container_of(s, struct backup, saver);

	b->unwatched = true;
	close_when_quiet(b);
}

/* ---- the job ------------------------------------------------------------------------ */

static int make_copiers(struct backup *b)
{
	struct copier_options options = {
		.lanes = b->ct->ti->limits.in_memory && b->to.target->limits.in_memory ?
				 COPIER_LANES_IN_MEMORY : BACKUP_LANES,
		.chunk_bytes = QC_MAX_REQUEST_BYTES, .memory_bytes = BACKUP_MEMORY_BYTES,
		.zero_bytes = QC_MAX_DISCARD_BYTES, .private_bytes = sizeof(struct backup_lane),
		.speed = b->job->speed, .probe = &b->ct->ti->probe,
	};
	int ret = copier_create(b->ct->loop, &options, &sweep_ops, &b->sweep, &b->sweep.copier);

	options.lanes = URGENT_LANES;
	options.memory_bytes = URGENT_MEMORY_BYTES;
	options.speed = 0;
	options.probe = NULL;
	if (!ret)
		ret = copier_create(b->ct->loop, &options, &urgent_ops, &b->urgent,
				    &b->urgent.copier);
	return ret;
}

/* What is in the active layer is told by what a merge does not change meanwhile. */
static int begin_choosing(struct backup *b)
{
	const struct layer_table *t = b->ct->map.table;

	if (!b->choosing)
		return 0;
	if (!cds_list_empty(&b->ct->merges) || !turn_try(b->ct, b->job->id)) {
		b->choosing = false;
		return -EBUSY;
	}
	b->layer = t->order[0];
	return 0;
}

/* Even where it cannot begin the target is closed first, by a worker. */
static int backup_start(struct job *job, struct qc_err *err)
{
	struct backup *b = job->private;
	int ret;

	b->job = job;
	ret = make_copiers(b);
	if (!ret)
		ret = begin_choosing(b);
	if (ret) {
		b->error = qc_err_set(err, ret, "%s: %s", job->id, ret == -EBUSY ?
				      "a merge changes the chain" : strerror(-ret));
		copy_target_end(&b->to, b->error, target_ended);
		return 0;
	}
	saver_begin(&b->saver);
	job_set_remaining(job, b->saver.size_bytes);
	copier_start(b->urgent.copier);
	copier_start(b->sweep.copier);
	return 0;
}

static void backup_pause(struct job *job)
{
	copier_pause(((struct backup *)job->private)->sweep.copier);
}

static void backup_resume(struct job *job)
{
	struct backup *b = job->private;

	copier_resume(b->sweep.copier);
	copier_kick(b->sweep.copier);
}

static bool backup_cancel(struct job *job, bool force)
{
	stop(job->private, -ECANCELED);
	return true;
}

static void backup_set_speed(struct job *job, u64 speed)
{
	copier_set_speed(((struct backup *)job->private)->sweep.copier, speed);
}

static void backup_free(struct backup *b)
{
	copier_destroy(b->sweep.copier);
	copier_destroy(b->urgent.copier);
	saver_exit(&b->saver);
	free(b);
}

static void backup_clean(struct job *job)
{
	backup_free(job->private);
	job->private = NULL;
}

static const struct job_type backup_type = {
	.name = "backup", .block = true, .start = backup_start, .pause = backup_pause,
	.resume = backup_resume, .cancel = backup_cancel, .set_speed = backup_set_speed,
	.clean = backup_clean,
};

/* ---- making one ------------------------------------------------------------------------ */

/* Copied as a whole: no cluster of the target is written twice, none of the device in part. */
static u32 granule_bits(const struct chain_target *ct, const struct image *img)
{
	u32 bits = max(img->cluster_bits, ct->chain->layers[0].img->cluster_bits);

	return min(max(bits, BACKUP_MIN_BITS), BACKUP_MAX_BITS);
}

static int create_backup(struct chain_target *ct, const struct chain_backup_options *o,
			 struct backup **result, struct qc_err *err)
{
	struct backup *b = calloc(1, sizeof(*b));
	int ret = b ? saver_init(&b->saver, ct, granule_bits(ct, o->target)) : -ENOMEM;

	if (ret) {
		free(b);
		return qc_err_set(err, ret, "backup: out of memory");
	}
	b->ct = ct;
	b->on_source_error = o->on_source_error;
	b->on_target_error = o->on_target_error;
	b->choosing = o->sync == BACKUP_TOP;
	b->asked = UINT64_MAX;
	b->kick.fn = kick_sweep;
	b->sweep.b = b->urgent.b = b;
	b->urgent.urgent = true;
	b->saver.settled = instant_settled;
	b->saver.wanted = write_waits;
	b->saver.ended = nobody_looks;
	ret = copy_target_open(&b->to, ct, o->target, o->busy, err);
	if (ret)
		backup_free(b);
	else
		*result = b;
	return ret;
}

struct ask_idle {
	struct chain_target *ct;
	enum backup_sync sync;
	bool idle;
};

static void ask_idle(struct loop *loop, void *arg)
{
	struct ask_idle *ask = arg;

	ask->idle = !ask->ct->saver &&
		    (ask->sync != BACKUP_TOP || cds_list_empty(&ask->ct->merges));
}

static int check_idle(struct chain_target *ct, enum backup_sync sync, struct qc_err *err)
{
	struct ask_idle ask = { .ct = ct, .sync = sync };

	loop_call(ct->loop, ask_idle, &ask);
	if (ask.idle)
		return 0;
	return qc_err_set(err, -EBUSY, "%s: another backup runs, or, with sync 'top', a merge; "
			  "wait for it, or cancel it", ct->chain->layers[0].path);
}

int chain_backup(struct target *ti, struct jobs *jobs, const struct chain_backup_options *options,
		 const struct job_options *job_options, struct job **result, struct qc_err *err)
{
	struct chain_target *ct = ti->private;
	struct job_options job = *job_options;
	struct backup *b = NULL;
	u32 depth;
	int ret;

	if (ti->type != &target_chain || !merge_find_node(ct->chain, options->node, &depth) ||
	    depth)
		return merge_no_node(options->node, err);
	ret = copy_target_check(ct, options->target, err);
	if (!ret)
		ret = check_idle(ct, options->sync, err);
	if (!ret)
		ret = create_backup(ct, options, &b, err);
	if (ret)
		return ret;
	job.loop = ct->loop;
	ret = job_create(jobs, &backup_type, &job, b, result, err);
	if (ret) {
		copy_target_drop(&b->to);
		backup_free(b);
	}
	return ret;
}
