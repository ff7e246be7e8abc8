// SPDX-License-Identifier: GPL-2.0-or-later
/* Step 4: a guest's flush, shared by all who wait for one at the same time. */
#include "meta-private.h"

#include <assert.h>
#include <errno.h>
#include <qchain/mutant.h>

/*
 * waiters --linked--> served --flush ends--> told. One flush at a time: whoever
 * becomes ready while one runs came too late for it and shares the next one.
 */

static void flush_start(struct meta *meta);

static void tell(struct cds_list_head *flushes, int error)
{
	struct meta_flush *f, *tmp;
	CDS_LIST_HEAD(list);

	cds_list_splice(flushes, &list);
	CDS_INIT_LIST_HEAD(flushes);
	cds_list_for_each_entry_safe(f, tmp, &list, node) {
		cds_list_del(&f->node);
		f->fn(f, error);
	}
}

static void flush_done(struct io_op *op, int error)
{
	struct meta *meta = container_of(op, struct meta, guest_flush);

	meta->guest_flushing = false;
	if (error)
		meta_fail(meta, error);
	else if (meta->failed) /* meanwhile: what they wait for was lost, or not */
		error = -EIO;
	meta_run_unmaps(&meta->flush_unmaps, error);
	tell(&meta->flush_served, error);
	flush_start(meta);
}

static bool is_linked(const struct meta *meta, const struct meta_flush *f)
{
	return f->seq < meta->open_seq - (meta->committing ? 1 : 0);
}

static void flush_start(struct meta *meta)
{
	struct meta_flush *f, *tmp;

	if (meta->guest_flushing || meta->failed)
		return;
	cds_list_for_each_entry_safe(f, tmp, &meta->flush_waiters, node) {
		if (!is_linked(meta, f) && !MUTANT(FLUSH_UNCOMMITTED))
			continue;
		cds_list_del(&f->node);
		cds_list_add_tail(&f->node, &meta->flush_served);
	}
	if (cds_list_empty(&meta->flush_served))
		return;
	cds_list_splice(&meta->unmapped, &meta->flush_unmaps);
	CDS_INIT_LIST_HEAD(&meta->unmapped);
	meta->guest_flushing = true;
	meta->stats.flushes++;
	meta->guest_flush = (struct io_op){ .dev = meta->dev, .type = IO_FLUSH,
					    .done = flush_done };
	io_submit(meta->loop, &meta->guest_flush);
}

void meta_flush(struct meta *meta, struct meta_flush *flush)
{
	assert_on_loop(meta->loop);
	if (meta->failed) {
		flush->fn(flush, -EIO);
		return;
	}
	flush->seq = meta->open->empty ? meta->open_seq - 1 : meta->open_seq;
	cds_list_add_tail(&flush->node, &meta->flush_waiters);
	meta_kick(meta);
	flush_start(meta);
}

void meta_flush_linked(struct meta *meta)
{
	flush_start(meta);
}

void meta_flush_fail(struct meta *meta, int error)
{
	tell(&meta->flush_waiters, error);
}

bool meta_flush_idle(struct meta *meta)
{
	return !meta->guest_flushing && cds_list_empty(&meta->flush_waiters);
}

void meta_flush_init(struct meta *meta)
{
	CDS_INIT_LIST_HEAD(&meta->flush_waiters);
	CDS_INIT_LIST_HEAD(&meta->flush_served);
	CDS_INIT_LIST_HEAD(&meta->flush_unmaps);
}
