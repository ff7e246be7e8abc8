/* SPDX-License-Identifier: GPL-2.0-or-later OR MIT */
/* Logical volumes, through `lvm --reportformat json`. Never in the daemon (E1). */
#ifndef QCHAIN_LVM_H
#define QCHAIN_LVM_H

#include <qchain/err.h>
#include <qchain/types.h>

/*
 * struct lvm_lv - a row of the report
 * @path: of its device, there or not; "": it never has one (a thin pool)
 * @tags: comma-separated, as lvs prints them; lives as the list does
 * @active, @open: on this host
 * @locked: its VG is shared by lvmlockd: it may be active elsewhere, which LVM tells
 *	only when it is to be made active here
 * @vg_bytes, @vg_free_bytes, @extent_bytes: of its VG; 0 where LVM does not say
 */
struct lvm_lv {
	char vg[128];
	char name[128];
	char uuid[40];
	char path[264];
	const char *tags;
	u64 size_bytes;
	u64 vg_bytes;
	u64 vg_free_bytes;
	u64 extent_bytes;
	bool active;
	bool open;
	bool locked;
};

/*
 * lvm_list - every LV of @vg (NULL: of all VGs), one `lvs` call, no --select
 * *@result is malloc'ed, one block; NULL when there are none. Hidden LVs are left out.
 * lvm_list_part - those of one VG of such a list, as a list of its own; -ENOMEM
 * lvm_find - -ENOENT when the VG has no such LV; *@result is malloc'ed
 */
int lvm_list(const char *vg, struct lvm_lv **result, u32 *nr, struct qc_err *err);
int lvm_list_part(const struct lvm_lv *lvs, u32 nr, const char *vg, struct lvm_lv **result,
		  u32 *nr_result);
int lvm_find(const char *vg, const char *name, struct lvm_lv **result, struct qc_err *err);

/*
 * lvm_create - @bytes are rounded up to whole extents; @tags: comma-separated, or NULL
 *
 * The LV is active afterwards; auto-activation is off, and nothing of it was
 * wiped: it holds what lay there before (rule B6).
 * lvm_extend - make it at least @bytes long; 0 when it is already.
 * lvm_extend_known - the same for whoever has just looked: one run of lvm less.
 * lvm_reduce_held - the device of @now ends after the extent that byte @bytes - 1 is in; what lay
 * behind is lost. *@result: what it has then, @now's size if it is not longer than that.
 * @fd: of its device. lvm holds it until it has ended, and with it the image locks that were
 * taken on it: they last as long, whoever else is killed.
 * lvm_rename - also while it is open: whoever has it open keeps it, uuid and tags stay.
 * lvm_change_tags - @add, @remove: comma-separated or NULL; one change of the
 * VG's metadata, therefore all or nothing. Both are one run of lvm each.
 * lvm_activate - also one that is not activated unless it is named (--setactivationskip).
 * lvm_activate_shared - to be read only: with lvmlockd other hosts may have it active,
 * too. -EBUSY: one has it for itself.
 */
int lvm_create(const char *vg, const char *name, u64 bytes, const char *tags, struct qc_err *err);
int lvm_remove(const char *vg, const char *name, struct qc_err *err);
int lvm_rename(const char *vg, const char *name, const char *to, struct qc_err *err);
int lvm_extend(const char *vg, const char *name, u64 bytes, struct qc_err *err);
int lvm_extend_known(const struct lvm_lv *now, u64 bytes, struct qc_err *err);
int lvm_reduce_held(const struct lvm_lv *now, u64 bytes, int fd, u64 *result, struct qc_err *err);
int lvm_activate(const char *vg, const char *name, bool active, struct qc_err *err);
int lvm_activate_shared(const char *vg, const char *name, struct qc_err *err);
int lvm_change_tags(const char *vg, const char *name, const char *add, const char *remove,
		    struct qc_err *err);

/*
 * LVs that grow while they are written to.
 * lvm_thin_chunk - by how much next
 * @least: not less; @vg_free: what the VG has left, of which at most a quarter is taken,
 *	unless that is less than @least
 * @written: what was allocated in the last @ns
 * @extend_ns: how long the last extension took, from the wish to the space
 * lvm_thin_watermark - once something is allocated beyond it a volume of @bytes is to grow
 * by @chunk: half of a chunk is left then, twice what is written while that is done
 */
u64 lvm_thin_chunk(u64 least, u64 vg_free, u64 written, u64 ns, u64 extend_ns);
u64 lvm_thin_watermark(u64 bytes, u64 chunk);

/*
 * libdevmapper, this room only: the dm uuid of a block device given by number,
 * "LVM-<vg uuid><lv uuid>"; empty string for others.
 */
int lvm_dm_uuid(u32 major, u32 minor, char uuid[129], struct qc_err *err);

#endif
