// SPDX-License-Identifier: GPL-2.0-or-later
/* Requests that failed: what their submitter is told, the administrator is told, too. */
#include "target-private.h"

#include <errno.h>
#include <qchain/loop.h>
#include <string.h>

/*
 * One event in a second, whatever fails: a volume that is gone fails thousands.
 * All of them are counted (query-blockstats).
 */
#define EVENT_EVERY_NS 1000000000ull

/* Told when the device turned read-only, or the submitter's own mistake. */
static bool is_news(int error)
{
	return error != -EROFS && error != -EPERM && error != -EINVAL && error != -ECANCELED;
}

/* Any thread: one of those that ask in the same second gets a yes. */
static bool is_due(struct target *ti, u64 now_ns)
{
	u64 next = __atomic_load_n(&ti->trouble_ns, __ATOMIC_RELAXED);

	return now_ns >= next &&
	       __atomic_compare_exchange_n(&ti->trouble_ns, &next, now_ns + EVENT_EVERY_NS, false,
					   __ATOMIC_RELAXED, __ATOMIC_RELAXED);
}

void trouble_tell(const struct request *req, int error)
{
	struct target *ti = req->target;
	bool reads = req->op == REQ_READ || req->op == REQ_BLOCK_STATUS;
	json_object *data;

	if (!is_news(error) || !is_due(ti, loop_now_ns(req->loop)))
		return;
	data = json_object_new_object();
	json_object_object_add(data, "operation", json_object_new_string(reads ? "read" : "write"));
	json_object_object_add(data, "action", json_object_new_string("report"));
	json_object_object_add(data, "nospace", json_object_new_boolean(error == -ENOSPC));
	json_object_object_add(data, "reason", json_object_new_string(strerror(-error)));
	target_event(ti, "BLOCK_IO_ERROR", data);
}
