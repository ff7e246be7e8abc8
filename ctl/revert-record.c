// SPDX-License-Identifier: GPL-2.0-or-later
/* The record's side of a revert: what goes, and which of two images is the top. */
#include "revert-record.h"

#include "overlay.h"

#include <errno.h>
#include <qchain/image.h>
#include <stdlib.h>
#include <string.h>
#include <uapi/qcow2.h>

/* ---- the branch that goes ------------------------------------------------------------ */

static bool is_below(const struct family *family, u32 member, u32 from)
{
	for (u32 n = 0; n < family->nr && from != FAMILY_NONE; n++) {
		if (from == member)
			return true;
		from = family->members[from].backing;
	}
	return false;
}

int revert_branch(const struct family *family, const struct device_record *record, u32 target,
		  u32 **result, u32 *nr, struct qc_err *err)
{
	u32 at = family_find(family, record->top), other, others;

	if (at == FAMILY_NONE)
		return qc_err_set(err, -ENOENT, "%s: its top is not there any more", record->name);
	*nr = 0;
	*result = calloc(family->nr, sizeof(**result));
	if (!*result)
		return qc_err_set(err, -ENOMEM, "%s: out of memory", record->name);
	while (at != FAMILY_NONE && *nr < family->nr && !is_below(family, at, target)) {
		others = family_overlays(family, at, &other);
		if (others > (*nr ? 1 : 0))
			break;
		(*result)[(*nr)++] = at;
		at = family->members[at].backing;
	}
	return 0;
}

static int bury_branch(const struct family *family, struct device_record *record,
		       struct qc_err *err)
{
	const struct record_snapshot *s = device_record_by_name(record, record->revert.snapshot);
	u32 target = s ? family_find(family, s->image) : FAMILY_NONE;
	u32 *dropped, nr;
	int ret;

	if (target == FAMILY_NONE)
		return qc_err_set(err, -ENOENT, "%s: snapshot %s, which it was reverted to, is not "
				  "there any more", record->name, record->revert.snapshot);
	ret = revert_branch(family, record, target, &dropped, &nr, err);
	if (ret)
		return ret;
	for (u32 i = 0; i < nr && !ret; i++)
		ret = device_record_bury(record, family->members[dropped[i]].image,
					 record->revert.wipe);
	free(dropped);
	return ret ? qc_err_set(err, ret, "%s: out of memory", record->name) : 0;
}

int revert_apply(const struct record_place *place, struct device_record *record,
		 struct qc_err *err)
{
	struct family family;
	int ret = family_read(place, &family, err);

	if (ret)
		return ret;
	if (record->revert.keep[0])
		ret = device_record_add(record, record->revert.keep, record->top);
	else
		ret = bury_branch(&family, record, err);
	family_exit(&family);
	if (ret)
		return err->code ? ret : qc_err_set(err, ret, "%s: out of memory", record->name);
	device_record_set_top(record, record->revert.overlay, false);
	record->pending[0] = 0;
	record->revert = (struct record_revert){ .wipe = false };
	return record_place_save(place, record, err);
}

/* ---- after a death ---------------------------------------------------------------------- */

/* Marked as open for writing, or with data: a daemon has served it. */
static bool was_served(const char *path)
{
	struct io_dev *dev;
	struct image *img;
	bool served;

	if (io_dev_open(path, IO_DEV_NOLOCK, &dev, NULL) ||
	    image_open(dev, IMAGE_QCOW2, 0, &img, NULL))
		return false;
	served = img->autoclear & QCOW2_AUTOCLEAR_QCHAIN_OPEN ||
		 l1_next(&img->l1, 0, img->l1_size) != img->l1_size;
	image_close(img);
	return served;
}

static bool is_same(const char *a, const char *b)
{
	struct image_ident x, y;

	return !image_ident_of(a, &x) && !image_ident_of(b, &y) && image_ident_same(&x, &y);
}

/* LVs that are not active are made so for the look. */
static bool has_taken_place(const struct record_place *place, const struct device_record *record,
			    const char *served)
{
	const struct lvm_lv *lv = record_place_lv(place, record->revert.overlay);
	char path[4096];
	bool activated, result;

	if (record_place_path(place, record->revert.overlay, path, sizeof(path), NULL))
		return false;
	if (served)
		return is_same(path, served);
	activated = place->vg[0] && !lv->active && !lvm_activate(lv->vg, lv->name, true, NULL);
	result = was_served(path);
	if (activated)
		lvm_activate(lv->vg, lv->name, false, NULL);
	return result;
}

int revert_settle(const struct record_place *place, struct device_record *record,
		  const char *served, struct qc_err *err)
{
	bool done;

	if (!record->revert.overlay[0])
		return 0;
	done = has_taken_place(place, record, served);
	fprintf(stderr, "qchainctl: %s: the revert to snapshot %s was interrupted and has %staken "
		"place\n", record->name, record->revert.snapshot, done ? "" : "not ");
	if (done)
		return revert_apply(place, record, err);
	record->revert = (struct record_revert){ .wipe = false };
	return record_place_save(place, record, err);
}

int revert_settle_served(struct served *served, const struct rundir *dir,
			 const struct record_place *place, struct device_record *record,
			 struct qc_err *err)
{
	struct overlay overlay = { .device = record->name };
	char node[QC_MAX_NODE_NAME + 1], path[4096];
	int ret;

	if (!record->revert.overlay[0])
		return 0;
	if (!record_place_path(place, record->revert.overlay, path, sizeof(path), NULL)) {
		snprintf(overlay.name, sizeof(overlay.name), "%.127s", strrchr(path, '/') + 1);
		overlay_node_name(&overlay, node);
		overlay_withdraw(served->client, node);
	}
	ret = revert_settle(place, record, served_top(served), err);
	if (ret)
		return ret;
	record_note(place, record, served_top(served), served->record);
	return rundir_save(dir, served->record, err);
}

void revert_settle_state(json_object *state)
{
	const char *overlay = json_text(state, "reverting");

	if (!overlay || !was_served(overlay))
		return;
	json_object_object_add(state, "top", json_object_new_string(overlay));
	json_object_object_add(state, "format", json_object_new_string("qcow2"));
}
