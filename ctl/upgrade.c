// SPDX-License-Identifier: GPL-2.0-or-later
/* qchainctl upgrade: the qchaind that is installed now takes over a chain in use. */
#include "guard.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/*
 * A planned death: the new program is tried first, the device is flushed, so that
 * little is left in the intent log; then the old daemon is killed and taken over as
 * after any death (rules A1 and A2). The kernel issues again what was under way.
 */

struct upgrade_options {
	bool force;
	bool json;
};

/* What is told in the end. */
struct upgrade {
	char from[SPAWN_VERSION_BYTES];
	char to[SPAWN_VERSION_BYTES];
	u64 pause_ms;
};

static u64 now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000ull + now.tv_nsec / 1000000;
}

/* "qchain 0.1.0": the package of its QMP. */
static int running_version(const struct served *served, char *text, struct qc_err *err)
{
	json_object *version;
	const char *package;
	int ret = client_command(served->client, "query-version", NULL, false, &version, err);

	if (ret)
		return ret;
	package = json_text(version, "package");
	snprintf(text, SPAWN_VERSION_BYTES, "%s", package ? package : "unknown");
	json_object_put(version);
	return 0;
}

/* NBD has no way to keep a connection over a death. */
static int check_unused(const struct served *served, struct qc_err *err)
{
	s64 clients = 0;

	for (u32 i = 0; i < json_object_array_length(served->exports); i++)
		clients += json_number(json_object_array_get_idx(served->exports, i),
				       "connections", 0);
	if (!clients)
		return 0;
	return qc_err_set(err, -EBUSY, "%s: in use by %lld NBD client%s, whose connections would "
			  "end, expected none; disconnect them, or say --force", served->name,
			  (long long)clients, clients == 1 ? "" : "s");
}

/* systemd would take the death of its main process for one, and start another. */
static int check_unit(const struct served *served, struct qc_err *err)
{
	char path[64], line[512] = "";
	FILE *f;
	bool found = false;

	snprintf(path, sizeof(path), "/proc/%d/cgroup", (int)served->pid);
	f = fopen(path, "re");
	while (f && !found && fgets(line, sizeof(line), f))
		found = strstr(line, "/qchaind@") != NULL;
	if (f)
		fclose(f);
	if (!found)
		return 0;
	return qc_err_set(err, -EBUSY, "%s: is run by a unit of systemd, expected one without; "
			  "systemctl kill -s KILL qchaind@%s makes that start the new program",
			  served->name, served->name);
}

/* Nothing depends on it: what is not flushed is in the log, or on its way to the disk. */
static void flush(const struct served *served)
{
	char path[32];
	int fd;

	if (served->dev_id < 0)
		return;
	snprintf(path, sizeof(path), "/dev/ublkb%d", served->dev_id);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	fdatasync(fd);
	close(fd);
}

/* SIGKILL for the process that answered, and no other that has its number by now. */
static int end_daemon(const struct served *served, struct qc_err *err)
{
	struct pollfd poll_fd = { .events = POLLIN };
	int ret;

	poll_fd.fd = (int)syscall(SYS_pidfd_open, served->pid, 0);
	if (poll_fd.fd < 0)
		return qc_err_set(err, -errno, "%s: process %d not found (%m), must be that of "
				  "its daemon; try again", served->name, (int)served->pid);
	ret = syscall(SYS_pidfd_send_signal, poll_fd.fd, SIGKILL, NULL, 0) < 0 ? -errno : 0;
	if (ret)
		qc_err_set(err, ret, "%s: process %d not ended (%s); run as root", served->name,
			   (int)served->pid, strerror(-ret));
	while (ret == 0 && poll(&poll_fd, 1, -1) < 0 && errno == EINTR)
		;
	close(poll_fd.fd);
	return ret;
}

/* @served is live, its chain locked. */
static int replace_daemon(struct rundir *dir, const struct served *served, bool force,
			  struct upgrade *upgrade, struct served *result, struct qc_err *err)
{
	char reason[2 * SPAWN_VERSION_BYTES + 32];
	u64 begin;
	int ret = spawn_version(upgrade->to, err);

	if (ret == 0 && !served->record)
		ret = qc_err_set(err, -ENOENT, "%s: was not started by qchainctl, expected one "
				 "that was; end it and start it again", served->name);
	if (ret == 0)
		ret = check_unit(served, err);
	if (ret == 0)
		ret = running_version(served, upgrade->from, err);
	if (ret == 0 && !force)
		ret = check_unused(served, err);
	if (ret)
		return ret;
	flush(served);
	begin = now_ms();
	ret = end_daemon(served, err);
	if (ret)
		return ret;
	snprintf(reason, sizeof(reason), "upgrade from %s to %s", upgrade->from, upgrade->to);
	ret = up_anew(dir, reason, result, err);
	upgrade->pause_ms = now_ms() - begin;
	return ret;
}

static int upgrade_chain(const char *name, bool force, struct upgrade *upgrade,
			 struct served *result, struct qc_err *err)
{
	struct rundir dir = { .lock_fd = -1 };
	struct served before;
	int ret = rundir_lock(name, false, &dir, err);

	if (ret)
		return ret;
	ret = served_find(name, &before, err);
	if (ret == 0) {
		ret = before.state == SERVED_LIVE ?
			      replace_daemon(&dir, &before, force, upgrade, result, err) :
			      served_not_live(&before, err);
		served_exit(&before);
	}
	rundir_unlock(&dir);
	return ret;
}

static int parse_options(const struct verb *verb, int argc, char **argv,
			 struct upgrade_options *options)
{
	static const struct option rows[] = {
		{ "force", no_argument, NULL, 'f' },
		{ "json", no_argument, NULL, 'j' },
		{ NULL },
	};
	int c;

	while ((c = verb_option(verb, argc, argv, rows)) != -1) {
		if (c == 'f')
			options->force = true;
		else if (c == 'j')
			options->json = true;
		else
			return verb_status(verb);
	}
	return verb_arguments(verb, argc, argv, 1, 1);
}

static void print_result(const struct upgrade *upgrade, const struct served *served, bool json)
{
	json_object *object;
	char device[256];

	if (!json) {
		printf("%s: %s is served by %s now, after %s, with a pause of %llu ms\n",
		       served->name, served_device(served, device), upgrade->to, upgrade->from,
		       (unsigned long long)upgrade->pause_ms);
		return;
	}
	object = served_json(served);
	json_object_object_add(object, "from", json_object_new_string(upgrade->from));
	json_object_object_add(object, "to", json_object_new_string(upgrade->to));
	json_object_object_add(object, "pause-ms", json_object_new_int64(upgrade->pause_ms));
	print_json(object);
}

static int upgrade_run(const struct verb *verb, int argc, char **argv)
{
	struct upgrade_options options = { 0 };
	struct served served = { .dev_id = -1 };
	struct upgrade upgrade = { 0 };
	struct qc_err err = { 0 };
	int status = parse_options(verb, argc, argv, &options);

	status = status ? status : served_name(verb, argv[optind]);
	if (status)
		return status;
	if (upgrade_chain(argv[optind], options.force, &upgrade, &served, &err))
		status = print_error(&err);
	else
		print_result(&upgrade, &served, options.json);
	served_exit(&served);
	return status;
}

const struct verb verb_upgrade = {
	.name = "upgrade",
	.summary = "let the qchaind that is installed now take over a device in use",
	.usage = "NAME [--force] [--json]",
	.options =
		"  --force    also while NBD clients are connected: their connections end\n"
		"  --json     one object: the keys of list, from, to, pause-ms\n"
		"\n"
		"Users of the block device see a pause and no error. The new program is tried\n"
		"before anything happens. Should it fail all the same, the device waits; with\n"
		"the old program in place again, qchainctl up NAME takes it over.\n",
	.examples =
		"  apt install qchain && qchainctl upgrade vm7\n"
		"  qchainctl list --json | jq -r '.[].name' | xargs -n 1 qchainctl upgrade\n",
	.run = upgrade_run,
};
