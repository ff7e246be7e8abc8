// SPDX-License-Identifier: GPL-2.0-or-later
/* The merges that a device record knows of. */
#include <qchain/record.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const phase_names[RECORD_NR_PHASES] = {
	[RECORD_PLANNED] = "planned",
	[RECORD_WRITING] = "writing",
	[RECORD_OFFLINE] = "offline",
	[RECORD_FAILED] = "failed",
};

const char *record_phase_name(enum record_phase phase)
{
	return phase_names[phase];
}

int record_phase_parse(const char *text, enum record_phase *result)
{
	for (u32 i = 0; i < RECORD_NR_PHASES; i++) {
		if (strcmp(text, phase_names[i]))
			continue;
		*result = i;
		return 0;
	}
	return -EINVAL;
}

bool record_job_has_written(const struct record_job *job)
{
	return job->phase != RECORD_PLANNED;
}

struct record_job *device_record_job(const struct device_record *record, const char *id)
{
	for (u32 i = 0; i < record->nr_jobs; i++)
		if (!strcmp(record->jobs[i].id, id))
			return &record->jobs[i];
	return NULL;
}

int device_record_put_job(struct device_record *record, const struct record_job *job)
{
	struct record_job *place = device_record_job(record, job->id), *larger;

	if (!place) {
		larger = realloc(record->jobs, (record->nr_jobs + 1) * sizeof(*larger));
		if (!larger)
			return -ENOMEM;
		record->jobs = larger;
		place = &larger[record->nr_jobs++];
	}
	*place = *job;
	return 0;
}

void device_record_drop_job(struct device_record *record, const char *id)
{
	u32 kept = 0;

	for (u32 i = 0; i < record->nr_jobs; i++)
		if (strcmp(record->jobs[i].id, id))
			record->jobs[kept++] = record->jobs[i];
	record->nr_jobs = kept;
}

/* ---- JSON -------------------------------------------------------------------------- */

static bool take_text(json_object *object, const char *key, char *result, size_t bytes)
{
	json_object *value;

	*result = 0;
	if (!json_object_object_get_ex(object, key, &value))
		return true;
	return json_object_is_type(value, json_type_string) &&
	       snprintf(result, bytes, "%s", json_object_get_string(value)) < (int)bytes;
}

/* Beside the record, or an absolute path: nothing that leads elsewhere. */
static bool is_image(const char *text)
{
	return *text == '/' || !strchr(text, '/');
}

static bool take_job(json_object *object, struct record_job *job)
{
	char phase[16];

	*job = (struct record_job){ .phase = RECORD_PLANNED };
	return json_object_is_type(object, json_type_object) &&
	       take_text(object, "id", job->id, sizeof(job->id)) && job->id[0] &&
	       take_text(object, "kind", job->kind, sizeof(job->kind)) && job->kind[0] &&
	       take_text(object, "phase", phase, sizeof(phase)) &&
	       !record_phase_parse(phase, &job->phase) &&
	       take_text(object, "top", job->top, sizeof(job->top)) && job->top[0] &&
	       is_image(job->top) && take_text(object, "base", job->base, sizeof(job->base)) &&
	       is_image(job->base) && take_text(object, "error", job->error, sizeof(job->error));
}

bool record_jobs_take(json_object *root, struct device_record *record)
{
	struct record_job job;
	json_object *list;

	if (!json_object_object_get_ex(root, "jobs", &list))
		return true;
	if (!json_object_is_type(list, json_type_array))
		return false;
	for (size_t i = 0; i < json_object_array_length(list); i++)
		if (!take_job(json_object_array_get_idx(list, i), &job) ||
		    device_record_put_job(record, &job))
			return false;
	return true;
}

static void add_text(json_object *object, const char *key, const char *text)
{
	if (*text)
		json_object_object_add(object, key, json_object_new_string(text));
}

json_object *record_jobs_json(const struct device_record *record)
{
	json_object *list, *entry;

	if (!record->nr_jobs)
		return NULL;
	list = json_object_new_array();
	for (u32 i = 0; i < record->nr_jobs; i++) {
		const struct record_job *job = &record->jobs[i];

		entry = json_object_new_object();
		add_text(entry, "id", job->id);
		add_text(entry, "kind", job->kind);
		add_text(entry, "phase", record_phase_name(job->phase));
		add_text(entry, "top", job->top);
		add_text(entry, "base", job->base);
		add_text(entry, "error", job->error);
		json_object_array_add(list, entry);
	}
	return list;
}
