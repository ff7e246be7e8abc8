// SPDX-License-Identifier: GPL-2.0-or-later
/* qchainctl up: serve a chain, or take over where its daemon died. */
#include "grow.h"
#include "guard.h"
#include "job-record.h"
#include "merging.h"
#include "offload.h"
#include "proxmox.h"
#include "revert-record.h"
#include "tab.h"

#include <errno.h>
#include <limits.h>
#include <qchain/parse.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/*
 * The command line of `up`. @top: absolute, "" when not given; @where: a VG or
 * directory that was given instead, else ""; @restarts: -1 when not given
 * @targets: of --offload, 0: it was not given
 * @by_guard: it is the guard of the chain that starts it; it needs no other
 * @reason: why there is another daemon after one that was there before
 * @tab: the table of devices, NULL: the host's
 * @format: of the top; NULL: not given
 */
struct up_options {
	const char *name;
	const char *reason;
	const char *tab;
	const char *format;
	char top[PATH_MAX];
	char where[PATH_MAX];
	char nbd[PATH_MAX];
	bool no_ublk;
	bool scan;
	bool json;
	bool all;
	bool boot;
	bool by_guard;
	bool assume_unshared;
	bool offload;
	u32 targets;
	s32 restarts;
	json_object *words; /* for qchaind, as they stand in the record */
};

/* In the order of long_options. */
enum {
	OPT_FIRST = 256,
	OPT_NBD = OPT_FIRST,
	OPT_NO_UBLK,
	OPT_SCAN,
	OPT_JSON,
	OPT_ALL,
	OPT_TAB,
	OPT_BOOT,
	OPT_UNSHARED,
	OPT_RESTARTS,
	OPT_OFFLOAD,
	OPT_TARGETS,
	OPT_ALLOW_BACKING,
	OPT_FORMAT,
	OPT_PASSED_ON, /* and all behind it: qchaind has them under the same name */
};

static const struct option long_options[] = {
	{ "nbd", required_argument, NULL, OPT_NBD },
	{ "no-ublk", no_argument, NULL, OPT_NO_UBLK },
	{ "scan", no_argument, NULL, OPT_SCAN },
	{ "json", no_argument, NULL, OPT_JSON },
	{ "all", no_argument, NULL, OPT_ALL },
	{ "tab", required_argument, NULL, OPT_TAB },
	{ "boot", no_argument, NULL, OPT_BOOT },
	{ "assume-unshared", no_argument, NULL, OPT_UNSHARED },
	{ "restarts", required_argument, NULL, OPT_RESTARTS },
	{ "offload", no_argument, NULL, OPT_OFFLOAD },
	{ "offload-targets", required_argument, NULL, OPT_TARGETS },
	{ "allow-backing", required_argument, NULL, OPT_ALLOW_BACKING },
	{ "format", required_argument, NULL, OPT_FORMAT },
	{ "read-only", no_argument, NULL, OPT_PASSED_ON },
	{ "allow-data-file", no_argument, NULL, OPT_PASSED_ON + 1 },
	{ "wait", no_argument, NULL, OPT_PASSED_ON + 2 },
	{ "snapshot", required_argument, NULL, OPT_PASSED_ON + 3 },
	{ "backing-format", required_argument, NULL, OPT_PASSED_ON + 4 },
	{ "cache-size", required_argument, NULL, OPT_PASSED_ON + 5 },
	{ "on-full", required_argument, NULL, OPT_PASSED_ON + 6 },
	{ "warm", required_argument, NULL, OPT_PASSED_ON + 7 },
	{ NULL },
};

/* ---- command line ------------------------------------------------------------- */

const struct option *up_tab_option(const char *name)
{
	for (u32 i = 0; long_options[i].name; i++) {
		int c = long_options[i].val;

		if (!strcmp(long_options[i].name, name))
			return c >= OPT_JSON && c <= OPT_BOOT ? NULL : &long_options[i];
	}
	return NULL;
}

/* @path as it is from every folder, links kept: backing names count from there. */
static int absolute_path(const char *path, char *result, struct qc_err *err)
{
	char cwd[PATH_MAX];
	int n;

	if (*path == '/') {
		n = snprintf(result, PATH_MAX, "%s", path);
	} else {
		if (!getcwd(cwd, sizeof(cwd)))
			return qc_err_set(err, -errno, "%s: this folder has no path (%m)", path);
		n = snprintf(result, PATH_MAX, "%s/%s", cwd,
			     strncmp(path, "./", 2) == 0 ? path + 2 : path);
	}
	if (n < PATH_MAX)
		return 0;
	return qc_err_set(err, -ENAMETOOLONG, "%.80s...: path too long (%d bytes), must be below "
			  "%d", path, n, PATH_MAX);
}

/* Two words for qchaind, or one when there is no value. */
static void keep_option(struct up_options *up, const char *key, const char *value)
{
	char word[64];

	snprintf(word, sizeof(word), "--%s", key);
	json_object_array_add(up->words, json_object_new_string(word));
	if (value)
		json_object_array_add(up->words, json_object_new_string(value));
}

static int take_nbd(struct up_options *up, struct qc_err *err)
{
	if (!*optarg)
		return qc_err_set(err, -EINVAL, "--nbd: path is empty, expected that of a socket");
	return absolute_path(optarg, up->nbd, err);
}

static int take_restarts(struct up_options *up, struct qc_err *err)
{
	u64 value;
	int ret = parse_number("--restarts", optarg, 0, GUARD_MAX_LIMIT, &value, err);

	if (ret == 0)
		up->restarts = value;
	return ret;
}

static int take_allow_backing(struct up_options *up, const char *key, struct qc_err *err)
{
	char path[PATH_MAX];
	int ret = chain_option_check(key, optarg, err);

	if (ret == 0)
		ret = absolute_path(optarg, path, err);
	if (ret == 0)
		keep_option(up, key, path);
	return ret;
}

/* The run record keeps it beside the top: a snapshot makes a qcow2 image the top. */
static int take_format(struct up_options *up, struct qc_err *err)
{
	up->format = optarg;
	return chain_option_check("format", optarg, err);
}

static int take_passed_on(struct up_options *up, const struct option *option, struct qc_err *err)
{
	const char *value = option->has_arg ? optarg : NULL;
	int ret = value ? chain_option_check(option->name, value, err) : 0;

	if (ret == 0)
		keep_option(up, option->name, value);
	return ret;
}

static int take_option(struct up_options *up, int c, struct qc_err *err)
{
	const struct option *option = &long_options[c - OPT_FIRST];

	switch (c) {
	case OPT_NBD:
		return take_nbd(up, err);
	case OPT_NO_UBLK:
		up->no_ublk = true;
		return 0;
	case OPT_SCAN:
		up->scan = true;
		return 0;
	case OPT_JSON:
		up->json = true;
		return 0;
	case OPT_ALL:
		up->all = true;
		return 0;
	case OPT_TAB:
		up->tab = optarg;
		return 0;
	case OPT_BOOT:
		up->boot = true;
		return 0;
	case OPT_UNSHARED:
		up->assume_unshared = true;
		return 0;
	case OPT_RESTARTS:
		return take_restarts(up, err);
	case OPT_OFFLOAD:
		up->offload = true;
		return 0;
	case OPT_TARGETS:
		return offload_take_targets(optarg, &up->targets, err);
	case OPT_ALLOW_BACKING:
		return take_allow_backing(up, option->name, err);
	case OPT_FORMAT:
		return take_format(up, err);
	default:
		return take_passed_on(up, option, err);
	}
}

/* TOP, or where it is: a directory, or a VG; a VG's name is one word, and no file here. */
static int take_top(struct up_options *up, const char *text, struct qc_err *err)
{
	struct object_name name;
	struct stat st;
	int ret;

	if (*text && !strchr(text, '/') && access(text, F_OK)) {
		snprintf(up->where, sizeof(up->where), "%s", text);
		return 0;
	}
	ret = name_parse(text, &name, err);
	if (ret)
		return ret;
	if (name.kind == NAME_PATH && stat(name.path, &st) == 0 && S_ISDIR(st.st_mode))
		return absolute_path(name.path, up->where, err);
	if (name.kind == NAME_CHAIN)
		return qc_err_set(err, -EINVAL, "%s: is a served chain, expected VG/LV or the path "
				  "of an image; for a file write ./%s", text, text);
	return absolute_path(name.path, up->top, err);
}

/* Is it started for reading only? */
static bool reads_only(json_object *words)
{
	const char *word;

	for (u32 i = 0; i < json_object_array_length(words); i++) {
		word = json_object_get_string(json_object_array_get_idx(words, i));
		if (!strcmp(word, "--read-only") || !strcmp(word, "--snapshot"))
			return true;
	}
	return false;
}

/* 0 or the exit status */
static int check_offload(const struct verb *verb, const struct up_options *up)
{
	if (up->targets && !up->offload)
		return verb_usage(verb, "--offload-targets: nothing to limit, expected --offload "
					"too");
	if (up->offload && (up->nbd[0] || up->no_ublk))
		return verb_usage(verb, "--offload: not with --nbd or --no-ublk, the rest goes to "
					"a ublk device");
	if (up->offload && !reads_only(up->words))
		return verb_usage(verb, "--offload: only what is not written, expected --read-only "
					"too");
	return 0;
}

/* What is served, and how, must make sense together; 0 or the exit status. */
static int check_exports(const struct verb *verb, struct up_options *up)
{
	int status = check_offload(verb, up);

	if (status)
		return status;
	if (!up->no_ublk && up->nbd[0] && access("/dev/ublk-control", F_OK)) {
		fprintf(stderr, "qchainctl: %s: no ublk_drv on this host, served on %s only\n",
			up->name, up->nbd);
		up->no_ublk = true;
	}
	if (up->no_ublk && !up->nbd[0])
		return verb_usage(verb, "--no-ublk: nothing is left to be served, expected --nbd "
					"SOCK too");
	return 0;
}

/* NAME and TOP; 0 or the exit status. */
static int take_names(const struct verb *verb, int argc, char **argv, struct up_options *up)
{
	struct qc_err err = { 0 };
	int ret;

	if (argc - optind == 2 && up->tab)
		return verb_usage(verb, "--tab: not used with %s, expected NAME alone, or --all",
				  argv[optind + 1]);
	up->name = argv[optind];
	ret = chain_name_check(up->name, &err);
	if (ret == 0 && optind + 1 < argc)
		ret = take_top(up, argv[optind + 1], &err);
	return ret ? verb_usage(verb, "%s", err.msg) : 0;
}

/* 0, or the exit status of a wrong command line. */
static int up_parse(const struct verb *verb, int argc, char **argv, struct up_options *up)
{
	struct qc_err err = { 0 };
	int c, ret = 0, status;

	while (ret == 0 && (c = verb_option(verb, argc, argv, long_options)) != -1) {
		if (c == '?')
			return verb_status(verb);
		ret = take_option(up, c, &err);
	}
	if (ret)
		return verb_usage(verb, "%s", err.msg);
	if (up->boot && !up->all)
		return verb_usage(verb, "--boot: nothing to choose from, expected --all too");
	status = verb_arguments(verb, argc, argv, up->all ? 0 : 1, up->all ? 0 : 2);
	return status || up->all ? status : take_names(verb, argc, argv, up);
}

/* ---- the table ------------------------------------------------------------------- */

/* The words of its line in front of those that were given, which therefore count. */
static int parse_with_entry(const struct verb *verb, int argc, char **argv,
			    const struct tab_entry *entry, struct up_options *up)
{
	char **all = calloc(argc + entry->nr_words + 1, sizeof(*all));
	struct qc_err err = { 0 };
	int status;

	if (!all)
		return verb_usage(verb, "out of memory");
	all[0] = argv[0];
	memcpy(all + 1, entry->words, entry->nr_words * sizeof(*all));
	memcpy(all + 1 + entry->nr_words, argv + 1, (argc - 1) * sizeof(*all));
	json_object_put(up->words);
	*up = (struct up_options){ .words = json_object_new_array(), .restarts = -1 };
	optind = 0;
	status = up_parse(verb, argc + entry->nr_words, all, up);
	if (status == 0 && entry->place[0] && take_top(up, entry->place, &err))
		status = verb_usage(verb, "%s", err.msg);
	free(all);
	return status;
}

/* A chain that is known here has the options of its start; they are in its record. */
static bool is_known(const char *name)
{
	json_object *record = NULL;
	bool known = rundir_load(name, &record, NULL) || record;

	json_object_put(record);
	return known;
}

/* NAME alone: as its line in the table says, if it has one. */
static int look_up(const struct verb *verb, int argc, char **argv, struct up_options *up,
		   struct tab *table)
{
	const struct tab_entry *entry;
	struct qc_err err = { 0 };
	int ret;

	if (up->top[0] || up->where[0] || is_known(up->name))
		return 0;
	ret = tab_load(up->tab ? up->tab : TAB_PATH, up->name, table, &err);
	if (ret && (up->tab || ret != -ENOENT))
		return print_error(&err);
	if (table->nr_bad)
		return CTL_FAILED;
	entry = tab_find(table, up->name);
	return entry ? parse_with_entry(verb, argc, argv, entry, up) : 0;
}

/* ---- the record ------------------------------------------------------------------ */

/* Which life of which device: opaque, never 0. */
static u64 random_tag(void)
{
	u64 tag = 0;

	while (tag == 0) {
		if (getrandom(&tag, sizeof(tag), 0) != sizeof(tag))
			tag = 0;
	}
	return tag;
}

static json_object *make_record(const struct up_options *up)
{
	json_object *record = json_object_new_object();

	json_object_object_add(record, "name", json_object_new_string(up->name));
	json_object_object_add(record, "top", json_object_new_string(up->top));
	json_object_object_add(record, "options", json_object_get(up->words));
	json_object_object_add(record, "scan", json_object_new_boolean(up->scan));
	json_object_object_add(record, "ublk", json_object_new_boolean(!up->no_ublk));
	if (up->format)
		json_object_object_add(record, "format", json_object_new_string(up->format));
	if (up->nbd[0])
		json_object_object_add(record, "nbd", json_object_new_string(up->nbd));
	if (up->offload)
		offload_ask(record, up->targets);
	json_object_object_add(record, "activated", json_object_new_array());
	return record;
}

static bool record_flag(json_object *record, const char *key)
{
	json_object *value;

	return json_object_object_get_ex(record, key, &value) && json_object_get_boolean(value);
}

/* A new device, and with it a new life, for a chain that shall have one. */
static int record_device(json_object *record, struct qc_err *err)
{
	char text[24];
	s32 dev_id;
	int ret;

	if (!record_flag(record, "ublk"))
		return 0;
	ret = rundir_take_device(json_text(record, "name"), record_flag(record, "scan"), &dev_id,
				 err);
	if (ret)
		return ret;
	snprintf(text, sizeof(text), "%llu", (unsigned long long)random_tag());
	json_object_object_add(record, "dev-id", json_object_new_int(dev_id));
	json_object_object_add(record, "tag", json_object_new_string(text));
	return 0;
}

static void forget_device(json_object *record)
{
	s32 dev_id = json_number(record, "dev-id", -1);

	if (dev_id < 0)
		return;
	rundir_unlink_device(json_text(record, "name"), dev_id);
	rundir_drop_device(dev_id);
	json_object_object_del(record, "dev-id");
}

static json_object *record_activated(json_object *record)
{
	json_object *list;
	u32 nr;

	list = json_list(record, "activated", &nr);
	if (list)
		return list;
	list = json_object_new_array();
	json_object_object_add(record, "activated", list);
	return list;
}

/* ---- starting --------------------------------------------------------------------- */

/* What was said about restarts counts until something else is. */
static int record_restarts(const struct up_options *up, json_object *record, struct qc_err *err)
{
	u32 limit = up->restarts;
	int ret = 0;

	if (up->restarts < 0) {
		if (json_number(record, "restart-limit", -1) >= 0)
			return 0;
		ret = guard_default_limit(&limit, err);
	}
	if (ret == 0)
		json_object_object_add(record, "restart-limit", json_object_new_int(limit));
	return ret;
}

/* By a guard of its own or, after a death that one saw, by that one. */
static int start_daemon(const struct up_options *up, json_object *record, bool wait, bool recover,
			struct qc_err *err)
{
	int ret;

	if (up->by_guard)
		return spawn_daemon(record, wait, recover, err);
	ret = record_restarts(up, record, err);
	return ret ? ret : guard_spawn(record, wait, recover, err);
}

/* {count, reason, time} of the record: that there was a daemon before. */
static void note_restart(json_object *record, const char *reason)
{
	json_object *restarts = NULL, *before;

	json_object_object_get_ex(record, "restarts", &before);
	restarts = json_object_new_object();
	json_object_object_add(restarts, "count",
			       json_object_new_int64(json_number(before, "count", 0) + 1));
	json_object_object_add(restarts, "reason",
			       json_object_new_string(reason ? reason : "its end was not watched"));
	json_object_object_add(restarts, "time", json_object_new_int64(time(NULL)));
	json_object_object_add(record, "restarts", restarts);
}

/* What the daemon has become; the record learns its process. */
static int finish_start(const struct up_options *up, struct rundir *dir, json_object *record,
			struct served *result, struct qc_err *err)
{
	int ret = served_find(dir->name, result, err);

	if (ret)
		return ret;
	if (result->state != SERVED_LIVE && result->state != SERVED_MAPPED) {
		ret = served_not_live(result, err);
		served_exit(result);
		return ret;
	}
	if (json_number(record, "pid", 0))
		note_restart(record, up->reason);
	json_object_object_del(record, "pid");
	if (result->pid)
		json_object_object_add(record, "pid", json_object_new_int(result->pid));
	ret = rundir_save(dir, record, err);
	if (ret == 0 && result->pid)
		ret = rundir_save_pid(dir, result->pid, err);
	if (ret == 0 && offload_is_asked(record))
		ret = rundir_link_mapped(dir->name, err);
	else if (ret == 0 && result->dev_id >= 0)
		ret = rundir_link_device(dir->name, result->dev_id, err);
	if (ret)
		served_exit(result);
	else if (result->pid)
		grow_start(dir, record);
	return ret;
}

static bool is_read_only(json_object *record)
{
	u32 nr;
	json_object *words = json_list(record, "options", &nr);

	return nr && reads_only(words);
}

/*
 * Of Proxmox VE: the run record has the snapshots that names tell of. A record that an
 * interrupted verb had left is not needed any more.
 */
static int note_volume(struct record_top *top, const char *name, json_object *state,
		       struct qc_err *err)
{
	struct device_record *record = NULL;
	int ret = proxmox_find_record(&top->place, name, top->image, &record, err);

	if (ret || !record || !record->volume[0])
		return ret;
	ret = proxmox_release(&top->place, record, err);
	if (!ret)
		record_note(&top->place, record, top->path, state);
	return ret;
}

/* Of what a record calls the top it says the format, too. */
static int check_format(const struct up_options *up, const struct record_top *top,
			const struct device_record *record, struct qc_err *err)
{
	bool is_top = record && up->top[0] && !strcmp(record->top, top->image);

	if (!is_top || !up->format || record->raw == !strcmp(up->format, "raw"))
		return 0;
	return qc_err_set(err, -EINVAL, "%s: is %s, says the record of device %s, not %s; leave "
			  "--format out", top->path, record->raw ? "raw" : "qcow2", record->name,
			  up->format);
}

/* Its LVs made active, and what stands on it, or is to be known of it (rule D1). */
static int prepare_top(const struct up_options *up, struct record_top *top, json_object *record,
		       struct qc_err *err)
{
	int ret = record_top_choose(top, up->name, up->where, !is_read_only(record), err);
	const struct device_record *known;

	if (ret == 0 && top->has_place)
		ret = merging_check(&top->place, top->image, err);
	known = record_place_find(&top->place, up->name);
	if (ret == 0)
		ret = check_format(up, top, known, err);
	if (ret == 0) {
		record_note(&top->place, known, top->path, record);
		ret = activate_chain(top->path, record_activated(record), err);
	}
	if (ret == 0 && !is_read_only(record))
		ret = record_top_claim(top, up->name, up->assume_unshared, err);
	if (ret == 0 && top->has_place)
		ret = note_volume(top, up->name, record, err);
	return ret ? qc_err_prefix(err, "%s", up->name) : 0;
}

/* Its daemon, and its device; when the kernel needs one at all. */
static int start_export(const struct up_options *up, struct rundir *dir, json_object *record,
			bool wait, const struct offload *offload, struct qc_err *err)
{
	bool has_daemon = !offload || offload_needs_daemon(offload);
	struct served started;
	int ret = has_daemon ? record_device(record, err) : 0;

	if (ret == 0)
		ret = rundir_save(dir, record, err);
	if (ret == 0 && has_daemon)
		ret = start_daemon(up, record, wait, false, err);
	if (ret || !offload)
		return ret;
	ret = offload_load(offload, record, json_number(record, "dev-id", -1), err);
	if (ret == 0)
		return rundir_save(dir, record, err);
	if (has_daemon && served_find(dir->name, &started, NULL) == 0) {
		served_stop(&started, false, NULL);
		served_exit(&started);
	}
	return ret;
}

/*
 * Start a chain that has no device, for the first time or after the death of its
 * daemon, when @before is its record. A failure leaves all as it was.
 */
static int start_new(const struct up_options *up, struct rundir *dir, struct record_top *top,
		     json_object *record, json_object *before, struct served *result,
		     struct qc_err *err)
{
	struct offload *offload = NULL;
	int ret = prepare_top(up, top, record, err);

	if (ret == 0)
		ret = offload_plan(top->path, record, &offload, err);
	if (ret == 0)
		ret = start_export(up, dir, record, before != NULL, offload, err);
	offload_exit(offload);
	if (ret == 0)
		return finish_start(up, dir, record, result, err);
	record_top_unclaim(top, up->name);
	forget_device(record);
	if (before) {
		rundir_save(dir, before, NULL);
		return ret;
	}
	deactivate_chain(record_activated(record), NULL);
	rundir_remove(dir, NULL);
	return ret;
}

/* Take the device over; it keeps waiting when that fails. */
static int start_recovery(const struct up_options *up, struct rundir *dir, json_object *record,
			  struct served *result, struct qc_err *err)
{
	int ret;

	revert_settle_state(record);
	ret = activate_missing(json_text(record, "top"), record_activated(record), err);
	if (ret == 0)
		ret = start_daemon(up, record, true, true, err);
	return ret ? ret : finish_start(up, dir, record, result, err);
}

/* Whoever makes its LV larger was killed with who looks after it: that is made good. */
static bool start_grower(const struct rundir *dir, const struct served *live)
{
	if (live->state != SERVED_LIVE || !json_flag(live->record, "thin") ||
	    grow_process(dir->name))
		return false;
	grow_start(dir, live->record);
	fprintf(stderr, "qchainctl: %s: nobody made its LV larger any more, started again\n",
		dir->name);
	return true;
}

static int already_served(const struct served *served, struct qc_err *err)
{
	char device[256];

	if (served->state == SERVED_MAPPED)
		return qc_err_set(err, -EEXIST, "%s: mapped already as /dev/mapper/%s; see "
				  "qchainctl status %s, or take another name", served->name,
				  served->name, served->name);
	return qc_err_set(err, -EEXIST,
			  "%s: served already by process %d%s%s; see qchainctl status %s, or take "
			  "another name", served->name, (int)served->pid,
			  served_device(served, device)[0] ? " on " : "", device, served->name);
}

static int check_same_top(const struct up_options *up, const struct served *dead,
			  struct qc_err *err)
{
	if (!up->top[0] || strcmp(up->top, served_top(dead)) == 0)
		return 0;
	return qc_err_set(err, -EEXIST,
			  "%s: is the name of a chain whose daemon has ended (top %s), expected "
			  "another name; serve that one again with qchainctl up %s, or clear it "
			  "with qchainctl down %s", dead->name, served_top(dead), dead->name,
			  dead->name);
}

/* The top to start again with: that of the device record, else the one before. */
static void restart_top(struct record_top *top, const char *name, const char *before,
			bool read_only)
{
	struct record_place place;
	char image[RECORD_IMAGE_BYTES];
	struct device_record *record = NULL;
	struct qc_err err = { 0 };

	snprintf(top->path, sizeof(top->path), "%s", before);
	if (!read_only && record_place_of(before, &place, image, NULL) == 0)
		record = record_place_find(&place, name);
	if (record && (revert_settle(&place, record, NULL, &err) ||
		       proxmox_rename(&place, record, &err)))
		print_error(&err);
	if (record)
		record_place_path(&place, record->top, top->path, sizeof(top->path), NULL);
	if (!read_only)
		record_place_exit(&place);
}

/*
 * A chain without a device. What the device record says counts: an interrupted
 * snapshot may have moved the top. @before: the run record of a chain that died.
 */
static int up_start(const struct up_options *up, struct rundir *dir, json_object *record,
		    json_object *before, struct served *result, struct qc_err *err)
{
	struct record_top *top = calloc(1, sizeof(*top));
	const char *format = json_text(record, "format");
	int ret;

	if (!top)
		return qc_err_set(err, -ENOMEM, "%s: out of memory", up->name);
	snprintf(top->path, sizeof(top->path), "%s", up->top);
	top->raw = format && !strcmp(format, "raw");
	if (before && !up->top[0])
		restart_top(top, up->name, json_text(before, "top"), is_read_only(record));
	ret = start_new(up, dir, top, record, before, result, err);
	record_top_exit(top);
	free(top);
	return ret;
}

/*
 * After a death. A device that waits is taken over with the options of its
 * start; without one it is a new start, with new options where there are any.
 */
static int up_again(const struct up_options *up, struct rundir *dir, struct served *dead,
		    struct served *result, struct qc_err *err)
{
	json_object *record;
	int ret = check_same_top(up, dead, err);

	if (ret)
		return ret;
	if (!dead->record)
		return qc_err_set(err, -ENOENT, "%s: its daemon has ended and was not started by "
				  "qchainctl; remove %s and start it as before", dead->name,
				  dir->path);
	ret = proxmox_settle_served(dead, dir, err);
	if (ret)
		return ret;
	if (dead->state == SERVED_RECOVERABLE)
		return start_recovery(up, dir, dead->record, result, err);
	forget_device(dead->record);
	if (!up->top[0])
		return up_start(up, dir, dead->record, dead->record, result, err);
	record = make_record(up);
	json_object_object_add(record, "activated",
			       json_object_get(record_activated(dead->record)));
	ret = up_start(up, dir, record, dead->record, result, err);
	json_object_put(record);
	return ret;
}

static int up_fresh(const struct up_options *up, struct rundir *dir, struct served *result,
		    struct qc_err *err)
{
	json_object *record = make_record(up);
	int ret = up_start(up, dir, record, NULL, result, err);

	json_object_put(record);
	return ret;
}

/* *@how: what became of a chain whose daemon had ended, else NULL */
static int up_locked(const struct up_options *up, struct rundir *dir, struct served *result,
		     const char **how, struct qc_err *err)
{
	struct qc_err missing = { 0 };
	struct served before;
	int ret = served_find(up->name, &before, &missing);

	if (ret == -ENOENT)
		return up_fresh(up, dir, result, err);
	if (ret)
		return qc_err_set(err, ret, "%s", missing.msg);
	if (start_grower(dir, &before)) {
		*result = before;
		return 0;
	}
	if (before.state == SERVED_LIVE || before.state == SERVED_SILENT ||
	    before.state == SERVED_MAPPED) {
		ret = already_served(&before, err);
	} else {
		*how = before.state == SERVED_RECOVERABLE ? "recovered" : "started again";
		ret = up_again(up, dir, &before, result, err);
	}
	served_exit(&before);
	return ret;
}

/* ---- the verb ------------------------------------------------------------------------ */

static void print_result(const struct up_options *up, const struct served *served, const char *how)
{
	json_object *object;
	char device[256];

	if (up->json) {
		object = served_json(served);
		json_object_object_add(object, "recovered", json_object_new_boolean(how != NULL));
		print_json(object);
		return;
	}
	if (how)
		fprintf(stderr, "qchainctl: %s: its daemon had ended, %s\n", served->name, how);
	printf("%s\n", served_device(served, device));
}

/* A device that is gone was taken away by its daemon, which was asked to end. */
static bool has_died(const struct served *served)
{
	return served->state == SERVED_RECOVERABLE ||
	       (served->state == SERVED_DEAD && served->record && served->dev_id < 0);
}

/* With the chain locked; @err of what was there before is not of interest. */
static int bring_back(const struct up_options *up, struct rundir *dir, struct served *result,
		      struct qc_err *err)
{
	struct qc_err ignored = { 0 };
	struct served dead;
	int ret = served_find(up->name, &dead, &ignored);

	if (ret)
		return ret == -ENOENT ? -ESRCH : qc_err_set(err, ret, "%s", ignored.msg);
	if (dead.state == SERVED_LIVE) {
		result->pid = dead.pid;
		ret = -EALREADY;
	} else if (!has_died(&dead)) {
		ret = -ESRCH;
	} else {
		ret = up_again(up, dir, &dead, result, err);
		/* One that died again at once, for instance: that is no end, as those are. */
		if (ret == -ESRCH || ret == -EALREADY || ret == -EBUSY)
			ret = -EIO;
	}
	served_exit(&dead);
	return ret;
}

int up_anew(struct rundir *dir, const char *reason, struct served *result, struct qc_err *err)
{
	struct up_options up = { .name = dir->name, .reason = reason, .restarts = -1 };
	int ret = bring_back(&up, dir, result, err);

	if (ret == -EALREADY || ret == -ESRCH)
		return qc_err_set(err, ret, "%s: not taken over, %s; see qchainctl status %s",
				  dir->name, ret == -ESRCH ? "its device is gone" :
				  "somebody serves it", dir->name);
	if (ret == 0)
		job_recover(dir, dir->name);
	return ret;
}

int up_after_death(const char *name, const char *death, pid_t *pid, struct qc_err *err)
{
	struct up_options up = { .name = name, .by_guard = true, .reason = death,
				 .restarts = -1 };
	struct served served = { .dev_id = -1 };
	struct rundir dir = { .lock_fd = -1 };
	int ret = rundir_lock(name, false, &dir, err);

	if (ret)
		return ret == -ENOENT ? -ESRCH : ret;
	ret = bring_back(&up, &dir, &served, err);
	*pid = served.pid;
	if (ret == 0)
		job_recover(&dir, name);
	rundir_unlock(&dir);
	served_exit(&served);
	return ret;
}

static int up_run(const struct verb *verb, int argc, char **argv)
{
	struct up_options up = { .words = json_object_new_array(), .restarts = -1 };
	struct qc_err err = { 0 };
	struct served served = { .dev_id = -1 };
	struct rundir dir = { .lock_fd = -1 };
	struct tab table = { .nr = 0 };
	const char *how = NULL;
	int status = up_parse(verb, argc, argv, &up);

	if (status == 0 && up.all) {
		status = up_all(up.tab ? up.tab : TAB_PATH, up.boot, up.json);
		goto out;
	}
	if (status == 0)
		status = look_up(verb, argc, argv, &up, &table);
	if (status == 0)
		status = check_exports(verb, &up);
	if (status)
		goto out;
	if (rundir_lock(up.name, true, &dir, &err) ||
	    up_locked(&up, &dir, &served, &how, &err))
		status = print_error(&err);
	else
		print_result(&up, &served, how);
	if (!status && served.pid)
		job_recover(&dir, up.name);
	rundir_unlock(&dir);
	served_exit(&served);
out:
	tab_exit(&table);
	json_object_put(up.words);
	return status;
}

const struct verb verb_up = {
	.name = "up",
	.summary = "serve a chain as a block device, or recover it after a crash",
	.usage = "NAME [TOP|VG|DIR] [OPTION]... | --all [--tab FILE] [--boot] [--json]",
	.options =
		"  --read-only            serve it for reading only\n"
		"  --offload              with --read-only: plain data and zeroes by the kernel\n"
		"                         alone, as /dev/mapper/NAME; what is compressed, not\n"
		"                         aligned or in a file by a daemon, if there is such\n"
		"  --offload-targets N    of its table at most (131072, up to 1000000); the\n"
		"                         larger stretches count, the rest is the daemon's\n"
		"  --nbd SOCK             serve it on this NBD socket too; alone where\n"
		"                         the host has no ublk_drv\n"
		"  --no-ublk              no block device, only --nbd\n"
		"  --scan                 let the host read what is on it: partitions, LVM, md\n"
		"  --allow-backing DIR    follow backing references into DIR too, repeatable\n"
		"  --allow-data-file      follow a reference to an external data file\n"
		"  --snapshot SNAP        show an internal snapshot of TOP, read-only\n"
		"  --format FORMAT        of TOP: qcow2 (default) or raw; then the record\n"
		"                         has it\n"
		"  --backing-format F     where an image does not say that of its backing\n"
		"  --cache-size SIZE      memory for the map\n"
		"  --warm on|off          load the map before it is asked for (on)\n"
		"  --on-full wait|fail    when the volume is full: writes wait (default) or fail\n"
		"  --assume-unshared      the first time: what cannot be looked at (see below)\n"
		"                         does not stand on TOP\n"
		"  --restarts N           when its daemon dies start it again, at most N times in\n"
		"                         a minute (10); 0: never\n"
		"  --wait                 wait while a dead process's I/O holds an image\n"
		"  --all                  every device of the table that is not up yet, with a\n"
		"                         line for each; 1 if one has failed, the others are up\n"
		"  --tab FILE             the table, instead of /etc/qchaintab: see qchaintab(5)\n"
		"  --boot                 with --all: only lines with the option boot\n"
		"  --json                 one object: name, device, state, top, size, exports,\n"
		"                         recovered\n"
		"\n"
		"The first time a record of the device is made, in tags of the LV or in the file\n"
		"NAME.qchain beside TOP: it says which image is the top. From then on NAME\n"
		"alone, or with the VG or directory, is enough. What a record calls sealed, or\n"
		"another image of the VG or directory has as its backing, is served with\n"
		"--read-only only.\n",
	.examples =
		"  qchainctl up vm7 vg/vm-7-disk-0.qcow2      then use /dev/qchain/vm7\n"
		"  qchainctl up vm7                           after its daemon has ended, or down\n"
		"  qchainctl up web /srv/web                  files: the directory\n"
		"  qchainctl up gold vg/gold --read-only --offload\n"
		"  qchainctl up --all                         what stands in /etc/qchaintab\n"
		"  qchainctl up old ./disk.qcow2 --read-only --no-ublk --nbd /run/old.sock\n",
	.run = up_run,
};
