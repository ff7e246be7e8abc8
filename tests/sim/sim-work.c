// SPDX-License-Identifier: GPL-2.0-or-later
/* Cases of one kind of work: short lives, and what happens to chains that are busy. */
#include "sim.h"

/* ---- short lives: one kind of work each --------------------------------------------------- */

static void make_quiet(void)
{
	plan.online_permille = 0;
	plan.nr_online = 0;
}

static void make_trims(void)
{
	make_quiet();
	plan.trim_percent = 20;
}

static void make_snapshots(void)
{
	plan.lv = false; /* overlays are volumes of many MiB, in each life */
	plan.merge_percent = 0;
}

static void make_streams(void)
{
	plan.merges = MERGES_STREAM;
}

static void make_commits(void)
{
	plan.merges = MERGES_MIDDLE;
}

static void make_active(void)
{
	plan.merges = MERGES_ACTIVE;
	for (u32 i = 0; i < plan.nr_layers; i++)
		plan.layers[i].snapshot = false;
}

static void make_growths(void)
{
	struct sim_layer *top = &plan.layers[plan.nr_layers - 1];

	plan.grow_percent = 100;
	if (plan.faults)
		return;
	top->snapshot &= !top->v2; /* the size of such an image is fixed */
	plan.layers[1].size += sim_seed % 3 * 32 * KiB; /* it has something behind the end */
	plan.nr_ops = 60;
	plan.pace_permille = 400;
}

static void make_deletes(void)
{
	plan.verb_percent = 100;
	plan.revert_percent = 0;
}

static void make_reverts(void)
{
	plan.lv = false;
	plan.verb_percent = 100;
	plan.revert_percent = 100;
}

/* Of base <- sn1 <- sn2 <- sn3 <- active. */
static void make_commit_of(u32 top, u32 base)
{
	make_commits();
	plan.nr_layers = 5;
	plan.layers[3] = plan.layers[0];
	plan.layers[4] = plan.layers[1];
	plan.commit_top = top;
	plan.commit_base = base;
}

static void make_commit_1(void)
{
	make_commit_of(1, 4);
}

static void make_commit_2(void)
{
	make_commit_of(2, 4);
}

static void make_commit_3(void)
{
	make_commit_of(3, 4);
}

static void make_commit_4(void)
{
	make_commit_of(2, 3);
}

static void make_commit_5(void)
{
	make_commit_of(1, 2);
}

static void make_commit_6(void)
{
	make_commit_of(1, 3);
}

/* With a snapshot, or another merge, beside it. */
static void make_stream_beside(void)
{
	make_streams();
	plan.beside_percent = 100;
	plan.nr_ops = 60;
}

static void make_commit_beside(void)
{
	make_commit_of(2, 3);
	plan.beside_percent = 100;
	plan.nr_ops = 60;
}

static void make_active_beside(void)
{
	make_active();
	plan.beside_percent = 100;
	plan.nr_ops = 60;
}

/* ---- chains that are busy: longer lives, with what was drawn otherwise ------------------- */

/* Much happens to the layers, and the guest is slow. */
static void make_busy_chain(void)
{
	plan.online_permille = 50;
	plan.nr_online = 12;
	plan.nr_ops = 400;
	plan.pace_permille = 50;
	plan.small_lv = false;
	plan.lazy_flush = 0;
}

/*
 * Small writes in place, to clusters of which others want the rest, and many snapshots:
 * what was under way when one was taken.
 */
static void make_overwrites(void)
{
	plan.nr_layers = 1;
	plan.layers[0] = (struct sim_layer){ .cluster = 4096, .refcount_bits = 16,
					     .size = 64 * KiB };
	plan.lv = plan.small_lv = false;
	plan.cache_kib = 4096;
	plan.online_permille = 50;
	plan.merge_percent = 30;
	plan.nr_online = 12;
	plan.nr_ops = 600;
	plan.window = 30;
	plan.pace_permille = 400;
	plan.hot_sectors = 24;
	plan.trim_percent = 0;
	plan.lazy_device = plan.lazy_flush = 0;
	plan.faults = false;
	sim_faults_draw(false);
}

static void make_verbs(void)
{
	make_busy_chain();
	plan.verb_percent = 50;
}

static void make_beside(void)
{
	make_busy_chain();
	plan.beside_percent = 100;
	plan.merge_percent = 90;
}

/* ---- which ------------------------------------------------------------------------ */

#define MAX_TRIES 20u
#define NR_BY_SEED 7u /* with -f: the first ones */

static const struct sim_work {
	const char *name;
	void (*make)(void);
	const u32 *done; /* of what there must be one in the end; NULL: nothing */
	bool is_busy;
} works[] = {
	{ "write", make_quiet, NULL },
	{ "trim", make_trims, NULL },
	{ "snapshot", make_snapshots, &online_snapshots },
	{ "stream", make_streams, &online_streams },
	{ "commit", make_commits, &online_commits },
	{ "active", make_active, &online_pivots },
	{ "resize", make_growths, &online_growths },
	{ "delete", make_deletes, &online_deletes },
	{ "revert", make_reverts, &online_reverts },
	{ "commit-1", make_commit_1, &online_commits },
	{ "commit-2", make_commit_2, &online_commits },
	{ "commit-3", make_commit_3, &online_commits },
	{ "commit-4", make_commit_4, &online_commits },
	{ "commit-5", make_commit_5, &online_commits },
	{ "commit-6", make_commit_6, &online_commits },
	{ "stream-beside", make_stream_beside, NULL },
	{ "commit-beside", make_commit_beside, NULL },
	{ "active-beside", make_active_beside, NULL },
	{ "verbs", make_verbs, NULL, .is_busy = true },
	{ "beside", make_beside, NULL, .is_busy = true },
	{ "overwrites", make_overwrites, NULL, .is_busy = true },
};

static const struct sim_work *work;

bool sim_work_choose(const char *name)
{
	for (work = works; work < works + ARRAY_SIZE(works); work++)
		if (!strcmp(work->name, name))
			return true;
	work = NULL;
	return false;
}

static void make_short(bool faults)
{
	u32 i;

	/* two below what the active layer is committed into: they may be merged meanwhile */
	plan.nr_layers = work->make == make_active && sim_seed / NR_BY_SEED % 2 ? 4 : 3;
	for (i = 0; i < plan.nr_layers; i++) {
		sim_draw_layer(&plan.layers[i]);
		plan.layers[i].dense = plan.layers[i].scattered = false;
		plan.layers[i].size = 256 * KiB + (sim_seed % 16) * SIM_BLOCK;
	}
	plan.small_lv = false;
	plan.nr_ops = 30;
	plan.window = 8;
	plan.pace_permille = 50;
	plan.trim_percent = 0;
	plan.online_permille = 50;
	plan.merge_percent = 100;
	plan.grow_percent = 0;
	plan.nr_online = faults ? 2 : 1;
	if (!faults)
		plan.cancel_percent = plan.beside_percent = 0;
	plan.lives = 0;
	plan.faults = faults;
	sim_faults_draw(false);
}

void sim_plan_work(bool faults)
{
	if (!work)
		work = &works[sim_seed % NR_BY_SEED];
	if (!work->is_busy)
		make_short(faults);
	work->make();
}

void sim_work_finish(void)
{
	u32 tries;

	for (tries = 0; work && work->done && !*work->done; tries++) {
		if (tries == MAX_TRIES)
			fail("no %s was done", work->name);
		plan.nr_online = 1;
		guest_run(plan.nr_ops / 4, true);
		online_finish();
	}
}
