/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Inside QMP: commands, their parameters, what the server offers the rest. */
#ifndef CONTROL_PRIVATE_H
#define CONTROL_PRIVATE_H

#include <qchain/control.h>
#include <qchain/job.h>

/*
 * qmp-server.c    the socket, who may connect
 * qmp-client.c    one connection, bytes in and out
 * qmp-dispatch.c  one request to one reply; the table of commands
 * qmp-query.c     commands that look
 * qmp-stats.c     query-blockstats
 * qmp-job.c       queries and verbs of jobs
 * qmp-backup.c    blockdev-backup
 * qmp-merge.c     merges of layers: jobs that change the chain
 * qmp-resize.c    block_resize, and a raw layer that gets longer
 * qmp-threshold.c block-set-write-threshold, and how the volume grows
 * qmp-status.c    query-status, and the requests that it shows
 * qmp-blockdev.c  nodes brought in, snapshots
 * qmp-export.c    exports that come and go
 * qmp-fdset.c     descriptors brought in
 * watchdog.c      loops that do not go on, told from a thread of its own
 * qmp-event.c     events from any thread to the connections
 *
 * All of it runs on the control thread; only qmp_event() is called by others.
 */

/* The error classes of QMP. */
#define QMP_GENERIC_ERROR "GenericError"
#define QMP_COMMAND_NOT_FOUND "CommandNotFound"
#define QMP_DEVICE_NOT_ACTIVE "DeviceNotActive"
#define QMP_DEVICE_NOT_FOUND "DeviceNotFound"

/*
 * struct qmp_call - one command under way
 * @arguments: checked against the command's parameters; never NULL
 * @result: what "return" will hold; NULL: {}. Taken over by the dispatcher.
 * @error_class: of a failure; QMP_GENERIC_ERROR unless changed
 */
struct qmp_call {
	struct daemon *daemon;
	json_object *arguments;
	json_object *result;
	const char *error_class;
};

/* For struct qmp_param: the command looks itself. */
#define QMP_ANY_TYPE ((enum json_type)-1)

/* One parameter; lists end with a NULL name. */
struct qmp_param {
	const char *name;
	enum json_type type;
	bool required;
};

/* @params NULL: none. @run: 0, or -errno with @err set. */
struct qmp_command {
	const char *name;
	const struct qmp_param *params;
	int (*run)(struct qmp_call *call, struct qc_err *err);
};

/* ---- qmp-dispatch.c ------------------------------------------------------------ */

/*
 * qmp_dispatch - answer one request
 * @negotiated: of the connection; set by qmp_capabilities
 *
 * Returns the reply, whatever @request is; the caller puts it. @request NULL
 * stands for the JSON value null.
 */
json_object *qmp_dispatch(struct daemon *daemon, json_object *request, bool *negotiated);
/* One line of the protocol, without its end; valid as long as @object. */
const char *qmp_text(json_object *object);
/* The string that @object has under @key; NULL: none, or something else. As long as @object. */
const char *qmp_text_of(json_object *object, const char *key);
/* {"error": ...} for input that is no request at all. */
json_object *qmp_error_reply(const char *error_class, const char *text);
/* {"QMP": ...}, the first line of a connection. */
json_object *qmp_greeting(void);
/* [{"name": ...}, ...] */
json_object *qmp_command_list(void);

/* ---- qmp-query.c ----------------------------------------------------------------- */

json_object *qmp_version(void);
int qmp_query_version(struct qmp_call *call, struct qc_err *err);
int qmp_query_commands(struct qmp_call *call, struct qc_err *err);
int qmp_query_named_block_nodes(struct qmp_call *call, struct qc_err *err);
int qmp_query_block_exports(struct qmp_call *call, struct qc_err *err);
/* The nodes of @target, the active layer first; empty where it has none. */
json_object *qmp_nodes(struct target *target);
/* The name of the first of them; NULL: none. */
json_object *qmp_top_node(struct target *target);
/* All that @target says of itself. */
json_object *qmp_target_status(struct target *target);
void qmp_add_default(json_object *object, const char *key, json_object *value_owned);

/* ---- qmp-status.c ---------------------------------------------------------------- */

int qmp_query_status(struct qmp_call *call, struct qc_err *err);

/* ---- qmp-stats.c ----------------------------------------------------------------- */

int qmp_query_blockstats(struct qmp_call *call, struct qc_err *err);

/* ---- qmp-job.c ------------------------------------------------------------------- */

extern const struct qmp_param qmp_job_params[];
extern const struct qmp_param qmp_block_job_params[];
extern const struct qmp_param qmp_block_job_cancel_params[];
extern const struct qmp_param qmp_block_job_set_speed_params[];
extern const struct qmp_param qmp_block_set_write_threshold_params[];
int qmp_query_jobs(struct qmp_call *call, struct qc_err *err);
int qmp_query_block_jobs(struct qmp_call *call, struct qc_err *err);
int qmp_job_cancel(struct qmp_call *call, struct qc_err *err);
int qmp_job_pause(struct qmp_call *call, struct qc_err *err);
int qmp_job_resume(struct qmp_call *call, struct qc_err *err);
int qmp_job_complete(struct qmp_call *call, struct qc_err *err);
int qmp_job_finalize(struct qmp_call *call, struct qc_err *err);
int qmp_job_dismiss(struct qmp_call *call, struct qc_err *err);
int qmp_block_job_cancel(struct qmp_call *call, struct qc_err *err);
int qmp_block_job_pause(struct qmp_call *call, struct qc_err *err);
int qmp_block_job_resume(struct qmp_call *call, struct qc_err *err);
int qmp_block_job_complete(struct qmp_call *call, struct qc_err *err);
int qmp_block_job_finalize(struct qmp_call *call, struct qc_err *err);
int qmp_block_job_dismiss(struct qmp_call *call, struct qc_err *err);
int qmp_block_job_set_speed(struct qmp_call *call, struct qc_err *err);
int qmp_block_set_write_threshold(struct qmp_call *call, struct qc_err *err);
/* Ours: whoever makes a volume larger says how it goes (chain_tell_growth()). */
extern const struct qmp_param qmp_qchain_volume_growth_params[];
int qmp_qchain_volume_growth(struct qmp_call *call, struct qc_err *err);

/* ---- qmp-blockdev.c ----------------------------------------------------------------- */

extern const struct qmp_param qmp_blockdev_add_params[];
extern const struct qmp_param qmp_blockdev_del_params[];
extern const struct qmp_param qmp_blockdev_snapshot_params[];
int qmp_blockdev_add(struct qmp_call *call, struct qc_err *err);
int qmp_blockdev_del(struct qmp_call *call, struct qc_err *err);
int qmp_blockdev_snapshot(struct qmp_call *call, struct qc_err *err);
/* Ours: an overlay of a lower layer becomes the top (chain_revert()). */
extern const struct qmp_param qmp_qchain_revert_params[];
int qmp_qchain_revert(struct qmp_call *call, struct qc_err *err);
extern const struct qmp_param qmp_transaction_params[];
int qmp_transaction(struct qmp_call *call, struct qc_err *err);
/* Ours: one instant for several daemons (chain_hold()). */
extern const struct qmp_param qmp_qchain_hold_params[];
int qmp_qchain_hold(struct qmp_call *call, struct qc_err *err);
int qmp_qchain_release(struct qmp_call *call, struct qc_err *err);
/* Ours: whoever has renamed an image tells it (chain_rename_layer()). */
extern const struct qmp_param qmp_qchain_rename_layer_params[];
int qmp_qchain_rename_layer(struct qmp_call *call, struct qc_err *err);

struct image;
/*
 * qmp_blockdev_borrow - the image of the format node @name, which was brought in; *@busy,
 * false now, keeps everybody else from it as long as it is true. -ENOENT, -EBUSY.
 */
int qmp_blockdev_borrow(struct daemon *daemon, const char *name, struct image **result,
			bool **busy, struct qc_err *err);

/* ---- qmp-backup.c ------------------------------------------------------------------- */

extern const struct qmp_param qmp_blockdev_backup_params[];
int qmp_blockdev_backup(struct qmp_call *call, struct qc_err *err);

/* ---- qmp-merge.c -------------------------------------------------------------------- */

extern const struct qmp_param qmp_block_stream_params[];
extern const struct qmp_param qmp_block_commit_params[];
int qmp_block_stream(struct qmp_call *call, struct qc_err *err);
int qmp_block_commit(struct qmp_call *call, struct qc_err *err);
/* What all block jobs are asked with. */
int qmp_job_options(const struct qmp_call *call, struct job_options *result, struct qc_err *err);
/* What argument @key says happens at an error; nothing: @result stays. */
int qmp_on_error(const struct qmp_call *call, const char *key, enum job_on_error *result,
		 struct qc_err *err);
/* -EBUSY while a job changes the chain; @what begins the message. */
int qmp_check_no_merge(const struct daemon *daemon, const char *what, struct qc_err *err);

/* ---- qmp-resize.c ------------------------------------------------------------------- */

extern const struct qmp_param qmp_block_resize_params[];
int qmp_block_resize(struct qmp_call *call, struct qc_err *err);
/* Ours: a raw layer may get longer (chain_cover()). */
extern const struct qmp_param qmp_qchain_cover_params[];
int qmp_qchain_cover(struct qmp_call *call, struct qc_err *err);

/* ---- qmp-export.c ------------------------------------------------------------------- */

extern const struct qmp_param qmp_nbd_server_start_params[];
extern const struct qmp_param qmp_block_export_add_params[];
extern const struct qmp_param qmp_block_export_del_params[];
int qmp_nbd_server_start(struct qmp_call *call, struct qc_err *err);
int qmp_nbd_server_stop(struct qmp_call *call, struct qc_err *err);
int qmp_block_export_add(struct qmp_call *call, struct qc_err *err);
int qmp_block_export_del(struct qmp_call *call, struct qc_err *err);

/* ---- qmp-fdset.c -------------------------------------------------------------------- */

extern const struct qmp_param qmp_add_fd_params[];
extern const struct qmp_param qmp_remove_fd_params[];
int qmp_add_fd(struct qmp_call *call, struct qc_err *err);
int qmp_remove_fd(struct qmp_call *call, struct qc_err *err);
/*
 * The path to open for file name @name, which may be /dev/fdset/N. *@shown: what
 * the image is called; as long as @name and the set live.
 */
int qmp_fdset_path(struct daemon *daemon, const char *name, char *path, size_t bytes,
		   const char **shown, struct qc_err *err);

/* ---- qmp-server.c ------------------------------------------------------------------ */

/* Queue @line on every connection that has negotiated. Control thread. */
void qmp_server_broadcast(struct qmp_server *server, const char *line);

/* ---- qmp-client.c ------------------------------------------------------------------ */

struct qmp_client;

/*
 * qmp_client_create - greet the client on socket @fd, which is taken over
 * @place: where the owner keeps it; cleared when it has gone, at any time
 */
int qmp_client_create(struct daemon *daemon, int fd, struct qmp_client **place);
/* It is freed, and its place cleared, once nothing of it is under way. */
void qmp_client_close(struct qmp_client *client);
/* Queue an event, if it has negotiated. -errno: it must be closed. */
int qmp_client_event(struct qmp_client *client, const char *line);

/* ---- qmp-event.c --------------------------------------------------------------------- */

/* Where events go from now on; NULL: nowhere. Control thread. */
void qmp_event_connect(struct qmp_server *server, struct loop *loop);

#endif
