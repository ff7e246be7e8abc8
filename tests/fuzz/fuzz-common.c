// SPDX-License-Identifier: GPL-2.0-or-later
/* The scratch folder of a fuzz target, and talking to a socket. */
#include "fuzz.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <qchain/log.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

static char folder[64];

static void die(const char *what)
{
	perror(what);
	abort();
}

static void remove_folder(void)
{
	char cmd[128];

	snprintf(cmd, sizeof(cmd), "rm -rf %s", folder);
	if (system(cmd))
		perror(cmd);
}

const char *fuzz_path(const char *name)
{
	static char path[128];

	if (!folder[0]) {
		snprintf(folder, sizeof(folder), "/dev/shm/qchain-fuzz-%d", (int)getpid());
		if (mkdir(folder, 0700) && errno != EEXIST)
			die(folder);
		atexit(remove_folder);
	}
	snprintf(path, sizeof(path), "%s/%s", folder, name);
	return path;
}

void fuzz_file(const char *name, const u8 *data, size_t size)
{
	const char *path = fuzz_path(name);
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	if (fd < 0 || write(fd, data, size) != (ssize_t)size)
		die(path);
	close(fd);
}

/* In place of the log's: the text is made, and not shown. */
void log_write(enum log_level level, const char *fmt, ...)
{
	char text[2048];
	va_list args;

	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
}

void log_set_level(enum log_level level)
{
}

/* libFuzzer has an alarm of its own. */
static bool ready(int fd, short events)
{
	struct pollfd p = { .fd = fd, .events = events };
	int nr;

	do
		nr = poll(&p, 1, 20000);
	while (nr < 0 && errno == EINTR);
	return nr == 1;
}

/* The server may close before it has read all: that is its right. */
static void send_all(int fd, const u8 *data, size_t size)
{
	char sink[4096];

	while (size) {
		ssize_t n = send(fd, data, size, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n > 0) {
			data += n;
			size -= n;
		} else if (errno != EAGAIN) {
			return;
		} else if (!ready(fd, POLLIN | POLLOUT)) {
			fprintf(stderr, "the server neither reads nor writes\n");
			abort();
		} else {
			while (recv(fd, sink, sizeof(sink), MSG_DONTWAIT) > 0)
				;
		}
	}
}

void fuzz_talk(const char *socket_path, const u8 *data, size_t size)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	char sink[65536];

	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", socket_path);
	if (fd < 0 || connect(fd, (struct sockaddr *)&addr, sizeof(addr)))
		die(socket_path);
	send_all(fd, data, size);
	shutdown(fd, SHUT_WR);
	while (ready(fd, POLLIN))
		if (recv(fd, sink, sizeof(sink), 0) <= 0) {
			close(fd);
			return;
		}
	fprintf(stderr, "the server does not end the connection\n");
	abort();
}
