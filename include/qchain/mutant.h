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
	MUTANT_FILL_BEFORE_GRACE, /* the new top fills while the old one is being written */
	MUTANT_OLD_FILLS_NEW, /* the old top fills from what was written after the snapshot */
	MUTANT_FLUSH_TOP_ONLY, /* FLUSH leaves out the old top, which is not sealed */
	MUTANT_SEAL_EARLY, /* the old top is sealed while its operations go on */
	MUTANT_COPY_OVER_GUEST, /* M1: a stream copies over what the guest has written */
	MUTANT_MERGE_UNSEALED, /* M2: a merge begins before the old top is sealed */
	MUTANT_NAME_WITH_FIELDS, /* M3: the header names before the name is durable */
	MUTANT_CLOSE_BEFORE_GRACE, /* M4: merged images are closed while they are read */
	MUTANT_HOLE_BEFORE_HEADER, /* M5: a discard makes a hole, the backing still shows */
	MUTANT_BASE_DOOR, /* M6: the base is written on its reader's descriptor */
	MUTANT_BASE_REUSED_EARLY, /* M7: moved places of the base are reused while they show */
	MUTANT_BASE_UNFLUSHED, /* M8: the header names a base that is not durable */
	MUTANT_BASE_FILLS_FROM_DEVICE, /* M9: the base is filled with what the device shows */
	MUTANT_HAND_NOT_DURABLE, /* H2: unmapped before the copy is durable */
	MUTANT_LAYERS_SHARED, /* M12: two merges have a layer in common */
	MUTANT_STREAM_UNRESTED, /* M14: a snapshot beside a stream into the active layer */
	MUTANT_HAND_UNSETTLED, /* H1: copied while writes are under way */
	MUTANT_HAND_UNFLUSHED, /* H7: FLUSH leaves out the base */
	MUTANT_HAND_UNRESTED, /* H11: a snapshot in the middle of a batch */
	MUTANT_HANDED_FORGOTTEN, /* H12: a merge below takes back what was handed over */
	MUTANT_L1_WITH_HEADER, /* R1: the header names a table that is not durable */
	MUTANT_GROWS_UNZEROED, /* R2: no zeroes over what lies beyond the old end */
	MUTANT_SIZE_TOLD_EARLY, /* R4: guests go beyond the old end before that is durable */
	MUTANT_NR,
};

#ifdef QCHAIN_MUTANTS
extern int qchain_mutant;
#define MUTANT(x) (qchain_mutant == MUTANT_##x)
#else
#define MUTANT(x) 0
#endif

#endif
