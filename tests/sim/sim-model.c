// SPDX-License-Identifier: GPL-2.0-or-later
/* What each sector of the device, and of each snapshot, may hold (rule A1). */
#include "sim.h"

/*
 * A write carries its number in every sector. For each sector there is a list of
 * the operations on it. What was superseded by an operation that must show may
 * not: v is superseded by w when v had ended before w was submitted.
 */

struct touch {
	u32 op;
	u32 next; /* index; 0: none */
};

struct sim_op sim_ops[SIM_MAX_OPS];
u32 nr_sim_ops;
struct sim_view sim_now_view = { .disk = "device", .instant = SIM_NOW };
CDS_LIST_HEAD(sim_views);
static struct sim_view before_turn; /* what the device showed before @since */

/* Growths that failed and may be there in spite of that, after a cut. */
#define MAX_GROWTHS 16u
static u64 grows_to[MAX_GROWTHS];
static u32 nr_grows;

static struct touch *touches;
static u32 nr_touches, room_touches;
static u32 *heads; /* by sector */
static u64 nr_heads;

/* ---- operations ---------------------------------------------------------------- */

/* A snapshot may be longer than the device. */
static u64 longest_view(void)
{
	u64 bytes = sim_now_view.bytes;
	struct sim_view *view;

	cds_list_for_each_entry(view, &sim_views, node)
		bytes = max(bytes, view->bytes);
	return bytes;
}

void model_begin(void)
{
	u64 bytes = longest_view();

	nr_heads = bytes / SIM_BLOCK;
	heads = realloc(heads, nr_heads * sizeof(*heads));
	memset(heads, 0, nr_heads * sizeof(*heads));
	nr_touches = 1;
	nr_sim_ops = 0;
}

void model_grows(u64 bytes)
{
	u64 nr = max(nr_heads, bytes / SIM_BLOCK);

	heads = realloc(heads, nr * sizeof(*heads));
	memset(heads + nr_heads, 0, (nr - nr_heads) * sizeof(*heads));
	nr_heads = nr;
	if (nr_grows == MAX_GROWTHS)
		fail("more than %u growths that failed", MAX_GROWTHS);
	grows_to[nr_grows++] = bytes;
}

void model_grown(u64 bytes)
{
	u8 *longer;
	u32 i = 0;

	while (i < nr_grows && grows_to[i] != bytes)
		i++;
	if (i == nr_grows)
		return;
	longer = calloc(1, bytes);
	memcpy(longer, sim_now_view.initial, sim_now_view.bytes);
	free(sim_now_view.initial);
	sim_now_view.initial = longer;
	sim_now_view.bytes = bytes;
	nr_grows = 0;
}

void model_tag(u8 *to, u32 id, u64 sector)
{
	u64 word = ((u64)id << 40 | sector << 8 | 0x5a) ^ (sim_seed << 52);
	u32 i;

	for (i = 0; i < SIM_BLOCK / 8; i++)
		memcpy(to + i * 8, &word, 8);
}

static void touch_sectors(u32 id, u64 offset, u64 len)
{
	u64 sector;

	for (sector = offset / SIM_BLOCK; sector < (offset + len) / SIM_BLOCK; sector++) {
		if (nr_touches == room_touches || !touches) {
			room_touches = room_touches ? room_touches * 2 : 65536;
			touches = realloc(touches, room_touches * sizeof(*touches));
		}
		touches[nr_touches] = (struct touch){ .op = id, .next = heads[sector] };
		heads[sector] = nr_touches++;
	}
}

u32 model_submit(u8 op, u64 offset, u64 len, u8 *mem)
{
	u32 id = ++nr_sim_ops;
	u64 i;

	if (id >= SIM_MAX_OPS)
		fail("more than %u operations", SIM_MAX_OPS);
	sim_ops[id] = (struct sim_op){ .offset = offset, .len = len, .op = op,
				       .submit = ++sim_time };
	for (i = 0; op == REQ_WRITE && i < len / SIM_BLOCK; i++)
		model_tag(mem + i * SIM_BLOCK, id, offset / SIM_BLOCK + i);
	if (op != REQ_READ && op != REQ_FLUSH)
		touch_sectors(id, offset, len);
	return id;
}

static void all_before_is_durable(u64 submitted)
{
	u32 i;

	for (i = 1; i <= nr_sim_ops; i++) {
		struct sim_op *o = &sim_ops[i];

		if (o->done && o->done < submitted && !o->error && !o->durable)
			o->durable = sim_time;
	}
}

void model_end(u32 id, u8 flags, bool error)
{
	struct sim_op *o = &sim_ops[id];

	o->error = error;
	o->done = ++sim_time;
	if (error)
		return;
	if (flags & REQ_FUA)
		o->durable = sim_time;
	if (o->op == REQ_FLUSH)
		all_before_is_durable(o->submit);
}

/* ---- views --------------------------------------------------------------------- */

struct sim_view *view_add(const char *disk, u8 *initial_owned, u64 bytes, u64 instant)
{
	struct sim_view *view = calloc(1, sizeof(*view));

	snprintf(view->disk, sizeof(view->disk), "%s", disk);
	view->initial = initial_owned;
	view->bytes = bytes;
	view->instant = instant;
	cds_list_add_tail(&view->node, &sim_views);
	return view;
}

struct sim_view *view_find(const char *disk)
{
	struct sim_view *view;

	cds_list_for_each_entry(view, &sim_views, node)
		if (!strcmp(view->disk, disk))
			return view;
	return NULL;
}

void view_remove(struct sim_view *view)
{
	cds_list_del(&view->node);
	free(view->initial);
	free(view);
}

void model_turns_into(u8 *initial_owned, const struct sim_view *was)
{
	free(before_turn.initial);
	before_turn = *was;
	before_turn.initial = malloc(was->bytes);
	memcpy(before_turn.initial, was->initial, was->bytes);
	sim_now_view.initial = initial_owned;
	sim_now_view.since = was->instant;
}

/* ---- what may be there --------------------------------------------------------- */

struct question {
	const struct sim_view *view;
	const u8 *data;
	u64 sector;
	u64 until;
	bool power;
};

static bool must_show(const struct question *q, const struct sim_op *w)
{
	if (w->op == REQ_DISCARD || w->error || !w->done || w->done > q->view->instant ||
	    w->submit <= q->view->since)
		return false;
	return q->power ? w->durable && w->durable <= q->until : w->done < q->until;
}

/* When the last operation was submitted that must show; 0: none. */
static u64 last_to_show(const struct question *q)
{
	u64 last = 0;
	u32 t;

	for (t = heads[q->sector]; t; t = touches[t].next)
		if (must_show(q, &sim_ops[touches[t].op]))
			last = max(last, sim_ops[touches[t].op].submit);
	return last;
}

static bool is_content(const struct question *q, u32 id)
{
	static const u8 zero[SIM_BLOCK];
	u8 want[SIM_BLOCK];

	if (sim_ops[id].op != REQ_WRITE)
		return !memcmp(q->data, zero, SIM_BLOCK);
	model_tag(want, id, q->sector);
	return !memcmp(q->data, want, SIM_BLOCK);
}

static bool is_initial(const struct question *q)
{
	return !memcmp(q->data, q->view->initial + q->sector * SIM_BLOCK, SIM_BLOCK);
}

static bool allowed(const struct question *q)
{
	u64 last = last_to_show(q);
	u32 t;

	if (!last && is_initial(q))
		return true;
	for (t = heads[q->sector]; t; t = touches[t].next) {
		const struct sim_op *v = &sim_ops[touches[t].op];

		if (v->submit > q->view->instant ||
		    (v->done && (v->done <= last || v->done <= q->view->since)))
			continue;
		if (is_content(q, touches[t].op))
			return true;
	}
	return false;
}

static void say_sector(const struct question *q)
{
	u32 t;

	printf("%s, sector %llu holds %02x%02x%02x%02x%02x%02x%02x%02x%s", q->view->disk,
	       (unsigned long long)q->sector, q->data[0], q->data[1], q->data[2], q->data[3],
	       q->data[4], q->data[5], q->data[6], q->data[7],
	       is_initial(q) ? ", as at the beginning" : "");
	printf("; since %llu, instant %llu%s, until %llu%s\n",
	       (unsigned long long)q->view->since, (unsigned long long)q->view->instant,
	       q->view->sealed ? " sealed" : "", (unsigned long long)q->until,
	       q->power ? ", what is durable" : "");
	for (t = heads[q->sector]; t; t = touches[t].next) {
		const struct sim_op *o = &sim_ops[touches[t].op];

		printf("  op %u type %u %llu+%llu submitted %llu done %llu durable %llu%s%s\n",
		       touches[t].op, o->op, (unsigned long long)o->offset,
		       (unsigned long long)o->len, (unsigned long long)o->submit,
		       (unsigned long long)o->done, (unsigned long long)o->durable,
		       o->error ? " error" : "", is_content(q, touches[t].op) ? " <- there" : "");
	}
}

void model_check(const struct sim_view *view, const u8 *data, u64 offset, u64 len, u64 until,
		 bool power, const char *what)
{
	struct question q = { .view = view, .until = until, .power = power && !view->sealed };
	u64 s;

	for (s = 0; s < len / SIM_BLOCK; s++) {
		q.data = data + s * SIM_BLOCK;
		q.sector = offset / SIM_BLOCK + s;
		if (allowed(&q))
			continue;
		say_sector(&q);
		fail("%s: lost or foreign content in sector %llu of %s", what,
		     (unsigned long long)q.sector, view->disk);
	}
}

void model_check_read(const u8 *data, u64 offset, u64 len, u64 submitted)
{
	struct question q = { .view = &before_turn, .until = submitted };
	u64 s;

	for (s = 0; s < len; s += SIM_BLOCK) {
		q.data = data + s;
		q.sector = (offset + s) / SIM_BLOCK;
		if (submitted < sim_now_view.since && allowed(&q))
			continue;
		model_check(&sim_now_view, q.data, offset + s, SIM_BLOCK, submitted, false, "read");
	}
}
