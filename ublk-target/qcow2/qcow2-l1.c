// SPDX-License-Identifier: GPL-2.0-or-later
/* L1 tables in memory: pages that name nothing take none (rule C8). */
#include <errno.h>
#include <qchain/image.h>
#include <stdlib.h>
#include <string.h>

#include "qcow2.h"

#define PAGE_BYTES (L1_PAGE_ENTRIES * sizeof(u64))
/* Bytes of one read, a multiple of PAGE_BYTES. */
#define L1_READ_BYTES (16u * PAGE_BYTES)

void l1_exit(struct l1 *l1)
{
	for (u32 i = 0; i < l1->nr_pages; i++)
		free(l1->pages[i]);
	free(l1->pages);
	*l1 = (struct l1){};
}

int l1_resize(struct l1 *l1, u32 entries)
{
	u32 nr = DIV_ROUND_UP(entries, L1_PAGE_ENTRIES);
	u64 **pages;

	if (nr > l1->nr_pages) {
		pages = realloc(l1->pages, nr * sizeof(*pages));
		if (!pages)
			return -ENOMEM;
		memset(pages + l1->nr_pages, 0, (nr - l1->nr_pages) * sizeof(*pages));
		l1->pages = pages;
		l1->nr_pages = nr;
	}
	return 0;
}

int l1_reserve(struct l1 *l1, u32 index)
{
	u64 **page = &l1->pages[index / L1_PAGE_ENTRIES];

	if (!*page)
		*page = calloc(1, PAGE_BYTES);
	return *page ? 0 : -ENOMEM;
}

void l1_set(struct l1 *l1, u32 index, u64 entry)
{
	u64 *page = l1->pages[index / L1_PAGE_ENTRIES];

	if (page)
		page[index % L1_PAGE_ENTRIES] = entry;
}

u32 l1_next(const struct l1 *l1, u32 index, u32 end)
{
	while (index < end && !l1_get(l1, index)) {
		if (l1->pages[index / L1_PAGE_ENTRIES])
			index++;
		else
			index = ALIGN_DOWN(index, L1_PAGE_ENTRIES) + L1_PAGE_ENTRIES;
	}
	return min(index, end);
}

/* @disk: big-endian, @nr entries from @first on, which begins a page. */
static int take_entries(struct l1 *l1, const u64 *disk, u32 first, u32 nr)
{
	for (u32 i = 0; i < nr; i++) {
		if (!disk[i])
			continue;
		if (l1_reserve(l1, first + i))
			return -ENOMEM;
		l1_set(l1, first + i, load_be64(&disk[i]));
	}
	return 0;
}

int l1_read(struct io_dev *dev, u64 offset, u32 entries, struct l1 *result)
{
	u64 bytes = (u64)entries * sizeof(u64);
	u64 *buf = malloc(min(max(bytes, (u64)1), (u64)L1_READ_BYTES));
	int ret;

	*result = (struct l1){};
	ret = buf ? l1_resize(result, entries) : -ENOMEM;
	for (u64 at = 0; at < bytes && ret >= 0; at += L1_READ_BYTES) {
		u64 n = min(bytes - at, (u64)L1_READ_BYTES);

		ret = io_dev_pread(dev, buf, n, offset + at);
		if (ret >= 0)
			ret = take_entries(result, buf, at / sizeof(u64), n / sizeof(u64));
	}
	free(buf);
	if (ret < 0)
		l1_exit(result);
	return ret;
}
