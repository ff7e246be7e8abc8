/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Which images hold the snapshots that an export is about. */
#ifndef CTL_EXPORT_LAYERS_H
#define CTL_EXPORT_LAYERS_H

#include "image/offline.h"

#include <qchain/control.h>

/*
 * struct export_layers - malloc'ed; export_layers_exit()
 * @device: whose they are; "": of an image that no record knows
 * @to, @to_format, @to_name: the image that is exported, with all below; its snapshot or,
 *	where it holds none, its file's name
 * @from, @from_name: the same of the older one; NULL: none was asked for
 */
struct export_layers {
	char device[QC_MAX_CHAIN_NAME + 1];
	char *to;
	char *to_name;
	char *from;
	char *from_name;
	enum image_format to_format;
};

/*
 * export_layers_find - of @name, a served chain or the top image of one that nobody serves
 * @from, @to: snapshots; of an image also layers as its chain has them. @to NULL: the
 *	newest snapshot that a served chain stands on; the image itself
 * Refused: what a job writes to, or is still being sealed.
 */
int export_layers_find(const char *name, const struct offline_options *options,
		       const char *from, const char *to, struct export_layers *result,
		       struct qc_err *err);
void export_layers_exit(struct export_layers *layers);

#endif
