// SPDX-License-Identifier: GPL-2.0-or-later
/* Pools: what comes out is full of zeroes, and no more than the maximum is kept. */
#include "unit.h"

#include <qchain/pool.h>
#include <string.h>

#define OBJECT_BYTES 200u
#define MAX_KEPT 4u
#define NR_OBJECTS (2u * MAX_KEPT)

static bool is_zero(const u8 *object)
{
	u32 i;

	for (i = 0; i < OBJECT_BYTES && !object[i]; i++)
		;
	return i == OBJECT_BYTES;
}

/* Take all, spoil them, put them back. */
static void round_trip(struct pool *pool)
{
	u8 *objects[NR_OBJECTS];
	u32 i, k;

	for (i = 0; i < NR_OBJECTS; i++) {
		objects[i] = pool_get(pool);
		CU_ASSERT_PTR_NOT_NULL_FATAL(objects[i]);
		CU_ASSERT_TRUE(is_zero(objects[i]));
		for (k = 0; k < i; k++)
			CU_ASSERT_PTR_NOT_EQUAL(objects[i], objects[k]);
	}
	CU_ASSERT_EQUAL(pool->nr, 0);
	for (i = 0; i < NR_OBJECTS; i++) {
		memset(objects[i], 0xa5, OBJECT_BYTES);
		pool_put(pool, objects[i]);
	}
}

static void test_zeroes(void)
{
	struct pool pool;

	pool_init(&pool, OBJECT_BYTES, MAX_KEPT);
	round_trip(&pool);
	round_trip(&pool);
	pool_exit(&pool);
}

/* With AddressSanitizer @max is 0. */
static void test_kept(void)
{
	struct pool pool;
	void *object;

	pool_init(&pool, OBJECT_BYTES, MAX_KEPT);
	CU_ASSERT(pool.max == MAX_KEPT || pool.max == 0);
	round_trip(&pool);
	CU_ASSERT_EQUAL(pool.nr, pool.max);
	object = pool_get(&pool);
	pool_exit(&pool);
	CU_ASSERT_EQUAL(pool.nr, 0);
	pool_put(&pool, object); /* comes late: kept no more */
	CU_ASSERT_EQUAL(pool.nr, 0);
	CU_ASSERT_PTR_NULL(pool.first);
}

static void test_nothing(void)
{
	struct pool pool;

	pool_init(&pool, OBJECT_BYTES, MAX_KEPT);
	pool_put(&pool, NULL);
	CU_ASSERT_EQUAL(pool.nr, 0);
	pool_exit(&pool);
}

int main(void)
{
	static const struct unit_test tests[] = {
		{ "zeroes", test_zeroes },
		{ "no more are kept than the maximum", test_kept },
		{ "nothing is put back", test_nothing },
		{ NULL, NULL },
	};

	return unit_main("pool", tests);
}
