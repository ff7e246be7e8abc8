// SPDX-License-Identifier: GPL-2.0-or-later
/* A request that changes mappings, cut into operations; writes of a raw layer. */
#include "chain-save.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---- cutting ---------------------------------------------------------------------- */

static void split_run(struct slow_request *s);

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

/*
 * Who writes guest offset @pos, up to *@end at least; NULL: nobody may now. While
 * the active layer is committed that depends on the place (rule C4).
 */
static struct writer *writer_at(const struct slow_request *s, u64 pos, u64 *end)
{
	const struct layer_table *t = s->ct->map.table;

	*end = UINT64_MAX;
	if (s->into)
		return s->into;
	if (pos >= t->fence_end)
		return s->ct->active;
	*end = pos < t->handed_end ? t->handed_end : t->fence_end;
	return pos < t->handed_end ? s->ct->receiving : NULL;
}

/* Version 2 has no zero flag: zeroes are written, unless dropping the place does. */
static bool must_write_zeroes(const struct slow_request *s, const struct writer *w)
{
	return s->req->op == REQ_WRITE_ZEROES && w->img->version < 3 &&
	       (w->below || s->req->flags & REQ_NOUNMAP);
}

static u8 split_type(const struct slow_request *s, const struct writer *w)
{
	if (s->unmap)
		return OP_UNMAP;
	if (s->req->op == REQ_WRITE || must_write_zeroes(s, w))
		return OP_WRITE;
	if (s->req->op == REQ_DISCARD || w->img->version < 3)
		return OP_DISCARD;
	return OP_ZERO;
}

/*
 * The end of the next piece of [@pos, @limit): within one block of L2 entries;
 * for zeroes and discards whole granules, with the odd ends written (zeroes) or
 * left (discard). *@type is OP_WRITE for an odd end.
 */
static u64 next_piece(const struct slow_request *s, const struct writer *w, u64 pos, u64 limit,
		      u8 *type)
{
	const struct image *img = w->img;
	u64 window = writer_block_coverage(w);
	u64 granule = 1ull << img->subcluster_bits;
	u64 cluster = image_cluster_bytes(img);
	u64 size = writer_size(w);
	u64 end = min(limit, ALIGN_DOWN(pos, window) + window);

	*type = split_type(s, w);
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

	pool_put(&s->ct->slow_requests, s);
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
		pool_put(&s->ct->write_ops, op);
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

/* What is to be done next: first what has to be done again. */
static bool next_range(struct slow_request *s, u64 *start, u64 *end)
{
	const struct write_op *redo;

	*start = s->pos;
	*end = s->end;
	if (!cds_list_empty(&s->redo)) {
		redo = cds_list_first_entry(&s->redo, struct write_op, node);
		*start = redo->start;
		*end = redo->start + redo->len;
	}
	return *start < *end;
}

/* It is under way up to @end. */
static void take_range(struct slow_request *s, u64 end)
{
	struct write_op *redo;

	if (cds_list_empty(&s->redo)) {
		s->pos = end;
		return;
	}
	redo = cds_list_first_entry(&s->redo, struct write_op, node);
	redo->len -= end - redo->start;
	redo->start = end;
	if (!redo->len) {
		cds_list_del(&redo->node);
		pool_put(&s->ct->write_ops, redo);
	}
}

/* ---- a raw layer: what the fast path could not do --------------------------------- */

static void raw_written(struct io_op *io, int error)
{
	struct slow_request *s = container_of(io, struct slow_request, io);

	loop_epoch_exit(s->ct->loop, s->epoch);
	free(s->mem);
	s->mem = NULL;
	slow_request_op_done(s, error);
}

static int raw_data(struct slow_request *s, u64 start, u32 len)
{
	const struct request *req = s->req;
	u32 offset = start - req->offset;

	if (req->op == REQ_WRITE && req->base)
		memcpy(s->mem, (u8 *)req->base + offset, len);
	else if (req->op == REQ_WRITE)
		return req->ops->copy_from(s->req, offset, s->mem, len);
	else
		memset(s->mem, 0, len);
	return 0;
}

/* One at a time. */
static bool raw_piece(struct slow_request *s, const struct writer *w, u64 start, u64 end)
{
	u32 len = min(end - start, (u64)QC_MAX_REQUEST_BYTES);

	if (s->active)
		return false;
	if (s->req->op == REQ_DISCARD) {
		take_range(s, end);
		return true;
	}
	s->mem = io_alloc(len);
	s->error = s->mem ? raw_data(s, start, len) : -ENOMEM;
	if (s->error) {
		free(s->mem);
		s->mem = NULL;
		return false;
	}
	take_range(s, start + len);
	s->io = (struct io_op){ .dev = w->img->dev, .type = IO_WRITE, .offset = start, .len = len,
				.base = s->mem, .done = raw_written };
	s->active++;
	s->epoch = loop_epoch_enter(s->ct->loop);
	io_submit(s->ct->loop, &s->io);
	return true;
}

/* ---- piece by piece --------------------------------------------------------------------- */

static void start_op(struct slow_request *s, struct writer *w, u64 start, u64 end, u8 type)
{
	struct write_op *op;

	if (type == OP_WRITE && s->req->op == REQ_DISCARD)
		return; /* an odd end: left as it is */
	op = write_op_create(s, w, start, end, type);
	if (!op) {
		s->error = -ENOMEM;
		return;
	}
	s->active++;
	write_op_run(op);
}

static void wait_for_fence(struct slow_request *s)
{
	if (s->active)
		return; /* asks again when they have ended */
	request_set_stage(s->req, "merge");
	cds_list_add_tail(&s->node, &s->ct->fenced);
	s->fenced = true;
}

/*
 * Where [@start, *@end), which a guest changes, is not saved yet: *@end is before that, or
 * it has to wait.
 */
static bool must_wait_for_copy(struct slow_request *s, u64 start, u64 *end)
{
	struct saver *saver = s->ct->saver;

	if (!saver || !slow_request_is_guests(s))
		return false;
	*end = saver_first_unsaved(saver, start, *end);
	if (*end > start)
		return false;
	if (s->active)
		return true; /* asks again when they have ended */
	request_set_stage(s->req, "backup");
	s->save_pos = start;
	s->fenced = true;
	saver_wait(saver, s);
	return true;
}

/* False: nothing more can be started now. */
static bool start_piece(struct slow_request *s)
{
	u64 start, end, limit;
	struct writer *w;
	u8 type;

	if (!next_range(s, &start, &end))
		return false;
	w = writer_at(s, start, &limit);
	end = min(end, limit);
	if (!w) {
		wait_for_fence(s);
		return false;
	}
	if (must_wait_for_copy(s, start, &end))
		return false;
	if (!w->meta)
		return raw_piece(s, w, start, end);
	end = next_piece(s, w, start, end, &type);
	if (s->fill && !cds_list_empty(&s->redo)) /* one granule is mapped or not, as a whole */
		end = min(end, ALIGN_UP(start + 1, 1ull << w->img->subcluster_bits));
	take_range(s, end);
	start_op(s, w, start, end, type);
	return true;
}

/* Start operations, a bounded number at a time; the last one ends the request. */
static void split_run(struct slow_request *s)
{
	u64 start, end;

	if (s->cutting)
		return;
	s->cutting = true;
	while (!s->error && s->active < CHAIN_MAX_SPLIT && start_piece(s))
		;
	s->cutting = false;
	if (!s->active && !s->fenced && (s->error || !next_range(s, &start, &end)))
		split_end(s);
}

void slow_request_go_on(struct slow_request *s)
{
	s->fenced = false;
	split_run(s);
}

void chain_run_fenced(struct chain_target *ct)
{
	struct slow_request *s, *tmp;
	CDS_LIST_HEAD(waiting);

	cds_list_splice(&ct->fenced, &waiting);
	CDS_INIT_LIST_HEAD(&ct->fenced);
	cds_list_for_each_entry_safe(s, tmp, &waiting, node) {
		cds_list_del(&s->node);
		slow_request_go_on(s);
	}
}

/* @how: what of it is not the same for all. */
static void cut(struct chain_target *ct, struct request *req, const struct slow_request *how)
{
	struct slow_request *s;

	if (ct->map.table->read_only || !ct->active) {
		chain_finish(req, -EROFS);
		return;
	}
	s = pool_get(&ct->slow_requests);
	if (!s) {
		chain_finish(req, -ENOMEM);
		return;
	}
	*s = *how;
	s->ct = ct;
	s->req = req;
	s->pos = req->offset;
	s->end = req->offset + req->len;
	CDS_INIT_LIST_HEAD(&s->redo);
	split_run(s);
}

void chain_write(struct chain_target *ct, struct request *req)
{
	cut(ct, req, &(struct slow_request){ .fill = false });
}

void chain_fill(struct chain_target *ct, struct request *req)
{
	cut(ct, req, &(struct slow_request){ .fill = true });
}

void chain_fill_into(struct writer *w, struct request *req)
{
	cut(w->ct, req, &(struct slow_request){ .into = w, .fill = true });
}

void chain_write_into(struct writer *w, struct request *req)
{
	cut(w->ct, req, &(struct slow_request){ .into = w });
}

void chain_unmap(struct writer *w, struct request *req)
{
	cut(w->ct, req, &(struct slow_request){ .into = w, .unmap = true });
}
