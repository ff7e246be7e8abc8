// SPDX-License-Identifier: GPL-2.0-or-later OR MIT
/* Opening an image: the header field by field, then the tables that it names. */
#include <qchain/io.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "qcow2.h"

/*
 * Notes on the design
 *
 * An image is content that somebody else wrote, perhaps a hostile guest or
 * tenant. image_open() therefore runs a list of small steps; each believes only
 * what the steps before it have checked. A size is checked before anything of
 * that size is read or allocated, and sizes are computed in 64 bits.
 *
 * Opening costs two reads for a usual image, as a chain may have a thousand of
 * them: the first 4 KiB, where header, extensions and backing name are, and the
 * L1 table. Only images with internal snapshots, bitmaps or unusually much in
 * their first cluster need more. (64 KiB at once took half as long again.)
 *
 * What is not looked at: L2 tables and refcounts. The fold checks each entry
 * that it uses, `check` all of them.
 */

/* ---- formats ------------------------------------------------------------- */

static const char *const format_names[] = {
	[IMAGE_RAW] = "raw",
	[IMAGE_QCOW2] = "qcow2",
};

const char *image_format_name(enum image_format format)
{
	return format_names[format];
}

int image_format_parse(const char *name, enum image_format *result)
{
	for (size_t i = 0; i < ARRAY_SIZE(format_names); i++) {
		if (strcmp(name, format_names[i]))
			continue;
		*result = i;
		return 0;
	}
	return -EINVAL;
}

/* ---- refusing ------------------------------------------------------------ */

const char *printable(char out[PRINTABLE_BYTES], const void *from, size_t len)
{
	const u8 *p = from;
	size_t n = 0;

	while (n < len && n < PRINTABLE_BYTES - 1 && p[n]) {
		out[n] = p[n] < ' ' || p[n] == '\'' || p[n] >= 0x7f ? '?' : p[n];
		n++;
	}
	out[n] = '\0';
	return out;
}

static int refuse_text(struct opener *op, int code, const char *text)
{
	return qc_err_set(op->err, code, "%s: %s", op->img->dev->path, text);
}

int opener_refuse(struct opener *op, int code, const char *fmt, ...)
{
	char text[512];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	return refuse_text(op, code, text);
}

static int add_fault(struct image *img, const char *text)
{
	char **faults, *copy;

	if (img->nr_faults == QCOW2_MAX_FAULTS)
		return 0;
	faults = realloc(img->faults, (img->nr_faults + 1) * sizeof(*faults));
	copy = strdup(text);
	if (faults)
		img->faults = faults;
	if (!faults || !copy) {
		free(copy);
		return -ENOMEM;
	}
	img->faults[img->nr_faults++] = copy;
	return 0;
}

int opener_fault(struct opener *op, const char *fmt, ...)
{
	char text[512];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	if (!(op->flags & IMAGE_OPEN_CHECK))
		return refuse_text(op, -EILSEQ, text);
	if (add_fault(op->img, text))
		return refuse_text(op, -ENOMEM, "no memory for the list of faults");
	return FAULT_TOLERATED;
}

/* ---- the first cluster --------------------------------------------------- */

static int read_first(struct opener *op, u32 bytes)
{
	u32 len = min((u64)bytes, image_dev_bytes(op->img));
	u8 *first;
	int ret;

	if (len <= op->first_bytes)
		return 0;
	first = io_alloc(len);
	if (!first)
		return opener_refuse(op, -ENOMEM, "no memory for the first cluster (%u bytes)",
				     len);
	ret = io_dev_pread(op->img->dev, first, len, 0);
	if (ret < 0) {
		free(first);
		return opener_refuse(op, ret, "header: read of %u bytes at 0 failed (%s)", len,
				     strerror(-ret));
	}
	free(op->first);
	op->first = first;
	op->first_bytes = len;
	return 0;
}

int opener_fetch(struct opener *op, u32 end)
{
	int ret;

	if (end <= op->first_bytes)
		return 0;
	ret = read_first(op, image_cluster_bytes(op->img));
	if (ret)
		return ret;
	if (end <= op->first_bytes)
		return 0;
	return opener_refuse(op, -EILSEQ, "image too short (%u bytes), the header needs %u",
			     op->first_bytes, end);
}

static const struct qcow2_disk_header *disk_header(const struct opener *op)
{
	return (const struct qcow2_disk_header *)op->first;
}

int opener_string(struct opener *op, const char *what, const void *from, u32 len, char **result)
{
	const char *text = from;
	u32 used = strnlen(text, len);
	u32 i;

	for (i = used; i < len; i++) {
		if (text[i])
			return opener_refuse(op, -EILSEQ,
					     "%s contains a zero byte (position %u of %u), must be "
					     "text",
					     what, used, len);
	}
	*result = strndup(text, used);
	return *result ? 0 : opener_refuse(op, -ENOMEM, "no memory for the %s", what);
}

/* ---- steps: header fields ------------------------------------------------ */

static int read_magic(struct opener *op)
{
	const struct qcow2_disk_header *h;
	int ret = read_first(op, QCOW2_FIRST_READ_BYTES);

	if (ret)
		return ret;
	h = disk_header(op);
	if (op->first_bytes < QCOW2_V2_HEADER_BYTES)
		return opener_refuse(op, -EILSEQ,
				     "image too short (%u bytes), a qcow2 header has %u",
				     op->first_bytes, QCOW2_V2_HEADER_BYTES);
	if (load_be32(&h->magic) != QCOW2_MAGIC)
		return opener_refuse(op, -EILSEQ,
				     "not a qcow2 image (magic 0x%08x), must be 0x%08x",
				     load_be32(&h->magic), QCOW2_MAGIC);
	op->img->version = load_be32(&h->version);
	if (op->img->version != 2 && op->img->version != 3)
		return opener_refuse(op, -EOPNOTSUPP, "version %u not supported, must be 2 or 3",
				     op->img->version);
	if (op->img->version == 3 && op->first_bytes < QCOW2_V3_HEADER_BYTES)
		return opener_refuse(op, -EILSEQ,
				     "image too short (%u bytes), a version 3 header has %u",
				     op->first_bytes, QCOW2_V3_HEADER_BYTES);
	return 0;
}

static int read_geometry(struct opener *op)
{
	const struct qcow2_disk_header *h = disk_header(op);
	struct image *img = op->img;

	img->cluster_bits = load_be32(&h->cluster_bits);
	if (img->cluster_bits < QCOW2_MIN_CLUSTER_BITS ||
	    img->cluster_bits > QCOW2_MAX_CLUSTER_BITS)
		return opener_refuse(
			op, -EILSEQ, "cluster size 2^%u not supported, must be 2^%u..2^%u",
			img->cluster_bits, QCOW2_MIN_CLUSTER_BITS, QCOW2_MAX_CLUSTER_BITS);
	op->extensions_end = image_cluster_bytes(img);
	img->header_length = QCOW2_V2_HEADER_BYTES;
	img->refcount_order = 4;
	if (img->version == 2)
		return 0;
	img->header_length = load_be32(&h->header_length);
	if (img->header_length < QCOW2_V3_HEADER_BYTES ||
	    img->header_length > image_cluster_bytes(img) || !IS_ALIGNED(img->header_length, 8))
		return opener_refuse(op, -EILSEQ,
				     "header length %u not valid, must be a multiple of 8 in "
				     "%u..%llu",
				     img->header_length, QCOW2_V3_HEADER_BYTES,
				     (unsigned long long)image_cluster_bytes(img));
	img->refcount_order = load_be32(&h->refcount_order);
	if (img->refcount_order > QCOW2_MAX_REFCOUNT_ORDER)
		return opener_refuse(op, -EILSEQ,
				     "refcount width 2^%u bits not supported, must be 2^0..2^%u",
				     img->refcount_order, QCOW2_MAX_REFCOUNT_ORDER);
	img->incompatible = load_be64(&h->incompatible_features);
	img->external_data = img->incompatible & QCOW2_INCOMPAT_DATA_FILE;
	img->compatible = load_be64(&h->compatible_features);
	img->autoclear = load_be64(&h->autoclear_features);
	return opener_fetch(op, img->header_length);
}

/* All bits of @bits, as the image calls them. */
static const char *feature_list(struct opener *op, u8 type, u64 bits, char *out, size_t size)
{
	char name[PRINTABLE_BYTES];
	size_t n = 0;

	out[0] = '\0';
	for (u8 bit = 0; bit < 64 && n < size; bit++) {
		if (!(bits >> bit & 1))
			continue;
		n += snprintf(out + n, size - n, "%s'%s'", n ? ", " : "",
			      opener_feature_name(op, type, bit, name));
	}
	return out;
}

/* First of all feature checks: an unknown bit may change what the rest means. */
static int check_incompatible(struct opener *op)
{
	u64 unknown = op->img->incompatible & ~QCOW2_INCOMPAT_KNOWN;
	char names[256];

	if (!unknown)
		return 0;
	if (unknown == QCOW2_INCOMPAT_QCHAIN_UNFINISHED)
		return opener_refuse(op, -EOPNOTSUPP, "a copy that was not finished "
				     "(incompatible bit 63), of no use; make it anew");
	return opener_refuse(op, -EOPNOTSUPP,
			     "incompatible features %s not supported (0x%llx), known are bits 0..4",
			     feature_list(op, 0, unknown, names, sizeof(names)),
			     (unsigned long long)unknown);
}

static int check_encryption(struct opener *op)
{
	static const char *const names[] = { "none", "AES", "LUKS" };
	u32 method = load_be32(&disk_header(op)->crypt_method);

	if (!method)
		return 0;
	return opener_refuse(op, -EOPNOTSUPP,
			     "%s encryption not supported (method %u), must be 0 (none)",
			     method < ARRAY_SIZE(names) ? names[method] : "unknown", method);
}

static int check_compression(struct opener *op)
{
	struct image *img = op->img;
	bool bit = img->incompatible & QCOW2_INCOMPAT_COMPRESSION;

	if (img->header_length > offsetof(struct qcow2_disk_header, compression_type))
		img->compression_type = disk_header(op)->compression_type;
	if (img->compression_type > 1)
		return opener_refuse(op, -EOPNOTSUPP,
				     "compression type %u not supported, must be 0 (deflate) or 1 "
				     "(zstd)",
				     img->compression_type);
	if (bit != (img->compression_type != 0))
		return opener_refuse(op, -EILSEQ,
				     "compression type %u does not match incompatible feature bit "
				     "3 (%u), must be set for types other than 0",
				     img->compression_type, bit);
	return 0;
}

static int set_entry_layout(struct opener *op)
{
	struct image *img = op->img;

	img->subclusters = 1;
	img->subcluster_bits = img->cluster_bits;
	img->l2_entry_bytes = 8;
	if (img->incompatible & QCOW2_INCOMPAT_EXTL2) {
		if (img->cluster_bits < QCOW2_MIN_EXTL2_CLUSTER_BITS)
			return opener_refuse(op, -EILSEQ,
					     "extended L2 entries with cluster size 2^%u not "
					     "supported, must be 2^%u..2^%u",
					     img->cluster_bits, QCOW2_MIN_EXTL2_CLUSTER_BITS,
					     QCOW2_MAX_CLUSTER_BITS);
		img->subclusters = QCOW2_SUBCLUSTERS;
		img->subcluster_bits = img->cluster_bits - 5;
		img->l2_entry_bytes = 16;
	}
	img->l2_bits = img->cluster_bits - (img->l2_entry_bytes == 16 ? 4 : 3);
	return 0;
}

static int read_size(struct opener *op)
{
	u64 size = load_be64(&disk_header(op)->size);

	if (size > QC_MAX_VIRTUAL_BYTES)
		return opener_refuse(op, -EFBIG,
				     "virtual size %llu not supported, must be at most 2^55",
				     (unsigned long long)size);
	/* A last part of a sector is not shown, as by QEMU. */
	op->img->virtual_size = ALIGN_DOWN(size, SECTOR_SIZE);
	return 0;
}

static int read_backing_name(struct opener *op)
{
	u64 offset = load_be64(&disk_header(op)->backing_file_offset);
	u32 len = load_be32(&disk_header(op)->backing_file_size);
	u64 cluster_bytes = image_cluster_bytes(op->img);
	int ret;

	if (!offset)
		return 0;
	if (offset < op->img->header_length || offset > cluster_bytes)
		return opener_refuse(op, -EILSEQ,
				     "backing file name outside the first cluster (offset 0x%llx), "
				     "must be in %u..%llu",
				     (unsigned long long)offset, op->img->header_length,
				     (unsigned long long)cluster_bytes);
	if (len > min((u64)QC_MAX_BACKING_NAME, cluster_bytes - offset))
		return opener_refuse(op, -EILSEQ,
				     "backing file name too long (%u bytes at 0x%llx), must be at "
				     "most %u and end in the first cluster",
				     len, (unsigned long long)offset, QC_MAX_BACKING_NAME);
	op->extensions_end = offset;
	op->img->backing_name_offset = offset;
	if (!len)
		return 0;
	ret = opener_fetch(op, offset + len);
	if (ret)
		return ret;
	ret = opener_string(op, "backing file name", op->first + offset, len,
			    &op->img->backing_name);
	if (!ret && !*op->img->backing_name) {
		free(op->img->backing_name);
		op->img->backing_name = NULL;
	}
	return ret;
}

static int check_data_file(struct opener *op)
{
	struct image *img = op->img;

	if (!img->external_data) {
		/* A name that nothing refers to. */
		free(img->data_file_name);
		img->data_file_name = NULL;
		return 0;
	}
	if (!img->data_file_name)
		return opener_refuse(op, -EILSEQ,
				     "external data file without a name (incompatible bit 2), "
				     "header extension 0x%08x must name it",
				     QCOW2_EXT_DATA_FILE);
	return 0;
}

/* ---- steps: tables -------------------------------------------------------- */

static int check_reftable(struct opener *op)
{
	u64 offset = load_be64(&disk_header(op)->refcount_table_offset);
	u32 clusters = load_be32(&disk_header(op)->refcount_table_clusters);
	u64 bytes = (u64)clusters << op->img->cluster_bits;
	char text[FAULT_BYTES];

	if (!clusters)
		return opener_fault(op, "refcount table missing (0 clusters), must have one");
	if (bytes > QC_MAX_REFTABLE_BYTES)
		return opener_fault(op,
				    "refcount table too large (%u clusters), must be at most %u "
				    "bytes",
				    clusters, QC_MAX_REFTABLE_BYTES);
	if (opener_table_fault(op, "refcount table", offset, bytes, text))
		return opener_fault(op, "%s", text);
	op->img->reftable_offset = offset;
	op->img->reftable_clusters = clusters;
	return 0;
}

/* The L1 table is what nobody can do without: no faults here, only refusals. */
static int check_l1(struct opener *op)
{
	struct image *img = op->img;
	u64 offset = load_be64(&disk_header(op)->l1_table_offset);
	u32 entries = load_be32(&disk_header(op)->l1_size);
	u64 coverage = 1ull << image_l2_coverage_bits(img);
	u64 size = load_be64(&disk_header(op)->size);
	u64 needed = DIV_ROUND_UP(size, coverage);
	char text[FAULT_BYTES];

	if (entries > QC_MAX_L1_BYTES / sizeof(u64))
		return opener_refuse(op, -EFBIG,
				     "L1 table too large (%u entries), must be at most %zu",
				     entries, QC_MAX_L1_BYTES / sizeof(u64));
	if (entries < needed)
		return opener_refuse(op, -EILSEQ,
				     "L1 table too small (%u entries), %llu needed for virtual "
				     "size %llu",
				     entries, (unsigned long long)needed, (unsigned long long)size);
	if (entries && opener_table_fault(op, "L1 table", offset, (u64)entries * sizeof(u64), text))
		return opener_refuse(op, -EILSEQ, "%s", text);
	img->l1_offset = offset;
	img->l1_size = entries;
	return 0;
}

static int load_l1(struct opener *op)
{
	return opener_read_l1(op, "L1 table", op->img->l1_offset, op->img->l1_size, &op->img->l1);
}

static int load_snapshots(struct opener *op)
{
	const struct qcow2_disk_header *h = disk_header(op);

	return opener_read_snapshots(op, load_be32(&h->nb_snapshots),
				     load_be64(&h->snapshots_offset));
}

/* ---- steps: writing ------------------------------------------------------- */

static int check_device_writable(struct opener *op)
{
	if (!(op->flags & IMAGE_OPEN_WRITE) || op->img->dev->writable)
		return 0;
	return opener_refuse(op, -EROFS,
			     "device is read-only, must be writable or served read-only");
}

/* Rules B7 and D7. A checker that repairs may write what a server may not. */
static int check_writable(struct opener *op)
{
	u64 known =
		QCOW2_AUTOCLEAR_BITMAPS | QCOW2_AUTOCLEAR_RAW_DATA | QCOW2_AUTOCLEAR_QCHAIN_OPEN;
	struct image *img = op->img;
	u64 unknown = img->autoclear & ~known;
	char names[256];

	if (!(op->flags & IMAGE_OPEN_WRITE))
		return 0;
	if (img->external_data)
		return opener_refuse(op, -EROFS,
				     "external data file (incompatible bit 2), must be served "
				     "read-only");
	if (op->flags & IMAGE_OPEN_CHECK)
		return 0;
	if (img->incompatible & QCOW2_INCOMPAT_CORRUPT)
		return opener_refuse(op, -EROFS,
				     "marked corrupt (incompatible bit 1), must be repaired or "
				     "served read-only");
	if (unknown)
		return opener_refuse(op, -EROFS,
				     "autoclear features %s not supported (0x%llx), must be served "
				     "read-only",
				     feature_list(op, 2, unknown, names, sizeof(names)),
				     (unsigned long long)unknown);
	if (img->incompatible & QCOW2_INCOMPAT_DIRTY)
		return opener_refuse(op, -EUCLEAN,
				     "refcounts marked dirty (incompatible bit 0), must be "
				     "repaired or served read-only");
	return 0;
}

/* ---- opening -------------------------------------------------------------- */

static int open_qcow2(struct opener *op)
{
	static int (*const steps[])(struct opener *op) = {
		check_device_writable,
		read_magic,
		read_geometry,
		check_incompatible,
		check_encryption,
		check_compression,
		set_entry_layout,
		read_size,
		read_backing_name,
		opener_read_extensions,
		check_data_file,
		check_writable,
		check_l1,
		check_reftable,
		load_snapshots,
		opener_read_bitmaps,
		opener_collect_regions,
		load_l1,
	};
	int ret = 0;

	for (size_t i = 0; i < ARRAY_SIZE(steps) && ret >= 0; i++)
		ret = steps[i](op);
	return min(ret, 0);
}

static int open_raw(struct opener *op)
{
	struct image *img = op->img;
	u64 bytes = image_dev_bytes(img);

	img->cluster_bits = 16;
	img->subcluster_bits = img->cluster_bits;
	img->subclusters = 1;
	if (bytes > QC_MAX_VIRTUAL_BYTES)
		return opener_refuse(op, -EFBIG, "size %llu not supported, must be at most 2^55",
				     (unsigned long long)bytes);
	img->virtual_size = ALIGN_UP(bytes, SECTOR_SIZE);
	return check_device_writable(op);
}

int image_open(struct io_dev *dev_owned, enum image_format format, u32 flags, struct image **result,
	       struct qc_err *err)
{
	struct opener op = { .flags = flags, .err = err };
	int ret;

	op.img = calloc(1, sizeof(*op.img));
	if (!op.img) {
		ret = qc_err_set(err, -ENOMEM, "%s: no memory for the image", dev_owned->path);
		io_dev_close(dev_owned);
		return ret;
	}
	op.img->dev = dev_owned;
	op.img->format = format;
	ret = format == IMAGE_RAW ? open_raw(&op) : open_qcow2(&op);
	free(op.first);
	free(op.regions);
	if (ret) {
		image_close(op.img);
		return ret;
	}
	*result = op.img;
	return 0;
}

void image_close(struct image *img)
{
	if (!img)
		return;
	for (u32 i = 0; i < img->nr_faults; i++)
		free(img->faults[i]);
	free(img->faults);
	for (u32 i = 0; i < img->nr_extensions; i++)
		free(img->extensions[i].data);
	free(img->extensions);
	image_free_snapshots(img);
	image_free_bitmaps(img);
	free(img->backing_name);
	free(img->backing_format);
	free(img->data_file_name);
	overlap_free(img->overlap);
	l1_exit(&img->l1);
	if (img->data_dev)
		io_dev_close(img->data_dev);
	io_dev_close(img->dev);
	free(img);
}

/* ---- changing ------------------------------------------------------------- */

int image_write_features(struct image *img)
{
	u8 sector[SECTOR_SIZE];
	struct qcow2_disk_header *h = (struct qcow2_disk_header *)sector;
	int ret;

	if (img->version < 3)
		return img->incompatible || img->compatible || img->autoclear ? -EINVAL : 0;
	ret = io_dev_pread(img->dev, sector, sizeof(sector), 0);
	if (ret < 0)
		return ret;
	/* Never turn something else into an image. */
	if (load_be32(&h->magic) != QCOW2_MAGIC || load_be32(&h->version) != img->version)
		return -EUCLEAN;
	store_be64(&h->incompatible_features, img->incompatible);
	store_be64(&h->compatible_features, img->compatible);
	store_be64(&h->autoclear_features, img->autoclear);
	ret = io_dev_pwrite(img->dev, sector, sizeof(sector), 0);
	if (ret < 0)
		return ret;
	return io_dev_flush(img->dev);
}
