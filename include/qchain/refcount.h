/* SPDX-License-Identifier: GPL-2.0-or-later OR MIT */
/* Refcounts and the allocator of an image that is being written. Room qcow2/. */
#ifndef QCHAIN_REFCOUNT_H
#define QCHAIN_REFCOUNT_H

#include <qchain/image.h>
#include <qchain/meta.h>

/*
 * Refcounts are exact in every image (rule A3). An allocation counts in memory
 * at once and on disk with step 1 of the next transaction; a decrement follows
 * the durable unmapping (rule B1, backwards). All calls on the metadata loop.
 */

struct busy;
struct refcounts;

/* Reads the refcount table (synchronously) and builds the overlap check. */
int refcounts_open(struct image *img, struct meta *meta, struct refcounts **result,
		   struct qc_err *err);
void refcounts_close(struct refcounts *rc);

/*
 * refcounts_alloc - up to @want adjacent clusters, at least one
 * 0 and *@host, *@got; -EAGAIN: @wait->fn runs when it is worth asking again;
 * -ENOSPC: the device is full (ask again after growth or a release); -EIO; -EUCLEAN:
 * what is counted as free is a table, see refcounts_fault().
 */
int refcounts_alloc(struct refcounts *rc, u32 want, struct meta_wait *wait, u64 *host,
		    u32 *got);

/*
 * refcounts_alloc_table - one cluster, for a table without which nothing can be given
 * up: also out of the reserve, which refcounts_alloc() leaves on a device that is full
 */
int refcounts_alloc_table(struct refcounts *rc, struct meta_wait *wait, u64 *host);

/*
 * refcounts_release - one reference less to each cluster that [@host, +@bytes)
 * touches. Only when nothing durable names them any more and nobody reads them.
 * 0; -EAGAIN; -EUCLEAN: a count was zero already, see refcounts_fault().
 */
int refcounts_release(struct refcounts *rc, u64 host, u64 bytes, struct meta_wait *wait);

/*
 * refcounts_claim - the cluster at @host is in use: a count of zero becomes one
 * @alone: by one entry, which says so (COPIED): any count becomes one
 *
 * For a place whose allocation, or the release before it, may not have reached the
 * disk. 0; -EAGAIN; -EUCLEAN: nothing counts it.
 */
int refcounts_claim(struct refcounts *rc, u64 host, bool alone, struct meta_wait *wait);

/* After -EUCLEAN: the host offset that is counted wrongly, and how; *@what is a constant. */
void refcounts_fault(const struct refcounts *rc, u64 *host, const char **what);

/* Clusters that the device can hold; changes when the device grows. */
u64 refcounts_limit(const struct refcounts *rc);
/* A growth of the refcount structures is under way, or has left something to release. */
bool refcounts_busy(const struct refcounts *rc);

/* ---- for the leak scan (qchain/leaks.h) ------------------------------------------ */

/* Tell @busy (NULL: nobody) of each cluster that is allocated or touched from now on. */
void refcounts_watch(struct refcounts *rc, struct busy *busy);
/* [@host, + @bytes) is unmapped, or was allocated before and is not named yet. */
void refcounts_touch(struct refcounts *rc, u64 host, u64 bytes);
/* Where block @index is, 0: there is none; false: beyond the end of the table. */
bool refcounts_block(const struct refcounts *rc, u64 index, u64 *host);
/* Make the count of @cluster @count, if it is higher. As refcounts_release(). */
int refcounts_lower(struct refcounts *rc, u64 cluster, u64 count, struct meta_wait *wait);

#endif
