// SPDX-License-Identifier: GPL-2.0-or-later
/* qchainctl measure: how large a new image becomes, and the LV for it. */
#include "options.h"
#include "reader.h"

#include <errno.h>
#include <string.h>
#include <uapi/qcow2.h>

struct measure_options {
	struct offline_options offline;
	struct image_create_options create;
	bool has_size;
	bool sized_by_image; /* bitmaps could be taken over */
	u64 data_bytes;
	u64 bitmap_bytes;
};

/* ---- from an image ----------------------------------------------------------------- */

/* Clusters of the new image that get data; zeroes need none. */
static int count_data(struct reader *reader, const struct measure_options *options, u64 size,
		      u64 *result, struct qc_err *err)
{
	u64 cluster_bytes = 1ull << options->create.cluster_bits;
	struct run run;

	*result = 0;
	for (u64 at = 0; at < size; at += run.bytes) {
		int ret = reader_run(reader, at, size - at, &run, err);

		if (ret)
			return ret;
		if (run.zero)
			continue;
		/* To the end of the cluster, which is then counted once. */
		*result += at % cluster_bytes;
		run.bytes = ALIGN_UP(at + run.bytes, cluster_bytes) - at;
		*result += run.bytes;
	}
	return 0;
}

/* Each bitmap whole, its table, and its part of the directory. */
static u64 count_bitmaps(const struct image *img, u32 cluster_bits)
{
	u64 cluster_bytes = 1ull << cluster_bits;
	u64 bytes = 0, directory = 0;

	for (u32 i = 0; img->bitmaps && i < img->nr_bitmaps; i++) {
		u64 granularity = 1ull << img->bitmaps[i].granularity_bits;
		u64 bits = DIV_ROUND_UP(img->virtual_size, granularity);
		u64 clusters = DIV_ROUND_UP(DIV_ROUND_UP(bits, 8), cluster_bytes);

		bytes += clusters * cluster_bytes;
		bytes += ALIGN_UP(clusters * sizeof(u64), cluster_bytes);
		directory += ALIGN_UP(sizeof(struct qcow2_disk_bitmap_entry) +
				      strlen(img->bitmaps[i].name), 8);
	}
	return bytes + ALIGN_UP(directory, cluster_bytes);
}

static int measure_bitmaps(const char *name, struct measure_options *options, struct qc_err *err)
{
	struct image *img;
	int ret;

	ret = offline_open_image(name, &options->offline, false, IMAGE_OPEN_BITMAPS, &img, err);
	if (ret)
		return ret;
	options->sized_by_image = img->version >= 3 && options->create.version >= 3;
	options->bitmap_bytes = count_bitmaps(img, options->create.cluster_bits);
	image_close(img);
	return 0;
}

static int measure_image(const char *name, struct measure_options *options, struct qc_err *err)
{
	struct reader *reader;
	struct chain *chain;
	int ret;

	ret = offline_open_chain(name, &options->offline, &chain, err);
	if (ret)
		return ret;
	options->create.virtual_size = chain->virtual_size;
	ret = reader_open(chain, &reader, err);
	if (!ret) {
		ret = count_data(reader, options, chain->virtual_size, &options->data_bytes, err);
		reader_close(reader);
	}
	chain_close(chain);
	if (ret || options->offline.format != IMAGE_QCOW2)
		return ret;
	return measure_bitmaps(name, options, err);
}

/* ---- the report ----------------------------------------------------------------------- */

static void print_measure_json(const struct measure_options *options,
			       const struct image_measure *measure)
{
	json_object *object = json_object_new_object();

	json_add_u64(object, "required", measure->required);
	json_add_u64(object, "fully-allocated", measure->fully_allocated);
	if (options->sized_by_image)
		json_add_u64(object, "bitmaps", options->bitmap_bytes);
	json_add_u64(object, "lv-size", image_thick_bytes(&options->create));
	print_json(object);
}

static void print_measure(const struct measure_options *options)
{
	struct image_measure measure;
	u64 lv;
	char size[32];

	image_measure(&options->create, options->data_bytes, &measure);
	if (options->offline.json) {
		print_measure_json(options, &measure);
		return;
	}
	lv = image_thick_bytes(&options->create);
	printf("required size         %llu (%s)\n", (unsigned long long)measure.required,
	       print_size(measure.required, size));
	printf("fully allocated size  %llu (%s)\n", (unsigned long long)measure.fully_allocated,
	       print_size(measure.fully_allocated, size));
	if (options->sized_by_image && options->bitmap_bytes)
		printf("bitmaps               %llu\n", (unsigned long long)options->bitmap_bytes);
	printf("thick LV              %llu (%s): with room for qchaind's own work\n",
	       (unsigned long long)lv, print_size(lv, size));
}

/* ---- the verb --------------------------------------------------------------------------- */

static int measure(const char *name, struct measure_options *options)
{
	struct qc_err err = {};

	if ((name && measure_image(name, options, &err)) ||
	    image_create_check(&options->create, &err))
		return print_error(&err);
	print_measure(options);
	return CTL_DONE;
}

static void take_option(void *arg, int c, struct qc_err *err)
{
	struct measure_options *options = arg;

	options->has_size |= c == OPTION_SIZE;
	create_option(&options->create, c, err);
}

static int run_measure(const struct verb *verb, int argc, char **argv)
{
	static const struct option rows[] = { OFFLINE_CHAIN_ROWS, CREATE_ROWS, {} };
	static const struct offline_syntax syntax = { rows, take_option, 0, 1 };
	struct measure_options options = {};
	int ret;

	image_create_defaults(&options.create);
	ret = offline_options_read(verb, argc, argv, &syntax, &options.offline, &options);
	if (!ret && options.has_size == (optind < argc))
		ret = verb_usage(verb, "expected either --size or the name of an image");
	if (!ret)
		ret = measure(optind < argc ? argv[optind] : NULL, &options);
	offline_options_exit(&options.offline);
	return ret;
}

const struct verb verb_measure = {
	.name = "measure",
	.summary = "how large a new image becomes, and the LV for it",
	.usage = "[OPTION]... --size SIZE | IMAGE",
	.options = CREATE_HELP OFFLINE_CHAIN_HELP,
	.examples = "  qchainctl measure --size 150G --extended-l2 --cluster-size 128K\n"
		    "  qchainctl measure --json vg0/vm-100-disk-0.qcow2\n"
		    "  qchainctl measure --format raw /dev/vg0/old-disk\n",
	.run = run_measure,
};
