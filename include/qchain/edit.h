/* SPDX-License-Identifier: GPL-2.0-or-later OR MIT */
/* Changing an image that nobody serves: its backing name, its size, emptying it. */
#ifndef QCHAIN_EDIT_H
#define QCHAIN_EDIT_H

#include <qchain/image.h>

/*
 * @img is open for writing (IMAGE_OPEN_WRITE) and nobody else uses it. Each call
 * runs its own metadata loop on the caller's thread until all is durable, and
 * writes through meta/, in the order of rule B1. After a kill at any point the
 * image is valid: before or after the change, leaks apart. 0, or -errno with
 * @err. An image that qchaind did not close cleanly is refused (-EUCLEAN).
 */

/*
 * image_set_backing - rule B5: the name goes to free space of the first cluster;
 * flush; then sector 0 (offset, length, format); flush
 * @name NULL: no backing from now on. -ENOSPC: the name, or the format where the
 * header has none, has no room in the first cluster.
 */
int image_set_backing(struct image *img, const char *name, const char *format,
		      struct qc_err *err);

/* Would image_set_backing() succeed? Nothing is written. */
int image_check_backing_fits(struct image *img, const char *name, const char *format,
			     struct qc_err *err);

/*
 * struct backing_patch - what another backing name changes in the first cluster
 * The name goes to bytes that nothing uses; durable before the rest, which lies
 * in what the device writes as a whole.
 */
struct backing_patch {
	u32 name_at;
	u32 name_bytes; /* 0: no backing */
	u32 fields_at;
	u32 format_at; /* 0: stays */
	u8 fields[12]; /* offset and length of the name */
	u8 format[16]; /* extension with its header */
	char name[QC_MAX_BACKING_NAME + 1];
};

/*
 * image_plan_backing - the same for an image in use, which this only reads
 * (synchronously, any thread): the owner of its metadata writes @patch. Extensions
 * are not moved: -ENOSPC where that would be needed.
 */
int image_plan_backing(struct image *img, const char *name, const char *format,
		       struct backing_patch *patch, struct qc_err *err);

/*
 * image_write_backing - write @patch, when nobody else writes @img's metadata
 * Synchronous, any thread; changes nothing in @img. 0 or -errno.
 */
int image_write_backing(struct image *img, const struct backing_patch *patch);

/*
 * image_check_growth - can the L1 table of @img map @virtual_size, after growing?
 * It lies side by side, and a refcount block lies in front of what it counts: with the
 * smallest clusters that is a limit. -EFBIG: @err says what is possible.
 */
int image_check_growth(const struct image *img, u64 virtual_size, struct qc_err *err);

/* Step 0 of growing: an L1 table for @virtual_size; the size stays as it is. */
int image_grow_l1(struct image *img, u64 virtual_size, struct qc_err *err);

/*
 * image_set_size - the virtual size, in one write of sector 0
 * The L1 table must be long enough. What lies between the old and the new end is
 * the caller's (rule B6): zero, durably, before it becomes visible.
 */
int image_set_size(struct image *img, u64 virtual_size, struct qc_err *err);

/*
 * image_unmap_from - forget all that the active L1 table maps from the L2 table
 * of guest @offset on (0: everything), unmap durable first, refcounts after; the
 * space of files is given back. What is below shows through.
 */
int image_unmap_from(struct image *img, u64 offset, struct qc_err *err);

/* What becomes of a guest cluster: its L2 entry and bitmap, host-endian. */
struct image_entry {
	u64 cluster;
	u64 entry;
	u64 bitmap;
};

/*
 * image_set_entries - make the tables say what @list, sorted, one entry a cluster,
 * says; the data is in place. For an image that was not closed cleanly: it stays
 * marked so. What the entries replace is leaked until the next check.
 */
int image_set_entries(struct image *img, const struct image_entry *list, u32 nr,
		      struct qc_err *err);

#endif
