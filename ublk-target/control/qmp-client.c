// SPDX-License-Identifier: GPL-2.0-or-later
/* One QMP connection: requests in, replies and events out. */
#include "control-private.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/*
 * A connection reads only while nothing waits to be written: a client that does
 * not take its replies gets no further. Events are written whatever the client
 * does, therefore they are bounded: beyond QC_MAX_QMP_BACKLOG it is closed.
 */

#define QMP_READ_BYTES 4096u
/* Of the output buffer, when it is empty. */
#define QMP_KEEP_BYTES (64u * 1024u)
/* Arrays and objects inside each other in one request. */
#define QMP_MAX_DEPTH 64

/* One connection. */
struct qmp_client {
	struct daemon *daemon;
	struct qmp_client **place; /* cleared when it is freed */
	int fd;
	bool negotiated;
	bool closing; /* freed once no poll is armed and it is not running */
	bool running; /* in client_run(), where events may come in between */
	bool ended; /* the client sends no more */
	int passed_fd; /* came with its bytes, for add-fd; -1: none */

	struct loop_poll in;
	struct loop_poll out;
	bool in_armed;
	bool out_armed;

	struct json_tokener *tokener;
	u32 request_bytes; /* of the request that is being received */
	bool skipping; /* up to the end of the line, after an error */
	u32 in_pos;
	u32 in_end;
	char in_buf[QMP_READ_BYTES];

	size_t out_pos;
	size_t out_end;
	size_t out_space;
	char *out_buf;
};

/* ---- output -------------------------------------------------------------------- */

void qmp_client_close(struct qmp_client *c)
{
	if (!c->closing) {
		c->closing = true;
		shutdown(c->fd, SHUT_RDWR);
		if (c->in_armed)
			loop_poll_cancel(&c->in);
		if (c->out_armed)
			loop_poll_cancel(&c->out);
	}
	if (c->in_armed || c->out_armed || c->running)
		return;
	*c->place = NULL;
	close(c->fd);
	if (c->passed_fd >= 0)
		close(c->passed_fd);
	json_tokener_free(c->tokener);
	free(c->out_buf);
	free(c);
}

static bool client_has_output(const struct qmp_client *c)
{
	return c->out_pos < c->out_end;
}

/* Write what the socket takes; 0, or -errno: the connection is broken. */
static int client_flush(struct qmp_client *c)
{
	ssize_t n;

	while (client_has_output(c)) {
		n = send(c->fd, c->out_buf + c->out_pos, c->out_end - c->out_pos,
			 MSG_DONTWAIT | MSG_NOSIGNAL);
		if (n >= 0)
			c->out_pos += n;
		else if (errno == EAGAIN)
			return 0;
		else if (errno != EINTR)
			return -errno;
	}
	c->out_pos = 0;
	c->out_end = 0;
	if (c->out_space > QMP_KEEP_BYTES) {
		free(c->out_buf);
		c->out_buf = NULL;
		c->out_space = 0;
	}
	return 0;
}

/* Room for @bytes more behind what is still to be written. */
static int client_reserve(struct qmp_client *c, size_t bytes)
{
	size_t used = c->out_end - c->out_pos, space;
	char *buf;

	if (c->out_pos) {
		memmove(c->out_buf, c->out_buf + c->out_pos, used);
		c->out_pos = 0;
		c->out_end = used;
	}
	if (used + bytes <= c->out_space)
		return 0;
	space = max(used + bytes, 2 * c->out_space);
	buf = realloc(c->out_buf, space);
	if (!buf)
		return -ENOMEM;
	c->out_buf = buf;
	c->out_space = space;
	return 0;
}

/* Queue @line and what ends a line. -errno: the connection cannot go on. */
static int client_send(struct qmp_client *c, const char *line)
{
	static const char end[] = "\r\n";
	size_t len = strlen(line);
	int ret = client_reserve(c, len + sizeof(end) - 1);

	if (ret)
		return ret;
	memcpy(c->out_buf + c->out_end, line, len);
	memcpy(c->out_buf + c->out_end + len, end, sizeof(end) - 1);
	c->out_end += len + sizeof(end) - 1;
	return client_flush(c);
}

static int client_send_json(struct qmp_client *c, json_object *object_owned)
{
	int ret = client_send(c, qmp_text(object_owned));

	json_object_put(object_owned);
	return ret;
}

static void client_wait_writable(struct qmp_client *c)
{
	if (!client_has_output(c) || c->out_armed)
		return;
	c->out_armed = true;
	loop_poll_add(c->daemon->loop, &c->out, c->fd, POLLOUT);
}

/* ---- input ---------------------------------------------------------------------- */

/* The rest of the line is not worth reading. */
static int client_refuse(struct qmp_client *c, const char *text)
{
	json_tokener_reset(c->tokener);
	c->request_bytes = 0;
	c->skipping = true;
	return client_send_json(c, qmp_error_reply(QMP_GENERIC_ERROR, text));
}

static int client_answer(struct qmp_client *c, json_object *request_owned)
{
	json_object *reply;

	c->daemon->passed_fd = c->passed_fd;
	reply = qmp_dispatch(c->daemon, request_owned, &c->negotiated);
	c->passed_fd = c->daemon->passed_fd;
	c->daemon->passed_fd = -1;
	json_object_put(request_owned);
	return client_send_json(c, reply);
}

static void client_skip(struct qmp_client *c)
{
	char *from = c->in_buf + c->in_pos;
	char *newline = memchr(from, '\n', c->in_end - c->in_pos);

	c->skipping = !newline;
	c->in_pos = newline ? newline + 1 - c->in_buf : c->in_end;
}

/* Parse up to the end of one request or of the input. */
static int client_parse(struct qmp_client *c)
{
	u32 len = strnlen(c->in_buf + c->in_pos, c->in_end - c->in_pos);
	enum json_tokener_error error;
	json_object *request;
	char text[128];

	request = json_tokener_parse_ex(c->tokener, c->in_buf + c->in_pos, len);
	error = len ? json_tokener_get_error(c->tokener) : json_tokener_error_parse_unexpected;
	if (error == json_tokener_continue) {
		c->in_pos += len;
		c->request_bytes += len;
		if (c->request_bytes <= QC_MAX_QMP_MESSAGE)
			return 0;
		snprintf(text, sizeof(text), "JSON parse error, command too long, must be at "
			 "most %u bytes", QC_MAX_QMP_MESSAGE);
		return client_refuse(c, text);
	}
	if (error != json_tokener_success) {
		snprintf(text, sizeof(text), "JSON parse error, %s",
			 json_tokener_error_desc(error));
		return client_refuse(c, text);
	}
	c->in_pos += json_tokener_get_parse_end(c->tokener);
	c->request_bytes = 0;
	json_tokener_reset(c->tokener);
	return client_answer(c, request);
}

/* The last descriptor that came stays until a command takes it. */
static void take_fd(struct qmp_client *c, struct msghdr *msg)
{
	struct cmsghdr *cmsg;
	int fd;

	for (cmsg = CMSG_FIRSTHDR(msg); cmsg; cmsg = CMSG_NXTHDR(msg, cmsg)) {
		if (cmsg->cmsg_level != SOL_SOCKET || cmsg->cmsg_type != SCM_RIGHTS ||
		    cmsg->cmsg_len < CMSG_LEN(sizeof(fd)))
			continue;
		memcpy(&fd, CMSG_DATA(cmsg), sizeof(fd));
		if (c->passed_fd >= 0)
			close(c->passed_fd);
		c->passed_fd = fd;
	}
}

static int client_receive(struct qmp_client *c)
{
	char control[CMSG_SPACE(sizeof(int))] __attribute__((aligned(8)));
	struct iovec iov = { .iov_base = c->in_buf, .iov_len = sizeof(c->in_buf) };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control,
			      .msg_controllen = sizeof(control) };
	ssize_t n = recvmsg(c->fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

	if (n > 0)
		take_fd(c, &msg);
	if (n < 0 && errno != EAGAIN && errno != EINTR)
		return -errno;
	c->ended = n == 0;
	c->in_pos = 0;
	c->in_end = n > 0 ? n : 0;
	return 0;
}

static int client_step(struct qmp_client *c)
{
	if (!c->skipping)
		return client_parse(c);
	client_skip(c);
	return 0;
}

/* Do all that can be done now, then wait for what is missing. */
static void client_run(struct qmp_client *c)
{
	int ret = client_flush(c);

	c->running = true;
	while (ret == 0 && !c->closing && !client_has_output(c) && c->in_pos < c->in_end)
		ret = client_step(c);
	c->running = false;
	if (ret || c->closing || (c->ended && !client_has_output(c))) {
		qmp_client_close(c);
		return;
	}
	client_wait_writable(c);
	if (!client_has_output(c) && !c->in_armed) {
		c->in_armed = true;
		loop_poll_add(c->daemon->loop, &c->in, c->fd, POLLIN);
	}
}

static void client_readable(struct loop_poll *poll, int revents)
{
	struct qmp_client *c = container_of(poll, struct qmp_client, in);

	c->in_armed = false;
	if (c->closing || revents < 0 || client_receive(c))
		qmp_client_close(c);
	else
		client_run(c);
}

static void client_writable(struct loop_poll *poll, int revents)
{
	struct qmp_client *c = container_of(poll, struct qmp_client, out);

	c->out_armed = false;
	if (c->closing || revents < 0)
		qmp_client_close(c);
	else
		client_run(c);
}

int qmp_client_event(struct qmp_client *c, const char *line)
{
	if (c->closing || !c->negotiated)
		return 0;
	if (c->out_end - c->out_pos > QC_MAX_QMP_BACKLOG)
		return -ENOBUFS;
	if (client_send(c, line))
		return -EPIPE;
	client_wait_writable(c);
	return 0;
}

int qmp_client_create(struct daemon *daemon, int fd, struct qmp_client **place)
{
	struct qmp_client *c = calloc(1, sizeof(*c));

	if (!c)
		return -ENOMEM;
	c->tokener = json_tokener_new_ex(QMP_MAX_DEPTH);
	if (!c->tokener) {
		free(c);
		return -ENOMEM;
	}
	json_tokener_set_flags(c->tokener, JSON_TOKENER_VALIDATE_UTF8);
	c->daemon = daemon;
	c->place = place;
	c->fd = fd;
	c->passed_fd = -1;
	c->in.fn = client_readable;
	c->out.fn = client_writable;
	*place = c;
	if (client_send_json(c, qmp_greeting()))
		qmp_client_close(c);
	else
		client_run(c);
	return 0;
}
