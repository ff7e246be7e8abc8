/* SPDX-License-Identifier: GPL-2.0-or-later OR MIT */
/* The NBD wire format, fixed newstyle; all fields big-endian (doc/proto.md of NBD). */
#ifndef UAPI_NBD_H
#define UAPI_NBD_H

#include <assert.h>
#include <linux/types.h>

/* Section "Handshake": what the server says first, what the client answers. */
#define NBD_INIT_MAGIC 0x4e42444d41474943ull /* "NBDMAGIC" */
#define NBD_OPTION_MAGIC 0x49484156454f5054ull /* "IHAVEOPT" */
#define NBD_OPTION_REPLY_MAGIC 0x0003e889045565a9ull

#define NBD_FLAG_FIXED_NEWSTYLE (1u << 0)
#define NBD_FLAG_NO_ZEROES (1u << 1)
#define NBD_FLAG_C_FIXED_NEWSTYLE (1u << 0)
#define NBD_FLAG_C_NO_ZEROES (1u << 1)

struct nbd_wire_greeting {
	__be64 init_magic;
	__be64 option_magic;
	__be16 flags;
} __attribute__((packed));

static_assert(sizeof(struct nbd_wire_greeting) == 18, "nbd greeting");

struct nbd_wire_client_flags {
	__be32 flags;
} __attribute__((packed));

/* Section "Option haggling": followed by @len bytes of data. */
struct nbd_wire_option {
	__be64 magic;
	__be32 option;
	__be32 len;
} __attribute__((packed));

static_assert(sizeof(struct nbd_wire_option) == 16, "nbd option");

#define NBD_OPT_EXPORT_NAME 1u
#define NBD_OPT_ABORT 2u
#define NBD_OPT_LIST 3u
#define NBD_OPT_PEEK_EXPORT 4u
#define NBD_OPT_STARTTLS 5u
#define NBD_OPT_INFO 6u
#define NBD_OPT_GO 7u
#define NBD_OPT_STRUCTURED_REPLY 8u
#define NBD_OPT_LIST_META_CONTEXT 9u
#define NBD_OPT_SET_META_CONTEXT 10u
#define NBD_OPT_EXTENDED_HEADERS 11u

struct nbd_wire_option_reply {
	__be64 magic;
	__be32 option;
	__be32 type;
	__be32 len;
} __attribute__((packed));

static_assert(sizeof(struct nbd_wire_option_reply) == 20, "nbd option reply");

#define NBD_REP_ACK 1u
#define NBD_REP_SERVER 2u
#define NBD_REP_INFO 3u
#define NBD_REP_META_CONTEXT 4u
#define NBD_REP_ERR_UNSUP 0x80000001u
#define NBD_REP_ERR_POLICY 0x80000002u
#define NBD_REP_ERR_INVALID 0x80000003u
#define NBD_REP_ERR_PLATFORM 0x80000004u
#define NBD_REP_ERR_TLS_REQD 0x80000005u
#define NBD_REP_ERR_UNKNOWN 0x80000006u
#define NBD_REP_ERR_SHUTDOWN 0x80000007u
#define NBD_REP_ERR_BLOCK_SIZE_REQD 0x80000008u
#define NBD_REP_ERR_TOO_BIG 0x80000009u

/* The answer to NBD_OPT_EXPORT_NAME; no padding when NO_ZEROES was agreed. */
struct nbd_wire_export {
	__be64 size;
	__be16 flags;
	__u8 padding[124];
} __attribute__((packed));

static_assert(sizeof(struct nbd_wire_export) == 134, "nbd export");

#define NBD_EXPORT_SHORT_BYTES 10u

/* Payloads of NBD_REP_INFO; NAME and DESCRIPTION are the type and a string. */
#define NBD_INFO_EXPORT 0u
#define NBD_INFO_NAME 1u
#define NBD_INFO_DESCRIPTION 2u
#define NBD_INFO_BLOCK_SIZE 3u

struct nbd_wire_info_export {
	__be16 type;
	__be64 size;
	__be16 flags;
} __attribute__((packed));

static_assert(sizeof(struct nbd_wire_info_export) == 12, "nbd info export");

struct nbd_wire_info_block_size {
	__be16 type;
	__be32 minimum;
	__be32 preferred;
	__be32 max_payload;
} __attribute__((packed));

static_assert(sizeof(struct nbd_wire_info_block_size) == 14, "nbd info block size");

/* Transmission flags of an export. */
#define NBD_FLAG_HAS_FLAGS (1u << 0)
#define NBD_FLAG_READ_ONLY (1u << 1)
#define NBD_FLAG_SEND_FLUSH (1u << 2)
#define NBD_FLAG_SEND_FUA (1u << 3)
#define NBD_FLAG_ROTATIONAL (1u << 4)
#define NBD_FLAG_SEND_TRIM (1u << 5)
#define NBD_FLAG_SEND_WRITE_ZEROES (1u << 6)
#define NBD_FLAG_SEND_DF (1u << 7)
#define NBD_FLAG_CAN_MULTI_CONN (1u << 8)
#define NBD_FLAG_SEND_CACHE (1u << 10)
#define NBD_FLAG_SEND_FAST_ZERO (1u << 11)

/* Section "Transmission": followed by @len bytes when @type is NBD_CMD_WRITE. */
#define NBD_REQUEST_MAGIC 0x25609513u

struct nbd_wire_request {
	__be32 magic;
	__be16 flags;
	__be16 type;
	__be64 cookie;
	__be64 offset;
	__be32 len;
} __attribute__((packed));

static_assert(sizeof(struct nbd_wire_request) == 28, "nbd request");

#define NBD_CMD_READ 0u
#define NBD_CMD_WRITE 1u
#define NBD_CMD_DISC 2u
#define NBD_CMD_FLUSH 3u
#define NBD_CMD_TRIM 4u
#define NBD_CMD_CACHE 5u
#define NBD_CMD_WRITE_ZEROES 6u
#define NBD_CMD_BLOCK_STATUS 7u

#define NBD_CMD_FLAG_FUA (1u << 0)
#define NBD_CMD_FLAG_NO_HOLE (1u << 1)
#define NBD_CMD_FLAG_DF (1u << 2)
#define NBD_CMD_FLAG_REQ_ONE (1u << 3)
#define NBD_CMD_FLAG_FAST_ZERO (1u << 4)

/* Followed by the data of a read that did not fail. */
#define NBD_SIMPLE_REPLY_MAGIC 0x67446698u

struct nbd_wire_simple_reply {
	__be32 magic;
	__be32 error;
	__be64 cookie;
} __attribute__((packed));

static_assert(sizeof(struct nbd_wire_simple_reply) == 16, "nbd simple reply");

/* One chunk of a structured reply, followed by @len bytes. */
#define NBD_STRUCTURED_REPLY_MAGIC 0x668e33efu

struct nbd_wire_chunk {
	__be32 magic;
	__be16 flags;
	__be16 type;
	__be64 cookie;
	__be32 len;
} __attribute__((packed));

static_assert(sizeof(struct nbd_wire_chunk) == 20, "nbd chunk");

#define NBD_REPLY_FLAG_DONE (1u << 0)

#define NBD_REPLY_TYPE_NONE 0u
#define NBD_REPLY_TYPE_OFFSET_DATA 1u
#define NBD_REPLY_TYPE_OFFSET_HOLE 2u
#define NBD_REPLY_TYPE_BLOCK_STATUS 5u
#define NBD_REPLY_TYPE_ERROR 0x8001u
#define NBD_REPLY_TYPE_ERROR_OFFSET 0x8002u

/* NBD_REPLY_TYPE_OFFSET_DATA: followed by the data. */
struct nbd_wire_chunk_data {
	struct nbd_wire_chunk chunk;
	__be64 offset;
} __attribute__((packed));

static_assert(sizeof(struct nbd_wire_chunk_data) == 28, "nbd data chunk");

/* NBD_REPLY_TYPE_ERROR: followed by the message. */
struct nbd_wire_chunk_error {
	struct nbd_wire_chunk chunk;
	__be32 error;
	__be16 message_len;
} __attribute__((packed));

static_assert(sizeof(struct nbd_wire_chunk_error) == 26, "nbd error chunk");

/* NBD_REPLY_TYPE_BLOCK_STATUS: followed by extents. */
struct nbd_wire_chunk_status {
	struct nbd_wire_chunk chunk;
	__be32 context;
} __attribute__((packed));

static_assert(sizeof(struct nbd_wire_chunk_status) == 24, "nbd status chunk");

struct nbd_wire_extent {
	__be32 len;
	__be32 flags;
} __attribute__((packed));

static_assert(sizeof(struct nbd_wire_extent) == 8, "nbd extent");

/* Flags of the context "base:allocation". */
#define NBD_STATE_HOLE (1u << 0)
#define NBD_STATE_ZERO (1u << 1)

/* Section "Error values". */
#define NBD_SUCCESS 0u
#define NBD_EPERM 1u
#define NBD_EIO 5u
#define NBD_ENOMEM 12u
#define NBD_EINVAL 22u
#define NBD_ENOSPC 28u
#define NBD_EOVERFLOW 75u
#define NBD_ENOTSUP 95u
#define NBD_ESHUTDOWN 108u

/* Names, descriptions, queries and messages are at most this long. */
#define NBD_MAX_STRING_BYTES 4096u

#endif
