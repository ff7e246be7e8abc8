// SPDX-License-Identifier: GPL-2.0-or-later
/* The event loop: inbox, timers, completions, epochs. */
#include <assert.h>
#include <errno.h>
#include <qchain/loop.h>
#include <semaphore.h>
#include <stdlib.h>
#include <sys/prctl.h>

/*
 * The inbox is a list that senders push on with one compare-and-swap and that
 * the loop takes whole with one exchange, then turns round: messages of one
 * sender keep their order. Written with the compiler's atomics, not with
 * liburcu's queue, because ThreadSanitizer understands these.
 *
 * Sleeping: the loop says that it will sleep, then looks at the inbox once
 * more; a sender pushes, then looks whether the loop sleeps. Both are
 * sequentially consistent, so one of the two always sees the other.
 *
 * One sender takes it upon itself to wake the loop, by clearing what it says; a
 * loop with a thread of its own does so when it has handled what it had at hand,
 * with what it hands to the kernel then: all that it sends meanwhile is one wake-up,
 * and that no system call of its own.
 */

static __thread struct loop *current_loop;

int loop_create(const char *name, struct io_engine *io_owned, struct loop **result)
{
	struct loop *loop = calloc(1, sizeof(*loop));

	if (!loop) {
		io_owned->ops->destroy(io_owned);
		return -ENOMEM;
	}
	loop->name = name;
	loop->io = io_owned;
	io_owned->loop = loop;
	CDS_INIT_LIST_HEAD(&loop->timers);
	CDS_INIT_LIST_HEAD(&loop->free_ops);
	CDS_INIT_LIST_HEAD(&loop->op_waiters);
	*result = loop;
	return 0;
}

void loop_destroy(struct loop *loop)
{
	if (!loop)
		return;
	assert(!loop->has_thread);
	assert(loop->epoch_ios[0] == 0 && loop->epoch_ios[1] == 0);
	loop->io->ops->destroy(loop->io);
	free(loop);
}

bool loop_is_current(const struct loop *loop)
{
	return current_loop == loop;
}

u64 loop_now_ns(const struct loop *loop)
{
	return loop->io->ops->now_ns(loop->io);
}

/* ---- messages ----------------------------------------------------------- */

static void loop_wake_now(struct loop *loop)
{
	loop->io->ops->wake(loop->io);
}

static void loop_wake_all(struct loop *from)
{
	while (from->nr_wakes)
		loop_wake_now(from->wakes[--from->nr_wakes]);
}

/* Right before @from's engine runs: nobody else may end those loops in between. */
static void loop_wake_with_run(struct loop *from)
{
	const struct io_engine_ops *ops = from->io->ops;
	struct loop *to;

	while (from->nr_wakes) {
		to = from->wakes[--from->nr_wakes];
		if (!ops->wake_with || !ops->wake_with(from->io, to->io))
			loop_wake_now(to);
	}
}

void loop_will_block(void)
{
	if (current_loop)
		loop_wake_all(current_loop);
}

static void loop_wake(struct loop *loop)
{
	struct loop *from = current_loop;

	if (!__atomic_load_n(&loop->sleeping, __ATOMIC_SEQ_CST) ||
	    !__atomic_exchange_n(&loop->sleeping, 0, __ATOMIC_SEQ_CST))
		return;
	if (from && from->has_thread && from->nr_wakes < LOOP_MAX_WAKES)
		from->wakes[from->nr_wakes++] = loop;
	else
		loop_wake_now(loop);
}

void loop_send(struct loop *to, struct loop_msg *msg,
	       void (*fn)(struct loop *loop, struct loop_msg *msg))
{
	struct loop_msg *head = __atomic_load_n(&to->inbox, __ATOMIC_RELAXED);

	msg->fn = fn;
	do {
		msg->next = head;
	} while (!__atomic_compare_exchange_n(&to->inbox, &head, msg, true,
					      __ATOMIC_SEQ_CST, __ATOMIC_RELAXED));
	loop_wake(to);
}

static int loop_take_inbox(struct loop *loop)
{
	struct loop_msg *msg, *next, *ordered = NULL;
	int n = 0;

	if (!__atomic_load_n(&loop->inbox, __ATOMIC_RELAXED))
		return 0;
	msg = __atomic_exchange_n(&loop->inbox, NULL, __ATOMIC_ACQUIRE);
	for (; msg; msg = next) {
		next = msg->next;
		msg->next = ordered;
		ordered = msg;
	}
	for (msg = ordered; msg; msg = next, n++) {
		next = msg->next; /* @msg belongs to @fn from here on */
		msg->fn(loop, msg);
	}
	return n;
}

struct loop_call {
	struct loop_msg msg;
	void (*fn)(struct loop *loop, void *arg);
	void *arg;
	sem_t done;
};

static void loop_call_run(struct loop *loop, struct loop_msg *msg)
{
	struct loop_call *call = container_of(msg, struct loop_call, msg);

	call->fn(loop, call->arg);
	loop_wake_all(loop); /* the caller may end those loops now */
	sem_post(&call->done);
}

void loop_call(struct loop *to, void (*fn)(struct loop *loop, void *arg), void *arg)
{
	struct loop_call call = { .fn = fn, .arg = arg };

	if (!to->has_thread) { /* not started, or driven by this thread */
		struct loop *before = current_loop;

		current_loop = to;
		fn(to, arg);
		current_loop = before;
		return;
	}
	assert(!loop_is_current(to));
	sem_init(&call.done, 0, 0);
	loop_send(to, &call.msg, loop_call_run);
	loop_will_block();
	while (sem_wait(&call.done) < 0)
		;
	sem_destroy(&call.done);
}

/* ---- timers --------------------------------------------------------------- */

void loop_timer_set(struct loop *loop, struct loop_timer *timer, u64 delay_ns)
{
	struct cds_list_head *pos;

	assert_on_loop(loop);
	loop_timer_cancel(timer);
	pos = loop->timers.prev;
	timer->deadline_ns = loop_now_ns(loop) + delay_ns;
	while (pos != &loop->timers &&
	       container_of(pos, struct loop_timer, node)->deadline_ns > timer->deadline_ns)
		pos = pos->prev;
	cds_list_add(&timer->node, pos);
}

void loop_timer_cancel(struct loop_timer *timer)
{
	if (!timer->deadline_ns)
		return;
	cds_list_del(&timer->node);
	timer->deadline_ns = 0;
}

static struct loop_timer *first_timer(struct loop *loop)
{
	if (cds_list_empty(&loop->timers))
		return NULL;
	return cds_list_first_entry(&loop->timers, struct loop_timer, node);
}

static int loop_run_timers(struct loop *loop)
{
	struct loop_timer *timer;
	int n = 0;
	u64 now;

	if (!first_timer(loop))
		return 0;
	now = loop_now_ns(loop);
	while ((timer = first_timer(loop)) && timer->deadline_ns <= now) {
		loop_timer_cancel(timer);
		timer->fn(loop, timer);
		n++;
	}
	return n;
}

/* ---- running ---------------------------------------------------------------- */

bool loop_sleep_begin(struct loop *loop)
{
	__atomic_store_n(&loop->sleeping, 1, __ATOMIC_SEQ_CST);
	if (!__atomic_load_n(&loop->inbox, __ATOMIC_SEQ_CST) &&
	    !__atomic_load_n(&loop->stop, __ATOMIC_SEQ_CST))
		return true;
	loop_sleep_end(loop);
	return false;
}

void loop_sleep_end(struct loop *loop)
{
	__atomic_store_n(&loop->sleeping, 0, __ATOMIC_RELAXED);
}

int loop_run_once(struct loop *loop, bool wait)
{
	struct loop *before = current_loop;
	struct loop_timer *timer;
	int n;

	current_loop = loop;
	loop->batch_ns = 0;
	n = loop_take_inbox(loop);
	n += loop_run_timers(loop);
	loop_wake_with_run(loop);
	timer = first_timer(loop);
	loop->batch_ns = 0; /* it may sleep */
	n += loop->io->ops->run(loop->io, wait && n == 0, timer ? timer->deadline_ns : 0);
	current_loop = before;
	return n;
}

void loop_run(struct loop *loop)
{
	while (!__atomic_load_n(&loop->stop, __ATOMIC_ACQUIRE))
		loop_run_once(loop, true);
	while (loop_run_once(loop, false))
		;
}

void loop_quit(struct loop *loop)
{
	__atomic_store_n(&loop->stop, true, __ATOMIC_SEQ_CST);
	loop_wake_now(loop); /* whoever is about to wake it may come late */
}

static void *loop_thread(void *arg)
{
	struct loop *loop = arg;

	prctl(PR_SET_NAME, loop->name);
	loop_run(loop);
	return NULL;
}

#define LOOP_STACK_BYTES (256u * 1024u)

int loop_start(struct loop *loop, int cpu)
{
	pthread_attr_t attr;
	cpu_set_t set;
	int ret;

	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, LOOP_STACK_BYTES);
	if (cpu >= 0) {
		CPU_ZERO(&set);
		CPU_SET(cpu, &set);
		pthread_attr_setaffinity_np(&attr, sizeof(set), &set);
	}
	loop->has_thread = true;
	ret = pthread_create(&loop->thread, &attr, loop_thread, loop);
	pthread_attr_destroy(&attr);
	if (ret)
		loop->has_thread = false;
	else
		loop_beat_join(loop);
	return -ret;
}

void loop_stop(struct loop *loop)
{
	if (!loop->has_thread)
		return;
	loop_beat_leave(loop);
	loop_quit(loop);
	pthread_join(loop->thread, NULL);
	loop->has_thread = false;
}

/* ---- descriptors -------------------------------------------------------------- */

static void loop_poll_done(struct io_completion *completion, int res, u32 cqe_flags)
{
	struct loop_poll *poll = container_of(completion, struct loop_poll, completion);

	poll->fn(poll, res);
}

void loop_poll_add(struct loop *loop, struct loop_poll *poll, int fd, short events)
{
	assert_on_loop(loop);
	poll->completion.fn = loop_poll_done;
	poll->loop = loop;
	loop->io->ops->poll(loop->io, &poll->completion, fd, events);
}

void loop_poll_cancel(struct loop_poll *poll)
{
	assert_on_loop(poll->loop);
	poll->loop->io->ops->cancel(poll->loop->io, &poll->completion);
}

/* ---- epochs ------------------------------------------------------------------- */

void loop_epoch_drained(struct loop *loop)
{
	struct loop_grace *grace = loop->draining;

	loop->draining = NULL;
	grace->drained(grace);
}

static void loop_grace_run(struct loop *loop, struct loop_msg *msg)
{
	struct loop_grace *grace = container_of(msg, struct loop_grace, msg);

	assert(!loop->draining);
	loop->epoch ^= 1;
	assert(loop->epoch_ios[loop->epoch] == 0);
	grace->quiescent(grace);
	loop->draining = grace;
	if (loop->epoch_ios[loop->epoch ^ 1] == 0)
		loop_epoch_drained(loop);
}

void loop_grace_begin(struct loop *loop, struct loop_grace *grace)
{
	loop_send(loop, &grace->msg, loop_grace_run);
}
