/* SPDX-License-Identifier: GPL-2.0-or-later OR MIT */
/* The metadata of a closed image, driven step by step on the caller's thread. */
#ifndef QCOW2_EDIT_H
#define QCOW2_EDIT_H

#include <qchain/edit.h>
#include <qchain/meta.h>
#include <qchain/refcount.h>

struct editor {
	struct image *img;
	struct qc_err *err;
	struct loop *loop;
	struct meta *meta;
	struct refcounts *rc; /* opened by editor_refcounts() */
	int failed; /* the disk could not be written */
	bool unclean; /* it was not closed cleanly, and stays marked so */
};

/* Places that were mapped, adjacent ones together. */
struct places {
	struct place {
		u64 host;
		u64 bytes;
	} *list;
	u32 nr;
	u32 room;
};

int places_add(struct places *places, u64 host, u64 bytes);

/*
 * editor_run - @fn with an editor of @img, on its loop, then settle
 * @arg is what @fn needs. Returns what @fn does, or why it could not be settled.
 */
int editor_run(struct image *img, int (*fn)(struct editor *ed, void *arg), void *arg,
	       struct qc_err *err);

/* The same for an image that was not closed cleanly, and that stays marked so. */
int editor_run_unclean(struct image *img, int (*fn)(struct editor *ed, void *arg), void *arg,
		       struct qc_err *err);

/*
 * All of these wait. editor_refcounts() also marks the image as open (P15, P17):
 * before the first change of a mapping or a count.
 */
int editor_refcounts(struct editor *ed);
int editor_block(struct editor *ed, u64 offset, struct meta_block **result);
/* @clusters side by side. */
int editor_alloc(struct editor *ed, u32 clusters, u64 *host);
/* One, for an L2 table: also of those that are kept for tables. */
int editor_alloc_table(struct editor *ed, u64 *host);
int editor_release(struct editor *ed, u64 host, u64 bytes);
/* The cluster at @host is in use, whatever its count says; @alone: by one entry. */
int editor_claim(struct editor *ed, u64 host, bool alone);
/* Commit what the open transaction holds. */
int editor_commit(struct editor *ed);
/* Everything is durable. */
int editor_settle(struct editor *ed);
/* Commit @bytes of @data at @at of sector 0, and settle. */
int editor_set_header(struct editor *ed, u32 at, const void *data, u32 bytes);

#endif
