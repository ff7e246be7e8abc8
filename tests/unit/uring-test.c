// SPDX-License-Identifier: GPL-2.0-or-later
/* The io_uring engine and what the kernel answers: less than was asked for, or "try again". */
#include "loop-thread.h"

#include <errno.h>
#include <fcntl.h>
#include <qchain/loop.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define WATCHDOG_S 120u

/* ---- short reads and writes: a pipe gives and takes what it has room for ---- */

#define SHORT_BYTES (256u * KiB) /* more than a pipe holds */

struct short_case {
	struct io_dev dev;
	struct io_op op;
	u32 *words;
	int error;
	sem_t done;
};

static void short_done(struct io_op *op, int error)
{
	struct short_case *c = container_of(op, struct short_case, op);

	c->error = error;
	sem_post(&c->done);
}

static void short_start(struct loop *l, void *arg)
{
	struct short_case *c = arg;

	io_submit(l, &c->op);
}

static void short_begin(struct short_case *c, struct loop *l, enum io_op_type type, int fd)
{
	sem_init(&c->done, 0, 0);
	c->dev = (struct io_dev){ .fd = fd, .block_bytes = 512, .blockdev = true };
	c->op = (struct io_op){ .dev = &c->dev, .type = type, .base = c->words,
				.len = SHORT_BYTES, .done = short_done };
	loop_call(l, short_start, c);
}

static void count_up(u32 *words)
{
	for (u32 i = 0; i < SHORT_BYTES / 4; i++)
		words[i] = i;
}

static void short_write(struct loop *l, const u32 *expected)
{
	struct short_case c = { .words = io_alloc(SHORT_BYTES) };
	char *got = malloc(SHORT_BYTES);
	int fds[2];
	u32 n = 0;
	ssize_t ret;

	CU_ASSERT_FATAL(pipe(fds) == 0);
	count_up(c.words);
	short_begin(&c, l, IO_WRITE, fds[1]);
	while (n < SHORT_BYTES && (ret = read(fds[0], got + n, SHORT_BYTES - n)) > 0)
		n += ret;
	wait_for(&c.done);
	CU_ASSERT_EQUAL(c.error, 0);
	CU_ASSERT(n == SHORT_BYTES && !memcmp(got, expected, SHORT_BYTES));
	close(fds[0]);
	close(fds[1]);
	free(got);
	free(c.words);
}

/* @bytes come, in pieces; then the end. */
static void short_read(struct loop *l, const u32 *expected, u32 bytes, int error)
{
	struct short_case c = { .words = io_alloc(SHORT_BYTES) };
	int fds[2];
	u32 n;

	CU_ASSERT_FATAL(pipe(fds) == 0);
	short_begin(&c, l, IO_READ, fds[0]);
	for (n = 0; n < bytes; n += 8192)
		CU_ASSERT_FATAL(write(fds[1], (const char *)expected + n, 8192) == 8192);
	close(fds[1]);
	wait_for(&c.done);
	CU_ASSERT_EQUAL(c.error, error);
	CU_ASSERT(!memcmp(c.words, expected, bytes));
	close(fds[0]);
	free(c.words);
}

/* ---- the kernel asks to try again: its answers are put in the place of the real ones ---- */

struct again_case {
	struct short_case c;
	void (*engine)(struct io_completion *completion, int res, u32 flags);
	u32 refusals; /* so many, then what there really was */
	u32 answers;
};

static void again_answer(struct io_completion *completion, int res, u32 flags)
{
	struct again_case *a = container_of(completion, struct again_case, c.op.completion);
	bool refused = a->answers++ < a->refusals;

	a->engine(completion, refused ? a->answers % 2 ? -EAGAIN : -EINTR : res, flags);
}

static void again_start(struct loop *l, void *arg)
{
	struct again_case *a = arg;

	io_submit(l, &a->c.op);
	a->engine = a->c.op.completion.fn;
	a->c.op.completion.fn = again_answer;
}

static void again_read(struct loop *l, u32 refusals, u32 answers, int error)
{
	struct again_case a = { .refusals = refusals };
	int fd = open("/dev/zero", O_RDONLY | O_CLOEXEC);

	CU_ASSERT_FATAL(fd >= 0);
	a.c.words = io_alloc(SHORT_BYTES);
	a.c.words[0] = 1;
	sem_init(&a.c.done, 0, 0);
	a.c.dev = (struct io_dev){ .fd = fd, .path = "zero", .block_bytes = 512 };
	a.c.op = (struct io_op){ .dev = &a.c.dev, .type = IO_READ, .base = a.c.words,
				 .len = 4096, .done = short_done };
	loop_call(l, again_start, &a);
	wait_for(&a.c.done);
	CU_ASSERT_EQUAL(a.c.error, error);
	CU_ASSERT_EQUAL(a.answers, answers);
	CU_ASSERT(error || !a.c.words[0]);
	close(fd);
	free(a.c.words);
}

static void test_again(void)
{
	struct loop *l = start_loop("again");

	again_read(l, 3, 4, 0);
	again_read(l, UINT32_MAX, 15, -EIO);
	end_loop(l);
}

static void test_short_io(void)
{
	struct loop *l = start_loop("short");
	u32 *expected = malloc(SHORT_BYTES);

	count_up(expected);
	short_write(l, expected);
	short_read(l, expected, SHORT_BYTES, 0);
	short_read(l, expected, SHORT_BYTES / 2, -EIO);
	end_loop(l);
	free(expected);
}

/* ---- rings that wake each other ------------------------------------------------- */

static struct loop *ring_loop(const char *name)
{
	struct io_engine *io;
	struct loop *l;

	CU_ASSERT_EQUAL_FATAL(io_uring_engine_create(8, &io), 0);
	CU_ASSERT_EQUAL_FATAL(loop_create(name, io, &l), 0);
	return l;
}

/* Does something come to @l, within seconds? What was there before is taken first. */
static bool is_woken(struct loop *l)
{
	return l->io->ops->run(l->io, true, loop_now_ns(l) + WATCHDOG_S / 2 * 1000000000ull);
}

/* A kernel without messages between rings says so: then there is nothing to test. */
static void test_wake_with(void)
{
	struct loop *from = ring_loop("from"), *to = ring_loop("to");
	const struct io_engine_ops *ops = from->io->ops;

	while (loop_run_once(to, false))
		; /* enabled by its first run */
	if (ops->wake_with(from->io, to->io)) {
		from->io->ops->run(from->io, false, 0);
		CU_ASSERT(is_woken(to));
		CU_ASSERT(ops->wake_with(from->io, to->io));
		from->io->ops->run(from->io, false, 0);
	}
	loop_destroy(from);
	loop_destroy(to);
}

/* A ring that takes no messages, here because it is not enabled, is woken all the same. */
static void test_wake_with_fails(void)
{
	struct loop *from = ring_loop("from"), *to = ring_loop("to");
	const struct io_engine_ops *ops = from->io->ops;

	if (ops->wake_with(from->io, to->io)) {
		from->io->ops->run(from->io, false, 0);
		CU_ASSERT(is_woken(to));
		CU_ASSERT_FALSE(ops->wake_with(from->io, to->io));
	}
	loop_destroy(from);
	loop_destroy(to);
}

int main(void)
{
	static const struct unit_test tests[] = {
		{ "short reads and writes go on", test_short_io },
		{ "what the kernel refuses for ever fails in the end", test_again },
		{ "a ring wakes another one with what it submits", test_wake_with },
		{ "one that takes no message is woken otherwise", test_wake_with_fails },
		{ NULL, NULL },
	};

	alarm(WATCHDOG_S);
	return unit_main("uring", tests);
}
