// SPDX-License-Identifier: GPL-2.0-or-later
/* Runs the lvm command: no shell, at most one inherited descriptor, a time limit. */
#include "lvm-private.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MAX_OUTPUT_BYTES (64u * MiB)
#define MAX_ERROR_BYTES 4096u
#define STOP_GRACE_MS 5000u

extern char **environ;

/*
 * lvm is never killed outright: between suspend and resume of a device that
 * would leave the device suspended. It is asked to stop, and if it does not, it
 * is left to itself and the caller learns that the outcome is unknown.
 */
struct lvm_text {
	int fd; /* the pipe's reading end, -1 at its end */
	char *text;
	size_t len;
	size_t space;
	size_t max; /* what comes after that is dropped */
	bool cut;
};

struct lvm_process {
	const char *object;
	const char *command;
	int input; /* what it has as such; -1: nothing */
	pid_t pid;
	struct lvm_text output;
	struct lvm_text errors;
	int write_fds[2]; /* the child's ends */
};

static u64 now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000ull + ts.tv_nsec / 1000000;
}

/* ---- starting ---------------------------------------------------------- */

static int open_pipe(struct lvm_text *text, int *write_fd, size_t max)
{
	int fds[2];

	if (pipe2(fds, O_CLOEXEC))
		return -errno;
	text->fd = fds[0];
	*write_fd = fds[1];
	text->max = max;
	return 0;
}

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

/* Our environment, with messages in English. The array is malloc'ed, its strings are not. */
static char **make_environment(void)
{
	size_t n = 0, used = 0;
	char **env;

	while (environ && environ[n])
		n++;
	env = calloc(n + 3, sizeof(*env));
	if (!env)
		return NULL;
	for (size_t i = 0; i < n; i++)
		if (strncmp(environ[i], "LC_", 3) && strncmp(environ[i], "LANG", 4))
			env[used++] = environ[i];
	env[used++] = (char *)"LC_ALL=C";
	env[used++] = (char *)"LVM_SUPPRESS_FD_WARNINGS=1";
	return env;
}

static int spawn_with(struct lvm_process *p, posix_spawn_file_actions_t *actions,
		      char *const *argv)
{
	char **env = make_environment();
	int ret;

	if (!env)
		return -ENOMEM;
	if (p->input < 0)
		ret = posix_spawn_file_actions_addopen(actions, 0, "/dev/null", O_RDONLY, 0);
	else
		ret = posix_spawn_file_actions_adddup2(actions, p->input, 0);
	if (!ret)
		ret = posix_spawn_file_actions_adddup2(actions, p->write_fds[0], 1);
	if (!ret)
		ret = posix_spawn_file_actions_adddup2(actions, p->write_fds[1], 2);
	if (!ret)
		ret = posix_spawn_file_actions_addclosefrom_np(actions, 3);
	if (!ret)
		ret = posix_spawnp(&p->pid, "lvm", actions, NULL, argv, env);
	/* The PATH of people who are not root has no sbin. */
	if (ret == ENOENT)
		ret = posix_spawn(&p->pid, "/usr/sbin/lvm", actions, NULL, argv, env);
	free(env);
	return -ret;
}

static int spawn(struct lvm_process *p, const char *const *args)
{
	posix_spawn_file_actions_t actions;
	const char **argv;
	size_t n = 0;
	int ret;

	while (args[n])
		n++;
	argv = calloc(n + 2, sizeof(*argv));
	if (!argv)
		return -ENOMEM;
	argv[0] = "lvm";
	memcpy(argv + 1, args, n * sizeof(*argv));
	ret = -posix_spawn_file_actions_init(&actions);
	if (!ret) {
		ret = spawn_with(p, &actions, (char *const *)argv);
		posix_spawn_file_actions_destroy(&actions);
	}
	free(argv);
	return ret;
}

static int start(struct lvm_process *p, const char *const *args, struct qc_err *err)
{
	int ret;

	ret = open_pipe(&p->output, &p->write_fds[0], MAX_OUTPUT_BYTES);
	if (!ret)
		ret = open_pipe(&p->errors, &p->write_fds[1], MAX_ERROR_BYTES);
	if (!ret)
		ret = spawn(p, args);
	close_fd(&p->write_fds[0]);
	close_fd(&p->write_fds[1]);
	if (ret)
		qc_err_set(err, ret, "%s: %s cannot be run (lvm: %s), needs LVM's tools; install "
			   "lvm2", p->object, p->command, strerror(-ret));
	return ret;
}

/* ---- reading ----------------------------------------------------------- */

static int make_room(struct lvm_text *text)
{
	size_t space = text->space ? text->space * 2 : 4096;
	char *grown;

	if (text->len + 1 < text->space)
		return 0;
	grown = realloc(text->text, space);
	if (!grown)
		return -ENOMEM;
	text->text = grown;
	text->space = space;
	return 0;
}

/* Take what is in the pipe; at its end the descriptor is closed. */
static int take(struct lvm_text *text)
{
	char drop[512];
	ssize_t n;

	if (text->len >= text->max) {
		n = read(text->fd, drop, sizeof(drop));
		text->cut |= n > 0;
	} else {
		if (make_room(text))
			return -ENOMEM;
		n = read(text->fd, text->text + text->len, text->space - text->len - 1);
		text->len += max(n, (ssize_t)0);
		text->text[text->len] = 0;
	}
	if (n == 0)
		close_fd(&text->fd);
	return n < 0 && errno != EINTR ? -errno : 0;
}

static int read_all(struct lvm_process *p, u64 deadline_ms)
{
	int ret = 0;

	while (!ret && (p->output.fd >= 0 || p->errors.fd >= 0)) {
		struct pollfd fds[2] = {
			{ .fd = p->output.fd, .events = POLLIN },
			{ .fd = p->errors.fd, .events = POLLIN },
		};
		u64 now = now_ms();

		if (now >= deadline_ms)
			return -ETIMEDOUT;
		if (poll(fds, 2, deadline_ms - now) < 0) {
			ret = errno == EINTR ? 0 : -errno;
			continue;
		}
		if (fds[0].revents)
			ret = take(&p->output);
		if (!ret && fds[1].revents)
			ret = take(&p->errors);
	}
	return ret;
}

/* ---- ending ------------------------------------------------------------ */

/* Returns whether the process has ended by @deadline_ms. */
static bool reap(struct lvm_process *p, u64 deadline_ms, int *status)
{
	const struct timespec pause = { .tv_nsec = 1000000 };
	pid_t pid;

	for (;;) {
		pid = waitpid(p->pid, status, WNOHANG);
		if (pid == p->pid)
			return true;
		if (pid < 0 && errno != EINTR) {
			*status = 0x7f00; /* somebody else reaped it: nothing is known */
			return true;
		}
		if (now_ms() >= deadline_ms)
			return false;
		nanosleep(&pause, NULL);
	}
}

/* Its lines but the warnings, on one line. */
static void condense(const struct lvm_text *errors, char *result, size_t len)
{
	char *line, *save, *copy = strdup(errors->text ? errors->text : "");
	size_t used = 0;

	result[0] = 0;
	for (line = copy ? strtok_r(copy, "\n", &save) : NULL; line && used < len;
	     line = strtok_r(NULL, "\n", &save)) {
		line += strspn(line, " \t");
		if (*line && strncmp(line, "WARNING:", 8))
			used += snprintf(result + used, len - used, "%s%s", used ? "; " : "", line);
	}
	free(copy);
	if (!result[0])
		snprintf(result, len, "no message");
}

static int judge(const struct lvm_process *p, int status, struct qc_err *err)
{
	char words[600];

	if (WIFEXITED(status) && WEXITSTATUS(status) == 0 && !p->output.cut)
		return 0;
	condense(&p->errors, words, sizeof(words));
	if (p->output.cut)
		return qc_err_set(err, -EOVERFLOW, "%s: %s printed too much (more than %llu bytes)",
				  p->object, p->command, MAX_OUTPUT_BYTES);
	if (WIFSIGNALED(status))
		return qc_err_set(err, -EIO, "%s: %s died (signal %d: %s)", p->object, p->command,
				  WTERMSIG(status), words);
	return qc_err_set(err, -EIO, "%s: %s failed (exit %d: %s)", p->object, p->command,
			  WEXITSTATUS(status), words);
}

static int stop(struct lvm_process *p, int why, u32 timeout_ms, struct qc_err *err)
{
	const char *how = "was stopped";
	int status;

	kill(p->pid, SIGTERM);
	if (!reap(p, now_ms() + STOP_GRACE_MS, &status))
		how = "still runs";
	if (why != -ETIMEDOUT)
		return qc_err_set(err, why, "%s: reading from %s failed (%s), it %s; look with lvs",
				  p->object, p->command, strerror(-why), how);
	return qc_err_set(err, why, "%s: %s took too long (pid %d %s), at most %u s are waited; "
			  "look with lvs what was done", p->object, p->command, p->pid, how,
			  timeout_ms / 1000);
}

static int lvm_run_plain(const char *object, const char *const *args, u32 timeout_ms, int input,
			 char **output, struct qc_err *err)
{
	struct lvm_process p = {
		.object = object,
		.command = args[0],
		.input = input,
		.output.fd = -1,
		.errors.fd = -1,
		.write_fds = { -1, -1 },
	};
	u64 deadline_ms = now_ms() + timeout_ms;
	int ret, status;

	ret = start(&p, args, err);
	if (ret)
		goto out;
	ret = read_all(&p, deadline_ms);
	if (!ret && !reap(&p, deadline_ms, &status))
		ret = -ETIMEDOUT;
	ret = ret ? stop(&p, ret, timeout_ms, err) : judge(&p, status, err);
	if (!ret && output) {
		*output = p.output.text ? p.output.text : strdup("");
		p.output.text = NULL;
		if (!*output)
			ret = qc_err_set(err, -ENOMEM, "%s: out of memory", object);
	}
out:
	close_fd(&p.output.fd);
	close_fd(&p.errors.fd);
	free(p.output.text);
	free(p.errors.text);
	return ret;
}

/*
 * The patterns of devices/filter in what lvmconfig printed, NULL when none is
 * set. Around a single one there are no brackets.
 */
static const char *find_filter(char *output)
{
	char *list = strstr(output, "\tfilter="), *end;

	if (!list)
		return NULL;
	list = strchr(list, '=') + 1;
	list += *list == '[';
	end = list + strcspn(list, "\n");
	if (end > list && end[-1] == ']')
		end--;
	*end = 0;
	return *list ? list : NULL;
}

/*
 * lvm must not look at our own devices: the read of one whose daemon has died
 * waits for its recovery, for which we may be calling. The administrator's
 * filter (default: everything) stays behind our pattern. lvmconfig is run
 * until it has answered once: all that is set, as a key that is not set would
 * be a failure.
 */
static const char *filter_config(void)
{
	static const char *const ask[] = { "lvmconfig", NULL };
	static char config[4096];
	static bool known;
	const char *list = NULL;
	char *output = NULL;

	if (known)
		return config;
	known = !lvm_run_plain("lvm", ask, LVM_REPORT_TIMEOUT_MS, -1, &output, NULL);
	if (known)
		list = find_filter(output);
	snprintf(config, sizeof(config), "devices/filter=[\"r|^/dev/ublkb|\",%s]",
		 list ? list : "\"r|^/dev/qchain/|\"");
	free(output);
	return config;
}

static int run_filtered(const char *object, const char *const *args, u32 timeout_ms, int input,
			char **output, struct qc_err *err)
{
	const char **filtered;
	size_t nr = 0;
	int ret;

	while (args[nr])
		nr++;
	filtered = calloc(nr + 3, sizeof(*filtered));
	if (!filtered)
		return qc_err_set(err, -ENOMEM, "%s: out of memory", object);
	filtered[0] = args[0];
	filtered[1] = "--config";
	filtered[2] = filter_config();
	memcpy(filtered + 3, args + 1, (nr - 1) * sizeof(*filtered));
	ret = lvm_run_plain(object, filtered, timeout_ms, input, output, err);
	free(filtered);
	return ret;
}

int lvm_run(const char *object, const char *const *args, u32 timeout_ms, char **output,
	    struct qc_err *err)
{
	return run_filtered(object, args, timeout_ms, -1, output, err);
}

int lvm_run_holding(const char *object, const char *const *args, u32 timeout_ms, int fd,
		    struct qc_err *err)
{
	return run_filtered(object, args, timeout_ms, fd, NULL, err);
}
