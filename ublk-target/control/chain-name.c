// SPDX-License-Identifier: GPL-2.0-or-later
/* What a chain may be called and where its run-time files are. */
#include <errno.h>
#include <qchain/control.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define RUN_ROOT "/run/qchain"

int chain_name_check(const char *name, struct qc_err *err)
{
	static const char allowed[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
				      "0123456789_-+.";
	size_t len = strlen(name);

	if (len > 0 && len <= QC_MAX_CHAIN_NAME && name[0] != '-' && name[0] != '.' &&
	    strspn(name, allowed) == len)
		return 0;
	return qc_err_set(err, -EINVAL,
			  "%.80s: not a name for a chain (%zu characters), expected 1 to %u of "
			  "A-Z a-z 0-9 _ - + . not beginning with - or .", name, len,
			  QC_MAX_CHAIN_NAME);
}

const char *chain_run_root(void)
{
	const char *root = getenv("QCHAIN_RUN_DIR");

	return root && *root ? root : RUN_ROOT;
}

int chain_run_path(const char *name, const char *file, char *path, size_t bytes,
		   struct qc_err *err)
{
	const char *root = chain_run_root();
	int n = snprintf(path, bytes, "%s/%s%s%s", root, name, file ? "/" : "",
			 file ? file : "");

	if (n >= 0 && (size_t)n < bytes)
		return 0;
	return qc_err_set(err, -ENAMETOOLONG,
			  "%s: path in %s too long (%d bytes), must be below %zu; use a shorter "
			  "name", name, root, n, bytes);
}

static int make_folder(const char *path, mode_t mode, struct qc_err *err)
{
	if (mkdir(path, mode) == 0 || errno == EEXIST)
		return 0;
	return qc_err_set(err, -errno,
			  "%s: folder not made (%m), must be writable; run as root, or set "
			  "QCHAIN_RUN_DIR", path);
}

int chain_run_create(const char *name, struct qc_err *err)
{
	char path[256];
	int ret = chain_run_path(name, NULL, path, sizeof(path), err);

	if (ret == 0)
		ret = make_folder(chain_run_root(), 0755, err);
	return ret ? ret : make_folder(path, 0700, err);
}
