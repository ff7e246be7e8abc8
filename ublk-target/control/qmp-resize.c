// SPDX-License-Identifier: GPL-2.0-or-later
/* QMP block_resize, qchain-cover: the chain and its devices, or a raw layer, get longer. */
#include "control-private.h"

#include <errno.h>
#include <qchain/online.h>

const struct qmp_param qmp_block_resize_params[] = {
	{ "device", json_type_string, false },
	{ "node-name", json_type_string, false },
	{ "size", json_type_int, true },
	{ NULL },
};

static int resize(struct qmp_call *call, const char *node, s64 bytes, struct qc_err *err)
{
	int ret;

	if (bytes < 0)
		return qc_err_set(err, -EINVAL, "Parameter 'size' expects a >0 size");
	ret = qmp_check_no_merge(call->daemon, node, err);
	if (!ret)
		ret = chain_resize(call->daemon->target, node, bytes, err);
	if (!ret)
		daemon_resized(call->daemon);
	return ret;
}

int qmp_block_resize(struct qmp_call *call, struct qc_err *err)
{
	const char *device = qmp_text_of(call->arguments, "device");
	const char *name = qmp_text_of(call->arguments, "node-name");
	const char *node = name ? name : device;
	json_object *size;

	json_object_object_get_ex(call->arguments, "size", &size);
	if (!node || !chain_has_node(call->daemon->target, node))
		return qc_err_set(err, -ENOENT, "Cannot find device='%.80s' nor node-name='%.80s'",
				  device ? device : "", name ? name : "");
	return resize(call, node, json_object_get_int64(size), err);
}

/* Before a raw layer's volume is made larger, which a commit into it asks for. */
const struct qmp_param qmp_qchain_cover_params[] = {
	{ "node-name", json_type_string, true },
	{ "size", json_type_int, true },
	{ NULL },
};

int qmp_qchain_cover(struct qmp_call *call, struct qc_err *err)
{
	json_object *size;

	json_object_object_get_ex(call->arguments, "size", &size);
	if (json_object_get_int64(size) < 0)
		return qc_err_set(err, -EINVAL, "Parameter 'size' expects a >0 size");
	return chain_cover(call->daemon->target, qmp_text_of(call->arguments, "node-name"),
			   json_object_get_int64(size), err);
}
