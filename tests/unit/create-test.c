// SPDX-License-Identifier: GPL-2.0-or-later
/* Fresh images: sizes, options, the order of writes, nothing old to be read. */
#include <endian.h>
#include <uapi/qcow2.h>

#include "ram-dev.h"

#define MEMORY (8 * MiB)
#define OLD_BYTE 0xaa

static struct image_create_options defaults(u64 size)
{
	struct image_create_options o;

	image_create_defaults(&o);
	o.virtual_size = size;
	return o;
}

static struct image *open_ram(struct ram_dev *ram)
{
	struct image *img = NULL;
	struct qc_err err = {};

	if (image_open(&ram->dev, IMAGE_QCOW2, IMAGE_OPEN_CHECK | IMAGE_OPEN_BITMAPS, &img, &err))
		return NULL;
	return img;
}

/* ---- sizes --------------------------------------------------------------------- */

static void measure_is(u64 size, u32 cluster_bits, bool extl2, u32 order, u64 expected)
{
	struct image_create_options o = defaults(size);
	struct image_measure measure;

	o.cluster_bits = cluster_bits;
	o.extl2 = extl2;
	o.refcount_order = order;
	image_measure(&o, 0, &measure);
	CU_ASSERT_EQUAL(measure.fully_allocated, expected);
	CU_ASSERT_EQUAL(measure.required,
			expected - ALIGN_UP(size, 1ull << cluster_bits));
	CU_ASSERT_TRUE(image_thick_bytes(&o) >= expected + 32 * MiB);
}

/* Numbers of qemu-img measure 7.2. */
static void test_measure(void)
{
	measure_is(0, 16, false, 4, 196608);
	measure_is(32 * GiB, 16, false, 4, 34365243392);
	measure_is(TiB, 16, false, 4, 1099679662080);
	measure_is(150 * GiB, 17, true, 4, 161083817984);
	measure_is(MiB, 9, false, 0, 1067008);
	measure_is(TiB, 16, true, 4, 1099813879808);
	measure_is(TiB, 21, true, 4, 1099528404992);
}

static void test_measure_data(void)
{
	struct image_create_options o = defaults(10 * MiB);
	struct image_measure none, some, full;

	image_measure(&o, 0, &none);
	image_measure(&o, 3 * MiB, &some);
	CU_ASSERT_EQUAL(some.required, none.required + 3 * MiB);
	CU_ASSERT_EQUAL(some.fully_allocated, none.fully_allocated);
	o.preallocation = PREALLOC_FULL;
	image_measure(&o, 3 * MiB, &full);
	CU_ASSERT_EQUAL(full.required, full.fully_allocated);
}

/* ---- options ------------------------------------------------------------------- */

static void refused(const struct image_create_options *o, const char *part)
{
	struct qc_err err = {};

	CU_ASSERT_TRUE(image_create_check(o, &err) < 0);
	if (!strstr(err.msg, part))
		printf("\n'%s' not in '%s'\n", part, err.msg);
	CU_ASSERT_PTR_NOT_NULL(strstr(err.msg, part));
}

#define REFUSED(change, part)                                                          \
	do {                                                                           \
		struct image_create_options o = defaults(MiB);                         \
		change;                                                                \
		refused(&o, part);                                                     \
	} while (0)

static void test_options(void)
{
	struct image_create_options good = defaults(MiB);
	char name[1025];

	memset(name, 'n', 1024);
	name[1024] = '\0';
	CU_ASSERT_EQUAL(image_create_check(&good, NULL), 0);
	REFUSED(o.cluster_bits = 8, "cluster size 2^8 not supported, must be 2^9..2^21");
	REFUSED(o.cluster_bits = 22, "cluster size 2^22");
	REFUSED((o.extl2 = true, o.cluster_bits = 13), "too small for extended L2");
	REFUSED(o.refcount_order = 7, "refcount width");
	REFUSED(o.version = 4, "version 4 not supported");
	REFUSED((o.version = 2, o.extl2 = true), "version 2 has no extended L2");
	REFUSED((o.version = 2, o.refcount_order = 3), "version 2 has no refcount width");
	REFUSED((o.version = 2, o.preallocation = PREALLOC_METADATA), "version 2 has no prealloc");
	REFUSED(o.compression_type = 2, "compression type 2");
	REFUSED(o.virtual_size = 1000, "must be a multiple of 512");
	REFUSED(o.virtual_size = (1ull << 55) + 512, "at most 2^55");
	REFUSED((o.cluster_bits = 9, o.virtual_size = TiB), "use a larger cluster size");
	REFUSED(o.backing_name = "base", "without a format");
	REFUSED(o.backing_format = "raw", "without a backing image");
	REFUSED((o.backing_name = "base", o.backing_format = "vmdk"), "must be raw or qcow2");
	REFUSED((o.backing_name = name, o.backing_format = "raw"), "must be 1..1023");
	REFUSED((o.backing_name = "", o.backing_format = "raw"), "must be 1..1023");
	REFUSED((o.backing_name = name + 100, o.backing_format = "raw", o.cluster_bits = 9),
		"does not fit into the first cluster");
	REFUSED((o.backing_name = "b", o.backing_format = "raw", o.preallocation = PREALLOC_FULL),
		"needs extended L2");
}

static void test_device(void)
{
	struct image_create_options o = defaults(MiB);
	struct ram_dev *ram = ram_create(MEMORY, 3 * 65536, true, OLD_BYTE);
	struct qc_err err = {};

	CU_ASSERT_EQUAL(image_create(&ram->dev, &o, &err), -ENOSPC);
	CU_ASSERT_PTR_NOT_NULL(strstr(err.msg, "ram: device too small (196608 bytes)"));
	CU_ASSERT_EQUAL(ram->nr_writes, 0);
	ram->dev.size_bytes = MEMORY;
	ram->dev.writable = false;
	CU_ASSERT_EQUAL(image_create(&ram->dev, &o, NULL), -EROFS);
	CU_ASSERT_EQUAL(ram->nr_writes, 0);
	ram_destroy(ram);
}

/* ---- what is there ------------------------------------------------------------- */

static void expect_clean(struct ram_dev *ram)
{
	struct image *img = open_ram(ram);
	struct check_result result;

	CU_ASSERT_PTR_NOT_NULL_FATAL(img);
	CU_ASSERT_EQUAL(img->nr_faults, 0);
	CU_ASSERT_EQUAL(image_check(img, 0, NULL, NULL, &result, NULL), 0);
	CU_ASSERT_EQUAL(result.corruptions + result.leaks + result.check_errors, 0);
	image_close(img);
}

/* Data may only be mapped where it was zeroed; nothing below may be hidden. */
static void expect_nothing_old(struct ram_dev *ram, const struct image_create_options *o)
{
	struct image *img = open_ram(ram);
	struct cluster_info info;

	for (u64 at = 0; at < o->virtual_size; at += 1ull << img->subcluster_bits) {
		u64 l2 = image_l2_offset(img, at);
		u32 index = at >> img->cluster_bits & ((1u << img->l2_bits) - 1);
		u32 sc = at >> img->subcluster_bits & (img->subclusters - 1);

		if (!l2)
			continue;
		image_decode(img, image_l2_entry(img, ram->memory + l2, index),
			     image_l2_bitmap(img, ram->memory + l2, index), sc, &info);
		CU_ASSERT_NOT_EQUAL(info.kind, CLUSTER_BAD);
		if (o->backing_name)
			CU_ASSERT_EQUAL(info.kind, CLUSTER_RESERVED);
		if (info.kind == CLUSTER_DATA)
			CU_ASSERT_EQUAL(ram->memory[info.host], 0);
	}
	image_close(img);
}

static void create_one(const struct image_create_options *o, bool blockdev)
{
	struct ram_dev *ram = ram_create(MEMORY, blockdev ? MEMORY : 0, blockdev, OLD_BYTE);
	struct qc_err err = {};

	CU_ASSERT_EQUAL(image_create(&ram->dev, o, &err), 0);
	if (err.code)
		printf("\n%s\n", err.msg);
	CU_ASSERT_TRUE(ram->dev.size_bytes <= MEMORY);
	expect_clean(ram);
	expect_nothing_old(ram, o);
	ram_destroy(ram);
}

static void test_variants(void)
{
	static const u32 cluster_bits[] = { 9, 12, 14, 16, 18 };

	for (u32 i = 0; i < 5 * 2 * 2 * 4 * 3; i++) {
		struct image_create_options o = defaults(MiB + 512);

		o.cluster_bits = cluster_bits[i % 5];
		o.extl2 = o.cluster_bits >= 14 && i / 5 % 2;
		o.refcount_order = (i / 7) % 7;
		o.preallocation = i / 20 % 4;
		o.compression_type = i / 3 % 2;
		if (i / 80 % 3 == 1 && (o.extl2 || !o.preallocation)) {
			o.backing_name = "base.raw";
			o.backing_format = "raw";
		}
		if (o.cluster_bits == 9)
			o.virtual_size /= 4;
		o.virtual_size = ALIGN_DOWN(o.virtual_size, SECTOR_SIZE);
		create_one(&o, i / 10 % 2);
	}
}

static void test_version_2(void)
{
	struct image_create_options o = defaults(MiB);

	o.version = 2;
	create_one(&o, true);
	o.preallocation = PREALLOC_FULL;
	create_one(&o, true);
	o.preallocation = PREALLOC_OFF;
	o.backing_name = "base.qcow2";
	o.backing_format = "qcow2";
	create_one(&o, true);
}

static void test_header(void)
{
	struct image_create_options o = defaults(MiB);
	struct ram_dev *ram = ram_create(MEMORY, MEMORY, true, OLD_BYTE);
	const struct qcow2_disk_header *h = (const void *)ram->memory;
	struct image *img;

	o.backing_name = "a-backing-image.qcow2";
	o.backing_format = "qcow2";
	o.lazy_refcounts = true;
	CU_ASSERT_EQUAL(image_create(&ram->dev, &o, NULL), 0);
	img = open_ram(ram);
	CU_ASSERT_PTR_NOT_NULL_FATAL(img);
	CU_ASSERT_STRING_EQUAL(img->backing_name, o.backing_name);
	CU_ASSERT_STRING_EQUAL(img->backing_format, "qcow2");
	CU_ASSERT_TRUE(img->has_feature_names);
	CU_ASSERT_EQUAL(img->compatible, QCOW2_COMPAT_LAZY_REFCOUNTS);
	/* The name has sectors of its own, its format is in sector 0 (rule B5). */
	CU_ASSERT_TRUE(IS_ALIGNED(be64toh(h->backing_file_offset), 512));
	image_close(img);
	ram_destroy(ram);
}

/* ---- the order (rule B6) --------------------------------------------------------- */

static bool is_image(const struct ram_dev *ram)
{
	return memcmp(ram->memory, "QFI\xfb", 4) == 0;
}

/* At any cut: no image, the old one untouched, or the new one whole. */
static void test_cuts(void)
{
	struct image_create_options old = defaults(MiB), o = defaults(2 * MiB);
	struct ram_dev *ram = ram_create(MEMORY, MEMORY, true, OLD_BYTE);
	u32 images = 0;

	o.cluster_bits = 12;
	o.preallocation = PREALLOC_METADATA;
	CU_ASSERT_EQUAL(image_create(&ram->dev, &old, NULL), 0);
	ram_start_log(ram);
	CU_ASSERT_EQUAL(image_create(&ram->dev, &o, NULL), 0);
	for (u32 at = 0; at <= ram->nr_writes; at++) {
		for (u32 seed = 0; seed < 20; seed++) {
			struct ram_dev *cut = ram_cut(ram, at, seed);

			if (is_image(cut)) {
				images++;
				if (at > 1)
					expect_clean(cut);
			}
			if (at > 1 && at < ram->nr_writes - 1)
				CU_ASSERT_FALSE(is_image(cut));
			ram_destroy(cut);
		}
	}
	CU_ASSERT_TRUE(images > 0);
	/* Sector 0 last, alone, after a flush of all the rest, and flushed. */
	CU_ASSERT_EQUAL(ram->writes[ram->nr_writes - 1].offset, 0);
	CU_ASSERT_EQUAL(ram->writes[ram->nr_writes - 1].len, 512);
	CU_ASSERT_EQUAL(ram->writes[ram->nr_writes - 1].epoch, ram->flushes - 1);
	CU_ASSERT_TRUE(ram->writes[ram->nr_writes - 2].epoch < ram->flushes - 1);
	/* The first MiB first. */
	CU_ASSERT_EQUAL(ram->writes[0].offset, 0);
	CU_ASSERT_EQUAL(ram->writes[0].len, MiB);
	CU_ASSERT_EQUAL(ram->writes[1].epoch, 1);
	ram_destroy(ram);
}

/* Every write that fails makes it fail, with a message, and without an image. */
static void test_write_errors(void)
{
	struct image_create_options o = defaults(MiB);
	struct qc_err err = {};
	u32 n = 0;
	int ret;

	o.preallocation = PREALLOC_FULL;
	do {
		struct ram_dev *ram = ram_create(MEMORY, MEMORY, true, OLD_BYTE);

		err.code = 0;
		ram->fail_write = ++n;
		ret = image_create(&ram->dev, &o, &err);
		if (ret) {
			CU_ASSERT_EQUAL(ret, -EIO);
			CU_ASSERT_EQUAL(strncmp(err.msg, "ram: ", 5), 0);
			CU_ASSERT_FALSE(is_image(ram));
		}
		ram_destroy(ram);
	} while (ret && n < 100);
	CU_ASSERT_TRUE(n > 5 && n < 100);
}

int main(void)
{
	static const struct unit_test tests[] = {
		{ "measure", test_measure },
		{ "measure with data", test_measure_data },
		{ "options", test_options },
		{ "device", test_device },
		{ "variants", test_variants },
		{ "version 2", test_version_2 },
		{ "header", test_header },
		{ "cuts", test_cuts },
		{ "write errors", test_write_errors },
		{ NULL, NULL },
	};

	return unit_main("create", tests);
}
