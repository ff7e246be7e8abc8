// SPDX-License-Identifier: GPL-2.0-or-later
/* Zeroes where an overlay maps nothing and its backing has ended. */
#include "cover.h"

#include "layer-walk.h"
#include "merge-run.h"

#include <qchain/crash-point.h>

/* By itself: the walk does not see what is written beside it, nor needs to. */
static int cover_runs(struct layer_walk *walk, struct target *target, u64 from, u64 to,
		      struct qc_err *err)
{
	u64 at, end;
	int ret = 0;

	for (at = from; at < to && !ret; at = end) {
		ret = layer_walk_ask(walk, at, to, err);
		end = min(walk->run_end, to);
		if (!ret && !walk->run.present)
			ret = merge_zero(target, at, end, err);
	}
	return ret;
}

int cover_from(const char *path, const struct offline_options *options, u64 from, u64 to,
	       struct qc_err *err)
{
	struct layer_walk walk = {};
	struct target *target;
	int ret = layer_walk_open(&walk, path, 1, IMAGE_QCOW2, NULL, err);

	to = ret ? to : min(to, walk.size);
	if (!ret && from < to) {
		ret = merge_open(path, options, IMAGE_QCOW2, NULL, &target, err);
		if (!ret) {
			ret = cover_runs(&walk, target, from, to, err);
			if (!ret)
				ret = target_suspend(target, err);
			target_destroy(target);
		}
	}
	layer_walk_close(&walk);
	crash_point("commit.covered");
	return ret;
}
