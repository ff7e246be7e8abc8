// SPDX-License-Identifier: GPL-2.0-or-later
/* The slow devices: an engine, waiting, and system calls that are counted. */
#include "slow.h"

#include "../sim/wrapped-loops.h"

#include <errno.h>
#include <qchain/io.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statfs.h>
#include <time.h>
#include <unistd.h>

#define ROUND_TRIP_NS 1000000ull

struct slow_engine {
	struct io_engine engine;
	struct cds_list_head ready; /* struct io_op: done, callback to come */
};

static u64 now_ns = 1000000000ull;
static CDS_LIST_HEAD(pending); /* struct io_op */
static u32 nr_pending, most_pending, nr_ios, nr_calls;

ssize_t __real_pread64(int fd, void *buf, size_t len, off_t offset);
ssize_t __real_pwrite64(int fd, const void *buf, size_t len, off_t offset);
int __real_fdatasync(int fd);
int __real_fstatfs64(int fd, struct statfs *fs);
int __real_sem_trywait(sem_t *sem);

u64 slow_now_ms(void)
{
	return now_ns / ROUND_TRIP_NS;
}

/* ---- the engine ---------------------------------------------------------------- */

static struct slow_engine *engine_of(const struct io_op *op)
{
	return container_of(op->loop->io, struct slow_engine, engine);
}

static void slow_submit(struct io_engine *io, struct io_op *op)
{
	cds_list_add_tail(&op->node, &pending);
	nr_ios++;
	nr_pending++;
	most_pending = max(most_pending, nr_pending);
}

/* -errno; what lies beyond the end of a file reads as zero. */
static int transfer(struct io_op *op)
{
	ssize_t n;

	if (op->type == IO_FLUSH)
		return 0;
	if (op->type == IO_WRITE) {
		n = __real_pwrite64(op->dev->fd, op->base, op->len, op->offset);
		return n == op->len ? 0 : -EIO;
	}
	n = __real_pread64(op->dev->fd, op->base, op->len, op->offset);
	if (n >= 0)
		memset((char *)op->base + n, 0, op->len - n);
	return n < 0 ? -errno : 0;
}

/* What is submitted from now on takes a round trip of its own. */
static void end_pending(void)
{
	struct io_op *op, *tmp;

	now_ns += ROUND_TRIP_NS;
	cds_list_for_each_entry_safe(op, tmp, &pending, node) {
		op->done_bytes = -transfer(op);
		cds_list_del(&op->node);
		cds_list_add_tail(&op->node, &engine_of(op)->ready);
	}
	nr_pending = 0;
}

static int slow_run(struct io_engine *io, bool wait, u64 deadline_ns)
{
	struct slow_engine *e = container_of(io, struct slow_engine, engine);
	struct io_op *op;
	int n = 0;

	if (wait && cds_list_empty(&e->ready) && nr_pending) /* who waits drives it alone */
		end_pending();
	while (!cds_list_empty(&e->ready)) {
		op = cds_list_first_entry(&e->ready, struct io_op, node);
		cds_list_del(&op->node);
		op->done(op, -(int)op->done_bytes);
		n++;
	}
	return n;
}

static void slow_wake(struct io_engine *io)
{
}

static u64 slow_now_ns(struct io_engine *io)
{
	return now_ns;
}

static void slow_destroy(struct io_engine *io)
{
	free(container_of(io, struct slow_engine, engine));
}

static const struct io_engine_ops slow_ops = {
	.submit = slow_submit,
	.run = slow_run,
	.wake = slow_wake,
	.now_ns = slow_now_ns,
	.destroy = slow_destroy,
};

int __wrap_io_uring_engine_create(u32 entries, struct io_engine **result);
int __wrap_io_uring_engine_create(u32 entries, struct io_engine **result)
{
	struct slow_engine *e = calloc(1, sizeof(*e));

	if (!e)
		return -ENOMEM;
	e->engine.ops = &slow_ops;
	CDS_INIT_LIST_HEAD(&e->ready);
	*result = &e->engine;
	return 0;
}

void __wrap_io_submit(struct loop *loop, struct io_op *op);
void __wrap_io_submit(struct loop *loop, struct io_op *op)
{
	op->loop = loop;
	loop->io->ops->submit(loop->io, op);
}

/* ---- waiting ------------------------------------------------------------------- */

static void step(void)
{
	u64 next;
	int n = 0;

	for (u32 i = 0; i < nr_wrapped_loops; i++)
		n += loop_run_once(wrapped_loops[i], false);
	if (n)
		return;
	if (nr_pending) {
		end_pending();
		return;
	}
	next = wrapped_loops_deadline();
	if (!next) {
		fprintf(stderr, "slow: waits for what never comes\n");
		abort();
	}
	now_ns = max(now_ns, next);
}

void slow_run_until(bool (*is_so)(void *arg), void *arg)
{
	while (!is_so(arg))
		step();
}

static bool has_stopped(void *arg)
{
	return ((struct loop *)arg)->stop;
}

void __wrap_loop_run(struct loop *loop);
void __wrap_loop_run(struct loop *loop)
{
	slow_run_until(has_stopped, loop);
}

static bool sem_is_up(void *arg)
{
	return !__real_sem_trywait(arg);
}

int __wrap_sem_wait(sem_t *sem);
int __wrap_sem_wait(sem_t *sem)
{
	slow_run_until(sem_is_up, sem);
	return 0;
}

int __wrap_sem_trywait(sem_t *sem);
int __wrap_sem_trywait(sem_t *sem)
{
	return __wrap_sem_wait(sem);
}

/* ---- synchronous calls ---------------------------------------------------------- */

static void count_call(void)
{
	now_ns += ROUND_TRIP_NS;
	nr_calls++;
}

ssize_t __wrap_pread64(int fd, void *buf, size_t len, off_t offset);
ssize_t __wrap_pread64(int fd, void *buf, size_t len, off_t offset)
{
	count_call();
	return __real_pread64(fd, buf, len, offset);
}

ssize_t __wrap_pwrite64(int fd, const void *buf, size_t len, off_t offset);
ssize_t __wrap_pwrite64(int fd, const void *buf, size_t len, off_t offset)
{
	count_call();
	return __real_pwrite64(fd, buf, len, offset);
}

int __wrap_fdatasync(int fd);
int __wrap_fdatasync(int fd)
{
	count_call();
	return __real_fdatasync(fd);
}

/* Images on tmpfs are on slow devices, too. */
int __wrap_fstatfs64(int fd, struct statfs *fs);
int __wrap_fstatfs64(int fd, struct statfs *fs)
{
	int ret = __real_fstatfs64(fd, fs);

	fs->f_type = 0;
	return ret;
}

static void __attribute__((destructor)) report(void)
{
	fprintf(stderr, "slow: %llu ms, %u I/Os, at most %u at once, %u calls\n",
		(unsigned long long)slow_now_ms() - 1000, nr_ios, most_pending, nr_calls);
}
