// SPDX-License-Identifier: GPL-2.0-or-later
/* Jobs: both tables against QEMU's, the life of a job event by event, random verbs. */
#include "mock-loop.h"
#include "random.h"

#include <errno.h>
#include <qchain/job.h>
#include <stdlib.h>

/*
 * QEMU's tables (job.c, the same from 2.12 to 7.2), a string for each row:
 * undefined created running paused ready standby waiting pending aborting
 * concluded null.
 */
static const char *const qemu_states[] = {
	"01000000000", "00100000101", "00011010100", "00100000000",
	"00000110100", "00001000000", "00000001100", "00000000110",
	"00000000110", "00000000001", "00000000000",
};
static const char *const qemu_state_names[] = {
	"undefined", "created", "running", "paused", "ready", "standby", "waiting", "pending",
	"aborting", "concluded", "null",
};
static const struct {
	const char *name;
	const char *row;
} qemu_verbs[] = {
	{ "cancel", "01111111000" },   { "pause", "01111100000" },
	{ "resume", "01111100000" },   { "set-speed", "01111100000" },
	{ "complete", "00001100000" }, { "finalize", "00000001000" },
	{ "dismiss", "00000000010" },
};

static void test_tables(void)
{
	u32 from, to, verb;

	CU_ASSERT_EQUAL_FATAL(JOB_NR_STATES, ARRAY_SIZE(qemu_states));
	CU_ASSERT_EQUAL_FATAL(JOB_NR_VERBS, ARRAY_SIZE(qemu_verbs));
	for (from = 0; from < JOB_NR_STATES; from++) {
		CU_ASSERT_STRING_EQUAL(job_state_name(from), qemu_state_names[from]);
		for (to = 0; to < JOB_NR_STATES; to++)
			CU_ASSERT_EQUAL(job_state_allowed(from, to),
					qemu_states[from][to] == '1');
	}
	for (verb = 0; verb < JOB_NR_VERBS; verb++) {
		CU_ASSERT_STRING_EQUAL(job_verb_name(verb), qemu_verbs[verb].name);
		for (from = 0; from < JOB_NR_STATES; from++)
			CU_ASSERT_EQUAL(job_verb_allowed(verb, from),
					qemu_verbs[verb].row[from] == '1');
	}
}

/* ---- a kind that does what the test says ------------------------------------ */

static struct jobs *jobs;
static struct job *job;
static char text[65536];
static struct qc_err err;
static bool graceful;

static void note(const char *what)
{
	size_t len = strlen(text);

	snprintf(text + len, sizeof(text) - len, "%s%s", len ? " " : "", what);
}

static void on_event(void *arg, const char *name, json_object *data)
{
	json_object *status, *error;
	char line[256];

	if (json_object_object_get_ex(data, "status", &status))
		note(json_object_get_string(status));
	else
		note(name);
	if (json_object_object_get_ex(data, "error", &error)) {
		snprintf(line, sizeof(line), "(%s)", json_object_get_string(error));
		note(line);
	}
	json_object_put(data);
}

static int kind_start(struct job *j, struct qc_err *e)
{
	note("start()");
	return 0;
}

static int kind_start_fails(struct job *j, struct qc_err *e)
{
	return qc_err_set(e, -ENXIO, "base: cannot be opened");
}

static void kind_pause(struct job *j) { note("pause()"); }
static void kind_resume(struct job *j) { note("resume()"); }
static void kind_complete(struct job *j) { note("complete()"); }
static void kind_prepare(struct job *j) { note("prepare()"); }
static void kind_commit(struct job *j) { note("commit()"); }
static void kind_abort(struct job *j) { note("abort()"); }
static void kind_clean(struct job *j) { note("clean()"); }

static bool kind_cancel(struct job *j, bool force)
{
	note(force ? "cancel(force)" : "cancel()");
	return force || !graceful;
}

static const struct job_type kind = {
	.name = "commit", .block = true, .start = kind_start, .pause = kind_pause,
	.resume = kind_resume, .cancel = kind_cancel, .complete = kind_complete,
	.commit = kind_commit, .abort = kind_abort, .clean = kind_clean,
};
static const struct job_type kind_prepares = {
	.name = "commit", .block = true, .start = kind_start, .prepare = kind_prepare,
	.commit = kind_commit, .abort = kind_abort, .clean = kind_clean,
};
static const struct job_type kind_fails = { .name = "create", .start = kind_start_fails };

static void expect(const char *expected)
{
	loop_run_once(mock_loop, false);
	if (strcmp(text, expected))
		printf("\n    events:   %s\n    expected: %s\n", text, expected);
	CU_ASSERT_STRING_EQUAL(text, expected);
	text[0] = 0;
}

static void expect_error(int ret, const char *expected)
{
	CU_ASSERT_NOT_EQUAL(ret, 0);
	if (strcmp(err.msg, expected))
		printf("\n    error:    %s\n    expected: %s\n", err.msg, expected);
	CU_ASSERT_STRING_EQUAL(err.msg, expected);
	err = (struct qc_err){ 0 };
}

static void begin(const struct job_type *type, struct job_options options)
{
	text[0] = 0;
	err = (struct qc_err){ 0 };
	graceful = false;
	if (!jobs)
		CU_ASSERT_EQUAL_FATAL(jobs_create(mock_loop, on_event, NULL, &jobs), 0);
	CU_ASSERT_EQUAL_FATAL(job_create(jobs, type, &options, NULL, &job, &err), 0);
}

static void end(void)
{
	loop_run_once(mock_loop, false);
	CU_ASSERT_PTR_NULL(jobs_next(jobs, NULL));
	jobs_destroy(jobs);
	jobs = NULL;
}

static void test_success(void)
{
	begin(&kind, (struct job_options){ .id = "job0", .manual_dismiss = true });
	job_start(job);
	expect("created running start()");
	job_end(job, 0);
	expect("waiting pending commit() clean() BLOCK_JOB_COMPLETED concluded");
	expect_error(job_pause(job, &err),
		     "Job 'job0' in state 'concluded' cannot accept command verb 'pause'");
	CU_ASSERT_EQUAL(job_dismiss(job, &err), 0);
	CU_ASSERT_PTR_NULL(jobs_find(jobs, "job0"));
	expect("null");
	end();
}

static void test_manual_finalize(void)
{
	begin(&kind, (struct job_options){ .id = "job0", .manual_finalize = true });
	job_start(job);
	job_end(job, 0);
	expect("created running start() waiting pending BLOCK_JOB_PENDING");
	expect_error(job_complete(job, &err),
		     "Job 'job0' in state 'pending' cannot accept command verb 'complete'");
	CU_ASSERT_EQUAL(job_finalize(job, &err), 0);
	expect("commit() clean() BLOCK_JOB_COMPLETED concluded null");
	end();
}

static void test_cancel_pending(void)
{
	begin(&kind, (struct job_options){ .id = "job0", .manual_finalize = true });
	job_start(job);
	job_end(job, 0);
	text[0] = 0;
	CU_ASSERT_EQUAL(job_cancel(job, true, &err), 0);
	expect("aborting abort() clean() BLOCK_JOB_CANCELLED concluded null");
	end();
}

static void test_failure_is_kept(void)
{
	struct job_info info;

	begin(&kind, (struct job_options){ .id = "job0", .manual_dismiss = true });
	job_start(job);
	job_end(job, -EIO);
	expect("created running start() aborting abort() clean() BLOCK_JOB_COMPLETED "
	       "(Input/output error) concluded");
	job_query(job, &info);
	CU_ASSERT_STRING_EQUAL(info.err.msg, "Input/output error");
	CU_ASSERT_EQUAL(job_dismiss(job, &err), 0);
	expect("null");
	end();
}

static void test_start_fails(void)
{
	begin(&kind_fails, (struct job_options){ .manual_dismiss = true });
	CU_ASSERT_STRING_EQUAL(job->id, "create0");
	job_start(job);
	expect("created running aborting concluded");
	CU_ASSERT_STRING_EQUAL(job->err.msg, "base: cannot be opened");
	job_dismiss(job, &err);
	text[0] = 0;
	end();
}

static void test_pause(void)
{
	begin(&kind, (struct job_options){ .id = "job0" });
	job_start(job);
	expect_error(job_resume(job, &err), "Can't resume a job that was not paused");
	CU_ASSERT_EQUAL(job_pause(job, &err), 0);
	expect("created running start() pause()");
	expect_error(job_pause(job, &err), "Job is already paused");
	job_paused(job);
	expect("paused");
	CU_ASSERT_EQUAL(job_resume(job, &err), 0);
	expect("running resume()");
	/* resumed before it has come to rest */
	job_pause(job, &err);
	job_resume(job, &err);
	expect("pause()");
	job_paused(job);
	expect("resume()");
	job_end(job, 0);
	expect("waiting pending commit() clean() BLOCK_JOB_COMPLETED concluded null");
	end();
}

static void test_pause_before_start(void)
{
	begin(&kind, (struct job_options){ .id = "job0" });
	CU_ASSERT_EQUAL(job_pause(job, &err), 0);
	job_start(job);
	expect("created running paused");
	CU_ASSERT_EQUAL(job_resume(job, &err), 0);
	expect("running start()");
	job_end(job, 0);
	text[0] = 0;
	end();
}

static void test_cancel(void)
{
	begin(&kind, (struct job_options){ .id = "job0" });
	CU_ASSERT_EQUAL(job_cancel(job, true, &err), 0);
	expect("created aborting abort() clean() concluded null");

	begin(&kind, (struct job_options){ .id = "job0" });
	job_start(job);
	job_pause(job, &err);
	job_paused(job);
	text[0] = 0;
	CU_ASSERT_EQUAL(job_cancel(job, true, &err), 0);
	expect("running resume() cancel(force)");
	job_end(job, -ECANCELED);
	expect("aborting abort() clean() BLOCK_JOB_CANCELLED concluded null");
	end();
}

static void test_ready(void)
{
	begin(&kind, (struct job_options){ .id = "job0" });
	job_start(job);
	job_ready(job);
	expect("created running start() ready BLOCK_JOB_READY");
	job_pause(job, &err);
	job_paused(job);
	expect("pause() standby");
	CU_ASSERT_EQUAL(job_complete(job, &err), 0);
	expect("");
	job_resume(job, &err);
	expect("ready resume() complete()");
	job_end(job, 0);
	expect("waiting pending commit() clean() BLOCK_JOB_COMPLETED concluded null");

	/* without force it ends well, only without its last step */
	begin(&kind, (struct job_options){ .id = "job0" });
	graceful = true;
	job_start(job);
	job_ready(job);
	text[0] = 0;
	job_cancel(job, false, &err);
	expect_error(job_complete(job, &err), "The active block job 'job0' cannot be completed");
	job_end(job, 0);
	expect("cancel() waiting pending commit() clean() BLOCK_JOB_COMPLETED concluded null");
	end();
}

static void test_prepare(void)
{
	begin(&kind_prepares, (struct job_options){ .id = "job0" });
	job_start(job);
	job_end(job, 0);
	expect("created running start() waiting pending prepare()");
	/* it cannot be taken back any more */
	expect_error(job_cancel(job, true, &err),
		     "Job 'job0' in state 'pending' cannot accept command verb 'cancel'");
	job_prepared(job, -EROFS);
	expect("aborting abort() clean() BLOCK_JOB_COMPLETED (Read-only file system) "
	       "concluded null");
	end();
}

static void test_on_error(void)
{
	begin(&kind, (struct job_options){ .id = "job0", .on_error = JOB_ON_ERROR_ENOSPC });
	job_start(job);
	text[0] = 0;
	CU_ASSERT_EQUAL(job_error(job, true, -EIO), JOB_ACTION_REPORT);
	expect("BLOCK_JOB_ERROR");
	CU_ASSERT_EQUAL(job_error(job, false, -ENOSPC), JOB_ACTION_STOP);
	job_paused(job);
	expect("BLOCK_JOB_ERROR pause() paused");
	CU_ASSERT_EQUAL(job->io_status, JOB_IO_NOSPACE);
	CU_ASSERT_EQUAL(job_resume(job, &err), 0);
	CU_ASSERT_EQUAL(job->io_status, JOB_IO_OK);
	expect("running resume()");
	job_end(job, 0);
	text[0] = 0;
	end();
}

static void test_ids(void)
{
	struct job *other;

	begin(&kind, (struct job_options){ .id = "job0" });
	expect_error(job_create(jobs, &kind, &(struct job_options){ .id = "job0" }, NULL, &other,
				&err), "Job ID 'job0' already in use");
	expect_error(job_create(jobs, &kind, &(struct job_options){ .id = "0job" }, NULL, &other,
				&err), "Invalid job ID '0job'");
	expect_error(job_create(jobs, &kind, &(struct job_options){ .id = "" }, NULL, &other,
				&err), "Invalid job ID ''");
	job_cancel(job, true, &err);
	text[0] = 0;
	end();
}

static void test_progress(void)
{
	struct job_info info;

	begin(&kind, (struct job_options){ .id = "job0", .manual_dismiss = true });
	job_start(job);
	job_set_remaining(job, 100 * MiB);
	job_progress(job, 10 * MiB);
	io_mock_advance(mock, 2000000000ull);
	job_query(job, &info);
	CU_ASSERT_EQUAL(info.total, 100 * MiB);
	CU_ASSERT_EQUAL(info.done, 10 * MiB);
	CU_ASSERT_EQUAL(info.rate, 5 * MiB);
	CU_ASSERT_EQUAL(info.left_ns, 18000000000ull);
	job_end(job, 0);
	job_dismiss(job, &err);
	text[0] = 0;
	end();
}

/* ---- random verbs and answers: job_set_state() asserts every step --------------- */

static void random_verb(struct rnd *seed)
{
	enum job_state before = job->state;
	bool admitted = true;
	int ret = 0;
	u32 verb = rnd(seed) % JOB_NR_VERBS;

	if (verb == JOB_VERB_RESUME && !job->user_paused)
		return;
	admitted = qemu_verbs[verb].row[before] == '1' && !job->preparing;
	switch (verb) {
	case JOB_VERB_CANCEL:
		ret = job_cancel(job, rnd(seed) % 2, NULL);
		break;
	case JOB_VERB_PAUSE:
		ret = job_pause(job, NULL);
		break;
	case JOB_VERB_RESUME:
		ret = job_resume(job, NULL);
		break;
	case JOB_VERB_SET_SPEED:
		ret = job_set_speed(job, 1, NULL);
		break;
	case JOB_VERB_COMPLETE:
		ret = job_complete(job, NULL);
		break;
	case JOB_VERB_FINALIZE:
		ret = job_finalize(job, NULL);
		break;
	case JOB_VERB_DISMISS:
		ret = job_dismiss(job, NULL);
		break;
	}
	if (!admitted)
		CU_ASSERT_EQUAL(ret, -EPERM);
	if (!ret)
		CU_ASSERT(admitted);
}

static void random_answer(struct rnd *seed)
{
	if (job->preparing) {
		job_prepared(job, rnd(seed) % 4 ? 0 : -EIO);
		return;
	}
	if (!job->working || job->ended)
		return;
	if (job->pausing) {
		job_paused(job);
		return;
	}
	if (job->state != JOB_RUNNING && job->state != JOB_READY)
		return;
	switch (rnd(seed) % 8) {
	case 0:
		job_end(job, 0);
		break;
	case 1:
		job_end(job, -EIO);
		break;
	case 2:
		job_ready(job);
		break;
	case 3:
		job_error(job, true, -EIO);
		break;
	default:
		job_progress(job, 1);
		break;
	}
}

static void test_random(void)
{
	struct rnd seed = { 4711 };
	u64 run, step;

	for (run = 0; run < 3000; run++) {
		struct job_type type = kind;
		bool there = true;

		if (rnd(&seed) % 2)
			type.prepare = kind_prepare;
		begin(&type, (struct job_options){
			.id = "job0", .manual_finalize = rnd(&seed) % 2,
			.manual_dismiss = rnd(&seed) % 2,
			.on_error = rnd(&seed) % 4 });
		graceful = rnd(&seed) % 2;
		for (step = 0; there && step < 2000; step++) {
			if (job->state == JOB_CREATED && rnd(&seed) % 2)
				job_start(job);
			else if (rnd(&seed) % 3)
				random_answer(&seed);
			else
				random_verb(&seed);
			there = jobs_find(jobs, "job0");
		}
		CU_ASSERT(!there);
		end();
	}
}

static const struct unit_test tests[] = {
	{ "states and verbs are QEMU's", test_tables },
	{ "success, kept until dismissed", test_success },
	{ "finalize by hand", test_manual_finalize },
	{ "cancel while pending", test_cancel_pending },
	{ "a failure is kept", test_failure_is_kept },
	{ "a start that fails", test_start_fails },
	{ "pause and resume", test_pause },
	{ "paused before it starts", test_pause_before_start },
	{ "cancel", test_cancel },
	{ "ready, standby, complete", test_ready },
	{ "the last step lets no verb in", test_prepare },
	{ "on-error", test_on_error },
	{ "ids", test_ids },
	{ "progress, rate, time left", test_progress },
	{ "random verbs and answers", test_random },
	{ NULL },
};

int main(void)
{
	return mock_main("job", tests);
}
