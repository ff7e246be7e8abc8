/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Snapshots of a device that are not below its top: branches that `revert --keep` has left. */
#ifndef CTL_BRANCHES_H
#define CTL_BRANCHES_H

#include "served.h"

/*
 * branches_add - give @layers what stands on them and leads to a snapshot of the device
 * @layers: of `tree`, from the top down, with their "file"
 *
 * An image with branches gets "branches", a list of images: {file, node-name, snapshot,
 * state "kept", actual-size}, which have "branches" of their own. Other devices' images
 * are left out. Looks at the images around only when there is such a snapshot.
 */
int branches_add(const struct served *served, json_object *layers, struct qc_err *err);

#endif
