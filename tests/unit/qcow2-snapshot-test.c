// SPDX-License-Identifier: GPL-2.0-or-later
/* Tables of snapshots and bitmaps, what a checker tolerates, random damage. */
#include "mem-image.h"

/* ---- snapshots ------------------------------------------------------------------ */

struct snapshot_parts {
	u64 l1_offset;
	u32 l1_size;
	const char *id;
	const char *name;
	u32 extra_bytes;
	u64 disk_bytes;
};

static u64 put_snapshot(u64 at, const struct snapshot_parts *sn)
{
	u64 extra = at + 40;

	put64(at, sn->l1_offset);
	put32(at + 8, sn->l1_size);
	put16(at + 12, strlen(sn->id));
	put16(at + 14, strlen(sn->name));
	put32(at + 16, 1700000000);
	put32(at + 20, 5);
	put64(at + 24, 77);
	put32(at + 32, 4711);
	put32(at + 36, sn->extra_bytes);
	if (sn->extra_bytes >= 16) {
		put64(extra, 1ull << 33);
		put64(extra + 8, sn->disk_bytes);
	}
	at = extra + sn->extra_bytes;
	memcpy(mem.bytes + at, sn->id, strlen(sn->id));
	memcpy(mem.bytes + at + strlen(sn->id), sn->name, strlen(sn->name));
	return ALIGN_UP(at + strlen(sn->id) + strlen(sn->name), 8);
}

/* Two snapshots, their table in cluster 6, their L1 tables in 7 and 8. */
static void make_snapshots(void)
{
	struct snapshot_parts first = { 7 * CLUSTER, 2, "1", "monday", 24, GiB };
	struct snapshot_parts second = { 8 * CLUSTER, 1, "2", "1", 16, 512 * MiB };

	make_image(3);
	put32(60, 2);
	put64(64, 6 * CLUSTER);
	put_snapshot(put_snapshot(6 * CLUSTER, &first), &second);
	put64(7 * CLUSTER + 8, 4 * CLUSTER);
	put64(8 * CLUSTER, 5 * CLUSTER);
	mem.dev.writable = false;
}

static void test_snapshots(void)
{
	struct image *img;

	make_snapshots();
	img = open_ok(0);
	CU_ASSERT_EQUAL_FATAL(img->nr_snapshots, 2);
	CU_ASSERT_STRING_EQUAL(img->snapshots[0].id, "1");
	CU_ASSERT_STRING_EQUAL(img->snapshots[0].name, "monday");
	CU_ASSERT_EQUAL(img->snapshots[0].l1_offset, 7 * CLUSTER);
	CU_ASSERT_EQUAL(img->snapshots[0].l1_size, 2);
	CU_ASSERT_EQUAL(img->snapshots[0].date_sec, 1700000000);
	CU_ASSERT_EQUAL(img->snapshots[0].date_nsec, 5);
	CU_ASSERT_EQUAL(img->snapshots[0].vm_clock_nsec, 77);
	CU_ASSERT_EQUAL(img->snapshots[0].vm_state_bytes, 1ull << 33);
	CU_ASSERT_EQUAL(img->snapshots[0].disk_bytes, GiB);
	CU_ASSERT_EQUAL(img->snapshots[0].icount, 0);
	CU_ASSERT_EQUAL(img->snapshots[1].disk_bytes, 512 * MiB);
	CU_ASSERT_EQUAL(img->snapshots[1].icount, ~0ull);
	CU_ASSERT_EQUAL(img->snapshots_offset, 6 * CLUSTER);
	CU_ASSERT_EQUAL(img->snapshots_bytes, 72 + 40 + 16 + 2);
	close_ok(img);
}

/* An entry without extra data is of the image's present size. */
static void test_old_snapshot(void)
{
	struct snapshot_parts old = { 7 * CLUSTER, 2, "1", "", 0, 0 };
	struct image *img;

	make_image(2);
	put32(60, 1);
	put64(64, 6 * CLUSTER);
	put_snapshot(6 * CLUSTER, &old);
	mem.dev.size_bytes = 7 * CLUSTER + 16;
	img = open_ok(0);
	CU_ASSERT_EQUAL(img->snapshots[0].disk_bytes, GiB);
	CU_ASSERT_EQUAL(img->snapshots[0].vm_state_bytes, 4711);
	close_ok(img);
}

static void test_use_snapshot(void)
{
	struct qc_err err = {};
	struct image *img;

	make_snapshots();
	img = open_ok(0);
	CU_ASSERT_EQUAL(image_use_snapshot(img, "tuesday", &err), -ENOENT);
	CU_ASSERT_PTR_NOT_NULL(strstr(err.msg, "mem: no snapshot 'tuesday' (there are 2)"));
	CU_ASSERT_EQUAL(image_use_snapshot(img, "monday", NULL), 0);
	CU_ASSERT_EQUAL(image_l2_offset(img, 0), 0);
	CU_ASSERT_EQUAL(image_l2_offset(img, 512 * MiB), 4 * CLUSTER);
	/* "1" is an id before it is a name. */
	CU_ASSERT_EQUAL(image_use_snapshot(img, "1", NULL), 0);
	CU_ASSERT_EQUAL(img->virtual_size, GiB);
	CU_ASSERT_EQUAL(image_use_snapshot(img, "2", NULL), 0);
	CU_ASSERT_EQUAL(img->virtual_size, 512 * MiB);
	CU_ASSERT_EQUAL(img->l1_size, 1);
	CU_ASSERT_EQUAL(image_l2_offset(img, 0), 5 * CLUSTER);
	close_ok(img);
}

static void use_bad(const char *name, int code, const char *text)
{
	struct qc_err err = {};
	struct image *img = open_ok(0);

	CU_ASSERT_EQUAL(image_use_snapshot(img, name, &err), code);
	CU_ASSERT_PTR_NOT_NULL(strstr(err.msg, text));
	CU_ASSERT_EQUAL(img->virtual_size, GiB);
	CU_ASSERT_EQUAL(img->l1_offset, 3 * CLUSTER);
	close_ok(img);
}

static void test_use_bad_snapshot(void)
{
	u64 second = 6 * CLUSTER + 72;

	make_snapshots();
	put64(8 * CLUSTER, 1);
	use_bad("2", -EILSEQ, "snapshot's L1 table entry 0: reserved bits set");
	put64(8 * CLUSTER, 9 * CLUSTER);
	use_bad("2", -EILSEQ, "entry 0: L2 table beyond");
	put64(second + 48, 512 * MiB + 1);
	use_bad("2", -EILSEQ, "L1 table of snapshot '2' too small (1 entries), 2 needed");
	put64(second + 48, 1ull << 63);
	use_bad("2", -EFBIG, "virtual size 9223372036854775808 of snapshot '2'");
	mem.dev.writable = true;
	use_bad("2", -EINVAL, "snapshot '2' of a writable image");
}

static void test_bad_snapshots(void)
{
	struct snapshot_parts sn = { 7 * CLUSTER, 2, "1", "mon\nday", 24, GiB };

	make_snapshots();
	put_snapshot(6 * CLUSTER, &sn);
	put64(6 * CLUSTER, 7 * CLUSTER + 512);
	open_bad(0, -EILSEQ, "L1 table of snapshot 0 'mon?day' not aligned (offset 0x70200)");
	put64(6 * CLUSTER, 1ull << 40);
	open_bad(0, -EILSEQ, "L1 table of snapshot 0 'mon?day' beyond the end");
	put64(6 * CLUSTER, 3 * CLUSTER);
	open_bad(0, -EILSEQ, "L1 table of snapshot 0 'mon?day' overlaps the L1 table");
	put64(6 * CLUSTER, 8 * CLUSTER);
	open_bad(0, -EILSEQ, "L1 table of a snapshot overlaps the L1 table of a snapshot");
	put32(6 * CLUSTER + 8, ~0u);
	open_bad(0, -EILSEQ, "too large (4294967295 entries)");
	make_snapshots();
	put32(6 * CLUSTER + 36, 1025);
	open_bad(0, -EILSEQ, "snapshot table entry 0 (at 0x60000) with too much extra data");
	put32(6 * CLUSTER + 36, ~0u);
	open_bad(0, -EILSEQ, "with too much extra data");
	make_snapshots();
	put32(60, 4915); /* zeroes are entries without anything, up to the end */
	open_bad(0, -EILSEQ, "snapshot table entry");
	make_snapshots();
	put32(60, 4916);
	open_bad(0, -EILSEQ, "snapshot table beyond the end of the image");
	make_snapshots();
	put64(64, 3 * CLUSTER);
	open_bad(0, -EILSEQ, "snapshot table overlaps the L1 table");
}

/* Names of 64 KiB need more than one look through the window. */
static void test_long_snapshot(void)
{
	struct image *img;

	make_image(3);
	put32(60, 1);
	put64(64, 6 * CLUSTER);
	put16(6 * CLUSTER + 12, 65535);
	put16(6 * CLUSTER + 14, 65535);
	memset(mem.bytes + 6 * CLUSTER + 40, 'i', 65535);
	memset(mem.bytes + 6 * CLUSTER + 40 + 65535, 'n', 65535);
	img = open_ok(0);
	CU_ASSERT_EQUAL(strlen(img->snapshots[0].id), 65535);
	CU_ASSERT_EQUAL(strspn(img->snapshots[0].name, "n"), 65535);
	CU_ASSERT_EQUAL(img->snapshots_bytes, 40 + 2 * 65535);
	close_ok(img);
	mem.dev.size_bytes = 6 * CLUSTER + 40 + 2 * 65535 - 1;
	open_bad(0, -EILSEQ, "snapshot table entry 0 (at 0x60000) beyond the end");
}

/* ---- bitmaps ------------------------------------------------------------------- */

static u64 put_bitmap(u64 at, u64 table, u32 entries, const char *name, u32 extra)
{
	put64(at, table);
	put32(at + 8, entries);
	put32(at + 12, 2);
	mem.bytes[at + 16] = 1;
	mem.bytes[at + 17] = 16;
	put16(at + 18, strlen(name));
	put32(at + 20, extra);
	memcpy(mem.bytes + at + 24 + extra, name, strlen(name));
	return ALIGN_UP(at + 24 + extra + strlen(name), 8);
}

/* Two bitmaps, the directory in cluster 6, their tables in 7 and 8. */
static void make_bitmaps(void)
{
	u8 none[24] = {};
	u64 end;

	make_image(3);
	put64(88, QCOW2_AUTOCLEAR_BITMAPS);
	end = put_bitmap(6 * CLUSTER, 7 * CLUSTER, 3, "daily", 0);
	end = put_bitmap(end, 8 * CLUSTER, 1, "weekly", 10);
	put_extension(112, QCOW2_EXT_BITMAPS, none, 24);
	put32(120, 2);
	put64(128, end - 6 * CLUSTER);
	put64(136, 6 * CLUSTER);
}

static void test_bitmaps(void)
{
	struct image *img;

	make_bitmaps();
	img = open_ok(IMAGE_OPEN_WRITE);
	CU_ASSERT_EQUAL(img->nr_bitmaps, 2);
	CU_ASSERT_PTR_NULL(img->bitmaps);
	CU_ASSERT_EQUAL(img->bitmap_dir_bytes, 32 + 40);
	CU_ASSERT_EQUAL(mem.reads, 2);
	close_ok(img);
	img = open_ok(IMAGE_OPEN_WRITE | IMAGE_OPEN_BITMAPS);
	CU_ASSERT_EQUAL_FATAL(img->nr_bitmaps, 2);
	CU_ASSERT_STRING_EQUAL(img->bitmaps[0].name, "daily");
	CU_ASSERT_EQUAL(img->bitmaps[0].table_offset, 7 * CLUSTER);
	CU_ASSERT_EQUAL(img->bitmaps[0].table_entries, 3);
	CU_ASSERT_EQUAL(img->bitmaps[0].flags, 2);
	CU_ASSERT_EQUAL(img->bitmaps[0].granularity_bits, 16);
	CU_ASSERT_STRING_EQUAL(img->bitmaps[1].name, "weekly");
	close_ok(img);
	/* Whoever cleared the bit wrote without them: they are nobody's. */
	put64(88, 0);
	put64(136, 1);
	img = open_ok(IMAGE_OPEN_WRITE | IMAGE_OPEN_BITMAPS);
	CU_ASSERT_EQUAL(img->nr_bitmaps, 0);
	close_ok(img);
}

static void test_bad_bitmaps(void)
{
	static const struct patch bad[] = {
		{ "bitmaps extension of 23 bytes not valid, must be 24", 0, 116, 4, 23 },
		{ "number of bitmaps not valid (0 bitmaps", 0, 120, 4, 0 },
		{ "number of bitmaps not valid (65536 bitmaps", 0, 120, 4, 65536 },
		{ "reserved field not valid", 0, 124, 4, 1 },
		{ "directory size not valid (2 bitmaps, 47 bytes)", 0, 128, 8, 47 },
		{ "directory size not valid (2 bitmaps, 67108865 bytes)", 0, 128, 8, 67108865 },
		{ "directory size not valid", 0, 128, 8, ~0ull },
		{ "bitmap directory not aligned (offset 0x60008)", 0, 136, 8, 0x60008 },
		{ "bitmap directory overlaps the refcount table", 0, 136, 8, CLUSTER },
		{ "bitmap directory beyond the end of the image", 0, 136, 8, 1ull << 56 },
		{ "bitmap directory entry 1 beyond the end", 0, 128, 8, 48 },
		{ "bitmap directory entry 1 beyond the end", 0, 128, 8, 71 },
		{ "table of bitmap 0 'daily' not aligned", 0, 6 * CLUSTER, 8, 7 * CLUSTER + 8 },
		{ "table of bitmap 0 'daily' not aligned (offset 0x0)", 0, 6 * CLUSTER, 8, 0 },
		{ "bitmap table overlaps the bitmap table", 0, 6 * CLUSTER, 8, 8 * CLUSTER },
		{ "table of bitmap 0 'daily' beyond the end", 0, 6 * CLUSTER + 8, 4, ~0u },
		{ "bitmap 0: name of 0 bytes not valid, must be 1..1023", 0, 6 * CLUSTER + 18, 2,
		  0 },
		{ "bitmap directory entry 0 beyond the end", 0, 6 * CLUSTER + 18, 2, 65535 },
		{ "bitmap directory entry 0 beyond the end", 0, 6 * CLUSTER + 20, 4, ~0u },
	};

	for (u32 i = 0; i < ARRAY_SIZE(bad); i++) {
		make_bitmaps();
		put_patch(&bad[i]);
		open_bad(IMAGE_OPEN_WRITE | IMAGE_OPEN_BITMAPS, -EILSEQ, bad[i].text);
		tolerated(bad[i].text);
	}
}

/* ---- what only a checker opens ---------------------------------------------------- */

static void test_check_tolerates(void)
{
	struct image *img;

	make_image(3);
	put32(56, 0);
	img = open_tolerated("refcount table missing");
	CU_ASSERT_EQUAL(img->reftable_clusters, 0);
	close_ok(img);
	make_image(3);
	put64(48, 3 * CLUSTER);
	tolerated("refcount table overlaps the L1 table");
	make_image(3);
	put64(48, 1ull << 60);
	tolerated("refcount table beyond the end");
	make_image(3);
	put64(3 * CLUSTER, 1);
	put64(3 * CLUSTER + 8, QCOW2_OFFSET_MASK);
	img = open_ok(IMAGE_OPEN_CHECK);
	CU_ASSERT_EQUAL(img->nr_faults, 0);
	CU_ASSERT_EQUAL(l1_get(&img->l1, 0), 1);
	close_ok(img);
	put64(40, 1ull << 60);
	open_bad(IMAGE_OPEN_CHECK, -EILSEQ, "L1 table beyond the end");
}

static void test_check_snapshots(void)
{
	struct image *img;

	make_snapshots();
	put64(6 * CLUSTER + 72, 1ull << 60);
	img = open_tolerated("L1 table of snapshot 1 '1' beyond the end");
	CU_ASSERT_EQUAL(img->nr_snapshots, 1);
	CU_ASSERT_STRING_EQUAL(img->snapshots[0].name, "monday");
	close_ok(img);
	put64(64, 1ull << 60);
	img = open_tolerated("snapshot table beyond the end");
	CU_ASSERT_EQUAL(img->nr_snapshots, 0);
	close_ok(img);
}

/* ---- everything at once -------------------------------------------------------------- */

static u64 random_state;

static u64 next_random(void)
{
	random_state = random_state * 6364136223846793005ull + 1442695040888963407ull;
	return random_state >> 29;
}

/* Bytes and words that are wrong in interesting ways, in interesting places. */
static void damage(void)
{
	static const u64 values[] = { 0,	  1,	      7,	 0x7fffffff,
				      0xffffffff, ~0ull,      CLUSTER,	 3 * CLUSTER,
				      MEM_BYTES,  1ull << 55, 1ull << 63 };
	u64 area[] = { 0, 112, 3 * CLUSTER, 6 * CLUSTER };
	u64 at = area[next_random() % ARRAY_SIZE(area)] + next_random() % 128;

	switch (next_random() % 3) {
	case 0:
		mem.bytes[at] = next_random();
		break;
	case 1:
		put32(ALIGN_DOWN(at, 4), values[next_random() % ARRAY_SIZE(values)]);
		break;
	default:
		put64(ALIGN_DOWN(at, 8), values[next_random() % ARRAY_SIZE(values)]);
	}
}

static void test_random_damage(void)
{
	static void (*const make[])(void) = { make_snapshots, make_bitmaps };
	static const u32 flags[] = { 0, IMAGE_OPEN_CHECK, IMAGE_OPEN_BITMAPS,
				     IMAGE_OPEN_CHECK | IMAGE_OPEN_BITMAPS };
	struct qc_err err;
	struct image *img;
	u32 opened = 0;

	for (u32 i = 0; i < 20000; i++) {
		random_state = i;
		make[i % 2]();
		for (u64 n = next_random() % 4 + 1; n--;)
			damage();
		err = (struct qc_err){};
		if (image_open(&mem.dev, IMAGE_QCOW2, flags[i / 2 % 4], &img, &err)) {
			CU_ASSERT(err.code < 0 && !strncmp(err.msg, "mem: ", 5));
			continue;
		}
		opened++;
		image_use_snapshot(img, "1", NULL);
		image_close(img);
	}
	CU_ASSERT(opened > 0);
}

int main(void)
{
	static const struct unit_test tests[] = {
		{ "snapshots", test_snapshots },
		{ "old snapshot", test_old_snapshot },
		{ "showing a snapshot", test_use_snapshot },
		{ "showing a bad snapshot", test_use_bad_snapshot },
		{ "bad snapshots", test_bad_snapshots },
		{ "long snapshot names", test_long_snapshot },
		{ "bitmaps", test_bitmaps },
		{ "bad bitmaps", test_bad_bitmaps },
		{ "a checker tolerates", test_check_tolerates },
		{ "a checker and snapshots", test_check_snapshots },
		{ "random damage", test_random_damage },
		{},
	};

	return unit_main("qcow2-snapshot", tests);
}
