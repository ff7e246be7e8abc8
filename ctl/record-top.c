// SPDX-License-Identifier: GPL-2.0-or-later
/* Which image `up` may serve as the top of a device (rule D1). */
#include "overlay.h"
#include "proxmox.h"
#include "revert-record.h"

#include <errno.h>
#include <qchain/overlays.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/*
 * Three things say that an image is not the top: a record, the name that Proxmox
 * VE gives to its snapshots, and the header of an image that stands on it. The
 * last can only be seen of what is active: the first time, before there is a
 * record, the other LVs of the VG are activated for a look. From then on the
 * record knows, and only those that are active anyway are looked at.
 */

/* ---- choosing ------------------------------------------------------------------------ */

static int no_record(const char *name, const char *where, struct qc_err *err)
{
	if (*where)
		return qc_err_set(err, -ENOENT, "%s has no record of a device of this name, "
				  "expected its TOP: qchainctl up %s TOP", where, name);
	return qc_err_set(err, -ENOENT, "was not served before, or its images are files; expected "
			  "its TOP, or the directory, too: qchainctl up %s TOP", name);
}

static int read_again(struct record_top *top, struct qc_err *err)
{
	char where[4096];

	snprintf(where, sizeof(where), "%s", top->place.vg[0] ? top->place.vg : top->place.dir);
	record_place_exit(&top->place);
	return record_place_open(where, &top->place, err);
}

/* A revert that was killed: which is the top? The place is read again then. */
static int settle(struct record_top *top, const char *name, struct qc_err *err)
{
	struct device_record *record = record_place_find(&top->place, name);
	int ret;

	if (!record || !record->revert.overlay[0])
		return 0;
	ret = revert_settle(&top->place, record, NULL, err);
	return ret ? ret : read_again(top, err);
}

/* No TOP was given: the record says it. */
static int top_from_record(struct record_top *top, const char *name, const char *where,
			   struct qc_err *err)
{
	struct device_record *record;
	int ret = *where ? record_place_open(where, &top->place, err) :
			   record_place_search(name, &top->place, err);

	if (ret)
		return ret == -ENOENT && !*where ? no_record(name, where, err) : ret;
	top->has_place = true;
	ret = settle(top, name, err);
	if (ret)
		return ret;
	record = record_place_find(&top->place, name);
	if (!record)
		return no_record(name, where, err);
	snprintf(top->image, sizeof(top->image), "%s", record->top);
	ret = proxmox_rename(&top->place, record, err);
	return ret ? ret : record_place_path(&top->place, top->image, top->path, sizeof(top->path),
					     err);
}

/* An interrupted revert, and then names: what @top->path leads to may be another LV now. */
static int settle_path(struct record_top *top, const char *name, struct qc_err *err)
{
	struct device_record *record;
	int ret = settle(top, name, err);

	record = ret ? NULL : record_place_find(&top->place, name);
	if (!record || !record->volume[0])
		return ret;
	snprintf(top->image, sizeof(top->image), "%s", record->top);
	ret = proxmox_rename(&top->place, record, err);
	return ret ? ret : record_place_path(&top->place, top->image, top->path, sizeof(top->path),
					     err);
}

static int top_from_path(struct record_top *top, const char *name, struct qc_err *err)
{
	int ret = proxmox_settle_path(top->path, name, err);

	if (!ret)
		ret = record_place_of(top->path, &top->place, top->image, err);
	top->has_place = ret == 0;
	if (!ret)
		ret = settle_path(top, name, err);
	return ret == -EOPNOTSUPP ? 0 : ret;
}

/* "snap_X_S.qcow2" where X.qcow2 is there: Proxmox VE's snapshot S of X. */
static int refuse_foreign(const struct record_place *place, const char *image,
			  struct qc_err *err)
{
	const struct lvm_lv *lv = record_place_lv(place, image);
	size_t len;
	char name[128];

	if (!lv || !record_is_foreign(lv) || strncmp(lv->name, "snap_", 5))
		return 0;
	for (u32 i = 0; i < place->nr_lvs; i++) {
		snprintf(name, sizeof(name), "%s", place->lvs[i].name);
		len = strlen(name);
		if (len <= 6 || strcmp(name + len - 6, ".qcow2"))
			continue;
		name[len - 6] = '_';
		if (!strncmp(lv->name + 5, name, len - 5))
			return qc_err_set(err, -EBUSY, "%s/%s: is a snapshot of Proxmox VE, its "
					  "volume is %s/%s; serve that one, or this with "
					  "--read-only", lv->vg, lv->name, lv->vg,
					  place->lvs[i].name);
	}
	return 0;
}

static int check_record(const struct record_top *top, const char *name, struct qc_err *err)
{
	int ret = record_refuse(top->place.records, top->place.nr_records, top->image, top->path,
				name, err);

	return ret ? ret : refuse_foreign(&top->place, top->image, err);
}

int record_top_choose(struct record_top *top, const char *name, const char *where, bool writes,
		      struct qc_err *err)
{
	int ret = top->path[0] ? top_from_path(top, name, err) :
				 top_from_record(top, name, where, err);

	if (ret || !writes || !top->has_place)
		return ret;
	return check_record(top, name, err);
}

/* ---- does something stand on it? ------------------------------------------------------- */

static bool is_new(const struct lvm_lv *lv)
{
	return strstr(lv->tags, "qchain.new=") != NULL;
}

static const char *dead_name(const struct record_place *place, const struct record_dead *dead)
{
	const struct lvm_lv *lv = record_place_lv(place, dead->image);

	return lv ? lv->name : dead->image;
}

/* Names that are no overlays, yet or any more, or raw; malloc'ed, they belong to the place. */
static const char **unfinished(const struct record_place *place)
{
	u32 most = place->nr_lvs + 2 * place->nr_records + 1, n = 0;
	const char **names;

	for (u32 i = 0; i < place->nr_records; i++)
		most += place->records[i].nr_dead;
	names = calloc(most, sizeof(*names));

	for (u32 i = 0; names && i < place->nr_lvs; i++)
		if (is_new(&place->lvs[i]) || record_is_raw_top(place, place->lvs[i].uuid))
			names[n++] = place->lvs[i].name;
	for (u32 i = 0; names && i < place->nr_records; i++) {
		if (place->records[i].pending[0])
			names[n++] = place->records[i].pending;
		if (place->records[i].raw)
			names[n++] = place->records[i].top;
		for (u32 k = 0; k < place->records[i].nr_dead; k++)
			names[n++] = dead_name(place, &place->records[i].dead[k]);
	}
	return names;
}

/* The place was read before the chain was activated, which stays so. */
static bool is_active_now(const struct lvm_lv *lv)
{
	char path[300];

	snprintf(path, sizeof(path), "/dev/%s/%s", lv->vg, lv->name);
	return lv->active || access(path, F_OK) == 0;
}

/* Make what is not active so for the look; what cannot be is remembered. */
static void activate_others(struct record_place *place, struct overlay_search *search)
{
	for (u32 i = 0; i < place->nr_lvs; i++) {
		struct lvm_lv *lv = &place->lvs[i];

		if (is_active_now(lv) || is_new(lv))
			continue;
		if (lvm_activate(lv->vg, lv->name, true, NULL) == 0) {
			lv->open = true; /* marks that it goes back */
			continue;
		}
		if (!search->unknown[0])
			snprintf(search->unknown, sizeof(search->unknown), "%s/%s", lv->vg,
				 lv->name);
		search->why = -ENODEV;
	}
}

static void deactivate_others(struct record_place *place)
{
	for (u32 i = 0; i < place->nr_lvs; i++)
		if (!place->lvs[i].active && place->lvs[i].open)
			lvm_activate(place->lvs[i].vg, place->lvs[i].name, false, NULL);
}

static int judge(const struct record_top *top, const struct overlay_search *search, bool known,
		 struct qc_err *err)
{
	if (search->found[0])
		return qc_err_set(err, -EBUSY, "%s: is the backing image of %s, which would be "
				  "damaged; serve that one, or this with --read-only", top->path,
				  search->found);
	if (known || !search->unknown[0])
		return 0;
	return qc_err_set(err, -EBUSY, "%s: cannot be looked at (%s), and may stand on %s; make it "
			  "readable, or say --assume-unshared if you know that nothing does",
			  search->unknown, strerror(-search->why), top->path);
}

/* @known: a record says that it is the top */
static int check_standing(struct record_top *top, bool known, bool assume_unshared,
			  struct qc_err *err)
{
	struct overlay_search *search = calloc(1, sizeof(*search));
	const char **skip = unfinished(&top->place);
	int ret = -ENOMEM;

	if (search && skip)
		ret = image_ident_of(top->path, &search->below);
	if (ret) {
		qc_err_set(err, ret, "%s: not found (%s)", top->path, strerror(-ret));
	} else {
		search->skip = skip;
		if (!known)
			activate_others(&top->place, search);
		overlay_search_dir(search, top->place.dir);
		if (!known)
			deactivate_others(&top->place);
		ret = judge(top, search, known || assume_unshared, err);
	}
	free(search);
	free(skip);
	return ret;
}

/* ---- claiming ------------------------------------------------------------------------------ */

static int make_record(struct record_top *top, const char *name, struct qc_err *err)
{
	const struct lvm_lv *lv = record_place_lv(&top->place, top->image);
	struct device_record record = { .sequence = 0 };
	int ret;

	if (lv && record_is_foreign(lv))
		return 0;
	snprintf(record.name, sizeof(record.name), "%s", name);
	device_record_set_top(&record, top->image, top->raw);
	ret = record_place_save(&top->place, &record, err);
	top->made = ret == 0;
	return ret;
}

/*
 * An overlay that was made on the top while the device was down, by qchainctl create
 * or by another program, is the top from now on. Anything else is another disk.
 */
static int move_record(struct record_top *top, struct device_record *record, struct qc_err *err)
{
	struct image_ident before, below;
	char path[4096];
	int ret = record_place_path(&top->place, record->top, path, sizeof(path), err);

	if (ret)
		return ret;
	if (top->raw || overlay_backing(top->path, &below) != 1 || image_ident_of(path, &before) ||
	    !image_ident_same(&below, &before))
		return qc_err_set(err, -EBUSY, "is the name of a device whose top is %s, and %s "
				  "is no overlay of it; take another name, or serve it with "
				  "qchainctl up %s %s", path, top->path, record->name, path);
	snprintf(top->before, sizeof(top->before), "%s", record->top);
	top->before_raw = record->raw;
	device_record_set_top(record, top->image, false);
	return record_place_save(&top->place, record, err);
}

int record_top_claim(struct record_top *top, const char *name, bool assume_unshared,
		     struct qc_err *err)
{
	struct device_record *record;
	bool known;
	int ret;

	if (!top->has_place)
		return 0;
	record = record_place_find(&top->place, name);
	known = record && !strcmp(record->top, top->image);
	ret = record ? overlay_clean(&top->place, record, err) : 0;
	if (!ret)
		ret = check_standing(top, known, assume_unshared, err);
	if (ret || known)
		return ret;
	return record ? move_record(top, record, err) : make_record(top, name, err);
}

/* Its tags are not those that were read before. */
static void put_back(struct record_top *top, const char *name)
{
	struct device_record *record;
	struct record_place place;
	char image[RECORD_IMAGE_BYTES];
	struct qc_err err = {};

	if (record_place_of(top->path, &place, image, &err) == 0) {
		record = record_place_find(&place, name);
		if (top->made) {
			record_place_remove(&place, name, &err);
		} else if (record) {
			device_record_set_top(record, top->before, top->before_raw);
			record_place_save(&place, record, &err);
		}
	}
	record_place_exit(&place);
	if (err.code)
		print_error(&err);
}

void record_top_unclaim(struct record_top *top, const char *name)
{
	if (top->made || top->before[0])
		put_back(top, name);
	top->made = false;
	top->before[0] = '\0';
}

void record_top_exit(struct record_top *top)
{
	record_place_exit(&top->place);
}
