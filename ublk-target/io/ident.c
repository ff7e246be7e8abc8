// SPDX-License-Identifier: GPL-2.0-or-later
/* Whether two names, or two open files, are the same image. */
#include <qchain/ident.h>

#include <errno.h>

struct image_ident image_ident_from(const struct stat *st)
{
	bool blockdev = S_ISBLK(st->st_mode);

	return (struct image_ident){ .dev = blockdev ? st->st_rdev : st->st_dev,
				     .ino = blockdev ? 0 : st->st_ino };
}

int image_ident_of(const char *path, struct image_ident *result)
{
	struct stat st;

	if (stat(path, &st))
		return -errno;
	*result = image_ident_from(&st);
	return 0;
}

bool image_ident_same(const struct image_ident *a, const struct image_ident *b)
{
	return a->dev == b->dev && a->ino == b->ino;
}
