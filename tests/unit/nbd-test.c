// SPDX-License-Identifier: GPL-2.0-or-later
/* Unit tests of the NBD server: what is pure, and an export from start to stop. */
#include "../../ublk-target/transport/nbd-private.h"
#include "unit.h"

#include <errno.h>
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

static int connect_client(void)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	struct nbd_wire_greeting greeting;
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	memcpy(address.sun_path, socket_path, sizeof(socket_path));
	CU_ASSERT_EQUAL_FATAL(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
	CU_ASSERT_EQUAL(recv(fd, &greeting, sizeof(greeting), MSG_WAITALL), sizeof(greeting));
	CU_ASSERT_EQUAL(nbd_get64(greeting.init_magic), NBD_INIT_MAGIC);
	return fd;
}

static void test_start_and_stop(void)
{
	struct target *ti = create_target();
	struct transport *t = create_export(ti);
	struct qc_err err = { 0 };
	struct stat st;
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
		CU_ASSERT_EQUAL(recv(fd, &byte, 1, 0), 0);
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

static const struct unit_test tests[] = {
	{ "errors of the protocol", test_errors },
	{ "preferred block size", test_preferred_block },
	{ "extents are merged and bounded", test_extents_merge },
	{ "buffers and their cost", test_pieces },
	{ "replies with an error", test_error_replies },
	{ "options are checked", test_options },
	{ "start, use and stop", test_start_and_stop },
	{ "one export for one socket", test_second_export_refused },
	{ "status", test_status },
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
