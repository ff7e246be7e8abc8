/* SPDX-License-Identifier: GPL-2.0-or-later */
/* stream and commit of volumes of Proxmox VE, which are deletions of snapshots. */
#ifndef CTL_PROXMOX_MERGE_H
#define CTL_PROXMOX_MERGE_H

#include "ctl.h"

/*
 * struct proxmox_merge - what `stream` or `commit` is asked for
 * @name: of the chain, or of the volume that nobody serves; @vg: where that is, NULL: served
 * @top: stream: what receives; commit: the last that goes down; NULL: the volume itself
 * @base: stream: the first that stays below; NULL: none; commit: what receives; NULL: the
 *	next one. Both by the name of a snapshot, path, VG/LV or LV.
 */
struct proxmox_merge {
	const char *name;
	const char *vg;
	bool up; /* stream */
	const char *top;
	const char *base;
	u64 speed;
	bool drop_snapshots;
	bool assume_unshared;
	bool detach; /* refused: somebody has to rename afterwards */
	bool json;
};

/*
 * proxmox_merge - returns the exit status
 * Every snapshot between goes, by its own deletion, which moves its data the way that is
 * asked for. Interrupted, those that are done are gone.
 */
int proxmox_merge(const struct verb *verb, const struct proxmox_merge *merge);

/* Is the chain @name, which is served or was, a volume of Proxmox VE's? */
bool proxmox_serves(const char *name);
/*
 * The same of the image at @path: then @result's name and VG are set, to be freed.
 * Other images of Proxmox VE's, and those of other managers, may not be merged: -EOPNOTSUPP.
 */
int proxmox_merge_of(const char *path, struct proxmox_merge *result, bool *is_volume,
		     struct qc_err *err);
void proxmox_merge_exit(struct proxmox_merge *merge);

#endif
