/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Merges of layers of a chain that is served: jobs of its daemon. */
#ifndef CTL_MERGE_H
#define CTL_MERGE_H

#include "image/offline.h"
#include "served.h"

/*
 * struct served_merge - what `stream` or `commit` is asked for
 * @name: of the chain
 * @top: commit: the last layer that goes down; stream: what receives, NULL: the active one
 * @base: the layer that stays below, and with commit receives. Layers are named by
 *	node name, path, VG/LV, or name of a snapshot. NULL: stream: none stays;
 *	commit: the one below top
 * @detach: do not wait
 * @drop_snapshots, @assume_unshared: as in the offline form of commit
 * @offline: how the images around are looked at
 */
struct served_merge {
	const char *name;
	const char *top;
	const char *base;
	u64 speed;
	bool detach;
	bool json;
	bool drop_snapshots;
	bool assume_unshared;
	const struct offline_options *offline;
};

/* Both return the exit status. */
int merge_stream_served(const struct served_merge *merge);
int merge_commit_served(const struct served_merge *merge);

/* ---- for other verbs ------------------------------------------------------------- */

struct served_job;

/*
 * merge_start - begin the same; @kind: "commit" or "stream"
 * The caller holds the chain's lock, @dir, and has made sure that nobody else stands on what
 * changes, and that no snapshot is lost unknown. @merge is used until merge_end().
 *
 * merge_end - follow it to its end and dismiss it, @wait; *@moved: bytes
 */
int merge_start(const struct served_merge *merge, const struct rundir *dir, const char *kind,
		struct served_job **result, struct qc_err *err);
int merge_end(struct served_job *job_owned, bool wait, u64 *moved, struct qc_err *err);
/*
 * merge_again - begin a merge of the run record anew, one that is not done
 * @job: of the run record; @served is as it is now, @dir is locked
 * merge_is_done - its layers lie between no more: the header that ends it was written
 */
int merge_again(const struct rundir *dir, const struct served *served, json_object *job,
		struct qc_err *err);
int merge_is_done(const struct served *served, json_object *job, bool *done, struct qc_err *err);

#endif
