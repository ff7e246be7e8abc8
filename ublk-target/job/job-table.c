// SPDX-License-Identifier: GPL-2.0-or-later
/* The two tables of a job's life: which state follows which, which verb when. */
#include <assert.h>
#include <qchain/job.h>

static const char *const state_names[JOB_NR_STATES] = {
	"undefined", "created", "running",  "paused",	 "ready", "standby",
	"waiting",   "pending", "aborting", "concluded", "null",
};

static const char *const verb_names[JOB_NR_VERBS] = {
	"cancel", "pause", "resume", "set-speed", "complete", "finalize", "dismiss",
};

/* Row: from; column: to. Undefined is only what was before created. */
static const bool state_table[JOB_NR_STATES][JOB_NR_STATES] = {
	/*		     U  C  R  P  Y  S  W  D  X  E  N */
	[JOB_UNDEFINED] = { 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0 },
	[JOB_CREATED] =   { 0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 1 },
	[JOB_RUNNING] =   { 0, 0, 0, 1, 1, 0, 1, 0, 1, 0, 0 },
	[JOB_PAUSED] =    { 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0 },
	[JOB_READY] =     { 0, 0, 0, 0, 0, 1, 1, 0, 1, 0, 0 },
	[JOB_STANDBY] =   { 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0 },
	[JOB_WAITING] =   { 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0 },
	[JOB_PENDING] =   { 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0 },
	[JOB_ABORTING] =  { 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0 },
	[JOB_CONCLUDED] = { 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1 },
	[JOB_NULL] =      { 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 },
};

static const bool verb_table[JOB_NR_VERBS][JOB_NR_STATES] = {
	/*			  U  C  R  P  Y  S  W  D  X  E  N */
	[JOB_VERB_CANCEL] =    { 0, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0 },
	[JOB_VERB_PAUSE] =     { 0, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0 },
	[JOB_VERB_RESUME] =    { 0, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0 },
	[JOB_VERB_SET_SPEED] = { 0, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0 },
	[JOB_VERB_COMPLETE] =  { 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0 },
	[JOB_VERB_FINALIZE] =  { 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0 },
	[JOB_VERB_DISMISS] =   { 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0 },
};

const char *job_state_name(enum job_state state)
{
	assert(state < JOB_NR_STATES);
	return state_names[state];
}

const char *job_verb_name(enum job_verb verb)
{
	assert(verb < JOB_NR_VERBS);
	return verb_names[verb];
}

bool job_state_allowed(enum job_state from, enum job_state to)
{
	assert(from < JOB_NR_STATES && to < JOB_NR_STATES);
	return state_table[from][to];
}

bool job_verb_allowed(enum job_verb verb, enum job_state state)
{
	assert(verb < JOB_NR_VERBS && state < JOB_NR_STATES);
	return verb_table[verb][state];
}
