// SPDX-License-Identifier: GPL-2.0-or-later
/* ublkctl: asks ublk_drv for its features and deletes a device left behind. */
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef IORING_SETUP_SQE128
#define IORING_SETUP_SQE128 (1U << 10)
#endif
#define OP_URING_CMD 46

/* struct ublksrv_ctrl_cmd, as in linux/ublk_cmd.h, which older headers lack in part */
struct ctrl_cmd {
	uint32_t dev_id;
	uint16_t queue_id;
	uint16_t len;
	uint64_t addr;
	uint64_t data[1];
	uint16_t dev_path_len;
	uint16_t pad;
	uint32_t reserved;
};

_Static_assert(sizeof(struct ctrl_cmd) == 32, "ublksrv_ctrl_cmd is 32 bytes");

#define CMD_DEL_DEV _IOWR('u', 0x05, struct ctrl_cmd)
#define CMD_STOP_DEV _IOWR('u', 0x07, struct ctrl_cmd)
#define CMD_GET_FEATURES _IOR('u', 0x13, struct ctrl_cmd)

struct ring {
	int fd;
	char *sq;
	char *cq;
	char *sqes;
	struct io_uring_params p;
};

static void *ring_map(int fd, size_t len, uint64_t offset)
{
	void *at = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, offset);

	if (at == MAP_FAILED) {
		perror("ublkctl: mmap");
		exit(1);
	}
	return at;
}

static void ring_open(struct ring *r)
{
	memset(r, 0, sizeof(*r));
	r->p.flags = IORING_SETUP_SQE128;
	r->fd = syscall(__NR_io_uring_setup, 4, &r->p);
	if (r->fd < 0) {
		perror("ublkctl: io_uring_setup");
		exit(1);
	}
	r->sq = ring_map(r->fd, r->p.sq_off.array + r->p.sq_entries * 4,
			 IORING_OFF_SQ_RING);
	r->cq = ring_map(r->fd, r->p.cq_off.cqes +
			 r->p.cq_entries * sizeof(struct io_uring_cqe),
			 IORING_OFF_CQ_RING);
	r->sqes = ring_map(r->fd, r->p.sq_entries * 128, IORING_OFF_SQES);
}

static unsigned int *word(char *base, uint32_t offset)
{
	return (unsigned int *)(base + offset);
}

/* Sends one control command on a ring of its own; returns its result. */
static int ublk_ctrl(uint32_t op, const struct ctrl_cmd *cmd)
{
	struct io_uring_sqe *sqe;
	struct io_uring_cqe *cqe;
	struct ring r;
	int fd = open("/dev/ublk-control", O_RDWR);

	if (fd < 0)
		return -errno;
	ring_open(&r);
	sqe = (struct io_uring_sqe *)r.sqes;
	memset(sqe, 0, 128);
	sqe->opcode = OP_URING_CMD;
	sqe->fd = fd;
	sqe->off = op;	/* cmd_op and its padding share the place of off */
	memcpy(r.sqes + 48, cmd, sizeof(*cmd));
	word(r.sq, r.p.sq_off.array)[0] = 0;
	__atomic_store_n(word(r.sq, r.p.sq_off.tail), 1, __ATOMIC_RELEASE);
	if (syscall(__NR_io_uring_enter, r.fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0)
		return -errno;
	cqe = (struct io_uring_cqe *)(r.cq + r.p.cq_off.cqes);
	close(fd);
	close(r.fd);
	return cqe->res;
}

static int report(const char *what, int res)
{
	if (res < 0)
		fprintf(stderr, "ublkctl: %s: %s\n", what, strerror(-res));
	return res < 0;
}

static int features(void)
{
	uint64_t bits = 0;
	struct ctrl_cmd cmd = {
		.dev_id = UINT32_MAX, .queue_id = UINT16_MAX,
		.addr = (uintptr_t)&bits, .len = sizeof(bits),
	};
	int res = ublk_ctrl(CMD_GET_FEATURES, &cmd);

	if (res >= 0)
		printf("0x%llx\n", (unsigned long long)bits);
	return report("features", res);
}

static int del(const char *id)
{
	struct ctrl_cmd cmd = {
		.dev_id = (uint32_t)strtoul(id, NULL, 10), .queue_id = UINT16_MAX,
	};

	ublk_ctrl(CMD_STOP_DEV, &cmd);
	return report("del", ublk_ctrl(CMD_DEL_DEV, &cmd));
}

int main(int argc, char **argv)
{
	if (argc == 2 && !strcmp(argv[1], "features"))
		return features();
	if (argc == 3 && !strcmp(argv[1], "del"))
		return del(argv[2]);
	fprintf(stderr, "usage: ublkctl features | del ID\n");
	return 2;
}
