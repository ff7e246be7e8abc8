// SPDX-License-Identifier: GPL-2.0-or-later
/* From extents to the targets of a device-mapper table: joined, aligned, not too many. */
#include <errno.h>
#include <qchain/mapped.h>
#include <stdlib.h>
#include <string.h>

#define FIRST_ROOM 64u

void mapped_table_exit(struct mapped_table *table)
{
	free(table->rows);
	memset(table, 0, sizeof(*table));
}

static bool joins(const struct mapped_row *a, const struct mapped_row *b)
{
	if (a->kind != b->kind)
		return false;
	return a->kind != MAPPED_LINEAR ||
	       (a->device == b->device && a->offset + a->bytes == b->offset);
}

int mapped_table_add(struct mapped_table *table, const struct mapped_row *row)
{
	struct mapped_row *last = table->nr ? &table->rows[table->nr - 1] : NULL, *larger;
	u32 room = table->room ? table->room * 2 : FIRST_ROOM;

	if (!row->bytes)
		return 0;
	if (last && joins(last, row)) {
		last->bytes += row->bytes;
		return 0;
	}
	if (table->nr == table->room) {
		larger = room > table->room ?
				 realloc(table->rows, room * sizeof(*larger)) : NULL;
		if (!larger)
			return -ENOMEM;
		table->rows = larger;
		table->room = room;
		last = table->nr ? &larger[table->nr - 1] : NULL;
	}
	table->rows[table->nr] = *row;
	table->rows[table->nr++].start = last ? last->start + last->bytes : 0;
	return 0;
}

static int add_rest(struct mapped_table *table, u64 bytes)
{
	const struct mapped_row row = { .kind = MAPPED_REST, .bytes = bytes };

	return mapped_table_add(table, &row);
}

/* @row with its unaligned head and tail as rest. */
static int add_aligned(struct mapped_table *table, const struct mapped_row *row, u32 align)
{
	u64 end = row->start + row->bytes;
	u64 first = ALIGN_UP(row->start, align), last = end - end % align;
	struct mapped_row middle = *row;
	int ret;

	if (row->kind == MAPPED_LINEAR && (row->start ^ row->offset) % align)
		first = end;
	if (first >= last)
		return add_rest(table, row->bytes);
	middle.bytes = last - first;
	middle.offset += first - row->start;
	ret = add_rest(table, first - row->start);
	if (!ret)
		ret = mapped_table_add(table, &middle);
	return ret ? ret : add_rest(table, end - last);
}

int mapped_table_align(struct mapped_table *table, u32 align)
{
	struct mapped_table aligned = { .nr = 0 };
	int ret = 0;

	for (u32 i = 0; i < table->nr && !ret; i++) {
		const struct mapped_row *row = &table->rows[i];

		ret = row->kind == MAPPED_REST ? add_rest(&aligned, row->bytes) :
						 add_aligned(&aligned, row, align);
	}
	if (ret) {
		mapped_table_exit(&aligned);
		return ret;
	}
	mapped_table_exit(table);
	*table = aligned;
	return 0;
}

/* ---- the limit ------------------------------------------------------------------ */

/* The larger first; of two alike the one in front. */
static int compare_rows(const void *a, const void *b)
{
	const struct mapped_row *one = *(struct mapped_row *const *)a;
	const struct mapped_row *two = *(struct mapped_row *const *)b;

	if (one->bytes != two->bytes)
		return one->bytes < two->bytes ? 1 : -1;
	return one->start < two->start ? -1 : one->start > two->start;
}

/* How many targets more there are when row @i stays: one for each side where rest is left. */
static int cost_of(const struct mapped_table *table, const u8 *stays, u32 i)
{
	bool before = i > 0 && !stays[i - 1];
	bool behind = i + 1 < table->nr && !stays[i + 1];

	return before + behind;
}

/* Which rows may stay; @order is room for as many pointers as there are rows. */
static void choose_rows(const struct mapped_table *table, u32 most, struct mapped_row **order,
			u8 *stays)
{
	u32 nr = 1; /* all of it is rest */

	for (u32 i = 0; i < table->nr; i++)
		order[i] = &table->rows[i];
	qsort(order, table->nr, sizeof(*order), compare_rows);
	for (u32 i = 0; i < table->nr; i++) {
		u32 at = order[i] - table->rows;
		int cost = cost_of(table, stays, at);

		if (order[i]->kind == MAPPED_REST || nr + cost > most)
			continue;
		stays[at] = 1;
		nr += cost;
	}
}

int mapped_table_limit(struct mapped_table *table, u32 most)
{
	struct mapped_table limited = { .nr = 0 };
	struct mapped_row **order;
	u8 *stays;
	int ret = -ENOMEM;

	if (table->nr <= most)
		return 0;
	order = malloc(table->nr * sizeof(*order));
	stays = calloc(table->nr, sizeof(*stays));
	if (order && stays) {
		choose_rows(table, most, order, stays);
		ret = 0;
	}
	for (u32 i = 0; i < table->nr && !ret; i++)
		ret = stays[i] ? mapped_table_add(&limited, &table->rows[i]) :
				 add_rest(&limited, table->rows[i].bytes);
	free(order);
	free(stays);
	if (ret) {
		mapped_table_exit(&limited);
		return ret;
	}
	mapped_table_exit(table);
	*table = limited;
	return 0;
}

u64 mapped_table_bytes(const struct mapped_table *table, enum mapped_kind kind)
{
	u64 bytes = 0;

	for (u32 i = 0; i < table->nr; i++)
		if (table->rows[i].kind == kind)
			bytes += table->rows[i].bytes;
	return bytes;
}
