// SPDX-License-Identifier: GPL-2.0-or-later
/* Devices: any offset and length, ends of files, file types, image locks. */
#include "unit.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <qchain/io.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define SPAN_BYTES (3u * MiB)

static char dir[] = "/tmp/qchain-io-dev-XXXXXX";

static const char *in_dir(const char *name)
{
	static char path[4][128];
	static u32 next;
	char *p = path[next++ % 4];

	snprintf(p, sizeof(path[0]), "%s/%s", dir, name);
	return p;
}

static const char *make_file(const char *path, off_t bytes)
{
	int fd = open(path, O_CREAT | O_RDWR | O_TRUNC | O_CLOEXEC, 0600);

	CU_ASSERT_FATAL(fd >= 0);
	CU_ASSERT(ftruncate(fd, bytes) == 0);
	close(fd);
	return path;
}

/* A loop device over @file that goes away with the returned descriptor; -1: none here. */
static int make_loop(const char *file, u32 block_bytes, char *name, size_t len)
{
	char command[256];
	int fd = -1;
	FILE *f;

	snprintf(command, sizeof(command), "losetup -b %u -f --show %s 2>/dev/null", block_bytes,
		 file);
	f = popen(command, "r");
	if (f && fgets(name, len, f)) {
		name[strcspn(name, "\n")] = 0;
		fd = open(name, O_RDONLY | O_CLOEXEC);
		snprintf(command, sizeof(command), "losetup -d %s", name);
		if (system(command))
			fd = -1;
	}
	if (f)
		pclose(f);
	if (fd < 0)
		printf(" (skipped: no loop devices) ");
	return fd;
}

static struct io_dev *open_ok(const char *path, u32 flags)
{
	struct qc_err err = { 0 };
	struct io_dev *dev = NULL;

	if (io_dev_open(path, flags, &dev, &err)) {
		printf("\n%s\n", err.msg);
		CU_FAIL_FATAL("open failed");
	}
	return dev;
}

/* Returns the code of the refusal; its text must contain @words. */
static int open_refused(const char *path, u32 flags, const char *words)
{
	struct qc_err err = { 0 };
	struct io_dev *dev;
	int ret;

	ret = io_dev_open(path, flags, &dev, &err);
	CU_ASSERT_FATAL(ret < 0);
	CU_ASSERT(err.code == ret);
	CU_ASSERT(strstr(err.msg, path) == err.msg);
	if (!strstr(err.msg, words)) {
		printf("\nexpected \"%s\" in: %s\n", words, err.msg);
		CU_FAIL("wrong text");
	}
	return ret;
}

/* ---- bytes ------------------------------------------------------------- */

/* Random reads and writes against a copy in memory. */
static void random_io(struct io_dev *dev, u64 seed)
{
	char *copy = calloc(1, SPAN_BYTES), *buf = malloc(SPAN_BYTES);

	srandom(seed);
	for (u32 i = 0; i < 400; i++) {
		u32 offset = random() % SPAN_BYTES;
		u32 len = random() % (i % 8 ? 9000 : SPAN_BYTES);

		len = min(len, SPAN_BYTES - offset);
		if (i % 3 == 0) {
			offset = ALIGN_DOWN(offset, 4096);
			len = ALIGN_DOWN(len, 4096);
		}
		if (i & 1) {
			memset(buf, i, len);
			memcpy(copy + offset, buf, len);
			CU_ASSERT(io_dev_pwrite(dev, buf, len, offset) == 0);
		} else {
			CU_ASSERT(io_dev_pread(dev, buf, len, offset) == 0);
			CU_ASSERT(memcmp(buf, copy + offset, len) == 0);
		}
	}
	CU_ASSERT(io_dev_pread(dev, buf, SPAN_BYTES, 0) == 0);
	CU_ASSERT(memcmp(buf, copy, SPAN_BYTES) == 0);
	CU_ASSERT(io_dev_flush(dev) == 0);
	free(copy);
	free(buf);
}

static void random_io_on(const char *path, u32 flags)
{
	struct io_dev *dev = open_ok(path, IO_DEV_WRITE | flags);

	CU_ASSERT(dev->block_bytes >= SECTOR_SIZE && is_power_of_2(dev->block_bytes));
	CU_ASSERT(is_power_of_2(dev->mem_align_bytes) && dev->mem_align_bytes <= 4096);
	CU_ASSERT(dev->writable && dev->size_bytes == SPAN_BYTES);
	random_io(dev, 1 + flags);
	io_dev_close(dev);
}

static void test_random_file(void)
{
	random_io_on(make_file(in_dir("direct"), SPAN_BYTES), 0);
}

static void test_random_buffered(void)
{
	const char *path = make_file(in_dir("buffered"), SPAN_BYTES);
	struct io_dev *dev = open_ok(path, IO_DEV_BUFFERED);

	CU_ASSERT(!dev->direct);
	io_dev_close(dev);
	random_io_on(path, IO_DEV_BUFFERED);
}

static void test_random_tmpfs(void)
{
	const char *path = "/dev/shm/qchain-io-dev-test";
	struct io_dev *dev;

	dev = open_ok(make_file(path, SPAN_BYTES), 0);
	CU_ASSERT(dev->block_bytes == SECTOR_SIZE);
	io_dev_close(dev);
	random_io_on(path, 0);
	unlink(path);
}

static void random_loop(u32 block_bytes)
{
	const char *file = make_file(in_dir("loop"), SPAN_BYTES);
	char name[64];
	struct io_dev *dev;
	int keep = make_loop(file, block_bytes, name, sizeof(name));

	if (keep < 0)
		return;
	dev = open_ok(name, 0);
	CU_ASSERT(dev->blockdev && dev->direct && dev->block_bytes == block_bytes);
	io_dev_close(dev);
	random_io_on(name, 0);
	close(keep);
}

static void test_random_loop(void)
{
	random_loop(512);
}

static void test_random_loop_4k(void)
{
	random_loop(4096);
}

static void test_file_end(void)
{
	const char *path = make_file(in_dir("end"), 1000);
	struct io_dev *dev = open_ok(path, IO_DEV_WRITE);
	char buf[8192], zero[8192] = { 0 };

	memset(buf, 0xaa, sizeof(buf));
	CU_ASSERT(dev->size_bytes == 1000);
	CU_ASSERT(io_dev_pread(dev, buf, sizeof(buf), 0) == 0);
	CU_ASSERT(memcmp(buf, zero, sizeof(buf)) == 0);
	memset(buf, 0xaa, sizeof(buf));
	CU_ASSERT(io_dev_pread(dev, buf, 5000, 1 * MiB + 3) == 0);
	CU_ASSERT(memcmp(buf, zero, 5000) == 0);
	/* A write past the end makes the file longer, and is known at once. */
	CU_ASSERT(io_dev_pwrite(dev, "end", 3, 100000) == 0);
	CU_ASSERT(dev->size_bytes >= 100003);
	CU_ASSERT(io_dev_pread(dev, buf, 8, 99998) == 0);
	CU_ASSERT(memcmp(buf, "\0\0end\0\0\0", 8) == 0);
	io_dev_close(dev);
	dev = open_ok(path, 0);
	CU_ASSERT(!dev->writable);
	CU_ASSERT(io_dev_pwrite(dev, "no", 2, 0) == -EBADF);
	CU_ASSERT(truncate(path, 12345) == 0);
	CU_ASSERT(dev->ops->refresh_size(dev) == 12345);
	CU_ASSERT(dev->size_bytes == 12345);
	io_dev_close(dev);
}

static void test_device_end(void)
{
	char name[64], buf[4096] = { 0 };
	struct io_dev *dev;
	int keep = make_loop(make_file(in_dir("dev-end"), 1 * MiB), 512, name, sizeof(name));

	if (keep < 0)
		return;
	dev = open_ok(name, IO_DEV_WRITE);
	CU_ASSERT(dev->size_bytes == 1 * MiB);
	CU_ASSERT(io_dev_pread(dev, buf, 512, 1 * MiB - 512) == 0);
	CU_ASSERT(io_dev_pread(dev, buf, 1024, 1 * MiB - 512) == -EIO);
	CU_ASSERT(io_dev_pread(dev, buf, 5, 2 * MiB) == -EIO);
	CU_ASSERT(io_dev_pwrite(dev, buf, 1024, 1 * MiB - 512) == -ENOSPC);
	CU_ASSERT(io_dev_pwrite(dev, buf, 512, 1 * MiB - 512) == 0);
	io_dev_close(dev);
	close(keep);
}

/* ---- the door ---------------------------------------------------------- */

static void test_types(void)
{
	struct sockaddr_un sun = { .sun_family = AF_UNIX };
	int s = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(sun.sun_path, sizeof(sun.sun_path), "%s", in_dir("socket"));
	CU_ASSERT(bind(s, (struct sockaddr *)&sun, sizeof(sun)) == 0);
	CU_ASSERT(mkfifo(in_dir("fifo"), 0600) == 0);
	CU_ASSERT(symlink(in_dir("fifo"), in_dir("link-to-fifo")) == 0);
	alarm(20); /* a door that blocks in open(2) fails here */
	CU_ASSERT(open_refused(in_dir("fifo"), 0, "is a fifo") == -EINVAL);
	CU_ASSERT(open_refused(in_dir("fifo"), IO_DEV_WRITE, "is a fifo") == -EINVAL);
	CU_ASSERT(open_refused(in_dir("link-to-fifo"), 0, "is a fifo") == -EINVAL);
	CU_ASSERT(open_refused(dir, 0, "is a directory") == -EINVAL);
	CU_ASSERT(open_refused("/dev/zero", IO_DEV_WRITE, "is a character device") == -EINVAL);
	CU_ASSERT(open_refused(in_dir("socket"), 0, "is a socket") == -EINVAL);
	CU_ASSERT(open_refused(in_dir("none"), 0, "not found") == -ENOENT);
	alarm(0);
	close(s);
}

static void test_writers_exclude(void)
{
	const char *path = make_file(in_dir("excl"), 4096);
	struct io_dev *dev = open_ok(path, IO_DEV_WRITE);

	CU_ASSERT(open_refused(path, IO_DEV_WRITE, "this process") == -EAGAIN);
	CU_ASSERT(open_refused(path, 0, "\"write\" is taken") == -EAGAIN);
	io_dev_close(open_ok(path, IO_DEV_NOLOCK));
	io_dev_close(dev);
	io_dev_close(open_ok(path, IO_DEV_WRITE));
}

static void test_readers_share(void)
{
	const char *path = make_file(in_dir("share"), 4096);
	struct io_dev *a = open_ok(path, 0), *b = open_ok(path, 0);

	CU_ASSERT(open_refused(path, IO_DEV_WRITE, "\"write\" is denied") == -EAGAIN);
	io_dev_close(a);
	CU_ASSERT(open_refused(path, IO_DEV_WRITE, "this process") == -EAGAIN);
	io_dev_close(b);
	io_dev_close(open_ok(path, IO_DEV_WRITE));
}

/* Which of the bytes 100..104 and 200..204 does somebody else hold? Bit i, bit 8 + i. */
static u32 held_bytes(const char *path)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);
	u32 held = 0;

	for (u32 i = 0; i < 300; i++) {
		struct flock fl = { .l_type = F_WRLCK, .l_start = i, .l_len = 1 };

		CU_ASSERT(fcntl(fd, F_OFD_GETLK, &fl) == 0);
		if (fl.l_type == F_UNLCK)
			continue;
		CU_ASSERT(fl.l_type == F_RDLCK);
		CU_ASSERT_FATAL((i >= 100 && i < 105) || (i >= 200 && i < 205));
		held |= i < 200 ? 1u << (i - 100) : 0x100u << (i - 200);
	}
	close(fd);
	return held;
}

static void test_lock_bytes(void)
{
	const char *path = make_file(in_dir("bytes"), 4096);
	struct io_dev *dev = open_ok(path, 0);

	CU_ASSERT(held_bytes(path) == 0xa01);
	io_dev_close(dev);
	dev = open_ok(path, IO_DEV_WRITE);
	CU_ASSERT(held_bytes(path) == 0xa0f);
	io_dev_close(dev);
	dev = open_ok(path, IO_DEV_WRITE | IO_DEV_NOLOCK);
	CU_ASSERT(held_bytes(path) == 0);
	io_dev_close(dev);
	CU_ASSERT(held_bytes(path) == 0);
}

/* A child that holds @path open for writing until holder_end(); returns when it does. */
static int holder_pipe = -1;

static pid_t holder_start(const char *path)
{
	int ready[2], end[2];
	pid_t pid;
	char c;

	CU_ASSERT_FATAL(pipe2(ready, O_CLOEXEC) == 0 && pipe2(end, O_CLOEXEC) == 0);
	pid = fork();
	if (pid == 0) {
		close(end[1]);
		open_ok(path, IO_DEV_WRITE);
		if (write(ready[1], "x", 1) == 1)
			while (read(end[0], &c, 1) > 0)
				;
		_exit(0);
	}
	close(ready[1]);
	close(end[0]);
	CU_ASSERT(read(ready[0], &c, 1) == 1);
	close(ready[0]);
	holder_pipe = end[1];
	return pid;
}

static void holder_end(void)
{
	if (holder_pipe >= 0)
		close(holder_pipe);
	holder_pipe = -1;
}

/* The open waits: only now may the other one let it in. */
static void holder_end_on_wait(const char *why)
{
	if (why)
		holder_end();
}

static void wait_for_holder(const char *path)
{
	pid_t pid = holder_start(path);
	char text[32];

	snprintf(text, sizeof(text), "pid %d", pid);
	open_refused(path, IO_DEV_WRITE, text);
	io_dev_on_wait(holder_end_on_wait);
	io_dev_close(open_ok(path, IO_DEV_WRITE | IO_DEV_WAIT));
	io_dev_on_wait(NULL);
	CU_ASSERT(holder_pipe < 0);
	waitpid(pid, NULL, 0);
}

static void on_term(int number)
{
}

/* A signal that comes before the sleep: blocked, so that it ends the sleep. */
static void test_wait_signal(void)
{
	const char *path = make_file(in_dir("signal"), 4096);
	struct sigaction action = { .sa_handler = on_term, .sa_flags = SA_RESTART }, old;
	struct qc_err err = { 0 };
	struct io_dev *dev = NULL;
	sigset_t set, before;
	pid_t pid;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaction(SIGTERM, &action, &old);
	pthread_sigmask(SIG_BLOCK, &set, &before);
	pid = holder_start(path);
	raise(SIGTERM);
	CU_ASSERT(io_dev_open(path, IO_DEV_WRITE | IO_DEV_WAIT, &dev, &err) == -EINTR);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	sigaction(SIGTERM, &old, NULL);
	holder_end();
	waitpid(pid, NULL, 0);
}

static void test_wait_lock(void)
{
	wait_for_holder(make_file(in_dir("wait"), 4096));
}

static void test_wait_claim(void)
{
	char name[64];
	int keep = make_loop(make_file(in_dir("claim"), 1 * MiB), 512, name, sizeof(name));

	if (keep < 0)
		return;
	holder_start(name);
	holder_end(); /* gone at once: nothing may stay claimed */
	wait(NULL);
	wait_for_holder(name);
	close(keep);
}

/* Two chains over one base: both read the block device, nobody writes it. */
static void test_shared_blockdev(void)
{
	char name[64];
	struct io_dev *a, *b;
	int keep = make_loop(make_file(in_dir("shared"), 1 * MiB), 512, name, sizeof(name));

	if (keep < 0)
		return;
	a = open_ok(name, 0);
	b = open_ok(name, 0);
	CU_ASSERT(open_refused(name, IO_DEV_WRITE, "is denied") == -EAGAIN);
	io_dev_close(a);
	io_dev_close(b);
	/* The file below would be written behind the loop device's back. */
	CU_ASSERT(open_refused(in_dir("shared"), IO_DEV_WRITE, "loop device") == -EBUSY);
	close(keep);
}

/* Made smaller while it was only read. */
static void test_begin_writing(void)
{
	const char *path = make_file(in_dir("smaller"), 65536);
	struct io_dev *dev = open_ok(path, 0);
	struct qc_err err = { 0 };

	CU_ASSERT(truncate(path, 8192) == 0 && io_dev_bytes(dev) == 65536);
	CU_ASSERT(io_dev_begin_writing(dev, &err) == 0);
	CU_ASSERT(dev->writable && io_dev_bytes(dev) == 8192);
	io_dev_close(dev);
}

static void test_pv(void)
{
	char name[64];
	struct io_dev *dev;
	int keep = make_loop(make_file(in_dir("pv"), 1 * MiB), 512, name, sizeof(name));

	if (keep < 0)
		return;
	for (u32 sector = 0; sector < 5; sector++) {
		dev = open_ok(name, IO_DEV_WRITE);
		CU_ASSERT(io_dev_pwrite(dev, "LABELONE", 8, sector * 512) == 0);
		CU_ASSERT(io_dev_pwrite(dev, "LVM2 001", 8, sector * 512 + 24) == 0);
		io_dev_close(dev);
		if (sector < 4)
			CU_ASSERT(open_refused(name, IO_DEV_WRITE, "physical volume") == -EBUSY);
		io_dev_close(open_ok(name, 0));
		dev = open_ok(in_dir("pv"), IO_DEV_NOLOCK);
		io_dev_close(dev);
		CU_ASSERT(truncate(in_dir("pv"), 0) == 0 && truncate(in_dir("pv"), 1 * MiB) == 0);
		CU_ASSERT(ioctl(keep, BLKFLSBUF, 0) == 0);
	}
	close(keep);
}

static void test_alloc(void)
{
	void *p = io_alloc(5), *q = io_alloc(0);

	CU_ASSERT(p && q && IS_ALIGNED((uintptr_t)p, 4096));
	CU_ASSERT(!io_alloc(SIZE_MAX - 5));
	free(p);
	free(q);
}

static const struct unit_test tests[] = {
	{ "random I/O: file", test_random_file },
	{ "random I/O: buffered", test_random_buffered },
	{ "random I/O: tmpfs", test_random_tmpfs },
	{ "random I/O: loop device", test_random_loop },
	{ "random I/O: loop device, 4 KiB blocks", test_random_loop_4k },
	{ "end of a file", test_file_end },
	{ "end of a block device", test_device_end },
	{ "file types", test_types },
	{ "a writer excludes everybody", test_writers_exclude },
	{ "readers share", test_readers_share },
	{ "lock bytes are QEMU's", test_lock_bytes },
	{ "wait for a lock", test_wait_lock },
	{ "a signal ends the wait", test_wait_signal },
	{ "wait for a claim", test_wait_claim },
	{ "a block device read twice", test_shared_blockdev },
	{ "from reading to writing", test_begin_writing },
	{ "PV label", test_pv },
	{ "io_alloc", test_alloc },
	{ NULL, NULL },
};

int main(void)
{
	char command[64];
	int ret;

	if (!mkdtemp(dir))
		return 2;
	ret = unit_main("io-dev", tests);
	snprintf(command, sizeof(command), "rm -rf %s", dir);
	return system(command) ? 2 : ret;
}
