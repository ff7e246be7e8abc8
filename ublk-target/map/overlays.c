// SPDX-License-Identifier: GPL-2.0-or-later
/* Which images have a given one as their backing: a look at all headers around it. */
#include <qchain/overlays.h>

#include <dirent.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <qchain/image.h>
#include <qchain/limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <uapi/qcow2.h>
#include <unistd.h>

/* What a look at one image needs: its header up to version 2's end. */
#define HEADER_BYTES 72u

/* The backing name at @fd, as a path; malloc'ed. NULL with 0: there is none. */
static int read_backing(int fd, const char *path, char **result)
{
	struct qcow2_disk_header h;
	char name[QC_MAX_BACKING_NAME + 1];
	ssize_t n = pread(fd, &h, HEADER_BYTES, 0);
	u32 len;

	*result = NULL;
	if (n < 0)
		return -errno;
	if (n < (ssize_t)HEADER_BYTES || be32toh(h.magic) != QCOW2_MAGIC)
		return 0;
	len = be32toh(h.backing_file_size);
	if (!h.backing_file_offset || !len)
		return 0;
	if (len > QC_MAX_BACKING_NAME)
		return -EFBIG;
	n = pread(fd, name, len, be64toh(h.backing_file_offset));
	if (n != (ssize_t)len)
		return n < 0 ? -errno : -EIO;
	name[len] = 0;
	/* "json:", "nbd:": who knows what it leads to */
	if (name[strcspn(name, ":/")] == ':')
		return -EPROTONOSUPPORT;
	*result = backing_path(path, name);
	return *result ? 0 : -ENOMEM;
}

/* Only what can be an image is opened: others may wait, or do something. */
static int open_image(const char *path)
{
	struct stat st;
	int fd;

	if (stat(path, &st) || (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode)))
		return -ENOENT;
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	return fd < 0 ? -errno : fd;
}

int overlay_backing(const char *path, struct image_ident *result)
{
	int fd = open_image(path), ret;
	char *backing;

	if (fd < 0)
		return fd == -ENOENT ? 0 : fd;
	ret = read_backing(fd, path, &backing);
	close(fd);
	if (ret || !backing)
		return ret;
	ret = image_ident_of(backing, result);
	free(backing);
	return ret == 0;
}

static bool is_skipped(const struct overlay_search *search, const char *name)
{
	for (const char *const *skip = search->skip; skip && *skip; skip++)
		if (!strcmp(*skip, name))
			return true;
	return !strcmp(name, ".") || !strcmp(name, "..");
}

static void set_unknown(struct overlay_search *search, const char *path, int why)
{
	if (search->unknown[0])
		return;
	snprintf(search->unknown, sizeof(search->unknown), "%s", path);
	search->why = why;
}

static void look_at(struct overlay_search *search, const char *path)
{
	struct image_ident self, backing;
	int ret;

	if (image_ident_of(path, &self) || image_ident_same(&self, &search->below))
		return;
	ret = overlay_backing(path, &backing);
	if (ret < 0)
		set_unknown(search, path, ret);
	else if (ret && image_ident_same(&backing, &search->below) && !search->found[0])
		snprintf(search->found, sizeof(search->found), "%s", path);
}

void overlay_search_dir(struct overlay_search *search, const char *dir)
{
	struct dirent *entry;
	char path[4096];
	DIR *d = opendir(dir);

	if (!d) {
		set_unknown(search, dir, -errno);
		return;
	}
	while (!search->found[0] && (entry = readdir(d))) {
		if (is_skipped(search, entry->d_name))
			continue;
		snprintf(path, sizeof(path), "%s/%s", dir, entry->d_name);
		look_at(search, path);
	}
	closedir(d);
}
