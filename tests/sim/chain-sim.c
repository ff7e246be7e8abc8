// SPDX-License-Identifier: GPL-2.0-or-later
/* The qcow2-chain target on a simulated disk and a simulated scheduler, by seed. */
#include <errno.h>
#include <fcntl.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/*
 * All loops of the daemon run on this one thread, one event at a time, in an
 * order drawn from the seed. Images are files, made by qemu-img; the active
 * layer's writes go through a volatile cache that reorders, tears and loses
 * what was not flushed. At random moments the disk is cut: qemu-img must find
 * no error in what is left, and every sector must hold what rule A1 allows.
 *
 *   chain-sim FIRST-SEED COUNT [FOLDER] [verbose]
 */

#include "sim-shim.h"

#define SIM_BLOCK 512u
#define MAX_DISK (96u * 1024u * 1024u)
#define MAX_FLIGHT 32u
#define MAX_OPS 4000u
#define NR_QUEUES 2u
#define MAX_SIM_LOOPS 8u

static u64 sim_random;
static u64 sim_now = 1000000000ull;
static u64 sim_time; /* counts events */
static bool verbose;
static u64 sim_seed;
static char folder[256] = "/dev/shm";
static struct loop *sim_loops[MAX_SIM_LOOPS];
static u32 nr_sim_loops;

static u64 rnd(u64 n)
{
	u64 x = sim_random += 0x9e3779b97f4a7c15ull;

	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
	x ^= x >> 31;
	return n ? x % n : 0;
}

static bool chance(u32 percent)
{
	return rnd(100) < percent;
}

static void fail(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));
static void fail(const char *fmt, ...)
{
	va_list args;

	printf("FAIL seed %llu: ", (unsigned long long)sim_seed);
	va_start(args, fmt);
	vprintf(fmt, args);
	va_end(args);
	printf("\n");
	fflush(stdout);
	_exit(1);
}

static int sh(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static int sh(const char *fmt, ...)
{
	char cmd[2048];
	va_list args;
	int ret;

	va_start(args, fmt);
	vsnprintf(cmd, sizeof(cmd), fmt, args);
	va_end(args);
	if (verbose)
		printf("$ %s\n", cmd);
	fflush(stdout);
	ret = system(cmd);
	return WIFEXITED(ret) ? WEXITSTATUS(ret) : -1;
}

#ifdef QCHAIN_MUTANTS
int qchain_mutant;
#endif

/* ---- the disk ---------------------------------------------------------------- */

struct record {
	struct cds_list_head node; /* in order of completion */
	u64 offset;
	u32 len;
	bool completed;
	u64 completed_at;
	u8 data[];
};

struct pending {
	struct cds_list_head node;
	struct io_op *op;
	struct io_engine *io;
	struct record *rec; /* of a write to the active layer */
	u64 submitted_at;
	u64 stalled_until; /* the device holds it back while others pass */
	int error;
};

struct sim_engine {
	struct io_engine engine;
	struct cds_list_head ready; /* struct pending: done, callback to come */
};

static struct io_dev *disk; /* the active layer's */
static u8 *durable;
static CDS_LIST_HEAD(records);
static CDS_LIST_HEAD(pendings);
static u32 nr_pending;
static u8 *kernel_buffers[MAX_FLIGHT];
static u32 collisions;
static u64 fail_at; /* the n-th I/O on the disk fails */
static u32 fail_kind; /* 0 any, 1 write, 2 read, 3 flush */
static u32 fail_count;
static u64 nr_disk_ios;
static u64 lv_size;
static u32 nr_cuts;
static bool faults;

#include "sim-takeover.h"

static void sim_submit(struct io_engine *io, struct io_op *op)
{
	struct pending *p = calloc(1, sizeof(*p));
	struct pending *other;

	p->op = op;
	p->io = io;
	p->submitted_at = ++sim_time;
	if (chance(4))
		p->stalled_until = sim_time + rnd(3000);
	if (op->dev == disk) {
		bool kind = fail_kind == 0 || (fail_kind == 1 && op->type == IO_WRITE) ||
			    (fail_kind == 2 && op->type == IO_READ) ||
			    (fail_kind == 3 && op->type == IO_FLUSH);

		if (kind)
			nr_disk_ios++;
		if (fail_at && kind && nr_disk_ios >= fail_at && nr_disk_ios < fail_at + fail_count)
			p->error = -EIO;
	}
	if (op->type == IO_WRITE) {
		u8 *from = op->base ? op->base : kernel_buffers[op->fixed_index] + op->buf_offset;

		if (succeeding)
			disk = op->dev; /* replay has one of its own */
		if (op->dev != disk)
			fail("write to an image that is not the active layer");
		if (op->offset + op->len > MAX_DISK)
			fail("write beyond the simulated disk: %llu",
			     (unsigned long long)op->offset);
		if (disk->blockdev && op->offset + op->len > disk->size_bytes)
			fail("write beyond the end of the device: %llu+%u",
			     (unsigned long long)op->offset, op->len);
		if ((op->offset | op->len) % SIM_BLOCK)
			fail("unaligned write");
		cds_list_for_each_entry (other, &pendings, node)
			if (other->rec && ranges_overlap(other->rec->offset, other->rec->len,
							 op->offset, op->len))
				collisions++;
		p->rec = malloc(sizeof(*p->rec) + op->len);
		p->rec->offset = op->offset;
		p->rec->len = op->len;
		p->rec->completed = false;
		memcpy(p->rec->data, from, op->len);
	}
	cds_list_add_tail(&p->node, &pendings);
	nr_pending++;
}

void io_submit(struct loop *loop, struct io_op *op)
{
	op->loop = loop;
	loop->io->ops->submit(loop->io, op);
}

static void disk_flush(u64 submitted_at)
{
	struct record *r, *tmp;

	cds_list_for_each_entry_safe (r, tmp, &records, node) {
		if (r->completed_at > submitted_at)
			continue;
		memcpy(durable + r->offset, r->data, r->len);
		cds_list_del(&r->node);
		free(r);
	}
}

/* The device does the work of @p; its callback comes later. */
static void pending_end(struct pending *p)
{
	struct io_op *op = p->op;
	u8 *mem = op->base;

	if (!mem && op->type != IO_FLUSH)
		mem = kernel_buffers[op->fixed_index] + op->buf_offset;
	cds_list_del(&p->node);
	nr_pending--;
	sim_time++;
	if (p->error) {
		if (p->rec) /* may have happened, or not */
			chance(50) ? (void)0 : (free(p->rec), p->rec = NULL, (void)0);
	}
	if (op->type == IO_READ && !p->error) {
		ssize_t n = pread(op->dev->fd, mem, op->len, op->offset);

		if (n < 0)
			fail("pread: %s", strerror(errno));
		memset(mem + n, 0, op->len - n);
	} else if (op->type == IO_FLUSH && !p->error) {
		if (op->dev == disk)
			disk_flush(p->submitted_at);
	} else if (p->rec) {
		p->rec->completed = true;
		p->rec->completed_at = sim_time;
		if (pwrite(op->dev->fd, p->rec->data, op->len, op->offset) != op->len)
			fail("pwrite: %s", strerror(errno));
		cds_list_add_tail(&p->rec->node, &records);
		p->rec = NULL;
	}
	cds_list_add_tail(&p->node, &container_of(p->io, struct sim_engine, engine)->ready);
}

static void end_one(void)
{
	struct pending *p;
	u32 i = rnd(nr_pending);

	cds_list_for_each_entry (p, &pendings, node)
		if (i-- == 0)
			break;
	pending_end(p);
}

static int sim_run(struct io_engine *io, bool wait, u64 deadline_ns)
{
	struct sim_engine *e = container_of(io, struct sim_engine, engine);
	struct pending *p;
	int n = 0;

	while (wait && cds_list_empty(&e->ready) && nr_pending) { /* who waits drives it alone */
		if (dies_after && !--dies_after)
			_exit(EXIT_DIED);
		end_one();
	}
	while (!cds_list_empty(&e->ready) && (!n || chance(70))) {
		struct io_op *op;
		int error;

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
	return sim_now;
}

static void sim_destroy(struct io_engine *io)
{
	struct sim_engine *e = container_of(io, struct sim_engine, engine);
	struct pending *p;

	if (!cds_list_empty(&e->ready))
		fail("engine destroyed with completions under way");
	cds_list_for_each_entry (p, &pendings, node)
		if (p->io == io)
			fail("engine destroyed with I/O under way");
	free(e);
}

static const struct io_engine_ops sim_ops = {
	.submit = sim_submit,
	.run = sim_run,
	.wake = sim_wake,
	.now_ns = sim_now_ns,
	.destroy = sim_destroy,
};

int io_uring_engine_create(u32 entries, struct io_engine **result)
{
	struct sim_engine *e = calloc(1, sizeof(*e));

	e->engine.ops = &sim_ops;
	CDS_INIT_LIST_HEAD(&e->ready);
	*result = &e->engine;
	return 0;
}

/* ---- loops ---------------------------------------------------------------------- */


int loop_create(const char *name, struct io_engine *io_owned, struct loop **result)
{
	int ret = real_loop_create(name, io_owned, result);

	if (!ret)
		sim_loops[nr_sim_loops++] = *result;
	return ret;
}

void loop_destroy(struct loop *loop)
{
	u32 i, n = 0;

	for (i = 0; i < nr_sim_loops; i++)
		if (sim_loops[i] != loop)
			sim_loops[n++] = sim_loops[i];
	nr_sim_loops = n;
	real_loop_destroy(loop);
}

int loop_start(struct loop *loop, int cpu)
{
	return 0;
}

void loop_stop(struct loop *loop)
{
	while (loop_run_once(loop, false))
		;
}

static bool quiet(void)
{
	u32 i;

	if (nr_pending)
		return false;
	for (i = 0; i < nr_sim_loops; i++)
		if (sim_loops[i]->inbox ||
		    !cds_list_empty(
			    &container_of(sim_loops[i]->io, struct sim_engine, engine)->ready))
			return false;
	return true;
}

static u64 next_deadline(void)
{
	u64 next = 0;
	u32 i;

	for (i = 0; i < nr_sim_loops; i++) {
		struct loop_timer *t = first_timer(sim_loops[i]);

		if (t && (!next || t->deadline_ns < next))
			next = t->deadline_ns;
	}
	return next;
}

static u32 lazy_device; /* percent of steps in which no I/O ends */
static u32 lazy_flush; /* ... not even when a flush was picked */

static bool sim_step(void)
{
	struct pending *p;
	u32 i;

	if (quiet()) {
		u64 next = next_deadline();

		if (!next)
			return false;
		sim_now = max(sim_now, next);
	}
	sim_now += 1000;
	if (nr_pending && !chance(lazy_device)) {
		i = rnd(nr_pending);
		cds_list_for_each_entry (p, &pendings, node)
			if (i-- == 0)
				break;
		if (p->stalled_until > sim_time && chance(99))
			sim_time++; /* not yet */
		else if (p->op->type != IO_FLUSH || !chance(lazy_flush))
			pending_end(p);
	}
	loop_run_once(sim_loops[rnd(nr_sim_loops)], false);
	return true;
}

static int sim_sem_wait(sem_t *sem)
{
	u64 steps = 0;

	while (sem_trywait(sem)) {
		sim_step();
		if (++steps > 3000000)
			fail("stuck: waiting for the target to stop");
	}
	return 0;
}

/* ---- what the guest does, and what it may see ----------------------------------------- */

struct gop {
	struct request req;
	struct cds_list_head free_node;
	u32 id;
	u64 offset;
	u32 len;
	u8 op;
	u8 flags;
	u64 submitted_at;
	u64 read_check; /* reads: time of submission */
	u8 *mem;
	u32 slot;
};

struct done_op {
	u64 offset;
	u64 len;
	u64 submit;
	u64 done; /* 0: under way */
	u64 durable; /* 0: not */
	u8 op;
	bool error;
};

static struct done_op ops[MAX_OPS];
static u32 nr_ops;
static u8 *initial;
static u64 guest_bytes;
static struct target *ti;
static struct loop *queues[NR_QUEUES];
static u32 in_flight;
static u32 slots_used[MAX_FLIGHT];
static u32 granule_bytes;
static u32 nr_errors;

static void tag_sector(u8 *to, u32 id, u64 sector)
{
	u64 word = ((u64)id << 40 | sector << 8 | 0x5a) ^ (sim_seed << 52);
	u32 i;

	for (i = 0; i < SIM_BLOCK / 8; i++)
		memcpy(to + i * 8, &word, 8);
}

/* Which operation's content is @data? -1: nobody's. 0: the initial content. */
static bool content_is(const u8 *data, u32 id, u64 sector)
{
	static const u8 zero[SIM_BLOCK];
	u8 want[SIM_BLOCK];

	if (id == 0)
		return !memcmp(data, initial + sector * SIM_BLOCK, SIM_BLOCK);
	if (ops[id].op != REQ_WRITE)
		return !memcmp(data, zero, SIM_BLOCK);
	tag_sector(want, id, sector);
	return !memcmp(data, want, SIM_BLOCK);
}

/*
 * May @sector hold @data? Read: @until the submission of the read, @durable
 * false. Cut: what is superseded by something durable must not show.
 */
static bool allowed(const u8 *data, u64 sector, u64 until, bool power_cut)
{
	u64 at = sector * SIM_BLOCK;
	u32 v, w;

	for (v = 0; v <= nr_ops; v++) {
		bool superseded = false;

		if (v && (ops[v].op == REQ_READ || ops[v].op == REQ_FLUSH || at < ops[v].offset ||
			  at >= ops[v].offset + ops[v].len))
			continue;
		if (!content_is(data, v, sector))
			continue;
		for (w = 1; w <= nr_ops && !superseded; w++) {
			if (w == v || (ops[w].op != REQ_WRITE && ops[w].op != REQ_WRITE_ZEROES) ||
			    at < ops[w].offset || at >= ops[w].offset + ops[w].len)
				continue;
			if (ops[w].error || !ops[w].done)
				continue;
			if (v && (!ops[v].done || ops[v].done > ops[w].submit))
				continue; /* side by side */
			superseded = power_cut ? ops[w].durable && ops[w].durable <= until
					       : ops[w].done < until;
		}
		if (!superseded)
			return true;
	}
	return false;
}

static void say_sector(u64 sector, const u8 *data)
{
	u64 at = sector * SIM_BLOCK;
	u32 v;

	printf("sector %llu holds:", (unsigned long long)sector);
	for (v = 0; v <= nr_ops; v++)
		if ((!v || (at >= ops[v].offset && at < ops[v].offset + ops[v].len &&
			    ops[v].op != REQ_READ && ops[v].op != REQ_FLUSH)) &&
		    content_is(data, v, sector))
			printf(" op %u", v);
	printf("; raw %02x%02x%02x%02x%02x%02x%02x%02x\n", data[0], data[1], data[2], data[3],
	       data[4], data[5], data[6], data[7]);
	for (v = 1; v <= nr_ops; v++)
		if (at >= ops[v].offset && at < ops[v].offset + ops[v].len &&
		    ops[v].op != REQ_READ && ops[v].op != REQ_FLUSH)
			printf("  op %u type %u %llu+%llu submit %llu done %llu durable %llu%s\n",
			       v, ops[v].op, (unsigned long long)ops[v].offset,
			       (unsigned long long)ops[v].len, (unsigned long long)ops[v].submit,
			       (unsigned long long)ops[v].done, (unsigned long long)ops[v].durable,
			       ops[v].error ? " error" : "");
}

static void check_content(const u8 *data, u64 offset, u64 len, u64 until, bool cut,
			  const char *what)
{
	u64 s;

	for (s = 0; s < len / SIM_BLOCK; s++)
		if (!allowed(data + s * SIM_BLOCK, offset / SIM_BLOCK + s, until, cut)) {
			say_sector(offset / SIM_BLOCK + s, data + s * SIM_BLOCK);
			fail("%s: foreign or lost content at guest sector %llu", what,
			     (unsigned long long)(offset / SIM_BLOCK + s));
		}
}

static void guest_end_io(struct request *req, int error)
{
	struct gop *g = container_of(req, struct gop, req);
	struct done_op *o = &ops[g->id];
	u32 i;

	if (error && verbose)
		printf("op %u error %d\n", g->id, error);
	if (error && !faults)
		fail("op %u type %u at %llu+%u: error %d", g->id, g->op,
		     (unsigned long long)g->offset, g->len, error);
	nr_errors += error != 0;
	o->error = error != 0;
	o->done = ++sim_time;
	if (!error && g->flags & REQ_FUA)
		o->durable = sim_time;
	if (!error && g->op == REQ_FLUSH)
		for (i = 1; i <= nr_ops; i++)
			if (ops[i].done && ops[i].done < g->submitted_at && !ops[i].error &&
			    !ops[i].durable)
				ops[i].durable = sim_time;
	if (!error && g->op == REQ_READ)
		check_content(g->mem, g->offset, g->len, g->submitted_at, false, "read");
	slots_used[g->slot] = 0;
	in_flight--;
	free(g->mem);
	free(g);
}

static int guest_copy_from(struct request *req, u32 offset, void *buf, u32 len)
{
	memcpy(buf, container_of(req, struct gop, req)->mem + offset, len);
	return 0;
}

static int guest_copy_to(struct request *req, u32 offset, const void *buf, u32 len)
{
	memcpy(container_of(req, struct gop, req)->mem + offset, buf, len);
	return 0;
}

static const struct request_ops guest_ops = {
	.end_io = guest_end_io,
	.copy_from = guest_copy_from,
	.copy_to = guest_copy_to,
};

static u64 hot_start;
static u32 trim_percent;

static void draw_range(struct gop *g)
{
	u64 sectors = guest_bytes / SIM_BLOCK;
	u64 most = chance(80) ? 64 : 1024;

	if (g->op == REQ_DISCARD || g->op == REQ_WRITE_ZEROES)
		most = chance(80) ? 300 : 4096;
	g->len = 1 + rnd(min(most, sectors));
	g->offset = chance(70) ? (hot_start + rnd(512)) % sectors : rnd(sectors);
	if (chance(30))
		g->offset = ALIGN_DOWN(g->offset, 8);
	if (g->op == REQ_DISCARD || g->op == REQ_WRITE_ZEROES)
		if (chance(50)) {
			g->offset = ALIGN_DOWN(g->offset, granule_bytes / SIM_BLOCK);
			g->len = ALIGN_UP(g->len, granule_bytes / SIM_BLOCK);
		}
	g->len = min((u64)g->len, sectors - g->offset);
	if (g->op == REQ_READ || g->op == REQ_WRITE)
		g->len = min(g->len, 2048u);
	g->offset *= SIM_BLOCK;
	g->len *= SIM_BLOCK;
	if (g->op == REQ_FLUSH)
		g->len = g->offset = 0;
}

static void guest_submit(struct loop *loop, void *arg)
{
	struct gop *g = arg;
	u32 roll = rnd(100), i;

	g->id = ++nr_ops;
	g->op = roll < 45		       ? REQ_WRITE
		: roll < 65		       ? REQ_READ
		: roll < 72		       ? REQ_FLUSH
		: roll < 72 + trim_percent     ? REQ_DISCARD
		: roll < 72 + 2 * trim_percent ? REQ_WRITE_ZEROES
					       : REQ_WRITE;
	draw_range(g);
	g->flags = g->op != REQ_READ && g->op != REQ_FLUSH && chance(12) ? REQ_FUA : 0;
	if (g->op == REQ_WRITE_ZEROES && chance(40))
		g->flags |= REQ_NOUNMAP;
	while (slots_used[g->slot])
		g->slot++;
	slots_used[g->slot] = 1;
	if (g->op == REQ_READ || g->op == REQ_WRITE)
		g->mem = io_alloc(g->len);
	for (i = 0; g->op == REQ_WRITE && i < g->len / SIM_BLOCK; i++)
		tag_sector(g->mem + i * SIM_BLOCK, g->id, g->offset / SIM_BLOCK + i);
	g->submitted_at = ++sim_time;
	ops[g->id] = (struct done_op){
		.offset = g->offset, .len = g->len, .op = g->op, .submit = g->submitted_at};
	if (verbose)
		printf("op %u type %u flags %u %llu+%u\n", g->id, g->op, g->flags,
		       (unsigned long long)g->offset, g->len);
	kernel_buffers[g->slot] = g->mem;
	g->req = (struct request){.ops = &guest_ops,
				  .loop = loop,
				  .offset = g->offset,
				  .len = g->len,
				  .op = g->op,
				  .flags = g->flags,
				  .base = chance(30) ? NULL : g->mem,
				  .fixed_index = g->slot};
	in_flight++;
	target_submit(ti, &g->req);
}

/* ---- cutting ------------------------------------------------------------------------------- */

static void cut_range(u8 *img, const struct record *r, u32 percent)
{
	u32 s;

	for (s = 0; s < r->len; s += SIM_BLOCK)
		if (chance(percent))
			memcpy(img + r->offset + s, r->data + s, SIM_BLOCK);
}

static void write_cut(const u8 *img, u64 bytes)
{
	char path[320];
	int fd;

	snprintf(path, sizeof(path), "%s/cut.qcow2", folder);
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	if (fd < 0 || write(fd, img, bytes) != (ssize_t)bytes)
		fail("%s: %s", path, strerror(errno));
	close(fd);
}

static u8 *read_raw_copy(const char *from)
{
	static u8 *buf;
	char path[320];
	int fd;

	if (!buf)
		buf = malloc(MAX_DISK);
	if (sh("qemu-img convert -U -O raw %s/%s %s/cut.raw >>%s/log 2>&1", folder, from, folder,
	       folder))
		fail("qemu-img convert %s", from);
	snprintf(path, sizeof(path), "%s/cut.raw", folder);
	fd = open(path, O_RDONLY);
	memset(buf, 0, guest_bytes);
	if (fd < 0 || read(fd, buf, guest_bytes) < 0)
		fail("%s: %s", path, strerror(errno));
	close(fd);
	return buf;
}

/* @power: what was not flushed may be lost; else the daemon alone has died. */
static void cut(bool power)
{
	static u8 *img;
	u32 percent = power ? (u32[]){0, 15, 50, 85, 100}[rnd(5)] : 100;
	u32 under_way = (u32[]){0, 50, 100}[rnd(3)];
	struct record *r;
	struct pending *p;
	struct stat st;
	int ret;

	if (!img)
		img = malloc(MAX_DISK);
	fstat(disk->fd, &st);
	memcpy(img, durable, st.st_size);
	cds_list_for_each_entry (r, &records, node)
		cut_range(img, r, percent);
	cds_list_for_each_entry (p, &pendings, node)
		if (p->rec)
			cut_range(img, p->rec, under_way);
	write_cut(img, st.st_size);
	ret = sh("qemu-img check -U %s/cut.qcow2 >%s/check 2>&1", folder, folder);
	if (ret != 0 && ret != 3) {
		sh("grep -a -B3 -A3 ERROR %s/check | head -20", folder);
		fail("%s cut %u at %llu: qemu-img check says %d", power ? "power" : "death",
		     nr_cuts, (unsigned long long)sim_time, ret);
	}
	if (!power && sim_log == SIM_LOG)
		take_over();
	check_content(read_raw_copy("cut.qcow2"), 0, guest_bytes, sim_time,
		      power || sim_log == SIM_MAY_LOSE, power ? "power cut" : "death");
	nr_cuts++;
}

#include "sim-images.h"

/* ---- a case ------------------------------------------------------------------ */

static void draw_plan(struct plan *p)
{
	static const u32 clusters[] = {512, 512, 1024, 4096, 16384, 65536};

	p->cluster = clusters[rnd(ARRAY_SIZE(clusters))];
	p->extl2 = p->cluster >= 16384 && chance(60);
	p->v2 = !p->extl2 && chance(15);
	p->backing = chance(60);
	p->snapshot = chance(35);
	p->compressed = chance(40);
	p->refcount_bits = p->v2 ? 16 : 8u << rnd(4);
	p->size = (p->cluster <= 1024 ? 2 * MiB : 6 * MiB) + rnd(64) * 512;
	p->lv = chance(60);
	p->small_lv = p->lv && chance(40);
	p->unclean = chance(50);
	p->cache_kib = (u32[]){1, 16, 4096}[rnd(3)];
	p->nr_ops = 60 + rnd(240);
	p->cuts = 6;
	faults = chance(25);
	fail_at = faults ? 1 + rnd(400) : 0;
	fail_kind = rnd(4);
	fail_count = chance(60) ? 1 : chance(50) ? 4 : 1000000;
	if (fail_kind == 3 && faults)
		fail_at = 1 + rnd(60);
	trim_percent = (u32[]){0, 4, 12}[rnd(3)];
	lazy_device = (u32[]){0, 20, 70}[rnd(3)];
	lazy_flush = (u32[]){0, 60, 90}[rnd(3)];
	sim_log = chance(60) ? SIM_LOG : chance(60) ? SIM_MAY_LOSE : SIM_LATE;
	granule_bytes = p->extl2 ? p->cluster / 32 : p->cluster;
}

static s64 lv_refresh_size(struct io_dev *dev)
{
	__atomic_store_n(&dev->size_bytes, lv_size, __ATOMIC_RELAXED);
	if (ftruncate(dev->fd, lv_size))
		fail("ftruncate: %s", strerror(errno));
	return lv_size;
}

static struct io_dev_ops lv_ops;
static bool lived; /* an earlier life of the image has ended */

static void become_lv(const struct plan *p)
{
	struct stat st;

	fstat(disk->fd, &st);
	lv_size = ALIGN_UP(st.st_size, p->cluster);
	if (!p->unclean || !lived)
		lv_size += p->small_lv ? ALIGN_DOWN(rnd(MiB), 4096) : 40 * MiB;
	lv_ops = *disk->ops;
	lv_ops.refresh_size = lv_refresh_size;
	disk->ops = &lv_ops;
	disk->blockdev = true;
	lv_refresh_size(disk);
}

static void start(const struct plan *p)
{
	char top[300], cache[64], log[320];
	char *argv[] = {top, cache, log, SIM_TAG, "log-replay=off"};
	struct qc_err err = {0};
	struct io_engine *io;
	struct stat st;
	u32 i;

	snprintf(top, sizeof(top), "%s/top.qcow2", folder);
	snprintf(cache, sizeof(cache), "cache-size=%uK", p->cache_kib);
	snprintf(log, sizeof(log), "intent-log=%s/log.intent", folder);
	if (sim_log == SIM_MAY_LOSE)
		snprintf(log, sizeof(log), "may-lose=on");
	if (target_create("qcow2-chain", sim_log == SIM_LATE ? 2 : 5, argv, &ti, &err))
		fail("target_create: %s", err.msg);
	disk = ((struct chain_target *)ti->private)->chain->layers[0].img->dev;
	if (p->lv)
		become_lv(p);
	for (i = 0; i < NR_QUEUES; i++) {
		io_uring_engine_create(8, &io);
		loop_create("queue", io, &queues[i]);
		if (target_attach(ti, queues[i]))
			fail("attach");
	}
	fstat(disk->fd, &st);
	memset(durable, 0, MAX_DISK);
	if (pread(disk->fd, durable, st.st_size, 0) != st.st_size)
		fail("read");
}

static void submit_one(void)
{
	struct gop *g = calloc(1, sizeof(*g));

	loop_call(queues[rnd(NR_QUEUES)], guest_submit, g);
}

static void run_guest(const struct plan *p)
{
	u64 steps = 0, cut_every = p->nr_ops / (p->cuts + 1) + 1;
	u32 submitted = 0, next_cut = cut_every + rnd(10);
	u32 window = (u32[]){1, 8, 30}[rnd(3)];

	hot_start = rnd(guest_bytes / SIM_BLOCK);
	while (submitted < p->nr_ops || in_flight) {
		bool idle;

		if (submitted < p->nr_ops && in_flight < window && chance(40)) {
			submit_one();
			submitted++;
		}
		if (submitted >= next_cut && chance(5)) {
			cut(chance(50));
			next_cut = submitted + cut_every;
		}
		idle = !sim_step();
		if (p->small_lv && chance(1) && chance(20))
			lv_size += ALIGN_DOWN(rnd(512 * KiB), 4096);
		if (idle && in_flight && submitted >= p->nr_ops)
			fail("stuck: %u requests, nothing under way", in_flight);
		if (++steps > 20000000)
			fail("stuck: %u requests after many steps, %u I/O", in_flight, nr_pending);
	}
}

#include "sim-life.h"

static void stop(const struct plan *p)
{
	u32 i;
	int ret;

	for (i = 0; i < NR_QUEUES; i++) {
		target_detach(ti, queues[i]);
		loop_stop(queues[i]);
	}
	target_destroy(ti);
	for (i = 0; i < NR_QUEUES; i++)
		loop_destroy(queues[i]);
	ret = sh("qemu-img check %s/top.qcow2 >%s/check 2>&1", folder, folder);
	if (ret != 0 && !(ret == 3 && may_leak(p))) {
		sh("head -5 %s/check", folder);
		fail("stopped: qemu-img check says %d", ret);
	}
	if (!faults || !nr_errors)
		check_content(read_raw_copy("top.qcow2"), 0, guest_bytes, sim_time + 1, false,
			      "end");
}

static void run_case(u64 seed)
{
	struct plan p = {0};

	sim_seed = seed;
	sim_random = seed * 0x1234567 + 99;
	draw_plan(&p);
	printf("seed %llu: cluster %u%s%s%s%s%s%s rc%u size %llu%s%s cache %uK log %u ops %u%s "
	       "kind %u at %llu x%u trim %u lazy %u/%u\n",
	       (unsigned long long)seed, p.cluster, p.extl2 ? " extl2" : "", p.v2 ? " v2" : "",
	       p.backing ? " backing" : "", p.snapshot ? " snapshot" : "",
	       p.compressed ? " compressed" : "", p.unclean ? " unclean" : "",
	       p.refcount_bits, (unsigned long long)p.size,
	       p.lv ? " lv" : "", p.small_lv ? " small" : "", p.cache_kib, sim_log, p.nr_ops,
	       faults ? " FAULTS" : "", fail_kind, (unsigned long long)fail_at, fail_count,
	       trim_percent, lazy_device, lazy_flush);
	make_images(&p);
	guest_bytes = p.size;
	durable = malloc(MAX_DISK);
	initial = malloc(p.size);
	memcpy(initial, read_raw_copy("top.qcow2"), p.size);
	if (p.unclean)
		first_life(&p);
	start(&p);
	run_guest(&p);
	stop(&p);
	printf("pass seed %llu: %u cuts, %u errors, %u collisions\n", (unsigned long long)seed,
	       nr_cuts, nr_errors, collisions);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	u64 first = argc > 1 ? strtoull(argv[1], NULL, 10) : 1;
	u64 count = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
	const char *parent = argc > 3 ? argv[3] : "/dev/shm";
	u64 i;
	int bad = 0;

	verbose = argc > 4;
#ifdef QCHAIN_MUTANTS
	qchain_mutant = atoi(getenv("MUTANT") ? getenv("MUTANT") : "0");
#endif
	for (i = 0; i < count; i++) {
		int status;
		pid_t pid;

		snprintf(folder, sizeof(folder), "%s/chain-sim-%d", parent, (int)getpid());
		sh("rm -rf %s && mkdir %s", folder, folder);
		fflush(stdout);
		pid = fork();
		if (pid == 0) {
			alarm(300);
			run_case(first + i);
			_exit(0);
		}
		waitpid(pid, &status, 0);
		if (status) {
			bad++;
			printf("BAD seed %llu status 0x%x\n", (unsigned long long)(first + i),
			       status);
		}
	}
	sh("rm -rf %s", folder);
	printf("sim: %llu passed, %d failed\n", (unsigned long long)count - bad, bad);
	return bad != 0;
}
