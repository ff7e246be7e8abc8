// SPDX-License-Identifier: GPL-2.0-or-later
/* A hostile QMP client: whatever it says, the server ends the connection and lives. */
#include "fuzz.h"

#include <qchain/control.h>
#include <stdio.h>
#include <stdlib.h>

static struct daemon served = { .name = "fuzz", .top = "fuzz" };
static char socket_path[128];

/* In place of the daemon's: `quit` is answered, and changes nothing. */
int __wrap_daemon_stop(struct daemon *daemon, enum stop_mode mode, const char *reason,
		       struct qc_err *err);
int __wrap_daemon_stop(struct daemon *daemon, enum stop_mode mode, const char *reason,
		       struct qc_err *err)
{
	return qc_err_set(err, -16, "fuzz: in use");
}

static void serve(void)
{
	char *argv[] = { "1073741824" };
	struct qc_err err = { 0 };
	struct io_engine *io;

	snprintf(socket_path, sizeof(socket_path), "%s", fuzz_path("qmp"));
	if (io_uring_engine_create(64, &io) || loop_create("control", io, &served.loop) ||
	    target_create("zero", 1, argv, &served.target, &err) ||
	    qmp_server_create(&served, socket_path, &served.qmp, &err) ||
	    loop_start(served.loop, -1)) {
		fprintf(stderr, "%s\n", err.msg);
		abort();
	}
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t size)
{
	if (!socket_path[0])
		serve();
	fuzz_talk(socket_path, data, size);
	return 0;
}
