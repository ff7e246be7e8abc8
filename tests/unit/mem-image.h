/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A qcow2 image in memory, and opening it; for one test program each. */
#ifndef TESTS_MEM_IMAGE_H
#define TESTS_MEM_IMAGE_H

#include <endian.h>
#include <errno.h>
#include <qchain/image.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <uapi/qcow2.h>

#include "unit.h"

/*
 * The image of most tests: 64 KiB clusters, 1 GiB. Cluster 1 is the refcount
 * table, 2 a refcount block, 3 L1 (two entries), 4 an L2 table, 5 data; 6 to 8
 * are free for snapshots and bitmaps.
 */
#define CLUSTER 65536u
#define MEM_BYTES (9 * CLUSTER)

/* ---- a device in memory ---------------------------------------------------- */

struct mem_dev {
	struct io_dev dev;
	u8 bytes[MEM_BYTES];
	u32 reads;
	u32 writes;
	u32 flushes;
	bool closed;
	int fail; /* -errno for the next read */
};

static struct mem_dev mem;

static inline int mem_pread(struct io_dev *dev, void *buf, size_t len, u64 offset)
{
	mem.reads++;
	if (mem.fail)
		return mem.fail;
	CU_ASSERT_FATAL(offset <= dev->size_bytes && len <= dev->size_bytes - offset);
	memcpy(buf, mem.bytes + offset, len);
	return 0;
}

static inline int mem_pwrite(struct io_dev *dev, const void *buf, size_t len, u64 offset)
{
	mem.writes++;
	CU_ASSERT_FATAL(offset <= dev->size_bytes && len <= dev->size_bytes - offset);
	memcpy(mem.bytes + offset, buf, len);
	return 0;
}

static inline int mem_flush(struct io_dev *dev)
{
	mem.flushes++;
	return 0;
}

static inline void mem_close(struct io_dev *dev)
{
	mem.closed = true;
}

static const struct io_dev_ops mem_ops = {
	.pread = mem_pread,
	.pwrite = mem_pwrite,
	.flush = mem_flush,
	.close = mem_close,
};

static inline void put16(u64 at, u16 v)
{
	v = htobe16(v);
	memcpy(mem.bytes + at, &v, sizeof(v));
}

static inline void put32(u64 at, u32 v)
{
	v = htobe32(v);
	memcpy(mem.bytes + at, &v, sizeof(v));
}

static inline void put64(u64 at, u64 v)
{
	v = htobe64(v);
	memcpy(mem.bytes + at, &v, sizeof(v));
}

/* One field of an image overwritten, and what the opener says to it. */
struct patch {
	const char *text;
	int code;
	u32 at;
	u32 width; /* bytes: 2, 4 or 8 */
	u64 value;
};

static inline void put_patch(const struct patch *p)
{
	if (p->width == 2)
		put16(p->at, p->value);
	else if (p->width == 4)
		put32(p->at, p->value);
	else
		put64(p->at, p->value);
}

static inline void make_dev(u64 bytes)
{
	memset(&mem, 0, sizeof(mem));
	mem.dev = (struct io_dev){
		.ops = &mem_ops,
		.path = (char *)"mem",
		.block_bytes = 512,
		.blockdev = true,
		.writable = true,
		.size_bytes = bytes,
	};
}

static inline void make_image(u32 version)
{
	make_dev(MEM_BYTES);
	put32(0, QCOW2_MAGIC);
	put32(4, version);
	put32(20, 16);
	put64(24, GiB);
	put32(36, 2);
	put64(40, 3 * CLUSTER);
	put64(48, CLUSTER);
	put32(56, 1);
	put64(CLUSTER, 2 * CLUSTER);
	put64(3 * CLUSTER, 4 * CLUSTER | QCOW2_COPIED);
	put64(4 * CLUSTER, 5 * CLUSTER | QCOW2_COPIED);
	if (version < 3)
		return;
	put32(96, 4);
	put32(100, 112);
}

/* One header extension at @at; returns where the next one begins. */
static inline u64 put_extension(u64 at, u32 type, const void *data, u32 len)
{
	put32(at, type);
	put32(at + 4, len);
	memcpy(mem.bytes + at + 8, data, len);
	return ALIGN_UP(at + 8 + len, 8);
}

static inline void put_backing(u64 at, const char *name)
{
	put64(8, at);
	put32(16, strlen(name));
	memcpy(mem.bytes + at, name, strlen(name));
}

/* ---- opening ----------------------------------------------------------------- */

static inline struct image *open_ok(u32 flags)
{
	struct qc_err err = {};
	struct image *img = NULL;
	int ret = image_open(&mem.dev, IMAGE_QCOW2, flags, &img, &err);

	if (ret)
		printf("\n    %s\n", err.msg);
	CU_ASSERT_EQUAL_FATAL(ret, 0);
	CU_ASSERT_EQUAL(err.code, 0);
	CU_ASSERT_FALSE(mem.closed);
	return img;
}

static inline void close_ok(struct image *img)
{
	image_close(img);
	CU_ASSERT(mem.closed);
	mem.closed = false;
}

static inline void open_and_close(u32 flags)
{
	close_ok(open_ok(flags));
}

static inline void open_bad(u32 flags, int code, const char *text)
{
	struct qc_err err = {};
	struct image *img = (struct image *)&err;
	int ret = image_open(&mem.dev, IMAGE_QCOW2, flags, &img, &err);

	if (ret != code || !strstr(err.msg, text))
		printf("\n    %d '%s', not %d '%s'\n", ret, err.msg, code, text);
	CU_ASSERT_EQUAL_FATAL(ret, code);
	CU_ASSERT_EQUAL(err.code, code);
	CU_ASSERT_EQUAL(strncmp(err.msg, "mem: ", 5), 0);
	CU_ASSERT_PTR_NOT_NULL(strstr(err.msg, text));
	CU_ASSERT_PTR_NULL(strchr(err.msg, '\n'));
	CU_ASSERT_PTR_EQUAL(img, &err);
	CU_ASSERT(mem.closed);
	CU_ASSERT_EQUAL(mem.writes, 0);
	mem.closed = false;
}

/* A checker opens it and finds one fault. */
static inline struct image *open_tolerated(const char *fault)
{
	struct image *img = open_ok(IMAGE_OPEN_CHECK | IMAGE_OPEN_BITMAPS);

	CU_ASSERT_EQUAL_FATAL(img->nr_faults, 1);
	CU_ASSERT_PTR_NOT_NULL(strstr(img->faults[0], fault));
	return img;
}

static inline void tolerated(const char *fault)
{
	close_ok(open_tolerated(fault));
}

#endif
