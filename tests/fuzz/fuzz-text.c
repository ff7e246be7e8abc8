// SPDX-License-Identifier: GPL-2.0-or-later
/* What people and lvm write: sizes, names, export lines, reports. */
#include "../../ublk-target/lvm/lvm-private.h"
#include "fuzz.h"

#include <qchain/control.h>
#include <qchain/parse.h>
#include <stdlib.h>
#include <string.h>

static void options(const char *text)
{
	static const char *const choices[] = { "one", "two", NULL };
	struct export_options export;
	struct qc_err err = { 0 };
	bool flag;
	u32 index;
	u64 n;

	parse_size("--size", text, &n, &err);
	parse_number("--count", text, 3, 1000, &n, &err);
	parse_switch("--flag", text, &flag, &err);
	parse_choice("--choice", text, choices, &index, &err);
	chain_name_check(text, &err);
	if (!export_parse(text, &export, &err))
		export_options_exit(&export);
}

static void report(const char *text)
{
	struct lvm_lv *lvs = NULL;
	struct qc_err err = { 0 };
	u32 nr;

	if (!lvm_report_parse("fuzz", text, &lvs, &nr, &err))
		free(lvs);
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t size)
{
	char *text = malloc(size + 1);

	if (!text)
		return 0;
	memcpy(text, data, size);
	text[size] = 0;
	options(text);
	report(text);
	free(text);
	return 0;
}
