// SPDX-License-Identifier: GPL-2.0-or-later
/* Header extensions, names of feature bits, and the backing reference. */
#include "mem-image.h"

/* ---- feature bits ------------------------------------------------------------- */

static void test_feature_names(void)
{
	struct qcow2_disk_feature_name names[] = {
		{ 1, 6, "compatible, not meant" },
		{ 0, 6, "shiny thing" },
		{ 0, 7, "ev\nil\033[1m'" },
		{ 2, 5, "weather" },
		{ 0, 9, "exactly forty-six characters, without a zero.." },
	};

	make_image(3);
	put_extension(112, QCOW2_EXT_FEATURE_NAMES, names, sizeof(names));
	put64(72, 1 << 6);
	open_bad(0, -EOPNOTSUPP, "incompatible features 'shiny thing' not supported (0x40)");
	put64(72, 1 << 6 | 1 << 7 | 1 << 8 | 1);
	open_bad(0, -EOPNOTSUPP, "'shiny thing', 'ev?il?[1m?', 'bit 8' not supported (0x1c0)");
	put64(72, 1 << 9);
	open_bad(0, -EOPNOTSUPP, "'exactly forty-six characters, without a zero..' not");
	put64(72, ~0ull);
	open_bad(0, -EOPNOTSUPP, "'shiny thing'");
	put64(72, 0);
	put64(88, 1 << 5);
	open_bad(IMAGE_OPEN_WRITE, -EROFS, "autoclear features 'weather' not supported (0x20)");
	open_and_close(0);
	open_and_close(IMAGE_OPEN_WRITE | IMAGE_OPEN_CHECK);
}

/* The table of names is looked for even where the list is malformed. */
static void test_feature_names_malformed(void)
{
	struct qcow2_disk_feature_name name = { 0, 6, "late" };
	u64 at;

	make_image(3);
	put64(72, 1 << 6);
	at = put_extension(112, 0x12345678, "abc", 3);
	put_extension(at, QCOW2_EXT_FEATURE_NAMES, &name, sizeof(name));
	open_bad(0, -EOPNOTSUPP, "'late'");
	put32(116, ~0u);
	open_bad(0, -EOPNOTSUPP, "'bit 6'");
	put32(116, 100);
	mem.dev.size_bytes = 128;
	open_bad(0, -EOPNOTSUPP, "'bit 6'");
}

static void test_write_refusals(void)
{
	make_image(3);
	put64(72, QCOW2_INCOMPAT_DIRTY);
	open_and_close(0);
	open_bad(IMAGE_OPEN_WRITE, -EUCLEAN, "refcounts marked dirty");
	open_and_close(IMAGE_OPEN_WRITE | IMAGE_OPEN_CHECK);
	put64(72, QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT);
	open_and_close(0);
	open_bad(IMAGE_OPEN_WRITE, -EROFS, "marked corrupt");
	open_and_close(IMAGE_OPEN_WRITE | IMAGE_OPEN_CHECK);
	put64(72, 0);
	put64(88, QCOW2_AUTOCLEAR_RAW_DATA | QCOW2_AUTOCLEAR_QCHAIN_OPEN);
	open_and_close(IMAGE_OPEN_WRITE);
	put64(80, ~0ull); /* compatible bits are only kept */
	open_and_close(IMAGE_OPEN_WRITE);
	mem.dev.writable = false;
	open_and_close(0);
	open_bad(IMAGE_OPEN_WRITE, -EROFS, "device is read-only");
}

static void test_data_file(void)
{
	struct image *img;

	make_image(3);
	put_extension(112, QCOW2_EXT_DATA_FILE, "data.raw", 8);
	img = open_ok(IMAGE_OPEN_WRITE); /* nothing refers to the name */
	CU_ASSERT_PTR_NULL(img->data_file_name);
	close_ok(img);
	put64(72, QCOW2_INCOMPAT_DATA_FILE);
	img = open_ok(0);
	CU_ASSERT_STRING_EQUAL(img->data_file_name, "data.raw");
	close_ok(img);
	open_bad(IMAGE_OPEN_WRITE, -EROFS, "external data file (incompatible bit 2)");
	open_bad(IMAGE_OPEN_WRITE | IMAGE_OPEN_CHECK, -EROFS, "external data file");
	put32(116, 0);
	open_bad(0, -EILSEQ, "data file name of 0 bytes not valid, must be 1..1023");
}

/* ---- backing file and extensions ------------------------------------------------- */

static void test_backing_name(void)
{
	struct image *img;
	u64 at;

	make_image(3);
	at = put_extension(112, QCOW2_EXT_BACKING_FORMAT, "qcow2", 5);
	put_backing(528, "/dev/vg0/base");
	img = open_ok(IMAGE_OPEN_WRITE);
	CU_ASSERT_STRING_EQUAL(img->backing_name, "/dev/vg0/base");
	CU_ASSERT_STRING_EQUAL(img->backing_format, "qcow2");
	CU_ASSERT_EQUAL(img->backing_name_offset, 528);
	close_ok(img);
	put32(16, 0);
	img = open_ok(0);
	CU_ASSERT_PTR_NULL(img->backing_name);
	close_ok(img);
	/* Trailing zeroes are none of the name's. */
	put32(16, 20);
	img = open_ok(0);
	CU_ASSERT_STRING_EQUAL(img->backing_name, "/dev/vg0/base");
	close_ok(img);
	mem.bytes[528 + 4] = 0;
	open_bad(0, -EILSEQ, "backing file name contains a zero byte (position 4 of 20)");
	put_extension(at, 0x11111111, "", 0);
	put_backing(at + 8, "x");
	open_and_close(0); /* no end mark needed before the name */
}

static void test_backing_name_lengths(void)
{
	struct image *img;

	make_image(3);
	memset(mem.bytes + 1024, 'n', 2048);
	put64(8, 1024);
	put32(16, 1023);
	img = open_ok(0);
	CU_ASSERT_EQUAL(strlen(img->backing_name), 1023);
	close_ok(img);
	put32(16, 1024);
	open_bad(0, -EILSEQ, "backing file name too long (1024 bytes at 0x400)");
	put32(16, ~0u);
	open_bad(0, -EILSEQ, "backing file name too long (4294967295 bytes");
	put64(8, CLUSTER - 8);
	put32(16, 9);
	open_bad(0, -EILSEQ, "backing file name too long (9 bytes at 0xfff8)");
	put32(16, 8);
	memset(mem.bytes + CLUSTER - 8, 'n', 8);
	open_and_close(0);
	put64(8, CLUSTER);
	put32(16, 0);
	open_and_close(0);
}

static void test_backing_format(void)
{
	make_image(3);
	put_extension(112, QCOW2_EXT_BACKING_FORMAT, "fifteen letters", 15);
	open_and_close(0);
	put_extension(112, QCOW2_EXT_BACKING_FORMAT, "sixteen letters!", 16);
	open_bad(0, -EILSEQ, "backing format name too long (16 bytes), must be at most 15");
	put_extension(112, QCOW2_EXT_BACKING_FORMAT, "raw\0qcow2", 9);
	open_bad(0, -EILSEQ, "backing format name contains a zero byte (position 3 of 9)");
}

static void test_unknown_extensions(void)
{
	struct image *img;
	u64 at;

	make_image(3);
	at = put_extension(112, 0x11111111, "one", 3);
	at = put_extension(at, 0x22222222, "", 0);
	at = put_extension(at, QCOW2_EXT_FEATURE_NAMES, "", 0);
	at = put_extension(at, 0x33333333, "12345678", 8);
	put_extension(at, QCOW2_EXT_END, "behind the end mark", 19);
	img = open_ok(IMAGE_OPEN_WRITE);
	CU_ASSERT(img->has_feature_names);
	CU_ASSERT_EQUAL_FATAL(img->nr_extensions, 3);
	CU_ASSERT_EQUAL(img->extensions[0].type, 0x11111111);
	CU_ASSERT_EQUAL(img->extensions[0].len, 3);
	CU_ASSERT_EQUAL(memcmp(img->extensions[0].data, "one", 3), 0);
	CU_ASSERT_EQUAL(img->extensions[1].len, 0);
	CU_ASSERT_EQUAL(memcmp(img->extensions[2].data, "12345678", 8), 0);
	close_ok(img);
}

static void test_bad_extensions(void)
{
	u64 at;

	make_image(3);
	put_extension(112, 0x11111111, "", 0);
	put32(116, CLUSTER - 120);
	open_and_close(0); /* up to the last byte of the cluster */
	put32(116, CLUSTER - 119);
	open_bad(0, -EILSEQ, "header extension 0x11111111 at byte 112 too long (65417 bytes)");
	put32(116, ~0u);
	open_bad(0, -EILSEQ, "too long (4294967295 bytes), must end by byte 65536");
	put32(116, 8);
	put_backing(127, "b");
	open_bad(0, -EILSEQ, "at byte 112 too long (8 bytes), must end by byte 127");
	put_backing(132, "b");
	open_bad(0, -EILSEQ, "header extension at byte 128 cut off, must end by byte 132");
	make_image(3);
	at = put_extension(112, 0x11111111, "1", 1);
	put_extension(at, 0x11111111, "2", 1);
	open_bad(0, -EILSEQ, "header extension 0x11111111 twice (second at byte 128)");
	make_image(3);
	at = put_extension(112, QCOW2_EXT_BACKING_FORMAT, "raw", 3);
	put_extension(at, QCOW2_EXT_BACKING_FORMAT, "qcow2", 5);
	open_bad(0, -EILSEQ, "header extension 0xe2792aca twice");
	make_image(3);
	put_extension(112, QCOW2_EXT_FEATURE_NAMES, "odd", 3);
	open_bad(0, -EILSEQ, "feature name table of 3 bytes not valid");
	put_extension(112, QCOW2_EXT_CRYPTO, "0123456789abcdef", 16);
	open_bad(0, -EILSEQ, "encryption header extension (16 bytes)");
}

/* A first cluster full of headers of extensions must cost nothing. */
static void test_many_extensions(void)
{
	u64 at = 112;

	make_image(3);
	for (u32 i = 1; at + 8 <= CLUSTER; i++)
		at = put_extension(at, i, "", 0);
	open_bad(0, -EILSEQ, "too many header extensions, must be at most 64");
	put64(72, 1 << 6);
	open_bad(0, -EOPNOTSUPP, "'bit 6'");
}

int main(void)
{
	static const struct unit_test tests[] = {
		{ "names of features", test_feature_names },
		{ "names of features, malformed", test_feature_names_malformed },
		{ "refused for writing", test_write_refusals },
		{ "external data file", test_data_file },
		{ "backing name", test_backing_name },
		{ "backing name lengths", test_backing_name_lengths },
		{ "backing format", test_backing_format },
		{ "unknown extensions", test_unknown_extensions },
		{ "bad extensions", test_bad_extensions },
		{ "many extensions", test_many_extensions },
		{},
	};

	return unit_main("qcow2-extension", tests);
}
