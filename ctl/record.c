// SPDX-License-Identifier: GPL-2.0-or-later
/* Where device records are kept: a directory's files, the tags of a VG. */
#include "lv-names.h"
#include "record.h"
#include "thin.h"

#include <errno.h>
#include <limits.h>
#include <qchain/image.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/*
 * In a VG the record is on the LV that is the top. One lvchange of that LV is one
 * commit of the VG's metadata, and so is the switch from one record to the next:
 * the new top gets the whole record with a higher sequence number. The old one is
 * removed afterwards; until then both are there and the higher number counts.
 * A record whose uuid is not that of its LV was copied, and does not count.
 */
#define TAG_DEVICE "qchain.device="
#define TAG_RAW "qchain.format=raw"
#define TAG_SNAPSHOT "qchain.snapshot="
#define TAG_NEW "qchain.new="
#define TAG_DEAD "qchain.dead="
#define TAG_REVERT "qchain.revert="
#define TAG_VOLUME "qchain.volume="

/* ---- tags ------------------------------------------------------------------------ */

/* The next tag of @tags into @tag; NULL at the end, else where to go on. */
static const char *next_tag(const char *tags, char *tag, size_t bytes)
{
	size_t len = strcspn(tags, ",");

	if (!*tags)
		return NULL;
	snprintf(tag, bytes, "%.*s", (int)min(len, bytes - 1), tags);
	return tags[len] ? tags + len + 1 : tags + len;
}

/* "NAME:SEQUENCE:UUID" */
static bool parse_device(const char *text, const struct lvm_lv *lv, struct device_record *record)
{
	const char *colon = strchr(text, ':');
	char *end;

	if (!colon || colon == text || colon - text > (int)QC_MAX_CHAIN_NAME)
		return false;
	snprintf(record->name, sizeof(record->name), "%.*s", (int)(colon - text), text);
	record->sequence = strtoull(colon + 1, &end, 10);
	if (*end != ':' || strcmp(end + 1, lv->uuid) || chain_name_check(record->name, NULL))
		return false;
	snprintf(record->top, sizeof(record->top), "%s", lv->uuid);
	return true;
}

/* "NUMBER:SNAP:UUID", and ":UUID" where what that LV has goes down */
static int parse_snapshot(const char *text, struct device_record *record)
{
	char name[QC_MAX_SNAPSHOT_NAME + 1], *from;
	struct record_snapshot *snapshot;
	const char *colon;
	char *end;
	u32 number = strtoul(text, &end, 10);
	int ret;

	colon = *end == ':' ? strchr(end + 1, ':') : NULL;
	if (!colon || colon - end - 1 > (int)QC_MAX_SNAPSHOT_NAME)
		return 0;
	snprintf(name, sizeof(name), "%.*s", (int)(colon - end - 1), end + 1);
	ret = device_record_add(record, name, colon + 1);
	if (ret)
		return ret;
	snapshot = &record->snapshots[record->nr_snapshots - 1];
	snapshot->number = number;
	from = strchr(snapshot->image, ':');
	if (from) {
		*from = 0;
		snprintf(snapshot->from, sizeof(snapshot->from), "%s", from + 1);
	}
	return 0;
}

/* "UUID" or "UUID:wipe" */
static int parse_dead(char *text, struct device_record *record)
{
	char *colon = strchr(text, ':');

	if (colon)
		*colon = 0;
	if (colon && !strcmp(colon + 1, "keep"))
		return device_record_lay_aside(record, text);
	return device_record_bury(record, text, colon != NULL);
}

/* "UUID:SNAP:WIPE:KEEP" */
static void parse_revert(char *text, struct record_revert *revert)
{
	char *words[4] = { text }, *colon;
	u32 n;

	for (n = 1; n < 4 && (colon = strchr(words[n - 1], ':')); n++) {
		*colon = 0;
		words[n] = colon + 1;
	}
	if (n < 4)
		return;
	snprintf(revert->overlay, sizeof(revert->overlay), "%s", words[0]);
	snprintf(revert->snapshot, sizeof(revert->snapshot), "%s", words[1]);
	revert->wipe = words[2][0] == '1';
	snprintf(revert->keep, sizeof(revert->keep), "%s", words[3]);
}

static int compare_numbers(const void *a, const void *b)
{
	const struct record_snapshot *x = a, *y = b;

	return x->number < y->number ? -1 : x->number > y->number;
}

/* 1: @lv has a record, 0: none, -ENOMEM */
static int parse_record(const struct lvm_lv *lv, struct device_record *record)
{
	const char *at = lv->tags;
	char tag[1100];
	bool found = false;
	int ret = 0;

	*record = (struct device_record){ .sequence = 0 };
	while (!ret && (at = next_tag(at, tag, sizeof(tag)))) {
		if (!strncmp(tag, TAG_DEVICE, strlen(TAG_DEVICE)))
			found |= parse_device(tag + strlen(TAG_DEVICE), lv, record);
		else if (!strcmp(tag, TAG_RAW))
			record->raw = true;
		else if (!strncmp(tag, TAG_SNAPSHOT, strlen(TAG_SNAPSHOT)))
			ret = parse_snapshot(tag + strlen(TAG_SNAPSHOT), record);
		else if (!strncmp(tag, TAG_DEAD, strlen(TAG_DEAD)))
			ret = parse_dead(tag + strlen(TAG_DEAD), record);
		else if (!strncmp(tag, TAG_REVERT, strlen(TAG_REVERT)))
			parse_revert(tag + strlen(TAG_REVERT), &record->revert);
		else if (!strncmp(tag, TAG_VOLUME, strlen(TAG_VOLUME)))
			snprintf(record->volume, sizeof(record->volume), "%.127s",
				 tag + strlen(TAG_VOLUME));
		else
			ret = record_tag_take_job(tag, record);
	}
	if (ret || !found)
		device_record_exit(record);
	else if (record->nr_snapshots)
		qsort(record->snapshots, record->nr_snapshots, sizeof(*record->snapshots),
		      compare_numbers);
	return ret ? ret : found;
}

/* Keep @record unless a newer one of the same device is there. */
static int keep_record(struct record_place *place, struct device_record *record)
{
	struct device_record *old = record_place_find(place, record->name), *larger;

	if (!old) {
		larger = realloc(place->records, (place->nr_records + 1) * sizeof(*larger));
		if (!larger)
			return -ENOMEM;
		place->records = larger;
		larger[place->nr_records++] = *record;
		return 0;
	}
	if (old->sequence < record->sequence) {
		struct device_record newer = *record;

		*record = *old;
		*old = newer;
	}
	device_record_exit(record);
	return 0;
}

static int read_tags(struct record_place *place)
{
	struct device_record record;
	int ret = 0;

	for (u32 i = 0; i < place->nr_lvs && ret >= 0; i++) {
		ret = parse_record(&place->lvs[i], &record);
		if (ret > 0)
			ret = keep_record(place, &record);
	}
	return ret < 0 ? ret : 0;
}

bool record_is_raw_top(const struct record_place *place, const char *image)
{
	for (u32 i = 0; i < place->nr_records; i++)
		if (place->records[i].raw && !strcmp(place->records[i].top, image))
			return true;
	return false;
}

bool record_is_foreign(const struct lvm_lv *lv)
{
	return !strncmp(lv->tags, "pve-vm-", 7) || strstr(lv->tags, ",pve-vm-");
}

/* ---- places ------------------------------------------------------------------------- */

static void name_group(struct record_place *place, const char *vg)
{
	snprintf(place->vg, sizeof(place->vg), "%s", vg);
	snprintf(place->dir, sizeof(place->dir), "/dev/%s", vg);
}

int record_place_take(const struct lvm_lv *lvs, u32 nr, const char *vg,
		      struct record_place *result)
{
	int ret;

	*result = (struct record_place){ .nr_lvs = 0 };
	name_group(result, vg);
	ret = lvm_list_part(lvs, nr, vg, &result->lvs, &result->nr_lvs);
	return ret ? ret : read_tags(result);
}

static int read_group(const char *vg, struct record_place *result, struct qc_err *err)
{
	int ret;

	name_group(result, vg);
	ret = lvm_list(vg, &result->lvs, &result->nr_lvs, err);
	if (!ret && read_tags(result))
		ret = qc_err_set(err, -ENOMEM, "%s: out of memory", vg);
	return ret;
}

static int read_dir(const char *dir, struct record_place *result, struct qc_err *err)
{
	if (!realpath(dir, result->dir))
		return qc_err_set(err, -errno, "%s: not a directory that can be read (%m)", dir);
	return record_dir_load(result->dir, &result->records, &result->nr_records, err);
}

static int place_of_lv(const char *path, const char *vg, const char *lv,
		       struct record_place *result, char *image, struct qc_err *err)
{
	int ret = read_group(vg, result, err);
	const struct lvm_lv *found;

	if (ret)
		return ret;
	found = record_place_lv(result, lv);
	if (!found)
		return qc_err_set(err, -ENOENT, "%s: no such LV; see lvs %s", path, vg);
	snprintf(image, RECORD_IMAGE_BYTES, "%s", found->uuid);
	return 0;
}

static int place_of_file(const char *path, struct record_place *result, char *image,
			 struct qc_err *err)
{
	char real[PATH_MAX], *slash;
	int ret;

	if (!realpath(path, real))
		return qc_err_set(err, -errno, "%s: not found (%m), expected an image", path);
	slash = strrchr(real, '/');
	if (strlen(slash + 1) >= RECORD_IMAGE_BYTES)
		return qc_err_set(err, -ENAMETOOLONG, "%s: name too long", path);
	snprintf(image, RECORD_IMAGE_BYTES, "%s", slash + 1);
	slash[slash == real] = 0;
	ret = read_dir(real, result, err);
	return ret;
}

int record_place_of(const char *path, struct record_place *result, char *image,
		    struct qc_err *err)
{
	char lv_path[512], vg[128], lv[128];
	struct stat st;

	*result = (struct record_place){ .nr_lvs = 0 };
	if (stat(path, &st) == 0 && S_ISBLK(st.st_mode)) {
		if (!image_lv_path(st.st_rdev, lv_path, sizeof(lv_path)))
			return -EOPNOTSUPP;
		path = lv_path;
	}
	if (lv_path_split(path, vg, lv))
		return place_of_lv(path, vg, lv, result, image, err);
	return place_of_file(path, result, image, err);
}

int record_place_open(const char *text, struct record_place *result, struct qc_err *err)
{
	*result = (struct record_place){ .nr_lvs = 0 };
	return strchr(text, '/') ? read_dir(text, result, err) : read_group(text, result, err);
}

/* The VG, or the VGs, with a record of @name. */
static int search_groups(const struct lvm_lv *lvs, u32 nr, const char *name, char *vg,
			 struct qc_err *err)
{
	struct device_record record;
	bool same;

	vg[0] = 0;
	for (u32 i = 0; i < nr; i++) {
		if (parse_record(&lvs[i], &record) <= 0)
			continue;
		same = !strcmp(record.name, name);
		device_record_exit(&record);
		if (!same || !strcmp(vg, lvs[i].vg))
			continue;
		if (vg[0])
			return qc_err_set(err, -EEXIST, "the VGs %s and %s have a device of this "
					  "name; say which: qchainctl up %s %s", vg, lvs[i].vg,
					  name, vg);
		snprintf(vg, sizeof(((struct record_place *)0)->vg), "%s", lvs[i].vg);
	}
	return vg[0] ? 0 : -ENOENT;
}

int record_place_search(const char *name, struct record_place *result, struct qc_err *err)
{
	struct qc_err ignored = { 0 };
	struct lvm_lv *lvs;
	char vg[128];
	u32 nr;
	int ret;

	*result = (struct record_place){ .nr_lvs = 0 };
	if (lvm_list(NULL, &lvs, &nr, &ignored))
		return -ENOENT;
	ret = search_groups(lvs, nr, name, vg, err);
	if (!ret && record_place_take(lvs, nr, vg, result))
		ret = qc_err_set(err, -ENOMEM, "%s: out of memory", vg);
	free(lvs);
	return ret;
}

void record_place_exit(struct record_place *place)
{
	free(place->lvs);
	record_list_free(place->records, place->nr_records);
	*place = (struct record_place){ .nr_lvs = 0 };
}

struct device_record *record_place_find(const struct record_place *place, const char *name)
{
	for (u32 i = 0; i < place->nr_records; i++)
		if (!strcmp(place->records[i].name, name))
			return &place->records[i];
	return NULL;
}

const struct lvm_lv *record_place_lv(const struct record_place *place, const char *name)
{
	for (u32 i = 0; i < place->nr_lvs; i++)
		if (!strcmp(place->lvs[i].name, name) || !strcmp(place->lvs[i].uuid, name))
			return &place->lvs[i];
	return NULL;
}

const struct lvm_lv *record_lv_of(const char *path, struct record_place **place)
{
	char image[RECORD_IMAGE_BYTES];
	struct qc_err ignored = { 0 };

	*place = calloc(1, sizeof(**place));
	if (!*place || record_place_of(path, *place, image, &ignored))
		return NULL;
	return record_place_lv(*place, image);
}

void record_place_free(struct record_place *place_owned)
{
	if (place_owned)
		record_place_exit(place_owned);
	free(place_owned);
}

int record_place_path(const struct record_place *place, const char *image, char *path,
		      size_t bytes, struct qc_err *err)
{
	const struct lvm_lv *lv = record_place_lv(place, image);
	struct stat st;

	if (*image == '/') { /* elsewhere */
		snprintf(path, bytes, "%s", image);
		return 0;
	}
	if (place->vg[0] && !lv)
		return qc_err_set(err, -ENOENT, "%s: no LV has the uuid %s, which the record of a "
				  "device names; see lvs -o+uuid,tags %s", place->vg, image,
				  place->vg);
	snprintf(path, bytes, "%s/%s", place->dir, lv ? lv->name : image);
	if (lv || stat(path, &st) == 0)
		return 0;
	return qc_err_set(err, -ENOENT, "%s: is not there (%m), but the record of a device names "
			  "it; bring it back, or say its new name in %s/*" RECORD_SUFFIX, path,
			  place->dir);
}

/* The LV of this VG that @path is; NULL: none. */
static const struct lvm_lv *lv_of_path(const struct record_place *place, const char *path)
{
	char lv_path[512], vg[128], lv[128];
	struct stat st;

	if (stat(path, &st))
		return NULL;
	if (S_ISBLK(st.st_mode)) {
		if (!image_lv_path(st.st_rdev, lv_path, sizeof(lv_path)))
			return NULL;
		path = lv_path;
	}
	if (!lv_path_split(path, vg, lv) || strcmp(vg, place->vg))
		return NULL;
	return record_place_lv(place, lv);
}

int record_place_image(const struct record_place *place, const char *path, char *image,
		       struct qc_err *err)
{
	const struct lvm_lv *lv = place->vg[0] ? lv_of_path(place, path) : NULL;
	size_t dir = strlen(place->dir);
	char real[PATH_MAX];
	int n;

	if (lv) {
		snprintf(image, RECORD_IMAGE_BYTES, "%s", lv->uuid);
		return 0;
	}
	if (!realpath(path, real))
		return qc_err_set(err, -errno, "%s: not found (%m), expected an image", path);
	if (!place->vg[0] && !strncmp(real, place->dir, dir) && real[dir] == '/' &&
	    !strchr(real + dir + 1, '/'))
		n = snprintf(image, RECORD_IMAGE_BYTES, "%s", real + dir + 1);
	else
		n = snprintf(image, RECORD_IMAGE_BYTES, "%s", real);
	return n < (int)RECORD_IMAGE_BYTES ? 0 :
	       qc_err_set(err, -ENAMETOOLONG, "%s: path too long for a record, must be below %u",
			  path, RECORD_IMAGE_BYTES);
}

/* ---- writing ------------------------------------------------------------------------- */

/* Tags as one list; @len: used, @size: room */
struct tag_list {
	char *text;
	size_t len;
	size_t size;
};

static int list_add(struct tag_list *list, const char *tag)
{
	size_t need = list->len + strlen(tag) + 2;
	char *larger;

	if (need > list->size) {
		larger = realloc(list->text, 2 * need);
		if (!larger)
			return -ENOMEM;
		list->text = larger;
		list->size = 2 * need;
	}
	list->len += sprintf(list->text + list->len, "%s%s", list->len ? "," : "", tag);
	return 0;
}

static bool has_tag(const char *tags, const char *tag)
{
	size_t len = strlen(tag);

	for (const char *at = tags; at && (at = strstr(at, tag)); at++)
		if ((at == tags || at[-1] == ',') && (at[len] == ',' || !at[len]))
			return true;
	return false;
}

static bool is_ours(const char *tag)
{
	static const char *const ours[] = { TAG_DEVICE, TAG_RAW, TAG_SNAPSHOT, TAG_DEAD,
					    TAG_REVERT, TAG_VOLUME, RECORD_TAG_JOB,
					    RECORD_TAG_JOB_ERROR };
	bool found = false;

	for (u32 i = 0; i < ARRAY_SIZE(ours); i++)
		found |= !strncmp(tag, ours[i], strlen(ours[i]));
	return found;
}

static int list_jobs(struct tag_list *list, const struct device_record *record)
{
	char tag[RECORD_TAG_BYTES];
	int ret = 0;

	for (u32 i = 0; i < record->nr_jobs && !ret; i++) {
		record_tag_job(&record->jobs[i], tag);
		ret = list_add(list, tag);
		record_tag_job_error(&record->jobs[i], tag);
		if (!ret && *tag)
			ret = list_add(list, tag);
	}
	return ret;
}

static int list_snapshots(struct tag_list *list, const struct device_record *record)
{
	char tag[512];
	int ret = 0;

	for (u32 i = 0; i < record->nr_snapshots && !ret; i++) {
		const struct record_snapshot *s = &record->snapshots[i];

		snprintf(tag, sizeof(tag), TAG_SNAPSHOT "%u:%s:%.40s%s%.40s", s->number, s->name,
			 s->image, s->from[0] ? ":" : "", s->from);
		ret = list_add(list, tag);
	}
	return ret;
}

static int list_dead(struct tag_list *list, const struct device_record *record)
{
	char tag[512];
	int ret = 0;

	for (u32 i = 0; i < record->nr_dead && !ret; i++) {
		snprintf(tag, sizeof(tag), TAG_DEAD "%.40s%s", record->dead[i].image,
			 record->dead[i].wipe ? ":wipe" : record->dead[i].keep ? ":keep" : "");
		ret = list_add(list, tag);
	}
	return ret;
}

/* All tags of @record. */
static int list_record(struct tag_list *list, const struct device_record *record)
{
	char tag[512];
	int ret;

	snprintf(tag, sizeof(tag), TAG_DEVICE "%s:%llu:%s", record->name,
		 (unsigned long long)record->sequence, record->top);
	ret = list_add(list, tag);
	if (!ret && record->raw)
		ret = list_add(list, TAG_RAW);
	if (!ret && record->volume[0]) {
		snprintf(tag, sizeof(tag), TAG_VOLUME "%s", record->volume);
		ret = list_add(list, tag);
	}
	if (!ret)
		ret = list_snapshots(list, record);
	if (!ret)
		ret = list_dead(list, record);
	if (!ret && record->revert.overlay[0]) {
		snprintf(tag, sizeof(tag), TAG_REVERT "%.40s:%s:%d:%s", record->revert.overlay,
			 record->revert.snapshot, record->revert.wipe, record->revert.keep);
		ret = list_add(list, tag);
	}
	return ret ? ret : list_jobs(list, record);
}

/*
 * Those of @tags that are ours and not in @wanted. A mark of an unfinished overlay
 * goes when a record comes ("" is none).
 */
static int list_stale(struct tag_list *list, const char *tags, const char *wanted)
{
	char tag[1100];
	int ret = 0;

	while (!ret && (tags = next_tag(tags, tag, sizeof(tag))))
		if ((is_ours(tag) || (*wanted && !strncmp(tag, TAG_NEW, strlen(TAG_NEW)))) &&
		    !has_tag(wanted, tag))
			ret = list_add(list, tag);
	return ret;
}

/* Those of @wanted that @tags has not. */
static int list_missing(struct tag_list *list, const char *wanted, const char *tags)
{
	char tag[1100];
	int ret = 0;

	while (!ret && (wanted = next_tag(wanted, tag, sizeof(tag))))
		if (!has_tag(tags, tag))
			ret = list_add(list, tag);
	return ret;
}

static int set_tags(const struct lvm_lv *lv, const char *wanted, struct qc_err *err)
{
	struct tag_list add = { NULL }, remove = { NULL };
	int ret = list_missing(&add, wanted, lv->tags);

	if (!ret)
		ret = list_stale(&remove, lv->tags, wanted);
	if (ret)
		qc_err_set(err, ret, "%s/%s: out of memory", lv->vg, lv->name);
	else
		ret = lvm_change_tags(lv->vg, lv->name, add.text, remove.text, err);
	free(add.text);
	free(remove.text);
	return ret;
}

/* Does @lv carry a record of device @name, the one that counts or an older one? */
static bool carries(const struct lvm_lv *lv, const char *name)
{
	struct device_record record;
	bool found;

	if (parse_record(lv, &record) <= 0)
		return false;
	found = !strcmp(record.name, name);
	device_record_exit(&record);
	return found;
}

/* Records of @name on other LVs than @kept (NULL: on all); goes on after a failure. */
static int drop_others(const struct record_place *place, const char *name,
		       const struct lvm_lv *kept, struct qc_err *err)
{
	int ret = 0, one;

	for (u32 i = 0; i < place->nr_lvs; i++) {
		if (&place->lvs[i] == kept || !carries(&place->lvs[i], name))
			continue;
		one = set_tags(&place->lvs[i], "", err);
		ret = ret ? ret : one;
	}
	return ret;
}

/* It was the top, and is to go: whoever finds it later knows that. */
static int mark_pending(const struct record_place *place, const struct device_record *record,
			struct qc_err *err)
{
	const struct lvm_lv *lv = record->pending[0] ? record_place_lv(place, record->pending) :
						       NULL;
	char tag[QC_MAX_CHAIN_NAME + 16];

	if (!lv)
		return 0;
	snprintf(tag, sizeof(tag), TAG_NEW "%s", record->name);
	return lvm_change_tags(lv->vg, lv->name, tag, NULL, err);
}

/* @place: as it is now: what is to be added and removed depends on it */
static int save_fresh_tags(const struct record_place *place, const struct device_record *record,
			   struct qc_err *err)
{
	const struct lvm_lv *lv = record_place_lv(place, record->top);
	struct tag_list wanted = { NULL };
	int ret;

	if (!lv)
		return qc_err_set(err, -ENOENT, "%s: no LV with uuid %s", place->vg, record->top);
	ret = mark_pending(place, record, err);
	if (ret)
		return ret;
	ret = list_record(&wanted, record);
	if (ret)
		qc_err_set(err, ret, "%s/%s: out of memory", lv->vg, lv->name);
	else
		ret = set_tags(lv, wanted.text, err);
	free(wanted.text);
	if (!ret)
		drop_others(place, record->name, lv, NULL);
	return ret;
}

static int save_tags(const struct record_place *place, const struct device_record *record,
		     struct qc_err *err)
{
	struct record_place *now = calloc(1, sizeof(*now));
	int ret;

	if (!now)
		return qc_err_set(err, -ENOMEM, "%s: out of memory", place->vg);
	ret = read_group(place->vg, now, err);
	if (!ret)
		ret = save_fresh_tags(now, record, err);
	record_place_exit(now);
	free(now);
	return ret;
}

int record_place_save(const struct record_place *place, struct device_record *record,
		      struct qc_err *err)
{
	record->sequence++;
	return place->vg[0] ? save_tags(place, record, err) :
			      record_dir_save(place->dir, record, err);
}

int record_place_remove(const struct record_place *place, const char *name, struct qc_err *err)
{
	return place->vg[0] ? drop_others(place, name, NULL, err) :
			      record_dir_remove(place->dir, name, err);
}

/* ---- the run record ------------------------------------------------------------------ */

static void note_image(const struct record_place *place, json_object *entry, const char *key,
		       const char *image)
{
	char path[4096];

	if (*image && !record_place_path(place, image, path, sizeof(path), NULL))
		json_object_object_add(entry, key, json_object_new_string(path));
}

static json_object *note_jobs(const struct record_place *place,
			      const struct device_record *record)
{
	json_object *list = json_object_new_array(), *entry;

	for (u32 i = 0; record && i < record->nr_jobs; i++) {
		const struct record_job *job = &record->jobs[i];

		entry = json_object_new_object();
		json_object_object_add(entry, "id", json_object_new_string(job->id));
		json_object_object_add(entry, "kind", json_object_new_string(job->kind));
		json_object_object_add(entry, "phase", json_object_new_string(
					       record_phase_name(job->phase)));
		note_image(place, entry, "top", job->top);
		note_image(place, entry, "base", job->base);
		if (job->error[0])
			json_object_object_add(entry, "error",
					       json_object_new_string(job->error));
		json_object_array_add(list, entry);
	}
	return list;
}

/* Also when it is not active, as after a start of the host: then there is no device yet. */
static const struct lvm_lv *lv_of_top(const struct record_place *place, const char *top)
{
	const struct lvm_lv *lv = lv_of_path(place, top);
	char vg[128], name[128];

	if (!lv && lv_path_split(top, vg, name) && !strcmp(vg, place->vg))
		lv = record_place_lv(place, name);
	return lv;
}

/* Not when another image of the device is served, for reading only. */
static bool is_top(const struct record_place *place, const struct device_record *record,
		   const char *path)
{
	const struct lvm_lv *lv = lv_of_top(place, path);
	char image[RECORD_IMAGE_BYTES];

	if (lv)
		return !strcmp(lv->uuid, record->top);
	return !strcmp(path, record->top) ||
	       (!record_place_image(place, path, image, NULL) && !strcmp(image, record->top));
}

void record_note(const struct record_place *place, const struct device_record *record,
		 const char *top, json_object *state)
{
	json_object *list = json_object_new_array(), *entry;
	char path[4096];

	json_object_object_add(state, "top", json_object_new_string(top));
	if (record && is_top(place, record, top))
		json_object_object_add(state, "format",
				       json_object_new_string(record->raw ? "raw" : "qcow2"));
	for (u32 i = 0; record && i < record->nr_snapshots; i++) {
		if (record->snapshots[i].from[0] ||
		    record_place_path(place, record->snapshots[i].image, path, sizeof(path), NULL))
			continue;
		entry = json_object_new_object();
		json_object_object_add(entry, "name",
				       json_object_new_string(record->snapshots[i].name));
		json_object_object_add(entry, "file", json_object_new_string(path));
		json_object_array_add(list, entry);
	}
	json_object_object_add(state, "snapshots", list);
	if (record || place->dir[0]) /* else the run record's own is all that there is */
		json_object_object_add(state, "jobs", note_jobs(place, record));
	json_object_object_del(state, "volume");
	snprintf(path, sizeof(path), "/dev/%s/%s", place->vg, record ? record->volume : "");
	if (record && record->volume[0] && record->sequence) /* was written: LVs may be renamed */
		json_object_object_add(state, "volume", json_object_new_string(path));
	if (thin_chunk(lv_of_top(place, top)))
		json_object_object_add(state, "thin", json_object_new_boolean(true));
	json_object_object_del(state, "reverting");
	if (record && record->revert.overlay[0] &&
	    !record_place_path(place, record->revert.overlay, path, sizeof(path), NULL))
		json_object_object_add(state, "reverting", json_object_new_string(path));
}

/* An older record of the same device may be on another LV. */
static int drop_name(const struct record_place *place, const char *name, struct qc_err *err)
{
	struct record_place now;
	int ret;

	if (!place->vg[0])
		return record_dir_remove(place->dir, name, err);
	ret = record_place_open(place->vg, &now, err);
	if (!ret && record_place_find(&now, name))
		ret = record_place_remove(&now, name, err);
	record_place_exit(&now);
	return ret;
}

int record_place_rename(const struct record_place *place, struct device_record *record,
			const char *name, struct qc_err *err)
{
	char before[sizeof(record->name)];
	int ret;

	memcpy(before, record->name, sizeof(before));
	snprintf(record->name, sizeof(record->name), "%s", name);
	ret = record_place_save(place, record, err);
	return ret ? ret : drop_name(place, before, err);
}
