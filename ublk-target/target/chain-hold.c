// SPDX-License-Identifier: GPL-2.0-or-later
/* No write starts for a moment: one instant for the snapshots of several devices (rule C3). */
#include "chain-private.h"
#include "target-private.h"

#include <errno.h>
#include <qchain/log.h>
#include <qchain/online.h>
#include <semaphore.h>
#include <stdlib.h>
#include <time.h>

/*
 *   hold      a flag that chain_map() reads; then every loop handles a message:
 *             from there on it has seen the flag
 *   release   the flag goes, what came meanwhile is mapped again
 *
 * What was issued before goes on, and so does what the metadata thread has begun.
 * Reads and flushes are not held. A hold ends by itself: whoever asked for it may
 * have died.
 */

/* A loop that does not get round to a message in this time is told of. */
#define CONFIRM_MS 100

struct hold {
	struct chain_target *ct;
	struct grace_waiter grace;
	sem_t confirmed;
	u64 ns;
	int users; /* who still needs this: caller and grace */
	int ret;
};

void chain_hold_request(struct chain_target *ct, struct request *req)
{
	request_set_stage(req, "hold");
	cds_list_add_tail(&req->node, &ct->held);
}

static void release(struct chain_target *ct)
{
	struct request *req, *tmp;
	CDS_LIST_HEAD(held);

	__atomic_store_n(&ct->hold, false, __ATOMIC_RELEASE);
	loop_timer_cancel(&ct->hold_timer);
	cds_list_splice(&ct->held, &held);
	CDS_INIT_LIST_HEAD(&ct->held);
	cds_list_for_each_entry_safe(req, tmp, &held, node) {
		cds_list_del(&req->node);
		chain_retry(req);
	}
}

static void expired(struct loop *loop, struct loop_timer *timer)
{
	struct chain_target *ct = container_of(timer, struct chain_target, hold_timer);

	log_warn("writes were held and nobody released them, they go on");
	release(ct);
}

static void put_hold(struct hold *h)
{
	if (__atomic_sub_fetch(&h->users, 1, __ATOMIC_ACQ_REL))
		return;
	sem_destroy(&h->confirmed);
	free(h);
}

static void hold_confirmed(struct grace_waiter *waiter)
{
	sem_post(&container_of(waiter, struct hold, grace)->confirmed);
}

static void hold_drained(struct grace_waiter *waiter)
{
	put_hold(container_of(waiter, struct hold, grace));
}

static void hold_run(struct loop *loop, void *arg)
{
	struct hold *h = arg;
	struct chain_target *ct = h->ct;

	if (ct->hold || ct->stopping) {
		h->ret = -EBUSY;
		return;
	}
	__atomic_store_n(&ct->hold, true, __ATOMIC_RELEASE);
	ct->hold_timer.fn = expired;
	loop_timer_set(loop, &ct->hold_timer, h->ns);
	h->users++;
	h->grace.quiescent = hold_confirmed;
	h->grace.drained = hold_drained;
	grace_wait(&ct->grace, &h->grace);
}

static void release_run(struct loop *loop, void *arg)
{
	release(arg);
}

static bool wait_confirmed(struct hold *h)
{
	struct timespec until;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_nsec += CONFIRM_MS * 1000000;
	until.tv_sec += until.tv_nsec / 1000000000;
	until.tv_nsec %= 1000000000;
	while (sem_timedwait(&h->confirmed, &until) < 0)
		if (errno != EINTR)
			return false;
	return true;
}

int chain_hold(struct target *ti, u32 milliseconds, struct qc_err *err)
{
	struct hold *h;
	int ret;

	if (ti->type != &target_chain)
		return qc_err_set(err, -EINVAL, "%s: not a chain", ti->type->name);
	h = calloc(1, sizeof(*h));
	if (!h)
		return qc_err_set(err, -ENOMEM, "hold: out of memory");
	h->ct = ti->private;
	h->ns = milliseconds * 1000000ull;
	h->users = 1;
	sem_init(&h->confirmed, 0, 0);
	loop_call(h->ct->loop, hold_run, h);
	ret = h->ret;
	if (ret)
		qc_err_set(err, ret, "%s: writes are held already, or the device is going down",
			   h->ct->chain->layers[0].path);
	else if (!wait_confirmed(h)) {
		loop_call(h->ct->loop, release_run, h->ct);
		ret = qc_err_set(err, -ETIMEDOUT, "%s: writes could not be held within %d ms, "
				 "nothing was done; try again", h->ct->chain->layers[0].path,
				 CONFIRM_MS);
	}
	put_hold(h);
	return ret;
}

int chain_release(struct target *ti, struct qc_err *err)
{
	struct chain_target *ct = ti->private;

	if (ti->type != &target_chain)
		return qc_err_set(err, -EINVAL, "%s: not a chain", ti->type->name);
	loop_call(ct->loop, release_run, ct);
	return 0;
}
