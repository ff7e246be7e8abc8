/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a device already holds, before something is written over it. */
#ifndef CTL_IMAGE_SIGNATURE_H
#define CTL_IMAGE_SIGNATURE_H

#include <qchain/io.h>

/*
 * signature_find - *@result names what is on @dev ("an ext2, ext3 or ext4 file
 * system"), NULL: nothing that is known. -errno of the read.
 */
int signature_find(struct io_dev *dev, const char **result);

#endif
