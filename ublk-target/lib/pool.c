// SPDX-License-Identifier: GPL-2.0-or-later
/* Objects of one size, kept for the next one who needs one. */
#include <assert.h>
#include <qchain/pool.h>
#include <stdlib.h>
#include <string.h>

#if defined(__SANITIZE_ADDRESS__)
#define KEEPS 0
#elif defined(__has_feature)
#define KEEPS !__has_feature(address_sanitizer)
#else
#define KEEPS 1
#endif

void pool_init(struct pool *pool, size_t bytes, u32 max)
{
	assert(bytes >= sizeof(void *));
	*pool = (struct pool){ .bytes = bytes, .max = KEEPS ? max : 0 };
}

void *pool_get(struct pool *pool)
{
	void *object = pool->first;

	if (!object)
		return calloc(1, pool->bytes);
	pool->first = *(void **)object;
	pool->nr--;
	return memset(object, 0, pool->bytes);
}

void pool_put(struct pool *pool, void *object)
{
	if (!object || pool->nr == pool->max) {
		free(object);
		return;
	}
	*(void **)object = pool->first;
	pool->first = object;
	pool->nr++;
}

void pool_exit(struct pool *pool)
{
	pool->max = 0;
	while (pool->first) {
		void *object = pool->first;

		pool->first = *(void **)object;
		free(object);
	}
	pool->nr = 0;
}
