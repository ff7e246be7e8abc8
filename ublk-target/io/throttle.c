// SPDX-License-Identifier: GPL-2.0-or-later
/* The share of a background job, steered by the guest's latency. */
#include <qchain/throttle.h>

#define STEP_NS 50000000ull
/* ... as long as no guest has been heard at all. */
#define EARLY_STEP_NS 10000000ull
/* Fewer requests than that tell nothing: the step goes on. */
#define STEP_SAMPLES 4u
/* After so long without a request there is no guest to protect. */
#define IDLE_NS 300000000ull
#define STRETCH_NS 4000000000ull
/* What was in flight ends meanwhile; only what comes after it is heard. */
#define SETTLE_NS 50000000ull
#define LISTEN_NS 100000000ull
#define MOST_REST_NS 50000000ull

void throttle_init(struct throttle *throttle, struct latency_probe *probe, u32 most)
{
	*throttle = (struct throttle){ .probe = probe, .most = most, .share = THROTTLE_LANE };
	if (!probe)
		throttle->share = most * THROTTLE_LANE;
}

static void begin_listening(struct throttle *t, u64 now_ns)
{
	t->listen_ns = now_ns;
	t->rest_ns = 0;
}

static void end_listening(struct throttle *t, u64 now_ns)
{
	t->listen_ns = 0;
	t->stretch_ns = now_ns;
}

static void grow(struct throttle *t, u32 by)
{
	t->share = min(t->share + by, t->most * THROTTLE_LANE);
}

/* Since the last step: a request took @mean_ns, the next one came @gap_ns later. */
struct heard {
	u64 mean_ns;
	u64 gap_ns;
};

static void follow_guest(struct throttle *t, const struct heard *h)
{
	bool harmed = h->mean_ns * 4 > t->base_ns * 5 || h->gap_ns * 4 > t->base_gap_ns * 5;
	bool well = h->mean_ns * 8 < t->base_ns * 9 && h->gap_ns * 8 < t->base_gap_ns * 9;

	if (harmed)
		t->share = max(t->share - t->share / 4, THROTTLE_FLOOR);
	else if (well)
		grow(t, max(t->share / 8, THROTTLE_FLOOR / 4));
}

static void listen_to(struct throttle *t, u64 now_ns, const struct heard *h)
{
	u64 since = now_ns - t->listen_ns;

	if (since < SETTLE_NS + STEP_NS)
		return;
	t->base_ns = h->mean_ns;
	t->base_gap_ns = h->gap_ns;
	if (since >= SETTLE_NS + LISTEN_NS)
		end_listening(t, now_ns);
}

static bool is_idle(const struct throttle *t, u64 now_ns)
{
	return !t->busy_ns || now_ns - t->busy_ns > IDLE_NS;
}

/* A guest that comes finds one lane, whatever the share has grown to meanwhile. */
static void guest_comes(struct throttle *t, u64 now_ns)
{
	t->share = min(t->share, THROTTLE_LANE);
	begin_listening(t, now_ns);
}

static void heard(struct throttle *t, u64 now_ns, const struct heard *h)
{
	bool comes = is_idle(t, now_ns);

	t->busy_ns = now_ns;
	if (t->listen_ns)
		listen_to(t, now_ns, h);
	else if (comes)
		guest_comes(t, now_ns);
	else if (now_ns - t->stretch_ns > STRETCH_NS)
		begin_listening(t, now_ns);
	else if (t->base_ns)
		follow_guest(t, h);
}

/* Too few requests for a step: it goes on, or nobody is there. */
static void heard_little(struct throttle *t, u64 now_ns)
{
	if (!is_idle(t, now_ns))
		return;
	if (t->listen_ns)
		end_listening(t, now_ns);
	grow(t, t->share);
}

static void step(struct throttle *t, u64 now_ns)
{
	u64 count = __atomic_load_n(&t->probe->count, __ATOMIC_RELAXED);
	u64 total_ns = __atomic_load_n(&t->probe->total_ns, __ATOMIC_RELAXED);
	u64 n = count - t->count;
	struct heard h;

	if (t->step_ns && n < STEP_SAMPLES) {
		t->step_ns = now_ns;
		heard_little(t, now_ns);
		return;
	}
	if (t->step_ns) { /* what was before us is none of our business */
		h.mean_ns = (total_ns - t->total_ns) / n;
		h.gap_ns = (now_ns - t->counted_ns) / n;
		heard(t, now_ns, &h);
	}
	t->step_ns = t->counted_ns = now_ns;
	t->count = count;
	t->total_ns = total_ns;
}

u32 throttle_window(struct throttle *t, u64 now_ns, u64 *wait_ns)
{
	if (!t->probe)
		return t->most;
	if (now_ns - t->step_ns >= (t->busy_ns ? STEP_NS : EARLY_STEP_NS))
		step(t, now_ns);
	if (t->listen_ns) {
		*wait_ns = STEP_NS;
		return 0;
	}
	if (t->share < THROTTLE_LANE && now_ns < t->rest_ns) {
		*wait_ns = t->rest_ns - now_ns;
		return 0;
	}
	return max(1u, t->share / THROTTLE_LANE);
}

void throttle_done(struct throttle *t, u64 now_ns, u64 ns)
{
	if (t->share < THROTTLE_LANE)
		t->rest_ns = now_ns + min(ns * (THROTTLE_LANE - t->share) / t->share,
					  MOST_REST_NS);
}
