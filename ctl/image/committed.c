// SPDX-License-Identifier: GPL-2.0-or-later
/* Compares an overlay with what is below it, as far as it maps something. */
#include "committed.h"
#include "reader.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define PIECE_BYTES (2u << 20)

struct pair {
	struct reader *upper;
	struct reader *lower;
	u8 *upper_buf;
	u8 *lower_buf;
	struct qc_err *err;
};

static int same_piece(struct pair *p, u64 offset, u64 bytes)
{
	int ret = reader_read(p->upper, p->upper_buf, bytes, offset, p->err);

	if (!ret)
		ret = reader_read(p->lower, p->lower_buf, bytes, offset, p->err);
	return ret ? ret : !memcmp(p->upper_buf, p->lower_buf, bytes);
}

/* What the active layer does not map is the same by itself. */
static int same_run(struct pair *p, u64 offset, u64 *bytes)
{
	struct run run;
	int ret = reader_run(p->upper, offset, *bytes, &run, p->err);

	if (ret)
		return ret;
	*bytes = run.bytes;
	if (run.layer || !run.present)
		return 1;
	*bytes = min(run.bytes, (u64)PIECE_BYTES);
	return same_piece(p, offset, *bytes);
}

static int same_all(struct pair *p, u64 total)
{
	u64 bytes;
	int ret = 1;

	for (u64 at = 0; at < total && ret == 1; at += bytes) {
		bytes = total - at;
		ret = same_run(p, at, &bytes);
	}
	return ret;
}

int committed_already(struct chain *chain, const struct offline_options *options,
		      struct qc_err *err)
{
	struct pair p = { .upper_buf = io_alloc(PIECE_BYTES), .lower_buf = io_alloc(PIECE_BYTES),
			  .err = err };
	struct offline_options below = *options;
	struct chain *lower = NULL;
	int ret = p.upper_buf && p.lower_buf ? 0 : qc_err_set(err, -ENOMEM, "out of memory");

	below.format = chain->layers[1].img->format;
	if (!ret)
		ret = offline_open_chain(chain->layers[1].img->dev->path, &below, &lower, err);
	if (!ret)
		ret = reader_open(chain, &p.upper, err);
	if (!ret)
		ret = reader_open(lower, &p.lower, err);
	if (!ret)
		ret = same_all(&p, chain->virtual_size);
	reader_close(p.lower);
	reader_close(p.upper);
	chain_close(lower);
	free(p.upper_buf);
	free(p.lower_buf);
	return ret;
}
