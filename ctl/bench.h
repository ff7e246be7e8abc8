/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The measuring half of `qchainctl bench`. */
#ifndef CTL_BENCH_H
#define CTL_BENCH_H

#include <qchain/err.h>
#include <qchain/limits.h>
#include <qchain/types.h>

#define BENCH_MAX_DEPTH 1024u
#define BENCH_MAX_QUEUES 16u

enum bench_pattern { BENCH_SEQ, BENCH_STEP, BENCH_RANDOM };

struct bench_options {
	u64 count;
	u64 step; /* bytes */
	u64 offset; /* bytes */
	u64 seed;
	u32 depth; /* per queue */
	u32 bytes; /* of a request */
	u32 queues;
	u32 flush_interval; /* requests; 0: never */
	enum bench_pattern pattern;
	bool write;
	bool no_drain; /* flushes do not wait for what is in flight */
	bool warm;
};

struct bench_result {
	double iops;
	double seconds;
	double cpu_us_per_io;
	u64 p50_ns;
	u64 p99_ns;
	u64 max_ns;
	u64 rss_bytes;
	u64 map_bytes;
	u64 layers;
	u64 extents;
	u64 errors;
};

/* @argc, @argv: words of target qcow2-chain. Blocks until all requests have ended. */
int bench_run(int argc, char **argv, const struct bench_options *options,
	      struct bench_result *result, struct qc_err *err);

#endif
