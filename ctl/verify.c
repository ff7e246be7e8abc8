// SPDX-License-Identifier: GPL-2.0-or-later
/* qchainctl verify: are exports, and those that they stand on, what was written? */
#include "image/verify-set.h"
#include "image/offline.h"

static int verify_all(char **files, int nr, bool json)
{
	struct verify_set set = { .json = json ? json_object_new_array() : NULL };
	struct object_name object;
	int status = CTL_DONE;

	for (int i = 0; i < nr; i++) {
		struct qc_err err = {};

		if (name_image(files[i], &object, &err) ||
		    verify_set_add(&set, object.path, &err))
			status = print_error(&err);
	}
	if (json)
		print_json(set.json);
	verify_set_exit(&set);
	return status;
}

static int run_verify(const struct verb *verb, int argc, char **argv)
{
	static const struct option rows[] = { OFFLINE_JSON_ROW, {} };
	static const struct offline_syntax syntax = { rows, NULL, 1, 1 << 20 };
	struct offline_options options;
	int ret = offline_options_read(verb, argc, argv, &syntax, &options, NULL);

	if (!ret)
		ret = verify_all(argv + optind, argc - optind, options.json);
	offline_options_exit(&options);
	return ret;
}

const struct verb verb_verify = {
	.name = "verify",
	.summary = "are exports whole, with all that they stand on?",
	.usage = "[OPTION]... FILE...",
	.options =
	"  --json                 a list: filename, device, to, from, data, sha256\n"
	"Each FILE is read, and so is each earlier export below it, down to a full one: its\n"
	"data against the checksum in FILE.json, and whether it stands on the export that it\n"
	"was made for. Exit status 1: one is missing, or not what was written.\n",
	.examples = "  qchainctl verify /backup/tuesday.qcow2\n"
		    "  qchainctl verify /backup/*.qcow2 --json\n",
	.run = run_verify,
};
