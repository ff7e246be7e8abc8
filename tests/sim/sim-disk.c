// SPDX-License-Identifier: GPL-2.0-or-later
/* Disks in memory with a volatile cache, and the door through which images are opened on them. */
#include "sim.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/*
 * A write is visible when it has completed, and durable when a flush that was
 * submitted after that has completed. A cut keeps of the others what it likes,
 * sector by sector. What is opened at a path is the disk of that name; the file
 * there is empty, and gives the disk its identity.
 */

#define HEADER_BYTES 4096u

CDS_LIST_HEAD(sim_disks);

/* ---- disks --------------------------------------------------------------------- */

static u8 *disk_memory(void)
{
	void *mem = mmap(NULL, SIM_MAX_DISK, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (mem == MAP_FAILED)
		fail("no memory for a disk");
	return mem;
}

static struct sim_disk *disk_alloc(const char *name)
{
	struct sim_disk *d = calloc(1, sizeof(*d));

	snprintf(d->name, sizeof(d->name), "%s", name);
	d->now = disk_memory();
	d->durable = disk_memory();
	CDS_INIT_LIST_HEAD(&d->unflushed);
	d->fd = open(sim_path(name), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (d->fd < 0)
		fail("%s: %s", name, strerror(errno));
	cds_list_add_tail(&d->node, &sim_disks);
	return d;
}

/* What the volume group left there: nothing of it may ever be seen (rule B6). */
static void fill_with_old_data(struct sim_disk *d, u64 from)
{
	memset(d->now + from, 0xe5, d->size - from);
}

void sim_disk_settle(struct sim_disk *d)
{
	memcpy(d->durable, d->now, d->size);
}

struct sim_disk *sim_disk_create(const char *name, u64 bytes)
{
	struct sim_disk *d = disk_alloc(name);

	d->lv = bytes;
	d->size = ALIGN_UP(bytes, 4096);
	if (d->size > SIM_MAX_DISK)
		fail("%s: a disk of %llu bytes", name, (unsigned long long)d->size);
	fill_with_old_data(d, 0);
	sim_disk_settle(d);
	return d;
}

struct sim_disk *sim_disk_load(const char *name, bool lv, u64 spare)
{
	struct sim_disk *d = disk_alloc(name);
	struct stat st;

	if (fstat(d->fd, &st) || st.st_size + spare > SIM_MAX_DISK ||
	    pread(d->fd, d->now, st.st_size, 0) != st.st_size)
		fail("%s: cannot be loaded", name);
	d->lv = lv;
	d->formatted = true;
	d->size = lv ? ALIGN_UP(st.st_size, 65536) + spare : (u64)st.st_size;
	if (lv)
		fill_with_old_data(d, st.st_size);
	sim_disk_settle(d);
	return d;
}

void sim_disk_extend(struct sim_disk *d, u64 bytes)
{
	memset(d->now + d->size, 0xe5, bytes);
	memset(d->durable + d->size, 0xe5, bytes);
	d->size += bytes;
}

struct sim_disk *sim_disk_find(const char *path)
{
	const char *slash = strrchr(path, '/');
	struct sim_disk *d;

	cds_list_for_each_entry(d, &sim_disks, node)
		if (!strcmp(d->name, slash ? slash + 1 : path))
			return d;
	return NULL;
}

struct sim_disk *sim_disk_of(const struct io_dev *dev)
{
	return dev->private;
}

void sim_disk_dump(const struct sim_disk *d, const char *path)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);

	if (fd < 0 || pwrite(fd, d->now, d->size, 0) != (ssize_t)d->size)
		fail("%s: %s", path, strerror(errno));
	close(fd);
}

/* ---- effects ------------------------------------------------------------------- */

static struct sim_record *record_create(struct sim_disk *d, u64 offset, u32 len, const u8 *from)
{
	struct sim_record *rec = malloc(sizeof(*rec) + len);

	if (offset + len > (d->lv ? d->size : SIM_MAX_DISK))
		fail("%s: write beyond the end: %llu+%u", d->name, (unsigned long long)offset, len);
	if (offset < HEADER_BYTES && d->formatted)
		cuts_hurry(offset == 0 && len > SIM_BLOCK);
	rec->offset = offset;
	rec->len = len;
	memcpy(rec->data, from, len);
	return rec;
}

struct sim_record *sim_disk_begin_write(struct io_op *op, const u8 *from)
{
	if ((op->offset | op->len) % SIM_BLOCK)
		fail("%s: unaligned write", op->dev->path);
	if (!op->dev->writable)
		fail("%s: written, and not open for writing", op->dev->path);
	return record_create(sim_disk_of(op->dev), op->offset, op->len, from);
}

void sim_disk_end_write(struct sim_disk *d, struct sim_record *rec_owned)
{
	memcpy(d->now + rec_owned->offset, rec_owned->data, rec_owned->len);
	if (!d->lv)
		d->size = max(d->size, rec_owned->offset + rec_owned->len);
	rec_owned->completed_at = ++sim_time;
	cds_list_add_tail(&rec_owned->node, &d->unflushed);
}

void sim_disk_read(const struct sim_disk *d, void *buf, u64 len, u64 offset)
{
	u64 there = offset < d->size ? min(len, d->size - offset) : 0;

	memcpy(buf, d->now + offset, there);
	memset((u8 *)buf + there, 0, len - there);
}

void sim_disk_flush(struct sim_disk *d, u64 until)
{
	struct sim_record *r, *tmp;

	cds_list_for_each_entry_safe(r, tmp, &d->unflushed, node) {
		if (r->completed_at > until)
			continue;
		memcpy(d->durable + r->offset, r->data, r->len);
		cds_list_del(&r->node);
		free(r);
	}
}

/* ---- cuts ---------------------------------------------------------------------- */

void sim_disk_tear(u8 *to, const struct sim_record *rec, u32 percent)
{
	u32 s;

	for (s = 0; s < rec->len; s += SIM_BLOCK)
		if (percent == 100 || chance(percent))
			memcpy(to + rec->offset + s, rec->data + s, SIM_BLOCK);
}

void sim_disk_cut(struct sim_disk *d, bool power, u32 percent)
{
	struct sim_record *r;

	d->opens = d->writers = 0;
	if (power) {
		u8 *lost = d->now;

		d->now = d->durable;
		d->durable = lost;
		cds_list_for_each_entry(r, &d->unflushed, node)
			sim_disk_tear(d->now, r, percent);
	}
	CDS_INIT_LIST_HEAD(&d->unflushed);
}

/* ---- synchronous calls, of the control thread and of workers ------------------- */

static int disk_pread(struct io_dev *dev, void *buf, size_t len, u64 offset)
{
	struct sim_disk *d = sim_disk_of(dev);

	int error = sim_fault(IO_READ);

	if (error || (d->lv && offset + len > d->size))
		return error ? error : -EIO;
	sim_disk_read(d, buf, len, offset);
	return 0;
}

static int disk_pwrite(struct io_dev *dev, const void *buf, size_t len, u64 offset)
{
	struct sim_disk *d = sim_disk_of(dev);
	u64 start = ALIGN_DOWN(offset, SIM_BLOCK), end = ALIGN_UP(offset + len, SIM_BLOCK);
	struct sim_record *rec;
	int error;

	if (!dev->writable)
		fail("%s: written, and not open for writing", dev->path);
	sim_point();
	rec = record_create(d, start, end - start, d->now + start);
	memcpy(rec->data + (offset - start), buf, len);
	error = sim_fault(IO_WRITE);
	if (error) {
		sim_disk_tear(d->now, rec, 50);
		free(rec);
		return error;
	}
	sim_disk_end_write(d, rec);
	dev->size_bytes = d->size;
	return 0;
}

static int disk_flush(struct io_dev *dev)
{
	sim_point();
	if (sim_fault(IO_FLUSH))
		dev->flush_failed = 1;
	if (dev->flush_failed)
		return -EIO;
	sim_disk_flush(sim_disk_of(dev), ++sim_time);
	return 0;
}

static s64 disk_refresh_size(struct io_dev *dev)
{
	dev->size_bytes = sim_disk_of(dev)->size;
	return dev->size_bytes;
}

/* Its memory stays: who uses it afterwards is told so. */
static void disk_close(struct io_dev *dev)
{
	struct sim_disk *d = sim_disk_of(dev);

	if (sim_io_under_way(dev))
		fail("%s: closed while I/O is under way", dev->path);
	d->opens--;
	d->writers -= dev->writable;
	dev->writable = false;
	dev->fd = -1;
}

static const struct io_dev_ops disk_ops = {
	.pread = disk_pread,
	.pwrite = disk_pwrite,
	.flush = disk_flush,
	.refresh_size = disk_refresh_size,
	.close = disk_close,
};

/* ---- the door: one writer, or readers (rule A2) -------------------------------- */

int __wrap_io_dev_open(const char *path, u32 flags, struct io_dev **result, struct qc_err *err);
int __wrap_io_dev_begin_writing(struct io_dev *dev, struct qc_err *err);
void __wrap_io_dev_end_writing(struct io_dev *dev);

int __wrap_io_dev_open(const char *path, u32 flags, struct io_dev **result, struct qc_err *err)
{
	struct sim_disk *d = sim_disk_find(path);
	struct io_dev *dev;

	if (!d || d->gone)
		return qc_err_set(err, -ENOENT, "%s: no such disk", path);
	if (flags & IO_DEV_WRITE ? d->opens : d->writers)
		return qc_err_set(err, -EBUSY, "%s: is open elsewhere", path);
	dev = calloc(1, sizeof(*dev));
	*dev = (struct io_dev){ .ops = &disk_ops, .path = strdup(path), .fd = d->fd,
				.ident = { .ino = (uintptr_t)d },
				.block_bytes = SIM_BLOCK, .mem_align_bytes = SIM_BLOCK,
				.blockdev = d->lv, .writable = flags & IO_DEV_WRITE,
				.size_bytes = d->size, .private = d };
	d->opens++;
	d->writers += dev->writable;
	*result = dev;
	return 0;
}

int __wrap_io_dev_begin_writing(struct io_dev *dev, struct qc_err *err)
{
	struct sim_disk *d = sim_disk_of(dev);

	if (d->opens != 1)
		return qc_err_set(err, -EBUSY, "%s: is open elsewhere", dev->path);
	d->writers++;
	dev->writable = true;
	return 0;
}

void __wrap_io_dev_end_writing(struct io_dev *dev)
{
	sim_disk_of(dev)->writers -= dev->writable;
	dev->writable = false;
}
