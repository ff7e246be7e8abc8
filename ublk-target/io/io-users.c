// SPDX-License-Identifier: GPL-2.0-or-later
/* Names the processes that use an image, for people only. */
#include "io-door.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <unistd.h>

/*
 * The kernel does not say who owns an OFD lock (l_pid is -1), but the fdinfo of
 * each descriptor lists the locks that were taken through it. Reading fdinfo
 * and links touches no file system that might hang.
 */
struct user_search {
	bool (*matches)(const struct user_search *search, const char *pid, const char *fd);
	const struct io_door *door;
	u64 byte;
	bool any; /* of a block device: readers, too */
};

/* One line of fdinfo: "lock:\t1: OFDLCK  ADVISORY  READ -1 fe:00:1234 100 101" */
static bool line_has_lock(const char *line, const struct stat *st, u64 byte)
{
	unsigned long long ino, start, end;
	unsigned int ma, mi;
	char end_text[24];

	if (strncmp(line, "lock:", 5) ||
	    sscanf(line, "lock: %*s %*s %*s %*s %*d %x:%x:%llu %llu %23s", &ma, &mi, &ino,
		   &start, end_text) != 5)
		return false;
	end = strcmp(end_text, "EOF") ? strtoull(end_text, NULL, 10) : ULLONG_MAX;
	return makedev(ma, mi) == st->st_dev && ino == st->st_ino && start <= byte && byte <= end;
}

static bool fd_has_lock(const struct user_search *search, const char *pid, const char *fd)
{
	char path[64], line[256];
	bool found = false;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%.16s/fdinfo/%.16s", pid, fd);
	f = fopen(path, "re");
	if (!f)
		return false;
	while (!found && fgets(line, sizeof(line), f))
		found = line_has_lock(line, &search->door->st, search->byte);
	fclose(f);
	return found;
}

/* How a descriptor was opened; O_PATH, which is no use of anything, if unknown. */
static unsigned int fd_flags(const char *pid, const char *fd)
{
	char path[64], line[256];
	unsigned int flags = O_PATH;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%.16s/fdinfo/%.16s", pid, fd);
	f = fopen(path, "re");
	if (!f)
		return flags;
	while (fgets(line, sizeof(line), f) && sscanf(line, "flags: %o", &flags) != 1)
		;
	fclose(f);
	return flags;
}

/* Names below /dev only: stat(2) does not hang there. */
static bool fd_blockdev(const char *pid, const char *fd, dev_t *result)
{
	char path[64], link[PATH_MAX];
	struct stat st;
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/%.16s/fd/%.16s", pid, fd);
	n = readlink(path, link, sizeof(link) - 1);
	if (n < 0)
		return false;
	link[n] = 0;
	if (strncmp(link, "/dev/", 5) || stat(path, &st) || !S_ISBLK(st.st_mode))
		return false;
	*result = st.st_rdev;
	return true;
}

static bool fd_is_blockdev(const struct user_search *search, const char *pid, const char *fd)
{
	unsigned int flags;
	dev_t rdev;

	if (!fd_blockdev(pid, fd, &rdev) || rdev != search->door->st.st_rdev)
		return false;
	flags = fd_flags(pid, fd);
	return !(flags & O_PATH) && (search->any || (flags & O_ACCMODE) != O_RDONLY);
}

static bool is_self(const char *pid)
{
	return (pid_t)strtol(pid, NULL, 10) == getpid();
}

/* The next descriptor of a process; NULL: no more. */
static const char *next_fd(DIR *d)
{
	struct dirent *de;

	while ((de = readdir(d)))
		if (isdigit((unsigned char)de->d_name[0]))
			return de->d_name;
	return NULL;
}

static DIR *open_fds(const char *pid)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%.16s/fd", pid);
	return opendir(path);
}

static bool process_matches(const struct user_search *search, const char *pid)
{
	bool found = false;
	const char *fd;
	DIR *d = open_fds(pid);

	if (!d)
		return false;
	while (!found && (fd = next_fd(d)))
		found = !(is_self(pid) && atoi(fd) == search->door->fd) &&
			search->matches(search, pid, fd);
	closedir(d);
	return found;
}

static void name_process(const char *pid, char *text, size_t len)
{
	char path[64], comm[64] = "";
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%.16s/comm", pid);
	f = fopen(path, "re");
	if (f) {
		if (!fgets(comm, sizeof(comm), f))
			comm[0] = 0;
		fclose(f);
	}
	comm[strcspn(comm, "\n")] = 0;
	if (is_self(pid))
		snprintf(text, len, "this process, %s, pid %.16s", comm, pid);
	else
		snprintf(text, len, "%s, pid %.16s", comm[0] ? comm : "process", pid);
}

static bool find_user(const struct user_search *search, char *text, size_t len)
{
	struct dirent *de;
	bool found = false;
	DIR *d;

	d = opendir("/proc");
	while (d && !found && (de = readdir(d))) {
		found = isdigit((unsigned char)de->d_name[0]) &&
			process_matches(search, de->d_name);
		if (found)
			name_process(de->d_name, text, len);
	}
	if (d)
		closedir(d);
	if (!found)
		snprintf(text, len, "another process, QEMU or qchaind?");
	return found;
}

void io_users_of_lock(const struct io_door *door, u64 byte, char *text, size_t len)
{
	struct user_search search = { .matches = fd_has_lock, .door = door, .byte = byte };

	find_user(&search, text, len);
}

void io_users_of_blockdev(const struct io_door *door, char *text, size_t len)
{
	struct user_search search = { .matches = fd_is_blockdev, .door = door };

	/* The claim does not show; more likely a writer has it. */
	if (find_user(&search, text, len))
		return;
	search.any = true;
	find_user(&search, text, len);
}

/* ---- all of them --------------------------------------------------------------- */

static int add_user(struct io_user **users, u32 *nr, dev_t rdev, const char *pid)
{
	struct io_user *larger;
	pid_t number = strtol(pid, NULL, 10);

	if (*nr && (*users)[*nr - 1].rdev == rdev && (*users)[*nr - 1].pid == number)
		return 0;
	larger = realloc(*users, (*nr + 1) * sizeof(*larger));
	if (!larger)
		return -ENOMEM;
	*users = larger;
	larger[*nr] = (struct io_user){ .rdev = rdev, .pid = number };
	name_process(pid, larger[*nr].text, sizeof(larger[*nr].text));
	(*nr)++;
	return 0;
}

static int add_process(struct io_user **users, u32 *nr, const char *pid)
{
	const char *fd;
	dev_t rdev;
	int ret = 0;
	DIR *d = is_self(pid) ? NULL : open_fds(pid);

	if (!d)
		return 0;
	while (!ret && (fd = next_fd(d)))
		if (fd_blockdev(pid, fd, &rdev) && !(fd_flags(pid, fd) & O_PATH))
			ret = add_user(users, nr, rdev, pid);
	closedir(d);
	return ret;
}

int io_users_list(struct io_user **result, u32 *nr)
{
	struct dirent *de;
	int ret = 0;
	DIR *d = opendir("/proc");

	*result = NULL;
	*nr = 0;
	while (d && !ret && (de = readdir(d)))
		if (isdigit((unsigned char)de->d_name[0]))
			ret = add_process(result, nr, de->d_name);
	if (d)
		closedir(d);
	if (ret) {
		free(*result);
		*result = NULL;
		*nr = 0;
	}
	return ret;
}
