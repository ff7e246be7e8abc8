// SPDX-License-Identifier: GPL-2.0-or-later
/* Which image of a VG or directory stands on which: by the headers of all of them. */
#include "family.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* ---- looking -------------------------------------------------------------------- */

static void set_unknown(struct family *family, const char *path, int why)
{
	if (family->unknown[0])
		return;
	snprintf(family->unknown, sizeof(family->unknown), "%s", path);
	family->why = why;
}

static int add(struct family *family, const struct record_place *place, const char *path,
	       const char *image)
{
	struct family_member *larger, *m;
	int ret = 0;

	larger = realloc(family->members, (family->nr + 1) * sizeof(*larger));
	if (!larger)
		return -ENOMEM;
	family->members = larger;
	m = &larger[family->nr];
	*m = (struct family_member){ .backing = FAMILY_NONE };
	if (image_ident_of(path, &m->ident))
		return 0; /* gone just now */
	if (!record_is_raw_top(place, image)) /* whatever its guest has written there */
		ret = overlay_backing(path, &m->below);
	if (ret < 0)
		set_unknown(family, path, ret);
	m->has_below = ret == 1;
	snprintf(m->image, sizeof(m->image), "%s", image);
	m->path = strdup(path);
	family->nr++;
	return m->path ? 0 : -ENOMEM;
}

/* An overlay that is being made, or an image that is a layer no more. */
static bool is_left_out(const struct record_place *place, const char *image)
{
	for (u32 i = 0; i < place->nr_records; i++)
		if (!strcmp(place->records[i].pending, image) ||
		    device_record_is_dead(&place->records[i], image))
			return true;
	return false;
}

/* An LV that is looked at. */
static bool is_member(const struct record_place *place, const struct lvm_lv *lv)
{
	return !strstr(lv->tags, "qchain.new=") && !is_left_out(place, lv->uuid);
}

/* All before the first is looked at: a backing name leads nowhere if that is not active. */
static void activate(const struct record_place *place, bool *activated)
{
	for (u32 i = 0; i < place->nr_lvs; i++) {
		const struct lvm_lv *lv = &place->lvs[i];

		activated[i] = !lv->active && is_member(place, lv) &&
			       !lvm_activate(lv->vg, lv->name, true, NULL);
	}
}

static int read_group(struct family *family, const struct record_place *place)
{
	bool *activated = calloc(place->nr_lvs + 1, sizeof(*activated));
	char path[300];
	int ret = activated ? 0 : -ENOMEM;

	if (!ret)
		activate(place, activated);
	for (u32 i = 0; i < place->nr_lvs && !ret; i++) {
		const struct lvm_lv *lv = &place->lvs[i];

		snprintf(path, sizeof(path), "/dev/%s/%s", lv->vg, lv->name);
		if (!is_member(place, lv))
			continue;
		if (lv->active || activated[i])
			ret = add(family, place, path, lv->uuid);
		else
			set_unknown(family, path, -ENODEV);
	}
	for (u32 i = 0; activated && i < place->nr_lvs; i++)
		if (activated[i])
			lvm_activate(place->lvs[i].vg, place->lvs[i].name, false, NULL);
	free(activated);
	return ret;
}

static int add_file(struct family *family, const struct record_place *place, const char *name)
{
	char path[4096];
	struct stat st;

	if (snprintf(path, sizeof(path), "%s/%s", place->dir, name) >= (int)sizeof(path) ||
	    stat(path, &st) || !S_ISREG(st.st_mode) || is_left_out(place, name))
		return 0;
	return add(family, place, path, name);
}

static int read_dir(struct family *family, const struct record_place *place)
{
	struct dirent *entry;
	DIR *d = opendir(place->dir);
	int ret = 0;

	if (!d)
		return -errno;
	while (!ret && (entry = readdir(d)))
		ret = add_file(family, place, entry->d_name);
	closedir(d);
	return ret;
}

static void link_members(struct family *family)
{
	for (u32 i = 0; i < family->nr; i++)
		for (u32 k = 0; family->members[i].has_below && k < family->nr; k++)
			if (image_ident_same(&family->members[i].below, &family->members[k].ident))
				family->members[i].backing = k;
}

int family_read(const struct record_place *place, struct family *result, struct qc_err *err)
{
	int ret;

	*result = (struct family){ .nr = 0 };
	ret = place->vg[0] ? read_group(result, place) : read_dir(result, place);
	if (ret) {
		family_exit(result);
		return qc_err_set(err, ret, "%s: images not looked at (%s)", place->dir,
				  strerror(-ret));
	}
	link_members(result);
	return 0;
}

void family_exit(struct family *family)
{
	for (u32 i = 0; i < family->nr; i++)
		free(family->members[i].path);
	free(family->members);
	*family = (struct family){ .nr = 0 };
}

/* ---- asking ---------------------------------------------------------------------- */

u32 family_find(const struct family *family, const char *image)
{
	for (u32 i = 0; i < family->nr; i++)
		if (!strcmp(family->members[i].image, image))
			return i;
	return FAMILY_NONE;
}

u32 family_find_path(const struct family *family, const char *path)
{
	struct image_ident ident;

	if (image_ident_of(path, &ident))
		return FAMILY_NONE;
	for (u32 i = 0; i < family->nr; i++)
		if (image_ident_same(&family->members[i].ident, &ident))
			return i;
	return FAMILY_NONE;
}

u32 family_overlays(const struct family *family, u32 member, u32 *result)
{
	u32 nr = 0;

	for (u32 i = 0; i < family->nr; i++) {
		if (family->members[i].backing != member)
			continue;
		if (!nr++)
			*result = i;
	}
	return nr;
}

enum image_format family_format(const struct family *family, u32 member)
{
	enum image_format format = IMAGE_QCOW2;
	struct io_dev *dev;
	struct image *img;
	u32 above = 0;

	if (!family_overlays(family, member, &above) ||
	    io_dev_open(family->members[above].path, IO_DEV_NOLOCK, &dev, NULL) ||
	    image_open(dev, IMAGE_QCOW2, 0, &img, NULL))
		return format;
	if (img->backing_format && image_format_parse(img->backing_format, &format))
		format = IMAGE_QCOW2;
	image_close(img);
	return format;
}
