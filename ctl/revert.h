/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Reverting a device to a snapshot, step by step (rule D1). */
#ifndef CTL_REVERT_H
#define CTL_REVERT_H

#include "device-images.h"
#include "overlay.h"
#include "retire.h"

/*
 * struct revert - what `revert` is asked for, and what became of it
 * @keep: what the device holds now is called so from then on; NULL: it is dropped
 * @drop_snapshots: also newer snapshots that only the dropped branch holds
 * @force: also while the device is used
 * @overlay: the new top, @node: of it in the daemon
 * @nr_dropped: images that are layers no more
 * @settle_later: it is not known whether the daemon has switched
 */
struct revert {
	const char *snap;
	const char *keep;
	bool drop_snapshots;
	bool force;
	bool wipe;
	bool assume_unshared;
	u64 lv_bytes;
	struct device_images images;
	struct overlay overlay;
	char node[QC_MAX_NODE_NAME + 1];
	u32 nr_dropped;
	bool settle_later;
	struct retire retire;
};

/*
 *	revert_open     lock, records; what is to be dropped, and whether it may be
 *	revert_prepare  a new overlay stands on the snapshot's image, durably
 *	revert_switch   the device shows it, the record says so
 *	revert_finish   images that are layers no more are removed
 *	revert_close    also after a failure: then nothing is left
 */
int revert_open(struct revert *r, struct qc_err *err);
int revert_prepare(struct revert *r, struct qc_err *err);
int revert_switch(struct revert *r, struct qc_err *err);
int revert_finish(struct revert *r, struct qc_err *err);
int revert_close(struct revert *r, bool failed, struct qc_err *err);

#endif
