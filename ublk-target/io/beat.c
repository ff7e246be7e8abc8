// SPDX-License-Identifier: GPL-2.0-or-later
/* Heartbeat: every loop with a thread is asked by a message whether it is alive. */
#include <qchain/loop.h>

/*
 * A loop never blocks outside its engine, so one that is well takes the message at
 * once, whatever the devices below do. The list is for control paths: loops come and
 * go by loop_start() and loop_stop(), and nobody holds the lock for long.
 */

static pthread_mutex_t beats_lock = PTHREAD_MUTEX_INITIALIZER;
static CDS_LIST_HEAD(beats);

void loop_beat_join(struct loop *loop)
{
	pthread_mutex_lock(&beats_lock);
	cds_list_add_tail(&loop->beat_node, &beats);
	pthread_mutex_unlock(&beats_lock);
}

void loop_beat_leave(struct loop *loop)
{
	pthread_mutex_lock(&beats_lock);
	cds_list_del(&loop->beat_node);
	pthread_mutex_unlock(&beats_lock);
}

static void beat_answer(struct loop *loop, struct loop_msg *msg)
{
	__atomic_store_n(&loop->beat_owed, 0, __ATOMIC_RELEASE);
}

void loop_beat_all(u64 now_ns, void (*fn)(void *arg, const char *name, u64 owed_ns), void *arg)
{
	struct loop *loop;

	pthread_mutex_lock(&beats_lock);
	cds_list_for_each_entry(loop, &beats, beat_node) {
		if (__atomic_load_n(&loop->beat_owed, __ATOMIC_ACQUIRE)) {
			fn(arg, loop->name, now_ns - loop->beat_asked_ns);
			continue;
		}
		fn(arg, loop->name, 0);
		loop->beat_asked_ns = now_ns;
		__atomic_store_n(&loop->beat_owed, 1, __ATOMIC_RELAXED);
		loop_send(loop, &loop->beat, beat_answer);
	}
	pthread_mutex_unlock(&beats_lock);
}
