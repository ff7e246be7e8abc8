// SPDX-License-Identifier: GPL-2.0-or-later
/* qchainctl snapshot: overlays become the tops of devices in use, at one instant. */
#include "freeze.h"
#include "snapshot.h"
#include "thin.h"

#include <errno.h>
#include <qchain/crash-point.h>
#include <qchain/parse.h>
#include <stdlib.h>
#include <string.h>

#define MAX_GROUP 64

struct snapshot_options {
	bool json;
	bool freeze;
	bool group;
	bool thin;
	u64 lv_bytes;
	u64 chunk;
};

/* What is taken at one instant. */
struct group {
	u32 nr;
	bool freeze;
	struct snapshot *all;
	struct freeze frozen;
};

static const struct option long_options[] = {
	{ "size", required_argument, NULL, 's' },
	{ "thin", no_argument, NULL, 't' },
	{ "chunk", required_argument, NULL, 'c' },
	{ "freeze", no_argument, NULL, 'z' },
	{ "group", no_argument, NULL, 'g' },
	{ "json", no_argument, NULL, 'j' },
	{ NULL },
};

/* ---- the steps, for all ------------------------------------------------------------- */

static int for_all(struct group *g, int (*step)(struct snapshot *s, struct qc_err *err),
		   struct qc_err *err)
{
	int ret = 0;

	for (u32 i = 0; i < g->nr && !ret; i++)
		ret = step(&g->all[i], err);
	return ret;
}

/* After all LVM and formatting work: nothing is run, and no file written, from here on. */
static int freeze_group(struct group *g, struct qc_err *err)
{
	const char *devices[MAX_GROUP];
	char texts[MAX_GROUP][32];

	if (!g->freeze)
		return 0;
	for (u32 i = 0; i < g->nr; i++) {
		if (g->all[i].served.dev_id < 0)
			return qc_err_set(err, -EINVAL, "%s: has no block device, nothing can be "
					  "mounted from it; leave out --freeze", g->all[i].name);
		snprintf(texts[i], sizeof(texts[i]), "/dev/ublkb%d", g->all[i].served.dev_id);
		devices[i] = texts[i];
	}
	return freeze_begin(devices, g->nr, &g->frozen, err);
}

/*
 * Rule C3: no daemon starts a write between the first switch and the last, so a
 * write that was issued because of another one is never in a snapshot without it.
 * Switched within what a hold lasts, or not at all.
 */
static int publish_group(struct group *g, struct qc_err *err)
{
	u64 deadline_ns = 0;
	int ret = 0;

	for (u32 i = 0; i < g->nr && g->nr > 1 && !ret; i++)
		ret = snapshot_hold(&g->all[i], &deadline_ns, err);
	for (u32 i = 0; i < g->nr && !ret; i++)
		ret = snapshot_publish(&g->all[i], deadline_ns, err);
	for (u32 i = 0; i < g->nr && g->nr > 1; i++)
		snapshot_release(&g->all[i]);
	return ret;
}

static int switch_group(struct group *g, struct qc_err *err)
{
	struct qc_err thaw = { 0 };
	int ret = freeze_group(g, err), one;

	if (ret)
		return ret;
	crash_point("snapshot.frozen");
	ret = publish_group(g, err);
	one = freeze_end(&g->frozen, ret ? &thaw : err);
	return ret ? ret : one;
}

static void undo(struct group *g)
{
	struct qc_err err;

	for (u32 i = 0; i < g->nr; i++) {
		err.code = 0;
		if (snapshot_undo(&g->all[i], &err))
			print_error(&err);
		if (g->nr > 1 && g->all[i].published)
			fprintf(stderr, "qchainctl: %s: snapshot %s was taken, but not of the "
				"whole group\n", g->all[i].name, g->all[i].snap);
	}
}

/* Lock to switch; what fails is undone, and what cannot be undone is told too. */
static int take(struct group *g, struct qc_err *err)
{
	int ret = for_all(g, snapshot_open, err);

	if (!ret)
		ret = for_all(g, snapshot_check_name, err);
	if (!ret)
		ret = for_all(g, snapshot_prepare, err);
	if (!ret)
		ret = for_all(g, snapshot_record, err);
	if (!ret)
		ret = switch_group(g, err);
	if (ret)
		undo(g);
	return ret ? ret : for_all(g, snapshot_settle, err);
}

/* ---- the verb -------------------------------------------------------------------------- */

static json_object *to_json(const struct snapshot *s)
{
	json_object *object = json_object_new_object();

	json_object_object_add(object, "name", json_object_new_string(s->name));
	json_object_object_add(object, "snapshot", json_object_new_string(s->snap));
	json_object_object_add(object, "file", json_object_new_string(s->old_top));
	json_object_object_add(object, "top", json_object_new_string(s->overlay.path));
	json_object_object_add(object, "switch-us", json_object_new_int64(s->publish_ns / 1000));
	return object;
}

/* One object, or of a group a list of them. */
static void print_taken(const struct group *g, const struct snapshot_options *o)
{
	json_object *list = json_object_new_array();

	for (u32 i = 0; i < g->nr; i++) {
		if (o->json)
			json_object_array_add(list, to_json(&g->all[i]));
		else
			printf("%s: snapshot %s is %s, writes go to %s\n", g->all[i].name,
			       g->all[i].snap, g->all[i].old_top, g->all[i].overlay.path);
	}
	if (o->json && o->group)
		print_json(json_object_get(list));
	else if (o->json)
		print_json(json_object_get(json_object_array_get_idx(list, 0)));
	json_object_put(list);
}

static int snapshot_devices(char **names, u32 nr, const char *snap,
			    const struct snapshot_options *o)
{
	struct group g = { .nr = nr, .freeze = o->freeze, .all = calloc(nr, sizeof(*g.all)) };
	struct qc_err err = { 0 };
	int status = CTL_DONE;

	if (!g.all)
		return CTL_FAILED;
	for (u32 i = 0; i < nr; i++) {
		g.all[i].dir.lock_fd = -1;
		g.all[i].name = names[i];
		g.all[i].snap = snap;
		g.all[i].lv_bytes = o->lv_bytes;
		g.all[i].thin = o->thin;
		g.all[i].chunk = o->chunk;
	}
	if (take(&g, &err))
		status = print_error(&err);
	else
		print_taken(&g, o);
	for (u32 i = 0; i < nr; i++)
		snapshot_close(&g.all[i]);
	free(g.all);
	return status;
}

static int take_option(struct snapshot_options *o, int c, struct qc_err *err)
{
	o->json |= c == 'j';
	o->freeze |= c == 'z';
	o->group |= c == 'g';
	o->thin |= c == 't';
	if (c == 'c')
		return thin_parse_chunk(&o->chunk, err);
	return c == 's' ? parse_size("--size", optarg, &o->lv_bytes, err) : 0;
}

static int check_options(const struct verb *verb, const struct snapshot_options *o)
{
	if (o->thin && o->lv_bytes)
		return verb_usage(verb, "--thin and --size: expected one of them");
	return o->chunk && !o->thin ? verb_usage(verb, "--chunk without --thin") : 0;
}

/* Of several devices the locks are taken in one order, by whoever it is. */
static int compare_names(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

static int check_names(char **names, u32 nr, const char *snap, struct qc_err *err)
{
	int ret = record_check_snapshot_name(snap, err);

	qsort(names, nr, sizeof(*names), compare_names);
	for (u32 i = 0; i < nr && !ret; i++) {
		ret = chain_name_check(names[i], err);
		if (!ret && i && !strcmp(names[i], names[i - 1]))
			ret = qc_err_set(err, -EINVAL, "%s: named twice", names[i]);
	}
	return ret;
}

static int snapshot_run(const struct verb *verb, int argc, char **argv)
{
	struct snapshot_options options = { .json = false };
	struct qc_err err = { 0 };
	int c, status, ret = 0;
	u32 nr;

	while (!ret && (c = verb_option(verb, argc, argv, long_options)) != -1) {
		if (c == '?')
			return verb_status(verb);
		ret = take_option(&options, c, &err);
	}
	if (ret)
		return verb_usage(verb, "%s", err.msg);
	status = check_options(verb, &options);
	if (!status)
		status = verb_arguments(verb, argc, argv, 2, options.group ? MAX_GROUP + 1 : 2);
	if (status)
		return status;
	nr = argc - optind - 1;
	if (check_names(argv + optind, nr, argv[argc - 1], &err))
		return verb_usage(verb, "%s", err.msg);
	return snapshot_devices(argv + optind, nr, argv[argc - 1], &options);
}

const struct verb verb_snapshot = {
	.name = "snapshot",
	.summary = "keep what a device holds now under a name, while it is in use",
	.usage = "NAME SNAP [OPTION]... | --group NAME... SNAP [OPTION]...",
	.options =
		"  --size SIZE     of the LV for what is written from now on; default: so that\n"
		"                  it can never run full, or thin as the top is\n"
		"  --thin          a small LV, which is made larger while it is written to\n"
		"  --chunk SIZE    of --thin: what it has for data at first and grows by at least\n"
		"                  (default: 128M, or a hundredth of the disk)\n"
		"  --freeze        file systems mounted from the device, also through LVM, md or\n"
		"                  crypt on it, are frozen for that instant (2 s at most)\n"
		"  --group         one instant for several devices, or none\n"
		"  --json          one object (--group: a list): name, snapshot, file (the layer\n"
		"                  that holds it), top (the new active layer), switch-us\n"
		"\n"
		"A new LV of the same VG, or a new file beside the top, takes all writes from now\n"
		"on. It keeps its name for ever; qchainctl tree shows which layer holds what.\n"
		"Merges that run go on below it. Of a volume of Proxmox VE it gets the volume's\n"
		"name, as Proxmox VE has it.\n",
	.examples =
		"  qchainctl snapshot vm7 before-upgrade\n"
		"  qchainctl snapshot vm7 monday --size 20G --freeze --json\n"
		"  qchainctl snapshot vm7 tuesday --thin\n"
		"  qchainctl snapshot --group db-data db-log nightly\n",
	.run = snapshot_run,
};
