/* SPDX-License-Identifier: GPL-2.0-or-later OR MIT */
/* The device record (rule D1): which image is the top, what the snapshots are called. */
#ifndef QCHAIN_RECORD_H
#define QCHAIN_RECORD_H

#include <json-c/json.h>
#include <qchain/control.h>
#include <qchain/err.h>
#include <qchain/limits.h>
#include <qchain/types.h>

/*
 * Headers point only downwards, so nothing in the images tells which of them is
 * the top. One record per device does, durable, in the place where its images are:
 *
 *	a VG         tags of the LV that is the top:
 *	                 qchain.device=NAME:SEQUENCE:UUID   of the top
 *	                 qchain.format=raw                  of the top, if it is not qcow2
 *	                 qchain.snapshot=NUMBER:SNAP:UUID   one for each, numbered as taken;
 *	                                     ..:UUID:UUID   one that a commit deletes
 *	                 qchain.dead=UUID[:wipe|:keep]      images that are no layers any more
 *	                 qchain.job=ID:KIND:PHASE:TOP:BASE  one for each merge that was begun
 *	                 qchain.job-error=ID:TEXT           of one that failed
 *	                 qchain.revert=UUID:SNAP:WIPE:KEEP  while it is being reverted
 *	                 qchain.volume=NAME                 of Proxmox VE: what its LVs are to
 *	                                     be called by; such a record goes when they are
 *	             and qchain.new=NAME on an overlay that is not ready yet
 *	a directory  the file NAME.qchain, JSON with the same content; images by
 *	             their file names, so that the directory can be moved or copied
 *
 * A record is replaced as a whole by one atomic write. Moved to another LV it
 * exists twice until the old one is taken away: the higher SEQUENCE counts. This
 * file is what qchaind reads, too; it never runs lvm (rule E1), so it knows files only.
 */
#define QC_MAX_SNAPSHOT_NAME 63u
#define RECORD_SUFFIX ".qchain"
/* An LV's uuid, or a file name: what an image is called in a record. */
#define RECORD_IMAGE_BYTES 256u

/*
 * struct record_snapshot - a name for what the device held once
 * @number: tags have no order of their own
 * @image: the sealed layer that holds it
 * @from: "", or it is being deleted: what this image has goes down into @image, and it
 *	is no restore point any more
 */
struct record_snapshot {
	u32 number;
	char name[QC_MAX_SNAPSHOT_NAME + 1];
	char image[RECORD_IMAGE_BYTES];
	char from[RECORD_IMAGE_BYTES];
};

/*
 * An image that was a layer and is none any more: it is to be removed, @wipe: zeroed before;
 * @keep: only its header goes
 */
struct record_dead {
	char image[RECORD_IMAGE_BYTES];
	bool wipe;
	bool keep;
};

/*
 * What has become of a merge (rule D2):
 *
 *	planned   nothing was written: it may be forgotten
 *	writing   a daemon works on it, or was doing so when it ended: it goes on
 *	offline   as writing, by qchainctl itself
 *	failed    begun, and given up with an error; it may be begun again
 */
enum record_phase {
	RECORD_PLANNED,
	RECORD_WRITING,
	RECORD_OFFLINE,
	RECORD_FAILED,
	RECORD_NR_PHASES
};

#define RECORD_ERROR_BYTES 256u

/*
 * struct record_job - a merge that was begun and has not ended well
 * @kind: "commit": the layers from @top to above @base go down into @base; "stream":
 *	what lies between comes up into @top
 * @top, @base: as images are called here, or absolute paths of images elsewhere;
 *	@base "": none, all comes up
 */
struct record_job {
	char id[QC_MAX_JOB_ID + 1];
	char kind[16];
	enum record_phase phase;
	char top[RECORD_IMAGE_BYTES];
	char base[RECORD_IMAGE_BYTES];
	char error[RECORD_ERROR_BYTES];
};

/*
 * struct record_revert - the device is being reverted: whether @overlay or the top is the
 * top, its header says (marked as open for writing, or not empty), or the daemon
 * @overlay: new, on the image of @snapshot; "": there is no revert under way
 * @keep: what the top is called then; "": the branch is dropped
 */
struct record_revert {
	char overlay[RECORD_IMAGE_BYTES];
	char snapshot[QC_MAX_SNAPSHOT_NAME + 1];
	char keep[QC_MAX_SNAPSHOT_NAME + 1];
	bool wipe;
};

/*
 * struct device_record - all that is kept of one device
 * @raw: the top is a raw image, whatever it begins with; else it is a qcow2 one
 * @snapshots: in the order in which they were taken; malloc'ed
 * @jobs: in the order in which they were begun; malloc'ed
 * @pending: files: an overlay that is being made, no layer yet; "" none
 * @volume: of Proxmox VE: the name that the top is to have, and its snapshots after it; "": LVs
 *	keep their names
 * @dead: removed by whoever comes next, if not by who has put them there; malloc'ed
 */
struct device_record {
	char name[QC_MAX_CHAIN_NAME + 1];
	u64 sequence;
	char top[RECORD_IMAGE_BYTES];
	bool raw;
	char pending[RECORD_IMAGE_BYTES];
	char volume[RECORD_IMAGE_BYTES];
	u32 nr_snapshots;
	struct record_snapshot *snapshots;
	u32 nr_dead;
	struct record_dead *dead;
	u32 nr_jobs;
	struct record_job *jobs;
	struct record_revert revert;
};

/* What a snapshot may be called: as a chain. */
int record_check_snapshot_name(const char *name, struct qc_err *err);

void device_record_exit(struct device_record *record);
/* As the newest one. -ENOMEM; @name and @image fit. */
int device_record_add(struct device_record *record, const char *name, const char *image);
/* Forget the snapshot that is held by @image. */
void device_record_drop(struct device_record *record, const char *image);
/* The snapshot that is held by @image, or of this name; NULL: none. */
const struct record_snapshot *device_record_by_image(const struct device_record *record,
						     const char *image);
const struct record_snapshot *device_record_by_name(const struct device_record *record,
						    const char *name);
/* It is no layer any more, nor holds it a snapshot. -ENOMEM; @image fits. */
int device_record_bury(struct device_record *record, const char *image, bool wipe);
/* The same, but the image is kept, without its header. */
int device_record_lay_aside(struct device_record *record, const char *image);
/* The top is another image from now on, which fits; @raw: not a qcow2 one. */
void device_record_set_top(struct device_record *record, const char *image, bool raw);
/* It has gone. */
void device_record_forget(struct device_record *record, const char *image);
bool device_record_is_dead(const struct device_record *record, const char *image);

/* ---- jobs (record-job.c) --------------------------------------------------------- */

/* "planned", ..; @result: -EINVAL for other words. */
const char *record_phase_name(enum record_phase phase);
int record_phase_parse(const char *text, enum record_phase *result);
/* Has it written, so that what a commit changes is no restore point any more? */
bool record_job_has_written(const struct record_job *job);
/* Add @job, or replace the one with its id. -ENOMEM */
int device_record_put_job(struct device_record *record, const struct record_job *job);
void device_record_drop_job(struct device_record *record, const char *id);
/* NULL: none. */
struct record_job *device_record_job(const struct device_record *record, const char *id);
/* Of a directory's record; false: not readable. */
bool record_jobs_take(json_object *root, struct device_record *record);
/* NULL when there are none. */
json_object *record_jobs_json(const struct device_record *record);

/* As tags of an LV; each is RECORD_TAG_BYTES at most, as LVM allows. */
#define RECORD_TAG_JOB "qchain.job="
#define RECORD_TAG_JOB_ERROR "qchain.job-error="
#define RECORD_TAG_BYTES 1024u
/*
 * record_tag_take_job - take what @tag says into @record; others are left alone
 * An error may come before its job. -ENOMEM
 */
int record_tag_take_job(const char *tag, struct device_record *record);
void record_tag_job(const struct record_job *job, char *tag);
/* @tag is "" when it has no error. */
void record_tag_job_error(const struct record_job *job, char *tag);

/* ---- directories ------------------------------------------------------------------- */

/*
 * record_dir_load - the records of directory @dir; malloc'ed, each to be exited
 * One that cannot be read is an error that names it: it may be the one that matters.
 */
int record_dir_load(const char *dir, struct device_record **result, u32 *nr, struct qc_err *err);
void record_list_free(struct device_record *records, u32 nr);

/*
 * record_dir_save - replace the record in @dir: a new file, flushed, renamed over
 * the old one, and the directory flushed
 * record_dir_remove - 0 also when there is none
 */
int record_dir_save(const char *dir, const struct device_record *record, struct qc_err *err);
/* @root is the file @path, which is new or emptied, durably but for its name. 0 or -errno. */
int record_write_json(const char *path, json_object *root);
/* The entries of @dir are durable: of a file that was made there. 0 or -errno. */
int record_dir_flush(const char *dir);
int record_dir_remove(const char *dir, const char *name, struct qc_err *err);

/*
 * record_refuse - why the image @image ("" unless it is in a record), shown as
 * @text, must not be written by device @name (NULL: not started by name): a record
 * calls it a snapshot, or the top of another device. 0 or -EBUSY.
 */
int record_refuse(const struct device_record *records, u32 nr, const char *image,
		  const char *text, const char *name, struct qc_err *err);

/*
 * record_check_top - may the file or LV at @path be opened for writing, as a top?
 *
 * Looks at the records, and at the headers of all images, in its directory; for an
 * LV at the headers of the active LVs of its VG. -EBUSY with @err that names what
 * stands in the way. What cannot be told is a warning in the log. No locks are
 * taken; call it before the image is opened.
 */
int record_check_top(const char *path, struct qc_err *err);

#endif
