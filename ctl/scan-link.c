// SPDX-License-Identifier: GPL-2.0-or-later
/* What stands on what in a VG, and which images are one chain. */
#include "scan.h"

#include "lv-names.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static u32 index_of(const struct scan *scan, const struct lvm_lv *lv)
{
	return lv ? (u32)(lv - scan->place.lvs) : SCAN_NONE;
}

static u32 find_backing(const struct scan *scan, const char *name)
{
	return index_of(scan, lv_of_backing(scan->place.lvs, scan->place.nr_lvs, scan->place.vg,
					    name));
}

/* ---- links --------------------------------------------------------------------------- */

static void forget_header(struct scan_image *image)
{
	free(image->backing);
	free(image->backing_format);
	image->backing = NULL;
	image->backing_format = NULL;
	image->look = LOOK_NO_IMAGE;
}

/*
 * What an overlay, or a record, calls raw is a guest's disk, whatever it begins with: a guest
 * may have written a header there that names any LV.
 */
static void believe_formats(struct scan *scan)
{
	for (u32 i = 0; i < scan->nr; i++)
		if (record_is_raw_top(&scan->place, scan->images[i].lv->uuid))
			forget_header(&scan->images[i]);
	for (u32 i = 0; i < scan->nr; i++) {
		const struct scan_image *image = &scan->images[i];
		u32 below = image->backing ? find_backing(scan, image->backing) : SCAN_NONE;

		if (below != SCAN_NONE && image->backing_format &&
		    !strcmp(image->backing_format, "raw"))
			forget_header(&scan->images[below]);
	}
}

/* By the header; where that was not read, by what tags say. */
static void find_below(struct scan *scan, struct scan_image *image)
{
	if (image->look == LOOK_IMAGE && image->backing)
		image->below = find_backing(scan, image->backing);
	else if (image->look == LOOK_UNREAD || image->look == LOOK_ELSEWHERE)
		image->below = image->parent[0] ? find_backing(scan, image->parent) : SCAN_NONE;
}

/* From each image down; one that comes back to itself is where the loop is cut. */
static void cut_loops(struct scan *scan)
{
	for (u32 i = 0; i < scan->nr; i++) {
		u32 at = scan->images[i].below;

		for (u32 n = 0; n < scan->nr && at != SCAN_NONE && at != i; n++)
			at = scan->images[at].cut ? SCAN_NONE : scan->images[at].below;
		scan->images[i].cut = at == i;
	}
}

static bool has_below(const struct scan_image *image)
{
	return image->below != SCAN_NONE && !image->cut;
}

u32 scan_next_above(const struct scan *scan, u32 below, u32 from)
{
	for (u32 i = from; i < scan->nr; i++)
		if (scan->images[i].below == below && !scan->images[i].cut)
			return i;
	return SCAN_NONE;
}

/* ---- chains ----------------------------------------------------------------------------- */

/* By its header, or, where there is none or it was not read, by what its owner says. */
static bool is_image(const struct scan_image *image)
{
	return image->look == LOOK_IMAGE || image->look == LOOK_BROKEN ||
	       image->says == SAYS_QCOW2 ||
	       (image->owner == OWNER_OVIRT && image->look != LOOK_NO_IMAGE);
}

static void find_layers(struct scan *scan)
{
	for (u32 i = 0; i < scan->nr; i++) {
		struct scan_image *image = &scan->images[i];

		image->is_layer |= is_image(image);
		if (!is_image(image) && image->look != LOOK_NO_IMAGE && image->says != SAYS_RAW)
			scan->nr_unread++;
		if (!has_below(image))
			continue;
		scan->images[image->below].is_layer = true;
		scan->images[image->below].nr_above++;
	}
}

u32 scan_next_base(const struct scan *scan, u32 chain, u32 from)
{
	for (u32 i = from; i < scan->nr; i++)
		if (scan->images[i].is_layer && !has_below(&scan->images[i]) &&
		    scan->images[i].chain == chain)
			return i;
	return SCAN_NONE;
}

/* The top that is reached by the first of each branch. */
static u32 first_top(const struct scan *scan, u32 at)
{
	u32 above;

	while ((above = scan_next_above(scan, at, 0)) != SCAN_NONE)
		at = above;
	return at;
}

static int add_chain(struct scan *scan, enum scan_owner owner, const char *name)
{
	struct scan_chain *larger = realloc(scan->chains,
					    (scan->nr_chains + 1) * sizeof(*larger));

	if (!larger)
		return -ENOMEM;
	scan->chains = larger;
	larger[scan->nr_chains] = (struct scan_chain){ .owner = owner };
	snprintf(larger[scan->nr_chains].name, sizeof(larger->name), "%s", name);
	scan->nr_chains++;
	return 0;
}

/* Into the chain of its name, where its owner's naming has one; else one of its own. */
static int join_chain(struct scan *scan, struct scan_image *base, const struct scan_image *top)
{
	base->chain = 0;
	while (top->chain_name[0] && base->chain < scan->nr_chains &&
	       (scan->chains[base->chain].owner != top->owner ||
		strcmp(scan->chains[base->chain].name, top->chain_name)))
		base->chain++;
	if (top->chain_name[0] && base->chain < scan->nr_chains)
		return 0;
	base->chain = scan->nr_chains;
	return add_chain(scan, top->owner, top->chain_name[0] ? top->chain_name : top->lv->name);
}

int scan_link(struct scan *scan)
{
	int ret = 0;

	believe_formats(scan);
	for (u32 i = 0; i < scan->nr; i++)
		find_below(scan, &scan->images[i]);
	cut_loops(scan);
	find_layers(scan);
	for (u32 i = 0; i < scan->nr && !ret; i++)
		if (scan->images[i].is_layer && !has_below(&scan->images[i]))
			ret = join_chain(scan, &scan->images[i], &scan->images[first_top(scan, i)]);
	return ret;
}
