// SPDX-License-Identifier: GPL-2.0-or-later
/* Serves one target as a ublk device, for the system tests of the ublk transport alone. */
#include "../../ublk-target/transport/ublk-private.h"
#include "ublk-mixed.h"

#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <qchain/transport.h>

/*
 * Signals: TERM stops if nobody uses the device, INT stops by force, USR1
 * prints the status. Lines on standard output: "ready DEVICE", "status JSON",
 * "busy TEXT", "stopped"; "error TEXT" and status 1 when it cannot start.
 */

/*
 * Linked with --wrap=ublk_control_open,--wrap=io_uring_register_buffers_sparse:
 * kernels that the machine does not have, failures that it does not show.
 */
static unsigned int slots; /* buffer slots of a ring; too few: registration fails */
static bool old_driver; /* as before Linux 6.5 */

int __real_ublk_control_open(struct ublk_control *ctl, struct qc_err *err);
int __wrap_ublk_control_open(struct ublk_control *ctl, struct qc_err *err);
int __real_io_uring_register_buffers_sparse(struct io_uring *ring, unsigned int nr);
int __wrap_io_uring_register_buffers_sparse(struct io_uring *ring, unsigned int nr);

int __wrap_io_uring_register_buffers_sparse(struct io_uring *ring, unsigned int nr)
{
	return __real_io_uring_register_buffers_sparse(ring, slots ? slots : nr);
}

int __wrap_ublk_control_open(struct ublk_control *ctl, struct qc_err *err)
{
	int ret = __real_ublk_control_open(ctl, err);

	if (old_driver) {
		ctl->raw_opcodes = true;
		ctl->features = UBLK_F_USER_RECOVERY | UBLK_F_USER_RECOVERY_REISSUE;
	}
	return ret;
}

static int usage(void)
{
	fprintf(stderr, "usage: ublk-bringup [--id N] [--recover N] [--copy] [--queues N] "
			"[--depth N] [--tag N] [--scan] [--slots N] [--old-driver] "
			"TYPE [WORD]...\n");
	return 2;
}

static int parse(int argc, char **argv, struct ublk_options *o)
{
	static const struct option options[] = {
		{ "id", required_argument, NULL, 'i' },
		{ "recover", required_argument, NULL, 'r' },
		{ "copy", no_argument, NULL, 'c' },
		{ "queues", required_argument, NULL, 'q' },
		{ "depth", required_argument, NULL, 'd' },
		{ "tag", required_argument, NULL, 't' },
		{ "scan", no_argument, NULL, 's' },
		{ "slots", required_argument, NULL, 'n' },
		{ "old-driver", no_argument, NULL, 'o' },
		{ NULL },
	};
	int c;

	while ((c = getopt_long(argc, argv, "+", options, NULL)) != -1) {
		if (c == 'i' || c == 'r')
			o->dev_id = atoi(optarg);
		if (c == 'r')
			o->recover = true;
		else if (c == 'c')
			o->no_zero_copy = true;
		else if (c == 'q')
			o->nr_queues = atoi(optarg);
		else if (c == 'd')
			o->queue_depth = atoi(optarg);
		else if (c == 't')
			o->tag = strtoull(optarg, NULL, 0);
		else if (c == 's')
			o->scan_partitions = true;
		else if (c == 'n')
			slots = atoi(optarg);
		else if (c == 'o')
			old_driver = true;
		else if (c == '?')
			return -EINVAL;
	}
	return optind < argc ? 0 : -EINVAL;
}

static void print_status(struct transport *t)
{
	json_object *status = json_object_new_object();

	t->ops->status(t, status);
	printf("status %s\n", json_object_to_json_string_ext(status, JSON_C_TO_STRING_PLAIN));
	json_object_put(status);
}

/* Until it is stopped. */
static void serve(struct transport *t, const sigset_t *signals)
{
	for (;;) {
		struct qc_err err = { 0 };
		int sig = 0;

		fflush(stdout);
		if (sigwait(signals, &sig))
			continue;
		if (sig == SIGUSR1)
			print_status(t);
		else if (t->ops->stop(t, sig == SIGINT, &err))
			printf("busy %s\n", err.msg);
		else
			return;
	}
}

static int make_target(int argc, char **argv, struct target **ti, struct qc_err *err)
{
	if (!strcmp(argv[0], "mixed") && argc == 2)
		return mixed_create(argv[1], ti, err);
	return target_create(argv[0], argc - 1, argv + 1, ti, err);
}

static void free_target(struct target *ti)
{
	if (!strcmp(ti->type->name, "mixed"))
		mixed_destroy(ti);
	else
		target_destroy(ti);
}

static int start(struct target *ti, const struct ublk_options *options,
		 struct transport **result, struct qc_err *err)
{
	int ret = ublk_create(ti, options, result, err);

	if (ret)
		return ret;
	ret = (*result)->ops->start(*result, err);
	if (ret)
		(*result)->ops->destroy(*result);
	return ret;
}

static int run(struct target *ti, const struct ublk_options *options, const sigset_t *signals)
{
	struct qc_err err = { 0 };
	struct transport *t;

	if (start(ti, options, &t, &err)) {
		printf("error %s\n", err.msg);
		return 1;
	}
	printf("ready /dev/ublkb%d\n", ublk_dev_id(t));
	print_status(t);
	serve(t, signals);
	t->ops->destroy(t);
	printf("stopped\n");
	return 0;
}

int main(int argc, char **argv)
{
	struct ublk_options options = { .dev_id = -1 };
	struct qc_err err = { 0 };
	struct target *ti;
	sigset_t signals;
	int ret;

	if (parse(argc, argv, &options))
		return usage();
	sigemptyset(&signals);
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGINT);
	sigaddset(&signals, SIGUSR1);
	sigprocmask(SIG_BLOCK, &signals, NULL);
	mlockall(MCL_CURRENT | MCL_FUTURE);
	if (make_target(argc - optind, argv + optind, &ti, &err)) {
		printf("error %s\n", err.msg);
		return 1;
	}
	ret = run(ti, &options, &signals);
	free_target(ti);
	return ret;
}
