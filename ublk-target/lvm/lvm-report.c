// SPDX-License-Identifier: GPL-2.0-or-later
/* Reads the JSON that `lvs` reports. */
#include "lvm-private.h"

#include <errno.h>
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Numbers are strings in this format; sizes in bytes without a unit. */
const char *const lvm_report_args[] = {
	"lvs", "--reportformat", "json", "--units", "b", "--nosuffix",
	("-ovg_name,lv_name,lv_uuid,lv_size,lv_tags,lv_active,lv_device_open,lv_path,"
	 "vg_lock_type,vg_size,vg_free,vg_extent_size"),
};

_Static_assert(ARRAY_SIZE(lvm_report_args) == LVM_NR_REPORT_ARGS, "lvs arguments");

static int malformed(const char *object, const char *what, struct qc_err *err)
{
	return qc_err_set(err, -EPROTO, "%s: report of lvs not understood (%s), expected the JSON "
			  "of LVM 2.02.158 or later", object, what);
}

/* The text of @key; NULL when it is missing. */
static const char *text_of(json_object *lv, const char *key)
{
	json_object *value;

	return json_object_object_get_ex(lv, key, &value) ? json_object_get_string(value) : NULL;
}

/* Returns whether all of it fitted. */
static bool copy_text(char *to, size_t len, const char *from)
{
	return (size_t)snprintf(to, len, "%s", from) < len;
}

static int parse_bytes(const char *object, const char *text, u64 *result, struct qc_err *err)
{
	char *end;

	errno = 0;
	*result = strtoull(text, &end, 10);
	return errno || end == text || *end ? malformed(object, text, err) : 0;
}

/* What older releases do not report, or what only `scan` and `space` ask for. */
static int parse_more(const char *object, json_object *json, struct lvm_lv *lv, struct qc_err *err)
{
	const char *path = text_of(json, "lv_path"), *lock = text_of(json, "vg_lock_type");
	const char *size = text_of(json, "vg_size"), *free_text = text_of(json, "vg_free");
	const char *extent = text_of(json, "vg_extent_size");
	int ret;

	if (path && !copy_text(lv->path, sizeof(lv->path), path))
		return malformed(object, "a path is too long", err);
	if (!path)
		snprintf(lv->path, sizeof(lv->path), "/dev/%s/%s", lv->vg, lv->name);
	lv->locked = lock && *lock && strcmp(lock, "none");
	ret = size ? parse_bytes(object, size, &lv->vg_bytes, err) : 0;
	if (!ret && free_text)
		ret = parse_bytes(object, free_text, &lv->vg_free_bytes, err);
	if (!ret && extent)
		ret = parse_bytes(object, extent, &lv->extent_bytes, err);
	return ret;
}

/* @texts: where its tags go; moved behind them */
static int parse_lv(const char *object, json_object *json, struct lvm_lv *lv, char **texts,
		    struct qc_err *err)
{
	const char *vg = text_of(json, "vg_name"), *name = text_of(json, "lv_name");
	const char *uuid = text_of(json, "lv_uuid"), *size = text_of(json, "lv_size");
	const char *tags = text_of(json, "lv_tags"), *active = text_of(json, "lv_active");
	const char *open = text_of(json, "lv_device_open");

	if (!vg || !name || !uuid || !size || !tags || !active || !open)
		return malformed(object, "a field is missing", err);
	if (!copy_text(lv->vg, sizeof(lv->vg), vg) ||
	    !copy_text(lv->name, sizeof(lv->name), name) ||
	    !copy_text(lv->uuid, sizeof(lv->uuid), uuid))
		return malformed(object, "a name is too long", err);
	if (parse_bytes(object, size, &lv->size_bytes, err))
		return err->code;
	lv->tags = *texts;
	*texts = stpcpy(*texts, tags) + 1;
	/* "active", "local exclusive".. or nothing; "unknown" without a driver */
	lv->active = active[0] && strcmp(active, "unknown");
	lv->open = !strcmp(open, "open");
	return parse_more(object, json, lv, err);
}

/* {"report": [{"lv": [{..}, ..]}]} */
static json_object *find_lvs(json_object *root)
{
	json_object *report, *lvs;

	if (!json_object_object_get_ex(root, "report", &report) ||
	    !json_object_is_type(report, json_type_array) ||
	    !json_object_object_get_ex(json_object_array_get_idx(report, 0), "lv", &lvs) ||
	    !json_object_is_type(lvs, json_type_array))
		return NULL;
	return lvs;
}

/* Bytes for the tags of all; an LV without them is malformed, and refused later. */
static size_t tag_bytes(json_object *lvs)
{
	size_t bytes = 0;

	for (size_t i = 0; i < json_object_array_length(lvs); i++) {
		const char *tags = text_of(json_object_array_get_idx(lvs, i), "lv_tags");

		bytes += tags ? strlen(tags) + 1 : 0;
	}
	return bytes;
}

static int parse_lvs(const char *object, json_object *lvs, struct lvm_lv **result, u32 *nr,
		     struct qc_err *err)
{
	size_t n = json_object_array_length(lvs);
	struct lvm_lv *array;
	char *texts;
	int ret = 0;

	*result = NULL;
	*nr = 0;
	if (!n)
		return 0;
	array = calloc(1, n * sizeof(*array) + tag_bytes(lvs));
	if (!array)
		return qc_err_set(err, -ENOMEM, "%s: out of memory", object);
	texts = (char *)(array + n);
	for (size_t i = 0; !ret && i < n; i++)
		ret = parse_lv(object, json_object_array_get_idx(lvs, i), &array[i], &texts, err);
	if (ret) {
		free(array);
		return ret;
	}
	*result = array;
	*nr = n;
	return 0;
}

int lvm_list_part(const struct lvm_lv *lvs, u32 nr, const char *vg, struct lvm_lv **result,
		  u32 *nr_result)
{
	size_t bytes = 0;
	char *texts;
	u32 n = 0;

	for (u32 i = 0; i < nr; i++) {
		if (strcmp(lvs[i].vg, vg))
			continue;
		bytes += sizeof(*lvs) + strlen(lvs[i].tags) + 1;
		n++;
	}
	*nr_result = n;
	*result = n ? calloc(1, bytes) : NULL;
	if (!*result)
		return n ? -ENOMEM : 0;
	texts = (char *)(*result + n);
	for (u32 i = 0, at = 0; i < nr; i++) {
		if (strcmp(lvs[i].vg, vg))
			continue;
		(*result)[at] = lvs[i];
		(*result)[at++].tags = texts;
		texts = stpcpy(texts, lvs[i].tags) + 1;
	}
	return 0;
}

int lvm_report_parse(const char *object, const char *json, struct lvm_lv **result, u32 *nr,
		     struct qc_err *err)
{
	json_object *root, *lvs;
	int ret;

	root = json_tokener_parse(json);
	lvs = root ? find_lvs(root) : NULL;
	ret = lvs ? parse_lvs(object, lvs, result, nr, err) : malformed(object, "no list", err);
	json_object_put(root);
	return ret;
}
