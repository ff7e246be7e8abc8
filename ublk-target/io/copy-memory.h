/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Buffers of many lengths, cut from one piece of memory of a fixed size. */
#ifndef COPY_MEMORY_H
#define COPY_MEMORY_H

#include <qchain/types.h>
#include <stddef.h>

/* A buffer is a run of units. One thread. */
struct copy_memory {
	u8 *bytes;
	bool *used; /* one for each unit */
	u32 nr_units;
};

/* @bytes: rounded up to whole units. 0 or -ENOMEM; exit also after that. */
int copy_memory_init(struct copy_memory *memory, size_t bytes);
void copy_memory_exit(struct copy_memory *memory);
/*
 * copy_memory_get - 4 KiB aligned; NULL: no run of free units is long enough
 * The lowest one is taken: with few in flight they are always the same few, which are
 * still in the processor's cache.
 */
void *copy_memory_get(struct copy_memory *memory, u32 bytes);
/* @bytes: as they were asked for. */
void copy_memory_put(struct copy_memory *memory, void *buf, u32 bytes);

#endif
