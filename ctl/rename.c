// SPDX-License-Identifier: GPL-2.0-or-later
/* qchainctl rename: a device gets another name, served or not. */
#include "image/offline.h"
#include "offload.h"
#include "record.h"

#include <errno.h>
#include <qchain/crash-point.h>
#include <stdlib.h>
#include <string.h>

/*
 *   record   of the device, where its images are: durable
 *   links    .device/ublkbN for udev, /dev/qchain/NAME
 *   folder   /run/qchain/NAME, in one step; the daemon's socket and log are in it
 *
 * The folder goes last: as long as it has the old name the same command, given again,
 * goes on where it was interrupted. The daemon is not told: it knows no name but that
 * of the NBD export, which stays until the next start. Its jobs go on; who waits for one
 * finds the chain by its folder, and a record by its top (job-record.c).
 */

struct renaming {
	const char *name;
	const char *new_name;
	const char *where; /* VG or directory; NULL: found by itself */
	bool json;
	struct rundir dir;
	struct served served; /* of what has a folder */
	bool has_folder;
	struct record_place place;
	struct device_record *record; /* NULL: it has none, or it is renamed already */
};

/* ---- what is there -------------------------------------------------------------------- */

static int look_at_folder(struct renaming *r, struct qc_err *err)
{
	struct qc_err missing = { 0 };
	int ret = rundir_lock(r->name, false, &r->dir, &missing);

	if (ret == -ENOENT)
		return 0;
	if (ret)
		return qc_err_set(err, ret, "%s", missing.msg);
	r->has_folder = true;
	ret = served_find(r->name, &r->served, err);
	if (!ret && r->served.state == SERVED_SILENT)
		ret = served_not_live(&r->served, err);
	if (!ret && offload_is_asked(r->served.record))
		ret = qc_err_set(err, -EBUSY, "%s: is mapped as /dev/mapper/%s, which keeps its "
				 "name; first qchainctl down %s", r->name, r->name, r->name);
	if (!ret && !r->served.record)
		ret = qc_err_set(err, -EINVAL, "%s: was not started by qchainctl, which keeps its "
				 "name; take it down, and up with qchainctl", r->name);
	return ret;
}

/* A block device that is no LV has no record, nor has a volume of Proxmox VE. */
static int look_at_record(struct renaming *r, struct qc_err *err)
{
	char image[RECORD_IMAGE_BYTES];
	int ret;

	if (r->has_folder)
		ret = record_place_of(served_top(&r->served), &r->place, image, err);
	else if (r->where)
		ret = record_place_open(r->where, &r->place, err);
	else
		ret = record_place_search(r->name, &r->place, err);
	if (ret == -EOPNOTSUPP && r->has_folder)
		return 0;
	if (ret == -ENOENT && !r->has_folder && !r->where)
		return qc_err_set(err, ret, "%s: is not served, and no VG has a record of it; "
				  "images that are files: say their directory as well", r->name);
	if (ret)
		return ret;
	r->record = record_place_find(&r->place, r->name);
	if (!r->record && !r->has_folder)
		return qc_err_set(err, -ENOENT, "%s: has no record in %s", r->name, r->place.dir);
	return 0;
}

/* ---- may it be called so? ---------------------------------------------------------------- */

/* NAME+SNAP: snapshots of it that are exposed keep the name that they were given. */
static int check_folders(const struct renaming *r, struct qc_err *err)
{
	size_t len = strlen(r->name);
	char **names;
	u32 nr;
	int ret = rundir_names(&names, &nr, err);

	for (u32 i = 0; i < nr; i++) {
		if (!ret && !strcmp(names[i], r->new_name))
			ret = qc_err_set(err, -EEXIST, "%s: a chain of this name is served, "
					 "expected another", r->new_name);
		if (!ret && !strncmp(names[i], r->name, len) && names[i][len] == '+')
			ret = qc_err_set(err, -EBUSY, "%s: its snapshot %s is exposed; first "
					 "qchainctl unexpose %s %s", r->name, names[i] + len + 1,
					 r->name, names[i] + len + 1);
		free(names[i]);
	}
	free(names);
	return ret;
}

static int name_is_taken(const struct renaming *r, const char *where, struct qc_err *err)
{
	return qc_err_set(err, -EEXIST, "%s: %s has the record of a device of this name, expected "
			  "another", r->new_name, where);
}

/* Interrupted: the new record has the same top, and the old one is to go. */
static bool is_same_device(const struct renaming *r, const struct device_record *other)
{
	char path[4096];

	if (r->record)
		return !strcmp(other->top, r->record->top) &&
		       other->sequence > r->record->sequence;
	return !record_place_path(&r->place, other->top, path, sizeof(path), NULL) &&
	       !strcmp(path, served_top(&r->served));
}

static int check_records(const struct renaming *r, struct qc_err *err)
{
	const struct device_record *other = record_place_find(&r->place, r->new_name);
	struct record_place found;
	int ret = 0;

	if (other && !is_same_device(r, other))
		return name_is_taken(r, r->place.dir, err);
	if (!r->place.vg[0] || other)
		return 0;
	if (record_place_search(r->new_name, &found, NULL) != -ENOENT)
		ret = name_is_taken(r, "a VG", err);
	record_place_exit(&found);
	return ret;
}

static int look(struct renaming *r, struct qc_err *err)
{
	int ret = look_at_folder(r, err);

	if (!ret)
		ret = look_at_record(r, err);
	if (!ret)
		ret = check_folders(r, err);
	return ret ? ret : check_records(r, err);
}

/* ---- renaming ---------------------------------------------------------------------------- */

static int rename_folder(struct renaming *r, struct qc_err *err)
{
	int ret = 0;

	if (!r->has_folder)
		return 0;
	if (r->served.dev_id >= 0)
		ret = rundir_rename_device(r->name, r->new_name, r->served.dev_id, err);
	if (!ret) {
		crash_point("rename.linked");
		ret = rundir_rename(&r->dir, r->new_name, err);
	}
	if (ret)
		return ret;
	json_object_object_add(r->served.record, "name", json_object_new_string(r->new_name));
	return rundir_save(&r->dir, r->served.record, err);
}

static int rename_all(struct renaming *r, struct qc_err *err)
{
	int ret = look(r, err);

	if (!ret && r->record)
		ret = record_place_rename(&r->place, r->record, r->new_name, err);
	if (ret)
		return ret;
	crash_point("rename.recorded");
	return rename_folder(r, err);
}

/* ---- the verb ---------------------------------------------------------------------------- */

static void print_renamed(const struct renaming *r)
{
	json_object *object;

	if (!r->json) {
		printf("%s: is called %s now\n", r->name, r->new_name);
		return;
	}
	object = json_object_new_object();
	json_add_string(object, "name", r->new_name);
	json_add_string(object, "previous-name", r->name);
	print_json(object);
}

static int rename_run(const struct verb *verb, int argc, char **argv)
{
	struct renaming r = { .dir.lock_fd = -1, .served.dev_id = -1 };
	struct qc_err err = { 0 };
	int ret, status = served_arguments(verb, argc, argv, 2, 3, &r.json);

	if (status)
		return status;
	r.name = argv[optind];
	r.new_name = argv[optind + 1];
	r.where = optind + 2 < argc ? argv[optind + 2] : NULL;
	if (chain_name_check(r.name, &err) || chain_name_check(r.new_name, &err))
		return verb_usage(verb, "%s", err.msg);
	ret = rename_all(&r, &err);
	if (!ret)
		print_renamed(&r);
	record_place_exit(&r.place);
	served_exit(&r.served);
	rundir_unlock(&r.dir);
	return ret ? print_error(&err) : CTL_DONE;
}

const struct verb verb_rename = {
	.name = "rename",
	.summary = "another name for a device, also while it is in use",
	.usage = "NAME NEW [VG|DIR] [--json]",
	.options =
		"  --json     one object: name, previous-name\n"
		"\n"
		"The record of the device, its folder in /run/qchain and its link in /dev/qchain\n"
		"get the name NEW, which no other may have; images keep theirs. VG or DIR says\n"
		"where the images are, when they are files that nobody serves. Interrupted, the\n"
		"same command goes on. An NBD export keeps the old name until the next start.\n",
	.examples =
		"  qchainctl rename vm7 mail\n"
		"  qchainctl rename web shop /srv/web\n",
	.run = rename_run,
};
