// SPDX-License-Identifier: GPL-2.0-or-later
/* The QMP socket: listening, letting clients in, the end. */
#include "control-private.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <qchain/log.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define QMP_LISTEN_BACKLOG 16
/* When no descriptor is free for a new connection. */
#define QMP_RETRY_ACCEPT_NS (100ull * 1000 * 1000)
#define QMP_STALE_TRIES 500
#define QMP_STALE_PAUSE_US 10000

struct qmp_server {
	/* set once */
	struct daemon *daemon;
	struct loop *loop;
	char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
	int folder_fd; /* of @path, which may not lead there any more */
	u64 socket_dev; /* the file that we made; only that one is unlinked */
	u64 socket_ino;
	int fd;

	struct loop_poll poll;
	struct loop_timer retry;
	bool armed;
	bool stopping;
	struct qmp_client *clients[QC_MAX_QMP_CLIENTS]; /* NULL: free place */
};

void qmp_server_broadcast(struct qmp_server *server, const char *line)
{
	struct qmp_client *c;

	for (u32 i = 0; i < QC_MAX_QMP_CLIENTS; i++) {
		c = server->clients[i];
		if (!c || qmp_client_event(c, line) == 0)
			continue;
		log_warn("%s: a client does not take its events, closed", server->path);
		qmp_client_close(c);
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
		if (qmp_client_create(server->daemon, fd, &server->clients[i]))
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

/* -ECONNREFUSED: nobody listens; 0: somebody does, @peer; or another -errno. */
static int ask_listener(const struct sockaddr_un *address, struct ucred *peer)
{
	socklen_t len = sizeof(*peer);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	int ret = 0;

	if (fd < 0)
		return -errno;
	if (connect(fd, (const struct sockaddr *)address, sizeof(*address)) < 0)
		ret = -errno;
	else
		getsockopt(fd, SOL_SOCKET, SO_PEERCRED, peer, &len);
	close(fd);
	return ret;
}

/* Ended, or a zombie that nobody has asked for yet. */
static bool process_is_gone(pid_t pid)
{
	char path[32], text[256] = "";
	const char *state;
	FILE *f;

	if (pid <= 0 || (kill(pid, 0) < 0 && errno == ESRCH))
		return true;
	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	f = fopen(path, "re");
	if (!f)
		return false;
	if (!fgets(text, sizeof(text), f))
		text[0] = '\0';
	fclose(f);
	state = strrchr(text, ')');
	return state && (state[2] == 'Z' || state[2] == 'X');
}

/* The kernel closes the socket of a killed process a little after its end. */
static int wait_for_listener(const struct sockaddr_un *address, struct ucred *peer)
{
	int ret = ask_listener(address, peer);

	/* -EAGAIN: nobody accepts, and what we have asked before fills its backlog */
	for (u32 i = 0; i < QMP_STALE_TRIES && (ret == 0 || ret == -EAGAIN) &&
	     process_is_gone(peer->pid); i++) {
		usleep(QMP_STALE_PAUSE_US);
		ret = ask_listener(address, peer);
	}
	return ret;
}

/* A dead daemon's socket is taken away; a living one's is not, nor a file. */
static int remove_stale(const struct sockaddr_un *address, struct qc_err *err)
{
	const char *path = address->sun_path;
	struct ucred peer = { 0 };
	struct stat st = { 0 };
	int ret;

	if (lstat(path, &st) < 0 && errno == ENOENT)
		return 0;
	if (!S_ISSOCK(st.st_mode))
		return qc_err_set(err, -EEXIST,
				  "%s: exists and is no socket, expected an unused path", path);
	ret = wait_for_listener(address, &peer);
	if (ret == -ECONNREFUSED && unlink(path) == 0)
		return 0;
	if (ret)
		return qc_err_set(err, ret, "%s: old socket not removed (%s)", path,
				  strerror(-ret));
	return qc_err_set(err, -EADDRINUSE,
			  "%s: a daemon answers there (process %d), expected an unused path", path,
			  (int)peer.pid);
}

/* The folder of the socket: the way to remove it whatever becomes of its path. */
static int open_folder(struct qmp_server *server, struct qc_err *err)
{
	char path[sizeof(server->path)], *slash;

	strcpy(path, server->path);
	slash = strrchr(path, '/');
	if (slash)
		slash[slash == path] = '\0';
	server->folder_fd = open(slash ? path : ".", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (server->folder_fd < 0)
		return qc_err_set(err, -errno, "%s: folder not opened (%m), must exist",
				  server->path);
	return 0;
}

static const char *socket_name(const struct qmp_server *server)
{
	const char *slash = strrchr(server->path, '/');

	return slash ? slash + 1 : server->path;
}

static int bind_socket(struct qmp_server *server, const struct sockaddr_un *address,
		       struct qc_err *err)
{
	struct stat st;
	int ret;

	server->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (server->fd < 0)
		return qc_err_set(err, -errno, "%s: no socket (%m)", server->path);
	if (bind(server->fd, (const struct sockaddr *)address, sizeof(*address)) == 0 &&
	    stat(server->path, &st) == 0 && chmod(server->path, 0600) == 0 &&
	    listen(server->fd, QMP_LISTEN_BACKLOG) == 0) {
		server->socket_dev = st.st_dev;
		server->socket_ino = st.st_ino;
		return 0;
	}
	ret = qc_err_set(err, -errno, "%s: socket not made (%m), the folder must exist and the "
			 "path be unused", server->path);
	close(server->fd);
	return ret;
}

static int server_listen(struct qmp_server *server, struct qc_err *err)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int ret;

	memcpy(address.sun_path, server->path, sizeof(address.sun_path));
	ret = remove_stale(&address, err);
	if (ret)
		return ret;
	ret = open_folder(server, err);
	if (ret)
		return ret;
	ret = bind_socket(server, &address, err);
	if (ret)
		close(server->folder_fd);
	return ret;
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
			qmp_client_close(server->clients[i]);
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
	if (fstatat(server->folder_fd, socket_name(server), &st, AT_SYMLINK_NOFOLLOW) == 0 &&
	    st.st_dev == server->socket_dev && st.st_ino == server->socket_ino)
		unlinkat(server->folder_fd, socket_name(server), 0);
	close(server->folder_fd);
	free(server);
}
