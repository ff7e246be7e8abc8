/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The image that a job copies a device into: marked until it is whole, a target of its own. */
#ifndef CHAIN_COPY_TARGET_H
#define CHAIN_COPY_TARGET_H

#include "chain-private.h"

/* Clusters at most, of a target that has a backing: what is copied is never larger. */
#define COPY_TARGET_MAX_BITS 20u

/*
 * struct copy_target - a chain of one layer, with loops of its own
 * Requests go to @target, on copy_target_loop().
 */
struct copy_target {
	/* set once */
	struct target *target; /* NULL when it is closed */
	struct chain_target *ct;
	struct chain_target *of; /* of the device: whose metadata loop the job is on */
	struct image *img; /* the caller's: never closed here */
	bool *busy; /* atomic: true until it is closed */
	/* the end */
	void (*ended)(struct copy_target *t, int error);
	int error;
	struct qc_err err; /* why it could not be made durable */
	struct request flush;
	struct loop_msg flush_msg;
	struct meta_flush meta_flush;
	struct chain_work close;
};

static inline struct loop *copy_target_loop(const struct copy_target *t)
{
	return t->ct->loop;
}

/* Control thread: can @img be one for the device @of? -EINVAL, -EOPNOTSUPP. */
int copy_target_check(const struct chain_target *of, const struct image *img, struct qc_err *err);
/* ... mark it, durably, and serve it. copy_target_drop: it was of no use; the mark stays. */
int copy_target_open(struct copy_target *t, struct chain_target *of, struct image *img,
		     bool *busy, struct qc_err *err);
void copy_target_drop(struct copy_target *t);
/*
 * copy_target_end - nothing is under way there: close it, then @ended with an error, if any
 * @error 0: all that is to be in it is: that is made durable first, then the mark goes,
 * durably. Metadata loop of the device, as @ended.
 */
void copy_target_end(struct copy_target *t, int error,
		     void (*ended)(struct copy_target *t, int error));

#endif
