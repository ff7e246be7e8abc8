// SPDX-License-Identifier: GPL-2.0-or-later
/* One NBD connection: its input and output, its buffers, its beginning and end. */
#include "nbd-private.h"

#include <assert.h>
#include <errno.h>
#include <liburing.h>
#include <qchain/log.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/*
 * Three things run a connection: bytes that arrived (in_done), bytes that left
 * (out_done), and a kick, which is a message of the loop to itself. Everything
 * else, above all the end of a request, only kicks: so replies of one turn of
 * the loop leave in one send, and a connection is freed in one place, never
 * below the feet of a function that still uses it.
 */

static const struct {
	const char *name;
	int (*fn)(struct nbd_conn *c);
} steps[NBD_NR_STEPS] = {
	[NBD_STEP_CLIENT_FLAGS] = { "client flags", nbd_step_client_flags },
	[NBD_STEP_OPTION] = { "option", nbd_step_option },
	[NBD_STEP_OPTION_DATA] = { "option data", nbd_step_option_data },
	[NBD_STEP_OPTION_SKIP] = { "option skip", nbd_step_option_skip },
	[NBD_STEP_REQUEST] = { "request", nbd_step_request },
	[NBD_STEP_ADMIT] = { "admit", nbd_step_admit },
	[NBD_STEP_PAYLOAD] = { "payload", nbd_step_payload },
};

static const bool allowed[NBD_NR_LIVES][NBD_NR_LIVES] = {
	/* to:               HANDSHAKE TRANSMISSION DRAINING DEAD */
	[NBD_HANDSHAKE] =    { 0, 1, 1, 1 },
	[NBD_TRANSMISSION] = { 0, 0, 1, 1 },
	[NBD_DRAINING] =     { 0, 0, 0, 1 },
	[NBD_DEAD] =         { 0, 0, 0, 0 },
};

/* ---- buffers ---------------------------------------------------------- */

static u32 buffer_class(u32 bytes)
{
	u32 shift = NBD_MIN_BUFFER_SHIFT;

	while ((1u << shift) < bytes)
		shift++;
	return shift - NBD_MIN_BUFFER_SHIFT;
}

static u32 class_bytes(u32 class)
{
	return 1u << (class + NBD_MIN_BUFFER_SHIFT);
}

void nbd_pool_init(struct nbd_pool *pool)
{
	u32 i;

	for (i = 0; i < NBD_NR_CLASSES; i++)
		CDS_INIT_LIST_HEAD(&pool->free[i]);
	pool->spare_bytes = 0;
}

void nbd_pool_exit(struct nbd_pool *pool)
{
	struct cds_list_head *node, *next;
	u32 i;

	for (i = 0; i < NBD_NR_CLASSES; i++) {
		/* A free buffer is its own list node. */
		cds_list_for_each_safe(node, next, &pool->free[i])
			free(node);
	}
	nbd_pool_init(pool);
}

static void *pool_get(struct nbd_pool *pool, u32 class)
{
	struct cds_list_head *node;

	if (cds_list_empty(&pool->free[class]))
		return io_alloc(class_bytes(class));
	node = pool->free[class].next;
	cds_list_del(node);
	pool->spare_bytes -= class_bytes(class);
	return node;
}

static void pool_put(struct nbd_pool *pool, u32 class, void *buf)
{
	if (pool->spare_bytes + class_bytes(class) > NBD_SPARE_BYTES) {
		free(buf);
		return;
	}
	cds_list_add(buf, &pool->free[class]);
	pool->spare_bytes += class_bytes(class);
}

/* All pieces but the last are whole. */
static u32 piece_bytes(u32 bytes, u32 i)
{
	return min(bytes - i * NBD_PIECE_BYTES, NBD_PIECE_BYTES);
}

u32 nbd_pieces_cost(u32 bytes)
{
	u32 whole = bytes / NBD_PIECE_BYTES * NBD_PIECE_BYTES;

	return whole + (bytes > whole ? class_bytes(buffer_class(bytes - whole)) : 0);
}

static void pieces_free(struct nbd_slot *slot, u32 nr, u32 bytes)
{
	u32 i;

	for (i = 0; i < nr; i++) {
		pool_put(&slot->conn->home->pool, buffer_class(piece_bytes(bytes, i)),
			 slot->pieces[i]);
		slot->pieces[i] = NULL;
	}
}

int nbd_pieces_get(struct nbd_slot *slot, u32 bytes)
{
	u32 nr = DIV_ROUND_UP(bytes, NBD_PIECE_BYTES);
	u32 i;

	assert(nr <= NBD_NR_PIECES && !slot->tag.bytes);
	for (i = 0; i < nr; i++) {
		slot->pieces[i] = pool_get(&slot->conn->home->pool,
					   buffer_class(piece_bytes(bytes, i)));
		if (!slot->pieces[i]) {
			pieces_free(slot, i, bytes);
			return -ENOMEM;
		}
	}
	slot->tag.bytes = bytes;
	slot->conn->held_bytes += nbd_pieces_cost(bytes);
	return 0;
}

void nbd_pieces_put(struct nbd_slot *slot)
{
	pieces_free(slot, DIV_ROUND_UP(slot->tag.bytes, NBD_PIECE_BYTES), slot->tag.bytes);
	slot->conn->held_bytes -= nbd_pieces_cost(slot->tag.bytes);
	slot->tag.bytes = 0;
}

/* ---- life ------------------------------------------------------------- */

void nbd_conn_set_life(struct nbd_conn *c, enum nbd_life life)
{
	assert_on_loop(c->home->loop);
	if (c->life >= life)
		return;
	assert(allowed[c->life][life]);
	c->life = life;
	loop_timer_cancel(&c->timer);
	/* What is pending in the kernel then ends by itself. */
	if (life == NBD_DEAD)
		shutdown(c->fd, SHUT_RDWR);
	else if (life == NBD_DRAINING && c->in.busy)
		shutdown(c->fd, SHUT_RD);
	nbd_conn_kick(c);
}

int nbd_conn_complain(struct nbd_conn *c, int code, const char *fmt, ...)
{
	u64 now = loop_now_ns(c->home->loop);
	char text[256];
	va_list ap;

	__atomic_fetch_add(&c->nbd->nr_violations, 1, __ATOMIC_RELAXED);
	if (c->home->complained_ns && now - c->home->complained_ns < NBD_COMPLAIN_NS)
		return code;
	c->home->complained_ns = now;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	log_warn("%s: client disconnected at %s: %s", nbd_object(c->nbd),
		 steps[c->step].name, text);
	return code;
}

static void conn_free(struct nbd_conn *c)
{
	struct nbd_loop *home = c->home;
	struct nbd *nbd = c->nbd;

	loop_timer_cancel(&c->timer);
	cds_list_del(&c->node);
	close(c->fd);
	free(c);
	/* Last: who waits for zero frees the loop next. */
	__atomic_fetch_sub(&home->nr_conns, 1, __ATOMIC_RELEASE);
	__atomic_fetch_sub(&nbd->nr_conns, 1, __ATOMIC_RELEASE);
}

static bool conn_is_over(const struct nbd_conn *c)
{
	if (c->life < NBD_DRAINING || c->in.busy || c->out.busy || c->nr_slots)
		return false;
	return c->life == NBD_DEAD || !c->out.len;
}

static void conn_run(struct nbd_conn *c)
{
	int ret = NBD_NEXT;

	assert(!c->running && !c->in.busy);
	c->running = true;
	while (ret == NBD_NEXT && c->life < NBD_DRAINING)
		ret = steps[c->step].fn(c);
	c->running = false;
	if (ret < 0)
		nbd_conn_set_life(c, NBD_DEAD);
}

static void conn_send(struct nbd_conn *c);

static void conn_kicked(struct loop *loop, struct loop_msg *msg)
{
	struct nbd_conn *c = container_of(msg, struct nbd_conn, kick);

	assert_on_loop(loop);
	c->kicked = false;
	if (c->life < NBD_DRAINING && !c->in.busy)
		conn_run(c);
	if (c->life >= NBD_DRAINING && !c->in.busy && c->receiving)
		nbd_slot_abort(c->receiving);
	if (!c->out.busy)
		conn_send(c);
	if (conn_is_over(c) && !c->kicked)
		conn_free(c);
}

void nbd_conn_kick(struct nbd_conn *c)
{
	assert_on_loop(c->home->loop);
	if (c->kicked)
		return;
	c->kicked = true;
	loop_send(c->home->loop, &c->kick, conn_kicked);
}

static void conn_timeout(struct loop *loop, struct loop_timer *timer)
{
	struct nbd_conn *c = container_of(timer, struct nbd_conn, timer);

	assert_on_loop(loop);
	nbd_conn_complain(c, -ETIMEDOUT, "handshake not finished (%llu s), expected sooner",
			  NBD_HANDSHAKE_NS / 1000000000ull);
	nbd_conn_set_life(c, NBD_DEAD);
}

static void conn_begin(struct loop *loop, struct loop_msg *msg)
{
	struct nbd_conn *c = container_of(msg, struct nbd_conn, kick);

	assert_on_loop(loop);
	c->kicked = false;
	cds_list_add(&c->node, &c->home->conns);
	loop_timer_set(loop, &c->timer, NBD_HANDSHAKE_NS);
	nbd_greet(c);
	if (__atomic_load_n(&c->nbd->stopping, __ATOMIC_ACQUIRE))
		nbd_conn_set_life(c, NBD_DEAD);
	nbd_conn_kick(c);
}

/* ---- input ------------------------------------------------------------ */

static void in_done(struct io_completion *completion, int res, u32 cqe_flags)
{
	struct nbd_conn *c = container_of(completion, struct nbd_conn, in.completion);

	assert_on_loop(c->home->loop);
	c->in.busy = false;
	if (res > 0 && c->life < NBD_DRAINING) {
		if (c->in.direct)
			c->receiving->ready += res;
		else
			c->in.end += res;
		conn_run(c);
	} else if (res == 0) {
		nbd_conn_set_life(c, NBD_DRAINING);
	} else if (res < 0 && res != -EINTR && res != -EAGAIN) {
		nbd_conn_set_life(c, NBD_DEAD);
	}
	/* Also after -EINTR: a kick looks for input when none was asked for. */
	if (!c->in.busy)
		nbd_conn_kick(c);
}

int nbd_in_receive(struct nbd_conn *c, void *to, u32 room)
{
	struct io_uring_sqe *sqe;
	int flags = 0;

	assert(!c->in.busy);
	c->in.busy = true;
	c->in.direct = to != NULL;
	if (to) {
		flags = MSG_WAITALL;
	} else {
		memmove(c->in.buf, c->in.buf + c->in.pos, nbd_in_bytes(c));
		c->in.end -= c->in.pos;
		c->in.pos = 0;
		to = c->in.buf + c->in.end;
		room = sizeof(c->in.buf) - c->in.end;
	}
	assert(room);
	sqe = io_uring_engine_sqe(c->home->loop->io, &c->in.completion);
	io_uring_prep_recv(sqe, c->fd, to, room, flags);
	io_uring_sqe_set_data(sqe, &c->in.completion);
	return NBD_WAIT;
}

int nbd_in_need(struct nbd_conn *c, u32 bytes)
{
	return nbd_in_bytes(c) >= bytes ? NBD_NEXT : nbd_in_receive(c, NULL, 0);
}

/* ---- output ----------------------------------------------------------- */

void nbd_out_append(struct nbd_conn *c, const void *data, u32 len)
{
	assert(!c->out.busy && len <= sizeof(c->out.buf) - c->out.len);
	memcpy(c->out.buf + c->out.len, data, len);
	c->out.len += len;
}

void nbd_slot_release(struct nbd_slot *slot)
{
	struct nbd_conn *c = slot->conn;

	assert(!slot->nr_busy);
	nbd_pieces_put(slot);
	cds_list_move(&slot->node, &c->free_slots);
	c->nr_slots--;
	/* Somebody may wait for what was given back. */
	if (!c->in.busy || c->life >= NBD_DRAINING)
		nbd_conn_kick(c);
}

static void release_all(struct cds_list_head *slots)
{
	struct nbd_slot *slot, *next;

	cds_list_for_each_entry_safe(slot, next, slots, node)
		nbd_slot_release(slot);
}

static void out_submit(struct nbd_conn *c)
{
	struct io_uring_sqe *sqe;

	c->out.busy = true;
	sqe = io_uring_engine_sqe(c->home->loop->io, &c->out.completion);
	io_uring_prep_sendmsg(sqe, c->fd, &c->out.msg, MSG_NOSIGNAL | MSG_WAITALL);
	io_uring_sqe_set_data(sqe, &c->out.completion);
}

bool nbd_out_advance(struct msghdr *msg, size_t len)
{
	while (msg->msg_iovlen && len >= msg->msg_iov->iov_len) {
		len -= msg->msg_iov->iov_len;
		msg->msg_iov++;
		msg->msg_iovlen--;
	}
	if (!msg->msg_iovlen)
		return false;
	msg->msg_iov->iov_base = (u8 *)msg->msg_iov->iov_base + len;
	msg->msg_iov->iov_len -= len;
	return true;
}

static void out_done(struct io_completion *completion, int res, u32 cqe_flags)
{
	struct nbd_conn *c = container_of(completion, struct nbd_conn, out.completion);

	assert_on_loop(c->home->loop);
	c->out.busy = false;
	if (res == -EINTR || res == -EAGAIN)
		res = 0;
	if (res < 0)
		nbd_conn_set_life(c, NBD_DEAD);
	else if (nbd_out_advance(&c->out.msg, res) && c->life != NBD_DEAD) {
		out_submit(c);
		return;
	}
	c->out.len = 0;
	release_all(&c->out.sent);
	if (!c->in.busy || c->life >= NBD_DRAINING || !cds_list_empty(&c->out.waiting))
		nbd_conn_kick(c);
}

/* As many replies as fit into one send. */
static u32 gather_replies(struct nbd_output *out)
{
	struct nbd_slot *slot, *next;
	u32 nr = 0;

	cds_list_for_each_entry_safe(slot, next, &out->waiting, node) {
		if (nr + NBD_NR_PIECES + 2 > NBD_NR_IOVS)
			break;
		nr += nbd_slot_reply(slot, out->iovs + nr);
		cds_list_move(&slot->node, &out->sent);
	}
	return nr;
}

static void conn_send(struct nbd_conn *c)
{
	struct nbd_output *out = &c->out;
	u32 nr = 1;

	if (c->life == NBD_DEAD) {
		release_all(&out->waiting);
		return;
	}
	if (out->len)
		out->iovs[0] = (struct iovec){ out->buf, out->len };
	else
		nr = gather_replies(out);
	if (!nr)
		return;
	out->msg = (struct msghdr){ .msg_iov = out->iovs, .msg_iovlen = nr };
	out_submit(c);
}

/* ---- beginning -------------------------------------------------------- */

int nbd_conn_start(struct nbd *nbd, struct nbd_loop *home, int fd)
{
	struct nbd_conn *c;
	u32 i, j;

	c = calloc(1, sizeof(*c));
	if (!c)
		return -ENOMEM;
	c->nbd = nbd;
	c->home = home;
	c->fd = fd;
	c->timer.fn = conn_timeout;
	c->in.completion.fn = in_done;
	c->out.completion.fn = out_done;
	CDS_INIT_LIST_HEAD(&c->out.waiting);
	CDS_INIT_LIST_HEAD(&c->out.sent);
	CDS_INIT_LIST_HEAD(&c->free_slots);
	snprintf(c->requests.name, sizeof(c->requests.name), "nbd connection %u",
		 __atomic_add_fetch(&nbd->last_conn, 1, __ATOMIC_RELAXED));
	c->requests.tags = NBD_NR_SLOTS;
	c->requests.bytes = NBD_HELD_BYTES;
	for (i = 0; i < NBD_NR_SLOTS; i++) {
		c->slots[i].conn = c;
		c->slots[i].tag.queue = &c->requests;
		for (j = 0; j < NBD_NR_PARTS; j++)
			c->slots[i].parts[j].slot = &c->slots[i];
		cds_list_add(&c->slots[i].node, &c->free_slots);
	}
	__atomic_fetch_add(&home->nr_conns, 1, __ATOMIC_RELAXED);
	__atomic_fetch_add(&nbd->nr_conns, 1, __ATOMIC_RELAXED);
	c->kicked = true;
	loop_send(home->loop, &c->kick, conn_begin);
	return 0;
}
