/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Online merges: what stream and commit share. Private to target/. */
#ifndef CHAIN_MERGE_H
#define CHAIN_MERGE_H

#include "chain-private.h"

#include <qchain/edit.h>
#include <qchain/transfer.h>

/* Of one error: so much is copied again. */
#define MERGE_REGION_BYTES (4u * 1024u * 1024u)

/* A merge that a snapshot has moved below the overlay gets the writer and the view anew. */
enum merge_late { LATE_NO, LATE_WAITS, LATE_RUNS, LATE_FAILED };

/*
 * struct merge - one job: layers @first to @first + @nr - 1, by depth, go; what they
 * hold comes into the layer above them (stream) or into the one below them (commit)
 */
struct merge {
	struct cds_list_head node; /* in ct->merges, until the layers have gone */
	/* set once */
	struct chain_target *ct;
	struct target target; /* what the job writes to */
	bool up; /* stream */
	/* from the start on by the metadata loop: snapshots and other merges move them */
	u32 first;
	u32 nr;
	char *name; /* new backing of the layer above; NULL: none */
	char *format;
	struct io_dev *above_dev; /* of that, open for writing; NULL: not for us */
	enum merge_late late; /* begins anew below an overlay */
	bool too_early; /* ... and something was being sealed: once more */
	bool held; /* its job rests for a snapshot */
	/* of what receives, unless it is the active layer */
	struct writer *base; /* NULL: that one */
	struct chain_target *view; /* of the chain from its top on: what is copied */
	struct target source; /* that view */
	struct request *flush_req; /* under way */
	struct io_op flush_io;
	/* commit of the active layer: from the merge of layers between on, which is a part of it */
	bool pivots; /* ends with that, unless a snapshot comes */
	struct handover *handover; /* NULL: not begun */
	struct job *job; /* set once */
	/* the last step: metadata loop */
	void (*over)(struct merge *m, int ret); /* what comes after it */
	struct chain_work work;
	struct backing_patch patch;
	struct qc_err err;
	struct meta_wait wait;
	struct meta_flush flush;
	u32 named_bytes;
	struct grace_waiter grace;
	struct writer *top; /* pivot: of the old active layer */
	struct loop_timer timer;
	struct chain_order order; /* to be published; then the old one */
	struct view_change *views; /* likewise */
	u32 nr_views;
	u32 gone_first; /* which layers these were, in the old ones */
	u32 gone_nr;
};

/* Layer table of another merge's view. */
struct view_change {
	struct merge *of; /* compared only: it may have ended */
	struct layer_table *table;
};

/* ---- chain-merge.c ------------------------------------------------------------- */

extern const struct transfer_ops merge_ops;
extern const struct transfer_ops merge_active_ops; /* ... of a commit of the active layer */

/* Control thread, with the turn. The header of the layer above must have room for @name. */
int merge_create(struct target *ti, u32 first, u32 nr, const char *name, struct merge **result,
		 struct qc_err *err);
/* Not under way any more, or never: what was begun for it is ended. Control or metadata loop. */
void merge_free(struct merge *m);
/*
 * merge_drop - all is durable: the header of the layer above names what is below the
 * merged layers, which are closed; then @over. Metadata loop; m->err tells why not.
 */
void merge_drop(struct merge *m, void (*over)(struct merge *m, int ret));
/* The new backing's name, for the header of the layer above; @name NULL: as it lies to that. */
int merge_set_backing(struct merge *m, const char *name, struct qc_err *err);
/* What its job copies from where. */
void merge_transfer(struct merge *m, struct transfer_options *result);
/*
 * merge_make_job - @m joins the chain's other merges, and gets a job; it is freed if that cannot be
 * Control thread, with the turn.
 */
int merge_make_job(struct merge *m_owned, struct jobs *jobs, const char *type,
		   const struct job_options *options, struct job **result, struct qc_err *err);
/* Whose header will name what is below the merged layers. */
static inline const struct chain_layer *merge_above(const struct merge *m)
{
	return &m->ct->chain->layers[m->first - 1];
}
/* What receives. */
static inline const struct chain_layer *merge_receiver(const struct merge *m)
{
	return &m->ct->chain->layers[m->up ? m->first - 1 : m->first + m->nr];
}
/* By node name; by path, or as the layer above names it. */
bool merge_find_node(const struct chain *chain, const char *name, u32 *depth);
bool merge_find_file(const struct chain *chain, const char *name, u32 *depth);
/* Nothing is called @name: a device or node; a node only. -ENOENT, in QEMU's words. */
int merge_no_node(const char *name, struct qc_err *err);
int merge_no_layer(const char *name, struct qc_err *err);

/* ---- chain-turn.c: beside others ------------------------------------------------- */

/* Metadata loop: false: somebody else has it, ask again. @who: told to those who wait. */
bool turn_try(struct chain_target *ct, const char *who);
void turn_end(struct chain_target *ct);
/* @m is one of the chain's merges: -EBUSY when another one has a layer of it. Control thread. */
int merge_join(struct merge *m, struct qc_err *err);
void merge_leave(struct merge *m);
/* @nr of @m have, from the published table: what others have lies higher now. Ends the turn. */
void merge_layers_gone(struct merge *m, u32 nr);
/* No window of the map, nor of a view, names layers with these ids any more. */
void merge_forget_ids(struct chain_target *ct, const bool *layers);
/* The tables of other merges' views without the layers that go: made, published, given back. */
int merge_views_plan(struct merge *m);
void merge_views_publish(struct merge *m);
void merge_views_free(struct merge *m);

/* ---- chain-commit.c ------------------------------------------------------------- */

/* A request of the job to the base. */
enum target_map_result commit_map(struct merge *m, struct request *req);
/*
 * What receives, a base, or a layer below the active one that is streamed into, gets a
 * writer, and what is copied a view. Control thread; @m: as merge_create() has made it.
 */
int commit_begin(struct merge *m, struct qc_err *err);
/* No restore points any more, as long as it runs (rule D2). Metadata loop. */
void merge_mark(const struct merge *m, bool merging);
/* The granule that the base is written in. */
u32 commit_granule(const struct merge *m);
/* The job is over, or moves below an overlay: the base is sealed again. Metadata loop. */
void commit_end(struct merge *m);
/* What was copied is durable: the base is read through the device from now on. */
void commit_end_view(struct merge *m);

/* ---- chain-cover.c --------------------------------------------------------------- */

/*
 * What stands on the raw layer at @depth, a layer of @m, maps zeroes from that one's end
 * up to @bytes, durably, and is sealed again. Control thread, with the turn.
 */
int merge_cover(struct merge *m, u32 depth, u64 bytes, struct qc_err *err);

/* ---- chain-handover.c: the active layer, region by region ------------------------- */

extern const struct job_type handover_type;
/* The job is over without a pivot: the active layer takes all writes again, the base is sealed. */
void handover_give_up(struct merge *m);
/* Nothing is under way. */
void handover_free(struct handover *h);

/* ---- chain-pivot.c ------------------------------------------------------------------ */

/* job_prepare_fn: the base is the active layer, the layer above it is closed. */
void pivot_prepare(struct job *job, void *arg);

#endif
