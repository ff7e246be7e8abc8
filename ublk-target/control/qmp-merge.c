// SPDX-License-Identifier: GPL-2.0-or-later
/* QMP block-stream, block-commit: merges of the chain as jobs. */
#include "control-private.h"

#include <errno.h>
#include <qchain/job.h>
#include <qchain/online.h>
#include <string.h>

const struct qmp_param qmp_block_stream_params[] = {
	{ "device", json_type_string, true },
	{ "job-id", json_type_string, false },
	{ "base", json_type_string, false },
	{ "base-node", json_type_string, false },
	{ "bottom", json_type_string, false },
	{ "backing-file", json_type_string, false },
	{ "speed", json_type_int, false },
	{ "on-error", json_type_string, false },
	{ "auto-finalize", json_type_boolean, false },
	{ "auto-dismiss", json_type_boolean, false },
	{ NULL },
};

const struct qmp_param qmp_block_commit_params[] = {
	{ "device", json_type_string, true },
	{ "job-id", json_type_string, false },
	{ "base", json_type_string, false },
	{ "base-node", json_type_string, false },
	{ "top", json_type_string, false },
	{ "top-node", json_type_string, false },
	{ "backing-file", json_type_string, false },
	{ "speed", json_type_int, false },
	{ "on-error", json_type_string, false },
	{ "auto-finalize", json_type_boolean, false },
	{ "auto-dismiss", json_type_boolean, false },
	{ NULL },
};

static bool is_false(const struct qmp_call *call, const char *key)
{
	json_object *value;

	return json_object_object_get_ex(call->arguments, key, &value) &&
	       !json_object_get_boolean(value);
}

int qmp_on_error(const struct qmp_call *call, const char *key, enum job_on_error *result,
		 struct qc_err *err)
{
	static const char *const names[] = {
		[JOB_ON_ERROR_REPORT] = "report", [JOB_ON_ERROR_IGNORE] = "ignore",
		[JOB_ON_ERROR_ENOSPC] = "enospc", [JOB_ON_ERROR_STOP] = "stop",
	};
	const char *text = qmp_text_of(call->arguments, key);

	if (!text || !strcmp(text, "auto"))
		return 0;
	for (u32 i = 0; i < ARRAY_SIZE(names); i++) {
		if (strcmp(text, names[i]))
			continue;
		*result = i;
		return 0;
	}
	return qc_err_set(err, -EINVAL, "Parameter '%s' does not accept value '%.80s'", key, text);
}

int qmp_job_options(const struct qmp_call *call, struct job_options *result, struct qc_err *err)
{
	json_object *value;
	s64 speed = 0;

	*result = (struct job_options){
		.id = qmp_text_of(call->arguments, "job-id"),
		.manual_finalize = is_false(call, "auto-finalize"),
		.manual_dismiss = is_false(call, "auto-dismiss"),
	};
	if (json_object_object_get_ex(call->arguments, "speed", &value))
		speed = json_object_get_int64(value);
	if (speed < 0)
		return qc_err_set(err, -EINVAL,
				  "Parameter 'speed' expects a non-negative value");
	result->speed = speed;
	if (!result->id)
		return qc_err_set(err, -EINVAL, "An explicit job ID is required for this node");
	/* before anything is prepared for it */
	return jobs_check_id(call->daemon->jobs, result->id, err);
}

/* Without on-error a full volume pauses the job (rule D5), other errors end it. */
static int read_merge_options(const struct qmp_call *call, struct job_options *result,
			      struct qc_err *err)
{
	enum job_on_error on_error = JOB_ON_ERROR_ENOSPC;
	int ret = qmp_on_error(call, "on-error", &on_error, err);

	if (!ret)
		ret = qmp_job_options(call, result, err);
	result->on_error = on_error;
	return ret;
}

/* What cannot be done beside any merge (rule D6). */
int qmp_check_no_merge(const struct daemon *daemon, const char *what, struct qc_err *err)
{
	struct job *job = daemon->jobs ? jobs_unfinished(daemon->jobs) : NULL;

	if (!job)
		return 0;
	return qc_err_set(err, -EBUSY, "%s: job %s (%s) changes the chain, must have ended; wait "
			  "for it, or cancel it", what, job->id, job->type->name);
}

static bool shows(struct target *target, const char *node)
{
	json_object *nodes = qmp_nodes(target), *name;
	bool found = !node;

	for (u32 i = 0; i < json_object_array_length(nodes) && !found; i++)
		found = json_object_object_get_ex(json_object_array_get_idx(nodes, i), "node-name",
						  &name) &&
			!strcmp(json_object_get_string(name), node);
	json_object_put(nodes);
	return found;
}

/* Rule D3: layer @node (NULL: the lowest) is written; one that is named by its file is locked. */
static int check_not_shown(const struct qmp_call *call, const char *node, struct qc_err *err)
{
	const struct daemon *daemon = call->daemon;

	for (u32 i = 0; i < daemon->nr_exports; i++) {
		struct transport *t = daemon->exports[i];

		if (t->target != daemon->target && shows(t->target, node))
			return qc_err_set(err, -EBUSY, "%s: export '%s' shows it, must not be "
					  "written meanwhile; remove that export first",
					  node ? node : "the lowest layer", t->id);
	}
	return 0;
}

static int check_base(const struct qmp_call *call, struct qc_err *err)
{
	if (qmp_text_of(call->arguments, "base") && qmp_text_of(call->arguments, "base-node"))
		return qc_err_set(err, -EINVAL,
				  "'base' and 'base-node' cannot be specified at the same time");
	if (qmp_text_of(call->arguments, "base") && qmp_text_of(call->arguments, "bottom"))
		return qc_err_set(err, -EINVAL,
				  "'base' and 'bottom' cannot be specified at the same time");
	if (qmp_text_of(call->arguments, "bottom") && qmp_text_of(call->arguments, "base-node"))
		return qc_err_set(err, -EINVAL,
				  "'bottom' and 'base-node' cannot be specified at the same time");
	return 0;
}

/* What all merges have in common: what is asked first, and the start. */
static int run_merge(struct qmp_call *call,
		     int (*create)(struct qmp_call *call, const struct job_options *options,
				   struct job **result, struct qc_err *err),
		     struct qc_err *err)
{
	struct job_options options;
	struct job *job;
	int ret = read_merge_options(call, &options, err);

	if (!ret)
		ret = create(call, &options, &job, err);
	if (!ret)
		job_start(job);
	return ret;
}

static int create_stream(struct qmp_call *call, const struct job_options *job_options,
			 struct job **result, struct qc_err *err)
{
	struct chain_stream_options options = {
		.node = qmp_text_of(call->arguments, "device"),
		.base = qmp_text_of(call->arguments, "base"),
		.base_node = qmp_text_of(call->arguments, "base-node"),
		.bottom = qmp_text_of(call->arguments, "bottom"),
		.backing_name = qmp_text_of(call->arguments, "backing-file"),
	};

	return chain_stream(call->daemon->target, call->daemon->jobs, &options, job_options,
			    result, err);
}

int qmp_block_stream(struct qmp_call *call, struct qc_err *err)
{
	int ret = check_base(call, err);

	if (!ret)
		ret = check_not_shown(call, qmp_text_of(call->arguments, "device"), err);
	return ret ? ret : run_merge(call, create_stream, err);
}

static int check_range(const struct qmp_call *call, struct qc_err *err)
{
	if (qmp_text_of(call->arguments, "top") && qmp_text_of(call->arguments, "top-node"))
		return qc_err_set(err, -EINVAL, "'top-node' and 'top' are mutually exclusive");
	if (qmp_text_of(call->arguments, "base") && qmp_text_of(call->arguments, "base-node"))
		return qc_err_set(err, -EINVAL, "'base-node' and 'base' are mutually exclusive");
	return 0;
}

static int create_commit(struct qmp_call *call, const struct job_options *job_options,
			 struct job **result, struct qc_err *err)
{
	struct chain_commit_options options = {
		.node = qmp_text_of(call->arguments, "device"),
		.top = qmp_text_of(call->arguments, "top"),
		.top_node = qmp_text_of(call->arguments, "top-node"),
		.base = qmp_text_of(call->arguments, "base"),
		.base_node = qmp_text_of(call->arguments, "base-node"),
		.backing_name = qmp_text_of(call->arguments, "backing-file"),
	};

	return chain_commit(call->daemon->target, call->daemon->jobs, &options, job_options,
			    result, err);
}

int qmp_block_commit(struct qmp_call *call, struct qc_err *err)
{
	const char *device = qmp_text_of(call->arguments, "device");
	int ret = check_range(call, err);

	if (!ret && !chain_has_node(call->daemon->target, device)) {
		call->error_class = QMP_DEVICE_NOT_FOUND;
		return qc_err_set(err, -ENOENT, "Device '%.80s' not found", device);
	}
	if (!ret && !qmp_text_of(call->arguments, "base"))
		ret = check_not_shown(call, qmp_text_of(call->arguments, "base-node"), err);
	return ret ? ret : run_merge(call, create_commit, err);
}
