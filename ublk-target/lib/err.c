// SPDX-License-Identifier: GPL-2.0-or-later
/* The one place where the text of an error is put together. */
#include <qchain/err.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int qc_err_set(struct qc_err *err, int code, const char *fmt, ...)
{
	va_list ap;

	if (!err || err->code)
		return code;
	err->code = code;
	va_start(ap, fmt);
	vsnprintf(err->msg, sizeof(err->msg), fmt, ap);
	va_end(ap);
	return code;
}

int qc_err_prefix(struct qc_err *err, const char *fmt, ...)
{
	char text[sizeof(err->msg)];
	va_list ap;
	int n;

	if (!err || !err->code)
		return err ? err->code : 0;
	va_start(ap, fmt);
	n = vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	if (n >= 0 && n < (int)sizeof(text))
		snprintf(text + n, sizeof(text) - n, ": %s", err->msg);
	memcpy(err->msg, text, sizeof(err->msg));
	return err->code;
}
