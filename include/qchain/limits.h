/* SPDX-License-Identifier: GPL-2.0-or-later OR MIT */
/* Every limit of the program has its name here. */
#ifndef QCHAIN_LIMITS_H
#define QCHAIN_LIMITS_H

#include <qchain/types.h>

/* Layers in one chain: an extent names its layer in 16 bits (rule C7). */
#define QC_MAX_LAYERS 65535u
/* Layers that the backing references may lead through; loops end here too. */
#define QC_MAX_CHAIN_DEPTH 4096u
/* Images of a chain that take guest writes, or took some that may not be durable. */
#define QC_MAX_FLUSH 4u
/* Queue, NBD and job loops beside the metadata loop. */
#define QC_MAX_LOOPS 64u
/* Bytes of one data request as the target sees it; transports cut longer ones. */
#define QC_MAX_REQUEST_BYTES (1024u * 1024u)
/* Bytes of one discard or write-zeroes request; transports cut longer ones. */
#define QC_MAX_DISCARD_BYTES (1u << 30)
/* The memory for the map that a user may ask for: one window, and what no host has. */
#define QC_MIN_CACHE_BYTES (4ull * 1024)
#define QC_MAX_CACHE_BYTES (1ull << 40)
/* Extents of one published piece of the map (rule C7). */
#define QC_MAX_PIECE_EXTENTS 256u
/* Pieces that have so many together, or fewer, become one. */
#define QC_MIN_PIECE_EXTENTS 128u
/* Bytes that a backing file name may have (qcow2 specification). */
#define QC_MAX_BACKING_NAME 1023u
/* Bytes of a layer's node name, as QEMU. */
#define QC_MAX_NODE_NAME 31u
/* L1 table, refcount table: largest accepted size, as QEMU. */
#define QC_MAX_L1_BYTES (32u * 1024u * 1024u)
#define QC_MAX_REFTABLE_BYTES (8u * 1024u * 1024u)
#define QC_MAX_SNAPSHOTS 65536u
#define QC_MAX_SNAPSHOT_TABLE_BYTES (64u * 1024u * 1024u)
#define QC_MAX_BITMAPS 65535u
#define QC_MAX_BITMAP_DIRECTORY_BYTES (64u * 1024u * 1024u)
/* Jobs of one process, ended and not yet dismissed ones included. */
#define QC_MAX_JOBS 64u
/* Characters of a job's id. */
#define QC_MAX_JOB_ID 127u
/* Largest virtual size: guest sectors must fit the map's arithmetic. */
#define QC_MAX_VIRTUAL_BYTES (1ull << 55)

#endif
