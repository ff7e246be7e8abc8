// SPDX-License-Identifier: GPL-2.0-or-later
/* The qcow2-chain target on simulated disks, loops and clocks, all by seed. */
#include "sim.h"

#include <errno.h>
#include <qchain/log.h>
#include <stdarg.h>
#include <sys/wait.h>
#include <unistd.h>

/*
 *   chain-sim [-v] [-e] [-w WORK] [-f STRIDE [-x TRIAL:N]] FIRST-SEED COUNT [FOLDER]
 *
 * -w: cases of one kind of work (sim-work.c), short ones, or of chains that are busy.
 * -e: short cases, each cut at every write and every flush. -v: tell each request.
 * -f: short cases, in which each STRIDE-th I/O fails in its turn. -x: that one only.
 * Every seed is a process of its own; one that fails is told, and repeats by its number.
 */

#define CASE_SECONDS 600u
#define SHORT_OPS 40u

u64 sim_random;
u64 sim_seed;
bool sim_verbose;
char sim_folder[256];

#ifdef QCHAIN_MUTANTS
int qchain_mutant;
#endif

u64 rnd(u64 n)
{
	u64 x = sim_random += 0x9e3779b97f4a7c15ull;

	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
	x ^= x >> 31;
	return n ? x % n : x;
}

bool chance(u32 percent)
{
	return rnd(100) < percent;
}

void fail(const char *fmt, ...)
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

int sh(const char *fmt, ...)
{
	char cmd[5000];
	va_list args;
	int ret;

	va_start(args, fmt);
	vsnprintf(cmd, sizeof(cmd), fmt, args);
	va_end(args);
	fflush(stdout);
	ret = system(cmd);
	return WIFEXITED(ret) ? WEXITSTATUS(ret) : -1;
}

const char *sim_path(const char *name)
{
	static char paths[8][320];
	static u32 next;
	char *path = paths[next++ % ARRAY_SIZE(paths)];

	snprintf(path, sizeof(paths[0]), "%s/%s", sim_folder, name);
	return path;
}

/* ---- a case -------------------------------------------------------------------- */

static void make_short(void)
{
	plan.nr_ops = SHORT_OPS;
	plan.online_permille = 20;
	plan.nr_online = 4;
	plan.lives = 0;
	plan.faults = false;
	sim_faults_draw(false);
}

static struct sim_each each_fault;
static bool of_one_kind; /* -w */

static void run_case(u64 seed, enum sim_cuts how)
{
	sim_seed = seed;
	sim_random = seed * 0x1234567 + 99;
	sim_plan_draw();
	if (each_fault.stride || of_one_kind)
		sim_plan_work(each_fault.stride);
	else if (how == CUTS_EVERY)
		make_short();
	sim_plan_print();
	sim_images_make();
	model_begin();
	if (each_fault.stride) {
		sim_faults_each(&each_fault);
		return;
	}
	sim_device_up(&device, sim_top, SIM_UP_FRESH);
	cuts_begin(how);
	while (plan.lives--) {
		guest_run(plan.nr_ops / 2, false);
		cuts_live_on();
	}
	guest_run(plan.nr_ops, true);
	online_finish();
	sim_work_finish();
	sim_device_down(&device);
	cuts_judge_end();
	printf("pass seed %llu: %u cuts, %u snapshots, %u streams, %u commits, %u pivots, "
	       "%u growths, %u deletes, %u reverts, %u beside, %u errors\n",
	       (unsigned long long)seed, nr_cuts, online_snapshots, online_streams,
	       online_commits, online_pivots, online_growths, online_deletes, online_reverts,
	       online_beside, guest_errors);
	fflush(stdout);
}

static bool seed_passes(u64 seed, enum sim_cuts how)
{
	int status;
	pid_t pid;

	sh("rm -rf %s && mkdir %s", sim_folder, sim_folder);
	fflush(stdout);
	pid = fork();
	if (pid == 0) {
		alarm(CASE_SECONDS);
		run_case(seed, how);
		_exit(0);
	}
	waitpid(pid, &status, 0);
	if (status)
		printf("BAD seed %llu status 0x%x\n", (unsigned long long)seed, status);
	return !status;
}

int main(int argc, char **argv)
{
	enum sim_cuts how = CUTS_RANDOM;
	u64 first, count, i;
	u32 bad = 0;
	int opt;

	while ((opt = getopt(argc, argv, "vef:x:w:")) > 0) {
		sim_verbose |= opt == 'v';
		how = opt == 'e' ? CUTS_EVERY : how;
		of_one_kind |= opt == 'w';
		if (opt == 'w' && !sim_work_choose(optarg))
			fail("%s: no such work, see tests/sim/sim-work.c", optarg);
		if (opt == 'f')
			each_fault.stride = strtoull(optarg, NULL, 10);
		else if (opt == 'x')
			sscanf(optarg, "%u:%llu", &each_fault.only_trial,
			       (unsigned long long *)&each_fault.only_nth);
	}
	first = optind < argc ? strtoull(argv[optind], NULL, 10) : 1;
	count = optind + 1 < argc ? strtoull(argv[optind + 1], NULL, 10) : 1;
	snprintf(sim_folder, sizeof(sim_folder), "%s/chain-sim-%d",
		 optind + 2 < argc ? argv[optind + 2] : "/dev/shm", (int)getpid());
#ifdef QCHAIN_MUTANTS
	qchain_mutant = atoi(getenv("MUTANT") ? getenv("MUTANT") : "0");
#endif
	log_set_level(sim_verbose ? LOG_LEVEL_DEBUG : LOG_LEVEL_ERROR);
	for (i = 0; i < count; i++)
		bad += !seed_passes(first + i, how);
	sh("rm -rf %s", sim_folder);
	printf("sim: %llu passed, %u failed\n", (unsigned long long)count - bad, bad);
	return bad != 0;
}
