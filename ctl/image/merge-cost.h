/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What it costs to merge two neighbours of a chain, one way and the other (rule D5). */
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

/*
 * merge_cost - of the overlay at @upper and its backing at @lower
 * Neither is locked: of images in use it is an estimate.
 */
int merge_cost(const char *upper, const char *lower, struct merge_cost *result,
	       struct qc_err *err);

#endif
