// SPDX-License-Identifier: GPL-2.0-or-later
/* qchainctl delete: a snapshot goes, the cheaper way, served or not. */
#include "delete.h"

#include <errno.h>
#include <qchain/parse.h>
#include <stdlib.h>
#include <string.h>

enum delete_option {
	OPTION_COMMIT = 'c',
	OPTION_STREAM = 's',
	OPTION_KEEP = 'k',
	OPTION_WIPE = 'w',
	OPTION_SPEED = 'r',
	OPTION_UNSHARED = 'S',
	OPTION_AS_JSON = 'j',
};

static const struct option long_options[] = {
	{ "commit", no_argument, NULL, OPTION_COMMIT },
	{ "stream", no_argument, NULL, OPTION_STREAM },
	{ "keep", no_argument, NULL, OPTION_KEEP },
	{ "wipe", no_argument, NULL, OPTION_WIPE },
	{ "speed", required_argument, NULL, OPTION_SPEED },
	{ "assume-unshared", no_argument, NULL, OPTION_UNSHARED },
	{ "json", no_argument, NULL, OPTION_AS_JSON },
	{ NULL },
};

static const char *way_name(enum direction way)
{
	static const char *const names[] = {
		[DIRECTION_NONE] = "none", [DIRECTION_COMMIT] = "commit",
		[DIRECTION_STREAM] = "stream",
	};

	return names[way];
}

/* ---- what is told -------------------------------------------------------------------- */

/* Before it begins: both costs, and which way. */
static void print_plan(const struct deletion *d)
{
	const struct family_member *members = d->images.family.members;
	char down[32], up[32];

	if (d->way == DIRECTION_NONE || d->merged)
		return;
	printf("%s: commit would move %s down into %s, stream %s up into %s: %s%s\n",
	       d->images.name, print_size(d->cost.commit.bytes, down), members[d->member].path,
	       print_size(d->cost.stream.bytes, up), members[d->above].path, way_name(d->way),
	       d->wanted ? ", as asked for" : "");
	fflush(stdout);
}

/* Of Proxmox VE, what has taken the data takes the name, too. */
static bool renames(const struct deletion *d)
{
	return d->way == DIRECTION_COMMIT && d->images.record && d->images.record->volume[0];
}

static void print_deleted(const struct deletion *d)
{
	char size[32];

	printf("%s: snapshot %s is deleted, %s moved", d->images.name, d->snap,
	       d->moved ? print_size(d->moved, size) : "nothing had to be");
	printf("; %s %s\n", d->gone, !d->keep ? renames(d) ?
	       "is removed, the snapshot's LV has its name now" : "is removed" :
	       d->way == DIRECTION_COMMIT ? "is kept, without its header" : "is kept");
	if (d->retire.wiped)
		printf("%s of it zeroed\n", print_size(d->retire.wiped, size));
}

static void print_deleted_json(const struct deletion *d)
{
	json_object *object = json_object_new_object();

	json_add_string(object, "name", d->images.name);
	json_add_string(object, "snapshot", d->snap);
	json_add_string(object, "way", way_name(d->way));
	json_add_u64(object, "commit-bytes", d->cost.commit.bytes);
	json_add_u64(object, "stream-bytes", d->cost.stream.bytes);
	json_add_u64(object, "moved", d->moved);
	json_add_u64(object, "wiped", d->retire.wiped);
	json_add_string(object, "file", d->gone);
	json_add_bool(object, "removed", !d->keep);
	print_json(object);
}

/* ---- the verb -------------------------------------------------------------------------- */

static int delete_snapshot(struct deletion *d, bool json)
{
	struct qc_err err = { 0 };

	if (delete_whole(d, json ? NULL : print_plan, &err))
		return print_error(&err);
	if (json)
		print_deleted_json(d);
	else
		print_deleted(d);
	return CTL_DONE;
}

static int take_option(struct deletion *d, int c, bool *json, struct qc_err *err)
{
	enum direction way = c == OPTION_COMMIT ? DIRECTION_COMMIT : DIRECTION_STREAM;

	*json |= c == OPTION_AS_JSON;
	d->keep |= c == OPTION_KEEP;
	d->wipe |= c == OPTION_WIPE;
	d->assume_unshared |= c == OPTION_UNSHARED;
	if (c == OPTION_SPEED)
		return parse_size("--speed", optarg, &d->speed, err);
	if (c != OPTION_COMMIT && c != OPTION_STREAM)
		return 0;
	if (d->wanted && d->wanted != way)
		return qc_err_set(err, -EINVAL, "--commit and --stream: one of the two");
	d->wanted = way;
	return 0;
}

static int delete_run(const struct verb *verb, int argc, char **argv)
{
	struct deletion d = { .images = { .dir.lock_fd = -1, .beside = true } };
	struct qc_err err = { 0 };
	bool json = false;
	int c, status, ret = 0;

	while (!ret && (c = verb_option(verb, argc, argv, long_options)) != -1) {
		if (c == '?')
			return verb_status(verb);
		ret = take_option(&d, c, &json, &err);
	}
	if (ret)
		return verb_usage(verb, "%s", err.msg);
	status = device_images_arguments(&d.images, verb, argc, argv, &d.snap);
	if (status)
		return status;
	if (chain_name_check(d.images.name, &err) || record_check_snapshot_name(d.snap, &err))
		return verb_usage(verb, "%s", err.msg);
	return delete_snapshot(&d, json);
}

const struct verb verb_delete = {
	.name = "delete",
	.summary = "a snapshot goes; the device and all others stay as they are",
	.usage = "NAME SNAP [VG|DIR] [OPTION]...",
	.options =
		"  --commit           what was written since the snapshot goes down into it\n"
		"  --stream           what the snapshot keeps goes up; default: whichever moves\n"
		"                     fewer bytes, and has the room\n"
		"  --keep             the image that is no layer any more stays\n"
		"  --wipe             what was ever written to it is zeroed\n"
		"  --speed SIZE       bytes a second at most\n"
		"  --assume-unshared  nothing else stands on it although not every image around\n"
		"                     could be looked at\n"
		"  --json             one object: name, snapshot, way (commit, stream or none),\n"
		"                     commit-bytes, stream-bytes, moved, wiped, file, removed\n"
		"\n"
		"NAME is served or not; VG or DIR says where its images are, when they are files\n"
		"that nobody serves. The newest snapshot of a device in use that goes by commit\n"
		"becomes the active layer; its own image is removed (no --keep, --wipe).\n"
		"Merges of other layers may run beside it: other deletions, say.\n"
		"A commit that has begun cannot be undone: SNAP is no restore point any\n"
		"more. Interrupted at any time, the same command goes on. A volume of Proxmox VE\n"
		"keeps its naming; when it is not served, NAME is its own name, with its VG.\n",
	.examples =
		"  qchainctl delete vm7 before-upgrade\n"
		"  qchainctl delete vm-103-disk-0.qcow2 monday pve\n"
		"  qchainctl delete vm7 monday --wipe --speed 200M\n"
		"  qchainctl delete web nightly /srv/web --stream\n",
	.run = delete_run,
};
