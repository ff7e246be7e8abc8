// SPDX-License-Identifier: GPL-2.0-or-later
/* A small QMP client: connect, negotiate, one command after the other. */
#include "served.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#define ANSWER_MS 5000
/* Longest line of a daemon: thousands of layers with all their keys. */
#define MAX_LINE_BYTES (64u * 1024u * 1024u)
#define READ_BYTES 65536u

struct client {
	char name[QC_MAX_CHAIN_NAME + 1];
	int folder_fd; /* of the chain, whatever it is called by now */
	int fd;
	pid_t pid;
	char *buf; /* received and not yet taken */
	size_t len;
	size_t space;
};

static int no_answer(const struct client *client, int code, struct qc_err *err)
{
	return qc_err_set(err, code, "%s: the daemon (process %d) does not answer (%s); see %s/%s/"
			  "qchaind.log", client->name, (int)client->pid, strerror(-code),
			  chain_run_root(), client->name);
}

/* Append what comes; -ETIMEDOUT, -ECONNRESET at the end of the stream. */
static int receive(struct client *client, int timeout_ms)
{
	struct pollfd poll_fd = { .fd = client->fd, .events = POLLIN };
	ssize_t n;
	char *buf;

	if (client->space - client->len < READ_BYTES) {
		if (client->len > MAX_LINE_BYTES)
			return -EMSGSIZE;
		buf = realloc(client->buf, client->space * 2 + READ_BYTES);
		if (!buf)
			return -ENOMEM;
		client->buf = buf;
		client->space = client->space * 2 + READ_BYTES;
	}
	n = poll(&poll_fd, 1, timeout_ms);
	if (n == 0)
		return -ETIMEDOUT;
	if (n > 0)
		n = recv(client->fd, client->buf + client->len, client->space - client->len, 0);
	if (n < 0)
		return errno == EINTR ? 0 : -errno;
	if (n == 0)
		return -ECONNRESET;
	client->len += n;
	return 0;
}

/* The next line as JSON, never NULL on success. */
static int read_object(struct client *client, int timeout_ms, json_object **result,
		       struct qc_err *err)
{
	size_t seen = 0, line;
	char *newline;
	int ret;

	while (!client->len ||
	       !(newline = memchr(client->buf + seen, '\n', client->len - seen))) {
		seen = client->len;
		ret = receive(client, timeout_ms);
		if (ret)
			return no_answer(client, ret, err);
	}
	*newline = '\0';
	*result = json_tokener_parse(client->buf);
	line = newline + 1 - client->buf;
	memmove(client->buf, newline + 1, client->len - line);
	client->len -= line;
	if (json_object_is_type(*result, json_type_object))
		return 0;
	json_object_put(*result);
	return no_answer(client, -EBADMSG, err);
}

/* send() with a descriptor, unless @fd is -1. */
static ssize_t send_with(int socket_fd, const char *text, size_t len, int fd)
{
	union {
		char buf[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = { .buf = { 0 } };
	struct iovec iov = { .iov_base = (char *)text, .iov_len = len };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
	struct cmsghdr *header;

	if (fd >= 0) {
		msg.msg_control = control.buf;
		msg.msg_controllen = sizeof(control.buf);
		header = CMSG_FIRSTHDR(&msg);
		header->cmsg_level = SOL_SOCKET;
		header->cmsg_type = SCM_RIGHTS;
		header->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(header), &fd, sizeof(fd));
	}
	return sendmsg(socket_fd, &msg, MSG_NOSIGNAL);
}

/* @fd goes with the first bytes. */
static int send_all(struct client *client, const char *text, size_t len, int fd)
{
	ssize_t n;

	while (len) {
		n = send_with(client->fd, text, len, fd);
		fd = n > 0 ? -1 : fd;
		if (n < 0 && errno != EINTR)
			return -errno;
		text += n > 0 ? n : 0;
		len -= n > 0 ? n : 0;
	}
	return 0;
}

static int send_line(struct client *client, json_object *object, int fd, struct qc_err *err)
{
	char *line;
	int ret, len;

	len = asprintf(&line, "%s\n", json_object_to_json_string_ext(object,
								     JSON_C_TO_STRING_PLAIN));
	if (len < 0)
		return no_answer(client, -ENOMEM, err);
	ret = send_all(client, line, len, fd);
	free(line);
	return ret ? no_answer(client, ret, err) : 0;
}

/* Take the answer apart; events on the way are not ours to handle. */
static int read_answer(struct client *client, int timeout_ms, json_object **result,
		       struct qc_err *err)
{
	json_object *line, *value;
	const char *text;
	int ret;

	for (;;) {
		ret = read_object(client, timeout_ms, &line, err);
		if (ret)
			return ret;
		if (json_object_object_get_ex(line, "return", &value)) {
			if (result)
				*result = json_object_get(value);
			json_object_put(line);
			return 0;
		}
		if (json_object_object_get_ex(line, "error", &value)) {
			text = json_text(value, "desc");
			ret = qc_err_set(err, -EPROTO, "%s: %s", client->name,
					 text ? text : "refused without a reason");
			json_object_put(line);
			return ret;
		}
		json_object_put(line);
	}
}

static int run_command(struct client *client, const char *command, json_object *arguments_owned,
		       int fd, bool patient, json_object **result, struct qc_err *err)
{
	json_object *line = json_object_new_object();
	int ret;

	json_object_object_add(line, "execute", json_object_new_string(command));
	if (arguments_owned)
		json_object_object_add(line, "arguments", arguments_owned);
	ret = send_line(client, line, fd, err);
	json_object_put(line);
	if (ret)
		return ret;
	return read_answer(client, patient ? -1 : ANSWER_MS, result, err);
}

int client_command(struct client *client, const char *command, json_object *arguments_owned,
		   bool patient, json_object **result, struct qc_err *err)
{
	return run_command(client, command, arguments_owned, -1, patient, result, err);
}

int client_add_fd(struct client *client, int set, int fd, const char *path, struct qc_err *err)
{
	json_object *arguments = json_object_new_object();

	json_object_object_add(arguments, "fdset-id", json_object_new_int(set));
	json_object_object_add(arguments, "opaque", json_object_new_string(path));
	return run_command(client, "add-fd", arguments, fd, false, NULL, err);
}

int client_next_event(struct client *client, json_object **result)
{
	int ret = 0;

	if (!client->len || !memchr(client->buf, '\n', client->len))
		ret = receive(client, 0);
	if (ret)
		return ret == -ETIMEDOUT ? -EAGAIN : ret;
	if (!memchr(client->buf, '\n', client->len))
		return -EAGAIN;
	return read_object(client, 0, result, NULL);
}

int client_fd(const struct client *client)
{
	return client->fd;
}

static int connect_socket(struct client *client, struct qc_err *err)
{
	const struct timeval patience = { .tv_sec = ANSWER_MS / 1000 };
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	struct ucred peer = { 0 };
	socklen_t len = sizeof(peer);
	int ret = chain_run_path(client->name, "qmp.sock", address.sun_path,
				 sizeof(address.sun_path), err);

	if (ret)
		return ret;
	client->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (client->fd < 0)
		return qc_err_set(err, -errno, "%s: no socket (%m)", client->name);
	setsockopt(client->fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	if (connect(client->fd, (struct sockaddr *)&address, sizeof(address)) < 0)
		return qc_err_set(err, -errno, "%s: not connected (%m), expected a daemon",
				  address.sun_path);
	getsockopt(client->fd, SOL_SOCKET, SO_PEERCRED, &peer, &len);
	client->pid = peer.pid;
	return 0;
}

int client_connect(const char *name, struct client **result, struct qc_err *err)
{
	struct client *client = calloc(1, sizeof(*client));
	json_object *greeting;
	int ret;

	if (!client)
		return qc_err_set(err, -ENOMEM, "%s: out of memory", name);
	client->fd = -1;
	client->folder_fd = rundir_hold(name);
	snprintf(client->name, sizeof(client->name), "%s", name);
	ret = connect_socket(client, err);
	if (ret == 0)
		ret = read_object(client, ANSWER_MS, &greeting, err);
	if (ret == 0) {
		json_object_put(greeting);
		ret = client_command(client, "qmp_capabilities", NULL, false, NULL, err);
	}
	if (ret) {
		client_close(client);
		return ret;
	}
	*result = client;
	return 0;
}

void client_close(struct client *client)
{
	if (!client)
		return;
	if (client->fd >= 0)
		close(client->fd);
	if (client->folder_fd >= 0)
		close(client->folder_fd);
	free(client->buf);
	free(client);
}

pid_t client_pid(const struct client *client)
{
	return client->pid;
}

const char *client_chain(struct client *client)
{
	rundir_held_name(client->folder_fd, client->name);
	return client->name;
}

int client_lock_chain(struct client *client, struct rundir *result, struct qc_err *err)
{
	int ret;

	for (;;) {
		ret = rundir_lock(client_chain(client), false, result, err);
		if (!strcmp(client_chain(client), result->name))
			return ret;
		rundir_unlock(result); /* renamed just now */
	}
}
