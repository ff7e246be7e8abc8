// SPDX-License-Identifier: GPL-2.0-or-later
/* Arithmetic of single extents. */
#include "map-private.h"

static bool extent_has_place(const struct extent *e)
{
	return e->kind == EXTENT_DATA || (e->kind == EXTENT_ZERO && e->flags & EXTENT_PLACE);
}

bool extent_continues(const struct extent *a, const struct extent *b)
{
	if (a->kind != b->kind || a->layer != b->layer || a->flags != b->flags)
		return false;
	if (extent_has_place(a))
		return b->host - a->host == (u64)(b->start - a->start) << SECTOR_SHIFT;
	/* parts of one compressed cluster share its entry; others have no place */
	return a->kind != EXTENT_COMPRESSED || a->host == b->host;
}

struct extent extent_skip(struct extent e, u32 skip_sect)
{
	e.start += skip_sect;
	if (extent_has_place(&e))
		e.host += (u64)skip_sect << SECTOR_SHIFT;
	return e;
}
