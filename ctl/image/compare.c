// SPDX-License-Identifier: GPL-2.0-or-later
/* qchainctl compare: do two images have the same content? */
#include "offline.h"
#include "reader.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define COMPARE_IDENTICAL 0
#define COMPARE_DIFFERENT 1
#define COMPARE_FAILED 2

#define COMPARE_BYTES (2u << 20)
#define OPTION_FORMAT2 'g'

/* struct compare_side - one of the two images */
struct compare_side {
	struct chain *chain;
	struct reader *reader;
	u8 *buf;
	struct run run; /* at the offset that is looked at */
};

struct comparison {
	struct compare_side sides[2];
	u64 total; /* of the longer one */
	bool different;
	u64 offset; /* of the first sector that differs */
	struct qc_err err;
};

static int open_side(struct compare_side *side, const char *name,
		     const struct offline_options *options, struct qc_err *err)
{
	int ret = offline_open_chain(name, options, &side->chain, err);

	if (!ret)
		ret = reader_open(side->chain, &side->reader, err);
	if (ret)
		return ret;
	side->buf = io_alloc(COMPARE_BYTES);
	return side->buf ? 0 : qc_err_set(err, -ENOMEM, "%s: out of memory", name);
}

static void close_side(struct compare_side *side)
{
	reader_close(side->reader);
	chain_close(side->chain);
	free(side->buf);
}

/* The run at @offset; beyond the end of an image all is zero. */
static int side_run(struct compare_side *side, u64 offset, u64 most, struct qc_err *err)
{
	u64 size = side->chain->virtual_size;

	side->run = (struct run){ .bytes = most, .zero = true };
	if (offset >= size)
		return 0;
	return reader_run(side->reader, offset, min(most, size - offset), &side->run, err);
}

/* Sectors, as qemu-img tells it. */
static u64 first_difference(const u8 *a, const u8 *b, u64 bytes)
{
	for (u64 at = 0; at < bytes; at += SECTOR_SIZE) {
		if (memcmp(a + at, b + at, min(bytes - at, (u64)SECTOR_SIZE)))
			return at;
	}
	return bytes;
}

/* [@offset, + *@bytes), which is cut to what is alike on both sides. */
static int compare_step(struct comparison *cmp, u64 offset, u64 *bytes)
{
	u64 at;
	int ret = 0;

	for (u32 i = 0; i < 2 && !ret; i++) {
		ret = side_run(&cmp->sides[i], offset, *bytes, &cmp->err);
		*bytes = ret ? 0 : min(*bytes, cmp->sides[i].run.bytes);
	}
	if (ret || (cmp->sides[0].run.zero && cmp->sides[1].run.zero))
		return ret;
	*bytes = min(*bytes, (u64)COMPARE_BYTES);
	for (u32 i = 0; i < 2 && !ret; i++)
		ret = reader_read(cmp->sides[i].reader, cmp->sides[i].buf, *bytes, offset,
				  &cmp->err);
	if (ret)
		return ret;
	at = first_difference(cmp->sides[0].buf, cmp->sides[1].buf, *bytes);
	if (at < *bytes) {
		cmp->different = true;
		cmp->offset = offset + at;
	}
	return 0;
}

static int compare_all(struct comparison *cmp)
{
	struct progress progress;
	u64 bytes;
	int ret = 0;

	cmp->total = max(cmp->sides[0].chain->virtual_size, cmp->sides[1].chain->virtual_size);
	progress_begin(&progress, "comparing", cmp->total, true);
	for (u64 at = 0; at < cmp->total && !cmp->different && !ret; at += bytes) {
		bytes = cmp->total - at;
		ret = compare_step(cmp, at, &bytes);
		progress_update(&progress, at);
	}
	progress_end(&progress);
	return ret;
}

static void report_json(const struct comparison *cmp, bool sizes_differ)
{
	json_object *object = json_object_new_object();

	json_add_bool(object, "identical", !cmp->different);
	json_add_bool(object, "size-mismatch", sizes_differ);
	if (cmp->different)
		json_add_u64(object, "offset", cmp->offset);
	print_json(object);
}

static int report(const struct comparison *cmp, bool json)
{
	u64 a = cmp->sides[0].chain->virtual_size, b = cmp->sides[1].chain->virtual_size;

	if (json)
		report_json(cmp, a != b);
	else if (cmp->different)
		printf("Content differs at offset %llu.\n", (unsigned long long)cmp->offset);
	else if (a != b)
		printf("Content is identical; sizes differ (%llu and %llu), the rest is zero.\n",
		       (unsigned long long)a, (unsigned long long)b);
	else
		printf("Content is identical.\n");
	return cmp->different ? COMPARE_DIFFERENT : COMPARE_IDENTICAL;
}

static int compare_images(char **names, const struct offline_options options[2])
{
	struct comparison cmp = {};
	int ret = 0, status;

	for (u32 i = 0; i < 2 && !ret; i++)
		ret = open_side(&cmp.sides[i], names[i], &options[i], &cmp.err);
	if (!ret)
		ret = compare_all(&cmp);
	if (ret) {
		print_error(&cmp.err);
		status = COMPARE_FAILED;
	} else {
		status = report(&cmp, options[0].json);
	}
	close_side(&cmp.sides[0]);
	close_side(&cmp.sides[1]);
	return status;
}

static void take_option(void *arg, int c, struct qc_err *err)
{
	offline_take_format("--second-format", optarg, arg, err);
}

static int run_compare(const struct verb *verb, int argc, char **argv)
{
	static const struct option rows[] = {
		OFFLINE_CHAIN_ROWS,
		{ "second-format", required_argument, NULL, OPTION_FORMAT2 },
		{},
	};
	static const struct offline_syntax syntax = { rows, take_option, 2, 2 };
	enum image_format second = IMAGE_QCOW2;
	struct offline_options options[2];
	int ret = offline_options_read(verb, argc, argv, &syntax, &options[0], &second);

	options[1] = options[0];
	options[1].format = second;
	if (!ret)
		ret = compare_images(argv + optind, options);
	offline_options_exit(&options[0]);
	return ret;
}

const struct verb verb_compare = {
	.name = "compare",
	.summary = "compare the content of two images and of what lies below them",
	.usage = "[OPTION]... IMAGE IMAGE",
	.options = OFFLINE_CHAIN_HELP
	"  --second-format FMT    format of the second image, qcow2 (default) or raw\n"
	"Exit status: 0 identical, 1 different, 2 failed. Where one image is longer, the\n"
	"rest must be zero.\n",
	.examples = "  qchainctl compare vg0/vm-100-disk-0.qcow2 ./copy.qcow2\n"
		    "  qchainctl compare ./disk.qcow2 ./disk.raw --second-format raw\n",
	.run = run_compare,
};
