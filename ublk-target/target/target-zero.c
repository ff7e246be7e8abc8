// SPDX-License-Identifier: GPL-2.0-or-later
/* zero: reads as zeroes, forgets writes; for measuring a transport alone. */
#include "target-private.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static int zero_ctr(struct target *ti, int argc, char **argv, struct qc_err *err)
{
	char *end;

	if (argc != 1)
		return qc_err_set(err, -EINVAL, "zero: %d words given, expected SIZE", argc);
	ti->size_bytes = strtoull(argv[0], &end, 0);
	if (*end || !ti->size_bytes || !IS_ALIGNED(ti->size_bytes, 4096))
		return qc_err_set(err, -EINVAL,
				  "zero: size %s, expected bytes in multiples of 4096", argv[0]);
	return 0;
}

static enum target_map_result zero_map(struct target *ti, struct request *req)
{
	static const u8 zeroes[QC_MAX_REQUEST_BYTES];

	if (req->op == REQ_READ && req->base)
		memset(req->base, 0, req->len);
	else if (req->op == REQ_READ) /* a kernel buffer left as it came leaks memory */
		req->error = req->ops->copy_to(req, 0, zeroes, req->len);
	if (req->op == REQ_BLOCK_STATUS) {
		req->status[0] = (struct block_status){ .len = req->len, .zero = true };
		req->status_nr = 1;
	}
	return TARGET_DONE;
}

static void zero_limits(struct target *ti, struct target_limits *limits)
{
	limits->discard_granularity = 4096;
	limits->max_discard = QC_MAX_DISCARD_BYTES;
	limits->max_write_zeroes = QC_MAX_DISCARD_BYTES;
}

const struct target_type target_zero = {
	.name = "zero",
	.ctr = zero_ctr,
	.map = zero_map,
	.limits = zero_limits,
};
