/* SPDX-License-Identifier: GPL-2.0-or-later OR MIT */
/* What ublk_drv of Linux 7.3 and a server say to each other; Debian 12's own header ends at 6.1. */
#ifndef UAPI_UBLK_H
#define UAPI_UBLK_H

#include <assert.h>
#include <linux/ioctl.h>
#include <linux/types.h>
#include <stddef.h>

/*
 * Not to be included together with <linux/ublk_cmd.h>: names and layouts are
 * the kernel's. "Since" is the first release whose driver knows it. All fields
 * are in host order.
 */

/* ---- features: flags of struct ublksrv_ctrl_dev_info ------------------------ */

#define UBLK_F_SUPPORT_ZERO_COPY (1ull << 0) /* works since 6.15 */
#define UBLK_F_URING_CMD_COMP_IN_TASK (1ull << 1) /* always set by the driver */
#define UBLK_F_NEED_GET_DATA (1ull << 2)
#define UBLK_F_USER_RECOVERY (1ull << 3) /* 6.1 */
#define UBLK_F_USER_RECOVERY_REISSUE (1ull << 4) /* 6.1, needs USER_RECOVERY */
#define UBLK_F_UNPRIVILEGED_DEV (1ull << 5) /* 6.3 */
#define UBLK_F_CMD_IOCTL_ENCODE (1ull << 6) /* 6.4, always set by the driver */
#define UBLK_F_USER_COPY (1ull << 7) /* 6.5 */
#define UBLK_F_ZONED (1ull << 8) /* 6.6 */
#define UBLK_F_USER_RECOVERY_FAIL_IO (1ull << 9) /* 6.13 */
#define UBLK_F_UPDATE_SIZE (1ull << 10) /* 6.16 */
#define UBLK_F_AUTO_BUF_REG (1ull << 11) /* 6.16 */
#define UBLK_F_QUIESCE (1ull << 12) /* 6.16, needs USER_RECOVERY */
#define UBLK_F_PER_IO_DAEMON (1ull << 13) /* 6.16, set by the driver */
#define UBLK_F_BUF_REG_OFF_DAEMON (1ull << 14) /* 6.17, always set by the driver */
#define UBLK_F_BATCH_IO (1ull << 15) /* 7.0 */
#define UBLK_F_INTEGRITY (1ull << 16) /* 7.0 */
#define UBLK_F_SAFE_STOP_DEV (1ull << 17) /* 7.0, always set by the driver */
#define UBLK_F_NO_AUTO_PART_SCAN (1ull << 18) /* 7.0 */
#define UBLK_F_SHMEM_ZC (1ull << 19) /* 7.1 */
#define UBLK_F_IO_DESC_SIZE (1ull << 20) /* 7.3 */

/* ---- numbers ------------------------------------------------------------------ */

#define UBLK_MAX_QUEUE_DEPTH 4096
#define UBLK_MAX_NR_QUEUES 4096
#define UBLK_FEATURES_LEN 8
#define UBLK_MIN_SEGMENT_SIZE 4096

/* Offsets in /dev/ublkcN: mmap of the descriptors, user copy of the data. */
#define UBLKSRV_CMD_BUF_OFFSET 0
#define UBLKSRV_IO_BUF_OFFSET 0x80000000ull
#define UBLK_IO_BUF_BITS 25
#define UBLK_TAG_OFF UBLK_IO_BUF_BITS
#define UBLK_TAG_BITS 16
#define UBLK_QID_OFF (UBLK_TAG_OFF + UBLK_TAG_BITS)
#define UBLK_QID_BITS 12
#define UBLKSRV_IO_INTEGRITY_FLAG (1ull << 62)

/* state of struct ublksrv_ctrl_dev_info */
#define UBLK_S_DEV_DEAD 0
#define UBLK_S_DEV_LIVE 1
#define UBLK_S_DEV_QUIESCED 2
#define UBLK_S_DEV_FAIL_IO 3

/* ---- control commands: /dev/ublk-control, in a 128-byte SQE ------------------- */

/* @queue_id is 0xffff but where a command says otherwise. */
struct ublksrv_ctrl_cmd {
	__u32 dev_id;
	__u16 queue_id;
	__u16 len;
	__u64 addr;
	__u64 data[1];
	__u16 dev_path_len;
	__u16 pad;
	__u32 reserved;
};

static_assert(sizeof(struct ublksrv_ctrl_cmd) == 32, "size of ublksrv_ctrl_cmd");
static_assert(offsetof(struct ublksrv_ctrl_cmd, data) == 16, "layout of ublksrv_ctrl_cmd");

#define UBLK_U_CMD_GET_QUEUE_AFFINITY _IOR('u', 0x01, struct ublksrv_ctrl_cmd)
#define UBLK_U_CMD_GET_DEV_INFO _IOR('u', 0x02, struct ublksrv_ctrl_cmd)
#define UBLK_U_CMD_ADD_DEV _IOWR('u', 0x04, struct ublksrv_ctrl_cmd)
#define UBLK_U_CMD_DEL_DEV _IOWR('u', 0x05, struct ublksrv_ctrl_cmd)
#define UBLK_U_CMD_START_DEV _IOWR('u', 0x06, struct ublksrv_ctrl_cmd)
#define UBLK_U_CMD_STOP_DEV _IOWR('u', 0x07, struct ublksrv_ctrl_cmd)
#define UBLK_U_CMD_SET_PARAMS _IOWR('u', 0x08, struct ublksrv_ctrl_cmd)
#define UBLK_U_CMD_GET_PARAMS _IOR('u', 0x09, struct ublksrv_ctrl_cmd)
#define UBLK_U_CMD_START_USER_RECOVERY _IOWR('u', 0x10, struct ublksrv_ctrl_cmd) /* 6.1 */
#define UBLK_U_CMD_END_USER_RECOVERY _IOWR('u', 0x11, struct ublksrv_ctrl_cmd) /* 6.1 */
#define UBLK_U_CMD_GET_DEV_INFO2 _IOR('u', 0x12, struct ublksrv_ctrl_cmd) /* 6.3 */
#define UBLK_U_CMD_GET_FEATURES _IOR('u', 0x13, struct ublksrv_ctrl_cmd) /* 6.5 */
#define UBLK_U_CMD_DEL_DEV_ASYNC _IOR('u', 0x14, struct ublksrv_ctrl_cmd) /* 6.9 */
#define UBLK_U_CMD_UPDATE_SIZE _IOWR('u', 0x15, struct ublksrv_ctrl_cmd) /* 6.16 */
#define UBLK_U_CMD_QUIESCE_DEV _IOWR('u', 0x16, struct ublksrv_ctrl_cmd) /* 6.16 */
#define UBLK_U_CMD_TRY_STOP_DEV _IOWR('u', 0x17, struct ublksrv_ctrl_cmd) /* 7.0 */
#define UBLK_U_CMD_REG_BUF _IOWR('u', 0x18, struct ublksrv_ctrl_cmd) /* 7.1 */
#define UBLK_U_CMD_UNREG_BUF _IOWR('u', 0x19, struct ublksrv_ctrl_cmd) /* 7.1 */

/* ADD_DEV (in and out), GET_DEV_INFO. @ublksrv_flags: the server's own, kept over recovery. */
struct ublksrv_ctrl_dev_info {
	__u16 nr_hw_queues;
	__u16 queue_depth;
	__u16 state;
	__u16 io_desc_size; /* 7.3, with UBLK_F_IO_DESC_SIZE; padding before */
	__u32 max_io_buf_bytes;
	__u32 dev_id;
	__s32 ublksrv_pid;
	__u32 pad1;
	__u64 flags;
	__u64 ublksrv_flags;
	__u32 owner_uid;
	__u32 owner_gid;
	__u64 reserved1;
	__u64 reserved2;
};

static_assert(sizeof(struct ublksrv_ctrl_dev_info) == 64, "size of ublksrv_ctrl_dev_info");
static_assert(offsetof(struct ublksrv_ctrl_dev_info, flags) == 24 &&
		      offsetof(struct ublksrv_ctrl_dev_info, owner_uid) == 40,
	      "layout of ublksrv_ctrl_dev_info");

/* ---- parameters: SET_PARAMS, GET_PARAMS --------------------------------------- */

#define UBLK_ATTR_READ_ONLY (1u << 0)
#define UBLK_ATTR_ROTATIONAL (1u << 1)
#define UBLK_ATTR_VOLATILE_CACHE (1u << 2)
#define UBLK_ATTR_FUA (1u << 3) /* only together with VOLATILE_CACHE */

struct ublk_param_basic {
	__u32 attrs;
	__u8 logical_bs_shift;
	__u8 physical_bs_shift;
	__u8 io_opt_shift;
	__u8 io_min_shift;
	__u32 max_sectors;
	__u32 chunk_sectors;
	__u64 dev_sectors;
	__u64 virt_boundary_mask;
};

struct ublk_param_discard {
	__u32 discard_alignment;
	__u32 discard_granularity;
	__u32 max_discard_sectors;
	__u32 max_write_zeroes_sectors;
	__u16 max_discard_segments;
	__u16 reserved0;
};

struct ublk_param_devt {
	__u32 char_major;
	__u32 char_minor;
	__u32 disk_major;
	__u32 disk_minor;
};

struct ublk_param_zoned {
	__u32 max_open_zones;
	__u32 max_active_zones;
	__u32 max_zone_append_sectors;
	__u8 reserved[20];
};

/* @alignment: a mask, 511 for sectors */
struct ublk_param_dma_align {
	__u32 alignment;
	__u8 pad[4];
};

struct ublk_param_segment {
	__u64 seg_boundary_mask;
	__u32 max_segment_size;
	__u16 max_segments;
	__u8 pad[2];
};

struct ublk_param_integrity {
	__u32 flags;
	__u16 max_integrity_segments;
	__u8 interval_exp;
	__u8 metadata_size;
	__u8 pi_offset;
	__u8 csum_type;
	__u8 tag_size;
	__u8 pad[5];
};

#define UBLK_PARAM_TYPE_BASIC (1u << 0)
#define UBLK_PARAM_TYPE_DISCARD (1u << 1)
#define UBLK_PARAM_TYPE_DEVT (1u << 2) /* read-only */
#define UBLK_PARAM_TYPE_ZONED (1u << 3)
#define UBLK_PARAM_TYPE_DMA_ALIGN (1u << 4) /* 6.15 */
#define UBLK_PARAM_TYPE_SEGMENT (1u << 5) /* 6.15 */
#define UBLK_PARAM_TYPE_INTEGRITY (1u << 6) /* 7.0 */

/* Older drivers take the front part and mask the types that they do not know. */
struct ublk_params {
	__u32 len;
	__u32 types;
	struct ublk_param_basic basic;
	struct ublk_param_discard discard;
	struct ublk_param_devt devt;
	struct ublk_param_zoned zoned;
	struct ublk_param_dma_align dma;
	struct ublk_param_segment seg;
	struct ublk_param_integrity integrity;
};

static_assert(sizeof(struct ublk_param_basic) == 32 && sizeof(struct ublk_param_discard) == 20 &&
		      sizeof(struct ublk_param_devt) == 16 &&
		      sizeof(struct ublk_param_zoned) == 32 &&
		      sizeof(struct ublk_param_dma_align) == 8 &&
		      sizeof(struct ublk_param_segment) == 16 &&
		      sizeof(struct ublk_param_integrity) == 16,
	      "size of a ublk parameter");
static_assert(sizeof(struct ublk_params) == 152, "size of ublk_params");
static_assert(offsetof(struct ublk_params, basic) == 8 &&
		      offsetof(struct ublk_params, discard) == 40 &&
		      offsetof(struct ublk_params, dma) == 108 &&
		      offsetof(struct ublk_params, seg) == 120,
	      "layout of ublk_params");

/* ---- requests: the mapped descriptors of /dev/ublkcN -------------------------- */

#define UBLK_IO_OP_READ 0
#define UBLK_IO_OP_WRITE 1
#define UBLK_IO_OP_FLUSH 2
#define UBLK_IO_OP_DISCARD 3
#define UBLK_IO_OP_WRITE_SAME 4
#define UBLK_IO_OP_WRITE_ZEROES 5

/* In place in @op_flags, above the operation's 8 bits. */
#define UBLK_IO_F_FAILFAST_DEV (1u << 8)
#define UBLK_IO_F_FAILFAST_TRANSPORT (1u << 9)
#define UBLK_IO_F_FAILFAST_DRIVER (1u << 10)
#define UBLK_IO_F_META (1u << 11)
#define UBLK_IO_F_FUA (1u << 13)
#define UBLK_IO_F_NOUNMAP (1u << 15)
#define UBLK_IO_F_SWAP (1u << 16)
#define UBLK_IO_F_NEED_REG_BUF (1u << 17) /* 6.16: automatic registration failed */
#define UBLK_IO_F_INTEGRITY (1u << 18) /* 7.0 */
#define UBLK_IO_F_SHMEM_ZC (1u << 19) /* 7.1 */

/* Sectors are 512 bytes whatever the device's block size is. */
struct ublksrv_io_desc {
	__u32 op_flags;
	__u32 nr_sectors;
	__u64 start_sector;
	__u64 addr;
};

static_assert(sizeof(struct ublksrv_io_desc) == 24, "size of ublksrv_io_desc");

/* ---- I/O commands: /dev/ublkcN, in a 64-byte SQE ------------------------------ */

/*
 * @result of COMMIT_AND_FETCH: bytes or negative errno
 * @addr: the tag's buffer in copy mode, else 0; buffer index of (UN)REGISTER_IO_BUF
 */
struct ublksrv_io_cmd {
	__u16 q_id;
	__u16 tag;
	__s32 result;
	__u64 addr;
};

static_assert(sizeof(struct ublksrv_io_cmd) == 16, "size of ublksrv_io_cmd");

#define UBLK_U_IO_FETCH_REQ _IOWR('u', 0x20, struct ublksrv_io_cmd)
#define UBLK_U_IO_COMMIT_AND_FETCH_REQ _IOWR('u', 0x21, struct ublksrv_io_cmd)
#define UBLK_U_IO_NEED_GET_DATA _IOWR('u', 0x22, struct ublksrv_io_cmd)
#define UBLK_U_IO_REGISTER_IO_BUF _IOWR('u', 0x23, struct ublksrv_io_cmd) /* 6.15 */
#define UBLK_U_IO_UNREGISTER_IO_BUF _IOWR('u', 0x24, struct ublksrv_io_cmd) /* 6.15 */

/* Results of a fetch beside negative errno. */
#define UBLK_IO_RES_OK 0
#define UBLK_IO_RES_NEED_GET_DATA 1
#define UBLK_IO_RES_ABORT (-19) /* -ENODEV: never fetch this tag again */

/* UBLK_F_AUTO_BUF_REG: what the addr of a fetch's SQE is made of, 8 bytes. */
struct ublk_auto_buf_reg {
	__u16 index;
	__u8 flags;
	__u8 reserved0;
	__u32 reserved1;
};

static_assert(sizeof(struct ublk_auto_buf_reg) == 8, "size of ublk_auto_buf_reg");

#define UBLK_AUTO_BUF_REG_FALLBACK (1u << 0)

#endif
