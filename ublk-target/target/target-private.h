/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The target types that this room offers. */
#ifndef TARGET_PRIVATE_H
#define TARGET_PRIVATE_H

#include <qchain/target.h>

extern const struct target_type target_linear;
extern const struct target_type target_zero;
extern const struct target_type target_error;
extern const struct target_type target_chain;

#endif
