// SPDX-License-Identifier: GPL-2.0-or-later
/* qchainctl up --offload: extents to a table, and the device that is made of it. */
#include "offload.h"

#include "clock.h"
#include "image/reader.h"

#include <errno.h>
#include <qchain/chain.h>
#include <qchain/mapped.h>
#include <qchain/parse.h>
#include <qchain/transport.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

/*
 *	read the map of the chain, with a reader's locks on every layer
 *	start the daemon, when something is left for it
 *	load the table: the kernel claims what it stands on
 *	let go of the locks
 *
 * Whoever wants to write to a layer looks at what holds it after taking the image locks
 * (rule A2): it finds either the locks or the table.
 */
struct offload {
	struct chain *chain;
	struct mapped_table table;
	dev_t *devices; /* by depth */
};

static json_object *offload_of(json_object *record)
{
	json_object *offload;

	if (!record || !json_object_object_get_ex(record, "offload", &offload))
		return NULL;
	return offload;
}

int offload_take_targets(const char *text, u32 *result, struct qc_err *err)
{
	u64 value;
	int ret = parse_number("--offload-targets", text, 1, MAPPED_MAX_TARGETS, &value, err);

	if (ret == 0)
		*result = value;
	return ret;
}

void offload_ask(json_object *record, u32 limit)
{
	json_object *offload = json_object_new_object();

	json_object_object_add(offload, "limit",
			       json_object_new_int64(limit ? limit : MAPPED_DEFAULT_TARGETS));
	json_object_object_add(record, "offload", offload);
}

bool offload_is_asked(json_object *record)
{
	return offload_of(record) != NULL;
}

bool offload_is_whole(json_object *record)
{
	return json_number(offload_of(record), "rest", -1) == 0;
}

s64 offload_size(json_object *record)
{
	return json_number(offload_of(record), "size", -1);
}

json_object *offload_layers(json_object *record)
{
	u32 nr;

	return json_list(offload_of(record), "layers", &nr);
}

const char *offload_text(json_object *record, char *text)
{
	json_object *offload = offload_of(record);
	char linear[32], zero[32], rest[32];

	snprintf(text, 160, "%lld targets: %s linear, %s zero, %s by the daemon",
		 (long long)json_number(offload, "targets", 0),
		 print_size(json_number(offload, "linear", 0), linear),
		 print_size(json_number(offload, "zero", 0), zero),
		 print_size(json_number(offload, "rest", 0), rest));
	return text;
}

/* ---- the chain -------------------------------------------------------------------- */

/* What the words of the record say about opening it. */
static int take_words(json_object *record, char **allow_dirs, struct chain_open_options *options,
		      struct qc_err *err)
{
	u32 nr, nr_dirs = 0;
	json_object *words = json_list(record, "options", &nr);
	const char *word, *value;

	for (u32 i = 0; i < nr; i++) {
		word = json_object_get_string(json_object_array_get_idx(words, i));
		value = json_object_get_string(json_object_array_get_idx(words, i + 1));
		if (!strcmp(word, "--snapshot"))
			return qc_err_set(err, -EINVAL, "--offload: not with --snapshot, expected "
					  "a whole image");
		if (!strcmp(word, "--allow-backing"))
			allow_dirs[nr_dirs++] = (char *)value;
		else if (!strcmp(word, "--backing-format"))
			options->policy.backing_format = value;
		else if (!strcmp(word, "--allow-data-file"))
			options->policy.allow_data_file = true;
		else if (!strcmp(word, "--format") &&
			 image_format_parse(value, &options->top_format))
			return qc_err_set(err, -EINVAL, "--format: format not known (%s), expected "
					  "qcow2 or raw", value);
	}
	return 0;
}

static int open_chain(const char *top, json_object *record, struct chain **result,
		      struct qc_err *err)
{
	struct chain_open_options options = { .top_format = IMAGE_QCOW2, .read_only = true };
	u32 nr;
	int ret;

	json_list(record, "options", &nr);
	options.policy.allow_dirs = calloc(nr + 1, sizeof(char *));
	if (!options.policy.allow_dirs)
		return qc_err_set(err, -ENOMEM, "%s: out of memory", top);
	ret = take_words(record, options.policy.allow_dirs, &options, err);
	if (!ret)
		ret = chain_open(top, &options, result, err);
	free(options.policy.allow_dirs);
	return ret;
}

static int find_devices(struct offload *offload, struct qc_err *err)
{
	const struct chain *chain = offload->chain;
	struct io_dev *dev;
	struct stat st;

	offload->devices = calloc(chain->nr_layers, sizeof(*offload->devices));
	if (!offload->devices)
		return qc_err_set(err, -ENOMEM, "out of memory");
	for (u32 i = 0; i < chain->nr_layers; i++) {
		dev = image_data_dev(chain->layers[i].img);
		if (!dev->blockdev)
			continue;
		if (fstat(dev->fd, &st))
			return qc_err_set(err, -errno, "%s: not looked at (%m)", dev->path);
		offload->devices[i] = st.st_rdev;
	}
	return 0;
}

/* ---- the table -------------------------------------------------------------------- */

static struct mapped_row row_of(const struct offload *offload, const struct run *run)
{
	struct mapped_row row = { .kind = MAPPED_REST, .bytes = run->bytes };
	const struct io_dev *dev;

	if (run->zero || run->kind == CLUSTER_UNALLOCATED) {
		row.kind = MAPPED_ZERO;
	} else if (run->kind == CLUSTER_DATA && offload->devices[run->layer]) {
		dev = image_data_dev(offload->chain->layers[run->layer].img);
		if (run->bytes > io_dev_bytes(dev) || run->host > io_dev_bytes(dev) - run->bytes)
			return row;
		row.kind = MAPPED_LINEAR;
		row.device = run->layer;
		row.offset = run->host;
	}
	return row;
}

static int walk(struct offload *offload, struct reader *reader, struct qc_err *err)
{
	u64 end = offload->chain->virtual_size;
	struct mapped_row row;
	struct run run;
	int ret = 0;

	for (u64 at = 0; at < end && !ret; at += run.bytes) {
		ret = reader_run(reader, at, end - at, &run, err);
		if (ret)
			return ret;
		row = row_of(offload, &run);
		ret = mapped_table_add(&offload->table, &row);
	}
	return ret ? qc_err_set(err, ret, "no memory for the table") : 0;
}

static int make_table(struct offload *offload, u32 limit, struct qc_err *err)
{
	u32 align = chain_block_bytes(offload->chain);
	struct reader *reader;
	int ret = reader_open(offload->chain, &reader, err);

	if (ret)
		return ret;
	ret = walk(offload, reader, err);
	reader_close(reader);
	if (ret)
		return ret;
	if (!IS_ALIGNED(offload->chain->virtual_size, align))
		return qc_err_set(err, -EINVAL, "--offload: the size of %s is %llu bytes, must be "
				  "a multiple of the blocks of its volumes, %u bytes",
				  offload->chain->layers[0].path,
				  (unsigned long long)offload->chain->virtual_size, align);
	ret = mapped_table_align(&offload->table, align);
	if (!ret)
		ret = mapped_table_limit(&offload->table, limit);
	return ret ? qc_err_set(err, ret, "no memory for the table") : 0;
}

/* What is left needs a daemon; is that possible here? */
static int check_rest(const struct offload *offload, struct qc_err *err)
{
	const struct chain *chain = offload->chain;
	const char *why = "";

	if (!offload_needs_daemon(offload) || access("/dev/ublk-control", F_OK) == 0)
		return 0;
	for (u32 i = 0; i < chain->nr_layers; i++)
		if (!offload->devices[i])
			why = chain->layers[i].path;
	return qc_err_set(err, -EOPNOTSUPP, "%s: %llu bytes cannot be mapped by the kernel "
			  "(%s%s), must have a ublk device; load ublk_drv, or serve it by --nbd "
			  "without --offload", chain->layers[0].path,
			  (unsigned long long)mapped_table_bytes(&offload->table, MAPPED_REST),
			  *why ? "not on a block device: " : "compressed, not aligned, or too many "
			  "targets", why);
}

int offload_plan(const char *top, json_object *record, struct offload **result,
		 struct qc_err *err)
{
	u32 limit = json_number(offload_of(record), "limit", MAPPED_DEFAULT_TARGETS);
	struct offload *offload;
	int ret;

	*result = NULL;
	if (!offload_is_asked(record))
		return 0;
	offload = calloc(1, sizeof(*offload));
	if (!offload)
		return qc_err_set(err, -ENOMEM, "%s: out of memory", top);
	ret = open_chain(top, record, &offload->chain, err);
	if (!ret)
		ret = find_devices(offload, err);
	if (!ret)
		ret = make_table(offload, limit, err);
	if (!ret)
		ret = check_rest(offload, err);
	if (ret)
		offload_exit(offload);
	else
		*result = offload;
	return ret;
}

bool offload_needs_daemon(const struct offload *offload)
{
	return mapped_table_bytes(&offload->table, MAPPED_REST) > 0;
}

void offload_exit(struct offload *offload)
{
	if (!offload)
		return;
	mapped_table_exit(&offload->table);
	free(offload->devices);
	if (offload->chain)
		chain_close(offload->chain);
	free(offload);
}

/* ---- the device ------------------------------------------------------------------- */

static json_object *layer_json(const struct chain_layer *layer)
{
	json_object *object = json_object_new_object(), *image = json_object_new_object();

	json_object_object_add(image, "virtual-size",
			       json_object_new_uint64(layer->img->virtual_size));
	json_object_object_add(image, "actual-size",
			       json_object_new_uint64(io_dev_bytes(layer->img->dev)));
	json_object_object_add(object, "node-name", json_object_new_string(layer->node_name));
	json_object_object_add(object, "file", json_object_new_string(layer->path));
	json_object_object_add(object, "image", image);
	return object;
}

static void note(const struct offload *offload, json_object *record, u64 load_ns)
{
	const struct mapped_table *table = &offload->table;
	json_object *object = offload_of(record), *layers = json_object_new_array();

	for (u32 i = 0; i < offload->chain->nr_layers; i++)
		json_object_array_add(layers, layer_json(&offload->chain->layers[i]));
	json_object_object_add(object, "size",
			       json_object_new_uint64(offload->chain->virtual_size));
	json_object_object_add(object, "targets", json_object_new_int64(table->nr));
	json_object_object_add(object, "linear", json_object_new_uint64(
			       mapped_table_bytes(table, MAPPED_LINEAR)));
	json_object_object_add(object, "zero", json_object_new_uint64(
			       mapped_table_bytes(table, MAPPED_ZERO)));
	json_object_object_add(object, "rest", json_object_new_uint64(
			       mapped_table_bytes(table, MAPPED_REST)));
	json_object_object_add(object, "load-us", json_object_new_uint64(load_ns / 1000));
	json_object_object_add(object, "layers", layers);
}

int offload_load(const struct offload *offload, json_object *record, s32 dev_id,
		 struct qc_err *err)
{
	char path[64];
	struct stat st = { .st_rdev = 0 };
	u64 start_ns;
	int ret;

	snprintf(path, sizeof(path), "/dev/ublkb%d", dev_id);
	if (offload_needs_daemon(offload) && stat(path, &st))
		return qc_err_set(err, -errno, "%s: device of the rest not found (%m)", path);
	start_ns = now_ns();
	ret = mapped_create(json_text(record, "name"), &offload->table, offload->devices,
			    st.st_rdev, json_flag(record, "scan"), err);
	if (!ret)
		note(offload, record, now_ns() - start_ns);
	return ret;
}

/* Its number alone: dm-3. */
static int busy(const char *name, dev_t rdev, struct qc_err *err)
{
	char who[512], node[32];

	snprintf(node, sizeof(node), "dm-%u", minor(rdev));
	if (!block_users_find(node, who, sizeof(who)))
		snprintf(who, sizeof(who), "by whom is not known");
	return qc_err_set(err, -EBUSY, "%s: /dev/mapper/%s is in use (%s), must be unused to end "
			  "it; close it, or qchainctl down %s --deferred", name, name, who, name);
}

int offload_remove(const char *name, bool deferred, bool *waits, struct qc_err *err)
{
	struct mapped_device device;
	struct qc_err why = { 0 };
	int ret = mapped_find(name, &device, &why);

	*waits = false;
	if (ret == -ENOENT)
		return 0;
	if (!ret)
		ret = mapped_remove(name, deferred, &why);
	if (ret == -EBUSY)
		return busy(name, device.rdev, err);
	if (ret)
		return qc_err_set(err, ret, "%s", why.msg);
	*waits = deferred && mapped_find(name, &device, &why) == 0;
	return 0;
}
