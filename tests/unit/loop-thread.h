/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Loops that run on threads of their own, on io_uring. */
#ifndef UNIT_LOOP_THREAD_H
#define UNIT_LOOP_THREAD_H

#include "unit.h"

#include <qchain/loop.h>
#include <semaphore.h>

static inline void wait_for(sem_t *sem)
{
	while (sem_wait(sem) < 0)
		;
}

static inline struct loop *start_loop(const char *name)
{
	struct io_engine *io;
	struct loop *l;

	CU_ASSERT_EQUAL_FATAL(io_uring_engine_create(64, &io), 0);
	CU_ASSERT_EQUAL_FATAL(loop_create(name, io, &l), 0);
	CU_ASSERT_EQUAL_FATAL(loop_start(l, -1), 0);
	return l;
}

static inline void end_loop(struct loop *l)
{
	loop_stop(l);
	loop_destroy(l);
}

#endif
