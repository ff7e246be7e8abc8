// SPDX-License-Identifier: GPL-2.0-or-later
/* One hostile image: open it in every way, look at every entry, check, repair. */
#include "fuzz.h"

#include <qchain/image.h>
#include <stdlib.h>
#include <string.h>

#define ROOM_BYTES (1u * 1024u * 1024u)
#define MAX_TABLES 64u

static struct io_dev *device(const u8 *data, size_t size, bool blockdev)
{
	struct io_dev *dev;

	if (io_mock_dev_create("fuzz", size, ROOM_BYTES, blockdev, &dev))
		abort();
	memcpy(io_mock_dev_bytes(dev), data, size);
	return dev;
}

static void look_at_cluster(const struct image *img, u64 entry, u64 bitmap)
{
	static u8 in[2 * 2 * 1024 * 1024 + 512], out[2 * 1024 * 1024];
	struct cluster_info c;
	u32 sc, bytes;

	for (sc = 0; sc < img->subclusters; sc++)
		image_decode(img, entry, bitmap, sc, &c);
	if (c.kind != CLUSTER_COMPRESSED || c.host >= img->dev->size_bytes)
		return;
	bytes = min((u64)c.compressed_bytes, img->dev->size_bytes - c.host);
	if (bytes <= sizeof(in) && !io_dev_pread(img->dev, in, bytes, c.host))
		image_decompress(img, in, bytes, out);
}

static void look_at_table(const struct image *img, u64 host)
{
	static u8 table[2 * 1024 * 1024];
	u32 i, entries = 1u << img->l2_bits;

	if (host + image_cluster_bytes(img) > img->dev->size_bytes ||
	    io_dev_pread(img->dev, table, image_cluster_bytes(img), host))
		return;
	for (i = 0; i < entries && i < 4096; i++)
		look_at_cluster(img, image_l2_entry(img, table, i),
				image_l2_bitmap(img, table, i));
}

static void look(struct image *img)
{
	u32 i, n = 0;

	for (i = 0; i < img->l1_size && n < MAX_TABLES; i++) {
		u64 host = image_l2_offset(img, (u64)i << image_l2_coverage_bits(img));

		if (host && ++n)
			look_at_table(img, host);
	}
	for (i = 0; i < img->nr_snapshots && i < 4; i++)
		image_use_snapshot(img, img->snapshots[i].id, NULL);
}

static void open_and(const u8 *data, size_t size, u32 flags, u32 fix)
{
	struct io_dev *dev = device(data, size, data[size - 1] & 1);
	struct check_result result;
	struct qc_err err = { 0 };
	struct image *img;

	if (!(flags & IMAGE_OPEN_WRITE))
		dev->writable = false;
	if (!image_open(dev, IMAGE_QCOW2, flags, &img, &err)) {
		if (flags & IMAGE_OPEN_CHECK)
			image_check(img, fix, NULL, NULL, &result, &err);
		else
			look(img);
		image_close(img);
	} else if (!err.msg[0]) {
		abort(); /* a refusal without a reason */
	}
	io_mock_dev_destroy(dev);
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t size)
{
	u32 check = IMAGE_OPEN_CHECK | IMAGE_OPEN_BITMAPS;

	if (size < 104 || size > ROOM_BYTES / 2)
		return 0;
	open_and(data, size, 0, 0);
	open_and(data, size, IMAGE_OPEN_BITMAPS, 0);
	open_and(data, size, IMAGE_OPEN_WRITE | IMAGE_OPEN_BITMAPS, 0);
	open_and(data, size, check, 0);
	open_and(data, size, check | IMAGE_OPEN_WRITE, CHECK_FIX_LEAKS | CHECK_FIX_ERRORS);
	return 0;
}
