/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Writes what layers of a chain hold into a new file. */
#ifndef CTL_IMAGE_EXPORT_IMAGE_H
#define CTL_IMAGE_EXPORT_IMAGE_H

#include "merge-run.h"

/*
 * struct export_image - what is read and what is made
 * @to, @to_format: the layer whose content is exported, with all below it
 * @from: a layer below it: only what the layers above this one hold; NULL: everything
 * @target, @format: the file; with @from a qcow2 image
 * @backing, @backing_format: with @from: the file that holds what @from shows
 * @force: a file that is there is replaced, whole
 * @size: result, of the device
 */
struct export_image {
	struct offline_options *offline;
	const char *to;
	enum image_format to_format;
	const char *from;
	const char *target;
	enum image_format format;
	const char *backing;
	enum image_format backing_format;
	bool force;
	u64 speed;
	u64 size;
};

/*
 * export_image - make the file
 * It is @target.part until it is whole and durable (promise X1). As long as it takes, the
 * locks of a reader are held on all layers from @to down: nobody writes to them. @moved:
 * what was copied.
 */
int export_image(struct export_image *e, struct merge *moved, struct qc_err *err);

#endif
