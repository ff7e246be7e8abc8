/* SPDX-License-Identifier: GPL-2.0-or-later OR MIT */
/* Jobs: long operations with progress, pause, cancel and an error that stays. */
#ifndef QCHAIN_JOB_H
#define QCHAIN_JOB_H

#include <json-c/json.h>
#include <qchain/err.h>
#include <qchain/limits.h>
#include <qchain/loop.h>
#include <qchain/types.h>
#include <urcu/list.h>

/*
 * The life of a job, with QEMU's states and verbs (two tables, job-table.c):
 *
 *   created -> running <-> paused
 *                 |  \
 *                 |   ready <-> standby        (kinds that wait for `complete`)
 *                 v     v
 *               waiting -> pending -> concluded -> null
 *                 any before concluded \-> aborting -^
 *
 * A job lives on one loop, the metadata loop or one of its own, and never
 * blocks it. The registry (struct jobs) lives on the control loop, which looks
 * jobs up, calls their verbs and frees them; verbs are carried to the job's
 * loop. What a kind of job does is a table of callbacks, struct job_type.
 */

enum job_state {
	JOB_UNDEFINED,
	JOB_CREATED,
	JOB_RUNNING,
	JOB_PAUSED,
	JOB_READY,
	JOB_STANDBY,
	JOB_WAITING,
	JOB_PENDING,
	JOB_ABORTING,
	JOB_CONCLUDED,
	JOB_NULL,
	JOB_NR_STATES
};

enum job_verb {
	JOB_VERB_CANCEL,
	JOB_VERB_PAUSE,
	JOB_VERB_RESUME,
	JOB_VERB_SET_SPEED,
	JOB_VERB_COMPLETE,
	JOB_VERB_FINALIZE,
	JOB_VERB_DISMISS,
	JOB_NR_VERBS
};

/* "created", ..., "null"; "cancel", ..., "dismiss": as QMP spells them. */
const char *job_state_name(enum job_state state);
const char *job_verb_name(enum job_verb verb);
/* The two tables. */
bool job_state_allowed(enum job_state from, enum job_state to);
bool job_verb_allowed(enum job_verb verb, enum job_state state);

/* What happens at an error of a source or a target (QMP: on-error). */
enum job_on_error { JOB_ON_ERROR_REPORT, JOB_ON_ERROR_IGNORE, JOB_ON_ERROR_ENOSPC,
		    JOB_ON_ERROR_STOP };
enum job_action { JOB_ACTION_REPORT, JOB_ACTION_IGNORE, JOB_ACTION_STOP };
enum job_io_status { JOB_IO_OK, JOB_IO_FAILED, JOB_IO_NOSPACE };

struct job;
struct jobs;

/* ---- a kind of job: its callbacks, all on the job's loop -------------------- */

/*
 * job_start_fn - begin the work; it ends with job_end(), perhaps at once.
 * 0, or -errno with @err set: as if job_end(job, -errno) had been called.
 */
typedef int (*job_start_fn)(struct job *job, struct qc_err *err);
/*
 * job_pause_fn - come to rest: nothing in flight, then job_paused(). Followed by
 * exactly one job_resume_fn after that, unless the job ended first.
 */
typedef void (*job_pause_fn)(struct job *job);
/* job_resume_fn - go on; errors that stopped the job are tried again. */
typedef void (*job_resume_fn)(struct job *job);
/*
 * job_cancel_fn - end soon with job_end(); never called while the job is paused.
 * True: the work is given up. False: the job ends well without its last step
 * (a job in READY that is cancelled without force). NULL counts as true, and
 * the kind looks at job_is_cancelled().
 */
typedef bool (*job_cancel_fn)(struct job *job, bool force);
/* job_complete_fn - leave READY; ends with job_end(). NULL: has no READY. */
typedef void (*job_complete_fn)(struct job *job);
/* job_set_speed_fn - bytes a second, 0: no limit. NULL: job->speed is looked at. */
typedef void (*job_set_speed_fn)(struct job *job, u64 speed);
/*
 * job_prepare_fn - the last step, in PENDING, when finalized: what cannot be
 * taken back (a pivot). Ends with job_prepared(); no verb is let in meanwhile.
 */
typedef void (*job_prepare_fn)(struct job *job);
/* job_commit_fn, job_abort_fn - one of the two, when the outcome is sure. */
typedef void (*job_commit_fn)(struct job *job);
typedef void (*job_abort_fn)(struct job *job);
/* job_clean_fn - after commit or abort: let go of everything, job->private too. */
typedef void (*job_clean_fn)(struct job *job);

/*
 * struct job_type - one kind; all callbacks but start may be NULL
 * @name: QMP's "type"
 * @block: shown by query-block-jobs, with BLOCK_JOB_ events
 */
struct job_type {
	const char *name;
	bool block;
	job_start_fn start;
	job_pause_fn pause;
	job_resume_fn resume;
	job_cancel_fn cancel;
	job_complete_fn complete;
	job_set_speed_fn set_speed;
	job_prepare_fn prepare;
	job_commit_fn commit;
	job_abort_fn abort;
	job_clean_fn clean;
};

struct job {
	/* set once */
	struct jobs *jobs;
	const struct job_type *type;
	struct loop *loop;
	void *private; /* the kind's */
	char id[QC_MAX_JOB_ID + 1];
	bool auto_finalize;
	bool auto_dismiss;
	enum job_on_error on_error;
	struct cds_list_head node; /* control thread: in the registry */
	struct loop_msg gone; /* to the registry, when null */

	/* the job's loop; @state is also read by others, atomically */
	enum job_state state; /* job_set_state() only */
	enum job_io_status io_status;
	u32 pause_count;
	bool user_paused;
	bool pausing; /* pause() was called, job_paused() was not yet */
	bool started; /* left CREATED */
	bool working; /* start() was called */
	bool ended; /* job_end() was called */
	bool preparing;
	bool completing; /* asked to while it rests: it does when it goes on */
	bool cancelled;
	bool force_cancel;
	int ret;
	u64 speed;
	struct qc_err err; /* why it failed; kept until it is dismissed */
	u64 rate; /* bytes a second of late, 0: not known */
	u64 rate_ns; /* start of the measured stretch */
	u64 rate_done;

	/* any thread, atomic */
	u64 done; /* bytes of real work */
	u64 total;
};

/* ---- called by kinds, on the job's loop -------------------------------------- */

/* @bytes more are done. */
void job_progress(struct job *job, u64 bytes);
/* So many are still to do, as far as is known now. */
void job_set_remaining(struct job *job, u64 bytes);
/* RUNNING -> READY: `complete` is waited for. */
void job_ready(struct job *job);
/* At rest, as job_pause_fn asked. */
void job_paused(struct job *job);
/*
 * job_end - the work is over: 0, or -errno; the text, if job->err has none, is
 * that of the number. Nothing of the kind is called after it but prepare,
 * commit, abort, clean.
 */
void job_end(struct job *job, int ret);
/*
 * job_hold - as a pause, by somebody in the daemon beside the user; both may last at
 * once. job_unhold ends it. job_is_at_rest - nothing is begun, or in flight.
 */
void job_hold(struct job *job);
void job_unhold(struct job *job);
static inline bool job_is_at_rest(const struct job *job)
{
	return !job->ended && (!job->working || job->state == JOB_PAUSED ||
			       job->state == JOB_STANDBY);
}
/* The answer to job_prepare_fn. */
void job_prepared(struct job *job, int ret);
/*
 * job_error - an I/O error happened: what the job's on-error says
 * Sends BLOCK_JOB_ERROR. JOB_ACTION_STOP: the job is being paused as by a user;
 * what failed is tried again after job_resume_fn.
 */
enum job_action job_error(struct job *job, bool is_read, int error);
/* ... what @policy says: of jobs that have one for each side. */
enum job_action job_error_by(struct job *job, enum job_on_error policy, bool is_read, int error);

static inline bool job_is_cancelled(const struct job *job)
{
	return job->cancelled && job->force_cancel;
}

/* ---- the registry: control thread ---------------------------------------------- */

/*
 * jobs_event_fn - a QMP event; any thread. @data_owned: its data.
 */
typedef void (*jobs_event_fn)(void *arg, const char *name, json_object *data_owned);

int jobs_create(struct loop *loop, jobs_event_fn event, void *arg, struct jobs **result);
/* All jobs are concluded or gone: what nobody dismissed is freed. NULL is fine. */
void jobs_destroy(struct jobs *jobs);
/*
 * jobs_cancel_all - cancel what runs, with force, and return when all have ended
 * A job on a loop without a thread must end in the events of its own loop.
 */
void jobs_cancel_all(struct jobs *jobs);

/*
 * struct job_options
 * @id: letters, digits, "-", "." and "_", a letter first; NULL: "TYPE0", "TYPE1", ..
 * @loop: where it lives; NULL: the registry's loop
 */
struct job_options {
	const char *id;
	struct loop *loop;
	bool manual_finalize;
	bool manual_dismiss;
	enum job_on_error on_error;
	u64 speed;
};

/*
 * job_create - in CREATED, with the event for it; -EEXIST, -EINVAL, -ENOSPC (too
 * many). job_start - to RUNNING, and into the kind's start.
 */
int job_create(struct jobs *jobs, const struct job_type *type,
	       const struct job_options *options, void *private, struct job **result,
	       struct qc_err *err);
void job_start(struct job *job);

/* May a new job have this id? -EINVAL, -EEXIST, as job_create() says it. */
int jobs_check_id(struct jobs *jobs, const char *id, struct qc_err *err);
/* The job with this id; NULL: none (any more). */
struct job *jobs_find(struct jobs *jobs, const char *id);
/* The newest job first; @job NULL: the first. NULL at the end. */
struct job *jobs_next(struct jobs *jobs, struct job *job);

/*
 * Verbs: 0, or -errno with the text that QEMU has for it. Control thread (carried
 * to the job's loop) or the job's loop. After a dismiss the job is gone.
 */
int job_pause(struct job *job, struct qc_err *err);
int job_resume(struct job *job, struct qc_err *err);
int job_cancel(struct job *job, bool force, struct qc_err *err);
int job_complete(struct job *job, struct qc_err *err);
int job_finalize(struct job *job, struct qc_err *err);
int job_dismiss(struct job *job, struct qc_err *err);
int job_set_speed(struct job *job, u64 speed, struct qc_err *err);

/* What queries show, all of one instant. */
struct job_info {
	enum job_state state;
	enum job_io_status io_status;
	bool user_paused;
	bool busy;
	u64 speed;
	u64 done;
	u64 total;
	u64 rate; /* bytes a second, 0: not known */
	u64 left_ns; /* at that rate; 0: not known */
	struct qc_err err; /* code 0: none */
};

void job_query(struct job *job, struct job_info *result);

/* Members of query-jobs, of query-block-jobs (NULL: not a block job); owned by the caller. */
json_object *job_json(struct job *job);
json_object *job_block_json(struct job *job);

/* Is there a job before its end? One that must not be lost by stopping. */
struct job *jobs_unfinished(struct jobs *jobs);

#endif
