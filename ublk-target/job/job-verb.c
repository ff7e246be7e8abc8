// SPDX-License-Identifier: GPL-2.0-or-later
/* Verbs: admitted by the table, run on the job's loop whoever calls. */
#include "job-private.h"

#include <errno.h>

struct verb_call {
	struct job *job;
	int (*fn)(struct verb_call *call);
	struct qc_err *err;
	u64 speed;
	bool force;
	int ret;
};

static void call_run(struct loop *loop, void *arg)
{
	struct verb_call *call = arg;

	call->ret = call->fn(call);
}

static int carry(struct verb_call *call)
{
	if (loop_is_current(call->job->loop))
		return call->fn(call);
	loop_call(call->job->loop, call_run, call);
	return call->ret;
}

static int pause_fn(struct verb_call *call)
{
	struct job *job = call->job;
	int ret = job_admit(job, JOB_VERB_PAUSE, call->err);

	if (ret)
		return ret;
	if (job->user_paused)
		return qc_err_set(call->err, -EALREADY, "Job is already paused");
	job->user_paused = true;
	job_hold(job);
	return 0;
}

int job_pause(struct job *job, struct qc_err *err)
{
	return carry(&(struct verb_call){ .job = job, .fn = pause_fn, .err = err });
}

static int resume_fn(struct verb_call *call)
{
	struct job *job = call->job;
	int ret;

	if (!job->user_paused || !job->pause_count)
		return qc_err_set(call->err, -EINVAL, "Can't resume a job that was not paused");
	ret = job_admit(job, JOB_VERB_RESUME, call->err);
	if (ret)
		return ret;
	job->io_status = JOB_IO_OK;
	job->user_paused = false;
	job_unhold(job);
	return 0;
}

int job_resume(struct job *job, struct qc_err *err)
{
	return carry(&(struct verb_call){ .job = job, .fn = resume_fn, .err = err });
}

static int cancel_fn(struct verb_call *call)
{
	int ret = job_admit(call->job, JOB_VERB_CANCEL, call->err);

	if (!ret)
		job_do_cancel(call->job, call->force);
	return ret;
}

int job_cancel(struct job *job, bool force, struct qc_err *err)
{
	return carry(&(struct verb_call){
		.job = job, .fn = cancel_fn, .err = err, .force = force });
}

static int complete_fn(struct verb_call *call)
{
	struct job *job = call->job;
	int ret = job_admit(job, JOB_VERB_COMPLETE, call->err);

	if (ret)
		return ret;
	if (job->cancelled || job->ended || !job->type->complete)
		return qc_err_set(call->err, -EBUSY,
				  "The active block job '%s' cannot be completed", job->id);
	if (job->pause_count)
		job->completing = true;
	else
		job->type->complete(job);
	return 0;
}

int job_complete(struct job *job, struct qc_err *err)
{
	return carry(&(struct verb_call){ .job = job, .fn = complete_fn, .err = err });
}

static int finalize_fn(struct verb_call *call)
{
	int ret = job_admit(call->job, JOB_VERB_FINALIZE, call->err);

	if (!ret)
		job_do_finalize(call->job);
	return ret;
}

int job_finalize(struct job *job, struct qc_err *err)
{
	return carry(&(struct verb_call){ .job = job, .fn = finalize_fn, .err = err });
}

static int dismiss_fn(struct verb_call *call)
{
	int ret = job_admit(call->job, JOB_VERB_DISMISS, call->err);

	if (!ret)
		job_leave(call->job);
	return ret;
}

int job_dismiss(struct job *job, struct qc_err *err)
{
	return carry(&(struct verb_call){ .job = job, .fn = dismiss_fn, .err = err });
}

static int set_speed_fn(struct verb_call *call)
{
	struct job *job = call->job;
	int ret = job_admit(job, JOB_VERB_SET_SPEED, call->err);

	if (ret)
		return ret;
	job->speed = call->speed;
	if (job->type->set_speed && job->working && !job->ended)
		job->type->set_speed(job, call->speed);
	return 0;
}

int job_set_speed(struct job *job, u64 speed, struct qc_err *err)
{
	return carry(&(struct verb_call){
		.job = job, .fn = set_speed_fn, .err = err, .speed = speed });
}
