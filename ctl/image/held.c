// SPDX-License-Identifier: GPL-2.0-or-later
/* Counts what an image holds by its tables, which are walked beside those above it. */
#include "held.h"

#include "layer-walk.h"

#include <errno.h>
#include <stdlib.h>

/* @walks: of the image, then of those that stand on it */
struct held_walk {
	struct layer_walk *walks;
	u32 nr;
};

/* A part of a compressed cluster takes its share of what is stored. */
static u64 stored_bytes(const struct layer_walk *walk, u64 bytes)
{
	u64 cluster = image_cluster_bytes(layer_walk_image(walk));

	if (walk->run.kind != CLUSTER_COMPRESSED)
		return bytes;
	return bytes * min((u64)walk->run.compressed_bytes, cluster) / cluster;
}

/* Does each of those above have something of its own here? */
static bool is_hidden(const struct held_walk *h)
{
	for (u32 i = 1; i < h->nr; i++)
		if (!h->walks[i].run.present)
			return false;
	return true;
}

static int count(struct held_walk *h, struct held *result, struct qc_err *err)
{
	struct layer_walk *self = &h->walks[0];
	u64 next, bytes;
	int ret;

	for (u64 at = 0; at < self->size; at = next) {
		next = self->size;
		for (u32 i = 0; i < h->nr; i++) {
			ret = layer_walk_ask(&h->walks[i], at, self->size, err);
			if (ret)
				return ret;
			next = min(next, h->walks[i].run_end);
		}
		if (!self->run.present || self->run.zero)
			continue;
		bytes = stored_bytes(self, next - at);
		result->data += bytes;
		result->only += is_hidden(h) ? bytes : 0;
	}
	return 0;
}

int image_held(const char *path, enum image_format format, const char *const *above,
	       u32 nr_above, struct held *result, struct qc_err *err)
{
	struct held_walk h = { .nr = nr_above + 1 };
	int ret;

	*result = (struct held){ .data = 0 };
	h.walks = calloc(h.nr, sizeof(*h.walks));
	if (!h.walks)
		return qc_err_set(err, -ENOMEM, "%s: out of memory", path);
	ret = layer_walk_open(&h.walks[0], path, 1, format, NULL, err);
	for (u32 i = 0; i < nr_above && !ret; i++)
		ret = layer_walk_open(&h.walks[i + 1], above[i], 1, IMAGE_QCOW2, NULL, err);
	if (!ret)
		ret = count(&h, result, err);
	for (u32 i = 0; i < h.nr; i++)
		layer_walk_close(&h.walks[i]);
	free(h.walks);
	return ret;
}
