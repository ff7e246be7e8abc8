// SPDX-License-Identifier: GPL-2.0-or-later
/* qchainctl events: what daemons have to say, as they say it. */
#include "served.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* One chain that is listened to; @client NULL: its daemon has ended. */
struct listener {
	const char *name;
	struct client *client;
};

static void print_text(const char *name, json_object *event)
{
	json_object *data = NULL, *stamp = NULL;
	time_t seconds;
	char text[32];
	struct tm tm;

	json_object_object_get_ex(event, "data", &data);
	json_object_object_get_ex(event, "timestamp", &stamp);
	seconds = json_number(stamp, "seconds", time(NULL));
	strftime(text, sizeof(text), "%F %T", localtime_r(&seconds, &tm));
	printf("%s  %s  %s", text, name, json_text(event, "event"));
	if (data) {
		json_object_object_foreach(data, key, value) {
			printf("  %s=%s", key, json_object_get_string(value));
		}
	}
	printf("\n");
}

/* One line each, so that a reader needs no end. */
static void print_event(const char *name, json_object *event, bool json)
{
	if (json) {
		json_object_object_add(event, "name", json_object_new_string(name));
		printf("%s\n", json_object_to_json_string_ext(event, JSON_C_TO_STRING_PLAIN |
							      JSON_C_TO_STRING_NOSLASHESCAPE));
	} else {
		print_text(name, event);
	}
	fflush(stdout);
}

/* All that has come; -errno: its daemon has ended. */
static int take_events(struct listener *l, bool json)
{
	json_object *event;
	int ret;

	while ((ret = client_next_event(l->client, &event)) == 0) {
		print_event(l->name, event, json);
		json_object_put(event);
	}
	return ret == -EAGAIN ? 0 : ret;
}

static int listen_all(struct listener *all, u32 nr, bool json)
{
	struct pollfd *fds = calloc(nr, sizeof(*fds));
	u32 left = 0;

	if (!fds)
		return CTL_FAILED;
	for (u32 i = 0; i < nr; i++)
		left += all[i].client != NULL;
	while (left) {
		for (u32 i = 0; i < nr; i++)
			fds[i] = (struct pollfd){ .fd = all[i].client ? client_fd(all[i].client) :
								       -1, .events = POLLIN };
		if (poll(fds, nr, -1) < 0 && errno != EINTR)
			break;
		for (u32 i = 0; i < nr; i++) {
			if (!fds[i].revents || !all[i].client || take_events(&all[i], json) == 0)
				continue;
			client_close(all[i].client);
			all[i].client = NULL;
			left--;
		}
	}
	free(fds);
	return CTL_DONE;
}

/* The connection over which the chain was found to be live. */
static int connect_one(struct listener *listener, struct qc_err *err)
{
	struct served served;
	int ret = served_find(listener->name, &served, err);

	if (ret)
		return ret;
	if (served.client)
		listener->client = served.client;
	else
		ret = served_not_live(&served, err);
	served.client = NULL;
	served_exit(&served);
	return ret;
}

/* @named: each of them has to be served */
static int connect_all(struct listener *all, char **names, u32 nr, bool named, struct qc_err *err)
{
	struct qc_err why = { 0 };
	int ret = 0;

	for (u32 i = 0; i < nr && !ret; i++) {
		all[i].name = names[i];
		ret = connect_one(&all[i], named ? err : &why);
		ret = named ? ret : 0;
	}
	return ret;
}

static int events_of(char **names, u32 nr, bool named, bool json)
{
	struct listener *all = calloc(nr ? nr : 1, sizeof(*all));
	struct qc_err err = { 0 };
	int status;

	if (!all)
		return CTL_FAILED;
	status = connect_all(all, names, nr, named, &err) ? print_error(&err) :
							    listen_all(all, nr, json);
	for (u32 i = 0; i < nr; i++)
		client_close(all[i].client);
	free(all);
	return status;
}

static int events_run(const struct verb *verb, int argc, char **argv)
{
	struct qc_err err = { 0 };
	char **names;
	bool json;
	u32 nr;
	int status = served_arguments(verb, argc, argv, 0, argc, &json);

	for (int i = optind; i < argc && !status; i++)
		status = served_name(verb, argv[i]);
	if (status)
		return status;
	if (optind < argc)
		return events_of(argv + optind, argc - optind, true, json);
	if (rundir_names(&names, &nr, &err))
		return print_error(&err);
	status = events_of(names, nr, false, json);
	for (u32 i = 0; i < nr; i++)
		free(names[i]);
	free(names);
	return status;
}

const struct verb verb_events = {
	.name = "events",
	.summary = "what the daemons of chains report, as it happens",
	.usage = "[NAME]... [--json]",
	.options =
		"  --json     one object a line: as QMP sends it, and name\n"
		"\n"
		"Without NAME of all chains that are served now. Ends with the last daemon.\n",
	.examples =
		"  qchainctl events\n"
		"  qchainctl events vm7 --json | jq --unbuffered -r .event\n",
	.run = events_run,
};
