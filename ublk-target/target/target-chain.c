// SPDX-License-Identifier: GPL-2.0-or-later
/* qcow2-chain: the target that matters. Built here; its work is in chain-*.c. */
#include "chain-private.h"
#include "target-private.h"

#include <errno.h>
#include <qchain/log.h>
#include <qchain/parse.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>

/*
 *   queue loops --chain_map()--> map --> layers          chain-map.c
 *        | deferred (a message)
 *        v
 *   metadata loop: chain_deferred()                       chain-meta.c
 *        | window missing: read, fold, publish            chain-load.c, chain-warm.c
 *        | needs the CPU: decompress                      chain-read.c
 *        | mapping changes: cut into operations           chain-split.c
 *        |   stages, transaction, publish                 chain-write.c, chain-plan.c,
 *        |                                                chain-table.c, chain-publish.c
 *        | flush while mappings are not written           chain-flush.c
 *        ' space: reclaim, park; leaks                    chain-space.c, chain-leaks.c
 *   each image that is written has a struct writer        chain-writer.c
 *   an overlay becomes the active layer                   chain-switch.c, chain-order.c
 *   the log of a daemon that died                         chain-replay.c
 *   several devices at one instant                        chain-hold.c
 *   a layer below the active one as a target of its own   chain-show.c
 */

#define META_RING_ENTRIES 1024u
#define WORKER_RING_ENTRIES 8u
#define MIN_WINDOW_BITS 18u
#define MAX_WINDOW_BITS 30u
#define DEFAULT_CACHE_BYTES (48u * 1024u * 1024u)

/* ---- words ------------------------------------------------------------------------ */

/* What becomes of a log that is there: replayed if it is ours, or it must be, or not. */
enum log_replay { LOG_REPLAY_TRY, LOG_REPLAY_ON, LOG_REPLAY_OFF };

struct chain_words {
	struct chain_open_options open;
	u64 cache_bytes;
	enum chain_on_full on_full;
	u32 nr_allow;
	bool may_lose;
	bool warm;
	const char *log_path; /* NULL: none */
	u64 log_tag;
	enum log_replay log_replay;
};

static int word_bool(const char *value, bool *result)
{
	*result = !strcmp(value, "on");
	return *result || !strcmp(value, "off") ? 0 : -EINVAL;
}

static int word_allow(struct chain_words *w, const char *value)
{
	char **larger = realloc(w->open.policy.allow_dirs, (w->nr_allow + 2) * sizeof(*larger));

	if (!larger)
		return -ENOMEM;
	larger[w->nr_allow++] = (char *)value;
	larger[w->nr_allow] = NULL;
	w->open.policy.allow_dirs = larger;
	return 0;
}

static int word_layers(const char *value, u32 *result)
{
	u64 nr;
	int ret = parse_number("layers", value, 1, QC_MAX_CHAIN_DEPTH, &nr, NULL);

	*result = ret ? 0 : nr;
	return ret;
}

static int word_replay(const char *value, enum log_replay *result)
{
	static const char *const choices[] = { "try", "on", "off", NULL };
	u32 index;
	int ret = parse_choice("log-replay", value, choices, &index, NULL);

	*result = ret ? LOG_REPLAY_TRY : index;
	return ret;
}

static int word_apply(struct chain_words *w, const char *key, const char *value)
{
	if (!strcmp(key, "format"))
		return image_format_parse(value, &w->open.top_format);
	if (!strcmp(key, "read-only"))
		return word_bool(value, &w->open.read_only);
	if (!strcmp(key, "wait"))
		return word_bool(value, &w->open.wait);
	if (!strcmp(key, "no-lock"))
		return word_bool(value, &w->open.no_lock);
	if (!strcmp(key, "grow-to"))
		return parse_size("grow-to", value, &w->open.grow_to, NULL);
	if (!strcmp(key, "layers"))
		return word_layers(value, &w->open.nr_layers);
	if (!strcmp(key, "allow-data-file"))
		return word_bool(value, &w->open.policy.allow_data_file);
	if (!strcmp(key, "allow-backing"))
		return word_allow(w, value);
	if (!strcmp(key, "may-lose"))
		return word_bool(value, &w->may_lose);
	if (!strcmp(key, "warm"))
		return word_bool(value, &w->warm);
	if (!strcmp(key, "log-tag"))
		return parse_number("log-tag", value, 0, UINT64_MAX, &w->log_tag, NULL);
	if (!strcmp(key, "log-replay"))
		return word_replay(value, &w->log_replay);
	if (!strcmp(key, "intent-log"))
		w->log_path = value;
	else if (!strcmp(key, "snapshot"))
		w->open.snapshot = value;
	else if (!strcmp(key, "backing-format"))
		w->open.policy.backing_format = value;
	else if (!strcmp(key, "cache-size"))
		return parse_size("cache-size", value, &w->cache_bytes, NULL);
	else if (!strcmp(key, "on-full") && (!strcmp(value, "wait") || !strcmp(value, "fail")))
		w->on_full = value[0] == 'f' ? ON_FULL_FAIL : ON_FULL_WAIT;
	else
		return -EINVAL;
	return 0;
}

static int parse_words(struct chain_words *w, int argc, char **argv, struct qc_err *err)
{
	char key[32];
	int i;

	for (i = 1; i < argc; i++) {
		const char *eq = strchr(argv[i], '=');
		size_t len = eq ? (size_t)(eq - argv[i]) : 0;

		if (!len || len >= sizeof(key))
			return qc_err_set(err, -EINVAL,
					  "qcow2-chain: word \"%s\", expected key=value", argv[i]);
		memcpy(key, argv[i], len);
		key[len] = 0;
		if (word_apply(w, key, eq + 1))
			return qc_err_set(err, -EINVAL,
					  "qcow2-chain: \"%s\" not understood, keys are format, "
					  "read-only, snapshot, allow-backing, allow-data-file, "
					  "backing-format, cache-size, wait, on-full, may-lose, "
					  "intent-log, log-tag, log-replay, no-lock, grow-to, "
					  "layers, warm",
					  argv[i]);
	}
	return 0;
}

/* ---- opening ---------------------------------------------------------------------- */

/* Dirty: the active layer's refcounts are made exact first (rule A3). */
static int repair_top(const char *top, struct qc_err *err)
{
	struct image *img;
	int ret = chain_check_image(top, IO_DEV_WAIT, CHECK_FIX_LEAKS | CHECK_FIX_ERRORS, &img,
				    err);

	if (!ret)
		image_close(img);
	return ret;
}

/* Before that, what the log has for other layers (promise P25): the top has nothing there. */
static int replay_and_repair(struct chain_target *ct, const char *top, const struct chain_words *w,
			     struct qc_err *err)
{
	struct chain_open_options look = w->open;
	int ret = 0;

	look.read_only = true;
	if (ct->log)
		ret = chain_open(top, &look, &ct->chain, err);
	if (ct->log && !ret)
		ret = chain_replay(ct, top, &look, err);
	chain_close(ct->chain);
	ct->chain = NULL;
	return ret ? ret : repair_top(top, err);
}

static int open_chain(struct chain_target *ct, const char *top, struct chain_words *w,
		      struct qc_err *err)
{
	struct qc_err first = { 0 };
	int ret = chain_open(top, &w->open, &ct->chain, &first);

	if (ret == -EUCLEAN && !w->open.read_only && w->open.top_format == IMAGE_QCOW2) {
		ret = replay_and_repair(ct, top, w, err);
		return ret ? ret : chain_open(top, &w->open, &ct->chain, err);
	}
	if (ret)
		*err = first;
	if (!ret && ct->log && !ct->chain->read_only)
		ret = chain_replay(ct, top, &w->open, err);
	return ret;
}

/* Rule A5: what cannot be written sector-atomically on these devices is not written. */
static void check_block_size(struct chain_target *ct)
{
	const struct image *img = ct->chain->layers[0].img;
	u32 block = chain_block_bytes(ct->chain);

	if (ct->chain->read_only || img->format == IMAGE_RAW ||
	    1ull << img->subcluster_bits >= block)
		return;
	log_warn("%s: (sub)clusters of %llu bytes are smaller than the logical block of its "
		 "devices (%u), served read-only",
		 ct->chain->layers[0].path, 1ull << img->subcluster_bits, block);
	ct->chain->read_only = true;
}

static u32 four_kib_coverage_bits(const struct image *img)
{
	return 12 - (image_has_extl2(img) ? 4 : 3) + img->cluster_bits;
}

/* Windows: what 4 KiB of the active layer's L2 map; bounded for fine layers (C7). */
static u32 window_bits(const struct chain *chain)
{
	u32 bits = four_kib_coverage_bits(chain->layers[0].img);
	u32 finest = MAX_WINDOW_BITS;
	u32 i;

	for (i = 0; i < chain->nr_layers; i++)
		if (chain->layers[i].img->format == IMAGE_QCOW2)
			finest = min(finest, four_kib_coverage_bits(chain->layers[i].img));
	bits = min(bits, finest + 4);
	return min(max(bits, MIN_WINDOW_BITS), MAX_WINDOW_BITS);
}

/* ---- loops ------------------------------------------------------------------------ */

static int make_loop(const char *name, u32 entries, struct loop **result)
{
	struct io_engine *io;
	int ret = io_uring_engine_create(entries, &io);

	return ret ? ret : loop_create(name, io, result);
}

static int make_loops(struct chain_target *ct, struct qc_err *err)
{
	u32 i;
	int ret = make_loop("qc-meta", META_RING_ENTRIES, &ct->loop);

	for (i = 0; i < CHAIN_WORKERS && !ret; i++)
		ret = make_loop("qc-worker", WORKER_RING_ENTRIES, &ct->workers[i]);
	if (!ret)
		ret = chain_loop_init(ct->loop);
	if (ret)
		return qc_err_set(err, ret, "qcow2-chain: cannot set up io_uring: %s",
				  strerror(-ret));
	grace_init(&ct->grace, ct->loop);
	return 0;
}

static void first_run(struct loop *loop, void *arg)
{
	struct chain_target *ct = arg;

	grace_add_loop(&ct->grace, loop);
	if (ct->active)
		writer_start(ct->active, ct->map.table->write_layer);
	if (ct->warm.state == WARM_RUNNING)
		chain_warm_start(ct);
}

static int start_loops(struct chain_target *ct, struct qc_err *err)
{
	u32 i;
	int ret = loop_start(ct->loop, -1);

	for (i = 0; i < CHAIN_WORKERS && !ret; i++)
		ret = loop_start(ct->workers[i], -1);
	if (ret)
		return qc_err_set(err, ret, "qcow2-chain: cannot start threads: %s",
				  strerror(-ret));
	loop_call(ct->loop, first_run, ct);
	return 0;
}

struct attach {
	struct chain_target *ct;
	struct loop *loop;
	struct grace_waiter waiter;
	sem_t done;
	int ret;
};

static void attach_run(struct loop *loop, void *arg)
{
	struct attach *a = arg;

	a->ret = grace_add_loop(&a->ct->grace, a->loop);
}

static int chain_attach(struct target *ti, struct loop *loop)
{
	struct attach a = { .ct = ti->private, .loop = loop };
	int ret = chain_loop_init(loop);

	if (ret)
		return ret;
	loop_call(a.ct->loop, attach_run, &a);
	return a.ret;
}

/* After a round of grace none runs: the loop owes no answer. */
static void detach_drained(struct grace_waiter *waiter)
{
	struct attach *a = container_of(waiter, struct attach, waiter);

	grace_remove_loop(&a->ct->grace, a->loop);
	loop_will_block(); /* the caller may end that loop now: it owes it no wake-up */
	sem_post(&a->done);
}

static void detach_run(struct loop *loop, void *arg)
{
	struct attach *a = arg;

	a->waiter.drained = detach_drained;
	grace_wait(&a->ct->grace, &a->waiter);
}

static void chain_detach(struct target *ti, struct loop *loop)
{
	struct attach a = { .ct = ti->private, .loop = loop };

	sem_init(&a.done, 0, 0);
	loop_call(a.ct->loop, detach_run, &a);
	/* a loop that was never started, or has stopped, answers from here */
	while (!loop->has_thread && sem_trywait(&a.done) < 0)
		loop_run_once(loop, false);
	while (loop->has_thread && sem_wait(&a.done) < 0)
		;
	sem_destroy(&a.done);
	chain_loop_exit(loop);
}

/* ---- stopping --------------------------------------------------------------------- */

struct drain {
	struct chain_target *ct;
	const char *lost; /* path of an image that lacks something acknowledged; NULL: none */
	struct loop_timer timer;
	sem_t done;
};

#define DRAIN_POLL_NS 1000000ull

static bool is_idle(struct chain_target *ct)
{
	return !ct->nr_loads && !chain_is_sealing(ct) &&
	       (!ct->active || writer_idle(ct->active));
}

/* A volume that fails some writes may well take the flush that follows. */
static const char *find_loss(const struct chain_target *ct)
{
	const struct writer *w;

	chain_for_each_writer(w, ct)
		if (writer_matters(w) && (w->dead || (w->meta && !meta_clean(w->meta))))
			return w->layer->path;
	return NULL;
}

static void stop_background(struct chain_target *ct)
{
	struct writer *w;

	chain_warm_stop(ct);
	chain_for_each_writer(w, ct)
		writer_scan_stop(w);
}

static void drain_check(struct loop *loop, struct loop_timer *timer)
{
	struct drain *d = container_of(timer, struct drain, timer);

	if (is_idle(d->ct)) {
		d->ct->stopping = false;
		d->lost = find_loss(d->ct);
		sem_post(&d->done);
		return;
	}
	d->ct->stopping = true;
	stop_background(d->ct);
	if (d->ct->active && d->ct->active->meta)
		meta_housekeep(d->ct->active->meta);
	loop_timer_set(loop, timer, DRAIN_POLL_NS);
}

static void drain_run(struct loop *loop, void *arg)
{
	struct drain *d = arg;

	chain_warm_stop(d->ct);
	drain_check(loop, &d->timer);
}

static void presuspend_run(struct loop *loop, void *arg)
{
	struct chain_target *ct = arg;
	struct writer *w;

	ct->on_full = ON_FULL_FAIL;
	ct->stopping = true;
	stop_background(ct);
	chain_for_each_writer(w, ct)
		if (!cds_list_empty(&w->parked))
			loop_timer_set(loop, &w->full_timer, 0);
}

static void chain_presuspend(struct target *ti)
{
	struct chain_target *ct = ti->private;

	loop_call(ct->loop, presuspend_run, ct);
}

/* Everything that was acknowledged is durable, everything freed is free. */
static int chain_suspend(struct target *ti, struct qc_err *err)
{
	struct drain d = { .ct = ti->private, .timer = { .fn = drain_check } };

	sem_init(&d.done, 0, 0);
	loop_call(d.ct->loop, drain_run, &d);
	while (sem_wait(&d.done) < 0)
		;
	sem_destroy(&d.done);
	if (d.lost)
		return qc_err_set(err, -EIO, "%s: could not be written, what was acknowledged and "
				  "not flushed may be lost; check the volume below", d.lost);
	if (d.ct->active && io_dev_flush(d.ct->active->img->dev))
		return qc_err_set(err, -EIO, "%s: flush failed", d.ct->active->layer->path);
	return 0;
}

void chain_free(struct chain_target *ct)
{
	struct writer *w, *tmp;
	u32 i;

	writer_destroy(ct->active);
	cds_list_for_each_entry_safe(w, tmp, &ct->closing, node)
		writer_destroy(w);
	for (i = 0; i < CHAIN_WORKERS; i++)
		loop_destroy(ct->workers[i]);
	map_exit(&ct->map);
	if (ct->loop)
		chain_loop_exit(ct->loop);
	loop_destroy(ct->loop);
	chain_free_layers(ct);
	free(ct->updates);
	chain_close(ct->chain);
	intent_log_close(ct->log);
	pool_exit(&ct->slow_requests);
	pool_exit(&ct->write_ops);
	free(ct);
}

static void stop_loops(struct chain_target *ct)
{
	u32 i;

	for (i = 0; i < CHAIN_WORKERS; i++)
		loop_stop(ct->workers[i]);
	if (!cds_list_empty(&ct->grace.loops)) /* first_run() has added it */
		chain_detach(ct->ti, ct->loop);
	loop_stop(ct->loop);
}

static void chain_dtr(struct target *ti)
{
	struct chain_target *ct = ti->private;
	struct qc_err err = { 0 };

	if (chain_suspend(ti, &err))
		log_error("%s", err.msg);
	else if (ct->active)
		writer_mark_closed(ct->active);
	stop_loops(ct);
	chain_free(ct);
}

/* ---- the intent log --------------------------------------------------------------- */

/* The file is opened before anything that may lie on the device (rule E1). */
static int open_log(struct chain_target *ct, const struct chain_words *w, struct qc_err *err)
{
	struct qc_err found = { 0 };
	int ret = -ENOENT;

	ct->may_lose = w->may_lose;
	if (!w->log_path || w->open.read_only)
		return 0;
	if (w->log_replay != LOG_REPLAY_OFF)
		ret = intent_log_open(w->log_path, w->log_tag, &ct->log, &found);
	if (!ret)
		return 0;
	if (ret != -ENOENT && w->log_replay == LOG_REPLAY_ON) {
		*err = found;
		return ret;
	}
	if (found.msg[0])
		log_info("%s; a new one is made", found.msg);
	return intent_log_create(w->log_path, w->log_tag, &ct->log, err);
}

/* ---- building --------------------------------------------------------------------- */

int chain_serve(struct chain_target *ct, u64 cache_bytes, struct qc_err *err)
{
	int ret;

	check_block_size(ct);
	ret = chain_make_layers(ct);
	if (!ret)
		ret = map_init(&ct->map, ct->chain->virtual_size, window_bits(ct->chain),
			       cache_bytes, ct->map.table);
	if (ret)
		return qc_err_set(err, ret, "%s: out of memory", ct->chain->layers[0].path);
	ret = make_loops(ct, err);
	if (!ret && !ct->chain->read_only)
		ret = writer_open(ct, ct->map.table->by_id[ct->map.table->write_layer],
				  ct->chain->nr_layers > 1, &ct->active, err);
	if (!ret)
		ret = start_loops(ct, err);
	if (ret)
		return ret;
	ct->ti->private = ct;
	ct->ti->size_bytes = ALIGN_DOWN(ct->map.size_bytes, chain_block_bytes(ct->chain));
	return 0;
}

static int chain_build(struct chain_target *ct, const char *top, struct chain_words *w,
		       struct qc_err *err)
{
	int ret = open_log(ct, w, err);

	if (!ret)
		ret = open_chain(ct, top, w, err);
	if (!ret)
		ret = chain_seal_late(ct, top, &w->open, err);
	ct->on_full = w->on_full;
	ct->warm.state = w->warm ? WARM_RUNNING : WARM_OFF;
	return ret ? ret : chain_serve(ct, w->cache_bytes, err);
}

struct chain_target *chain_alloc(struct target *ti)
{
	struct chain_target *ct = calloc(1, sizeof(*ct));

	if (!ct)
		return NULL;
	ct->ti = ti;
	pool_init(&ct->slow_requests, sizeof(struct slow_request), CHAIN_POOL);
	pool_init(&ct->write_ops, sizeof(struct write_op), CHAIN_POOL);
	CDS_INIT_LIST_HEAD(&ct->loads);
	CDS_INIT_LIST_HEAD(&ct->load_queue);
	CDS_INIT_LIST_HEAD(&ct->queues);
	CDS_INIT_LIST_HEAD(&ct->bounce_waiters);
	CDS_INIT_LIST_HEAD(&ct->map.loaded);
	CDS_INIT_LIST_HEAD(&ct->closing);
	CDS_INIT_LIST_HEAD(&ct->merges);
	CDS_INIT_LIST_HEAD(&ct->renames);
	CDS_INIT_LIST_HEAD(&ct->log_waiters);
	CDS_INIT_LIST_HEAD(&ct->held);
	CDS_INIT_LIST_HEAD(&ct->fill_waiters);
	CDS_INIT_LIST_HEAD(&ct->fenced);
	CDS_INIT_LIST_HEAD(&ct->map.retired_pieces);
	CDS_INIT_LIST_HEAD(&ct->map.retired_windows);
	return ct;
}

static int chain_ctr(struct target *ti, int argc, char **argv, struct qc_err *err)
{
	struct chain_words w = { .cache_bytes = DEFAULT_CACHE_BYTES,
				 .open = { .top_format = IMAGE_QCOW2 } };
	struct chain_target *ct;
	int ret;

	if (argc < 1)
		return qc_err_set(err, -EINVAL, "qcow2-chain: no image named, expected TOP");
	ret = parse_words(&w, argc, argv, err);
	if (ret)
		goto out;
	ct = chain_alloc(ti);
	ret = ct ? chain_build(ct, argv[0], &w, err) : -ENOMEM;
	if (ret && ct)
		chain_free(ct);
out:
	free(w.open.policy.allow_dirs);
	return ret;
}

static void chain_limits(struct target *ti, struct target_limits *limits)
{
	struct chain_target *ct = ti->private;
	const struct image *img = ct->chain->layers[0].img;
	u32 i;

	limits->logical_block = chain_block_bytes(ct->chain);
	limits->physical_block = max(limits->physical_block, limits->logical_block);
	limits->io_min = limits->physical_block;
	limits->in_memory = true;
	for (i = 0; i < ct->chain->nr_layers; i++) {
		const struct io_dev *dev = ct->chain->layers[i].img->dev;

		limits->dma_align_mask = max(limits->dma_align_mask, dev->mem_align_bytes - 1);
		limits->in_memory &= dev->in_memory;
	}
	limits->read_only = ct->chain->read_only;
	if (limits->read_only || img->format == IMAGE_RAW)
		return;
	limits->io_opt = image_cluster_bytes(img);
	limits->discard_granularity = max(1u << img->subcluster_bits, limits->logical_block);
	limits->max_discard = QC_MAX_DISCARD_BYTES;
	limits->max_write_zeroes = QC_MAX_DISCARD_BYTES;
}

const struct target_type target_chain = {
	.name = "qcow2-chain",
	.ctr = chain_ctr,
	.dtr = chain_dtr,
	.map = chain_map,
	.attach = chain_attach,
	.detach = chain_detach,
	.presuspend = chain_presuspend,
	.suspend = chain_suspend,
	.status = chain_status,
	.locate = chain_locate,
	.limits = chain_limits,
};
