// SPDX-License-Identifier: GPL-2.0-or-later
/* Tables of device-mapper: joined, aligned, limited; random ones against a cell per sector. */
#include "random.h"
#include "unit.h"

#include <qchain/mapped.h>
#include <stdlib.h>
#include <string.h>

#define CASES 3000u
#define MAX_SECTORS 600u
#define NR_DEVICES 3u

/* What one sector is; @sector: of the device that has it. */
struct cell {
	u8 kind;
	u32 device;
	u64 sector;
};

static struct cell model[MAX_SECTORS];
static u32 nr_cells;
static struct mapped_table table;

/* ---- by hand ------------------------------------------------------------------------ */

static void add(enum mapped_kind kind, u32 device, u64 offset, u64 bytes)
{
	const struct mapped_row row = { .kind = kind, .device = device, .offset = offset,
					.bytes = bytes };

	CU_ASSERT_FATAL(mapped_table_add(&table, &row) == 0);
}

static void is_row(u32 i, enum mapped_kind kind, u64 start, u64 bytes, u64 offset)
{
	CU_ASSERT_FATAL(i < table.nr);
	CU_ASSERT(table.rows[i].kind == kind);
	CU_ASSERT(table.rows[i].start == start);
	CU_ASSERT(table.rows[i].bytes == bytes);
	CU_ASSERT(kind != MAPPED_LINEAR || table.rows[i].offset == offset);
}

static void test_join(void)
{
	add(MAPPED_LINEAR, 0, 65536, 4096);
	add(MAPPED_LINEAR, 0, 69632, 4096);
	add(MAPPED_LINEAR, 0, 77824, 4096); /* a gap on the device */
	add(MAPPED_LINEAR, 1, 81920, 4096); /* another device */
	add(MAPPED_ZERO, 0, 0, 512);
	add(MAPPED_ZERO, 1, 9999, 512);
	add(MAPPED_REST, 0, 0, 0); /* nothing */
	add(MAPPED_ZERO, 0, 0, 1024);
	CU_ASSERT(table.nr == 4);
	is_row(0, MAPPED_LINEAR, 0, 8192, 65536);
	is_row(1, MAPPED_LINEAR, 8192, 4096, 77824);
	is_row(2, MAPPED_LINEAR, 12288, 4096, 81920);
	is_row(3, MAPPED_ZERO, 16384, 2048, 0);
	CU_ASSERT(mapped_table_bytes(&table, MAPPED_LINEAR) == 16384);
	CU_ASSERT(mapped_table_bytes(&table, MAPPED_ZERO) == 2048);
	mapped_table_exit(&table);
	CU_ASSERT(table.nr == 0 && !table.rows);
}

static void test_align(void)
{
	add(MAPPED_LINEAR, 0, 4096, 4096 + 512); /* its tail does not fit */
	add(MAPPED_ZERO, 0, 0, 8192 - 512); /* nor its head */
	add(MAPPED_LINEAR, 0, 512, 4096); /* nor any of it, on its device */
	CU_ASSERT_FATAL(mapped_table_align(&table, 4096) == 0);
	CU_ASSERT(table.nr == 4);
	is_row(0, MAPPED_LINEAR, 0, 4096, 4096);
	is_row(1, MAPPED_REST, 4096, 4096, 0);
	is_row(2, MAPPED_ZERO, 8192, 4096, 0);
	is_row(3, MAPPED_REST, 12288, 4096, 0);
	mapped_table_exit(&table);
}

static void test_limit(void)
{
	add(MAPPED_LINEAR, 0, 0, 4096);
	add(MAPPED_ZERO, 0, 0, 65536);
	add(MAPPED_LINEAR, 1, 0, 4096);
	add(MAPPED_LINEAR, 0, 1 << 20, 32768);
	CU_ASSERT_FATAL(mapped_table_limit(&table, 4) == 0);
	CU_ASSERT(table.nr == 4); /* all of it fits */
	CU_ASSERT_FATAL(mapped_table_limit(&table, 3) == 0);
	CU_ASSERT(table.nr == 3);
	is_row(0, MAPPED_LINEAR, 0, 4096, 0); /* small, but it takes no target more */
	is_row(1, MAPPED_ZERO, 4096, 65536, 0);
	is_row(2, MAPPED_REST, 69632, 36864, 0);
	CU_ASSERT_FATAL(mapped_table_limit(&table, 1) == 0);
	CU_ASSERT(table.nr == 1);
	is_row(0, MAPPED_REST, 0, 106496, 0);
	mapped_table_exit(&table);
}

/* ---- at random ---------------------------------------------------------------------- */

static struct cell cell_at(u32 sector)
{
	u64 at = (u64)sector * SECTOR_SIZE;

	for (u32 i = 0; i < table.nr; i++) {
		const struct mapped_row *row = &table.rows[i];

		if (at < row->start || at >= row->start + row->bytes)
			continue;
		if (row->kind != MAPPED_LINEAR)
			return (struct cell){ .kind = row->kind };
		return (struct cell){ row->kind, row->device,
				      (row->offset + at - row->start) / SECTOR_SIZE };
	}
	return (struct cell){ .kind = 255 };
}

static bool same_cell(const struct cell *a, const struct cell *b)
{
	return a->kind == b->kind && a->device == b->device && a->sector == b->sector;
}

static bool goes_on(const struct cell *a, const struct cell *b)
{
	return a->kind == b->kind && (a->kind != MAPPED_LINEAR ||
				      (a->device == b->device && a->sector + 1 == b->sector));
}

/* The rows tile the device, each as long as it can be, and show the model. */
static void check_table(void)
{
	u32 edges = 1;

	for (u32 i = 0; i < nr_cells; i++) {
		struct cell found = cell_at(i);

		CU_ASSERT_FATAL(same_cell(&found, &model[i]));
		edges += i && !goes_on(&model[i - 1], &model[i]);
	}
	CU_ASSERT_FATAL(table.nr == edges);
	CU_ASSERT(cell_at(nr_cells).kind == 255);
}

/* Extents as a chain has them: some go on where the one before has ended. */
static void make_table(struct rnd *r, u32 align)
{
	struct cell cell = { .kind = MAPPED_ZERO };
	u32 len;

	nr_cells = 0;
	while (nr_cells + 40 + align < MAX_SECTORS && (nr_cells == 0 || !rnd_once(r, 40))) {
		if (!rnd_once(r, 4)) {
			cell = (struct cell){ .kind = rnd_below(r, 3) };
			if (cell.kind == MAPPED_LINEAR) {
				cell.device = rnd_below(r, NR_DEVICES);
				cell.sector = rnd_below(r, 4000);
				if (!rnd_once(r, 3))
					cell.sector = ALIGN_UP(cell.sector, align) +
						      nr_cells % align;
			}
		}
		len = rnd_once(r, 3) ? rnd_between(r, 1, 3) : align * rnd_between(r, 1, 4);
		add(cell.kind, cell.device, cell.sector * SECTOR_SIZE, (u64)len * SECTOR_SIZE);
		for (; len; len--) {
			model[nr_cells++] = cell;
			cell.sector += cell.kind == MAPPED_LINEAR;
		}
	}
	for (; nr_cells % align; nr_cells++) {
		model[nr_cells] = (struct cell){ .kind = MAPPED_REST };
		add(MAPPED_REST, 0, 0, SECTOR_SIZE);
	}
}

/* A block is one thing, and a block on its device too, or it is rest. */
static void align_model(u32 align)
{
	for (u32 block = 0; block < nr_cells; block += align) {
		bool fits = model[block].kind != MAPPED_LINEAR ||
			    model[block].sector % align == 0;

		for (u32 i = block + 1; i < block + align; i++)
			fits &= goes_on(&model[i - 1], &model[i]);
		for (u32 i = block; i < block + align && !fits; i++)
			model[i] = (struct cell){ .kind = MAPPED_REST };
	}
}

static int compare_bytes(const void *a, const void *b)
{
	const struct mapped_row *one = a, *two = b;

	return one->bytes < two->bytes ? 1 : one->bytes > two->bytes ? -1 : 0;
}

/* The largest rows that can stand by themselves in any case: one, and rest beside each. */
static u64 bytes_at_least(u32 most)
{
	struct mapped_row *rows = malloc(table.nr * sizeof(*rows));
	u64 bytes = 0;

	CU_ASSERT_FATAL(rows != NULL);
	memcpy(rows, table.rows, table.nr * sizeof(*rows));
	qsort(rows, table.nr, sizeof(*rows), compare_bytes);
	for (u32 i = 0, taken = 0; i < table.nr && taken < (most - 1) / 2; i++) {
		if (rows[i].kind == MAPPED_REST)
			continue;
		bytes += rows[i].bytes;
		taken++;
	}
	free(rows);
	return bytes;
}

static void check_limit(struct rnd *r)
{
	u32 most = rnd_between(r, 1, table.nr + 3), before = table.nr;
	u64 least = bytes_at_least(most);

	CU_ASSERT_FATAL(mapped_table_limit(&table, most) == 0);
	CU_ASSERT_FATAL(table.nr <= most);
	CU_ASSERT(before > most || table.nr == before);
	CU_ASSERT(mapped_table_bytes(&table, MAPPED_LINEAR) +
		  mapped_table_bytes(&table, MAPPED_ZERO) >= least);
	for (u32 i = 0; i < nr_cells; i++) {
		struct cell found = cell_at(i);

		CU_ASSERT_FATAL(found.kind == MAPPED_REST || same_cell(&found, &model[i]));
	}
}

static void test_random(void)
{
	struct rnd r = { .state = rnd_seed("tables") };

	for (u32 i = 0; i < CASES; i++) {
		u32 align = 1u << rnd_below(&r, 4);

		make_table(&r, align);
		check_table();
		CU_ASSERT_FATAL(mapped_table_align(&table, align * SECTOR_SIZE) == 0);
		align_model(align);
		check_table();
		check_limit(&r);
		mapped_table_exit(&table);
	}
}

int main(void)
{
	static const struct unit_test tests[] = {
		{ "adjacent extents are joined", test_join },
		{ "what is not aligned is rest", test_align },
		{ "the larger stretches stay", test_limit },
		{ "random tables, against a cell per sector", test_random },
		{ NULL, NULL },
	};

	return unit_main("mapped", tests);
}
