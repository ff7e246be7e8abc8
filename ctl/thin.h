/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Thin LVs: small at first, made larger while they are written to (grow.h). */
#ifndef CTL_THIN_H
#define CTL_THIN_H

#include <qchain/image.h>
#include <qchain/lvm.h>

/*
 * An LV is thin by its tag qchain.thin=BYTES, which it is created with: BYTES, a chunk,
 * is what it has for data at first, and grows by at least.
 */
#define THIN_TAG_BYTES 48u
#define THIN_MIN_CHUNK (1 * MiB)

/* 128 MiB, or a hundredth of the disk. */
u64 thin_default_chunk(u64 virtual_size);
/* --chunk on a command line, in optarg. */
int thin_parse_chunk(u64 *result, struct qc_err *err);
/* The tag of an LV with chunks of @chunk; THIN_TAG_BYTES. */
void thin_tag(u64 chunk, char *tag);
/* The chunk of @lv; 0: it is not thin, or NULL. */
u64 thin_chunk(const struct lvm_lv *lv);
/* What the LV of a new image has at first; never more than makes it thick. */
u64 thin_first_bytes(const struct image_create_options *options, u64 chunk);

#endif
