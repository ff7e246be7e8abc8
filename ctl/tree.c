// SPDX-License-Identifier: GPL-2.0-or-later
/* qchainctl tree: the layers of a chain, from the active layer down. */
#include "branches.h"
#include "job-record.h"
#include "offload.h"
#include "tree-draw.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Layers have nodes, and with some servers their files have nodes too. */
static bool is_layer(json_object *node)
{
	const char *driver = json_text(node, "drv");

	return !driver || strcmp(driver, "qcow2") == 0 || strcmp(driver, "raw") == 0;
}

static json_object *text_or_null(const char *text)
{
	return text ? json_object_new_string(text) : NULL;
}

static json_object *number_or_null(json_object *object, const char *key)
{
	s64 number = json_number(object, key, -1);

	return number >= 0 ? json_object_new_int64(number) : NULL;
}

static json_object *make_layer(const struct served *served, json_object *node, u32 depth)
{
	json_object *layer = json_object_new_object(), *image = NULL;
	const char *state = json_text(node, "state");

	json_object_object_get_ex(node, "image", &image);
	json_object_object_add(layer, "node-name", text_or_null(json_text(node, "node-name")));
	json_object_object_add(layer, "file", text_or_null(json_text(node, "file")));
	json_object_object_add(layer, "snapshot",
			       text_or_null(served_snapshot(served, json_text(node, "file"))));
	json_object_object_add(layer, "state",
			       json_object_new_string(state ? state :
						      depth ? "sealed" : "active"));
	json_object_object_add(layer, "virtual-size", number_or_null(image, "virtual-size"));
	json_object_object_add(layer, "actual-size", number_or_null(image, "actual-size"));
	json_object_object_add(layer, "depth", json_object_new_int(depth));
	return layer;
}

/* What a commit has begun to change stays so until it has ended well (rule D2). */
static void mark_merging(const struct served *served, json_object *layers)
{
	u32 nr = 0;
	json_object *jobs = json_list(served->record, "jobs", &nr);

	for (u32 i = 0; i < nr; i++) {
		json_object *job = json_object_array_get_idx(jobs, i);
		int top = layer_depth(layers, json_text(job, "top"));
		int base = layer_depth(layers, json_text(job, "base"));

		if (!job_noted_is_commit(job) || job_noted_phase(job) == RECORD_PLANNED || top < 0)
			continue;
		for (int depth = top + 1; depth <= base; depth++)
			json_object_object_add(json_object_array_get_idx(layers, depth), "state",
					       json_object_new_string("merging"));
	}
}

/* From the daemon, or as they were when the kernel got them. */
static int find_nodes(const struct served *served, json_object **result, struct qc_err *err)
{
	if (served->state == SERVED_MAPPED) {
		*result = json_object_get(offload_layers(served->record));
		return 0;
	}
	if (served->state != SERVED_LIVE)
		return served_not_live(served, err);
	return client_command(served->client, "query-named-block-nodes", NULL, false, result, err);
}

static int read_layers(const struct served *served, json_object **result, struct qc_err *err)
{
	json_object *nodes, *node;
	int ret = find_nodes(served, &nodes, err);

	if (ret)
		return ret;
	*result = json_object_new_array();
	for (u32 i = 0, depth = 0; i < json_object_array_length(nodes); i++) {
		node = json_object_array_get_idx(nodes, i);
		if (is_layer(node))
			json_object_array_add(*result, make_layer(served, node, depth++));
	}
	json_object_put(nodes);
	mark_merging(served, *result);
	return 0;
}

static void print_tree(const struct served *served, json_object *layers)
{
	struct tree_columns columns = { 0 };
	char device[256];

	for (u32 i = 0; i < json_object_array_length(layers); i++)
		tree_measure(json_object_array_get_idx(layers, i), 0, &columns);
	printf("%s%s%s  %s\n", print_colour(stdout, COLOUR_STRONG), served->name,
	       print_colour(stdout, COLOUR_NONE), served_device(served, device));
	for (u32 i = 0; i < json_object_array_length(layers); i++) {
		json_object *layer = json_object_array_get_idx(layers, i);

		if (i)
			printf("|\n");
		tree_draw_forks(layer, 0, 0, &columns);
		tree_draw_image(layer, 0, &columns);
	}
}

static void print_tree_json(const struct served *served, json_object *layers_owned)
{
	json_object *object = json_object_new_object();

	json_object_object_add(object, "name", json_object_new_string(served->name));
	json_object_object_add(object, "layers", layers_owned);
	print_json(object);
}

static int tree_chain(const char *name, bool json, struct qc_err *err)
{
	struct served served;
	json_object *layers = NULL;
	int ret = served_find(name, &served, err);

	if (ret)
		return ret;
	ret = read_layers(&served, &layers, err);
	if (ret == 0)
		ret = branches_add(&served, layers, err);
	if (layers && json) {
		print_tree_json(&served, layers);
	} else if (layers) { /* the chain, even if what is around it cannot be told */
		print_tree(&served, layers);
		json_object_put(layers);
	}
	served_exit(&served);
	return ret;
}

static int tree_run(const struct verb *verb, int argc, char **argv)
{
	struct qc_err err = { 0 };
	bool json;
	int status = served_arguments(verb, argc, argv, 1, 1, &json);

	status = status ? status : served_name(verb, argv[optind]);
	if (status)
		return status;
	return tree_chain(argv[optind], json, &err) ? print_error(&err) : CTL_DONE;
}

const struct verb verb_tree = {
	.name = "tree",
	.summary = "the layers of a chain, from the active layer down to the base",
	.usage = "NAME [--json]",
	.options =
		"  --json     one object: name, and layers, a list of {node-name, file, snapshot,\n"
		"             state, virtual-size, actual-size, depth}; one that others than\n"
		"             the next layer stand on has branches, a list of {file, node-name,\n"
		"             snapshot, state, actual-size, branches}\n"
		"\n"
		"Snapshots that the device does not stand on any more (revert --keep) are\n"
		"drawn as branches. For that the images around are looked at.\n",
	.examples =
		"  qchainctl tree vm7\n",
	.run = tree_run,
};
