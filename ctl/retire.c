// SPDX-License-Identifier: GPL-2.0-or-later
/* Images that are no layers any more: wiped, and removed. */
#include "retire.h"

#include "clock.h"
#include "image/reader.h"

#include <errno.h>
#include <qchain/crash-point.h>
#include <qchain/io.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define HEADER_BYTES 4096u
#define STEP_BYTES (1u * MiB)

/* ---- zeroes ---------------------------------------------------------------------- */

struct wipe {
	struct io_dev *dev;
	struct retire *retire;
	struct progress progress;
	u8 *zeroes;
	u64 done;
	u64 start_ns;
};

/* Not faster than asked for. */
static void keep_speed(const struct wipe *w)
{
	u64 due_ns, now = now_ns();
	struct timespec pause;

	if (!w->retire->speed)
		return;
	due_ns = w->start_ns + w->done * NS_PER_SEC / w->retire->speed;
	if (due_ns <= now)
		return;
	pause = (struct timespec){ .tv_sec = (due_ns - now) / NS_PER_SEC,
				   .tv_nsec = (due_ns - now) % NS_PER_SEC };
	nanosleep(&pause, NULL);
}

static int zero_range(struct wipe *w, u64 from, u64 to)
{
	int ret = 0;

	for (u64 at = from; at < to && !ret; at += STEP_BYTES) {
		u64 bytes = min(to - at, (u64)STEP_BYTES);

		ret = io_dev_pwrite(w->dev, w->zeroes, bytes, at);
		w->done += bytes;
		progress_update(&w->progress, w->done);
		keep_speed(w);
	}
	return ret;
}

/* Of a file, what is not a hole was written and is still there. */
static int zero_file(struct wipe *w, u64 size)
{
	off_t data = 0, hole = 0;
	int ret = 0;

	while (!ret && (u64)hole < size) {
		data = lseek(w->dev->fd, hole, SEEK_DATA);
		if (data < 0)
			return errno == ENXIO ? 0 : -errno;
		hole = lseek(w->dev->fd, data, SEEK_HOLE);
		if (hole < 0)
			return -errno;
		ret = zero_range(w, ALIGN_DOWN((u64)data, (u64)w->dev->block_bytes),
				 min((u64)hole, size));
	}
	return ret;
}

/* @end: nothing behind it was ever written */
static int wipe_all(struct io_dev *dev, u64 end, struct retire *retire)
{
	struct wipe w = { .dev = dev, .retire = retire, .zeroes = io_alloc(STEP_BYTES),
			  .start_ns = now_ns() };
	int ret;

	if (!w.zeroes)
		return -ENOMEM;
	memset(w.zeroes, 0, STEP_BYTES);
	end = ALIGN_DOWN(min(end, dev->size_bytes), (u64)dev->block_bytes);
	progress_begin(&w.progress, "wipe", end, true);
	ret = dev->blockdev ? zero_range(&w, 0, end) : zero_file(&w, end);
	progress_end(&w.progress);
	retire->wiped += w.done;
	free(w.zeroes);
	return ret;
}

static int wipe_header(struct io_dev *dev)
{
	u8 *zeroes = io_alloc(HEADER_BYTES);
	u64 bytes = min(dev->size_bytes, (u64)HEADER_BYTES);
	int ret = -ENOMEM;

	if (zeroes) {
		memset(zeroes, 0, HEADER_BYTES);
		ret = io_dev_pwrite(dev, zeroes, bytes, 0);
	}
	free(zeroes);
	return ret;
}

/* Where what was ever written ends: a cluster without a refcount block was never used. */
static u64 written_end(const char *path)
{
	struct io_dev *dev;
	struct image *img;
	u64 end = ~0ull;

	if (io_dev_open(path, IO_DEV_NOLOCK, &dev, NULL) ||
	    image_open(dev, IMAGE_QCOW2, IMAGE_OPEN_CHECK, &img, NULL))
		return end;
	if (image_counted_end(img, &end))
		end = ~0ull;
	image_close(img);
	return end;
}

int retire_header(const char *path, bool wipe, struct retire *retire, struct qc_err *err)
{
	u64 end = wipe ? written_end(path) : 0;
	struct io_dev *dev;
	int ret = io_dev_open(path, IO_DEV_WRITE, &dev, err);

	if (ret)
		return ret;
	ret = wipe_header(dev);
	if (!ret)
		ret = io_dev_flush(dev);
	if (!ret && wipe)
		ret = wipe_all(dev, end, retire);
	if (!ret)
		ret = io_dev_flush(dev);
	io_dev_close(dev);
	return ret ? qc_err_set(err, ret, "%s: not wiped (%s)", path, strerror(-ret)) : 0;
}

/* ---- removing ----------------------------------------------------------------------- */

static int remove_lv(const struct record_place *place, const struct lvm_lv *lv,
		     const struct record_dead *dead, struct retire *retire, struct qc_err *err)
{
	char path[300];
	int ret = lv->active ? 0 : lvm_activate(lv->vg, lv->name, true, err);

	snprintf(path, sizeof(path), "%s/%s", place->dir, lv->name);
	if (!ret)
		ret = retire_header(path, dead->wipe, retire, err);
	crash_point("retire.wiped");
	return ret || dead->keep ? ret : lvm_remove(lv->vg, lv->name, err);
}

static int remove_file(const struct record_place *place, const struct record_dead *dead,
		       struct retire *retire, struct qc_err *err)
{
	char path[4096];
	int ret;

	if (snprintf(path, sizeof(path), "%s/%s", place->dir, dead->image) >= (int)sizeof(path))
		return qc_err_set(err, -ENAMETOOLONG, "%s: path too long", dead->image);
	if (access(path, F_OK) && errno == ENOENT)
		return 0;
	ret = retire_header(path, dead->wipe, retire, err);
	crash_point("retire.wiped");
	if (ret || dead->keep)
		return ret;
	if (unlink(path))
		ret = qc_err_set(err, -errno, "%s: not removed (%m)", path);
	if (ret)
		return ret;
	ret = record_dir_flush(place->dir);
	return ret ? qc_err_set(err, ret, "%s: not flushed (%s)", place->dir, strerror(-ret)) : 0;
}

static int remove_image(const struct record_place *place, const struct record_dead *dead,
			struct retire *retire, struct qc_err *err)
{
	const struct lvm_lv *lv = record_place_lv(place, dead->image);

	if (!place->vg[0])
		return remove_file(place, dead, retire, err);
	return lv ? remove_lv(place, lv, dead, retire, err) : 0;
}

int retire_dead(const struct record_place *place, struct device_record *record,
		struct retire *retire, struct qc_err *err)
{
	struct qc_err later = { 0 };
	struct record_dead dead;
	u32 left = 0;
	int ret = 0, one;

	if (!record->nr_dead)
		return 0;
	while (left < record->nr_dead) {
		dead = record->dead[left];
		one = remove_image(place, &dead, retire, ret ? &later : err);
		ret = ret ? ret : one;
		if (one) {
			left++;
			continue;
		}
		device_record_forget(record, dead.image);
		retire->nr += !dead.keep;
	}
	crash_point("retire.removed");
	one = record_place_save(place, record, ret ? &later : err);
	return ret ? ret : one;
}
