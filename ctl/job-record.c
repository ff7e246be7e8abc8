// SPDX-License-Identifier: GPL-2.0-or-later
/* Writes merges into the device record, and takes them out again. */
#include "job-record.h"

#include "grow.h"
#include "proxmox.h"

#include <errno.h>
#include <qchain/crash-point.h>
#include <stdlib.h>
#include <string.h>

/*
 * qchainctl is the only one who writes records: the daemon runs no lvm and opens no
 * path (rule E1). So the record comes before the command that starts the job, and
 * goes after its end. Who finds one that says "writing" while no daemon works on it
 * goes on with it, or sees in the headers that it is done.
 */

/* ---- open and close ------------------------------------------------------------------- */

static void take_text(json_object *object, const char *key, char *result, size_t bytes)
{
	const char *text = json_text(object, key);

	snprintf(result, bytes, "%s", text ? text : "");
}

/* What the run record says, for a device that has no other. */
static int take_noted(struct job_record *r)
{
	u32 nr = 0;
	json_object *list = json_list(r->state, "jobs", &nr);
	struct record_job job;
	int ret = 0;

	for (u32 i = 0; i < nr && !ret; i++) {
		json_object *one = json_object_array_get_idx(list, i);

		job.phase = job_noted_phase(one);
		take_text(one, "id", job.id, sizeof(job.id));
		take_text(one, "kind", job.kind, sizeof(job.kind));
		take_text(one, "top", job.top, sizeof(job.top));
		take_text(one, "base", job.base, sizeof(job.base));
		take_text(one, "error", job.error, sizeof(job.error));
		ret = device_record_put_job(&r->own, &job);
	}
	return ret;
}

/* Half renamed: the record has the new name already, the folder of what is served not yet. */
static struct device_record *find_renamed(const struct record_place *place, const char *image)
{
	for (u32 i = 0; i < place->nr_records; i++)
		if (!strcmp(place->records[i].top, image))
			return &place->records[i];
	return NULL;
}

int job_record_open(struct job_record *r, const char *device, const char *active,
		    const struct rundir *dir, json_object *state, struct qc_err *err)
{
	char image[RECORD_IMAGE_BYTES];
	const char *format;
	int ret;

	memset(r, 0, sizeof(*r));
	r->device = device;
	r->dir = dir;
	r->state = state;
	snprintf(r->active, sizeof(r->active), "%s", active);
	ret = record_place_of(active, &r->place, image, err);
	if (ret && ret != -EOPNOTSUPP)
		return ret;
	r->has_place = !ret;
	ret = r->has_place ? proxmox_find_record(&r->place, device, image, &r->record, err) : 0;
	if (!ret && r->has_place && !r->record)
		r->record = find_renamed(&r->place, image);
	if (ret || r->record)
		return ret;
	r->record = &r->own;
	snprintf(r->own.name, sizeof(r->own.name), "%s", device);
	format = json_text(state, "format");
	device_record_set_top(&r->own, r->has_place ? image : active,
			      format && !strcmp(format, "raw"));
	if (!r->has_place && take_noted(r))
		return qc_err_set(err, -ENOMEM, "%s: out of memory", device);
	return 0;
}

int job_record_open_served(struct job_record *r, const struct rundir *dir,
			   const struct served *served, struct qc_err *err)
{
	return job_record_open(r, served->name, served_top(served), dir, served->record, err);
}

void job_record_close(struct job_record *r)
{
	record_place_exit(&r->place);
	device_record_exit(&r->own);
	free(r->dropped);
	memset(r, 0, sizeof(*r));
}

/* ---- writing ------------------------------------------------------------------------------ */

/* One of a raw volume of Proxmox VE, there only for its jobs, goes with the last of them. */
static bool is_needless(const struct job_record *r)
{
	const struct lvm_lv *lv = record_place_lv(&r->place, r->record->top);

	return lv && record_is_foreign(lv) && !r->record->volume[0] && !r->record->nr_jobs &&
	       !r->record->nr_snapshots;
}

static int save(struct job_record *r, struct qc_err *err)
{
	int ret = 0;

	if (r->has_place)
		ret = is_needless(r) ? record_place_remove(&r->place, r->device, err) :
				       record_place_save(&r->place, r->record, err);
	if (ret || !r->state)
		return ret;
	record_note(&r->place, r->record, r->active, r->state);
	grow_start(r->dir, r->state);
	return rundir_save(r->dir, r->state, err);
}

static int out_of_memory(const struct job_record *r, struct qc_err *err)
{
	return qc_err_set(err, -ENOMEM, "%s: out of memory", r->device);
}

static int recorded_name(const struct job_record *r, const char *path, char *image,
		      struct qc_err *err)
{
	if (r->has_place)
		return record_place_image(&r->place, path, image, err);
	snprintf(image, RECORD_IMAGE_BYTES, "%s", path);
	return 0;
}

int job_record_plan(struct job_record *r, const struct recorded_merge *merge, struct qc_err *err)
{
	struct record_job job = { .phase = RECORD_PLANNED };
	const struct record_job *before = device_record_job(r->record, merge->id);
	int ret = recorded_name(r, merge->top, job.top, err);

	if (!ret && merge->base)
		ret = recorded_name(r, merge->base, job.base, err);
	if (ret)
		return ret;
	if (before)
		r->before = *before;
	if (before && record_job_has_written(before))
		job.phase = before->phase; /* what was written stays written */
	snprintf(job.id, sizeof(job.id), "%s", merge->id);
	snprintf(job.kind, sizeof(job.kind), "%s", merge->kind);
	if (device_record_put_job(r->record, &job))
		return out_of_memory(r, err);
	crash_point("merge.unrecorded");
	ret = save(r, err);
	crash_point("merge.planned");
	return ret;
}

/*
 * Of any device of this place; what another one loses is written at once. A snapshot
 * that `delete` takes away is its own affair.
 */
static int drop_snapshots(struct job_record *r, const char *image, struct qc_err *err)
{
	const struct record_snapshot *held = device_record_by_image(r->record, image);
	struct record_snapshot *larger;
	int ret = 0;

	if (held && !held->from[0]) {
		larger = realloc(r->dropped, (r->nr_dropped + 1) * sizeof(*larger));
		if (!larger)
			return out_of_memory(r, err);
		r->dropped = larger;
		larger[r->nr_dropped++] = *held;
		device_record_drop(r->record, image);
	}
	for (u32 i = 0; i < r->place.nr_records && !ret; i++) {
		struct device_record *other = &r->place.records[i];

		if (other == r->record || !device_record_by_image(other, image))
			continue;
		device_record_drop(other, image);
		ret = record_place_save(&r->place, other, err);
	}
	return ret;
}

int job_record_begin(struct job_record *r, const struct recorded_merge *merge,
		     enum record_phase phase, struct qc_err *err)
{
	char image[RECORD_IMAGE_BYTES];
	int ret = 0;

	for (u32 i = 0; i < merge->nr_lost && !ret; i++) {
		ret = recorded_name(r, merge->lost[i], image, err);
		if (!ret)
			ret = drop_snapshots(r, image, err);
	}
	if (ret)
		return ret;
	device_record_job(r->record, merge->id)->phase = phase;
	crash_point("merge.unbegun");
	ret = save(r, err);
	crash_point("merge.begun");
	return ret;
}

/* In their old order, which their numbers tell. */
static int compare_numbers(const void *a, const void *b)
{
	const struct record_snapshot *x = a, *y = b;

	return x->number < y->number ? -1 : x->number > y->number;
}

static int put_back_snapshots(struct job_record *r)
{
	struct device_record *record = r->record;

	for (u32 i = 0; i < r->nr_dropped; i++) {
		if (device_record_add(record, r->dropped[i].name, r->dropped[i].image))
			return -ENOMEM;
		record->snapshots[record->nr_snapshots - 1] = r->dropped[i];
	}
	if (r->nr_dropped)
		qsort(record->snapshots, record->nr_snapshots, sizeof(*record->snapshots),
		      compare_numbers);
	r->nr_dropped = 0;
	return 0;
}

int job_record_withdraw(struct job_record *r, const char *id, struct qc_err *err)
{
	if (r->before.id[0] ? device_record_put_job(r->record, &r->before) : 0)
		return out_of_memory(r, err);
	if (!r->before.id[0])
		device_record_drop_job(r->record, id);
	if (put_back_snapshots(r))
		return out_of_memory(r, err);
	return save(r, err);
}

/* `delete` moves names itself, in the write that takes its snapshot away. */
static bool is_deletion(const struct device_record *record, const struct record_job *job)
{
	for (u32 i = 0; i < record->nr_snapshots; i++)
		if (!strcmp(record->snapshots[i].image, job->base) &&
		    !strcmp(record->snapshots[i].from, job->top))
			return true;
	return false;
}

static void move_snapshot(struct device_record *record, const struct record_job *job)
{
	for (u32 i = 0; i < record->nr_snapshots; i++)
		if (!strcmp(record->snapshots[i].image, job->top))
			strcpy(record->snapshots[i].image, job->base);
}

int job_record_end(struct job_record *r, const char *id, bool moved, struct qc_err *err)
{
	const struct record_job *job = device_record_job(r->record, id);
	int ret;

	if (!job)
		return 0;
	if (moved && !is_deletion(r->record, job)) {
		move_snapshot(r->record, job);
		if (r->record->volume[0] && proxmox_bury_merged(&r->place, r->record, job))
			return out_of_memory(r, err);
	}
	device_record_drop_job(r->record, id);
	crash_point("merge.unsettled");
	ret = save(r, err);
	crash_point("merge.settled");
	return ret;
}

/* The path of what is the top now, for the run record. */
static int find_active(struct job_record *r, struct qc_err *err)
{
	if (r->has_place)
		return record_place_path(&r->place, r->record->top, r->active, sizeof(r->active),
					 err);
	snprintf(r->active, sizeof(r->active), "%s", r->record->top);
	return 0;
}

int job_record_pivot(struct job_record *r, const char *id, bool raw, struct qc_err *err)
{
	const struct record_job *job = device_record_job(r->record, id);
	int ret = r->record->volume[0] ? proxmox_bury_merged(&r->place, r->record, job) :
		  is_deletion(r->record, job) ? device_record_bury(r->record, job->top, false) :
						device_record_lay_aside(r->record, job->top);

	if (ret)
		return out_of_memory(r, err);
	device_record_set_top(r->record, job->base, raw);
	device_record_drop(r->record, job->base);
	device_record_drop_job(r->record, id);
	ret = find_active(r, err);
	crash_point("pivot.unrecorded");
	if (!ret)
		ret = save(r, err);
	crash_point("pivot.recorded");
	return ret;
}

bool job_record_is_of_top(const struct job_record *r, const char *id)
{
	const struct record_job *job = device_record_job(r->record, id);

	return job && !strcmp(job->kind, "commit") && !strcmp(job->top, r->record->top);
}

int job_record_fail(struct job_record *r, const char *id, const char *error, struct qc_err *err)
{
	struct record_job *job = device_record_job(r->record, id);
	int ret;

	if (!job)
		return 0;
	job->phase = RECORD_FAILED;
	snprintf(job->error, sizeof(job->error), "%s", error);
	crash_point("merge.unsettled");
	ret = save(r, err);
	crash_point("merge.settled");
	return ret;
}

/* ---- the run record's copy ---------------------------------------------------------------- */

json_object *job_noted(json_object *state, const char *id)
{
	u32 nr = 0;
	json_object *list = json_list(state, "jobs", &nr);

	for (u32 i = 0; i < nr; i++) {
		json_object *one = json_object_array_get_idx(list, i);
		const char *text = json_text(one, "id");

		if (text && !strcmp(text, id))
			return one;
	}
	return NULL;
}

bool job_noted_is_commit(json_object *job)
{
	const char *kind = json_text(job, "kind");

	return kind && !strcmp(kind, "commit");
}

enum record_phase job_noted_phase(json_object *job)
{
	enum record_phase phase = RECORD_PLANNED;
	const char *text = json_text(job, "phase");

	if (text)
		record_phase_parse(text, &phase);
	return phase;
}

const char *job_noted_text(json_object *job, char *text, size_t bytes)
{
	const char *top = json_text(job, "top"), *base = json_text(job, "base");

	top = top ? top : "what is gone";
	if (job_noted_is_commit(job))
		snprintf(text, bytes, "commit of %s into %s", top, base ? base : "what is gone");
	else
		snprintf(text, bytes, "stream into %s, above %s", top, base ? base : "nothing");
	return text;
}
