// SPDX-License-Identifier: GPL-2.0-or-later
/* One merge of a served chain on slow devices, and the milliseconds of the job. */
#include "slow.h"

#include "../sim/wrapped-loops.h"
#include "chain-private.h"

#include <qchain/online.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/*   slow-merge stream|commit TOP    into TOP; what is between TOP and the base, into that */

static void must(int ret, const struct qc_err *err)
{
	if (!ret)
		return;
	fprintf(stderr, "slow-merge: %s\n", err->msg);
	exit(1);
}

static struct loop *make_loop(const char *name)
{
	struct io_engine *io;
	struct loop *loop;

	if (io_uring_engine_create(8, &io) || loop_create(name, io, &loop))
		exit(1);
	return loop;
}

static struct job *make_job(const char *how, struct target *ti, struct jobs *jobs)
{
	const struct chain *chain = ((struct chain_target *)ti->private)->chain;
	const struct chain_layer *layers = chain->layers;
	struct chain_stream_options up = { .node = layers[0].node_name };
	struct chain_commit_options down = { .node = layers[0].node_name,
					     .top_node = layers[1].node_name,
					     .base_node = layers[chain->nr_layers - 1].node_name };
	struct job_options options = { .manual_dismiss = true };
	struct qc_err err = { 0 };
	struct job *job;

	if (!strcmp(how, "stream"))
		must(chain_stream(ti, jobs, &up, &options, &job, &err), &err);
	else
		must(chain_commit(ti, jobs, &down, &options, &job, &err), &err);
	return job;
}

static bool is_concluded(void *arg)
{
	return ((struct job *)arg)->state == JOB_CONCLUDED;
}

int main(int argc, char **argv)
{
	char *words[] = { argc > 2 ? argv[2] : "", "may-lose=on" };
	struct loop *control = make_loop("control");
	struct qc_err err = { 0 };
	struct target *ti;
	struct jobs *jobs;
	struct job *job;
	u64 start;

	if (argc != 3 || jobs_create(control, NULL, NULL, &jobs))
		return 2;
	must(target_create("qcow2-chain", 2, words, &ti, &err), &err);
	job = make_job(argv[1], ti, jobs);
	start = slow_now_ms();
	job_start(job);
	slow_run_until(is_concluded, job);
	must(job->ret, &job->err);
	printf("%llu\n", (unsigned long long)(slow_now_ms() - start));
	jobs_destroy(jobs);
	target_destroy(ti);
	loop_destroy(control);
	return 0;
}
