// SPDX-License-Identifier: GPL-2.0-or-later
/* Reads the table of devices, qchaintab(5). */
#include "tab.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define BLANKS " \t\r\n"

static int add_word(struct tab_entry *entry, const char *text, struct qc_err *err)
{
	char *word;

	if (entry->nr_words == TAB_MAX_WORDS)
		return qc_err_set(err, -E2BIG, "too many options, at most %u words; put fewer "
				  "there", TAB_MAX_WORDS);
	word = strdup(text);
	if (!word)
		return qc_err_set(err, -ENOMEM, "out of memory");
	entry->words[entry->nr_words++] = word;
	return 0;
}

static int refuse_value(const char *key, const char *value, struct qc_err *err)
{
	return qc_err_set(err, -EINVAL, "option %s has a value (%s), expected none; take it away",
			  key, value);
}

/* An option of `up`: its words. */
static int take_up_option(struct tab_entry *entry, const char *key, const char *value,
			  struct qc_err *err)
{
	const struct option *option = up_tab_option(key);
	char word[64];
	int ret;

	if (!option)
		return qc_err_set(err, -EINVAL, "option not known here (%s), allowed are boot, "
				  "noauto, after=NAME and those of qchainctl up --help without "
				  "their dashes; correct it", key);
	if (option->has_arg && (!value || !*value))
		return qc_err_set(err, -EINVAL, "option %s has no value, expected %s=VALUE; add "
				  "it", key, key);
	if (!option->has_arg && value)
		return refuse_value(key, value, err);
	snprintf(word, sizeof(word), "--%s", key);
	ret = add_word(entry, word, err);
	return ret || !value ? ret : add_word(entry, value, err);
}

static int take_after(const struct tab *table, struct tab_entry *entry, const char *value,
		      struct qc_err *err)
{
	const struct tab_entry *found = value ? tab_find(table, value) : NULL;

	if (!found)
		return qc_err_set(err, -EINVAL, "after=%s: no line above has that name, expected "
				  "the name of a device in a line above; correct it, or move this "
				  "line down", value ? value : "");
	entry->after = found - table->entries;
	return 0;
}

static int take_option(const struct tab *table, struct tab_entry *entry, char *text,
		       struct qc_err *err)
{
	char *value = strchr(text, '=');

	if (value)
		*value++ = '\0';
	if (!strcmp(text, "after"))
		return take_after(table, entry, value, err);
	if (strcmp(text, "boot") && strcmp(text, "noauto"))
		return take_up_option(entry, text, value, err);
	if (value)
		return refuse_value(text, value, err);
	entry->boot |= *text == 'b';
	entry->noauto |= *text == 'n';
	return 0;
}

/* The next option of a list; a comma that is doubled belongs to a value. */
static char *next_option(char **rest)
{
	char *start = *rest, *from = start, *to = start;

	if (!start)
		return NULL;
	for (; *from && (*from != ',' || from[1] == ','); from++) {
		if (*from == ',')
			from++;
		*to++ = *from;
	}
	*rest = *from ? from + 1 : NULL;
	*to = '\0';
	return start;
}

static int take_options(const struct tab *table, struct tab_entry *entry, char *text,
			struct qc_err *err)
{
	char *option;
	int ret = 0;

	if (!strcmp(text, "-"))
		return 0;
	while (ret == 0 && (option = next_option(&text)))
		ret = take_option(table, entry, option, err);
	return ret;
}

static int take_name(const struct tab *table, struct tab_entry *entry, const char *name,
		     struct qc_err *err)
{
	const struct tab_entry *other = tab_find(table, name);
	struct qc_err why = { 0 };
	int ret = chain_name_check(name, &why);

	if (ret)
		return qc_err_set(err, ret, "%s; correct it", why.msg);
	snprintf(entry->name, sizeof(entry->name), "%s", name);
	if (!other)
		return 0;
	return qc_err_set(err, -EEXIST, "the name stands in line %u already, expected another "
			  "one; take one of the lines away", other->line);
}

/* Paths count from nowhere: there is no folder in which a table is read. */
static int take_place(struct tab_entry *entry, const char *place, struct qc_err *err)
{
	if (!place)
		return qc_err_set(err, -EINVAL, "where it is stands nowhere, expected NAME PLACE "
				  "OPTIONS; add a VG, a directory, or - for any VG");
	if (*place == '.')
		return qc_err_set(err, -EINVAL, "path is not absolute (%s), expected a VG, VG/LV, "
				  "or a path from /; write the whole path", place);
	if (strlen(place) >= sizeof(entry->place))
		return qc_err_set(err, -ENAMETOOLONG, "path too long, must be below %zu bytes; "
				  "use a shorter one", sizeof(entry->place));
	if (strcmp(place, "-") != 0)
		strcpy(entry->place, place);
	return 0;
}

static int parse_line(const struct tab *table, struct tab_entry *entry, char *line,
		      struct qc_err *err)
{
	char *rest = NULL, *place, *options, *more;
	int ret = take_name(table, entry, strtok_r(line, BLANKS, &rest), err);

	place = strtok_r(NULL, BLANKS, &rest);
	if (ret == 0)
		ret = take_place(entry, place, err);
	options = place ? strtok_r(NULL, BLANKS, &rest) : NULL;
	more = options ? strtok_r(NULL, BLANKS, &rest) : NULL;
	if (ret == 0 && more && *more != '#')
		return qc_err_set(err, -EINVAL, "a word too many (%s), expected NAME PLACE "
				  "OPTIONS; put options in one word, with commas between", more);
	if (ret == 0 && options && *options != '#')
		ret = take_options(table, entry, options, err);
	return ret;
}

static void entry_exit(struct tab_entry *entry)
{
	while (entry->nr_words)
		free(entry->words[--entry->nr_words]);
}

/* Whose line it was is in @entry, as far as it was read. */
static void tell_wrong(struct tab *table, const struct tab_entry *entry, const char *only,
		       struct qc_err *err)
{
	if (only && (strcmp(only, entry->name) != 0 || tab_find(table, only)))
		return;
	if (entry->name[0])
		qc_err_prefix(err, "%s", entry->name);
	qc_err_prefix(err, "%s:%u", table->path, entry->line);
	print_error(err);
	table->nr_bad++;
}

/* One line more; a wrong one is left out. */
static int add_line(struct tab *table, char *line, u32 number, const char *only)
{
	struct tab_entry *larger, *entry;
	struct qc_err err = { 0 };

	line += strspn(line, BLANKS);
	if (!*line || *line == '#')
		return 0;
	larger = realloc(table->entries, (table->nr + 1) * sizeof(*larger));
	if (!larger)
		return -ENOMEM;
	table->entries = larger;
	entry = &larger[table->nr];
	*entry = (struct tab_entry){ .line = number, .after = -1 };
	if (parse_line(table, entry, line, &err) == 0) {
		table->nr++;
		return 0;
	}
	tell_wrong(table, entry, only, &err);
	entry_exit(entry);
	return 0;
}

int tab_load(const char *path, const char *only, struct tab *result, struct qc_err *err)
{
	char *line = NULL;
	size_t space = 0;
	u32 number = 0;
	int ret = 0;
	FILE *f = fopen(path, "re");

	*result = (struct tab){ .path = path };
	if (!f)
		return qc_err_set(err, -errno, "%s: table of devices not opened (%m), expected "
				  "lines NAME PLACE OPTIONS; see qchaintab(5)", path);
	while (ret == 0 && getline(&line, &space, f) >= 0)
		ret = add_line(result, line, ++number, only);
	if (ret == 0 && ferror(f))
		ret = -EIO;
	free(line);
	fclose(f);
	if (ret == 0)
		return 0;
	tab_exit(result);
	return qc_err_set(err, ret, "%s: table of devices not read (%s)", path, strerror(-ret));
}

void tab_exit(struct tab *table)
{
	for (u32 i = 0; i < table->nr; i++)
		entry_exit(&table->entries[i]);
	free(table->entries);
	*table = (struct tab){ .nr = 0 };
}

const struct tab_entry *tab_find(const struct tab *table, const char *name)
{
	for (u32 i = 0; i < table->nr; i++)
		if (!strcmp(table->entries[i].name, name))
			return &table->entries[i];
	return NULL;
}
