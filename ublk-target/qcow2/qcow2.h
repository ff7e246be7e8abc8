/* SPDX-License-Identifier: GPL-2.0-or-later OR MIT */
/* What the files of this room share: opening an image step by step. */
#ifndef QCOW2_PRIVATE_H
#define QCOW2_PRIVATE_H

#include <endian.h>
#include <errno.h>
#include <qchain/image.h>
#include <string.h>
#include <uapi/qcow2.h>

/* Different header extensions in one image; QEMU writes five at most. */
#define QCOW2_MAX_EXTENSIONS 64u
/* Bytes of a format name in the backing format extension, as QEMU. */
#define QCOW2_MAX_FORMAT_NAME 15u
/* Extra data of one snapshot, as QEMU. */
#define QCOW2_MAX_SNAPSHOT_EXTRA 1024u
/* Bytes of a bitmap's name, as QEMU. */
#define QCOW2_MAX_BITMAP_NAME 1023u
/* Faults that are kept for a checker; more are not worth a line each. */
#define QCOW2_MAX_FAULTS 256u
/* What the first read of an image fetches: the header of any usual one. */
#define QCOW2_FIRST_READ_BYTES 4096u
/* Longest piece of a table that table_stream_get() gives at once; usual read. */
#define QCOW2_STREAM_BYTES (256u * 1024u)
#define QCOW2_STREAM_READ_BYTES 65536u

/*
 * On disk everything is big-endian and may lie at any address. The pointer is
 * to a __be field of include/uapi/qcow2.h or to raw table memory.
 */
static inline u16 load_be16(const void *p)
{
	u16 v;

	memcpy(&v, p, sizeof(v));
	return be16toh(v);
}

static inline u32 load_be32(const void *p)
{
	u32 v;

	memcpy(&v, p, sizeof(v));
	return be32toh(v);
}

static inline u64 load_be64(const void *p)
{
	u64 v;

	memcpy(&v, p, sizeof(v));
	return be64toh(v);
}

static inline void store_be64(void *p, u64 v)
{
	v = htobe64(v);
	memcpy(p, &v, sizeof(v));
}

static inline u64 image_dev_bytes(const struct image *img)
{
	return io_dev_bytes(img->dev);
}

/* ---- opening (qcow2-header.c) ------------------------------------------ */

/* struct table_region - where a table lies; @bytes as it is, not in clusters */
struct table_region {
	u64 offset;
	u64 bytes;
	const char *what;
};

/*
 * struct opener - the state of one image_open(), on its stack
 * @first: the start of the first cluster; opener_fetch() may move it
 * @extensions_end: first byte after the room for header extensions
 * @nr_bitmaps, @bitmap_dir_*: the bitmaps extension, its place not checked yet
 * @regions: the places of snapshots' L1 tables and bitmap tables, sorted
 */
struct opener {
	struct image *img;
	u32 flags; /* IMAGE_OPEN_... */
	struct qc_err *err;
	u8 *first;
	u32 first_bytes; /* of @first that were read */
	u32 extensions_end;
	u32 nr_bitmaps;
	u64 bitmap_dir_offset;
	u64 bitmap_dir_bytes;
	u32 nr_regions;
	struct table_region *regions;
};

/* Refuse the image: "<path>: " and the text go to op->err; returns @code. */
int opener_refuse(struct opener *op, int code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/*
 * opener_fault - something that only a checker tolerates
 *
 * With IMAGE_OPEN_CHECK the text is added to img->faults and FAULT_TOLERATED is
 * returned: opening goes on without the faulty structure. Otherwise as
 * opener_refuse() with -EILSEQ. All steps of opening return 0, FAULT_TOLERATED
 * or -errno.
 */
#define FAULT_TOLERATED 1
int opener_fault(struct opener *op, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Make bytes 0 .. @end of the first cluster readable at op->first. */
int opener_fetch(struct opener *op, u32 end);

/*
 * opener_string - copy @len bytes at @from, which must hold no NUL but trailing
 * ones, to a new string. @what names it in the error.
 */
int opener_string(struct opener *op, const char *what, const void *from, u32 len, char **result);

/*
 * printable - @len bytes of image content for a message: cut to the size of
 * @out, control characters and quotes replaced. Returns @out.
 */
#define PRINTABLE_BYTES 64
const char *printable(char out[PRINTABLE_BYTES], const void *from, size_t len);

/* ---- tables as a stream (qcow2-table.c) ---------------------------------- */

/* struct table_stream - read a table from front to back through one window */
struct table_stream {
	struct io_dev *dev;
	u64 next; /* device offset of the window's end */
	u64 end; /* nothing is read from here on */
	u8 *window;
	u32 pos; /* of what comes next, in the window */
	u32 have; /* valid bytes in the window */
};

/* Stream [@offset, @offset + @bytes), cut at the end of the device. */
int table_stream_init(struct table_stream *s, struct io_dev *dev, u64 offset, u64 bytes);
void table_stream_exit(struct table_stream *s);
/*
 * The next @bytes (at most QCOW2_STREAM_BYTES) at *result, valid until the next
 * call. -ERANGE: the table ends before; -errno of the read.
 */
int table_stream_get(struct table_stream *s, u32 bytes, const u8 **result);
/* Go @bytes on; -ERANGE beyond the end. */
int table_stream_skip(struct table_stream *s, u64 bytes);
/* Device offset of the next byte. */
u64 table_stream_offset(const struct table_stream *s);

/* ---- the pieces, in the order of opening --------------------------------- */

/* qcow2-extension.c: all header extensions into op->img. */
int opener_read_extensions(struct opener *op);
/*
 * The name that the image itself gives a feature bit (@type 0 incompatible, 1
 * compatible, 2 autoclear), or "bit N". Never fails.
 */
const char *opener_feature_name(struct opener *op, u8 type, u8 bit, char out[PRINTABLE_BYTES]);

/*
 * qcow2-table.c: the name of the table known so far (header, L1, refcount table,
 * snapshot table, bitmap directory, op->regions) that has a cluster in common
 * with [@offset, @offset + @bytes), NULL: none. L2 tables and refcount blocks
 * are not known here.
 */
const char *opener_table_at(const struct opener *op, u64 offset, u64 bytes);
/*
 * opener_table_fault - (qcow2-table.c) can a table of @bytes not lie at @offset? Checks that it
 * is cluster-aligned, inside the device and clear of opener_table_at(). The
 * text of the fault, which begins with @what, goes to @text; false: all is well.
 */
#define FAULT_BYTES 256
bool opener_table_fault(struct opener *op, const char *what, u64 offset, u64 bytes,
			char text[FAULT_BYTES]);

/* qcow2-table.c: fill op->regions; a fault when two of them overlap. */
int opener_collect_regions(struct opener *op);
/* qcow2-table.c: read and validate an L1 table. */
int opener_read_l1(struct opener *op, const char *what, u64 offset, u32 entries,
		   struct l1 *result);

/* qcow2-snapshot.c: @count and @offset as the header has them. */
int opener_read_snapshots(struct opener *op, u32 count, u64 offset);
void image_free_snapshots(struct image *img);

/*
 * qcow2-bitmap.c: first the extension's @len bytes at @data; when the other
 * tables are known, the directory.
 */
int opener_bitmaps_extension(struct opener *op, const u8 *data, u32 len);
int opener_read_bitmaps(struct opener *op);
void image_free_bitmaps(struct image *img);

#endif
