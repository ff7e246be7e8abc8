// SPDX-License-Identifier: GPL-2.0-or-later
/* qchainctl commit: merge overlays down into a backing layer, served (../merge.c) or not. */
#include "../job-record.h"
#include "../merge.h"
#include "../proxmox-merge.h"
#include "committed.h"
#include "cover.h"
#include "merge-cost.h"
#include "merge-run.h"
#include "restore-points.h"
#include "standing.h"

#include <errno.h>
#include <qchain/crash-point.h>
#include <qchain/edit.h>
#include <qchain/parse.h>
#include <stdlib.h>
#include <string.h>

/*
 * In this order, each step durable before the next:
 *
 *   1. the base is grown to the length of what it will hold; of a raw one what it gets
 *      is hidden by the layer above it before: cover.c
 *   2. what the layers top .. above the base map is written into the base
 *   3. what stands on them names the base as its backing: the layer above top, or
 *      top itself when it is the active layer
 *   4. an active top forgets what it maps, and is empty
 *
 * A kill at any point leaves a chain that reads as before: until 3 everything is
 * still mapped above the base, and after it the base has it all. What the base
 * and the layers between were as restore points is gone from 2 on (rule D2).
 *
 * The same command finishes it. After 3 the layers between are no part of the chain
 * any more, but still stand on the base: which is not written then, only 4 is done.
 */

#define OPTION_TOP 't'
#define OPTION_BASE 'b'
#define OPTION_UNSHARED 'S'
#define OPTION_SPEED 'r'
#define OPTION_DROP 'd'
#define OPTION_DETACH 'D'

struct commit {
	struct offline_options offline;
	const char *top_name;
	const char *base_name;
	bool assume_unshared;
	bool drop_snapshots;
	bool settled; /* as struct offline_merge */
	bool detach;
	u64 speed;
	/* found in the chain; paths are malloc'ed */
	u32 top;
	u32 base;
	char *top_path;
	char *base_path;
	char *changed_path; /* whose header will name the base */
	char *cover_path; /* what stands on a raw base that is shorter; NULL: it is not */
	const char *wanted_name; /* for the base; NULL: as it is called now */
	char *header_name; /* NULL: it does so already */
	enum image_format base_format;
	u64 top_bytes;
	u64 base_bytes;
	u64 above_bytes; /* of the layer above top; 0: top is active */
	struct job_record *record; /* of the device whose top it is; NULL: none knows it */
	char device[QC_MAX_CHAIN_NAME + 1];
	char job[QC_MAX_JOB_ID + 1];
	bool begun; /* written to */
	bool copied; /* the base has it all: it is not written again */
	char **spoilt; /* the layers from below top to the base: no restore points any more */
	u32 nr_spoilt;
};

static int find_range(struct commit *c, const struct chain *chain, struct qc_err *err)
{
	int ret = 0;

	c->top = 0;
	if (c->top_name)
		ret = merge_find_layer(chain, c->top_name, &c->top, err);
	c->base = c->top + 1;
	if (!ret && c->base_name)
		ret = merge_find_layer(chain, c->base_name, &c->base, err);
	if (ret)
		return ret;
	if (c->top + 1 >= chain->nr_layers)
		return qc_err_set(err, -EINVAL, "%s: has no backing image that it could be "
				  "committed into", chain->layers[c->top].path);
	if (c->base <= c->top)
		return qc_err_set(err, -EINVAL, "%s: is not below %s, must be to receive its data",
				  chain->layers[c->base].path, chain->layers[c->top].path);
	return 0;
}

static int take_paths(struct commit *c, const struct chain *chain, struct qc_err *err)
{
	const struct chain_layer *layers = chain->layers;

	c->top_bytes = layers[c->top].img->virtual_size;
	c->base_bytes = layers[c->base].img->virtual_size;
	c->above_bytes = c->top ? layers[c->top - 1].img->virtual_size : 0;
	c->base_format = layers[c->base].img->format;
	c->top_path = strdup(layers[c->top].img->dev->path);
	c->base_path = strdup(layers[c->base].img->dev->path);
	c->changed_path = strdup(layers[c->top ? c->top - 1 : 0].img->dev->path);
	if (c->base_format == IMAGE_RAW && c->base_bytes < c->top_bytes)
		c->cover_path = strdup(layers[c->base - 1].img->dev->path);
	if (!c->top_path || !c->base_path || !c->changed_path)
		return qc_err_set(err, -ENOMEM, "out of memory");
	if (c->top == 0 && c->base == 1)
		return 0;
	c->header_name = c->wanted_name ? strdup(c->wanted_name) :
			 backing_header_name(c->changed_path, c->base_path, err);
	if (c->header_name)
		return 0;
	return err->code ? err->code : qc_err_set(err, -ENOMEM, "out of memory");
}

static int take_spoilt(struct commit *c, const struct chain *chain, struct qc_err *err)
{
	c->spoilt = calloc(c->base - c->top, sizeof(*c->spoilt));
	for (u32 i = c->top + 1; c->spoilt && i <= c->base; i++) {
		c->spoilt[c->nr_spoilt] = strdup(chain->layers[i].img->dev->path);
		if (!c->spoilt[c->nr_spoilt])
			break;
		c->nr_spoilt++;
	}
	return c->nr_spoilt == c->base - c->top ? 0 : qc_err_set(err, -ENOMEM, "out of memory");
}

/* Those that a record calls snapshots are lost: that has to be meant. */
static int check_restore_points(const struct commit *c, struct qc_err *err)
{
	if (c->drop_snapshots || c->settled)
		return 0;
	return restore_points_check(c->spoilt, c->nr_spoilt, "stream keeps it, or say "
				    "--drop-snapshots", err);
}

/* Nobody else stands on what is written, unless nothing has to be. */
static int check_standing(struct commit *c, struct chain *chain, struct qc_err *err)
{
	struct qc_err why = { 0 };
	int ret = standing_check(chain, c->top + 1, c->base, err);

	if (ret != -EBUSY || c->top || c->base != 1)
		return ret;
	c->copied = committed_already(chain, &c->offline, &why) == 1;
	return c->copied ? 0 : ret;
}

static int survey(struct commit *c, const char *name, struct qc_err *err)
{
	struct chain *chain;
	int ret = offline_open_chain(name, &c->offline, &chain, err);

	if (ret)
		return ret;
	ret = find_range(c, chain, err);
	if (!ret)
		ret = take_paths(c, chain, err);
	if (!ret)
		ret = take_spoilt(c, chain, err);
	if (!ret)
		ret = check_restore_points(c, err);
	if (!ret && offline_allow_chain(&c->offline, chain))
		ret = qc_err_set(err, -ENOMEM, "%s: out of memory", name);
	if (!ret && !c->assume_unshared)
		ret = check_standing(c, chain, err);
	chain_close(chain);
	return ret;
}

/* ---- the steps --------------------------------------------------------------------------- */

static int move_data(struct commit *c, struct merge *merge, struct qc_err *err)
{
	char layers[32];
	/* an active top is held open, and locked, by ourselves */
	const char *words[] = { "read-only=on", layers, c->top ? NULL : "no-lock=on", NULL };
	struct target *source, *target;
	u64 zero_to;
	int ret;

	snprintf(layers, sizeof(layers), "layers=%u", c->base - c->top);
	ret = merge_open(c->base_path, &c->offline, c->base_format, NULL, &target, err);
	if (ret)
		return ret;
	ret = merge_open(c->top_path, &c->offline, IMAGE_QCOW2, words, &source, err);
	if (!ret) {
		merge->type = "commit";
		merge->source = source;
		merge->target = target;
		merge->first_depth = 1;
		merge->last_depth = QC_MAX_LAYERS;
		merge->speed = c->speed;
		ret = merge_run(merge, err);
		target_destroy(source);
	}
	/* above a short top a longer layer reads zero, and must do so on the base (D4) */
	zero_to = min(c->above_bytes, target->size_bytes);
	if (!ret && zero_to > c->top_bytes)
		ret = merge_zero(target, c->top_bytes, zero_to, err);
	if (!ret)
		ret = target_suspend(target, err);
	target_destroy(target);
	return ret;
}

/* Before the first byte: what the base must newly allocate has room (rule D5). */
static int make_room(const struct commit *c, struct qc_err *err)
{
	const struct merge_part upper = { c->top_path, c->base - c->top };
	const struct merge_part lower = { c->base_path, 1 };
	struct merge_cost cost = {};
	int ret = merge_cost(&upper, &lower, &c->offline, &cost, err);

	return ret ? ret : merge_make_room(c->base_path, &cost.commit, err);
}

/* ---- the device record (rule D2) --------------------------------------------------------- */

/* The name of the device whose top is @path; "": no record knows it. */
static int find_device(const char *path, char *name, size_t bytes, struct qc_err *err)
{
	struct record_place *place = calloc(1, sizeof(*place));
	char image[RECORD_IMAGE_BYTES];
	int ret;

	name[0] = 0;
	if (!place)
		return qc_err_set(err, -ENOMEM, "%s: out of memory", path);
	ret = record_place_of(path, place, image, err);
	for (u32 i = 0; i < place->nr_records && !ret; i++)
		if (!strcmp(place->records[i].top, image))
			snprintf(name, bytes, "%s", place->records[i].name);
	record_place_exit(place);
	free(place);
	return ret == -EOPNOTSUPP ? 0 : ret;
}

/* The job that it goes on with, or a free id. */
static void choose_job(struct commit *c)
{
	const struct device_record *record = c->record->record;

	for (u32 i = 0; i < record->nr_jobs; i++) {
		if (record->jobs[i].phase != RECORD_OFFLINE)
			continue;
		snprintf(c->job, sizeof(c->job), "%s", record->jobs[i].id);
		return;
	}
	for (u32 i = 0; !c->job[0] || device_record_job(record, c->job); i++)
		snprintf(c->job, sizeof(c->job), "commit%u", i);
}

static int record_open(struct commit *c, const char *top, struct qc_err *err)
{
	char device[QC_MAX_CHAIN_NAME + 1];
	int ret = c->settled ? 0 : find_device(top, device, sizeof(device), err);

	if (ret || c->settled || !device[0])
		return ret;
	c->record = calloc(1, sizeof(*c->record));
	if (!c->record)
		return qc_err_set(err, -ENOMEM, "%s: out of memory", top);
	snprintf(c->device, sizeof(c->device), "%s", device);
	ret = job_record_open(c->record, c->device, top, NULL, NULL, err);
	if (!ret)
		choose_job(c);
	return ret;
}

static void fill_recorded(const struct commit *c, struct recorded_merge *merge)
{
	*merge = (struct recorded_merge){ .id = c->job, .kind = "commit", .top = c->top_path,
					  .base = c->base_path };
	if (c->drop_snapshots) {
		merge->lost = c->spoilt;
		merge->nr_lost = c->nr_spoilt;
	}
}

static int record_plan(struct commit *c, struct qc_err *err)
{
	struct recorded_merge merge;

	fill_recorded(c, &merge);
	return c->record ? job_record_plan(c->record, &merge, err) : 0;
}

/* From here on the base and what is above it are no restore points any more. */
static int record_begin(struct commit *c, struct qc_err *err)
{
	struct recorded_merge merge;

	fill_recorded(c, &merge);
	c->begun = true;
	if (c->record)
		return job_record_begin(c->record, &merge, RECORD_OFFLINE, err);
	return c->drop_snapshots ? restore_points_drop(c->spoilt, c->nr_spoilt, err) : 0;
}

static int record_end(struct commit *c, int ret, struct qc_err *err)
{
	struct qc_err second = { 0 };
	int last = 0;

	if (!c->record)
		return ret;
	if (!ret)
		return job_record_end(c->record, c->job, true, err);
	last = c->begun ? job_record_fail(c->record, c->job, err->msg, &second) :
			  job_record_withdraw(c->record, c->job, &second);
	if (last)
		print_error(&second);
	return ret;
}

/* ---- one after the other ------------------------------------------------------------------ */

/* Steps 1 and 2. */
static int fill_base(struct commit *c, struct merge *merge, struct qc_err *err)
{
	int ret = image_resize_grow(c->base_path, &c->offline, c->base_format, c->top_bytes, err);

	if (!ret)
		ret = make_room(c, err);
	if (!ret)
		ret = record_begin(c, err);
	return ret ? ret : move_data(c, merge, err);
}

/* @changed is held open all the time: nobody else writes it meanwhile. */
static int commit_steps(struct commit *c, struct image *changed, struct merge *merge,
			struct qc_err *err)
{
	int ret = 0;

	if (c->header_name)
		ret = image_check_backing_fits(changed, c->header_name,
					       image_format_name(c->base_format), err);
	if (!ret)
		ret = c->copied ? record_begin(c, err) : fill_base(c, merge, err);
	if (!ret && c->header_name)
		ret = image_set_backing(changed, c->header_name,
					image_format_name(c->base_format), err);
	crash_point("commit.pointed");
	if (!ret && c->top == 0)
		ret = image_unmap_from(changed, 0, err);
	return ret;
}

static void print_committed(const struct commit *c, const struct merge *merge)
{
	json_object *object = c->offline.json ? json_object_new_object() : NULL;

	if (object) {
		json_add_string(object, "base", c->base_path);
		json_add_string(object, "top", c->top_path);
		json_add_u64(object, "layers", c->base - c->top);
		json_add_bool(object, "emptied", c->top == 0);
	} else {
		printf("%s: has the data of %u layer%s up to %s now\n", c->base_path,
		       c->base - c->top, c->base - c->top == 1 ? "" : "s", c->top_path);
		if (c->top == 0)
			printf("%s: is empty and stands on it\n", c->top_path);
		if (c->base - c->top > 1 || c->top)
			printf("layers between are no restore points any more\n");
	}
	merge_report(object, merge);
	if (object)
		print_json(object);
}

static void commit_exit(struct commit *c)
{
	while (c->nr_spoilt)
		free(c->spoilt[--c->nr_spoilt]);
	free(c->spoilt);
	if (c->record)
		job_record_close(c->record);
	free(c->record);
	free(c->top_path);
	free(c->base_path);
	free(c->changed_path);
	free(c->cover_path);
	free(c->header_name);
}

static int commit_image(const char *name, struct commit *c, struct merge *merge,
			struct qc_err *err)
{
	struct image *changed;
	struct object_name object;
	int ret = survey(c, name, err);

	if (!ret)
		ret = name_image(name, &object, err);
	if (!ret)
		ret = record_open(c, object.path, err);
	if (!ret && c->cover_path && !c->copied)
		ret = cover_from(c->cover_path, &c->offline, c->base_bytes, c->top_bytes, err);
	if (!ret)
		ret = merge_hold(c->changed_path, &changed, err);
	if (ret)
		return ret;
	ret = record_plan(c, err);
	if (!ret) {
		ret = commit_steps(c, changed, merge, err);
		ret = record_end(c, ret, err);
	}
	image_close(changed);
	return ret;
}

int offline_commit(const struct offline_merge *m, struct merge *result, struct qc_err *err)
{
	struct commit c = { .offline.format = IMAGE_QCOW2, .top_name = m->layer,
			    .base_name = m->base, .wanted_name = m->header_name,
			    .assume_unshared = m->assume_unshared, .settled = true,
			    .speed = m->speed };
	int ret;

	*result = (struct merge){ .speed = m->speed };
	ret = commit_image(m->image, &c, result, err);
	commit_exit(&c);
	offline_options_exit(&c.offline);
	return ret;
}

static int commit_and_report(const char *name, struct commit *c)
{
	struct merge merge = {};
	struct qc_err err = {};
	int ret = commit_image(name, c, &merge, &err);

	if (!ret)
		print_committed(c, &merge);
	commit_exit(c);
	return ret ? print_error(&err) : CTL_DONE;
}

static void take_option(void *arg, int option, struct qc_err *err)
{
	struct commit *c = arg;

	switch (option) {
	case OPTION_TOP:
		c->top_name = optarg;
		break;
	case OPTION_BASE:
		c->base_name = optarg;
		break;
	case OPTION_UNSHARED:
		c->assume_unshared = true;
		break;
	case OPTION_DROP:
		c->drop_snapshots = true;
		break;
	case OPTION_DETACH:
		c->detach = true;
		break;
	case OPTION_SPEED:
		parse_size("--speed", optarg, &c->speed, err);
		break;
	}
}

static int commit_proxmox(const struct verb *verb, const struct commit *c,
			  struct proxmox_merge *merge)
{
	merge->top = c->top_name;
	merge->base = c->base_name;
	merge->speed = c->speed;
	merge->drop_snapshots = c->drop_snapshots;
	merge->assume_unshared = c->assume_unshared;
	merge->json = c->offline.json;
	merge->detach = c->detach;
	return proxmox_merge(verb, merge);
}

static int commit_object(const struct verb *verb, const char *name, struct commit *c)
{
	struct served_merge merge = { .name = name, .top = c->top_name, .base = c->base_name,
				      .speed = c->speed, .detach = c->detach,
				      .json = c->offline.json,
				      .drop_snapshots = c->drop_snapshots,
				      .assume_unshared = c->assume_unshared,
				      .offline = &c->offline };
	struct proxmox_merge proxmox = { .name = name };
	struct object_name object;
	struct qc_err err = {};
	bool is_proxmox;
	int status;

	if (name_parse(name, &object, &err))
		return print_error(&err);
	if (object.kind == NAME_CHAIN) /* the volume itself past the next one: one by one */
		return c->base_name && !c->top_name && proxmox_serves(name) ?
			       commit_proxmox(verb, c, &proxmox) : merge_commit_served(&merge);
	if (c->detach)
		return verb_usage(verb, "--detach: %s is not a served chain, must be", name);
	proxmox.name = NULL;
	if (proxmox_merge_of(object.path, &proxmox, &is_proxmox, &err))
		return print_error(&err);
	status = is_proxmox ? commit_proxmox(verb, c, &proxmox) : commit_and_report(name, c);
	proxmox_merge_exit(&proxmox);
	return status;
}

static int run_commit(const struct verb *verb, int argc, char **argv)
{
	static const struct option rows[] = {
		OFFLINE_JSON_ROW,
		{ "top", required_argument, NULL, OPTION_TOP },
		{ "base", required_argument, NULL, OPTION_BASE },
		{ "assume-unshared", no_argument, NULL, OPTION_UNSHARED },
		{ "drop-snapshots", no_argument, NULL, OPTION_DROP },
		{ "speed", required_argument, NULL, OPTION_SPEED },
		{ "detach", no_argument, NULL, OPTION_DETACH },
		{ "allow-backing", required_argument, NULL, OPTION_ALLOW_BACKING },
		{ "backing-format", required_argument, NULL, OPTION_BACKING_FORMAT },
		{},
	};
	static const struct offline_syntax syntax = { rows, take_option, 1, 1 };
	struct commit commit = {};
	int ret = offline_options_read(verb, argc, argv, &syntax, &commit.offline, &commit);

	if (!ret)
		ret = commit_object(verb, argv[optind], &commit);
	offline_options_exit(&commit.offline);
	return ret;
}

const struct verb verb_commit = {
	.name = "commit",
	.summary = "merge overlays down into a backing layer",
	.usage = "[OPTION]... NAME|IMAGE",
	.options =
	"  --top LAYER            the last layer that goes down; default: the active one\n"
	"  --base LAYER           the layer that receives; default: the one below top\n"
	"  --speed SIZE           bytes a second at most\n"
	"  --detach               NAME: do not wait; prints the id of the job\n"
	"  --assume-unshared      nothing else stands on the layers from base to below top\n"
	"                         although not every image around could be looked at\n"
	"  --drop-snapshots       forget the snapshots of a device that these layers hold; of\n"
	"                         a volume of Proxmox VE they go, with their LVs\n"
	"  --allow-backing DIR    follow backing names into DIR, too; repeatable\n"
	"  --backing-format FMT   format of backing images whose overlay does not say it\n"
	OFFLINE_JSON_HELP
	"NAME is a served chain, in use or not. Its active layer, committed, is none any\n"
	"more, and the base is the active layer.\n"
	"IMAGE is the active layer of a chain that nobody serves. A layer is named by its\n"
	"path, VG/LV, file name or, in a served chain, snapshot. The base of an IMAGE is\n"
	"grown first if it is shorter. IMAGE itself, committed, stays as an empty overlay.\n"
	"A commit cannot be undone.\n",
	.examples = "  qchainctl commit vm7\n"
		    "  qchainctl commit vm7 --top tuesday --base monday --drop-snapshots\n"
		    "  qchainctl commit vg0/vm-1.qcow2\n"
		    "  qchainctl commit ./top.qcow2 --base base.qcow2\n"
		    "  qchainctl commit ./top.qcow2 --top sn2.qcow2 --base base.qcow2\n",
	.run = run_commit,
};
