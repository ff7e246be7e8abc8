// SPDX-License-Identifier: GPL-2.0-or-later
/* Compressed clusters: what must unpack, what must not, and what bombs cost. */
#include <errno.h>
#include <qchain/image.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

#include "unit.h"

#define CLUSTER_BITS 16u
#define CLUSTER (1u << CLUSTER_BITS)
#define ZSTD 1

static u8 plain[CLUSTER], packed[4 * CLUSTER], out[CLUSTER + 1];

static struct image image_of(u32 type)
{
	return (struct image){ .cluster_bits = CLUSTER_BITS, .compression_type = type };
}

static void fill_plain(u32 seed)
{
	srand(seed);
	for (u32 i = 0; i < CLUSTER; i++)
		plain[i] = seed % 2 ? rand() % 4 : rand();
}

static u32 deflate_to(u8 *to, const u8 *from, u32 bytes, int window_bits)
{
	z_stream stream = { .next_in = (u8 *)from, .avail_in = bytes };

	CU_ASSERT_EQUAL_FATAL(deflateInit2(&stream, 9, Z_DEFLATED, window_bits, 9,
					   Z_DEFAULT_STRATEGY), Z_OK);
	stream.next_out = to;
	stream.avail_out = 2 * CLUSTER;
	CU_ASSERT_EQUAL_FATAL(deflate(&stream, Z_FINISH), Z_STREAM_END);
	deflateEnd(&stream);
	return stream.total_out;
}

static int unpack(u32 type, u32 bytes)
{
	struct image img = image_of(type);
	/* As long as it is said to be, so that a sanitizer sees reads beyond it. */
	u8 *in = malloc(bytes ? bytes : 1);
	int ret;

	memcpy(in, packed, bytes);
	memset(out, 0xee, sizeof(out));
	ret = image_decompress(&img, in, bytes, out);
	CU_ASSERT_EQUAL(out[CLUSTER], 0xee);
	free(in);
	return ret;
}

static void test_deflate(void)
{
	for (u32 seed = 0; seed < 4; seed++) {
		u32 bytes;

		fill_plain(seed);
		bytes = deflate_to(packed, plain, CLUSTER, -12);
		CU_ASSERT_EQUAL(unpack(0, bytes), 0);
		CU_ASSERT_EQUAL(memcmp(out, plain, CLUSTER), 0);
		/* The rest of the last sector belongs to somebody else. */
		memset(packed + bytes, 0xa5, 511);
		CU_ASSERT_EQUAL(unpack(0, bytes + 511), 0);
		CU_ASSERT_EQUAL(memcmp(out, plain, CLUSTER), 0);
		CU_ASSERT_EQUAL(unpack(0, bytes / 2), -EIO);
	}
}

static void test_deflate_wrong(void)
{
	u32 bytes;

	fill_plain(1);
	bytes = deflate_to(packed, plain, CLUSTER - 1, -12);
	CU_ASSERT_EQUAL(unpack(0, bytes), -EIO);
	CU_ASSERT_EQUAL(unpack(0, 0), -EIO);
	memset(packed, 0xff, 512);
	CU_ASSERT_EQUAL(unpack(0, 512), -EIO);
	memset(packed, 0, 512);
	CU_ASSERT_EQUAL(unpack(0, 512), -EIO);
}

/* A stream that goes on where the cluster is full: the cluster is what counts. */
static void test_deflate_bomb(void)
{
	u8 *zeroes = calloc(64, CLUSTER);
	u32 bytes = deflate_to(packed, zeroes, 64 * CLUSTER, -12);

	CU_ASSERT_EQUAL(unpack(0, bytes), 0);
	CU_ASSERT_EQUAL(memcmp(out, zeroes, CLUSTER), 0);
	free(zeroes);
}

static void test_zstd(void)
{
	for (u32 seed = 0; seed < 4; seed++) {
		size_t bytes;

		fill_plain(seed);
		bytes = ZSTD_compress(packed, sizeof(packed), plain, CLUSTER, 3);
		CU_ASSERT_EQUAL(unpack(ZSTD, bytes), 0);
		CU_ASSERT_EQUAL(memcmp(out, plain, CLUSTER), 0);
		memset(packed + bytes, 0xa5, 511);
		CU_ASSERT_EQUAL(unpack(ZSTD, bytes + 511), 0);
		CU_ASSERT_EQUAL(unpack(ZSTD, bytes / 2), -EIO);
	}
}

static void test_zstd_frames(void)
{
	size_t bytes = 0;

	fill_plain(3);
	for (u32 at = 0; at < CLUSTER; at += CLUSTER / 4)
		bytes += ZSTD_compress(packed + bytes, sizeof(packed) - bytes, plain + at,
				       CLUSTER / 4, 3);
	CU_ASSERT_EQUAL(unpack(ZSTD, bytes), 0);
	CU_ASSERT_EQUAL(memcmp(out, plain, CLUSTER), 0);
	CU_ASSERT_EQUAL(unpack(ZSTD, bytes - CLUSTER / 64), -EIO);
}

static void test_zstd_wrong(void)
{
	size_t bytes;

	fill_plain(1);
	/* One frame that is longer than the cluster is not a cluster. */
	memset(packed, 0, sizeof(packed));
	{
		u8 *more = calloc(2, CLUSTER);

		bytes = ZSTD_compress(packed, sizeof(packed), more, 2 * CLUSTER, 3);
		free(more);
	}
	CU_ASSERT_EQUAL(unpack(ZSTD, bytes), -EIO);
	CU_ASSERT_EQUAL(unpack(ZSTD, 0), -EIO);
	memset(packed, 0x55, 512);
	CU_ASSERT_EQUAL(unpack(ZSTD, 512), -EIO);
}

/* A frame that claims a window of a gigabyte gets none. */
static void test_zstd_window(void)
{
	ZSTD_CCtx *ctx = ZSTD_createCCtx();
	ZSTD_inBuffer in = { plain, CLUSTER, 0 };
	ZSTD_outBuffer to = { packed, sizeof(packed), 0 };

	fill_plain(3);
	ZSTD_CCtx_setParameter(ctx, ZSTD_c_windowLog, 27);
	ZSTD_CCtx_setParameter(ctx, ZSTD_c_contentSizeFlag, 0);
	/* Without a known size the frame keeps the window that was asked for. */
	while (in.pos < in.size)
		ZSTD_compressStream2(ctx, &to, &in, ZSTD_e_continue);
	CU_ASSERT_EQUAL_FATAL(ZSTD_compressStream2(ctx, &to, &in, ZSTD_e_end), 0);
	CU_ASSERT_EQUAL(unpack(ZSTD, to.pos), -EIO);
	ZSTD_freeCCtx(ctx);
}

int main(void)
{
	static const struct unit_test tests[] = {
		{ "deflate", test_deflate },
		{ "deflate, wrong streams", test_deflate_wrong },
		{ "deflate, more than a cluster", test_deflate_bomb },
		{ "zstd", test_zstd },
		{ "zstd, several frames", test_zstd_frames },
		{ "zstd, wrong streams", test_zstd_wrong },
		{ "zstd, window too large", test_zstd_window },
		{ NULL, NULL },
	};

	return unit_main("compress", tests);
}
