// SPDX-License-Identifier: GPL-2.0-or-later
/* What is exposed is not changed, and what is being changed is not exposed. */
#include "exposed.h"

#include "follow.h"
#include "job-record.h"

#include <errno.h>
#include <qchain/overlays.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/*
 * The daemon of an exposed snapshot holds the locks of a reader on all images that it
 * shows, a job those of a writer on the one that receives: neither comes while the
 * other is there. What is looked at here says so before anything is recorded, and
 * with the names of both.
 */
#define SEAL_TRIES 600
#define SEAL_PAUSE_US 50000

int exposed_each(const char *device, exposed_fn fn, void *arg, struct qc_err *err)
{
	size_t len = strlen(device);
	json_object *record;
	char **names;
	u32 nr;
	int ret = rundir_names(&names, &nr, err);

	if (ret)
		return ret;
	for (u32 i = 0; i < nr; i++) {
		record = NULL;
		if (!ret && !strncmp(names[i], device, len) && names[i][len] == '+' &&
		    rundir_load(names[i], &record, NULL) == 0)
			ret = fn(names[i] + len + 1, json_text(record, "top"), arg, err);
		json_object_put(record);
		free(names[i]);
	}
	free(names);
	return ret;
}

static const char *file_at(json_object *nodes, u32 depth)
{
	return json_text(json_object_array_get_idx(nodes, depth), "file");
}

/* The depth of the image at @path in @nodes; as many as there are: it is no layer. */
static u32 depth_of(json_object *nodes, const char *path)
{
	struct image_ident wanted, found;
	u32 depth, nr = json_object_array_length(nodes);
	bool known = path && !image_ident_of(path, &wanted);

	for (depth = 0; depth < nr; depth++) {
		const char *file = file_at(nodes, depth);

		if (known && file && !image_ident_of(file, &found) &&
		    image_ident_same(&wanted, &found))
			break;
	}
	return depth;
}

/* ---- a merge is to begin ---------------------------------------------------------------- */

struct merge_check {
	const char *device;
	json_object *nodes;
	u32 written;
};

static int check_exposed(const char *snap, const char *top, void *arg, struct qc_err *err)
{
	const struct merge_check *check = arg;

	if (depth_of(check->nodes, top) > check->written)
		return 0;
	return qc_err_set(err, -EBUSY, "%s: would be written, and snapshot %s, which shows it, is "
			  "exposed; first qchainctl unexpose %s %s",
			  file_at(check->nodes, check->written), snap, check->device, snap);
}

int exposed_check_merge(const char *device, json_object *nodes, u32 written, struct qc_err *err)
{
	struct merge_check check = { .device = device, .nodes = nodes, .written = written };

	return exposed_each(device, check_exposed, &check, err);
}

/* ---- a snapshot is to be exposed --------------------------------------------------------- */

static bool is_running(const struct served *served, const char *id)
{
	struct qc_err ignored = { 0 };
	json_object *row = NULL;
	bool running;

	running = job_ask(served->client, id, &row, &ignored) == 0 && row && !job_is_over(row);
	json_object_put(row);
	return running;
}

static int check_job(const struct served *served, json_object *job, json_object *nodes, u32 shown,
		     struct qc_err *err)
{
	const char *id = json_text(job, "id");
	const char *written = json_text(job, job_noted_is_commit(job) ? "base" : "top");
	u32 depth = depth_of(nodes, written);

	if (!id || depth < shown || depth == json_object_array_length(nodes) ||
	    !is_running(served, id))
		return 0;
	return qc_err_set(err, -EBUSY, "%s: is shown by the snapshot, and job %s writes to it, "
			  "must have ended; qchainctl job wait %s %s", written, id, served->name,
			  id);
}

int exposed_check_jobs(const struct served *served, const char *file, struct qc_err *err)
{
	json_object *nodes, *jobs;
	u32 nr = 0, shown;
	int ret = client_command(served->client, "query-named-block-nodes", NULL, false, &nodes,
				 err);

	if (ret)
		return ret;
	shown = depth_of(nodes, file);
	jobs = json_list(served->record, "jobs", &nr);
	for (u32 i = 0; i < nr && !ret; i++)
		ret = check_job(served, json_object_array_get_idx(jobs, i), nodes, shown, err);
	json_object_put(nodes);
	return ret;
}

/* ---- the layer of a snapshot -------------------------------------------------------------- */

int exposed_layer(const struct served *served, const char *snap, char **result,
		  struct qc_err *err)
{
	json_object *list, *entry;
	u32 nr;

	list = json_list(served->record, "snapshots", &nr);
	for (u32 i = 0; i < nr; i++) {
		entry = json_object_array_get_idx(list, i);
		if (strcmp(json_text(entry, "name"), snap))
			continue;
		*result = strdup(json_text(entry, "file"));
		return *result ? 0 : -ENOMEM;
	}
	return qc_err_set(err, -ENOENT, "%s: has no snapshot %s; see qchainctl tree %s",
			  served->name, snap, served->name);
}

/*
 * Is what was written to it before the snapshot durable, and its writer gone? What is no
 * layer of the device, but of a branch that it was reverted from, is.
 */
static int is_sealed(const struct served *served, const char *file, struct qc_err *err)
{
	json_object *nodes;
	bool sealed = true;
	int ret = client_command(served->client, "query-named-block-nodes", NULL, false, &nodes,
				 err);

	for (u32 i = 0; !ret && i < json_object_array_length(nodes); i++) {
		json_object *node = json_object_array_get_idx(nodes, i);
		const char *state = json_text(node, "state"), *name = json_text(node, "file");

		sealed &= !name || !state || strcmp(name, file) || !strcmp(state, "sealed");
	}
	if (!ret)
		json_object_put(nodes);
	return ret ? ret : sealed;
}

int exposed_wait_sealed(const struct served *served, const char *file, struct qc_err *err)
{
	int ret = 0;

	for (int i = 0; i < SEAL_TRIES && !ret; i++) {
		if (i)
			usleep(SEAL_PAUSE_US);
		ret = is_sealed(served, file, err);
	}
	if (ret)
		return min(ret, 0);
	return qc_err_set(err, -EBUSY, "%s: is still being sealed; see qchainctl status %s", file,
			  served->name);
}

enum image_format exposed_format(json_object *nodes, const char *file)
{
	enum image_format format = IMAGE_QCOW2;
	int depth = layer_depth(nodes, file);

	if (depth >= 0)
		image_format_parse(json_text(json_object_array_get_idx(nodes, depth), "drv"),
				   &format);
	return format;
}
