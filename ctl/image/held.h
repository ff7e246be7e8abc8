/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What an image really holds, and what of it nothing that stands on it shows. */
#ifndef CTL_IMAGE_HELD_H
#define CTL_IMAGE_HELD_H

#include <qchain/err.h>
#include <qchain/image.h>

/*
 * struct held - bytes of one image
 * @data: of guest data that it stores; compressed: as stored. Clusters that are mapped
 *	and hold nothing do not count: reserved subclusters (preallocation=metadata over
 *	a backing image), zeroes with a place.
 * @only: of these, what every image that stands on it has overwritten or zeroed: nobody
 *	sees it but who looks at this image itself. All of it when nothing does.
 */
struct held {
	u64 data;
	u64 only;
};

/*
 * image_held - walk the tables of the image at @path, beside those of the qcow2 images
 * @above that stand on it. No locks: of images in use it is an estimate.
 */
int image_held(const char *path, enum image_format format, const char *const *above,
	       u32 nr_above, struct held *result, struct qc_err *err);

#endif
