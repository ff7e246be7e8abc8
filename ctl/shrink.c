// SPDX-License-Identifier: GPL-2.0-or-later
/* The LV of a sealed layer ends after its last used cluster. */
#include "shrink.h"

#include "clock.h"
#include "image/offline.h"
#include "lv-names.h"
#include "manager.h"
#include "thin.h"

#include <errno.h>
#include <qchain/crash-point.h>
#include <qchain/log.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <uapi/qcow2.h>
#include <unistd.h>

/*
 * Two locks. That of the chain keeps qchainctl from beginning a merge meanwhile: its verbs
 * wait. Those of the image keep out everybody who might write to it, the daemon too; they are
 * on the descriptor that lvreduce has as its input, so that they last until that has ended
 * (promise T7). Who begins to write then asks for the size first (T9).
 *
 * Nobody reads beyond the new end. What a table names lies before it; what the map of a daemon
 * shows is what tables name; and a cluster that was given back is counted until the last read
 * of it has ended (P7).
 */

#define FIRST_PAUSE_NS 1000000000ull
#define MAX_PAUSE_NS 60000000000ull
#define NOT_TRUSTED_FEATURES                                                                     \
	(QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT | QCOW2_INCOMPAT_DATA_FILE)

/* ---- one layer: in the child ------------------------------------------------------------ */

/*
 * *@end: after the last cluster that is counted or named; 0: not known, it stays as it is.
 * What was read here is durable afterwards (promise T8).
 */
static int find_end(struct image *img, u64 *end, struct qc_err *err)
{
	struct check_result found = { 0 };
	int ret;

	*end = 0;
	if (img->incompatible & NOT_TRUSTED_FEATURES || img->nr_faults ||
	    img->autoclear & QCOW2_AUTOCLEAR_QCHAIN_OPEN)
		return 0;
	ret = image_check(img, 0, NULL, NULL, &found, err);
	if (ret)
		return ret;
	if (found.corruptions || found.check_errors) {
		log_warn("qchain-grow: %s keeps its size: errors in its tables (%llu); see "
			 "qchainctl check", img->dev->path,
			 (unsigned long long)(found.corruptions + found.check_errors));
		return 0;
	}
	ret = io_dev_flush(img->dev);
	if (ret)
		return qc_err_set(err, ret, "%s: flush failed (%s)", img->dev->path,
				  strerror(-ret));
	*end = found.image_end_offset;
	return 0;
}

static int reduce(struct image *img, const struct lvm_lv *lv, struct qc_err *err)
{
	u64 end, bytes = lv->size_bytes;
	int ret = find_end(img, &end, err);

	if (ret || !end)
		return ret;
	crash_point("shrink.checked");
	ret = lvm_reduce_held(lv, end, img->dev->fd, &bytes, err);
	crash_point("shrink.reduced");
	if (!ret && bytes < lv->size_bytes)
		log_info("%s/%s: sealed, its LV has %llu MiB less, %llu are left", lv->vg, lv->name,
			 (unsigned long long)((lv->size_bytes - bytes) / MiB),
			 (unsigned long long)(bytes / MiB));
	return ret;
}

static int shrink_locked(const char *file, struct qc_err *err)
{
	const struct offline_options look = { .format = IMAGE_QCOW2 };
	struct lvm_lv *lv = NULL;
	char vg[128], name[128];
	struct image *img;
	int ret;

	if (!lv_path_find(file, vg, name))
		return 0;
	ret = lvm_find(vg, name, &lv, err);
	if (ret || !thin_chunk(lv) || record_is_foreign(lv) || manager_check(lv, NULL))
		goto out;
	ret = offline_open_image(file, &look, false, IMAGE_OPEN_CHECK | IMAGE_OPEN_BITMAPS, &img,
				 err);
	if (ret)
		goto out;
	crash_point("shrink.locked");
	ret = reduce(img, lv, err);
	image_close(img);
out:
	free(lv);
	return ret;
}

/* The child's whole life; false: to be tried again. */
static bool shrink_all(struct client *client, json_object *files)
{
	bool all = true;

	json_object_object_foreach(files, node, file) {
		struct qc_err err = { 0 };
		struct rundir dir;
		int ret = client_lock_chain(client, &dir, &err);

		if (!ret) {
			ret = shrink_locked(json_object_get_string(file), &err);
			rundir_unlock(&dir);
		}
		if (ret && ret != -EAGAIN && ret != -EBUSY)
			log_warn("qchain-grow: layer %s keeps its size: %s", node, err.msg);
		all &= !ret;
	}
	return all;
}

/* ---- all of them: in the helper --------------------------------------------------------- */

/* {node-name: file} of what is sealed and was not seen to; what is not sealed will be again. */
static json_object *find_sealed(struct shrinker *s, json_object *nodes)
{
	json_object *files = json_object_new_object();

	for (size_t i = 0; i < json_object_array_length(nodes); i++) {
		json_object *node = json_object_array_get_idx(nodes, i);
		const char *name = json_text(node, "node-name"), *file = json_text(node, "file");
		const char *state = json_text(node, "state"), *format = json_text(node, "drv");

		if (!name || !file || !state || !format || strcmp(format, "qcow2"))
			continue;
		if (strcmp(state, "sealed"))
			json_object_object_del(s->done, name);
		else if (!json_object_object_get_ex(s->done, name, NULL))
			json_add_string(files, name, file);
	}
	return files;
}

static void ended(struct shrinker *s)
{
	json_object_put(s->under_way);
	s->under_way = NULL;
	s->child = 0;
}

static void rest(struct shrinker *s)
{
	s->pause_ns = s->pause_ns ? min(2 * s->pause_ns, MAX_PAUSE_NS) : FIRST_PAUSE_NS;
	s->retry_ns = now_ns() + s->pause_ns;
	ended(s);
}

static void reap(struct shrinker *s)
{
	int status;

	if (!s->child || waitpid(s->child, &status, WNOHANG) != s->child)
		return;
	if (!WIFEXITED(status) || WEXITSTATUS(status) != CTL_DONE) {
		rest(s);
		return;
	}
	json_object_object_foreach(s->under_way, node, file) {
		(void)file;
		json_add_bool(s->done, node, true);
	}
	s->pause_ns = 0;
	ended(s);
}

static void begin(struct shrinker *s, struct client *client, int lock_fd)
{
	s->child = fork();
	if (s->child == 0) {
		close(lock_fd);
		close(client_fd(client));
		_exit(shrink_all(client, s->under_way) ? CTL_DONE : CTL_FAILED);
	}
	if (s->child < 0)
		rest(s);
}

void shrink_look(struct shrinker *s, struct client *client, json_object *nodes, int lock_fd)
{
	json_object *files;

	if (!s->done)
		s->done = json_object_new_object();
	reap(s);
	files = find_sealed(s, nodes);
	if (s->child || !json_object_object_length(files) || now_ns() < s->retry_ns) {
		json_object_put(files);
		return;
	}
	s->under_way = files;
	begin(s, client, lock_fd);
}
