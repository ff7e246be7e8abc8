// SPDX-License-Identifier: GPL-2.0-or-later
/* qchainctl stream and commit of a served chain: a job of its daemon is started and followed. */
#include "merge.h"

#include "exposed.h"
#include "follow.h"
#include "image/merge-cost.h"
#include "image/restore-points.h"
#include "image/standing.h"
#include "job-record.h"
#include "manager.h"
#include "proxmox.h"
#include "served-resize.h"

#include <errno.h>
#include <qchain/crash-point.h>
#include <qchain/overlays.h>
#include <stdlib.h>
#include <string.h>

struct served_job {
	const struct served_merge *o;
	struct served served;
	struct job_record record;
	json_object *nodes; /* as query-named-block-nodes: the active layer first */
	u32 nr_nodes;
	u32 top; /* depth; stream: of what receives */
	u32 base; /* depth; nr_nodes: none */
	char job[QC_MAX_JOB_ID + 1];
	json_object *row; /* of the job, at its end */
	bool pivoted; /* the base is the active layer now */
};

static const char *node_text(const struct served_job *s, u32 depth, const char *key)
{
	return json_text(json_object_array_get_idx(s->nodes, depth), key);
}

static bool is_raw(const struct served_job *s, u32 depth)
{
	const char *drv = node_text(s, depth, "drv");

	return drv && !strcmp(drv, "raw");
}

/* NULL: a stream that leaves nothing below. */
static const char *base_text(const struct served_job *s)
{
	return s->base < s->nr_nodes ? node_text(s, s->base, "file") : NULL;
}

static bool same_image(const char *a, const char *b)
{
	struct image_ident x, y;

	return !strcmp(a, b) ||
	       (!image_ident_of(a, &x) && !image_ident_of(b, &y) && image_ident_same(&x, &y));
}

/* ---- which layer is meant --------------------------------------------------------- */

/* The file of snapshot @name in the record; NULL: there is none. */
static const char *file_of_snapshot(const struct served_job *s, const char *name)
{
	u32 nr = 0;
	json_object *list = json_list(s->served.record, "snapshots", &nr);

	for (u32 i = 0; i < nr; i++) {
		json_object *one = json_object_array_get_idx(list, i);
		const char *text = json_text(one, "name");

		if (text && !strcmp(text, name))
			return json_text(one, "file");
	}
	return NULL;
}

static bool is_layer(const struct served_job *s, u32 depth, const char *name,
		     const char *file)
{
	const char *path = node_text(s, depth, "file");
	char lv[4096];

	if (!strcmp(node_text(s, depth, "node-name"), name))
		return true;
	snprintf(lv, sizeof(lv), "/dev/%s", name);
	return path && (!strcmp(path, name) || !strcmp(path, lv) || (file && !strcmp(path, file)));
}

static int find_layer(const struct served_job *s, const char *name, u32 *depth,
		      struct qc_err *err)
{
	const char *file = file_of_snapshot(s, name);

	for (*depth = 0; *depth < s->nr_nodes; ++*depth)
		if (is_layer(s, *depth, name, file))
			return 0;
	return qc_err_set(err, -ENOENT, "%s: no layer of %s; they are listed by qchainctl tree %s",
			  name, s->o->name, s->o->name);
}

static int find_base(struct served_job *s, struct qc_err *err)
{
	int ret = s->o->top ? find_layer(s, s->o->top, &s->top, err) : 0;

	s->base = s->nr_nodes;
	if (ret || !s->o->base)
		return ret;
	ret = find_layer(s, s->o->base, &s->base, err);
	if (!ret && s->base <= s->top)
		ret = qc_err_set(err, -EINVAL, "%s: is not below %s, must be to stay as its "
				 "backing", s->o->base, node_text(s, s->top, "file"));
	return ret;
}

static int look(struct served_job *s, struct qc_err *err)
{
	int ret = client_command(s->served.client, "query-named-block-nodes", NULL, false,
				 &s->nodes, err);

	if (ret)
		return ret;
	s->nr_nodes = json_object_array_length(s->nodes);
	if (!s->nr_nodes)
		return qc_err_set(err, -EINVAL, "%s: has no layers to merge", s->o->name);
	return 0;
}

/* ---- the job ------------------------------------------------------------------------ */

static int choose_id(struct served_job *s, const char *kind, struct qc_err *err)
{
	json_object *row;
	int ret;

	for (u32 i = 0;; i++) {
		snprintf(s->job, sizeof(s->job), "%s%u", kind, i);
		ret = job_ask(s->served.client, s->job, &row, err);
		if (ret || (!row && !job_noted(s->served.record, s->job)))
			return ret;
		json_object_put(row);
	}
}

/*
 * The base of a commit in a volume of Proxmox VE gets the name of top, which the header above
 * has already (proxmox.h).
 */
static char *header_name(const struct served_job *s, u32 above, struct qc_err *err)
{
	const char *base = node_text(s, s->base, "file");

	if (above < s->top && proxmox_owns(node_text(s, 0, "file")))
		base = node_text(s, s->top, "file");
	return backing_header_name(node_text(s, above, "file"), base, err);
}

/* @above: the layer whose header will name the base, for good */
static int add_base(const struct served_job *s, u32 above, json_object *arguments,
		    struct qc_err *err)
{
	char *name;

	if (s->base == s->nr_nodes)
		return 0;
	name = header_name(s, above, err);
	if (!name)
		return err->code;
	json_add_string(arguments, "base-node", node_text(s, s->base, "node-name"));
	json_add_string(arguments, "backing-file", name);
	free(name);
	return 0;
}

/* Of block-stream or block-commit. A job that failed is kept until somebody has read why. */
static int make_arguments(const struct served_job *s, bool commit, json_object **result,
			  struct qc_err *err)
{
	json_object *arguments = json_object_new_object();
	bool pivots = commit && !s->top; /* then no header names the base in the end */
	int ret = pivots ? 0 : add_base(s, s->top - commit, arguments, err);

	if (ret) {
		json_object_put(arguments);
		return ret;
	}
	if (pivots)
		json_add_string(arguments, "base-node", node_text(s, s->base, "node-name"));
	json_add_string(arguments, "job-id", s->job);
	json_add_string(arguments, "device", node_text(s, commit ? 0 : s->top, "node-name"));
	if (commit && s->top)
		json_add_string(arguments, "top-node", node_text(s, s->top, "node-name"));
	json_add_bool(arguments, "auto-dismiss", false);
	if (s->o->speed)
		json_add_u64(arguments, "speed", s->o->speed);
	*result = arguments;
	return 0;
}

static u64 node_size(const struct served_job *s, u32 depth)
{
	json_object *image = NULL;

	json_object_object_get_ex(json_object_array_get_idx(s->nodes, depth), "image", &image);
	return json_number(image, "virtual-size", 0);
}

/* What a volume gets is full of old data: what stands on a raw one says zero there first. */
static int cover_raw(const struct served_job *s, u64 bytes, struct qc_err *err)
{
	json_object *arguments = json_object_new_object();

	json_add_string(arguments, "node-name", node_text(s, s->base, "node-name"));
	json_add_u64(arguments, "size", bytes);
	return client_command(s->served.client, "qchain-cover", arguments, true, NULL, err);
}

/* A base that is shorter than top gets longer (rule D4), a thick volume with it. */
static int grow_volume(const struct served_job *s, struct qc_err *err)
{
	u64 bytes = node_size(s, s->top);
	bool raw = is_raw(s, s->base);
	int ret = 0;

	if (node_size(s, s->base) >= bytes)
		return 0;
	if (raw)
		ret = cover_raw(s, bytes, err);
	crash_point("merge.covered");
	return ret ? ret : resize_extend_served(node_text(s, s->base, "file"),
						raw ? IMAGE_RAW : IMAGE_QCOW2, bytes, err);
}

/*
 * What receives must hold all that it takes before it takes the first byte (rule D5).
 * Without @offline the caller has seen to that, or it had room when it began.
 */
static int make_room(const struct served_job *s, bool commit, struct qc_err *err)
{
	struct merge_part upper = { node_text(s, s->top, "file"), 1 };
	struct merge_part lower = { node_text(s, s->top + 1, "file"), s->base - s->top - 1 };
	struct merge_cost cost = {};
	int ret;

	if (commit) {
		upper.nr_layers = s->base - s->top;
		lower = (struct merge_part){ node_text(s, s->base, "file"), 1 };
	}
	ret = commit ? grow_volume(s, err) : 0;
	if (ret || !s->o->offline || !lower.nr_layers)
		return ret;
	ret = merge_cost(&upper, &lower, s->o->offline, &cost, err);
	if (ret || !commit)
		return ret ? ret : merge_make_room(upper.path, &cost.stream, err);
	return merge_make_room(lower.path, &cost.commit, err);
}

/*
 * In the record before the daemon hears of it; out again where it refuses. Whether it
 * has begun when there is no answer is not known: then the record stays.
 */
static int record_and_send(struct served_job *s, const char *command, json_object *arguments_owned,
			   const struct recorded_merge *merge, struct qc_err *err)
{
	struct job_record *r = &s->record;
	struct qc_err second = { 0 };
	bool sent;
	int ret = job_record_plan(r, merge, err);

	if (ret) {
		json_object_put(arguments_owned);
		return ret;
	}
	ret = make_room(s, merge->nr_lost, err);
	if (!ret)
		ret = job_record_begin(r, merge, RECORD_WRITING, err);
	sent = !ret;
	if (ret)
		json_object_put(arguments_owned);
	else
		ret = client_command(s->served.client, command, arguments_owned, true, NULL, err);
	crash_point("merge.started");
	if (ret && (!sent || ret == -EPROTO) && job_record_withdraw(r, merge->id, &second))
		print_error(&second);
	return ret;
}

/* Layers from below top to the base: a commit spoils them; malloc'ed. */
static char **lost_layers(const struct served_job *s, u32 *nr)
{
	char **files;

	*nr = s->base - s->top;
	files = calloc(*nr, sizeof(*files));
	for (u32 i = 0; files && i < *nr; i++)
		files[i] = (char *)node_text(s, s->top + 1 + i, "file");
	return files;
}

static int start_recorded(struct served_job *s, const struct rundir *dir, const char *kind,
			  json_object *arguments_owned, struct qc_err *err)
{
	struct recorded_merge merge = {
		.id = s->job, .kind = kind, .top = node_text(s, s->top, "file"),
		.base = base_text(s),
	};
	char command[32], **lost = lost_layers(s, &merge.nr_lost);
	int ret;

	if (strcmp(kind, "commit"))
		merge.nr_lost = 0;
	merge.lost = lost;
	snprintf(command, sizeof(command), "block-%s", kind);
	ret = lost ? job_record_open_served(&s->record, dir, &s->served, err) :
		     qc_err_set(err, -ENOMEM, "%s: out of memory", s->o->name);
	if (ret)
		json_object_put(arguments_owned);
	else
		ret = record_and_send(s, command, arguments_owned, &merge, err);
	job_record_close(&s->record);
	free(lost);
	return ret;
}

static int start_job(struct served_job *s, const struct rundir *dir, const char *kind,
		     struct qc_err *err)
{
	json_object *arguments;
	int ret = s->served.record ? choose_id(s, kind, err) :
		qc_err_set(err, -EINVAL, "%s: was not started by qchainctl, which keeps its "
			   "record; take it down, and up with qchainctl", s->o->name);

	if (!ret)
		ret = make_arguments(s, !strcmp(kind, "commit"), &arguments, err);
	if (!ret)
		ret = start_recorded(s, dir, kind, arguments, err);
	if (!ret && s->o->detach)
		ret = job_watch(s->o->name, s->job, false, err);
	return ret;
}

/* A snapshot that was taken meanwhile has made it a commit of a layer below the active one. */
static int look_at_top(struct served_job *s, struct qc_err *err)
{
	json_object *nodes;
	const char *top;
	int ret = client_command(s->served.client, "query-named-block-nodes", NULL, false, &nodes,
				 err);

	if (ret)
		return ret;
	top = json_text(json_object_array_get_idx(nodes, 0), "file");
	s->pivoted = top && base_text(s) && same_image(top, base_text(s));
	json_object_put(nodes);
	return 0;
}

static int wait_for_job(struct served_job *s, struct qc_err *err)
{
	struct qc_err second = { 0 };
	int ret = job_follow(s->served.client, s->job, true, &s->row, err);

	if (s->row && job_is_over(s->row) &&
	    job_settle(s->served.client, s->job, s->row, ret ? &second : err) && !ret)
		ret = err->code;
	if (!ret)
		ret = look_at_top(s, err);
	return ret ? ret : job_simple_command(s->served.client, "job-dismiss", "id", s->job, err);
}

static void finish(struct served_job *s)
{
	json_object_put(s->nodes);
	json_object_put(s->row);
	served_exit(&s->served);
}

static int find_chain(struct served_job *s, struct qc_err *err)
{
	int ret = served_find(s->o->name, &s->served, err);

	if (ret)
		return ret;
	return s->served.client ? look(s, err) : served_not_live(&s->served, err);
}

/* ---- again, from the record ------------------------------------------------------------ */

/* The depth of the layer at @path, nr_nodes when it is none. */
static u32 depth_of(const struct served_job *s, const char *path)
{
	u32 depth;

	for (depth = 0; depth < s->nr_nodes; depth++)
		if (path && same_image(node_text(s, depth, "file"), path))
			break;
	return depth;
}

/* Does what was to be merged still lie between? The header is written last. */
static bool is_done(const struct served_job *s, bool commit)
{
	return s->top == s->nr_nodes || s->top >= s->base ||
	       (!commit && s->base == s->top + 1);
}

/* The chain as it is now, and where the job's layers are in it. */
static int look_again(struct served_job *s, json_object *job, struct qc_err *err)
{
	int ret = look(s, err);

	if (ret)
		return ret;
	snprintf(s->job, sizeof(s->job), "%s", json_text(job, "id"));
	s->top = depth_of(s, json_text(job, "top"));
	s->base = depth_of(s, json_text(job, "base"));
	return 0;
}

int merge_is_done(const struct served *served, json_object *job, bool *done, struct qc_err *err)
{
	struct served_merge merge = { .name = served->name };
	struct served_job s = { .o = &merge, .served = *served };
	int ret = look_again(&s, job, err);

	if (!ret)
		*done = is_done(&s, job_noted_is_commit(job));
	json_object_put(s.nodes);
	return ret;
}

int merge_again(const struct rundir *dir, const struct served *served, json_object *job,
		struct qc_err *err)
{
	struct served_merge merge = { .name = served->name, .detach = true };
	struct served_job s = { .o = &merge, .served = *served };
	json_object *arguments;
	int ret = look_again(&s, job, err);

	if (!ret)
		ret = make_arguments(&s, job_noted_is_commit(job), &arguments, err);
	if (!ret)
		ret = start_recorded(&s, dir, json_text(job, "kind"), arguments, err);
	if (!ret)
		ret = job_watch(served->name, s.job, true, err);
	json_object_put(s.nodes);
	return ret;
}

/* ---- reports --------------------------------------------------------------------------- */

static u64 moved_bytes(const struct served_job *s)
{
	return json_number(s->row, "current-progress", 0);
}

/* @key: what the layer @top is to this job; @base may be NULL. "moved" when it has ended. */
static void print_job_json(const struct served_job *s, const char *key, const char *top,
			   const char *base, u32 layers)
{
	json_object *object = json_object_new_object();

	json_add_string(object, "name", s->o->name);
	json_add_string(object, "job", s->job);
	json_add_string(object, key, top);
	if (base)
		json_add_string(object, "base", base);
	json_add_u64(object, "layers", layers);
	if (s->row)
		json_add_u64(object, "moved", moved_bytes(s));
	print_json(object);
}

/* ---- both ------------------------------------------------------------------------------- */

/*
 * struct merge_kind - what a stream and a commit do differently
 * @key: the key of the top in JSON
 * @prepare: find the layers, and look whether it may be
 * @tell: one line
 */
struct merge_kind {
	const char *name;
	const char *key;
	u32 (*layers)(const struct served_job *s); /* whose data has moved */
	int (*prepare)(struct served_job *s, struct qc_err *err);
	void (*tell)(const struct served_job *s, u32 layers);
};

/* Images that have left the chain: they take space, and stand in the way of a commit below them. */
static void print_left(const struct served_job *s, u32 from, u32 to)
{
	if (from == to)
		return;
	printf("%s: no layer any more: ", s->o->name);
	for (u32 i = from; i < to; i++)
		printf("%s%s", i > from ? ", " : "", node_text(s, i, "file"));
	printf("\n");
}

static void print_merged(const struct served_job *s, const struct merge_kind *kind)
{
	u32 layers = kind->layers(s);

	if (s->o->json)
		print_job_json(s, kind->key, node_text(s, s->top, "file"), base_text(s),
			       layers);
	else if (s->o->detach)
		printf("%s\n", s->job);
	else
		kind->tell(s, layers);
}

/* What receives is written; guests write the active layer, which nobody exposes. */
static int check_exposed(const struct served_job *s, const struct merge_kind *kind,
			 struct qc_err *err)
{
	u32 written = strcmp(kind->name, "commit") ? s->top : s->base;

	return exposed_check_merge(s->o->name, s->nodes, written, err);
}

static int start_merge(struct served_job *s, const struct merge_kind *kind, struct qc_err *err)
{
	struct rundir dir = { .lock_fd = -1 };
	int ret = rundir_lock(s->o->name, false, &dir, err);

	if (!ret)
		ret = find_chain(s, err);
	if (!ret)
		ret = job_settle_all(&dir, &s->served, err);
	if (!ret)
		ret = manager_check_path(served_top(&s->served), err);
	if (!ret)
		ret = kind->prepare(s, err);
	if (!ret)
		ret = check_exposed(s, kind, err);
	if (!ret)
		ret = start_job(s, &dir, kind->name, err);
	rundir_unlock(&dir);
	return ret;
}

static int merge_served(const struct served_merge *merge, const struct merge_kind *kind)
{
	struct served_job s = { .o = merge };
	struct qc_err err = { 0 };
	int ret = start_merge(&s, kind, &err);

	if (!ret && !merge->detach)
		ret = wait_for_job(&s, &err);
	if (!ret)
		print_merged(&s, kind);
	finish(&s);
	return ret ? print_error(&err) : CTL_DONE;
}

/* ---- stream ----------------------------------------------------------------------------- */

static u32 streamed_layers(const struct served_job *s)
{
	return s->base - s->top - 1;
}

static void tell_streamed(const struct served_job *s, u32 layers)
{
	const char *base = base_text(s);
	char moved[32];

	printf("%s: %s has the data of %u layer%s below it (%s moved), and stands on %s now\n",
	       s->o->name, node_text(s, s->top, "file"), layers, layers == 1 ? "" : "s",
	       print_size(moved_bytes(s), moved), base ? base : "nothing");
	print_left(s, s->top + 1, s->base);
}

/* Snapshots of Proxmox VE are what its chain leads to: they would be none, and left over. */
static int prepare_stream(struct served_job *s, struct qc_err *err)
{
	int ret = find_base(s, err);

	if (ret || streamed_layers(s) == 0 || !proxmox_owns(node_text(s, 0, "file")))
		return ret;
	return qc_err_set(err, -EOPNOTSUPP, "%s: belongs to Proxmox VE, where what is streamed up "
			  "is no snapshot any more, but stays; qchainctl stream %s "
			  "--drop-snapshots does the same and removes it",
			  node_text(s, 0, "file"), s->o->name);
}

int merge_stream_served(const struct served_merge *merge)
{
	static const struct merge_kind kind = { "stream", "into", streamed_layers, prepare_stream,
						tell_streamed };

	return merge_served(merge, &kind);
}

/* ---- commit ------------------------------------------------------------------------------ */

static int find_range(struct served_job *s, struct qc_err *err)
{
	int ret = 0;

	if (s->o->top)
		ret = find_layer(s, s->o->top, &s->top, err);
	s->base = s->top + 1;
	if (!ret && s->o->base)
		ret = find_layer(s, s->o->base, &s->base, err);
	if (ret)
		return ret;
	if (s->base >= s->nr_nodes || s->base <= s->top)
		return qc_err_set(err, -EINVAL, "%s: no layer below it receives its data, expected "
				  "--base, one that is below; qchainctl tree %s lists them",
				  node_text(s, s->top, "file"), s->o->name);
	return 0;
}

/* The record of the device lies where its images do (rule D1). */
static int check_new_top(const struct served_job *s, const struct record_place *place,
			 const char *image, struct qc_err *err)
{
	const char *top = node_text(s, 0, "file"), *base = node_text(s, s->base, "file");
	const struct lvm_lv *lv = record_place_lv(place, image);
	char name[RECORD_IMAGE_BYTES];
	int ret;

	if (lv && record_is_foreign(lv) && !proxmox_is_volume(lv))
		return qc_err_set(err, -EOPNOTSUPP, "%s: belongs to Proxmox VE, and is no qcow2 "
				  "volume: that cannot be another one", top);
	if (lv && record_is_foreign(lv) && s->base > 1)
		return qc_err_set(err, -EOPNOTSUPP, "%s: belongs to Proxmox VE: its data goes into "
				  "%s only, the next layer; without --top it goes into %s", top,
				  node_text(s, 1, "file"), node_text(s, s->base, "file"));
	if (lv && record_is_foreign(lv) && is_raw(s, s->base))
		return qc_err_set(err, -EOPNOTSUPP, "%s: belongs to Proxmox VE, and by its name is "
				  "qcow2, while %s is raw: that cannot take its place", top, base);
	ret = record_place_image(place, base, name, err);
	if (!ret && name[0] == '/')
		ret = qc_err_set(err, -EXDEV, "%s: is not beside %s, must be to become the "
				 "device's top; qchainctl stream brings its data up", base, top);
	return ret;
}

static int check_pivot(const struct served_job *s, struct qc_err *err)
{
	char image[RECORD_IMAGE_BYTES];
	struct record_place *place;
	int ret;

	if (s->top)
		return 0;
	place = calloc(1, sizeof(*place));
	if (!place)
		return qc_err_set(err, -ENOMEM, "%s: out of memory", s->o->name);
	ret = record_place_of(node_text(s, 0, "file"), place, image, err);
	ret = ret == -EOPNOTSUPP ? 0 : ret ? ret : check_new_top(s, place, image, err);
	record_place_exit(place);
	free(place);
	return ret;
}

/* No image outside the chain stands on what is going to change (rule D3). */
static int check_standing(const struct served_job *s, struct qc_err *err)
{
	struct offline_options look = *s->o->offline;
	struct chain *chain;
	int ret;

	if (s->o->assume_unshared)
		return 0;
	look.force_share = true;
	ret = offline_open_chain(node_text(s, 0, "file"), &look, &chain, err);
	if (ret)
		return ret;
	ret = standing_check(chain, s->top + 1, s->base, err);
	chain_close(chain);
	return ret;
}

/* Those of Proxmox VE are in no record: their names say it, and so does the run record. */
static int check_named(const struct served_job *s, char **files, u32 nr, struct qc_err *err)
{
	const char *snap = NULL;

	for (u32 i = 0; i < nr && !snap; i++)
		snap = served_snapshot(&s->served, files[i]);
	if (!snap || !proxmox_owns(node_text(s, 0, "file")))
		return 0;
	return qc_err_set(err, -EBUSY, "%s: snapshot %s would be lost; qchainctl delete takes away "
			  "one and keeps the others, or say --drop-snapshots", s->o->name, snap);
}

/* Snapshots that these layers hold are lost: that has to be meant (rule D2). */
static int check_snapshots(struct served_job *s, struct qc_err *err)
{
	u32 nr;
	char **files;
	int ret;

	if (s->o->drop_snapshots)
		return 0;
	files = lost_layers(s, &nr);
	if (!files)
		return qc_err_set(err, -ENOMEM, "%s: out of memory", s->o->name);
	ret = check_named(s, files, nr, err);
	if (!ret)
		ret = restore_points_check(files, nr, "stream keeps it, or say --drop-snapshots",
					   err);
	free(files);
	return ret;
}

static int prepare_commit(struct served_job *s, struct qc_err *err)
{
	int ret = find_range(s, err);

	if (!ret)
		ret = check_pivot(s, err);
	if (!ret)
		ret = check_standing(s, err);
	return ret ? ret : check_snapshots(s, err);
}

static u32 committed_layers(const struct served_job *s)
{
	return s->base - s->top;
}

static void tell_committed(const struct served_job *s, u32 layers)
{
	const char *base = base_text(s), *plural = layers == 1 ? "" : "s";
	char moved[32];

	print_size(moved_bytes(s), moved);
	if (s->pivoted)
		printf("%s: %s has the data of %u layer%s above it (%s moved), and is the active "
		       "layer now\n", s->o->name, base, layers, plural, moved);
	else
		printf("%s: %s has the data of %u layer%s up to %s now (%s moved)\n", s->o->name,
		       base, layers, plural, node_text(s, s->top, "file"), moved);
	print_left(s, s->top, s->base);
}

int merge_commit_served(const struct served_merge *merge)
{
	static const struct merge_kind kind = { "commit", "top", committed_layers, prepare_commit,
						tell_committed };

	return merge_served(merge, &kind);
}

/* ---- for other verbs --------------------------------------------------------------------- */

int merge_start(const struct served_merge *merge, const struct rundir *dir, const char *kind,
		struct served_job **result, struct qc_err *err)
{
	struct served_job *s = calloc(1, sizeof(*s));
	int ret;

	if (!s)
		return qc_err_set(err, -ENOMEM, "%s: out of memory", merge->name);
	s->o = merge;
	ret = find_chain(s, err);
	if (!ret)
		ret = strcmp(kind, "commit") ? find_base(s, err) : find_range(s, err);
	if (!ret)
		ret = start_job(s, dir, kind, err);
	if (!ret)
		*result = s;
	else
		merge_end(s, false, NULL, NULL);
	return ret;
}

int merge_end(struct served_job *job_owned, bool wait, u64 *moved, struct qc_err *err)
{
	int ret = wait ? wait_for_job(job_owned, err) : 0;

	if (wait)
		*moved = moved_bytes(job_owned);
	finish(job_owned);
	free(job_owned);
	return ret;
}
