// SPDX-License-Identifier: GPL-2.0-or-later
/* qchainctl space: where the bytes of a VG are, chain by chain and layer by layer. */
#include "image/held.h"
#include "image/merge-cost.h"
#include "scan.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define BAR_COLUMNS 32

/*
 * struct space_layer - of an image of a scan
 * @known: it is active and could be read; else only the LV's size is
 * @can_delete: one image stands on it, so that the two can be merged
 * @returns: bytes that the VG has more after that: the LV that goes, less what the
 *	other one must grow by
 */
struct space_layer {
	bool known;
	struct held held;
	bool can_delete;
	bool by_commit;
	u64 returns;
};

/* ---- counting -------------------------------------------------------------------------- */

static bool is_readable(const struct scan_image *image)
{
	return image->lv->active && (image->look == LOOK_IMAGE || image->look == LOOK_NO_IMAGE);
}

static u64 missing(const struct merge_side *side)
{
	return side->needed - min(side->needed, side->room);
}

/* As `delete` goes: a device in use is not committed, what it stands on is streamed up. */
static int count_delete(const struct scan *scan, u32 at, u32 above, struct space_layer *layer,
			struct qc_err *err)
{
	const struct scan_image *lower = &scan->images[at], *upper = &scan->images[above];
	struct merge_part parts[2] = {
		{ .path = upper->lv->path, .nr_layers = 1 },
		{ .path = lower->lv->path, .nr_layers = 1 },
	};
	struct merge_cost cost = { .commit.bytes = 0 };
	u64 gone, grows;
	int ret = merge_cost(&parts[0], &parts[1], NULL, &cost, err);

	if (ret)
		return ret;
	layer->can_delete = true;
	layer->by_commit = upper->nr_above < 2 && merge_cost_is_commit(&cost) &&
			   (upper->nr_above || upper->use != USE_SERVED);
	gone = layer->by_commit ? upper->lv->size_bytes : lower->lv->size_bytes;
	grows = missing(layer->by_commit ? &cost.commit : &cost.stream);
	layer->returns = gone - min(gone, grows);
	return 0;
}

/* Paths of what stands on image @at, malloc'ed; NULL: no memory, or one cannot be read. */
static const char **paths_above(const struct scan *scan, u32 at)
{
	const char **paths = calloc(scan->images[at].nr_above + 1, sizeof(*paths));
	u32 nr = 0;

	for (u32 i = scan_next_above(scan, at, 0); paths && i != SCAN_NONE;
	     i = scan_next_above(scan, at, i + 1)) {
		if (!is_readable(&scan->images[i])) {
			free(paths);
			return NULL;
		}
		paths[nr++] = scan->images[i].lv->path;
	}
	return paths;
}

static int count_layer(const struct scan *scan, u32 at, struct space_layer *layer,
		       struct qc_err *err)
{
	const struct scan_image *image = &scan->images[at];
	const char **above = is_readable(image) ? paths_above(scan, at) : NULL;
	int ret;

	if (!above)
		return 0;
	ret = image_held(image->lv->path, image->look == LOOK_IMAGE ? IMAGE_QCOW2 : IMAGE_RAW,
			 above, image->nr_above, &layer->held, err);
	free(above);
	layer->known = !ret;
	if (ret || image->nr_above != 1)
		return ret;
	return count_delete(scan, at, scan_next_above(scan, at, 0), layer, err);
}

/* One that cannot be counted is told, and is no reason not to count the others. */
static int count_all(const struct scan *scan, struct space_layer **result)
{
	int status = CTL_DONE;
	struct qc_err err;

	*result = calloc(scan->nr + 1, sizeof(**result));
	if (!*result)
		return print_error(&(struct qc_err){ .code = -ENOMEM });
	for (u32 i = 0; i < scan->nr; i++) {
		err.code = 0;
		if (scan->images[i].is_layer && count_layer(scan, i, &(*result)[i], &err))
			status = print_error(&err);
	}
	return status;
}

/* Of a chain, all its layers. */
struct space_sum {
	u64 size;
	u64 held;
};

/* ---- as JSON ------------------------------------------------------------------------------ */

static json_object *number_if(bool known, u64 number)
{
	return known ? json_object_new_int64(number) : NULL;
}

static json_object *layer_json(const struct scan_image *image, const struct space_layer *layer)
{
	json_object *row = json_object_new_object();
	const char *way = layer->by_commit ? "commit" : "stream";

	json_object_object_add(row, "lv", json_object_new_string(image->lv->name));
	json_object_object_add(row, "snapshot", image->snapshot[0] ?
			       json_object_new_string(image->snapshot) : NULL);
	json_object_object_add(row, "state", json_object_new_string(scan_image_state(image)));
	json_object_object_add(row, "size", json_object_new_int64(image->lv->size_bytes));
	json_object_object_add(row, "held", number_if(layer->known, layer->held.data));
	json_object_object_add(row, "only", number_if(layer->known, layer->held.only));
	json_object_object_add(row, "delete-returns",
			       number_if(layer->can_delete, layer->returns));
	json_object_object_add(row, "delete-way",
			       layer->can_delete ? json_object_new_string(way) : NULL);
	return row;
}

/* What is done with each image of a chain, from the top down. */
typedef void (*layer_fn)(const struct scan *scan, const struct space_layer *layers, u32 at,
			 void *arg);

static void each_above(const struct scan *scan, const struct space_layer *layers, u32 at,
		       layer_fn fn, void *arg)
{
	for (u32 i = scan_next_above(scan, at, 0); i != SCAN_NONE;
	     i = scan_next_above(scan, at, i + 1))
		each_above(scan, layers, i, fn, arg);
	fn(scan, layers, at, arg);
}

static void each_layer(const struct scan *scan, const struct space_layer *layers, u32 chain,
		       layer_fn fn, void *arg)
{
	for (u32 base = scan_next_base(scan, chain, 0); base != SCAN_NONE;
	     base = scan_next_base(scan, chain, base + 1))
		each_above(scan, layers, base, fn, arg);
}

static void add_to_json(const struct scan *scan, const struct space_layer *layers, u32 at,
			void *arg)
{
	json_object_array_add(arg, layer_json(&scan->images[at], &layers[at]));
}

static void add_to_sum(const struct scan *scan, const struct space_layer *layers, u32 at, void *arg)
{
	struct space_sum *sum = arg;

	sum->size += scan->images[at].lv->size_bytes;
	sum->held += layers[at].held.data;
}

static json_object *chain_json(const struct scan *scan, const struct space_layer *layers, u32 chain)
{
	json_object *object = json_object_new_object(), *list = json_object_new_array();
	const struct scan_chain *c = &scan->chains[chain];
	struct space_sum sum = { .size = 0 };

	each_layer(scan, layers, chain, add_to_sum, &sum);
	each_layer(scan, layers, chain, add_to_json, list);
	json_object_object_add(object, "name", json_object_new_string(c->name));
	json_object_object_add(object, "owner", json_object_new_string(scan_owner_name(c->owner)));
	json_object_object_add(object, "size", json_object_new_int64(sum.size));
	json_object_object_add(object, "held", json_object_new_int64(sum.held));
	json_object_object_add(object, "layers", list);
	return object;
}

static const struct lvm_lv *any_lv(const struct scan *scan)
{
	return &scan->place.lvs[0]; /* a VG without LVs has no row */
}

static json_object *space_json(const struct scan *scan, const struct space_layer *layers)
{
	json_object *object = json_object_new_object(), *chains = json_object_new_array();

	json_object_object_add(object, "vg", json_object_new_string(scan->place.vg));
	json_object_object_add(object, "size", json_object_new_int64(any_lv(scan)->vg_bytes));
	json_object_object_add(object, "free", json_object_new_int64(any_lv(scan)->vg_free_bytes));
	for (u32 i = 0; i < scan->nr_chains; i++)
		json_object_array_add(chains, chain_json(scan, layers, i));
	json_object_object_add(object, "chains", chains);
	return object;
}

/* ---- as a table with bars -------------------------------------------------------------------- */

struct table {
	int name;
	int snapshot;
	u64 largest; /* LV: as long as the bar gets */
};

static void measure(const struct scan *scan, const struct space_layer *layers, u32 at, void *arg)
{
	const struct scan_image *image = &scan->images[at];
	struct table *table = arg;

	table->name = max(table->name, (int)strlen(image->lv->name));
	table->snapshot = max(table->snapshot, max(1, (int)strlen(image->snapshot)));
	table->largest = max(table->largest, image->lv->size_bytes);
}

static void print_part(enum print_colour colour, char c, u32 from, u32 to)
{
	printf("%s", print_colour(stdout, colour));
	for (; from < to; from++)
		putchar(c);
	printf("%s", print_colour(stdout, COLOUR_NONE));
}

/* "#": others show it, too; "=": only this one; ".": the rest of the LV. */
static void print_bar(const struct scan_image *image, const struct space_layer *layer,
		      const struct table *table)
{
	u64 size = image->lv->size_bytes, held = min(layer->held.data, size);
	double scale = (double)BAR_COLUMNS / table->largest;
	u32 end = max(1u, (u32)(size * scale + 0.5)), full, shared;

	full = min(end, (u32)(held * scale + 0.99));
	shared = (held - min(held, layer->held.only)) * scale + 0.5;
	shared = min(shared, full);
	printf("  ");
	print_part(COLOUR_GOOD, '#', 0, shared);
	print_part(COLOUR_WARN, '=', shared, full);
	print_part(COLOUR_FAINT, '.', full, end);
}

static const char *size_if(bool known, u64 bytes, char *text)
{
	return known ? print_size(bytes, text) : "-";
}

static void print_layer(const struct scan *scan, const struct space_layer *layers, u32 at,
			void *arg)
{
	const struct scan_image *image = &scan->images[at];
	const struct space_layer *layer = &layers[at];
	const struct table *table = arg;
	char size[32], held[32], only[32], back[32];

	printf("%s  %-*s  %-*s  %9s  %9s  %9s  %9s", image->nr_above ? "o" : "*", table->name,
	       image->lv->name, table->snapshot, image->snapshot[0] ? image->snapshot : "-",
	       print_size(image->lv->size_bytes, size),
	       size_if(layer->known, layer->held.data, held),
	       size_if(layer->known, layer->held.only, only),
	       size_if(layer->can_delete, layer->returns, back));
	if (print_is_terminal(stdout))
		print_bar(image, layer, table);
	printf("\n");
}

static void print_space(const struct scan *scan, const struct space_layer *layers)
{
	struct table table = { .name = 2, .snapshot = 8 };
	struct space_sum sum;
	char a[32], b[32];

	for (u32 i = 0; i < scan->nr_chains; i++)
		each_layer(scan, layers, i, measure, &table);
	printf("VG %s: %s, %s free\n", scan->place.vg, print_size(any_lv(scan)->vg_bytes, a),
	       print_size(any_lv(scan)->vg_free_bytes, b));
	if (scan->nr_chains)
		printf("\n   %-*s  %-*s  %9s  %9s  %9s  %9s\n", table.name, "LV", table.snapshot,
		       "SNAPSHOT", "SIZE", "HELD", "ONLY", "DELETE");
	for (u32 i = 0; i < scan->nr_chains; i++) {
		sum = (struct space_sum){ .size = 0 };
		each_layer(scan, layers, i, add_to_sum, &sum);
		printf("%s%s%s: %s in LVs, %s held\n", print_colour(stdout, COLOUR_STRONG),
		       scan->chains[i].name, print_colour(stdout, COLOUR_NONE),
		       print_size(sum.size, a), print_size(sum.held, b));
		each_layer(scan, layers, i, print_layer, &table);
	}
}

/* ---- the verb -------------------------------------------------------------------------------- */

static int space_all(const struct scan *scans, u32 nr, bool json)
{
	json_object *list = json ? json_object_new_array() : NULL;
	struct space_layer *layers;
	int status = CTL_DONE;

	for (u32 i = 0; i < nr; i++) {
		if (count_all(&scans[i], &layers))
			status = CTL_FAILED;
		if (layers && json)
			json_object_array_add(list, space_json(&scans[i], layers));
		else if (layers)
			print_space(&scans[i], layers);
		free(layers);
	}
	if (json)
		print_json(list);
	return status;
}

static int space_run(const struct verb *verb, int argc, char **argv)
{
	struct qc_err err = { 0 };
	struct scan *scans;
	bool json;
	u32 nr;
	int status = served_arguments(verb, argc, argv, 0, 1, &json);

	if (status)
		return status;
	if (scan_read(argv[optind], false, &scans, &nr, &err))
		return print_error(&err);
	status = space_all(scans, nr, json);
	scan_free(scans, nr);
	return status;
}

const struct verb verb_space = {
	.name = "space",
	.summary = "what the chains of a volume group hold, layer by layer",
	.usage = "[VG] [--json]",
	.options =
		"  --json  a list of {vg, size, free, chains: [{name, owner, size, held, layers:\n"
		"          [{lv, snapshot, state, size, held, only, delete-returns,\n"
		"          delete-way}]}]}; layers from the top down, bytes\n"
		"\n"
		"SIZE: of the LV. HELD: guest data that is stored there; what is mapped and holds\n"
		"nothing does not count. ONLY: of that, what nothing that stands on it shows.\n"
		"DELETE: what the VG has more when that snapshot is deleted. On a terminal with a\n"
		"bar: # held, = only here, . the rest of the LV. LVs that are not active are not\n"
		"looked at. Numbers of images in use are estimates.\n",
	.examples =
		"  qchainctl space pve\n",
	.run = space_run,
};
