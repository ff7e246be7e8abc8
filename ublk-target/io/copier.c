// SPDX-License-Identifier: GPL-2.0-or-later
/* Copies regions with many I/Os in flight, a rate limit and a throttle. */
#include "copy-memory.h"

#include <assert.h>
#include <errno.h>
#include <qchain/copier.h>
#include <stdlib.h>
#include <string.h>

/*
 * copier_fill() is the only place that begins anything: called after each change
 * it starts lanes while it may, and tells the owner when all has come to rest. A
 * completion that arrives while it is on the stack only marks its lane free.
 */

/* A limit is kept over stretches of so long, so that timers are few. */
#define RATE_SLICE_NS 10000000ull

/* A region with chunks in flight, or the one that is being cut. */
struct track {
	struct copy_region region;
	u64 cut; /* bytes given to lanes */
	u32 chunks; /* in flight */
	int error;
	struct cds_list_head node; /* in free_tracks */
};

struct copier {
	/* set once */
	struct loop *loop;
	struct copier_options options;
	const struct copier_ops *ops;
	void *arg;
	struct copy_io *lanes;
	struct copy_memory memory;
	void *private;
	struct track *tracks; /* one more than lanes */

	struct cds_list_head idle; /* struct copy_io */
	struct cds_list_head free_tracks;
	void *buf; /* of the chunk that is about to start */
	struct track *current; /* being cut, or NULL */
	struct throttle throttle;
	struct loop_timer timer;
	u64 rate_ns; /* until here what was copied is paid for */
	u32 active;
	int error;
	bool started;
	bool filling;
	bool starved; /* next() said -EAGAIN */
	bool over; /* next() said 0, or stopped */
	bool pausing;
	bool rested; /* paused() was called */
	bool ended;
};

static void copier_fill(struct copier *c);

/* ---- regions ---------------------------------------------------------------------- */

static struct track *track_get(struct copier *c)
{
	struct track *t = cds_list_first_entry(&c->free_tracks, struct track, node);

	assert(!cds_list_empty(&c->free_tracks));
	cds_list_del(&t->node);
	*t = (struct track){ .chunks = 0 };
	return t;
}

static void track_put(struct copier *c, struct track *t)
{
	struct copy_region region = t->region;
	int error = t->error;

	if (t->chunks || t == c->current)
		return;
	cds_list_add(&t->node, &c->free_tracks);
	c->ops->done(c->arg, &region, error);
}

/* Is there a region to cut from? */
static bool have_region(struct copier *c)
{
	struct track *t;
	int ret;

	while (!c->current && !c->over && !c->starved) {
		t = track_get(c);
		ret = c->ops->next(c->arg, &t->region);
		if (ret == 1 && t->region.len) {
			c->current = t;
			break;
		}
		cds_list_add(&t->node, &c->free_tracks);
		c->starved = ret == -EAGAIN;
		c->over = c->over || (ret <= 0 && !c->starved);
		if (ret < 0 && !c->starved && !c->error)
			c->error = ret;
	}
	return c->current;
}

/* ---- the rate limit --------------------------------------------------------------- */

static void fill_timer(struct loop *loop, struct loop_timer *timer)
{
	copier_fill(container_of(timer, struct copier, timer));
}

/* Copying runs ahead of the clock by one slice at most. */
static bool rate_allows(struct copier *c)
{
	u64 now;

	if (!c->options.speed)
		return true;
	now = loop_now_ns(c->loop);
	if (c->rate_ns < now)
		c->rate_ns = now;
	if (c->rate_ns - now < RATE_SLICE_NS)
		return true;
	loop_timer_set(c->loop, &c->timer, c->rate_ns - now - RATE_SLICE_NS + 1);
	return false;
}

static void rate_charge(struct copier *c, u32 bytes)
{
	if (c->options.speed)
		c->rate_ns += bytes * 1e9 / c->options.speed;
}

/* ---- lanes -------------------------------------------------------------------------- */

static void lane_free(struct copy_io *io, int error)
{
	struct copier *c = io->copier;
	struct track *t = container_of(io->region, struct track, region);
	bool filling = c->filling;
	u64 now = loop_now_ns(c->loop);

	throttle_done(&c->throttle, now, now - io->start_ns);
	c->filling = true; /* the owner's callbacks begin nothing yet, and end nothing */
	if (error && !t->error)
		t->error = error;
	if (!error && c->ops->copied)
		c->ops->copied(c->arg, io->len);
	if (io->buf)
		copy_memory_put(&c->memory, io->buf, io->len);
	t->chunks--;
	c->active--;
	cds_list_add(&io->node, &c->idle);
	if (t->error && t == c->current)
		c->current = NULL; /* the rest of it is not worth the I/O */
	track_put(c, t);
	c->filling = filling;
	copier_fill(c);
}

static void lane_written(struct io_op *op, int error)
{
	copy_io_done(container_of(op, struct copy_io, op), error);
}

static void submit(struct copy_io *io, u8 type, struct io_dev *dev, u64 offset)
{
	io->op = (struct io_op){ .dev = dev, .type = type, .offset = offset, .len = io->len,
				 .base = io->buf, .done = lane_written };
	io_submit(io->copier->loop, &io->op);
}

static void lane_write(struct copy_io *io)
{
	struct copier *c = io->copier;

	io->op.owner = c; /* what ends next is the write */
	if (c->ops->write) {
		c->ops->write(c->arg, io);
		return;
	}
	submit(io, IO_WRITE, io->region->dst, io->dst_offset);
	io->op.owner = c;
}

static void lane_read(struct copy_io *io)
{
	struct copier *c = io->copier;

	io->op.owner = NULL;
	if (c->ops->read)
		c->ops->read(c->arg, io);
	else
		submit(io, IO_READ, io->region->src, io->src_offset);
}

void copy_io_done(struct copy_io *io, int error)
{
	assert_on_loop(io->copier->loop);
	if (error || io->op.owner)
		lane_free(io, error);
	else
		lane_write(io);
}

/* Does what is cut next go without a buffer? */
static bool is_bare(const struct copier *c)
{
	return c->current->region.zero && c->options.zero_bytes;
}

/* Of the next chunk of the current region. */
static u32 next_len(const struct copier *c)
{
	const struct track *t = c->current;
	u32 most = is_bare(c) ? c->options.zero_bytes : c->options.chunk_bytes;

	return min(t->region.len - t->cut, (u64)most);
}

/* The next chunk of the current region, on an idle lane and, if it needs one, in c->buf. */
static void lane_start(struct copier *c)
{
	struct copy_io *io = cds_list_first_entry(&c->idle, struct copy_io, node);
	struct track *t = c->current;

	cds_list_del(&io->node);
	io->start_ns = loop_now_ns(c->loop);
	io->region = &t->region;
	io->src_offset = t->region.src_offset + t->cut;
	io->dst_offset = t->region.dst_offset + t->cut;
	io->len = next_len(c);
	io->zero = t->region.zero;
	io->buf = c->buf;
	io->buf_at = io->buf ? (u8 *)io->buf - c->memory.bytes : 0;
	t->cut += io->len;
	t->chunks++;
	c->active++;
	if (t->cut == t->region.len)
		c->current = NULL;
	if (!io->zero) {
		rate_charge(c, io->len);
		lane_read(io);
		return;
	}
	if (io->buf)
		memset(io->buf, 0, io->len);
	lane_write(io);
}

static bool throttle_allows(struct copier *c)
{
	u64 wait_ns = 0;
	u32 window = throttle_window(&c->throttle, loop_now_ns(c->loop), &wait_ns);

	if (!window)
		loop_timer_set(c->loop, &c->timer, wait_ns);
	return c->active < window;
}

/* Last of all: whoever gets a buffer starts. */
static bool take_buffer(struct copier *c)
{
	c->buf = NULL;
	if (is_bare(c))
		return true;
	c->buf = copy_memory_get(&c->memory, next_len(c));
	return c->buf;
}

static bool may_start(struct copier *c)
{
	return !c->pausing && c->active < c->options.lanes && have_region(c) &&
	       rate_allows(c) && throttle_allows(c) && take_buffer(c);
}

/* A stop leaves the region that was being cut unfinished. */
static void drop_current(struct copier *c)
{
	struct track *t = c->current;
	bool filling = c->filling;

	if (!t)
		return;
	c->filling = true;
	c->current = NULL;
	if (!t->error)
		t->error = c->error ? c->error : -ECANCELED;
	track_put(c, t);
	c->filling = filling;
}

static void copier_fill(struct copier *c)
{
	if (c->filling || c->ended)
		return;
	c->filling = true;
	while (may_start(c))
		lane_start(c);
	c->filling = false;
	if (c->active)
		return;
	if (c->over && !c->current) {
		c->ended = true;
		loop_timer_cancel(&c->timer);
		c->ops->ended(c->arg, c->error);
	} else if (c->pausing && !c->rested) {
		c->rested = true;
		c->ops->paused(c->arg);
	}
}

/* ---- for the owner --------------------------------------------------------------------- */

void copier_start(struct copier *c)
{
	c->started = true;
	copier_fill(c);
}

void copier_kick(struct copier *c)
{
	c->starved = false;
	copier_fill(c);
}

void copier_pause(struct copier *c)
{
	c->pausing = true;
	c->rested = false;
	copier_fill(c);
}

void copier_resume(struct copier *c)
{
	c->pausing = false;
	copier_fill(c);
}

void copier_stop(struct copier *c, int error)
{
	c->over = true;
	c->pausing = false;
	if (error && !c->error)
		c->error = error;
	drop_current(c);
	copier_fill(c);
}

void copier_set_speed(struct copier *c, u64 speed)
{
	u64 now = loop_now_ns(c->loop);
	u64 owed_ns = c->rate_ns > now ? c->rate_ns - now : 0;

	/* What was copied is still to be paid for, at the new price. */
	c->rate_ns = speed ? now + (u64)(owed_ns * ((double)c->options.speed / speed)) : 0;
	c->options.speed = speed;
	loop_timer_cancel(&c->timer);
	if (c->started)
		copier_fill(c);
}

static void init_lanes(struct copier *c)
{
	u32 i;

	for (i = 0; i < c->options.lanes; i++) {
		c->lanes[i].copier = c;
		c->lanes[i].private = (u8 *)c->private + (size_t)i * c->options.private_bytes;
		cds_list_add_tail(&c->lanes[i].node, &c->idle);
	}
	for (i = 0; i <= c->options.lanes; i++)
		cds_list_add_tail(&c->tracks[i].node, &c->free_tracks);
}

int copier_create(struct loop *loop, const struct copier_options *options,
		  const struct copier_ops *ops, void *arg, struct copier **result)
{
	struct copier *c = calloc(1, sizeof(*c));

	if (!c)
		return -ENOMEM;
	assert(options->memory_bytes >= options->chunk_bytes);
	c->loop = loop;
	c->options = *options;
	c->ops = ops;
	c->arg = arg;
	c->timer.fn = fill_timer;
	CDS_INIT_LIST_HEAD(&c->idle);
	CDS_INIT_LIST_HEAD(&c->free_tracks);
	throttle_init(&c->throttle, options->probe, options->lanes);
	if (options->probe)
		latency_watch(options->probe, true);
	c->lanes = calloc(options->lanes, sizeof(*c->lanes));
	c->tracks = calloc(options->lanes + 1, sizeof(*c->tracks));
	c->private = calloc(options->lanes, max(options->private_bytes, 1u));
	if (copy_memory_init(&c->memory, options->memory_bytes) || !c->lanes || !c->tracks ||
	    !c->private) {
		copier_destroy(c);
		return -ENOMEM;
	}
	init_lanes(c);
	*result = c;
	return 0;
}

void copier_destroy(struct copier *c)
{
	if (!c)
		return;
	assert(!c->active);
	if (c->timer.fn)
		loop_timer_cancel(&c->timer);
	if (c->options.probe)
		latency_watch(c->options.probe, false);
	free(c->lanes);
	free(c->tracks);
	copy_memory_exit(&c->memory);
	free(c->private);
	free(c);
}
