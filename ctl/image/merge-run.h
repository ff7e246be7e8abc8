/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Offline merges: targets in this process, a job that moves data, progress. */
#ifndef CTL_IMAGE_MERGE_RUN_H
#define CTL_IMAGE_MERGE_RUN_H

#include "offline.h"

#include <qchain/target.h>

/*
 * merge_open - a qcow2-chain target on image @path
 * @words: at most 8 further words for it, NULL-terminated; may be NULL
 */
int merge_open(const char *path, const struct offline_options *options,
	       enum image_format format, const char *const *words, struct target **result,
	       struct qc_err *err);

/* As struct transfer_options. */
struct merge {
	const char *type; /* "commit", "stream", "export", "rebase" */
	struct target *source;
	struct target *target;
	struct target *compare;
	u32 first_depth;
	u32 last_depth;
	u32 keep_layers;
	u32 compare_bytes;
	bool skip_zero;
	u64 speed;
	/* result */
	u64 moved_bytes;
	double seconds;
};

/* Run it to its end, with a progress bar on a terminal. */
int merge_run(struct merge *merge, struct qc_err *err);

/*
 * struct offline_merge - what `commit` and `stream` do, for other verbs
 * @image: active layer of a chain that nobody serves
 * @layer: commit: the last layer that goes down; stream: the one that receives;
 *	NULL: the active one
 * @base: commit: what receives; NULL: the next one
 * @header_name: commit: how the header above names what receives; NULL: as it is called now
 * @nr_layers: stream: so many come up
 * @assume_unshared: commit: the caller has looked who else stands on them
 *
 * Snapshots in device records are the caller's business.
 */
struct offline_merge {
	const char *image;
	const char *layer;
	const char *base;
	const char *header_name;
	u32 nr_layers;
	u64 speed;
	bool assume_unshared;
};

/* In commit.c and stream.c; @result says what was moved. */
int offline_commit(const struct offline_merge *m, struct merge *result, struct qc_err *err);
int offline_stream(const struct offline_merge *m, struct merge *result, struct qc_err *err);

/* Make [@from, @to) of @target read as zero, durably. */
int merge_zero(struct target *target, u64 from, u64 to, struct qc_err *err);

/* The layer of @chain that @name means: a path, VG/LV, node name or file name. */
int merge_find_layer(const struct chain *chain, const char *name, u32 *depth,
		     struct qc_err *err);

/* The tail of all verbs' reports: {"moved": bytes, "seconds": s} or one line. */
void merge_report(json_object *object, const struct merge *merge);

/* An image that is opened for writing by itself, its lock held until closed. */
int merge_hold(const char *path, struct image **result, struct qc_err *err);

/*
 * image_resize - grow the image at @path to @bytes (resize.c); 0 when it is so
 * long already. Its container grows too where it is an LV that could hold the
 * whole image before.
 */
int image_resize_grow(const char *path, const struct offline_options *options,
		      enum image_format format, u64 bytes, struct qc_err *err);

#endif
