// SPDX-License-Identifier: GPL-2.0-or-later
/* Merges beside each other and beside snapshots: who may change the order of the layers. */
#include "chain-merge.h"

#include <errno.h>
#include <qchain/mutant.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/*
 * The order of the layers is changed by one at a time: a snapshot, or a merge in its
 * last step. Whoever reads the order on the control thread, to begin something that
 * counts on it, keeps the others from changing it meanwhile. All of them have the
 * *turn* for that; nobody has it while data is moved, or during a grace.
 *
 * Two merges may run when they share no layer (rule D6). A merge has, beside what is
 * merged, the layer that receives, and, of a commit, the one above whose header it
 * rewrites. What a stream stays upon is not its own: only what is below that, and
 * its header, may change.
 *
 * A snapshot moves all layers down by one. Only a merge that works on the active layer
 * notices more than that: it has to rest first, and goes on below the overlay.
 *   stream into it            goes on as one into a layer of the middle
 *   commit of it              gives the base up, as when it is cancelled; what is left
 *                             goes on as a commit of a layer below the active one
 * Both begin anew when the former active layer, and the base, have been sealed.
 */

#define TURN_MS 3000u
#define POLL_NS 1000000l

/* ---- the turn --------------------------------------------------------------------- */

bool turn_try(struct chain_target *ct, const char *who)
{
	if (ct->turn)
		return false;
	ct->turn = who;
	return true;
}

void turn_end(struct chain_target *ct)
{
	ct->turn = NULL;
	chain_renames_apply(ct);
}

/* Does @m work on the active layer? */
static bool is_on_top(const struct merge *m)
{
	return m->pivots || (m->up && m->first == 1);
}

struct turn_call {
	struct chain_target *ct;
	bool snapshot;
	int ret;
	char who[QC_MAX_JOB_ID + 1]; /* is waited for */
};

/* Those that work on the active layer: 0 when they do nothing. */
static int rest_of_merges(struct turn_call *call)
{
	struct merge *m;

	cds_list_for_each_entry(m, &call->ct->merges, node) {
		if (!is_on_top(m) ||
		    (m->pivots ? MUTANT(HAND_UNRESTED) : MUTANT(STREAM_UNRESTED)))
			continue;
		snprintf(call->who, sizeof(call->who), "%s", m->job->id);
		if (m->job->state == JOB_PENDING && !m->job->preparing)
			return -EBUSY; /* for as long as nobody finalizes it */
		if (!m->held)
			job_hold(m->job);
		m->held = true;
		if (!transfer_is_at_rest(m->job))
			return -EAGAIN;
	}
	return 0;
}

static void take_run(struct loop *loop, void *arg)
{
	struct turn_call *call = arg;

	call->ret = call->snapshot ? rest_of_merges(call) : 0;
	if (call->ret || turn_try(call->ct, "another command"))
		return;
	snprintf(call->who, sizeof(call->who), "%s", call->ct->turn);
	call->ret = -EAGAIN;
}

static void give_run(struct loop *loop, void *arg)
{
	struct turn_call *call = arg;
	struct merge *m, *tmp;

	if (!call->ret)
		turn_end(call->ct);
	cds_list_for_each_entry_safe(m, tmp, &call->ct->merges, node) {
		if (!m->held)
			continue;
		m->held = false;
		job_unhold(m->job);
	}
}

void chain_turn_give(struct chain_target *ct)
{
	loop_call(ct->loop, give_run, &(struct turn_call){ .ct = ct });
}

int chain_turn_take(struct chain_target *ct, bool snapshot, struct qc_err *err)
{
	const struct timespec pause = { .tv_nsec = POLL_NS };
	struct turn_call call = { .ct = ct, .snapshot = snapshot };

	for (u32 ms = 0; ms < TURN_MS; ms++) {
		loop_call(ct->loop, take_run, &call);
		if (call.ret != -EAGAIN)
			break;
		nanosleep(&pause, NULL);
	}
	if (!call.ret)
		return 0;
	loop_call(ct->loop, give_run, &call);
	if (call.ret == -EBUSY)
		return qc_err_set(err, -EBUSY, "job %s works on the active layer and waits for "
				  "its last step, must have ended; finalize it, or cancel it",
				  call.who);
	return qc_err_set(err, -EBUSY, "job %s works on the order of the layers and has not "
			  "come to a rest within %u s (a volume may be slow); try again",
			  call.who, TURN_MS / 1000);
}

/* ---- which layers are whose ------------------------------------------------------- */

static u32 first_of(const struct merge *m)
{
	return m->first - 1;
}

static u32 last_of(const struct merge *m)
{
	return m->first + m->nr - m->up;
}

struct join_call {
	struct merge *m;
	char who[QC_MAX_JOB_ID + 1];
	char shared[256];
	int ret;
};

static void join_run(struct loop *loop, void *arg)
{
	struct join_call *call = arg;
	struct merge *m = call->m, *other;
	u32 depth;

	cds_list_for_each_entry(other, &m->ct->merges, node) {
		depth = max(first_of(m), first_of(other));
		if (depth > min(last_of(m), last_of(other)) || MUTANT(LAYERS_SHARED))
			continue;
		call->ret = -EBUSY;
		snprintf(call->who, sizeof(call->who), "%s", other->job->id);
		snprintf(call->shared, sizeof(call->shared), "%s",
			 m->ct->chain->layers[depth].path);
		return;
	}
	cds_list_add_tail(&m->node, &m->ct->merges);
}

int merge_join(struct merge *m, struct qc_err *err)
{
	struct join_call call = { .m = m };

	loop_call(m->ct->loop, join_run, &call);
	if (!call.ret)
		return 0;
	return qc_err_set(err, call.ret, "%s: job %s works on it, or rewrites its header; two "
			  "merges must share no layer; wait for the job, or cancel it",
			  call.shared, call.who);
}

void merge_leave(struct merge *m)
{
	cds_list_del_init(&m->node);
}

void merge_layers_gone(struct merge *m, u32 nr)
{
	struct merge *other;

	cds_list_for_each_entry(other, &m->ct->merges, node)
		if (other != m && other->first > m->first)
			other->first -= nr;
	m->nr = 0;
	if (!m->pivots)
		merge_leave(m);
	turn_end(m->ct);
}

/* ---- the views of all merges ------------------------------------------------------ */

void chain_layers_changed(struct chain_target *ct)
{
	struct merge *m;

	ct->generation++;
	cds_list_for_each_entry(m, &ct->merges, node)
		if (m->view)
			m->view->generation++;
}

void merge_forget_ids(struct chain_target *ct, const bool *layers)
{
	struct merge *m;

	map_forget(&ct->map, layers);
	chain_retire(ct);
	cds_list_for_each_entry(m, &ct->merges, node) {
		if (!m->view)
			continue;
		map_forget(&m->view->map, layers);
		chain_retire(m->view);
	}
}

/* The depth of layer @id in @t, or t->nr. */
static u32 depth_in(const struct layer_table *t, u16 id)
{
	u32 depth = 0;

	while (depth < t->nr && t->order[depth] != id)
		depth++;
	return depth;
}

static u32 count_views(const struct chain_target *ct)
{
	const struct merge *m;
	u32 nr = 0;

	cds_list_for_each_entry(m, &ct->merges, node)
		nr += m->view != NULL;
	return nr;
}

int merge_views_plan(struct merge *m)
{
	u16 id = m->ct->map.table->order[m->first];
	struct merge *other;

	m->views = calloc(count_views(m->ct) + 1, sizeof(*m->views));
	if (!m->views)
		return -ENOMEM;
	cds_list_for_each_entry(other, &m->ct->merges, node) {
		struct view_change *change = &m->views[m->nr_views];
		const struct layer_table *t = other->view ? other->view->map.table : NULL;

		if (!t || other == m || depth_in(t, id) == t->nr)
			continue;
		change->of = other;
		change->table = layer_table_next(t, depth_in(t, id), m->nr, NULL);
		if (!change->table)
			return -ENOMEM;
		m->nr_views++;
	}
	return 0;
}

void merge_views_publish(struct merge *m)
{
	struct merge *other;

	for (u32 i = 0; i < m->nr_views; i++) {
		struct view_change *change = &m->views[i];

		cds_list_for_each_entry(other, &m->ct->merges, node) {
			struct layer_table *old = other->view ? other->view->map.table : NULL;

			if (other != change->of || !old) /* it may have ended meanwhile */
				continue;
			layer_table_follow(change->table, old);
			other->view->map.table = change->table;
			change->table = old;
		}
	}
}

void merge_views_free(struct merge *m)
{
	for (u32 i = 0; i < m->nr_views; i++)
		layer_table_free(m->views[i].table);
	free(m->views);
	m->views = NULL;
	m->nr_views = 0;
}

/* ---- a snapshot beside them ------------------------------------------------------- */

/* What was done to the active layer goes on with a layer below: it begins anew there. */
static void move_below(struct merge *m)
{
	struct transfer_options options;

	if (m->base)
		commit_end(m);
	handover_free(m->handover);
	m->handover = NULL;
	if (m->pivots) { /* what was the active layer goes with those between */
		m->pivots = false;
		m->first--;
		m->nr++;
	}
	m->late = LATE_WAITS;
	merge_transfer(m, &options);
	transfer_restart(m->job, &options);
}

void merges_before_switch(struct chain_target *ct)
{
	struct merge *m;

	cds_list_for_each_entry(m, &ct->merges, node)
		if (is_on_top(m))
			move_below(m);
}

void merges_after_switch(struct chain_target *ct)
{
	struct merge *m;

	cds_list_for_each_entry(m, &ct->merges, node)
		m->first++;
}
