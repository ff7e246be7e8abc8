/* SPDX-License-Identifier: GPL-2.0-or-later */
/* An earlier life of the simulated image, ended by a cut: leaks for the scan to find. */
#ifndef SIM_LIFE_H
#define SIM_LIFE_H

/*
 * An image that was cut is scanned to its end, beside the guest or when the
 * target stops. Version 2 has no mark; of shared clusters, one that the guest
 * has touched is not judged.
 */
static bool may_leak(const struct plan *p)
{
	return faults || (p->unclean && (p->v2 || p->snapshot || p->compressed));
}

static void live_until_cut(const struct plan *p)
{
	u32 n = 10 + rnd(p->nr_ops / 2), submitted = 0;
	u64 steps;

	faults = false;
	fail_at = 0;
	start(p);
	hot_start = rnd(guest_bytes / SIM_BLOCK);
	for (steps = 0; steps < 200000 && (submitted < n || chance(99)); steps++) {
		if (submitted < n && in_flight < MAX_FLIGHT - 1 && chance(20)) {
			submit_one();
			submitted++;
		}
		sim_step();
	}
	cut(chance(50));
}

/* The image in the place of the one that a child has cut: it leaks, and its mark is set. */
static void first_life(const struct plan *p)
{
	int status;
	pid_t pid;

	fflush(stdout);
	pid = fork();
	if (pid == 0) {
		live_until_cut(p);
		_exit(0);
	}
	waitpid(pid, &status, 0);
	if (status)
		fail("the first life ended with status 0x%x", status);
	sh("mv %s/cut.qcow2 %s/top.qcow2", folder, folder);
	lived = true;
	memcpy(initial, read_raw_copy("top.qcow2"), p->size);
}

#endif
