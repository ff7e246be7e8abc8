/* SPDX-License-Identifier: GPL-2.0-or-later OR MIT */
/* Devices (what images live on), asynchronous operations and the engines below. */
#ifndef QCHAIN_IO_H
#define QCHAIN_IO_H

#include <qchain/err.h>
#include <qchain/ident.h>
#include <qchain/types.h>
#include <sys/types.h>
#include <urcu/list.h>

struct loop;
struct io_uring;
struct io_uring_sqe;

/* ---- devices ---------------------------------------------------------- */

/*
 * struct io_dev - one open image container: block device, LV or regular file
 *
 * All I/O of an image goes through this one descriptor (rule A2). Offsets and
 * lengths of asynchronous operations are multiples of @block_bytes, memory of
 * @mem_align_bytes. Reads beyond the end of a regular file return zeroes (the
 * format allows a short last cluster); beyond the end of a block device they
 * fail with -EIO.
 */
struct io_dev {
	/* set once */
	const struct io_dev_ops *ops;
	char *path; /* as resolved; the name in messages */
	int fd;
	struct image_ident ident;
	u32 block_bytes;
	u32 mem_align_bytes;
	bool blockdev;
	bool writable;
	bool direct; /* O_DIRECT: the alignments bind synchronous calls too */
	bool in_memory; /* a file on tmpfs: I/O is a copy */
	/* any thread, atomic, see io_dev_bytes(): grows when the LV grows */
	u64 size_bytes;
	/*
	 * any thread, atomic: a flush failed. What it should have made durable may
	 * be lost, and the kernel says so only once: no later flush succeeds.
	 */
	u32 flush_failed;
	void *private; /* of the simulated and the mock device */
};

/* Synchronous calls, for opening and for the offline tools. */
struct io_dev_ops {
	/* Whole length or -errno. Any offset and length inside the device. */
	int (*pread)(struct io_dev *dev, void *buf, size_t len, u64 offset);
	int (*pwrite)(struct io_dev *dev, const void *buf, size_t len, u64 offset);
	int (*flush)(struct io_dev *dev);
	/* Ask for the size again; updates and returns size_bytes, or -errno. */
	s64 (*refresh_size)(struct io_dev *dev);
	void (*close)(struct io_dev *dev);
};

/* As it was when it was last asked for, see refresh_size(). Any thread. */
static inline u64 io_dev_bytes(const struct io_dev *dev)
{
	return __atomic_load_n(&dev->size_bytes, __ATOMIC_RELAXED);
}

#define IO_DEV_WRITE 1u /* open for writing: takes the door of rule A2 */
#define IO_DEV_NOLOCK 2u /* take and test no image locks (info, --force-share) */
#define IO_DEV_WAIT 4u /* EBUSY/EAGAIN: wait for the dead process's I/O (A2) */
#define IO_DEV_BUFFERED 8u /* no O_DIRECT (offline tools on odd files) */

/*
 * io_dev_open - open @path through the door (DESIGN section 10, rule A2)
 *
 * IO_DEV_WRITE: O_EXCL on block devices, refuses what is mounted, a PV or
 * held by another device; QEMU's image locks are taken and tested. Otherwise
 * read-only with a reader's locks. Each refusal names the path, the cause and
 * who holds it. O_DIRECT where the file can.
 *
 * IO_DEV_WAIT: -EINTR when a signal is handled while it sleeps. SIGTERM and SIGINT
 * are let in there also when the thread blocks them, so none is missed.
 */
int io_dev_open(const char *path, u32 flags, struct io_dev **result, struct qc_err *err);
void io_dev_close(struct io_dev *dev);
/*
 * io_dev_begin_writing - @dev was opened read-only, with locks, and is to be written
 * from now on: the same door, claim and locks as for IO_DEV_WRITE. I/O may be under
 * way. Its size is asked for again when the locks are there: a volume that was only read may
 * have been made smaller (promise T9). Control thread, or any where nobody else uses @dev;
 * nothing has changed when it fails.
 */
int io_dev_begin_writing(struct io_dev *dev, struct qc_err *err);
/*
 * io_dev_end_writing - @dev was opened for writing and is only read from now on:
 * readers of other programs may lock it, too. The claim of a block device stays.
 * Any thread; nobody writes any more.
 */
void io_dev_end_writing(struct io_dev *dev);

/*
 * io_dev_on_wait - where to tell that an open with IO_DEV_WAIT waits
 * @fn: @why, again when that changes; NULL when it waits no more. On the thread
 *      that opens. Set before there are others; NULL: nowhere.
 */
void io_dev_on_wait(void (*fn)(const char *why));

/*
 * struct io_user - a process that has a block device open
 * @text: "name, pid N"
 *
 * io_users_list - all of them but this process, in one walk of /proc; malloc'ed. What
 * only the kernel uses (a mount, another device on it) is not among them. -ENOMEM
 */
struct io_user {
	dev_t rdev;
	pid_t pid;
	char text[96];
};

int io_users_list(struct io_user **result, u32 *nr);

static inline int io_dev_pread(struct io_dev *dev, void *buf, size_t len, u64 offset)
{
	return dev->ops->pread(dev, buf, len, offset);
}

static inline int io_dev_pwrite(struct io_dev *dev, const void *buf, size_t len, u64 offset)
{
	return dev->ops->pwrite(dev, buf, len, offset);
}

static inline int io_dev_flush(struct io_dev *dev)
{
	return dev->ops->flush(dev);
}

/* ---- operations ------------------------------------------------------- */

/* What the user_data of every SQE points to. @res as in the CQE. */
struct io_completion {
	void (*fn)(struct io_completion *completion, int res, u32 cqe_flags);
};

enum io_op_type { IO_READ, IO_WRITE, IO_FLUSH };

/*
 * struct io_op - one asynchronous operation on a device
 * @base: memory, or NULL: then @fixed_index is a buffer that the kernel
 *        registered in this loop's ring (zero copy) and @buf_offset counts in it
 * @done: runs on the loop's thread, once; 0 or -errno, never a short count:
 *        the engine resubmits short I/O and zero-fills reads beyond a file's end
 *
 * The submitter owns it; from io_submit() until @done the engine does.
 * User copy of ublk is an io_op on a pseudo device whose offset is the
 * position in /dev/ublkcN: @raw then switches off end-of-file handling.
 */
struct io_op {
	struct io_completion completion;
	struct io_dev *dev;
	struct loop *loop;
	void (*done)(struct io_op *op, int error);
	u64 offset;
	u32 len;
	u32 done_bytes; /* engine only */
	void *base;
	u32 buf_offset;
	u16 fixed_index;
	u8 type; /* enum io_op_type */
	u8 tries; /* engine only: in a row without a byte */
	struct cds_list_head node; /* engine or pool */
	void *owner; /* the submitter's */
};

/*
 * Queue @op on its loop's engine; loop thread only. Never fails, never blocks. What the
 * kernel asks to try again is tried again for about three seconds; then it is -EIO.
 */
void io_submit(struct loop *loop, struct io_op *op);

/* ---- engines ---------------------------------------------------------- */

struct io_engine {
	const struct io_engine_ops *ops;
	struct loop *loop;
};

struct io_engine_ops {
	void (*submit)(struct io_engine *io, struct io_op *op);
	/*
	 * Hand what is queued to the kernel, run completions. @wait: sleep until
	 * a completion, wake() or @deadline_ns (0: none). Returns completions run.
	 */
	int (*run)(struct io_engine *io, bool wait, u64 deadline_ns);
	void (*wake)(struct io_engine *io); /* any thread */
	/*
	 * Wake @other with what @io hands to the kernel in its next run, which follows at
	 * once. Thread of @io's loop; false: it cannot. May be NULL.
	 */
	bool (*wake_with)(struct io_engine *io, struct io_engine *other);
	void (*poll)(struct io_engine *io, struct io_completion *completion, int fd,
		     short events);
	void (*cancel)(struct io_engine *io, struct io_completion *completion);
	u64 (*now_ns)(struct io_engine *io);
	void (*destroy)(struct io_engine *io);
};

/* The io_uring engine. @entries: SQEs between two submissions. */
int io_uring_engine_create(u32 entries, struct io_engine **result);

/*
 * io_uring_engine_sqe - a raw SQE on the loop's ring, user_data set to
 * @completion. For the transports' own commands (ublk, sockets). Never NULL:
 * submits when the ring is full. The engine's ring for registering buffers.
 */
struct io_uring_sqe *io_uring_engine_sqe(struct io_engine *io,
					 struct io_completion *completion);
struct io_uring *io_uring_engine_ring(struct io_engine *io);

/* ---- the mock engine (io-mock.c), for unit tests ------------------------ */

/*
 * A test drives the loop on it from its own thread: loop_run_once(loop, false).
 * Devices are memory. An operation is logged when it is submitted, and under
 * way until it is ended, by the test or by the engine (io_mock_order). Until
 * then a read has filled nothing and a write has changed nothing; one that
 * fails never does. @done runs in the run that follows the end.
 *
 * What the contract above promises an engine is asserted. The clock stands
 * still but for io_mock_advance() and runs that wait: they jump to their
 * deadline. All on one thread, except wake.
 */
enum io_mock_order {
	IO_MOCK_HOLD, /* the test ends each operation (the default) */
	IO_MOCK_FIFO, /* a run ends all, in the order of submission */
	IO_MOCK_SHUFFLE, /* a run ends some, as drawn from the seed */
};

int io_mock_engine_create(struct io_engine **result);
void io_mock_order(struct io_engine *io, enum io_mock_order order, u64 seed);

/* Operations under way, by submission: how many, the @i-th, end the @i-th. */
u32 io_mock_pending(const struct io_engine *io);
const struct io_op *io_mock_op(const struct io_engine *io, u32 i);
void io_mock_end(struct io_engine *io, u32 i, int error);

/* The @n-th operation from now on ends with @error, whoever ends it; 0: none. */
void io_mock_fail(struct io_engine *io, u32 n, int error);

/*
 * io_mock_log - what was submitted since the last call, and the test's own notes
 * "write disk 4096+512, flush disk, linked"; valid until the next call.
 */
const char *io_mock_log(struct io_engine *io);
void io_mock_note(struct io_engine *io, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));

/* Writes that were submitted while one of the same bytes was under way. */
u32 io_mock_collisions(const struct io_engine *io);
u32 io_mock_wakes(const struct io_engine *io);
void io_mock_advance(struct io_engine *io, u64 ns);
/* Called instead of sleeping: what happens while the loop sleeps. */
void io_mock_on_wait(struct io_engine *io, void (*fn)(void *arg), void *arg);
/* End all polls of @fd. */
void io_mock_poll_end(struct io_engine *io, int fd, int revents);

/*
 * io_mock_dev_create - @max_bytes of memory, 512-byte blocks
 * A regular file grows when it is written beyond its end. Synchronous calls
 * go to the memory at once, unlogged. Closing it does nothing.
 */
int io_mock_dev_create(const char *name, u64 size_bytes, u64 max_bytes, bool blockdev,
		       struct io_dev **result);
void io_mock_dev_destroy(struct io_dev *dev);
void *io_mock_dev_bytes(const struct io_dev *dev);
/* As an lvextend: seen by whoever asks with refresh_size(). */
void io_mock_dev_resize(struct io_dev *dev, u64 size_bytes);

/* Aligned memory for I/O (4 KiB); free with free(). NULL when there is none. */
void *io_alloc(size_t bytes);

#endif
