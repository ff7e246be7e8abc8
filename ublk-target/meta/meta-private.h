/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The metadata of one image: what the cache and the transactions share. */
#ifndef META_PRIVATE_H
#define META_PRIVATE_H

#include <qchain/meta.h>

#define META_HASH_BUCKETS 256u

enum block_state { BLOCK_LOADING, BLOCK_READY, BLOCK_UNREADABLE, BLOCK_STALE };

/* One write: a fresh table, dirty sectors, or the changed sectors of a block. */
struct txn_write {
	struct cds_list_head node;
	struct meta *meta;
	struct meta_block *block; /* pinned; NULL: fresh */
	struct meta_block **blocks; /* of a fresh table that the cache shows; pinned */
	u32 mask; /* device blocks of @block */
	void *data;
	struct io_op io;
};

struct meta_txn {
	struct cds_list_head fresh; /* struct txn_write, step 1 */
	struct cds_list_head dirty; /* struct txn_write, step 1, while it runs */
	struct cds_list_head sets; /* struct txn_write, step 3 */
	struct cds_list_head unmaps;
	struct cds_list_head joined;
	u64 mark;
	u32 nr; /* sets, unmaps and joins */
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
	u32 tries; /* of step 1, in a row */
	bool kicked;
	bool failed;
	struct io_op flush; /* step 2 */
	struct cds_list_head lost; /* struct txn_write: not written, but acknowledged */
	struct cds_list_head unmapped; /* linked, not durable */
	struct cds_list_head flushing; /* become durable with that flush */
	struct loop_timer timer;
	struct loop_timer retry;

	/* step 4 */
	struct cds_list_head flush_waiters; /* struct meta_flush: not linked yet */
	struct cds_list_head flush_served; /* by the flush under way */
	struct cds_list_head flush_unmaps; /* become durable with it */
	struct io_op guest_flush;
	bool guest_flushing;

	struct meta_stats stats;
};

/* ---- meta-cache.c --------------------------------------------------------------- */

/* Let the cache show @data at @offset, a block that is not on disk yet: pinned. */
int meta_block_put(struct meta *meta, u64 offset, const void *data, struct meta_block **result);
/* Undo meta_block_put(): nobody has seen it. */
void meta_block_drop(struct meta *meta, struct meta_block *block);

/* ---- meta-txn.c ----------------------------------------------------------------- */

void meta_txn_init(struct meta *meta);
void meta_txn_exit(struct meta *meta);
/* A block became dirty: it will be written even if no transaction follows. */
void meta_txn_dirtied(struct meta *meta);
/* Nothing is written from here on; @error for all who wait. */
void meta_fail(struct meta *meta, int error);
void meta_run_unmaps(struct cds_list_head *unmaps, int error);

/* ---- meta-flush.c --------------------------------------------------------------- */

void meta_flush_init(struct meta *meta);
/* A transaction is linked: who waited for it is flushed. */
void meta_flush_linked(struct meta *meta);
/* Everybody who waits is told. */
void meta_flush_fail(struct meta *meta, int error);
bool meta_flush_idle(struct meta *meta);

#endif
