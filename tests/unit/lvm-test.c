// SPDX-License-Identifier: GPL-2.0-or-later
/* Logical volumes: the real lvm on a loop device, and a false one that misbehaves. */
#include "../../ublk-target/lvm/lvm-private.h"
#include "unit.h"

#include <errno.h>
#include <fcntl.h>
#include <qchain/lvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#define VG "qchain-unit-test"

static char dir[] = "/tmp/qchain-lvm-XXXXXX";
static char real_path[4096];
static int loop_fd = -1; /* keeps the PV's loop device */

static void write_file(const char *name, mode_t mode, const char *text)
{
	char path[128];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	fd = open(path, O_CREAT | O_WRONLY | O_TRUNC | O_CLOEXEC, mode);
	CU_ASSERT_FATAL(fd >= 0);
	CU_ASSERT(write(fd, text, strlen(text)) == (ssize_t)strlen(text));
	close(fd);
}

/* From now on `lvm` is a shell script with this body. */
static void use_false_lvm(const char *body)
{
	char script[4096], path[4200];

	snprintf(script, sizeof(script), "#!/bin/sh\n%s\n", body);
	write_file("lvm", 0700, script);
	snprintf(path, sizeof(path), "%s:%s", dir, real_path);
	setenv("PATH", path, 1);
}

static void use_real_lvm(void)
{
	setenv("PATH", real_path, 1);
}

static void has_words(const struct qc_err *err, int code, const char *words)
{
	CU_ASSERT(err->code == code);
	if (err->code != code || !strstr(err->msg, words)) {
		printf("\n%d, expected \"%s\" in: %s\n", err->code, words, err->msg);
		CU_FAIL("wrong text");
	}
}

/* @name: a file that the false lvm wrote */
static void has_lines(const char *name, const char *text)
{
	char seen[1024] = "", path[64];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	fd = open(path, O_RDONLY);
	CU_ASSERT_FATAL(fd >= 0);
	CU_ASSERT(read(fd, seen, sizeof(seen) - 1) > 0);
	close(fd);
	CU_ASSERT(!strcmp(seen, text));
}

/* ---- a false lvm ------------------------------------------------------- */

/* In a process of its own: what is answered counts to its end. */
static void remove_thrice(void)
{
	struct qc_err err = { 0 };
	int status, failed = 0;
	pid_t pid = fork();

	CU_ASSERT_FATAL(pid >= 0);
	if (!pid) {
		for (int i = 0; i < 3; i++)
			failed |= lvm_remove("vg", "a", &err);
		_exit(failed != 0);
	}
	CU_ASSERT(waitpid(pid, &status, 0) == pid && status == 0);
}

/* Before all tests in which something is answered in this process. */
static void test_filter(void)
{
	/* no answer, then one pattern, printed without brackets; from then on it is not asked */
	use_false_lvm("cd $(dirname $0)\n"
		      "[ $1 = lvmconfig ] || { echo \"$3\" >> filters; exit; }\n"
		      "echo >> asked\n"
		      "[ $(wc -l < asked) != 1 ] || exit 5\n"
		      "printf 'devices {\\n\\tfilter=\"r|^/dev/none|\"\\n'\n"
		      "printf '\\tglobal_filter=\"a|x|\"\\n}\\n'");
	remove_thrice();
	use_real_lvm();
	has_lines("asked", "\n\n");
	has_lines("filters",
		  "devices/filter=[\"r|^/dev/ublkb|\",\"r|^/dev/qchain/|\"]\n"
		  "devices/filter=[\"r|^/dev/ublkb|\",\"r|^/dev/none|\"]\n"
		  "devices/filter=[\"r|^/dev/ublkb|\",\"r|^/dev/none|\"]\n");
}

static void list_fails(const char *body, int code, const char *words)
{
	struct qc_err err = { 0 };
	struct lvm_lv *lvs;
	u32 nr;

	use_false_lvm(body);
	CU_ASSERT(lvm_list("vg", &lvs, &nr, &err) == code);
	has_words(&err, code, words);
	use_real_lvm();
}

static void test_failures(void)
{
	list_fails("echo '  WARNING: x' >&2; echo '  Volume group \"vg\" not found' >&2; exit 5",
		   -EIO, "vg: lvs failed (exit 5: Volume group \"vg\" not found)");
	list_fails("exit 3", -EIO, "exit 3: no message");
	list_fails("kill -9 $$", -EIO, "signal 9");
	list_fails("echo '{'", -EPROTO, "not understood");
	list_fails("", -EPROTO, "not understood");
	list_fails("echo '{\"report\":{}}'", -EPROTO, "not understood");
	list_fails("echo '{\"report\":[]}'", -EPROTO, "not understood");
	list_fails("echo '{\"report\":[{\"lv\":[{\"vg_name\":\"v\"}]}]}'", -EPROTO,
		   "a field is missing");
	list_fails("echo '{\"report\":[{\"lv\":[5]}]}'", -EPROTO, "a field is missing");
}

#define ONE_LV(size, tags)                                                                    \
	"{\\\"vg_name\\\":\\\"vg\\\",\\\"lv_name\\\":\\\"a\\\",\\\"lv_uuid\\\":\\\"u\\\","     \
	"\\\"lv_size\\\":\\\"" size "\\\",\\\"lv_tags\\\":\\\"" tags "\\\","                    \
	"\\\"lv_active\\\":\\\"active\\\",\\\"lv_device_open\\\":\\\"open\\\"}"

static void test_report(void)
{
	struct qc_err err = { 0 };
	struct lvm_lv *lvs;
	u32 nr;

	list_fails("printf \"{\\\"report\\\":[{\\\"lv\\\":[" ONE_LV("5k", "") "]}]}\"", -EPROTO,
		   "5k");
	use_false_lvm("[ $# = 10 ] && [ ${10} = vg ] && [ $LC_ALL = C ] && "
		      "printf \"{\\\"report\\\":[{\\\"lv\\\":[" ONE_LV("4096", "a,b") ","
		      ONE_LV("18446744073709551615", "$(printf 'tag-%04d,' $(seq 300))") "]}]}\"");
	CU_ASSERT_FATAL(lvm_list("vg", &lvs, &nr, &err) == 0);
	CU_ASSERT_FATAL(nr == 2);
	CU_ASSERT(lvs[0].size_bytes == 4096 && lvs[0].active && lvs[0].open);
	CU_ASSERT(!strcmp(lvs[0].tags, "a,b"));
	CU_ASSERT(lvs[1].size_bytes == UINT64_MAX);
	CU_ASSERT(strlen(lvs[1].tags) == 300 * 9 && !strncmp(lvs[1].tags + 299 * 9, "tag-0300", 8));
	free(lvs);
	use_real_lvm();
}

/* All VGs in one report, taken apart again; fields that only newer releases have. */
static void test_parts(void)
{
	struct qc_err err = { 0 };
	struct lvm_lv *lvs, *part;
	u32 nr;

	use_false_lvm("sed s/@/\\\"/g <<END\n"
		      "{@report@:[{@lv@:["
		      "{@vg_name@:@a@,@lv_name@:@x@,@lv_uuid@:@1@,@lv_size@:@512@,@lv_tags@:@t@,"
		      "@lv_active@:@@,@lv_device_open@:@@},"
		      "{@vg_name@:@b@,@lv_name@:@y@,@lv_uuid@:@2@,@lv_size@:@512@,@lv_tags@:@u,v@,"
		      "@lv_active@:@active@,@lv_device_open@:@@,@lv_path@:@/d/b/y@,"
		      "@vg_lock_type@:@sanlock@,@vg_size@:@8192@,@vg_free@:@4096@,"
		      "@vg_extent_size@:@1024@},"
		      "{@vg_name@:@b@,@lv_name@:@pool@,@lv_uuid@:@3@,@lv_size@:@512@,@lv_tags@:@@,"
		      "@lv_active@:@active@,@lv_device_open@:@@,@lv_path@:@@,@vg_lock_type@:@none@}"
		      "]}]}\nEND");
	CU_ASSERT_FATAL(lvm_list(NULL, &lvs, &nr, &err) == 0 && nr == 3);
	use_real_lvm();
	CU_ASSERT(!strcmp(lvs[0].path, "/dev/a/x") && !lvs[0].locked && !lvs[0].vg_free_bytes);
	CU_ASSERT_FATAL(lvm_list_part(lvs, nr, "b", &part, &nr) == 0 && nr == 2);
	free(lvs);
	CU_ASSERT(!strcmp(part[0].name, "y") && !strcmp(part[0].tags, "u,v") && part[0].locked);
	CU_ASSERT(!strcmp(part[0].path, "/d/b/y") && part[0].vg_bytes == 8192);
	CU_ASSERT(part[0].extent_bytes == 1024 && !part[1].extent_bytes);
	CU_ASSERT(part[0].vg_free_bytes == 4096 && !part[1].path[0] && !part[1].locked);
	CU_ASSERT(lvm_list_part(part, nr, "a", &lvs, &nr) == 0 && nr == 0 && !lvs);
	free(part);
}

/* With lvmlockd: another host has it for itself, or something else is the matter. */
static void test_shared(void)
{
	struct qc_err err = { 0 };

	use_false_lvm("case \"$*\" in *'--activate sy vg/a') ;; *) exit 9;; esac");
	CU_ASSERT(lvm_activate_shared("vg", "a", &err) == 0);
	use_false_lvm("echo '  LV locked by other host: vg/a' >&2; exit 5");
	CU_ASSERT(lvm_activate_shared("vg", "a", &err) == -EBUSY);
	has_words(&err, -EBUSY, "locked by other host");
	err.code = 0;
	use_false_lvm("echo '  Failed to find logical volume' >&2; exit 5");
	CU_ASSERT(lvm_activate_shared("vg", "a", &err) == -EIO);
	use_real_lvm();
}

/* Whole extents are kept; lvm has the descriptor as its input. */
static void test_reduce(void)
{
	struct lvm_lv lv = { .vg = "vg", .name = "a", .size_bytes = 40960, .extent_bytes = 4096 };
	int fd = open(dir, O_RDONLY | O_CLOEXEC | O_DIRECTORY);
	struct qc_err err = { 0 };
	char expected[256];
	u64 bytes = 0;

	CU_ASSERT_FATAL(fd >= 0);
	use_false_lvm("c=$1; shift 3; [ $c = lvmconfig ] || "
		      "echo \"$c $* $(readlink /proc/$$/fd/0)\" >> $(dirname $0)/reduced");
	CU_ASSERT(lvm_reduce_held(&lv, 36865, fd, &bytes, &err) == 0 && bytes == 40960);
	CU_ASSERT(lvm_reduce_held(&lv, 50000, fd, &bytes, &err) == 0 && bytes == 40960);
	CU_ASSERT(lvm_reduce_held(&lv, 20481, fd, &bytes, &err) == 0 && bytes == 24576);
	close(fd);
	snprintf(expected, sizeof(expected),
		 "lvreduce --yes --autobackup n --size 24576b vg/a %s\n", dir);
	has_lines("reduced", expected);
	use_false_lvm("[ $1 = lvmconfig ] || exit 5");
	CU_ASSERT(lvm_reduce_held(&lv, 1, -1, &bytes, &err) == -EIO && bytes == 40960);
	use_real_lvm();
}

/* More than a pipe holds, on both streams, from a writer that blocks. */
static void test_much_output(void)
{
	list_fails("dd if=/dev/zero bs=1M count=3 2>/dev/null | tr '\\0' 'e' >&2; "
		   "dd if=/dev/zero bs=1M count=3 2>/dev/null | tr '\\0' ' '; exit 1", -EIO,
		   "exit 1: eeee");
}

static void test_timeout(void)
{
	const char *args[] = { "lvs", NULL };
	struct qc_err err = { 0 };

	/* The filter is asked for at once, only the command itself hangs. */
	use_false_lvm("[ $1 = lvmconfig ] || exec sleep 20");
	CU_ASSERT(lvm_run("vg", args, 100, NULL, &err) == -ETIMEDOUT);
	has_words(&err, -ETIMEDOUT, "was stopped");
	err.code = 0;
	/* It closed its output and runs on. */
	use_false_lvm("[ $1 = lvmconfig ] || { exec >&- 2>&-; exec sleep 20; }");
	CU_ASSERT(lvm_run("vg", args, 100, NULL, &err) == -ETIMEDOUT);
	has_words(&err, -ETIMEDOUT, "look with lvs");
	use_real_lvm();
}

static void test_arguments(void)
{
	struct qc_err err = { 0 };

	/* our own devices are never looked at: the pattern comes with every command */
	use_false_lvm("case \"$2 $3\" in '--config devices/filter=[\"r|^/dev/ublkb|\",'*) ;; "
		      "*) exit 9;; esac; c=$1; shift 3; echo \"$c $*\" >> $(dirname $0)/seen");
	CU_ASSERT(lvm_create("vg", "a-b", 1000000, "t=1,t2", &err) == 0);
	CU_ASSERT(lvm_rename("vg", "a-b", "c", &err) == 0);
	CU_ASSERT(lvm_rename("vg", "a-b", "-c", &err) == -EINVAL);
	err.code = 0;
	CU_ASSERT(lvm_remove("vg", "a-b", &err) == 0);
	CU_ASSERT(lvm_activate("vg", "a-b", false, &err) == 0);
	CU_ASSERT(lvm_change_tags("vg", "a", "n1,n2", "old", &err) == 0);
	CU_ASSERT(lvm_change_tags("vg", "a", NULL, "", &err) == 0);
	use_real_lvm();
	has_lines("seen",
		"lvcreate --yes --autobackup n --activate y --setautoactivation n "
		"--wipesignatures n --zero n --size 1000448b --name a-b --addtag t=1 "
		"--addtag t2 vg\n"
		"lvrename --yes --autobackup n vg a-b c\n"
		"lvremove --yes --autobackup n vg/a-b\n"
		"lvchange --yes --autobackup n --ignoreactivationskip --activate n vg/a-b\n"
		"lvchange --yes --autobackup n --deltag old --addtag n1 --addtag n2 vg/a\n");
}

static void bad_name(const char *vg, const char *name, const char *words)
{
	struct qc_err err = { 0 };

	CU_ASSERT(lvm_remove(vg, name, &err) == -EINVAL);
	has_words(&err, -EINVAL, words);
}

static void test_names(void)
{
	struct qc_err err = { 0 };
	char name[140];

	bad_name("--config", "a", "VG name not valid (--config)");
	bad_name("vg", "-f", "LV name not valid (-f)");
	bad_name("vg", "", "LV name");
	bad_name("vg", "a b", "LV name");
	bad_name("vg", "a/b", "LV name");
	bad_name("..", "a", "VG name");
	memset(name, 'x', sizeof(name));
	name[128] = 0;
	bad_name("vg", name, "1..127");
	CU_ASSERT(lvm_change_tags("vg", "a", "ok,--x", NULL, &err) == -EINVAL);
	has_words(&err, -EINVAL, "tag not valid (--x)");
}

/* ---- the real one ------------------------------------------------------ */

static bool run(const char *fmt, const char *arg)
{
	char command[512];

	snprintf(command, sizeof(command), fmt, arg);
	return system(command) == 0;
}

/* QCHAIN_TEST_DM=1, in the VM: with a kernel that has device-mapper. */
static bool with_dm(void)
{
	const char *value = getenv("QCHAIN_TEST_DM");

	return value && !strcmp(value, "1");
}

/* A VG on a loop device that lvm sees alone. */
static bool make_vg(void)
{
	char command[256], name[64], conf[512];
	FILE *f;

	snprintf(command, sizeof(command), "truncate -s 64M %s/pv && losetup -f --show %s/pv "
		 "2>/dev/null", dir, dir);
	f = popen(command, "r");
	if (!f || !fgets(name, sizeof(name), f)) {
		if (f)
			pclose(f);
		return false;
	}
	pclose(f);
	name[strcspn(name, "\n")] = 0;
	loop_fd = open(name, O_RDONLY | O_CLOEXEC);
	snprintf(conf, sizeof(conf), "devices { filter = [ \"a|^%s$|\", \"r|.*|\" ]\n"
		 "use_devicesfile = 0 }\nglobal { activation = %d }\n"
		 "backup { backup = 0\narchive = 0 }\n", name, with_dm());
	write_file("lvm.conf", 0600, conf);
	setenv("LVM_SYSTEM_DIR", dir, 1);
	setenv("LVM_SUPPRESS_FD_WARNINGS", "1", 1);
	return loop_fd >= 0 && run("losetup -d %s", name) &&
	       run("lvm vgcreate -qq " VG " %s >/dev/null 2>&1", name);
}

static u32 seqno(void)
{
	unsigned int n = 0;
	FILE *f = popen("lvm vgs --noheadings -o vg_seqno " VG " 2>/dev/null", "r");

	CU_ASSERT(f && fscanf(f, "%u", &n) == 1);
	pclose(f);
	return n;
}

/* The LV @name is active: what device-mapper knows of it, and what is refused. */
static struct lvm_lv *found; /* holds the tags of the last one */

static int find_lv(const char *name, struct lvm_lv *lv, struct qc_err *err)
{
	int ret;

	free(found);
	found = NULL;
	ret = lvm_find(VG, name, &found, err);
	if (!ret)
		*lv = *found;
	return ret;
}

static void check_active(const char *name)
{
	struct qc_err err = { 0 };
	char path[128], uuid[129];
	struct lvm_lv lv;
	struct stat st;
	int fd;

	CU_ASSERT(find_lv(name, &lv, &err) == 0 && lv.active && !lv.open);
	snprintf(path, sizeof(path), "/dev/" VG "/%s", name);
	fd = open(path, O_RDWR | O_CLOEXEC);
	CU_ASSERT_FATAL(fd >= 0 && fstat(fd, &st) == 0);
	CU_ASSERT(lvm_dm_uuid(major(st.st_rdev), minor(st.st_rdev), uuid, &err) == 0);
	CU_ASSERT(!strncmp(uuid, "LVM-", 4) && strlen(uuid) == 68);
	CU_ASSERT(find_lv(name, &lv, &err) == 0 && lv.open);
	CU_ASSERT(lvm_activate(VG, name, false, &err) == -EIO);
	has_words(&err, -EIO, "in use");
	err.code = 0;
	close(fd);
	CU_ASSERT(lvm_activate(VG, name, false, &err) == 0);
	CU_ASSERT(find_lv(name, &lv, &err) == 0 && !lv.active);
	CU_ASSERT(lvm_activate(VG, name, true, &err) == 0);
	CU_ASSERT(find_lv(name, &lv, &err) == 0 && lv.active);
}

static void test_real(void)
{
	struct qc_err err = { 0 };
	struct lvm_lv lv, *lvs;
	u32 nr, before;
	u64 bytes;

	if (!make_vg()) {
		printf(" (skipped: no loop devices or no lvm) ");
		return;
	}
	CU_ASSERT(lvm_list(VG, &lvs, &nr, &err) == 0 && nr == 0 && !lvs);
	CU_ASSERT_FATAL(lvm_create(VG, "a-b", 5000000, "t0", &err) == 0);
	CU_ASSERT(find_lv("a-b", &lv, &err) == 0);
	CU_ASSERT(!strcmp(lv.vg, VG) && !strcmp(lv.name, "a-b") && strlen(lv.uuid) == 38);
	CU_ASSERT(lv.size_bytes == 8 * MiB && !lv.open && !strcmp(lv.tags, "t0"));
	if (with_dm())
		check_active("a-b");
	before = seqno();
	CU_ASSERT(lvm_change_tags(VG, "a-b", "t1,t2=/x:y", "t0", &err) == 0);
	CU_ASSERT(seqno() == before + 1); /* one write of the metadata */
	CU_ASSERT(find_lv("a-b", &lv, &err) == 0 && !strcmp(lv.tags, "t1,t2=/x:y"));
	CU_ASSERT(lvm_extend(VG, "a-b", 9 * MiB, &err) == 0);
	CU_ASSERT(lvm_extend(VG, "a-b", 10 * MiB, &err) == 0);
	CU_ASSERT(find_lv("a-b", &lv, &err) == 0 && lv.size_bytes == 12 * MiB);
	CU_ASSERT(lvm_reduce_held(&lv, 5 * MiB, -1, &bytes, &err) == 0 && bytes == 8 * MiB);
	CU_ASSERT(find_lv("a-b", &lv, &err) == 0 && lv.size_bytes == 8 * MiB);
	CU_ASSERT(lvm_list(NULL, &lvs, &nr, &err) == 0 && nr == 1);
	free(lvs);
	CU_ASSERT(err.code == 0);
	CU_ASSERT(lvm_extend(VG, "a-b", 1 * GiB, &err) == -EIO);
	has_words(&err, -EIO, "nsufficient free space");
	err.code = 0;
	CU_ASSERT(find_lv("b", &lv, &err) == -ENOENT);
	err.code = 0;
	CU_ASSERT(lvm_create(VG, "a-b", 4096, NULL, &err) == -EIO);
	has_words(&err, -EIO, "already exists");
	err.code = 0;
	CU_ASSERT(lvm_rename(VG, "a-b", "c", &err) == 0);
	CU_ASSERT(find_lv("c", &lv, &err) == 0 && !strcmp(lv.tags, "t1,t2=/x:y"));
	CU_ASSERT(lvm_rename(VG, "c", "a-b", &err) == 0);
	CU_ASSERT(lvm_remove(VG, "a-b", &err) == 0);
	CU_ASSERT(lvm_remove(VG, "a-b", &err) == -EIO);
	has_words(&err, -EIO, VG "/a-b: lvremove failed");
	close(loop_fd);
}

static void test_dm_uuid(void)
{
	struct qc_err err = { 0 };
	char uuid[129] = "x";

	CU_ASSERT(lvm_dm_uuid(7, 0, uuid, &err) == 0 && !uuid[0]);
}

/* Four times what is written in an extension, at least the tag's chunk; a quarter of the VG. */
static void test_thin(void)
{
	const u64 s = 1000000000ull;

	CU_ASSERT(lvm_thin_chunk(128 * MiB, TiB, 0, 0, s) == 128 * MiB);
	CU_ASSERT(lvm_thin_chunk(128 * MiB, TiB, 1 * GiB, 0, s) == 128 * MiB);
	CU_ASSERT(lvm_thin_chunk(128 * MiB, TiB, 10 * MiB, 1 * s, s / 5) == 128 * MiB);
	CU_ASSERT(lvm_thin_chunk(128 * MiB, TiB, 500 * MiB, 1 * s, s / 2) == 1000 * MiB);
	CU_ASSERT(lvm_thin_chunk(1 * MiB, TiB, 10 * GiB, 10 * s, 1 * s) == 4 * GiB);
	CU_ASSERT(lvm_thin_chunk(1 * MiB, TiB, 1 * MiB, 1 * s, s + s / 8) == 5 * MiB);
	CU_ASSERT(lvm_thin_chunk(1 * MiB, 8 * GiB, 10 * GiB, 10 * s, 1 * s) == 2 * GiB);
	CU_ASSERT(lvm_thin_chunk(128 * MiB, 100 * MiB, 10 * GiB, 10 * s, 1 * s) == 128 * MiB);
	CU_ASSERT(lvm_thin_watermark(1 * GiB, 128 * MiB) == 960 * MiB);
	CU_ASSERT(lvm_thin_watermark(1 * MiB, 128 * MiB) == 0);
}

static const struct unit_test tests[] = {
	{ "the filter is asked for once", test_filter },
	{ "the real lvm", test_real }, /* its filter counts for the tests below, too */
	{ "failures", test_failures },
	{ "report", test_report },
	{ "several VGs", test_parts },
	{ "shared activation", test_shared },
	{ "reducing", test_reduce },
	{ "much output", test_much_output },
	{ "time limit", test_timeout },
	{ "arguments", test_arguments },
	{ "names and tags", test_names },
	{ "dm uuid", test_dm_uuid },
	{ "thin", test_thin },
	{ NULL, NULL },
};

int main(void)
{
	char command[64];
	int ret;

	snprintf(real_path, sizeof(real_path), "%s:/usr/sbin:/sbin",
		 getenv("PATH") ? getenv("PATH") : "/usr/bin:/bin");
	setenv("PATH", real_path, 1);
	if (!mkdtemp(dir))
		return 2;
	ret = unit_main("lvm", tests);
	snprintf(command, sizeof(command), "rm -rf %s", dir);
	return system(command) ? 2 : ret;
}
