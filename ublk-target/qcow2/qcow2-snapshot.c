// SPDX-License-Identifier: GPL-2.0-or-later OR MIT
/* Internal snapshots: reading their table, showing one of them. */
#include <stdio.h>
#include <stdlib.h>

#include "qcow2.h"

static char *copy_name(const u8 *from, u32 len)
{
	char *name = malloc((size_t)len + 1);

	if (!name)
		return NULL;
	memcpy(name, from, len);
	name[len] = '\0';
	return name;
}

/* Extra data may be of any length; what is missing has the values of old images. */
static void parse_extra(const struct image *img, const u8 *from, u32 len, struct image_snapshot *sn)
{
	const struct qcow2_disk_snapshot_extra *extra = (const void *)from;

	sn->disk_bytes = img->virtual_size;
	sn->icount = ~0ull;
	if (len >= offsetof(struct qcow2_disk_snapshot_extra, disk_size))
		sn->vm_state_bytes = load_be64(&extra->vm_state_size_large);
	if (len >= offsetof(struct qcow2_disk_snapshot_extra, icount))
		sn->disk_bytes = load_be64(&extra->disk_size);
	if (len >= sizeof(*extra))
		sn->icount = load_be64(&extra->icount);
}

/*
 * The fixed part, then what follows it. -ERANGE: beyond the end of the image;
 * -E2BIG: more extra data than anybody writes.
 */
static int parse_snapshot(struct table_stream *s, const struct image *img,
			  struct image_snapshot *sn)
{
	const struct qcow2_disk_snapshot *disk;
	u32 extra_bytes, id_bytes, name_bytes;
	const u8 *p;
	int ret;

	ret = table_stream_get(s, sizeof(*disk), &p);
	if (ret)
		return ret;
	disk = (const struct qcow2_disk_snapshot *)p;
	sn->l1_offset = load_be64(&disk->l1_table_offset);
	sn->l1_size = load_be32(&disk->l1_size);
	sn->date_sec = load_be32(&disk->date_sec);
	sn->date_nsec = load_be32(&disk->date_nsec);
	sn->vm_clock_nsec = load_be64(&disk->vm_clock_nsec);
	sn->vm_state_bytes = load_be32(&disk->vm_state_size);
	id_bytes = load_be16(&disk->id_size);
	name_bytes = load_be16(&disk->name_size);
	extra_bytes = load_be32(&disk->extra_data_size);
	if (extra_bytes > QCOW2_MAX_SNAPSHOT_EXTRA)
		return -E2BIG;
	ret = table_stream_get(s, extra_bytes + id_bytes + name_bytes, &p);
	if (ret)
		return ret;
	parse_extra(img, p, extra_bytes, sn);
	sn->id = copy_name(p + extra_bytes, id_bytes);
	sn->name = copy_name(p + extra_bytes + id_bytes, name_bytes);
	return sn->id && sn->name ? 0 : -ENOMEM;
}

/* Entries begin at multiples of 8; the last one need not be padded. */
static int read_entry(struct table_stream *s, const struct image *img, struct image_snapshot *sn)
{
	u64 at = table_stream_offset(s);
	int ret = table_stream_skip(s, ALIGN_UP(at, 8) - at);

	return ret ? ret : parse_snapshot(s, img, sn);
}

static int check_l1_place(struct opener *op, u32 index, const struct image_snapshot *sn)
{
	char name[PRINTABLE_BYTES], what[128], text[FAULT_BYTES];

	snprintf(what, sizeof(what), "L1 table of snapshot %u '%s'", index,
		 printable(name, sn->name, strlen(sn->name)));
	if (sn->l1_size > QC_MAX_L1_BYTES / sizeof(u64))
		return opener_fault(op, "%s too large (%u entries), must be at most %zu", what,
				    sn->l1_size, QC_MAX_L1_BYTES / sizeof(u64));
	if (sn->l1_size &&
	    opener_table_fault(op, what, sn->l1_offset, (u64)sn->l1_size * sizeof(u64), text))
		return opener_fault(op, "%s", text);
	return 0;
}

static int refuse_entry(struct opener *op, u32 index, u64 at, int ret)
{
	unsigned long long offset = at;

	if (ret == -ERANGE)
		return opener_fault(op,
				    "snapshot table entry %u (at 0x%llx) beyond the end of the "
				    "table, must end by 0x%llx",
				    index, offset, (unsigned long long)image_dev_bytes(op->img));
	if (ret == -E2BIG)
		return opener_fault(op,
				    "snapshot table entry %u (at 0x%llx) with too much extra data, "
				    "must be at most %u bytes",
				    index, offset, QCOW2_MAX_SNAPSHOT_EXTRA);
	return opener_refuse(op, ret, "snapshot table entry %u: read at 0x%llx failed (%s)", index,
			     offset, strerror(-ret));
}

static void free_entry(struct image_snapshot *sn)
{
	free(sn->id);
	free(sn->name);
	*sn = (struct image_snapshot){};
}

/* @count entries; after a tolerated fault those before it stay. */
static int read_entries(struct opener *op, struct table_stream *s, u32 count)
{
	struct image *img = op->img;
	u64 at;
	int ret;

	while (img->nr_snapshots < count) {
		struct image_snapshot *sn = &img->snapshots[img->nr_snapshots];

		at = table_stream_offset(s);
		ret = read_entry(s, img, sn);
		if (ret)
			ret = refuse_entry(op, img->nr_snapshots, at, ret);
		else
			ret = check_l1_place(op, img->nr_snapshots, sn);
		if (ret) {
			free_entry(sn);
			return ret;
		}
		img->nr_snapshots++;
	}
	return 0;
}

int opener_read_snapshots(struct opener *op, u32 count, u64 offset)
{
	struct image *img = op->img;
	char text[FAULT_BYTES];
	struct table_stream s;
	u64 bytes;
	int ret;

	if (!count)
		return 0;
	if (count > QC_MAX_SNAPSHOTS)
		return opener_fault(op, "snapshot table too large (%u entries), must be at most %u",
				    count, QC_MAX_SNAPSHOTS);
	if (opener_table_fault(op, "snapshot table", offset,
			       (u64)count * sizeof(struct qcow2_disk_snapshot), text))
		return opener_fault(op, "%s", text);
	img->snapshots = calloc(count, sizeof(*img->snapshots));
	if (!img->snapshots || table_stream_init(&s, img->dev, offset, QC_MAX_SNAPSHOT_TABLE_BYTES))
		return opener_refuse(op, -ENOMEM, "no memory for %u snapshots", count);
	ret = read_entries(op, &s, count);
	bytes = table_stream_offset(&s) - offset;
	table_stream_exit(&s);
	if (ret < 0)
		return ret;
	/* Once more, now that its length is known. */
	if (opener_table_fault(op, "snapshot table", offset, bytes, text))
		return opener_fault(op, "%s", text);
	img->snapshots_offset = offset;
	img->snapshots_bytes = bytes;
	return 0;
}

void image_free_snapshots(struct image *img)
{
	for (u32 i = 0; i < img->nr_snapshots; i++)
		free_entry(&img->snapshots[i]);
	free(img->snapshots);
	img->snapshots = NULL;
	img->nr_snapshots = 0;
}

/* ---- showing one ------------------------------------------------------------ */

/* By id first, then by name: the order in which QEMU looks. */
static const struct image_snapshot *find_snapshot(const struct image *img, const char *name)
{
	for (u32 i = 0; i < img->nr_snapshots; i++) {
		if (!strcmp(img->snapshots[i].id, name))
			return &img->snapshots[i];
	}
	for (u32 i = 0; i < img->nr_snapshots; i++) {
		if (!strcmp(img->snapshots[i].name, name))
			return &img->snapshots[i];
	}
	return NULL;
}

static int check_snapshot_size(struct opener *op, const struct image_snapshot *sn, const char *name)
{
	u32 bits = image_l2_coverage_bits(op->img);

	if (sn->disk_bytes > QC_MAX_VIRTUAL_BYTES)
		return opener_refuse(op, -EFBIG,
				     "virtual size %llu of snapshot '%s' not supported, must be at "
				     "most 2^55",
				     (unsigned long long)sn->disk_bytes, name);
	if ((u64)sn->l1_size < DIV_ROUND_UP(sn->disk_bytes, 1ull << bits))
		return opener_refuse(op, -EILSEQ,
				     "L1 table of snapshot '%s' too small (%u entries), %llu "
				     "needed for virtual size %llu",
				     name, sn->l1_size,
				     DIV_ROUND_UP((unsigned long long)sn->disk_bytes, 1ull << bits),
				     (unsigned long long)sn->disk_bytes);
	return 0;
}

int image_use_snapshot(struct image *img, const char *name, struct qc_err *err)
{
	const struct image_snapshot *sn = find_snapshot(img, name);
	struct opener op = { .img = img, .err = err };
	struct l1 l1;
	int ret;

	if (img->dev->writable)
		return opener_refuse(&op, -EINVAL,
				     "snapshot '%s' of a writable image, must be opened read-only",
				     name);
	if (!sn)
		return opener_refuse(&op, -ENOENT,
				     "no snapshot '%s' (there are %u), must be an id or a name",
				     name, img->nr_snapshots);
	ret = check_snapshot_size(&op, sn, name);
	if (ret)
		return ret;
	ret = opener_read_l1(&op, "snapshot's L1 table", sn->l1_offset, sn->l1_size, &l1);
	if (ret)
		return ret;
	l1_exit(&img->l1);
	img->l1 = l1;
	img->l1_offset = sn->l1_offset;
	img->l1_size = sn->l1_size;
	img->virtual_size = ALIGN_DOWN(sn->disk_bytes, SECTOR_SIZE);
	return 0;
}
