// SPDX-License-Identifier: GPL-2.0-or-later
/* Grace: wait until every loop has let go of what was published before. */
#include <assert.h>
#include <errno.h>
#include <qchain/map.h>
#include <stdlib.h>

/*
 * A round sends one message to every loop. A loop answers twice: at once (it
 * handles a message, so it holds no pointer into the map) and when the I/O of
 * its older epoch has ended. Rounds follow each other, one at a time; whoever
 * asks while a round runs is served by the next one, because the loops may
 * have answered the running one before the asker published.
 */

struct grace_loop {
	struct cds_list_head node;
	struct grace *grace;
	struct loop *loop;
	struct loop_grace ask;
	struct loop_msg quiescent;
	struct loop_msg drained;
	bool owes; /* on the home loop: has not said that it is drained */
};

static void grace_start_round(struct grace *grace);

static void grace_call(struct cds_list_head *list, bool drained)
{
	struct grace_waiter *w, *tmp;

	cds_list_for_each_entry_safe(w, tmp, list, node) {
		if (drained)
			cds_list_del(&w->node);
		if (drained && w->drained)
			w->drained(w);
		else if (!drained && w->quiescent)
			w->quiescent(w);
	}
}

static void grace_loop_drained(struct loop *home, struct loop_msg *msg)
{
	struct grace_loop *gl = container_of(msg, struct grace_loop, drained);
	struct grace *grace = gl->grace;
	CDS_LIST_HEAD(done);

	gl->owes = false;
	if (--grace->undrained)
		return;
	cds_list_splice(&grace->current, &done);
	CDS_INIT_LIST_HEAD(&grace->current);
	grace_call(&done, true); /* no loop owes an answer: they may remove one */
	grace->running = false;
	if (!cds_list_empty(&grace->next))
		grace_start_round(grace);
}

static void grace_loop_quiescent(struct loop *home, struct loop_msg *msg)
{
	struct grace *grace = container_of(msg, struct grace_loop, quiescent)->grace;

	if (--grace->unquiet == 0)
		grace_call(&grace->current, false);
}

/* These two run on the loop that was asked. */
static void tell_quiescent(struct loop_grace *ask)
{
	struct grace_loop *gl = container_of(ask, struct grace_loop, ask);

	loop_send(gl->grace->home, &gl->quiescent, grace_loop_quiescent);
}

static void tell_drained(struct loop_grace *ask)
{
	struct grace_loop *gl = container_of(ask, struct grace_loop, ask);

	loop_send(gl->grace->home, &gl->drained, grace_loop_drained);
}

static void grace_start_round(struct grace *grace)
{
	struct grace_loop *gl;

	cds_list_splice(&grace->next, &grace->current);
	CDS_INIT_LIST_HEAD(&grace->next);
	grace->running = true;
	grace->since_ns = loop_now_ns(grace->home);
	grace->unquiet = 0;
	grace->undrained = 0;
	cds_list_for_each_entry(gl, &grace->loops, node) {
		grace->unquiet++;
		grace->undrained++;
		gl->owes = true;
	}
	cds_list_for_each_entry(gl, &grace->loops, node)
		loop_grace_begin(gl->loop, &gl->ask);
}

void grace_wait(struct grace *grace, struct grace_waiter *waiter)
{
	assert_on_loop(grace->home);
	cds_list_add_tail(&waiter->node, &grace->next);
	if (!grace->running)
		grace_start_round(grace);
}

void grace_owing(const struct grace *grace, void (*visit)(const struct loop *loop, void *arg),
		 void *arg)
{
	struct grace_loop *gl;

	assert_on_loop(grace->home);
	cds_list_for_each_entry(gl, &grace->loops, node)
		if (gl->owes)
			visit(gl->loop, arg);
}

void grace_init(struct grace *grace, struct loop *home)
{
	*grace = (struct grace){ .home = home };
	CDS_INIT_LIST_HEAD(&grace->loops);
	CDS_INIT_LIST_HEAD(&grace->next);
	CDS_INIT_LIST_HEAD(&grace->current);
}

/*
 * A loop that joins in the middle of a round has not seen the old map: the
 * round does not count it. One that leaves must not owe an answer: callers
 * remove loops when a round has ended, from its callback.
 */
int grace_add_loop(struct grace *grace, struct loop *loop)
{
	struct grace_loop *gl = calloc(1, sizeof(*gl));

	assert_on_loop(grace->home);
	if (!gl)
		return -ENOMEM;
	gl->grace = grace;
	gl->loop = loop;
	gl->ask.quiescent = tell_quiescent;
	gl->ask.drained = tell_drained;
	cds_list_add_tail(&gl->node, &grace->loops);
	return 0;
}

void grace_remove_loop(struct grace *grace, struct loop *loop)
{
	struct grace_loop *gl, *tmp;

	assert_on_loop(grace->home);
	assert(!grace->undrained);
	cds_list_for_each_entry_safe(gl, tmp, &grace->loops, node) {
		if (gl->loop != loop)
			continue;
		cds_list_del(&gl->node);
		free(gl);
	}
}
