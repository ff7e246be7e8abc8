// SPDX-License-Identifier: GPL-2.0-or-later
/* A mutator that knows how qcow2 looks: big-endian fields at multiples of four. */
#include "fuzz.h"

#include <endian.h>
#include <string.h>

size_t LLVMFuzzerMutate(u8 *data, size_t size, size_t max_size);
size_t LLVMFuzzerCustomMutator(u8 *data, size_t size, size_t max_size, unsigned int seed);

static u32 next(u32 *seed)
{
	*seed = *seed * 1664525u + 1013904223u;
	return *seed >> 8;
}

/* A value that a table entry or an offset of a small image might have. */
static u64 likely_value(u32 *seed, size_t size)
{
	u64 v = (u64)(next(seed) % (size / 512 + 2)) * 512;

	switch (next(seed) % 8) {
	case 0:
		return v | 1ull << 63;
	case 1:
		return v | 1ull << 62 | (u64)(next(seed) % 8) << 61;
	case 2:
		return v | 1;
	case 3:
		return next(seed) % 70;
	case 4:
		return ~0ull >> next(seed) % 64;
	case 5:
		return (u64)next(seed) << 32 | next(seed);
	default:
		return v;
	}
}

size_t LLVMFuzzerCustomMutator(u8 *data, size_t size, size_t max_size, unsigned int seed)
{
	u32 n, random = seed;
	size_t at;

	if (size < 600 || next(&random) % 3 == 0)
		return LLVMFuzzerMutate(data, size, max_size);
	for (n = 1 + next(&random) % 4; n; n--) {
		/* half of the time the header, its extensions included */
		at = next(&random) % (next(&random) % 2 ? 600 : size - 8);
		at &= ~(size_t)3;
		if (next(&random) % 3) {
			__be64 v = htobe64(likely_value(&random, size));

			memcpy(data + (at & ~(size_t)7), &v, sizeof(v));
		} else {
			__be32 v = htobe32(likely_value(&random, size));

			memcpy(data + at, &v, sizeof(v));
		}
	}
	return size;
}
