// SPDX-License-Identifier: GPL-2.0-or-later
/* The ublk transport: from a target to /dev/ublkbN, and back to nothing. */
#include "ublk-private.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>


/*
 * Three ways to and from a device, all on the control thread:
 *
 *   start    ADD_DEV, SET_PARAMS, open ublkcN, queues fetch, START_DEV
 *   recover  START_USER_RECOVERY, open ublkcN, queues fetch, END_USER_RECOVERY
 *   stop     STOP_DEV while the queues serve, queues end, close, DEL_DEV
 *
 * The queues serve before the device is usable and until nobody can use it any
 * more: starting reads from it (partitions, udev), stopping waits for what is
 * in flight. A daemon that dies leaves the device quiesced: its users wait.
 */

#define UBLK_STOP_WAIT_MS 2000 /* for udev and its like to close the device */

/*
 *   NEW --start--> LIVE --stop--> STOPPING ----> GONE
 *                   ^               |
 *                   +---- in use ---+
 */
static const bool ublk_state_allowed[UBLK_STATES][UBLK_STATES] = {
	[UBLK_NEW] = { [UBLK_LIVE] = true },
	[UBLK_LIVE] = { [UBLK_STOPPING] = true },
	[UBLK_STOPPING] = { [UBLK_LIVE] = true, [UBLK_GONE] = true },
};

static struct ublk *to_ublk(const struct transport *t)
{
	return container_of((struct transport *)t, struct ublk, transport);
}

static void ublk_set_state(struct ublk *u, enum ublk_state state)
{
	assert(ublk_state_allowed[u->state][state]);
	u->state = state;
}

/* ---- start ----------------------------------------------------------------------------- */

static int ublk_start(struct transport *t, struct qc_err *err)
{
	struct ublk *u = to_ublk(t);
	int ret;

	if (u->state != UBLK_NEW)
		return qc_err_set(err, -EINVAL, "%s: was started before", t->id);
	ret = ublk_control_open(&u->control, err);
	if (ret)
		return ret;
	ret = u->options.recover ? ublk_recover(u, err) : ublk_add(u, err);
	if (ret) {
		ublk_control_close(&u->control);
		return ret;
	}
	if (!t->id[0])
		snprintf(t->id, sizeof(t->id), "ublkb%u", u->dev.info.dev_id);
	ublk_set_state(u, UBLK_LIVE);
	return 0;
}

/* ---- stop ------------------------------------------------------------------------------ */

/*
 * Before 7.0 there is no command that refuses: look for users ourselves. The
 * exclusive open keeps mounts and stacked devices away until it is stopped.
 */
static int ublk_stop_checked(struct ublk *u)
{
	char path[32], text[64];
	bool lasting;
	int fd, ret;

	snprintf(path, sizeof(path), "/dev/ublkb%u", u->dev.info.dev_id);
	fd = open(path, O_RDONLY | O_EXCL | O_CLOEXEC);
	if (fd < 0 && errno == EBUSY)
		return -EBUSY;
	if (ublk_users_find(u->dev.info.dev_id, text, sizeof(text), &lasting))
		ret = -EBUSY;
	else
		ret = ublk_run(u, UBLK_U_CMD_STOP_DEV, 0);
	if (fd >= 0)
		close(fd);
	return ret;
}

static int ublk_stop_unused(struct ublk *u, struct qc_err *err)
{
	u64 deadline_ms = ublk_now_ms() + UBLK_STOP_WAIT_MS;
	bool lasting = false;
	char text[512];
	int ret;

	for (;;) {
		ret = u->dev.info.flags & UBLK_F_SAFE_STOP_DEV ?
			      ublk_run(u, UBLK_U_CMD_TRY_STOP_DEV, 0) : ublk_stop_checked(u);
		if (ret != -EBUSY)
			return ret;
		if (!ublk_users_find(u->dev.info.dev_id, text, sizeof(text), &lasting))
			snprintf(text, sizeof(text), "by whom cannot be seen from here");
		if (lasting || ublk_now_ms() >= deadline_ms)
			break;
		usleep(UBLK_POLL_US);
	}
	return qc_err_set(err, -EBUSY, "ublkb%u: in use (%s), expected nobody; unmount or close "
			  "it, or stop it by force, which fails the I/O of its users",
			  u->dev.info.dev_id, text);
}

/* Who has only just closed it may still be seen for a moment. */
static int ublk_check_unused(struct transport *t, struct qc_err *err)
{
	struct ublk *u = to_ublk(t);
	u64 deadline_ms = ublk_now_ms() + UBLK_STOP_WAIT_MS;
	bool lasting = false;
	char text[512];

	while (ublk_users_find(u->dev.info.dev_id, text, sizeof(text), &lasting)) {
		if (lasting || ublk_now_ms() >= deadline_ms)
			return qc_err_set(err, -EBUSY, "ublkb%u: in use (%s), expected nobody; "
					  "unmount or close it, or do it by force, behind the back "
					  "of its users", u->dev.info.dev_id, text);
		usleep(UBLK_POLL_US);
	}
	return 0;
}

/* All fetches come back once the device is stopped; ending the rings would do it too. */
static void ublk_wait_tags(struct ublk *u)
{
	u64 deadline_ms = ublk_now_ms() + UBLK_STOP_WAIT_MS;
	u32 i;

	for (i = 0; i < u->dev.info.nr_hw_queues; i++)
		while (ublk_queue_live_tags(u->queues[i]) && ublk_now_ms() < deadline_ms)
			usleep(UBLK_POLL_US);
}

static int ublk_stop(struct transport *t, bool force, struct qc_err *err)
{
	struct ublk *u = to_ublk(t);
	int ret;

	if (u->state != UBLK_LIVE)
		return 0;
	ublk_set_state(u, UBLK_STOPPING);
	ret = force ? ublk_run(u, UBLK_U_CMD_STOP_DEV, 0) : ublk_stop_unused(u, err);
	if (ret && ret != -ENODEV) {
		ublk_set_state(u, UBLK_LIVE);
		return qc_err_set(err, ret, "ublkb%u: cannot be stopped (%s)",
				  u->dev.info.dev_id, strerror(-ret));
	}
	ublk_wait_tags(u);
	ublk_end_serving(u);
	ublk_delete(u);
	ublk_control_close(&u->control);
	ublk_set_state(u, UBLK_GONE);
	return 0;
}

/* ---- status, create ---------------------------------------------------------------------- */

static json_object *ublk_features(u64 flags)
{
	static const char *const names[] = {
		"zero-copy-manual", "comp-in-task", "need-get-data", "user-recovery",
		"user-recovery-reissue", "unprivileged", "ioctl-encode", "user-copy",
		"zoned", "user-recovery-fail-io", "update-size", "auto-buf-reg",
		"quiesce", "per-io-daemon", "buf-reg-off-daemon", "batch-io",
		"integrity", "safe-stop", "no-auto-part-scan", "shmem-zero-copy",
		"io-desc-size",
	};
	json_object *list = json_object_new_array();
	size_t i;

	for (i = 0; i < ARRAY_SIZE(names); i++)
		if (flags >> i & 1)
			json_object_array_add(list, json_object_new_string(names[i]));
	return list;
}

static void status_string(json_object *result, const char *key, const char *value)
{
	json_object_object_add(result, key, json_object_new_string(value));
}

static void status_number(json_object *result, const char *key, u64 value)
{
	json_object_object_add(result, key, json_object_new_uint64(value));
}

static void status_bool(json_object *result, const char *key, bool value)
{
	json_object_object_add(result, key, json_object_new_boolean(value));
}

static void ublk_status(struct transport *t, json_object *result)
{
	struct ublk *u = to_ublk(t);
	const struct ublksrv_ctrl_dev_info *info = &u->dev.info;
	char path[32];

	status_string(result, "id", t->id);
	status_string(result, "type", "ublk");
	status_string(result, "node-name", t->target->type->name);
	/* Tags end when the device is stopped, by somebody else if not by us. */
	status_bool(result, "shutting-down",
		    u->state != UBLK_LIVE ||
			    __atomic_load_n(&u->dev.ended_tags, __ATOMIC_RELAXED));
	if (u->state != UBLK_LIVE)
		return;
	snprintf(path, sizeof(path), "/dev/ublkb%u", info->dev_id);
	status_string(result, "device", path);
	status_number(result, "dev-id", info->dev_id);
	status_number(result, "size", u->size_bytes);
	status_number(result, "queues", info->nr_hw_queues);
	status_number(result, "depth", info->queue_depth);
	status_number(result, "max-request-bytes", info->max_io_buf_bytes);
	status_string(result, "mode", u->dev.zero_copy ? "zero-copy" : "copy");
	json_object_object_add(result, "features", ublk_features(info->flags));
	status_bool(result, "recovered", u->options.recover);
	status_number(result, "tag", info->ublksrv_flags);
	status_number(result, "fallbacks",
		      __atomic_load_n(&u->dev.fallbacks, __ATOMIC_RELAXED));
	status_number(result, "failed-tags",
		      __atomic_load_n(&u->dev.failed_tags, __ATOMIC_RELAXED));
}

static int ublk_resized(struct transport *t, struct qc_err *err)
{
	struct ublk *u = to_ublk(t);

	return u->state == UBLK_LIVE ? ublk_update_size(u, err) : 0;
}

static void ublk_walk(struct transport *t, void (*visit)(const struct request *req, void *arg),
		      void *arg)
{
	struct ublk *u = to_ublk(t);
	u32 i;

	for (i = 0; u->state == UBLK_LIVE && i < u->dev.info.nr_hw_queues; i++)
		ublk_queue_walk(u->queues[i], visit, arg);
}

static void ublk_destroy(struct transport *t)
{
	struct ublk *u = to_ublk(t);

	assert(u->state == UBLK_NEW || u->state == UBLK_GONE);
	free(u);
}

static const struct transport_ops ublk_ops = {
	.name = "ublk",
	.start = ublk_start,
	.stop = ublk_stop,
	.check_unused = ublk_check_unused,
	.walk = ublk_walk,
	.resized = ublk_resized,
	.status = ublk_status,
	.destroy = ublk_destroy,
};

s32 ublk_dev_id(const struct transport *t)
{
	return to_ublk(t)->dev.info.dev_id;
}

static int ublk_check_options(const struct ublk_options *o, struct qc_err *err)
{
	if (o->nr_queues > QC_MAX_LOOPS)
		return qc_err_set(err, -EINVAL, "ublk: %u queues asked for, 1 to %u are allowed",
				  o->nr_queues, QC_MAX_LOOPS);
	if (o->queue_depth > UBLK_MAX_QUEUE_DEPTH)
		return qc_err_set(err, -EINVAL, "ublk: queue depth %u asked for, 1 to %u is "
				  "allowed", o->queue_depth, UBLK_MAX_QUEUE_DEPTH);
	if (o->dev_id < -1 || (o->recover && o->dev_id < 0))
		return qc_err_set(err, -EINVAL, "ublk: device number %d, expected %s", o->dev_id,
				  o->recover ? "that of the device to recover" : "0 or more");
	return 0;
}

int ublk_create(struct target *ti, const struct ublk_options *options,
		struct transport **result, struct qc_err *err)
{
	struct ublk *u;
	int ret = ublk_check_options(options, err);

	if (ret)
		return ret;
	u = calloc(1, sizeof(*u));
	if (!u)
		return qc_err_set(err, -ENOMEM, "ublk: out of memory");
	u->transport.ops = &ublk_ops;
	u->transport.target = ti;
	u->options = *options;
	u->control.fd = -1;
	u->dev.target = ti;
	u->dev.cdev_fd = -1;
	u->dev.info.dev_id = options->dev_id;
	*result = &u->transport;
	return 0;
}
