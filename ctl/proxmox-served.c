// SPDX-License-Identifier: GPL-2.0-or-later
/* Names of Proxmox VE while a daemon has the LVs open: it, and the run record, learn them. */
#include "proxmox.h"

#include "lv-names.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* ---- what is to be deactivated ---------------------------------------------------------- */

/* Names that no LV of the VG has any more go. */
static void forget_old_names(const struct record_place *place, json_object *state)
{
	json_object *list, *kept = json_object_new_array();
	size_t len = strlen(place->vg);
	u32 nr = 0;

	list = json_list(state, "activated", &nr);
	for (u32 i = 0; i < nr; i++) {
		json_object *entry = json_object_array_get_idx(list, i);
		const char *text = json_object_get_string(entry);

		if (strncmp(text, place->vg, len) || text[len] != '/' ||
		    record_place_lv(place, text + len + 1))
			json_object_array_add(kept, json_object_get(entry));
	}
	json_object_object_add(state, "activated", kept);
}

/* ---- the daemon ---------------------------------------------------------------------------- */

/* As a daemon has it for what it has open. */
static bool is_open_as(const char *path, const char *ident)
{
	struct stat st;
	char text[48];

	if (stat(path, &st))
		return false;
	if (S_ISBLK(st.st_mode))
		snprintf(text, sizeof(text), "%llu", (unsigned long long)st.st_rdev);
	else
		snprintf(text, sizeof(text), "%llu:%llu", (unsigned long long)st.st_dev,
			 (unsigned long long)st.st_ino);
	return !strcmp(text, ident);
}

static int ask_nodes(const struct served *served, json_object **nodes, struct qc_err *err)
{
	return client_command(served->client, "query-named-block-nodes", NULL, false, nodes, err);
}

/* After a snapshot that was recorded and not published it serves another one. */
static int serves_top(const struct served *served, const struct record_place *place,
		      const struct device_record *record, bool *result, struct qc_err *err)
{
	char path[4096];
	const char *ident;
	json_object *nodes;
	int ret = record_place_path(place, record->top, path, sizeof(path), err);

	if (!ret)
		ret = ask_nodes(served, &nodes, err);
	if (ret)
		return ret;
	ident = json_text(json_object_array_get_idx(nodes, 0), "qchain-ident");
	*result = ident && is_open_as(path, ident);
	json_object_put(nodes);
	return 0;
}

static int tell_name(const struct served *served, const struct record_place *place,
		     json_object *node, struct qc_err *err)
{
	const char *ident = json_text(node, "qchain-ident"), *file = json_text(node, "file");
	json_object *arguments;
	char path[4096];

	if (!ident || !file || is_open_as(file, ident))
		return 0;
	for (u32 i = 0; i < place->nr_lvs; i++) {
		snprintf(path, sizeof(path), "/dev/%s/%s", place->vg, place->lvs[i].name);
		if (!is_open_as(path, ident))
			continue;
		arguments = json_object_new_object();
		json_object_object_add(arguments, "node-name",
				       json_object_new_string(json_text(node, "node-name")));
		json_object_object_add(arguments, "filename", json_object_new_string(path));
		return client_command(served->client, "qchain-rename-layer", arguments, false, NULL,
				      err);
	}
	return 0;
}

static int tell_daemon(struct served *served, const struct record_place *place,
		       struct qc_err *err)
{
	json_object *nodes;
	int ret = ask_nodes(served, &nodes, err);

	if (ret)
		return ret;
	json_object_put(served->status);
	served->status = NULL;
	for (u32 i = 0; i < json_object_array_length(nodes) && !ret; i++)
		ret = tell_name(served, place, json_object_array_get_idx(nodes, i), err);
	json_object_put(nodes);
	return ret ? ret : client_command(served->client, "query-status", NULL, false,
					  &served->status, err);
}

/* ---- all of it ------------------------------------------------------------------------------- */

static int rename_all(struct served *served, const struct rundir *dir, struct record_place *place,
		      struct device_record *record, struct qc_err *err)
{
	u32 nr;
	int ret;

	proxmox_list_names(place, record, json_list(served->record, "activated", &nr));
	ret = rundir_save(dir, served->record, err);
	return ret ? ret : proxmox_rename(place, record, err);
}

static int note_names(struct served *served, const struct rundir *dir, struct record_place *place,
		      struct device_record *record, struct qc_err *err)
{
	char path[4096];
	int ret = record_place_path(place, record->top, path, sizeof(path), err);

	if (ret)
		return ret;
	record_note(place, record, path, served->record);
	forget_old_names(place, served->record);
	return rundir_save(dir, served->record, err);
}

static int settle(struct served *served, const struct rundir *dir, struct record_place *place,
		  const char *volume, struct qc_err *err)
{
	struct device_record *record = record_place_find(place, served->name);
	bool current = true;
	int ret = served->client ? tell_daemon(served, place, err) : 0;

	if (!ret && record && served->client)
		ret = serves_top(served, place, record, &current, err);
	if (ret || !current)
		return ret;
	if (record)
		ret = rename_all(served, dir, place, record, err);
	if (!ret && served->client)
		ret = tell_daemon(served, place, err);
	if (!ret && record)
		ret = proxmox_release(place, record, err);
	if (!ret && !record) /* released already, by somebody who was killed then */
		ret = proxmox_find_record(place, served->name, volume, &record, err);
	return ret || !record ? ret : note_names(served, dir, place, record, err);
}

int proxmox_settle_served(struct served *served, const struct rundir *dir, struct qc_err *err)
{
	struct record_place *place;
	const char *volume = json_text(served->record, "volume");
	char vg[128], lv[128];
	int ret;

	if (!volume || !lv_path_split(volume, vg, lv))
		return 0;
	place = calloc(1, sizeof(*place));
	if (!place)
		return qc_err_set(err, -ENOMEM, "%s: out of memory", served->name);
	ret = record_place_open(vg, place, err);
	if (!ret)
		ret = settle(served, dir, place, lv, err);
	record_place_exit(place);
	free(place);
	return ret;
}
