// SPDX-License-Identifier: GPL-2.0-or-later
/* qchaind: arguments, signals, start and stop of one daemon. */
#include <errno.h>
#include <getopt.h>
#include <malloc.h>
#include <poll.h>
#include <pthread.h>
#include <qchain/control.h>
#include <qchain/image.h>
#include <qchain/limits.h>
#include <qchain/log.h>
#include <qchain/parse.h>
#include <qchain/record.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define EXIT_USAGE 2
/* Words of the target's table line: the top, and one for each option given. */
#define MAX_WORDS 128u
#define CONTROL_RING_ENTRIES 64u

/* ---- arguments ------------------------------------------------------------- */

/*
 * struct arguments - the command line, checked
 * @words: the table line of the target, "TOP key=value..."; malloc'ed
 */
struct arguments {
	const char *name;
	bool daemonize;
	char *qmp; /* malloc'ed, NULL: no QMP */
	char *intent_log; /* malloc'ed, NULL: none */
	u32 watchdog_ms; /* 0: none */
	enum confinement confinement;
	bool own_folder; /* @qmp is in the folder of @name */
	int nr_words;
	char *words[MAX_WORDS];
	u32 nr_exports;
	struct export_options exports[QC_MAX_EXPORTS];
	char *sockets[QC_MAX_EXPORTS]; /* malloc'ed absolute paths */
};

/* One option: @set takes its value (NULL for a switch) into the arguments. */
struct argument {
	const char *name;
	int has_value;
	int (*set)(struct arguments *args, const struct argument *arg, const char *value,
		   struct qc_err *err);
};

static int add_word(struct arguments *args, const char *key, const char *value, struct qc_err *err)
{
	char *word;

	if (args->nr_words == MAX_WORDS)
		return qc_err_set(err, -E2BIG, "--%s: too many options (%u), at most %u", key,
				  args->nr_words + 1, MAX_WORDS);
	if (asprintf(&word, "%s=%s", key, value) < 0)
		return qc_err_set(err, -ENOMEM, "--%s: out of memory", key);
	args->words[args->nr_words++] = word;
	return 0;
}

static int set_word(struct arguments *args, const struct argument *arg, const char *value,
		    struct qc_err *err)
{
	return add_word(args, arg->name, value ? value : "on", err);
}

/* An option of the chain that has a value. */
static int set_checked(struct arguments *args, const struct argument *arg, const char *value,
		       struct qc_err *err)
{
	int ret = chain_option_check(arg->name, value, err);

	return ret ? ret : add_word(args, arg->name, value, err);
}

/* An internal snapshot can only be looked at. */
static int set_snapshot(struct arguments *args, const struct argument *arg, const char *value,
			struct qc_err *err)
{
	int ret = set_checked(args, arg, value, err);

	return ret ? ret : add_word(args, "read-only", "on", err);
}

/* @path seen from /, where a daemon lives; malloc'ed. */
static char *absolute_path(const char *path)
{
	char *cwd, *result = NULL;

	if (*path == '/')
		return strdup(path);
	cwd = getcwd(NULL, 0);
	if (cwd && asprintf(&result, "%s/%s", cwd, path) < 0)
		result = NULL;
	free(cwd);
	return result;
}

static int set_allow_backing(struct arguments *args, const struct argument *arg, const char *value,
			     struct qc_err *err)
{
	int ret = chain_option_check(arg->name, value, err);
	char *path;

	if (ret)
		return ret;
	path = absolute_path(value);
	ret = path ? add_word(args, arg->name, path, err) : -ENOMEM;
	free(path);
	return ret;
}

static int set_name(struct arguments *args, const struct argument *arg, const char *value,
		    struct qc_err *err)
{
	args->name = value;
	return chain_name_check(value, err);
}

static int set_daemonize(struct arguments *args, const struct argument *arg, const char *value,
			 struct qc_err *err)
{
	args->daemonize = true;
	return 0;
}

static int set_qmp(struct arguments *args, const struct argument *arg, const char *value,
		   struct qc_err *err)
{
	if (!*value)
		return qc_err_set(err, -EINVAL, "--qmp: path is empty, expected that of a socket");
	free(args->qmp);
	args->qmp = strdup(value);
	return args->qmp ? 0 : -ENOMEM;
}

static int set_intent_log(struct arguments *args, const struct argument *arg, const char *value,
			  struct qc_err *err)
{
	if (!*value)
		return qc_err_set(err, -EINVAL, "--intent-log: path is empty, expected that of a "
						"file in memory, such as one in /run");
	free(args->intent_log);
	args->intent_log = absolute_path(value);
	return args->intent_log ? 0 : -ENOMEM;
}

#define MAX_WATCHDOG_S 3600u

static int set_watchdog(struct arguments *args, const struct argument *arg, const char *value,
			struct qc_err *err)
{
	u64 seconds;
	int ret = parse_number("--watchdog", value, 0, MAX_WATCHDOG_S, &seconds, err);

	args->watchdog_ms = ret ? 0 : seconds * 1000;
	return ret;
}

static int set_seccomp(struct arguments *args, const struct argument *arg, const char *value,
		       struct qc_err *err)
{
	return confinement_parse(value, &args->confinement, err);
}

static int set_export(struct arguments *args, const struct argument *arg, const char *value,
		      struct qc_err *err)
{
	int ret;

	if (args->nr_exports == QC_MAX_EXPORTS)
		return qc_err_set(err, -E2BIG, "--export: too many exports (%u), at most %u",
				  args->nr_exports + 1, QC_MAX_EXPORTS);
	ret = export_parse(value, &args->exports[args->nr_exports], err);
	if (ret == 0)
		args->nr_exports++;
	return ret;
}

static const struct argument arguments[] = {
	{ "name", required_argument, set_name },
	{ "read-only", no_argument, set_word },
	{ "snapshot", required_argument, set_snapshot },
	{ "format", required_argument, set_checked },
	{ "allow-backing", required_argument, set_allow_backing },
	{ "allow-data-file", no_argument, set_word },
	{ "backing-format", required_argument, set_checked },
	{ "cache-size", required_argument, set_checked },
	{ "export", required_argument, set_export },
	{ "qmp", required_argument, set_qmp },
	{ "daemonize", no_argument, set_daemonize },
	{ "wait", no_argument, set_word },
	{ "on-full", required_argument, set_checked },
	{ "warm", required_argument, set_checked },
	{ "intent-log", required_argument, set_intent_log },
	{ "watchdog", required_argument, set_watchdog },
	{ "seccomp", required_argument, set_seccomp },
	{ "help", no_argument, NULL },
	{ "version", no_argument, NULL },
};

static void print_help(void)
{
	printf("Usage: qchaind [OPTION]... TOP\n"
	       "Serves the chain of qcow2 images that ends in TOP, a block device or file.\n\n"
	       "  --export nbd,socket=PATH[,name=N][,read-only=on]\n"
	       "  --export ublk[,id=N][,queues=N][,depth=N][,zero-copy=off][,scan=on]\n"
	       "                [,recover=on][,tag=N]\n"
	       "                       a way out, repeatable; a comma in a value is doubled\n"
	       "  --name NAME          name of the chain, of its folder in %s\n"
	       "                       and of its NBD exports\n"
	       "  --read-only          open TOP for reading only\n"
	       "  --snapshot NAME      show this internal snapshot of TOP, read-only\n"
	       "  --format FORMAT      of TOP: qcow2 (default) or raw\n"
	       "  --backing-format F   where an image does not say the format of its backing\n"
	       "  --allow-backing DIR  follow backing references into DIR too, repeatable\n"
	       "  --allow-data-file    follow a reference to an external data file, read-only\n"
	       "  --cache-size SIZE    memory for the map, such as 64M\n"
	       "  --warm on|off        load the map before it is asked for (default on)\n"
	       "  --on-full wait|fail  when the volume of TOP is full: wait for it to grow\n"
	       "                       (default), or fail the writes\n"
	       "  --intent-log FILE    in memory, for what is acknowledged and not written yet;\n"
	       "                       it survives the daemon, the next one replays it\n"
	       "  --qmp PATH           control socket (with --name: qmp.sock in its folder)\n"
	       "  --watchdog SECONDS   tell of a thread that does not go on for so long (10);\n"
	       "                       0: never\n"
	       "  --seccomp on|off     refuse system calls that serving does not need (on)\n"
	       "  --wait               wait while a dead process's I/O holds an image\n"
	       "  --daemonize          go to the background once the exports are usable\n\n"
	       "Examples:\n"
	       "  qchaind --export nbd,socket=/tmp/disk.sock /dev/vg/vm-7-disk-0\n"
	       "  qchaind --snapshot monday --export nbd,socket=./nbd.sock ./disk.qcow2\n"
	       "  qchaind --name vm7 --export ublk --daemonize /dev/vg/vm-7-disk-0\n\n"
	       "SIGTERM or SIGINT: stop cleanly; refused while a ublk device is in use.\n",
	       chain_run_root());
}

/* The exit status of a wrong command line, after one line about it. */
static int usage_error(const struct qc_err *err)
{
	fprintf(stderr, "qchaind: %s; see qchaind --help\n",
		err->msg[0] ? err->msg : strerror(-err->code));
	return EXIT_USAGE;
}

static int next_option(int argc, char **argv, struct qc_err *err)
{
	struct option options[ARRAY_SIZE(arguments) + 1] = { 0 };
	int index = -1, c;

	for (u32 i = 0; i < ARRAY_SIZE(arguments); i++) {
		options[i].name = arguments[i].name;
		options[i].has_arg = arguments[i].has_value;
	}
	opterr = 0;
	c = getopt_long(argc, argv, ":", options, &index);
	if (c == ':')
		return qc_err_set(err, -EINVAL, "%s: value missing", argv[optind - 1]);
	if (c == '?')
		return qc_err_set(err, -EINVAL, "%s: option not known or not used so",
				  argv[optind - 1]);
	return c < 0 ? ARRAY_SIZE(arguments) : index;
}

/* 1: --help or --version was answered; 0 or -errno otherwise. */
static int parse_options(struct arguments *args, int argc, char **argv, struct qc_err *err)
{
	const struct argument *arg;
	int index, ret;

	args->nr_words = 1; /* the first is TOP */
	ret = add_word(args, "warm", "on", err);
	while (!ret) {
		index = next_option(argc, argv, err);
		if (index < 0)
			return index;
		if (index == ARRAY_SIZE(arguments))
			return 0;
		arg = &arguments[index];
		if (!arg->set) {
			if (strcmp(arg->name, "help") == 0)
				print_help();
			else
				printf("qchaind " QCHAIN_VERSION "\n");
			return 1;
		}
		ret = arg->set(args, arg, optarg, err);
		if (ret)
			qc_err_set(err, ret, "--%s: out of memory", arg->name);
	}
	return ret;
}

static int take_top(struct arguments *args, int argc, char **argv, struct qc_err *err)
{
	if (optind == argc)
		return qc_err_set(err, -EINVAL, "TOP: missing, expected the path of the active "
						"layer");
	if (argc - optind > 1)
		return qc_err_set(err, -EINVAL, "%s: one argument too many, expected one TOP",
				  argv[optind + 1]);
	args->words[0] = strdup(argv[optind]);
	return args->words[0] ? 0 : -ENOMEM;
}

/* Options that only make sense together. */
static int check_arguments(struct arguments *args, struct qc_err *err)
{
	char path[256];
	int ret;

	if (args->nr_exports == 0 && !args->qmp && !args->name)
		return qc_err_set(err, -EINVAL, "--export: missing, expected at least one, such as "
						"--export nbd,socket=PATH");
	if (args->name && !args->qmp) {
		ret = chain_run_path(args->name, "qmp.sock", path, sizeof(path), err);
		if (ret)
			return ret;
		args->qmp = strdup(path);
		if (!args->qmp)
			return -ENOMEM;
		args->own_folder = true;
	}
	if (args->daemonize && !args->qmp)
		return qc_err_set(err, -EINVAL, "--daemonize: no place for the log and no control "
						"socket, expected --name or --qmp too");
	return 0;
}

static int make_absolute(char **path)
{
	char *result = absolute_path(*path);

	if (!result)
		return -ENOMEM;
	free(*path);
	*path = result;
	return 0;
}

/* The working directory is left behind in the background. */
static int make_paths_absolute(struct arguments *args)
{
	int ret = make_absolute(&args->words[0]);

	if (ret == 0)
		ret = make_absolute(&args->qmp);
	for (u32 i = 0; ret == 0 && i < args->nr_exports; i++) {
		if (args->exports[i].kind != EXPORT_NBD)
			continue;
		args->sockets[i] = absolute_path(args->exports[i].nbd.socket);
		args->exports[i].nbd.socket = args->sockets[i];
		ret = args->sockets[i] ? 0 : -ENOMEM;
	}
	return ret;
}

/* The first ublk device: whose life the log belongs to; NULL: none. */
static const struct ublk_options *find_ublk(const struct arguments *args)
{
	for (u32 i = 0; i < args->nr_exports; i++)
		if (args->exports[i].kind == EXPORT_UBLK)
			return &args->exports[i].ublk;
	return NULL;
}

/*
 * Who must not lose what was acknowledged (rule A1): the users of a ublk device,
 * which hides the death of the daemon; others see their connection end.
 */
static int add_log_words(struct arguments *args, struct qc_err *err)
{
	const struct ublk_options *ublk = find_ublk(args);
	char tag[24];
	int ret;

	if (!args->intent_log)
		return ublk ? 0 : add_word(args, "may-lose", "on", err);
	snprintf(tag, sizeof(tag), "%llu", ublk ? (unsigned long long)ublk->tag : 0ull);
	ret = add_word(args, "intent-log", args->intent_log, err);
	if (ret == 0)
		ret = add_word(args, "log-tag", tag, err);
	if (ret == 0)
		ret = add_word(args, "log-replay", !ublk ? "try" : ublk->recover ? "on" : "off",
			       err);
	return ret;
}

static int arguments_parse(struct arguments *args, int argc, char **argv, struct qc_err *err)
{
	int ret = parse_options(args, argc, argv, err);

	if (ret == 0)
		ret = take_top(args, argc, argv, err);
	if (ret == 0)
		ret = check_arguments(args, err);
	if (ret == 0 && args->daemonize)
		ret = make_paths_absolute(args);
	return ret ? ret : add_log_words(args, err);
}

static void arguments_exit(struct arguments *args)
{
	for (int i = 0; i < args->nr_words; i++)
		free(args->words[i]);
	for (u32 i = 0; i < args->nr_exports; i++) {
		export_options_exit(&args->exports[i]);
		free(args->sockets[i]);
	}
	free(args->qmp);
	free(args->intent_log);
}

/* ---- signals ---------------------------------------------------------------- */

/*
 * A handler and an eventfd, not a signalfd: while images are opened the main
 * thread may sleep for long (rule A2), and a signal must end that sleep. So that
 * none comes just before it, they are blocked meanwhile, and the door lets them
 * in while it sleeps. Threads that start inherit that, and keep it.
 */
static int signal_fd = -1;

struct signals {
	struct daemon *daemon;
	struct loop_poll poll;
	bool armed;
};

static void on_signal(int number)
{
	int saved_errno = errno;
	u64 one = 1;

	if (write(signal_fd, &one, sizeof(one)) < 0)
		errno = 0; /* full: there is a signal already */
	errno = saved_errno;
}

/* SIG_BLOCK or SIG_UNBLOCK, in this thread. */
static void signals_mask(int how)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	pthread_sigmask(how, &set, NULL);
}

static int signals_install(struct qc_err *err)
{
	struct sigaction action = { .sa_handler = on_signal, .sa_flags = SA_RESTART };

	signal_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (signal_fd < 0)
		return qc_err_set(err, -errno, "start: no eventfd (%m)");
	sigemptyset(&action.sa_mask);
	signals_mask(SIG_BLOCK);
	if (sigaction(SIGTERM, &action, NULL) < 0 || sigaction(SIGINT, &action, NULL) < 0)
		return qc_err_set(err, -errno, "start: no signal handler (%m)");
	action.sa_handler = SIG_IGN;
	sigaction(SIGPIPE, &action, NULL);
	sigaction(SIGHUP, &action, NULL);
	return 0;
}

/* Has one come, and not been looked at yet? */
static bool signals_take(void)
{
	u64 count;

	return read(signal_fd, &count, sizeof(count)) == sizeof(count);
}

static void signals_arm(struct signals *signals);

static void signals_ready(struct loop_poll *poll, int revents)
{
	struct signals *signals = container_of(poll, struct signals, poll);
	struct qc_err err = { 0 };
	int ret;

	signals->armed = false;
	if (revents < 0 || !signals_take())
		return;
	ret = daemon_stop(signals->daemon, STOP_SIGNAL, "host-signal", &err);
	if (ret)
		log_error("%s", err.msg);
	if (!signals->daemon->stopped)
		signals_arm(signals);
}

static void signals_arm(struct signals *signals)
{
	signals->armed = true;
	loop_poll_add(signals->daemon->loop, &signals->poll, signal_fd, POLLIN);
}

static void signals_start(struct loop *loop, void *arg)
{
	struct signals *signals = arg;

	signals->poll.fn = signals_ready;
	signals_arm(signals);
}

static void signals_stop(struct loop *loop, void *arg)
{
	struct signals *signals = arg;

	if (signals->armed)
		loop_poll_cancel(&signals->poll);
	while (signals->armed)
		loop_run_once(loop, true);
}

/* ---- start and stop --------------------------------------------------------- */

static int create_loop(struct daemon *daemon, struct qc_err *err)
{
	struct io_engine *io;
	int ret = io_uring_engine_create(CONTROL_RING_ENTRIES, &io);

	if (ret == 0)
		ret = loop_create("control", io, &daemon->loop);
	if (ret == 0)
		ret = jobs_create(daemon->loop, qmp_target_event, NULL, &daemon->jobs);
	if (ret)
		qc_err_set(err, ret, "start: io_uring not available (%s), must be allowed "
				     "(sysctl kernel.io_uring_disabled=0)", strerror(-ret));
	return ret;
}

static int start_exports(struct daemon *daemon, const struct arguments *args, struct qc_err *err)
{
	int ret = 0;

	for (u32 i = 0; ret == 0 && i < args->nr_exports; i++)
		ret = daemon_add_export(daemon, &args->exports[i], err);
	return ret;
}

/*
 * Rule D1. A device that is taken over was checked when it was made, and nothing
 * is asked of the host while it waits (rule E1).
 */
static int check_top(const struct arguments *args, struct qc_err *err)
{
	for (int i = 1; i < args->nr_words; i++)
		if (strcmp(args->words[i], "read-only=on") == 0)
			return 0;
	for (u32 i = 0; i < args->nr_exports; i++)
		if (args->exports[i].kind == EXPORT_UBLK && args->exports[i].ublk.recover)
			return 0;
	return record_check_top(args->words[0], err);
}

static int open_target(struct daemon *daemon, struct arguments *args, struct qc_err *err)
{
	int ret = check_top(args, err);

	if (ret)
		return ret;
	if (args->own_folder)
		chain_wait_tell(args->name);
	ret = target_create("qcow2-chain", args->nr_words, args->words, &daemon->target, err);
	signals_mask(SIG_UNBLOCK);
	if (ret == 0)
		target_set_event(daemon->target, qmp_target_event, NULL);
	if (ret && signals_take())
		qc_err_prefix(err, "start: ended by a signal while waiting");
	return ret;
}

static int start(struct daemon *daemon, struct arguments *args, struct qc_err *err)
{
	int ret = signals_install(err);

	if (ret == 0)
		ret = create_loop(daemon, err);
	if (ret == 0)
		ret = open_target(daemon, args, err);
	if (ret == 0 && args->qmp)
		ret = qmp_server_create(daemon, args->qmp, &daemon->qmp, err);
	if (ret == 0)
		ret = start_exports(daemon, args, err);
	return ret;
}

/* The control loop has the main thread, and joins by hand. */
static void start_watchdog(struct daemon *daemon, const struct arguments *args)
{
	struct qc_err err = { 0 };

	loop_beat_join(daemon->loop);
	if (args->watchdog_ms && watchdog_start(args->own_folder ? args->name : NULL, daemon->top,
						args->watchdog_ms, &err))
		log_warn("%s", err.msg);
}

static void stop_watchdog(struct daemon *daemon)
{
	watchdog_stop();
	loop_beat_leave(daemon->loop);
}

static void confine(const struct arguments *args)
{
	struct qc_err err = { 0 };

	if (process_confine(args->confinement, &err))
		log_warn("%s", err.msg);
}

static void serve(struct daemon *daemon, const struct arguments *args)
{
	struct signals signals = { .daemon = daemon };

	log_info("%s: serving %llu bytes%s", daemon->top,
		 (unsigned long long)daemon->target->size_bytes,
		 daemon->target->limits.read_only ? ", read-only" : "");
	loop_call(daemon->loop, signals_start, &signals);
	process_release_mounts();
	start_watchdog(daemon, args);
	confine(args);
	process_ready();
	loop_run(daemon->loop);
	stop_watchdog(daemon);
	loop_call(daemon->loop, signals_stop, &signals);
}

static int prepare(struct arguments *args, struct qc_err *err)
{
	char log_path[sizeof("/qchaind.log") + 256];
	const char *slash = strrchr(args->qmp ? args->qmp : "", '/');
	int ret = 0;

	if (args->own_folder)
		ret = chain_run_create(args->name, err);
	if (ret || !args->daemonize)
		return ret;
	snprintf(log_path, sizeof(log_path), "%.*s/qchaind.log", (int)(slash - args->qmp),
		 args->qmp);
	return process_daemonize(log_path, err);
}

/* Nothing is left of a chain that nobody else keeps records of. */
static void clean_up(const struct arguments *args)
{
	char path[256];

	if (args->own_folder &&
	    chain_run_path(args->name, NULL, path, sizeof(path), NULL) == 0)
		rmdir(path); /* fails when there is a log or a record: they stay */
}

static int run(struct arguments *args)
{
	struct daemon daemon = { .name = args->name, .top = args->words[0],
				 .passed_fd = -1 };
	struct qc_err err = { 0 };
	int ret = prepare(args, &err);

	if (ret == 0) {
		process_protect();
		ret = start(&daemon, args, &err);
	}
	if (ret == 0)
		serve(&daemon, args);
	daemon_exit(&daemon);
	loop_destroy(daemon.loop);
	clean_up(args);
	if (ret)
		process_failed(&err);
	return ret ? EXIT_FAILURE : daemon.exit_status;
}

int main(int argc, char **argv)
{
	struct arguments args = { .watchdog_ms = QC_WATCHDOG_MS };
	struct qc_err err = { 0 };
	int ret, status;

	/* One heap: that of a thread grows by a system call for every page. */
	mallopt(M_ARENA_MAX, 1);
	ret = confinement_default(&args.confinement, &err);
	if (!ret)
		ret = arguments_parse(&args, argc, argv, &err);
	if (ret > 0)
		status = fflush(stdout) == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
	else if (ret < 0)
		status = usage_error(&err);
	else
		status = run(&args);
	arguments_exit(&args);
	return status;
}
