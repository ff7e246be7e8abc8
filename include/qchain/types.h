/* SPDX-License-Identifier: GPL-2.0-or-later OR MIT */
/* Integer names and the few macros that every room uses. */
#ifndef QCHAIN_TYPES_H
#define QCHAIN_TYPES_H

#include <linux/types.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <urcu/compiler.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int32_t s32;
typedef int64_t s64;

#define container_of(ptr, type, member) caa_container_of(ptr, type, member)
#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

#define QC_PASTE_(a, b) a##b
#define QC_PASTE(a, b) QC_PASTE_(a, b)
/* Each use has variables of its own, so that they nest without shadowing. */
#define QC_PICK_(a, b, op, x, y)                                               \
	({                                                                     \
		__typeof__(a) x = (a);                                         \
		__typeof__(b) y = (b);                                         \
		x op y ? x : y;                                                \
	})
#define QC_PICK(a, b, op, n) QC_PICK_(a, b, op, QC_PASTE(pick_x_, n), QC_PASTE(pick_y_, n))
#define min(a, b) QC_PICK(a, b, <, __COUNTER__)
#define max(a, b) QC_PICK(a, b, >, __COUNTER__)

#define DIV_ROUND_UP(n, d) (((n) + (d) - 1) / (d))
/* @align is a power of two; computed in u64 so that no mask is cut short. */
#define ALIGN_DOWN(x, align) ((u64)(x) & ~((u64)(align) - 1))
#define ALIGN_UP(x, align) ALIGN_DOWN((u64)(x) + ((u64)(align) - 1), align)
#define IS_ALIGNED(x, align) (((u64)(x) & ((u64)(align) - 1)) == 0)

#define SECTOR_SHIFT 9
#define SECTOR_SIZE 512u

#define KiB 1024ull
#define MiB (1024ull * KiB)
#define GiB (1024ull * MiB)
#define TiB (1024ull * GiB)

static inline bool is_power_of_2(u64 n)
{
	return n && !(n & (n - 1));
}

/* Do [a, a + a_len) and [b, b + b_len) share a byte? */
static inline bool ranges_overlap(u64 a, u64 a_len, u64 b, u64 b_len)
{
	return a < b + b_len && b < a + a_len;
}

#endif
