// SPDX-License-Identifier: GPL-2.0-or-later
/* Commands to /dev/ublk-control, one at a time, and what they carry. */
#include "ublk-private.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define UBLK_CONTROL_PATH "/dev/ublk-control"
/* 128-byte SQEs of one page: liburing before 2.9 does not unmap more of them. */
#define UBLK_CONTROL_ENTRIES 4
#define UBLK_PATIENCE_NS 50000000ll

u64 ublk_now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000ull + ts.tv_nsec / 1000000;
}

u32 ublk_control_opcode(const struct ublk_control *ctl, u32 op)
{
	return ctl->raw_opcodes ? _IOC_NR(op) : op;
}

static int control_ring(struct ublk_control *ctl)
{
	struct io_uring_params params = { .flags = IORING_SETUP_SQE128 };
	int ret;

	if (ctl->has_ring)
		return 0;
	ret = io_uring_queue_init_params(UBLK_CONTROL_ENTRIES, &ctl->ring, &params);
	ctl->has_ring = ret == 0;
	return ret;
}

static void control_ring_exit(struct ublk_control *ctl)
{
	if (ctl->has_ring)
		io_uring_queue_exit(&ctl->ring);
	ctl->has_ring = false;
}

static void control_queue(struct ublk_control *ctl, const struct ublk_command *cmd)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&ctl->ring);
	struct ublksrv_ctrl_cmd payload = {
		.dev_id = cmd->dev_id,
		.queue_id = UINT16_MAX,
		.addr = (uintptr_t)cmd->buf,
		.len = cmd->len,
		.data = { cmd->data },
	};
	u8 *at;

	assert(sqe); /* one command at a time */
	memset(sqe, 0, 2 * sizeof(*sqe));
	sqe->opcode = IORING_OP_URING_CMD;
	sqe->fd = ctl->fd;
	sqe->cmd_op = ublk_control_opcode(ctl, cmd->op);
	/* SQE128: the payload goes on in the second half, which no type shows */
	at = (u8 *)sqe + offsetof(struct io_uring_sqe, cmd);
	__asm__("" : "+r"(at));
	memcpy(at, &payload, sizeof(payload));
}

static int control_patience(const struct ublk_control *ctl, u64 deadline_ms)
{
	if (ctl->give_up && __atomic_load_n(ctl->give_up, __ATOMIC_ACQUIRE))
		return -ECANCELED;
	return deadline_ms && ublk_now_ms() >= deadline_ms ? -ETIMEDOUT : 0;
}

/*
 * START_DEV and END_USER_RECOVERY wait in the kernel for all fetches, DEL_DEV
 * for the last user. What may never come must not stop us: closing the ring
 * interrupts the command.
 */
static int control_wait(struct ublk_control *ctl, u32 timeout_ms)
{
	u64 deadline_ms = timeout_ms ? ublk_now_ms() + timeout_ms : 0;
	struct __kernel_timespec slice = { .tv_nsec = UBLK_PATIENCE_NS };
	struct io_uring_cqe *cqe;
	int ret;

	for (;;) {
		ret = io_uring_wait_cqe_timeout(&ctl->ring, &cqe, &slice);
		if (ret == 0)
			break;
		if (ret == -ETIME || ret == -EINTR || ret == -EAGAIN)
			ret = control_patience(ctl, deadline_ms);
		if (ret) {
			control_ring_exit(ctl);
			return ret;
		}
	}
	ret = cqe->res;
	io_uring_cqe_seen(&ctl->ring, cqe);
	return ret;
}

int ublk_control_run(struct ublk_control *ctl, const struct ublk_command *cmd)
{
	int ret = control_ring(ctl);

	if (ret)
		return ret;
	control_queue(ctl, cmd);
	ret = io_uring_submit(&ctl->ring);
	if (ret < 0)
		return ret;
	return control_wait(ctl, cmd->timeout_ms);
}

int ublk_control_info(struct ublk_control *ctl, u32 dev_id,
		      struct ublksrv_ctrl_dev_info *result)
{
	memset(result, 0, sizeof(*result));
	return ublk_control_run(ctl, &(struct ublk_command){
					     .op = UBLK_U_CMD_GET_DEV_INFO,
					     .dev_id = dev_id,
					     .buf = result,
					     .len = sizeof(*result),
				     });
}

/*
 * Drivers before 6.5 do not know the question. They take bare numbers, copy
 * mode is all they have, and user recovery came with 6.1: ADD_DEV will tell.
 */
static void control_probe(struct ublk_control *ctl)
{
	int ret = ublk_control_run(ctl, &(struct ublk_command){
						.op = UBLK_U_CMD_GET_FEATURES,
						.dev_id = UINT32_MAX,
						.buf = &ctl->features,
						.len = UBLK_FEATURES_LEN,
					});

	if (ret == 0)
		return;
	ctl->raw_opcodes = true;
	ctl->features = UBLK_F_USER_RECOVERY | UBLK_F_USER_RECOVERY_REISSUE;
}

int ublk_control_open(struct ublk_control *ctl, struct qc_err *err)
{
	int ret;

	memset(ctl, 0, sizeof(*ctl));
	ctl->fd = open(UBLK_CONTROL_PATH, O_RDWR | O_CLOEXEC);
	if (ctl->fd < 0) {
		ret = -errno;
		return qc_err_set(err, ret,
				  UBLK_CONTROL_PATH ": cannot be opened (%s), ublk_drv is needed: "
				  "Linux 6.1 or later, Debian 13, Debian 12 with a backports "
				  "kernel; run `modprobe ublk_drv` as root, or serve over NBD, "
				  "which works without it (qchainctl up --no-ublk --nbd SOCK, "
				  "qchaind --export nbd,socket=PATH)",
				  strerror(-ret));
	}
	ret = control_ring(ctl);
	if (ret) {
		close(ctl->fd);
		ctl->fd = -1;
		return qc_err_set(err, ret,
				  UBLK_CONTROL_PATH ": io_uring with 128-byte entries failed (%s), "
				  "Linux 6.1 or later with io_uring allowed is needed; see "
				  "/proc/sys/kernel/io_uring_disabled",
				  strerror(-ret));
	}
	control_probe(ctl);
	return 0;
}

void ublk_control_close(struct ublk_control *ctl)
{
	control_ring_exit(ctl);
	if (ctl->fd >= 0)
		close(ctl->fd);
	ctl->fd = -1;
}

/* ---- parameters ------------------------------------------------------------------ */

static u8 shift_of(u32 bytes, u8 least)
{
	u8 shift = 31 - __builtin_clz(bytes | 1);

	return max(shift, least);
}

static void params_basic(const struct target *ti, u32 max_bytes, struct ublk_param_basic *b)
{
	const struct target_limits *lim = &ti->limits;
	u64 size = __atomic_load_n(&ti->size_bytes, __ATOMIC_RELAXED);

	/* FUA is not offered: the kernel sends a FLUSH after the write (rule B2). */
	b->attrs = UBLK_ATTR_VOLATILE_CACHE;
	if (lim->read_only)
		b->attrs |= UBLK_ATTR_READ_ONLY;
	b->logical_bs_shift = shift_of(lim->logical_block, SECTOR_SHIFT);
	b->physical_bs_shift = shift_of(lim->physical_block, b->logical_bs_shift);
	b->io_min_shift = shift_of(lim->io_min, b->physical_bs_shift);
	b->io_opt_shift = shift_of(lim->io_opt, b->io_min_shift);
	b->max_sectors = max_bytes >> SECTOR_SHIFT;
	b->dev_sectors = ALIGN_DOWN(size, lim->logical_block) >> SECTOR_SHIFT;
}

/* As many whole granules as a request may have; 0 when that is none. */
static u32 discard_sectors(u32 limit_bytes, u32 granularity)
{
	u32 bytes = min(limit_bytes, QC_MAX_DISCARD_BYTES);

	return (bytes - bytes % granularity) >> SECTOR_SHIFT;
}

static void params_discard(const struct target_limits *lim, struct ublk_params *p)
{
	struct ublk_param_discard *d = &p->discard;
	u32 granularity = max(lim->discard_granularity, lim->logical_block);

	if (lim->discard_granularity)
		d->max_discard_sectors = discard_sectors(lim->max_discard, granularity);
	d->max_write_zeroes_sectors = discard_sectors(lim->max_write_zeroes, lim->logical_block);
	if (!d->max_discard_sectors && !d->max_write_zeroes_sectors)
		return;
	d->discard_granularity = granularity;
	d->max_discard_segments = 1;
	p->types |= UBLK_PARAM_TYPE_DISCARD;
}

/*
 * Zero copy hands the pages on as they are: each of their pieces must suit the
 * layers below, in address and in length. One request has at most as many
 * pieces as pages. Drivers before 6.15 do not know these two, nor zero copy.
 */
static void params_zero_copy(const struct target_limits *lim, u32 max_bytes,
			     struct ublk_params *p)
{
	p->dma.alignment = max(lim->dma_align_mask, lim->logical_block - 1);
	p->seg.seg_boundary_mask = UINT32_MAX;
	p->seg.max_segment_size = max_bytes;
	p->seg.max_segments = max_bytes / UBLK_MIN_SEGMENT_SIZE;
	p->types |= UBLK_PARAM_TYPE_DMA_ALIGN | UBLK_PARAM_TYPE_SEGMENT;
}

void ublk_params_build(const struct target *ti, u32 max_bytes, bool zero_copy,
		       struct ublk_params *result)
{
	memset(result, 0, sizeof(*result));
	result->len = sizeof(*result);
	result->types = UBLK_PARAM_TYPE_BASIC;
	params_basic(ti, max_bytes, &result->basic);
	params_discard(&ti->limits, result);
	if (zero_copy)
		params_zero_copy(&ti->limits, max_bytes, result);
}
