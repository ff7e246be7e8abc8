// SPDX-License-Identifier: GPL-2.0-or-later
/* The steps by which a ublk device comes to life, is taken over, and goes. */
#include "ublk-private.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include <qchain/log.h>

#define UBLK_DEFAULT_QUEUES 4
#define UBLK_DEFAULT_DEPTH 128
/* Copy mode has a locked buffer per tag: requests get shorter before this is exceeded. */
#define UBLK_COPY_BYTES (128u * 1024u * 1024u)
#define UBLK_COPY_MIN_REQUEST (64u * 1024u)

#define UBLK_NODE_WAIT_MS 5000 /* for devtmpfs, and a closing predecessor */
#define UBLK_RECOVER_WAIT_MS 30000 /* for the end of a dead daemon's I/O */
#define UBLK_DELETE_WAIT_MS 3000 /* for the last user of a device stopped by force */

#define UBLK_RECOVERY_FLAGS (UBLK_F_USER_RECOVERY | UBLK_F_USER_RECOVERY_REISSUE)
#define UBLK_ZERO_COPY_FLAGS (UBLK_F_AUTO_BUF_REG | UBLK_F_USER_COPY)
/* Ways of serving that this transport does not know: not to be taken over. */
#define UBLK_FOREIGN_FLAGS                                                                 \
	(UBLK_F_NEED_GET_DATA | UBLK_F_UNPRIVILEGED_DEV | UBLK_F_ZONED | UBLK_F_BATCH_IO | \
	 UBLK_F_INTEGRITY | UBLK_F_IO_DESC_SIZE)

int ublk_run(struct ublk *u, u32 op, u64 data)
{
	return ublk_control_run(&u->control, &(struct ublk_command){
						     .op = op,
						     .dev_id = u->dev.info.dev_id,
						     .data = data,
					     });
}

/* ---- ADD_DEV and parameters -------------------------------------------------------- */

static u32 ublk_max_bytes(const struct ublksrv_ctrl_dev_info *info, bool zero_copy)
{
	u32 tags = info->nr_hw_queues * info->queue_depth;
	u32 bytes = QC_MAX_REQUEST_BYTES;

	while (!zero_copy && bytes > UBLK_COPY_MIN_REQUEST && tags * (u64)bytes > UBLK_COPY_BYTES)
		bytes /= 2;
	return bytes;
}

static void ublk_wish(const struct ublk *u, struct ublksrv_ctrl_dev_info *info)
{
	const struct ublk_options *o = &u->options;
	u64 offered = u->control.features;
	bool zero_copy = !o->no_zero_copy &&
			 (offered & UBLK_ZERO_COPY_FLAGS) == UBLK_ZERO_COPY_FLAGS;

	memset(info, 0, sizeof(*info));
	info->nr_hw_queues = o->nr_queues ? o->nr_queues :
			     min(get_nprocs(), UBLK_DEFAULT_QUEUES);
	info->queue_depth = o->queue_depth ? o->queue_depth : UBLK_DEFAULT_DEPTH;
	info->dev_id = o->dev_id;
	info->ublksrv_flags = o->tag;
	info->flags = UBLK_RECOVERY_FLAGS | UBLK_F_CMD_IOCTL_ENCODE | UBLK_F_UPDATE_SIZE |
		      UBLK_F_QUIESCE;
	if (zero_copy)
		info->flags |= UBLK_ZERO_COPY_FLAGS;
	if (!o->scan_partitions)
		info->flags |= UBLK_F_NO_AUTO_PART_SCAN;
	info->flags &= offered | UBLK_RECOVERY_FLAGS;
	info->max_io_buf_bytes = ublk_max_bytes(info, zero_copy);
}

/* What the driver granted decides how the queues work. */
static int ublk_accept(struct ublk *u, struct qc_err *err)
{
	struct ublk_dev *dev = &u->dev;
	u64 flags = dev->info.flags;
	u64 zero_copy = flags & UBLK_ZERO_COPY_FLAGS;

	if ((flags & UBLK_RECOVERY_FLAGS) != UBLK_RECOVERY_FLAGS)
		return qc_err_set(err, -EOPNOTSUPP,
				  "ublkb%u: no user recovery (flags 0x%llx), Linux 6.1 or later is "
				  "needed; serve over NBD on this kernel (qchainctl up --no-ublk "
				  "--nbd SOCK, qchaind --export nbd,socket=PATH)",
				  dev->info.dev_id, (unsigned long long)flags);
	if ((zero_copy && zero_copy != UBLK_ZERO_COPY_FLAGS) || flags & UBLK_FOREIGN_FLAGS ||
	    dev->info.max_io_buf_bytes > QC_MAX_REQUEST_BYTES ||
	    dev->info.nr_hw_queues > QC_MAX_LOOPS)
		return qc_err_set(err, -EOPNOTSUPP,
				  "ublkb%u: cannot be served (flags 0x%llx, %u queues, requests of "
				  "%u bytes), expected a device that qchaind made; stop it and "
				  "start anew", dev->info.dev_id, (unsigned long long)flags,
				  dev->info.nr_hw_queues, dev->info.max_io_buf_bytes);
	dev->zero_copy = zero_copy;
	dev->fetch_op = ublk_control_opcode(&u->control, UBLK_U_IO_FETCH_REQ);
	dev->commit_op = ublk_control_opcode(&u->control, UBLK_U_IO_COMMIT_AND_FETCH_REQ);
	return 0;
}

static int ublk_add_dev(struct ublk *u, struct qc_err *err)
{
	struct ublksrv_ctrl_dev_info *info = &u->dev.info;
	int ret;

	ublk_wish(u, info);
	ret = ublk_control_run(&u->control, &(struct ublk_command){
						    .op = UBLK_U_CMD_ADD_DEV,
						    .dev_id = info->dev_id,
						    .buf = info,
						    .len = sizeof(*info),
					    });
	if (ret == -EEXIST)
		return qc_err_set(err, ret,
				  "ublkb%d: the number is taken, expected a free one; choose "
				  "another, or recover the device that has it", u->options.dev_id);
	if (ret)
		return qc_err_set(err, ret,
				  "ublk: no device with %u queues of depth %u could be added (%s), "
				  "CAP_SYS_ADMIN is needed", info->nr_hw_queues, info->queue_depth,
				  strerror(-ret));
	return 0;
}

static int ublk_set_params(struct ublk *u, struct qc_err *err)
{
	const struct target *ti = u->dev.target;
	struct ublk_params params;
	int ret;

	ublk_params_build(ti, u->dev.info.max_io_buf_bytes, u->dev.zero_copy, &params);
	ret = ublk_control_run(&u->control, &(struct ublk_command){
						    .op = UBLK_U_CMD_SET_PARAMS,
						    .dev_id = u->dev.info.dev_id,
						    .buf = &params,
						    .len = sizeof(params),
					    });
	u->size_bytes = params.basic.dev_sectors << SECTOR_SHIFT;
	if (!ret)
		return 0;
	return qc_err_set(err, ret,
			  "ublkb%u: the driver refuses the parameters (%s; blocks of %u and %u "
			  "bytes), blocks of 512 to %ld bytes are allowed", u->dev.info.dev_id,
			  strerror(-ret), ti->limits.logical_block, ti->limits.physical_block,
			  sysconf(_SC_PAGESIZE));
}

/* ---- serving: ublkcN and the queues -------------------------------------------------- */

static int ublk_open_cdev(struct ublk *u, struct qc_err *err)
{
	u64 deadline_ms = ublk_now_ms() + UBLK_NODE_WAIT_MS;
	char path[32];
	int ret;

	snprintf(path, sizeof(path), "/dev/ublkc%u", u->dev.info.dev_id);
	for (;;) {
		u->dev.cdev_fd = open(path, O_RDWR | O_CLOEXEC);
		if (u->dev.cdev_fd >= 0)
			return 0;
		ret = -errno;
		if ((ret != -ENOENT && ret != -EBUSY) || ublk_now_ms() >= deadline_ms)
			break;
		usleep(UBLK_POLL_US);
	}
	return qc_err_set(err, ret, "%s: cannot be opened (%s), expected a device node that "
			  "nobody else has open; is devtmpfs mounted on /dev?", path,
			  strerror(-ret));
}

void ublk_end_serving(struct ublk *u)
{
	u32 i;

	for (i = 0; i < QC_MAX_LOOPS; i++) {
		ublk_queue_destroy(u->queues[i]);
		u->queues[i] = NULL;
	}
	if (u->dev.cdev_fd >= 0)
		close(u->dev.cdev_fd);
	u->dev.cdev_fd = -1;
}

static int ublk_serve(struct ublk *u, struct qc_err *err)
{
	int ret;
	u32 i;

	ret = ublk_open_cdev(u, err);
	for (i = 0; !ret && i < u->dev.info.nr_hw_queues; i++)
		ret = ublk_queue_create(&u->dev, i, &u->queues[i], err);
	for (i = 0; !ret && i < u->dev.info.nr_hw_queues; i++)
		ret = ublk_queue_fetch(u->queues[i], err);
	if (ret)
		ublk_end_serving(u);
	return ret;
}

/* @op: START_DEV or END_USER_RECOVERY, which wait until all tags are fetched. */
static int ublk_go(struct ublk *u, u32 op, struct qc_err *err)
{
	int ret;

	u->control.give_up = &u->dev.ended_tags;
	ret = ublk_run(u, op, getpid());
	u->control.give_up = NULL;
	if (!ret)
		return 0;
	return qc_err_set(err, ret, "ublkb%u: cannot go live (%s; %u tags refused), see the "
			  "kernel log", u->dev.info.dev_id, strerror(-ret),
			  __atomic_load_n(&u->dev.ended_tags, __ATOMIC_RELAXED));
}

/* ---- another size ------------------------------------------------------------------- */

int ublk_update_size(struct ublk *u, struct qc_err *err)
{
	const struct target *ti = u->dev.target;
	u64 bytes = ALIGN_DOWN(__atomic_load_n(&ti->size_bytes, __ATOMIC_ACQUIRE),
			       (u64)ti->limits.logical_block);
	int ret;

	if (bytes == u->size_bytes)
		return 0;
	if (!(u->dev.info.flags & UBLK_F_UPDATE_SIZE))
		return qc_err_set(err, -EOPNOTSUPP, "ublkb%u: stays at %llu bytes until it is "
				  "started anew, Linux 6.16 or later is needed to change the size "
				  "of a live device", u->dev.info.dev_id,
				  (unsigned long long)u->size_bytes);
	ret = ublk_run(u, UBLK_U_CMD_UPDATE_SIZE, bytes >> SECTOR_SHIFT);
	if (ret)
		return qc_err_set(err, ret, "ublkb%u: stays at %llu bytes, the driver refuses "
				  "another size (%s)", u->dev.info.dev_id,
				  (unsigned long long)u->size_bytes, strerror(-ret));
	u->size_bytes = bytes;
	return 0;
}

/* ---- a new device, and its end -------------------------------------------------- */

void ublk_delete(struct ublk *u)
{
	int ret = ublk_control_run(&u->control, &(struct ublk_command){
							.op = UBLK_U_CMD_DEL_DEV,
							.dev_id = u->dev.info.dev_id,
							.timeout_ms = UBLK_DELETE_WAIT_MS,
						});

	if (ret == -ETIMEDOUT)
		log_warn("ublkb%u: gone, its number is taken until the last user closes it",
			 u->dev.info.dev_id);
	else if (ret)
		log_warn("ublkb%u: not deleted (%s)", u->dev.info.dev_id, strerror(-ret));
}

int ublk_add(struct ublk *u, struct qc_err *err)
{
	int ret = ublk_add_dev(u, err);

	if (ret)
		return ret;
	ret = ublk_accept(u, err);
	if (!ret)
		ret = ublk_set_params(u, err);
	if (!ret)
		ret = ublk_serve(u, err);
	if (ret)
		goto err_delete;
	ret = ublk_go(u, UBLK_U_CMD_START_DEV, err);
	if (ret)
		goto err_serving;
	return 0;

err_serving:
	ublk_end_serving(u);
err_delete:
	ublk_delete(u);
	return ret;
}

/* ---- recovery ------------------------------------------------------------------------ */

static int ublk_has_server(const struct ublk *u)
{
	s32 pid = u->dev.info.ublksrv_pid;
	struct stat st;
	char path[32];

	snprintf(path, sizeof(path), "/dev/ublkc%u", u->dev.info.dev_id);
	return pid > 0 && pid != getpid() && stat(path, &st) == 0 &&
	       ublk_process_has(pid, st.st_rdev);
}

/* Live with a dead server: the kernel still waits for that one's I/O. */
static int ublk_wait_quiesced(struct ublk *u, u64 deadline_ms, struct qc_err *err)
{
	struct ublksrv_ctrl_dev_info *info = &u->dev.info;
	u32 id = u->options.dev_id;
	int ret;

	for (;;) {
		ret = ublk_control_info(&u->control, id, info);
		if (ret)
			return qc_err_set(err, ret, "ublkb%u: no such device to recover (%s); "
					  "start it anew", id, strerror(-ret));
		if (info->state == UBLK_S_DEV_QUIESCED || info->state == UBLK_S_DEV_FAIL_IO)
			return 0;
		if (info->state != UBLK_S_DEV_LIVE)
			return qc_err_set(err, -EINVAL, "ublkb%u: was stopped (state %u), expected "
					  "a quiesced device; delete it and start anew", id,
					  info->state);
		if (ublk_has_server(u))
			return qc_err_set(err, -EBUSY, "ublkb%u: is served by process %d, expected "
					  "a device whose server died", id, info->ublksrv_pid);
		if (ublk_now_ms() >= deadline_ms)
			return qc_err_set(err, -ETIMEDOUT, "ublkb%u: not quiesced after %u s, the "
					  "I/O of the dead server is still under way; look for a "
					  "stalled device below", id, UBLK_RECOVER_WAIT_MS / 1000);
		usleep(UBLK_POLL_US);
	}
}

/* The device stays as its users know it: the target must be able to play that part. */
static int ublk_check_params(struct ublk *u, struct qc_err *err)
{
	const struct target *ti = u->dev.target;
	struct ublk_params p = { .len = sizeof(p) };
	u32 id = u->dev.info.dev_id;
	int ret;

	ret = ublk_control_run(&u->control, &(struct ublk_command){
						    .op = UBLK_U_CMD_GET_PARAMS,
						    .dev_id = id,
						    .buf = &p,
						    .len = sizeof(p),
					    });
	if (ret)
		return qc_err_set(err, ret, "ublkb%u: its parameters cannot be read (%s)", id,
				  strerror(-ret));
	u->size_bytes = p.basic.dev_sectors << SECTOR_SHIFT;
	if (p.basic.dev_sectors > ti->size_bytes >> SECTOR_SHIFT)
		return qc_err_set(err, -EINVAL, "ublkb%u: the device has %llu bytes, the chain "
				  "only %llu; recover it with the chain that it had", id,
				  (unsigned long long)p.basic.dev_sectors << SECTOR_SHIFT,
				  (unsigned long long)ti->size_bytes);
	if (1u << p.basic.logical_bs_shift < ti->limits.logical_block ||
	    (ti->limits.read_only && !(p.basic.attrs & UBLK_ATTR_READ_ONLY)))
		return qc_err_set(err, -EINVAL, "ublkb%u: the device has blocks of %u bytes and is "
				  "%s, the chain has %u and is %s; recover it with the chain that "
				  "it had", id, 1u << p.basic.logical_bs_shift,
				  p.basic.attrs & UBLK_ATTR_READ_ONLY ? "read-only" : "writable",
				  ti->limits.logical_block,
				  ti->limits.read_only ? "read-only" : "writable");
	return 0;
}

static int ublk_check_tag(const struct ublk *u, struct qc_err *err)
{
	u64 tag = u->dev.info.ublksrv_flags;

	if (!u->options.tag || tag == u->options.tag)
		return 0;
	return qc_err_set(err, -ESTALE, "ublkb%u: belongs to another chain or to another run of it "
			  "(tag %llx), expected tag %llx; stop that device first",
			  u->dev.info.dev_id, (unsigned long long)tag,
			  (unsigned long long)u->options.tag);
}

/* The dead server may have made the chain longer, and not come to say so. */
static void finish_resize(struct ublk *u)
{
	struct qc_err err = { 0 };

	if (ublk_update_size(u, &err))
		log_warn("%s", err.msg);
}

int ublk_recover(struct ublk *u, struct qc_err *err)
{
	u64 deadline_ms = ublk_now_ms() + UBLK_RECOVER_WAIT_MS;
	int ret;

	ret = ublk_wait_quiesced(u, deadline_ms, err);
	if (!ret)
		ret = ublk_check_tag(u, err);
	if (!ret)
		ret = ublk_accept(u, err);
	if (!ret)
		ret = ublk_check_params(u, err);
	if (ret)
		return ret;
	while ((ret = ublk_run(u, UBLK_U_CMD_START_USER_RECOVERY, 0)) == -EBUSY &&
	       ublk_now_ms() < deadline_ms)
		usleep(UBLK_POLL_US);
	if (ret)
		return qc_err_set(err, ret, "ublkb%u: recovery cannot start (%s), expected a "
				  "quiesced device that nobody else recovers",
				  u->dev.info.dev_id, strerror(-ret));
	ret = ublk_serve(u, err);
	if (ret)
		return ret;
	ret = ublk_go(u, UBLK_U_CMD_END_USER_RECOVERY, err);
	if (ret)
		ublk_end_serving(u);
	else
		finish_resize(u);
	return ret;
}
