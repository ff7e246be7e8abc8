// SPDX-License-Identifier: GPL-2.0-or-later
/* Headers of all images around a chain: does one of them stand on a layer? */
#include "standing.h"

#include <dirent.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <qchain/lvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <uapi/qcow2.h>
#include <unistd.h>

/* What a look at one image needs: its header and its backing name. */
#define HEADER_BYTES 72u

struct ident {
	dev_t dev;
	ino_t ino; /* 0: a block device */
};

struct search {
	const struct chain *chain;
	u32 first;
	u32 last;
	struct ident *idents; /* of all layers, by depth */
	struct qc_err *err;
};

static int ident_of_path(const char *path, struct ident *result)
{
	struct stat st;

	if (stat(path, &st))
		return -errno;
	*result = (struct ident){ .dev = S_ISBLK(st.st_mode) ? st.st_rdev : st.st_dev,
				  .ino = S_ISBLK(st.st_mode) ? 0 : st.st_ino };
	return 0;
}

/* The depth of the layer that this is; -1: none. */
static int depth_of(const struct search *s, const struct ident *ident)
{
	u32 i;

	for (i = 0; i < s->chain->nr_layers; i++)
		if (s->idents[i].dev == ident->dev && s->idents[i].ino == ident->ino)
			return i;
	return -1;
}

static int unreadable(struct search *s, const char *path, const char *why)
{
	return qc_err_set(s->err, -EBUSY, "%s: cannot be looked at (%s), and may stand on %s; make "
			  "it readable, or say --assume-unshared if you know that nothing does",
			  path, why, s->chain->layers[s->last].path);
}

/*
 * The backing name in the header at @fd, as a path; malloc'ed. NULL: not a qcow2
 * image, or none below it. -errno: it cannot be told.
 */
static int backing_path(int fd, const char *path, char **result)
{
	struct qcow2_disk_header h;
	char name[QC_MAX_BACKING_NAME + 1];
	const char *slash = strrchr(path, '/');
	u64 offset;
	u32 len;
	ssize_t n = pread(fd, &h, HEADER_BYTES, 0);

	*result = NULL;
	if (n < 0)
		return -errno;
	if (n < (ssize_t)HEADER_BYTES || be32toh(h.magic) != QCOW2_MAGIC)
		return 0;
	offset = be64toh(h.backing_file_offset);
	len = be32toh(h.backing_file_size);
	if (!offset || !len)
		return 0;
	if (len > QC_MAX_BACKING_NAME)
		return -EFBIG;
	n = pread(fd, name, len, offset);
	if (n != (ssize_t)len)
		return n < 0 ? -errno : -EIO;
	name[len] = 0;
	if (strchr(name, ':') && !strchr(name, '/'))
		return -EPROTONOSUPPORT; /* "json:", "nbd:": who knows what it leads to */
	if (name[0] == '/' || !slash)
		*result = strdup(name);
	else if (asprintf(result, "%.*s%s", (int)(slash + 1 - path), path, name) < 0)
		*result = NULL;
	return *result ? 0 : -ENOMEM;
}

static int judge(struct search *s, const char *path, int fd)
{
	struct ident ident;
	char *backing;
	int depth, ret = backing_path(fd, path, &backing);

	if (ret)
		return unreadable(s, path, strerror(-ret));
	if (!backing)
		return 0;
	ret = ident_of_path(backing, &ident);
	free(backing);
	if (ret)
		return 0; /* it stands on nothing that is there */
	depth = depth_of(s, &ident);
	if (depth < (int)s->first || depth > (int)s->last)
		return 0;
	return qc_err_set(s->err, -EBUSY, "%s: is the backing image of %s, which is not part of "
			  "this chain and would be damaged; rebase or remove that image first",
			  s->chain->layers[depth].path, path);
}

/* Neither a layer itself, nor something that cannot be an image. */
static int look_at(struct search *s, const char *path)
{
	struct ident ident;
	struct stat st;
	int fd, ret;

	if (stat(path, &st) || (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode)))
		return 0;
	if (!ident_of_path(path, &ident) && depth_of(s, &ident) >= 0)
		return 0;
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		return unreadable(s, path, strerror(errno));
	ret = judge(s, path, fd);
	close(fd);
	return ret;
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
		ret = ident_of_path(chain->layers[i].img->dev->path, &s.idents[i]);
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
