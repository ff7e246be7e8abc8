// SPDX-License-Identifier: GPL-2.0-or-later
/* qchainctl expose, unexpose: a snapshot as a read-only device of its own. */
#include "exposed.h"

#include <stdlib.h>
#include <string.h>

/*
 * The sealed layer is served by a daemon of its own, as the chain NAME+SNAP: what
 * it does cannot disturb the device. The image locks that it holds keep every job
 * from writing to a layer that it shows.
 */
struct expose_options {
	char *nbd;
	bool json;
};

static const struct option long_options[] = {
	{ "nbd", required_argument, NULL, 'n' },
	{ "json", no_argument, NULL, 'j' },
	{ NULL },
};

/* NAME+SNAP, of the words NAME and SNAP; 0 or the exit status. */
static int exposed_name(const struct verb *verb, char **words, char *result)
{
	char text[2 * QC_MAX_CHAIN_NAME + 2];
	int status = served_name(verb, words[0]);

	snprintf(text, sizeof(text), "%.*s+%.*s", QC_MAX_CHAIN_NAME, words[0],
		 QC_MAX_CHAIN_NAME, words[1]);
	status = status ? status : served_name(verb, text);
	if (!status)
		strcpy(result, text);
	return status;
}

static int ask_format(const struct served *served, const char *file, enum image_format *result,
		      struct qc_err *err)
{
	json_object *nodes;
	int ret = client_command(served->client, "query-named-block-nodes", NULL, false, &nodes,
				 err);

	if (ret)
		return ret;
	*result = exposed_format(nodes, file);
	json_object_put(nodes);
	return 0;
}

static int choose_layer(const char *name, const char *snap, char **result,
			enum image_format *format, struct qc_err *err)
{
	struct served served;
	int ret = served_find(name, &served, err);

	if (ret)
		return ret;
	if (served.state == SERVED_LIVE)
		ret = exposed_layer(&served, snap, result, err);
	else
		ret = served_not_live(&served, err);
	if (!ret)
		ret = exposed_check_jobs(&served, *result, err);
	if (!ret)
		ret = exposed_wait_sealed(&served, *result, err);
	if (!ret)
		ret = ask_format(&served, *result, format, err);
	served_exit(&served);
	return ret;
}

/* The verbs that do it have a command line, and nothing else. */
static int run_verb(const struct verb *verb, int argc, char **argv)
{
	optind = 0; /* parse from the beginning */
	return verb->run(verb, argc, argv);
}

static int expose(char **words, char *exposed, const struct expose_options *o)
{
	struct qc_err err = { 0 };
	char *argv[12] = { "up", exposed }, *file = NULL;
	enum image_format format = IMAGE_QCOW2;
	int argc = 2, status;

	if (choose_layer(words[0], words[1], &file, &format, &err)) {
		free(file);
		return print_error(&err);
	}
	argv[argc++] = file;
	argv[argc++] = "--read-only";
	argv[argc++] = "--format";
	argv[argc++] = (char *)image_format_name(format);
	if (o->nbd) {
		argv[argc++] = "--no-ublk";
		argv[argc++] = "--nbd";
		argv[argc++] = o->nbd;
	}
	if (o->json)
		argv[argc++] = "--json";
	status = run_verb(&verb_up, argc, argv);
	free(file);
	return status;
}

static int expose_run(const struct verb *verb, int argc, char **argv)
{
	struct expose_options options = { .nbd = NULL };
	char exposed[QC_MAX_CHAIN_NAME + 1];
	int c, status;

	while ((c = verb_option(verb, argc, argv, long_options)) != -1) {
		if (c == '?')
			return verb_status(verb);
		if (c == 'n')
			options.nbd = optarg;
		else
			options.json = true;
	}
	status = verb_arguments(verb, argc, argv, 2, 2);
	status = status ? status : exposed_name(verb, argv + optind, exposed);
	return status ? status : expose(argv + optind, exposed, &options);
}

static int unexpose_run(const struct verb *verb, int argc, char **argv)
{
	char exposed[QC_MAX_CHAIN_NAME + 1];
	char *words[4] = { "down", exposed };
	bool json;
	int nr = 2, status = served_arguments(verb, argc, argv, 2, 2, &json);

	status = status ? status : exposed_name(verb, argv + optind, exposed);
	if (status)
		return status;
	if (json)
		words[nr++] = "--json";
	return run_verb(&verb_down, nr, words);
}

const struct verb verb_expose = {
	.name = "expose",
	.summary = "a snapshot as a read-only device, while its chain is in use",
	.usage = "NAME SNAP [--nbd SOCK] [--json]",
	.options =
		"  --nbd SOCK      on this NBD socket, and not as a block device\n"
		"  --json          as up: name, device, state, top, size, exports, recovered\n"
		"\n"
		"It is served as NAME+SNAP, which list, status and tree show, too. As long as it\n"
		"is, nothing can be merged into its layers; refused while that is going on.\n"
		"unexpose it before NAME goes down.\n",
	.examples =
		"  qchainctl expose vm7 monday               then read /dev/qchain/vm7+monday\n"
		"  qchainctl expose vm7 monday --nbd /run/monday.sock\n",
	.run = expose_run,
};

const struct verb verb_unexpose = {
	.name = "unexpose",
	.summary = "end what expose has made",
	.usage = "NAME SNAP [--json]",
	.options =
		"  --json          one object: name, before\n",
	.examples =
		"  qchainctl unexpose vm7 monday\n",
	.run = unexpose_run,
};
