// SPDX-License-Identifier: GPL-2.0-or-later
/* QMP block-export-add, block-export-del, nbd-server-start, nbd-server-stop. */
#include "control-private.h"

#include <errno.h>
#include <qchain/online.h>
#include <qchain/parse.h>
#include <stdlib.h>
#include <string.h>

/*
 * QEMU's NBD server is one socket with many exports, ours has a socket for each.
 * nbd-server-start says where the one is that names no place of its own; "addr", as
 * QEMU has it for exports of other types, names one.
 *
 * The active layer is exported as it is at start: the device, whatever becomes its
 * active layer. Any other node becomes a target of its own, read-only (rule C6).
 */

const struct qmp_param qmp_nbd_server_start_params[] = {
	{ "addr", json_type_object, true },
	{ NULL },
};

const struct qmp_param qmp_block_export_add_params[] = {
	{ "type", json_type_string, true },
	{ "id", json_type_string, true },
	{ "node-name", json_type_string, true },
	{ "writable", json_type_boolean, false },
	{ "name", json_type_string, false },
	{ "description", json_type_string, false },
	{ "allocation-depth", json_type_boolean, false }, /* it is always there */
	{ "addr", json_type_object, false },
	{ NULL },
};

const struct qmp_param qmp_block_export_del_params[] = {
	{ "id", json_type_string, true },
	{ "mode", json_type_string, false },
	{ NULL },
};

static bool is_true(const struct qmp_call *call, const char *key)
{
	json_object *value;

	return json_object_object_get_ex(call->arguments, key, &value) &&
	       json_object_get_boolean(value);
}

/* ---- the server --------------------------------------------------------------- */

/* "type" of @addr must be unix; the path is beside it, or in "data", as the older form has it. */
static int read_path(json_object *addr, json_object *holder, const char **result,
		     struct qc_err *err)
{
	const char *type = qmp_text_of(addr, "type");

	if (!type)
		return qc_err_set(err, -EINVAL, "Parameter 'addr.type' is missing");
	if (strcmp(type, "unix"))
		return qc_err_set(err, -EINVAL, "Parameter 'type' does not accept value '%.80s'",
				  type);
	*result = qmp_text_of(holder, "path");
	return *result ? 0 : qc_err_set(err, -EINVAL, "Parameter 'addr.path' is missing");
}

int qmp_nbd_server_start(struct qmp_call *call, struct qc_err *err)
{
	struct daemon *daemon = call->daemon;
	json_object *addr, *data;
	const char *path;
	int ret;

	json_object_object_get_ex(call->arguments, "addr", &addr);
	json_object_object_get_ex(addr, "data", &data);
	ret = read_path(addr, data, &path, err);
	if (ret)
		return ret;
	if (daemon->nbd_path)
		return qc_err_set(err, -EEXIST, "NBD server already running");
	daemon->nbd_path = strdup(path);
	return daemon->nbd_path ? 0 : -ENOMEM;
}

/* The export on the server's socket; QC_MAX_EXPORTS: none. */
static u32 find_on_server(const struct daemon *daemon)
{
	for (u32 i = 0; i < daemon->nr_exports; i++)
		if (daemon->exports[i] == daemon->nbd_export)
			return i;
	return QC_MAX_EXPORTS;
}

int qmp_nbd_server_stop(struct qmp_call *call, struct qc_err *err)
{
	struct daemon *daemon = call->daemon;
	u32 index = find_on_server(daemon);
	int ret = 0;

	if (!daemon->nbd_path)
		return qc_err_set(err, -ENOENT, "NBD server not running");
	if (index < QC_MAX_EXPORTS)
		ret = daemon_end_export(daemon, index, true, err);
	if (ret)
		return ret;
	free(daemon->nbd_path);
	daemon->nbd_path = NULL;
	return 0;
}

/* ---- adding --------------------------------------------------------------------- */

static u32 find_export(const struct daemon *daemon, const char *id)
{
	u32 i = 0;

	while (i < daemon->nr_exports && strcmp(daemon->exports[i]->id, id))
		i++;
	return i;
}

static int check_id(const struct daemon *daemon, const char *id, struct qc_err *err)
{
	const u32 longest = sizeof(daemon->exports[0]->id) - 1;

	if (!parse_is_id(id, longest))
		return qc_err_set(err, -EINVAL, "Invalid block export id");
	if (find_export(daemon, id) < daemon->nr_exports)
		return qc_err_set(err, -EEXIST, "Block export id '%s' is already in use", id);
	return 0;
}

/* The socket: *@server, the server's. */
static int choose_socket(struct qmp_call *call, const char **socket, bool *server,
			 struct qc_err *err)
{
	struct daemon *daemon = call->daemon;
	json_object *addr;
	u32 taken = find_on_server(daemon);

	*server = !json_object_object_get_ex(call->arguments, "addr", &addr);
	if (!*server)
		return read_path(addr, addr, socket, err);
	if (!daemon->nbd_path)
		return qc_err_set(err, -ENOENT, "NBD server not running");
	if (taken < QC_MAX_EXPORTS)
		return qc_err_set(err, -EBUSY, "The socket of the NBD server shows export '%s', "
				  "and one socket shows one; say another in 'addr'",
				  daemon->exports[taken]->id);
	*socket = daemon->nbd_path;
	return 0;
}

/* The device itself, or the node as a target of its own. */
static int find_target(struct qmp_call *call, const char *node, struct target **result,
		       struct qc_err *err)
{
	struct daemon *daemon = call->daemon;
	json_object *top = qmp_top_node(daemon->target);
	bool is_top = top && !strcmp(json_object_get_string(top), node);
	int ret;

	json_object_put(top);
	*result = daemon->target;
	if (is_top)
		return 0;
	ret = qmp_check_no_merge(daemon, node, err);
	if (!ret && is_true(call, "writable"))
		ret = qc_err_set(err, -EROFS, "%.80s: is not the active layer, can be exported "
				 "for reading only", node);
	if (!ret)
		ret = chain_show(daemon->target, node, result, err);
	if (!ret)
		target_set_event(*result, qmp_target_event, NULL);
	return ret;
}

static int add_nbd(struct qmp_call *call, struct target *target, const char *socket,
		   struct qc_err *err)
{
	const char *name = qmp_text_of(call->arguments, "name");
	struct nbd_options options = {
		.socket = socket,
		.name = name ? name : qmp_text_of(call->arguments, "node-name"),
		.description = qmp_text_of(call->arguments, "description"),
		.read_only = !is_true(call, "writable"),
	};
	struct transport *t;
	int ret = nbd_create(target, &options, &t, err);

	return ret ? ret : daemon_start_export(call->daemon, t,
					       qmp_text_of(call->arguments, "id"), err);
}

int qmp_block_export_add(struct qmp_call *call, struct qc_err *err)
{
	const char *type = qmp_text_of(call->arguments, "type");
	struct daemon *daemon = call->daemon;
	struct target *target;
	const char *socket;
	bool server;
	int ret;

	if (strcmp(type, "nbd"))
		return qc_err_set(err, -EINVAL, "Parameter 'type' does not accept value '%.80s'",
				  type);
	ret = check_id(daemon, qmp_text_of(call->arguments, "id"), err);
	if (!ret)
		ret = choose_socket(call, &socket, &server, err);
	if (!ret)
		ret = find_target(call, qmp_text_of(call->arguments, "node-name"), &target, err);
	if (ret)
		return ret;
	ret = add_nbd(call, target, socket, err);
	if (ret && target != daemon->target)
		target_destroy(target);
	if (!ret && server)
		daemon->nbd_export = daemon->exports[daemon->nr_exports - 1];
	return ret;
}

/* ---- removing ------------------------------------------------------------------- */

int qmp_block_export_del(struct qmp_call *call, struct qc_err *err)
{
	const char *id = qmp_text_of(call->arguments, "id");
	const char *mode = qmp_text_of(call->arguments, "mode");
	struct daemon *daemon = call->daemon;
	u32 index = find_export(daemon, id);
	bool hard = mode && !strcmp(mode, "hard");

	if (mode && !hard && strcmp(mode, "safe"))
		return qc_err_set(err, -EINVAL, "Parameter 'mode' does not accept value '%.80s'",
				  mode);
	if (index == daemon->nr_exports)
		return qc_err_set(err, -ENOENT, "Export '%.80s' is not found", id);
	if (!hard && daemon_export_clients(daemon->exports[index]))
		return qc_err_set(err, -EBUSY, "export '%s' still in use", id);
	return daemon_end_export(daemon, index, hard, err);
}
