// SPDX-License-Identifier: GPL-2.0-or-later
/* Making the logical volumes of a chain active, and inactive again. */
#include "lv-names.h"
#include "served.h"

#include <errno.h>
#include <qchain/image.h>
#include <qchain/io.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The LVs of one volume group, as they were at the start. */
struct group {
	char name[128];
	struct lvm_lv *lvs;
	u32 nr;
};

static struct lvm_lv *group_find(struct group *group, const char *lv)
{
	for (u32 i = 0; i < group->nr; i++) {
		if (strcmp(group->lvs[i].name, lv) == 0)
			return &group->lvs[i];
	}
	return NULL;
}

static int activate_one(struct lvm_lv *lv, json_object *activated, struct qc_err *err)
{
	char text[260];
	int ret;

	if (lv->active)
		return 0;
	ret = lvm_activate(lv->vg, lv->name, true, err);
	if (ret)
		return ret;
	lv->active = true;
	snprintf(text, sizeof(text), "%s/%s", lv->vg, lv->name);
	json_object_array_add(activated, json_object_new_string(text));
	return 0;
}

/* What cannot be read qchaind will say why. */
char *header_backing_name(const char *path)
{
	struct io_dev *dev;
	struct image *img;
	char *name;

	if (io_dev_open(path, IO_DEV_NOLOCK, &dev, NULL))
		return NULL;
	if (image_open(dev, IMAGE_QCOW2, IMAGE_OPEN_CHECK, &img, NULL))
		return NULL;
	name = img->backing_name ? strdup(img->backing_name) : NULL;
	image_close(img);
	return name;
}

static int activate_below(struct group *group, struct lvm_lv *lv, json_object *activated,
			  struct qc_err *err)
{
	char path[300], *name;
	int ret = 0;

	/* A loop of backing names ends here too: each LV is passed once at most. */
	for (u32 i = 0; lv && ret == 0 && i < group->nr; i++) {
		ret = activate_one(lv, activated, err);
		if (ret)
			break;
		snprintf(path, sizeof(path), "/dev/%s/%s", lv->vg, lv->name);
		name = header_backing_name(path);
		lv = name ? lv_of_backing(group->lvs, group->nr, group->name, name) : NULL;
		free(name);
	}
	return ret;
}

int activate_chain(const char *top, json_object *activated, struct qc_err *err)
{
	struct group group = { .nr = 0 };
	char lv_name[128];
	struct lvm_lv *lv;
	int ret;

	if (!lv_path_split(top, group.name, lv_name))
		return 0;
	ret = lvm_list(group.name, &group.lvs, &group.nr, err);
	if (ret)
		return ret;
	lv = group_find(&group, lv_name);
	if (lv)
		ret = activate_below(&group, lv, activated, err);
	else
		ret = qc_err_set(err, -ENOENT, "%s/%s: no such LV; see lvs %s", group.name, lv_name,
				 group.name);
	free(group.lvs);
	return ret;
}

int activate_missing(const char *top, json_object *activated, struct qc_err *err)
{
	return access(top, F_OK) == 0 ? 0 : activate_chain(top, activated, err);
}

/* @text: VG/LV; one that was removed meanwhile is fine */
static int deactivate_one(const char *text, struct qc_err *err)
{
	const char *slash = strchr(text, '/');
	struct qc_err why = { 0 };
	struct lvm_lv *lv = NULL;
	char vg[128];
	int ret;

	if (!slash)
		return 0;
	snprintf(vg, sizeof(vg), "%.*s", (int)(slash - text), text);
	ret = lvm_activate(vg, slash + 1, false, &why);
	if (!ret)
		return 0;
	if (lvm_find(vg, slash + 1, &lv, NULL) == -ENOENT)
		return 0;
	free(lv);
	return qc_err_set(err, ret, "%s", why.msg);
}

int deactivate_chain(json_object *activated, struct qc_err *err)
{
	u32 nr = activated ? json_object_array_length(activated) : 0;
	int ret = 0, one;

	for (u32 i = 0; i < nr; i++) {
		one = deactivate_one(json_object_get_string(
				     json_object_array_get_idx(activated, i)), err);
		ret = ret ? ret : one;
	}
	return ret;
}
