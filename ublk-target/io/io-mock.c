// SPDX-License-Identifier: GPL-2.0-or-later
/* The mock engine: memory for devices, operations that end when a test says so. */
#include <assert.h>
#include <errno.h>
#include <qchain/io.h>
#include <qchain/loop.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/*
 * An operation is on one of two lists: pending, until somebody ends it, then
 * ended, until the next run calls back. Memory changes at the moment of ending,
 * so that the order of ending is the order in which the device did the work.
 */

#define MOCK_BLOCK_BYTES 512u
#define MOCK_START_NS 1000000000ull

struct mock_poll {
	struct cds_list_head node;
	struct io_completion *completion;
	int fd;
	int result;
};

struct mock_text {
	char *chars;
	size_t len;
	size_t room;
};

struct mock {
	struct io_engine engine;
	struct cds_list_head pending; /* struct io_op, in order of submission */
	u32 nr_pending;
	struct cds_list_head ended; /* struct io_op, done_bytes holds -error */
	struct cds_list_head polls;
	struct cds_list_head polled;
	enum io_mock_order order;
	u64 random;
	u32 fail_in; /* operations until one fails; 0: none does */
	int fail_error;
	u32 collisions;
	u64 now_ns;
	u32 wakes; /* atomic */
	void (*on_wait)(void *arg);
	void *on_wait_arg;
	struct mock_text log;
	struct mock_text taken;
};

struct mock_dev {
	struct io_dev dev;
	u8 *bytes;
	u64 length; /* dev.size_bytes follows with refresh_size() */
	u64 max_bytes;
};

static struct mock *to_mock(const struct io_engine *io)
{
	return container_of(io, struct mock, engine);
}

static struct mock_dev *to_mock_dev(const struct io_dev *dev)
{
	return dev->private;
}

/* ---- the log ---------------------------------------------------------------- */

void io_mock_note(struct io_engine *io, const char *fmt, ...)
{
	struct mock_text *log = &to_mock(io)->log;
	char text[128];
	va_list args;
	size_t len;

	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	len = strlen(text);
	if (log->len + len + 3 > log->room) {
		log->room = 2 * log->room + sizeof(text) + 3;
		log->chars = realloc(log->chars, log->room);
		assert(log->chars);
	}
	if (log->len) {
		memcpy(log->chars + log->len, ", ", 2);
		log->len += 2;
	}
	memcpy(log->chars + log->len, text, len + 1);
	log->len += len;
}

const char *io_mock_log(struct io_engine *io)
{
	struct mock *m = to_mock(io);
	struct mock_text empty = m->taken;

	m->taken = m->log;
	m->log = empty;
	m->log.len = 0;
	return m->taken.len ? m->taken.chars : "";
}

static void log_op(struct io_engine *io, const struct io_op *op)
{
	const char *name = op->dev->path;

	if (op->type == IO_FLUSH)
		io_mock_note(io, "flush %s", name);
	else
		io_mock_note(io, "%s %s %llu+%u", op->type == IO_READ ? "read" : "write", name,
			     (unsigned long long)op->offset, op->len);
}

/* ---- devices: their synchronous half ------------------------------------------- */

static int mock_pread(struct io_dev *dev, void *buf, size_t len, u64 offset)
{
	struct mock_dev *d = to_mock_dev(dev);
	u64 have = offset < d->length ? min(len, d->length - offset) : 0;

	if (have < len && dev->blockdev)
		return -EIO;
	memcpy(buf, d->bytes + offset, have);
	memset((u8 *)buf + have, 0, len - have);
	return 0;
}

static int mock_pwrite(struct io_dev *dev, const void *buf, size_t len, u64 offset)
{
	struct mock_dev *d = to_mock_dev(dev);
	u64 most = dev->blockdev ? d->length : d->max_bytes;

	if (offset > most || len > most - offset)
		return dev->blockdev ? -EIO : -ENOSPC;
	memcpy(d->bytes + offset, buf, len);
	d->length = max(d->length, offset + len);
	return 0;
}

static int mock_flush(struct io_dev *dev)
{
	return 0;
}

static s64 mock_refresh_size(struct io_dev *dev)
{
	__atomic_store_n(&dev->size_bytes, to_mock_dev(dev)->length, __ATOMIC_RELAXED);
	return dev->size_bytes;
}

static void mock_close(struct io_dev *dev)
{
}

static const struct io_dev_ops mock_dev_ops = {
	.pread = mock_pread,
	.pwrite = mock_pwrite,
	.flush = mock_flush,
	.refresh_size = mock_refresh_size,
	.close = mock_close,
};

int io_mock_dev_create(const char *name, u64 size_bytes, u64 max_bytes, bool blockdev,
		       struct io_dev **result)
{
	struct mock_dev *d = calloc(1, sizeof(*d));
	void *bytes = mmap(NULL, max_bytes, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (!d || bytes == MAP_FAILED) {
		free(d);
		return -ENOMEM;
	}
	d->bytes = bytes;
	d->length = size_bytes;
	d->max_bytes = max_bytes;
	d->dev = (struct io_dev){
		.ops = &mock_dev_ops, .path = (char *)name, .fd = -1,
		.ident = { .ino = (uintptr_t)d },
		.block_bytes = MOCK_BLOCK_BYTES, .mem_align_bytes = MOCK_BLOCK_BYTES,
		.blockdev = blockdev, .writable = true, .size_bytes = size_bytes, .private = d,
	};
	*result = &d->dev;
	return 0;
}

void io_mock_dev_destroy(struct io_dev *dev)
{
	struct mock_dev *d = to_mock_dev(dev);

	munmap(d->bytes, d->max_bytes);
	free(d);
}

void *io_mock_dev_bytes(const struct io_dev *dev)
{
	return to_mock_dev(dev)->bytes;
}

void io_mock_dev_resize(struct io_dev *dev, u64 size_bytes)
{
	struct mock_dev *d = to_mock_dev(dev);

	assert(size_bytes <= d->max_bytes);
	if (size_bytes < d->length)
		memset(d->bytes + size_bytes, 0, d->length - size_bytes);
	d->length = size_bytes;
}

/* ---- operations ------------------------------------------------------------------ */

static u64 mock_random(struct mock *m)
{
	u64 x = m->random += 0x9e3779b97f4a7c15ull;

	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
	return x ^ (x >> 31);
}

static void assert_op(const struct io_op *op)
{
	u32 block = op->dev->block_bytes;

	assert(op->done);
	if (op->type == IO_FLUSH)
		return;
	assert(op->len && IS_ALIGNED(op->len, block) && IS_ALIGNED(op->offset, block));
	assert(op->base && IS_ALIGNED((uintptr_t)op->base, op->dev->mem_align_bytes));
}

static bool collides(const struct io_op *a, const struct io_op *b)
{
	return a->dev == b->dev && a->type == IO_WRITE && b->type == IO_WRITE &&
	       ranges_overlap(a->offset, a->len, b->offset, b->len);
}

static void mock_submit(struct io_engine *io, struct io_op *op)
{
	struct mock *m = to_mock(io);
	struct io_op *other;

	assert_op(op);
	log_op(io, op);
	cds_list_for_each_entry(other, &m->pending, node)
		m->collisions += collides(other, op);
	op->done_bytes = m->fail_in && --m->fail_in == 0 ? -m->fail_error : 0;
	cds_list_add_tail(&op->node, &m->pending);
	m->nr_pending++;
}

static int transfer(struct io_op *op)
{
	if (op->type == IO_READ)
		return mock_pread(op->dev, op->base, op->len, op->offset);
	if (op->type == IO_WRITE)
		return mock_pwrite(op->dev, op->base, op->len, op->offset);
	return 0;
}

static struct io_op *pending_op(const struct mock *m, u32 i)
{
	struct io_op *op;

	cds_list_for_each_entry(op, &m->pending, node)
		if (i-- == 0)
			return op;
	assert(!"as many operations are under way");
	return NULL;
}

void io_mock_end(struct io_engine *io, u32 i, int error)
{
	struct mock *m = to_mock(io);
	struct io_op *op = pending_op(m, i);

	if (op->done_bytes)
		error = -(int)op->done_bytes;
	if (!error)
		error = transfer(op);
	op->done_bytes = -error;
	cds_list_del(&op->node);
	cds_list_add_tail(&op->node, &m->ended);
	m->nr_pending--;
}

const struct io_op *io_mock_op(const struct io_engine *io, u32 i)
{
	return pending_op(to_mock(io), i);
}

u32 io_mock_pending(const struct io_engine *io)
{
	return to_mock(io)->nr_pending;
}

void io_mock_order(struct io_engine *io, enum io_mock_order order, u64 seed)
{
	to_mock(io)->order = order;
	to_mock(io)->random = seed;
}

void io_mock_fail(struct io_engine *io, u32 n, int error)
{
	assert(error < 0);
	to_mock(io)->fail_in = n;
	to_mock(io)->fail_error = error;
}

u32 io_mock_collisions(const struct io_engine *io)
{
	return to_mock(io)->collisions;
}

/* ---- descriptors ------------------------------------------------------------------ */

static void mock_poll(struct io_engine *io, struct io_completion *completion, int fd,
		      short events)
{
	struct mock_poll *poll = malloc(sizeof(*poll));

	assert(poll);
	*poll = (struct mock_poll){ .completion = completion, .fd = fd };
	cds_list_add_tail(&poll->node, &to_mock(io)->polls);
}

static void poll_end(struct mock *m, struct mock_poll *poll, int result)
{
	poll->result = result;
	cds_list_move(&poll->node, m->polled.prev);
}

static void mock_cancel(struct io_engine *io, struct io_completion *completion)
{
	struct mock *m = to_mock(io);
	struct mock_poll *poll, *tmp;

	cds_list_for_each_entry_safe(poll, tmp, &m->polls, node)
		if (poll->completion == completion)
			poll_end(m, poll, -ECANCELED);
}

void io_mock_poll_end(struct io_engine *io, int fd, int revents)
{
	struct mock *m = to_mock(io);
	struct mock_poll *poll, *tmp;

	cds_list_for_each_entry_safe(poll, tmp, &m->polls, node)
		if (poll->fd == fd)
			poll_end(m, poll, revents);
}

static int run_polls(struct mock *m)
{
	struct mock_poll *poll, *tmp;
	CDS_LIST_HEAD(polled);
	int n = 0;

	cds_list_splice(&m->polled, &polled);
	CDS_INIT_LIST_HEAD(&m->polled);
	cds_list_for_each_entry_safe(poll, tmp, &polled, node) {
		struct io_completion *completion = poll->completion;
		int result = poll->result;

		free(poll);
		completion->fn(completion, result, 0);
		n++;
	}
	return n;
}

/* ---- running ------------------------------------------------------------------------ */

static void end_by_order(struct mock *m)
{
	u32 n = m->nr_pending;

	if (m->order == IO_MOCK_HOLD || !n)
		return;
	if (m->order == IO_MOCK_SHUFFLE)
		n = mock_random(m) % n + 1;
	while (n--)
		io_mock_end(&m->engine, m->order == IO_MOCK_FIFO ? 0 :
			    mock_random(m) % m->nr_pending, 0);
}

static int run_ended(struct mock *m)
{
	struct io_op *op, *tmp;
	CDS_LIST_HEAD(ended);
	int n = 0;

	cds_list_splice(&m->ended, &ended);
	CDS_INIT_LIST_HEAD(&m->ended);
	cds_list_for_each_entry_safe(op, tmp, &ended, node) {
		int error = -(int)op->done_bytes;

		op->done(op, error); /* it is the submitter's again */
		n++;
	}
	return n;
}

static int mock_run(struct io_engine *io, bool wait, u64 deadline_ns)
{
	struct mock *m = to_mock(io);

	end_by_order(m);
	if (wait && cds_list_empty(&m->ended) && cds_list_empty(&m->polled) &&
	    loop_sleep_begin(io->loop)) {
		if (m->on_wait)
			m->on_wait(m->on_wait_arg);
		else
			m->now_ns = max(m->now_ns, deadline_ns);
		loop_sleep_end(io->loop);
	}
	return run_ended(m) + run_polls(m);
}

void io_mock_on_wait(struct io_engine *io, void (*fn)(void *arg), void *arg)
{
	to_mock(io)->on_wait = fn;
	to_mock(io)->on_wait_arg = arg;
}

static void mock_wake(struct io_engine *io)
{
	__atomic_add_fetch(&to_mock(io)->wakes, 1, __ATOMIC_SEQ_CST);
}

u32 io_mock_wakes(const struct io_engine *io)
{
	return __atomic_load_n(&to_mock(io)->wakes, __ATOMIC_SEQ_CST);
}

static u64 mock_now_ns(struct io_engine *io)
{
	return to_mock(io)->now_ns;
}

void io_mock_advance(struct io_engine *io, u64 ns)
{
	to_mock(io)->now_ns += ns;
}

static void mock_destroy(struct io_engine *io)
{
	struct mock *m = to_mock(io);

	assert(cds_list_empty(&m->pending) && cds_list_empty(&m->ended));
	assert(cds_list_empty(&m->polls) && cds_list_empty(&m->polled));
	free(m->log.chars);
	free(m->taken.chars);
	free(m);
}

static const struct io_engine_ops mock_ops = {
	.submit = mock_submit,
	.run = mock_run,
	.wake = mock_wake,
	.poll = mock_poll,
	.cancel = mock_cancel,
	.now_ns = mock_now_ns,
	.destroy = mock_destroy,
};

int io_mock_engine_create(struct io_engine **result)
{
	struct mock *m = calloc(1, sizeof(*m));

	if (!m)
		return -ENOMEM;
	m->engine.ops = &mock_ops;
	m->now_ns = MOCK_START_NS;
	CDS_INIT_LIST_HEAD(&m->pending);
	CDS_INIT_LIST_HEAD(&m->ended);
	CDS_INIT_LIST_HEAD(&m->polls);
	CDS_INIT_LIST_HEAD(&m->polled);
	*result = &m->engine;
	return 0;
}
