// SPDX-License-Identifier: GPL-2.0-or-later
/* The operations of a writer in a range of guest addresses: what is there, what may wait. */
#include "chain-private.h"

#include <errno.h>

/*
 * Each operation holds a cell, or waits for one of another operation: whoever walks
 * the cells and those who wait there has seen all.
 */

static bool overlaps(const struct write_op *op, u64 start, u64 end)
{
	return op->start < end && op->start + op->len > start;
}

/* To @stale: what waits at @holder for a cell, and has not begun. */
static void take_waiters(struct write_op *holder, const struct writer *w, u64 start, u64 end,
			 struct cds_list_head *stale)
{
	struct write_op *op, *tmp;

	cds_list_for_each_entry_safe(op, tmp, &holder->cell_waiters, node) {
		if (op->writer != w || !overlaps(op, start, end))
			continue;
		op->error = -ESTALE;
		cds_list_del(&op->node);
		cds_list_add_tail(&op->node, stale);
	}
}

static void take_cell_waiters(const struct writer *holder, const struct writer *w, u64 start,
			      u64 end, struct cds_list_head *stale)
{
	struct write_op *op;
	u32 i;

	for (i = 0; holder->meta && i < CELL_BUCKETS; i++)
		cds_list_for_each_entry(op, &holder->cells[i], cell)
			take_waiters(op, w, start, end, stale);
}

static void take_parked(struct writer *w, u64 start, u64 end, struct cds_list_head *stale)
{
	struct write_op *op, *tmp;

	cds_list_for_each_entry_safe(op, tmp, &w->parked, node) {
		if (!overlaps(op, start, end))
			continue;
		op->error = -ESTALE;
		cds_list_del(&op->node);
		cds_list_add_tail(&op->node, stale);
	}
}

void writer_put_off(struct writer *w, u64 start, u64 end)
{
	struct writer *other;
	CDS_LIST_HEAD(stale);

	take_cell_waiters(w, w, start, end, &stale);
	cds_list_for_each_entry(other, &w->ct->closing, node)
		if (other != w)
			take_cell_waiters(other, w, start, end, &stale);
	take_parked(w, start, end, &stale);
	write_ops_run(&stale);
}

static bool is_busy_at(const struct write_op *holder, u64 start, u64 end)
{
	const struct write_op *op;

	if (overlaps(holder, start, end))
		return true;
	cds_list_for_each_entry(op, &holder->cell_waiters, node)
		if (overlaps(op, start, end))
			return true;
	return false;
}

bool writer_is_busy(const struct writer *w, u64 start, u64 end)
{
	const struct write_op *op;
	u32 i;

	for (i = 0; w->meta && i < CELL_BUCKETS; i++)
		cds_list_for_each_entry(op, &w->cells[i], cell)
			if (is_busy_at(op, start, end))
				return true;
	return false;
}

static bool is_guests(const struct write_op *op)
{
	return slow_request_is_guests(op->parent);
}

static bool holds_guests(const struct write_op *holder)
{
	const struct write_op *op;

	if (is_guests(holder))
		return true;
	cds_list_for_each_entry(op, &holder->cell_waiters, node)
		if (is_guests(op))
			return true;
	return false;
}

bool writer_has_guests(const struct writer *w)
{
	const struct write_op *op;
	u32 i;

	for (i = 0; w->meta && i < CELL_BUCKETS; i++)
		cds_list_for_each_entry(op, &w->cells[i], cell)
			if (holds_guests(op))
				return true;
	return false;
}
