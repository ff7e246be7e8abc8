// SPDX-License-Identifier: GPL-2.0-or-later
/* qchainctl status: all that is known about one chain. */
#include "served.h"

#include <errno.h>
#include <string.h>

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
					    "running", "singlestep", "metadata" };

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

static void print_daemon(const struct served *served)
{
	json_object *metadata;

	for (u32 i = 0; i < json_object_array_length(served->exports); i++)
		print_export(json_object_array_get_idx(served->exports, i));
	json_object_object_foreach(served->status, key, value) {
		if (!is_told_already(key))
			print_value(key, value);
	}
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
	default:
		return NULL;
	}
}

static void print_status(const struct served *served)
{
	s64 size = json_number(served->status, "virtual-size", -1);
	char text[256], bytes[64];

	printf("%s%s%s\n", print_colour(stdout, COLOUR_STRONG), served->name,
	       print_colour(stdout, COLOUR_NONE));
	print_line("state", served_state_name(served->state));
	print_line("", next_step(served->state));
	if (served->pid) {
		snprintf(bytes, sizeof(bytes), "%d", (int)served->pid);
		print_line("process", bytes);
	}
	print_line("device", served_device(served, text));
	print_line("top", served_top(served));
	if (size >= 0) {
		snprintf(bytes, sizeof(bytes), "%s (%lld bytes)", print_size(size, text),
			 (long long)size);
		print_line("size", bytes);
	}
	if (served->state == SERVED_LIVE)
		print_daemon(served);
}

static void print_status_json(const struct served *served)
{
	json_object *object = served_json(served);

	json_object_object_add(object, "pid",
			       served->pid ? json_object_new_int(served->pid) : NULL);
	json_object_object_add(object, "status", json_object_get(served->status));
	print_json(object);
}

static int status_run(const struct verb *verb, int argc, char **argv)
{
	struct qc_err err = { 0 };
	struct served served;
	bool json;
	int status = served_arguments(verb, argc, argv, 1, 1, &json);

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
		"  --json     one object: the keys of list, pid, and status as query-status\n"
		"             of QMP answers it\n",
	.examples =
		"  qchainctl status vm7\n",
	.run = status_run,
};
