// SPDX-License-Identifier: GPL-2.0-or-later
/* What makes a process a storage server: memory, namespace, background. */
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <qchain/control.h>
#include <qchain/limits.h>
#include <qchain/log.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/*
 * A server of a block device must not wait for that device. It would, if it
 * took a page fault on memory that was swapped out to it, if the allocator's
 * reclaim wrote dirty pages of a file system on it, or if the end of the process
 * unmounted one. Each step below closes one of these ways.
 */

#ifndef PR_SET_IO_FLUSHER
#define PR_SET_IO_FLUSHER 57
#endif

#define OOM_NEVER "-1000"
/* Descriptors beside those of the images: sockets, rings, devices. */
#define SPARE_FILES 1024u

/*
 * MCL_FUTURE turns the limit on locked memory into a limit on all memory:
 * without permission to lift it, nothing is locked.
 */
static int protect_memory(void)
{
	const struct rlimit unlimited = { RLIM_INFINITY, RLIM_INFINITY };

	if (setrlimit(RLIMIT_MEMLOCK, &unlimited) < 0)
		return -errno;
	if (mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) < 0)
		return -errno;
	return 0;
}

static int protect_reclaim(void)
{
	return prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) < 0 ? -errno : 0;
}

static int protect_oom(void)
{
	int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
	int ret = 0;

	if (fd < 0)
		return -errno;
	if (write(fd, OOM_NEVER, strlen(OOM_NEVER)) < 0)
		ret = -errno;
	close(fd);
	return ret;
}

/*
 * Slave: what the host unmounts goes away here too. Where the host's mounts are
 * private it does not; process_release_mounts() is for that.
 */
static bool own_mounts; /* changes of ours stay ours */

static int protect_mounts(void)
{
	if (unshare(CLONE_NEWNS) < 0 || mount("none", "/", NULL, MS_REC | MS_SLAVE, NULL) < 0)
		return -errno;
	own_mounts = true;
	return 0;
}

/* A chain has one descriptor per layer; the usual soft limit is 1024. */
static int protect_files(void)
{
	rlim_t wanted = QC_MAX_CHAIN_DEPTH + SPARE_FILES;
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
		return -errno;
	if (limit.rlim_cur >= wanted)
		return 0;
	limit.rlim_cur = wanted;
	limit.rlim_max = max(limit.rlim_max, wanted);
	if (setrlimit(RLIMIT_NOFILE, &limit) == 0)
		return 0;
	getrlimit(RLIMIT_NOFILE, &limit);
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
	return -EPERM;
}

/*
 * What is left: ublk's control commands and mounts, memory and limits, images and
 * sockets of other owners, and the look at who uses a device. Whoever breaks in
 * gets nothing by a program with more: none is ever run.
 */
static const u32 kept_capabilities[] = { CAP_SYS_ADMIN,	   CAP_SYS_RAWIO, CAP_SYS_RESOURCE,
					 CAP_IPC_LOCK,	   CAP_SYS_NICE,  CAP_DAC_OVERRIDE,
					 CAP_DAC_READ_SEARCH, CAP_FOWNER, CAP_CHOWN,
					 CAP_SYS_PTRACE };

static int protect_privileges(void)
{
	struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];
	u64 kept = 0;

	for (u32 i = 0; i < ARRAY_SIZE(kept_capabilities); i++)
		kept |= 1ull << kept_capabilities[i];
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || syscall(SYS_capget, &header, data) < 0)
		return -errno;
	for (u32 i = 0; i < _LINUX_CAPABILITY_U32S_3; i++) {
		data[i].permitted &= kept >> (32 * i);
		data[i].effective &= data[i].permitted;
		data[i].inheritable = 0;
	}
	return syscall(SYS_capset, &header, data) < 0 ? -errno : 0;
}

struct step {
	const char *name;
	int (*fn)(void);
};

/* What was not permitted, as "NAME (why), ..."; "": nothing. */
static void run_steps(const struct step *steps, u32 nr, char *missing, size_t bytes)
{
	size_t at = 0;
	int ret;

	missing[0] = '\0';
	umask(077);
	for (u32 i = 0; i < nr; i++) {
		ret = steps[i].fn();
		if (ret && at < bytes)
			at += snprintf(missing + at, bytes - at, "%s%s (%s)", at ? ", " : "",
				       steps[i].name, strerror(-ret));
	}
}

/* The first of them are for whoever must not wait for the device. */
static const struct step steps[] = {
	{ "locked memory", protect_memory },
	{ "I/O flusher", protect_reclaim },
	{ "OOM protection", protect_oom },
	{ "own mount namespace", protect_mounts },
	{ "descriptors", protect_files },
	{ "fewer privileges", protect_privileges },
};
#define GUARD_STEPS 3u

void process_protect(void)
{
	char missing[160];

	run_steps(steps, ARRAY_SIZE(steps), missing, sizeof(missing));
	if (missing[0])
		log_warn("process: protection not permitted: %s; harmless for NBD, start as root "
			 "for ublk", missing);
}

void process_protect_guard(void)
{
	char missing[160];

	run_steps(steps, GUARD_STEPS, missing, sizeof(missing));
}

/* ---- mounts of the host ----------------------------------------------------- */

/* mountinfo writes blanks and backslashes as three octal digits. */
static void decode_path(char *path)
{
	char *to = path;

	for (; *path; path++) {
		if (path[0] == '\\' && path[1] && path[2] && path[3]) {
			*to++ = (path[1] - '0') << 6 | (path[2] - '0') << 3 | (path[3] - '0');
			path += 3;
		} else {
			*to++ = *path;
		}
	}
	*to = '\0';
}

/* "36 35 98:0 /root /where options - type /dev/source more": where, or NULL */
static char *storage_mount(char *line)
{
	char *where = NULL, *source, *rest = line;

	for (int i = 0; i < 5 && rest; i++)
		where = strsep(&rest, " ");
	source = rest ? strstr(rest, " - ") : NULL;
	source = source ? strchr(source + 3, ' ') : NULL;
	if (!source || strcmp(where, "/") == 0)
		return NULL;
	source[1 + strcspn(source + 1, " \n")] = '\0';
	if (source[1] != '/' && !strchr(source, ':'))
		return NULL;
	decode_path(where);
	return where;
}

void process_release_mounts(void)
{
	char *line = NULL, *where;
	size_t space = 0;
	FILE *f;

	if (!own_mounts)
		return;
	f = fopen("/proc/self/mountinfo", "re");
	if (!f)
		return;
	while (getline(&line, &space, f) > 0) {
		where = storage_mount(line);
		if (where)
			umount2(where, MNT_DETACH | UMOUNT_NOFOLLOW);
	}
	free(line);
	fclose(f);
}

/* ---- background -------------------------------------------------------------- */

/* Write end of the pipe to the waiting parent; -1: foreground or already told. */
static int status_fd = -1;

#define STATUS_READY '+'
#define STATUS_FAILED '-'

/* In the parent: pass on what the child says. Never returns. */
static void wait_for_child(pid_t child, int fd)
{
	char text[sizeof(((struct qc_err *)0)->msg) + 2];
	size_t len = 0;
	ssize_t n;
	int status;

	do {
		n = read(fd, text + len, sizeof(text) - 1 - len);
		len += n > 0 ? n : 0;
	} while (n > 0 || (n < 0 && errno == EINTR));
	text[len] = '\0';
	if (text[0] == STATUS_READY)
		_exit(0);
	if (text[0] == STATUS_FAILED) {
		fprintf(stderr, "qchaind: %s\n", text + 1);
		_exit(1);
	}
	while (waitpid(child, &status, 0) < 0 && errno == EINTR)
		;
	fprintf(stderr, "qchaind: start: ended without a word (%s %d), expected to serve\n",
		WIFSIGNALED(status) ? "signal" : "status",
		WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
	_exit(1);
}

static int redirect_output(int log_fd)
{
	int null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);

	if (null_fd < 0)
		return -errno;
	if (dup2(null_fd, STDIN_FILENO) < 0 || dup2(null_fd, STDOUT_FILENO) < 0 ||
	    dup2(log_fd, STDERR_FILENO) < 0)
		return -errno;
	close(null_fd);
	close(log_fd);
	return 0;
}

int process_daemonize(const char *log_path, struct qc_err *err)
{
	int fds[2], log_fd;
	pid_t child;

	close_range(STDERR_FILENO + 1, ~0u, 0); /* whatever the caller has left open */
	log_fd = open(log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	if (log_fd < 0)
		return qc_err_set(err, -errno, "%s: log not opened (%m), must be writable",
				  log_path);
	if (pipe2(fds, O_CLOEXEC) < 0)
		return qc_err_set(err, -errno, "start: no pipe (%m)");
	child = fork();
	if (child < 0)
		return qc_err_set(err, -errno, "start: no process (%m)");
	if (child > 0) {
		close(fds[1]);
		wait_for_child(child, fds[0]);
	}
	close(fds[0]);
	status_fd = fds[1];
	setsid();
	if (redirect_output(log_fd) < 0 || chdir("/") < 0)
		return qc_err_set(err, -errno, "start: output not redirected (%m)");
	return 0;
}

static void tell_parent(char status, const char *text)
{
	char line[sizeof(((struct qc_err *)0)->msg) + 1];
	int n = snprintf(line, sizeof(line), "%c%s", status, text);

	if (n > (int)sizeof(line) - 1)
		n = sizeof(line) - 1;
	if (write(status_fd, line, n) < 0)
		log_warn("start: the waiting command is gone (%m)");
	close(status_fd);
	status_fd = -1;
}

void process_ready(void)
{
	if (status_fd >= 0)
		tell_parent(STATUS_READY, "");
}

void process_failed(const struct qc_err *err)
{
	const char *text = err->msg[0] ? err->msg : strerror(-err->code);

	if (status_fd < 0) {
		fprintf(stderr, "qchaind: %s\n", text);
		return;
	}
	log_error("%s", text);
	tell_parent(STATUS_FAILED, text);
}
