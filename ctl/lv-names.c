// SPDX-License-Identifier: GPL-2.0-or-later
/* Which LV a path or a backing name means. */
#include "lv-names.h"

#include <qchain/image.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define MAPPER "/dev/mapper/"

bool lv_path_split(const char *path, char *vg, char *lv)
{
	const char *slash;

	if (strncmp(path, "/dev/", 5) != 0)
		return false;
	path += 5;
	slash = strchr(path, '/');
	if (!slash || slash == path || slash - path >= 128 || !slash[1] ||
	    strlen(slash + 1) >= 128 || strchr(slash + 1, '/'))
		return false;
	snprintf(vg, 128, "%.*s", (int)(slash - path), path);
	snprintf(lv, 128, "%s", slash + 1);
	return strcmp(vg, "mapper") != 0 && strcmp(vg, "qchain") != 0;
}

bool lv_path_find(const char *path, char *vg, char *lv)
{
	char lv_path[512];
	struct stat st;

	if (stat(path, &st) == 0 && S_ISBLK(st.st_mode))
		return image_lv_path(st.st_rdev, lv_path, sizeof(lv_path)) &&
		       lv_path_split(lv_path, vg, lv);
	return lv_path_split(path, vg, lv);
}

/* device-mapper's name of @lv: a hyphen of a name stands twice. */
static void mapper_name(const struct lvm_lv *lv, char *text)
{
	const char *const parts[] = { lv->vg, "-", lv->name };

	for (u32 i = 0; i < ARRAY_SIZE(parts); i++)
		for (const char *c = parts[i]; *c; c++) {
			*text++ = *c;
			if (*c == '-' && i != 1)
				*text++ = '-';
		}
	*text = 0;
}

static struct lvm_lv *by_name(struct lvm_lv *lvs, u32 nr, const char *vg, const char *name)
{
	for (u32 i = 0; i < nr; i++)
		if (!strcmp(lvs[i].name, name) && !strcmp(lvs[i].vg, vg))
			return &lvs[i];
	return NULL;
}

static struct lvm_lv *by_mapper_name(struct lvm_lv *lvs, u32 nr, const char *vg, const char *name)
{
	char text[2 * sizeof(lvs->vg) + 2 * sizeof(lvs->name) + 2];

	for (u32 i = 0; i < nr; i++) {
		mapper_name(&lvs[i], text);
		if (!strcmp(text, name) && !strcmp(lvs[i].vg, vg))
			return &lvs[i];
	}
	return NULL;
}

struct lvm_lv *lv_of_backing(struct lvm_lv *lvs, u32 nr, const char *vg, const char *name)
{
	char other_vg[128], lv[128];

	if (backing_volume(name))
		return by_name(lvs, nr, vg, backing_volume(name));
	if (!strchr(name, '/'))
		return by_name(lvs, nr, vg, name);
	if (!strncmp(name, MAPPER, strlen(MAPPER)))
		return by_mapper_name(lvs, nr, vg, name + strlen(MAPPER));
	if (lv_path_split(name, other_vg, lv) && !strcmp(vg, other_vg))
		return by_name(lvs, nr, vg, lv);
	return NULL;
}

bool lv_backing_is_outside(const char *vg, const char *name)
{
	struct lvm_lv lv = { .name = "" };
	char other_vg[128], other_lv[128], prefix[2 * sizeof(lv.vg) + 2];

	if (name[0] != '/')
		return false;
	snprintf(lv.vg, sizeof(lv.vg), "%s", vg);
	mapper_name(&lv, prefix);
	if (!strncmp(name, MAPPER, strlen(MAPPER)))
		return strncmp(name + strlen(MAPPER), prefix, strlen(prefix)) != 0;
	return !lv_path_split(name, other_vg, other_lv) || strcmp(vg, other_vg) != 0;
}

bool lv_tag_value(const char *tags, const char *prefix, char *value, size_t bytes)
{
	size_t len = strlen(prefix);

	for (const char *at = tags; *at; at += strcspn(at, ","), at += *at == ',') {
		if (strncmp(at, prefix, len))
			continue;
		snprintf(value, bytes, "%.*s", (int)strcspn(at + len, ","), at + len);
		return true;
	}
	return false;
}
