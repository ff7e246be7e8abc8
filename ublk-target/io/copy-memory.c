// SPDX-License-Identifier: GPL-2.0-or-later
/* Buffers of many lengths, cut from one piece of memory: first fit. */
#include "copy-memory.h"

#include <assert.h>
#include <errno.h>
#include <qchain/copier.h>
#include <stdlib.h>
#include <string.h>

static u32 units_of(size_t bytes)
{
	return DIV_ROUND_UP(bytes, COPIER_UNIT_BYTES);
}

int copy_memory_init(struct copy_memory *memory, size_t bytes)
{
	memory->nr_units = units_of(bytes);
	memory->bytes = io_alloc((size_t)memory->nr_units * COPIER_UNIT_BYTES);
	memory->used = calloc(memory->nr_units, sizeof(*memory->used));
	return memory->bytes && memory->used ? 0 : -ENOMEM;
}

void copy_memory_exit(struct copy_memory *memory)
{
	free(memory->bytes);
	free(memory->used);
}

void *copy_memory_get(struct copy_memory *memory, u32 bytes)
{
	u32 i, run = 0, want = units_of(bytes);

	for (i = 0; i < memory->nr_units && run < want; i++)
		run = memory->used[i] ? 0 : run + 1;
	if (run < want)
		return NULL;
	memset(memory->used + i - want, true, want);
	return memory->bytes + (size_t)(i - want) * COPIER_UNIT_BYTES;
}

void copy_memory_put(struct copy_memory *memory, void *buf, u32 bytes)
{
	size_t first = ((u8 *)buf - memory->bytes) / COPIER_UNIT_BYTES;

	assert(memory->used[first]);
	memset(memory->used + first, false, units_of(bytes));
}
