/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the files of qchainctl share: verbs, exit status, names, printing. */
#ifndef CTL_H
#define CTL_H

#include <getopt.h>
#include <json-c/json.h>
#include <qchain/err.h>
#include <qchain/types.h>
#include <stdio.h>

#ifndef QCHAIN_VERSION
#define QCHAIN_VERSION "0.1"
#endif

/* ---- verbs (main.c) ------------------------------------------------------ */

/* Exit status; `check` and `compare` have qemu-img's numbers beside these. */
#define CTL_DONE 0
#define CTL_FAILED 1
#define CTL_USAGE 2

/*
 * struct verb - one word of the command line and what it does
 * @name: the word; verbs of two words ("job list") take the second in @run
 * @summary: one line for `qchainctl --help`
 * @usage: what stands after the name
 * @options: one option a line, indented by two; may be NULL
 * @examples: whole command lines, indented by two
 * @usage_status: exit status of a wrong command line where CTL_USAGE has
 *                another meaning; 0: CTL_USAGE
 * @run: @argv[0] is the verb's name; returns the exit status. --help was
 *       handled before.
 *
 * One of them in each file, exported here; rows of the table in main.c.
 */
struct verb {
	const char *name;
	const char *summary;
	const char *usage;
	const char *options;
	const char *examples;
	int usage_status;
	int (*run)(const struct verb *verb, int argc, char **argv);
};

extern const struct verb verb_up;
extern const struct verb verb_down;
extern const struct verb verb_upgrade;
extern const struct verb verb_list;
extern const struct verb verb_show_status;
extern const struct verb verb_tree;
extern const struct verb verb_scan;
extern const struct verb verb_space;
extern const struct verb verb_rename;
extern const struct verb verb_snapshot;
extern const struct verb verb_delete;
extern const struct verb verb_revert;
extern const struct verb verb_expose;
extern const struct verb verb_unexpose;
extern const struct verb verb_export;
extern const struct verb verb_verify;
extern const struct verb verb_events;
extern const struct verb verb_job;
extern const struct verb verb_create;
extern const struct verb verb_info;
extern const struct verb verb_map;
extern const struct verb verb_check;
extern const struct verb verb_measure;
extern const struct verb verb_compare;
extern const struct verb verb_bench;
extern const struct verb verb_commit;
extern const struct verb verb_stream;
extern const struct verb verb_rebase;
extern const struct verb verb_resize;

/*
 * verb_option - getopt_long() for verbs; -1 at the end, '?' after a message
 * Unknown options, missing values and values where none is taken are told to
 * the user together with what is allowed; the verb then returns verb_status().
 */
int verb_option(const struct verb *verb, int argc, char **argv, const struct option *options);

/* The exit status of a wrong command line. */
int verb_status(const struct verb *verb);

/* Print "qchainctl VERB: <text>; see qchainctl VERB --help"; returns verb_status(). */
int verb_usage(const struct verb *verb, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));

/*
 * verb_arguments - check that what is left after the options is from @least to
 * @most words; 0, or the exit status after a message that says what is expected
 */
int verb_arguments(const struct verb *verb, int argc, char **argv, int least, int most);

/* ---- names (names.c, DESIGN section 9) ------------------------------------ */

enum name_kind { NAME_PATH, NAME_CHAIN, NAME_LV };

/*
 * struct object_name - what a word of the command line stands for
 * @text: as it was given, for messages
 * @path: the image's path; LV: /dev/VG/LV; chain: its folder
 */
struct object_name {
	enum name_kind kind;
	const char *text;
	char path[4096];
	char vg[128];
	char lv[128];
};

/*
 * name_parse - begins with `/`, `./` or `../`: a path; the name of a served
 * chain: that chain; otherwise VG/LV. A plain file name is refused with the
 * hint to put ./ before it. Nothing is opened; an LV need not exist.
 */
int name_parse(const char *text, struct object_name *result, struct qc_err *err);

/* name_parse() for verbs that work on images: a served chain is refused. */
int name_image(const char *text, struct object_name *result, struct qc_err *err);

/* ---- printing (print.c) --------------------------------------------------- */

enum print_colour {
	COLOUR_NONE,
	COLOUR_GOOD,
	COLOUR_WARN,
	COLOUR_BAD,
	COLOUR_STRONG,
	COLOUR_FAINT,
};

/* Is it a terminal that can do more than print lines? */
bool print_is_terminal(FILE *to);

/* The escape sequence, or "" when @to is no terminal or NO_COLOR is set. */
const char *print_colour(FILE *to, enum print_colour colour);

/* Pretty, with a newline, to standard output; puts the reference. */
void print_json(json_object *object_owned);

/* "qchainctl: <text>" on standard error; returns CTL_FAILED. */
int print_error(const struct qc_err *err);

/* "10 GiB", as qemu-img writes sizes. @text has room for 32 characters. */
const char *print_size(u64 bytes, char *text);

/*
 * print_clean - text from an image, for a terminal: control characters become
 * '?'. @out has room for PRINT_CLEAN_BYTES; longer text is cut.
 */
#define PRINT_CLEAN_BYTES 1100
const char *print_clean(const char *text, char *out);

/*
 * struct progress - a bar with rate and time left, on a terminal only
 * Written to standard error, so that standard output stays a clean report.
 */
struct progress {
	const char *what;
	u64 total;
	u64 start_ns;
	u64 drawn_ns;
	bool in_bytes; /* the rate is bytes per second, else items */
	bool terminal;
};

void progress_begin(struct progress *progress, const char *what, u64 total, bool in_bytes);
/* Cheap: draws five times a second at most. @total may have changed. */
void progress_update(struct progress *progress, u64 done);
/* Wipes the bar. */
void progress_end(struct progress *progress);

#endif
