// SPDX-License-Identifier: GPL-2.0-or-later
/* qchainctl snapshot: an overlay becomes the top of a device in use, at one instant. */
#include "snapshot.h"

#include <errno.h>
#include <qchain/parse.h>
#include <stdlib.h>
#include <string.h>

struct snapshot_options {
	bool json;
	u64 lv_bytes;
};

static const struct option long_options[] = {
	{ "size", required_argument, NULL, 's' },
	{ "json", no_argument, NULL, 'j' },
	{ NULL },
};

/* Lock to switch; what fails is undone, and what cannot be undone is told too. */
static int take(struct snapshot *s, struct qc_err *err)
{
	struct qc_err undo = { 0 };
	int ret = snapshot_open(s, err);

	if (ret)
		return ret;
	ret = snapshot_prepare(s, err);
	if (!ret)
		ret = snapshot_record(s, err);
	if (!ret)
		ret = snapshot_publish(s, err);
	if (ret && snapshot_undo(s, &undo))
		print_error(&undo);
	return ret;
}

static json_object *to_json(const struct snapshot *s)
{
	json_object *object = json_object_new_object();

	json_object_object_add(object, "name", json_object_new_string(s->name));
	json_object_object_add(object, "snapshot", json_object_new_string(s->snap));
	json_object_object_add(object, "file", json_object_new_string(s->old_top));
	json_object_object_add(object, "top", json_object_new_string(s->overlay.path));
	json_object_object_add(object, "switch-us", json_object_new_int64(s->publish_ns / 1000));
	return object;
}

static int snapshot_device(const char *name, const char *snap, const struct snapshot_options *o)
{
	struct snapshot *s = calloc(1, sizeof(*s));
	struct qc_err err = { 0 };
	int status = CTL_DONE;

	if (!s)
		return CTL_FAILED;
	s->dir.lock_fd = -1;
	s->name = name;
	s->snap = snap;
	s->lv_bytes = o->lv_bytes;
	if (take(s, &err))
		status = print_error(&err);
	else if (o->json)
		print_json(to_json(s));
	else
		printf("%s: snapshot %s is %s, writes go to %s\n", name, snap, s->old_top,
		       s->overlay.path);
	snapshot_close(s);
	free(s);
	return status;
}

static int snapshot_run(const struct verb *verb, int argc, char **argv)
{
	struct snapshot_options options = { .json = false };
	struct qc_err err = { 0 };
	int c, status;

	while ((c = verb_option(verb, argc, argv, long_options)) != -1) {
		if (c == '?')
			return verb_status(verb);
		if (c == 'j')
			options.json = true;
		else if (parse_size("--size", optarg, &options.lv_bytes, &err))
			return verb_usage(verb, "%s", err.msg);
	}
	status = verb_arguments(verb, argc, argv, 2, 2);
	if (status)
		return status;
	if (chain_name_check(argv[optind], &err) ||
	    record_check_snapshot_name(argv[optind + 1], &err))
		return verb_usage(verb, "%s", err.msg);
	return snapshot_device(argv[optind], argv[optind + 1], &options);
}

const struct verb verb_snapshot = {
	.name = "snapshot",
	.summary = "keep what a device holds now under a name, while it is in use",
	.usage = "NAME SNAP [OPTION]...",
	.options =
		"  --size SIZE     of the LV for what is written from now on; default: so that\n"
		"                  it can never run full\n"
		"  --json          one object: name, snapshot, file (the layer that holds it),\n"
		"                  top (the new active layer), switch-us\n"
		"\n"
		"A new LV of the same VG, or a new file beside the top, takes all writes from now\n"
		"on. It keeps its name for ever; qchainctl tree shows which layer holds what.\n",
	.examples =
		"  qchainctl snapshot vm7 before-upgrade\n"
		"  qchainctl snapshot vm7 monday --size 20G --json\n",
	.run = snapshot_run,
};
