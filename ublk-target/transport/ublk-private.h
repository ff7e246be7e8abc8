/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The parts of the ublk transport: control commands, queues, the device and its users. */
#ifndef UBLK_PRIVATE_H
#define UBLK_PRIVATE_H

#include <liburing.h>
#include <qchain/err.h>
#include <qchain/loop.h>
#include <qchain/target.h>
#include <qchain/transport.h>
#include <sched.h>
#include <sys/types.h>
#include <uapi/ublk.h>

/* ---- control commands (ublk-control.c); control thread only ----------------- */

/*
 * struct ublk_control - /dev/ublk-control and a ring of its own for it
 * @raw_opcodes: a driver before 6.5, asked by bare command numbers
 * @features: what the driver offers, as UBLK_F_*
 * @give_up: NULL, or a word of any thread: commands that wait end with
 *           -ECANCELED once it is not 0
 */
struct ublk_control {
	int fd;
	bool has_ring;
	bool raw_opcodes;
	u64 features;
	const u32 *give_up;
	struct io_uring ring;
};

/* One command: @buf and @len as the command takes them, @data its data[0]. */
struct ublk_command {
	u32 op; /* UBLK_U_CMD_* */
	u32 dev_id;
	void *buf;
	u16 len;
	u64 data;
	u32 timeout_ms; /* 0: none; -ETIMEDOUT after it */
};

int ublk_control_open(struct ublk_control *ctl, struct qc_err *err);
void ublk_control_close(struct ublk_control *ctl);
/* Send one command and wait for its end; its result or -errno. */
int ublk_control_run(struct ublk_control *ctl, const struct ublk_command *cmd);
int ublk_control_info(struct ublk_control *ctl, u32 dev_id,
		      struct ublksrv_ctrl_dev_info *result);
/* @op as this driver takes it, of control and I/O commands alike. */
u32 ublk_control_opcode(const struct ublk_control *ctl, u32 op);

u64 ublk_now_ms(void);

/* The parameters of a device for @ti whose requests have up to @max_bytes of data. */
void ublk_params_build(const struct target *ti, u32 max_bytes, bool zero_copy,
		       struct ublk_params *result);

/* ---- queues (ublk-queue.c) ---------------------------------------------------- */

/*
 * struct ublk_dev - what the queues of one device share
 * @zero_copy: request pages are buffers of the queue's ring, slot = tag, and
 *             can be reached by user copy; else each tag has memory of its own
 */
struct ublk_dev {
	/* set once, before the first queue */
	struct target *target;
	struct ublksrv_ctrl_dev_info info; /* as negotiated with the driver */
	int cdev_fd;
	bool zero_copy;
	u32 fetch_op;
	u32 commit_op;

	/* any thread, atomic */
	u32 ended_tags; /* not fetched again: the device stops, or the tag failed */
	u32 failed_tags; /* lost to an error that the driver should not return */
	u32 fallbacks; /* requests whose buffer was not registered */
};

struct ublk_queue;

/*
 * ublk_queue_create - a loop with its thread, attached to the target; idle yet.
 * ublk_queue_fetch - ask for requests on all tags; they may arrive at once.
 * ublk_queue_live_tags - tags that the driver or the target holds; any thread.
 * ublk_queue_destroy - submit nothing more, wait for what is in flight, end
 * the thread. What the driver still has with us is reissued to who recovers.
 */
int ublk_queue_create(struct ublk_dev *dev, u16 id, struct ublk_queue **result,
		      struct qc_err *err);
int ublk_queue_fetch(struct ublk_queue *q, struct qc_err *err);
/* Call @visit for each request that the target has, on the queue's thread. */
void ublk_queue_walk(struct ublk_queue *q, void (*visit)(const struct request *req, void *arg),
		     void *arg);
u32 ublk_queue_live_tags(const struct ublk_queue *q);
void ublk_queue_destroy(struct ublk_queue *q);

/* Where the bytes of a request are in /dev/ublkcN. */
static inline u64 ublk_user_copy_pos(u16 queue, u16 tag, u32 offset)
{
	return UBLKSRV_IO_BUF_OFFSET + ((u64)queue << UBLK_QID_OFF) +
	       ((u64)tag << UBLK_TAG_OFF) + offset;
}

/* SQE addr of a fetch: register the next request's pages in slot @index. */
static inline u64 ublk_auto_buf_addr(u16 index)
{
	return index | (u64)UBLK_AUTO_BUF_REG_FALLBACK << 16;
}

/* Fill all of @sqe but its user_data; @sqe is zero but for that. */
void ublk_io_sqe(struct io_uring_sqe *sqe, int fd, u32 op, const struct ublksrv_io_cmd *cmd,
		 u64 addr);
/* enum req_op and REQ_* flags of a descriptor; -EOPNOTSUPP for other operations. */
int ublk_request_op(u32 op_flags);
u8 ublk_request_flags(u32 op_flags);

/* ---- the device (ublk-device.c, ublk.c); control thread only ------------------- */

enum ublk_state { UBLK_NEW, UBLK_LIVE, UBLK_STOPPING, UBLK_GONE, UBLK_STATES };

struct ublk {
	struct transport transport;
	struct ublk_options options;
	struct ublk_control control;
	struct ublk_dev dev;
	struct ublk_queue *queues[QC_MAX_LOOPS];
	u64 size_bytes; /* that the device has */
	enum ublk_state state; /* ublk.c only */
};

#define UBLK_POLL_US 20000

/*
 * ublk_add - make a new device and go live.
 * ublk_recover - take over a quiesced one; it stays quiesced when that fails.
 * ublk_update_size - give the live device the target's size, where the driver can.
 * ublk_end_serving - end the queues and close ublkcN.
 * ublk_delete - remove a stopped device; what fails is logged.
 * ublk_run - a control command without a buffer.
 */
int ublk_add(struct ublk *u, struct qc_err *err);
int ublk_recover(struct ublk *u, struct qc_err *err);
int ublk_update_size(struct ublk *u, struct qc_err *err);
void ublk_end_serving(struct ublk *u);
void ublk_delete(struct ublk *u);
int ublk_run(struct ublk *u, u32 op, u64 data);

/* ---- users of the block device (ublk-users.c); control thread only ---------- */

/*
 * ublk_users_find - who has /dev/ublkb@dev_id or a partition of it
 * @text: "mounted on /mnt, process 812 (fio)"; cut when @size is too small
 *
 * Returns how many were found. @lasting tells of mounts, swap and stacked
 * devices, which do not go away by waiting.
 */
int ublk_users_find(u32 dev_id, char *text, size_t size, bool *lasting);
/* Does process @pid have the character device @rdev open? */
bool ublk_process_has(s32 pid, dev_t rdev);

#endif
