// SPDX-License-Identifier: GPL-2.0-or-later
/* Exports layers into a file of their own: everything that they show, or what they add. */
#include "export-image.h"

#include <errno.h>
#include <fcntl.h>
#include <qchain/crash-point.h>
#include <qchain/edit.h>
#include <qchain/overlays.h>
#include <qchain/record.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/*
 * The file of an increment is made as an overlay of the layer @from itself, so that what
 * was made zero in between becomes a zero cluster and nothing else is copied; what it
 * stands on is exchanged for the earlier export, which holds the same, at the end.
 */

#define PART ".part"
#define MIN_EXTENDED_BITS 14
#define MAX_EXTENDED_BITS 21
/* log2 of the subclusters of a cluster with extended L2 */
#define EXTENDED_BITS 5

/* struct part - the file that is being made */
struct part {
	struct export_image *e;
	struct chain *chain; /* from @to down, held */
	u32 from_depth; /* layers above @from; of a full export all */
	char path[4096];
	char *header_name;
	enum image_format backing_format;
	bool made;
};

/* ---- what is read -------------------------------------------------------------------- */

static int find_from(struct part *p, struct qc_err *err)
{
	const struct export_image *e = p->e;
	struct image_ident wanted, found;
	u32 depth;

	p->from_depth = p->chain->nr_layers;
	if (!e->from)
		return 0;
	if (image_ident_of(e->from, &wanted))
		return qc_err_set(err, -errno, "%s: not found (%m)", e->from);
	for (depth = 0; depth < p->chain->nr_layers; depth++)
		if (!image_ident_of(p->chain->layers[depth].img->dev->path, &found) &&
		    image_ident_same(&wanted, &found))
			break;
	if (!depth || depth == p->chain->nr_layers)
		return qc_err_set(err, -EINVAL, "%s: is not below %s, must be an older snapshot "
				  "that it stands on", e->from, e->to);
	p->from_depth = depth;
	return 0;
}

/* It is locked from now on. */
static int open_source(struct part *p, struct qc_err *err)
{
	struct export_image *e = p->e;
	int ret;

	e->offline->format = e->to_format;
	ret = offline_open_chain(e->to, e->offline, &p->chain, err);
	if (ret)
		return ret;
	e->note.size = p->chain->virtual_size;
	if (offline_allow_chain(e->offline, p->chain) || offline_allow_dir(e->offline, e->to))
		return qc_err_set(err, -ENOMEM, "%s: out of memory", e->to);
	return find_from(p, err);
}

/* ---- the file -------------------------------------------------------------------------- */

/* Clusters that hold no more than the smallest piece which one of the layers can have changed. */
static void choose_clusters(const struct part *p, struct image_create_options *options)
{
	u32 least = MAX_EXTENDED_BITS;
	bool extended = false;

	if (!p->e->from)
		return;
	for (u32 i = 0; i < p->from_depth; i++) {
		const struct image *img = p->chain->layers[i].img;

		least = min(least, img->subcluster_bits);
		extended |= image_has_extl2(img);
	}
	options->extl2 = extended && least + EXTENDED_BITS <= MAX_EXTENDED_BITS;
	options->cluster_bits = options->extl2 ? max(least + EXTENDED_BITS,
						     (u32)MIN_EXTENDED_BITS) : least;
}

static int format_part(struct part *p, struct io_dev *dev, struct qc_err *err)
{
	struct image_create_options options;
	const struct chain_layer *from = &p->chain->layers[p->from_depth];
	int ret;

	image_create_defaults(&options);
	options.virtual_size = p->e->note.size;
	choose_clusters(p, &options);
	if (p->e->from) {
		options.backing_name = from->img->dev->path;
		options.backing_format = image_format_name(from->img->format);
	}
	ret = image_create_check(&options, err);
	return ret ? ret : image_create(dev, &options, err);
}

static int fill_part(struct part *p, struct io_dev *dev, struct qc_err *err)
{
	bool raw = p->e->format == IMAGE_RAW;

	if (ftruncate(dev->fd, 0) || (raw && ftruncate(dev->fd, p->e->note.size)) ||
	    dev->ops->refresh_size(dev) < 0)
		return qc_err_set(err, -errno, "%s: size not set (%m)", p->path);
	return raw ? 0 : format_part(p, dev, err);
}

/* Who makes the same file at the same time has its lock. Guest data: only the owner reads it. */
static int make_part(struct part *p, struct qc_err *err)
{
	int fd = open(p->path, O_CREAT | O_WRONLY | O_CLOEXEC | O_NOFOLLOW, 0600);
	struct io_dev *dev;
	int ret;

	if (fd < 0)
		return qc_err_set(err, -errno, "%s: could not be created (%m)", p->path);
	close(fd);
	ret = io_dev_open(p->path, IO_DEV_WRITE, &dev, err);
	if (ret)
		return ret;
	p->made = true;
	ret = fill_part(p, dev, err);
	io_dev_close(dev);
	return ret;
}

static int check_target(struct part *p, struct qc_err *err)
{
	const char *target = p->e->target;
	struct stat st;

	if (snprintf(p->path, sizeof(p->path), "%s" PART, target) >= (int)sizeof(p->path))
		return qc_err_set(err, -ENAMETOOLONG, "%s: path too long", target);
	if (stat(target, &st))
		return errno == ENOENT ? 0 : qc_err_set(err, -errno, "%s: %m", target);
	if (!S_ISREG(st.st_mode))
		return qc_err_set(err, -EINVAL, "%s: is no regular file, expected a name for a "
				  "new one", target);
	return p->e->force ? 0 : qc_err_set(err, -EEXIST, "%s: is there already; --force replaces "
					     "it", target);
}

/* ---- what it stands on ------------------------------------------------------------------ */

/* It is an export, of what the increment tells from. */
static int check_backing(struct part *p, struct qc_err *err)
{
	struct export_note base;
	int ret = export_note_load(p->e->backing, &base, err);

	if (!ret)
		ret = export_note_check_base(&p->e->note, p->e->backing, &base, err);
	if (ret)
		return ret;
	p->backing_format = base.format;
	strcpy(p->e->note.base_sha256, base.sum.sha256);
	return 0;
}

static int take_backing(struct part *p, struct qc_err *err)
{
	struct offline_options options = *p->e->offline;
	struct image *img;
	int ret;

	if (!p->e->from)
		return 0;
	ret = check_backing(p, err);
	options.format = p->backing_format;
	if (!ret)
		ret = offline_open_image(p->e->backing, &options, false, 0, &img, err);
	if (ret)
		return ret;
	image_close(img);
	p->header_name = backing_header_name(p->e->target, p->e->backing, err);
	return p->header_name ? 0 : err->code;
}

/* @check: before anything is copied */
static int set_backing(const struct part *p, bool check, struct qc_err *err)
{
	const char *format = image_format_name(p->backing_format);
	struct image *img;
	int ret;

	if (!p->e->from)
		return 0;
	ret = merge_hold(p->path, &img, err);
	if (ret)
		return ret;
	ret = check ? image_check_backing_fits(img, p->header_name, format, err) :
		      image_set_backing(img, p->header_name, format, err);
	image_close(img);
	return ret;
}

/* ---- the copy ------------------------------------------------------------------------------ */

static int copy(struct part *p, struct target *source, struct merge *merge, struct qc_err *err)
{
	struct target *target;
	int ret = merge_open(p->path, p->e->offline, p->e->format, NULL, &target, err);

	if (ret)
		return ret;
	*merge = (struct merge){
		.type = "export", .source = source, .target = target, .first_depth = 1,
		.last_depth = p->from_depth, .skip_zero = !p->e->from, .speed = p->e->speed,
	};
	ret = merge_run(merge, err);
	if (!ret)
		ret = target_suspend(target, err);
	target_destroy(target);
	return ret;
}

static int copy_layers(struct part *p, struct merge *merge, struct qc_err *err)
{
	static const char *const read_only[] = { "read-only=on", NULL };
	struct target *source;
	int ret = merge_open(p->e->to, p->e->offline, p->e->to_format, read_only, &source, err);

	if (ret)
		return ret;
	ret = copy(p, source, merge, err);
	target_destroy(source);
	return ret;
}

static int note_checksum(const struct part *p, struct qc_err *err)
{
	struct export_note *note = &p->e->note;
	int ret = image_checksum(p->path, p->e->format, &note->sum, err);

	note->format = p->e->format;
	return ret ? ret : export_note_save(p->e->target, note, err);
}

/* All of it is durable before it has its name. */
static int finish(const struct part *p, struct qc_err *err)
{
	char dir[4096], *slash;
	int fd = open(p->path, O_WRONLY | O_CLOEXEC), ret;

	if (fd < 0)
		return qc_err_set(err, -errno, "%s: not opened again (%m)", p->path);
	ret = fsync(fd) ? qc_err_set(err, -errno, "%s: not durable (%m)", p->path) : 0;
	close(fd);
	if (!ret)
		ret = note_checksum(p, err);
	if (ret)
		return ret;
	crash_point("export.written");
	if (rename(p->path, p->e->target))
		ret = -errno;
	snprintf(dir, sizeof(dir), "%s", p->e->target);
	slash = strrchr(dir, '/');
	slash[slash == dir] = 0;
	if (!ret)
		ret = record_dir_flush(dir);
	return ret ? qc_err_set(err, ret, "%s: not finished (%s)", p->path, strerror(-ret)) : 0;
}

static int export_part(struct part *p, struct merge *moved, struct qc_err *err)
{
	int ret = open_source(p, err);

	if (!ret)
		ret = check_target(p, err);
	if (!ret)
		ret = take_backing(p, err);
	if (!ret)
		ret = make_part(p, err);
	if (!ret)
		ret = set_backing(p, true, err);
	if (!ret)
		ret = copy_layers(p, moved, err);
	if (!ret)
		ret = set_backing(p, false, err);
	return ret ? ret : finish(p, err);
}

int export_image(struct export_image *e, struct merge *moved, struct qc_err *err)
{
	struct part p = { .e = e };
	int ret = export_part(&p, moved, err);

	if (ret && p.made)
		unlink(p.path);
	chain_close(p.chain);
	free(p.header_name);
	return ret;
}
