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

void slow_request_redo(struct write_op *op_owned)
{
	struct slow_request *s = op_owned->parent;

	cds_list_add_tail(&op_owned->node, &s->redo);
	s->active--;
	split_run(s);
}

/* Version 2 has no zero flag: zeroes are written, unless dropping the place does. */
static bool must_write_zeroes(const struct slow_request *s)
{
	const struct writer *w = slow_request_writer(s);

	return s->req->op == REQ_WRITE_ZEROES && w->img->version < 3 &&
	       (w->below || s->req->flags & REQ_NOUNMAP);
}

static u8 split_type(const struct slow_request *s)
{
	if (s->req->op == REQ_WRITE || must_write_zeroes(s))
		return OP_WRITE;
	if (s->req->op == REQ_DISCARD || slow_request_writer(s)->img->version < 3)
		return OP_DISCARD;
	return OP_ZERO;
}

/*
 * The end of the next piece of [@pos, @limit): within one block of L2 entries;
 * for zeroes and discards whole granules, with the odd ends written (zeroes) or
 * left (discard). *@type is OP_WRITE for an odd end.
 */
static u64 next_piece(const struct slow_request *s, u64 pos, u64 limit, u8 *type)
{
	const struct image *img = slow_request_writer(s)->img;
	u64 window = writer_block_coverage(slow_request_writer(s));
	u64 granule = 1ull << img->subcluster_bits;
	u64 cluster = image_cluster_bytes(img);
	u64 size = writer_size(slow_request_writer(s));
	u64 end = min(limit, ALIGN_DOWN(pos, window) + window);

	*type = split_type(s);
	if (*type == OP_WRITE)
		return min(end, pos + QC_MAX_REQUEST_BYTES);
	if (pos % granule || (ALIGN_DOWN(end, granule) <= pos && end != size)) {
		*type = OP_WRITE;
		return min(end, ALIGN_UP(pos + 1, granule));
	}
	if (end != size)
		end = ALIGN_DOWN(end, granule);
	/* A part of a cluster is a piece of its own: it may have to be written. */
	if (pos % cluster)
		return min(end, ALIGN_UP(pos, cluster));
	if (ALIGN_DOWN(end, cluster) > pos && end != size)
		return ALIGN_DOWN(end, cluster);
	return end;
}

static void request_end(struct slow_request *s)
{
	struct request *req = s->req;
	int error = s->error;

	free(s);
	chain_finish(req, error);
}

static void request_flushed(void *arg, int error)
{
	struct slow_request *s = arg;

	s->error = error;
	request_end(s);
}

static void drop_redo(struct slow_request *s)
{
	struct write_op *op, *tmp;

	cds_list_for_each_entry_safe(op, tmp, &s->redo, node)
		free(op);
}

static void split_end(struct slow_request *s)
{
	drop_redo(s);
	if (s->error || !(s->req->flags & REQ_FUA)) {
		request_end(s);
		return;
	}
	request_set_stage(s->req, "flush");
	chain_flush(s->ct, request_flushed, s);
}

static u64 fill_granule(const struct slow_request *s)
{
	return 1ull << slow_request_writer(s)->img->subcluster_bits;
}

/* What is to be done next: first what has to be done again. */
static bool cut_piece(struct slow_request *s, u64 *start, u64 *end, u8 *type)
{
	struct write_op *redo;

	if (cds_list_empty(&s->redo)) {
		*start = s->pos;
		if (s->pos >= s->end)
			return false;
		*end = next_piece(s, s->pos, s->end, type);
		s->pos = *end;
		return true;
	}
	redo = cds_list_first_entry(&s->redo, struct write_op, node);
	*start = redo->start;
	*end = next_piece(s, *start, redo->start + redo->len, type);
	if (s->fill) /* one granule is mapped or not, as a whole */
		*end = min(*end, ALIGN_UP(*start + 1, fill_granule(s)));
	redo->start = *end;
	redo->len -= *end - *start;
	if (!redo->len) {
		cds_list_del(&redo->node);
		free(redo);
	}
	return true;
}

/* Start operations, a bounded number at a time; the last one ends the request. */
static void split_run(struct slow_request *s)
{
	struct write_op *op;
	u64 start, end;
	u8 type;

	if (s->cutting)
		return;
	s->cutting = true;
	while (!s->error && s->active < CHAIN_MAX_SPLIT && cut_piece(s, &start, &end, &type)) {
		if (type == OP_WRITE && s->req->op == REQ_DISCARD)
			continue; /* an odd end: left as it is */
		op = write_op_create(s, start, end, type);
		if (!op) {
			s->error = -ENOMEM;
			break;
		}
		s->active++;
		write_op_run(op);
	}
	s->cutting = false;
	if (!s->active && (s->error || (s->pos >= s->end && cds_list_empty(&s->redo))))
		split_end(s);
}

static void cut(struct chain_target *ct, struct request *req, struct writer *into, bool fill)
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
	s->ct = ct;
	s->req = req;
	s->fill = fill;
	s->into = into;
	s->pos = req->offset;
	s->end = req->offset + req->len;
	CDS_INIT_LIST_HEAD(&s->redo);
	if (slow_request_writer(s)->meta)
		split_run(s);
	else
		raw_write(s);
}

void chain_write(struct chain_target *ct, struct request *req)
{
	cut(ct, req, NULL, false);
}

void chain_fill(struct chain_target *ct, struct request *req)
{
	cut(ct, req, NULL, true);
}

void chain_write_into(struct writer *w, struct request *req)
{
	cut(w->ct, req, w, false);
}

/* ---- a raw active layer: what the fast path could not do -------------------------- */

static void raw_written(struct io_op *io, int error)
{
	struct slow_request *s = container_of(io, struct slow_request, io);

	loop_epoch_exit(s->ct->loop, s->epoch);
	free(s->mem);
	s->mem = NULL;
	if (error)
		s->error = error;
	if (slow_request_writer(s)->meta) /* a snapshot was taken meanwhile */
		split_run(s);
	else
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
	s->io = (struct io_op){ .dev = slow_request_writer(s)->img->dev, .type = IO_WRITE,
				.offset = s->pos, .len = len, .base = s->mem,
				.done = raw_written };
	s->pos += len;
	s->epoch = loop_epoch_enter(s->ct->loop);
	io_submit(s->ct->loop, &s->io);
}
