// SPDX-License-Identifier: GPL-2.0-or-later
/* Snapshots of a device that are not below its top: which image they stand on. */
#include "branches.h"
#include "family.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* Of a family: what is drawn beside the chain. */
struct branches {
	const struct served *served;
	struct record_place place;
	struct family family;
	bool *is_layer;
	bool *is_wanted;
};

/* From a snapshot's image down to the chain; one that does not lead there is no branch of it. */
static void want(struct branches *b, const char *file)
{
	u32 member = family_find_path(&b->family, file);
	u32 steps = 0;

	while (member != FAMILY_NONE && !b->is_layer[member] && steps++ < b->family.nr) {
		b->is_wanted[member] = true;
		member = b->family.members[member].backing;
	}
}

static void add_size(const struct branches *b, const struct family_member *m, json_object *image)
{
	const struct lvm_lv *lv = b->place.vg[0] ? record_place_lv(&b->place, m->image) : NULL;
	struct stat st;

	if (lv)
		json_object_object_add(image, "actual-size", json_object_new_int64(lv->size_bytes));
	else if (!stat(m->path, &st))
		json_object_object_add(image, "actual-size",
				       json_object_new_int64((s64)st.st_blocks * 512));
}

static json_object *make_image(const struct branches *b, const struct family_member *m)
{
	json_object *image = json_object_new_object();
	const char *slash = strrchr(m->path, '/');
	const char *snapshot = served_snapshot(b->served, m->path);

	json_object_object_add(image, "node-name",
			       json_object_new_string(slash ? slash + 1 : m->path));
	json_object_object_add(image, "file", json_object_new_string(m->path));
	json_object_object_add(image, "snapshot",
			       snapshot ? json_object_new_string(snapshot) : NULL);
	json_object_object_add(image, "state", json_object_new_string("kept"));
	add_size(b, m, image);
	return image;
}

/* What stands on @member, and on that, and so on. */
static void grow(struct branches *b, u32 member, json_object *image)
{
	json_object *list = NULL, *above;

	for (u32 i = 0; i < b->family.nr; i++) {
		if (b->family.members[i].backing != member || !b->is_wanted[i])
			continue;
		b->is_wanted[i] = false;
		above = make_image(b, &b->family.members[i]);
		grow(b, i, above);
		if (!list)
			list = json_object_new_array();
		json_object_array_add(list, above);
	}
	if (list)
		json_object_object_add(image, "branches", list);
}

static int open_family(struct branches *b, json_object *layers, struct qc_err *err)
{
	char image[RECORD_IMAGE_BYTES];
	int ret = record_place_of(served_top(b->served), &b->place, image, err);

	if (ret == 0)
		ret = family_read(&b->place, &b->family, err);
	if (ret)
		return ret;
	b->is_layer = calloc(b->family.nr + 1, sizeof(bool));
	b->is_wanted = calloc(b->family.nr + 1, sizeof(bool));
	if (!b->is_layer || !b->is_wanted)
		return qc_err_set(err, -ENOMEM, "%s: out of memory", b->served->name);
	for (u32 i = 0; i < json_object_array_length(layers); i++) {
		json_object *layer = json_object_array_get_idx(layers, i);
		u32 member = family_find_path(&b->family, json_text(layer, "file"));

		if (member != FAMILY_NONE)
			b->is_layer[member] = true;
	}
	return 0;
}

static void add_all(struct branches *b, json_object *snapshots, json_object *layers)
{
	for (u32 i = 0; i < json_object_array_length(snapshots); i++)
		want(b, json_text(json_object_array_get_idx(snapshots, i), "file"));
	for (u32 i = 0; i < json_object_array_length(layers); i++) {
		json_object *layer = json_object_array_get_idx(layers, i);
		u32 member = family_find_path(&b->family, json_text(layer, "file"));

		if (member != FAMILY_NONE)
			grow(b, member, layer);
	}
}

int branches_add(const struct served *served, json_object *layers, struct qc_err *err)
{
	struct branches b = { .served = served };
	u32 nr, i;
	json_object *snapshots = json_list(served->record, "snapshots", &nr);
	int ret;

	for (i = 0; i < nr; i++)
		if (layer_depth(layers, json_text(json_object_array_get_idx(snapshots, i),
						  "file")) < 0)
			break;
	if (i == nr)
		return 0;
	ret = open_family(&b, layers, err);
	if (ret == 0)
		add_all(&b, snapshots, layers);
	free(b.is_layer);
	free(b.is_wanted);
	family_exit(&b.family);
	record_place_exit(&b.place);
	return ret;
}
