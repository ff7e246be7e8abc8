// SPDX-License-Identifier: GPL-2.0-or-later
/* error: every request fails with EIO; stands in for what is lost. */
#include "target-private.h"

#include <errno.h>
#include <stdlib.h>

static int error_ctr(struct target *ti, int argc, char **argv, struct qc_err *err)
{
	if (argc != 1)
		return qc_err_set(err, -EINVAL, "error: %d words given, expected SIZE", argc);
	ti->size_bytes = ALIGN_DOWN(strtoull(argv[0], NULL, 0), SECTOR_SIZE);
	return 0;
}

static enum target_map_result error_map(struct target *ti, struct request *req)
{
	req->error = -EIO;
	return TARGET_DONE;
}

const struct target_type target_error = {
	.name = "error",
	.ctr = error_ctr,
	.map = error_map,
};
