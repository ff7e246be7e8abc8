// SPDX-License-Identifier: GPL-2.0-or-later
/* The leak scan: what it frees, what it leaves, what it must see first. */
#include "mock-loop.h"

#include <endian.h>
#include <errno.h>
#include <qchain/leaks.h>
#include <stdlib.h>
#include <uapi/qcow2.h>

#define CLUSTER_BITS 12u
#define CLUSTER (1ull << CLUSTER_BITS)
#define DEV_CLUSTERS 256u

/*
 * The image of most tests: 4 KiB clusters, 128 KiB mapped in full: header,
 * refcount table, refcount block, L1, L2, 32 data clusters, then nothing.
 */
#define BLOCK_AT (2 * CLUSTER)
#define L1_AT (3 * CLUSTER)
#define L2_AT (4 * CLUSTER)
#define FIRST_DATA 5u
#define NR_DATA 32u
#define FIRST_FREE (FIRST_DATA + NR_DATA)

static struct io_dev *disk;
static struct image *img;
static struct meta *meta;
static struct refcounts *rc;
static struct leaks *leaks;

static void on_linked(void *arg, u64 mark)
{
}

static void on_failed(void *arg, int error)
{
}

static const struct meta_ops ops = { .linked = on_linked, .failed = on_failed };

/* ---- an image ------------------------------------------------------------------ */

static void put64(u64 at, u64 value)
{
	value = htobe64(value);
	memcpy((u8 *)io_mock_dev_bytes(disk) + at, &value, sizeof(value));
}

static u64 get64(u64 at)
{
	u64 value;

	memcpy(&value, (u8 *)io_mock_dev_bytes(disk) + at, sizeof(value));
	return be64toh(value);
}

static void put_count(u64 cluster, u16 value)
{
	value = htobe16(value);
	memcpy((u8 *)io_mock_dev_bytes(disk) + BLOCK_AT + 2 * cluster, &value, sizeof(value));
}

static u16 get_count(u64 cluster)
{
	u16 value;

	memcpy(&value, (u8 *)io_mock_dev_bytes(disk) + BLOCK_AT + 2 * cluster, sizeof(value));
	return be16toh(value);
}

static void format(u32 cluster_bits, u32 order, u64 virtual_size, u64 dev_bytes)
{
	struct image_create_options options;
	struct qc_err err = { 0 };

	image_create_defaults(&options);
	options.cluster_bits = cluster_bits;
	options.refcount_order = order;
	options.virtual_size = virtual_size;
	options.preallocation = PREALLOC_FULL;
	CU_ASSERT_EQUAL_FATAL(io_mock_dev_create("disk", dev_bytes, dev_bytes, true, &disk), 0);
	if (image_create(disk, &options, &err))
		printf("\n    %s\n", err.msg);
	CU_ASSERT_EQUAL_FATAL(err.code, 0);
}

static void open_image(u32 window)
{
	struct qc_err err = { 0 };
	u32 block;

	if (image_open(disk, IMAGE_QCOW2, IMAGE_OPEN_WRITE | IMAGE_OPEN_BITMAPS, &img, &err))
		printf("\n    %s\n", err.msg);
	CU_ASSERT_EQUAL_FATAL(err.code, 0);
	block = min(4096u, (u32)image_cluster_bytes(img));
	CU_ASSERT_EQUAL_FATAL(meta_create(mock_loop, disk, block, 1024, &ops, NULL, &meta), 0);
	CU_ASSERT_EQUAL_FATAL(refcounts_open(img, meta, &rc, &err), 0);
	CU_ASSERT_EQUAL_FATAL(leaks_create(img, rc, window, &leaks), 0);
}

static void format_usual(void)
{
	format(CLUSTER_BITS, 4, NR_DATA * CLUSTER, DEV_CLUSTERS * CLUSTER);
}

static void settle(void)
{
	u32 i;

	for (i = 0; i < 100 && (!meta_idle(meta) || refcounts_busy(rc)); i++) {
		meta_housekeep(meta);
		run_dry();
	}
	CU_ASSERT(meta_idle(meta));
}

static void close_all(void)
{
	leaks_destroy(leaks);
	settle();
	refcounts_close(rc);
	meta_destroy(meta);
	image_close(img);
	io_mock_dev_destroy(disk);
	io_mock_log(mock);
}

/* ---- driving ---------------------------------------------------------------------- */

static void nothing(struct meta_wait *wait)
{
}

/* One step and what it asks for. */
static int step(void)
{
	static struct meta_wait wait = { .fn = nothing };
	struct io_op io = { 0 };
	int ret = leaks_step(leaks, &io, &wait);

	if (ret == LEAKS_READ)
		CU_ASSERT_EQUAL_FATAL(io_dev_pread(io.dev, io.base, io.len, io.offset), 0);
	if (ret == LEAKS_WAIT)
		run_dry();
	return ret;
}

/* Until @what is asked for. */
static void run_to(int what)
{
	u32 n = 0;
	int ret;

	do {
		ret = step();
		CU_ASSERT_FATAL(ret >= 0);
		CU_ASSERT_FATAL(ret != LEAKS_DONE);
		CU_ASSERT_FATAL(++n < 1000);
	} while (ret != what);
}

static int finish(struct leaks_result *r)
{
	u32 n = 0;
	int ret;

	do
		ret = step();
	while (ret > 0 && ++n < 1000000);
	leaks_get_result(leaks, r);
	return ret;
}

static void expect_scan(u64 freed, u64 lowered)
{
	struct leaks_result r;

	CU_ASSERT_EQUAL(finish(&r), LEAKS_DONE);
	CU_ASSERT_EQUAL(r.freed, freed);
	CU_ASSERT_EQUAL(r.lowered, lowered);
	CU_ASSERT_EQUAL(r.percent, 100);
	settle();
}

static u64 take_cluster(void)
{
	struct meta_wait wait = { .fn = nothing };
	u64 host = 0;
	u32 got, n = 0;
	int ret;

	while ((ret = refcounts_alloc(rc, 1, &wait, &host, &got)) == -EAGAIN && ++n < 100)
		run_dry();
	CU_ASSERT_EQUAL_FATAL(ret, 0);
	return host >> img->cluster_bits;
}

/* ---- leaks --------------------------------------------------------------------------- */

static void test_nothing_leaked(void)
{
	u32 order;

	for (order = 0; order <= 6; order++) {
		format(order % 2 ? 9 : CLUSTER_BITS, order, 256 * KiB, MiB);
		open_image(LEAKS_WINDOW_CLUSTERS);
		expect_scan(0, 0);
		close_all();
	}
}

static void test_leak(void)
{
	format_usual();
	put_count(FIRST_FREE, 1);
	put_count(FIRST_FREE + 1, 7);
	put_count(DEV_CLUSTERS - 1, 1);
	put_count(FIRST_DATA, 2);
	open_image(LEAKS_WINDOW_CLUSTERS);
	CU_ASSERT_EQUAL(take_cluster(), FIRST_FREE + 2); /* which leaves it allocated, touched */
	expect_scan(3, 1);
	CU_ASSERT_EQUAL(get_count(FIRST_FREE), 0);
	CU_ASSERT_EQUAL(get_count(FIRST_FREE + 1), 0);
	CU_ASSERT_EQUAL(get_count(FIRST_FREE + 2), 1);
	CU_ASSERT_EQUAL(get_count(DEV_CLUSTERS - 1), 0);
	CU_ASSERT_EQUAL(get_count(FIRST_DATA), 1);
	CU_ASSERT_EQUAL(take_cluster(), FIRST_FREE);
	close_all();
}

/* Whatever the window, the same is found. */
/* Counted before the data was written, which would have made the file longer. */
static void test_beyond_the_end(void)
{
	format_usual();
	disk->blockdev = false;
	put_count(DEV_CLUSTERS + 3, 1);
	open_image(LEAKS_WINDOW_CLUSTERS);
	expect_scan(1, 0);
	CU_ASSERT_EQUAL(get_count(DEV_CLUSTERS + 3), 0);
	close_all();
}

static void test_windows(void)
{
	u32 window;

	for (window = 1; window < DEV_CLUSTERS; window = window * 3 + 1) {
		format_usual();
		put_count(FIRST_FREE, 1);
		put_count(DEV_CLUSTERS - 1, 1);
		open_image(window);
		expect_scan(2, 0);
		close_all();
	}
}

/* Promise P23: what the walk saw is durable before anything is freed. */
static void test_flush_first(void)
{
	format_usual();
	put_count(FIRST_FREE, 1);
	open_image(LEAKS_WINDOW_CLUSTERS);
	run_to(LEAKS_FLUSH);
	CU_ASSERT(meta_idle(meta));
	expect_scan(1, 0);
	close_all();
}

/* ---- touched meanwhile ------------------------------------------------------------------ */

static void test_touched(void)
{
	format_usual();
	put_count(FIRST_FREE, 1);
	put_count(FIRST_FREE + 1, 1);
	open_image(LEAKS_WINDOW_CLUSTERS);
	run_to(LEAKS_READ); /* the L2 table */
	refcounts_touch(rc, FIRST_FREE * CLUSTER, 1);
	CU_ASSERT_EQUAL(take_cluster(), FIRST_FREE + 2);
	run_to(LEAKS_FLUSH);
	CU_ASSERT_EQUAL(take_cluster(), FIRST_FREE + 3);
	settle();
	expect_scan(1, 0);
	CU_ASSERT_EQUAL(get_count(FIRST_FREE), 1);
	CU_ASSERT_EQUAL(get_count(FIRST_FREE + 1), 0);
	CU_ASSERT_EQUAL(get_count(FIRST_FREE + 2), 1);
	CU_ASSERT_EQUAL(get_count(FIRST_FREE + 3), 1);
	close_all();
}

/* An entry that is written behind the walk names a cluster that was touched. */
static void test_mapped_behind(void)
{
	u64 cluster;

	format_usual();
	put64(L2_AT, 0);
	put_count(FIRST_DATA, 0);
	open_image(LEAKS_WINDOW_CLUSTERS);
	run_to(LEAKS_FLUSH);
	cluster = take_cluster();
	CU_ASSERT_EQUAL(cluster, FIRST_DATA);
	put64(L2_AT, cluster * CLUSTER | QCOW2_COPIED);
	settle();
	expect_scan(0, 0);
	CU_ASSERT_EQUAL(get_count(cluster), 1);
	close_all();
}

/* A shared table is replaced in the middle of the walk, its place used anew at once. */
static void test_table_replaced(void)
{
	u8 *bytes;

	format_usual();
	open_image(LEAKS_WINDOW_CLUSTERS);
	run_to(LEAKS_READ);
	bytes = io_mock_dev_bytes(disk);
	memcpy(bytes + FIRST_FREE * CLUSTER, bytes + L2_AT, CLUSTER);
	memset(bytes + L2_AT, 0xa5, CLUSTER);
	CU_ASSERT_EQUAL(take_cluster(), FIRST_FREE);
	refcounts_touch(rc, L2_AT, CLUSTER);
	l1_set(&img->l1, 0, (u64)FIRST_FREE * CLUSTER | QCOW2_COPIED);
	expect_scan(0, 0);
	close_all();
}

/* The refcount table grows under the scan: neither the new nor the old one is taken away. */
static void test_table_grows(void)
{
	struct check_result result;
	struct leaks_result r;
	struct image *again;
	u64 taken, limit;

	format(9, 6, 64 * KiB, 4 * MiB);
	open_image(LEAKS_WINDOW_CLUSTERS);
	limit = 64 * 64;
	run_to(LEAKS_FLUSH);
	do
		taken = take_cluster();
	while (taken < limit);
	settle();
	expect_scan(0, 0);
	leaks_destroy(leaks);
	CU_ASSERT_EQUAL_FATAL(leaks_create(img, rc, LEAKS_WINDOW_CLUSTERS, &leaks), 0);
	CU_ASSERT_EQUAL_FATAL(image_open(disk, IMAGE_QCOW2, IMAGE_OPEN_CHECK | IMAGE_OPEN_BITMAPS,
					 &again, NULL), 0);
	CU_ASSERT_EQUAL(image_check(again, 0, NULL, NULL, &result, NULL), 0);
	image_close(again);
	CU_ASSERT_EQUAL(result.corruptions, 0);
	CU_ASSERT_EQUAL(finish(&r), LEAKS_DONE); /* what the test took is a leak now */
	CU_ASSERT_EQUAL(r.freed, result.leaks);
	close_all();
}

/* ---- snapshots and bitmaps ----------------------------------------------------------------- */

/* A snapshot that shares the L2 table; its L1 table is the first free cluster. */
static void add_snapshot(void)
{
	img->snapshots = calloc(1, sizeof(*img->snapshots));
	img->nr_snapshots = 1;
	img->snapshots[0].l1_offset = FIRST_FREE * CLUSTER;
	img->snapshots[0].l1_size = 1;
	img->snapshots_offset = (FIRST_FREE + 1) * CLUSTER;
	img->snapshots_bytes = 64;
	put64(FIRST_FREE * CLUSTER, get64(L1_AT));
}

static void test_snapshot(void)
{
	u32 c;

	format_usual();
	for (c = L2_AT / CLUSTER; c < FIRST_FREE; c++)
		put_count(c, 2);
	put_count(FIRST_FREE, 1);
	put_count(FIRST_FREE + 1, 1);
	put_count(FIRST_DATA + 3, 3);
	put_count(FIRST_FREE + 2, 1);
	open_image(LEAKS_WINDOW_CLUSTERS);
	add_snapshot();
	expect_scan(1, 1);
	CU_ASSERT_EQUAL(get_count(FIRST_DATA + 3), 2);
	CU_ASSERT_EQUAL(get_count(FIRST_FREE), 1);
	CU_ASSERT_EQUAL(get_count(FIRST_FREE + 1), 1);
	close_all();
}

static void test_bitmap(void)
{
	format_usual();
	put_count(FIRST_FREE, 1);
	put_count(FIRST_FREE + 1, 1);
	put_count(FIRST_FREE + 2, 1);
	put_count(FIRST_FREE + 3, 1);
	open_image(LEAKS_WINDOW_CLUSTERS);
	img->bitmaps = calloc(1, sizeof(*img->bitmaps));
	img->nr_bitmaps = 1;
	img->bitmap_dir_offset = FIRST_FREE * CLUSTER;
	img->bitmap_dir_bytes = 32;
	img->bitmaps[0].table_offset = (FIRST_FREE + 1) * CLUSTER;
	img->bitmaps[0].table_entries = 3;
	put64((FIRST_FREE + 1) * CLUSTER, 1); /* all ones, no place */
	put64((FIRST_FREE + 1) * CLUSTER + 16, (FIRST_FREE + 2) * CLUSTER);
	expect_scan(1, 0);
	CU_ASSERT_EQUAL(get_count(FIRST_FREE + 2), 1);
	CU_ASSERT_EQUAL(get_count(FIRST_FREE + 3), 0);
	close_all();
}

/* Two compressed clusters in one place, another one across a border. */
static void test_compressed(void)
{
	format_usual();
	put_count(FIRST_FREE, 3);
	put_count(FIRST_FREE + 1, 1);
	put_count(FIRST_FREE + 2, 1);
	open_image(LEAKS_WINDOW_CLUSTERS);
	put64(L2_AT, image_compressed_entry(img, FIRST_FREE * CLUSTER, 600));
	put64(L2_AT + 8, image_compressed_entry(img, FIRST_FREE * CLUSTER + 1024, 600));
	put64(L2_AT + 16, image_compressed_entry(img, (FIRST_FREE + 1) * CLUSTER - 512, 1024));
	expect_scan(4, 0); /* three places that the entries had, and one that nobody has */
	CU_ASSERT_EQUAL(get_count(FIRST_FREE), 3);
	CU_ASSERT_EQUAL(get_count(FIRST_FREE + 1), 1);
	CU_ASSERT_EQUAL(get_count(FIRST_FREE + 2), 0);
	close_all();
}

/* ---- damage --------------------------------------------------------------------------------- */

static void expect_fault(u64 host, const char *what)
{
	struct leaks_result r;

	open_image(LEAKS_WINDOW_CLUSTERS);
	CU_ASSERT_EQUAL(finish(&r), -EUCLEAN);
	CU_ASSERT_EQUAL(r.fault_host, host);
	CU_ASSERT_STRING_EQUAL(r.fault ? r.fault : "", what);
	close_all();
}

static void test_used_and_not_counted(void)
{
	format_usual();
	put_count(FIRST_DATA + 1, 0);
	expect_fault((FIRST_DATA + 1) * CLUSTER, "in use, but not counted");
	format_usual();
	put64(L2_AT, get64(L2_AT + 8));
	expect_fault((FIRST_DATA + 1) * CLUSTER, "in use, but not counted");
	/* where no refcount block is */
	format(9, 6, 8 * KiB, MiB);
	put64(get64(get64(40)) & QCOW2_OFFSET_MASK, 1000 * 512 | QCOW2_COPIED);
	expect_fault(1000 * 512, "in use, but not counted");
}

static void test_bad_tables(void)
{
	struct leaks_result r;

	format_usual();
	put64(L2_AT + 40, get64(L2_AT + 40) + 512);
	expect_fault((FIRST_DATA + 5) * CLUSTER + 512, "cluster offset not aligned");
	format_usual();
	open_image(LEAKS_WINDOW_CLUSTERS);
	add_snapshot();
	put64(FIRST_FREE * CLUSTER, DEV_CLUSTERS * CLUSTER);
	CU_ASSERT_EQUAL(finish(&r), -EUCLEAN);
	CU_ASSERT_STRING_EQUAL(r.fault ? r.fault : "", "table beyond the end of the device");
	close_all();
}

/* ---- the set of touched clusters ----------------------------------------------------------- */

static void test_busy(void)
{
	struct busy busy;
	u64 c;

	CU_ASSERT_EQUAL_FATAL(busy_init(&busy, 100000), 0);
	for (c = 0; c < 100000; c += 9973)
		busy_set(&busy, c);
	busy_set(&busy, 100000);
	for (c = 0; c < 100000; c++)
		CU_ASSERT_EQUAL(busy_test(&busy, c), c % 9973 == 0);
	busy.lost = true;
	CU_ASSERT(busy_test(&busy, 1));
	busy_exit(&busy);
}

int main(void)
{
	static const struct unit_test tests[] = {
		{ "nothing leaked", test_nothing_leaked },
		{ "leak", test_leak },
		{ "beyond the end of a file", test_beyond_the_end },
		{ "windows", test_windows },
		{ "flush first", test_flush_first },
		{ "touched", test_touched },
		{ "mapped behind", test_mapped_behind },
		{ "table replaced", test_table_replaced },
		{ "table grows", test_table_grows },
		{ "snapshot", test_snapshot },
		{ "bitmap", test_bitmap },
		{ "compressed", test_compressed },
		{ "used and not counted", test_used_and_not_counted },
		{ "bad tables", test_bad_tables },
		{ "busy", test_busy },
		{ NULL, NULL },
	};

	return mock_main("leaks", tests);
}
