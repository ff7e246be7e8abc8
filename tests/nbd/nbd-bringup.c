// SPDX-License-Identifier: GPL-2.0-or-later
/* Serves one target over NBD, for tests of the transport alone. */
#include <errno.h>
#include <getopt.h>
#include <qchain/transport.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/*
 * nbd-bringup [options] SOCKET TYPE [WORD]...
 *
 * SIGTERM stops by force, SIGINT only when nobody is connected. SIGUSR1 prints
 * the status, SIGUSR2 grows the target by 1 MiB (of those that have no end).
 */

static const struct option long_options[] = {
	{ "name", required_argument, NULL, 'n' },
	{ "description", required_argument, NULL, 'd' },
	{ "loops", required_argument, NULL, 'l' },
	{ "read-only", no_argument, NULL, 'r' },
	{ 0 },
};

static int parse_options(int argc, char **argv, struct nbd_options *options)
{
	int c;

	while ((c = getopt_long(argc, argv, "+", long_options, NULL)) != -1) {
		if (c == 'n')
			options->name = optarg;
		else if (c == 'd')
			options->description = optarg;
		else if (c == 'l')
			options->nr_loops = strtoul(optarg, NULL, 0);
		else if (c == 'r')
			options->read_only = true;
		else
			return -EINVAL;
	}
	return argc - optind < 2 ? -EINVAL : 0;
}

static void print_status(struct transport *t)
{
	json_object *status = json_object_new_object();

	t->ops->status(t, status);
	printf("%s\n", json_object_to_json_string(status));
	fflush(stdout);
	json_object_put(status);
}

static void grow(struct target *ti)
{
	__atomic_fetch_add(&ti->size_bytes, MiB, __ATOMIC_RELEASE);
}

static void serve(struct transport *t, const sigset_t *signals)
{
	bool running = true;
	struct qc_err err;
	int sig;

	while (running && !sigwait(signals, &sig)) {
		memset(&err, 0, sizeof(err));
		if (sig == SIGUSR1)
			print_status(t);
		else if (sig == SIGUSR2)
			grow(t->target);
		else if (t->ops->stop(t, sig == SIGTERM, &err))
			fprintf(stderr, "%s\n", err.msg);
		else
			running = false;
	}
}

static int run(struct nbd_options *options, char **words, int nr, struct qc_err *err)
{
	struct transport *t = NULL;
	struct target *ti = NULL;
	sigset_t signals;
	int ret;

	sigemptyset(&signals);
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGINT);
	sigaddset(&signals, SIGUSR1);
	sigaddset(&signals, SIGUSR2);
	sigprocmask(SIG_BLOCK, &signals, NULL);
	options->socket = words[0];
	ret = target_create(words[1], nr - 2, words + 2, &ti, err);
	ret = ret ?: nbd_create(ti, options, &t, err);
	ret = ret ?: t->ops->start(t, err);
	if (!ret)
		serve(t, &signals);
	if (t)
		t->ops->destroy(t);
	target_destroy(ti);
	return ret;
}

int main(int argc, char **argv)
{
	struct nbd_options options = { 0 };
	struct qc_err err = { 0 };

	if (parse_options(argc, argv, &options)) {
		fprintf(stderr, "usage: nbd-bringup [--name N] [--description D] [--loops N] "
			"[--read-only] SOCKET TYPE [WORD]...\n");
		return 2;
	}
	if (!run(&options, argv + optind, argc - optind, &err))
		return 0;
	fprintf(stderr, "%s\n", err.msg);
	return 1;
}
