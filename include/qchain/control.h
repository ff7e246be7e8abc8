/* SPDX-License-Identifier: GPL-2.0-or-later OR MIT */
/* The daemon as an administrator sees it: what it serves, QMP, how it ends. */
#ifndef QCHAIN_CONTROL_H
#define QCHAIN_CONTROL_H

#include <json-c/json.h>
#include <qchain/err.h>
#include <qchain/job.h>
#include <qchain/loop.h>
#include <qchain/target.h>
#include <qchain/transport.h>
#include <qchain/types.h>

#ifndef QCHAIN_VERSION
#define QCHAIN_VERSION "0.1"
#endif

/* Exports of one daemon, NBD and ublk together. */
#define QC_MAX_EXPORTS 16u
/* Characters of a chain's name. */
#define QC_MAX_CHAIN_NAME 63u
/* QMP connections at one time; the next one is closed at once. */
#define QC_MAX_QMP_CLIENTS 16u
/* Bytes of one QMP command; a longer one is answered with an error. */
#define QC_MAX_QMP_MESSAGE (1024u * 1024u)
/* Bytes of events that wait for a client that does not read; then it is closed. */
#define QC_MAX_QMP_BACKLOG (4u * 1024u * 1024u)

/* ---- names and places (chain-name.c); shared with qchainctl ------------------ */

/*
 * chain_name_check - may a chain be called @name? Letters, digits, "_", "-", "+"
 * and ".", not beginning with "-" or ".": it becomes the name of a folder, of a
 * link in /dev/qchain and of an NBD export.
 */
int chain_name_check(const char *name, struct qc_err *err);

/*
 * chain_option_check - may option @name ("cache-size") of a chain have @value?
 * Formats, sizes, choices, folders; @err begins with "--" and the name. Options
 * without a rule pass.
 */
int chain_option_check(const char *name, const char *value, struct qc_err *err);

/* "/run/qchain", or what the environment variable QCHAIN_RUN_DIR says. */
const char *chain_run_root(void);

/* Path of @file in the folder of chain @name; @file NULL: the folder itself. */
int chain_run_path(const char *name, const char *file, char *path, size_t bytes,
		   struct qc_err *err);

/* Make the folder of chain @name (0700), and the root above it, where missing. */
int chain_run_create(const char *name, struct qc_err *err);

/* ---- waiting at the door (chain-wait.c) ---------------------------------------- */

/*
 * While a start waits for an image (rule A2) there is no QMP yet; what it waits
 * for is in the file waiting.json of the chain's folder, for `qchainctl status`:
 * {reason, since (seconds since 1970), pid}. From here on, until the end of
 * the process; @name must stay.
 */
void chain_wait_tell(const char *name);

/* ---- the watchdog (watchdog.c) ------------------------------------------------- */

/* A loop that gives no answer for so long hangs. */
#define QC_WATCHDOG_MS 10000u

/*
 * watchdog_start - look once a second whether every loop goes on; what does not is
 * told in the log, by the event QCHAIN_HANG, and in the file hang.json of the folder
 * of @chain (NULL: none): {since (seconds since 1970), pid, hanging: [{loop, since-ms}]}
 * @top: for messages
 *
 * While all go on systemd is told WATCHDOG=1, where the unit wants that. Strings stay
 * the caller's. watchdog_stop() is fine without watchdog_start().
 */
int watchdog_start(const char *chain, const char *top, u32 limit_ms, struct qc_err *err);
void watchdog_stop(void);
/* [{loop, since-ms}], empty when all go on, and how many are watched. Any thread. */
json_object *watchdog_hanging(u32 *nr_loops);
/* Is there one? Who asks loops then may ask that one, and hang with it. Any thread. */
bool watchdog_sees_hang(void);

/* ---- the process (process.c) -------------------------------------------------- */

/*
 * process_protect - what a storage server must be: locked in memory, marked as
 * an I/O flusher, last in line for the OOM killer, in a mount namespace of its
 * own (facts of deadlocks: docs/design.md), and with the privileges that it needs,
 * for good: no others come by running a program. Call before there are threads.
 * What is not permitted is left out and said in one warning.
 */
void process_protect(void);

/*
 * process_protect_guard - the same for a process that only watches a daemon: memory,
 * I/O and the OOM killer. It stays in the host's mount namespace: one of its own
 * would keep file systems on the device mounted. Nothing is said.
 */
void process_protect_guard(void);

/*
 * process_release_mounts - let go of the host's file systems, in our own mount
 * namespace. After a recovery the one on our own device is among them, and the
 * device would stay in use for ever. Call when everything has been opened: paths
 * below mounts of disks are gone afterwards, open files are not.
 */
void process_release_mounts(void);

/*
 * process_daemonize - go to the background; returns in the child only
 * @log_path: standard error of the child, created 0600, appended to
 *
 * The parent waits for process_ready() and exits 0, or for process_failed(),
 * prints its text and exits 1. Before threads.
 */
int process_daemonize(const char *log_path, struct qc_err *err);
void process_ready(void);
/* The one line of a start that failed: to the waiting parent or standard error. */
void process_failed(const struct qc_err *err);

/* ---- system calls (seccomp.c) ------------------------------------------------- */

/* What happens to a system call that serving does not need. */
enum confinement {
	CONFINE_OFF, /* it is made */
	CONFINE_ON, /* it fails with EPERM */
	CONFINE_KILL, /* the process ends with SIGSYS: for tests, which must find it */
};

/*
 * process_confine - only what serving needs, in all threads, from now on and for good
 * After process_protect() (no_new_privs), when all has been started. 0 or -errno: then
 * nothing is filtered.
 */
int process_confine(enum confinement how, struct qc_err *err);
/* "off", "on" or "kill". */
int confinement_parse(const char *text, enum confinement *result, struct qc_err *err);
/* On, unless the environment (QCHAIN_SECCOMP) says something else. */
int confinement_default(enum confinement *result, struct qc_err *err);

/* ---- what is served (daemon.c) ------------------------------------------------- */

enum export_kind { EXPORT_NBD, EXPORT_UBLK };

/* One `--export`: filled by export_parse(), strings live in @text. */
struct export_options {
	enum export_kind kind;
	char *text;
	struct nbd_options nbd;
	struct ublk_options ublk;
};

/*
 * export_parse - "nbd,socket=PATH,..." or "ublk,id=N,..." as on the command line
 * A comma inside a value is written twice. export_options_exit() frees.
 */
int export_parse(const char *text, struct export_options *result, struct qc_err *err);
void export_options_exit(struct export_options *options);

/* Who may be cut off when the daemon stops. */
enum stop_mode {
	STOP_UNUSED, /* nobody: refuse while an export is in use or a job runs */
	STOP_SIGNAL, /* NBD clients; refuse while a ublk device is in use */
	STOP_FORCE, /* everybody */
};

/*
 * struct daemon - one target and its exports. Control thread only.
 */
struct daemon {
	/* set once */
	const char *name; /* NULL without --name */
	const char *top; /* as named on the command line */
	struct loop *loop; /* the control thread's */
	struct target *target;
	struct qmp_server *qmp; /* NULL without QMP */

	struct qmp_blockdev *blockdevs; /* added, not yet used */
	struct qmp_fdset *fdsets;
	int passed_fd; /* came with the request under way; -1: none */
	struct jobs *jobs; /* long operations */

	u32 nr_exports;
	struct transport *exports[QC_MAX_EXPORTS]; /* of the target, or of a node of it */
	char *nbd_path; /* socket of QMP's NBD server; NULL: not started */
	struct transport *nbd_export; /* that was started on it; it may have gone */
	bool stopped; /* daemon_stop() has ended all exports */
	const char *reason; /* why, in QMP's words */
	int exit_status;
};

/* The target has grown: tell the exports. What one of them cannot do is logged. */
void daemon_resized(struct daemon *daemon);
/* Create and start one export; it is usable when this returns 0. */
int daemon_add_export(struct daemon *daemon, const struct export_options *options,
		      struct qc_err *err);

/*
 * daemon_start_export - start @t_owned, called @id from now on, which is destroyed if it
 * cannot be; a target of its own stays the caller's then, and else goes with it
 * daemon_end_export - stop and forget the export at @index; @force: also while it is used
 */
int daemon_start_export(struct daemon *daemon, struct transport *t_owned, const char *id,
			struct qc_err *err);
int daemon_end_export(struct daemon *daemon, u32 index, bool force, struct qc_err *err);
/* Its clients, as far as it counts them. */
s64 daemon_export_clients(const struct transport *t);

/* Does nobody use an export, and no job run? Else -EBUSY with @err that names who. */
int daemon_check_unused(const struct daemon *daemon, struct qc_err *err);

/*
 * daemon_stop - end the exports, write everything back, make loop_run() return
 * @reason: a constant, for the event SHUTDOWN, in QMP's words
 *
 * Where it fails before @daemon->stopped is set, the daemon goes on serving:
 * -EBUSY when somebody uses an export and @mode protects him, or a job runs, named
 * in @err. STOP_SIGNAL and STOP_FORCE cancel jobs.
 * After that the images may not be clean; the daemon ends with exit status 1.
 */
int daemon_stop(struct daemon *daemon, enum stop_mode mode, const char *reason,
		struct qc_err *err);

/*
 * Stop what runs, whoever uses it, and free everything but the loop, QMP last:
 * a client that finds its connection closed knows that all images are closed.
 */
void daemon_exit(struct daemon *daemon);

/* Close what was added by QMP and never used. */
void qmp_blockdevs_free(struct daemon *daemon);
void qmp_fdsets_free(struct daemon *daemon);

/* ---- QMP (qmp-*.c) ---------------------------------------------------------------- */

struct qmp_server;

/*
 * qmp_server_create - listen on unix socket @path (mode 0600), for root and the
 * daemon's own user. A socket that a dead daemon left is replaced, that of a
 * living one is refused. Commands run on @daemon->loop, which must be running
 * or be run later by this thread.
 */
int qmp_server_create(struct daemon *daemon, const char *path, struct qmp_server **result,
		      struct qc_err *err);
/* Close all connections and the socket. Control thread, the loop stands still. */
void qmp_server_destroy(struct qmp_server *server);

/*
 * qmp_event - send event @name to every client that has negotiated
 * @data_owned: may be NULL; must not be shared with anybody
 *
 * Any thread; never blocks. Nothing happens where no server runs. On the
 * control thread it is sent at once, before a reply that is under way.
 */
void qmp_event(const char *name, json_object *data_owned);
/* The same, as a target_event_fn and a jobs_event_fn. */
void qmp_target_event(void *arg, const char *name, json_object *data_owned);

#endif
