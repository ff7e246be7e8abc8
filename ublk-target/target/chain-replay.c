// SPDX-License-Identifier: GPL-2.0-or-later
/* A takeover: what the intent log of a daemon that died holds goes into the tables. */
#include "chain-private.h"

#include <errno.h>
#include <fcntl.h>
#include <qchain/edit.h>
#include <qchain/log.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

/*
 * Before the first fold, and before anybody looks for leaks: places that only the
 * log knows are no leaks. Replay is the common write order (qcow2-edit-entries.c)
 * and may be cut and begun again: the log is emptied when all of it is durable.
 *
 * The log is only right for an image that nobody else has written since: the mark
 * of promise P15, which any other writer clears, must still be there.
 */

static_assert(sizeof(struct intent) == sizeof(struct image_entry) &&
	      offsetof(struct intent, bitmap) == offsetof(struct image_entry, bitmap),
	      "an intent is an entry of an image");

/* "LVM-...": a volume that is deactivated meanwhile may get another number. */
static bool dm_uuid(dev_t rdev, char *text, size_t bytes)
{
	char path[64];
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/dm/uuid", major(rdev), minor(rdev));
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? -1 : read(fd, text, bytes - 1);
	if (fd >= 0)
		close(fd);
	if (n <= 1)
		return false;
	text[n] = 0;
	text[strcspn(text, "\n")] = 0;
	return true;
}

void chain_log_name(const struct io_dev *dev, char name[INTENT_NAME_BYTES])
{
	struct stat st = { 0 };
	char uuid[INTENT_NAME_BYTES - 8];

	fstat(dev->fd, &st);
	if (!S_ISBLK(st.st_mode))
		snprintf(name, INTENT_NAME_BYTES, "file %llx:%llx", (unsigned long long)st.st_dev,
			 (unsigned long long)st.st_ino);
	else if (dm_uuid(st.st_rdev, uuid, sizeof(uuid)))
		snprintf(name, INTENT_NAME_BYTES, "dm %s", uuid);
	else
		snprintf(name, INTENT_NAME_BYTES, "dev %u:%u", major(st.st_rdev),
			 minor(st.st_rdev));
}

static int check_mark(const struct image *img, const char *path, struct qc_err *err)
{
	if (img->version >= 3 && img->autoclear & QCOW2_AUTOCLEAR_QCHAIN_OPEN)
		return 0;
	return qc_err_set(err, -ESTALE, "%s: another program wrote this image, or closed it, after "
			  "the daemon had died; what was acknowledged and not written yet is not "
			  "replayed; end this life of the device (qchainctl down --force)", path);
}

static int replay_image(const struct intent_log *log, const char *name, const char *path,
			struct qc_err *err)
{
	struct intent *intents = NULL;
	struct image *img = NULL;
	struct io_dev *dev;
	u32 nr;
	int ret;

	ret = intent_log_collect(log, name, &intents, &nr);
	if (!ret)
		ret = io_dev_open(path, IO_DEV_WRITE | IO_DEV_WAIT, &dev, err);
	if (!ret)
		ret = image_open(dev, IMAGE_QCOW2, IMAGE_OPEN_WRITE, &img, err);
	if (!ret)
		ret = check_mark(img, path, err);
	if (!ret)
		ret = image_set_entries(img, (struct image_entry *)intents, nr, err);
	if (!ret)
		log_info("%s: %u changes of the intent log written", path, nr);
	if (img)
		image_close(img);
	free(intents);
	return ret;
}

/* The path of the layer that the log calls @name; malloc'ed, NULL: there is none. */
static char *find_layer(const struct chain *chain, const char *name)
{
	char own[INTENT_NAME_BYTES];
	u32 i;

	for (i = 0; i < chain->nr_layers; i++) {
		chain_log_name(chain->layers[i].img->dev, own);
		if (!strncmp(own, name, INTENT_NAME_BYTES))
			return strdup(chain->layers[i].path);
	}
	return NULL;
}

struct replay {
	char *paths[INTENT_LAYERS];
	const char *names[INTENT_LAYERS];
	u32 nr;
};

static int find_layers(struct replay *r, const struct chain_target *ct, const char *top,
		       struct qc_err *err)
{
	const char *name;
	u32 i = 0;

	while ((name = intent_log_next_name(ct->log, &i))) {
		r->names[r->nr] = name;
		r->paths[r->nr] = find_layer(ct->chain, name);
		if (!r->paths[r->nr++])
			return qc_err_set(err, -ESTALE, "%s: the intent log has changes of "
					  "an image that is not in this chain (%s); name the "
					  "active layer that the device had", top, name);
	}
	return 0;
}

int chain_replay(struct chain_target *ct, const char *top,
		 const struct chain_open_options *options, struct qc_err *err)
{
	struct replay r = { .nr = 0 };
	u32 i;
	int ret = find_layers(&r, ct, top, err);

	if (!ret && r.nr) {
		chain_close(ct->chain); /* its locks are in the way */
		ct->chain = NULL;
	}
	for (i = 0; i < r.nr; i++) {
		if (!ret)
			ret = replay_image(ct->log, r.names[i], r.paths[i], err);
		free(r.paths[i]);
	}
	if (ret)
		return ret;
	intent_log_clear(ct->log);
	return r.nr ? chain_open(top, options, &ct->chain, err) : 0;
}
