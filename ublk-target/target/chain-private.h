/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The qcow2-chain target: what its fast path and its metadata thread share. */
#ifndef CHAIN_PRIVATE_H
#define CHAIN_PRIVATE_H

#include <qchain/chain.h>
#include <qchain/intent-log.h>
#include <qchain/map.h>
#include <qchain/meta.h>
#include <qchain/online.h>
#include <qchain/pool.h>
#include <qchain/refcount.h>
#include <qchain/target.h>
#include <uapi/qcow2.h>

#define CHAIN_WORKERS 2u
/* L2 windows that are being folded at the same time. */
#define CHAIN_MAX_LOADS 8u
/* ... of them, before anybody asks: the others are left to guests. */
#define CHAIN_LOADS_AHEAD 6u
/* Operations of one request that run at the same time. */
#define CHAIN_MAX_SPLIT 16u
/* Objects of each kind that are kept for the next change of mapping. */
#define CHAIN_POOL 128u
/* Memory for copy on write and slow reads; others wait (C8). */
#define CHAIN_BOUNCE_BYTES (64u * 1024u * 1024u)
/* Unpublished memory of the map that is worth a round of grace, which asks all loops. */
#define CHAIN_RETIRE_BYTES (256u * 1024u)
/* A request that met a missing window so often is served by the slow path. */
#define CHAIN_MAX_RETRIES 4u
/* io_ops of one loop: one request may need QC_MAX_REQUEST_BYTES / 512. */
#define CHAIN_LOOP_OPS (QC_MAX_REQUEST_BYTES / SECTOR_SIZE + 256u)

enum chain_on_full { ON_FULL_WAIT, ON_FULL_FAIL };
#define GROWTH_REASON_BYTES 256u

enum warm_state { WARM_OFF, WARM_RUNNING, WARM_DONE, WARM_FULL, WARM_STOPPED, WARM_FAILED };

struct load_wait {
	struct cds_list_head node;
	void (*fn)(struct load_wait *wait, int error);
};

struct chain_warm {
	enum warm_state state;
	u64 next; /* window */
	struct loop_timer timer;
	struct load_wait wait;
};

/* Metadata thread only, except where it says otherwise. */
struct chain_target {
	/* set once */
	struct target *ti;
	struct chain *chain; /* by depth; grows at the top, metadata thread */
	struct loop *loop; /* the metadata thread's */
	struct loop *workers[CHAIN_WORKERS];
	u32 next_worker;
	enum chain_on_full on_full;

	/* any loop reads it */
	struct map map;

	struct grace grace;
	struct chain_target *of; /* a view of layers of that one, on its loops; NULL: none */
	struct cds_list_head loads; /* struct window_load */
	struct cds_list_head load_queue; /* beyond CHAIN_MAX_LOADS */
	struct cds_list_head queues; /* struct request_queue: that have parked requests */
	u32 nr_loads;
	struct chain_warm warm;

	struct writer *active; /* of the active layer; NULL: nothing is written */
	struct writer *receiving; /* of the base that it is committed into; NULL: none */
	struct cds_list_head merges; /* struct merge: whose layers are still to go */
	const char *turn; /* who may change the order of layers, chain-turn.c; NULL: nobody */
	struct cds_list_head renames; /* struct rename: until the turn ends */
	struct cds_list_head fenced; /* struct slow_request: until the fence is lifted */
	struct saver *saver; /* copies before guests write, chain-save.h; any loop reads it */
	struct cds_list_head closing; /* struct writer: former ones, oldest first */
	struct cds_list_head fill_waiters; /* struct write_op: until one has settled */
	u64 generation; /* of the layers and their writers, for folds (rule C1) */
	struct pool slow_requests; /* memory of changes of mapping */
	struct pool write_ops;
	struct map_update *updates; /* of the transaction that is being published */
	u32 nr_updates;
	u32 room_updates;
	u64 bounce_bytes;
	struct cds_list_head bounce_waiters; /* struct meta_wait */
	bool bounce_refused; /* somebody had to wait since the last put */
	bool bounce_waking; /* waiters run: on the stack */
	bool load_starting; /* queued loads start: on the stack */
	bool stopping; /* nothing waits for space any more */

	struct intent_log *log; /* NULL: none */
	bool may_lose; /* set once: what is not flushed need not survive the daemon */
	bool uncommitted; /* atomic: mappings were acknowledged and are not linked */
	struct cds_list_head log_waiters; /* struct write_op: until the log has room */

	/* a hold, chain-hold.c */
	bool hold; /* no write starts; any loop reads it */
	struct cds_list_head held; /* struct request: came meanwhile */
	struct loop_timer hold_timer;

	/* counters, for status */
	u64 stat_loads;
	u64 stat_deferred;
	u64 stat_slow_reads;
};

/* Run @work on a worker, then @work->done back on the metadata loop. */
struct chain_work {
	struct loop_msg msg;
	struct chain_target *ct;
	void (*run)(struct chain_work *work);
	void (*done)(struct chain_work *work);
};

/*
 * struct writer - one image that is being written (rule C5)
 * Metadata thread only. Requests, operations and tables point to theirs.
 */
struct writer {
	/* set once */
	struct chain_target *ct;
	struct layer *layer;
	u16 id; /* of the layer */
	struct image *img;
	struct meta *meta; /* NULL, and all below: a raw image */
	struct refcounts *rc;
	struct target *shows; /* where fills are read: the chain, or the view of a commit */
	bool below; /* something lies below the layer */
	bool hidden; /* a base that a commit writes: what is above hides it, see chain-commit.c */
	bool holds; /* gives nothing back: the map may still show it */
	bool early; /* acknowledged before step 3, see chain-publish.c */
	char log_name[INTENT_NAME_BYTES];

	struct meta_block *header; /* pinned: the corrupt bit must never wait for a read */
	struct meta_wait header_wait;
	struct cds_list_head *cells; /* hash of struct write_op by L2 block */
	struct cds_list_head new_tables; /* struct new_table */
	struct cds_list_head linked; /* struct write_op: publish, then release */
	struct loop_msg publish;
	bool publishing; /* @publish is under way */
	u32 log_layer; /* in ct->log */
	bool logged; /* ... it has one */
	struct cds_list_head parked; /* struct write_op: the device is full */
	struct loop_timer full_timer;
	u32 nr_reclaims; /* unmapped, not yet released */
	struct cds_list_head held; /* struct reclaim: as long as it holds */
	u32 nr_ops;
	bool failed; /* metadata could not be written: nothing goes there any more */
	bool closing; /* a worker writes the header: nobody else does */
	bool full;
	u64 stat_allocated;
	u64 starved_bytes; /* its size when a job found no room in it; 0: none has */
	u64 allocated_end; /* of all clusters that were allocated since the start */
	u64 threshold; /* 0: nobody wants to know */
	enum volume_growth growth;
	char growth_reason[GROWTH_REASON_BYTES]; /* why it is stuck */
	u64 start_ns;
	u64 full_ns; /* since when it is full; of the last time */

	struct leak_scan *scan; /* that runs; NULL: none */
	bool unclean; /* found open, and not scanned to the end yet: keeps its mark */
	bool scanned; /* a scan has begun since clusters may have been leaked */
	u64 stat_leaks_freed;

	/* once an overlay stands on it, see chain-switch.c */
	struct cds_list_head node; /* in ct->closing */
	bool settled; /* what was issued while it was active has ended */
	bool dead; /* cannot be sealed */
	struct layer_table *old_table; /* the last one with it as active; until settled */
	struct grace_waiter grace;
	struct loop_timer seal_timer;
	struct io_op seal_flush;
	struct chain_work seal_work;
};

#define CELL_BUCKETS 256u

struct write_op;

/* ---- chain-map.c: the fast path, on every loop -------------------------------- */

enum target_map_result chain_map(struct target *ti, struct request *req);
/*
 * chain_flush_step - make @op a flush of the next image of @t from *@next on;
 * false: that was the last one. The caller's loop holds an epoch, which keeps
 * @t, from the first step to the last.
 */
bool chain_flush_step(const struct layer_table *t, u32 *next, struct io_op *op);
/* ---- chain-flush.c -------------------------------------------------------------------- */

/* Commit and flush all images; @fn on the metadata loop, its caller's. */
void chain_flush(struct chain_target *ct, void (*fn)(void *arg, int error), void *arg);
/* A FLUSH, or the flush of a FUA write, that a queue may not answer. */
void chain_flush_deferred(struct loop *loop, struct loop_msg *msg);

/* ---- chain-hold.c ---------------------------------------------------------------------- */

/* Writes that must not start now go to the metadata thread, which keeps them. */
static inline bool chain_is_held(const struct chain_target *ct, const struct request *req)
{
	return __atomic_load_n(&ct->hold, __ATOMIC_ACQUIRE) &&
	       (req->op == REQ_WRITE || req->op == REQ_DISCARD || req->op == REQ_WRITE_ZEROES);
}
void chain_hold_request(struct chain_target *ct, struct request *req);

/* From the metadata thread: run it through the map again / end it, on its loop. */
void chain_retry(struct request *req);
void chain_finish(struct request *req, int error);
int chain_loop_init(struct loop *loop);
void chain_loop_exit(struct loop *loop);

/* ---- chain-status.c ---------------------------------------------------------------- */

void chain_status(struct target *ti, json_object *result);

/* ---- chain-queue.c: requests that wait, and the tags that they keep ------------------ */

/* @op waits for space (again), does not any more: thread of the metadata loop. */
void queue_park(struct write_op *op);
void queue_unpark(struct write_op *op);
/* Less than a quarter of its queue is left to others. */
bool queue_is_low(const struct write_op *op);
/* [{queue, tags, parked, low}...] of those that have parked requests. */
json_object *queues_json(const struct chain_target *ct);
/* target_locate_fn */
void chain_locate(const struct target *ti, const struct request *req, struct request_info *info);

/* ---- chain-meta.c: the metadata thread's door ---------------------------------- */

void chain_deferred(struct loop *loop, struct loop_msg *msg);
/* Free what was unpublished, when nobody can see it any more; a little may stay. */
void chain_retire(struct chain_target *ct);
void chain_work(struct chain_target *ct, struct chain_work *work);
/* Memory of the bounce budget: 0, -EAGAIN (@wait->fn runs later), -ENOMEM. */
int chain_bounce_get(struct chain_target *ct, u32 bytes, struct meta_wait *wait, void **result);
void chain_bounce_put(struct chain_target *ct, u32 bytes, void *mem);
/* A violation was found; in the active layer it ends writing. */
void chain_corrupt(struct chain_target *ct, u16 layer, u64 guest, u64 host, const char *what);
/* The same, in the tables of an image that is being written. */
void writer_corrupt(struct writer *w, u64 host, const char *what);
/* Its counts, or those of who allocated or released, said -EUCLEAN. */
void writer_miscounted(struct writer *w);
/* meta_ops.failed: the device turns read-only. */
void writer_failed(void *arg, int error);

/* ---- target-chain.c: a chain is served ----------------------------------------------- */

/* Empty; chain_free() also of what chain_serve() could not do. */
struct chain_target *chain_alloc(struct target *ti);
void chain_free(struct chain_target *ct);
/* Of open images, ct->chain: layers, map, loops; then @ct is its target's. */
int chain_serve(struct chain_target *ct, u64 cache_bytes, struct qc_err *err);

/* ---- chain-writer.c: an image is opened for writing, and closed again --------------- */

/*
 * writer_open - make @layer's image, open read-write, ready: refcounts, cells,
 * marks in the header (promise P15). Control thread; @layer is not published yet.
 */
int writer_open(struct chain_target *ct, struct layer *layer, bool below,
		struct writer **result, struct qc_err *err);
/* First thing on the metadata loop; @id: of its layer. */
void writer_start(struct writer *w, u16 id);
/* Nothing is under way, all is durable, everything freed is free. */
bool writer_idle(const struct writer *w);
/* Idle and flushed: the header says that the image was closed cleanly. */
void writer_mark_closed(struct writer *w);
/* The loops have stopped. @w may be NULL. */
void writer_destroy(struct writer *w);
/* Where its layer ends, as its operations have it. */
u64 writer_size(const struct writer *w);
/* Guest bytes that one cached block of L2 entries maps. */
u64 writer_block_coverage(const struct writer *w);
/* Writers that guests' writes go to, or went to: the one after @w; NULL: the first. */
struct writer *chain_next_writer(const struct chain_target *ct, const struct writer *w);
#define chain_for_each_writer(w, ct) \
	for (w = chain_next_writer(ct, NULL); w; w = chain_next_writer(ct, w))
/* Does the device depend on it? Not as long as what is above hides all that it has. */
bool writer_matters(const struct writer *w);

/* ---- chain-layers.c: the layer table ------------------------------------------------- */

/* Of the chain as it was opened; the base has id 0. */
int chain_make_layers(struct chain_target *ct);
void chain_free_layers(struct chain_target *ct);
void layer_table_free(struct layer_table *t);
/* Of open @img, not in any table yet; @path is copied, the image stays the caller's. */
struct layer *layer_create(struct image *img, const char *path, const char *node_name);
void layer_free(struct layer *layer);
/*
 * layer_table_next - the order of @t without the @nr layers from @depth on, whose ids stay unused,
 * and with @top above it as the active layer; NULL: none. Not published; it flushes nothing yet.
 */
struct layer_table *layer_table_next(const struct layer_table *t, u32 depth, u32 nr,
				     struct layer *top);
/*
 * layer_table_follow - what may have changed of @t since @n was made of it
 * In the event that publishes @n in the place of @t; both have the same active layer.
 */
void layer_table_follow(struct layer_table *n, const struct layer_table *t);
/* The same; @n has a new active layer, on @dev, which is flushed as well. -EBUSY: too many. */
int layer_table_inherit(struct layer_table *n, const struct layer_table *t, struct io_dev *dev);
/* @dev takes guests' writes from now on, too. There is room for it. */
void layer_table_add_flush(struct layer_table *t, struct io_dev *dev);
/* A sealed image needs no flush any more. */
void layer_table_drop_flush(struct layer_table *t, const struct io_dev *dev);

/* ---- chain-order.c: the next order of layers -------------------------------------------- */

/* What is to be published; then what was. */
struct chain_order {
	struct layer_table *table;
	struct chain_layer *layers; /* of the chain */
	char *path; /* of a new active layer, until it is published */
	bool *gone; /* by id: layers that leave */
};

/*
 * chain_order_plan - @ct's layers without the @nr from @depth on; @top, NULL: none, comes above
 * Control thread or a worker, with the turn until it is published; or nobody else is there
 * who changes the order. -ENOMEM; -EMLINK: too deep.
 * chain_order_publish - in time that does not depend on the depth; metadata loop. The
 * table was told before what has changed meanwhile.
 */
int chain_order_plan(const struct chain_target *ct, u32 depth, u32 nr, struct layer *top,
		     struct chain_order *result, struct qc_err *err);
void chain_order_publish(struct chain_target *ct, struct chain_order *o);
/* Of what was published: after grace. */
void chain_order_exit(struct chain_order *o);

/* ---- chain-turn.c: merges beside each other, and snapshots beside them ----------------- */

/*
 * chain_turn_take - nobody else changes the order of layers until chain_turn_give()
 * @snapshot: the active layer is about to be one of the middle: merges that work on it
 * rest. Control thread; -EBUSY after a few seconds, @err tells whom it waits for.
 */
int chain_turn_take(struct chain_target *ct, bool snapshot, struct qc_err *err);
void chain_turn_give(struct chain_target *ct);
/* In the event that puts an overlay on top, before and after it. */
void merges_before_switch(struct chain_target *ct);
void merges_after_switch(struct chain_target *ct);
/* Layers or their writers have: folds under way start over, of views, too (rule C1). */
void chain_layers_changed(struct chain_target *ct);

/* ---- chain-rename.c: other names on the host, whoever has the turn ---------------------- */

/* In the event that ends the turn: names that came meanwhile replace the old ones. */
void chain_renames_apply(struct chain_target *ct);
/* What is to be shown for the layer at @depth: the newest name. Metadata loop. */
const char *chain_layer_path(const struct chain_target *ct, u32 depth);

/* ---- chain-switch.c: an overlay becomes the active layer ------------------------------ */

/* Has everything that was issued before @w's writer became active ended? */
bool writer_may_read_below(const struct writer *w);
/* @w begins nothing any more: seal its layer after grace. */
void writer_seal(struct writer *w);
/* May @img, new, open and at @path, become the active layer, on the layer at @depth? */
int chain_check_overlay(const struct chain_target *ct, const struct image *img, const char *path,
			u32 depth, struct qc_err *err);
/* Closing writers that are not sealed; a chain with one is not idle. */
bool chain_is_sealing(const struct chain_target *ct);

/* ---- chain-unclean.c -------------------------------------------------------------- */

/*
 * chain_check_image - open the qcow2 image at @path, check it and repair @fix
 * @flags: of io_dev_open(), beside IO_DEV_WRITE. Nobody else may have it open.
 * -EUCLEAN: errors (not leaks) are left, or it cannot be checked; closed again then.
 */
int chain_check_image(const char *path, u32 flags, u32 fix, struct image **result,
		      struct qc_err *err);
/*
 * Seal the layers below the active one that a dead daemon left open, and open the
 * chain anew then. One that cannot be sealed now is left: it can be read.
 */
int chain_seal_late(struct chain_target *ct, const char *top,
		    const struct chain_open_options *options, struct qc_err *err);

/* ---- chain-load.c: folding windows ----------------------------------------------- */

/* Call @wait->fn when window @index is loaded (it stays until @fn returns) or failed. */
void chain_load(struct chain_target *ct, u64 index, struct load_wait *wait);
/* The windows from @index on are likely to be asked for: load some, while nothing is evicted. */
void chain_load_ahead(struct chain_target *ct, u64 index);

/* ---- chain-warm.c: loading the map before it is asked for ---------------------------- */

void chain_warm_start(struct chain_target *ct);
void chain_warm_stop(struct chain_target *ct);
/* "state", and "percent" of the disk that was gone through. */
json_object *chain_warm_json(const struct chain_target *ct);

/* ---- chain-read.c: reads that need the CPU ------------------------------------------ */

void chain_slow_read(struct chain_target *ct, struct request *req);

/* ---- chain-split.c, chain-write.c, chain-plan.c: changes of mapping ------------------ */

enum write_op_type { OP_WRITE, OP_ZERO, OP_DISCARD, OP_UNMAP };

/* What becomes of one cluster. */
struct cluster_plan {
	u64 host; /* where data goes; 0: nowhere */
	u64 entry; /* new L2 entry and bitmap */
	u64 bitmap;
	u64 valid_start; /* guest bytes that are written */
	u64 valid_end;
	u64 unmap_host; /* given up; 0: nothing */
	u64 unmap_bytes;
	bool changed; /* the entry */
	bool alloc; /* @host is not, or was not, allocated yet */
	u8 kind; /* enum extent_kind of the valid range afterwards */
	u8 flags; /* of that extent */
};

enum new_table_state { TABLE_BUILDING, TABLE_READY, TABLE_JOINED };

/*
 * struct new_table - an L2 table that does not exist yet, or is shared with an
 * internal snapshot and must be copied
 *
 *   BUILDING -> READY -> JOINED     the operations that need it drive it: see
 *                                   write_op_table(), write_op_block()
 */
struct new_table {
	struct cds_list_head node;
	struct writer *writer;
	u32 refs; /* operations that use it; its transaction */
	u32 l1_index;
	enum new_table_state state;
	u64 host; /* 0: not allocated yet */
	u64 old_host; /* the shared table it replaces; 0: none */
	u32 copied_bytes; /* of the old table */
	u8 *data; /* whole table, big-endian; the transaction's after JOINED */
	struct meta_block *l1_block; /* pinned */
	struct l1_change change; /* from JOINED until linked */
	struct meta_join join;
};

/* A request, cut into operations. */
struct slow_request {
	struct cds_list_head node; /* in ct->fenced, or a list of ct->saver */
	struct chain_target *ct;
	struct request *req;
	bool fill; /* a merge's: goes only where the layer maps nothing */
	bool unmap; /* a commit's: what the layer maps there is given up */
	bool fenced; /* waits in such a list */
	u64 save_pos; /* ... of ct->saver, until this is saved */
	struct writer *into; /* a commit's: whatever guests' writes go to; NULL: the same */
	u64 pos;
	u64 end;
	struct cds_list_head redo; /* struct write_op: their range is cut again */
	u32 active;
	int error;
	bool cutting; /* split_run() is on the stack */
	struct io_op io; /* a raw layer's data */
	u32 epoch; /* while @io is under way */
	void *mem;
};

/*
 * struct write_op - one change of a guest range within one block of L2 entries
 * Holds the cell of its clusters: operations that overlap wait (rule B4).
 */
struct write_op {
	struct writer *writer;
	struct slow_request *parent;
	u8 type; /* enum write_op_type */
	u8 stage;
	bool nounmap;
	bool zero_data; /* OP_WRITE: zeroes instead of the request's data */
	bool in_cell;
	bool running; /* write_op_run() is on the stack */
	bool again; /* ... and was called once more meanwhile */
	bool waits_for_space; /* counted in its request's queue */
	int error;
	u64 start; /* guest bytes */
	u64 len;
	struct cds_list_head cell; /* in its hash bucket */
	struct cds_list_head node; /* where it waits, or writer->linked */
	struct cds_list_head cell_waiters; /* struct write_op */
	struct meta_wait wait;
	/* the entries: one of the two */
	struct meta_block *block; /* pinned */
	struct new_table *table;
	/* plan */
	u64 first_cluster;
	u32 nr_clusters;
	bool planned;
	u32 nr_allocated; /* plans that have their place */
	struct cluster_plan *plans; /* @one_plan, or memory for more */
	struct cluster_plan one_plan;
	/* fill and data */
	void *bounce;
	u32 bounce_bytes;
	u64 fill_pos;
	struct request fill;
	struct loop_msg data_msg; /* to the request's loop, and back */
	struct io_op *data; /* @one_io, or memory for more */
	struct io_op one_io;
	u32 ios; /* of @data, under way: that loop's, as the error */
	int data_error;
	bool data_done;
	struct meta_join join;
};

void chain_write(struct chain_target *ct, struct request *req);
/*
 * chain_fill - the same, for what a merge brings into the active layer: a granule
 * that the layer maps when its turn comes stays as it is. Whole granules, which
 * read so without it; nothing waits for space: -ENOSPC.
 */
void chain_fill(struct chain_target *ct, struct request *req);
/* The same, for what a merge brings into the layer of @w: where it maps nothing; always. */
void chain_fill_into(struct writer *w, struct request *req);
void chain_write_into(struct writer *w, struct request *req);
/*
 * chain_unmap - the layer of @w maps nothing of whole clusters any more: what is
 * below shows through. The map is not told. A REQ_DISCARD as to its size.
 */
void chain_unmap(struct writer *w, struct request *req);
/* One of @s's operations is over (and freed). */
void slow_request_op_done(struct slow_request *s, int error);
/* -ESTALE: @op's range is cut again: for whom it belongs to now, or finer for a fill. */
void slow_request_redo(struct write_op *op_owned);
/* The fence is lifted, or moved: what waits for it is cut again. */
void chain_run_fenced(struct chain_target *ct);
/* @s, which has waited and is in no list any more, is cut again. */
void slow_request_go_on(struct slow_request *s);
/* Is it a guest's? What merges write changes nothing that the device shows. */
static inline bool slow_request_is_guests(const struct slow_request *s)
{
	return !s->fill && !s->into;
}

/* [@start, @end) of @s's request, into @w: within one block of entries. NULL: no memory. */
struct write_op *write_op_create(struct slow_request *s, struct writer *w, u64 start, u64 end,
				 u8 type);
void write_op_run(struct write_op *op);
/* Run what waits in @waiting (struct write_op by node) again; it is emptied first. */
void write_ops_run(struct cds_list_head *waiting);
/* @op is over and freed. */
void write_op_done(struct write_op *op, int error);

static inline u32 write_op_l1_index(const struct write_op *op)
{
	return op->start >> image_l2_coverage_bits(op->writer->img);
}

/* Big-endian memory of the entry of the op's first cluster. */
void *write_op_entries(const struct write_op *op);
/* Decide what becomes of the clusters of @op; no I/O. 0 or -EIO. */
int write_op_decide(struct write_op *op);
/* A fill: 0: nothing is mapped there; 1: all is; -ESTALE: some; -EIO. */
int write_op_is_mapped(struct write_op *op);

/* ---- chain-range.c: operations in a range of guest addresses ------------------------------ */

/* Those of @w that have not begun, or wait for space, are cut again: -ESTALE. */
void writer_put_off(struct writer *w, u64 start, u64 end);
/* Has @w one there? */
bool writer_is_busy(const struct writer *w, u64 start, u64 end);
/* ... one of a guest's, anywhere? */
bool writer_has_guests(const struct writer *w);

/* ---- chain-table.c: L2 tables that do not exist yet ------------------------------------- */

struct new_table *table_find(struct writer *w, u32 index);
void table_put(struct new_table *nt);
/*
 * Make sure that @op->block or a usable @op->table is set. 0, -EAGAIN (waits),
 * -ENOSPC, -EIO.
 */
int write_op_table(struct write_op *op);
/* ... that @op->block is: the first user of a new table brings it into the transaction. */
int write_op_block(struct write_op *op);

/* ---- chain-l1.c: the L1 table grows ------------------------------------------------------- */

/*
 * struct l1_growth - @writer's L1 table gets @entries, more than it has
 * @fn: on the metadata loop: the table is durable (@error 0); or it is as it was,
 *	or the writer has failed
 */
struct l1_growth {
	struct writer *writer;
	u32 entries;
	void (*fn)(struct l1_growth *growth, int error);
	/* private */
	u64 host; /* of what was found so far */
	u64 end;
	struct spare *spares;
	struct meta_wait wait;
	struct meta_flush flush;
};

/* Metadata loop. Waits for no space: -ENOSPC. Writes go on meanwhile. */
void writer_grow_l1(struct l1_growth *growth);

/* ---- chain-grow.c: an image gets longer ---------------------------------------------------- */

/*
 * writer_check_grow - can an image grow to @bytes while it is written? @path: for @err
 * writer_grow - make @w's image @bytes long, durably; @below_bytes: the size of the layer
 * below, 0: none. Control thread, which waits; guests go on. -ENOSPC: nothing has changed.
 * Of a raw image a file gets longer, a block device must be so already.
 * writer_cover - [@from, @to) of @w, where it maps nothing, is zero, durably
 */
int writer_check_grow(const struct image *img, const char *path, u64 bytes, struct qc_err *err);
int writer_grow(struct writer *w, u64 bytes, u64 below_bytes, struct qc_err *err);
int writer_cover(struct writer *w, u64 from, u64 to, struct qc_err *err);

/* ---- chain-publish.c: when a change is published and acknowledged ------------------------ */

extern const struct meta_ops writer_meta_ops;
/* Room for @op's entries in the intent log: 0, -EAGAIN (waits), -EIO. */
int writer_reserve_log(struct write_op *op);
/* @op's entries are in the open transaction: write_op_done() once it survives a death. */
void writer_acknowledge(struct write_op *op);

/* ---- chain-replay.c: the intent log of a daemon that died --------------------------------- */

/* What names the image on @dev in an intent log. */
void chain_log_name(const struct io_dev *dev, char name[INTENT_NAME_BYTES]);
/*
 * chain_replay - write what ct->log holds into the tables of ct->chain, which is
 * opened anew then; the log is empty afterwards. Before anything else is read.
 * -ESTALE: an image was written by somebody else, or is not in the chain.
 */
int chain_replay(struct chain_target *ct, const char *top,
		 const struct chain_open_options *options, struct qc_err *err);

/* ---- chain-space.c: giving back, running full ------------------------------------------ */

/* @host is unmapped by the open transaction: release it when that is safe. */
int writer_unmap(struct writer *w, u64 host, u64 bytes);
/* Never named on disk: give it back at once. */
void writer_release_now(struct writer *w, u64 host, u64 bytes);
/* Nothing shows the places that @w holds any more: give them back after grace. */
void writer_release_held(struct writer *w);
void writer_park(struct write_op *op);
void writer_unpark(struct writer *w);
/* The device has grown: so do they, and it is not full any more. */
void writer_grown(struct writer *w);
void writer_full_timer(struct loop *loop, struct loop_timer *timer);

/* ---- chain-leaks.c: the leak scan ------------------------------------------------------- */

/* Nothing that @w has unmapped may be on its way to being released. */
void writer_scan_start(struct writer *w);
/* Somebody waits for its end: no pauses. No scan runs: nothing. */
void writer_scan_hurry(struct writer *w);
/* The daemon stops: the scan ends soon, done or not. */
void writer_scan_stop(struct writer *w);
/* {running, percent, freed-clusters} */
json_object *scan_json(const struct writer *w);

/* ---- chain-threshold.c ------------------------------------------------------ */

/* Clusters up to @end were allocated. Metadata loop. */
void writer_allocated(struct writer *w, u64 end);
/*
 * writer_will_grow - is a full volume worth waiting for, where writes are to fail?
 * Metadata loop, as the two below it.
 * chain_add_volume - to the object of the layer called @node: its threshold and, if it is
 * written to, how far it is allocated, whether it is full, how its volume grows, and a number
 * that another writer of that name does not have
 * writer_growth_json - {state, reason}
 */
bool writer_will_grow(struct writer *w);
void chain_add_volume(const struct chain_target *ct, const char *node, json_object *object);
json_object *writer_growth_json(const struct writer *w);

#endif
