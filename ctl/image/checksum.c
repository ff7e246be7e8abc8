// SPDX-License-Identifier: GPL-2.0-or-later
/* Reads one image from front to back and hashes what it maps. */
#include "checksum.h"

#include "layer-walk.h"

#include <endian.h>
#include <errno.h>
#include <nettle/sha2.h>
#include <stdlib.h>

#define PIECE_BYTES (2u << 20)

enum extent_kind { EXTENT_DATA, EXTENT_ZERO, EXTENT_NONE };

/* struct hashing - @start, @kind: of the extent that is under way, which ends at the place */
struct hashing {
	struct layer_walk walk;
	struct sha256_ctx sha;
	struct checksum *result;
	struct progress progress;
	u8 *buf;
	u64 start;
	enum extent_kind kind;
};

/* A hole of the file under a data cluster is data: a copy of the file may have none. */
static enum extent_kind kind_of(const struct hashing *h)
{
	const struct run *run = &h->walk.run;

	if (layer_walk_image(&h->walk)->format == IMAGE_RAW || run->kind == CLUSTER_DATA ||
	    run->kind == CLUSTER_COMPRESSED)
		return EXTENT_DATA;
	return run->present && run->zero ? EXTENT_ZERO : EXTENT_NONE;
}

static void hash_numbers(struct hashing *h, u64 a, u64 b, u64 c)
{
	u64 numbers[] = { htobe64(a), htobe64(b), htobe64(c) };

	sha256_update(&h->sha, sizeof(numbers), (const u8 *)numbers);
}

static void end_extent(struct hashing *h, u64 at)
{
	if (h->kind != EXTENT_NONE && at > h->start)
		hash_numbers(h, h->start, at - h->start, h->kind);
	h->start = at;
}

static int hash_data(struct hashing *h, u64 at, u64 end, struct qc_err *err)
{
	u64 bytes;
	int ret;

	h->result->data += end - at;
	for (; at < end; at += bytes) {
		bytes = min(end - at, (u64)PIECE_BYTES);
		ret = reader_read(h->walk.reader, h->buf, bytes, at, err);
		if (ret)
			return ret;
		sha256_update(&h->sha, bytes, h->buf);
		progress_update(&h->progress, at);
	}
	return 0;
}

static int hash_all(struct hashing *h, struct qc_err *err)
{
	struct layer_walk *walk = &h->walk;
	enum extent_kind kind;
	int ret = 0;

	for (u64 at = 0; at < walk->size && !ret; at = walk->run_end) {
		ret = layer_walk_ask(walk, at, walk->size, err);
		if (ret)
			break;
		kind = kind_of(h);
		if (kind != h->kind)
			end_extent(h, at);
		h->kind = kind;
		if (kind == EXTENT_DATA)
			ret = hash_data(h, at, walk->run_end, err);
	}
	end_extent(h, walk->size);
	hash_numbers(h, walk->size, 0, 0);
	return ret;
}

static void take_digest(struct hashing *h)
{
	u8 digest[SHA256_DIGEST_SIZE];

	sha256_digest(&h->sha, sizeof(digest), digest);
	for (u32 i = 0; i < sizeof(digest); i++)
		snprintf(h->result->sha256 + 2 * i, 3, "%02x", digest[i]);
}

int image_checksum(const char *path, enum image_format format, struct checksum *result,
		   struct qc_err *err)
{
	struct hashing h = { .result = result, .kind = EXTENT_NONE, .buf = io_alloc(PIECE_BYTES) };
	int ret;

	*result = (struct checksum){ .data = 0 };
	if (!h.buf)
		return qc_err_set(err, -ENOMEM, "%s: out of memory", path);
	sha256_init(&h.sha);
	ret = layer_walk_open(&h.walk, path, 1, format, NULL, err);
	if (!ret) {
		progress_begin(&h.progress, "checksum", h.walk.size, true);
		ret = hash_all(&h, err);
		progress_end(&h.progress);
		take_digest(&h);
	}
	layer_walk_close(&h.walk);
	free(h.buf);
	return ret;
}
