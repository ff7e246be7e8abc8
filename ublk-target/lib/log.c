// SPDX-License-Identifier: GPL-2.0-or-later
/* Log lines on standard error, one write(2) each, so that threads do not mix. */
#include <qchain/log.h>
#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

static enum log_level level_max = LOG_LEVEL_INFO;

void log_set_level(enum log_level level)
{
	level_max = level;
}

void log_write(enum log_level level, const char *fmt, ...)
{
	/* sd-daemon(3) levels, so that the journal sorts the lines; words for people. */
	static const char *const levels[] = { "<3>qchaind: ", "<4>qchaind: ", "<6>qchaind: ",
					      "<7>qchaind: " };
	static const char *const words[] = { "qchaind: error: ", "qchaind: warning: ",
					     "qchaind: ", "qchaind: debug: " };
	char line[1280];
	va_list ap;
	int n, m;

	if (level > level_max)
		return;
	n = snprintf(line, sizeof(line), "%s",
		     isatty(STDERR_FILENO) ? words[level] : levels[level]);
	va_start(ap, fmt);
	m = vsnprintf(line + n, sizeof(line) - n - 1, fmt, ap);
	va_end(ap);
	if (m < 0)
		return;
	n = n + m < (int)sizeof(line) - 1 ? n + m : (int)sizeof(line) - 2;
	line[n++] = '\n';
	if (write(STDERR_FILENO, line, n) < 0)
		return; /* nowhere left to say it */
}
