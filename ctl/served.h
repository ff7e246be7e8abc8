/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the verbs about served chains share: run folder, record, daemon, QMP. */
#ifndef CTL_SERVED_H
#define CTL_SERVED_H

#include "ctl.h"

#include <qchain/control.h>
#include <sys/types.h>

/*
 * A served chain NAME has a folder /run/qchain/NAME (QCHAIN_RUN_DIR):
 *
 *	lock         held by the qchainctl that changes something
 *	state.json   the record: how to start the daemon again
 *	pid          of the daemon, for systemd
 *	qmp.sock     the daemon answers there as long as it lives
 *	qchaind.log  what it has to say
 *	waiting.json what a start waits for, while it does
 *	hang.json    threads of the daemon that do not go on, while they do not
 *
 * and, with a ublk device, for the udev rule and the administrator
 *
 *	/run/qchain/.device/ublkbN -> NAME    made before the device
 *	/run/qchain/.scan/ublkbN              the host may read what is on it (--scan)
 *	/dev/qchain/NAME -> ../ublkbN
 *
 * The record: {name, top, options: [words for qchaind], nbd, ublk, dev-id, tag,
 * scan, activated: [VG/LV that `up` has activated], pid, snapshots: [{name, file}],
 * restart-limit, thin: an LV that is or was the top is thin, guard, restarts: {count, reason,
 * time, gave-up}, jobs: [{id, kind, phase, top, base, error}], reverting: path of an overlay
 * that is the top if its header says so}; nbd and dev-id only where there is such an export,
 * guard and restarts where there is or was one. It ends with the chain; what outlives it is the
 * device record (ctl/record.h), of which top,
 * snapshots and jobs are a copy that can be read while LVM cannot. offload: see offload.h
 */

/* ---- the folder (rundir.c) --------------------------------------------------- */

struct rundir {
	char name[QC_MAX_CHAIN_NAME + 1];
	char path[256];
	int lock_fd;
};

/*
 * rundir_lock - the folder of chain @name, for nobody else
 * @create: make it where it is missing; otherwise -ENOENT
 */
int rundir_lock(const char *name, bool create, struct rundir *result, struct qc_err *err);
void rundir_unlock(struct rundir *dir);
/* The folder gets another name; -EEXIST. The lock is still held. */
int rundir_rename(struct rundir *dir, const char *name, struct qc_err *err);
/* Remove the folder and all in it; the lock is given up. */
int rundir_remove(struct rundir *dir, struct qc_err *err);

/*
 * For those who outlive a rename:
 * rundir_hold - a descriptor of the folder of chain @name; -1: not there
 * rundir_held_name - what that is called now, @name has room for QC_MAX_CHAIN_NAME and
 * one; -ENOENT: it is gone
 */
int rundir_hold(const char *name);
int rundir_held_name(int fd, char *name);

/* The record of chain @name, which says that name; *@result NULL when it has none. */
int rundir_load(const char *name, json_object **result, struct qc_err *err);
/* Replace the record as a whole. */
int rundir_save(const struct rundir *dir, json_object *record, struct qc_err *err);

/* Write the file pid, as a whole. */
int rundir_save_pid(const struct rundir *dir, pid_t pid, struct qc_err *err);

/* Names of all chains that have a folder, sorted; malloc'ed, each of them too. */
int rundir_names(char ***result, u32 *nr, struct qc_err *err);

/*
 * Devices: take a free number for @name, before the device is made; give it
 * back; make and remove the link in /dev/qchain.
 */
int rundir_take_device(const char *name, bool scan, s32 *result, struct qc_err *err);
void rundir_drop_device(s32 dev_id);
int rundir_link_device(const char *name, s32 dev_id, struct qc_err *err);
/* The same for /dev/mapper/@name; and away with the link, whatever it leads to. */
int rundir_link_mapped(const char *name, struct qc_err *err);
void rundir_unlink_mapped(const char *name);
/* Links to device @dev_id of chain @name become those of @new_name. May be done again. */
int rundir_rename_device(const char *name, const char *new_name, s32 dev_id, struct qc_err *err);
void rundir_unlink_device(const char *name, s32 dev_id);

/* ---- JSON (rundir.c) -------------------------------------------------------------- */

/* The string at @key, NULL where there is none. */
const char *json_text(json_object *object, const char *key);
/* The number at @key, @missing where there is none. */
s64 json_number(json_object *object, const char *key, s64 missing);
/* Is @key there and true? */
bool json_flag(json_object *object, const char *key);
/* The list at @key and its length; 0 where there is none. */
json_object *json_list(json_object *object, const char *key, u32 *nr);

/* ---- QMP (client.c) ------------------------------------------------------------------ */

struct client;

/*
 * client_connect - connect to the daemon of chain @name and negotiate
 * -ECONNREFUSED or -ENOENT: nobody is there; -ETIMEDOUT: it does not answer.
 */
int client_connect(const char *name, struct client **result, struct qc_err *err);
void client_close(struct client *client);
/* The daemon's process, as the kernel knows it. */
pid_t client_pid(const struct client *client);
/* What its chain is called now: it may have been renamed since. */
const char *client_chain(struct client *client);
/* rundir_lock() of that chain */
int client_lock_chain(struct client *client, struct rundir *result, struct qc_err *err);

/*
 * client_command - one command and its answer
 * @arguments_owned: may be NULL
 * @patient: wait as long as it takes
 * @result: what "return" holds, to be put by the caller; may be NULL
 *
 * -EPROTO with the daemon's own text when it refuses.
 */
int client_command(struct client *client, const char *command, json_object *arguments_owned,
		   bool patient, json_object **result, struct qc_err *err);

/*
 * client_add_fd - give the daemon a descriptor of the image at @path, which it
 * then finds as /dev/fdset/@set
 */
int client_add_fd(struct client *client, int set, int fd, const char *path, struct qc_err *err);

/*
 * client_next_event - the next event that has come
 * -EAGAIN: none has come yet; other -errno: the daemon has ended
 * client_fd - to poll for input
 */
int client_next_event(struct client *client, json_object **result);
int client_fd(const struct client *client);

/* ---- a chain as it is now (served.c) ------------------------------------------------------ */

enum served_state {
	SERVED_LIVE, /* "serving" */
	SERVED_SILENT, /* "unresponsive": it lives but does not answer */
	SERVED_RECOVERABLE, /* "recoverable": no daemon, the ublk device waits */
	SERVED_DEAD, /* "dead": no daemon, no device */
	SERVED_MAPPED, /* "mapped": all of it by device-mapper, and no daemon (offload.h) */
};

/*
 * struct served - what there is to know about one chain
 * @client, @status, @exports: NULL unless live
 */
struct served {
	char name[QC_MAX_CHAIN_NAME + 1];
	enum served_state state;
	json_object *record; /* NULL: started without qchainctl */
	json_object *waiting; /* {reason, since, pid} of a start that waits, or NULL */
	json_object *hang; /* {since, pid, hanging: [{loop, since-ms}]}, or NULL */
	pid_t pid; /* 0: none */
	s32 dev_id; /* -1: no ublk device */
	struct client *client;
	json_object *status;
	json_object *exports;
};

/* -ENOENT when no such chain is served or was served. */
int served_find(const char *name, struct served *result, struct qc_err *err);
void served_exit(struct served *served);
const char *served_state_name(enum served_state state);
/* The path of its active layer, "" if unknown. */
const char *served_top(const struct served *served);
/* The snapshot that the layer @file holds; NULL: none, or not known. */
const char *served_snapshot(const struct served *served, const char *file);

/* Where in @layers, objects with their "file", @file is; -1: nowhere, or NULL. */
int layer_depth(json_object *layers, const char *file);
/* "/dev/mapper/NAME" or "/dev/ublkb0", else the NBD socket, else "". @text has room for 256. */
const char *served_device(const struct served *served, char *text);
/* Of its device, in bytes; -1: not known. */
s64 served_size(const struct served *served);
/* How often its daemon was started again, as far as the record knows. */
s64 served_restarts(const struct served *served);
/*
 * {name, device, state, top, size, restarts, exports, jobs}: a row of list; jobs: as
 * in the record
 */
json_object *served_json(const struct served *served);
/*
 * served_arguments - for verbs whose only option is --json: 0 with @least to
 * @most words left at argv[optind], or the exit status of a wrong command line
 */
int served_arguments(const struct verb *verb, int argc, char **argv, int least, int most,
		     bool *json);
/* 0 when a chain may be called @name, or the exit status of a wrong command line */
int served_name(const struct verb *verb, const char *name);
/* An error for a chain that had to be live. */
int served_not_live(const struct served *served, struct qc_err *err);
/*
 * served_stop - ask its daemon to end (down.c)
 * Returns when its process has ended: all images are closed then. @force: also in use
 */
int served_stop(const struct served *served, bool force, struct qc_err *err);

/* ---- starting a daemon (spawn.c) ----------------------------------------------------------- */

/*
 * spawn_daemon - start the qchaind that @record describes
 * @wait: after one that died: wait for its I/O (rule A2)
 * @recover: take its device over
 *
 * Returns when its exports are usable. On failure @err has the daemon's words.
 */
int spawn_daemon(json_object *record, bool wait, bool recover, struct qc_err *err);

/*
 * spawn_version - does the qchaind run that spawn_daemon() would start? What it says
 * of itself with --version, "qchaind 0.1.0"; @text has room for SPAWN_VERSION_BYTES
 */
#define SPAWN_VERSION_BYTES 80
int spawn_version(char *text, struct qc_err *err);

/* ---- logical volumes (activate.c) ------------------------------------------------------------ */

/* What the header of the image at @path names, malloc'ed; NULL: nothing, or it cannot be read. */
char *header_backing_name(const char *path);

/*
 * activate_chain - make the LVs of the chain under @top active
 * @activated: a list; "VG/LV" of each one that was not active is added
 *
 * Follows backing names from header to header inside the volume group. What is
 * no LV is left to qchaind, which says more about it.
 */
int activate_chain(const char *top, json_object *activated, struct qc_err *err);
/*
 * activate_missing - the same for a chain whose device waits for a daemon: its
 * LVs are still active, as a rule, and then LVM is not asked. It might read that
 * very device, and wait for what it is to bring about.
 */
int activate_missing(const char *top, json_object *activated, struct qc_err *err);
/* Undo it, active layer first. Goes on after a failure; the first one is in @err. */
int deactivate_chain(json_object *activated, struct qc_err *err);

#endif
