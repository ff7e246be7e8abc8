/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What it costs to merge neighbours of a chain, one way and the other (rule D5). */
#ifndef CTL_IMAGE_MERGE_COST_H
#define CTL_IMAGE_MERGE_COST_H

#include "offline.h"

/*
 * struct merge_side - one direction
 * @bytes: of data that have to move
 * @needed: what the image that receives must newly allocate for it, tables and what
 *	commits have under way included; 0: nothing moves
 * @room: what its volume or file system still has for it
 */
struct merge_side {
	u64 bytes;
	u64 needed;
	u64 room;
};

struct merge_cost {
	struct merge_side commit; /* upper goes down into lower */
	struct merge_side stream; /* lower comes up into upper */
};

/* The layer at @path and those below it, @nr_layers in all. */
struct merge_part {
	const char *path;
	u32 nr_layers;
};

/*
 * merge_cost - of the layers @upper and those below them, @lower
 * @options: which backing names are followed; NULL: of one layer each, none is
 * Neither is locked: of images in use it is an estimate.
 */
int merge_cost(const struct merge_part *upper, const struct merge_part *lower,
	       const struct offline_options *options, struct merge_cost *result,
	       struct qc_err *err);

/* The cheaper way is down; one that has the room goes before one that has not. */
bool merge_cost_is_commit(const struct merge_cost *cost);

/*
 * merge_make_room - so that the image at @path can take what @side needs
 * An LV is made larger by what is missing. -ENOSPC with both numbers: that, or what
 * it is on, has no room for it.
 */
int merge_make_room(const char *path, const struct merge_side *side, struct qc_err *err);

#endif
