/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Spans of time, of one process or of several. */
#ifndef CTL_CLOCK_H
#define CTL_CLOCK_H

#include <qchain/types.h>
#include <time.h>

#define NS_PER_SEC 1000000000ull

/* CLOCK_MONOTONIC, in nanoseconds. Any thread. */
static inline u64 now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * NS_PER_SEC + ts.tv_nsec;
}

#endif
