/* SPDX-License-Identifier: GPL-2.0-or-later OR MIT */
/* Rules that the simulator breaks on purpose, one at a time: `make sim-mutants`. */
#ifndef QCHAIN_MUTANT_H
#define QCHAIN_MUTANT_H

/* MUTANT(x): is rule x broken in this run? Constant 0 outside the simulator. */
enum mutant {
	MUTANT_NONE,
	MUTANT_ACK_BEFORE_LOG, /* acknowledged before the log has the entry */
	MUTANT_LOG_DROPPED_EARLY, /* entry dropped before its sector is written */
	MUTANT_LINK_WITH_FRESH, /* L1 entries and L2 entries together with step 1 */
	MUTANT_FUA_IN_PLACE, /* FUA on a pending mapping flushes only the data */
	MUTANT_FREE_EARLY, /* a cluster is free before its unmapping is durable */
	MUTANT_NO_STEP_2, /* entries are written without the flush before them */
	MUTANT_MIXED_SECTOR, /* step 3 writes what is in the cache, not what was closed */
	MUTANT_FLUSH_UNCOMMITTED, /* FLUSH does not wait for acknowledged mappings */
	MUTANT_REPLAY_UNCLAIMED, /* replay allocates before it has claimed */
	MUTANT_FREE_TOUCHED, /* the leak scan judges what was touched meanwhile */
	MUTANT_STALE_FOLD, /* a fold sees only what is linked, not what was acknowledged */
	MUTANT_NR,
};

#ifdef QCHAIN_MUTANTS
extern int qchain_mutant;
#define MUTANT(x) (qchain_mutant == MUTANT_##x)
#else
#define MUTANT(x) 0
#endif

#endif
