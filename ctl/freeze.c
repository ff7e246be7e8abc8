// SPDX-License-Identifier: GPL-2.0-or-later
/* A child that freezes file systems, and thaws them on a word, after 2 s, or when we are gone. */
#include "freeze.h"

#include "ctl.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MAX_DEVICES 256u
#define MAX_MOUNTS 128u

/* One block device that is, or stands on, one of those that were named. */
struct stacked {
	dev_t dev;
	char name[64];
	bool is_holder; /* not a device itself or a partition */
	bool has_holders;
	bool mounted;
};

struct mounted {
	dev_t dev;
	int fd; /* of the mount point */
	char path[512];
};

struct survey {
	u32 nr_devices;
	struct stacked devices[MAX_DEVICES];
	u32 nr_mounts;
	struct mounted mounts[MAX_MOUNTS];
};

/* What the child says: first how freezing went, then how it was thawed. */
struct word {
	int error;
	int mount; /* on which */
};

/* ---- what is mounted ----------------------------------------------------------------- */

static struct stacked *find_device(struct survey *s, dev_t dev)
{
	for (u32 i = 0; i < s->nr_devices; i++)
		if (s->devices[i].dev == dev)
			return &s->devices[i];
	return NULL;
}

static bool read_dev(const char *name, dev_t *result)
{
	unsigned int major, minor;
	char path[128];
	FILE *file;
	int n;

	snprintf(path, sizeof(path), "/sys/class/block/%s/dev", name);
	file = fopen(path, "re");
	if (!file)
		return false;
	n = fscanf(file, "%u:%u", &major, &minor);
	fclose(file);
	*result = makedev(major, minor);
	return n == 2;
}

static void add_device(struct survey *s, const char *name, bool is_holder);

/* Names in a folder of sysfs: of holders, or of partitions among others. */
static u32 add_folder(struct survey *s, const char *folder, bool partitions)
{
	char path[512];
	struct dirent *entry;
	DIR *d = opendir(folder);
	u32 nr = 0;

	while (d && (entry = readdir(d))) {
		if (entry->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "%s/%s/partition", folder, entry->d_name);
		if (partitions && access(path, F_OK))
			continue;
		add_device(s, entry->d_name, !partitions);
		nr++;
	}
	if (d)
		closedir(d);
	return nr;
}

static void add_device(struct survey *s, const char *name, bool is_holder)
{
	struct stacked *device = &s->devices[s->nr_devices];
	char folder[128];
	dev_t dev;

	if (s->nr_devices == MAX_DEVICES || !read_dev(name, &dev) || find_device(s, dev))
		return;
	s->nr_devices++;
	device->dev = dev;
	device->is_holder = is_holder;
	snprintf(device->name, sizeof(device->name), "%s", name);
	snprintf(folder, sizeof(folder), "/sys/class/block/%s", name);
	add_folder(s, folder, true);
	snprintf(folder, sizeof(folder), "/sys/class/block/%s/holders", name);
	device->has_holders = add_folder(s, folder, false) > 0;
}

/* "\040" is how a space is written there. */
static void unescape(char *text)
{
	char *to = text;
	unsigned int code;

	for (; *text; text++) {
		if (*text == '\\' && sscanf(text + 1, "%3o", &code) == 1 && strlen(text) >= 4) {
			*to++ = code;
			text += 3;
		} else {
			*to++ = *text;
		}
	}
	*to = 0;
}

static int add_mount(struct survey *s, dev_t dev, const char *path, struct qc_err *err)
{
	struct mounted *m = &s->mounts[s->nr_mounts];

	for (u32 i = 0; i < s->nr_mounts; i++)
		if (s->mounts[i].dev == dev)
			return 0; /* mounted twice: frozen once */
	if (s->nr_mounts == MAX_MOUNTS)
		return qc_err_set(err, -E2BIG, "%s: too many file systems, at most %u can be "
				  "frozen", path, MAX_MOUNTS);
	snprintf(m->path, sizeof(m->path), "%s", path);
	m->dev = dev;
	m->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (m->fd < 0)
		return qc_err_set(err, -errno, "%s: mount point not opened (%m), must be to be "
				  "frozen", path);
	s->nr_mounts++;
	return 0;
}

/* "36 35 98:0 /sub /mnt rw,.. - ext4 /dev/x rw"; btrfs tells its device by name only. */
static int take_line(struct survey *s, char *line, struct qc_err *err)
{
	char path[512], source[512] = "";
	const char *dash = strstr(line, " - ");
	unsigned int major, minor;
	struct stacked *device;
	struct stat st;

	if (!dash || sscanf(line, "%*d %*d %u:%u %*s %511s", &major, &minor, path) != 3)
		return 0;
	sscanf(dash + 3, "%*s %511s", source);
	unescape(path);
	unescape(source);
	device = find_device(s, makedev(major, minor));
	if (!device && source[0] == '/' && stat(source, &st) == 0 && S_ISBLK(st.st_mode))
		device = find_device(s, st.st_rdev);
	if (!device)
		return 0;
	device->mounted = true;
	return add_mount(s, device->dev, path, err);
}

static int read_mounts(struct survey *s, struct qc_err *err)
{
	FILE *file = fopen("/proc/self/mountinfo", "re");
	size_t bytes = 0;
	char *line = NULL;
	int ret = 0;

	if (!file)
		return qc_err_set(err, -errno, "/proc/self/mountinfo: not read (%m)");
	while (!ret && getline(&line, &bytes, file) > 0)
		ret = take_line(s, line, err);
	free(line);
	fclose(file);
	return ret;
}

static int make_survey(struct survey *s, const char *const *devices, u32 nr, struct qc_err *err)
{
	const char *slash;
	int ret;

	for (u32 i = 0; i < nr; i++) {
		slash = strrchr(devices[i], '/');
		add_device(s, slash ? slash + 1 : devices[i], false);
	}
	ret = read_mounts(s, err);
	if (!ret && !s->nr_mounts)
		ret = qc_err_set(err, -ENOENT, "%s: no file system on it is mounted here, there "
				 "is nothing to freeze; leave out --freeze", devices[0]);
	for (u32 i = 0; i < s->nr_devices && !ret; i++)
		if (s->devices[i].is_holder && !s->devices[i].mounted &&
		    !s->devices[i].has_holders)
			fprintf(stderr, "qchainctl: %s: stands on the device, has no mounted file "
				"system, and is not frozen\n", s->devices[i].name);
	return ret;
}

static void close_survey(struct survey *s)
{
	for (u32 i = 0; i < s->nr_mounts; i++)
		close(s->mounts[i].fd);
	free(s);
}

/* ---- the child -------------------------------------------------------------------------- */

static void thaw(const struct survey *s, u32 nr)
{
	while (nr-- > 0)
		ioctl(s->mounts[nr].fd, FITHAW, 0);
}

static struct word freeze_all(const struct survey *s)
{
	struct word word = { .error = 0 };

	if (mlockall(MCL_CURRENT | MCL_FUTURE))
		return (struct word){ .error = -errno, .mount = -1 };
	for (u32 i = 0; i < s->nr_mounts; i++) {
		if (ioctl(s->mounts[i].fd, FIFREEZE, 0) == 0)
			continue;
		word = (struct word){ .error = -errno, .mount = i };
		thaw(s, i);
		return word;
	}
	return word;
}

/* To thaw one may wait for another, too. */
static void thaw_side_by_side(const struct survey *s)
{
	for (u32 i = 0; i < s->nr_mounts; i++) {
		if (fork() != 0)
			continue;
		ioctl(s->mounts[i].fd, FITHAW, 0);
		_exit(0);
	}
}

/* Nobody waits for it any more: then all thaws again. */
static void freezer_run(const struct survey *s, int to_guard)
{
	struct word word = freeze_all(s);

	if (write(to_guard, &word, sizeof(word)) != sizeof(word) && !word.error)
		thaw(s, s->nr_mounts);
	_exit(0);
}

static u64 now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000ull + ts.tv_nsec / 1000000;
}

static int left_ms(u64 end_ms)
{
	u64 now = now_ms();

	return end_ms > now ? end_ms - now : 0;
}

/*
 * To freeze one may wait for another that is frozen already: it lies in a file
 * there. So another process does it, which need not be waited for.
 */
static struct word freeze_in_time(const struct survey *s, u64 end_ms)
{
	struct word word = { .error = -EAGAIN };
	struct pollfd wait = { .events = POLLIN };
	pid_t freezer;
	int fds[2];

	if (pipe2(fds, O_CLOEXEC))
		return word;
	freezer = fork();
	if (freezer == 0) {
		close(fds[0]);
		freezer_run(s, fds[1]);
	}
	close(fds[1]);
	wait.fd = fds[0];
	if (freezer > 0 && (poll(&wait, 1, left_ms(end_ms)) <= 0 ||
			    read(fds[0], &word, sizeof(word)) != sizeof(word)))
		word.error = -ETIMEDOUT;
	close(fds[0]); /* before the thaw: what it freezes later, it thaws */
	if (word.error == -ETIMEDOUT)
		thaw_side_by_side(s);
	return word;
}

/* What is dirty is written before, so that freezing takes an instant. */
static void child_run(const struct survey *s, int from_parent, int to_parent)
{
	struct pollfd wait = { .fd = from_parent, .events = POLLIN };
	struct word word = { .error = 0 };
	sigset_t all;
	u64 end_ms;

	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, NULL);
	for (u32 i = 0; i < s->nr_mounts; i++)
		syncfs(s->mounts[i].fd);
	end_ms = now_ms() + FREEZE_MS;
	if (mlockall(MCL_CURRENT | MCL_FUTURE))
		word = (struct word){ .error = -errno, .mount = -1 };
	else
		word = freeze_in_time(s, end_ms);
	if (write(to_parent, &word, sizeof(word)) == sizeof(word) && !word.error)
		word.error = poll(&wait, 1, left_ms(end_ms)) > 0 ? 0 : -ETIMEDOUT;
	if (!word.error || word.error == -ETIMEDOUT)
		thaw(s, s->nr_mounts);
	if (write(to_parent, &word, sizeof(word)) < 0)
		_exit(1);
	_exit(0);
}

/* ---- the parent --------------------------------------------------------------------------- */

static int read_word(const struct freeze *freeze, struct word *word)
{
	ssize_t n;

	do {
		n = read(freeze->from_child, word, sizeof(*word));
	} while (n < 0 && errno == EINTR);
	return n == sizeof(*word) ? 0 : -EPIPE;
}

static void reap(struct freeze *freeze)
{
	close(freeze->to_child);
	close(freeze->from_child);
	while (waitpid(freeze->child, NULL, 0) < 0 && errno == EINTR)
		;
	freeze->child = 0;
}

static int start_child(const struct survey *s, struct freeze *freeze, struct qc_err *err)
{
	int down[2], up[2];

	if (pipe2(down, O_CLOEXEC))
		return qc_err_set(err, -errno, "--freeze: no pipe (%m)");
	if (pipe2(up, O_CLOEXEC)) {
		close(down[0]);
		close(down[1]);
		return qc_err_set(err, -errno, "--freeze: no pipe (%m)");
	}
	freeze->child = fork();
	if (freeze->child == 0) {
		close(down[1]); /* so that our death is its end */
		close(up[0]);
		child_run(s, down[0], up[1]);
	}
	close(down[0]);
	close(up[1]);
	freeze->to_child = down[1];
	freeze->from_child = up[0];
	if (freeze->child > 0)
		return 0;
	close(down[1]);
	close(up[0]);
	freeze->child = 0;
	return qc_err_set(err, -EAGAIN, "--freeze: no process");
}

static int wait_frozen(const struct survey *s, struct freeze *freeze, struct qc_err *err)
{
	struct word word;
	int ret = read_word(freeze, &word);

	if (!ret)
		ret = word.error;
	if (!ret)
		return 0;
	reap(freeze);
	if (ret == -EPIPE)
		return qc_err_set(err, ret, "--freeze: the process that freezes has died");
	if (ret == -ETIMEDOUT)
		return qc_err_set(err, ret, "--freeze: file systems did not freeze within %d ms, "
				  "all go on; none may lie in a file on another", FREEZE_MS);
	if (word.mount < 0)
		return qc_err_set(err, ret, "--freeze: memory not locked (%s), must be allowed; "
				  "run as root", strerror(-ret));
	return qc_err_set(err, ret, "%s: not frozen (%s)", s->mounts[word.mount].path,
			  ret == -EBUSY ? "somebody has frozen it already" : strerror(-ret));
}

int freeze_begin(const char *const *devices, u32 nr, struct freeze *result, struct qc_err *err)
{
	struct survey *s = calloc(1, sizeof(*s));
	int ret;

	*result = (struct freeze){ .child = 0 };
	signal(SIGPIPE, SIG_IGN); /* a child that has died is an error, not our end */
	if (!s)
		return qc_err_set(err, -ENOMEM, "--freeze: out of memory");
	ret = make_survey(s, devices, nr, err);
	if (!ret)
		ret = start_child(s, result, err);
	if (!ret)
		ret = wait_frozen(s, result, err);
	close_survey(s);
	return ret;
}

int freeze_end(struct freeze *freeze, struct qc_err *err)
{
	struct word word = { .error = 0 };
	int ret;

	if (!freeze->child)
		return 0;
	ret = write(freeze->to_child, "", 1) == 1 || errno == EPIPE ? 0 : -errno;
	if (!ret)
		ret = read_word(freeze, &word);
	reap(freeze);
	if (!ret && word.error == -ETIMEDOUT)
		return qc_err_set(err, -ETIMEDOUT, "--freeze: file systems were frozen for %d ms "
				  "and thawed before all was done; the snapshot is as after a "
				  "power cut", FREEZE_MS);
	return ret ? qc_err_set(err, ret, "--freeze: thawing was not confirmed (%s)",
				strerror(-ret)) : 0;
}
