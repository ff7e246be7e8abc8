// SPDX-License-Identifier: GPL-2.0-or-later
/* Finds images between base and top of a commit that has begun: no restore points any more. */
#include "merging.h"

#include "family.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static bool is_begun_commit(const struct record_job *job)
{
	return record_job_has_written(job) && !strcmp(job->kind, "commit");
}

/* Headers are looked at only if there is such a job at all. */
static bool has_begun_commit(const struct record_place *place)
{
	for (u32 i = 0; i < place->nr_records; i++)
		for (u32 n = 0; n < place->records[i].nr_jobs; n++)
			if (is_begun_commit(&place->records[i].jobs[n]))
				return true;
	return false;
}

/* Nothing stands on its top any more: the base has it all, and shows what the top did. */
static bool is_done(const struct family *family, const struct device_record *record,
		    const struct record_job *job)
{
	u32 other;

	return strcmp(record->top, job->top) &&
	       !family_overlays(family, family_find(family, job->top), &other);
}

/* Is @member below the commit's top, down to its base? */
static bool is_between(const struct family *family, u32 member,
		       const struct device_record *record, const struct record_job *job)
{
	u32 at = family_find(family, job->top), base = family_find(family, job->base);

	for (u32 n = 0; n < family->nr && at != FAMILY_NONE && at != base; n++) {
		at = family->members[at].backing;
		if (at == member)
			return at != base || !is_done(family, record, job);
	}
	return false;
}

static int check_record(const struct family *family, u32 member,
			const struct device_record *record, struct qc_err *err)
{
	for (u32 i = 0; i < record->nr_jobs; i++) {
		const struct record_job *job = &record->jobs[i];

		if (is_begun_commit(job) && is_between(family, member, record, job))
			return qc_err_set(err, -EBUSY, "%s: is merging, job %s of device %s has "
					  "begun to change it or what it stands on: no restore "
					  "point any more; see qchainctl job list %s",
					  family->members[member].path, job->id, record->name,
					  record->name);
	}
	return 0;
}

int merging_check(struct record_place *place, const char *image, struct qc_err *err)
{
	struct family family = { .nr = 0 };
	u32 member;
	int ret;

	if (!has_begun_commit(place))
		return 0;
	ret = family_read(place, &family, err);
	member = ret ? FAMILY_NONE : family_find(&family, image);
	for (u32 i = 0; i < place->nr_records && !ret && member != FAMILY_NONE; i++)
		ret = check_record(&family, member, &place->records[i], err);
	family_exit(&family);
	return ret;
}

int merging_check_image(const char *path, struct qc_err *err)
{
	struct record_place *place = calloc(1, sizeof(*place));
	char image[RECORD_IMAGE_BYTES];
	int ret;

	if (!place)
		return qc_err_set(err, -ENOMEM, "%s: out of memory", path);
	ret = record_place_of(path, place, image, err);
	if (!ret)
		ret = merging_check(place, image, err);
	record_place_exit(place);
	free(place);
	return ret == -EOPNOTSUPP ? 0 : ret;
}
