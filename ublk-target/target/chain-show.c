// SPDX-License-Identifier: GPL-2.0-or-later
/* A layer and all below it as a read-only target of its own. */
#include "chain-merge.h"
#include "target-private.h"

#include <errno.h>
#include <qchain/online.h>
#include <stdlib.h>
#include <time.h>

/*
 * It shares nothing with the chain that it is taken from but the images: what that
 * does later, snapshots, merges that drop these layers, its end, is none of its business.
 * Who wants to write one of them finds the image locks of its descriptors.
 */

/* It is read once, from its beginning to its end. */
#define SHOW_CACHE_BYTES (8u * 1024u * 1024u)
/* Milliseconds. */
#define SEAL_TRIES 1000u

struct ask_sealing {
	const struct chain_target *ct;
	bool sealing;
};

static void ask_sealing(struct loop *loop, void *arg)
{
	struct ask_sealing *ask = arg;

	ask->sealing = chain_is_sealing(ask->ct);
}

/* A snapshot that was taken just now is sealed in a moment. */
static int wait_sealed(struct chain_target *ct, struct qc_err *err)
{
	const struct timespec pause = { .tv_nsec = 1000 * 1000 };
	struct ask_sealing ask = { .ct = ct };

	for (u32 tries = 0; tries < SEAL_TRIES; tries++) {
		loop_call(ct->loop, ask_sealing, &ask);
		if (!ask.sealing)
			return 0;
		nanosleep(&pause, NULL);
	}
	return qc_err_set(err, -EBUSY, "%s: a layer below it is still being sealed, must be "
			  "sealed; try again", ct->chain->layers[0].path);
}

static int show(const struct chain_target *of, u32 depth, struct target *ti, struct qc_err *err)
{
	struct chain_target *ct = chain_alloc(ti);
	int ret;

	if (!ct)
		return qc_err_set(err, -ENOMEM, "%s: out of memory", of->chain->layers[depth].path);
	ct->may_lose = true;
	ret = chain_reopen(of->chain, depth, &ct->chain, err);
	if (!ret)
		ret = chain_serve(ct, SHOW_CACHE_BYTES, err);
	if (ret)
		chain_free(ct);
	return ret;
}

int chain_show(struct target *ti, const char *node, struct target **result, struct qc_err *err)
{
	struct chain_target *ct = ti->private;
	struct target *shown;
	u32 depth;
	int ret;

	if (ti->type != &target_chain || !merge_find_node(ct->chain, node, &depth))
		return merge_no_layer(node, err);
	ret = wait_sealed(ct, err);
	if (ret)
		return ret;
	shown = target_alloc(&target_chain);
	if (!shown)
		return qc_err_set(err, -ENOMEM, "%s: out of memory", node);
	ret = show(ct, depth, shown, err);
	if (ret) {
		free(shown);
		return ret;
	}
	target_ask_limits(shown);
	*result = shown;
	return 0;
}
