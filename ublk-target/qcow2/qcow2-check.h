/* SPDX-License-Identifier: GPL-2.0-or-later OR MIT */
/* What the files of the checker share: the counts, the findings, the order. */
#ifndef QCOW2_CHECK_H
#define QCOW2_CHECK_H

#include "qcow2.h"

/*
 * Notes on the design
 *
 * The walk (qcow2-check-walk.c, qcow2-check-tables.c) goes through everything
 * that uses clusters and counts the uses of each cluster; the comparison
 * (qcow2-check.c) holds the counts against the refcounts on disk; then the
 * COPIED flags are held against the refcounts on disk (qcow2-check-copied.c).
 * Findings are counted as qemu-img check counts them, so that both give the
 * same verdict: its order of steps is part of the interface here.
 *
 * Memory is bounded, whatever an image claims: the counts are a window over the
 * clusters of the device, CHECK_WINDOW_BYTES at most, and the walk is repeated
 * for each window. Pages that no count falls into take no memory. All tables
 * are read in pieces; the only other large ones are the refcount table (8 MiB
 * at most), the list of snapshots, and one bit per cluster.
 *
 * Repairs, each durable before the next (rules A3, B1): wrong entries; refcounts
 * (or new refcount tables beside the old ones, then the one header sector that
 * makes them valid); COPIED flags; the dirty and corrupt bits. A cluster is
 * given back only after nothing durable refers to it.
 */
#define CHECK_WINDOW_BYTES (512 * MiB)
#define CHECK_GROUP_BITS 12
/* As qemu-img; more clusters than this take hours. */
#define CHECK_MAX_CLUSTERS 0x7fffffffull

/* An internal snapshot, as the table on disk has it. */
struct check_snapshot {
	u64 l1_offset;
	u32 l1_entries;
};

/* State of a refcount block that could not be read. */
enum check_block { BLOCK_UNKNOWN, BLOCK_FINE, BLOCK_UNREADABLE };

/*
 * struct check - one run of image_check(); one thread
 */
struct check {
	/* set once */
	struct image *img;
	u32 fix; /* CHECK_FIX_... */
	void (*report)(void *arg, const char *line);
	void *report_arg;
	struct qc_err *err;
	u64 dev_bytes;
	u64 cluster_bytes;
	u64 refcounts_per_block;
	bool data_file;
	struct check_result *result;

	/* the counts */
	u8 *counts;
	size_t counts_bytes;
	u8 *touched; /* a byte for each 2^CHECK_GROUP_BITS counts: not all 0 */
	u32 count_bytes; /* of one count: 1, 2 or 4 */
	u64 count_max; /* largest refcount of the image's width */
	u64 window_first; /* cluster */
	u64 window_clusters;
	u64 window_most;
	u64 room; /* clusters that counts and bits have a place for */
	u64 nr_clusters; /* of the device; one more when a last part is used */

	/* the pass that runs */
	bool first_window; /* tables are judged in the first window only */
	bool again; /* nothing is judged: only counted */
	bool without_refcounts; /* leave out refcount and snapshot tables */

	/* on disk */
	u64 *reftable; /* host-endian */
	u32 reftable_entries;
	u64 reftable_offset;
	u8 *block_states; /* enum check_block of each entry */
	u64 *blocks_sorted; /* their offsets; NULL until a repair needs them */
	u32 nr_blocks_sorted;
	u8 *ones; /* a bit per cluster: its refcount on disk is 1 */
	size_t ones_bytes;
	struct check_snapshot *snapshots;
	u32 nr_snapshots;
	u64 snapshots_offset;
	u64 snapshots_bytes;
	u32 nr_short_snapshots; /* entries with too little extra data */

	u8 *l2; /* a cluster */
	u8 *block; /* a cluster: refcount block @block_index */
	u64 block_index;
	bool rebuild; /* the refcount tables cannot be repaired in place */
	bool drop_bitmaps; /* they cannot be read */
	bool writing; /* the header says so already */
};

/* ---- findings (qcow2-check.c) --------------------------------------------- */

/* A line for people. */
void check_say(struct check *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Wrong in a table: told and counted in the first window. */
void check_corrupt(struct check *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Wrong by the counts: told and counted in the window of the cluster. */
void check_corrupt_count(struct check *c, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));
/* Could not be looked at; returns @code. */
int check_failed(struct check *c, int code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

static inline bool check_judges(const struct check *c)
{
	return c->first_window && !c->again;
}

/* Read; what lies beyond the end of the device is zero. */
int check_read(struct check *c, void *buf, u64 bytes, u64 offset);

/* ---- counts (qcow2-check.c) ------------------------------------------------ */

/* One more use of the clusters of [@offset, + @bytes). */
void check_count(struct check *c, u64 offset, u64 bytes);
/* Uses of @cluster; it is in the window. */
u64 check_counted(const struct check *c, u64 cluster);
void check_set_count(struct check *c, u64 cluster, u64 value);
void check_clear_counts(struct check *c);

static inline bool check_in_window(const struct check *c, u64 cluster)
{
	return cluster >= c->window_first && cluster - c->window_first < c->window_clusters;
}

/* ---- the walk (qcow2-check-walk.c, qcow2-check-tables.c) ------------------- */

/* Count everything; -errno when it could not be completed. */
int check_walk(struct check *c);
int check_walk_l1(struct check *c, u64 offset, u32 entries, bool active);

/* Header fields and the snapshot table, before anything is walked. */
int check_read_tables(struct check *c);
/* (Re)read the refcount table as c->reftable_offset and entries say. */
int check_load_reftable(struct check *c);
int check_walk_snapshots(struct check *c);
int check_walk_bitmaps(struct check *c);
void check_walk_refcounts(struct check *c);

/* ---- refcounts on disk (qcow2-check.c) ------------------------------------- */

/* Make c->block refcount block @index; 1: there, 0: missing, -errno. */
int check_load_block(struct check *c, u64 index);
/* 1 or 0; -EIO when it could not be read. */
int check_refcount_is_one(struct check *c, u64 cluster);

/* ---- COPIED flags (qcow2-check-copied.c) ------------------------------------ */

int check_copied(struct check *c);

/* ---- repairs (qcow2-repair.c, qcow2-rebuild.c) ------------------------------ */

/*
 * Before the first write: autoclear bits that we do not maintain go, durably.
 */
int check_begin_write(struct check *c);
/* Does the cluster at @offset share a byte with the clusters of a table? */
bool check_in_table(const struct check *c, u64 offset, u64 table, u64 bytes);
/* NULL, or what the L2 table at @offset overlaps: it must not be written. */
const char *check_l2_overlap(struct check *c, u64 offset);
/* Is there a refcount block of the old tables in @cluster? */
bool check_is_block(struct check *c, u64 cluster);
/* Write [@first, @last] (entries) of c->l2, the table at @offset. */
int check_write_l2(struct check *c, u64 offset, u32 first, u32 last);
/* Write one entry of the L1 table at @table. */
int check_write_l1(struct check *c, u64 table, u32 index, u64 entry);
/* After all: clear dirty, corrupt and autoclear bits. */
int check_mark_clean(struct check *c);

/* New refcount tables, and a new snapshot table where entries are too short. */
int check_rebuild(struct check *c);

#endif
