/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A loop on the mock engine, on which a whole test program runs. */
#ifndef TESTS_MOCK_LOOP_H
#define TESTS_MOCK_LOOP_H

#include <qchain/io.h>
#include <qchain/loop.h>
#include <stdio.h>
#include <string.h>

#include "unit.h"

static struct io_engine *mock;
static struct loop *mock_loop;

/* What was submitted and noted since the last call is exactly @expected. */
static inline void expect_log(const char *expected)
{
	const char *log = io_mock_log(mock);

	if (strcmp(log, expected))
		printf("\n    log:      %s\n    expected: %s\n", log, expected);
	CU_ASSERT_STRING_EQUAL(log, expected);
}

/* End the operation submitted first of those under way, let its callback run. */
static inline void end_first(int error)
{
	CU_ASSERT_NOT_EQUAL_FATAL(io_mock_pending(mock), 0);
	io_mock_end(mock, 0, error);
	loop_run_once(mock_loop, false);
}

/* All that is under way now, first one first; not what they submit in turn. */
static inline void end_all(void)
{
	u32 n = io_mock_pending(mock);

	while (n--)
		io_mock_end(mock, 0, 0);
	loop_run_once(mock_loop, false);
}

/* Until nothing is under way, however many steps that takes. */
static inline void run_dry(void)
{
	u32 steps = 0;

	while (loop_run_once(mock_loop, false) || io_mock_pending(mock)) {
		while (io_mock_pending(mock))
			io_mock_end(mock, 0, 0);
		CU_ASSERT_FATAL(++steps < 100000);
	}
}

struct mock_main {
	const char *suite;
	const struct unit_test *tests;
	int status;
};

static inline void mock_main_run(struct loop *l, void *arg)
{
	struct mock_main *m = arg;

	m->status = unit_main(m->suite, m->tests);
}

/* unit_main() on the mock loop's thread, which is the caller's. */
static inline int mock_main(const char *suite, const struct unit_test *tests)
{
	struct mock_main m = { .suite = suite, .tests = tests, .status = 2 };

	if (io_mock_engine_create(&mock) || loop_create("mock", mock, &mock_loop))
		return 2;
	loop_call(mock_loop, mock_main_run, &m);
	loop_destroy(mock_loop);
	return m.status;
}

#endif
