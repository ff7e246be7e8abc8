// SPDX-License-Identifier: GPL-2.0-or-later
/* qchainctl down: end a chain that nobody uses, and leave nothing behind. */
#include "offload.h"
#include "proxmox.h"
#include "revert-record.h"
#include "tab.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

struct down_options {
	bool all;
	bool force;
	bool deferred;
	bool json;
};

struct down_result {
	enum served_state before;
	bool recovered; /* taken over, to be ended without loss */
	bool waits; /* deferred: nothing was ended yet */
};

/* A descriptor that tells the end of process @pid; -1: it has ended. */
static int watch_process(pid_t pid)
{
	return pid > 0 ? (int)syscall(SYS_pidfd_open, pid, 0) : -1;
}

static void wait_process(int pidfd)
{
	struct pollfd poll_fd = { .fd = pidfd, .events = POLLIN };

	if (pidfd < 0)
		return;
	while (poll(&poll_fd, 1, -1) < 0 && errno == EINTR)
		;
	close(pidfd);
}

int served_stop(const struct served *served, bool force, struct qc_err *err)
{
	json_object *arguments = json_object_new_object();
	int pidfd = watch_process(served->pid);
	int ret;

	if (force)
		json_object_object_add(arguments, "force", json_object_new_boolean(true));
	ret = client_command(served->client, "quit", arguments, true, NULL, err);
	if (ret == 0)
		wait_process(pidfd);
	else if (pidfd >= 0)
		close(pidfd);
	return ret;
}

/*
 * What was acknowledged may be in the intent log only, or wait in the device: only
 * a daemon that takes it over can end it without losing that.
 */
static int recover_and_stop(const struct served *dead, bool force, struct qc_err *err)
{
	struct served again;
	u32 nr;
	json_object *activated = json_list(dead->record, "activated", &nr);
	int ret = 0;

	if (activated)
		ret = activate_missing(served_top(dead), activated, err);
	if (ret == 0)
		ret = spawn_daemon(dead->record, true, dead->state == SERVED_RECOVERABLE, err);
	if (ret == 0)
		ret = served_find(dead->name, &again, err);
	if (ret)
		return ret;
	ret = again.state == SERVED_LIVE ? served_stop(&again, force, err) :
					   served_not_live(&again, err);
	served_exit(&again);
	return ret;
}

/* Of a chain without a block device: one that is gone has told its users of the loss. */
static bool has_log(const struct served *dead)
{
	char path[256];

	return dead->dev_id < 0 &&
	       !chain_run_path(dead->name, "intent.log", path, sizeof(path), NULL) &&
	       access(path, F_OK) == 0;
}

static int stop_chain(const struct served *served, bool force, bool *recovered,
		      struct qc_err *err)
{
	switch (served->state) {
	case SERVED_LIVE:
		return served_stop(served, force, err);
	case SERVED_SILENT:
		return served_not_live(served, err);
	case SERVED_RECOVERABLE:
		*recovered = true;
		break;
	case SERVED_MAPPED:
		break;
	case SERVED_DEAD:
		*recovered = !force && has_log(served);
		break;
	}
	return *recovered ? recover_and_stop(served, force, err) : 0;
}

/* What `up` made, in reverse. */
static int clean_up(struct rundir *dir, const struct served *served, struct qc_err *err)
{
	json_object *activated;
	int ret, removed;
	u32 nr;

	if (offload_is_asked(served->record))
		rundir_unlink_mapped(served->name);
	if (served->dev_id >= 0) {
		rundir_unlink_device(served->name, served->dev_id);
		rundir_drop_device(served->dev_id);
	}
	activated = json_list(served->record, "activated", &nr);
	ret = deactivate_chain(activated, err);
	removed = rundir_remove(dir, err);
	return ret ? ret : removed;
}

/* A revert that was killed: while the daemon lives, it is sure what the top is. */
static int settle(struct served *served, const struct rundir *dir, struct qc_err *err)
{
	struct record_place place;
	struct device_record *record;
	char image[RECORD_IMAGE_BYTES];
	int ret;

	if (!json_text(served->record, "reverting"))
		return 0;
	revert_settle_state(served->record);
	if (served->state != SERVED_LIVE)
		return 0;
	ret = record_place_of(served_top(served), &place, image, err);
	record = ret ? NULL : record_place_find(&place, served->name);
	if (record)
		ret = revert_settle_served(served, dir, &place, record, err);
	record_place_exit(&place);
	return ret;
}

/* From the consumer down: the device in front, the daemon, what is left. */
static int end_chain(struct served *served, struct rundir *dir, const struct down_options *down,
		     struct down_result *result, struct qc_err *err)
{
	int ret = 0;

	if (offload_is_asked(served->record))
		ret = offload_remove(served->name, down->deferred, &result->waits, err);
	if (ret || result->waits)
		return ret;
	ret = stop_chain(served, down->force, &result->recovered, err);
	return ret ? ret : clean_up(dir, served, err);
}

static int down_chain(const char *name, const struct down_options *down,
		      struct down_result *result, struct qc_err *err)
{
	struct rundir dir = { .lock_fd = -1 };
	struct served served;
	int ret = rundir_lock(name, false, &dir, err);

	if (ret)
		return ret;
	ret = served_find(name, &served, err);
	if (ret == 0) {
		result->before = served.state;
		ret = settle(&served, &dir, err);
		if (ret == 0)
			ret = proxmox_settle_served(&served, &dir, err);
		if (ret == 0)
			ret = end_chain(&served, &dir, down, result, err);
		served_exit(&served);
	}
	rundir_unlock(&dir);
	return ret;
}

static int parse_options(const struct verb *verb, int argc, char **argv, struct down_options *down)
{
	static const struct option options[] = {
		{ "all", no_argument, NULL, 'a' },
		{ "force", no_argument, NULL, 'f' },
		{ "deferred", no_argument, NULL, 'd' },
		{ "json", no_argument, NULL, 'j' },
		{ NULL },
	};
	int c;

	while ((c = verb_option(verb, argc, argv, options)) != -1) {
		if (c == 'a')
			down->all = true;
		else if (c == 'f')
			down->force = true;
		else if (c == 'd')
			down->deferred = true;
		else if (c == 'j')
			down->json = true;
		else
			return verb_status(verb);
	}
	return verb_arguments(verb, argc, argv, down->all ? 0 : 1, down->all ? 0 : 1);
}

static json_object *result_json(const char *name, const struct down_result *result)
{
	json_object *object = json_object_new_object();

	json_object_object_add(object, "name", json_object_new_string(name));
	json_object_object_add(object, "before",
			       json_object_new_string(served_state_name(result->before)));
	if (result->waits)
		json_object_object_add(object, "deferred", json_object_new_boolean(true));
	return object;
}

static void print_result(const char *name, const struct down_result *result, bool json)
{
	if (json) {
		print_json(result_json(name, result));
	} else if (result->waits) {
		fprintf(stderr, "qchainctl: %s: /dev/mapper/%s is in use and goes when it is "
			"closed; then qchainctl down %s clears the rest\n", name, name, name);
	} else if (result->before != SERVED_LIVE && result->before != SERVED_MAPPED) {
		fprintf(stderr, "qchainctl: %s: its daemon had ended, %s\n", name,
			result->recovered ? "recovered to end it" : "cleaned up");
	}
}

/* ---- all of them ------------------------------------------------------------------ */

static const struct tab *order_tab; /* for compare_order() */

/* As the table has them, the last line first; others before that. */
static int compare_order(const void *a, const void *b)
{
	const struct tab_entry *one = tab_find(order_tab, *(char *const *)a);
	const struct tab_entry *two = tab_find(order_tab, *(char *const *)b);

	if (one && two)
		return two->line > one->line ? 1 : -1;
	if (one || two)
		return one ? 1 : -1;
	return strcmp(*(char *const *)a, *(char *const *)b);
}

static int end_one(const char *name, const struct down_options *down, json_object *rows)
{
	struct down_result result = { .before = SERVED_DEAD };
	struct qc_err err = { 0 };

	if (down_chain(name, down, &result, &err)) {
		/* Somebody else was faster. */
		return err.code == -ENOENT ? CTL_DONE : print_error(&err);
	}
	if (rows)
		json_object_array_add(rows, result_json(name, &result));
	else
		printf("%s: %s\n", name, result.waits ? "goes when it is closed" : "ended");
	fflush(stdout);
	return CTL_DONE;
}

/* Every chain that is served here. One that is in use is told, and left. */
static int down_all(const struct down_options *down)
{
	json_object *rows = down->json ? json_object_new_array() : NULL;
	struct qc_err err = { 0 }, no_table = { 0 };
	struct tab table = { .nr = 0 };
	int status = CTL_DONE;
	char **names;
	u32 nr;

	if (rundir_names(&names, &nr, &err))
		return print_error(&err);
	if (tab_load(TAB_PATH, "", &table, &no_table))
		tab_exit(&table); /* then by name */
	order_tab = &table;
	if (nr)
		qsort(names, nr, sizeof(*names), compare_order);
	for (u32 i = 0; i < nr; i++) {
		if (end_one(names[i], down, rows))
			status = CTL_FAILED;
		free(names[i]);
	}
	free(names);
	tab_exit(&table);
	if (rows)
		print_json(rows);
	return status;
}

static int down_run(const struct verb *verb, int argc, char **argv)
{
	struct down_options down = { 0 };
	struct down_result result = { .before = SERVED_LIVE };
	struct qc_err err = { 0 };
	int status = parse_options(verb, argc, argv, &down);

	if (status)
		return status;
	if (down.all)
		return down_all(&down);
	status = served_name(verb, argv[optind]);
	if (status)
		return status;
	if (down_chain(argv[optind], &down, &result, &err))
		return print_error(&err);
	print_result(argv[optind], &result, down.json);
	return CTL_DONE;
}

const struct verb verb_down = {
	.name = "down",
	.summary = "end a chain, flushed and clean; refused while it is in use",
	.usage = "NAME [--force|--deferred] [--json] | --all [--force|--deferred] [--json]",
	.options =
		"  --all      every chain that is served here: first what is not in\n"
		"             /etc/qchaintab, then its lines from the last up; what is in use\n"
		"             is told and left, and the status is 1\n"
		"  --force    also while it is open or mounted: its users get I/O errors;\n"
		"             of a dead daemon on NBD alone: what its intent log holds is lost\n"
		"  --deferred of up --offload, while it is open: /dev/mapper/NAME goes when the\n"
		"             last who has it open closes it; down again clears the rest\n"
		"  --json     one object: name, and before, the state that it was in; deferred\n"
		"             (true) when it is still there; with --all a list\n",
	.examples =
		"  umount /mnt && qchainctl down vm7\n",
	.run = down_run,
};
