// SPDX-License-Identifier: GPL-2.0-or-later
/* The NBD export: its socket, its loops, accepting clients, start and stop. */
#include "nbd-private.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <poll.h>
#include <qchain/log.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static struct nbd *to_nbd(struct transport *t)
{
	return container_of(t, struct nbd, transport);
}

const char *nbd_object(const struct nbd *nbd)
{
	return nbd->transport.id;
}

u64 nbd_size_bytes(const struct nbd *nbd)
{
	const struct target *ti = nbd->transport.target;

	/* A tail shorter than a block could not be addressed by anybody. */
	return ALIGN_DOWN(__atomic_load_n(&ti->size_bytes, __ATOMIC_ACQUIRE),
			  ti->limits.logical_block);
}

bool nbd_is_read_only(const struct nbd *nbd)
{
	return nbd->read_only || nbd->transport.target->limits.read_only;
}

u32 nbd_preferred_bytes(const struct target_limits *limits)
{
	u32 wanted = limits->io_opt ? limits->io_opt : 64 * KiB;
	u32 bytes = max(limits->logical_block, SECTOR_SIZE);

	/* The protocol wants a power of two, no smaller than a block. */
	while (bytes < NBD_MAX_PAYLOAD_BYTES && bytes * 2 <= wanted)
		bytes *= 2;
	return bytes;
}

/* ---- the socket ------------------------------------------------------- */

/*
 * Two servers that start at once must not both take a dead one's socket for
 * theirs: whoever makes or removes a socket holds a lock on its directory.
 */
static int lock_directory(struct nbd *nbd, struct qc_err *err)
{
	const struct timespec pause = { .tv_nsec = 10 * 1000 * 1000 };
	char *copy = strdup(nbd->socket);
	int fd, tries;

	if (!copy)
		return qc_err_set(err, -ENOMEM, "%s: out of memory", nbd->socket);
	fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	free(copy);
	if (fd < 0)
		return qc_err_set(err, -errno, "%s: directory not opened (%s), expected an "
				  "existing directory", nbd->socket, strerror(errno));
	for (tries = 0; flock(fd, LOCK_EX | LOCK_NB); tries++) {
		if (errno != EINTR && (errno != EWOULDBLOCK || tries == 200)) {
			close(fd);
			return qc_err_set(err, -EBUSY, "%s: directory not locked (%s), expected "
					  "no other server to start there", nbd->socket,
					  strerror(errno));
		}
		nanosleep(&pause, NULL);
	}
	return fd;
}

static struct sockaddr_un socket_address(const struct nbd *nbd)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };

	/* nbd_create() has checked the length. */
	memcpy(address.sun_path, nbd->socket, strlen(nbd->socket));
	return address;
}

/*
 * Does anybody listen? 0: no; -EADDRINUSE: yes; -EAGAIN: somebody took the call
 * and hung up without a word. That is a server with too many clients, or one
 * that died a moment ago and whose ring the kernel has not yet taken apart.
 */
static int probe_once(struct nbd *nbd)
{
	struct sockaddr_un address = socket_address(nbd);
	struct pollfd greeting = { .events = POLLIN };
	char byte;
	int ret;

	greeting.fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (greeting.fd < 0)
		return -EADDRINUSE;
	if (connect(greeting.fd, (struct sockaddr *)&address, sizeof(address))) {
		ret = errno == ECONNREFUSED || errno == ENOENT ? 0 : -EADDRINUSE;
	} else {
		while (poll(&greeting, 1, NBD_PROBE_MS) < 0 && errno == EINTR)
			;
		ret = recv(greeting.fd, &byte, 1, MSG_DONTWAIT);
		ret = ret == 1 || (ret < 0 && errno == EAGAIN) ? -EADDRINUSE : -EAGAIN;
	}
	close(greeting.fd);
	return ret;
}

/* 0: what is there is the socket of a dead server. */
static int probe_socket(struct nbd *nbd, struct qc_err *err)
{
	const struct timespec pause = { .tv_nsec = 20 * 1000 * 1000 };
	struct stat st;
	int ret, tries;

	if (lstat(nbd->socket, &st) || !S_ISSOCK(st.st_mode))
		return qc_err_set(err, -EADDRINUSE, "%s: exists and is no socket, expected a "
				  "free name", nbd->socket);
	for (tries = 0; (ret = probe_once(nbd)) == -EAGAIN && tries < 100; tries++)
		nanosleep(&pause, NULL);
	if (ret)
		return qc_err_set(err, -EADDRINUSE, "%s: socket in use by a running server, "
				  "expected a free name; stop that server or choose another",
				  nbd->socket);
	return 0;
}

/* The directory is locked. */
static int bind_socket(struct nbd *nbd, int fd, struct qc_err *err)
{
	struct sockaddr_un address = socket_address(nbd);
	int ret;

	if (!bind(fd, (struct sockaddr *)&address, sizeof(address)))
		return 0;
	if (errno != EADDRINUSE)
		return qc_err_set(err, -errno, "%s: socket not bound (%s)", nbd->socket,
				  strerror(errno));
	ret = probe_socket(nbd, err);
	if (ret)
		return ret;
	unlink(nbd->socket);
	if (!bind(fd, (struct sockaddr *)&address, sizeof(address)))
		return 0;
	return qc_err_set(err, -errno, "%s: socket of a dead server not replaced (%s)",
			  nbd->socket, strerror(errno));
}

static int listen_socket(struct nbd *nbd, struct qc_err *err)
{
	struct stat st;
	int fd, ret;

	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return qc_err_set(err, -errno, "%s: socket not created (%s)", nbd->socket,
				  strerror(errno));
	/* The file takes the socket's mode: there is no moment with another one. */
	ret = fchmod(fd, 0600) ? qc_err_set(err, -errno, "%s: mode 0600 not set (%s)",
					    nbd->socket, strerror(errno)) : 0;
	ret = ret ?: bind_socket(nbd, fd, err);
	if (ret)
		goto err_close;
	if (lstat(nbd->socket, &st) || (st.st_mode & 0777) & ~0600) {
		ret = qc_err_set(err, -EPERM, "%s: socket has mode %o, must be 600", nbd->socket,
				 st.st_mode & 0777);
		goto err_close;
	}
	if (listen(fd, NBD_BACKLOG)) {
		ret = qc_err_set(err, -errno, "%s: socket does not listen (%s)", nbd->socket,
				 strerror(errno));
		goto err_close;
	}
	nbd->socket_dev = st.st_dev;
	nbd->socket_ino = st.st_ino;
	nbd->listen_fd = fd;
	return 0;

err_close:
	close(fd);
	return ret;
}

static int open_socket(struct nbd *nbd, struct qc_err *err)
{
	int dir_fd, ret;

	dir_fd = lock_directory(nbd, err);
	if (dir_fd < 0)
		return dir_fd;
	ret = listen_socket(nbd, err);
	close(dir_fd);
	return ret;
}

/* Only what is ours: another server may have the name by now. */
static void close_socket(struct nbd *nbd)
{
	int dir_fd = lock_directory(nbd, NULL);
	struct stat st;

	if (!lstat(nbd->socket, &st) && st.st_dev == nbd->socket_dev &&
	    st.st_ino == nbd->socket_ino)
		unlink(nbd->socket);
	if (dir_fd >= 0)
		close(dir_fd);
	close(nbd->listen_fd);
	nbd->listen_fd = -1;
}

/* ---- accepting: first loop -------------------------------------------- */

static struct loop *first_loop(const struct nbd *nbd)
{
	return nbd->loops[0].loop;
}

/* The loop with the fewest connections; in turn among equals. */
static struct nbd_loop *choose_loop(struct nbd *nbd)
{
	struct nbd_loop *best = NULL;
	u32 i, nr, least = UINT32_MAX;

	for (i = 0; i < nbd->nr_loops; i++) {
		struct nbd_loop *l = &nbd->loops[(nbd->next_loop + i) % nbd->nr_loops];

		nr = __atomic_load_n(&l->nr_conns, __ATOMIC_RELAXED);
		if (nr < least) {
			least = nr;
			best = l;
		}
	}
	nbd->next_loop++;
	return best;
}

/* 0: one more was accepted, or turned away; -EAGAIN: none is left; or -errno. */
static int accept_one(struct nbd *nbd)
{
	int fd = accept4(nbd->listen_fd, NULL, NULL, SOCK_CLOEXEC);

	if (fd < 0)
		return errno == EINTR || errno == ECONNABORTED ? 0 : -errno;
	if (__atomic_load_n(&nbd->nr_conns, __ATOMIC_ACQUIRE) >= NBD_MAX_CONNECTIONS ||
	    nbd_conn_start(nbd, choose_loop(nbd), fd)) {
		__atomic_fetch_add(&nbd->nr_violations, 1, __ATOMIC_RELAXED);
		close(fd);
	}
	return 0;
}

static void accept_retry(struct loop *loop, struct loop_timer *timer)
{
	struct nbd *nbd = container_of(timer, struct nbd, accept_timer);

	loop_poll_add(loop, &nbd->accept_poll, nbd->listen_fd, POLLIN);
}

static void accept_ready(struct loop_poll *poll, int revents)
{
	struct nbd *nbd = container_of(poll, struct nbd, accept_poll);
	struct loop *loop = first_loop(nbd);
	int ret = 0;

	assert_on_loop(loop);
	if (__atomic_load_n(&nbd->stopping, __ATOMIC_ACQUIRE)) {
		__atomic_store_n(&nbd->accepting, 0, __ATOMIC_RELEASE);
		return;
	}
	while (!ret)
		ret = accept_one(nbd);
	if (ret == -EAGAIN)
		loop_poll_add(loop, &nbd->accept_poll, nbd->listen_fd, POLLIN);
	else /* no descriptors, no memory: others may give some back */
		loop_timer_set(loop, &nbd->accept_timer, NBD_RETRY_ACCEPT_NS);
}

static void accept_begin(struct loop *loop, void *arg)
{
	struct nbd *nbd = arg;

	nbd->accept_poll.loop = loop;
	nbd->accept_poll.fn = accept_ready;
	nbd->accept_timer.fn = accept_retry;
	nbd->accepting = 1;
	loop_poll_add(loop, &nbd->accept_poll, nbd->listen_fd, POLLIN);
}

/* Nobody is accepted from here on; unless the export is @in_use and that counts. */
struct accept_end {
	struct nbd *nbd;
	bool force;
	u32 in_use;
};

static void accept_end(struct loop *loop, void *arg)
{
	struct accept_end *end = arg;
	struct nbd *nbd = end->nbd;

	end->in_use = __atomic_load_n(&nbd->nr_conns, __ATOMIC_ACQUIRE);
	if (end->in_use && !end->force)
		return;
	__atomic_store_n(&nbd->stopping, 1, __ATOMIC_RELEASE);
	if (nbd->accept_timer.deadline_ns) {
		loop_timer_cancel(&nbd->accept_timer);
		__atomic_store_n(&nbd->accepting, 0, __ATOMIC_RELEASE);
	} else {
		loop_poll_cancel(&nbd->accept_poll);
	}
}

/* ---- loops ------------------------------------------------------------ */

static int loop_open(struct nbd *nbd, struct nbd_loop *l, struct qc_err *err)
{
	struct target *ti = nbd->transport.target;
	struct io_engine *io;
	int ret;

	l->nbd = nbd;
	CDS_INIT_LIST_HEAD(&l->conns);
	nbd_pool_init(&l->pool);
	ret = io_uring_engine_create(NBD_RING_ENTRIES, &io);
	if (ret)
		return qc_err_set(err, ret, "%s: io_uring not created (%s)", nbd_object(nbd),
				  strerror(-ret));
	snprintf(l->name, sizeof(l->name), "nbd-%u", (u32)(l - nbd->loops));
	ret = loop_create(l->name, io, &l->loop);
	if (ret)
		return qc_err_set(err, ret, "%s: loop not created (%s)", nbd_object(nbd),
				  strerror(-ret));
	ret = target_attach(ti, l->loop);
	if (ret) {
		qc_err_set(err, ret, "%s: loop not attached (%s)", nbd_object(nbd),
			   strerror(-ret));
		goto err_destroy;
	}
	ret = loop_start(l->loop, -1);
	if (ret) {
		qc_err_set(err, ret, "%s: thread not started (%s)", nbd_object(nbd),
			   strerror(-ret));
		goto err_detach;
	}
	return 0;

err_detach:
	target_detach(ti, l->loop);
err_destroy:
	loop_destroy(l->loop);
	l->loop = NULL;
	return ret;
}

/* The target may still send it messages until it is detached, so it runs. */
static void loop_close(struct nbd *nbd, struct nbd_loop *l)
{
	target_detach(nbd->transport.target, l->loop);
	loop_stop(l->loop);
	loop_destroy(l->loop);
	l->loop = NULL;
	nbd_pool_exit(&l->pool);
}

static void close_loops(struct nbd *nbd)
{
	u32 i;

	for (i = nbd->nr_loops; i-- > 0;)
		if (nbd->loops[i].loop)
			loop_close(nbd, &nbd->loops[i]);
}

static void end_conns(struct nbd_loop *l, enum nbd_life life)
{
	struct nbd_conn *c;

	cds_list_for_each_entry(c, &l->conns, node)
		nbd_conn_set_life(c, life);
}

static void drain_loop(struct loop *loop, void *arg)
{
	end_conns(arg, NBD_DRAINING);
}

static void cut_loop(struct loop *loop, void *arg)
{
	end_conns(arg, NBD_DEAD);
}

/* ---- transport_ops: control thread ------------------------------------ */

static int nbd_start(struct transport *t, struct qc_err *err)
{
	struct nbd *nbd = to_nbd(t);
	u32 i;
	int ret;

	assert(!nbd->started);
	ret = open_socket(nbd, err);
	if (ret)
		return ret;
	for (i = 0; i < nbd->nr_loops; i++) {
		ret = loop_open(nbd, &nbd->loops[i], err);
		if (ret)
			goto err_close;
	}
	nbd->started = true;
	nbd->stopping = 0;
	loop_call(first_loop(nbd), accept_begin, nbd);
	return 0;

err_close:
	close_loops(nbd);
	close_socket(nbd);
	return ret;
}

/* Wait until @counter is zero, at most @ms; returns it. */
static u32 wait_for_zero(const u32 *counter, u32 ms)
{
	const struct timespec pause = { .tv_nsec = 1000 * 1000 };
	u32 left = 0;

	while ((left = __atomic_load_n(counter, __ATOMIC_ACQUIRE)) && ms--)
		nanosleep(&pause, NULL);
	return left;
}

static void for_each_loop(struct nbd *nbd, void (*fn)(struct loop *loop, void *arg))
{
	u32 i;

	for (i = 0; i < nbd->nr_loops; i++)
		loop_call(nbd->loops[i].loop, fn, &nbd->loops[i]);
}

/*
 * In three steps, each bounded: clients are not heard any more and get the
 * replies of what is under way; clients that do not read them are cut; what
 * the target still holds is waited for, since it uses our memory.
 */
static int end_clients(struct nbd *nbd, struct qc_err *err)
{
	u32 left;

	for_each_loop(nbd, drain_loop);
	wait_for_zero(&nbd->nr_conns, NBD_DRAIN_MS);
	for_each_loop(nbd, cut_loop);
	left = wait_for_zero(&nbd->nr_conns, NBD_LET_GO_MS);
	if (left)
		return qc_err_set(err, -EBUSY, "%s: requests of %u clients still under way, "
				  "expected to end; stop again when storage answers",
				  nbd_object(nbd), left);
	return 0;
}

static int nbd_stop(struct transport *t, bool force, struct qc_err *err)
{
	struct nbd *nbd = to_nbd(t);
	struct accept_end end = { .nbd = nbd, .force = force };
	int ret;

	if (!nbd->started)
		return 0;
	if (!__atomic_load_n(&nbd->stopping, __ATOMIC_ACQUIRE)) {
		loop_call(first_loop(nbd), accept_end, &end);
		if (end.in_use && !force)
			return qc_err_set(err, -EBUSY, "%s: in use by %u clients of %s, "
					  "expected none; disconnect them or force it",
					  nbd_object(nbd), end.in_use, nbd->socket);
	}
	ret = end_clients(nbd, err);
	if (ret)
		return ret;
	wait_for_zero(&nbd->accepting, UINT32_MAX);
	close_loops(nbd);
	close_socket(nbd);
	nbd->started = false;
	return 0;
}

struct nbd_walk {
	struct nbd_loop *loop;
	void (*visit)(const struct request *req, void *arg);
	void *arg;
};

static void walk_loop(struct loop *loop, void *arg)
{
	struct nbd_walk *walk = arg;
	struct nbd_conn *c;
	u32 i, j;

	cds_list_for_each_entry(c, &walk->loop->conns, node)
		for (i = 0; i < NBD_NR_SLOTS; i++)
			for (j = 0; j < NBD_NR_PARTS; j++)
				if (c->slots[i].parts[j].busy)
					walk->visit(&c->slots[i].parts[j].req, walk->arg);
}

static void nbd_walk(struct transport *t, void (*visit)(const struct request *req, void *arg),
		     void *arg)
{
	struct nbd *nbd = to_nbd(t);
	struct nbd_walk walk = { .visit = visit, .arg = arg };
	u32 i;

	for (i = 0; nbd->started && i < nbd->nr_loops; i++) {
		walk.loop = &nbd->loops[i];
		loop_call(walk.loop->loop, walk_loop, &walk);
	}
}

static void nbd_status(struct transport *t, json_object *result)
{
	struct nbd *nbd = to_nbd(t);
	u32 nr = __atomic_load_n(&nbd->nr_conns, __ATOMIC_ACQUIRE);
	u32 violations = __atomic_load_n(&nbd->nr_violations, __ATOMIC_RELAXED);
	bool stopping = __atomic_load_n(&nbd->stopping, __ATOMIC_ACQUIRE);

	json_object_object_add(result, "id", json_object_new_string(t->id));
	json_object_object_add(result, "type", json_object_new_string("nbd"));
	json_object_object_add(result, "node-name", json_object_new_string(nbd->name));
	json_object_object_add(result, "shutting-down", json_object_new_boolean(stopping));
	json_object_object_add(result, "socket", json_object_new_string(nbd->socket));
	json_object_object_add(result, "read-only", json_object_new_boolean(nbd_is_read_only(nbd)));
	json_object_object_add(result, "size", json_object_new_int64(nbd_size_bytes(nbd)));
	json_object_object_add(result, "connections", json_object_new_int64(nr));
	json_object_object_add(result, "turned-away", json_object_new_int64(violations));
}

static void nbd_destroy(struct transport *t)
{
	struct nbd *nbd = to_nbd(t);

	assert(!nbd->started);
	free(nbd->socket);
	free(nbd->name);
	free(nbd->description);
	free(nbd->loops);
	free(nbd);
}

static const struct transport_ops nbd_ops = {
	.name = "nbd",
	.start = nbd_start,
	.stop = nbd_stop,
	.walk = nbd_walk,
	.status = nbd_status,
	.destroy = nbd_destroy,
};

static int check_options(const struct target *ti, const struct nbd_options *options,
			 struct qc_err *err)
{
	const u32 longest = sizeof(((struct sockaddr_un *)0)->sun_path) - 1;

	if (!options->socket || !options->socket[0] || strlen(options->socket) > longest)
		return qc_err_set(err, -EINVAL, "nbd: socket path of %zu bytes, expected 1..%u",
				  options->socket ? strlen(options->socket) : 0, longest);
	if (options->name && strlen(options->name) > NBD_MAX_STRING_BYTES)
		return qc_err_set(err, -EINVAL, "nbd: export name of %zu bytes, at most %u",
				  strlen(options->name), NBD_MAX_STRING_BYTES);
	if (options->description && strlen(options->description) > NBD_MAX_STRING_BYTES)
		return qc_err_set(err, -EINVAL, "nbd: description of %zu bytes, at most %u",
				  strlen(options->description), NBD_MAX_STRING_BYTES);
	if (options->nr_loops > QC_MAX_LOOPS)
		return qc_err_set(err, -EINVAL, "nbd: %u loops, at most %u", options->nr_loops,
				  QC_MAX_LOOPS);
	if (!is_power_of_2(ti->limits.logical_block) || ti->limits.logical_block > 64 * KiB)
		return qc_err_set(err, -EINVAL, "nbd: block size %u of the target, must be a "
				  "power of two up to 65536", ti->limits.logical_block);
	return 0;
}

int nbd_create(struct target *ti, const struct nbd_options *options,
	       struct transport **result, struct qc_err *err)
{
	struct nbd *nbd;
	int ret;

	ret = check_options(ti, options, err);
	if (ret)
		return ret;
	nbd = calloc(1, sizeof(*nbd));
	if (!nbd)
		return qc_err_set(err, -ENOMEM, "nbd: out of memory");
	nbd->transport.ops = &nbd_ops;
	nbd->transport.target = ti;
	nbd->listen_fd = -1;
	nbd->read_only = options->read_only;
	nbd->nr_loops = options->nr_loops ? options->nr_loops : NBD_DEFAULT_LOOPS;
	nbd->socket = strdup(options->socket);
	nbd->name = strdup(options->name ? options->name : "");
	nbd->description = strdup(options->description ? options->description : "");
	nbd->loops = calloc(nbd->nr_loops, sizeof(*nbd->loops));
	snprintf(nbd->transport.id, sizeof(nbd->transport.id), "%s",
		 nbd->name && nbd->name[0] ? nbd->name : "nbd");
	if (!nbd->socket || !nbd->name || !nbd->description || !nbd->loops) {
		nbd_destroy(&nbd->transport);
		return qc_err_set(err, -ENOMEM, "nbd: out of memory");
	}
	*result = &nbd->transport;
	return 0;
}
