// SPDX-License-Identifier: GPL-2.0-or-later
/* Layers of a volume of Proxmox VE are merged: the snapshots between are deleted, one by one. */
#include "proxmox-merge.h"

#include "delete.h"
#include "manager.h"
#include "proxmox.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/*
 * There an LV that is no layer any more may not stay, as it still has the name of a
 * snapshot; and what has received the data of others gets the name of the last of them.
 * `delete` does all that, so:
 *
 *   stream   from the top down: what each snapshot keeps goes up into what receives
 *   commit   from the base up: each goes by what was written since coming down into it,
 *            and its LV is called as the next one then
 *
 * Each byte is moved once, as by one merge.
 */

struct chosen {
	const struct proxmox_merge *m;
	char (*names)[QC_MAX_SNAPSHOT_NAME + 1]; /* in the order in which they go */
	u32 nr;
	u64 moved;
};

/* ---- which snapshots ----------------------------------------------------------------- */

/* By snapshot, path, VG/LV or LV. */
static u32 find_member(const struct device_images *d, const char *name)
{
	const struct record_snapshot *s = device_record_by_name(d->record, name);
	char path[4096];

	if (s)
		return family_find(&d->family, s->image);
	if (name[0] == '/')
		snprintf(path, sizeof(path), "%s", name);
	else if (strchr(name, '/'))
		snprintf(path, sizeof(path), "/dev/%s", name);
	else
		snprintf(path, sizeof(path), "%s/%s", d->place.dir, name);
	return family_find_path(&d->family, path);
}

/* The volume and what is below it; malloc'ed. */
static u32 *list_layers(const struct device_images *d, u32 *nr)
{
	u32 *layers = calloc(d->family.nr + 1, sizeof(*layers));
	u32 at = family_find(&d->family, d->record->top);

	*nr = 0;
	while (layers && at != FAMILY_NONE && *nr < d->family.nr) {
		layers[(*nr)++] = at;
		at = d->family.members[at].backing;
	}
	return layers;
}

static int find_depth(const struct device_images *d, const u32 *layers, u32 nr, const char *name,
		      u32 *depth, struct qc_err *err)
{
	u32 member = find_member(d, name);

	for (*depth = 0; *depth < nr; ++*depth)
		if (layers[*depth] == member)
			return 0;
	return qc_err_set(err, -ENOENT, "%s: no layer of %s, expected a snapshot, or an LV of its "
			  "chain", name, d->name);
}

static int find_range(const struct device_images *d, const struct proxmox_merge *m,
		      const u32 *layers, u32 nr, u32 *top, u32 *base, struct qc_err *err)
{
	int ret = 0;

	*top = 0;
	if (m->top)
		ret = find_depth(d, layers, nr, m->top, top, err);
	*base = m->up ? nr : *top + 1;
	if (!ret && m->base)
		ret = find_depth(d, layers, nr, m->base, base, err);
	if (ret)
		return ret;
	if (*base <= *top || (!m->up && *base >= nr))
		return qc_err_set(err, -EINVAL, "%s: no layer below it is meant, expected --base, "
				  "one that is below", d->family.members[layers[*top]].path);
	return 0;
}

static int take_name(struct chosen *c, const struct device_images *d, u32 member,
		     struct qc_err *err)
{
	const struct family_member *image = &d->family.members[member];
	const struct record_snapshot *s = device_record_by_image(d->record, image->image);

	if (!s)
		return qc_err_set(err, -EOPNOTSUPP, "%s: is no snapshot of %s, and cannot go; "
				  "expected --base, a layer %s it", image->path, d->record->volume,
				  c->m->up ? "not below" : "above");
	strcpy(c->names[c->nr++], s->name);
	return 0;
}

static bool is_in(const u32 *layers, u32 nr, u32 member)
{
	for (u32 i = 0; i < nr; i++)
		if (layers[i] == member)
			return true;
	return false;
}

/* Taken out of the chain by a stream that was interrupted, and in the way: they go first. */
static void take_left(struct chosen *c, const struct device_images *d, const u32 *layers, u32 nr)
{
	const struct family *family = &d->family;
	u32 member, other;

	for (u32 i = 0; i < d->place.nr_lvs && c->nr < family->nr; i++) {
		const struct lvm_lv *lv = &d->place.lvs[i];

		member = record_is_foreign(lv) ? family_find(family, lv->uuid) : FAMILY_NONE;
		if (member == FAMILY_NONE || is_in(layers, nr, member) ||
		    family_overlays(family, member, &other))
			continue;
		if (is_in(layers, nr, family->members[member].backing) &&
		    proxmox_snapshot_of(d->record->volume, lv->name, c->names[c->nr]))
			c->nr++;
	}
}

static int choose(struct chosen *c, const struct device_images *d, struct qc_err *err)
{
	u32 nr, top = 0, base = 0, *layers = list_layers(d, &nr);
	int ret = layers ? find_range(d, c->m, layers, nr, &top, &base, err) :
			   qc_err_set(err, -ENOMEM, "%s: out of memory", d->name);

	if (!ret)
		c->names = calloc(d->family.nr + 1, sizeof(*c->names));
	if (!ret && !c->names)
		ret = qc_err_set(err, -ENOMEM, "%s: out of memory", d->name);
	if (!ret && c->m->up)
		take_left(c, d, layers, nr);
	for (u32 i = top + 1; c->m->up && i < base && !ret; i++)
		ret = take_name(c, d, layers[i], err);
	for (u32 i = base; !c->m->up && i > top && !ret; i--)
		ret = take_name(c, d, layers[i], err);
	free(layers);
	return ret;
}

static int check_meant(const struct chosen *c, struct qc_err *err)
{
	char list[512] = "";
	size_t len = 0;

	for (u32 i = 0; i < c->nr && len < sizeof(list); i++)
		len += snprintf(list + len, sizeof(list) - len, "%s%s", i ? ", " : "", c->names[i]);
	if (!c->nr || c->m->drop_snapshots)
		return 0;
	return qc_err_set(err, -EBUSY, "%s: belongs to Proxmox VE, where what is merged is no "
			  "snapshot any more: %s would be lost; say --drop-snapshots", c->m->name,
			  list);
}

static int look(struct chosen *c, struct qc_err *err)
{
	struct device_images d = { .name = c->m->name, .where = c->m->vg, .beside = true,
				   .dir.lock_fd = -1 };
	struct qc_err second = { 0 };
	int ret = device_images_open(&d, err);

	if (!ret)
		ret = choose(c, &d, err);
	if (!ret)
		ret = check_meant(c, err);
	if (device_images_close(&d, ret ? &second : err) && !ret)
		ret = err->code;
	return ret;
}

/* ---- one after the other --------------------------------------------------------------- */

static int delete_one(struct chosen *c, const char *snap, struct qc_err *err)
{
	struct deletion d = {
		.images = { .name = c->m->name, .where = c->m->vg, .beside = true,
			    .dir.lock_fd = -1 },
		.snap = snap, .speed = c->m->speed, .assume_unshared = c->m->assume_unshared,
		.wanted = c->m->up ? DIRECTION_STREAM : DIRECTION_COMMIT,
	};
	int ret = delete_whole(&d, NULL, err);

	if (!ret)
		c->moved += d.moved;
	return ret;
}

static void print_merged(const struct chosen *c)
{
	json_object *object, *list;
	bool one = c->nr == 1;
	char moved[32];

	print_size(c->moved, moved);
	if (!c->m->json) {
		printf("%s: %u snapshot%s merged %s, %s moved; %s\n", c->m->name, c->nr,
		       one ? "" : "s", c->m->up ? "up" : "down", moved,
		       one ? "it is gone, and so is its LV" :
			     "they are gone, and so are their LVs");
		return;
	}
	object = json_object_new_object();
	list = json_object_new_array();
	for (u32 i = 0; i < c->nr; i++)
		json_object_array_add(list, json_object_new_string(c->names[i]));
	json_add_string(object, "name", c->m->name);
	json_object_object_add(object, "snapshots", list);
	json_add_u64(object, "moved", c->moved);
	print_json(object);
}

int proxmox_merge(const struct verb *verb, const struct proxmox_merge *merge)
{
	struct chosen c = { .m = merge };
	struct qc_err err = { 0 };
	int ret;

	if (merge->detach)
		return verb_usage(verb, "--detach: %s belongs to Proxmox VE, where LVs are to be "
				  "removed and renamed afterwards", merge->name);
	ret = look(&c, &err);
	for (u32 i = 0; i < c.nr && !ret; i++)
		ret = delete_one(&c, c.names[i], &err);
	if (!ret)
		print_merged(&c);
	free(c.names);
	return ret ? print_error(&err) : CTL_DONE;
}

/* ---- whose is it ------------------------------------------------------------------------- */

bool proxmox_serves(const char *name)
{
	json_object *state = NULL;
	const char *top;
	bool result;

	if (rundir_load(name, &state, NULL))
		return false;
	top = json_text(state, "top");
	result = top && proxmox_owns(top);
	json_object_put(state);
	return result;
}

int proxmox_merge_of(const char *path, struct proxmox_merge *result, bool *is_volume,
		     struct qc_err *err)
{
	struct record_place *place;
	const struct lvm_lv *lv = record_lv_of(path, &place);
	int ret = lv ? manager_check(lv, err) : 0;

	*is_volume = !ret && lv && proxmox_is_volume(lv);
	if (*is_volume) {
		result->name = strdup(lv->name);
		result->vg = strdup(lv->vg);
		if (!result->name || !result->vg)
			ret = qc_err_set(err, -ENOMEM, "%s: out of memory", path);
	} else if (!ret && lv && record_is_foreign(lv) && strstr(lv->name, ".qcow2")) {
		ret = qc_err_set(err, -EOPNOTSUPP, "%s/%s: belongs to Proxmox VE, expected the "
				 "volume itself; its layers are said with --top, --into and --base",
				 lv->vg, lv->name);
	}
	record_place_free(place);
	return ret;
}

void proxmox_merge_exit(struct proxmox_merge *merge)
{
	free((char *)merge->name);
	free((char *)merge->vg);
}
