// SPDX-License-Identifier: GPL-2.0-or-later
/* The window of a background job, steered by the guest's latency. */
#include <qchain/throttle.h>

#define STEP_NS 20000000ull
/* After so long without a sample there is no guest to protect. */
#define IDLE_NS 200000000ull
#define STRETCH_NS 5000000000ull
#define LISTEN_NS 100000000ull

void throttle_init(struct throttle *throttle, const struct latency_probe *probe, u32 most)
{
	*throttle = (struct throttle){ .probe = probe, .most = most, .window = 1 };
	if (!probe)
		throttle->window = most;
}

/* A new stretch begins by listening with one I/O in flight. */
static void begin_stretch(struct throttle *t, u64 now_ns)
{
	t->last_base_ns = t->base_ns;
	t->base_ns = 0;
	t->stretch_ns = now_ns;
	t->listening = true;
}

static u64 base_of(const struct throttle *t)
{
	if (!t->last_base_ns)
		return t->base_ns;
	return t->base_ns ? min(t->base_ns, t->last_base_ns) : t->last_base_ns;
}

static void follow_guest(struct throttle *t, u64 mean)
{
	u64 base;

	t->base_ns = t->base_ns ? min(t->base_ns, mean) : mean;
	base = base_of(t);
	if (mean > 2 * base)
		t->window = max(1u, t->window - (t->window + 2) / 3);
	else if (mean < base + base / 2)
		t->window = min(t->most, t->window + 1);
}

u32 throttle_window(struct throttle *t, u64 now_ns)
{
	u64 stamp, mean;

	if (!t->probe || now_ns - t->changed_ns < STEP_NS)
		return t->listening ? 1 : t->window;
	t->changed_ns = now_ns;
	stamp = __atomic_load_n(&t->probe->stamp_ns, __ATOMIC_RELAXED);
	mean = __atomic_load_n(&t->probe->mean_ns, __ATOMIC_RELAXED);
	if (!mean || now_ns > stamp + IDLE_NS) {
		t->listening = false;
		t->window = min(t->most, t->window * 2);
		return t->window;
	}
	if (!t->stretch_ns || now_ns - t->stretch_ns > STRETCH_NS)
		begin_stretch(t, now_ns);
	if (t->listening && now_ns - t->stretch_ns > LISTEN_NS)
		t->listening = false;
	follow_guest(t, mean);
	return t->listening ? 1 : t->window;
}
