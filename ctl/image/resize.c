// SPDX-License-Identifier: GPL-2.0-or-later
/* qchainctl resize: another virtual size for an image that nobody serves. */
#include "../lv-names.h"
#include "../served-resize.h"
#include "../served.h"
#include "merge-run.h"
#include "restore-points.h"

#include <errno.h>
#include <linux/fs.h>
#include <qchain/crash-point.h>
#include <qchain/edit.h>
#include <qchain/lvm.h>
#include <qchain/parse.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

/*
 * Growing (rule B6): what becomes visible must read as zero before it does. First
 * the L1 table; then, in an image that is shown longer to ourselves only, zeroes
 * over the rest of the last cluster and over what a longer backing image has
 * there; all that durable, then the size. A kill in between leaves the old size.
 *
 * Shrinking: the end is discarded first, so that a later growth cannot bring it
 * back, then comes the size, then its tables are given up.
 */

#define OPTION_SHRINK 's'

struct resize {
	const char *path;
	const struct offline_options *options;
	enum image_format format;
	u64 from;
	u64 to;
	bool shrink;
};

static int open_for(const struct resize *r, struct image **result, struct qc_err *err)
{
	return merge_hold(r->path, result, err);
}

/* ---- the container ------------------------------------------------------------- */

int resize_extend_lv(const char *path, const struct image *img, u64 from, u64 to,
		     struct qc_err *err)
{
	char vg[128], lv[128];
	u64 before, after;

	if (!img->dev->blockdev || !lv_path_split(path, vg, lv))
		return 0;
	if (img->format == IMAGE_RAW)
		return lvm_extend(vg, lv, to, err);
	before = offline_thick_bytes(img, from);
	after = offline_thick_bytes(img, to);
	if (img->dev->size_bytes < before || img->dev->size_bytes >= after)
		return 0;
	return lvm_extend(vg, lv, after, err);
}

/* ---- raw ------------------------------------------------------------------------- */

/* A volume gets room that is full of old data. */
static int zero_new_end(const struct resize *r, struct io_dev *dev, struct qc_err *err)
{
	s64 size = dev->ops->refresh_size(dev);
	u64 range[2] = { r->from, size - r->from };

	if (size < (s64)r->to)
		return qc_err_set(err, -ENOSPC, "%s: a block device of %lld bytes, must have %llu; "
				  "make it larger", r->path, (long long)size,
				  (unsigned long long)r->to);
	crash_point("resize.extended");
	if (ioctl(dev->fd, BLKZEROOUT, range))
		return qc_err_set(err, -errno, "%s: zeroing of %llu bytes at %llu failed (%m)",
				  r->path, (unsigned long long)range[1],
				  (unsigned long long)range[0]);
	return 0;
}

static int resize_raw(const struct resize *r, struct qc_err *err)
{
	struct image img = { .format = IMAGE_RAW };
	int ret = io_dev_open(r->path, IO_DEV_WRITE, &img.dev, err);

	if (ret)
		return ret;
	if (!img.dev->blockdev && ftruncate(img.dev->fd, r->to))
		ret = qc_err_set(err, -errno, "%s: size could not be changed (%s)", r->path,
				 strerror(errno));
	else if (img.dev->blockdev && r->shrink)
		ret = qc_err_set(err, -EINVAL, "%s: a raw image on a block device is as long as "
				 "the device, reduce the volume instead", r->path);
	else if (img.dev->blockdev)
		ret = resize_extend_lv(r->path, &img, r->from, r->to, err);
	if (!ret && img.dev->blockdev && !r->shrink)
		ret = zero_new_end(r, img.dev, err);
	if (!ret)
		ret = io_dev_flush(img.dev);
	io_dev_close(img.dev);
	return ret;
}

/* ---- growing ------------------------------------------------------------------------ */

/* Up to where the new range must be made zero; @r->from: nowhere. */
static int zero_until(const struct resize *r, u64 *result, struct qc_err *err)
{
	struct chain_open_options open = {
		.top_format = IMAGE_QCOW2, .read_only = true, .nr_layers = 2,
		.policy.allow_dirs = r->options->allow_dirs,
		.policy.backing_format = r->options->backing_format,
	};
	struct chain *chain;
	u64 cluster, backing = 0;
	int ret = chain_open(r->path, &open, &chain, err);

	if (ret)
		return ret;
	cluster = image_cluster_bytes(chain->layers[0].img);
	if (chain->nr_layers > 1)
		backing = chain->layers[1].img->virtual_size;
	*result = min(r->to, max(ALIGN_UP(r->from, cluster), backing));
	chain_close(chain);
	return 0;
}

static int zero_new_range(const struct resize *r, u64 until, struct qc_err *err)
{
	const char *words[] = { NULL, NULL };
	struct target *ti;
	char grow[48];
	int ret;

	if (until <= r->from)
		return 0;
	snprintf(grow, sizeof(grow), "grow-to=%llu", (unsigned long long)r->to);
	words[0] = grow;
	ret = merge_open(r->path, r->options, IMAGE_QCOW2, words, &ti, err);
	if (ret)
		return ret;
	ret = merge_zero(ti, r->from, until, err);
	if (!ret)
		ret = target_suspend(ti, err);
	target_destroy(ti);
	return ret;
}

static int grow_tables(const struct resize *r, struct qc_err *err)
{
	struct image *img;
	int ret = open_for(r, &img, err);

	if (ret)
		return ret;
	ret = resize_extend_lv(r->path, img, r->from, r->to, err);
	if (!ret)
		ret = img->dev->ops->refresh_size(img->dev) < 0 ? -EIO : 0;
	if (!ret)
		ret = image_grow_l1(img, r->to, err);
	image_close(img);
	return ret;
}

static int set_size(const struct resize *r, struct qc_err *err)
{
	struct image *img;
	int ret = open_for(r, &img, err);

	if (ret)
		return ret;
	ret = image_set_size(img, r->to, err);
	if (!ret && r->shrink)
		ret = image_unmap_from(img, r->to, err);
	image_close(img);
	return ret;
}

static int grow(const struct resize *r, struct qc_err *err)
{
	u64 until = 0;
	int ret = zero_until(r, &until, err);

	if (!ret)
		ret = grow_tables(r, err);
	if (!ret)
		ret = zero_new_range(r, until, err);
	return ret ? ret : set_size(r, err);
}

/* ---- shrinking ------------------------------------------------------------------------ */

static int discard_end(const struct resize *r, struct qc_err *err)
{
	struct target *ti;
	int ret = merge_open(r->path, r->options, IMAGE_QCOW2, NULL, &ti, err);

	if (ret)
		return ret;
	ret = merge_zero(ti, r->to, min(r->from, ti->size_bytes), err);
	if (!ret)
		ret = target_suspend(ti, err);
	target_destroy(ti);
	return ret;
}

static int shrink(const struct resize *r, struct qc_err *err)
{
	int ret = discard_end(r, err);

	return ret ? ret : set_size(r, err);
}

/* ---- all of it -------------------------------------------------------------------------- */

static int resize_run(struct resize *r, struct qc_err *err)
{
	if (r->format == IMAGE_RAW)
		return resize_raw(r, err);
	return r->shrink ? shrink(r, err) : grow(r, err);
}

static int look(const char *path, enum image_format format, u64 *size, struct qc_err *err)
{
	struct io_dev *dev;
	struct image *img;
	int ret = io_dev_open(path, 0, &dev, err);

	if (!ret)
		ret = image_open(dev, format, 0, &img, err);
	if (ret)
		return ret;
	*size = img->virtual_size;
	if (format == IMAGE_QCOW2 && img->nr_snapshots && img->version < 3)
		ret = qc_err_set(err, -EOPNOTSUPP, "%s: version 2 image with internal snapshots, "
				 "its size cannot change; remove them, or convert it to version 3",
				 path);
	image_close(img);
	return ret;
}

int image_resize_grow(const char *path, const struct offline_options *options,
		      enum image_format format, u64 bytes, struct qc_err *err)
{
	struct resize r = { .path = path, .options = options, .format = format, .to = bytes };
	int ret = look(path, format, &r.from, err);

	if (ret || r.to <= r.from)
		return ret;
	return resize_run(&r, err);
}

int resize_parse(const char *name, const char *text, u64 from, u64 *result, struct qc_err *err)
{
	u64 bytes;
	char sign = *text == '+' || *text == '-' ? *text : 0;
	int ret = parse_size("SIZE", text + (sign != 0), &bytes, err);

	if (ret)
		return qc_err_prefix(err, "%s", name);
	if (sign == '-' && bytes > from)
		return qc_err_set(err, -EINVAL, "%s: SIZE: %s is more than it has, at most "
				  "-%llu is possible", name, text, (unsigned long long)from);
	bytes = sign == '+' ? from + bytes : sign == '-' ? from - bytes : bytes;
	if (!bytes || !IS_ALIGNED(bytes, SECTOR_SIZE))
		return qc_err_set(err, -EINVAL, "%s: SIZE: %llu not supported, must be a multiple "
				  "of %u above 0", name, (unsigned long long)bytes, SECTOR_SIZE);
	*result = bytes;
	return 0;
}

static void print_resized(const struct resize *r, const char *name, bool json)
{
	json_object *object;
	char from[32], to[32];

	if (!json) {
		printf("%s: %s, was %s\n", name, print_size(r->to, to), print_size(r->from, from));
		return;
	}
	object = json_object_new_object();
	json_add_string(object, "filename", r->path);
	json_add_u64(object, "virtual-size", r->to);
	json_add_u64(object, "previous-size", r->from);
	print_json(object);
}

static int resize_image(const char *name, const char *size, const struct offline_options *options,
			bool allow_shrink)
{
	struct resize r = { .options = options, .format = options->format };
	struct object_name object;
	struct qc_err err = {};
	int ret = name_image(name, &object, &err);

	r.path = object.path;
	if (!ret)
		ret = look(r.path, r.format, &r.from, &err);
	if (!ret)
		ret = resize_parse(name, size, r.from, &r.to, &err);
	r.shrink = r.to < r.from;
	if (!ret && r.shrink && !allow_shrink)
		ret = qc_err_set(&err, -EINVAL, "%s: %llu bytes are fewer than it has (%llu), what "
				 "lies beyond would be lost; --shrink does it", name,
				 (unsigned long long)r.to, (unsigned long long)r.from);
	if (!ret)
		ret = restore_points_check((char *[]){ object.path }, 1, "resize the top of the "
					   "chain instead", &err);
	if (!ret && r.to != r.from)
		ret = resize_run(&r, &err);
	if (ret)
		return print_error(&err);
	print_resized(&r, name, options->json);
	return CTL_DONE;
}

static int resize_object(const struct verb *verb, const char *name, const char *size,
			 const struct offline_options *options, bool allow_shrink)
{
	struct object_name object;
	struct qc_err err = {};

	if (name_parse(name, &object, &err))
		return print_error(&err);
	if (object.kind != NAME_CHAIN)
		return resize_image(name, size, options, allow_shrink);
	if (allow_shrink)
		return verb_usage(verb, "--shrink: %s is served, its device can only grow; take it "
				  "down, and resize the image", name);
	return resize_served(name, size, options->json);
}

static void take_shrink(void *arg, int c, struct qc_err *err)
{
	*(bool *)arg = true;
}

static int run_resize(const struct verb *verb, int argc, char **argv)
{
	static const struct option rows[] = {
		OFFLINE_JSON_ROW,
		{ "format", required_argument, NULL, OPTION_FORMAT },
		{ "shrink", no_argument, NULL, OPTION_SHRINK },
		{ "allow-backing", required_argument, NULL, OPTION_ALLOW_BACKING },
		{ "backing-format", required_argument, NULL, OPTION_BACKING_FORMAT },
		{},
	};
	static const struct offline_syntax syntax = { rows, take_shrink, 2, 2 };
	struct offline_options options;
	bool allow_shrink = false;
	int ret = offline_options_read(verb, argc, argv, &syntax, &options, &allow_shrink);

	if (!ret)
		ret = resize_object(verb, argv[optind], argv[optind + 1], &options, allow_shrink);
	offline_options_exit(&options);
	return ret;
}

const struct verb verb_resize = {
	.name = "resize",
	.summary = "change the size of a served chain or of an image",
	.usage = "[OPTION]... NAME|IMAGE SIZE",
	.options = OFFLINE_JSON_HELP
	"  --format FORMAT        format of the image, qcow2 (default) or raw\n"
	"  --shrink               IMAGE: SIZE may be smaller: what lies beyond is lost\n"
	"  --allow-backing DIR    follow backing names into DIR, too; repeatable\n"
	"  --backing-format FMT   format of the backing image where the header has none\n"
	"NAME is a served chain: its active layer grows while the device is in use, and so\n"
	"does the device where the kernel can (Linux 6.16); elsewhere, and for NBD clients\n"
	"that are connected, the new size shows at the next start. IMAGE is served by nobody.\n"
	"SIZE is the new size, or +SIZE or -SIZE from what it is. New space reads as\n"
	"zero. The LV of a fully provisioned image grows with it.\n",
	.examples = "  qchainctl resize vm7 +20G\n"
		    "  qchainctl resize vg0/vm-100-disk-0.qcow2 40G\n"
		    "  qchainctl resize ./disk.qcow2 +10G\n"
		    "  qchainctl resize --shrink -- ./disk.qcow2 -5G\n",
	.run = run_resize,
};
