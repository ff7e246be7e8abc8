// SPDX-License-Identifier: GPL-2.0-or-later
/* Clusters in use, and whether mapped ones may lie in holes of the image's file. */
#include "reader.h"

#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <uapi/qcow2.h>

/* Entries of a refcount block that are not 0, @most at most. */
static u64 count_used(const u8 *block, u64 entries, u32 order, u64 most)
{
	u64 used = 0;

	for (u64 i = 0; i < entries && used < most; i++) {
		u64 bit = i << order;
		u32 bytes = order < 3 ? 1 : 1u << (order - 3);
		u8 mask = order < 3 ? ((1u << (1u << order)) - 1) << (bit & 7) : 0xff;
		bool any = false;

		for (u32 k = 0; k < bytes; k++)
			any |= block[bit / 8 + k] & mask;
		used += any;
	}
	return used;
}

int image_used_clusters(const struct image *img, u64 clusters, u64 most, u64 *used)
{
	u64 per_block = 1ull << (img->cluster_bits + 3 - img->refcount_order);
	u64 entries = ((u64)img->reftable_clusters << img->cluster_bits) / sizeof(u64);
	u8 *block = io_alloc(image_cluster_bytes(img));
	int ret = block ? 0 : -ENOMEM;

	*used = 0;
	for (u64 i = 0; i < entries && i * per_block < clusters && *used < most && !ret; i++) {
		u64 offset = 0;

		ret = io_dev_pread(img->dev, &offset, sizeof(offset),
				   img->reftable_offset + i * sizeof(u64));
		offset = be64toh(offset) & ~QCOW2_REFTABLE_RESERVED;
		if (ret || !offset)
			continue;
		ret = io_dev_pread(img->dev, block, image_cluster_bytes(img), offset);
		if (!ret)
			*used += count_used(block, min(per_block, clusters - i * per_block),
					    img->refcount_order, most - *used);
	}
	free(block);
	return ret;
}

int image_counted_end(const struct image *img, u64 *result)
{
	u64 per_block = 1ull << (img->cluster_bits + 3 - img->refcount_order);
	u64 bytes = (u64)img->reftable_clusters << img->cluster_bits;
	__be64 *table = bytes ? io_alloc(bytes) : NULL;
	int ret = table ? io_dev_pread(img->dev, table, bytes, img->reftable_offset) : -ENOMEM;

	*result = 0;
	for (u64 i = 0; !ret && i < bytes / sizeof(u64); i++)
		if (be64toh(table[i]) & ~QCOW2_REFTABLE_RESERVED)
			*result = (i + 1) * per_block << img->cluster_bits;
	free(table);
	return ret;
}

int image_has_holes(const struct image *img)
{
	struct stat st;
	u64 on_disk, threshold, used;
	int ret;

	/* A device has no holes that it could tell of. */
	if (img->format != IMAGE_QCOW2 || img->dev->blockdev || fstat(img->dev->fd, &st))
		return 0;
	on_disk = (u64)st.st_blocks * SECTOR_SIZE >> img->cluster_bits;
	threshold = max(on_disk * 10 / 9, on_disk + 2);
	ret = image_used_clusters(img,
				  DIV_ROUND_UP(img->dev->size_bytes, image_cluster_bytes(img)),
				  threshold, &used);
	return ret < 0 ? ret : used >= threshold;
}
