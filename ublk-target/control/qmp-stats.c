// SPDX-License-Identifier: GPL-2.0-or-later
/* QMP: query-blockstats, QEMU's BlockStats of every node. */
#include "control-private.h"

#include <stdio.h>
#include <string.h>

/*
 * Guests talk to the device, so their requests are counted there and shown at
 * the active layer's node. The layers below take no requests of their own and
 * are never written: zeroes, as QEMU's nodes below the top one.
 *
 * Not there: timed_stats (intervals are set up by QEMU's devices), histograms,
 * and merged requests (the kernel merges before we see any).
 */

static void add_number(json_object *object, const char *key, u64 number)
{
	json_object_object_add(object, key, json_object_new_int64(number));
}

static void add_count(json_object *object, const char *op, const struct target_count *count)
{
	const struct {
		const char *form;
		u64 number;
	} keys[] = {
		{ "%s_operations", count->operations },
		{ "failed_%s_operations", count->failed },
		{ "invalid_%s_operations", count->invalid },
		{ "%s_total_time_ns", count->time_ns },
		{ "%s_bytes", count->bytes },
		{ "%s_merged", 0 },
	};
	u32 nr = strcmp(op, "flush") == 0 ? 4 : ARRAY_SIZE(keys); /* a flush has no bytes */
	char key[40];

	for (u32 i = 0; i < nr; i++) {
		snprintf(key, sizeof(key), keys[i].form, op);
		add_number(object, key, keys[i].number);
	}
}

static json_object *stats_json(const struct target_stats *stats, u64 highest, u64 now_ns)
{
	static const char *const ops[] = {
		[STAT_READ] = "rd", [STAT_WRITE] = "wr",
		[STAT_FLUSH] = "flush", [STAT_UNMAP] = "unmap",
	};
	json_object *object = json_object_new_object();

	for (u32 i = 0; i < STAT_NR; i++)
		add_count(object, ops[i], &stats->kinds[i]);
	add_number(object, "wr_highest_offset", highest);
	if (stats->last_ns && now_ns > stats->last_ns)
		add_number(object, "idle_time_ns", now_ns - stats->last_ns);
	json_object_object_add(object, "account_invalid", json_object_new_boolean(false));
	json_object_object_add(object, "account_failed", json_object_new_boolean(false));
	json_object_object_add(object, "timed_stats", json_object_new_array());
	return object;
}

static json_object *node_stats(json_object *node, const struct target_stats *stats, u64 now_ns)
{
	json_object *object = json_object_new_object(), *name;

	if (json_object_object_get_ex(node, "node-name", &name))
		json_object_object_add(object, "node-name", json_object_get(name));
	json_object_object_add(object, "stats", stats_json(stats, stats->highest, now_ns));
	return object;
}

int qmp_query_blockstats(struct qmp_call *call, struct qc_err *err)
{
	static const struct target_stats none;
	struct target_stats device;
	json_object *nodes = qmp_nodes(call->daemon->target);
	u64 now_ns = loop_now_ns(call->daemon->loop);

	target_get_stats(call->daemon->target, &device);
	call->result = json_object_new_array();
	for (u32 i = 0; i < json_object_array_length(nodes); i++)
		json_object_array_add(call->result,
				      node_stats(json_object_array_get_idx(nodes, i),
						 i ? &none : &device, now_ns));
	json_object_put(nodes);
	return 0;
}
