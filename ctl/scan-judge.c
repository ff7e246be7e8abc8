// SPDX-License-Identifier: GPL-2.0-or-later
/* What is broken in the chains of a VG, and the command that mends it. */
#include "scan.h"

#include "lv-names.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <uapi/qcow2.h>

static u32 base_of(const struct scan *scan, u32 at)
{
	while (scan->images[at].below != SCAN_NONE && !scan->images[at].cut)
		at = scan->images[at].below;
	return at;
}

/* NULL: no memory, which scan_judge() tells. */
static __attribute__((format(printf, 3, 4))) struct scan_problem *
add(struct scan *scan, const struct scan_image *image, const char *fmt, ...)
{
	struct scan_problem *larger = realloc(scan->problems,
					      (scan->nr_problems + 1) * sizeof(*larger)), *p;
	va_list ap;

	scan->no_memory |= !larger;
	if (!larger)
		return NULL;
	scan->problems = larger;
	p = &larger[scan->nr_problems++];
	*p = (struct scan_problem){ .image = image - scan->images };
	p->chain = scan->images[base_of(scan, p->image)].chain;
	scan->chains[p->chain].nr_problems++;
	va_start(ap, fmt);
	vsnprintf(p->text, sizeof(p->text), fmt, ap);
	va_end(ap);
	return p;
}

static __attribute__((format(printf, 2, 3))) void mend(struct scan_problem *problem,
						       const char *fmt, ...)
{
	va_list ap;

	if (!problem)
		return;
	va_start(ap, fmt);
	vsnprintf(problem->mend, sizeof(problem->mend), fmt, ap);
	va_end(ap);
}

/* ---- any image -------------------------------------------------------------------------- */

static void judge_header(struct scan *scan, const struct scan_image *image)
{
	const char *vg = image->lv->vg, *name = image->lv->name;

	if (image->look == LOOK_FAILED)
		add(scan, image, "it cannot be read: %s", image->why);
	if (image->look == LOOK_BROKEN || (image->look == LOOK_IMAGE && image->why[0]))
		mend(add(scan, image, "its header is not valid: %s", image->why),
		     "qchainctl check %s/%s", vg, name);
	if (image->incompatible & QCOW2_INCOMPAT_CORRUPT)
		mend(add(scan, image, "it is marked as corrupt"),
		     "qchainctl check --repair %s/%s", vg, name);
	if (image->incompatible & QCOW2_INCOMPAT_DIRTY && image->use == USE_NONE)
		mend(add(scan, image, "it was not closed by who wrote it, its refcounts may be "
			 "wrong"),
		     "qchainctl check --repair %s/%s", vg, name);
}

bool scan_backing_is_elsewhere(const struct scan_image *image)
{
	struct stat st;

	return image->backing && image->below == SCAN_NONE &&
	       lv_backing_is_outside(image->lv->vg, image->backing) &&
	       stat(image->backing, &st) == 0;
}

static void judge_backing(struct scan *scan, const struct scan_image *image)
{
	const char *vg = image->lv->vg, *name = image->lv->name;
	char clean[PRINT_CLEAN_BYTES];

	if (!image->backing)
		return;
	print_clean(image->backing, clean);
	if (clean[strcspn(clean, ":/")] == ':')
		mend(add(scan, image, "its backing name is not followed, no path: %.200s", clean),
		     "qchainctl rebase --unsafe %s/%s --backing %s/BASE", vg, name, vg);
	else if (image->cut)
		mend(add(scan, image, "a loop: it stands on %.200s, which stands on it", clean),
		     "qchainctl rebase --unsafe %s/%s --backing %s/BASE", vg, name, vg);
	else if (image->below == SCAN_NONE && !scan_backing_is_elsewhere(image))
		mend(add(scan, image, "its backing image is missing: %.200s", clean),
		     "qchainctl rebase --unsafe %s/%s --backing %s/BASE", vg, name, vg);
	if (!image->backing_format)
		mend(add(scan, image, "the format of its backing image is not in its header, and "
			 "is never guessed"),
		     "qchainctl rebase --unsafe %s/%s --backing %s/%s --backing-format qcow2", vg,
		     name, vg, image->below == SCAN_NONE ? "BASE" :
			       scan->images[image->below].lv->name);
}

/* ---- half-done operations of others --------------------------------------------------- */

/* The snapshot that was current until its rename; the new current volume is not there. */
static void judge_current(struct scan *scan, const struct scan_image *image)
{
	const struct lvm_lv *lv = image->lv, *current;
	char name[128];

	if (image->nr_above || !scan_current_name(image, name, sizeof(name)))
		return;
	current = record_place_lv(&scan->place, name);
	if (!current)
		mend(add(scan, image, "a snapshot was begun: what was current is renamed, and "
			 "there is no %s", name),
		     "lvrename %s %s %s", lv->vg, lv->name, name);
	else if (scan->images[current - scan->place.lvs].look == LOOK_NO_IMAGE)
		mend(add(scan, image, "a snapshot was begun: %s is there, and is no image yet",
			 name),
		     "lvrename %s %s %s.old && lvrename %s %s %s", lv->vg, name, name, lv->vg,
		     lv->name, name);
}

static void judge_proxmox(struct scan *scan, const struct scan_image *image)
{
	const struct lvm_lv *lv = image->lv;

	if (!strncmp(lv->name, "del-", 4))
		mend(add(scan, image, "it was to be removed, and is still there; unless a task of "
			 "Proxmox VE is wiping it"),
		     "lvremove %s/%s", lv->vg, lv->name);
	else if (image->look == LOOK_NO_IMAGE && image->says == SAYS_QCOW2)
		add(scan, image, "its name says qcow2, but there is no image: it was never "
		    "formatted, or its header is lost");
}

static const char *parent_uuid(const char *name)
{
	return strcmp(name, "-") ? name : SCAN_OVIRT_NO_PARENT;
}

static void judge_ovirt(struct scan *scan, const struct scan_image *image)
{
	const struct lvm_lv *lv = image->lv;
	const char *below = image->below == SCAN_NONE ? "-" : scan->images[image->below].lv->name;
	char tag[64];

	scan_ovirt_leftover(lv, tag, sizeof(tag));
	if (tag[0])
		mend(add(scan, image, "oVirt did not finish it, or its removal (tag %s)", tag),
		     "lvremove %s/%s", lv->vg, lv->name);
	else if (image->look == LOOK_IMAGE && image->parent[0] && !image->cut &&
		 strcmp(image->parent, below) && !(image->backing && *below == '-'))
		mend(add(scan, image, "its tag names another volume below it than its header does "
			 "(%s, the header %s); the header counts", image->parent, below),
		     "lvchange --deltag PU_%s --addtag PU_%s %s/%s", parent_uuid(image->parent),
		     parent_uuid(below), lv->vg, lv->name);
}

static void judge_image(struct scan *scan, const struct scan_image *image)
{
	judge_header(scan, image);
	judge_backing(scan, image);
	judge_current(scan, image);
	if (image->owner == OWNER_PROXMOX)
		judge_proxmox(scan, image);
	else if (image->owner == OWNER_OVIRT)
		judge_ovirt(scan, image);
}

/* ---- ours ----------------------------------------------------------------------------------- */

static struct scan_image *image_of(struct scan *scan, const char *uuid)
{
	const struct lvm_lv *lv = record_place_lv(&scan->place, uuid);

	return lv ? &scan->images[lv - scan->place.lvs] : NULL;
}

static void judge_job(struct scan *scan, const struct device_record *record,
		      const struct record_job *job, bool served)
{
	struct scan_image *top = image_of(scan, record->top);
	struct scan_problem *problem;

	if (served && job->phase != RECORD_FAILED)
		return; /* it goes on */
	problem = add(scan, top, "%s %s of %s: %s%s%s", job->kind, job->id, record->name,
		      job->phase == RECORD_FAILED ? "has failed" : "was interrupted",
		      job->error[0] ? ": " : "", job->error);
	if (served)
		mend(problem, "qchainctl job resume %s %s", record->name, job->id);
	else
		mend(problem, "qchainctl up %s %s", record->name, scan->place.vg);
}

static void judge_snapshot(struct scan *scan, const struct device_record *record,
			   const struct record_snapshot *s, bool served)
{
	struct scan_image *image = image_of(scan, s->image);

	if (!image)
		add(scan, image_of(scan, record->top), "the volume of snapshot %s of %s is missing "
		    "(uuid %s)", s->name, record->name, s->image);
	else if (s->from[0] && !served)
		mend(add(scan, image, "the deletion of snapshot %s was interrupted", s->name),
		     "qchainctl delete %s %s %s", record->name, s->name, scan->place.vg);
}

static void judge_record(struct scan *scan, const struct device_record *record)
{
	struct scan_image *top = image_of(scan, record->top);
	bool served;

	if (!top || !top->is_layer)
		return;
	served = top->use == USE_SERVED;
	for (u32 i = 0; i < record->nr_jobs; i++)
		judge_job(scan, record, &record->jobs[i], served);
	for (u32 i = 0; i < record->nr_snapshots; i++)
		judge_snapshot(scan, record, &record->snapshots[i], served);
	for (u32 i = 0; i < record->nr_dead && !served; i++) {
		struct scan_image *dead = image_of(scan, record->dead[i].image);

		if (dead && dead->is_layer)
			mend(add(scan, dead, "it is no layer of %s any more, and was to go",
				 record->name),
			     "qchainctl up %s %s", record->name, scan->place.vg);
	}
	if (record->revert.overlay[0] && !served)
		mend(add(scan, top, "the revert of %s to %s was interrupted", record->name,
			 record->revert.snapshot),
		     "qchainctl up %s %s", record->name, scan->place.vg);
}

/* An overlay that was being made when its qchainctl ended. */
static void judge_unfinished(struct scan *scan, const struct scan_image *image)
{
	char device[QC_MAX_CHAIN_NAME + 1];

	if (!lv_tag_value(image->lv->tags, "qchain.new=", device, sizeof(device)))
		return;
	if (record_place_find(&scan->place, device))
		mend(add(scan, image, "a snapshot of %s was begun and not finished", device),
		     "qchainctl up %s %s", device, scan->place.vg);
	else
		mend(add(scan, image, "a snapshot of %s, which is not here any more, was not "
			 "finished", device),
		     "lvremove %s/%s", image->lv->vg, image->lv->name);
}

int scan_judge(struct scan *scan)
{
	for (u32 i = 0; i < scan->nr; i++) {
		if (!scan->images[i].is_layer)
			continue;
		judge_image(scan, &scan->images[i]);
		judge_unfinished(scan, &scan->images[i]);
	}
	for (u32 i = 0; i < scan->place.nr_records; i++)
		judge_record(scan, &scan->place.records[i]);
	return scan->no_memory ? -ENOMEM : 0;
}
