// SPDX-License-Identifier: GPL-2.0-or-later
/* Layers below the active one that nobody has closed: sealed late, at the next start. */
#include "chain-private.h"

#include <errno.h>
#include <qchain/log.h>
#include <stdlib.h>
#include <string.h>

/*
 * A daemon that dies between the switch of a snapshot and the sealing leaves the
 * old active layer marked as open (promise P22). Whatever it acknowledged is in
 * the image; what may be left are leaked clusters and the mark.
 */

static void say_finding(void *arg, const char *line)
{
	log_warn("%s: %s", (const char *)arg, line);
}

static int check_open(struct image *img, const char *path, u32 fix, struct qc_err *err)
{
	struct check_result result;
	int ret = image_check(img, fix, say_finding, (void *)path, &result, err);
	u64 left;

	if (ret)
		return ret;
	left = result.corruptions + result.check_errors;
	if (!left)
		return 0;
	return qc_err_set(err, -EUCLEAN,
			  "%s: not closed cleanly and cannot be repaired (%llu errors left), "
			  "serve it with --read-only or run qchainctl check --repair",
			  path, (unsigned long long)left);
}

int chain_check_image(const char *path, u32 flags, u32 fix, struct image **result,
		      struct qc_err *err)
{
	struct io_dev *dev;
	struct image *img;
	int ret;

	ret = io_dev_open(path, IO_DEV_WRITE | flags, &dev, err);
	if (!ret)
		ret = image_open(dev, IMAGE_QCOW2, IMAGE_OPEN_CHECK | IMAGE_OPEN_BITMAPS |
				 IMAGE_OPEN_WRITE, &img, err);
	if (ret)
		return ret;
	ret = check_open(img, path, fix, err);
	if (ret)
		image_close(img);
	else
		*result = img;
	return ret;
}

static int seal_late(const char *path, u32 wait, struct qc_err *err)
{
	struct image *img;
	int ret = chain_check_image(path, wait, CHECK_FIX_LEAKS, &img, err);

	if (ret)
		return ret;
	img->autoclear &= ~QCOW2_AUTOCLEAR_QCHAIN_OPEN;
	img->incompatible &= ~QCOW2_INCOMPAT_DIRTY;
	ret = image_write_features(img);
	if (ret)
		qc_err_set(err, ret, "%s: cannot write the header (%s)", path, strerror(-ret));
	else
		log_info("%s: was not closed when its snapshot was taken, sealed now", path);
	image_close(img);
	return ret;
}

/* Paths of unclosed layers below the active one, NULL at the end; NULL: none. */
static char **unsealed_paths(const struct chain *chain)
{
	char **paths = NULL;
	u32 i, n = 0;

	for (i = 1; i < chain->nr_layers; i++) {
		if (!(chain->layers[i].img->autoclear & QCOW2_AUTOCLEAR_QCHAIN_OPEN))
			continue;
		if (!paths)
			paths = calloc(chain->nr_layers + 1, sizeof(*paths));
		if (paths)
			paths[n] = strdup(chain->layers[i].path);
		if (!paths || !paths[n++])
			break; /* the rest is done next time */
	}
	return paths;
}

int chain_seal_late(struct chain_target *ct, const char *top,
		    const struct chain_open_options *options, struct qc_err *err)
{
	char **paths = ct->chain->read_only ? NULL : unsealed_paths(ct->chain);
	struct qc_err why;
	u32 i;

	if (!paths)
		return 0;
	chain_close(ct->chain); /* its locks are in the way */
	ct->chain = NULL;
	for (i = 0; paths[i]; i++) {
		why = (struct qc_err){ 0 };
		if (seal_late(paths[i], options->wait ? IO_DEV_WAIT : 0, &why))
			log_warn("%s; it stays marked as open", why.msg);
		free(paths[i]);
	}
	free(paths);
	return chain_open(top, options, &ct->chain, err);
}
