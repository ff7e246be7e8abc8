/* SPDX-License-Identifier: GPL-2.0-or-later OR MIT */
/* How many I/Os a background job may have in flight without harm to the guest. */
#ifndef QCHAIN_THROTTLE_H
#define QCHAIN_THROTTLE_H

#include <qchain/types.h>

/*
 * struct latency_probe - what the guest's I/O takes, as sampled by its loops
 * Any thread, atomic. Zeroed: no guest was seen.
 */
struct latency_probe {
	u64 mean_ns; /* moving mean, over about 16 samples */
	u64 stamp_ns; /* of the last sample */
};

/* One request of the guest took @ns and ended at @now_ns. Any thread, no lock. */
static inline void latency_sample(struct latency_probe *probe, u64 ns, u64 now_ns)
{
	u64 mean = __atomic_load_n(&probe->mean_ns, __ATOMIC_RELAXED);

	__atomic_store_n(&probe->mean_ns, mean ? mean - mean / 16 + ns / 16 : ns,
			 __ATOMIC_RELAXED);
	__atomic_store_n(&probe->stamp_ns, now_ns, __ATOMIC_RELAXED);
}

/*
 * struct throttle - the window of one job, on its loop
 *
 * The window grows by one while the guest's latency stays near what it is
 * without us, and shrinks by a third when it has doubled. "Without us" is the
 * lowest mean of late: the job begins with one I/O, and goes back to one for a
 * moment every few seconds to listen. A guest that does nothing has no claim:
 * then the window doubles up to the limit.
 */
struct throttle {
	const struct latency_probe *probe; /* NULL: nobody to watch */
	u32 most;
	u32 window;
	u64 base_ns; /* lowest mean of this stretch */
	u64 last_base_ns; /* of the one before */
	u64 stretch_ns; /* when this one began */
	u64 changed_ns; /* the window's last change */
	bool listening;
};

void throttle_init(struct throttle *throttle, const struct latency_probe *probe, u32 most);

/*
 * throttle_window - I/Os that may be in flight now, 1 to most. To be asked often:
 * it changes only every 20 ms.
 */
u32 throttle_window(struct throttle *throttle, u64 now_ns);

#endif
