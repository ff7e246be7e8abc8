// SPDX-License-Identifier: GPL-2.0-or-later
/* The steps of `qchainctl delete`. */
#include "delete.h"

#include "beside.h"
#include "image/merge-run.h"
#include "merge.h"
#include "proxmox.h"

#include <errno.h>
#include <qchain/crash-point.h>
#include <stdlib.h>
#include <string.h>

/*
 * The image of a snapshot is a layer like any other. What it alone keeps is either
 * carried up into the one image that stands on it (stream), or that image's content
 * down into it (commit), which makes it hold what that image held:
 *
 *   stream   copy up; the overlay's header names what is below; record: the name is
 *            gone, the image is dead; the image is removed
 *   commit   record: it is being deleted, no restore point any more; copy down; the
 *            header above the overlay names the image; record: the overlay's name
 *            moves to the image, the overlay is dead; that is removed
 *
 * Is that overlay the active layer of a device in use, the image of the snapshot becomes
 * it (job-settle.c): then the write that says so forgets the snapshot, too.
 *
 * What is on the disk after a kill says how far it had come: headers who stands on
 * what, the record whether a commit has begun (struct record_snapshot, from).
 *
 * Of Proxmox VE (proxmox.h) the image of a commit gets the name of the one that has gone
 * down into it, so that the header above keeps its words, and does not say that the commit
 * is done: one that was interrupted after that is done again. The image of a stream has left
 * the chain, and with it the list of snapshots; it still has the name of one.
 */

static struct family_member *member_of(const struct deletion *d, u32 member)
{
	return &d->images.family.members[member];
}

static const char *path_of(const struct deletion *d, u32 member)
{
	return member_of(d, member)->path;
}

static struct record_snapshot *snapshot_of(const struct deletion *d)
{
	return (struct record_snapshot *)device_record_by_name(d->images.record, d->snap);
}

/* ---- what stands on it ---------------------------------------------------------------- */

/* A commit that was begun by an earlier call: did it get as far as the header? */
static int look_at_commit(struct deletion *d, const struct record_snapshot *s,
			  struct qc_err *err)
{
	const struct family *family = &d->images.family;
	u32 from = family_find(family, s->from), other;
	u32 nr = family_overlays(family, d->member, &other);

	if (from == FAMILY_NONE || family->members[from].backing != d->member)
		return qc_err_set(err, -ENOENT, "%s: snapshot %s is half deleted, but the image "
				  "whose data it gets does not stand on it any more; look at the "
				  "record and the headers in %s", d->images.name, d->snap,
				  d->images.place.dir);
	d->above = from;
	d->merged = nr == 2 && family_overlays(family, from, &other) == 0;
	if (d->images.record->volume[0] && device_images_depth(&d->images, d->member) >= 0)
		d->merged = device_images_depth(&d->images, from) < 0;
	if (nr == 1 || d->merged)
		return 0;
	return qc_err_set(err, -EBUSY, "%s: is the backing of %s and of others, expected of that "
			  "one only to be deleted", path_of(d, d->member), path_of(d, from));
}

/* Is it one of the device's images: below its top, or one of its snapshots? */
static bool is_ours(const struct deletion *d, u32 member)
{
	const struct device_record *record = d->images.record;
	const struct family *family = &d->images.family;
	u32 at = family_find(family, record->top), i = 0;

	for (;; i++) {
		for (u32 n = 0; n < family->nr && at != FAMILY_NONE; n++) {
			if (at == member)
				return true;
			at = family->members[at].backing;
		}
		if (i == record->nr_snapshots)
			return false;
		at = family_find(family, record->snapshots[i].image);
	}
}

static int look_at_overlays(struct deletion *d, struct qc_err *err)
{
	const struct family *family = &d->images.family;
	u32 nr = family_overlays(family, d->member, &d->above);

	if (!nr)
		d->above = FAMILY_NONE;
	if (nr > 1)
		return qc_err_set(err, -EBUSY, "%s: holds snapshot %s, and %u images stand on it, "
				  "one of them %s; delete or rebase the others first",
				  path_of(d, d->member), d->snap, nr, path_of(d, d->above));
	if (nr && !is_ours(d, d->above))
		return qc_err_set(err, -EBUSY, "%s: holds snapshot %s, and is the backing image of "
				  "%s, which is not part of %s; rebase or remove that image first",
				  path_of(d, d->member), d->snap, path_of(d, d->above),
				  d->images.name);
	if (!nr && !device_images_depth(&d->images, d->member))
		return qc_err_set(err, -EBUSY, "%s: is the active layer of %s, cannot be deleted",
				  path_of(d, d->member), d->images.name);
	if (family->unknown[0] && !d->assume_unshared)
		return qc_err_set(err, -EBUSY, "%s: cannot be looked at (%s), and may stand on %s; "
				  "make it readable, or say --assume-unshared if you know that "
				  "nothing does", family->unknown, strerror(-family->why),
				  path_of(d, d->member));
	return 0;
}

/* Of Proxmox VE: out of the chain, by a stream say, but the LV is there. */
static bool find_left(struct deletion *d)
{
	const struct device_record *record = d->images.record;
	const struct lvm_lv *lv;
	char name[RECORD_IMAGE_BYTES];
	u32 other;

	if (!record->volume[0])
		return false;
	proxmox_snapshot_lv(record->volume, d->snap, name);
	lv = record_place_lv(&d->images.place, name);
	d->member = lv && record_is_foreign(lv) ? family_find(&d->images.family, lv->uuid) :
						  FAMILY_NONE;
	d->above = FAMILY_NONE;
	return d->member != FAMILY_NONE &&
	       !family_overlays(&d->images.family, d->member, &other) &&
	       device_images_depth(&d->images, d->member) < 0;
}

/* What a stream changes is in the way of both; a commit changes a header above, too. */
static int look_at_jobs(struct deletion *d, struct qc_err *err)
{
	int member = device_images_depth(&d->images, d->member), above = member;
	int ret;

	d->beside.code = 0;
	if (member < 0 || d->merged)
		return 0;
	if (d->above != FAMILY_NONE)
		above = device_images_depth(&d->images, d->above);
	ret = beside_check(&d->images, above, member, err);
	if (!ret && above > 0)
		beside_check(&d->images, above - 1, above - 1, &d->beside);
	return ret;
}

static int look(struct deletion *d, struct qc_err *err)
{
	const struct record_snapshot *s = snapshot_of(d);
	int ret;

	d->merged = false;
	if (!s && find_left(d))
		return 0;
	if (!s)
		return qc_err_set(err, -ENOENT, "%s: has no snapshot %s; see qchainctl tree %s",
				  d->images.name, d->snap, d->images.name);
	d->member = family_find(&d->images.family, s->image);
	if (d->member == FAMILY_NONE)
		return qc_err_set(err, -ENOENT, "%s: the image of snapshot %s is not there any "
				  "more (%s in %s)", d->images.name, d->snap, s->image,
				  d->images.place.dir);
	ret = s->from[0] ? look_at_commit(d, s, err) : look_at_overlays(d, err);
	if (!ret)
		ret = device_images_check_exposed(&d->images, d->member, err);
	return ret ? ret : look_at_jobs(d, err);
}

int delete_open(struct deletion *d, struct qc_err *err)
{
	int ret = device_images_open(&d->images, err);

	if (!ret && d->keep && d->images.record->volume[0])
		ret = qc_err_set(err, -EOPNOTSUPP, "%s: belongs to Proxmox VE, where another image "
				 "gets the name of what goes; expected no --keep",
				 d->images.record->volume);
	return ret ? ret : look(d, err);
}

/* ---- which way -------------------------------------------------------------------------- */

static json_object *node_of(const struct deletion *d, u32 member)
{
	return json_object_array_get_idx(d->images.nodes, device_images_depth(&d->images, member));
}

static u64 virtual_size(const struct deletion *d, u32 member)
{
	json_object *image = NULL;

	json_object_object_get_ex(node_of(d, member), "image", &image);
	return json_number(image, "virtual-size", 0);
}

/* Served, what stands on the image is the active layer: that becomes the image. */
static bool is_newest(const struct deletion *d)
{
	return device_images_depth(&d->images, d->above) == 0;
}

static const char *pivot_impossible(const struct deletion *d)
{
	const char *driver = json_text(node_of(d, d->member), "drv");

	if (d->keep || d->wipe)
		return "the image of the active layer is removed then: not with --keep or --wipe "
		       "while the device is used";
	if (d->images.record->volume[0] && (!driver || strcmp(driver, "qcow2")))
		return "it is raw, and volumes of Proxmox VE are qcow2";
	if (virtual_size(d, d->member) > virtual_size(d, d->above))
		return "it is longer than the device";
	return NULL;
}

/* Why it cannot go that way now; NULL: it can. */
static const char *commit_impossible(const struct deletion *d)
{
	u32 other;

	if (family_overlays(&d->images.family, d->above, &other) > 1)
		return "several images stand on the one that would go";
	if (d->beside.code)
		return d->beside.msg;
	return is_newest(d) ? pivot_impossible(d) : NULL;
}

static const char *stream_impossible(const struct deletion *d)
{
	if (snapshot_of(d)->from[0])
		return "its commit has begun, and cannot be undone";
	return NULL;
}

/* What receives must hold what it takes (rule D5). */
static int make_room(const struct deletion *d, struct qc_err *err)
{
	if (d->way == DIRECTION_COMMIT)
		return merge_make_room(path_of(d, d->member), &d->cost.commit, err);
	return merge_make_room(path_of(d, d->above), &d->cost.stream, err);
}

static int choose_wanted(struct deletion *d, const char *no_commit, const char *no_stream,
			 struct qc_err *err)
{
	const char *why = d->wanted == DIRECTION_COMMIT ? no_commit : no_stream;

	d->way = d->wanted;
	if (!why)
		return 0;
	return qc_err_set(err, -EOPNOTSUPP, "%s: --%s: not possible now (%s); leave it out, or see "
			  "qchainctl delete --help", d->images.name,
			  d->wanted == DIRECTION_COMMIT ? "commit" : "stream", why);
}

/* The cheaper one of those that are possible. */
static int choose(struct deletion *d, struct qc_err *err)
{
	const char *no_commit = commit_impossible(d), *no_stream = stream_impossible(d);
	bool down = !no_commit;

	if (d->wanted)
		return choose_wanted(d, no_commit, no_stream, err);
	if (no_commit && no_stream)
		return qc_err_set(err, -EOPNOTSUPP, "%s: snapshot %s cannot be deleted now: %s, "
				  "and %s", d->images.name, d->snap, no_commit, no_stream);
	if (down && !no_stream)
		down = merge_cost_is_commit(&d->cost);
	d->way = down ? DIRECTION_COMMIT : DIRECTION_STREAM;
	return 0;
}

int delete_choose(struct deletion *d, struct qc_err *err)
{
	struct merge_part upper = { .nr_layers = 1 }, lower = { .nr_layers = 1 };
	int ret;

	d->way = DIRECTION_NONE;
	if (d->merged)
		d->way = DIRECTION_COMMIT;
	if (d->merged || d->above == FAMILY_NONE)
		return 0;
	upper.path = path_of(d, d->above);
	lower.path = path_of(d, d->member);
	ret = merge_cost(&upper, &lower, NULL, &d->cost, err);
	if (!ret)
		ret = choose(d, err);
	return ret ? ret : make_room(d, err);
}

/* ---- the merge -------------------------------------------------------------------------- */

/* The daemon does not begin: it is a restore point as before. */
static void record_withdraw(struct deletion *d)
{
	struct qc_err second = { 0 };
	struct record_snapshot *s;
	int ret = device_images_look(&d->images, &second);

	s = ret ? NULL : snapshot_of(d);
	if (s) {
		s->from[0] = 0;
		ret = device_images_save(&d->images, &second);
	}
	if (ret)
		print_error(&second);
}

static int merge_online(struct deletion *d, bool begins, struct qc_err *err)
{
	bool down = d->way == DIRECTION_COMMIT;
	int depth = device_images_depth(&d->images, d->member), ret;
	struct served_merge merge = {
		.name = d->images.name, .speed = d->speed,
		.top = down || depth > 1 ? path_of(d, d->above) : NULL,
		.base = down ? path_of(d, d->member) : NULL,
		.detach = down && is_newest(d), /* completed by somebody, whoever dies */
	};
	struct served_job *job;

	if (!down && depth + 1 < (int)json_object_array_length(d->images.nodes))
		merge.base = json_text(json_object_array_get_idx(d->images.nodes, depth + 1),
				       "node-name");
	ret = merge_start(&merge, &d->images.dir, down ? "commit" : "stream", &job, err);
	if (ret == -EPROTO && begins)
		record_withdraw(d);
	if (ret)
		return ret;
	crash_point("delete.started");
	/* other verbs are let in: what comes then is found out again */
	rundir_unlock(&d->images.dir);
	return merge_end(job, true, &d->moved, err);
}

/* What a commit's base will be called; NULL: it keeps its name. */
static const char *later_name(const struct deletion *d)
{
	const char *path = path_of(d, d->above);

	if (!d->images.record->volume[0])
		return NULL;
	return strrchr(path, '/') + 1;
}

/* The image that stands on the one that goes down: its header is to change. */
static int merge_offline(struct deletion *d, struct qc_err *err)
{
	const struct family *family = &d->images.family;
	struct offline_merge merge = { .image = path_of(d, d->above), .speed = d->speed,
				       .assume_unshared = true };
	struct merge result;
	u32 top;
	int ret;

	if (d->way == DIRECTION_STREAM) {
		merge.nr_layers = 1;
		ret = offline_stream(&merge, &result, err);
	} else {
		merge.base = path_of(d, d->member);
		merge.layer = path_of(d, d->above);
		merge.header_name = later_name(d);
		if (family_overlays(family, d->above, &top))
			merge.image = path_of(d, top);
		ret = offline_commit(&merge, &result, err);
	}
	d->moved = result.moved_bytes;
	return ret;
}

/* From here on neither of the two is a restore point (rule D2). */
static int record_begin(struct deletion *d, struct qc_err *err)
{
	struct record_snapshot *s = snapshot_of(d);

	crash_point("delete.unrecorded");
	if (d->way != DIRECTION_COMMIT || s->from[0])
		return 0;
	snprintf(s->from, sizeof(s->from), "%s", member_of(d, d->above)->image);
	return device_images_save(&d->images, err);
}

/* Whoever wrote down the end of the job, or took a snapshot, has changed the run record. */
static int served_anew(struct deletion *d, struct qc_err *err)
{
	if (!d->images.online)
		return 0;
	served_exit(&d->images.served);
	return served_find(d->images.name, &d->images.served, err);
}

/*
 * @tip: nothing stood on what went down, so that no header has changed; @newest: that was
 * the active layer of a device in use, and may be one of the middle by now
 */
static int look_again(struct deletion *d, bool tip, bool newest, struct qc_err *err)
{
	int ret = 0;

	if (d->images.dir.lock_fd < 0)
		ret = client_lock_chain(d->images.served.client, &d->images.dir, err);
	if (!ret && d->images.online)
		d->images.name = d->images.dir.name;
	if (!ret)
		ret = served_anew(d, err);
	if (!ret)
		ret = device_images_look(&d->images, err);
	d->pivoted = !ret && newest && !snapshot_of(d);
	if (!ret && !d->pivoted)
		ret = look(d, err);
	if (ret || d->pivoted)
		return ret;
	tip &= !newest;
	if (d->way == DIRECTION_STREAM ? d->above == FAMILY_NONE : d->merged || tip)
		return 0;
	if (d->way == DIRECTION_COMMIT && d->images.record->volume[0] && !d->images.online)
		return 0;
	return qc_err_set(err, -EBUSY, "%s: the chain has changed meanwhile, snapshot %s is still "
			  "in use; see qchainctl tree %s, and delete it again", d->images.name,
			  d->snap, d->images.name);
}

int delete_merge(struct deletion *d, struct qc_err *err)
{
	bool tip, newest, begins;
	u32 other;
	int ret;

	if (d->way == DIRECTION_NONE || d->merged)
		return 0;
	tip = !family_overlays(&d->images.family, d->above, &other);
	newest = d->way == DIRECTION_COMMIT && is_newest(d);
	begins = d->way == DIRECTION_COMMIT && !snapshot_of(d)->from[0];
	snprintf(d->gone, sizeof(d->gone), "%s", newest ? path_of(d, d->above) : "");
	ret = record_begin(d, err);
	crash_point("delete.recorded");
	if (!ret)
		ret = device_images_depth(&d->images, d->member) >= 0 ?
			      merge_online(d, begins, err) : merge_offline(d, err);
	crash_point("delete.merged");
	return ret ? ret : look_again(d, tip, newest, err);
}

/* ---- the end ----------------------------------------------------------------------------- */

/* What the overlay that went down has been: a snapshot, the top. */
static void move_names(const struct deletion *d, const char *from)
{
	struct device_record *record = d->images.record;
	const char *into = member_of(d, d->member)->image;

	if (!strcmp(record->top, from))
		device_record_set_top(record, into, family_format(&d->images.family, d->member) ==
						    IMAGE_RAW);
	for (u32 i = 0; i < record->nr_snapshots; i++)
		if (!strcmp(record->snapshots[i].image, from))
			snprintf(record->snapshots[i].image, RECORD_IMAGE_BYTES, "%s", into);
}

static int write_record(struct deletion *d, struct qc_err *err)
{
	struct device_record *record = d->images.record;
	char image[RECORD_IMAGE_BYTES];
	u32 gone = d->way == DIRECTION_COMMIT ? d->above : d->member;

	snprintf(d->gone, sizeof(d->gone), "%s", path_of(d, gone));
	snprintf(image, sizeof(image), "%s", member_of(d, gone)->image);
	device_record_drop(record, member_of(d, d->member)->image);
	if (d->way == DIRECTION_COMMIT)
		move_names(d, image);
	if (!d->keep && device_record_bury(record, image, d->wipe))
		return qc_err_set(err, -ENOMEM, "%s: out of memory", d->images.name);
	return device_images_save(&d->images, err);
}

int delete_finish(struct deletion *d, struct qc_err *err)
{
	int ret;

	crash_point("delete.unfinished");
	ret = d->pivoted ? 0 : write_record(d, err);
	crash_point("delete.finished");
	if (!ret)
		ret = device_images_rename(&d->images, err);
	if (ret)
		return ret;
	d->retire.speed = d->speed;
	if (!d->keep)
		ret = retire_dead(&d->images.place, d->images.record, &d->retire, err);
	if (!ret)
		ret = device_images_release(&d->images, err);
	if (ret)
		return ret;
	if (d->keep && (d->way == DIRECTION_COMMIT || d->wipe))
		ret = retire_header(d->gone, d->wipe, &d->retire, err);
	return ret;
}

int delete_close(struct deletion *d, struct qc_err *err)
{
	return device_images_close(&d->images, err);
}

int delete_whole(struct deletion *d, void (*tell)(const struct deletion *d), struct qc_err *err)
{
	struct qc_err later = { 0 };
	int ret = delete_open(d, err);

	if (!ret)
		ret = delete_choose(d, err);
	if (!ret && tell)
		tell(d);
	if (!ret)
		ret = delete_merge(d, err);
	if (!ret)
		ret = delete_finish(d, err);
	if (delete_close(d, ret ? &later : err) && !ret)
		ret = err->code;
	return ret;
}
