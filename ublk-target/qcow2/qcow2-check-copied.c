// SPDX-License-Identifier: GPL-2.0-or-later OR MIT
/* The checker's last step: a COPIED flag says exactly that the refcount is 1. */
#include "qcow2-check.h"

/*
 * With only leaks to repair, flags are repaired only in an image that is fine
 * otherwise: then the refcounts on disk are true.
 */
static bool repairs(const struct check *c)
{
	const struct check_result *r = c->result;

	if (c->fix & CHECK_FIX_ERRORS)
		return true;
	/* Short snapshot entries do not matter to refcounts. */
	return (c->fix & CHECK_FIX_LEAKS) && !r->check_errors && !r->leaks &&
	       r->corruptions == c->nr_short_snapshots;
}

static bool has_place(const struct check *c, u64 entry)
{
	if (entry & QCOW2_COMPRESSED)
		return false;
	if (entry & QCOW2_OFFSET_MASK)
		return true;
	return c->data_file && (entry & QCOW2_COPIED) &&
	       !((entry & QCOW2_ZERO) && !image_has_extl2(c->img));
}

/*
 * Does @entry need its flag turned over, given what @cluster's refcount is?
 * A refcount that could not be read was told before.
 */
static bool flag_is_wrong(struct check *c, u64 entry, u64 cluster)
{
	int one = check_refcount_is_one(c, cluster);

	return one >= 0 && one != !!(entry & QCOW2_COPIED);
}

static int check_l1_flag(struct check *c, u32 i, bool repair)
{
	u64 entry = l1_get(&c->img->l1, i);
	int ret;

	if (!flag_is_wrong(c, entry, (entry & QCOW2_OFFSET_MASK) >> c->img->cluster_bits))
		return 0;
	c->result->corruptions++;
	check_say(c, "L1 table entry %u: COPIED flag %s (0x%016llx)", i,
		  entry & QCOW2_COPIED ? "set, the refcount is not 1" : "missing, the refcount "
		  "is 1",
		  (unsigned long long)entry);
	if (!repair)
		return 0;
	ret = check_write_l1(c, c->img->l1_offset, i, entry ^ QCOW2_COPIED);
	if (ret)
		return ret;
	l1_set(&c->img->l1, i, entry ^ QCOW2_COPIED);
	c->result->corruptions--;
	c->result->corruptions_fixed++;
	return 0;
}

/* struct wrong_flags - entries of c->l2 that were turned over */
struct wrong_flags {
	u32 first, last;
	u32 nr;
};

static void check_l2_flag(struct check *c, u64 offset, u32 i, struct wrong_flags *wrong)
{
	u64 entry = image_l2_entry(c->img, c->l2, i);
	u64 cluster = (entry & QCOW2_OFFSET_MASK) >> c->img->cluster_bits;

	if (!has_place(c, entry))
		return;
	if (c->data_file ? (entry & QCOW2_COPIED) != 0 : !flag_is_wrong(c, entry, cluster))
		return;
	c->result->corruptions++;
	check_say(c, "L2 table 0x%llx entry %u: COPIED flag %s (0x%016llx)",
		  (unsigned long long)offset, i,
		  entry & QCOW2_COPIED ? "set, the refcount is not 1" : "missing, the refcount "
		  "is 1",
		  (unsigned long long)entry);
	image_l2_set(c->img, c->l2, i, entry ^ QCOW2_COPIED, image_l2_bitmap(c->img, c->l2, i));
	if (!wrong->nr++)
		wrong->first = i;
	wrong->last = i;
}

static int check_l2_flags(struct check *c, u64 offset, bool repair)
{
	struct wrong_flags wrong = {};
	const char *hit;
	int ret = check_read(c, c->l2, c->cluster_bytes, offset);

	if (ret < 0)
		return check_failed(c, ret, "L2 table 0x%llx: read failed (%s)",
				    (unsigned long long)offset, strerror(-ret));
	for (u32 i = 0; i < 1u << c->img->l2_bits; i++)
		check_l2_flag(c, offset, i, &wrong);
	if (!wrong.nr || !repair)
		return 0;
	hit = check_l2_overlap(c, offset);
	if (hit) {
		check_say(c, "L2 table 0x%llx overlaps the %s: its flags are not repaired",
			  (unsigned long long)offset, hit);
		return 0;
	}
	ret = check_write_l2(c, offset, wrong.first, wrong.last);
	if (ret)
		return ret;
	c->result->corruptions -= wrong.nr;
	c->result->corruptions_fixed += wrong.nr;
	return 0;
}

int check_copied(struct check *c)
{
	bool repair = repairs(c);
	u32 nr = c->img->l1_size;
	int ret = 0;

	for (u32 i = l1_next(&c->img->l1, 0, nr); i < nr && !ret;
	     i = l1_next(&c->img->l1, i + 1, nr)) {
		u64 offset = l1_get(&c->img->l1, i) & QCOW2_OFFSET_MASK;
		u64 cluster = offset >> c->img->cluster_bits;

		if (!offset || check_refcount_is_one(c, cluster) < 0)
			continue;
		ret = check_l1_flag(c, i, repair);
		if (!ret)
			ret = check_l2_flags(c, offset, repair);
	}
	if (ret || !c->writing)
		return ret;
	ret = io_dev_flush(c->img->dev);
	return ret < 0 ? check_failed(c, ret, "flush failed (%s)", strerror(-ret)) : 0;
}
