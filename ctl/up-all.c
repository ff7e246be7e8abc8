// SPDX-License-Identifier: GPL-2.0-or-later
/* qchainctl up --all: bring up the devices of the table, several at a time. */
#include "tab.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/*
 * Each device is brought up by a qchainctl of its own, `up NAME`, so that one that
 * waits (rule A2) or fails holds up nobody but those that say after=.
 */

#define MAX_RUNNING 4u

enum start_state { START_WAITS, START_RUNS, START_DONE, START_FAILED };

struct start {
	const struct tab_entry *entry;
	enum start_state state;
	pid_t pid;
	int output_fd; /* what it prints, both streams */
};

struct starts {
	const struct tab *table;
	struct start *list; /* as the entries of the table */
	u32 nr_running;
	int status;
	json_object *rows; /* NULL: lines */
};

/* ---- what became of one ------------------------------------------------------------ */

static void fail(struct starts *starts, struct start *start, const char *text)
{
	struct qc_err err = { 0 };
	json_object *row;

	start->state = START_FAILED;
	starts->status = CTL_FAILED;
	qc_err_set(&err, -EIO, "%s", text);
	if (strncmp(text, start->entry->name, strlen(start->entry->name)))
		qc_err_prefix(&err, "%s", start->entry->name);
	qc_err_prefix(&err, "%s:%u", starts->table->path, start->entry->line);
	print_error(&err);
	if (!starts->rows)
		return;
	row = json_object_new_object();
	json_object_object_add(row, "name", json_object_new_string(start->entry->name));
	json_object_object_add(row, "error", json_object_new_string(err.msg));
	json_object_array_add(starts->rows, row);
}

static void succeed(struct starts *starts, struct start *start)
{
	struct qc_err err = { 0 };
	struct served served;
	char device[256];

	if (served_find(start->entry->name, &served, &err)) {
		fail(starts, start, err.msg);
		return;
	}
	start->state = START_DONE;
	if (starts->rows)
		json_object_array_add(starts->rows, served_json(&served));
	else
		printf("%s: %s\n", served.name, served_device(&served, device));
	fflush(stdout);
	served_exit(&served);
}

/* The line of an error, without the program's name and the hint to its help. */
static const char *error_text(char *text)
{
	static const char *const prefixes[] = { "qchainctl up: ", "qchainctl: " };
	char *line;

	text[strcspn(text, "\n") == strlen(text) ? strlen(text) : strlen(text) - 1] = '\0';
	line = strrchr(text, '\n');
	line = line ? line + 1 : text;
	for (u32 i = 0; i < ARRAY_SIZE(prefixes); i++)
		if (!strncmp(line, prefixes[i], strlen(prefixes[i])))
			return line + strlen(prefixes[i]);
	return *line ? line : "qchainctl up ended without a word";
}

/* ---- running ------------------------------------------------------------------------- */

/* In the child: never returns. */
static void run_up(const struct start *start, const char *table, int output_fd)
{
	char *argv[] = { "qchainctl", "up", (char *)start->entry->name, "--tab", (char *)table,
			 NULL };

	if (dup2(output_fd, STDOUT_FILENO) >= 0 && dup2(output_fd, STDERR_FILENO) >= 0)
		execv("/proc/self/exe", argv);
	dprintf(output_fd, "qchainctl: %s: not started (%m)\n", start->entry->name);
	_exit(CTL_FAILED);
}

static void begin(struct starts *starts, struct start *start)
{
	char text[PATH_MAX];
	int fds[2];

	if (pipe2(fds, O_CLOEXEC) < 0) {
		snprintf(text, sizeof(text), "%s: no pipe (%m)", start->entry->name);
		fail(starts, start, text);
		return;
	}
	start->pid = fork();
	if (start->pid == 0)
		run_up(start, starts->table->path, fds[1]);
	close(fds[1]);
	if (start->pid < 0) {
		snprintf(text, sizeof(text), "%s: no process (%m)", start->entry->name);
		close(fds[0]);
		fail(starts, start, text);
		return;
	}
	start->output_fd = fds[0];
	start->state = START_RUNS;
	starts->nr_running++;
}

/* One of them has ended. It prints less than a pipe holds. */
static void finish(struct starts *starts, struct start *start, int status)
{
	char text[4096];
	size_t len = 0;
	ssize_t n;

	while (len + 1 < sizeof(text) &&
	       (n = read(start->output_fd, text + len, sizeof(text) - 1 - len)) > 0)
		len += n;
	text[len] = '\0';
	close(start->output_fd);
	starts->nr_running--;
	if (WIFEXITED(status) && WEXITSTATUS(status) == CTL_DONE)
		succeed(starts, start);
	else
		fail(starts, start, error_text(text));
}

static void wait_one(struct starts *starts)
{
	int status;
	pid_t pid = waitpid(-1, &status, 0);

	for (u32 i = 0; pid > 0 && i < starts->table->nr; i++)
		if (starts->list[i].state == START_RUNS && starts->list[i].pid == pid)
			finish(starts, &starts->list[i], status);
}

/* Nobody has to bring up what is there. */
static bool is_served(const char *name)
{
	struct qc_err ignored = { 0 };
	struct served served;
	bool live;

	if (served_find(name, &served, &ignored))
		return false;
	live = served.state == SERVED_LIVE || served.state == SERVED_MAPPED;
	served_exit(&served);
	return live;
}

/* Begins it if it may begin; what it waits for is above it. */
static void consider(struct starts *starts, struct start *start)
{
	const struct start *before;
	char text[256];

	before = start->entry->after < 0 ? NULL : &starts->list[start->entry->after];
	if (start->state != START_WAITS ||
	    (before && (before->state == START_WAITS || before->state == START_RUNS)))
		return;
	if (before && before->state == START_FAILED) {
		snprintf(text, sizeof(text), "%s: not started, comes after %s, which is not up; "
			 "see there", start->entry->name, before->entry->name);
		fail(starts, start, text);
	} else if (is_served(start->entry->name)) {
		succeed(starts, start);
	} else if (starts->nr_running < MAX_RUNNING) {
		begin(starts, start);
	}
}

static bool is_over(const struct starts *starts)
{
	for (u32 i = 0; i < starts->table->nr; i++)
		if (starts->list[i].state == START_WAITS || starts->list[i].state == START_RUNS)
			return false;
	return true;
}

static void run(struct starts *starts, bool boot)
{
	const struct tab *table = starts->table;

	for (u32 i = 0; i < table->nr; i++) {
		starts->list[i].entry = &table->entries[i];
		/* What is left out is as good as there for what comes after it. */
		if (table->entries[i].noauto || (boot && !table->entries[i].boot))
			starts->list[i].state = START_DONE;
	}
	while (!is_over(starts)) {
		for (u32 i = 0; i < table->nr; i++)
			consider(starts, &starts->list[i]);
		if (starts->nr_running)
			wait_one(starts);
	}
}

int up_all(const char *path, bool boot, bool json)
{
	struct starts starts = { .status = CTL_DONE };
	struct qc_err err = { 0 };
	struct tab table;

	if (tab_load(path, NULL, &table, &err))
		return print_error(&err);
	starts.table = &table;
	starts.rows = json ? json_object_new_array() : NULL;
	starts.list = calloc(table.nr + 1, sizeof(*starts.list));
	if (starts.list)
		run(&starts, boot);
	if (table.nr_bad || !starts.list)
		starts.status = CTL_FAILED;
	if (starts.rows)
		print_json(starts.rows);
	free(starts.list);
	tab_exit(&table);
	return starts.status;
}
