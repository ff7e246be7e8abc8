/* SPDX-License-Identifier: GPL-2.0-or-later OR MIT */
/*
 * Changes of a chain that is being served. Room target/: chain-switch.c, -revert.c, -resize.c,
 * -rename.c, -merge.c, -commit.c, -backup.c, -threshold.c.
 */
#ifndef QCHAIN_ONLINE_H
#define QCHAIN_ONLINE_H

#include <qchain/err.h>
#include <qchain/image.h>
#include <qchain/job.h>
#include <qchain/target.h>

/*
 * chain_snapshot - make an overlay the active layer, at one instant (rule C3)
 * @ti: a "qcow2-chain" that is not read-only; else -EINVAL, -EROFS
 * @node: must be the node name of the active layer; NULL: it is
 * @overlay: formatted, empty, of the chain's size, open for writing, its backing
 *           is the active layer; taken over when this returns 0
 * @path, @node_name: of the overlay, as the chain's other layers have them
 * @held: only if writes are still held (chain_hold()) at that instant; else -ETIMEDOUT
 *
 * Merges go on; one that works on the active layer rests meanwhile, and goes on below the
 * overlay (rule D6). -EBUSY: it has not come to a rest within three seconds.
 *
 * Control thread; waits for no I/O but that of the overlay's own header, and for such a
 * merge. When it returns, requests that come in write to the overlay. The old active layer is
 * "sealing" (query-named-block-nodes) until what was under way has ended, is
 * durable, and its header says that it was closed.
 */
int chain_snapshot(struct target *ti, const char *node, struct image *overlay, const char *path,
		   const char *node_name, bool held, struct qc_err *err);

/*
 * chain_has_node - is one of the layers called @name? Not for a target of another type.
 * Any thread but the metadata loop, which is asked.
 */
bool chain_has_node(struct target *ti, const char *name);

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

/*
 * chain_resize - the device gets @bytes, not fewer than it has; what is new reads as zero
 * @node: node name of the active layer, a qcow2 image
 *
 * Requests beyond the old end are accepted when this returns 0: the size is durable
 * then. Transports are not told. No job may work on @ti. Control thread, which
 * waits for the writes of tables, and for zeroes where a backing is longer; guests
 * go on meanwhile. -EBUSY: a snapshot is being sealed; -ENOSPC: nothing has changed.
 */
int chain_resize(struct target *ti, const char *node, u64 bytes, struct qc_err *err);

/*
 * chain_cover - a raw layer below the active one may get longer, up to @bytes: the layer that
 * stands on it says zero from its end on, so that what a volume gets there is never seen
 * @node: node name of the raw layer, which another one than the active layer stands on
 *
 * Durable when it returns 0; may be done again. -EBUSY: a job works on one of the two.
 * Control thread, which waits; guests go on.
 */
int chain_cover(struct target *ti, const char *node, u64 bytes, struct qc_err *err);

/*
 * chain_revert - make an overlay of a lower layer the active one, at one instant
 * @node: node name of the layer that @overlay stands on, below the active one
 * @overlay, @path, @node_name: as of chain_snapshot()
 * @closed: are the images of the layers that went closed already?
 *
 * The device shows what that layer held; the layers above it are none any more, and
 * valid images. No job may work on @ti. Writes are held until what was under way is
 * durable: -EBUSY after 0.8 s, nothing was changed. From the mark in the overlay's header
 * on it counts as the top for whoever comes after our death. Control thread.
 */
int chain_revert(struct target *ti, const char *node, struct image *overlay, const char *path,
		 const char *node_name, bool *closed, struct qc_err *err);

/*
 * struct chain_stream_options - as the arguments of QMP's block-stream
 * @node: node name of the layer that receives
 * @base, @base_node, @bottom: one at most: the layer that stays as its backing, by
 *	file name or node name, or the lowest that goes; none: all go
 * @backing_name: how the header will name what stays; NULL: relative where that is
 *	beside the active layer or below, else its path
 */
struct chain_stream_options {
	const char *node;
	const char *base;
	const char *base_node;
	const char *bottom;
	const char *backing_name;
};

/*
 * chain_stream - a job (in CREATED) that merges the layers between one, the active layer
 * or one below it, and base up into that one, while the device is used
 * In the end the header names the base, and the images between are closed; they are
 * as they were, and valid. A job that fails, is cancelled, or dies with the daemon
 * before the header leaves the chain as it was.
 *
 * Control thread. Snapshots may be taken, and other merges run, before it is concluded.
 * -EBUSY: another one has a layer of it, a layer below the active one that receives is in
 * use elsewhere, or a snapshot is being sealed; -ENOSPC: the name has no room in the
 * header (rule B5).
 */
int chain_stream(struct target *ti, struct jobs *jobs, const struct chain_stream_options *options,
		 const struct job_options *job_options, struct job **result, struct qc_err *err);

/*
 * struct chain_commit_options - as the arguments of QMP's block-commit
 * @node: node name of the active layer
 * @top, @top_node: the last layer that goes; none: the active one
 * @base, @base_node: the layer that receives; none: the lowest one
 * @backing_name: how the header of the layer above top will name the base; NULL: as
 *	in struct chain_stream_options. Not with the active layer: none is above it
 */
struct chain_commit_options {
	const char *node;
	const char *top;
	const char *top_node;
	const char *base;
	const char *base_node;
	const char *backing_name;
};

/*
 * chain_commit - a job that merges the layers from top down to above base into base
 * In the end the layer above top stands on base, and the merged images are closed.
 * From its first byte on, base and the merged layers are no restore points any more
 * (rule D2); the device shows the same all the time, whatever becomes of the job.
 * The caller has made sure that nothing else stands on them (rule D3).
 *
 * Of the active layer (rule C4): the job becomes ready when all of it was handed over,
 * and waits for job_complete(); then the base is the active layer, and the former one,
 * empty, is closed. Its header still names the base: who keeps the device's record
 * wipes it (rule D1). Those of layers between are wiped. -EOPNOTSUPP: it has internal
 * snapshots; -EFBIG: the base is longer than the device.
 *
 * A base that is shorter than top grows first, which the call waits for (rule D4); not a raw
 * one: -EOPNOTSUPP.
 *
 * A snapshot that comes meanwhile makes it a commit of a layer below the active one.
 *
 * As chain_stream(). -EBUSY: in use elsewhere or by another merge, or a snapshot is being sealed.
 */
int chain_commit(struct target *ti, struct jobs *jobs, const struct chain_commit_options *options,
		 const struct job_options *job_options, struct job **result, struct qc_err *err);

/* What is copied: all that the device shows; what the active layer holds. */
enum backup_sync { BACKUP_FULL, BACKUP_TOP };

/*
 * struct chain_backup_options - as the arguments of QMP's blockdev-backup
 * @node: node name of the active layer
 * @target: open for writing, as long as the device; the job's until it says *@busy = false
 * @busy: set by the call, cleared (atomically) when the job has let go of @target
 */
struct chain_backup_options {
	const char *node;
	struct image *target;
	bool *busy;
	enum backup_sync sync;
	enum job_on_error on_source_error;
	enum job_on_error on_target_error;
};

/*
 * chain_backup - a job that copies what the device shows when it starts into an image
 * @target, if it is qcow2 version 3, is marked as unfinished, durably, until the job has
 * ended well: nobody opens it meanwhile.
 *
 * From job_start() on a guest's write to what is not copied yet waits until that is. When
 * the old data cannot be saved the job fails, and the write goes on. Merges and snapshots
 * may come beside it. -EINVAL: another size; -EBUSY: there is another one (from the start).
 * BACKUP_TOP: -EBUSY also while a merge runs. Control thread.
 */
int chain_backup(struct target *ti, struct jobs *jobs, const struct chain_backup_options *options,
		 const struct job_options *job_options, struct job **result, struct qc_err *err);

/*
 * chain_show - a layer and all below it as a read-only target of its own
 * @node: its node name
 *
 * With descriptors, map and threads of its own: whatever becomes of @ti, it shows the same
 * as long as the images do, and its locks keep everybody from writing them. No job may work
 * on @ti meanwhile. Control thread; target_destroy() ends it. -EBUSY: the layer is the
 * active one, or still being sealed after a second.
 */
int chain_show(struct target *ti, const char *node, struct target **result, struct qc_err *err);

/*
 * chain_set_write_threshold - BLOCK_WRITE_THRESHOLD, once, when the layer called @node
 * takes a cluster that ends beyond @bytes of its container; 0: no event
 * As block-set-write-threshold on the protocol node of an image in QEMU: whoever makes
 * volumes larger wants to know before they are full. -ENOENT, -EROFS: nobody writes to
 * it; -EOPNOTSUPP: a raw image. Control thread.
 */
int chain_set_write_threshold(struct target *ti, const char *node, u64 bytes, struct qc_err *err);

/*
 * chain_tell_growth - what whoever makes the volume of layer @node larger has to say
 * VOLUME_GROWS: it does so when that is needed; until then writes wait when it is full,
 * also where they are to fail. VOLUME_STUCK: it cannot, now, and @reason says why.
 * VOLUME_FIXED: nobody does. Events and status say it. Errors and thread as above.
 *
 * Each call, and each of chain_set_write_threshold(), looks whether it has grown.
 */
enum volume_growth { VOLUME_FIXED, VOLUME_GROWS, VOLUME_STUCK, VOLUME_GROWTHS };

/* As QMP calls it. */
const char *volume_growth_name(enum volume_growth growth);

int chain_tell_growth(struct target *ti, const char *node, enum volume_growth growth,
		      const char *reason, struct qc_err *err);

/*
 * chain_rename_layer - the image of the layer called @node is called @path from now on
 * Nothing is opened: its descriptor stays. Nodes and status have the new name at once, messages
 * when no merge begins or ends; the node name is the old one. It never waits for that.
 * -ENOENT: there is no such layer. Control thread.
 */
int chain_rename_layer(struct target *ti, const char *node, const char *path, struct qc_err *err);

#endif
