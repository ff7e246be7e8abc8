/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Devices that take a millisecond, on a clock of their own. */
#ifndef SLOW_H
#define SLOW_H

#include <qchain/types.h>

/*
 * All loops of the program run on one thread. When none of them has anything to do, a
 * millisecond passes, and all I/O that is under way has ended with it; so has a synchronous
 * call. The clock therefore counts round trips that follow each other, and timers, and
 * nothing that the machine does meanwhile. The linker puts slow.c in the place of engines,
 * threads and system calls (--wrap, see the Makefile).
 */

u64 slow_now_ms(void);
/* Run all loops until @is_so(@arg). */
void slow_run_until(bool (*is_so)(void *arg), void *arg);

#endif
