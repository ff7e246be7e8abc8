/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Who else stands on an image (rule D3). */
#ifndef CTL_IMAGE_STANDING_H
#define CTL_IMAGE_STANDING_H

#include <qchain/chain.h>

/*
 * standing_check - no image outside @chain has one of its layers @first to @last
 * (by depth) as its backing. Reads the headers of the files in the layers'
 * directories and of the LVs in their volume groups. What cannot be read counts
 * as standing on them. 0, -EBUSY with @err that names the image, -errno.
 */
int standing_check(const struct chain *chain, u32 first, u32 last, struct qc_err *err);

#endif
