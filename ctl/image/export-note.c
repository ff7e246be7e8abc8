// SPDX-License-Identifier: GPL-2.0-or-later
/* Writes and reads the JSON beside an export. */
#include "export-note.h"

#include "../served.h"
#include "offline.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static json_object *to_json(const struct export_note *note)
{
	json_object *root = json_object_new_object();

	json_add_string(root, "device", note->device);
	json_add_string(root, "to", note->to);
	json_add_string(root, "from", note->from);
	json_add_string(root, "format", image_format_name(note->format));
	json_add_u64(root, "virtual-size", note->size);
	json_add_u64(root, "data", note->sum.data);
	json_add_string(root, "sha256", note->sum.sha256);
	json_add_string(root, "base-sha256", note->base_sha256);
	return root;
}

/* False: missing, or longer than it can be. */
static bool take_text(json_object *root, const char *key, char *result, size_t bytes)
{
	const char *text = json_text(root, key);

	return text && snprintf(result, bytes, "%s", text) < (int)bytes;
}

static bool from_json(json_object *root, struct export_note *note)
{
	const char *format = json_text(root, "format");

	note->size = json_number(root, "virtual-size", 0);
	note->sum.data = json_number(root, "data", 0);
	return format && !image_format_parse(format, &note->format) &&
	       take_text(root, "device", note->device, sizeof(note->device)) &&
	       take_text(root, "to", note->to, sizeof(note->to)) &&
	       take_text(root, "from", note->from, sizeof(note->from)) &&
	       take_text(root, "sha256", note->sum.sha256, sizeof(note->sum.sha256)) &&
	       take_text(root, "base-sha256", note->base_sha256, sizeof(note->base_sha256));
}

int export_note_load(const char *file, struct export_note *result, struct qc_err *err)
{
	char path[4096];
	json_object *root;
	bool good;

	*result = (struct export_note){ .size = 0 };
	snprintf(path, sizeof(path), "%s" EXPORT_NOTE_SUFFIX, file);
	if (access(path, R_OK))
		return qc_err_set(err, -errno, "%s: not readable (%m), and without it nobody can "
				  "tell whether %s is whole; qchainctl export writes it", path,
				  file);
	root = json_object_from_file(path);
	good = root && json_object_is_type(root, json_type_object) && from_json(root, result);
	json_object_put(root);
	return good ? 0 : qc_err_set(err, -EILSEQ, "%s: is not what qchainctl export writes", path);
}

int export_note_save(const char *file, const struct export_note *note, struct qc_err *err)
{
	char path[4096], next[4096];
	json_object *root = to_json(note);
	int ret;

	snprintf(path, sizeof(path), "%s" EXPORT_NOTE_SUFFIX, file);
	snprintf(next, sizeof(next), "%s" EXPORT_NOTE_SUFFIX ".part", file);
	ret = record_write_json(next, root);
	json_object_put(root);
	if (!ret && rename(next, path))
		ret = -errno;
	return ret ? qc_err_set(err, ret, "%s: not written (%s)", path, strerror(-ret)) : 0;
}

int export_note_check_base(const struct export_note *note, const char *base_file,
			   const struct export_note *base, struct qc_err *err)
{
	if (strcmp(base->device, note->device))
		return qc_err_set(err, -EINVAL, "%s: is of device %s, expected one of %s",
				  base_file, base->device, note->device);
	if (strcmp(base->to, note->from))
		return qc_err_set(err, -EINVAL, "%s: holds %s, expected %s, since which the "
				  "increment tells", base_file, base->to, note->from);
	if (note->base_sha256[0] && strcmp(base->sum.sha256, note->base_sha256))
		return qc_err_set(err, -EINVAL, "%s: is another export of %s than the one that "
				  "the increment was made for", base_file, base->to);
	return 0;
}
