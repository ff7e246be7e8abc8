// SPDX-License-Identifier: GPL-2.0-or-later
/* Commit of the active layer: it is handed over to its base, region by region (rule C4). */
#include "chain-merge.h"

#include <errno.h>
#include <qchain/copier.h>
#include <qchain/crash-point.h>
#include <qchain/job.h>
#include <qchain/mutant.h>
#include <stdlib.h>
#include <string.h>

/*
 *   between   layers between the two were merged into the base (chain-commit.c): the
 *             header of the active layer names the base now
 *   scan      the whole active layer is looked at: what there is to copy
 *
 * Then batch after batch, from the start of the device to its end:
 *
 *   choose    how far it reaches: as much data as takes a moment
 *   fence     writes, zeroes and discards to it wait; reads go on
 *   settle    what was accepted before has ended
 *   copy      what the active layer maps of it goes into the base
 *   durable   all of that
 *   unmap     in the active layer
 *   gone      durable, too
 *   publish   the batch is in, and is written to, the base; what has waited goes on.
 *             After grace the places in the active layer are free
 *
 * A batch is handed over once, whatever the guest does: it always comes to an end.
 * Batches follow each other in the order of guest addresses, so that two numbers in
 * the layer table say who writes where (is_written_to(), writer_at()).
 *
 * Where it fails, before the unmapping is durable, the fence is lifted and the batch
 * begins anew, or the job ends; what the base has got meanwhile is hidden by the
 * active layer, or reads the same.
 *
 * When all is handed over the job waits for `complete`; then chain-pivot.c. Given up,
 * the active layer takes all writes again, as if it were the overlay of a snapshot
 * of the base: the base is sealed.
 */

/* Of a batch: its data, how far it reaches at most, how long its writes should wait. */
#define BATCH_FIRST_BYTES (1u << 20)
#define BATCH_MIN_BYTES (128u << 10)
#define BATCH_MAX_BYTES (64u << 20)
#define BATCH_SPAN_BYTES QC_MAX_DISCARD_BYTES
#define BATCH_NS 20000000ull
/* A run of zeroes is work, too. */
#define ZERO_COST_BYTES 4096u

/* In flight at once: as many writes, as much memory. */
#define HANDOVER_LANES 128u
#define HANDOVER_MEMORY_BYTES (16u << 20)
#define SETTLE_POLL_NS 200000ull
/* Runs that are looked at in one event. */
#define SCAN_RUNS 4096u

struct handover_lane {
	struct request req;
	struct copy_io *io;
	struct handover *h;
};

/* Metadata loop only. */
struct handover {
	struct merge *m;
	struct chain_target *ct;
	struct job *job;
	struct writer *top;
	struct writer *base;
	struct copier *copier;
	u32 step;
	bool begun; /* the step has */
	bool done; /* what it waited for has come */
	bool running; /* handover_run() is on the stack */
	bool again; /* ... and was called once more meanwhile */
	bool pausing;
	bool cancelled;
	bool ready; /* all is handed over */
	int error; /* of the step */
	bool read_failed; /* it was one of the source */
	u64 align; /* of batches: clusters of both images */
	u64 size;
	/* the batch */
	u64 start;
	u64 end;
	u64 pos; /* next to be looked at */
	u64 found_bytes; /* up to there */
	u64 budget_bytes;
	u64 fenced_ns;
	u64 next_ns; /* when the next one may begin */
	bool mapped; /* the active layer maps something of it */
	bool copying; /* the copier may ask for runs */
	u32 nr_regions; /* with the copier */
	bool reading; /* @wait is queued: nothing is decided, and @h not freed, meanwhile */
	struct meta_wait wait;
	struct meta_flush flush;
	struct grace_waiter grace;
	struct loop_timer timer;
	struct request req;
};

enum { STEP_NEXT, STEP_WAIT };

static void handover_run(struct handover *h);

/* ---- what the active layer maps --------------------------------------------------- */

static enum cluster_kind kind_at(const struct handover *h, const struct meta_block *block,
				 u64 pos)
{
	const struct image *img = h->top->img;
	u32 per_block = meta_block_bytes(h->top->meta) / img->l2_entry_bytes;
	u32 index = (pos >> img->cluster_bits) % per_block;
	u32 sc = (pos >> img->subcluster_bits) & (img->subclusters - 1);
	struct cluster_info c;

	image_decode(img, image_l2_entry(img, block->data, index),
		     image_l2_bitmap(img, block->data, index), sc, &c);
	switch (c.kind) {
	case CLUSTER_RESERVED:
		return CLUSTER_UNALLOCATED;
	case CLUSTER_ZERO_PLACE:
		return CLUSTER_ZERO;
	case CLUSTER_COMPRESSED:
		return CLUSTER_DATA;
	default:
		return c.kind;
	}
}

/* The block of entries of h->pos; none: h->pos goes behind the table that is not there. */
static int block_at(struct handover *h, struct meta_block **result)
{
	const struct image *img = h->top->img;
	u64 table = image_l2_offset(img, h->pos);
	u32 bits = image_l2_coverage_bits(img);
	u64 index = (h->pos >> img->cluster_bits) & ((1ull << img->l2_bits) - 1);
	int ret;

	if (table) {
		ret = meta_get(h->top->meta, table + index * img->l2_entry_bytes, &h->wait,
			       result);
		h->reading = ret == -EAGAIN;
		return ret;
	}
	*result = NULL;
	h->pos = ((h->pos >> bits) + 1) << bits;
	return 0;
}

/* The end of what is alike from @pos on. */
static u64 run_end(const struct handover *h, const struct meta_block *block, u64 pos, u64 end)
{
	u64 granule = 1ull << h->top->img->subcluster_bits;
	enum cluster_kind kind = kind_at(h, block, pos);

	do
		pos = ALIGN_DOWN(pos, granule) + granule;
	while (pos < end && kind_at(h, block, pos) == kind);
	return min(pos, end);
}

/*
 * The next run that the active layer maps, from h->pos on and before @limit: 1, and
 * h->pos is behind it; 0: no more. -EAGAIN: h->wait tells. -EIO.
 */
static int next_run(struct handover *h, u64 limit, struct copy_region *run)
{
	u64 coverage = writer_block_coverage(h->top);
	struct meta_block *block;
	enum cluster_kind kind;
	u64 start;
	int ret;

	while (h->pos < limit) {
		ret = block_at(h, &block);
		if (ret)
			return ret;
		if (!block)
			continue;
		start = h->pos;
		kind = kind_at(h, block, start);
		if (kind == CLUSTER_BAD)
			return -EIO;
		h->pos = run_end(h, block, start,
				 min(limit, ALIGN_DOWN(start, coverage) + coverage));
		if (kind == CLUSTER_UNALLOCATED)
			continue;
		*run = (struct copy_region){ .src_offset = start, .dst_offset = start,
					     .len = h->pos - start,
					     .zero = kind == CLUSTER_ZERO };
		return 1;
	}
	return 0;
}

/* ---- steps: the first call begins something, later ones look whether it has ended - */

static bool is_first(struct handover *h)
{
	if (h->begun)
		return false;
	h->begun = true;
	h->done = false;
	return true;
}

static int wait_done(const struct handover *h)
{
	return h->done ? STEP_NEXT : STEP_WAIT;
}

static void step_ended(struct handover *h, int error)
{
	h->done = true;
	if (error && !h->error)
		h->error = error;
	handover_run(h);
}

static void timer_over(struct loop *loop, struct loop_timer *timer)
{
	handover_run(container_of(timer, struct handover, timer));
}

static int wait_for(struct handover *h, u64 ns)
{
	loop_timer_set(h->ct->loop, &h->timer, ns);
	return STEP_WAIT;
}

static void block_there(struct meta_wait *wait)
{
	struct handover *h = container_of(wait, struct handover, wait);

	h->reading = false;
	if (h->copying)
		copier_kick(h->copier);
	else
		handover_run(h);
}

/* ---- before the first batch ------------------------------------------------------- */

static void between_gone(struct merge *m, int ret)
{
	struct handover *h = m->handover;

	chain_order_exit(&m->order);
	step_ended(h, ret);
}

static int step_between(struct handover *h)
{
	if (is_first(h))
		merge_drop(h->m, between_gone);
	return wait_done(h);
}

/* The base is the second image that guests write; what it has is read through the device. */
static int step_open(struct handover *h)
{
	struct layer_table *t = h->ct->map.table;

	commit_end_view(h->m);
	h->base->hidden = false;
	t->receives = h->base->id;
	layer_table_add_flush(t, h->base->img->dev);
	return STEP_NEXT;
}

static int step_scan(struct handover *h)
{
	struct copy_region run;
	u32 n = 0;
	int ret;

	if (h->pausing) {
		job_paused(h->job);
		return STEP_WAIT;
	}
	do {
		if (h->cancelled)
			return -ECANCELED;
		ret = next_run(h, h->size, &run);
		if (ret == 1 && !run.zero)
			h->found_bytes += run.len;
	} while (ret == 1 && ++n < SCAN_RUNS);
	if (ret == 1)
		return wait_for(h, 1);
	if (ret)
		return ret == -EAGAIN ? STEP_WAIT : ret;
	job_set_remaining(h->job, h->found_bytes);
	return STEP_NEXT;
}

/* ---- choose ----------------------------------------------------------------------- */

static void all_handed_over(struct handover *h)
{
	h->ready = true;
	job_set_remaining(h->job, 0);
	job_ready(h->job);
}

/* At a border nothing is fenced: here it rests, ends, and keeps to its speed. */
static int at_border(struct handover *h)
{
	u64 now = loop_now_ns(h->ct->loop);

	if (h->cancelled)
		return -ECANCELED;
	if (h->pausing) {
		job_paused(h->job);
		return STEP_WAIT;
	}
	if (h->start == h->size) {
		all_handed_over(h);
		return STEP_WAIT;
	}
	return now < h->next_ns ? wait_for(h, h->next_ns - now) : STEP_NEXT;
}

static u64 batch_limit(const struct handover *h)
{
	return min(h->size, h->start + BATCH_SPAN_BYTES);
}

/* A batch is copied at once: with a speed, what that allows in a tenth of a second. */
static u64 batch_budget(const struct handover *h)
{
	u64 speed = h->job->speed;

	return speed ? min(h->budget_bytes, max(speed / 10, (u64)BATCH_MIN_BYTES)) :
		       h->budget_bytes;
}

/* The batch ends where @run, which has no place in it, or only a part, is cut. */
static u64 cut_batch(const struct handover *h, const struct copy_region *run)
{
	u64 budget = batch_budget(h);
	u64 left = budget > h->found_bytes ? budget - h->found_bytes : 0;
	u64 end = ALIGN_UP(run->src_offset + (run->zero ? run->len : min(run->len, left)),
			   h->align);

	return min(max(end, h->start + h->align), batch_limit(h));
}

static int step_choose(struct handover *h)
{
	struct copy_region run;
	int ret;

	if (is_first(h)) {
		h->pos = h->start;
		h->found_bytes = 0;
	}
	ret = at_border(h);
	if (ret != STEP_NEXT)
		return ret;
	h->end = batch_limit(h);
	while ((ret = next_run(h, batch_limit(h), &run)) == 1) {
		u64 cost = run.zero ? ZERO_COST_BYTES : run.len;

		if (h->found_bytes + cost >= batch_budget(h)) {
			h->end = cut_batch(h, &run);
			h->found_bytes += min(cost, h->end - run.src_offset);
			return STEP_NEXT;
		}
		h->found_bytes += cost;
	}
	if (ret)
		return ret == -EAGAIN ? STEP_WAIT : ret;
	return STEP_NEXT;
}

/* ---- fence and settle ------------------------------------------------------------- */

static void issued_before_ended(struct grace_waiter *waiter)
{
	step_ended(container_of(waiter, struct handover, grace), 0);
}

static int step_fence(struct handover *h)
{
	struct layer_table *t = h->ct->map.table;

	if (!is_first(h))
		return wait_done(h);
	h->fenced_ns = loop_now_ns(h->ct->loop);
	h->top->holds = true; /* until windows do not show it any more */
	__atomic_store_n(&t->fence_end, h->end, __ATOMIC_RELEASE);
	if (MUTANT(HAND_UNSETTLED))
		return STEP_NEXT;
	h->grace.drained = issued_before_ended;
	grace_wait(&h->ct->grace, &h->grace);
	return STEP_WAIT;
}

/* What waits for space, or for another operation, waits for the fence instead. */
static int step_settle(struct handover *h)
{
	writer_put_off(h->top, h->start, h->end);
	if (writer_is_busy(h->top, h->start, h->end) && !MUTANT(HAND_UNSETTLED))
		return wait_for(h, SETTLE_POLL_NS);
	return STEP_NEXT;
}

/* ---- copy ------------------------------------------------------------------------- */

/* The step is looked at again, not on the copier's stack. */
static void wake_step(struct handover *h)
{
	loop_timer_set(h->ct->loop, &h->timer, 0);
}

static int batch_next(void *arg, struct copy_region *region)
{
	struct handover *h = arg;
	int ret;

	if (!h->copying || h->reading)
		return -EAGAIN;
	ret = h->error || h->cancelled ? 0 : next_run(h, h->end, region);
	if (ret == 1) {
		h->nr_regions++;
		h->mapped = true;
		return 1;
	}
	if (ret == -EAGAIN)
		return ret;
	h->copying = false;
	if (ret)
		h->error = ret;
	wake_step(h);
	return -EAGAIN;
}

static void batch_done(void *arg, const struct copy_region *region, int error)
{
	struct handover *h = arg;

	h->nr_regions--;
	if (error && !h->error)
		h->error = error;
	if (!h->nr_regions)
		wake_step(h);
}

static struct handover_lane *lane_of(struct handover *h, struct copy_io *io)
{
	struct handover_lane *lane = io->private;

	lane->h = h;
	lane->io = io;
	return lane;
}

static void lane_read(struct request *req, int error)
{
	struct handover_lane *lane = container_of(req, struct handover_lane, req);

	lane->h->read_failed |= error != 0;
	copy_io_done(lane->io, error);
}

static void lane_written(struct request *req, int error)
{
	struct handover_lane *lane = container_of(req, struct handover_lane, req);

	if (!error && !lane->io->zero) /* zeroes are little work */
		job_progress(lane->h->job, lane->io->len);
	copy_io_done(lane->io, error);
}

static const struct request_ops lane_read_ops = { .end_io = lane_read };
static const struct request_ops lane_write_ops = { .end_io = lane_written };

static void batch_read(void *arg, struct copy_io *io)
{
	struct handover *h = arg;
	struct handover_lane *lane = lane_of(h, io);

	lane->req = (struct request){ .ops = &lane_read_ops, .loop = h->ct->loop,
				      .target = h->ct->ti, .op = REQ_READ,
				      .offset = io->src_offset, .len = io->len, .base = io->buf };
	if (chain_map(h->ct->ti, &lane->req) == TARGET_DONE)
		lane_read(&lane->req, lane->req.error);
}

static void batch_write(void *arg, struct copy_io *io)
{
	struct handover *h = arg;
	struct handover_lane *lane = lane_of(h, io);

	lane->req = (struct request){
		.ops = &lane_write_ops, .loop = h->ct->loop, .target = h->ct->ti,
		.op = io->zero ? REQ_WRITE_ZEROES : REQ_WRITE, .offset = io->dst_offset,
		.len = io->len, .base = io->zero ? NULL : io->buf,
	};
	chain_write_into(h->base, &lane->req);
}

static const struct copier_ops batch_ops = {
	.next = batch_next,
	.read = batch_read,
	.write = batch_write,
	.done = batch_done,
};

static int step_copy(struct handover *h)
{
	if (is_first(h)) {
		h->pos = h->start;
		h->mapped = h->read_failed = false;
		h->copying = true;
		copier_kick(h->copier);
	}
	if (h->nr_regions || h->copying)
		return STEP_WAIT;
	return h->cancelled ? -ECANCELED : STEP_NEXT;
}

/* ---- durable, unmap, gone --------------------------------------------------------- */

static void request_over(struct request *req, int error)
{
	step_ended(container_of(req, struct handover, req), error);
}

static const struct request_ops step_request_ops = { .end_io = request_over };

static void begin_request(struct handover *h, u8 op)
{
	h->req = (struct request){ .ops = &step_request_ops, .loop = h->ct->loop,
				   .target = h->ct->ti, .op = op, .offset = h->start,
				   .len = h->end - h->start };
}

static int step_durable(struct handover *h)
{
	if (!h->mapped || MUTANT(HAND_NOT_DURABLE))
		return STEP_NEXT;
	if (is_first(h)) {
		begin_request(h, REQ_FLUSH);
		commit_map(h->m, &h->req);
	}
	return wait_done(h);
}

static int step_unmap(struct handover *h)
{
	if (!h->mapped)
		return STEP_NEXT;
	if (is_first(h)) {
		begin_request(h, REQ_DISCARD);
		chain_unmap(h->top, &h->req);
	}
	return wait_done(h);
}

static void unmap_durable(struct meta_flush *flush, int error)
{
	step_ended(container_of(flush, struct handover, flush), error);
}

static int step_gone(struct handover *h)
{
	if (!h->mapped)
		return STEP_NEXT;
	if (is_first(h)) {
		h->flush.fn = unmap_durable;
		meta_flush(h->top->meta, &h->flush);
	}
	return wait_done(h);
}

/* ---- publish ---------------------------------------------------------------------- */

/* Windows show what the tables say now: what the active layer has given up may be freed. */
static void lift_fence(struct handover *h)
{
	map_forget_range(&h->ct->map, h->start, h->end);
	chain_retire(h->ct);
	writer_release_held(h->top);
	chain_run_fenced(h->ct);
}

/* Writes should wait for about BATCH_NS: the next batch has half as much data, or twice. */
static void adapt_budget(struct handover *h, u64 took_ns)
{
	if (took_ns > 2 * BATCH_NS)
		h->budget_bytes = max(h->budget_bytes / 2, (u64)BATCH_MIN_BYTES);
	else if (took_ns < BATCH_NS / 2 && h->found_bytes >= h->budget_bytes / 2)
		h->budget_bytes = min(h->budget_bytes * 2, (u64)BATCH_MAX_BYTES);
}

/* Not before the speed allows it; and where guests have waited, they come first for as long. */
static void plan_next(struct handover *h, u64 took_ns)
{
	h->next_ns = cds_list_empty(&h->ct->fenced) ? 0 : h->fenced_ns + 2 * took_ns;
	if (h->job->speed)
		h->next_ns = max(h->next_ns, h->fenced_ns +
				 (u64)(h->found_bytes * 1e9 / h->job->speed));
}

static int step_publish(struct handover *h)
{
	u64 took_ns = loop_now_ns(h->ct->loop) - h->fenced_ns;

	__atomic_store_n(&h->ct->map.table->handed_end, h->end, __ATOMIC_RELEASE);
	plan_next(h, took_ns);
	lift_fence(h);
	adapt_budget(h, took_ns);
	h->start = h->end;
	return STEP_NEXT;
}

/* ---- the driver ------------------------------------------------------------------- */

static const struct {
	const char *name; /* of its crash point, when it has ended */
	int (*fn)(struct handover *h);
} handover_steps[] = {
	{ "commit.between", step_between },
	{ "commit.open", step_open },
	{ "commit.scan", step_scan },
	{ "commit.choose", step_choose },
	{ "commit.fence", step_fence },
	{ "commit.settle", step_settle },
	{ "commit.copy", step_copy },
	{ "commit.durable", step_durable },
	{ "commit.unmap", step_unmap },
	{ "commit.gone", step_gone },
	{ "commit.publish", step_publish },
};

#define STEP_CHOOSE 3u

static void set_step(struct handover *h, u32 step)
{
	h->step = step < ARRAY_SIZE(handover_steps) ? step : STEP_CHOOSE;
	h->begun = false;
}

/* Frees @h, unless the last step is still to come. */
static void end(struct handover *h, int error)
{
	loop_timer_cancel(&h->timer);
	job_end(h->job, error);
}

static void end_failed(struct handover *h, int error)
{
	if (error != -ECANCELED && !h->job->err.code)
		qc_err_set(&h->job->err, error, "%s: not handed over to %s from guest offset %llu "
			   "on (%s)", h->top->layer->path, h->base->layer->path,
			   (unsigned long long)h->start, strerror(-error));
	end(h, error);
}

/*
 * The step failed: nothing stays fenced. The batch begins anew when the job goes on;
 * false: the job has ended, and @h with it.
 */
static bool step_failed(struct handover *h, int error)
{
	bool batch = h->step >= STEP_CHOOSE;

	if (h->step > STEP_CHOOSE) {
		__atomic_store_n(&h->ct->map.table->fence_end, h->start, __ATOMIC_RELEASE);
		lift_fence(h);
	}
	h->error = 0;
	if (!batch || error == -ECANCELED ||
	    job_error(h->job, h->read_failed, error) != JOB_ACTION_STOP) {
		end_failed(h, error);
		return false;
	}
	set_step(h, STEP_CHOOSE);
	if (error == -ENOSPC)
		transfer_wait_for_room(h->job);
	h->again = true;
	return true;
}

static int run_step(struct handover *h)
{
	int ret;

	if (h->reading)
		return STEP_WAIT;
	/* places are unsure then: nothing begins there any more */
	if (!h->begun && (h->top->failed || h->base->failed))
		return -EIO;
	ret = handover_steps[h->step].fn(h);
	return ret == STEP_NEXT && h->error ? h->error : ret;
}

static void handover_run(struct handover *h)
{
	int ret;

	assert_on_loop(h->ct->loop);
	if (h->running) {
		h->again = true;
		return;
	}
	h->running = true;
	do {
		h->again = false;
		ret = h->ready ? STEP_WAIT : run_step(h);
		if (ret == STEP_NEXT) {
			crash_point(handover_steps[h->step].name);
			set_step(h, h->step + 1);
		} else if (ret < 0 && !step_failed(h, ret)) {
			return;
		}
	} while (ret == STEP_NEXT || h->again);
	h->running = false;
}

/* ---- the job, from the end of the merge of layers between on ---------------------- */

static struct handover *handover_of(const struct job *job)
{
	return ((struct merge *)transfer_arg(job))->handover;
}

static int handover_start(struct job *job, struct qc_err *err)
{
	struct merge *m = transfer_arg(job);
	struct copier_options options = {
		.lanes = m->target.limits.in_memory ? COPIER_LANES_IN_MEMORY : HANDOVER_LANES,
		.chunk_bytes = QC_MAX_REQUEST_BYTES, .memory_bytes = HANDOVER_MEMORY_BYTES,
		.zero_bytes = QC_MAX_DISCARD_BYTES, .private_bytes = sizeof(struct handover_lane),
	};
	struct handover *h = calloc(1, sizeof(*h));
	int ret = h ? copier_create(m->ct->loop, &options, &batch_ops, h, &h->copier) : -ENOMEM;

	if (ret) {
		free(h);
		return qc_err_set(err, ret, "%s: out of memory", job->id);
	}
	m->handover = h;
	h->m = m;
	h->ct = m->ct;
	h->job = job;
	h->top = m->ct->active;
	h->base = m->base;
	h->align = image_cluster_bytes(h->top->img);
	if (h->base->meta)
		h->align = max(h->align, image_cluster_bytes(h->base->img));
	h->size = m->ct->map.size_bytes;
	h->budget_bytes = BATCH_FIRST_BYTES;
	h->pausing = transfer_is_pausing(job);
	h->wait.fn = block_there;
	h->timer.fn = timer_over;
	copier_start(h->copier);
	handover_run(h);
	return 0;
}

static void handover_pause(struct job *job)
{
	struct handover *h = handover_of(job);

	h->pausing = true;
	if (h->ready)
		job_paused(job);
	else
		handover_run(h);
}

static void handover_resume(struct job *job)
{
	struct handover *h = handover_of(job);

	h->pausing = false;
	handover_run(h);
}

/* Without force a job that is ready ends well, and the chain stays as it is. */
static bool handover_cancel(struct job *job, bool force)
{
	struct handover *h = handover_of(job);

	if (h->ready) {
		end(h, force ? -ECANCELED : 0);
		return force;
	}
	h->cancelled = true;
	copier_kick(h->copier);
	wake_step(h); /* it may end, and must not before this returns */
	return true;
}

static void handover_complete(struct job *job)
{
	end(handover_of(job), 0);
}

/* It is looked at at the border of a batch. */
static void handover_set_speed(struct job *job, u64 speed)
{
	struct handover *h = handover_of(job);

	h->next_ns = 0;
	handover_run(h);
}

const struct job_type handover_type = {
	.start = handover_start,
	.pause = handover_pause,
	.resume = handover_resume,
	.cancel = handover_cancel,
	.complete = handover_complete,
	.set_speed = handover_set_speed,
};

/* ---- the end ---------------------------------------------------------------------- */

void handover_give_up(struct merge *m)
{
	struct chain_target *ct = m->ct;
	struct layer_table *t = ct->map.table;

	m->base->hidden = !t->handed_end; /* nobody depends on it then */
	ct->receiving = NULL;
	__atomic_store_n(&t->handed_end, 0, __ATOMIC_RELEASE);
	__atomic_store_n(&t->fence_end, 0, __ATOMIC_RELEASE);
	writer_seal(m->base);
	writer_put_off(m->base, 0, UINT64_MAX);
}

void handover_free(struct handover *h)
{
	if (!h)
		return;
	loop_timer_cancel(&h->timer);
	copier_destroy(h->copier);
	free(h);
}
