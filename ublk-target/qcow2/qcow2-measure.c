// SPDX-License-Identifier: GPL-2.0-or-later OR MIT
/* How large an image becomes: as qemu-img measure counts, and for a thick LV. */
#include "qcow2-layout.h"

/*
 * What a thick LV has beyond the fully allocated image (rule A4), so that it
 * never runs full. Clusters that a commit batch freed can be used again only
 * after the commit; queues hold clusters that they have not used yet.
 */
#define THICK_BATCH_BYTES (8 * MiB)
#define THICK_BATCHES 2
#define THICK_RESERVE_QUEUES 16
#define THICK_RESERVE_BYTES (1 * MiB) /* per queue, at least one cluster */

/*
 * Refcount blocks and tables count themselves, so their number is a fixed
 * point. @blocks, @table: clusters of each.
 */
void layout_refcounts(u64 clusters, u32 cluster_bits, u32 refcount_order, u64 *blocks, u64 *table)
{
	u64 per_block = layout_refcounts_per_block(cluster_bits, refcount_order);
	u64 per_table = (1ull << cluster_bits) / sizeof(u64);
	u64 last, total = 0;

	*blocks = 0;
	*table = 0;
	do {
		last = total;
		*blocks = DIV_ROUND_UP(clusters + *table + *blocks, per_block);
		*table = DIV_ROUND_UP(*blocks, per_table);
		total = clusters + *blocks + *table;
	} while (total != last);
}

/* All L2 tables there, every cluster with a place; L1 in whole clusters. */
void layout_full(const struct image_create_options *options, struct layout *result)
{
	u32 bits = options->cluster_bits;
	u64 cluster_bytes = 1ull << bits;
	u64 per_l2 = cluster_bytes / layout_l2_entry_bytes(options);

	result->data_clusters = DIV_ROUND_UP(options->virtual_size, cluster_bytes);
	result->l2_clusters = DIV_ROUND_UP(result->data_clusters, per_l2);
	result->l1_entries = result->l2_clusters;
	result->l1_clusters = DIV_ROUND_UP(result->l1_entries * sizeof(u64), cluster_bytes);
	layout_refcounts(1 + result->l1_clusters + result->l2_clusters + result->data_clusters,
			 bits, options->refcount_order, &result->block_clusters,
			 &result->table_clusters);
}

void image_measure(const struct image_create_options *options, u64 data_bytes,
		   struct image_measure *result)
{
	struct layout full;
	u64 virtual_bytes;

	layout_full(options, &full);
	virtual_bytes = full.data_clusters << options->cluster_bits;
	if (options->preallocation == PREALLOC_FALLOC || options->preallocation == PREALLOC_FULL)
		data_bytes = virtual_bytes;
	result->fully_allocated = layout_clusters(&full) << options->cluster_bits;
	/* Tables are counted whole, whatever the data: as QEMU does. */
	result->required = result->fully_allocated - virtual_bytes + data_bytes;
}

/* Clusters beyond the fully allocated image, without those that count them. */
static u64 thick_extra(u32 cluster_bits)
{
	u64 cluster_bytes = 1ull << cluster_bits;
	u64 bytes = THICK_BATCHES * max((u64)THICK_BATCH_BYTES, cluster_bytes) +
		    THICK_RESERVE_QUEUES * max((u64)THICK_RESERVE_BYTES, cluster_bytes);

	return DIV_ROUND_UP(bytes, cluster_bytes) + layout_max_reserve(cluster_bits);
}

/*
 * All clusters are counted, the extra ones too: fine clusters with wide refcounts
 * need thousands of blocks for them. A refcount table that grows is there twice
 * for a while, the new one half as large again, and may not fit at the very end.
 */
u64 image_thick_bytes(const struct image_create_options *options)
{
	struct layout full;
	u64 used, blocks, table, spare = 0;
	u32 pass;

	layout_full(options, &full);
	used = 1 + full.l1_clusters + full.l2_clusters + full.data_clusters +
	       thick_extra(options->cluster_bits) + 1;
	for (pass = 0; pass < 2; pass++) {
		layout_refcounts(used + spare, options->cluster_bits, options->refcount_order,
				 &blocks, &table);
		spare = 4 * table + 4;
	}
	return (used + spare + blocks + table) << options->cluster_bits;
}
