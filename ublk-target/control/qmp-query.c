// SPDX-License-Identifier: GPL-2.0-or-later
/* QMP commands that look: version, commands, status, nodes, exports. */
#include "control-private.h"

#include <string.h>

/* The QMP dialect: the release of QEMU whose names and shapes we speak. */
#define DIALECT_MAJOR 7
#define DIALECT_MINOR 2
#define DIALECT_MICRO 0

json_object *qmp_version(void)
{
	json_object *version = json_object_new_object();
	json_object *dialect = json_object_new_object();

	json_object_object_add(dialect, "micro", json_object_new_int(DIALECT_MICRO));
	json_object_object_add(dialect, "minor", json_object_new_int(DIALECT_MINOR));
	json_object_object_add(dialect, "major", json_object_new_int(DIALECT_MAJOR));
	json_object_object_add(version, "qemu", dialect);
	json_object_object_add(version, "package",
			       json_object_new_string("qchain " QCHAIN_VERSION));
	return version;
}

int qmp_query_version(struct qmp_call *call, struct qc_err *err)
{
	call->result = qmp_version();
	return 0;
}

int qmp_query_commands(struct qmp_call *call, struct qc_err *err)
{
	call->result = qmp_command_list();
	return 0;
}

json_object *qmp_target_status(struct target *target)
{
	json_object *status = json_object_new_object();

	if (!watchdog_sees_hang())
		target_status(target, status);
	return status;
}

json_object *qmp_nodes(struct target *target)
{
	json_object *status = qmp_target_status(target), *list;

	if (json_object_object_get_ex(status, "nodes", &list))
		json_object_get(list);
	else
		list = json_object_new_array();
	json_object_put(status);
	return list;
}

void qmp_add_default(json_object *object, const char *key, json_object *value_owned)
{
	if (json_object_object_get_ex(object, key, NULL))
		json_object_put(value_owned);
	else
		json_object_object_add(object, key, value_owned);
}

/* Keys that clients expect of every node, for features that we do not have. */
static void add_node_defaults(json_object *node)
{
	static const char *const zeroes[] = { "iops",	 "iops_rd", "iops_wr", "bps",
					      "bps_rd", "bps_wr",  "write_threshold" };
	json_object *cache = json_object_new_object();

	for (u32 i = 0; i < ARRAY_SIZE(zeroes); i++)
		qmp_add_default(node, zeroes[i], json_object_new_int(0));
	qmp_add_default(node, "encrypted", json_object_new_boolean(false));
	qmp_add_default(node, "detect_zeroes", json_object_new_string("off"));
	json_object_object_add(cache, "writeback", json_object_new_boolean(true));
	json_object_object_add(cache, "direct", json_object_new_boolean(true));
	json_object_object_add(cache, "no-flush", json_object_new_boolean(false));
	qmp_add_default(node, "cache", cache);
}

int qmp_query_named_block_nodes(struct qmp_call *call, struct qc_err *err)
{
	json_object *nodes = qmp_nodes(call->daemon->target);

	for (u32 i = 0; i < json_object_array_length(nodes); i++)
		add_node_defaults(json_object_array_get_idx(nodes, i));
	call->result = nodes;
	return 0;
}

json_object *qmp_top_node(struct target *target)
{
	json_object *nodes = qmp_nodes(target), *name = NULL;

	if (json_object_array_length(nodes) > 0)
		json_object_object_get_ex(json_object_array_get_idx(nodes, 0), "node-name",
					  &name);
	name = json_object_get(name);
	json_object_put(nodes);
	return name;
}

int qmp_query_block_exports(struct qmp_call *call, struct qc_err *err)
{
	json_object *export, *name;

	call->result = json_object_new_array();
	for (u32 i = 0; i < call->daemon->nr_exports; i++) {
		struct transport *t = call->daemon->exports[i];

		export = json_object_new_object();
		t->ops->status(t, export);
		name = qmp_top_node(t->target);
		if (name)
			json_object_object_add(export, "node-name", name);
		json_object_array_add(call->result, export);
	}
	return 0;
}
