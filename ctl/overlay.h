/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Making the overlay of a snapshot, off the data path; of one that fails nothing is left. */
#ifndef CTL_OVERLAY_H
#define CTL_OVERLAY_H

#include "record.h"

/*
 * struct overlay - an image that is to stand on the top of a device
 * @header_name: of the image below, as it will be called; NULL: as it is called now
 * @lv_bytes: size of the LV; 0: as @chunk says
 * @chunk: of a thin LV (thin.h); 0: as the top's, or so that it can never run full (rule A4)
 * @made: it is there, and goes again with overlay_remove()
 */
struct overlay {
	const char *device;
	const char *top; /* path of the image below */
	const char *format; /* of that, "qcow2" or "raw" */
	const char *header_name;
	u64 virtual_size;
	u64 lv_bytes;
	u64 chunk;
	bool made;
	char name[128];
	char path[4096];
	char image[RECORD_IMAGE_BYTES]; /* what records call it */
};

/*
 * overlay_make - in the VG or directory of @place, under a name that is free
 * Marked there as not ready before it exists, so that a crash leaves nothing that
 * could be taken for a layer; formatted and durable when this returns. @record is
 * of the device and, for files, is saved with the mark. @place is read again.
 */
int overlay_make(struct overlay *overlay, struct record_place *place,
		 struct device_record **record, struct qc_err *err);

/* Take it away, and its mark; @record must not call it a layer any more. */
int overlay_remove(const struct overlay *overlay, const struct record_place *place,
		   struct device_record *record, struct qc_err *err);

/* Nothing that somebody may miss: a file without an image yet, or an empty overlay. */
bool overlay_is_unused(const char *path);

/*
 * overlay_clean - take away what a snapshot of @record's device that was killed
 * has left: overlays that are marked as not ready and are no layers; and images
 * that the record calls dead
 */
int overlay_clean(const struct record_place *place, struct device_record *record,
		  struct qc_err *err);

/* ---- in the daemon (bring-in.c) --------------------------------------------------- */

/* As the daemon would call the image at the next start; room for QC_MAX_NODE_NAME. */
void overlay_node_name(const struct overlay *overlay, char *node);
/* A node of the daemon; *@node: its name. Takes back one of this name that was not used. */
int overlay_bring_in(struct client *client, const struct overlay *overlay, char *node,
		     struct qc_err *err);
/* Take back what was brought in and not used; fine when there is nothing. */
void overlay_withdraw(struct client *client, const char *node);
/* The same for all that a verb which was killed has left, before overlay_clean(). */
void overlay_withdraw_unfinished(struct client *client, const struct record_place *place,
				 const struct device_record *record);

#endif
