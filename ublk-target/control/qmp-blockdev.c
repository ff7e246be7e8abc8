// SPDX-License-Identifier: GPL-2.0-or-later
/* QMP blockdev-add, blockdev-del, blockdev-snapshot: an overlay is brought in and put on top. */
#include "control-private.h"

#include <errno.h>
#include <limits.h>
#include <qchain/limits.h>
#include <qchain/online.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Longest hold of writes: a guest takes longer ones for a dead disk. */
#define MAX_HOLD_MS 5000

/*
 * A node that was added belongs to nobody yet: a format node has its image open
 * for writing, a protocol node ("file", "host_device") is only a name for a path,
 * opened with the format node above it. A snapshot makes a format node a layer.
 * Options that only tell QEMU how to do its I/O are taken and have no meaning.
 */
struct qmp_blockdev {
	struct qmp_blockdev *next;
	char name[QC_MAX_NODE_NAME + 1];
	char *filename; /* as it was given */
	char *path; /* of the image, for messages and the chain */
	struct image *img; /* NULL: a protocol node */
	bool busy; /* atomic: a job writes to it */
};

const struct qmp_param qmp_blockdev_add_params[] = {
	{ "driver", json_type_string, true },
	{ "node-name", json_type_string, false },
	{ "file", QMP_ANY_TYPE, false },
	{ "filename", json_type_string, false },
	{ "backing", QMP_ANY_TYPE, false },
	{ "read-only", json_type_boolean, false },
	{ "auto-read-only", json_type_boolean, false },
	{ "force-share", json_type_boolean, false },
	{ "discard", json_type_string, false },
	{ "detect-zeroes", json_type_string, false },
	{ "cache", json_type_object, false },
	{ "locking", json_type_string, false },
	{ "aio", json_type_string, false },
	{ NULL },
};

const struct qmp_param qmp_blockdev_del_params[] = {
	{ "node-name", json_type_string, true },
	{ NULL },
};

const struct qmp_param qmp_blockdev_snapshot_params[] = {
	{ "node", json_type_string, true },
	{ "overlay", json_type_string, true },
	{ "qchain-held", json_type_boolean, false }, /* only while qchain-hold lasts */
	{ NULL },
};

const struct qmp_param qmp_qchain_revert_params[] = {
	{ "node", json_type_string, true }, /* that the overlay stands on */
	{ "overlay", json_type_string, true },
	{ "force", json_type_boolean, false }, /* also while the device is used */
	{ NULL },
};

const struct qmp_param qmp_transaction_params[] = {
	{ "actions", json_type_array, true },
	{ "properties", json_type_object, false },
	{ NULL },
};

const struct qmp_param qmp_qchain_rename_layer_params[] = {
	{ "node-name", json_type_string, true },
	{ "filename", json_type_string, true },
	{ NULL },
};

const struct qmp_param qmp_qchain_hold_params[] = {
	{ "milliseconds", json_type_int, true },
	{ NULL },
};

static struct qmp_blockdev **find(struct daemon *daemon, const char *name)
{
	struct qmp_blockdev **at = &daemon->blockdevs;

	while (*at && strcmp((*at)->name, name))
		at = &(*at)->next;
	return at;
}

static void blockdev_free(struct qmp_blockdev *node)
{
	image_close(node->img);
	free(node->filename);
	free(node->path);
	free(node);
}

/* ---- adding --------------------------------------------------------------------- */

static bool is_protocol(const char *driver)
{
	return !strcmp(driver, "file") || !strcmp(driver, "host_device");
}

static int no_node(const char *name, struct qc_err *err)
{
	return qc_err_set(err, -ENOENT, "Cannot find device='%.80s' nor node-name='%.80s'", name,
			  name);
}

static int check_name(struct daemon *daemon, const char *name, struct qc_err *err)
{
	if (!name)
		return qc_err_set(err, -EINVAL, "'node-name' must be specified for the root node");
	if (!*name || strlen(name) > QC_MAX_NODE_NAME)
		return qc_err_set(err, -EINVAL, "Node name too long or empty, must be 1..%u "
				  "characters", QC_MAX_NODE_NAME);
	if (*find(daemon, name) || chain_has_node(daemon->target, name))
		return qc_err_set(err, -EEXIST, "Duplicate nodes with node-name='%.31s'", name);
	return 0;
}

/* What "file" of a format node leads to: a protocol node's name, or its options. */
static int find_file(struct daemon *daemon, json_object *arguments, const char **result,
		     struct qc_err *err)
{
	json_object *file;
	const char *name;
	struct qmp_blockdev *node;

	if (!json_object_object_get_ex(arguments, "file", &file))
		return qc_err_set(err, -EINVAL, "Parameter 'file' is missing");
	if (json_object_is_type(file, json_type_string)) {
		name = json_object_get_string(file);
		node = *find(daemon, name);
		if (!node || node->img)
			return no_node(name, err);
		*result = node->filename;
		return 0;
	}
	name = qmp_text_of(file, "driver");
	*result = qmp_text_of(file, "filename");
	if (!name || !is_protocol(name))
		return qc_err_set(err, -EINVAL, "Parameter 'file.driver' must be file or "
				  "host_device");
	if (!*result)
		return qc_err_set(err, -EINVAL, "Parameter 'file.filename' is missing");
	return 0;
}

/* @backing must be null or absent: an overlay's backing is the active layer. */
static int check_backing(json_object *arguments, struct qc_err *err)
{
	json_object *backing;

	if (!json_object_object_get_ex(arguments, "backing", &backing) || !backing)
		return 0;
	return qc_err_set(err, -EOPNOTSUPP, "Parameter 'backing' must be null: the backing of a "
			  "new overlay is the active layer");
}

static int open_image(struct daemon *daemon, struct qmp_blockdev *node, enum image_format format,
		      struct qc_err *err)
{
	char path[PATH_MAX];
	const char *shown;
	struct io_dev *dev;
	int ret;

	ret = qmp_fdset_path(daemon, node->filename, path, sizeof(path), &shown, err);
	if (!ret)
		ret = io_dev_open(path, IO_DEV_WRITE, &dev, err);
	if (ret)
		return ret;
	node->path = strdup(shown);
	free(dev->path);
	dev->path = strdup(shown);
	if (!node->path || !dev->path) {
		io_dev_close(dev);
		return -ENOMEM;
	}
	return image_open(dev, format, IMAGE_OPEN_WRITE | IMAGE_OPEN_BITMAPS, &node->img, err);
}

static int blockdev_add(struct qmp_call *call, const char *driver, const char *name,
			struct qmp_blockdev *node, struct qc_err *err)
{
	const char *filename = qmp_text_of(call->arguments, "filename");
	enum image_format format = IMAGE_RAW;
	int ret = 0;

	if (!is_protocol(driver) && image_format_parse(driver, &format))
		ret = qc_err_set(err, -EINVAL, "Parameter 'driver' does not accept value '%.80s'",
				 driver);
	if (!ret)
		ret = check_name(call->daemon, name, err);
	if (!ret)
		ret = check_backing(call->arguments, err);
	if (!ret && !is_protocol(driver))
		ret = find_file(call->daemon, call->arguments, &filename, err);
	if (ret)
		return ret;
	if (!filename)
		return qc_err_set(err, -EINVAL, "Parameter 'filename' is missing");
	snprintf(node->name, sizeof(node->name), "%s", name);
	node->filename = strdup(filename);
	if (!node->filename)
		return -ENOMEM;
	return is_protocol(driver) ? 0 : open_image(call->daemon, node, format, err);
}

int qmp_blockdev_add(struct qmp_call *call, struct qc_err *err)
{
	struct qmp_blockdev *node = calloc(1, sizeof(*node));
	int ret;

	if (!node)
		return -ENOMEM;
	ret = blockdev_add(call, qmp_text_of(call->arguments, "driver"),
			   qmp_text_of(call->arguments, "node-name"), node, err);
	if (ret) {
		blockdev_free(node);
		return ret;
	}
	node->next = call->daemon->blockdevs;
	call->daemon->blockdevs = node;
	return 0;
}

/* ---- removing, using ---------------------------------------------------------------- */

static int check_not_busy(const struct qmp_blockdev *node, struct qc_err *err)
{
	if (!__atomic_load_n(&node->busy, __ATOMIC_ACQUIRE))
		return 0;
	return qc_err_set(err, -EBUSY, "Node '%.31s' is busy: block device is in use by block job: "
			  "backup", node->name);
}

int qmp_blockdev_borrow(struct daemon *daemon, const char *name, struct image **result,
			bool **busy, struct qc_err *err)
{
	struct qmp_blockdev *node = *find(daemon, name);

	if (!node || !node->img)
		return no_node(name, err);
	*result = node->img;
	*busy = &node->busy;
	return check_not_busy(node, err);
}

int qmp_blockdev_del(struct qmp_call *call, struct qc_err *err)
{
	const char *name = qmp_text_of(call->arguments, "node-name");
	struct qmp_blockdev **at = find(call->daemon, name), *node = *at;

	if (!node && chain_has_node(call->daemon->target, name))
		return qc_err_set(err, -EBUSY, "Node %.31s is in use: it is a layer of the chain",
				  name);
	if (!node)
		return qc_err_set(err, -ENOENT, "Failed to find node with node-name='%.80s'", name);
	if (check_not_busy(node, err))
		return err->code;
	*at = node->next;
	blockdev_free(node);
	return 0;
}

/* The node @overlay, brought in, and @node, a layer: what a new top stands on. */
static int find_overlay(struct daemon *daemon, const char *node, const char *overlay,
			struct qmp_blockdev ***result, struct qc_err *err)
{
	struct qmp_blockdev **at;

	if (!node || !overlay)
		return qc_err_set(err, -EINVAL, "Parameter '%s' is missing",
				  node ? "overlay" : "node");
	at = find(daemon, overlay);
	if (!chain_has_node(daemon->target, node))
		return no_node(node, err);
	if (!*at || !(*at)->img)
		return no_node(overlay, err);
	*result = at;
	return check_not_busy(*at, err);
}

/* The image is the chain's. A protocol node under it stays: nobody can name that any more. */
static void give_away(struct qmp_blockdev **at)
{
	struct qmp_blockdev *node = *at;

	*at = node->next;
	node->img = NULL;
	blockdev_free(node);
}

static int take_snapshot(struct qmp_call *call, json_object *arguments, struct qc_err *err)
{
	const char *node = qmp_text_of(arguments, "node");
	struct qmp_blockdev **at;
	json_object *held;
	int ret = find_overlay(call->daemon, node, qmp_text_of(arguments, "overlay"), &at, err);

	if (ret)
		return ret;
	json_object_object_get_ex(arguments, "qchain-held", &held);
	ret = chain_snapshot(call->daemon->target, node, (*at)->img, (*at)->path, (*at)->name,
			     json_object_get_boolean(held), err);
	if (!ret)
		give_away(at);
	return ret;
}

/* Ours: QEMU has nothing that makes a lower layer's overlay the top. */
int qmp_qchain_revert(struct qmp_call *call, struct qc_err *err)
{
	const char *node = qmp_text_of(call->arguments, "node");
	struct qmp_blockdev **at;
	json_object *force;
	bool closed = false;
	int ret = qmp_check_no_merge(call->daemon, node, err);

	if (!ret)
		ret = find_overlay(call->daemon, node, qmp_text_of(call->arguments, "overlay"), &at,
				   err);
	json_object_object_get_ex(call->arguments, "force", &force);
	if (!ret && !json_object_get_boolean(force))
		ret = daemon_check_unused(call->daemon, err);
	if (!ret)
		ret = chain_revert(call->daemon->target, node, (*at)->img, (*at)->path,
				   (*at)->name, &closed, err);
	if (ret)
		return ret;
	give_away(at);
	call->result = json_object_new_object();
	json_object_object_add(call->result, "closed", json_object_new_boolean(closed));
	return 0;
}

int qmp_blockdev_snapshot(struct qmp_call *call, struct qc_err *err)
{
	return take_snapshot(call, call->arguments, err);
}

/*
 * A daemon has one chain, so all that can be done at one instant here is one
 * snapshot; several daemons: qchain-hold.
 */
int qmp_transaction(struct qmp_call *call, struct qc_err *err)
{
	json_object *actions, *action, *data;
	const char *type;

	json_object_object_get_ex(call->arguments, "actions", &actions);
	if (json_object_array_length(actions) != 1)
		return qc_err_set(err, -EINVAL, "Parameter 'actions' expects one action: there is "
				  "one chain here, and one snapshot at one instant");
	action = json_object_array_get_idx(actions, 0);
	type = json_object_is_type(action, json_type_object) ? qmp_text_of(action, "type") : NULL;
	if (!type)
		return qc_err_set(err, -EINVAL, "Parameter 'actions[0].type' is missing");
	if (strcmp(type, "blockdev-snapshot"))
		return qc_err_set(err, -EINVAL, "Parameter 'type' does not accept value '%.80s'",
				  type);
	if (!json_object_object_get_ex(action, "data", &data) ||
	    !json_object_is_type(data, json_type_object))
		return qc_err_set(err, -EINVAL, "Parameter 'actions[0].data' is missing");
	return take_snapshot(call, data, err);
}

/* ---- several daemons at one instant ---------------------------------------------------- */

int qmp_qchain_hold(struct qmp_call *call, struct qc_err *err)
{
	json_object *value;
	s64 ms;

	json_object_object_get_ex(call->arguments, "milliseconds", &value);
	ms = json_object_get_int64(value);
	if (ms < 1 || ms > MAX_HOLD_MS)
		return qc_err_set(err, -EINVAL, "Parameter 'milliseconds' expects 1 to %d",
				  MAX_HOLD_MS);
	return chain_hold(call->daemon->target, ms, err);
}

int qmp_qchain_release(struct qmp_call *call, struct qc_err *err)
{
	return chain_release(call->daemon->target, err);
}

/* ---- an image that was renamed ----------------------------------------------------------- */

int qmp_qchain_rename_layer(struct qmp_call *call, struct qc_err *err)
{
	const char *file = qmp_text_of(call->arguments, "filename");

	if (*file != '/')
		return qc_err_set(err, -EINVAL, "Parameter 'filename' expects an absolute path");
	return chain_rename_layer(call->daemon->target,
				  qmp_text_of(call->arguments, "node-name"), file, err);
}

void qmp_blockdevs_free(struct daemon *daemon)
{
	struct qmp_blockdev *node;

	while ((node = daemon->blockdevs)) {
		daemon->blockdevs = node->next;
		blockdev_free(node);
	}
}
