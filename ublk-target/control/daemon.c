// SPDX-License-Identifier: GPL-2.0-or-later
/* What one daemon serves: a target, its exports, and the way they end. */
#include <errno.h>
#include <qchain/control.h>
#include <qchain/log.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/*
 * The order of the end: exports that may refuse (ublk), the others (NBD), then
 * the target writes back and leaves its images clean. Only then does
 * the process go, and with it the connections of QMP: who sees them closed
 * knows that all images are closed.
 */

static bool export_is_ublk(const struct transport *t)
{
	return strcmp(t->ops->name, "ublk") == 0;
}

/* "nbd0", "nbd1", ..: those of the command line, which come first. */
static void name_export(const struct daemon *daemon, const struct transport *t, char *id,
			size_t bytes)
{
	u32 same = 0;

	for (u32 i = 0; i < daemon->nr_exports; i++)
		same += strcmp(daemon->exports[i]->ops->name, t->ops->name) == 0;
	snprintf(id, bytes, "%s%u", t->ops->name, same);
}

static int create_export(struct daemon *daemon, const struct export_options *options,
			 struct transport **result, struct qc_err *err)
{
	struct nbd_options nbd = options->nbd;

	if (options->kind == EXPORT_UBLK)
		return ublk_create(daemon->target, &options->ublk, result, err);
	if (!nbd.name)
		nbd.name = daemon->name;
	return nbd_create(daemon->target, &nbd, result, err);
}

int daemon_start_export(struct daemon *daemon, struct transport *t_owned, const char *id,
			struct qc_err *err)
{
	int ret = 0;

	if (daemon->nr_exports == QC_MAX_EXPORTS)
		ret = qc_err_set(err, -ENOSPC, "%s: too many exports (%u), at most %u", id,
				 daemon->nr_exports + 1, QC_MAX_EXPORTS);
	snprintf(t_owned->id, sizeof(t_owned->id), "%s", id);
	if (!ret)
		ret = t_owned->ops->start(t_owned, err);
	if (ret) {
		t_owned->ops->destroy(t_owned);
		return ret;
	}
	daemon->exports[daemon->nr_exports++] = t_owned;
	return 0;
}

int daemon_add_export(struct daemon *daemon, const struct export_options *options,
		      struct qc_err *err)
{
	char id[sizeof(daemon->exports[0]->id)];
	struct transport *t;
	int ret = create_export(daemon, options, &t, err);

	if (ret)
		return ret;
	name_export(daemon, t, id, sizeof(id));
	return daemon_start_export(daemon, t, id, err);
}

void daemon_resized(struct daemon *daemon)
{
	struct qc_err err = { 0 };

	for (u32 i = 0; i < daemon->nr_exports; i++) {
		struct transport *t = daemon->exports[i];

		if (t->ops->resized && t->ops->resized(t, &err))
			log_warn("%s", err.msg);
	}
}

/* ---- the end -------------------------------------------------------------- */

static void event_export_deleted(const struct transport *t)
{
	json_object *data = json_object_new_object();

	json_object_object_add(data, "id", json_object_new_string(t->id));
	qmp_event("BLOCK_EXPORT_DELETED", data);
}

static void event_shutdown(const char *reason)
{
	json_object *data = json_object_new_object();

	json_object_object_add(data, "guest", json_object_new_boolean(false));
	json_object_object_add(data, "reason", json_object_new_string(reason));
	qmp_event("SHUTDOWN", data);
}

static void forget_export(struct daemon *daemon, u32 index)
{
	struct transport *t = daemon->exports[index];
	struct target *target = t->target;

	event_export_deleted(t);
	if (daemon->nbd_export == t)
		daemon->nbd_export = NULL;
	t->ops->destroy(t);
	if (target != daemon->target)
		target_destroy(target);
	daemon->nr_exports--;
	memmove(daemon->exports + index, daemon->exports + index + 1,
		(daemon->nr_exports - index) * sizeof(daemon->exports[0]));
}

int daemon_end_export(struct daemon *daemon, u32 index, bool force, struct qc_err *err)
{
	int ret = daemon->exports[index]->ops->stop(daemon->exports[index], force, err);

	if (!ret)
		forget_export(daemon, index);
	return ret;
}

s64 daemon_export_clients(const struct transport *t)
{
	json_object *status = json_object_new_object(), *clients;
	s64 nr = 0;

	t->ops->status((struct transport *)t, status);
	if (json_object_object_get_ex(status, "connections", &clients))
		nr = json_object_get_int64(clients);
	json_object_put(status);
	return nr;
}

/* Refuse before the first export is gone, not after it. */
static int check_unused(const struct daemon *daemon, struct qc_err *err)
{
	struct job *job = daemon->jobs ? jobs_unfinished(daemon->jobs) : NULL;
	s64 clients;

	if (job)
		return qc_err_set(err, -EBUSY,
				  "%s: job of kind %s runs, expected none; wait for it, or "
				  "cancel it", job->id, job->type->name);

	for (u32 i = 0; i < daemon->nr_exports; i++) {
		clients = daemon_export_clients(daemon->exports[i]);
		if (clients)
			return qc_err_set(err, -EBUSY,
					  "%s: in use by %lld client%s, expected none; disconnect "
					  "them, or end it by force", daemon->exports[i]->id,
					  (long long)clients, clients == 1 ? "" : "s");
	}
	return 0;
}

int daemon_check_unused(const struct daemon *daemon, struct qc_err *err)
{
	int ret = check_unused(daemon, err);

	for (u32 i = 0; i < daemon->nr_exports && !ret; i++)
		if (daemon->exports[i]->ops->check_unused)
			ret = daemon->exports[i]->ops->check_unused(daemon->exports[i], err);
	return ret;
}

static int stop_exports(struct daemon *daemon, enum stop_mode mode, bool ublk, struct qc_err *err)
{
	bool force = mode == STOP_FORCE || (mode == STOP_SIGNAL && !ublk);
	int ret;

	/* What waits for space would hold up the stop for ever (rule E2). */
	if (force)
		target_presuspend(daemon->target);
	for (u32 i = 0; i < daemon->nr_exports;) {
		if (export_is_ublk(daemon->exports[i]) != ublk) {
			i++;
			continue;
		}
		ret = daemon_end_export(daemon, i, force, err);
		if (ret)
			return ret;
	}
	return 0;
}

int daemon_stop(struct daemon *daemon, enum stop_mode mode, const char *reason,
		struct qc_err *err)
{
	int ret = mode == STOP_UNUSED && !daemon->stopped ? check_unused(daemon, err) : 0;

	if (ret || daemon->stopped)
		return ret;
	if (daemon->jobs)
		jobs_cancel_all(daemon->jobs);
	ret = stop_exports(daemon, mode, true, err);
	if (ret == 0)
		ret = stop_exports(daemon, mode, false, err);
	if (ret)
		return ret;
	daemon->stopped = true;
	daemon->reason = reason;
	ret = target_suspend(daemon->target, err);
	if (ret)
		daemon->exit_status = EXIT_FAILURE;
	loop_quit(daemon->loop);
	return ret;
}

/*
 * Requests that do not end hold memory of the target. As after a crash, nothing
 * that was acknowledged is lost (rule A1) when the process just goes.
 */
static void give_up(const struct daemon *daemon)
{
	log_error("%s: export %s does not end, giving up; the images are as after a crash",
		  daemon->top, daemon->exports[0]->id);
	_exit(EXIT_FAILURE);
}

void daemon_exit(struct daemon *daemon)
{
	struct qc_err err = { 0 };

	if (daemon->target && daemon_stop(daemon, STOP_FORCE, "host-error", &err))
		log_error("%s", err.msg);
	if (daemon->nr_exports)
		give_up(daemon);
	if (daemon->reason)
		event_shutdown(daemon->reason);
	jobs_destroy(daemon->jobs); /* before their loops */
	daemon->jobs = NULL;
	qmp_blockdevs_free(daemon);
	qmp_fdsets_free(daemon);
	free(daemon->nbd_path);
	target_destroy(daemon->target);
	daemon->target = NULL;
	if (daemon->qmp)
		qmp_server_destroy(daemon->qmp);
	daemon->qmp = NULL;
}
