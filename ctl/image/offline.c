// SPDX-License-Identifier: GPL-2.0-or-later
/* Options and opening for the verbs that work on images without a daemon. */
#include "offline.h"

#include <errno.h>
#include <qchain/control.h>
#include <stdlib.h>
#include <string.h>

void offline_options_exit(struct offline_options *options)
{
	while (options->nr_allow_dirs > options->nr_given)
		free(options->allow_dirs[--options->nr_allow_dirs]);
	free(options->allow_dirs);
	options->allow_dirs = NULL;
}

static int allow(struct offline_options *options, char *path_owned)
{
	char **larger;

	if (!path_owned)
		return -ENOMEM;
	larger = realloc(options->allow_dirs, (options->nr_allow_dirs + 2) * sizeof(*larger));
	if (!larger) {
		free(path_owned);
		return -ENOMEM;
	}
	options->allow_dirs = larger;
	larger[options->nr_allow_dirs++] = path_owned;
	larger[options->nr_allow_dirs] = NULL;
	return 0;
}

int offline_allow_chain(struct offline_options *options, const struct chain *chain)
{
	int ret = 0;

	for (u32 i = 1; i < chain->nr_layers && !ret; i++)
		ret = allow(options, realpath(chain->layers[i].img->dev->path, NULL));
	return ret;
}

int offline_allow_dir(struct offline_options *options, const char *path)
{
	char *real = realpath(path, NULL), *slash = real ? strrchr(real, '/') : NULL;

	if (!slash || strncmp(real, "/dev/", 5) == 0) {
		free(real);
		return 0;
	}
	*(slash == real ? slash + 1 : slash) = 0;
	return allow(options, real);
}

void offline_take_format(const char *what, const char *text, enum image_format *result,
			 struct qc_err *err)
{
	if (image_format_parse(text, result))
		qc_err_set(err, -EINVAL, "%s: format not known (%s), expected qcow2 or raw", what,
			   text);
}

/* True: it was one of ours. */
static bool take_option(struct offline_options *options, int c, struct qc_err *err)
{
	enum image_format format;

	switch (c) {
	case OPTION_JSON:
		options->json = true;
		return true;
	case OPTION_FORCE_SHARE:
		options->force_share = true;
		return true;
	case OPTION_FORMAT:
		offline_take_format("--format", optarg, &options->format, err);
		return true;
	case OPTION_ALLOW_BACKING:
		if (chain_option_check("allow-backing", optarg, err) == 0) {
			options->allow_dirs[options->nr_allow_dirs++] = optarg;
			options->nr_given++;
		}
		return true;
	case OPTION_BACKING_FORMAT:
		offline_take_format("--backing-format", optarg, &format, err);
		options->backing_format = optarg;
		return true;
	default:
		return false;
	}
}

int offline_options_read(const struct verb *verb, int argc, char **argv,
			 const struct offline_syntax *syntax, struct offline_options *options,
			 void *arg)
{
	struct qc_err err = {};
	int c;

	*options = (struct offline_options){ .format = IMAGE_QCOW2 };
	options->allow_dirs = calloc(argc + 1, sizeof(*options->allow_dirs));
	if (!options->allow_dirs)
		return verb_usage(verb, "out of memory");
	while (!err.code && (c = verb_option(verb, argc, argv, syntax->rows)) != -1) {
		if (c == '?')
			return verb_status(verb);
		if (!take_option(options, c, &err))
			syntax->take(arg, c, &err);
	}
	if (err.code)
		return verb_usage(verb, "%s", err.msg);
	return verb_arguments(verb, argc, argv, syntax->least, syntax->most);
}

/* A reader that meets a writer, and the way round it. */
static int explain(struct qc_err *err, int ret, bool writable)
{
	size_t len = strlen(err->msg);

	if (!writable && (ret == -EAGAIN || ret == -EBUSY))
		snprintf(err->msg + len, sizeof(err->msg) - len,
			 "; or look at it all the same with --force-share");
	return ret;
}

int offline_open_image(const char *name, const struct offline_options *options, bool writable,
		       u32 image_flags, struct image **result, struct qc_err *err)
{
	u32 flags = (writable ? IO_DEV_WRITE : 0) | (options->force_share ? IO_DEV_NOLOCK : 0);
	struct object_name object;
	struct io_dev *dev;
	int ret;

	ret = name_image(name, &object, err);
	if (!ret)
		ret = io_dev_open(object.path, flags, &dev, err);
	if (ret)
		return explain(err, ret, writable);
	return image_open(dev, options->format, image_flags | (writable ? IMAGE_OPEN_WRITE : 0),
			  result, err);
}

u64 offline_thick_bytes(const struct image *img, u64 virtual_size)
{
	struct image_create_options options;

	image_create_defaults(&options);
	options.virtual_size = virtual_size;
	options.version = img->version;
	options.cluster_bits = img->cluster_bits;
	options.refcount_order = img->refcount_order;
	options.extl2 = image_has_extl2(img);
	return image_thick_bytes(&options);
}

int offline_open_chain(const char *name, const struct offline_options *options,
		       struct chain **result, struct qc_err *err)
{
	struct chain_open_options open = {
		.top_format = options->format,
		.read_only = true,
		.no_lock = options->force_share,
		.policy.allow_dirs = options->allow_dirs,
		.policy.backing_format = options->backing_format,
	};
	struct object_name object;
	int ret;

	ret = name_image(name, &object, err);
	if (!ret)
		ret = chain_open(object.path, &open, result, err);
	return explain(err, ret, false);
}

void json_add_u64(json_object *object, const char *key, u64 value)
{
	json_object_object_add(object, key, json_object_new_uint64(value));
}

void json_add_string(json_object *object, const char *key, const char *value)
{
	json_object_object_add(object, key, json_object_new_string(value));
}

void json_add_bool(json_object *object, const char *key, bool value)
{
	json_object_object_add(object, key, json_object_new_boolean(value));
}
