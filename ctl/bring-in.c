// SPDX-License-Identifier: GPL-2.0-or-later
/* An overlay becomes a node of the daemon, which does not see the host's folders any more. */
#include "overlay.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

/* Our descriptors in the daemon: one at a time, the chain's lock is held. */
#define OUR_FDSET 71

void overlay_node_name(const struct overlay *overlay, char *node)
{
	snprintf(node, QC_MAX_NODE_NAME + 1, "%s", overlay->name);
	for (char *at = node; *at; at++)
		if (!isalnum((unsigned char)*at) && !strchr("._-", *at))
			*at = '_';
}

static json_object *one_argument(const char *key, json_object *value)
{
	json_object *arguments = json_object_new_object();

	json_object_object_add(arguments, key, value);
	return arguments;
}

static int remove_fd(struct client *client, struct qc_err *err)
{
	return client_command(client, "remove-fd",
			      one_argument("fdset-id", json_object_new_int(OUR_FDSET)), false,
			      NULL, err);
}

void overlay_withdraw(struct client *client, const char *node)
{
	struct qc_err ignored = { 0 };

	remove_fd(client, &ignored);
	if (node[0])
		client_command(client, "blockdev-del",
			       one_argument("node-name", json_object_new_string(node)), false,
			       NULL, &ignored);
}

static json_object *blockdev_arguments(const char *node)
{
	json_object *arguments = json_object_new_object(), *file = json_object_new_object();
	char name[32];

	snprintf(name, sizeof(name), "/dev/fdset/%d", OUR_FDSET);
	json_object_object_add(file, "driver", json_object_new_string("file"));
	json_object_object_add(file, "filename", json_object_new_string(name));
	json_object_object_add(arguments, "driver", json_object_new_string("qcow2"));
	json_object_object_add(arguments, "node-name", json_object_new_string(node));
	json_object_object_add(arguments, "file", file);
	json_object_object_add(arguments, "backing", NULL);
	return arguments;
}

int overlay_bring_in(struct client *client, const struct overlay *overlay, char *node,
		     struct qc_err *err)
{
	int fd, ret;

	overlay_node_name(overlay, node);
	overlay_withdraw(client, node);
	fd = open(overlay->path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return qc_err_set(err, -errno, "%s: not opened (%m)", overlay->path);
	ret = client_add_fd(client, OUR_FDSET, fd, overlay->path, err);
	close(fd);
	if (!ret)
		ret = client_command(client, "blockdev-add", blockdev_arguments(node), false, NULL,
				     err);
	return ret ? ret : remove_fd(client, err);
}
