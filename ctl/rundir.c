// SPDX-License-Identifier: GPL-2.0-or-later
/* The folder of a served chain: lock, record, names, and its device's links. */
#include "served.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define LOCK_TRIES 200
#define LOCK_PAUSE_US 50000
/* Device numbers that are tried. */
#define MAX_DEVICES 4096
#define DEVICE_FOLDER ".device"
#define SCAN_FOLDER ".scan"
#define LINK_FOLDER "/dev/qchain"

/* ---- JSON --------------------------------------------------------------------- */

const char *json_text(json_object *object, const char *key)
{
	json_object *value;

	if (!object || !json_object_object_get_ex(object, key, &value))
		return NULL;
	return json_object_is_type(value, json_type_string) ? json_object_get_string(value) : NULL;
}

s64 json_number(json_object *object, const char *key, s64 missing)
{
	json_object *value;

	if (!object || !json_object_object_get_ex(object, key, &value))
		return missing;
	return json_object_is_type(value, json_type_int) ? json_object_get_int64(value) : missing;
}

bool json_flag(json_object *object, const char *key)
{
	json_object *value;

	return json_object_object_get_ex(object, key, &value) && json_object_get_boolean(value);
}

json_object *json_list(json_object *object, const char *key, u32 *nr)
{
	json_object *value;

	*nr = 0;
	if (!object || !json_object_object_get_ex(object, key, &value) ||
	    !json_object_is_type(value, json_type_array))
		return NULL;
	*nr = json_object_array_length(value);
	return value;
}

/* ---- lock ---------------------------------------------------------------------- */

/* The lock belongs to the folder that is there now, not to a removed one. */
static bool lock_is_current(int fd, const char *path)
{
	struct stat held, now;

	return fstat(fd, &held) == 0 && stat(path, &now) == 0 && held.st_ino == now.st_ino &&
	       held.st_dev == now.st_dev;
}

/* 0 with @dir->lock_fd set, -EAGAIN: try again, or -errno. */
static int try_lock(struct rundir *dir, const char *path)
{
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	int ret = 0;

	if (fd < 0)
		return errno == ENOENT ? -EAGAIN : -errno; /* removed just now */
	if (flock(fd, LOCK_EX | LOCK_NB) < 0)
		ret = errno == EWOULDBLOCK ? -EAGAIN : -errno;
	else if (!lock_is_current(fd, path))
		ret = -EAGAIN;
	if (ret)
		close(fd);
	else
		dir->lock_fd = fd;
	return ret;
}

/* One try to have the folder and its lock; -EAGAIN: somebody else has it. */
static int enter_folder(struct rundir *dir, bool create, struct qc_err *err)
{
	char path[sizeof(dir->path) + sizeof("/lock")];
	struct stat st;
	int ret;

	if (create) {
		ret = chain_run_create(dir->name, err);
		if (ret)
			return ret;
	} else if (stat(dir->path, &st) < 0) {
		return qc_err_set(err, -ENOENT, "%s: no chain of this name is served; see "
						"qchainctl list", dir->name);
	}
	snprintf(path, sizeof(path), "%s/lock", dir->path);
	ret = try_lock(dir, path);
	if (ret && ret != -EAGAIN)
		qc_err_set(err, ret, "%s: lock not taken (%s)", path, strerror(-ret));
	return ret;
}

int rundir_lock(const char *name, bool create, struct rundir *result, struct qc_err *err)
{
	int ret = chain_name_check(name, err);

	result->lock_fd = -1;
	if (ret == 0)
		ret = chain_run_path(name, NULL, result->path, sizeof(result->path), err);
	if (ret)
		return ret;
	snprintf(result->name, sizeof(result->name), "%s", name);
	for (int i = 0; i < LOCK_TRIES; i++) {
		ret = enter_folder(result, create, err);
		if (ret != -EAGAIN)
			return ret;
		usleep(LOCK_PAUSE_US);
	}
	return qc_err_set(err, -EBUSY, "%s: another qchainctl is at work on it; wait for it", name);
}

void rundir_unlock(struct rundir *dir)
{
	if (dir->lock_fd >= 0)
		close(dir->lock_fd);
	dir->lock_fd = -1;
}

int rundir_remove(struct rundir *dir, struct qc_err *err)
{
	struct dirent *entry;
	DIR *folder = opendir(dir->path);
	int ret = 0;

	while (folder && (entry = readdir(folder))) {
		/* The lock goes last: who waits for it looks whether it is current. */
		if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0 &&
		    strcmp(entry->d_name, "lock") != 0)
			unlinkat(dirfd(folder), entry->d_name, 0);
	}
	if (folder) {
		unlinkat(dirfd(folder), "lock", 0);
		closedir(folder);
	}
	if (rmdir(dir->path) < 0 && errno != ENOENT)
		ret = qc_err_set(err, -errno, "%s: folder not removed (%m)", dir->path);
	rundir_unlock(dir);
	return ret;
}

int rundir_rename(struct rundir *dir, const char *name, struct qc_err *err)
{
	char path[sizeof(dir->path)];
	int ret = chain_run_path(name, NULL, path, sizeof(path), err);

	if (ret)
		return ret;
	if (rename(dir->path, path) < 0)
		return qc_err_set(err, errno == ENOTEMPTY ? -EEXIST : -errno,
				  "%s: folder not renamed to %s (%m)", dir->path, path);
	snprintf(dir->name, sizeof(dir->name), "%s", name);
	snprintf(dir->path, sizeof(dir->path), "%s", path);
	return 0;
}

/* ---- whatever it is called ----------------------------------------------------------- */

int rundir_hold(const char *name)
{
	char path[256];

	if (chain_run_path(name, NULL, path, sizeof(path), NULL))
		return -1;
	return open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
}

int rundir_held_name(int fd, char *name)
{
	char link[64], path[512];
	struct stat held, now;
	const char *last;
	ssize_t n;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	n = fd < 0 ? -1 : readlink(link, path, sizeof(path) - 1);
	path[max(n, (ssize_t)0)] = '\0';
	last = strrchr(path, '/');
	if (!last || chain_name_check(last + 1, NULL))
		return -ENOENT;
	if (fstat(fd, &held) || stat(path, &now) || held.st_ino != now.st_ino)
		return -ENOENT;
	snprintf(name, QC_MAX_CHAIN_NAME + 1, "%s", last + 1);
	return 0;
}

/* ---- record ----------------------------------------------------------------------- */

int rundir_load(const char *name, json_object **result, struct qc_err *err)
{
	char path[256];
	int ret = chain_run_path(name, "state.json", path, sizeof(path), err);

	*result = NULL;
	if (ret)
		return ret;
	if (access(path, F_OK) < 0 && errno == ENOENT)
		return 0;
	*result = json_object_from_file(path);
	if (json_object_is_type(*result, json_type_object) && json_text(*result, "top")) {
		/* a folder that was renamed may have the old one in it */
		json_object_object_add(*result, "name", json_object_new_string(name));
		return 0;
	}
	json_object_put(*result);
	*result = NULL;
	return qc_err_set(err, -EINVAL, "%s: record not readable, expected JSON with the key top; "
			  "remove it if nothing is served", path);
}

int rundir_save(const struct rundir *dir, json_object *record, struct qc_err *err)
{
	char path[sizeof(dir->path) + 16], next[sizeof(dir->path) + 16];

	snprintf(path, sizeof(path), "%s/state.json", dir->path);
	snprintf(next, sizeof(next), "%s/state.next", dir->path);
	if (json_object_to_file_ext(next, record, JSON_C_TO_STRING_PRETTY |
							  JSON_C_TO_STRING_NOSLASHESCAPE) < 0 ||
	    rename(next, path) < 0)
		return qc_err_set(err, -errno ? -errno : -EIO, "%s: record not written (%m)", path);
	return 0;
}

int rundir_save_pid(const struct rundir *dir, pid_t pid, struct qc_err *err)
{
	char path[sizeof(dir->path) + 16], next[sizeof(dir->path) + 16];
	FILE *f;
	bool written;

	snprintf(path, sizeof(path), "%s/pid", dir->path);
	snprintf(next, sizeof(next), "%s/pid.next", dir->path);
	f = fopen(next, "we");
	written = f && fprintf(f, "%d\n", (int)pid) > 0;
	written = f && fclose(f) == 0 && written;
	if (!written || rename(next, path) < 0)
		return qc_err_set(err, -errno ? -errno : -EIO, "%s: not written (%m)", path);
	return 0;
}

/* ---- names --------------------------------------------------------------------------- */

static int compare_names(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Folders of daemons; others that happen to be there are not ours to judge. */
static bool is_chain_folder(const char *name)
{
	char path[256];

	if (chain_name_check(name, NULL))
		return false;
	if (chain_run_path(name, "state.json", path, sizeof(path), NULL) == 0 &&
	    access(path, F_OK) == 0)
		return true;
	return chain_run_path(name, "qmp.sock", path, sizeof(path), NULL) == 0 &&
	       access(path, F_OK) == 0;
}

int rundir_names(char ***result, u32 *nr, struct qc_err *err)
{
	DIR *folder = opendir(chain_run_root());
	char **names = NULL, **longer;
	struct dirent *entry;
	u32 n = 0;

	*result = NULL;
	*nr = 0;
	if (!folder)
		return errno == ENOENT ? 0 : qc_err_set(err, -errno, "%s: folder not opened (%m)",
							chain_run_root());
	while ((entry = readdir(folder))) {
		if (!is_chain_folder(entry->d_name))
			continue;
		longer = realloc(names, (n + 1) * sizeof(*names));
		if (!longer)
			break;
		names = longer;
		names[n] = strdup(entry->d_name);
		if (!names[n])
			break;
		n++;
	}
	closedir(folder);
	if (n)
		qsort(names, n, sizeof(*names), compare_names);
	*result = names;
	*nr = n;
	return 0;
}

/* ---- devices ---------------------------------------------------------------------------- */

static void device_path(char *path, size_t bytes, const char *folder, s32 dev_id)
{
	snprintf(path, bytes, "%s/%s/ublkb%d", chain_run_root(), folder, dev_id);
}

static int make_device_folder(const char *name, struct qc_err *err)
{
	char path[256];

	snprintf(path, sizeof(path), "%s/%s", chain_run_root(), name);
	if (mkdir(path, 0755) < 0 && errno != EEXIST)
		return qc_err_set(err, -errno, "%s: folder not made (%m)", path);
	return 0;
}

/* In use by any ublk server? Device nodes may be late, sysfs is not. */
static bool device_exists(s32 dev_id)
{
	char path[64];

	snprintf(path, sizeof(path), "/sys/class/ublk-char/ublkc%d", dev_id);
	if (access(path, F_OK) == 0)
		return true;
	snprintf(path, sizeof(path), "/dev/ublkc%d", dev_id);
	return access(path, F_OK) == 0;
}

static int allow_scan(s32 dev_id, struct qc_err *err)
{
	char path[256];
	int fd, ret = make_device_folder(SCAN_FOLDER, err);

	if (ret)
		return ret;
	device_path(path, sizeof(path), SCAN_FOLDER, dev_id);
	fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
	if (fd < 0)
		return qc_err_set(err, -errno, "%s: not written (%m)", path);
	close(fd);
	return 0;
}

int rundir_take_device(const char *name, bool scan, s32 *result, struct qc_err *err)
{
	char path[256];
	int ret = make_device_folder(DEVICE_FOLDER, err);

	if (ret)
		return ret;
	for (s32 id = 0; id < MAX_DEVICES; id++) {
		if (device_exists(id))
			continue;
		device_path(path, sizeof(path), DEVICE_FOLDER, id);
		if (symlink(name, path) == 0) {
			*result = id;
			return scan ? allow_scan(id, err) : 0;
		}
		if (errno != EEXIST)
			return qc_err_set(err, -errno, "%s: link not made (%m)", path);
	}
	return qc_err_set(err, -ENOSPC, "%s: no number for a ublk device is free, at most %d", name,
			  MAX_DEVICES);
}

void rundir_drop_device(s32 dev_id)
{
	char path[256];

	device_path(path, sizeof(path), DEVICE_FOLDER, dev_id);
	unlink(path);
	device_path(path, sizeof(path), SCAN_FOLDER, dev_id);
	unlink(path);
}

static int make_link(const char *name, const char *target, struct qc_err *err)
{
	char path[256];

	snprintf(path, sizeof(path), LINK_FOLDER "/%s", name);
	if (mkdir(LINK_FOLDER, 0755) < 0 && errno != EEXIST)
		return qc_err_set(err, -errno, LINK_FOLDER ": folder not made (%m)");
	if (symlink(target, path) == 0)
		return 0;
	/* udev was faster, or there is an old one. */
	if (errno == EEXIST && unlink(path) == 0 && symlink(target, path) == 0)
		return 0;
	return qc_err_set(err, -errno, "%s: link not made (%m)", path);
}

int rundir_link_device(const char *name, s32 dev_id, struct qc_err *err)
{
	char target[32];

	snprintf(target, sizeof(target), "../ublkb%d", dev_id);
	return make_link(name, target, err);
}

int rundir_link_mapped(const char *name, struct qc_err *err)
{
	char target[QC_MAX_CHAIN_NAME + 16];

	snprintf(target, sizeof(target), "../mapper/%s", name);
	return make_link(name, target, err);
}

void rundir_unlink_mapped(const char *name)
{
	char path[256];

	snprintf(path, sizeof(path), LINK_FOLDER "/%s", name);
	unlink(path);
}

void rundir_unlink_device(const char *name, s32 dev_id)
{
	char path[256], target[32], found[64];
	ssize_t n;

	snprintf(path, sizeof(path), LINK_FOLDER "/%s", name);
	snprintf(target, sizeof(target), "../ublkb%d", dev_id);
	n = readlink(path, found, sizeof(found) - 1);
	if (n < 0)
		return;
	found[n] = '\0';
	if (strcmp(found, target) == 0)
		unlink(path);
}

/* udev makes and removes its links when it hears of a device. */
static void tell_udev(s32 dev_id)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/sys/class/block/ublkb%d/uevent", dev_id);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	if (write(fd, "change", 6) != 6) {
		/* links by hand are all there is, then */
	}
	close(fd);
}

int rundir_rename_device(const char *name, const char *new_name, s32 dev_id, struct qc_err *err)
{
	char path[256], next[sizeof(path) + 8];
	int ret;

	device_path(path, sizeof(path), DEVICE_FOLDER, dev_id);
	snprintf(next, sizeof(next), "%s.next", path);
	unlink(next);
	if (symlink(new_name, next) < 0 || rename(next, path) < 0)
		return qc_err_set(err, -errno, "%s: link not made (%m)", path);
	ret = rundir_link_device(new_name, dev_id, err);
	if (ret)
		return ret;
	rundir_unlink_device(name, dev_id);
	tell_udev(dev_id);
	return 0;
}
