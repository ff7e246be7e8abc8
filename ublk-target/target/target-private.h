/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The target types that this room offers. */
#ifndef TARGET_PRIVATE_H
#define TARGET_PRIVATE_H

#include <qchain/target.h>

extern const struct target_type target_linear;
extern const struct target_type target_zero;
extern const struct target_type target_error;
extern const struct target_type target_chain;

/* ---- target.c --------------------------------------------------------------- */

/* What target_create() does before and after ctr. free() undoes the first one. */
struct target *target_alloc(const struct target_type *type);
void target_ask_limits(struct target *ti);

/* ---- target-stats.c -------------------------------------------------------- */

/* Give @loop its counters; take them away again, into the target's sum. */
int stats_attach(struct target *ti, struct loop *loop);
void stats_detach(struct target *ti, struct loop *loop);

/* Thread of req->loop; nothing happens on a loop without counters. */
void stats_begin(struct request *req);
void stats_end(struct request *req, int error);
void stats_invalid(struct request *req);

/* ---- target-trouble.c ------------------------------------------------------ */

/* @req failed: an event, unless there was one in the last second. Thread of req->loop. */
void trouble_tell(const struct request *req, int error);

#endif
