/* SPDX-License-Identifier: GPL-2.0-or-later OR MIT */
/* Logical volumes, through `lvm --reportformat json`. Never in the daemon (E1). */
#ifndef QCHAIN_LVM_H
#define QCHAIN_LVM_H

#include <qchain/err.h>
#include <qchain/types.h>

struct lvm_lv {
	char vg[128];
	char name[128];
	char uuid[40];
	char tags[1024]; /* comma-separated, as lvs prints them */
	u64 size_bytes;
	bool active;
	bool open;
};

/*
 * lvm_list - every LV of @vg (NULL: of all VGs), one `lvs` call, no --select
 * *@result is malloc'ed.
 */
int lvm_list(const char *vg, struct lvm_lv **result, u32 *nr, struct qc_err *err);
int lvm_find(const char *vg, const char *name, struct lvm_lv *result, struct qc_err *err);

/* Rounded up to whole extents; auto-activation off, nothing of it wiped by lvm. */
int lvm_create(const char *vg, const char *name, u64 bytes, const char *tag, struct qc_err *err);
int lvm_remove(const char *vg, const char *name, struct qc_err *err);
int lvm_extend(const char *vg, const char *name, u64 bytes, struct qc_err *err);
int lvm_activate(const char *vg, const char *name, bool active, struct qc_err *err);
int lvm_change_tags(const char *vg, const char *name, const char *add, const char *remove,
		    struct qc_err *err);

/*
 * libdevmapper, this room only: the dm uuid of a block device given by number,
 * "LVM-<vg uuid><lv uuid>"; empty string for others.
 */
int lvm_dm_uuid(u32 major, u32 minor, char uuid[129], struct qc_err *err);

#endif
