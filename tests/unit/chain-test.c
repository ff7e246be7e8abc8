// SPDX-License-Identifier: GPL-2.0-or-later
/* Opening chains: order, names, loops, depth, time. */
#include "unit.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <qchain/chain.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <uapi/qcow2.h>
#include <unistd.h>

#define CLUSTER_BYTES 65536u
#define DISK_BYTES (64u * MiB)
#define LONG_CHAIN 1000u

static char dir[] = "/tmp/qchain-chain-XXXXXX";

static void in_dir(char *path, size_t len, const char *name)
{
	snprintf(path, len, "%s/%s", dir, name);
}

static void put32(char *at, u32 value)
{
	value = htobe32(value);
	memcpy(at, &value, sizeof(value));
}

static void put64(char *at, u64 value)
{
	value = htobe64(value);
	memcpy(at, &value, sizeof(value));
}

/* The header of an empty version 3 image: refcounts in clusters 1 and 2, L1 in 3. */
static void fill_header(char *header, const char *backing)
{
	size_t len = strlen(backing);

	put32(header, 0x514649fb);
	put32(header + 4, 3);
	put64(header + 8, len ? 120 : 0);
	put32(header + 16, len);
	put32(header + 20, 16);
	put64(header + 24, DISK_BYTES);
	put32(header + 36, 1);
	put64(header + 40, 3 * CLUSTER_BYTES);
	put64(header + 48, CLUSTER_BYTES);
	put32(header + 56, 1);
	put32(header + 96, 4);
	put32(header + 100, 104);
	if (len) {
		put32(header + 104, 0xe2792aca);
		put32(header + 108, 5);
		memcpy(header + 112, "qcow2", 5);
	}
	memcpy(header + 120, backing, len);
}

/* Image @name over @backing ("": none) in the test's directory. */
static void make_image(const char *name, const char *backing)
{
	char path[160], header[1024] = { 0 }, entry[8];
	int fd;

	in_dir(path, sizeof(path), name);
	fd = open(path, O_CREAT | O_RDWR | O_TRUNC | O_CLOEXEC, 0600);
	CU_ASSERT_FATAL(fd >= 0);
	fill_header(header, backing);
	CU_ASSERT(pwrite(fd, header, sizeof(header), 0) == sizeof(header));
	put64(entry, 2 * CLUSTER_BYTES);
	CU_ASSERT(pwrite(fd, entry, 8, CLUSTER_BYTES) == 8);
	for (u32 i = 0; i < 4; i++)
		CU_ASSERT(pwrite(fd, "\0\1", 2, 2 * CLUSTER_BYTES + 2 * i) == 2);
	CU_ASSERT(ftruncate(fd, 4 * CLUSTER_BYTES) == 0);
	close(fd);
}

static struct chain *open_ok(const char *name, bool read_only)
{
	struct chain_open_options options = {
		.top_format = IMAGE_QCOW2, .read_only = read_only,
	};
	struct qc_err err = { 0 };
	struct chain *chain;
	char path[160];

	in_dir(path, sizeof(path), name);
	if (chain_open(path, &options, &chain, &err)) {
		printf("\n%s\n", err.msg);
		CU_FAIL_FATAL("open failed");
	}
	return chain;
}

static void refused(const char *name, const struct chain_open_options *options, int code,
		    const char *words)
{
	struct qc_err err = { 0 };
	struct chain *chain;
	char path[160];
	int ret;

	in_dir(path, sizeof(path), name);
	ret = chain_open(path, options, &chain, &err);
	CU_ASSERT(ret == code && err.code == code);
	if (ret != code || !strstr(err.msg, words)) {
		printf("\n%d, expected \"%s\" in: %s\n", ret, words, err.msg);
		CU_FAIL("wrong text");
	}
}

static const struct chain_open_options reader = { .top_format = IMAGE_QCOW2, .read_only = true };
static const struct chain_open_options writer = { .top_format = IMAGE_QCOW2 };

static void test_order(void)
{
	struct chain *chain;

	make_image("base", "");
	make_image("mid", "base");
	make_image("top", "./mid");
	chain = open_ok("top", false);
	CU_ASSERT_FATAL(chain->nr_layers == 3);
	CU_ASSERT(!chain->read_only && chain->virtual_size == DISK_BYTES);
	CU_ASSERT(!strcmp(chain->layers[0].node_name, "top"));
	CU_ASSERT(!strcmp(chain->layers[1].node_name, "mid"));
	CU_ASSERT(!strcmp(chain->layers[2].node_name, "base"));
	CU_ASSERT(chain->layers[0].img->dev->writable);
	CU_ASSERT(!chain->layers[1].img->dev->writable);
	CU_ASSERT(chain_block_bytes(chain) >= SECTOR_SIZE);
	/* Two chains may share what is below, nobody may write it. */
	make_image("top2", "mid");
	chain_close(open_ok("top2", false));
	refused("top", &reader, -EAGAIN, "\"write\" is taken");
	refused("mid", &writer, -EAGAIN, "\"write\" is denied");
	chain_close(chain);
	chain = open_ok("top", true);
	CU_ASSERT(chain->read_only && !chain->layers[0].img->dev->writable);
	chain_close(chain);
}

static void test_loops(void)
{
	char path[160];

	make_image("self", "self");
	refused("self", &writer, -ELOOP, "already in the chain (layer 0");
	make_image("l2", "l0-link");
	make_image("l1", "l2");
	make_image("l0", "l1");
	in_dir(path, sizeof(path), "l0-link");
	CU_ASSERT(symlink("l0", path) == 0);
	refused("l0", &writer, -ELOOP, "below l0 -> .. -> l2, layer 3");
	refused("l0", &reader, -ELOOP, "rebase");
}

static void test_errors(void)
{
	make_image("e1", "missing");
	make_image("e0", "e1");
	refused("e1", &writer, -ENOENT, "below e1, layer 1: ");
	refused("e0", &writer, -ENOENT, "below e0 -> e1, layer 2: ");
	refused("nothing", &writer, -ENOENT, "not found");
	make_image("e3", "/etc/passwd");
	refused("e3", &writer, -EPERM, "--allow-backing");
}

static void test_node_names(void)
{
	const char *long_name = "snap_vm-103-disk-0_before-upgrade-1";
	struct chain *chain;
	char path[160];

	in_dir(path, sizeof(path), "n1");
	mkdir(path, 0700);
	make_image("snap_vm-103-disk-0_before-upgrade-2", "");
	make_image(long_name, "snap_vm-103-disk-0_before-upgrade-2");
	make_image("n1/a b", "../snap_vm-103-disk-0_before-upgrade-1");
	refused("n1/a b", &writer, -EPERM, "must be a file below");
	make_image("a b", long_name);
	chain = open_ok("a b", false);
	CU_ASSERT_FATAL(chain->nr_layers == 3);
	CU_ASSERT(!strcmp(chain->layers[0].node_name, "a_b"));
	CU_ASSERT(!strcmp(chain->layers[1].node_name, "snap_vm-103-disk-0_before-upgra"));
	CU_ASSERT(!strcmp(chain->layers[2].node_name, "snap_vm-103-disk-0_before-upg.2"));
	chain_close(chain);
}

static u64 now_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000ull + ts.tv_nsec / 1000;
}

static void make_long(const char *prefix, u32 nr)
{
	char name[80], backing[80] = "";

	for (u32 i = nr; i-- > 0;) {
		snprintf(name, sizeof(name), "%s-%05u", prefix, i);
		make_image(name, backing);
		snprintf(backing, sizeof(backing), "%s", name);
	}
}

static void test_long_chain(void)
{
	/* The names are equal where they are cut: the worst case for unique ones. */
	const char *prefix = "long-long-long-long-long-long-long";
	struct chain *chain;
	char name[80];
	u64 start;

	make_long(prefix, LONG_CHAIN);
	snprintf(name, sizeof(name), "%s-%05u", prefix, 0);
	chain_close(open_ok(name, false)); /* warm */
	start = now_us();
	chain = open_ok(name, false);
	printf(" (%u layers in %llu us) ", LONG_CHAIN, (unsigned long long)(now_us() - start));
	CU_ASSERT(chain->nr_layers == LONG_CHAIN);
	chain_close(chain);
}

static void test_depth(void)
{
	make_long("deep", QC_MAX_CHAIN_DEPTH + 1);
	refused("deep-00000", &reader, -EMLINK, "at most 4096");
	chain_close(open_ok("deep-00001", true));
}

static void test_no_descriptors(void)
{
	struct rlimit old, few;

	getrlimit(RLIMIT_NOFILE, &old);
	few = old;
	few.rlim_cur = 50;
	setrlimit(RLIMIT_NOFILE, &few);
	refused("deep-00000", &reader, -EMFILE, "LimitNOFILE");
	setrlimit(RLIMIT_NOFILE, &old);
}

static void test_snapshot(void)
{
	struct chain_open_options options = { .top_format = IMAGE_QCOW2, .snapshot = "s" };

	make_image("top", "base");
	refused("top", &options, -EINVAL, "must be opened read-only");
	options.read_only = true;
	refused("top", &options, -ENOENT, "s");
}

static const struct unit_test tests[] = {
	{ "order and roles", test_order },
	{ "loops", test_loops },
	{ "errors name the layer", test_errors },
	{ "node names", test_node_names },
	{ "a thousand layers", test_long_chain },
	{ "depth", test_depth },
	{ "out of descriptors", test_no_descriptors },
	{ "internal snapshots", test_snapshot },
	{ NULL, NULL },
};

int main(void)
{
	struct rlimit nofile;
	char command[64];
	int ret;

	if (!mkdtemp(dir) || getrlimit(RLIMIT_NOFILE, &nofile))
		return 2;
	nofile.rlim_cur = nofile.rlim_max;
	setrlimit(RLIMIT_NOFILE, &nofile);
	ret = unit_main("chain", tests);
	snprintf(command, sizeof(command), "rm -rf %s", dir);
	return system(command) ? 2 : ret;
}
