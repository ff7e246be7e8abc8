/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The helper of rule E1: a process that makes the thin LVs of a chain larger, and smaller. */
#ifndef CTL_GROW_H
#define CTL_GROW_H

#include "shrink.h"

/*
 * A daemon runs no lvm: lvextend would wait for the device that waits for it. So a chain
 * with a thin LV has a helper, started before it is needed, locked in memory and without
 * anything open that could lie on the device. It is two processes: one that looks after the
 * other (grow.c), one that talks to the daemon and runs lvm (grow-volume.c). Killed or not,
 * it does the same again: what it wants is computed from what is there. Layers that were sealed
 * give back what they do not use, in a third process (shrink.h).
 *
 * File grow.lock in the chain's run folder: held by both, with the number of the second. When
 * the folder is gone they end; when it gets another name they follow it.
 */

/*
 * grow_start - the helper of @dir's chain, if @record says that it has a thin LV and there
 * is none yet
 * @dir: locked. A failure is told to the user: the device works, but does not grow.
 */
void grow_start(const struct rundir *dir, json_object *record);

/* The process that makes LVs of chain @name larger; 0: there is none. */
pid_t grow_process(const char *name);

/* ---- grow-volume.c ---------------------------------------------------------------------- */

#define GROW_VOLUMES 8u

/*
 * struct grow_volume - a layer that is being written to, and its LV
 * @writer: who does it, as the daemon numbers them: of one name there may be another later
 * @chunk: 0: it does not grow, leave it alone
 * @least: the chunk of its tag
 * @thick: beyond that it never has to grow
 * @base_end, @base_ns: how far it was allocated, and when, as the rate is counted from there
 * @told_bytes: the daemon was told to look, when the LV was so long
 * @retry_ns, @pause_ns: not extended before, after a failure
 */
struct grow_volume {
	char node[QC_MAX_NODE_NAME + 1];
	char vg[128];
	char lv[128];
	s64 writer;
	u64 virtual_size;
	u64 thick;
	u64 least;
	u64 chunk;
	u64 base_end;
	u64 base_ns;
	u64 told_bytes;
	u64 retry_ns;
	u64 pause_ns;
};

/*
 * @complained: that LVM does not answer was logged
 * @lock_fd: of grow.lock
 */
struct grow_volumes {
	struct grow_volume all[GROW_VOLUMES];
	u32 nr;
	bool complained;
	int lock_fd;
	struct shrinker shrinker;
};

/*
 * grow_look - what a daemon writes to: arm thresholds, extend what wants it
 * @next_ms: when to look again at the latest
 *
 * -errno: the daemon does not answer any more. What LVM refuses is told to the daemon.
 */
int grow_look(struct grow_volumes *volumes, struct client *client, int *next_ms,
	      struct qc_err *err);

#endif
