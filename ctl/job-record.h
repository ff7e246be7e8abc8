/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Merges in the device record, before they write and until they are forgotten (rule D2). */
#ifndef CTL_JOB_RECORD_H
#define CTL_JOB_RECORD_H

#include "record.h"

/*
 * struct recorded_merge - a merge that shall begin
 * @id, @kind: as in struct record_job
 * @top, @base: paths; @base NULL: none
 * @lost: layers that are no restore points any more once it has begun
 */
struct recorded_merge {
	const char *id;
	const char *kind;
	const char *top;
	const char *base;
	char *const *lost;
	u32 nr_lost;
};

/*
 * struct job_record - the device record, open for changes of its jobs
 * @dir, @state: run folder, locked, and run record, which become the same; NULL: the
 *	chain is not served
 * A device whose top is a block device and no LV has no place for a record: the run
 * record is all that there is then. One of Proxmox VE's has a record while it has jobs.
 */
struct job_record {
	const char *device;
	const struct rundir *dir;
	json_object *state;
	char active[4096];
	bool has_place;
	struct record_place place;
	struct device_record own; /* @record, when the place has none yet */
	struct device_record *record;
	struct record_job before; /* the job with this id as it was before job_record_plan() */
	struct record_snapshot *dropped; /* by job_record_begin() */
	u32 nr_dropped;
};

/* @active: path of the device's top image */
int job_record_open(struct job_record *r, const char *device, const char *active,
		    const struct rundir *dir, json_object *state, struct qc_err *err);
/* Of a chain that is served, or was until its daemon died: all as its run record says. */
int job_record_open_served(struct job_record *r, const struct rundir *dir,
			   const struct served *served, struct qc_err *err);
void job_record_close(struct job_record *r);

/*
 * Each is durable when it returns; crash points on both sides.
 *
 * job_record_plan - it is known of; nothing is written yet. One that is begun anew stays
 *	what it is.
 * job_record_begin - from now on it may write: RECORD_WRITING or RECORD_OFFLINE;
 *	snapshots that lost layers hold are forgotten in the same write
 * job_record_withdraw - nothing was written after all: as before job_record_plan()
 * job_record_end - it has ended well, or shall be forgotten: a snapshot that @moved, the
 *	top of a commit, holds is held by its base from now on, in the same write
 * job_record_pivot - the same for a commit of the top: its base is the top from now on, in
 *	the same write; the old one is laid aside, and wiped by retire_dead(). @raw: of the base
 * Of Proxmox VE the images that have gone down are dead, too, and are removed by that.
 * job_record_fail - it has ended with @error, which is kept until somebody dismisses it
 */
int job_record_plan(struct job_record *r, const struct recorded_merge *merge, struct qc_err *err);
int job_record_begin(struct job_record *r, const struct recorded_merge *merge,
		     enum record_phase phase, struct qc_err *err);
int job_record_withdraw(struct job_record *r, const char *id, struct qc_err *err);
int job_record_end(struct job_record *r, const char *id, bool moved, struct qc_err *err);
/* Is job @id a commit of what the record calls the top? */
bool job_record_is_of_top(const struct job_record *r, const char *id);
int job_record_pivot(struct job_record *r, const char *id, bool raw, struct qc_err *err);
int job_record_fail(struct job_record *r, const char *id, const char *error, struct qc_err *err);

/* ---- what the run record says of jobs: {id, kind, phase, top, base, error} ---------------- */

/* The job with this id; NULL: none. */
json_object *job_noted(json_object *state, const char *id);
enum record_phase job_noted_phase(json_object *job);
bool job_noted_is_commit(json_object *job);
/* For people: "commit of TOP into BASE". @text gets @bytes. */
const char *job_noted_text(json_object *job, char *text, size_t bytes);

/* ---- the end of a job (job-settle.c) --------------------------------------------------- */

/*
 * job_settle - write down how job @id of the chain behind @client ended, where it is recorded
 * @row: its last row in query-jobs. Ended well: job_record_end(). Failed:
 * job_record_fail(). Cancelled: left as it is, so that the next `up` goes on with it.
 */
int job_settle(struct client *client, const char *id, json_object *row, struct qc_err *err);
/* job_settle() of all jobs of @served that have ended, or have only to say so; @dir is locked. */
int job_settle_all(const struct rundir *dir, struct served *served, struct qc_err *err);
/*
 * job_watch - job_settle() when the job ends, in a process of its own that outlives the
 * caller
 * @dismiss: a good end is dismissed, too: nobody will ask for it
 */
int job_watch(const char *name, const char *id, bool dismiss, struct qc_err *err);
/* Cancelled by somebody? @row: of query-jobs. */
bool job_was_cancelled(json_object *row);

/* ---- after a death, or a failure (job-recover.c) ----------------------------------------- */

/*
 * job_recover - what `up` does with the jobs of the record: those that were being
 * written go on, those that had written nothing are forgotten, failed ones are shown
 * What cannot be done is told; it is no reason not to serve the chain.
 */
void job_recover(const struct rundir *dir, const char *name);
/* Begin job @id anew, one that failed or was interrupted; @served is live. */
int job_begin_again(const struct rundir *dir, struct served *served, const char *id,
		    struct qc_err *err);

#endif
