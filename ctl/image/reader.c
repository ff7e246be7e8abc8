// SPDX-License-Identifier: GPL-2.0-or-later
/* Resolves a closed chain layer by layer, and reads what it finds. */
#include "reader.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/*
 * The tools ask for long runs from front to back, so each layer keeps the
 * piece of an L2 table that it used last, and the reader the compressed
 * cluster that it unpacked last. What no layer has costs one step per layer
 * and L1 entry.
 */
#define SLICE_BYTES 65536u

/*
 * struct reader_layer - what is kept of one layer
 * @holes: data clusters may lie in holes of the file (tables were preallocated,
 *         data was not), so that the file system is asked
 */
struct reader_layer {
	struct image *img;
	u8 *slice;
	u64 slice_at; /* host offset of what @slice holds, 0: nothing */
	u32 slice_bytes;
	bool holes;
};

struct reader {
	u32 nr_layers;
	struct reader_layer *layers;
	/* the compressed cluster unpacked last */
	u8 *cluster;
	u8 *packed;
	u32 cluster_layer;
	u64 cluster_host; /* 0: none */
};

/* ---- opening --------------------------------------------------------------------- */

static int open_layer(struct reader_layer *layer, struct image *img)
{
	int ret;

	layer->img = img;
	layer->slice_bytes = min(image_cluster_bytes(img), (u64)SLICE_BYTES);
	layer->slice = io_alloc(layer->slice_bytes);
	if (!layer->slice)
		return -ENOMEM;
	ret = image_has_holes(img);
	layer->holes = ret > 0;
	return min(ret, 0);
}

int reader_open(struct chain *chain, struct reader **result, struct qc_err *err)
{
	struct reader *reader = calloc(1, sizeof(*reader));
	u64 largest = 0;
	int ret = 0;

	if (!reader)
		return qc_err_set(err, -ENOMEM, "out of memory");
	reader->layers = calloc(chain->nr_layers, sizeof(*reader->layers));
	ret = reader->layers ? 0 : -ENOMEM;
	for (u32 i = 0; i < chain->nr_layers && !ret; i++) {
		ret = open_layer(&reader->layers[i], chain->layers[i].img);
		largest = max(largest, image_cluster_bytes(chain->layers[i].img));
		reader->nr_layers++;
	}
	reader->cluster = io_alloc(largest);
	/* A stream may be longer than its cluster, never than two. */
	reader->packed = io_alloc(2 * largest + SECTOR_SIZE);
	if (!ret && (!reader->cluster || !reader->packed))
		ret = -ENOMEM;
	if (ret) {
		reader_close(reader);
		return qc_err_set(err, ret, "%s: the chain could not be read (%s)",
				  chain->layers[0].path, strerror(-ret));
	}
	*result = reader;
	return 0;
}

void reader_close(struct reader *reader)
{
	if (!reader)
		return;
	for (u32 i = 0; i < reader->nr_layers; i++)
		free(reader->layers[i].slice);
	free(reader->layers);
	free(reader->cluster);
	free(reader->packed);
	free(reader);
}

/* ---- one layer -------------------------------------------------------------------- */

/* Cut @run at the border of data and hole of the file; says which it is. */
static void ask_file(const struct reader_layer *layer, struct run *run)
{
	int fd = layer->img->dev->fd;
	u64 size = layer->img->dev->size_bytes;
	off_t next;

	if (run->host >= size) {
		run->zero = true;
		return;
	}
	next = lseek(fd, run->host, SEEK_DATA);
	if (next < 0 && errno != ENXIO)
		return; /* no information: all is data */
	run->zero = next < 0 || (u64)next > run->host;
	if (!run->zero)
		next = lseek(fd, run->host, SEEK_HOLE);
	if (next > 0 && (u64)next > run->host)
		run->bytes = min(run->bytes, (u64)next - run->host);
}

static void raw_run(const struct reader_layer *layer, u64 offset, struct run *run)
{
	run->kind = CLUSTER_DATA;
	run->host = offset;
	run->present = true;
	if (!layer->img->dev->blockdev)
		ask_file(layer, run);
	if (run->zero)
		run->kind = CLUSTER_ZERO_PLACE;
}

/* Make the piece of the L2 table that has entry @index ready; NULL: no table. */
static int load_slice(struct reader_layer *layer, u64 offset, const u8 **table, u32 *first,
		      struct qc_err *err)
{
	const struct image *img = layer->img;
	u64 l2 = image_l2_offset(img, offset);
	u32 index = offset >> img->cluster_bits & ((1u << img->l2_bits) - 1);
	u32 per_slice = layer->slice_bytes / img->l2_entry_bytes;
	u64 at;
	int ret;

	*table = NULL;
	if (!l2)
		return 0;
	*first = index / per_slice * per_slice;
	at = l2 + (u64)*first * img->l2_entry_bytes;
	if (layer->slice_at != at) {
		layer->slice_at = 0;
		ret = io_dev_pread(img->dev, layer->slice, layer->slice_bytes, at);
		if (ret < 0)
			return qc_err_set(err, ret, "%s: L2 table at 0x%llx could not be read (%s)",
					  img->dev->path, (unsigned long long)l2, strerror(-ret));
		layer->slice_at = at;
	}
	*table = layer->slice;
	return 0;
}

static int bad_entry(const struct image *img, u64 offset, const struct cluster_info *info,
		     struct qc_err *err)
{
	return qc_err_set(err, -EIO, "%s: entry of guest offset 0x%llx not valid (%s); qchainctl "
			  "check",
			  img->dev->path, (unsigned long long)offset, info->bad);
}

/* Does a subcluster like @info go on where @run ends? */
static bool continues(const struct run *run, const struct cluster_info *info)
{
	if (info->kind != run->kind || info->kind == CLUSTER_COMPRESSED)
		return false;
	return !run_has_place(run) || info->host == run->host + run->bytes;
}

/* Entries of one slice from @offset on, as long as they are alike. */
static int scan_slice(struct reader_layer *layer, const u8 *slice, u32 first, u64 offset,
		      struct run *run, struct qc_err *err)
{
	const struct image *img = layer->img;
	u32 bits = img->subcluster_bits;
	u64 last = (u64)(first + layer->slice_bytes / img->l2_entry_bytes) * img->subclusters;
	u64 sc = (offset >> bits) & (((u64)img->subclusters << img->l2_bits) - 1);
	u64 within = offset & ((1ull << bits) - 1);
	u64 most = run->bytes;
	struct cluster_info info;

	run->bytes = 0;
	for (; sc < last && run->bytes < most; sc++) {
		u32 index = sc / img->subclusters - first;

		image_decode(img, image_l2_entry(img, slice, index),
			     image_l2_bitmap(img, slice, index), sc % img->subclusters, &info);
		if (info.kind == CLUSTER_BAD)
			return bad_entry(img, offset + run->bytes, &info, err);
		if (run->bytes == 0) {
			run->kind = info.kind;
			run->host = info.host + (info.kind == CLUSTER_COMPRESSED ? 0 : within);
			run->compressed_bytes = info.compressed_bytes;
			run->bytes = (1ull << bits) - within;
		} else if (continues(run, &info)) {
			run->bytes += 1ull << bits;
		} else {
			break;
		}
	}
	/* One stream holds the whole cluster, whatever its subclusters. */
	if (run->kind == CLUSTER_COMPRESSED)
		run->bytes = image_cluster_bytes(img) - (offset & (image_cluster_bytes(img) - 1));
	run->bytes = min(run->bytes, most);
	return 0;
}

static int qcow2_run(struct reader_layer *layer, u64 offset, struct run *run, struct qc_err *err)
{
	u64 coverage = 1ull << image_l2_coverage_bits(layer->img);
	const u8 *slice;
	u32 first = 0;
	int ret;

	ret = load_slice(layer, offset, &slice, &first, err);
	if (ret)
		return ret;
	if (!slice) {
		run->kind = CLUSTER_UNALLOCATED;
		run->bytes = min(run->bytes, coverage - (offset & (coverage - 1)));
		return 0;
	}
	ret = scan_slice(layer, slice, first, offset, run, err);
	if (ret)
		return ret;
	run->zero = run->kind == CLUSTER_ZERO || run->kind == CLUSTER_ZERO_PLACE;
	run->present = run->zero || run->kind == CLUSTER_DATA || run->kind == CLUSTER_COMPRESSED;
	if (run->kind == CLUSTER_DATA && layer->holes)
		ask_file(layer, run);
	return 0;
}

/* ---- the chain --------------------------------------------------------------------- */

int reader_run(struct reader *reader, u64 offset, u64 most, struct run *result, struct qc_err *err)
{
	u64 bytes = most;
	int ret;

	for (u32 i = 0;; i++) {
		struct reader_layer *layer = &reader->layers[i];

		*result = (struct run){ .layer = i };
		result->bytes = min(bytes, layer->img->virtual_size - offset);
		if (layer->img->format == IMAGE_RAW)
			raw_run(layer, offset, result);
		ret = layer->img->format == IMAGE_RAW ? 0 : qcow2_run(layer, offset, result, err);
		if (ret || result->present)
			return ret;
		/* Nothing below, or it is shorter: zero, and not by this layer's word. */
		if (i + 1 == reader->nr_layers || offset >= layer[1].img->virtual_size) {
			result->zero = true;
			return 0;
		}
		bytes = result->bytes;
	}
}

/* ---- data --------------------------------------------------------------------------- */

static int unpack(struct reader *reader, const struct run *run, struct qc_err *err)
{
	const struct image *img = reader->layers[run->layer].img;
	u64 size = img->dev->size_bytes;
	u64 len = run->compressed_bytes;
	int ret;

	if (reader->cluster_host == run->host && reader->cluster_layer == run->layer)
		return 0;
	reader->cluster_host = 0;
	/* The last sector of a file need not be there whole. */
	len = min(len, size > run->host ? size - run->host : 0);
	len = min(len, 2 * image_cluster_bytes(img) + SECTOR_SIZE);
	ret = io_dev_pread(img->dev, reader->packed, len, run->host);
	if (!ret)
		ret = image_decompress(img, reader->packed, len, reader->cluster);
	if (ret < 0)
		return qc_err_set(err, ret, "%s: compressed cluster at 0x%llx could not be read "
				  "(%s)",
				  img->dev->path, (unsigned long long)run->host, strerror(-ret));
	reader->cluster_host = run->host;
	reader->cluster_layer = run->layer;
	return 0;
}

static int read_run(struct reader *reader, const struct run *run, void *buf, u64 offset,
		    struct qc_err *err)
{
	const struct image *img = reader->layers[run->layer].img;
	int ret;

	if (run->zero) {
		memset(buf, 0, run->bytes);
		return 0;
	}
	if (run->kind == CLUSTER_COMPRESSED) {
		ret = unpack(reader, run, err);
		if (!ret)
			memcpy(buf, reader->cluster + (offset & (image_cluster_bytes(img) - 1)),
			       run->bytes);
		return ret;
	}
	ret = io_dev_pread(img->dev, buf, run->bytes, run->host);
	return ret < 0 ? qc_err_set(err, ret, "%s: read of %llu bytes at 0x%llx failed (%s)",
				    img->dev->path, (unsigned long long)run->bytes,
				    (unsigned long long)run->host, strerror(-ret)) : 0;
}

int reader_read(struct reader *reader, void *buf, u64 bytes, u64 offset, struct qc_err *err)
{
	u64 size = reader->layers[0].img->virtual_size;
	struct run run;
	int ret;

	while (bytes) {
		if (offset >= size) {
			memset(buf, 0, bytes);
			return 0;
		}
		ret = reader_run(reader, offset, min(bytes, size - offset), &run, err);
		if (!ret)
			ret = read_run(reader, &run, buf, offset, err);
		if (ret)
			return ret;
		buf = (u8 *)buf + run.bytes;
		offset += run.bytes;
		bytes -= run.bytes;
	}
	return 0;
}
