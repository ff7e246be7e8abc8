/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The metadata of one image: what the cache and the transactions share. */
#ifndef META_PRIVATE_H
#define META_PRIVATE_H

#include <qchain/meta.h>

#define META_HASH_BUCKETS 256u

enum block_state { BLOCK_LOADING, BLOCK_READY, BLOCK_UNREADABLE, BLOCK_STALE };

struct meta_txn {
	struct cds_list_head sets; /* struct txn_set, step 3, in order */
	struct cds_list_head fresh; /* struct txn_write, step 1 */
	struct cds_list_head writes; /* struct txn_write of the step under way */
	struct cds_list_head unmaps;
	struct cds_list_head joined;
	bool empty;
};

struct meta {
	/* set once */
	struct loop *loop;
	struct io_dev *dev;
	const struct meta_ops *ops;
	void *arg;
	u32 block_bytes;
	u32 max_blocks;

	/* cache */
	struct cds_list_head hash[META_HASH_BUCKETS];
	struct cds_list_head lru; /* least recently used first */
	struct cds_list_head dirty;
	u32 nr_blocks;
	u32 loading;

	/* transactions */
	struct meta_txn txns[2];
	struct meta_txn *open;
	struct meta_txn *committing; /* NULL: none */
	u64 open_seq;
	u32 stage;
	u32 stage_ios;
	int error;
	u32 aborts_in_row;
	bool kicked;
	bool failed;
	struct io_op flush;
	struct cds_list_head unmapped; /* linked, not durable */
	struct cds_list_head flushing; /* become durable with the flush under way */
	struct loop_timer timer;
	struct meta_stats stats;
};

void meta_txn_init(struct meta *meta);
void meta_txn_exit(struct meta *meta);
/* A block became dirty: it will be written even if no transaction follows. */
void meta_txn_dirtied(struct meta *meta);

#endif
