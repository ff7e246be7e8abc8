// SPDX-License-Identifier: GPL-2.0-or-later
/* qchainctl check: is an image consistent, and make it so. */
#include "offline.h"

#include <errno.h>
#include <qchain/parse.h>
#include <string.h>
#include <uapi/qcow2.h>

/* As qemu-img check. */
#define CHECK_GOOD 0
#define CHECK_FAILED 1
#define CHECK_CORRUPT 2
#define CHECK_LEAKS 3
#define CHECK_NOT_SUPPORTED 63

/* Lines about findings; a broken image can have millions. */
#define CHECK_MOST_LINES 100

#define OPTION_REPAIR 'r'
#define OPTION_FORCE 'x'

struct check_options {
	struct offline_options offline;
	u32 fix;
	bool force;
	int argc; /* for --repair, whose value may be a word of its own */
	char **argv;
};

/* struct findings - what is told while the check runs */
struct findings {
	u64 lines;
	bool silent;
};

static void report_finding(void *arg, const char *line)
{
	struct findings *findings = arg;
	char clean[PRINT_CLEAN_BYTES];

	if (findings->silent || findings->lines++ >= CHECK_MOST_LINES)
		return;
	fprintf(stderr, "%s\n", print_clean(line, clean));
}

static void report_rest(const struct findings *findings)
{
	if (!findings->silent && findings->lines > CHECK_MOST_LINES)
		fprintf(stderr, "... and %llu more\n",
			(unsigned long long)(findings->lines - CHECK_MOST_LINES));
}

/* ---- the report --------------------------------------------------------------------- */

static void add_count(json_object *object, const char *key, u64 value)
{
	if (value)
		json_add_u64(object, key, value);
}

/* The keys of qemu-img check: counts that are 0 are left out. */
static void print_check_json(const struct image *img, const struct check_result *r)
{
	json_object *object = json_object_new_object();

	json_add_string(object, "filename", img->dev->path);
	json_add_string(object, "format", image_format_name(img->format));
	json_add_u64(object, "check-errors", r->check_errors);
	add_count(object, "image-end-offset", r->image_end_offset);
	add_count(object, "corruptions", r->corruptions);
	add_count(object, "leaks", r->leaks);
	add_count(object, "corruptions-fixed", r->corruptions_fixed);
	add_count(object, "leaks-fixed", r->leaks_fixed);
	add_count(object, "total-clusters", r->total_clusters);
	add_count(object, "allocated-clusters", r->allocated_clusters);
	add_count(object, "fragmented-clusters", r->fragmented_clusters);
	add_count(object, "compressed-clusters", r->compressed_clusters);
	print_json(object);
}

static void print_found(u64 nr, enum print_colour colour, const char *what)
{
	if (nr)
		printf("%s%llu%s %s\n", print_colour(stdout, colour), (unsigned long long)nr,
		       print_colour(stdout, COLOUR_NONE), what);
}

static void print_check_human(const struct image *img, const struct check_result *r)
{
	print_found(r->corruptions_fixed, COLOUR_GOOD, "errors repaired.");
	print_found(r->leaks_fixed, COLOUR_GOOD, "leaked clusters freed.");
	print_found(r->corruptions, COLOUR_BAD,
		    "errors: data may be wrong, writing may make it worse.");
	print_found(r->leaks, COLOUR_WARN, "leaked clusters: space is lost, data is not.");
	print_found(r->check_errors, COLOUR_BAD, "places could not be looked at.");
	if (!r->corruptions && !r->leaks && !r->check_errors)
		printf("%sNo errors were found%s on %s.\n", print_colour(stdout, COLOUR_GOOD),
		       print_colour(stdout, COLOUR_NONE), img->dev->path);
	if (r->total_clusters && r->allocated_clusters)
		printf("%llu of %llu clusters (%.2f%%) allocated, %.2f%% of them fragmented, "
		       "%.2f%% compressed\n",
		       (unsigned long long)r->allocated_clusters,
		       (unsigned long long)r->total_clusters,
		       r->allocated_clusters * 100.0 / r->total_clusters,
		       r->fragmented_clusters * 100.0 / r->allocated_clusters,
		       r->compressed_clusters * 100.0 / r->allocated_clusters);
	if (r->image_end_offset)
		printf("Image end offset: %llu\n", (unsigned long long)r->image_end_offset);
}

static int check_status(const struct check_result *r)
{
	if (r->check_errors)
		return CHECK_FAILED;
	return r->corruptions ? CHECK_CORRUPT : r->leaks ? CHECK_LEAKS : CHECK_GOOD;
}

/* ---- checking ------------------------------------------------------------------------ */

/* After a repair the image is looked at once more: that verdict counts. */
static int check_twice(struct image *img, u32 fix, struct findings *findings,
		       struct check_result *result, struct qc_err *err)
{
	struct check_result before;
	int ret = image_check(img, fix, report_finding, findings, result, err);

	if (ret || !(result->corruptions_fixed || result->leaks_fixed))
		return ret;
	before = *result;
	ret = image_check(img, 0, report_finding, findings, result, err);
	result->corruptions_fixed = before.corruptions_fixed;
	result->leaks_fixed = before.leaks_fixed;
	return ret;
}

/*
 * A daemon that died can still bring back what it acknowledged (its log names
 * clusters that no table names yet); a repair before that would free them.
 */
static int refuse_unclean(const struct image *img, const struct check_options *options,
			  struct qc_err *err)
{
	if (!options->fix || options->force || !(img->autoclear & QCOW2_AUTOCLEAR_QCHAIN_OPEN))
		return 0;
	return qc_err_set(err, -EBUSY,
			  "%s: was not closed by qchaind, which repairs it itself; start its "
			  "chain with qchainctl up, or, after a crash of the whole host, repair "
			  "with --force",
			  img->dev->path);
}

static int check_image(const char *name, const struct check_options *options)
{
	struct findings findings = { .silent = options->offline.json };
	struct check_result result = {};
	struct qc_err err = {};
	struct image *img;
	int ret;

	ret = offline_open_image(name, &options->offline, options->fix,
				 IMAGE_OPEN_CHECK | IMAGE_OPEN_BITMAPS, &img, &err);
	if (ret) {
		print_error(&err);
		return CHECK_FAILED;
	}
	ret = refuse_unclean(img, options, &err);
	if (!ret)
		ret = check_twice(img, options->fix, &findings, &result, &err);
	report_rest(&findings);
	if (ret)
		print_error(&err);
	else if (options->offline.json)
		print_check_json(img, &result);
	else
		print_check_human(img, &result);
	image_close(img);
	if (ret == -EOPNOTSUPP)
		return CHECK_NOT_SUPPORTED;
	return ret ? CHECK_FAILED : check_status(&result);
}

/* Alone, or with what is to be repaired as its next word or after "=". */
static void take_repair(struct check_options *options, struct qc_err *err)
{
	static const char *const kinds[] = { "all", "leaks", NULL };
	u32 kind = 0;

	if (optarg)
		parse_choice("--repair", optarg, kinds, &kind, err);
	else if (optind < options->argc &&
		 parse_choice("--repair", options->argv[optind], kinds, &kind, NULL) == 0)
		optind++;
	options->fix = kind ? CHECK_FIX_LEAKS : CHECK_FIX_LEAKS | CHECK_FIX_ERRORS;
}

static void take_option(void *arg, int c, struct qc_err *err)
{
	struct check_options *options = arg;

	if (c == OPTION_REPAIR)
		take_repair(options, err);
	else
		options->force = true;
}

static int run_check(const struct verb *verb, int argc, char **argv)
{
	static const struct option rows[] = {
		OFFLINE_IMAGE_ROWS,
		{ "repair", optional_argument, NULL, OPTION_REPAIR },
		{ "force", no_argument, NULL, OPTION_FORCE },
		{},
	};
	static const struct offline_syntax syntax = { rows, take_option, 1, 1 };
	struct check_options options = { .argc = argc, .argv = argv };
	int ret = offline_options_read(verb, argc, argv, &syntax, &options.offline, &options);

	if (!ret && options.fix && options.offline.force_share)
		ret = verb_usage(verb, "--force-share: cannot be used with --repair, a writer must "
				 "be alone");
	if (!ret)
		ret = check_image(argv[optind], &options);
	offline_options_exit(&options.offline);
	return ret;
}

const struct verb verb_check = {
	.name = "check",
	.summary = "check the tables of an image, and repair them",
	.usage = "[OPTION]... IMAGE",
	.options = OFFLINE_IMAGE_HELP
	"  --repair [leaks|all]   free leaked clusters, or repair all that can be (default)\n"
	"  --force                repair although qchaind did not close the image\n"
	"Exit status: 0 no errors, 1 the check failed, 2 errors, 3 leaks only,\n"
	"63 the format has nothing to check.\n",
	.examples = "  qchainctl check vg0/vm-100-disk-0.qcow2\n"
		    "  qchainctl check --repair all vg0/vm-100-disk-0.qcow2\n"
		    "  qchainctl check --force-share --json ./disk.qcow2\n",
	/* 2 says that the image has errors. */
	.usage_status = CHECK_FAILED,
	.run = run_check,
};
