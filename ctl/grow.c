// SPDX-License-Identifier: GPL-2.0-or-later
/* The helper that makes thin LVs larger: its two processes, and how long they live. */
#include "grow.h"

#include "guard.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <qchain/log.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define LOCK_NAME "grow.lock"
#define FIRST_PAUSE_MS 50
#define MAX_PAUSE_MS 5000
#define LONG_LIFE_S 10
/* Between looks for a daemon that has died. */
#define CONNECT_MS 50
#define MAX_CONNECT_MS 500

static void pause_ms(int ms)
{
	poll(NULL, 0, ms);
}

/* ---- the chain's folder ----------------------------------------------------------- */

static int open_lock(const char *name)
{
	char path[256];

	if (chain_run_path(name, LOCK_NAME, path, sizeof(path), NULL))
		return -EINVAL;
	return open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
}

/* What the chain is called now; false: it has ended. */
static bool find_name(int lock_fd, char *name)
{
	char link[40], path[PATH_MAX], *end, *start;
	ssize_t n;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", lock_fd);
	n = readlink(link, path, sizeof(path) - 1);
	path[max(n, (ssize_t)0)] = 0;
	end = strrchr(path, '/');
	if (!end || strcmp(end, "/" LOCK_NAME))
		return false; /* " (deleted)" follows */
	*end = 0;
	start = strrchr(path, '/');
	snprintf(name, QC_MAX_CHAIN_NAME + 1, "%s", start ? start + 1 : "");
	return start;
}

pid_t grow_process(const char *name)
{
	char path[256], text[24] = "";
	int fd;

	if (chain_run_path(name, LOCK_NAME, path, sizeof(path), NULL))
		return 0;
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0)
		return 0;
	if (flock(fd, LOCK_SH | LOCK_NB) == 0 || read(fd, text, sizeof(text) - 1) < 0)
		text[0] = 0;
	close(fd);
	return strtol(text, NULL, 10);
}

/* ---- the one that works -------------------------------------------------------------- */

/* Until something happens, or @ms are over; -errno: the daemon has gone. */
static int wait_event(struct client *client, int ms)
{
	struct pollfd fd = { .fd = client_fd(client), .events = POLLIN };
	json_object *event;
	int ret;

	poll(&fd, 1, ms);
	while ((ret = client_next_event(client, &event)) == 0)
		json_object_put(event);
	return ret == -EAGAIN ? 0 : ret;
}

/* As long as this daemon lives; false: there is none now. */
static bool serve(const char *name, struct grow_volumes *volumes)
{
	struct qc_err err = { 0 };
	struct client *client;
	int next_ms, ret = client_connect(name, &client, &err);

	if (ret)
		return false;
	while (!ret) {
		ret = grow_look(volumes, client, &next_ms, &err);
		if (!ret)
			ret = wait_event(client, next_ms);
	}
	client_close(client);
	return true;
}

static void work(int lock_fd)
{
	struct grow_volumes volumes = { .lock_fd = lock_fd };
	char name[QC_MAX_CHAIN_NAME + 1], text[24];
	int pause = CONNECT_MS, n = snprintf(text, sizeof(text), "%d\n", (int)getpid());

	process_protect_guard();
	if (ftruncate(lock_fd, 0) || pwrite(lock_fd, text, n, 0) != n)
		log_warn("qchain-grow: %s not written (%m)", LOCK_NAME);
	while (find_name(lock_fd, name)) {
		pause = serve(name, &volumes) ? CONNECT_MS : min(2 * pause, MAX_CONNECT_MS);
		pause_ms(pause);
	}
	_exit(0);
}

/* ---- the one that looks after it ------------------------------------------------------- */

static time_t now_s(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec;
}

/* Its whole life; true: the chain has ended, and so did it. */
static bool work_once(int lock_fd)
{
	pid_t child = fork();
	int status = 0;

	if (child == 0)
		work(lock_fd);
	while (child > 0 && waitpid(child, &status, 0) < 0)
		if (errno != EINTR)
			return true;
	if (child > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0)
		return true;
	log_warn("qchain-grow: process %d has ended (status %#x), started again", (int)child,
		 (unsigned int)status);
	return false;
}

static void keep(const char *name, int lock_fd)
{
	char now[QC_MAX_CHAIN_NAME + 1];
	int pause = FIRST_PAUSE_MS;
	time_t begin;

	setsid();
	signal(SIGHUP, SIG_IGN);
	prctl(PR_SET_NAME, "qchain-grow");
	if (guard_leave(name, lock_fd))
		_exit(CTL_FAILED);
	process_protect_guard();
	for (begin = now_s(); !work_once(lock_fd) && find_name(lock_fd, now); begin = now_s()) {
		if (now_s() - begin >= LONG_LIFE_S)
			pause = FIRST_PAUSE_MS;
		pause_ms(pause);
		pause = min(2 * pause, MAX_PAUSE_MS);
	}
	_exit(CTL_DONE);
}

void grow_start(const struct rundir *dir, json_object *record)
{
	pid_t child;
	int fd;

	if (!json_flag(record, "thin"))
		return;
	fd = open_lock(dir->name);
	if (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) < 0) {
		close(fd);
		return; /* there is one */
	}
	child = fd < 0 ? -1 : fork();
	if (child == 0)
		keep(dir->name, fd);
	if (child < 0)
		fprintf(stderr, "qchainctl: %s: no process that makes its LV larger (%m); extend "
			"it by hand, or try again with qchainctl up %s\n", dir->name, dir->name);
	if (fd >= 0)
		close(fd);
}
