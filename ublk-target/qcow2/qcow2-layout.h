/* SPDX-License-Identifier: GPL-2.0-or-later OR MIT */
/* Where the parts of a fresh image lie, and how many clusters each takes. */
#ifndef QCOW2_LAYOUT_H
#define QCOW2_LAYOUT_H

#include <qchain/image.h>

/*
 * struct layout - clusters of each part, in the order in which image_create()
 * puts them into the image: header, refcount table, refcount blocks, L1, L2, data
 */
struct layout {
	u64 table_clusters;
	u64 block_clusters;
	u64 l1_clusters;
	u64 l1_entries;
	u64 l2_clusters;
	u64 data_clusters;
};

static inline u64 layout_clusters(const struct layout *layout)
{
	return 1 + layout->table_clusters + layout->block_clusters + layout->l1_clusters +
	       layout->l2_clusters + layout->data_clusters;
}

static inline u32 layout_l2_entry_bytes(const struct image_create_options *options)
{
	return options->extl2 ? 16 : 8;
}

static inline u64 layout_refcounts_per_block(u32 cluster_bits, u32 refcount_order)
{
	return 1ull << (cluster_bits + 3 - refcount_order);
}

/* Refcount blocks and table clusters that count @clusters and themselves. */
void layout_refcounts(u64 clusters, u32 cluster_bits, u32 refcount_order, u64 *blocks, u64 *table);

/* Most clusters that layout_reserve() keeps. */
static inline u64 layout_max_reserve(u32 cluster_bits)
{
	return max(16ull, MiB >> cluster_bits);
}

/*
 * Of the @clusters that a device has, so many are kept for tables: a discard, or
 * zeroes over what is below, may need a new L2 table before it frees anything.
 */
static inline u64 layout_reserve(u64 clusters, u32 cluster_bits)
{
	return min(DIV_ROUND_UP(clusters, 32), layout_max_reserve(cluster_bits));
}

/* A fully allocated image; what measure counts and preallocation writes. */
void layout_full(const struct image_create_options *options, struct layout *result);

#endif
