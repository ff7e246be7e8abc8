/* SPDX-License-Identifier: GPL-2.0-or-later OR MIT */
/* A job that moves what some layers hold of one target into another, or the same. */
#ifndef QCHAIN_TRANSFER_H
#define QCHAIN_TRANSFER_H

#include <qchain/job.h>
#include <qchain/target.h>

/*
 * Chunks of up to 1 MiB are in flight, up to TRANSFER_LANES of them and
 * TRANSFER_MEMORY_BYTES together; with transfer_options.compare as much again is
 * there for what it is compared with. Less than 64 KiB counts as 64 KiB.
 */
#define TRANSFER_LANES 256u
#define TRANSFER_MEMORY_BYTES (32u * 1024u * 1024u)

/*
 * Commit: from a target that shows only the layers to be merged, into one whose
 * active layer is the base. Stream: within one target, what lies below its active
 * layer comes up. Rebase: within one target, what reads otherwise through the new
 * backing, @compare. Export: from a target that is only read into a new image.
 *
 * Everything goes through the targets' own reads and writes. The
 * job ends when the target has flushed it; what comes then (a backing name, an
 * emptied layer) is the caller's, or @ops->prepare.
 *
 * An error is asked about (job_error): where it says "stop", the job pauses and
 * what failed is done again when it goes on; "ignore" goes on, but the job fails in
 * the end: what was not moved must not be given up.
 */

/*
 * struct transfer_ops - of those who serve the targets meanwhile; on the job's loop
 * @ready: may it begin? 1, or 0: it is asked again in a millisecond; -errno: it fails,
 *	job->err may tell why. @source's size counts from then on.
 * @busy: what @ready has begun is under way: not even a cancel ends the job. May be NULL.
 * @room: how much the target can take, in whatever unit; a job that rests because it was
 *	full goes on when that is more than it was. May be NULL.
 * @then: when all is moved and durable the job goes on as this says, from start() on,
 *	and ends with it; only verbs and start() are looked at. start() asks
 *	transfer_is_pausing(): pause() came before it, if so. NULL: it ends.
 * @prepare: as job_prepare_fn, in the end
 * @clean: the job has ended, with or without that
 */
struct transfer_ops {
	int (*ready)(void *arg);
	bool (*busy)(void *arg);
	u64 (*room)(void *arg);
	const struct job_type *then;
	void (*prepare)(struct job *job, void *arg);
	void (*clean)(void *arg);
};

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
 * @compare_bytes: granule in which @compare is compared, the target's cluster
 * @align: 0, or a power of two: what is moved is rounded out to it
 * @region_bytes: what is done again after an error, at most; 0: 64 MiB
 * @ops, @arg: may be NULL; with it @clean is called, too, when transfer_create() fails
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
	u32 compare_bytes;
	u32 align;
	u32 region_bytes;
	struct latency_probe *probe; /* the guest that the job gives way to; NULL: none */
	const struct transfer_ops *ops;
	void *arg;
};

/* transfer_options.arg of a job that transfer_create() has made. */
void *transfer_arg(const struct job *job);
/* Is it to be at rest? Asked by transfer_ops.then->start(). On the job's loop. */
bool transfer_is_pausing(const struct job *job);

/*
 * transfer_wait_for_room - the job, which goes on as transfer_ops.then says, rests because
 * its target was full: it is resumed when there is more room
 */
void transfer_wait_for_room(struct job *job);

/*
 * transfer_is_at_rest - the job is, for whatever reason, and asks its targets nothing
 * transfer_restart - it begins anew, with other @options, when it goes on: it asks
 * @ops->ready again, scans and copies. Also when it was going on as @ops->then, which is
 * over with that: the caller has ended it. A job that was ready stays so, and ends by
 * itself. It must be at rest. Both on the job's loop.
 */
bool transfer_is_at_rest(const struct job *job);
void transfer_restart(struct job *job, const struct transfer_options *options);

/*
 * @type: "commit", "stream", "export" or "rebase"; @job->loop is @options' loop (struct
 * job_options).
 */
int transfer_create(struct jobs *jobs, const char *type, const struct job_options *job_options,
		    const struct transfer_options *options, struct job **result,
		    struct qc_err *err);

#endif
