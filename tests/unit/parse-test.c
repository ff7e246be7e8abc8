// SPDX-License-Identifier: GPL-2.0-or-later
/* Sizes, numbers and switches: what is accepted, and what is refused how. */
#include "unit.h"

#include <errno.h>
#include <qchain/parse.h>
#include <string.h>

static void size_ok(const char *text, u64 expected)
{
	struct qc_err err = {};
	u64 value = 42;

	CU_ASSERT_EQUAL(parse_size("--size", text, &value, &err), 0);
	CU_ASSERT_EQUAL(value, expected);
	CU_ASSERT_EQUAL(err.code, 0);
}

static void size_bad(const char *text, int code)
{
	struct qc_err err = {};
	u64 value = 42;

	CU_ASSERT_EQUAL(parse_size("--size", text, &value, &err), code);
	CU_ASSERT_EQUAL(value, 42);
	CU_ASSERT_EQUAL(err.code, code);
	CU_ASSERT_EQUAL(strncmp(err.msg, "--size: ", 8), 0);
}

static void test_sizes(void)
{
	size_ok("0", 0);
	size_ok("4096", 4096);
	size_ok("4096B", 4096);
	size_ok("64k", 64 * KiB);
	size_ok("64K", 64 * KiB);
	size_ok("64KiB", 64 * KiB);
	size_ok("20G", 20 * GiB);
	size_ok("1.5G", GiB + GiB / 2);
	size_ok("0.5K", 512);
	size_ok("1.000", 1);
	size_ok("2T", 2 * TiB);
	size_ok("1p", 1024 * TiB);
	size_ok("7E", 7ull << 60);
	size_ok("9223372036854775807", 9223372036854775807ull);
}

static void test_bad_sizes(void)
{
	static const char *const malformed[] = {
		"", "G", "-1", "+1", " 1", "1 ", "1Q", "1KB", "1Kib2", "1BiB", "0x10", "1.",
		".5G", "1..5G", "1.5", "0.3K", "1.0000000000000000001", "1e3", "20 G",
	};

	for (u32 i = 0; i < ARRAY_SIZE(malformed); i++)
		size_bad(malformed[i], -EINVAL);
	size_bad("8E", -ERANGE);
	size_bad("9223372036854775808", -ERANGE);
	size_bad("99999999999999999999", -ERANGE);
	size_bad("18446744073709551615E", -ERANGE);
}

static void test_numbers(void)
{
	struct qc_err err = {};
	u64 value = 0;

	CU_ASSERT_EQUAL(parse_number("--n", "17", 1, 17, &value, &err), 0);
	CU_ASSERT_EQUAL(value, 17);
	CU_ASSERT_EQUAL(parse_number("--n", "18", 1, 17, &value, NULL), -ERANGE);
	CU_ASSERT_EQUAL(parse_number("--n", "0", 1, 17, &value, NULL), -ERANGE);
	CU_ASSERT_EQUAL(parse_number("--n", "99999999999999999999999", 1, 17, &value, NULL),
			-ERANGE);
	CU_ASSERT_EQUAL(parse_number("--n", "", 0, 17, &value, NULL), -EINVAL);
	CU_ASSERT_EQUAL(parse_number("--n", "1k", 0, 17, &value, NULL), -EINVAL);
	CU_ASSERT_EQUAL(parse_number("--n", "x", 0, 17, &value, &err), -EINVAL);
	CU_ASSERT_STRING_EQUAL(err.msg, "--n: not a number (x), expected one from 0 to 17");
}

static void test_switches(void)
{
	bool value = false;

	CU_ASSERT_EQUAL(parse_switch("--s", "on", &value, NULL), 0);
	CU_ASSERT_TRUE(value);
	CU_ASSERT_EQUAL(parse_switch("--s", "No", &value, NULL), 0);
	CU_ASSERT_FALSE(value);
	CU_ASSERT_EQUAL(parse_switch("--s", "maybe", &value, NULL), -EINVAL);
	CU_ASSERT_EQUAL(parse_switch("--s", "", &value, NULL), -EINVAL);
}

static void test_choices(void)
{
	static const char *const colours[] = { "red", "green", NULL };
	struct qc_err err = {};
	u32 value = 0;

	CU_ASSERT_EQUAL(parse_choice("--c", "green", colours, &value, &err), 0);
	CU_ASSERT_EQUAL(value, 1);
	CU_ASSERT_EQUAL(parse_choice("--c", "gre", colours, &value, &err), -EINVAL);
	CU_ASSERT_STRING_EQUAL(err.msg, "--c: value not known (gre), expected one of red, green");
}

int main(void)
{
	static const struct unit_test tests[] = {
		{ "sizes", test_sizes },
		{ "bad sizes", test_bad_sizes },
		{ "numbers", test_numbers },
		{ "switches", test_switches },
		{ "choices", test_choices },
		{ NULL, NULL },
	};

	return unit_main("parse", tests);
}
