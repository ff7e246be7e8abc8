// SPDX-License-Identifier: GPL-2.0-or-later
/* The checker: verdicts, repairs, repairs cut at every write, hostile images. */
#include <endian.h>
#include <stdio.h>
#include <sys/resource.h>
#include <uapi/qcow2.h>

#include "ram-dev.h"

#define MEMORY MiB
#define CLUSTER_BITS 12u
#define CLUSTER (1ull << CLUSTER_BITS)

#if defined(__SANITIZE_ADDRESS__)
#define SANITIZED 1
#elif defined(__has_feature)
#define SANITIZED __has_feature(address_sanitizer)
#else
#define SANITIZED 0
#endif

/*
 * The image of most tests: 4 KiB clusters, metadata preallocated for 128 KiB
 * with data mapped in full: header, table, block, L1, L2, 32 data clusters.
 */
#define TABLE_AT CLUSTER
#define BLOCK_AT (2 * CLUSTER)
#define L1_AT (3 * CLUSTER)
#define L2_AT (4 * CLUSTER)
#define DATA_AT (5 * CLUSTER)
#define DATA_CLUSTERS 32u
#define END_AT (DATA_AT + DATA_CLUSTERS * CLUSTER)

/* ---- images ---------------------------------------------------------------------- */

static struct ram_dev *make_image(u32 order, bool extl2)
{
	struct ram_dev *ram = ram_create(MEMORY, MEMORY, true, 0);
	struct image_create_options o;

	image_create_defaults(&o);
	o.virtual_size = DATA_CLUSTERS * CLUSTER;
	o.cluster_bits = CLUSTER_BITS;
	o.refcount_order = order;
	o.preallocation = PREALLOC_FULL;
	if (extl2) {
		o.cluster_bits = 14;
		o.virtual_size = DATA_CLUSTERS << 14;
		o.extl2 = true;
	}
	CU_ASSERT_EQUAL_FATAL(image_create(&ram->dev, &o, NULL), 0);
	/* What the guest sees, to be compared after repairs. */
	if (!extl2)
		for (u32 i = 0; i < DATA_CLUSTERS; i++)
			memset(ram->memory + DATA_AT + i * CLUSTER, 'a' + i, CLUSTER);
	ram_start_log(ram);
	return ram;
}

static u64 get64(const struct ram_dev *ram, u64 at)
{
	u64 v;

	memcpy(&v, ram->memory + at, sizeof(v));
	return be64toh(v);
}

static void put64(struct ram_dev *ram, u64 at, u64 v)
{
	v = htobe64(v);
	memcpy(ram->memory + at, &v, sizeof(v));
}

static void put16(struct ram_dev *ram, u64 at, u16 v)
{
	v = htobe16(v);
	memcpy(ram->memory + at, &v, sizeof(v));
}

static void put32(struct ram_dev *ram, u64 at, u32 v)
{
	v = htobe32(v);
	memcpy(ram->memory + at, &v, sizeof(v));
}

static void set_refcount16(struct ram_dev *ram, u64 cluster, u16 v)
{
	put16(ram, BLOCK_AT + 2 * cluster, v);
}

/* ---- checking -------------------------------------------------------------------- */

static bool talkative;

static void print_line(void *arg, const char *line)
{
	u32 *nr = arg;

	(*nr)++;
	if (talkative)
		printf("  %s\n", line);
}

static struct check_result check_with(struct ram_dev *ram, u32 fix, int expected)
{
	struct check_result result = {};
	struct qc_err err = {};
	struct image *img = NULL;
	u32 lines = 0;
	int ret;

	ret = image_open(&ram->dev, IMAGE_QCOW2, IMAGE_OPEN_CHECK | IMAGE_OPEN_BITMAPS, &img, &err);
	CU_ASSERT_EQUAL_FATAL(ret, 0);
	ret = image_check(img, fix, print_line, &lines, &result, &err);
	CU_ASSERT_EQUAL(ret, expected);
	if (ret != expected)
		printf("\n%d: %s\n", ret, err.msg);
	if (result.corruptions || result.leaks)
		CU_ASSERT_TRUE(lines > 0);
	image_close(img);
	return result;
}

static void verdict(struct ram_dev *ram, u64 corruptions, u64 leaks)
{
	struct check_result result = check_with(ram, 0, 0);

	CU_ASSERT_EQUAL(result.corruptions, corruptions);
	CU_ASSERT_EQUAL(result.leaks, leaks);
	CU_ASSERT_EQUAL(result.check_errors, 0);
	CU_ASSERT_EQUAL(ram->nr_writes, 0);
}

/* What the guest reads; 0 where nothing is mapped. */
static void read_guest(const struct ram_dev *ram, u8 *content)
{
	u64 l2 = get64(ram, L1_AT) & QCOW2_OFFSET_MASK;

	for (u32 i = 0; i < DATA_CLUSTERS; i++) {
		u64 entry = get64(ram, l2 + 8 * i);
		u64 host = entry & QCOW2_OFFSET_MASK;

		memset(content + i * CLUSTER, 0, CLUSTER);
		if (host && !(entry & QCOW2_ZERO) && host + CLUSTER <= MEMORY)
			memcpy(content + i * CLUSTER, ram->memory + host, CLUSTER);
	}
}

/*
 * Repair; cut the repair at every write, with any part of what was not flushed.
 * Whatever is left can be repaired to the same, and no cut changes what the
 * guest reads. @fix: what is asked for; afterwards all must be well.
 */
static void repair_at_every_cut(struct ram_dev *ram, u32 fix)
{
	static u8 before[DATA_CLUSTERS * CLUSTER], after[DATA_CLUSTERS * CLUSTER];
	struct check_result result;

	ram_start_log(ram);
	read_guest(ram, before);
	check_with(ram, fix, 0);
	CU_ASSERT_TRUE(ram->nr_writes > 0);
	for (u32 at = 0; at <= ram->nr_writes; at++) {
		for (u32 seed = 0; seed < 8; seed++) {
			struct ram_dev *cut = ram_cut(ram, at, seed);

			read_guest(cut, after);
			CU_ASSERT_EQUAL(memcmp(before, after, sizeof(before)), 0);
			check_with(cut, CHECK_FIX_LEAKS | CHECK_FIX_ERRORS, 0);
			result = check_with(cut, 0, 0);
			CU_ASSERT_EQUAL(result.corruptions + result.leaks + result.check_errors, 0);
			read_guest(cut, after);
			CU_ASSERT_EQUAL(memcmp(before, after, sizeof(before)), 0);
			ram_destroy(cut);
		}
	}
	result = check_with(ram, 0, 0);
	CU_ASSERT_EQUAL(result.corruptions + result.leaks + result.check_errors, 0);
}

#define FIX_ALL (CHECK_FIX_LEAKS | CHECK_FIX_ERRORS)

/* ---- verdicts and repairs --------------------------------------------------------- */

static void test_good(void)
{
	for (u32 order = 0; order <= 6; order++) {
		struct ram_dev *ram = make_image(order, order % 2);
		struct check_result result;

		verdict(ram, 0, 0);
		result = check_with(ram, FIX_ALL, 0);
		CU_ASSERT_EQUAL(ram->nr_writes, 0);
		CU_ASSERT_EQUAL(result.total_clusters, DATA_CLUSTERS);
		CU_ASSERT_EQUAL(result.allocated_clusters, DATA_CLUSTERS);
		CU_ASSERT_EQUAL(result.fragmented_clusters, 0);
		if (!(order % 2))
			CU_ASSERT_EQUAL(result.image_end_offset, END_AT);
		ram_destroy(ram);
	}
}

static void test_leaks(void)
{
	struct ram_dev *ram = make_image(4, false);

	set_refcount16(ram, 100, 1);
	set_refcount16(ram, 102, 7);
	set_refcount16(ram, 6, 2);
	/* A refcount of 2 makes the COPIED flag wrong, too. */
	verdict(ram, 1, 3);
	repair_at_every_cut(ram, CHECK_FIX_LEAKS);
	ram_destroy(ram);
}

static void test_too_low(void)
{
	struct ram_dev *ram = make_image(4, false);

	/* Two entries share a cluster that is counted 2, then 1 is taken away. */
	put64(ram, L2_AT + 8, DATA_AT | QCOW2_COPIED);
	set_refcount16(ram, DATA_AT / CLUSTER, 1);
	verdict(ram, 1, 1);
	repair_at_every_cut(ram, FIX_ALL);
	CU_ASSERT_EQUAL(get64(ram, L2_AT), DATA_AT);
	CU_ASSERT_EQUAL(get64(ram, L2_AT + 8), DATA_AT);
	ram_destroy(ram);
}

static void test_copied(void)
{
	struct ram_dev *ram = make_image(4, false);

	put64(ram, L2_AT, get64(ram, L2_AT) & ~QCOW2_COPIED);
	put64(ram, L1_AT, get64(ram, L1_AT) & ~QCOW2_COPIED);
	verdict(ram, 2, 0);
	repair_at_every_cut(ram, FIX_ALL);
	ram_destroy(ram);
}

static void test_rebuild(void)
{
	struct ram_dev *ram = make_image(4, false);
	struct check_result result;

	set_refcount16(ram, 5, 0);
	verdict(ram, 2, 0); /* and the flag of that cluster */
	result = check_with(ram, CHECK_FIX_LEAKS, -EIO);
	CU_ASSERT_EQUAL(result.check_errors, 1);
	CU_ASSERT_EQUAL(ram->nr_writes, 0);
	repair_at_every_cut(ram, FIX_ALL);
	CU_ASSERT_NOT_EQUAL(get64(ram, 48), TABLE_AT);
	ram_destroy(ram);
}

static void test_rebuild_widths(void)
{
	for (u32 order = 0; order <= 6; order++) {
		struct ram_dev *ram = make_image(order, false);

		put64(ram, TABLE_AT, 0);
		repair_at_every_cut(ram, FIX_ALL);
		ram_destroy(ram);
	}
}

static void test_no_refcount_table(void)
{
	struct ram_dev *ram = make_image(4, false);
	struct check_result result;

	put32(ram, 56, 0);
	result = check_with(ram, 0, 0);
	CU_ASSERT_TRUE(result.check_errors > 0);
	repair_at_every_cut(ram, FIX_ALL);
	ram_destroy(ram);
}

/* A full device has no room for new tables: said, and nothing is changed. */
static void test_rebuild_full(void)
{
	struct ram_dev *ram = make_image(4, false);

	ram->dev.size_bytes = END_AT;
	set_refcount16(ram, 5, 0);
	ram_start_log(ram);
	check_with(ram, FIX_ALL, -ENOSPC);
	CU_ASSERT_EQUAL(ram->nr_writes, 0);
	ram_destroy(ram);
}

static void test_entries(void)
{
	struct ram_dev *ram = make_image(4, false);

	put64(ram, L2_AT, get64(ram, L2_AT) | 1ull << 60);
	put64(ram, L2_AT + 8 * 40, (DATA_AT + 512) | QCOW2_ZERO);
	/* Not aligned: two clusters are used once more, and the flags... */
	CU_ASSERT_TRUE(check_with(ram, 0, 0).corruptions >= 4);
	repair_at_every_cut(ram, FIX_ALL);
	CU_ASSERT_EQUAL(get64(ram, L2_AT + 8 * 40), QCOW2_ZERO);
	CU_ASSERT_EQUAL(get64(ram, L2_AT), DATA_AT | QCOW2_COPIED);
	ram_destroy(ram);
}

static void test_extended(void)
{
	struct ram_dev *ram = make_image(4, true);
	u64 l2 = get64(ram, get64(ram, 40)) & QCOW2_OFFSET_MASK;
	struct check_result result;

	put64(ram, l2 + 16 * 40 + 8, 5);
	verdict(ram, 1, 0);
	put64(ram, l2 + 16 * 41, QCOW2_COMPRESSED | 16384);
	put64(ram, l2 + 16 * 41 + 8, 1);
	verdict(ram, 2, 0);
	put64(ram, l2 + 8, ~0ull);
	verdict(ram, 3, 0);
	result = check_with(ram, FIX_ALL, 0);
	/* Both allocated and zero: nobody knows which. */
	CU_ASSERT_EQUAL(result.corruptions, 1);
	CU_ASSERT_TRUE(result.corruptions_fixed >= 2);
	ram_destroy(ram);
}

static void test_beyond_the_end(void)
{
	struct ram_dev *ram = make_image(4, false);

	put64(ram, L2_AT, (1ull << 50) | QCOW2_COPIED);
	verdict(ram, 2, 1);
	ram_destroy(ram);
}

/* A file was cut off: no leaks today, as to qemu-img, but none after it grows, either. */
static void test_counted_beyond_the_end(void)
{
	struct ram_dev *ram = make_image(4, false);

	ram->dev.blockdev = false;
	ram->dev.size_bytes = END_AT;
	set_refcount16(ram, END_AT / CLUSTER, 1);
	set_refcount16(ram, CLUSTER / 2 - 1, 3);
	ram_start_log(ram);
	verdict(ram, 0, 0);
	CU_ASSERT_EQUAL(check_with(ram, CHECK_FIX_LEAKS, 0).leaks_fixed, 0);
	ram->dev.size_bytes = MEMORY;
	ram_start_log(ram);
	verdict(ram, 0, 0);
	ram_destroy(ram);
}

/* What an entry names there stays counted: it is an error, and no leak. */
static void test_used_beyond_the_end(void)
{
	struct ram_dev *ram = make_image(4, false);

	ram->dev.blockdev = false;
	ram->dev.size_bytes = END_AT - 2 * CLUSTER;
	CU_ASSERT_TRUE(check_with(ram, CHECK_FIX_LEAKS, 0).corruptions > 0);
	ram->dev.size_bytes = MEMORY;
	ram_start_log(ram);
	verdict(ram, 0, 0);
	ram_destroy(ram);
}

/* ---- the bits of the header -------------------------------------------------------- */

static void test_bits(void)
{
	struct ram_dev *ram = make_image(4, false);

	put64(ram, 72, QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT);
	put64(ram, 88, QCOW2_AUTOCLEAR_QCHAIN_OPEN | 1ull << 40);
	verdict(ram, 0, 0);
	repair_at_every_cut(ram, CHECK_FIX_LEAKS);
	CU_ASSERT_EQUAL(get64(ram, 72), 0);
	CU_ASSERT_EQUAL(get64(ram, 88), 0);
	ram_destroy(ram);
}

/* What cannot be repaired keeps the image marked. */
static void test_bits_stay(void)
{
	struct ram_dev *ram = make_image(4, false);

	put64(ram, 72, QCOW2_INCOMPAT_CORRUPT);
	put64(ram, L2_AT, (1ull << 50) | QCOW2_COPIED);
	check_with(ram, FIX_ALL, 0);
	CU_ASSERT_EQUAL(get64(ram, 72), QCOW2_INCOMPAT_CORRUPT);
	ram_destroy(ram);
}

static void test_read_only(void)
{
	struct ram_dev *ram = make_image(4, false);

	ram->dev.writable = false;
	verdict(ram, 0, 0);
	check_with(ram, FIX_ALL, -EROFS);
	ram_destroy(ram);
}

/* Autoclear bits that a repair does not keep are gone before it changes anything. */
static void test_autoclear_first(void)
{
	struct ram_dev *ram = make_image(4, false);

	put64(ram, 88, QCOW2_AUTOCLEAR_QCHAIN_OPEN);
	set_refcount16(ram, 100, 1);
	ram_start_log(ram);
	check_with(ram, CHECK_FIX_LEAKS, 0);
	CU_ASSERT_EQUAL(ram->writes[0].offset, 0);
	CU_ASSERT_EQUAL(ram->writes[1].epoch, ram->writes[0].epoch + 1);
	ram_destroy(ram);
}

/* ---- snapshots ---------------------------------------------------------------------- */

#define SNAPSHOTS_AT END_AT
#define SNAPSHOT_L1_AT (END_AT + CLUSTER)

/* One internal snapshot of all data; with @extra bytes of extra data. */
static struct ram_dev *make_snapshot(u32 extra)
{
	struct ram_dev *ram = make_image(4, false);
	struct qcow2_disk_snapshot *s = (void *)(ram->memory + SNAPSHOTS_AT);

	put32(ram, 60, 1);
	put64(ram, 64, SNAPSHOTS_AT);
	s->l1_table_offset = htobe64(SNAPSHOT_L1_AT);
	s->l1_size = htobe32(1);
	s->id_size = htobe16(1);
	s->name_size = htobe16(4);
	s->vm_state_size = htobe32(77);
	s->extra_data_size = htobe32(extra);
	memcpy(ram->memory + SNAPSHOTS_AT + sizeof(*s) + extra, "1name", 5);
	put64(ram, L1_AT, L2_AT);
	put64(ram, SNAPSHOT_L1_AT, L2_AT);
	for (u32 i = 0; i < DATA_CLUSTERS; i++) {
		put64(ram, L2_AT + 8 * i, DATA_AT + i * CLUSTER);
		set_refcount16(ram, DATA_AT / CLUSTER + i, 2);
	}
	set_refcount16(ram, L2_AT / CLUSTER, 2);
	set_refcount16(ram, SNAPSHOTS_AT / CLUSTER, 1);
	set_refcount16(ram, SNAPSHOT_L1_AT / CLUSTER, 1);
	return ram;
}

static void test_snapshot(void)
{
	struct ram_dev *ram = make_snapshot(24);

	verdict(ram, 0, 0);
	set_refcount16(ram, DATA_AT / CLUSTER, 1);
	/* Now the flag should be there, for who believes the refcount. */
	verdict(ram, 2, 0);
	repair_at_every_cut(ram, FIX_ALL);
	ram_destroy(ram);
}

static void test_short_snapshot(void)
{
	struct ram_dev *ram = make_snapshot(0);
	const struct qcow2_disk_snapshot_extra *extra;
	u64 at;

	verdict(ram, 1, 0);
	repair_at_every_cut(ram, FIX_ALL);
	at = get64(ram, 64);
	CU_ASSERT_NOT_EQUAL(at, SNAPSHOTS_AT);
	extra = (const void *)(ram->memory + at + sizeof(struct qcow2_disk_snapshot));
	CU_ASSERT_EQUAL(be64toh(extra->vm_state_size_large), 77);
	CU_ASSERT_EQUAL(be64toh(extra->disk_size), DATA_CLUSTERS * CLUSTER);
	CU_ASSERT_EQUAL(memcmp((const u8 *)extra + 16, "1name", 5), 0);
	ram_destroy(ram);
}

/* An offset that is negative for who counts with signs. */
static void test_wild_snapshot(void)
{
	struct ram_dev *ram = make_snapshot(24);
	struct check_result result;

	put64(ram, SNAPSHOTS_AT, 0xffffffff00001000ull);
	result = check_with(ram, 0, 0);
	CU_ASSERT_TRUE(result.corruptions > 0);
	check_with(ram, FIX_ALL, 0);
	put64(ram, SNAPSHOTS_AT, 0xfffffffffffff000ull);
	check_with(ram, FIX_ALL, 0);
	ram_destroy(ram);
}

/* ---- hostile images -------------------------------------------------------------------- */

static void test_too_many_clusters(void)
{
	struct ram_dev *ram = make_image(4, false);
	struct check_result result;

	ram->dev.size_bytes = 1ull << 50;
	result = check_with(ram, 0, -EFBIG);
	CU_ASSERT_EQUAL(result.check_errors, 1);
	ram_destroy(ram);
}

/* More clusters than one window of counts has: the same verdict, bounded memory. */
static void test_windows(void)
{
	struct ram_dev *ram = make_image(4, false);
	struct rusage usage;
	u64 far = 300ull << 20; /* cluster in the second window */

	ram->dev.size_bytes = 400ull << (20 + CLUSTER_BITS);
	set_refcount16(ram, 100, 3);
	put64(ram, L2_AT, (far << CLUSTER_BITS) | QCOW2_COPIED);
	/* Its refcount is 0, so its flag is wrong; the old place leaks. */
	verdict(ram, 2, 2);
	check_with(ram, FIX_ALL, -EFBIG);
	check_with(ram, CHECK_FIX_LEAKS, -EIO);
	put64(ram, L2_AT, 0);
	check_with(ram, CHECK_FIX_LEAKS, 0);
	ram_start_log(ram);
	verdict(ram, 0, 0);
	getrusage(RUSAGE_SELF, &usage);
	/* A sanitizer's shadow of the mappings does not count. */
	CU_ASSERT_TRUE(SANITIZED || usage.ru_maxrss < 256 * 1024);
	ram_destroy(ram);
}

/* Any bytes anywhere in the tables: an answer, no crash, and a repair that ends. */
static void test_noise(void)
{
	for (u32 seed = 1; seed <= 300; seed++) {
		struct ram_dev *ram = seed % 3 ? make_image(seed % 7, seed % 2) : make_snapshot(24);
		struct check_result result = {};
		struct image *img = NULL;

		srand(seed);
		for (u32 n = rand() % 20; n; n--) {
			u64 at = rand() % (u32)DATA_AT;

			if (at < 40 && rand() % 4)
				continue;
			ram->memory[at] = rand() % 3 ? 1u << rand() % 8 : rand();
		}
		if (image_open(&ram->dev, IMAGE_QCOW2, IMAGE_OPEN_CHECK | IMAGE_OPEN_BITMAPS, &img,
			       NULL) == 0) {
			image_check(img, 0, NULL, NULL, &result, NULL);
			image_check(img, FIX_ALL, NULL, NULL, &result, NULL);
			image_check(img, 0, NULL, NULL, &result, NULL);
			image_close(img);
		}
		ram_destroy(ram);
	}
	CU_PASS("no crash");
}

/* Every write of a repair that fails: an error, and the image is no worse. */
static void test_write_errors(void)
{
	struct check_result result;
	struct image *img;
	u32 n = 0;
	int ret;

	do {
		struct ram_dev *ram = make_image(4, false);

		set_refcount16(ram, 5, 0);
		put64(ram, L2_AT, get64(ram, L2_AT) | 1ull << 60);
		put64(ram, 72, QCOW2_INCOMPAT_DIRTY);
		ram->fail_write = ++n;
		CU_ASSERT_EQUAL_FATAL(image_open(&ram->dev, IMAGE_QCOW2, IMAGE_OPEN_CHECK, &img,
						 NULL), 0);
		ret = image_check(img, FIX_ALL, NULL, NULL, &result, NULL);
		image_close(img);
		if (ret) {
			CU_ASSERT_EQUAL(ret, -EIO);
			ram->fail_write = 0;
			check_with(ram, FIX_ALL, 0);
		}
		ram_start_log(ram);
		verdict(ram, 0, 0);
		CU_ASSERT_EQUAL(get64(ram, 72), 0);
		ram_destroy(ram);
	} while (ret && n < 50);
	CU_ASSERT_TRUE(n > 4 && n < 50);
}

int main(int argc, char **argv)
{
	static const struct unit_test tests[] = {
		{ "good images", test_good },
		{ "leaks", test_leaks },
		{ "refcount too low", test_too_low },
		{ "COPIED flags", test_copied },
		{ "rebuild", test_rebuild },
		{ "rebuild, all widths", test_rebuild_widths },
		{ "no refcount table", test_no_refcount_table },
		{ "rebuild, full device", test_rebuild_full },
		{ "entries", test_entries },
		{ "extended L2", test_extended },
		{ "beyond the end", test_beyond_the_end },
		{ "counted beyond the end", test_counted_beyond_the_end },
		{ "used beyond the end", test_used_beyond_the_end },
		{ "feature bits", test_bits },
		{ "feature bits stay", test_bits_stay },
		{ "read-only", test_read_only },
		{ "autoclear bits first", test_autoclear_first },
		{ "snapshot", test_snapshot },
		{ "short snapshot entry", test_short_snapshot },
		{ "wild snapshot", test_wild_snapshot },
		{ "too many clusters", test_too_many_clusters },
		{ "windows", test_windows },
		{ "noise", test_noise },
		{ "write errors", test_write_errors },
		{ NULL, NULL },
	};

	talkative = argc > 1;
	return unit_main("check", tests);
}
