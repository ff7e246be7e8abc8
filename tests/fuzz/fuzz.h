/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the fuzz targets share: a scratch folder, images as files, a mutator. */
#ifndef TESTS_FUZZ_H
#define TESTS_FUZZ_H

#include <qchain/types.h>
#include <stddef.h>

/* Each target is a libFuzzer program. Other values than 0 are not used here. */
int LLVMFuzzerTestOneInput(const u8 *data, size_t size);

/* The path of @name in this process's own folder on a tmpfs; static memory. */
const char *fuzz_path(const char *name);
/* Write @size bytes to fuzz_path(@name). */
void fuzz_file(const char *name, const u8 *data, size_t size);

/* Talk to a unix socket: send all, close our direction, read until the end. */
void fuzz_talk(const char *socket_path, const u8 *data, size_t size);

#endif
