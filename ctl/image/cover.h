/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Before a raw base gets longer: what stands on it says zero from its end on (rule D4). */
#ifndef CTL_IMAGE_COVER_H
#define CTL_IMAGE_COVER_H

#include "offline.h"

/*
 * cover_from - the qcow2 image at @path, which stands on one that ends at @from, maps
 * zeroes from there on to @to, or to its own end, where it maps nothing; durable
 */
int cover_from(const char *path, const struct offline_options *options, u64 from, u64 to,
	       struct qc_err *err);

#endif
