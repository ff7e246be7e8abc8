/* SPDX-License-Identifier: GPL-2.0-or-later OR MIT */
/* Headers point only downwards: what stands on an image is found by looking at all others. */
#ifndef QCHAIN_OVERLAYS_H
#define QCHAIN_OVERLAYS_H

#include <qchain/ident.h>

/*
 * overlay_backing - the image that the header at @path names as its backing
 *
 * 1 with *@result; 0: it is no qcow2 image, names none, or one that is not there;
 * -errno: that cannot be told (unreadable, a protocol URL). Takes no lock, writes
 * nothing, and looks at one sector and the name only.
 */
int overlay_backing(const char *path, struct image_ident *result);

/*
 * struct overlay_search - what to look for in one directory, and what was found
 * @below: the image that overlays would stand on
 * @skip: names in the directory that do not count, NULL-terminated; may be NULL
 * @found: path of the first overlay, "" none
 * @unknown: path of the first entry that cannot be told, "" none; @why: its -errno
 */
struct overlay_search {
	struct image_ident below;
	const char *const *skip;
	char found[4096];
	char unknown[4096];
	int why;
};

/*
 * overlay_search_dir - look at the files, and links to block devices, in @dir
 * A directory that cannot be read is itself what cannot be told. Results are
 * added: one search may go over several directories.
 */
void overlay_search_dir(struct overlay_search *search, const char *dir);

#endif
