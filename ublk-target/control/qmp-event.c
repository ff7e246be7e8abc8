// SPDX-License-Identifier: GPL-2.0-or-later
/* Events: raised on any thread, sent by the control thread. */
#include "control-private.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

/* One daemon is one process, and who raises an event has no handle on QMP. */
static struct qmp_server *event_server; /* control thread only */
static struct loop *event_loop; /* any thread, atomic */

struct event {
	struct loop_msg msg;
	json_object *object;
};

void qmp_event_connect(struct qmp_server *server, struct loop *loop)
{
	event_server = server;
	__atomic_store_n(&event_loop, loop, __ATOMIC_RELEASE);
}

static void event_send(struct loop *loop, struct loop_msg *msg)
{
	struct event *event = container_of(msg, struct event, msg);

	if (event_server)
		qmp_server_broadcast(event_server, qmp_text(event->object));
	json_object_put(event->object);
	free(event);
}

static json_object *event_timestamp(void)
{
	json_object *stamp = json_object_new_object();
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	json_object_object_add(stamp, "seconds", json_object_new_int64(now.tv_sec));
	json_object_object_add(stamp, "microseconds", json_object_new_int64(now.tv_nsec / 1000));
	return stamp;
}

void qmp_event(const char *name, json_object *data_owned)
{
	struct loop *loop = __atomic_load_n(&event_loop, __ATOMIC_ACQUIRE);
	struct event *event = loop ? calloc(1, sizeof(*event)) : NULL;

	if (!event) {
		json_object_put(data_owned);
		return;
	}
	event->object = json_object_new_object();
	json_object_object_add(event->object, "timestamp", event_timestamp());
	json_object_object_add(event->object, "event", json_object_new_string(name));
	if (data_owned)
		json_object_object_add(event->object, "data", data_owned);
	if (loop_is_current(loop))
		event_send(loop, &event->msg);
	else
		loop_send(loop, &event->msg, event_send);
}

void qmp_target_event(void *arg, const char *name, json_object *data_owned)
{
	qmp_event(name, data_owned);
}
