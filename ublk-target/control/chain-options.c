// SPDX-License-Identifier: GPL-2.0-or-later
/* The options of a chain: which values they may have, in qchaind and qchainctl. */
#include <errno.h>
#include <qchain/control.h>
#include <qchain/image.h>
#include <qchain/limits.h>
#include <qchain/parse.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* @name: with the two dashes, for messages */
struct chain_option {
	const char *name;
	int (*check)(const char *name, const char *value, struct qc_err *err);
};

static int check_format(const char *name, const char *value, struct qc_err *err)
{
	enum image_format format;

	if (image_format_parse(value, &format) == 0)
		return 0;
	return qc_err_set(err, -EINVAL, "%s: format not known (%s), expected qcow2 or raw", name,
			  value);
}

static int check_on_full(const char *name, const char *value, struct qc_err *err)
{
	static const char *const choices[] = { "wait", "fail", NULL };
	u32 index;

	return parse_choice(name, value, choices, &index, err);
}

static int check_warm(const char *name, const char *value, struct qc_err *err)
{
	static const char *const choices[] = { "on", "off", NULL };
	u32 index;

	return parse_choice(name, value, choices, &index, err);
}

static int check_cache_size(const char *name, const char *value, struct qc_err *err)
{
	u64 bytes;
	int ret = parse_size(name, value, &bytes, err);

	if (ret || (bytes >= QC_MIN_CACHE_BYTES && bytes <= QC_MAX_CACHE_BYTES))
		return ret;
	return qc_err_set(err, -ERANGE, "%s: size out of range (%s), must be 4K to 1T", name,
			  value);
}

static int check_snapshot(const char *name, const char *value, struct qc_err *err)
{
	if (*value)
		return 0;
	return qc_err_set(err, -EINVAL, "%s: name is empty, expected the id or the name of an "
			  "internal snapshot; qchainctl info lists them", name);
}

/* A folder; or one image, a volume of another group for instance. */
static int check_place(const char *name, const char *value, struct qc_err *err)
{
	if (access(value, F_OK) == 0)
		return 0;
	return qc_err_set(err, -errno, "%s: folder not found (%s: %m), expected the one that the "
			  "backing images are in", name, value);
}

static const struct chain_option options[] = {
	{ "--format", check_format },
	{ "--backing-format", check_format },
	{ "--snapshot", check_snapshot },
	{ "--allow-backing", check_place },
	{ "--cache-size", check_cache_size },
	{ "--on-full", check_on_full },
	{ "--warm", check_warm },
};

int chain_option_check(const char *name, const char *value, struct qc_err *err)
{
	for (u32 i = 0; i < ARRAY_SIZE(options); i++) {
		if (strcmp(options[i].name + 2, name) == 0)
			return options[i].check(options[i].name, value, err);
	}
	return 0;
}
