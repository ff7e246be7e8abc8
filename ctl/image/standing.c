// SPDX-License-Identifier: GPL-2.0-or-later
/* Headers of all images around a chain: does one of them stand on a layer? */
#include "standing.h"

#include <dirent.h>
#include <errno.h>
#include <qchain/lvm.h>
#include <qchain/overlays.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct search {
	const struct chain *chain;
	u32 first;
	u32 last;
	struct image_ident *idents; /* of all layers, by depth */
	struct qc_err *err;
};

/* The depth of the layer that this is; -1: none. */
static int depth_of(const struct search *s, const struct image_ident *ident)
{
	u32 i;

	for (i = 0; i < s->chain->nr_layers; i++)
		if (image_ident_same(&s->idents[i], ident))
			return i;
	return -1;
}

static int unreadable(struct search *s, const char *path, const char *why)
{
	return qc_err_set(s->err, -EBUSY, "%s: cannot be looked at (%s), and may stand on %s; make "
			  "it readable, or say --assume-unshared if you know that nothing does",
			  path, why, s->chain->layers[s->last].path);
}

static int judge(struct search *s, const char *path)
{
	struct image_ident backing;
	int depth, ret = overlay_backing(path, &backing);

	if (ret < 0)
		return unreadable(s, path, strerror(-ret));
	depth = ret ? depth_of(s, &backing) : -1;
	if (depth < (int)s->first || depth > (int)s->last)
		return 0;
	return qc_err_set(s->err, -EBUSY, "%s: is the backing image of %s, which is not part of "
			  "this chain and would be damaged; rebase or remove that image first",
			  s->chain->layers[depth].path, path);
}

/* Layers themselves do not count. */
static int look_at(struct search *s, const char *path)
{
	struct image_ident ident;

	if (image_ident_of(path, &ident) || depth_of(s, &ident) >= 0)
		return 0;
	return judge(s, path);
}

static int scan_directory(struct search *s, const char *dir)
{
	struct dirent *entry;
	char path[4096];
	DIR *d = opendir(dir);
	int ret = 0;

	if (!d)
		return unreadable(s, dir, strerror(errno));
	while (!ret && (entry = readdir(d))) {
		if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
			continue;
		snprintf(path, sizeof(path), "%s/%s", dir, entry->d_name);
		ret = look_at(s, path);
	}
	closedir(d);
	return ret;
}

static int scan_group(struct search *s, const char *vg)
{
	struct lvm_lv *lvs;
	char path[300];
	u32 nr, i;
	int ret = lvm_list(vg, &lvs, &nr, s->err);

	for (i = 0; i < nr && !ret; i++) {
		snprintf(path, sizeof(path), "/dev/%s/%s", lvs[i].vg, lvs[i].name);
		ret = lvs[i].active ? look_at(s, path) : unreadable(s, path, "not active");
	}
	free(lvs);
	return ret;
}

/* Around one layer: its VG, or its directory. */
static int scan_around(struct search *s, const struct chain_layer *layer)
{
	const char *path = layer->img->dev->path;
	const char *slash = strrchr(path, '/');
	char text[4096];

	if (!layer->img->dev->blockdev) {
		snprintf(text, sizeof(text), "%.*s", slash ? (int)max(1, (int)(slash - path)) : 1,
			 slash ? path : ".");
		return scan_directory(s, text);
	}
	/* only a path /dev/VG/LV names a group; other devices belong to none */
	if (strncmp(path, "/dev/", 5) || !slash || slash == path + 4 ||
	    !strncmp(path, "/dev/mapper/", 12))
		return 0;
	snprintf(text, sizeof(text), "%.*s", (int)(slash - path - 5), path + 5);
	return strchr(text, '/') ? 0 : scan_group(s, text);
}

/* The same place was scanned for a layer above it. */
static bool seen_before(const struct search *s, u32 depth)
{
	const char *path = s->chain->layers[depth].img->dev->path, *other;
	const char *slash = strrchr(path, '/');
	size_t len = slash ? slash - path : 0;
	u32 i;

	for (i = s->first; i < depth; i++) {
		other = s->chain->layers[i].img->dev->path;
		slash = strrchr(other, '/');
		if ((slash ? (size_t)(slash - other) : 0) == len && !strncmp(path, other, len))
			return true;
	}
	return false;
}

int standing_check(const struct chain *chain, u32 first, u32 last, struct qc_err *err)
{
	struct search s = { .chain = chain, .first = first, .last = last, .err = err };
	u32 i;
	int ret = 0;

	s.idents = calloc(chain->nr_layers, sizeof(*s.idents));
	if (!s.idents)
		return qc_err_set(err, -ENOMEM, "out of memory");
	for (i = 0; i < chain->nr_layers && !ret; i++) {
		ret = image_ident_of(chain->layers[i].img->dev->path, &s.idents[i]);
		if (ret)
			qc_err_set(err, ret, "%s: stat failed (%s)", chain->layers[i].path,
				   strerror(-ret));
	}
	for (i = first; i <= last && !ret; i++)
		if (!seen_before(&s, i))
			ret = scan_around(&s, &chain->layers[i]);
	free(s.idents);
	return ret;
}
