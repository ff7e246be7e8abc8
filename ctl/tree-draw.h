/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Drawing of images and what stands on what, for `tree` and `scan`. */
#ifndef CTL_TREE_DRAW_H
#define CTL_TREE_DRAW_H

#include "ctl.h"

/*
 *	*  disk.1.qcow2    -       active   20 GiB   1.2 GiB  /dev/vg/disk.1.qcow2
 *	|
 *	| o  disk.2.qcow2  sunday  kept          -   2.0 GiB  /dev/vg/disk.2.qcow2
 *	|/
 *	o  disk.qcow2      monday  sealed   20 GiB   4.1 GiB  /dev/vg/disk.qcow2
 *
 * An image is an object: node-name, snapshot, state, virtual-size, actual-size, file,
 * depth (0: it is a top, marked *), and branches: those that stand on it. What is not
 * known may be missing.
 */
struct tree_columns {
	int name; /* with what is drawn before it */
	int snapshot;
	int state;
};

/* How wide the columns must be for @image, which is drawn at @level, and its branches. */
void tree_measure(json_object *image, u32 level, struct tree_columns *columns);
/* Its own line; @level: lines that pass by on its left. */
void tree_draw_image(json_object *image, u32 level, const struct tree_columns *columns);
/* What stands on an image, its branches from @from on, each joins the image's own line. */
void tree_draw_forks(json_object *image, u32 from, u32 level, const struct tree_columns *columns);
/* All of it: the first of several that stand on an image goes on in its line. */
void tree_draw_branch(json_object *image, u32 level, const struct tree_columns *columns);

#endif
