// SPDX-License-Identifier: GPL-2.0-or-later
/* qchainctl: finds the verb in the table and answers --help and --version. */
#include "ctl.h"

#include <malloc.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* In the order in which --help lists them; a row with only a name is a heading. */
static const struct verb heading_chains = { .name = "Served chains:" };
static const struct verb heading_images = { .name = "Images (no daemon needed):" };

static const struct verb *const verbs[] = {
	&heading_chains,
	&verb_up,
	&verb_down,
	&verb_upgrade,
	&verb_list,
	&verb_show_status,
	&verb_tree,
	&verb_scan,
	&verb_space,
	&verb_rename,
	&verb_snapshot,
	&verb_delete,
	&verb_revert,
	&verb_expose,
	&verb_unexpose,
	&verb_export,
	&verb_verify,
	&verb_events,
	&verb_job,
	&heading_images,
	&verb_create,
	&verb_info,
	&verb_map,
	&verb_check,
	&verb_measure,
	&verb_compare,
	&verb_commit,
	&verb_stream,
	&verb_rebase,
	&verb_resize,
	&verb_bench,
};

static const struct verb *verb_find(const char *name)
{
	for (u32 i = 0; i < ARRAY_SIZE(verbs); i++) {
		if (verbs[i]->run && strcmp(verbs[i]->name, name) == 0)
			return verbs[i];
	}
	return NULL;
}

static void print_verbs(void)
{
	printf("Usage: qchainctl VERB [OPTION]... [NAME]...\n"
	       "Builds, shows, changes and merges chains of qcow2 images on logical volumes.\n");
	for (u32 i = 0; i < ARRAY_SIZE(verbs); i++) {
		if (verbs[i]->run)
			printf("  %-10s %s\n", verbs[i]->name, verbs[i]->summary);
		else
			printf("\n%s\n", verbs[i]->name);
	}
	printf("\nNames: a word with / or ./ or ../ in front is a path, VG/LV is a logical\n"
	       "volume, the name of a served chain is that chain.\n"
	       "Help and examples for a verb: qchainctl VERB --help\n");
}

static int print_verb_help(const struct verb *verb)
{
	printf("Usage: qchainctl %s %s\n%s\n", verb->name, verb->usage, verb->summary);
	if (verb->options)
		printf("\nOptions:\n%s", verb->options);
	if (verb->examples)
		printf("\nExamples:\n%s", verb->examples);
	return CTL_DONE;
}

int verb_status(const struct verb *verb)
{
	return verb->usage_status ? verb->usage_status : CTL_USAGE;
}

int verb_usage(const struct verb *verb, const char *fmt, ...)
{
	va_list ap;

	fprintf(stderr, "qchainctl %s: ", verb->name);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fprintf(stderr, "; see qchainctl %s --help\n", verb->name);
	return verb_status(verb);
}

/* "--json, --repair" */
static const char *allowed_options(const struct option *options, char *text, size_t bytes)
{
	size_t at = 0;

	text[0] = '\0';
	for (; options->name && at < bytes; options++)
		at += snprintf(text + at, bytes - at, "%s--%s", at ? ", " : "", options->name);
	return text;
}

/* A row whose value is a letter has that letter as its short form. */
static void short_options(const struct option *options, char *text, size_t room)
{
	size_t n = snprintf(text, room, ":");

	for (; options->name && n + 3 < room; options++) {
		if (options->val >= 128)
			continue;
		text[n++] = options->val;
		if (options->has_arg == required_argument)
			text[n++] = ':';
		text[n] = 0;
	}
}

int verb_option(const struct verb *verb, int argc, char **argv, const struct option *options)
{
	char allowed[1024];
	char letters[128];
	int c;

	opterr = 0;
	short_options(options, letters, sizeof(letters));
	c = getopt_long(argc, argv, letters, options, NULL);
	if (c == ':') {
		verb_usage(verb, "option %s needs a value", argv[optind - 1]);
		return '?';
	}
	if (c == '?')
		verb_usage(verb, "option %s not known or not used so, allowed are %s, --help",
			   argv[optind - 1], allowed_options(options, allowed, sizeof(allowed)));
	return c;
}

int verb_arguments(const struct verb *verb, int argc, char **argv, int least, int most)
{
	int nr = argc - optind;

	if (nr < least)
		return verb_usage(verb, "too few arguments (%d), expected: qchainctl %s %s", nr,
				  verb->name, verb->usage);
	if (nr > most)
		return verb_usage(verb, "argument '%s' is one too many, expected: qchainctl %s %s",
				  argv[optind + most], verb->name, verb->usage);
	return 0;
}

static bool wants_help(int argc, char **argv)
{
	for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++) {
		if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0)
			return true;
	}
	return false;
}

static int unknown_verb(const char *name)
{
	const char *comma = "";

	fprintf(stderr, "qchainctl: verb not known (%s), allowed are ", name);
	for (u32 i = 0; i < ARRAY_SIZE(verbs); i++) {
		if (!verbs[i]->run)
			continue;
		fprintf(stderr, "%s%s", comma, verbs[i]->name);
		comma = ", ";
	}
	fprintf(stderr, "; see qchainctl --help\n");
	return CTL_USAGE;
}

/* A full disk under standard output must not look like success. */
static int flush_output(int status)
{
	if (fflush(stdout) == 0 && !ferror(stdout))
		return status;
	fprintf(stderr, "qchainctl: standard output: write failed (%m)\n");
	return CTL_FAILED;
}

int main(int argc, char **argv)
{
	const struct verb *verb;

	/* One heap: that of a thread grows by a system call for every page. */
	mallopt(M_ARENA_MAX, 1);
	if (argc < 2) {
		fprintf(stderr, "qchainctl: verb missing; see qchainctl --help\n");
		return CTL_USAGE;
	}
	if (strcmp(argv[1], "--version") == 0) {
		printf("qchainctl " QCHAIN_VERSION "\n");
		return flush_output(CTL_DONE);
	}
	if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 ||
	    (strcmp(argv[1], "help") == 0 && argc == 2)) {
		print_verbs();
		return flush_output(CTL_DONE);
	}
	if (strcmp(argv[1], "help") == 0) {
		verb = verb_find(argv[2]);
		return verb ? flush_output(print_verb_help(verb)) : unknown_verb(argv[2]);
	}
	verb = verb_find(argv[1]);
	if (!verb)
		return unknown_verb(argv[1]);
	if (wants_help(argc - 1, argv + 1))
		return flush_output(print_verb_help(verb));
	return flush_output(verb->run(verb, argc - 1, argv + 1));
}
