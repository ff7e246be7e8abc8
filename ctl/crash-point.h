/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Named places at which a test ends qchainctl as a power cut would. */
#ifndef CTL_CRASH_POINT_H
#define CTL_CRASH_POINT_H

/* kill -9 of ourselves when the environment variable QCHAIN_CRASH_POINT is @name. */
void crash_point(const char *name);

#endif
