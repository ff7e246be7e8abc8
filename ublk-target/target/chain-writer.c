// SPDX-License-Identifier: GPL-2.0-or-later
/* The writer of an image: opened with its marks in the header, drained, closed (rule C5). */
#include "chain-private.h"

#include <errno.h>
#include <qchain/log.h>
#include <stdlib.h>

#define META_CACHE_BLOCKS 4096u

/*
 * Before the first other write (rule B5): bits that others set and we do not
 * keep up are cleared, ours is set; the dirty bit with lazy refcounts (A3).
 */
static int mark_open(struct image *img, struct qc_err *err)
{
	if (img->version < 3)
		return 0;
	img->autoclear = QCOW2_AUTOCLEAR_QCHAIN_OPEN;
	if (img->compatible & QCOW2_COMPAT_LAZY_REFCOUNTS)
		img->incompatible |= QCOW2_INCOMPAT_DIRTY;
	if (image_write_features(img))
		return qc_err_set(err, -EIO, "%s: cannot write the header", img->dev->path);
	return 0;
}

void writer_mark_closed(struct writer *w)
{
	struct image *img = w->img;

	if (!w->meta || w->failed || img->version < 3)
		return;
	if (!w->unclean)
		img->autoclear &= ~QCOW2_AUTOCLEAR_QCHAIN_OPEN;
	img->incompatible &= ~QCOW2_INCOMPAT_DIRTY;
	if (image_write_features(img))
		log_error("%s: cannot write the header; the next open will look for leaks",
			  img->dev->path);
}

static struct writer *writer_alloc(struct chain_target *ct, struct layer *layer, bool below)
{
	struct writer *w = calloc(1, sizeof(*w));

	if (!w)
		return NULL;
	w->ct = ct;
	w->layer = layer;
	w->img = w->layer->img;
	w->shows = ct->ti;
	w->below = below;
	CDS_INIT_LIST_HEAD(&w->new_tables);
	CDS_INIT_LIST_HEAD(&w->linked);
	CDS_INIT_LIST_HEAD(&w->parked);
	CDS_INIT_LIST_HEAD(&w->held);
	CDS_INIT_LIST_HEAD(&w->node);
	w->full_timer.fn = writer_full_timer;
	return w;
}

static int open_tables(struct writer *w, struct qc_err *err)
{
	struct image *img = w->img;
	u32 i;
	int ret;

	ret = meta_create(w->ct->loop, img->dev, min(4096u, (u32)image_cluster_bytes(img)),
			  META_CACHE_BLOCKS, &writer_meta_ops, w, &w->meta);
	if (ret)
		return qc_err_set(err, ret, "%s: out of memory", img->dev->path);
	ret = refcounts_open(img, w->meta, &w->rc, err);
	if (ret)
		return ret;
	w->cells = calloc(CELL_BUCKETS, sizeof(*w->cells));
	if (!w->cells)
		return qc_err_set(err, -ENOMEM, "%s: out of memory", img->dev->path);
	for (i = 0; i < CELL_BUCKETS; i++)
		CDS_INIT_LIST_HEAD(&w->cells[i]);
	w->unclean = img->autoclear & QCOW2_AUTOCLEAR_QCHAIN_OPEN;
	w->early = (w->ct->log || w->ct->may_lose) && img->version >= 3 &&
		   !(img->compatible & QCOW2_COMPAT_LAZY_REFCOUNTS);
	chain_log_name(img->dev, w->log_name);
	return mark_open(img, err);
}

int writer_open(struct chain_target *ct, struct layer *layer, bool below,
		struct writer **result, struct qc_err *err)
{
	struct writer *w = writer_alloc(ct, layer, below);
	int ret = 0;

	if (!w)
		return qc_err_set(err, -ENOMEM, "%s: out of memory", layer->path);
	if (w->img->format != IMAGE_RAW)
		ret = open_tables(w, err);
	if (ret) {
		writer_destroy(w);
		return ret;
	}
	*result = w;
	return 0;
}

static void pin_header(struct meta_wait *wait)
{
	struct writer *w = container_of(wait, struct writer, header_wait);

	if (!meta_get(w->meta, 0, wait, &w->header))
		meta_pin(w->header);
}

void writer_start(struct writer *w, u16 id)
{
	w->id = id;
	w->start_ns = loop_now_ns(w->ct->loop);
	w->layer->writer = w;
	w->logged = w->early && w->ct->log &&
		    !intent_log_attach(w->ct->log, w->log_name, &w->log_layer);
	w->early = w->logged || (w->early && !w->ct->log);
	w->header_wait.fn = pin_header;
	if (w->meta && w->img->version >= 3)
		pin_header(&w->header_wait);
	if (w->unclean) /* what is to be replayed has been by now: it names clusters */
		writer_scan_start(w);
}

struct writer *chain_next_writer(const struct chain_target *ct, const struct writer *w)
{
	const struct cds_list_head *next = w ? w->node.next : ct->closing.next;

	if (w && w == ct->receiving)
		return NULL;
	if (w && w == ct->active)
		return ct->receiving;
	if (next != &ct->closing)
		return cds_list_entry(next, struct writer, node);
	return ct->active ? ct->active : ct->receiving;
}

bool writer_matters(const struct writer *w)
{
	if (w == w->ct->receiving && !w->ct->map.table->handed_end)
		return false;
	return !w->hidden;
}

u64 writer_size(const struct writer *w)
{
	return w->hidden ? w->img->virtual_size : w->ct->map.size_bytes;
}

bool writer_idle(const struct writer *w)
{
	/* the timer of a full volume looks at the writer, once more after its last wait */
	if (w->nr_ops || w->scan || w->full_timer.deadline_ns)
		return false;
	if (!w->meta)
		return true;
	if (!meta_idle(w->meta) || refcounts_busy(w->rc))
		return false;
	/* what a failed device has unmapped never becomes durable, nor free */
	return w->failed ? !w->ct->grace.running : !w->nr_reclaims;
}

void writer_destroy(struct writer *w)
{
	if (!w)
		return;
	if (w->logged && !w->failed)
		intent_log_detach(w->ct->log, w->log_layer);
	if (w->layer->writer) /* else it never started, and others look there */
		w->layer->writer = NULL;
	layer_table_free(w->old_table);
	overlap_free(w->img->overlap);
	w->img->overlap = NULL;
	refcounts_close(w->rc);
	meta_destroy(w->meta);
	free(w->cells);
	free(w);
}
