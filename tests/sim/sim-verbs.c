// SPDX-License-Identifier: GPL-2.0-or-later
/* Deletes and reverts of the simulated device, step by step as qchainctl makes them. */
#include "sim.h"

#include "chain-private.h"

#include <errno.h>
#include <qchain/online.h>

/*
 * Revert (promises V1 to V4): an overlay is formatted on a snapshot's image; the record
 * says that a revert is under way; the daemon switches; the record calls the overlay
 * the top, and the images of the old branch are removed, or the branch is kept as a
 * snapshot. Delete (E1, E2): a stream or a commit of neighbours, then the record
 * forgets the image that went, then that is removed: sim-online.c.
 */

enum revert_phase { REVERT_IDLE, REVERT_FORMATTED, REVERT_RECORDED, REVERT_SWITCHED };

static struct {
	enum revert_phase phase;
	struct image *overlay;
	char to[SIM_NAME]; /* the snapshot's image */
	u8 *content; /* what it shows, as long as the device */
	char branch[SIM_MAX_DEPTH][SIM_NAME]; /* the layers that go */
	u32 nr_branch;
	bool keep;
	const struct writer *writer; /* of the active layer until the switch */
} revert;

u32 online_deletes, online_reverts;

static const struct chain *chain_of(void)
{
	return ((struct chain_target *)device.ti->private)->chain;
}

bool revert_busy(void)
{
	return revert.phase != REVERT_IDLE;
}

static void bury(const char *disk)
{
	struct sim_view *view = view_find(disk);
	struct sim_disk *d = sim_disk_find(disk);

	if (view)
		view_remove(view);
	d->formatted = false;
	d->gone = true;
}

static bool is_layer(const char *disk)
{
	u32 depth = 0;

	while (depth < chain_of()->nr_layers && strcmp(sim_device_layer(depth)->name, disk))
		depth++;
	return depth < chain_of()->nr_layers;
}

/* Images that left the chain may stand on those that are going to (promises E3, V4). */
void sim_bury_others(void)
{
	struct sim_view *view, *tmp;

	sim_point();
	cds_list_for_each_entry_safe(view, tmp, &sim_views, node)
		if (!is_layer(view->disk))
			bury(view->disk);
}

/* ---- revert: what the model knows of it ------------------------------------------- */

/* What @disk shows: sealed, so that it never changes. Nothing fails meanwhile, or is cut. */
static u8 *content_of(const char *disk, u64 bytes)
{
	u64 there = view_find(disk)->bytes;
	u8 *buf = io_alloc(there), *content = calloc(1, bytes);
	bool judging = sim_judging;
	struct sim_device d;

	sim_judging = true;
	sim_device_up(&d, disk, SIM_UP_READ_ONLY);
	sim_device_read(&d, buf, there);
	sim_device_down(&d);
	sim_judging = judging;
	memcpy(content, buf, min(there, bytes));
	free(buf);
	return content;
}

static void note_branch(u32 depth)
{
	u32 i;

	revert.nr_branch = depth;
	for (i = 0; i < depth; i++)
		snprintf(revert.branch[i], SIM_NAME, "%s", sim_device_layer(i)->name);
}

/* The device shows the snapshot; what it has shown becomes one, for as long as it is kept. */
static void model_reverts(void)
{
	struct sim_view *before = view_find(revert.branch[0]), *old;

	if (before) /* it was one, until a commit made it the top */
		view_remove(before);
	old = view_add(revert.branch[0], sim_now_view.initial, sim_now_view.bytes, ++sim_time);
	old->since = sim_now_view.since;
	model_turns_into(revert.content, old);
	revert.phase = REVERT_SWITCHED;
	online_reverts++;
}

static void record_reverted(void)
{
	u32 i;

	online_record_top(sim_overlay);
	for (i = 0; !revert.keep && i < revert.nr_branch; i++)
		bury(revert.branch[i]);
	revert.phase = REVERT_IDLE;
}

/* ---- revert: steps ------------------------------------------------------------------ */

static void revert_begin(u32 depth)
{
	const struct sim_disk *d = sim_device_layer(depth);
	struct sim_view *view = view_find(d->name);

	if (!view || view->lost || depth > ARRAY_SIZE(revert.branch) ||
	    chain_is_sealing(device.ti->private))
		return;
	snprintf(revert.to, sizeof(revert.to), "%s", d->name);
	revert.keep = chance(40);
	if (!revert.keep)
		sim_bury_others();
	revert.overlay = sim_overlay_make(revert.to);
	if (!revert.overlay)
		return;
	note_branch(depth);
	revert.content = content_of(revert.to, sim_now_view.bytes);
	revert.phase = REVERT_FORMATTED;
}

static void withdraw(void)
{
	image_close(revert.overlay);
	sim_point(); /* the record knows of no revert again */
	sim_overlay_remove();
	free(revert.content);
	revert.phase = REVERT_IDLE;
}

/* In the middle of chain_revert(): guests see the switch before it returns. */
static void note_switch(void)
{
	const struct chain_target *ct = device.ti->private;

	if (revert.phase == REVERT_RECORDED && ct->active != revert.writer)
		model_reverts();
}

static void revert_switch(void)
{
	const struct chain_layer *to = &chain_of()->layers[revert.nr_branch];
	struct qc_err err = { 0 };
	bool closed;
	int ret;

	revert.writer = ((struct chain_target *)device.ti->private)->active;
	sim_watch = note_switch;
	ret = chain_revert(device.ti, to->node_name, revert.overlay, sim_path(sim_overlay),
			   sim_overlay, &closed, &err);
	sim_watch = NULL;
	if (sim_verbose && !sim_judging)
		printf("revert to %s at %llu: %s\n", revert.to, (unsigned long long)sim_time,
		       ret ? err.msg : "done");
	if (!ret)
		return;
	if (!plan.faults && ret != -EBUSY && ret != -ETIMEDOUT)
		fail("revert: %s", err.msg);
	withdraw();
}

void revert_step(void)
{
	if (!chance(20))
		return;
	if (revert.phase == REVERT_FORMATTED) {
		sim_point();
		revert.phase = REVERT_RECORDED;
	} else if (revert.phase == REVERT_RECORDED) {
		revert_switch();
	} else {
		record_reverted();
	}
}

/* ---- revert: a cut -------------------------------------------------------------------- */

/* As qchainctl's revert-record.c looks at it: was it served? */
static bool overlay_served(void)
{
	struct qc_err err = { 0 };
	struct io_dev *dev;
	struct image *img;
	bool served;

	if (io_dev_open(sim_path(sim_overlay), 0, &dev, &err) ||
	    image_open(dev, IMAGE_QCOW2, 0, &img, &err))
		fail("the overlay of a revert: %s", err.msg);
	served = img->autoclear & QCOW2_AUTOCLEAR_QCHAIN_OPEN ||
		 l1_next(&img->l1, 0, img->l1_size) != img->l1_size;
	image_close(img);
	return served;
}

void revert_cut(void)
{
	enum revert_phase phase = revert.phase;
	bool served;

	sim_watch = NULL;
	revert.phase = REVERT_IDLE;
	if (phase == REVERT_IDLE)
		return;
	served = phase != REVERT_FORMATTED && overlay_served();
	if (phase == REVERT_SWITCHED && !served)
		fail("the device was reverted, and the overlay does not say so");
	if (served && phase == REVERT_RECORDED)
		model_reverts();
	if (served)
		record_reverted();
	else
		sim_overlay_remove();
}

/* ---- what begins ------------------------------------------------------------------------ */

void verb_begin(void)
{
	u32 nr = chain_of()->nr_layers;

	if (nr < 2)
		return;
	if (chance(plan.revert_percent)) {
		revert_begin(1 + rnd(nr - 1));
		return;
	}
	sim_bury_others();
	online_delete(1 + rnd(nr - 1));
}
