// SPDX-License-Identifier: GPL-2.0-or-later
/* One job's life on its loop: states, pause points, how it ends. */
#include "job-private.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

/*
 * Nothing here waits: a kind is asked (start, pause, cancel, prepare) and answers
 * by a call (job_end, job_paused, job_prepared), at once or later. Between
 * pause() and resume() there is always job_paused(), so a kind never sees the
 * two cross.
 */

#define RATE_STRETCH_NS 1000000000ull

void job_set_state(struct job *job, enum job_state to)
{
	json_object *data;

	assert_on_loop(job->loop);
	assert(job_state_allowed(job->state, to));
	if (job->state == to)
		return;
	__atomic_store_n(&job->state, to, __ATOMIC_RELEASE);
	data = json_object_new_object();
	json_object_object_add(data, "id", json_object_new_string(job->id));
	json_object_object_add(data, "status", json_object_new_string(job_state_name(to)));
	job_event(job, "JOB_STATUS_CHANGE", data);
}

int job_admit(const struct job *job, enum job_verb verb, struct qc_err *err)
{
	if (job_verb_allowed(verb, job->state) && !job->preparing)
		return 0;
	return qc_err_set(err, -EPERM, "Job '%s' in state '%s' cannot accept command verb '%s'",
			  job->id, job_state_name(job->state), job_verb_name(verb));
}

/* ---- progress ------------------------------------------------------------------ */

void job_measure_rate(struct job *job)
{
	u64 now = loop_now_ns(job->loop);
	u64 rate;

	if (!job->rate_ns) {
		job->rate_ns = now;
		job->rate_done = job->done;
	}
	if (now - job->rate_ns < RATE_STRETCH_NS)
		return;
	rate = (job->done - job->rate_done) * 1e9 / (now - job->rate_ns);
	job->rate = job->rate ? (job->rate * 3 + rate) / 4 : rate;
	job->rate_ns = now;
	job->rate_done = job->done;
}

void job_progress(struct job *job, u64 bytes)
{
	__atomic_store_n(&job->done, job->done + bytes, __ATOMIC_RELAXED);
	job_measure_rate(job);
}

void job_set_remaining(struct job *job, u64 bytes)
{
	__atomic_store_n(&job->total, job->done + bytes, __ATOMIC_RELAXED);
}

/* ---- running and resting ---------------------------------------------------------- */

static void job_work(struct job *job)
{
	int ret;

	job->working = true;
	job_measure_rate(job);
	ret = job->type->start(job, &job->err);
	if (ret && !job->ended)
		job_end(job, ret);
}

static void job_rest(struct job *job)
{
	job_set_state(job, job->state == JOB_READY ? JOB_STANDBY : JOB_PAUSED);
}

void job_run(struct job *job)
{
	job->started = true;
	job_set_state(job, JOB_RUNNING);
	if (job->pause_count)
		job_rest(job);
	else
		job_work(job);
}

void job_hold(struct job *job)
{
	if (job->pause_count++ || !job->working || job->ended || job->pausing)
		return;
	if (!job->type->pause)
		return; /* it comes to rest at its end only */
	job->pausing = true;
	job->type->pause(job);
}

static void job_go_on(struct job *job)
{
	job->type->resume(job);
	if (job->completing && !job->ended)
		job->type->complete(job);
}

void job_paused(struct job *job)
{
	if (!job->pausing || job->ended)
		return;
	job->pausing = false;
	if (job->pause_count) {
		job_rest(job);
		return;
	}
	job_go_on(job);
}

/* Out of PAUSED or STANDBY, and on. */
static void job_wake(struct job *job)
{
	if (job->state != JOB_PAUSED && job->state != JOB_STANDBY)
		return; /* not at rest yet: job_paused() goes on */
	job_set_state(job, job->state == JOB_STANDBY ? JOB_READY : JOB_RUNNING);
	job->rate_ns = 0;
	if (!job->working)
		job_work(job);
	else
		job_go_on(job);
}

void job_unhold(struct job *job)
{
	assert(job->pause_count);
	if (--job->pause_count == 0)
		job_wake(job);
}

void job_ready(struct job *job)
{
	if (job->ended || job->state == JOB_READY)
		return;
	job_set_state(job, JOB_READY);
	job_block_event(job, "BLOCK_JOB_READY");
}

/* ---- the end ------------------------------------------------------------------------ */

static void update_ret(struct job *job)
{
	if (!job->ret && job_is_cancelled(job))
		job->ret = -ECANCELED;
	if (!job->ret)
		return;
	if (!job->err.code)
		qc_err_set(&job->err, job->ret, "%s", strerror(-job->ret));
	job_set_state(job, JOB_ABORTING);
}

void job_leave(struct job *job)
{
	job_set_state(job, JOB_NULL);
	loop_send(job->jobs->loop, &job->gone, job_gone);
}

/* The outcome is sure: told to the kind, then to everybody. */
static void job_conclude(struct job *job)
{
	bool cancelled;

	update_ret(job);
	cancelled = job_is_cancelled(job);
	if (!job->ret && job->type->commit)
		job->type->commit(job);
	if (job->ret && job->type->abort)
		job->type->abort(job);
	if (job->type->clean)
		job->type->clean(job);
	if (job->started)
		job_block_event(job, cancelled ? "BLOCK_JOB_CANCELLED" : "BLOCK_JOB_COMPLETED");
	job_set_state(job, JOB_CONCLUDED);
	if (job->auto_dismiss || !job->started)
		job_leave(job);
}

void job_prepared(struct job *job, int ret)
{
	assert_on_loop(job->loop);
	assert(job->preparing);
	job->preparing = false;
	job->ret = ret;
	job_conclude(job);
}

void job_do_finalize(struct job *job)
{
	if (!job->type->prepare) {
		job_conclude(job);
		return;
	}
	job->preparing = true;
	job->type->prepare(job);
}

/* An end while it rests is possible only by cancel, which wakes it first. */
static void leave_rest(struct job *job)
{
	if (job->state == JOB_PAUSED)
		job_set_state(job, JOB_RUNNING);
	else if (job->state == JOB_STANDBY)
		job_set_state(job, JOB_READY);
}

void job_end(struct job *job, int ret)
{
	json_object *data;

	assert_on_loop(job->loop);
	assert(!job->ended);
	job->ended = true;
	job->pausing = false;
	job->ret = ret;
	job->force_cancel |= job->cancelled && ret == -ECANCELED; /* it was given up */
	leave_rest(job);
	if (ret || job_is_cancelled(job)) {
		job_conclude(job);
		return;
	}
	job_set_state(job, JOB_WAITING);
	job_set_state(job, JOB_PENDING);
	if (job->auto_finalize) {
		job_do_finalize(job);
		return;
	}
	if (!job->type->block)
		return;
	data = json_object_new_object();
	json_object_object_add(data, "type", json_object_new_string(job->type->name));
	json_object_object_add(data, "id", json_object_new_string(job->id));
	job_event(job, "BLOCK_JOB_PENDING", data);
}

void job_do_cancel(struct job *job, bool force)
{
	bool abandon = true;

	if (job->force_cancel && !job->ended)
		return; /* it is on its way */
	if (job->ended && !force && job->type->cancel)
		return; /* without force only the last step is left out, and that is over */
	if (job->user_paused) {
		job->user_paused = false;
		job->pause_count--;
	}
	if (!job->started || job->ended) { /* created; or waiting and pending */
		job->cancelled = true;
		job->force_cancel = true;
		job->ret = -ECANCELED;
		job->ended = true;
		job_conclude(job);
		return;
	}
	job->cancelled = true;
	job->completing = false;
	if (!job->working) { /* paused before it began */
		job->force_cancel = true;
		job_end(job, -ECANCELED);
		return;
	}
	job->force_cancel |= force;
	if (job->state == JOB_PAUSED || job->state == JOB_STANDBY)
		job_wake(job);
	if (job->type->cancel && !job->ended)
		abandon = job->type->cancel(job, force);
	job->force_cancel |= abandon;
}

/* ---- errors ----------------------------------------------------------------------------- */

static enum job_action choose_action(enum job_on_error policy, int error)
{
	switch (policy) {
	case JOB_ON_ERROR_IGNORE:
		return JOB_ACTION_IGNORE;
	case JOB_ON_ERROR_STOP:
		return JOB_ACTION_STOP;
	case JOB_ON_ERROR_ENOSPC:
		return error == -ENOSPC ? JOB_ACTION_STOP : JOB_ACTION_REPORT;
	default:
		return JOB_ACTION_REPORT;
	}
}

enum job_action job_error(struct job *job, bool is_read, int error)
{
	return job_error_by(job, job->on_error, is_read, error);
}

enum job_action job_error_by(struct job *job, enum job_on_error policy, bool is_read, int error)
{
	static const char *const names[] = { "report", "ignore", "stop" };
	enum job_action action = choose_action(policy, error);
	json_object *data = json_object_new_object();

	assert_on_loop(job->loop);
	json_object_object_add(data, "device", json_object_new_string(job->id));
	json_object_object_add(data, "operation",
			       json_object_new_string(is_read ? "read" : "write"));
	json_object_object_add(data, "action", json_object_new_string(names[action]));
	job_event(job, "BLOCK_JOB_ERROR", data);
	if (action != JOB_ACTION_STOP)
		return action;
	job->io_status = error == -ENOSPC ? JOB_IO_NOSPACE : JOB_IO_FAILED;
	if (!job->user_paused) {
		job->user_paused = true;
		job_hold(job);
	}
	return action;
}
