/* SPDX-License-Identifier: GPL-2.0-or-later */
/* One or more layers by themselves, walked from front to back beside others. */
#ifndef CTL_IMAGE_LAYER_WALK_H
#define CTL_IMAGE_LAYER_WALK_H

#include "offline.h"
#include "reader.h"

/*
 * struct layer_walk - at one place of the walk
 * @size: where the topmost of them ends
 * @run: what is at the place; beyond the end, zero that nobody has written
 * @run_end: how far it goes
 */
struct layer_walk {
	struct chain *chain;
	struct reader *reader;
	u64 size;
	struct run run;
	u64 run_end;
};

/*
 * layer_walk_open - the layer at @path and those below it, @nr_layers in all
 * @options: which backing names are followed; NULL: of one layer, none is
 * Neither locked nor kept from changing: of images in use it is an estimate.
 * layer_walk_close - also after a failure, and of one that is all zero
 */
int layer_walk_open(struct layer_walk *walk, const char *path, u32 nr_layers,
		    enum image_format format, const struct offline_options *options,
		    struct qc_err *err);
void layer_walk_close(struct layer_walk *walk);

/* The run at @at, which does not decrease from call to call; the walk ends at @end. */
int layer_walk_ask(struct layer_walk *walk, u64 at, u64 end, struct qc_err *err);

/* The image of the topmost layer. */
static inline const struct image *layer_walk_image(const struct layer_walk *walk)
{
	return walk->chain->layers[0].img;
}

#endif
