// SPDX-License-Identifier: GPL-2.0-or-later
/* Reads the options of create and measure. */
#include "options.h"

#include <errno.h>
#include <qchain/parse.h>
#include <uapi/qcow2.h>

static const char *const preallocations[] = {
	[PREALLOC_OFF] = "off",
	[PREALLOC_METADATA] = "metadata",
	[PREALLOC_FALLOC] = "falloc",
	[PREALLOC_FULL] = "full",
	NULL,
};

/* As qemu-img: a part of a sector becomes a whole one. */
static void take_size(struct image_create_options *options, struct qc_err *err)
{
	u64 size;

	if (parse_size("--size", optarg, &size, err) == 0)
		options->virtual_size = ALIGN_UP(size, SECTOR_SIZE);
}

static void take_cluster_size(struct image_create_options *options, struct qc_err *err)
{
	u64 size;

	if (parse_size("--cluster-size", optarg, &size, err))
		return;
	if (!is_power_of_2(size) || size < 1u << QCOW2_MIN_CLUSTER_BITS ||
	    size > 1u << QCOW2_MAX_CLUSTER_BITS)
		qc_err_set(err, -EINVAL,
			   "--cluster-size: size not supported (%s), must be a power of two from "
			   "512 to 2M",
			   optarg);
	else
		options->cluster_bits = __builtin_ctzll(size);
}

static void take_refcount_bits(struct image_create_options *options, struct qc_err *err)
{
	u64 bits;

	if (parse_number("--refcount-bits", optarg, 1, 64, &bits, err))
		return;
	if (!is_power_of_2(bits))
		qc_err_set(err, -EINVAL,
			   "--refcount-bits: width not supported (%s), must be 1, 2, 4, 8, 16, "
			   "32 or 64",
			   optarg);
	else
		options->refcount_order = __builtin_ctzll(bits);
}

static void take_compat(struct image_create_options *options, struct qc_err *err)
{
	static const char *const versions[] = { "1.1", "v3", "0.10", "v2", NULL };
	u32 index;

	if (parse_choice("--compat", optarg, versions, &index, err) == 0)
		options->version = index < 2 ? 3 : 2;
}

static void take_preallocation(struct image_create_options *options, struct qc_err *err)
{
	u32 index;

	if (parse_choice("--preallocation", optarg, preallocations, &index, err) == 0)
		options->preallocation = index;
}

static void take_compression(struct image_create_options *options, struct qc_err *err)
{
	static const char *const types[] = { "zlib", "zstd", NULL };

	parse_choice("--compression-type", optarg, types, &options->compression_type, err);
}

/* A switch may stand alone. */
static void take_switch(const char *what, bool *result, struct qc_err *err)
{
	*result = true;
	if (optarg)
		parse_switch(what, optarg, result, err);
}

bool create_option(struct image_create_options *options, int c, struct qc_err *err)
{
	switch (c) {
	case OPTION_SIZE:
		take_size(options, err);
		return true;
	case OPTION_CLUSTER_SIZE:
		take_cluster_size(options, err);
		return true;
	case OPTION_EXTENDED_L2:
		take_switch("--extended-l2", &options->extl2, err);
		return true;
	case OPTION_PREALLOCATION:
		take_preallocation(options, err);
		return true;
	case OPTION_REFCOUNT_BITS:
		take_refcount_bits(options, err);
		return true;
	case OPTION_COMPAT:
		take_compat(options, err);
		return true;
	case OPTION_LAZY_REFCOUNTS:
		take_switch("--lazy-refcounts", &options->lazy_refcounts, err);
		return true;
	case OPTION_COMPRESSION:
		take_compression(options, err);
		return true;
	default:
		return false;
	}
}
