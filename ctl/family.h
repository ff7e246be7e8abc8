/* SPDX-License-Identifier: GPL-2.0-or-later */
/* All images of one place, and which stands on which (rule D3). */
#ifndef CTL_FAMILY_H
#define CTL_FAMILY_H

#include "record.h"

#include <qchain/image.h>
#include <qchain/overlays.h>

/* What stands on nothing that is known. */
#define FAMILY_NONE (~0u)

/*
 * struct family_member - an image by its file or LV
 * @image: what records call it
 * @backing: of the member that it stands on; FAMILY_NONE: none here
 */
struct family_member {
	char *path;
	char image[RECORD_IMAGE_BYTES];
	struct image_ident ident;
	struct image_ident below;
	bool has_below;
	u32 backing;
};

/*
 * struct family - the images of a VG or directory
 * @unknown: what cannot be looked at, and may stand on any; "" none; @why: its -errno
 */
struct family {
	u32 nr;
	struct family_member *members;
	char unknown[4096];
	int why;
};

/*
 * family_read - look at the header of every image in @place
 * LVs that are not active are made so for the look. An overlay of the device that is
 * being made is left out, and so is what a record calls dead. A raw top stands on nothing.
 */
int family_read(const struct record_place *place, struct family *result, struct qc_err *err);
void family_exit(struct family *family);

/* By the name that records have for it, or by its path; FAMILY_NONE: not here. */
u32 family_find(const struct family *family, const char *image);
u32 family_find_path(const struct family *family, const char *path);
/* How many stand on @member; *@result: one of them. */
u32 family_overlays(const struct family *family, u32 member, u32 *result);
/* What the header of an image on @member says of it; the tip of a branch is an overlay. */
enum image_format family_format(const struct family *family, u32 member);

#endif
