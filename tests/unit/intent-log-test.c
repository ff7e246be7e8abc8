// SPDX-License-Identifier: GPL-2.0-or-later
/* The intent log: what is found again after a death, and what is not. */
#include "unit.h"

#include <errno.h>
#include <fcntl.h>
#include <qchain/intent-log.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* As in intent-log.c: what a torn store or a foreign hand would hit. */
#define HEADER_BYTES 4096
#define ENTRY_BYTES 40
#define BOOT_ID_AT 16

static char path[] = "/tmp/qchain-intent-XXXXXX";
static struct intent_log *ilog;
static u32 layer;

static void create(u64 nonce)
{
	struct qc_err err = { 0 };

	CU_ASSERT_FATAL(intent_log_create(path, nonce, &ilog, &err) == 0);
	CU_ASSERT_FATAL(intent_log_attach(ilog, "file:1", &layer) == 0);
}

/* The daemon dies, another one opens what is left. */
static int reopen(u64 nonce)
{
	struct qc_err err = { 0 };

	intent_log_close(ilog);
	ilog = NULL;
	return intent_log_open(path, nonce, &ilog, &err);
}

static u64 add(u64 cluster, u64 entry)
{
	return intent_log_append(ilog, layer, &(struct intent){ .cluster = cluster,
							       .entry = entry,
							       .bitmap = ~entry }, 1);
}

static u32 collect(const char *name, struct intent **intents)
{
	u32 nr;

	CU_ASSERT_FATAL(intent_log_collect(ilog, name, intents, &nr) == 0);
	return nr;
}

static u32 nr_left(const char *name)
{
	struct intent *intents;
	u32 nr = collect(name, &intents);

	free(intents);
	return nr;
}

static void damage(off_t at, u32 bytes)
{
	u8 noise[64];
	int fd = open(path, O_WRONLY);

	memset(noise, 0xa5, sizeof(noise));
	CU_ASSERT(pwrite(fd, noise, bytes, at) == bytes);
	close(fd);
}

static off_t entry_at(u64 number)
{
	return HEADER_BYTES + number % intent_log_size(ilog) * ENTRY_BYTES;
}

static void test_found_again(void)
{
	struct intent *found;
	u64 mark;

	create(7);
	add(5, 0x50000);
	mark = add(3, 0x30000);
	add(9, 0x90000);
	add(5, 0x60000);
	CU_ASSERT(intent_log_used(ilog) == 4);
	intent_log_drop(ilog, layer, mark);
	CU_ASSERT(intent_log_used(ilog) == 2);
	CU_ASSERT_FATAL(reopen(7) == 0);
	CU_ASSERT_FATAL(collect("file:1", &found) == 2);
	CU_ASSERT(found[0].cluster == 5 && found[0].entry == 0x60000);
	CU_ASSERT(found[0].bitmap == ~0x60000ull);
	CU_ASSERT(found[1].cluster == 9 && found[1].entry == 0x90000);
	free(found);
	CU_ASSERT(nr_left("file:2") == 0);
	intent_log_clear(ilog);
	CU_ASSERT(nr_left("file:1") == 0);
	CU_ASSERT_FATAL(reopen(7) == 0);
	CU_ASSERT(nr_left("file:1") == 0);
	intent_log_close(ilog);
}

/* The newest entry of a cluster wins, whatever lies between. */
static void test_newest(void)
{
	struct intent *found;
	u32 i;

	create(7);
	for (i = 0; i < 1000; i++)
		add(i % 10, (u64)(i + 1) << 16);
	CU_ASSERT_FATAL(reopen(7) == 0);
	CU_ASSERT_FATAL(collect("file:1", &found) == 10);
	for (i = 0; i < 10; i++)
		CU_ASSERT(found[i].cluster == i && found[i].entry == (u64)(991 + i) << 16);
	free(found);
	intent_log_close(ilog);
}

static void test_torn(void)
{
	u64 number;
	u32 at;

	for (at = 0; at < ENTRY_BYTES; at += 8) {
		create(7);
		add(1, 0x10000);
		number = add(2, 0x20000);
		add(3, 0x30000);
		damage(entry_at(number) + at, 8);
		CU_ASSERT_FATAL(reopen(7) == 0);
		CU_ASSERT(nr_left("file:1") == 2);
		intent_log_close(ilog);
	}
}

/* An entry whose words are whole but whose checksum is another's. */
static void test_wrong_checksum(void)
{
	u64 number;

	create(7);
	add(1, 0x10000);
	number = add(2, 0x20000);
	damage(entry_at(number) + ENTRY_BYTES - 4, 1);
	CU_ASSERT_FATAL(reopen(7) == 0);
	CU_ASSERT(nr_left("file:1") == 1);
	intent_log_close(ilog);
}

/* What an earlier life has left in the file has right checksums, for its own nonce. */
static void test_left_of_another_life(void)
{
	static u8 old[ENTRY_BYTES];
	int fd;

	create(7);
	pread((fd = open(path, O_RDWR)), old, sizeof(old), entry_at(add(1, 0x10000)));
	intent_log_close(ilog);
	create(8);
	CU_ASSERT(pwrite(fd, old, sizeof(old), entry_at(1)) == sizeof(old));
	close(fd);
	CU_ASSERT_FATAL(reopen(8) == 0);
	CU_ASSERT(nr_left("file:1") == 0);
	intent_log_close(ilog);
}

static void test_wrap(void)
{
	struct intent *found;
	u32 size, i, nr;
	u64 mark = 0;

	create(7);
	size = intent_log_size(ilog);
	for (i = 0; i < 2 * size + 100; i++) {
		if (!intent_log_has_room(ilog, 1))
			intent_log_drop(ilog, layer, mark - 9);
		CU_ASSERT_FATAL(intent_log_has_room(ilog, 1));
		mark = add(i, (u64)i << 16);
	}
	intent_log_drop(ilog, layer, mark - 50);
	CU_ASSERT_FATAL(reopen(7) == 0);
	nr = collect("file:1", &found);
	CU_ASSERT(nr == 50);
	for (i = 0; i < nr; i++)
		CU_ASSERT(found[i].cluster == 2 * size + 50 + i);
	free(found);
	intent_log_close(ilog);
}

static void test_full(void)
{
	u32 size, other, i;

	create(7);
	size = intent_log_size(ilog);
	CU_ASSERT_FATAL(intent_log_attach(ilog, "file:2", &other) == 0);
	add(1, 0x10000);
	for (i = 1; i < size; i++)
		intent_log_append(ilog, other, &(struct intent){ .cluster = i }, 1);
	CU_ASSERT(intent_log_used(ilog) == size);
	CU_ASSERT(!intent_log_has_room(ilog, 1));
	/* the other's are dropped, the one that lies before them is not */
	intent_log_drop(ilog, other, size);
	CU_ASSERT(!intent_log_has_room(ilog, 1));
	intent_log_drop(ilog, layer, 1);
	CU_ASSERT(intent_log_has_room(ilog, size));
	CU_ASSERT(!intent_log_has_room(ilog, size + 1));
	/* who comes back after a long time does not hold what it never wrote */
	intent_log_append(ilog, other, &(struct intent){ .cluster = 1 }, 1);
	add(1, 0x10000);
	CU_ASSERT(intent_log_used(ilog) == 2);
	intent_log_close(ilog);
}

static void test_layers(void)
{
	static const char *const names[] = { "a", "b", "c" };
	u32 layers[4], i = 0;

	create(7);
	for (i = 0; i < 3; i++)
		CU_ASSERT_FATAL(intent_log_attach(ilog, names[i], &layers[i]) == 0);
	CU_ASSERT(intent_log_attach(ilog, "d", &layers[3]) == -EBUSY);
	intent_log_append(ilog, layers[0], &(struct intent){ .cluster = 1 }, 1);
	intent_log_append(ilog, layers[1], &(struct intent){ .cluster = 1 }, 1);
	intent_log_detach(ilog, layers[0]);
	/* the slot of one that was sealed has nothing of it for the next */
	CU_ASSERT(intent_log_attach(ilog, "d", &layers[0]) == 0);
	CU_ASSERT_FATAL(reopen(7) == 0);
	CU_ASSERT(nr_left("a") == 0 && nr_left("b") == 1 && nr_left("d") == 0);
	i = 0;
	CU_ASSERT_STRING_EQUAL(intent_log_next_name(ilog, &i), "b");
	CU_ASSERT(intent_log_next_name(ilog, &i) == NULL);
	intent_log_close(ilog);
}

/* After a takeover numbers go on: what was replayed never counts again. */
static void test_numbers_go_on(void)
{
	create(7);
	add(1, 0x10000);
	add(2, 0x20000);
	CU_ASSERT_FATAL(reopen(7) == 0);
	intent_log_clear(ilog);
	CU_ASSERT_FATAL(intent_log_attach(ilog, "file:1", &layer) == 0);
	CU_ASSERT(add(3, 0x30000) == 3);
	CU_ASSERT_FATAL(reopen(7) == 0);
	CU_ASSERT(nr_left("file:1") == 1);
	intent_log_close(ilog);
}

/* One process at a time: another's start must not cut the file off under a mapping. */
static void test_in_use(void)
{
	struct intent_log *other;
	struct qc_err err = { 0 };

	create(7);
	add(1, 0x10000);
	CU_ASSERT(intent_log_create(path, 8, &other, &err) == -EBUSY);
	CU_ASSERT(intent_log_open(path, 7, &other, &err) == -EBUSY);
	add(2, 0x20000);
	CU_ASSERT_FATAL(reopen(7) == 0);
	CU_ASSERT(nr_left("file:1") == 2);
	intent_log_close(ilog);
}

static void test_foreign(void)
{
	create(7);
	add(1, 0x10000);
	CU_ASSERT(reopen(8) == -ESTALE);
	CU_ASSERT(reopen(7) == 0);
	CU_ASSERT(nr_left("file:1") == 1);
	damage(BOOT_ID_AT, 4);
	CU_ASSERT(reopen(7) == -ESTALE);
	damage(0, 1);
	CU_ASSERT(reopen(7) == -EUCLEAN);
	CU_ASSERT(truncate(path, 4096) == 0);
	CU_ASSERT(reopen(7) == -EUCLEAN);
	unlink(path);
	CU_ASSERT(reopen(7) == -ENOENT);
}

static const struct unit_test tests[] = {
	{ "what was appended and not dropped is found again", test_found_again },
	{ "the newest entry of a cluster wins", test_newest },
	{ "a torn entry does not count", test_torn },
	{ "a wrong checksum does not count", test_wrong_checksum },
	{ "an entry of another life does not count", test_left_of_another_life },
	{ "the ring goes round", test_wrap },
	{ "full, by whichever layer", test_full },
	{ "layers come and go", test_layers },
	{ "numbers go on after a takeover", test_numbers_go_on },
	{ "in use by another process", test_in_use },
	{ "another life, another boot, no log", test_foreign },
	{ NULL },
};

int main(void)
{
	int ret;

	close(mkstemp(path));
	ret = unit_main("intent-log", tests);
	unlink(path);
	return ret;
}
