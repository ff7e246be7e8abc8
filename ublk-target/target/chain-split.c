// SPDX-License-Identifier: GPL-2.0-or-later
/* A request that changes mappings, cut into operations; writes of a raw active layer. */
#include "chain-private.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---- cutting ---------------------------------------------------------------------- */

static void split_run(struct slow_request *s);
static void raw_write(struct slow_request *s);

void slow_request_op_done(struct slow_request *s, int error)
{
	if (error && !s->error)
		s->error = error;
	s->active--;
	split_run(s);
}

/* Version 2 has no zero flag: zeroes are written, unless dropping the place does. */
static bool must_write_zeroes(const struct slow_request *s)
{
	return s->req->op == REQ_WRITE_ZEROES && s->writer->img->version < 3 &&
	       (s->writer->below || s->req->flags & REQ_NOUNMAP);
}

static u8 split_type(const struct slow_request *s)
{
	if (s->req->op == REQ_WRITE || must_write_zeroes(s))
		return OP_WRITE;
	return s->req->op == REQ_DISCARD || s->writer->img->version < 3 ? OP_DISCARD : OP_ZERO;
}

/*
 * The next piece of the request: within one block of L2 entries; for zeroes and
 * discards whole granules, with the odd ends written (zeroes) or left (discard).
 * *@type is OP_WRITE for an odd end. Returns its end.
 */
static u64 next_piece(const struct slow_request *s, u8 *type)
{
	u64 window = writer_block_coverage(s->writer);
	u64 granule = 1ull << s->writer->img->subcluster_bits;
	u64 cluster = image_cluster_bytes(s->writer->img);
	u64 end = min(s->end, ALIGN_DOWN(s->pos, window) + window);

	*type = split_type(s);
	if (*type == OP_WRITE)
		return min(end, s->pos + QC_MAX_REQUEST_BYTES);
	if (s->pos % granule ||
	    (ALIGN_DOWN(end, granule) <= s->pos && end != s->writer->ct->map.size_bytes)) {
		*type = OP_WRITE;
		return min(end, ALIGN_UP(s->pos + 1, granule));
	}
	if (end != s->writer->ct->map.size_bytes)
		end = ALIGN_DOWN(end, granule);
	/* A part of a cluster is a piece of its own: it may have to be written. */
	if (s->pos % cluster)
		return min(end, ALIGN_UP(s->pos, cluster));
	if (ALIGN_DOWN(end, cluster) > s->pos && end != s->writer->ct->map.size_bytes)
		return ALIGN_DOWN(end, cluster);
	return end;
}

static void flush_written(struct io_op *io, int error)
{
	struct slow_request *s = container_of(io, struct slow_request, flush);
	struct request *req = s->req;

	free(s);
	chain_finish(req, error);
}

static void split_end(struct slow_request *s)
{
	struct request *req = s->req;
	int error = s->error;

	if (!error && req->flags & REQ_FUA) {
		request_set_stage(req, "flush");
		s->flush = (struct io_op){ .dev = s->writer->img->dev, .type = IO_FLUSH,
					   .done = flush_written };
		io_submit(s->writer->ct->loop, &s->flush);
		return;
	}
	free(s);
	chain_finish(req, error);
}

/* Start operations, a bounded number at a time; the last one ends the request. */
static void split_run(struct slow_request *s)
{
	if (s->cutting)
		return;
	s->cutting = true;
	while (s->pos < s->end && !s->error && s->active < CHAIN_MAX_SPLIT) {
		u64 start = s->pos;
		struct write_op *op;
		u8 type;

		s->pos = next_piece(s, &type);
		if (type == OP_WRITE && s->req->op == REQ_DISCARD)
			continue; /* an odd end: left as it is */
		op = write_op_create(s, start, s->pos, type);
		if (!op) {
			s->error = -ENOMEM;
			break;
		}
		s->active++;
		write_op_run(op);
	}
	s->cutting = false;
	if (!s->active && (s->pos >= s->end || s->error))
		split_end(s);
}

void chain_write(struct chain_target *ct, struct request *req)
{
	struct slow_request *s;

	if (ct->map.table->read_only || !ct->active) {
		chain_finish(req, -EROFS);
		return;
	}
	s = calloc(1, sizeof(*s));
	if (!s) {
		chain_finish(req, -ENOMEM);
		return;
	}
	s->writer = ct->active;
	s->req = req;
	s->pos = req->offset;
	s->end = req->offset + req->len;
	if (s->writer->meta)
		split_run(s);
	else
		raw_write(s);
}

/* ---- a raw active layer: what the fast path could not do -------------------------- */

static void raw_written(struct io_op *io, int error)
{
	struct slow_request *s = container_of(io, struct slow_request, flush);

	free(s->mem);
	s->mem = NULL;
	if (error)
		s->error = error;
	raw_write(s);
}

static int raw_data(struct slow_request *s, u32 len)
{
	const struct request *req = s->req;
	u32 offset = s->pos - req->offset;

	if (req->op == REQ_WRITE && req->base)
		memcpy(s->mem, (u8 *)req->base + offset, len);
	else if (req->op == REQ_WRITE)
		return req->ops->copy_from(s->req, offset, s->mem, len);
	else
		memset(s->mem, 0, len);
	return 0;
}

static void raw_write(struct slow_request *s)
{
	u32 len = min(s->end - s->pos, (u64)QC_MAX_REQUEST_BYTES);

	if (s->error || s->pos == s->end || s->req->op == REQ_DISCARD) {
		split_end(s);
		return;
	}
	s->mem = io_alloc(len);
	s->error = s->mem ? raw_data(s, len) : -ENOMEM;
	if (s->error) {
		free(s->mem);
		split_end(s);
		return;
	}
	s->flush = (struct io_op){ .dev = s->writer->img->dev, .type = IO_WRITE, .offset = s->pos,
				   .len = len, .base = s->mem, .done = raw_written };
	s->pos += len;
	io_submit(s->writer->ct->loop, &s->flush);
}
