// SPDX-License-Identifier: GPL-2.0-or-later
/* qchainctl status: all that is known about one chain. */
#include "grow.h"
#include "job-record.h"
#include "offload.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <time.h>

static void print_line(const char *key, const char *value)
{
	if (value && *value)
		printf("  %-20s %s\n", key, value);
}

static void print_value(const char *key, json_object *value)
{
	print_line(key, json_object_is_type(value, json_type_string) ?
				json_object_get_string(value) :
				json_object_to_json_string_ext(value, JSON_C_TO_STRING_SPACED |
							       JSON_C_TO_STRING_NOSLASHESCAPE));
}

/* Keys of the daemon's status that have a line of their own, or say nothing. */
static bool is_told_already(const char *key)
{
	static const char *const told[] = { "name", "top", "virtual-size", "pid", "status",
					    "running", "singlestep", "metadata",
					    "grace", "queues", "requests",
					    "leak-scan", "growth", "warming", "intent-log",
					    "heartbeat" };

	for (u32 i = 0; i < ARRAY_SIZE(told); i++) {
		if (strcmp(told[i], key) == 0)
			return true;
	}
	return false;
}

static void print_export(json_object *export)
{
	const char *where = json_text(export, "device");
	char key[80];

	if (!where)
		where = json_text(export, "socket");
	snprintf(key, sizeof(key), "export %s", json_text(export, "id"));
	print_line(key, where ? where : json_text(export, "type"));
}

static void print_grace(json_object *status)
{
	json_object *grace, *loops;
	char text[200];

	if (!json_object_object_get_ex(status, "grace", &grace) ||
	    json_number(grace, "since-ms", -1) < 0)
		return;
	json_object_object_get_ex(grace, "loops", &loops);
	snprintf(text, sizeof(text), "%.1f s, for the I/O of %s",
		 json_number(grace, "since-ms", 0) / 1000.0,
		 json_object_to_json_string_ext(loops, JSON_C_TO_STRING_SPACED));
	print_line("grace waits since", text);
}

static void print_queue(json_object *queue)
{
	const char *name = json_text(queue, "queue");
	char key[80], text[80];

	snprintf(key, sizeof(key), "queue %s", name ? name : "");
	snprintf(text, sizeof(text), "%lld of %lld requests wait for space",
		 (long long)json_number(queue, "parked", 0),
		 (long long)json_number(queue, "tags", 0));
	print_line(key, text);
}

static const char *text_of(json_object *object, const char *key)
{
	const char *text = json_text(object, key);

	return text ? text : "";
}

static void print_request(json_object *request)
{
	const char *image = json_text(request, "image");

	printf("    %-12s %12lld +%-8lld %8.1f s  %s%s%s%s  %s\n", text_of(request, "operation"),
	       (long long)json_number(request, "offset", 0),
	       (long long)json_number(request, "length", 0),
	       json_number(request, "waited-ms", 0) / 1000.0, text_of(request, "stage"),
	       image ? " on " : "", image ? image : "",
	       json_flag(request, "grace-waits") ? ", a grace waits for it" : "",
	       text_of(request, "queue"));
}

/* What has waited longer than a second is worth a line. */
static void print_requests(json_object *status)
{
	json_object *requests, *stages;
	json_object *oldest;
	char text[64];
	u32 nr;

	if (!json_object_object_get_ex(status, "requests", &requests))
		return;
	snprintf(text, sizeof(text), "%lld", (long long)json_number(requests, "under-way", 0));
	print_line("requests under way", text);
	if (json_object_object_get_ex(requests, "stages", &stages)) {
		json_object_object_foreach(stages, stage, number) {
			snprintf(text, sizeof(text), "%s", json_object_get_string(number));
			printf("    at %-17s %s\n", stage, text);
		}
	}
	oldest = json_list(requests, "oldest", &nr);
	for (u32 i = 0; i < nr; i++)
		if (json_number(json_object_array_get_idx(oldest, i), "waited-ms", 0) >= 1000)
			print_request(json_object_array_get_idx(oldest, i));
}

static void print_waiting(json_object *status)
{
	json_object *queues;
	u32 nr;

	print_requests(status);
	queues = json_list(status, "queues", &nr);
	for (u32 i = 0; i < nr; i++)
		print_queue(json_object_array_get_idx(queues, i));
	print_grace(status);
}

/* Of an image that was not closed cleanly, or before the volume is called full. */
static void print_scan(json_object *status)
{
	json_object *scan;
	char text[96];
	s64 percent;

	if (!json_object_object_get_ex(status, "leak-scan", &scan))
		return;
	percent = json_number(scan, "percent", 0);
	if (!percent && !json_flag(scan, "running"))
		return;
	snprintf(text, sizeof(text), "%lld %%%s, %lld clusters freed", (long long)percent,
		 json_flag(scan, "running") ? "" : ", ended",
		 (long long)json_number(scan, "freed-clusters", 0));
	print_line("leak scan", text);
}

/* Of a thin LV, by whom it is made larger, or why not. */
static void print_growth(const struct served *served)
{
	pid_t process = grow_process(served->name);
	json_object *growth = NULL;
	const char *reason;
	char text[400];

	json_object_object_get_ex(served->status, "growth", &growth);
	reason = json_text(growth, "reason");
	if (process)
		snprintf(text, sizeof(text), "by process %d%s%s", (int)process,
			 reason ? ", not now: " : "", reason ? reason : "");
	else
		snprintf(text, sizeof(text), "by nobody, qchainctl up %s starts who does it",
			 served->name);
	if (process || json_flag(served->record, "thin"))
		print_line("LV grows", text);
}

static void print_warming(json_object *status)
{
	json_object *warming;
	const char *state;
	char text[64];

	if (!json_object_object_get_ex(status, "warming", &warming))
		return;
	state = text_of(warming, "state");
	if (!strcmp(state, "running"))
		snprintf(text, sizeof(text), "%lld %%",
			 (long long)json_number(warming, "percent", 0));
	else
		snprintf(text, sizeof(text), "%s", state);
	print_line("map warming", text);
}

static void print_log(json_object *status)
{
	json_object *log;
	char text[64];

	if (!json_object_object_get_ex(status, "intent-log", &log))
		return;
	snprintf(text, sizeof(text), "%lld of %lld entries",
		 (long long)json_number(log, "entries", 0), (long long)json_number(log, "room", 0));
	print_line("intent log", text);
}

static void print_daemon(const struct served *served)
{
	json_object *metadata;

	for (u32 i = 0; i < json_object_array_length(served->exports); i++)
		print_export(json_object_array_get_idx(served->exports, i));
	json_object_object_foreach(served->status, key, value) {
		if (!is_told_already(key))
			print_value(key, value);
	}
	print_waiting(served->status);
	print_scan(served->status);
	print_growth(served);
	print_warming(served->status);
	print_log(served->status);
	if (!json_object_object_get_ex(served->status, "metadata", &metadata) ||
	    !json_object_is_type(metadata, json_type_object))
		return;
	json_object_object_foreach(metadata, name, counter)
		print_value(name, counter);
}

static const char *next_step(enum served_state state)
{
	switch (state) {
	case SERVED_RECOVERABLE:
		return "its daemon has ended, I/O waits; qchainctl up takes it over";
	case SERVED_DEAD:
		return "its daemon has ended; qchainctl up starts it, qchainctl down clears it";
	case SERVED_SILENT:
		return "its daemon does not answer";
	case SERVED_MAPPED:
		return "by the kernel alone, no daemon";
	default:
		return NULL;
	}
}

static void print_hang(json_object *hang)
{
	char text[400];
	u32 nr = 0;
	json_object *list = json_list(hang, "hanging", &nr), *loop;

	for (u32 i = 0; i < nr; i++) {
		loop = json_object_array_get_idx(list, i);
		snprintf(text, sizeof(text), "loop %s does not go on, since %lld s; if that stays "
			 "so kill -9 %lld, nothing that was acknowledged is lost",
			 text_of(loop, "loop"),
			 (long long)(time(NULL) - json_number(hang, "since", 0)),
			 (long long)json_number(hang, "pid", 0));
		print_line(i ? "" : "hangs", text);
	}
}

static void print_heartbeat(json_object *status)
{
	json_object *beat;
	char text[64];

	if (!status || !json_object_object_get_ex(status, "heartbeat", &beat))
		return;
	snprintf(text, sizeof(text), "%lld loops", (long long)json_number(beat, "loops", 0));
	print_line("heartbeat", text);
}

static void print_start(json_object *waiting)
{
	char text[1200];

	if (!waiting)
		return;
	snprintf(text, sizeof(text), "process %lld, %lld s: %s",
		 (long long)json_number(waiting, "pid", 0),
		 (long long)(time(NULL) - json_number(waiting, "since", 0)),
		 text_of(waiting, "reason"));
	print_line("start waits", text);
}

/* Newest last, as they were taken. */
static void print_snapshots(const struct served *served)
{
	json_object *list;
	u32 nr;

	list = json_list(served->record, "snapshots", &nr);
	for (u32 i = 0; i < nr; i++)
		print_line(i ? "" : "snapshots",
			   json_text(json_object_array_get_idx(list, i), "name"));
}

/* Merges that have begun and not ended well. */
static void print_jobs(const struct served *served)
{
	char text[2048], line[2400];
	u32 nr = 0;
	json_object *list = json_list(served->record, "jobs", &nr);

	for (u32 i = 0; i < nr; i++) {
		json_object *job = json_object_array_get_idx(list, i);
		const char *error = json_text(job, "error");

		snprintf(line, sizeof(line), "%s, %s%s%s", job_noted_text(job, text, sizeof(text)),
			 json_text(job, "phase"), error ? ": " : "", error ? error : "");
		print_line(json_text(job, "id"), line);
	}
}

/* The process that brings its daemon back; 0: none. */
static pid_t guard_of(const struct served *served)
{
	pid_t pid = json_number(served->record, "guard", 0);

	return pid > 0 && (kill(pid, 0) == 0 || errno == EPERM) ? pid : 0;
}

/* How often its daemon was started again, and who does it. */
static void print_restarts(const struct served *served)
{
	json_object *restarts = NULL;
	pid_t guard = guard_of(served);
	char text[600], when[32];
	time_t time;

	snprintf(text, sizeof(text), "process %d", (int)guard);
	print_line("guard", guard ? text : served->record && served->state != SERVED_MAPPED ?
		   "none" : NULL);
	if (!served->record || !json_object_object_get_ex(served->record, "restarts", &restarts))
		return;
	print_line("", json_text(restarts, "gave-up"));
	if (!served_restarts(served))
		return;
	time = json_number(restarts, "time", 0);
	strftime(when, sizeof(when), "%F %T", localtime(&time));
	snprintf(text, sizeof(text), "%lld, the last %s: %s",
		 (long long)served_restarts(served), when, text_of(restarts, "reason"));
	print_line("restarts", text);
}

static void print_status(const struct served *served)
{
	s64 size = served_size(served);
	char text[256], bytes[64];

	printf("%s%s%s\n", print_colour(stdout, COLOUR_STRONG), served->name,
	       print_colour(stdout, COLOUR_NONE));
	print_line("state", served_state_name(served->state));
	print_line("", served->waiting ? NULL : next_step(served->state));
	print_start(served->waiting);
	print_hang(served->hang);
	if (served->pid) {
		snprintf(bytes, sizeof(bytes), "%d", (int)served->pid);
		print_line("process", bytes);
	}
	print_restarts(served);
	print_heartbeat(served->status);
	print_line("device", served_device(served, text));
	if (offload_size(served->record) >= 0)
		print_line("offloaded", offload_text(served->record, text));
	print_line("top", served_top(served));
	if (size >= 0) {
		snprintf(bytes, sizeof(bytes), "%s (%lld bytes)", print_size(size, text),
			 (long long)size);
		print_line("size", bytes);
	}
	print_snapshots(served);
	print_jobs(served);
	if (served->state == SERVED_LIVE)
		print_daemon(served);
}

static void print_status_json(const struct served *served)
{
	json_object *object = served_json(served), *snapshots, *restarts = NULL, *offload = NULL;
	pid_t grower;
	u32 nr;

	json_object_object_add(object, "pid",
			       served->pid ? json_object_new_int(served->pid) : NULL);
	json_object_object_add(object, "guard", guard_of(served) ?
					       json_object_new_int(guard_of(served)) : NULL);
	grower = grow_process(served->name);
	json_object_object_add(object, "grower", grower ? json_object_new_int(grower) : NULL);
	json_object_object_get_ex(served->record, "restarts", &restarts);
	json_object_object_add(object, "restarted", json_object_get(restarts));
	json_object_object_add(object, "status", json_object_get(served->status));
	json_object_object_add(object, "waiting", json_object_get(served->waiting));
	json_object_object_add(object, "hang", json_object_get(served->hang));
	if (served->record)
		json_object_object_get_ex(served->record, "offload", &offload);
	json_object_object_add(object, "offload", json_object_get(offload));
	snapshots = json_list(served->record, "snapshots", &nr);
	json_object_object_add(object, "snapshots", snapshots ? json_object_get(snapshots) :
								json_object_new_array());
	print_json(object);
}

static int status_run(const struct verb *verb, int argc, char **argv)
{
	struct qc_err err = { 0 };
	struct served served;
	bool json;
	int status = served_arguments(verb, argc, argv, 1, 1, &json);

	status = status ? status : served_name(verb, argv[optind]);
	if (status)
		return status;
	if (served_find(argv[optind], &served, &err))
		return print_error(&err);
	if (json)
		print_status_json(&served);
	else
		print_status(&served);
	served_exit(&served);
	return CTL_DONE;
}

const struct verb verb_show_status = {
	.name = "status",
	.summary = "what one chain does: exports, map, metadata, what it waits for",
	.usage = "NAME [--json]",
	.options =
		"  --json     one object: the keys of list, pid, guard (its process, or null),\n"
		"             grower (the process that makes its thin LVs larger, or null),\n"
		"             restarted: {count, reason, time, gave-up} (null: it never was),\n"
		"             status as query-status of QMP answers it (null without a daemon),\n"
		"             waiting: {reason, since, pid} while a start waits for an image\n"
		"             (null otherwise), hang: {since, pid, hanging: [{loop, since-ms}]}\n"
		"             while threads of it do not go on (null otherwise), snapshots:\n"
		"             a list of {name, file}, oldest first; offload: {limit, size,\n"
		"             targets, linear, zero, rest, load-us, layers} (null: none)\n",
	.examples =
		"  qchainctl status vm7\n"
		"  qchainctl status vm7 --json | jq .status.requests.stages\n",
	.run = status_run,
};
