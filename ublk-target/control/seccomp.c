// SPDX-License-Identifier: GPL-2.0-or-later
/* The system calls that a daemon needs once it serves; all others are refused. */
#include <errno.h>
#include <qchain/control.h>
#include <sched.h>
#include <seccomp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>

/*
 * Whoever breaks in, by an image or a socket, gets no program to run, no network, no
 * mounts and no look into other processes: only what serving takes, and what the
 * descriptors that are open allow. What io_uring does goes past the filter; it is reads,
 * writes, flushes and ublk's commands on those.
 */

/* Whatever their arguments are. */
static const int allowed[] = {
	/* I/O, and the ring */
	SCMP_SYS(io_uring_setup), SCMP_SYS(io_uring_enter), SCMP_SYS(io_uring_register),
	SCMP_SYS(read), SCMP_SYS(write), SCMP_SYS(readv), SCMP_SYS(writev),
	SCMP_SYS(pread64), SCMP_SYS(pwrite64), SCMP_SYS(preadv), SCMP_SYS(pwritev),
	SCMP_SYS(fsync), SCMP_SYS(fdatasync), SCMP_SYS(fallocate), SCMP_SYS(ftruncate),
	SCMP_SYS(lseek), SCMP_SYS(fadvise64), SCMP_SYS(ioctl), SCMP_SYS(fcntl), SCMP_SYS(flock),
	SCMP_SYS(close), SCMP_SYS(close_range), SCMP_SYS(dup), SCMP_SYS(dup2), SCMP_SYS(dup3),
	SCMP_SYS(pipe2), SCMP_SYS(eventfd2), SCMP_SYS(poll), SCMP_SYS(ppoll),
	/* images that are brought in, records, sockets, the log */
	SCMP_SYS(open), SCMP_SYS(openat), SCMP_SYS(openat2), SCMP_SYS(stat), SCMP_SYS(fstat),
	SCMP_SYS(lstat), SCMP_SYS(newfstatat), SCMP_SYS(statx), SCMP_SYS(statfs),
	SCMP_SYS(fstatfs), SCMP_SYS(access), SCMP_SYS(faccessat), SCMP_SYS(faccessat2),
	SCMP_SYS(readlink), SCMP_SYS(readlinkat), SCMP_SYS(getdents64), SCMP_SYS(getcwd),
	SCMP_SYS(unlink), SCMP_SYS(unlinkat), SCMP_SYS(rename), SCMP_SYS(renameat),
	SCMP_SYS(renameat2), SCMP_SYS(mkdir), SCMP_SYS(mkdirat), SCMP_SYS(rmdir),
	SCMP_SYS(chmod), SCMP_SYS(fchmod), SCMP_SYS(fchmodat), SCMP_SYS(umask),
	/* QMP and NBD, on sockets that socket() below has let through */
	SCMP_SYS(bind), SCMP_SYS(listen), SCMP_SYS(connect), SCMP_SYS(accept4),
	SCMP_SYS(shutdown), SCMP_SYS(sendto), SCMP_SYS(recvfrom), SCMP_SYS(sendmsg),
	SCMP_SYS(recvmsg), SCMP_SYS(getsockopt), SCMP_SYS(setsockopt), SCMP_SYS(getsockname),
	SCMP_SYS(getpeername),
	/* memory */
	SCMP_SYS(brk), SCMP_SYS(munmap), SCMP_SYS(mremap), SCMP_SYS(madvise), SCMP_SYS(msync),
	SCMP_SYS(mlock), SCMP_SYS(mlock2), SCMP_SYS(mlockall), SCMP_SYS(munlock),
	/* threads, waiting, time */
	SCMP_SYS(futex), SCMP_SYS(set_robust_list), SCMP_SYS(rseq), SCMP_SYS(membarrier),
	SCMP_SYS(sched_yield), SCMP_SYS(sched_getaffinity), SCMP_SYS(sched_setaffinity),
	SCMP_SYS(getcpu), SCMP_SYS(prctl), SCMP_SYS(prlimit64), SCMP_SYS(getrlimit),
	SCMP_SYS(getpid), SCMP_SYS(gettid), SCMP_SYS(getuid), SCMP_SYS(geteuid),
	SCMP_SYS(getrandom), SCMP_SYS(sysinfo), SCMP_SYS(uname), SCMP_SYS(gettimeofday),
	SCMP_SYS(clock_gettime), SCMP_SYS(clock_getres), SCMP_SYS(clock_nanosleep),
	SCMP_SYS(nanosleep), SCMP_SYS(exit), SCMP_SYS(exit_group),
	/* signals */
	SCMP_SYS(rt_sigaction), SCMP_SYS(rt_sigprocmask), SCMP_SYS(rt_sigreturn),
	SCMP_SYS(rt_sigtimedwait), SCMP_SYS(sigaltstack), SCMP_SYS(restart_syscall),
	SCMP_SYS(tgkill),
};

/* Allowed only if (argument @nr & @mask) == @value. */
static const struct {
	int call;
	u32 nr;
	u64 mask;
	u64 value;
} conditions[] = {
	{ SCMP_SYS(socket), 0, UINT64_MAX, AF_UNIX },
	{ SCMP_SYS(mmap), 2, PROT_EXEC, 0 },
	{ SCMP_SYS(mprotect), 2, PROT_EXEC, 0 },
	{ SCMP_SYS(clone), 0, CLONE_THREAD, CLONE_THREAD },
	{ SCMP_SYS(kill), 1, UINT64_MAX, 0 }, /* is it there? */
};

static int allow_all(scmp_filter_ctx ctx)
{
	int ret = 0;

	for (u32 i = 0; !ret && i < ARRAY_SIZE(allowed); i++)
		ret = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, allowed[i], 0);
	for (u32 i = 0; !ret && i < ARRAY_SIZE(conditions); i++)
		ret = seccomp_rule_add(ctx, SCMP_ACT_ALLOW, conditions[i].call, 1,
				       SCMP_CMP64(conditions[i].nr, SCMP_CMP_MASKED_EQ,
						  conditions[i].mask, conditions[i].value));
	/* Its flags are in memory, where a filter cannot look: the C library takes clone(). */
	if (!ret)
		ret = seccomp_rule_add(ctx, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0);
	return ret;
}

static int load(scmp_filter_ctx ctx)
{
	int ret = seccomp_attr_set(ctx, SCMP_FLTATR_CTL_TSYNC, 1);

	if (!ret)
		ret = seccomp_attr_set(ctx, SCMP_FLTATR_CTL_OPTIMIZE, 2);
	if (!ret)
		ret = allow_all(ctx);
	return ret ? ret : seccomp_load(ctx);
}

int process_confine(enum confinement how, struct qc_err *err)
{
	scmp_filter_ctx ctx;
	int ret;

	if (how == CONFINE_OFF)
		return 0;
	ctx = seccomp_init(how == CONFINE_KILL ? SCMP_ACT_KILL_PROCESS :
						 SCMP_ACT_ERRNO(EPERM));
	if (!ctx)
		return qc_err_set(err, -ENOMEM, "--seccomp: no filter (out of memory)");
	ret = load(ctx);
	seccomp_release(ctx);
	if (ret)
		return qc_err_set(err, ret, "--seccomp: filter not installed (%s), kernel must "
				  "have it, or use --seccomp off", strerror(-ret));
	return 0;
}

/* ---- the option ------------------------------------------------------------------- */

int confinement_parse(const char *text, enum confinement *result, struct qc_err *err)
{
	static const char *const names[] = { [CONFINE_OFF] = "off", [CONFINE_ON] = "on",
					     [CONFINE_KILL] = "kill" };

	for (u32 i = 0; i < ARRAY_SIZE(names); i++) {
		if (strcmp(text, names[i]) == 0) {
			*result = i;
			return 0;
		}
	}
	return qc_err_set(err, -EINVAL, "--seccomp: '%.40s', expected on, off or kill", text);
}

int confinement_default(enum confinement *result, struct qc_err *err)
{
	const char *text = getenv("QCHAIN_SECCOMP");

	*result = CONFINE_ON;
	return text ? confinement_parse(text, result, err) : 0;
}
