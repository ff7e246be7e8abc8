// SPDX-License-Identifier: GPL-2.0-or-later
/* Online merges: stream up into a layer, and the last step that commit shares. */
#include "chain-merge.h"
#include "target-private.h"

#include <errno.h>
#include <qchain/crash-point.h>
#include <qchain/log.h>
#include <qchain/mutant.h>
#include <qchain/online.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>

/*
 *   copy      what the layers that go map is written into the layer above them where
 *             that maps nothing: job/transfer.c, on the metadata loop; chain_fill()
 *   flush     all of it is durable
 *   plan      the next order of layers; where the new backing name goes  a worker
 *   name      into free bytes of the first cluster; flush                metadata loop
 *   header    offset, length and format of the name, one sector; flush
 *   publish   the layer table without the layers that go
 *   grace     nobody reads them any more
 *   close     their images                                               a worker
 *
 * A copied granule is an allocating write without guest data. The copier reads it
 * before its operation owns the cell: what lies below the active layer never
 * changes, and a granule that the active layer maps never becomes unmapped again
 * (a discard leaves a zero there as long as anything is below). So one that is
 * still unmapped under the cell was so when it was read (promise P24).
 *
 * A layer below the active one gets a writer for that, and is read through a view, as
 * the base of a commit is: chain-commit.c. What it gets reads the same through all
 * that is above it, and through itself: the map is not told before the end.
 *
 * Until the header, giving up leaves everything as it was.
 */

#define WIPE_BYTES 4096u
#define TURN_POLL_NS 1000000ull

/* ---- where the job writes to ---------------------------------------------------------- */

static enum target_map_result merge_map(struct target *ti, struct request *req)
{
	struct merge *m = container_of(ti, struct merge, target);

	if (m->base)
		return commit_map(m, req);
	if (req->op == REQ_FLUSH)
		return chain_map(ti, req);
	chain_fill(m->ct, req);
	return TARGET_SUBMITTED;
}

static const struct target_type merge_type = { .name = "merge", .map = merge_map };

/* ---- the end ----------------------------------------------------------------------------- */

static void last_step_over(struct merge *m, int ret)
{
	if (ret && !m->job->err.code)
		m->job->err = m->err;
	m->over(m, ret);
}

static void last_step_failed(struct merge *m, int error)
{
	turn_end(m->ct);
	last_step_over(m, error);
}

/*
 * What it stands on is going to be written by the guest: nothing may take it for an
 * overlay of that any more. Its first block goes alone: after a cut it is an image
 * as before, or none.
 */
static void wipe_header(struct io_dev *dev)
{
	struct qc_err err = { 0 };
	void *zeroes = io_alloc(WIPE_BYTES);
	int ret = zeroes ? io_dev_begin_writing(dev, &err) : -ENOMEM;

	if (!ret) {
		memset(zeroes, 0, WIPE_BYTES);
		ret = io_dev_pwrite(dev, zeroes, dev->block_bytes, 0);
	}
	if (!ret)
		ret = io_dev_flush(dev);
	if (!ret)
		ret = io_dev_pwrite(dev, zeroes, min(io_dev_bytes(dev), (u64)WIPE_BYTES), 0);
	if (!ret)
		ret = io_dev_flush(dev);
	if (ret)
		log_warn("%s: its header was not wiped (%s); it is no layer any more, and must not "
			 "be used", dev->path, err.msg[0] ? err.msg : strerror(-ret));
	free(zeroes);
}

static void close_layers(struct chain_work *work)
{
	struct merge *m = container_of(work, struct merge, work);
	u32 i;

	for (i = m->gone_first; i < m->gone_first + m->gone_nr; i++) {
		crash_point("commit.unwiped");
		if (m->pivots)
			wipe_header(m->order.layers[i].img->dev);
		image_close(m->order.layers[i].img);
	}
}

static void layers_closed(struct chain_work *work)
{
	struct merge *m = container_of(work, struct merge, work);
	u32 i;

	merge_views_free(m);
	for (i = m->gone_first; i < m->gone_first + m->gone_nr; i++) {
		log_info("%s: its data is in another layer now, closed", m->order.layers[i].path);
		layer_free(m->order.table->by_id[m->order.table->order[i]]);
		free(m->order.layers[i].path);
	}
	last_step_over(m, 0);
}

static struct writer *gone_writer(const struct merge *m)
{
	struct writer *w = NULL;
	u32 i;

	for (i = m->gone_first; i < m->gone_first + m->gone_nr && !w; i++)
		w = m->order.table->by_id[m->order.table->order[i]]->writer;
	return w;
}

/* What could not be sealed still has its writer, and a fold may still read through that. */
static void end_writers(struct loop *loop, struct loop_timer *timer)
{
	struct merge *m = container_of(timer, struct merge, timer);
	struct writer *w;

	while ((w = gone_writer(m))) {
		if (w->meta && !meta_idle(w->meta)) {
			loop_timer_set(loop, timer, TURN_POLL_NS);
			return;
		}
		cds_list_del(&w->node);
		writer_destroy(w);
	}
	m->work.run = close_layers;
	m->work.done = layers_closed;
	chain_work(m->ct, &m->work);
}

static void nobody_reads(struct grace_waiter *waiter)
{
	struct merge *m = container_of(waiter, struct merge, grace);

	m->timer.fn = end_writers;
	end_writers(m->ct->loop, &m->timer);
}

/* Who writes the header of the layer above; NULL: nobody else does. */
static struct writer *header_writer(const struct merge *m)
{
	if (m->first == 1)
		return m->ct->active;
	return m->up ? m->base : NULL;
}

/* ---- publish --------------------------------------------------------------------------- */

static void use_new_header(struct merge *m)
{
	struct image *img = merge_above(m)->img;

	free(img->backing_name);
	free(img->backing_format);
	img->backing_name = m->name;
	img->backing_format = m->format;
	img->backing_name_offset = m->name ? m->patch.name_at : 0;
	m->name = m->format = NULL;
	if (header_writer(m))
		header_writer(m)->below = img->backing_name != NULL;
}

static void publish(struct merge *m)
{
	struct chain_target *ct = m->ct;

	merge_forget_ids(ct, m->order.gone); /* who needs a window folds it anew */
	use_new_header(m);
	merge_views_publish(m);
	layer_table_follow(m->order.table, ct->map.table);
	chain_order_publish(ct, &m->order);
	chain_layers_changed(ct);
	m->gone_first = m->first;
	m->gone_nr = m->nr;
	merge_layers_gone(m, m->nr);
	m->grace.drained = nobody_reads;
	if (MUTANT(CLOSE_BEFORE_GRACE))
		nobody_reads(&m->grace);
	else
		grace_wait(&ct->grace, &m->grace);
}

/* ---- the header (rule B5) ------------------------------------------------------------------ */

static void header_failed(struct merge *m, int error)
{
	qc_err_set(&m->err, error, "%s: the header could not be written (%s)",
		   merge_above(m)->path, strerror(-error));
	last_step_failed(m, error);
}

static void header_durable(struct meta_flush *flush, int error)
{
	struct merge *m = container_of(flush, struct merge, flush);

	if (error)
		header_failed(m, error);
	else
		publish(m);
}

/* Sector 0 says which name counts. */
static void put_fields(struct meta_wait *wait)
{
	struct merge *m = container_of(wait, struct merge, wait);
	struct meta *meta = header_writer(m)->meta;
	const struct backing_patch *p = &m->patch;
	struct meta_block *block;
	int ret = meta_get(meta, 0, wait, &block);

	if (ret == -EAGAIN)
		return;
	if (!ret)
		ret = meta_txn_set(meta, block, p->fields_at, p->fields, sizeof(p->fields));
	if (!ret && p->format_at)
		ret = meta_txn_set(meta, block, p->format_at, p->format, sizeof(p->format));
	if (ret) {
		header_failed(m, ret);
		return;
	}
	m->flush.fn = header_durable;
	meta_flush(meta, &m->flush);
}

static void name_durable(struct meta_flush *flush, int error)
{
	struct merge *m = container_of(flush, struct merge, flush);

	if (error) {
		header_failed(m, error);
		return;
	}
	m->wait.fn = put_fields;
	put_fields(&m->wait);
}

static void put_name(struct meta_wait *wait)
{
	struct merge *m = container_of(wait, struct merge, wait);
	struct meta *meta = header_writer(m)->meta;
	const struct backing_patch *p = &m->patch;
	struct meta_block *block;
	int ret = 0;

	while (!ret && m->named_bytes < p->name_bytes) {
		u32 at = p->name_at + m->named_bytes;
		u32 in = at % meta_block_bytes(meta);
		u32 n = min(p->name_bytes - m->named_bytes, meta_block_bytes(meta) - in);

		ret = meta_get(meta, at, wait, &block);
		if (!ret)
			ret = meta_txn_set(meta, block, in, p->name + m->named_bytes, n);
		if (!ret)
			m->named_bytes += n;
	}
	if (ret == -EAGAIN)
		return;
	if (ret) {
		header_failed(m, ret);
		return;
	}
	m->flush.fn = name_durable;
	if (MUTANT(NAME_WITH_FIELDS))
		name_durable(&m->flush, 0);
	else
		meta_flush(meta, &m->flush);
}

/* A snapshot may have made the layer above one of the middle, since the job began. */
static int open_above(struct merge *m)
{
	struct io_dev *dev = merge_above(m)->img->dev;

	if (m->above_dev || header_writer(m))
		return 0;
	if (io_dev_begin_writing(dev, &m->err))
		return m->err.code;
	m->above_dev = dev;
	return 0;
}

/*
 * Whatever needs memory is made before the header is touched. The header of a sealed
 * layer is nobody else's: it is written here, too.
 */
static void plan(struct chain_work *work)
{
	struct merge *m = container_of(work, struct merge, work);
	const struct chain_layer *above = merge_above(m);
	int ret;

	if (chain_order_plan(m->ct, m->first, m->nr, NULL, &m->order, &m->err) || open_above(m) ||
	    image_plan_backing(above->img, m->name, m->format, &m->patch, &m->err) ||
	    header_writer(m))
		return;
	ret = image_write_backing(above->img, &m->patch);
	if (ret)
		qc_err_set(&m->err, ret, "%s: the header could not be written (%s)", above->path,
			   strerror(-ret));
}

static void planned(struct chain_work *work)
{
	struct merge *m = container_of(work, struct merge, work);

	if (m->err.code) {
		last_step_failed(m, m->err.code);
		return;
	}
	if (!header_writer(m)) {
		publish(m);
		return;
	}
	m->named_bytes = 0; /* it may be the second header */
	m->wait.fn = put_name;
	put_name(&m->wait);
}

/* Who was the active layer's writer is not done with the header until that is sealed. */
static const struct writer *sealing_above(const struct merge *m)
{
	const struct layer_table *t = m->ct->map.table;

	return header_writer(m) ? NULL : t->by_id[t->order[m->first - 1]]->writer;
}

static void begin_last_step(struct loop *loop, struct loop_timer *timer)
{
	struct merge *m = container_of(timer, struct merge, timer);
	const struct writer *above = sealing_above(m);

	if (above && above->dead) {
		qc_err_set(&m->err, -EIO, "%s: could not be sealed, its header is left as it is",
			   above->layer->path);
		last_step_over(m, -EIO);
		return;
	}
	if (above || !turn_try(m->ct, m->job->id)) {
		loop_timer_set(loop, timer, TURN_POLL_NS);
		return;
	}
	if (merge_views_plan(m)) {
		qc_err_set(&m->err, -ENOMEM, "%s: out of memory", merge_above(m)->path);
		last_step_failed(m, -ENOMEM);
		return;
	}
	m->work.run = plan;
	m->work.done = planned;
	chain_work(m->ct, &m->work);
}

void merge_drop(struct merge *m, void (*over)(struct merge *m, int ret))
{
	m->over = over;
	if (MUTANT(HOLE_BEFORE_HEADER) && !m->base && !m->name)
		m->ct->active->below = false;
	if (!m->nr) {
		last_step_over(m, 0);
		return;
	}
	m->timer.fn = begin_last_step;
	begin_last_step(m->ct->loop, &m->timer);
}

static void prepared(struct merge *m, int ret)
{
	job_prepared(m->job, ret);
}

/* job_prepare_fn, when all is copied and durable. */
static void merge_prepare(struct job *job, void *arg)
{
	merge_drop(arg, prepared);
}

/* ---- begin, perhaps anew ------------------------------------------------------------------- */

/* Of a commit another header than before will name the base: the overlay's. */
static void begin_late(struct chain_work *work)
{
	struct merge *m = container_of(work, struct merge, work);
	int ret = 0;

	if (!m->up) {
		free(m->name);
		free(m->format);
		m->name = m->format = NULL;
		ret = merge_set_backing(m, NULL, &m->err);
	}
	if (!ret)
		commit_begin(m, &m->err);
}

/* The base of another merge may have been in the middle of that: it is tried again. */
static void late_begun(struct chain_work *work)
{
	struct merge *m = container_of(work, struct merge, work);

	turn_end(m->ct);
	m->late = m->err.code ? LATE_FAILED : LATE_NO;
	if (!m->too_early)
		return;
	m->err = (struct qc_err){ 0 };
	m->late = LATE_WAITS;
}

/* A write in place to a layer below may be under way until that is sealed. */
static int merge_ready(void *arg)
{
	struct merge *m = arg;

	if (m->late == LATE_RUNS)
		return 0; /* m->err is the worker's, and not the last word */
	if (m->late == LATE_FAILED) {
		m->job->err = m->err;
		return m->err.code;
	}
	if (chain_is_sealing(m->ct) && !MUTANT(MERGE_UNSEALED))
		return 0;
	if (m->late == LATE_NO)
		return 1;
	if (turn_try(m->ct, m->job->id)) {
		m->late = LATE_RUNS;
		m->work.run = begin_late;
		m->work.done = late_begun;
		chain_work(m->ct, &m->work);
	}
	return 0;
}

static bool merge_busy(void *arg)
{
	return ((struct merge *)arg)->late == LATE_RUNS;
}

/* A volume's size, or what the file system of a file has left. */
static u64 merge_room(void *arg)
{
	struct io_dev *dev = merge_receiver(arg)->img->dev;
	struct statvfs fs;

	if (dev->blockdev)
		return max(dev->ops->refresh_size(dev), (s64)0);
	return fstatvfs(dev->fd, &fs) ? 0 : (u64)fs.f_bavail * fs.f_frsize;
}

static void end_run(struct loop *loop, void *arg)
{
	struct merge *m = arg;

	if (!cds_list_empty(&m->node))
		merge_mark(m, false);
	if (m->base)
		m->base->layer->merging = false;
	if (m->base)
		commit_end(m);
	merge_leave(m);
}

/* On the metadata loop or, before it has begun, on the control thread. */
void merge_free(struct merge *m)
{
	if (loop_is_current(m->ct->loop))
		end_run(m->ct->loop, m);
	else
		loop_call(m->ct->loop, end_run, m);
	merge_views_free(m);
	handover_free(m->handover);
	chain_order_exit(&m->order);
	free(m->name);
	free(m->format);
	free(m);
}

static void merge_clean(void *arg)
{
	merge_free(arg);
}

const struct transfer_ops merge_ops = {
	.ready = merge_ready,
	.busy = merge_busy,
	.room = merge_room,
	.prepare = merge_prepare,
	.clean = merge_clean,
};

const struct transfer_ops merge_active_ops = {
	.ready = merge_ready,
	.busy = merge_busy,
	.room = merge_room,
	.then = &handover_type,
	.prepare = pivot_prepare,
	.clean = merge_clean,
};

/* ---- what is to be merged ---------------------------------------------------------------- */

int merge_no_node(const char *name, struct qc_err *err)
{
	return qc_err_set(err, -ENOENT, "Cannot find device='%.80s' nor node-name='%.80s'", name,
			  name);
}

int merge_no_layer(const char *name, struct qc_err *err)
{
	return qc_err_set(err, -ENOENT, "Cannot find device='' nor node-name='%.80s'", name);
}

bool merge_find_node(const struct chain *chain, const char *name, u32 *depth)
{
	for (*depth = 0; *depth < chain->nr_layers; (*depth)++)
		if (!strcmp(chain->layers[*depth].node_name, name))
			return true;
	return false;
}

/* A file name as a header has it, or the path. */
bool merge_find_file(const struct chain *chain, const char *name, u32 *depth)
{
	for (*depth = 1; *depth < chain->nr_layers; (*depth)++)
		if (!strcmp(chain->layers[*depth].path, name) ||
		    !strcmp(chain->layers[*depth - 1].img->backing_name, name))
			return true;
	return false;
}

/* @into: depth of what receives */
static int find_base(const struct chain *chain, const struct chain_stream_options *o, u32 into,
		     u32 *base, struct qc_err *err)
{
	const char *node = o->base_node ? o->base_node : o->bottom;

	*base = chain->nr_layers;
	if (o->base && !merge_find_file(chain, o->base, base))
		return qc_err_set(err, -ENOENT, "Can't find '%.200s' in the backing chain",
				  o->base);
	if (node && !merge_find_node(chain, node, base))
		return merge_no_layer(node, err);
	if (*base <= into)
		return qc_err_set(err, -EINVAL, "Node '%.80s' is not a backing image of '%s'",
				  chain->layers[*base].node_name, chain->layers[into].node_name);
	*base += o->bottom ? 1 : 0;
	return 0;
}

static int check_into(const struct chain_target *ct, const char *node, u32 *into,
		      struct qc_err *err)
{
	const struct chain_layer *layer;

	if (!merge_find_node(ct->chain, node, into))
		return merge_no_node(node, err);
	layer = &ct->chain->layers[*into];
	if (layer_table_is_read_only(ct->map.table) || !ct->active)
		return qc_err_set(err, -EROFS, "%s: the device is read-only, must be writable",
				  ct->chain->layers[0].path);
	if (layer->img->nr_snapshots)
		return qc_err_set(err, -EOPNOTSUPP, "%s: has %u internal snapshots, which need "
				  "what is below; must have none", layer->path,
				  layer->img->nr_snapshots);
	return 0;
}

/* The base as the header will name it: relative where it is beside or below. */
static const char *name_of_base(const struct chain_layer *above, const struct chain_layer *base)
{
	const char *slash = strrchr(above->path, '/');
	size_t dir = slash ? slash - above->path + 1 : 0;

	return strncmp(above->path, base->path, dir) ? base->path : base->path + dir;
}

int merge_set_backing(struct merge *m, const char *name, struct qc_err *err)
{
	const struct chain *chain = m->ct->chain;
	const struct chain_layer *base = &chain->layers[m->first + m->nr];
	const struct chain_layer *above = merge_above(m);
	struct backing_patch patch;

	if (m->first + m->nr < chain->nr_layers) {
		m->name = strdup(name ? name : name_of_base(above, base));
		m->format = strdup(image_format_name(base->img->format));
		if (!m->name || !m->format)
			return qc_err_set(err, -ENOMEM, "%s: out of memory", above->path);
	}
	return m->nr ? image_plan_backing(above->img, m->name, m->format, &patch, err) : 0;
}

int merge_create(struct target *ti, u32 first, u32 nr, const char *name, struct merge **result,
		 struct qc_err *err)
{
	struct merge *m = calloc(1, sizeof(*m));
	int ret;

	if (!m)
		return qc_err_set(err, -ENOMEM, "out of memory");
	m->ct = ti->private;
	CDS_INIT_LIST_HEAD(&m->node);
	m->first = first;
	m->nr = nr;
	m->target = (struct target){ .type = &merge_type, .private = m->ct,
				     .size_bytes = ti->size_bytes, .limits = ti->limits };
	ret = merge_set_backing(m, name, err);
	if (ret)
		merge_free(m);
	else
		*result = m;
	return ret;
}

void merge_transfer(struct merge *m, struct transfer_options *result)
{
	*result = (struct transfer_options){
		.source = m->base || m->late != LATE_NO ? &m->source : m->ct->ti,
		.target = &m->target,
		.first_depth = 1 + m->up, .last_depth = m->nr + m->up,
		.skip_zero = m->up && !m->name,
		.align = m->up ? 1u << merge_above(m)->img->subcluster_bits : commit_granule(m),
		.region_bytes = MERGE_REGION_BYTES,
		.ops = m->pivots ? &merge_active_ops : &merge_ops, .arg = m,
		.probe = &m->ct->ti->probe,
	};
}

int merge_make_job(struct merge *m_owned, struct jobs *jobs, const char *type,
		   const struct job_options *options, struct job **result, struct qc_err *err)
{
	struct job_options job = *options;
	struct transfer_options transfer;
	int ret = merge_join(m_owned, err);

	if (!ret && merge_receiver(m_owned) != m_owned->ct->chain->layers)
		ret = commit_begin(m_owned, err);
	if (ret) {
		merge_free(m_owned);
		return ret;
	}
	if (!m_owned->up && !m_owned->nr) /* nothing between: nothing to be looked for */
		m_owned->source.size_bytes = 0;
	merge_transfer(m_owned, &transfer);
	job.loop = m_owned->ct->loop;
	ret = transfer_create(jobs, type, &job, &transfer, result, err);
	if (!ret)
		m_owned->job = *result;
	return ret;
}

static int create_stream(struct target *ti, const struct chain_stream_options *options,
			 struct merge **result, struct qc_err *err)
{
	struct chain_target *ct = ti->private;
	u32 into, base;
	int ret = check_into(ct, options->node, &into, err);

	if (!ret)
		ret = find_base(ct->chain, options, into, &base, err);
	if (!ret)
		ret = merge_create(ti, into + 1, base - into - 1, options->backing_name, result,
				   err);
	if (!ret)
		(*result)->up = true;
	return ret;
}

int chain_stream(struct target *ti, struct jobs *jobs, const struct chain_stream_options *options,
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
	ret = create_stream(ti, options, &m, err);
	if (!ret)
		ret = merge_make_job(m, jobs, "stream", job_options, result, err);
	chain_turn_give(ct);
	return ret;
}
