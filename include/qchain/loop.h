/* SPDX-License-Identifier: GPL-2.0-or-later OR MIT */
/* One event loop: one thread, one I/O engine, one inbox. */
#ifndef QCHAIN_LOOP_H
#define QCHAIN_LOOP_H

#include <pthread.h>
#include <qchain/err.h>
#include <qchain/io.h>
#include <qchain/types.h>
#include <urcu/list.h>

/*
 * Everything that runs in the daemon runs on a loop: queues, the metadata
 * thread, NBD, control. Threads share nothing but messages and what the map
 * publishes. Nothing that runs on a loop blocks outside loop_run_once(), so
 * that the simulator can drive the same code on one thread.
 */

/*
 * struct loop_msg - a message to another loop, embedded in what it is about
 * @fn: runs once, on the thread of the loop that it was sent to
 *
 * The sender owns it until loop_send(), the receiver from then on: it must not
 * be sent again before @fn was called.
 */
struct loop_msg {
	struct loop_msg *next; /* in the inbox */
	void (*fn)(struct loop *loop, struct loop_msg *msg);
};

/*
 * struct loop_timer - call @fn once, when the loop's clock has reached @deadline_ns
 */
struct loop_timer {
	struct cds_list_head node;
	u64 deadline_ns; /* 0: not set */
	void (*fn)(struct loop *loop, struct loop_timer *timer);
};

/*
 * struct loop_poll - wait once for a descriptor
 * @fn: @revents as poll(2), or negative errno (-ECANCELED after loop_poll_cancel)
 */
struct loop_poll {
	struct io_completion completion;
	struct loop *loop;
	void (*fn)(struct loop_poll *poll, int revents);
};

/* Called on the loop's thread when the I/O of older epochs has ended. */
struct loop_grace {
	struct loop_msg msg;
	void (*quiescent)(struct loop_grace *grace);
	void (*drained)(struct loop_grace *grace);
};

struct target_stats;

/* Loops that one loop wakes together; further ones it wakes at once. */
#define LOOP_MAX_WAKES 8u

struct loop {
	/* set once */
	const char *name;
	struct io_engine *io;
	pthread_t thread;
	bool has_thread;

	/* any thread */
	struct loop_msg *inbox; /* newest first; pushed by CAS, taken whole */
	u32 sleeping; /* atomic: the thread waits in the engine */
	bool stop; /* atomic */
	u32 beat_owed; /* atomic: asked by loop_beat_all(), not answered */

	/* under the lock of the heartbeat */
	struct cds_list_head beat_node;
	struct loop_msg beat;
	u64 beat_asked_ns;

	/* loop thread only */
	struct cds_list_head timers;
	u32 epoch; /* parity of the epoch that new I/O enters */
	u32 epoch_ios[2];
	struct loop_grace *draining; /* who waits for the other parity, or NULL */
	u64 batch_ns; /* of loop_batch_ns(); 0: not asked for yet */
	struct loop *wakes[LOOP_MAX_WAKES]; /* that it has sent to and not woken yet */
	u32 nr_wakes;

	/* the target's memory on this loop: set by attach, loop thread only */
	void *scratch; /* QC_MAX_REQUEST_BYTES / 512 runs */
	struct io_op *ops; /* for requests of more than one extent */
	struct cds_list_head free_ops;
	u32 nr_free_ops;
	struct cds_list_head op_waiters; /* struct request */
	struct target_stats *stats; /* of the target that it is attached to, or NULL */
};

/*
 * loop_create - a loop on @io_owned; no thread yet.
 * loop_start - run it on a thread of its own until loop_stop(); @cpu -1 = any.
 * loop_stop - any thread but the loop's own: make it leave, join the thread.
 * loop_destroy - frees loop and engine; no I/O, timer or poll may be pending.
 */
int loop_create(const char *name, struct io_engine *io_owned, struct loop **result);
int loop_start(struct loop *loop, int cpu);
void loop_stop(struct loop *loop);
void loop_destroy(struct loop *loop);

/*
 * loop_run_once - take the inbox, due timers and completions, in that order
 * @wait: sleep in the engine when nothing was there
 *
 * Returns the number of events handled. Loop thread only.
 */
int loop_run_once(struct loop *loop, bool wait);

/* Run loop_run_once() until loop_quit() was called on this loop. */
void loop_run(struct loop *loop);
void loop_quit(struct loop *loop); /* any thread */

/*
 * loop_sleep_begin - for engines, right before they sleep: senders wake the loop
 * from now on, until loop_sleep_end(). False: something came, do not sleep.
 */
bool loop_sleep_begin(struct loop *loop);
void loop_sleep_end(struct loop *loop);

/* For engines: is there a message that was not taken yet? */
static inline bool loop_has_messages(const struct loop *loop)
{
	return __atomic_load_n(&loop->inbox, __ATOMIC_RELAXED);
}

/* Any thread, never blocks. Messages of one sender arrive in order. */
void loop_send(struct loop *to, struct loop_msg *msg,
	       void (*fn)(struct loop *loop, struct loop_msg *msg));

/*
 * loop_will_block - wake now whom this thread's loop has sent messages to
 *
 * Wake-ups wait until all that has come was handled, which saves many. Whoever waits
 * for something else first calls this, or keeps those asleep for as long: for ever,
 * where that depends on one of them. loop_call() does.
 */
void loop_will_block(void);

/*
 * loop_call - run @fn(@arg) on @to's thread and wait until it has returned.
 * For control paths; never from a queue thread, never from @to itself.
 */
void loop_call(struct loop *to, void (*fn)(struct loop *loop, void *arg), void *arg);

/* Is this thread the loop's own? Every stage asserts it first. */
bool loop_is_current(const struct loop *loop);
#define assert_on_loop(l) assert(loop_is_current(l))

/*
 * Heartbeat (beat.c). Loops with a thread of their own join and leave by loop_start()
 * and loop_stop(); one that a thread runs by loop_run() is made to by its owner, and
 * leaves before it is destroyed.
 *
 * loop_beat_all - ask all that have joined whether they are alive; @fn is told for how
 * long each owes its answer to an earlier question, 0: it owes none. From one thread,
 * not that of a loop. @now_ns: CLOCK_MONOTONIC.
 */
void loop_beat_join(struct loop *loop);
void loop_beat_leave(struct loop *loop);
void loop_beat_all(u64 now_ns, void (*fn)(void *arg, const char *name, u64 owed_ns), void *arg);

u64 loop_now_ns(const struct loop *loop);

/*
 * loop_batch_ns - the time at which the completions or messages that are being
 * run were taken from the engine or the inbox, or a little later: one look at
 * the clock for all of them, and none when nobody asks. Loop thread only.
 */
static inline u64 loop_batch_ns(struct loop *loop)
{
	if (!loop->batch_ns)
		loop->batch_ns = loop_now_ns(loop);
	return loop->batch_ns;
}

void loop_timer_set(struct loop *loop, struct loop_timer *timer, u64 delay_ns);
void loop_timer_cancel(struct loop_timer *timer);

/* poll(2) events, once; the descriptor stays the caller's. */
void loop_poll_add(struct loop *loop, struct loop_poll *poll, int fd, short events);
/* @poll->fn still runs, with -ECANCELED unless it was already on its way. */
void loop_poll_cancel(struct loop_poll *poll);

/*
 * Epochs (rule C2). An I/O that was issued under the map of the moment enters
 * the current epoch and leaves it when it has ended. Parked requests hold none.
 */
static inline u32 loop_epoch_enter(struct loop *loop)
{
	loop->epoch_ios[loop->epoch]++;
	return loop->epoch;
}

void loop_epoch_drained(struct loop *loop);

static inline void loop_epoch_exit(struct loop *loop, u32 epoch)
{
	if (--loop->epoch_ios[epoch] == 0 && loop->draining && epoch != loop->epoch)
		loop_epoch_drained(loop);
}

/*
 * loop_grace_begin - ask @loop to start a new epoch. Any thread. On @loop's
 * thread, @quiescent is called first: no pointer into the map that was loaded
 * before is in use any more, memory may be freed; then @drained: the I/O of
 * the older epoch has ended, clusters may be reused. One at a time for a loop.
 */
void loop_grace_begin(struct loop *loop, struct loop_grace *grace);

#endif
