// SPDX-License-Identifier: GPL-2.0-or-later
/* qchainctl stream: merge backing layers up into an overlay, served (../merge.c) or not. */
#include "../merge.h"
#include "../proxmox-merge.h"
#include "merge-cost.h"
#include "merge-run.h"

#include <errno.h>
#include <qchain/edit.h>
#include <qchain/parse.h>
#include <stdlib.h>
#include <string.h>

/*
 * What the layers to be dropped map is copied into the overlay, durably; then its
 * header names the base, or nothing. The layers below stay valid and as they
 * were; a kill leaves the overlay on its old backing, reading the same.
 */

#define OPTION_INTO 'i'
#define OPTION_BASE 'b'
#define OPTION_SPEED 'r'
#define OPTION_DETACH 'd'
#define OPTION_DROP 'D'

struct stream {
	struct offline_options offline;
	const char *into_name;
	const char *base_name;
	u32 nr_layers; /* that come up; 0: as the base says */
	u64 speed;
	bool detach;
	bool drop_snapshots;
	/* found in the chain; malloc'ed */
	u32 dropped;
	char *into_path;
	char *first_path; /* the one below it */
	char *base_path; /* NULL: none */
	char *header_name;
	char *old_name;
	enum image_format base_format;
};

static int find_range(struct stream *s, const struct chain *chain, u32 *into, u32 *base,
		      struct qc_err *err)
{
	int ret = 0;

	*into = 0;
	*base = chain->nr_layers;
	if (s->into_name)
		ret = merge_find_layer(chain, s->into_name, into, err);
	if (!ret && s->base_name)
		ret = merge_find_layer(chain, s->base_name, base, err);
	if (ret)
		return ret;
	if (s->nr_layers)
		*base = min(*into + s->nr_layers + 1, chain->nr_layers);
	if (*into + 1 >= chain->nr_layers)
		return qc_err_set(err, -EINVAL, "%s: has no backing image to stream from",
				  chain->layers[*into].path);
	if (*base <= *into)
		return qc_err_set(err, -EINVAL, "%s: is not below %s, must be to stay as its "
				  "backing", chain->layers[*base].path, chain->layers[*into].path);
	s->dropped = *base - *into - 1;
	return 0;
}

static int take_paths(struct stream *s, const struct chain *chain, u32 into, u32 base,
		      struct qc_err *err)
{
	const struct image *img = chain->layers[into].img;

	s->into_path = strdup(img->dev->path);
	s->first_path = strdup(chain->layers[into + 1].img->dev->path);
	s->old_name = strdup(img->backing_name);
	if (!s->into_path || !s->first_path || !s->old_name)
		return qc_err_set(err, -ENOMEM, "out of memory");
	if (base == chain->nr_layers)
		return 0;
	s->base_format = chain->layers[base].img->format;
	s->base_path = strdup(chain->layers[base].img->dev->path);
	if (!s->base_path)
		return qc_err_set(err, -ENOMEM, "out of memory");
	s->header_name = backing_header_name(s->into_path, s->base_path, err);
	return s->header_name ? 0 : err->code;
}

static int survey(struct stream *s, const char *name, struct qc_err *err)
{
	struct chain *chain;
	u32 into, base;
	int ret = offline_open_chain(name, &s->offline, &chain, err);

	if (ret)
		return ret;
	ret = find_range(s, chain, &into, &base, err);
	if (!ret)
		ret = take_paths(s, chain, into, base, err);
	if (!ret && offline_allow_chain(&s->offline, chain))
		ret = qc_err_set(err, -ENOMEM, "%s: out of memory", name);
	chain_close(chain);
	return ret;
}

static const char *base_format_name(const struct stream *s)
{
	return s->header_name ? image_format_name(s->base_format) : NULL;
}

static int check_fits(const struct stream *s, struct qc_err *err)
{
	struct image *img;
	int ret = merge_hold(s->into_path, &img, err);

	if (ret)
		return ret;
	ret = image_check_backing_fits(img, s->header_name, base_format_name(s), err);
	image_close(img);
	return ret;
}

/* Before the first byte (rule D5). */
static int make_room(const struct stream *s, struct qc_err *err)
{
	const struct merge_part upper = { s->into_path, 1 };
	const struct merge_part lower = { s->first_path, s->dropped };
	struct merge_cost cost = {};
	int ret = merge_cost(&upper, &lower, &s->offline, &cost, err);

	return ret ? ret : merge_make_room(s->into_path, &cost.stream, err);
}

static int move_data(struct stream *s, struct merge *merge, struct qc_err *err)
{
	struct target *ti;
	int ret = merge_open(s->into_path, &s->offline, IMAGE_QCOW2, NULL, &ti, err);

	if (ret)
		return ret;
	merge->type = "stream";
	merge->source = merge->target = ti;
	merge->first_depth = 2;
	merge->last_depth = s->dropped + 1;
	merge->skip_zero = !s->base_path;
	merge->speed = s->speed;
	ret = merge_run(merge, err);
	if (!ret)
		ret = target_suspend(ti, err);
	target_destroy(ti);
	return ret;
}

static int rewrite_header(const struct stream *s, struct qc_err *err)
{
	struct image *img;
	int ret = merge_hold(s->into_path, &img, err);

	if (ret)
		return ret;
	if (!img->backing_name || strcmp(s->old_name, img->backing_name))
		ret = qc_err_set(err, -EBUSY, "%s: somebody else changed its backing name "
				 "meanwhile", s->into_path);
	if (!ret)
		ret = image_set_backing(img, s->header_name, base_format_name(s), err);
	image_close(img);
	return ret;
}

static void print_streamed(const struct stream *s, const struct merge *merge)
{
	json_object *object = s->offline.json ? json_object_new_object() : NULL;

	if (object) {
		json_add_string(object, "into", s->into_path);
		if (s->base_path)
			json_add_string(object, "base", s->base_path);
		json_add_u64(object, "layers", s->dropped);
	} else {
		printf("%s: has the data of %u layer%s below it, and stands on %s now\n",
		       s->into_path, s->dropped, s->dropped == 1 ? "" : "s",
		       s->base_path ? s->base_path : "nothing");
	}
	merge_report(object, merge);
	if (object)
		print_json(object);
}

static int stream_image(const char *name, struct stream *s, struct merge *merge,
			struct qc_err *err)
{
	int ret = survey(s, name, err);

	if (!ret)
		ret = check_fits(s, err);
	if (!ret && s->dropped)
		ret = make_room(s, err);
	if (!ret && s->dropped)
		ret = move_data(s, merge, err);
	if (!ret && s->dropped)
		ret = rewrite_header(s, err);
	return ret;
}

static void stream_exit(struct stream *s)
{
	free(s->into_path);
	free(s->first_path);
	free(s->base_path);
	free(s->header_name);
	free(s->old_name);
}

int offline_stream(const struct offline_merge *m, struct merge *result, struct qc_err *err)
{
	struct stream s = { .offline.format = IMAGE_QCOW2, .into_name = m->layer,
			    .nr_layers = m->nr_layers, .speed = m->speed };
	int ret;

	*result = (struct merge){ .speed = m->speed };
	ret = stream_image(m->image, &s, result, err);
	stream_exit(&s);
	offline_options_exit(&s.offline);
	return ret;
}

static int stream_and_report(const char *name, struct stream *s)
{
	struct merge merge = {};
	struct qc_err err = {};
	int ret = stream_image(name, s, &merge, &err);

	if (!ret)
		print_streamed(s, &merge);
	stream_exit(s);
	return ret ? print_error(&err) : CTL_DONE;
}

static void take_option(void *arg, int option, struct qc_err *err)
{
	struct stream *s = arg;

	switch (option) {
	case OPTION_INTO:
		s->into_name = optarg;
		break;
	case OPTION_BASE:
		s->base_name = optarg;
		break;
	case OPTION_SPEED:
		parse_size("--speed", optarg, &s->speed, err);
		break;
	case OPTION_DETACH:
		s->detach = true;
		break;
	case OPTION_DROP:
		s->drop_snapshots = true;
		break;
	}
}

/* What Proxmox VE takes for snapshots is removed; the others' stay what they are. */
static int stream_proxmox(const struct verb *verb, const struct stream *s,
			  struct proxmox_merge *merge)
{
	merge->up = true;
	merge->top = s->into_name;
	merge->base = s->base_name;
	merge->speed = s->speed;
	merge->drop_snapshots = s->drop_snapshots;
	merge->json = s->offline.json;
	merge->detach = s->detach;
	return proxmox_merge(verb, merge);
}

static int stream_served(const char *name, const struct stream *s)
{
	struct served_merge merge = { .name = name, .top = s->into_name, .base = s->base_name,
				      .speed = s->speed, .detach = s->detach,
				      .json = s->offline.json, .offline = &s->offline };

	return merge_stream_served(&merge);
}

static int stream_object(const struct verb *verb, const char *name, struct stream *s)
{
	struct proxmox_merge proxmox = { .name = name };
	struct object_name object;
	struct qc_err err = {};
	bool is_proxmox;
	int status;

	if (name_parse(name, &object, &err))
		return print_error(&err);
	if (object.kind == NAME_CHAIN)
		return proxmox_serves(name) ? stream_proxmox(verb, s, &proxmox) :
					      stream_served(name, s);
	if (s->detach)
		return verb_usage(verb, "--detach: %s is not a served chain, must be", name);
	proxmox.name = NULL;
	if (proxmox_merge_of(object.path, &proxmox, &is_proxmox, &err))
		return print_error(&err);
	status = is_proxmox ? stream_proxmox(verb, s, &proxmox) : stream_and_report(name, s);
	proxmox_merge_exit(&proxmox);
	return status;
}

static int run_stream(const struct verb *verb, int argc, char **argv)
{
	static const struct option rows[] = {
		OFFLINE_JSON_ROW,
		{ "into", required_argument, NULL, OPTION_INTO },
		{ "base", required_argument, NULL, OPTION_BASE },
		{ "speed", required_argument, NULL, OPTION_SPEED },
		{ "detach", no_argument, NULL, OPTION_DETACH },
		{ "drop-snapshots", no_argument, NULL, OPTION_DROP },
		{ "allow-backing", required_argument, NULL, OPTION_ALLOW_BACKING },
		{ "backing-format", required_argument, NULL, OPTION_BACKING_FORMAT },
		{},
	};
	static const struct offline_syntax syntax = { rows, take_option, 1, 1 };
	struct stream stream = {};
	int ret = offline_options_read(verb, argc, argv, &syntax, &stream.offline, &stream);

	if (!ret)
		ret = stream_object(verb, argv[optind], &stream);
	offline_options_exit(&stream.offline);
	return ret;
}

const struct verb verb_stream = {
	.name = "stream",
	.summary = "merge backing layers up into an overlay",
	.usage = "[OPTION]... NAME|IMAGE",
	.options =
	"  --into LAYER           the layer that receives; default: the active one\n"
	"  --base LAYER           the first layer that stays below; default: none stays\n"
	"  --speed SIZE           bytes a second at most\n"
	"  --detach               NAME: do not wait, print the id of the job\n"
	"  --drop-snapshots       of a volume of Proxmox VE the snapshots between go, with\n"
	"                         their LVs, which have no other name there\n"
	"  --allow-backing DIR    follow backing names into DIR, too; repeatable\n"
	"  --backing-format FMT   format of backing images whose overlay does not say it\n"
	OFFLINE_JSON_HELP
	"NAME is a served chain: one of its layers receives, while the device is in use; a\n"
	"job that can be paused and cancelled (qchainctl job). IMAGE is the active layer of\n"
	"a chain that nobody serves. The layers below stay as they are, and valid.\n",
	.examples = "  qchainctl stream vm7 --base before-upgrade --speed 200M\n"
		    "  qchainctl stream vm7 --into tuesday --base sunday\n"
		    "  qchainctl stream vg0/vm-1.qcow2\n"
		    "  qchainctl stream pve/vm-103-disk-0.qcow2 --drop-snapshots\n"
		    "  qchainctl stream ./top.qcow2 --base base.qcow2\n"
		    "  qchainctl stream ./top.qcow2 --into sn2.qcow2 --base base.qcow2\n",
	.run = run_stream,
};
