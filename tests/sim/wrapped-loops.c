// SPDX-License-Identifier: GPL-2.0-or-later
/* Loops without threads, for the simulator and the fuzzer of a served chain. */
#include "wrapped-loops.h"

#include <stdio.h>
#include <stdlib.h>

struct loop *wrapped_loops[WRAPPED_LOOPS_MAX];
u32 nr_wrapped_loops;

int __real_loop_create(const char *name, struct io_engine *io_owned, struct loop **result);
void __real_loop_destroy(struct loop *loop);
int __wrap_loop_create(const char *name, struct io_engine *io_owned, struct loop **result);
void __wrap_loop_destroy(struct loop *loop);
int __wrap_loop_start(struct loop *loop, int cpu);
void __wrap_loop_stop(struct loop *loop);

int __wrap_loop_create(const char *name, struct io_engine *io_owned, struct loop **result)
{
	int ret = __real_loop_create(name, io_owned, result);

	if (ret)
		return ret;
	if (nr_wrapped_loops == WRAPPED_LOOPS_MAX) {
		fprintf(stderr, "more than %u loops\n", WRAPPED_LOOPS_MAX);
		abort();
	}
	wrapped_loops[nr_wrapped_loops++] = *result;
	return 0;
}

void __wrap_loop_destroy(struct loop *loop)
{
	u32 i, n = 0;

	for (i = 0; i < nr_wrapped_loops; i++)
		if (wrapped_loops[i] != loop)
			wrapped_loops[n++] = wrapped_loops[i];
	nr_wrapped_loops = n;
	__real_loop_destroy(loop);
}

int __wrap_loop_start(struct loop *loop, int cpu)
{
	return 0;
}

void __wrap_loop_stop(struct loop *loop)
{
	while (loop_run_once(loop, false))
		;
}

u64 wrapped_loops_deadline(void)
{
	u64 next = 0;
	u32 i;

	for (i = 0; i < nr_wrapped_loops; i++) {
		struct loop_timer *t;

		if (cds_list_empty(&wrapped_loops[i]->timers))
			continue;
		t = cds_list_first_entry(&wrapped_loops[i]->timers, struct loop_timer, node);
		if (!next || t->deadline_ns < next)
			next = t->deadline_ns;
	}
	return next;
}
