/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Online merges: what stream and commit share. Private to target/. */
#ifndef CHAIN_MERGE_H
#define CHAIN_MERGE_H

#include "chain-private.h"

#include <qchain/edit.h>
#include <qchain/transfer.h>

/* Of one error: so much is copied again. */
#define MERGE_REGION_BYTES (4u * 1024u * 1024u)

/*
 * struct merge - one job: layers @first to @first + @nr - 1, by depth, go; what they
 * hold comes into the layer above them (stream) or into the one below them (commit)
 */
struct merge {
	/* set once */
	struct chain_target *ct;
	struct target target; /* what the job writes to */
	u32 first;
	u32 nr;
	const struct chain_layer *above; /* whose header will name what is below them */
	char *name; /* new backing of that; NULL: none */
	char *format;
	bool up; /* stream */
	/* of what receives, unless it is the active layer */
	struct writer *base; /* NULL: that one */
	struct chain_target *view; /* of the chain from its top on: what is copied */
	struct target source; /* that view */
	struct request *flush_req; /* under way */
	struct io_op flush_io;
	/* commit of the active layer: from the merge of layers between on, which is a part of it */
	bool pivots;
	struct handover *handover; /* NULL: not begun */
	/* the last step: metadata loop */
	struct job *job;
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
	struct layer_table *table; /* to be published; then the old one */
	struct chain_layer *layers; /* of the chain, likewise */
};

/* ---- chain-merge.c ------------------------------------------------------------- */

extern const struct transfer_ops merge_ops;
extern const struct transfer_ops merge_active_ops; /* ... of a commit of the active layer */

/* Control thread. The header of the layer above must have room for @name. */
int merge_create(struct target *ti, u32 first, u32 nr, const char *name, struct merge **result,
		 struct qc_err *err);
/*
 * merge_drop - all is durable: the header of the layer above names what is below the
 * merged layers, which are closed; then @over. Metadata loop; m->err tells why not.
 */
void merge_drop(struct merge *m, struct job *job, void (*over)(struct merge *m, int ret));
/* Nobody may name an extent of layers @first to @first + @nr - 1 any more: 0 or -ENOMEM. */
int merge_forget(struct merge *m, u32 first, u32 nr);
/* By node name; by path, or as the layer above names it. */
bool merge_find_node(const struct chain *chain, const char *name, u32 *depth);
bool merge_find_file(const struct chain *chain, const char *name, u32 *depth);
/* Nothing is called @name: a device or node; a node only. -ENOENT, in QEMU's words. */
int merge_no_node(const char *name, struct qc_err *err);
int merge_no_layer(const char *name, struct qc_err *err);

/* ---- chain-commit.c ------------------------------------------------------------- */

/* A request of the job to the base. */
enum target_map_result commit_map(struct merge *m, struct request *req);
/*
 * What receives, a base, or a layer below the active one that is streamed into, gets a
 * writer, and what is copied a view. Control thread; @m: as merge_create() has made it.
 */
int commit_begin(struct merge *m, struct qc_err *err);
/* The job is over: the base is sealed again. Metadata loop, or the control thread. */
void commit_end(struct merge *m);
/* What was copied is durable: the base is read through the device from now on. */
void commit_end_view(struct merge *m);

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
