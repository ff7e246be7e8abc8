// SPDX-License-Identifier: GPL-2.0-or-later
/* The intent log: a ring of numbered, checksummed entries in a mapped file. */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <qchain/intent-log.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

/*
 * Entry number n lies in slot n % INTENT_ENTRIES. It counts when its checksum,
 * which covers the log's nonce too, is right, when it says that it is number n of
 * a layer that is attached, and when n is not below that layer's @first. So a drop
 * is one store, and an entry that was torn, or is left of an earlier round or
 * life, does not count.
 *
 * Death keeps what was stored, in program order: an entry is acknowledged after
 * its checksum was stored. Nothing is ever synced.
 */

#define INTENT_MAGIC 0x71696e74656e7431ull /* "qintent1" */
#define INTENT_ENTRIES 65536u
#define BOOT_ID_BYTES 36u
/* Who dies lets go of the log a moment after its device. */
#define LOCK_TRIES 50u
#define LOCK_PAUSE_US 10000u

struct disk_layer {
	u64 first; /* entries below it are dropped */
	char name[INTENT_NAME_BYTES]; /* "": not attached */
};

struct disk_header {
	u64 magic; /* the last that a new log gets */
	u64 nonce;
	char boot_id[BOOT_ID_BYTES + 4];
	struct disk_layer layers[INTENT_LAYERS];
};

struct disk_entry {
	u64 number;
	struct intent intent;
	u32 layer;
	u32 checksum;
};

#define HEADER_BYTES 4096u
#define FILE_BYTES (HEADER_BYTES + INTENT_ENTRIES * sizeof(struct disk_entry))

static_assert(sizeof(struct disk_header) <= HEADER_BYTES, "the header has a page");
static_assert(sizeof(struct disk_entry) == 40, "no padding in what the checksum covers");

struct intent_log {
	struct disk_header *header;
	struct disk_entry *entries;
	u64 next; /* number of the next entry */
	u64 last[INTENT_LAYERS]; /* number of its newest entry; 0: none */
	int fd;
};

/* ---- entries ---------------------------------------------------------------------- */

static u32 checksum(const struct intent_log *log, const struct disk_entry *e)
{
	uLong sum = crc32(0, (const u8 *)&log->header->nonce, sizeof(u64));

	return crc32(sum, (const u8 *)e, offsetof(struct disk_entry, checksum));
}

static struct disk_entry *slot(const struct intent_log *log, u64 number)
{
	return &log->entries[number % INTENT_ENTRIES];
}

static bool is_valid(const struct intent_log *log, u32 i)
{
	const struct disk_entry *e = &log->entries[i];

	return e->number % INTENT_ENTRIES == i && e->layer < INTENT_LAYERS &&
	       e->checksum == checksum(log, e);
}

/* Is what lies in slot @i to be replayed? */
static bool counts(const struct intent_log *log, u32 i)
{
	const struct disk_entry *e = &log->entries[i];

	return is_valid(log, i) && log->header->layers[e->layer].name[0] &&
	       e->number >= log->header->layers[e->layer].first;
}

/* The number of the oldest entry that must stay. */
static u64 oldest(const struct intent_log *log)
{
	u64 result = log->next;
	u32 i;

	for (i = 0; i < INTENT_LAYERS; i++)
		if (log->last[i] && log->last[i] >= log->header->layers[i].first)
			result = min(result, log->header->layers[i].first);
	return result;
}

bool intent_log_has_room(const struct intent_log *log, u32 nr)
{
	return log->next - oldest(log) + nr <= INTENT_ENTRIES;
}

u64 intent_log_append(struct intent_log *log, u32 layer, const struct intent *intents, u32 nr)
{
	struct disk_layer *l = &log->header->layers[layer];
	u32 i;

	assert(intent_log_has_room(log, nr));
	/* without entries it keeps none of the others': what it drops next is this */
	if (log->last[layer] < l->first)
		__atomic_store_n(&l->first, log->next, __ATOMIC_RELEASE);
	for (i = 0; i < nr; i++) {
		struct disk_entry e = { .number = log->next, .intent = intents[i],
					.layer = layer };

		e.checksum = checksum(log, &e);
		*slot(log, log->next++) = e;
	}
	__atomic_thread_fence(__ATOMIC_RELEASE);
	log->last[layer] = log->next - 1;
	return log->last[layer];
}

void intent_log_drop(struct intent_log *log, u32 layer, u64 mark)
{
	struct disk_layer *l = &log->header->layers[layer];

	if (mark >= l->first)
		__atomic_store_n(&l->first, mark + 1, __ATOMIC_RELEASE);
}

u32 intent_log_used(const struct intent_log *log)
{
	return log->next - oldest(log);
}

u32 intent_log_size(const struct intent_log *log)
{
	return INTENT_ENTRIES;
}

/* ---- layers ------------------------------------------------------------------------ */

int intent_log_attach(struct intent_log *log, const char *name, u32 *layer)
{
	struct disk_layer *l;
	u32 i;

	for (i = 0; i < INTENT_LAYERS && log->header->layers[i].name[0]; i++)
		;
	if (i == INTENT_LAYERS)
		return -EBUSY;
	l = &log->header->layers[i];
	l->first = log->next;
	log->last[i] = 0;
	strncpy(l->name + 1, name + 1, INTENT_NAME_BYTES - 2);
	/* the name counts from here on: old entries of this slot are below @first */
	__atomic_store_n(&l->name[0], name[0], __ATOMIC_RELEASE);
	*layer = i;
	return 0;
}

void intent_log_detach(struct intent_log *log, u32 layer)
{
	struct disk_layer *l = &log->header->layers[layer];

	__atomic_store_n(&l->name[0], 0, __ATOMIC_RELEASE);
	memset(l->name, 0, sizeof(l->name));
	l->first = log->next;
}

/* ---- replay ------------------------------------------------------------------------ */

static int by_cluster(const void *a, const void *b)
{
	const struct disk_entry *x = *(struct disk_entry *const *)a;
	const struct disk_entry *y = *(struct disk_entry *const *)b;

	if (x->intent.cluster != y->intent.cluster)
		return x->intent.cluster < y->intent.cluster ? -1 : 1;
	return x->number < y->number ? -1 : x->number > y->number;
}

static u32 find_entries(const struct intent_log *log, const char *name,
			const struct disk_entry **found)
{
	u32 i, n = 0;

	for (i = 0; i < INTENT_ENTRIES; i++)
		if (counts(log, i) &&
		    !strncmp(log->header->layers[log->entries[i].layer].name, name,
			     INTENT_NAME_BYTES))
			found[n++] = &log->entries[i];
	return n;
}

int intent_log_collect(const struct intent_log *log, const char *name, struct intent **result,
		       u32 *nr)
{
	const struct disk_entry **found = malloc(INTENT_ENTRIES * sizeof(*found));
	u32 i, n = 0;

	*result = NULL;
	*nr = 0;
	if (!found)
		return -ENOMEM;
	n = find_entries(log, name, found);
	if (n)
		*result = malloc(n * sizeof(**result));
	if (n && !*result) {
		free(found);
		return -ENOMEM;
	}
	qsort(found, n, sizeof(*found), by_cluster);
	for (i = 0; i < n; i++) {
		if (*nr && (*result)[*nr - 1].cluster == found[i]->intent.cluster)
			--*nr;
		(*result)[(*nr)++] = found[i]->intent;
	}
	free(found);
	return 0;
}

const char *intent_log_next_name(const struct intent_log *log, u32 *i)
{
	u32 k;

	for (; *i < INTENT_LAYERS; (*i)++)
		for (k = 0; log->header->layers[*i].name[0] && k < INTENT_ENTRIES; k++)
			if (counts(log, k) && log->entries[k].layer == *i)
				return log->header->layers[(*i)++].name;
	return NULL;
}

void intent_log_clear(struct intent_log *log)
{
	u32 i;

	for (i = 0; i < INTENT_LAYERS; i++)
		intent_log_detach(log, i);
}

/* ---- the file ---------------------------------------------------------------------- */

static int read_boot_id(char id[BOOT_ID_BYTES], struct qc_err *err)
{
	int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, id, BOOT_ID_BYTES);

	if (fd >= 0)
		close(fd);
	if (n == BOOT_ID_BYTES)
		return 0;
	return qc_err_set(err, -EIO, "/proc/sys/kernel/random/boot_id: cannot be read, expected "
			  "%u characters", BOOT_ID_BYTES);
}

static int map_file(struct intent_log *log, const char *path, struct qc_err *err)
{
	void *mem = mmap(NULL, FILE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
			 log->fd, 0);

	if (mem == MAP_FAILED)
		return qc_err_set(err, -errno, "%s: intent log not mapped (%m)", path);
	log->header = mem;
	log->entries = (void *)((char *)mem + HEADER_BYTES);
	return 0;
}

void intent_log_close(struct intent_log *log)
{
	if (!log)
		return;
	if (log->header)
		munmap(log->header, FILE_BYTES);
	close(log->fd);
	free(log);
}

/* Nobody else appends to it, nor has it cut off under its feet. */
static int lock_file(int fd)
{
	u32 i;

	for (i = 0; i < LOCK_TRIES; i++) {
		if (!flock(fd, LOCK_EX | LOCK_NB))
			return 0;
		if (errno != EWOULDBLOCK)
			return -errno;
		usleep(LOCK_PAUSE_US);
	}
	return -EBUSY;
}

static int open_file(const char *path, int flags, struct intent_log **result, struct qc_err *err)
{
	struct intent_log *log = calloc(1, sizeof(*log));
	int ret;

	if (!log)
		return qc_err_set(err, -ENOMEM, "%s: out of memory", path);
	log->next = 1;
	log->fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW | flags, 0600);
	if (log->fd < 0) {
		free(log);
		return qc_err_set(err, -errno, "%s: intent log not opened (%m)", path);
	}
	ret = lock_file(log->fd);
	if (ret) {
		intent_log_close(log);
		return qc_err_set(err, ret, "%s: the intent log is in use by another process, each "
				  "needs a file of its own", path);
	}
	*result = log;
	return 0;
}

int intent_log_create(const char *path, u64 nonce, struct intent_log **result,
		      struct qc_err *err)
{
	char boot_id[BOOT_ID_BYTES];
	struct intent_log *log;
	int ret = read_boot_id(boot_id, err);

	if (!ret)
		ret = open_file(path, O_CREAT, &log, err);
	if (ret)
		return ret;
	ret = ftruncate(log->fd, 0) ? errno : 0;
	if (!ret)
		ret = posix_fallocate(log->fd, 0, FILE_BYTES); /* no store may find it full */
	if (ret)
		ret = qc_err_set(err, -ret, "%s: no room for an intent log of %zu bytes (%s)",
				 path, (size_t)FILE_BYTES, strerror(ret));
	if (!ret)
		ret = map_file(log, path, err);
	if (ret) {
		intent_log_close(log);
		return ret;
	}
	log->header->nonce = nonce;
	memcpy(log->header->boot_id, boot_id, BOOT_ID_BYTES);
	__atomic_store_n(&log->header->magic, INTENT_MAGIC, __ATOMIC_RELEASE);
	*result = log;
	return 0;
}

static int check_header(const struct intent_log *log, const char *path, u64 nonce,
			struct qc_err *err)
{
	const struct disk_header *h = log->header;
	char boot_id[BOOT_ID_BYTES];
	int ret = read_boot_id(boot_id, err);

	if (ret)
		return ret;
	if (h->magic != INTENT_MAGIC)
		return qc_err_set(err, -EUCLEAN, "%s: is no intent log, or one that was never "
				  "finished", path);
	if (memcmp(h->boot_id, boot_id, BOOT_ID_BYTES))
		return qc_err_set(err, -ESTALE, "%s: the intent log is of an earlier boot of this "
				  "host, not replayed", path);
	if (h->nonce != nonce)
		return qc_err_set(err, -ESTALE, "%s: the intent log is of another life of the "
				  "device (tag %llx), expected tag %llx; not replayed", path,
				  (unsigned long long)h->nonce, (unsigned long long)nonce);
	return 0;
}

/* Numbers go on behind all that were given: no old entry ever counts again. */
static void go_on(struct intent_log *log)
{
	u32 i;

	for (i = 0; i < INTENT_LAYERS; i++)
		log->next = max(log->next, log->header->layers[i].first);
	for (i = 0; i < INTENT_ENTRIES; i++)
		if (is_valid(log, i))
			log->next = max(log->next, log->entries[i].number + 1);
}

int intent_log_open(const char *path, u64 nonce, struct intent_log **result,
		    struct qc_err *err)
{
	struct intent_log *log;
	struct stat st;
	int ret = open_file(path, 0, &log, err);

	if (ret)
		return ret;
	if (fstat(log->fd, &st) || st.st_size != (off_t)FILE_BYTES)
		ret = qc_err_set(err, -EUCLEAN, "%s: is no intent log, expected a file of %zu "
				 "bytes", path, (size_t)FILE_BYTES);
	if (!ret)
		ret = map_file(log, path, err);
	if (!ret)
		ret = check_header(log, path, nonce, err);
	if (ret) {
		intent_log_close(log);
		return ret;
	}
	go_on(log);
	*result = log;
	return 0;
}
