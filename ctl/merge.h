/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Merges of layers of a chain that is served: jobs of its daemon. */
#ifndef CTL_MERGE_H
#define CTL_MERGE_H

#include "ctl.h"

/*
 * struct served_merge - what `stream` is asked for
 * @name: of the chain
 * @base: the layer that stays below: node name, path, VG/LV, or name of a snapshot;
 *	NULL: none stays
 * @detach: do not wait
 */
struct served_merge {
	const char *name;
	const char *base;
	u64 speed;
	bool detach;
	bool json;
};

/* Returns the exit status. */
int merge_stream_served(const struct served_merge *merge);

#endif
