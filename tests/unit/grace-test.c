// SPDX-License-Identifier: GPL-2.0-or-later
/* Grace: rounds step by step on mock loops, then with threads that read the map. */
#include "loop-thread.h"
#include "mock-loop.h"
#include "random.h"

#include <errno.h>
#include <qchain/map.h>
#include <sched.h>
#include <semaphore.h>
#include <stdlib.h>
#include <unistd.h>

#define WATCHDOG_S 120

static struct grace grace;

/* ---- rounds, step by step ------------------------------------------------- */

struct note_waiter {
	struct grace_waiter waiter;
	char name;
	struct note_waiter *then; /* asks from @drained */
	struct loop *remove; /* from @drained */
};

static void note_quiescent(struct grace_waiter *waiter)
{
	io_mock_note(mock, "%c quiescent", container_of(waiter, struct note_waiter, waiter)->name);
}

static void note_drained(struct grace_waiter *waiter)
{
	struct note_waiter *w = container_of(waiter, struct note_waiter, waiter);

	io_mock_note(mock, "%c drained", w->name);
	if (w->then)
		grace_wait(&grace, &w->then->waiter);
	if (w->remove)
		grace_remove_loop(&grace, w->remove);
}

static struct note_waiter waiter(char name)
{
	return (struct note_waiter){ .name = name, .waiter = { .quiescent = note_quiescent,
							       .drained = note_drained } };
}

static struct loop *others[2];

static struct loop *make_loop(const char *name)
{
	struct io_engine *io;
	struct loop *l;

	CU_ASSERT_EQUAL_FATAL(io_mock_engine_create(&io), 0);
	CU_ASSERT_EQUAL_FATAL(loop_create(name, io, &l), 0);
	return l;
}

static void start(void)
{
	grace_init(&grace, mock_loop);
	others[0] = make_loop("a");
	others[1] = make_loop("b");
	CU_ASSERT_EQUAL(grace_add_loop(&grace, mock_loop), 0);
	CU_ASSERT_EQUAL(grace_add_loop(&grace, others[0]), 0);
	CU_ASSERT_EQUAL(grace_add_loop(&grace, others[1]), 0);
}

static void stop(void)
{
	grace_remove_loop(&grace, mock_loop);
	grace_remove_loop(&grace, others[0]);
	grace_remove_loop(&grace, others[1]);
	CU_ASSERT(cds_list_empty(&grace.loops));
	loop_destroy(others[0]);
	loop_destroy(others[1]);
}

static void run_home(void)
{
	while (loop_run_once(mock_loop, false))
		;
}

static void run_all(void)
{
	while (loop_run_once(mock_loop, false) + loop_run_once(others[0], false) +
	       loop_run_once(others[1], false))
		;
}

static void test_every_loop_answers(void)
{
	struct note_waiter a = waiter('a');

	start();
	grace_wait(&grace, &a.waiter);
	run_home();
	expect_log("");
	loop_run_once(others[0], false);
	run_home();
	expect_log("");
	loop_run_once(others[1], false);
	run_home();
	expect_log("a quiescent, a drained");
	stop();
}

static void test_drained_after_old_io(void)
{
	struct note_waiter a = waiter('a');
	u32 old, fresh, home;

	start();
	old = loop_epoch_enter(others[0]);
	home = loop_epoch_enter(mock_loop);
	grace_wait(&grace, &a.waiter);
	run_all();
	expect_log("a quiescent");
	fresh = loop_epoch_enter(others[0]); /* under the new map: not waited for */
	loop_epoch_exit(others[0], old);
	run_all();
	expect_log("");
	loop_epoch_exit(mock_loop, home);
	run_all();
	expect_log("a drained");
	loop_epoch_exit(others[0], fresh);
	stop();
}

/* Who asks while a round runs may have published after a loop's answer. */
static void test_next_round(void)
{
	struct note_waiter a = waiter('a'), b = waiter('b'), c = waiter('c');

	start();
	a.then = &c;
	grace_wait(&grace, &a.waiter);
	loop_run_once(others[0], false);
	loop_run_once(others[1], false);
	grace_wait(&grace, &b.waiter);
	loop_run_once(mock_loop, false); /* its own epoch, and the others' answers */
	loop_run_once(mock_loop, false); /* its own answer */
	expect_log("a quiescent, a drained");
	run_home();
	expect_log(""); /* the others have not answered the round of b and c */
	run_all();
	expect_log("b quiescent, c quiescent, b drained, c drained");
	stop();
}

/* Asking anew and removing a loop, both from the end of one round. */
static void test_remove_at_the_end(void)
{
	struct note_waiter a = waiter('a'), b = waiter('b'), c = waiter('c');

	start();
	a.then = &c;
	b.remove = others[1];
	grace_wait(&grace, &a.waiter); /* a round of its own */
	run_all();
	a.then = NULL;
	run_all();
	expect_log("a quiescent, a drained, c quiescent, c drained");
	c = waiter('c');
	a.then = &c;
	grace_wait(&grace, &c.waiter);
	c.then = NULL;
	/* a and b share the round after it */
	a = waiter('a');
	a.then = &c;
	grace_wait(&grace, &a.waiter);
	grace_wait(&grace, &b.waiter);
	run_all();
	expect_log("c quiescent, c drained, a quiescent, b quiescent, a drained, b drained, "
		   "c quiescent, c drained");
	stop();
}

/* A loop that joins in the middle of a round is asked from the next one on. */
static void test_join_in_a_round(void)
{
	struct note_waiter a = waiter('a'), b = waiter('b');
	struct loop *late = make_loop("late");

	start();
	grace_wait(&grace, &a.waiter);
	CU_ASSERT_EQUAL(grace_add_loop(&grace, late), 0);
	run_all();
	expect_log("a quiescent, a drained");
	grace_wait(&grace, &b.waiter);
	run_all();
	expect_log("");
	loop_run_once(late, false);
	run_all();
	expect_log("b quiescent, b drained");
	grace_remove_loop(&grace, late);
	stop();
	loop_destroy(late);
}

/* Both callbacks may be missing. */
static void test_no_callbacks(void)
{
	struct grace_waiter w = { .quiescent = NULL };

	start();
	grace_wait(&grace, &w);
	run_all();
	CU_ASSERT_FALSE(grace.running);
	stop();
}

/* ---- threads -------------------------------------------------------------- */

/*
 * Each window is one extent whose host is its generation. A reader takes the
 * generation that it sees into an I/O of its epoch. When the writer hears that a
 * replaced generation is drained, nobody may have I/O of it; when it hears that
 * all are quiescent it frees the memory, and the sanitizers watch.
 */
#define READERS 3u
#define WINDOWS 4u
#define THREAD_WINDOW_BITS 16u
#define ROUNDS 3000u
#define REJOINS 150u
#define MAX_IOS 16u
#define MAX_BURST 3u
#define GENERATION_BYTES (1ull << 20)

struct reader {
	struct loop *loop;
	struct loop_msg tick;
	struct rnd random;
	bool stopping;
	sem_t stopped;
	u32 nr_ios;
	struct {
		u32 epoch;
		u32 generation;
	} ios[MAX_IOS];
};

struct replaced {
	struct grace_waiter waiter;
	struct cds_list_head pieces;
	struct cds_list_head windows;
	u32 generation;
};

static struct {
	struct loop *meta;
	struct map map;
	struct reader readers[READERS];
	u32 in_flight[WINDOWS + ROUNDS + 1]; /* by generation; atomic, relaxed */
	u32 early; /* generations drained with I/O in flight; metadata loop */
	u32 torn; /* atomic */
	u64 looked; /* atomic */
	u32 shown[WINDOWS]; /* generations; metadata loop */
	u32 generation;
	u32 outstanding;
	struct loop_msg tick;
	struct rnd random;
	sem_t done;
} t;

static void io_begin(struct reader *r)
{
	u64 window = rnd_below(&r->random, WINDOWS);
	u64 in = SECTOR_SIZE * rnd_below(&r->random, 64);
	u64 offset = (window << THREAD_WINDOW_BITS) + in;
	struct run runs[8];
	u32 generation;
	int n = map_resolve(&t.map, offset, 8 * SECTOR_SIZE, runs);

	if (n == -EAGAIN) /* between an old window and the one installed over it */
		return;
	if (n != 1 || runs[0].kind != EXTENT_DATA || runs[0].host % GENERATION_BYTES != in) {
		__atomic_add_fetch(&t.torn, 1, __ATOMIC_RELAXED);
		return;
	}
	generation = runs[0].host / GENERATION_BYTES;
	__atomic_add_fetch(&t.in_flight[generation], 1, __ATOMIC_RELAXED);
	__atomic_add_fetch(&t.looked, 1, __ATOMIC_RELAXED);
	r->ios[r->nr_ios].epoch = loop_epoch_enter(r->loop);
	r->ios[r->nr_ios++].generation = generation;
}

static void io_finish(struct reader *r, u32 i)
{
	u32 epoch = r->ios[i].epoch;

	__atomic_sub_fetch(&t.in_flight[r->ios[i].generation], 1, __ATOMIC_RELAXED);
	r->ios[i] = r->ios[--r->nr_ios];
	loop_epoch_exit(r->loop, epoch);
}

/* What was seen in an event stays as it is until the event ends. */
static const struct piece *hold_piece(u64 window, struct extent *content)
{
	struct window *w = __atomic_load_n(&t.map.windows[window], __ATOMIC_ACQUIRE);
	const struct piece *p = w ? __atomic_load_n(&w->pieces[0], __ATOMIC_ACQUIRE) : NULL;

	if (p)
		*content = p->extents[0];
	return p;
}

static void reader_tick(struct loop *l, struct loop_msg *msg)
{
	struct reader *r = container_of(msg, struct reader, tick);
	const struct piece *held;
	struct extent before = { .host = 0 };
	u32 i;

	if (r->stopping) {
		while (r->nr_ios)
			io_finish(r, 0);
		sem_post(&r->stopped);
		return;
	}
	held = hold_piece(rnd_below(&r->random, WINDOWS), &before);
	for (i = rnd_below(&r->random, 20); i; i--) {
		if (r->nr_ios && (r->nr_ios == MAX_IOS || rnd_once(&r->random, 2)))
			io_finish(r, rnd_below(&r->random, r->nr_ios));
		else
			io_begin(r);
	}
	sched_yield(); /* more threads than cores: let the others have their turn */
	if (held && held->extents[0].host != before.host)
		__atomic_add_fetch(&t.torn, 1, __ATOMIC_RELAXED);
	loop_send(l, msg, reader_tick);
}

static void writer_tick(struct loop *l, struct loop_msg *msg);

static void replaced_quiescent(struct grace_waiter *w)
{
	struct replaced *r = container_of(w, struct replaced, waiter);

	map_free_retired(&r->pieces, &r->windows);
}

static void replaced_drained(struct grace_waiter *w)
{
	struct replaced *r = container_of(w, struct replaced, waiter);

	if (__atomic_load_n(&t.in_flight[r->generation], __ATOMIC_RELAXED))
		t.early++;
	free(r);
	if (--t.outstanding)
		return;
	if (t.generation < WINDOWS + ROUNDS)
		loop_send(t.meta, &t.tick, writer_tick);
	else
		sem_post(&t.done);
}

static struct extent generation_extent(u32 generation)
{
	return (struct extent){ .kind = EXTENT_DATA, .host = generation * GENERATION_BYTES };
}

/* A new generation of one window, as an update or as a new window. */
static void publish(u32 window)
{
	struct replaced *r = malloc(sizeof(*r));
	u64 bytes = 1ull << THREAD_WINDOW_BITS;
	struct map_update u = { .offset = window * bytes, .len = bytes };

	CU_ASSERT_FATAL(r != NULL);
	*r = (struct replaced){ .generation = t.shown[window],
				.waiter = { .quiescent = replaced_quiescent,
					    .drained = replaced_drained } };
	t.shown[window] = ++t.generation;
	u.extent = generation_extent(t.generation);
	if (rnd_once(&t.random, 2))
		map_apply(&t.map, &u, 1);
	else
		map_install(&t.map, window, &u.extent, 1, bytes / SECTOR_SIZE);
	CDS_INIT_LIST_HEAD(&r->pieces);
	CDS_INIT_LIST_HEAD(&r->windows);
	map_take_retired(&t.map, &r->pieces, &r->windows);
	t.outstanding++;
	grace_wait(&grace, &r->waiter);
}

/* The first of a burst starts a round, the others join the one after it. */
static void writer_tick(struct loop *l, struct loop_msg *msg)
{
	u32 burst = rnd_between(&t.random, 1, MAX_BURST);

	while (burst-- && t.generation < WINDOWS + ROUNDS)
		publish(rnd_below(&t.random, WINDOWS));
}

static void meta_start(struct loop *l, void *arg)
{
	u32 i;

	map_init(&t.map, (u64)WINDOWS << THREAD_WINDOW_BITS, THREAD_WINDOW_BITS, 1ull << 30,
		 NULL);
	for (i = 0; i < WINDOWS; i++) {
		struct extent e = generation_extent(i + 1);

		map_install(&t.map, i, &e, 1, 1u << (THREAD_WINDOW_BITS - SECTOR_SHIFT));
		t.shown[i] = i + 1;
	}
	t.generation = WINDOWS;
	grace_init(&grace, l);
	CU_ASSERT_EQUAL(grace_add_loop(&grace, l), 0);
}

static void reader_add(struct loop *l, void *arg)
{
	struct reader *r = arg;

	CU_ASSERT_EQUAL(grace_add_loop(&grace, r->loop), 0);
}

/* As the target does it: first it takes part, then it reads. */
static void reader_join(struct reader *r)
{
	r->stopping = false;
	loop_call(t.meta, reader_add, r);
	loop_send(r->loop, &r->tick, reader_tick);
}

struct leaving {
	struct grace_waiter waiter;
	struct reader *reader;
	sem_t done;
};

static void leaving_drained(struct grace_waiter *w)
{
	struct leaving *l = container_of(w, struct leaving, waiter);

	grace_remove_loop(&grace, l->reader->loop);
	sem_post(&l->done);
}

static void leave_ask(struct loop *l, void *arg)
{
	struct leaving *leaving = arg;

	grace_wait(&grace, &leaving->waiter);
}

static void reader_stop(struct loop *l, void *arg)
{
	struct reader *r = arg;

	r->stopping = true;
}

static void reader_leave(struct reader *r)
{
	struct leaving leaving = { .reader = r, .waiter = { .drained = leaving_drained } };

	loop_call(r->loop, reader_stop, r);
	wait_for(&r->stopped);
	sem_init(&leaving.done, 0, 0);
	loop_call(t.meta, leave_ask, &leaving);
	wait_for(&leaving.done);
	sem_destroy(&leaving.done);
}

static void meta_end(struct loop *l, void *arg)
{
	grace_remove_loop(&grace, l);
	CU_ASSERT(cds_list_empty(&grace.loops));
	map_exit(&t.map);
}

static void start_threads(u64 seed)
{
	u32 i;

	memset(&t, 0, sizeof(t));
	sem_init(&t.done, 0, 0);
	t.random.state = seed;
	t.meta = start_loop("meta");
	loop_call(t.meta, meta_start, NULL);
	for (i = 0; i < READERS; i++) {
		struct reader *r = &t.readers[i];

		r->random.state = seed + i + 1;
		r->loop = start_loop("reader");
		sem_init(&r->stopped, 0, 0);
		reader_join(r);
	}
}

static void stop_threads(void)
{
	u32 i;

	for (i = 0; i < READERS; i++) {
		reader_leave(&t.readers[i]);
		end_loop(t.readers[i].loop);
		sem_destroy(&t.readers[i].stopped);
	}
	loop_call(t.meta, meta_end, NULL);
	end_loop(t.meta);
	sem_destroy(&t.done);
}

/* Readers read, the writer replaces, and loops leave and come back meanwhile. */
static void test_threads(void)
{
	struct rnd r = { rnd_seed("grace") };
	u32 i, left = 0;

	start_threads(rnd(&r));
	loop_send(t.meta, &t.tick, writer_tick);
	for (i = 0; i < REJOINS; i++) {
		struct reader *reader = &t.readers[rnd_below(&r, READERS)];

		reader_leave(reader);
		reader_join(reader);
	}
	wait_for(&t.done);
	stop_threads();
	for (i = 0; i < ARRAY_SIZE(t.in_flight); i++)
		left += t.in_flight[i];
	CU_ASSERT_EQUAL(t.early, 0);
	CU_ASSERT_EQUAL(t.torn, 0);
	CU_ASSERT_EQUAL(left, 0);
	CU_ASSERT(t.looked > 100);
}

int main(void)
{
	static const struct unit_test tests[] = {
		{ "every loop answers", test_every_loop_answers },
		{ "drained after old I/O", test_drained_after_old_io },
		{ "the next round", test_next_round },
		{ "a loop leaves at the end of a round", test_remove_at_the_end },
		{ "a loop joins in a round", test_join_in_a_round },
		{ "no callbacks", test_no_callbacks },
		{ "threads", test_threads },
		{ NULL, NULL },
	};

	alarm(WATCHDOG_S);
	return mock_main("grace", tests);
}
