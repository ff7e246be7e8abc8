/* SPDX-License-Identifier: GPL-2.0-or-later */
/* LVs of systems that keep a list of images of their own: chains are served, not changed (E5). */
#ifndef CTL_MANAGER_H
#define CTL_MANAGER_H

#include "record.h"

/*
 * manager_check - may what stands on @lv, or under it, be changed by us? oVirt, Incus and
 * CloudStack start a VM from the LV that their database names: an overlay of ours, or a merge,
 * would let it write to a sealed layer. -EOPNOTSUPP. Proxmox VE goes by names: proxmox.h.
 * manager_check_path - the same by a path; 0 for what is no LV
 */
int manager_check(const struct lvm_lv *lv, struct qc_err *err);
int manager_check_path(const char *path, struct qc_err *err);

#endif
