// SPDX-License-Identifier: GPL-2.0-or-later OR MIT
/* L1 table and size of a closed image; forgetting what it maps. */
#include "qcow2-edit.h"

#include <fcntl.h>
#include <stdlib.h>

#include "qcow2.h"

/* ---- the L1 table grows: a transaction of its own (rule B1, step 0) ------------ */

/* l1_size and l1_table_offset lie side by side in the header. */
struct l1_words {
	__be32 entries;
	__be64 offset;
} __attribute__((packed));

static int write_l1(struct editor *ed, u32 entries, u64 host, u64 bytes)
{
	u8 *data = io_alloc(bytes);
	u32 i;

	if (!data)
		return qc_err_set(ed->err, -ENOMEM, "%s: no memory for an L1 table",
				  ed->img->dev->path);
	memset(data, 0, bytes);
	for (i = 0; i < ed->img->l1_size; i++)
		store_be64(data + i * sizeof(u64), l1_get(&ed->img->l1, i));
	return meta_txn_fresh(ed->meta, host, data, bytes);
}

static int adopt_l1(struct editor *ed, u32 entries, u64 host)
{
	struct image *img = ed->img;

	if (l1_resize(&img->l1, entries))
		return -ENOMEM;
	img->l1_size = entries;
	img->l1_offset = host;
	return 0;
}

static int grow_l1(struct editor *ed, void *arg)
{
	struct image *img = ed->img;
	u32 entries = *(u32 *)arg;
	u64 old_bytes = ALIGN_UP((u64)img->l1_size * sizeof(u64), image_cluster_bytes(img));
	u64 bytes = ALIGN_UP((u64)entries * sizeof(u64), image_cluster_bytes(img));
	u64 old = img->l1_offset, host;
	struct l1_words words;
	int ret = editor_refcounts(ed);

	if (!ret)
		ret = editor_alloc(ed, bytes >> img->cluster_bits, &host);
	if (!ret)
		ret = write_l1(ed, entries, host, bytes);
	if (ret)
		return ret;
	words.entries = htobe32(entries);
	words.offset = htobe64(host);
	ret = editor_set_header(ed, offsetof(struct qcow2_disk_header, l1_size), &words,
				sizeof(words));
	if (!ret)
		ret = adopt_l1(ed, entries, host);
	if (!ret && old_bytes)
		ret = editor_release(ed, old, old_bytes);
	return ret;
}

int image_check_growth(const struct image *img, u64 virtual_size, struct qc_err *err)
{
	u64 per_block = image_cluster_bytes(img) * 8 >> img->refcount_order;
	u64 bytes = min((per_block - 1) << img->cluster_bits, (u64)QC_MAX_L1_BYTES);
	u64 entries = max(bytes / sizeof(u64), (u64)img->l1_size);
	u64 most = entries << image_l2_coverage_bits(img);

	if (virtual_size <= most)
		return 0;
	return qc_err_set(err, -EFBIG, "%s: size %llu too large for its cluster size, must be at "
			  "most %llu", img->dev->path, (unsigned long long)virtual_size,
			  (unsigned long long)most);
}

int image_grow_l1(struct image *img, u64 virtual_size, struct qc_err *err)
{
	u64 coverage = 1ull << image_l2_coverage_bits(img);
	u32 entries;
	int ret = image_check_growth(img, virtual_size, err);

	entries = DIV_ROUND_UP(virtual_size, coverage);
	if (ret || entries <= img->l1_size)
		return ret;
	return editor_run(img, grow_l1, &entries, err);
}

/* ---- the size --------------------------------------------------------------------- */

static int set_size(struct editor *ed, void *arg)
{
	__be64 size = htobe64(*(u64 *)arg);
	struct image *img = ed->img;

	/* bitmaps of the old size: whoever reads the bit would believe them (rule B5) */
	if (img->autoclear) {
		img->autoclear = 0;
		if (image_write_features(img))
			return qc_err_set(ed->err, -EIO, "%s: cannot write the header",
					  img->dev->path);
	}
	return editor_set_header(ed, offsetof(struct qcow2_disk_header, size), &size,
				 sizeof(size));
}

int image_set_size(struct image *img, u64 virtual_size, struct qc_err *err)
{
	int ret;

	if (virtual_size > (u64)img->l1_size << image_l2_coverage_bits(img))
		return qc_err_set(err, -EINVAL, "%s: L1 table too short (%u entries) for size %llu",
				  img->dev->path, img->l1_size, (unsigned long long)virtual_size);
	ret = editor_run(img, set_size, &virtual_size, err);
	if (!ret)
		img->virtual_size = virtual_size;
	return ret;
}

/* ---- forgetting ---------------------------------------------------------------------- */

/* A place that is no data place is not given back: the image is damaged (rule B7). */
static int add_entry(const struct image *img, const u8 *table, u32 i, struct places *data,
		     struct places *packed)
{
	u64 entry = image_l2_entry(img, table, i);
	struct cluster_info c;

	image_decode(img, entry, image_l2_bitmap(img, table, i), 0, &c);
	if (c.kind == CLUSTER_BAD)
		return -EUCLEAN;
	if (c.kind == CLUSTER_COMPRESSED)
		return places_add(packed, c.host, c.compressed_bytes);
	if (!(entry & QCOW2_OFFSET_MASK))
		return 0;
	if (overlap_what(img, entry & QCOW2_OFFSET_MASK))
		return -EUCLEAN;
	return places_add(data, entry & QCOW2_OFFSET_MASK, image_cluster_bytes(img));
}

static int collect(struct editor *ed, u32 first, struct places *data, struct places *packed)
{
	struct image *img = ed->img;
	u64 bytes = image_cluster_bytes(img);
	u8 *table = io_alloc(bytes);
	u32 i, k;
	int ret = table ? 0 : -ENOMEM;

	for (i = l1_next(&img->l1, first, img->l1_size); i < img->l1_size && !ret;
	     i = l1_next(&img->l1, i + 1, img->l1_size)) {
		u64 l2 = l1_get(&img->l1, i) & QCOW2_OFFSET_MASK;

		if (!l2)
			continue;
		ret = io_dev_pread(img->dev, table, bytes, l2);
		for (k = 0; k < 1u << img->l2_bits && ret >= 0; k++)
			ret = add_entry(img, table, k, data, packed);
		ret = ret < 0 ? ret : places_add(data, l2, bytes);
	}
	free(table);
	return ret < 0 ? qc_err_set(ed->err, ret, "%s: its L2 tables cannot be used (%s); run "
				    "qchainctl check on it", img->dev->path, strerror(-ret)) : 0;
}

static void forget_l1(struct image *img, u32 first)
{
	u32 nr = img->l1_size;

	for (u32 i = l1_next(&img->l1, first, nr); i < nr; i = l1_next(&img->l1, i + 1, nr))
		l1_set(&img->l1, i, 0);
}

/* Entries @first.. of the L1 table become 0: one transaction, then durable. */
static int clear_l1(struct editor *ed, u32 first)
{
	static const u8 zeroes[4096];
	struct image *img = ed->img;
	u64 at = img->l1_offset + first * sizeof(u64);
	u64 end = img->l1_offset + img->l1_size * sizeof(u64);
	u32 size = meta_block_bytes(ed->meta);
	struct meta_block *block;
	int ret = 0;

	while (at < end && !ret) {
		u32 n = min(end - at, size - at % size);

		ret = editor_block(ed, at, &block);
		if (!ret)
			ret = meta_txn_set(ed->meta, block, at % size, zeroes, n);
		at += n;
	}
	if (!ret)
		ret = editor_commit(ed);
	if (!ret)
		ret = editor_settle(ed);
	if (!ret)
		forget_l1(img, first);
	return ret;
}

static int release_all(struct editor *ed, const struct places *places)
{
	u32 i;
	int ret = 0;

	for (i = 0; i < places->nr && !ret; i++)
		ret = editor_release(ed, places->list[i].host, places->list[i].bytes);
	return ret ? qc_err_set(ed->err, ret, "%s: clusters could not be given back (%s); "
				"qchainctl check --repair does it", ed->img->dev->path,
				strerror(-ret)) : 0;
}

/* What nobody refers to any more; shared places and packed clusters stay. */
static void punch(struct editor *ed, const struct places *places)
{
	const struct io_dev *dev = ed->img->dev;
	u32 i;

	if (dev->blockdev || dev->fd <= 2 || ed->img->nr_snapshots)
		return;
	for (i = 0; i < places->nr; i++)
		if (fallocate(dev->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			      places->list[i].host, places->list[i].bytes))
			return; /* it cannot: they are free all the same */
}

static int unmap_from(struct editor *ed, void *arg)
{
	struct places data = {}, packed = {};
	u32 first = *(u32 *)arg;
	int ret = editor_refcounts(ed);

	if (!ret)
		ret = collect(ed, first, &data, &packed);
	if (!ret)
		ret = clear_l1(ed, first);
	if (!ret)
		ret = release_all(ed, &data);
	if (!ret)
		ret = release_all(ed, &packed);
	if (!ret)
		ret = editor_settle(ed);
	if (!ret)
		punch(ed, &data);
	free(data.list);
	free(packed.list);
	return ret;
}

int image_unmap_from(struct image *img, u64 offset, struct qc_err *err)
{
	u64 coverage = 1ull << image_l2_coverage_bits(img);
	u64 first = DIV_ROUND_UP(offset, coverage);
	u32 index = min(first, (u64)img->l1_size);

	if (l1_next(&img->l1, index, img->l1_size) == img->l1_size)
		return 0;
	return editor_run(img, unmap_from, &index, err);
}
