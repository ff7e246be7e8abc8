// SPDX-License-Identifier: GPL-2.0-or-later
/* The L1 table of an image that is being written gets more entries. */
#include "chain-private.h"

#include <endian.h>
#include <errno.h>
#include <qchain/mutant.h>
#include <stdlib.h>
#include <string.h>

/*
 *   find     adjacent clusters for the new table
 *   move     in one event: the new table joins the open transaction whole (step 1),
 *            length and place in the header are a set of it (step 3); memory has it
 *   durable  that transaction, and the flush after it
 *
 * It moves as a shared L2 table does. What the new table holds at that instant is of
 * this transaction or of earlier ones, so the flush of step 2 covers all that it
 * names before the header names it (promise R1). Whoever had pinned a block of the old
 * table for its own entry gets that of the new one.
 */

struct spare {
	struct spare *next;
	u64 host;
	u64 bytes;
};

static void give_back(struct l1_growth *g)
{
	struct spare *s;

	while ((s = g->spares)) {
		g->spares = s->next;
		writer_release_now(g->writer, s->host, s->bytes);
		free(s);
	}
}

static void growth_end(struct l1_growth *g, int error)
{
	give_back(g);
	g->fn(g, error);
}

static void durable(struct meta_flush *flush, int error)
{
	growth_end(container_of(flush, struct l1_growth, flush), error);
}

/* ---- move ---------------------------------------------------------------------- */

/* l1_size and l1_table_offset lie side by side in the header. */
static int name_table(struct meta *meta, struct meta_block *header, u32 entries, u64 host)
{
	struct {
		__be32 entries;
		__be64 offset;
	} __attribute__((packed)) words = { htobe32(entries), htobe64(host) };
	const u32 at = offsetof(struct qcow2_disk_header, l1_size);

	if (MUTANT(L1_WITH_HEADER)) {
		memcpy((u8 *)header->data + at, &words, sizeof(words));
		meta_mark_dirty(header, at, sizeof(words));
		return 0;
	}
	return meta_txn_set(meta, header, at, &words, sizeof(words));
}

static int join_table(struct writer *w, u64 host, u64 bytes)
{
	const struct image *img = w->img;
	__be64 *data = io_alloc(bytes);
	u32 i;
	int ret;

	if (!data)
		return -ENOMEM;
	memset(data, 0, bytes);
	for (i = l1_next(&img->l1, 0, img->l1_size); i < img->l1_size;
	     i = l1_next(&img->l1, i + 1, img->l1_size))
		data[i] = htobe64(l1_get(&img->l1, i));
	ret = meta_txn_table(w->meta, host, data, bytes);
	if (ret)
		free(data);
	return ret;
}

/* Tables that are being made will put their entry into the new table. */
static void repin(struct writer *w)
{
	struct meta_block *block;
	struct new_table *nt;

	cds_list_for_each_entry(nt, &w->new_tables, node) {
		if (!nt->l1_block)
			continue;
		if (meta_get(w->meta, w->img->l1_offset + nt->l1_index * sizeof(u64), NULL,
			     &block))
			abort(); /* it was put there in this event */
		meta_unpin(nt->l1_block);
		meta_pin(block);
		nt->l1_block = block;
	}
}

static int move_table(struct l1_growth *g, struct meta_block *header)
{
	struct writer *w = g->writer;
	struct image *img = w->img;
	u64 bytes = g->end - g->host;
	u64 old = img->l1_offset;
	u64 old_bytes = ALIGN_UP(img->l1_size * sizeof(u64), image_cluster_bytes(img));
	int ret = l1_resize(&img->l1, g->entries);

	if (!ret)
		ret = join_table(w, g->host, bytes);
	if (ret)
		return ret;
	g->end = 0; /* the transaction writes there: not given back any more */
	ret = name_table(w->meta, header, g->entries, g->host);
	if (ret)
		return ret;
	img->l1_offset = g->host;
	img->l1_size = g->entries;
	overlap_remove(img, old, old_bytes);
	overlap_add(img, g->host, bytes);
	repin(w);
	if (old_bytes)
		writer_unmap(w, old, old_bytes);
	return 0;
}

/* ---- find ------------------------------------------------------------------------ */

/* Runs that are too short are kept until there is a long one. */
static int spare_run(struct l1_growth *g)
{
	struct spare *s = malloc(sizeof(*s));

	if (!s)
		return -ENOMEM;
	*s = (struct spare){ .next = g->spares, .host = g->host, .bytes = g->end - g->host };
	g->spares = s;
	g->host = g->end = 0;
	return 0;
}

static int find_run(struct l1_growth *g)
{
	struct image *img = g->writer->img;
	u64 bytes = ALIGN_UP((u64)g->entries * sizeof(u64), image_cluster_bytes(img));
	u32 got;
	u64 host;
	int ret = 0;

	while (!ret && g->end - g->host < bytes) {
		ret = refcounts_alloc(g->writer->rc, (bytes - (g->end - g->host)) >>
				      img->cluster_bits, &g->wait, &host, &got);
		if (ret)
			break;
		if (host != g->end && g->end)
			ret = spare_run(g);
		if (!g->end)
			g->host = host;
		g->end = host + ((u64)got << img->cluster_bits);
	}
	return ret;
}

static void growth_run(struct meta_wait *wait)
{
	struct l1_growth *g = container_of(wait, struct l1_growth, wait);
	struct meta *meta = g->writer->meta;
	struct meta_block *header;
	int ret = find_run(g);

	if (!ret)
		ret = meta_get(meta, 0, wait, &header);
	if (!ret)
		ret = move_table(g, header);
	if (ret == -EAGAIN)
		return;
	if (!ret) {
		g->flush.fn = durable;
		meta_flush(meta, &g->flush);
		return;
	}
	if (ret == -EUCLEAN)
		writer_miscounted(g->writer);
	if (g->end)
		writer_release_now(g->writer, g->host, g->end - g->host);
	growth_end(g, ret);
}

void writer_grow_l1(struct l1_growth *g)
{
	assert_on_loop(g->writer->ct->loop);
	g->wait.fn = growth_run;
	growth_run(&g->wait);
}
