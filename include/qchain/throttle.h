/* SPDX-License-Identifier: GPL-2.0-or-later OR MIT */
/* How much a background job may do without harm to the guest. */
#ifndef QCHAIN_THROTTLE_H
#define QCHAIN_THROTTLE_H

#include <qchain/types.h>

/*
 * struct latency_probe - what the guest's reads and writes take, summed by its loops
 * Any thread, atomic. Costs nothing while nobody watches.
 */
struct latency_probe {
	u32 watchers; /* jobs that look */
	u64 count;
	u64 total_ns;
};

static inline bool latency_watched(const struct latency_probe *probe)
{
	return __atomic_load_n(&probe->watchers, __ATOMIC_RELAXED);
}

/* One request of the guest took @ns. */
static inline void latency_sample(struct latency_probe *probe, u64 ns)
{
	__atomic_fetch_add(&probe->total_ns, ns, __ATOMIC_RELAXED);
	__atomic_fetch_add(&probe->count, 1, __ATOMIC_RELAXED);
}

static inline void latency_watch(struct latency_probe *probe, bool on)
{
	__atomic_fetch_add(&probe->watchers, on ? 1 : -1, __ATOMIC_RELAXED);
}

/* A job's share of one lane: all of it. */
#define THROTTLE_LANE 1000u
/* It is never less than so much, whatever the guest sees: a job comes to its end. */
#define THROTTLE_FLOOR 333u

/*
 * struct throttle - the share of one job, on its loop
 *
 * The share is counted in thousandths of a lane that is always busy: 4000 is four
 * I/Os in flight, 333 is one for a third of the time. It grows while the guest's
 * requests take about what they take without us, and as many come; it shrinks by a
 * quarter when they take a quarter longer, or when a fifth fewer come: where the
 * processors are what is short, requests wait before we see them. How it is without us
 * is heard by doing nothing for a tenth of a second, every few seconds. A guest that
 * does nothing has no claim: the share doubles up to the limit. One that comes, the
 * first time or after a rest, finds one lane, and is listened to.
 */
struct throttle {
	struct latency_probe *probe; /* NULL: nobody to watch */
	u32 most; /* lanes */
	u32 share;
	u64 base_ns; /* of one request without us; 0: not heard yet */
	u64 base_gap_ns; /* from one request to the next, likewise */
	u64 count; /* of the probe, when enough had come */
	u64 total_ns;
	u64 counted_ns; /* when that was */
	u64 step_ns; /* when it was looked at last */
	u64 busy_ns; /* when the guest was seen at work last; 0: never yet */
	u64 listen_ns; /* when listening began; 0: it is over */
	u64 stretch_ns; /* when it was over last */
	u64 rest_ns; /* a share below a lane rests until then */
};

void throttle_init(struct throttle *throttle, struct latency_probe *probe, u32 most);

/*
 * throttle_window - I/Os that may be in flight now
 * 0: none, *@wait_ns later it is worth asking again. To be asked before each I/O.
 * throttle_done - one has ended that took @ns
 */
u32 throttle_window(struct throttle *throttle, u64 now_ns, u64 *wait_ns);
void throttle_done(struct throttle *throttle, u64 now_ns, u64 ns);

#endif
