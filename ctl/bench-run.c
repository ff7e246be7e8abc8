// SPDX-License-Identifier: GPL-2.0-or-later
/* Runs requests through a target on queues of its own and takes the times. */
#include "bench.h"

#include <errno.h>
#include <qchain/target.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

/* Latencies by power of two in 32 steps each: 3 % wide, no memory per request. */
#define HISTOGRAM_STEPS 32u
#define HISTOGRAM_SLOTS (64u * HISTOGRAM_STEPS)

/* With --no-drain flushes overlap; a further one waits for one of these. */
#define BENCH_FLUSHES 64u

/* The smallest window that a chain has: 4 KiB of L2 at 512-byte clusters. */
#define WARM_STEP (256 * KiB)

struct lane {
	struct request req;
	struct queue *queue;
	struct lane *next; /* free */
	u64 start_ns;
	void *buffer;
};

struct flush {
	struct request req;
	struct queue *queue;
	struct flush *next; /* free */
};

struct queue {
	const struct bench_options *options;
	struct target *ti;
	struct loop *loop;
	struct lane lanes[BENCH_MAX_DEPTH];
	struct lane *free_lanes;
	struct flush flushes[BENCH_FLUSHES];
	struct flush *free_flushes;
	sem_t *done;
	u64 now_ns; /* the clock is read once for an end and the start that it allows */
	u64 left; /* requests to start */
	u64 next; /* offset */
	u64 random;
	u32 in_flight;
	u32 flushing; /* flushes in flight */
	u32 since_flush;
	bool starting; /* queue_fill() is on the stack */
	u64 errors;
	u64 slots[HISTOGRAM_SLOTS];
	u64 max_ns;
};

static u32 slot_of(u64 ns)
{
	u32 top = 63 - __builtin_clzll(ns | 1);

	if (top < 5)
		return ns;
	return top * HISTOGRAM_STEPS + ((ns >> (top - 5)) & (HISTOGRAM_STEPS - 1));
}

static u64 slot_ns(u32 slot)
{
	u32 top = slot / HISTOGRAM_STEPS;

	if (top < 5)
		return slot;
	return (u64)(HISTOGRAM_STEPS + slot % HISTOGRAM_STEPS) << (top - 5);
}

/* xorshift64*: the same sequence for the same seed, on every machine. */
static u64 next_random(struct queue *q)
{
	q->random ^= q->random >> 12;
	q->random ^= q->random << 25;
	q->random ^= q->random >> 27;
	return q->random * 0x2545f4914f6cdd1dull;
}

static u64 next_offset(struct queue *q)
{
	const struct bench_options *o = q->options;
	u64 places = q->ti->size_bytes / o->bytes;
	u64 offset = q->next;

	if (o->pattern == BENCH_RANDOM)
		return next_random(q) % places * o->bytes;
	q->next += (o->pattern == BENCH_SEQ ? o->bytes : o->step) * o->queues;
	if (q->next + o->bytes > q->ti->size_bytes)
		q->next %= places * o->bytes;
	q->next -= q->next % q->ti->limits.logical_block;
	return offset;
}

static void queue_fill(struct queue *q);

static void lane_end_io(struct request *req, int error)
{
	struct lane *lane = container_of(req, struct lane, req);
	struct queue *q = lane->queue;
	u64 ns;

	q->now_ns = loop_now_ns(q->loop);
	ns = q->now_ns - lane->start_ns;
	q->slots[slot_of(ns)]++;
	q->max_ns = max(q->max_ns, ns);
	q->errors += error != 0;
	q->in_flight--;
	lane->next = q->free_lanes;
	q->free_lanes = lane;
	queue_fill(q);
}

static void flush_end_io(struct request *req, int error)
{
	struct flush *flush = container_of(req, struct flush, req);
	struct queue *q = flush->queue;

	q->now_ns = loop_now_ns(q->loop);
	q->errors += error != 0;
	q->flushing--;
	flush->next = q->free_flushes;
	q->free_flushes = flush;
	queue_fill(q);
}

static const struct request_ops lane_ops = { .end_io = lane_end_io };
static const struct request_ops flush_ops = { .end_io = flush_end_io };

static void lane_start(struct queue *q)
{
	struct lane *lane = q->free_lanes;

	q->free_lanes = lane->next;
	q->left--;
	q->since_flush++;
	q->in_flight++;
	lane->start_ns = q->now_ns;
	lane->req.ops = &lane_ops;
	lane->req.loop = q->loop;
	lane->req.op = q->options->write ? REQ_WRITE : REQ_READ;
	lane->req.offset = next_offset(q);
	lane->req.len = q->options->bytes;
	lane->req.base = lane->buffer;
	target_submit(q->ti, &lane->req);
}

static void flush_start(struct queue *q)
{
	struct flush *flush = q->free_flushes;

	q->free_flushes = flush->next;
	q->since_flush = 0;
	q->flushing++;
	flush->req = (struct request){ .ops = &flush_ops, .loop = q->loop, .op = REQ_FLUSH };
	target_submit(q->ti, &flush->req);
}

static bool flush_is_due(const struct queue *q)
{
	return q->options->flush_interval && q->since_flush >= q->options->flush_interval;
}

/* May a flush that is due start? Drained, as qemu-img's: nothing else is in flight. */
static bool flush_may_start(const struct queue *q)
{
	if (q->options->no_drain)
		return q->free_flushes;
	return !q->in_flight && !q->flushing;
}

/* One step; false: nothing can be started until something has ended. */
static bool queue_start_one(struct queue *q)
{
	if (flush_is_due(q)) {
		if (!flush_may_start(q))
			return false;
		flush_start(q);
		return true;
	}
	if (!q->left || !q->free_lanes || (q->flushing && !q->options->no_drain))
		return false;
	lane_start(q);
	return true;
}

/* Keep the lanes busy. What ends while it is started is seen by the loop here. */
static void queue_fill(struct queue *q)
{
	if (q->starting)
		return;
	q->starting = true;
	while (queue_start_one(q))
		;
	q->starting = false;
	if (!q->left && !q->in_flight && !q->flushing)
		sem_post(q->done);
}

struct begin {
	struct loop_msg msg;
	struct queue *queue;
};

static void queue_begin(struct loop *loop, struct loop_msg *msg)
{
	struct queue *q = container_of(msg, struct begin, msg)->queue;

	q->now_ns = loop_now_ns(loop);
	queue_fill(q);
}

/* ---- warming: every window is asked for its status once ---------------------------- */

struct warm {
	struct request req;
	struct block_status status;
	struct loop_msg msg;
	sem_t done;
	u64 next; /* offset */
	u64 errors;
	struct queue *queue;
	bool starting; /* warm_run() is on the stack */
	bool in_flight;
};

static void warm_run(struct warm *w);

static void warm_end_io(struct request *req, int error)
{
	struct warm *w = container_of(req, struct warm, req);

	w->errors += error != 0;
	w->in_flight = false;
	if (!w->starting)
		warm_run(w);
}

static const struct request_ops warm_ops = { .end_io = warm_end_io };

static void warm_run(struct warm *w)
{
	struct queue *q = w->queue;

	w->starting = true;
	while (!w->in_flight && w->next < q->ti->size_bytes) {
		w->in_flight = true;
		w->req = (struct request){
			.ops = &warm_ops, .loop = q->loop, .op = REQ_BLOCK_STATUS,
			.offset = w->next, .len = q->ti->limits.logical_block,
			.status = &w->status, .status_max = 1,
		};
		w->next += WARM_STEP;
		target_submit(q->ti, &w->req);
	}
	w->starting = false;
	if (!w->in_flight)
		sem_post(&w->done);
}

static void warm_begin(struct loop *loop, struct loop_msg *msg)
{
	warm_run(container_of(msg, struct warm, msg));
}

/* Returns how many windows could not be loaded. */
static u64 warm(struct queue *q)
{
	struct warm w = { .queue = q };

	sem_init(&w.done, 0, 0);
	loop_send(q->loop, &w.msg, warm_begin);
	while (sem_wait(&w.done) < 0)
		;
	sem_destroy(&w.done);
	return w.errors;
}

/* ---- queues ------------------------------------------------------------------------- */

static int queue_create(struct target *ti, const struct bench_options *o, u32 index, sem_t *done,
			struct queue **result)
{
	struct queue *q = calloc(1, sizeof(*q));
	struct io_engine *io;
	u32 i;
	int ret;

	if (!q)
		return -ENOMEM;
	q->options = o;
	q->ti = ti;
	q->done = done;
	q->left = o->count / o->queues + (index < o->count % o->queues);
	q->next = o->offset + (o->pattern == BENCH_SEQ ? o->bytes : o->step) * index;
	q->random = (o->seed + index + 1) * 0x9e3779b97f4a7c15ull | 1;
	*result = q;
	for (i = 0; i < BENCH_FLUSHES; i++) {
		q->flushes[i].queue = q;
		q->flushes[i].next = q->free_flushes;
		q->free_flushes = &q->flushes[i];
	}
	for (i = 0; i < o->depth; i++) {
		q->lanes[i].queue = q;
		q->lanes[i].next = q->free_lanes;
		q->free_lanes = &q->lanes[i];
		q->lanes[i].buffer = io_alloc(o->bytes);
		if (!q->lanes[i].buffer)
			return -ENOMEM;
		memset(q->lanes[i].buffer, 0x5a, o->bytes);
	}
	ret = io_uring_engine_create(256, &io);
	if (!ret)
		ret = loop_create("qc-bench", io, &q->loop);
	if (!ret)
		ret = target_attach(ti, q->loop);
	return ret ? ret : loop_start(q->loop, -1);
}

static void queue_destroy(struct queue *q)
{
	u32 i;

	if (q && q->loop) {
		if (q->loop->has_thread)
			target_detach(q->ti, q->loop);
		loop_stop(q->loop);
		loop_destroy(q->loop);
	}
	for (i = 0; q && i < BENCH_MAX_DEPTH; i++)
		free(q->lanes[i].buffer);
	free(q);
}

/* ---- the measurement ------------------------------------------------------------------- */

static double cpu_seconds(void)
{
	struct rusage ru;

	getrusage(RUSAGE_SELF, &ru);
	return ru.ru_utime.tv_sec + ru.ru_stime.tv_sec +
	       (ru.ru_utime.tv_usec + ru.ru_stime.tv_usec) / 1e6;
}

/* Counted page by page: statm and status are off by what the processors cache. */
static u64 resident_bytes(void)
{
	unsigned long long kib = 0;
	char line[256];
	FILE *f = fopen("/proc/self/smaps_rollup", "r");

	if (!f)
		return 0;
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, "Rss: %llu kB", &kib) == 1)
			break;
	fclose(f);
	return kib * KiB;
}

static u64 percentile(struct queue **queues, u32 nr, u64 count, double part)
{
	u64 seen = 0;
	u32 slot, i;

	for (slot = 0; slot < HISTOGRAM_SLOTS; slot++) {
		for (i = 0; i < nr; i++)
			seen += queues[i]->slots[slot];
		if (seen >= count * part)
			return slot_ns(slot);
	}
	return 0;
}

static u64 status_number(json_object *status, const char *key)
{
	json_object *metadata, *value;

	if (!json_object_object_get_ex(status, "metadata", &metadata) ||
	    !json_object_object_get_ex(metadata, key, &value))
		return 0;
	return json_object_get_int64(value);
}

static void collect(struct target *ti, struct queue **queues, const struct bench_options *o,
		    struct bench_result *r)
{
	json_object *status = json_object_new_object();
	u32 i;

	r->iops = o->count / r->seconds;
	r->cpu_us_per_io = r->cpu_us_per_io * 1e6 / o->count;
	r->rss_bytes = resident_bytes();
	r->p50_ns = percentile(queues, o->queues, o->count, 0.5);
	r->p99_ns = percentile(queues, o->queues, o->count, 0.99);
	for (i = 0; i < o->queues; i++) {
		r->max_ns = max(r->max_ns, queues[i]->max_ns);
		r->errors += queues[i]->errors;
	}
	target_status(ti, status);
	r->map_bytes = status_number(status, "map-bytes");
	r->layers = status_number(status, "layers");
	r->extents = status_number(status, "extents");
	json_object_put(status);
}

static void run_queues(struct queue **queues, const struct bench_options *o, sem_t *done,
		       struct bench_result *r)
{
	struct begin begin[BENCH_MAX_QUEUES] = {};
	double cpu = cpu_seconds();
	u64 start = loop_now_ns(queues[0]->loop);
	u32 i;

	for (i = 0; i < o->queues; i++) {
		begin[i].queue = queues[i];
		loop_send(queues[i]->loop, &begin[i].msg, queue_begin);
	}
	for (i = 0; i < o->queues; i++)
		while (sem_wait(done) < 0)
			;
	r->seconds = (loop_now_ns(queues[0]->loop) - start) / 1e9;
	r->cpu_us_per_io = cpu_seconds() - cpu;
}

static int check_sizes(const struct target *ti, const struct bench_options *o, const char *path,
		       struct qc_err *err)
{
	u32 block = ti->limits.logical_block;

	if (o->bytes % block || o->offset % block || o->step % block)
		return qc_err_set(err, -EINVAL,
				  "%s: buffer size, step and offset must be multiples of %u", path,
				  block);
	if (o->offset + (u64)o->bytes > ti->size_bytes)
		return qc_err_set(err, -EINVAL, "%s: offset %llu is beyond its end (%llu)", path,
				  (unsigned long long)o->offset,
				  (unsigned long long)ti->size_bytes);
	return 0;
}

int bench_run(int argc, char **argv, const struct bench_options *options,
	      struct bench_result *result, struct qc_err *err)
{
	struct queue *queues[BENCH_MAX_QUEUES] = {};
	struct target *ti;
	sem_t done;
	u32 i;
	int ret = target_create("qcow2-chain", argc, argv, &ti, err);

	if (ret)
		return ret;
	*result = (struct bench_result){};
	sem_init(&done, 0, 0);
	ret = check_sizes(ti, options, argv[0], err);
	for (i = 0; i < options->queues && !ret; i++)
		ret = queue_create(ti, options, i, &done, &queues[i]);
	if (ret) {
		qc_err_set(err, ret, "bench: cannot set up its queues: %s", strerror(-ret));
	} else {
		if (options->warm)
			result->errors = warm(queues[0]);
		run_queues(queues, options, &done, result);
		collect(ti, queues, options, result);
	}
	for (i = 0; i < options->queues; i++)
		queue_destroy(queues[i]);
	target_destroy(ti);
	sem_destroy(&done);
	return ret;
}
