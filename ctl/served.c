// SPDX-License-Identifier: GPL-2.0-or-later
/* What there is to know about a chain: its record, its daemon, its device. */
#include "offload.h"

#include <errno.h>
#include <qchain/mapped.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#define ENDING_TRIES 40
#define ENDING_PAUSE_US 50000

const char *served_state_name(enum served_state state)
{
	static const char *const names[] = {
		[SERVED_LIVE] = "serving",
		[SERVED_SILENT] = "unresponsive",
		[SERVED_RECOVERABLE] = "recoverable",
		[SERVED_DEAD] = "dead",
		[SERVED_MAPPED] = "mapped",
	};

	return names[state];
}

static bool block_device_exists(s32 dev_id)
{
	char path[64];

	snprintf(path, sizeof(path), "/sys/block/ublkb%d", dev_id);
	return access(path, F_OK) == 0;
}

/* Is all of it in the kernel, where it needs nobody? */
static bool is_mapped(const struct served *served)
{
	struct mapped_device device;
	struct qc_err ignored = { 0 };

	return offload_is_whole(served->record) &&
	       mapped_find(served->name, &device, &ignored) == 0;
}

/* What the daemon says counts, not what was written down. */
static void device_from_exports(struct served *served)
{
	for (u32 i = 0; i < json_object_array_length(served->exports); i++) {
		json_object *export = json_object_array_get_idx(served->exports, i);
		s64 id = json_number(export, "dev-id", -1);

		if (id >= 0)
			served->dev_id = id;
	}
}

static int try_daemon(struct served *served, struct qc_err *err)
{
	int ret = client_connect(served->name, &served->client, err);

	if (ret)
		return ret;
	served->pid = client_pid(served->client);
	ret = client_command(served->client, "query-status", NULL, false, &served->status, err);
	if (ret == 0)
		ret = client_command(served->client, "query-block-exports", NULL, false,
				     &served->exports, err);
	if (ret == 0)
		device_from_exports(served);
	return ret;
}

/* A connection that breaks off is that of a daemon which is just ending. */
static int ask_daemon(struct served *served, struct qc_err *err)
{
	int ret = -ECONNRESET;

	for (int i = 0; i < ENDING_TRIES && (ret == -ECONNRESET || ret == -EPIPE); i++) {
		if (i)
			usleep(ENDING_PAUSE_US);
		client_close(served->client);
		served->client = NULL;
		err->code = 0;
		ret = try_daemon(served, err);
	}
	return ret;
}

static int socket_missing(const char *name)
{
	char path[256];

	return chain_run_path(name, "qmp.sock", path, sizeof(path), NULL) ||
	       access(path, F_OK) < 0;
}

static void set_silent(struct served *served)
{
	served->state = SERVED_SILENT;
	if (!served->pid)
		served->pid = json_number(served->record, "pid", 0);
}

/* A file that a process leaves in the folder as long as it has to tell something. */
static json_object *find_told(const char *name, const char *file)
{
	char path[256];
	json_object *told;
	pid_t pid;

	if (chain_run_path(name, file, path, sizeof(path), NULL) || access(path, F_OK) < 0)
		return NULL;
	told = json_object_from_file(path);
	pid = json_number(told, "pid", 0);
	if (pid > 0 && (kill(pid, 0) == 0 || errno == EPERM))
		return told;
	json_object_put(told); /* left by one that was killed */
	return NULL;
}

int served_find(const char *name, struct served *result, struct qc_err *err)
{
	struct qc_err why = { 0 };
	int ret = chain_name_check(name, err);

	memset(result, 0, sizeof(*result));
	if (ret == 0)
		ret = rundir_load(name, &result->record, err);
	if (ret)
		return ret;
	snprintf(result->name, sizeof(result->name), "%s", name);
	if (!result->record && socket_missing(name))
		return qc_err_set(err, -ENOENT,
				  "%s: no chain of this name is served; see qchainctl list", name);
	result->dev_id = json_number(result->record, "dev-id", -1);
	ret = ask_daemon(result, &why);
	if (ret == 0)
		result->state = SERVED_LIVE;
	else if (ret == -EACCES || ret == -EPERM)
		goto err_exit;
	else if (ret != -ECONNREFUSED && ret != -ENOENT)
		set_silent(result);
	else if (result->dev_id >= 0 && block_device_exists(result->dev_id))
		result->state = SERVED_RECOVERABLE;
	else if (is_mapped(result))
		result->state = SERVED_MAPPED;
	else
		result->state = SERVED_DEAD;
	/* A start that waits for an image has no socket yet, but a file (rule A2). */
	if (result->state != SERVED_LIVE)
		result->waiting = find_told(name, "waiting.json");
	result->hang = find_told(name, "hang.json");
	return 0;

err_exit:
	served_exit(result);
	return qc_err_set(err, ret, "%s; run as root", why.msg);
}

void served_exit(struct served *served)
{
	client_close(served->client);
	json_object_put(served->record);
	json_object_put(served->waiting);
	json_object_put(served->hang);
	json_object_put(served->status);
	json_object_put(served->exports);
	memset(served, 0, sizeof(*served));
}

const char *served_top(const struct served *served)
{
	const char *top = json_text(served->status, "top");

	if (!top)
		top = json_text(served->record, "top");
	return top ? top : "";
}

const char *served_snapshot(const struct served *served, const char *file)
{
	json_object *list, *entry;
	const char *held;
	u32 nr;

	list = json_list(served->record, "snapshots", &nr);
	for (u32 i = 0; i < nr && file; i++) {
		entry = json_object_array_get_idx(list, i);
		held = json_text(entry, "file");
		if (held && strcmp(held, file) == 0)
			return json_text(entry, "name");
	}
	return NULL;
}

int layer_depth(json_object *layers, const char *file)
{
	for (u32 i = 0; file && i < json_object_array_length(layers); i++) {
		const char *path = json_text(json_object_array_get_idx(layers, i), "file");

		if (path && !strcmp(path, file))
			return i;
	}
	return -1;
}

static const char *nbd_socket(const struct served *served)
{
	const char *socket = json_text(served->record, "nbd");

	for (u32 i = 0; served->exports && i < json_object_array_length(served->exports); i++) {
		if (!socket)
			socket = json_text(json_object_array_get_idx(served->exports, i), "socket");
	}
	return socket ? socket : "";
}

/* "": it has none. */
static void block_device(const struct served *served, char *text)
{
	text[0] = '\0';
	if (served->state == SERVED_DEAD)
		return;
	if (offload_is_asked(served->record))
		snprintf(text, 256, "/dev/mapper/%s", served->name);
	else if (served->dev_id >= 0)
		snprintf(text, 256, "/dev/ublkb%d", served->dev_id);
}

const char *served_device(const struct served *served, char *text)
{
	block_device(served, text);
	if (!text[0])
		snprintf(text, 256, "%s", nbd_socket(served));
	return text;
}

static json_object *text_or_null(const char *text)
{
	return *text ? json_object_new_string(text) : NULL;
}

s64 served_size(const struct served *served)
{
	s64 size = json_number(served->status, "virtual-size", -1);

	return size < 0 && served->state == SERVED_MAPPED ? offload_size(served->record) : size;
}

s64 served_restarts(const struct served *served)
{
	json_object *restarts;

	if (!served->record || !json_object_object_get_ex(served->record, "restarts", &restarts))
		return 0;
	return json_number(restarts, "count", 0);
}

json_object *served_json(const struct served *served)
{
	json_object *row = json_object_new_object(), *jobs;
	u32 nr;
	s64 size = served_size(served);
	char device[256];

	block_device(served, device);
	json_object_object_add(row, "name", json_object_new_string(served->name));
	json_object_object_add(row, "device", text_or_null(device));
	json_object_object_add(row, "state",
			       json_object_new_string(served_state_name(served->state)));
	json_object_object_add(row, "top", text_or_null(served_top(served)));
	json_object_object_add(row, "size", size >= 0 ? json_object_new_int64(size) : NULL);
	json_object_object_add(row, "restarts", json_object_new_int64(served_restarts(served)));
	json_object_object_add(row, "exports", served->exports ? json_object_get(served->exports) :
								 json_object_new_array());
	jobs = json_list(served->record, "jobs", &nr);
	json_object_object_add(row, "jobs", jobs ? json_object_get(jobs) :
						  json_object_new_array());
	return row;
}

int served_not_live(const struct served *served, struct qc_err *err)
{
	if (served->state == SERVED_SILENT)
		return qc_err_set(err, -ETIMEDOUT,
				  "%s: the daemon (process %d) does not answer; see "
				  "%s/%s/qchaind.log", served->name, (int)served->pid,
				  chain_run_root(), served->name);
	if (served->state == SERVED_MAPPED)
		return qc_err_set(err, -EBUSY, "%s: is mapped by the kernel, read-only and without "
				  "a daemon, must have one for this; first qchainctl down %s",
				  served->name, served->name);
	return qc_err_set(err, -ESRCH,
			  "%s: its daemon has ended (state %s), must be serving; start it again "
			  "with qchainctl up %s", served->name, served_state_name(served->state),
			  served->name);
}

int served_name(const struct verb *verb, const char *name)
{
	struct qc_err err = { 0 };

	return chain_name_check(name, &err) ? verb_usage(verb, "%s", err.msg) : 0;
}

int served_arguments(const struct verb *verb, int argc, char **argv, int least, int most,
		     bool *json)
{
	static const struct option options[] = {
		{ "json", no_argument, NULL, 'j' },
		{ NULL },
	};
	int c;

	*json = false;
	while ((c = verb_option(verb, argc, argv, options)) != -1) {
		if (c == '?')
			return verb_status(verb);
		*json = true;
	}
	return verb_arguments(verb, argc, argv, least, most);
}
