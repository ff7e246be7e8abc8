// SPDX-License-Identifier: GPL-2.0-or-later
/* The allocator: every width, growth of its tables, a full device, bad images. */
#include "mock-loop.h"
#include "random.h"

#include <endian.h>
#include <errno.h>
#include <qchain/refcount.h>
#include <stdlib.h>
#include <uapi/qcow2.h>

#define HOUSEKEEP_NS 500000000ull
/* Clusters that a device of 512 of them keeps for tables. */
#define RESERVE 16u

static struct io_dev *disk;
static struct image *img;
static struct meta *meta;
static struct refcounts *rc;
static int failed;

static void on_linked(void *arg, u64 mark)
{
}

static void on_failed(void *arg, int error)
{
	failed = error;
}

static const struct meta_ops ops = { .linked = on_linked, .failed = on_failed };

/* ---- an image ------------------------------------------------------------- */

struct geometry {
	u32 cluster_bits;
	u32 refcount_order;
	u64 dev_bytes;
	bool file;
};

static void format(const struct geometry *g)
{
	struct image_create_options options;
	struct qc_err err = { 0 };

	image_create_defaults(&options);
	options.cluster_bits = g->cluster_bits;
	options.refcount_order = g->refcount_order;
	options.virtual_size = 64 * KiB;
	CU_ASSERT_EQUAL_FATAL(io_mock_dev_create("disk", g->file ? 0 : g->dev_bytes, 256 * MiB,
						 !g->file, &disk), 0);
	if (image_create(disk, &options, &err))
		printf("\n    %s\n", err.msg);
	CU_ASSERT_EQUAL_FATAL(err.code, 0);
	disk->ops->refresh_size(disk);
}

static void open_image(void)
{
	struct qc_err err = { 0 };
	u32 block;

	if (image_open(disk, IMAGE_QCOW2, IMAGE_OPEN_WRITE, &img, &err))
		printf("\n    %s\n", err.msg);
	CU_ASSERT_EQUAL_FATAL(err.code, 0);
	block = min(4096u, (u32)image_cluster_bytes(img));
	CU_ASSERT_EQUAL_FATAL(meta_create(mock_loop, disk, block, 1024, &ops, NULL, &meta), 0);
	failed = 0;
}

static void start(const struct geometry *g)
{
	struct qc_err err = { 0 };

	format(g);
	open_image();
	CU_ASSERT_EQUAL_FATAL(refcounts_open(img, meta, &rc, &err), 0);
}

static void close_all(void)
{
	CU_ASSERT_EQUAL(io_mock_pending(mock), 0);
	CU_ASSERT_EQUAL(io_mock_collisions(mock), 0);
	refcounts_close(rc);
	meta_destroy(meta);
	image_close(img);
	io_mock_dev_destroy(disk);
	io_mock_fail(mock, 0, -EIO);
	io_mock_log(mock);
	rc = NULL;
}

/* Everything that is dirty, and everything that becomes so by it. */
static void settle(void)
{
	u32 i;

	for (i = 0; i < 100 && !meta_idle(meta); i++) {
		meta_housekeep(meta);
		run_dry();
	}
	CU_ASSERT(meta_idle(meta));
	CU_ASSERT_FALSE(refcounts_busy(rc));
}

/* ---- asking --------------------------------------------------------------- */

struct asking {
	struct meta_wait wait;
	u32 woken;
};

static void woken(struct meta_wait *wait)
{
	container_of(wait, struct asking, wait)->woken++;
}

/* Step 1 of a growth that failed is tried again after a while. */
static void run_on(const u32 *woken, u32 before)
{
	run_dry();
	if (*woken > before)
		return;
	io_mock_advance(mock, META_OLD_NS);
	run_dry();
}

/* Ask until there is an answer; each -EAGAIN is followed by one call. @want 0: for a table. */
static int take(u32 want, u64 *host, u32 *got)
{
	struct asking a = { .wait = { .fn = woken } };
	u32 asked = 0;
	int ret;

	do {
		*got = 1;
		ret = want ? refcounts_alloc(rc, want, &a.wait, host, got) :
			     refcounts_alloc_table(rc, &a.wait, host);
		if (ret == -EAGAIN)
			run_on(&a.woken, asked);
		CU_ASSERT_FATAL(++asked < 50);
		CU_ASSERT_FATAL(a.woken == asked || ret != -EAGAIN);
	} while (ret == -EAGAIN);
	return ret;
}

static u64 take_one(void)
{
	u64 host = 0;
	u32 got = 0;

	CU_ASSERT_EQUAL_FATAL(take(1, &host, &got), 0);
	CU_ASSERT_EQUAL(got, 1);
	CU_ASSERT(IS_ALIGNED(host, image_cluster_bytes(img)));
	return host;
}

static int give(u64 host, u64 bytes)
{
	struct asking a = { .wait = { .fn = woken } };
	u32 asked = 0;
	int ret;

	do {
		ret = refcounts_release(rc, host, bytes, &a.wait);
		if (ret == -EAGAIN)
			run_dry();
		CU_ASSERT_FATAL(++asked < 200);
	} while (ret == -EAGAIN);
	return ret;
}

/* ---- what the disk says: read without the code under test ----------------- */

static u64 be(u64 at, u32 bytes)
{
	const u8 *p = (u8 *)io_mock_dev_bytes(disk) + at;
	u64 value = 0;

	while (bytes--)
		value = value << 8 | *p++;
	return value;
}

static void put_be64(u64 at, u64 value)
{
	value = htobe64(value);
	memcpy((u8 *)io_mock_dev_bytes(disk) + at, &value, sizeof(value));
}

static u64 table_entry(u64 index)
{
	u64 entries = be(56, 4) * image_cluster_bytes(img) / 8;

	return index < entries ? be(be(48, 8) + 8 * index, 8) : 0;
}

static u64 count_on_disk(u64 cluster)
{
	u32 bits = 1u << be(96, 4);
	u64 per_block = image_cluster_bytes(img) * 8 / bits;
	u64 block = table_entry(cluster / per_block);
	u64 i = cluster % per_block;

	if (!block)
		return 0;
	if (bits >= 8)
		return be(block + i * bits / 8, bits / 8);
	return be(block + i * bits / 8, 1) >> (i * bits % 8) & ((1u << bits) - 1);
}

static void set_count_on_disk(u64 cluster, u16 count) /* 16-bit refcounts */
{
	u64 block = table_entry(cluster / (image_cluster_bytes(img) / 2));
	u8 *p = (u8 *)io_mock_dev_bytes(disk) + block +
		2 * (cluster % (image_cluster_bytes(img) / 2));

	p[0] = count >> 8;
	p[1] = count;
}

static void print_finding(void *arg, const char *line)
{
	u32 *n = arg;

	if (!strstr(line, ": leaked") && (*n)++ < 5)
		printf("\n    %s", line);
}

/* The checker's verdict: no corruption, and as many leaks as nobody references. */
static void expect_check(u64 leaks)
{
	struct check_result result = { 0 };
	struct qc_err err = { 0 };
	struct image *checked;
	u32 lines = 0;

	settle();
	CU_ASSERT_EQUAL_FATAL(image_open(disk, IMAGE_QCOW2, IMAGE_OPEN_CHECK, &checked, &err), 0);
	CU_ASSERT_EQUAL(image_check(checked, 0, print_finding, &lines, &result, &err), 0);
	CU_ASSERT_EQUAL(result.corruptions, 0);
	CU_ASSERT_EQUAL(result.check_errors, 0);
	CU_ASSERT_EQUAL(result.leaks, leaks);
	image_close(checked);
}

/* ---- one width after the other -------------------------------------------- */

static void check_width(u32 order)
{
	struct geometry g = { .cluster_bits = 12, .refcount_order = order, .dev_bytes = 8 * MiB };
	u64 hosts[40];
	u32 i;

	start(&g);
	for (i = 0; i < ARRAY_SIZE(hosts); i++) {
		hosts[i] = take_one();
		if (i)
			CU_ASSERT_EQUAL(hosts[i], hosts[i - 1] + 4096);
	}
	/* the first free one, wherever the last was */
	CU_ASSERT_EQUAL(give(hosts[20], 4096), 0);
	CU_ASSERT_EQUAL(give(hosts[3], 4096), 0);
	CU_ASSERT_EQUAL(give(hosts[7], 4096), 0);
	CU_ASSERT_EQUAL(take_one(), hosts[3]);
	CU_ASSERT_EQUAL(take_one(), hosts[7]);
	CU_ASSERT_EQUAL(take_one(), hosts[20]);
	CU_ASSERT_EQUAL(take_one(), hosts[39] + 4096);
	CU_ASSERT_EQUAL(give(hosts[10], 4096), 0);
	expect_check(40);
	CU_ASSERT_EQUAL(count_on_disk(hosts[9] / 4096), 1);
	CU_ASSERT_EQUAL(count_on_disk(hosts[10] / 4096), 0);
	close_all();
}

static void test_widths(void)
{
	u32 order;

	for (order = 0; order <= QCOW2_MAX_REFCOUNT_ORDER; order++)
		check_width(order);
}

/* ---- runs and ranges ------------------------------------------------------ */

static void test_runs(void)
{
	struct geometry g = { .cluster_bits = 16, .refcount_order = 4, .dev_bytes = 64 * MiB };
	u64 first, host;
	u32 got;

	start(&g);
	CU_ASSERT_EQUAL(take(20, &first, &got), 0);
	CU_ASSERT_EQUAL(got, 20);
	CU_ASSERT_EQUAL(give(first + 2 * 65536, 3 * 65536), 0);
	CU_ASSERT_EQUAL(give(first + 10 * 65536, 65536), 0);
	CU_ASSERT_EQUAL(take(5, &host, &got), 0); /* as many as lie side by side */
	CU_ASSERT_EQUAL(host, first + 2 * 65536);
	CU_ASSERT_EQUAL(got, 3);
	CU_ASSERT_EQUAL(take(5, &host, &got), 0);
	CU_ASSERT_EQUAL(host, first + 10 * 65536);
	CU_ASSERT_EQUAL(got, 1);
	CU_ASSERT_EQUAL(take(5, &host, &got), 0);
	CU_ASSERT_EQUAL(host, first + 20 * 65536);
	CU_ASSERT_EQUAL(got, 5);
	expect_check(25);
	close_all();
}

/* A compressed cluster's bytes: every cluster that they touch has one reference. */
static void test_release_bytes(void)
{
	struct geometry g = { .cluster_bits = 12, .refcount_order = 4, .dev_bytes = 4 * MiB };
	u64 host;
	u32 got;

	start(&g);
	CU_ASSERT_EQUAL(take(4, &host, &got), 0);
	CU_ASSERT_EQUAL(give(host + 4096 + 4000, 600), 0);
	expect_check(2);
	CU_ASSERT_EQUAL(count_on_disk(host / 4096), 1);
	CU_ASSERT_EQUAL(count_on_disk(host / 4096 + 1), 0);
	CU_ASSERT_EQUAL(count_on_disk(host / 4096 + 2), 0);
	CU_ASSERT_EQUAL(count_on_disk(host / 4096 + 3), 1);
	close_all();
}

/* Shared with a snapshot: one reference less, and not free yet. */
static void test_release_shared(void)
{
	struct geometry g = { .cluster_bits = 12, .refcount_order = 4, .dev_bytes = 4 * MiB };
	u64 host;

	start(&g);
	host = take_one();
	settle();
	close_all();
	format(&g);
	open_image();
	set_count_on_disk(host / 4096, 2);
	CU_ASSERT_EQUAL_FATAL(refcounts_open(img, meta, &rc, NULL), 0);
	CU_ASSERT_EQUAL(give(host, 4096), 0);
	CU_ASSERT_EQUAL(take_one(), host + 4096);
	CU_ASSERT_EQUAL(give(host, 4096), 0);
	CU_ASSERT_EQUAL(take_one(), host);
	close_all();
}

/* A count that is zero already: nothing changes, not even the part before it. */
static void test_release_free(void)
{
	struct geometry g = { .cluster_bits = 12, .refcount_order = 4, .dev_bytes = 4 * MiB };
	u64 host;

	start(&g);
	host = take_one();
	CU_ASSERT_EQUAL(give(host, 8192), -EUCLEAN);
	CU_ASSERT_EQUAL(give(3 * MiB, 4096), -EUCLEAN);
	expect_check(1);
	CU_ASSERT_EQUAL(count_on_disk(host / 4096), 1);
	close_all();
}

/* A range over several refcount blocks that are not in the cache. */
static void test_release_over_blocks(void)
{
	struct geometry g = { .cluster_bits = 9, .refcount_order = 6, .dev_bytes = 1 * MiB };
	u64 first, host;
	u32 got, n = 0;

	start(&g);
	first = take_one();
	while (n < 400) {
		CU_ASSERT_EQUAL_FATAL(take(64, &host, &got), 0);
		n += got;
	}
	settle();
	meta_forget(meta, 0, 1 * MiB);
	CU_ASSERT_EQUAL(give(first, 200 * 512), 0);
	CU_ASSERT_EQUAL(take_one(), first);
	settle();
	CU_ASSERT_EQUAL(count_on_disk(first / 512 + 199), 0);
	CU_ASSERT_EQUAL(count_on_disk(first / 512 + 200), 1);
	close_all();
}

/* ---- growth --------------------------------------------------------------- */

/* Take what data may have of a small device. */
static u64 take_data(void)
{
	u64 host, taken = 0;
	u32 got;
	int ret;

	while (!(ret = take(37, &host, &got))) {
		CU_ASSERT_FATAL(host + got * image_cluster_bytes(img) <= disk->size_bytes);
		taken += got;
	}
	CU_ASSERT_EQUAL(ret, -ENOSPC);
	return taken;
}

/* ... and all that is kept for tables: every cluster is used then. */
static u64 take_all(void)
{
	u64 host, taken = take_data();
	u32 got;
	int ret;

	while (!(ret = take(0, &host, &got)))
		taken++;
	CU_ASSERT_EQUAL(ret, -ENOSPC);
	return taken;
}

static void check_growth(const struct geometry *g)
{
	u64 taken, c, clusters = g->dev_bytes >> g->cluster_bits;
	u64 uncounted = 0;

	start(g);
	taken = take_all();
	CU_ASSERT(taken > clusters * 8 / 10);
	expect_check(taken);
	for (c = 0; c < clusters; c++)
		uncounted += !count_on_disk(c);
	/* at the end a block may have had no room to count what is left */
	CU_ASSERT(uncounted <= 16);
	CU_ASSERT_EQUAL(failed, 0);
	close_all();
}

/* Blocks in the table as it is; then a table that must be replaced, several times. */
static void test_growth(void)
{
	static const struct geometry g[] = {
		{ .cluster_bits = 16, .refcount_order = 6, .dev_bytes = 64 * MiB },
		{ .cluster_bits = 9, .refcount_order = 4, .dev_bytes = 10 * MiB },
		{ .cluster_bits = 9, .refcount_order = 6, .dev_bytes = 8 * MiB + 5 * 512 },
		{ .cluster_bits = 9, .refcount_order = 5, .dev_bytes = 9 * MiB },
		{ .cluster_bits = 10, .refcount_order = 6, .dev_bytes = 20 * MiB },
		{ .cluster_bits = 9, .refcount_order = 0, .dev_bytes = 4 * MiB },
	};
	u32 i;

	for (i = 0; i < ARRAY_SIZE(g); i++)
		check_growth(&g[i]);
}

/* 64 counts in a block of 512 bytes: take all that the first blocks count. */
static u64 fill_blocks(u64 clusters)
{
	u64 taken = 1;

	while (take_one() / 512 < clusters - 1)
		taken++;
	settle();
	io_mock_log(mock);
	return taken;
}

/* Rule B1, step 0: the block complete, a flush, then the one sector that names it. */
static void test_growth_order(void)
{
	struct geometry g = { .cluster_bits = 9, .refcount_order = 6, .dev_bytes = 1 * MiB };
	struct asking a = { .wait = { .fn = woken } };
	u64 host, new_block;
	u32 got, index;
	char expected[128];

	start(&g);
	fill_blocks(192);
	index = 192 / 64;
	CU_ASSERT_EQUAL(table_entry(index), 0);
	new_block = 192 * 512;
	CU_ASSERT_EQUAL(refcounts_alloc(rc, 1, &a.wait, &host, &got), -EAGAIN);
	CU_ASSERT(refcounts_busy(rc));
	run_dry();
	snprintf(expected, sizeof(expected), "write disk %llu+512, flush disk, write disk %llu+512",
		 (unsigned long long)new_block, (unsigned long long)be(48, 8));
	expect_log(expected);
	CU_ASSERT_EQUAL(a.woken, 1);
	CU_ASSERT_FALSE(refcounts_busy(rc));
	CU_ASSERT_EQUAL(table_entry(index), new_block);
	CU_ASSERT_EQUAL(count_on_disk(192), 1); /* counts itself */
	CU_ASSERT_EQUAL(refcounts_alloc(rc, 1, &a.wait, &host, &got), -EAGAIN); /* to read it */
	run_dry();
	CU_ASSERT_EQUAL(refcounts_alloc(rc, 1, &a.wait, &host, &got), 0);
	CU_ASSERT_EQUAL(host, new_block + 512);
	close_all();
}

/* A larger table: blocks and table, a flush, then the header; the old one is freed later. */
static void test_table_growth_order(void)
{
	struct geometry g = { .cluster_bits = 9, .refcount_order = 6, .dev_bytes = 8 * MiB };
	u64 old_table, old_clusters, taken, host;
	u64 full = 64 * 64; /* clusters that a table of one cluster can count */
	u32 got;

	start(&g);
	old_table = be(48, 8);
	old_clusters = be(56, 4);
	CU_ASSERT_EQUAL_FATAL(old_clusters, 1);
	taken = fill_blocks(full);
	CU_ASSERT_EQUAL(take(1, &host, &got), 0);
	CU_ASSERT_NOT_EQUAL(be(48, 8), old_table);
	CU_ASSERT(be(56, 4) > old_clusters);
	CU_ASSERT(host > be(48, 8));
	CU_ASSERT_EQUAL(img->reftable_offset, be(48, 8));
	CU_ASSERT_EQUAL(img->reftable_clusters, be(56, 4));
	CU_ASSERT_PTR_NULL(overlap_what(img, old_table));
	CU_ASSERT_PTR_NOT_NULL(overlap_what(img, be(48, 8)));
	CU_ASSERT_EQUAL(count_on_disk(old_table / 512), 1); /* not before the next flush */
	settle();
	CU_ASSERT_EQUAL(count_on_disk(old_table / 512), 0);
	CU_ASSERT_EQUAL(take_one(), old_table);
	expect_check(taken + 2);
	close_all();
}

/* A regular file grows with its image. */
static void test_growth_of_a_file(void)
{
	struct geometry g = { .cluster_bits = 9, .refcount_order = 6, .file = true };
	u32 i;

	start(&g);
	for (i = 0; i < 1000; i++)
		take_one();
	settle();
	CU_ASSERT_EQUAL(failed, 0);
	close_all();
}

/* ---- full ----------------------------------------------------------------- */

static void test_full(void)
{
	struct geometry g = { .cluster_bits = 12, .refcount_order = 4, .dev_bytes = 2 * MiB };
	u64 host, limit;
	u32 got;

	start(&g);
	limit = refcounts_limit(rc);
	CU_ASSERT_EQUAL(limit, 512);
	take_data();
	CU_ASSERT_EQUAL(take(1, &host, &got), -ENOSPC);
	/* something was given back */
	CU_ASSERT_EQUAL(give(300 * 4096, 4096), 0);
	CU_ASSERT_EQUAL(take_one(), 300 * 4096);
	CU_ASSERT_EQUAL(take(1, &host, &got), -ENOSPC);
	/* the volume was extended, by less than a cluster, then by two */
	io_mock_dev_resize(disk, 2 * MiB + 2048);
	disk->ops->refresh_size(disk);
	CU_ASSERT_EQUAL(take(1, &host, &got), -ENOSPC);
	io_mock_dev_resize(disk, 2 * MiB + 8192);
	disk->ops->refresh_size(disk);
	CU_ASSERT_EQUAL(take(5, &host, &got), 0);
	CU_ASSERT_EQUAL(host, 2 * MiB - RESERVE * 4096);
	CU_ASSERT_EQUAL(got, 1); /* one more is kept for tables */
	CU_ASSERT_EQUAL(take(1, &host, &got), -ENOSPC);
	settle();
	close_all();
}

/* Rule E2: on a device that is full for data, tables still find room; it comes back. */
static void test_reserve(void)
{
	struct geometry g = { .cluster_bits = 12, .refcount_order = 4, .dev_bytes = 2 * MiB };
	u64 host;
	u32 got, i;

	start(&g);
	take_data();
	for (i = 0; i < RESERVE; i++) {
		CU_ASSERT_EQUAL(take(0, &host, &got), 0);
		CU_ASSERT_EQUAL(host, 2 * MiB - (RESERVE - i) * 4096);
	}
	CU_ASSERT_EQUAL(take(0, &host, &got), -ENOSPC);
	CU_ASSERT_EQUAL(give(2 * MiB - 4096, 4096), 0);
	CU_ASSERT_EQUAL(take(1, &host, &got), -ENOSPC);
	CU_ASSERT_EQUAL(give(300 * 4096, 4096), 0);
	CU_ASSERT_EQUAL(take_one(), 300 * 4096);
	CU_ASSERT_EQUAL(take(0, &host, &got), 0);
	settle();
	close_all();
}

/* No room for the tables that growth needs: asked often, nothing is left behind. */
static void test_full_for_the_table(void)
{
	struct geometry g = { .cluster_bits = 9, .refcount_order = 6,
			      .dev_bytes = 64 * 64 * 512 + 512 };
	u64 host, taken;
	u32 got, i;

	start(&g);
	taken = take_all();
	for (i = 0; i < 10; i++)
		CU_ASSERT_EQUAL(take(1, &host, &got), -ENOSPC);
	expect_check(taken);
	io_mock_dev_resize(disk, 3 * MiB);
	disk->ops->refresh_size(disk);
	take_one();
	settle();
	close_all();
}

/* ---- errors --------------------------------------------------------------- */

/* The n-th I/O of a growth fails: an error or success, and it works the next time. */
static void fail_growth(u32 n, u64 filled)
{
	struct geometry g = { .cluster_bits = 9, .refcount_order = 6, .dev_bytes = 8 * MiB };
	u64 host;
	u32 got;
	int ret;

	start(&g);
	fill_blocks(filled);
	meta_forget(meta, 0, 4 * MiB); /* tables must be read again */
	io_mock_fail(mock, n, -EIO);
	ret = take(1, &host, &got);
	io_mock_fail(mock, 0, -EIO);
	CU_ASSERT(ret == 0 || ret == -EIO);
	if (failed) {
		CU_ASSERT_FALSE(refcounts_busy(rc));
		close_all();
		return;
	}
	CU_ASSERT_EQUAL(take(1, &host, &got), 0);
	CU_ASSERT_EQUAL(host / 512, filled + (ret ? 1 : 2) + (filled > 4000 ? 2 : 0));
	settle();
	close_all();
}

static void test_growth_fails(void)
{
	u32 n;

	for (n = 1; n <= 6; n++)
		fail_growth(n, 192);
}

static void test_table_growth_fails(void)
{
	u32 n;

	for (n = 1; n <= 6; n++)
		fail_growth(n, 64 * 64);
}

struct eager {
	struct meta_wait wait;
	u32 asked;
	int ret;
	u64 host;
	u32 got;
};

/* Asks from its own callback, as an operation that waits does. */
static void ask_at_once(struct meta_wait *wait)
{
	struct eager *e = container_of(wait, struct eager, wait);

	CU_ASSERT_FATAL(++e->asked < 50);
	e->ret = refcounts_alloc(rc, 1, wait, &e->host, &e->got);
}

/* Several wait for one growth: all hear of its error, if any, and get their cluster. */
static void fail_for_all(u32 n)
{
	struct geometry g = { .cluster_bits = 9, .refcount_order = 6, .dev_bytes = 1 * MiB };
	struct eager e[3];
	u32 i;

	start(&g);
	fill_blocks(192);
	meta_forget(meta, 0, 1 * MiB);
	io_mock_fail(mock, n, -EIO);
	for (i = 0; i < ARRAY_SIZE(e); i++) {
		e[i] = (struct eager){ .wait = { .fn = ask_at_once } };
		ask_at_once(&e[i].wait);
		CU_ASSERT_EQUAL(e[i].ret, -EAGAIN);
	}
	run_dry();
	for (i = 0; i < ARRAY_SIZE(e) && n == 1; i++) {
		CU_ASSERT_EQUAL(e[i].ret, -EIO);
		ask_at_once(&e[i].wait);
	}
	run_dry();
	io_mock_advance(mock, META_OLD_NS);
	run_dry();
	for (i = 0; i < ARRAY_SIZE(e); i++) {
		CU_ASSERT_EQUAL(e[i].ret, 0);
		CU_ASSERT_EQUAL(e[i].host, (193 + i) * 512);
	}
	settle();
	close_all();
}

static void test_growth_fails_for_all(void)
{
	fail_for_all(1); /* reading the sector that will name the block */
	fail_for_all(2); /* writing the block: tried again */
}

/* ---- images that lie (rule B7) -------------------------------------------- */

/* A table that nobody counts looks free: it is not handed out. */
static void test_uncounted_metadata(void)
{
	struct geometry g = { .cluster_bits = 16, .refcount_order = 4, .dev_bytes = 4 * MiB };
	u64 host, l1;
	u32 got;

	format(&g);
	open_image();
	l1 = img->l1_offset >> 16;
	set_count_on_disk(l1, 0);
	CU_ASSERT_EQUAL_FATAL(refcounts_open(img, meta, &rc, NULL), 0);
	CU_ASSERT_EQUAL(take(1, &host, &got), -EUCLEAN);
	close_all();
}

/* The same behind free clusters: those are given or left, not lost. */
static void test_uncounted_behind_free(void)
{
	struct geometry g = { .cluster_bits = 16, .refcount_order = 4, .dev_bytes = 4 * MiB };
	u64 host = 0;
	u32 got = 0;

	format(&g);
	open_image();
	CU_ASSERT_EQUAL_FATAL(refcounts_open(img, meta, &rc, NULL), 0);
	CU_ASSERT_EQUAL(overlap_add(img, 10 << 16, 65536), 0);
	if (take(20, &host, &got))
		got = 0;
	settle();
	CU_ASSERT_EQUAL(host, img->l1_offset + 65536);
	CU_ASSERT_EQUAL(got, 10 - (host >> 16));
	CU_ASSERT_EQUAL(count_on_disk(9), got ? 1 : 0);
	CU_ASSERT_EQUAL(count_on_disk(10), 0);
	close_all();
}

/* The first block is missing: its place would be the header's. */
static void test_no_first_block(void)
{
	struct geometry g = { .cluster_bits = 16, .refcount_order = 4, .dev_bytes = 4 * MiB };
	u64 host;
	u32 got;
	int ret;

	format(&g);
	open_image();
	put_be64(be(48, 8), 0);
	ret = refcounts_open(img, meta, &rc, NULL);
	if (!ret)
		ret = take(1, &host, &got);
	CU_ASSERT_EQUAL(ret, -EUCLEAN);
	CU_ASSERT_EQUAL(be(0, 4), QCOW2_MAGIC);
	close_all();
}

/* A refcount block where another table lies would be written over it. */
static void refuse_block_at(u64 entry)
{
	struct geometry g = { .cluster_bits = 16, .refcount_order = 4, .dev_bytes = 4 * MiB };
	struct qc_err err = { 0 };

	format(&g);
	open_image();
	put_be64(be(48, 8) + 8, entry == 1 ? img->l1_offset : entry == 2 ? be(48, 8) : entry);
	rc = NULL;
	CU_ASSERT_EQUAL(refcounts_open(img, meta, &rc, &err), -EUCLEAN);
	CU_ASSERT_PTR_NOT_NULL(strstr(err.msg, "disk: "));
	close_all();
}

static void test_bad_refcount_table(void)
{
	refuse_block_at(1 * MiB + 512); /* not aligned */
	refuse_block_at(1ull << 40); /* outside */
}

static void test_refcount_block_on_a_table(void)
{
	refuse_block_at(1); /* the L1 table */
	refuse_block_at(2); /* the refcount table */
}

/* The table cannot be read. */
static int no_pread(struct io_dev *dev, void *buf, size_t len, u64 offset)
{
	return -EIO;
}

static void test_open_fails(void)
{
	struct geometry g = { .cluster_bits = 16, .refcount_order = 4, .dev_bytes = 4 * MiB };
	const struct io_dev_ops *good;
	struct io_dev_ops broken;
	struct qc_err err = { 0 };

	format(&g);
	open_image();
	good = disk->ops;
	broken = *good;
	broken.pread = no_pread;
	disk->ops = &broken;
	rc = NULL;
	CU_ASSERT_EQUAL(refcounts_open(img, meta, &rc, &err), -EIO);
	CU_ASSERT_PTR_NULL(rc);
	disk->ops = good;
	close_all();
}

/* ---- against a model ------------------------------------------------------ */

#define MODEL_CLUSTERS 4000u

static u8 used[MODEL_CLUSTERS];

static void model_take(struct rnd *r)
{
	u64 host, c;
	u32 got, i;
	int ret = take(rnd_between(r, 1, 9), &host, &got);

	if (ret) {
		CU_ASSERT_EQUAL(ret, -ENOSPC);
		return;
	}
	c = host / 512;
	CU_ASSERT_FATAL(c + got <= MODEL_CLUSTERS);
	for (i = 0; i < got; i++) {
		CU_ASSERT_FATAL(!used[c + i]);
		used[c + i] = 1;
	}
}

static void model_give(struct rnd *r)
{
	u64 c = rnd_below(r, MODEL_CLUSTERS);
	u32 n = 0, most = rnd_between(r, 1, 12);

	while (c < MODEL_CLUSTERS && !used[c])
		c++;
	while (n < most && c + n < MODEL_CLUSTERS && used[c + n])
		used[c + n++] = 0;
	if (n)
		CU_ASSERT_EQUAL_FATAL(give(c * 512, n * 512), 0);
}

static void run_model(struct rnd *r, u32 order)
{
	struct geometry g = { .cluster_bits = 9, .refcount_order = order,
			      .dev_bytes = MODEL_CLUSTERS * 512 };
	u64 in_use = 0, wrong = 0, c;
	u32 i;

	start(&g);
	memset(used, 0, sizeof(used));
	io_mock_order(mock, IO_MOCK_SHUFFLE, rnd(r));
	for (i = 0; i < 1500; i++) {
		if (rnd_below(r, 100) < (i < 700 ? 70 : 40))
			model_take(r);
		else
			model_give(r);
		if (rnd_once(r, 40)) {
			io_mock_advance(mock, HOUSEKEEP_NS);
			loop_run_once(mock_loop, false);
		}
	}
	run_dry();
	io_mock_order(mock, IO_MOCK_HOLD, 0);
	for (c = 0; c < MODEL_CLUSTERS; c++)
		in_use += used[c];
	expect_check(in_use);
	for (c = 0; c < MODEL_CLUSTERS; c++)
		wrong += used[c] && count_on_disk(c) != 1;
	CU_ASSERT_EQUAL(wrong, 0);
	close_all();
}

static void test_model(void)
{
	struct rnd r = { rnd_seed("refcounts") };
	u32 order;

	for (order = 0; order <= QCOW2_MAX_REFCOUNT_ORDER; order++)
		run_model(&r, order);
}

int main(void)
{
	static const struct unit_test tests[] = {
		{ "every width", test_widths },
		{ "runs", test_runs },
		{ "release of bytes", test_release_bytes },
		{ "release of a shared cluster", test_release_shared },
		{ "release of a free cluster", test_release_free },
		{ "release over several blocks", test_release_over_blocks },
		{ "growth", test_growth },
		{ "order of growth", test_growth_order },
		{ "order of table growth", test_table_growth_order },
		{ "growth of a file", test_growth_of_a_file },
		{ "full", test_full },
		{ "reserve", test_reserve },
		{ "full for the table", test_full_for_the_table },
		{ "growth fails", test_growth_fails },
		{ "table growth fails", test_table_growth_fails },
		{ "growth fails for all who wait", test_growth_fails_for_all },
		{ "uncounted metadata", test_uncounted_metadata },
		{ "uncounted behind free clusters", test_uncounted_behind_free },
		{ "no first block", test_no_first_block },
		{ "bad refcount table", test_bad_refcount_table },
		{ "refcount block on a table", test_refcount_block_on_a_table },
		{ "open fails", test_open_fails },
		{ "against a model", test_model },
		{ NULL, NULL },
	};

	return mock_main("refcount", tests);
}
