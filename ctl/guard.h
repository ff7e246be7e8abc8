/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The guard of a chain: the process that brings its daemon back when that dies. */
#ifndef CTL_GUARD_H
#define CTL_GUARD_H

#include "served.h"

/* Restarts in one minute after which a guard gives up. */
#define GUARD_LIMIT 10u
#define GUARD_MAX_LIMIT 10000u

/*
 * guard_default_limit - GUARD_LIMIT, or QCHAIN_RESTARTS of the environment
 * -EINVAL: that is no number.
 */
int guard_default_limit(u32 *result, struct qc_err *err);

/*
 * guard_spawn - spawn_daemon() by a guard of its own, which goes on to watch it
 * The key restart-limit of @record is the number of restarts in one minute; with 0
 * there is no guard. Its process is in the key guard afterwards.
 *
 * A guard that brings a daemon back does what `up NAME` does, up_after_death(): the
 * fence, the log and the locks of a takeover are qchaind's, no guard is needed for
 * them. It ends when its daemon has ended by itself, when somebody else has started
 * another, and when the chain is gone.
 */
int guard_spawn(json_object *record, bool wait, bool recover, struct qc_err *err);

/*
 * guard_leave - in a process that outlives qchainctl: away from the terminal and the
 * folder of who started it, messages to the log of chain @name
 * Of descriptors only @keep_fd stays open; -1: none. 0 or -errno.
 */
int guard_leave(const char *name, int keep_fd);

/*
 * up_after_death - take over or start again chain @name, whose daemon has died of
 * @death (up.c)
 * @pid: the process that serves it now, if there is one
 *
 * 0: it is served again. -EALREADY: it is served, by a daemon that was not started
 * here, or was and did not seem so. -ESRCH: there is nothing to bring back. -EBUSY:
 * another qchainctl is at work on it. Other -errno: not started, @err says why.
 */
int up_after_death(const char *name, const char *death, pid_t *pid, struct qc_err *err);

/*
 * up_anew - the same for a daemon that was ended on purpose, with a guard of its own
 * (up.c). @dir: locked. @reason: for the record.
 */
int up_anew(struct rundir *dir, const char *reason, struct served *result, struct qc_err *err);

#endif
