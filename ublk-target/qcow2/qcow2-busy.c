// SPDX-License-Identifier: GPL-2.0-or-later
/* Clusters that were touched since a leak scan began: a sparse set of bits. */
#include <errno.h>
#include <qchain/leaks.h>
#include <stdlib.h>
#include <string.h>

#define PAGE_BITS 32768u
#define PAGE_WORDS (PAGE_BITS / 64)

int busy_init(struct busy *busy, u64 nr)
{
	memset(busy, 0, sizeof(*busy));
	busy->pages = calloc(nr / PAGE_BITS + 1, sizeof(*busy->pages));
	if (!busy->pages)
		return -ENOMEM;
	busy->nr = nr;
	return 0;
}

void busy_exit(struct busy *busy)
{
	u64 i;

	for (i = 0; busy->pages && i <= busy->nr / PAGE_BITS; i++)
		free(busy->pages[i]);
	free(busy->pages);
	busy->pages = NULL;
}

void busy_set(struct busy *busy, u64 cluster)
{
	u64 **page;

	if (cluster >= busy->nr)
		return;
	page = &busy->pages[cluster / PAGE_BITS];
	if (!*page)
		*page = calloc(PAGE_WORDS, sizeof(**page));
	if (*page)
		(*page)[cluster % PAGE_BITS / 64] |= 1ull << (cluster % 64);
	else
		busy->lost = true;
}

bool busy_test(const struct busy *busy, u64 cluster)
{
	const u64 *page = busy->pages[cluster / PAGE_BITS];

	return busy->lost || (page && page[cluster % PAGE_BITS / 64] >> (cluster % 64) & 1);
}
