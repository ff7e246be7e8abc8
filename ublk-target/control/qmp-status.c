// SPDX-License-Identifier: GPL-2.0-or-later
/* QMP: query-status, with the requests under way and what each of them waits for. */
#include "control-private.h"

#include <string.h>
#include <unistd.h>

/*
 * The exports' loops are asked one after the other, each on its own thread, for
 * the requests that the target has. Nothing is kept on the way of a request for
 * that: who looks pays.
 */

/* The requests that have waited longest are shown one by one. */
#define MAX_OLDEST 16u
#define MAX_STAGES 24u

struct request_report {
	u32 nr;
	u32 nr_old; /* that a grace waits for */
	u32 nr_oldest;
	struct request_info oldest[MAX_OLDEST]; /* longest first */
	u32 nr_stages;
	struct {
		const char *name;
		u32 nr;
	} stages[MAX_STAGES];
};

static void count_stage(struct request_report *report, const char *name)
{
	u32 i;

	for (i = 0; i < report->nr_stages; i++)
		if (strcmp(report->stages[i].name, name) == 0)
			break;
	if (i == MAX_STAGES)
		return;
	report->stages[i].name = name;
	report->stages[i].nr++;
	report->nr_stages = max(report->nr_stages, i + 1);
}

/* Those that a grace waits for come first, then by age. */
static bool matters_more(const struct request_info *a, const struct request_info *b)
{
	return a->old != b->old ? a->old : a->waited_ns > b->waited_ns;
}

static void keep_oldest(struct request_report *report, const struct request_info *info)
{
	u32 i = report->nr_oldest;

	if (i < MAX_OLDEST)
		report->nr_oldest++;
	else if (!matters_more(info, &report->oldest[--i]))
		return;
	for (; i > 0 && matters_more(info, &report->oldest[i - 1]); i--)
		report->oldest[i] = report->oldest[i - 1];
	report->oldest[i] = *info;
}

static void visit_request(const struct request *req, void *arg)
{
	struct request_report *report = arg;
	struct request_info info;

	target_locate(req, &info);
	report->nr++;
	report->nr_old += info.old;
	count_stage(report, info.stage);
	keep_oldest(report, &info);
}

static json_object *request_json(const struct request_info *info)
{
	static const char *const ops[] = {
		[REQ_READ] = "read",	     [REQ_WRITE] = "write",
		[REQ_FLUSH] = "flush",	     [REQ_DISCARD] = "discard",
		[REQ_WRITE_ZEROES] = "write-zeroes", [REQ_BLOCK_STATUS] = "block-status",
	};
	json_object *o = json_object_new_object();

	json_object_object_add(o, "operation", json_object_new_string(ops[info->op]));
	json_object_object_add(o, "offset", json_object_new_int64(info->offset));
	json_object_object_add(o, "length", json_object_new_int64(info->len));
	json_object_object_add(o, "queue", json_object_new_string(info->queue));
	json_object_object_add(o, "stage", json_object_new_string(info->stage));
	json_object_object_add(o, "waited-ms", json_object_new_int64(info->waited_ns / 1000000));
	json_object_object_add(o, "grace-waits", json_object_new_boolean(info->old));
	if (info->image[0])
		json_object_object_add(o, "image", json_object_new_string(info->image));
	return o;
}

static json_object *requests_json(const struct request_report *report)
{
	json_object *o = json_object_new_object();
	json_object *stages = json_object_new_object();
	json_object *oldest = json_object_new_array();
	u32 i;

	for (i = 0; i < report->nr_stages; i++)
		json_object_object_add(stages, report->stages[i].name,
				       json_object_new_int64(report->stages[i].nr));
	for (i = 0; i < report->nr_oldest; i++)
		json_object_array_add(oldest, request_json(&report->oldest[i]));
	json_object_object_add(o, "under-way", json_object_new_int64(report->nr));
	json_object_object_add(o, "grace-waits", json_object_new_int64(report->nr_old));
	json_object_object_add(o, "stages", stages);
	json_object_object_add(o, "oldest", oldest);
	return o;
}

/* The active layer, which is not the image of the start after a snapshot. */
static json_object *top_path(struct daemon *daemon, json_object *status)
{
	json_object *nodes, *file;

	if (json_object_object_get_ex(status, "nodes", &nodes) &&
	    json_object_array_length(nodes) &&
	    json_object_object_get_ex(json_object_array_get_idx(nodes, 0), "file", &file))
		return json_object_get(file);
	return json_object_new_string(daemon->top);
}

/* What the loops say, if all of them can. */
static json_object *loops_status(struct daemon *daemon)
{
	json_object *status = qmp_target_status(daemon->target);
	struct request_report report = { 0 };

	if (watchdog_sees_hang())
		return status;
	for (u32 i = 0; i < daemon->nr_exports; i++)
		daemon->exports[i]->ops->walk(daemon->exports[i], visit_request, &report);
	qmp_add_default(status, "top", top_path(daemon, status));
	json_object_object_del(status, "nodes");
	qmp_add_default(status, "requests", requests_json(&report));
	return status;
}

static json_object *heartbeat_json(json_object *hanging_owned, u32 nr_loops)
{
	json_object *o = json_object_new_object();

	json_object_object_add(o, "loops", json_object_new_int64(nr_loops));
	json_object_object_add(o, "hanging", hanging_owned);
	return o;
}

/* QEMU's keys, and beside them what the target says and what is served. */
int qmp_query_status(struct qmp_call *call, struct qc_err *err)
{
	struct daemon *daemon = call->daemon;
	u32 nr_loops;
	json_object *hanging = watchdog_hanging(&nr_loops);
	json_object *status = loops_status(daemon);

	qmp_add_default(status, "top", json_object_new_string(daemon->top));
	qmp_add_default(status, "heartbeat", heartbeat_json(hanging, nr_loops));
	qmp_add_default(status, "status", json_object_new_string("running"));
	qmp_add_default(status, "running", json_object_new_boolean(true));
	qmp_add_default(status, "singlestep", json_object_new_boolean(false));
	if (daemon->name)
		qmp_add_default(status, "name", json_object_new_string(daemon->name));
	qmp_add_default(status, "virtual-size",
			json_object_new_int64(daemon->target->size_bytes));
	qmp_add_default(status, "read-only",
			json_object_new_boolean(daemon->target->limits.read_only));
	qmp_add_default(status, "pid", json_object_new_int(getpid()));
	call->result = status;
	return 0;
}
