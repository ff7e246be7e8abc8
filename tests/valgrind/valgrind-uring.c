// SPDX-License-Identifier: GPL-2.0-or-later
/* Preloaded under valgrind: what it does not know about io_uring. */
#include <dlfcn.h>
#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <sys/uio.h>
#include <valgrind/memcheck.h>

/*
 * valgrind lets one thread run at a time, and takes io_uring_enter() for a call that
 * never waits: who sleeps there holds up all others. poll() it knows; so the sleep is
 * one on the ring's descriptor. It ends when a completion is there only if that does
 * not wait for its thread to come by: rings are made as on older kernels. And what the
 * kernel fills by a ring is filled for memcheck when the read is submitted.
 */

#define URING_LATER_FLAGS (IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN)

static void *next(const char *name)
{
	return dlsym(RTLD_NEXT, name);
}

int io_uring_queue_init_params(unsigned int entries, struct io_uring *ring,
			       struct io_uring_params *params)
{
	int (*real)(unsigned int, struct io_uring *, struct io_uring_params *) =
		next("io_uring_queue_init_params");

	return params->flags & URING_LATER_FLAGS ? -EINVAL : real(entries, ring, params);
}

static void read_fills(const struct io_uring_sqe *sqe)
{
	const struct iovec *iov = (const struct iovec *)(uintptr_t)sqe->addr;

	if (sqe->opcode == IORING_OP_READ || sqe->opcode == IORING_OP_READ_FIXED)
		VALGRIND_MAKE_MEM_DEFINED(sqe->addr, sqe->len);
	for (unsigned int i = 0; sqe->opcode == IORING_OP_READV && i < sqe->len; i++)
		VALGRIND_MAKE_MEM_DEFINED(iov[i].iov_base, iov[i].iov_len);
}

int io_uring_submit(struct io_uring *ring)
{
	int (*real)(struct io_uring *) = next("io_uring_submit");

	for (unsigned int i = ring->sq.sqe_head; i != ring->sq.sqe_tail; i++)
		read_fills(&ring->sq.sqes[i & *ring->sq.kring_mask]);
	return real(ring);
}

static int wait_for_one(struct io_uring *ring, int timeout_ms)
{
	struct pollfd poll_fd = { .fd = ring->ring_fd, .events = POLLIN };
	int ret = io_uring_submit(ring);

	if (ret >= 0 && !io_uring_cq_ready(ring))
		io_uring_get_events(ring);
	if (ret >= 0 && !io_uring_cq_ready(ring) && poll(&poll_fd, 1, timeout_ms) > 0)
		io_uring_get_events(ring);
	return ret;
}

int io_uring_submit_and_wait(struct io_uring *ring, unsigned int wait_nr)
{
	return wait_for_one(ring, -1);
}

int io_uring_submit_and_wait_timeout(struct io_uring *ring, struct io_uring_cqe **cqe,
				     unsigned int wait_nr, struct __kernel_timespec *ts,
				     sigset_t *mask)
{
	return wait_for_one(ring, ts->tv_sec * 1000 + (ts->tv_nsec + 999999) / 1000000);
}
