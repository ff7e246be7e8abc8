/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Thin LVs of layers that are sealed: what nothing needs of them goes back to the VG. */
#ifndef CTL_SHRINK_H
#define CTL_SHRINK_H

#include "served.h"

/*
 * struct shrinker - a part of the helper that makes LVs larger (grow.h)
 * @done: node-name of each sealed layer whose LV is as small as it can be: true
 * @under_way: those that @child is about
 * @child: a process of its own, so that growth never waits for it; 0: none
 * @retry_ns, @pause_ns: not before, after one that did not come to its end
 */
struct shrinker {
	json_object *done;
	json_object *under_way;
	pid_t child;
	u64 retry_ns;
	u64 pause_ns;
};

/*
 * shrink_look - see to the layers of @nodes (query-named-block-nodes) that are sealed
 * @lock_fd: a lock of the caller's that a child must not keep
 *
 * Never waits. Whatever is killed meanwhile: the next look begins again with what is there.
 */
void shrink_look(struct shrinker *s, struct client *client, json_object *nodes, int lock_fd);

#endif
