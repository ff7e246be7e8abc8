/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Running lvm and reading what it reports. Private to lvm/. */
#ifndef LVM_PRIVATE_H
#define LVM_PRIVATE_H

#include <qchain/err.h>
#include <qchain/lvm.h>

#define LVM_REPORT_TIMEOUT_MS 60000u
#define LVM_CHANGE_TIMEOUT_MS 180000u

/*
 * lvm_run - run `lvm ARGS...` and wait for it
 * @object: what it is about, first word of messages
 * @args: the command first, NULL-terminated; no shell sees them
 * @output: what it printed, malloc'ed; NULL: not wanted
 *
 * -EIO with lvm's own words when it fails. -ETIMEDOUT: it still ran after
 * @timeout_ms and was told to stop; what it did by then is unknown.
 */
int lvm_run(const char *object, const char *const *args, u32 timeout_ms, char **output,
	    struct qc_err *err);

/* The same; lvm has @fd open, as its input, which it never reads. */
int lvm_run_holding(const char *object, const char *const *args, u32 timeout_ms, int fd,
		    struct qc_err *err);

/* Arguments of `lvs` whose JSON lvm_report_parse() reads. */
extern const char *const lvm_report_args[];
#define LVM_NR_REPORT_ARGS 7

/* *@result is malloc'ed, NULL when there are none. */
int lvm_report_parse(const char *object, const char *json, struct lvm_lv **result, u32 *nr,
		     struct qc_err *err);

#endif
