// SPDX-License-Identifier: GPL-2.0-or-later
/* qchainctl export: a snapshot, or what came between two, as a file. */
#include "export-layers.h"
#include "image/export-image.h"

#include <errno.h>
#include <qchain/parse.h>
#include <string.h>

enum {
	OPTION_FROM = 0x100,
	OPTION_TO,
	OPTION_TARGET_FORMAT,
	OPTION_BACKING,
	OPTION_FORCE,
	OPTION_SPEED,
};

struct export_words {
	struct offline_options offline;
	const char *from;
	const char *to;
	const char *backing;
	enum image_format format;
	bool force;
	u64 speed;
};

static void report(const struct export_words *o, const struct export_layers *layers,
		   const struct export_image *e, const struct merge *moved)
{
	json_object *object = o->offline.json ? json_object_new_object() : NULL;

	if (!object) {
		printf("%s: holds %s%s%s\n", e->target, layers->to_name,
		       e->from ? " since " : "", e->from ? layers->from_name : "");
		merge_report(NULL, moved);
		return;
	}
	json_add_string(object, "filename", e->target);
	json_add_string(object, "format", image_format_name(e->format));
	if (layers->device[0])
		json_add_string(object, "device", layers->device);
	json_add_string(object, "to", layers->to_name);
	if (e->from) {
		json_add_string(object, "from", layers->from_name);
		json_add_string(object, "backing", e->backing);
	}
	json_add_u64(object, "virtual-size", e->note.size);
	json_add_string(object, "sha256", e->note.sum.sha256);
	merge_report(object, moved);
	print_json(object);
}

static void take_names(struct export_note *note, const struct export_layers *layers)
{
	snprintf(note->device, sizeof(note->device), "%s", layers->device);
	snprintf(note->to, sizeof(note->to), "%s", layers->to_name);
	snprintf(note->from, sizeof(note->from), "%s", layers->from ? layers->from_name : "");
}

static int export_to(const char *name, const char *path, struct export_words *o,
		     struct qc_err *err)
{
	struct export_image e = { .offline = &o->offline, .target = path, .format = o->format,
				  .force = o->force, .speed = o->speed };
	struct object_name backing;
	struct export_layers layers;
	struct merge moved = {};
	int ret = export_layers_find(name, &o->offline, o->from, o->to, &layers, err);

	if (!ret && o->backing)
		ret = name_image(o->backing, &backing, err);
	if (!ret) {
		e.to = layers.to;
		e.to_format = layers.to_format;
		e.from = layers.from;
		e.backing = o->backing ? backing.path : NULL;
		take_names(&e.note, &layers);
		ret = export_image(&e, &moved, err);
	}
	if (!ret)
		report(o, &layers, &e, &moved);
	export_layers_exit(&layers);
	return ret;
}

static int export_object(const char *name, const char *target, struct export_words *o)
{
	struct object_name object;
	struct qc_err err = {};
	int ret = name_parse(target, &object, &err);

	if (!ret && object.kind != NAME_PATH)
		ret = qc_err_set(&err, -EINVAL, "%s: is no path, expected one for a new file; in "
				 "this directory ./%s", target, target);
	if (!ret)
		ret = export_to(name, object.path, o, &err);
	return ret ? print_error(&err) : CTL_DONE;
}

static void take_option(void *arg, int c, struct qc_err *err)
{
	struct export_words *o = arg;

	switch (c) {
	case OPTION_FROM:
		o->from = optarg;
		break;
	case OPTION_TO:
		o->to = optarg;
		break;
	case OPTION_TARGET_FORMAT:
		offline_take_format("--format", optarg, &o->format, err);
		break;
	case OPTION_BACKING:
		o->backing = optarg;
		break;
	case OPTION_FORCE:
		o->force = true;
		break;
	case OPTION_SPEED:
		parse_size("--speed", optarg, &o->speed, err);
		break;
	}
}

static int check_together(const struct verb *verb, const struct export_words *o)
{
	if (!o->from != !o->backing)
		return verb_usage(verb, "%s without %s: an increment stands on an earlier export",
				  o->from ? "--from" : "--backing",
				  o->from ? "--backing" : "--from");
	if (o->from && o->format == IMAGE_RAW)
		return verb_usage(verb, "--format raw: an increment is a qcow2 file, expected "
				  "qcow2");
	return 0;
}

static int run_export(const struct verb *verb, int argc, char **argv)
{
	static const struct option rows[] = {
		OFFLINE_JSON_ROW,
		{ "from", required_argument, NULL, OPTION_FROM },
		{ "to", required_argument, NULL, OPTION_TO },
		{ "format", required_argument, NULL, OPTION_TARGET_FORMAT },
		{ "backing", required_argument, NULL, OPTION_BACKING },
		{ "force", no_argument, NULL, OPTION_FORCE },
		{ "speed", required_argument, NULL, OPTION_SPEED },
		{ "allow-backing", required_argument, NULL, OPTION_ALLOW_BACKING },
		{ "backing-format", required_argument, NULL, OPTION_BACKING_FORMAT },
		{},
	};
	static const struct offline_syntax syntax = { rows, take_option, 2, 2 };
	struct export_words options = { .format = IMAGE_QCOW2 };
	int ret = offline_options_read(verb, argc, argv, &syntax, &options.offline, &options);

	if (!ret)
		ret = check_together(verb, &options);
	if (!ret)
		ret = export_object(argv[optind], argv[optind + 1], &options);
	offline_options_exit(&options.offline);
	return ret;
}

const struct verb verb_export = {
	.name = "export",
	.summary = "a snapshot, or what came between two, as a file of its own",
	.usage = "[OPTION]... NAME|IMAGE FILE",
	.options =
	"  --to SNAP              the snapshot; default: the newest one of NAME, IMAGE itself\n"
	"  --from SNAP            only what was written, zeroed or discarded after this older\n"
	"                         one: an increment, a qcow2 file that stands on --backing\n"
	"  --backing FILE         with --from: the earlier export, which holds what --from does\n"
	"  --format FORMAT        of FILE, qcow2 (default) or raw\n"
	"  --force                replace FILE if it is there\n"
	"  --speed SIZE           bytes a second at most\n"
	"  --allow-backing DIR    follow backing names into DIR, too; repeatable\n"
	"  --backing-format FMT   format of backing images whose overlay does not say it\n"
	OFFLINE_JSON_HELP
	"NAME is a served chain, which goes on; IMAGE the top of one that nobody serves, whose\n"
	"layers --from and --to may name, too. Until FILE is whole it is FILE.part. Meanwhile\n"
	"nothing can be merged into the layers that are read. FILE.json beside it has a\n"
	"checksum, for qchainctl verify.\n",
	.examples = "  qchainctl export vm7 /backup/monday.qcow2 --to monday\n"
		    "  qchainctl export vm7 /backup/tuesday.qcow2 --from monday --to tuesday \\\n"
		    "      --backing /backup/monday.qcow2\n"
		    "  qchainctl export vm7 /backup/vm7.raw --format raw --speed 200M\n"
		    "  qchainctl export vg0/vm-1.qcow2 ./vm-1-copy.qcow2\n",
	.run = run_export,
};
