// SPDX-License-Identifier: GPL-2.0-or-later
/* The words of `--export`: kind, then key=value with commas between. */
#include <errno.h>
#include <inttypes.h>
#include <qchain/control.h>
#include <qchain/limits.h>
#include <qchain/parse.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Largest queue depth and device number of ublk_drv. */
#define UBLK_MAX_DEPTH 4096u
#define UBLK_MAX_DEV_ID 0xfffffu

/* One key: @set stores the value in @options; -errno with @err set. */
struct export_key {
	enum export_kind kind;
	const char *name;
	int (*set)(struct export_options *options, const char *value, struct qc_err *err);
};

static int set_socket(struct export_options *options, const char *value, struct qc_err *err)
{
	if (!*value)
		return qc_err_set(err, -EINVAL, "--export nbd: socket is empty, expected a path");
	options->nbd.socket = value;
	return 0;
}

static int set_name(struct export_options *options, const char *value, struct qc_err *err)
{
	options->nbd.name = value;
	return 0;
}

static int set_description(struct export_options *options, const char *value, struct qc_err *err)
{
	options->nbd.description = value;
	return 0;
}

static int set_read_only(struct export_options *options, const char *value, struct qc_err *err)
{
	return parse_switch("--export nbd: read-only", value, &options->nbd.read_only, err);
}

static int set_u32(const char *what, const char *value, u32 least, u32 most, u32 *result,
		   struct qc_err *err)
{
	u64 number;
	int ret = parse_number(what, value, least, most, &number, err);

	if (ret == 0)
		*result = number;
	return ret;
}

static int set_loops(struct export_options *options, const char *value, struct qc_err *err)
{
	return set_u32("--export nbd: loops", value, 1, QC_MAX_LOOPS, &options->nbd.nr_loops, err);
}

static int set_id(struct export_options *options, const char *value, struct qc_err *err)
{
	u32 id;
	int ret = set_u32("--export ublk: id", value, 0, UBLK_MAX_DEV_ID, &id, err);

	if (ret == 0)
		options->ublk.dev_id = id;
	return ret;
}

static int set_queues(struct export_options *options, const char *value, struct qc_err *err)
{
	return set_u32("--export ublk: queues", value, 1, QC_MAX_LOOPS, &options->ublk.nr_queues,
		       err);
}

static int set_depth(struct export_options *options, const char *value, struct qc_err *err)
{
	return set_u32("--export ublk: depth", value, 1, UBLK_MAX_DEPTH,
		       &options->ublk.queue_depth, err);
}

static int set_zero_copy(struct export_options *options, const char *value, struct qc_err *err)
{
	bool on = true;
	int ret = parse_switch("--export ublk: zero-copy", value, &on, err);

	options->ublk.no_zero_copy = !on;
	return ret;
}

static int set_scan(struct export_options *options, const char *value, struct qc_err *err)
{
	return parse_switch("--export ublk: scan", value, &options->ublk.scan_partitions, err);
}

static int set_recover(struct export_options *options, const char *value, struct qc_err *err)
{
	return parse_switch("--export ublk: recover", value, &options->ublk.recover, err);
}

static int set_tag(struct export_options *options, const char *value, struct qc_err *err)
{
	return parse_number("--export ublk: tag", value, 0, UINT64_MAX, &options->ublk.tag, err);
}

static const struct export_key export_keys[] = {
	{ EXPORT_NBD, "socket", set_socket },
	{ EXPORT_NBD, "name", set_name },
	{ EXPORT_NBD, "description", set_description },
	{ EXPORT_NBD, "read-only", set_read_only },
	{ EXPORT_NBD, "loops", set_loops },
	{ EXPORT_UBLK, "id", set_id },
	{ EXPORT_UBLK, "queues", set_queues },
	{ EXPORT_UBLK, "depth", set_depth },
	{ EXPORT_UBLK, "zero-copy", set_zero_copy },
	{ EXPORT_UBLK, "scan", set_scan },
	{ EXPORT_UBLK, "recover", set_recover },
	{ EXPORT_UBLK, "tag", set_tag },
};

static const char *const kinds[] = { [EXPORT_NBD] = "nbd", [EXPORT_UBLK] = "ublk", NULL };

/* Cut the first word off *@rest, in place; ",," becomes "," and does not cut. */
static char *next_word(char **rest)
{
	char *word = *rest, *from = word, *to = word;

	if (!word)
		return NULL;
	for (; *from && (*from != ',' || from[1] == ','); *to++ = *from++)
		from += *from == ',';
	*rest = *from ? from + 1 : NULL;
	*to = '\0';
	return word;
}

static int unknown_key(enum export_kind kind, const char *key, struct qc_err *err)
{
	char allowed[160] = "";
	size_t at = 0;

	for (u32 i = 0; i < ARRAY_SIZE(export_keys) && at < sizeof(allowed); i++) {
		if (export_keys[i].kind == kind)
			at += snprintf(allowed + at, sizeof(allowed) - at, "%s%s", at ? ", " : "",
				       export_keys[i].name);
	}
	return qc_err_set(err, -EINVAL, "--export %s: key not known (%s), allowed are %s",
			  kinds[kind], key, allowed);
}

static int set_word(struct export_options *options, char *word, struct qc_err *err)
{
	char *value = strchr(word, '=');

	if (!value)
		return qc_err_set(err, -EINVAL, "--export %s: no value (%s), expected key=value",
				  kinds[options->kind], word);
	*value++ = '\0';
	for (u32 i = 0; i < ARRAY_SIZE(export_keys); i++) {
		if (export_keys[i].kind == options->kind &&
		    strcmp(export_keys[i].name, word) == 0)
			return export_keys[i].set(options, value, err);
	}
	return unknown_key(options->kind, word, err);
}

static int check_complete(const struct export_options *options, struct qc_err *err)
{
	if (options->kind == EXPORT_NBD && !options->nbd.socket)
		return qc_err_set(err, -EINVAL, "--export nbd: socket missing, expected "
						"nbd,socket=PATH");
	if (options->kind == EXPORT_UBLK && options->ublk.recover && options->ublk.dev_id < 0)
		return qc_err_set(err, -EINVAL, "--export ublk: recover without a device, expected "
						"ublk,id=N,recover=on");
	return 0;
}

int export_parse(const char *text, struct export_options *result, struct qc_err *err)
{
	struct export_options options = { .ublk = { .dev_id = -1 } };
	char *rest, *word;
	u32 kind;
	int ret;

	options.text = strdup(text);
	if (!options.text)
		return qc_err_set(err, -ENOMEM, "--export: out of memory");
	rest = options.text;
	ret = parse_choice("--export", next_word(&rest), kinds, &kind, err);
	if (ret)
		goto err_free;
	options.kind = kind;
	while ((word = next_word(&rest))) {
		ret = set_word(&options, word, err);
		if (ret)
			goto err_free;
	}
	ret = check_complete(&options, err);
	if (ret)
		goto err_free;
	*result = options;
	return 0;

err_free:
	free(options.text);
	return ret;
}

void export_options_exit(struct export_options *options)
{
	free(options->text);
	memset(options, 0, sizeof(*options));
}
