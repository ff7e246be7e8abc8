// SPDX-License-Identifier: GPL-2.0-or-later
/* qchainctl stream of a served chain: a job of its daemon is started and followed. */
#include "merge.h"

#include "follow.h"
#include "image/offline.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct served_stream {
	const struct served_merge *o;
	struct served served;
	json_object *nodes; /* as query-named-block-nodes: the active layer first */
	u32 nr_nodes;
	u32 base; /* depth; nr_nodes: none */
	char job[QC_MAX_JOB_ID + 1];
	json_object *row; /* of the job, at its end */
};

static const char *node_text(const struct served_stream *s, u32 depth, const char *key)
{
	return json_text(json_object_array_get_idx(s->nodes, depth), key);
}

/* ---- which layer is meant --------------------------------------------------------- */

/* The file of snapshot @name in the record; NULL: there is none. */
static const char *file_of_snapshot(const struct served_stream *s, const char *name)
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

static bool is_layer(const struct served_stream *s, u32 depth, const char *name,
		     const char *file)
{
	const char *path = node_text(s, depth, "file");
	char lv[4096];

	if (!strcmp(node_text(s, depth, "node-name"), name))
		return true;
	snprintf(lv, sizeof(lv), "/dev/%s", name);
	return path && (!strcmp(path, name) || !strcmp(path, lv) || (file && !strcmp(path, file)));
}

static int find_base(struct served_stream *s, struct qc_err *err)
{
	const char *name = s->o->base, *file;

	s->base = s->nr_nodes;
	if (!name)
		return 0;
	file = file_of_snapshot(s, name);
	for (s->base = 0; s->base < s->nr_nodes; s->base++)
		if (is_layer(s, s->base, name, file))
			break;
	if (s->base == s->nr_nodes)
		return qc_err_set(err, -ENOENT, "%s: no layer of %s; they are listed by qchainctl "
				  "tree %s", name, s->o->name, s->o->name);
	if (!s->base)
		return qc_err_set(err, -EINVAL, "%s: is the active layer, must be below it to stay "
				  "as its backing", name);
	return 0;
}

static int look(struct served_stream *s, struct qc_err *err)
{
	int ret = client_command(s->served.client, "query-named-block-nodes", NULL, false,
				 &s->nodes, err);

	if (ret)
		return ret;
	s->nr_nodes = json_object_array_length(s->nodes);
	if (!s->nr_nodes)
		return qc_err_set(err, -EINVAL, "%s: has no layers to merge", s->o->name);
	return find_base(s, err);
}

/* ---- the job ------------------------------------------------------------------------ */

static int choose_id(struct served_stream *s, struct qc_err *err)
{
	json_object *row;
	int ret;

	for (u32 i = 0;; i++) {
		snprintf(s->job, sizeof(s->job), "stream%u", i);
		ret = job_ask(s->served.client, s->job, &row, err);
		if (ret || !row)
			return ret;
		json_object_put(row);
	}
}

static int add_base(const struct served_stream *s, json_object *arguments, struct qc_err *err)
{
	char *name;

	if (s->base == s->nr_nodes)
		return 0;
	name = backing_header_name(node_text(s, 0, "file"), node_text(s, s->base, "file"), err);
	if (!name)
		return err->code;
	json_add_string(arguments, "base-node", node_text(s, s->base, "node-name"));
	json_add_string(arguments, "backing-file", name);
	free(name);
	return 0;
}

/* A job that failed is kept until somebody has read why. */
static int start_job(struct served_stream *s, struct qc_err *err)
{
	json_object *arguments = json_object_new_object();
	int ret = choose_id(s, err);

	if (!ret)
		ret = add_base(s, arguments, err);
	if (ret) {
		json_object_put(arguments);
		return ret;
	}
	json_add_string(arguments, "job-id", s->job);
	json_add_string(arguments, "device", node_text(s, 0, "node-name"));
	json_add_bool(arguments, "auto-dismiss", false);
	if (s->o->speed)
		json_add_u64(arguments, "speed", s->o->speed);
	return client_command(s->served.client, "block-stream", arguments, true, NULL, err);
}

static int wait_for_job(struct served_stream *s, struct qc_err *err)
{
	int ret = job_follow(s->served.client, s->job, &s->row, err);

	return ret ? ret : job_simple_command(s->served.client, "job-dismiss", "id", s->job, err);
}

/* ---- the verb --------------------------------------------------------------------------- */

static void print_result(const struct served_stream *s)
{
	const char *base = s->base < s->nr_nodes ? node_text(s, s->base, "file") : NULL;
	const char *top = node_text(s, 0, "file");
	u32 layers = s->base - 1;
	json_object *object;
	char moved[32];

	if (s->o->json) {
		object = json_object_new_object();
		json_add_string(object, "name", s->o->name);
		json_add_string(object, "job", s->job);
		json_add_string(object, "into", top);
		if (base)
			json_add_string(object, "base", base);
		json_add_u64(object, "layers", layers);
		if (s->row)
			json_add_u64(object, "moved", json_number(s->row, "current-progress", 0));
		print_json(object);
	} else if (s->o->detach) {
		printf("%s\n", s->job);
	} else {
		printf("%s: %s has the data of %u layer%s below it (%s moved), and stands on %s "
		       "now\n", s->o->name, top, layers, layers == 1 ? "" : "s",
		       print_size(json_number(s->row, "current-progress", 0), moved),
		       base ? base : "nothing");
	}
}

static int stream(struct served_stream *s, struct qc_err *err)
{
	int ret = served_find(s->o->name, &s->served, err);

	if (ret)
		return ret;
	if (!s->served.client)
		return served_not_live(&s->served, err);
	ret = look(s, err);
	if (!ret)
		ret = start_job(s, err);
	if (!ret && !s->o->detach)
		ret = wait_for_job(s, err);
	return ret;
}

int merge_stream_served(const struct served_merge *merge)
{
	struct served_stream s = { .o = merge };
	struct qc_err err = { 0 };
	int ret = stream(&s, &err);

	if (!ret)
		print_result(&s);
	json_object_put(s.nodes);
	json_object_put(s.row);
	served_exit(&s.served);
	return ret ? print_error(&err) : CTL_DONE;
}
