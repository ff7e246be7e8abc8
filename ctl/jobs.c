// SPDX-License-Identifier: GPL-2.0-or-later
/* qchainctl job: list, wait for and steer the jobs of a served chain. */
#include "follow.h"

#include <errno.h>
#include <qchain/parse.h>
#include <string.h>

struct job_call {
	struct served served;
	const char *id; /* NULL: list */
	const char *value; /* of set-speed */
	bool json;
};

static void print_row(json_object *row)
{
	u64 done = json_number(row, "current-progress", 0);
	u64 total = json_number(row, "total-progress", 0);
	s64 rate = json_number(row, "rate", 0), left = json_number(row, "seconds-left", 0);
	const char *error = json_text(row, "error");
	char of[32], speed[32];

	printf("%-16s %-8s %-10s %3u%% of %-9s", json_text(row, "id"), json_text(row, "type"),
	       json_text(row, "status"), total ? (u32)(done * 100.0 / total) : 0,
	       print_size(total, of));
	if (rate)
		printf("  %s/s, %lld:%02lld left", print_size(rate, speed), (long long)left / 60,
		       (long long)left % 60);
	if (error)
		printf("  %s%s%s", print_colour(stdout, COLOUR_BAD), error,
		       print_colour(stdout, COLOUR_NONE));
	printf("\n");
}

static int job_list(struct job_call *call, struct qc_err *err)
{
	json_object *jobs;
	int ret = client_command(call->served.client, "query-jobs", NULL, false, &jobs, err);

	if (ret)
		return ret;
	if (call->json) {
		print_json(jobs);
		return 0;
	}
	for (u32 i = json_object_array_length(jobs); i-- > 0;) /* the oldest first */
		print_row(json_object_array_get_idx(jobs, i));
	json_object_put(jobs);
	return 0;
}

/* A good end is dismissed, a bad one stays until somebody has read it. */
static int job_wait(struct job_call *call, struct qc_err *err)
{
	json_object *row = NULL;
	int ret = job_follow(call->served.client, call->id, &row, err);

	if (ret == 0)
		ret = job_simple_command(call->served.client, "job-dismiss", "id", call->id, err);
	if (row && call->json)
		print_json(json_object_get(row));
	json_object_put(row);
	return ret;
}

static int job_pause_verb(struct job_call *call, struct qc_err *err)
{
	return job_simple_command(call->served.client, "job-pause", "id", call->id, err);
}

static int job_resume_verb(struct job_call *call, struct qc_err *err)
{
	return job_simple_command(call->served.client, "job-resume", "id", call->id, err);
}

static int job_cancel_verb(struct job_call *call, struct qc_err *err)
{
	return job_simple_command(call->served.client, "job-cancel", "id", call->id, err);
}

static int job_dismiss_verb(struct job_call *call, struct qc_err *err)
{
	return job_simple_command(call->served.client, "job-dismiss", "id", call->id, err);
}

static int job_set_speed_verb(struct job_call *call, struct qc_err *err)
{
	json_object *arguments;
	u64 speed;
	int ret = parse_size("speed", call->value, &speed, err);

	if (ret)
		return ret;
	arguments = json_object_new_object();
	json_object_object_add(arguments, "device", json_object_new_string(call->id));
	json_object_object_add(arguments, "speed", json_object_new_int64(speed));
	return client_command(call->served.client, "block-job-set-speed", arguments, false, NULL,
			      err);
}

static const struct {
	const char *name;
	int words; /* after the name */
	int (*run)(struct job_call *call, struct qc_err *err);
} subverbs[] = {
	{ "list", 1, job_list },
	{ "wait", 2, job_wait },
	{ "pause", 2, job_pause_verb },
	{ "resume", 2, job_resume_verb },
	{ "cancel", 2, job_cancel_verb },
	{ "dismiss", 2, job_dismiss_verb },
	{ "set-speed", 3, job_set_speed_verb },
};

static int run_subverb(const struct verb *verb, char **words, int nr, bool json)
{
	struct job_call call = { .json = json };
	struct qc_err err = { 0 };
	int ret;

	for (u32 i = 0; i < ARRAY_SIZE(subverbs); i++) {
		if (strcmp(subverbs[i].name, words[0]))
			continue;
		if (nr != subverbs[i].words + 1)
			return verb_usage(verb, "%s takes %d words (%d given), expected: qchainctl "
					  "job %s NAME%s%s", words[0], subverbs[i].words, nr - 1,
					  words[0], subverbs[i].words > 1 ? " ID" : "",
					  subverbs[i].words > 2 ? " SPEED" : "");
		call.id = nr > 2 ? words[2] : NULL;
		call.value = nr > 3 ? words[3] : NULL;
		ret = served_find(words[1], &call.served, &err);
		if (ret)
			return print_error(&err);
		ret = call.served.client ? subverbs[i].run(&call, &err) :
					   served_not_live(&call.served, &err);
		served_exit(&call.served);
		return ret ? print_error(&err) : CTL_DONE;
	}
	return verb_usage(verb, "'%s' not known, expected list, wait, pause, resume, cancel, "
			  "dismiss or set-speed", words[0]);
}

static int run_job(const struct verb *verb, int argc, char **argv)
{
	bool json;
	int status = served_arguments(verb, argc, argv, 2, 4, &json);

	return status ? status : run_subverb(verb, argv + optind, argc - optind, json);
}

const struct verb verb_job = {
	.name = "job",
	.summary = "list, wait for, pause or cancel the jobs of a chain",
	.usage = "list NAME | VERB NAME ID | set-speed NAME ID SPEED [--json]",
	.options =
		"  list NAME              all jobs: kind, state, progress, rate, time left\n"
		"  wait NAME ID           until it has ended, with a progress bar on a terminal;\n"
		"                         a job that ended well is dismissed\n"
		"  pause, resume NAME ID  rest at the next point where nothing is in flight\n"
		"  cancel NAME ID         give it up; what a commit has written stays written\n"
		"  dismiss NAME ID        forget a job that has ended, and its error\n"
		"  set-speed NAME ID SPEED\n"
		"                         bytes a second (\"50M\"), 0: no limit\n"
		"  --json                 list, wait: the objects of query-jobs of QMP\n",
	.examples =
		"  qchainctl job list vm7\n"
		"  qchainctl job set-speed vm7 commit0 50M\n"
		"  qchainctl job wait vm7 commit0\n",
	.run = run_job,
};
