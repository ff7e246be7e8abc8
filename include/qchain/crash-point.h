/* SPDX-License-Identifier: GPL-2.0-or-later OR MIT */
/* Named places at which a test ends a program as a power cut would. Room lib/. */
#ifndef QCHAIN_CRASH_POINT_H
#define QCHAIN_CRASH_POINT_H

/*
 * kill -9 of ourselves when the environment variable QCHAIN_CRASH_POINT is @name;
 * when it is "@name:N", at the N-th call. One thread calls it with a name that has N.
 */
void crash_point(const char *name);

#endif
