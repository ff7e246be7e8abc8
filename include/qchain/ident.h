/* SPDX-License-Identifier: GPL-2.0-or-later OR MIT */
/* Whether two names, or two open files, are the same image. */
#ifndef QCHAIN_IDENT_H
#define QCHAIN_IDENT_H

#include <qchain/types.h>
#include <sys/stat.h>

/* An image, whatever it is called. @ino 0: a block device, @dev is its number. */
struct image_ident {
	dev_t dev;
	ino_t ino;
};

/* From what stat() or fstat() said. Any thread. */
struct image_ident image_ident_from(const struct stat *st);

/* -errno of stat(). */
int image_ident_of(const char *path, struct image_ident *result);
bool image_ident_same(const struct image_ident *a, const struct image_ident *b);

#endif
