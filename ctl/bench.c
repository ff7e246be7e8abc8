// SPDX-License-Identifier: GPL-2.0-or-later
/* qchainctl bench: the engine in this process, without a kernel device, measured. */
#include "bench.h"
#include "ctl.h"

#include <errno.h>
#include <qchain/control.h>
#include <qchain/parse.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

/* The options and the access pattern are those of `qemu-img bench`. */

enum { OPTION_PATTERN = 256, OPTION_WARM, OPTION_JSON, OPTION_QUEUES, OPTION_CACHE,
       OPTION_FLUSH, OPTION_NO_DRAIN, OPTION_ALLOW };

static const struct option rows[] = {
	{ "count", required_argument, NULL, 'c' },
	{ "depth", required_argument, NULL, 'd' },
	{ "buffer-size", required_argument, NULL, 's' },
	{ "step-size", required_argument, NULL, 'S' },
	{ "offset", required_argument, NULL, 'o' },
	{ "format", required_argument, NULL, 'f' },
	{ "write", no_argument, NULL, 'w' },
	{ "flush-interval", required_argument, NULL, OPTION_FLUSH },
	{ "no-drain", no_argument, NULL, OPTION_NO_DRAIN },
	{ "pattern", required_argument, NULL, OPTION_PATTERN },
	{ "warm", no_argument, NULL, OPTION_WARM },
	{ "queues", required_argument, NULL, OPTION_QUEUES },
	{ "cache-size", required_argument, NULL, OPTION_CACHE },
	{ "allow-backing", required_argument, NULL, OPTION_ALLOW },
	{ "json", no_argument, NULL, OPTION_JSON },
	{},
};

struct bench_words {
	struct bench_options bench;
	char *argv[64]; /* of the target; the image is filled in last */
	int argc;
	bool json;
	bool has_step;
};

/* "seq", "step", "random" or "random,seed=N" */
static int parse_pattern(struct bench_options *b, const char *text, struct qc_err *err)
{
	static const char *const names[] = { "seq", "step", "random", NULL };
	const char *comma = strchr(text, ',');
	char name[16] = "";
	u32 index;
	int ret;

	if (comma && strncmp(comma, ",seed=", 6))
		return qc_err_set(err, -EINVAL, "--pattern: \"%s\", expected random,seed=N", text);
	snprintf(name, sizeof(name), "%.*s", comma ? (int)(comma - text) : 15, text);
	ret = parse_choice("--pattern", name, names, &index, err);
	if (ret)
		return ret;
	b->pattern = index;
	return comma ? parse_number("--pattern seed", comma + 6, 0, UINT64_MAX, &b->seed, err) : 0;
}

static int parse_u32(const char *what, u64 least, u64 most, u32 *result, struct qc_err *err)
{
	u64 value = 0;
	int ret = parse_size(what, optarg, &value, err);

	if (!ret && (value < least || value > most))
		ret = qc_err_set(err, -ERANGE, "%s: %s, expected %llu to %llu", what, optarg,
				 (unsigned long long)least, (unsigned long long)most);
	*result = value;
	return ret;
}

/* A word for the target. One place stays free, for read-only. */
static void add_word(struct bench_words *w, const char *key, struct qc_err *err)
{
	char *word;

	if (chain_option_check(key, optarg, err))
		return;
	if (w->argc + 1 >= (int)ARRAY_SIZE(w->argv))
		qc_err_set(err, -E2BIG, "--%s: too many options (%d), at most %zu of this kind",
			   key, w->argc, ARRAY_SIZE(w->argv) - 2);
	else if (asprintf(&word, "%s=%s", key, optarg) < 0)
		qc_err_set(err, -ENOMEM, "--%s: out of memory", key);
	else
		w->argv[w->argc++] = word;
}

static void apply(struct bench_words *w, int c, struct qc_err *err)
{
	struct bench_options *b = &w->bench;

	switch (c) {
	case 'c':
		parse_number("--count", optarg, 1, UINT32_MAX, &b->count, err);
		break;
	case 'd':
		parse_u32("--depth", 1, BENCH_MAX_DEPTH, &b->depth, err);
		break;
	case 's':
		parse_u32("--buffer-size", 512, QC_MAX_REQUEST_BYTES, &b->bytes, err);
		break;
	case 'S':
		w->has_step = !parse_size("--step-size", optarg, &b->step, err);
		break;
	case 'o':
		parse_size("--offset", optarg, &b->offset, err);
		break;
	case OPTION_FLUSH:
		parse_u32("--flush-interval", 1, UINT32_MAX, &b->flush_interval, err);
		break;
	case OPTION_PATTERN:
		parse_pattern(b, optarg, err);
		break;
	case OPTION_QUEUES:
		parse_u32("--queues", 1, BENCH_MAX_QUEUES, &b->queues, err);
		break;
	case 'f':
		add_word(w, "format", err);
		break;
	case OPTION_CACHE:
		add_word(w, "cache-size", err);
		break;
	case OPTION_ALLOW:
		add_word(w, "allow-backing", err);
		break;
	}
	b->write |= c == 'w';
	b->no_drain |= c == OPTION_NO_DRAIN;
	b->warm |= c == OPTION_WARM;
	w->json |= c == OPTION_JSON;
}

/* ---- the report ------------------------------------------------------------------ */

static double us(u64 ns)
{
	return ns / 1000.0;
}

static void report_json(const struct bench_result *r)
{
	json_object *o = json_object_new_object();
	json_object *lat = json_object_new_object();

	json_object_object_add(o, "iops", json_object_new_double(r->iops));
	json_object_object_add(o, "seconds", json_object_new_double(r->seconds));
	json_object_object_add(lat, "p50", json_object_new_double(us(r->p50_ns)));
	json_object_object_add(lat, "p99", json_object_new_double(us(r->p99_ns)));
	json_object_object_add(lat, "max", json_object_new_double(us(r->max_ns)));
	json_object_object_add(o, "lat_us", lat);
	json_object_object_add(o, "cpu_us_per_io", json_object_new_double(r->cpu_us_per_io));
	json_object_object_add(o, "rss_bytes", json_object_new_int64(r->rss_bytes));
	json_object_object_add(o, "map_bytes", json_object_new_int64(r->map_bytes));
	json_object_object_add(o, "layers", json_object_new_int64(r->layers));
	json_object_object_add(o, "extents", json_object_new_int64(r->extents));
	json_object_object_add(o, "errors", json_object_new_int64(r->errors));
	print_json(o);
}

static void report(const struct bench_options *b, const struct bench_result *r)
{
	char size[32], rss[32], map[32];

	printf("%llu %s of %s, depth %u, %u queue%s, %llu layers\n", (unsigned long long)b->count,
	       b->write ? "writes" : "reads", print_size(b->bytes, size), b->depth, b->queues,
	       b->queues > 1 ? "s" : "", (unsigned long long)r->layers);
	printf("  %.0f IOPS in %.3f s, %.2f us CPU each\n", r->iops, r->seconds,
	       r->cpu_us_per_io);
	printf("  latency p50 %.1f us, p99 %.1f us, max %.1f us\n", us(r->p50_ns), us(r->p99_ns),
	       us(r->max_ns));
	printf("  memory %s resident, map %s in %llu extents\n", print_size(r->rss_bytes, rss),
	       print_size(r->map_bytes, map), (unsigned long long)r->extents);
	if (r->errors)
		printf("  %llu requests failed\n", (unsigned long long)r->errors);
}

static int measure(struct bench_words *w, const char *name)
{
	struct object_name object;
	struct bench_result result;
	struct qc_err err = {};

	if (name_image(name, &object, &err))
		return print_error(&err);
	w->argv[0] = object.path;
	if (bench_run(w->argc, w->argv, &w->bench, &result, &err))
		return print_error(&err);
	if (w->json)
		report_json(&result);
	else
		report(&w->bench, &result);
	return result.errors ? CTL_FAILED : CTL_DONE;
}

/* What cannot be meant; NULL: nothing. */
static const char *contradiction(const struct bench_options *b)
{
	if (b->flush_interval && !b->write)
		return "--flush-interval needs --write: reads leave nothing to flush";
	if (b->no_drain && !b->flush_interval)
		return "--no-drain needs --flush-interval";
	return NULL;
}

static int run_bench(const struct verb *verb, int argc, char **argv)
{
	struct bench_words w = { .argc = 1, .bench = { .count = 75000, .depth = 64, .bytes = 4096,
						       .queues = 1 } };
	struct qc_err err = {};
	int c, ret;

	while (!err.code && (c = verb_option(verb, argc, argv, rows)) != -1 && c != '?')
		apply(&w, c, &err);
	if (!w.has_step)
		w.bench.step = w.bench.bytes;
	if (!w.bench.write)
		w.argv[w.argc++] = strdup("read-only=on");
	else
		w.argv[w.argc++] = strdup("may-lose=on"); /* as any cache, until a flush */
	if (c == '?')
		ret = verb_status(verb);
	else if (err.code)
		ret = verb_usage(verb, "%s", err.msg);
	else if (contradiction(&w.bench))
		ret = verb_usage(verb, "%s", contradiction(&w.bench));
	else
		ret = verb_arguments(verb, argc, argv, 1, 1);
	if (!ret)
		ret = measure(&w, argv[optind]);
	for (c = 1; c < w.argc; c++)
		free(w.argv[c]);
	return ret;
}

const struct verb verb_bench = {
	.name = "bench",
	.summary = "measure reads or writes through the engine, without a device",
	.usage = "[OPTION]... IMAGE",
	.options = "  -c, --count N           requests (75000)\n"
		   "  -d, --depth N           requests in flight per queue (64)\n"
		   "  -s, --buffer-size SIZE  bytes of a request (4K)\n"
		   "  -S, --step-size SIZE    distance between requests (the size)\n"
		   "  -o, --offset SIZE       of the first request (0)\n"
		   "  -w, --write             write; changes the image\n"
		   "      --flush-interval N  flush after every N requests\n"
		   "      --no-drain          a flush does not wait for the writes before it\n"
		   "      --pattern P         seq, step, or random[,seed=N]\n"
		   "      --warm              load the whole map before measuring\n"
		   "      --queues N          threads with a queue each (1)\n"
		   "      --cache-size SIZE   budget of the map (48M)\n"
		   "  -f, --format FMT        qcow2 or raw (qcow2)\n"
		   "      --allow-backing DIR backing images may also lie there\n"
		   "      --json              one object\n",
	.examples = "  qchainctl bench --warm --pattern random -d 32 vg0/vm-100-disk-0.qcow2\n"
		    "  qchainctl bench -w -c 10000 --flush-interval 1 ./scratch.qcow2\n",
	.run = run_bench,
};
