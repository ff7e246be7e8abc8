// SPDX-License-Identifier: GPL-2.0-or-later
/* QMP: from one request to one reply, by the table of commands. */
#include "control-private.h"

#include <errno.h>
#include <string.h>

static int qmp_quit(struct qmp_call *call, struct qc_err *err);
static int qmp_capabilities(struct qmp_call *call, struct qc_err *err);

static const struct qmp_param capabilities_params[] = {
	{ "enable", json_type_array, false },
	{ NULL },
};

static const struct qmp_param nodes_params[] = {
	{ "flat", json_type_boolean, false }, /* our answer is always flat */
	{ NULL },
};

static const struct qmp_param blockstats_params[] = {
	{ "query-nodes", json_type_boolean, false }, /* our answer always is of nodes */
	{ NULL },
};

/* "force" is ours: end exports that are in use, too. */
static const struct qmp_param quit_params[] = {
	{ "force", json_type_boolean, false },
	{ NULL },
};

static const struct qmp_command commands[] = {
	{ "qmp_capabilities", capabilities_params, qmp_capabilities },
	{ "query-version", NULL, qmp_query_version },
	{ "query-commands", NULL, qmp_query_commands },
	{ "query-status", NULL, qmp_query_status },
	{ "query-named-block-nodes", nodes_params, qmp_query_named_block_nodes },
	{ "query-block-exports", NULL, qmp_query_block_exports },
	{ "query-blockstats", blockstats_params, qmp_query_blockstats },
	{ "query-jobs", NULL, qmp_query_jobs },
	{ "query-block-jobs", NULL, qmp_query_block_jobs },
	{ "job-cancel", qmp_job_params, qmp_job_cancel },
	{ "job-pause", qmp_job_params, qmp_job_pause },
	{ "job-resume", qmp_job_params, qmp_job_resume },
	{ "job-complete", qmp_job_params, qmp_job_complete },
	{ "job-finalize", qmp_job_params, qmp_job_finalize },
	{ "job-dismiss", qmp_job_params, qmp_job_dismiss },
	{ "block-job-cancel", qmp_block_job_cancel_params, qmp_block_job_cancel },
	{ "block-job-pause", qmp_block_job_params, qmp_block_job_pause },
	{ "block-job-resume", qmp_block_job_params, qmp_block_job_resume },
	{ "block-job-complete", qmp_block_job_params, qmp_block_job_complete },
	{ "block-job-finalize", qmp_job_params, qmp_block_job_finalize },
	{ "block-job-dismiss", qmp_job_params, qmp_block_job_dismiss },
	{ "block-job-set-speed", qmp_block_job_set_speed_params, qmp_block_job_set_speed },
	{ "block-set-write-threshold", qmp_block_set_write_threshold_params,
	  qmp_block_set_write_threshold },
	{ "add-fd", qmp_add_fd_params, qmp_add_fd },
	{ "remove-fd", qmp_remove_fd_params, qmp_remove_fd },
	{ "blockdev-add", qmp_blockdev_add_params, qmp_blockdev_add },
	{ "blockdev-backup", qmp_blockdev_backup_params, qmp_blockdev_backup },
	{ "blockdev-del", qmp_blockdev_del_params, qmp_blockdev_del },
	{ "blockdev-snapshot", qmp_blockdev_snapshot_params, qmp_blockdev_snapshot },
	{ "transaction", qmp_transaction_params, qmp_transaction },
	{ "qchain-volume-growth", qmp_qchain_volume_growth_params, qmp_qchain_volume_growth },
	{ "qchain-hold", qmp_qchain_hold_params, qmp_qchain_hold },
	{ "qchain-release", NULL, qmp_qchain_release },
	{ "qchain-cover", qmp_qchain_cover_params, qmp_qchain_cover },
	{ "qchain-rename-layer", qmp_qchain_rename_layer_params, qmp_qchain_rename_layer },
	{ "qchain-revert", qmp_qchain_revert_params, qmp_qchain_revert },
	{ "block-commit", qmp_block_commit_params, qmp_block_commit },
	{ "nbd-server-start", qmp_nbd_server_start_params, qmp_nbd_server_start },
	{ "nbd-server-stop", NULL, qmp_nbd_server_stop },
	{ "block-export-add", qmp_block_export_add_params, qmp_block_export_add },
	{ "block-export-del", qmp_block_export_del_params, qmp_block_export_del },
	{ "block_resize", qmp_block_resize_params, qmp_block_resize },
	{ "block-stream", qmp_block_stream_params, qmp_block_stream },
	{ "quit", quit_params, qmp_quit },
};

static const struct qmp_command *command_find(const char *name)
{
	for (u32 i = 0; i < ARRAY_SIZE(commands); i++) {
		if (strcmp(commands[i].name, name) == 0)
			return &commands[i];
	}
	return NULL;
}

json_object *qmp_command_list(void)
{
	json_object *list = json_object_new_array(), *entry;

	for (u32 i = 0; i < ARRAY_SIZE(commands); i++) {
		entry = json_object_new_object();
		json_object_object_add(entry, "name", json_object_new_string(commands[i].name));
		json_object_array_add(list, entry);
	}
	return list;
}

json_object *qmp_greeting(void)
{
	json_object *greeting = json_object_new_object();
	json_object *body = json_object_new_object();

	json_object_object_add(body, "version", qmp_version());
	json_object_object_add(body, "capabilities", json_object_new_array());
	json_object_object_add(greeting, "QMP", body);
	return greeting;
}

const char *qmp_text_of(json_object *object, const char *key)
{
	json_object *value;

	return json_object_object_get_ex(object, key, &value) &&
	       json_object_is_type(value, json_type_string) ? json_object_get_string(value) : NULL;
}

const char *qmp_text(json_object *object)
{
	return json_object_to_json_string_ext(object, JSON_C_TO_STRING_PLAIN |
							      JSON_C_TO_STRING_NOSLASHESCAPE);
}

json_object *qmp_error_reply(const char *error_class, const char *text)
{
	json_object *reply = json_object_new_object();
	json_object *error = json_object_new_object();

	json_object_object_add(error, "class", json_object_new_string(error_class));
	json_object_object_add(error, "desc", json_object_new_string(text));
	json_object_object_add(reply, "error", error);
	return reply;
}

/* ---- commands about the connection and the process --------------------------- */

/* We offer none, so whatever is asked for is refused. */
static int qmp_capabilities(struct qmp_call *call, struct qc_err *err)
{
	json_object *enable, *first;

	if (!json_object_object_get_ex(call->arguments, "enable", &enable) ||
	    json_object_array_length(enable) == 0)
		return 0;
	first = json_object_array_get_idx(enable, 0);
	if (!json_object_is_type(first, json_type_string))
		return qc_err_set(err, -EINVAL,
				  "Invalid parameter type for 'enable[0]', expected: string");
	if (strcmp(json_object_get_string(first), "oob") == 0)
		return qc_err_set(err, -EINVAL, "Capability oob not available");
	return qc_err_set(err, -EINVAL, "Parameter 'enable[0]' does not accept value '%.80s'",
			  json_object_get_string(first));
}

static int qmp_quit(struct qmp_call *call, struct qc_err *err)
{
	enum stop_mode mode = STOP_UNUSED;
	json_object *force;

	if (json_object_object_get_ex(call->arguments, "force", &force) &&
	    json_object_get_boolean(force))
		mode = STOP_FORCE;
	return daemon_stop(call->daemon, mode, "host-qmp-quit", err);
}

/* ---- checking a request -------------------------------------------------------- */

/* The parts of a request; borrowed from it. */
struct envelope {
	const char *execute;
	json_object *arguments; /* NULL: none */
	json_object *id; /* valid if has_id; NULL is the JSON value null */
	bool has_id;
};

static int envelope_member(struct envelope *envelope, const char *key, json_object *value,
			   struct qc_err *err)
{
	if (strcmp(key, "id") == 0) {
		envelope->id = value;
		envelope->has_id = true;
		return 0;
	}
	if (strcmp(key, "execute") == 0) {
		if (!json_object_is_type(value, json_type_string))
			return qc_err_set(err, -EINVAL,
					  "QMP input member 'execute' must be a string");
		envelope->execute = json_object_get_string(value);
		return 0;
	}
	if (strcmp(key, "arguments") == 0) {
		if (!json_object_is_type(value, json_type_object))
			return qc_err_set(err, -EINVAL,
					  "QMP input member 'arguments' must be an object");
		envelope->arguments = value;
		return 0;
	}
	return qc_err_set(err, -EINVAL, "QMP input member '%.80s' is unexpected", key);
}

static int envelope_read(json_object *request, struct envelope *result, struct qc_err *err)
{
	int ret = 0, one;

	if (!json_object_is_type(request, json_type_object))
		return qc_err_set(err, -EINVAL, "QMP input must be a JSON object");
	json_object_object_foreach(request, key, value) {
		one = envelope_member(result, key, value, err);
		ret = ret ? ret : one; /* the id counts wherever it stands */
	}
	if (ret == 0 && !result->execute)
		ret = qc_err_set(err, -EINVAL, "QMP input lacks member 'execute'");
	return ret;
}

static const char *type_name(enum json_type type)
{
	switch (type) {
	case json_type_boolean:
		return "boolean";
	case json_type_int:
		return "integer";
	case json_type_array:
		return "array";
	case json_type_object:
		return "object";
	default:
		return "string";
	}
}

static bool param_known(const struct qmp_param *params, const char *name)
{
	for (; params && params->name; params++) {
		if (strcmp(params->name, name) == 0)
			return true;
	}
	return false;
}

static int check_params(const struct qmp_param *params, json_object *arguments,
			struct qc_err *err)
{
	json_object *value;

	for (const struct qmp_param *p = params; p && p->name; p++) {
		if (!json_object_object_get_ex(arguments, p->name, &value)) {
			if (p->required)
				return qc_err_set(err, -EINVAL, "Parameter '%s' is missing",
						  p->name);
			continue;
		}
		if (p->type != QMP_ANY_TYPE && !json_object_is_type(value, p->type))
			return qc_err_set(err, -EINVAL,
					  "Invalid parameter type for '%s', expected: %s",
					  p->name, type_name(p->type));
	}
	json_object_object_foreach(arguments, key, unused) {
		(void)unused;
		if (!param_known(params, key))
			return qc_err_set(err, -EINVAL, "Parameter '%.80s' is unexpected", key);
	}
	return 0;
}

static int find_command(const struct envelope *envelope, bool negotiated,
			const struct qmp_command **result, struct qmp_call *call,
			struct qc_err *err)
{
	bool negotiates = strcmp(envelope->execute, "qmp_capabilities") == 0;

	call->error_class = QMP_COMMAND_NOT_FOUND;
	if (!negotiated && !negotiates)
		return qc_err_set(err, -EPROTO, "Expecting capabilities negotiation with "
						"'qmp_capabilities'");
	if (negotiated && negotiates)
		return qc_err_set(err, -EPROTO, "Capabilities negotiation is already complete, "
						"command ignored");
	*result = command_find(envelope->execute);
	if (!*result)
		return qc_err_set(err, -ENOENT, "The command %.80s has not been found",
				  envelope->execute);
	call->error_class = QMP_GENERIC_ERROR;
	if (call->daemon->stopped)
		return qc_err_set(err, -ESHUTDOWN, "The daemon is shutting down");
	return 0;
}

static int run_request(struct qmp_call *call, const struct envelope *envelope, bool *negotiated,
		       struct qc_err *err)
{
	const struct qmp_command *command = NULL;
	int ret = find_command(envelope, *negotiated, &command, call, err);

	if (ret)
		return ret;
	call->arguments = envelope->arguments ? json_object_get(envelope->arguments) :
						json_object_new_object();
	ret = check_params(command->params, call->arguments, err);
	if (ret == 0)
		ret = command->run(call, err);
	if (ret == 0)
		*negotiated = true; /* was already, or this was qmp_capabilities */
	json_object_put(call->arguments);
	return ret;
}

json_object *qmp_dispatch(struct daemon *daemon, json_object *request, bool *negotiated)
{
	struct qmp_call call = { .daemon = daemon, .error_class = QMP_GENERIC_ERROR };
	struct envelope envelope = { 0 };
	struct qc_err err = { 0 };
	json_object *reply;
	int ret = envelope_read(request, &envelope, &err);

	if (ret == 0)
		ret = run_request(&call, &envelope, negotiated, &err);
	if (ret) {
		json_object_put(call.result);
		reply = qmp_error_reply(call.error_class,
					err.msg[0] ? err.msg : strerror(-ret));
	} else {
		reply = json_object_new_object();
		json_object_object_add(reply, "return",
				       call.result ? call.result : json_object_new_object());
	}
	if (envelope.has_id)
		json_object_object_add(reply, "id", json_object_get(envelope.id));
	return reply;
}
