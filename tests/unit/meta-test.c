// SPDX-License-Identifier: GPL-2.0-or-later
/* THE write order (rule B1), step by step, and what each failing step leaves. */
#include "meta-fixture.h"

/* Where things lie on the disk of these tests. */
#define TABLE 0x4000u
#define TABLE2 0x5000u
#define COUNTS 0x8000u
#define FRESH 0x10000u

/* ---- the order ------------------------------------------------------------ */

/* Everything that one transaction can hold; the refcount's sector is the second. */
static void fill_txn(struct meta_block *table, struct meta_block *counts, struct note_join *j)
{
	change_word(counts, 600, 0x11);
	add_fresh(FRESH, 0x22, 8192);
	set_word(table, 16, 0x33);
	do_join(j, 'a');
}

static void test_order(void)
{
	struct meta_block *table, *counts;
	struct note_join j;

	meta_start(64);
	table = get_block(TABLE);
	counts = get_block(COUNTS);
	fill_txn(table, counts, &j);
	expect_log("");
	meta_kick(meta);
	expect_log("write disk 65536+8192, write disk 33280+512");
	/* in any order, but all of them before the flush */
	io_mock_end(mock, 1, 0);
	loop_run_once(mock_loop, false);
	expect_log("");
	CU_ASSERT_EQUAL(disk_word(COUNTS + 600), 0x11);
	end_first(0);
	expect_log("flush disk");
	CU_ASSERT_EQUAL(disk_word(FRESH + 8184), 0x2222222222222222);
	CU_ASSERT_EQUAL(disk_word(TABLE + 16), 0);
	end_first(0);
	expect_log("write disk 16384+512");
	CU_ASSERT_EQUAL(block_word(table, 16), 0x33); /* at once */
	CU_ASSERT_EQUAL(linked_word(table, 16), 0); /* what the disk says */
	end_first(0);
	expect_log("join a, linked");
	CU_ASSERT_EQUAL(linked_word(table, 16), 0x33);
	CU_ASSERT_EQUAL(disk_word(TABLE + 16), 0x33);
	CU_ASSERT_EQUAL(j.times, 1);
	CU_ASSERT(meta_idle(meta));
	meta_stop();
}

/* A fresh table may be filled until its transaction is committed. */
static void test_fresh_is_filled_late(void)
{
	struct meta_block *table;
	struct note_join j[2];

	meta_start(64);
	add_table(FRESH, 0x22, 8192);
	table = get_block(FRESH + 4096);
	CU_ASSERT_EQUAL(block_word(table, 8), 0x2222222222222222);
	set_word(table, 512, 0x55);
	do_join(&j[0], 'a');
	meta_kick(meta);
	/* the next transaction changes it in the usual way */
	set_word(table, 512, 0x66);
	do_join(&j[1], 'b');
	CU_ASSERT_EQUAL(block_word(table, 512), 0x66);
	/* neither is linked: as it came */
	CU_ASSERT_EQUAL(linked_word(table, 512), 0x2222222222222222);
	meta_kick(meta);
	run_dry();
	CU_ASSERT_EQUAL(linked_word(table, 512), 0x66);
	expect_log("write disk 65536+8192, flush disk, join a, linked, flush disk, "
		   "write disk 70144+512, join b, linked");
	CU_ASSERT_EQUAL(disk_word(FRESH), 0x2222222222222222);
	CU_ASSERT_EQUAL(disk_word(FRESH + 4096 + 512), 0x66);
	CU_ASSERT_EQUAL(table->pins, 0);
	meta_stop();
}

/* It is in the cache until the disk has it, however small the cache is. */
static void test_fresh_is_pinned(void)
{
	struct meta_block *table;
	struct note_join j;
	u32 i;

	meta_start(2);
	add_table(FRESH, 0x22, 4096);
	do_join(&j, 'a');
	table = get_block(FRESH);
	for (i = 0; i < 5; i++)
		get_block(i * BLOCK_BYTES);
	CU_ASSERT_EQUAL(get_block(FRESH), table);
	CU_ASSERT_EQUAL(block_word(table, 0), 0x2222222222222222);
	meta_kick(meta);
	run_dry();
	CU_ASSERT_EQUAL(table->pins, 0);
	meta_stop();
}

/* Sets of one transaction in one block are one write; the later one wins. */
static void test_sets_share_a_write(void)
{
	struct meta_block *table, *table2;
	struct note_join j[2];

	meta_start(64);
	table = get_block(TABLE);
	table2 = get_block(TABLE2);
	set_word(table, 8, 1);
	do_join(&j[0], 'a');
	set_word(table, 8, 2);
	set_word(table, 1032, 3);
	set_word(table2, 4088, 4);
	do_join(&j[1], 'b');
	meta_kick(meta);
	run_dry();
	expect_log("flush disk, write disk 16384+1536, write disk 24064+512, join a, join b, "
		   "linked");
	CU_ASSERT_EQUAL(disk_word(TABLE + 8), 2);
	CU_ASSERT_EQUAL(disk_word(TABLE + 1032), 3);
	CU_ASSERT_EQUAL(disk_word(TABLE2 + 4088), 4);
	meta_stop();
}

/* Only the changed sectors of a dirty block, and what lies between them. */
static void test_dirty_sectors(void)
{
	struct meta_block *counts;

	meta_start(64);
	counts = get_block(COUNTS);
	change_word(counts, 508, 7); /* across a sector's border */
	meta_housekeep(meta);
	run_dry();
	expect_log("write disk 32768+1024, flush disk, linked");
	change_word(counts, 4088, 8);
	meta_housekeep(meta);
	run_dry();
	expect_log("write disk 36352+512, flush disk, linked");
	CU_ASSERT(meta_idle(meta));
	meta_stop();
}

/*
 * While one transaction commits the next one collects. The sector that both
 * change is written for the first one without the entries of the second.
 */
static void test_two_batches(void)
{
	struct meta_block *table;
	struct note_join a, b;
	u64 seq;

	meta_start(64);
	table = get_block(TABLE);
	seq = meta_open_seq(meta);
	set_word(table, 0, 0xaa);
	do_join(&a, 'a');
	meta_kick(meta);
	CU_ASSERT_NOT_EQUAL(meta_open_seq(meta), seq);
	set_word(table, 8, 0xbb); /* during the flush of a */
	CU_ASSERT_EQUAL(block_word(table, 8), 0xbb);
	add_fresh(FRESH, 0x22, 4096);
	do_join(&b, 'b');
	meta_kick(meta);
	expect_log("flush disk");
	end_first(0);
	expect_log("write disk 16384+512");
	set_word(table, 16, 0xcc); /* and during its last write */
	end_first(0);
	expect_log("join a, linked, write disk 65536+4096");
	CU_ASSERT_EQUAL(disk_word(TABLE), 0xaa);
	CU_ASSERT_EQUAL(disk_word(TABLE + 8), 0);
	end_first(0);
	expect_log("flush disk");
	CU_ASSERT_EQUAL(disk_word(TABLE + 8), 0);
	end_first(0);
	expect_log("write disk 16384+512");
	end_first(0);
	expect_log("join b, linked");
	CU_ASSERT_EQUAL(disk_word(TABLE), 0xaa);
	CU_ASSERT_EQUAL(disk_word(TABLE + 8), 0xbb);
	CU_ASSERT_EQUAL(disk_word(TABLE + 16), 0xcc);
	meta_stop();
}

/* Nothing open: nothing to commit, now or when the present commit has ended. */
static void test_kick_with_nothing(void)
{
	struct note_join j;

	meta_start(64);
	meta_kick(meta);
	expect_log("");
	do_join(&j, 'a');
	meta_kick(meta);
	meta_kick(meta);
	run_dry();
	expect_log("flush disk, join a, linked");
	meta_stop();
}

struct chained_join {
	struct note_join first;
	struct note_join second;
	struct meta_block *table;
};

static void join_again(struct meta_join *join, int error)
{
	struct chained_join *c = container_of(join, struct chained_join, first.join);

	join_over(join, error);
	set_word(c->table, 24, 0xdd);
	do_join(&c->second, 'b');
	meta_kick(meta);
}

/* The callbacks of one transaction fill and kick the next one. */
static void test_kick_from_a_join(void)
{
	struct chained_join c;

	meta_start(64);
	c.table = get_block(TABLE);
	do_join(&c.first, 'a');
	c.first.join.fn = join_again;
	meta_kick(meta);
	run_dry();
	expect_log("flush disk, join a, flush disk, linked, write disk 16384+512, join b, linked");
	meta_stop();
}

/* A fresh table replaces what the cache knew of its place. */
static void test_fresh_over_cached(void)
{
	struct note_join j;

	meta_start(64);
	CU_ASSERT_EQUAL(block_word(get_block(FRESH + 4096), 0), 0);
	add_fresh(FRESH, 0x22, 8192);
	do_join(&j, 'a');
	meta_kick(meta);
	run_dry();
	CU_ASSERT_EQUAL(block_word(get_block(FRESH + 4096), 0), 0x2222222222222222);
	meta_stop();
}

/* The same, while the old content is being read. */
static void test_fresh_over_loading(void)
{
	struct note_wait w = a_wait('w', 0);
	struct meta_block *block;
	struct note_join j;

	meta_start(64);
	CU_ASSERT_EQUAL(meta_get(meta, FRESH, &w.wait, &block), -EAGAIN);
	add_fresh(FRESH, 0x22, 4096);
	do_join(&j, 'a');
	meta_kick(meta);
	run_dry();
	CU_ASSERT_EQUAL(block_word(get_block(FRESH), 0), 0x2222222222222222);
	meta_stop();
}

/* A block may be changed in place while a set of it is on its way. */
static void test_dirty_beside_a_set(void)
{
	struct meta_block *table;
	struct note_join j;

	meta_start(64);
	table = get_block(TABLE);
	set_word(table, 0, 0xaa);
	do_join(&j, 'a');
	meta_kick(meta);
	end_first(0); /* the flush: the set is being written */
	change_word(table, 2048, 0xbb);
	run_dry();
	CU_ASSERT_EQUAL(block_word(table, 0), 0xaa);
	CU_ASSERT_EQUAL(block_word(table, 2048), 0xbb);
	CU_ASSERT_EQUAL(meta_txn_set(meta, table, 8, "12345678", 8), -EUCLEAN);
	meta_housekeep(meta);
	run_dry();
	CU_ASSERT_EQUAL(disk_word(TABLE), 0xaa);
	CU_ASSERT_EQUAL(disk_word(TABLE + 2048), 0xbb);
	meta_stop();
}

/* ---- unmaps --------------------------------------------------------------- */

static void unmap_one(struct meta_block *table, struct note_unmap *u, struct note_join *j)
{
	set_word(table, 0, 0);
	do_unmap(u, 'u');
	do_join(j, 'a');
	meta_kick(meta);
	run_dry();
	expect_log("flush disk, write disk 16384+512, join a, linked");
	CU_ASSERT_EQUAL(u->times, 0);
	CU_ASSERT_FALSE(meta_idle(meta));
}

/* Its own flush came before its entries: only the next one makes it durable. */
static void test_unmap_waits_for_the_next_flush(void)
{
	struct meta_block *table;
	struct note_unmap u;
	struct note_join j[2];

	meta_start(64);
	table = get_block(TABLE);
	unmap_one(table, &u, &j[0]);
	set_word(table, 8, 1);
	do_join(&j[1], 'b');
	meta_kick(meta);
	expect_log("flush disk");
	CU_ASSERT_EQUAL(u.times, 0);
	end_first(0);
	expect_log("unmap u, write disk 16384+512");
	run_dry();
	expect_log("join b, linked");
	CU_ASSERT_EQUAL(u.times, 1);
	CU_ASSERT_EQUAL(u.error, 0);
	meta_stop();
}

/* Nobody writes any more: housekeeping flushes. */
static void test_unmap_housekept(void)
{
	struct note_unmap u;
	struct note_join j;

	meta_start(64);
	unmap_one(get_block(TABLE), &u, &j);
	io_mock_advance(mock, HOUSEKEEP_NS - 1);
	run_dry();
	expect_log("");
	io_mock_advance(mock, 1);
	run_dry();
	expect_log("flush disk, unmap u, linked");
	CU_ASSERT(meta_idle(meta));
	io_mock_advance(mock, 10 * HOUSEKEEP_NS);
	run_dry();
	expect_log("");
	meta_stop();
}

/* ---- housekeeping --------------------------------------------------------- */

static void test_dirty_housekept(void)
{
	struct meta_block *counts;

	meta_start(64);
	counts = get_block(COUNTS);
	CU_ASSERT(meta_idle(meta));
	change_word(counts, 0, 5);
	CU_ASSERT_FALSE(meta_idle(meta));
	io_mock_advance(mock, HOUSEKEEP_NS);
	run_dry();
	expect_log("write disk 32768+512, flush disk, linked");
	CU_ASSERT_EQUAL(disk_word(COUNTS), 5);
	CU_ASSERT(meta_idle(meta));
	meta_stop();
}

/* Changed again while it is on its way: not lost, and not written twice at a time. */
static void test_dirty_again(void)
{
	struct meta_block *counts;

	meta_start(64);
	counts = get_block(COUNTS);
	change_word(counts, 0, 5);
	meta_housekeep(meta);
	change_word(counts, 8, 6);
	expect_log("write disk 32768+512");
	end_all();
	CU_ASSERT_EQUAL(disk_word(COUNTS), 5);
	CU_ASSERT_EQUAL(disk_word(COUNTS + 8), 0);
	run_dry();
	CU_ASSERT_FALSE(meta_idle(meta));
	io_mock_advance(mock, HOUSEKEEP_NS);
	run_dry();
	CU_ASSERT_EQUAL(disk_word(COUNTS + 8), 6);
	CU_ASSERT(meta_idle(meta));
	meta_stop();
}

/* Step 1 fails for a while: it is tried again, and nothing is given up. */
static void test_housekeeping_retries(void)
{
	struct meta_block *counts;

	meta_start(64);
	counts = get_block(COUNTS);
	change_word(counts, 0, 5);
	io_mock_fail(mock, 1, -EIO);
	io_mock_advance(mock, HOUSEKEEP_NS);
	run_dry();
	expect_log("write disk 32768+512");
	CU_ASSERT_FALSE(meta_idle(meta));
	io_mock_advance(mock, RETRY_NS);
	run_dry();
	expect_log("write disk 32768+512, flush disk, linked");
	CU_ASSERT(meta_idle(meta));
	meta_stop();
}

/* A device that takes no writes at all is given up: stopping must come to an end. */
static void test_dead_device(void)
{
	u32 i;

	meta_start(64);
	change_word(get_block(COUNTS), 0, 5);
	for (i = 0; i < 10000 && !meta_idle(meta); i++) {
		meta_housekeep(meta);
		if (io_mock_pending(mock))
			end_first(-EIO);
	}
	CU_ASSERT(meta_idle(meta));
	CU_ASSERT_PTR_NOT_NULL(strstr(io_mock_log(mock), "failed -5"));
	CU_ASSERT_EQUAL(disk_word(COUNTS), 0);
	meta_stop();
}

/* ---- the n-th I/O fails --------------------------------------------------- */

/* Step 1 (the fresh table, the refcounts): tried again until the disk takes it. */
static void fail_step_1(u32 n)
{
	struct meta_block *table, *counts;
	struct note_flush f;
	struct note_join j[2];

	meta_start(64);
	table = get_block(TABLE);
	counts = get_block(COUNTS);
	fill_txn(table, counts, &j[0]);
	io_mock_fail(mock, n, -ENOSPC);
	meta_kick(meta);
	run_dry();
	expect_log("write disk 65536+8192, write disk 33280+512");
	CU_ASSERT_EQUAL(block_word(table, 16), 0x33);
	CU_ASSERT_EQUAL(disk_word(TABLE + 16), 0);
	/* what joins meanwhile is not part of it; a flush waits for both */
	set_word(table, 24, 0x44);
	do_join(&j[1], 'b');
	do_flush(&f, 'f');
	run_dry();
	expect_log("");
	io_mock_advance(mock, RETRY_NS);
	run_dry();
	expect_log("write disk 65536+8192, write disk 33280+512, flush disk, "
		   "write disk 16384+512, join a, linked, "
		   "flush disk, write disk 16384+512, join b, linked, flush disk, flushed f");
	CU_ASSERT_EQUAL(disk_word(COUNTS + 600), 0x11);
	CU_ASSERT_EQUAL(disk_word(FRESH), 0x2222222222222222);
	CU_ASSERT_EQUAL(disk_word(TABLE + 16), 0x33);
	CU_ASSERT(meta_idle(meta));
	meta_stop();
}

static void test_step_1_fails(void)
{
	fail_step_1(1);
	fail_step_1(2);
}

/* After the flush or an entry failed nothing is written any more, by anybody. */
static void expect_failed(struct meta_block *table)
{
	struct note_flush f;
	struct note_join j;
	struct note_unmap u;

	set_word(table, 24, 0x77);
	do_join(&j, 'b');
	do_unmap(&u, 'v');
	do_flush(&f, 'f');
	meta_kick(meta);
	run_dry();
	expect_log("flushed f -5, join b -5, linked, unmap v -5");
	meta_housekeep(meta);
	io_mock_advance(mock, 2 * HOUSEKEEP_NS);
	run_dry();
	expect_log("");
	CU_ASSERT(meta_idle(meta));
	CU_ASSERT_EQUAL(disk_word(table->offset + 24), 0);
	CU_ASSERT_EQUAL(block_word(table, 24), 0x77); /* read until the end */
}

static void test_flush_fails(void)
{
	struct meta_block *table, *counts;
	struct note_join j;

	meta_start(64);
	table = get_block(TABLE);
	counts = get_block(COUNTS);
	fill_txn(table, counts, &j);
	io_mock_fail(mock, 3, -EIO);
	meta_kick(meta);
	run_dry();
	expect_log("write disk 65536+8192, write disk 33280+512, flush disk, failed -5, "
		   "join a -5, linked");
	CU_ASSERT_EQUAL(disk_word(TABLE + 16), 0);
	expect_failed(table);
	meta_stop();
}

static void test_entry_fails(void)
{
	struct meta_block *table, *table2;
	struct note_join j;

	meta_start(64);
	table = get_block(TABLE);
	table2 = get_block(TABLE2);
	set_word(table, 16, 1);
	set_word(table2, 16, 2);
	do_join(&j, 'a');
	io_mock_fail(mock, 2, -EIO);
	meta_kick(meta);
	run_dry();
	expect_log("flush disk, write disk 16384+512, write disk 20480+512, failed -5, "
		   "join a -5, linked");
	expect_failed(table);
	meta_stop();
}

/* What collected meanwhile hears of the failure, too; and failed() is called once. */
static void test_failure_with_a_batch_behind(void)
{
	struct note_join a, b;
	struct meta_block *table;

	meta_start(64);
	table = get_block(TABLE);
	set_word(table, 0, 1);
	do_join(&a, 'a');
	io_mock_fail(mock, 2, -EIO);
	meta_kick(meta);
	set_word(table, 0, 2);
	do_join(&b, 'b');
	meta_kick(meta);
	run_dry();
	expect_log("flush disk, write disk 16384+512, failed -5, join a -5, linked, "
		   "join b -5, linked");
	CU_ASSERT_EQUAL(disk_word(TABLE), 0);
	meta_stop();
}

/* Linked, but its flush fails: the unmap is told so, it does not wait for ever. */
static void test_unmap_with_failing_flush(void)
{
	struct meta_block *table;
	struct note_unmap u;
	struct note_join j[2];

	meta_start(64);
	table = get_block(TABLE);
	unmap_one(table, &u, &j[0]);
	io_mock_fail(mock, 1, -EIO);
	do_join(&j[1], 'b');
	meta_kick(meta);
	run_dry();
	CU_ASSERT_EQUAL(u.times, 1);
	CU_ASSERT_EQUAL(u.error, -EIO);
	meta_stop();
}

/* ---- step 4: flushes of the guest ------------------------------------------- */

/* Rule B1: two device flushes when mappings changed, one when not. */
static void test_flush_counts(void)
{
	struct meta_block *table;
	struct note_flush f[2];
	struct meta_stats before, after;

	meta_start(64);
	table = get_block(TABLE);
	set_word(table, 16, 1);
	meta_txn_mark(meta, 7);
	CU_ASSERT_FALSE(meta_clean(meta));
	meta_get_stats(meta, &before);
	do_flush(&f[0], 'f');
	run_dry();
	expect_log("flush disk, write disk 16384+512, linked 7, flush disk, flushed f");
	meta_get_stats(meta, &after);
	CU_ASSERT_EQUAL(after.flushes, before.flushes + 2);
	CU_ASSERT(meta_clean(meta));
	do_flush(&f[1], 'g');
	run_dry();
	expect_log("flush disk, flushed g");
	CU_ASSERT(meta_idle(meta));
	meta_stop();
}

/* Who asks during the commit shares its step 4, who asks during that one does not. */
static void test_flushes_share(void)
{
	struct meta_block *table;
	struct note_flush f[4];

	meta_start(64);
	table = get_block(TABLE);
	set_word(table, 16, 1);
	do_flush(&f[0], 'a');
	do_flush(&f[1], 'b');
	end_first(0);
	expect_log("flush disk, write disk 16384+512");
	do_flush(&f[2], 'c');
	CU_ASSERT_FALSE(meta_idle(meta));
	end_first(0);
	expect_log("linked, flush disk");
	do_flush(&f[3], 'd');
	end_first(0);
	expect_log("flushed a, flushed b, flushed c, flush disk");
	end_first(0);
	expect_log("flushed d");
	meta_stop();
}

/* An entry that joins during a commit needs the next one. */
static void test_flush_behind_a_commit(void)
{
	struct meta_block *table;
	struct note_flush f[2];

	meta_start(64);
	table = get_block(TABLE);
	set_word(table, 16, 1);
	do_flush(&f[0], 'a');
	set_word(table, 24, 2);
	do_flush(&f[1], 'b');
	run_dry();
	expect_log("flush disk, write disk 16384+512, linked, flush disk, flush disk, flushed a, "
		   "write disk 16384+512, linked, flush disk, flushed b");
	CU_ASSERT_EQUAL(disk_word(TABLE + 24), 2);
	meta_stop();
}

static void test_flush_makes_unmaps_durable(void)
{
	struct note_unmap u;
	struct note_join j;
	struct note_flush f;

	meta_start(64);
	unmap_one(get_block(TABLE), &u, &j);
	do_flush(&f, 'f');
	run_dry();
	expect_log("flush disk, unmap u, flushed f");
	CU_ASSERT(meta_idle(meta));
	meta_stop();
}

/* The step that fails, and what the guest is told; later flushes fail, too. */
static void fail_flush(u32 n, const char *log)
{
	struct meta_block *table;
	struct note_flush f[3];
	struct note_unmap u;

	meta_start(64);
	table = get_block(TABLE);
	set_word(table, 16, 1);
	do_unmap(&u, 'u');
	io_mock_fail(mock, n, -EIO);
	do_flush(&f[0], 'a');
	do_flush(&f[1], 'b');
	run_dry();
	expect_log(log);
	CU_ASSERT_EQUAL(u.times, 1);
	CU_ASSERT_EQUAL(u.error, -EIO);
	do_flush(&f[2], 'c');
	run_dry();
	expect_log("flushed c -5");
	CU_ASSERT(meta_idle(meta));
	meta_stop();
}

static void test_failing_flush(void)
{
	fail_flush(1, "flush disk, failed -5, flushed a -5, flushed b -5, linked, unmap u -5");
	fail_flush(2, "flush disk, write disk 16384+512, failed -5, flushed a -5, flushed b -5, "
		      "linked, unmap u -5");
	fail_flush(3, "flush disk, write disk 16384+512, linked, flush disk, failed -5, "
		      "unmap u -5, flushed a -5, flushed b -5");
}

/* Step 4 of one transaction fails while the next one commits: that ends, too. */
static void test_failing_flush_beside_a_commit(void)
{
	struct meta_block *table;
	struct note_flush f[2];

	meta_start(64);
	table = get_block(TABLE);
	set_word(table, 16, 1);
	do_flush(&f[0], 'a');
	end_first(0);
	set_word(table, 24, 2);
	do_flush(&f[1], 'b');
	end_first(0);
	expect_log("flush disk, write disk 16384+512, linked, flush disk, flush disk");
	end_first(-EIO);
	expect_log("failed -5, flushed b -5, flushed a -5");
	end_first(0);
	expect_log("linked");
	CU_ASSERT_EQUAL(disk_word(TABLE + 24), 0);
	CU_ASSERT(meta_idle(meta));
	meta_stop();
}

/* Old enough, or large enough: committed without a flush. */
static void test_kick_later(void)
{
	struct meta_block *table;
	u32 i;

	meta_start(64);
	table = get_block(TABLE);
	set_word(table, 16, 1);
	meta_kick_later(meta);
	run_dry();
	expect_log("");
	io_mock_advance(mock, META_OLD_NS);
	run_dry();
	expect_log("flush disk, write disk 16384+512, linked");
	for (i = 0; i < 100000 && !io_mock_pending(mock); i++) {
		set_word(table, 16, 1);
		meta_kick_later(meta);
	}
	CU_ASSERT(i > 1000 && i < 100000);
	run_dry();
	expect_log("flush disk, write disk 16384+512, linked");
	meta_stop();
}

int main(void)
{
	static const struct unit_test tests[] = {
		{ "the order", test_order },
		{ "a fresh table is filled late", test_fresh_is_filled_late },
		{ "a fresh table is pinned", test_fresh_is_pinned },
		{ "sets share a write", test_sets_share_a_write },
		{ "dirty sectors", test_dirty_sectors },
		{ "two batches", test_two_batches },
		{ "kick with nothing open", test_kick_with_nothing },
		{ "kick from a join", test_kick_from_a_join },
		{ "fresh over a cached block", test_fresh_over_cached },
		{ "fresh over a block being read", test_fresh_over_loading },
		{ "dirty beside a set", test_dirty_beside_a_set },
		{ "an unmap waits for the next flush", test_unmap_waits_for_the_next_flush },
		{ "an unmap is housekept", test_unmap_housekept },
		{ "dirty blocks are housekept", test_dirty_housekept },
		{ "dirty again on the way", test_dirty_again },
		{ "housekeeping retries", test_housekeeping_retries },
		{ "a dead device", test_dead_device },
		{ "step 1 fails", test_step_1_fails },
		{ "the flush fails", test_flush_fails },
		{ "an entry fails", test_entry_fails },
		{ "failure with a batch behind", test_failure_with_a_batch_behind },
		{ "an unmap whose flush fails", test_unmap_with_failing_flush },
		{ "device flushes of a guest flush", test_flush_counts },
		{ "flushes share step 4", test_flushes_share },
		{ "a flush behind a commit", test_flush_behind_a_commit },
		{ "a flush makes unmaps durable", test_flush_makes_unmaps_durable },
		{ "a flush that fails", test_failing_flush },
		{ "step 4 fails beside a commit", test_failing_flush_beside_a_commit },
		{ "kick later", test_kick_later },
		{ NULL, NULL },
	};

	return mock_main("meta", tests);
}
