// SPDX-License-Identifier: GPL-2.0-or-later
/* qchainctl job: list, wait for and steer the jobs of a served chain. */
#include "follow.h"
#include "job-record.h"
#include "proxmox.h"

#include <errno.h>
#include <qchain/parse.h>
#include <string.h>

struct job_call {
	struct served served;
	const char *id; /* NULL: list */
	const char *value; /* of set-speed */
	bool json;
};

/* ---- list ---------------------------------------------------------------------------- */

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
	if (json_text(row, "io-status"))
		printf("  %s", strcmp(json_text(row, "io-status"), "nospace") ? "I/O error" :
									       "no space left");
	if (error)
		printf("  %s%s%s", print_colour(stdout, COLOUR_BAD), error,
		       print_colour(stdout, COLOUR_NONE));
	printf("\n");
}

/* One that only the record knows of. */
static void print_noted(json_object *job)
{
	const char *error = json_text(job, "error");
	char text[2048];

	printf("%-16s %-8s %-10s %s", json_text(job, "id"), json_text(job, "kind"),
	       json_text(job, "phase"), job_noted_text(job, text, sizeof(text)));
	if (error)
		printf("  %s%s%s", print_colour(stdout, COLOUR_BAD), error,
		       print_colour(stdout, COLOUR_NONE));
	printf("\n");
}

/* The daemon's rows, each with what the record says of it; then what only that knows. */
static json_object *join_rows(json_object *rows, json_object *state)
{
	json_object *all = json_object_new_array(), *row, *entry;
	u32 nr = 0;
	json_object *noted = json_list(state, "jobs", &nr);

	for (u32 i = rows ? json_object_array_length(rows) : 0; i-- > 0;) { /* the oldest first */
		row = json_object_array_get_idx(rows, i);
		json_object_object_add(row, "recorded", json_object_get(
					       job_noted(state, json_text(row, "id"))));
		json_object_array_add(all, json_object_get(row));
	}
	for (u32 i = 0; i < nr; i++) {
		entry = json_object_array_get_idx(noted, i);
		row = rows ? job_find_row(rows, json_text(entry, "id")) : NULL;
		json_object_put(row);
		if (row)
			continue;
		row = json_object_new_object();
		json_object_object_add(row, "id", json_object_new_string(json_text(entry, "id")));
		json_object_object_add(row, "type",
				       json_object_new_string(json_text(entry, "kind")));
		json_object_object_add(row, "recorded", json_object_get(entry));
		json_object_array_add(all, row);
	}
	return all;
}

static void print_rows(json_object *all_owned, bool json)
{
	if (json) {
		print_json(all_owned);
		return;
	}
	for (u32 i = 0; i < json_object_array_length(all_owned); i++) {
		json_object *row = json_object_array_get_idx(all_owned, i), *noted;

		json_object_object_get_ex(row, "recorded", &noted);
		if (json_text(row, "status"))
			print_row(row);
		else
			print_noted(noted);
	}
	json_object_put(all_owned);
}

static int job_list(struct job_call *call, struct qc_err *err)
{
	json_object *rows = NULL;
	int ret = 0;

	if (call->served.client)
		ret = client_command(call->served.client, "query-jobs", NULL, false, &rows, err);
	if (ret)
		return ret;
	print_rows(join_rows(rows, call->served.record), call->json);
	json_object_put(rows);
	return 0;
}

/* A device that is down: what its record says. @where: a VG or a directory, or NULL. */
static int list_down(const char *name, const char *where, bool json, struct qc_err *err)
{
	json_object *state = json_object_new_object();
	struct record_place place = {};
	const struct device_record *record = NULL;
	int ret = where ? record_place_open(where, &place, err) :
			  record_place_search(name, &place, err);

	if (!ret)
		record = record_place_find(&place, name);
	if (record) {
		record_note(&place, record, record->top, state);
		print_rows(join_rows(NULL, state), json);
	} else if (!ret || ret == -ENOENT) {
		ret = qc_err_set(err, -ENOENT, "%s: neither served nor recorded; of files, "
				 "expected their directory too: qchainctl job list %s DIR", name,
				 name);
	}
	record_place_exit(&place);
	json_object_put(state);
	return ret;
}

/* ---- verbs -------------------------------------------------------------------------------- */

/* Bad ends stay until somebody has read them; both are written down. */
static int settle(struct job_call *call, json_object *row, int ret, struct qc_err *err)
{
	struct qc_err second = { 0 };
	int settled = 0;

	if (row && job_is_over(row) && call->served.record)
		settled = job_settle(call->served.client, call->id, row, ret ? &second : err);
	return ret ? ret : settled;
}

/* By qchainctl, which completes what it starts; others complete theirs themselves. */
static bool is_recorded(const struct job_call *call)
{
	return call->served.record && job_noted(call->served.record, call->id);
}

/* A good end is dismissed, a bad one stays until somebody has read it. */
static int job_wait(struct job_call *call, struct qc_err *err)
{
	json_object *row = NULL;
	int ret = job_follow(call->served.client, call->id, is_recorded(call), &row, err);

	ret = settle(call, row, ret, err);
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

typedef int (*job_change_fn)(struct job_call *call, const struct rundir *dir, struct qc_err *err);

/* With the record locked, and the chain as it is then. */
static int change_record(struct job_call *call, job_change_fn change, struct qc_err *err)
{
	struct rundir dir = { .lock_fd = -1 };
	char name[QC_MAX_CHAIN_NAME + 1];
	int ret;

	strcpy(name, call->served.name);
	ret = rundir_lock(name, false, &dir, err);
	if (!ret) {
		served_exit(&call->served);
		ret = served_find(name, &call->served, err);
	}
	if (!ret)
		ret = change(call, &dir, err);
	rundir_unlock(&dir);
	return ret;
}

/* Is it a job that the daemon works on, or has not forgotten? *@row: its last words. */
static int ask_daemon(struct job_call *call, json_object **row, struct qc_err *err)
{
	*row = NULL;
	return call->served.client ? job_ask(call->served.client, call->id, row, err) : 0;
}

static int begin_again(struct job_call *call, const struct rundir *dir, struct qc_err *err)
{
	json_object *row;
	int ret = ask_daemon(call, &row, err);

	if (!ret && row)
		ret = job_simple_command(call->served.client, "job-dismiss", "id", call->id, err);
	json_object_put(row);
	return ret ? ret : job_begin_again(dir, &call->served, call->id, err);
}

/* One that rests goes on; one that has failed, and is recorded, begins anew. */
static int job_resume_verb(struct job_call *call, struct qc_err *err)
{
	json_object *row;
	bool rests;
	int ret = ask_daemon(call, &row, err);

	if (ret)
		return ret;
	rests = row && !job_is_over(row);
	json_object_put(row);
	if (rests || !job_noted(call->served.record, call->id))
		return job_simple_command(call->served.client, "job-resume", "id", call->id, err);
	return change_record(call, begin_again, err);
}

static int write_cancelled(struct job_call *call, const struct rundir *dir, struct qc_err *err)
{
	json_object *job = job_noted(call->served.record, call->id);
	struct job_record r;
	bool commit;
	int ret;

	if (!job)
		return 0;
	commit = job_noted_is_commit(job);
	ret = job_record_open_served(&r, dir, &call->served, err);
	if (!ret)
		ret = commit ? job_record_fail(&r, call->id, "cancelled", err) :
			       job_record_end(&r, call->id, false, err);
	job_record_close(&r);
	if (!ret)
		ret = proxmox_settle_served(&call->served, dir, err);
	if (!ret && commit)
		fprintf(stderr, "qchainctl: %s: a commit that has begun is not undone: its base "
			"and the layers below its top are no restore points any more. It can be "
			"finished with qchainctl job resume %s %s\n", call->id,
			call->served.name, call->id);
	return ret;
}

static int job_cancel_verb(struct job_call *call, struct qc_err *err)
{
	struct qc_err why = { 0 };
	json_object *row = NULL;
	int ret = job_simple_command(call->served.client, "job-cancel", "id", call->id, err);

	if (ret || !call->served.record)
		return ret;
	job_follow(call->served.client, call->id, false, &row, &why);
	if (row && job_was_cancelled(row))
		ret = change_record(call, write_cancelled, err);
	else
		ret = settle(call, row, 0, err);
	json_object_put(row);
	return ret;
}

static int forget(struct job_call *call, const struct rundir *dir, struct qc_err *err)
{
	json_object *row, *job = job_noted(call->served.record, call->id);
	struct job_record r;
	int ret = ask_daemon(call, &row, err);

	if (ret)
		return ret;
	if (call->served.client && (row || !job))
		ret = job_simple_command(call->served.client, "job-dismiss", "id", call->id, err);
	json_object_put(row);
	if (ret || !job)
		return ret;
	ret = job_record_open_served(&r, dir, &call->served, err);
	if (!ret)
		ret = job_record_end(&r, call->id, false, err);
	job_record_close(&r);
	return ret ? ret : proxmox_settle_served(&call->served, dir, err);
}

/* What has ended well must be written down as that before it is forgotten. */
static int settle_and_forget(struct job_call *call, const struct rundir *dir, struct qc_err *err)
{
	int ret = call->served.client ? job_settle_all(dir, &call->served, err) : 0;

	return ret ? ret : forget(call, dir, err);
}

static int job_dismiss_verb(struct job_call *call, struct qc_err *err)
{
	if (!call->served.record)
		return job_simple_command(call->served.client, "job-dismiss", "id", call->id, err);
	return change_record(call, settle_and_forget, err);
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

static const struct subverb {
	const char *name;
	int words; /* after the name */
	bool down; /* works without a daemon, too */
	int (*run)(struct job_call *call, struct qc_err *err);
} subverbs[] = {
	{ "list", 1, true, job_list },
	{ "wait", 2, false, job_wait },
	{ "pause", 2, false, job_pause_verb },
	{ "resume", 2, false, job_resume_verb },
	{ "cancel", 2, false, job_cancel_verb },
	{ "dismiss", 2, true, job_dismiss_verb },
	{ "set-speed", 3, false, job_set_speed_verb },
};

static int wrong_words(const struct verb *verb, const struct subverb *sub, int nr)
{
	return verb_usage(verb, "%s takes %d words (%d given), expected: qchainctl job %s NAME%s%s",
			  sub->name, sub->words, nr, sub->name, sub->words > 1 ? " ID" : "",
			  sub->words > 2 ? " SPEED" : "");
}

static int call_subverb(const struct subverb *sub, struct job_call *call, const char *name)
{
	struct qc_err err = { 0 };
	int ret = served_find(name, &call->served, &err);

	if (ret)
		return print_error(&err);
	ret = sub->down || call->served.client ? sub->run(call, &err) :
						 served_not_live(&call->served, &err);
	served_exit(&call->served);
	return ret ? print_error(&err) : CTL_DONE;
}

/* `list` of a chain that has a record only; -1: it is something else. */
static int list_unserved(char **words, int nr, bool json)
{
	struct qc_err err = { 0 };
	struct served served;

	if (strcmp(words[0], "list") || (nr != 2 && nr != 3))
		return -1;
	if (served_find(words[1], &served, &err) == 0) {
		served_exit(&served);
		return -1;
	}
	err.code = 0;
	return list_down(words[1], nr > 2 ? words[2] : NULL, json, &err) ? print_error(&err) :
									    CTL_DONE;
}

static int run_subverb(const struct verb *verb, char **words, int nr, bool json)
{
	struct job_call call = { .json = json };
	int status = list_unserved(words, nr, json);

	if (status >= 0)
		return status;
	for (u32 i = 0; i < ARRAY_SIZE(subverbs); i++) {
		if (strcmp(subverbs[i].name, words[0]))
			continue;
		if (nr != subverbs[i].words + 1 && !(i == 0 && nr == 3))
			return wrong_words(verb, &subverbs[i], nr - 1);
		call.id = nr > 2 ? words[2] : NULL;
		call.value = nr > 3 ? words[3] : NULL;
		return call_subverb(&subverbs[i], &call, words[1]);
	}
	return verb_usage(verb, "'%s' not known, expected list, wait, pause, resume, cancel, "
			  "dismiss or set-speed", words[0]);
}

static int run_job(const struct verb *verb, int argc, char **argv)
{
	bool json;
	int status = served_arguments(verb, argc, argv, 2, 4, &json);

	status = status ? status : served_name(verb, argv[optind + 1]);
	return status ? status : run_subverb(verb, argv + optind, argc - optind, json);
}

const struct verb verb_job = {
	.name = "job",
	.summary = "list, wait for, pause or cancel the jobs of a chain",
	.usage = "list NAME [VG|DIR] | VERB NAME ID | set-speed NAME ID SPEED [--json]",
	.options =
		"  list NAME              all jobs: kind, state, progress, rate, time left; also\n"
		"                         while NAME is down; files: with their directory\n"
		"  wait NAME ID           until it has ended, with a progress bar on a terminal;\n"
		"                         a job that ended well is dismissed\n"
		"  pause NAME ID          rest at the next point where nothing is in flight\n"
		"  resume NAME ID         go on; a merge that failed or was cancelled begins\n"
		"                         anew\n"
		"  cancel NAME ID         give it up; what a commit has written stays written\n"
		"  dismiss NAME ID        forget a job that has ended, and its error\n"
		"  set-speed NAME ID SPEED\n"
		"                         bytes a second (\"50M\"), 0: no limit\n"
		"  --json                 list, wait: the objects of query-jobs of QMP; list:\n"
		"                         with recorded, {id, kind, phase, top, base, error} of\n"
		"                         the device record (null: none); without a daemon\n"
		"                         that, id and type only\n"
		"\n"
		"Merges are in the device record from before they write until they have ended\n"
		"well or were dismissed. After a crash qchainctl up NAME goes on with them.\n",
	.examples =
		"  qchainctl job list vm7\n"
		"  qchainctl job set-speed vm7 commit0 50M\n"
		"  qchainctl job wait vm7 commit0\n",
	.run = run_job,
};
