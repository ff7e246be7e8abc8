// SPDX-License-Identifier: GPL-2.0-or-later
/* What a transfer has to move: block status of its targets, and the regions cut from it. */
#include "transfer-private.h"

#include <errno.h>

/* ---- block status ---------------------------------------------------------------- */

void cursor_init(struct cursor *c, struct transfer *t, struct target *ti, struct loop *loop)
{
	*c = (struct cursor){ .t = t, .ti = ti, .loop = loop };
}

static void cursor_rewind(struct cursor *c)
{
	c->nr = c->at = 0;
	c->start = 0;
	c->error = 0;
	c->size = c->ti ? c->ti->size_bytes : 0;
}

/* On the transfer's loop: the answer is there. */
static void cursor_answered(struct loop *loop, struct loop_msg *msg)
{
	struct cursor *c = container_of(msg, struct cursor, msg);

	c->asking = false;
	transfer_answered(c->t);
}

/* An answer at once, on the walk's own stack, is no message. */
static void cursor_end_io(struct request *req, int error)
{
	struct cursor *c = container_of(req, struct cursor, req);

	c->nr = error ? 0 : req->status_nr;
	c->error = error;
	if (c->submitting)
		c->asking = false;
	else
		loop_send(c->t->loop, &c->msg, cursor_answered);
}

static const struct request_ops cursor_ops = { .end_io = cursor_end_io };

static void cursor_submit(struct loop *loop, struct loop_msg *msg)
{
	struct cursor *c = container_of(msg, struct cursor, msg);
	u64 left = c->size - c->start;

	c->req = (struct request){
		.ops = &cursor_ops, .loop = loop, .op = REQ_BLOCK_STATUS, .offset = c->start,
		.len = min(left, (u64)QC_MAX_REQUEST_BYTES), .status = c->st,
		.status_max = STATUS_MAX,
	};
	target_submit(c->ti, &c->req);
}

/*
 * What lies at c->start: 0 and *@st, or -EAGAIN (the walk goes on when it is
 * known), or -errno.
 */
static int cursor_look(struct cursor *c, struct block_status *st)
{
	if (c->asking)
		return -EAGAIN;
	if (c->error)
		return c->error;
	if (!c->ti || c->start >= c->size) { /* beyond the end: zero, for ever */
		*st = (struct block_status){ .zero = true, .len = UINT32_MAX & ~511u };
		return 0;
	}
	if (c->at < c->nr) {
		*st = c->st[c->at];
		return 0;
	}
	c->asking = true;
	c->nr = c->at = 0;
	if (!loop_is_current(c->loop)) {
		loop_send(c->loop, &c->msg, cursor_submit);
		return -EAGAIN;
	}
	c->submitting = true;
	cursor_submit(c->loop, &c->msg);
	c->submitting = false;
	if (c->asking || c->error || !c->nr)
		return c->asking ? -EAGAIN : c->error ? c->error : -EIO;
	*st = c->st[0];
	return 0;
}

bool transfer_is_asking(const struct transfer *t)
{
	return t->source.asking || t->compare.asking;
}

static void cursor_advance(struct cursor *c, u64 bytes)
{
	u64 n;

	c->start += bytes;
	while (bytes && c->at < c->nr) {
		n = min(bytes, c->st[c->at].len);
		c->st[c->at].len -= n;
		bytes -= n;
		if (!c->st[c->at].len)
			c->at++;
	}
}

/* ---- what is wanted ------------------------------------------------------------------ */

/* Ids count from the base: both chains find it in the same layer of those they share. */
static bool both_from_common(const struct transfer *t, const struct block_status *st,
			     const struct block_status *other)
{
	return st->depth && st->layer < t->o.keep_layers && other->depth &&
	       other->layer < t->o.keep_layers;
}

static enum wish wish_of(const struct transfer *t, const struct block_status *st,
			 const struct block_status *other)
{
	if (t->o.compare) {
		if (st->depth == 1 || both_from_common(t, st, other))
			return WISH_NOTHING;
		if (st->zero)
			return other->zero ? WISH_NOTHING : WISH_ZERO;
		return WISH_DATA;
	}
	if (st->depth < t->o.first_depth || st->depth > t->o.last_depth)
		return WISH_NOTHING;
	if (st->zero && t->o.skip_zero)
		return WISH_NOTHING;
	return st->zero ? WISH_ZERO : WISH_DATA;
}

/* The next stretch that is alike: 1, 0 at the end, -EAGAIN, -errno. */
static int walk(struct transfer *t, enum wish *wish, u64 *offset, u64 *len)
{
	struct block_status st, other = { .zero = true };
	int ret;

	if (t->pos >= t->source.size)
		return 0;
	ret = cursor_look(&t->source, &st);
	if (!ret && t->o.compare)
		ret = cursor_look(&t->compare, &other);
	if (ret)
		return ret;
	*len = min((u64)st.len, t->source.size - t->pos);
	if (t->o.compare)
		*len = min(*len, (u64)other.len);
	*wish = wish_of(t, &st, &other);
	*offset = t->pos;
	t->pos += *len;
	cursor_advance(&t->source, *len);
	if (t->o.compare)
		cursor_advance(&t->compare, *len);
	return 1;
}

/* What the walk would give next is of the same wish: known without asking. */
static bool goes_on(struct transfer *t, enum wish wish)
{
	static const struct block_status nothing = { .zero = true };

	if (t->source.at >= t->source.nr || t->pos >= t->source.size)
		return false;
	if (!t->o.compare)
		return wish_of(t, &t->source.st[t->source.at], &nothing) == wish;
	return t->compare.at < t->compare.nr &&
	       wish_of(t, &t->source.st[t->source.at], &t->compare.st[t->compare.at]) == wish;
}

void transfer_rewind(struct transfer *t)
{
	t->pos = 0;
	t->moved = 0;
	t->rest = (struct stretch){ 0 };
	cursor_rewind(&t->source);
	cursor_rewind(&t->compare);
}

/* ---- regions --------------------------------------------------------------------------- */

/* The next stretch that is wanted, joined with what goes on behind it: as walk(). */
static int next_stretch(struct transfer *t, struct stretch *result)
{
	u64 offset, len, more, more_len;
	enum wish wish;
	int ret;

	do {
		ret = walk(t, &wish, &offset, &len);
		if (ret != 1)
			return ret;
	} while (wish == WISH_NOTHING);
	while (len < t->o.region_bytes && goes_on(t, wish) &&
	       walk(t, &wish, &more, &more_len) == 1)
		len = t->pos - offset;
	*result = (struct stretch){ offset, offset + len, wish };
	return 1;
}

/*
 * Cut the next region off the front of @s. Data is rounded out to @align; zeroes
 * are moved as such where they fill it, at their odd ends as data.
 */
static void cut_region(struct transfer *t, struct stretch *s, struct copy_region *region)
{
	u64 align = t->o.align, end = t->source.size;
	u64 from = ALIGN_DOWN(s->offset, align);
	bool zero = s->wish == WISH_ZERO && from == s->offset &&
		    (s->end == end || ALIGN_DOWN(s->end, align) > from);

	if (zero && s->end != end)
		end = ALIGN_DOWN(s->end, align);
	else if (!zero && s->wish == WISH_ZERO)
		end = min(end, from + align);
	else if (!zero)
		end = min(end, ALIGN_UP(s->end, align));
	*region = (struct copy_region){ .src_offset = from, .dst_offset = from,
					.len = end - from, .zero = zero };
	s->offset = end;
	t->moved = end;
}

int transfer_next_region(struct transfer *t, struct copy_region *region)
{
	struct stretch *s = &t->rest;
	int ret;

	while (s->offset >= s->end) {
		ret = next_stretch(t, s);
		if (ret != 1)
			return ret;
		s->offset = max(s->offset, t->moved);
	}
	cut_region(t, s, region);
	return 1;
}
