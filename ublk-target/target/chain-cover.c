// SPDX-License-Identifier: GPL-2.0-or-later
/* A raw layer below the active one gets longer: what stands on it says zero there before. */
#include "chain-merge.h"
#include "target-private.h"

#include <errno.h>
#include <qchain/crash-point.h>
#include <qchain/online.h>
#include <time.h>

/*
 *   cover     what stands on it maps zeroes from its end on, where it maps nothing; durable
 *   seal      that layer, which is written for no longer
 *   volume    a block device has been made longer by now, a file is: chain-grow.c
 *
 * The end of a raw image is the end of its container. What a volume gets is full of old
 * data, and a chain that was opened at the wrong instant would show it (rule D4).
 *
 * The layer that is written is one that a commit merges down: what it has been made to map
 * is copied as any zero is, and so the base is zero there, too.
 */

#define SEAL_MS 10000u
#define POLL_NS 1000000l

struct seal_call {
	struct chain_target *ct;
	bool sealing;
};

static void look_run(struct loop *loop, void *arg)
{
	struct seal_call *call = arg;

	call->sealing = chain_is_sealing(call->ct);
}

static int wait_sealed(struct chain_target *ct, const char *path, struct qc_err *err)
{
	const struct timespec pause = { .tv_nsec = POLL_NS };
	struct seal_call call = { .ct = ct };

	for (u32 ms = 0; ms < SEAL_MS; ms++) {
		loop_call(ct->loop, look_run, &call);
		if (!call.sealing)
			return 0;
		nanosleep(&pause, NULL);
	}
	return qc_err_set(err, -EBUSY, "%s: is still being sealed after %u s (a volume may be "
			  "slow); try again", path, SEAL_MS / 1000);
}

/* A stream of nothing into what stands on the layer at @depth: that gets a writer. */
static int make_cover(struct target *ti, u32 depth, struct merge **result, struct qc_err *err)
{
	const struct chain_target *ct = ti->private;
	const char *path = ct->chain->layers[depth].path;
	int ret;

	if (depth < 2)
		return qc_err_set(err, -EOPNOTSUPP, "%s: raw, what grows in use must be qcow2; "
				  "take the device down and use qchainctl resize", path);
	ret = merge_create(ti, depth, 0, NULL, result, err);
	if (!ret)
		(*result)->up = true;
	return ret;
}

/* @m_owned: of make_cover() */
static int cover(struct merge *m_owned, u64 bytes, struct qc_err *err)
{
	struct chain_target *ct = m_owned->ct;
	const struct chain_layer *above = merge_receiver(m_owned);
	u64 from = ct->chain->layers[m_owned->first].img->virtual_size;
	u64 to = min(bytes, above->img->virtual_size);
	int ret = 0;

	if (from < to)
		ret = commit_begin(m_owned, err);
	if (!ret && from < to)
		ret = writer_cover(m_owned->base, from, to, err);
	merge_free(m_owned);
	if (!ret)
		ret = wait_sealed(ct, above->path, err);
	crash_point("commit.covered");
	return ret;
}

int merge_cover(struct merge *m, u32 depth, u64 bytes, struct qc_err *err)
{
	struct merge *own;
	int ret = make_cover(m->ct->ti, depth, &own, err);

	return ret ? ret : cover(own, bytes, err);
}

static int find_raw(const struct chain *chain, const char *node, u32 *depth, struct qc_err *err)
{
	if (!merge_find_node(chain, node, depth))
		return merge_no_node(node, err);
	if (chain->layers[*depth].img->format == IMAGE_RAW)
		return 0;
	return qc_err_set(err, -EINVAL, "%s: is not raw, and says itself what it is beyond its end",
			  chain->layers[*depth].path);
}

int chain_cover(struct target *ti, const char *node, u64 bytes, struct qc_err *err)
{
	struct chain_target *ct = ti->private;
	struct merge *m = NULL;
	u32 depth;
	int ret;

	if (ti->type != &target_chain)
		return merge_no_node(node, err);
	ret = chain_turn_take(ct, false, err);
	if (ret)
		return ret;
	ret = find_raw(ct->chain, node, &depth, err);
	if (!ret)
		ret = make_cover(ti, depth, &m, err);
	if (!ret)
		ret = merge_join(m, err);
	if (!ret)
		ret = cover(m, bytes, err);
	else if (m)
		merge_free(m);
	chain_turn_give(ct);
	return ret;
}
