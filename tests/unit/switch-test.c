// SPDX-License-Identifier: GPL-2.0-or-later
/* The event in which a snapshot takes place: as many instructions at any depth, of any map. */
#include "../../ublk-target/target/chain-private.h"
#include "unit.h"

#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

/*
 * The processor stops after each instruction of the events that the control thread asks
 * the metadata loop for (the trap flag), and a signal handler counts. The linker puts
 * __wrap_loop_call() in the place of the product's loop_call() (--wrap, see the Makefile).
 */

#define DEEP 300u
#define WINDOWS 300u
#define WINDOW_BYTES (32ull << 20)
#define ROUNDS 3u
#define TRAP_FLAG 0x100ull

static char dir[] = "/dev/shm/qchain-switch-XXXXXX";
static volatile u64 instructions;
static u64 longest; /* event */

/* ---- counting --------------------------------------------------------------------- */

void __real_loop_call(struct loop *to, void (*fn)(struct loop *loop, void *arg), void *arg);
void __wrap_loop_call(struct loop *to, void (*fn)(struct loop *loop, void *arg), void *arg);

struct counted_call {
	void (*fn)(struct loop *loop, void *arg);
	void *arg;
};

static void count_one(int signal)
{
	instructions++;
}

static void run_counted(struct loop *loop, void *arg)
{
	struct counted_call *call = arg;
	u64 flags = __builtin_ia32_readeflags_u64();

	instructions = 0;
	__builtin_ia32_writeeflags_u64(flags | TRAP_FLAG);
	call->fn(loop, call->arg);
	__builtin_ia32_writeeflags_u64(flags);
	longest = max(longest, instructions);
}

void __wrap_loop_call(struct loop *to, void (*fn)(struct loop *loop, void *arg), void *arg)
{
	__real_loop_call(to, run_counted, &(struct counted_call){ fn, arg });
}

/* ---- chains ------------------------------------------------------------------------ */

static void name_of(char *path, size_t len, u32 number)
{
	snprintf(path, len, "%s/%u", dir, number);
}

/* Image @number on image @on; 0 has none below it. As long as @windows of the map. */
static void make_image(u32 number, u32 on, u32 windows)
{
	struct image_create_options options;
	char path[64], below[64];
	struct qc_err err = { 0 };
	struct io_dev *dev;

	name_of(path, sizeof(path), number);
	name_of(below, sizeof(below), on);
	fclose(fopen(path, "w"));
	image_create_defaults(&options);
	options.virtual_size = windows * WINDOW_BYTES;
	options.backing_name = number ? below : NULL;
	options.backing_format = number ? "qcow2" : NULL;
	CU_ASSERT_EQUAL_FATAL(io_dev_open(path, IO_DEV_WRITE, &dev, &err), 0);
	CU_ASSERT_EQUAL_FATAL(image_create(dev, &options, &err), 0);
	io_dev_close(dev);
}

static struct image *open_image(u32 number)
{
	char path[64];
	struct qc_err err = { 0 };
	struct io_dev *dev;
	struct image *img;

	name_of(path, sizeof(path), number);
	CU_ASSERT_EQUAL_FATAL(io_dev_open(path, IO_DEV_WRITE, &dev, &err), 0);
	CU_ASSERT_EQUAL_FATAL(image_open(dev, IMAGE_QCOW2, IMAGE_OPEN_WRITE, &img, &err), 0);
	return img;
}

static void loaded(struct load_wait *wait, int error)
{
	CU_ASSERT_EQUAL(error, 0);
}

/* Empty images have no tables to be read: it is done at once. */
static void load_all(struct loop *loop, void *arg)
{
	static struct load_wait wait = { .fn = loaded };
	struct chain_target *ct = arg;

	for (u64 index = 0; index < ct->map.nr_windows; index++) {
		chain_load(ct, index, &wait);
		CU_ASSERT(map_loaded(&ct->map, index));
	}
}

/* Images 0 to @depth - 1, served, with a map of @windows. */
static struct target *serve(u32 depth, u32 windows)
{
	char path[64];
	char *words[] = { path, "may-lose=on", "warm=off" };
	struct qc_err err = { 0 };
	struct chain_target *ct;
	struct target *ti;
	int ret;

	for (u32 i = 0; i < depth; i++)
		make_image(i, i - 1, windows);
	name_of(path, sizeof(path), depth - 1);
	ret = target_create("qcow2-chain", ARRAY_SIZE(words), words, &ti, &err);
	if (ret)
		printf("\n    %s\n", err.msg);
	CU_ASSERT_EQUAL_FATAL(ret, 0);
	ct = ti->private;
	CU_ASSERT_EQUAL(ct->map.nr_windows, windows);
	__real_loop_call(ct->loop, load_all, ct);
	return ti;
}

static void ask_sealing(struct loop *loop, void *arg)
{
	struct chain_target **ct = arg;

	if (!chain_is_sealing(*ct))
		*ct = NULL;
}

static void wait_sealed(struct target *ti)
{
	struct chain_target *ct = ti->private;
	struct loop *loop = ct->loop;

	while (ct) {
		__real_loop_call(loop, ask_sealing, &ct);
		sched_yield();
	}
}

/* ---- tests ------------------------------------------------------------------------- */

/* The longest event of the @change of @ti that image @number, on @below, is for. */
static u64 cost_of(struct target *ti, u32 number, u32 below,
		   int (*change)(struct target *ti, struct image *overlay, const char *path,
				 struct qc_err *err))
{
	struct qc_err err = { 0 };
	char path[64];
	int ret;

	make_image(number, below, ((struct chain_target *)ti->private)->map.nr_windows);
	name_of(path, sizeof(path), number);
	wait_sealed(ti);
	longest = 0;
	ret = change(ti, open_image(number), path, &err);
	if (ret)
		printf("\n    %s\n", err.msg);
	CU_ASSERT_EQUAL_FATAL(ret, 0);
	return longest;
}

static int snapshot(struct target *ti, struct image *overlay, const char *path,
		    struct qc_err *err)
{
	return chain_snapshot(ti, NULL, overlay, path, strrchr(path, '/') + 1, false, err);
}

/* The first ones find functions that are not linked yet, and memory that is not there. */
static u64 snapshot_cost(u32 depth, u32 windows)
{
	struct target *ti = serve(depth, windows);
	u64 least = UINT64_MAX;

	for (u32 i = depth; i < depth + ROUNDS; i++)
		least = min(least, cost_of(ti, i, i - 1, snapshot));
	target_destroy(ti);
	return least;
}

static int revert(struct target *ti, struct image *overlay, const char *path, struct qc_err *err)
{
	bool closed = false;

	return chain_revert(ti, "0", overlay, path, strrchr(path, '/') + 1, &closed, err);
}

/* To the base. */
static u64 revert_cost(u32 depth)
{
	u64 least = UINT64_MAX;

	for (u32 i = 0; i < ROUNDS; i++) {
		struct target *ti = serve(depth, 1);

		least = min(least, cost_of(ti, depth, 0, revert));
		target_destroy(ti);
	}
	return least;
}

/* @many of something may not cost a few instructions each: what malloc() does varies. */
static void judge(u64 few, u64 more, u32 many)
{
	printf(" (%llu and %llu instructions) ", (unsigned long long)few,
	       (unsigned long long)more);
	CU_ASSERT(few > 0);
	CU_ASSERT(more < few + 4 * many);
}

static void test_depth(void)
{
	judge(snapshot_cost(2, 1), snapshot_cost(DEEP, 1), DEEP);
}

static void test_map(void)
{
	judge(snapshot_cost(2, 1), snapshot_cost(2, WINDOWS), WINDOWS);
}

static void test_revert(void)
{
	judge(revert_cost(2), revert_cost(DEEP), DEEP);
}

static const struct unit_test tests[] = {
	{ "a snapshot of a deep chain", test_depth },
	{ "a snapshot of a large map", test_map },
	{ "a revert of a deep chain", test_revert },
	{ NULL, NULL },
};

static void use_descriptors(void)
{
	struct rlimit nofile;

	getrlimit(RLIMIT_NOFILE, &nofile);
	nofile.rlim_cur = nofile.rlim_max;
	setrlimit(RLIMIT_NOFILE, &nofile);
}

int main(void)
{
	struct sigaction action = { .sa_handler = count_one };
	char command[64];
	int ret;

	if (!mkdtemp(dir) || sigaction(SIGTRAP, &action, NULL))
		return 2;
	use_descriptors();
	ret = unit_main("switch", tests);
	snprintf(command, sizeof(command), "rm -rf %s", dir);
	return system(command) ? 2 : ret;
}
