// SPDX-License-Identifier: GPL-2.0-or-later
/* The chain that a case begins with: drawn by seed, made by qemu-img and qemu-io. */
#include "sim.h"

#include <fcntl.h>
#include <unistd.h>

struct sim_plan plan;

/* ---- drawing ------------------------------------------------------------------- */

void sim_draw_layer(struct sim_layer *l)
{
	static const u32 clusters[] = { 512, 512, 1024, 4096, 16384, 65536 };

	l->cluster = clusters[rnd(ARRAY_SIZE(clusters))];
	l->extl2 = l->cluster >= 16384 && chance(60);
	l->v2 = !l->extl2 && chance(12);
	l->snapshot = chance(20);
	l->compressed = chance(35);
	l->refcount_bits = l->v2 ? 16 : 8u << rnd(4);
}

static void draw_layers(void)
{
	u64 size = (256 + rnd(4) * 256) * KiB + rnd(64) * SIM_BLOCK;
	u32 i;

	plan.nr_layers = chance(20) ? 1 : 2 + rnd(3);
	for (i = 0; i < plan.nr_layers; i++) {
		sim_draw_layer(&plan.layers[i]);
		plan.layers[i].size = i + 1 == plan.nr_layers || chance(70) ? size :
			ALIGN_DOWN(size / 2 + rnd(size), SIM_BLOCK);
	}
}

/*
 * A base of coarse compressed clusters below fine layers: a commit moves what it
 * holds, in steps, while much of it is read.
 */
static void draw_moving_base(void)
{
	u64 size = plan.layers[plan.nr_layers - 1].size;
	u32 i;

	plan.nr_layers = 3;
	for (i = 0; i < plan.nr_layers; i++)
		plan.layers[i] = (struct sim_layer){ .cluster = i ? 512 : 4096u << rnd(3),
						     .compressed = !i, .dense = !i,
						     .scattered = i,
						     .refcount_bits = 16, .size = size };
	plan.cache_kib = 4096;
	plan.online_permille = 50;
	plan.merge_percent = 90;
	plan.pace_permille = 50;
	plan.step_ns = 100000;
	plan.lives = 0;
	plan.hot_sectors = 2048;
	plan.window = 30;
	plan.nr_ops = 600;
	plan.faults = false;
	sim_faults_draw(false);
}

void sim_plan_draw(void)
{
	draw_layers();
	plan.lv = chance(60);
	plan.small_lv = plan.lv && chance(30);
	plan.log = rnd(3);
	plan.cache_kib = (u32[]){ 1, 16, 4096 }[rnd(3)];
	plan.nr_ops = 100 + rnd(400);
	plan.window = (u32[]){ 1, 8, 30 }[rnd(3)];
	plan.pace_permille = (u32[]){ 10, 50, 400 }[rnd(3)];
	plan.hot_sectors = (u32[]){ 24, 128, 512 }[rnd(3)];
	plan.trim_percent = (u32[]){ 0, 4, 12 }[rnd(3)];
	plan.lazy_device = (u32[]){ 0, 20, 70 }[rnd(3)];
	plan.lazy_flush = (u32[]){ 0, 0, 90 }[rnd(3)];
	plan.step_ns = (u32[]){ 1000, 10000, 100000 }[rnd(3)];
	plan.cancel_percent = 15;
	plan.beside_percent = 35;
	plan.revert_percent = 50;
	plan.online_permille = (u32[]){ 0, 5, 20, 50 }[rnd(4)];
	plan.merge_percent = 30 + rnd(50);
	plan.grow_percent = sim_seed % 7 ? 0 : 40; /* not drawn: kept seeds stay what they are */
	plan.nr_online = 1 + rnd(10);
	plan.lives = chance(40) ? 1 + rnd(2) : 0;
	plan.faults = chance(15);
	sim_faults_draw(plan.faults);
	if (chance(15))
		draw_moving_base();
}

void sim_plan_print(void)
{
	u32 i;

	printf("seed %llu:%s%s log %u cache %uK ops %u window %u trim %u lazy %u/%u online %u "
	       "lives %u%s\n", (unsigned long long)sim_seed, plan.lv ? " lv" : "",
	       plan.small_lv ? " small" : "", plan.log, plan.cache_kib, plan.nr_ops, plan.window,
	       plan.trim_percent, plan.lazy_device, plan.lazy_flush, plan.online_permille,
	       plan.lives, plan.faults ? " FAULTS" : "");
	for (i = 0; i < plan.nr_layers; i++) {
		const struct sim_layer *l = &plan.layers[i];

		printf("  l%u: cluster %u rc%u size %llu%s%s%s%s%s\n", i, l->cluster,
		       l->refcount_bits, (unsigned long long)l->size, l->extl2 ? " extl2" : "",
		       l->v2 ? " v2" : "", l->snapshot ? " snapshot" : "",
		       l->compressed ? " compressed" : "",
		       l->scattered ? " scattered" : "");
	}
}

/* ---- making -------------------------------------------------------------------- */

/* What compresses to about a half: few clusters share a place then. */
static void make_half_random(void)
{
	u8 buf[64 * KiB];
	u64 word;
	FILE *f;
	u32 i;

	memset(buf, 0, sizeof(buf));
	for (i = 0; i < sizeof(buf); i += 8) {
		word = rnd(0);
		if (i % 256 < 128)
			memcpy(buf + i, &word, 8);
	}
	f = fopen(sim_path("half"), "w");
	if (!f || fwrite(buf, sizeof(buf), 1, f) != 1 || fclose(f))
		fail("the pattern file cannot be written");
}

static void write_with_qemu_io(u32 i, const char *name, u32 n)
{
	const struct sim_layer *l = &plan.layers[i];
	char cmd[4000];
	size_t len = 0;

	cmd[0] = 0;
	while (n--) {
		u64 off = rnd(l->size / SIM_BLOCK) * SIM_BLOCK;
		u32 most = l->scattered ? 3 : chance(50) ? 40 : 600;
		u64 bytes = min((1 + rnd(most)) * SIM_BLOCK, l->size - off);
		char pattern[330] = "-z";

		if (l->compressed && chance(60))
			snprintf(pattern, sizeof(pattern), "-s %s", sim_path("half"));
		else if (l->v2 || chance(85))
			snprintf(pattern, sizeof(pattern), "-P %u", chance(15) ? 0 : (u32)rnd(256));
		len += snprintf(cmd + len, sizeof(cmd) - len, "-c 'write %s %llu %llu' ", pattern,
				(unsigned long long)off, (unsigned long long)bytes);
	}
	if (sh("qemu-io -f qcow2 %s %s >>%s 2>&1", cmd, sim_path(name), sim_path("tools")))
		fail("qemu-io %s", name);
}

static void make_compressed(u32 i, const char *name, const char *options, const char *backing)
{
	const struct sim_layer *l = &plan.layers[i];

	if (sh("qemu-img create -q -f qcow2 %s %llu", sim_path("src"), (unsigned long long)l->size))
		fail("qemu-img create");
	if (!l->dense)
		write_with_qemu_io(i, "src", 5);
	else if (sh("qemu-io -f qcow2 -c 'write -s %s 0 %llu' %s >>%s 2>&1", sim_path("half"),
		    (unsigned long long)l->size, sim_path("src"), sim_path("tools")))
		fail("qemu-io src");
	if (sh("qemu-img convert -c -O qcow2 %s %s %s >>%s 2>&1", options, sim_path("src"),
	       sim_path(name), sim_path("tools")))
		fail("qemu-img convert -c");
	if (backing && sh("qemu-img rebase -u -F qcow2 -b %s %s", backing, sim_path(name)))
		fail("qemu-img rebase");
}

static void make_plain(u32 i, const char *name, const char *options, const char *backing)
{
	char below[64] = "";

	if (backing)
		snprintf(below, sizeof(below), "-F qcow2 -b %s", backing);
	if (sh("qemu-img create -q -f qcow2 %s %s %s %llu", options, below, sim_path(name),
	       (unsigned long long)plan.layers[i].size))
		fail("qemu-img create");
	write_with_qemu_io(i, name, plan.layers[i].scattered ? 60 : 3 + rnd(5));
}

static void make_layer(u32 i)
{
	const struct sim_layer *l = &plan.layers[i];
	char options[128], name[SIM_NAME], below[SIM_NAME];

	snprintf(name, sizeof(name), "l%u", i);
	snprintf(below, sizeof(below), "l%u", i - 1);
	snprintf(options, sizeof(options), "-o cluster_size=%u,compat=%s,refcount_bits=%u%s",
		 l->cluster, l->v2 ? "0.10" : "1.1", l->refcount_bits,
		 l->extl2 ? ",extended_l2=on" : "");
	(l->compressed ? make_compressed : make_plain)(i, name, options, i ? below : NULL);
	if (!l->snapshot)
		return;
	/* fails where the refcounts are too narrow for it */
	sh("qemu-img snapshot -c one %s 2>>%s", sim_path(name), sim_path("tools"));
	if (chance(50))
		write_with_qemu_io(i, name, 2);
	sh("qemu-img check -r all %s >>%s 2>&1", sim_path(name), sim_path("tools"));
}

/* What qemu-img finds in image @name. */
static u8 *content_of(const char *name, u64 bytes)
{
	u8 *buf = calloc(1, bytes);
	int fd;

	if (sh("qemu-img convert -O raw %s %s >>%s 2>&1", sim_path(name), sim_path("raw"),
	       sim_path("tools")))
		fail("qemu-img convert %s", name);
	fd = open(sim_path("raw"), O_RDONLY);
	if (fd < 0 || read(fd, buf, bytes) != (ssize_t)bytes)
		fail("%s: content cannot be read", name);
	close(fd);
	return buf;
}

/* Behind its image a volume has room for all that a guest or a merge may bring. */
static u64 spare_bytes(u32 i)
{
	u64 size = plan.layers[plan.nr_layers - 1].size;

	if (i == plan.nr_layers - 1 && plan.small_lv)
		return ALIGN_DOWN(rnd(512 * KiB), 4096);
	return ALIGN_UP(size + size / 2 + 512 * KiB, 4096);
}

void sim_images_make(void)
{
	u32 i, top = plan.nr_layers - 1;
	char name[SIM_NAME];
	struct sim_disk *d;
	u8 *content;

	make_half_random();
	for (i = 0; i <= top; i++)
		make_layer(i);
	for (i = 0; i <= top; i++) {
		snprintf(name, sizeof(name), "l%u", i);
		content = content_of(name, plan.layers[i].size);
		d = sim_disk_load(name, plan.lv, spare_bytes(i));
		d->small = i == top && plan.small_lv;
		if (i < top) {
			view_add(name, content, plan.layers[i].size, 0)->sealed = true;
			continue;
		}
		sim_now_view.initial = content;
		sim_now_view.bytes = plan.layers[i].size;
	}
	snprintf(sim_top, sizeof(sim_top), "l%u", top);
}
