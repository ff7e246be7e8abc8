/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Exports that were read and found to be what was written. */
#ifndef CTL_IMAGE_VERIFY_SET_H
#define CTL_IMAGE_VERIFY_SET_H

#include <json-c/json.h>
#include <qchain/err.h>
#include <qchain/overlays.h>
#include <qchain/types.h>

/*
 * struct verify_set - all zero at first
 * @json: gets an object for each file; NULL: a line on standard output
 * @idents: of those that are good: each is read once
 */
struct verify_set {
	json_object *json;
	struct image_ident *idents;
	u32 nr;
};

/*
 * verify_set_add - the export @file, and those that it stands on, from the full one up
 * The first that is missing or wrong is in @err.
 */
int verify_set_add(struct verify_set *set, const char *file, struct qc_err *err);
void verify_set_exit(struct verify_set *set);

#endif
