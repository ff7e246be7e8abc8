// SPDX-License-Identifier: GPL-2.0-or-later OR MIT
/* Compressed clusters: one stored stream to one cluster of guest data. */
#include <errno.h>
#include <qchain/image.h>
#include <zlib.h>
#include <zstd.h>

/*
 * Raw deflate with a window of 4 KiB: what QEMU writes and the most that it
 * reads, so nobody may write more.
 */
#define DEFLATE_WINDOW_BITS (-12)
/*
 * Largest window of a zstd frame: what RFC 8878 asks every decoder for. Frames
 * may claim gigabytes; a cluster of 2 MiB never needs more than this.
 */
#define ZSTD_WINDOW_LOG_MAX 23

#define COMPRESSION_ZSTD 1

/*
 * The input reaches to the end of a sector, the stream may end before: what is
 * left over is no error. What does not fill the cluster is one. The output is
 * the limit of the work, whatever the stream claims.
 */
static int decompress_deflate(const void *in, u32 in_bytes, void *out, u32 out_bytes)
{
	z_stream stream = {
		.next_in = (Bytef *)in,
		.avail_in = in_bytes,
		.next_out = out,
		.avail_out = out_bytes,
	};
	int ret = inflateInit2(&stream, DEFLATE_WINDOW_BITS);

	if (ret != Z_OK)
		return ret == Z_MEM_ERROR ? -ENOMEM : -EIO;
	ret = inflate(&stream, Z_FINISH);
	inflateEnd(&stream);
	/* Z_BUF_ERROR: the cluster is full and the stream has not said its end. */
	if (ret == Z_STREAM_END || ret == Z_BUF_ERROR)
		return stream.avail_out == 0 ? 0 : -EIO;
	return ret == Z_MEM_ERROR ? -ENOMEM : -EIO;
}

/* One frame after the other until the cluster is full; it must end with one. */
static int decompress_frames(ZSTD_DCtx *dctx, ZSTD_inBuffer *in, ZSTD_outBuffer *out)
{
	size_t left = 0;

	while (out->pos < out->size) {
		size_t in_before = in->pos, out_before = out->pos;

		left = ZSTD_decompressStream(dctx, out, in);
		if (ZSTD_isError(left))
			return -EIO;
		/* Wants more input than there is. */
		if (in->pos == in_before && out->pos == out_before)
			return -EIO;
	}
	return left == 0 ? 0 : -EIO;
}

static int decompress_zstd(const void *in, u32 in_bytes, void *out, u32 out_bytes)
{
	ZSTD_inBuffer input = { .src = in, .size = in_bytes };
	ZSTD_outBuffer output = { .dst = out, .size = out_bytes };
	ZSTD_DCtx *dctx = ZSTD_createDCtx();
	size_t code;
	int ret;

	if (!dctx)
		return -ENOMEM;
	code = ZSTD_DCtx_setParameter(dctx, ZSTD_d_windowLogMax, ZSTD_WINDOW_LOG_MAX);
	ret = ZSTD_isError(code) ? -EIO : decompress_frames(dctx, &input, &output);
	ZSTD_freeDCtx(dctx);
	return ret;
}

int image_decompress(const struct image *img, const void *in, u32 in_bytes, void *out)
{
	u32 out_bytes = image_cluster_bytes(img);

	if (img->compression_type == COMPRESSION_ZSTD)
		return decompress_zstd(in, in_bytes, out, out_bytes);
	return decompress_deflate(in, in_bytes, out, out_bytes);
}
