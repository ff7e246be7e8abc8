// SPDX-License-Identifier: GPL-2.0-or-later
/* The steps of one snapshot, and the way back from each. */
#include "snapshot.h"

#include "clock.h"
#include "grow.h"
#include "job-record.h"
#include "manager.h"
#include "proxmox.h"
#include "revert-record.h"
#include "thin.h"

#include <errno.h>
#include <qchain/crash-point.h>
#include <string.h>
#include <time.h>

/* A daemon lets writes go on by itself after so long; we stop to rely on it earlier. */
#define HOLD_MS 1000
#define HOLD_MARGIN_MS 200

static json_object *one_argument(const char *key, json_object *value)
{
	json_object *arguments = json_object_new_object();

	json_object_object_add(arguments, key, value);
	return arguments;
}

/* ---- opening -------------------------------------------------------------------------- */

/* The active layer, as the daemon knows it. */
static int ask_layers(struct snapshot *s, struct qc_err *err)
{
	json_object *nodes, *top, *image = NULL;
	const char *file, *node, *driver;
	int ret = client_command(s->served.client, "query-named-block-nodes", NULL, false, &nodes,
				 err);

	if (ret)
		return ret;
	top = json_object_array_get_idx(nodes, 0);
	file = json_text(top, "file");
	node = json_text(top, "node-name");
	driver = json_text(top, "drv");
	json_object_object_get_ex(top, "image", &image);
	s->overlay.virtual_size = json_number(image, "virtual-size", 0);
	if (file && node && driver && s->overlay.virtual_size) {
		snprintf(s->old_top, sizeof(s->old_top), "%s", file);
		snprintf(s->old_node, sizeof(s->old_node), "%s", node);
		s->overlay.format = strcmp(driver, "raw") ? "qcow2" : "raw";
	} else {
		ret = qc_err_set(err, -EPROTO, "%s: the daemon does not say what its top is",
				 s->name);
	}
	json_object_put(nodes);
	return ret;
}

static int no_record(const struct snapshot *s, struct qc_err *err)
{
	const struct lvm_lv *lv = record_place_lv(&s->place, s->old_image);

	if (lv && record_is_foreign(lv))
		return qc_err_set(err, -EOPNOTSUPP, "%s/%s: belongs to Proxmox VE, and is no qcow2 "
				  "volume: those have no snapshots there", lv->vg, lv->name);
	return qc_err_set(err, -ENOENT, "%s: has no record in %s; take it down and up again with "
			  "qchainctl", s->name, s->place.dir);
}

static int find_record(struct snapshot *s, struct qc_err *err)
{
	const struct lvm_lv *lv;
	int ret = record_place_of(s->old_top, &s->place, s->old_image, err);

	if (ret == -EOPNOTSUPP)
		return qc_err_set(err, ret, "%s: a block device that is no LV; there is no place "
				  "beside it for an overlay", s->old_top);
	lv = ret ? NULL : record_place_lv(&s->place, s->old_image);
	if (lv)
		ret = manager_check(lv, err);
	if (!ret)
		ret = proxmox_find_record(&s->place, s->name, s->old_image, &s->record, err);
	if (ret)
		return ret;
	if (s->record)
		return revert_settle_served(&s->served, &s->dir, &s->place, s->record, err);
	return no_record(s, err);
}

/* "VG/LV" of the overlay first in the list of what is to be deactivated, or not in it. */
static void note_activated(const struct snapshot *s, json_object *state, bool is_top)
{
	json_object *list = json_object_new_array(), *old;
	char text[300];
	u32 nr;

	snprintf(text, sizeof(text), "%s/%s", s->place.vg, s->overlay.name);
	if (is_top && s->place.vg[0])
		json_object_array_add(list, json_object_new_string(text));
	old = json_list(state, "activated", &nr);
	for (u32 i = 0; i < nr; i++) {
		json_object *entry = json_object_array_get_idx(old, i);

		if (strcmp(json_object_get_string(entry), text))
			json_object_array_add(list, json_object_get(entry));
	}
	json_object_object_add(state, "activated", list);
}

/* The run record, of which a takeover reads the top. */
static int save_state(struct snapshot *s, struct qc_err *err)
{
	bool is_top = !strcmp(s->record->top, s->overlay.image);

	record_note(&s->place, s->record, is_top ? s->overlay.path : s->old_top,
		    s->served.record);
	note_activated(s, s->served.record, is_top);
	grow_start(&s->dir, s->served.record);
	return rundir_save(&s->dir, s->served.record, err);
}

/*
 * Of Proxmox VE: the daemon takes an overlay only if its header names the layer below. What
 * that will be called counts from before the switch; a kill in between is settled by
 * proxmox_settle_served().
 */
static int tell_name(const struct snapshot *s, const char *path, struct qc_err *err)
{
	json_object *arguments;

	if (!s->header_name[0])
		return 0;
	arguments = one_argument("node-name", json_object_new_string(s->old_node));
	json_object_object_add(arguments, "filename", json_object_new_string(path));
	return client_command(s->served.client, "qchain-rename-layer", arguments, false, NULL, err);
}

static int tell_later_name(const struct snapshot *s, struct qc_err *err)
{
	char path[4096];

	snprintf(path, sizeof(path), "%.3800s/%s", s->place.dir, s->header_name);
	return tell_name(s, path, err);
}

/* Record, run record and images as they were; the overlay is no layer of the daemon. */
static int take_back(struct snapshot *s, struct qc_err *err)
{
	struct device_record *record = s->record;
	int ret = 0;

	overlay_withdraw(s->served.client, s->node);
	tell_name(s, s->old_top, NULL);
	if (s->overlay.image[0] && !strcmp(record->top, s->overlay.image)) {
		snprintf(record->pending, sizeof(record->pending), "%s", s->overlay.image);
		device_record_set_top(record, s->old_image, !strcmp(s->overlay.format, "raw"));
		device_record_drop(record, s->old_image);
		ret = record_place_save(&s->place, record, err);
		if (!ret)
			ret = proxmox_release(&s->place, record, err);
		if (!ret)
			ret = save_state(s, err);
	}
	if (!ret && s->overlay.name[0])
		ret = overlay_remove(&s->overlay, &s->place, record, err);
	return ret;
}

/* The record was written, the switch did not come: it is not the top after all. */
static int settle_recorded(struct snapshot *s, struct qc_err *err)
{
	const struct device_record *record = s->record;
	const struct record_snapshot *taken = device_record_by_image(record, s->old_image);
	struct overlay *o = &s->overlay;
	int ret;

	if (!taken)
		return qc_err_set(err, -EBUSY, "%s: serves %s, but the record in %s knows another "
				  "top (%s); nothing is changed before that is cleared up", s->name,
				  s->old_top, s->place.dir, record->top);
	ret = record_place_path(&s->place, record->top, o->path, sizeof(o->path), err);
	if (ret)
		return ret;
	if (!overlay_is_unused(o->path))
		return qc_err_set(err, -EBUSY, "%s: serves %s, but the record calls %s the top, "
				  "which holds data; nothing is changed before that is cleared up",
				  s->name, s->old_top, o->path);
	fprintf(stderr, "qchainctl: %s: snapshot %s was interrupted and not taken\n", s->name,
		taken->name);
	snprintf(o->image, sizeof(o->image), "%s", record->top);
	snprintf(o->name, sizeof(o->name), "%s", strrchr(o->path, '/') + 1);
	o->made = true;
	overlay_node_name(&s->overlay, s->node);
	ret = take_back(s, err);
	s->node[0] = o->name[0] = o->image[0] = 0;
	o->made = false;
	return ret;
}

/* What a killed qchainctl has left. */
static int settle(struct snapshot *s, struct qc_err *err)
{
	int ret;

	if (strcmp(s->record->top, s->old_image)) {
		ret = settle_recorded(s, err);
		if (!ret) {
			record_place_exit(&s->place);
			ret = find_record(s, err);
		}
		return ret;
	}
	overlay_withdraw_unfinished(s->served.client, &s->place, s->record);
	return overlay_clean(&s->place, s->record, err);
}

/*
 * What is left of it would be done below the overlay, whose header would name the base as it
 * is called now: of Proxmox VE it gets the name of what goes down.
 */
static int check_active_commit(const struct snapshot *s, struct qc_err *err)
{
	const struct record_job *job = NULL;

	for (u32 i = 0; i < s->record->nr_jobs; i++)
		if (!strcmp(s->record->jobs[i].kind, "commit") &&
		    !strcmp(s->record->jobs[i].top, s->record->top))
			job = &s->record->jobs[i];
	if (!job)
		return 0;
	return qc_err_set(err, -EBUSY, "%s: its active layer is being committed, and %s belongs to "
			  "Proxmox VE; first qchainctl job wait %s %s", s->name, s->record->volume,
			  s->name, job->id);
}

int snapshot_check_name(struct snapshot *s, struct qc_err *err)
{
	int ret;

	if (device_record_by_name(s->record, s->snap))
		return qc_err_set(err, -EEXIST, "%s: has a snapshot %s already; see qchainctl tree "
				  "%s", s->name, s->snap, s->name);
	if (!s->record->volume[0])
		return 0;
	ret = check_active_commit(s, err);
	if (ret)
		return ret;
	proxmox_snapshot_lv(s->record->volume, s->snap, s->header_name);
	s->overlay.header_name = s->header_name;
	return proxmox_check_snapshot(&s->place, s->record->volume, s->snap, err);
}

int snapshot_open(struct snapshot *s, struct qc_err *err)
{
	int ret = rundir_lock(s->name, false, &s->dir, err);

	if (!ret)
		ret = served_find(s->name, &s->served, err);
	if (ret)
		return ret;
	if (s->served.state != SERVED_LIVE)
		return served_not_live(&s->served, err);
	if (!s->served.record)
		return qc_err_set(err, -EINVAL, "%s: was not started by qchainctl, which keeps its "
				  "record; take it down, and up with qchainctl", s->name);
	ret = proxmox_settle_served(&s->served, &s->dir, err);
	if (!ret) /* a pivot: then the top is another one */
		ret = job_settle_all(&s->dir, &s->served, err);
	if (!ret)
		ret = ask_layers(s, err);
	if (!ret)
		ret = find_record(s, err);
	if (!ret)
		ret = settle(s, err);
	return ret;
}

/* ---- the steps --------------------------------------------------------------------------- */

int snapshot_prepare(struct snapshot *s, struct qc_err *err)
{
	int ret;

	s->overlay.device = s->name;
	s->overlay.top = s->old_top;
	s->overlay.lv_bytes = s->lv_bytes;
	s->overlay.chunk = s->thin && !s->chunk ? thin_default_chunk(s->overlay.virtual_size) :
						  s->chunk;
	ret = overlay_make(&s->overlay, &s->place, &s->record, err);
	crash_point("snapshot.formatted");
	return ret ? ret : overlay_bring_in(s->served.client, &s->overlay, s->node, err);
}

int snapshot_record(struct snapshot *s, struct qc_err *err)
{
	struct device_record *record = s->record;
	int ret = device_record_add(record, s->snap, s->old_image);

	if (ret)
		return qc_err_set(err, ret, "%s: out of memory", s->name);
	crash_point("snapshot.unrecorded");
	device_record_set_top(record, s->overlay.image, false);
	record->pending[0] = 0;
	ret = record_place_save(&s->place, record, err);
	crash_point("snapshot.recorded");
	if (!ret)
		ret = save_state(s, err);
	crash_point("snapshot.noted");
	return ret ? ret : tell_later_name(s, err);
}

int snapshot_hold(struct snapshot *s, u64 *deadline_ns, struct qc_err *err)
{
	int ret;

	if (!*deadline_ns)
		*deadline_ns = now_ns() + (HOLD_MS - HOLD_MARGIN_MS) * 1000000ull;
	ret = client_command(s->served.client, "qchain-hold",
			     one_argument("milliseconds", json_object_new_int(HOLD_MS)), false,
			     NULL, err);
	s->held = ret == 0;
	return ret;
}

void snapshot_release(struct snapshot *s)
{
	struct qc_err ignored = { 0 };

	if (s->held)
		client_command(s->served.client, "qchain-release", NULL, false, NULL, &ignored);
	s->held = false;
}

int snapshot_publish(struct snapshot *s, u64 deadline_ns, struct qc_err *err)
{
	json_object *arguments;
	u64 start = now_ns();
	int ret;

	if (deadline_ns && start > deadline_ns)
		return qc_err_set(err, -ETIMEDOUT, "%s: not switched, the group took longer than "
				  "writes are held (%d ms); try again", s->name, HOLD_MS);
	arguments = one_argument("node", json_object_new_string(s->old_node));
	json_object_object_add(arguments, "overlay", json_object_new_string(s->node));
	if (s->held)
		json_object_object_add(arguments, "qchain-held", json_object_new_boolean(true));
	ret = client_command(s->served.client, "blockdev-snapshot", arguments, false, NULL, err);
	s->publish_ns = now_ns() - start;
	s->published = ret == 0;
	s->unknown = ret && ret != -EPROTO;
	crash_point("snapshot.published");
	if (s->unknown)
		qc_err_prefix(err, "%s: it is not known whether snapshot %s was taken (qchainctl "
			      "tree, up or another snapshot will find out)", s->name, s->snap);
	return ret;
}

int snapshot_settle(struct snapshot *s, struct qc_err *err)
{
	int ret;

	if (!s->header_name[0])
		return 0;
	ret = proxmox_settle_served(&s->served, &s->dir, err);
	if (ret)
		return qc_err_prefix(err, "%s: snapshot %s was taken, but not all LVs have the "
				     "names that Proxmox VE expects yet (the next verb goes on "
				     "with it)",
				     s->name, s->snap);
	snprintf(s->overlay.path, sizeof(s->overlay.path), "%s", served_top(&s->served));
	snprintf(s->old_top, sizeof(s->old_top), "%.4000s/%.90s", s->place.dir, s->header_name);
	return 0;
}

int snapshot_undo(struct snapshot *s, struct qc_err *err)
{
	if (s->published || s->unknown || !s->record || !s->overlay.name[0])
		return 0;
	return take_back(s, err);
}

void snapshot_close(struct snapshot *s)
{
	record_place_exit(&s->place);
	served_exit(&s->served);
	rundir_unlock(&s->dir);
}
