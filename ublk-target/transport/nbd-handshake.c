// SPDX-License-Identifier: GPL-2.0-or-later
/* The NBD handshake: greeting, options, and what they agree on. */
#include "nbd-private.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

/* ---- reading the data of an option ------------------------------------ */

struct nbd_reader {
	const u8 *pos;
	u32 left;
};

struct nbd_string {
	const char *text;
	u32 len;
};

static int read_bytes(struct nbd_reader *r, u32 len, const void **result)
{
	if (r->left < len)
		return -EINVAL;
	*result = r->pos;
	r->pos += len;
	r->left -= len;
	return 0;
}

static int read_u16(struct nbd_reader *r, u16 *result)
{
	const void *bytes;
	__be16 value;

	if (read_bytes(r, sizeof(value), &bytes))
		return -EINVAL;
	memcpy(&value, bytes, sizeof(value));
	*result = nbd_get16(value);
	return 0;
}

static int read_u32(struct nbd_reader *r, u32 *result)
{
	const void *bytes;
	__be32 value;

	if (read_bytes(r, sizeof(value), &bytes))
		return -EINVAL;
	memcpy(&value, bytes, sizeof(value));
	*result = nbd_get32(value);
	return 0;
}

static int read_string(struct nbd_reader *r, struct nbd_string *result)
{
	const void *bytes;
	u32 len;

	if (read_u32(r, &len) || len > NBD_MAX_STRING_BYTES || read_bytes(r, len, &bytes))
		return -EINVAL;
	*result = (struct nbd_string){ bytes, len };
	return 0;
}

static bool string_is(const struct nbd_string *s, const char *text)
{
	return s->len == strlen(text) && !memcmp(s->text, text, s->len);
}

/* ---- replies ---------------------------------------------------------- */

/* The head of one reply to the option of the moment; @len bytes will follow. */
static void reply_head(struct nbd_conn *c, u32 type, u32 len)
{
	struct nbd_wire_option_reply head = {
		.magic = nbd_put64(NBD_OPTION_REPLY_MAGIC),
		.option = nbd_put32(c->option),
		.type = nbd_put32(type),
		.len = nbd_put32(len),
	};

	nbd_out_append(c, &head, sizeof(head));
}

static int reply_ack(struct nbd_conn *c)
{
	reply_head(c, NBD_REP_ACK, 0);
	return NBD_NEXT;
}

static int reply_error(struct nbd_conn *c, u32 type, const char *text)
{
	reply_head(c, type, strlen(text));
	nbd_out_append(c, text, strlen(text));
	return NBD_NEXT;
}

static int reply_malformed(struct nbd_conn *c)
{
	return reply_error(c, NBD_REP_ERR_INVALID,
			   "option: data malformed, expected the form of the NBD protocol");
}

static int reply_unknown_export(struct nbd_conn *c)
{
	return reply_error(c, NBD_REP_ERR_UNKNOWN,
			   "export: name not known, ask for the list of exports");
}

/* An NBD_REP_INFO that is a string. */
static void reply_info_string(struct nbd_conn *c, u16 info, const char *text)
{
	__be16 type = nbd_put16(info);

	reply_head(c, NBD_REP_INFO, sizeof(type) + strlen(text));
	nbd_out_append(c, &type, sizeof(type));
	nbd_out_append(c, text, strlen(text));
}

static void reply_info_export(struct nbd_conn *c)
{
	struct nbd_wire_info_export info = {
		.type = nbd_put16(NBD_INFO_EXPORT),
		.size = nbd_put64(nbd_size_bytes(c->nbd)),
		.flags = nbd_put16(c->flags),
	};

	reply_head(c, NBD_REP_INFO, sizeof(info));
	nbd_out_append(c, &info, sizeof(info));
}

static void reply_info_block_size(struct nbd_conn *c)
{
	const struct target_limits *limits = &c->nbd->transport.target->limits;
	struct nbd_wire_info_block_size info = {
		.type = nbd_put16(NBD_INFO_BLOCK_SIZE),
		.minimum = nbd_put32(limits->logical_block),
		.preferred = nbd_put32(nbd_preferred_bytes(limits)),
		.max_payload = nbd_put32(NBD_MAX_PAYLOAD_BYTES),
	};

	reply_head(c, NBD_REP_INFO, sizeof(info));
	nbd_out_append(c, &info, sizeof(info));
}

/* ---- options ---------------------------------------------------------- */

static bool is_our_export(const struct nbd_conn *c, const struct nbd_string *name)
{
	return !name->len || string_is(name, c->nbd->name);
}

static u16 transmission_flags(const struct nbd_conn *c)
{
	const struct target_limits *limits = &c->nbd->transport.target->limits;
	u16 flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA |
		    NBD_FLAG_CAN_MULTI_CONN;

	if (c->structured)
		flags |= NBD_FLAG_SEND_DF;
	if (nbd_is_read_only(c->nbd))
		return flags | NBD_FLAG_READ_ONLY;
	if (limits->discard_granularity && limits->max_discard)
		flags |= NBD_FLAG_SEND_TRIM;
	if (limits->max_write_zeroes)
		flags |= NBD_FLAG_SEND_WRITE_ZEROES;
	return flags;
}

static int enter_transmission(struct nbd_conn *c)
{
	nbd_conn_set_life(c, NBD_TRANSMISSION);
	c->step = NBD_STEP_REQUEST;
	return NBD_NEXT;
}

static int option_export_name(struct nbd_conn *c, struct nbd_reader *data)
{
	struct nbd_string name = { (const char *)data->pos, data->left };
	struct nbd_wire_export reply = { 0 };

	if (!is_our_export(c, &name))
		return nbd_conn_complain(c, -ENOENT, "export name not known (%u bytes), "
					 "expected \"%s\" or nothing", name.len, c->nbd->name);
	c->flags = transmission_flags(c);
	reply.size = nbd_put64(nbd_size_bytes(c->nbd));
	reply.flags = nbd_put16(c->flags);
	nbd_out_append(c, &reply, c->no_zeroes ? NBD_EXPORT_SHORT_BYTES : sizeof(reply));
	return enter_transmission(c);
}

static int option_abort(struct nbd_conn *c, struct nbd_reader *data)
{
	reply_ack(c);
	nbd_conn_set_life(c, NBD_DRAINING);
	return NBD_WAIT;
}

static int option_list(struct nbd_conn *c, struct nbd_reader *data)
{
	const char *name = c->nbd->name;
	const char *description = c->nbd->description;
	__be32 name_len = nbd_put32(strlen(name));

	if (data->left)
		return reply_malformed(c);
	reply_head(c, NBD_REP_SERVER, sizeof(name_len) + strlen(name) + strlen(description));
	nbd_out_append(c, &name_len, sizeof(name_len));
	nbd_out_append(c, name, strlen(name));
	nbd_out_append(c, description, strlen(description));
	return reply_ack(c);
}

static int option_starttls(struct nbd_conn *c, struct nbd_reader *data)
{
	return reply_error(c, NBD_REP_ERR_UNSUP,
			   "TLS: not supported, the socket is of this host alone");
}

/* INFO and GO: a name, then the numbers of what the client wants to know. */
static int option_info(struct nbd_conn *c, struct nbd_reader *data)
{
	struct nbd_string name;
	u16 nr, info;
	u32 wanted = 0;

	if (read_string(data, &name) || read_u16(data, &nr) || data->left != 2u * nr)
		return reply_malformed(c);
	if (!is_our_export(c, &name))
		return reply_unknown_export(c);
	while (!read_u16(data, &info))
		wanted |= info < 32 ? 1u << info : 0;
	c->flags = transmission_flags(c);
	reply_info_export(c);
	reply_info_block_size(c);
	if (wanted & (1u << NBD_INFO_NAME))
		reply_info_string(c, NBD_INFO_NAME, c->nbd->name);
	if (wanted & (1u << NBD_INFO_DESCRIPTION) && c->nbd->description[0])
		reply_info_string(c, NBD_INFO_DESCRIPTION, c->nbd->description);
	reply_ack(c);
	return c->option == NBD_OPT_GO ? enter_transmission(c) : NBD_NEXT;
}

static int option_structured_reply(struct nbd_conn *c, struct nbd_reader *data)
{
	if (data->left)
		return reply_malformed(c);
	if (c->structured)
		return reply_error(c, NBD_REP_ERR_INVALID,
				   "structured replies: agreed before, expected once");
	c->structured = true;
	return reply_ack(c);
}

static const struct {
	const char *all; /* the query that lists them */
	const char *name;
} contexts[NBD_NR_CONTEXTS] = {
	[NBD_CONTEXT_ALLOCATION] = { "base:", "base:allocation" },
	[NBD_CONTEXT_DEPTH] = { "qemu:", "qemu:allocation-depth" },
};

static u32 match_contexts(const struct nbd_string *query, bool list)
{
	u32 mask = 0, i;

	for (i = 0; i < NBD_NR_CONTEXTS; i++)
		if (string_is(query, contexts[i].name) ||
		    (list && string_is(query, contexts[i].all)))
			mask |= 1u << i;
	return mask;
}

static int read_queries(struct nbd_reader *data, bool list, u32 *result)
{
	struct nbd_string query;
	u32 nr, i;

	if (read_u32(data, &nr))
		return -EINVAL;
	*result = list && !nr ? (1u << NBD_NR_CONTEXTS) - 1 : 0;
	for (i = 0; i < nr; i++) {
		if (read_string(data, &query))
			return -EINVAL;
		*result |= match_contexts(&query, list);
	}
	return data->left ? -EINVAL : 0;
}

static void reply_contexts(struct nbd_conn *c, u32 mask, bool list)
{
	__be32 id;
	u32 i;

	for (i = 0; i < NBD_NR_CONTEXTS; i++) {
		if (!(mask & (1u << i)))
			continue;
		/* A list gives no ids, they would mean nothing. */
		id = nbd_put32(list ? 0 : i);
		reply_head(c, NBD_REP_META_CONTEXT, sizeof(id) + strlen(contexts[i].name));
		nbd_out_append(c, &id, sizeof(id));
		nbd_out_append(c, contexts[i].name, strlen(contexts[i].name));
	}
}

/* LIST and SET. A SET replaces what was set before, even when it fails. */
static int option_meta_context(struct nbd_conn *c, struct nbd_reader *data)
{
	bool list = c->option == NBD_OPT_LIST_META_CONTEXT;
	struct nbd_string name;
	u32 mask;

	if (!list)
		c->contexts = 0;
	if (!c->structured)
		return reply_error(c, NBD_REP_ERR_INVALID,
				   "meta contexts: no structured replies agreed, "
				   "expected before");
	if (read_string(data, &name) || read_queries(data, list, &mask))
		return reply_malformed(c);
	if (!is_our_export(c, &name))
		return reply_unknown_export(c);
	if (!list)
		c->contexts = mask;
	reply_contexts(c, mask, list);
	return reply_ack(c);
}

static const struct {
	u32 option;
	int (*fn)(struct nbd_conn *c, struct nbd_reader *data);
} options[] = {
	{ NBD_OPT_EXPORT_NAME, option_export_name },
	{ NBD_OPT_ABORT, option_abort },
	{ NBD_OPT_LIST, option_list },
	{ NBD_OPT_STARTTLS, option_starttls },
	{ NBD_OPT_INFO, option_info },
	{ NBD_OPT_GO, option_info },
	{ NBD_OPT_STRUCTURED_REPLY, option_structured_reply },
	{ NBD_OPT_LIST_META_CONTEXT, option_meta_context },
	{ NBD_OPT_SET_META_CONTEXT, option_meta_context },
};

/* The longest answer is that to NBD_OPT_INFO: four infos and the end. */
static_assert(5 * sizeof(struct nbd_wire_option_reply) + 2 * (2 + NBD_MAX_STRING_BYTES) +
	      sizeof(struct nbd_wire_info_export) + sizeof(struct nbd_wire_info_block_size) <=
	      NBD_OUT_BYTES, "all replies to one option fit");

static int run_option(struct nbd_conn *c, struct nbd_reader *data)
{
	u32 i;

	for (i = 0; i < ARRAY_SIZE(options); i++)
		if (options[i].option == c->option)
			return options[i].fn(c, data);
	return reply_error(c, NBD_REP_ERR_UNSUP, "option: not supported");
}

/* ---- steps ------------------------------------------------------------ */

void nbd_greet(struct nbd_conn *c)
{
	struct nbd_wire_greeting greeting = {
		.init_magic = nbd_put64(NBD_INIT_MAGIC),
		.option_magic = nbd_put64(NBD_OPTION_MAGIC),
		.flags = nbd_put16(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES),
	};

	nbd_out_append(c, &greeting, sizeof(greeting));
	c->step = NBD_STEP_CLIENT_FLAGS;
}

int nbd_step_client_flags(struct nbd_conn *c)
{
	const u32 known = NBD_FLAG_C_FIXED_NEWSTYLE | NBD_FLAG_C_NO_ZEROES;
	struct nbd_wire_client_flags wire;
	u32 flags;
	int ret;

	ret = nbd_in_need(c, sizeof(wire));
	if (ret != NBD_NEXT)
		return ret;
	memcpy(&wire, c->in.buf + c->in.pos, sizeof(wire));
	c->in.pos += sizeof(wire);
	flags = nbd_get32(wire.flags);
	if (flags & ~known)
		return nbd_conn_complain(c, -EPROTO, "unknown flags (0x%x), allowed 0x%x",
					 flags, known);
	c->fixed_newstyle = flags & NBD_FLAG_C_FIXED_NEWSTYLE;
	c->no_zeroes = flags & NBD_FLAG_C_NO_ZEROES;
	c->step = NBD_STEP_OPTION;
	return NBD_NEXT;
}

static int check_option(struct nbd_conn *c, u64 magic)
{
	if (magic != NBD_OPTION_MAGIC)
		return nbd_conn_complain(c, -EPROTO, "wrong magic (0x%llx), expected 0x%llx",
					 (unsigned long long)magic, NBD_OPTION_MAGIC);
	if (c->option == NBD_OPT_EXPORT_NAME && c->option_left > NBD_MAX_STRING_BYTES)
		return nbd_conn_complain(c, -EPROTO, "export name too long (%u bytes), "
					 "at most %u", c->option_left, NBD_MAX_STRING_BYTES);
	if (c->option != NBD_OPT_EXPORT_NAME && !c->fixed_newstyle)
		return nbd_conn_complain(c, -EPROTO, "option (%u) without fixed newstyle, "
					 "expected an export name", c->option);
	return NBD_NEXT;
}

int nbd_step_option(struct nbd_conn *c)
{
	struct nbd_wire_option wire;
	int ret;

	/* One option at a time: its replies must have left before the next. */
	if (c->out.len)
		return NBD_WAIT;
	ret = nbd_in_need(c, sizeof(wire));
	if (ret != NBD_NEXT)
		return ret;
	memcpy(&wire, c->in.buf + c->in.pos, sizeof(wire));
	c->in.pos += sizeof(wire);
	c->option = nbd_get32(wire.option);
	c->option_left = nbd_get32(wire.len);
	c->step = c->option_left > NBD_MAX_OPTION_BYTES ? NBD_STEP_OPTION_SKIP :
							  NBD_STEP_OPTION_DATA;
	return check_option(c, nbd_get64(wire.magic));
}

int nbd_step_option_data(struct nbd_conn *c)
{
	struct nbd_reader data;
	int ret;

	ret = nbd_in_need(c, c->option_left);
	if (ret != NBD_NEXT)
		return ret;
	data = (struct nbd_reader){ c->in.buf + c->in.pos, c->option_left };
	c->in.pos += c->option_left;
	c->step = NBD_STEP_OPTION;
	return run_option(c, &data);
}

/* Longer than any option that we know; the time limit ends what never ends. */
int nbd_step_option_skip(struct nbd_conn *c)
{
	u32 len = min(c->option_left, nbd_in_bytes(c));

	c->in.pos += len;
	c->option_left -= len;
	if (c->option_left)
		return nbd_in_receive(c, NULL, 0);
	c->step = NBD_STEP_OPTION;
	return reply_error(c, NBD_REP_ERR_TOO_BIG, "option: data too long, at most 16384 bytes");
}
