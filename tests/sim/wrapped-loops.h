/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Loops without threads: one thread runs all that the daemon has made. */
#ifndef WRAPPED_LOOPS_H
#define WRAPPED_LOOPS_H

#include <qchain/loop.h>

/*
 * The linker puts loop_create(), _destroy(), _start() and _stop() of wrapped-loops.c in the
 * place of the product's (--wrap, see the Makefile).
 */
#define WRAPPED_LOOPS_MAX 32u

extern struct loop *wrapped_loops[WRAPPED_LOOPS_MAX];
extern u32 nr_wrapped_loops;

/* When the first timer of them all is due; 0: none is set. */
u64 wrapped_loops_deadline(void);

#endif
