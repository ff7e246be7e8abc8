// SPDX-License-Identifier: GPL-2.0-or-later
/* Looking at LVs: the header of each that is active, and who has it open. */
#include "scan.h"

#include <endian.h>
#include <errno.h>
#include <qchain/image.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <uapi/qcow2.h>

/*
 * Nothing is activated, unless asked: that wakes up udev, which reads what is on a new
 * device, and with lvmlockd it takes a lock. Even then only what is an image by its name
 * and tags: a guest's raw disk would be looked at by all the host's scanners (rule E3).
 */

/* ---- headers ------------------------------------------------------------------------- */

static void set_why(struct scan_image *image, enum scan_look look, const char *why)
{
	image->look = look;
	snprintf(image->why, sizeof(image->why), "%s", why);
}

static int take_header(struct scan_image *image, const struct image *img)
{
	image->look = LOOK_IMAGE;
	image->virtual_size = img->virtual_size;
	image->incompatible = img->incompatible;
	if (img->nr_faults)
		snprintf(image->why, sizeof(image->why), "%s", img->faults[0]);
	image->backing = img->backing_name && *img->backing_name ? strdup(img->backing_name) : NULL;
	image->backing_format = img->backing_format ? strdup(img->backing_format) : NULL;
	return (image->backing || !img->backing_name || !*img->backing_name) &&
	       (image->backing_format || !img->backing_format) ? 0 : -ENOMEM;
}

static int read_header(struct scan_image *image, struct io_dev *dev_owned)
{
	struct qc_err err = { 0 };
	struct image *img;
	__be32 magic = 0;
	int ret;

	if (io_dev_pread(dev_owned, &magic, sizeof(magic), 0) || be32toh(magic) != QCOW2_MAGIC) {
		image->look = LOOK_NO_IMAGE;
		io_dev_close(dev_owned);
		return 0;
	}
	if (image_open(dev_owned, IMAGE_QCOW2, IMAGE_OPEN_CHECK, &img, &err)) {
		set_why(image, LOOK_BROKEN, err.msg);
		return 0;
	}
	ret = take_header(image, img);
	image_close(img);
	return ret;
}

static int look_at(struct scan_image *image)
{
	struct qc_err err = { 0 };
	struct io_dev *dev;

	if (image->says == SAYS_RAW) {
		image->look = LOOK_NO_IMAGE;
		return 0;
	}
	if (io_dev_open(image->lv->path, IO_DEV_NOLOCK, &dev, &err)) {
		set_why(image, LOOK_FAILED, err.msg);
		return 0;
	}
	return read_header(image, dev);
}

static int look_at_inactive(struct scan_image *image)
{
	const struct lvm_lv *lv = image->lv;
	struct qc_err err = { 0 };
	int ret = lvm_activate_shared(lv->vg, lv->name, &err);

	if (ret) {
		set_why(image, ret == -EBUSY ? LOOK_ELSEWHERE : LOOK_FAILED, err.msg);
		return 0;
	}
	ret = look_at(image);
	lvm_activate(lv->vg, lv->name, false, NULL);
	return ret;
}

int scan_look_at(struct scan *scan, bool activate)
{
	int ret = 0;

	for (u32 i = 0; i < scan->nr && !ret; i++) {
		struct scan_image *image = &scan->images[i];

		if (!image->lv->path[0])
			image->look = LOOK_NO_IMAGE;
		else if (image->lv->active)
			ret = look_at(image);
		else if (activate && image->says == SAYS_QCOW2)
			ret = look_at_inactive(image);
	}
	return ret;
}

/* ---- users ----------------------------------------------------------------------------- */

/* The device that is served on @served's top, and what that stands on. */
static void mark_served(struct scan *scan, const struct served *served)
{
	char device[256];
	u32 i = 0;

	while (i < scan->nr && strcmp(scan->images[i].lv->path, served_top(served)))
		i++;
	for (u32 n = 0; i < scan->nr && n < scan->nr; n++) {
		struct scan_image *image = &scan->images[i];

		image->use = USE_SERVED;
		snprintf(image->device, sizeof(image->device), "%s", served->name);
		snprintf(image->user, sizeof(image->user), "%s, %s%s%s",
			 served->name, served_state_name(served->state),
			 served_device(served, device)[0] ? " as " : "", device);
		i = image->cut ? SCAN_NONE : image->below;
	}
}

static int find_served(struct scan *scan)
{
	struct served served;
	char **names;
	u32 nr;

	if (rundir_names(&names, &nr, NULL))
		return 0; /* nothing is, or was, served here */
	for (u32 i = 0; i < nr; i++) {
		if (served_find(names[i], &served, NULL) == 0) {
			mark_served(scan, &served);
			served_exit(&served);
		}
		free(names[i]);
	}
	free(names);
	return 0;
}

/* Beside what we serve: a process, or what only the kernel knows. */
static void mark_open(struct scan_image *image, const struct io_user *users, u32 nr)
{
	struct stat st;

	image->use = USE_OPEN;
	snprintf(image->user, sizeof(image->user), "the kernel (a mount, or a device on it)");
	if (stat(image->lv->path, &st))
		return;
	for (u32 i = 0; i < nr; i++)
		if (users[i].rdev == st.st_rdev)
			snprintf(image->user, sizeof(image->user), "%s", users[i].text);
}

int scan_find_users(struct scan *scan)
{
	struct io_user *users;
	u32 nr;
	int ret = find_served(scan);

	if (!ret)
		ret = io_users_list(&users, &nr);
	if (ret)
		return ret;
	for (u32 i = 0; i < scan->nr; i++)
		if (scan->images[i].lv->open && scan->images[i].use == USE_NONE)
			mark_open(&scan->images[i], users, nr);
	free(users);
	return 0;
}
