// SPDX-License-Identifier: GPL-2.0-or-later
/* qchainctl list: all chains that are served here, or were until a crash. */
#include "job-record.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define MIN_WIDTH 4

static enum print_colour state_colour(enum served_state state)
{
	switch (state) {
	case SERVED_LIVE:
	case SERVED_MAPPED:
		return COLOUR_GOOD;
	case SERVED_RECOVERABLE:
		return COLOUR_WARN;
	default:
		return COLOUR_BAD;
	}
}

/* Merges that have begun and not ended well. */
static void print_jobs(const struct served *served, int width)
{
	u32 nr = 0;
	json_object *jobs = json_list(served->record, "jobs", &nr);
	char text[2048];

	for (u32 i = 0; i < nr; i++) {
		json_object *job = json_object_array_get_idx(jobs, i);

		printf("%-*s  %smerging%s %s: %s (%s)\n", width, "",
		       print_colour(stdout, COLOUR_WARN), print_colour(stdout, COLOUR_NONE),
		       json_text(job, "id"), job_noted_text(job, text, sizeof(text)),
		       json_text(job, "phase"));
	}
}

static void print_row(const struct served *served, int width)
{
	const char *state = served_state_name(served->state);
	s64 size = served_size(served);
	char device[256], text[32] = "-";

	if (size >= 0)
		print_size(size, text);
	printf("%-*s  %s%-12s%s  %-9s  %-8lld  %-14s  %s\n", width, served->name,
	       print_colour(stdout, state_colour(served->state)), state,
	       print_colour(stdout, COLOUR_NONE), text, (long long)served_restarts(served),
	       served_device(served, device)[0] ? device : "-", served_top(served));
	print_jobs(served, width);
}

static int name_width(char *const *names, u32 nr)
{
	size_t width = MIN_WIDTH;

	for (u32 i = 0; i < nr; i++)
		width = max(width, strlen(names[i]));
	return width;
}

/* One that ends between the look into the folder and the question is left out. */
static int list_one(const char *name, int width, json_object *rows, struct qc_err *err)
{
	struct served served;
	int ret = served_find(name, &served, err);

	if (ret)
		return ret == -ENOENT ? 0 : ret;
	if (rows)
		json_object_array_add(rows, served_json(&served));
	else
		print_row(&served, width);
	served_exit(&served);
	return 0;
}

static int list_all(char *const *names, u32 nr, json_object *rows)
{
	int width = name_width(names, nr), status = CTL_DONE;
	struct qc_err err;

	if (!rows && nr)
		printf("%-*s  %-12s  %-9s  %-8s  %-14s  %s\n", width, "NAME", "STATE", "SIZE",
		       "RESTARTS", "DEVICE", "TOP");
	for (u32 i = 0; i < nr; i++) {
		err.code = 0;
		if (list_one(names[i], width, rows, &err))
			status = print_error(&err);
	}
	return status;
}

static int list_run(const struct verb *verb, int argc, char **argv)
{
	json_object *rows;
	struct qc_err err = { 0 };
	char **names;
	bool json;
	u32 nr;
	int status = served_arguments(verb, argc, argv, 0, 0, &json);

	if (status)
		return status;
	if (rundir_names(&names, &nr, &err))
		return print_error(&err);
	rows = json ? json_object_new_array() : NULL;
	status = list_all(names, nr, rows);
	if (rows)
		print_json(rows);
	for (u32 i = 0; i < nr; i++)
		free(names[i]);
	free(names);
	return status;
}

const struct verb verb_list = {
	.name = "list",
	.summary = "the chains that are served here",
	.usage = "[--json]",
	.options =
		"  --json     a list of {name, device, state, top, size, restarts, exports, jobs}\n"
		"\n"
		"States: serving; recoverable (its daemon has ended, the device waits for\n"
		"qchainctl up NAME); dead (no daemon, no device); unresponsive; mapped (by the\n"
		"kernel alone: up --offload).\n",
	.examples =
		"  qchainctl list\n"
		"  qchainctl list --json | jq -r '.[] | select(.state != \"serving\").name'\n",
	.run = list_run,
};
