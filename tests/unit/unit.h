/* SPDX-License-Identifier: GPL-2.0-or-later */
/* CUnit, declared the short way: a table of named tests with a fixture. */
#ifndef TESTS_UNIT_H
#define TESTS_UNIT_H

#include <CUnit/CUnit.h>

struct unit_test {
	const char *name;
	void (*fn)(void);
};

/* Runs @tests as suite @suite; prints CUnit's summary and one closing line
 * "unit-@suite: N passed, N failed"; returns the exit status. */
int unit_main(const char *suite, const struct unit_test *tests);

#endif
