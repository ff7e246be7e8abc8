// SPDX-License-Identifier: GPL-2.0-or-later
/* Copy before write: the device as it was at one instant, until all of it is saved. */
#include "chain-save.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

/*
 *   begin    one store: ct->saver. Each write looks there after it was received, on its
 *            own loop or, if it needs the metadata thread, when that begins a piece of it
 *   drain    what had looked before has ended: grace, then the operations of guests that
 *            were begun (those that were not look again)
 *   settled  what is read from now on, and not saved yet, is what was there at the instant
 *   take, save or give back, granule by granule; who waits for one goes on
 *   end      the store of NULL; grace, and nobody has the pointer any more
 *
 * The instant is the store, as it is of a snapshot (promise P19): a write that the guest
 * made because another one was acknowledged looks later than that one did. Once a granule
 * is saved a write to it costs the look at one bit.
 */

#define DRAIN_POLL_NS 200000ull
#define WORD_BITS 64u

/* ---- bits ------------------------------------------------------------------------- */

static u64 word_of(const u64 *map, u64 index)
{
	return __atomic_load_n(&map[index], __ATOMIC_ACQUIRE);
}

/* The first bit from @from on and before @to that is set in @map and not in @but; @to: none. */
static u64 find_bit(const u64 *map, const u64 *but, u64 from, u64 to)
{
	u64 word, bit;

	while (from < to) {
		word = word_of(map, from / WORD_BITS);
		if (but)
			word &= ~but[from / WORD_BITS];
		word &= ~0ull << from % WORD_BITS;
		if (word) {
			bit = ALIGN_DOWN(from, WORD_BITS) + __builtin_ctzll(word);
			return min(bit, to);
		}
		from = ALIGN_DOWN(from, WORD_BITS) + WORD_BITS;
	}
	return to;
}

static bool has_bit(const u64 *map, u64 bit)
{
	return word_of(map, bit / WORD_BITS) >> bit % WORD_BITS & 1;
}

static void set_bit(u64 *map, u64 bit)
{
	map[bit / WORD_BITS] |= 1ull << bit % WORD_BITS;
}

/* Any loop may look at it meanwhile. */
static void clear_bit(u64 *map, u64 bit)
{
	__atomic_fetch_and(&map[bit / WORD_BITS], ~(1ull << bit % WORD_BITS), __ATOMIC_RELEASE);
}

static u64 granule_of(const struct saver *s, u64 pos)
{
	return pos >> s->granule_bits;
}

static u64 granules_to(const struct saver *s, u64 end)
{
	return DIV_ROUND_UP(min(end, s->size_bytes), 1ull << s->granule_bits);
}

static u64 start_of(const struct saver *s, u64 granule)
{
	return min(granule << s->granule_bits, s->size_bytes);
}

u64 saver_first_unsaved(const struct saver *s, u64 pos, u64 end)
{
	u64 to = granules_to(s, end);
	u64 granule = find_bit(s->unsaved, NULL, granule_of(s, pos), to);

	return granule == to ? end : max(pos, start_of(s, granule));
}

u64 saver_next(const struct saver *s, u64 pos)
{
	return start_of(s, find_bit(s->unsaved, s->taken, granule_of(s, pos),
				    granules_to(s, s->size_bytes)));
}

bool saver_take(struct saver *s, u64 *start, u64 *end)
{
	u64 to = granules_to(s, *end);
	u64 first = find_bit(s->unsaved, s->taken, granule_of(s, *start), to);
	u64 granule;

	for (granule = first; granule < to; granule++) {
		if (!has_bit(s->unsaved, granule) || has_bit(s->taken, granule))
			break;
		set_bit(s->taken, granule);
		s->nr_taken++;
	}
	*start = start_of(s, first);
	*end = start_of(s, granule);
	return granule > first;
}

/* ---- who waits --------------------------------------------------------------------- */

void saver_wait(struct saver *s, struct slow_request *req)
{
	cds_list_add_tail(&req->node, &s->wishes);
	if (!s->draining)
		s->wanted(s);
}

bool saver_wish(struct saver *s, u64 *start, u64 *end)
{
	struct slow_request *req;

	while (!s->draining && !cds_list_empty(&s->wishes)) {
		req = cds_list_first_entry(&s->wishes, struct slow_request, node);
		cds_list_del(&req->node);
		cds_list_add_tail(&req->node, &s->waiters);
		if (has_bit(s->taken, granule_of(s, req->save_pos)))
			continue; /* it comes anyway */
		*start = start_of(s, granule_of(s, req->save_pos));
		*end = min(req->end, *start + QC_MAX_REQUEST_BYTES);
		*end = start_of(s, granules_to(s, *end));
		return true;
	}
	return false;
}

/* Move those of @from that wait for something in [@start, @end) to @to. */
static void move_waiters(struct cds_list_head *from, u64 start, u64 end, struct cds_list_head *to)
{
	struct slow_request *req, *tmp;

	cds_list_for_each_entry_safe(req, tmp, from, node) {
		if (req->save_pos < start || req->save_pos >= end)
			continue;
		cds_list_del(&req->node);
		cds_list_add_tail(&req->node, to);
	}
}

/* Each may wait again, for something else. */
static void wake(struct saver *s, u64 start, u64 end)
{
	struct slow_request *req;
	CDS_LIST_HEAD(ready);

	move_waiters(&s->waiters, start, end, &ready);
	move_waiters(&s->wishes, start, end, &ready);
	while (!cds_list_empty(&ready)) {
		req = cds_list_first_entry(&ready, struct slow_request, node);
		cds_list_del(&req->node);
		slow_request_go_on(req);
	}
}

static void untake(struct saver *s, u64 start, u64 end)
{
	u64 granule;

	for (granule = granule_of(s, start); granule < granules_to(s, end); granule++) {
		assert(has_bit(s->taken, granule));
		clear_bit(s->taken, granule);
		s->nr_taken--;
	}
}

void saver_saved(struct saver *s, u64 start, u64 end)
{
	u64 granule;

	assert_on_loop(s->ct->loop);
	untake(s, start, end);
	for (granule = granule_of(s, start); granule < granules_to(s, end); granule++) {
		clear_bit(s->unsaved, granule);
		s->nr_unsaved--;
	}
	wake(s, start, end);
}

void saver_give_back(struct saver *s, u64 start, u64 end)
{
	assert_on_loop(s->ct->loop);
	untake(s, start, end);
	move_waiters(&s->waiters, start, end, &s->wishes);
	if (!s->ending && !cds_list_empty(&s->wishes))
		s->wanted(s);
}

/* ---- begin and end ------------------------------------------------------------------ */

static void let_go(struct grace_waiter *waiter)
{
	struct saver *s = container_of(waiter, struct saver, grace);

	s->ended(s);
}

static void wait_let_go(struct saver *s)
{
	s->grace = (struct grace_waiter){ .drained = let_go };
	grace_wait(&s->ct->grace, &s->grace);
}

/* Guests' operations that wait for something are cut again, and find the saver. */
static bool guests_are_done(struct chain_target *ct)
{
	struct writer *w;
	bool done = true;

	if (ct->active)
		writer_put_off(ct->active, 0, UINT64_MAX);
	if (ct->receiving)
		writer_put_off(ct->receiving, 0, UINT64_MAX);
	chain_for_each_writer(w, ct) {
		if (!writer_has_guests(w))
			continue;
		done = false;
		if (w->meta)
			meta_kick(w->meta);
	}
	return done;
}

static void drain_timer(struct loop *loop, struct loop_timer *timer)
{
	struct saver *s = container_of(timer, struct saver, timer);

	if (s->ending) {
		wait_let_go(s);
		return;
	}
	if (!guests_are_done(s->ct)) {
		loop_timer_set(loop, timer, DRAIN_POLL_NS);
		return;
	}
	s->draining = false;
	s->settled(s);
	if (!cds_list_empty(&s->wishes))
		s->wanted(s);
}

static void io_drained(struct grace_waiter *waiter)
{
	struct saver *s = container_of(waiter, struct saver, grace);

	drain_timer(s->ct->loop, &s->timer);
}

void saver_begin(struct saver *s)
{
	struct chain_target *ct = s->ct;

	assert_on_loop(ct->loop);
	assert(!ct->saver);
	s->draining = true;
	__atomic_store_n(&ct->saver, s, __ATOMIC_RELEASE);
	s->grace = (struct grace_waiter){ .drained = io_drained };
	grace_wait(&ct->grace, &s->grace);
}

void saver_end(struct saver *s)
{
	assert_on_loop(s->ct->loop);
	s->ending = true;
	__atomic_store_n(&s->ct->saver, NULL, __ATOMIC_RELEASE);
	wake(s, 0, UINT64_MAX);
	if (!s->draining)
		wait_let_go(s);
}

int saver_init(struct saver *s, struct chain_target *ct, u32 granule_bits)
{
	u64 nr, words, i;

	*s = (struct saver){ .ct = ct, .granule_bits = granule_bits,
			     .size_bytes = ct->ti->size_bytes, .timer = { .fn = drain_timer } };
	CDS_INIT_LIST_HEAD(&s->wishes);
	CDS_INIT_LIST_HEAD(&s->waiters);
	nr = granules_to(s, s->size_bytes);
	words = DIV_ROUND_UP(nr, WORD_BITS);
	s->unsaved = malloc(max(words, (u64)1) * sizeof(u64));
	s->taken = calloc(max(words, (u64)1), sizeof(u64));
	if (!s->unsaved || !s->taken) {
		saver_exit(s);
		return -ENOMEM;
	}
	for (i = 0; i < words; i++)
		s->unsaved[i] = ~0ull;
	s->nr_unsaved = nr;
	return 0;
}

void saver_exit(struct saver *s)
{
	free(s->unsaved);
	free(s->taken);
	s->unsaved = s->taken = NULL;
}
