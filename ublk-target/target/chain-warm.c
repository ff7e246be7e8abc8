// SPDX-License-Identifier: GPL-2.0-or-later
/* Warming: the map is loaded before anybody asks for it. */
#include "chain-private.h"

/*
 * One window after the other, from the start of the disk, so that a first read
 * finds the map there. It gives way: no window is begun while a guest waits for
 * one, and none is evicted for it: it ends when three quarters of the budget are
 * used. An error is left for the read that needs the window to report.
 */

#define WARM_PAUSE_NS 1000000ull

static void warm_loaded(struct load_wait *wait, int error)
{
	struct chain_warm *warm = container_of(wait, struct chain_warm, wait);
	struct chain_target *ct = container_of(warm, struct chain_target, warm);

	warm->next++;
	if (warm->state != WARM_RUNNING)
		return;
	if (error)
		warm->state = WARM_FAILED;
	else
		loop_timer_set(ct->loop, &warm->timer, 0);
}

static void warm_step(struct loop *loop, struct loop_timer *timer)
{
	struct chain_warm *warm = container_of(timer, struct chain_warm, timer);
	struct chain_target *ct = container_of(warm, struct chain_target, warm);

	if (ct->nr_loads) {
		loop_timer_set(loop, timer, WARM_PAUSE_NS);
		return;
	}
	while (warm->next < ct->map.nr_windows && map_loaded(&ct->map, warm->next))
		warm->next++;
	if (warm->next == ct->map.nr_windows)
		warm->state = WARM_DONE;
	else if (!map_has_room(&ct->map))
		warm->state = WARM_FULL;
	else
		chain_load(ct, warm->next, &warm->wait);
}

void chain_warm_start(struct chain_target *ct)
{
	ct->warm = (struct chain_warm){
		.state = WARM_RUNNING,
		.timer = { .fn = warm_step },
		.wait = { .fn = warm_loaded },
	};
	loop_timer_set(ct->loop, &ct->warm.timer, 0);
}

void chain_warm_stop(struct chain_target *ct)
{
	if (ct->warm.state != WARM_RUNNING)
		return;
	ct->warm.state = WARM_STOPPED;
	loop_timer_cancel(&ct->warm.timer);
}

json_object *chain_warm_json(const struct chain_target *ct)
{
	static const char *const names[] = {
		[WARM_OFF] = "off",	    [WARM_RUNNING] = "running", [WARM_DONE] = "done",
		[WARM_FULL] = "cache full", [WARM_STOPPED] = "stopped", [WARM_FAILED] = "failed",
	};
	json_object *o = json_object_new_object();
	u64 nr = ct->map.nr_windows;

	json_object_object_add(o, "state", json_object_new_string(names[ct->warm.state]));
	json_object_object_add(o, "percent",
			       json_object_new_int64(nr ? ct->warm.next * 100 / nr : 100));
	return o;
}
