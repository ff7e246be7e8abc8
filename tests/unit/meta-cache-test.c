// SPDX-License-Identifier: GPL-2.0-or-later
/* Cached blocks: misses and their waiters, errors, what is dropped and what stays. */
#include "meta-fixture.h"

static void test_miss(void)
{
	struct note_wait a = a_wait('a', 5000), b = a_wait('b', 8191);
	struct meta_block *block = NULL;

	meta_start(64);
	memset((u8 *)io_mock_dev_bytes(disk) + 4096, 0x5a, 4096);
	CU_ASSERT_EQUAL(meta_get(meta, 4096, &a.wait, &block), -EAGAIN);
	CU_ASSERT_EQUAL(meta_get(meta, 6000, &b.wait, &block), -EAGAIN);
	expect_log("read disk 4096+4096");
	CU_ASSERT_FALSE(meta_idle(meta));
	end_first(0);
	expect_log("wait a 0, wait b 0");
	CU_ASSERT(meta_idle(meta));
	CU_ASSERT_EQUAL_FATAL(meta_get(meta, 8191, &a.wait, &block), 0);
	expect_log("");
	CU_ASSERT_EQUAL(block->offset, 4096);
	CU_ASSERT_EQUAL(block_word(block, 0), 0x5a5a5a5a5a5a5a5a);
	CU_ASSERT_EQUAL(meta_block_bytes(meta), BLOCK_BYTES);
	meta_stop();
}

/* Whoever waits hears of the error; who comes later tries the disk again. */
static void test_read_error(void)
{
	struct note_wait a = a_wait('a', 4096), b = a_wait('b', 4096);
	struct meta_block *block = NULL;

	meta_start(64);
	io_mock_fail(mock, 1, -EIO);
	CU_ASSERT_EQUAL(meta_get(meta, 4096, &a.wait, &block), -EAGAIN);
	CU_ASSERT_EQUAL(meta_get(meta, 4096, &b.wait, &block), -EAGAIN);
	end_first(0);
	expect_log("read disk 4096+4096, wait a -5, wait b -5");
	a.offset = 0;
	CU_ASSERT_EQUAL(meta_get(meta, 4096, &a.wait, &block), -EAGAIN);
	end_first(0);
	CU_ASSERT_EQUAL(meta_get(meta, 4096, &a.wait, &block), 0);
	meta_stop();
}

static bool is_cached(u64 offset)
{
	struct meta_wait wait = { .fn = nothing_over };
	struct meta_block *block;
	int ret = meta_get(meta, offset, &wait, &block);

	if (ret == -EAGAIN)
		end_first(0);
	return !ret;
}

/* The least recently used one goes. */
static void test_lru(void)
{
	u32 i;

	meta_start(4);
	for (i = 0; i < 4; i++)
		get_block(i * BLOCK_BYTES);
	get_block(0);
	get_block(0); /* the newest one, asked for again */
	get_block(4 * BLOCK_BYTES);
	CU_ASSERT(is_cached(0));
	CU_ASSERT(is_cached(2 * BLOCK_BYTES));
	CU_ASSERT(is_cached(3 * BLOCK_BYTES));
	CU_ASSERT(is_cached(4 * BLOCK_BYTES));
	CU_ASSERT_FALSE(is_cached(BLOCK_BYTES));
	CU_ASSERT_FALSE(is_cached(0)); /* went for it */
	meta_stop();
}

/* Pinned and dirty blocks stay, however small the cache is. */
static void test_pinned_and_dirty_stay(void)
{
	struct meta_block *pinned, *dirty;
	u32 i;

	meta_start(2);
	pinned = get_block(0);
	meta_pin(pinned);
	dirty = get_block(BLOCK_BYTES);
	change_word(dirty, 0, 42);
	for (i = 2; i < 10; i++)
		get_block(i * BLOCK_BYTES);
	CU_ASSERT_EQUAL(get_block(0), pinned);
	CU_ASSERT_EQUAL(get_block(BLOCK_BYTES), dirty);
	CU_ASSERT_EQUAL(block_word(dirty, 0), 42);
	meta_unpin(pinned);
	meta_housekeep(meta);
	run_dry();
	CU_ASSERT_EQUAL(disk_word(BLOCK_BYTES), 42);
	for (i = 2; i < 10; i++)
		get_block(i * BLOCK_BYTES);
	CU_ASSERT_FALSE(is_cached(0));
	CU_ASSERT_FALSE(is_cached(BLOCK_BYTES));
	meta_stop();
}

/* A set holds its block until the transaction has ended. */
static void test_set_pins(void)
{
	struct meta_block *table;
	struct note_join j;
	u32 i;

	meta_start(2);
	table = get_block(0);
	set_word(table, 8, 3);
	do_join(&j, 'a');
	for (i = 1; i < 6; i++)
		get_block(i * BLOCK_BYTES);
	CU_ASSERT_EQUAL(get_block(0), table);
	meta_kick(meta);
	run_dry();
	CU_ASSERT_EQUAL(table->pins, 0);
	CU_ASSERT_EQUAL(disk_word(8), 3);
	meta_stop();
}

/* Forgotten, dirty or not: what it held was of a cluster that is gone. */
static void test_forget(void)
{
	meta_start(64);
	get_block(0);
	change_word(get_block(BLOCK_BYTES), 0, 9);
	get_block(2 * BLOCK_BYTES);
	meta_forget(meta, 0, 2 * BLOCK_BYTES);
	CU_ASSERT_FALSE(is_cached(0));
	CU_ASSERT_FALSE(is_cached(BLOCK_BYTES));
	CU_ASSERT(is_cached(2 * BLOCK_BYTES));
	meta_housekeep(meta);
	run_dry();
	CU_ASSERT_EQUAL(disk_word(BLOCK_BYTES), 0);
	CU_ASSERT(meta_idle(meta));
	meta_stop();
}

struct two_waits {
	struct meta_wait wait;
	u64 offsets[2];
	u32 asked;
	bool both;
};

/* Needs two blocks at once, as a range of refcounts does. */
static void ask_both(struct meta_wait *wait)
{
	struct two_waits *w = container_of(wait, struct two_waits, wait);
	struct meta_block *block;
	u32 i;

	CU_ASSERT_FATAL(++w->asked < 100);
	for (i = 0; i < 2; i++)
		if (meta_get(meta, w->offsets[i], wait, &block))
			return;
	w->both = true;
}

/* The cache is full of what cannot be dropped: two more blocks still meet. */
static void test_two_at_once(void)
{
	struct two_waits w = { .wait = { .fn = ask_both }, .offsets = { 0, BLOCK_BYTES } };
	struct meta_block *pinned[2];
	u32 i;

	meta_start(2);
	for (i = 0; i < 2; i++) {
		pinned[i] = get_block((i + 4) * BLOCK_BYTES);
		meta_pin(pinned[i]);
	}
	ask_both(&w.wait);
	run_dry();
	CU_ASSERT(w.both);
	meta_unpin(pinned[0]);
	meta_unpin(pinned[1]);
	meta_stop();
}

/* Statistics: what a benchmark counts. */
static void test_stats(void)
{
	struct meta_stats stats;
	struct note_join j;
	u32 i;

	meta_start(64);
	for (i = 0; i < 5; i++) {
		set_word(get_block(i * BLOCK_BYTES), 0, i);
		do_join(&j, 'a');
		meta_kick(meta);
		run_dry();
	}
	meta_get_stats(meta, &stats);
	CU_ASSERT_EQUAL(stats.block_reads, 5);
	CU_ASSERT_EQUAL(stats.block_writes, 5);
	CU_ASSERT_EQUAL(stats.commits, 5);
	CU_ASSERT_EQUAL(stats.flushes, 5); /* one each: the other one is the guest's own */
	meta_stop();
}

int main(void)
{
	static const struct unit_test tests[] = {
		{ "a miss", test_miss },
		{ "a read error", test_read_error },
		{ "least recently used", test_lru },
		{ "pinned and dirty blocks stay", test_pinned_and_dirty_stay },
		{ "a set pins its block", test_set_pins },
		{ "forget", test_forget },
		{ "two blocks at once", test_two_at_once },
		{ "statistics", test_stats },
		{ NULL, NULL },
	};

	return mock_main("meta-cache", tests);
}
