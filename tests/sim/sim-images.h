/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The images of one case of the simulator, made by qemu-img and qemu-io. */
#ifndef SIM_IMAGES_H
#define SIM_IMAGES_H

struct plan {
	u32 cluster;
	bool extl2;
	bool v2;
	bool backing;
	bool snapshot;
	bool compressed;
	u32 refcount_bits;
	u64 size;
	bool lv;
	bool small_lv;
	bool unclean; /* the image is what a cut of an earlier life left */
	u32 cache_kib;
	u32 nr_ops;
	u32 cuts;
};

static void fill_with_qemu_io(const struct plan *p, const char *name, u32 n)
{
	char cmd[1500];
	size_t len = 0;
	u32 i;

	for (i = 0; i < n; i++) {
		u64 off = rnd(p->size / 512) * 512;
		u64 size = min((1 + rnd(400)) * 512, p->size - off);

		len += snprintf(cmd + len, sizeof(cmd) - len, "-c 'write%s -P %u %llu %llu' ",
				chance(15) && !p->v2 ? " -z" : "", chance(15) ? 0 : (u32)rnd(256),
				(unsigned long long)off, (unsigned long long)size);
		if (strstr(cmd + len - 60 > cmd ? cmd + len - 60 : cmd, "-z")) {
			/* -z takes no pattern */
			char *pat = strstr(cmd + len - 60 > cmd ? cmd + len - 60 : cmd, "-z -P");

			if (pat) {
				char *end = strchr(pat + 6, ' ');

				memmove(pat + 2, end, strlen(end) + 1);
				len = strlen(cmd);
			}
		}
	}
	if (sh("qemu-io -f qcow2 %s %s/%s >>%s/log 2>&1", cmd, folder, name, folder))
		fail("qemu-io %s", name);
}

static void make_images(const struct plan *p)
{
	char opts[256];

	if (p->backing) {
		sh("qemu-img create -q -f qcow2 %s/base.qcow2 %llu", folder,
		   (unsigned long long)(chance(70) ? p->size : p->size / 2 / 512 * 512));
		sh("qemu-io -f qcow2 -c 'write -P 17 0 %llu' %s/base.qcow2 >>%s/log 2>&1",
		   (unsigned long long)(p->size / 3 / 512 * 512), folder, folder);
	}
	snprintf(opts, sizeof(opts), "-o cluster_size=%u,compat=%s,refcount_bits=%u%s", p->cluster,
		 p->v2 ? "0.10" : "1.1", p->refcount_bits, p->extl2 ? ",extended_l2=on" : "");
	if (p->compressed) {
		sh("qemu-img create -q -f qcow2 %s/src.qcow2 %llu", folder,
		   (unsigned long long)p->size);
		fill_with_qemu_io(p, "src.qcow2", 5);
		if (sh("qemu-img convert -c -O qcow2 %s %s/src.qcow2 %s/top.qcow2 >>%s/log 2>&1",
		       opts, folder, folder, folder))
			fail("qemu-img convert -c");
		if (p->backing)
			sh("qemu-img rebase -u -F qcow2 -b %s/base.qcow2 %s/top.qcow2", folder,
			   folder);
	} else {
		if (sh("qemu-img create -q -f qcow2 %s %s%s%s %s/top.qcow2 %llu", opts,
		       p->backing ? "-F qcow2 -b " : "", p->backing ? folder : "",
		       p->backing ? "/base.qcow2" : "", folder, (unsigned long long)p->size))
			fail("qemu-img create");
		fill_with_qemu_io(p, "top.qcow2", 4);
	}
	if (p->snapshot) { /* fails where the refcounts are too narrow for it */
		sh("qemu-img snapshot -c one %s/top.qcow2 2>>%s/log", folder, folder);
		if (chance(50))
			fill_with_qemu_io(p, "top.qcow2", 2);
		sh("qemu-img check -r all %s/top.qcow2 >>%s/log 2>&1", folder, folder);
	}
}

#endif
