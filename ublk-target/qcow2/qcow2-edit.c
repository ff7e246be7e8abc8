// SPDX-License-Identifier: GPL-2.0-or-later OR MIT
/* Drives meta/ and the refcounts of a closed image until each step is done. */
#include "qcow2-edit.h"

#include <stdlib.h>

#include "qcow2.h"

/*
 * The same transactions as of an image that is served, on a loop without a
 * thread: the caller runs its events until what it waits for has come.
 */

#define EDIT_RING_ENTRIES 64u
#define EDIT_CACHE_BLOCKS 4096u

/* ---- waiting ----------------------------------------------------------------- */

struct step {
	struct meta_wait wait;
	struct meta_join join;
	bool done;
	int error;
};

static void step_waited(struct meta_wait *wait)
{
	container_of(wait, struct step, wait)->done = true;
}

static void step_joined(struct meta_join *join, int error)
{
	struct step *step = container_of(join, struct step, join);

	step->done = true;
	step->error = error;
}

static void run_until(struct editor *ed, const struct step *step)
{
	while (!step->done)
		loop_run_once(ed->loop, true);
}

static int io_failed(struct editor *ed, const char *what, int ret)
{
	return qc_err_set(ed->err, ret, "%s: %s failed (%s)", ed->img->dev->path, what,
			  strerror(-ret));
}

int editor_block(struct editor *ed, u64 offset, struct meta_block **result)
{
	int ret;

	do {
		struct step step = { .wait.fn = step_waited };

		ret = meta_get(ed->meta, offset, &step.wait, result);
		if (ret == -EAGAIN)
			run_until(ed, &step);
	} while (ret == -EAGAIN);
	return ret ? io_failed(ed, "reading a table", ret) : 0;
}

static int alloc_some(struct editor *ed, u32 want, u64 *host, u32 *got)
{
	int ret;

	do {
		struct step step = { .wait.fn = step_waited };

		ret = refcounts_alloc(ed->rc, want, &step.wait, host, got);
		if (ret == -EAGAIN)
			run_until(ed, &step);
	} while (ret == -EAGAIN);
	return ret ? io_failed(ed, "allocating clusters", ret) : 0;
}

int editor_alloc_table(struct editor *ed, u64 *host)
{
	int ret;

	do {
		struct step step = { .wait.fn = step_waited };

		ret = refcounts_alloc_table(ed->rc, &step.wait, host);
		if (ret == -EAGAIN)
			run_until(ed, &step);
	} while (ret == -EAGAIN);
	return ret ? io_failed(ed, "allocating a table", ret) : 0;
}

int editor_release(struct editor *ed, u64 host, u64 bytes)
{
	int ret;

	do {
		struct step step = { .wait.fn = step_waited };

		ret = refcounts_release(ed->rc, host, bytes, &step.wait);
		if (ret == -EAGAIN)
			run_until(ed, &step);
	} while (ret == -EAGAIN);
	return ret;
}

int editor_claim(struct editor *ed, u64 host, bool alone)
{
	int ret;

	do {
		struct step step = { .wait.fn = step_waited };

		ret = refcounts_claim(ed->rc, host, alone, &step.wait);
		if (ret == -EAGAIN)
			run_until(ed, &step);
	} while (ret == -EAGAIN);
	return ret ? io_failed(ed, "claiming a cluster", ret) : 0;
}

/* Runs that are too short are held until a long one is found, then given back. */
int editor_alloc(struct editor *ed, u32 clusters, u64 *host)
{
	u64 bytes = image_cluster_bytes(ed->img);
	u64 start = 0, end = 0, next;
	struct places held = {};
	u32 got, i;
	int ret = 0;

	while (!ret && (end - start) / bytes < clusters) {
		ret = alloc_some(ed, clusters - (end - start) / bytes, &next, &got);
		if (ret)
			break;
		if (next != end && end > start)
			ret = places_add(&held, start, end - start);
		if (next != end)
			start = next;
		end = next + got * bytes;
	}
	*host = start;
	for (i = 0; i < held.nr; i++)
		editor_release(ed, held.list[i].host, held.list[i].bytes);
	free(held.list);
	return ret;
}

int places_add(struct places *places, u64 host, u64 bytes)
{
	struct place *last = places->nr ? &places->list[places->nr - 1] : NULL;
	struct place *larger;

	/* whole clusters join; two streams in one cluster are two references */
	if (last && last->host + last->bytes == host &&
	    IS_ALIGNED(host | bytes | last->host, SECTOR_SIZE)) {
		last->bytes += bytes;
		return 0;
	}
	if (places->nr == places->room) {
		places->room = places->room ? places->room * 2 : 256;
		larger = realloc(places->list, places->room * sizeof(*larger));
		if (!larger)
			return -ENOMEM;
		places->list = larger;
	}
	places->list[places->nr++] = (struct place){ .host = host, .bytes = bytes };
	return 0;
}

/* ---- transactions --------------------------------------------------------------- */

static void on_linked(void *arg, u64 mark)
{
}

static void on_failed(void *arg, int error)
{
	((struct editor *)arg)->failed = error;
}

static const struct meta_ops editor_meta_ops = { .linked = on_linked, .failed = on_failed };

int editor_commit(struct editor *ed)
{
	struct step step = { .join.fn = step_joined };

	meta_txn_join(ed->meta, &step.join);
	meta_kick(ed->meta);
	run_until(ed, &step);
	return step.error ? io_failed(ed, "writing metadata", step.error) : 0;
}

int editor_settle(struct editor *ed)
{
	int ret;

	while (!ed->failed && (!meta_idle(ed->meta) || (ed->rc && refcounts_busy(ed->rc)))) {
		meta_housekeep(ed->meta);
		loop_run_once(ed->loop, true);
	}
	ret = ed->failed ? ed->failed : io_dev_flush(ed->img->dev);
	return ret ? io_failed(ed, "writing metadata", ret) : 0;
}

int editor_set_header(struct editor *ed, u32 at, const void *data, u32 bytes)
{
	struct meta_block *block;
	int ret = editor_block(ed, 0, &block);

	if (!ret)
		ret = meta_txn_set(ed->meta, block, at, data, bytes);
	if (!ret)
		ret = editor_commit(ed);
	return ret ? ret : editor_settle(ed);
}

/* ---- opening and closing ----------------------------------------------------------- */

static int write_marks(struct editor *ed)
{
	int ret = image_write_features(ed->img);

	return ret ? io_failed(ed, "writing the header", ret) : 0;
}

int editor_refcounts(struct editor *ed)
{
	struct image *img = ed->img;
	int ret;

	if (ed->rc)
		return 0;
	ret = refcounts_open(img, ed->meta, &ed->rc, ed->err);
	if (ret || img->version < 3)
		return ret;
	img->autoclear = QCOW2_AUTOCLEAR_QCHAIN_OPEN;
	if (img->compatible & QCOW2_COMPAT_LAZY_REFCOUNTS)
		img->incompatible |= QCOW2_INCOMPAT_DIRTY;
	return write_marks(ed);
}

static int clear_marks(struct editor *ed)
{
	struct image *img = ed->img;

	if (!ed->rc || ed->unclean || img->version < 3)
		return 0;
	img->autoclear &= ~QCOW2_AUTOCLEAR_QCHAIN_OPEN;
	img->incompatible &= ~QCOW2_INCOMPAT_DIRTY;
	return write_marks(ed);
}

struct edit {
	struct editor ed;
	int (*fn)(struct editor *ed, void *arg);
	void *arg;
	int ret;
};

static void edit_run(struct loop *loop, void *arg)
{
	struct edit *edit = arg;
	struct editor *ed = &edit->ed;
	struct io_dev *dev = ed->img->dev;
	int ret;

	edit->ret = meta_create(loop, dev, min(4096u, (u32)image_cluster_bytes(ed->img)),
				EDIT_CACHE_BLOCKS, &editor_meta_ops, ed, &ed->meta);
	if (edit->ret) {
		qc_err_set(ed->err, edit->ret, "%s: out of memory", dev->path);
		return;
	}
	edit->ret = edit->fn(ed, edit->arg);
	ret = editor_settle(ed);
	if (!ret)
		ret = clear_marks(ed);
	if (!edit->ret)
		edit->ret = ret;
	refcounts_close(ed->rc);
	meta_destroy(ed->meta);
}

static int make_loop(struct loop **result, struct qc_err *err)
{
	struct io_engine *io;
	int ret = io_uring_engine_create(EDIT_RING_ENTRIES, &io);

	if (!ret)
		ret = loop_create("edit", io, result);
	return ret ? qc_err_set(err, ret, "io_uring not available (%s)", strerror(-ret)) : 0;
}

static int run_edit(struct edit *edit)
{
	int ret = make_loop(&edit->ed.loop, edit->ed.err);

	if (ret)
		return ret;
	loop_call(edit->ed.loop, edit_run, edit);
	loop_destroy(edit->ed.loop);
	return edit->ret;
}

int editor_run_unclean(struct image *img, int (*fn)(struct editor *ed, void *arg), void *arg,
		       struct qc_err *err)
{
	struct edit edit = { .ed = { .img = img, .err = err, .unclean = true }, .fn = fn,
			     .arg = arg };

	return run_edit(&edit);
}

int editor_run(struct image *img, int (*fn)(struct editor *ed, void *arg), void *arg,
	       struct qc_err *err)
{
	struct edit edit = { .ed = { .img = img, .err = err }, .fn = fn, .arg = arg };

	if (img->autoclear & QCOW2_AUTOCLEAR_QCHAIN_OPEN)
		return qc_err_set(err, -EUCLEAN,
				  "%s: was not closed cleanly; run qchainctl check --repair leaks "
				  "--force on it first", img->dev->path);
	return run_edit(&edit);
}
