/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Verbs beside jobs of the same daemon: which layers a job works on (rule D6). */
#ifndef CTL_BESIDE_H
#define CTL_BESIDE_H

#include "device-images.h"

/*
 * beside_check - does a job that runs work on a layer of @d from depth @first to @last, or
 * rewrite its header? Then -EBUSY with an @err that says which and what to do. One that
 * is in no record works on all of them. The lock is held: nobody else begins one.
 */
int beside_check(const struct device_images *d, int first, int last, struct qc_err *err);

#endif
