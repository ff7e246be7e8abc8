/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Death and takeover in the simulator: the log stays, a successor replays it. */
#ifndef SIM_TAKEOVER_H
#define SIM_TAKEOVER_H

/*
 * The successor runs in a child, on a copy of the image and of the log as they are
 * at the moment of the death, in the product's own code. Sometimes it dies, too.
 */

enum sim_log {
	SIM_LOG, /* acknowledged when the log has it */
	SIM_MAY_LOSE, /* acknowledged at once: a death loses what was not flushed */
	SIM_LATE, /* acknowledged after step 3 */
};

static enum sim_log sim_log;
static bool succeeding; /* in the child */
static u32 dies_after; /* I/Os of a successor; 0: it lives */

#define SIM_TAG "log-tag=77"
#define EXIT_DIED 7

/*
 * The successor's image has another inode: it gets its name in the copy of the log.
 * Version 2 images are not in it.
 */
static bool rename_in_log(const char *log, const char *image)
{
	static u8 buf[8 * MiB];
	char old[INTENT_NAME_BYTES], new[INTENT_NAME_BYTES] = { 0 };
	struct stat st;
	ssize_t n;
	u8 *at;
	int fd = open(log, O_RDWR);

	chain_log_name(disk, old);
	stat(image, &st);
	snprintf(new, sizeof(new), "file %llx:%llx", (unsigned long long)st.st_dev,
		 (unsigned long long)st.st_ino);
	n = read(fd, buf, sizeof(buf));
	at = n > 0 ? memmem(buf, n, old, strlen(old)) : NULL;
	if (at && pwrite(fd, new, sizeof(new), at - buf) != sizeof(new))
		fail("%s: %s", log, strerror(errno));
	close(fd);
	return at;
}

/* In the child. */
static void successor(void)
{
	char top[300], log[320];
	char *argv[] = { top, log, SIM_TAG, "log-replay=on" };
	struct qc_err err = { 0 };
	struct target *next;

	CDS_INIT_LIST_HEAD(&pendings);
	CDS_INIT_LIST_HEAD(&records);
	nr_pending = 0;
	nr_sim_loops = 0;
	fail_at = 0;
	faults = false;
	succeeding = true;
	disk = NULL;
	snprintf(top, sizeof(top), "%s/cut.qcow2", folder);
	snprintf(log, sizeof(log), "intent-log=%s/cut.log", folder);
	if (target_create("qcow2-chain", 4, argv, &next, &err))
		fail("successor: %s", err.msg);
	dies_after = 0;
	target_destroy(next);
	_exit(0);
}

static void run_successor(void)
{
	int status;
	pid_t pid;

	fflush(stdout);
	pid = fork();
	if (pid == 0)
		successor();
	waitpid(pid, &status, 0);
	if (status && !(dies_after && WIFEXITED(status) && WEXITSTATUS(status) == EXIT_DIED))
		fail("cut %u at %llu: successor ends with 0x%x", nr_cuts,
		     (unsigned long long)sim_time, status);
}

static void take_over(void)
{
	char log[320], image[320];
	bool logged;
	int ret;

	if (sh("cp %s/log.intent %s/cut.log", folder, folder))
		fail("cp");
	snprintf(log, sizeof(log), "%s/cut.log", folder);
	snprintf(image, sizeof(image), "%s/cut.qcow2", folder);
	logged = rename_in_log(log, image);
	if (chance(30)) {
		dies_after = 1 + rnd(40);
		run_successor();
		dies_after = 0;
	}
	run_successor();
	ret = sh("qemu-img check %s/cut.qcow2 >%s/check 2>&1", folder, folder);
	if (ret && (ret != 3 || logged)) { /* version 2 cannot say that it may have leaks */
		sh("grep -a -B3 -A3 'ERROR\\|Leak' %s/check | head -20", folder);
		fail("cut %u at %llu: qemu-img check after the takeover", nr_cuts,
		     (unsigned long long)sim_time);
	}
}

#endif
