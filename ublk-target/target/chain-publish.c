// SPDX-License-Identifier: GPL-2.0-or-later
/* When a change of mapping is published and acknowledged: once it survives a death. */
#include "chain-private.h"

#include <errno.h>
#include <qchain/mutant.h>
#include <stdlib.h>

/*
 * Early (rule A1): when its entries are in the intent log, or at once where
 * nothing but a flush has to survive the daemon. The transaction commits when it
 * is large, or old, or somebody flushes; the cache shows the entries meanwhile.
 * All operations that link in one turn of the loop are published together.
 *
 * Late: when step 3 was written. For images that cannot tell the next opener that
 * nobody else wrote them (version 2), and with lazy refcounts.
 */

/* ---- the map ------------------------------------------------------------------------ */

static int add_update(struct chain_target *ct, const struct cluster_plan *p, u16 layer, u64 host)
{
	u64 end = min(p->valid_end, ct->map.size_bytes);
	struct map_update *larger;

	if (ct->nr_updates == ct->room_updates) {
		ct->room_updates = ct->room_updates ? ct->room_updates * 2 : 256;
		larger = realloc(ct->updates, ct->room_updates * sizeof(*larger));
		if (!larger)
			return -ENOMEM;
		ct->updates = larger;
	}
	ct->updates[ct->nr_updates++] = (struct map_update){
		.offset = p->valid_start, .len = end - p->valid_start,
		.extent = { .host = host, .layer = layer, .kind = p->kind, .flags = p->flags },
	};
	return 0;
}

static void add_updates(struct write_op *op)
{
	struct chain_target *ct = op->writer->ct;
	u32 i;

	for (i = 0; i < op->nr_clusters; i++) {
		const struct cluster_plan *p = &op->plans[i];
		u64 cluster = (op->first_cluster + i) << op->writer->img->cluster_bits;

		if (p->changed && p->valid_start < ct->map.size_bytes &&
		    add_update(ct, p, op->writer->id, p->host + (p->valid_start - cluster)))
			abort(); /* an old mapping must not stay published */
	}
}

static int update_cmp(const void *a, const void *b)
{
	const struct map_update *x = a, *y = b;

	return x->offset < y->offset ? -1 : x->offset > y->offset;
}

/* Publish all that has linked at once, then let go. */
static void publish(struct writer *w)
{
	struct chain_target *ct = w->ct;
	struct write_op *op, *tmp;
	CDS_LIST_HEAD(linked);

	cds_list_splice(&w->linked, &linked);
	CDS_INIT_LIST_HEAD(&w->linked);
	ct->nr_updates = 0;
	cds_list_for_each_entry(op, &linked, node)
		if (!w->hidden && op->type != OP_UNMAP)
			add_updates(op);
	if (ct->nr_updates)
		qsort(ct->updates, ct->nr_updates, sizeof(*ct->updates), update_cmp);
	map_apply(&ct->map, ct->updates, ct->nr_updates);
	chain_retire(ct);
	cds_list_for_each_entry_safe(op, tmp, &linked, node) {
		cds_list_del(&op->node);
		write_op_done(op, 0);
	}
}

static void publish_run(struct loop *loop, struct loop_msg *msg)
{
	struct writer *w = container_of(msg, struct writer, publish);

	w->publishing = false;
	publish(w);
}

/* ---- early -------------------------------------------------------------------------- */

/* Full of entries that nobody can write any more: then nothing goes on. */
static bool is_stuck(const struct chain_target *ct)
{
	const struct writer *w;

	chain_for_each_writer(w, ct)
		if (w->failed && writer_matters(w))
			return true;
	return false;
}

static void commit_all(struct chain_target *ct)
{
	struct writer *w;

	chain_for_each_writer(w, ct)
		if (w->early)
			meta_kick(w->meta);
}

int writer_reserve_log(struct write_op *op)
{
	struct chain_target *ct = op->writer->ct;

	if (!op->writer->early || !ct->log || intent_log_has_room(ct->log, op->nr_clusters))
		return 0;
	if (is_stuck(ct))
		return -EIO;
	cds_list_add_tail(&op->node, &ct->log_waiters);
	commit_all(ct);
	return -EAGAIN;
}

static void log_op(struct write_op *op)
{
	struct writer *w = op->writer;
	u64 mark = 0;
	u32 i;

	for (i = 0; i < op->nr_clusters; i++) {
		const struct cluster_plan *p = &op->plans[i];

		if (p->changed)
			mark = intent_log_append(w->ct->log, w->log_layer, &(struct intent){
				.cluster = op->first_cluster + i, .entry = p->entry,
				.bitmap = p->bitmap }, 1);
	}
	meta_txn_mark(w->meta, mark);
	if (MUTANT(LOG_DROPPED_EARLY))
		intent_log_drop(w->ct->log, w->log_layer, mark);
}

/*
 * Queues must know of uncommitted mappings before they can see one: a FLUSH that
 * follows its acknowledgement then comes to chain_flush().
 */
static void acknowledge_early(struct write_op *op)
{
	struct writer *w = op->writer;

	if (w->ct->log && !MUTANT(ACK_BEFORE_LOG))
		log_op(op);
	__atomic_store_n(&w->ct->uncommitted, true, __ATOMIC_RELEASE);
	cds_list_add_tail(&op->node, &w->linked);
	if (!w->publishing)
		loop_send(w->ct->loop, &w->publish, publish_run);
	w->publishing = true;
	meta_kick_later(w->meta);
}

/* ---- late ---------------------------------------------------------------------------- */

static void op_linked(struct meta_join *join, int error)
{
	struct write_op *op = container_of(join, struct write_op, join);

	if (!error) {
		cds_list_add_tail(&op->node, &op->writer->linked);
		return;
	}
	op->error = error; /* by its driver: it may be what kicked the commit */
	write_op_run(op);
}

void writer_acknowledge(struct write_op *op)
{
	if (op->writer->early) {
		acknowledge_early(op);
		return;
	}
	op->join.fn = op_linked;
	meta_txn_join(op->writer->meta, &op->join);
	meta_kick(op->writer->meta);
}

/* ---- a transaction is linked ----------------------------------------------------------- */

static bool has_uncommitted(const struct chain_target *ct)
{
	const struct writer *w;

	chain_for_each_writer(w, ct)
		if (w->early && writer_matters(w) && !meta_clean(w->meta))
			return true;
	return false;
}

static void writer_linked(void *arg, u64 mark)
{
	struct writer *w = arg;
	struct chain_target *ct = w->ct;

	if (!w->early) {
		publish(w);
		return;
	}
	if (ct->log && mark)
		intent_log_drop(ct->log, w->log_layer, mark);
	if (!has_uncommitted(ct))
		__atomic_store_n(&ct->uncommitted, false, __ATOMIC_RELEASE);
	write_ops_run(&ct->log_waiters);
}

const struct meta_ops writer_meta_ops = {
	.linked = writer_linked,
	.failed = writer_failed,
};
