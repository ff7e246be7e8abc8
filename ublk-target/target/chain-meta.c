// SPDX-License-Identifier: GPL-2.0-or-later
/* The metadata thread's door: what the fast path deferred, memory, bad news. */
#include "chain-private.h"

#include <errno.h>
#include <qchain/log.h>
#include <stdlib.h>

/* ---- deferred requests ------------------------------------------------------- */

struct request_load {
	struct load_wait wait;
	struct request *req;
};

static void request_loaded(struct load_wait *wait, int error)
{
	struct request_load *rl = container_of(wait, struct request_load, wait);
	struct request *req = rl->req;

	free(rl);
	if (error)
		chain_finish(req, error);
	else
		chain_retry(req);
}

/* The first window of @req that is not loaded; false: all are. */
static bool missing_window(const struct chain_target *ct, const struct request *req, u64 *index)
{
	u64 last = map_window_of(&ct->map, req->offset + req->len - 1);

	for (*index = map_window_of(&ct->map, req->offset); *index <= last; (*index)++)
		if (!map_loaded(&ct->map, *index))
			return true;
	return false;
}

static void load_for(struct chain_target *ct, struct request *req, u64 index)
{
	struct request_load *rl = malloc(sizeof(*rl));

	if (!rl) {
		chain_finish(req, -ENOMEM);
		return;
	}
	rl->req = req;
	rl->wait.fn = request_loaded;
	request_set_stage(req, "map window");
	chain_load(ct, index, &rl->wait);
}

/* Reads and writes have a way without the map in the end, block status has not. */
static bool may_retry(const struct request *req)
{
	return req->retries < CHAIN_MAX_RETRIES || req->op == REQ_BLOCK_STATUS;
}

void chain_deferred(struct loop *loop, struct loop_msg *msg)
{
	struct request *req = container_of(msg, struct request, msg);
	struct chain_target *ct = req->target->private;
	bool by_map = req->op == REQ_READ || req->op == REQ_WRITE || req->op == REQ_BLOCK_STATUS;
	bool walks; /* goes through all of the disk, most likely */
	u64 index;

	ct->stat_deferred++;
	if (chain_is_held(ct, req)) {
		chain_hold_request(ct, req);
		return;
	}
	if (by_map && may_retry(req) && missing_window(ct, req, &index)) {
		req->retries += req->retries < CHAIN_MAX_RETRIES;
		walks = req->op == REQ_BLOCK_STATUS;
		load_for(ct, req, index); /* @req may be gone */
		if (walks)
			chain_load_ahead(ct, index + 1);
		return;
	}
	if (req->op == REQ_READ)
		chain_slow_read(ct, req);
	else if (req->op == REQ_BLOCK_STATUS)
		chain_retry(req); /* loaded by somebody else meanwhile */
	else
		chain_write(ct, req);
}

/* ---- memory that was unpublished ------------------------------------------------ */

struct retired {
	struct grace_waiter waiter;
	struct cds_list_head pieces;
	struct cds_list_head windows;
};

static void retired_quiescent(struct grace_waiter *waiter)
{
	struct retired *r = container_of(waiter, struct retired, waiter);

	map_free_retired(&r->pieces, &r->windows);
}

static void retired_drained(struct grace_waiter *waiter)
{
	free(container_of(waiter, struct retired, waiter));
}

void chain_retire(struct chain_target *ct)
{
	struct retired *r;

	if (ct->map.retired_bytes < CHAIN_RETIRE_BYTES)
		return;
	r = malloc(sizeof(*r));
	if (!r)
		return; /* stays retired until the next call */
	r->waiter.quiescent = retired_quiescent;
	r->waiter.drained = retired_drained;
	CDS_INIT_LIST_HEAD(&r->pieces);
	CDS_INIT_LIST_HEAD(&r->windows);
	map_take_retired(&ct->map, &r->pieces, &r->windows);
	grace_wait(ct->of ? &ct->of->grace : &ct->grace, &r->waiter);
}

/* ---- workers ----------------------------------------------------------------------- */

static void work_done(struct loop *loop, struct loop_msg *msg)
{
	struct chain_work *work = container_of(msg, struct chain_work, msg);

	work->done(work);
}

static void work_run(struct loop *loop, struct loop_msg *msg)
{
	struct chain_work *work = container_of(msg, struct chain_work, msg);

	loop_will_block(); /* work that was done before this may have been waited for */
	work->run(work);
	loop_send(work->ct->loop, &work->msg, work_done);
}

void chain_work(struct chain_target *ct, struct chain_work *work)
{
	struct loop *worker = ct->workers[ct->next_worker++ % CHAIN_WORKERS];

	work->ct = ct;
	loop_send(worker, &work->msg, work_run);
}

/* ---- bounce memory -------------------------------------------------------------------- */

int chain_bounce_get(struct chain_target *ct, u32 bytes, struct meta_wait *wait, void **result)
{
	if (ct->bounce_bytes && ct->bounce_bytes + bytes > CHAIN_BOUNCE_BYTES) {
		ct->bounce_refused = true;
		cds_list_add_tail(&wait->node, &ct->bounce_waiters);
		return -EAGAIN;
	}
	*result = io_alloc(bytes);
	if (!*result)
		return -ENOMEM;
	ct->bounce_bytes += bytes;
	return 0;
}

void chain_bounce_put(struct chain_target *ct, u32 bytes, void *mem)
{
	struct meta_wait *w;

	if (!mem)
		return;
	free(mem);
	ct->bounce_bytes -= bytes;
	ct->bounce_refused = false;
	if (ct->bounce_waking) /* further up the stack: goes on with it */
		return;
	ct->bounce_waking = true;
	while (!ct->bounce_refused && !cds_list_empty(&ct->bounce_waiters)) {
		w = cds_list_first_entry(&ct->bounce_waiters, struct meta_wait, node);
		cds_list_del(&w->node);
		w->fn(w);
	}
	ct->bounce_waking = false;
}

/* ---- bad news --------------------------------------------------------------------------- */

/* No request that starts from here on changes anything (one pointer, rule C3). */
static void make_read_only(struct writer *w)
{
	w->failed = true;
	if (!writer_matters(w)) /* only the job that writes there fails */
		return;
	__atomic_store_n(&w->ct->map.table->read_only, true, __ATOMIC_RELEASE);
}

static const char *consequence(const struct writer *w)
{
	return writer_matters(w) ? "the device is read-only now" : "the merge into it fails";
}

void writer_failed(void *arg, int error)
{
	struct writer *w = arg;
	json_object *data = json_object_new_object();

	log_error("%s: metadata could not be written (error %d): %s; check the volume below, then "
		  "take the device down and up again", w->layer->path, -error, consequence(w));
	json_object_object_add(data, "node-name", json_object_new_string(w->layer->node_name));
	json_object_object_add(data, "operation", json_object_new_string("write"));
	json_object_object_add(data, "action", json_object_new_string("report"));
	make_read_only(w);
	target_event(w->ct->ti, "BLOCK_IO_ERROR", data);
	write_ops_run(&w->ct->log_waiters);
}

/*
 * The corrupt bit, as QEMU sets it: the next opener refuses to write before a
 * repair. One set in the header's sector, by the common write order.
 */
static void mark_corrupt(struct writer *w)
{
	__be64 word;

	if (!w->header || w->img->version < 3 || w->img->incompatible & QCOW2_INCOMPAT_CORRUPT)
		return;
	w->img->incompatible |= QCOW2_INCOMPAT_CORRUPT;
	word = __builtin_bswap64(w->img->incompatible);
	if (!meta_txn_set(w->meta, w->header,
			  offsetof(struct qcow2_disk_header, incompatible_features), &word,
			  sizeof(word)))
		meta_kick(w->meta);
}

/* Whose header is being closed has written all it will: its layer is as good as sealed. */
static struct writer *writer_of(const struct layer *l)
{
	return l->writer && !l->writer->closing ? l->writer : NULL;
}

static void corrupt(struct chain_target *ct, struct layer *l, u64 host, const char *what)
{
	struct writer *w = writer_of(l);
	json_object *data = json_object_new_object();

	l->corrupt = true;
	json_object_object_add(data, "node-name", json_object_new_string(l->node_name));
	json_object_object_add(data, "msg", json_object_new_string(what));
	json_object_object_add(data, "offset", json_object_new_int64(host));
	json_object_object_add(data, "fatal", json_object_new_boolean(w != NULL));
	if (w) {
		mark_corrupt(w);
		make_read_only(w);
	}
	target_event(ct->ti, "BLOCK_IMAGE_CORRUPTED", data);
}

void chain_corrupt(struct chain_target *ct, u16 layer, u64 guest, u64 host, const char *what)
{
	struct layer *l = ct->map.table->by_id[layer];
	const struct writer *w = writer_of(l);

	if (l->corrupt)
		return;
	log_error("%s: corrupt at guest offset %llu: host offset %llu: %s; reads there fail%s%s; "
		  "run qchainctl check on it",
		  l->path, (unsigned long long)guest, (unsigned long long)host, what,
		  w ? ", " : "", w ? consequence(w) : "");
	corrupt(ct, l, host, what);
}

void writer_corrupt(struct writer *w, u64 host, const char *what)
{
	if (w->layer->corrupt)
		return;
	log_error("%s: corrupt at host offset %llu: %s; %s; take the device down and run "
		  "qchainctl check --repair on it", w->layer->path, (unsigned long long)host,
		  what, consequence(w));
	corrupt(w->ct, w->layer, host, what);
}

void writer_miscounted(struct writer *w)
{
	const char *what;
	u64 host;

	refcounts_fault(w->rc, &host, &what);
	writer_corrupt(w, host, what);
}
