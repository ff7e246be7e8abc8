// SPDX-License-Identifier: GPL-2.0-or-later
/* What opening an image reads: header, extensions, L1, snapshots, bitmaps. */
#include "fuzz.h"

#include <qchain/image.h>
#include <stdlib.h>
#include <string.h>

/* fuzz-image does this, too, and more, a hundred times as slowly. */

#define ROOM_BYTES (64u * 1024u)

static void open_with(const u8 *data, size_t size, u32 flags)
{
	struct qc_err err = { 0 };
	struct image *img;
	struct io_dev *dev;

	if (io_mock_dev_create("fuzz", size, ROOM_BYTES, false, &dev))
		abort();
	memcpy(io_mock_dev_bytes(dev), data, size);
	if (!image_open(dev, IMAGE_QCOW2, flags, &img, &err))
		image_close(img);
	else if (!err.msg[0])
		abort(); /* a refusal without a reason */
	io_mock_dev_destroy(dev);
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t size)
{
	if (size < 72 || size > ROOM_BYTES)
		return 0;
	open_with(data, size, 0);
	open_with(data, size, IMAGE_OPEN_WRITE | IMAGE_OPEN_CHECK | IMAGE_OPEN_BITMAPS);
	return 0;
}
