// SPDX-License-Identifier: GPL-2.0-or-later
/* The overlay of a snapshot: a new LV or file, formatted, and gone again if it comes to nothing. */
#include "overlay.h"

#include "image/offline.h"
#include "proxmox.h"
#include "retire.h"
#include "thin.h"

#include <errno.h>
#include <fcntl.h>
#include <qchain/crash-point.h>
#include <qchain/image.h>
#include <qchain/overlays.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Fine enough that 4 KiB writes fill nothing from below (extended L2: 4 KiB subclusters). */
#define OVERLAY_CLUSTER_BITS 17u
#define MAX_NAMES 100000u

/* ---- names ------------------------------------------------------------------------- */

/*
 * "disk.qcow2" and "disk.3.qcow2" to "disk": what qchain makes is numbered and
 * keeps its name for ever; which one is the top, the record says.
 */
static void stem_of(const char *path, char *stem, size_t bytes)
{
	static const char *const endings[] = { ".qcow2", ".raw", ".img" };
	const char *slash = strrchr(path, '/');
	size_t len, n;
	char *dot;

	snprintf(stem, bytes, "%s", slash ? slash + 1 : path);
	for (u32 i = 0; i < ARRAY_SIZE(endings); i++) {
		len = strlen(stem);
		n = strlen(endings[i]);
		if (len > n && !strcmp(stem + len - n, endings[i]))
			stem[len - n] = 0;
	}
	dot = strrchr(stem, '.');
	if (dot && dot != stem && dot[1] && strspn(dot + 1, "0123456789") == strlen(dot + 1))
		*dot = 0;
}

static bool is_taken(const struct record_place *place, const char *name, const char *path)
{
	struct stat st;

	return lstat(path, &st) == 0 || (place->vg[0] && record_place_lv(place, name));
}

/* What is to be renamed to a name of Proxmox VE has one of ours until then. */
static int choose_interim_name(struct overlay *o, const struct record_place *place,
			       const struct device_record *record)
{
	char name[RECORD_IMAGE_BYTES];

	proxmox_interim_lv(record->volume, name);
	snprintf(o->name, sizeof(o->name), "%.127s", name);
	snprintf(o->path, sizeof(o->path), "%s/%s", place->dir, o->name);
	return 0;
}

static int choose_name(struct overlay *o, const struct record_place *place,
		       const struct device_record *record, struct qc_err *err)
{
	char stem[100];

	if (record->volume[0])
		return choose_interim_name(o, place, record);

	stem_of(o->top, stem, sizeof(stem));
	for (u32 i = 1; i < MAX_NAMES; i++) {
		snprintf(o->name, sizeof(o->name), "%s.%u.qcow2", stem, i);
		snprintf(o->path, sizeof(o->path), "%s/%s", place->dir, o->name);
		if (!is_taken(place, o->name, o->path))
			return 0;
	}
	return qc_err_set(err, -EEXIST, "%s: no name for an overlay is free beside it", o->top);
}

/* ---- making ------------------------------------------------------------------------- */

/* The place as it is now, and the device's record in it. */
static int read_again(const struct overlay *o, struct record_place *place,
		      struct device_record **record, struct qc_err *err)
{
	char image[RECORD_IMAGE_BYTES], top[RECORD_IMAGE_BYTES];
	int ret;

	memcpy(top, (*record)->top, sizeof(top));
	record_place_exit(place);
	ret = record_place_of(o->top, place, image, err);
	if (!ret)
		ret = proxmox_find_record(place, o->device, top, record, err);
	if (ret)
		return ret;
	return *record ? 0 : qc_err_set(err, -ENOENT, "%s: the record of device %s has gone",
					place->dir, o->device);
}

static u64 first_bytes(const struct overlay *o, const struct image_create_options *options)
{
	if (o->lv_bytes)
		return o->lv_bytes;
	return o->chunk ? thin_first_bytes(options, o->chunk) : image_thick_bytes(options);
}

/* As was asked for, or as the top is; of others than us, and of files, nothing is thin. */
static int choose_chunk(struct overlay *o, const struct record_place *place,
			const struct device_record *record, struct qc_err *err)
{
	if (!o->chunk && !o->lv_bytes && !record->volume[0])
		o->chunk = thin_chunk(record_place_lv(place, record->top));
	if (!o->chunk)
		return 0;
	if (!place->vg[0])
		return qc_err_set(err, -EINVAL, "%s: --thin is for LVs, the overlay is to be a "
				  "file: it grows by itself as long as its file system has room; "
				  "leave out --thin", o->top);
	if (record->volume[0])
		return qc_err_set(err, -EOPNOTSUPP, "%s: belongs to Proxmox VE, whose volumes are "
				  "as large as their disk; leave out --thin", record->volume);
	return 0;
}

static int make_lv(struct overlay *o, const struct image_create_options *options,
		   struct record_place *place, struct device_record **record, struct qc_err *err)
{
	char tags[QC_MAX_CHAIN_NAME + 16 + 2 * RECORD_IMAGE_BYTES], more[2 * RECORD_IMAGE_BYTES];
	int ret;

	more[0] = 0;
	if (o->chunk)
		thin_tag(o->chunk, more);
	if ((*record)->volume[0])
		proxmox_tags((*record)->volume, more, sizeof(more));
	snprintf(tags, sizeof(tags), "qchain.new=%s%s%s", o->device, more[0] ? "," : "", more);
	ret = lvm_create(place->vg, o->name, first_bytes(o, options), tags, err);
	o->made = ret == 0;
	if (!ret)
		ret = read_again(o, place, record, err);
	if (!ret && !record_place_lv(place, o->name))
		ret = qc_err_set(err, -ENOENT, "%s/%s: has gone", place->vg, o->name);
	if (!ret)
		snprintf(o->image, sizeof(o->image), "%s", record_place_lv(place, o->name)->uuid);
	return ret;
}

static int make_file(struct overlay *o, const struct record_place *place,
		     struct device_record *record, struct qc_err *err)
{
	int fd, ret;

	snprintf(o->image, sizeof(o->image), "%s", o->name);
	snprintf(record->pending, sizeof(record->pending), "%s", o->name);
	ret = record_place_save(place, record, err);
	if (ret)
		return ret;
	crash_point("snapshot.marked");
	fd = open(o->path, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600);
	if (fd < 0)
		return qc_err_set(err, -errno, "%s: could not be created (%m)", o->path);
	close(fd);
	o->made = true;
	ret = record_dir_flush(place->dir);
	return ret ? qc_err_set(err, ret, "%s: not flushed (%s)", place->dir, strerror(-ret)) : 0;
}

static int format(const struct overlay *o, const struct image_create_options *options,
		  struct qc_err *err)
{
	struct io_dev *dev;
	int ret = io_dev_open(o->path, IO_DEV_WRITE, &dev, err);

	if (ret)
		return ret;
	ret = image_create(dev, options, err);
	io_dev_close(dev);
	return ret;
}

int overlay_make(struct overlay *o, struct record_place *place, struct device_record **record,
		 struct qc_err *err)
{
	struct image_create_options options;
	char *backing;
	int ret = choose_chunk(o, place, *record, err);

	if (!ret)
		ret = choose_name(o, place, *record, err);
	if (ret)
		return ret;
	image_create_defaults(&options);
	options.virtual_size = o->virtual_size;
	options.cluster_bits = OVERLAY_CLUSTER_BITS;
	options.extl2 = true;
	backing = o->header_name ? strdup(o->header_name) :
				   backing_header_name(o->path, o->top, err);
	if (!backing)
		return err->code ? err->code : qc_err_set(err, -ENOMEM, "%s: out of memory",
							  o->top);
	options.backing_name = backing;
	options.backing_format = o->format;
	ret = place->vg[0] ? make_lv(o, &options, place, record, err) :
			     make_file(o, place, *record, err);
	crash_point("snapshot.created");
	if (!ret)
		ret = format(o, &options, err);
	free(backing);
	return ret;
}

/* ---- removing ------------------------------------------------------------------------- */

static int remove_file(const struct record_place *place, struct device_record *record,
		       const char *path, struct qc_err *err)
{
	if (unlink(path) && errno != ENOENT)
		return qc_err_set(err, -errno, "%s: not removed (%m)", path);
	if (!record->pending[0])
		return 0;
	record->pending[0] = 0;
	return record_place_save(place, record, err);
}

int overlay_remove(const struct overlay *o, const struct record_place *place,
		   struct device_record *record, struct qc_err *err)
{
	if (place->vg[0])
		return o->made ? lvm_remove(place->vg, o->name, err) : 0;
	return remove_file(place, record, o->path, err);
}

static bool is_marked(const struct lvm_lv *lv, const char *device)
{
	char tag[QC_MAX_CHAIN_NAME + 16];
	const char *at;
	size_t len;

	len = snprintf(tag, sizeof(tag), "qchain.new=%s", device);
	at = strstr(lv->tags, tag);
	return at && (at == lv->tags || at[-1] == ',') && (!at[len] || at[len] == ',');
}

static void withdraw_name(struct client *client, const char *name)
{
	struct overlay overlay = { .made = true };
	char node[QC_MAX_NODE_NAME + 1];

	snprintf(overlay.name, sizeof(overlay.name), "%.127s", name);
	overlay_node_name(&overlay, node);
	overlay_withdraw(client, node);
}

void overlay_withdraw_unfinished(struct client *client, const struct record_place *place,
				 const struct device_record *record)
{
	for (u32 i = 0; i < place->nr_lvs; i++)
		if (is_marked(&place->lvs[i], record->name))
			withdraw_name(client, place->lvs[i].name);
	if (record->pending[0])
		withdraw_name(client, record->pending);
}

static int clean_group(const struct record_place *place, const struct device_record *record,
		       struct qc_err *err)
{
	int ret = 0;

	for (u32 i = 0; i < place->nr_lvs && !ret; i++) {
		const struct lvm_lv *lv = &place->lvs[i];

		if (!is_marked(lv, record->name) || !strcmp(lv->uuid, record->top) ||
		    device_record_by_image(record, lv->uuid))
			continue;
		fprintf(stderr, "qchainctl: %s/%s: overlay of an interrupted snapshot, removed\n",
			lv->vg, lv->name);
		ret = lvm_remove(lv->vg, lv->name, err);
	}
	return ret;
}

/* What the name leads to does not matter: it may be what that will be called. */
bool overlay_is_unused(const char *path)
{
	struct io_dev *dev;
	struct image *img;
	struct stat st;
	bool empty = true;

	if (stat(path, &st) || (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode)))
		return false;
	if (io_dev_open(path, IO_DEV_NOLOCK, &dev, NULL))
		return false;
	if (image_open(dev, IMAGE_QCOW2, 0, &img, NULL))
		return S_ISREG(st.st_mode) && st.st_size <= (off_t)(2 * MiB);
	empty = img->backing_name ? l1_next(&img->l1, 0, img->l1_size) == img->l1_size :
				    S_ISREG(st.st_mode) && st.st_size <= (off_t)(2 * MiB);
	image_close(img);
	return empty;
}

static int clean_unfinished(const struct record_place *place, struct device_record *record,
			    struct qc_err *err)
{
	char path[4096];

	if (place->vg[0])
		return clean_group(place, record, err);
	if (!record->pending[0])
		return 0;
	snprintf(path, sizeof(path), "%s/%s", place->dir, record->pending);
	if (access(path, F_OK) == 0) {
		if (!overlay_is_unused(path))
			return qc_err_set(err, -EEXIST, "%s: left by an interrupted snapshot of "
					  "%s, but it holds data; look at it, and remove it if "
					  "nobody needs it", path, record->name);
		fprintf(stderr, "qchainctl: %s: overlay of an interrupted snapshot, removed\n",
			path);
	}
	return remove_file(place, record, path, err);
}

/* One that cannot be removed now stays in the record: no reason to do nothing. */
static void clean_dead(const struct record_place *place, struct device_record *record)
{
	struct retire retire = { .nr = 0 };
	struct qc_err err = { 0 };

	if (retire_dead(place, record, &retire, &err))
		print_error(&err);
	if (retire.nr)
		fprintf(stderr, "qchainctl: %s: %u image%s that an interrupted verb has left, "
			"removed\n", record->name, retire.nr, retire.nr == 1 ? "" : "s");
}

int overlay_clean(const struct record_place *place, struct device_record *record,
		  struct qc_err *err)
{
	int ret = clean_unfinished(place, record, err);

	if (!ret)
		clean_dead(place, record);
	return ret;
}
