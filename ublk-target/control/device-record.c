// SPDX-License-Identifier: GPL-2.0-or-later
/* Records of devices whose images are files; the check before a top is written. */
#include <qchain/record.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <qchain/log.h>
#include <qchain/overlays.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- in memory ------------------------------------------------------------------ */

int record_check_snapshot_name(const char *name, struct qc_err *err)
{
	struct qc_err ignored = { 0 };

	_Static_assert(QC_MAX_SNAPSHOT_NAME == QC_MAX_CHAIN_NAME, "one rule for both");
	if (chain_name_check(name, &ignored) == 0)
		return 0;
	return qc_err_set(err, -EINVAL, "%.80s: not a name for a snapshot, expected 1 to %u of "
			  "A-Z a-z 0-9 _ - + . not beginning with - or .", name,
			  QC_MAX_SNAPSHOT_NAME);
}

void device_record_exit(struct device_record *record)
{
	free(record->snapshots);
	free(record->dead);
	free(record->jobs);
	*record = (struct device_record){ .sequence = 0 };
}

int device_record_add(struct device_record *record, const char *name, const char *image)
{
	struct record_snapshot *larger;

	larger = realloc(record->snapshots, (record->nr_snapshots + 1) * sizeof(*larger));
	if (!larger)
		return -ENOMEM;
	record->snapshots = larger;
	larger += record->nr_snapshots++;
	larger->number = record->nr_snapshots > 1 ? larger[-1].number + 1 : 1;
	snprintf(larger->name, sizeof(larger->name), "%s", name);
	snprintf(larger->image, sizeof(larger->image), "%s", image);
	larger->from[0] = 0;
	return 0;
}

void device_record_set_top(struct device_record *record, const char *image, bool raw)
{
	snprintf(record->top, sizeof(record->top), "%s", image);
	record->raw = raw;
}

void device_record_drop(struct device_record *record, const char *image)
{
	u32 kept = 0;

	for (u32 i = 0; i < record->nr_snapshots; i++)
		if (strcmp(record->snapshots[i].image, image))
			record->snapshots[kept++] = record->snapshots[i];
	record->nr_snapshots = kept;
}

const struct record_snapshot *device_record_by_image(const struct device_record *record,
						     const char *image)
{
	for (u32 i = record->nr_snapshots; i-- > 0;)
		if (!strcmp(record->snapshots[i].image, image))
			return &record->snapshots[i];
	return NULL;
}

const struct record_snapshot *device_record_by_name(const struct device_record *record,
						    const char *name)
{
	for (u32 i = 0; i < record->nr_snapshots; i++)
		if (!strcmp(record->snapshots[i].name, name))
			return &record->snapshots[i];
	return NULL;
}

bool device_record_is_dead(const struct device_record *record, const char *image)
{
	for (u32 i = 0; i < record->nr_dead; i++)
		if (!strcmp(record->dead[i].image, image))
			return true;
	return false;
}

int device_record_bury(struct device_record *record, const char *image, bool wipe)
{
	struct record_dead *larger;

	if (device_record_is_dead(record, image))
		return 0;
	larger = realloc(record->dead, (record->nr_dead + 1) * sizeof(*larger));
	if (!larger)
		return -ENOMEM;
	record->dead = larger;
	snprintf(larger[record->nr_dead].image, sizeof(larger->image), "%s", image);
	larger[record->nr_dead].keep = false;
	larger[record->nr_dead++].wipe = wipe;
	device_record_drop(record, image);
	return 0;
}

int device_record_lay_aside(struct device_record *record, const char *image)
{
	int ret = device_record_bury(record, image, false);

	for (u32 i = 0; i < record->nr_dead && !ret; i++)
		if (!strcmp(record->dead[i].image, image))
			record->dead[i].keep = !record->dead[i].wipe;
	return ret;
}

void device_record_forget(struct device_record *record, const char *image)
{
	u32 kept = 0;

	for (u32 i = 0; i < record->nr_dead; i++)
		if (strcmp(record->dead[i].image, image))
			record->dead[kept++] = record->dead[i];
	record->nr_dead = kept;
}

void record_list_free(struct device_record *records, u32 nr)
{
	for (u32 i = 0; i < nr; i++)
		device_record_exit(&records[i]);
	free(records);
}

/* ---- the file --------------------------------------------------------------------- */

/* A file name out of a record: nothing that leads elsewhere. */
static bool text_is_image(json_object *value, char *result)
{
	const char *text;

	if (!json_object_is_type(value, json_type_string))
		return false;
	text = json_object_get_string(value);
	if (!*text || strchr(text, '/') || strlen(text) >= RECORD_IMAGE_BYTES)
		return false;
	strcpy(result, text);
	return true;
}

static bool take_image(json_object *object, const char *key, char *result)
{
	json_object *value;

	return json_object_object_get_ex(object, key, &value) && text_is_image(value, result);
}

static bool take_snapshots(json_object *root, struct device_record *record)
{
	char image[RECORD_IMAGE_BYTES];
	json_object *list, *entry, *name;

	if (!json_object_object_get_ex(root, "snapshots", &list) ||
	    !json_object_is_type(list, json_type_array))
		return false;
	for (size_t i = 0; i < json_object_array_length(list); i++) {
		entry = json_object_array_get_idx(list, i);
		if (!json_object_is_type(entry, json_type_object) ||
		    !take_image(entry, "image", image) ||
		    !json_object_object_get_ex(entry, "name", &name) ||
		    !json_object_is_type(name, json_type_string) ||
		    record_check_snapshot_name(json_object_get_string(name), NULL) ||
		    device_record_add(record, json_object_get_string(name), image))
			return false;
		take_image(entry, "from", record->snapshots[i].from);
	}
	return true;
}

static bool take_dead(json_object *root, struct device_record *record)
{
	char image[RECORD_IMAGE_BYTES];
	json_object *list, *entry, *wipe, *keep;

	if (!json_object_object_get_ex(root, "dead", &list))
		return true;
	if (!json_object_is_type(list, json_type_array))
		return false;
	for (size_t i = 0; i < json_object_array_length(list); i++) {
		entry = json_object_array_get_idx(list, i);
		if (!json_object_is_type(entry, json_type_object) ||
		    !take_image(entry, "image", image))
			return false;
		json_object_object_get_ex(entry, "wipe", &wipe);
		json_object_object_get_ex(entry, "keep", &keep);
		if (json_object_get_boolean(keep) ?
			    device_record_lay_aside(record, image) :
			    device_record_bury(record, image, json_object_get_boolean(wipe)))
			return false;
	}
	return true;
}

static bool take_name(json_object *object, const char *key, char *result)
{
	json_object *value;

	if (!json_object_object_get_ex(object, key, &value) ||
	    !json_object_is_type(value, json_type_string) ||
	    record_check_snapshot_name(json_object_get_string(value), NULL))
		return false;
	strcpy(result, json_object_get_string(value));
	return true;
}

static bool take_revert(json_object *root, struct record_revert *revert)
{
	json_object *object, *wipe;

	if (!json_object_object_get_ex(root, "revert", &object))
		return true;
	if (!json_object_is_type(object, json_type_object))
		return false;
	take_name(object, "keep", revert->keep);
	json_object_object_get_ex(object, "wipe", &wipe);
	revert->wipe = json_object_get_boolean(wipe);
	return take_image(object, "overlay", revert->overlay) &&
	       take_name(object, "snapshot", revert->snapshot);
}

/* Of the top: "raw", or nothing for a qcow2 image. */
static bool take_format(json_object *root, bool *raw)
{
	json_object *value;

	*raw = json_object_object_get_ex(root, "format", &value);
	return !*raw || (json_object_is_type(value, json_type_string) &&
			 !strcmp(json_object_get_string(value), "raw"));
}

/* @file: NAME.qchain; the content must say the same name. */
static bool take_record(json_object *root, const char *file, struct device_record *record)
{
	json_object *value;
	const char *name;

	if (!json_object_is_type(root, json_type_object) ||
	    !json_object_object_get_ex(root, "device", &value) ||
	    !json_object_is_type(value, json_type_string))
		return false;
	name = json_object_get_string(value);
	if (chain_name_check(name, NULL) || strncmp(file, name, strlen(name)) ||
	    strcmp(file + strlen(name), RECORD_SUFFIX))
		return false;
	strcpy(record->name, name);
	if (!json_object_object_get_ex(root, "sequence", &value) ||
	    !json_object_is_type(value, json_type_int))
		return false;
	record->sequence = json_object_get_uint64(value);
	take_image(root, "new", record->pending);
	return take_image(root, "top", record->top) && take_format(root, &record->raw) &&
	       take_snapshots(root, record) && take_dead(root, record) &&
	       take_revert(root, &record->revert) && record_jobs_take(root, record);
}

static int load_file(const char *dir, const char *file, struct device_record *result,
		     struct qc_err *err)
{
	char path[4096];
	json_object *root;
	bool good;

	*result = (struct device_record){ .sequence = 0 };
	snprintf(path, sizeof(path), "%s/%s", dir, file);
	root = json_object_from_file(path);
	good = take_record(root, file, result);
	json_object_put(root);
	if (good)
		return 0;
	device_record_exit(result);
	return qc_err_set(err, -EINVAL, "%s: record of a device not readable, expected JSON with "
			  "device (as the file is called), sequence, top and snapshots; put it "
			  "right, or move it away if no image here has snapshots", path);
}

static bool is_record(const char *file)
{
	size_t len = strlen(file);

	return len > strlen(RECORD_SUFFIX) && file[0] != '.' &&
	       !strcmp(file + len - strlen(RECORD_SUFFIX), RECORD_SUFFIX);
}

int record_dir_load(const char *dir, struct device_record **result, u32 *nr, struct qc_err *err)
{
	struct device_record *records = NULL, *larger;
	struct dirent *entry;
	DIR *d = opendir(dir);
	u32 n = 0;
	int ret = 0;

	if (!d)
		return qc_err_set(err, -errno, "%s: directory not read (%m)", dir);
	while (!ret && (entry = readdir(d))) {
		if (!is_record(entry->d_name))
			continue;
		larger = realloc(records, (n + 1) * sizeof(*records));
		if (larger)
			records = larger;
		ret = larger ? load_file(dir, entry->d_name, &records[n], err) : -ENOMEM;
		n += ret == 0;
	}
	closedir(d);
	if (ret) {
		record_list_free(records, n);
		return ret == -ENOMEM ? qc_err_set(err, ret, "%s: out of memory", dir) : ret;
	}
	*result = records;
	*nr = n;
	return 0;
}

static json_object *revert_json(const struct record_revert *revert)
{
	json_object *object = json_object_new_object();

	json_object_object_add(object, "overlay", json_object_new_string(revert->overlay));
	json_object_object_add(object, "snapshot", json_object_new_string(revert->snapshot));
	if (revert->keep[0])
		json_object_object_add(object, "keep", json_object_new_string(revert->keep));
	json_object_object_add(object, "wipe", json_object_new_boolean(revert->wipe));
	return object;
}

static json_object *dead_json(const struct device_record *record)
{
	json_object *list = json_object_new_array(), *entry;

	for (u32 i = 0; i < record->nr_dead; i++) {
		entry = json_object_new_object();
		json_object_object_add(entry, "image",
				       json_object_new_string(record->dead[i].image));
		json_object_object_add(entry, "wipe",
				       json_object_new_boolean(record->dead[i].wipe));
		if (record->dead[i].keep)
			json_object_object_add(entry, "keep", json_object_new_boolean(true));
		json_object_array_add(list, entry);
	}
	return list;
}

static json_object *to_json(const struct device_record *record)
{
	json_object *root = json_object_new_object(), *list = json_object_new_array(), *entry;

	json_object_object_add(root, "device", json_object_new_string(record->name));
	json_object_object_add(root, "sequence", json_object_new_uint64(record->sequence));
	json_object_object_add(root, "top", json_object_new_string(record->top));
	if (record->raw)
		json_object_object_add(root, "format", json_object_new_string("raw"));
	if (record->pending[0])
		json_object_object_add(root, "new", json_object_new_string(record->pending));
	for (u32 i = 0; i < record->nr_snapshots; i++) {
		entry = json_object_new_object();
		json_object_object_add(entry, "name",
				       json_object_new_string(record->snapshots[i].name));
		json_object_object_add(entry, "image",
				       json_object_new_string(record->snapshots[i].image));
		if (record->snapshots[i].from[0])
			json_object_object_add(entry, "from", json_object_new_string(
					       record->snapshots[i].from));
		json_object_array_add(list, entry);
	}
	json_object_object_add(root, "snapshots", list);
	list = record_jobs_json(record);
	if (list)
		json_object_object_add(root, "jobs", list);
	if (record->nr_dead)
		json_object_object_add(root, "dead", dead_json(record));
	if (record->revert.overlay[0])
		json_object_object_add(root, "revert", revert_json(&record->revert));
	return root;
}

int record_write_json(const char *path, json_object *root)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
	int ret = 0;

	if (fd < 0)
		return -errno;
	if (json_object_to_fd(fd, root, JSON_C_TO_STRING_PRETTY |
			      JSON_C_TO_STRING_NOSLASHESCAPE) < 0 ||
	    write(fd, "\n", 1) != 1 || fsync(fd))
		ret = errno ? -errno : -EIO;
	close(fd);
	return ret;
}

int record_dir_flush(const char *dir)
{
	int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int ret = fd < 0 || fsync(fd) ? -errno : 0;

	if (fd >= 0)
		close(fd);
	return ret;
}

int record_dir_save(const char *dir, const struct device_record *record, struct qc_err *err)
{
	char path[4096], next[4096];
	json_object *root = to_json(record);
	int ret;

	snprintf(path, sizeof(path), "%s/%s" RECORD_SUFFIX, dir, record->name);
	snprintf(next, sizeof(next), "%s/.%s" RECORD_SUFFIX ".next", dir, record->name);
	ret = record_write_json(next, root);
	json_object_put(root);
	if (!ret && rename(next, path))
		ret = -errno;
	if (!ret)
		ret = record_dir_flush(dir);
	if (!ret)
		return 0;
	unlink(next);
	return qc_err_set(err, ret, "%s: record of the device not written (%s)", path,
			  strerror(-ret));
}

int record_dir_remove(const char *dir, const char *name, struct qc_err *err)
{
	char path[4096];
	int ret;

	snprintf(path, sizeof(path), "%s/%s" RECORD_SUFFIX, dir, name);
	ret = unlink(path) && errno != ENOENT ? -errno : record_dir_flush(dir);
	return ret ? qc_err_set(err, ret, "%s: not removed (%s)", path, strerror(-ret)) : 0;
}

/* ---- may it be written? -------------------------------------------------------------- */

int record_refuse(const struct device_record *records, u32 nr, const char *image,
		  const char *text, const char *name, struct qc_err *err)
{
	const struct record_snapshot *snapshot;

	for (u32 i = 0; i < nr; i++) {
		if (device_record_is_dead(&records[i], image))
			return qc_err_set(err, -EBUSY, "%s: was a layer of device %s and is to be "
					  "removed", text, records[i].name);
		snapshot = device_record_by_image(&records[i], image);
		if (snapshot && strcmp(records[i].top, image))
			return qc_err_set(err, -EBUSY, "%s: is sealed, it holds snapshot %s of "
					  "device %s; serve the device with qchainctl up %s, or "
					  "this image with --read-only", text, snapshot->name,
					  records[i].name, records[i].name);
		if (name && !strcmp(records[i].top, image) && strcmp(records[i].name, name))
			return qc_err_set(err, -EBUSY, "%s: is the top of device %s; serve it "
					  "with qchainctl up %s, or with --read-only", text,
					  records[i].name, records[i].name);
	}
	return 0;
}

static int refuse_standing(const struct overlay_search *search, const char *path,
			   struct qc_err *err)
{
	if (search->unknown[0])
		log_warn("%s: cannot be looked at (%s), it may stand on %s", search->unknown,
			 strerror(-search->why), path);
	if (!search->found[0])
		return 0;
	return qc_err_set(err, -EBUSY, "%s: is the backing image of %s, which would be damaged; "
			  "serve that one, or this with --read-only", path, search->found);
}

/* /dev/VG of a path /dev/VG/LV; false: it is another. */
static bool group_dir(const char *path, char *dir, size_t bytes)
{
	const char *slash = strrchr(path, '/');
	struct stat st;

	if (strncmp(path, "/dev/", 5) || !slash || slash <= path + 5 ||
	    !strncmp(path, "/dev/mapper/", 12) || lstat(path, &st) || !S_ISLNK(st.st_mode))
		return false;
	snprintf(dir, bytes, "%.*s", (int)(slash - path), path);
	return true;
}

static int check_group(const char *path, struct qc_err *err)
{
	struct overlay_search *search;
	char dir[4096];
	int ret = 0;

	if (!group_dir(path, dir, sizeof(dir)))
		return 0;
	search = calloc(1, sizeof(*search));
	if (!search || image_ident_of(path, &search->below)) {
		free(search);
		return search ? 0 : -ENOMEM; /* opening it will tell */
	}
	overlay_search_dir(search, dir);
	ret = refuse_standing(search, path, err);
	free(search);
	return ret;
}

/* Images that are no overlays yet, or not any more, or raw; the names belong to the records. */
static const char **no_overlays(const struct device_record *records, u32 nr)
{
	const char **names;
	u32 most = 2 * nr + 1, n = 0;

	for (u32 i = 0; i < nr; i++)
		most += records[i].nr_dead;
	names = calloc(most, sizeof(*names));
	for (u32 i = 0; names && i < nr; i++) {
		if (records[i].pending[0])
			names[n++] = records[i].pending;
		if (records[i].raw)
			names[n++] = records[i].top;
		for (u32 k = 0; k < records[i].nr_dead; k++)
			names[n++] = records[i].dead[k].image;
	}
	return names;
}

static int check_headers(const char *dir, const char *path, const struct device_record *records,
			 u32 nr, struct qc_err *err)
{
	struct overlay_search *search = calloc(1, sizeof(*search));
	const char **skip = no_overlays(records, nr);
	int ret = search && skip ? image_ident_of(path, &search->below) : -ENOMEM;

	if (!ret) {
		search->skip = skip;
		overlay_search_dir(search, dir);
		ret = refuse_standing(search, path, err);
	}
	free(search);
	free(skip);
	return ret;
}

/* @real: without links; its directory is cut off in place. */
static int check_file(char *real, const char *path, struct qc_err *err)
{
	char *slash = strrchr(real, '/');
	const char *dir = slash == real ? "/" : real;
	struct device_record *records;
	u32 nr;
	int ret;

	*slash = 0;
	ret = record_dir_load(dir, &records, &nr, err);
	if (ret)
		return ret;
	ret = record_refuse(records, nr, slash + 1, path, NULL, err);
	if (!ret)
		ret = check_headers(dir, path, records, nr, err);
	record_list_free(records, nr);
	return ret;
}

int record_check_top(const char *path, struct qc_err *err)
{
	struct stat st;
	char *real;
	int ret;

	if (stat(path, &st))
		return 0; /* opening it will tell */
	if (S_ISBLK(st.st_mode))
		return check_group(path, err);
	if (!S_ISREG(st.st_mode))
		return 0;
	real = realpath(path, NULL);
	if (!real)
		return qc_err_set(err, -errno, "%s: path not resolved (%m)", path);
	ret = check_file(real, path, err);
	free(real);
	return ret;
}
