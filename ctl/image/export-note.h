/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What an export says about itself, in FILE.json beside it. */
#ifndef CTL_IMAGE_EXPORT_NOTE_H
#define CTL_IMAGE_EXPORT_NOTE_H

#include "checksum.h"

#include <qchain/control.h>
#include <qchain/record.h>

#define EXPORT_NOTE_SUFFIX ".json"

/*
 * struct export_note
 * @device: "": not known; @to, @from: snapshots or file names of layers; @from "": it is full
 * @size: of the device
 * @sum: of what the file holds
 * @base_sha256: of the export that it stands on; "": none
 */
struct export_note {
	char device[QC_MAX_CHAIN_NAME + 1];
	char to[RECORD_IMAGE_BYTES];
	char from[RECORD_IMAGE_BYTES];
	enum image_format format;
	u64 size;
	struct checksum sum;
	char base_sha256[CHECKSUM_BYTES];
};

/* Of the export @file; saved it is durable, the old one or the new, whole. */
int export_note_load(const char *file, struct export_note *result, struct qc_err *err);
int export_note_save(const char *file, const struct export_note *note, struct qc_err *err);

/* May an export of @note stand on that of @base? -EINVAL: it holds something else. */
int export_note_check_base(const struct export_note *note, const char *base_file,
			   const struct export_note *base, struct qc_err *err);

#endif
