/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A checksum of what one image holds, whatever is below it and wherever it lies in it. */
#ifndef CTL_IMAGE_CHECKSUM_H
#define CTL_IMAGE_CHECKSUM_H

#include <qchain/image.h>

/* 64 hexadecimal digits and the end. */
#define CHECKSUM_BYTES 65u

/*
 * struct checksum - SHA-256 over the extents that the image maps, in guest order: the bytes
 * of each one with data, then its offset, length and kind (0 data, 1 zero) as three
 * big-endian numbers of 64 bits; in the end the size of the device, the same way.
 * @data: guest bytes with data
 *
 * Extents as they are joined: neither where data lies in the file, nor whether it is
 * compressed, nor the name of the backing image counts. A raw image is one extent.
 */
struct checksum {
	u64 data;
	char sha256[CHECKSUM_BYTES];
};

/* Of the image at @path, which nobody changes; what is below is not opened. */
int image_checksum(const char *path, enum image_format format, struct checksum *result,
		   struct qc_err *err);

#endif
