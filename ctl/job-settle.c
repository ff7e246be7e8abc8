// SPDX-License-Identifier: GPL-2.0-or-later
/* The end of a job of a daemon, in the device record. */
#include "job-record.h"

#include "follow.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <string.h>
#include <unistd.h>

bool job_was_cancelled(json_object *row)
{
	const char *error = json_text(row, "error");

	return error && !strcmp(error, strerror(ECANCELED));
}

/* @dir is locked, @served is as it is now. */
static int settle(const struct rundir *dir, struct served *served, json_object *row,
		  struct qc_err *err)
{
	const char *id = json_text(row, "id"), *error = json_text(row, "error");
	json_object *job = job_noted(served->record, id);
	struct job_record r;
	int ret;

	if (!job || job_was_cancelled(row))
		return 0;
	ret = job_record_open_served(&r, dir, served, err);
	if (!ret)
		ret = error ? job_record_fail(&r, id, error, err) :
			      job_record_end(&r, id, job_noted_is_commit(job), err);
	job_record_close(&r);
	return ret;
}

int job_settle(const char *name, const char *id, json_object *row, struct qc_err *err)
{
	struct rundir dir = { .lock_fd = -1 };
	struct served served = { .dev_id = -1 };
	int ret = rundir_lock(name, false, &dir, err);

	if (!ret)
		ret = served_find(name, &served, err);
	if (!ret)
		ret = settle(&dir, &served, row, err);
	served_exit(&served);
	rundir_unlock(&dir);
	return ret;
}

int job_settle_all(const struct rundir *dir, struct served *served, struct qc_err *err)
{
	json_object *rows;
	int ret = client_command(served->client, "query-jobs", NULL, false, &rows, err);

	if (ret)
		return ret;
	for (u32 i = 0; i < json_object_array_length(rows) && !ret; i++) {
		json_object *row = json_object_array_get_idx(rows, i);

		if (job_is_over(row))
			ret = settle(dir, served, row, err);
	}
	json_object_put(rows);
	return ret;
}

/* In the child: never returns. What cannot be told to anybody is found by the next `up`. */
static void watch(const char *name, const char *id, bool dismiss)
{
	struct qc_err err = { 0 };
	struct client *client;
	json_object *row = NULL;
	int null_fd = open("/dev/null", O_RDWR);

	setsid();
	dup2(null_fd, STDIN_FILENO);
	dup2(null_fd, STDOUT_FILENO);
	dup2(null_fd, STDERR_FILENO);
	/* the caller's locks and connections end with it */
	close_range(STDERR_FILENO + 1, ~0u, 0);
	if (chdir("/") == 0 && client_connect(name, &client, &err) == 0) {
		job_follow(client, id, &row, &err);
		if (row && job_is_over(row) && !job_settle(name, id, row, &err) && dismiss &&
		    !json_text(row, "error"))
			job_simple_command(client, "job-dismiss", "id", id, &err);
	}
	_exit(0);
}

int job_watch(const char *name, const char *id, bool dismiss, struct qc_err *err)
{
	pid_t child = fork();

	if (child < 0)
		return qc_err_set(err, -errno, "%s: no process that writes down its end (%m)", id);
	if (child == 0)
		watch(name, id, dismiss);
	return 0;
}
