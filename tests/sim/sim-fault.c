// SPDX-License-Identifier: GPL-2.0-or-later
/* I/O that fails: one of a case, by chance; or each of a short case, one after the other. */
#include "sim.h"

#include "chain-private.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

/*
 * Each in its turn: the images are made once, and a child for each n lives the same
 * short life in which the n-th read, write or flush fails, once or from then on. Every
 * request comes to its end, with an error or with right data; errors of guests, and a
 * device that turned read-only, are told by event. What is left is judged as it is
 * served, and after a power cut, a death or an end in good order.
 */

#define FOR_EVER UINT64_MAX
#define TRIAL_SECONDS 30u

enum fault_kind { FAULT_ANY, FAULT_WRITE, FAULT_READ, FAULT_FLUSH, NR_FAULT_KINDS };

static const u8 io_types[] = { [FAULT_WRITE] = IO_WRITE, [FAULT_READ] = IO_READ,
			       [FAULT_FLUSH] = IO_FLUSH };

static struct {
	enum fault_kind kind;
	int error;
	u64 at; /* the n-th I/O of the kind fails; 0: none */
	u64 count; /* and so many after it */
	u64 seen;
	u64 hits;
} fault;

/* By fault_kind: I/Os of a life without faults. Shared with the child that lives it. */
static u64 *totals;
static u32 io_error_events;

void sim_faults_draw(bool on)
{
	memset(&fault, 0, sizeof(fault));
	if (!on)
		return;
	fault.error = -EIO;
	fault.kind = rnd(NR_FAULT_KINDS);
	fault.at = 1 + rnd(fault.kind == FAULT_FLUSH ? 80 : 800);
	fault.count = chance(60) ? 1 : chance(50) ? 4 : 1000000;
}

static void count_total(u8 type)
{
	u32 k;

	for (k = FAULT_WRITE; totals && k < NR_FAULT_KINDS; k++)
		totals[k] += io_types[k] == type;
}

int sim_fault(u8 type)
{
	if (sim_judging)
		return 0;
	count_total(type);
	if (!fault.at || (fault.kind != FAULT_ANY && io_types[fault.kind] != type))
		return 0;
	fault.seen++;
	if (fault.seen < fault.at || fault.seen - fault.at >= fault.count)
		return 0;
	fault.hits++;
	return fault.error;
}

/* ---- a life in which one fails --------------------------------------------------- */

static void note_event(void *arg, const char *name, json_object *data_owned)
{
	io_error_events += !strcmp(name, "BLOCK_IO_ERROR");
	json_object_put(data_owned);
}

static bool is_failed(void)
{
	return ((struct chain_target *)device.ti->private)->map.table->read_only;
}

static void live(void)
{
	target_set_event(device.ti, note_event, NULL);
	guest_run(plan.nr_ops, true);
	if (fault.error == -ENOSPC)
		fault.at = 0; /* the administrator makes room: what waits for that goes on */
	online_finish();
	if (totals)
		printf("  unharmed: %u snapshots, %u streams, %u commits, %u pivots, %u growths\n",
		       online_snapshots, online_streams, online_commits, online_pivots,
		       online_growths);
	if ((guest_errors || is_failed()) && !fault.hits)
		fail("%u errors without a fault", guest_errors);
	if ((guest_errors || is_failed()) && !io_error_events && !device.ti->limits.read_only)
		fail("%u errors, read-only %d, and no event", guest_errors, is_failed());
}

static void live_and_judge(void)
{
	struct qc_err err = { 0 };
	bool up = !sim_device_try_up(&device, sim_top, SIM_UP_FRESH, &err);

	if (!up && !fault.hits)
		fail("%s: %s", sim_top, err.msg);
	if (up)
		live();
	cuts_judge_fault(up, fault.hits);
}

/* ---- each in its turn ------------------------------------------------------------- */

static const struct trial {
	enum fault_kind kind;
	int error;
	u64 count;
	const char *what;
} trials[] = {
	{ FAULT_READ, -EIO, 1, "one read, EIO" },
	{ FAULT_READ, -EIO, FOR_EVER, "reads, EIO" },
	{ FAULT_WRITE, -EIO, 1, "one write, EIO" },
	{ FAULT_WRITE, -EIO, FOR_EVER, "writes, EIO" },
	{ FAULT_WRITE, -ENOSPC, 1, "one write, ENOSPC" },
	{ FAULT_WRITE, -ENOSPC, FOR_EVER, "writes, ENOSPC" },
	{ FAULT_FLUSH, -EIO, 1, "one flush, EIO" },
	{ FAULT_FLUSH, -EIO, FOR_EVER, "flushes, EIO" },
	{ FAULT_ANY, -EIO, FOR_EVER, "everything, EIO" },
};

/* @t NULL: nothing fails, and all is counted. */
static bool child_passes(const struct trial *t, u64 n)
{
	int status;
	pid_t pid;

	fflush(stdout);
	pid = fork();
	if (pid == 0) {
		alarm(TRIAL_SECONDS);
		memset(&fault, 0, sizeof(fault));
		if (t) {
			totals = NULL;
			fault.kind = t->kind;
			fault.error = t->error;
			fault.at = n;
			fault.count = t->count;
		}
		live_and_judge();
		fflush(stdout);
		_exit(0);
	}
	waitpid(pid, &status, 0);
	if (status && t)
		printf("  ... from the %llu-th on: %s; repeat with -x %u:%llu\n",
		       (unsigned long long)n, t->what, (u32)(t - trials), (unsigned long long)n);
	return !status;
}

static u64 total_of(enum fault_kind kind)
{
	return kind == FAULT_ANY ? totals[FAULT_READ] + totals[FAULT_WRITE] + totals[FAULT_FLUSH] :
				   totals[kind];
}

/* With one fault only, too, it draws where it begins: what is lived is the same then. */
static u32 run_trial(const struct trial *t, const struct sim_each *each, u32 *nr)
{
	u64 n = 1 + rnd(each->stride), total = total_of(t->kind);
	u32 bad = 0;

	if (each->only_nth) {
		if (t != &trials[each->only_trial % ARRAY_SIZE(trials)])
			return 0;
		n = total = each->only_nth;
	}
	for (; n <= total; n += each->stride) {
		bad += !child_passes(t, n);
		(*nr)++;
	}
	return bad;
}

void sim_faults_each(const struct sim_each *each)
{
	u32 i, nr = 0, bad = 0;

	totals = mmap(NULL, sizeof(*totals) * NR_FAULT_KINDS, PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (totals == MAP_FAILED)
		fail("no shared memory");
	if (!child_passes(NULL, 0))
		fail("the life without faults");
	for (i = 0; i < ARRAY_SIZE(trials); i++)
		bad += run_trial(&trials[i], each, &nr);
	if (bad)
		fail("%u of %u faults", bad, nr);
	printf("pass seed %llu: %u faults; %llu reads, %llu writes, %llu flushes\n",
	       (unsigned long long)sim_seed, nr, (unsigned long long)totals[FAULT_READ],
	       (unsigned long long)totals[FAULT_WRITE], (unsigned long long)totals[FAULT_FLUSH]);
	fflush(stdout);
}
