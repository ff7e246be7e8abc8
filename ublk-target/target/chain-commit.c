// SPDX-License-Identifier: GPL-2.0-or-later
/* Online merges into a layer below the active one: commit, and stream into the middle. */
#include "chain-merge.h"
#include "target-private.h"

#include <errno.h>
#include <qchain/mutant.h>
#include <qchain/online.h>
#include <stdlib.h>
#include <string.h>

/*
 * What is read is a view of the chain from the top of the merged layers on, which
 * shares layers, loop and writers with the chain and has a map of its own. What
 * the merged layers map is rounded out to granules of the base, read through the
 * view, and written into the base, whose writer is hidden: whatever it writes reads
 * the same through the layers above, so the map is not told.
 *
 * What it has to read for that, the rest of a compressed cluster for instance, is
 * what the view shows: what the layers above it hold is none of the base's business.
 *
 * Where it moves something of the base (compressed, shared), the old place is held
 * until the end: maps may still show it, and what they find there is right. In the
 * end, well or not, windows that show the base are dropped, the places given back
 * after grace, and the base is sealed as the old top of a snapshot is.
 *
 * A commit of the active layer begins with that, too, for the layers between, if there
 * are any. Then its header names the base, and it is handed over: chain-handover.c.
 */

#define VIEW_CACHE_BYTES (8u * 1024u * 1024u)

static enum target_map_result view_map(struct target *ti, struct request *req)
{
	return chain_map(ti, req);
}

static const struct target_type view_type = { .name = "view", .map = view_map };

/* ---- writing the base -------------------------------------------------------------- */

static void base_flushed(struct io_op *op, int error)
{
	struct merge *m = container_of(op, struct merge, flush_io);

	chain_finish(m->flush_req, error);
}

static void base_committed(struct meta_flush *flush, int error)
{
	struct merge *m = container_of(flush, struct merge, flush);

	if (error) {
		chain_finish(m->flush_req, error);
		return;
	}
	m->flush_io = (struct io_op){ .dev = m->base->img->dev, .type = IO_FLUSH,
				      .done = base_flushed };
	io_submit(m->ct->loop, &m->flush_io);
}

enum target_map_result commit_map(struct merge *m, struct request *req)
{
	if (req->op != REQ_FLUSH) {
		if (m->up)
			chain_fill_into(m->base, req);
		else
			chain_write_into(m->base, req);
		return TARGET_SUBMITTED;
	}
	if (MUTANT(BASE_UNFLUSHED)) {
		chain_finish(req, 0);
		return TARGET_SUBMITTED;
	}
	m->flush_req = req;
	m->flush.fn = base_committed;
	if (m->base->meta)
		meta_flush(m->base->meta, &m->flush);
	else
		base_committed(&m->flush, 0);
	return TARGET_SUBMITTED;
}

/* ---- the view ---------------------------------------------------------------------- */

static void init_lists(struct chain_target *view)
{
	CDS_INIT_LIST_HEAD(&view->loads);
	CDS_INIT_LIST_HEAD(&view->load_queue);
	CDS_INIT_LIST_HEAD(&view->queues);
	CDS_INIT_LIST_HEAD(&view->closing);
	CDS_INIT_LIST_HEAD(&view->fill_waiters);
	CDS_INIT_LIST_HEAD(&view->bounce_waiters);
	CDS_INIT_LIST_HEAD(&view->merges);
}

static void view_destroy(struct chain_target *view)
{
	if (!view)
		return;
	layer_table_free(view->map.table);
	map_exit(&view->map);
	free(view);
}

/* The device's layers from the first that takes part on; as long as what receives. */
static int view_create(struct merge *m)
{
	struct chain_target *ct = m->ct, *view = calloc(1, sizeof(*view));
	struct layer_table *table = layer_table_next(ct->map.table, 0, m->first - m->up, NULL);
	int ret = -ENOMEM;

	if (view && table)
		ret = map_init(&view->map, m->target.size_bytes, ct->map.window_bits,
			       VIEW_CACHE_BYTES, table);
	if (ret) {
		layer_table_free(table);
		free(view);
		return ret;
	}
	table->read_only = true;
	view->of = ct;
	view->ti = &m->source;
	view->loop = ct->loop;
	memcpy(view->workers, ct->workers, sizeof(view->workers));
	init_lists(view);
	m->source = (struct target){ .type = &view_type, .private = view,
				     .size_bytes = m->target.size_bytes,
				     .limits = m->target.limits };
	m->view = view;
	return 0;
}

/* ---- begin and end ------------------------------------------------------------------- */

void merge_mark(const struct merge *m, bool merging)
{
	const struct layer_table *t = m->ct->map.table;
	u32 i;

	for (i = m->pivots ? 0 : m->first; !m->up && i <= m->first + m->nr; i++)
		t->by_id[t->order[i]]->merging = merging;
}

/* Of what receives. */
static u32 base_depth(const struct merge *m)
{
	return merge_receiver(m) - m->ct->chain->layers;
}

struct commit_call {
	struct merge *m;
	struct writer *base;
	u16 id; /* of its layer */
	int ret;
};

/* The base of another merge. */
static bool receives(const struct chain_target *ct, const struct writer *w)
{
	const struct merge *m;

	cds_list_for_each_entry(m, &ct->merges, node)
		if (m->base == w)
			return true;
	return false;
}

/* The base's layer, if nobody writes it or one of those above it, nor is done with it yet. */
static void find_layer(struct loop *loop, void *arg)
{
	struct commit_call *call = arg;
	const struct layer_table *t = call->m->ct->map.table;
	u32 depth, base = base_depth(call->m);

	call->m->too_early = chain_is_sealing(call->m->ct);
	if (call->m->too_early)
		call->ret = -EBUSY;
	for (depth = 1; depth <= base; depth++) {
		const struct writer *w = t->by_id[t->order[depth]]->writer;

		if (w && !receives(call->m->ct, w))
			call->ret = -EBUSY;
	}
	call->id = t->order[base];
}

static void begin_run(struct loop *loop, void *arg)
{
	struct commit_call *call = arg;
	struct merge *m = call->m;

	call->ret = view_create(m);
	if (call->ret)
		return;
	call->base->hidden = true;
	call->base->holds = !MUTANT(BASE_REUSED_EARLY);
	call->base->shows = MUTANT(BASE_FILLS_FROM_DEVICE) ? m->ct->ti : &m->source;
	call->base->early &= m->pivots; /* else what the job has written is on the disk */
	writer_start(call->base, call->id);
	m->base = call->base;
	if (m->pivots)
		m->ct->receiving = m->base;
	chain_layers_changed(m->ct);
	merge_mark(m, true);
}

static void forget_base(struct merge *m)
{
	bool *layers = calloc(m->ct->map.table->nr_ids, sizeof(*layers));

	if (!layers)
		abort(); /* places must not be given back while they are shown */
	layers[m->base->id] = true;
	merge_forget_ids(m->ct, layers);
	free(layers);
}

void commit_end_view(struct merge *m)
{
	view_destroy(m->view);
	m->view = NULL;
	m->base->shows = m->ct->ti;
	if (!cds_list_empty(&m->base->held))
		forget_base(m);
	chain_layers_changed(m->ct);
	writer_release_held(m->base);
}

void commit_end(struct merge *m)
{
	commit_end_view(m);
	if (m->pivots)
		handover_give_up(m);
	else
		writer_seal(m->base);
	if (m->above_dev)
		io_dev_end_writing(m->above_dev);
	m->above_dev = NULL;
	m->base = NULL;
}

/* ---- what may be committed -------------------------------------------------------------- */

/* Of a raw image that is as long as its container, which may have grown since it was opened. */
static u64 size_as_top(const struct image *img)
{
	if (img->format != IMAGE_RAW)
		return img->virtual_size;
	return max((s64)img->virtual_size, img->dev->ops->refresh_size(img->dev));
}

/* A pivot never changes the device's size (rule D4). */
static int check_pivot(const struct merge *m, struct qc_err *err)
{
	const struct chain_layer *base = merge_receiver(m), *top = &m->ct->chain->layers[0];
	u64 size = size_as_top(base->img);

	if (top->img->nr_snapshots)
		return qc_err_set(err, -EOPNOTSUPP, "%s: has %u internal snapshots, which its base "
				  "cannot take over; must have none", top->path,
				  top->img->nr_snapshots);
	if (size > top->img->virtual_size)
		return qc_err_set(err, -EFBIG, "%s: is longer (%llu bytes) than the device (%llu), "
				  "which it would become; take the device down and shrink it, or "
				  "commit into another layer", base->path,
				  (unsigned long long)size,
				  (unsigned long long)top->img->virtual_size);
	return 0;
}

static int check_base(const struct merge *m, struct qc_err *err)
{
	const struct chain_layer *base = merge_receiver(m);
	const struct chain_layer *top = &m->ct->chain->layers[m->first - m->pivots];
	const struct image *img = base->img;

	if (!m->up && img->virtual_size < top->img->virtual_size &&
	    img->format != IMAGE_RAW &&
	    writer_check_grow(img, base->path, top->img->virtual_size, err))
		return err->code;
	if (img->data_dev)
		return qc_err_set(err, -EROFS, "%s: has an external data file, cannot be written",
				  base->path);
	if (img->incompatible & (QCOW2_INCOMPAT_CORRUPT | QCOW2_INCOMPAT_DIRTY) ||
	    img->autoclear & ~(QCOW2_AUTOCLEAR_BITMAPS | QCOW2_AUTOCLEAR_QCHAIN_OPEN))
		return qc_err_set(err, -EROFS, "%s: is marked as corrupt, dirty or of unknown "
				  "features; run qchainctl check --repair on it first", base->path);
	if (img->format != IMAGE_RAW &&
	    1ull << img->subcluster_bits < m->target.limits.logical_block)
		return qc_err_set(err, -EROFS, "%s: (sub)clusters of %u bytes, must be at least "
				  "the logical block of %u to be written", base->path,
				  1u << img->subcluster_bits, m->target.limits.logical_block);
	return 0;
}

/* Both through the door of rule A2: the base, and what will stand on it. */
static int open_for_writing(struct merge *m, struct qc_err *err)
{
	struct io_dev *base = merge_receiver(m)->img->dev;
	int ret = MUTANT(BASE_DOOR) ? 0 : io_dev_begin_writing(base, err);

	if (ret || m->first == 1 || m->up)
		return ret;
	ret = io_dev_begin_writing(merge_above(m)->img->dev, err);
	if (ret)
		io_dev_end_writing(base);
	else
		m->above_dev = merge_above(m)->img->dev;
	return ret;
}

static void close_for_writing(struct merge *m)
{
	io_dev_end_writing(merge_receiver(m)->img->dev);
	if (m->above_dev)
		io_dev_end_writing(m->above_dev);
	m->above_dev = NULL;
}

static int start_writer(struct merge *m, struct commit_call *call, struct qc_err *err)
{
	struct chain_target *ct = m->ct;
	struct layer *layer = ct->map.table->by_id[call->id];
	bool below = base_depth(m) + 1 < ct->chain->nr_layers;
	int ret = writer_open(ct, layer, below, &call->base, err);

	if (ret)
		return ret;
	loop_call(ct->loop, begin_run, call);
	if (!call->ret)
		return 0;
	writer_mark_closed(call->base);
	writer_destroy(call->base);
	return qc_err_set(err, call->ret, "%s: out of memory", layer->path);
}

/* A base that is shorter than what comes down into it grows first (rule D4). */
static u64 size_in_the_end(const struct merge *m)
{
	u64 size = merge_receiver(m)->img->virtual_size;
	const struct chain_layer *top = &m->ct->chain->layers[m->first - m->pivots];

	return m->up ? size : max(size, top->img->virtual_size);
}

static int grow_base(struct merge *m, struct qc_err *err)
{
	const struct chain *chain = m->ct->chain;
	u32 below = base_depth(m) + 1;
	u64 size = size_in_the_end(m);

	if (size == merge_receiver(m)->img->virtual_size)
		return 0;
	return writer_grow(m->base, size, below < chain->nr_layers ?
			   chain->layers[below].img->virtual_size : 0, err);
}

/* What stands on a raw base that is shorter hides what that gets. */
static int cover_base(struct merge *m, struct qc_err *err)
{
	const struct image *img = merge_receiver(m)->img;
	u64 size = size_in_the_end(m);

	if (img->format != IMAGE_RAW || size <= img->virtual_size)
		return 0;
	return merge_cover(m, base_depth(m), size, err);
}

int commit_begin(struct merge *m, struct qc_err *err)
{
	struct commit_call call = { .m = m };
	int ret = check_base(m, err);

	if (!ret && m->pivots)
		ret = check_pivot(m, err);
	if (!ret)
		ret = cover_base(m, err);
	if (ret)
		return ret;
	m->target.size_bytes = ALIGN_DOWN(size_in_the_end(m), m->target.limits.logical_block);
	loop_call(m->ct->loop, find_layer, &call);
	if (call.ret)
		return qc_err_set(err, call.ret, "%s: a layer above it is still being sealed, must "
				  "be sealed; try again", merge_receiver(m)->path);
	ret = open_for_writing(m, err);
	if (ret)
		return ret;
	ret = start_writer(m, &call, err);
	if (ret)
		close_for_writing(m);
	return ret ? ret : grow_base(m, err);
}

static int find_range(const struct chain *chain, const struct chain_commit_options *o, u32 *top,
		      u32 *base, struct qc_err *err)
{
	u32 depth;

	if (!merge_find_node(chain, o->node, &depth) || depth)
		return merge_no_node(o->node, err);
	*top = 0;
	*base = chain->nr_layers - 1;
	if (o->top_node && !merge_find_node(chain, o->top_node, top))
		return merge_no_layer(o->top_node, err);
	if (o->top && strcmp(chain->layers[0].path, o->top) &&
	    !merge_find_file(chain, o->top, top))
		return qc_err_set(err, -ENOENT, "Top image file %.200s not found", o->top);
	if (o->base_node && !merge_find_node(chain, o->base_node, base))
		return merge_no_layer(o->base_node, err);
	if (o->base && !merge_find_file(chain, o->base, base))
		return qc_err_set(err, -ENOENT, "Can't find '%.200s' in the backing chain",
				  o->base);
	if (*top == *base)
		return qc_err_set(err, -EINVAL, "cannot commit an image into itself");
	if (*top > *base)
		return qc_err_set(err, -EINVAL, "%s: is not below %s, must be to receive its data",
				  chain->layers[*base].path, chain->layers[*top].path);
	if (!*top && o->backing_name)
		return qc_err_set(err, -EINVAL, "'backing-file' specified, but 'top' is the "
				  "active layer");
	return 0;
}

u32 commit_granule(const struct merge *m)
{
	const struct image *img = merge_receiver(m)->img;

	return img->format == IMAGE_RAW ? m->target.limits.logical_block :
					  1u << img->subcluster_bits;
}

static int create_commit(struct target *ti, const struct chain_commit_options *options,
			 struct merge **result, struct qc_err *err)
{
	struct chain_target *ct = ti->private;
	u32 top, base, first;
	int ret = find_range(ct->chain, options, &top, &base, err);

	if (!ret && ti->limits.read_only)
		ret = qc_err_set(err, -EROFS, "%s: the device is read-only, must be writable",
				 ct->chain->layers[0].path);
	first = max(top, 1u);
	if (!ret)
		ret = merge_create(ti, first, base - first, options->backing_name, result, err);
	if (!ret)
		(*result)->pivots = !top;
	return ret;
}

int chain_commit(struct target *ti, struct jobs *jobs, const struct chain_commit_options *options,
		 const struct job_options *job_options, struct job **result, struct qc_err *err)
{
	struct chain_target *ct = ti->private;
	struct merge *m;
	int ret;

	if (ti->type != &target_chain)
		return merge_no_node(options->node, err);
	ret = chain_turn_take(ct, false, err);
	if (ret)
		return ret;
	ret = create_commit(ti, options, &m, err);
	if (!ret)
		ret = merge_make_job(m, jobs, "commit", job_options, result, err);
	chain_turn_give(ct);
	return ret;
}
