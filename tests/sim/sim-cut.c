// SPDX-License-Identifier: GPL-2.0-or-later
/* Power cuts and deaths: the images as they would be found, opened as `up` does, and judged. */
#include "sim.h"

#include <qchain/image.h>
#include <sys/wait.h>
#include <unistd.h>

/*
 * A cut happens in a child, which has all of the case's memory to itself: the
 * disks lose what a cut takes, loops and I/O are forgotten, and the product opens
 * what is left. The case itself goes on, as if nothing had been. Sometimes the
 * child's daemon dies, too, wherever it is, and another one takes over.
 */

#define QEMU_EVERY 50u
#define MEAN_POINTS 30u
#define RESUMED_PERCENT 20u
#define SEALED_PERCENT 35u /* of the snapshots that should not change any more */
#define BURST_PERCENT 5u
#define BURST_POINTS 3u
#define BURST_CUTS 4u

enum cut_kind { CUT_POWER, CUT_DEATH };

enum sim_cuts sim_cuts;
u32 nr_cuts;
bool sim_judging;

static u64 points;
static u64 next_cut;
static u64 burst_until; /* points that are cut several times */
static u32 dies_after; /* points of a successor; 0: it lives */
static enum cut_kind kind;
static bool with_qemu;

static void judge(void) __attribute__((noreturn));

/* ---- checkers ------------------------------------------------------------------ */

static void say_finding(void *arg, const char *line)
{
	printf("  %s: %s\n", (const char *)arg, line);
}

/* A commit wipes the headers of layers that it has emptied: they are no images any more. */
static bool is_image(const struct sim_disk *d)
{
	const struct sim_view *view = view_find(d->name);

	if (!d->formatted || !view || !view->lost)
		return d->formatted;
	return !view->removed && !memcmp(d->now, "QFI\xfb", 4);
}

/* Leaks that are left, with @fix after the repair. */
static u64 check_disk(const struct sim_disk *d, u32 fix, const char *when)
{
	struct check_result result;
	struct qc_err err = { 0 };
	struct io_dev *dev;
	struct image *img;
	int ret = io_dev_open(sim_path(d->name), IO_DEV_WRITE, &dev, &err);

	if (!ret)
		ret = image_open(dev, IMAGE_QCOW2, IMAGE_OPEN_CHECK | IMAGE_OPEN_BITMAPS |
				 IMAGE_OPEN_WRITE, &img, &err);
	if (!ret)
		ret = image_check(img, fix, NULL, NULL, &result, &err);
	if (!ret && result.corruptions)
		image_check(img, 0, say_finding, (void *)d->name, &result, &err);
	if (ret)
		fail("%s: %s cannot be checked: %s", when, d->name, err.msg);
	if (result.corruptions)
		fail("%s: %llu errors in %s", when, (unsigned long long)result.corruptions,
		     d->name);
	image_close(img);
	return result.leaks;
}

static void check_disks(const char *when)
{
	struct sim_disk *d;

	cds_list_for_each_entry(d, &sim_disks, node)
		if (is_image(d))
			check_disk(d, 0, when);
}

static void repair_disks(void)
{
	struct sim_disk *d;

	cds_list_for_each_entry(d, &sim_disks, node)
		if (is_image(d) && check_disk(d, CHECK_FIX_LEAKS, "repair"))
			fail("repair: leaks are left in %s", d->name);
}

/* The oracle: the same verdict by qemu-img. */
static void check_with_qemu(const char *when)
{
	char path[320];
	struct sim_disk *d;
	int ret;

	if (!with_qemu)
		return;
	sh("mkdir -p %s", sim_path("dump"));
	cds_list_for_each_entry(d, &sim_disks, node) {
		if (!is_image(d))
			continue;
		snprintf(path, sizeof(path), "%s/%s", sim_path("dump"), d->name);
		sim_disk_dump(d, path);
		ret = sh("qemu-img check -f qcow2 %s >%s 2>&1", path, sim_path("check"));
		if (ret == 0 || ret == 3)
			continue;
		sh("head -20 %s", sim_path("check"));
		fail("%s: qemu-img check says %d of %s", when, ret, d->name);
	}
}

/* ---- judging ------------------------------------------------------------------- */

static bool is_power(void)
{
	return kind == CUT_POWER || plan.log == SIM_MAY_LOSE;
}

static void judge_device(const char *when, bool power)
{
	u8 *buf;

	model_grown(device.ti->size_bytes);
	buf = io_alloc(sim_now_view.bytes);
	sim_device_read(&device, buf, sim_now_view.bytes);
	model_check(&sim_now_view, buf, 0, sim_now_view.bytes, sim_time, power, when);
	free(buf);
}

static void judge_view(const struct sim_view *view, const char *when, bool power)
{
	struct sim_device d;
	u8 *buf = io_alloc(view->bytes);

	sim_device_up(&d, view->disk, SIM_UP_READ_ONLY);
	sim_device_read(&d, buf, view->bytes);
	model_check(view, buf, 0, view->bytes, sim_time, power, when);
	sim_device_down(&d);
	free(buf);
}

static void judge_views(const char *when, bool power)
{
	struct sim_view *view;

	cds_list_for_each_entry(view, &sim_views, node)
		if (!view->lost && (!view->sealed || chance(SEALED_PERCENT)))
			judge_view(view, when, power);
}

static const char *kind_name(void)
{
	return kind == CUT_POWER ? "power cut" : "death";
}

static void judge_all(void)
{
	const char *when = kind_name();

	judge_device(when, is_power());
	if (chance(RESUMED_PERCENT)) {
		online_merge_alone();
		judge_device("merge after a cut", is_power());
	}
	sim_device_down(&device);
	check_disks("closed after a cut");
	judge_views(when, is_power());
	repair_disks();
	check_with_qemu("closed after a cut");
}

void cuts_judge_end(void)
{
	sim_judging = true;
	kind = CUT_DEATH;
	with_qemu = true;
	check_disks("end");
	if (guest_errors)
		return;
	judge_views("end", false);
	sim_device_up(&device, sim_top, SIM_UP_FRESH);
	judge_device("end", false);
	sim_device_down(&device);
	check_with_qemu("end");
}

/* ---- what a cut leaves --------------------------------------------------------- */

static void lose(void)
{
	u32 percent = (u32[]){ 0, 15, 50, 85, 100 }[rnd(5)];
	u32 under_way = (u32[]){ 0, 50, 100 }[rnd(3)];
	struct sim_disk *d;

	cds_list_for_each_entry(d, &sim_disks, node)
		sim_disk_cut(d, kind == CUT_POWER, percent);
	sim_pending_arrive(under_way);
	sim_sched_forget();
	online_cut();
	plan.lazy_device = plan.lazy_flush = 0;
}

static void reopen(void)
{
	bool logged = kind == CUT_DEATH && plan.log == SIM_LOG;

	check_disks(kind_name());
	check_with_qemu(kind_name());
	if (logged)
		sim_log_inherit();
	if (kind == CUT_DEATH && chance(30))
		dies_after = 1 + rnd(30);
	sim_device_up(&device, sim_top, logged ? SIM_UP_TAKEOVER : SIM_UP_FRESH);
	dies_after = 0;
	online_after_cut();
}

/* Never returns: whoever it interrupts has lost his memory. */
static void judge(void)
{
	u64 shown = device.ti->size_bytes;

	lose();
	reopen();
	if (device.ti->size_bytes < shown)
		fail("%s: guests were let to %llu bytes, and there are %llu", kind_name(),
		     (unsigned long long)shown, (unsigned long long)device.ti->size_bytes);
	judge_all();
	fflush(stdout);
	_exit(0);
}

static void cut_in_child(enum cut_kind how, u64 salt)
{
	int status;
	pid_t pid;

	nr_cuts++;
	fflush(stdout);
	pid = fork();
	if (pid == 0) {
		sim_judging = true;
		sim_random ^= salt * 0xd1342543de82ef95ull;
		kind = how;
		with_qemu = nr_cuts % QEMU_EVERY == 0;
		judge();
	}
	waitpid(pid, &status, 0);
	if (status)
		fail("cut %u at point %llu ends with 0x%x", nr_cuts, (unsigned long long)points,
		     status);
}

void sim_point(void)
{
	u32 i;

	points++;
	if (dies_after && !--dies_after) {
		kind = CUT_DEATH;
		judge();
	}
	if (sim_judging || sim_cuts == CUTS_NONE)
		return;
	if (sim_cuts == CUTS_EVERY) {
		cut_in_child(CUT_POWER, 2 * points + 1);
		cut_in_child(CUT_DEATH, 2 * points + 2);
		return;
	}
	for (i = 0; i < BURST_CUTS && points <= burst_until; i++)
		cut_in_child(CUT_POWER, BURST_CUTS * points + i);
	if (points < next_cut)
		return;
	next_cut = points + 1 + rnd(2 * MEAN_POINTS);
	cut_in_child(chance(50) ? CUT_POWER : CUT_DEATH, points);
}

void cuts_hurry(bool torn)
{
	if (torn || chance(BURST_PERCENT))
		burst_until = points + BURST_POINTS;
}

void cuts_begin(enum sim_cuts how)
{
	sim_cuts = how;
	points = burst_until = 0;
	next_cut = how == CUTS_RANDOM ? rnd(2 * MEAN_POINTS) : 0;
}

/* ---- after a fault ------------------------------------------------------------- */

void cuts_judge_fault(bool up, bool harmed)
{
	struct qc_err err = { 0 };

	sim_judging = true;
	with_qemu = chance(1);
	if (up)
		judge_device("as served after a fault", false);
	kind = !up || chance(40) ? CUT_POWER : CUT_DEATH;
	if (!up || chance(60)) {
		lose();
		reopen();
	} else {
		kind = target_suspend(device.ti, &err) ? CUT_POWER : CUT_DEATH;
		if (kind == CUT_POWER && !harmed)
			fail("down, without a fault: %s", err.msg);
		sim_device_down(&device);
		check_disks("closed after a fault");
		sim_device_up(&device, sim_top, SIM_UP_FRESH);
	}
	judge_all();
}

/* ---- another life -------------------------------------------------------------- */

/* What is found now is what the next life begins with. */
static void begin_life(void)
{
	struct sim_disk *d;
	struct sim_view *view;

	sim_device_read(&device, sim_now_view.initial, sim_now_view.bytes);
	sim_now_view.since = 0;
	cds_list_for_each_entry(view, &sim_views, node) {
		struct sim_device one;

		if (view->lost)
			continue;
		sim_device_up(&one, view->disk, SIM_UP_READ_ONLY);
		sim_device_read(&one, view->initial, view->bytes);
		sim_device_down(&one);
		view->instant = view->since = 0;
	}
	cds_list_for_each_entry(d, &sim_disks, node)
		sim_disk_settle(d);
	model_begin();
}

void cuts_live_on(void)
{
	struct sim_plan before = plan;
	int status;
	pid_t pid;

	fflush(stdout);
	pid = fork();
	if (pid) {
		waitpid(pid, &status, 0);
		_exit(status ? 1 : 0);
	}
	kind = chance(50) ? CUT_POWER : CUT_DEATH;
	sim_judging = true;
	lose();
	reopen();
	judge_device(kind_name(), is_power());
	begin_life();
	sim_judging = false;
	plan = before;
}
