// SPDX-License-Identifier: GPL-2.0-or-later
/* New images that are put on top of a layer, as qchainctl makes them. */
#include "sim.h"

#include <qchain/image.h>

static u32 nr_made;
char sim_overlay[SIM_NAME];

static void draw_options(struct image_create_options *o, const char *backing)
{
	static const u32 bits[] = { 9, 9, 10, 12, 14, 16 };

	image_create_defaults(o);
	o->virtual_size = sim_now_view.bytes;
	o->cluster_bits = bits[rnd(ARRAY_SIZE(bits))];
	o->extl2 = o->cluster_bits >= 14 && chance(60);
	o->refcount_order = 3 + rnd(4);
	o->backing_name = backing;
	o->backing_format = "qcow2";
}

static struct sim_disk *make_disk(const struct image_create_options *o)
{
	u64 bytes = image_thick_bytes(o);

	if (!plan.lv)
		return sim_disk_create(sim_overlay, 0);
	return sim_disk_create(sim_overlay, max(bytes, 1 * MiB));
}

static struct image *format_disk(struct sim_disk *d, const struct image_create_options *o,
				 struct qc_err *err)
{
	struct image *img = NULL;
	struct io_dev *dev;
	int ret = io_dev_open(sim_path(sim_overlay), IO_DEV_WRITE, &dev, err);

	if (!ret)
		ret = image_create(dev, o, err);
	if (!ret)
		ret = io_dev_flush(dev);
	d->formatted = !ret;
	if (!ret)
		ret = image_open(dev, IMAGE_QCOW2, IMAGE_OPEN_WRITE | IMAGE_OPEN_BITMAPS, &img,
				 err);
	return ret ? NULL : img;
}

struct image *sim_overlay_make(const char *backing)
{
	struct image_create_options o;
	struct qc_err err = { 0 };
	struct image *img;

	snprintf(sim_overlay, sizeof(sim_overlay), "o%u", ++nr_made);
	draw_options(&o, backing);
	img = format_disk(make_disk(&o), &o, &err);
	if (img)
		return img;
	if (!plan.faults)
		fail("overlay: %s", err.msg);
	sim_overlay_remove();
	return NULL;
}

void sim_overlay_remove(void)
{
	sim_disk_find(sim_overlay)->formatted = false;
}
