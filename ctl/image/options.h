/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The options of create and measure that say what an image shall be like. */
#ifndef CTL_IMAGE_OPTIONS_H
#define CTL_IMAGE_OPTIONS_H

#include "offline.h"

enum create_option_value {
	OPTION_SIZE = 0x100,
	OPTION_CLUSTER_SIZE,
	OPTION_EXTENDED_L2,
	OPTION_PREALLOCATION,
	OPTION_REFCOUNT_BITS,
	OPTION_COMPAT,
	OPTION_LAZY_REFCOUNTS,
	OPTION_COMPRESSION,
	OPTION_OWN, /* the verb's own begin here */
};

#define CREATE_ROWS                                                                    \
	{ "size", required_argument, NULL, OPTION_SIZE },                              \
	{ "cluster-size", required_argument, NULL, OPTION_CLUSTER_SIZE },              \
	{ "extended-l2", optional_argument, NULL, OPTION_EXTENDED_L2 },                \
	{ "preallocation", required_argument, NULL, OPTION_PREALLOCATION },            \
	{ "refcount-bits", required_argument, NULL, OPTION_REFCOUNT_BITS },            \
	{ "compat", required_argument, NULL, OPTION_COMPAT },                          \
	{ "lazy-refcounts", optional_argument, NULL, OPTION_LAZY_REFCOUNTS },          \
	{ "compression-type", required_argument, NULL, OPTION_COMPRESSION }

#define CREATE_HELP                                                                    \
	"  --size SIZE            of the device that the image shows, as 20G or 1.5T\n" \
	"  --cluster-size SIZE    512 to 2M, a power of two; default 64K\n"           \
	"  --extended-l2          32 subclusters per cluster; clusters of 16K and more\n" \
	"  --preallocation HOW    off (default), metadata, falloc or full\n"          \
	"  --refcount-bits N      1, 2, 4, .. 64; default 16\n"                       \
	"  --compat VERSION       1.1 or v3 (default), 0.10 or v2\n"                  \
	"  --lazy-refcounts       allow QEMU to postpone refcounts\n"                 \
	"  --compression-type T   zlib (default) or zstd\n"

/* Take option @c; true: it was one of ours. A wrong value sets @err. */
bool create_option(struct image_create_options *options, int c, struct qc_err *err);

#endif
