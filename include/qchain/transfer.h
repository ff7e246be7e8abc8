/* SPDX-License-Identifier: GPL-2.0-or-later OR MIT */
/* A job that moves what some layers hold of one target into another, or the same. */
#ifndef QCHAIN_TRANSFER_H
#define QCHAIN_TRANSFER_H

#include <qchain/job.h>
#include <qchain/target.h>

/*
 * Commit: from a target that shows only the layers to be merged, into one whose
 * active layer is the base. Stream: within one target, what lies below its active
 * layer comes up. Rebase: within one target, what reads otherwise through the new
 * backing, @compare.
 *
 * Everything goes through the targets' own reads and writes, many in flight. The
 * job ends when the target has flushed it; what comes then (a backing name, an
 * emptied layer) is the caller's.
 */

/*
 * struct transfer_options
 * @source, @target, @compare: qcow2-chain targets; @source may be @target;
 *	@compare may be NULL
 * @loop: the job's; attached to @source only, running or run by the caller
 * @target_loop, @compare_loop: attached to these only; NULL where there is none
 *	or it is @source. With threads of their own.
 * @first_depth, @last_depth: only what such layers hold is moved, 1 is the active
 *	layer of @source. With @compare: 0 counts as held by what is below.
 * @keep_layers: the lowest so many layers of @source and of @compare are the same
 *	images: what both find there is not looked at
 * @chunk_bytes: 0: 1 MiB
 * @compare_bytes: granule in which @compare is compared, the target's cluster
 */
struct transfer_options {
	struct target *source;
	struct target *target;
	struct target *compare;
	struct loop *target_loop;
	struct loop *compare_loop;
	u32 first_depth;
	u32 last_depth;
	u32 keep_layers;
	bool skip_zero; /* nothing will be below the target: what reads as zero stays so */
	u32 chunk_bytes;
	u32 compare_bytes;
	u32 lanes; /* 0: 32 */
	const struct latency_probe *probe;
};

/* @type: "commit", "stream" or "rebase"; @job->loop is @options' loop (struct job_options). */
int transfer_create(struct jobs *jobs, const char *type, const struct job_options *job_options,
		    const struct transfer_options *options, struct job **result,
		    struct qc_err *err);

#endif
