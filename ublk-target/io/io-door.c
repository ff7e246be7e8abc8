// SPDX-License-Identifier: GPL-2.0-or-later
/* The door of rule A2: who may open an image, and how it is opened. */
#include "io-door.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <qchain/log.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <unistd.h>

/*
 * The path is looked up once, with O_PATH, which touches nothing: not a fifo's
 * peer, not a tape's head. What was found is then opened through
 * /proc/self/fd, so that it is the thing whose type was checked.
 *
 * A writer of a block device claims it (O_EXCL) on the descriptor of all its
 * I/O. The kernel gives that claim, and the image locks, back when the last
 * request on the descriptor has ended, also when the process is long dead.
 */
#define WAIT_FIRST_MS 10u
#define WAIT_MAX_MS 1000u
#define WAIT_LOG_MS 10000u
#define PV_LABEL_SECTORS 4u
#define PV_READ_BYTES 65536u /* a multiple of every logical block size */

/* ---- who uses it otherwise --------------------------------------------- */

static int busy(const struct io_door *door, struct qc_err *err, const char *how, const char *who,
		const char *next)
{
	return qc_err_set(err, -EBUSY, "%s: %s (%s), must be unused to be written; %s",
			  door->path, how, who, next);
}

static int check_mounted(const struct io_door *door, struct qc_err *err)
{
	char *line = NULL, where[1024];
	unsigned int ma, mi;
	size_t space = 0;
	int ret = 0;
	FILE *f;

	if (!S_ISBLK(door->st.st_mode))
		return 0;
	f = fopen("/proc/self/mountinfo", "re");
	if (!f)
		return qc_err_set(err, -errno, "/proc/self/mountinfo: open failed (%s), "
				  "must be readable to see what is mounted", strerror(errno));
	while (!ret && getline(&line, &space, f) > 0)
		if (sscanf(line, "%*u %*u %u:%u %*s %1023s", &ma, &mi, where) == 3 &&
		    makedev(ma, mi) == door->st.st_rdev)
			ret = busy(door, err, "is mounted", where, "unmount it");
	free(line);
	fclose(f);
	return ret;
}

static int check_swap(const struct io_door *door, struct qc_err *err)
{
	struct image_ident self = image_ident_from(&door->st), swap;
	char line[4096], name[2048];
	int ret = 0;
	FILE *f;

	f = fopen("/proc/swaps", "re");
	if (!f)
		return 0; /* a kernel without swap */
	while (!ret && fgets(line, sizeof(line), f))
		if (sscanf(line, "%2047s", name) == 1 && name[0] == '/' &&
		    !image_ident_of(name, &swap) && image_ident_same(&swap, &self))
			ret = busy(door, err, "is swap space", name, "swapoff it");
	fclose(f);
	return ret;
}

/* "dm-3 (vm7)", or "md0" */
static void name_holder(const char *device, char *text, size_t len)
{
	char path[320], name[128] = "";
	FILE *f;

	snprintf(path, sizeof(path), "/sys/class/block/%.64s/dm/name", device);
	f = fopen(path, "re");
	if (f) {
		if (!fgets(name, sizeof(name), f))
			name[0] = 0;
		fclose(f);
	}
	name[strcspn(name, "\n")] = 0;
	snprintf(text, len, "%s%s%s%s", device, name[0] ? " (" : "", name, name[0] ? ")" : "");
}

static int check_holders(const struct io_door *door, struct qc_err *err)
{
	char dir[64], who[400];
	struct dirent *de;
	int ret = 0;
	DIR *d;

	if (!S_ISBLK(door->st.st_mode))
		return 0;
	snprintf(dir, sizeof(dir), "/sys/dev/block/%u:%u/holders", major(door->st.st_rdev),
		 minor(door->st.st_rdev));
	d = opendir(dir);
	if (!d)
		return 0; /* partitions of some drivers have none */
	while (!ret && (de = readdir(d))) {
		if (de->d_name[0] == '.')
			continue;
		name_holder(de->d_name, who, sizeof(who));
		ret = busy(door, err, "is held by another device", who, "remove that device");
	}
	closedir(d);
	return ret;
}

/* Is the loop device @name over the file @real? */
static bool loop_is_over(const char *name, const char *real)
{
	char attr[320], line[PATH_MAX];
	bool over = false;
	FILE *f;

	snprintf(attr, sizeof(attr), "/sys/block/%s/loop/backing_file", name);
	f = fopen(attr, "re");
	if (!f)
		return false;
	if (fgets(line, sizeof(line), f)) {
		line[strcspn(line, "\n")] = 0;
		over = !strcmp(line, real);
	}
	fclose(f);
	return over;
}

/* A file below a loop device may be mounted, and O_EXCL does not tell. */
static int check_loop(const struct io_door *door, struct qc_err *err)
{
	char link[64], real[PATH_MAX];
	struct dirent *de;
	ssize_t n;
	int ret = 0;
	DIR *d;

	if (S_ISBLK(door->st.st_mode))
		return 0;
	snprintf(link, sizeof(link), "/proc/self/fd/%d", door->fd);
	n = readlink(link, real, sizeof(real) - 1);
	d = n > 0 ? opendir("/sys/block") : NULL;
	if (!d)
		return 0;
	real[n] = 0;
	while (!ret && (de = readdir(d)))
		if (!strncmp(de->d_name, "loop", 4) && loop_is_over(de->d_name, real))
			ret = busy(door, err, "is the file of a loop device", de->d_name,
				   "detach it with losetup -d");
	closedir(d);
	return ret;
}

/* LVM's label: in one of the first four sectors, the type 24 bytes into it. */
static int check_pv(const struct io_door *door, struct qc_err *err)
{
	const char *label;
	ssize_t n = -1;
	int ret = 0;
	char *buf;

	if (!S_ISBLK(door->st.st_mode))
		return 0;
	buf = io_alloc(PV_READ_BYTES);
	if (buf)
		n = pread(door->fd, buf, PV_READ_BYTES, 0);
	if (n < 0) {
		ret = buf ? -errno : -ENOMEM;
		qc_err_set(err, ret, "%s: reading its first sectors failed (%s), "
			   "must be readable to see that it is no PV", door->path, strerror(-ret));
	}
	for (u32 i = 0; !ret && i < PV_LABEL_SECTORS && (i + 1) * SECTOR_SIZE <= n; i++) {
		label = buf + i * SECTOR_SIZE;
		if (!memcmp(label, "LABELONE", 8) && !memcmp(label + 24, "LVM2 001", 8))
			ret = busy(door, err, "is an LVM physical volume", "LVM2 001",
				   "pvremove it if its data is not needed");
	}
	free(buf);
	return ret;
}

static int check_users(const struct io_door *door, struct qc_err *err)
{
	int ret;

	ret = check_mounted(door, err);
	if (!ret)
		ret = check_swap(door, err);
	if (!ret)
		ret = check_holders(door, err);
	return ret;
}

/* ---- opening ----------------------------------------------------------- */

static const char *file_type_name(mode_t mode)
{
	switch (mode & S_IFMT) {
	case S_IFDIR:
		return "a directory";
	case S_IFCHR:
		return "a character device";
	case S_IFIFO:
		return "a fifo";
	case S_IFSOCK:
		return "a socket";
	default:
		return "of unknown type";
	}
}

static int open_failed(const struct io_door *door, int code, struct qc_err *err)
{
	const char *how = door->flags & IO_DEV_WRITE ? "read-write" : "read-only";

	switch (code) {
	case ENOENT:
	case ENXIO:
		return qc_err_set(err, -code, "%s: not found, expected an image file or a block "
				  "device; an LV must be active", door->path);
	case EMFILE:
	case ENFILE:
		return qc_err_set(err, -code, "%s: no descriptor left (%s), a chain needs one per "
				  "layer; raise LimitNOFILE or ulimit -n", door->path,
				  strerror(code));
	case EACCES:
	case EPERM:
	case EROFS:
		return qc_err_set(err, -code, "%s: cannot be opened %s (%s), needs that permission",
				  door->path, how, strerror(code));
	default:
		return qc_err_set(err, -code, "%s: open %s failed (%s)", door->path, how,
				  strerror(code));
	}
}

/* Somebody claimed the block device; was it one of those that never end by themselves? */
static int claim_failed(struct io_door *door, struct qc_err *err)
{
	char who[256];
	int ret;

	ret = check_users(door, err);
	if (ret)
		return ret;
	door->retry = true;
	io_users_of_blockdev(door, who, sizeof(who));
	return busy(door, err, "is open elsewhere", who, "close it there");
}

static int open_found(struct io_door *door, int found, struct qc_err *err)
{
	int how = door->flags & IO_DEV_WRITE ? O_RDWR : O_RDONLY;
	char link[64];

	if (!S_ISREG(door->st.st_mode) && !S_ISBLK(door->st.st_mode))
		return qc_err_set(err, -EINVAL, "%s: is %s, must be a regular file or a block "
				  "device", door->path, file_type_name(door->st.st_mode));
	if ((door->flags & IO_DEV_WRITE) && S_ISBLK(door->st.st_mode))
		how |= O_EXCL;
	snprintf(link, sizeof(link), "/proc/self/fd/%d", found);
	door->direct = !(door->flags & IO_DEV_BUFFERED);
	door->fd = open(link, how | O_CLOEXEC | (door->direct ? O_DIRECT : 0));
	if (door->fd < 0 && errno == EINVAL && door->direct) {
		door->direct = false;
		door->fd = open(link, how | O_CLOEXEC);
	}
	if (door->fd >= 0)
		return 0;
	if (errno == EBUSY && (how & O_EXCL))
		return claim_failed(door, err);
	return open_failed(door, errno, err);
}

static int door_open(struct io_door *door, struct qc_err *err)
{
	int found, ret;

	found = open(door->path, O_PATH | O_CLOEXEC);
	if (found < 0)
		return open_failed(door, errno, err);
	ret = fstat(found, &door->st) ? open_failed(door, errno, err) :
					open_found(door, found, err);
	close(found);
	return ret;
}

static int door_try(struct io_door *door, struct qc_err *err)
{
	int ret;

	door->fd = -1;
	door->retry = false;
	ret = door_open(door, err);
	if (!ret && (door->flags & IO_DEV_WRITE)) {
		ret = check_users(door, err);
		if (!ret)
			ret = check_loop(door, err);
		if (!ret)
			ret = check_pv(door, err);
	}
	if (!ret && !(door->flags & IO_DEV_NOLOCK))
		ret = io_lock_take(door, err);
	if (ret && door->fd >= 0) {
		close(door->fd);
		door->fd = -1;
	}
	return ret;
}

/* ---- from reading to writing -------------------------------------------- */

/*
 * The new descriptor takes the place of the old one in one step: what was issued on
 * that goes on there, all I/O to come has the claim and the locks of a writer.
 */
static int replace_fd(struct io_door *door, struct qc_err *err)
{
	struct io_door writer = { .path = door->path, .flags = door->flags, .fd = -1,
				  .st = door->st };
	int ret = open_found(&writer, door->fd, err);

	if (!ret)
		ret = io_lock_repeat(&writer, err);
	if (!ret && dup3(writer.fd, door->fd, O_CLOEXEC) < 0)
		ret = open_failed(door, errno, err);
	if (writer.fd >= 0)
		close(writer.fd);
	return ret;
}

/* It was a writer's before, and only its locks were given up: the claim is still there. */
static bool has_claim(const struct io_door *door)
{
	int how = fcntl(door->fd, F_GETFL);

	return how >= 0 && (how & O_ACCMODE) == O_RDWR;
}

int io_door_begin_writing(struct io_door *door, struct qc_err *err)
{
	int ret = fstat(door->fd, &door->st) ? open_failed(door, errno, err) :
					       check_users(door, err);

	if (!ret)
		ret = check_loop(door, err);
	if (!ret)
		ret = io_lock_begin_writing(door, err);
	if (!ret && !has_claim(door))
		ret = replace_fd(door, err);
	if (ret)
		io_lock_end_writing(door->fd);
	return ret;
}

/* ---- waiting ----------------------------------------------------------- */

static void (*tell_wait)(const char *why);

void io_dev_on_wait(void (*fn)(const char *why))
{
	tell_wait = fn;
}

struct door_wait {
	char told[sizeof(((struct qc_err *)0)->msg)];
	u32 delay_ms;
	u32 waited_ms;
	u32 log_at_ms;
};

/*
 * Sleep, and let SIGTERM and SIGINT in meanwhile although the caller blocks them:
 * then one that came before the sleep ends it, too.
 */
static int sleep_ms(u32 ms)
{
	struct timespec ts = { .tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L };
	sigset_t mask;

	pthread_sigmask(SIG_SETMASK, NULL, &mask);
	sigdelset(&mask, SIGTERM);
	sigdelset(&mask, SIGINT);
	return ppoll(NULL, 0, &ts, &mask) < 0 ? -errno : 0;
}

/* -EINTR: a signal handler ran; the caller shall not wait on. */
static int door_wait(struct door_wait *wait, const char *why)
{
	if (tell_wait && strcmp(wait->told, why)) {
		snprintf(wait->told, sizeof(wait->told), "%s", why);
		tell_wait(why);
	}
	if (wait->waited_ms >= wait->log_at_ms) {
		log_warn("waiting (%u s): %s", wait->waited_ms / 1000, why);
		wait->log_at_ms = wait->waited_ms + WAIT_LOG_MS;
	}
	wait->delay_ms = min(max(wait->delay_ms * 2, WAIT_FIRST_MS), WAIT_MAX_MS);
	if (sleep_ms(wait->delay_ms))
		return -EINTR;
	wait->waited_ms += wait->delay_ms;
	return 0;
}

int io_door_enter(struct io_door *door, const char *path, u32 flags, struct qc_err *err)
{
	struct door_wait wait = { .told = "" };
	struct qc_err why;
	int ret;

	door->path = path;
	door->flags = flags;
	for (;;) {
		why.code = 0;
		ret = door_try(door, &why);
		if (!ret || !door->retry || !(flags & IO_DEV_WAIT))
			break;
		if (door_wait(&wait, why.msg)) {
			ret = -EINTR;
			break;
		}
	}
	if (wait.told[0])
		tell_wait(NULL);
	return ret ? qc_err_set(err, ret, "%s", why.msg) : 0;
}
