/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The door: what must be true before an image is opened. Private to io/. */
#ifndef IO_DOOR_H
#define IO_DOOR_H

#include <qchain/err.h>
#include <qchain/io.h>
#include <sys/stat.h>

/*
 * struct io_door - one attempt to open an image
 * @path: names the image in messages
 * @flags: IO_DEV_*
 * @fd: the one descriptor of this image, -1 until it is open; O_EXCL and the
 *      image locks live as long as it does
 * @st: of @fd
 * @direct: @fd has O_DIRECT
 * @retry: what was in the way can go away by itself: a claim or a lock that
 *         a dead process's I/O still holds (rule A2)
 */
struct io_door {
	const char *path;
	u32 flags;
	int fd;
	struct stat st;
	bool direct;
	bool retry;
};

/*
 * io_door_enter - open @path by the rules of @flags. Waits with IO_DEV_WAIT.
 * On success the caller owns door->fd.
 */
int io_door_enter(struct io_door *door, const char *path, u32 flags, struct qc_err *err);

/*
 * io_door_begin_writing - @door->fd, open for reading through the door, becomes one
 * for writing: of the same image, under the same number
 */
int io_door_begin_writing(struct io_door *door, struct qc_err *err);

/* The image locks of @door, as QEMU takes them; -EAGAIN: somebody is in the way. */
int io_lock_take(struct io_door *door, struct qc_err *err);
/*
 * What a writer has beyond a reader, on the descriptor of a reader, which keeps the
 * others away meanwhile; then all of a writer's bytes on a new one, untested.
 */
int io_lock_begin_writing(struct io_door *door, struct qc_err *err);
int io_lock_repeat(struct io_door *door, struct qc_err *err);
/* Let go of what a writer has beyond a reader. */
void io_lock_end_writing(int fd);

/*
 * Who is in the way: "name, pid N", for messages; "another process" when /proc
 * does not tell. @byte: of the image locks. The door's own descriptor is not
 * meant, others of this process are.
 */
void io_users_of_lock(const struct io_door *door, u64 byte, char *text, size_t len);
void io_users_of_blockdev(const struct io_door *door, char *text, size_t len);

#endif
