/* SPDX-License-Identifier: GPL-2.0-or-later OR MIT */
/* Metadata of one image that is being written: blocks, and THE write order. */
#ifndef QCHAIN_META_H
#define QCHAIN_META_H

#include <qchain/io.h>
#include <qchain/loop.h>
#include <qchain/types.h>
#include <urcu/list.h>

/*
 * This room knows no qcow2. It knows blocks (pieces of tables, cached), and a
 * transaction with the four steps of rule B1:
 *
 *   1. in any order: fresh tables, whole; dirty blocks (refcounts, which may
 *      run ahead of what uses them). Guest data was written before its
 *      operation joined the transaction.
 *   2. flush
 *   3. sets: entries in sectors that are already reachable.
 *   --- linked: the disk's tables say what the transaction says ---
 *   4. flush: the guest's own (meta_flush), or step 2 of the next transaction.
 *
 * One transaction is open and collects, one at most is committing. The cached
 * block shows every set at once; what has been linked is kept beside it, and
 * what step 3 writes is a copy from the instant at which the transaction was
 * closed: entries of the next one are not in it.
 *
 * A failure of step 1 is tried again, for a while. When it lasts, or when step
 * 2 or 3 fails, nothing is written any more. All calls on the metadata loop;
 * nothing blocks.
 */

struct meta;
struct meta_txn;
struct txn_write;

#define META_OLD_NS 500000000ull

/* What meta_get() waits for: @fn once, then the caller asks again. */
struct meta_wait {
	struct cds_list_head node;
	void (*fn)(struct meta_wait *wait);
};

/*
 * struct meta_block - a cached piece of a table, meta_block_bytes() long
 * @data: big-endian, as on disk, newest. Changed only through meta_txn_set(), or
 *        in place together with meta_mark_dirty(); no block in both ways.
 * @linked: without the sets of transactions that are not linked; NULL: as @data
 * @pins: keeps it in memory; meta_pin() / meta_unpin()
 */
struct meta_block {
	u64 offset;
	void *data;
	void *linked;
	u32 pins;
	u32 dirty; /* a bit per device block: step 1 of the next transaction writes it */
	u8 state;
	struct cds_list_head hash;
	struct cds_list_head lru;
	struct cds_list_head dirty_node;
	struct cds_list_head waiters;
	struct txn_write *set; /* of the open transaction: step 3 writes it */
	struct txn_write *fresh; /* ... its fresh table: step 1 writes it */
	struct meta *meta;
	struct io_op io;
};

/*
 * An operation that waits for a transaction. @fn: step 3 is on disk (@error 0),
 * or the image failed.
 */
struct meta_join {
	struct cds_list_head node;
	void (*fn)(struct meta_join *join, int error);
};

/*
 * A place that the transaction unmaps. @durable: the unmapping survives a cut
 * (@error 0), or the transaction failed and the place stays in use.
 */
struct meta_unmap {
	struct cds_list_head node;
	u64 host;
	u64 bytes;
	void (*durable)(struct meta_unmap *unmap, int error);
};

/*
 * Who waits for step 4. @fn: what joined before meta_flush() is durable (@error
 * 0), or something of it, now or earlier, was lost.
 */
struct meta_flush {
	struct cds_list_head node;
	u64 seq; /* the last transaction that it needs */
	void (*fn)(struct meta_flush *flush, int error);
};

/*
 * struct meta_ops
 * @linked: after all join callbacks of a transaction; @mark: the largest that
 *          it was given, 0: none, or it failed
 * @failed: a transaction could not be written: what the disk holds is unknown,
 *          nothing is written any more. Once, before the joins hear of it.
 */
struct meta_ops {
	void (*linked)(void *arg, u64 mark);
	void (*failed)(void *arg, int error);
};

/*
 * meta_create - @block_bytes: the smaller of the cluster and 4096; @max_blocks:
 * blocks that are neither pinned nor dirty are dropped beyond it.
 */
int meta_create(struct loop *loop, struct io_dev *dev, u32 block_bytes, u32 max_blocks,
		const struct meta_ops *ops, void *arg, struct meta **result);
/* Nothing may be joined, loading or committing. */
void meta_destroy(struct meta *meta);

u32 meta_block_bytes(const struct meta *meta);

/*
 * meta_get - the block that holds byte @offset of the image
 * 0; -EAGAIN: @wait->fn will be called when it is worth asking again; -EIO.
 * The block stays until the caller's event ends, longer only when pinned.
 */
int meta_get(struct meta *meta, u64 offset, struct meta_wait *wait, struct meta_block **result);
void meta_pin(struct meta_block *block);
void meta_unpin(struct meta_block *block);
/* Bytes [@at, @at + @bytes) of the block's data were changed in place. */
void meta_mark_dirty(struct meta_block *block, u32 at, u32 bytes);
/* What the disk's tables say, or are about to: no entry that is not linked. */
static inline const void *meta_linked(const struct meta_block *block)
{
	return block->linked ? block->linked : block->data;
}

/* Drop a cached block that became invalid (its cluster was freed or rewritten). */
void meta_forget(struct meta *meta, u64 offset, u64 bytes);

/* ---- the open transaction --------------------------------------------------- */

/* Changes from one to the next: what was added under it is committed together. */
u64 meta_open_seq(const struct meta *meta);

/*
 * Step 3: put @bytes of @data at @at of @block, which shows them at once and is
 * pinned until they are linked. In a table of meta_txn_table() of the same
 * transaction they go with step 1. 0, -ENOMEM; -EUCLEAN: a block of counts.
 */
int meta_txn_set(struct meta *meta, struct meta_block *block, u32 at, const void *data,
		 u32 bytes);
/* Step 1: write @data_owned (io_alloc) whole to @host; what the cache has there goes. */
int meta_txn_fresh(struct meta *meta, u64 host, void *data_owned, u32 bytes);
/*
 * The same, and the cache shows it from now on; as linked, what @data_owned holds
 * at this call, until its sets are linked. On failure the data stays the caller's.
 */
int meta_txn_table(struct meta *meta, u64 host, void *data_owned, u32 bytes);
/* Unmapped by a set of this transaction. */
void meta_txn_unmap(struct meta *meta, struct meta_unmap *unmap);
void meta_txn_join(struct meta *meta, struct meta_join *join);
/* For meta_ops.linked: grows from one call to the next. */
void meta_txn_mark(struct meta *meta, u64 mark);

/* Commit what is open as soon as the one before is linked. */
void meta_kick(struct meta *meta);
/* ... when it has become large, or old (META_OLD_NS after its first change). */
void meta_kick_later(struct meta *meta);
/* Is everything that ever joined linked? */
bool meta_clean(const struct meta *meta);
/*
 * Steps 1 to 4 for all that joined until now. Those that wait at the same time
 * share the flush of step 4.
 */
void meta_flush(struct meta *meta, struct meta_flush *flush);

/*
 * Make every unmap of linked transactions durable and write every dirty block,
 * even if nobody asks for a flush. Runs by itself META_OLD_NS after a change.
 * What failed is tried again at once. meta_idle(): nothing of this is left to do.
 */
void meta_housekeep(struct meta *meta);
bool meta_idle(struct meta *meta);

struct meta_stats {
	u64 commits;
	u64 aborts; /* of them, failed */
	u64 retries; /* of step 1 */
	u64 flushes; /* of steps 2 and 4 */
	u64 block_reads;
	u64 block_writes;
};

void meta_get_stats(const struct meta *meta, struct meta_stats *stats);

#endif
