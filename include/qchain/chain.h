/* SPDX-License-Identifier: GPL-2.0-or-later OR MIT */
/* Opening a chain: the images from the active layer down to the base. */
#ifndef QCHAIN_CHAIN_H
#define QCHAIN_CHAIN_H

#include <qchain/err.h>
#include <qchain/image.h>
#include <qchain/types.h>

/* One layer as the chain was found. */
struct chain_layer {
	struct image *img;
	char *path;
	char node_name[32]; /* unique in the chain, QC_MAX_NODE_NAME characters */
};

/*
 * struct chain - images by depth: layers[0] is the active layer, the last one
 * the base. Owns them.
 */
struct chain {
	u32 nr_layers;
	struct chain_layer *layers;
	bool read_only;
	u64 virtual_size; /* of the active layer (or of the snapshot shown) */
};

struct chain_open_options {
	enum image_format top_format;
	bool read_only;
	bool no_lock; /* info, map, check of an image in use */
	bool wait; /* rule A2: wait for a dead process's I/O */
	const char *snapshot; /* internal snapshot to show, read-only */
	u32 nr_layers; /* open no more than so many, from the top; 0: all */
	/*
	 * Show the active layer longer than its header says (its L1 table must
	 * reach): so that the new range can be made zero before it is visible (B6).
	 */
	u64 grow_to;
	struct backing_policy policy; /* allow_dirs and friends; start is done here */
};

/*
 * chain_open - open @top and everything below it
 *
 * The active layer is opened for writing unless read_only; all others read-only
 * always. Loops (the same device and inode twice) and depth are checked before
 * anything is served. On failure nothing stays open and @err names the layer.
 */
int chain_open(const char *top, const struct chain_open_options *options,
	       struct chain **result, struct qc_err *err);
void chain_close(struct chain *chain);
/*
 * chain_reopen - the layers of @of from @depth on, once more and read-only
 * Through their descriptors: no path is looked up (rule E1), and node names stay. -EBUSY:
 * one of them is being written, by @of too. The caller sees to it that @of does not change.
 */
int chain_reopen(const struct chain *of, u32 depth, struct chain **result, struct qc_err *err);

/* The lowest common I/O rules of all layers (rule A5). */
u32 chain_block_bytes(const struct chain *chain);

#endif
