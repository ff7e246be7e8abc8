// SPDX-License-Identifier: GPL-2.0-or-later
/* A device, its record, its daemon and all images around: what delete and revert look at. */
#include "device-images.h"

#include "exposed.h"

#include "follow.h"
#include "job-record.h"
#include "manager.h"
#include "overlay.h"
#include "proxmox.h"
#include "revert-record.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SEAL_TRIES 600
#define SEAL_PAUSE_US 50000
#define IN_USE_TRIES 40

/* ---- its record ------------------------------------------------------------------- */

static int no_record(const struct device_images *d, struct qc_err *err)
{
	const struct lvm_lv *lv = record_place_lv(&d->place, d->image);

	if (lv && record_is_foreign(lv))
		return qc_err_set(err, -EOPNOTSUPP, "%s/%s: belongs to Proxmox VE, and is no qcow2 "
				  "volume: those have no snapshots there", lv->vg, lv->name);
	return qc_err_set(err, -ENOENT, "%s: has no record in %s, and so no snapshots", d->name,
			  d->place.dir);
}

static int find_place(struct device_images *d, struct qc_err *err)
{
	int ret;

	/* not served: a volume of Proxmox VE is called by its own name */
	snprintf(d->image, sizeof(d->image), "%s", d->name);
	if (d->online) {
		ret = record_place_of(served_top(&d->served), &d->place, d->image, err);
		if (ret == -EOPNOTSUPP)
			qc_err_set(err, ret, "%s: a block device that is no LV, which has no "
				   "snapshots", served_top(&d->served));
		return ret;
	}
	if (d->where)
		return record_place_open(d->where, &d->place, err);
	ret = record_place_search(d->name, &d->place, err);
	if (ret == -ENOENT)
		qc_err_set(err, ret, "%s: is not served, and no VG has a record of it; images that "
			   "are files: say their directory as well; a volume of Proxmox VE: its VG",
			   d->name);
	return ret;
}

static int find_record(struct device_images *d, struct qc_err *err)
{
	const struct lvm_lv *lv;
	int ret;

	record_place_exit(&d->place);
	ret = find_place(d, err);
	if (!ret)
		ret = proxmox_find_record(&d->place, d->name, d->image, &d->record, err);
	if (ret)
		return ret;
	lv = d->record ? record_place_lv(&d->place, d->record->top) : NULL;
	if (lv)
		return manager_check(lv, err);
	return d->record ? 0 : no_record(d, err);
}

/*
 * A volume that is not served by this name may be by another one, or by QEMU. udev looks at
 * what was just closed, which does not last.
 */
static int check_unused(struct device_images *d, struct qc_err *err)
{
	const struct lvm_lv *lv = NULL;
	int ret = 0;

	for (int i = 0; i < IN_USE_TRIES && !ret; i++) {
		if (i)
			usleep(SEAL_PAUSE_US);
		ret = i ? find_record(d, err) : 0;
		lv = ret ? NULL : record_place_lv(&d->place, d->record->top);
		if (!ret && (!lv || !lv->open))
			return 0;
	}
	return ret ? ret : qc_err_set(err, -EBUSY, "%s/%s: is in use, by a device of another name "
				      "or a VM; first end that", lv->vg, lv->name);
}

/* ---- its daemon --------------------------------------------------------------------- */

/* A snapshot that was killed half way is settled by the next one, or by `up`. */
static int check_same_top(const struct device_images *d, struct qc_err *err)
{
	char path[4096];
	struct image_ident recorded, serves;
	int ret = record_place_path(&d->place, d->record->top, path, sizeof(path), err);

	if (ret)
		return ret;
	if (!image_ident_of(path, &recorded) && !image_ident_of(served_top(&d->served), &serves) &&
	    image_ident_same(&recorded, &serves))
		return 0;
	return qc_err_set(err, -EBUSY, "%s: serves %s, but its record calls %s the top; an "
			  "interrupted snapshot, say, which the next qchainctl snapshot settles",
			  d->name, served_top(&d->served), path);
}

static const char *sealing(json_object *nodes)
{
	for (u32 i = 0; i < json_object_array_length(nodes); i++) {
		json_object *node = json_object_array_get_idx(nodes, i);
		const char *state = json_text(node, "state");

		if (state && !strcmp(state, "sealing"))
			return json_text(node, "file");
	}
	return NULL;
}

/* Its layers, when what was written before the last snapshot is durable. */
static int ask_layers(struct device_images *d, struct qc_err *err)
{
	int ret = 0;

	for (int i = 0; i < SEAL_TRIES && !ret; i++) {
		json_object_put(d->nodes);
		d->nodes = NULL;
		if (i)
			usleep(SEAL_PAUSE_US);
		ret = client_command(d->served.client, "query-named-block-nodes", NULL, false,
				     &d->nodes, err);
		if (!ret && !sealing(d->nodes))
			return 0;
	}
	return ret ? ret : qc_err_set(err, -EBUSY, "%s: is still being sealed; see qchainctl "
				      "status %s", sealing(d->nodes), d->name);
}

static int look_at_daemon(struct device_images *d, struct qc_err *err)
{
	int ret = check_same_top(d, err);

	if (!ret && !d->beside)
		ret = job_check_none(d->served.client, d->name, err);
	return ret ? ret : ask_layers(d, err);
}

static int depth_of(const struct device_images *d, const struct image_ident *image)
{
	struct image_ident ident;
	u32 nr = d->nodes ? json_object_array_length(d->nodes) : 0;

	for (u32 i = 0; i < nr; i++) {
		const char *file = json_text(json_object_array_get_idx(d->nodes, i), "file");

		if (file && !image_ident_of(file, &ident) && image_ident_same(&ident, image))
			return i;
	}
	return -1;
}

int device_images_depth(const struct device_images *d, u32 member)
{
	return depth_of(d, &d->family.members[member].ident);
}

int device_images_depth_of(const struct device_images *d, const char *path)
{
	struct image_ident ident;

	return image_ident_of(path, &ident) ? -1 : depth_of(d, &ident);
}

/* ---- LVs ------------------------------------------------------------------------------ */

/* The images of all names in the record, and what is below them. */
static int activate(struct device_images *d, struct qc_err *err)
{
	char path[4096];
	int ret = record_place_path(&d->place, d->record->top, path, sizeof(path), err);

	if (!ret)
		ret = activate_chain(path, d->activated, err);
	for (u32 i = 0; i < d->record->nr_snapshots && !ret; i++) {
		ret = record_place_path(&d->place, d->record->snapshots[i].image, path,
					sizeof(path), err);
		if (!ret)
			ret = activate_chain(path, d->activated, err);
	}
	return ret;
}

/* ---- all of it --------------------------------------------------------------------------- */

static void forget(struct device_images *d)
{
	family_exit(&d->family);
	json_object_put(d->nodes);
	d->nodes = NULL;
	record_place_exit(&d->place);
	d->record = NULL;
}

/* What was removed is not in @place any more afterwards. */
static int clean(struct device_images *d, struct qc_err *err)
{
	bool left = d->record->nr_dead;
	int ret;

	if (d->online)
		overlay_withdraw_unfinished(d->served.client, &d->place, d->record);
	ret = overlay_clean(&d->place, d->record, err);
	if (!ret && left)
		ret = device_images_release(d, err);
	return ret || !left ? ret : find_record(d, err);
}

/* A revert that was killed; the place is read again then. */
static int settle(struct device_images *d, struct qc_err *err)
{
	int ret;

	if (!d->record->revert.overlay[0])
		return 0;
	ret = d->online ? revert_settle_served(&d->served, &d->dir, &d->place, d->record, err) :
			  revert_settle(&d->place, d->record, NULL, err);
	return ret ? ret : find_record(d, err);
}

/* Names that an interrupted verb has left; the place is read again then. */
static int settle_names(struct device_images *d, struct qc_err *err)
{
	int ret;

	if (!d->record->volume[0] || !d->record->sequence)
		return 0;
	ret = device_images_rename(d, err);
	return ret || d->online ? ret : find_record(d, err);
}

/* Everything up to its record, after which images are called as they should be. */
static int look_at_record(struct device_images *d, struct qc_err *err)
{
	int ret = d->online ? proxmox_settle_served(&d->served, &d->dir, err) : 0;

	if (!ret && d->online)
		ret = job_settle_all(&d->dir, &d->served, err);
	if (!ret)
		ret = find_record(d, err);
	if (!ret && !d->online && !d->looked && d->record->volume[0])
		ret = check_unused(d, err);
	d->looked = true;
	if (!ret)
		ret = settle(d, err);
	return ret ? ret : settle_names(d, err);
}

int device_images_look(struct device_images *d, struct qc_err *err)
{
	int ret;

	forget(d);
	ret = look_at_record(d, err);
	if (!ret && d->online)
		ret = look_at_daemon(d, err);
	if (!ret && !d->online) {
		ret = activate(d, err);
		if (!ret)
			ret = find_record(d, err); /* LVs are active now */
	}
	if (!ret)
		ret = clean(d, err);
	return ret ? ret : family_read(&d->place, &d->family, err);
}

int device_images_arguments(struct device_images *d, const struct verb *verb, int argc, char **argv,
			    const char **snap)
{
	int status = verb_arguments(verb, argc, argv, 2, 3);

	if (status)
		return status;
	d->name = argv[optind];
	*snap = argv[optind + 1];
	d->where = optind + 2 < argc ? argv[optind + 2] : NULL;
	return 0;
}

int device_images_open(struct device_images *d, struct qc_err *err)
{
	struct qc_err why = { 0 };
	int ret;

	d->activated = json_object_new_array();
	ret = rundir_lock(d->name, true, &d->dir, err);
	if (ret)
		return ret;
	ret = served_find(d->name, &d->served, &why);
	d->online = ret == 0;
	if (ret && ret != -ENOENT)
		return qc_err_set(err, ret, "%s", why.msg);
	if (d->online && d->served.state != SERVED_LIVE)
		return served_not_live(&d->served, err);
	if (d->online && !d->served.record)
		return qc_err_set(err, -EINVAL, "%s: was not started by qchainctl, which keeps its "
				  "record; take it down, and up with qchainctl", d->name);
	return device_images_look(d, err);
}

static int close_offline(struct device_images *d, struct qc_err *err)
{
	int ret = deactivate_chain(d->activated, err);

	rundir_remove(&d->dir, NULL);
	return ret;
}

int device_images_close(struct device_images *d, struct qc_err *err)
{
	int ret = 0;

	/* Only what nobody has ever served is ours alone. */
	if (d->dir.lock_fd >= 0 && !d->online && !d->served.record)
		ret = close_offline(d, err);
	forget(d);
	json_object_put(d->activated);
	served_exit(&d->served);
	rundir_unlock(&d->dir);
	return ret;
}

/* The run record of what is served has the same. */
static int note(struct device_images *d, struct qc_err *err)
{
	if (!d->online)
		return 0;
	record_note(&d->place, d->record, served_top(&d->served), d->served.record);
	return rundir_save(&d->dir, d->served.record, err);
}

int device_images_save(struct device_images *d, struct qc_err *err)
{
	int ret = record_place_save(&d->place, d->record, err);

	return ret ? ret : note(d, err);
}

int device_images_rename(struct device_images *d, struct qc_err *err)
{
	int ret;

	if (!d->record->volume[0])
		return 0;
	if (d->online) {
		ret = proxmox_settle_served(&d->served, &d->dir, err);
		return ret ? ret : find_record(d, err);
	}
	proxmox_list_names(&d->place, d->record, d->activated);
	return proxmox_rename(&d->place, d->record, err);
}

int device_images_release(struct device_images *d, struct qc_err *err)
{
	int ret = d->record->volume[0] ? proxmox_release(&d->place, d->record, err) : 0;

	return ret || !d->record->volume[0] ? ret : note(d, err);
}

void device_images_made(struct device_images *d, const char *name)
{
	json_object *list = d->activated;
	char text[300];
	u32 nr;

	if (!d->place.vg[0])
		return;
	if (d->online)
		list = json_list(d->served.record, "activated", &nr);
	snprintf(text, sizeof(text), "%s/%s", d->place.vg, name);
	if (list)
		json_object_array_add(list, json_object_new_string(text));
}

/* ---- exposed snapshots --------------------------------------------------------------------- */

/* Does the chain under image @path have @member? */
static bool shows(const struct device_images *d, const char *path, u32 member)
{
	u32 at = path ? family_find_path(&d->family, path) : FAMILY_NONE;

	/* a loop of backing names ends here, too */
	for (u32 i = 0; i < d->family.nr && at != FAMILY_NONE; i++) {
		if (at == member)
			return true;
		at = d->family.members[at].backing;
	}
	return false;
}

struct exposed_check {
	const struct device_images *d;
	u32 member;
};

static int check_exposed(const char *snap, const char *top, void *arg, struct qc_err *err)
{
	const struct exposed_check *check = arg;
	const struct device_images *d = check->d;

	if (!shows(d, top, check->member))
		return 0;
	return qc_err_set(err, -EBUSY, "%s: snapshot %s is exposed and shows %s; first qchainctl "
			  "unexpose %s %s", d->name, snap, d->family.members[check->member].path,
			  d->name, snap);
}

int device_images_check_exposed(const struct device_images *d, u32 member, struct qc_err *err)
{
	struct exposed_check check = { .d = d, .member = member };

	return exposed_each(d->name, check_exposed, &check, err);
}
