// SPDX-License-Identifier: GPL-2.0-or-later
/* The event loop: messages, timers, calls, descriptors, epochs. */
#include "loop-thread.h"
#include "mock-loop.h"
#include "random.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>
#include <urcu/arch.h>

/* A wake-up that was lost hangs the test: end it instead. */
#define WATCHDOG_S 120

/* ---- messages on one thread ---------------------------------------------- */

struct note_msg {
	struct loop_msg msg;
	u32 id;
	struct note_msg *then; /* sent from the callback */
};

static void note_id(struct loop *l, struct loop_msg *msg)
{
	struct note_msg *m = container_of(msg, struct note_msg, msg);

	CU_ASSERT(loop_is_current(l));
	io_mock_note(mock, "%u", m->id);
	if (m->then)
		loop_send(l, &m->then->msg, note_id);
}

static void test_order(void)
{
	struct note_msg m[4] = { { .id = 0 }, { .id = 1 }, { .id = 2 }, { .id = 3 } };
	u32 i;

	m[0].then = &m[3];
	for (i = 0; i < 3; i++)
		loop_send(mock_loop, &m[i].msg, note_id);
	CU_ASSERT_EQUAL(loop_run_once(mock_loop, false), 3);
	expect_log("0, 1, 2");
	CU_ASSERT_EQUAL(loop_run_once(mock_loop, false), 1);
	expect_log("3");
	CU_ASSERT_EQUAL(loop_run_once(mock_loop, false), 0);
}

/* From its callback on, a message is its owner's again. */
static void test_send_again(void)
{
	struct note_msg m = { .id = 7 };
	u32 i;

	m.then = &m;
	loop_send(mock_loop, &m.msg, note_id);
	for (i = 0; i < 3; i++)
		CU_ASSERT_EQUAL(loop_run_once(mock_loop, false), 1);
	m.then = NULL;
	CU_ASSERT_EQUAL(loop_run_once(mock_loop, false), 1);
	CU_ASSERT_EQUAL(loop_run_once(mock_loop, false), 0);
	expect_log("7, 7, 7, 7");
}

static void send_while_asleep(void *arg)
{
	struct note_msg *m = arg;

	io_mock_note(mock, "asleep");
	loop_send(mock_loop, &m->msg, note_id);
}

static void test_wakes_only_sleepers(void)
{
	u32 before = io_mock_wakes(mock);
	struct note_msg m[2] = { { .id = 0 }, { .id = 1 } };

	loop_send(mock_loop, &m[0].msg, note_id);
	CU_ASSERT_EQUAL(io_mock_wakes(mock), before);
	io_mock_on_wait(mock, send_while_asleep, &m[1]);
	/* something to do: it must not sleep first */
	CU_ASSERT_EQUAL(loop_run_once(mock_loop, true), 1);
	expect_log("0");
	CU_ASSERT_EQUAL(loop_run_once(mock_loop, true), 0);
	CU_ASSERT_EQUAL(io_mock_wakes(mock), before + 1);
	io_mock_on_wait(mock, NULL, NULL);
	CU_ASSERT_EQUAL(loop_run_once(mock_loop, true), 1);
	expect_log("asleep, 1");
	/* awake again: no more calls into the engine */
	loop_send(mock_loop, &m[0].msg, note_id);
	CU_ASSERT_EQUAL(io_mock_wakes(mock), before + 1);
	loop_run_once(mock_loop, false);
	expect_log("0");
}

struct to_itself {
	struct io_op op;
	struct note_msg m;
};

static void send_to_itself(struct io_op *op, int error)
{
	loop_send(mock_loop, &container_of(op, struct to_itself, op)->m.msg, note_id);
}

static void end_while_asleep(void *arg)
{
	io_mock_end(mock, 0, 0);
}

/* What runs after a sleep is not asleep: its messages cost no wake-up. */
static void test_awake_after_sleep(void)
{
	struct to_itself t = { .op = { .type = IO_FLUSH, .done = send_to_itself } };
	u32 before = io_mock_wakes(mock);
	struct io_dev *dev;

	CU_ASSERT_EQUAL_FATAL(io_mock_dev_create("disk", MiB, MiB, true, &dev), 0);
	t.op.dev = dev;
	io_submit(mock_loop, &t.op);
	io_mock_log(mock);
	io_mock_on_wait(mock, end_while_asleep, NULL);
	CU_ASSERT_EQUAL(loop_run_once(mock_loop, true), 1);
	io_mock_on_wait(mock, NULL, NULL);
	CU_ASSERT_EQUAL(io_mock_wakes(mock), before);
	CU_ASSERT_EQUAL(loop_run_once(mock_loop, true), 1);
	expect_log("0");
	io_mock_dev_destroy(dev);
}

struct burst {
	struct loop *from;
	struct note_msg m[2];
};

static void send_burst(struct loop *l, void *arg)
{
	struct burst *b = arg;
	u32 i, before = io_mock_wakes(mock);

	for (i = 0; i < ARRAY_SIZE(b->m); i++)
		loop_send(mock_loop, &b->m[i].msg, note_id);
	CU_ASSERT_EQUAL(io_mock_wakes(mock), before);
}

static void burst_while_asleep(void *arg)
{
	struct burst *b = arg;

	loop_call(b->from, send_burst, b);
}

/* A thread's loop wakes another one once, after all that it has to send. */
static void test_wakes_once(void)
{
	struct burst b = { .m = { { .id = 0 }, { .id = 1 } } };
	u32 before = io_mock_wakes(mock);

	b.from = start_loop("sender");
	io_mock_on_wait(mock, burst_while_asleep, &b);
	CU_ASSERT_EQUAL(loop_run_once(mock_loop, true), 0);
	io_mock_on_wait(mock, NULL, NULL);
	CU_ASSERT_EQUAL(io_mock_wakes(mock), before + 1);
	CU_ASSERT_EQUAL(loop_run_once(mock_loop, true), 2);
	expect_log("0, 1");
	end_loop(b.from);
}

/* ---- messages between threads ---------------------------------------------- */

#define HAMMER_SENDERS 3u
#define HAMMER_LOOPS 2u
#define HAMMER_MSGS 3000u

struct hammer_msg {
	struct loop_msg msg;
	u32 sender;
	u32 seq;
};

struct hammer {
	struct loop *loops[HAMMER_LOOPS];
	u32 next[HAMMER_LOOPS][HAMMER_SENDERS]; /* each loop's own */
	u32 misordered; /* atomic */
	u32 left; /* atomic */
	sem_t done;
};

static struct hammer hammer;

static void hammer_got(struct loop *l, struct loop_msg *msg)
{
	struct hammer_msg *m = container_of(msg, struct hammer_msg, msg);
	u32 which = l == hammer.loops[0] ? 0 : 1;

	if (m->seq < hammer.next[which][m->sender] || !loop_is_current(l))
		__atomic_add_fetch(&hammer.misordered, 1, __ATOMIC_RELAXED);
	hammer.next[which][m->sender] = m->seq + 1;
	if (__atomic_sub_fetch(&hammer.left, 1, __ATOMIC_ACQ_REL) == 0)
		sem_post(&hammer.done);
}

static struct hammer_msg hammer_msgs[HAMMER_SENDERS][HAMMER_MSGS];

/* Bursts and pauses of random length, so that the loops sleep and wake all the time. */
static void *hammer_send(void *arg)
{
	u32 sender = (uintptr_t)arg;
	struct rnd r = { sender };
	u32 i, burst = 0;

	for (i = 0; i < HAMMER_MSGS; i++) {
		struct hammer_msg *m = &hammer_msgs[sender][i];

		*m = (struct hammer_msg){ .sender = sender, .seq = i };
		loop_send(hammer.loops[rnd_below(&r, HAMMER_LOOPS)], &m->msg, hammer_got);
		if (burst-- == 0) {
			burst = rnd_below(&r, 8);
			sched_yield();
		}
	}
	return NULL;
}

static void test_hammer(void)
{
	pthread_t senders[HAMMER_SENDERS];
	u32 i;

	hammer = (struct hammer){ .left = HAMMER_SENDERS * HAMMER_MSGS };
	sem_init(&hammer.done, 0, 0);
	for (i = 0; i < HAMMER_LOOPS; i++)
		hammer.loops[i] = start_loop("hammered");
	for (i = 0; i < HAMMER_SENDERS; i++)
		pthread_create(&senders[i], NULL, hammer_send, (void *)(uintptr_t)i);
	wait_for(&hammer.done);
	for (i = 0; i < HAMMER_SENDERS; i++)
		pthread_join(senders[i], NULL);
	for (i = 0; i < HAMMER_LOOPS; i++)
		end_loop(hammer.loops[i]);
	CU_ASSERT_EQUAL(hammer.misordered, 0);
	sem_destroy(&hammer.done);
}

#define PING_ROUNDS 4000u

struct ping {
	struct loop_msg msg;
	struct loop *loops[2];
	u32 rounds;
	sem_t done;
};

static void ping_back(struct loop *l, struct loop_msg *msg)
{
	struct ping *p = container_of(msg, struct ping, msg);

	if (++p->rounds == PING_ROUNDS)
		sem_post(&p->done);
	else
		loop_send(p->loops[l == p->loops[0]], msg, ping_back);
}

/* One message between two loops that have nothing else to do: each one sleeps. */
static void test_ping_pong(void)
{
	struct ping p = { .rounds = 0 };

	sem_init(&p.done, 0, 0);
	p.loops[0] = start_loop("ping");
	p.loops[1] = start_loop("pong");
	loop_send(p.loops[0], &p.msg, ping_back);
	wait_for(&p.done);
	end_loop(p.loops[0]);
	end_loop(p.loops[1]);
	CU_ASSERT_EQUAL(p.rounds, PING_ROUNDS);
	sem_destroy(&p.done);
}

#define RACE_ROUNDS 30000u
#define RACE_MAX_NS 500000000ull /* of all rounds, on a busy machine */
#define LOST_NS 20000000000ull

static u64 clock_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000ull + ts.tv_nsec;
}

static u32 race_handled; /* atomic */

static void race_count(struct loop *l, struct loop_msg *msg)
{
	__atomic_add_fetch(&race_handled, 1, __ATOMIC_RELEASE);
}

/* False: nobody woke the loop. */
static bool race_wait(u32 count)
{
	u64 start = clock_ns();
	u32 looks = 0;

	while (__atomic_load_n(&race_handled, __ATOMIC_ACQUIRE) != count) {
		if (++looks < 1000) {
			caa_cpu_relax();
			continue;
		}
		if (clock_ns() - start > LOST_NS)
			return false;
		sched_yield();
	}
	return true;
}

/*
 * One message at a time, each a random moment after the last one was handled:
 * some of them come between the loop's last look at its inbox and its sleep.
 */
static void test_no_wake_is_lost(void)
{
	struct rnd r = { rnd_seed("wake") };
	struct loop *l = start_loop("sleepy");
	u64 start = clock_ns();
	struct loop_msg msg;
	u32 i;

	race_handled = 0;
	for (i = 1; i <= RACE_ROUNDS && clock_ns() - start < RACE_MAX_NS; i++) {
		loop_send(l, &msg, race_count);
		CU_ASSERT_FATAL(race_wait(i));
		for (u64 n = rnd_below(&r, 100); n; n--)
			caa_cpu_relax();
	}
	end_loop(l);
}

static void count_msg(struct loop *l, struct loop_msg *msg)
{
	hammer.next[0][0]++;
}

/* What was sent before loop_stop() is run before the thread leaves. */
static void test_stop_runs_the_rest(void)
{
	struct loop *l = start_loop("stopping");
	u32 i;

	hammer.next[0][0] = 0;
	for (i = 0; i < 100; i++)
		loop_send(l, &hammer_msgs[0][i].msg, count_msg);
	end_loop(l);
	CU_ASSERT_EQUAL(hammer.next[0][0], 100);
}

/* ---- calls ---------------------------------------------------------------- */

struct call {
	struct loop *loop;
	pthread_t ran_on;
	u32 count;
};

static void call_run(struct loop *l, void *arg)
{
	struct call *c = arg;

	CU_ASSERT(loop_is_current(l));
	c->ran_on = pthread_self();
	c->count++;
}

static void *call_often(void *arg)
{
	struct call *c = arg;
	u32 i;

	for (i = 0; i < 300; i++)
		loop_call(c->loop, call_run, c);
	return NULL;
}

/* Callers from several threads: each call has returned when loop_call() does. */
static void test_call(void)
{
	struct call c = { .loop = start_loop("called") };
	pthread_t callers[2];
	pthread_t thread;

	pthread_create(&callers[0], NULL, call_often, &c);
	pthread_create(&callers[1], NULL, call_often, &c);
	pthread_join(callers[0], NULL);
	pthread_join(callers[1], NULL);
	CU_ASSERT_EQUAL(c.count, 600);
	thread = c.loop->thread;
	CU_ASSERT(pthread_equal(c.ran_on, thread));
	end_loop(c.loop);
}

struct relay {
	struct loop_msg msg;
	struct call call;
	sem_t done;
};

static void relay_call(struct loop *l, struct loop_msg *msg)
{
	struct relay *r = container_of(msg, struct relay, msg);

	loop_call(r->call.loop, call_run, &r->call);
	sem_post(&r->done);
}

/* Who is called sleeps, and nobody else will wake it. */
static void test_call_from_a_loop(void)
{
	struct relay r = { .call.loop = start_loop("called") };
	struct loop *from = start_loop("calls");
	u32 i;

	sem_init(&r.done, 0, 0);
	for (i = 0; i < 20; i++) {
		while (!__atomic_load_n(&r.call.loop->sleeping, __ATOMIC_RELAXED))
			sched_yield();
		loop_send(from, &r.msg, relay_call);
		wait_for(&r.done);
	}
	CU_ASSERT_EQUAL(r.call.count, 20);
	end_loop(from);
	end_loop(r.call.loop);
}

/* A loop without a thread: the caller's thread stands in for it, then no more. */
static void test_call_without_thread(void)
{
	struct io_engine *io;
	struct call c = { .count = 0 };

	CU_ASSERT_EQUAL_FATAL(io_mock_engine_create(&io), 0);
	CU_ASSERT_EQUAL_FATAL(loop_create("idle", io, &c.loop), 0);
	loop_call(c.loop, call_run, &c);
	CU_ASSERT_EQUAL(c.count, 1);
	CU_ASSERT_FALSE(loop_is_current(c.loop));
	CU_ASSERT(loop_is_current(mock_loop));
	CU_ASSERT_EQUAL(loop_run_once(c.loop, false), 0);
	CU_ASSERT(loop_is_current(mock_loop));
	loop_destroy(c.loop);
}

/* ---- timers --------------------------------------------------------------- */

struct note_timer {
	struct loop_timer timer;
	u32 id;
	u64 again_ns; /* set it again from its callback; 0: do not */
	struct note_timer *cancel; /* cancelled from the callback */
};

static void timer_note(struct loop *l, struct loop_timer *timer)
{
	struct note_timer *t = container_of(timer, struct note_timer, timer);

	CU_ASSERT_EQUAL(timer->deadline_ns, 0);
	io_mock_note(mock, "%u", t->id);
	if (t->again_ns)
		loop_timer_set(l, timer, t->again_ns);
	if (t->cancel)
		loop_timer_cancel(&t->cancel->timer);
}

static void set(struct note_timer *t, u32 id, u64 delay_ns)
{
	t->id = id;
	t->timer.fn = timer_note;
	loop_timer_set(mock_loop, &t->timer, delay_ns);
}

static void pass_ns(u64 ns)
{
	io_mock_advance(mock, ns);
	loop_run_once(mock_loop, false);
}

static void test_timers_in_order(void)
{
	struct note_timer t[4] = { { .id = 0 } };

	set(&t[2], 2, 300);
	set(&t[0], 0, 100);
	set(&t[1], 1, 200);
	set(&t[3], 3, 200); /* as early as 1, set later */
	pass_ns(99);
	expect_log("");
	pass_ns(1);
	expect_log("0");
	pass_ns(200);
	expect_log("1, 3, 2");
	CU_ASSERT_EQUAL(loop_run_once(mock_loop, false), 0);
}

/* The place of a timer is found after it has left its old one. */
static void test_timer_set_again(void)
{
	struct note_timer t[2] = { { .id = 0 } };

	set(&t[0], 0, 100);
	set(&t[0], 0, 50); /* the only one: its own neighbour */
	set(&t[1], 1, 200);
	set(&t[1], 1, 300); /* the last one, later */
	set(&t[1], 1, 20); /* the last one, becomes the first */
	pass_ns(30);
	expect_log("1");
	pass_ns(20);
	expect_log("0");
	set(&t[0], 0, 10);
	set(&t[1], 1, 20);
	set(&t[0], 0, 30); /* the first one, becomes the last */
	pass_ns(30);
	expect_log("1, 0");
}

static void test_timer_cancel(void)
{
	struct note_timer t[3] = { { .id = 0 } };

	set(&t[0], 0, 10);
	loop_timer_cancel(&t[0].timer);
	loop_timer_cancel(&t[0].timer); /* not set: nothing to do */
	set(&t[1], 1, 10);
	set(&t[2], 2, 10); /* due with 1, which cancels it */
	t[1].cancel = &t[2];
	pass_ns(10);
	expect_log("1");
	t[1].cancel = NULL;
	set(&t[0], 0, 10);
	t[0].again_ns = 5;
	pass_ns(10);
	pass_ns(4);
	expect_log("0");
	t[0].again_ns = 0;
	pass_ns(1);
	expect_log("0");
	pass_ns(100);
	expect_log("");
}

static void test_sleeps_until_the_first_timer(void)
{
	struct note_timer t[2] = { { .id = 0 } };
	u64 start = loop_now_ns(mock_loop);

	set(&t[0], 0, 5000);
	set(&t[1], 1, 3000);
	CU_ASSERT_EQUAL(loop_run_once(mock_loop, true), 0);
	CU_ASSERT_EQUAL(loop_now_ns(mock_loop), start + 3000);
	CU_ASSERT_EQUAL(loop_run_once(mock_loop, true), 1);
	expect_log("1");
	loop_timer_cancel(&t[0].timer);
	/* no timer: no deadline, the clock stands */
	CU_ASSERT_EQUAL(loop_run_once(mock_loop, true), 0);
	CU_ASSERT_EQUAL(loop_now_ns(mock_loop), start + 3000);
}

#define MODEL_TIMERS 12u

struct model_timer {
	struct loop_timer timer;
	u64 deadline_ns; /* 0: not set */
	u64 set_at; /* a count: who was set first goes first */
};

static struct {
	struct model_timer t[MODEL_TIMERS];
	u64 sets;
	u32 fired;
	u32 wrong;
} model;

static bool model_before(const struct model_timer *a, const struct model_timer *b)
{
	return a->deadline_ns != b->deadline_ns ? a->deadline_ns < b->deadline_ns :
						  a->set_at < b->set_at;
}

static void model_fired(struct loop *l, struct loop_timer *timer)
{
	struct model_timer *t = container_of(timer, struct model_timer, timer);
	u32 i;

	model.fired++;
	model.wrong += !t->deadline_ns || t->deadline_ns > loop_now_ns(l);
	for (i = 0; i < MODEL_TIMERS; i++)
		if (&model.t[i] != t && model.t[i].deadline_ns)
			model.wrong += model_before(&model.t[i], t);
	t->deadline_ns = 0;
}

static void model_step(struct rnd *r)
{
	struct model_timer *t = &model.t[rnd_below(r, MODEL_TIMERS)];
	u64 delay = rnd_below(r, 100);
	u32 i;

	switch (rnd_below(r, 4)) {
	case 0:
		loop_timer_cancel(&t->timer);
		t->deadline_ns = 0;
		return;
	case 1:
		pass_ns(rnd_below(r, 40));
		for (i = 0; i < MODEL_TIMERS; i++)
			model.wrong += model.t[i].deadline_ns &&
				       model.t[i].deadline_ns <= loop_now_ns(mock_loop);
		return;
	default:
		t->timer.fn = model_fired;
		loop_timer_set(mock_loop, &t->timer, delay);
		t->deadline_ns = loop_now_ns(mock_loop) + delay;
		t->set_at = ++model.sets;
	}
}

static void test_timers_random(void)
{
	struct rnd r = { rnd_seed("timers") };
	u32 i;

	memset(&model, 0, sizeof(model));
	for (i = 0; i < 20000; i++)
		model_step(&r);
	pass_ns(100);
	CU_ASSERT_EQUAL(model.wrong, 0);
	CU_ASSERT(model.fired > 1000);
}

/* ---- descriptors ---------------------------------------------------------- */

struct seen_poll {
	struct loop_poll poll;
	struct loop *loop;
	int fd;
	u32 times;
	int revents;
	sem_t done;
};

static void poll_seen(struct loop_poll *poll, int revents)
{
	struct seen_poll *p = container_of(poll, struct seen_poll, poll);

	p->times++;
	p->revents = revents;
	sem_post(&p->done);
}

static void poll_start(struct loop *l, void *arg)
{
	struct seen_poll *p = arg;

	p->poll.fn = poll_seen;
	loop_poll_add(l, &p->poll, p->fd, POLLIN);
}

static void poll_stop(struct loop *l, void *arg)
{
	struct seen_poll *p = arg;

	loop_poll_cancel(&p->poll);
}

static void test_poll(void)
{
	struct seen_poll p = { .loop = start_loop("polled"), .fd = eventfd(0, EFD_CLOEXEC) };
	u64 one = 1;

	CU_ASSERT_FATAL(p.fd >= 0);
	sem_init(&p.done, 0, 0);
	loop_call(p.loop, poll_start, &p);
	CU_ASSERT_EQUAL(write(p.fd, &one, sizeof(one)), sizeof(one));
	wait_for(&p.done);
	CU_ASSERT_EQUAL(p.revents, POLLIN);
	/* once only, though it is still readable; again when asked again */
	loop_call(p.loop, poll_start, &p);
	wait_for(&p.done);
	CU_ASSERT_EQUAL(p.times, 2);
	CU_ASSERT_EQUAL(read(p.fd, &one, sizeof(one)), sizeof(one));
	/* nothing to read: only the cancel ends it */
	loop_call(p.loop, poll_start, &p);
	loop_call(p.loop, poll_stop, &p);
	wait_for(&p.done);
	CU_ASSERT_EQUAL(p.revents, -ECANCELED);
	end_loop(p.loop);
	CU_ASSERT_EQUAL(p.times, 3);
	sem_destroy(&p.done);
	close(p.fd);
}

static void test_poll_on_its_way(void)
{
	struct seen_poll p = { .fd = 5 };

	sem_init(&p.done, 0, 0);
	poll_start(mock_loop, &p);
	io_mock_poll_end(mock, 5, POLLIN);
	loop_poll_cancel(&p.poll); /* too late */
	CU_ASSERT_EQUAL(p.times, 0);
	loop_run_once(mock_loop, false);
	CU_ASSERT_EQUAL(p.times, 1);
	CU_ASSERT_EQUAL(p.revents, POLLIN);
	poll_start(mock_loop, &p);
	loop_poll_cancel(&p.poll);
	CU_ASSERT_EQUAL(p.times, 1);
	loop_run_once(mock_loop, false);
	CU_ASSERT_EQUAL(p.revents, -ECANCELED);
	sem_destroy(&p.done);
}

/* ---- epochs --------------------------------------------------------------- */

static void note_quiescent(struct loop_grace *grace)
{
	CU_ASSERT_EQUAL(mock_loop->draining, NULL);
	io_mock_note(mock, "quiescent");
}

static void note_drained(struct loop_grace *grace)
{
	CU_ASSERT_EQUAL(mock_loop->draining, NULL); /* the next one may begin from here */
	io_mock_note(mock, "drained");
}

static struct loop_grace grace = { .quiescent = note_quiescent, .drained = note_drained };

static void begin(void)
{
	loop_grace_begin(mock_loop, &grace);
	loop_run_once(mock_loop, false);
}

static void test_epochs(void)
{
	u32 a, b, c;

	begin();
	expect_log("quiescent, drained"); /* no I/O: at once */
	a = loop_epoch_enter(mock_loop);
	b = loop_epoch_enter(mock_loop);
	CU_ASSERT_EQUAL(a, b);
	begin();
	expect_log("quiescent");
	c = loop_epoch_enter(mock_loop); /* newer: not waited for */
	CU_ASSERT_NOT_EQUAL(a, c);
	loop_epoch_exit(mock_loop, a);
	expect_log("");
	loop_epoch_exit(mock_loop, b);
	expect_log("drained");
	begin();
	expect_log("quiescent");
	loop_epoch_exit(mock_loop, c);
	expect_log("drained");
	/* I/O that comes and goes in the current epoch ends nothing */
	a = loop_epoch_enter(mock_loop);
	loop_epoch_exit(mock_loop, a);
	expect_log("");
}

/* ---- I/O on files: through the ring, and copied where the file is in memory ---- */

#define IO_BYTES 8192u

struct io_case {
	struct io_dev *dev;
	struct io_op op;
	char *buf;
	u32 step;
	bool on_stack; /* io_submit() is: nothing may end in it */
	sem_t done;
};

static void io_next(struct io_op *op, int error);

static void io_start(struct loop *l, void *arg)
{
	static const struct {
		enum io_op_type type;
		u32 len;
	} steps[] = { { IO_WRITE, IO_BYTES / 2 }, { IO_FLUSH, 0 }, { IO_READ, IO_BYTES } };
	struct io_case *c = arg;

	c->op = (struct io_op){ .dev = c->dev, .type = steps[c->step].type, .base = c->buf,
				.len = steps[c->step].len, .done = io_next };
	c->on_stack = true;
	io_submit(l, &c->op);
	c->on_stack = false;
}

static void io_next(struct io_op *op, int error)
{
	struct io_case *c = container_of(op, struct io_case, op);

	CU_ASSERT_EQUAL(error, 0);
	CU_ASSERT(!c->on_stack);
	if (op->type == IO_WRITE)
		memset(c->buf, 'x', IO_BYTES);
	if (++c->step == 3)
		sem_post(&c->done);
	else
		io_start(op->loop, c);
}

/* Written, flushed, and read to beyond the end: zeroes follow. */
static void io_on_file(const char *folder, bool in_memory)
{
	struct io_case c = { .buf = io_alloc(IO_BYTES) };
	struct loop *l = start_loop("files");
	struct qc_err err = { 0 };
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "%s/qchain-loop.XXXXXX", folder);
	fd = mkstemp(path);
	CU_ASSERT_FATAL(fd >= 0);
	close(fd);
	CU_ASSERT_EQUAL_FATAL(io_dev_open(path, IO_DEV_WRITE, &c.dev, &err), 0);
	CU_ASSERT(c.dev->in_memory || !in_memory); /* /var/tmp may be tmpfs, too */
	sem_init(&c.done, 0, 0);
	memset(c.buf, 'a', IO_BYTES);
	loop_call(l, io_start, &c);
	wait_for(&c.done);
	CU_ASSERT(c.buf[0] == 'a' && c.buf[IO_BYTES / 2 - 1] == 'a');
	CU_ASSERT(c.buf[IO_BYTES / 2] == 0 && c.buf[IO_BYTES - 1] == 0);
	end_loop(l);
	io_dev_close(c.dev);
	unlink(path);
	free(c.buf);
}

static void test_files(void)
{
	io_on_file("/var/tmp", false);
	io_on_file("/dev/shm", true);
}

int main(void)
{
	static const struct unit_test tests[] = {
		{ "messages of one sender in order", test_order },
		{ "a message is sent again", test_send_again },
		{ "only a sleeper is woken", test_wakes_only_sleepers },
		{ "awake after a sleep", test_awake_after_sleep },
		{ "a burst wakes once", test_wakes_once },
		{ "many senders, two loops", test_hammer },
		{ "ping pong", test_ping_pong },
		{ "no wake-up is lost", test_no_wake_is_lost },
		{ "stop runs what was sent", test_stop_runs_the_rest },
		{ "calls", test_call },
		{ "call from a loop", test_call_from_a_loop },
		{ "call on a loop without a thread", test_call_without_thread },
		{ "timers in order", test_timers_in_order },
		{ "timer set again", test_timer_set_again },
		{ "timer cancelled", test_timer_cancel },
		{ "sleeps until the first timer", test_sleeps_until_the_first_timer },
		{ "timers against a model", test_timers_random },
		{ "poll and cancel", test_poll },
		{ "cancel of a poll on its way", test_poll_on_its_way },
		{ "epochs", test_epochs },
		{ "files on disk and in memory", test_files },
		{ NULL, NULL },
	};

	alarm(WATCHDOG_S);
	return mock_main("loop", tests);
}
