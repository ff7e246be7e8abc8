// SPDX-License-Identifier: GPL-2.0-or-later
/* Image locks: the bytes that QEMU locks, so that both never write one image. */
#include "io-door.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

/*
 * QEMU locks single bytes of the image file, always shared, with open file
 * description locks: byte 100 + i says "I use permission i", byte 200 + i "I let
 * nobody else use permission i". First the own bytes are taken, then those are
 * tested that contradict them: two openers at once may both fail, but never
 * both succeed. The roles are those of a qcow2 image and of its backing file
 * in QEMU; beyond these a writer uses write-unchanged, as QEMU's jobs do.
 */
enum image_perm { PERM_READ, PERM_WRITE, PERM_WRITE_UNCHANGED, PERM_RESIZE, NR_PERMS };

#define BIT(n) (1u << (n))
#define USE_BYTE(perm) (100u + (perm))
#define DENY_BYTE(perm) (200u + (perm))

static const char *const perm_names[NR_PERMS] = {
	"read", "write", "write-unchanged", "resize",
};

static const u32 reader_uses = BIT(PERM_READ);
static const u32 writer_uses = BIT(PERM_READ) | BIT(PERM_WRITE) | BIT(PERM_WRITE_UNCHANGED) |
			       BIT(PERM_RESIZE);
static const u32 both_deny = BIT(PERM_WRITE) | BIT(PERM_RESIZE);

static int lock_failed(const struct io_door *door, int code, struct qc_err *err)
{
	return qc_err_set(err, -code, "%s: image locks cannot be taken (%s), the file system must "
			  "support OFD locks; move the image, or read it without locks",
			  door->path, strerror(code));
}

static int lock_byte(struct io_door *door, u64 byte, struct qc_err *err)
{
	struct flock fl = {
		.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1,
	};
	char who[256];

	if (!fcntl(door->fd, F_OFD_SETLK, &fl))
		return 0;
	if (errno != EAGAIN && errno != EACCES)
		return lock_failed(door, errno, err);
	door->retry = true;
	io_users_of_lock(door, byte, who, sizeof(who));
	return qc_err_set(err, -EAGAIN, "%s: lock byte %llu is held exclusively (%s), "
			  "expected shared locks only; stop that process", door->path,
			  (unsigned long long)byte, who);
}

/* Does nobody else hold @byte? @what tells what they do with @perm. */
static int test_byte(struct io_door *door, u64 byte, const char *what, enum image_perm perm,
		     struct qc_err *err)
{
	struct flock fl = {
		.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1,
	};
	char who[256];

	if (fcntl(door->fd, F_OFD_GETLK, &fl))
		return lock_failed(door, errno, err);
	if (fl.l_type == F_UNLCK)
		return 0;
	door->retry = true;
	io_users_of_lock(door, byte, who, sizeof(who));
	return qc_err_set(err, -EAGAIN, "%s: in use, the image lock \"%s\" is %s (%s), must be "
			  "free to open it %s; close it there", door->path, perm_names[perm],
			  what, who, door->flags & IO_DEV_WRITE ? "for writing" : "read-only");
}

/* All permissions in @perms: that they are used, or that they are denied to others. */
static int lock_uses(struct io_door *door, u32 perms, struct qc_err *err)
{
	int ret = 0;

	for (u32 i = 0; !ret && i < NR_PERMS; i++)
		if (perms & BIT(i))
			ret = lock_byte(door, USE_BYTE(i), err);
	return ret;
}

static int lock_denials(struct io_door *door, u32 perms, struct qc_err *err)
{
	int ret = 0;

	for (u32 i = 0; !ret && i < NR_PERMS; i++)
		if (perms & BIT(i))
			ret = lock_byte(door, DENY_BYTE(i), err);
	return ret;
}

/* Does anybody deny what is used, or use what is denied? */
static int test_denials(struct io_door *door, u32 perms, struct qc_err *err)
{
	int ret = 0;

	for (u32 i = 0; !ret && i < NR_PERMS; i++)
		if (perms & BIT(i))
			ret = test_byte(door, DENY_BYTE(i), "denied", i, err);
	return ret;
}

static int test_uses(struct io_door *door, u32 perms, struct qc_err *err)
{
	int ret = 0;

	for (u32 i = 0; !ret && i < NR_PERMS; i++)
		if (perms & BIT(i))
			ret = test_byte(door, USE_BYTE(i), "taken", i, err);
	return ret;
}

int io_lock_take(struct io_door *door, struct qc_err *err)
{
	u32 uses = door->flags & IO_DEV_WRITE ? writer_uses : reader_uses;
	int ret = lock_uses(door, uses, err);

	if (!ret)
		ret = lock_denials(door, both_deny, err);
	if (!ret)
		ret = test_denials(door, uses, err);
	return ret ? ret : test_uses(door, both_deny, err);
}

int io_lock_begin_writing(struct io_door *door, struct qc_err *err)
{
	u32 more = writer_uses & ~reader_uses;
	int ret = lock_uses(door, more, err);

	return ret ? ret : test_denials(door, more, err);
}

int io_lock_repeat(struct io_door *door, struct qc_err *err)
{
	int ret = lock_uses(door, writer_uses, err);

	return ret ? ret : lock_denials(door, both_deny, err);
}

void io_lock_end_writing(int fd)
{
	u32 drop = writer_uses & ~reader_uses;

	for (u32 i = 0; i < NR_PERMS; i++) {
		struct flock fl = {
			.l_type = F_UNLCK, .l_whence = SEEK_SET, .l_start = USE_BYTE(i), .l_len = 1,
		};

		if (drop & BIT(i))
			fcntl(fd, F_OFD_SETLK, &fl);
	}
}
