// SPDX-License-Identifier: GPL-2.0-or-later
/* Entries of an intent log written into the tables of an image that has little room. */
#include <endian.h>
#include <qchain/edit.h>
#include <qchain/image.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <uapi/qcow2.h>
#include <unistd.h>

#include "unit.h"

#define CLUSTER_BITS 12u
#define CLUSTER (1ull << CLUSTER_BITS)
#define DEV_CLUSTERS 128u
/* Of so many clusters these are kept for tables. */
#define RESERVE (DEV_CLUSTERS / 32)
/* Guest clusters of one L2 table. */
#define TABLE_ENTRIES (CLUSTER / sizeof(u64))

static char path[] = "/dev/shm/qchain-replay.XXXXXX";
static struct io_dev *dev;
static struct image *img;

/* A file that passes for a volume. */
static void open_volume(void)
{
	struct qc_err err = { 0 };

	CU_ASSERT_EQUAL_FATAL(io_dev_open(path, IO_DEV_WRITE, &dev, &err), 0);
	dev->blockdev = true;
}

static void open_image(void)
{
	struct qc_err err = { 0 };

	open_volume();
	CU_ASSERT_EQUAL_FATAL(image_open(dev, IMAGE_QCOW2, IMAGE_OPEN_WRITE, &img, &err), 0);
}

static void make_image(void)
{
	struct image_create_options options;
	struct qc_err err = { 0 };

	image_create_defaults(&options);
	options.cluster_bits = CLUSTER_BITS;
	options.virtual_size = 8 * TABLE_ENTRIES * CLUSTER;
	CU_ASSERT_EQUAL_FATAL(truncate(path, 0) || truncate(path, DEV_CLUSTERS * CLUSTER), 0);
	open_volume();
	CU_ASSERT_EQUAL_FATAL(image_create(dev, &options, &err), 0);
	io_dev_close(dev);
}

/* The counts of all clusters, in the one block that there is. */
static void each_count(void (*fn)(u16 *count, u32 cluster))
{
	u8 block[CLUSTER];
	__be64 at;

	open_image();
	CU_ASSERT_EQUAL_FATAL(io_dev_pread(dev, &at, sizeof(at), img->reftable_offset), 0);
	CU_ASSERT_EQUAL_FATAL(io_dev_pread(dev, block, sizeof(block), be64toh(at)), 0);
	for (u32 i = 0; i < DEV_CLUSTERS; i++)
		fn((u16 *)block + i, i);
	CU_ASSERT_EQUAL_FATAL(io_dev_pwrite(dev, block, sizeof(block), be64toh(at)), 0);
	image_close(img);
}

static void fill(u16 *count, u32 cluster)
{
	if (cluster < DEV_CLUSTERS - RESERVE)
		*count = htobe16(1);
}

static int set_entries(const struct image_entry *list, u32 nr)
{
	struct qc_err err = { 0 };
	int ret;

	open_image();
	ret = image_set_entries(img, list, nr, &err);
	if (ret)
		printf("\n    %s\n", err.msg);
	image_close(img);
	return ret;
}

static u64 l1_entry(u32 index)
{
	u64 entry;

	open_image();
	entry = l1_get(&img->l1, index);
	image_close(img);
	return entry;
}

/*
 * A full volume: the daemon that died had taken tables for discards from what is
 * kept for them, and its successor must find room for the same.
 */
static void test_tables_when_full(void)
{
	const struct image_entry zeroes[] = { { .cluster = 0, .entry = QCOW2_ZERO },
					      { .cluster = TABLE_ENTRIES, .entry = QCOW2_ZERO } };

	make_image();
	each_count(fill);
	CU_ASSERT_EQUAL(set_entries(zeroes, ARRAY_SIZE(zeroes)), 0);
	CU_ASSERT((l1_entry(0) & QCOW2_OFFSET_MASK) >= (DEV_CLUSTERS - RESERVE) * CLUSTER);
	CU_ASSERT(l1_entry(0) != l1_entry(1) && l1_entry(1) & QCOW2_COPIED);
}

#define LOWERED 40u /* its release had not reached the disk */
#define UNCOUNTED 41u /* nor its allocation */
#define SHARED 42u

static void count_late(u16 *count, u32 cluster)
{
	if (cluster == LOWERED || cluster == SHARED)
		*count = htobe16(3);
}

static u16 counted[DEV_CLUSTERS];

static void note_count(u16 *count, u32 cluster)
{
	counted[cluster] = be16toh(*count);
}

/* Promise 26: what an entry calls its own is counted once, whatever the disk says. */
static void test_counts_that_are_late(void)
{
	const struct image_entry list[] = {
		{ .cluster = 0, .entry = LOWERED * CLUSTER | QCOW2_COPIED },
		{ .cluster = 1, .entry = UNCOUNTED * CLUSTER | QCOW2_COPIED },
		{ .cluster = 2, .entry = SHARED * CLUSTER },
	};

	make_image();
	each_count(count_late);
	CU_ASSERT_EQUAL(set_entries(list, ARRAY_SIZE(list)), 0);
	each_count(note_count);
	CU_ASSERT_EQUAL(counted[LOWERED], 1);
	CU_ASSERT_EQUAL(counted[UNCOUNTED], 1);
	CU_ASSERT_EQUAL(counted[SHARED], 3);
}

static const struct unit_test tests[] = {
	{ "a full volume has room for the tables", test_tables_when_full },
	{ "counts that the disk does not have yet", test_counts_that_are_late },
	{ NULL },
};

int main(void)
{
	int ret;

	close(mkstemp(path));
	ret = unit_main("replay", tests);
	unlink(path);
	return ret;
}
