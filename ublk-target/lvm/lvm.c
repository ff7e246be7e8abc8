// SPDX-License-Identifier: GPL-2.0-or-later
/* Logical volumes: list, create, remove, extend, activate, tag. */
#include "lvm-private.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/*
 * Design of this room: each function is one run of lvm (lvm-run.c), read from
 * JSON where there is something to read (lvm-report.c). Names and tags are
 * checked first, so that none can be taken for an option or for two arguments.
 * LVs are always named, never selected: with lvmlockd a selection takes the
 * global lock. No command leaves a copy of the metadata in /etc (rule E1).
 */
#define MAX_LV_NAME 127u
#define MAX_TAG 1024u
#define MAX_TAGS 16384u /* of one change */
#define NO_BACKUP "--autobackup", "n"

/* As they stand in messages and arguments: "VG/LV". */
struct lv_name {
	char text[2 * MAX_LV_NAME + 2];
};

/* ---- names ------------------------------------------------------------- */

static bool all_of(const char *text, const char *others)
{
	for (; *text; text++)
		if (!isalnum((unsigned char)*text) && !strchr(others, *text))
			return false;
	return true;
}

static int check_name(const char *what, const char *name, struct qc_err *err)
{
	if (name[0] && name[0] != '-' && strlen(name) <= MAX_LV_NAME && strcmp(name, ".") &&
	    strcmp(name, "..") && all_of(name, "+_.-"))
		return 0;
	return qc_err_set(err, -EINVAL, "%s: %s name not valid (%s), must be 1..%u of "
			  "a-z A-Z 0-9 + _ . - without a hyphen first", name, what, name,
			  MAX_LV_NAME);
}

static int make_name(const char *vg, const char *name, struct lv_name *result,
		     struct qc_err *err)
{
	int ret = check_name("VG", vg, err);

	if (!ret)
		ret = check_name("LV", name, err);
	if (!ret)
		snprintf(result->text, sizeof(result->text), "%.*s/%.*s", MAX_LV_NAME, vg,
			 MAX_LV_NAME, name);
	return ret;
}

static int check_tag(const char *object, const char *tag, struct qc_err *err)
{
	if (tag[0] && tag[0] != '-' && strlen(tag) <= MAX_TAG && all_of(tag, "_+.-/=!:#&"))
		return 0;
	return qc_err_set(err, -EINVAL, "%s: tag not valid (%s), must be 1..%u of "
			  "a-z A-Z 0-9 _ + . - / = ! : # & without a hyphen first", object, tag,
			  MAX_TAG);
}

/* ---- reports ----------------------------------------------------------- */

int lvm_list(const char *vg, struct lvm_lv **result, u32 *nr, struct qc_err *err)
{
	const char *args[LVM_NR_REPORT_ARGS + 2] = { NULL };
	const char *object = vg ? vg : "lvs";
	char *json;
	int ret;

	if (vg && check_name("VG", vg, err))
		return -EINVAL;
	memcpy(args, lvm_report_args, LVM_NR_REPORT_ARGS * sizeof(args[0]));
	args[LVM_NR_REPORT_ARGS] = vg;
	ret = lvm_run(object, args, LVM_REPORT_TIMEOUT_MS, &json, err);
	if (ret)
		return ret;
	ret = lvm_report_parse(object, json, result, nr, err);
	free(json);
	return ret;
}

int lvm_find(const char *vg, const char *name, struct lvm_lv **result, struct qc_err *err)
{
	struct lv_name lv;
	struct lvm_lv *lvs;
	u32 nr, i;
	int ret;

	ret = make_name(vg, name, &lv, err);
	if (!ret)
		ret = lvm_list(vg, &lvs, &nr, err);
	if (ret)
		return ret;
	for (i = 0; i < nr && strcmp(lvs[i].name, name); i++)
		;
	if (i < nr) {
		lvs[0] = lvs[i]; /* its tags stay in the block */
		*result = lvs;
		return 0;
	}
	free(lvs);
	return qc_err_set(err, -ENOENT, "%s: no such LV, VG %s has %u others; see lvs %s", lv.text,
			  vg, nr, vg);
}

/* ---- changes ----------------------------------------------------------- */

static int change(const struct lv_name *lv, const char *const *args, struct qc_err *err)
{
	return lvm_run(lv->text, args, LVM_CHANGE_TIMEOUT_MS, NULL, err);
}

/* lvm takes multiples of 512 only, and rounds up to extents itself. */
static void size_arg(u64 bytes, char *text, size_t len)
{
	snprintf(text, len, "%llub", (unsigned long long)ALIGN_UP(bytes, SECTOR_SIZE));
}

int lvm_remove(const char *vg, const char *name, struct qc_err *err)
{
	struct lv_name lv;
	const char *args[] = { "lvremove", "--yes", NO_BACKUP, lv.text, NULL };
	int ret = make_name(vg, name, &lv, err);

	return ret ? ret : change(&lv, args, err);
}

int lvm_rename(const char *vg, const char *name, const char *to, struct qc_err *err)
{
	struct lv_name lv;
	const char *args[] = { "lvrename", "--yes", NO_BACKUP, vg, name, to, NULL };
	int ret = make_name(vg, name, &lv, err);

	if (!ret)
		ret = check_name("LV", to, err);
	return ret ? ret : change(&lv, args, err);
}

int lvm_extend_known(const struct lvm_lv *now, u64 bytes, struct qc_err *err)
{
	char size[32];
	struct lv_name lv;
	const char *args[] = { "lvextend", "--yes", NO_BACKUP, "--size", size, lv.text, NULL };
	int ret = make_name(now->vg, now->name, &lv, err);

	if (ret || now->size_bytes >= bytes)
		return ret;
	size_arg(bytes, size, sizeof(size));
	return change(&lv, args, err);
}

int lvm_extend(const char *vg, const char *name, u64 bytes, struct qc_err *err)
{
	struct lvm_lv *now;
	int ret = lvm_find(vg, name, &now, err);

	if (ret)
		return ret;
	ret = lvm_extend_known(now, bytes, err);
	free(now);
	return ret;
}

int lvm_reduce_held(const struct lvm_lv *now, u64 bytes, int fd, u64 *result, struct qc_err *err)
{
	u64 extent = max(now->extent_bytes, (u64)SECTOR_SIZE);
	u64 wanted = DIV_ROUND_UP(bytes, extent) * extent;
	char size[32];
	struct lv_name lv;
	const char *args[] = { "lvreduce", "--yes", NO_BACKUP, "--size", size, lv.text, NULL };
	int ret = make_name(now->vg, now->name, &lv, err);

	*result = now->size_bytes;
	if (ret || now->size_bytes <= wanted)
		return ret;
	size_arg(wanted, size, sizeof(size));
	ret = lvm_run_holding(lv.text, args, LVM_CHANGE_TIMEOUT_MS, fd, err);
	if (!ret)
		*result = wanted;
	return ret;
}

/* @how: "y", "sy" or "n" */
static int activate(const char *vg, const char *name, const char *how, struct qc_err *err)
{
	struct lv_name lv;
	const char *args[] = {
		"lvchange", "--yes", NO_BACKUP, "--ignoreactivationskip", "--activate", how,
		lv.text, NULL,
	};
	int ret = make_name(vg, name, &lv, err);

	return ret ? ret : change(&lv, args, err);
}

int lvm_activate(const char *vg, const char *name, bool active, struct qc_err *err)
{
	return activate(vg, name, active ? "y" : "n", err);
}

int lvm_activate_shared(const char *vg, const char *name, struct qc_err *err)
{
	struct qc_err why = { 0 };
	int ret = activate(vg, name, "sy", &why);

	if (ret && strstr(why.msg, "locked by other host"))
		ret = -EBUSY;
	return ret ? qc_err_set(err, ret, "%s", why.msg) : 0;
}

/* How many @list holds. */
static u32 count_tags(const char *list)
{
	u32 nr = list && *list ? 1 : 0;

	for (; list && *list; list++)
		nr += *list == ',';
	return nr;
}

/* Append @option and each tag of the list @tags, which is cut up in place. */
static int add_tag_args(const char *object, const char *option, char *tags, const char **args,
			u32 *nr, struct qc_err *err)
{
	char *tag, *save;
	int ret = 0;

	for (tag = strtok_r(tags, ",", &save); tag && !ret; tag = strtok_r(NULL, ",", &save)) {
		ret = check_tag(object, tag, err);
		args[(*nr)++] = option;
		args[(*nr)++] = tag;
	}
	return ret;
}

/* @adds, @removes: copies that are cut up */
static int change_tags(const struct lv_name *lv, char *adds, char *removes, const char **args,
		       struct qc_err *err)
{
	static const char *const first[] = { "lvchange", "--yes", NO_BACKUP };
	u32 nr = ARRAY_SIZE(first);
	int ret;

	memcpy(args, first, sizeof(first));
	ret = add_tag_args(lv->text, "--deltag", removes, args, &nr, err);
	if (!ret)
		ret = add_tag_args(lv->text, "--addtag", adds, args, &nr, err);
	if (ret || nr == ARRAY_SIZE(first))
		return ret;
	args[nr] = lv->text;
	return change(lv, args, err);
}

int lvm_change_tags(const char *vg, const char *name, const char *add, const char *remove,
		    struct qc_err *err)
{
	u32 nr = count_tags(add) + count_tags(remove);
	char *adds, *removes;
	const char **args;
	struct lv_name lv;
	int ret;

	ret = make_name(vg, name, &lv, err);
	if (ret)
		return ret;
	if (nr > MAX_TAGS)
		return qc_err_set(err, -E2BIG, "%s: too many tags for one change (%u), at most %u",
				  lv.text, nr, MAX_TAGS);
	adds = strdup(add ? add : "");
	removes = strdup(remove ? remove : "");
	args = calloc(2 * nr + 6, sizeof(*args));
	if (adds && removes && args)
		ret = change_tags(&lv, adds, removes, args, err);
	else
		ret = qc_err_set(err, -ENOMEM, "%s: out of memory", lv.text);
	free(adds);
	free(removes);
	free(args);
	return ret;
}

/* ---- creating ----------------------------------------------------------- */

/* @copy: of the tags, which is cut up */
static int create_tagged(const struct lv_name *lv, const char *const *fixed, u32 nr, char *copy,
			 const char *vg, struct qc_err *err)
{
	const char **args = calloc(nr + 2 * count_tags(copy) + 2, sizeof(*args));
	int ret;

	if (!args)
		return qc_err_set(err, -ENOMEM, "%s: out of memory", lv->text);
	memcpy(args, fixed, nr * sizeof(*args));
	ret = add_tag_args(lv->text, "--addtag", copy, args, &nr, err);
	args[nr] = vg;
	if (!ret)
		ret = change(lv, args, err);
	free(args);
	return ret;
}

int lvm_create(const char *vg, const char *name, u64 bytes, const char *tags, struct qc_err *err)
{
	char size[32], *copy;
	const char *const fixed[] = {
		"lvcreate", "--yes", NO_BACKUP, "--activate", "y", "--setautoactivation", "n",
		"--wipesignatures", "n", "--zero", "n", "--size", size, "--name", name,
	};
	struct lv_name lv;
	int ret;

	ret = make_name(vg, name, &lv, err);
	if (ret)
		return ret;
	size_arg(bytes, size, sizeof(size));
	copy = strdup(tags ? tags : "");
	if (!copy)
		return qc_err_set(err, -ENOMEM, "%s: out of memory", lv.text);
	ret = create_tagged(&lv, fixed, ARRAY_SIZE(fixed), copy, vg, err);
	free(copy);
	return ret;
}
