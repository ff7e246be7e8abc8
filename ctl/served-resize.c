// SPDX-License-Identifier: GPL-2.0-or-later
/* qchainctl resize of a served chain. */
#include "served-resize.h"

#include "image/offline.h"
#include "served.h"

#include <errno.h>
#include <qchain/crash-point.h>
#include <string.h>

/*
 * The daemon is asked first whether it would do it, with the size that is there
 * already; then the LV grows, because a daemon runs no lvm; then the image, by the
 * daemon. A device whose kernel cannot grow it is told of.
 */

struct resize {
	const char *name;
	bool json;
	struct served served;
	json_object *nodes; /* as query-named-block-nodes */
	const char *node; /* of the active layer */
	const char *file;
	u64 from;
	u64 to;
};

static int look(struct resize *r, struct qc_err *err)
{
	json_object *top, *image = NULL;
	int ret = served_find(r->name, &r->served, err);

	if (ret)
		return ret;
	if (!r->served.client)
		return served_not_live(&r->served, err);
	ret = client_command(r->served.client, "query-named-block-nodes", NULL, false, &r->nodes,
			     err);
	if (ret)
		return ret;
	top = json_object_array_get_idx(r->nodes, 0);
	if (!top || !json_object_object_get_ex(top, "image", &image))
		return qc_err_set(err, -EINVAL, "%s: has no layer that could grow", r->name);
	r->node = json_text(top, "node-name");
	r->file = json_text(top, "file");
	r->from = json_number(image, "virtual-size", 0);
	return 0;
}

static int set_size(struct resize *r, u64 bytes, struct qc_err *err)
{
	json_object *arguments = json_object_new_object();

	json_add_string(arguments, "node-name", r->node);
	json_add_u64(arguments, "size", bytes);
	return client_command(r->served.client, "block_resize", arguments, true, NULL, err);
}

int resize_extend_served(const char *path, enum image_format format, u64 to, struct qc_err *err)
{
	const struct offline_options look = { .format = format, .force_share = true };
	struct image *img;
	int ret = offline_open_image(path, &look, false, 0, &img, err);

	if (ret)
		return ret;
	if (img->virtual_size < to)
		ret = resize_extend_lv(path, img, img->virtual_size, to, err);
	image_close(img);
	return ret;
}

static int check_size(const struct resize *r, struct qc_err *err)
{
	if (r->to >= r->from)
		return 0;
	return qc_err_set(err, -EINVAL, "%s: %llu bytes are fewer than it has (%llu); a device "
			  "shrinks only while nobody serves it: qchainctl down %s, then resize "
			  "--shrink of %s", r->name, (unsigned long long)r->to,
			  (unsigned long long)r->from, r->name, r->file);
}

static int resize(struct resize *r, const char *size, struct qc_err *err)
{
	int ret = look(r, err);

	if (!ret)
		ret = resize_parse(r->name, size, r->from, &r->to, err);
	if (!ret)
		ret = check_size(r, err);
	if (!ret)
		ret = set_size(r, r->from, err); /* may it? */
	if (ret || r->to == r->from)
		return ret;
	ret = resize_extend_served(r->file, IMAGE_QCOW2, r->to, err);
	if (ret)
		return ret;
	crash_point("resize.extended");
	return set_size(r, r->to, err);
}

/* ---- the report ------------------------------------------------------------------ */

/* The size that the ublk device has now; @r->to where there is none. */
static u64 device_size(const struct resize *r)
{
	json_object *exports;
	u64 bytes = r->to;

	if (client_command(r->served.client, "query-block-exports", NULL, false, &exports, NULL))
		return bytes;
	for (size_t i = 0; i < json_object_array_length(exports); i++) {
		json_object *one = json_object_array_get_idx(exports, i);

		if (json_text(one, "device"))
			bytes = json_number(one, "size", bytes);
	}
	json_object_put(exports);
	return bytes;
}

static void print_device(const struct resize *r, u64 bytes)
{
	char device[256], size[32];

	printf("%s: stays at %s until qchainctl down %s and up %s: this kernel cannot change the "
	       "size of a device in use, Linux 6.16 and later can\n",
	       served_device(&r->served, device), print_size(bytes, size), r->name, r->name);
}

static void print_resized(const struct resize *r)
{
	u64 device = device_size(r);
	json_object *object;
	char from[32], to[32];

	if (!r->json) {
		printf("%s: %s, was %s\n", r->name, print_size(r->to, to),
		       print_size(r->from, from));
		if (device < r->to)
			print_device(r, device);
		return;
	}
	object = json_object_new_object();
	json_add_string(object, "name", r->name);
	json_add_string(object, "filename", r->file);
	json_add_u64(object, "virtual-size", r->to);
	json_add_u64(object, "previous-size", r->from);
	json_add_u64(object, "device-size", device);
	print_json(object);
}

int resize_served(const char *name, const char *size, bool json)
{
	struct resize r = { .name = name, .json = json };
	struct rundir dir = { .lock_fd = -1 };
	struct qc_err err = { 0 };
	int ret = rundir_lock(name, false, &dir, &err);

	if (!ret)
		ret = resize(&r, size, &err);
	if (!ret)
		print_resized(&r);
	json_object_put(r.nodes);
	served_exit(&r.served);
	rundir_unlock(&dir);
	return ret ? print_error(&err) : CTL_DONE;
}
