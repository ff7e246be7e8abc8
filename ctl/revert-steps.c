// SPDX-License-Identifier: GPL-2.0-or-later
/* The steps of `qchainctl revert`. */
#include "revert.h"

#include "grow.h"
#include "revert-record.h"

#include <errno.h>
#include <qchain/crash-point.h>
#include <qchain/image.h>
#include <stdlib.h>
#include <string.h>

/*
 *   served       overlay, durable; record: a revert is under way; the daemon settles
 *                what was written, marks the overlay and switches; record: the overlay is
 *                the top, the old branch has a name or is dead
 *   not served   overlay, durable; record, at once
 *
 * Served, no record can be written in the same instant as the switch. The mark in the
 * overlay's header is: it is there before the first write to the overlay is acknowledged,
 * and after the last one to the old top. So a revert that was interrupted is settled by
 * looking at the header, or at what the daemon serves (revert-record.c).
 */

static const char *path_of(const struct revert *r, u32 member)
{
	return r->images.family.members[member].path;
}

static int find_target(const struct revert *r, u32 *result, struct qc_err *err)
{
	const struct record_snapshot *s = device_record_by_name(r->images.record, r->snap);

	if (!s)
		return qc_err_set(err, -ENOENT, "%s: has no snapshot %s; see qchainctl tree %s",
				  r->images.name, r->snap, r->images.name);
	*result = family_find(&r->images.family, s->image);
	if (*result == FAMILY_NONE)
		return qc_err_set(err, -ENOENT, "%s: the image of snapshot %s is not there any "
				  "more (%s in %s)", r->images.name, r->snap, s->image,
				  r->images.place.dir);
	for (u32 i = 0; i < r->images.record->nr_snapshots; i++)
		if (r->images.record->snapshots[i].from[0])
			return qc_err_set(err, -EBUSY, "%s: snapshot %s is half deleted; first "
					  "qchainctl delete %s %s", r->images.name,
					  r->images.record->snapshots[i].name, r->images.name,
					  r->images.record->snapshots[i].name);
	return 0;
}

/* Layers that a merge has begun to change are no restore points (rule D2). */
static int check_merges(const struct revert *r, struct qc_err *err)
{
	const struct device_record *record = r->images.record;

	for (u32 i = 0; i < record->nr_jobs; i++)
		if (record_job_has_written(&record->jobs[i]))
			return qc_err_set(err, -EBUSY, "%s: merge %s has begun and not ended well; "
					  "first qchainctl job resume %s %s", r->images.name,
					  record->jobs[i].id, r->images.name, record->jobs[i].id);
	return 0;
}

/* ---- may the branch go? ----------------------------------------------------------------- */

/* Names of snapshots that only the dropped images hold: " a b". */
static void lost_names(const struct revert *r, const u32 *dropped, u32 nr, char *text,
		       size_t bytes)
{
	const struct record_snapshot *s;
	size_t len = 0;

	*text = 0;
	for (u32 i = nr; i-- > 0;) {
		s = device_record_by_image(r->images.record,
					   r->images.family.members[dropped[i]].image);
		if (s && len < bytes)
			len += snprintf(text + len, bytes - len, " %s", s->name);
	}
}

static int check_dropped(struct revert *r, const u32 *dropped, u32 nr, struct qc_err *err)
{
	const struct family *family = &r->images.family;
	char names[512];
	int ret = 0;

	lost_names(r, dropped, nr, names, sizeof(names));
	if (names[0] && !r->drop_snapshots)
		return qc_err_set(err, -EBUSY, "%s: snapshots newer than %s would be lost:%s; keep "
				  "the branch with --keep NAME, or say --drop-snapshots",
				  r->images.name, r->snap, names);
	if (family->unknown[0] && !r->assume_unshared)
		return qc_err_set(err, -EBUSY, "%s: cannot be looked at (%s), and may stand on %s, "
				  "which is to go; make it readable, say --assume-unshared if you "
				  "know that nothing does, or --keep NAME", family->unknown,
				  strerror(-family->why), path_of(r, dropped[0]));
	for (u32 i = 0; i < nr && !ret; i++)
		ret = device_images_check_exposed(&r->images, dropped[i], err);
	r->nr_dropped = nr;
	return ret;
}

static int check_branch(struct revert *r, u32 target, struct qc_err *err)
{
	u32 *dropped = NULL, nr;
	int ret;

	if (r->keep && device_record_by_name(r->images.record, r->keep))
		return qc_err_set(err, -EEXIST, "%s: has a snapshot %s already; see qchainctl "
				  "tree %s", r->images.name, r->keep, r->images.name);
	if (r->keep)
		return 0;
	ret = revert_branch(&r->images.family, r->images.record, target, &dropped, &nr, err);
	if (!ret && nr)
		ret = check_dropped(r, dropped, nr, err);
	free(dropped);
	return ret;
}

int revert_open(struct revert *r, struct qc_err *err)
{
	u32 target;
	int ret = device_images_open(&r->images, err);

	if (!ret && r->keep && r->images.record->volume[0])
		ret = qc_err_set(err, -EOPNOTSUPP, "%s: belongs to Proxmox VE, whose chains have "
				 "no branches; expected no --keep", r->images.record->volume);
	if (!ret)
		ret = find_target(r, &target, err);
	if (!ret)
		ret = check_merges(r, err);
	if (!ret && r->images.online && device_images_depth(&r->images, target) < 1)
		ret = qc_err_set(err, -EOPNOTSUPP, "%s: snapshot %s is on another branch, not "
				 "below the active layer; that can be reverted to after qchainctl "
				 "down %s", r->images.name, r->snap, r->images.name);
	return ret ? ret : check_branch(r, target, err);
}

/* ---- the overlay --------------------------------------------------------------------------- */

static int look_below(struct revert *r, u32 target, struct qc_err *err)
{
	u64 size = json_number(r->images.served.status, "virtual-size", 0);
	enum image_format format = family_format(&r->images.family, target);
	struct io_dev *dev;
	struct image *img;
	int ret = io_dev_open(path_of(r, target), IO_DEV_NOLOCK, &dev, err);

	if (!ret)
		ret = image_open(dev, format, 0, &img, err);
	if (ret)
		return ret;
	r->overlay.format = image_format_name(format);
	r->overlay.virtual_size = img->virtual_size;
	image_close(img);
	if (!r->images.online || r->overlay.virtual_size == size)
		return 0;
	return qc_err_set(err, -EOPNOTSUPP, "%s: has %llu bytes, snapshot %s has %llu; a device "
			  "does not change its size by a revert while it is served, first "
			  "qchainctl down %s", r->images.name, (unsigned long long)size, r->snap,
			  (unsigned long long)r->overlay.virtual_size, r->images.name);
}

int revert_prepare(struct revert *r, struct qc_err *err)
{
	struct device_images *d = &r->images;
	u32 target;
	int ret = find_target(r, &target, err);

	if (!ret)
		ret = look_below(r, target, err);
	if (ret)
		return ret;
	r->overlay.device = d->name;
	r->overlay.top = path_of(r, target);
	r->overlay.lv_bytes = r->lv_bytes;
	ret = overlay_make(&r->overlay, &d->place, &d->record, err);
	if (!ret)
		device_images_made(d, r->overlay.name);
	crash_point("revert.formatted");
	if (!ret && d->online)
		ret = overlay_bring_in(d->served.client, &r->overlay, r->node, err);
	return ret;
}

/* ---- the switch ------------------------------------------------------------------------------ */

static void fill_record(const struct revert *r)
{
	struct record_revert *revert = &r->images.record->revert;

	snprintf(revert->overlay, sizeof(revert->overlay), "%s", r->overlay.image);
	snprintf(revert->snapshot, sizeof(revert->snapshot), "%s", r->snap);
	snprintf(revert->keep, sizeof(revert->keep), "%s", r->keep ? r->keep : "");
	revert->wipe = r->wipe;
}

/* The run record, of which a takeover reads the top, and whether there is a doubt. */
static int save_state(struct revert *r, const char *top, struct qc_err *err)
{
	struct device_images *d = &r->images;

	record_note(&d->place, d->record, top, d->served.record);
	grow_start(&d->dir, d->served.record);
	return rundir_save(&d->dir, d->served.record, err);
}

static int ask_daemon(struct revert *r, struct qc_err *err)
{
	json_object *arguments = json_object_new_object();
	u32 target;
	int ret = find_target(r, &target, err);
	json_object *node;

	if (ret)
		return ret;
	node = json_object_array_get_idx(r->images.nodes, device_images_depth(&r->images, target));
	json_object_object_add(arguments, "node", json_object_new_string(json_text(node,
										"node-name")));
	json_object_object_add(arguments, "overlay", json_object_new_string(r->node));
	json_object_object_add(arguments, "force", json_object_new_boolean(r->force));
	return client_command(r->images.served.client, "qchain-revert", arguments, true, NULL, err);
}

static int switch_online(struct revert *r, struct qc_err *err)
{
	struct device_images *d = &r->images;
	int ret;

	fill_record(r);
	crash_point("revert.unrecorded");
	ret = record_place_save(&d->place, d->record, err);
	if (!ret)
		ret = save_state(r, served_top(&d->served), err);
	crash_point("revert.recorded");
	if (ret)
		return ret;
	ret = ask_daemon(r, err);
	r->settle_later = ret != -EPROTO;
	crash_point("revert.published");
	if (!ret)
		ret = revert_apply(&d->place, d->record, err);
	crash_point("revert.applied");
	if (ret)
		return ret;
	r->settle_later = false;
	return save_state(r, r->overlay.path, err);
}

/* Nobody writes the old top while the record changes. */
static int switch_offline(struct revert *r, struct qc_err *err)
{
	struct device_images *d = &r->images;
	struct io_dev *dev;
	char path[4096];
	int ret = record_place_path(&d->place, d->record->top, path, sizeof(path), err);

	if (!ret)
		ret = io_dev_open(path, IO_DEV_WRITE, &dev, err);
	if (ret)
		return ret;
	fill_record(r);
	crash_point("revert.unrecorded");
	ret = revert_apply(&d->place, d->record, err);
	crash_point("revert.applied");
	io_dev_close(dev);
	return ret;
}

int revert_switch(struct revert *r, struct qc_err *err)
{
	return r->images.online ? switch_online(r, err) : switch_offline(r, err);
}

int revert_finish(struct revert *r, struct qc_err *err)
{
	struct device_images *d = &r->images;
	int ret = device_images_rename(d, err);

	if (!ret)
		ret = record_place_path(&d->place, r->overlay.image, r->overlay.path,
					sizeof(r->overlay.path), err);
	if (!ret)
		ret = retire_dead(&d->place, d->record, &r->retire, err);
	return ret ? ret : device_images_release(d, err);
}

/* ---- after a failure --------------------------------------------------------------------- */

/* Where it is not known whether it took place, the next verb finds that out. */
static int take_back(struct revert *r, struct qc_err *err)
{
	struct device_images *d = &r->images;
	int ret = 0;

	if (r->settle_later || !d->record || !strcmp(d->record->top, r->overlay.image))
		return 0;
	d->record->revert = (struct record_revert){ .wipe = false };
	if (d->online) {
		overlay_withdraw(d->served.client, r->node);
		ret = save_state(r, served_top(&d->served), err);
	}
	if (!ret)
		ret = record_place_save(&d->place, d->record, err);
	if (!ret)
		ret = device_images_release(d, err);
	return ret ? ret : overlay_remove(&r->overlay, &d->place, d->record, err);
}

int revert_close(struct revert *r, bool failed, struct qc_err *err)
{
	int ret = failed && r->overlay.name[0] ? take_back(r, err) : 0;
	int closed = device_images_close(&r->images, err);

	return ret ? ret : closed;
}
