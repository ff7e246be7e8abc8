// SPDX-License-Identifier: GPL-2.0-or-later
/* Thin LVs of a chain that is served: how far they are filled, and lvextend beside the I/O. */
#include "grow.h"

#include "clock.h"
#include "image/offline.h"
#include "lv-names.h"
#include "thin.h"

#include <errno.h>
#include <qchain/crash-point.h>
#include <qchain/log.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/*
 * Nothing here depends on an event: an event only says that it is time to look. Arming comes
 * before looking (promise T1), because a threshold that was passed before it was armed makes no
 * event until the next allocation, and a full volume has none.
 */

#define LOOK_MS 1000
#define FIRST_PAUSE_NS 100000000ull
#define MAX_PAUSE_NS 10000000000ull
#define NS_PER_MS 1000000ull

/* struct filling - what the daemon says of a volume now */
struct filling {
	const char *node;
	const char *file;
	const char *growth; /* NULL: nobody writes to it, or not for long */
	s64 writer;
	u64 virtual_size;
	u64 bytes; /* of the volume */
	u64 end; /* of what was allocated since the daemon began; 0: nothing */
	u64 threshold;
	bool full;
};

/* ---- talking ------------------------------------------------------------------------- */

static int arm(struct client *client, const struct grow_volume *v, u64 threshold,
	       struct qc_err *err)
{
	json_object *arguments = json_object_new_object();

	json_add_string(arguments, "node-name", v->node);
	json_add_u64(arguments, "write-threshold", threshold);
	return client_command(client, "block-set-write-threshold", arguments, false, NULL, err);
}

static int tell(struct client *client, const struct grow_volume *v, const char *reason,
		struct qc_err *err)
{
	json_object *arguments = json_object_new_object();

	json_add_string(arguments, "node-name", v->node);
	json_add_string(arguments, "state", reason ? "stuck" : "grows");
	if (reason)
		json_add_string(arguments, "reason", reason);
	return client_command(client, "qchain-volume-growth", arguments, false, NULL, err);
}

static void read_filling(json_object *node, struct filling *f)
{
	const char *state = json_text(node, "state");
	json_object *image = NULL;

	json_object_object_get_ex(node, "image", &image);
	*f = (struct filling){
		.node = json_text(node, "node-name"),
		.file = json_text(node, "file"),
		.writer = json_number(node, "qchain-writer", 0),
		.virtual_size = json_number(image, "virtual-size", 0),
		.bytes = json_number(image, "actual-size", 0),
		.end = json_number(node, "qchain-allocated-end", 0),
		.threshold = json_number(node, "write_threshold", 0),
		.full = json_flag(node, "qchain-full"),
	};
	if (f->node && f->file && state && strcmp(state, "sealing"))
		f->growth = json_text(node, "qchain-growth");
}

/* ---- which LV ------------------------------------------------------------------------- */

static int read_thick(struct grow_volume *v, const struct filling *f, struct qc_err *err)
{
	const struct offline_options look = { .format = IMAGE_QCOW2, .force_share = true };
	struct image *img;
	int ret = offline_open_image(f->file, &look, false, 0, &img, err);

	if (ret)
		return ret;
	v->thick = offline_thick_bytes(img, f->virtual_size);
	v->virtual_size = f->virtual_size;
	image_close(img);
	return 0;
}

/* A layer that was not written to before: is its LV thin? */
static int meet(struct grow_volume *v, const struct filling *f, struct qc_err *err)
{
	struct lvm_lv *lv;
	int ret;

	*v = (struct grow_volume){ .writer = f->writer, .base_ns = now_ns() };
	snprintf(v->node, sizeof(v->node), "%s", f->node);
	if (!lv_path_find(f->file, v->vg, v->lv))
		return 0;
	ret = lvm_find(v->vg, v->lv, &lv, err);
	if (ret) {
		v->node[0] = 0;
		return ret;
	}
	v->least = thin_chunk(lv);
	v->chunk = v->least;
	free(lv);
	return 0;
}

/* *@result: NULL: nothing to do about this layer. */
static int find_volume(struct grow_volumes *volumes, const struct filling *f,
		       struct grow_volume **result, struct qc_err *err)
{
	struct grow_volume *v;
	int ret = 0;
	u32 i;

	for (i = 0; i < volumes->nr && strcmp(volumes->all[i].node, f->node); i++)
		;
	v = &volumes->all[i % GROW_VOLUMES];
	volumes->nr = max(volumes->nr, min(i + 1, GROW_VOLUMES));
	if (strcmp(v->node, f->node) || v->writer != f->writer)
		ret = meet(v, f, err);
	if (!ret && v->chunk && v->virtual_size != f->virtual_size)
		ret = read_thick(v, f, err);
	*result = ret || !v->chunk ? NULL : v;
	return ret;
}

/* Tried again at the next look. */
static struct grow_volume *known_volume(struct grow_volumes *volumes, const struct filling *f)
{
	struct qc_err err = { 0 };
	struct grow_volume *v;
	bool failed = find_volume(volumes, f, &v, &err);

	if (failed && !volumes->complained)
		log_warn("qchain-grow: %s: not known whether it is thin: %s", f->file, err.msg);
	volumes->complained = failed;
	return v;
}

/* ---- growing ------------------------------------------------------------------------------ */

/* Not now: said once, by the daemon too, and tried again after a pause that doubles. */
static int rest(struct client *client, struct grow_volume *v, const char *reason,
		struct qc_err *err)
{
	v->pause_ns = v->pause_ns ? min(2 * v->pause_ns, MAX_PAUSE_NS) : FIRST_PAUSE_NS;
	v->retry_ns = now_ns() + v->pause_ns;
	return tell(client, v, reason, err);
}

/* It took since @start_ns; the next chunk follows from that and from what was written. */
static void grown(struct grow_volume *v, u64 vg_free, u64 end, u64 start_ns)
{
	u64 now = now_ns(), written = v->base_end && end > v->base_end ? end - v->base_end : 0;

	v->chunk = lvm_thin_chunk(v->least, vg_free, written, start_ns - v->base_ns,
				  now - start_ns);
	v->base_end = end;
	v->base_ns = start_ns;
	v->pause_ns = 0;
	v->retry_ns = 0;
}

/*
 * By a chunk, or by what the VG has. @known: as long as the daemon knows it. If it is longer,
 * who has extended it was killed before it could tell. @bytes: what it has, at least.
 */
static int extend(const struct grow_volume *v, const struct lvm_lv *lv, u64 known, u64 *bytes,
		  struct qc_err *err)
{
	u64 wanted = min(lv->size_bytes + v->chunk, v->thick);
	u64 room = lv->size_bytes + lv->vg_free_bytes;
	int ret;

	*bytes = lv->size_bytes;
	if (lv->size_bytes > known && v->told_bytes >= lv->size_bytes)
		return qc_err_set(err, -EAGAIN, "%s/%s: has %llu bytes, its device only %llu; see "
				  "lvchange --refresh", v->vg, v->lv,
				  (unsigned long long)lv->size_bytes, (unsigned long long)known);
	if (lv->size_bytes > known || wanted <= lv->size_bytes)
		return 0;
	if (!lv->vg_free_bytes)
		return qc_err_set(err, -ENOSPC, "VG %s has no free extent; give it a PV (vgextend) "
				  "or remove what is not needed", v->vg);
	*bytes = min(wanted, room);
	crash_point("thin.unextended");
	ret = lvm_extend_known(lv, *bytes, err);
	crash_point("thin.extended");
	return ret;
}

static int make_larger(struct client *client, struct grow_volume *v, const struct filling *f,
		       struct qc_err *err)
{
	u64 start_ns = now_ns(), bytes = 0, vg_free = 0;
	struct qc_err why = { 0 };
	struct lvm_lv *lv = NULL;
	int ret;

	if (start_ns < v->retry_ns)
		return 0;
	ret = lvm_find(v->vg, v->lv, &lv, &why);
	if (!ret) {
		vg_free = lv->vg_free_bytes;
		ret = extend(v, lv, f->bytes, &bytes, &why);
	}
	free(lv);
	if (ret)
		return rest(client, v, why.msg, err);
	v->told_bytes = bytes;
	grown(v, vg_free, f->end, start_ns);
	ret = arm(client, v, lvm_thin_watermark(bytes, v->chunk), err);
	if (!ret)
		ret = tell(client, v, NULL, err);
	crash_point("thin.told");
	return ret;
}

/* *@again: something has changed, look once more. */
static int look_at(struct client *client, struct grow_volume *v, const struct filling *f,
		   bool *again, struct qc_err *err)
{
	bool thick = f->bytes >= v->thick;
	u64 watermark = thick ? 0 : lvm_thin_watermark(f->bytes, v->chunk);
	int ret = 0;

	if (f->threshold != watermark && !(f->threshold == 0 && f->end > watermark)) {
		*again = true;
		ret = arm(client, v, watermark, err);
	}
	if (!ret && f->growth && !strcmp(f->growth, "fixed"))
		ret = tell(client, v, NULL, err);
	if (ret || thick || !(f->full || f->end > watermark))
		return ret;
	*again = v->retry_ns <= now_ns();
	return make_larger(client, v, f, err);
}

/* ---- all of them ------------------------------------------------------------------ */

static int look_at_nodes(struct grow_volumes *volumes, struct client *client, json_object *nodes,
			 bool *again, struct qc_err *err)
{
	struct grow_volume *v;
	struct filling f;
	int ret = 0;

	for (size_t i = 0; i < json_object_array_length(nodes) && !ret; i++) {
		read_filling(json_object_array_get_idx(nodes, i), &f);
		v = f.growth ? known_volume(volumes, &f) : NULL;
		if (v)
			ret = look_at(client, v, &f, again, err);
	}
	shrink_look(&volumes->shrinker, client, nodes, volumes->lock_fd);
	/* a layer that is not written to any more knows of no threshold */
	return ret == -EPROTO ? 0 : ret;
}

/* The soonest retry counts, or a look without an event: a layer may have become active. */
static int next_look(const struct grow_volumes *volumes)
{
	u64 now = now_ns(), least = LOOK_MS * NS_PER_MS;

	for (u32 i = 0; i < volumes->nr; i++)
		if (volumes->all[i].retry_ns > now)
			least = min(least, volumes->all[i].retry_ns - now);
	return least / NS_PER_MS + 1;
}

int grow_look(struct grow_volumes *volumes, struct client *client, int *next_ms,
	      struct qc_err *err)
{
	json_object *nodes;
	bool again;
	int ret;

	do {
		again = false;
		ret = client_command(client, "query-named-block-nodes", NULL, false, &nodes, err);
		if (ret)
			return ret;
		ret = look_at_nodes(volumes, client, nodes, &again, err);
		json_object_put(nodes);
	} while (!ret && again);
	*next_ms = next_look(volumes);
	return ret;
}
