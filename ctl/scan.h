/* SPDX-License-Identifier: GPL-2.0-or-later */
/* All chains of a VG, whoever made them, without changing anything. */
#ifndef CTL_SCAN_H
#define CTL_SCAN_H

#include "record.h"

/* What stands on nothing that is known. */
#define SCAN_NONE (~0u)

/* What oVirt's tag of the volume below says when there is none. */
#define SCAN_OVIRT_NO_PARENT "00000000-0000-0000-0000-000000000000"

/* Whose naming an LV follows. */
enum scan_owner {
	OWNER_UNKNOWN,
	OWNER_QCHAIN,
	OWNER_PROXMOX,
	OWNER_INCUS,
	OWNER_CLOUDSTACK,
	OWNER_OVIRT,
	NR_OWNERS,
};

/*
 * What is known of an LV:
 *
 *	unread     not active, so its name and tags are all
 *	elsewhere  another host has it for itself
 *	no-image   active, or its owner calls it raw: no qcow2 image
 *	image      its header was read
 *	broken     it begins as a qcow2 image does, and the header is not valid
 *	failed     it could not be read
 */
enum scan_look {
	LOOK_UNREAD,
	LOOK_ELSEWHERE,
	LOOK_NO_IMAGE,
	LOOK_IMAGE,
	LOOK_BROKEN,
	LOOK_FAILED,
};

/* What name and tags say of the content. */
enum scan_says { SAYS_NOTHING, SAYS_QCOW2, SAYS_RAW };

/* Who has an LV open, or what serves it. */
enum scan_use { USE_NONE, USE_OPEN, USE_SERVED };

/*
 * struct scan_image - an LV
 * @chain_name: "vm-103-disk-0", what its owner's naming puts together; "": it does not
 * @snapshot: what the owner, or our record, calls what it holds; "" nothing
 * @parent: the LV below by the owner's tags; "": they do not say, "-": there is none
 * @device: of our records, or that serves it; "" none
 * @backing: as in the header; NULL: none, or not read
 * @why: LOOK_BROKEN, LOOK_FAILED: the reason
 * @user: who has it open, "" nobody or not seen
 * @below: index of the image that it stands on
 * @cut: it stands on @below, which stands on it: not followed
 * @is_layer: it belongs to a chain
 */
struct scan_image {
	const struct lvm_lv *lv;
	enum scan_owner owner;
	enum scan_says says;
	char chain_name[256];
	char snapshot[128];
	char parent[128];
	char device[QC_MAX_CHAIN_NAME + 1];
	enum scan_look look;
	u64 virtual_size;
	u64 incompatible;
	char *backing;
	char *backing_format;
	char why[512];
	enum scan_use use;
	char user[300];
	u32 below;
	u32 nr_above;
	bool cut;
	bool is_layer;
	u32 chain; /* of a base */
};

/* @image: index, SCAN_NONE: none of them; @mend: a command line, "" there is none */
struct scan_problem {
	u32 image;
	u32 chain;
	char text[600];
	char mend[600];
};

/*
 * struct scan_chain - images that belong together: bases, and all that stands on them
 * More than one base: what is between them is not known, or broken.
 */
struct scan_chain {
	enum scan_owner owner;
	char name[256];
	u32 nr_problems;
};

/*
 * struct scan - one VG
 * @images: one for each LV of @place, in its order
 * @nr_unread: LVs that are not active and that nothing is known of
 */
struct scan {
	struct record_place place;
	struct scan_image *images;
	u32 nr;
	struct scan_chain *chains;
	u32 nr_chains;
	struct scan_problem *problems;
	u32 nr_problems;
	u32 nr_unread;
	bool no_memory;
};

/*
 * scan_read - one VG, or all (@vg NULL), with one call of lvs
 * @activate: make LVs active for a look that are images by their names and tags, shared,
 *	and inactive again. Others never: the host would look at guests' data.
 *
 * Of LVs only headers are read. No locks are taken.
 */
int scan_read(const char *vg, bool activate, struct scan **result, u32 *nr, struct qc_err *err);
void scan_free(struct scan *scans, u32 nr);

const char *scan_owner_name(enum scan_owner owner);
/* "in use", "serving", "active", "inactive", .. */
const char *scan_image_state(const struct scan_image *image);
/* Its header names what is there, but not in this VG. */
bool scan_backing_is_elsewhere(const struct scan_image *image);
/* The next base of @chain from image @from on; SCAN_NONE. */
u32 scan_next_base(const struct scan *scan, u32 chain, u32 from);
/* The next image from @from on that stands on @below; SCAN_NONE. */
u32 scan_next_above(const struct scan *scan, u32 below, u32 from);

/* ---- the steps of scan_read(), each in a file of its own --------------------------- */

/* Whose it is, and what its name and tags say (scan-owner.c). */
void scan_name_image(const struct record_place *place, struct scan_image *image);
/* Snapshot "s" of "v" in its owner's naming: the LV that would be current; false: none. */
bool scan_current_name(const struct scan_image *image, char *name, size_t bytes);
/* What oVirt began to make, or to remove, and has not finished: the tag, "" none. */
void scan_ovirt_leftover(const struct lvm_lv *lv, char *tag, size_t bytes);

/* Read the headers (scan-look.c). -ENOMEM */
int scan_look_at(struct scan *scan, bool activate);
/* Who uses what. -ENOMEM */
int scan_find_users(struct scan *scan);

/* What stands on what, and which images are a chain (scan-link.c). -ENOMEM */
int scan_link(struct scan *scan);

/* What is broken, and what mends it (scan-judge.c). -ENOMEM */
int scan_judge(struct scan *scan);

#endif
