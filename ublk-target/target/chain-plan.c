// SPDX-License-Identifier: GPL-2.0-or-later
/* What becomes of each cluster that an operation touches: decisions only, no I/O. */
#include "chain-private.h"

#include <errno.h>

/*
 * A decision is a cluster_plan: where data goes (or nowhere), which guest range
 * becomes valid with it, the new entry, and what is given up. "Granule" is what
 * can become valid alone: a subcluster with extended L2, else a cluster.
 */

/* One cluster as it is, and the op's share of it. */
struct cluster_view {
	const struct writer *writer;
	const struct image *img;
	u64 guest; /* of the cluster */
	u64 from; /* the op's range in it, guest bytes */
	u64 to;
	u64 entry;
	u64 bitmap;
	u64 host; /* of its place; 0: none */
	bool copied;
	bool compressed;
	u32 first_sc; /* subclusters that the range touches */
	u32 last_sc;
};

static u64 cluster_bytes(const struct cluster_view *v)
{
	return image_cluster_bytes(v->img);
}

static u64 sub_bytes(const struct cluster_view *v)
{
	return 1ull << v->img->subcluster_bits;
}

static bool is_whole(const struct cluster_view *v)
{
	return v->first_sc == 0 && v->last_sc == v->img->subclusters - 1;
}

/* The bitmap bits of the touched subclusters, in the "allocated" half. */
static u64 touched_bits(const struct cluster_view *v)
{
	return (((1ull << (v->last_sc - v->first_sc + 1)) - 1) << v->first_sc);
}

static void give_up(const struct cluster_view *v, struct cluster_plan *p)
{
	struct cluster_info c;

	if (v->compressed) {
		image_decode(v->img, v->entry, 0, 0, &c);
		p->unmap_host = c.host;
		p->unmap_bytes = c.compressed_bytes;
	} else if (v->host) {
		p->unmap_host = v->host;
		p->unmap_bytes = cluster_bytes(v);
	}
}

static void change_entry(const struct cluster_view *v, struct cluster_plan *p, u64 entry,
			 u64 bitmap)
{
	p->entry = entry;
	p->bitmap = bitmap;
	p->changed = entry != v->entry || bitmap != v->bitmap;
}

/* ---- writes ---------------------------------------------------------------------- */

static void valid_data(struct cluster_plan *p, u64 start, u64 end)
{
	p->valid_start = start;
	p->valid_end = end;
	p->kind = EXTENT_DATA;
	p->flags = EXTENT_COPIED;
}

/* A new cluster, filled from edge to edge: the old content is copied (COW). */
static void plan_copy(const struct cluster_view *v, struct cluster_plan *p)
{
	p->alloc = true;
	give_up(v, p);
	change_entry(v, p, QCOW2_COPIED, image_has_extl2(v->img) ? QCOW2_SC_ALLOC_MASK : 0);
	p->changed = true; /* the host offset is not known yet */
	valid_data(p, v->guest, v->guest + cluster_bytes(v));
}

static void plan_write_standard(const struct cluster_view *v, const struct cluster_info *c,
				struct cluster_plan *p)
{
	p->host = v->host;
	if (c->kind == CLUSTER_DATA && c->copied) {
		change_entry(v, p, v->entry, 0);
		valid_data(p, v->from, v->to);
	} else if (c->kind == CLUSTER_ZERO_PLACE && c->copied) {
		change_entry(v, p, v->entry & ~QCOW2_ZERO, 0);
		valid_data(p, v->guest, v->guest + cluster_bytes(v));
	} else {
		p->host = 0;
		plan_copy(v, p);
	}
}

static bool sc_is_data(const struct cluster_view *v, u32 sc)
{
	return v->host && v->bitmap >> sc & 1;
}

/*
 * Extended L2: only the touched subclusters become valid. At both ends, a
 * subcluster that holds data already is written in part, any other is filled.
 */
static void plan_write_extended(const struct cluster_view *v, struct cluster_plan *p)
{
	u64 bits = touched_bits(v);
	u64 bitmap = (v->bitmap | bits) & ~(bits << 32);
	u64 start = ALIGN_DOWN(v->from, sub_bytes(v));
	u64 end = ALIGN_UP(v->to, sub_bytes(v));

	if (v->compressed || (v->host && !v->copied)) {
		plan_copy(v, p);
		return;
	}
	p->host = v->host;
	p->alloc = !v->host;
	change_entry(v, p, v->host | QCOW2_COPIED, bitmap);
	valid_data(p, sc_is_data(v, v->first_sc) ? v->from : start,
		   sc_is_data(v, v->last_sc) ? v->to : end);
}

/* ---- zeroes and discards ------------------------------------------------------------ */

static void valid_zero(const struct cluster_view *v, struct cluster_plan *p, bool zero, bool place)
{
	p->valid_start = v->from;
	p->valid_end = v->to;
	p->kind = zero ? EXTENT_ZERO : EXTENT_NONE;
	p->flags = place ? EXTENT_PLACE : 0;
}

/* The whole cluster reads as zero and has no place any more (rule B4). */
static void plan_zero_free(const struct cluster_view *v, struct cluster_plan *p)
{
	bool hide = v->writer->below;
	u64 bitmap = 0;
	u64 entry = 0;

	if (hide && image_has_extl2(v->img))
		bitmap = QCOW2_SC_ZERO_MASK;
	else if (hide)
		entry = QCOW2_ZERO;
	change_entry(v, p, entry, bitmap);
	give_up(v, p);
	valid_zero(v, p, hide, false);
}

/* The whole cluster reads as zero and keeps, or gets, a place. */
static void plan_zero_keep(const struct cluster_view *v, struct cluster_plan *p)
{
	bool ext = image_has_extl2(v->img);

	p->host = v->copied && !v->compressed ? v->host : 0;
	p->alloc = !p->host;
	if (p->alloc)
		give_up(v, p);
	change_entry(v, p, p->host | QCOW2_COPIED | (ext ? 0 : QCOW2_ZERO),
		     ext ? QCOW2_SC_ZERO_MASK : 0);
	p->changed = p->changed || p->alloc;
	valid_zero(v, p, true, true);
}

/* Some subclusters read as zero; the place stays. */
static void plan_zero_bits(const struct cluster_view *v, struct cluster_plan *p, bool discard)
{
	u64 bits = touched_bits(v);
	bool zero = v->writer->below || !discard;
	u64 bitmap = v->bitmap & ~bits & ~(bits << 32);

	p->host = v->host;
	change_entry(v, p, v->entry, zero ? bitmap | bits << 32 : bitmap);
	valid_zero(v, p, zero, zero && v->host);
}

static bool reads_zero_already(const struct cluster_view *v, const struct cluster_info *c)
{
	return c->kind == CLUSTER_ZERO || c->kind == CLUSTER_ZERO_PLACE ||
	       (c->kind == CLUSTER_UNALLOCATED && !v->writer->below);
}

static void plan_zero(struct write_op *op, const struct cluster_view *v,
		      const struct cluster_info *c, struct cluster_plan *p)
{
	bool discard = op->type == OP_DISCARD;
	bool ext = image_has_extl2(v->img);

	change_entry(v, p, v->entry, v->bitmap); /* nothing, unless below says so */
	if (v->img->version < 3 && (!discard || v->writer->below))
		return; /* no zero flag; write zeroes came as OP_WRITE */
	if (!is_whole(v)) {
		if (!v->compressed)
			plan_zero_bits(v, p, discard);
		return;
	}
	if (op->nounmap) {
		plan_zero_keep(v, p);
		return;
	}
	if (!ext && reads_zero_already(v, c) && !(discard && c->kind == CLUSTER_ZERO_PLACE))
		return;
	plan_zero_free(v, p);
}

/* What is below shows through. */
static void plan_unmap(const struct cluster_view *v, struct cluster_plan *p)
{
	change_entry(v, p, 0, 0);
	give_up(v, p);
}

/* ---- one cluster, all clusters -------------------------------------------------------- */

void *write_op_entries(const struct write_op *op)
{
	const struct image *img = op->writer->img;
	u64 index = op->first_cluster & ((1ull << img->l2_bits) - 1);
	u64 at = index * img->l2_entry_bytes;

	if (op->table)
		return op->table->data + at;
	return (u8 *)op->block->data + at % meta_block_bytes(op->writer->meta);
}

static void view_cluster(const struct write_op *op, u32 i, struct cluster_view *v)
{
	const struct image *img = op->writer->img;
	const void *entries = write_op_entries(op);

	v->writer = op->writer;
	v->img = img;
	v->guest = (op->first_cluster + i) << img->cluster_bits;
	v->from = max(v->guest, op->start);
	v->to = min(v->guest + image_cluster_bytes(img), op->start + op->len);
	v->entry = image_l2_entry(img, entries, i);
	v->bitmap = image_l2_bitmap(img, entries, i);
	v->compressed = v->entry & QCOW2_COMPRESSED;
	v->copied = v->entry & QCOW2_COPIED;
	v->host = v->compressed ? 0 : v->entry & QCOW2_OFFSET_MASK;
	v->first_sc = (v->from - v->guest) >> img->subcluster_bits;
	v->last_sc = (v->to - 1 - v->guest) >> img->subcluster_bits;
	/* zeroes up to the image's end are zeroes up to the end of its last cluster */
	if (op->type != OP_WRITE && v->to == img->virtual_size)
		v->last_sc = img->subclusters - 1;
}

/* Every subcluster must be sound, and the place must be no metadata (rule B7). */
static int check_cluster(const struct write_op *op, const struct cluster_view *v,
			 struct cluster_info *c)
{
	const char *what;

	image_decode(v->img, v->entry, v->bitmap, v->first_sc, c);
	what = c->kind == CLUSTER_BAD ? c->bad : NULL;
	if (!what && v->host)
		what = overlap_what(v->img, v->host);
	if (!what)
		return 0;
	chain_corrupt(op->writer->ct, op->writer->id, v->guest, v->host, what);
	return -EIO;
}

/* Whose subclusters that the op touches are mapped; *@nr of them are there. */
static int count_mapped(const struct cluster_view *v, u32 *nr)
{
	u32 sc, mapped = 0, last = (v->to - 1 - v->guest) >> v->img->subcluster_bits;
	struct cluster_info c;

	for (sc = v->first_sc; sc <= last; sc++) {
		image_decode(v->img, v->entry, v->bitmap, sc, &c);
		mapped += c.kind != CLUSTER_UNALLOCATED && c.kind != CLUSTER_RESERVED;
	}
	*nr = last - v->first_sc + 1;
	return mapped;
}

int write_op_is_mapped(struct write_op *op)
{
	u32 i, n, mapped = 0, nr = 0;
	struct cluster_view v;

	for (i = 0; i < op->nr_clusters; i++) {
		view_cluster(op, i, &v);
		mapped += count_mapped(&v, &n);
		nr += n;
	}
	return !mapped ? 0 : mapped == nr ? 1 : -ESTALE;
}

/* Zeroes for a part of a compressed cluster have no bitmap: they are written. */
static bool zero_needs_data(const struct write_op *op)
{
	struct cluster_view v;

	view_cluster(op, 0, &v);
	return op->type == OP_ZERO && v.compressed && !is_whole(&v);
}

int write_op_decide(struct write_op *op)
{
	struct cluster_info c;
	struct cluster_view v;
	u32 i;
	int ret;

	if (zero_needs_data(op))
		op->type = OP_WRITE;
	for (i = 0; i < op->nr_clusters; i++) {
		struct cluster_plan *p = &op->plans[i];

		view_cluster(op, i, &v);
		*p = (struct cluster_plan){ .valid_start = v.from, .valid_end = v.to };
		ret = check_cluster(op, &v, &c);
		if (ret)
			return ret;
		if (op->type == OP_UNMAP)
			plan_unmap(&v, p);
		else if (op->type != OP_WRITE)
			plan_zero(op, &v, &c, p);
		else if (image_has_extl2(v.img))
			plan_write_extended(&v, p);
		else
			plan_write_standard(&v, &c, p);
	}
	return 0;
}
