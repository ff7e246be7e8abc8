// SPDX-License-Identifier: GPL-2.0-or-later
/* A hostile image as the active layer: the whole target serves random I/O on it. */
#include "fuzz.h"
#include "../sim/wrapped-loops.h"

#include <errno.h>
#include <fcntl.h>
#include <qchain/io.h>
#include <qchain/target.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/*
 * The first byte of the input says how many requests follow it, four bytes
 * each; the rest is the image, a real file. All loops of the target run on this
 * thread, I/O is done when it is submitted: what is called __wrap_ here the linker
 * puts in the place of the product's. The base that the image may name is "b" beside
 * it, and it must not change by a byte.
 */
#define MAX_IMAGE_BYTES (256u * 1024u)
#define MAX_FILE_BYTES (64ll * 1024 * 1024)
#define MAX_STEPS 2000000u

struct done {
	struct cds_list_head node;
	struct io_op *op;
	int error;
};

struct now_engine {
	struct io_engine engine;
	struct cds_list_head done; /* struct done: callback to come */
};

static u64 now_ns = 1000000000ull;
static bool base_made;

static int do_io(struct io_op *op)
{
	ssize_t n = 0;

	if (op->type == IO_FLUSH)
		return 0;
	if (op->type == IO_WRITE) {
		if (!op->dev->writable)
			abort();
		/* a sparse file may claim offsets that no device here has */
		if (op->offset + op->len > (u64)MAX_FILE_BYTES)
			return -ENOSPC;
		n = pwrite(op->dev->fd, op->base, op->len, op->offset);
		return n == op->len ? 0 : -EIO;
	}
	n = pread(op->dev->fd, op->base, op->len, op->offset);
	if (n < 0)
		return -errno;
	memset((u8 *)op->base + n, 0, op->len - n);
	return 0;
}

void __wrap_io_submit(struct loop *loop, struct io_op *op);
void __wrap_io_submit(struct loop *loop, struct io_op *op)
{
	struct done *d = malloc(sizeof(*d));

	op->loop = loop;
	d->op = op;
	d->error = do_io(op);
	cds_list_add_tail(&d->node, &container_of(loop->io, struct now_engine, engine)->done);
}

static int now_run(struct io_engine *io, bool wait, u64 deadline_ns)
{
	struct now_engine *e = container_of(io, struct now_engine, engine);
	struct done *d;
	int n;

	for (n = 0; !cds_list_empty(&e->done); n++) {
		struct io_op *op;
		int error;

		d = cds_list_first_entry(&e->done, struct done, node);
		cds_list_del(&d->node);
		op = d->op;
		error = d->error;
		free(d);
		op->done(op, error);
	}
	return n;
}

static void now_wake(struct io_engine *io)
{
}

static u64 now_now_ns(struct io_engine *io)
{
	return now_ns;
}

static void now_destroy(struct io_engine *io)
{
	free(container_of(io, struct now_engine, engine));
}

static const struct io_engine_ops now_ops = {
	.run = now_run,
	.wake = now_wake,
	.now_ns = now_now_ns,
	.destroy = now_destroy,
};

int __wrap_io_uring_engine_create(u32 entries, struct io_engine **result);
int __wrap_io_uring_engine_create(u32 entries, struct io_engine **result)
{
	struct now_engine *e = calloc(1, sizeof(*e));

	e->engine.ops = &now_ops;
	CDS_INIT_LIST_HEAD(&e->done);
	*result = &e->engine;
	return 0;
}

int __real_sem_trywait(sem_t *sem);
int __wrap_sem_wait(sem_t *sem);

/* One event on each loop; when there is none, time goes on to the next timer. */
static void step(void)
{
	u32 i, n = 0;

	for (i = 0; i < nr_wrapped_loops; i++)
		n += loop_run_once(wrapped_loops[i], false);
	if (!n)
		now_ns = max(now_ns, wrapped_loops_deadline());
}

int __wrap_sem_wait(sem_t *sem)
{
	u32 steps;

	for (steps = 0; __real_sem_trywait(sem); steps++) {
		if (steps > MAX_STEPS) {
			fprintf(stderr, "the target does not stop\n");
			abort();
		}
		step();
	}
	return 0;
}

/* Who asks again and again waits, too. */
int __wrap_sem_trywait(sem_t *sem);
int __wrap_sem_trywait(sem_t *sem)
{
	return __wrap_sem_wait(sem);
}

/* ---- the guest -------------------------------------------------------------------- */

static u32 in_flight;

static void guest_end_io(struct request *req, int error)
{
	in_flight--;
	free(req->status);
	free(req->base);
	free(req);
}

static const struct request_ops guest_ops = { .end_io = guest_end_io };

static void submit(struct loop *loop, void *arg)
{
	target_submit(((struct request *)arg)->target, arg);
}

static void guest(struct target *ti, struct loop *queue, const u8 what[4])
{
	static const u8 types[] = { REQ_READ, REQ_WRITE, REQ_WRITE, REQ_FLUSH, REQ_DISCARD,
				    REQ_WRITE_ZEROES, REQ_BLOCK_STATUS, REQ_READ };
	u32 block = ti->limits.logical_block ? ti->limits.logical_block : 512;
	struct request *req = calloc(1, sizeof(*req));
	u64 blocks = ti->size_bytes / block;

	if (!blocks) {
		free(req);
		return;
	}
	req->ops = &guest_ops;
	req->loop = queue;
	req->target = ti;
	req->op = types[what[0] % 8];
	req->flags = what[0] >> 3 & (REQ_FUA | REQ_NOUNMAP);
	req->offset = (what[1] * 0x0101ull + what[2] * blocks / 256) % blocks * block;
	req->len = min((u64)(what[3] % 64 + 1) * block, ti->size_bytes - req->offset);
	if (req->op == REQ_FLUSH)
		req->offset = req->len = 0;
	if (req->op == REQ_READ || req->op == REQ_WRITE) {
		req->base = io_alloc(req->len);
		memset(req->base, what[1] | 1, req->len);
	}
	if (req->op == REQ_BLOCK_STATUS) {
		req->status_max = 16;
		req->status = calloc(req->status_max, sizeof(*req->status));
	}
	in_flight++;
	loop_call(queue, submit, req);
}

/* ---- one input -------------------------------------------------------------------- */

static const u8 base_bytes[64 * 1024] = "what the base holds";

static void check_base(void)
{
	static u8 now[sizeof(base_bytes) + 1];
	int fd = open(fuzz_path("b"), O_RDONLY | O_CLOEXEC);

	if (read(fd, now, sizeof(now)) != sizeof(base_bytes) ||
	    memcmp(now, base_bytes, sizeof(base_bytes))) {
		fprintf(stderr, "the base has changed\n");
		abort();
	}
	close(fd);
}

static void run(struct target *ti, const u8 *requests, u32 nr)
{
	struct io_engine *io;
	struct loop *queue;
	u32 i, steps = 0;

	io_uring_engine_create(8, &io);
	if (loop_create("queue", io, &queue) || target_attach(ti, queue))
		abort();
	for (i = 0; i < nr; i++) {
		guest(ti, queue, requests + 4 * i);
		if (requests[4 * i] & 0x80)
			step();
	}
	while (in_flight) {
		step();
		/* what waits for space waits for ever here: the file does not grow */
		if (++steps == MAX_STEPS / 2)
			target_presuspend(ti);
		if (steps > MAX_STEPS) {
			fprintf(stderr, "%u requests do not end\n", in_flight);
			abort();
		}
	}
	target_detach(ti, queue);
	loop_stop(queue);
	target_destroy(ti);
	loop_destroy(queue);
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t size)
{
	char top[128];
	char *argv[] = { top, "cache-size=64K", "on-full=fail" };
	struct qc_err err = { 0 };
	struct target *ti;
	u32 nr = size ? data[0] % 32 : 0;

	if (size < 1 + 4 * nr + 104 || size > MAX_IMAGE_BYTES)
		return 0;
	if (!base_made) {
		fuzz_file("b", base_bytes, sizeof(base_bytes));
		base_made = true;
	}
	fuzz_file("top", data + 1 + 4 * nr, size - 1 - 4 * nr);
	snprintf(top, sizeof(top), "%s", fuzz_path("top"));
	nr_wrapped_loops = 0;
	if (target_create("qcow2-chain", 3, argv, &ti, &err)) {
		if (!err.msg[0])
			abort(); /* a refusal without a reason */
		return 0;
	}
	run(ti, data + 1, nr);
	check_base();
	return 0;
}
