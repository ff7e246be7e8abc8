/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Names of logical volumes in headers: which LV of a VG is meant. */
#ifndef CTL_LV_NAMES_H
#define CTL_LV_NAMES_H

#include <qchain/lvm.h>

/*
 * lv_path_split - "/dev/VG/LV" taken apart, 128 bytes each; false for other paths
 * lv_path_find - the same for whatever else leads to the device of an LV
 */
bool lv_path_split(const char *path, char *vg, char *lv);
bool lv_path_find(const char *path, char *vg, char *lv);

/*
 * lv_of_backing - the LV of @lvs that a header of an image in @vg means by @name
 * "LV" as Proxmox VE writes it, "/dev/VG/LV" and "/dev/mapper/VG-LV" as Incus and
 * CloudStack, "../IMAGE/LV" as oVirt. Whether it is active does not matter. NULL: none.
 * lv_backing_is_outside - @name means nothing that could be in @vg
 */
struct lvm_lv *lv_of_backing(struct lvm_lv *lvs, u32 nr, const char *vg, const char *name);
bool lv_backing_is_outside(const char *vg, const char *name);

/* What follows @prefix in the first of the comma-separated @tags that begins so. */
bool lv_tag_value(const char *tags, const char *prefix, char *value, size_t bytes);

#endif
