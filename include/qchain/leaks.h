/* SPDX-License-Identifier: GPL-2.0-or-later OR MIT */
/* The leak scan: finds clusters that are counted and not used, beside guest I/O. Room qcow2/. */
#ifndef QCHAIN_LEAKS_H
#define QCHAIN_LEAKS_H

#include <qchain/refcount.h>

/*
 * The scan counts what all tables name (the walk), then holds the refcounts on
 * disk against that (the sweep), and lowers those that are too high. Guest I/O
 * goes on meanwhile, so it judges only clusters that were not touched since it
 * began (rule A4): each allocation, release and unmapping is told to the
 * refcounts' struct busy.
 *
 * Why that is enough: an entry that the walk has not seen, or has seen older
 * than it is, names a cluster that was allocated since the beginning, or was
 * given up since then. Both are busy. What a table was copied from stays.
 *
 * It does no I/O and blocks nowhere: each step says what it needs. Memory is a
 * byte per cluster of a window, and a bit per cluster that was touched; the
 * tables are walked once per window. All calls on the metadata loop.
 */

/* Most bytes of one read, and so of the work of one step. */
#define LEAKS_READ_BYTES (32u * 1024u)
/* Clusters of one window. */
#define LEAKS_WINDOW_CLUSTERS (16u * 1024u * 1024u)

struct leaks;

enum leaks_step {
	LEAKS_DONE,
	LEAKS_MORE, /* step again, when others had their turn */
	LEAKS_READ, /* run the read in *@io, then step again */
	LEAKS_FLUSH, /* ... the flush */
	LEAKS_WAIT, /* step again from @wait->fn */
};

struct leaks_result {
	u64 freed; /* clusters, that can be allocated now */
	u64 lowered; /* shared ones that were counted too often */
	u32 percent; /* of the way */
	u64 fault_host; /* with -EUCLEAN */
	const char *fault;
};

/*
 * leaks_create - begin a scan of @img; touches are recorded from now on
 * @window: LEAKS_WINDOW_CLUSTERS, or fewer in tests
 * What is under way, allocated but not named, must be told by refcounts_touch()
 * at once; no unmapping may be on its way (refcounts_busy(), the caller's own).
 */
int leaks_create(struct image *img, struct refcounts *rc, u32 window, struct leaks **result);
/* Also in the middle: what was freed is free, the rest is as it was. */
void leaks_destroy(struct leaks *l);
/*
 * enum leaks_step, or -errno: no more is freed. -EUCLEAN: a table names what it
 * must not, or what nobody counts; leaks_get_result() has the place. What the
 * step asked for has ended well when the next one is called; @io's dev, type,
 * offset, len and base are set.
 */
int leaks_step(struct leaks *l, struct io_op *io, struct meta_wait *wait);
void leaks_get_result(const struct leaks *l, struct leaks_result *result);

/* ---- clusters that were touched (qcow2-busy.c) --------------------------------- */

/* struct busy - a bit for each cluster below @nr; pages without a bit take no memory */
struct busy {
	u64 nr;
	u64 **pages;
	bool lost; /* no memory for a page: everything counts as touched */
};

int busy_init(struct busy *busy, u64 nr);
void busy_exit(struct busy *busy);
/* Clusters from @nr on are nobody's business: ignored. */
void busy_set(struct busy *busy, u64 cluster);
bool busy_test(const struct busy *busy, u64 cluster);

#endif
