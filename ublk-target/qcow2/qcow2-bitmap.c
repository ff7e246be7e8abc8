// SPDX-License-Identifier: GPL-2.0-or-later OR MIT
/* Persistent bitmaps: where their tables are, so that nobody else writes there. */
#include <stdio.h>
#include <stdlib.h>

#include "qcow2.h"

/* QEMU knows type 1 (dirty tracking) only; other types have the same layout. */
#define BITMAP_ENTRY_BYTES (sizeof(struct qcow2_disk_bitmap_entry))

/* Why the extension is not one, or NULL. */
static const char *extension_fault(const struct qcow2_disk_bitmaps *disk)
{
	u32 count = load_be32(&disk->nb_bitmaps);
	u64 bytes = load_be64(&disk->directory_size);

	if (!count || count > QC_MAX_BITMAPS)
		return "number of bitmaps";
	if (bytes > QC_MAX_BITMAP_DIRECTORY_BYTES || bytes < count * BITMAP_ENTRY_BYTES)
		return "directory size";
	return load_be32(&disk->reserved) ? "reserved field" : NULL;
}

int opener_bitmaps_extension(struct opener *op, const u8 *data, u32 len)
{
	const struct qcow2_disk_bitmaps *disk = (const struct qcow2_disk_bitmaps *)data;
	const char *fault;

	/* Written by somebody who keeps no bitmaps: stale, as QEMU sees it too. */
	if (!(op->img->autoclear & QCOW2_AUTOCLEAR_BITMAPS))
		return 0;
	if (len != sizeof(*disk))
		return opener_fault(op, "bitmaps extension of %u bytes not valid, must be %zu", len,
				    sizeof(*disk));
	fault = extension_fault(disk);
	if (fault)
		return opener_fault(op,
				    "bitmaps extension: %s not valid (%u bitmaps, %llu bytes), "
				    "must be 1..%u bitmaps of at least %zu bytes each, at most %u "
				    "in all, reserved 0",
				    fault, load_be32(&disk->nb_bitmaps),
				    (unsigned long long)load_be64(&disk->directory_size),
				    QC_MAX_BITMAPS, BITMAP_ENTRY_BYTES,
				    QC_MAX_BITMAP_DIRECTORY_BYTES);
	op->nr_bitmaps = load_be32(&disk->nb_bitmaps);
	op->bitmap_dir_bytes = load_be64(&disk->directory_size);
	op->bitmap_dir_offset = load_be64(&disk->directory_offset);
	return 0;
}

/* One entry; what its name or extra data do not fit is -ERANGE. */
static int parse_entry(struct table_stream *s, struct image_bitmap *bitmap, u32 *name_bytes)
{
	const struct qcow2_disk_bitmap_entry *disk;
	u32 extra_bytes;
	const u8 *p;
	int ret;

	ret = table_stream_get(s, sizeof(*disk), &p);
	if (ret)
		return ret;
	disk = (const struct qcow2_disk_bitmap_entry *)p;
	bitmap->table_offset = load_be64(&disk->table_offset);
	bitmap->table_entries = load_be32(&disk->table_size);
	bitmap->flags = load_be32(&disk->flags);
	bitmap->granularity_bits = disk->granularity_bits;
	*name_bytes = load_be16(&disk->name_size);
	extra_bytes = load_be32(&disk->extra_data_size);
	ret = table_stream_skip(s, extra_bytes);
	if (ret)
		return ret;
	ret = table_stream_get(s, *name_bytes, &p);
	if (ret)
		return ret;
	bitmap->name = strndup((const char *)p, *name_bytes);
	if (!bitmap->name)
		return -ENOMEM;
	return table_stream_skip(s, -(BITMAP_ENTRY_BYTES + extra_bytes + *name_bytes) & 7);
}

static int check_entry(struct opener *op, u32 index, const struct image_bitmap *bitmap,
		       u32 name_bytes)
{
	char name[PRINTABLE_BYTES], what[128], text[FAULT_BYTES];
	u64 table_bytes = (u64)bitmap->table_entries * sizeof(u64);

	snprintf(what, sizeof(what), "table of bitmap %u '%s'", index,
		 printable(name, bitmap->name, strlen(bitmap->name)));
	if (!name_bytes || name_bytes > QCOW2_MAX_BITMAP_NAME)
		return opener_fault(op, "bitmap %u: name of %u bytes not valid, must be 1..%u",
				    index, name_bytes, QCOW2_MAX_BITMAP_NAME);
	if (table_bytes && opener_table_fault(op, what, bitmap->table_offset, table_bytes, text))
		return opener_fault(op, "%s", text);
	return 0;
}

static int refuse_entry(struct opener *op, u32 index, int ret)
{
	if (ret == -ERANGE)
		return opener_fault(op,
				    "bitmap directory entry %u beyond the end of the directory "
				    "(%llu bytes), must end in it",
				    index, (unsigned long long)op->img->bitmap_dir_bytes);
	return opener_refuse(op, ret, "bitmap directory entry %u: read failed (%s)", index,
			     strerror(-ret));
}

static int read_entries(struct opener *op, struct table_stream *s)
{
	struct image *img = op->img;
	u32 name_bytes;
	int ret;

	for (u32 i = 0; i < img->nr_bitmaps; i++) {
		ret = parse_entry(s, &img->bitmaps[i], &name_bytes);
		if (ret)
			return refuse_entry(op, i, ret);
		ret = check_entry(op, i, &img->bitmaps[i], name_bytes);
		if (ret)
			return ret;
	}
	return 0;
}

static int read_directory(struct opener *op)
{
	struct image *img = op->img;
	struct table_stream s;
	int ret;

	img->bitmaps = calloc(img->nr_bitmaps, sizeof(*img->bitmaps));
	if (!img->bitmaps ||
	    table_stream_init(&s, img->dev, img->bitmap_dir_offset, img->bitmap_dir_bytes))
		return opener_refuse(op, -ENOMEM, "no memory for %u bitmaps", img->nr_bitmaps);
	ret = read_entries(op, &s);
	table_stream_exit(&s);
	return ret;
}

int opener_read_bitmaps(struct opener *op)
{
	struct image *img = op->img;
	char text[FAULT_BYTES];
	int ret;

	if (!op->nr_bitmaps)
		return 0;
	if (opener_table_fault(op, "bitmap directory", op->bitmap_dir_offset, op->bitmap_dir_bytes,
			       text))
		return opener_fault(op, "%s", text);
	img->nr_bitmaps = op->nr_bitmaps;
	img->bitmap_dir_offset = op->bitmap_dir_offset;
	img->bitmap_dir_bytes = op->bitmap_dir_bytes;
	if (!(op->flags & IMAGE_OPEN_BITMAPS))
		return 0;
	ret = read_directory(op);
	if (ret != FAULT_TOLERATED)
		return ret;
	image_free_bitmaps(img);
	img->bitmap_dir_offset = 0;
	img->bitmap_dir_bytes = 0;
	return ret;
}

void image_free_bitmaps(struct image *img)
{
	for (u32 i = 0; img->bitmaps && i < img->nr_bitmaps; i++)
		free(img->bitmaps[i].name);
	free(img->bitmaps);
	img->bitmaps = NULL;
	img->nr_bitmaps = 0;
}
