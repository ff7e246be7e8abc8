// SPDX-License-Identifier: GPL-2.0-or-later OR MIT
/* Formatting a device: a fresh image, with its tables and its space if asked. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>

#include "qcow2-layout.h"
#include "qcow2-refbits.h"
#include "qcow2.h"

/*
 * Notes on the design
 *
 * Rule B6: a volume comes from its group full of old data, perhaps with an old
 * image in it. So the first MiB and with it the old header is wiped, durably,
 * before anything else; every cluster of a table is written whole; the first
 * block, which makes an image of it, comes last, after a flush of all the rest.
 *
 * Nothing old becomes readable: preallocation=metadata gives places without
 * writing them, so their entries say "reads as zero" (or, with a backing image
 * and extended L2, "reads from below"). QEMU maps them as data and shows what
 * the volume held before. falloc and full zero the places first and map them as
 * data: a later write there changes no table.
 */
#define WIPE_BYTES (1 * MiB)
#define CHUNK_BYTES (1u << 20)

/* ---- options -------------------------------------------------------------- */

void image_create_defaults(struct image_create_options *options)
{
	*options = (struct image_create_options){
		.version = 3,
		.cluster_bits = 16,
		.refcount_order = 4,
	};
}

static int check_clusters(const struct image_create_options *o, struct qc_err *err)
{
	if (o->cluster_bits < QCOW2_MIN_CLUSTER_BITS || o->cluster_bits > QCOW2_MAX_CLUSTER_BITS)
		return qc_err_set(err, -EINVAL, "cluster size 2^%u not supported, must be "
				  "2^%u..2^%u",
				  o->cluster_bits, QCOW2_MIN_CLUSTER_BITS, QCOW2_MAX_CLUSTER_BITS);
	if (o->extl2 && o->cluster_bits < QCOW2_MIN_EXTL2_CLUSTER_BITS)
		return qc_err_set(err, -EINVAL,
				  "cluster size 2^%u too small for extended L2, must be at least "
				  "2^%u",
				  o->cluster_bits, QCOW2_MIN_EXTL2_CLUSTER_BITS);
	if (o->refcount_order > QCOW2_MAX_REFCOUNT_ORDER)
		return qc_err_set(err, -EINVAL, "refcount width 2^%u bits not supported, must be "
				  "2^0..2^%u",
				  o->refcount_order, QCOW2_MAX_REFCOUNT_ORDER);
	return 0;
}

static int check_version(const struct image_create_options *o, struct qc_err *err)
{
	const char *needs = o->extl2 ? "extended L2" :
			    o->lazy_refcounts ? "lazy refcounts" :
			    o->compression_type ? "zstd compression" :
			    o->refcount_order != 4 ? "refcount width other than 16 bits" :
			    o->preallocation == PREALLOC_METADATA ? "preallocation of metadata" :
								    NULL;

	if (o->version != 2 && o->version != 3)
		return qc_err_set(err, -EINVAL, "version %u not supported, must be 2 or 3",
				  o->version);
	if (o->version == 2 && needs)
		return qc_err_set(err, -EINVAL, "version 2 has no %s; use version 3 (compat 1.1)",
				  needs);
	if (o->compression_type > 1)
		return qc_err_set(err, -EINVAL,
				  "compression type %u not supported, must be 0 (deflate) or 1 "
				  "(zstd)",
				  o->compression_type);
	return 0;
}

static int check_size(const struct image_create_options *o, struct qc_err *err)
{
	u64 most = QC_MAX_L1_BYTES / sizeof(u64);
	struct layout full;

	if (!IS_ALIGNED(o->virtual_size, SECTOR_SIZE))
		return qc_err_set(err, -EINVAL, "size %llu not supported, must be a multiple of %u",
				  (unsigned long long)o->virtual_size, SECTOR_SIZE);
	if (o->virtual_size > QC_MAX_VIRTUAL_BYTES)
		return qc_err_set(err, -EFBIG, "size %llu not supported, must be at most 2^55",
				  (unsigned long long)o->virtual_size);
	layout_full(o, &full);
	if (full.l1_entries > most)
		return qc_err_set(err, -EFBIG,
				  "size %llu too large for cluster size 2^%u, must be at most "
				  "%llu; use a larger cluster size",
				  (unsigned long long)o->virtual_size, o->cluster_bits,
				  (unsigned long long)(most * ((1ull << (2 * o->cluster_bits)) /
							       layout_l2_entry_bytes(o))));
	if (o->preallocation && full.table_clusters << o->cluster_bits > QC_MAX_REFTABLE_BYTES)
		return qc_err_set(err, -EFBIG,
				  "refcount table too large (%llu clusters), must be at most %u "
				  "bytes; use a larger cluster size",
				  (unsigned long long)full.table_clusters, QC_MAX_REFTABLE_BYTES);
	return 0;
}

static int check_backing(const struct image_create_options *o, struct qc_err *err)
{
	enum image_format format;

	if (!o->backing_name && o->backing_format)
		return qc_err_set(err, -EINVAL, "backing format '%s' without a backing image",
				  o->backing_format);
	if (!o->backing_name)
		return 0;
	if (!o->backing_format)
		return qc_err_set(err, -EINVAL,
				  "backing image '%s' without a format, must be raw or qcow2",
				  o->backing_name);
	if (image_format_parse(o->backing_format, &format))
		return qc_err_set(err, -EINVAL, "backing format '%s' not supported, must be raw "
				  "or qcow2",
				  o->backing_format);
	if (!*o->backing_name || strlen(o->backing_name) > QC_MAX_BACKING_NAME)
		return qc_err_set(err, -ENAMETOOLONG,
				  "backing name of %zu bytes not supported, must be 1..%u",
				  strlen(o->backing_name), QC_MAX_BACKING_NAME);
	if (o->preallocation && !o->extl2)
		return qc_err_set(err, -EINVAL,
				  "preallocation with a backing image needs extended L2, else it "
				  "hides the backing image; add extended L2 or leave "
				  "preallocation off");
	return 0;
}

/* ---- the header cluster --------------------------------------------------- */

struct creator {
	struct io_dev *dev;
	const struct image_create_options *options;
	struct qc_err *err;
	struct layout layout;
	u64 cluster_bytes;
	/* byte offsets of the parts */
	u64 table_at;
	u64 blocks_at;
	u64 l1_at;
	u64 l2_at;
	u64 data_at;
	u64 end_at;
	u8 *header; /* one cluster, at least one block */
	u8 *chunk; /* CHUNK_BYTES */
};

static const struct {
	u8 type;
	u8 bit;
	const char *name;
} features[] = {
	{ 0, 0, "dirty bit" },	      { 0, 1, "corrupt bit" },
	{ 0, 2, "external data file" }, { 0, 3, "compression type" },
	{ 0, 4, "extended L2 entries" }, { 1, 0, "lazy refcounts" },
	{ 2, 0, "bitmaps" },	      { 2, 1, "raw external data" },
	{ 2, 63, "open in qchaind" },
};

/* Extension header and room for @len bytes; returns the offset behind it. */
static u32 put_extension(u8 *header, u32 at, u32 type, const void *data, u32 len)
{
	struct qcow2_disk_extension *ext = (struct qcow2_disk_extension *)(header + at);

	ext->type = htobe32(type);
	ext->length = htobe32(len);
	memcpy(header + at + sizeof(*ext), data, len);
	return at + sizeof(*ext) + ALIGN_UP(len, 8);
}

static u32 put_feature_names(u8 *header, u32 at)
{
	struct qcow2_disk_feature_name names[ARRAY_SIZE(features)] = {};

	for (u32 i = 0; i < ARRAY_SIZE(features); i++) {
		names[i].type = features[i].type;
		names[i].bit = features[i].bit;
		memcpy(names[i].name, features[i].name, strlen(features[i].name));
	}
	return put_extension(header, at, QCOW2_EXT_FEATURE_NAMES, names, sizeof(names));
}

static u32 header_bytes(const struct image_create_options *o)
{
	return o->version == 2 ? QCOW2_V2_HEADER_BYTES : sizeof(struct qcow2_disk_header);
}

static void put_fields(const struct creator *c)
{
	struct qcow2_disk_header *h = (struct qcow2_disk_header *)c->header;
	const struct image_create_options *o = c->options;

	h->magic = htobe32(QCOW2_MAGIC);
	h->version = htobe32(o->version);
	h->cluster_bits = htobe32(o->cluster_bits);
	h->size = htobe64(o->virtual_size);
	h->l1_size = htobe32(c->layout.l1_entries);
	h->l1_table_offset = htobe64(c->l1_at);
	h->refcount_table_offset = htobe64(c->table_at);
	h->refcount_table_clusters = htobe32(c->layout.table_clusters);
	if (o->version == 2)
		return;
	h->incompatible_features = htobe64((o->extl2 ? QCOW2_INCOMPAT_EXTL2 : 0) |
					   (o->compression_type ? QCOW2_INCOMPAT_COMPRESSION : 0));
	h->compatible_features = htobe64(o->lazy_refcounts ? QCOW2_COMPAT_LAZY_REFCOUNTS : 0);
	h->refcount_order = htobe32(o->refcount_order);
	h->header_length = htobe32(header_bytes(o));
	h->compression_type = o->compression_type;
}

/*
 * The format comes first, so that it lies in sector 0 (rule B5). Names of
 * features are for messages only: left out where the cluster is too small. The
 * backing name begins a sector of its own if it can.
 */
static int build_header(struct creator *c)
{
	struct qcow2_disk_header *h = (struct qcow2_disk_header *)c->header;
	const struct image_create_options *o = c->options;
	u32 end = sizeof(struct qcow2_disk_extension);
	u32 name_bytes = o->backing_name ? strlen(o->backing_name) : 0;
	u32 names_bytes = sizeof(struct qcow2_disk_extension) +
			  ARRAY_SIZE(features) * sizeof(struct qcow2_disk_feature_name);
	u32 at = header_bytes(o);

	put_fields(c);
	if (o->backing_name)
		at = put_extension(c->header, at, QCOW2_EXT_BACKING_FORMAT, o->backing_format,
				   strlen(o->backing_format));
	if (o->version == 3 && at + names_bytes + end + name_bytes <= c->cluster_bytes)
		at = put_feature_names(c->header, at);
	at += end; /* zeroes: the end of the extensions */
	if (!o->backing_name)
		return 0;
	if (ALIGN_UP(at, SECTOR_SIZE) + name_bytes <= c->cluster_bytes)
		at = ALIGN_UP(at, SECTOR_SIZE);
	if (at + name_bytes > c->cluster_bytes)
		return qc_err_set(c->err, -ENAMETOOLONG,
				  "backing name of %u bytes does not fit into the first cluster, "
				  "must be at most %u; use a larger cluster size",
				  name_bytes, (u32)(c->cluster_bytes - at));
	memcpy(c->header + at, o->backing_name, name_bytes);
	h->backing_file_offset = htobe64(at);
	h->backing_file_size = htobe32(name_bytes);
	return 0;
}

/* ---- the tables ------------------------------------------------------------ */

/* Fill @bytes of a part from its byte @at on. */
typedef void (*fill_fn)(const struct creator *c, u8 *buf, u64 at, u32 bytes);

static void fill_zero(const struct creator *c, u8 *buf, u64 at, u32 bytes)
{
	memset(buf, 0, bytes);
}

static void fill_table(const struct creator *c, u8 *buf, u64 at, u32 bytes)
{
	for (u32 i = 0; i < bytes / sizeof(u64); i++) {
		u64 index = at / sizeof(u64) + i;
		bool used = index < c->layout.block_clusters;

		store_be64(buf + i * sizeof(u64),
			   used ? c->blocks_at + index * c->cluster_bytes : 0);
	}
}

/* Every cluster up to the end of the image has refcount 1. */
static void fill_blocks(const struct creator *c, u8 *buf, u64 at, u32 bytes)
{
	u32 order = c->options->refcount_order;
	u64 first = (at << 3) >> order;
	u64 last = min(((at + bytes) << 3) >> order, layout_clusters(&c->layout));

	memset(buf, 0, bytes);
	for (u64 i = first; i < last; i++)
		refcount_set(buf, order, i - first, 1);
}

static void fill_l1(const struct creator *c, u8 *buf, u64 at, u32 bytes)
{
	for (u32 i = 0; i < bytes / sizeof(u64); i++) {
		u64 index = at / sizeof(u64) + i;
		bool used = index < c->layout.l2_clusters;

		store_be64(buf + i * sizeof(u64),
			   used ? QCOW2_COPIED | (c->l2_at + index * c->cluster_bytes) : 0);
	}
}

/* See the notes above: places that were not written never read as data. */
static void fill_l2(const struct creator *c, u8 *buf, u64 at, u32 bytes)
{
	const struct image_create_options *o = c->options;
	bool zeroed = o->preallocation == PREALLOC_FALLOC || o->preallocation == PREALLOC_FULL;
	u32 entry_bytes = layout_l2_entry_bytes(o);
	u64 flags = QCOW2_COPIED | (!zeroed && !o->extl2 ? QCOW2_ZERO : 0);
	u64 bitmap = o->backing_name ? 0 : zeroed ? QCOW2_SC_ALLOC_MASK : QCOW2_SC_ZERO_MASK;

	memset(buf, 0, bytes);
	for (u32 i = 0; i < bytes / entry_bytes; i++) {
		u64 index = at / entry_bytes + i;

		if (index >= c->layout.data_clusters)
			break;
		store_be64(buf + i * entry_bytes, flags | (c->data_at + index * c->cluster_bytes));
		if (o->extl2)
			store_be64(buf + i * entry_bytes + sizeof(u64), bitmap);
	}
}

static int create_failed(const struct creator *c, const char *what, u64 at, int ret)
{
	return qc_err_set(c->err, ret, "writing the %s at 0x%llx failed (%s)", what,
			  (unsigned long long)at, strerror(-ret));
}

static int write_part(const struct creator *c, const char *what, u64 at, u64 bytes, fill_fn fill)
{
	for (u64 done = 0; done < bytes; done += CHUNK_BYTES) {
		u32 n = min(bytes - done, (u64)CHUNK_BYTES);
		int ret;

		fill(c, c->chunk, done, n);
		ret = io_dev_pwrite(c->dev, c->chunk, n, at + done);
		if (ret < 0)
			return create_failed(c, what, at + done, ret);
	}
	return 0;
}

static int write_tables(const struct creator *c)
{
	const struct layout *l = &c->layout;
	u32 bits = c->options->cluster_bits;
	int ret;

	ret = write_part(c, "refcount table", c->table_at, l->table_clusters << bits, fill_table);
	if (!ret)
		ret = write_part(c, "refcount blocks", c->blocks_at, l->block_clusters << bits,
				 fill_blocks);
	if (!ret)
		ret = write_part(c, "L1 table", c->l1_at, l->l1_clusters << bits, fill_l1);
	if (!ret)
		ret = write_part(c, "L2 tables", c->l2_at, l->l2_clusters << bits, fill_l2);
	return ret;
}

/* ---- preallocated space ----------------------------------------------------- */

/*
 * Zeroes that take space, without sending them where the kernel can. Devices
 * of the simulator have no descriptor and get written zeroes.
 */
static bool zero_range(const struct creator *c)
{
	int mode = FALLOC_FL_ZERO_RANGE | (c->dev->blockdev ? FALLOC_FL_KEEP_SIZE : 0);

	return c->dev->fd > 2 && c->end_at > c->data_at &&
	       fallocate(c->dev->fd, mode, c->data_at, c->end_at - c->data_at) == 0 &&
	       c->dev->ops->refresh_size(c->dev) >= 0;
}

static int allocate_data(const struct creator *c)
{
	switch (c->options->preallocation) {
	case PREALLOC_OFF:
		return 0;
	case PREALLOC_METADATA:
		/* A file must reach to the last place that its tables name. */
		if (c->dev->blockdev || io_dev_bytes(c->dev) >= c->end_at)
			return 0;
		return write_part(c, "last data cluster", c->end_at - SECTOR_SIZE, SECTOR_SIZE,
				  fill_zero);
	case PREALLOC_FALLOC:
		if (zero_range(c))
			return 0;
		break;
	case PREALLOC_FULL:
		break;
	}
	return write_part(c, "preallocated data", c->data_at, c->end_at - c->data_at, fill_zero);
}

/* ---- all of it --------------------------------------------------------------- */

static void lay_out(struct creator *c)
{
	const struct image_create_options *o = c->options;
	struct layout *l = &c->layout;

	layout_full(o, l);
	c->cluster_bytes = 1ull << o->cluster_bits;
	if (o->preallocation == PREALLOC_OFF) {
		l->l2_clusters = 0;
		l->data_clusters = 0;
		layout_refcounts(1 + l->l1_clusters, o->cluster_bits, o->refcount_order,
				 &l->block_clusters, &l->table_clusters);
	}
	c->table_at = c->cluster_bytes;
	c->blocks_at = c->table_at + (l->table_clusters << o->cluster_bits);
	c->l1_at = c->blocks_at + (l->block_clusters << o->cluster_bits);
	c->l2_at = c->l1_at + (l->l1_clusters << o->cluster_bits);
	c->data_at = c->l2_at + (l->l2_clusters << o->cluster_bits);
	c->end_at = c->data_at + (l->data_clusters << o->cluster_bits);
}

static int check_device(const struct creator *c)
{
	u64 size = io_dev_bytes(c->dev);

	if (!c->dev->writable)
		return qc_err_set(c->err, -EROFS, "device is open read-only, must be writable");
	if (c->dev->blockdev && size < c->end_at)
		return qc_err_set(c->err, -ENOSPC,
				  "device too small (%llu bytes), must have at least %llu; "
				  "extend it first",
				  (unsigned long long)size, (unsigned long long)c->end_at);
	return 0;
}

/* What was there is gone before the first table is written. */
static int wipe(const struct creator *c)
{
	u64 bytes = min((u64)WIPE_BYTES, io_dev_bytes(c->dev));
	int ret = write_part(c, "wiped first MiB", 0, bytes, fill_zero);

	return ret ? ret : io_dev_flush(c->dev);
}

static int write_header(const struct creator *c)
{
	u64 first = max(c->dev->block_bytes, SECTOR_SIZE);
	int ret = 0;

	if (c->cluster_bytes > first)
		ret = io_dev_pwrite(c->dev, c->header + first, c->cluster_bytes - first, first);
	if (!ret)
		ret = io_dev_flush(c->dev);
	if (!ret)
		ret = io_dev_pwrite(c->dev, c->header, min(first, c->cluster_bytes), 0);
	if (!ret)
		ret = io_dev_flush(c->dev);
	return ret < 0 ? create_failed(c, "header", 0, ret) : 0;
}

static int create_all(struct creator *c)
{
	int ret = check_device(c);

	if (!ret)
		ret = build_header(c);
	if (!ret)
		ret = wipe(c);
	if (!ret)
		ret = write_tables(c);
	if (!ret)
		ret = allocate_data(c);
	return ret ? ret : write_header(c);
}

int image_create_check(const struct image_create_options *options, struct qc_err *err)
{
	struct creator c = { .options = options, .err = err };
	int ret = check_clusters(options, err);

	if (!ret)
		ret = check_version(options, err);
	if (!ret)
		ret = check_size(options, err);
	if (!ret)
		ret = check_backing(options, err);
	if (ret)
		return ret;
	lay_out(&c);
	c.header = calloc(1, c.cluster_bytes);
	if (!c.header)
		return qc_err_set(err, -ENOMEM, "no memory for a header cluster");
	ret = build_header(&c);
	free(c.header);
	return ret;
}

int image_create(struct io_dev *dev, const struct image_create_options *options,
		 struct qc_err *err)
{
	struct qc_err local = {};
	struct creator c = { .dev = dev, .options = options, .err = &local };
	int ret = image_create_check(options, &local);

	if (!ret) {
		lay_out(&c);
		c.header = io_alloc(c.cluster_bytes);
		c.chunk = io_alloc(CHUNK_BYTES);
		if (c.header && c.chunk) {
			memset(c.header, 0, c.cluster_bytes);
			ret = create_all(&c);
		} else {
			ret = qc_err_set(&local, -ENOMEM, "no memory for the tables");
		}
	}
	free(c.header);
	free(c.chunk);
	if (ret)
		qc_err_set(err, ret, "%s: %s", dev->path,
			   local.msg[0] ? local.msg : strerror(-ret));
	return ret;
}
