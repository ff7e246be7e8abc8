/* SPDX-License-Identifier: GPL-2.0-or-later OR MIT */
/* Exports: ways out of one target. */
#ifndef QCHAIN_TRANSPORT_H
#define QCHAIN_TRANSPORT_H

#include <json-c/json.h>
#include <qchain/err.h>
#include <qchain/target.h>

struct transport;

/*
 * struct transport_ops - one kind of export. Control thread only; its queues
 * run on loops of their own, attached to the target.
 * @start: requests may arrive from now on. Returns when the export is usable.
 * @stop: no new requests, what is in flight ends; @force: do not wait for users.
 *        -EBUSY when it is in use and !force, with @err naming the users.
 * @check_unused: -EBUSY when it is in use, as @stop would find; may be NULL: @status
 *        counts its clients ("connections")
 * @walk: call @visit for every request that the target has, on its loop's thread.
 * @resized: the target has grown: show it to users that are there already. 0;
 *        -EOPNOTSUPP: it cannot, the size that was there stays until the next
 *        start. NULL: users that come later see it.
 * @status: keys of query-block-exports (id, type, node-name, shutting-down) and
 *        our own beside them (device, socket, queues, features, size in bytes).
 */
struct transport_ops {
	const char *name;
	int (*start)(struct transport *t, struct qc_err *err);
	int (*stop)(struct transport *t, bool force, struct qc_err *err);
	int (*check_unused)(struct transport *t, struct qc_err *err);
	void (*walk)(struct transport *t, void (*visit)(const struct request *req, void *arg),
		     void *arg);
	int (*resized)(struct transport *t, struct qc_err *err);
	void (*status)(struct transport *t, json_object *result);
	void (*destroy)(struct transport *t);
};

struct transport {
	const struct transport_ops *ops;
	struct target *target;
	char id[64];
};

/* NBD on a unix socket (0600). @name: export name beside the empty one. */
struct nbd_options {
	const char *socket;
	const char *name;
	const char *description;
	bool read_only; /* of the export; the target may be read-write */
	u32 nr_loops; /* connections are spread over them; 0: 2 */
};

int nbd_create(struct target *ti, const struct nbd_options *options,
	       struct transport **result, struct qc_err *err);

/*
 * ublk. @dev_id -1: the next free number. @recover: take over the quiesced
 * device @dev_id of a daemon that died (its geometry stays).
 */
struct ublk_options {
	s32 dev_id;
	bool recover;
	u32 nr_queues; /* 0: one per CPU, at most 4 */
	u32 queue_depth; /* 0: 128 */
	bool no_zero_copy;
	bool scan_partitions; /* rule E3: off unless asked */
	u64 tag; /* opaque, ublksrv_flags: which life of which chain */
};

int ublk_create(struct target *ti, const struct ublk_options *options,
		struct transport **result, struct qc_err *err);
/* N of /dev/ublkbN, after start. */
s32 ublk_dev_id(const struct transport *t);

/*
 * block_users_find - who has the block device @name ("dm-3"): mounts, swap, devices on it,
 * processes but this one. How many; @text says who
 */
int block_users_find(const char *name, char *text, size_t size);

#endif
