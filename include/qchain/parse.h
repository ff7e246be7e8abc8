/* SPDX-License-Identifier: GPL-2.0-or-later OR MIT */
/* Numbers, sizes and switches as people type them; one spelling everywhere. */
#ifndef QCHAIN_PARSE_H
#define QCHAIN_PARSE_H

#include <qchain/err.h>
#include <qchain/types.h>

/*
 * All return 0, -EINVAL (not of the form) or -ERANGE (too large). @what names
 * the option or field in the message, "--size" for instance.
 */

/*
 * parse_size - bytes: "4096", "64K", "1.5G", "20GiB"
 * Suffixes B K M G T P E, either case, optional "iB" after K to E: powers of
 * 1024. A fraction must come to a whole number of bytes. No sign, no spaces.
 */
int parse_size(const char *what, const char *text, u64 *result, struct qc_err *err);

/* parse_number - a decimal number from @least to @most, nothing after it */
int parse_number(const char *what, const char *text, u64 least, u64 most, u64 *result,
		 struct qc_err *err);

/* parse_switch - "on", "yes", "true", "1", or "off", "no", "false", "0" */
int parse_switch(const char *what, const char *text, bool *result, struct qc_err *err);

/*
 * parse_choice - the index of @text in @choices (NULL at the end); the message
 * of a wrong one lists them
 */
int parse_choice(const char *what, const char *text, const char *const *choices, u32 *result,
		 struct qc_err *err);

/*
 * parse_is_id - may @text be the id of a job or an export? As in QEMU: a letter, then
 * letters, digits, "-", "." and "_", at most @longest characters.
 */
bool parse_is_id(const char *text, u32 longest);

#endif
