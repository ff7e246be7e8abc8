// SPDX-License-Identifier: GPL-2.0-or-later
/* Runs one transfer job in this process and waits for it. */
#include "merge-run.h"

#include <errno.h>
#include <qchain/transfer.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define RING_ENTRIES 256u
#define ASK_EVERY_NS 200000000ull

/* The words of one target: fixed ones, then those that are made here. */
struct words {
	char **argv;
	u32 nr;
	u32 nr_fixed;
};

static int add_text(struct words *w, const char *key, const char *value)
{
	char *text;

	if (asprintf(&text, "%s=%s", key, value) < 0)
		return -ENOMEM;
	w->argv[w->nr++] = text;
	return 0;
}

static int add_words(struct words *w, const struct offline_options *options,
		     const char *const *words)
{
	int ret = 0;

	for (; words && *words; words++)
		w->argv[w->nr++] = (char *)*words;
	w->nr_fixed = w->nr;
	if (options->backing_format)
		ret = add_text(w, "backing-format", options->backing_format);
	for (u32 i = 0; i < options->nr_allow_dirs && !ret; i++)
		ret = add_text(w, "allow-backing", options->allow_dirs[i]);
	return ret;
}

int merge_open(const char *path, const struct offline_options *options,
	       enum image_format format, const char *const *words, struct target **result,
	       struct qc_err *err)
{
	struct words w = { .argv = calloc(options->nr_allow_dirs + 16, sizeof(char *)) };
	int ret;

	if (!w.argv)
		return qc_err_set(err, -ENOMEM, "%s: out of memory", path);
	w.argv[w.nr++] = (char *)path;
	w.argv[w.nr++] = format == IMAGE_RAW ? "format=raw" : "format=qcow2";
	w.argv[w.nr++] = "on-full=fail";
	w.argv[w.nr++] = "may-lose=on"; /* until the flush in the end it is all above, too */
	ret = add_words(&w, options, words);
	if (ret)
		qc_err_set(err, ret, "%s: out of memory", path);
	else
		ret = target_create("qcow2-chain", w.nr, w.argv, result, err);
	while (w.nr > w.nr_fixed)
		free(w.argv[--w.nr]);
	free(w.argv);
	return ret;
}

int merge_hold(const char *path, struct image **result, struct qc_err *err)
{
	struct io_dev *dev;
	int ret = io_dev_open(path, IO_DEV_WRITE, &dev, err);

	return ret ? ret : image_open(dev, IMAGE_QCOW2, IMAGE_OPEN_WRITE | IMAGE_OPEN_BITMAPS,
				      result, err);
}

/* ---- loops ----------------------------------------------------------------------- */

struct run {
	struct merge *merge;
	struct loop *control;
	struct loop *source; /* the job's */
	struct loop *target;
	struct loop *compare;
	struct jobs *jobs;
	struct job *job;
	struct loop_timer timer;
	struct progress progress;
	struct qc_err *err;
	u64 start_ns;
	int ret;
};

static int make_loop(const char *name, struct target *ti, struct loop **result)
{
	struct io_engine *io;
	int ret = io_uring_engine_create(RING_ENTRIES, &io);

	if (!ret)
		ret = loop_create(name, io, result);
	if (!ret && ti)
		ret = target_attach(ti, *result);
	return ret ? ret : ti ? loop_start(*result, -1) : 0;
}

static void drop_loop(struct target *ti, struct loop *loop)
{
	if (!loop)
		return;
	if (ti && loop->stats) /* attached */
		target_detach(ti, loop);
	loop_stop(loop);
	loop_destroy(loop);
}

static int make_loops(struct run *r)
{
	struct merge *m = r->merge;
	int ret = make_loop("qc-control", NULL, &r->control);

	if (!ret)
		ret = make_loop("qc-read", m->source, &r->source);
	if (!ret && m->target != m->source)
		ret = make_loop("qc-write", m->target, &r->target);
	if (!ret && m->compare)
		ret = make_loop("qc-compare", m->compare, &r->compare);
	return ret;
}

static void drop_loops(struct run *r)
{
	drop_loop(r->merge->compare, r->compare);
	drop_loop(r->merge->target, r->target);
	drop_loop(r->merge->source, r->source);
	drop_loop(NULL, r->control);
}

/* ---- waiting ----------------------------------------------------------------------- */

/* Any thread: the end wakes the control loop at once. */
static void on_event(void *arg, const char *name, json_object *data_owned)
{
	struct run *r = arg;
	json_object *status;

	if (json_object_object_get_ex(data_owned, "status", &status) &&
	    !strcmp(json_object_get_string(status), job_state_name(JOB_CONCLUDED)))
		loop_quit(r->control);
	json_object_put(data_owned);
}

static void on_timer(struct loop *loop, struct loop_timer *timer)
{
	struct run *r = container_of(timer, struct run, timer);
	struct job_info info;

	job_query(r->job, &info);
	r->progress.total = info.total;
	if (info.total)
		progress_update(&r->progress, info.done);
	loop_timer_set(loop, timer, ASK_EVERY_NS);
}

static int start_job(struct run *r)
{
	struct merge *m = r->merge;
	struct job_options job_options = { .loop = r->source, .manual_dismiss = true,
					   .speed = m->speed };
	struct transfer_options options = {
		.source = m->source, .target = m->target, .compare = m->compare,
		.target_loop = r->target, .compare_loop = r->compare,
		.first_depth = m->first_depth, .last_depth = m->last_depth,
		.keep_layers = m->keep_layers, .compare_bytes = m->compare_bytes,
		.skip_zero = m->skip_zero,
	};

	return transfer_create(r->jobs, m->type, &job_options, &options, &r->job, r->err);
}

static void control_begin(struct loop *loop, void *arg)
{
	struct run *r = arg;

	r->start_ns = loop_now_ns(loop);
	r->ret = jobs_create(loop, on_event, r, &r->jobs);
	if (!r->ret)
		r->ret = start_job(r);
	if (r->ret)
		return;
	progress_begin(&r->progress, r->merge->type, 0, true);
	r->timer.fn = on_timer;
	loop_timer_set(loop, &r->timer, ASK_EVERY_NS);
	job_start(r->job);
}

static void control_end(struct loop *loop, void *arg)
{
	struct run *r = arg;
	struct job_info info;

	loop_timer_cancel(&r->timer);
	if (r->job) {
		progress_end(&r->progress);
		job_query(r->job, &info);
		r->merge->moved_bytes = info.done;
		r->merge->seconds = (loop_now_ns(loop) - r->start_ns) / 1e9;
		if (info.err.code)
			r->ret = qc_err_set(r->err, info.err.code, "%s", info.err.msg);
	}
	jobs_destroy(r->jobs);
}

int merge_run(struct merge *merge, struct qc_err *err)
{
	struct run r = { .merge = merge, .err = err };

	r.ret = make_loops(&r);
	if (r.ret) {
		qc_err_set(err, r.ret, "%s: cannot set up its queues (%s)", merge->type,
			   strerror(-r.ret));
	} else {
		loop_call(r.control, control_begin, &r);
		if (!r.ret)
			loop_run(r.control);
		loop_call(r.control, control_end, &r);
	}
	drop_loops(&r);
	return r.ret;
}

/* ---- zeroes -------------------------------------------------------------------------- */

struct zero_run {
	struct request req;
	struct target *ti;
	struct loop *loop;
	u64 pos;
	u64 end;
	int error;
};

static void zero_next(struct zero_run *z);

static void zero_end_io(struct request *req, int error)
{
	struct zero_run *z = container_of(req, struct zero_run, req);

	if (error || req->op == REQ_FLUSH) {
		z->error = error;
		loop_quit(z->loop);
		return;
	}
	z->pos += req->len;
	zero_next(z);
}

static const struct request_ops zero_ops = { .end_io = zero_end_io };

static void zero_next(struct zero_run *z)
{
	u64 left = z->end - z->pos;

	z->req = (struct request){
		.ops = &zero_ops, .loop = z->loop, .op = left ? REQ_WRITE_ZEROES : REQ_FLUSH,
		.offset = left ? z->pos : 0, .len = min(left, (u64)QC_MAX_DISCARD_BYTES),
	};
	target_submit(z->ti, &z->req);
}

static void zero_begin(struct loop *loop, void *arg)
{
	zero_next(arg);
}

int merge_zero(struct target *target, u64 from, u64 to, struct qc_err *err)
{
	struct zero_run z = { .ti = target, .pos = from, .end = to };
	struct io_engine *io;
	int ret = io_uring_engine_create(RING_ENTRIES, &io);

	if (!ret)
		ret = loop_create("qc-zero", io, &z.loop);
	if (!ret)
		ret = target_attach(target, z.loop);
	if (!ret) {
		loop_call(z.loop, zero_begin, &z);
		loop_run(z.loop);
		target_detach(target, z.loop);
		ret = z.error;
	}
	loop_destroy(z.loop);
	return ret ? qc_err_set(err, ret, "zeroing of %llu bytes at %llu failed (%s)",
				(unsigned long long)(to - from), (unsigned long long)from,
				strerror(-ret)) : 0;
}

/* ---- names ------------------------------------------------------------------------------ */

static bool same_image(const char *a, const char *b)
{
	struct stat x, y;

	if (stat(a, &x) || stat(b, &y))
		return false;
	if (S_ISBLK(x.st_mode) && S_ISBLK(y.st_mode))
		return x.st_rdev == y.st_rdev;
	return x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

static const char *base_name(const char *path)
{
	const char *slash = strrchr(path, '/');

	return slash ? slash + 1 : path;
}

int merge_find_layer(const struct chain *chain, const char *name, u32 *depth,
		     struct qc_err *err)
{
	struct object_name object;
	bool is_object = name_parse(name, &object, NULL) == 0;
	u32 i;

	for (i = 0; i < chain->nr_layers; i++) {
		const struct chain_layer *layer = &chain->layers[i];

		if (strcmp(name, layer->node_name) && strcmp(name, base_name(layer->path)) &&
		    !(is_object && same_image(object.path, layer->img->dev->path)))
			continue;
		*depth = i;
		return 0;
	}
	return qc_err_set(err, -ENOENT, "'%s' is no layer of the chain of %s; qchainctl info "
			  "--backing-chain lists them", name, chain->layers[0].path);
}

void merge_report(json_object *object, const struct merge *merge)
{
	char size[32], rate[32];

	if (object) {
		json_add_u64(object, "moved", merge->moved_bytes);
		json_object_object_add(object, "seconds", json_object_new_double(merge->seconds));
		return;
	}
	printf("%s of data moved in %.1f s (%s/s)\n", print_size(merge->moved_bytes, size),
	       merge->seconds,
	       print_size(merge->seconds > 0 ? merge->moved_bytes / merge->seconds : 0, rate));
}
