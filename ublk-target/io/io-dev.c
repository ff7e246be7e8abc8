// SPDX-License-Identifier: GPL-2.0-or-later
/* Devices that images live on: geometry, and synchronous I/O at any offset. */
#include "io-door.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/statfs.h>
#include <unistd.h>

/*
 * Synchronous calls take any offset, length and memory. What O_DIRECT cannot do
 * goes through a bounce buffer of at most BOUNCE_BYTES; a write then reads the
 * blocks at its two edges first, nothing else. Nobody else may write those
 * blocks at that time: the caller owns what it writes.
 */
#define BOUNCE_BYTES (1u * MiB)
#define IO_ALIGN_BYTES 4096u

void *io_alloc(size_t bytes)
{
	if (bytes > SIZE_MAX - IO_ALIGN_BYTES)
		return NULL;
	return aligned_alloc(IO_ALIGN_BYTES, ALIGN_UP(max(bytes, (size_t)1), IO_ALIGN_BYTES));
}

/* ---- whole blocks ------------------------------------------------------ */

/* Reads beyond the end: a file's missing bytes are zero, a device has none. */
static int read_past_end(struct io_dev *dev, void *buf, size_t len)
{
	if (dev->blockdev)
		return -EIO;
	memset(buf, 0, len);
	return 0;
}

static int read_blocks(struct io_dev *dev, void *buf, size_t len, u64 offset)
{
	ssize_t n;

	while (len) {
		n = pread(dev->fd, buf, len, offset);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		buf = (char *)buf + n;
		len -= n;
		offset += n;
		/* Direct I/O stops inside a block at the end of a file only. */
		if (n == 0 || (dev->direct && !IS_ALIGNED(offset, dev->block_bytes)))
			return read_past_end(dev, buf, len);
	}
	return 0;
}

static int write_blocks(struct io_dev *dev, const void *buf, size_t len, u64 offset)
{
	ssize_t n;

	while (len) {
		n = pwrite(dev->fd, buf, len, offset);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			return -EIO;
		buf = (const char *)buf + n;
		len -= n;
		offset += n;
	}
	return 0;
}

/* ---- any bytes --------------------------------------------------------- */

/* Can the kernel take this as it is? */
static bool fits_device(const struct io_dev *dev, const void *buf, size_t len, u64 offset)
{
	return !dev->direct || (IS_ALIGNED(offset | len, dev->block_bytes) &&
				IS_ALIGNED((uintptr_t)buf, dev->mem_align_bytes));
}

static int file_pread(struct io_dev *dev, void *buf, size_t len, u64 offset)
{
	char *bounce;
	int ret = 0;

	if (fits_device(dev, buf, len, offset))
		return read_blocks(dev, buf, len, offset);
	bounce = io_alloc(min(ALIGN_UP(len, dev->block_bytes) + dev->block_bytes,
			      (u64)BOUNCE_BYTES));
	if (!bounce)
		return -ENOMEM;
	while (len && !ret) {
		u32 head = offset & (dev->block_bytes - 1);
		u32 n = min((u64)len, BOUNCE_BYTES - head);

		ret = read_blocks(dev, bounce, ALIGN_UP(head + n, dev->block_bytes),
				  offset - head);
		memcpy(buf, bounce + head, ret ? 0 : n);
		buf = (char *)buf + n;
		len -= n;
		offset += n;
	}
	free(bounce);
	return ret;
}

/* Write [@offset, + @len) with the rest of its first and last block kept. */
static int write_bounced(struct io_dev *dev, char *bounce, const void *buf, u32 len,
			 u64 offset)
{
	u32 block = dev->block_bytes;
	u32 head = offset & (block - 1);
	u32 total = ALIGN_UP(head + len, block);
	u32 last = total - block;
	u64 start = offset - head;
	int ret = 0;

	if (head)
		ret = read_blocks(dev, bounce, block, start);
	if (!ret && head + len < total && (last || !head))
		ret = read_blocks(dev, bounce + last, block, start + last);
	if (ret)
		return ret;
	memcpy(bounce + head, buf, len);
	return write_blocks(dev, bounce, total, start);
}

static int write_any(struct io_dev *dev, const void *buf, size_t len, u64 offset)
{
	char *bounce;
	int ret = 0;

	if (fits_device(dev, buf, len, offset))
		return write_blocks(dev, buf, len, offset);
	bounce = io_alloc(min(ALIGN_UP(len, dev->block_bytes) + dev->block_bytes,
			      (u64)BOUNCE_BYTES));
	if (!bounce)
		return -ENOMEM;
	while (len && !ret) {
		u32 head = offset & (dev->block_bytes - 1);
		u32 n = min((u64)len, BOUNCE_BYTES - head);

		ret = write_bounced(dev, bounce, buf, n, offset);
		buf = (const char *)buf + n;
		len -= n;
		offset += n;
	}
	free(bounce);
	return ret;
}

static s64 file_refresh_size(struct io_dev *dev)
{
	struct stat st;
	u64 size;

	if (dev->blockdev) {
		if (ioctl(dev->fd, BLKGETSIZE64, &size))
			return -errno;
	} else {
		if (fstat(dev->fd, &st))
			return -errno;
		size = st.st_size;
	}
	__atomic_store_n(&dev->size_bytes, size, __ATOMIC_RELAXED);
	return size;
}

static int file_pwrite(struct io_dev *dev, const void *buf, size_t len, u64 offset)
{
	int ret = write_any(dev, buf, len, offset);

	if (!ret && !dev->blockdev && offset + len > io_dev_bytes(dev))
		ret = min(file_refresh_size(dev), (s64)0);
	return ret;
}

static int file_flush(struct io_dev *dev)
{
	return fdatasync(dev->fd) ? -errno : 0;
}

static void file_close(struct io_dev *dev)
{
	if (dev->fd >= 0)
		close(dev->fd);
	free(dev->path);
	free(dev);
}

static const struct io_dev_ops file_ops = {
	.pread = file_pread,
	.pwrite = file_pwrite,
	.flush = file_flush,
	.refresh_size = file_refresh_size,
	.close = file_close,
};

/* ---- geometry ---------------------------------------------------------- */

/* Where struct statx has them; older headers do not name these fields. */
#ifndef STATX_DIOALIGN
#define STATX_DIOALIGN 0x2000u
#endif
#define STATX_DIO_MEM_ALIGN_AT 0x98
#define STATX_DIO_OFFSET_ALIGN_AT 0x9c

/* Returns whether the kernel said how direct I/O must be aligned. */
static bool ask_dio_align(int fd, u32 *mem_align, u32 *offset_align)
{
	struct statx stx;

	memset(&stx, 0, sizeof(stx));
	if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &stx) ||
	    !(stx.stx_mask & STATX_DIOALIGN))
		return false;
	memcpy(mem_align, (char *)&stx + STATX_DIO_MEM_ALIGN_AT, sizeof(u32));
	memcpy(offset_align, (char *)&stx + STATX_DIO_OFFSET_ALIGN_AT, sizeof(u32));
	return true;
}

/* Older kernels: the smallest block that a direct read accepts. */
static u32 probe_block_bytes(struct io_dev *dev)
{
	u32 bytes = SECTOR_SIZE;
	void *buf;

	if (dev->in_memory)
		return SECTOR_SIZE;
	buf = io_alloc(IO_ALIGN_BYTES);
	/* An empty file answers without looking at the alignment. */
	if (!buf || dev->size_bytes == 0)
		bytes = IO_ALIGN_BYTES;
	while (bytes < IO_ALIGN_BYTES && pread(dev->fd, buf, bytes, 0) < 0 && errno == EINVAL)
		bytes *= 2;
	free(buf);
	return bytes;
}

static void drop_direct(struct io_dev *dev)
{
	int fl = fcntl(dev->fd, F_GETFL);

	if (fl >= 0)
		fcntl(dev->fd, F_SETFL, fl & ~O_DIRECT);
	dev->direct = false;
}

static void file_alignment(struct io_dev *dev)
{
	struct statfs fs;
	u32 mem, block;

	dev->in_memory = !fstatfs(dev->fd, &fs) && fs.f_type == TMPFS_MAGIC;
	dev->block_bytes = SECTOR_SIZE;
	dev->mem_align_bytes = SECTOR_SIZE;
	if (!dev->direct)
		return;
	if (!ask_dio_align(dev->fd, &mem, &block)) {
		dev->block_bytes = probe_block_bytes(dev);
		dev->mem_align_bytes = dev->block_bytes;
	} else if (!is_power_of_2(mem) || !is_power_of_2(block)) {
		drop_direct(dev); /* 0: not on this file */
	} else {
		dev->block_bytes = max(block, SECTOR_SIZE);
		dev->mem_align_bytes = mem;
	}
}

static int blockdev_alignment(struct io_dev *dev)
{
	u32 mem, block;
	int logical;

	if (ioctl(dev->fd, BLKSSZGET, &logical))
		return -errno;
	if (!is_power_of_2(logical) || logical < (int)SECTOR_SIZE)
		return -EINVAL;
	dev->block_bytes = logical;
	dev->mem_align_bytes = min((u32)logical, IO_ALIGN_BYTES);
	if (ask_dio_align(dev->fd, &mem, &block) && is_power_of_2(mem))
		dev->mem_align_bytes = mem;
	return 0;
}

static int learn_geometry(struct io_dev *dev, struct qc_err *err)
{
	s64 size = file_refresh_size(dev);
	int ret = size < 0 ? size : 0;

	if (!ret && dev->blockdev)
		ret = blockdev_alignment(dev);
	else if (!ret)
		file_alignment(dev);
	if (!ret && (dev->mem_align_bytes > IO_ALIGN_BYTES || dev->block_bytes > BOUNCE_BYTES / 2))
		ret = -EINVAL;
	if (ret)
		qc_err_set(err, ret,
			   "%s: size and block size cannot be used (%s), blocks must be 2^9..2^19",
			   dev->path, strerror(-ret));
	return ret;
}

int io_dev_open(const char *path, u32 flags, struct io_dev **result, struct qc_err *err)
{
	struct io_dev *dev;
	struct io_door door;
	int ret;

	dev = calloc(1, sizeof(*dev));
	if (!dev)
		return qc_err_set(err, -ENOMEM, "%s: out of memory", path);
	dev->ops = &file_ops;
	dev->fd = -1;
	dev->path = strdup(path);
	ret = dev->path ? io_door_enter(&door, path, flags, err) :
			  qc_err_set(err, -ENOMEM, "%s: out of memory", path);
	if (ret)
		goto err_close;
	dev->fd = door.fd;
	dev->ident = image_ident_from(&door.st);
	dev->direct = door.direct;
	dev->blockdev = S_ISBLK(door.st.st_mode);
	dev->writable = flags & IO_DEV_WRITE;
	ret = learn_geometry(dev, err);
	if (ret)
		goto err_close;
	*result = dev;
	return 0;
err_close:
	file_close(dev);
	return ret;
}

void io_dev_close(struct io_dev *dev)
{
	if (dev)
		dev->ops->close(dev);
}

int io_dev_begin_writing(struct io_dev *dev, struct qc_err *err)
{
	struct io_door door = { .path = dev->path, .fd = dev->fd,
				.flags = IO_DEV_WRITE | (dev->direct ? 0 : IO_DEV_BUFFERED) };
	s64 size;
	int ret = dev->fd < 0 ? 0 : io_door_begin_writing(&door, err);

	if (ret)
		return ret;
	size = dev->ops->refresh_size(dev);
	if (size < 0) {
		io_dev_end_writing(dev);
		return qc_err_set(err, size, "%s: its size is not known (%s)", dev->path,
				  strerror(-size));
	}
	dev->writable = true;
	return 0;
}

void io_dev_end_writing(struct io_dev *dev)
{
	dev->writable = false;
	if (dev->fd >= 0)
		io_lock_end_writing(dev->fd);
}
