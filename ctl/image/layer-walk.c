// SPDX-License-Identifier: GPL-2.0-or-later
/* Opens some layers of a chain by themselves, and tells what is where in them. */
#include "layer-walk.h"

int layer_walk_open(struct layer_walk *walk, const char *path, u32 nr_layers,
		    enum image_format format, const struct offline_options *options,
		    struct qc_err *err)
{
	struct chain_open_options open = {
		.top_format = format, .read_only = true, .no_lock = true,
		.nr_layers = nr_layers,
	};
	int ret;

	if (options) {
		open.policy.allow_dirs = options->allow_dirs;
		open.policy.backing_format = options->backing_format;
	}
	ret = chain_open(path, &open, &walk->chain, err);
	if (ret)
		return ret;
	walk->size = layer_walk_image(walk)->virtual_size;
	return reader_open(walk->chain, &walk->reader, err);
}

void layer_walk_close(struct layer_walk *walk)
{
	reader_close(walk->reader);
	chain_close(walk->chain);
}

int layer_walk_ask(struct layer_walk *walk, u64 at, u64 end, struct qc_err *err)
{
	int ret;

	if (at < walk->run_end)
		return 0;
	if (at >= walk->size) {
		walk->run = (struct run){ .kind = CLUSTER_UNALLOCATED, .zero = true };
		walk->run_end = end;
		return 0;
	}
	ret = reader_run(walk->reader, at, walk->size - at, &walk->run, err);
	walk->run_end = at + walk->run.bytes;
	return ret;
}
