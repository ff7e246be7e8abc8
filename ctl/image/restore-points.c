// SPDX-License-Identifier: GPL-2.0-or-later
/* Finds, in the device records around images, the snapshots that they hold. */
#include "restore-points.h"
#include "../record.h"

#include <errno.h>

/* @advice NULL: drop them. */
static int look_at_records(const struct record_place *place, const char *image, const char *path,
			   const char *advice, struct qc_err *err)
{
	const struct record_snapshot *snapshot;
	int ret = 0;

	for (u32 i = 0; i < place->nr_records && !ret; i++) {
		snapshot = device_record_by_image(&place->records[i], image);
		if (!snapshot)
			continue;
		if (advice)
			return qc_err_set(err, -EBUSY, "%s: holds snapshot %s of device %s, which "
					  "would be lost; %s", path, snapshot->name,
					  place->records[i].name, advice);
		device_record_drop(&place->records[i], image);
		ret = record_place_save(place, &place->records[i], err);
	}
	return ret;
}

/* A block device that is no LV has no records. */
static int look_at_image(const char *path, const char *advice, struct qc_err *err)
{
	struct record_place place = {};
	char image[RECORD_IMAGE_BYTES];
	int ret = record_place_of(path, &place, image, err);

	if (ret == 0)
		ret = look_at_records(&place, image, path, advice, err);
	record_place_exit(&place);
	return ret == -EOPNOTSUPP ? 0 : ret;
}

static int look_at_all(char *const *paths, u32 nr, const char *advice, struct qc_err *err)
{
	int ret = 0;

	for (u32 i = 0; i < nr && !ret; i++)
		ret = look_at_image(paths[i], advice, err);
	return ret;
}

int restore_points_check(char *const *paths, u32 nr, const char *advice, struct qc_err *err)
{
	return look_at_all(paths, nr, advice, err);
}

int restore_points_drop(char *const *paths, u32 nr, struct qc_err *err)
{
	return look_at_all(paths, nr, NULL, err);
}
