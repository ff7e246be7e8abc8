// SPDX-License-Identifier: GPL-2.0-or-later
/* qchainctl scan: every chain in a VG, whoever made it, and what is broken. */
#include "scan.h"

#include "tree-draw.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---- reading --------------------------------------------------------------------------- */

static int scan_place(struct scan *scan, bool activate)
{
	int ret;

	scan->nr = scan->place.nr_lvs;
	scan->images = calloc(scan->nr + 1, sizeof(*scan->images));
	if (!scan->images)
		return -ENOMEM;
	for (u32 i = 0; i < scan->nr; i++) {
		scan->images[i].lv = &scan->place.lvs[i];
		scan->images[i].below = SCAN_NONE;
		scan_name_image(&scan->place, &scan->images[i]);
	}
	ret = scan_look_at(scan, activate);
	if (!ret)
		ret = scan_link(scan);
	if (!ret)
		ret = scan_find_users(scan);
	return ret ? ret : scan_judge(scan);
}

/* Rows of a VG follow each other. */
static int scan_groups(const struct lvm_lv *lvs, u32 nr_lvs, bool activate, struct scan **result,
		       u32 *nr)
{
	struct scan *larger;
	int ret = 0;

	for (u32 i = 0; i < nr_lvs && !ret; i++) {
		if (i && !strcmp(lvs[i].vg, lvs[i - 1].vg))
			continue;
		larger = realloc(*result, (*nr + 1) * sizeof(*larger));
		if (!larger)
			return -ENOMEM;
		*result = larger;
		larger[*nr] = (struct scan){ .nr = 0 };
		ret = record_place_take(lvs, nr_lvs, lvs[i].vg, &larger[(*nr)++].place);
	}
	for (u32 i = 0; i < *nr && !ret; i++)
		ret = scan_place(&(*result)[i], activate);
	return ret;
}

int scan_read(const char *vg, bool activate, struct scan **result, u32 *nr, struct qc_err *err)
{
	struct lvm_lv *lvs;
	u32 nr_lvs;
	int ret = lvm_list(vg, &lvs, &nr_lvs, err);

	*result = NULL;
	*nr = 0;
	if (ret)
		return ret;
	ret = scan_groups(lvs, nr_lvs, activate, result, nr);
	free(lvs);
	if (!ret)
		return 0;
	scan_free(*result, *nr);
	*result = NULL;
	*nr = 0;
	return qc_err_set(err, ret, "%s: not scanned (%s)", vg ? vg : "volume groups",
			  strerror(-ret));
}

void scan_free(struct scan *scans, u32 nr)
{
	for (u32 i = 0; i < nr; i++) {
		for (u32 k = 0; k < scans[i].nr; k++) {
			free(scans[i].images[k].backing);
			free(scans[i].images[k].backing_format);
		}
		free(scans[i].images);
		free(scans[i].chains);
		free(scans[i].problems);
		record_place_exit(&scans[i].place);
	}
	free(scans);
}

const char *scan_image_state(const struct scan_image *image)
{
	static const char *const uses[] = { [USE_OPEN] = "in use", [USE_SERVED] = "serving" };

	if (image->use != USE_NONE)
		return uses[image->use];
	if (image->look == LOOK_ELSEWHERE)
		return "elsewhere";
	return image->lv->active ? "active" : "inactive";
}

/* ---- as JSON ------------------------------------------------------------------------------ */

static json_object *text_or_null(const char *text)
{
	return text && *text ? json_object_new_string(text) : NULL;
}

/* Control characters of a header's name are for nobody's terminal. */
static json_object *name_or_null(const char *text)
{
	char clean[PRINT_CLEAN_BYTES];

	return text ? json_object_new_string(print_clean(text, clean)) : NULL;
}

static const char *format_of(const struct scan_image *image)
{
	if (image->look == LOOK_IMAGE || image->look == LOOK_BROKEN)
		return "qcow2";
	return image->look == LOOK_NO_IMAGE ? "raw" : NULL;
}

static json_object *image_json(const struct scan *scan, const struct scan_image *image)
{
	json_object *row = json_object_new_object();
	const char *below = image->below == SCAN_NONE || image->cut ? NULL :
			    scan->images[image->below].lv->name;

	json_object_object_add(row, "lv", json_object_new_string(image->lv->name));
	json_object_object_add(row, "uuid", json_object_new_string(image->lv->uuid));
	json_object_object_add(row, "file", json_object_new_string(image->lv->path));
	json_object_object_add(row, "format", text_or_null(format_of(image)));
	json_object_object_add(row, "snapshot", text_or_null(image->snapshot));
	json_object_object_add(row, "state", json_object_new_string(scan_image_state(image)));
	json_object_object_add(row, "device", text_or_null(image->device));
	json_object_object_add(row, "used-by", text_or_null(image->user));
	json_object_object_add(row, "backing", name_or_null(image->backing));
	json_object_object_add(row, "stands-on", text_or_null(below));
	json_object_object_add(row, "virtual-size", image->look != LOOK_IMAGE ? NULL :
			       json_object_new_int64(image->virtual_size));
	json_object_object_add(row, "size", json_object_new_int64(image->lv->size_bytes));
	return row;
}

/* What stands on @base, then @base. */
static void add_images(const struct scan *scan, u32 base, json_object *rows)
{
	for (u32 i = scan_next_above(scan, base, 0); i != SCAN_NONE;
	     i = scan_next_above(scan, base, i + 1))
		add_images(scan, i, rows);
	json_object_array_add(rows, image_json(scan, &scan->images[base]));
}

static json_object *problems_json(const struct scan *scan, u32 chain)
{
	json_object *list = json_object_new_array(), *row;

	for (u32 i = 0; i < scan->nr_problems; i++) {
		const struct scan_problem *p = &scan->problems[i];

		if (p->chain != chain)
			continue;
		row = json_object_new_object();
		json_object_object_add(row, "lv", json_object_new_string(
					       scan->images[p->image].lv->name));
		json_object_object_add(row, "problem", json_object_new_string(p->text));
		json_object_object_add(row, "mend", text_or_null(p->mend));
		json_object_array_add(list, row);
	}
	return list;
}

static json_object *chain_json(const struct scan *scan, u32 chain)
{
	json_object *object = json_object_new_object(), *images = json_object_new_array();
	const struct scan_chain *c = &scan->chains[chain];

	json_object_object_add(object, "name", json_object_new_string(c->name));
	json_object_object_add(object, "owner", json_object_new_string(scan_owner_name(c->owner)));
	for (u32 base = scan_next_base(scan, chain, 0); base != SCAN_NONE;
	     base = scan_next_base(scan, chain, base + 1))
		add_images(scan, base, images);
	json_object_object_add(object, "images", images);
	json_object_object_add(object, "problems", problems_json(scan, chain));
	return object;
}

static json_object *scan_json(const struct scan *scan)
{
	json_object *object = json_object_new_object(), *chains = json_object_new_array();

	json_object_object_add(object, "vg", json_object_new_string(scan->place.vg));
	json_object_object_add(object, "shared", json_object_new_boolean(
				       scan->place.nr_lvs && scan->place.lvs[0].locked));
	for (u32 i = 0; i < scan->nr_chains; i++)
		json_object_array_add(chains, chain_json(scan, i));
	json_object_object_add(object, "chains", chains);
	json_object_object_add(object, "not-looked-at", json_object_new_int64(scan->nr_unread));
	return object;
}

/* ---- as a picture -------------------------------------------------------------------------- */

static json_object *drawn_image(const struct scan *scan, u32 at)
{
	const struct scan_image *image = &scan->images[at];
	json_object *row = json_object_new_object(), *list = json_object_new_array();

	json_object_object_add(row, "node-name", json_object_new_string(image->lv->name));
	json_object_object_add(row, "snapshot", text_or_null(image->snapshot));
	json_object_object_add(row, "state", json_object_new_string(scan_image_state(image)));
	if (image->look == LOOK_IMAGE)
		json_object_object_add(row, "virtual-size",
				       json_object_new_int64(image->virtual_size));
	json_object_object_add(row, "actual-size", json_object_new_int64(image->lv->size_bytes));
	json_object_object_add(row, "file", text_or_null(image->user));
	if (!image->nr_above)
		json_object_object_add(row, "depth", json_object_new_int(0));
	for (u32 i = scan_next_above(scan, at, 0); i != SCAN_NONE;
	     i = scan_next_above(scan, at, i + 1))
		json_object_array_add(list, drawn_image(scan, i));
	json_object_object_add(row, "branches", list);
	return row;
}

/* What a base should stand on, and does not, is drawn too. */
static json_object *drawn_base(const struct scan *scan, u32 base)
{
	const struct scan_image *image = &scan->images[base];
	json_object *row = drawn_image(scan, base), *below, *list;

	if (!image->backing)
		return row;
	below = json_object_new_object();
	list = json_object_new_array();
	json_object_object_add(below, "node-name", name_or_null(image->backing));
	json_object_object_add(below, "state", json_object_new_string(
				       image->cut ? "loop" :
				       scan_backing_is_elsewhere(image) ? "outside" : "missing"));
	json_object_array_add(list, row);
	json_object_object_add(below, "branches", list);
	return below;
}

static json_object *drawn_chain(const struct scan *scan, u32 chain)
{
	json_object *list = json_object_new_array();

	for (u32 base = scan_next_base(scan, chain, 0); base != SCAN_NONE;
	     base = scan_next_base(scan, chain, base + 1))
		json_object_array_add(list, drawn_base(scan, base));
	return list;
}

static void print_problems(const struct scan *scan, u32 chain)
{
	for (u32 i = 0; i < scan->nr_problems; i++) {
		const struct scan_problem *p = &scan->problems[i];

		if (p->chain != chain)
			continue;
		printf("  %s!%s %s: %s\n", print_colour(stdout, COLOUR_BAD),
		       print_colour(stdout, COLOUR_NONE), scan->images[p->image].lv->name, p->text);
		if (p->mend[0])
			printf("    %s\n", p->mend);
	}
}

static void print_chain(const struct scan *scan, u32 chain, json_object *bases,
			const struct tree_columns *columns)
{
	const struct scan_chain *c = &scan->chains[chain];

	printf("\n%s%s%s  %s\n", print_colour(stdout, COLOUR_STRONG), c->name,
	       print_colour(stdout, COLOUR_NONE),
	       c->owner == OWNER_UNKNOWN ? "" : scan_owner_name(c->owner));
	for (u32 i = 0; i < json_object_array_length(bases); i++)
		tree_draw_branch(json_object_array_get_idx(bases, i), 0, columns);
	print_problems(scan, chain);
}

static void print_summary(const struct scan *scan)
{
	u32 unread = 0;

	for (u32 i = 0; i < scan->nr; i++)
		unread += scan->images[i].is_layer && scan->images[i].look == LOOK_UNREAD;
	if (unread || scan->nr_unread)
		printf("\nnot active, and not looked at: images %u (known by name and tags, see "
		       "--activate), other LVs %u\n", unread, scan->nr_unread);
}

static int print_scan(const struct scan *scan)
{
	json_object **drawn = calloc(scan->nr_chains + 1, sizeof(*drawn));
	struct tree_columns columns = { 0 };

	if (!drawn)
		return -ENOMEM;
	printf("VG %s: %u chain%s, %u problem%s%s\n", scan->place.vg, scan->nr_chains,
	       scan->nr_chains == 1 ? "" : "s", scan->nr_problems,
	       scan->nr_problems == 1 ? "" : "s",
	       scan->place.nr_lvs && scan->place.lvs[0].locked ? ", shared by lvmlockd" : "");
	for (u32 i = 0; i < scan->nr_chains; i++) {
		drawn[i] = drawn_chain(scan, i);
		for (u32 k = 0; k < json_object_array_length(drawn[i]); k++)
			tree_measure(json_object_array_get_idx(drawn[i], k), 0, &columns);
	}
	for (u32 i = 0; i < scan->nr_chains; i++) {
		print_chain(scan, i, drawn[i], &columns);
		json_object_put(drawn[i]);
	}
	print_summary(scan);
	free(drawn);
	return 0;
}

/* ---- the verb -------------------------------------------------------------------------------- */

static int print_all(const struct scan *scans, u32 nr, bool json)
{
	json_object *list = json ? json_object_new_array() : NULL;
	int ret = 0;

	for (u32 i = 0; i < nr && !ret; i++) {
		if (json)
			json_object_array_add(list, scan_json(&scans[i]));
		else
			ret = print_scan(&scans[i]);
	}
	if (json)
		print_json(list);
	else if (!nr)
		printf("no logical volumes\n");
	return ret;
}

static int scan_run(const struct verb *verb, int argc, char **argv)
{
	enum { ACTIVATE = 256, JSON };
	static const struct option options[] = {
		{ "activate", no_argument, NULL, ACTIVATE },
		{ "json", no_argument, NULL, JSON },
		{ NULL, 0, NULL, 0 },
	};
	bool json = false, activate = false;
	struct qc_err err = { 0 };
	struct scan *scans;
	int c, status;
	u32 nr;

	while ((c = verb_option(verb, argc, argv, options)) != -1) {
		if (c == '?')
			return verb_status(verb);
		*(c == JSON ? &json : &activate) = true;
	}
	status = verb_arguments(verb, argc, argv, 0, 1);
	if (status)
		return status;
	if (scan_read(argv[optind], activate, &scans, &nr, &err))
		return print_error(&err);
	if (print_all(scans, nr, json))
		status = print_error(&(struct qc_err){ .code = -ENOMEM });
	scan_free(scans, nr);
	return status;
}

const struct verb verb_scan = {
	.name = "scan",
	.summary = "the chains of a volume group, whoever made them, and what is broken",
	.usage = "[VG] [--activate] [--json]",
	.options =
		"  --activate  make images that are not active so for a look, shared, one by\n"
		"              one, and inactive again; only what name or tags call qcow2\n"
		"  --json      a list of {vg, shared, chains: [{name, owner, images: [{lv,\n"
		"              uuid, file, format, snapshot, state, device, used-by, backing,\n"
		"              stands-on, virtual-size, size}], problems: [{lv, problem,\n"
		"              mend}]}], not-looked-at}; images from the top down\n"
		"\n"
		"Finds chains of qchain, Proxmox VE, Incus, CloudStack and oVirt. Reads headers\n"
		"only, of LVs that are active, and changes nothing. BASE in a command that mends\n"
		"is to be filled in. States: serving (by qchaind here), in use, active,\n"
		"inactive, elsewhere (another host has it, with lvmlockd).\n",
	.examples =
		"  qchainctl scan pve\n"
		"  qchainctl scan --json | jq -r '.[].chains[].problems[].mend'\n",
	.run = scan_run,
};
