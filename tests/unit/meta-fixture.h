/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The metadata of a mock disk, whose callbacks leave notes in the mock's log. */
#ifndef TESTS_META_FIXTURE_H
#define TESTS_META_FIXTURE_H

#include <errno.h>
#include <qchain/meta.h>
#include <stdlib.h>

#include "mock-loop.h"

#define DISK_BYTES (512 * KiB)
#define BLOCK_BYTES 4096u
#define HOUSEKEEP_NS META_OLD_NS
#define RETRY_NS 100000000ull

static struct io_dev *disk;
static struct meta *meta;

static inline void note_linked(void *arg, u64 mark)
{
	if (mark)
		io_mock_note(mock, "linked %u", (u32)mark);
	else
		io_mock_note(mock, "linked");
}

static inline void note_failed(void *arg, int error)
{
	io_mock_note(mock, "failed %d", error);
}

static const struct meta_ops note_ops = { .linked = note_linked, .failed = note_failed };

static inline void meta_start(u32 max_blocks)
{
	CU_ASSERT_EQUAL_FATAL(io_mock_dev_create("disk", DISK_BYTES, DISK_BYTES, true, &disk), 0);
	CU_ASSERT_EQUAL_FATAL(meta_create(mock_loop, disk, BLOCK_BYTES, max_blocks, &note_ops,
					  NULL, &meta), 0);
}

static inline void meta_stop(void)
{
	CU_ASSERT_EQUAL(io_mock_pending(mock), 0);
	CU_ASSERT_EQUAL(io_mock_collisions(mock), 0);
	meta_destroy(meta);
	io_mock_dev_destroy(disk);
	io_mock_fail(mock, 0, -EIO);
	io_mock_log(mock);
}

/* ---- what a user of the room brings ------------------------------------------- */

struct note_wait {
	struct meta_wait wait;
	char name;
	u64 offset; /* asks for it again; 0: does not */
	int ret; /* of asking again */
};

static inline void wait_over(struct meta_wait *wait)
{
	struct note_wait *w = container_of(wait, struct note_wait, wait);
	struct meta_block *block;

	if (w->offset)
		w->ret = meta_get(meta, w->offset, wait, &block);
	io_mock_note(mock, "wait %c %d", w->name, w->ret);
}

static inline struct note_wait a_wait(char name, u64 offset)
{
	return (struct note_wait){ .name = name, .offset = offset, .wait = { .fn = wait_over } };
}

struct note_join {
	struct meta_join join;
	char name;
	u32 times;
	int error;
};

static inline void join_over(struct meta_join *join, int error)
{
	struct note_join *j = container_of(join, struct note_join, join);

	j->times++;
	j->error = error;
	io_mock_note(mock, error ? "join %c %d" : "join %c", j->name, error);
}

static inline void do_join(struct note_join *j, char name)
{
	*j = (struct note_join){ .name = name, .join = { .fn = join_over } };
	meta_txn_join(meta, &j->join);
}

struct note_unmap {
	struct meta_unmap unmap;
	char name;
	u32 times;
	int error;
};

static inline void unmap_over(struct meta_unmap *unmap, int error)
{
	struct note_unmap *u = container_of(unmap, struct note_unmap, unmap);

	u->times++;
	u->error = error;
	io_mock_note(mock, error ? "unmap %c %d" : "unmap %c", u->name, error);
}

static inline void do_unmap(struct note_unmap *u, char name)
{
	*u = (struct note_unmap){ .name = name, .unmap = { .durable = unmap_over } };
	meta_txn_unmap(meta, &u->unmap);
}

struct note_flush {
	struct meta_flush flush;
	char name;
	u32 times;
	int error;
};

static inline void flush_over(struct meta_flush *flush, int error)
{
	struct note_flush *f = container_of(flush, struct note_flush, flush);

	f->times++;
	f->error = error;
	io_mock_note(mock, error ? "flushed %c %d" : "flushed %c", f->name, error);
}

static inline void do_flush(struct note_flush *f, char name)
{
	*f = (struct note_flush){ .name = name, .flush = { .fn = flush_over } };
	meta_flush(meta, &f->flush);
}

static inline void nothing_over(struct meta_wait *wait)
{
}

/* The block of @offset, read if need be; leaves no trace in the log. */
static inline struct meta_block *get_block(u64 offset)
{
	struct meta_wait wait = { .fn = nothing_over };
	struct meta_block *block = NULL;
	int ret = meta_get(meta, offset, &wait, &block);

	if (ret == -EAGAIN) {
		end_first(0);
		ret = meta_get(meta, offset, &wait, &block);
	}
	CU_ASSERT_EQUAL_FATAL(ret, 0);
	io_mock_log(mock);
	return block;
}

static inline u64 disk_word(u64 offset)
{
	u64 word;

	memcpy(&word, (u8 *)io_mock_dev_bytes(disk) + offset, sizeof(word));
	return word;
}

static inline u64 block_word(const struct meta_block *block, u32 at)
{
	u64 word;

	memcpy(&word, (u8 *)block->data + at, sizeof(word));
	return word;
}

static inline u64 linked_word(const struct meta_block *block, u32 at)
{
	u64 word;

	memcpy(&word, (const u8 *)meta_linked(block) + at, sizeof(word));
	return word;
}

static inline void set_word(struct meta_block *block, u32 at, u64 word)
{
	CU_ASSERT_EQUAL(meta_txn_set(meta, block, at, &word, sizeof(word)), 0);
}

/* In place, as a refcount. */
static inline void change_word(struct meta_block *block, u32 at, u64 word)
{
	memcpy((u8 *)block->data + at, &word, sizeof(word));
	meta_mark_dirty(block, at, sizeof(word));
}

static inline void add_fresh(u64 host, u8 fill, u32 bytes)
{
	u8 *data = io_alloc(bytes);

	CU_ASSERT_FATAL(data != NULL);
	memset(data, fill, bytes);
	CU_ASSERT_EQUAL(meta_txn_fresh(meta, host, data, bytes), 0);
}

static inline void add_table(u64 host, u8 fill, u32 bytes)
{
	u8 *data = io_alloc(bytes);

	CU_ASSERT_FATAL(data != NULL);
	memset(data, fill, bytes);
	CU_ASSERT_EQUAL(meta_txn_table(meta, host, data, bytes), 0);
}

#endif
