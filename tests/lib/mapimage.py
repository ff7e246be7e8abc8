# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes qcow2 images straight from a list of mapped runs, thousands of clusters in milliseconds.

For what qemu-io is too slow for: chains of a thousand layers, millions of
mapped clusters. Data can be left out, it is a hole then and reads as zero.
Everything that is written is what `qemu-img check` accepts.
"""

import array
import os
import struct
import sys

MAGIC = 0x514649FB
VERSION = 3
HEADER_LENGTH = 104
REFCOUNT_ORDER = 4
REFCOUNT_BYTES = 2
COPIED = 1 << 63
EXTENSION_BACKING_FORMAT = 0xE2792ACA
PAGE = 4096
PAGE_ENTRIES = PAGE // 8
COPY_BYTES = 1 << 20


def big_endian(values):
    """The bytes of an array of integers, as qcow2 stores them."""
    if sys.byteorder == "little":
        values = array.array(values.typecode, values)
        values.byteswap()
    return values.tobytes()


class _Layout:
    """Where everything lies, in clusters: header, refcounts, L1, L2 tables, data."""

    def __init__(self, size, cluster_bits, runs):
        self.cluster = 1 << cluster_bits
        entries = self.cluster // 8
        self.l1_size = max(1, -(-size // (self.cluster * entries)))
        self.l2_indexes = sorted({index for start, count in runs
                                  for index in range(start // entries,
                                                     (start + count - 1) // entries + 1)})
        self.data_clusters = sum(count for _, count in runs)
        l1_clusters = -(-self.l1_size * 8 // self.cluster)
        rest = 2 + l1_clusters + len(self.l2_indexes) + self.data_clusters
        per_block = self.cluster // REFCOUNT_BYTES
        self.refcount_blocks = -(-rest // (per_block - 1))
        self.refcount_block = 2
        self.l1 = self.refcount_block + self.refcount_blocks
        self.l2 = self.l1 + l1_clusters
        self.data = self.l2 + len(self.l2_indexes)
        self.total = self.data + self.data_clusters


def _header(layout, size, cluster_bits, backing):
    """Header, extensions and the backing name: the first cluster."""
    name = backing.encode() if backing else b""
    extensions = b""
    if name:
        extensions += struct.pack(">II8s", EXTENSION_BACKING_FORMAT, 5, b"qcow2")
    extensions += struct.pack(">II", 0, 0)
    name_at = HEADER_LENGTH + len(extensions) if name else 0
    head = struct.pack(">IIQIIQIIQQIIQQQQII", MAGIC, VERSION, name_at, len(name), cluster_bits,
                       size, 0, layout.l1_size, layout.l1 * layout.cluster, layout.cluster, 1,
                       0, 0, 0, 0, 0, REFCOUNT_ORDER, HEADER_LENGTH)
    return head + extensions + name


def _l2_pages(layout, runs):
    """Pieces of 4 KiB of the L2 tables that have entries: {guest cluster // 512: entries}."""
    pages = {}
    host = layout.data * layout.cluster | COPIED
    for start, count in runs:
        for cluster in range(start, start + count):
            page = pages.get(cluster // PAGE_ENTRIES)
            if page is None:
                page = array.array("Q", bytes(PAGE))
                pages[cluster // PAGE_ENTRIES] = page
            page[cluster % PAGE_ENTRIES] = host
            host += layout.cluster
    return pages


def _write_tables(fd, layout, runs):
    blocks = array.array("Q", [(layout.refcount_block + i) * layout.cluster
                               for i in range(layout.refcount_blocks)])
    os.pwrite(fd, big_endian(blocks), layout.cluster)
    os.pwrite(fd, b"\0\1" * layout.total, layout.refcount_block * layout.cluster)
    l1 = array.array("Q", bytes(layout.l1_size * 8))
    table_of = {}
    for number, index in enumerate(layout.l2_indexes):
        table_of[index] = (layout.l2 + number) * layout.cluster
        l1[index] = table_of[index] | COPIED
    os.pwrite(fd, big_endian(l1), layout.l1 * layout.cluster)
    piece = min(PAGE, layout.cluster)
    per_table = layout.cluster // 8
    for number, entries in _l2_pages(layout, runs).items():
        data = big_endian(entries)
        for at in range(0, PAGE, piece):
            first = number * PAGE_ENTRIES + at // 8
            if first // per_table in table_of:
                os.pwrite(fd, data[at:at + piece],
                          table_of[first // per_table] + first % per_table * 8)


def _write_data(fd, layout, runs, data):
    host = layout.data * layout.cluster
    for start, count in runs:
        for cluster in range(start, start + count):
            os.pwrite(fd, data(cluster), host)
            host += layout.cluster


def _fill_data(fd, layout, byte):
    at, end = layout.data * layout.cluster, layout.total * layout.cluster
    block = bytes([byte]) * COPY_BYTES
    while at < end:
        at += os.pwrite(fd, block[:end - at], at)


def write_image(path, size, runs, backing=None, cluster_bits=16, data=None):
    """Make the image @path.

    runs: sorted (first guest cluster, clusters) that do not overlap. data: None leaves holes, an integer fills with that byte, a function
    gives the bytes of a guest cluster. Returns the guest cluster's first host offset.
    """
    layout = _Layout(size, cluster_bits, runs)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        os.ftruncate(fd, layout.total * layout.cluster)
        os.pwrite(fd, _header(layout, size, cluster_bits, backing), 0)
        _write_tables(fd, layout, runs)
        if callable(data):
            _write_data(fd, layout, runs, data)
        elif data is not None:
            _fill_data(fd, layout, data)
    finally:
        os.close(fd)
    return layout.data * layout.cluster


def runs_of(clusters):
    """Sorted cluster numbers as runs; a run ends at every 512 clusters (one piece of L2)."""
    runs = []
    for cluster in clusters:
        if runs and sum(runs[-1]) == cluster and cluster % PAGE_ENTRIES:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((cluster, 1))
    return runs
