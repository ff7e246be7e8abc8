/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Freezing the file systems that are mounted from a device, for an instant (rule E4). */
#ifndef CTL_FREEZE_H
#define CTL_FREEZE_H

#include <qchain/err.h>
#include <qchain/types.h>
#include <sys/types.h>

/* They thaw after so long, whatever happens. */
#define FREEZE_MS 2000

/*
 * struct freeze - file systems that a child of ours holds frozen
 * The child does it, locked in memory, so that they thaw also when we die.
 */
struct freeze {
	pid_t child; /* 0: none */
	int to_child;
	int from_child;
};

/*
 * freeze_begin - freeze all file systems on the block devices @devices, on their
 * partitions, and on what is stacked on them (LVM, md, crypt)
 * @nr: of devices
 *
 * All or none. From here to freeze_end() nothing may be written to a file, and
 * nothing be run: it may lie on one of them. -ENOENT: none is mounted.
 * What stands on a device and cannot be frozen is named on standard error before.
 */
int freeze_begin(const char *const *devices, u32 nr, struct freeze *result, struct qc_err *err);

/*
 * freeze_end - thaw
 * -ETIMEDOUT: they had been frozen for too long, and thawed before this call.
 */
int freeze_end(struct freeze *freeze, struct qc_err *err);

#endif
