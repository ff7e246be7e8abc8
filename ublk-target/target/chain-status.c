// SPDX-License-Identifier: GPL-2.0-or-later
/* What `status` and the QMP queries show of a chain. */
#include "chain-private.h"
#include "target-private.h"

#include <qchain/online.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

/*
 * Keys of the result: "nodes" (query-named-block-nodes); our own: "metadata"
 * (counters), "grace", "queues" (those whose writes wait for space), "leak-scan",
 * "growth" (of a volume that somebody makes larger), "warming", "intent-log".
 */

static json_object *str(const char *s)
{
	return json_object_new_string(s);
}

static json_object *num(u64 n)
{
	return json_object_new_int64(n);
}

/* A volume's size; of a file what it takes on its file system, holes left out. */
static u64 space_taken(const struct io_dev *dev)
{
	struct stat st;

	if (dev->blockdev || fstat(dev->fd, &st))
		return io_dev_bytes(dev);
	return (u64)st.st_blocks * 512;
}

static json_object *image_json(const struct chain_layer *l, const char *path)
{
	json_object *o = json_object_new_object();

	json_object_object_add(o, "filename", str(path));
	json_object_object_add(o, "format", str(image_format_name(l->img->format)));
	json_object_object_add(o, "virtual-size", num(l->img->virtual_size));
	json_object_object_add(o, "actual-size", num(space_taken(l->img->dev)));
	if (l->img->format == IMAGE_QCOW2)
		json_object_object_add(o, "cluster-size", num(image_cluster_bytes(l->img)));
	json_object_object_add(o, "dirty-flag", json_object_new_boolean(false));
	if (l->img->backing_name)
		json_object_object_add(o, "backing-filename", str(l->img->backing_name));
	if (l->img->backing_format)
		json_object_object_add(o, "backing-filename-format", str(l->img->backing_format));
	return o;
}

/* What its descriptor is open on, whatever that is called now: as stat() has it. */
static json_object *ident_json(const struct io_dev *dev)
{
	struct stat st = { 0 };
	char text[48];

	if (fstat(dev->fd, &st) == 0 && S_ISBLK(st.st_mode))
		snprintf(text, sizeof(text), "%llu", (unsigned long long)st.st_rdev);
	else
		snprintf(text, sizeof(text), "%llu:%llu", (unsigned long long)st.st_dev,
			 (unsigned long long)st.st_ino);
	return str(text);
}

static const char *layer_state(const struct chain_target *ct, const struct image *img, u32 depth)
{
	const struct layer_table *t = ct->map.table;
	const struct writer *w;

	if (t->by_id[t->order[depth]]->merging)
		return "merging";
	cds_list_for_each_entry(w, &ct->closing, node)
		if (w->img == img)
			return "sealing";
	return depth ? "sealed" : "active";
}

/* Of what is only read nobody counts on the size; the volume may have been made smaller. */
static void look_at_size(const struct chain_target *ct, u32 depth)
{
	const struct layer_table *t = ct->map.table;
	const struct image *img = ct->chain->layers[depth].img;

	if (img->format == IMAGE_QCOW2 && !t->by_id[t->order[depth]]->writer)
		img->dev->ops->refresh_size(img->dev);
}

static json_object *node_json(const struct chain_target *ct, u32 depth)
{
	const struct chain_layer *l = &ct->chain->layers[depth];
	const char *path = chain_layer_path(ct, depth);
	json_object *o = json_object_new_object();

	look_at_size(ct, depth);
	json_object_object_add(o, "node-name", str(l->node_name));
	json_object_object_add(o, "drv", str(image_format_name(l->img->format)));
	json_object_object_add(o, "file", str(path));
	json_object_object_add(o, "ro", json_object_new_boolean(depth || ct->chain->read_only));
	json_object_object_add(o, "backing_file_depth", num(ct->chain->nr_layers - 1 - depth));
	if (depth + 1 < ct->chain->nr_layers)
		json_object_object_add(o, "backing_file",
				       str(chain_layer_path(ct, depth + 1)));
	json_object_object_add(o, "image", image_json(l, path));
	chain_add_volume(ct, l->node_name, o);
	json_object_object_add(o, "state", str(layer_state(ct, l->img, depth)));
	json_object_object_add(o, "qchain-ident", ident_json(l->img->dev));
	return o;
}

struct status_call {
	struct chain_target *ct;
	json_object *result;
};

static json_object *metadata_json(struct chain_target *ct)
{
	json_object *o = json_object_new_object();
	const struct writer *w = ct->active;
	struct meta_stats stats = { 0 };

	if (w && w->meta)
		meta_get_stats(w->meta, &stats);
	json_object_object_add(o, "map-bytes", num(ct->map.used_bytes));
	json_object_object_add(o, "map-budget-bytes", num(ct->map.budget_bytes));
	json_object_object_add(o, "windows-loaded", num(ct->map.nr_loaded));
	json_object_object_add(o, "extents", num(ct->map.nr_extents));
	json_object_object_add(o, "layers", num(ct->chain->nr_layers));
	json_object_object_add(o, "folds", num(ct->stat_loads));
	json_object_object_add(o, "deferred", num(ct->stat_deferred));
	json_object_object_add(o, "slow-reads", num(ct->stat_slow_reads));
	json_object_object_add(o, "clusters-allocated", num(w ? w->stat_allocated : 0));
	json_object_object_add(o, "commits", num(stats.commits));
	json_object_object_add(o, "metadata-flushes", num(stats.flushes));
	json_object_object_add(o, "metadata-writes", num(stats.block_writes));
	json_object_object_add(o, "to-reclaim", num(w ? w->nr_reclaims : 0));
	json_object_object_add(o, "operations", num(w ? w->nr_ops : 0));
	json_object_object_add(o, "full", json_object_new_boolean(w && w->full));
	json_object_object_add(o, "failed", json_object_new_boolean(w && w->failed));
	json_object_object_add(o, "loads", num(ct->nr_loads));
	json_object_object_add(o, "bounce-bytes", num(ct->bounce_bytes));
	return o;
}

static void add_loop_name(const struct loop *loop, void *arg)
{
	json_object_array_add(arg, str(loop->name));
}

/* The round of grace that runs: since when, and which loops have old I/O (rule C2). */
static json_object *grace_json(const struct chain_target *ct)
{
	json_object *o = json_object_new_object(), *loops = json_object_new_array();
	const struct grace *grace = &ct->grace;

	grace_owing(grace, add_loop_name, loops);
	json_object_object_add(o, "waiting", json_object_new_boolean(grace->running));
	if (grace->running)
		json_object_object_add(o, "since-ms",
				       num((loop_now_ns(ct->loop) - grace->since_ns) / 1000000));
	json_object_object_add(o, "loops", loops);
	return o;
}

/* Acknowledged changes of mapping that are not linked yet, and the room for them. */
static json_object *log_json(const struct intent_log *log)
{
	json_object *o = json_object_new_object();

	json_object_object_add(o, "entries", num(intent_log_used(log)));
	json_object_object_add(o, "room", num(intent_log_size(log)));
	return o;
}

static void status_run(struct loop *loop, void *arg)
{
	struct status_call *call = arg;
	struct chain_target *ct = call->ct;
	json_object *nodes = json_object_new_array();
	u32 i;

	for (i = 0; i < ct->chain->nr_layers; i++)
		json_object_array_add(nodes, node_json(ct, i));
	json_object_object_add(call->result, "nodes", nodes);
	json_object_object_add(call->result, "metadata", metadata_json(ct));
	json_object_object_add(call->result, "grace", grace_json(ct));
	json_object_object_add(call->result, "queues", queues_json(ct));
	if (ct->active && ct->active->meta)
		json_object_object_add(call->result, "leak-scan", scan_json(ct->active));
	if (ct->active && ct->active->growth != VOLUME_FIXED)
		json_object_object_add(call->result, "growth", writer_growth_json(ct->active));
	if (ct->log)
		json_object_object_add(call->result, "intent-log", log_json(ct->log));
	json_object_object_add(call->result, "warming", chain_warm_json(ct));
	json_object_object_add(call->result, "status",
			       str(ct->active && ct->active->full ? "io-error" : "running"));
}

struct name_call {
	const struct chain *chain;
	const char *name;
	bool found;
};

static void find_name(struct loop *loop, void *arg)
{
	struct name_call *call = arg;
	u32 i;

	for (i = 0; i < call->chain->nr_layers && !call->found; i++)
		call->found = !strcmp(call->chain->layers[i].node_name, call->name);
}

bool chain_has_node(struct target *ti, const char *name)
{
	struct chain_target *ct = ti->private;
	struct name_call call = { .name = name };

	if (ti->type != &target_chain)
		return false;
	call.chain = ct->chain;
	loop_call(ct->loop, find_name, &call);
	return call.found;
}

void chain_status(struct target *ti, json_object *result)
{
	struct status_call call = { ti->private, result };

	loop_call(call.ct->loop, status_run, &call);
}
