// SPDX-License-Identifier: GPL-2.0-or-later
/* Copy before write: which granules are saved, taken, wished for; against a model. */
#include "../../ublk-target/target/chain-save.h"
#include "random.h"
#include "unit.h"

#include <string.h>

#define G 65536ull
#define NR 130u /* granules: more than two words of bits */
#define SIZE ((NR - 1) * G + 512)

enum { UNSAVED, TAKEN, SAVED };

static struct target device = { .size_bytes = SIZE };
static struct chain_target ct = { .ti = &device };
static struct saver saver;
static u32 nr_wanted;
static u8 model[NR];

static void wanted(struct saver *s)
{
	nr_wanted++;
}

static void begin(void)
{
	CU_ASSERT_EQUAL_FATAL(saver_init(&saver, &ct, 16), 0);
	saver.wanted = wanted;
	nr_wanted = 0;
	memset(model, UNSAVED, sizeof(model));
}

static void end(void)
{
	saver_exit(&saver);
}

static u64 end_of(u64 granule)
{
	return min((granule + 1) * G, SIZE);
}

static bool take(u64 start, u64 end, u64 *from, u64 *to)
{
	*from = start;
	*to = end;
	return saver_take(&saver, from, to);
}

static void test_one_by_one(void)
{
	u64 from, to;

	begin();
	CU_ASSERT_EQUAL(saver.nr_unsaved, NR);
	CU_ASSERT_EQUAL(saver_first_unsaved(&saver, 512, 1024), 512);
	CU_ASSERT(take(512, 1024, &from, &to)); /* whole granules */
	CU_ASSERT_EQUAL(from, 0);
	CU_ASSERT_EQUAL(to, G);
	CU_ASSERT_FALSE(take(0, G, &from, &to));
	CU_ASSERT_EQUAL(saver_next(&saver, 0), G);
	CU_ASSERT_EQUAL(saver_first_unsaved(&saver, 0, G), 0); /* not before it is saved */
	saver_saved(&saver, 0, G);
	CU_ASSERT_EQUAL(saver_first_unsaved(&saver, 0, G), G);
	CU_ASSERT_EQUAL(saver_first_unsaved(&saver, 0, G + 512), G);
	CU_ASSERT_FALSE(take(0, G, &from, &to));
	CU_ASSERT_EQUAL(saver.nr_unsaved, NR - 1);
	end();
}

static void test_the_end(void)
{
	u64 from, to;

	begin();
	CU_ASSERT(take(0, SIZE, &from, &to));
	CU_ASSERT_EQUAL(to, SIZE);
	CU_ASSERT_EQUAL(saver.nr_taken, NR);
	CU_ASSERT_EQUAL(saver_next(&saver, 0), SIZE);
	saver_give_back(&saver, (NR - 1) * G, SIZE);
	CU_ASSERT_EQUAL(saver_next(&saver, 0), (NR - 1) * G);
	saver_saved(&saver, 0, (NR - 1) * G);
	CU_ASSERT_EQUAL(saver.nr_unsaved, 1);
	CU_ASSERT(take(0, SIZE, &from, &to));
	CU_ASSERT_EQUAL(from, (NR - 1) * G);
	saver_saved(&saver, from, to);
	CU_ASSERT_EQUAL(saver.nr_unsaved + saver.nr_taken, 0);
	CU_ASSERT_EQUAL(saver_first_unsaved(&saver, 0, SIZE), SIZE);
	end();
}

/* Who waits is asked for once, again when it was not saved, and not when it comes anyway. */
static void test_wishes(void)
{
	struct slow_request one = { .save_pos = 3 * G, .end = 5 * G + 512 };
	struct slow_request two = { .save_pos = 7 * G + 512, .end = 8 * G };
	u64 from, to;

	begin();
	saver.draining = true;
	saver_wait(&saver, &one);
	CU_ASSERT_EQUAL(nr_wanted, 0);
	CU_ASSERT_FALSE(saver_wish(&saver, &from, &to));
	saver.draining = false;
	CU_ASSERT(saver_wish(&saver, &from, &to));
	CU_ASSERT_EQUAL(from, 3 * G);
	CU_ASSERT_EQUAL(to, 6 * G);
	CU_ASSERT_FALSE(saver_wish(&saver, &from, &to));
	CU_ASSERT(saver_take(&saver, &from, &to));
	saver_give_back(&saver, from, to);
	CU_ASSERT_EQUAL(nr_wanted, 1);
	CU_ASSERT(saver_wish(&saver, &from, &to));
	CU_ASSERT(take(7 * G, 8 * G, &from, &to));
	saver_wait(&saver, &two);
	CU_ASSERT_EQUAL(nr_wanted, 2);
	CU_ASSERT_FALSE(saver_wish(&saver, &from, &to));
	end();
}

static void check_model(u64 pos)
{
	u64 g, unsaved = NR, untaken = NR;

	for (g = NR; g-- > pos / G;) {
		unsaved = model[g] == SAVED ? unsaved : g;
		untaken = model[g] == UNSAVED ? g : untaken;
	}
	CU_ASSERT_EQUAL(saver_first_unsaved(&saver, pos, SIZE),
			unsaved == NR ? SIZE : max(pos, unsaved * G));
	CU_ASSERT_EQUAL(saver_next(&saver, pos), untaken == NR ? SIZE : untaken * G);
}

static void test_random(void)
{
	struct rnd seed = { rnd_seed("granules") };
	u64 from, to, g;
	u32 i;

	begin();
	for (i = 0; i < 20000; i++) {
		from = rnd(&seed) % SIZE & ~511ull;
		to = end_of(min(from / G + rnd(&seed) % 9, (u64)NR - 1));
		check_model(from);
		if (rnd(&seed) % 2) {
			if (!saver_take(&saver, &from, &to))
				continue;
			for (g = from / G; g * G < to; g++) {
				CU_ASSERT_EQUAL(model[g], UNSAVED);
				model[g] = TAKEN;
			}
			continue;
		}
		g = from / G;
		if (model[g] != TAKEN)
			continue;
		if (rnd(&seed) % 3) {
			saver_give_back(&saver, g * G, end_of(g));
			model[g] = UNSAVED;
		} else {
			saver_saved(&saver, g * G, end_of(g));
			model[g] = SAVED;
		}
	}
	end();
}

int main(void)
{
	static const struct unit_test tests[] = {
		{ "one granule after the other", test_one_by_one },
		{ "a last granule that is short", test_the_end },
		{ "who waits", test_wishes },
		{ "against a model", test_random },
		{ NULL, NULL },
	};

	return unit_main("save", tests);
}
