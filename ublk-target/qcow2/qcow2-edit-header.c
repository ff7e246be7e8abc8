// SPDX-License-Identifier: GPL-2.0-or-later OR MIT
/* A new backing name in the header of a closed image (rule B5). */
#include "qcow2-edit.h"

#include <stdlib.h>

#include "qcow2.h"

/*
 * The new first cluster is laid out in memory. What lies beyond sector 0 may be
 * written first only where the old layout has nothing: a cut between the two
 * writes leaves the old header, whole. Where the format's extension is missing,
 * the others move on to make room for it (this is allowed offline only); if that
 * does not fit, the names of feature bits, which are for messages only, go.
 */

#define FORMAT_ROOM 8u /* bytes of any format's name, padded */

struct layout_edit {
	struct image *img;
	const char *name; /* NULL: none */
	const char *format;
	u32 unit; /* what the device writes as a whole */
	u32 bytes; /* of the first cluster, as far as it is looked at */
	u8 *old;
	u8 *new;
	u32 ext_end; /* of the old extensions, END included */
	u32 old_name; /* 0: none */
	u32 old_name_bytes;
	bool in_use; /* extensions stay where they are */
};

static u32 ext_header_bytes(void)
{
	return sizeof(struct qcow2_disk_extension);
}

/* The offset behind extension @at of @cluster. */
static u32 ext_next(const u8 *cluster, u32 at)
{
	return at + ext_header_bytes() + ALIGN_UP(load_be32(cluster + at + 4), 8);
}

/* Its offset; 0: there is none. *@end: behind END. */
static int find_ext(const struct layout_edit *le, const u8 *cluster, u32 type, u32 *result,
		    u32 *end)
{
	u32 limit = le->old_name ? le->old_name : le->bytes;
	u32 at = le->img->header_length;

	*result = 0;
	while (at + ext_header_bytes() <= limit && load_be32(cluster + at) != QCOW2_EXT_END) {
		if (load_be32(cluster + at) == type)
			*result = at;
		at = ext_next(cluster, at);
	}
	if (at + ext_header_bytes() > limit)
		return -ENOSPC; /* no END: nothing can be put behind it */
	*end = at + ext_header_bytes();
	return 0;
}

static void put_format(u8 *cluster, u32 at, const char *format)
{
	struct qcow2_disk_extension ext = { .type = htobe32(QCOW2_EXT_BACKING_FORMAT),
					    .length = htobe32(strlen(format)) };

	memcpy(cluster + at, &ext, sizeof(ext));
	memset(cluster + at + sizeof(ext), 0, FORMAT_ROOM);
	memcpy(cluster + at + sizeof(ext), format, strlen(format));
}

/* Move [@from, @end) on by @bytes. */
static int shift(struct layout_edit *le, u32 from, u32 *end, u32 bytes)
{
	if (*end + bytes > le->bytes)
		return -ENOSPC;
	memmove(le->new + from + bytes, le->new + from, *end - from);
	*end += bytes;
	return 0;
}

static void drop_ext(struct layout_edit *le, u32 at, u32 *end)
{
	u32 next = ext_next(le->new, at);

	memmove(le->new + at, le->new + next, *end - next);
	memset(le->new + *end - (next - at), 0, next - at);
	*end -= next - at;
}

static int lay_format(struct layout_edit *le, bool drop_names, u32 *end)
{
	u32 at;
	int ret = find_ext(le, le->new, QCOW2_EXT_FEATURE_NAMES, &at, end);

	if (ret)
		return ret;
	if (drop_names && at)
		drop_ext(le, at, end);
	ret = find_ext(le, le->new, QCOW2_EXT_BACKING_FORMAT, &at, end);
	if (ret || !le->format)
		return ret;
	if (le->in_use && (!at || load_be32(le->new + at + 4) == 0))
		return -ENOSPC;
	if (at && load_be32(le->new + at + 4) == 0) { /* no room in it */
		drop_ext(le, at, end);
		at = 0;
	}
	if (!at) {
		at = le->img->header_length;
		ret = shift(le, at, end, ext_header_bytes() + FORMAT_ROOM);
	}
	if (!ret)
		put_format(le->new, at, le->format);
	return ret;
}

/* Free bytes for the name behind the new extensions and clear of the old name. */
static u32 find_room(const struct layout_edit *le, u32 end, u32 len)
{
	u32 free_from = max(end, le->ext_end);
	u32 behind = le->old_name + le->old_name_bytes;
	u32 at = ALIGN_UP(free_from, SECTOR_SIZE);

	if (!le->old_name)
		return at + len <= le->bytes ? at : free_from + len <= le->bytes ? free_from : 0;
	if (at + len <= le->old_name)
		return at;
	if (free_from + len <= le->old_name)
		return free_from;
	at = ALIGN_UP(max(behind, free_from), SECTOR_SIZE);
	if (at + len <= le->bytes)
		return at;
	at = max(behind, free_from);
	return at + len <= le->bytes ? at : 0;
}

static int lay_name(struct layout_edit *le, u32 end)
{
	struct qcow2_disk_header *h = (struct qcow2_disk_header *)le->new;
	u32 len = le->name ? strlen(le->name) : 0;
	u32 at = 0;

	if (le->name) {
		at = find_room(le, end, len);
		if (!at)
			return -ENOSPC;
		memcpy(le->new + at, le->name, len);
	}
	h->backing_file_offset = htobe64(at);
	h->backing_file_size = htobe32(len);
	return 0;
}

/* Beyond sector 0 only bytes may differ that the old layout does not use. */
static bool is_safe(const struct layout_edit *le)
{
	u32 i;

	for (i = le->unit; i < le->bytes; i++)
		if (le->old[i] != le->new[i] &&
		    (i < le->ext_end ||
		     (i >= le->old_name && i < le->old_name + le->old_name_bytes)))
			return false;
	return true;
}

static int lay_out(struct layout_edit *le, bool drop_names)
{
	u32 end;
	int ret;

	memcpy(le->new, le->old, le->bytes);
	ret = lay_format(le, drop_names, &end);
	if (!ret)
		ret = lay_name(le, end);
	if (!ret && !is_safe(le))
		ret = -ENOSPC;
	return ret;
}

static int read_first(struct layout_edit *le)
{
	struct image *img = le->img;
	const struct qcow2_disk_header *h;
	u32 unused;
	int ret;

	le->unit = max(SECTOR_SIZE, img->dev->block_bytes);
	le->unit = min(le->unit, 4096u);
	le->bytes = min(image_cluster_bytes(img), 65536ull);
	le->unit = min(le->unit, le->bytes);
	le->old = io_alloc(max(le->bytes, 4096u));
	le->new = io_alloc(max(le->bytes, 4096u));
	if (!le->old || !le->new)
		return -ENOMEM;
	ret = io_dev_pread(img->dev, le->old, le->bytes, 0);
	if (ret < 0)
		return ret;
	h = (const struct qcow2_disk_header *)le->old;
	le->old_name = load_be64(&h->backing_file_offset);
	le->old_name_bytes = load_be32(&h->backing_file_size);
	return find_ext(le, le->old, 0, &unused, &le->ext_end);
}

static int no_room(const struct layout_edit *le, int ret, struct qc_err *err)
{
	if (ret != -ENOSPC)
		return qc_err_set(err, ret, "%s: header cannot be read (%s)", le->img->dev->path,
				  strerror(-ret));
	return qc_err_set(err, ret, "%s: the backing name '%s' has no free room of %zu bytes in "
			  "the first cluster (%llu bytes), must have that beside the old one%s; "
			  "use a shorter name", le->img->dev->path, le->name ? le->name : "",
			  le->name ? strlen(le->name) : 0,
			  (unsigned long long)image_cluster_bytes(le->img),
			  le->in_use ? ", and a place for its format" : "");
}

static int prepare(struct layout_edit *le, struct qc_err *err)
{
	int ret;

	if (le->name && strlen(le->name) > QC_MAX_BACKING_NAME)
		return qc_err_set(err, -ENAMETOOLONG,
				  "%s: backing name of %zu bytes, must be at most %u",
				  le->img->dev->path, strlen(le->name), QC_MAX_BACKING_NAME);
	ret = read_first(le);
	if (!ret) {
		ret = lay_out(le, false);
		if (ret == -ENOSPC && !le->in_use)
			ret = lay_out(le, true);
	}
	return ret ? no_room(le, ret, err) : 0;
}

static void layout_exit(struct layout_edit *le)
{
	free(le->old);
	free(le->new);
}

/* What changed beyond sector 0, block by block, durably; sector 0 follows alone. */
static int write_rest(struct editor *ed, const struct layout_edit *le)
{
	u32 size = meta_block_bytes(ed->meta);
	struct meta_block *block;
	u32 at, from;
	int ret;

	for (at = 0; at < le->bytes; at += size) {
		from = at ? 0 : le->unit;
		if (from >= size || !memcmp(le->old + at + from, le->new + at + from, size - from))
			continue;
		ret = editor_block(ed, at, &block);
		if (ret)
			return ret;
		memcpy((u8 *)block->data + from, le->new + at + from, size - from);
		meta_mark_dirty(block, from, size - from);
	}
	return editor_settle(ed);
}

static int set_backing(struct editor *ed, void *arg)
{
	struct layout_edit *le = arg;
	int ret = write_rest(ed, le);

	return ret ? ret : editor_set_header(ed, 0, le->new, le->unit);
}

static int replace_text(char **place, const char *text)
{
	char *copy = text ? strdup(text) : NULL;

	if (text && !copy)
		return -ENOMEM;
	free(*place);
	*place = copy;
	return 0;
}

int image_check_backing_fits(struct image *img, const char *name, const char *format,
			     struct qc_err *err)
{
	struct layout_edit le = { .img = img, .name = name, .format = name ? format : NULL };
	int ret = prepare(&le, err);

	layout_exit(&le);
	return ret;
}

int image_set_backing(struct image *img, const char *name, const char *format,
		      struct qc_err *err)
{
	struct layout_edit le = { .img = img, .name = name, .format = name ? format : NULL };
	int ret = prepare(&le, err);

	if (!ret)
		ret = editor_run(img, set_backing, &le, err);
	if (!ret && (replace_text(&img->backing_name, name) ||
		     replace_text(&img->backing_format, name ? format : NULL)))
		ret = -ENOMEM;
	layout_exit(&le);
	return ret;
}

/* ---- an image in use ------------------------------------------------------------ */

/* The format's extension, if it becomes another: within what is written as a whole. */
static int patch_format(const struct layout_edit *le, struct backing_patch *patch)
{
	u32 at, end;
	int ret = find_ext(le, le->new, QCOW2_EXT_BACKING_FORMAT, &at, &end);

	if (ret || !at || !memcmp(le->old + at, le->new + at, sizeof(patch->format)))
		return ret;
	if (at + sizeof(patch->format) > le->unit)
		return -ENOSPC;
	patch->format_at = at;
	memcpy(patch->format, le->new + at, sizeof(patch->format));
	return 0;
}

int image_plan_backing(struct image *img, const char *name, const char *format,
		       struct backing_patch *patch, struct qc_err *err)
{
	struct layout_edit le = { .img = img, .name = name, .format = name ? format : NULL,
				  .in_use = true };
	const u32 fields = offsetof(struct qcow2_disk_header, backing_file_offset);
	int ret = prepare(&le, err);

	*patch = (struct backing_patch){ .fields_at = fields };
	if (!ret) {
		ret = patch_format(&le, patch);
		if (ret)
			no_room(&le, ret, err);
	}
	if (!ret) {
		memcpy(patch->fields, le.new + fields, sizeof(patch->fields));
		patch->name_at = load_be64(le.new + fields);
		patch->name_bytes = name ? strlen(name) : 0;
		memcpy(patch->name, le.new + patch->name_at, patch->name_bytes);
	}
	layout_exit(&le);
	return ret;
}

static int write_first_sector(struct image *img, const struct backing_patch *patch)
{
	u32 unit = min(max(SECTOR_SIZE, img->dev->block_bytes), 4096u);
	u8 *sector = io_alloc(4096);
	int ret;

	if (!sector)
		return -ENOMEM;
	ret = io_dev_pread(img->dev, sector, unit, 0);
	if (ret >= 0) {
		memcpy(sector + patch->fields_at, patch->fields, sizeof(patch->fields));
		if (patch->format_at)
			memcpy(sector + patch->format_at, patch->format, sizeof(patch->format));
		ret = io_dev_pwrite(img->dev, sector, unit, 0);
	}
	free(sector);
	return ret < 0 ? ret : 0;
}

int image_write_backing(struct image *img, const struct backing_patch *patch)
{
	int ret = 0;

	if (patch->name_bytes) {
		ret = io_dev_pwrite(img->dev, patch->name, patch->name_bytes, patch->name_at);
		if (ret >= 0)
			ret = io_dev_flush(img->dev);
	}
	if (ret >= 0)
		ret = write_first_sector(img, patch);
	return ret ? ret : io_dev_flush(img->dev);
}
