// SPDX-License-Identifier: GPL-2.0-or-later
/* Runs one table of unit tests under CUnit. */
#include "unit.h"

#include <CUnit/Basic.h>
#include <stdio.h>

int unit_main(const char *suite, const struct unit_test *tests)
{
	CU_pSuite s;
	unsigned int run, failed;

	if (CU_initialize_registry() != CUE_SUCCESS)
		return 2;
	s = CU_add_suite(suite, NULL, NULL);
	for (; s && tests->name; tests++)
		CU_add_test(s, tests->name, tests->fn);
	CU_basic_set_mode(CU_BRM_NORMAL);
	CU_basic_run_tests();
	run = CU_get_number_of_tests_run();
	failed = CU_get_number_of_tests_failed();
	printf("unit-%s: %u passed, %u failed\n", suite, run - failed, failed);
	CU_cleanup_registry();
	return run == 0 || failed ? 1 : 0;
}
