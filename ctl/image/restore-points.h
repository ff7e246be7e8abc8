/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Snapshots of device records that a change of images would spoil (rule D2). */
#ifndef CTL_IMAGE_RESTORE_POINTS_H
#define CTL_IMAGE_RESTORE_POINTS_H

#include <qchain/err.h>
#include <qchain/types.h>

/*
 * restore_points_check - does a record say that one of the images @paths holds a
 * snapshot? -EBUSY with @err that names it and ends in @advice
 * restore_points_drop - forget those snapshots, durably, before the images change
 */
int restore_points_check(char *const *paths, u32 nr, const char *advice, struct qc_err *err);
int restore_points_drop(char *const *paths, u32 nr, struct qc_err *err);

#endif
