// SPDX-License-Identifier: GPL-2.0-or-later
/* A hostile NBD client: whatever it says, the server ends the connection and lives. */
#include "fuzz.h"

#include <qchain/transport.h>
#include <stdio.h>
#include <stdlib.h>

/*
 * The first byte chooses the export. The rest is what the client sends: the
 * seeds hold whole sessions, handshake included.
 */

static char sockets[2][128];

static void serve(u32 i, bool read_only)
{
	char *argv[] = { "1073741824" };
	struct nbd_options options = { .name = "fuzz", .read_only = read_only, .nr_loops = 1 };
	struct qc_err err = { 0 };
	struct transport *t;
	struct target *ti;

	snprintf(sockets[i], sizeof(sockets[i]), "%s", fuzz_path(read_only ? "ro" : "rw"));
	options.socket = sockets[i];
	if (target_create("zero", 1, argv, &ti, &err) || nbd_create(ti, &options, &t, &err) ||
	    t->ops->start(t, &err)) {
		fprintf(stderr, "%s\n", err.msg);
		abort();
	}
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t size)
{
	if (!sockets[0][0]) {
		serve(0, false);
		serve(1, true);
	}
	if (size > 1)
		fuzz_talk(sockets[data[0] & 1], data + 1, size - 1);
	return 0;
}
