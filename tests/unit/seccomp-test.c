// SPDX-License-Identifier: GPL-2.0-or-later
/* The filter of system calls: what it refuses, in all threads, and what it lets through. */
#include "unit.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <qchain/control.h>
#include <semaphore.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

/* @fn in a child that is confined; returns its wait status. What it returns is the exit status. */
static int confined(enum confinement how, int (*fn)(void))
{
	struct qc_err err = { 0 };
	int status;
	pid_t pid = fork();

	if (pid == 0) {
		alarm(20);
		prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
		_exit(process_confine(how, &err) ? 99 : fn());
	}
	waitpid(pid, &status, 0);
	return status;
}

/* Number of the first call that was not refused; 0: all were. */
static int refused_calls(void)
{
	char *argv[] = { "true", NULL };
	void *mem = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (socket(AF_INET, SOCK_STREAM, 0) >= 0 || errno != EPERM)
		return 1;
	if (socket(AF_NETLINK, SOCK_RAW, 0) >= 0 || errno != EPERM)
		return 2;
	if (fork() >= 0 || errno != EPERM)
		return 3;
	if (execv("/bin/true", argv) == 0 || errno != EPERM)
		return 4;
	if (mprotect(mem, 4096, PROT_READ | PROT_EXEC) == 0 || errno != EPERM)
		return 5;
	if (mount("none", "/", NULL, MS_REC | MS_SLAVE, NULL) == 0 || errno != EPERM)
		return 6;
	if (kill(getpid(), SIGUSR1) == 0 || errno != EPERM)
		return 7;
	return ptrace(PTRACE_TRACEME, 0, 0, 0) >= 0 || errno != EPERM ? 8 : 0;
}

static void test_refused(void)
{
	CU_ASSERT_EQUAL(confined(CONFINE_ON, refused_calls), 0);
}

static sem_t go;

static void *late_call(void *result)
{
	sem_wait(&go);
	*(int *)result = socket(AF_INET, SOCK_STREAM, 0);
	return NULL;
}

/* A thread that was there is confined, too; new ones are made, and are. */
static int threads_too(void)
{
	int result = 0;
	pthread_t thread;

	if (pthread_create(&thread, NULL, late_call, &result))
		return 1;
	sem_post(&go);
	pthread_join(thread, NULL);
	return result < 0 ? 0 : 2;
}

static int old_thread(void)
{
	struct qc_err err = { 0 };
	int result = 0;
	pthread_t thread;

	sem_init(&go, 0, 0);
	if (pthread_create(&thread, NULL, late_call, &result) ||
	    process_confine(CONFINE_ON, &err))
		return 1;
	sem_post(&go);
	pthread_join(thread, NULL);
	return result < 0 ? threads_too() : 2;
}

static void test_threads(void)
{
	CU_ASSERT_EQUAL(confined(CONFINE_OFF, old_thread), 0);
}

/* What is served goes on: files, memory, sockets of the host. */
static int served_calls(void)
{
	int fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	char byte = 0;

	if (fd < 0 || write(fd, &byte, 1) != 1)
		return 1;
	if (socket(AF_UNIX, SOCK_STREAM, 0) < 0)
		return 2;
	if (mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED)
		return 3;
	return kill(getpid(), 0) ? 4 : 0;
}

static void test_served(void)
{
	CU_ASSERT_EQUAL(confined(CONFINE_KILL, served_calls), 0);
}

static int one_bad_call(void)
{
	socket(AF_INET, SOCK_STREAM, 0);
	return 0;
}

static void test_kill(void)
{
	int status = confined(CONFINE_KILL, one_bad_call);

	CU_ASSERT(WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS);
	CU_ASSERT_EQUAL(confined(CONFINE_OFF, one_bad_call), 0);
}

static void test_words(void)
{
	enum confinement how = CONFINE_OFF;
	struct qc_err err = { 0 };

	unsetenv("QCHAIN_SECCOMP");
	CU_ASSERT(confinement_default(&how, &err) == 0 && how == CONFINE_ON);
	setenv("QCHAIN_SECCOMP", "kill", 1);
	CU_ASSERT(confinement_default(&how, &err) == 0 && how == CONFINE_KILL);
	setenv("QCHAIN_SECCOMP", "maybe", 1);
	CU_ASSERT(confinement_default(&how, &err) == -EINVAL);
	CU_ASSERT(confinement_parse("off", &how, &err) == 0 && how == CONFINE_OFF);
}

int main(void)
{
	static const struct unit_test tests[] = {
		{ "programs, network, code, mounts, processes are refused", test_refused },
		{ "in all threads", test_threads },
		{ "what serving needs is not", test_served },
		{ "kill ends the process", test_kill },
		{ "words of the option", test_words },
		{ NULL, NULL },
	};

	return unit_main("seccomp", tests);
}
