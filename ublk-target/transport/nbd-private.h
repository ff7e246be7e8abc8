/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the files of the NBD server share: export, connection, request. */
#ifndef NBD_PRIVATE_H
#define NBD_PRIVATE_H

#include <endian.h>
#include <qchain/limits.h>
#include <qchain/loop.h>
#include <qchain/transport.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <uapi/nbd.h>

/*
 * nbd.c            the export: socket, accepting, its loops, start and stop
 * nbd-conn.c       one connection: input, output, life, buffers
 * nbd-handshake.c  steps and options up to NBD_OPT_GO
 * nbd-request.c    steps and commands after it
 *
 * A connection belongs to one loop and is touched by that loop only. What the
 * client may make the server hold is bounded before anything is allocated: the
 * number of connections, requests of one connection, and bytes of one
 * connection. A client that does not read its replies runs into the bounds of
 * its own connection; nobody else notices.
 */

#define NBD_MAX_CONNECTIONS 64u
#define NBD_DEFAULT_LOOPS 2u
#define NBD_RING_ENTRIES 512u
#define NBD_BACKLOG 128

/* Requests of one connection, sub-requests of one request that are under way. */
#define NBD_NR_SLOTS 64u
#define NBD_NR_PARTS 4u
/* Payload of one request, in pieces of what the target takes at once. */
#define NBD_MAX_PAYLOAD_BYTES (32u * 1024u * 1024u)
#define NBD_PIECE_BYTES QC_MAX_REQUEST_BYTES
#define NBD_NR_PIECES (NBD_MAX_PAYLOAD_BYTES / NBD_PIECE_BYTES)
/* Buffers that one connection may hold; free buffers that a loop keeps. */
#define NBD_HELD_BYTES NBD_MAX_PAYLOAD_BYTES
#define NBD_SPARE_BYTES (32u * 1024u * 1024u)
/* Buffers are powers of two from 4 KiB to one piece. */
#define NBD_MIN_BUFFER_SHIFT 12u
#define NBD_MAX_BUFFER_SHIFT 20u
#define NBD_NR_CLASSES (NBD_MAX_BUFFER_SHIFT - NBD_MIN_BUFFER_SHIFT + 1u)

/* Bytes of input that are looked at together; the longest option read. */
#define NBD_IN_BYTES (32u * 1024u)
#define NBD_MAX_OPTION_BYTES (16u * 1024u)
/* The rest of a payload that is worth a receive of its own. */
#define NBD_DIRECT_BYTES (8u * 1024u)
/* All replies to one option. */
#define NBD_OUT_BYTES (16u * 1024u)
#define NBD_NR_IOVS 256u

/* Extents of one answer, and of one question to the target. */
#define NBD_MAX_EXTENTS 2048u
#define NBD_STATUS_BATCH 256u

#define NBD_HANDSHAKE_NS (10ull * 1000 * 1000 * 1000)
#define NBD_RETRY_ACCEPT_NS (100ull * 1000 * 1000)
/* A live server greets sooner than this. */
#define NBD_PROBE_MS 2000
#define NBD_COMPLAIN_NS (1000ull * 1000 * 1000)
/* At the end: until replies are read, then until the target has let go. */
#define NBD_DRAIN_MS 5000u
#define NBD_LET_GO_MS 10000u

static_assert(1u << NBD_MAX_BUFFER_SHIFT == NBD_PIECE_BYTES, "largest buffer is one piece");
static_assert(NBD_MAX_PAYLOAD_BYTES % NBD_PIECE_BYTES == 0, "payload is whole pieces");
static_assert(NBD_HELD_BYTES >= NBD_MAX_PAYLOAD_BYTES, "any one request is admitted");
static_assert(NBD_MAX_OPTION_BYTES <= NBD_IN_BYTES, "an option fits into the input");
static_assert(NBD_MAX_OPTION_BYTES > NBD_MAX_STRING_BYTES, "a name fits into an option");
static_assert(NBD_NR_PIECES + 2 <= NBD_NR_IOVS, "a reply fits into one send");

/* ---- bytes on the wire ------------------------------------------------ */

#ifndef __force
#ifdef __CHECKER__
#define __force __attribute__((force))
#else
#define __force
#endif
#endif

static inline __be16 nbd_put16(u16 v)
{
	return (__force __be16)htobe16(v);
}

static inline __be32 nbd_put32(u32 v)
{
	return (__force __be32)htobe32(v);
}

static inline __be64 nbd_put64(u64 v)
{
	return (__force __be64)htobe64(v);
}

static inline u16 nbd_get16(__be16 v)
{
	return be16toh((__force u16)v);
}

static inline u32 nbd_get32(__be32 v)
{
	return be32toh((__force u32)v);
}

static inline u64 nbd_get64(__be64 v)
{
	return be64toh((__force u64)v);
}

/* ---- the export ------------------------------------------------------- */

struct nbd;

/* Free buffers of one loop, by class. Loop thread only. */
struct nbd_pool {
	struct cds_list_head free[NBD_NR_CLASSES];
	u64 spare_bytes;
};

/* One loop's share of the export. */
struct nbd_loop {
	/* set once */
	struct nbd *nbd;
	struct loop *loop;
	char name[16]; /* the loop's */
	/* any thread, atomic */
	u32 nr_conns;
	/* loop thread only */
	struct cds_list_head conns;
	struct nbd_pool pool;
	u64 complained_ns;
};

struct nbd {
	struct transport transport;

	/* set once */
	char *socket;
	char *name; /* "" or the second name of the export */
	char *description; /* "" when there is none */
	bool read_only;
	u32 nr_loops;
	struct nbd_loop *loops;

	/* control thread only */
	bool started;
	u64 socket_dev; /* the file that we made; only that one is unlinked */
	u64 socket_ino;
	int listen_fd; /* first loop's while it runs */

	/* first loop only */
	struct loop_poll accept_poll;
	struct loop_timer accept_timer;
	u32 next_loop;

	/* any thread, atomic */
	u32 accepting;
	u32 stopping;
	u32 nr_conns;
	u32 last_conn; /* number of the newest, for its name */
	u32 nr_violations; /* connections ended because the client broke the protocol */
};

/* The name in messages: "nbd" or "nbd NAME". */
const char *nbd_object(const struct nbd *nbd);
/* Bytes that clients may address now; it grows when the target does. */
u64 nbd_size_bytes(const struct nbd *nbd);
bool nbd_is_read_only(const struct nbd *nbd);
/* What NBD_INFO_BLOCK_SIZE says beside the minimum: a power of two. */
u32 nbd_preferred_bytes(const struct target_limits *limits);

/* ---- a request -------------------------------------------------------- */

struct nbd_conn;
struct nbd_slot;
struct nbd_command;

/* One sub-request under way. */
struct nbd_part {
	struct request req;
	struct nbd_slot *slot;
	bool busy;
};

/* A list of extents that is being put together; equal neighbours are merged. */
struct nbd_extents {
	u32 nr;
	u32 max;
	u64 len; /* bytes that they cover */
	struct nbd_wire_extent *extents;
};

/* Returns false, and adds nothing, when the list is full. */
bool nbd_extents_add(struct nbd_extents *list, u64 len, u32 flags);

/* The buffer of a block status request. */
struct nbd_status_area {
	struct nbd_wire_chunk_status heads[2];
	struct nbd_extents lists[2];
	bool full;
	struct block_status answers[NBD_STATUS_BATCH];
	struct nbd_wire_extent extents[2][NBD_MAX_EXTENTS];
};

static_assert(sizeof(struct nbd_status_area) <= NBD_PIECE_BYTES, "status fits into a buffer");

/*
 * struct nbd_slot - one NBD request, from its header to its reply
 * @ready: bytes whose memory holds what the request needs: of a write, those
 *         that were received; of any other command, all
 * @next:  bytes that were handed to the target
 *
 * Invariant: @next <= @ready <= @len. It is over when all was received, and
 * handed over or failed, and no part is busy.
 */
struct nbd_slot {
	struct cds_list_head node; /* free, or waiting for output */
	struct nbd_conn *conn; /* set once */

	const struct nbd_command *command; /* NULL: not known */
	u64 cookie;
	u64 offset;
	u32 len;
	u16 flags;
	u16 type;

	u32 ready;
	u32 next;
	int error;
	u8 nr_busy;
	bool running;
	bool aborted; /* the client went away in the middle of its payload */

	struct request_tag tag; /* its bytes are those of @pieces, and count for NBD_HELD_BYTES */
	void *pieces[NBD_NR_PIECES];
	struct nbd_part parts[NBD_NR_PARTS];

	union {
		struct nbd_wire_simple_reply simple;
		struct nbd_wire_chunk none;
		struct nbd_wire_chunk_data data;
		struct nbd_wire_chunk_error error;
	} head;
	char text[192]; /* why it failed */
};

/* Hand over what can be handed over; queue the reply when it is over. */
void nbd_slot_run(struct nbd_slot *slot);
/* Nothing more will be received for it; it ends without a reply. */
void nbd_slot_abort(struct nbd_slot *slot);
/* Describe the reply; returns the number of vectors, at most NBD_NR_PIECES + 2. */
u32 nbd_slot_reply(struct nbd_slot *slot, struct iovec *iov);
/* 0 or -errno as an error value of the protocol. */
u32 nbd_wire_errno(int error);

/* ---- a connection ----------------------------------------------------- */

/*
 * The life of a connection. DRAINING: nothing more is read, requests end, their
 * replies are sent. DEAD: replies are dropped too. It is freed when no request,
 * no receive and no send is left.
 *
 *	HANDSHAKE ---> TRANSMISSION ---> DRAINING ---> DEAD ---> freed
 *	    |               |                \_________________/
 *	    +---------------+----> DRAINING or DEAD
 */
enum nbd_life {
	NBD_HANDSHAKE,
	NBD_TRANSMISSION,
	NBD_DRAINING,
	NBD_DEAD,
	NBD_NR_LIVES,
};

/* What the input is waited for; steps[] in nbd-conn.c has their functions. */
enum nbd_step {
	NBD_STEP_CLIENT_FLAGS,
	NBD_STEP_OPTION,
	NBD_STEP_OPTION_DATA,
	NBD_STEP_OPTION_SKIP,
	NBD_STEP_REQUEST,
	NBD_STEP_ADMIT,
	NBD_STEP_PAYLOAD,
	NBD_NR_STEPS,
};

/*
 * A step does one thing, names the next step in @conn->step and returns
 * NBD_NEXT: run it now; NBD_WAIT: input was asked for, or something that the
 * connection waits for will kick it; -errno: the client broke the protocol.
 */
enum { NBD_WAIT = 0, NBD_NEXT = 1 };

#define NBD_CONTEXT_ALLOCATION 0u
#define NBD_CONTEXT_DEPTH 1u
#define NBD_NR_CONTEXTS 2u

/* Input: [pos, end) of buf was received and not yet consumed. */
struct nbd_input {
	struct io_completion completion;
	bool busy;
	bool direct; /* into the payload of the request that is being received */
	u32 pos;
	u32 end;
	u8 buf[NBD_IN_BYTES];
};

/* Output: replies to options, then replies to requests; one send at a time. */
struct nbd_output {
	struct io_completion completion;
	bool busy;
	u32 len; /* of buf: replies to an option */
	struct cds_list_head waiting; /* slots */
	struct cds_list_head sent; /* slots of the send under way */
	struct msghdr msg;
	struct iovec iovs[NBD_NR_IOVS];
	u8 buf[NBD_OUT_BYTES];
};

struct nbd_conn {
	/* set once */
	struct nbd *nbd;
	struct nbd_loop *home;
	int fd;

	/* loop thread only */
	struct cds_list_head node;
	enum nbd_life life;
	enum nbd_step step;
	bool running;
	bool kicked;
	struct loop_msg kick;
	struct loop_timer timer; /* of the handshake */

	/* what was agreed */
	bool fixed_newstyle;
	bool no_zeroes;
	bool structured;
	u16 flags; /* transmission flags */
	u32 contexts; /* mask of NBD_CONTEXT_... */

	/* what is being received */
	u32 option;
	u32 option_left;
	struct nbd_slot *receiving;
	struct nbd_wire_request request; /* waits for admission */

	struct nbd_input in;
	struct nbd_output out;

	struct request_queue requests;
	struct cds_list_head free_slots;
	u32 nr_slots; /* in use */
	u64 held_bytes;
	struct nbd_slot slots[NBD_NR_SLOTS];
};

/* Any thread: take over the socket @fd on @home's loop. 0 or -ENOMEM. */
int nbd_conn_start(struct nbd *nbd, struct nbd_loop *home, int fd);
/* Loop thread only, as all below. Never backwards: an earlier life is ignored. */
void nbd_conn_set_life(struct nbd_conn *c, enum nbd_life life);
/* Look at it again, soon: output, parked input, the end. */
void nbd_conn_kick(struct nbd_conn *c);
/* Note a violation of the protocol, at most one line a second; returns @code. */
int nbd_conn_complain(struct nbd_conn *c, int code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* @bytes are in the input buffer: NBD_NEXT; else ask for them: NBD_WAIT. */
int nbd_in_need(struct nbd_conn *c, u32 bytes);
/* Ask for any input; into @to when it is not NULL, @room bytes then. */
int nbd_in_receive(struct nbd_conn *c, void *to, u32 room);
static inline u32 nbd_in_bytes(const struct nbd_conn *c)
{
	return c->in.end - c->in.pos;
}

/* Append to the reply to the option of the moment. */
void nbd_out_append(struct nbd_conn *c, const void *data, u32 len);
/* Skip the @len bytes that have left; false when all have. */
bool nbd_out_advance(struct msghdr *msg, size_t len);

/* Give a request's memory and its slot back; it is on no list or on one of output. */
void nbd_slot_release(struct nbd_slot *slot);

/* Buffers for @bytes; -ENOMEM. They count against the connection. */
int nbd_pieces_get(struct nbd_slot *slot, u32 bytes);
void nbd_pieces_put(struct nbd_slot *slot);
/* What @bytes would count. */
u32 nbd_pieces_cost(u32 bytes);

void nbd_pool_init(struct nbd_pool *pool);
void nbd_pool_exit(struct nbd_pool *pool);

/* Steps. */
int nbd_step_client_flags(struct nbd_conn *c);
int nbd_step_option(struct nbd_conn *c);
int nbd_step_option_data(struct nbd_conn *c);
int nbd_step_option_skip(struct nbd_conn *c);
int nbd_step_request(struct nbd_conn *c);
int nbd_step_admit(struct nbd_conn *c);
int nbd_step_payload(struct nbd_conn *c);

/* The first bytes of the server. */
void nbd_greet(struct nbd_conn *c);

#endif
