// SPDX-License-Identifier: GPL-2.0-or-later
/* The one file that uses libdevmapper. */
#include <errno.h>
#include <libdevmapper.h>
#include <qchain/lvm.h>
#include <qchain/mapped.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <unistd.h>

/* libdevmapper prints its errors; ours are returned. */
static void drop_message(int level, const char *file, int line, int dm_errno_or_class,
			 const char *fmt, ...)
{
}

static bool is_dm(u32 major, u32 minor)
{
	char path[64];

	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/dm", major, minor);
	return access(path, F_OK) == 0;
}

static int read_uuid(u32 major, u32 minor, char uuid[129])
{
	struct dm_task *task;
	const char *text;
	int ret = -EIO;

	task = dm_task_create(DM_DEVICE_INFO);
	if (!task)
		return -ENOMEM;
	if (dm_task_set_major(task, major) && dm_task_set_minor(task, minor)) {
		if (dm_task_run(task)) {
			text = dm_task_get_uuid(task);
			snprintf(uuid, 129, "%s", text ? text : "");
			ret = 0;
		} else if (dm_task_get_errno(task)) {
			ret = -dm_task_get_errno(task);
		}
	}
	dm_task_destroy(task);
	return ret;
}

int lvm_dm_uuid(u32 major, u32 minor, char uuid[129], struct qc_err *err)
{
	int ret;

	uuid[0] = 0;
	if (!is_dm(major, minor))
		return 0;
	dm_log_with_errno_init(drop_message);
	ret = read_uuid(major, minor, uuid);
	return ret ? qc_err_set(err, ret, "%u:%u: uuid of the dm device cannot be read (%s), needs "
				"root and /dev/mapper/control", major, minor, strerror(-ret)) : 0;
}

/* ---- devices of our own ------------------------------------------------------------ */

#define UUID_PREFIX "QCHAIN-"
/* What the guest has on it is not the host's to look at (rule E3). */
#define NO_SCAN (DM_UDEV_DISABLE_DISK_RULES_FLAG | DM_UDEV_DISABLE_OTHER_RULES_FLAG)

/* @type on the device @name; NULL: no device-mapper here, or no memory */
static struct dm_task *task_on(int type, const char *name)
{
	struct dm_task *task;

	dm_log_with_errno_init(drop_message);
	task = dm_task_create(type);
	if (task && !dm_task_set_name(task, name)) {
		dm_task_destroy(task);
		task = NULL;
	}
	return task;
}

static int task_run(struct dm_task *task)
{
	if (dm_task_run(task))
		return 0;
	return dm_task_get_errno(task) ? -dm_task_get_errno(task) : -EIO;
}

/* And wait for udev, which makes or removes the links. */
static int task_run_udev(struct dm_task *task, u16 flags)
{
	u32 cookie = 0;
	int ret;

	if (!dm_task_set_cookie(task, &cookie, flags))
		return -EIO;
	ret = task_run(task);
	dm_udev_wait(cookie);
	return ret;
}

static bool add_row(struct dm_task *task, const struct mapped_row *row, const dev_t *devices,
		    dev_t rest)
{
	u64 start = row->start / SECTOR_SIZE, sectors = row->bytes / SECTOR_SIZE;
	u64 offset = row->kind == MAPPED_LINEAR ? row->offset : row->start;
	dev_t rdev = row->kind == MAPPED_LINEAR ? devices[row->device] : rest;
	char params[64];

	if (row->kind == MAPPED_ZERO)
		return dm_task_add_target(task, start, sectors, "zero", "");
	snprintf(params, sizeof(params), "%u:%u %llu", major(rdev), minor(rdev),
		 (unsigned long long)(offset / SECTOR_SIZE));
	return dm_task_add_target(task, start, sectors, "linear", params);
}

static int create(struct dm_task *task, const char *name, const struct mapped_table *table,
		  const dev_t *devices, dev_t rest, bool scan)
{
	char uuid[128];

	snprintf(uuid, sizeof(uuid), UUID_PREFIX "%s", name);
	if (!dm_task_set_uuid(task, uuid) || !dm_task_set_ro(task))
		return -ENOMEM;
	for (u32 i = 0; i < table->nr; i++)
		if (!add_row(task, &table->rows[i], devices, rest))
			return -ENOMEM;
	return task_run_udev(task, scan ? 0 : NO_SCAN);
}

/* What there is by that name; -ENOENT: nothing. */
static int look_up(const char *name, struct dm_info *info, bool *ours)
{
	struct dm_task *task = task_on(DM_DEVICE_INFO, name);
	const char *uuid;
	int ret = task ? task_run(task) : -ENODEV;

	if (!ret && !dm_task_get_info(task, info))
		ret = -EIO;
	if (!ret && !info->exists)
		ret = -ENOENT;
	if (!ret) {
		uuid = dm_task_get_uuid(task);
		*ours = uuid && !strncmp(uuid, UUID_PREFIX, strlen(UUID_PREFIX)) &&
			!strcmp(uuid + strlen(UUID_PREFIX), name);
	}
	if (task)
		dm_task_destroy(task);
	return ret == -ENXIO ? -ENOENT : ret;
}

static int refused(const char *name, int ret, struct qc_err *err)
{
	return qc_err_set(err, ret, "/dev/mapper/%s: refused by device-mapper (%s), needs root, "
			  "/dev/mapper/control and dm_mod; the kernel's log says more", name,
			  strerror(-ret));
}

int mapped_create(const char *name, const struct mapped_table *table, const dev_t *devices,
		  dev_t rest, bool scan, struct qc_err *err)
{
	struct dm_task *task;
	struct dm_info info;
	bool ours;
	int ret = look_up(name, &info, &ours);

	if (!ret)
		return qc_err_set(err, -EEXIST, "/dev/mapper/%s: is there already%s, expected "
				  "another name", name, ours ? "" : ", and not ours");
	if (ret != -ENOENT)
		return refused(name, ret, err);
	task = task_on(DM_DEVICE_CREATE, name);
	ret = task ? create(task, name, table, devices, rest, scan) : -ENODEV;
	if (task)
		dm_task_destroy(task);
	return ret ? refused(name, ret, err) : 0;
}

int mapped_find(const char *name, struct mapped_device *result, struct qc_err *err)
{
	struct dm_info info;
	bool ours = false;
	int ret = look_up(name, &info, &ours);

	if (ret && ret != -ENOENT)
		return refused(name, ret, err);
	if (ret || !ours)
		return qc_err_set(err, -ENOENT, "/dev/mapper/%s: %s", name,
				  ret ? "is not there" : "is not ours");
	*result = (struct mapped_device){
		.rdev = makedev(info.major, info.minor),
		.open = info.open_count,
		.deferred = info.deferred_remove,
	};
	return 0;
}

int mapped_remove(const char *name, bool deferred, struct qc_err *err)
{
	struct mapped_device device;
	struct dm_task *task;
	int ret = mapped_find(name, &device, err);

	if (ret)
		return ret;
	task = task_on(DM_DEVICE_REMOVE, name);
	ret = !task || (deferred && !dm_task_deferred_remove(task)) ? -ENODEV :
								       task_run_udev(task, 0);
	if (task)
		dm_task_destroy(task);
	if (ret == -EBUSY)
		return qc_err_set(err, ret, "/dev/mapper/%s: is open", name);
	return ret ? refused(name, ret, err) : 0;
}
