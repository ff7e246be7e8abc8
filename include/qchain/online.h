/* SPDX-License-Identifier: GPL-2.0-or-later OR MIT */
/* Changes of a chain that is being served. Room target/, chain-switch.c. */
#ifndef QCHAIN_ONLINE_H
#define QCHAIN_ONLINE_H

#include <qchain/err.h>
#include <qchain/image.h>
#include <qchain/target.h>

/*
 * chain_snapshot - make an overlay the active layer, at one instant (rule C3)
 * @ti: a "qcow2-chain" that is not read-only; else -EINVAL, -EROFS
 * @node: must be the node name of the active layer; NULL: it is
 * @overlay: formatted, empty, of the chain's size, open for writing, its backing
 *           is the active layer; taken over when this returns 0
 * @path, @node_name: of the overlay, as the chain's other layers have them
 *
 * Control thread; waits for no I/O but that of the overlay's own header. When it
 * returns, requests that come in write to the overlay. The old active layer is
 * "sealing" (query-named-block-nodes) until what was under way has ended, is
 * durable, and its header says that it was closed.
 */
int chain_snapshot(struct target *ti, const char *node, struct image *overlay, const char *path,
		   const char *node_name, struct qc_err *err);

/*
 * chain_hold - start no write, zero or discard until chain_release(), or until
 * @milliseconds have passed (rule C3: snapshots of several devices)
 *
 * 0: no loop starts one any more; those that were started go on. -ETIMEDOUT: one
 * did not answer within 100 ms, nothing is held. -EBUSY: held already. Control thread.
 * chain_release - also when nothing is held
 */
int chain_hold(struct target *ti, u32 milliseconds, struct qc_err *err);
int chain_release(struct target *ti, struct qc_err *err);

#endif
