/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Deleting one snapshot, step by step (rules D1, D2, D3, D5). */
#ifndef CTL_DELETE_H
#define CTL_DELETE_H

#include "device-images.h"
#include "image/merge-cost.h"
#include "retire.h"

/* Which way what the snapshot holds, or what was written since, goes. */
enum direction { DIRECTION_NONE, DIRECTION_COMMIT, DIRECTION_STREAM };

/*
 * struct deletion - what `delete` is asked for, and what became of it
 * @wanted: NONE: the cheaper one
 * @keep: the image that is no layer any more stays
 * @way: that was taken; NONE: nothing stood on it
 * @cost: of both ways; all 0 with @way NONE
 * @moved: bytes that were copied
 * @gone: path of the image that is no layer any more; "" not so far
 */
struct deletion {
	const char *snap;
	enum direction wanted;
	bool keep;
	bool wipe;
	bool assume_unshared;
	u64 speed;
	struct device_images images;
	enum direction way;
	struct merge_cost cost;
	u64 moved;
	char gone[4096];
	struct retire retire;
	/* what stands on what: found by delete_look() */
	u32 member; /* of the snapshot, in @images.family */
	u32 above; /* stands on it; FAMILY_NONE: nothing */
	bool merged; /* by a commit before: only the record is left to be written */
	struct qc_err beside; /* why a job does not let a commit's layers change; 0: none does */
	bool pivoted; /* by one of the active layer: the record says so, too */
};

/*
 *	delete_open     lock, records, what stands on what
 *	delete_choose   nothing has to move, or which way: both costs, the room for it
 *	delete_merge    the merge, while the device is used or not
 *	delete_finish   record; image removed
 *	delete_close
 *
 * Killed anywhere, the same deletion goes on from where it was.
 */
int delete_open(struct deletion *d, struct qc_err *err);
int delete_choose(struct deletion *d, struct qc_err *err);
int delete_merge(struct deletion *d, struct qc_err *err);
int delete_finish(struct deletion *d, struct qc_err *err);
int delete_close(struct deletion *d, struct qc_err *err);
/* All of that; @tell: before it moves anything, may be NULL. */
int delete_whole(struct deletion *d, void (*tell)(const struct deletion *d), struct qc_err *err);

#endif
