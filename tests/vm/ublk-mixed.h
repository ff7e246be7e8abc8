/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A test target: see ublk-mixed.c. */
#ifndef UBLK_MIXED_H
#define UBLK_MIXED_H

#include <qchain/target.h>

int mixed_create(const char *path, struct target **result, struct qc_err *err);
void mixed_destroy(struct target *ti);

#endif
