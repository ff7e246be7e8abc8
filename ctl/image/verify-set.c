// SPDX-License-Identifier: GPL-2.0-or-later
/* Follows an export down to a full one, and reads each of them. */
#include "verify-set.h"

#include "export-note.h"
#include "offline.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

void verify_set_exit(struct verify_set *set)
{
	free(set->idents);
}

static bool is_known(const struct verify_set *set, const struct image_ident *ident)
{
	for (u32 i = 0; i < set->nr; i++)
		if (image_ident_same(&set->idents[i], ident))
			return true;
	return false;
}

static int remember(struct verify_set *set, const struct image_ident *ident, const char *file,
		    struct qc_err *err)
{
	struct image_ident *larger = realloc(set->idents, (set->nr + 1) * sizeof(*larger));

	if (!larger)
		return qc_err_set(err, -ENOMEM, "%s: out of memory", file);
	set->idents = larger;
	larger[set->nr++] = *ident;
	return 0;
}

static void tell(const struct verify_set *set, const char *file, const struct export_note *note)
{
	json_object *row;
	char size[32];

	if (!set->json) {
		printf("%s: %s%s%s, %s of data, sha256 %.16s: good\n", file, note->to,
		       note->from[0] ? " since " : "", note->from,
		       print_size(note->sum.data, size), note->sum.sha256);
		return;
	}
	row = json_object_new_object();
	json_add_string(row, "filename", file);
	json_add_string(row, "device", note->device);
	json_add_string(row, "to", note->to);
	if (note->from[0])
		json_add_string(row, "from", note->from);
	json_add_u64(row, "data", note->sum.data);
	json_add_string(row, "sha256", note->sum.sha256);
	json_object_array_add(set->json, row);
}

static int check_sum(const char *file, const struct export_note *note, struct qc_err *err)
{
	struct checksum sum;
	int ret = image_checksum(file, note->format, &sum, err);

	if (ret || !strcmp(sum.sha256, note->sum.sha256))
		return ret;
	return qc_err_set(err, -EILSEQ, "%s: is not what was written (sha256 %s, %s%s has %s); "
			  "export it again, or take another copy", file, sum.sha256, file,
			  EXPORT_NOTE_SUFFIX, note->sum.sha256);
}

/* The file that the header of @file names; malloc'ed, NULL: none. */
static int base_of(const char *file, enum image_format format, char **result, struct qc_err *err)
{
	struct offline_options options = { .format = format };
	struct image *img;
	int ret = offline_open_image(file, &options, false, 0, &img, err);

	*result = NULL;
	if (ret)
		return ret;
	if (img->backing_name)
		*result = backing_path(file, img->backing_name);
	if (img->backing_name && !*result)
		ret = qc_err_set(err, -ENOMEM, "%s: out of memory", file);
	image_close(img);
	return ret;
}

static int check_base(const char *file, const struct export_note *note, const char *base,
		      struct qc_err *err)
{
	struct export_note below;
	int ret;

	if (!note->from[0])
		return base ? qc_err_set(err, -EILSEQ, "%s: is a full export, and stands on %s",
					 file, base) : 0;
	if (!base)
		return qc_err_set(err, -EILSEQ, "%s: is an increment, and stands on nothing", file);
	ret = export_note_load(base, &below, err);
	return ret ? ret : export_note_check_base(note, base, &below, err);
}

/* @depth: so many stand on it; a set that stands on itself ends, too. */
static int add_file(struct verify_set *set, const char *file, u32 depth, struct qc_err *err)
{
	struct image_ident ident;
	struct export_note note;
	char *base = NULL;
	int ret;

	if (depth > QC_MAX_CHAIN_DEPTH)
		return qc_err_set(err, -ELOOP, "%s: more than %u exports stand on it", file,
				  QC_MAX_CHAIN_DEPTH);
	if (image_ident_of(file, &ident))
		return qc_err_set(err, -errno, "%s: is missing from the set (%m)", file);
	if (is_known(set, &ident))
		return 0;
	ret = export_note_load(file, &note, err);
	if (!ret)
		ret = base_of(file, note.format, &base, err);
	if (!ret)
		ret = check_base(file, &note, base, err);
	if (!ret && base)
		ret = add_file(set, base, depth + 1, err);
	if (!ret)
		ret = check_sum(file, &note, err);
	if (!ret)
		ret = remember(set, &ident, file, err);
	if (!ret)
		tell(set, file, &note);
	free(base);
	return ret;
}

int verify_set_add(struct verify_set *set, const char *file, struct qc_err *err)
{
	return add_file(set, file, 0, err);
}
