// SPDX-License-Identifier: GPL-2.0-or-later
/* The io_uring engine: one ring per loop, every SQE's user_data a completion. */
#include <assert.h>
#include <errno.h>
#include <liburing.h>
#include <pthread.h>
#include <qchain/io.h>
#include <qchain/log.h>
#include <qchain/loop.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

struct uring {
	struct io_engine engine;
	struct cds_list_head node; /* in urings */
	struct io_uring ring;
	bool disabled; /* made so that the loop's thread becomes the issuer */
	bool alone; /* one processor: nobody sends while this thread looks */
	u32 sleeps; /* that go by before it lingers again, */
	u32 max_sleeps; /* ... of so many */
	int wake_fd;
	u64 wake_count;
	struct io_completion wake;
	bool messages; /* rings can be woken by a message from this one */
	struct io_completion message_failed;
	struct io_completion ignore; /* of cancel requests, and what wakes */
	struct cds_list_head copies; /* io_ops on files in memory, to be done in the next run */
	struct cds_list_head again; /* io_ops that the kernel could not take, until the timer */
	struct loop_timer again_timer;
	u8 again_tries; /* the most that one of them has had */
};

/* All rings of this process: who cannot be woken by a message is woken with them. */
static pthread_mutex_t urings_lock = PTHREAD_MUTEX_INITIALIZER;
static CDS_LIST_HEAD(urings);

static struct uring *to_uring(struct io_engine *io)
{
	return container_of(io, struct uring, engine);
}

struct io_uring *io_uring_engine_ring(struct io_engine *io)
{
	return &to_uring(io)->ring;
}

/* A ring with R_DISABLED takes no submissions until its own thread enables it. */
static void uring_enable(struct uring *u)
{
	if (!u->disabled)
		return;
	u->disabled = false;
	/* liburing 2.3 declares a helper for it but does not export it */
	syscall(__NR_io_uring_register, u->ring.ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0);
}

static struct io_uring_sqe *uring_sqe(struct uring *u)
{
	struct io_uring_sqe *sqe;

	while (!(sqe = io_uring_get_sqe(&u->ring))) {
		uring_enable(u);
		io_uring_submit(&u->ring);
	}
	return sqe;
}

struct io_uring_sqe *io_uring_engine_sqe(struct io_engine *io,
					 struct io_completion *completion)
{
	struct io_uring_sqe *sqe = uring_sqe(to_uring(io));

	/*
	 * liburing 2.3 sets user_data in the get, its prep helpers clear it
	 * again: those callers set it themselves; raw ones find it here.
	 */
	memset(sqe, 0, sizeof(*sqe));
	sqe->user_data = (uintptr_t)completion;
	return sqe;
}

/* ---- operations ------------------------------------------------------------ */

static void uring_queue_sqe(struct uring *u, struct io_op *op)
{
	struct io_uring_sqe *sqe = uring_sqe(u);
	u32 len = op->len - op->done_bytes;
	u64 offset = op->offset + op->done_bytes;
	char *mem = op->base ? (char *)op->base + op->done_bytes :
			       (char *)(uintptr_t)(op->buf_offset + op->done_bytes);
	int fd = op->dev->fd;

	if (op->type == IO_FLUSH)
		io_uring_prep_fsync(sqe, fd, IORING_FSYNC_DATASYNC);
	else if (op->type == IO_READ && op->base)
		io_uring_prep_read(sqe, fd, mem, len, offset);
	else if (op->type == IO_READ)
		io_uring_prep_read_fixed(sqe, fd, mem, len, offset, op->fixed_index);
	else if (op->base)
		io_uring_prep_write(sqe, fd, mem, len, offset);
	else
		io_uring_prep_write_fixed(sqe, fd, mem, len, offset, op->fixed_index);
	sqe->user_data = (uintptr_t)&op->completion;
}

/*
 * tmpfs cannot promise the kernel that it never blocks, so io_uring hands each
 * request to a worker thread: two switches for what is a copy in memory. The copy
 * is made here instead, in the next run.
 */
static void uring_queue(struct uring *u, struct io_op *op)
{
	if (op->dev->in_memory && (op->base || op->type == IO_FLUSH))
		cds_list_add_tail(&op->node, &u->copies);
	else
		uring_queue_sqe(u, op);
}

/* What the CQE would have: bytes or -errno. */
static int uring_copy(const struct io_op *op)
{
	char *mem = op->base ? (char *)op->base + op->done_bytes : NULL; /* a flush has none */
	u32 len = op->len - op->done_bytes;
	u64 offset = op->offset + op->done_bytes;
	ssize_t n;

	if (op->type == IO_FLUSH)
		n = fdatasync(op->dev->fd);
	else if (op->type == IO_READ)
		n = pread(op->dev->fd, mem, len, offset);
	else
		n = pwrite(op->dev->fd, mem, len, offset);
	return n < 0 ? -errno : n;
}

/* So many copies in one run: other loops go on with the ends of those meanwhile. */
#define URING_COPIES 8

static int uring_copies(struct uring *u)
{
	struct io_op *op;
	int total = 0;

	if (!cds_list_empty(&u->copies) && io_uring_sq_ready(&u->ring))
		io_uring_submit(&u->ring); /* whom it wakes does not wait for them */
	while (total < URING_COPIES && !cds_list_empty(&u->copies)) {
		op = cds_list_first_entry(&u->copies, struct io_op, node);
		cds_list_del(&op->node);
		op->completion.fn(&op->completion, uring_copy(op), 0);
		total++;
	}
	return total;
}

/*
 * A read ended early. On a regular file that is its end when nothing came or
 * when the count is not whole blocks: the rest reads as zero. -EAGAIN: go on.
 */
static int uring_short_read(struct io_op *op, u32 got)
{
	u32 done = op->done_bytes;

	if (op->dev->blockdev)
		return got ? -EAGAIN : -EIO;
	if (got && IS_ALIGNED(got, op->dev->block_bytes))
		return -EAGAIN;
	if (!op->base)
		return -ENODATA; /* a kernel buffer: the target must fill it */
	memset((char *)op->base + done, 0, op->len - done);
	return 0;
}

/*
 * EAGAIN, EINTR: so many times in a row, with a pause before each, twice as long as the
 * last: 3.3 s in all.
 */
#define URING_MAX_TRIES 14u
#define URING_AGAIN_NS 100000ull

static void uring_run_again(struct loop *loop, struct loop_timer *timer)
{
	struct uring *u = container_of(timer, struct uring, again_timer);
	struct io_op *op, *tmp;

	u->again_tries = 0;
	cds_list_for_each_entry_safe(op, tmp, &u->again, node) {
		cds_list_del(&op->node);
		uring_queue(u, op);
	}
}

/* False: it was tried often enough. */
static bool uring_again(struct uring *u, struct io_op *op)
{
	if (op->tries == URING_MAX_TRIES) {
		log_warn("%s: I/O at %llu+%u: the kernel asks to try again, %u times in a row; "
			 "given up", op->dev->path, (unsigned long long)op->offset, op->len,
			 op->tries);
		return false;
	}
	op->tries++;
	cds_list_add_tail(&op->node, &u->again);
	if (op->tries > u->again_tries) {
		u->again_tries = op->tries;
		loop_timer_set(u->engine.loop, &u->again_timer, URING_AGAIN_NS << op->tries);
	}
	return true;
}

static void uring_op_done(struct io_completion *completion, int res, u32 cqe_flags)
{
	struct io_op *op = container_of(completion, struct io_op, completion);
	struct uring *u = to_uring(op->loop->io);
	int error = 0;

	if (res == -EINTR || res == -EAGAIN) {
		if (uring_again(u, op))
			return;
		error = -EIO;
	} else if (res < 0) {
		error = res;
	} else if (op->type != IO_FLUSH) {
		op->tries = 0;
		op->done_bytes += res;
		if (op->done_bytes < op->len && op->type == IO_READ)
			error = uring_short_read(op, res);
		else if (op->done_bytes < op->len)
			error = res ? -EAGAIN : -EIO;
	}
	if (error == -EAGAIN) {
		uring_queue(u, op);
		return;
	}
	if (op->type == IO_FLUSH && error)
		__atomic_store_n(&op->dev->flush_failed, 1, __ATOMIC_RELAXED);
	if (op->type == IO_FLUSH && __atomic_load_n(&op->dev->flush_failed, __ATOMIC_RELAXED))
		error = -EIO;
	op->done(op, error);
}

static void uring_submit_op(struct io_engine *io, struct io_op *op)
{
	op->done_bytes = 0;
	op->tries = 0;
	op->completion.fn = uring_op_done;
	uring_queue(to_uring(io), op);
}

void io_submit(struct loop *loop, struct io_op *op)
{
	op->loop = loop;
	loop->io->ops->submit(loop->io, op);
}

static void uring_poll(struct io_engine *io, struct io_completion *completion, int fd,
		       short events)
{
	struct io_uring_sqe *sqe = uring_sqe(to_uring(io));

	io_uring_prep_poll_add(sqe, fd, events);
	sqe->user_data = (uintptr_t)completion;
}

static void ignore_done(struct io_completion *completion, int res, u32 cqe_flags)
{
}

static void uring_cancel(struct io_engine *io, struct io_completion *completion)
{
	struct uring *u = to_uring(io);
	struct io_uring_sqe *sqe = uring_sqe(u);

	io_uring_prep_cancel(sqe, completion, 0);
	sqe->user_data = (uintptr_t)&u->ignore;
}

/* ---- waking and waiting ------------------------------------------------------ */

static void uring_arm_wake(struct uring *u)
{
	struct io_uring_sqe *sqe = uring_sqe(u);

	io_uring_prep_read(sqe, u->wake_fd, &u->wake_count, sizeof(u->wake_count), 0);
	sqe->user_data = (uintptr_t)&u->wake;
}

static void wake_done(struct io_completion *completion, int res, u32 cqe_flags)
{
	uring_arm_wake(container_of(completion, struct uring, wake));
}

static void uring_wake(struct io_engine *io)
{
	u64 one = 1;

	if (write(to_uring(io)->wake_fd, &one, sizeof(one)) < 0)
		return; /* the counter is full: it is awake anyway */
}

/*
 * A loop wakes another one by a message from ring to ring: it goes with the next
 * submission, and is one completion there. A wake by the eventfd is a system call here,
 * and there a read that is tried, waits, is tried again and is asked for anew.
 */

static const struct io_engine_ops uring_ops;

static bool uring_wake_with(struct io_engine *io, struct io_engine *other)
{
	struct uring *u = to_uring(io);
	struct io_uring_sqe *sqe;

	if (other->ops != &uring_ops || !u->messages)
		return false;
	sqe = uring_sqe(u);
	io_uring_prep_msg_ring(sqe, to_uring(other)->ring.ring_fd, 0,
			       (uintptr_t)&to_uring(other)->ignore, 0);
	sqe->flags |= IOSQE_CQE_SKIP_SUCCESS;
	sqe->user_data = (uintptr_t)&u->message_failed;
	return true;
}

/* No memory, or a ring that is not enabled yet. Whose it was is not said: all are woken. */
static void message_failed(struct io_completion *completion, int res, u32 cqe_flags)
{
	struct uring *u;

	container_of(completion, struct uring, message_failed)->messages = false;
	pthread_mutex_lock(&urings_lock);
	cds_list_for_each_entry(u, &urings, node)
		uring_wake(&u->engine);
	pthread_mutex_unlock(&urings_lock);
}

static u64 uring_now_ns(struct io_engine *io)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000ull + ts.tv_nsec;
}

static void uring_wait(struct uring *u, u64 deadline_ns)
{
	struct __kernel_timespec ts;
	struct io_uring_cqe *cqe;
	u64 now, left;

	if (!deadline_ns) {
		io_uring_submit_and_wait(&u->ring, 1);
		return;
	}
	now = uring_now_ns(&u->engine);
	left = deadline_ns > now ? deadline_ns - now : 0;
	ts.tv_sec = left / 1000000000ull;
	ts.tv_nsec = left % 1000000000ull;
	io_uring_submit_and_wait_timeout(&u->ring, &cqe, 1, &ts, NULL);
}

/*
 * A sleep costs the sender of the next message a system call and both a switch, more
 * than a message that comes within microseconds is worth: it is waited for awake, for
 * a moment. Each time that none came, twice as many sleeps go by before the next try.
 */
#define URING_LINGER_NS 10000ull
#define URING_MAX_SLEEPS 255u

static bool uring_may_linger(struct uring *u)
{
	if (u->alone)
		return false;
	if (!u->sleeps)
		return true;
	u->sleeps--;
	return false;
}

/* Something came, or the kernel has completions for us. */
static bool uring_stirs(struct uring *u)
{
	return loop_has_messages(u->engine.loop) || io_uring_cq_ready(&u->ring) ||
	       IO_URING_READ_ONCE(*u->ring.sq.kflags) & IORING_SQ_TASKRUN;
}

/* True: there is something to do. */
static bool uring_linger(struct uring *u)
{
	u64 end = uring_now_ns(&u->engine) + URING_LINGER_NS;
	bool stirs;

	if (io_uring_sq_ready(&u->ring))
		io_uring_submit(&u->ring);
	do {
		stirs = uring_stirs(u);
	} while (!stirs && uring_now_ns(&u->engine) < end);
	u->max_sleeps = loop_has_messages(u->engine.loop) ? 0 :
			min(2 * u->max_sleeps + 1, URING_MAX_SLEEPS);
	u->sleeps = u->max_sleeps;
	return stirs;
}

/* CQEs are copied out in batches: a completion may queue and submit more. */
#define URING_BATCH 64

/* The look for them enters the kernel when that has some that it did not show yet. */
static int uring_reap(struct uring *u)
{
	struct io_uring_cqe *cqes[URING_BATCH];
	struct {
		struct io_completion *completion;
		int res;
		u32 flags;
	} done[URING_BATCH];
	unsigned int i, n;
	int total = 0;

	do {
		n = io_uring_peek_batch_cqe(&u->ring, cqes, URING_BATCH);
		for (i = 0; i < n; i++) {
			done[i].completion = (void *)(uintptr_t)cqes[i]->user_data;
			done[i].res = cqes[i]->res;
			done[i].flags = cqes[i]->flags;
		}
		io_uring_cq_advance(&u->ring, n);
		for (i = 0; i < n; i++)
			done[i].completion->fn(done[i].completion, done[i].res,
					       done[i].flags);
		total += n;
	} while (n == URING_BATCH);
	return total;
}

static int uring_run(struct io_engine *io, bool wait, u64 deadline_ns)
{
	struct uring *u = to_uring(io);
	int copied;

	uring_enable(u);
	copied = uring_copies(u);
	wait = wait && !copied && !io_uring_cq_ready(&u->ring);
	if (wait && uring_may_linger(u))
		wait = !uring_linger(u);
	if (wait && loop_sleep_begin(io->loop)) {
		uring_wait(u, deadline_ns);
		loop_sleep_end(io->loop);
	} else if (io_uring_sq_ready(&u->ring)) {
		io_uring_submit(&u->ring);
	}
	return copied + uring_reap(u);
}

static void uring_destroy(struct io_engine *io)
{
	struct uring *u = to_uring(io);

	pthread_mutex_lock(&urings_lock);
	cds_list_del(&u->node);
	pthread_mutex_unlock(&urings_lock);
	io_uring_queue_exit(&u->ring);
	close(u->wake_fd);
	free(u);
}

static const struct io_engine_ops uring_ops = {
	.submit = uring_submit_op,
	.run = uring_run,
	.wake = uring_wake,
	.wake_with = uring_wake_with,
	.poll = uring_poll,
	.cancel = uring_cancel,
	.now_ns = uring_now_ns,
	.destroy = uring_destroy,
};

/* Linux 6.3: since then a message also wakes a ring whose thread runs its own tasks. */
#define URING_FEAT_REG_REG_RING (1u << 13)

static int uring_setup(struct uring *u, u32 entries)
{
	struct io_uring_params params = {
		.flags = IORING_SETUP_CQSIZE | IORING_SETUP_SINGLE_ISSUER |
			 IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG |
			 IORING_SETUP_R_DISABLED,
		.cq_entries = entries * 4,
	};
	int ret = io_uring_queue_init_params(entries, &u->ring, &params);

	if (ret != -EINVAL) {
		u->disabled = ret == 0;
		u->messages = params.features & URING_FEAT_REG_REG_RING;
		return ret;
	}
	/* Kernels before 6.1 */
	memset(&params, 0, sizeof(params));
	params.flags = IORING_SETUP_CQSIZE;
	params.cq_entries = entries * 4;
	return io_uring_queue_init_params(entries, &u->ring, &params);
}

int io_uring_engine_create(u32 entries, struct io_engine **result)
{
	struct uring *u = calloc(1, sizeof(*u));
	int ret;

	if (!u)
		return -ENOMEM;
	u->engine.ops = &uring_ops;
	u->wake.fn = wake_done;
	u->ignore.fn = ignore_done;
	u->message_failed.fn = message_failed;
	u->alone = sysconf(_SC_NPROCESSORS_ONLN) == 1;
	CDS_INIT_LIST_HEAD(&u->copies);
	CDS_INIT_LIST_HEAD(&u->again);
	u->again_timer.fn = uring_run_again;
	u->wake_fd = eventfd(0, EFD_CLOEXEC);
	if (u->wake_fd < 0) {
		ret = -errno;
		goto err_free;
	}
	ret = uring_setup(u, entries);
	if (ret < 0)
		goto err_close;
	uring_arm_wake(u);
	pthread_mutex_lock(&urings_lock);
	cds_list_add_tail(&u->node, &urings);
	pthread_mutex_unlock(&urings_lock);
	*result = &u->engine;
	return 0;

err_close:
	close(u->wake_fd);
err_free:
	free(u);
	return ret;
}
