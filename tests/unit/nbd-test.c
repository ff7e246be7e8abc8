// SPDX-License-Identifier: GPL-2.0-or-later
/* Unit tests of the NBD server: what is pure, and an export from start to stop. */
#include "../../ublk-target/transport/nbd-private.h"
#include "unit.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

/* ---- pure functions ----------------------------------------------------- */

static void test_errors(void)
{
	static const struct {
		int error;
		u32 wire;
	} cases[] = {
		{ 0, NBD_SUCCESS },	    { -EPERM, NBD_EPERM },
		{ -EROFS, NBD_EPERM },	    { -EIO, NBD_EIO },
		{ -ENOMEM, NBD_ENOMEM },    { -EINVAL, NBD_EINVAL },
		{ -ENOSPC, NBD_ENOSPC },    { -EDQUOT, NBD_ENOSPC },
		{ -EFBIG, NBD_ENOSPC },	    { -EOVERFLOW, NBD_EOVERFLOW },
		{ -EOPNOTSUPP, NBD_EINVAL }, { -ESHUTDOWN, NBD_ESHUTDOWN },
		{ -ETIMEDOUT, NBD_EIO },    { -EUCLEAN, NBD_EIO },
	};
	size_t i;

	for (i = 0; i < ARRAY_SIZE(cases); i++)
		CU_ASSERT_EQUAL(nbd_wire_errno(cases[i].error), cases[i].wire);
}

static void test_preferred_block(void)
{
	static const struct {
		u32 logical;
		u32 io_opt;
		u32 expected;
	} cases[] = {
		{ 512, 0, 65536 },	    { 4096, 0, 65536 },
		{ 512, 65536, 65536 },	    { 512, 2097152, 2097152 },
		{ 512, 196608, 131072 },    { 4096, 512, 4096 },
		{ 65536, 4096, 65536 },	    { 512, 1, 512 },
		{ 512, 0xffffffff, NBD_MAX_PAYLOAD_BYTES },
	};
	struct target_limits limits = { 0 };
	size_t i;

	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		limits.logical_block = cases[i].logical;
		limits.io_opt = cases[i].io_opt;
		CU_ASSERT_EQUAL(nbd_preferred_bytes(&limits), cases[i].expected);
	}
}

static void test_extents_merge(void)
{
	struct nbd_wire_extent extents[3];
	struct nbd_extents list = { .max = 3, .extents = extents };

	CU_ASSERT_TRUE(nbd_extents_add(&list, 4096, 1));
	CU_ASSERT_TRUE(nbd_extents_add(&list, 512, 1));
	CU_ASSERT_EQUAL(list.nr, 1);
	CU_ASSERT_EQUAL(nbd_get32(extents[0].len), 4608);
	CU_ASSERT_TRUE(nbd_extents_add(&list, 512, 0));
	CU_ASSERT_TRUE(nbd_extents_add(&list, 512, 1));
	CU_ASSERT_EQUAL(list.nr, 3);
	/* Full: a new kind is refused, more of the last kind is not. */
	CU_ASSERT_FALSE(nbd_extents_add(&list, 512, 3));
	CU_ASSERT_TRUE(nbd_extents_add(&list, 0x80000000u, 1));
	CU_ASSERT_EQUAL(list.nr, 3);
	CU_ASSERT_EQUAL(nbd_get32(extents[2].len), 0x80000200u);
	CU_ASSERT_EQUAL(list.len, 4608 + 512 + 512 + 0x80000000ull);
}

/* ---- buffers -------------------------------------------------------------- */

struct fixture {
	struct nbd nbd;
	struct nbd_loop home;
	struct nbd_conn conn;
};

static struct fixture *fixture_create(void)
{
	struct fixture *f = calloc(1, sizeof(*f));
	u32 i;

	if (!f)
		abort();
	f->home.nbd = &f->nbd;
	f->conn.nbd = &f->nbd;
	f->conn.home = &f->home;
	nbd_pool_init(&f->home.pool);
	for (i = 0; i < NBD_NR_SLOTS; i++)
		f->conn.slots[i].conn = &f->conn;
	return f;
}

static void fixture_destroy(struct fixture *f)
{
	nbd_pool_exit(&f->home.pool);
	free(f);
}

static void test_pieces(void)
{
	static const struct {
		u32 bytes;
		u32 nr;
		u32 cost;
	} cases[] = {
		{ 1, 1, 4096 },
		{ 512, 1, 4096 },
		{ 4097, 1, 8192 },
		{ 300000, 1, 524288 },
		{ NBD_PIECE_BYTES, 1, NBD_PIECE_BYTES },
		{ NBD_PIECE_BYTES + 512, 2, NBD_PIECE_BYTES + 4096 },
		{ NBD_MAX_PAYLOAD_BYTES - 512, NBD_NR_PIECES, NBD_MAX_PAYLOAD_BYTES },
		{ NBD_MAX_PAYLOAD_BYTES, NBD_NR_PIECES, NBD_MAX_PAYLOAD_BYTES },
	};
	struct fixture *f = fixture_create();
	struct nbd_slot *slot = &f->conn.slots[0];
	size_t i;
	u32 j;

	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		CU_ASSERT_EQUAL(nbd_pieces_cost(cases[i].bytes), cases[i].cost);
		CU_ASSERT_EQUAL(nbd_pieces_get(slot, cases[i].bytes), 0);
		CU_ASSERT_EQUAL(f->conn.held_bytes, cases[i].cost);
		for (j = 0; j < cases[i].nr; j++)
			CU_ASSERT_TRUE(slot->pieces[j] &&
				       IS_ALIGNED((uintptr_t)slot->pieces[j], 4096));
		/* The sanitizer sees it when a buffer is shorter than it should be. */
		memset(slot->pieces[0], 1, min(cases[i].bytes, NBD_PIECE_BYTES));
		nbd_pieces_put(slot);
		CU_ASSERT_EQUAL(f->conn.held_bytes, 0);
		CU_ASSERT_PTR_NULL(slot->pieces[0]);
		CU_ASSERT_TRUE(f->home.pool.spare_bytes <= NBD_SPARE_BYTES);
	}
	CU_ASSERT_TRUE(f->home.pool.spare_bytes > 0);
	fixture_destroy(f);
}

/* ---- replies ---------------------------------------------------------------- */

static size_t iov_bytes(const struct iovec *iov, u32 nr)
{
	size_t bytes = 0;

	while (nr--)
		bytes += iov[nr].iov_len;
	return bytes;
}

static void test_error_replies(void)
{
	struct fixture *f = fixture_create();
	struct nbd_slot *slot = &f->conn.slots[0];
	const struct nbd_wire_chunk_error *head;
	struct iovec iov[NBD_NR_IOVS];
	u32 nr;

	slot->cookie = 0x1122334455667788ull;
	slot->error = -ENOSPC;
	nr = nbd_slot_reply(slot, iov);
	CU_ASSERT_EQUAL(iov_bytes(iov, nr), sizeof(struct nbd_wire_simple_reply));
	CU_ASSERT_EQUAL(nbd_get32(slot->head.simple.error), NBD_ENOSPC);
	CU_ASSERT_EQUAL(nbd_get64(slot->head.simple.cookie), slot->cookie);

	f->conn.structured = true;
	nr = nbd_slot_reply(slot, iov);
	head = &slot->head.error;
	CU_ASSERT_EQUAL(nbd_get32(head->chunk.magic), NBD_STRUCTURED_REPLY_MAGIC);
	CU_ASSERT_EQUAL(nbd_get16(head->chunk.type), NBD_REPLY_TYPE_ERROR);
	CU_ASSERT_EQUAL(nbd_get16(head->chunk.flags), NBD_REPLY_FLAG_DONE);
	CU_ASSERT_EQUAL(nbd_get32(head->error), NBD_ENOSPC);
	CU_ASSERT_EQUAL(nbd_get16(head->message_len), strlen(slot->text));
	CU_ASSERT_EQUAL(iov_bytes(iov, nr),
			sizeof(struct nbd_wire_chunk) + nbd_get32(head->chunk.len));
	CU_ASSERT_PTR_NOT_NULL(strstr(slot->text, "No space left"));
	fixture_destroy(f);
}

/* A kernel that sends less than all: any cut, also inside a vector. */
static void test_short_sends(void)
{
	char text[] = "abcdefghij";
	struct iovec iov[4];
	struct msghdr msg;
	size_t cut;

	for (cut = 0; cut <= 10; cut++) {
		iov[0] = (struct iovec){ text, 3 };
		iov[1] = (struct iovec){ text + 3, 0 };
		iov[2] = (struct iovec){ text + 3, 1 };
		iov[3] = (struct iovec){ text + 4, 6 };
		msg = (struct msghdr){ .msg_iov = iov, .msg_iovlen = 4 };
		CU_ASSERT_EQUAL(nbd_out_advance(&msg, cut), cut < 10);
		CU_ASSERT_EQUAL(iov_bytes(msg.msg_iov, msg.msg_iovlen), 10 - cut);
		if (cut < 10)
			CU_ASSERT_EQUAL(*(char *)msg.msg_iov->iov_base, text[cut]);
	}
}

/* ---- the export --------------------------------------------------------------- */

static char directory[] = "/tmp/nbd-test-XXXXXX";
static char socket_path[64];

static struct target *create_target(void)
{
	char *words[] = { (char *)"67108864" };
	struct qc_err err = { 0 };
	struct target *ti = NULL;

	CU_ASSERT_EQUAL_FATAL(target_create("zero", 1, words, &ti, &err), 0);
	return ti;
}

static struct transport *create_export(struct target *ti)
{
	struct nbd_options options = { .socket = socket_path, .name = "vm1" };
	struct transport *t = NULL;
	struct qc_err err = { 0 };

	CU_ASSERT_EQUAL_FATAL(nbd_create(ti, &options, &t, &err), 0);
	return t;
}

static void test_options(void)
{
	char text[NBD_MAX_STRING_BYTES + 2];
	struct nbd_options options = { .socket = text };
	struct target *ti = create_target();
	struct transport *t = NULL;
	struct qc_err err = { 0 };

	memset(text, 'x', sizeof(text) - 1);
	text[sizeof(text) - 1] = '\0';
	CU_ASSERT_EQUAL(nbd_create(ti, &options, &t, &err), -EINVAL);
	CU_ASSERT_PTR_NOT_NULL(strstr(err.msg, "expected 1..107"));
	options.socket = NULL;
	CU_ASSERT_EQUAL(nbd_create(ti, &options, &t, NULL), -EINVAL);
	options.socket = socket_path;
	options.name = text;
	CU_ASSERT_EQUAL(nbd_create(ti, &options, &t, NULL), -EINVAL);
	options.name = NULL;
	options.nr_loops = QC_MAX_LOOPS + 1;
	CU_ASSERT_EQUAL(nbd_create(ti, &options, &t, NULL), -EINVAL);
	target_destroy(ti);
}

/* In pieces: this process has rings, whose end interrupts calls that block. */
static void put(int fd, const void *data, size_t len)
{
	const char *pos = data;
	ssize_t n;

	while (len) {
		n = send(fd, pos, len, MSG_NOSIGNAL);
		CU_ASSERT_FATAL(n > 0 || (n < 0 && errno == EINTR));
		pos += max(n, 0l);
		len -= max(n, 0l);
	}
}

static void get(int fd, void *data, size_t len)
{
	char *pos = data;
	ssize_t n;

	while (len) {
		n = recv(fd, pos, len, 0);
		CU_ASSERT_FATAL(n > 0 || (n < 0 && errno == EINTR));
		pos += max(n, 0l);
		len -= max(n, 0l);
	}
}

static int connect_client(void)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	struct nbd_wire_greeting greeting;
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	memcpy(address.sun_path, socket_path, sizeof(socket_path));
	CU_ASSERT_EQUAL_FATAL(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
	get(fd, &greeting, sizeof(greeting));
	CU_ASSERT_EQUAL(nbd_get64(greeting.init_magic), NBD_INIT_MAGIC);
	return fd;
}

static void test_start_and_stop(void)
{
	struct target *ti = create_target();
	struct transport *t = create_export(ti);
	struct qc_err err = { 0 };
	struct stat st;
	ssize_t n;
	char byte;
	int fd, i;

	for (i = 0; i < 2; i++) { /* it can be started again */
		memset(&err, 0, sizeof(err));
		CU_ASSERT_EQUAL_FATAL(t->ops->start(t, &err), 0);
		CU_ASSERT_EQUAL(stat(socket_path, &st), 0);
		CU_ASSERT_EQUAL(st.st_mode, S_IFSOCK | 0600);
		fd = connect_client();
		CU_ASSERT_EQUAL(t->ops->stop(t, false, &err), -EBUSY);
		CU_ASSERT_PTR_NOT_NULL(strstr(err.msg, "in use by 1 clients"));
		CU_ASSERT_EQUAL(t->ops->stop(t, true, &err), 0);
		while ((n = recv(fd, &byte, 1, 0)) < 0 && errno == EINTR)
			;
		CU_ASSERT_EQUAL(n, 0);
		close(fd);
		CU_ASSERT_EQUAL(stat(socket_path, &st), -1);
		CU_ASSERT_EQUAL(t->ops->stop(t, true, &err), 0);
	}
	t->ops->destroy(t);
	target_destroy(ti);
}

static void test_second_export_refused(void)
{
	struct target *ti = create_target();
	struct transport *first = create_export(ti);
	struct transport *second = create_export(ti);
	struct qc_err err = { 0 };
	struct stat st;

	CU_ASSERT_EQUAL_FATAL(first->ops->start(first, &err), 0);
	CU_ASSERT_EQUAL(second->ops->start(second, &err), -EADDRINUSE);
	CU_ASSERT_PTR_NOT_NULL(strstr(err.msg, socket_path));
	CU_ASSERT_EQUAL(stat(socket_path, &st), 0);
	CU_ASSERT_EQUAL(first->ops->stop(first, true, NULL), 0);
	second->ops->destroy(second);
	first->ops->destroy(first);
	target_destroy(ti);
}

static void test_status(void)
{
	static const char *const keys[] = {
		"id", "type", "node-name", "shutting-down", "socket", "connections",
	};
	struct target *ti = create_target();
	struct transport *t = create_export(ti);
	json_object *status = json_object_new_object();
	json_object *value;
	size_t i;

	t->ops->status(t, status);
	for (i = 0; i < ARRAY_SIZE(keys); i++)
		CU_ASSERT_TRUE(json_object_object_get_ex(status, keys[i], &value));
	json_object_object_get_ex(status, "type", &value);
	CU_ASSERT_STRING_EQUAL(json_object_get_string(value), "nbd");
	json_object_put(status);
	t->ops->destroy(t);
	target_destroy(ti);
}

/* ---- a target that remembers ---------------------------------------------------- */

#define RECORD_BYTES (1ull << 40)
#define RECORD_MAX 64u
#define RECORD_DELAY_NS (3ull * 1000 * 1000)
/* Block status: pieces of this size, kinds 0 0 1 2 again and again. */
#define STATUS_PIECE 65536u

struct record {
	struct loop *loop;
	u64 offset;
	u32 len;
	u8 op;
	u8 flags;
};

static struct recorder {
	struct target target;
	pthread_mutex_t lock;
	struct record records[RECORD_MAX];
	u32 nr;
	u32 most_held;
	u64 fail_at; /* atomic: the request at this offset fails */
	/* loop thread only */
	struct loop_timer timer;
	struct request *held[NBD_NR_SLOTS * NBD_NR_PARTS];
	u32 nr_held;
} recorder = { .lock = PTHREAD_MUTEX_INITIALIZER };

static void record_release(struct loop *loop, struct loop_timer *timer)
{
	u64 bad = __atomic_load_n(&recorder.fail_at, __ATOMIC_ACQUIRE);

	/* The last first: replies must not depend on the order. */
	while (recorder.nr_held) {
		struct request *req = recorder.held[--recorder.nr_held];

		target_end_io(req, req->offset == bad ? -EIO : 0);
	}
	loop_timer_cancel(timer); /* set again by what came meanwhile */
}

static void fail_at(u64 offset)
{
	__atomic_store_n(&recorder.fail_at, offset, __ATOMIC_RELEASE);
}

static void answer_status(struct request *req)
{
	static const struct block_status kinds[4] = {
		{ .depth = 1, .allocated = true },
		{ .depth = 1, .allocated = true },
		{ .depth = 2, .allocated = true },
		{ .depth = 0, .zero = true },
	};
	u64 pos = req->offset, end = req->offset + req->len;
	u32 nr = 0;

	while (pos < end && nr < req->status_max) {
		req->status[nr] = kinds[pos / STATUS_PIECE % 4];
		req->status[nr].len = min(STATUS_PIECE - pos % STATUS_PIECE, end - pos);
		pos += req->status[nr++].len;
	}
	req->status_nr = nr;
}

static enum target_map_result record_map(struct target *ti, struct request *req)
{
	pthread_mutex_lock(&recorder.lock);
	if (recorder.nr < RECORD_MAX)
		recorder.records[recorder.nr++] = (struct record){
			req->loop, req->offset, req->len, req->op, req->flags,
		};
	recorder.most_held = max(recorder.most_held, recorder.nr_held + 1);
	pthread_mutex_unlock(&recorder.lock);
	if (req->op == REQ_BLOCK_STATUS) {
		answer_status(req);
		req->error = 0;
		return TARGET_DONE;
	}
	if (req->op == REQ_READ)
		memset(req->base, req->offset / QC_MAX_REQUEST_BYTES, req->len);
	recorder.held[recorder.nr_held++] = req;
	recorder.timer.fn = record_release;
	loop_timer_set(req->loop, &recorder.timer, RECORD_DELAY_NS);
	return TARGET_SUBMITTED;
}

static const struct target_type record_type = { .name = "record", .map = record_map };

/* ---- a client ------------------------------------------------------------------ */

static void client_option(int fd, u32 option, const void *data, u32 len)
{
	struct nbd_wire_option wire = {
		nbd_put64(NBD_OPTION_MAGIC), nbd_put32(option), nbd_put32(len),
	};
	struct nbd_wire_option_reply reply;
	char skipped[256];

	put(fd, &wire, sizeof(wire));
	put(fd, data, len);
	do {
		get(fd, &reply, sizeof(reply));
		CU_ASSERT_FATAL(nbd_get32(reply.len) < sizeof(skipped));
		get(fd, skipped, nbd_get32(reply.len));
	} while (nbd_get32(reply.type) != NBD_REP_ACK);
}

static int client_open(void)
{
	static const char contexts[] = "\0\0\0\0\0\0\0\2\0\0\0\17base:allocation"
				       "\0\0\0\25qemu:allocation-depth";
	const __be32 flags = nbd_put32(NBD_FLAG_C_FIXED_NEWSTYLE);
	int fd = connect_client();

	put(fd, &flags, sizeof(flags));
	client_option(fd, NBD_OPT_STRUCTURED_REPLY, "", 0);
	client_option(fd, NBD_OPT_SET_META_CONTEXT, contexts, sizeof(contexts) - 1);
	client_option(fd, NBD_OPT_GO, "\0\0\0\0\0", 6);
	return fd;
}

static void client_send(int fd, u16 type, u16 flags, u64 offset, u32 len)
{
	struct nbd_wire_request wire = {
		nbd_put32(NBD_REQUEST_MAGIC), nbd_put16(flags), nbd_put16(type),
		nbd_put64(offset), nbd_put64(offset), nbd_put32(len),
	};

	put(fd, &wire, sizeof(wire));
}

/* One reply; the payload of its chunk goes to @payload. Returns the error. */
static u32 client_reply(int fd, void *payload, u32 room)
{
	struct nbd_wire_chunk chunk;
	__be32 rest;

	get(fd, &chunk, sizeof(struct nbd_wire_simple_reply));
	if (nbd_get32(chunk.magic) == NBD_SIMPLE_REPLY_MAGIC)
		return nbd_get32(((struct nbd_wire_simple_reply *)&chunk)->error);
	get(fd, &rest, sizeof(rest));
	CU_ASSERT_FATAL(nbd_get32(rest) <= room);
	get(fd, payload, nbd_get32(rest));
	if (nbd_get16(chunk.type) != NBD_REPLY_TYPE_ERROR)
		return 0;
	memcpy(&rest, payload, sizeof(rest));
	return nbd_get32(rest);
}

static struct transport *record_start(u32 nr_loops)
{
	struct nbd_options options = { .socket = socket_path, .nr_loops = nr_loops };
	struct transport *t = NULL;
	struct qc_err err = { 0 };

	memset(&recorder.target, 0, sizeof(recorder.target));
	CDS_INIT_LIST_HEAD(&recorder.target.attached);
	recorder.target.type = &record_type;
	recorder.target.size_bytes = RECORD_BYTES;
	recorder.target.limits = (struct target_limits){
		.logical_block = 512, .discard_granularity = 512,
		.max_discard = 1u << 28, .max_write_zeroes = 1u << 29,
	};
	recorder.nr = 0;
	recorder.most_held = 0;
	recorder.fail_at = UINT64_MAX;
	CU_ASSERT_EQUAL_FATAL(nbd_create(&recorder.target, &options, &t, &err), 0);
	CU_ASSERT_EQUAL_FATAL(t->ops->start(t, &err), 0);
	return t;
}

static void record_stop(struct transport *t, int fd)
{
	close(fd);
	CU_ASSERT_EQUAL(t->ops->stop(t, true, NULL), 0);
	t->ops->destroy(t);
}

static u32 recorded(void)
{
	u32 nr;

	pthread_mutex_lock(&recorder.lock);
	nr = recorder.nr;
	pthread_mutex_unlock(&recorder.lock);
	return nr;
}

/*
 * What arrived is [@offset, @offset + @len), each byte once, in @nr requests of
 * @op, at most @held at a time.
 */
static void check_cut(u8 op, u8 flags, u64 offset, u64 len, u32 nr, u32 held)
{
	u64 sum = 0, first = UINT64_MAX, end = 0;
	u32 i;

	pthread_mutex_lock(&recorder.lock);
	CU_ASSERT_EQUAL(recorder.nr, nr);
	for (i = 0; i < recorder.nr; i++) {
		struct record *r = &recorder.records[i];

		CU_ASSERT_EQUAL(r->op, op);
		CU_ASSERT_EQUAL(r->flags, flags);
		sum += r->len;
		first = min(first, r->offset);
		end = max(end, r->offset + r->len);
	}
	CU_ASSERT_EQUAL(sum, len);
	CU_ASSERT_EQUAL(first, offset);
	CU_ASSERT_EQUAL(end, offset + len);
	CU_ASSERT_EQUAL(recorder.most_held, held);
	recorder.nr = 0;
	recorder.most_held = 0;
	pthread_mutex_unlock(&recorder.lock);
}

/* ---- what the target gets ----------------------------------------------------- */

static void test_flags_reach_target(void)
{
	static const struct {
		u16 type, flags;
		u8 op, expected;
	} cases[] = {
		{ NBD_CMD_WRITE_ZEROES, 0, REQ_WRITE_ZEROES, 0 },
		{ NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_FUA, REQ_WRITE_ZEROES, REQ_FUA },
		{ NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_NO_HOLE, REQ_WRITE_ZEROES, REQ_NOUNMAP },
		{ NBD_CMD_TRIM, NBD_CMD_FLAG_FUA, REQ_DISCARD, REQ_FUA },
		{ NBD_CMD_TRIM, 0, REQ_DISCARD, 0 },
		{ NBD_CMD_READ, NBD_CMD_FLAG_FUA, REQ_READ, 0 },
		{ NBD_CMD_WRITE, NBD_CMD_FLAG_FUA, REQ_WRITE, REQ_FUA },
		{ NBD_CMD_WRITE, 0, REQ_WRITE, 0 },
	};
	struct transport *t = record_start(1);
	char data[4096] = { 0 }, answer[5000];
	int fd = client_open();
	size_t i;

	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		client_send(fd, cases[i].type, cases[i].flags, 8192, sizeof(data));
		if (cases[i].type == NBD_CMD_WRITE)
			put(fd, data, sizeof(data));
		CU_ASSERT_EQUAL(client_reply(fd, answer, sizeof(answer)), 0);
		check_cut(cases[i].op, cases[i].expected, 8192, sizeof(data), 1, 1);
	}
	client_send(fd, NBD_CMD_FLUSH, 0, 0, 0);
	CU_ASSERT_EQUAL(client_reply(fd, answer, sizeof(answer)), 0);
	check_cut(REQ_FLUSH, 0, 0, 0, 1, 1);
	record_stop(t, fd);
}

static void test_cut_to_size(void)
{
	struct transport *t = record_start(1);
	u32 len = 9 * MiB + 512;
	u8 *data = calloc(1, len + 64);
	int fd = client_open();
	u32 i, wrong = 0;

	client_send(fd, NBD_CMD_READ, 0, MiB, len);
	CU_ASSERT_EQUAL(client_reply(fd, data, len + 64), 0);
	check_cut(REQ_READ, 0, MiB, len, 10, NBD_NR_PARTS);
	for (i = 0; i < len; i++) /* each piece is filled with its number, after 8 bytes */
		wrong += data[8 + i] != 1 + i / QC_MAX_REQUEST_BYTES;
	CU_ASSERT_EQUAL(wrong, 0);

	client_send(fd, NBD_CMD_TRIM, 0, 4096, 3u << 30);
	CU_ASSERT_EQUAL(client_reply(fd, data, len), 0);
	check_cut(REQ_DISCARD, 0, 4096, 3u << 30, 12, NBD_NR_PARTS);

	client_send(fd, NBD_CMD_WRITE_ZEROES, 0, 512, (3u << 30) + 512);
	CU_ASSERT_EQUAL(client_reply(fd, data, len), 0);
	check_cut(REQ_WRITE_ZEROES, 0, 512, (3u << 30) + 512ull, 7, NBD_NR_PARTS);
	free(data);
	record_stop(t, fd);
}

static void test_failing_part(void)
{
	struct transport *t = record_start(1);
	u32 len = 8 * MiB;
	u8 *data = calloc(1, len + 64);
	int fd = client_open();
	int i;

	for (i = 0; i < 8; i++) {
		fail_at(i * MiB);
		client_send(fd, NBD_CMD_READ, 0, 0, len);
		CU_ASSERT_EQUAL(client_reply(fd, data, len + 64), NBD_EIO);
		client_send(fd, NBD_CMD_WRITE, 0, 0, len);
		put(fd, data, len);
		CU_ASSERT_EQUAL(client_reply(fd, data, len), NBD_EIO);
		fail_at(UINT64_MAX);
		client_send(fd, NBD_CMD_READ, 0, 0, 4096);
		CU_ASSERT_EQUAL(client_reply(fd, data, len), 0);
	}
	free(data);
	record_stop(t, fd);
}

/* ---- block status ----------------------------------------------------------------- */

/* The two chunks of an answer: number of extents, bytes, and the first extent. */
struct answer {
	u32 nr;
	u64 len;
	struct nbd_wire_extent first;
};

static void client_status(int fd, u16 flags, u64 offset, u32 len, struct answer answers[2])
{
	u32 room = 8 + NBD_MAX_EXTENTS * sizeof(struct nbd_wire_extent), i;
	struct nbd_wire_extent *extents;
	u8 *payload = malloc(room);
	struct nbd_wire_chunk head;

	client_send(fd, NBD_CMD_BLOCK_STATUS, flags, offset, len);
	memset(answers, 0, 2 * sizeof(*answers));
	do {
		get(fd, &head, sizeof(head));
		CU_ASSERT_EQUAL_FATAL(nbd_get16(head.type), NBD_REPLY_TYPE_BLOCK_STATUS);
		CU_ASSERT_FATAL(nbd_get32(head.len) <= room);
		get(fd, payload, nbd_get32(head.len));
		extents = (struct nbd_wire_extent *)(payload + 4);
		answers->nr = (nbd_get32(head.len) - 4) / sizeof(*extents);
		answers->first = extents[0];
		for (i = 0; i < answers->nr; i++)
			answers->len += nbd_get32(extents[i].len);
		answers++;
	} while (!(nbd_get16(head.flags) & NBD_REPLY_FLAG_DONE));
	free(payload);
}

static void test_block_status(void)
{
	struct transport *t = record_start(1);
	int fd = client_open();
	struct answer a[2];

	/* Kinds 0 0 1 are one of base:allocation, 0 0 one of depth. */
	client_status(fd, 0, 0, 8 * STATUS_PIECE, a);
	CU_ASSERT_EQUAL(a[0].nr, 4);
	CU_ASSERT_EQUAL(nbd_get32(a[0].first.len), 3 * STATUS_PIECE);
	CU_ASSERT_EQUAL(nbd_get32(a[0].first.flags), 0);
	CU_ASSERT_EQUAL(a[1].nr, 6);
	CU_ASSERT_EQUAL(nbd_get32(a[1].first.len), 2 * STATUS_PIECE);
	CU_ASSERT_EQUAL(nbd_get32(a[1].first.flags), 1);
	CU_ASSERT_EQUAL(a[0].len, 8 * STATUS_PIECE);
	CU_ASSERT_EQUAL(a[1].len, 8 * STATUS_PIECE);

	client_status(fd, 0, 3 * STATUS_PIECE + 512, 1024, a);
	CU_ASSERT_EQUAL(a[0].nr, 1);
	CU_ASSERT_EQUAL(a[0].len, 1024);
	CU_ASSERT_EQUAL(nbd_get32(a[0].first.flags), NBD_STATE_HOLE | NBD_STATE_ZERO);
	CU_ASSERT_EQUAL(nbd_get32(a[1].first.flags), 0);

	client_status(fd, NBD_CMD_FLAG_REQ_ONE, 512, 64 * STATUS_PIECE, a);
	CU_ASSERT_EQUAL(a[0].nr, 1);
	CU_ASSERT_EQUAL(a[1].nr, 1);
	CU_ASSERT_EQUAL(a[1].len, 2 * STATUS_PIECE - 512);
	record_stop(t, fd);
}

static void test_block_status_long(void)
{
	struct transport *t = record_start(1);
	int fd = client_open();
	struct answer a[2];

	/* Several questions to the target, all of it answered. */
	client_status(fd, 0, 0, 1024 * STATUS_PIECE, a);
	CU_ASSERT_EQUAL(a[0].nr, 512);
	CU_ASSERT_EQUAL(a[0].len, 1024ull * STATUS_PIECE);
	CU_ASSERT_EQUAL(a[1].nr, 768);
	CU_ASSERT_EQUAL(recorded(), 1024 / NBD_STATUS_BATCH);

	/* More than fits: as much as fits, of the context that is full first. */
	client_status(fd, 0, 0, 0xfffffe00, a);
	CU_ASSERT_EQUAL(a[1].nr, NBD_MAX_EXTENTS);
	CU_ASSERT_TRUE(a[0].nr <= NBD_MAX_EXTENTS);
	CU_ASSERT_TRUE(a[0].len >= a[1].len && a[1].len > 0);
	CU_ASSERT_TRUE(a[0].len < 0xfffffe00);
	record_stop(t, fd);
}

/* ---- loops --------------------------------------------------------------------------- */

static void test_loops_share(void)
{
	struct transport *t = record_start(3);
	struct answer a[2];
	u32 i, j, same;
	int fds[6];

	for (i = 0; i < ARRAY_SIZE(fds); i++) {
		fds[i] = client_open();
		client_status(fds[i], 0, 0, 512, a);
	}
	CU_ASSERT_EQUAL_FATAL(recorded(), ARRAY_SIZE(fds));
	for (i = 0; i < ARRAY_SIZE(fds); i++) {
		for (j = 0, same = 0; j < ARRAY_SIZE(fds); j++)
			same += recorder.records[i].loop == recorder.records[j].loop;
		CU_ASSERT_EQUAL(same, 2);
		if (i)
			close(fds[i]);
	}
	record_stop(t, fds[0]);
}

static const struct unit_test tests[] = {
	{ "errors of the protocol", test_errors },
	{ "preferred block size", test_preferred_block },
	{ "extents are merged and bounded", test_extents_merge },
	{ "buffers and their cost", test_pieces },
	{ "replies with an error", test_error_replies },
	{ "short sends", test_short_sends },
	{ "options are checked", test_options },
	{ "start, use and stop", test_start_and_stop },
	{ "one export for one socket", test_second_export_refused },
	{ "status", test_status },
	{ "flags reach the target", test_flags_reach_target },
	{ "requests are cut to size", test_cut_to_size },
	{ "one part fails", test_failing_part },
	{ "block status: merged, cut, one", test_block_status },
	{ "block status: many extents", test_block_status_long },
	{ "connections are spread over the loops", test_loops_share },
	{ NULL, NULL },
};

int main(void)
{
	int ret;

	if (!mkdtemp(directory))
		return 2;
	snprintf(socket_path, sizeof(socket_path), "%s/nbd.sock", directory);
	ret = unit_main("nbd", tests);
	rmdir(directory);
	return ret;
}
