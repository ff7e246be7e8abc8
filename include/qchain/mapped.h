/* SPDX-License-Identifier: GPL-2.0-or-later OR MIT */
/* Tables of device-mapper, and the devices that are made of them. Room lvm/. */
#ifndef QCHAIN_MAPPED_H
#define QCHAIN_MAPPED_H

#include <qchain/err.h>
#include <qchain/types.h>
#include <sys/types.h>

/*
 * What the kernel allows is 1048576 targets in a table (DM_MAX_TARGETS); each takes it
 * some 200 bytes, and a search of one step more for twice as many.
 */
#define MAPPED_MAX_TARGETS 1000000u
#define MAPPED_DEFAULT_TARGETS 131072u

enum mapped_kind {
	MAPPED_REST, /* by the device that has a daemon behind it, at the same place */
	MAPPED_ZERO,
	MAPPED_LINEAR, /* @device from @offset on */
};

/* struct mapped_row - one target; rows tile the device. Bytes throughout. */
struct mapped_row {
	u64 start;
	u64 bytes;
	u64 offset; /* MAPPED_LINEAR */
	u32 device; /* MAPPED_LINEAR: an index, the caller's */
	u8 kind; /* enum mapped_kind */
};

struct mapped_table {
	struct mapped_row *rows;
	u32 nr;
	u32 room;
};

/* Zeroed it is empty. mapped_table_exit() leaves it so. */
void mapped_table_exit(struct mapped_table *table);

/*
 * mapped_table_add - @row stands behind what is there, its start is set; joined with the
 * last one where one target can be both. -ENOMEM
 * mapped_table_align - what does not begin and end at a multiple of @align, on its device
 * too, becomes part of the rest: a table that would be refused. A power of two. -ENOMEM
 * mapped_table_limit - no more than @most targets, 1 at least: the larger stretches stay,
 * what lies between them becomes part of the rest. -ENOMEM
 */
int mapped_table_add(struct mapped_table *table, const struct mapped_row *row);
int mapped_table_align(struct mapped_table *table, u32 align);
int mapped_table_limit(struct mapped_table *table, u32 most);

/* Bytes of all rows of @kind. */
u64 mapped_table_bytes(const struct mapped_table *table, enum mapped_kind kind);

/*
 * struct mapped_device - of one that exists
 * @open: how often
 * @deferred: it goes with the last who closes it
 */
struct mapped_device {
	dev_t rdev;
	u32 open;
	bool deferred;
};

/*
 * mapped_create - /dev/mapper/@name, read-only, with the UUID QCHAIN-@name
 * @devices: of MAPPED_LINEAR; @rest: of MAPPED_REST
 * @scan: the host may look at what is on it, as it does with any disk
 *
 * The devices of the table are claimed as long as it stands. Returns when udev has made the
 * links. -EEXIST: there is one of that name. -EBUSY: somebody else has claimed one of them.
 * mapped_find - -ENOENT: there is none of that name, or it is not ours
 * mapped_remove - -EBUSY: it is open. @deferred: then it goes with the last who closes it
 */
int mapped_create(const char *name, const struct mapped_table *table, const dev_t *devices,
		  dev_t rest, bool scan, struct qc_err *err);
int mapped_find(const char *name, struct mapped_device *result, struct qc_err *err);
int mapped_remove(const char *name, bool deferred, struct qc_err *err);

#endif
