// SPDX-License-Identifier: GPL-2.0-or-later
/* qchainctl rebase: another backing image for an image that nobody serves. */
#include "../merging.h"
#include "../merge.h"
#include "merge-run.h"

#include <errno.h>
#include <qchain/edit.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/*
 * Safe: what the image shows stays the same. What the old and the new backing have
 * different is copied into the image first, durably; then the header names the
 * new one. A kill in between leaves an image on its old backing, with a part of
 * it copied, which reads the same. Unsafe (-u): only the name changes.
 */

#define OPTION_BACKING 'b'
#define OPTION_UNSAFE 'u'

struct rebase {
	struct offline_options offline;
	const char *backing; /* "none" or NULL: none */
	bool unsafe;
	/* what comes of it */
	char path[4096]; /* of the image */
	char *header_name;
	const char *format;
	char backing_path[4096];
};

static enum image_format format_of(const struct rebase *r)
{
	enum image_format format = IMAGE_QCOW2;

	image_format_parse(r->format, &format);
	return format;
}

/* The name that the header gets, and the format, from the options. */
static int take_backing(struct rebase *r, const char *old_format, struct qc_err *err)
{
	struct object_name object;
	enum image_format format;
	int ret;

	if (!r->backing || !strcmp(r->backing, "none")) {
		r->backing = NULL;
		return 0;
	}
	ret = name_image(r->backing, &object, err);
	if (ret)
		return ret;
	r->format = r->offline.backing_format ? r->offline.backing_format :
		    old_format ? old_format : "qcow2";
	if (image_format_parse(r->format, &format))
		return qc_err_set(err, -EINVAL, "%s: backing format '%s' not supported, must be "
				  "raw or qcow2", r->backing, r->format);
	snprintf(r->backing_path, sizeof(r->backing_path), "%s", object.path);
	if (merging_check_image(r->backing_path, err))
		return err->code;
	r->header_name = backing_header_name(r->path, r->backing_path, err);
	return r->header_name ? 0 : err->code;
}

/* Has the header still the backing that the work was done for? */
static int rewrite_header(const struct rebase *r, const char *expected, struct qc_err *err)
{
	struct image *img;
	int ret = merge_hold(r->path, &img, err);

	if (ret)
		return ret;
	if (strcmp(expected ? expected : "", img->backing_name ? img->backing_name : ""))
		ret = qc_err_set(err, -EBUSY, "%s: somebody else changed its backing name "
				 "meanwhile (to %s)", r->path,
				 img->backing_name ? img->backing_name : "none");
	if (!ret)
		ret = image_set_backing(img, r->header_name, r->format, err);
	image_close(img);
	return ret;
}

/* ---- safe ----------------------------------------------------------------------------- */

/* Layers at the bottom that both chains have: their number. */
static u32 common_layers(const struct chain *a, const struct chain *b)
{
	struct stat x, y;
	u32 n = 0;

	while (n < a->nr_layers && n < b->nr_layers) {
		if (stat(a->layers[a->nr_layers - 1 - n].img->dev->path, &x) ||
		    stat(b->layers[b->nr_layers - 1 - n].img->dev->path, &y))
			break;
		if (S_ISBLK(x.st_mode) ? x.st_rdev != y.st_rdev :
					 x.st_dev != y.st_dev || x.st_ino != y.st_ino)
			break;
		n++;
	}
	return n;
}

/* What must be known before the images are opened for work. */
struct survey {
	u32 keep_layers;
	u32 cluster_bytes;
	char *old_name;
};

static int look_at_chains(struct rebase *r, struct survey *survey, struct qc_err *err)
{
	struct offline_options below;
	struct chain *old, *new;
	int ret = offline_open_chain(r->path, &r->offline, &old, err);

	if (ret)
		return ret;
	survey->cluster_bytes = image_cluster_bytes(old->layers[0].img);
	/* the image that will stand on the new backing is the one that judges it */
	if (offline_allow_chain(&r->offline, old) || offline_allow_dir(&r->offline, r->path))
		ret = qc_err_set(err, -ENOMEM, "%s: out of memory", r->path);
	if (old->layers[0].img->backing_name)
		survey->old_name = strdup(old->layers[0].img->backing_name);
	if (!ret && r->backing) {
		below = r->offline;
		below.format = format_of(r);
		ret = offline_open_chain(r->backing_path, &below, &new, err);
	}
	if (!ret && r->backing) {
		survey->keep_layers = common_layers(old, new);
		if (survey->keep_layers == old->nr_layers)
			ret = qc_err_set(err, -ELOOP, "%s: stands on %s itself", r->backing,
					 r->path);
		chain_close(new);
	}
	chain_close(old);
	return ret;
}

static int check_fits(const struct rebase *r, struct qc_err *err)
{
	struct image *img;
	int ret = merge_hold(r->path, &img, err);

	if (ret)
		return ret;
	ret = image_check_backing_fits(img, r->header_name, r->format, err);
	image_close(img);
	return ret;
}

static int move_data(struct rebase *r, const struct survey *survey, struct merge *merge,
		     struct qc_err *err)
{
	static const char *const read_only[] = { "read-only=on", NULL };
	struct target *ti, *compare = NULL;
	int ret = merge_open(r->path, &r->offline, IMAGE_QCOW2, NULL, &ti, err);

	if (ret)
		return ret;
	if (r->backing)
		ret = merge_open(r->backing_path, &r->offline, format_of(r), read_only, &compare,
				 err);
	if (!ret) {
		merge->type = r->backing ? "rebase" : "stream";
		merge->source = merge->target = ti;
		merge->compare = compare;
		merge->first_depth = 2;
		merge->last_depth = QC_MAX_LAYERS;
		merge->keep_layers = survey->keep_layers;
		merge->compare_bytes = max(survey->cluster_bytes, 4096u);
		merge->skip_zero = !r->backing;
		ret = merge_run(merge, err);
	}
	if (!ret)
		ret = target_suspend(ti, err);
	if (compare)
		target_destroy(compare);
	target_destroy(ti);
	return ret;
}

static int rebase_safe(struct rebase *r, struct merge *merge, struct qc_err *err)
{
	struct survey survey = {};
	int ret = look_at_chains(r, &survey, err);

	if (!ret)
		ret = check_fits(r, err);
	if (!ret)
		ret = move_data(r, &survey, merge, err);
	if (!ret)
		ret = rewrite_header(r, survey.old_name, err);
	free(survey.old_name);
	return ret;
}

/* ---- unsafe ----------------------------------------------------------------------------- */

static int rebase_unsafe(struct rebase *r, struct qc_err *err)
{
	struct image *img;
	int ret = merge_hold(r->path, &img, err);

	if (ret)
		return ret;
	ret = image_set_backing(img, r->header_name, r->format, err);
	image_close(img);
	return ret;
}

/* The backing format that the header has now is the default for the new one. */
static int old_format(const struct rebase *r, char *text, size_t room, struct qc_err *err)
{
	struct image *img;
	int ret = offline_open_image(r->path, &r->offline, false, 0, &img, err);

	if (ret)
		return ret;
	snprintf(text, room, "%s", img->backing_format ? img->backing_format : "");
	image_close(img);
	return 0;
}

static void print_rebased(const struct rebase *r, const char *name, const struct merge *merge)
{
	json_object *object = r->offline.json ? json_object_new_object() : NULL;

	if (object) {
		json_add_string(object, "filename", r->path);
		if (r->backing) {
			json_add_string(object, "backing-filename", r->header_name);
			json_add_string(object, "backing-filename-format", r->format);
		}
	} else {
		printf("%s: stands on %s now\n", name, r->backing ? r->header_name : "nothing");
	}
	if (!r->unsafe)
		merge_report(object, merge);
	if (object)
		print_json(object);
}

static int rebase_image(const char *name, struct rebase *r)
{
	struct object_name object;
	struct merge merge = {};
	struct qc_err err = {};
	char format[32] = "";
	int ret = name_image(name, &object, &err);

	if (!ret) {
		snprintf(r->path, sizeof(r->path), "%s", object.path);
		ret = old_format(r, format, sizeof(format), &err);
	}
	if (!ret)
		ret = take_backing(r, *format ? format : NULL, &err);
	if (!ret)
		ret = r->unsafe ? rebase_unsafe(r, &err) : rebase_safe(r, &merge, &err);
	if (!ret)
		print_rebased(r, name, &merge);
	free(r->header_name);
	return ret ? print_error(&err) : CTL_DONE;
}

/* On a layer that it has, or on none: what lies between comes up (stream). */
static int rebase_served(const struct verb *verb, const char *name, const struct rebase *r)
{
	struct served_merge merge = { .name = name, .json = r->offline.json,
				      .offline = &r->offline };

	if (r->unsafe)
		return verb_usage(verb, "--unsafe: %s is served, expected an image that nobody "
				  "serves", name);
	if (strcmp(r->backing, "none"))
		merge.base = r->backing;
	return merge_stream_served(&merge);
}

static int rebase_object(const struct verb *verb, const char *name, struct rebase *r)
{
	struct object_name object;
	struct qc_err err = {};

	if (name_parse(name, &object, &err))
		return print_error(&err);
	return object.kind == NAME_CHAIN ? rebase_served(verb, name, r) : rebase_image(name, r);
}

static void take_option(void *arg, int c, struct qc_err *err)
{
	struct rebase *r = arg;

	if (c == OPTION_BACKING)
		r->backing = optarg;
	else
		r->unsafe = true;
}

static int run_rebase(const struct verb *verb, int argc, char **argv)
{
	static const struct option rows[] = {
		OFFLINE_JSON_ROW,
		{ "backing", required_argument, NULL, OPTION_BACKING },
		{ "unsafe", no_argument, NULL, OPTION_UNSAFE },
		{ "allow-backing", required_argument, NULL, OPTION_ALLOW_BACKING },
		{ "backing-format", required_argument, NULL, OPTION_BACKING_FORMAT },
		{},
	};
	static const struct offline_syntax syntax = { rows, take_option, 1, 1 };
	struct rebase r = {};
	int ret = offline_options_read(verb, argc, argv, &syntax, &r.offline, &r);

	if (!ret && !r.backing)
		ret = verb_usage(verb, "--backing missing, expected an image or none");
	if (!ret)
		ret = rebase_object(verb, argv[optind], &r);
	offline_options_exit(&r.offline);
	return ret;
}

const struct verb verb_rebase = {
	.name = "rebase",
	.summary = "give a served chain or an image another backing image",
	.usage = "[OPTION]... --backing IMAGE|LAYER|none NAME|IMAGE",
	.options =
	"  --backing IMAGE|none   the new backing image; NAME: LAYER, one that it has\n"
	"  --backing-format FMT   qcow2 or raw; default: that of the old one\n"
	"  -u, --unsafe           IMAGE: only the name: the new one must have the same content\n"
	"  --allow-backing DIR    follow backing names into DIR, too; repeatable\n"
	OFFLINE_JSON_HELP
	"Without -u the image shows the same afterwards: what differs is copied into it.\n"
	"NAME is a served chain: its active layer is put on a layer further down, or on none,\n"
	"while the device is in use; what lies between comes up, as with stream. An image\n"
	"that is no layer of the chain needs it down.\n",
	.examples = "  qchainctl rebase --backing none vm7\n"
		    "  qchainctl rebase --backing vg0/base.qcow2 vg0/vm-1.qcow2\n"
		    "  qchainctl rebase -u --backing ./moved/base.qcow2 ./top.qcow2\n"
		    "  qchainctl rebase --backing none ./top.qcow2\n",
	.run = run_rebase,
};
