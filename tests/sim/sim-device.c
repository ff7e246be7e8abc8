// SPDX-License-Identifier: GPL-2.0-or-later
/* The device: the product's own target, up and down, and all that it shows. */
#include "sim.h"

#include "chain-private.h"

#define LOG_TAG "log-tag=77"
#define READ_BYTES (128u * 1024u)

struct sim_device device;
char sim_top[SIM_NAME];

static u32 log_number; /* of the log file of this life */

static const char *log_name(u32 number)
{
	static char name[SIM_NAME];

	snprintf(name, sizeof(name), "log.%u", number);
	return name;
}

/* As it is at the moment of the death; the dead daemon still has its own open. */
void sim_log_inherit(void)
{
	const char *from = sim_path(log_name(log_number));

	if (sh("cp %s %s", from, sim_path(log_name(log_number + 1))))
		fail("the log cannot be copied");
	log_number++;
}

/* ---- up and down --------------------------------------------------------------- */

static int target_up(struct sim_device *d, const char *top, enum sim_up how, struct qc_err *err)
{
	char cache[64], log[320];
	char *argv[] = { (char *)sim_path(top), cache, "read-only=on", LOG_TAG,
			 how == SIM_UP_TAKEOVER ? "log-replay=on" : "log-replay=off" };
	int argc = 5;

	snprintf(cache, sizeof(cache), "cache-size=%uK", plan.cache_kib);
	if (how != SIM_UP_READ_ONLY) {
		snprintf(log, sizeof(log), "intent-log=%s", sim_path(log_name(log_number)));
		argv[2] = plan.log == SIM_MAY_LOSE ? "may-lose=on" : log;
	}
	if (how != SIM_UP_READ_ONLY && plan.log == SIM_LATE)
		argc = 2;
	else if (how == SIM_UP_READ_ONLY || plan.log == SIM_MAY_LOSE)
		argc = 3;
	return target_create("qcow2-chain", argc, argv, &d->ti, err);
}

int sim_device_try_up(struct sim_device *d, const char *top, enum sim_up how, struct qc_err *err)
{
	u32 i;
	int ret;

	if (how == SIM_UP_FRESH)
		log_number++;
	ret = target_up(d, top, how, err);
	if (ret)
		return ret;
	for (i = 0; i < SIM_QUEUES; i++) {
		d->queues[i] = sim_loop("queue");
		if (target_attach(d->ti, d->queues[i]))
			fail("attach");
	}
	d->control = sim_loop("control");
	if (jobs_create(d->control, NULL, NULL, &d->jobs))
		fail("no registry of jobs");
	return 0;
}

void sim_device_up(struct sim_device *d, const char *top, enum sim_up how)
{
	struct qc_err err = { 0 };

	if (sim_device_try_up(d, top, how, &err))
		fail("%s: %s", top, err.msg);
	if (how != SIM_UP_READ_ONLY && ((struct chain_target *)d->ti->private)->chain->read_only)
		fail("%s: served read-only", top);
}

void sim_device_down(struct sim_device *d)
{
	u32 i;

	jobs_destroy(d->jobs);
	for (i = 0; i < SIM_QUEUES; i++) {
		target_detach(d->ti, d->queues[i]);
		loop_stop(d->queues[i]);
	}
	target_destroy(d->ti);
	for (i = 0; i < SIM_QUEUES; i++)
		loop_destroy(d->queues[i]);
	loop_destroy(d->control);
}

struct sim_disk *sim_device_layer(u32 depth)
{
	const struct chain *chain = ((struct chain_target *)device.ti->private)->chain;

	return depth < chain->nr_layers ? sim_disk_find(chain->layers[depth].path) : NULL;
}

/* ---- what it shows ------------------------------------------------------------- */

struct whole_read {
	struct sim_device *d;
	u8 *buf;
	u64 bytes;
	u64 at;
	u32 under_way;
	struct request reqs[8];
};

static struct whole_read whole;

static void whole_end_io(struct request *req, int error)
{
	if (error)
		fail("a read at %llu+%u fails after a cut: error %d",
		     (unsigned long long)req->offset, req->len, error);
	whole.under_way--;
	req->ops = NULL;
}

static const struct request_ops whole_ops = { .end_io = whole_end_io };

static void whole_submit(struct loop *loop, void *arg)
{
	struct request *req = arg;

	target_submit(whole.d->ti, req);
}

static void whole_submit_next(void)
{
	u32 i = 0;

	while (whole.reqs[i].ops)
		i++;
	whole.reqs[i] = (struct request){ .ops = &whole_ops, .op = REQ_READ, .offset = whole.at,
					  .len = min(whole.bytes - whole.at, (u64)READ_BYTES),
					  .base = whole.buf + whole.at,
					  .loop = whole.d->queues[i % SIM_QUEUES] };
	whole.at += whole.reqs[i].len;
	whole.under_way++;
	loop_call(whole.reqs[i].loop, whole_submit, &whole.reqs[i]);
}

static bool whole_is_read(void *arg)
{
	while (whole.at < whole.bytes && whole.under_way < ARRAY_SIZE(whole.reqs))
		whole_submit_next();
	return !whole.under_way;
}

void sim_device_read(struct sim_device *d, u8 *buf, u64 bytes)
{
	memset(&whole, 0, sizeof(whole));
	whole.d = d;
	whole.buf = buf;
	whole.bytes = bytes;
	if (d->ti->size_bytes != bytes)
		fail("%llu bytes are shown, expected %llu",
		     (unsigned long long)d->ti->size_bytes, (unsigned long long)bytes);
	sim_run_until(whole_is_read, NULL, "reading all of the device");
}
