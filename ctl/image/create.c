// SPDX-License-Identifier: GPL-2.0-or-later
/* qchainctl create: an image on a new or given LV, block device or file. */
#include "../merging.h"
#include "../thin.h"
#include "options.h"
#include "signature.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <qchain/lvm.h>
#include <qchain/parse.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { OPTION_BACKING = OPTION_OWN, OPTION_FORCE, OPTION_THIN, OPTION_CHUNK, OPTION_LV_SIZE };

#define LV_TAG "qchain"

struct create_options {
	struct offline_options offline; /* backing_format, allow_dirs, force_share, json */
	struct image_create_options image;
	bool has_size;
	bool force;
	bool thin;
	u64 chunk; /* of a thin LV; 0: as the disk is large */
	u64 lv_bytes; /* 0: as the image needs */
	const char *backing; /* as on the command line */
};

/* struct target - where the image goes */
struct target {
	struct object_name name;
	bool exists;
	bool made; /* by us: taken away again if it fails */
	struct io_dev *dev;
};

/* ---- the backing image --------------------------------------------------------------- */

/*
 * The format is said, or it is the name's ending: neither can be changed by a
 * guest, as the content of a raw image can.
 */
static int backing_format(const struct create_options *o, const struct object_name *backing,
			  const char **result, struct qc_err *err)
{
	const char *dot = strrchr(backing->path, '.');
	enum image_format format;

	*result = o->offline.backing_format;
	if (!*result && dot && image_format_parse(dot + 1, &format) == 0)
		*result = image_format_name(format);
	if (*result)
		return 0;
	return qc_err_set(err, -EINVAL,
			  "%s: format of the backing image not said, expected --backing-format "
			  "qcow2 or raw",
			  backing->text);
}

/* Open it once: it is there, it is what it is said to be, and it has a size. */
static int look_at_backing(struct create_options *o, const struct object_name *backing,
			   const char *format, struct qc_err *err)
{
	struct offline_options open = o->offline;
	struct image *img;
	int ret;

	image_format_parse(format, &open.format);
	ret = offline_open_image(backing->text, &open, false, 0, &img, err);
	if (ret)
		return ret;
	if (!o->has_size)
		o->image.virtual_size = img->virtual_size;
	image_close(img);
	return 0;
}

/* *@name is malloc'ed, NULL without a backing image. */
static int take_backing(struct create_options *o, const struct target *target, char **name,
			struct qc_err *err)
{
	struct object_name backing;
	const char *format;
	int ret;

	*name = NULL;
	if (!o->backing)
		return 0;
	ret = name_image(o->backing, &backing, err);
	if (!ret)
		ret = backing_format(o, &backing, &format, err);
	if (!ret)
		ret = look_at_backing(o, &backing, format, err);
	if (!ret)
		ret = merging_check_image(backing.path, err);
	if (ret)
		return ret;
	*name = backing_header_name(target->name.path, backing.path, err);
	if (!*name)
		return err->code ? err->code : -ENOMEM;
	o->image.backing_name = *name;
	o->image.backing_format = format;
	return 0;
}

/* ---- where it goes --------------------------------------------------------------------- */

static u64 chunk_bytes(const struct create_options *o)
{
	return o->chunk ? o->chunk : thin_default_chunk(o->image.virtual_size);
}

static u64 lv_bytes(const struct create_options *o)
{
	if (o->lv_bytes)
		return o->lv_bytes;
	return o->thin ? thin_first_bytes(&o->image, chunk_bytes(o)) : image_thick_bytes(&o->image);
}

static int find_target(const char *text, struct target *target, struct qc_err *err)
{
	struct stat st;
	int ret = name_parse(text, &target->name, err);

	if (ret)
		return ret;
	if (target->name.kind == NAME_CHAIN)
		return qc_err_set(err, -EINVAL,
				  "%s: is a served chain, expected VG/LV or a path for the new "
				  "image; for a file in this directory write ./%s", text, text);
	target->exists = stat(target->name.path, &st) == 0;
	return 0;
}

/* What says how large a new LV becomes is of no use for anything else. */
static int check_lv_options(const struct create_options *o, const struct target *target,
			    struct qc_err *err)
{
	const char *option = o->thin ? "--thin" : o->lv_bytes ? "--lv-size" : NULL;

	if (!option || (target->name.kind == NAME_LV && !target->exists))
		return 0;
	if (o->thin && !target->exists)
		return qc_err_set(err, -EINVAL, "%s: --thin is for a new LV only, this is a file: "
				  "it grows by itself as long as its file system has room; leave "
				  "out --thin", target->name.text);
	return qc_err_set(err, -EINVAL, "%s: %s is for a new LV only, this is %s",
			  target->name.text, option, target->exists ? "there already" : "no LV");
}

static int make_lv(const struct create_options *o, struct target *target, struct qc_err *err)
{
	char tags[sizeof(LV_TAG) + 1 + THIN_TAG_BYTES] = LV_TAG;

	if (o->thin) {
		strcat(tags, ",");
		thin_tag(chunk_bytes(o), tags + strlen(tags));
	}
	return lvm_create(target->name.vg, target->name.lv, lv_bytes(o), tags, err);
}

/* Guest data: nobody but the owner reads it. */
static int make_file(const struct target *target, struct qc_err *err)
{
	int fd = open(target->name.path, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600);

	if (fd < 0)
		return qc_err_set(err, -errno, "%s: could not be created (%s)", target->name.text,
				  strerror(errno));
	close(fd);
	return 0;
}

static int make_target(const struct create_options *o, struct target *target, struct qc_err *err)
{
	int ret;

	if (target->exists)
		return 0;
	if (target->name.kind == NAME_LV)
		ret = make_lv(o, target, err);
	else if (strncmp(target->name.path, "/dev/", 5) == 0)
		ret = qc_err_set(err, -ENOENT, "%s: no such device; a new LV is made by the name "
				 "VG/LV",
				 target->name.text);
	else
		ret = make_file(target, err);
	target->made = !ret;
	return ret;
}

static void unmake_target(const struct target *target)
{
	struct qc_err err = {};

	if (!target->made)
		return;
	if (target->name.kind == NAME_LV) {
		if (lvm_remove(target->name.vg, target->name.lv, &err))
			print_error(&err);
	} else if (unlink(target->name.path)) {
		fprintf(stderr, "qchainctl: %s: could not be removed again (%m)\n",
			target->name.text);
	}
}

/* A file with anything in it may be a raw image; a device has old bytes anyway. */
static int refuse_overwrite(const struct create_options *o, const struct target *target,
			    struct qc_err *err)
{
	const char *found;
	int ret;

	if (o->force || target->made)
		return 0;
	ret = signature_find(target->dev, &found);
	if (ret < 0)
		return qc_err_set(err, ret, "%s: could not be read (%s)", target->name.text,
				  strerror(-ret));
	if (!found && !target->dev->blockdev && target->dev->size_bytes)
		found = "data";
	if (!found)
		return 0;
	return qc_err_set(err, -EEXIST, "%s: holds %s, which would be lost; --force overwrites it",
			  target->name.text, found);
}

/* Old content of a file goes whole; on a device it stays and is never mapped. */
static int empty_file(const struct target *target, struct qc_err *err)
{
	if (target->dev->blockdev)
		return 0;
	if (ftruncate(target->dev->fd, 0) || target->dev->ops->refresh_size(target->dev) < 0)
		return qc_err_set(err, -errno, "%s: could not be emptied (%s)", target->name.text,
				  strerror(errno));
	return 0;
}

static int write_image(const struct create_options *o, struct target *target, struct qc_err *err)
{
	int ret = io_dev_open(target->name.path, IO_DEV_WRITE, &target->dev, err);

	if (ret)
		return ret;
	ret = refuse_overwrite(o, target, err);
	if (!ret)
		ret = empty_file(target, err);
	if (!ret)
		ret = image_create(target->dev, &o->image, err);
	io_dev_close(target->dev);
	target->dev = NULL;
	return ret;
}

/* ---- afterwards -------------------------------------------------------------------------- */

/* The rules that `up` will apply, told now. */
static void warn_about_chain(const struct create_options *o, const struct target *target)
{
	struct offline_options open = o->offline;
	struct qc_err err = {};
	struct chain *chain;

	open.format = IMAGE_QCOW2;
	if (!o->backing)
		return;
	if (offline_open_chain(target->name.text, &open, &chain, &err) == 0)
		chain_close(chain);
	else
		fprintf(stderr, "%swarning:%s %s\n", print_colour(stderr, COLOUR_WARN),
			print_colour(stderr, COLOUR_NONE), err.msg);
}

static void print_created(const struct create_options *o, const struct target *target)
{
	struct image_measure measure;
	char size[32];

	image_measure(&o->image, 0, &measure);
	if (o->offline.json) {
		json_object *object = json_object_new_object();

		json_add_string(object, "filename", target->name.path);
		json_add_string(object, "format", "qcow2");
		json_add_u64(object, "virtual-size", o->image.virtual_size);
		json_add_u64(object, "cluster-size", 1ull << o->image.cluster_bits);
		json_add_u64(object, "fully-allocated", measure.fully_allocated);
		json_add_bool(object, "created", target->made);
		if (o->image.backing_name) {
			json_add_string(object, "backing-filename", o->image.backing_name);
			json_add_string(object, "backing-filename-format",
					o->image.backing_format);
		}
		print_json(object);
		return;
	}
	printf("%s: qcow2 image of %s created%s%s\n", target->name.text,
	       print_size(o->image.virtual_size, size), o->backing ? " on " : "",
	       o->backing ? o->backing : "");
}

/* ---- the verb ------------------------------------------------------------------------------ */

static int create_image(const char *text, struct create_options *o)
{
	struct target target = {};
	struct qc_err err = {};
	char *backing = NULL;
	int ret;

	ret = find_target(text, &target, &err);
	if (!ret)
		ret = check_lv_options(o, &target, &err);
	if (!ret)
		ret = take_backing(o, &target, &backing, &err);
	if (!ret) {
		ret = image_create_check(&o->image, &err);
		qc_err_prefix(&err, "%s", text);
	}
	if (!ret)
		ret = make_target(o, &target, &err);
	if (!ret)
		ret = write_image(o, &target, &err);
	if (ret)
		unmake_target(&target);
	else
		warn_about_chain(o, &target);
	if (!ret)
		print_created(o, &target);
	free(backing);
	return ret ? print_error(&err) : CTL_DONE;
}

static void take_lv_size(struct create_options *o, struct qc_err *err)
{
	if (parse_size("--lv-size", optarg, &o->lv_bytes, err) == 0 && !o->lv_bytes)
		qc_err_set(err, -ERANGE, "--lv-size: size out of range (%s), must be above 0",
			   optarg);
}

static void take_option(void *arg, int c, struct qc_err *err)
{
	struct create_options *o = arg;

	if (c == OPTION_SIZE)
		o->has_size = true;
	if (create_option(&o->image, c, err))
		return;
	switch (c) {
	case OPTION_BACKING:
		o->backing = optarg;
		break;
	case OPTION_FORCE:
		o->force = true;
		break;
	case OPTION_THIN:
		o->thin = true;
		break;
	case OPTION_CHUNK:
		thin_parse_chunk(&o->chunk, err);
		break;
	case OPTION_LV_SIZE:
		take_lv_size(o, err);
		break;
	}
}

static int check_together(const struct verb *verb, const struct create_options *o)
{
	if (!o->has_size && !o->backing)
		return verb_usage(verb, "size missing, expected --size, or --backing for an "
				  "overlay of the same size");
	if (o->offline.backing_format && !o->backing)
		return verb_usage(verb, "--backing-format without --backing");
	if (o->chunk && !o->thin)
		return verb_usage(verb, "--chunk without --thin");
	if (o->thin && o->lv_bytes)
		return verb_usage(verb, "--thin and --lv-size: expected one of them");
	return 0;
}

static int run_create(const struct verb *verb, int argc, char **argv)
{
	static const struct option rows[] = {
		OFFLINE_JSON_ROW,
		CREATE_ROWS,
		{ "backing", required_argument, NULL, OPTION_BACKING },
		{ "backing-format", required_argument, NULL, OPTION_BACKING_FORMAT },
		{ "allow-backing", required_argument, NULL, OPTION_ALLOW_BACKING },
		{ "force-share", no_argument, NULL, OPTION_FORCE_SHARE },
		{ "force", no_argument, NULL, OPTION_FORCE },
		{ "thin", no_argument, NULL, OPTION_THIN },
		{ "chunk", required_argument, NULL, OPTION_CHUNK },
		{ "lv-size", required_argument, NULL, OPTION_LV_SIZE },
		{},
	};
	static const struct offline_syntax syntax = { rows, take_option, 1, 1 };
	struct create_options options = {};
	int ret;

	image_create_defaults(&options.image);
	ret = offline_options_read(verb, argc, argv, &syntax, &options.offline, &options);
	if (!ret)
		ret = check_together(verb, &options);
	if (!ret)
		ret = create_image(argv[optind], &options);
	offline_options_exit(&options.offline);
	return ret;
}

const struct verb verb_create = {
	.name = "create",
	.summary = "make an image on a new LV, or on a given LV, device or file",
	.usage = "[OPTION]... NAME",
	.options = CREATE_HELP
	"  --backing NAME         the new image is an overlay of this one\n"
	"  --backing-format FMT   qcow2 or raw; default: what the name ends with\n"
	"  --allow-backing DIR    the chain may lead into DIR, too; repeatable\n"
	"  --thin                 a small LV, which is made larger while it is served and\n"
	"                         written to (default: one that never runs full)\n"
	"  --chunk SIZE           of --thin: what it has for data at first and grows by at\n"
	"                         least (default: 128M, or a hundredth of the disk)\n"
	"  --lv-size SIZE         size of the new LV, instead\n"
	"  --force                overwrite an image or file system\n"
	"  --force-share          the backing image may be in use (it must not be written)\n"
	OFFLINE_JSON_HELP,
	.examples = "  qchainctl create vg0/root.qcow2 --size 20G\n"
		    "  qchainctl create vg0/home.qcow2 --size 500G --thin\n"
		    "  qchainctl create vg0/root-1.qcow2 --backing vg0/root.qcow2 \\\n"
		    "      --extended-l2 --cluster-size 128K\n"
		    "  qchainctl create ./disk.qcow2 --size 1.5T --preallocation metadata\n",
	.run = run_create,
};
