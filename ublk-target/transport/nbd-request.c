// SPDX-License-Identifier: GPL-2.0-or-later
/* NBD requests: from the header on the wire through the target to the reply. */
#include "nbd-private.h"

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/*
 * A request takes a slot and, for data, memory: step ADMIT waits for both. It
 * is cut into sub-requests that the target takes, NBD_NR_PARTS of them at a
 * time; those of a write start as soon as their piece of the payload is there.
 * nbd_slot_run() is the only driver: it starts parts until the command has
 * none left, and queues the reply when the last one has ended. A part that the
 * target ends at once is seen by the same loop, so nothing recurses.
 */

/*
 * struct nbd_command - one kind of request
 * @issue: start @part with what comes next; false when there is nothing (yet)
 * @ended: look at what the target answered; 0 or -errno. May be NULL.
 * @flags: allowed beside NBD_CMD_FLAG_FUA, which every command may carry
 * @feature: transmission flag without which the client must not send it
 * @ranged: has offset and length
 * @data: moves that many bytes through memory
 * @beyond: the error beyond the end of the export
 */
struct nbd_command {
	const char *name;
	bool (*issue)(struct nbd_slot *slot, struct nbd_part *part);
	int (*ended)(struct nbd_slot *slot, struct nbd_part *part, int error);
	u16 flags;
	u16 feature;
	u8 op; /* enum req_op */
	bool ranged;
	bool data;
	bool writes;
	int beyond;
};

/* ---- parts ------------------------------------------------------------ */

static void part_end_io(struct request *req, int error)
{
	struct nbd_part *part = container_of(req, struct nbd_part, req);
	struct nbd_slot *slot = part->slot;

	assert_on_loop(req->loop);
	part->busy = false;
	slot->nr_busy--;
	if (slot->command->ended)
		error = slot->command->ended(slot, part, error);
	if (error && !slot->error)
		slot->error = error;
	nbd_slot_run(slot);
}

static const struct request_ops part_ops = { .end_io = part_end_io };

static u8 part_flags(const struct nbd_slot *slot)
{
	u8 flags = 0;

	if (slot->command->writes && slot->flags & NBD_CMD_FLAG_FUA)
		flags |= REQ_FUA;
	if (slot->flags & NBD_CMD_FLAG_NO_HOLE)
		flags |= REQ_NOUNMAP;
	return flags;
}

/* The caller has accounted for it: the target may end it before this returns. */
static void part_submit(struct nbd_slot *slot, struct nbd_part *part, u32 from, u32 len,
			void *base)
{
	struct nbd *nbd = slot->conn->nbd;
	struct request *req = &part->req;

	req->ops = &part_ops;
	req->loop = slot->conn->home->loop;
	req->target = nbd->transport.target;
	req->offset = slot->offset + from;
	req->len = len;
	req->op = slot->command->op;
	req->flags = part_flags(slot);
	req->base = base;
	req->tag = &slot->tag;
	part->busy = true;
	slot->nr_busy++;
	target_submit(req->target, req);
}

/* Read and write: one piece, once it is there. */
static bool issue_data(struct nbd_slot *slot, struct nbd_part *part)
{
	u32 from = slot->next;
	u32 len = min(slot->len - from, NBD_PIECE_BYTES);

	if (!len || slot->ready - from < len)
		return false;
	slot->next += len;
	part_submit(slot, part, from, len, slot->pieces[from / NBD_PIECE_BYTES]);
	return true;
}

/* Trim and write zeroes: as much as the target takes at once. */
static bool issue_range(struct nbd_slot *slot, struct nbd_part *part)
{
	const struct target_limits *limits = &slot->conn->nbd->transport.target->limits;
	u32 most = slot->command->op == REQ_DISCARD ? limits->max_discard :
						      limits->max_write_zeroes;
	u32 from = slot->next;
	u32 len;

	most = ALIGN_DOWN(min(most, QC_MAX_DISCARD_BYTES), limits->logical_block);
	len = min(slot->len - from, max(most, limits->logical_block));
	if (!len)
		return false;
	slot->next += len;
	part_submit(slot, part, from, len, NULL);
	return true;
}

/* Flush has no length: one byte stands for it. */
static bool issue_flush(struct nbd_slot *slot, struct nbd_part *part)
{
	if (slot->next == slot->ready)
		return false;
	slot->next = slot->ready;
	part_submit(slot, part, 0, 0, NULL);
	return true;
}

/* ---- block status ----------------------------------------------------- */

bool nbd_extents_add(struct nbd_extents *list, u64 len, u32 flags)
{
	struct nbd_wire_extent *last = list->nr ? &list->extents[list->nr - 1] : NULL;

	if (last && nbd_get32(last->flags) == flags) {
		last->len = nbd_put32(nbd_get32(last->len) + len);
	} else {
		if (list->nr == list->max)
			return false;
		list->extents[list->nr++] = (struct nbd_wire_extent){
			.len = nbd_put32(len),
			.flags = nbd_put32(flags),
		};
	}
	list->len += len;
	return true;
}

static void status_area_init(struct nbd_slot *slot)
{
	struct nbd_status_area *area = slot->pieces[0];
	u32 i;

	area->full = false;
	for (i = 0; i < NBD_NR_CONTEXTS; i++)
		area->lists[i] = (struct nbd_extents){
			.max = slot->flags & NBD_CMD_FLAG_REQ_ONE ? 1 : NBD_MAX_EXTENTS,
			.extents = area->extents[i],
		};
}

/* One question after the other: where the next begins, the answer tells. */
static bool issue_status(struct nbd_slot *slot, struct nbd_part *part)
{
	struct nbd_status_area *area = slot->pieces[0];
	u32 len = min(slot->len - slot->next, QC_MAX_DISCARD_BYTES);

	if (slot->nr_busy || area->full || !len)
		return false;
	part->req.status = area->answers;
	part->req.status_max = NBD_STATUS_BATCH;
	part->req.status_nr = 0;
	part_submit(slot, part, slot->next, len, NULL);
	return true;
}

static bool add_answer(struct nbd_slot *slot, const struct block_status *answer, u64 len)
{
	struct nbd_status_area *area = slot->pieces[0];
	u32 wanted = slot->conn->contexts;
	u32 allocation = (answer->allocated ? 0 : NBD_STATE_HOLE) |
			 (answer->zero ? NBD_STATE_ZERO : 0);
	bool fits = true;

	if (wanted & (1u << NBD_CONTEXT_ALLOCATION))
		fits &= nbd_extents_add(&area->lists[NBD_CONTEXT_ALLOCATION], len, allocation);
	if (wanted & (1u << NBD_CONTEXT_DEPTH))
		fits &= nbd_extents_add(&area->lists[NBD_CONTEXT_DEPTH], len, answer->depth);
	return fits;
}

static int ended_status(struct nbd_slot *slot, struct nbd_part *part, int error)
{
	struct nbd_status_area *area = slot->pieces[0];
	struct request *req = &part->req;
	u32 before = slot->next;
	u64 len;
	u32 i;

	/* A target that knows nothing of holes: all of it is data of the one layer. */
	if (error == -EOPNOTSUPP) {
		area->answers[0] = (struct block_status){
			.len = req->len, .depth = 1, .allocated = true,
		};
		req->status_nr = 1;
		error = 0;
	}
	if (error)
		return error;
	for (i = 0; i < req->status_nr && slot->next < slot->len && !area->full; i++) {
		len = min(area->answers[i].len, (u64)(slot->len - slot->next));
		if (add_answer(slot, &area->answers[i], len))
			slot->next += len;
		else
			area->full = true;
	}
	return area->full || slot->next > before ? 0 : -EIO;
}

/* ---- commands --------------------------------------------------------- */

static const struct nbd_command commands[] = {
	[NBD_CMD_READ] = {
		.name = "read", .op = REQ_READ, .issue = issue_data,
		.ranged = true, .data = true, .beyond = -EINVAL,
		.flags = NBD_CMD_FLAG_DF,
	},
	[NBD_CMD_WRITE] = {
		.name = "write", .op = REQ_WRITE, .issue = issue_data,
		.ranged = true, .data = true, .writes = true, .beyond = -ENOSPC,
	},
	[NBD_CMD_FLUSH] = {
		.name = "flush", .op = REQ_FLUSH, .issue = issue_flush,
	},
	[NBD_CMD_TRIM] = {
		.name = "trim", .op = REQ_DISCARD, .issue = issue_range,
		.ranged = true, .writes = true, .beyond = -EINVAL,
		.feature = NBD_FLAG_SEND_TRIM,
	},
	[NBD_CMD_WRITE_ZEROES] = {
		.name = "write zeroes", .op = REQ_WRITE_ZEROES, .issue = issue_range,
		.ranged = true, .writes = true, .beyond = -ENOSPC,
		.feature = NBD_FLAG_SEND_WRITE_ZEROES, .flags = NBD_CMD_FLAG_NO_HOLE,
	},
	[NBD_CMD_BLOCK_STATUS] = {
		.name = "block status", .op = REQ_BLOCK_STATUS, .issue = issue_status,
		.ended = ended_status, .ranged = true, .beyond = -EINVAL,
		.flags = NBD_CMD_FLAG_REQ_ONE,
	},
};

static const struct nbd_command *find_command(u16 type)
{
	if (type >= ARRAY_SIZE(commands) || !commands[type].name)
		return NULL;
	return &commands[type];
}

/* Note why the request is refused; returns @code. */
__attribute__((format(printf, 3, 4)))
static int refuse(struct nbd_slot *slot, int code, const char *fmt, ...)
{
	const char *object = nbd_object(slot->conn->nbd);
	va_list ap;
	int n;

	n = snprintf(slot->text, sizeof(slot->text), "%.64s: %s: ", object,
		     slot->command ? slot->command->name : "request");
	va_start(ap, fmt);
	vsnprintf(slot->text + n, sizeof(slot->text) - n, fmt, ap);
	va_end(ap);
	return code;
}

static int check_flags(struct nbd_slot *slot)
{
	const struct nbd_command *command = slot->command;
	u16 known = NBD_CMD_FLAG_FUA | command->flags;

	if (!slot->conn->structured)
		known &= ~NBD_CMD_FLAG_DF;
	if (slot->flags & ~known)
		return refuse(slot, -EINVAL, "unknown flags (0x%x), allowed 0x%x", slot->flags,
			      known);
	if (command->writes && nbd_is_read_only(slot->conn->nbd))
		return refuse(slot, -EPERM, "export is read-only, expected no writes");
	if (command->feature & ~slot->conn->flags)
		return refuse(slot, -EINVAL, "not offered by this export");
	if (command->op == REQ_BLOCK_STATUS && !slot->conn->contexts)
		return refuse(slot, -EINVAL, "no meta context agreed, expected at least one");
	return 0;
}

static int check_range(struct nbd_slot *slot)
{
	u32 block = slot->conn->nbd->transport.target->limits.logical_block;
	u64 size = nbd_size_bytes(slot->conn->nbd);

	if (slot->command->data && slot->len > NBD_MAX_PAYLOAD_BYTES)
		return refuse(slot, -EINVAL, "too long (%u bytes), at most %u", slot->len,
			      NBD_MAX_PAYLOAD_BYTES);
	if (!IS_ALIGNED(slot->offset | slot->len, block))
		return refuse(slot, -EINVAL, "not aligned (%llu+%u), must be in multiples of %u",
			      (unsigned long long)slot->offset, slot->len, block);
	if (slot->offset > size || slot->len > size - slot->offset)
		return refuse(slot, slot->command->beyond, "beyond the end (%llu+%u), size is %llu",
			      (unsigned long long)slot->offset, slot->len,
			      (unsigned long long)size);
	if (slot->command->op == REQ_BLOCK_STATUS && !slot->len)
		return refuse(slot, -EINVAL, "no length (0), expected at least %u", block);
	return 0;
}

static int check_request(struct nbd_slot *slot)
{
	int ret;

	if (!slot->command)
		return refuse(slot, -EINVAL, "unknown type (%u), expected a command of the "
			      "NBD protocol that was agreed", slot->type);
	ret = check_flags(slot);
	if (ret)
		return ret;
	if (slot->command->ranged)
		return check_range(slot);
	if (slot->offset || slot->len)
		return refuse(slot, -EINVAL, "offset and length (%llu+%u), must be 0",
			      (unsigned long long)slot->offset, slot->len);
	return 0;
}

/* ---- the slot --------------------------------------------------------- */

static struct nbd_part *idle_part(struct nbd_slot *slot)
{
	u32 i;

	for (i = 0; i < NBD_NR_PARTS; i++)
		if (!slot->parts[i].busy)
			return &slot->parts[i];
	return NULL;
}

static bool may_issue(const struct nbd_slot *slot)
{
	return !slot->error && !slot->aborted && slot->conn->life != NBD_DEAD;
}

/* The rest of a payload that nobody wants any more must be received all the same. */
static bool is_over(const struct nbd_slot *slot)
{
	return !slot->nr_busy && (slot->aborted || slot->conn->receiving != slot);
}

void nbd_slot_run(struct nbd_slot *slot)
{
	struct nbd_conn *c = slot->conn;
	struct nbd_part *part;

	assert_on_loop(c->home->loop);
	assert(slot->next <= slot->ready || slot->aborted);
	if (slot->running)
		return;
	slot->running = true;
	do {
		part = idle_part(slot);
	} while (part && may_issue(slot) && slot->command->issue(slot, part));
	slot->running = false;
	if (!is_over(slot))
		return;
	if (slot->aborted || c->life == NBD_DEAD) {
		nbd_slot_release(slot);
		return;
	}
	cds_list_add_tail(&slot->node, &c->out.waiting);
	nbd_conn_kick(c);
}

void nbd_slot_abort(struct nbd_slot *slot)
{
	assert(slot->conn->receiving == slot);
	slot->conn->receiving = NULL;
	slot->aborted = true;
	nbd_slot_run(slot);
}

/* ---- steps ------------------------------------------------------------ */

int nbd_step_request(struct nbd_conn *c)
{
	u32 magic;
	int ret;

	ret = nbd_in_need(c, sizeof(c->request));
	if (ret != NBD_NEXT)
		return ret;
	memcpy(&c->request, c->in.buf + c->in.pos, sizeof(c->request));
	c->in.pos += sizeof(c->request);
	magic = nbd_get32(c->request.magic);
	if (magic != NBD_REQUEST_MAGIC)
		return nbd_conn_complain(c, -EPROTO, "wrong magic (0x%x), expected 0x%x", magic,
					 NBD_REQUEST_MAGIC);
	c->step = NBD_STEP_ADMIT;
	if (nbd_get16(c->request.type) == NBD_CMD_DISC)
		nbd_conn_set_life(c, NBD_DRAINING);
	return NBD_NEXT;
}

static void slot_init(struct nbd_slot *slot, const struct nbd_wire_request *wire)
{
	slot->type = nbd_get16(wire->type);
	slot->command = find_command(slot->type);
	slot->cookie = nbd_get64(wire->cookie);
	slot->offset = nbd_get64(wire->offset);
	slot->len = nbd_get32(wire->len);
	slot->flags = nbd_get16(wire->flags);
	slot->ready = 0;
	slot->next = 0;
	slot->aborted = false;
	slot->text[0] = '\0';
	slot->error = check_request(slot);
}

static u32 memory_bytes(const struct nbd_slot *slot)
{
	if (slot->error)
		return 0;
	if (slot->command->op == REQ_BLOCK_STATUS)
		return sizeof(struct nbd_status_area);
	return slot->command->data ? slot->len : 0;
}

/* Memory as the budget allows: one request is always admitted, alone if need be. */
static int slot_get_memory(struct nbd_slot *slot)
{
	struct nbd_conn *c = slot->conn;
	u32 bytes = memory_bytes(slot);

	if (!bytes)
		return 0;
	if (c->held_bytes && c->held_bytes + nbd_pieces_cost(bytes) > NBD_HELD_BYTES)
		return -EAGAIN;
	slot->error = nbd_pieces_get(slot, bytes);
	if (!slot->error && slot->command->op == REQ_BLOCK_STATUS)
		status_area_init(slot);
	return 0;
}

/* Waits for a slot and memory: a request that ends kicks the connection. */
int nbd_step_admit(struct nbd_conn *c)
{
	struct nbd_slot *slot;

	if (cds_list_empty(&c->free_slots))
		return NBD_WAIT;
	slot = cds_list_first_entry(&c->free_slots, struct nbd_slot, node);
	slot_init(slot, &c->request);
	if (slot_get_memory(slot))
		return NBD_WAIT;
	cds_list_del_init(&slot->node);
	c->nr_slots++;
	c->step = NBD_STEP_REQUEST;
	if (slot->type == NBD_CMD_WRITE && slot->len) {
		c->receiving = slot;
		c->step = NBD_STEP_PAYLOAD;
		return NBD_NEXT;
	}
	slot->ready = slot->command && slot->command->op == REQ_FLUSH ? 1 : slot->len;
	nbd_slot_run(slot);
	return NBD_NEXT;
}

/* Where the next bytes of the payload go, at most @room; NULL: they are dropped. */
static u8 *payload_place(struct nbd_slot *slot, u32 *room)
{
	u32 in_piece = slot->ready % NBD_PIECE_BYTES;

	*room = min(slot->len - slot->ready, NBD_PIECE_BYTES - in_piece);
	if (!slot->tag.bytes)
		return NULL;
	return (u8 *)slot->pieces[slot->ready / NBD_PIECE_BYTES] + in_piece;
}

static void take_payload(struct nbd_conn *c, struct nbd_slot *slot)
{
	u32 room, len;
	u8 *to;

	while (nbd_in_bytes(c) && slot->ready < slot->len) {
		to = payload_place(slot, &room);
		len = min(room, nbd_in_bytes(c));
		if (to)
			memcpy(to, c->in.buf + c->in.pos, len);
		c->in.pos += len;
		slot->ready += len;
	}
}

/* Large pieces go straight to their place, small ones come with what follows. */
int nbd_step_payload(struct nbd_conn *c)
{
	struct nbd_slot *slot = c->receiving;
	u32 room;
	u8 *to;

	take_payload(c, slot);
	if (slot->ready == slot->len) {
		c->receiving = NULL;
		c->step = NBD_STEP_REQUEST;
		nbd_slot_run(slot);
		return NBD_NEXT;
	}
	nbd_slot_run(slot);
	to = payload_place(slot, &room);
	if (room < NBD_DIRECT_BYTES)
		to = NULL;
	return nbd_in_receive(c, to, room);
}

/* ---- replies ---------------------------------------------------------- */

static const struct {
	int error;
	u32 wire;
} errors[] = {
	{ 0, NBD_SUCCESS },
	{ -EPERM, NBD_EPERM },
	{ -EROFS, NBD_EPERM },
	{ -ENOMEM, NBD_ENOMEM },
	{ -EINVAL, NBD_EINVAL },
	{ -ENOSPC, NBD_ENOSPC },
	{ -EDQUOT, NBD_ENOSPC },
	{ -EFBIG, NBD_ENOSPC },
	{ -EOVERFLOW, NBD_EOVERFLOW },
	/* NBD_ENOTSUP is for fast zeroes alone. */
	{ -EOPNOTSUPP, NBD_EINVAL },
	{ -ESHUTDOWN, NBD_ESHUTDOWN },
};

u32 nbd_wire_errno(int error)
{
	u32 i;

	for (i = 0; i < ARRAY_SIZE(errors); i++)
		if (errors[i].error == error)
			return errors[i].wire;
	return NBD_EIO;
}

static struct nbd_wire_chunk chunk(const struct nbd_slot *slot, u16 type, u16 flags, u32 len)
{
	return (struct nbd_wire_chunk){
		.magic = nbd_put32(NBD_STRUCTURED_REPLY_MAGIC),
		.flags = nbd_put16(flags),
		.type = nbd_put16(type),
		.cookie = nbd_put64(slot->cookie),
		.len = nbd_put32(len),
	};
}

static u32 reply_error(struct nbd_slot *slot, struct iovec *iov)
{
	struct nbd_wire_chunk_error *head = &slot->head.error;
	const u32 fixed = sizeof(*head) - sizeof(head->chunk);
	u32 len;

	if (!slot->text[0])
		refuse(slot, 0, "failed (%llu+%u): %s", (unsigned long long)slot->offset,
		       slot->len, strerrordesc_np(-slot->error) ?: "unknown error");
	len = strlen(slot->text);
	head->chunk = chunk(slot, NBD_REPLY_TYPE_ERROR, NBD_REPLY_FLAG_DONE, fixed + len);
	head->error = nbd_put32(nbd_wire_errno(slot->error));
	head->message_len = nbd_put16(len);
	iov[0] = (struct iovec){ head, sizeof(*head) };
	iov[1] = (struct iovec){ slot->text, len };
	return 2;
}

static u32 reply_simple(struct nbd_slot *slot, struct iovec *iov)
{
	slot->head.simple = (struct nbd_wire_simple_reply){
		.magic = nbd_put32(NBD_SIMPLE_REPLY_MAGIC),
		.error = nbd_put32(nbd_wire_errno(slot->error)),
		.cookie = nbd_put64(slot->cookie),
	};
	iov[0] = (struct iovec){ &slot->head.simple, sizeof(slot->head.simple) };
	return 1;
}

/* The head of a read that went well: one chunk for all of it. */
static u32 reply_data(struct nbd_slot *slot, struct iovec *iov)
{
	struct nbd_wire_chunk_data *head = &slot->head.data;

	if (!slot->len) {
		slot->head.none = chunk(slot, NBD_REPLY_TYPE_NONE, NBD_REPLY_FLAG_DONE, 0);
		iov[0] = (struct iovec){ &slot->head.none, sizeof(slot->head.none) };
		return 1;
	}
	head->chunk = chunk(slot, NBD_REPLY_TYPE_OFFSET_DATA, NBD_REPLY_FLAG_DONE,
			    sizeof(head->offset) + slot->len);
	head->offset = nbd_put64(slot->offset);
	iov[0] = (struct iovec){ head, sizeof(*head) };
	return 1;
}

static u32 add_pieces(struct nbd_slot *slot, struct iovec *iov)
{
	u32 nr = DIV_ROUND_UP(slot->len, NBD_PIECE_BYTES);
	u32 i;

	for (i = 0; i < nr; i++)
		iov[i] = (struct iovec){
			slot->pieces[i],
			min(slot->len - i * NBD_PIECE_BYTES, NBD_PIECE_BYTES),
		};
	return nr;
}

/* One chunk for each context that was agreed. */
static u32 reply_status(struct nbd_slot *slot, struct iovec *iov)
{
	struct nbd_status_area *area = slot->pieces[0];
	u32 wanted = slot->conn->contexts;
	u32 nr = 0, i, len;

	for (i = 0; i < NBD_NR_CONTEXTS; i++) {
		if (!(wanted & (1u << i)))
			continue;
		wanted &= ~(1u << i);
		len = area->lists[i].nr * sizeof(struct nbd_wire_extent);
		area->heads[i].chunk = chunk(slot, NBD_REPLY_TYPE_BLOCK_STATUS,
					     wanted ? 0 : NBD_REPLY_FLAG_DONE,
					     sizeof(area->heads[i].context) + len);
		area->heads[i].context = nbd_put32(i);
		iov[nr++] = (struct iovec){ &area->heads[i], sizeof(area->heads[i]) };
		iov[nr++] = (struct iovec){ area->extents[i], len };
	}
	return nr;
}

u32 nbd_slot_reply(struct nbd_slot *slot, struct iovec *iov)
{
	bool structured = slot->conn->structured;
	u32 nr;

	if (slot->error)
		return structured ? reply_error(slot, iov) : reply_simple(slot, iov);
	if (slot->command->op == REQ_BLOCK_STATUS)
		return reply_status(slot, iov);
	if (slot->command->op != REQ_READ)
		return reply_simple(slot, iov);
	nr = structured ? reply_data(slot, iov) : reply_simple(slot, iov);
	return nr + add_pieces(slot, iov + nr);
}
