// SPDX-License-Identifier: GPL-2.0-or-later
/* ublk without the driver: numbers of the interface, parameters, what an SQE carries. */
#include "unit.h"

#include "../../ublk-target/transport/ublk-private.h"

#include <errno.h>
#include <string.h>

/* Opcodes as a program that was compiled against Linux 7.3's header printed them. */
static void test_opcodes(void)
{
	CU_ASSERT_EQUAL(UBLK_U_CMD_GET_QUEUE_AFFINITY, 0x80207501u);
	CU_ASSERT_EQUAL(UBLK_U_CMD_GET_DEV_INFO, 0x80207502u);
	CU_ASSERT_EQUAL(UBLK_U_CMD_ADD_DEV, 0xc0207504u);
	CU_ASSERT_EQUAL(UBLK_U_CMD_DEL_DEV, 0xc0207505u);
	CU_ASSERT_EQUAL(UBLK_U_CMD_START_DEV, 0xc0207506u);
	CU_ASSERT_EQUAL(UBLK_U_CMD_STOP_DEV, 0xc0207507u);
	CU_ASSERT_EQUAL(UBLK_U_CMD_SET_PARAMS, 0xc0207508u);
	CU_ASSERT_EQUAL(UBLK_U_CMD_GET_PARAMS, 0x80207509u);
	CU_ASSERT_EQUAL(UBLK_U_CMD_START_USER_RECOVERY, 0xc0207510u);
	CU_ASSERT_EQUAL(UBLK_U_CMD_END_USER_RECOVERY, 0xc0207511u);
	CU_ASSERT_EQUAL(UBLK_U_CMD_GET_FEATURES, 0x80207513u);
	CU_ASSERT_EQUAL(UBLK_U_CMD_DEL_DEV_ASYNC, 0x80207514u);
	CU_ASSERT_EQUAL(UBLK_U_CMD_UPDATE_SIZE, 0xc0207515u);
	CU_ASSERT_EQUAL(UBLK_U_CMD_QUIESCE_DEV, 0xc0207516u);
	CU_ASSERT_EQUAL(UBLK_U_CMD_TRY_STOP_DEV, 0xc0207517u);
	CU_ASSERT_EQUAL(UBLK_U_IO_FETCH_REQ, 0xc0107520u);
	CU_ASSERT_EQUAL(UBLK_U_IO_COMMIT_AND_FETCH_REQ, 0xc0107521u);
}

/* Drivers before 6.5 take the bare number of each command. */
static void test_raw_opcodes(void)
{
	struct ublk_control old = { .raw_opcodes = true }, now = { 0 };

	CU_ASSERT_EQUAL(ublk_control_opcode(&old, UBLK_U_CMD_ADD_DEV), 0x04);
	CU_ASSERT_EQUAL(ublk_control_opcode(&old, UBLK_U_IO_COMMIT_AND_FETCH_REQ), 0x21);
	CU_ASSERT_EQUAL(ublk_control_opcode(&now, UBLK_U_CMD_ADD_DEV), 0xc0207504u);
}

static void test_user_copy_position(void)
{
	CU_ASSERT_EQUAL(ublk_user_copy_pos(0, 0, 0), 0x80000000ull);
	CU_ASSERT_EQUAL(ublk_user_copy_pos(0, 1, 512), 0x80000000ull + (1ull << 25) + 512);
	CU_ASSERT_EQUAL(ublk_user_copy_pos(3, 0, 0), 0x80000000ull + (3ull << 41));
	/* The largest queue, tag and offset do not run into each other. */
	CU_ASSERT_EQUAL(ublk_user_copy_pos(4095, 4095, QC_MAX_REQUEST_BYTES - 1) - 0x80000000ull,
			(4095ull << 41) | (4095ull << 25) | (QC_MAX_REQUEST_BYTES - 1));
	CU_ASSERT(QC_MAX_REQUEST_BYTES <= 1u << UBLK_IO_BUF_BITS);
}

static void test_auto_buf(void)
{
	CU_ASSERT_EQUAL(ublk_auto_buf_addr(0), 0x10000);
	CU_ASSERT_EQUAL(ublk_auto_buf_addr(4095), 0x10fff);
}

static void test_io_sqe(void)
{
	struct ublksrv_io_cmd cmd = { .q_id = 3, .tag = 77, .result = -5, .addr = 0x1000 }, got;
	struct io_uring_sqe sqe = { .user_data = 0x1234 };

	static_assert(sizeof(struct io_uring_sqe) == 64, "a command fits in one entry");
	static_assert(offsetof(struct io_uring_sqe, cmd) == 48, "where the payload is");
	ublk_io_sqe(&sqe, 9, UBLK_U_IO_FETCH_REQ, &cmd, ublk_auto_buf_addr(77));
	CU_ASSERT_EQUAL(sqe.opcode, 46); /* IORING_OP_URING_CMD */
	CU_ASSERT_EQUAL(sqe.fd, 9);
	CU_ASSERT_EQUAL(sqe.cmd_op, UBLK_U_IO_FETCH_REQ);
	CU_ASSERT_EQUAL(sqe.addr, 0x1004d);
	CU_ASSERT_EQUAL(sqe.user_data, 0x1234);
	CU_ASSERT(sqe.flags == 0 && sqe.len == 0 && sqe.rw_flags == 0 && sqe.buf_index == 0);
	memcpy(&got, (char *)&sqe + 48, sizeof(got));
	CU_ASSERT(got.q_id == 3 && got.tag == 77 && got.result == -5 && got.addr == 0x1000);
}

static void test_operations(void)
{
	CU_ASSERT_EQUAL(ublk_request_op(UBLK_IO_OP_READ | UBLK_IO_F_META), REQ_READ);
	CU_ASSERT_EQUAL(ublk_request_op(UBLK_IO_OP_WRITE | UBLK_IO_F_FUA), REQ_WRITE);
	CU_ASSERT_EQUAL(ublk_request_op(UBLK_IO_OP_FLUSH), REQ_FLUSH);
	CU_ASSERT_EQUAL(ublk_request_op(UBLK_IO_OP_DISCARD), REQ_DISCARD);
	CU_ASSERT_EQUAL(ublk_request_op(UBLK_IO_OP_WRITE_ZEROES | UBLK_IO_F_NOUNMAP),
			REQ_WRITE_ZEROES);
	CU_ASSERT_EQUAL(ublk_request_op(UBLK_IO_OP_WRITE_SAME), -EOPNOTSUPP);
	CU_ASSERT_EQUAL(ublk_request_op(13), -EOPNOTSUPP);
	CU_ASSERT_EQUAL(ublk_request_flags(UBLK_IO_OP_WRITE | 1u << 13), REQ_FUA);
	CU_ASSERT_EQUAL(ublk_request_flags(UBLK_IO_OP_WRITE_ZEROES | 1u << 15), REQ_NOUNMAP);
	CU_ASSERT_EQUAL(ublk_request_flags(UBLK_IO_OP_WRITE | UBLK_IO_F_NEED_REG_BUF), 0);
}

static struct target make_target(void)
{
	return (struct target){
		.size_bytes = 10 * GiB,
		.limits = {
			.logical_block = 512,
			.physical_block = 4096,
			.io_min = 4096,
			.io_opt = 65536,
			.dma_align_mask = 511,
			.discard_granularity = 65536,
			.max_discard = QC_MAX_DISCARD_BYTES,
			.max_write_zeroes = QC_MAX_DISCARD_BYTES,
		},
	};
}

static void test_params(void)
{
	struct target ti = make_target();
	struct ublk_params p;

	ublk_params_build(&ti, QC_MAX_REQUEST_BYTES, false, &p);
	CU_ASSERT_EQUAL(p.len, 152);
	CU_ASSERT_EQUAL(p.types, UBLK_PARAM_TYPE_BASIC | UBLK_PARAM_TYPE_DISCARD);
	CU_ASSERT_EQUAL(p.basic.attrs, UBLK_ATTR_VOLATILE_CACHE);
	CU_ASSERT(p.basic.logical_bs_shift == 9 && p.basic.physical_bs_shift == 12);
	CU_ASSERT(p.basic.io_min_shift == 12 && p.basic.io_opt_shift == 16);
	CU_ASSERT_EQUAL(p.basic.max_sectors, 2048);
	CU_ASSERT_EQUAL(p.basic.dev_sectors, 10 * GiB / 512);
	CU_ASSERT_EQUAL(p.discard.discard_granularity, 65536);
	CU_ASSERT_EQUAL(p.discard.max_discard_sectors, QC_MAX_DISCARD_BYTES / 512);
	CU_ASSERT_EQUAL(p.discard.max_write_zeroes_sectors, QC_MAX_DISCARD_BYTES / 512);
	CU_ASSERT_EQUAL(p.discard.max_discard_segments, 1);
}

static void test_params_limits(void)
{
	struct target ti = make_target();
	struct ublk_params p;

	ti.size_bytes = 3 * 4096 + 512;
	ti.limits = (struct target_limits){
		.logical_block = 4096, .physical_block = 512, .dma_align_mask = 3,
		.max_discard = UINT32_MAX, .max_write_zeroes = UINT32_MAX, .read_only = true,
	};
	ublk_params_build(&ti, 65536, true, &p);
	CU_ASSERT_EQUAL(p.basic.attrs, UBLK_ATTR_VOLATILE_CACHE | UBLK_ATTR_READ_ONLY);
	/* Nothing is smaller than a logical block; the size is in whole ones. */
	CU_ASSERT(p.basic.logical_bs_shift == 12 && p.basic.physical_bs_shift == 12);
	CU_ASSERT(p.basic.io_min_shift == 12 && p.basic.io_opt_shift == 12);
	CU_ASSERT_EQUAL(p.basic.dev_sectors, 24);
	CU_ASSERT_EQUAL(p.basic.max_sectors, 128);
	/* Without a granularity there is no discard, but there are zeroes, up to our limit. */
	CU_ASSERT_EQUAL(p.discard.max_discard_sectors, 0);
	CU_ASSERT_EQUAL(p.discard.max_write_zeroes_sectors, QC_MAX_DISCARD_BYTES / 512);
	CU_ASSERT_EQUAL(p.discard.discard_granularity, 4096);
	/* Zero copy: pieces of pages have to suit the layers. */
	CU_ASSERT_EQUAL(p.dma.alignment, 4095);
	CU_ASSERT(p.seg.max_segments == 16 && p.seg.max_segment_size == 65536);
	CU_ASSERT_EQUAL(p.types, UBLK_PARAM_TYPE_BASIC | UBLK_PARAM_TYPE_DISCARD |
					 UBLK_PARAM_TYPE_DMA_ALIGN | UBLK_PARAM_TYPE_SEGMENT);
	ti.limits.max_write_zeroes = 0;
	ublk_params_build(&ti, 65536, false, &p);
	CU_ASSERT_EQUAL(p.types, UBLK_PARAM_TYPE_BASIC);
}

/* A granularity that does not divide the limit: whole granules only. */
static void test_params_odd_granularity(void)
{
	struct target ti = make_target();
	struct ublk_params p;

	ti.limits.discard_granularity = 3 * 65536;
	ublk_params_build(&ti, QC_MAX_REQUEST_BYTES, false, &p);
	CU_ASSERT_EQUAL((p.discard.max_discard_sectors * 512ull) % (3 * 65536), 0);
	CU_ASSERT(p.discard.max_discard_sectors > 0);
	ti.limits.max_discard = 65536; /* less than one granule */
	ublk_params_build(&ti, QC_MAX_REQUEST_BYTES, false, &p);
	CU_ASSERT_EQUAL(p.discard.max_discard_sectors, 0);
}

static void test_options(void)
{
	struct ublk_options bad[] = {
		{ .dev_id = -1, .nr_queues = QC_MAX_LOOPS + 1 },
		{ .dev_id = -1, .queue_depth = UBLK_MAX_QUEUE_DEPTH + 1 },
		{ .dev_id = -2 },
		{ .dev_id = -1, .recover = true },
	};
	struct ublk_options good = { .dev_id = -1 };
	struct target ti = make_target();
	struct transport *t;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		struct qc_err err = { 0 };

		CU_ASSERT_EQUAL(ublk_create(&ti, &bad[i], &t, &err), -EINVAL);
		CU_ASSERT(err.msg[0]);
	}
	CU_ASSERT_EQUAL_FATAL(ublk_create(&ti, &good, &t, NULL), 0);
	CU_ASSERT_STRING_EQUAL(t->ops->name, "ublk");
	t->ops->destroy(t);
}

static const struct unit_test tests[] = {
	{ "opcodes", test_opcodes },
	{ "raw opcodes", test_raw_opcodes },
	{ "user copy position", test_user_copy_position },
	{ "automatic buffers", test_auto_buf },
	{ "I/O SQE", test_io_sqe },
	{ "operations and flags", test_operations },
	{ "parameters", test_params },
	{ "parameters at their limits", test_params_limits },
	{ "odd discard granularity", test_params_odd_granularity },
	{ "options", test_options },
	{ NULL },
};

int main(void)
{
	return unit_main("ublk", tests);
}
