// SPDX-License-Identifier: GPL-2.0-or-later
/* Real allocated bytes of neighbours, walked side by side; room for them. */
#include "merge-cost.h"

#include "../lv-names.h"
#include "../served.h"
#include "layer-walk.h"

#include <errno.h>
#include <qchain/lvm.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

/* What two commits may hold beside the data (rule D5). */
#define BATCHES_BYTES (2u * MiB)

/* One of the two parts by itself, and what it would have to take. */
struct side {
	struct layer_walk walk;
	/* as the target of a merge */
	u64 bytes;
	u64 cluster; /* that is being looked at, plus one */
	bool written;
	bool has_place;
	u64 l1_index; /* whose table was counted last, plus one */
	u64 clusters; /* that it needs */
};

static const struct image *image_of(const struct side *s)
{
	return layer_walk_image(&s->walk);
}

/* ---- what the target must allocate ------------------------------------------------------ */

/* The walk has left the cluster: does it need a place? */
static void end_cluster(struct side *s)
{
	if (s->written && !s->has_place)
		s->clusters++;
	s->written = s->has_place = false;
}

static void count_table(struct side *s, u64 offset)
{
	const struct image *img = image_of(s);
	u64 index = offset >> image_l2_coverage_bits(img);

	if (s->l1_index == index + 1)
		return;
	s->l1_index = index + 1;
	if (!image_l2_offset(img, offset))
		s->clusters++;
}

/* [@offset, +@bytes): @moves: data comes here */
static void look_at(struct side *s, u64 offset, u64 bytes, bool moves)
{
	const struct image *img = image_of(s);
	u64 cluster_bytes = image_cluster_bytes(img), end = offset + bytes, next;

	s->bytes += moves ? bytes : 0;
	if (img->format == IMAGE_RAW)
		return;
	for (; offset < end; offset = next) {
		next = ALIGN_DOWN(offset, cluster_bytes) + cluster_bytes;
		if (s->cluster != offset / cluster_bytes + 1)
			end_cluster(s);
		s->cluster = offset / cluster_bytes + 1;
		s->written |= moves;
		s->has_place |= run_has_place(&s->walk.run);
		if (moves)
			count_table(s, offset);
	}
}

/* ---- the walk ------------------------------------------------------------------------------- */

static int walk(struct side *upper, struct side *lower, struct qc_err *err)
{
	struct layer_walk *above = &upper->walk, *below = &lower->walk;
	u64 end = max(above->size, below->size), next;
	int ret = 0;

	for (u64 at = 0; at < end && !ret; at = next) {
		ret = layer_walk_ask(above, at, end, err);
		if (!ret)
			ret = layer_walk_ask(below, at, end, err);
		if (ret)
			break;
		next = min(above->run_end, below->run_end);
		look_at(lower, at, next - at, above->run.present && !above->run.zero);
		look_at(upper, at, next - at, !above->run.present && below->run.present &&
						     !below->run.zero && at < above->size);
	}
	end_cluster(upper);
	end_cluster(lower);
	return ret;
}

/* ---- room ---------------------------------------------------------------------------------- */

static bool is_thick(const struct image *img)
{
	return img->dev->size_bytes >= offline_thick_bytes(img, img->virtual_size);
}

static int room_of(const struct image *img, u64 *result, struct qc_err *err)
{
	u64 clusters = img->dev->size_bytes >> img->cluster_bits, used;
	struct statvfs fs;
	int ret;

	*result = ~0ull;
	if (!img->dev->blockdev) {
		if (fstatvfs(img->dev->fd, &fs))
			return qc_err_set(err, -errno, "%s: free space not known (%m)",
					  img->dev->path);
		*result = (u64)fs.f_bavail * fs.f_frsize;
		return 0;
	}
	if (img->format == IMAGE_RAW || is_thick(img))
		return 0;
	ret = image_used_clusters(img, clusters, clusters, &used);
	if (ret)
		return qc_err_set(err, ret, "%s: refcounts not read (%s)", img->dev->path,
				  strerror(-ret));
	*result = (clusters - min(clusters, used)) << img->cluster_bits;
	return 0;
}

static int take_side(const struct side *s, struct merge_side *result, struct qc_err *err)
{
	result->bytes = s->bytes;
	result->needed = s->clusters << image_of(s)->cluster_bits;
	if (result->needed)
		result->needed += BATCHES_BYTES;
	return room_of(image_of(s), &result->room, err);
}

/* As the header of the lowest of them calls it. */
static enum image_format format_below(const struct side *above)
{
	const struct chain *chain = above->walk.chain;
	const char *name = chain->layers[chain->nr_layers - 1].img->backing_format;

	return name && !strcmp(name, "raw") ? IMAGE_RAW : IMAGE_QCOW2;
}

int merge_cost(const struct merge_part *upper, const struct merge_part *lower,
	       const struct offline_options *options, struct merge_cost *result,
	       struct qc_err *err)
{
	struct side above = { .bytes = 0 }, below = { .bytes = 0 };
	int ret = layer_walk_open(&above.walk, upper->path, upper->nr_layers, IMAGE_QCOW2, options,
				  err);

	if (!ret)
		ret = layer_walk_open(&below.walk, lower->path, lower->nr_layers,
				      format_below(&above), options, err);
	if (!ret)
		ret = walk(&above, &below, err);
	if (!ret)
		ret = take_side(&below, &result->commit, err);
	if (!ret)
		ret = take_side(&above, &result->stream, err);
	layer_walk_close(&above.walk);
	layer_walk_close(&below.walk);
	return ret;
}

static bool fits(const struct merge_side *side)
{
	return side->needed <= side->room;
}

bool merge_cost_is_commit(const struct merge_cost *cost)
{
	if (fits(&cost->commit) != fits(&cost->stream))
		return fits(&cost->commit);
	return cost->commit.bytes < cost->stream.bytes;
}

/* An LV: larger by @bytes. */
static int extend(const char *path, u64 bytes, struct qc_err *err)
{
	char vg[128], name[128];
	struct lvm_lv *lv;
	int ret;

	if (!lv_path_find(path, vg, name))
		return qc_err_set(err, -ENOSPC, "it is no LV");
	ret = lvm_find(vg, name, &lv, err);
	if (ret)
		return ret;
	ret = lvm_extend(vg, name, lv->size_bytes + bytes, err);
	free(lv);
	return ret;
}

int merge_make_room(const char *path, const struct merge_side *side, struct qc_err *err)
{
	char needed[32], room[32];
	struct qc_err why = { 0 };
	struct stat st;

	if (side->needed <= side->room)
		return 0;
	if (stat(path, &st) == 0 && S_ISREG(st.st_mode))
		qc_err_set(&why, -ENOSPC, "free some on its file system");
	else if (extend(path, side->needed - side->room, &why) == 0)
		return 0;
	return qc_err_set(err, -ENOSPC, "%s: needs %s of free space (%llu bytes) for what it is to "
			  "take, has %s (%llu bytes); it cannot be made larger: %s", path,
			  print_size(side->needed, needed), (unsigned long long)side->needed,
			  print_size(side->room, room), (unsigned long long)side->room, why.msg);
}
