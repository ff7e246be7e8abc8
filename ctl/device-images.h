/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A device with its record and all images around, served or not, for verbs that change them. */
#ifndef CTL_DEVICE_IMAGES_H
#define CTL_DEVICE_IMAGES_H

#include "family.h"

/*
 * struct device_images - set @name and @where before device_images_open()
 * @where: the VG or directory where its images are; NULL: found by itself
 * @beside: jobs may work on it; whoever changes layers asks beside_check()
 * @online: it is served, @served says how
 * @nodes: online: its layers as query-named-block-nodes has them
 * @record: its own, in @place
 * @activated: LVs that were made active for the work
 * @image: of its top, or what it is called by; @looked: not for the first time
 */
struct device_images {
	const char *name;
	const char *where;
	bool beside;
	bool online;
	struct rundir dir;
	struct served served;
	json_object *nodes;
	struct record_place place;
	struct device_record *record;
	struct family family;
	json_object *activated;
	char image[RECORD_IMAGE_BYTES];
	bool looked;
};

/* NAME SNAP [VG|DIR] of the command line, after its options; returns the exit status. */
int device_images_arguments(struct device_images *d, const struct verb *verb, int argc, char **argv,
			    const char **snap);

/*
 * device_images_open - lock the chain, and look at everything
 * What interrupted verbs have left is removed, which is told. Refused: while a job
 * works on it, unless @beside, and while the record and the daemon do not agree. A volume
 * of Proxmox VE that is not served is called by its own name.
 *
 * device_images_look - again: what was read is forgotten. The lock is held.
 * device_images_close - LVs that were activated are not any more; the lock goes
 */
int device_images_open(struct device_images *d, struct qc_err *err);
int device_images_look(struct device_images *d, struct qc_err *err);
int device_images_close(struct device_images *d, struct qc_err *err);

/* The depth of @member, or the image at @path, in the served chain; -1: no layer of it. */
int device_images_depth(const struct device_images *d, u32 member);
int device_images_depth_of(const struct device_images *d, const char *path);

/* Is a snapshot exposed whose chain has @member? Then -EBUSY. */
int device_images_check_exposed(const struct device_images *d, u32 member, struct qc_err *err);

/* Write the record, and what the run record shows of it. */
int device_images_save(struct device_images *d, struct qc_err *err);

/*
 * Of Proxmox VE, else nothing (proxmox.h):
 * device_images_rename - LVs are called as the record says; @place and @record are as they
 * are then, paths of @family and @nodes are not
 * device_images_release - the record goes, if the names say it all
 */
int device_images_rename(struct device_images *d, struct qc_err *err);
int device_images_release(struct device_images *d, struct qc_err *err);

/* The LV @name was made: whoever ends the work, or takes the device down, deactivates it. */
void device_images_made(struct device_images *d, const char *name);

#endif
