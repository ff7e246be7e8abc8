// SPDX-License-Identifier: GPL-2.0-or-later
/* Backing references: what is followed, and what no header may reach. */
#include "unit.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <qchain/image.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Made by main(): own/{top,base,colon:ed,sub/base,link*} and other/{secret,fifo}. */
static char dir[] = "/tmp/qchain-backing-XXXXXX";

static const char *in_dir(const char *name)
{
	static char path[4][160];
	static u32 next;
	char *p = path[next++ % 4];

	snprintf(p, sizeof(path[0]), "%s/%s", dir, name);
	return p;
}

/* Resolve @name as it stands in the header of @overlay; result in static memory. */
static int resolve(const char *overlay, const char *name, const char *format,
		   struct backing_policy *policy, const char **result, struct qc_err *err)
{
	static char found[PATH_MAX];
	struct io_dev dev = { .path = (char *)overlay };
	struct image img = {
		.dev = &dev,
		.backing_name = (char *)name,
		.backing_format = (char *)format,
	};
	enum image_format parsed;
	char *path = (char *)1;
	int ret;

	memset(err, 0, sizeof(*err));
	ret = backing_policy_start(policy, in_dir("own/top"), err);
	CU_ASSERT_FATAL(ret == 0);
	ret = backing_resolve(&img, policy, &path, &parsed, err);
	CU_ASSERT(ret == err->code);
	CU_ASSERT(ret == 0 || path == NULL);
	snprintf(found, sizeof(found), "%s", ret ? "" : path ? path : "(none)");
	if (!ret)
		free(path);
	backing_policy_exit(policy);
	*result = found;
	return ret;
}

static void followed(const char *name, const char *expected)
{
	struct backing_policy policy = { 0 };
	const char *path;
	struct qc_err err;

	if (resolve(in_dir("own/top"), name, "qcow2", &policy, &path, &err))
		printf("\n%s\n", err.msg);
	CU_ASSERT(!strcmp(path, expected));
}

static void refused_by(struct backing_policy *policy, const char *name, const char *format,
		       int code, const char *words)
{
	const char *path;
	struct qc_err err;
	int ret = resolve(in_dir("own/top"), name, format, policy, &path, &err);

	CU_ASSERT(ret == code);
	if (ret != code || !strstr(err.msg, words) || strncmp(err.msg, dir, strlen(dir))) {
		printf("\n%s: %d, expected \"%s\" in: %s\n", name, ret, words, err.msg);
		CU_FAIL("wrong text");
	}
}

static void refused(const char *name, int code, const char *words)
{
	struct backing_policy policy = { 0 };

	refused_by(&policy, name, "qcow2", code, words);
}

static void test_names(void)
{
	followed("base", in_dir("own/base"));
	followed("./base", in_dir("own/base"));
	followed("sub/base", in_dir("own/sub/base"));
	followed("../own/sub/../base", in_dir("own/base"));
	followed(in_dir("own/base"), in_dir("own/base"));
	followed("link-to-base", in_dir("own/link-to-base"));
	followed("./colon:ed", in_dir("own/colon:ed"));
	followed("", "(none)");
	followed(NULL, "(none)");
}

static void test_protocols(void)
{
	refused("json:{\"driver\":\"file\",\"filename\":\"base\"}", -EPERM, "no json:");
	refused("json:{/}", -EPERM, "no json:");
	refused("file:base", -EPERM, "protocol");
	refused("nbd://host/x", -EPERM, "protocol");
	refused("colon:ed", -EPERM, "./ before");
	refused("ba\nse", -EILSEQ, "control character");
	refused("\x1b[31mbase", -EILSEQ, "control character");
}

static void test_outside(void)
{
	refused("../other/secret", -EPERM, "--allow-backing");
	refused(in_dir("other/secret"), -EPERM, "must be a file below");
	refused("link-to-secret", -EPERM, in_dir("other/secret"));
	refused("link-to-other/secret", -EPERM, in_dir("other/secret"));
	refused("../own-not/base", -EPERM, "not allowed");
	refused("/etc/passwd", -EPERM, "/etc/passwd");
	refused("sub/../../other/secret", -EPERM, "not allowed");
}

static void test_types(void)
{
	refused("none", -ENOENT, "cannot be found");
	refused("../no-image/base", -ENOENT, "cannot be found"); /* is own/base of an LV only */
	refused(".", -EINVAL, "regular file or a block device");
	refused("sub/", -EINVAL, "regular file or a block device");
	refused("..", -EINVAL, "regular file or a block device");
	refused("/dev/zero", -EINVAL, "regular file or a block device");
	alarm(20); /* an open(2) that waits for a writer fails here */
	refused("../other/fifo", -EINVAL, "regular file or a block device");
	alarm(0);
}

static void test_formats(void)
{
	struct backing_policy policy = { 0 };
	const char *path;
	struct qc_err err;

	refused_by(&policy, "base", NULL, -EINVAL, "--backing-format");
	refused_by(&policy, "base", "vmdk", -EINVAL, "vmdk");
	refused_by(&policy, "base", "", -EINVAL, "must be raw or qcow2");
	policy.backing_format = "raw";
	CU_ASSERT(resolve(in_dir("own/top"), "base", NULL, &policy, &path, &err) == 0);
	/* The administrator's word fills in, it does not overrule the header. */
	refused_by(&policy, "base", "vdi", -EINVAL, "vdi");
}

static void allowed(char **dirs, const char *name, bool expected)
{
	struct backing_policy policy = { .allow_dirs = dirs };
	const char *path;
	struct qc_err err;
	int ret = resolve(in_dir("own/top"), name, "raw", &policy, &path, &err);

	if (ret != (expected ? 0 : -EPERM))
		printf("\n%s: %s\n", name, ret ? err.msg : "was followed");
	CU_ASSERT(ret == (expected ? 0 : -EPERM));
}

static void test_allow(void)
{
	char *other[] = { (char *)"/nowhere", strdup(in_dir("other")), NULL };
	char *slash[] = { strdup(in_dir("other/")), NULL };
	char *link[] = { strdup(in_dir("own/link-to-other")), NULL };
	char *one[] = { strdup(in_dir("other/secret")), NULL };
	char *root[] = { (char *)"/", NULL };

	allowed(other, "link-to-secret", true);
	allowed(other, "../other/secret", true);
	allowed(slash, "../other/secret", true);
	allowed(link, "../other/secret", true);
	allowed(one, "../other/secret", true);
	allowed(one, "../other/secret2", false);
	allowed(other, "../own-not/base", false);
	allowed(other, "/etc/passwd", false);
	allowed(root, "/etc/passwd", true);
	free(other[1]);
	free(slash[0]);
	free(link[0]);
	free(one[0]);
}

/* A loop device, not even attached: its node is enough. */
static void test_blockdev(void)
{
	char *dev_dir[] = { (char *)"/dev", NULL };
	char *node[] = { (char *)"/dev/loop1", NULL };

	if (access("/dev/loop1", F_OK) || access("/dev/loop2", F_OK)) {
		printf(" (skipped: no loop devices) ");
		return;
	}
	CU_ASSERT(symlink("/dev/loop1", in_dir("own/link-to-loop")) == 0);
	refused("/dev/loop1", -EPERM, "--allow-backing /dev/loop1");
	refused("link-to-loop", -EPERM, "--allow-backing /dev/loop1");
	allowed(node, "/dev/loop1", true);
	allowed(node, "link-to-loop", true);
	allowed(node, "/dev/loop2", false);
	allowed(dev_dir, "/dev/loop2", true);
}

/* The names of a block device's neighbours mean nothing below it. */
static void test_blockdev_top(void)
{
	struct backing_policy policy = { 0 };
	struct io_dev dev = { .path = (char *)"/dev/loop1" };
	struct image img = { .dev = &dev, .backing_format = (char *)"raw" };
	enum image_format format;
	struct qc_err err = { 0 };
	char *path;

	if (access("/dev/loop1", F_OK) || access("/dev/loop2", F_OK)) {
		printf(" (skipped: no loop devices) ");
		return;
	}
	CU_ASSERT(backing_policy_start(&policy, "/dev/loop1", &err) == 0);
	CU_ASSERT(!policy.top_dir && !policy.top_vg_uuid);
	img.backing_name = (char *)"loop2";
	CU_ASSERT(backing_resolve(&img, &policy, &path, &format, &err) == -EPERM);
	CU_ASSERT(strstr(err.msg, "--allow-backing /dev/loop2") != NULL);
	backing_policy_exit(&policy);
}

/* vdsm names each backing image ../IMAGE/VOLUME: the path must not grow. */
static void test_long_chain(void)
{
	struct backing_policy policy = { 0 };
	char overlay[PATH_MAX];
	const char *path;
	struct qc_err err;

	snprintf(overlay, sizeof(overlay), "%s", in_dir("own/sub/base"));
	for (u32 i = 0; i < 1000; i++) {
		CU_ASSERT_FATAL(!resolve(overlay, "../sub/base", "raw", &policy, &path, &err));
		snprintf(overlay, sizeof(overlay), "%s", path);
	}
	CU_ASSERT(!strcmp(overlay, in_dir("own/sub/base")));
}

/* What was swapped between looking and opening is found by its descriptor. */
static void test_check_opened(void)
{
	struct backing_policy policy = { 0 };
	struct io_dev dev = { .path = (char *)in_dir("own/base") };
	struct qc_err err = { 0 };

	CU_ASSERT(backing_policy_start(&policy, in_dir("own/top"), &err) == 0);
	dev.fd = open(in_dir("own/base"), O_RDONLY);
	CU_ASSERT(backing_check(&policy, &dev, "top", &err) == 0);
	close(dev.fd);
	dev.fd = open(in_dir("other/secret"), O_RDONLY);
	CU_ASSERT(backing_check(&policy, &dev, "top", &err) == -EPERM);
	close(dev.fd);
	err.code = 0;
	dev.fd = open(in_dir("own/gone"), O_RDWR | O_CREAT, 0600);
	unlink(in_dir("own/gone"));
	CU_ASSERT(backing_check(&policy, &dev, "top", &err) == -ENOENT);
	close(dev.fd);
	backing_policy_exit(&policy);
}

static const struct unit_test tests[] = {
	{ "names that are followed", test_names },
	{ "protocols and control characters", test_protocols },
	{ "outside the directory", test_outside },
	{ "file types", test_types },
	{ "formats", test_formats },
	{ "--allow-backing", test_allow },
	{ "a block device below a file", test_blockdev },
	{ "below a block device", test_blockdev_top },
	{ "a long chain of relative names", test_long_chain },
	{ "the descriptor decides", test_check_opened },
	{ NULL, NULL },
};

static int touch(const char *name)
{
	int fd = open(in_dir(name), O_CREAT | O_RDWR | O_CLOEXEC, 0600);

	return fd < 0 ? -1 : close(fd);
}

static int make_tree(void)
{
	return mkdir(in_dir("own"), 0700) || mkdir(in_dir("own/sub"), 0700) ||
	       mkdir(in_dir("own-not"), 0700) || mkdir(in_dir("other"), 0700) ||
	       touch("own/top") || touch("own/base") || touch("own/colon:ed") ||
	       touch("own/sub/base") || touch("own-not/base") || touch("other/secret") ||
	       touch("other/secret2") || mkfifo(in_dir("other/fifo"), 0600) ||
	       symlink("base", in_dir("own/link-to-base")) ||
	       symlink("../other/secret", in_dir("own/link-to-secret")) ||
	       symlink(in_dir("other"), in_dir("own/link-to-other"));
}

int main(void)
{
	char command[64];
	int ret = 2;

	if (!mkdtemp(dir))
		return 2;
	if (!make_tree())
		ret = unit_main("backing", tests);
	snprintf(command, sizeof(command), "rm -rf %s", dir);
	return system(command) ? 2 : ret;
}
