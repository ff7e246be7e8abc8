/* SPDX-License-Identifier: GPL-2.0-or-later OR MIT */
/* The daemon's log: standard error or syslog; never used on the fast path. */
#ifndef QCHAIN_LOG_H
#define QCHAIN_LOG_H

enum log_level { LOG_LEVEL_ERROR, LOG_LEVEL_WARN, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG };

/* Set once at start, before threads exist. */
void log_set_level(enum log_level level);

/* Any thread; blocks as write(2) does, therefore not for queue threads. */
void log_write(enum log_level level, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));

#define log_error(...) log_write(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warn(...) log_write(LOG_LEVEL_WARN, __VA_ARGS__)
#define log_info(...) log_write(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...) log_write(LOG_LEVEL_DEBUG, __VA_ARGS__)

#endif
