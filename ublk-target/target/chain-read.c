// SPDX-License-Identifier: GPL-2.0-or-later
/* Reads that the fast path cannot do: compressed data, odd alignment, a tiny cache. */
#include "chain-private.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/*
 * Run by run, each resolved in the event that issues it, so that it works
 * with a map of one window. While a run's I/O is under way the metadata loop's
 * epoch is held: its clusters are not reused.
 */

struct slow_read {
	struct chain_target *ct;
	struct request *req;
	u8 *dst; /* the request's memory, or the bounce */
	void *bounce;
	u32 pos;
	struct run run;
	const struct image *img; /* of @run; as long as an epoch is held */
	u32 epoch;
	struct load_wait load;
	struct meta_wait wait; /* for the bounce */
	struct io_op io;
	void *raw; /* what is read from the layer, block-aligned */
	u32 skip; /* bytes of @raw before the run's first */
	void *cluster; /* decompressed */
	struct chain_work work;
	int error;
};

static void slow_step(struct slow_read *s);

static void slow_end(struct slow_read *s, int error)
{
	struct request *req = s->req;
	struct chain_target *ct = s->ct;

	if (!error && s->bounce)
		error = req->ops->copy_to(req, 0, s->bounce, req->len);
	chain_bounce_put(ct, req->len, s->bounce);
	free(s);
	chain_finish(req, error);
}

/* The run is in place (or failed): let go of it, go on. */
static void run_end(struct slow_read *s, int error)
{
	loop_epoch_exit(s->ct->loop, s->epoch);
	free(s->raw);
	free(s->cluster);
	s->raw = NULL;
	s->cluster = NULL;
	if (error) {
		slow_end(s, error);
		return;
	}
	s->pos += s->run.len;
	slow_step(s);
}

/* ---- plain data ------------------------------------------------------------------ */

static void data_read(struct io_op *op, int error)
{
	struct slow_read *s = container_of(op, struct slow_read, io);

	if (!error)
		memcpy(s->dst + s->pos, (char *)s->raw + s->skip, s->run.len);
	run_end(s, error);
}

/* Read [host, host + len) of the run's layer into @raw, rounded out to blocks. */
static void read_raw(struct slow_read *s, u64 host, u64 len,
		     void (*done)(struct io_op *op, int error))
{
	struct io_dev *dev = image_data_dev(s->img);
	u64 from = ALIGN_DOWN(host, dev->block_bytes);
	u64 to = ALIGN_UP(host + len, dev->block_bytes);

	s->epoch = loop_epoch_enter(s->ct->loop);
	s->skip = host - from;
	s->raw = io_alloc(to - from);
	if (!s->raw) {
		run_end(s, -ENOMEM);
		return;
	}
	s->io = (struct io_op){ .dev = dev, .type = IO_READ, .offset = from,
				.len = to - from, .base = s->raw, .done = done };
	io_submit(s->ct->loop, &s->io);
}

/* ---- compressed ------------------------------------------------------------------- */

static u64 in_cluster(const struct slow_read *s)
{
	return (s->req->offset + s->pos) & (image_cluster_bytes(s->img) - 1);
}

static void unpack(struct chain_work *work)
{
	struct slow_read *s = container_of(work, struct slow_read, work);

	s->error = image_decompress(s->img, (char *)s->raw + s->skip,
				    s->io.len - s->skip, s->cluster);
}

static void unpacked(struct chain_work *work)
{
	struct slow_read *s = container_of(work, struct slow_read, work);

	if (!s->error)
		memcpy(s->dst + s->pos, (char *)s->cluster + in_cluster(s), s->run.len);
	run_end(s, s->error);
}

static void compressed_read(struct io_op *op, int error)
{
	struct slow_read *s = container_of(op, struct slow_read, io);

	if (error) {
		run_end(s, error);
		return;
	}
	s->work.run = unpack;
	s->work.done = unpacked;
	chain_work(s->ct, &s->work);
}

static void read_compressed(struct slow_read *s)
{
	const struct image *img = s->img;
	struct cluster_info c;
	u64 end;

	image_decode(img, s->run.host | QCOW2_COMPRESSED, 0, 0, &c);
	end = io_dev_bytes(img->dev);
	if (c.kind != CLUSTER_COMPRESSED || c.host >= end) {
		slow_end(s, -EIO);
		return;
	}
	s->cluster = io_alloc(image_cluster_bytes(img));
	if (!s->cluster) {
		slow_end(s, -ENOMEM);
		return;
	}
	read_raw(s, c.host, min((u64)c.compressed_bytes, end - c.host), compressed_read);
}

/* ---- run by run ---------------------------------------------------------------------- */

static void slow_loaded(struct load_wait *wait, int error);

/* The next run, as far as its window reaches; false: the window is being loaded. */
static bool next_run(struct slow_read *s)
{
	u64 guest = s->req->offset + s->pos;
	u64 window = 1ull << s->ct->map.window_bits;
	u64 end = min(s->req->offset + s->req->len, ALIGN_DOWN(guest, window) + window);
	struct run *runs = s->ct->loop->scratch;

	if (map_resolve(&s->ct->map, guest, end - guest, runs) <= 0) {
		s->load.fn = slow_loaded;
		chain_load(s->ct, map_window_of(&s->ct->map, guest), &s->load);
		return false;
	}
	s->run = runs[0];
	if (s->run.kind == EXTENT_DATA || s->run.kind == EXTENT_COMPRESSED)
		s->img = s->ct->map.table->by_id[s->run.layer]->img;
	return true;
}

static void slow_step(struct slow_read *s)
{
	while (s->pos < s->req->len) {
		if (!next_run(s))
			return;
		switch (s->run.kind) {
		case EXTENT_NONE:
		case EXTENT_ZERO:
			memset(s->dst + s->pos, 0, s->run.len);
			s->pos += s->run.len;
			continue;
		case EXTENT_DATA:
			read_raw(s, s->run.host, s->run.len, data_read);
			return;
		case EXTENT_COMPRESSED:
			read_compressed(s);
			return;
		default:
			slow_end(s, -EIO);
			return;
		}
	}
	slow_end(s, 0);
}

static void slow_loaded(struct load_wait *wait, int error)
{
	struct slow_read *s = container_of(wait, struct slow_read, load);

	if (error)
		slow_end(s, error);
	else
		slow_step(s);
}

static void slow_start(struct slow_read *s)
{
	int ret = 0;

	s->dst = s->req->base;
	if (!s->dst) {
		ret = chain_bounce_get(s->ct, s->req->len, &s->wait, &s->bounce);
		s->dst = s->bounce;
	}
	if (!ret)
		slow_step(s);
	else if (ret != -EAGAIN)
		slow_end(s, ret);
}

static void slow_memory(struct meta_wait *wait)
{
	slow_start(container_of(wait, struct slow_read, wait));
}

void chain_slow_read(struct chain_target *ct, struct request *req)
{
	struct slow_read *s = calloc(1, sizeof(*s));

	if (!s) {
		chain_finish(req, -ENOMEM);
		return;
	}
	ct->stat_slow_reads++;
	request_set_stage(req, "slow read");
	s->ct = ct;
	s->req = req;
	s->wait.fn = slow_memory;
	slow_start(s);
}
