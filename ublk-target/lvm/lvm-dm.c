// SPDX-License-Identifier: GPL-2.0-or-later
/* The one file that uses libdevmapper. */
#include <errno.h>
#include <libdevmapper.h>
#include <qchain/lvm.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
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
