// SPDX-License-Identifier: GPL-2.0-or-later
/* QMP for whoever makes volumes larger: block-set-write-threshold, qchain-volume-growth. */
#include "control-private.h"

#include <errno.h>
#include <qchain/online.h>
#include <string.h>

const struct qmp_param qmp_block_set_write_threshold_params[] = {
	{ "node-name", json_type_string, true },
	{ "write-threshold", json_type_int, true },
	{ NULL },
};

const struct qmp_param qmp_qchain_volume_growth_params[] = {
	{ "node-name", json_type_string, true },
	{ "state", json_type_string, true },
	{ "reason", json_type_string, false },
	{ NULL },
};

int qmp_block_set_write_threshold(struct qmp_call *call, struct qc_err *err)
{
	json_object *bytes;

	json_object_object_get_ex(call->arguments, "write-threshold", &bytes);
	if (json_object_get_int64(bytes) < 0)
		return qc_err_set(err, -EINVAL,
				  "Parameter 'write-threshold' expects a non-negative value");
	return chain_set_write_threshold(call->daemon->target,
					 qmp_text_of(call->arguments, "node-name"),
					 json_object_get_uint64(bytes), err);
}

int qmp_qchain_volume_growth(struct qmp_call *call, struct qc_err *err)
{
	const char *state = qmp_text_of(call->arguments, "state");
	const char *reason = qmp_text_of(call->arguments, "reason");
	enum volume_growth growth = VOLUME_FIXED;

	while (growth < VOLUME_GROWTHS && strcmp(state, volume_growth_name(growth)))
		growth++;
	if (growth < VOLUME_GROWTHS)
		return chain_tell_growth(call->daemon->target,
					 qmp_text_of(call->arguments, "node-name"), growth,
					 reason ? reason : "", err);
	return qc_err_set(err, -EINVAL, "Parameter 'state' does not accept value '%.80s', "
			  "expected fixed, grows or stuck", state);
}
