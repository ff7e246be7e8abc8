// SPDX-License-Identifier: GPL-2.0-or-later
/* The guest: random requests, each checked against the model when it ends. */
#include "sim.h"

struct guest_op {
	struct request req;
	u32 id;
	u32 slot;
	u64 submitted_at;
	u8 *mem;
};

u32 guest_in_flight;
u32 guest_errors;

static bool slots_used[SIM_MAX_FLIGHT];
static u64 hot_start;

static void begin_requests(void)
{
	guest_in_flight = 0;
	memset(slots_used, 0, sizeof(slots_used));
	hot_start = rnd(sim_now_view.bytes / SIM_BLOCK);
}

static void guest_end_io(struct request *req, int error)
{
	struct guest_op *g = container_of(req, struct guest_op, req);

	if (error && !plan.faults)
		fail("op %u type %u at %llu+%u: error %d", g->id, req->op,
		     (unsigned long long)req->offset, req->len, error);
	if (sim_verbose)
		printf("op %u done, error %d\n", g->id, error);
	guest_errors += error != 0;
	model_end(g->id, req->flags, error);
	if (!error && req->op == REQ_READ)
		model_check_read(g->mem, req->offset, req->len, g->submitted_at);
	slots_used[g->slot] = false;
	guest_in_flight--;
	free(g->mem);
	free(g);
}

static u32 largest_cluster(void)
{
	u32 i, largest = 0;

	for (i = 0; i < plan.nr_layers; i++)
		largest = max(largest, plan.layers[i].cluster);
	return largest;
}

static int guest_copy_from(struct request *req, u32 offset, void *buf, u32 len)
{
	/* overlays of snapshots have clusters of their own */
	if (!plan.online_permille && (req->offset + offset) % largest_cluster() == 0 &&
	    len % largest_cluster() == 0)
		fail("whole clusters were copied: the ring can write them from the buffer");
	memcpy(buf, container_of(req, struct guest_op, req)->mem + offset, len);
	return 0;
}

static int guest_copy_to(struct request *req, u32 offset, const void *buf, u32 len)
{
	memcpy(container_of(req, struct guest_op, req)->mem + offset, buf, len);
	return 0;
}

static const struct request_ops guest_ops = {
	.end_io = guest_end_io,
	.copy_from = guest_copy_from,
	.copy_to = guest_copy_to,
};

/* ---- what it asks for ---------------------------------------------------------- */

static u8 draw_type(void)
{
	u32 roll = rnd(100);

	if (online_merges() && chance(40))
		return REQ_READ;
	if (roll < 45)
		return REQ_WRITE;
	if (roll < 65)
		return REQ_READ;
	if (roll < 72)
		return REQ_FLUSH;
	if (roll < 72 + plan.trim_percent)
		return REQ_DISCARD;
	return roll < 72 + 2 * plan.trim_percent ? REQ_WRITE_ZEROES : REQ_WRITE;
}

static void draw_range(struct request *req)
{
	u64 sectors = sim_now_view.bytes / SIM_BLOCK;
	u32 cluster = plan.layers[rnd(plan.nr_layers)].cluster / SIM_BLOCK;
	bool trims = req->op == REQ_DISCARD || req->op == REQ_WRITE_ZEROES;
	u64 most = chance(80) ? (trims ? 300 : 64) : trims ? 4096 : 1024;

	req->len = 1 + rnd(min(most, sectors));
	req->offset = chance(70) ? (hot_start + rnd(plan.hot_sectors)) % sectors : rnd(sectors);
	if (chance(30))
		req->offset = ALIGN_DOWN(req->offset, 8);
	if (trims && chance(50)) {
		req->offset = ALIGN_DOWN(req->offset, cluster);
		req->len = ALIGN_UP(req->len, cluster);
	}
	req->len = min((u64)req->len, sectors - req->offset) * SIM_BLOCK;
	req->offset *= SIM_BLOCK;
}

static u8 draw_flags(u8 op)
{
	u8 flags = op != REQ_READ && op != REQ_FLUSH && chance(12) ? REQ_FUA : 0;

	return op == REQ_WRITE_ZEROES && chance(40) ? flags | REQ_NOUNMAP : flags;
}

static void guest_submit(struct loop *loop, void *arg)
{
	struct guest_op *g = arg;
	struct request *req = &g->req;

	*req = (struct request){ .ops = &guest_ops, .loop = loop, .op = draw_type() };
	if (req->op != REQ_FLUSH)
		draw_range(req);
	req->flags = draw_flags(req->op);
	while (slots_used[g->slot])
		g->slot++;
	slots_used[g->slot] = true;
	if (req->op == REQ_READ || req->op == REQ_WRITE)
		g->mem = io_alloc(req->len);
	g->id = model_submit(req->op, req->offset, req->len, g->mem);
	g->submitted_at = sim_ops[g->id].submit;
	if (sim_verbose)
		printf("op %u type %u flags %u %llu+%u\n", g->id, req->op, req->flags,
		       (unsigned long long)req->offset, req->len);
	sim_kernel_buffer(g->slot, loop, g->mem);
	req->base = chance(30) ? NULL : g->mem;
	req->fixed_index = g->slot;
	guest_in_flight++;
	target_submit(device.ti, req);
}

static void guest_submit_one(void)
{
	loop_call(device.queues[rnd(SIM_QUEUES)], guest_submit, calloc(1, sizeof(struct guest_op)));
}

/* ---- a life -------------------------------------------------------------------- */

/* A volume is extended by its administrator, sooner or later. */
static void maybe_extend(void)
{
	struct sim_disk *d;

	if (!chance(1) || !chance(20))
		return;
	cds_list_for_each_entry(d, &sim_disks, node) {
		u64 bytes = ALIGN_DOWN(rnd(512 * KiB), 4096);

		if (!d->small || d->size + bytes > SIM_MAX_DISK)
			continue;
		sim_disk_extend(d, bytes);
	}
}

void guest_run(u32 nr, bool whole)
{
	u64 steps = 0;
	u32 submitted = 0;

	begin_requests();
	while (submitted < nr || (whole && guest_in_flight)) {
		if (submitted < nr && guest_in_flight < plan.window &&
		    rnd(1000) < plan.pace_permille) {
			guest_submit_one();
			submitted++;
		}
		online_step();
		if (!sim_step() && guest_in_flight && submitted >= nr)
			fail("stuck: %u requests, nothing under way", guest_in_flight);
		maybe_extend();
		if (++steps > 20000000)
			fail("stuck: %u requests after many steps", guest_in_flight);
	}
}
