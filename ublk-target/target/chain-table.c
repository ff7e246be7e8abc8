// SPDX-License-Identifier: GPL-2.0-or-later
/* Where the entries of an operation are: a cached block, or an L2 table that is being made. */
#include "chain-private.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/*
 * Operations drive a new table on, whoever comes first: allocate, copy what it
 * replaces, join the transaction whole; its L1 entry is a set (promise P5). From
 * then on it is a table like any other: its blocks are in the cache.
 */

void table_put(struct new_table *nt)
{
	struct writer *w = nt->writer;

	if (--nt->refs)
		return;
	if (nt->state != TABLE_JOINED) { /* nobody joined with it */
		cds_list_del(&nt->node);
		if (nt->host)
			writer_release_now(w, nt->host, image_cluster_bytes(w->img));
		free(nt->data);
	}
	if (nt->l1_block)
		meta_unpin(nt->l1_block);
	free(nt);
}

struct new_table *table_find(struct writer *w, u32 index)
{
	struct new_table *nt;

	cds_list_for_each_entry(nt, &w->new_tables, node)
		if (nt->l1_index == index)
			return nt;
	return NULL;
}

static struct new_table *table_create(struct writer *w, u32 index, u64 old_host)
{
	u64 bytes = image_cluster_bytes(w->img);
	struct new_table *nt = calloc(1, sizeof(*nt));

	if (!nt)
		return NULL;
	nt->data = io_alloc(bytes);
	if (!nt->data || l1_reserve(&w->img->l1, index)) {
		free(nt->data);
		free(nt);
		return NULL;
	}
	memset(nt->data, 0, bytes);
	nt->writer = w;
	nt->l1_index = index;
	nt->old_host = old_host;
	cds_list_add_tail(&nt->node, &w->new_tables);
	return nt;
}

/* The copy of a table that a snapshot shares: block by block, its entries as they are. */
static int table_copy(struct write_op *op, struct new_table *nt)
{
	struct meta *meta = op->writer->meta;
	struct meta_block *block;
	int ret;

	while (nt->old_host && nt->copied_bytes < image_cluster_bytes(op->writer->img)) {
		ret = meta_get(meta, nt->old_host + nt->copied_bytes, &op->wait, &block);
		if (ret)
			return ret;
		memcpy(nt->data + nt->copied_bytes, block->data, meta_block_bytes(meta));
		nt->copied_bytes += meta_block_bytes(meta);
	}
	return 0;
}

/* Does @op take a place for data, beside the table? Such must not use up the reserve. */
static bool needs_data(const struct write_op *op)
{
	return op->type == OP_WRITE || op->nounmap;
}

/* Whoever comes drives it on; what is done already is not done again. */
static int table_build(struct write_op *op, struct new_table *nt)
{
	struct writer *w = op->writer;
	u32 got;
	int ret;

	if (nt->state != TABLE_BUILDING)
		return 0;
	if (!nt->l1_block) {
		ret = meta_get(w->meta, w->img->l1_offset + nt->l1_index * sizeof(u64),
			       &op->wait, &nt->l1_block);
		if (ret)
			return ret;
		meta_pin(nt->l1_block);
	}
	ret = table_copy(op, nt);
	if (!ret && !nt->host)
		ret = needs_data(op) ? refcounts_alloc(w->rc, 1, &op->wait, &nt->host, &got) :
				       refcounts_alloc_table(w->rc, &op->wait, &nt->host);
	if (ret)
		return ret;
	writer_allocated(w, nt->host + image_cluster_bytes(w->img));
	nt->state = TABLE_READY;
	return 0;
}

int write_op_table(struct write_op *op)
{
	struct image *img = op->writer->img;
	u32 index = write_op_l1_index(op);
	u64 l1 = l1_get(&img->l1, index);
	u64 in_table = op->first_cluster & ((1ull << img->l2_bits) - 1);
	u64 at = (l1 & QCOW2_OFFSET_MASK) + in_table * img->l2_entry_bytes;
	struct new_table *nt = op->table;
	int ret;

	if (op->block)
		return 0;
	if (nt && nt->state == TABLE_JOINED) {
		op->table = NULL;
		table_put(nt);
		nt = NULL;
	}
	if (!nt && l1 & QCOW2_OFFSET_MASK && l1 & QCOW2_COPIED) {
		ret = meta_get(op->writer->meta, at, &op->wait, &op->block);
		if (!ret)
			meta_pin(op->block);
		return ret;
	}
	if (!nt)
		nt = table_find(op->writer, index);
	if (!nt)
		nt = table_create(op->writer, index, l1 & QCOW2_OFFSET_MASK);
	if (!nt)
		return -ENOMEM;
	if (!op->table) {
		op->table = nt;
		nt->refs++;
	}
	return table_build(op, nt);
}

static void table_linked(struct meta_join *join, int error)
{
	struct new_table *nt = container_of(join, struct new_table, join);
	struct l1_change **c = &nt->writer->img->l1_unwritten;

	while (*c != &nt->change)
		c = &(*c)->next;
	*c = nt->change.next;
	table_put(nt);
}

static void change_l1(struct new_table *nt)
{
	struct image *img = nt->writer->img;

	nt->change = (struct l1_change){ .next = img->l1_unwritten, .index = nt->l1_index,
					 .before = l1_get(&img->l1, nt->l1_index) };
	img->l1_unwritten = &nt->change;
	l1_set(&img->l1, nt->l1_index, nt->host | QCOW2_COPIED);
	nt->refs++;
	nt->join.fn = table_linked;
	meta_txn_join(nt->writer->meta, &nt->join);
}

/* Its L1 entry is a set of the transaction; the cache has the table from now on. */
static int table_join(struct new_table *nt)
{
	struct writer *w = nt->writer;
	u64 bytes = image_cluster_bytes(w->img);
	u64 at = w->img->l1_offset + nt->l1_index * sizeof(u64);
	__be64 l1 = __builtin_bswap64(nt->host | QCOW2_COPIED);
	int ret;

	ret = meta_txn_table(w->meta, nt->host, nt->data, bytes);
	if (ret)
		return ret;
	nt->data = NULL; /* the transaction's */
	nt->state = TABLE_JOINED;
	cds_list_del(&nt->node);
	ret = meta_txn_set(w->meta, nt->l1_block, at - nt->l1_block->offset, &l1, sizeof(l1));
	if (ret)
		return ret;
	change_l1(nt);
	overlap_add(w->img, nt->host, bytes);
	if (nt->old_host)
		writer_unmap(w, nt->old_host, bytes);
	return 0;
}

int write_op_block(struct write_op *op)
{
	int ret = write_op_table(op);

	if (!ret && op->table) {
		ret = table_join(op->table);
		if (!ret)
			ret = write_op_table(op);
	}
	return ret;
}
