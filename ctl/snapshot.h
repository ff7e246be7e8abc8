/* SPDX-License-Identifier: GPL-2.0-or-later */
/* One snapshot of one device, step by step (rules C3, D1). */
#ifndef CTL_SNAPSHOT_H
#define CTL_SNAPSHOT_H

#include "overlay.h"

/*
 *	snapshot_open      lock, look, settle what an interrupted one has left
 *	snapshot_prepare   overlay made, formatted, opened by the daemon
 *	snapshot_record    the record says: overlay is the top (from here `up` says so)
 *	snapshot_hold      groups: the daemon starts no write any more
 *	snapshot_publish   the daemon switches
 *	snapshot_release   writes start again
 *	snapshot_settle    of Proxmox VE: LVs get their names (proxmox.h)
 *	snapshot_undo      after a failure of one of these: nothing is left
 *
 * @snap: name of the snapshot; @lv_bytes: as struct overlay
 * @thin: on a thin LV, with chunks of @chunk; 0: as the disk is large
 * @old_top, @old_image, @old_node: the layer that is to be sealed
 * @header_name: of Proxmox VE: what that layer will be called; "": it keeps its name
 * @unknown: it cannot be told whether the daemon has switched
 */
struct snapshot {
	const char *name;
	const char *snap;
	u64 lv_bytes;
	bool thin;
	u64 chunk;
	bool published;
	bool held;
	bool unknown;
	struct rundir dir;
	struct served served;
	struct record_place place;
	struct device_record *record; /* in @place */
	struct overlay overlay;
	char node[QC_MAX_NODE_NAME + 1]; /* of the overlay; "" not made */
	char old_top[4096];
	char old_image[RECORD_IMAGE_BYTES];
	char old_node[64];
	char header_name[RECORD_IMAGE_BYTES];
	u64 publish_ns; /* that the switch took, as qchainctl saw it */
};

/* Locked, and what a killed qchainctl has left of an earlier one is finished or taken back. */
int snapshot_open(struct snapshot *s, struct qc_err *err);
/* Is its name free? Of a group after all were opened: what was left is settled in each. */
int snapshot_check_name(struct snapshot *s, struct qc_err *err);
int snapshot_prepare(struct snapshot *s, struct qc_err *err);
int snapshot_record(struct snapshot *s, struct qc_err *err);
/*
 * snapshot_hold - of one device of a group
 * *@deadline_ns: 0 at the first; until when the holds are in force, for
 * snapshot_publish(), which switches nothing after it (0: there is no hold).
 */
int snapshot_hold(struct snapshot *s, u64 *deadline_ns, struct qc_err *err);
int snapshot_publish(struct snapshot *s, u64 deadline_ns, struct qc_err *err);
void snapshot_release(struct snapshot *s);
int snapshot_settle(struct snapshot *s, struct qc_err *err);
/* Does nothing when it was published or that cannot be told. */
int snapshot_undo(struct snapshot *s, struct qc_err *err);
void snapshot_close(struct snapshot *s);

#endif
