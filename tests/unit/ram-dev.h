/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A device in memory that logs its writes and can be cut; for one test program each. */
#ifndef TESTS_RAM_DEV_H
#define TESTS_RAM_DEV_H

#include <errno.h>
#include <qchain/image.h>
#include <stdlib.h>
#include <string.h>

#include "unit.h"

/*
 * struct ram_dev - what was written is seen at once and kept in a log; a flush
 * makes all before it durable. What lies beyond @memory_bytes of the device's
 * size reads as zero and may not be written.
 */
struct ram_write {
	u64 offset;
	u32 len;
	u32 epoch; /* flushes before it */
	u8 *data;
};

struct ram_dev {
	struct io_dev dev;
	u8 *memory;
	u8 *initial; /* as it was when the log began */
	u64 memory_bytes;
	struct ram_write *writes;
	u32 nr_writes;
	u32 flushes;
	u32 fail_write; /* this write of the log fails, 0: none */
};

static inline struct ram_dev *ram_of(struct io_dev *dev)
{
	return dev->private;
}

static inline int ram_pread(struct io_dev *dev, void *buf, size_t len, u64 offset)
{
	struct ram_dev *ram = ram_of(dev);
	u64 have = offset < ram->memory_bytes ? min((u64)len, ram->memory_bytes - offset) : 0;

	CU_ASSERT_FATAL(offset + len <= dev->size_bytes || !dev->blockdev);
	memset(buf, 0, len);
	memcpy(buf, ram->memory + offset, have);
	return 0;
}

static inline int ram_pwrite(struct io_dev *dev, const void *buf, size_t len, u64 offset)
{
	struct ram_dev *ram = ram_of(dev);
	struct ram_write *w;

	CU_ASSERT_FATAL(offset + len <= ram->memory_bytes);
	ram->writes = realloc(ram->writes, (ram->nr_writes + 1) * sizeof(*w));
	w = &ram->writes[ram->nr_writes++];
	if (ram->nr_writes == ram->fail_write) {
		ram->nr_writes--;
		return -EIO;
	}
	*w = (struct ram_write){ .offset = offset, .len = len, .epoch = ram->flushes };
	w->data = malloc(len);
	memcpy(w->data, buf, len);
	memcpy(ram->memory + offset, buf, len);
	dev->size_bytes = max(dev->size_bytes, offset + len);
	return 0;
}

static inline int ram_flush(struct io_dev *dev)
{
	ram_of(dev)->flushes++;
	return 0;
}

static inline s64 ram_refresh_size(struct io_dev *dev)
{
	return dev->size_bytes;
}

/* image_close() closes the device; the test keeps it. */
static inline void ram_close(struct io_dev *dev)
{
}

static inline struct ram_dev *ram_create(u64 memory_bytes, u64 size_bytes, bool blockdev, u8 fill)
{
	static const struct io_dev_ops ops = {
		.pread = ram_pread,
		.pwrite = ram_pwrite,
		.flush = ram_flush,
		.refresh_size = ram_refresh_size,
		.close = ram_close,
	};
	struct ram_dev *ram = calloc(1, sizeof(*ram));

	ram->dev.ops = &ops;
	ram->dev.path = strdup("ram");
	ram->dev.fd = -1;
	ram->dev.block_bytes = 512;
	ram->dev.mem_align_bytes = 512;
	ram->dev.blockdev = blockdev;
	ram->dev.writable = true;
	ram->dev.size_bytes = size_bytes;
	ram->dev.private = ram;
	ram->memory_bytes = memory_bytes;
	ram->memory = malloc(memory_bytes);
	ram->initial = malloc(memory_bytes);
	memset(ram->memory, fill, memory_bytes);
	memset(ram->initial, fill, memory_bytes);
	return ram;
}

/* The log begins anew with what is there now. */
static inline void ram_start_log(struct ram_dev *ram)
{
	for (u32 i = 0; i < ram->nr_writes; i++)
		free(ram->writes[i].data);
	ram->nr_writes = 0;
	ram->flushes = 0;
	memcpy(ram->initial, ram->memory, ram->memory_bytes);
}

static inline void ram_destroy(struct ram_dev *ram)
{
	ram_start_log(ram);
	free(ram->writes);
	free(ram->memory);
	free(ram->initial);
	free(ram->dev.path);
	free(ram);
}

/*
 * ram_cut - what a power cut right before write @at of @from's log can leave:
 * all that was flushed, and of the rest each sector or not, as @seed says.
 */
static inline struct ram_dev *ram_cut(const struct ram_dev *from, u32 at, u32 seed)
{
	struct ram_dev *ram = ram_create(from->memory_bytes, from->dev.size_bytes,
					 from->dev.blockdev, 0);
	u32 epoch = at < from->nr_writes ? from->writes[at].epoch : from->flushes;

	memcpy(ram->memory, from->initial, from->memory_bytes);
	srand(seed * 7919 + at);
	for (u32 i = 0; i < at; i++) {
		const struct ram_write *w = &from->writes[i];

		for (u32 k = 0; k < w->len;) {
			u64 sector = (w->offset + k) / 512;
			u32 n = min((u64)w->len - k, (sector + 1) * 512 - (w->offset + k));

			if (w->epoch < epoch || rand() % 2)
				memcpy(ram->memory + w->offset + k, w->data + k, n);
			k += n;
		}
	}
	return ram;
}

#endif
