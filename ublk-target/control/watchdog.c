// SPDX-License-Identifier: GPL-2.0-or-later
/* The watchdog: a thread that sees when a loop does not go on, and tells of it. */
#include "control-private.h"

#include <errno.h>
#include <qchain/log.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

/*
 * It has a thread of its own, because the control thread may be what hangs, or wait
 * for the one that does. What it sees is in the log, in an event, in query-status
 * and, for the case that nobody answers there, in the file hang.json of the chain's
 * folder. It ends nothing: systemd does that when WATCHDOG=1 stays away, where the
 * unit says so; nothing that was acknowledged is lost by it (rule A1).
 */

#define PERIOD_MS 1000u
#define MAX_HANGING 16u

struct hanging {
	char loop[32];
	u64 owed_ms;
};

/* One daemon is one process. */
static struct watchdog {
	/* set once */
	const char *chain; /* NULL: no folder */
	const char *top;
	u32 limit_ms;
	int notify_fd; /* systemd's, -1: none */
	pthread_t thread;
	bool runs;

	/* under @lock */
	pthread_mutex_t lock;
	pthread_cond_t wake;
	bool stop;
	u32 nr_loops;
	u32 nr_hanging;
	struct hanging hanging[MAX_HANGING];
	u32 nr_told; /* of them, as the log and the file have it */
} dog = { .lock = PTHREAD_MUTEX_INITIALIZER, .notify_fd = -1 };

static u64 now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000ull + now.tv_nsec;
}

/* ---- telling ------------------------------------------------------------------------ */

/* With dog.lock. */
static json_object *hanging_json(void)
{
	json_object *list = json_object_new_array(), *entry;

	for (u32 i = 0; i < dog.nr_hanging; i++) {
		entry = json_object_new_object();
		json_object_object_add(entry, "loop", json_object_new_string(dog.hanging[i].loop));
		json_object_object_add(entry, "since-ms",
				       json_object_new_int64(dog.hanging[i].owed_ms));
		json_object_array_add(list, entry);
	}
	return list;
}

json_object *watchdog_hanging(u32 *nr_loops)
{
	json_object *list;

	pthread_mutex_lock(&dog.lock);
	*nr_loops = dog.nr_loops;
	list = hanging_json();
	pthread_mutex_unlock(&dog.lock);
	return list;
}

bool watchdog_sees_hang(void)
{
	bool hangs;

	pthread_mutex_lock(&dog.lock);
	hangs = dog.nr_hanging;
	pthread_mutex_unlock(&dog.lock);
	return hangs;
}

/* {since, pid, hanging}: replaced as a whole, gone when all is well. */
static void write_file(void)
{
	char path[256], next[264];
	json_object *o;

	if (!dog.chain || chain_run_path(dog.chain, "hang.json", path, sizeof(path), NULL))
		return;
	if (!dog.nr_hanging) {
		unlink(path);
		return;
	}
	snprintf(next, sizeof(next), "%s.new", path);
	o = json_object_new_object();
	json_object_object_add(o, "since",
			       json_object_new_int64(time(NULL) - dog.hanging[0].owed_ms / 1000));
	json_object_object_add(o, "pid", json_object_new_int(getpid()));
	json_object_object_add(o, "hanging", hanging_json());
	if (json_object_to_file(next, o) < 0 || rename(next, path) < 0)
		unlink(next); /* the log has it, too */
	json_object_put(o);
}

/* Something has begun to hang, or ended: with dog.lock. */
static void tell(void)
{
	json_object *data = json_object_new_object();

	for (u32 i = 0; i < dog.nr_hanging; i++)
		log_error("%s: loop %s does not go on (no answer for %llu ms), expected one within "
			  "%u ms; if that stays so end process %d with kill -9, nothing that was "
			  "acknowledged is lost", dog.top, dog.hanging[i].loop,
			  (unsigned long long)dog.hanging[i].owed_ms, dog.limit_ms, (int)getpid());
	if (!dog.nr_hanging)
		log_info("%s: all loops go on again", dog.top);
	write_file();
	json_object_object_add(data, "hanging", hanging_json());
	qmp_event("QCHAIN_HANG", data);
	dog.nr_told = dog.nr_hanging;
}

/* ---- systemd ------------------------------------------------------------------------- */

/* The socket of sd_notify(3), where the unit has a WatchdogSec; -1: none. */
static int notify_open(void)
{
	const char *path = getenv("NOTIFY_SOCKET");
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	size_t len;
	int fd;

	if (!path || !getenv("WATCHDOG_USEC") || (*path != '/' && *path != '@'))
		return -1;
	len = strlen(path);
	if (len >= sizeof(address.sun_path))
		return -1;
	memcpy(address.sun_path, path, len);
	if (*path == '@')
		address.sun_path[0] = '\0';
	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd >= 0 && connect(fd, (struct sockaddr *)&address,
			       offsetof(struct sockaddr_un, sun_path) + len) == 0)
		return fd;
	if (fd >= 0)
		close(fd);
	log_warn("%s: systemd's watchdog cannot be told (%m)", dog.top);
	return -1;
}

static void notify(void)
{
	static const char text[] = "WATCHDOG=1";

	if (dog.notify_fd >= 0 && send(dog.notify_fd, text, sizeof(text) - 1, MSG_NOSIGNAL) < 0)
		return; /* it takes the silence for a hang, as it should */
}

/* ---- looking -------------------------------------------------------------------------- */

static void look_at(void *arg, const char *name, u64 owed_ns)
{
	struct hanging *hanging;

	dog.nr_loops++;
	if (owed_ns < dog.limit_ms * 1000000ull || dog.nr_hanging == MAX_HANGING)
		return;
	hanging = &dog.hanging[dog.nr_hanging++];
	snprintf(hanging->loop, sizeof(hanging->loop), "%s", name);
	hanging->owed_ms = owed_ns / 1000000;
}

static void look(void)
{
	dog.nr_loops = 0;
	dog.nr_hanging = 0;
	loop_beat_all(now_ns(), look_at, NULL);
	if (dog.nr_hanging != dog.nr_told)
		tell();
	if (!dog.nr_hanging)
		notify();
}

static void *watchdog_thread(void *arg)
{
	struct timespec until;

	prctl(PR_SET_NAME, "qc-watchdog");
	pthread_mutex_lock(&dog.lock);
	while (!dog.stop) {
		look();
		clock_gettime(CLOCK_MONOTONIC, &until);
		until.tv_sec += PERIOD_MS / 1000;
		pthread_cond_timedwait(&dog.wake, &dog.lock, &until);
	}
	pthread_mutex_unlock(&dog.lock);
	return NULL;
}

int watchdog_start(const char *chain, const char *top, u32 limit_ms, struct qc_err *err)
{
	pthread_condattr_t attr;
	int ret;

	dog.chain = chain;
	dog.top = top;
	dog.limit_ms = limit_ms;
	dog.notify_fd = notify_open();
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&dog.wake, &attr);
	pthread_condattr_destroy(&attr);
	ret = pthread_create(&dog.thread, NULL, watchdog_thread, NULL);
	if (ret)
		return qc_err_set(err, -ret, "start: no thread for the watchdog (%s)",
				  strerror(ret));
	dog.runs = true;
	return 0;
}

void watchdog_stop(void)
{
	if (!dog.runs)
		return;
	pthread_mutex_lock(&dog.lock);
	dog.stop = true;
	pthread_cond_signal(&dog.wake);
	pthread_mutex_unlock(&dog.lock);
	pthread_join(dog.thread, NULL);
	dog.runs = false;
	dog.nr_hanging = 0;
	write_file();
	if (dog.notify_fd >= 0)
		close(dog.notify_fd);
	dog.notify_fd = -1;
}
