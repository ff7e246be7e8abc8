/* SPDX-License-Identifier: GPL-2.0-or-later OR MIT */
/* The intent log (rule A1): changes of mapping that are acknowledged and not yet written. */
#ifndef QCHAIN_INTENT_LOG_H
#define QCHAIN_INTENT_LOG_H

#include <qchain/err.h>
#include <qchain/types.h>

/*
 * A file in memory that outlives the process, mapped; of fixed size. One thread
 * appends and drops, the metadata thread. A change is acknowledged when its entry
 * is in the log; the entry is dropped when the sectors of tables that carry it have
 * been written. What a daemon that died has left there, its successor writes into
 * the tables before anything else (chain-replay.c).
 *
 * The log belongs to one life of one device (@nonce) and to one boot of the host:
 * a power cut loses it, and must. Each entry belongs to a layer, which is named by
 * what identifies its image while the host runs.
 */

struct intent_log;

/* Layers that have entries at the same time. */
#define INTENT_LAYERS 4u
#define INTENT_NAME_BYTES 192u

/* What becomes of one guest cluster: its L2 entry and bitmap, host-endian. */
struct intent {
	u64 cluster;
	u64 entry;
	u64 bitmap;
};

/*
 * intent_log_create - an empty log at @path, whatever was there, for a new life
 * intent_log_open - the log that is at @path, with what it holds
 * -ESTALE: it is of another life, or of another boot; -EUCLEAN: no log; -ENOENT;
 * -EBUSY: somebody has it open, and it stays as it is.
 */
int intent_log_create(const char *path, u64 nonce, struct intent_log **result,
		      struct qc_err *err);
int intent_log_open(const char *path, u64 nonce, struct intent_log **result,
		    struct qc_err *err);
/* The file stays. @log may be NULL. */
void intent_log_close(struct intent_log *log);

/* ---- writing: one thread ------------------------------------------------------ */

/* A layer that will have entries; *@layer names it from now on. -EBUSY: too many. */
int intent_log_attach(struct intent_log *log, const char *name, u32 *layer);
/* All of its entries are dropped. */
void intent_log_detach(struct intent_log *log, u32 layer);

/* Is there room for @nr entries? If not: commit all, so that some are dropped. */
bool intent_log_has_room(const struct intent_log *log, u32 nr);
/* Needs room. Entries are numbered; returns the number of the last. */
u64 intent_log_append(struct intent_log *log, u32 layer, const struct intent *intents, u32 nr);
/* Entries of @layer up to number @mark are in the tables. */
void intent_log_drop(struct intent_log *log, u32 layer, u64 mark);

/* ---- replay: nobody is attached ------------------------------------------------- */

/*
 * intent_log_collect - what the log wants for image @name
 * One intent for each cluster, the newest, sorted by cluster; malloc'ed, NULL and
 * *@nr 0 when there are none.
 */
int intent_log_collect(const struct intent_log *log, const char *name, struct intent **result,
		       u32 *nr);
/* The name of a layer that has entries, from *@i on, which goes behind it; NULL: no more. */
const char *intent_log_next_name(const struct intent_log *log, u32 *i);
/* All of it is in the tables. */
void intent_log_clear(struct intent_log *log);

/* ---- status ------------------------------------------------------------------------ */

u32 intent_log_used(const struct intent_log *log);
u32 intent_log_size(const struct intent_log *log);

#endif
