/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Reading a closed chain synchronously: where bytes are, and the bytes. */
#ifndef CTL_IMAGE_READER_H
#define CTL_IMAGE_READER_H

#include <qchain/chain.h>

/*
 * struct run - guest bytes from an offset on that are alike
 * @kind: of the layer that decides; CLUSTER_UNALLOCATED at the end of the
 *        chain: no layer has them, they read as zero
 * @layer: depth of that layer, 0 is the active one
 * @host: where they lie (DATA), or where their space is reserved; contiguous
 *        over @bytes. COMPRESSED: of the stored stream, @bytes ends with the
 *        cluster
 * @zero: reads as zero, whatever the kind: also a hole of the file
 * @present: the layer itself says so; false: zero because nothing is below
 */
struct run {
	enum cluster_kind kind;
	u32 layer;
	u64 host;
	u64 bytes;
	u32 compressed_bytes;
	bool zero;
	bool present;
};

struct reader;

/* @chain stays the caller's and must outlive the reader. */
int reader_open(struct chain *chain, struct reader **result, struct qc_err *err);
void reader_close(struct reader *reader);

/*
 * reader_run - the run at @offset, @most bytes at most; both inside the device
 * -EIO and others: an entry violates the format, or reading failed.
 */
int reader_run(struct reader *reader, u64 offset, u64 most, struct run *result, struct qc_err *err);

/* Does the run have a place in its layer (the "offset" of qemu-img map)? */
static inline bool run_has_place(const struct run *run)
{
	return run->kind == CLUSTER_DATA || run->kind == CLUSTER_ZERO_PLACE ||
	       run->kind == CLUSTER_RESERVED;
}

/* Read guest data; what lies beyond the end of the device is zero. */
int reader_read(struct reader *reader, void *buf, u64 bytes, u64 offset, struct qc_err *err);

/*
 * image_has_holes - were tables preallocated and data not (holes.c)?
 * As qemu-img decides it: far more clusters in use than the file has blocks.
 * 1 or 0, -errno.
 */
int image_has_holes(const struct image *img);

/* Clusters below @clusters whose refcount is not 0, @most at most. 0 or -errno. */
int image_used_clusters(const struct image *img, u64 clusters, u64 most, u64 *used);

/* Where the clusters end that a refcount block counts: none behind was ever used. */
int image_counted_end(const struct image *img, u64 *result);

#endif
