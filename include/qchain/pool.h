/* SPDX-License-Identifier: GPL-2.0-or-later OR MIT */
/* Objects of one size that come and go with every request. */
#ifndef QCHAIN_POOL_H
#define QCHAIN_POOL_H

#include <stddef.h>

#include <qchain/types.h>

/*
 * struct pool - objects of @bytes; at most @max that are not in use are kept
 *
 * One thread's: the metadata loop's, or a test's. The allocator keeps few of a size
 * at hand, and a batch of requests needs more at once. With AddressSanitizer none are
 * kept, so that it sees each use of one that was put back.
 */
struct pool {
	size_t bytes;
	u32 max;
	u32 nr; /* kept */
	void *first; /* of them; each begins with the pointer to the next */
};

/* pool_init - @bytes: room for a pointer at least. Allocates nothing. */
void pool_init(struct pool *pool, size_t bytes, u32 max);
/* Frees those that are kept; one that is put back later is freed at once. */
void pool_exit(struct pool *pool);

/* pool_get - an object full of zeroes; NULL: out of memory. */
void *pool_get(struct pool *pool);
/* pool_put - @object_owned came from pool_get(); NULL is allowed. */
void pool_put(struct pool *pool, void *object_owned);

#endif
