// SPDX-License-Identifier: GPL-2.0-or-later
/* The name by which a header names its backing image. */
#include "offline.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* The directory of @path with all links resolved. */
static char *real_directory(const char *path)
{
	const char *slash = strrchr(path, '/');
	char *dir, *real;

	dir = slash ? strndup(path, slash == path ? 1 : slash - path) : strdup(".");
	real = dir ? realpath(dir, NULL) : NULL;
	free(dir);
	return real;
}

/* /dev/VG/LV: the length of "/dev/VG/"; 0: another path. */
static size_t vg_length(const char *path)
{
	const char *slash;

	if (strncmp(path, "/dev/", 5) != 0 || strncmp(path, "/dev/mapper/", 12) == 0)
		return 0;
	slash = strchr(path + 5, '/');
	return slash && !strchr(slash + 1, '/') ? slash + 1 - path : 0;
}

static char *file_name(const char *path, const char *backing, struct qc_err *err)
{
	char *dir = real_directory(path);
	char *real = realpath(backing, NULL);
	size_t len = dir ? strlen(dir) : 0;
	char *name = NULL;

	if (!dir || !real)
		qc_err_set(err, -errno, "%s: path could not be resolved (%s)",
			   dir ? backing : path, strerror(errno));
	else if (strncmp(real, "/dev/", 5) == 0)
		name = strdup(backing); /* not the dm-N at the end of its link */
	else if (strncmp(real, dir, len) == 0 && real[len] == '/')
		name = strdup(real + len + 1);
	else
		name = strdup(real);
	free(dir);
	free(real);
	return name;
}

char *backing_header_name(const char *path, const char *backing, struct qc_err *err)
{
	size_t vg = vg_length(backing);
	char *name;

	if (vg && vg_length(path) == vg && strncmp(path, backing, vg) == 0)
		name = strdup(backing + vg);
	else if (vg)
		name = strdup(backing);
	else
		name = file_name(path, backing, err);
	if (!name)
		qc_err_set(err, -ENOMEM, "%s: out of memory", path);
	return name;
}
