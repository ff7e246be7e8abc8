// SPDX-License-Identifier: GPL-2.0-or-later
/* Starting the qchaind that a record describes. */
#include "served.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <linux/close_range.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAX_WORDS 256
#define OUTPUT_BYTES 4096

/* A command line under construction; words are malloc'ed. */
struct words {
	char *argv[MAX_WORDS];
	u32 nr;
	bool failed;
};

static void add_word(struct words *words, const char *text)
{
	char *word = words->nr + 1 < MAX_WORDS ? strdup(text) : NULL;

	if (word)
		words->argv[words->nr++] = word;
	else
		words->failed = true;
}

static void words_exit(struct words *words)
{
	while (words->nr)
		free(words->argv[--words->nr]);
}

/* A comma ends a value of --export unless it is doubled. */
static void add_nbd_export(struct words *words, const char *socket)
{
	char text[2 * PATH_MAX + 32];
	size_t at = snprintf(text, sizeof(text), "nbd,socket=");

	for (; *socket && at + 2 < sizeof(text); socket++) {
		if (*socket == ',')
			text[at++] = ',';
		text[at++] = *socket;
	}
	text[at] = '\0';
	add_word(words, "--export");
	add_word(words, text);
}

static void add_ublk_export(struct words *words, json_object *record, bool recover)
{
	const char *tag = json_text(record, "tag");
	bool scan = false;
	json_object *value;
	char text[128];

	if (json_object_object_get_ex(record, "scan", &value))
		scan = json_object_get_boolean(value);
	snprintf(text, sizeof(text), "ublk,id=%d,tag=%s%s%s",
		 (int)json_number(record, "dev-id", -1), tag ? tag : "0", scan ? ",scan=on" : "",
		 recover ? ",recover=on" : "");
	add_word(words, "--export");
	add_word(words, text);
}

/* Beside the record: in memory, and gone with it. */
static void add_intent_log(struct words *words, json_object *record)
{
	char path[256];

	if (chain_run_path(json_text(record, "name"), "intent.log", path, sizeof(path), NULL)) {
		words->failed = true;
		return;
	}
	add_word(words, "--intent-log");
	add_word(words, path);
}

static void build_words(struct words *words, const char *program, json_object *record,
			bool wait, bool recover)
{
	const char *nbd = json_text(record, "nbd"), *format = json_text(record, "format");
	json_object *options;
	u32 nr;

	add_word(words, program);
	add_word(words, "--name");
	add_word(words, json_text(record, "name"));
	add_word(words, "--daemonize");
	options = json_list(record, "options", &nr);
	for (u32 i = 0; i < nr; i++)
		add_word(words, json_object_get_string(json_object_array_get_idx(options, i)));
	if (format) {
		add_word(words, "--format");
		add_word(words, format);
	}
	if (wait)
		add_word(words, "--wait");
	add_intent_log(words, record);
	if (json_number(record, "dev-id", -1) >= 0)
		add_ublk_export(words, record, recover);
	if (nbd)
		add_nbd_export(words, nbd);
	add_word(words, "--");
	add_word(words, json_text(record, "top"));
}

/* The qchaind beside this program, else the one in PATH. */
static void find_program(char *path, size_t bytes)
{
	char self[PATH_MAX];
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);

	if (n > 0) {
		self[n] = '\0';
		if (snprintf(path, bytes, "%s/qchaind", dirname(self)) < (int)bytes &&
		    access(path, X_OK) == 0)
			return;
	}
	snprintf(path, bytes, "qchaind");
}

/* In the child: never returns. */
static void run_program(char **argv, int output_fd)
{
	int null_fd = open("/dev/null", O_RDWR);

	/* What the caller has open, a file on the device perhaps, is not the daemon's. */
	close_range(STDERR_FILENO + 1, ~0u, CLOSE_RANGE_CLOEXEC);
	if (null_fd >= 0 && dup2(null_fd, STDIN_FILENO) >= 0 &&
	    dup2(output_fd, STDOUT_FILENO) >= 0 && dup2(output_fd, STDERR_FILENO) >= 0)
		execvp(argv[0], argv);
	dprintf(output_fd, "qchaind: %s: not started (%m), must be installed beside qchainctl or "
		"in PATH\n", argv[0]);
	_exit(127);
}

/* What it said; of more than fits, the end: the last line is the one that counts. */
static void read_output(int fd, char *text, size_t bytes)
{
	size_t len = 0, half = bytes / 2;
	ssize_t n;

	do {
		n = read(fd, text + len, bytes - 1 - len);
		len += n > 0 ? n : 0;
		if (len + 1 == bytes) {
			memmove(text, text + half, len - half);
			len -= half;
		}
	} while (n > 0 || (n < 0 && errno == EINTR));
	text[len] = '\0';
}

/* The last line, without what marks it as qchaind's. */
static const char *last_words(char *text)
{
	static const char prefix[] = "qchaind: ";
	size_t len = strlen(text);
	char *line;

	while (len && text[len - 1] == '\n')
		text[--len] = '\0';
	line = strrchr(text, '\n');
	line = line ? line + 1 : text;
	if (line[0] == '<' && line[1] && line[2] == '>')
		line += 3;
	return strncmp(line, prefix, sizeof(prefix) - 1) == 0 ? line + sizeof(prefix) - 1 : line;
}

static int wait_program(pid_t child, char *output, struct qc_err *err)
{
	const char *words = last_words(output);
	int status;

	while (waitpid(child, &status, 0) < 0) {
		if (errno != EINTR)
			return qc_err_set(err, -errno, "qchaind: not waited for (%m)");
	}
	if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
		return 0;
	return qc_err_set(err, -EIO, "%s", *words ? words : "qchaind: ended without a word");
}

/* @output: what it prints, OUTPUT_BYTES */
static int run_words(char **argv, char *output, struct qc_err *err)
{
	int fds[2], ret;
	pid_t child;

	if (pipe2(fds, O_CLOEXEC) < 0)
		return qc_err_set(err, -errno, "qchaind: no pipe (%m)");
	child = fork();
	if (child == 0)
		run_program(argv, fds[1]);
	ret = child < 0 ? qc_err_set(err, -errno, "qchaind: no process (%m)") : 0;
	close(fds[1]);
	if (ret == 0) {
		read_output(fds[0], output, OUTPUT_BYTES);
		ret = wait_program(child, output, err);
	}
	close(fds[0]);
	return ret;
}

int spawn_version(char *text, struct qc_err *err)
{
	char program[PATH_MAX], output[OUTPUT_BYTES];
	char *argv[] = { program, "--version", NULL };
	int ret;

	find_program(program, sizeof(program));
	ret = run_words(argv, output, err);
	if (ret)
		return qc_err_prefix(err, "%s: does not run, must be the new qchaind", program);
	output[strcspn(output, "\n")] = '\0';
	snprintf(text, SPAWN_VERSION_BYTES, "%s", output);
	return 0;
}

int spawn_daemon(json_object *record, bool wait, bool recover, struct qc_err *err)
{
	struct words words = { .nr = 0 };
	char program[PATH_MAX], output[OUTPUT_BYTES];
	int ret;

	find_program(program, sizeof(program));
	build_words(&words, program, record, wait, recover);
	if (words.failed)
		ret = qc_err_set(err, -E2BIG, "%s: command line too long, at most %d words",
				 json_text(record, "name"), MAX_WORDS - 1);
	else
		ret = run_words(words.argv, output, err);
	words_exit(&words);
	return ret ? qc_err_prefix(err, "%s", json_text(record, "name")) : 0;
}
