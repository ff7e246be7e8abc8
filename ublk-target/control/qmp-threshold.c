// SPDX-License-Identifier: GPL-2.0-or-later
/* QMP block-set-write-threshold: an event when a volume wants to grow. */
#include "control-private.h"

#include <errno.h>
#include <qchain/online.h>

const struct qmp_param qmp_block_set_write_threshold_params[] = {
	{ "node-name", json_type_string, true },
	{ "write-threshold", json_type_int, true },
	{ NULL },
};

int qmp_block_set_write_threshold(struct qmp_call *call, struct qc_err *err)
{
	json_object *node, *bytes;

	json_object_object_get_ex(call->arguments, "node-name", &node);
	json_object_object_get_ex(call->arguments, "write-threshold", &bytes);
	if (json_object_get_int64(bytes) < 0)
		return qc_err_set(err, -EINVAL,
				  "Parameter 'write-threshold' expects a non-negative value");
	return chain_set_write_threshold(call->daemon->target, json_object_get_string(node),
					 json_object_get_uint64(bytes), err);
}
