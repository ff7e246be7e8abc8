/* SPDX-License-Identifier: GPL-2.0-or-later OR MIT */
/* One refcount in a refcount block as it lies on disk, of any width. */
#ifndef QCOW2_REFBITS_H
#define QCOW2_REFBITS_H

#include <endian.h>
#include <qchain/types.h>
#include <string.h>

/* The largest refcount of a width of 2^@order bits. */
static inline u64 refcount_max(u32 order)
{
	return order == 6 ? ~0ull : (1ull << (1u << order)) - 1;
}

static inline u64 refcount_get(const u8 *block, u32 order, u64 index)
{
	u64 value = 0;
	u32 bytes;

	if (order < 3) {
		/* Less than a byte: the lowest bits come first. */
		u32 bits = 1u << order;
		u64 bit = index << order;

		return block[bit >> 3] >> (bit & 7) & ((1u << bits) - 1);
	}
	bytes = 1u << (order - 3);
	memcpy((u8 *)&value + sizeof(value) - bytes, block + index * bytes, bytes);
	return be64toh(value);
}

/* @value must fit into the width. */
static inline void refcount_set(u8 *block, u32 order, u64 index, u64 value)
{
	u32 bytes;

	if (order < 3) {
		u64 bit = index << order;
		u8 mask = ((1u << (1u << order)) - 1) << (bit & 7);

		block[bit >> 3] = (block[bit >> 3] & ~mask) | (value << (bit & 7) & mask);
		return;
	}
	bytes = 1u << (order - 3);
	value = htobe64(value);
	memcpy(block + index * bytes, (u8 *)&value + sizeof(value) - bytes, bytes);
}

#endif
