// SPDX-License-Identifier: GPL-2.0-or-later
/* Opening images: good ones, and every header field that can be wrong. */
#include "mem-image.h"

/* ---- good images --------------------------------------------------------------- */

static void test_version_3(void)
{
	struct image *img;

	make_image(3);
	img = open_ok(IMAGE_OPEN_WRITE | IMAGE_OPEN_BITMAPS);
	CU_ASSERT_EQUAL(img->version, 3);
	CU_ASSERT_EQUAL(img->cluster_bits, 16);
	CU_ASSERT_EQUAL(img->subcluster_bits, 16);
	CU_ASSERT_EQUAL(img->subclusters, 1);
	CU_ASSERT_EQUAL(img->l2_entry_bytes, 8);
	CU_ASSERT_EQUAL(img->l2_bits, 13);
	CU_ASSERT_EQUAL(img->refcount_order, 4);
	CU_ASSERT_EQUAL(img->header_length, 112);
	CU_ASSERT_EQUAL(img->virtual_size, GiB);
	CU_ASSERT_EQUAL(img->l1_size, 2);
	CU_ASSERT_EQUAL(l1_get(&img->l1, 0), 4 * CLUSTER | QCOW2_COPIED);
	CU_ASSERT_EQUAL(l1_get(&img->l1, 1), 0);
	CU_ASSERT_EQUAL(img->reftable_offset, CLUSTER);
	CU_ASSERT_EQUAL(img->reftable_clusters, 1);
	CU_ASSERT_PTR_NULL(img->backing_name);
	CU_ASSERT_PTR_NULL(img->backing_format);
	CU_ASSERT_FALSE(img->has_feature_names);
	CU_ASSERT_EQUAL(mem.reads, 2);
	close_ok(img);
}

static void test_version_2(void)
{
	struct image *img;

	make_image(2);
	/* Where version 3 has its fields an old image may have anything. */
	put_backing(72, "base.qcow2 of a name that reaches far into version 3's fields");
	img = open_ok(IMAGE_OPEN_WRITE);
	CU_ASSERT_EQUAL(img->header_length, 72);
	CU_ASSERT_EQUAL(img->refcount_order, 4);
	CU_ASSERT_EQUAL(img->incompatible, 0);
	CU_ASSERT_EQUAL(img->autoclear, 0);
	CU_ASSERT_EQUAL(strncmp(img->backing_name, "base.qcow2 of", 13), 0);
	CU_ASSERT_EQUAL(img->backing_name_offset, 72);
	close_ok(img);
}

static void test_extended_l2(void)
{
	struct image *img;

	make_image(3);
	put64(72, QCOW2_INCOMPAT_EXTL2);
	put32(36, 4); /* an L2 table maps 256 MiB only */
	img = open_ok(IMAGE_OPEN_WRITE);
	CU_ASSERT_EQUAL(img->subclusters, 32);
	CU_ASSERT_EQUAL(img->subcluster_bits, 11);
	CU_ASSERT_EQUAL(img->l2_entry_bytes, 16);
	CU_ASSERT_EQUAL(img->l2_bits, 12);
	CU_ASSERT(image_has_extl2(img));
	close_ok(img);
	put32(36, 3);
	open_bad(0, -EILSEQ, "L1 table too small (3 entries), 4 needed");
}

static void test_compression_types(void)
{
	struct image *img;

	make_image(3);
	put64(72, QCOW2_INCOMPAT_COMPRESSION);
	open_bad(0, -EILSEQ, "compression type 0 does not match incompatible feature bit 3 (1)");
	mem.bytes[104] = 1;
	img = open_ok(0);
	CU_ASSERT_EQUAL(img->compression_type, 1);
	close_ok(img);
	put64(72, 0);
	open_bad(0, -EILSEQ, "compression type 1 does not match incompatible feature bit 3 (0)");
	mem.bytes[104] = 2;
	open_bad(0, -EOPNOTSUPP, "compression type 2 not supported");
	/* The field is not there, whatever the byte says. */
	put32(100, 104);
	put_extension(104, QCOW2_EXT_END, "", 0);
	img = open_ok(0);
	CU_ASSERT_EQUAL(img->compression_type, 0);
	close_ok(img);
	put64(72, QCOW2_INCOMPAT_COMPRESSION);
	open_bad(0, -EILSEQ, "compression type 0 does not match");
}

static void test_sizes(void)
{
	struct image *img;

	make_image(3);
	put64(24, GiB - 1);
	img = open_ok(0);
	CU_ASSERT_EQUAL(img->virtual_size, GiB - 512);
	close_ok(img);
	put64(24, GiB + 1);
	open_bad(0, -EILSEQ, "L1 table too small (2 entries), 3 needed");
	put64(24, 0);
	put32(36, 0);
	put64(40, 0);
	img = open_ok(IMAGE_OPEN_WRITE);
	CU_ASSERT_EQUAL(img->virtual_size, 0);
	CU_ASSERT_EQUAL(img->l1_size, 0);
	close_ok(img);
	put64(24, 1);
	open_bad(0, -EILSEQ, "L1 table too small (0 entries), 1 needed");
	put64(24, 1ull << 63);
	open_bad(0, -EFBIG, "virtual size 9223372036854775808 not supported");
	put64(24, ~0ull);
	open_bad(0, -EFBIG, "virtual size");
	put64(24, (1ull << 55) + 1);
	open_bad(0, -EFBIG, "virtual size");
	put64(24, 1ull << 55);
	open_bad(0, -EILSEQ, "67108864 needed");
}

/* Every cluster size: tables in clusters 1, 3 and 4 of a small image. */
static void test_cluster_sizes(void)
{
	struct image *img;

	for (u32 bits = 9; bits <= 16; bits++) {
		make_image(3);
		put32(20, bits);
		put64(24, 1ull << (2 * bits - 3));
		put32(36, 1);
		put64(40, 3ull << bits);
		put64(48, 1ull << bits);
		put64(3 * CLUSTER, 0);
		put64(3ull << bits, 4ull << bits | QCOW2_COPIED);
		img = open_ok(0);
		CU_ASSERT_EQUAL(img->l2_bits, bits - 3);
		CU_ASSERT_EQUAL(image_l2_offset(img, 0), 4ull << bits);
		close_ok(img);
	}
	for (u32 bits = 17; bits <= 21; bits++) {
		make_image(3);
		put32(20, bits);
		open_bad(0, -EILSEQ, "not aligned");
	}
}

static void test_raw(void)
{
	struct qc_err err = {};
	struct image *img;

	make_dev(1000);
	CU_ASSERT_EQUAL_FATAL(image_open(&mem.dev, IMAGE_RAW, IMAGE_OPEN_WRITE, &img, &err), 0);
	CU_ASSERT_EQUAL(img->virtual_size, 1024);
	CU_ASSERT_EQUAL(img->cluster_bits, 16);
	CU_ASSERT_EQUAL(img->subclusters, 1);
	CU_ASSERT_EQUAL(img->l1_size, 0);
	CU_ASSERT_EQUAL(mem.reads, 0);
	close_ok(img);
	mem.dev.writable = false;
	CU_ASSERT_EQUAL(image_open(&mem.dev, IMAGE_RAW, IMAGE_OPEN_WRITE, &img, &err), -EROFS);
	CU_ASSERT(mem.closed);
}

static void test_formats(void)
{
	enum image_format format;

	CU_ASSERT_EQUAL(image_format_parse("raw", &format), 0);
	CU_ASSERT_EQUAL(format, IMAGE_RAW);
	CU_ASSERT_EQUAL(image_format_parse("qcow2", &format), 0);
	CU_ASSERT_EQUAL(format, IMAGE_QCOW2);
	CU_ASSERT_EQUAL(image_format_parse("qcow", &format), -EINVAL);
	CU_ASSERT_EQUAL(image_format_parse("QCOW2", &format), -EINVAL);
	CU_ASSERT_EQUAL(image_format_parse("", &format), -EINVAL);
	CU_ASSERT_STRING_EQUAL(image_format_name(IMAGE_RAW), "raw");
	CU_ASSERT_STRING_EQUAL(image_format_name(IMAGE_QCOW2), "qcow2");
}

/* ---- one wrong field --------------------------------------------------------- */

static const struct patch patches[] = {
	{ "not a qcow2 image (magic 0x00000000)", -EILSEQ, 0, 4, 0 },
	{ "not a qcow2 image (magic 0x514649fa)", -EILSEQ, 0, 4, 0x514649fa },
	{ "version 0 not supported", -EOPNOTSUPP, 4, 4, 0 },
	{ "version 1 not supported", -EOPNOTSUPP, 4, 4, 1 },
	{ "version 4 not supported", -EOPNOTSUPP, 4, 4, 4 },
	{ "backing file name outside the first cluster (offset 0x68)", -EILSEQ, 8, 8, 104 },
	{ "backing file name outside the first cluster (offset 0x10001)", -EILSEQ, 8, 8, 65537 },
	{ "backing file name outside the first cluster", -EILSEQ, 8, 8, ~0ull },
	{ "cluster size 2^8 not supported, must be 2^9..2^21", -EILSEQ, 20, 4, 8 },
	{ "cluster size 2^22 not", -EILSEQ, 20, 4, 22 },
	{ "cluster size 2^63 not", -EILSEQ, 20, 4, 63 },
	{ "cluster size 2^4294967295 not", -EILSEQ, 20, 4, ~0u },
	{ "AES encryption not supported (method 1)", -EOPNOTSUPP, 32, 4, 1 },
	{ "LUKS encryption not supported (method 2)", -EOPNOTSUPP, 32, 4, 2 },
	{ "unknown encryption not supported (method 3)", -EOPNOTSUPP, 32, 4, 3 },
	{ "L1 table too small (1 entries), 2 needed", -EILSEQ, 36, 4, 1 },
	{ "L1 table beyond the end of the image", -EILSEQ, 36, 4, 6 * 8192 + 1 },
	{ "L1 table too large (4194305 entries)", -EFBIG, 36, 4, 4194305 },
	{ "L1 table too large (4294967295 entries)", -EFBIG, 36, 4, ~0u },
	{ "L1 table not aligned (offset 0x0)", -EILSEQ, 40, 8, 0 },
	{ "L1 table not aligned (offset 0x30200)", -EILSEQ, 40, 8, 0x30200 },
	{ "L1 table beyond the end of the image (offset 0x90000", -EILSEQ, 40, 8, MEM_BYTES },
	{ "L1 table beyond the end of the image", -EILSEQ, 40, 8, ~0xffffull },
	{ "refcount table not aligned (offset 0x0)", -EILSEQ, 48, 8, 0 },
	{ "refcount table not aligned (offset 0x10008)", -EILSEQ, 48, 8, 0x10008 },
	{ "refcount table overlaps the L1 table", -EILSEQ, 48, 8, 3 * CLUSTER },
	{ "refcount table beyond the end", -EILSEQ, 48, 8, 1ull << 62 },
	{ "refcount table missing (0 clusters)", -EILSEQ, 56, 4, 0 },
	{ "refcount table overlaps the L1 table", -EILSEQ, 56, 4, 3 },
	{ "refcount table beyond the end", -EILSEQ, 56, 4, 9 },
	{ "refcount table too large (129 clusters)", -EILSEQ, 56, 4, 129 },
	{ "refcount table too large (4294967295 clusters)", -EILSEQ, 56, 4, ~0u },
	{ "snapshot table not aligned (offset 0x0)", -EILSEQ, 60, 4, 1 },
	{ "snapshot table too large (65537 entries)", -EILSEQ, 60, 4, 65537 },
	{ "snapshot table too large (4294967295 entries)", -EILSEQ, 60, 4, ~0u },
	{ "incompatible features 'bit 5' not supported (0x20)", -EOPNOTSUPP, 72, 8, 1 << 5 },
	{ "'bit 62' not supported (0x4000000000000000)", -EOPNOTSUPP, 72, 8, 1ull << 62 },
	{ "a copy that was not finished", -EOPNOTSUPP, 72, 8, 1ull << 63 },
	{ "external data file without a name", -EILSEQ, 72, 8, QCOW2_INCOMPAT_DATA_FILE },
	{ "refcount width 2^7 bits not supported, must be 2^0..2^6", -EILSEQ, 96, 4, 7 },
	{ "refcount width 2^4294967295 bits", -EILSEQ, 96, 4, ~0u },
	{ "header length 0 not valid", -EILSEQ, 100, 4, 0 },
	{ "header length 96 not valid", -EILSEQ, 100, 4, 96 },
	{ "header length 105 not valid, must be a multiple of 8 in 104..65536", -EILSEQ, 100, 4,
	  105 },
	{ "header length 65544 not valid", -EILSEQ, 100, 4, 65544 },
	{ "header length 4294967288 not valid", -EILSEQ, 100, 4, ~7u },
	{ "L1 table entry 0: reserved bits set (0x8000000000040001)", -EILSEQ, 3 * CLUSTER, 8,
	  QCOW2_COPIED | 0x40001 },
	{ "L1 table entry 1: reserved bits set (0x4000000000050000)", -EILSEQ, 3 * CLUSTER + 8, 8,
	  1ull << 62 | 0x50000 },
	{ "L1 table entry 1: reserved bits set (0x0100000000000000)", -EILSEQ, 3 * CLUSTER + 8, 8,
	  1ull << 56 },
	{ "L1 table entry 1: L2 table not aligned (0x40200)", -EILSEQ, 3 * CLUSTER + 8, 8,
	  0x40200 },
	{ "L1 table entry 1: L2 table beyond the end of the image (0x90000)", -EILSEQ,
	  3 * CLUSTER + 8, 8, MEM_BYTES },
	{ "L1 table entry 1: L2 table beyond the end of the image", -EILSEQ, 3 * CLUSTER + 8, 8,
	  0x00ffffffffff0000ull },
	{ "L1 table entry 0: L2 table overlaps the L1 table (0x30000)", -EILSEQ, 3 * CLUSTER, 8,
	  3 * CLUSTER | QCOW2_COPIED },
	{ "L1 table entry 1: L2 table overlaps the refcount table (0x10000)", -EILSEQ,
	  3 * CLUSTER + 8, 8, CLUSTER },
};

static void test_patches(void)
{
	for (u32 i = 0; i < ARRAY_SIZE(patches); i++) {
		const struct patch *p = &patches[i];

		make_image(3);
		put_patch(p);
		open_bad(0, p->code, p->text);
	}
}

/* What version 2 shares with version 3 is checked there too. */
static void test_patches_of_version_2(void)
{
	for (u32 i = 0; i < ARRAY_SIZE(patches); i++) {
		const struct patch *p = &patches[i];

		if (p->at >= 72 && p->at < CLUSTER)
			continue;
		if (p->at == 8 && p->value == 104)
			continue; /* in the header of version 3 only */
		make_image(2);
		put_patch(p);
		open_bad(0, p->code, p->text);
	}
}

static void test_header_lengths(void)
{
	struct image *img;

	make_image(3);
	put32(100, 65536); /* fields that nobody knows, up to the end */
	memset(mem.bytes + 112, 0xee, 65536 - 112);
	img = open_ok(IMAGE_OPEN_WRITE);
	CU_ASSERT_EQUAL(img->header_length, 65536);
	CU_ASSERT_EQUAL(img->nr_extensions, 0);
	close_ok(img);
}

/* ---- short images ----------------------------------------------------------- */

static void test_truncated(void)
{
	static const u32 header[] = { 0, 1, 4, 71 };

	for (u32 i = 0; i < ARRAY_SIZE(header); i++) {
		make_image(3);
		mem.dev.size_bytes = header[i];
		open_bad(0, -EILSEQ, "image too short");
		make_image(2);
		mem.dev.size_bytes = header[i];
		open_bad(0, -EILSEQ, "image too short");
	}
	make_image(3);
	mem.dev.size_bytes = 103;
	open_bad(0, -EILSEQ, "image too short (103 bytes), a version 3 header has 104");
	mem.dev.size_bytes = 104;
	open_bad(0, -EILSEQ, "image too short (104 bytes), the header needs 112");
	mem.dev.size_bytes = 112;
	open_bad(0, -EILSEQ, "image too short (112 bytes), the header needs 120");
	mem.dev.size_bytes = 512;
	open_bad(0, -EILSEQ, "L1 table beyond the end");
	mem.dev.size_bytes = CLUSTER;
	open_bad(0, -EILSEQ, "L1 table beyond the end");
	mem.dev.size_bytes = 3 * CLUSTER + 15;
	open_bad(0, -EILSEQ, "L1 table beyond the end");
	mem.dev.size_bytes = 3 * CLUSTER + 16;
	open_bad(0, -EILSEQ, "L1 table entry 0: L2 table beyond the end");
	put64(3 * CLUSTER, 0);
	open_and_close(0); /* the file ends where its last table does */
}

/* No length of a file makes the opener read beyond it (the device asserts). */
static void test_every_length(void)
{
	struct qc_err err;
	struct image *img;

	make_image(3);
	for (u32 len = 0; len < MEM_BYTES; len += len < 600 ? 1 : 4093) {
		mem.dev.size_bytes = len;
		err = (struct qc_err){};
		if (!image_open(&mem.dev, IMAGE_QCOW2, 0, &img, &err))
			image_close(img);
		else
			CU_ASSERT(err.code < 0);
	}
}

static void test_read_errors(void)
{
	make_image(3);
	mem.fail = -EIO;
	open_bad(0, -EIO, "header: read of 4096 bytes at 0 failed");
}

/* ---- writing the features ---------------------------------------------------------- */

static void test_write_features(void)
{
	struct image *img;
	u8 before[MEM_BYTES];

	make_image(3);
	put_extension(112, 0x11111111, "keep", 4);
	memcpy(before, mem.bytes, sizeof(before));
	img = open_ok(IMAGE_OPEN_WRITE);
	img->incompatible |= QCOW2_INCOMPAT_DIRTY;
	img->compatible = 1;
	img->autoclear = QCOW2_AUTOCLEAR_QCHAIN_OPEN;
	CU_ASSERT_EQUAL(image_write_features(img), 0);
	CU_ASSERT_EQUAL(mem.writes, 1);
	CU_ASSERT_EQUAL(mem.flushes, 1);
	CU_ASSERT_EQUAL(mem.bytes[79], 1);
	CU_ASSERT_EQUAL(mem.bytes[87], 1);
	CU_ASSERT_EQUAL(mem.bytes[88], 0x80);
	memset(mem.bytes + 72, 0, 24);
	CU_ASSERT_EQUAL(memcmp(before, mem.bytes, sizeof(before)), 0);
	put32(0, 0);
	CU_ASSERT_EQUAL(image_write_features(img), -EUCLEAN);
	CU_ASSERT_EQUAL(mem.writes, 1);
	mem.fail = -EIO;
	CU_ASSERT_EQUAL(image_write_features(img), -EIO);
	close_ok(img);
}

static void test_write_features_of_version_2(void)
{
	struct image *img;

	make_image(2);
	img = open_ok(IMAGE_OPEN_WRITE);
	CU_ASSERT_EQUAL(image_write_features(img), 0);
	img->autoclear = QCOW2_AUTOCLEAR_QCHAIN_OPEN;
	CU_ASSERT_EQUAL(image_write_features(img), -EINVAL);
	CU_ASSERT_EQUAL(mem.writes, 0);
	close_ok(img);
}

int main(void)
{
	static const struct unit_test tests[] = {
		{ "version 3", test_version_3 },
		{ "version 2", test_version_2 },
		{ "extended L2", test_extended_l2 },
		{ "compression types", test_compression_types },
		{ "virtual sizes", test_sizes },
		{ "cluster sizes", test_cluster_sizes },
		{ "raw", test_raw },
		{ "format names", test_formats },
		{ "one wrong field", test_patches },
		{ "one wrong field, version 2", test_patches_of_version_2 },
		{ "header lengths", test_header_lengths },
		{ "truncated", test_truncated },
		{ "every length", test_every_length },
		{ "read errors", test_read_errors },
		{ "writing features", test_write_features },
		{ "writing features, version 2", test_write_features_of_version_2 },
		{},
	};

	return unit_main("qcow2-header", tests);
}
