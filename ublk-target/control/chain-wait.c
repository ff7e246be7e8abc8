// SPDX-License-Identifier: GPL-2.0-or-later
/* What a start waits for, told in a file as long as there is no QMP (rule A2). */
#include <qchain/control.h>
#include <qchain/io.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

static const char *chain_name;
static u64 since; /* of the wait that goes on; 0: none */

static json_object *wait_json(const char *why)
{
	json_object *o = json_object_new_object();

	json_object_object_add(o, "reason", json_object_new_string(why));
	json_object_object_add(o, "since", json_object_new_int64(since));
	json_object_object_add(o, "pid", json_object_new_int(getpid()));
	return o;
}

/* Replaced as a whole: who reads it never sees half of it. */
static void write_file(const char *path, const char *why)
{
	json_object *o = wait_json(why);
	char new_path[300];

	snprintf(new_path, sizeof(new_path), "%s.new", path);
	if (json_object_to_file(new_path, o) < 0 || rename(new_path, path) < 0)
		unlink(new_path); /* the log has it, too */
	json_object_put(o);
}

static void tell(const char *why)
{
	char path[256];

	if (chain_run_path(chain_name, "waiting.json", path, sizeof(path), NULL))
		return;
	if (why) {
		since = since ? since : (u64)time(NULL);
		write_file(path, why);
	} else {
		since = 0;
		unlink(path);
	}
}

void chain_wait_tell(const char *name)
{
	chain_name = name;
	io_dev_on_wait(tell);
}
