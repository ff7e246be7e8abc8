// SPDX-License-Identifier: GPL-2.0-or-later
/* Snapshots and merges of the simulated device, step by step as qchainctl makes them. */
#include "sim.h"

#include "chain-private.h"

#include <errno.h>
#include <qchain/online.h>

/*
 * Snapshot (rules D1, D3, D4): the overlay is formatted and durable; the record
 * calls it the top; it is published. Commit (D2): the record forgets what it will
 * spoil, before the first byte. Between the steps the guest goes on, and each may
 * be the last one before a cut. A record write is one step.
 */

#define MAX_LOST 64u

enum snapshot_phase { SNAPSHOT_IDLE, SNAPSHOT_FORMATTED, SNAPSHOT_RECORDED };
enum online_phase { ONLINE_IDLE, ONLINE_WAITS, ONLINE_JOB, ONLINE_PIVOTED, ONLINE_MERGED };

enum merge_kind { MERGE_STREAM, MERGE_COMMIT, MERGE_ACTIVE };

static struct {
	enum snapshot_phase snapshot; /* also beside merges */
	enum online_phase phase;
	struct image *overlay;
	bool orphan; /* a cut has left it, formatted and not recorded */
	char old_top[SIM_NAME];
	struct job *job;
	struct job *second; /* a stream beside it; NULL: none */
	bool cancels; /* before its end, perhaps */
	u32 beside; /* so much may begin beside it */
	enum merge_kind kind;
	char merged_top[SIM_NAME]; /* commit: what base will show */
	char base[SIM_NAME];
	char dead[SIM_NAME]; /* the image that goes when it is done: a delete; "": none */
	struct sim_view *lost[MAX_LOST];
	u32 nr_lost;
} online;

u32 online_snapshots, online_streams, online_commits, online_pivots, online_growths, online_beside;

static struct chain_target *chain_of(void)
{
	return device.ti->private;
}

bool online_busy(void)
{
	return online.phase != ONLINE_IDLE || online.snapshot != SNAPSHOT_IDLE || revert_busy();
}

bool online_merges(void)
{
	return online.phase == ONLINE_JOB;
}

/* ---- snapshot ------------------------------------------------------------------ */

static void snapshot_format(void)
{
	snprintf(online.old_top, sizeof(online.old_top), "%s", sim_top);
	online.overlay = sim_overlay_make(online.old_top);
	if (online.overlay)
		online.snapshot = SNAPSHOT_FORMATTED;
}

void online_record_top(const char *name)
{
	sim_point();
	snprintf(sim_top, sizeof(sim_top), "%s", name);
}

static void snapshot_record(void)
{
	online_record_top(sim_overlay);
	online.snapshot = SNAPSHOT_RECORDED;
}

static u8 *copy_of(const u8 *from, u64 bytes)
{
	u8 *to = malloc(bytes);

	memcpy(to, from, bytes);
	return to;
}

static void add_snapshot_view(void)
{
	struct sim_view *before = view_find(online.old_top);

	if (before) /* it was one, until a commit made it the top */
		view_remove(before);
	view_add(online.old_top, copy_of(sim_now_view.initial, sim_now_view.bytes),
		 sim_now_view.bytes, ++sim_time)->since = sim_now_view.since;
}

/* Recorded and not published: the empty overlay will be served (rule D5). */
void online_cut(void)
{
	if (online.snapshot == SNAPSHOT_RECORDED)
		add_snapshot_view();
	online.orphan = online.snapshot == SNAPSHOT_FORMATTED;
	online.dead[0] = 0;
	revert_cut();
	online.snapshot = SNAPSHOT_IDLE;
	online.phase = ONLINE_IDLE;
	online.second = NULL;
}

void online_after_cut(void)
{
	if (online.orphan)
		sim_overlay_remove();
	online.orphan = false;
}

static void snapshot_publish(void)
{
	struct qc_err err = { 0 };
	int ret = chain_snapshot(device.ti, NULL, online.overlay, sim_path(sim_top), sim_top, false,
				 &err);

	if (ret) {
		image_close(online.overlay);
		/* until then a cut finds the overlay as the top */
		online_record_top(online.old_top);
		online.snapshot = SNAPSHOT_IDLE;
		sim_overlay_remove();
		if (!plan.faults && ret != -EBUSY)
			fail("snapshot: %s", err.msg);
		return;
	}
	online.snapshot = SNAPSHOT_IDLE;
	add_snapshot_view();
	if (online.phase == ONLINE_JOB && online.kind == MERGE_ACTIVE)
		online.kind = MERGE_COMMIT; /* of what was the active layer (D6) */
	online_beside += online.phase == ONLINE_JOB;
	online_snapshots++;
	if (sim_verbose && !sim_judging)
		printf("snapshot %s at %llu\n", online.old_top, (unsigned long long)sim_time);
}

/* ---- merges -------------------------------------------------------------------- */

/* How the header will name @disk: sometimes so long that it lies in another sector. */
static const char *backing_name(const char *disk)
{
	static char name[400];
	u32 bytes = chance(50) ? 0 : rnd(350) & ~1u, i;

	for (i = 0; i < bytes; i += 2)
		memcpy(name + i, "./", 2);
	snprintf(name + bytes, sizeof(name) - bytes, "%s", disk);
	return name;
}

/* Bytes a second; 0: no limit. */
static u64 draw_speed(void)
{
	return (u64[]){ 0, 1 * MiB, 20 * MiB }[rnd(3)];
}

/* @base: that depth stays; the number of layers: none */
static void stream_range(u32 into, u32 base, u64 speed)
{
	const struct chain_layer *layers = chain_of()->chain->layers;
	u32 nr = chain_of()->chain->nr_layers;
	struct job_options job = { .manual_dismiss = true, .speed = speed };
	struct chain_stream_options o = { .node = layers[into].node_name };
	struct qc_err err = { 0 };

	if (base < nr) {
		o.base_node = layers[base].node_name;
		o.backing_name = backing_name(sim_device_layer(base)->name);
	}
	online.kind = MERGE_STREAM;
	if (!chain_stream(device.ti, device.jobs, &o, &job, &online.job, &err))
		online.phase = ONLINE_JOB;
	if (sim_verbose && !sim_judging)
		printf("stream into layer %u from above layer %u of %u: %s\n", into, base, nr,
		       online.job ? "begun" : err.msg);
}

static void stream_begin(u32 nr)
{
	u64 speed = draw_speed(); /* first: kept seeds stay what they are */
	u32 into = nr > 2 && chance(40) ? rnd(nr - 1) : 0;

	stream_range(into, into + 2 + (chance(60) ? 0 : rnd(nr - into - 1)), speed);
}

static u32 depth_of(const char *disk)
{
	struct sim_disk *d;
	u32 depth;

	for (depth = 0; (d = sim_device_layer(depth)); depth++)
		if (!strcmp(d->name, disk))
			break;
	return depth;
}

/*
 * From the first byte on these are no restore points: the record says so before
 * (D2). What left the chain earlier may stand on them, and was removed (D3).
 */
static void forget_views(u32 top, u32 base)
{
	struct sim_view *view;
	u32 depth;

	sim_point();
	online.nr_lost = 0;
	cds_list_for_each_entry(view, &sim_views, node) {
		depth = depth_of(view->disk);
		if (depth <= top || (depth > base && sim_device_layer(depth)))
			continue;
		view->removed = !sim_device_layer(depth);
		if (view->lost)
			continue;
		if (online.nr_lost == MAX_LOST)
			fail("more than %u snapshots are lost", MAX_LOST);
		view->lost = true;
		online.lost[online.nr_lost++] = view;
	}
}

/* Before its first byte is written, and for good if it does not come to its end. */
static void base_may_grow(void)
{
	const struct sim_view *top = online.kind == MERGE_ACTIVE ? &sim_now_view :
						    view_find(online.merged_top);
	struct sim_view *base = view_find(online.base);

	if (top && base)
		base->may_grow_to = max(base->may_grow_to, top->bytes);
}

static void commit_range(u32 top, u32 base)
{
	const struct chain_layer *layers = chain_of()->chain->layers;
	struct job_options job = { .manual_dismiss = true, .speed = draw_speed() };
	struct chain_commit_options o = { .node = layers[0].node_name };
	struct qc_err err = { 0 };
	u32 i;

	o.top_node = layers[top].node_name;
	o.base_node = layers[base].node_name;
	o.backing_name = top ? backing_name(sim_device_layer(base)->name) : NULL;
	snprintf(online.merged_top, SIM_NAME, "%s", sim_device_layer(top)->name);
	snprintf(online.base, SIM_NAME, "%s", sim_device_layer(base)->name);
	online.kind = top ? MERGE_COMMIT : MERGE_ACTIVE;
	forget_views(top, base);
	online.phase = ONLINE_IDLE;
	base_may_grow();
	if (!chain_commit(device.ti, device.jobs, &o, &job, &online.job, &err))
		online.phase = ONLINE_JOB;
	for (i = 0; !online.job && i < online.nr_lost; i++)
		online.lost[i]->lost = online.lost[i]->removed;
	if (sim_verbose && !sim_judging)
		printf("commit of %s into %s: %s\n", online.merged_top, online.base,
		       online.job ? "begun" : err.msg);
}

static void commit_begin(u32 nr)
{
	u32 top = nr > 2 && chance(60) ? 1 + rnd(nr - 2) : 0;

	if (plan.merges == MERGES_ACTIVE)
		top = 0;
	else if (plan.merges == MERGES_MIDDLE && nr > 2)
		top = 1 + rnd(nr - 2);
	if (plan.commit_top && plan.commit_base < nr)
		commit_range(plan.commit_top, plan.commit_base);
	else
		commit_range(top, top + 1 + rnd(nr - top - 1));
}

/* At least as long as the top; longer, if an earlier commit grew it and did not end. */
static u64 grown_base_bytes(const struct sim_view *base, const struct sim_view *top)
{
	u64 bytes = chain_of()->chain->layers[depth_of(base->disk)].img->virtual_size;
	u64 least = max(base->bytes, top->bytes);

	if (bytes != least && bytes != base->may_grow_to)
		fail("%s has %llu bytes after a commit, expected %llu or %llu", base->disk,
		     (unsigned long long)bytes, (unsigned long long)least,
		     (unsigned long long)base->may_grow_to);
	return bytes;
}

/* The base shows what the topmost merged layer shows; behind the end of that, zeroes (D4). */
static void commit_is_done(void)
{
	const struct sim_view *top = view_find(online.merged_top);
	struct sim_view *base = view_find(online.base);

	online_commits++;
	if (!top || !base || top->lost)
		return;
	base->bytes = grown_base_bytes(base, top);
	free(base->initial);
	base->initial = calloc(1, base->bytes);
	memcpy(base->initial, top->initial, top->bytes);
	base->since = top->since;
	base->instant = top->instant;
	base->sealed = top->sealed;
	base->lost = false;
}

/* qchainctl makes room before (M10); here nobody does, and many merges take what there is. */
static bool may_run_full(int error)
{
	return plan.small_lv || (plan.lv && error == -ENOSPC);
}

static void job_is_done(void)
{
	struct qc_err err = { 0 };
	int ret = online.job->ret;

	if (ret && ret != -ECANCELED && !plan.faults && !may_run_full(ret))
		fail("merge: %s", online.job->err.msg);
	if (sim_verbose && !sim_judging)
		printf("merge: %d\n", ret);
	if (job_dismiss(online.job, &err))
		fail("dismiss: %s", err.msg);
	online.job = NULL;
	online.phase = !ret && online.kind == MERGE_ACTIVE ? ONLINE_PIVOTED : ONLINE_IDLE;
	if (!ret && online.kind == MERGE_COMMIT)
		commit_is_done();
	else if (!ret && online.kind == MERGE_STREAM)
		online_streams++;
	if (ret)
		online.dead[0] = 0;
	else if (online.dead[0] && online.phase == ONLINE_IDLE)
		online.phase = ONLINE_MERGED;
}

/* The image, which is no layer any more, goes with its name, and what stands on it (E1, E2). */
static void record_deleted(void)
{
	sim_bury_others();
	online.dead[0] = 0;
	online.phase = ONLINE_IDLE;
	online_deletes++;
}

void online_delete(u32 depth)
{
	bool up = chance(50);

	online.cancels = chance(plan.cancel_percent);
	online.beside = chance(plan.beside_percent) ? 1 : 0;
	snprintf(online.dead, SIM_NAME, "%s", sim_device_layer(depth - !up)->name);
	if (up)
		stream_range(depth - 1, depth + 1, draw_speed());
	else
		commit_range(depth - 1, depth);
	if (online.phase != ONLINE_JOB)
		online.dead[0] = 0;
}

/* The base is the active layer: the record says so, then the old top's header goes (D1). */
static void record_pivot(void)
{
	struct sim_disk *old = sim_disk_find(online.merged_top);

	online_record_top(online.base);
	old->formatted = false;
	online_deletes += online.dead[0] != 0;
	online.dead[0] = 0;
	online.phase = ONLINE_IDLE;
	online_pivots++;
}

/* Below what the active layer is committed into, where two layers are left. */
static u32 second_into(u32 nr)
{
	u32 above = online.kind == MERGE_ACTIVE ? depth_of(online.base) : nr;

	return above + 2 < nr && chance(70) ? above + 1 + rnd(nr - above - 2) : rnd(nr - 1);
}

/* A stream of other layers begins beside it; most have one in common. */
static void second_begin(void)
{
	const struct chain_layer *layers = chain_of()->chain->layers;
	u32 nr = chain_of()->chain->nr_layers;
	u32 into = second_into(nr), base = into + 1 + rnd(nr - into);
	struct job_options job = { .manual_dismiss = true, .speed = draw_speed() };
	struct chain_stream_options o = { .node = layers[into].node_name };
	struct qc_err err = { 0 };

	if (base < nr)
		o.base_node = layers[base].node_name;
	if (!chain_stream(device.ti, device.jobs, &o, &job, &online.second, &err))
		online_beside++;
	if (sim_verbose && !sim_judging)
		printf("beside it, stream into layer %u of %u: %s\n", into, nr,
		       online.second ? "begun" : err.msg);
}

static void second_look(void)
{
	if (online.second->state == JOB_CREATED) {
		job_start(online.second);
	} else if (online.second->state == JOB_CONCLUDED) {
		if (online.second->ret && !plan.faults && !may_run_full(online.second->ret))
			fail("second merge: %s", online.second->err.msg);
		job_dismiss(online.second, NULL);
		online.second = NULL;
	}
}

/* What comes beside a merge; a pivot would take away what the overlay stands on. */
static void beside_begin(void)
{
	u32 nr = chain_of()->chain->nr_layers;

	if (!online.beside || rnd(1000) >= plan.online_permille ||
	    (online.job->state != JOB_RUNNING && online.job->state != JOB_READY))
		return;
	online.beside--;
	if (nr < 7 && online.snapshot == SNAPSHOT_IDLE && chance(60))
		snapshot_format();
	else if (nr > 2 && !online.second)
		second_begin();
}

static void job_look(void)
{
	if (online.job->state == JOB_CREATED)
		job_start(online.job);
	else if (online.job->state == JOB_READY && online.snapshot == SNAPSHOT_IDLE && chance(5))
		job_complete(online.job, NULL);
	else if (online.job->state == JOB_CONCLUDED)
		job_is_done();
	else if (online.cancels && chance(1))
		job_cancel(online.job, true, NULL);
}

static void merge_begin(void)
{
	u32 nr = chain_of()->chain->nr_layers;
	bool commits;

	online.cancels = chance(plan.cancel_percent);
	online.beside = chance(plan.beside_percent) ? 1 + rnd(2) : 0;
	commits = nr > 1 && chance(80);
	if (plan.merges != MERGES_ANY)
		commits = nr > 1 && plan.merges != MERGES_STREAM;
	if (commits)
		online.phase = ONLINE_WAITS;
	else if (nr > 1)
		stream_begin(nr);
}

/* ---- growing ------------------------------------------------------------------- */

/* Its LV before, as qchainctl does it (promise R6). */
static void grow_disk(struct sim_disk *d, u64 bytes)
{
	if (d->lv)
		sim_disk_extend(d, min(bytes, SIM_MAX_DISK - d->size));
}

static void device_grow(void)
{
	u64 more = (1 + rnd(chance(50) ? 16 : 1024)) * SIM_BLOCK;
	u64 bytes = sim_now_view.bytes + more;
	struct qc_err err = { 0 };
	int ret;

	grow_disk(sim_device_layer(0), 2 * more + 256 * KiB);
	model_grows(bytes);
	ret = chain_resize(device.ti, chain_of()->chain->layers[0].node_name, bytes, &err);
	if (!ret) {
		model_grown(bytes);
		online_growths++;
	} else if (!plan.faults && ret != -ENOSPC && ret != -EBUSY && ret != -EFBIG &&
		   ret != -EOPNOTSUPP) {
		fail("resize: %s", err.msg);
	}
	if (sim_verbose && !sim_judging)
		printf("grows by %llu: %s\n", (unsigned long long)more, ret ? err.msg : "done");
}

/* ---- steps --------------------------------------------------------------------- */

/* What has been sealed is durable for ever. */
static void look_at_seals(void)
{
	struct sim_view *view;

	if (plan.faults || sim_judging || chain_is_sealing(chain_of()))
		return;
	cds_list_for_each_entry(view, &sim_views, node)
		view->sealed = true;
}

static void snapshot_step(void)
{
	if (!chance(20))
		return;
	if (online.snapshot == SNAPSHOT_FORMATTED)
		snapshot_record();
	else
		snapshot_publish();
}

void online_step(void)
{
	look_at_seals();
	if (online.snapshot != SNAPSHOT_IDLE)
		snapshot_step();
	if (revert_busy())
		revert_step();
	if (online.second)
		second_look();
	switch (online.phase) {
	case ONLINE_IDLE:
		if (online_busy() || online.second)
			return;
		if (!plan.nr_online || rnd(1000) >= plan.online_permille)
			return;
		if (plan.grow_percent && chance(plan.grow_percent)) {
			plan.nr_online--;
			device_grow();
			return;
		}
		if (plan.verb_percent && chance(plan.verb_percent))
			verb_begin();
		else if (chain_of()->chain->nr_layers < 7 && !chance(plan.merge_percent))
			snapshot_format();
		else
			merge_begin();
		plan.nr_online -= online_busy();
		return;
	case ONLINE_WAITS: /* until then it is refused, mostly */
		if (!chain_is_sealing(chain_of()) || chance(1))
			commit_begin(chain_of()->chain->nr_layers);
		return;
	case ONLINE_JOB:
		beside_begin();
		job_look();
		return;
	case ONLINE_PIVOTED:
		if (chance(10))
			record_pivot();
		return;
	case ONLINE_MERGED:
		if (chance(10))
			record_deleted();
	}
}

static bool is_over(void *arg)
{
	if (online_busy() || online.second)
		online_step();
	return !online_busy() && !online.second;
}

void online_finish(void)
{
	sim_run_until(is_over, NULL, "a snapshot or a merge comes to its end");
	look_at_seals();
}

static bool is_sealed(void *arg)
{
	return !chain_is_sealing(chain_of());
}

void online_merge_alone(void)
{
	sim_run_until(is_sealed, NULL, "the old top is sealed");
	look_at_seals();
	merge_begin();
	online_finish();
}
