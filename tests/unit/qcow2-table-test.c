// SPDX-License-Identifier: GPL-2.0-or-later
/* What one L2 entry means: every row of the specification's tables. */
#include "unit.h"

#include <qchain/image.h>
#include <stdlib.h>
#include <string.h>
#include <uapi/qcow2.h>
#include <unistd.h>

#define DEV_BYTES (1ull << 40)

static struct io_dev dev = { .path = (char *)"mem", .size_bytes = DEV_BYTES, .blockdev = true };

static struct image make_image(u32 version, u32 cluster_bits, bool extl2)
{
	struct image img = {
		.dev = &dev,
		.format = IMAGE_QCOW2,
		.version = version,
		.cluster_bits = cluster_bits,
		.subcluster_bits = cluster_bits - (extl2 ? 5 : 0),
		.subclusters = extl2 ? 32 : 1,
		.l2_entry_bytes = extl2 ? 16 : 8,
		.l2_bits = cluster_bits - (extl2 ? 4 : 3),
	};

	dev.size_bytes = DEV_BYTES;
	dev.blockdev = true;
	return img;
}

static struct cluster_info decode(const struct image *img, u64 entry, u64 bitmap, u32 sc)
{
	struct cluster_info info;

	memset(&info, 0xa5, sizeof(info));
	image_decode(img, entry, bitmap, sc, &info);
	return info;
}

static void expect(const struct image *img, u64 entry, u64 bitmap, u32 sc, enum cluster_kind kind,
		   u64 host, bool copied)
{
	struct cluster_info info = decode(img, entry, bitmap, sc);

	CU_ASSERT_EQUAL(info.kind, kind);
	CU_ASSERT_EQUAL(info.host, host);
	CU_ASSERT_EQUAL(info.copied, copied);
	CU_ASSERT_EQUAL(info.bad, NULL);
	CU_ASSERT_EQUAL(info.compressed_bytes, 0);
}

static void expect_bad(const struct image *img, u64 entry, u64 bitmap, u32 sc, const char *why)
{
	struct cluster_info info = decode(img, entry, bitmap, sc);

	CU_ASSERT_EQUAL(info.kind, CLUSTER_BAD);
	CU_ASSERT_FALSE(info.copied);
	CU_ASSERT_PTR_NOT_NULL_FATAL(info.bad);
	CU_ASSERT_PTR_NOT_NULL(strstr(info.bad, why));
}

static void test_standard(void)
{
	struct image img = make_image(3, 16, false);
	u64 place = 0x50000;

	expect(&img, 0, 0, 0, CLUSTER_UNALLOCATED, 0, false);
	expect(&img, place, 0, 0, CLUSTER_DATA, place, false);
	expect(&img, place | QCOW2_COPIED, 0, 0, CLUSTER_DATA, place, true);
	expect(&img, QCOW2_ZERO, 0, 0, CLUSTER_ZERO, 0, false);
	expect(&img, place | QCOW2_ZERO, 0, 0, CLUSTER_ZERO_PLACE, place, false);
	expect(&img, place | QCOW2_ZERO | QCOW2_COPIED, 0, 0, CLUSTER_ZERO_PLACE, place, true);
	/* Only a checker minds. */
	expect(&img, QCOW2_COPIED, 0, 0, CLUSTER_UNALLOCATED, 0, false);
	expect(&img, QCOW2_COPIED | QCOW2_ZERO, 0, 0, CLUSTER_ZERO, 0, false);
}

static void test_zero_flag_of_version_2(void)
{
	struct image img = make_image(2, 16, false);

	expect(&img, 0, 0, 0, CLUSTER_UNALLOCATED, 0, false);
	expect(&img, 0x50000 | QCOW2_COPIED, 0, 0, CLUSTER_DATA, 0x50000, true);
	expect_bad(&img, QCOW2_ZERO, 0, 0, "version 2");
	expect_bad(&img, 0x50000 | QCOW2_ZERO | QCOW2_COPIED, 0, 0, "version 2");
}

static void test_reserved_bits(void)
{
	struct image img = make_image(3, 16, false);
	struct image ext = make_image(3, 16, true);

	for (u32 bit = 0; bit < 64; bit++) {
		if (!(QCOW2_L2_RESERVED >> bit & 1))
			continue;
		expect_bad(&img, 0x50000 | 1ull << bit, 0, 0, "reserved");
		expect_bad(&img, 1ull << bit, 0, 0, "reserved");
		expect_bad(&img, QCOW2_ZERO | 1ull << bit, 0, 0, "reserved");
		expect_bad(&ext, 0x50000 | 1ull << bit, 1, 0, "reserved");
	}
	expect_bad(&ext, 0x50000 | QCOW2_ZERO, 0, 0, "zero flag");
	expect_bad(&ext, QCOW2_ZERO, 0, 31, "zero flag");
}

static void test_alignment(void)
{
	for (u32 bits = QCOW2_MIN_CLUSTER_BITS; bits <= QCOW2_MAX_CLUSTER_BITS; bits++) {
		struct image img = make_image(3, bits, false);
		u64 place = 5ull << bits;

		expect(&img, place | QCOW2_COPIED, 0, 0, CLUSTER_DATA, place, true);
		for (u32 low = 9; low < bits; low++) {
			expect_bad(&img, place | 1ull << low | QCOW2_COPIED, 0, 0, "aligned");
			expect_bad(&img, place | 1ull << low | QCOW2_ZERO, 0, 0, "aligned");
		}
	}
}

static void test_end_of_device(void)
{
	struct image img = make_image(3, 16, false);
	u64 last = DEV_BYTES - 65536;

	expect(&img, last, 0, 0, CLUSTER_DATA, last, false);
	expect_bad(&img, DEV_BYTES, 0, 0, "beyond the end");
	expect_bad(&img, DEV_BYTES | QCOW2_ZERO, 0, 0, "beyond the end");
	expect_bad(&img, QCOW2_OFFSET_MASK & ~0xffffull, 0, 0, "beyond the end");
	dev.size_bytes = DEV_BYTES - 512;
	expect_bad(&img, last, 0, 0, "beyond the end");
	dev.blockdev = false;
	expect(&img, last, 0, 0, CLUSTER_DATA, last, false);
	expect(&img, DEV_BYTES, 0, 0, CLUSTER_DATA, DEV_BYTES, false);
}

/* Offset 0 is a place when COPIED says so, and the device is another one. */
static void test_data_file(void)
{
	struct image img = make_image(3, 16, false);
	struct image ext = make_image(3, 16, true);

	img.external_data = ext.external_data = true;
	expect(&img, 0, 0, 0, CLUSTER_UNALLOCATED, 0, false);
	expect(&img, QCOW2_COPIED, 0, 0, CLUSTER_DATA, 0, true);
	expect(&img, QCOW2_COPIED | QCOW2_ZERO, 0, 0, CLUSTER_ZERO, 0, true);
	expect(&img, DEV_BYTES | QCOW2_COPIED, 0, 0, CLUSTER_DATA, DEV_BYTES, true);
	expect_bad(&img, QCOW2_COMPRESSED | 0x50000, 0, 0, "data file");
	expect(&ext, QCOW2_COPIED, 1, 0, CLUSTER_DATA, 0, true);
	expect(&ext, QCOW2_COPIED, 2, 1, CLUSTER_DATA, 2048, true);
	expect_bad(&ext, 0, 1, 0, "without a place");
}

/* The whole table of the specification: every row, at every subcluster. */
static void test_subclusters(void)
{
	struct image img = make_image(3, 16, true);
	u64 place = 0x70000;

	for (u32 sc = 0; sc < 32; sc++) {
		u64 alloc = 1ull << sc, zero = alloc << 32;
		u64 host = place + sc * 2048;

		expect(&img, place, alloc, sc, CLUSTER_DATA, host, false);
		expect(&img, place | QCOW2_COPIED, alloc, sc, CLUSTER_DATA, host, true);
		expect(&img, place | QCOW2_COPIED, zero, sc, CLUSTER_ZERO_PLACE, host, true);
		expect(&img, place | QCOW2_COPIED, 0, sc, CLUSTER_RESERVED, host, true);
		expect(&img, 0, 0, sc, CLUSTER_UNALLOCATED, 0, false);
		expect(&img, 0, zero, sc, CLUSTER_ZERO, 0, false);
		expect(&img, QCOW2_COPIED, zero, sc, CLUSTER_ZERO, 0, false);
		/* The others are what their own bits say. */
		expect(&img, place, alloc, sc ^ 1, CLUSTER_RESERVED, place + (sc ^ 1) * 2048,
		       false);
		expect(&img, 0, zero, sc ^ 1, CLUSTER_UNALLOCATED, 0, false);
		expect(&img, place, QCOW2_SC_ALLOC_MASK, sc, CLUSTER_DATA, host, false);
		expect(&img, place, QCOW2_SC_ZERO_MASK, sc, CLUSTER_ZERO_PLACE, host, false);
		expect(&img, 0, QCOW2_SC_ZERO_MASK, sc, CLUSTER_ZERO, 0, false);
		expect(&img, place, QCOW2_SC_ALLOC_MASK ^ alloc ^ zero, sc, CLUSTER_ZERO_PLACE,
		       host, false);
	}
}

/* One bad subcluster makes all 32 bad. */
static void test_bad_subclusters(void)
{
	struct image img = make_image(3, 16, true);

	for (u32 bad = 0; bad < 32; bad++) {
		u64 both = 1ull << bad | 1ull << (bad + 32);

		for (u32 sc = 0; sc < 32; sc++) {
			expect_bad(&img, 0x70000, both, sc, "both");
			expect_bad(&img, 0x70000, both | QCOW2_SC_ALLOC_MASK, sc, "both");
			expect_bad(&img, 0, both, sc, "subcluster");
			expect_bad(&img, 0, 1ull << bad, sc, "without a place");
			expect_bad(&img, QCOW2_COPIED, 1ull << bad, sc, "without a place");
			expect_bad(&img, 0x70200, 1ull << bad, sc, "aligned");
			expect_bad(&img, DEV_BYTES, 1ull << bad, sc, "beyond the end");
		}
	}
}

static void expect_compressed(const struct image *img, u64 entry, u64 host, u32 bytes)
{
	struct cluster_info info = decode(img, entry, 0, 0);

	CU_ASSERT_EQUAL(info.kind, CLUSTER_COMPRESSED);
	CU_ASSERT_EQUAL(info.host, host);
	CU_ASSERT_EQUAL(info.compressed_bytes, bytes);
	CU_ASSERT_FALSE(info.copied);
	CU_ASSERT_EQUAL(info.bad, NULL);
}

/* Descriptors built by hand from the specification's formula. */
static void test_compressed(void)
{
	for (u32 bits = QCOW2_MIN_CLUSTER_BITS; bits <= QCOW2_MAX_CLUSTER_BITS; bits++) {
		struct image img = make_image(3, bits, false);
		u32 x = 62 - (bits - 8);
		u64 max_nb = (1ull << (bits - 8)) - 1;
		u64 at = 7ull << bits;

		expect_compressed(&img, QCOW2_COMPRESSED | at, at, 512);
		expect_compressed(&img, QCOW2_COMPRESSED | (at + 1), at + 1, 511);
		expect_compressed(&img, QCOW2_COMPRESSED | (at + 511), at + 511, 1);
		expect_compressed(&img, QCOW2_COMPRESSED | 1ull << x | (at + 511), at + 511, 513);
		expect_compressed(&img, QCOW2_COMPRESSED | max_nb << x | at, at,
				  (max_nb + 1) * 512);
		/* COPIED is wrong there, but QEMU reads such an entry. */
		expect_compressed(&img, QCOW2_COPIED | QCOW2_COMPRESSED | at, at, 512);
		expect_bad(&img, QCOW2_COMPRESSED | (at >> 3), 0, 0, "header");
		expect_bad(&img, QCOW2_COMPRESSED, 0, 0, "header");
		if (x > 56)
			expect_bad(&img, QCOW2_COMPRESSED | 1ull << 56, 0, 0, "2^56");
	}
}

static void test_compressed_end(void)
{
	struct image img = make_image(3, 16, false);
	u64 two_sectors = 1ull << 54;

	expect_compressed(&img, QCOW2_COMPRESSED | (DEV_BYTES - 1), DEV_BYTES - 1, 1);
	expect_bad(&img, QCOW2_COMPRESSED | DEV_BYTES, 0, 0, "beyond the end");
	expect_bad(&img, QCOW2_COMPRESSED | two_sectors | (DEV_BYTES - 1), 0, 0, "beyond the end");
	/* The last sector of a file may be short. */
	dev.blockdev = false;
	dev.size_bytes = DEV_BYTES - 100;
	expect_compressed(&img, QCOW2_COMPRESSED | (DEV_BYTES - 512), DEV_BYTES - 512, 512);
	expect_compressed(&img, QCOW2_COMPRESSED | two_sectors | (DEV_BYTES - 101), DEV_BYTES - 101,
			  613);
	expect_bad(&img, QCOW2_COMPRESSED | (DEV_BYTES - 100), 0, 0, "beyond the end");
}

/* As QEMU: the bitmap beside a compressed cluster is not looked at. */
static void test_compressed_extended(void)
{
	struct image img = make_image(3, 17, true);
	struct cluster_info info;

	for (u32 sc = 0; sc < 32; sc++) {
		info = decode(&img, QCOW2_COMPRESSED | 0x123456, ~0ull, sc);
		CU_ASSERT_EQUAL(info.kind, CLUSTER_COMPRESSED);
		CU_ASSERT_EQUAL(info.host, 0x123456);
		CU_ASSERT_EQUAL(info.compressed_bytes, 512 - 0x56);
	}
}

/* Sizes and positions that straddle sectors, encoded and decoded again. */
static void roundtrip(const struct image *img, u64 offset, u32 bytes)
{
	u64 entry = image_compressed_entry(img, offset, bytes);
	struct cluster_info info = decode(img, entry, 0, 0);

	CU_ASSERT_EQUAL(info.kind, CLUSTER_COMPRESSED);
	CU_ASSERT_EQUAL(info.host, offset);
	CU_ASSERT(info.compressed_bytes >= bytes);
	CU_ASSERT(info.compressed_bytes < bytes + 512);
	CU_ASSERT_EQUAL((info.host + info.compressed_bytes) % 512, 0);
	CU_ASSERT_EQUAL(entry & QCOW2_COPIED, 0);
}

static void test_compressed_entry(void)
{
	static const u32 within[] = { 0, 1, 2, 100, 255, 256, 510, 511 };

	for (u32 bits = QCOW2_MIN_CLUSTER_BITS; bits <= QCOW2_MAX_CLUSTER_BITS; bits++) {
		struct image img = make_image(3, bits, false);
		u32 cluster = 1u << bits;
		u32 sizes[] = { 1, 2, 255, 511, 512, cluster / 2 + 1, cluster - 1, cluster };

		for (u32 i = 0; i < ARRAY_SIZE(within); i++) {
			for (u32 j = 0; j < ARRAY_SIZE(sizes); j++)
				roundtrip(&img, (9ull << bits) + within[i], sizes[j]);
		}
	}
}

/* Bits of the offset: 49 with 2 MiB clusters, never more than 56. */
static void test_compressed_entry_limit(void)
{
	for (u32 bits = QCOW2_MIN_CLUSTER_BITS; bits <= QCOW2_MAX_CLUSTER_BITS; bits++) {
		struct image img = make_image(3, bits, false);
		u64 limit = 1ull << min(62 - (bits - 8), 56u);

		CU_ASSERT_EQUAL(image_compressed_entry(&img, limit, 1), 0);
		CU_ASSERT_EQUAL(image_compressed_entry(&img, ~0ull, 1), 0);
		CU_ASSERT_EQUAL(image_compressed_entry(&img, limit - 512, 1),
				QCOW2_COMPRESSED | (limit - 512));
	}
}

/* Entries in table memory: big-endian, at odd addresses too. */
static void test_table_memory(void)
{
	struct image img = make_image(3, 16, false);
	struct image ext = make_image(3, 16, true);
	u8 memory[65] = {};
	u8 *table = memory + 1;

	image_l2_set(&img, table, 1, 0x0102030405060708ull, 99);
	CU_ASSERT_EQUAL(table[7], 0);
	CU_ASSERT_EQUAL(table[8], 1);
	CU_ASSERT_EQUAL(table[15], 8);
	CU_ASSERT_EQUAL(table[16], 0);
	CU_ASSERT_EQUAL(image_l2_entry(&img, table, 1), 0x0102030405060708ull);
	CU_ASSERT_EQUAL(image_l2_bitmap(&img, table, 1), 0);
	image_l2_set(&ext, table, 1, 0x1112131415161718ull, 0x2122232425262728ull);
	CU_ASSERT_EQUAL(table[16], 0x11);
	CU_ASSERT_EQUAL(table[24], 0x21);
	CU_ASSERT_EQUAL(table[31], 0x28);
	CU_ASSERT_EQUAL(image_l2_entry(&ext, table, 1), 0x1112131415161718ull);
	CU_ASSERT_EQUAL(image_l2_bitmap(&ext, table, 1), 0x2122232425262728ull);
}

static void test_l2_offset(void)
{
	u64 page[L1_PAGE_ENTRIES] = { 0, 0x40000 | QCOW2_COPIED, 0x50000 };
	struct image img = make_image(3, 16, false);

	img.l1.pages = (u64 *[]){ page };
	img.l1.nr_pages = 1;
	img.l1_size = 3;
	CU_ASSERT_EQUAL(image_l2_offset(&img, 0), 0);
	CU_ASSERT_EQUAL(image_l2_offset(&img, 512 * MiB - 1), 0);
	CU_ASSERT_EQUAL(image_l2_offset(&img, 512 * MiB), 0x40000);
	CU_ASSERT_EQUAL(image_l2_offset(&img, GiB), 0x50000);
	CU_ASSERT_EQUAL(image_l2_offset(&img, GiB + 512 * MiB), 0);
	CU_ASSERT_EQUAL(image_l2_offset(&img, ~0ull), 0);
}

/* Of a table on disk only the pages that name something are kept. */
static void test_sparse_l1(void)
{
	enum { NR = 5000, FAR = 4000 };
	static u64 disk[NR];
	char name[] = "/tmp/qchain-l1.XXXXXX";
	int fd = mkstemp(name);
	struct qc_err err = {};
	struct io_dev *file;
	struct l1 l1;
	u32 kept = 0;

	disk[3] = __builtin_bswap64(0x30000);
	disk[FAR] = __builtin_bswap64(0x40000);
	CU_ASSERT_EQUAL_FATAL(pwrite(fd, disk, sizeof(disk), 65536), sizeof(disk));
	close(fd);
	CU_ASSERT_EQUAL_FATAL(io_dev_open(name, 0, &file, &err), 0);
	CU_ASSERT_EQUAL_FATAL(l1_read(file, 65536, NR, &l1), 0);
	for (u32 i = 0; i < l1.nr_pages; i++)
		kept += l1.pages[i] != NULL;
	CU_ASSERT_EQUAL(kept, 2);
	CU_ASSERT_EQUAL(l1_next(&l1, 0, NR), 3);
	CU_ASSERT_EQUAL(l1_next(&l1, 4, NR), FAR);
	CU_ASSERT_EQUAL(l1_next(&l1, FAR + 1, NR), NR);
	CU_ASSERT_EQUAL(l1_get(&l1, FAR), 0x40000);
	CU_ASSERT_EQUAL(l1_get(&l1, FAR - 1), 0);
	l1_set(&l1, 2000, 0); /* nothing to forget */
	CU_ASSERT_EQUAL(l1_reserve(&l1, 2000), 0);
	l1_set(&l1, 2000, 0x50000);
	CU_ASSERT_EQUAL(l1_next(&l1, 4, NR), 2000);
	CU_ASSERT_EQUAL(l1_resize(&l1, 2 * NR), 0);
	CU_ASSERT_EQUAL(l1_get(&l1, 2 * NR - 1), 0);
	CU_ASSERT_EQUAL(l1_next(&l1, FAR + 1, 2 * NR), 2 * NR);
	l1_exit(&l1);
	io_dev_close(file);
	unlink(name);
}

int main(void)
{
	static const struct unit_test tests[] = {
		{ "standard entries", test_standard },
		{ "zero flag in version 2", test_zero_flag_of_version_2 },
		{ "reserved bits", test_reserved_bits },
		{ "alignment in every cluster size", test_alignment },
		{ "end of the device", test_end_of_device },
		{ "external data file", test_data_file },
		{ "extended entries, all rows", test_subclusters },
		{ "extended entries, invalid ones", test_bad_subclusters },
		{ "compressed descriptors", test_compressed },
		{ "compressed, end of the device", test_compressed_end },
		{ "compressed with extended entries", test_compressed_extended },
		{ "compressed entries are made", test_compressed_entry },
		{ "compressed entries, offset limit", test_compressed_entry_limit },
		{ "table memory", test_table_memory },
		{ "L1 lookup", test_l2_offset },
		{ "sparse L1 tables", test_sparse_l1 },
		{},
	};

	return unit_main("qcow2-table", tests);
}
