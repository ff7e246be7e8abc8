// SPDX-License-Identifier: GPL-2.0-or-later
/* Crash points, for tests. */
#include <qchain/crash-point.h>

#include <signal.h>
#include <stdlib.h>
#include <string.h>

void crash_point(const char *name)
{
	const char *wanted = getenv("QCHAIN_CRASH_POINT");

	if (wanted && strcmp(wanted, name) == 0)
		raise(SIGKILL);
}
