// SPDX-License-Identifier: GPL-2.0-or-later
/* The leak scan beside serving: drives qcow2/'s steps on the metadata loop (rule A4). */
#include "chain-private.h"

#include <errno.h>
#include <qchain/leaks.h>
#include <qchain/log.h>
#include <stdlib.h>

/*
 * It starts with the writer of an image that was not closed cleanly, after
 * whatever is replayed; and before a volume is called full, once for a writer.
 * One I/O at a time, a pause after each while guests change mappings. An image
 * whose scan did not come to its end keeps its mark (promise P15).
 */

#define SCAN_PAUSE_NS 2000000ull
/* A daemon that stops gives the scan so long; the next start begins it again. */
#define SCAN_STOP_NS 2000000000ull

struct leak_scan {
	struct writer *writer;
	struct leaks *leaks;
	struct loop_timer timer;
	struct io_op io;
	struct meta_wait wait;
	struct meta_flush commit;
	bool committed; /* what was acknowledged before it began is in the tables */
	u64 started_ns;
	u64 give_up_ns; /* 0: it takes its time */
	bool hurry; /* somebody waits for it */
};

static void scan_run(struct leak_scan *s);

/* ---- the end --------------------------------------------------------------------- */

static void scan_event(const struct writer *w, const struct leaks_result *r, bool complete)
{
	json_object *data = json_object_new_object();
	u64 bytes = r->freed << w->img->cluster_bits;

	json_object_object_add(data, "node-name", json_object_new_string(w->layer->node_name));
	json_object_object_add(data, "complete", json_object_new_boolean(complete));
	json_object_object_add(data, "freed-clusters", json_object_new_int64(r->freed));
	json_object_object_add(data, "freed-bytes", json_object_new_int64(bytes));
	target_event(w->ct->ti, "QCHAIN_LEAK_SCAN", data);
}

static void scan_say(const struct leak_scan *s, const struct leaks_result *r, int error)
{
	const struct writer *w = s->writer;
	u64 ms = (loop_now_ns(w->ct->loop) - s->started_ns) / 1000000;

	if (error)
		log_warn("%s: leak scan given up at %u %% (error %d), %llu clusters were freed; "
			 "the next start begins it again", w->layer->path, r->percent, -error,
			 (unsigned long long)r->freed);
	else
		log_info("%s: leak scan: %llu clusters freed, %llu counted too often, %llu ms",
			 w->layer->path, (unsigned long long)r->freed,
			 (unsigned long long)r->lowered, (unsigned long long)ms);
}

static void scan_end(struct leak_scan *s, int error)
{
	struct writer *w = s->writer;
	struct leaks_result result;

	leaks_get_result(s->leaks, &result);
	scan_say(s, &result, error);
	scan_event(w, &result, !error);
	w->stat_leaks_freed += result.freed;
	w->unclean = w->unclean && error;
	w->scan = NULL;
	leaks_destroy(s->leaks);
	free(s);
	if (error == -EUCLEAN)
		writer_corrupt(w, result.fault_host, result.fault);
	if (!cds_list_empty(&w->parked))
		loop_timer_set(w->ct->loop, &w->full_timer, 0);
	writer_unpark(w);
}

/* ---- steps -------------------------------------------------------------------------- */

static void scan_pause(struct leak_scan *s)
{
	const struct writer *w = s->writer;
	bool yield = w->nr_ops && !s->hurry && !s->give_up_ns;

	loop_timer_set(w->ct->loop, &s->timer, yield ? SCAN_PAUSE_NS : 0);
}

static void scan_io_done(struct io_op *io, int error)
{
	struct leak_scan *s = container_of(io, struct leak_scan, io);

	if (error)
		scan_end(s, error);
	else
		scan_pause(s);
}

static void scan_timer(struct loop *loop, struct loop_timer *timer)
{
	scan_run(container_of(timer, struct leak_scan, timer));
}

static void scan_woken(struct meta_wait *wait)
{
	scan_run(container_of(wait, struct leak_scan, wait));
}

static bool scan_must_end(const struct leak_scan *s)
{
	return s->writer->failed ||
	       (s->give_up_ns && loop_now_ns(s->writer->ct->loop) >= s->give_up_ns);
}

static void scan_committed(struct meta_flush *commit, int error)
{
	struct leak_scan *s = container_of(commit, struct leak_scan, commit);

	s->committed = true;
	if (error)
		scan_end(s, error);
	else
		scan_pause(s);
}

/*
 * The walk reads the disk. What operations that are over have allocated, and is
 * named by nothing but the cache, gets there first; later ones are told.
 */
static bool scan_must_commit(struct leak_scan *s)
{
	if (s->committed || meta_clean(s->writer->meta))
		return false;
	s->commit.fn = scan_committed;
	meta_flush(s->writer->meta, &s->commit);
	return true;
}

static void scan_run(struct leak_scan *s)
{
	int ret;

	if (!scan_must_end(s) && scan_must_commit(s))
		return;
	s->committed = true;
	ret = scan_must_end(s) ? -ECANCELED : leaks_step(s->leaks, &s->io, &s->wait);

	switch (ret) {
	case LEAKS_READ:
	case LEAKS_FLUSH:
		s->io.done = scan_io_done;
		io_submit(s->writer->ct->loop, &s->io);
		break;
	case LEAKS_MORE:
		scan_pause(s);
		break;
	case LEAKS_WAIT:
		break;
	default:
		scan_end(s, ret);
	}
}

/* ---- beginning ------------------------------------------------------------------------ */

static void touch_op(struct writer *w, const struct write_op *op)
{
	u32 i;

	for (i = 0; i < op->nr_allocated; i++)
		if (op->plans[i].alloc)
			refcounts_touch(w->rc, op->plans[i].host, image_cluster_bytes(w->img));
}

/* What operations have allocated and no table names yet. */
static void touch_under_way(struct writer *w)
{
	const struct new_table *nt;
	const struct write_op *op;
	u32 i;

	for (i = 0; i < CELL_BUCKETS; i++)
		cds_list_for_each_entry(op, &w->cells[i], cell)
			touch_op(w, op);
	cds_list_for_each_entry(nt, &w->new_tables, node)
		if (nt->host)
			refcounts_touch(w->rc, nt->host, image_cluster_bytes(w->img));
}

void writer_scan_start(struct writer *w)
{
	struct leak_scan *s = calloc(1, sizeof(*s));

	w->scanned = true;
	if (!s || leaks_create(w->img, w->rc, LEAKS_WINDOW_CLUSTERS, &s->leaks)) {
		free(s);
		log_warn("%s: no memory for a leak scan", w->layer->path);
		return;
	}
	touch_under_way(w);
	s->writer = w;
	s->timer.fn = scan_timer;
	s->wait.fn = scan_woken;
	s->started_ns = loop_now_ns(w->ct->loop);
	w->scan = s;
	loop_timer_set(w->ct->loop, &s->timer, 0);
}

void writer_scan_hurry(struct writer *w)
{
	if (w->scan)
		w->scan->hurry = true;
}

void writer_scan_stop(struct writer *w)
{
	if (w->scan && !w->scan->give_up_ns)
		w->scan->give_up_ns = loop_now_ns(w->ct->loop) + SCAN_STOP_NS;
}

json_object *scan_json(const struct writer *w)
{
	json_object *o = json_object_new_object();
	struct leaks_result r = { .percent = w->scanned ? 100 : 0 };

	if (w->scan)
		leaks_get_result(w->scan->leaks, &r);
	json_object_object_add(o, "running", json_object_new_boolean(w->scan != NULL));
	json_object_object_add(o, "percent", json_object_new_int(r.percent));
	json_object_object_add(o, "freed-clusters",
			       json_object_new_int64(w->stat_leaks_freed + r.freed));
	return o;
}
