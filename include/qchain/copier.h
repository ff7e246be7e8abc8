/* SPDX-License-Identifier: GPL-2.0-or-later OR MIT */
/* The copier: many regions from place to place, with a bounded number in flight. */
#ifndef QCHAIN_COPIER_H
#define QCHAIN_COPIER_H

#include <qchain/io.h>
#include <qchain/loop.h>
#include <qchain/throttle.h>
#include <qchain/types.h>

/*
 * Regions are asked for one after the other, cut into chunks, and each chunk is
 * read and written by one lane. Its buffer is cut from memory that the copier has
 * for life, @memory_bytes whatever there is to copy: in flight are few large chunks
 * or many small ones, so that scattered clusters cost no more round trips than a
 * contiguous range of the same length. Everything runs on one loop and nothing waits.
 *
 * Where the bytes come from and go to is up to @read and @write; without them
 * they are the region's devices. So one copier serves device to device, layer
 * to allocated cluster, and through a target's own reads and writes.
 */

struct copier;

/* A chunk takes whole units of the copier's memory. */
#define COPIER_UNIT_BYTES (64u * 1024u)
/*
 * So many lanes are enough where source and destination are files on tmpfs: copies are
 * made one by one, and more buffers push each other out of the processor's cache.
 */
#define COPIER_LANES_IN_MEMORY 8u

/* What to copy. Offsets and length are multiples of the devices' blocks. */
struct copy_region {
	struct io_dev *src; /* NULL where @read is given */
	struct io_dev *dst;
	u64 src_offset;
	u64 dst_offset;
	u64 len;
	bool zero; /* nothing is read: the target reads as zero afterwards */
	void *owner;
};

/* One chunk on its way. */
struct copy_io {
	/* for @read and @write */
	u64 src_offset;
	u64 dst_offset;
	u32 len;
	bool zero; /* @buf has no data; @write only */
	void *buf; /* 4 KiB aligned; none: zeroes that @zero_bytes allows to be without */
	size_t buf_at; /* where in the copier's memory it is */
	void *private; /* @private_bytes, zeroed once */
	const struct copy_region *region;
	/* copier only */
	u64 start_ns;
	struct copier *copier;
	struct cds_list_head node;
	struct io_op op;
};

/*
 * struct copier_ops - on the copier's loop; none may destroy it but @ended
 * @next: 1 and the next region; 0: there are no more; -EAGAIN: copier_kick()
 *        will tell; other -errno: the copier stops with it
 * @read, @write: begin, end with copy_io_done(), perhaps at once
 * @copied: @bytes of a region are in their place, may be NULL
 * @done: nothing of the region is in flight any more; @error 0: it is copied
 * @paused: nothing is in flight, after copier_pause()
 * @ended: all is done, or it was stopped: with that error. Last call.
 */
struct copier_ops {
	int (*next)(void *arg, struct copy_region *result);
	void (*read)(void *arg, struct copy_io *io);
	void (*write)(void *arg, struct copy_io *io);
	void (*copied)(void *arg, u32 bytes);
	void (*done)(void *arg, const struct copy_region *region, int error);
	void (*paused)(void *arg);
	void (*ended)(void *arg, int error);
};

/*
 * @lanes: chunks in flight at most
 * @chunk_bytes: of one I/O at most, a multiple of 4096
 * @memory_bytes: of all buffers together, at least @chunk_bytes
 * @zero_bytes: of one zero chunk, which has no buffer then; 0: as @chunk_bytes, and
 *	@buf holds zeroes (what devices need)
 */
struct copier_options {
	u32 lanes;
	u32 chunk_bytes;
	size_t memory_bytes;
	u32 zero_bytes;
	u32 private_bytes;
	u64 speed; /* bytes a second, 0: no limit */
	struct latency_probe *probe; /* the guest to give way to; NULL: nobody */
};

int copier_create(struct loop *loop, const struct copier_options *options,
		  const struct copier_ops *ops, void *arg, struct copier **result);
/* Nothing is in flight: before start, after @ended. */
void copier_destroy(struct copier *copier);

void copier_start(struct copier *copier);
/* Ask @next again. */
void copier_kick(struct copier *copier);
/* Begin nothing more; @paused when what is in flight has ended, perhaps at once. */
void copier_pause(struct copier *copier);
void copier_resume(struct copier *copier);
/* As pause, for good: @ended follows, with @error (negative, or 0). */
void copier_stop(struct copier *copier, int error);
void copier_set_speed(struct copier *copier, u64 speed);

void copy_io_done(struct copy_io *io, int error);

#endif
