/* SPDX-License-Identifier: GPL-2.0-or-later OR MIT */
/* The qcow2 on-disk format; all fields big-endian (docs/interop/qcow2 of QEMU). */
#ifndef UAPI_QCOW2_H
#define UAPI_QCOW2_H

#include <assert.h>
#include <linux/types.h>

#define QCOW2_MAGIC 0x514649fbu

/* Section "Header". Version 2 ends at byte 72. */
struct qcow2_disk_header {
	__be32 magic;
	__be32 version;
	__be64 backing_file_offset;
	__be32 backing_file_size;
	__be32 cluster_bits;
	__be64 size;
	__be32 crypt_method;
	__be32 l1_size;
	__be64 l1_table_offset;
	__be64 refcount_table_offset;
	__be32 refcount_table_clusters;
	__be32 nb_snapshots;
	__be64 snapshots_offset;
	/* version 3 */
	__be64 incompatible_features;
	__be64 compatible_features;
	__be64 autoclear_features;
	__be32 refcount_order;
	__be32 header_length;
	__u8 compression_type;
	__u8 padding[7];
} __attribute__((packed));

static_assert(sizeof(struct qcow2_disk_header) == 112, "qcow2 header");

#define QCOW2_V2_HEADER_BYTES 72u
#define QCOW2_V3_HEADER_BYTES 104u

#define QCOW2_MIN_CLUSTER_BITS 9u
#define QCOW2_MAX_CLUSTER_BITS 21u
#define QCOW2_MIN_EXTL2_CLUSTER_BITS 14u
#define QCOW2_MAX_REFCOUNT_ORDER 6u
#define QCOW2_SUBCLUSTERS 32u

#define QCOW2_INCOMPAT_DIRTY (1ull << 0)
#define QCOW2_INCOMPAT_CORRUPT (1ull << 1)
#define QCOW2_INCOMPAT_DATA_FILE (1ull << 2)
#define QCOW2_INCOMPAT_COMPRESSION (1ull << 3)
#define QCOW2_INCOMPAT_EXTL2 (1ull << 4)
#define QCOW2_INCOMPAT_KNOWN 0x1full
/* Ours: a copy that has not come to its end. Nobody opens it, and a new header clears it. */
#define QCOW2_INCOMPAT_QCHAIN_UNFINISHED (1ull << 63)

#define QCOW2_COMPAT_LAZY_REFCOUNTS (1ull << 0)

#define QCOW2_AUTOCLEAR_BITMAPS (1ull << 0)
#define QCOW2_AUTOCLEAR_RAW_DATA (1ull << 1)
/* Ours (rule A1): the image is open for writing by qchaind. */
#define QCOW2_AUTOCLEAR_QCHAIN_OPEN (1ull << 63)

#define QCOW2_EXT_END 0u
#define QCOW2_EXT_BACKING_FORMAT 0xe2792acau
#define QCOW2_EXT_FEATURE_NAMES 0x6803f857u
#define QCOW2_EXT_BITMAPS 0x23852875u
#define QCOW2_EXT_CRYPTO 0x0537be77u
#define QCOW2_EXT_DATA_FILE 0x44415441u

struct qcow2_disk_extension {
	__be32 type;
	__be32 length;
} __attribute__((packed));

struct qcow2_disk_feature_name {
	__u8 type; /* 0 incompatible, 1 compatible, 2 autoclear */
	__u8 bit;
	char name[46];
} __attribute__((packed));

struct qcow2_disk_bitmaps {
	__be32 nb_bitmaps;
	__be32 reserved;
	__be64 directory_size;
	__be64 directory_offset;
} __attribute__((packed));

static_assert(sizeof(struct qcow2_disk_bitmaps) == 24, "bitmaps extension");

/* Section "Bitmap directory": followed by extra data, name, padding to 8. */
struct qcow2_disk_bitmap_entry {
	__be64 table_offset;
	__be32 table_size; /* entries */
	__be32 flags;
	__u8 type;
	__u8 granularity_bits;
	__be16 name_size;
	__be32 extra_data_size;
} __attribute__((packed));

static_assert(sizeof(struct qcow2_disk_bitmap_entry) == 24, "bitmap entry");

/* Section "Snapshots": followed by extra data, id, name, padding to 8. */
struct qcow2_disk_snapshot {
	__be64 l1_table_offset;
	__be32 l1_size;
	__be16 id_size;
	__be16 name_size;
	__be32 date_sec;
	__be32 date_nsec;
	__be64 vm_clock_nsec;
	__be32 vm_state_size;
	__be32 extra_data_size;
} __attribute__((packed));

static_assert(sizeof(struct qcow2_disk_snapshot) == 40, "snapshot entry");

struct qcow2_disk_snapshot_extra {
	__be64 vm_state_size_large;
	__be64 disk_size;
	__be64 icount;
} __attribute__((packed));

/* Section "L1 table / L2 table". */
#define QCOW2_OFFSET_MASK 0x00fffffffffffe00ull
#define QCOW2_COPIED (1ull << 63)
#define QCOW2_COMPRESSED (1ull << 62)
#define QCOW2_ZERO (1ull << 0)
#define QCOW2_L1_RESERVED 0x7f000000000001ffull
#define QCOW2_L2_RESERVED 0x3f000000000001feull
#define QCOW2_REFTABLE_RESERVED 0x1ffull

/* Extended entries: 64 bits as above, then the subcluster bitmap. */
#define QCOW2_SC_ALLOC_MASK 0x00000000ffffffffull
#define QCOW2_SC_ZERO_MASK 0xffffffff00000000ull

#endif
