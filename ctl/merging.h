/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Images that a commit has begun to change (rule D2). */
#ifndef CTL_MERGING_H
#define CTL_MERGING_H

#include <qchain/err.h>

struct record_place;

/*
 * merging_check - may @image, as records of @place call it, be shown or get an overlay?
 * LVs that were not active when the place was read are not so afterwards, either.
 * -EBUSY with @err that names the job: it lies below the top of a commit that a record of
 * @place knows of and that has begun, down to its base. What stands beside was refused
 * when the commit began (rule D3).
 *
 * merging_check_image - the same, of the image at @path and the place where it is; 0
 * where there are no records
 */
int merging_check(struct record_place *place, const char *image, struct qc_err *err);
int merging_check_image(const char *path, struct qc_err *err);

#endif
