// SPDX-License-Identifier: GPL-2.0-or-later
/* QMP commands of jobs: queries and verbs, by their two families of names. */
#include "control-private.h"

#include <errno.h>
#include <qchain/job.h>

/* Every command here has one of the two parameters that name the job. */
const struct qmp_param qmp_job_params[] = {
	{ "id", json_type_string, true },
	{ NULL },
};

const struct qmp_param qmp_block_job_params[] = {
	{ "device", json_type_string, true },
	{ NULL },
};

const struct qmp_param qmp_block_job_cancel_params[] = {
	{ "device", json_type_string, true },
	{ "force", json_type_boolean, false },
	{ NULL },
};

const struct qmp_param qmp_block_job_set_speed_params[] = {
	{ "device", json_type_string, true },
	{ "speed", json_type_int, true },
	{ NULL },
};

static struct job *find(const struct qmp_call *call, const char *id)
{
	return call->daemon->jobs ? jobs_find(call->daemon->jobs, id) : NULL;
}

typedef int (*verb_fn)(struct job *job, struct qc_err *err);

/* job-*: of any job. */
static int run_verb(struct qmp_call *call, verb_fn verb, struct qc_err *err)
{
	struct job *job = find(call, qmp_text_of(call->arguments, "id"));

	if (!job)
		return qc_err_set(err, -ENOENT, "Job not found");
	return verb(job, err);
}

static int find_block_job(struct qmp_call *call, const char *key, struct job **result,
			  struct qc_err *err)
{
	const char *id = qmp_text_of(call->arguments, key);

	*result = find(call, id);
	if (*result && (*result)->type->block)
		return 0;
	call->error_class = QMP_DEVICE_NOT_ACTIVE;
	return qc_err_set(err, -ENOENT, "Block job '%.140s' not found", id);
}

/* block-job-*: of block jobs. */
static int run_block_verb(struct qmp_call *call, const char *key, verb_fn verb,
			  struct qc_err *err)
{
	struct job *job;
	int ret = find_block_job(call, key, &job, err);

	return ret ? ret : verb(job, err);
}

static int force_cancel(struct job *job, struct qc_err *err)
{
	return job_cancel(job, true, err);
}

int qmp_job_cancel(struct qmp_call *call, struct qc_err *err)
{
	return run_verb(call, force_cancel, err);
}

int qmp_job_pause(struct qmp_call *call, struct qc_err *err)
{
	return run_verb(call, job_pause, err);
}

int qmp_job_resume(struct qmp_call *call, struct qc_err *err)
{
	return run_verb(call, job_resume, err);
}

int qmp_job_complete(struct qmp_call *call, struct qc_err *err)
{
	return run_verb(call, job_complete, err);
}

int qmp_job_finalize(struct qmp_call *call, struct qc_err *err)
{
	return run_verb(call, job_finalize, err);
}

int qmp_job_dismiss(struct qmp_call *call, struct qc_err *err)
{
	return run_verb(call, job_dismiss, err);
}

int qmp_block_job_cancel(struct qmp_call *call, struct qc_err *err)
{
	json_object *value;
	bool force = json_object_object_get_ex(call->arguments, "force", &value) &&
		     json_object_get_boolean(value);
	struct job_info info;
	struct job *job;
	int ret = find_block_job(call, "device", &job, err);

	if (ret)
		return ret;
	job_query(job, &info);
	if (info.user_paused && !force)
		return qc_err_set(err, -EBUSY,
				  "The block job for device '%s' is currently paused", job->id);
	return job_cancel(job, force, err);
}

int qmp_block_job_pause(struct qmp_call *call, struct qc_err *err)
{
	return run_block_verb(call, "device", job_pause, err);
}

int qmp_block_job_resume(struct qmp_call *call, struct qc_err *err)
{
	return run_block_verb(call, "device", job_resume, err);
}

int qmp_block_job_complete(struct qmp_call *call, struct qc_err *err)
{
	return run_block_verb(call, "device", job_complete, err);
}

int qmp_block_job_finalize(struct qmp_call *call, struct qc_err *err)
{
	return run_block_verb(call, "id", job_finalize, err);
}

int qmp_block_job_dismiss(struct qmp_call *call, struct qc_err *err)
{
	return run_block_verb(call, "id", job_dismiss, err);
}

int qmp_block_job_set_speed(struct qmp_call *call, struct qc_err *err)
{
	json_object *value;
	struct job *job;
	s64 speed;
	int ret = find_block_job(call, "device", &job, err);

	if (ret)
		return ret;
	json_object_object_get_ex(call->arguments, "speed", &value);
	speed = json_object_get_int64(value);
	if (speed < 0)
		return qc_err_set(err, -EINVAL,
				  "Parameter 'speed' expects a non-negative value");
	return job_set_speed(job, speed, err);
}

static void list_jobs(struct qmp_call *call, json_object *(*show)(struct job *job))
{
	struct jobs *jobs = call->daemon->jobs;
	struct job *job = NULL;
	json_object *entry;

	call->result = json_object_new_array();
	while (jobs && (job = jobs_next(jobs, job))) {
		entry = show(job);
		if (entry)
			json_object_array_add(call->result, entry);
	}
}

int qmp_query_jobs(struct qmp_call *call, struct qc_err *err)
{
	list_jobs(call, job_json);
	return 0;
}

int qmp_query_block_jobs(struct qmp_call *call, struct qc_err *err)
{
	list_jobs(call, job_block_json);
	return 0;
}
