// SPDX-License-Identifier: GPL-2.0-or-later OR MIT
/* L1 and L2 tables: reading them, and what one entry means. */
#include <assert.h>
#include <qchain/io.h>
#include <stdio.h>
#include <stdlib.h>

#include "qcow2.h"

/* ---- tables as a stream -------------------------------------------------- */

int table_stream_init(struct table_stream *s, struct io_dev *dev, u64 offset, u64 bytes)
{
	u64 dev_bytes = io_dev_bytes(dev);

	memset(s, 0, sizeof(*s));
	s->dev = dev;
	s->next = min(offset, dev_bytes);
	s->end = s->next + min(bytes, dev_bytes - s->next);
	s->window = io_alloc(QCOW2_STREAM_BYTES);
	return s->window ? 0 : -ENOMEM;
}

void table_stream_exit(struct table_stream *s)
{
	free(s->window);
	s->window = NULL;
}

u64 table_stream_offset(const struct table_stream *s)
{
	return s->next - (s->have - s->pos);
}

/* Move what is left to the front and read on; at least @bytes are valid then. */
static int table_stream_fill(struct table_stream *s, u32 bytes)
{
	u32 left = s->have - s->pos;
	u32 want = min(max(bytes, QCOW2_STREAM_READ_BYTES), QCOW2_STREAM_BYTES);
	u64 len = min((u64)(want - left), s->end - s->next);
	int ret;

	memmove(s->window, s->window + s->pos, left);
	s->pos = 0;
	s->have = left;
	ret = io_dev_pread(s->dev, s->window + left, len, s->next);
	if (ret < 0)
		return ret;
	s->next += len;
	s->have += len;
	return 0;
}

int table_stream_get(struct table_stream *s, u32 bytes, const u8 **result)
{
	int ret;

	assert(bytes <= QCOW2_STREAM_BYTES);
	if (bytes > s->end - table_stream_offset(s))
		return -ERANGE;
	if (bytes > s->have - s->pos) {
		ret = table_stream_fill(s, bytes);
		if (ret)
			return ret;
	}
	*result = s->window + s->pos;
	s->pos += bytes;
	return 0;
}

int table_stream_skip(struct table_stream *s, u64 bytes)
{
	u64 left = s->have - s->pos;

	if (bytes > s->end - table_stream_offset(s))
		return -ERANGE;
	if (bytes > left) {
		s->next += bytes - left;
		s->pos = s->have;
	} else {
		s->pos += bytes;
	}
	return 0;
}

/* ---- where tables lie ---------------------------------------------------- */

static bool in_table(const struct image *img, u64 offset, u64 bytes, u64 table, u64 table_bytes)
{
	u64 end = ALIGN_UP(table + table_bytes, image_cluster_bytes(img));

	return table_bytes && ranges_overlap(offset, bytes, table, end - table);
}

/* The only region that can overlap is the last one that begins before the end. */
static const char *region_at(const struct opener *op, u64 offset, u64 bytes)
{
	u32 low = 0, high = op->nr_regions;
	const struct table_region *region;

	while (low < high) {
		u32 mid = low + (high - low) / 2;

		if (op->regions[mid].offset < offset + bytes)
			low = mid + 1;
		else
			high = mid;
	}
	if (!low)
		return NULL;
	region = &op->regions[low - 1];
	return in_table(op->img, offset, bytes, region->offset, region->bytes) ? region->what
									       : NULL;
}

const char *opener_table_at(const struct opener *op, u64 offset, u64 bytes)
{
	const struct image *img = op->img;

	if (offset < image_cluster_bytes(img))
		return "header";
	if (in_table(img, offset, bytes, img->l1_offset, (u64)img->l1_size * sizeof(u64)))
		return "L1 table";
	if (in_table(img, offset, bytes, img->reftable_offset,
		     (u64)img->reftable_clusters << img->cluster_bits))
		return "refcount table";
	if (in_table(img, offset, bytes, img->snapshots_offset, img->snapshots_bytes))
		return "snapshot table";
	if (in_table(img, offset, bytes, img->bitmap_dir_offset, img->bitmap_dir_bytes))
		return "bitmap directory";
	return region_at(op, offset, bytes);
}

bool opener_table_fault(struct opener *op, const char *what, u64 offset, u64 bytes,
			char text[FAULT_BYTES])
{
	u64 cluster_bytes = image_cluster_bytes(op->img);
	u64 dev_bytes = image_dev_bytes(op->img);
	const char *hit;

	if (!offset || !IS_ALIGNED(offset, cluster_bytes)) {
		snprintf(text, FAULT_BYTES,
			 "%s not aligned (offset 0x%llx), must be a multiple of 2^%u above 0", what,
			 (unsigned long long)offset, op->img->cluster_bits);
		return true;
	}
	if (offset > dev_bytes || bytes > dev_bytes - offset) {
		snprintf(text, FAULT_BYTES,
			 "%s beyond the end of the image (offset 0x%llx, %llu bytes), must end by "
			 "0x%llx",
			 what, (unsigned long long)offset, (unsigned long long)bytes,
			 (unsigned long long)dev_bytes);
		return true;
	}
	hit = opener_table_at(op, offset, bytes);
	if (hit)
		snprintf(text, FAULT_BYTES,
			 "%s overlaps the %s (offset 0x%llx, %llu bytes), must lie in clusters of "
			 "its own",
			 what, hit, (unsigned long long)offset, (unsigned long long)bytes);
	return hit;
}

static void add_region(struct opener *op, const char *what, u64 offset, u64 bytes)
{
	if (bytes)
		op->regions[op->nr_regions++] = (struct table_region){ offset, bytes, what };
}

static int compare_regions(const void *a, const void *b)
{
	const struct table_region *x = a, *y = b;

	return x->offset < y->offset ? -1 : x->offset > y->offset;
}

int opener_collect_regions(struct opener *op)
{
	struct image *img = op->img;
	u32 room = img->nr_snapshots + (img->bitmaps ? img->nr_bitmaps : 0);
	const struct table_region *r;
	int ret = 0;

	if (!room)
		return 0;
	op->regions = calloc(room, sizeof(*op->regions));
	if (!op->regions)
		return opener_refuse(op, -ENOMEM, "no memory for the list of tables (%u)", room);
	for (u32 i = 0; i < img->nr_snapshots; i++)
		add_region(op, "L1 table of a snapshot", img->snapshots[i].l1_offset,
			   (u64)img->snapshots[i].l1_size * sizeof(u64));
	for (u32 i = 0; img->bitmaps && i < img->nr_bitmaps; i++)
		add_region(op, "bitmap table", img->bitmaps[i].table_offset,
			   (u64)img->bitmaps[i].table_entries * sizeof(u64));
	qsort(op->regions, op->nr_regions, sizeof(*op->regions), compare_regions);
	for (r = op->regions; r + 1 < op->regions + op->nr_regions && ret >= 0; r++) {
		if (!in_table(img, r[1].offset, r[1].bytes, r->offset, r->bytes))
			continue;
		ret = opener_fault(op,
				   "%s overlaps the %s (offset 0x%llx), must lie in clusters of "
				   "its own",
				   r[1].what, r->what, (unsigned long long)r[1].offset);
	}
	return ret;
}

/* ---- L1 ------------------------------------------------------------------ */

/* Why no L2 table can be where @entry says; 0 or a fault that names @index. */
static int l1_check_entry(struct opener *op, const char *what, u32 index, u64 entry)
{
	const struct image *img = op->img;
	u64 cluster_bytes = image_cluster_bytes(img);
	u64 l2 = entry & QCOW2_OFFSET_MASK;
	const char *hit;

	if (entry & QCOW2_L1_RESERVED)
		return opener_refuse(op, -EILSEQ,
				     "%s entry %u: reserved bits set (0x%016llx), bits 0..8 and "
				     "56..62 must be 0",
				     what, index, (unsigned long long)entry);
	if (!l2)
		return 0;
	if (!IS_ALIGNED(l2, cluster_bytes))
		return opener_refuse(op, -EILSEQ,
				     "%s entry %u: L2 table not aligned (0x%llx), must be a "
				     "multiple of 2^%u",
				     what, index, (unsigned long long)l2, img->cluster_bits);
	if (l2 + cluster_bytes > image_dev_bytes(img))
		return opener_refuse(op, -EILSEQ,
				     "%s entry %u: L2 table beyond the end of the image (0x%llx), "
				     "must end by 0x%llx",
				     what, index, (unsigned long long)l2,
				     (unsigned long long)image_dev_bytes(img));
	hit = opener_table_at(op, l2, cluster_bytes);
	if (hit)
		return opener_refuse(op, -EILSEQ,
				     "%s entry %u: L2 table overlaps the %s (0x%llx), must lie in "
				     "clusters of its own",
				     what, index, hit, (unsigned long long)l2);
	return 0;
}

int opener_read_l1(struct opener *op, const char *what, u64 offset, u32 entries,
		   struct l1 *result)
{
	int ret = l1_read(op->img->dev, offset, entries, result);
	u32 i;

	if (ret < 0)
		return opener_refuse(op, ret, "%s: read of %llu bytes at 0x%llx failed (%s)", what,
				     (unsigned long long)entries * sizeof(u64),
				     (unsigned long long)offset, strerror(-ret));
	if (op->flags & IMAGE_OPEN_CHECK)
		return 0; /* the checker reports each entry itself */
	for (i = l1_next(result, 0, entries); i < entries; i = l1_next(result, i + 1, entries)) {
		ret = l1_check_entry(op, what, i, l1_get(result, i));
		if (ret) {
			l1_exit(result);
			return ret;
		}
	}
	return 0;
}

/* ---- L2 entries ---------------------------------------------------------- */

u64 image_l2_entry(const struct image *img, const void *table, u32 index)
{
	return load_be64((const u8 *)table + (size_t)index * img->l2_entry_bytes);
}

u64 image_l2_bitmap(const struct image *img, const void *table, u32 index)
{
	if (!image_has_extl2(img))
		return 0;
	return load_be64((const u8 *)table + (size_t)index * img->l2_entry_bytes + 8);
}

void image_l2_set(const struct image *img, void *table, u32 index, u64 entry, u64 bitmap)
{
	u8 *at = (u8 *)table + (size_t)index * img->l2_entry_bytes;

	store_be64(at, entry);
	if (image_has_extl2(img))
		store_be64(at + 8, bitmap);
}

static void decode_bad(struct cluster_info *info, const char *why)
{
	info->kind = CLUSTER_BAD;
	info->copied = false;
	info->bad = why;
}

/* Bits 0 .. x-1 of a compressed entry are the byte offset, the next are sectors. */
static u32 compressed_offset_bits(const struct image *img)
{
	return 62 - (img->cluster_bits - 8);
}

static void decode_compressed(const struct image *img, u64 entry, struct cluster_info *info)
{
	u32 x = compressed_offset_bits(img);
	u64 offset = entry & ((1ull << x) - 1);
	u64 sectors = ((entry & ~(QCOW2_COPIED | QCOW2_COMPRESSED)) >> x) + 1;
	u64 bytes = sectors * SECTOR_SIZE - (offset & (SECTOR_SIZE - 1));
	u64 dev_bytes = image_dev_bytes(img);

	info->host = offset;
	info->compressed_bytes = bytes;
	info->kind = CLUSTER_COMPRESSED;
	if (img->external_data)
		decode_bad(info, "compressed cluster in an image with an external data file");
	else if (offset >> 56)
		decode_bad(info, "compressed cluster with an offset beyond 2^56");
	else if (offset < image_cluster_bytes(img))
		decode_bad(info, "compressed cluster inside the header cluster");
	else if (offset >= dev_bytes || (img->dev->blockdev && bytes > dev_bytes - offset))
		decode_bad(info, "compressed cluster beyond the end of the image");
}

/* Checks of the place of a standard cluster; NULL: it can be there. */
static const char *place_fault(const struct image *img, u64 host)
{
	if (!IS_ALIGNED(host, image_cluster_bytes(img)))
		return "cluster offset not aligned";
	if (img->dev->blockdev && !img->external_data &&
	    host + image_cluster_bytes(img) > image_dev_bytes(img))
		return "cluster beyond the end of the device";
	return NULL;
}

static void decode_standard(const struct image *img, u64 entry, bool has_place,
			    struct cluster_info *info)
{
	if (entry & QCOW2_ZERO) {
		if (img->version < 3) {
			decode_bad(info, "zero flag in a version 2 image");
			return;
		}
		/* As QEMU: offset 0 is no place here, data file or not. */
		info->kind = info->host ? CLUSTER_ZERO_PLACE : CLUSTER_ZERO;
	} else {
		info->kind = has_place ? CLUSTER_DATA : CLUSTER_UNALLOCATED;
	}
}

static void decode_extended(const struct image *img, u64 entry, u64 bitmap, u32 sc, bool has_place,
			    struct cluster_info *info)
{
	u32 alloc = (u32)bitmap, zero = (u32)(bitmap >> 32);

	if (entry & QCOW2_ZERO)
		decode_bad(info, "zero flag of standard entries in an extended entry");
	else if (alloc & zero)
		decode_bad(info, "subcluster both allocated and zero");
	else if (alloc && !has_place)
		decode_bad(info, "subcluster allocated in a cluster without a place");
	else if (zero >> sc & 1)
		info->kind = has_place ? CLUSTER_ZERO_PLACE : CLUSTER_ZERO;
	else if (alloc >> sc & 1)
		info->kind = CLUSTER_DATA;
	else
		info->kind = has_place ? CLUSTER_RESERVED : CLUSTER_UNALLOCATED;
	if (info->kind != CLUSTER_BAD && has_place)
		info->host += (u64)sc << img->subcluster_bits;
}

void image_decode(const struct image *img, u64 entry, u64 bitmap, u32 sc,
		  struct cluster_info *result)
{
	const char *fault;
	bool has_place;

	assert(sc < img->subclusters);
	*result = (struct cluster_info){};
	if (entry & QCOW2_COMPRESSED) {
		decode_compressed(img, entry, result);
		return;
	}
	result->host = entry & QCOW2_OFFSET_MASK;
	result->copied = entry & QCOW2_COPIED;
	/* Guest offset 0 of an external data file is a place like any other. */
	has_place = result->host || (img->external_data && result->copied);
	if (entry & QCOW2_L2_RESERVED) {
		decode_bad(result, "reserved bits set");
		return;
	}
	fault = has_place ? place_fault(img, result->host) : NULL;
	if (fault)
		decode_bad(result, fault);
	else if (image_has_extl2(img))
		decode_extended(img, entry, bitmap, sc, has_place, result);
	else
		decode_standard(img, entry, has_place, result);
	if (!has_place)
		result->copied = false;
}

u64 image_compressed_entry(const struct image *img, u64 offset, u32 bytes)
{
	u32 x = compressed_offset_bits(img);
	u64 sectors;

	assert(bytes > 0 && bytes <= image_cluster_bytes(img));
	if (offset >> min(x, 56u))
		return 0;
	sectors = (offset + bytes - 1) / SECTOR_SIZE - offset / SECTOR_SIZE;
	return QCOW2_COMPRESSED | sectors << x | offset;
}
