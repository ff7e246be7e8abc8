// SPDX-License-Identifier: GPL-2.0-or-later
/* QMP add-fd, remove-fd: images that come as descriptors (rules A2, E1). */
#include "control-private.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/*
 * A daemon lets go of the host's mounts when it has started, so it cannot open
 * a file by its path any more. Whoever can passes a descriptor; it is opened
 * again through /proc, so that locks and claims are the daemon's own.
 */
#define FDSET_PREFIX "/dev/fdset/"

const struct qmp_param qmp_add_fd_params[] = {
	{ "fdset-id", json_type_int, false },
	{ "opaque", json_type_string, false },
	{ NULL },
};

const struct qmp_param qmp_remove_fd_params[] = {
	{ "fdset-id", json_type_int, true },
	{ "fd", json_type_int, false },
	{ NULL },
};

struct qmp_fdset {
	struct qmp_fdset *next;
	s64 id;
	int fd;
	char *opaque; /* the image's path, for messages; NULL: not given */
};

static struct qmp_fdset **find(struct daemon *daemon, s64 id)
{
	struct qmp_fdset **at = &daemon->fdsets;

	while (*at && (*at)->id != id)
		at = &(*at)->next;
	return at;
}

static s64 free_id(struct daemon *daemon)
{
	s64 id = 0;

	while (*find(daemon, id))
		id++;
	return id;
}

static void drop(struct qmp_fdset **at)
{
	struct qmp_fdset *set = *at;

	*at = set->next;
	close(set->fd);
	free(set->opaque);
	free(set);
}

/* One descriptor a set: nobody needs several of one image. */
int qmp_add_fd(struct qmp_call *call, struct qc_err *err)
{
	struct daemon *daemon = call->daemon;
	json_object *value;
	struct qmp_fdset *set;
	s64 id = free_id(daemon);

	if (daemon->passed_fd < 0)
		return qc_err_set(err, -EINVAL, "No file descriptor supplied via SCM_RIGHTS");
	if (json_object_object_get_ex(call->arguments, "fdset-id", &value))
		id = json_object_get_int64(value);
	if (id < 0 || *find(daemon, id))
		return qc_err_set(err, -EINVAL, "Parameter 'fdset-id' expects %s",
				  id < 0 ? "a non-negative value" : "an id that is not in use");
	set = calloc(1, sizeof(*set));
	if (!set)
		return -ENOMEM;
	set->id = id;
	if (json_object_object_get_ex(call->arguments, "opaque", &value))
		set->opaque = strdup(json_object_get_string(value));
	set->fd = daemon->passed_fd;
	daemon->passed_fd = -1;
	*find(daemon, id) = set;
	call->result = json_object_new_object();
	json_object_object_add(call->result, "fdset-id", json_object_new_int64(id));
	json_object_object_add(call->result, "fd", json_object_new_int(set->fd));
	return 0;
}

int qmp_remove_fd(struct qmp_call *call, struct qc_err *err)
{
	json_object *value;
	struct qmp_fdset **at;
	s64 id;

	json_object_object_get_ex(call->arguments, "fdset-id", &value);
	id = json_object_get_int64(value);
	at = find(call->daemon, id);
	if (!*at)
		return qc_err_set(err, -ENOENT, "File descriptor named 'fdset-id:%lld' not found",
				  (long long)id);
	drop(at);
	return 0;
}

int qmp_fdset_path(struct daemon *daemon, const char *name, char *path, size_t bytes,
		   const char **shown, struct qc_err *err)
{
	struct qmp_fdset *set;
	char *end;
	s64 id;

	*shown = name;
	if (strncmp(name, FDSET_PREFIX, strlen(FDSET_PREFIX))) {
		if (snprintf(path, bytes, "%s", name) >= (int)bytes)
			return qc_err_set(err, -ENAMETOOLONG, "%.80s...: path too long", name);
		return 0;
	}
	id = strtoll(name + strlen(FDSET_PREFIX), &end, 10);
	set = *end ? NULL : *find(daemon, id);
	if (!set)
		return qc_err_set(err, -ENOENT, "Could not open '%.80s': No such file or directory",
				  name);
	snprintf(path, bytes, "/proc/self/fd/%d", set->fd);
	if (set->opaque)
		*shown = set->opaque;
	return 0;
}

void qmp_fdsets_free(struct daemon *daemon)
{
	while (daemon->fdsets)
		drop(&daemon->fdsets);
}
