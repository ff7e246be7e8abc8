// SPDX-License-Identifier: GPL-2.0-or-later
/* What a target counts: by kind, by loop, with times, and after a loop has gone. */
#include "mock-loop.h"

#include <errno.h>
#include <qchain/target.h>

/* ---- a target that holds its requests until the test ends them -------------------- */

static struct request *held;

static enum target_map_result hold_map(struct target *ti, struct request *req)
{
	held = req;
	return TARGET_SUBMITTED;
}

static const struct target_type hold_type = { .name = "hold", .map = hold_map };
static struct target ti;

static void make_target(void)
{
	ti = (struct target){ .type = &hold_type, .size_bytes = 1 << 20,
			      .limits = { .logical_block = 512 } };
	CDS_INIT_LIST_HEAD(&ti.attached);
}

static void end_io(struct request *req, int error)
{
}

static const struct request_ops ops = { .end_io = end_io };

static struct request *submit(u8 op, u64 offset, u32 len)
{
	static struct request req;

	req = (struct request){ .ops = &ops, .loop = mock_loop, .op = op, .offset = offset,
				.len = len };
	held = NULL;
	target_submit(&ti, &req);
	return held;
}

/* A request that takes @ns; the clock is looked at anew after it. */
static void one(u8 op, u64 offset, u32 len, u64 ns, int error)
{
	struct request *req = submit(op, offset, len);

	CU_ASSERT_PTR_NOT_NULL_FATAL(req);
	io_mock_advance(mock, ns);
	loop_run_once(mock_loop, false);
	target_end_io(req, error);
}

static void expect_count(enum stat_kind kind, u64 operations, u64 bytes, u64 failed, u64 invalid,
			 u64 time_ns)
{
	struct target_stats stats;

	target_get_stats(&ti, &stats);
	CU_ASSERT_EQUAL(stats.kinds[kind].operations, operations);
	CU_ASSERT_EQUAL(stats.kinds[kind].bytes, bytes);
	CU_ASSERT_EQUAL(stats.kinds[kind].failed, failed);
	CU_ASSERT_EQUAL(stats.kinds[kind].invalid, invalid);
	CU_ASSERT_EQUAL(stats.kinds[kind].time_ns, time_ns);
}

/* ---- tests ------------------------------------------------------------------------- */

static void test_kinds(void)
{
	make_target();
	CU_ASSERT_EQUAL(target_attach(&ti, mock_loop), 0);
	io_mock_advance(mock, 1000);
	loop_run_once(mock_loop, false);
	one(REQ_READ, 0, 4096, 10, 0);
	one(REQ_READ, 4096, 512, 20, 0);
	one(REQ_WRITE, 8192, 1024, 5, 0);
	one(REQ_WRITE_ZEROES, 0, 2048, 7, 0);
	one(REQ_FLUSH, 0, 0, 3, 0);
	one(REQ_DISCARD, 512, 65536, 2, 0);
	one(REQ_BLOCK_STATUS, 0, 65536, 9, 0);
	expect_count(STAT_READ, 2, 4608, 0, 0, 30);
	expect_count(STAT_WRITE, 2, 3072, 0, 0, 12);
	expect_count(STAT_FLUSH, 1, 0, 0, 0, 3);
	expect_count(STAT_UNMAP, 1, 65536, 0, 0, 2);
	target_detach(&ti, mock_loop);
}

/* Failed ones count as failed only; refused ones never reach the target. */
static void test_errors(void)
{
	struct target_stats stats;

	make_target();
	CU_ASSERT_EQUAL(target_attach(&ti, mock_loop), 0);
	one(REQ_WRITE, 0, 512, 10, -EIO);
	CU_ASSERT_PTR_NULL(submit(REQ_WRITE, 100, 512));
	CU_ASSERT_PTR_NULL(submit(REQ_WRITE, 1 << 20, 512));
	CU_ASSERT_PTR_NULL(submit(REQ_READ, 0, 0));
	expect_count(STAT_WRITE, 0, 0, 1, 2, 0);
	expect_count(STAT_READ, 0, 0, 0, 1, 0);
	target_get_stats(&ti, &stats);
	CU_ASSERT_EQUAL(stats.highest, 0);
	CU_ASSERT_EQUAL(stats.last_ns, 0);
	target_detach(&ti, mock_loop);
}

static void test_highest(void)
{
	struct target_stats stats;

	make_target();
	CU_ASSERT_EQUAL(target_attach(&ti, mock_loop), 0);
	one(REQ_WRITE, 65536, 512, 1, 0);
	one(REQ_WRITE, 0, 512, 1, 0);
	one(REQ_READ, 1 << 19, 512, 1, 0);
	target_get_stats(&ti, &stats);
	CU_ASSERT_EQUAL(stats.highest, 66048);
	CU_ASSERT_EQUAL(stats.last_ns, loop_now_ns(mock_loop));
	target_detach(&ti, mock_loop);
}

/* What a loop has counted stays when it goes, and is not counted twice. */
static void test_detached(void)
{
	make_target();
	for (int i = 1; i <= 3; i++) {
		CU_ASSERT_EQUAL(target_attach(&ti, mock_loop), 0);
		one(REQ_READ, 0, 512, 1, 0);
		expect_count(STAT_READ, i, i * 512, 0, 0, i);
		target_detach(&ti, mock_loop);
		expect_count(STAT_READ, i, i * 512, 0, 0, i);
		CU_ASSERT_PTR_NULL(mock_loop->stats);
	}
	CU_ASSERT(cds_list_empty(&ti.attached));
}

/* A loop that nobody attached counts nothing: the target's own requests. */
static void test_not_attached(void)
{
	make_target();
	one(REQ_READ, 0, 512, 1, 0);
	expect_count(STAT_READ, 0, 0, 0, 0, 0);
}

/* One look at the clock for all completions of one turn of the loop. */
static void test_one_clock_a_batch(void)
{
	struct request *req;
	u64 before;

	make_target();
	CU_ASSERT_EQUAL(target_attach(&ti, mock_loop), 0);
	loop_run_once(mock_loop, false);
	before = loop_batch_ns(mock_loop);
	req = submit(REQ_READ, 0, 512);
	io_mock_advance(mock, 500); /* in the same turn: nobody looks again */
	target_end_io(req, 0);
	CU_ASSERT_EQUAL(loop_batch_ns(mock_loop), before);
	expect_count(STAT_READ, 1, 512, 0, 0, 0);
	target_detach(&ti, mock_loop);
}

static void end_held(struct loop *loop, struct loop_msg *msg)
{
	target_end_io(held, 0);
}

/* An answer of the metadata thread is no part of the turn in which it was asked. */
static void test_message(void)
{
	struct loop_msg msg;

	make_target();
	CU_ASSERT_EQUAL(target_attach(&ti, mock_loop), 0);
	loop_run_once(mock_loop, false);
	CU_ASSERT_PTR_NOT_NULL_FATAL(submit(REQ_WRITE, 0, 512));
	io_mock_advance(mock, 700);
	loop_send(mock_loop, &msg, end_held);
	loop_run_once(mock_loop, false);
	expect_count(STAT_WRITE, 1, 512, 0, 0, 700);
	target_detach(&ti, mock_loop);
}

static const struct unit_test tests[] = {
	{ "by kind", test_kinds },
	{ "errors", test_errors },
	{ "highest byte written", test_highest },
	{ "loops come and go", test_detached },
	{ "loops that are not attached", test_not_attached },
	{ "one clock a batch", test_one_clock_a_batch },
	{ "answer by a message", test_message },
	{ NULL },
};

int main(void)
{
	return mock_main("target-stats", tests);
}
