/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the verbs that work on images without a daemon have in common. */
#ifndef CTL_IMAGE_OFFLINE_H
#define CTL_IMAGE_OFFLINE_H

#include "../ctl.h"

#include <qchain/chain.h>
#include <qchain/image.h>

/* struct offline_options - how images are opened; options that all verbs share */
struct offline_options {
	enum image_format format;
	bool json;
	bool force_share;
	const char *backing_format;
	char **allow_dirs; /* NULL-terminated, room for one per argument */
	u32 nr_allow_dirs;
	u32 nr_given; /* of them, from the command line; the rest is malloc'ed */
};

/* Values that these options have in a verb's own switch; others are the verb's. */
enum offline_option_value {
	OPTION_JSON = 'j',
	OPTION_FORMAT = 'f',
	OPTION_FORCE_SHARE = 'U',
	OPTION_ALLOW_BACKING = 'A',
	OPTION_BACKING_FORMAT = 'F',
};

/* Rows of a verb's struct option table, and their help. */
#define OFFLINE_JSON_ROW { "json", no_argument, NULL, OPTION_JSON }
#define OFFLINE_IMAGE_ROWS                                                             \
	OFFLINE_JSON_ROW, { "format", required_argument, NULL, OPTION_FORMAT },        \
	{ "force-share", no_argument, NULL, OPTION_FORCE_SHARE }
#define OFFLINE_CHAIN_ROWS                                                             \
	OFFLINE_IMAGE_ROWS, { "allow-backing", required_argument, NULL, OPTION_ALLOW_BACKING }, \
	{ "backing-format", required_argument, NULL, OPTION_BACKING_FORMAT }

#define OFFLINE_JSON_HELP "  --json                 one JSON value on standard output\n"
#define OFFLINE_IMAGE_HELP                                                             \
	OFFLINE_JSON_HELP                                                              \
	"  --format FORMAT        format of the image, qcow2 (default) or raw\n"      \
	"  --force-share          take and heed no image locks: what is in use may\n" \
	"                         change while it is read\n"
#define OFFLINE_CHAIN_HELP                                                             \
	OFFLINE_IMAGE_HELP                                                             \
	"  --allow-backing DIR    follow backing names into DIR, too; repeatable\n"   \
	"  --backing-format FMT   format of backing images whose overlay does not say it\n"

/*
 * struct offline_syntax - the command line of a verb
 * @rows: its options
 * @take: gets those that are not in struct offline_options, the value in optarg;
 *        a wrong one sets @err. NULL: there are none.
 * @least, @most: words beside the options
 */
struct offline_syntax {
	const struct option *rows;
	void (*take)(void *arg, int c, struct qc_err *err);
	int least;
	int most;
};

/*
 * offline_options_read - read and check a command line; the words begin at optind
 * @arg: for @syntax->take
 * Returns 0, or the exit status when it was refused and the user was told why.
 * offline_options_exit() has to follow in either case.
 */
int offline_options_read(const struct verb *verb, int argc, char **argv,
			 const struct offline_syntax *syntax, struct offline_options *options,
			 void *arg);
void offline_options_exit(struct offline_options *options);

/* --format and its like: "qcow2" or "raw". @what: the option, for messages. */
void offline_take_format(const char *what, const char *text, enum image_format *result,
			 struct qc_err *err);

/* One image, not its backing; @writable: for repairs. */
int offline_open_image(const char *name, const struct offline_options *options, bool writable,
		       u32 image_flags, struct image **result, struct qc_err *err);

/* image_thick_bytes() of an image like @img, of qcow2, with another size perhaps. */
u64 offline_thick_bytes(const struct image *img, u64 virtual_size);

/* The image and all below it, read-only. */
int offline_open_chain(const char *name, const struct offline_options *options,
		       struct chain **result, struct qc_err *err);

/*
 * offline_allow_chain - what the owner of @chain may use is allowed from now on,
 * when a part of it is opened by itself: its layers, one by one
 * offline_allow_dir - and the folder of @path and below, where it is a file
 */
int offline_allow_chain(struct offline_options *options, const struct chain *chain);
int offline_allow_dir(struct offline_options *options, const char *path);

/*
 * backing_header_name - what the header of the image at @path says for the image
 * at @backing (backing-name.c); malloc'ed, NULL: @err says why
 * LVs of one VG by their LV name, as Proxmox does it: the VG may be renamed. Files
 * below the image's directory relative to it, so that they move together;
 * everything else by its absolute path.
 */
char *backing_header_name(const char *path, const char *backing, struct qc_err *err);

/* Add @key to a JSON object; sizes and counts are unsigned. */
void json_add_u64(json_object *object, const char *key, u64 value);
void json_add_string(json_object *object, const char *key, const char *value);
void json_add_bool(json_object *object, const char *key, bool value);

#endif
