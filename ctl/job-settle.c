// SPDX-License-Identifier: GPL-2.0-or-later
/* The end of a job of a daemon, in the device record. */
#include "job-record.h"

#include "follow.h"
#include "proxmox.h"
#include "retire.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <qchain/overlays.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* What a pivot still has to do is the closing of images. */
#define ENDING_TRIES 500
#define ENDING_PAUSE_NS 20000000l

bool job_was_cancelled(json_object *row)
{
	const char *error = json_text(row, "error");

	return error && !strcmp(error, strerror(ECANCELED));
}

/* Is the image at @path the active layer, and raw? One that was ready and cancelled is not. */
static int is_active(const struct served *served, const char *path, bool *result, bool *raw,
		     struct qc_err *err)
{
	json_object *nodes, *node;
	const char *file, *driver;
	struct image_ident x, y;
	int ret = client_command(served->client, "query-named-block-nodes", NULL, false, &nodes,
				 err);

	if (ret)
		return ret;
	node = json_object_array_get_idx(nodes, 0);
	file = json_text(node, "file");
	driver = json_text(node, "drv");
	*raw = driver && !strcmp(driver, "raw");
	*result = file && path && !image_ident_of(file, &x) && !image_ident_of(path, &y) &&
		  image_ident_same(&x, &y);
	json_object_put(nodes);
	return 0;
}

/* What cannot be wiped, or removed, now is by the next `up`. */
static void retire(struct job_record *r)
{
	struct retire done = { .nr = 0 };
	struct qc_err err = { 0 };

	if (r->has_place && retire_dead(&r->place, r->record, &done, &err))
		print_error(&err);
}

/* A commit of the active layer: the base is it now, or the commit goes on some day. */
static int settle_pivot(struct job_record *r, const struct served *served, json_object *job,
			struct qc_err *err)
{
	bool pivoted = false, raw;
	int ret = is_active(served, json_text(job, "base"), &pivoted, &raw, err);

	if (!ret && pivoted)
		ret = job_record_pivot(r, json_text(job, "id"), raw, err);
	return ret;
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
	if (!ret && error)
		ret = job_record_fail(&r, id, error, err);
	else if (!ret && job_record_is_of_top(&r, id))
		ret = settle_pivot(&r, served, job, err);
	else if (!ret)
		ret = job_record_end(&r, id, job_noted_is_commit(job), err);
	if (!ret && !error)
		retire(&r);
	job_record_close(&r);
	return ret ? ret : proxmox_settle_served(served, dir, err);
}

int job_settle(struct client *client, const char *id, json_object *row, struct qc_err *err)
{
	struct rundir dir = { .lock_fd = -1 };
	struct served served = { .dev_id = -1 };
	int ret = client_lock_chain(client, &dir, err);

	if (!ret)
		ret = served_find(dir.name, &served, err);
	if (!ret)
		ret = settle(&dir, &served, row, err);
	served_exit(&served);
	rundir_unlock(&dir);
	return ret;
}

/* A commit of the active layer whose base is that already ends in a moment. */
static int is_ending(const struct served *served, json_object *row, bool *result,
		     struct qc_err *err)
{
	json_object *job = job_noted(served->record, json_text(row, "id"));
	const char *top = job ? json_text(job, "top") : NULL;
	bool raw;

	if (!top || !job_noted_is_commit(job) || strcmp(top, served_top(served)))
		return 0;
	return is_active(served, json_text(job, "base"), result, &raw, err);
}

static int settle_rows(const struct rundir *dir, struct served *served, json_object *rows,
		       bool *ending, struct qc_err *err)
{
	int ret = 0;

	for (u32 i = 0; i < json_object_array_length(rows) && !ret; i++) {
		json_object *row = json_object_array_get_idx(rows, i);

		ret = job_is_over(row) ? settle(dir, served, row, err) :
					 is_ending(served, row, ending, err);
	}
	return ret;
}

int job_settle_all(const struct rundir *dir, struct served *served, struct qc_err *err)
{
	const struct timespec pause = { .tv_nsec = ENDING_PAUSE_NS };
	json_object *rows;
	bool ending = true;
	int ret = 0;

	for (u32 i = 0; i < ENDING_TRIES && ending && !ret; i++) {
		if (i)
			nanosleep(&pause, NULL);
		ending = false;
		ret = client_command(served->client, "query-jobs", NULL, false, &rows, err);
		if (ret)
			break;
		ret = settle_rows(dir, served, rows, &ending, err);
		json_object_put(rows);
	}
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
		job_follow(client, id, true, &row, &err);
		if (row && job_is_over(row) && !job_settle(client, id, row, &err) && dismiss &&
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
