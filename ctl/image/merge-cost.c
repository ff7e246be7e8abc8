// SPDX-License-Identifier: GPL-2.0-or-later
/* Real allocated bytes of two neighbours, walked side by side. */
#include "merge-cost.h"

#include "reader.h"

#include <errno.h>
#include <qchain/chain.h>
#include <string.h>
#include <sys/statvfs.h>

/* What two commits may hold beside the data (rule D5). */
#define BATCHES_BYTES (2u * MiB)

/* One of the two images by itself, and what it would have to take. */
struct side {
	struct chain *chain;
	struct reader *reader;
	u64 size; /* where it ends */
	struct run run; /* at the walk's place */
	u64 run_end;
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
	return s->chain->layers[0].img;
}

static int open_side(struct side *s, const char *path, enum image_format format,
		     struct qc_err *err)
{
	struct chain_open_options options = {
		.top_format = format, .read_only = true, .no_lock = true, .nr_layers = 1,
	};
	int ret;

	ret = chain_open(path, &options, &s->chain, err);
	if (ret)
		return ret;
	s->size = image_of(s)->virtual_size;
	return reader_open(s->chain, &s->reader, err);
}

static void close_side(struct side *s)
{
	reader_close(s->reader);
	chain_close(s->chain);
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
		s->has_place |= run_has_place(&s->run);
		if (moves)
			count_table(s, offset);
	}
}

/* ---- the walk ------------------------------------------------------------------------------- */

static int ask(struct side *s, u64 at, u64 end, struct qc_err *err)
{
	int ret;

	if (at < s->run_end)
		return 0;
	if (at >= s->size) {
		s->run = (struct run){ .kind = CLUSTER_UNALLOCATED, .zero = true };
		s->run_end = end;
		return 0;
	}
	ret = reader_run(s->reader, at, s->size - at, &s->run, err);
	s->run_end = at + s->run.bytes;
	return ret;
}

static int walk(struct side *upper, struct side *lower, struct qc_err *err)
{
	u64 end = max(upper->size, lower->size), next;
	bool above, below;
	int ret = 0;

	for (u64 at = 0; at < end && !ret; at = next) {
		ret = ask(upper, at, end, err);
		if (!ret)
			ret = ask(lower, at, end, err);
		if (ret)
			break;
		next = min(upper->run_end, lower->run_end);
		above = upper->run.present;
		below = lower->run.present;
		look_at(lower, at, next - at, above && !upper->run.zero);
		look_at(upper, at, next - at, !above && below && !lower->run.zero &&
						     at < upper->size);
	}
	end_cluster(upper);
	end_cluster(lower);
	return ret;
}

/* ---- room ---------------------------------------------------------------------------------- */

static bool is_thick(const struct image *img)
{
	struct image_create_options options = {
		.virtual_size = img->virtual_size, .version = img->version,
		.cluster_bits = img->cluster_bits, .refcount_order = img->refcount_order,
		.extl2 = image_has_extl2(img),
	};

	return img->dev->size_bytes >= image_thick_bytes(&options);
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

/* As the header of the overlay calls it. */
static enum image_format format_below(const struct side *above)
{
	const char *name = image_of(above)->backing_format;

	return name && !strcmp(name, "raw") ? IMAGE_RAW : IMAGE_QCOW2;
}

int merge_cost(const char *upper, const char *lower, struct merge_cost *result,
	       struct qc_err *err)
{
	struct side above = { .chain = NULL }, below = { .chain = NULL };
	int ret = open_side(&above, upper, IMAGE_QCOW2, err);

	if (!ret)
		ret = open_side(&below, lower, format_below(&above), err);
	if (!ret)
		ret = walk(&above, &below, err);
	if (!ret)
		ret = take_side(&below, &result->commit, err);
	if (!ret)
		ret = take_side(&above, &result->stream, err);
	close_side(&above);
	close_side(&below);
	return ret;
}
