/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Writes what layers of a chain hold into a new file. */
#ifndef CTL_IMAGE_EXPORT_IMAGE_H
#define CTL_IMAGE_EXPORT_IMAGE_H

#include "export-note.h"
#include "merge-run.h"

/*
 * struct export_image - what is read and what is made
 * @to, @to_format: the layer whose content is exported, with all below it
 * @from: a layer below it: only what the layers above this one hold; NULL: everything
 * @target, @format: the file; with @from a qcow2 image
 * @backing: with @from: the export that holds what @from shows
 * @force: a file that is there is replaced, whole
 * @note: device, to and from are the caller's; the rest is a result
 */
struct export_image {
	struct offline_options *offline;
	const char *to;
	enum image_format to_format;
	const char *from;
	const char *target;
	enum image_format format;
	const char *backing;
	bool force;
	u64 speed;
	struct export_note note;
};

/*
 * export_image - make the file
 * It is @target.part until it is whole and durable (promise X1). As long as it takes, the
 * locks of a reader are held on all layers from @to down: nobody writes to them. What it
 * holds is read again for the checksum of @note, which is beside it before it has its name
 * (X3). @moved: what was copied.
 */
int export_image(struct export_image *e, struct merge *moved, struct qc_err *err);

#endif
