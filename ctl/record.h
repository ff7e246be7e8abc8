/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Device records (rule D1) where they are kept: the tags of a VG, or a directory. */
#ifndef CTL_RECORD_H
#define CTL_RECORD_H

#include "served.h"

#include <qchain/lvm.h>
#include <qchain/record.h>

/*
 * struct record_place - a VG or a directory, as it was when it was read
 * @vg: its name; "": a directory
 * @dir: the directory without links, or /dev/VG
 * @lvs: all LVs of the VG
 * @records: of all devices whose images are here
 */
struct record_place {
	char vg[128];
	char dir[4096];
	struct lvm_lv *lvs;
	u32 nr_lvs;
	struct device_record *records;
	u32 nr_records;
};

/*
 * record_place_of - the place of the image at @path
 * @image: what it is called in records, RECORD_IMAGE_BYTES
 * -EOPNOTSUPP: a block device that is no LV; those have no records.
 *
 * record_place_open - a VG by its name, or a directory by its path
 * record_place_take - a VG out of a list of LVs that was read before; -ENOMEM
 * record_place_search - the VG that has a record of device @name; -ENOENT: none,
 * -EEXIST: several, which @err names
 * record_place_exit - free what it holds; fine for one that is all zero
 */
int record_place_of(const char *path, struct record_place *result, char *image,
		    struct qc_err *err);
int record_place_open(const char *text, struct record_place *result, struct qc_err *err);
int record_place_take(const struct lvm_lv *lvs, u32 nr, const char *vg,
		      struct record_place *result);
int record_place_search(const char *name, struct record_place *result, struct qc_err *err);
void record_place_exit(struct record_place *place);

/* The record of device @name; NULL: none here. */
struct device_record *record_place_find(const struct record_place *place, const char *name);

/* The path of @image; -ENOENT with @err: it is not here any more. */
int record_place_path(const struct record_place *place, const char *image, char *path,
		      size_t bytes, struct qc_err *err);

/* What the image at @path is called in records of @place; RECORD_IMAGE_BYTES. */
int record_place_image(const struct record_place *place, const char *path, char *image,
		       struct qc_err *err);

/* The LV called @name, or with this uuid; NULL: none. */
const struct lvm_lv *record_place_lv(const struct record_place *place, const char *name);

/*
 * record_lv_of - the LV that @path is, as it is in its VG; NULL: none, or not known
 * *@place: malloc'ed, also then; record_place_free(), where NULL is fine
 */
const struct lvm_lv *record_lv_of(const char *path, struct record_place **place);
void record_place_free(struct record_place *place_owned);

/*
 * record_place_save - write @record, durably, as one change; its sequence goes up
 * An LV that it calls pending is marked as not ready before that.
 * The LV that is its top must have been there when the place was read. A record
 * that lies elsewhere in the VG is taken away afterwards; where that fails the
 * newer one counts, and the next save tries again.
 * record_place_remove - forget device @name
 * record_place_rename - save @record under another name, then forget the old one: of an
 * LV one change, of a directory two, and who is killed in between finds both
 */
int record_place_save(const struct record_place *place, struct device_record *record,
		      struct qc_err *err);
int record_place_rename(const struct record_place *place, struct device_record *record,
			const char *name, struct qc_err *err);
int record_place_remove(const struct record_place *place, const char *name, struct qc_err *err);

/*
 * Copy snapshots and jobs of @record (NULL: none) and the path of the top to a run record,
 * its format if the record knows that, that this is a thin LV, if it is one,
 * and, while it is being reverted, that of what may be the top; and that LVs of Proxmox VE
 * may have other names than the record says, which proxmox_settle_served() ends.
 */
void record_note(const struct record_place *place, const struct device_record *record,
		 const char *top, json_object *state);

/* Does a record call @image the top of its device, and raw? It begins with no header then. */
bool record_is_raw_top(const struct record_place *place, const char *image);

/* Has Proxmox VE made this LV? Its names say what is top: proxmox.h. */
bool record_is_foreign(const struct lvm_lv *lv);

/* ---- choosing a top (record-top.c) ------------------------------------------------- */

/*
 * struct record_top - what `up` is to serve
 * @path: of the top; the caller may set it before record_top_choose()
 * @raw: what was said of it, which counts where no record calls it the top
 * @has_place: false: a block device without records
 * @made: the record was written by record_top_claim(): it goes again on failure
 * @before, @before_raw: what was the top when record_top_claim() moved the record; "": it did not
 */
struct record_top {
	char path[4096];
	char image[RECORD_IMAGE_BYTES];
	bool raw;
	bool has_place;
	bool made;
	char before[RECORD_IMAGE_BYTES];
	bool before_raw;
	struct record_place place;
};

/*
 * record_top_choose - find the top of device @name
 * @where: a VG or a directory, "" when not given
 * @writes: it will be written: what must not be is refused
 *
 * With neither @top->path nor @where all VGs are searched. -ENOENT: no record.
 */
int record_top_choose(struct record_top *top, const char *name, const char *where, bool writes,
		      struct qc_err *err);

/*
 * record_top_claim - its LVs are active now: nothing may stand on it; then it has
 * a record, which is written if it had none. Overlays that were never finished go.
 * A record moves to an overlay of the image that it calls the top.
 * @assume_unshared: what cannot be looked at does not stand on it
 */
int record_top_claim(struct record_top *top, const char *name, bool assume_unshared,
		     struct qc_err *err);
/* A start failed: what record_top_claim() has written is as it was before. */
void record_top_unclaim(struct record_top *top, const char *name);
void record_top_exit(struct record_top *top);


#endif
