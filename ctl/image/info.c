// SPDX-License-Identifier: GPL-2.0-or-later
/* qchainctl info: what an image's header says, and its chain's. */
#include "offline.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <uapi/qcow2.h>

#define NS_PER_SEC 1000000000ull
#define BITMAP_IN_USE 1u
#define BITMAP_AUTO 2u

/* ---- what qemu-img says, with its keys ----------------------------------------- */

static const char *compression_name(const struct image *img)
{
	return img->compression_type ? "zstd" : "zlib";
}

static json_object *bitmap_json(const struct image_bitmap *bitmap)
{
	json_object *object = json_object_new_object();
	json_object *flags = json_object_new_array();

	if (bitmap->flags & BITMAP_IN_USE)
		json_object_array_add(flags, json_object_new_string("in-use"));
	if (bitmap->flags & BITMAP_AUTO)
		json_object_array_add(flags, json_object_new_string("auto"));
	json_object_object_add(object, "flags", flags);
	json_add_string(object, "name", bitmap->name);
	json_add_u64(object, "granularity", 1ull << bitmap->granularity_bits);
	return object;
}

static void add_bitmaps(json_object *data, const struct image *img)
{
	json_object *list;

	if (!img->bitmaps || !img->nr_bitmaps)
		return;
	list = json_object_new_array();
	for (u32 i = 0; i < img->nr_bitmaps; i++)
		json_object_array_add(list, bitmap_json(&img->bitmaps[i]));
	json_object_object_add(data, "bitmaps", list);
}

static json_object *specific_json(const struct image *img)
{
	json_object *object = json_object_new_object();
	json_object *data = json_object_new_object();

	json_add_string(data, "compat", img->version == 2 ? "0.10" : "1.1");
	json_add_string(data, "compression-type", compression_name(img));
	json_add_u64(data, "refcount-bits", 1u << img->refcount_order);
	if (img->version >= 3) {
		json_add_bool(data, "lazy-refcounts",
			      img->compatible & QCOW2_COMPAT_LAZY_REFCOUNTS);
		json_add_bool(data, "corrupt", img->incompatible & QCOW2_INCOMPAT_CORRUPT);
		json_add_bool(data, "extended-l2", image_has_extl2(img));
		add_bitmaps(data, img);
	}
	if (img->external_data) {
		json_add_string(data, "data-file", img->data_file_name);
		json_add_bool(data, "data-file-raw", img->autoclear & QCOW2_AUTOCLEAR_RAW_DATA);
	}
	json_add_string(object, "type", "qcow2");
	json_object_object_add(object, "data", data);
	return object;
}

static json_object *snapshot_json(const struct image_snapshot *snapshot)
{
	json_object *object = json_object_new_object();

	json_add_string(object, "id", snapshot->id);
	json_add_string(object, "name", snapshot->name);
	json_add_u64(object, "vm-state-size", snapshot->vm_state_bytes);
	json_add_u64(object, "date-sec", snapshot->date_sec);
	json_add_u64(object, "date-nsec", snapshot->date_nsec);
	json_add_u64(object, "vm-clock-sec", snapshot->vm_clock_nsec / NS_PER_SEC);
	json_add_u64(object, "vm-clock-nsec", snapshot->vm_clock_nsec % NS_PER_SEC);
	if (snapshot->icount != ~0ull)
		json_add_u64(object, "icount", snapshot->icount);
	return object;
}

static void add_snapshots(json_object *object, const struct image *img)
{
	json_object *list;

	if (!img->nr_snapshots)
		return;
	list = json_object_new_array();
	for (u32 i = 0; i < img->nr_snapshots; i++)
		json_object_array_add(list, snapshot_json(&img->snapshots[i]));
	json_object_object_add(object, "snapshots", list);
}

/* The name as the header has it, seen from the image's own directory. */
static void add_full_backing(json_object *object, const char *path, const char *backing)
{
	const char *slash = strrchr(path, '/');
	char *full = NULL;

	/* A protocol: nobody here follows it, qemu-img shows it as it is. */
	if (backing[0] == '/' || !slash || backing[strcspn(backing, ":/")] == ':') {
		json_add_string(object, "full-backing-filename", backing);
		return;
	}
	if (asprintf(&full, "%.*s%s", (int)(slash + 1 - path), path, backing) < 0)
		return;
	json_add_string(object, "full-backing-filename", full);
	free(full);
}

static void add_backing(json_object *object, const struct image *img, const char *path)
{
	if (!img->backing_name)
		return;
	json_add_string(object, "backing-filename", img->backing_name);
	add_full_backing(object, path, img->backing_name);
	if (img->backing_format)
		json_add_string(object, "backing-filename-format", img->backing_format);
}

static json_object *image_json(const struct image *img, const char *path)
{
	json_object *object = json_object_new_object();
	struct stat st;

	json_add_string(object, "filename", path);
	json_add_string(object, "format", image_format_name(img->format));
	json_add_u64(object, "virtual-size", img->virtual_size);
	if (fstat(img->dev->fd, &st) == 0)
		json_add_u64(object, "actual-size", (u64)st.st_blocks * 512);
	json_add_bool(object, "dirty-flag", img->incompatible & QCOW2_INCOMPAT_DIRTY);
	if (img->format != IMAGE_QCOW2)
		return object;
	json_add_u64(object, "cluster-size", image_cluster_bytes(img));
	add_backing(object, img, path);
	add_snapshots(object, img);
	json_object_object_add(object, "format-specific", specific_json(img));
	return object;
}

/* ---- for people ------------------------------------------------------------------ */

static void print_line(const char *label, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));

static void print_line(const char *label, const char *fmt, ...)
{
	va_list ap;

	printf("%s%-16s%s", print_colour(stdout, COLOUR_FAINT), label,
	       print_colour(stdout, COLOUR_NONE));
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	putchar('\n');
}

static void print_snapshots(const struct image *img)
{
	char size[32], date[32], id[PRINT_CLEAN_BYTES], name[PRINT_CLEAN_BYTES];
	struct tm tm;

	for (u32 i = 0; i < img->nr_snapshots; i++) {
		const struct image_snapshot *snapshot = &img->snapshots[i];
		time_t when = snapshot->date_sec;

		strftime(date, sizeof(date), "%Y-%m-%d %H:%M:%S", localtime_r(&when, &tm));
		print_line(i ? "" : "snapshots", "%s '%s', %s, VM state %s",
			   print_clean(snapshot->id, id), print_clean(snapshot->name, name), date,
			   print_size(snapshot->vm_state_bytes, size));
	}
}

static void print_features(const struct image *img)
{
	const char *bad = print_colour(stdout, COLOUR_BAD);
	const char *none = print_colour(stdout, COLOUR_NONE);
	char name[PRINT_CLEAN_BYTES];

	print_line("format", "qcow2 version %u, clusters of %llu KiB%s, refcounts of %u bits, %s",
		   img->version, (unsigned long long)image_cluster_bytes(img) / 1024,
		   image_has_extl2(img) ? ", extended L2" : "", 1u << img->refcount_order,
		   compression_name(img));
	if (img->compatible & QCOW2_COMPAT_LAZY_REFCOUNTS)
		print_line("lazy refcounts", "on");
	if (img->incompatible & QCOW2_INCOMPAT_DIRTY)
		print_line("state", "%sdirty%s: refcounts may be wrong; qchainctl check --repair "
			   "all",
			   bad, none);
	if (img->incompatible & QCOW2_INCOMPAT_CORRUPT)
		print_line("state", "%scorrupt%s: not written before qchainctl check --repair all",
			   bad, none);
	if (img->autoclear & QCOW2_AUTOCLEAR_QCHAIN_OPEN)
		print_line("state", "open in qchaind, or not closed cleanly by it");
	if (img->external_data)
		print_line("data file", "%s (not opened)", print_clean(img->data_file_name, name));
	for (u32 i = 0; img->bitmaps && i < img->nr_bitmaps; i++)
		print_line(i ? "" : "bitmaps", "'%s', granularity %llu%s",
			   print_clean(img->bitmaps[i].name, name),
			   1ull << img->bitmaps[i].granularity_bits,
			   img->bitmaps[i].flags & BITMAP_IN_USE ? ", in use" : "");
}

static void print_image(const struct image *img, const char *path)
{
	char size[32], name[PRINT_CLEAN_BYTES], format[PRINT_CLEAN_BYTES];
	struct stat st;

	print_line("image", "%s%s%s", print_colour(stdout, COLOUR_STRONG), path,
		   print_colour(stdout, COLOUR_NONE));
	print_line("virtual size", "%s (%llu bytes)", print_size(img->virtual_size, size),
		   (unsigned long long)img->virtual_size);
	if (img->dev->blockdev)
		print_line("device size", "%s", print_size(img->dev->size_bytes, size));
	else if (fstat(img->dev->fd, &st) == 0)
		print_line("disk size", "%s", print_size((u64)st.st_blocks * 512, size));
	if (img->format != IMAGE_QCOW2) {
		print_line("format", "raw");
		return;
	}
	print_features(img);
	if (img->backing_name)
		print_line("backing", "%s (%s)", print_clean(img->backing_name, name),
			   img->backing_format ? print_clean(img->backing_format, format) :
						 "format missing");
	print_snapshots(img);
}

/* ---- the verb --------------------------------------------------------------------- */

static int show_image(const char *name, const struct offline_options *options)
{
	struct qc_err err = {};
	struct image *img;

	if (offline_open_image(name, options, false, IMAGE_OPEN_BITMAPS, &img, &err))
		return print_error(&err);
	if (options->json)
		print_json(image_json(img, img->dev->path));
	else
		print_image(img, img->dev->path);
	image_close(img);
	return CTL_DONE;
}

/* A chain is opened without its bitmaps; @result is @layer's image if it has none. */
static int open_with_bitmaps(const struct chain_layer *layer, struct image **result,
			     struct qc_err *err)
{
	struct io_dev *dev;
	int ret;

	*result = layer->img;
	if (!layer->img->nr_bitmaps)
		return 0;
	/* The chain holds the locks. */
	ret = io_dev_open(layer->path, IO_DEV_NOLOCK, &dev, err);
	return ret ? ret : image_open(dev, layer->img->format, IMAGE_OPEN_BITMAPS, result, err);
}

static int show_layer(const struct chain_layer *layer, json_object *list, bool json,
		      struct qc_err *err)
{
	struct image *img;
	int ret = open_with_bitmaps(layer, &img, err);

	if (ret)
		return ret;
	if (json)
		json_object_array_add(list, image_json(img, layer->path));
	else
		print_image(img, layer->path);
	if (img != layer->img)
		image_close(img);
	return 0;
}

static int show_chain(const char *name, const struct offline_options *options)
{
	json_object *list = json_object_new_array();
	struct qc_err err = {};
	struct chain *chain;
	int ret = 0;

	if (offline_open_chain(name, options, &chain, &err)) {
		json_object_put(list);
		return print_error(&err);
	}
	for (u32 i = 0; i < chain->nr_layers && !ret; i++) {
		if (i && !options->json)
			putchar('\n');
		ret = show_layer(&chain->layers[i], list, options->json, &err);
	}
	chain_close(chain);
	if (options->json && !ret)
		print_json(list);
	else
		json_object_put(list);
	return ret ? print_error(&err) : CTL_DONE;
}

static void take_backing_chain(void *arg, int c, struct qc_err *err)
{
	*(bool *)arg = true;
}

static int run_info(const struct verb *verb, int argc, char **argv)
{
	static const struct option rows[] = {
		OFFLINE_CHAIN_ROWS,
		{ "backing-chain", no_argument, NULL, 'b' },
		{},
	};
	static const struct offline_syntax syntax = { rows, take_backing_chain, 1, 1 };
	struct offline_options options;
	bool whole_chain = false;
	int ret = offline_options_read(verb, argc, argv, &syntax, &options, &whole_chain);

	if (!ret)
		ret = whole_chain ? show_chain(argv[optind], &options) :
				    show_image(argv[optind], &options);
	offline_options_exit(&options);
	return ret;
}

const struct verb verb_info = {
	.name = "info",
	.summary = "what the header of an image says",
	.usage = "[OPTION]... IMAGE",
	.options = OFFLINE_CHAIN_HELP
	"  --backing-chain        all images from this one down to the base\n",
	.examples = "  qchainctl info vg0/vm-100-disk-0.qcow2\n"
		    "  qchainctl info --backing-chain --json vg0/vm-100-disk-0.qcow2\n"
		    "  qchainctl info --force-share ./disk.qcow2\n",
	.run = run_info,
};
