/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Jobs of a daemon, for the verbs that start one and for `job`. */
#ifndef CTL_FOLLOW_H
#define CTL_FOLLOW_H

#include "served.h"

/* The row of job @id in the answer to query-jobs, to be put; NULL: none. */
json_object *job_find_row(json_object *jobs, const char *id);
/* The same, asked now; *@result NULL: there is no such job. */
int job_ask(struct client *client, const char *id, json_object **result, struct qc_err *err);
/* -EBUSY: a job works on chain @name, and must have ended. */
int job_check_none(struct client *client, const char *name, struct qc_err *err);
/* That error, of the job of @row. */
int job_is_busy(json_object *row, const char *name, struct qc_err *err);
/* Concluded? A row is a job's object in query-jobs. */
bool job_is_over(json_object *row);
/* A command whose only argument names the job. */
int job_simple_command(struct client *client, const char *command, const char *key,
		       const char *id, struct qc_err *err);

/*
 * job_follow - wait until job @id is concluded, with a progress bar on a terminal
 * @complete: one that is ready is completed; else it stays so until somebody does that
 * @result: its last row, to be put (NULL when there never was one); may be NULL
 *
 * 0; -EIO: it failed, with its own words; others: it could not be followed. It
 * is not dismissed.
 */
int job_follow(struct client *client, const char *id, bool complete, json_object **result,
	       struct qc_err *err);

#endif
