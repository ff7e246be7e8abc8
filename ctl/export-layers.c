// SPDX-License-Identifier: GPL-2.0-or-later
/* Finds the images of snapshots, of a served chain by its record, else by that of the place. */
#include "export-layers.h"

#include "exposed.h"
#include "image/merge-run.h"
#include "merging.h"
#include "record.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

void export_layers_exit(struct export_layers *layers)
{
	free(layers->to);
	free(layers->to_name);
	free(layers->from);
	free(layers->from_name);
}

static int no_memory(const char *name, struct qc_err *err)
{
	return qc_err_set(err, -ENOMEM, "%s: out of memory", name);
}

static const char *file_name(const char *path)
{
	const char *slash = strrchr(path, '/');

	return slash ? slash + 1 : path;
}

/* ---- served --------------------------------------------------------------------------- */

static int newest(const struct served *served, json_object *nodes, struct export_layers *result,
		  struct qc_err *err)
{
	for (u32 i = 1; i < json_object_array_length(nodes); i++) {
		const char *file = json_text(json_object_array_get_idx(nodes, i), "file");
		const char *snap = file ? served_snapshot(served, file) : NULL;

		if (!snap)
			continue;
		result->to = strdup(file);
		result->to_name = strdup(snap);
		return result->to && result->to_name ? 0 : no_memory(served->name, err);
	}
	return qc_err_set(err, -ENOENT, "%s: has no snapshot that could be exported; first "
			  "qchainctl snapshot %s SNAP", served->name, served->name);
}

static int named(const struct served *served, const char *snap, char **path, char **name,
		 struct qc_err *err)
{
	int ret = exposed_layer(served, snap, path, err);

	*name = ret ? NULL : strdup(snap);
	return ret || *name ? ret : no_memory(served->name, err);
}

static int find_served(const struct served *served, json_object *nodes, const char *from,
		       const char *to, struct export_layers *result, struct qc_err *err)
{
	int ret = to ? named(served, to, &result->to, &result->to_name, err) :
		       newest(served, nodes, result, err);

	if (!ret && from)
		ret = named(served, from, &result->from, &result->from_name, err);
	if (!ret)
		ret = exposed_check_jobs(served, result->to, err);
	if (!ret)
		ret = exposed_wait_sealed(served, result->to, err);
	if (!ret)
		result->to_format = exposed_format(nodes, result->to);
	return ret;
}

static int of_chain(const char *name, const char *from, const char *to,
		    struct export_layers *result, struct qc_err *err)
{
	json_object *nodes = NULL;
	struct served served;
	int ret = served_find(name, &served, err);

	if (ret)
		return ret;
	snprintf(result->device, sizeof(result->device), "%s", served.name);
	if (served.state != SERVED_LIVE)
		ret = served_not_live(&served, err);
	if (!ret)
		ret = client_command(served.client, "query-named-block-nodes", NULL, false, &nodes,
				     err);
	if (!ret)
		ret = find_served(&served, nodes, from, to, result, err);
	json_object_put(nodes);
	served_exit(&served);
	return ret;
}

/* ---- not served ------------------------------------------------------------------------- */

/* struct offline_chain - an image with its chain, and its record where there is one */
struct offline_chain {
	struct chain *chain;
	struct record_place place;
	const struct device_record *record;
};

static int open_offline(struct offline_chain *c, const char *name,
			const struct offline_options *options, struct qc_err *err)
{
	char image[RECORD_IMAGE_BYTES];
	int ret = offline_open_chain(name, options, &c->chain, err);

	if (!ret)
		ret = record_place_of(c->chain->layers[0].img->dev->path, &c->place, image, err);
	if (ret)
		return ret == -EOPNOTSUPP ? 0 : ret;
	for (u32 i = 0; i < c->place.nr_records; i++)
		if (!strcmp(c->place.records[i].top, image))
			c->record = &c->place.records[i];
	return 0;
}

static int named_layer(const struct offline_chain *c, const char *text, char **path, char **name,
		       struct qc_err *err)
{
	const struct record_snapshot *snap = NULL;
	char found[4096];
	u32 depth;
	int ret;

	if (c->record)
		snap = device_record_by_name(c->record, text);
	if (snap) {
		ret = record_place_path(&c->place, snap->image, found, sizeof(found), err);
	} else {
		ret = merge_find_layer(c->chain, text, &depth, err);
		if (!ret)
			snprintf(found, sizeof(found), "%s",
				 c->chain->layers[depth].img->dev->path);
	}
	if (ret)
		return ret;
	*path = strdup(found);
	*name = strdup(snap ? text : file_name(found));
	return *path && *name ? 0 : no_memory(text, err);
}

/* @to that is no layer of the chain is one of a kept branch: an overlay. */
static void take_format(const struct offline_chain *c, struct export_layers *result)
{
	u32 depth;

	result->to_format = IMAGE_QCOW2;
	if (!merge_find_layer(c->chain, result->to, &depth, NULL))
		result->to_format = c->chain->layers[depth].img->format;
}

static int of_image(const char *name, const struct offline_options *options, const char *from,
		    const char *to, struct export_layers *result, struct qc_err *err)
{
	struct offline_chain c = {};
	int ret = open_offline(&c, name, options, err);

	if (!ret && c.record)
		snprintf(result->device, sizeof(result->device), "%s", c.record->name);
	if (!ret)
		ret = named_layer(&c, to ? to : c.chain->layers[0].img->dev->path, &result->to,
				  &result->to_name, err);
	if (!ret && from)
		ret = named_layer(&c, from, &result->from, &result->from_name, err);
	if (!ret)
		take_format(&c, result);
	record_place_exit(&c.place);
	chain_close(c.chain);
	return ret ? ret : merging_check_image(result->to, err);
}

int export_layers_find(const char *name, const struct offline_options *options,
		       const char *from, const char *to, struct export_layers *result,
		       struct qc_err *err)
{
	struct object_name object;
	int ret = name_parse(name, &object, err);

	*result = (struct export_layers){ .to = NULL };
	if (ret)
		return ret;
	return object.kind == NAME_CHAIN ? of_chain(name, from, to, result, err) :
					   of_image(name, options, from, to, result, err);
}
