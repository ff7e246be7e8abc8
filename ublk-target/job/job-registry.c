// SPDX-License-Identifier: GPL-2.0-or-later
/* All jobs of the process: made, found, shown and freed by the control thread. */
#include "job-private.h"

#include <assert.h>
#include <errno.h>
#include <qchain/parse.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

int jobs_create(struct loop *loop, jobs_event_fn event, void *arg, struct jobs **result)
{
	struct jobs *jobs = calloc(1, sizeof(*jobs));

	if (!jobs)
		return -ENOMEM;
	jobs->loop = loop;
	jobs->event = event;
	jobs->arg = arg;
	CDS_INIT_LIST_HEAD(&jobs->list);
	*result = jobs;
	return 0;
}

/* Let messages of jobs that are gone come in. */
static void take_messages(struct jobs *jobs)
{
	while (loop_run_once(jobs->loop, false))
		;
}

void jobs_destroy(struct jobs *jobs)
{
	struct job *job;

	if (!jobs)
		return;
	while ((job = jobs_next(jobs, NULL)) && job_dismiss(job, NULL) == 0)
		take_messages(jobs);
	take_messages(jobs);
	assert(cds_list_empty(&jobs->list));
	free(jobs);
}

/* Until this ends, nobody else may pass verbs: the control thread is here. */
void jobs_cancel_all(struct jobs *jobs)
{
	const struct timespec a_while = { .tv_nsec = 1000000 };
	struct job *job;

	while ((job = jobs_unfinished(jobs))) {
		job_cancel(job, true, NULL); /* again and again does no harm */
		if (job->loop->has_thread)
			nanosleep(&a_while, NULL);
		else
			loop_run_once(job->loop, false);
	}
}

/* ---- making ---------------------------------------------------------------------- */

int jobs_check_id(struct jobs *jobs, const char *id, struct qc_err *err)
{
	if (!parse_is_id(id, QC_MAX_JOB_ID))
		return qc_err_set(err, -EINVAL, "Invalid job ID '%.140s'", id);
	if (jobs_find(jobs, id))
		return qc_err_set(err, -EEXIST, "Job ID '%s' already in use", id);
	return 0;
}

static int choose_id(struct jobs *jobs, const char *wish, const char *type, char *id,
		     struct qc_err *err)
{
	u32 n = 0;

	if (!wish) {
		do
			snprintf(id, QC_MAX_JOB_ID + 1, "%s%u", type, n++);
		while (jobs_find(jobs, id));
		return 0;
	}
	if (jobs_check_id(jobs, wish, err))
		return err->code;
	snprintf(id, QC_MAX_JOB_ID + 1, "%s", wish);
	return 0;
}

struct state_call {
	struct job *job;
	enum job_state state;
};

static void created_run(struct loop *loop, void *arg)
{
	job_set_state(arg, JOB_CREATED);
}

static void start_run(struct loop *loop, void *arg)
{
	job_run(arg);
}

static void carry(struct job *job, void (*fn)(struct loop *loop, void *arg), void *arg)
{
	if (loop_is_current(job->loop))
		fn(job->loop, arg);
	else
		loop_call(job->loop, fn, arg);
}

int job_create(struct jobs *jobs, const struct job_type *type,
	       const struct job_options *options, void *private, struct job **result,
	       struct qc_err *err)
{
	struct job *job;
	int ret;

	if (jobs->nr >= QC_MAX_JOBS)
		return qc_err_set(err, -ENOSPC, "Too many jobs (%u), at most %u; dismiss some",
				  jobs->nr, QC_MAX_JOBS);
	job = calloc(1, sizeof(*job));
	if (!job)
		return qc_err_set(err, -ENOMEM, "%s: out of memory", type->name);
	ret = choose_id(jobs, options->id, type->name, job->id, err);
	if (ret) {
		free(job);
		return ret;
	}
	job->jobs = jobs;
	job->type = type;
	job->loop = options->loop ? options->loop : jobs->loop;
	job->private = private;
	job->auto_finalize = !options->manual_finalize;
	job->auto_dismiss = !options->manual_dismiss;
	job->on_error = options->on_error;
	job->speed = options->speed;
	jobs->nr++;
	cds_list_add(&job->node, &jobs->list);
	carry(job, created_run, job);
	*result = job;
	return 0;
}

void job_start(struct job *job)
{
	carry(job, start_run, job);
}

void job_gone(struct loop *loop, struct loop_msg *msg)
{
	struct job *job = container_of(msg, struct job, gone);

	cds_list_del(&job->node);
	job->jobs->nr--;
	free(job);
}

/* ---- finding ---------------------------------------------------------------------- */

static bool is_there(const struct job *job)
{
	return __atomic_load_n(&job->state, __ATOMIC_ACQUIRE) != JOB_NULL;
}

struct job *jobs_next(struct jobs *jobs, struct job *job)
{
	struct cds_list_head *pos = job ? job->node.next : jobs->list.next;

	for (; pos != &jobs->list; pos = pos->next) {
		job = container_of(pos, struct job, node);
		if (is_there(job))
			return job;
	}
	return NULL;
}

struct job *jobs_find(struct jobs *jobs, const char *id)
{
	struct job *job = NULL;

	while ((job = jobs_next(jobs, job)))
		if (!strcmp(job->id, id))
			return job;
	return NULL;
}

struct job *jobs_unfinished(struct jobs *jobs)
{
	struct job *job = NULL;

	while ((job = jobs_next(jobs, job)))
		if (__atomic_load_n(&job->state, __ATOMIC_ACQUIRE) != JOB_CONCLUDED)
			return job;
	return NULL;
}

/* ---- showing ---------------------------------------------------------------------- */

struct query {
	struct job *job;
	struct job_info *info;
};

static void query_run(struct loop *loop, void *arg)
{
	struct query *query = arg;
	struct job *job = query->job;
	struct job_info *info = query->info;
	u64 left;

	if (job->state == JOB_RUNNING)
		job_measure_rate(job);
	*info = (struct job_info){
		.state = job->state, .io_status = job->io_status,
		.user_paused = job->user_paused, .speed = job->speed, .done = job->done,
		.total = job->total, .rate = job->rate, .err = job->err,
		.busy = job->working && !job->ended && job->state == JOB_RUNNING,
	};
	left = info->total > info->done ? info->total - info->done : 0;
	if (info->rate)
		info->left_ns = left * 1e9 / info->rate;
}

void job_query(struct job *job, struct job_info *result)
{
	carry(job, query_run, &(struct query){ .job = job, .info = result });
}

static void add_u64(json_object *object, const char *key, u64 value)
{
	json_object_object_add(object, key, json_object_new_int64(value));
}

static void add_text(json_object *object, const char *key, const char *value)
{
	json_object_object_add(object, key, json_object_new_string(value));
}

static void add_bool(json_object *object, const char *key, bool value)
{
	json_object_object_add(object, key, json_object_new_boolean(value));
}

/* What QMP does not have: beside its keys, while there is something to tell. */
static void add_rate(json_object *object, const struct job_info *info)
{
	if (!info->rate || info->state == JOB_CONCLUDED)
		return;
	add_u64(object, "rate", info->rate);
	add_u64(object, "seconds-left", info->left_ns / 1000000000ull);
}

static const char *const io_names[] = { "ok", "failed", "nospace" };

json_object *job_json(struct job *job)
{
	json_object *object = json_object_new_object();
	struct job_info info;

	job_query(job, &info);
	add_u64(object, "current-progress", info.done);
	add_text(object, "status", job_state_name(info.state));
	add_u64(object, "total-progress", info.total);
	add_text(object, "type", job->type->name);
	add_text(object, "id", job->id);
	if (info.err.code)
		add_text(object, "error", info.err.msg);
	if (info.io_status != JOB_IO_OK)
		add_text(object, "io-status", io_names[info.io_status]);
	add_rate(object, &info);
	return object;
}

json_object *job_block_json(struct job *job)
{
	json_object *object;
	struct job_info info;

	if (!job->type->block)
		return NULL;
	object = json_object_new_object();
	job_query(job, &info);
	add_bool(object, "auto-finalize", job->auto_finalize);
	add_text(object, "io-status", io_names[info.io_status]);
	add_text(object, "device", job->id);
	add_bool(object, "auto-dismiss", job->auto_dismiss);
	add_bool(object, "busy", info.busy);
	add_u64(object, "len", info.total);
	add_u64(object, "offset", info.done);
	add_text(object, "status", job_state_name(info.state));
	add_bool(object, "paused", info.user_paused);
	add_u64(object, "speed", info.speed);
	add_bool(object, "ready", info.state == JOB_READY || info.state == JOB_STANDBY);
	add_text(object, "type", job->type->name);
	if (info.err.code)
		add_text(object, "error", info.err.msg);
	return object;
}

/* ---- events ------------------------------------------------------------------------ */

void job_event(struct job *job, const char *name, json_object *data_owned)
{
	if (job->jobs->event)
		job->jobs->event(job->jobs->arg, name, data_owned);
	else
		json_object_put(data_owned);
}

void job_block_event(struct job *job, const char *name)
{
	json_object *data;

	if (!job->type->block)
		return;
	data = json_object_new_object();
	add_text(data, "device", job->id);
	add_u64(data, "len", job->total);
	add_u64(data, "offset", job->done);
	add_u64(data, "speed", job->speed);
	add_text(data, "type", job->type->name);
	if (job->err.code && !job_is_cancelled(job))
		add_text(data, "error", job->err.msg);
	job_event(job, name, data);
}
