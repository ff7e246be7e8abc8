/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Was a commit interrupted when only the overlay was left to be emptied? */
#ifndef CTL_IMAGE_COMMITTED_H
#define CTL_IMAGE_COMMITTED_H

#include "offline.h"

/*
 * committed_already - does the layer below the active one of @chain read the same
 * as it wherever the active layer maps something?
 * @options: as of @chain; the format is that of the layer below
 *
 * Then the active layer can be emptied without a change to what is below it,
 * whoever else stands on that. 1, 0, -errno.
 */
int committed_already(struct chain *chain, const struct offline_options *options,
		      struct qc_err *err);

#endif
