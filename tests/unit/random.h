/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Random numbers of a test program, from a seed that it prints. */
#ifndef TESTS_RANDOM_H
#define TESTS_RANDOM_H

#include <qchain/types.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

struct rnd {
	u64 state;
};

/* A seed of this run, or the one in QCHAIN_SEED. */
static inline u64 rnd_seed(const char *what)
{
	const char *given = getenv("QCHAIN_SEED");
	struct timespec ts;
	u64 seed;

	clock_gettime(CLOCK_REALTIME, &ts);
	seed = given ? strtoull(given, NULL, 0) : (u64)ts.tv_sec * 1000000007ull ^ ts.tv_nsec;
	printf("\n    %s: QCHAIN_SEED=%llu ", what, (unsigned long long)seed);
	fflush(stdout);
	return seed;
}

static inline u64 rnd(struct rnd *r)
{
	u64 x = r->state += 0x9e3779b97f4a7c15ull;

	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
	return x ^ (x >> 31);
}

/* 0 .. @n - 1 */
static inline u64 rnd_below(struct rnd *r, u64 n)
{
	return rnd(r) % n;
}

/* @low .. @high */
static inline u64 rnd_between(struct rnd *r, u64 low, u64 high)
{
	return low + rnd_below(r, high - low + 1);
}

/* True once in @n. */
static inline bool rnd_once(struct rnd *r, u32 n)
{
	return rnd_below(r, n) == 0;
}

#endif
