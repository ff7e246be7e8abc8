// SPDX-License-Identifier: GPL-2.0-or-later
/* qchainctl revert: a device holds again what it held at a snapshot, served or not. */
#include "revert.h"

#include "image/offline.h"

#include <errno.h>
#include <qchain/parse.h>
#include <string.h>

enum revert_option {
	OPTION_KEEP = 'k',
	OPTION_DROP = 'd',
	OPTION_FORCE = 'F',
	OPTION_WIPE = 'w',
	OPTION_SIZE = 's',
	OPTION_SPEED = 'r',
	OPTION_UNSHARED = 'S',
	OPTION_AS_JSON = 'j',
};

static const struct option long_options[] = {
	{ "keep", required_argument, NULL, OPTION_KEEP },
	{ "drop-snapshots", no_argument, NULL, OPTION_DROP },
	{ "force", no_argument, NULL, OPTION_FORCE },
	{ "wipe", no_argument, NULL, OPTION_WIPE },
	{ "size", required_argument, NULL, OPTION_SIZE },
	{ "speed", required_argument, NULL, OPTION_SPEED },
	{ "assume-unshared", no_argument, NULL, OPTION_UNSHARED },
	{ "json", no_argument, NULL, OPTION_AS_JSON },
	{ NULL },
};

static void print_reverted(const struct revert *r)
{
	char size[32];

	printf("%s: holds what snapshot %s holds, writes go to %s; ", r->images.name, r->snap,
	       r->overlay.path);
	if (r->keep)
		printf("what it held before is snapshot %s\n", r->keep);
	else
		printf("%u image%s removed\n", r->retire.nr, r->retire.nr == 1 ? "" : "s");
	if (r->retire.wiped)
		printf("%s zeroed before\n", print_size(r->retire.wiped, size));
}

static void print_reverted_json(const struct revert *r)
{
	json_object *object = json_object_new_object();

	json_add_string(object, "name", r->images.name);
	json_add_string(object, "snapshot", r->snap);
	json_add_string(object, "top", r->overlay.path);
	json_object_object_add(object, "kept", r->keep ? json_object_new_string(r->keep) : NULL);
	json_add_u64(object, "removed", r->retire.nr);
	json_add_u64(object, "wiped", r->retire.wiped);
	print_json(object);
}

/* Images that cannot be removed now are no failure of the revert: they are named. */
static int revert_device(struct revert *r, bool json)
{
	struct qc_err err = { 0 }, later = { 0 };
	int ret = revert_open(r, &err);

	if (!ret)
		ret = revert_prepare(r, &err);
	if (!ret)
		ret = revert_switch(r, &err);
	if (!ret && revert_finish(r, &later))
		print_error(&later);
	later.code = 0;
	if (revert_close(r, ret != 0, ret ? &later : &err) && !ret)
		ret = err.code;
	if (later.code)
		print_error(&later);
	if (ret)
		return print_error(&err);
	if (json)
		print_reverted_json(r);
	else
		print_reverted(r);
	return CTL_DONE;
}

static int take_option(struct revert *r, int c, bool *json, struct qc_err *err)
{
	*json |= c == OPTION_AS_JSON;
	r->drop_snapshots |= c == OPTION_DROP;
	r->force |= c == OPTION_FORCE;
	r->wipe |= c == OPTION_WIPE;
	r->assume_unshared |= c == OPTION_UNSHARED;
	if (c == OPTION_SIZE)
		return parse_size("--size", optarg, &r->lv_bytes, err);
	if (c == OPTION_SPEED)
		return parse_size("--speed", optarg, &r->retire.speed, err);
	if (c != OPTION_KEEP)
		return 0;
	r->keep = optarg;
	return record_check_snapshot_name(optarg, err);
}

static int check_options(const struct revert *r, struct qc_err *err)
{
	int ret = chain_name_check(r->images.name, err);

	if (!ret)
		ret = record_check_snapshot_name(r->snap, err);
	if (!ret && r->keep && (r->drop_snapshots || r->wipe))
		ret = qc_err_set(err, -EINVAL, "--keep: nothing is dropped then, expected no --%s",
				 r->wipe ? "wipe" : "drop-snapshots");
	return ret;
}

static int run_revert(const struct verb *verb, int argc, char **argv)
{
	struct revert r = { .images.dir.lock_fd = -1 };
	struct qc_err err = { 0 };
	bool json = false;
	int c, status, ret = 0;

	while (!ret && (c = verb_option(verb, argc, argv, long_options)) != -1) {
		if (c == '?')
			return verb_status(verb);
		ret = take_option(&r, c, &json, &err);
	}
	if (ret)
		return verb_usage(verb, "%s", err.msg);
	status = device_images_arguments(&r.images, verb, argc, argv, &r.snap);
	if (status)
		return status;
	if (check_options(&r, &err))
		return verb_usage(verb, "%s", err.msg);
	return revert_device(&r, json);
}

const struct verb verb_revert = {
	.name = "revert",
	.summary = "a device holds again what it held at a snapshot",
	.usage = "NAME SNAP [VG|DIR] [OPTION]...",
	.options =
		"  --keep NAME        what it holds now stays, as a snapshot called NAME, and\n"
		"                     newer snapshots with it; without: it is dropped\n"
		"  --drop-snapshots   also newer snapshots that are dropped with it\n"
		"  --force            also while the device is used: its users must not rely on\n"
		"                     what they have read before\n"
		"  --wipe             what was ever written to the dropped images is zeroed\n"
		"  --size SIZE        of the LV for what is written from now on; default: so\n"
		"                     that it can never run full\n"
		"  --speed SIZE       bytes a second that are zeroed, at most\n"
		"  --assume-unshared  nothing else stands on the dropped images although not\n"
		"                     every image around could be looked at\n"
		"  --json             one object: name, snapshot, top, kept, removed, wiped\n"
		"\n"
		"NAME is served or not; VG or DIR says where its images are, when they are files\n"
		"that nobody serves. SNAP itself stays, and can be reverted to again: writes go\n"
		"to a new overlay on it. Images on which others stand are never dropped. A volume\n"
		"of Proxmox VE keeps its naming; not served, NAME is its own name, with its VG.\n",
	.examples =
		"  qchainctl revert vm7 before-upgrade\n"
		"  qchainctl revert vm7 monday --keep failed-upgrade\n"
		"  qchainctl revert web nightly /srv/web --drop-snapshots\n",
	.run = run_revert,
};
