// SPDX-License-Identifier: GPL-2.0-or-later
/* Which layers the jobs of a daemon work on: others may be changed beside them. */
#include "beside.h"

#include "follow.h"

#include <errno.h>
#include <string.h>

/*
 * As the daemon counts (chain-turn.c): what is merged, the layer that receives and, of a
 * commit, the one above whose header is rewritten. The daemon has the last word; here
 * it is said before anything is recorded or written.
 */

struct layers {
	int first;
	int last;
};

static int depth_of(const struct device_images *d, const char *image)
{
	char path[4096];

	if (record_place_path(&d->place, image, path, sizeof(path), NULL))
		return -1;
	return device_images_depth_of(d, path);
}

static struct layers layers_of(const struct device_images *d, const struct record_job *job)
{
	int nr = json_object_array_length(d->nodes), top = depth_of(d, job->top);
	int base = job->base[0] ? depth_of(d, job->base) : nr;

	if (strcmp(job->kind, "commit"))
		return (struct layers){ top, base - 1 };
	if (top < 0) /* the header is written, the rest is its daemon's */
		return (struct layers){ nr, nr };
	return (struct layers){ top ? top - 1 : 0, base };
}

static int check_row(const struct device_images *d, json_object *row, int first, int last,
		     struct qc_err *err)
{
	const char *id = json_text(row, "id");
	const struct record_job *job = device_record_job(d->record, id);
	struct layers of;

	if (job_is_over(row))
		return 0;
	if (!job)
		return job_is_busy(row, d->name, err);
	of = layers_of(d, job);
	if (of.first > last || of.last < first)
		return 0;
	first = of.first > first ? of.first : first;
	return qc_err_set(err, -EBUSY, "%s: job %s (%s) works on it, or rewrites its header, must "
			  "have ended; qchainctl job wait %s %s",
			  json_text(json_object_array_get_idx(d->nodes, first), "file"), id,
			  json_text(row, "type"), d->name, id);
}

int beside_check(const struct device_images *d, int first, int last, struct qc_err *err)
{
	json_object *rows;
	int ret;

	if (!d->online)
		return 0;
	ret = client_command(d->served.client, "query-jobs", NULL, false, &rows, err);
	if (ret)
		return ret;
	for (u32 i = 0; i < json_object_array_length(rows) && !ret; i++)
		ret = check_row(d, json_object_array_get_idx(rows, i), first, last, err);
	json_object_put(rows);
	return ret;
}
