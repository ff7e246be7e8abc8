// SPDX-License-Identifier: GPL-2.0-or-later
/* What went through a target: counted by each loop for itself, summed on demand. */
#include "target-private.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/*
 * The owner of a counter adds to it with a plain load and a plain store; they
 * are written as relaxed atomics because somebody else reads them meanwhile,
 * which costs nothing. A reader may see one number of a request before another:
 * nobody draws conclusions from two of them.
 */

#define CACHE_LINE_BYTES 64

struct attached_loop {
	struct target_stats stats; /* first: a cache line of its own */
	struct cds_list_head node;
	struct loop *loop;
};

static void count_add(u64 *counter, u64 n)
{
	__atomic_store_n(counter, *counter + n, __ATOMIC_RELAXED);
}

/* STAT_NR: not counted. */
static enum stat_kind kind_of(const struct request *req)
{
	static const u8 kinds[] = {
		[REQ_READ] = STAT_READ,	   [REQ_WRITE] = STAT_WRITE,
		[REQ_FLUSH] = STAT_FLUSH,  [REQ_DISCARD] = STAT_UNMAP,
		[REQ_WRITE_ZEROES] = STAT_WRITE, [REQ_BLOCK_STATUS] = STAT_NR,
	};

	return kinds[req->op];
}

/* To the batch while that is enough; who watches the latency needs it exactly. */
static u64 stats_now(const struct request *req)
{
	return latency_watched(req->loop->stats->probe) ? loop_now_ns(req->loop) :
							   loop_batch_ns(req->loop);
}

void stats_begin(struct request *req)
{
	if (req->loop->stats)
		req->start_ns = stats_now(req);
}

static void sample(const struct target_stats *stats, enum stat_kind kind,
		   const struct request *req, u64 now_ns)
{
	if (kind <= STAT_WRITE && latency_watched(stats->probe))
		latency_sample(stats->probe, now_ns - min(req->start_ns, now_ns));
}

static void count_success(struct target_stats *stats, struct target_count *count,
			  const struct request *req, u64 now_ns)
{
	u64 end = req->offset + req->len;

	count_add(&count->operations, 1);
	count_add(&count->time_ns, now_ns - req->start_ns);
	if (req->op != REQ_FLUSH)
		count_add(&count->bytes, req->len);
	if ((req->op == REQ_WRITE || req->op == REQ_WRITE_ZEROES) && end > stats->highest)
		__atomic_store_n(&stats->highest, end, __ATOMIC_RELAXED);
	__atomic_store_n(&stats->last_ns, now_ns, __ATOMIC_RELAXED);
}

void stats_end(struct request *req, int error)
{
	struct target_stats *stats = req->loop->stats;
	enum stat_kind kind = kind_of(req);
	u64 now;

	if (!stats || kind == STAT_NR)
		return;
	if (error) {
		count_add(&stats->kinds[kind].failed, 1);
		return;
	}
	now = stats_now(req);
	count_success(stats, &stats->kinds[kind], req, now);
	sample(stats, kind, req, now);
}

void stats_invalid(struct request *req)
{
	struct target_stats *stats = req->loop->stats;
	enum stat_kind kind = kind_of(req);

	if (stats && kind != STAT_NR)
		count_add(&stats->kinds[kind].invalid, 1);
}

/* ---- control thread ------------------------------------------------------------ */

int stats_attach(struct target *ti, struct loop *loop)
{
	struct attached_loop *al = aligned_alloc(CACHE_LINE_BYTES,
						 ALIGN_UP(sizeof(*al), CACHE_LINE_BYTES));

	if (!al)
		return -ENOMEM;
	memset(al, 0, sizeof(*al));
	al->loop = loop;
	al->stats.probe = &ti->probe;
	loop->stats = &al->stats;
	cds_list_add_tail(&al->node, &ti->attached);
	return 0;
}

static u64 read_counter(const u64 *counter)
{
	return __atomic_load_n(counter, __ATOMIC_RELAXED);
}

static void stats_add(struct target_stats *sum, const struct target_stats *one)
{
	u32 i;

	for (i = 0; i < STAT_NR; i++) {
		sum->kinds[i].operations += read_counter(&one->kinds[i].operations);
		sum->kinds[i].bytes += read_counter(&one->kinds[i].bytes);
		sum->kinds[i].failed += read_counter(&one->kinds[i].failed);
		sum->kinds[i].invalid += read_counter(&one->kinds[i].invalid);
		sum->kinds[i].time_ns += read_counter(&one->kinds[i].time_ns);
	}
	sum->highest = max(sum->highest, read_counter(&one->highest));
	sum->last_ns = max(sum->last_ns, read_counter(&one->last_ns));
}

void stats_detach(struct target *ti, struct loop *loop)
{
	struct attached_loop *al, *tmp;

	cds_list_for_each_entry_safe(al, tmp, &ti->attached, node) {
		if (al->loop != loop)
			continue;
		stats_add(&ti->detached, &al->stats);
		loop->stats = NULL;
		cds_list_del(&al->node);
		free(al);
	}
}

void target_get_stats(const struct target *ti, struct target_stats *result)
{
	struct attached_loop *al;

	*result = ti->detached;
	cds_list_for_each_entry(al, &ti->attached, node)
		stats_add(result, &al->stats);
}
