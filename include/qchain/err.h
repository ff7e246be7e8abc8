/* SPDX-License-Identifier: GPL-2.0-or-later OR MIT */
/* Errors that a person will read. Code below the boundary returns -errno. */
#ifndef QCHAIN_ERR_H
#define QCHAIN_ERR_H

#include <qchain/types.h>

/*
 * struct qc_err - one error, as it is shown to the user
 * @code: negative errno, 0 when nothing was set
 * @msg:  "<object>: <what failed> (<value>), <what is allowed>; <next step>"
 *
 * The caller owns it, on its stack mostly. The first error wins: a second
 * qc_err_set() on the same object keeps the first text.
 */
struct qc_err {
	int code;
	char msg[1024];
};

/*
 * qc_err_set - record an error; returns @code, so that `return qc_err_set(...)`
 * reads well. @err may be NULL (the caller does not want the text).
 */
int qc_err_set(struct qc_err *err, int code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* Put "@fmt: " in front of the text that @err already has; returns err->code. */
int qc_err_prefix(struct qc_err *err, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));

#endif
