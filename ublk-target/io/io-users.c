// SPDX-License-Identifier: GPL-2.0-or-later
/* Names the process that stands in the way, for messages only. */
#include "io-door.h"

#include <ctype.h>
#include <dirent.h>
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

static bool fd_is_blockdev(const struct user_search *search, const char *pid, const char *fd)
{
	char path[64], link[PATH_MAX];
	unsigned int flags;
	struct stat st;
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/%.16s/fd/%.16s", pid, fd);
	n = readlink(path, link, sizeof(link) - 1);
	if (n < 0)
		return false;
	link[n] = 0;
	/* Names below /dev only: stat(2) does not hang there. */
	if (strncmp(link, "/dev/", 5) || stat(path, &st) || !S_ISBLK(st.st_mode) ||
	    st.st_rdev != search->door->st.st_rdev)
		return false;
	flags = fd_flags(pid, fd);
	return !(flags & O_PATH) && (search->any || (flags & O_ACCMODE) != O_RDONLY);
}

static bool is_self(const char *pid)
{
	return (pid_t)strtol(pid, NULL, 10) == getpid();
}

static bool process_matches(const struct user_search *search, const char *pid)
{
	char path[64];
	struct dirent *de;
	bool found = false;
	DIR *d;

	snprintf(path, sizeof(path), "/proc/%.16s/fd", pid);
	d = opendir(path);
	if (!d)
		return false;
	while (!found && (de = readdir(d))) {
		if (!isdigit((unsigned char)de->d_name[0]) ||
		    (is_self(pid) && atoi(de->d_name) == search->door->fd))
			continue;
		found = search->matches(search, pid, de->d_name);
	}
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
