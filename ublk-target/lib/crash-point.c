// SPDX-License-Identifier: GPL-2.0-or-later
/* Crash points, for tests. */
#include <qchain/crash-point.h>

#include <signal.h>
#include <stdlib.h>
#include <string.h>

void crash_point(const char *name)
{
	static unsigned long seen;
	const char *wanted = getenv("QCHAIN_CRASH_POINT");
	size_t len = strlen(name);

	if (!wanted || strncmp(wanted, name, len) || (wanted[len] && wanted[len] != ':'))
		return;
	if (!wanted[len] || ++seen == strtoul(wanted + len + 1, NULL, 10))
		raise(SIGKILL);
}
