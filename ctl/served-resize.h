/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A served chain gets longer: its volume, its image, its device. */
#ifndef CTL_SERVED_RESIZE_H
#define CTL_SERVED_RESIZE_H

#include "ctl.h"

#include <qchain/image.h>

/* @size: as on the command line. Returns the exit status. */
int resize_served(const char *name, const char *size, bool json);

/* ---- shared with the offline form (image/resize.c) ------------------------------- */

/* "20G", "+5G", "-5G": what it makes of the @from bytes of object @name. */
int resize_parse(const char *name, const char *text, u64 from, u64 *result, struct qc_err *err);
/*
 * resize_extend_lv - the LV at @path, which holds @img, before that grows from @from to
 * @to bytes; other paths: nothing
 * A thick LV stays thick: one that could hold the whole image before will do so again.
 */
int resize_extend_lv(const char *path, const struct image *img, u64 from, u64 to,
		     struct qc_err *err);

/* The same for the image at @path, which a daemon has open, and which is shorter. */
int resize_extend_served(const char *path, enum image_format format, u64 to, struct qc_err *err);

#endif
