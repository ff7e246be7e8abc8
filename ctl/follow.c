// SPDX-License-Identifier: GPL-2.0-or-later
/* Waiting for a job of a daemon, with a progress bar; how it ended. */
#include "follow.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#define ASK_EVERY_NS 200000000l

json_object *job_find_row(json_object *jobs, const char *id)
{
	for (u32 i = 0; i < json_object_array_length(jobs); i++) {
		json_object *row = json_object_array_get_idx(jobs, i);
		const char *text = json_text(row, "id");

		if (text && !strcmp(text, id))
			return json_object_get(row);
	}
	return NULL;
}

int job_ask(struct client *client, const char *id, json_object **result, struct qc_err *err)
{
	json_object *jobs;
	int ret = client_command(client, "query-jobs", NULL, false, &jobs, err);

	if (ret)
		return ret;
	*result = job_find_row(jobs, id);
	json_object_put(jobs);
	return 0;
}

bool job_is_over(json_object *row)
{
	const char *status = json_text(row, "status");

	return !status || !strcmp(status, "concluded") || !strcmp(status, "null");
}

int job_is_busy(json_object *row, const char *name, struct qc_err *err)
{
	const char *id = json_text(row, "id");

	return qc_err_set(err, -EBUSY, "%s: job %s (%s) changes the chain, must have ended; "
			  "qchainctl job wait %s %s", name, id, json_text(row, "type"), name, id);
}

int job_check_none(struct client *client, const char *name, struct qc_err *err)
{
	json_object *jobs, *row;
	int ret = client_command(client, "query-jobs", NULL, false, &jobs, err);

	if (ret)
		return ret;
	for (u32 i = 0; i < json_object_array_length(jobs) && !ret; i++) {
		row = json_object_array_get_idx(jobs, i);
		if (!job_is_over(row))
			ret = job_is_busy(row, name, err);
	}
	json_object_put(jobs);
	return ret;
}

int job_simple_command(struct client *client, const char *command, const char *key,
		       const char *id, struct qc_err *err)
{
	json_object *arguments = json_object_new_object();

	json_object_object_add(arguments, key, json_object_new_string(id));
	return client_command(client, command, arguments, true, NULL, err);
}

static void draw(struct progress *progress, json_object *row, bool *begun)
{
	u64 total = json_number(row, "total-progress", 0);

	if (!*begun)
		progress_begin(progress, json_text(row, "id"), total, true);
	*begun = true;
	progress->total = total;
	progress_update(progress, json_number(row, "current-progress", 0));
}

/* An error has made it rest: of those only a full volume mends itself. */
static void tell_stopped(json_object *row, bool *told)
{
	const char *status = json_text(row, "status"), *io = json_text(row, "io-status");

	if (*told || !status || strcmp(status, "paused") || !io)
		return;
	*told = true;
	if (strcmp(io, "nospace"))
		fprintf(stderr, "qchainctl: %s: I/O error, the job rests; mend that, then "
			"qchainctl job resume NAME %s, or job cancel\n", json_text(row, "id"),
			json_text(row, "id"));
	else
		fprintf(stderr, "qchainctl: %s: no space left on the volume, the job rests until "
			"it has grown; or qchainctl job cancel NAME %s\n", json_text(row, "id"),
			json_text(row, "id"));
}

static int outcome(json_object *row, const char *id, struct qc_err *err)
{
	const char *error = json_text(row, "error");

	if (!error)
		return 0;
	return qc_err_set(err, -EIO, "%s: %s", id, error);
}

/* Somebody else may do so at the same time, or pause it: then it is asked again. */
static void complete_ready(struct client *client, json_object *row)
{
	const char *status = json_text(row, "status");
	struct qc_err ignored = { 0 };

	if (status && !strcmp(status, "ready"))
		job_simple_command(client, "job-complete", "id", json_text(row, "id"), &ignored);
}

int job_follow(struct client *client, const char *id, bool complete, json_object **result,
	       struct qc_err *err)
{
	const struct timespec pause = { .tv_nsec = ASK_EVERY_NS };
	struct progress progress;
	json_object *row = NULL;
	bool begun = false, told = false;
	int ret;

	for (;;) {
		json_object *next;

		ret = job_ask(client, id, &next, err);
		if (ret || !next)
			break;
		json_object_put(row);
		row = next;
		draw(&progress, row, &begun);
		tell_stopped(row, &told);
		if (job_is_over(row))
			break;
		if (complete)
			complete_ready(client, row);
		nanosleep(&pause, NULL);
	}
	if (begun)
		progress_end(&progress);
	if (!ret && !row)
		ret = qc_err_set(err, -ENOENT, "%s: no such job; it ended and was dismissed, or "
				 "never was", id);
	if (!ret)
		ret = outcome(row, id, err);
	if (result)
		*result = json_object_get(row);
	json_object_put(row);
	return ret;
}
