/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Copy before write: what the device held at one instant, until all of it is saved. */
#ifndef CHAIN_SAVE_H
#define CHAIN_SAVE_H

#include "chain-private.h"

/*
 * struct saver - from saver_begin() on no write, zero or discard of a guest changes what
 * is not saved yet; it waits until that is
 * @settled: what was under way at that instant has ended: copying may begin
 * @wanted: a write waits for something that nobody copies
 * @ended: nobody looks at it any more, after saver_end()
 *
 * Granules are what is saved as a whole. Each is unsaved, then taken (somebody copies
 * it), then saved for good; or given back, and unsaved as before.
 */
struct saver {
	/* set once */
	struct chain_target *ct;
	u32 granule_bits;
	u64 size_bytes; /* of the device, which does not change meanwhile */
	void (*settled)(struct saver *s);
	void (*wanted)(struct saver *s);
	void (*ended)(struct saver *s);

	/* any loop reads it, the metadata loop clears bits in it */
	u64 *unsaved;

	/* metadata loop */
	u64 *taken;
	u64 nr_unsaved; /* granules, taken ones too */
	u64 nr_taken;
	bool draining; /* what was under way at the instant has not ended yet */
	bool ending;
	struct cds_list_head wishes; /* struct slow_request: nobody was asked to copy for it */
	struct cds_list_head waiters; /* ... the others */
	struct grace_waiter grace;
	struct loop_timer timer;
};

/* Of @ct's size; the callbacks are the caller's to set. -ENOMEM. */
int saver_init(struct saver *s, struct chain_target *ct, u32 granule_bits);
/* Nobody looks at it: never begun, or after @ended. */
void saver_exit(struct saver *s);

/* Metadata loop, as all below: this is the instant. There is no other saver. */
void saver_begin(struct saver *s);
/* Nothing waits any more; then @ended. What is being copied may go on. */
void saver_end(struct saver *s);

/* The first byte at or behind @pos that is unsaved and not taken; the size: none is. */
u64 saver_next(const struct saver *s, u64 pos);
/* Take the first run of such in [*@start, *@end); false: there is none. */
bool saver_take(struct saver *s, u64 *start, u64 *end);
/* What was taken is saved; or it is not, and whoever waits for it is a wish again. */
void saver_saved(struct saver *s, u64 start, u64 end);
void saver_give_back(struct saver *s, u64 start, u64 end);
/* What somebody waits for, and was not asked for yet; false: nothing. */
bool saver_wish(struct saver *s, u64 *start, u64 *end);

/* ---- for those who write ---------------------------------------------------------- */

/* Where [@pos, @end) is not saved yet, first; @end: all is. Any loop. */
u64 saver_first_unsaved(const struct saver *s, u64 pos, u64 end);
/* @req waits until @req->save_pos is saved; then slow_request_go_on(). */
void saver_wait(struct saver *s, struct slow_request *req);

#endif
