/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A read-only chain in the kernel: its plain data and zeroes as a device-mapper table. */
#ifndef CTL_OFFLOAD_H
#define CTL_OFFLOAD_H

#include "served.h"

/*
 * The key "offload" of the record: {limit, and once the device is there: size, targets,
 * linear, zero, rest: bytes, load-us: how long it took the kernel, layers: [as
 * query-named-block-nodes]}. What counts as rest has a ublk device and a daemon; when it is
 * nothing, there is neither.
 */

struct offload;

/* The value of --offload-targets. */
int offload_take_targets(const char *text, u32 *result, struct qc_err *err);
/* A record asks for it from now on; @limit: of targets, 0: the default. */
void offload_ask(json_object *record, u32 limit);
bool offload_is_asked(json_object *record);
/* It has no daemon: all of it is in the table. */
bool offload_is_whole(json_object *record);
/* What was noted of its device: bytes, -1: there was none; the layers, not a new reference. */
s64 offload_size(json_object *record);
json_object *offload_layers(json_object *record);
/* "3 targets: 1 GiB linear, ..": for people; @text has room for 160 */
const char *offload_text(json_object *record, char *text);

/*
 * offload_plan - the table of the chain under @top, as @record asks for it
 * *@result NULL: it does not. Else all layers are open, with the image locks of a reader,
 * until offload_exit(): nobody writes to them before the table holds them. -EINVAL: options
 * that do not go together with it.
 */
int offload_plan(const char *top, json_object *record, struct offload **result,
		 struct qc_err *err);
bool offload_needs_daemon(const struct offload *offload);
/* Make /dev/mapper/NAME, the rest on ublk device @dev_id, and note it in @record. */
int offload_load(const struct offload *offload, json_object *record, s32 dev_id,
		 struct qc_err *err);
void offload_exit(struct offload *offload);

/*
 * offload_remove - take /dev/mapper/NAME away; 0 also when it is not there
 * -EBUSY: @err says who has it open. @deferred: then it goes when they close it, *@waits
 */
int offload_remove(const char *name, bool deferred, bool *waits, struct qc_err *err);

#endif
