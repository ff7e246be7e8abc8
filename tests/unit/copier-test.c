// SPDX-License-Identifier: GPL-2.0-or-later
/* The copier on the mock engine: content, bounds, errors, pause, limits, throttle. */
#include "mock-loop.h"
#include "random.h"

#include <errno.h>
#include <qchain/copier.h>
#include <stdlib.h>

#define DISK (1u << 20)

static struct io_dev *src, *dst;
static struct copier *copier;
static struct copy_region regions[64];
static u32 nr_regions, next_region;
static u32 nr_done, nr_failed;
static u64 copied;
static bool hold; /* next() says -EAGAIN */
static int end_error;
static bool ended, paused;
static int stop_from_done;

static int next(void *arg, struct copy_region *result)
{
	if (hold)
		return -EAGAIN;
	if (next_region == nr_regions)
		return 0;
	*result = regions[next_region++];
	return 1;
}

static void on_copied(void *arg, u32 bytes) { copied += bytes; }

static void done(void *arg, const struct copy_region *region, int error)
{
	nr_done++;
	nr_failed += error != 0;
	if (stop_from_done)
		copier_stop(copier, stop_from_done);
}

static void on_paused(void *arg) { paused = true; }

static void on_ended(void *arg, int error)
{
	CU_ASSERT(!ended);
	ended = true;
	end_error = error;
}

static const struct copier_ops ops = {
	.next = next, .copied = on_copied, .done = done, .paused = on_paused, .ended = on_ended,
};

static void begin_with(struct copier_options options)
{
	u32 i;

	nr_regions = next_region = nr_done = nr_failed = 0;
	copied = 0;
	hold = ended = paused = false;
	end_error = stop_from_done = 0;
	CU_ASSERT_EQUAL_FATAL(io_mock_dev_create("src", DISK, DISK, true, &src), 0);
	CU_ASSERT_EQUAL_FATAL(io_mock_dev_create("dst", DISK, DISK, true, &dst), 0);
	for (i = 0; i < DISK; i++)
		((u8 *)io_mock_dev_bytes(src))[i] = i * 7 + i / 512;
	memset(io_mock_dev_bytes(dst), 0xee, DISK);
	CU_ASSERT_EQUAL_FATAL(copier_create(mock_loop, &options, &ops, NULL, &copier), 0);
	io_mock_log(mock);
}

static void begin(void)
{
	begin_with((struct copier_options){ .lanes = 4, .chunk_bytes = 8192,
		.memory_bytes = 4 * COPIER_UNIT_BYTES });
}

static void add(u64 from, u64 to, u64 len)
{
	regions[nr_regions++] = (struct copy_region){
		.src = src, .dst = dst, .src_offset = from, .dst_offset = to, .len = len };
}

static void finish(void)
{
	copier_destroy(copier);
	io_mock_dev_destroy(src);
	io_mock_dev_destroy(dst);
}

static bool same(u64 from, u64 to, u64 len)
{
	return !memcmp((u8 *)io_mock_dev_bytes(src) + from, (u8 *)io_mock_dev_bytes(dst) + to,
		       len);
}

static void test_order(void)
{
	begin();
	add(0, 65536, 20480);
	add(512, 0, 512);
	copier_start(copier);
	/* never more than the lanes, cut into chunks */
	expect_log("read src 0+8192, read src 8192+8192, read src 16384+4096, read src 512+512");
	end_first(0);
	expect_log("write dst 65536+8192");
	run_dry();
	CU_ASSERT(ended && !end_error);
	CU_ASSERT_EQUAL(nr_done, 2);
	CU_ASSERT_EQUAL(copied, 20992);
	CU_ASSERT(same(0, 65536, 20480) && same(512, 0, 512));
	finish();
}

static void test_bounded(void)
{
	begin();
	add(0, 0, DISK);
	copier_start(copier);
	while (!ended) {
		CU_ASSERT_FATAL(io_mock_pending(mock) > 0);
		CU_ASSERT(io_mock_pending(mock) <= 4);
		end_first(0);
	}
	CU_ASSERT(same(0, 0, DISK));
	finish();
}

static void test_zero(void)
{
	begin();
	add(0, 16384, 16384);
	regions[0].zero = true;
	copier_start(copier);
	expect_log("write dst 16384+8192, write dst 24576+8192");
	run_dry();
	CU_ASSERT(ended);
	CU_ASSERT_EQUAL(((u8 *)io_mock_dev_bytes(dst))[16384], 0);
	CU_ASSERT_EQUAL(((u8 *)io_mock_dev_bytes(dst))[32767], 0);
	CU_ASSERT_EQUAL(((u8 *)io_mock_dev_bytes(dst))[32768], 0xee);
	finish();
}

/* An error is the region's own: the others are copied. */
static void test_error(void)
{
	u32 n;

	for (n = 1; n <= 8; n++) {
		begin();
		add(0, 0, 16384);
		add(65536, 65536, 16384);
		io_mock_fail(mock, n, -EIO);
		copier_start(copier);
		run_dry();
		CU_ASSERT(ended && !end_error);
		CU_ASSERT_EQUAL(nr_done, 2);
		CU_ASSERT_EQUAL(nr_failed, 1);
		CU_ASSERT(same(0, 0, 16384) || same(65536, 65536, 16384));
		finish();
	}
}

static void test_stop(void)
{
	begin();
	add(0, 0, DISK);
	copier_start(copier);
	copier_stop(copier, -ECANCELED);
	CU_ASSERT(!ended);
	run_dry();
	CU_ASSERT(ended);
	CU_ASSERT_EQUAL(end_error, -ECANCELED);
	CU_ASSERT_EQUAL(nr_done, 1);
	CU_ASSERT_EQUAL(nr_failed, 1);
	finish();
	/* from a callback, as the last thing that is in flight ends */
	begin();
	add(0, 0, 8192);
	add(8192, 8192, 8192);
	stop_from_done = -ENOSPC;
	io_mock_fail(mock, 1, -EIO);
	copier_start(copier);
	run_dry();
	CU_ASSERT(ended);
	CU_ASSERT_EQUAL(end_error, -ENOSPC);
	finish();
}

static void test_pause(void)
{
	begin();
	add(0, 0, DISK);
	copier_start(copier);
	copier_pause(copier);
	CU_ASSERT(!paused);
	run_dry();
	CU_ASSERT(paused && !ended);
	CU_ASSERT_EQUAL(copied, 4 * 8192);
	copier_resume(copier);
	run_dry();
	CU_ASSERT(ended);
	CU_ASSERT(same(0, 0, DISK));
	finish();
}

static void test_kick(void)
{
	begin();
	hold = true;
	copier_start(copier);
	CU_ASSERT(!ended);
	hold = false;
	add(0, 0, 4096);
	copier_kick(copier);
	run_dry();
	CU_ASSERT(ended && same(0, 0, 4096));
	finish();
}

/* 1 MiB at 1 MiB/s takes a second of the mock's clock, a slice more or less. */
static void test_speed(void)
{
	u64 start;

	begin_with((struct copier_options){ .lanes = 4, .chunk_bytes = 8192,
		.memory_bytes = 4 * COPIER_UNIT_BYTES, .speed = MiB });
	add(0, 0, DISK);
	io_mock_order(mock, IO_MOCK_FIFO, 0);
	start = loop_now_ns(mock_loop);
	copier_start(copier);
	while (!ended)
		loop_run_once(mock_loop, true);
	io_mock_order(mock, IO_MOCK_HOLD, 0);
	CU_ASSERT(loop_now_ns(mock_loop) - start > 970000000ull);
	CU_ASSERT(loop_now_ns(mock_loop) - start < 1030000000ull);
	CU_ASSERT(same(0, 0, DISK));
	finish();
}

static void test_random(void)
{
	struct rnd seed = { 1 };
	u64 run, i;

	for (run = 0; run < 50; run++) {
		u64 at = 0;

		begin_with((struct copier_options){
			.lanes = 1 + rnd(&seed) % 9,
			.chunk_bytes = 4096 << rnd(&seed) % 6,
			.memory_bytes = (2 + rnd(&seed) % 8) * COPIER_UNIT_BYTES });
		while (nr_regions < 40 && at < DISK - 65536) {
			u64 len = (1 + rnd(&seed) % 100) * 512;

			add(at, at, len);
			at += len + rnd(&seed) % 3 * 512;
		}
		io_mock_order(mock, IO_MOCK_SHUFFLE, run + 1);
		copier_start(copier);
		while (!ended) {
			if (rnd(&seed) % 8 == 0)
				copier_pause(copier);
			if (rnd(&seed) % 4 == 0)
				copier_resume(copier);
			loop_run_once(mock_loop, false);
		}
		io_mock_order(mock, IO_MOCK_HOLD, 0);
		for (i = 0; i < nr_regions; i++)
			CU_ASSERT(same(regions[i].src_offset, regions[i].dst_offset,
				       regions[i].len));
		CU_ASSERT_EQUAL(io_mock_collisions(mock), 0);
		finish();
	}
}

/* @ms of a guest that does one request of @ns each @gap ms; the window at the end. */
static u32 guest_each(struct throttle *t, struct latency_probe *probe, u64 *now, u32 ms, u64 ns,
		      u32 gap)
{
	u64 wait;
	u32 window = 0;

	for (u32 i = 0; i < ms; i++) {
		if (i % gap == 0 && ns)
			latency_sample(probe, ns);
		window = throttle_window(t, *now += 1000000ull, &wait);
	}
	return window;
}

static u32 guest(struct throttle *t, struct latency_probe *probe, u64 *now, u32 ms, u64 ns)
{
	return guest_each(t, probe, now, ms, ns, 5);
}

/* The guest's requests take longer: the share shrinks to its floor; it is quiet: it grows. */
static void test_throttle(void)
{
	struct latency_probe probe = { 0 };
	struct throttle t;
	u64 now = 1000000000ull, wait = 0;

	throttle_init(&t, NULL, 16);
	CU_ASSERT_EQUAL(throttle_window(&t, now, &wait), 16);
	throttle_init(&t, &probe, 16);
	CU_ASSERT_EQUAL(throttle_window(&t, now, &wait), 1); /* nobody heard yet */
	CU_ASSERT_EQUAL(guest(&t, &probe, &now, 60, 0), 16); /* nobody there */
	CU_ASSERT_EQUAL(guest_each(&t, &probe, &now, 50, 100000, 1), 0); /* somebody: it listens */
	CU_ASSERT_EQUAL(guest_each(&t, &probe, &now, 200, 100000, 1), 1); /* and begins anew */

	throttle_init(&t, &probe, 16);
	guest(&t, &probe, &now, 3500, 100000);
	CU_ASSERT_EQUAL(t.base_ns, 100000);
	CU_ASSERT_EQUAL(t.share, 16 * THROTTLE_LANE); /* it does not mind */
	guest(&t, &probe, &now, 2000, 100000);
	guest(&t, &probe, &now, 1500, 150000);
	CU_ASSERT_EQUAL(t.share, THROTTLE_FLOOR); /* it does */
	CU_ASSERT_EQUAL(guest(&t, &probe, &now, 1000, 0), 16); /* gone */

	throttle_init(&t, &probe, 16);
	guest(&t, &probe, &now, 3500, 100000);
	guest_each(&t, &probe, &now, 1000, 100000, 10);
	CU_ASSERT(t.share < 4 * THROTTLE_LANE); /* fewer come: they wait elsewhere */
}

/* Less than a lane: it rests in proportion to what one I/O took, and not for ever. */
static void test_throttle_rests(void)
{
	struct latency_probe probe = { 0 };
	struct throttle t;
	u64 now = 1000000000ull, wait = 0;

	throttle_init(&t, &probe, 16);
	guest(&t, &probe, &now, 3000, 0);
	t.share = THROTTLE_FLOOR;
	t.step_ns = now;
	throttle_done(&t, now, 1000000);
	CU_ASSERT_EQUAL(throttle_window(&t, now, &wait), 0);
	CU_ASSERT(wait > 2000000 && wait < 2100000);
	CU_ASSERT_EQUAL(throttle_window(&t, now + wait, &wait), 1);
	throttle_done(&t, now, 10000000000ull);
	CU_ASSERT_EQUAL(throttle_window(&t, now, &wait), 0);
	CU_ASSERT(wait <= 50000000);
}

/* It copies all in the end, also beside a guest that suffers. */
static void test_throttled_copy(void)
{
	struct latency_probe probe = { 0 };
	u64 ns = 0;

	begin_with((struct copier_options){ .lanes = 4, .chunk_bytes = 8192,
		.memory_bytes = 4 * COPIER_UNIT_BYTES, .probe = &probe });
	CU_ASSERT(latency_watched(&probe));
	add(0, 0, DISK);
	io_mock_order(mock, IO_MOCK_FIFO, 0);
	copier_start(copier);
	while (!ended) {
		latency_sample(&probe, ns += 1000);
		loop_run_once(mock_loop, true);
	}
	io_mock_order(mock, IO_MOCK_HOLD, 0);
	CU_ASSERT(same(0, 0, DISK));
	finish();
	CU_ASSERT(!latency_watched(&probe));
}

static const struct unit_test tests[] = {
	{ "chunks and lanes", test_order },
	{ "bounded in flight", test_bounded },
	{ "zeroes", test_zero },
	{ "an error is the region's own", test_error },
	{ "stop", test_stop },
	{ "pause", test_pause },
	{ "kick", test_kick },
	{ "speed limit", test_speed },
	{ "random regions, shuffled", test_random },
	{ "throttle", test_throttle },
	{ "throttle, less than a lane", test_throttle_rests },
	{ "throttled copy", test_throttled_copy },
	{ NULL },
};

int main(void)
{
	return mock_main("copier", tests);
}
