// SPDX-License-Identifier: GPL-2.0-or-later
/* QMP blockdev-backup: the device, as it is now, into a node that was brought in. */
#include "control-private.h"

#include <errno.h>
#include <qchain/online.h>
#include <string.h>

/* What is about QEMU's graph, or its way of copying, is taken and has no meaning. */
const struct qmp_param qmp_blockdev_backup_params[] = {
	{ "device", json_type_string, true },
	{ "target", json_type_string, true },
	{ "sync", json_type_string, true },
	{ "job-id", json_type_string, false },
	{ "speed", json_type_int, false },
	{ "on-source-error", json_type_string, false },
	{ "on-target-error", json_type_string, false },
	{ "auto-finalize", json_type_boolean, false },
	{ "auto-dismiss", json_type_boolean, false },
	{ "filter-node-name", json_type_string, false },
	{ "x-perf", json_type_object, false },
	{ NULL },
};

/* There are no bitmaps here, and a target is never a snapshot of what goes on changing. */
static int read_sync(const char *text, enum backup_sync *result, struct qc_err *err)
{
	static const char *const others[] = { "none", "incremental", "bitmap" };

	*result = strcmp(text, "top") ? BACKUP_FULL : BACKUP_TOP;
	if (!strcmp(text, "full") || !strcmp(text, "top"))
		return 0;
	for (u32 i = 0; i < ARRAY_SIZE(others); i++)
		if (!strcmp(text, others[i]))
			return qc_err_set(err, -EOPNOTSUPP, "sync mode '%s' not supported, must "
					  "be full or top", text);
	return qc_err_set(err, -EINVAL, "Parameter 'sync' does not accept value '%.80s'", text);
}

static int read_options(struct qmp_call *call, struct chain_backup_options *o, struct qc_err *err)
{
	int ret = read_sync(qmp_text_of(call->arguments, "sync"), &o->sync, err);

	if (!ret)
		ret = qmp_on_error(call, "on-source-error", &o->on_source_error, err);
	if (!ret)
		ret = qmp_on_error(call, "on-target-error", &o->on_target_error, err);
	return ret;
}

int qmp_blockdev_backup(struct qmp_call *call, struct qc_err *err)
{
	struct chain_backup_options options = {
		.node = qmp_text_of(call->arguments, "device"),
		.on_source_error = JOB_ON_ERROR_REPORT,
		.on_target_error = JOB_ON_ERROR_REPORT,
	};
	struct job_options job_options;
	struct job *job;
	int ret = read_options(call, &options, err);

	if (!ret)
		ret = qmp_job_options(call, &job_options, err);
	if (!ret)
		ret = qmp_blockdev_borrow(call->daemon, qmp_text_of(call->arguments, "target"),
					  &options.target, &options.busy, err);
	if (!ret)
		ret = chain_backup(call->daemon->target, call->daemon->jobs, &options,
				   &job_options, &job, err);
	if (!ret)
		job_start(job);
	return ret;
}
