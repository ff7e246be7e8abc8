/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the files of this room share. */
#ifndef JOB_PRIVATE_H
#define JOB_PRIVATE_H

#include <qchain/job.h>

/*
 * job-table.c     the two tables
 * job.c           one job's life on its loop; the only writer of job->state
 * job-verb.c      verbs, carried to the job's loop
 * job-registry.c  all jobs, on the control loop; queries and JSON
 */

struct jobs {
	struct loop *loop;
	jobs_event_fn event;
	void *arg;
	struct cds_list_head list; /* newest first */
	u32 nr;
};

void job_set_state(struct job *job, enum job_state to);
/* Refuse @verb in this state, in QEMU's words. */
int job_admit(const struct job *job, enum job_verb verb, struct qc_err *err);
/* To RUNNING and, unless it is paused already, to work. */
void job_run(struct job *job);
void job_do_cancel(struct job *job, bool force);
void job_do_finalize(struct job *job);
/* To NULL; the registry frees it. */
void job_leave(struct job *job);
/* A message of the job's loop that it is gone. */
void job_gone(struct loop *loop, struct loop_msg *msg);
void job_measure_rate(struct job *job);

/* BLOCK_JOB_@what of a block job. */
void job_block_event(struct job *job, const char *name);
void job_event(struct job *job, const char *name, json_object *data_owned);

#endif
