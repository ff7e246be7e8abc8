// SPDX-License-Identifier: GPL-2.0-or-later
/* Thin LVs: their tag and their first size. */
#include "thin.h"

#include "lv-names.h"

#include <errno.h>
#include <getopt.h>
#include <qchain/parse.h>
#include <stdio.h>
#include <stdlib.h>

#define THIN_TAG "qchain.thin="
#define DEFAULT_CHUNK (128 * MiB)
#define PART_OF_DISK 100u

u64 thin_default_chunk(u64 virtual_size)
{
	return max(DEFAULT_CHUNK, ALIGN_UP(virtual_size / PART_OF_DISK, MiB));
}

int thin_parse_chunk(u64 *result, struct qc_err *err)
{
	int ret = parse_size("--chunk", optarg, result, err);

	if (ret || *result >= THIN_MIN_CHUNK)
		return ret;
	return qc_err_set(err, -ERANGE, "--chunk: size out of range (%s), must be at least 1M",
			  optarg);
}

void thin_tag(u64 chunk, char *tag)
{
	snprintf(tag, THIN_TAG_BYTES, THIN_TAG "%llu", (unsigned long long)chunk);
}

u64 thin_chunk(const struct lvm_lv *lv)
{
	char text[THIN_TAG_BYTES];

	if (!lv || !lv_tag_value(lv->tags, THIN_TAG, text, sizeof(text)))
		return 0;
	return max(THIN_MIN_CHUNK, (u64)strtoull(text, NULL, 10));
}

u64 thin_first_bytes(const struct image_create_options *options, u64 chunk)
{
	struct image_measure measure;

	image_measure(options, 0, &measure);
	return min(image_thick_bytes(options), measure.required + chunk);
}
