// SPDX-License-Identifier: GPL-2.0-or-later
/* Keeps the chains of oVirt, Incus and CloudStack, which scan-owner.c recognises, as they are. */
#include "manager.h"

#include "scan.h"

#include <errno.h>

static const char *manager_of(const struct lvm_lv *lv)
{
	const struct record_place none = { .nr_lvs = 0 };
	struct scan_image image = { .lv = lv };

	scan_name_image(&none, &image);
	switch (image.owner) {
	case OWNER_OVIRT:
		return "oVirt (tags IU_, PU_)";
	case OWNER_INCUS:
		return "Incus (its name)";
	case OWNER_CLOUDSTACK:
		return "CloudStack (its name)";
	default:
		return NULL;
	}
}

int manager_check(const struct lvm_lv *lv, struct qc_err *err)
{
	const char *manager = manager_of(lv);

	if (!manager)
		return 0;
	return qc_err_set(err, -EOPNOTSUPP, "%s/%s: belongs to %s, which keeps its own list of "
			  "what stands on what, and would write to a layer that is sealed then; "
			  "use its tools, or, if it is nobody's any more, rename it and take its "
			  "tags off", lv->vg, lv->name, manager);
}

int manager_check_path(const char *path, struct qc_err *err)
{
	struct record_place *place;
	const struct lvm_lv *lv = record_lv_of(path, &place);
	int ret = lv ? manager_check(lv, err) : 0;

	record_place_free(place);
	return ret;
}
