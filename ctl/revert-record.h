/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a revert makes of a record, also after whoever began it was killed. */
#ifndef CTL_REVERT_RECORD_H
#define CTL_REVERT_RECORD_H

#include "family.h"

/*
 * revert_branch - the images that go when the device shows snapshot image @target
 * From the top down, as far as nothing else needs them: @target, what is below it, and
 * what other images stand on stay. *@result: members, malloc'ed. -ENOENT, -ENOMEM.
 */
int revert_branch(const struct family *family, const struct device_record *record, u32 target,
		  u32 **result, u32 *nr, struct qc_err *err);

/* The revert that @record speaks of has taken place: write what that means, as one change. */
int revert_apply(const struct record_place *place, struct device_record *record,
		 struct qc_err *err);

/*
 * revert_settle - somebody who reverted was killed: did it take place?
 * @served: path of what the daemon serves as the top; NULL: there is none, the overlay's
 *	header says it
 *
 * Writes the record one way or the other, and tells which. Nothing to do where no revert
 * is under way. An overlay that did not become the top is left to overlay_clean().
 */
int revert_settle(const struct record_place *place, struct device_record *record,
		  const char *served, struct qc_err *err);

/*
 * revert_settle_served - the same for a device that is served, whose lock is held; the run
 * record is brought up to date, too, and the daemon's node of the overlay goes
 */
int revert_settle_served(struct served *served, const struct rundir *dir,
			 const struct record_place *place, struct device_record *record,
			 struct qc_err *err);

/* The same for the run record @state of a daemon that died: its top, from the header. */
void revert_settle_state(json_object *state);

#endif
