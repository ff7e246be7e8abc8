// SPDX-License-Identifier: GPL-2.0-or-later OR MIT
/* Checking an image: counts against refcounts, window by window, then repairs. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "qcow2-check.h"
#include "qcow2-layout.h"
#include "qcow2-refbits.h"

/* ---- findings --------------------------------------------------------------- */

static void say(struct check *c, const char *fmt, va_list ap)
{
	char line[512];

	if (!c->report)
		return;
	vsnprintf(line, sizeof(line), fmt, ap);
	c->report(c->report_arg, line);
}

void check_say(struct check *c, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	say(c, fmt, ap);
	va_end(ap);
}

void check_corrupt(struct check *c, const char *fmt, ...)
{
	va_list ap;

	if (!check_judges(c))
		return;
	c->result->corruptions++;
	va_start(ap, fmt);
	say(c, fmt, ap);
	va_end(ap);
}

void check_corrupt_count(struct check *c, const char *fmt, ...)
{
	va_list ap;

	if (c->again)
		return;
	c->result->corruptions++;
	va_start(ap, fmt);
	say(c, fmt, ap);
	va_end(ap);
}

int check_failed(struct check *c, int code, const char *fmt, ...)
{
	char text[512];
	va_list ap;

	c->result->check_errors++;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	check_say(c, "%s", text);
	return qc_err_set(c->err, code, "%s: %s", c->img->dev->path, text);
}

int check_read(struct check *c, void *buf, u64 bytes, u64 offset)
{
	u64 end = image_dev_bytes(c->img);
	u64 have = offset < end ? min(bytes, end - offset) : 0;

	memset((u8 *)buf + have, 0, bytes - have);
	return have ? io_dev_pread(c->img->dev, buf, have, offset) : 0;
}

/* ---- counts ------------------------------------------------------------------ */

u64 check_counted(const struct check *c, u64 cluster)
{
	u64 at = cluster - c->window_first;

	switch (c->count_bytes) {
	case 1:
		return c->counts[at];
	case 2:
		return ((const u16 *)c->counts)[at];
	default:
		return ((const u32 *)c->counts)[at];
	}
}

void check_set_count(struct check *c, u64 cluster, u64 value)
{
	u64 at = cluster - c->window_first;

	c->touched[at >> CHECK_GROUP_BITS] = 1;
	switch (c->count_bytes) {
	case 1:
		c->counts[at] = value;
		break;
	case 2:
		((u16 *)c->counts)[at] = value;
		break;
	default:
		((u32 *)c->counts)[at] = value;
	}
}

static void count_one(struct check *c, u64 cluster)
{
	u64 value = check_counted(c, cluster);

	if (value == c->count_max)
		check_corrupt_count(c, "cluster %llu: more uses than a refcount of %u bits can "
				    "count (%llu); convert the image to a wider one",
				    (unsigned long long)cluster, 1u << c->img->refcount_order,
				    (unsigned long long)value);
	else if (value != UINT32_MAX) /* 64 bits wide: nobody waits for so many */
		check_set_count(c, cluster, value + 1);
}

void check_count(struct check *c, u64 offset, u64 bytes)
{
	u64 first, last, end;

	if (!bytes)
		return;
	/* The last cluster may be there in part. No sum overflows: bytes are few. */
	end = c->dev_bytes + c->cluster_bytes;
	if (offset >= end || offset + bytes >= end) {
		check_corrupt(c, "offset 0x%llx: %llu bytes are used there, the image ends at "
			      "0x%llx",
			      (unsigned long long)offset, (unsigned long long)bytes,
			      (unsigned long long)c->dev_bytes);
		return;
	}
	first = offset >> c->img->cluster_bits;
	last = (offset + bytes - 1) >> c->img->cluster_bits;
	c->nr_clusters = max(c->nr_clusters, last + 1);
	first = max(first, c->window_first);
	last = min(last, c->window_first + c->window_clusters - 1);
	for (; first <= last; first++)
		count_one(c, first);
}

/* Pages that were touched are given back; all counts are 0 again. */
void check_clear_counts(struct check *c)
{
	if (madvise(c->counts, c->counts_bytes, MADV_DONTNEED))
		memset(c->counts, 0, c->counts_bytes);
	memset(c->touched, 0, (c->window_most >> CHECK_GROUP_BITS) + 1);
}

static void *map_zeroes(size_t bytes)
{
	void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return memory == MAP_FAILED ? NULL : memory;
}

/* Room for what a rebuild appends to a file, too. */
static u64 clusters_with_room(const struct check *c)
{
	u64 blocks, table;

	layout_refcounts(c->nr_clusters, c->img->cluster_bits, c->img->refcount_order, &blocks,
			 &table);
	return c->nr_clusters + 1 + 2 * (blocks + table) +
	       (QC_MAX_SNAPSHOT_TABLE_BYTES >> c->img->cluster_bits) + 1;
}

static int allocate_counts(struct check *c)
{
	c->nr_clusters = DIV_ROUND_UP(c->dev_bytes, c->cluster_bytes);
	if (c->nr_clusters > CHECK_MAX_CLUSTERS)
		return check_failed(c, -EFBIG, "too many clusters to check (%llu), must be at "
				    "most %llu",
				    (unsigned long long)c->nr_clusters, CHECK_MAX_CLUSTERS);
	c->room = clusters_with_room(c);
	c->count_max = refcount_max(c->img->refcount_order);
	c->count_bytes = c->img->refcount_order <= 3 ? 1 : c->img->refcount_order == 4 ? 2 : 4;
	c->window_most = min(c->room, CHECK_WINDOW_BYTES / c->count_bytes);
	c->counts_bytes = c->window_most * c->count_bytes;
	c->counts = map_zeroes(c->counts_bytes);
	c->touched = calloc(1, (c->window_most >> CHECK_GROUP_BITS) + 1);
	c->ones_bytes = DIV_ROUND_UP(c->room, 8);
	c->ones = map_zeroes(c->ones_bytes);
	c->l2 = io_alloc(c->cluster_bytes);
	c->block = io_alloc(c->cluster_bytes);
	c->block_index = ~0ull;
	if (!c->counts || !c->touched || !c->ones || !c->l2 || !c->block)
		return check_failed(c, -ENOMEM, "no memory for the counts (%zu bytes)",
				    c->counts_bytes + c->ones_bytes);
	return 0;
}

/* ---- refcounts on disk -------------------------------------------------------- */

int check_load_block(struct check *c, u64 index)
{
	u64 offset;
	int ret;

	if (index >= c->reftable_entries)
		return 0;
	offset = c->reftable[index] & ~QCOW2_REFTABLE_RESERVED;
	if (!offset)
		return 0;
	if (c->block_states[index] == BLOCK_UNREADABLE || !IS_ALIGNED(offset, c->cluster_bytes))
		return -EIO;
	if (c->block_index == index)
		return 1;
	ret = check_read(c, c->block, c->cluster_bytes, offset);
	c->block_index = ret ? ~0ull : index;
	c->block_states[index] = ret ? BLOCK_UNREADABLE : BLOCK_FINE;
	return ret ? -EIO : 1;
}

int check_refcount_is_one(struct check *c, u64 cluster)
{
	u64 index = cluster / c->refcounts_per_block;
	int ret;

	if (cluster < c->nr_clusters) {
		if (index < c->reftable_entries &&
		    (c->block_states[index] == BLOCK_UNREADABLE ||
		     !IS_ALIGNED(c->reftable[index] & ~QCOW2_REFTABLE_RESERVED, c->cluster_bytes)))
			return -EIO;
		return c->ones[cluster / 8] >> (cluster % 8) & 1;
	}
	/* Beyond the end, as in a file that was cut off: seldom enough to read. */
	ret = check_load_block(c, index);
	if (ret <= 0)
		return ret;
	return refcount_get(c->block, c->img->refcount_order,
			    cluster % c->refcounts_per_block) == 1;
}

/* Pages that stay 0 are not written, so that they take no memory. */
static void set_one(struct check *c, u64 cluster, bool one)
{
	u8 bit = 1u << (cluster % 8);
	u8 *byte = &c->ones[cluster / 8];

	if (one != !!(*byte & bit))
		*byte ^= bit;
}

static bool is_zero(const u8 *memory, u64 bytes)
{
	return !bytes || (memory[0] == 0 && memcmp(memory, memory + 1, bytes - 1) == 0);
}

/*
 * Nothing counted, and nothing remembered of a pass before: on a device of many
 * terabytes most of it is so, and need not be read.
 */
static bool is_untouched(const struct check *c, u64 from, u64 to)
{
	u64 group = (from - c->window_first) >> CHECK_GROUP_BITS;
	u64 last = (to - 1 - c->window_first) >> CHECK_GROUP_BITS;

	return is_zero(c->touched + group, last - group + 1) &&
	       is_zero(c->ones + from / 8, DIV_ROUND_UP(to, 8) - from / 8);
}

/* ---- the comparison ------------------------------------------------------------ */

/* struct compare - one refcount block against the counts */
struct compare {
	u64 first; /* cluster that entry 0 of the block stands for */
	u64 from, to; /* clusters to look at */
	u32 fix;
	bool there;
	u64 dirty_from, dirty_to; /* entries, dirty_to exclusive */
	u64 fixed_leaks, fixed_corruptions;
};

/* Returns whether the difference was repaired in c->block. */
static bool fix_difference(struct check *c, struct compare *cmp, u64 cluster, u64 disk, u64 counted)
{
	u64 entry = cluster - cmp->first;

	if (disk == 0 || !(cmp->fix & (disk > counted ? CHECK_FIX_LEAKS : CHECK_FIX_ERRORS)))
		return false;
	refcount_set(c->block, c->img->refcount_order, entry, counted);
	if (cmp->dirty_to == 0)
		cmp->dirty_from = entry;
	cmp->dirty_to = entry + 1;
	if (disk > counted)
		cmp->fixed_leaks++;
	else
		cmp->fixed_corruptions++;
	return true;
}

static void compare_cluster(struct check *c, struct compare *cmp, u64 cluster)
{
	u64 disk = cmp->there ? refcount_get(c->block, c->img->refcount_order,
					     cluster - cmp->first) : 0;
	u64 counted = check_counted(c, cluster);
	bool fixed;

	if (disk || counted)
		c->result->image_end_offset =
			max(c->result->image_end_offset, (cluster + 1) << c->img->cluster_bits);
	if (disk == counted) {
		set_one(c, cluster, disk == 1);
		return;
	}
	if (disk == 0)
		c->rebuild = true;
	fixed = fix_difference(c, cmp, cluster, disk, counted);
	set_one(c, cluster, fixed ? counted == 1 : disk == 1);
	if (!c->again)
		check_say(c, "cluster %llu: refcount %llu, used %llu times: %s",
			  (unsigned long long)cluster, (unsigned long long)disk,
			  (unsigned long long)counted, disk < counted ? "error" : "leaked");
	if (!fixed && disk < counted)
		c->result->corruptions++;
	else if (!fixed)
		c->result->leaks++;
}

/* Only the bytes of the block that changed are written, in one piece. */
static int write_block(struct check *c, struct compare *cmp)
{
	u64 index = cmp->first / c->refcounts_per_block;
	u32 order = c->img->refcount_order;
	u64 from = ALIGN_DOWN((cmp->dirty_from << order) / 8, SECTOR_SIZE);
	u64 to = ALIGN_UP(((cmp->dirty_to << order) + 7) / 8, SECTOR_SIZE);
	int ret = check_begin_write(c);

	if (!ret)
		ret = io_dev_pwrite(c->img->dev, c->block + from, to - from,
				    (c->reftable[index] & ~QCOW2_REFTABLE_RESERVED) + from);
	if (ret < 0)
		return check_failed(c, ret, "refcount block %llu: write failed (%s)",
				    (unsigned long long)index, strerror(-ret));
	c->result->leaks_fixed += cmp->fixed_leaks;
	c->result->corruptions_fixed += cmp->fixed_corruptions;
	return 0;
}

static int compare_block(struct check *c, struct compare *cmp)
{
	u64 index = cmp->first / c->refcounts_per_block;
	int ret = check_load_block(c, index);

	if (ret < 0) {
		/* Each of them could not be compared. */
		check_say(c, "refcount block %llu cannot be read: clusters %llu to %llu not "
			  "compared",
			  (unsigned long long)index, (unsigned long long)cmp->from,
			  (unsigned long long)cmp->to - 1);
		c->result->check_errors += cmp->to - cmp->from;
		return 0;
	}
	cmp->there = ret;
	if (!cmp->there && is_untouched(c, cmp->from, cmp->to))
		return 0;
	for (u64 cluster = cmp->from; cluster < cmp->to; cluster++)
		compare_cluster(c, cmp, cluster);
	return cmp->dirty_to ? write_block(c, cmp) : 0;
}

/* All clusters of the window. */
static int compare_window(struct check *c, u32 fix)
{
	u64 end = min(c->nr_clusters, c->window_first + c->window_clusters);
	u64 cluster = c->window_first;
	int ret = 0;

	while (cluster < end && !ret) {
		struct compare cmp = {
			.first = cluster / c->refcounts_per_block * c->refcounts_per_block,
			.from = cluster,
			.fix = fix,
		};

		cmp.to = min(end, cmp.first + c->refcounts_per_block);
		ret = compare_block(c, &cmp);
		cluster = cmp.to;
	}
	return ret;
}

/* ---- passes -------------------------------------------------------------------- */

static void use_window(struct check *c, u64 first)
{
	check_clear_counts(c);
	c->window_first = first;
	c->window_clusters = c->window_most;
	c->first_window = first == 0;
}

/*
 * Walk and compare, window by window. What the walk found is in *@walked, what
 * the comparison adds is in c->result: a repair replaces the latter only.
 */
static int run_pass(struct check *c, u32 fix, struct check_result *walked)
{
	struct check_result compared = {};
	u64 first = 0;
	int ret = 0;

	do {
		/* One window holds its counts from the pass before. */
		if (!c->again || c->window_first != first) {
			use_window(c, first);
			ret = check_walk(c);
		}
		if (ret)
			break;
		*walked = *c->result;
		*c->result = compared;
		ret = compare_window(c, fix);
		compared = *c->result;
		*c->result = *walked;
		first += c->window_most;
	} while (!ret && first < c->nr_clusters);
	c->result->corruptions += compared.corruptions;
	c->result->leaks += compared.leaks;
	c->result->check_errors += compared.check_errors;
	c->result->corruptions_fixed += compared.corruptions_fixed;
	c->result->leaks_fixed += compared.leaks_fixed;
	c->result->image_end_offset = max(c->result->image_end_offset, compared.image_end_offset);
	return ret;
}

/* New tables, and a look at the outcome; fixed is what is not there any more. */
static int rebuild_pass(struct check *c)
{
	struct check_result before = *c->result, walked;
	int ret;

	check_say(c, "rebuilding the refcount tables");
	ret = check_rebuild(c);
	if (ret)
		return ret;
	*c->result = (struct check_result){
		.total_clusters = before.total_clusters,
		.corruptions_fixed = before.corruptions_fixed,
		.leaks_fixed = before.leaks_fixed,
	};
	c->rebuild = false;
	c->fix &= ~CHECK_FIX_ERRORS; /* this pass looks only */
	ret = run_pass(c, 0, &walked);
	c->fix |= CHECK_FIX_ERRORS;
	if (c->result->corruptions < before.corruptions)
		c->result->corruptions_fixed += before.corruptions - c->result->corruptions;
	if (c->result->leaks < before.leaks)
		c->result->leaks_fixed += before.leaks - c->result->leaks;
	return ret;
}

static int flush_repairs(struct check *c)
{
	int ret = io_dev_flush(c->img->dev);

	return ret < 0 ? check_failed(c, ret, "flush failed (%s)", strerror(-ret)) : 0;
}

/* Compare again, now with repairs; entries that were repaired are durable before. */
static int repair_pass(struct check *c, const struct check_result *walked)
{
	struct check_result found = *c->result, ignored;
	int ret = flush_repairs(c);

	if (ret)
		return ret;
	*c->result = *walked;
	c->result->image_end_offset = found.image_end_offset;
	c->again = true;
	ret = run_pass(c, c->fix, &ignored);
	c->again = false;
	return ret ? ret : flush_repairs(c);
}

/* Entries of refcount block @index for clusters that nothing can use become 0. */
static int free_block_beyond(struct check *c, u64 index)
{
	struct compare cmp = { .first = index * c->refcounts_per_block, .fix = CHECK_FIX_LEAKS };
	u64 end = cmp.first + c->refcounts_per_block, disk;

	if (check_load_block(c, index) <= 0)
		return 0;
	for (u64 cluster = max(cmp.first, c->nr_clusters); cluster < end; cluster++) {
		disk = refcount_get(c->block, c->img->refcount_order, cluster - cmp.first);
		if (disk)
			fix_difference(c, &cmp, cluster, disk, 0);
	}
	if (!cmp.fixed_leaks)
		return 0;
	check_say(c, "refcount block %llu: %llu clusters beyond the end are counted: freed",
		  (unsigned long long)index, (unsigned long long)cmp.fixed_leaks);
	cmp.fixed_leaks = 0; /* told, but no leaks to qemu-img */
	return write_block(c, &cmp);
}

/*
 * Clusters beyond the end of a file are no leaks yet, to qemu-img neither: they
 * become some when the file grows. Where something is used there, which is an
 * error, nothing is freed.
 */
static int free_beyond_end(struct check *c)
{
	u64 index = c->nr_clusters / c->refcounts_per_block;
	int ret = 0;

	if (!(c->fix & CHECK_FIX_LEAKS) || c->result->corruptions || c->result->check_errors)
		return 0;
	for (; index < c->reftable_entries && !ret; index++)
		ret = free_block_beyond(c, index);
	return ret ? ret : flush_repairs(c);
}

static int check_refcounts(struct check *c)
{
	struct check_result walked;
	int ret = run_pass(c, 0, &walked);

	if (ret)
		return ret;
	if ((c->rebuild || c->nr_short_snapshots) && (c->fix & CHECK_FIX_ERRORS))
		return rebuild_pass(c);
	if (!c->fix)
		return 0;
	if (c->rebuild)
		return check_failed(c, -EIO, "refcount tables cannot be repaired in place; "
				    "repair all errors, not only leaks");
	if (c->result->leaks || c->result->corruptions || c->writing)
		ret = repair_pass(c, &walked);
	return ret ? ret : free_beyond_end(c);
}

static int check_all(struct check *c)
{
	int ret = allocate_counts(c);

	for (u32 i = 0; i < c->img->nr_faults; i++)
		check_say(c, "%s", c->img->faults[i]);
	c->result->total_clusters = DIV_ROUND_UP(c->img->virtual_size, c->cluster_bytes);
	if (!ret)
		ret = check_read_tables(c);
	if (!ret)
		ret = check_refcounts(c);
	if (!ret)
		ret = check_copied(c);
	if (!ret && c->fix && !c->result->check_errors && !c->result->corruptions)
		ret = check_mark_clean(c);
	return ret;
}

int image_check(struct image *img, u32 fix, void (*report)(void *arg, const char *line), void *arg,
		struct check_result *result, struct qc_err *err)
{
	struct check c = {
		.img = img,
		.fix = fix,
		.report = report,
		.report_arg = arg,
		.err = err,
		.result = result,
		.dev_bytes = ALIGN_UP(image_dev_bytes(img), SECTOR_SIZE),
		.cluster_bytes = image_cluster_bytes(img),
		.refcounts_per_block = layout_refcounts_per_block(img->cluster_bits,
								  img->refcount_order),
		.data_file = img->external_data,
		.first_window = true,
	};
	int ret;

	*result = (struct check_result){};
	if (img->format != IMAGE_QCOW2)
		return qc_err_set(err, -EOPNOTSUPP, "%s: format %s has nothing to check, must be "
				  "qcow2",
				  img->dev->path, image_format_name(img->format));
	if (fix && !img->dev->writable)
		return qc_err_set(err, -EROFS, "%s: open read-only, cannot be repaired",
				  img->dev->path);
	ret = check_all(&c);
	if (c.counts)
		munmap(c.counts, c.counts_bytes);
	if (c.ones)
		munmap(c.ones, c.ones_bytes);
	free(c.touched);
	free(c.l2);
	free(c.block);
	free(c.reftable);
	free(c.block_states);
	free(c.blocks_sorted);
	free(c.snapshots);
	return ret;
}
