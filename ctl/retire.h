/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Removing images that are no layers any more. */
#ifndef CTL_RETIRE_H
#define CTL_RETIRE_H

#include "record.h"

/*
 * struct retire - how, and what became of it
 * @speed: bytes a second at most, 0: no limit
 * @wiped, @nr: bytes that were zeroed; images removed
 */
struct retire {
	u64 speed;
	u64 wiped;
	u32 nr;
};

/*
 * retire_dead - remove every image that @record calls dead, with its header wiped, so
 * that nothing of it can be taken for a layer again; then the record forgets it
 * Those that are to be wiped are: all that was ever written to them, of a volume all
 * that its refcounts have ever reached. Those that are kept lose their header only.
 *
 * An image that somebody has open stays, and stays in the record; the rest goes on.
 */
int retire_dead(const struct record_place *place, struct device_record *record,
		struct retire *retire, struct qc_err *err);

/* The image at @path is kept, but is none any more: its header goes, @wipe: all of it. */
int retire_header(const char *path, bool wipe, struct retire *retire, struct qc_err *err);

#endif
