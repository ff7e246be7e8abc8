/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Snapshots of a device that are exposed, and jobs that would change what they show. */
#ifndef CTL_EXPOSED_H
#define CTL_EXPOSED_H

#include "served.h"

#include <qchain/image.h>

/*
 * exposed_each - call @fn for each exposed snapshot of @device, until it fails
 * @snap: its name; @top: path of the layer that holds it, NULL: not known
 */
typedef int (*exposed_fn)(const char *snap, const char *top, void *arg, struct qc_err *err);
int exposed_each(const char *device, exposed_fn fn, void *arg, struct qc_err *err);

/*
 * exposed_check_merge - no exposed snapshot shows the layer at depth @written of @nodes
 * @nodes: as query-named-block-nodes. -EBUSY: one does. What is exposed later finds the
 * image locks of the job.
 */
int exposed_check_merge(const char *device, json_object *nodes, u32 written, struct qc_err *err);
/* No job of @served writes to the layer at @file, or to one below it; -EBUSY: one does. */
int exposed_check_jobs(const struct served *served, const char *file, struct qc_err *err);

/*
 * exposed_layer - the path of the image that holds @snap, malloc'ed; -ENOENT
 * exposed_wait_sealed - until what was written to @file before the snapshot is durable and
 * its writer gone; at once for what is no layer. -EBUSY: it takes too long
 * exposed_format - of @file, a layer in query-named-block-nodes; of a kept branch it is not known
 * there: its images are overlays
 */
int exposed_layer(const struct served *served, const char *snap, char **result,
		  struct qc_err *err);
int exposed_wait_sealed(const struct served *served, const char *file, struct qc_err *err);
enum image_format exposed_format(json_object *nodes, const char *file);

#endif
