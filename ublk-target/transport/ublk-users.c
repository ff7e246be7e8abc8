// SPDX-License-Identifier: GPL-2.0-or-later
/* Finds who uses a ublk block device, so that a refusal to stop it can name them. */
#include "ublk-private.h"

#include <dirent.h>
#include <glob.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

/* The disk and its partitions; more of them than that are not looked at. */
#define USERS_MAX_NODES 64

struct users {
	struct {
		dev_t rdev;
		char name[32];
	} nodes[USERS_MAX_NODES];
	u32 nr_nodes;
	mode_t type; /* S_IFBLK or S_IFCHR */
	char *text;
	size_t size;
	size_t used;
	int nr;
	bool lasting;
};

__attribute__((format(printf, 2, 3))) static void user_add(struct users *u, const char *fmt, ...)
{
	size_t room = u->size - u->used;
	va_list ap;
	int n;

	n = snprintf(u->text + u->used, room, "%s", u->nr++ ? ", " : "");
	u->used = min(u->used + n, u->size - 1);
	room = u->size - u->used;
	va_start(ap, fmt);
	n = vsnprintf(u->text + u->used, room, fmt, ap);
	va_end(ap);
	u->used = min(u->used + max(n, 0), u->size - 1);
}

static bool is_node(const struct users *u, dev_t rdev)
{
	u32 i;

	for (i = 0; i < u->nr_nodes; i++)
		if (u->nodes[i].rdev == rdev)
			return true;
	return false;
}

/* @path: "/dev/ublkb0" or a link to it; not looked at elsewhere, which may hang */
static bool is_node_path(const struct users *u, const char *path)
{
	struct stat st;

	return !strncmp(path, "/dev/", 5) && stat(path, &st) == 0 &&
	       S_ISBLK(st.st_mode) && is_node(u, st.st_rdev);
}

/* First line of a file of sysfs or proc, without its end; "" when there is none. */
static void read_line(const char *path, char *buf, size_t size)
{
	FILE *f = fopen(path, "re");

	buf[0] = '\0';
	if (!f)
		return;
	if (!fgets(buf, size, f))
		buf[0] = '\0';
	buf[strcspn(buf, "\n")] = '\0';
	fclose(f);
}

static void add_node(struct users *u, const char *dev_file, const char *name)
{
	unsigned int dev_major, dev_minor;
	char line[32];

	read_line(dev_file, line, sizeof(line));
	if (u->nr_nodes == USERS_MAX_NODES ||
	    sscanf(line, "%u:%u", &dev_major, &dev_minor) != 2)
		return;
	u->nodes[u->nr_nodes].rdev = makedev(dev_major, dev_minor);
	snprintf(u->nodes[u->nr_nodes].name, sizeof(u->nodes[0].name), "%s", name);
	u->nr_nodes++;
}

static void find_nodes(struct users *u, u32 dev_id)
{
	char path[96], name[32];
	glob_t g;
	size_t i;

	snprintf(path, sizeof(path), "/sys/block/ublkb%u/dev", dev_id);
	snprintf(name, sizeof(name), "ublkb%u", dev_id);
	add_node(u, path, name);
	snprintf(path, sizeof(path), "/sys/block/ublkb%u/ublkb%up*/dev", dev_id, dev_id);
	if (glob(path, 0, NULL, &g))
		return;
	for (i = 0; i < g.gl_pathc; i++) {
		/* ".../ublkb0p1/dev": the name is the last folder */
		char *dir = strrchr(g.gl_pathv[i], '/');
		char *end = dir;

		while (dir > g.gl_pathv[i] && dir[-1] != '/')
			dir--;
		snprintf(name, sizeof(name), "%.*s", (int)(end - dir), dir);
		add_node(u, g.gl_pathv[i], name);
	}
	globfree(&g);
}

/* ---- mounts, swap, devices on top: they stay until somebody takes them away ------ */

static void find_mounts(struct users *u, const char *mountinfo)
{
	unsigned int dev_major, dev_minor;
	char *line = NULL, *source;
	char point[256], path[256];
	size_t room = 0;
	FILE *f = fopen(mountinfo, "re");

	while (f && getline(&line, &room, f) > 0) {
		if (sscanf(line, "%*d %*d %u:%u %*s %255s", &dev_major, &dev_minor, point) != 3)
			continue;
		/* Some file systems have numbers of their own: look at their source too. */
		source = strstr(line, " - ");
		if (!source || sscanf(source, " - %*s %255s", path) != 1)
			path[0] = '\0';
		if (!is_node(u, makedev(dev_major, dev_minor)) && !is_node_path(u, path))
			continue;
		user_add(u, "mounted on %s", point);
		u->lasting = true;
	}
	free(line);
	if (f)
		fclose(f);
}

/* A daemon in a mount namespace of its own does not see the host's mounts. */
static void find_all_mounts(struct users *u)
{
	struct stat own, host;

	find_mounts(u, "/proc/self/mountinfo");
	if (stat("/proc/self/ns/mnt", &own) || stat("/proc/1/ns/mnt", &host) ||
	    own.st_ino == host.st_ino)
		return;
	find_mounts(u, "/proc/1/mountinfo");
}

static void find_swap(struct users *u)
{
	char line[512], path[256];
	FILE *f = fopen("/proc/swaps", "re");

	while (f && fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%255s", path) != 1 || !is_node_path(u, path))
			continue;
		user_add(u, "swap on %s", path);
		u->lasting = true;
	}
	if (f)
		fclose(f);
}

/* Device-mapper, md, bcache: by what the kernel links in holders/. */
static void find_holders(struct users *u)
{
	char pattern[96], path[160], dm[128];
	const char *name;
	glob_t g;
	size_t i;
	u32 n;

	for (n = 0; n < u->nr_nodes; n++) {
		snprintf(pattern, sizeof(pattern), "/sys/class/block/%s/holders/*",
			 u->nodes[n].name);
		if (glob(pattern, 0, NULL, &g))
			continue;
		for (i = 0; i < g.gl_pathc; i++) {
			name = strrchr(g.gl_pathv[i], '/') + 1;
			snprintf(path, sizeof(path), "/sys/class/block/%.64s/dm/name", name);
			read_line(path, dm, sizeof(dm));
			user_add(u, "held by %s%s%s%s", name, dm[0] ? " (" : "", dm,
				 dm[0] ? ")" : "");
			u->lasting = true;
		}
		globfree(&g);
	}
}

static void find_loops(struct users *u)
{
	char path[256];
	glob_t g;
	size_t i;

	if (glob("/sys/block/loop*/loop/backing_file", 0, NULL, &g))
		return;
	for (i = 0; i < g.gl_pathc; i++) {
		read_line(g.gl_pathv[i], path, sizeof(path));
		if (!is_node_path(u, path))
			continue;
		user_add(u, "held by %.*s", (int)strcspn(g.gl_pathv[i] + 11, "/"),
			 g.gl_pathv[i] + 11);
		u->lasting = true;
	}
	globfree(&g);
}

/* ---- processes --------------------------------------------------------------------- */

/* Only what calls itself a device is looked at: other file systems may hang. */
static bool fd_is_node(const struct users *u, int dir_fd, const char *name)
{
	char link[8];
	struct stat st;

	return readlinkat(dir_fd, name, link, sizeof(link)) >= 5 && !memcmp(link, "/dev/", 5) &&
	       fstatat(dir_fd, name, &st, 0) == 0 && (st.st_mode & S_IFMT) == u->type &&
	       is_node(u, st.st_rdev);
}

static bool process_has(const struct users *u, const char *pid)
{
	char path[64];
	struct dirent *entry;
	bool found = false;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%.16s/fd", pid);
	dir = opendir(path);
	while (dir && !found && (entry = readdir(dir)))
		found = fd_is_node(u, dirfd(dir), entry->d_name);
	if (dir)
		closedir(dir);
	return found;
}

bool ublk_process_has(s32 pid, dev_t rdev)
{
	struct users u = { .type = S_IFCHR, .nr_nodes = 1, .nodes = { { .rdev = rdev } } };
	char name[16];

	snprintf(name, sizeof(name), "%d", pid);
	return process_has(&u, name);
}

static void find_processes(struct users *u)
{
	char path[64], comm[64];
	struct dirent *entry;
	DIR *dir = opendir("/proc");

	while (dir && (entry = readdir(dir))) {
		if (entry->d_name[0] < '1' || entry->d_name[0] > '9' ||
		    atoi(entry->d_name) == getpid() || !process_has(u, entry->d_name))
			continue;
		snprintf(path, sizeof(path), "/proc/%.16s/comm", entry->d_name);
		read_line(path, comm, sizeof(comm));
		user_add(u, "process %s (%s)", entry->d_name, comm);
	}
	if (dir)
		closedir(dir);
}

static void find_users(struct users *u)
{
	u->text[0] = '\0';
	find_all_mounts(u);
	find_swap(u);
	find_holders(u);
	find_loops(u);
	find_processes(u);
}

int ublk_users_find(u32 dev_id, char *text, size_t size, bool *lasting)
{
	struct users u = { .type = S_IFBLK, .text = text, .size = size };

	find_nodes(&u, dev_id);
	find_users(&u);
	*lasting = u.lasting;
	return u.nr;
}

int block_users_find(const char *name, char *text, size_t size)
{
	struct users u = { .type = S_IFBLK, .text = text, .size = size };
	char path[96];

	snprintf(path, sizeof(path), "/sys/class/block/%.64s/dev", name);
	add_node(&u, path, name);
	find_users(&u);
	return u.nr;
}
