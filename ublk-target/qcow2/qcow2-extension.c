// SPDX-License-Identifier: GPL-2.0-or-later OR MIT
/* Header extensions: walking them, and the five kinds that we understand. */
#include <stdio.h>
#include <stdlib.h>

#include "qcow2.h"

/* One header extension, by its place in the first cluster. */
struct extension {
	u32 type;
	u32 len;
	u32 data; /* byte offset of its @len bytes */
};

/*
 * Step from @ext (type 0, data and len such that data + len is where the first
 * begins) to the next one. 1: there is one; 0: the list ends; -EILSEQ: it does
 * not end inside its room, @ext is what does not fit; others: reading failed.
 */
static int extension_next(struct opener *op, struct extension *ext)
{
	u32 at = ALIGN_UP(ext->data + ext->len, 8);
	const struct qcow2_disk_extension *disk;
	int ret;

	*ext = (struct extension){ .data = at };
	if (at >= op->extensions_end)
		return 0;
	if (op->extensions_end - at < sizeof(*disk))
		return -EILSEQ;
	ret = opener_fetch(op, at + sizeof(*disk));
	if (ret)
		return ret;
	disk = (const struct qcow2_disk_extension *)(op->first + at);
	ext->type = load_be32(&disk->type);
	ext->len = load_be32(&disk->length);
	ext->data = at + sizeof(*disk);
	if (ext->type == QCOW2_EXT_END)
		return 0;
	if (ext->len > op->extensions_end - ext->data)
		return -EILSEQ;
	ret = opener_fetch(op, ext->data + ext->len);
	return ret ? ret : 1;
}

static struct extension extension_first(const struct opener *op)
{
	return (struct extension){ .data = op->img->header_length };
}

/* ---- the kinds that we understand ----------------------------------------- */

static int read_backing_format(struct opener *op, const struct extension *ext)
{
	if (ext->len > QCOW2_MAX_FORMAT_NAME)
		return opener_refuse(op, -EILSEQ,
				     "backing format name too long (%u bytes), must be at most %u",
				     ext->len, QCOW2_MAX_FORMAT_NAME);
	return opener_string(op, "backing format name", op->first + ext->data, ext->len,
			     &op->img->backing_format);
}

static int read_feature_names(struct opener *op, const struct extension *ext)
{
	u32 size = sizeof(struct qcow2_disk_feature_name);

	if (ext->len % size)
		return opener_refuse(op, -EILSEQ,
				     "feature name table of %u bytes not valid, must be a multiple "
				     "of %u",
				     ext->len, size);
	op->img->has_feature_names = true;
	return 0;
}

static int read_bitmaps(struct opener *op, const struct extension *ext)
{
	return opener_bitmaps_extension(op, op->first + ext->data, ext->len);
}

/* Encrypted images were refused before; here the extension has no meaning. */
static int refuse_crypto(struct opener *op, const struct extension *ext)
{
	return opener_refuse(op, -EILSEQ,
			     "encryption header extension (%u bytes) in an image with method 0 "
			     "(none), must come with method 2 (LUKS)",
			     ext->len);
}

static int read_data_file(struct opener *op, const struct extension *ext)
{
	if (!ext->len || ext->len > QC_MAX_BACKING_NAME)
		return opener_refuse(op, -EILSEQ,
				     "data file name of %u bytes not valid, must be 1..%u",
				     ext->len, QC_MAX_BACKING_NAME);
	return opener_string(op, "data file name", op->first + ext->data, ext->len,
			     &op->img->data_file_name);
}

static const struct extension_kind {
	u32 type;
	int (*read)(struct opener *op, const struct extension *ext);
} kinds[] = {
	{ QCOW2_EXT_BACKING_FORMAT, read_backing_format },
	{ QCOW2_EXT_FEATURE_NAMES, read_feature_names },
	{ QCOW2_EXT_BITMAPS, read_bitmaps },
	{ QCOW2_EXT_CRYPTO, refuse_crypto },
	{ QCOW2_EXT_DATA_FILE, read_data_file },
};

/* Somebody else's: its bytes are kept for a rewrite of the header. */
static int keep_extension(struct opener *op, const struct extension *ext)
{
	struct image *img = op->img;
	struct image_extension *list, *kept;

	list = realloc(img->extensions, (img->nr_extensions + 1) * sizeof(*list));
	if (!list)
		return opener_refuse(op, -ENOMEM, "no memory for header extensions");
	img->extensions = list;
	kept = &list[img->nr_extensions];
	*kept = (struct image_extension){ .type = ext->type, .len = ext->len };
	kept->data = malloc(max(ext->len, 1u));
	if (!kept->data)
		return opener_refuse(op, -ENOMEM, "no memory for header extensions");
	memcpy(kept->data, op->first + ext->data, ext->len);
	img->nr_extensions++;
	return 0;
}

/* ---- all of them ----------------------------------------------------------- */

static int take_extension(struct opener *op, const struct extension *ext)
{
	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++) {
		if (kinds[i].type == ext->type)
			return kinds[i].read(op, ext);
	}
	return keep_extension(op, ext);
}

static int refuse_second(struct opener *op, const struct extension *ext)
{
	return opener_refuse(op, -EILSEQ,
			     "header extension 0x%08x twice (second at byte %zu), must be there "
			     "once",
			     ext->type, ext->data - sizeof(struct qcow2_disk_extension));
}

static int refuse_unfit(struct opener *op, const struct extension *ext)
{
	if (!ext->type)
		return opener_refuse(op, -EILSEQ,
				     "header extension at byte %u cut off, must end by byte %u",
				     ext->data, op->extensions_end);
	return opener_refuse(op, -EILSEQ,
			     "header extension 0x%08x at byte %zu too long (%u bytes), must end by "
			     "byte %u",
			     ext->type, ext->data - sizeof(struct qcow2_disk_extension), ext->len,
			     op->extensions_end);
}

int opener_read_extensions(struct opener *op)
{
	struct extension ext = extension_first(op);
	u32 seen[QCOW2_MAX_EXTENSIONS];
	u32 nr_seen = 0;
	int ret;

	while ((ret = extension_next(op, &ext)) == 1) {
		for (u32 i = 0; i < nr_seen; i++) {
			if (seen[i] == ext.type)
				return refuse_second(op, &ext);
		}
		if (nr_seen == QCOW2_MAX_EXTENSIONS)
			return opener_refuse(op, -EILSEQ,
					     "too many header extensions, must be at most %u",
					     QCOW2_MAX_EXTENSIONS);
		seen[nr_seen++] = ext.type;
		ret = take_extension(op, &ext);
		if (ret < 0)
			return ret;
	}
	return ret == -EILSEQ ? refuse_unfit(op, &ext) : ret;
}

/* ---- names of feature bits -------------------------------------------------- */

static bool find_name(const struct opener *op, const struct extension *table, u8 type, u8 bit,
		      char out[PRINTABLE_BYTES])
{
	const struct qcow2_disk_feature_name *entry;
	u32 count = table->len / sizeof(*entry);

	entry = (const struct qcow2_disk_feature_name *)(op->first + table->data);
	for (; count--; entry++) {
		if (entry->type == type && entry->bit == bit && entry->name[0])
			return printable(out, entry->name, sizeof(entry->name));
	}
	return false;
}

const char *opener_feature_name(struct opener *op, u8 type, u8 bit, char out[PRINTABLE_BYTES])
{
	struct extension ext = extension_first(op);
	struct qc_err *err = op->err;
	u32 nr = 0;

	snprintf(out, PRINTABLE_BYTES, "bit %u", bit);
	/* The list may be malformed: that is told when all else is understood. */
	op->err = NULL;
	while (nr++ < QCOW2_MAX_EXTENSIONS && extension_next(op, &ext) == 1) {
		if (ext.type == QCOW2_EXT_FEATURE_NAMES && find_name(op, &ext, type, bit, out))
			break;
	}
	op->err = err;
	return out;
}
