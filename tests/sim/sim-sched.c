// SPDX-License-Identifier: GPL-2.0-or-later
/* All loops of the daemon on one thread, one event at a time, in an order drawn from the seed. */
#include "sim.h"
#include "wrapped-loops.h"

#include <errno.h>
#include <semaphore.h>
#include <time.h>

#define STALL_PERCENT 4u
#define STALL_EVENTS 3000u
#define IDLE_STEPS 1000u
#define STUCK_STEPS 5000000u

/*
 * The linker puts these in the place of the product's (--wrap, see the Makefile):
 * engines, and waiting for a semaphore; threads: wrapped-loops.h.
 */

struct pending {
	struct cds_list_head node;
	struct io_op *op;
	struct io_engine *io;
	struct sim_record *rec; /* of a write */
	u64 submitted_at;
	u64 stalled_until; /* the device holds it back while others pass */
	int error;
};

struct sim_engine {
	struct io_engine engine;
	struct cds_list_head ready; /* struct pending: done, callback to come */
};

u64 sim_time;
void (*sim_watch)(void);
static u64 now_ns = 1000000000ull;
static CDS_LIST_HEAD(pendings);
static u32 nr_pending;
static struct {
	const struct loop *loop;
	u8 *mem;
} kernel_buffers[SIM_MAX_FLIGHT];

void sim_kernel_buffer(u32 slot, const struct loop *loop, u8 *mem)
{
	kernel_buffers[slot].loop = loop;
	kernel_buffers[slot].mem = mem;
}

/* ---- the engine ---------------------------------------------------------------- */

static u8 *memory_of(const struct io_op *op)
{
	if (op->base)
		return op->base;
	if (op->loop != kernel_buffers[op->fixed_index].loop)
		fail("I/O with a kernel buffer of another loop's ring");
	return kernel_buffers[op->fixed_index].mem + op->buf_offset;
}

static void sim_submit(struct io_engine *io, struct io_op *op)
{
	struct pending *p = calloc(1, sizeof(*p));

	p->op = op;
	p->io = io;
	p->submitted_at = ++sim_time;
	if (!sim_judging && chance(STALL_PERCENT))
		p->stalled_until = sim_time + rnd(STALL_EVENTS);
	p->error = sim_fault(op->type);
	if (op->dev->fd < 0)
		fail("I/O on an image that was closed: %s", op->dev->path);
	if (op->type == IO_WRITE)
		p->rec = sim_disk_begin_write(op, memory_of(op));
	cds_list_add_tail(&p->node, &pendings);
	nr_pending++;
}

/* A write that fails may have happened, or not, or in part. */
static void end_failed(struct pending *p, struct sim_disk *d)
{
	if (p->rec)
		sim_disk_tear(d->now, p->rec, (u32[]){ 0, 50, 100 }[rnd(3)]);
	free(p->rec);
	p->rec = NULL;
}

static void end_well(struct pending *p, struct sim_disk *d)
{
	struct io_op *op = p->op;

	if (op->type == IO_READ)
		sim_disk_read(d, memory_of(op), op->len, op->offset);
	else if (op->type == IO_FLUSH)
		sim_disk_flush(d, p->submitted_at);
	else
		sim_disk_end_write(d, p->rec);
	p->rec = NULL;
}

/* The device does the work of @p; its callback comes later. */
static void pending_end(struct pending *p)
{
	struct sim_disk *d = sim_disk_of(p->op->dev);

	if (p->op->type != IO_READ)
		sim_point();
	cds_list_del(&p->node);
	nr_pending--;
	sim_time++;
	if (p->op->type == IO_FLUSH && p->error)
		p->op->dev->flush_failed = 1;
	if (p->op->type == IO_FLUSH && p->op->dev->flush_failed)
		p->error = -EIO;
	if (p->error)
		end_failed(p, d);
	else
		end_well(p, d);
	cds_list_add_tail(&p->node, &container_of(p->io, struct sim_engine, engine)->ready);
}

static struct pending *pick_pending(void)
{
	struct pending *p;
	u32 i = rnd(nr_pending);

	cds_list_for_each_entry(p, &pendings, node)
		if (i-- == 0)
			break;
	return p;
}

static int sim_run(struct io_engine *io, bool wait, u64 deadline_ns)
{
	struct sim_engine *e = container_of(io, struct sim_engine, engine);
	struct pending *p;
	struct io_op *op;
	int error, n = 0;

	while (wait && cds_list_empty(&e->ready) && nr_pending) /* who waits drives it alone */
		pending_end(pick_pending());
	while (!cds_list_empty(&e->ready) && (!n || chance(70))) {
		p = cds_list_first_entry(&e->ready, struct pending, node);
		cds_list_del(&p->node);
		op = p->op;
		error = p->error;
		free(p);
		n++;
		op->done(op, error);
	}
	return n;
}

static void sim_wake(struct io_engine *io)
{
}

static u64 sim_now_ns(struct io_engine *io)
{
	return now_ns;
}

static void sim_destroy(struct io_engine *io)
{
	struct sim_engine *e = container_of(io, struct sim_engine, engine);
	struct pending *p;

	if (!cds_list_empty(&e->ready))
		fail("engine destroyed with completions under way");
	cds_list_for_each_entry(p, &pendings, node)
		if (p->io == io)
			fail("engine destroyed with I/O under way");
	free(e);
}

static const struct io_engine_ops sim_engine_ops = {
	.submit = sim_submit,
	.run = sim_run,
	.wake = sim_wake,
	.now_ns = sim_now_ns,
	.destroy = sim_destroy,
};

int __wrap_io_uring_engine_create(u32 entries, struct io_engine **result);
int __wrap_io_uring_engine_create(u32 entries, struct io_engine **result)
{
	struct sim_engine *e = calloc(1, sizeof(*e));

	e->engine.ops = &sim_engine_ops;
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

void sim_pending_arrive(u32 percent)
{
	struct pending *p;

	cds_list_for_each_entry(p, &pendings, node)
		if (p->rec)
			sim_disk_tear(sim_disk_of(p->op->dev)->now, p->rec, percent);
}

u32 sim_io_under_way(const struct io_dev *dev)
{
	struct pending *p;
	u32 n = 0;

	cds_list_for_each_entry(p, &pendings, node)
		n += p->op->dev == dev;
	return n;
}

/* ---- loops --------------------------------------------------------------------- */

int __real_sem_trywait(sem_t *sem);
int __wrap_sem_wait(sem_t *sem);
int __wrap_sem_timedwait(sem_t *sem, const struct timespec *until);
int __wrap_sem_trywait(sem_t *sem);
int __wrap_nanosleep(const struct timespec *time, struct timespec *left);

struct loop *sim_loop(const char *name)
{
	struct io_engine *io;
	struct loop *loop;

	if (io_uring_engine_create(8, &io) || loop_create(name, io, &loop))
		fail("no loop");
	return loop;
}

void sim_sched_forget(void)
{
	CDS_INIT_LIST_HEAD(&pendings);
	nr_pending = 0;
	nr_wrapped_loops = 0;
}

/* ---- steps --------------------------------------------------------------------- */

static bool quiet(void)
{
	struct sim_engine *e;
	u32 i;

	if (nr_pending)
		return false;
	for (i = 0; i < nr_wrapped_loops; i++) {
		e = container_of(wrapped_loops[i]->io, struct sim_engine, engine);
		if (wrapped_loops[i]->inbox || !cds_list_empty(&e->ready))
			return false;
	}
	return true;
}

static void maybe_end_one(void)
{
	struct pending *p = pick_pending();

	if (p->stalled_until > sim_time && chance(99))
		sim_time++; /* not yet */
	else if (p->op->type != IO_FLUSH || !chance(plan.lazy_flush))
		pending_end(p);
}

bool sim_step(void)
{
	if (quiet()) {
		u64 next = wrapped_loops_deadline();

		if (!next)
			return false;
		now_ns = max(now_ns, next);
	}
	now_ns += plan.step_ns;
	if (nr_pending && !chance(plan.lazy_device))
		maybe_end_one();
	loop_run_once(wrapped_loops[rnd(nr_wrapped_loops)], false);
	if (sim_watch)
		sim_watch();
	return true;
}

void sim_run_until(bool (*is_so)(void *arg), void *arg, const char *what)
{
	u32 steps = 0, idle = 0;

	while (!is_so(arg)) {
		idle = sim_step() ? 0 : idle + 1;
		if (idle > IDLE_STEPS) /* asking makes things happen, too */
			fail("stuck: %s, and nothing is left to happen", what);
		if (++steps > STUCK_STEPS)
			fail("stuck: %s, after many steps", what);
	}
}

static bool sem_is_up(void *arg)
{
	return !__real_sem_trywait(arg);
}

int __wrap_sem_wait(sem_t *sem)
{
	sim_run_until(sem_is_up, sem, "waiting for the target");
	return 0;
}

/* What it waits for comes in the end. */
int __wrap_sem_timedwait(sem_t *sem, const struct timespec *until)
{
	return __wrap_sem_wait(sem);
}

/* Who asks again and again waits, too: all loops must run meanwhile. */
int __wrap_sem_trywait(sem_t *sem)
{
	return __wrap_sem_wait(sem);
}

int __wrap_nanosleep(const struct timespec *time, struct timespec *left)
{
	sim_step();
	return 0;
}
