// SPDX-License-Identifier: GPL-2.0-or-later
/* The guard: a process that starts a chain's daemon, and starts it again when that dies. */
#include "guard.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/close_range.h>
#include <qchain/log.h>
#include <qchain/parse.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <syslog.h>
#include <time.h>
#include <unistd.h>

/*
 * The guard is a subreaper: qchaind, which goes to the background, becomes its child,
 * so that the guard sees how it ended, and sees it at once. It is locked in memory
 * and holds nothing: no lock, no mount, no descriptor but one of the chain's folder, which
 * tells what that is called now. Killing it loses the restarts and nothing else.
 */

#define WINDOW_S 60
#define FIRST_PAUSE_MS 100u
#define MAX_PAUSE_MS 10000u
#define BUSY_PAUSE_MS 200u

/*
 * struct guard - what one guard knows
 * @folder_fd: of the chain, which may be renamed
 * @daemon: its process; 0: it was dead before that was known
 * @begin, @tries: of the minute that is counted
 */
struct guard {
	char name[QC_MAX_CHAIN_NAME + 1];
	int folder_fd;
	u32 limit;
	pid_t daemon;
	time_t begin;
	u32 tries;
};

int guard_default_limit(u32 *result, struct qc_err *err)
{
	const char *text = getenv("QCHAIN_RESTARTS");
	u64 value = GUARD_LIMIT;
	int ret = 0;

	if (text && *text)
		ret = parse_number("QCHAIN_RESTARTS", text, 0, GUARD_MAX_LIMIT, &value, err);
	*result = value;
	return ret;
}

/* ---- watching ------------------------------------------------------------------- */

static void tell(int priority, const char *name, const char *text)
{
	if (priority == LOG_INFO)
		log_info("%s: guard: %s", name, text);
	else
		log_error("%s: guard: %s", name, text);
	syslog(priority, "%s: %s", name, text);
}

/*
 * How the daemon ended, in words; false: by itself, as it was asked to. Others of our
 * children write down the end of a job.
 */
static bool wait_death(const struct guard *guard, char *text, size_t bytes)
{
	pid_t daemon = guard->daemon, pid;
	int status;

	if (!daemon) {
		snprintf(text, bytes, "it died as it was started");
		return true;
	}
	do {
		pid = waitpid(-1, &status, 0);
	} while (pid != daemon && (pid >= 0 || errno == EINTR));
	if (pid < 0 || (WIFEXITED(status) && WEXITSTATUS(status) == 0))
		return false;
	if (WIFSIGNALED(status))
		snprintf(text, bytes, "process %d was killed by signal %d (%s)", (int)pid,
			 WTERMSIG(status), strsignal(WTERMSIG(status)));
	else
		snprintf(text, bytes, "process %d ended with exit status %d", (int)pid,
			 WEXITSTATUS(status));
	return true;
}

static time_t now_s(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec;
}

static void pause_ms(u32 ms)
{
	struct timespec rest = { ms / 1000, ms % 1000 * 1000000l };

	while (nanosleep(&rest, &rest) < 0 && errno == EINTR)
		;
}

/* One more try in this minute: is it allowed? */
static bool may_try(struct guard *guard)
{
	time_t now = now_s();

	if (now - guard->begin >= WINDOW_S) {
		guard->begin = now;
		guard->tries = 0;
	}
	return guard->tries++ < guard->limit;
}

/* In the record, for list and status; the daemon that could tell it is not there. */
static void note_end(const struct guard *guard, const char *text)
{
	struct rundir dir = { .lock_fd = -1 };
	json_object *record = NULL, *restarts;

	if (rundir_lock(guard->name, false, &dir, NULL) == 0 &&
	    rundir_load(guard->name, &record, NULL) == 0 && record) {
		if (!json_object_object_get_ex(record, "restarts", &restarts)) {
			restarts = json_object_new_object();
			json_object_object_add(record, "restarts", restarts);
		}
		json_object_object_add(restarts, "gave-up", json_object_new_string(text));
		json_object_object_del(record, "guard");
		rundir_save(&dir, record, NULL);
	}
	json_object_put(record);
	rundir_unlock(&dir);
}

static void give_up(const struct guard *guard, const char *why)
{
	char text[1400];

	snprintf(text, sizeof(text), "given up after %u restarts in a minute (%s), at most %u are "
		 "made; see what ends it, then qchainctl up %s", guard->tries - 1, why,
		 guard->limit, guard->name);
	tell(LOG_ALERT, guard->name, text);
	note_end(guard, text);
}

/* Those that died while they were being started are no news. */
static void reap(void)
{
	while (waitpid(-1, NULL, WNOHANG) > 0)
		;
}

static bool is_my_child(pid_t pid)
{
	return waitpid(pid, NULL, WNOHANG) == 0;
}

static int try_once(struct guard *guard, const char *death, struct qc_err *err)
{
	int ret;

	reap();
	do {
		err->code = 0;
		rundir_held_name(guard->folder_fd, guard->name);
		ret = up_after_death(guard->name, death, &guard->daemon, err);
		if (ret == -EBUSY)
			pause_ms(BUSY_PAUSE_MS);
	} while (ret == -EBUSY);
	return ret == -EALREADY && is_my_child(guard->daemon) ? 0 : ret;
}

/* Until it serves again; false: there is nothing more to guard. */
static bool bring_back(struct guard *guard, const char *death)
{
	u32 pause = FIRST_PAUSE_MS;
	struct qc_err err = { 0 };
	char why[sizeof(err.msg)];
	int ret;

	snprintf(why, sizeof(why), "%s", death);
	while (may_try(guard)) {
		ret = try_once(guard, death, &err);
		if (ret == 0)
			tell(LOG_INFO, guard->name, "brought back");
		if (ret == 0 || ret == -ESRCH || ret == -EALREADY)
			return ret == 0;
		snprintf(why, sizeof(why), "%s", err.msg);
		tell(LOG_ERR, guard->name, why);
		pause_ms(pause);
		pause = min(2 * pause, MAX_PAUSE_MS);
	}
	give_up(guard, why);
	return false;
}

static void watch(struct guard *guard)
{
	char death[128];

	do {
		if (!wait_death(guard, death, sizeof(death)))
			return;
		rundir_held_name(guard->folder_fd, guard->name);
		tell(LOG_WARNING, guard->name, death);
	} while (bring_back(guard, death));
}

/* Who it is that answers; 0: nobody any more. */
static pid_t find_daemon(const char *name)
{
	struct qc_err ignored = { 0 };
	struct served served;
	pid_t pid;

	if (served_find(name, &served, &ignored))
		return 0;
	pid = served.state == SERVED_LIVE ? served.pid : 0;
	served_exit(&served);
	return pid;
}

/* ---- starting --------------------------------------------------------------------- */

int guard_leave(const char *name, int keep_fd)
{
	char path[256];
	int null_fd, log_fd;

	if (chain_run_path(name, "qchaind.log", path, sizeof(path), NULL))
		return -EINVAL;
	null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	log_fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	if (null_fd < 0 || log_fd < 0 || dup2(null_fd, STDIN_FILENO) < 0 ||
	    dup2(null_fd, STDOUT_FILENO) < 0 || dup2(log_fd, STDERR_FILENO) < 0 ||
	    chdir("/") < 0)
		return -errno;
	if (keep_fd < 0)
		return close_range(STDERR_FILENO + 1, ~0u, 0);
	if (keep_fd > STDERR_FILENO + 1)
		close_range(STDERR_FILENO + 1, keep_fd - 1, 0);
	return close_range(keep_fd + 1, ~0u, 0);
}

/* The whole life of a guard. @answer_fd: takes the result of the first start. */
static void guard_run(json_object *record, bool wait, bool recover, int answer_fd)
{
	struct guard guard = { .limit = json_number(record, "restart-limit", GUARD_LIMIT),
			       .begin = now_s() };
	struct qc_err err = { 0 };
	int ret;

	snprintf(guard.name, sizeof(guard.name), "%s", json_text(record, "name"));
	setsid();
	signal(SIGHUP, SIG_IGN);
	prctl(PR_SET_NAME, "qchain-guard");
	prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
	/* The lock of the chain is the caller's alone; what is answered goes last. */
	close_range(STDERR_FILENO + 1, answer_fd - 1, 0);
	close_range(answer_fd + 1, ~0u, 0);
	ret = spawn_daemon(record, wait, recover, &err);
	if (ret == 0)
		guard.daemon = find_daemon(guard.name);
	if (write(answer_fd, &err, sizeof(err)) != sizeof(err) || ret)
		_exit(CTL_FAILED);
	if (guard_leave(guard.name, -1))
		_exit(CTL_FAILED);
	guard.folder_fd = rundir_hold(guard.name);
	process_protect_guard();
	openlog("qchain", LOG_PID, LOG_DAEMON);
	watch(&guard);
	_exit(CTL_DONE);
}

static int read_answer(pid_t child, int fd, struct qc_err *err)
{
	struct qc_err answer;
	ssize_t n;

	do {
		n = read(fd, &answer, sizeof(answer));
	} while (n < 0 && errno == EINTR);
	if (n == sizeof(answer) && answer.code == 0)
		return 0;
	while (waitpid(child, NULL, 0) < 0 && errno == EINTR)
		;
	if (n == sizeof(answer))
		return qc_err_set(err, answer.code, "%s", answer.msg);
	return qc_err_set(err, -EIO, "qchainctl: the guard ended without a word");
}

int guard_spawn(json_object *record, bool wait, bool recover, struct qc_err *err)
{
	int fds[2], ret;
	pid_t child;

	json_object_object_del(record, "guard");
	if (json_number(record, "restart-limit", GUARD_LIMIT) == 0)
		return spawn_daemon(record, wait, recover, err);
	if (pipe2(fds, O_CLOEXEC) < 0)
		return qc_err_set(err, -errno, "qchainctl: no pipe (%m)");
	child = fork();
	if (child == 0)
		guard_run(record, wait, recover, fds[1]);
	close(fds[1]);
	ret = child < 0 ? qc_err_set(err, -errno, "qchainctl: no process (%m)") :
			  read_answer(child, fds[0], err);
	close(fds[0]);
	if (ret == 0)
		json_object_object_add(record, "guard", json_object_new_int(child));
	return ret;
}
