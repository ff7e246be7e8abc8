// SPDX-License-Identifier: GPL-2.0-or-later
/* Backing references: what a name in a header may lead to, and what it means. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <qchain/image.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

/*
 * Whoever wrote an image wrote its backing name: an uploaded image may name any
 * file of the host. Therefore a name is only followed to what the owner of the
 * chain may use anyway:
 *
 *   active layer       allowed below it without being asked
 *   LV                 LVs of the same VG
 *   regular file       regular files in its directory and below
 *   other block device nothing
 *
 * and to what the administrator named with --allow-backing: everything in that
 * directory and below, or, where it is no directory, that one image.
 *
 * Other block devices (loop, RAM disk, disk, partition, crypt) belong to no
 * group that says who may use them: their nodes lie in /dev beside the disks of
 * everybody else, so "the same directory" would allow /dev/sda. Links in a
 * directory do not help, whoever may make links there could name /dev/sda.
 *
 * The judgement is about the place where the name ends after all links, as the
 * kernel tells it of the open descriptor: first with O_PATH, which has no side
 * effects, for the message; and again on what was really opened (backing_check).
 * An LV's place is /dev/VG/LV, not the /dev/dm-N at the end of the link.
 */
#define DM_UUID_BYTES 129 /* dm's limit with its NUL */
#define DM_NAME_BYTES 128
#define VG_UUID_CHARS 32
#define LVM_UUID_PREFIX "LVM-"

struct backing_place {
	char path[PATH_MAX];
	char vg_uuid[VG_UUID_CHARS + 1]; /* "": no LV */
	bool blockdev;
	dev_t rdev; /* of a block device */
};

/* ---- places ------------------------------------------------------------ */

/* An attribute of a dm device without its newline; "" for other devices. */
static void read_dm_attr(dev_t rdev, const char *attr, char *text, size_t len)
{
	const char *sys = getenv("QCHAIN_SYS"); /* of tests: loop devices that are LVs */
	char path[PATH_MAX];
	ssize_t n = -1;
	int fd;

	snprintf(path, sizeof(path), "%s/dev/block/%u:%u/dm/%s", sys ? sys : "/sys", major(rdev),
		 minor(rdev), attr);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd >= 0) {
		n = read(fd, text, len - 1);
		close(fd);
	}
	text[max(n, (ssize_t)0)] = 0;
	text[strcspn(text, "\n")] = 0;
}

static void vg_uuid_of(dev_t rdev, char *vg_uuid)
{
	char uuid[DM_UUID_BYTES];

	read_dm_attr(rdev, "uuid", uuid, sizeof(uuid));
	vg_uuid[0] = 0;
	if (!strncmp(uuid, LVM_UUID_PREFIX, strlen(LVM_UUID_PREFIX)) &&
	    strlen(uuid) >= strlen(LVM_UUID_PREFIX) + 2 * VG_UUID_CHARS)
		snprintf(vg_uuid, VG_UUID_CHARS + 1, "%.*s", VG_UUID_CHARS,
			 uuid + strlen(LVM_UUID_PREFIX));
}

/* /dev/VG/LV out of dm's "VG-LV", in which a hyphen of a name stands twice. */
static void make_lv_path(dev_t rdev, char *path, size_t len)
{
	char name[DM_NAME_BYTES];
	bool in_lv = false;
	size_t n;

	read_dm_attr(rdev, "name", name, sizeof(name));
	n = snprintf(path, len, "/dev/");
	for (const char *c = name; *c && n + 1 < len; c++) {
		if (*c != '-' || in_lv) {
			path[n++] = *c;
			c += *c == '-' && c[1] == '-';
		} else if (c[1] == '-') {
			path[n++] = '-';
			c++;
		} else {
			path[n++] = '/';
			in_lv = true;
		}
	}
	path[n] = 0;
}

bool image_lv_path(dev_t rdev, char *path, size_t len)
{
	char vg_uuid[VG_UUID_CHARS + 1];

	vg_uuid_of(rdev, vg_uuid);
	if (vg_uuid[0])
		make_lv_path(rdev, path, len);
	return vg_uuid[0];
}

/* -EINVAL: no image can be there. -ENOENT: it has no name any more. */
static int place_of(int fd, struct backing_place *place)
{
	char link[64];
	struct stat st;
	ssize_t n;

	if (fstat(fd, &st))
		return -errno;
	place->blockdev = S_ISBLK(st.st_mode);
	place->rdev = st.st_rdev;
	place->vg_uuid[0] = 0;
	if (!place->blockdev && !S_ISREG(st.st_mode))
		return -EINVAL;
	if (st.st_nlink == 0)
		return -ENOENT;
	if (place->blockdev)
		vg_uuid_of(st.st_rdev, place->vg_uuid);
	if (place->vg_uuid[0]) {
		make_lv_path(st.st_rdev, place->path, sizeof(place->path));
		return 0;
	}
	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	n = readlink(link, place->path, sizeof(place->path) - 1);
	if (n <= 0)
		return n < 0 ? -errno : -ENOENT;
	place->path[n] = 0;
	return place->path[0] == '/' ? 0 : -ENOENT;
}

/* Is @path @dir itself or below it? Both absolute, without links and "..". */
static bool path_within(const char *path, const char *dir)
{
	size_t len = strlen(dir);

	while (len > 1 && dir[len - 1] == '/')
		len--;
	if (len == 1)
		return dir[0] == '/';
	return !strncmp(path, dir, len) && (path[len] == '/' || path[len] == 0);
}

/* @dir as the administrator wrote it; links in it are followed. */
static bool dir_allows(const char *dir, const struct backing_place *place)
{
	char real[PATH_MAX];
	struct stat st;

	if (path_within(place->path, dir))
		return true;
	if (stat(dir, &st))
		return false;
	if (S_ISBLK(st.st_mode))
		return place->blockdev && st.st_rdev == place->rdev;
	return realpath(dir, real) && path_within(place->path, real);
}

static bool policy_allows(const struct backing_policy *policy, const struct backing_place *place)
{
	if (policy->top_vg_uuid && !strcmp(policy->top_vg_uuid, place->vg_uuid))
		return true;
	if (policy->top_dir && !place->blockdev && path_within(place->path, policy->top_dir))
		return true;
	for (char **dir = policy->allow_dirs; dir && *dir; dir++)
		if (dir_allows(*dir, place))
			return true;
	return false;
}

static int refuse_place(const struct backing_policy *policy, const char *overlay,
			const struct backing_place *place, struct qc_err *err)
{
	if (policy->top_vg_uuid)
		return qc_err_set(err, -EPERM, "%s: backing image not allowed (%s), must be an LV "
				  "of the active layer's VG; add --allow-backing %s", overlay,
				  place->path, place->path);
	if (policy->top_dir)
		return qc_err_set(err, -EPERM, "%s: backing image not allowed (%s), must be a file "
				  "below %s; add --allow-backing %s", overlay, place->path,
				  policy->top_dir, place->path);
	return qc_err_set(err, -EPERM, "%s: backing image not allowed (%s), below a block device "
			  "that is no LV each must be named; add --allow-backing %s", overlay,
			  place->path, place->path);
}

/* @name: as it was opened, for the messages. */
static int check_place(const struct backing_policy *policy, int fd, const char *overlay,
		       const char *name, struct qc_err *err)
{
	struct backing_place place;
	int ret;

	ret = place_of(fd, &place);
	if (ret == -EINVAL)
		return qc_err_set(err, ret, "%s: backing image cannot be used (%s), must be a "
				  "regular file or a block device", overlay, name);
	if (ret)
		return qc_err_set(err, ret, "%s: backing image cannot be found (%s: %s), must be "
				  "reachable by its name", overlay, name, strerror(-ret));
	return policy_allows(policy, &place) ? 0 : refuse_place(policy, overlay, &place, err);
}

int backing_check(const struct backing_policy *policy, const struct io_dev *img_dev,
		  const char *overlay, struct qc_err *err)
{
	return check_place(policy, img_dev->fd, overlay, img_dev->path, err);
}

/* ---- policy ------------------------------------------------------------ */

static char *dir_of(const char *path)
{
	const char *slash = strrchr(path, '/');
	char *dir, *real;

	if (slash)
		dir = strndup(path, slash == path ? 1 : slash - path);
	else
		dir = strdup(".");
	real = dir ? realpath(dir, NULL) : NULL;
	free(dir);
	return real;
}

int backing_policy_start(struct backing_policy *policy, const char *top, struct qc_err *err)
{
	char vg_uuid[VG_UUID_CHARS + 1];
	struct stat st;

	policy->top_dir = NULL;
	policy->top_vg_uuid = NULL;
	if (stat(top, &st))
		return qc_err_set(err, -errno, "%s: not found (%s), expected an image file or a "
				  "block device; an LV must be active", top, strerror(errno));
	if (S_ISREG(st.st_mode)) {
		policy->top_dir = dir_of(top);
		if (!policy->top_dir)
			return qc_err_set(err, -errno, "%s: its directory cannot be resolved (%s)",
					  top, strerror(errno));
	} else if (S_ISBLK(st.st_mode)) {
		vg_uuid_of(st.st_rdev, vg_uuid);
		policy->top_vg_uuid = vg_uuid[0] ? strdup(vg_uuid) : NULL;
		if (vg_uuid[0] && !policy->top_vg_uuid)
			return qc_err_set(err, -ENOMEM, "%s: out of memory", top);
	}
	return 0;
}

void backing_policy_exit(struct backing_policy *policy)
{
	free(policy->top_dir);
	free(policy->top_vg_uuid);
	policy->top_dir = NULL;
	policy->top_vg_uuid = NULL;
}

/* ---- names ------------------------------------------------------------- */

/* Control characters would also garble the log; no file of a chain needs them. */
static bool is_clean(const char *text)
{
	for (; *text; text++)
		if ((unsigned char)*text < 0x20 || *text == 0x7f)
			return false;
	return true;
}

/* @what: "backing" or "data file". */
static int check_name(const struct image *img, const char *what, const char *name,
		      struct qc_err *err)
{
	if (!is_clean(name))
		return qc_err_set(err, -EILSEQ, "%s: control character in the %s name, must "
				  "be a path; rebase it", img->dev->path, what);
	/* As QEMU: what has a colon before the first slash names a protocol. */
	if (name[strcspn(name, ":/")] == ':')
		return qc_err_set(err, -EPERM, "%s: %s name not followed (%s), must be a "
				  "path, no json: or protocol; rebase it, or write ./ before a "
				  "file name with a colon", img->dev->path, what, name);
	return 0;
}

static int find_format(const struct image *img, const struct backing_policy *policy,
		       enum image_format *result, struct qc_err *err)
{
	const char *format = img->backing_format ? img->backing_format : policy->backing_format;

	if (!format)
		return qc_err_set(err, -EINVAL, "%s: backing format missing, must be in the header "
				  "and is never guessed; add --backing-format raw or qcow2, or "
				  "rebase -u -F", img->dev->path);
	if (image_format_parse(format, result))
		return qc_err_set(err, -EINVAL, "%s: backing format not supported (%s), must be "
				  "raw or qcow2", img->dev->path, is_clean(format) ? format : "?");
	return 0;
}

const char *backing_volume(const char *name)
{
	const char *slash = strncmp(name, "../", 3) ? NULL : strchr(name + 3, '/');

	return slash && slash > name + 3 && slash[1] && !strchr(slash + 1, '/') ? slash + 1 : NULL;
}

/*
 * vdsm gives an LV a link in a directory of each image, and names are meant from
 * there. In /dev/VG all volumes are side by side. NULL: that is no LV.
 */
static char *volume_beside(const char *overlay, const char *name)
{
	const char *slash = strrchr(overlay, '/'), *volume = backing_volume(name);
	char vg_uuid[VG_UUID_CHARS + 1] = "";
	struct stat st;
	char *path;

	if (!slash || !volume ||
	    asprintf(&path, "%.*s%s", (int)(slash + 1 - overlay), overlay, volume) < 0)
		return NULL;
	if (stat(path, &st) == 0 && S_ISBLK(st.st_mode))
		vg_uuid_of(st.st_rdev, vg_uuid);
	if (vg_uuid[0])
		return path;
	free(path);
	return NULL;
}

char *backing_path(const char *overlay, const char *name)
{
	const char *slash = strrchr(overlay, '/');
	char *path, *dir, *result = NULL;

	if (name[0] == '/' || !slash)
		path = strdup(name);
	else if (asprintf(&path, "%.*s%s", (int)(slash + 1 - overlay), overlay, name) < 0)
		path = NULL;
	if (!path || name[0] == '/' || !strchr(name, '/'))
		return path;
	dir = dir_of(path);
	if (dir && asprintf(&result, "%s/%s", dir, strrchr(path, '/') + 1) < 0)
		result = NULL;
	else if (!dir)
		result = volume_beside(overlay, name);
	free(dir);
	if (!result)
		return path; /* opening it will tell */
	free(path);
	return result;
}

static int open_place(const struct image *img, const struct backing_policy *policy,
		      const char *path, struct qc_err *err)
{
	int fd, ret;

	fd = open(path, O_PATH | O_CLOEXEC);
	if (fd < 0)
		return qc_err_set(err, -errno, "%s: backing image cannot be found (%s: %s), must "
				  "be reachable by its name; an LV must be active",
				  img->dev->path, path, strerror(errno));
	ret = check_place(policy, fd, img->dev->path, path, err);
	close(fd);
	return ret;
}

static int resolve(const struct image *img, const struct backing_policy *policy, const char *name,
		   char **path, struct qc_err *err)
{
	char *found = backing_path(img->dev->path, name);
	int ret;

	if (!found)
		return qc_err_set(err, -ENOMEM, "%s: out of memory", img->dev->path);
	ret = open_place(img, policy, found, err);
	if (ret) {
		free(found);
		return ret;
	}
	*path = found;
	return 0;
}

int backing_resolve(const struct image *img, const struct backing_policy *policy,
		    char **path, enum image_format *format, struct qc_err *err)
{
	int ret;

	*path = NULL;
	if (!img->backing_name || !img->backing_name[0])
		return 0;
	ret = check_name(img, "backing", img->backing_name, err);
	if (!ret)
		ret = find_format(img, policy, format, err);
	if (ret)
		return ret;
	return resolve(img, policy, img->backing_name, path, err);
}

int data_file_resolve(const struct image *img, const struct backing_policy *policy, char **path,
		      struct qc_err *err)
{
	int ret = check_name(img, "data file", img->data_file_name, err);

	return ret ? ret : resolve(img, policy, img->data_file_name, path, err);
}
