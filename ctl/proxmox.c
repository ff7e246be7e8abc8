// SPDX-License-Identifier: GPL-2.0-or-later
/* Names of Proxmox VE: records from names, and LVs called as a record says. */
#include "proxmox.h"

#include "lv-names.h"
#include "manager.h"

#include <ctype.h>
#include <errno.h>
#include <qchain/crash-point.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define ENDING ".qcow2"
#define MAX_LV_NAME 127u
/* As Proxmox VE has it: a letter first, two characters at least. */
#define MAX_PROXMOX_SNAPSHOT 40u

/* ---- names ------------------------------------------------------------------------- */

static size_t stem_length(const char *name)
{
	size_t len = strlen(name), ending = strlen(ENDING);

	return len > ending && !strcmp(name + len - ending, ENDING) ? len - ending : 0;
}

bool proxmox_is_volume(const struct lvm_lv *lv)
{
	return record_is_foreign(lv) && !strncmp(lv->name, "vm-", 3) && stem_length(lv->name);
}

bool proxmox_owns(const char *path)
{
	struct record_place *place;
	const struct lvm_lv *lv = record_lv_of(path, &place);
	bool result = lv && proxmox_is_volume(lv);

	record_place_free(place);
	return result;
}

void proxmox_snapshot_lv(const char *volume, const char *snap, char *name)
{
	snprintf(name, RECORD_IMAGE_BYTES, "snap_%.*s_%s" ENDING, (int)stem_length(volume), volume,
		 snap);
}

void proxmox_interim_lv(const char *volume, char *name)
{
	u32 number = 0;

	getrandom(&number, sizeof(number), 0);
	/* the number first: node names are cut */
	snprintf(name, RECORD_IMAGE_BYTES, "qchain.%08x_%.80s", number, volume);
}

void proxmox_tags(const char *volume, char *tags, size_t bytes)
{
	int vmid = strspn(volume + 3, "0123456789");

	snprintf(tags, bytes, "pve-vm-%.*s,pve-%s", vmid, volume + 3, volume);
}

bool proxmox_snapshot_of(const char *volume, const char *name, char *snap)
{
	char prefix[RECORD_IMAGE_BYTES];
	size_t len = stem_length(name), n;

	n = snprintf(prefix, sizeof(prefix), "snap_%.*s_", (int)stem_length(volume), volume);
	if (len <= n || strncmp(name, prefix, n) || len - n > QC_MAX_SNAPSHOT_NAME)
		return false;
	snprintf(snap, QC_MAX_SNAPSHOT_NAME + 1, "%.*s", (int)(len - n), name + n);
	return record_check_snapshot_name(snap, NULL) == 0;
}

int proxmox_check_snapshot(const struct record_place *place, const char *volume, const char *snap,
			   struct qc_err *err)
{
	char name[RECORD_IMAGE_BYTES];
	size_t len = strlen(snap), good = 1;

	while (isalnum((unsigned char)snap[good]) || (snap[good] && strchr("_-", snap[good])))
		good++;
	if (!isalpha((unsigned char)*snap) || len < 2 || len > MAX_PROXMOX_SNAPSHOT || good < len ||
	    !strcmp(snap, "current"))
		return qc_err_set(err, -EINVAL, "%s: %s belongs to Proxmox VE, which would not "
				  "take that for the name of a snapshot; expected a letter, then 1 "
				  "to %u of a-z A-Z 0-9 _ -, and not \"current\"", snap, volume,
				  MAX_PROXMOX_SNAPSHOT - 1);
	proxmox_snapshot_lv(volume, snap, name);
	if (strlen(name) > MAX_LV_NAME)
		return qc_err_set(err, -ENAMETOOLONG, "%s: too long for the name of an LV with it "
				  "(%s), at most %u", snap, name, MAX_LV_NAME);
	if (record_place_lv(place, name))
		return qc_err_set(err, -EEXIST, "%s/%s: is there already, and would be the "
				  "snapshot %s; expected another name", place->vg, name, snap);
	return 0;
}

/* ---- a record from names ------------------------------------------------------------- */

/* What the header of @lv names, in its VG; NULL: nothing there, or it cannot be read. */
static const struct lvm_lv *lv_below(const struct record_place *place, const struct lvm_lv *lv)
{
	const struct lvm_lv *below = NULL;
	char path[300], vg[128], name[128], *backing;

	snprintf(path, sizeof(path), "%s/%s", place->dir, lv->name);
	backing = header_backing_name(path);
	if (backing && !strchr(backing, '/'))
		below = record_place_lv(place, backing);
	else if (backing && lv_path_split(backing, vg, name) && !strcmp(vg, place->vg))
		below = record_place_lv(place, name);
	free(backing);
	return below;
}

/* The oldest first, as records have them. */
static int add_snapshots(const struct record_place *place, const struct lvm_lv *top,
			 struct device_record *record)
{
	const struct lvm_lv **below = calloc(place->nr_lvs, sizeof(*below));
	const struct lvm_lv *at = top;
	char snap[QC_MAX_SNAPSHOT_NAME + 1];
	u32 nr = 0;
	int ret = below ? 0 : -ENOMEM;

	/* a loop of backing names ends here, too */
	while (!ret && nr < place->nr_lvs && (at = lv_below(place, at)))
		below[nr++] = at;
	while (!ret && nr--)
		if (proxmox_snapshot_of(record->volume, below[nr]->name, snap))
			ret = device_record_add(record, snap, below[nr]->uuid);
	free(below);
	return ret;
}

static int append(struct record_place *place, const struct device_record *record)
{
	struct device_record *larger = realloc(place->records,
					       (place->nr_records + 1) * sizeof(*larger));

	if (!larger)
		return -ENOMEM;
	place->records = larger;
	larger[place->nr_records++] = *record;
	return 0;
}

static int refuse_claimed(const struct record_place *place, const struct device_record *record,
			  struct qc_err *err)
{
	return qc_err_set(err, -EBUSY, "%s/%s: is half renamed, by a verb on device %s that was "
			  "interrupted or still works; wait, or first qchainctl up %s %s/%s",
			  place->vg, record->volume, record->name, record->name, place->vg,
			  record->volume);
}

/* The record of a verb that works on @volume, or was interrupted; not by @device: -EBUSY. */
static int find_claim(const struct record_place *place, const char *device, const char *volume,
		      struct device_record **result, struct qc_err *err)
{
	struct device_record *record;

	*result = NULL;
	for (u32 i = 0; i < place->nr_records; i++) {
		record = &place->records[i];
		if (strcmp(record->volume, volume))
			continue;
		if (strcmp(record->name, device))
			return refuse_claimed(place, record, err);
		*result = record;
	}
	return 0;
}

static int adopt(struct record_place *place, const char *device, const struct lvm_lv *top,
		 struct device_record **result, struct qc_err *err)
{
	struct device_record record = { .sequence = 0 };
	int ret = find_claim(place, device, top->name, result, err);

	if (ret || *result)
		return ret;
	snprintf(record.name, sizeof(record.name), "%s", device);
	snprintf(record.top, sizeof(record.top), "%s", top->uuid);
	snprintf(record.volume, sizeof(record.volume), "%s", top->name);
	ret = add_snapshots(place, top, &record);
	if (!ret)
		ret = append(place, &record);
	if (ret) {
		device_record_exit(&record);
		return qc_err_set(err, ret, "%s: out of memory", device);
	}
	*result = &place->records[place->nr_records - 1];
	return 0;
}

int proxmox_find_record(struct record_place *place, const char *device, const char *image,
			struct device_record **result, struct qc_err *err)
{
	const struct lvm_lv *top = record_place_lv(place, image);

	*result = record_place_find(place, device);
	if (*result || !top || !proxmox_is_volume(top))
		return 0;
	return adopt(place, device, top, result, err);
}

int proxmox_bury_merged(const struct record_place *place, struct device_record *record,
			const struct record_job *job)
{
	const struct lvm_lv *at = record_place_lv(place, job->top);
	int ret = 0;

	for (u32 i = 0; i < place->nr_lvs && at && strcmp(at->uuid, job->base) && !ret; i++) {
		ret = device_record_bury(record, at->uuid, false);
		at = lv_below(place, at);
	}
	return ret;
}

/* ---- LVs called as the record says ------------------------------------------------------ */

bool proxmox_wanted_lv(const struct device_record *record, const struct lvm_lv *lv, char *name)
{
	const struct record_snapshot *held = device_record_by_image(record, lv->uuid);

	if (!strcmp(record->top, lv->uuid))
		snprintf(name, RECORD_IMAGE_BYTES, "%s", record->volume);
	else if (held)
		proxmox_snapshot_lv(record->volume, held->name, name);
	else
		return false;
	return true;
}

static bool is_misnamed(const struct device_record *record, const struct lvm_lv *lv)
{
	char name[RECORD_IMAGE_BYTES];

	return proxmox_wanted_lv(record, lv, name) && strcmp(lv->name, name);
}

static bool is_listed(json_object *list, const char *text)
{
	for (u32 i = 0; i < json_object_array_length(list); i++)
		if (!strcmp(json_object_get_string(json_object_array_get_idx(list, i)), text))
			return true;
	return false;
}

void proxmox_list_names(const struct record_place *place, const struct device_record *record,
			json_object *list)
{
	char before[300], after[300], name[RECORD_IMAGE_BYTES];

	for (u32 i = 0; list && i < place->nr_lvs; i++) {
		if (!proxmox_wanted_lv(record, &place->lvs[i], name))
			continue;
		snprintf(before, sizeof(before), "%s/%s", place->vg, place->lvs[i].name);
		snprintf(after, sizeof(after), "%s/%.127s", place->vg, name);
		if (is_listed(list, before) && !is_listed(list, after))
			json_object_array_add(list, json_object_new_string(after));
	}
}

static int rename_lv(struct lvm_lv *lv, const char *name, struct qc_err *err)
{
	int ret = lvm_rename(lv->vg, lv->name, name, err);

	if (ret)
		return ret;
	snprintf(lv->name, sizeof(lv->name), "%.127s", name);
	crash_point("proxmox.renamed");
	return 0;
}

static int refuse_occupied(const struct lvm_lv *holder, const struct device_record *record,
			   struct qc_err *err)
{
	return qc_err_set(err, -EEXIST, "%s/%s: has the name that an image of device %s is to get, "
			  "and is none of it; rename or remove it, and give the command again",
			  holder->vg, holder->name, record->name);
}

/* @done: not yet, where the name is that of one that will be renamed itself */
static int rename_one(const struct record_place *place, const struct device_record *record,
		      struct lvm_lv *lv, bool *done, struct qc_err *err)
{
	char name[RECORD_IMAGE_BYTES], aside[RECORD_IMAGE_BYTES];
	struct lvm_lv *holder;
	int ret = 0;

	proxmox_wanted_lv(record, lv, name);
	holder = (struct lvm_lv *)record_place_lv(place, name);
	*done = !holder || !is_misnamed(record, holder);
	if (!*done)
		return 0;
	if (holder && !device_record_is_dead(record, holder->uuid))
		return refuse_occupied(holder, record, err);
	if (holder) {
		proxmox_interim_lv(record->volume, aside);
		ret = rename_lv(holder, aside, err);
	}
	return ret ? ret : rename_lv(lv, name, err);
}

int proxmox_rename(struct record_place *place, struct device_record *record, struct qc_err *err)
{
	bool done = true, one;
	int ret = 0;

	while (record->volume[0] && done && !ret) {
		done = false;
		for (u32 i = 0; i < place->nr_lvs && !ret; i++) {
			if (!is_misnamed(record, &place->lvs[i]))
				continue;
			ret = rename_one(place, record, &place->lvs[i], &one, err);
			done |= one;
		}
	}
	return ret;
}

static bool is_pending(const struct device_record *record)
{
	for (u32 i = 0; i < record->nr_snapshots; i++)
		if (record->snapshots[i].from[0])
			return true;
	return record->nr_jobs || record->nr_dead || record->revert.overlay[0];
}

/* What tags there are is looked at again: they have changed since @place was read. */
static int forget_record(const struct record_place *place, const char *device, struct qc_err *err)
{
	struct record_place *now = calloc(1, sizeof(*now));
	int ret = now ? record_place_open(place->vg, now, err) :
			qc_err_set(err, -ENOMEM, "%s: out of memory", device);

	if (!ret)
		ret = record_place_remove(now, device, err);
	if (now)
		record_place_exit(now);
	free(now);
	return ret;
}

int proxmox_release(const struct record_place *place, struct device_record *record,
		    struct qc_err *err)
{
	int ret;

	if (!record->volume[0] || !record->sequence || is_pending(record))
		return 0;
	crash_point("proxmox.unreleased");
	ret = forget_record(place, record->name, err);
	crash_point("proxmox.released");
	if (!ret)
		record->sequence = 0;
	return ret;
}

int proxmox_settle_path(const char *path, const char *device, struct qc_err *err)
{
	struct device_record *record = NULL;
	struct record_place *place;
	char vg[128], lv[128];
	int ret;

	if (!lv_path_split(path, vg, lv) || strncmp(lv, "vm-", 3))
		return 0;
	place = calloc(1, sizeof(*place));
	if (!place)
		return qc_err_set(err, -ENOMEM, "%s: out of memory", path);
	ret = record_place_open(vg, place, err);
	if (!ret)
		ret = find_claim(place, device, lv, &record, err);
	if (!ret && record)
		ret = proxmox_rename(place, record, err);
	record_place_exit(place);
	free(place);
	return ret;
}
