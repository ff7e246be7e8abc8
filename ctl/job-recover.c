// SPDX-License-Identifier: GPL-2.0-or-later
/* Merges that a record knows of and no daemon works on: they go on, or are forgotten. */
#include "job-record.h"

#include "merge.h"
#include "proxmox.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static void tell(const char *name, json_object *job, const char *what)
{
	char text[2048];

	fprintf(stderr, "qchainctl: %s: job %s, %s: %s\n", name, json_text(job, "id"),
		job_noted_text(job, text, sizeof(text)), what);
}

static int write_end(const struct rundir *dir, const struct served *served, json_object *job,
		     const char *error, bool moved, struct qc_err *err)
{
	const char *id = json_text(job, "id");
	struct job_record *r = calloc(1, sizeof(*r));
	int ret = r ? job_record_open_served(r, dir, served, err) :
		      qc_err_set(err, -ENOMEM, "%s: out of memory", served->name);

	if (!ret)
		ret = error ? job_record_fail(r, id, error, err) :
			      job_record_end(r, id, moved, err);
	if (r)
		job_record_close(r);
	free(r);
	return ret;
}

static int forget(const struct rundir *dir, const struct served *served, json_object *job,
		  bool done, struct qc_err *err)
{
	return write_end(dir, served, job, NULL, done && job_noted_is_commit(job), err);
}

static int begin_again(const struct rundir *dir, const struct served *served, json_object *job,
		       struct qc_err *err)
{
	struct qc_err second = { 0 };
	bool done = false;
	int ret = merge_is_done(served, job, &done, err);

	if (!ret && done)
		return forget(dir, served, job, true, err);
	if (!ret)
		ret = merge_again(dir, served, job, err);
	if (ret && write_end(dir, served, job, err->msg, false, &second))
		print_error(&second);
	return ret;
}

/* qchainctl itself has written; whether it was all cannot always be told. */
static int recover_offline(const struct rundir *dir, const struct served *served,
			   json_object *job, struct qc_err *err)
{
	bool done = false;
	int ret = merge_is_done(served, job, &done, err);

	if (!ret && done)
		return forget(dir, served, job, true, err);
	tell(served->name, job, "was interrupted while the device was down; finish it the same "
	     "way, or dismiss it");
	return ret;
}

int job_begin_again(const struct rundir *dir, struct served *served, const char *id,
		    struct qc_err *err)
{
	json_object *job = job_noted(served->record, id);
	int ret;

	if (!job)
		return qc_err_set(err, -ENOENT, "%s: no such job; see qchainctl job list %s", id,
				  served->name);
	json_object_get(job); /* the run record's list is made anew */
	ret = begin_again(dir, served, job, err);
	json_object_put(job);
	return ret;
}

static int recover_one(const struct rundir *dir, const struct served *served, json_object *job,
		       struct qc_err *err)
{
	int ret;

	switch (job_noted_phase(job)) {
	case RECORD_PLANNED:
		tell(served->name, job, "had written nothing, forgotten");
		return forget(dir, served, job, false, err);
	case RECORD_WRITING:
		ret = begin_again(dir, served, job, err);
		if (!ret)
			tell(served->name, job, "was interrupted, goes on");
		return ret;
	case RECORD_OFFLINE:
		return recover_offline(dir, served, job, err);
	default:
		tell(served->name, job, json_text(job, "error") ? json_text(job, "error") :
								  "has failed");
		return 0;
	}
}

static bool is_read_only(const struct served *served)
{
	return json_flag(served->status, "read-only");
}

/* The list changes under the loop: a copy of it is walked. */
static void recover_all(const struct rundir *dir, const struct served *served)
{
	json_object *list, *copy = json_object_new_array();
	struct qc_err err;
	u32 nr = 0;

	list = json_list(served->record, "jobs", &nr);
	for (u32 i = 0; i < nr; i++)
		json_object_array_add(copy, json_object_get(json_object_array_get_idx(list, i)));
	for (u32 i = 0; i < nr; i++) {
		err.code = 0;
		if (recover_one(dir, served, json_object_array_get_idx(copy, i), &err))
			print_error(&err);
	}
	json_object_put(copy);
}

void job_recover(const struct rundir *dir, const char *name)
{
	struct qc_err err = { 0 };
	struct served served;

	if (served_find(name, &served, &err)) {
		print_error(&err);
		return;
	}
	if (served.state == SERVED_LIVE && !is_read_only(&served))
		recover_all(dir, &served);
	if (served.state == SERVED_LIVE && proxmox_settle_served(&served, dir, &err))
		print_error(&err);
	served_exit(&served);
}
