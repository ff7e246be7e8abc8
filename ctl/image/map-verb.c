// SPDX-License-Identifier: GPL-2.0-or-later
/* qchainctl map: which bytes of the device lie where in which layer. */
#include "offline.h"
#include "reader.h"

#include <qchain/parse.h>

#define OPTION_START 's'
#define OPTION_LENGTH 'l'

struct map_options {
	struct offline_options offline;
	u64 start;
	u64 length;
};

/* ---- entries as qemu-img joins them ---------------------------------------------- */

/* struct entry - one line; the keys of qemu-img map */
struct entry {
	u64 start;
	u64 length; /* 0: none yet */
	u64 offset;
	u32 depth;
	bool present;
	bool zero;
	bool data;
	bool has_offset;
	bool compressed;
};

static struct entry entry_of(u64 start, const struct run *run)
{
	return (struct entry){
		.start = start,
		.length = run->bytes,
		.offset = run->host,
		.depth = run->layer,
		.present = run->present,
		.zero = run->zero,
		.data = run->kind == CLUSTER_DATA || run->kind == CLUSTER_COMPRESSED,
		.has_offset = run_has_place(run),
		.compressed = run->kind == CLUSTER_COMPRESSED,
	};
}

static bool joins(const struct entry *a, const struct entry *b)
{
	return a->length && a->zero == b->zero && a->data == b->data && a->depth == b->depth &&
	       a->present == b->present && a->has_offset == b->has_offset &&
	       (!a->has_offset || a->offset + a->length == b->offset);
}

/* ---- printing --------------------------------------------------------------------- */

static const char *truth(bool value)
{
	return value ? "true" : "false";
}

/* Streamed: a map may have millions of entries. */
static void print_entry_json(const struct entry *e, bool first)
{
	printf("%s{ \"start\": %llu, \"length\": %llu, \"depth\": %u, \"present\": %s, "
	       "\"zero\": %s, \"data\": %s",
	       first ? "[" : ",\n", (unsigned long long)e->start, (unsigned long long)e->length,
	       e->depth, truth(e->present), truth(e->zero), truth(e->data));
	if (e->has_offset)
		printf(", \"offset\": %llu", (unsigned long long)e->offset);
	putchar('}');
}

/* What reads as zero is left out, as qemu-img does. */
static void print_entry_human(const struct entry *e, const struct chain *chain)
{
	char offset[32] = "compressed";

	if (!e->data || e->zero)
		return;
	if (!e->compressed)
		snprintf(offset, sizeof(offset), "%#llx", (unsigned long long)e->offset);
	printf("%#-16llx%#-16llx%-16s%s\n", (unsigned long long)e->start,
	       (unsigned long long)e->length, offset, chain->layers[e->depth].path);
}

static void print_entry(const struct map_options *options, const struct chain *chain,
			const struct entry *e, bool first)
{
	if (options->offline.json)
		print_entry_json(e, first);
	else
		print_entry_human(e, chain);
}

/* ---- the verb ---------------------------------------------------------------------- */

static int map_range(const struct map_options *options, const struct chain *chain,
		     struct reader *reader, struct qc_err *err)
{
	u64 end = chain->virtual_size;
	struct entry current = { .length = 0 }, next;
	bool first = true;
	struct run run;

	if (options->length < end - min(options->start, end))
		end = options->start + options->length;
	for (u64 at = options->start; at < end; at += run.bytes) {
		int ret = reader_run(reader, at, end - at, &run, err);

		if (ret)
			return ret;
		next = entry_of(at, &run);
		if (joins(&current, &next)) {
			current.length += next.length;
			continue;
		}
		if (current.length) {
			print_entry(options, chain, &current, first);
			first = false;
		}
		current = next;
	}
	if (current.length) {
		print_entry(options, chain, &current, first);
		first = false;
	}
	if (options->offline.json)
		puts(first ? "[]" : "]");
	return 0;
}

static int map_chain(const char *name, const struct map_options *options)
{
	struct qc_err err = {};
	struct reader *reader;
	struct chain *chain;
	int ret;

	if (offline_open_chain(name, &options->offline, &chain, &err))
		return print_error(&err);
	ret = reader_open(chain, &reader, &err);
	if (!ret) {
		if (!options->offline.json)
			printf("%s%-16s%-16s%-16s%s%s\n", print_colour(stdout, COLOUR_STRONG),
			       "Offset", "Length", "Mapped to", "File",
			       print_colour(stdout, COLOUR_NONE));
		ret = map_range(options, chain, reader, &err);
		reader_close(reader);
	}
	chain_close(chain);
	return ret ? print_error(&err) : CTL_DONE;
}

static void take_option(void *arg, int c, struct qc_err *err)
{
	struct map_options *options = arg;

	if (c == OPTION_START)
		parse_size("--start-offset", optarg, &options->start, err);
	else
		parse_size("--max-length", optarg, &options->length, err);
}

static int run_map(const struct verb *verb, int argc, char **argv)
{
	static const struct option rows[] = {
		OFFLINE_CHAIN_ROWS,
		{ "start-offset", required_argument, NULL, OPTION_START },
		{ "max-length", required_argument, NULL, OPTION_LENGTH },
		{},
	};
	static const struct offline_syntax syntax = { rows, take_option, 1, 1 };
	struct map_options options = { .length = ~0ull };
	int ret = offline_options_read(verb, argc, argv, &syntax, &options.offline, &options);

	if (!ret)
		ret = map_chain(argv[optind], &options);
	offline_options_exit(&options.offline);
	return ret;
}

const struct verb verb_map = {
	.name = "map",
	.summary = "where in which layer the bytes of an image lie",
	.usage = "[OPTION]... IMAGE",
	.options = OFFLINE_CHAIN_HELP
	"  --start-offset SIZE    begin here\n"
	"  --max-length SIZE      end after so much\n",
	.examples = "  qchainctl map vg0/vm-100-disk-0.qcow2\n"
		    "  qchainctl map --json --start-offset 1G --max-length 64M ./disk.qcow2\n",
	.run = run_map,
};
