/* SPDX-License-Identifier: GPL-2.0-or-later OR MIT */
/* One image: its header, tables and entries. Room qcow2/. */
#ifndef QCHAIN_IMAGE_H
#define QCHAIN_IMAGE_H

#include <qchain/err.h>
#include <qchain/io.h>
#include <qchain/limits.h>
#include <qchain/types.h>
#include <sys/types.h>

enum image_format { IMAGE_RAW, IMAGE_QCOW2 };

const char *image_format_name(enum image_format format);
/* "raw" or "qcow2"; anything else is -EINVAL. */
int image_format_parse(const char *name, enum image_format *result);

/* An internal snapshot, section "Snapshots" of the specification. */
struct image_snapshot {
	char *id;
	char *name;
	u64 l1_offset;
	u32 l1_size; /* entries */
	u32 date_sec;
	u32 date_nsec;
	u64 vm_clock_nsec;
	u64 vm_state_bytes;
	u64 disk_bytes; /* virtual size then */
	u64 icount;
};

/* A persistent bitmap, section "Bitmaps extension": we only count its clusters. */
struct image_bitmap {
	char *name;
	u64 table_offset;
	u32 table_entries;
	u32 flags;
	u8 granularity_bits;
};

/* A header extension that we do not know: kept when a header is rewritten. */
struct image_extension {
	u32 type;
	u32 len;
	u8 *data;
};

/* An entry of the active L1 table that is newer in memory than on the disk. */
struct l1_change {
	struct l1_change *next;
	u32 index;
	u64 before; /* what the disk has */
};

/*
 * struct l1 - the entries of an L1 table, host-endian (qcow2-l1.c)
 *
 * A page whose entries are all 0 takes no memory (rule C8): a layer of a disk of
 * petabytes has 32 MiB of table, of which a snapshot has changed little, and
 * there may be a thousand of them. Metadata thread.
 */
#define L1_PAGE_ENTRIES 512u

struct l1 {
	u32 nr_pages;
	u64 **pages; /* NULL: L1_PAGE_ENTRIES times 0 */
};

/* @index: within the table */
static inline u64 l1_get(const struct l1 *l1, u32 index)
{
	const u64 *page = l1->pages[index / L1_PAGE_ENTRIES];

	return page ? page[index % L1_PAGE_ENTRIES] : 0;
}

/*
 * l1_reserve - memory for the entry @index, so that l1_set() cannot fail: -ENOMEM
 * l1_set - 0, or an entry that was not 0 before, needs no l1_reserve()
 */
int l1_reserve(struct l1 *l1, u32 index);
void l1_set(struct l1 *l1, u32 index, u64 entry);
/* The first entry from @index on that is not 0; @end: there is none before it. */
u32 l1_next(const struct l1 *l1, u32 index, u32 end);
/* Room for @entries; new ones are 0. -ENOMEM. Never smaller. */
int l1_resize(struct l1 *l1, u32 entries);
/* A table from the disk, nothing checked. -errno: @result is empty. */
int l1_read(struct io_dev *dev, u64 offset, u32 entries, struct l1 *result);
void l1_exit(struct l1 *l1);

/*
 * struct image - one open image. Host-endian copies of what the disk holds.
 *
 * Raw images have cluster_bits 16 and no tables; virtual_size is the device's
 * size rounded up to 512 (rule D4: what lies beyond the end reads as zero).
 */
struct image {
	/* set once at open */
	struct io_dev *dev;
	struct io_dev *data_dev; /* guest data of an external data file, or NULL (rule D7) */
	enum image_format format;
	u32 version; /* 2 or 3 */
	u32 cluster_bits;
	u32 subcluster_bits; /* == cluster_bits without extended L2 */
	u32 subclusters; /* per cluster: 32 or 1 */
	u32 l2_entry_bytes; /* 8 or 16 */
	u32 l2_bits; /* log2 of the entries of one L2 table */
	u32 refcount_order;
	u32 compression_type; /* 0 deflate, 1 zstd */
	u32 header_length;
	u64 virtual_size; /* bytes, multiple of 512 */
	char *backing_name; /* as in the header, NULL: none */
	char *backing_format; /* NULL: the extension is missing */
	u64 backing_name_offset;
	char *data_file_name; /* rule D7, NULL: none */
	bool has_feature_names;
	bool external_data; /* guest data lies in a data file, open or not (rule D7) */

	/*
	 * feature bits as on disk: whoever opens or closes the image for writing changes
	 * them, on any thread; others that may run then look at what was set at open
	 */
	u64 incompatible;
	u64 compatible;
	u64 autoclear;

	/* active L1 table */
	u64 l1_offset;
	u32 l1_size; /* entries */
	struct l1 l1; /* each entry checked (not with IMAGE_OPEN_CHECK) */
	struct l1_change *l1_unwritten; /* metadata thread */

	u64 reftable_offset;
	u32 reftable_clusters;

	u64 snapshots_offset;
	u32 nr_snapshots;
	struct image_snapshot *snapshots;
	u64 snapshots_bytes; /* length of the table on disk */

	u64 bitmap_dir_offset;
	u64 bitmap_dir_bytes;
	/* as the extension says, loaded or not; 0 when autoclear bit 0 says it is stale */
	u32 nr_bitmaps;
	struct image_bitmap *bitmaps;

	u32 nr_extensions;
	struct image_extension *extensions;

	/* IMAGE_OPEN_CHECK: what was tolerated, one text each, without the path */
	u32 nr_faults;
	char **faults;

	/* metadata thread, images open for writing: where no data may lie (B7) */
	struct overlap *overlap;
};

static inline u64 image_cluster_bytes(const struct image *img)
{
	return 1ull << img->cluster_bits;
}

/* Where guest data lies: the image itself, or its external data file. */
static inline struct io_dev *image_data_dev(const struct image *img)
{
	return img->data_dev ? img->data_dev : img->dev;
}

static inline bool image_has_extl2(const struct image *img)
{
	return img->l2_entry_bytes == 16;
}

/* Entry @index of the active L1 table as the disk has it: that table can be read there. */
static inline u64 image_l1_on_disk(const struct image *img, u32 index)
{
	const struct l1_change *c;

	for (c = img->l1_unwritten; c; c = c->next)
		if (c->index == index)
			return c->before;
	return l1_get(&img->l1, index);
}

/* Guest bytes that one L2 table maps. */
static inline u32 image_l2_coverage_bits(const struct image *img)
{
	return img->cluster_bits + img->l2_bits;
}

#define IMAGE_OPEN_WRITE 1u /* refuse what must not be written (rules B7, D7) */
#define IMAGE_OPEN_CHECK 2u /* tolerate what `check` wants to look at */
#define IMAGE_OPEN_BITMAPS 4u /* load the bitmap directory (check, write) */

/*
 * image_open - read and validate the header, extensions, L1 and snapshot table
 *
 * @dev_owned: taken over, also on failure (closed then).
 * Every malformed field is refused with a message that names image, structure,
 * offset, value and what is allowed. No allocation before its size is checked.
 * Refused always: encryption, unknown incompatible bits by name (from the
 * feature name table where there is one), other magic or version, an external
 * data file without a name, and L1 entries that cannot lead to an L2 table:
 * reserved bits, not aligned, beyond the end, inside another table.
 *
 * IMAGE_OPEN_WRITE refuses what rules B7 and D7 forbid to write: read-only
 * devices, the corrupt bit, unknown autoclear bits, external data files. Without
 * it these are served read-only.
 *
 * IMAGE_OPEN_CHECK tolerates, adds to @faults and leaves out of the image: the
 * refcount table (reftable_clusters is 0 then), the snapshot table from the
 * first bad entry on, the bitmap directory, tables that overlap. L1 entries are
 * not looked at. With IMAGE_OPEN_WRITE it tolerates the dirty and corrupt bits
 * and unknown autoclear bits, which the caller clears before it writes anything.
 *
 * -EOPNOTSUPP: valid, but not for us; -EILSEQ, -EFBIG: malformed; -EROFS: fine
 * without IMAGE_OPEN_WRITE; -EUCLEAN: only the dirty bit forbids to write, the
 * caller repairs and opens again; others: I/O and memory.
 */
int image_open(struct io_dev *dev_owned, enum image_format format, u32 flags,
	       struct image **result, struct qc_err *err);
void image_close(struct image *img);

/*
 * image_use_snapshot - make a read-only image show the internal snapshot with
 * the id @name, or else (as QEMU) the name @name: its L1 and its size replace
 * the active ones. -ENOENT: no such snapshot; -EINVAL: the device is writable.
 */
int image_use_snapshot(struct image *img, const char *name, struct qc_err *err);

/* ---- entries (qcow2-table.c) ------------------------------------------- */

enum cluster_kind {
	CLUSTER_UNALLOCATED, /* the layer below decides */
	CLUSTER_DATA,
	CLUSTER_ZERO, /* reads as zero, no place */
	CLUSTER_ZERO_PLACE, /* reads as zero, space reserved at @host */
	CLUSTER_RESERVED, /* from below, space reserved at @host (extended L2) */
	CLUSTER_COMPRESSED,
	CLUSTER_BAD, /* violates the specification: -EIO, corruption */
};

/* One (sub)cluster of one L2 entry, decoded. */
struct cluster_info {
	enum cluster_kind kind;
	bool copied;
	u64 host; /* byte offset of the subcluster; compressed: of the first byte */
	u32 compressed_bytes; /* upper limit of the stored length */
	const char *bad; /* what is wrong, for messages */
};

/*
 * image_decode - decode subcluster @sc (0 without extended L2) of a host-endian
 * entry and bitmap (0 without). Whole-entry violations make every subcluster
 * CLUSTER_BAD, as QEMU does. Offsets are checked for alignment, and against the
 * end of a block device (a file may be sparse beyond its end; compressed data may
 * not start there). What only a checker minds is let pass: COPIED or a bitmap
 * beside a compressed cluster, COPIED without an offset. Thread-safe, no I/O.
 */
void image_decode(const struct image *img, u64 entry, u64 bitmap, u32 sc,
		  struct cluster_info *result);

/* L2 tables as they lie on disk: entry @index of @table (big-endian memory). */
u64 image_l2_entry(const struct image *img, const void *table, u32 index);
u64 image_l2_bitmap(const struct image *img, const void *table, u32 index);
void image_l2_set(const struct image *img, void *table, u32 index, u64 entry, u64 bitmap);

/*
 * A compressed entry for @bytes (1 .. cluster size) at host byte @offset; 0 when
 * the offset has no room in it: then the cluster is stored as it is.
 */
u64 image_compressed_entry(const struct image *img, u64 offset, u32 bytes);

/* Offset of the L2 table that maps guest @offset; 0: none. */
static inline u64 image_l2_offset(const struct image *img, u64 offset)
{
	u64 index = offset >> image_l2_coverage_bits(img);

	return index < img->l1_size ? l1_get(&img->l1, index) & 0x00fffffffffffe00ull : 0;
}

/*
 * image_decompress - one compressed cluster into @out (cluster size)
 * @in, @in_bytes: from the entry's first byte to the end of its last sector;
 * the stream may end earlier. -EIO when it is broken or too short. Any thread.
 */
int image_decompress(const struct image *img, const void *in, u32 in_bytes, void *out);

/* ---- overlap (qcow2-overlap.c, rule B7) ----------------------------------- */

/*
 * overlap_build - the clusters of @img that hold metadata: header, L1 and L2
 * tables (the snapshots' too), refcount structures, snapshot and bitmap tables.
 * Needs the refcount table, read by the caller. image_close() frees it.
 */
int overlap_build(struct image *img, const u64 *reftable, u32 nr_reftable,
		  struct qc_err *err);
int overlap_add(struct image *img, u64 host, u64 bytes);
void overlap_remove(struct image *img, u64 host, u64 bytes);
/* What lies in the cluster of @host: "L1 table", ...; NULL: no metadata. */
const char *overlap_what(const struct image *img, u64 host);
void overlap_free(struct overlap *overlap);

/* ---- backing references (qcow2-backing.c) -------------------------------- */

/*
 * struct backing_policy - where a chain's owner may point (DESIGN section 10)
 * @allow_dirs: extra directories, resolved, NULL-terminated
 * @allow_data_file: rule D7
 * @backing_format: for images without the format extension, NULL: refuse
 */
struct backing_policy {
	char **allow_dirs;
	bool allow_data_file;
	const char *backing_format;
	/* set by backing_policy_start() from the active layer's path */
	char *top_dir; /* files: this directory and below */
	char *top_vg_uuid; /* LVs: 32 characters of the dm uuid */
};

/* @top: path of the active layer. */
int backing_policy_start(struct backing_policy *policy, const char *top, struct qc_err *err);
void backing_policy_exit(struct backing_policy *policy);

/*
 * backing_resolve - the path of @img's backing image, for opening
 * Relative names: from the directory of the path by which @img was named. No
 * "json:", no protocol, no probed format, after symlinks only where @policy
 * allows. *@path is malloc'ed; NULL when there is no backing.
 */
int backing_resolve(const struct image *img, const struct backing_policy *policy,
		    char **path, enum image_format *format, struct qc_err *err);

/*
 * backing_check - may @img_dev, which is open now, stand below @overlay?
 * The answer is about the open descriptor, whatever its name points to by now:
 * to be asked after opening what backing_resolve() returned.
 */
int backing_check(const struct backing_policy *policy, const struct io_dev *img_dev,
		  const char *overlay, struct qc_err *err);

/*
 * backing_path - where @name leads, seen from the image that was named @overlay
 * The directory of names such as "../img/vol" is resolved, or else the paths of a long
 * chain would grow with each layer; from /dev/VG/LV, where there is no directory img, it
 * is /dev/VG/vol. Nothing is judged or opened. Malloc'ed; NULL: no memory.
 */
char *backing_path(const char *overlay, const char *name);
/* Where VOLUME begins in "../IMAGE/VOLUME", as vdsm writes it; NULL: another name. */
const char *backing_volume(const char *name);

/* Is the block device @rdev an LV? Then /dev/VG/LV, whatever it was opened as. */
bool image_lv_path(dev_t rdev, char *path, size_t len);

/*
 * data_file_resolve - the path of @img's external data file: same rules as for
 * a backing name. *@path is malloc'ed.
 */
int data_file_resolve(const struct image *img, const struct backing_policy *policy, char **path,
		      struct qc_err *err);

/* ---- making and checking (qcow2-create.c, qcow2-check.c) ------------------ */

enum image_preallocation { PREALLOC_OFF, PREALLOC_METADATA, PREALLOC_FALLOC, PREALLOC_FULL };

struct image_create_options {
	u64 virtual_size;
	u32 version; /* 3 unless asked otherwise */
	u32 cluster_bits;
	u32 refcount_order;
	bool extl2;
	bool lazy_refcounts;
	u32 compression_type;
	enum image_preallocation preallocation;
	const char *backing_name; /* as it will stand in the header */
	const char *backing_format;
};

/* 64 KiB clusters, 16-bit refcounts, version 3, no backing. */
void image_create_defaults(struct image_create_options *options);
int image_create_check(const struct image_create_options *options, struct qc_err *err);

/*
 * image_create - format @dev, which is open for writing (rule B6): the first
 * MiB is wiped, sector 0 is written last, after a flush of all the rest.
 */
int image_create(struct io_dev *dev, const struct image_create_options *options,
		 struct qc_err *err);

/* Bytes as `qemu-img measure` counts them. */
struct image_measure {
	u64 required; /* @data_bytes of allocated guest data */
	u64 fully_allocated;
};

void image_measure(const struct image_create_options *options, u64 data_bytes,
		   struct image_measure *result);
/* Rule A4: fully allocated, two commit batches, reserves, a refcount block. */
u64 image_thick_bytes(const struct image_create_options *options);

/* What was found and is left; what was repaired is counted by itself. */
struct check_result {
	u64 corruptions;
	u64 leaks;
	u64 corruptions_fixed;
	u64 leaks_fixed;
	u64 check_errors; /* places that could not be looked at */
	u64 image_end_offset;
	u64 total_clusters;
	u64 allocated_clusters;
	u64 fragmented_clusters;
	u64 compressed_clusters;
};

#define CHECK_FIX_LEAKS 1u
#define CHECK_FIX_ERRORS 2u

/*
 * image_check - same verdict as `qemu-img check`
 * @img: opened with IMAGE_OPEN_CHECK | IMAGE_OPEN_BITMAPS, for a repair also
 * with IMAGE_OPEN_WRITE; nobody else uses it.
 * @report: called for each finding with a line for people; may be NULL.
 * Returns 0 with the verdict in @result, or -errno when it was given up: then
 * @err says why, and what @result has is not all.
 * Repairs by rule B1's order; a repair that succeeded clears dirty and corrupt.
 * CHECK_FIX_LEAKS also frees what is counted beyond the end of a file and used by
 * nobody; it is told, but no leak, as to qemu-img.
 */
int image_check(struct image *img, u32 fix, void (*report)(void *arg, const char *line),
		void *arg, struct check_result *result, struct qc_err *err);

/* ---- header changes (qcow2-header.c) -------------------------------------- */

/*
 * image_write_features - write sector 0 with the feature words of @img as they
 * are now (rule B5: one write, one sector), then flush. Synchronous. Version 2
 * has none: -EINVAL if one is set. -EUCLEAN: no header of this image was there.
 */
int image_write_features(struct image *img);

#endif
