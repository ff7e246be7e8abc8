// SPDX-License-Identifier: GPL-2.0-or-later
/* The QMP socket: connections, bytes in, bytes out. */
#include "control-private.h"

#include <errno.h>
#include <poll.h>
#include <qchain/log.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

/*
 * A connection reads only while nothing waits to be written: a client that does
 * not take its replies gets no further. Events are written whatever the client
 * does, therefore they are bounded: beyond QC_MAX_QMP_BACKLOG it is closed.
 */

#define QMP_LISTEN_BACKLOG 16
#define QMP_READ_BYTES 4096u
/* Arrays and objects inside each other in one request. */
#define QMP_MAX_DEPTH 64
/* When no descriptor is free for a new connection. */
#define QMP_RETRY_ACCEPT_NS (100ull * 1000 * 1000)

/* One connection. */
struct qmp_client {
	struct qmp_server *server;
	int fd;
	bool negotiated;
	bool closing; /* freed once no poll is armed */
	bool ended; /* the client sends no more */

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

struct qmp_server {
	/* set once */
	struct daemon *daemon;
	struct loop *loop;
	char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
	u64 socket_dev; /* the file that we made; only that one is unlinked */
	u64 socket_ino;
	int fd;

	struct loop_poll poll;
	struct loop_timer retry;
	bool armed;
	bool stopping;
	struct qmp_client *clients[QC_MAX_QMP_CLIENTS]; /* NULL: free place */
};

/* ---- output -------------------------------------------------------------------- */

static void client_close(struct qmp_client *c)
{
	struct qmp_server *server = c->server;

	if (!c->closing) {
		c->closing = true;
		shutdown(c->fd, SHUT_RDWR);
		if (c->in_armed)
			loop_poll_cancel(&c->in);
		if (c->out_armed)
			loop_poll_cancel(&c->out);
	}
	if (c->in_armed || c->out_armed)
		return;
	for (u32 i = 0; i < QC_MAX_QMP_CLIENTS; i++) {
		if (server->clients[i] == c)
			server->clients[i] = NULL;
	}
	close(c->fd);
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
	return 0;
}

static int client_reserve(struct qmp_client *c, size_t bytes)
{
	char *buf;

	if (c->out_end + bytes <= c->out_space)
		return 0;
	buf = realloc(c->out_buf, c->out_end + bytes);
	if (!buf)
		return -ENOMEM;
	c->out_buf = buf;
	c->out_space = c->out_end + bytes;
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
	json_object *reply = qmp_dispatch(c->server->daemon, request_owned, &c->negotiated);

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

static int client_receive(struct qmp_client *c)
{
	ssize_t n = recv(c->fd, c->in_buf, sizeof(c->in_buf), MSG_DONTWAIT);

	if (n < 0 && errno != EAGAIN && errno != EINTR)
		return -errno;
	c->ended = n == 0;
	c->in_pos = 0;
	c->in_end = n > 0 ? n : 0;
	return 0;
}

/* Do all that can be done now, then wait for what is missing. */
static void client_run(struct qmp_client *c)
{
	int ret = client_flush(c);

	while (ret == 0 && !client_has_output(c) && c->in_pos < c->in_end) {
		if (c->skipping)
			client_skip(c);
		else
			ret = client_parse(c);
	}
	if (ret || (c->ended && !client_has_output(c))) {
		client_close(c);
		return;
	}
	if (client_has_output(c) && !c->out_armed) {
		c->out_armed = true;
		loop_poll_add(c->server->loop, &c->out, c->fd, POLLOUT);
	}
	if (!client_has_output(c) && !c->in_armed) {
		c->in_armed = true;
		loop_poll_add(c->server->loop, &c->in, c->fd, POLLIN);
	}
}

static void client_readable(struct loop_poll *poll, int revents)
{
	struct qmp_client *c = container_of(poll, struct qmp_client, in);

	c->in_armed = false;
	if (c->closing || revents < 0 || client_receive(c))
		client_close(c);
	else
		client_run(c);
}

static void client_writable(struct loop_poll *poll, int revents)
{
	struct qmp_client *c = container_of(poll, struct qmp_client, out);

	c->out_armed = false;
	if (c->closing || revents < 0)
		client_close(c);
	else
		client_run(c);
}

void qmp_server_broadcast(struct qmp_server *server, const char *line)
{
	struct qmp_client *c;

	for (u32 i = 0; i < QC_MAX_QMP_CLIENTS; i++) {
		c = server->clients[i];
		if (!c || c->closing || !c->negotiated)
			continue;
		if (c->out_end - c->out_pos <= QC_MAX_QMP_BACKLOG && client_send(c, line) == 0) {
			if (client_has_output(c) && !c->out_armed) {
				c->out_armed = true;
				loop_poll_add(server->loop, &c->out, c->fd, POLLOUT);
			}
			continue;
		}
		log_warn("%s: a client does not read its events (%zu bytes), closed", server->path,
			 c->out_end - c->out_pos);
		client_close(c);
	}
}

/* ---- accepting ------------------------------------------------------------------ */

/* Root and our own user. */
static bool peer_may_control(int fd)
{
	struct ucred peer;
	socklen_t len = sizeof(peer);

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) < 0)
		return false;
	return peer.uid == 0 || peer.uid == geteuid();
}

static int client_create(struct qmp_server *server, int fd, struct qmp_client **place)
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
	c->server = server;
	c->fd = fd;
	c->in.fn = client_readable;
	c->out.fn = client_writable;
	*place = c;
	if (client_send_json(c, qmp_greeting()))
		client_close(c);
	else
		client_run(c);
	return 0;
}

static void take_connection(struct qmp_server *server, int fd)
{
	if (!peer_may_control(fd)) {
		log_warn("%s: connection of another user refused", server->path);
		close(fd);
		return;
	}
	for (u32 i = 0; i < QC_MAX_QMP_CLIENTS; i++) {
		if (server->clients[i])
			continue;
		if (client_create(server, fd, &server->clients[i]))
			close(fd);
		return;
	}
	log_warn("%s: too many connections (%u), at most %u", server->path,
		 QC_MAX_QMP_CLIENTS + 1, QC_MAX_QMP_CLIENTS);
	close(fd);
}

static void server_arm(struct qmp_server *server);

static void server_retry(struct loop *loop, struct loop_timer *timer)
{
	server_arm(container_of(timer, struct qmp_server, retry));
}

static void server_ready(struct loop_poll *poll, int revents)
{
	struct qmp_server *server = container_of(poll, struct qmp_server, poll);
	int fd;

	server->armed = false;
	if (server->stopping || revents < 0)
		return;
	fd = accept4(server->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (fd < 0 && errno != EAGAIN && errno != ECONNABORTED && errno != EINTR) {
		log_warn("%s: connection not accepted (%m)", server->path);
		loop_timer_set(server->loop, &server->retry, QMP_RETRY_ACCEPT_NS);
		return;
	}
	if (fd >= 0)
		take_connection(server, fd);
	server_arm(server);
}

static void server_arm(struct qmp_server *server)
{
	server->armed = true;
	loop_poll_add(server->loop, &server->poll, server->fd, POLLIN);
}

/* ---- the socket ------------------------------------------------------------------- */

/* A dead daemon's socket is taken away; a living one's is not. */
static int remove_stale(const struct sockaddr_un *address, struct qc_err *err)
{
	struct ucred peer = { 0 };
	socklen_t len = sizeof(peer);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	int ret;

	if (fd < 0)
		return qc_err_set(err, -errno, "%s: no socket (%m)", address->sun_path);
	ret = connect(fd, (const struct sockaddr *)address, sizeof(*address)) < 0 ? -errno : 0;
	getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len);
	close(fd);
	if (ret == -ENOENT)
		return 0;
	if (ret == -ECONNREFUSED)
		return unlink(address->sun_path) < 0 ? qc_err_set(err, -errno,
			"%s: old socket not removed (%m)", address->sun_path) : 0;
	return qc_err_set(err, -EADDRINUSE,
			  "%s: a daemon answers there (process %d), expected an unused path",
			  address->sun_path, (int)peer.pid);
}

static int server_listen(struct qmp_server *server, struct qc_err *err)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	struct stat st;
	int ret;

	memcpy(address.sun_path, server->path, sizeof(address.sun_path));
	ret = remove_stale(&address, err);
	if (ret)
		return ret;
	server->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (server->fd < 0)
		return qc_err_set(err, -errno, "%s: no socket (%m)", server->path);
	if (bind(server->fd, (struct sockaddr *)&address, sizeof(address)) < 0 ||
	    stat(server->path, &st) < 0 || chmod(server->path, 0600) < 0 ||
	    listen(server->fd, QMP_LISTEN_BACKLOG) < 0) {
		ret = qc_err_set(err, -errno, "%s: socket not made (%m), the folder must exist and "
				 "the path be unused", server->path);
		close(server->fd);
		return ret;
	}
	server->socket_dev = st.st_dev;
	server->socket_ino = st.st_ino;
	return 0;
}

static void server_start(struct loop *loop, void *arg)
{
	server_arm(arg);
}

int qmp_server_create(struct daemon *daemon, const char *path, struct qmp_server **result,
		      struct qc_err *err)
{
	struct qmp_server *server;
	int ret;

	if (strlen(path) >= sizeof(server->path))
		return qc_err_set(err, -ENAMETOOLONG,
				  "%s: path of a socket too long (%zu bytes), must be below %zu",
				  path, strlen(path), sizeof(server->path));
	server = calloc(1, sizeof(*server));
	if (!server)
		return qc_err_set(err, -ENOMEM, "%s: out of memory", path);
	server->daemon = daemon;
	server->loop = daemon->loop;
	server->poll.fn = server_ready;
	server->retry.fn = server_retry;
	strcpy(server->path, path);
	ret = server_listen(server, err);
	if (ret) {
		free(server);
		return ret;
	}
	qmp_event_connect(server, server->loop);
	loop_call(server->loop, server_start, server);
	*result = server;
	return 0;
}

static bool server_is_busy(const struct qmp_server *server)
{
	bool busy = server->armed;

	for (u32 i = 0; i < QC_MAX_QMP_CLIENTS; i++)
		busy |= server->clients[i] != NULL;
	return busy;
}

static void server_stop(struct loop *loop, void *arg)
{
	struct qmp_server *server = arg;

	while (loop_run_once(loop, false))
		; /* events that were on their way */
	server->stopping = true;
	loop_timer_cancel(&server->retry);
	if (server->armed)
		loop_poll_cancel(&server->poll);
	for (u32 i = 0; i < QC_MAX_QMP_CLIENTS; i++) {
		if (server->clients[i])
			client_close(server->clients[i]);
	}
	while (server_is_busy(server))
		loop_run_once(loop, true);
	qmp_event_connect(NULL, NULL);
}

void qmp_server_destroy(struct qmp_server *server)
{
	struct stat st;

	loop_call(server->loop, server_stop, server);
	close(server->fd);
	if (stat(server->path, &st) == 0 && st.st_dev == server->socket_dev &&
	    st.st_ino == server->socket_ino)
		unlink(server->path);
	free(server);
}
