/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the files of a transfer share: its walk, and the job. */
#ifndef TRANSFER_PRIVATE_H
#define TRANSFER_PRIVATE_H

#include <qchain/copier.h>
#include <qchain/transfer.h>

#define STATUS_MAX 256u

enum wish { WISH_NOTHING, WISH_DATA, WISH_ZERO };

/* Guest bytes [@offset, @end) of one kind. */
struct stretch {
	u64 offset;
	u64 end;
	enum wish wish;
};

/* A region that failed, and waits until the job goes on. */
struct retry {
	struct cds_list_head node;
	struct copy_region region;
};

/* Where block status has got to, of one target. */
struct cursor {
	struct transfer *t;
	struct target *ti;
	struct loop *loop;
	struct request req;
	struct loop_msg msg;
	struct block_status st[STATUS_MAX];
	u32 nr;
	u32 at; /* next of @st */
	u64 start; /* guest offset of st[at] */
	u64 size;
	bool asking;
	bool submitting; /* target_submit() is on the stack */
	int error;
};

struct lane {
	struct request req;
	struct request other; /* of compare */
	struct loop_msg msg;
	struct loop_msg other_msg;
	struct copy_io *io;
	struct transfer *t;
	void *mem; /* what @compare has */
	u32 pending;
	u32 from; /* what differs, in the chunk */
	u32 to;
	int error;
};

struct transfer {
	struct job *job;
	struct transfer_options o;
	struct loop *loop;
	struct copier *copier;
	struct cursor source;
	struct cursor compare;
	u64 pos;
	struct stretch rest; /* of what the walk gave last */
	u64 moved; /* end of the last region: rounded out, they must not overlap */
	struct cds_list_head again; /* struct retry */
	u32 nr_regions; /* with the copier: each may come back */
	struct loop_timer timer; /* until @ops->ready */
	struct loop_timer room_timer; /* while it rests on a full target */
	u64 room; /* of that, when it was found full */
	u64 wanted; /* bytes of data, counted by the scan */
	void *mem; /* lanes' memory for @compare */
	struct request flush;
	struct loop_msg flush_msg;
	bool scanning;
	bool ready; /* @ops->ready said so */
	bool pausing;
	bool copied; /* the copier has ended, with @error */
	bool ended;
	const struct job_type *then; /* what the job goes on as; NULL: it moves */
	bool read_failed; /* the last error was one of the source */
	int error;
};

/* ---- transfer-walk.c: what is to be moved, region by region ---------------------- */

/* Nothing was asked yet; @ti NULL: it reads as zero. */
void cursor_init(struct cursor *c, struct transfer *t, struct target *ti, struct loop *loop);
/* A question to a target is on its way. */
bool transfer_is_asking(const struct transfer *t);
/* From the start, of targets that are as long as they are now. */
void transfer_rewind(struct transfer *t);
/* 1 and the next region, 0 at the end, -EAGAIN: transfer_answered() comes; -errno. */
int transfer_next_region(struct transfer *t, struct copy_region *region);

/* ---- transfer.c ------------------------------------------------------------------- */

/* On the transfer's loop: what was asked is known. */
void transfer_answered(struct transfer *t);

#endif
