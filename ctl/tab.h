/* SPDX-License-Identifier: GPL-2.0-or-later */
/* /etc/qchaintab: the devices that a host brings up by itself, one a line. */
#ifndef CTL_TAB_H
#define CTL_TAB_H

#include "served.h"

#define TAB_PATH "/etc/qchaintab"
#define TAB_MAX_WORDS 64u

/*
 * struct tab_entry - one line: NAME PLACE OPTIONS
 * @place: a VG, a directory, or what `up` takes as TOP; "": not given
 * @after: index of the entry that must be up before, -1: none
 * @words: the options for `up`, as on its command line; malloc'ed
 */
struct tab_entry {
	char name[QC_MAX_CHAIN_NAME + 1];
	char place[4096];
	u32 line;
	bool noauto;
	bool boot;
	s32 after;
	u32 nr_words;
	char *words[TAB_MAX_WORDS];
};

/*
 * struct tab - the lines that are right, in their order
 * @nr_bad: wrong lines that were told
 */
struct tab {
	const char *path;
	struct tab_entry *entries;
	u32 nr;
	u32 nr_bad;
};

/*
 * tab_load - read the table at @path
 * @only: the device that is looked for; NULL: all
 *
 * A wrong line is told to the user, with its number, and left out; those of other
 * devices than @only are left out without a word. -ENOENT: there is no such file.
 */
int tab_load(const char *path, const char *only, struct tab *result, struct qc_err *err);
void tab_exit(struct tab *table);
/* NULL: no line has this name. */
const struct tab_entry *tab_find(const struct tab *table, const char *name);

/* An option of `up` that may stand in the table; NULL: none (up.c). */
const struct option *up_tab_option(const char *name);

/*
 * up_all - bring up what stands in the table at @path and is not served yet, four at
 * a time, in the order of the lines (up-all.c)
 * @boot: only lines with the option boot
 *
 * Prints a line for each device as soon as it is up, or a list with @json; returns the
 * exit status: CTL_FAILED if one has failed or a line is wrong, the others are up then.
 */
int up_all(const char *path, bool boot, bool json);

#endif
