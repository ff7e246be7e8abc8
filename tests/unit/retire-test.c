// SPDX-License-Identifier: GPL-2.0-or-later
/* Memory of the map that was unpublished: it waits until a round of grace is worth it. */
#include "../../ublk-target/target/chain-private.h"
#include "mock-loop.h"

#define WINDOW_BITS 20u
#define WINDOW_SECT (1u << WINDOW_BITS >> SECTOR_SHIFT)

static struct chain_target ct;

static void make_target(void)
{
	const struct extent whole = { .kind = EXTENT_NONE };

	ct = (struct chain_target){ .loop = mock_loop };
	grace_init(&ct.grace, mock_loop);
	CU_ASSERT_EQUAL_FATAL(grace_add_loop(&ct.grace, mock_loop), 0);
	CU_ASSERT_EQUAL_FATAL(map_init(&ct.map, 1ull << WINDOW_BITS, WINDOW_BITS, 1ull << 40,
				       NULL), 0);
	CU_ASSERT_EQUAL_FATAL(map_install(&ct.map, 0, &whole, 1, WINDOW_SECT), 0);
}

/* Another content of all sectors but one, each time. */
static void publish(u32 n)
{
	struct map_update u = { .len = SECTOR_SIZE, .extent = { .kind = EXTENT_DATA } };

	u.offset = (u64)(n * 2 % WINDOW_SECT) * SECTOR_SIZE;
	u.extent.host = ((u64)n + 1) * MiB;
	CU_ASSERT_EQUAL_FATAL(map_apply(&ct.map, &u, 1), 0);
	chain_retire(&ct);
}

/* Many publishes ask the loops once. */
static void test_rounds(void)
{
	u64 most = 0;
	u32 n = 0, rounds = 0;

	make_target();
	while (rounds < 3) {
		publish(n++);
		CU_ASSERT(ct.grace.running == !ct.map.retired_bytes);
		most = max(most, ct.map.retired_bytes);
		if (ct.grace.running)
			rounds++;
		run_dry();
		CU_ASSERT_FALSE_FATAL(ct.grace.running);
	}
	CU_ASSERT(most < CHAIN_RETIRE_BYTES);
	CU_ASSERT(n > 30 * rounds);
	map_exit(&ct.map);
	grace_remove_loop(&ct.grace, mock_loop);
}

static const struct unit_test tests[] = {
	{ "a round for many publishes", test_rounds },
	{ NULL, NULL },
};

int main(void)
{
	return mock_main("retire", tests);
}
