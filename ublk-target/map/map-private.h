/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the files of the map room share. */
#ifndef MAP_PRIVATE_H
#define MAP_PRIVATE_H

#include <qchain/map.h>
#include <uapi/qcow2.h>

/* Does @b, which starts where @a ends, go on where @a stops? */
bool extent_continues(const struct extent *a, const struct extent *b);

/* The part of @e that starts @skip_sect sectors further on. */
struct extent extent_skip(struct extent e, u32 skip_sect);

#endif
