// SPDX-License-Identifier: GPL-2.0-or-later
/* Opens a chain as qchaind does, says so, and holds it until its input ends. */
#include <errno.h>
#include <getopt.h>
#include <qchain/chain.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define MAX_ALLOW 16

static const struct option long_options[] = {
	{ "read-only", no_argument, NULL, 'r' },
	{ "no-lock", no_argument, NULL, 'n' },
	{ "wait", no_argument, NULL, 'w' },
	{ "format", required_argument, NULL, 'f' },
	{ "allow-backing", required_argument, NULL, 'a' },
	{ NULL, 0, NULL, 0 },
};

/* Returns the top's place in @argv, 0 on a usage error. */
static int parse(int argc, char **argv, struct chain_open_options *options)
{
	static char *allow[MAX_ALLOW + 1];
	int nr = 0, c;

	options->top_format = IMAGE_QCOW2;
	options->policy.allow_dirs = allow;
	while ((c = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
		if (c == 'r')
			options->read_only = true;
		else if (c == 'n')
			options->no_lock = true;
		else if (c == 'w')
			options->wait = true;
		else if (c == 'a' && nr < MAX_ALLOW)
			allow[nr++] = optarg;
		else if (c != 'f' || image_format_parse(optarg, &options->top_format))
			return 0;
	}
	return optind == argc - 1 ? optind : 0;
}

int main(int argc, char **argv)
{
	struct chain_open_options options = { 0 };
	struct qc_err err = { 0 };
	struct chain *chain;
	char c;
	int top = parse(argc, argv, &options);

	if (!top) {
		fprintf(stderr, "usage: door-probe [--read-only] [--no-lock] [--wait] "
			"[--format F] [--allow-backing DIR]... TOP\n");
		return 2;
	}
	if (chain_open(argv[top], &options, &chain, &err)) {
		fprintf(stderr, "%s\n", err.msg);
		return 1;
	}
	printf("open\n");
	fflush(stdout);
	while (read(STDIN_FILENO, &c, 1) > 0)
		;
	chain_close(chain);
	return 0;
}
