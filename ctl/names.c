// SPDX-License-Identifier: GPL-2.0-or-later
/* What a name on the command line stands for: a path, a served chain, an LV. */
#include "ctl.h"

#include <errno.h>
#include <qchain/control.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static bool looks_like_path(const char *text)
{
	return text[0] == '/' || strncmp(text, "./", 2) == 0 || strncmp(text, "../", 3) == 0;
}

/* What LVM allows in the name of a VG or LV. */
static bool is_lvm_name(const char *text, size_t len)
{
	static const char allowed[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
				      "0123456789+_.-";

	return len > 0 && len < sizeof(((struct object_name *)0)->vg) && text[0] != '-' &&
	       strspn(text, allowed) >= len && strncmp(text, ".", len) != 0 &&
	       strncmp(text, "..", len) != 0;
}

static int name_path(const char *text, struct object_name *result, struct qc_err *err)
{
	if (snprintf(result->path, sizeof(result->path), "%s", text) >= sizeof(result->path))
		return qc_err_set(err, -ENAMETOOLONG,
				  "%.40s...: path too long (%zu bytes), must be below %zu", text,
				  strlen(text), sizeof(result->path));
	result->kind = NAME_PATH;
	return 0;
}

/*
 * Served, or was until its daemon died: its folder holds the daemon's socket or
 * the record of `up`.
 */
static bool name_chain(const char *text, struct object_name *result)
{
	static const char *const files[] = { "qmp.sock", "state.json" };
	bool found = false;

	if (chain_name_check(text, NULL))
		return false;
	for (u32 i = 0; i < ARRAY_SIZE(files) && !found; i++)
		found = chain_run_path(text, files[i], result->path, sizeof(result->path),
				       NULL) == 0 && access(result->path, F_OK) == 0;
	if (!found || chain_run_path(text, NULL, result->path, sizeof(result->path), NULL))
		return false;
	result->kind = NAME_CHAIN;
	return true;
}

static int name_lv(const char *text, struct object_name *result, struct qc_err *err)
{
	const char *slash = strchr(text, '/');

	if (!slash)
		return qc_err_set(err, -EINVAL,
				  "%s: no chain of this name is served, and VG/LV or a path was "
				  "expected; for a file in this directory write ./%s", text, text);
	if (!is_lvm_name(text, slash - text) || !is_lvm_name(slash + 1, strlen(slash + 1)))
		return qc_err_set(err, -EINVAL,
				  "%s: not a name of the form VG/LV; for a file below this "
				  "directory write ./%s", text, text);
	snprintf(result->vg, sizeof(result->vg), "%.*s", (int)(slash - text), text);
	snprintf(result->lv, sizeof(result->lv), "%s", slash + 1);
	snprintf(result->path, sizeof(result->path), "/dev/%s/%s", result->vg, result->lv);
	result->kind = NAME_LV;
	return 0;
}

int name_parse(const char *text, struct object_name *result, struct qc_err *err)
{
	memset(result, 0, sizeof(*result));
	result->text = text;
	if (!*text)
		return qc_err_set(err, -EINVAL, "name is empty, a path, VG/LV or the name of a "
						"served chain was expected");
	if (looks_like_path(text))
		return name_path(text, result, err);
	if (name_chain(text, result))
		return 0;
	return name_lv(text, result, err);
}

/* An LV that is not there is told apart from one that is not active. */
static int name_lv_exists(const struct object_name *name, struct qc_err *err)
{
	struct stat st;

	if (name->kind != NAME_LV || stat(name->path, &st) == 0)
		return 0;
	return qc_err_set(err, -errno,
			  "%s: no device of this LV (%s: %s); activate it with lvchange -ay -K %s, "
			  "and for a file write ./%s", name->text, name->path, strerror(errno),
			  name->text, name->text);
}

int name_image(const char *text, struct object_name *result, struct qc_err *err)
{
	int ret = name_parse(text, result, err);

	if (ret < 0)
		return ret;
	if (result->kind == NAME_CHAIN)
		return qc_err_set(err, -EINVAL,
				  "%s: is a served chain, an image was expected; its images are "
				  "listed by qchainctl tree %s", text, text);
	return name_lv_exists(result, err);
}
