// SPDX-License-Identifier: GPL-2.0-or-later
/* Random transactions on a disk that does its work in any order and fails at times. */
#include "../../ublk-target/meta/meta-private.h"
#include "meta-fixture.h"
#include "random.h"

/*
 * Every entry that is set carries the number of its set. A write of a table's
 * sector is looked at when it is submitted: each number in it must be of a
 * transaction whose flush has ended (promises 1 and 2). A fresh table carries
 * the number of the set that names it and must be on the disk by then.
 */
#define TABLES 0x4000u /* where entries are set */
#define NR_TABLES 6u
#define COUNTS 0x20000u /* changed in place */
#define NR_COUNTS 4u
#define FRESH 0x30000u
#define NR_FRESH 64u
#define MAX_SETS 30000u
#define STEPS 6000u
#define ROUNDS 12u

struct set {
	u64 seq; /* of the transaction */
	u64 at; /* on the disk */
	u64 fresh; /* host of the table that it names; 0: none */
	bool joined_ok;
};

struct batch_join {
	struct meta_join join;
	u32 first; /* sets [first, end) */
	u32 end;
};

struct batch_flush {
	struct meta_flush flush;
	u64 seq; /* the last transaction that had joined */
};

struct batch_unmap {
	struct meta_unmap unmap;
	u64 seq;
};

static struct {
	struct rnd r;
	struct set sets[MAX_SETS];
	u32 nr_sets;
	u32 next_fresh;
	u64 fresh_owner[NR_FRESH]; /* the set that named it last */
	u64 covered_seq; /* transactions before it have had their flush */
	u64 flush_seq; /* what the flush under way will cover */
	u64 linked_seq; /* transactions before it are linked */
	u64 flush_linked_seq; /* at the start of the last flush that ended */
	u64 started_linked_seq; /* at the start of the one under way */
	const struct io_op *flush;
	u64 guest_linked_seq; /* at the start of step 4 under way */
	bool guest_flushing;
	u64 last_seq; /* of the last set */
	u32 flushes;
	u64 marked;
	u32 joins;
	u32 unmaps;
	u32 wrong;
	int failed;
	u32 linked;
} s;

static void batch_linked(void *arg, u64 mark)
{
	s.linked++;
	s.wrong += mark && mark <= s.marked;
	s.marked = max(s.marked, mark);
}

static void batch_failed(void *arg, int error)
{
	s.wrong += s.failed != 0;
	s.failed = error;
}

static const struct meta_ops batch_ops = { .linked = batch_linked, .failed = batch_failed };

static void batch_joined(struct meta_join *join, int error)
{
	struct batch_join *j = container_of(join, struct batch_join, join);
	u32 i;

	for (i = j->first; i < j->end; i++) {
		s.sets[i].joined_ok = !error;
		s.linked_seq = max(s.linked_seq, error ? 0 : s.sets[i].seq + 1);
	}
	s.joins--;
	free(j);
}

/* What joined before is linked by the time at which step 4 began. */
static void batch_flushed(struct meta_flush *flush, int error)
{
	struct batch_flush *f = container_of(flush, struct batch_flush, flush);

	s.wrong += !error && f->seq && f->seq >= s.guest_linked_seq;
	s.flushes--;
	free(f);
}

static void flush_some(void)
{
	struct batch_flush *f = calloc(1, sizeof(*f));

	CU_ASSERT_FATAL(f != NULL);
	f->seq = s.last_seq;
	f->flush.fn = batch_flushed;
	s.flushes++;
	meta_flush(meta, &f->flush);
}

/* The flush that makes it durable began after its transaction was linked. */
static void batch_unmapped(struct meta_unmap *unmap, int error)
{
	struct batch_unmap *u = container_of(unmap, struct batch_unmap, unmap);

	s.wrong += !error && u->seq >= max(s.flush_linked_seq, s.guest_linked_seq);
	s.unmaps--;
	free(u);
}

/* ---- what the disk sees --------------------------------------------------- */

static bool in_tables(const struct io_op *op)
{
	return op->type == IO_WRITE && op->offset >= TABLES &&
	       op->offset < TABLES + NR_TABLES * BLOCK_BYTES;
}

static void check_entry(u64 number)
{
	const struct set *set = &s.sets[number];

	s.wrong += set->seq >= s.covered_seq;
	if (set->fresh && s.fresh_owner[(set->fresh - FRESH) / BLOCK_BYTES] == number)
		s.wrong += disk_word(set->fresh) != number;
}

static void check_table_write(const struct io_op *op)
{
	const u64 *words = op->base;
	u32 i;

	for (i = 0; i < op->len / sizeof(u64); i++)
		if (words[i])
			check_entry(words[i]);
}

/* Look at all that is under way; its memory must not change any more, either. */
static void look(void)
{
	u32 i;

	for (i = 0; i < io_mock_pending(mock); i++) {
		const struct io_op *op = io_mock_op(mock, i);

		if (in_tables(op))
			check_table_write(op);
		if (op == &meta->guest_flush) {
			if (!s.guest_flushing)
				s.guest_linked_seq = s.linked_seq;
			s.guest_flushing = true;
		} else if (op->type == IO_FLUSH && op != s.flush) {
			s.flush = op;
			s.flush_seq = meta_open_seq(meta);
			s.started_linked_seq = s.linked_seq;
		}
	}
}

static void end_one(u32 fail_once_in)
{
	u32 i = rnd_below(&s.r, io_mock_pending(mock));
	const struct io_op *op = io_mock_op(mock, i);
	bool guest_flush = op == &meta->guest_flush;
	bool flush = op->type == IO_FLUSH && !guest_flush;
	bool step_1 = op->type == IO_WRITE && !in_tables(op);
	bool fail = fail_once_in && step_1 && rnd_once(&s.r, fail_once_in);

	io_mock_end(mock, i, fail ? -EIO : 0);
	if (flush) {
		s.covered_seq = s.flush_seq;
		s.flush_linked_seq = s.started_linked_seq;
		s.flush = NULL;
	}
	if (guest_flush)
		s.guest_flushing = false;
	loop_run_once(mock_loop, false);
	look();
}

/* ---- what the user does --------------------------------------------------- */

static struct meta_block *cached(u64 offset)
{
	struct meta_wait wait = { .fn = nothing_over };
	struct meta_block *block;

	CU_ASSERT_EQUAL_FATAL(meta_get(meta, offset, &wait, &block), 0);
	return block;
}

/* All blocks are read before the first transaction, and the cache holds them. */
static void read_all(void)
{
	u32 i;

	for (i = 0; i < NR_TABLES; i++)
		get_block(TABLES + i * BLOCK_BYTES);
	for (i = 0; i < NR_COUNTS; i++)
		get_block(COUNTS + i * BLOCK_BYTES);
}

static void set_one(void)
{
	u64 number = s.nr_sets++;
	u64 at = TABLES + 8 * rnd_below(&s.r, NR_TABLES * BLOCK_BYTES / 8);
	struct set *set = &s.sets[number];
	struct meta_block *block = cached(at);
	u64 *table;

	*set = (struct set){ .seq = meta_open_seq(meta), .at = at };
	s.last_seq = set->seq;
	set_word(block, at - block->offset, number);
	if (!rnd_once(&s.r, 3))
		return;
	s.fresh_owner[s.next_fresh] = number;
	set->fresh = FRESH + s.next_fresh * BLOCK_BYTES;
	s.next_fresh = (s.next_fresh + 1) % NR_FRESH;
	table = io_alloc(BLOCK_BYTES);
	CU_ASSERT_FATAL(table != NULL);
	memset(table, 0, BLOCK_BYTES);
	table[0] = number;
	if (rnd_once(&s.r, 2)) {
		CU_ASSERT_EQUAL(meta_txn_fresh(meta, set->fresh, table, BLOCK_BYTES), 0);
	} else if (meta_txn_table(meta, set->fresh, table, BLOCK_BYTES)) {
		free(table); /* its place is still pinned by an older one */
		set->fresh = 0;
	}
}

static void join_batch(void)
{
	struct batch_join *j = calloc(1, sizeof(*j));
	u32 n = rnd_between(&s.r, 1, 4);

	CU_ASSERT_FATAL(j != NULL);
	j->first = s.nr_sets;
	while (n-- && s.nr_sets < MAX_SETS)
		set_one();
	j->end = s.nr_sets;
	j->join.fn = batch_joined;
	meta_txn_mark(meta, s.nr_sets);
	s.joins++;
	meta_txn_join(meta, &j->join);
	if (rnd_once(&s.r, 3)) {
		struct batch_unmap *u = calloc(1, sizeof(*u));

		CU_ASSERT_FATAL(u != NULL);
		u->seq = meta_open_seq(meta);
		u->unmap.durable = batch_unmapped;
		s.unmaps++;
		meta_txn_unmap(meta, &u->unmap);
	}
}

static void count_one(void)
{
	u64 at = COUNTS + 8 * rnd_below(&s.r, NR_COUNTS * BLOCK_BYTES / 8);
	struct meta_block *block = cached(at);

	change_word(block, at - block->offset, rnd(&s.r));
}

static void step(u32 fail_once_in)
{
	switch (rnd_below(&s.r, 8)) {
	case 0:
		if (s.joins < 6 && s.nr_sets + 4 < MAX_SETS)
			join_batch();
		break;
	case 1:
		count_one();
		break;
	case 2:
		meta_kick(meta);
		break;
	case 3:
		io_mock_advance(mock, rnd_below(&s.r, HOUSEKEEP_NS));
		loop_run_once(mock_loop, false);
		break;
	case 4:
		if (s.flushes < 4)
			flush_some();
		break;
	default:
		if (io_mock_pending(mock))
			end_one(fail_once_in);
	}
	look();
}

/* ---- the end of a round --------------------------------------------------- */

static void settle(void)
{
	u32 i;

	for (i = 0; i < 10000 && !(meta_idle(meta) && !io_mock_pending(mock)); i++) {
		meta_kick(meta);
		meta_housekeep(meta);
		look();
		if (io_mock_pending(mock))
			end_one(0);
	}
	CU_ASSERT(meta_idle(meta));
	CU_ASSERT_EQUAL(s.joins, 0);
	CU_ASSERT_EQUAL(s.unmaps, 0);
	CU_ASSERT_EQUAL(s.flushes, 0);
}

/* The last set of each place that was linked is what cache and disk hold. */
static void check_tables(void)
{
	static u64 last[NR_TABLES * BLOCK_BYTES / 8];
	u32 i;

	memset(last, 0, sizeof(last));
	for (i = 1; i < s.nr_sets; i++)
		if (s.sets[i].joined_ok)
			last[(s.sets[i].at - TABLES) / 8] = i;
	for (i = 0; i < ARRAY_SIZE(last); i++) {
		u64 at = TABLES + 8 * i;
		struct meta_block *block = cached(at);

		s.wrong += disk_word(at) != last[i];
		s.wrong += block_word(block, at - block->offset) != last[i];
	}
	for (i = 0; i < NR_COUNTS * BLOCK_BYTES / 8; i++) {
		u64 at = COUNTS + 8 * i;
		struct meta_block *block = cached(at);

		s.wrong += disk_word(at) != block_word(block, at - block->offset);
	}
}

static bool run_round(u64 seed, u32 fail_once_in)
{
	struct meta_stats stats;
	u32 i;

	memset(&s, 0, sizeof(s));
	s.r.state = seed;
	s.nr_sets = 1; /* 0 is an empty entry */
	meta_start(64);
	meta_destroy(meta);
	CU_ASSERT_EQUAL_FATAL(meta_create(mock_loop, disk, BLOCK_BYTES, 64, &batch_ops, NULL,
					  &meta), 0);
	read_all();
	for (i = 0; i < STEPS; i++)
		step(fail_once_in);
	settle();
	check_tables();
	meta_get_stats(meta, &stats);
	CU_ASSERT(stats.flushes >= stats.commits);
	CU_ASSERT_EQUAL(stats.retries > 0, fail_once_in > 0);
	CU_ASSERT_EQUAL(stats.commits, s.linked);
	CU_ASSERT_EQUAL(s.failed, 0);
	CU_ASSERT(s.nr_sets > 100);
	meta_stop();
	return !s.wrong;
}

static void run_rounds(const char *what, u32 fail_once_in)
{
	u64 seed = rnd_seed(what);
	u32 i;

	for (i = 0; i < ROUNDS; i++) {
		if (run_round(seed + i, fail_once_in))
			continue;
		printf("\n    round QCHAIN_SEED=%llu fails", (unsigned long long)(seed + i));
		CU_FAIL("the write order is broken");
		return;
	}
}

static void test_any_order(void)
{
	run_rounds("meta", 0);
}

/* Step 1 fails now and then: it is tried again, and nothing is lost. */
static void test_failing_step_1(void)
{
	run_rounds("meta, step 1 fails", 6);
}

/* Whatever I/O fails: all hear of it once, and the disk shows no entry too early. */
static void fail_anywhere(u64 seed, u32 n)
{
	u32 i;

	memset(&s, 0, sizeof(s));
	s.r.state = seed;
	s.nr_sets = 1;
	meta_start(64);
	meta_destroy(meta);
	CU_ASSERT_EQUAL_FATAL(meta_create(mock_loop, disk, BLOCK_BYTES, 64, &batch_ops, NULL,
					  &meta), 0);
	read_all();
	io_mock_fail(mock, n, -EIO);
	for (i = 0; i < 400; i++)
		step(0);
	settle();
	CU_ASSERT_EQUAL(s.wrong, 0);
	meta_stop();
}

static void test_nth_failure(void)
{
	u64 seed = rnd_seed("meta, n-th I/O fails");
	u32 n;

	for (n = 1; n < 120; n++)
		fail_anywhere(seed + n, n);
}

int main(void)
{
	static const struct unit_test tests[] = {
		{ "any order", test_any_order },
		{ "step 1 fails at times", test_failing_step_1 },
		{ "the n-th I/O fails", test_nth_failure },
		{ NULL, NULL },
	};

	return mock_main("meta-random", tests);
}
