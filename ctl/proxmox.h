/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Volumes of Proxmox VE, whose names say what is current and what the snapshots are (rule E5). */
#ifndef CTL_PROXMOX_H
#define CTL_PROXMOX_H

#include "record.h"

/*
 * Proxmox VE ("snapshot as volume chain" on LVM) keeps no list of images: the LV
 * vm-103-disk-0.qcow2 is the volume as it is now, and snap_vm-103-disk-0_NAME.qcow2, where
 * the chain below leads to it, its snapshot NAME. So LVs are renamed by snapshot, delete
 * and rollback.
 *
 * A verb of ours gives the device a record for as long as it works (struct device_record,
 * @volume): that says which LV is what, by uuid. When the record has changed, LVs are
 * renamed to what it says; then it goes. Headers name their backing by what that will be
 * called, from the first: no header changes because of a name. Whoever finds such a record
 * renames on before he opens anything by its path.
 */

/* A qcow2 volume as it is now, which may have snapshots. */
bool proxmox_is_volume(const struct lvm_lv *lv);
/* The same by the path of an LV; false where that cannot be told. */
bool proxmox_owns(const char *path);
/* The name of the LV of snapshot @snap; RECORD_IMAGE_BYTES. */
void proxmox_snapshot_lv(const char *volume, const char *snap, char *name);
/* The snapshot of @volume that an LV @name holds by its name; QC_MAX_SNAPSHOT_NAME and one. */
bool proxmox_snapshot_of(const char *volume, const char *name, char *snap);
/* A name that no LV has, and Proxmox VE does not take for a volume; RECORD_IMAGE_BYTES. */
void proxmox_interim_lv(const char *volume, char *name);
/* The tags that it gives to LVs of @volume, comma-separated. */
void proxmox_tags(const char *volume, char *tags, size_t bytes);
/* May a snapshot of @volume be called @snap, there too? Is the LV's name free? */
int proxmox_check_snapshot(const struct record_place *place, const char *volume, const char *snap,
			   struct qc_err *err);

/*
 * proxmox_find_record - the record of @device, or what the names of its LVs say
 * @image: of its top; the latter is made from names and headers of LVs that are active, is
 *	in @place, and is written by nobody before a verb does
 * *@result NULL: there is none. -EBUSY: it is a volume that a verb on another device has
 * left half done. Records that were found before are not where they were any more.
 */
int proxmox_find_record(struct record_place *place, const char *device, const char *image,
			struct device_record **result, struct qc_err *err);

/* All that commit @job has merged, from its top down to above its base, is dead; -ENOMEM. */
int proxmox_bury_merged(const struct record_place *place, struct device_record *record,
			const struct record_job *job);

/* The name that @lv is to have, RECORD_IMAGE_BYTES; false: the record does not say what it is. */
bool proxmox_wanted_lv(const struct device_record *record, const struct lvm_lv *lv, char *name);

/*
 * proxmox_rename - LVs get the names that @record says; others keep theirs, and images that
 * are dead make way. Nothing to do for devices that are not Proxmox VE's. @place is as it
 * is now, and knows the new names afterwards.
 * proxmox_release - the names say it all: @record is not needed any more, and goes; it stays
 * while there is a merge, a deletion or a revert in it, or a dead image
 */
int proxmox_rename(struct record_place *place, struct device_record *record, struct qc_err *err);
int proxmox_release(const struct record_place *place, struct device_record *record,
		    struct qc_err *err);

/*
 * proxmox_list_names - before that: @list (NULL: none) has "VG/LV" of what is to be
 * deactivated some day; the name that each is to get is added, as whoever renames may be killed
 */
void proxmox_list_names(const struct record_place *place, const struct device_record *record,
			json_object *list);

/*
 * proxmox_settle_path - the same before @path, of a volume or not, is looked at for @device,
 * which nobody serves
 * proxmox_settle_served - the same for a chain that is served, or was until its daemon
 * died; that learns the new names, and so do run record and @served. @dir is locked.
 * Nothing is done while the daemon serves another top than the record says.
 */
int proxmox_settle_path(const char *path, const char *device, struct qc_err *err);
int proxmox_settle_served(struct served *served, const struct rundir *dir, struct qc_err *err);

#endif
