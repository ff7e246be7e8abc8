#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A small valid qcow2 image built from scratch, for generators to break one thing in it."""

import struct
import zlib

MAGIC = 0x514649FB
COPIED = 1 << 63
COMPRESSED = 1 << 62
ZERO = 1

EXT_END = 0
EXT_BACKING_FORMAT = 0xE2792ACA
EXT_FEATURE_NAMES = 0x6803F857
EXT_BITMAPS = 0x23852875
EXT_CRYPTO = 0x0537BE77
EXT_DATA_FILE = 0x44415441

INCOMPAT_DIRTY = 1
INCOMPAT_CORRUPT = 2
INCOMPAT_DATA_FILE = 4
INCOMPAT_COMPRESSION = 8
INCOMPAT_EXTL2 = 16

# Offsets of header fields, as the specification numbers them.
BACKING_OFFSET = 8
BACKING_SIZE = 16
CLUSTER_BITS = 20
SIZE = 24
CRYPT_METHOD = 32
L1_SIZE = 36
L1_OFFSET = 40
REFTABLE_OFFSET = 48
REFTABLE_CLUSTERS = 56
NB_SNAPSHOTS = 60
SNAPSHOTS_OFFSET = 64
INCOMPATIBLE = 72
COMPATIBLE = 80
AUTOCLEAR = 88
REFCOUNT_ORDER = 96
HEADER_LENGTH = 100
COMPRESSION_TYPE = 104

V2_HEADER_BYTES = 72
V3_HEADER_BYTES = 112
BACKING_NAME_AT = 1024


class Image:
    """
    The bytes of one image. Its clusters, by host number:

      0 header      1 refcount table   2 refcount block   3 L1 (two entries)
      4, 5 L2 tables of the lower and the upper half of the guest's disk
      6, 7, 8 data  9 a compressed cluster                10... added ones

    The guest sees: cluster 0 'A', 1 'B', 2 zeroes (version 3), 3 'C' (compressed), 4 and most
    others nothing; the first cluster of the upper half 'D'.
    """

    def __init__(self, version=3, cluster_bits=16, extl2=False, backing=None, backing_format="raw",
                 extensions=()):
        self.version = version
        self.cluster_bits = cluster_bits
        self.cluster = 1 << cluster_bits
        self.entry_bytes = 16 if extl2 else 8
        self.coverage = self.cluster // self.entry_bytes * self.cluster
        self.size = 2 * self.coverage
        self.reftable, self.refblock, self.l1 = (n * self.cluster for n in (1, 2, 3))
        self.l2 = [4 * self.cluster, 5 * self.cluster]
        self.data = bytearray(10 * self.cluster)
        self.extensions = list(extensions)
        if backing is not None and backing_format is not None:
            self.extensions.insert(0, (EXT_BACKING_FORMAT, backing_format.encode()))
        self._put_header(extl2)
        self._put_extensions()
        if backing is not None:
            self.set_backing(backing)
        self._put_tables()

    # ---- bytes ----------------------------------------------------------------

    def put(self, offset, data):
        """Overwrite bytes; grows the image."""
        end = offset + len(data)
        if end > len(self.data):
            self.data.extend(bytes(end - len(self.data)))
        self.data[offset:end] = data

    def put8(self, offset, value):
        self.put(offset, struct.pack(">B", value))

    def put16(self, offset, value):
        self.put(offset, struct.pack(">H", value))

    def put32(self, offset, value):
        self.put(offset, struct.pack(">I", value))

    def put64(self, offset, value):
        self.put(offset, struct.pack(">Q", value & (1 << 64) - 1))

    def get64(self, offset):
        return struct.unpack_from(">Q", self.data, offset)[0]

    def save(self, path):
        """Write the image to a new file and return its path."""
        path.write_bytes(self.data)
        return path

    # ---- places ----------------------------------------------------------------

    def add_clusters(self, count):
        """Append clusters with refcount 1 and return the offset of the first."""
        first = len(self.data) // self.cluster
        self.data.extend(bytes(count * self.cluster))
        for number in range(first, first + count):
            self.put_refcount(number, 1)
        return first * self.cluster

    def put_refcount(self, number, value):
        self.put16(self.refblock + 2 * number, value)

    def entry_at(self, guest_cluster, half=0):
        """Offset of the L2 entry of a guest cluster of the lower or upper half."""
        return self.l2[half] + guest_cluster * self.entry_bytes

    def set_entry(self, guest_cluster, entry, bitmap=0, half=0):
        at = self.entry_at(guest_cluster, half)
        self.put64(at, entry)
        if self.entry_bytes == 16:
            self.put64(at + 8, bitmap)

    def set_data(self, guest_cluster, host, letter, half=0):
        """Map a guest cluster to a host offset, filled with one letter."""
        self.put(host, letter * self.cluster)
        self.set_entry(guest_cluster, host | COPIED, 0xFFFFFFFF, half)

    def compressed_entry(self, offset, length):
        """The L2 entry of a compressed cluster of @length bytes at @offset."""
        shift = 62 - (self.cluster_bits - 8)
        sectors = (offset + length - 1) // 512 - offset // 512
        return COMPRESSED | sectors << shift | offset

    def set_compressed(self, guest_cluster, offset, stream):
        self.put(offset, stream)
        self.set_entry(guest_cluster, self.compressed_entry(offset, len(stream)))

    # ---- building --------------------------------------------------------------

    def header_bytes(self):
        return V3_HEADER_BYTES if self.version >= 3 else V2_HEADER_BYTES

    def _put_header(self, extl2):
        self.put32(0, MAGIC)
        self.put32(4, self.version)
        self.put32(CLUSTER_BITS, self.cluster_bits)
        self.put64(SIZE, self.size)
        self.put32(L1_SIZE, 2)
        self.put64(L1_OFFSET, self.l1)
        self.put64(REFTABLE_OFFSET, self.reftable)
        self.put32(REFTABLE_CLUSTERS, 1)
        if self.version >= 3:
            self.put64(INCOMPATIBLE, INCOMPAT_EXTL2 if extl2 else 0)
            self.put32(REFCOUNT_ORDER, 4)
            self.put32(HEADER_LENGTH, V3_HEADER_BYTES)

    def _put_extensions(self):
        at = self.header_bytes()
        for kind, data in self.extensions:
            at = self.put_extension(at, kind, data)

    def put_extension(self, at, kind, data, length=None):
        """One header extension; returns where the next one begins."""
        self.put(at, struct.pack(">II", kind, len(data) if length is None else length) + data)
        return at + 8 + (len(data) + 7) // 8 * 8

    def set_backing(self, name, offset=BACKING_NAME_AT):
        name = name if isinstance(name, bytes) else str(name).encode()
        self.put(offset, name)
        self.put64(BACKING_OFFSET, offset)
        self.put32(BACKING_SIZE, len(name))

    def _put_tables(self):
        self.put64(self.reftable, self.refblock)
        for number in range(10):
            self.put_refcount(number, 1)
        for half in (0, 1):
            self.put64(self.l1 + 8 * half, self.l2[half] | COPIED)
        self.set_data(0, 6 * self.cluster, b"A")
        self.set_data(1, 7 * self.cluster, b"B")
        if self.entry_bytes == 16:
            self.set_entry(2, 0, 0xFFFFFFFF << 32)
        elif self.version >= 3:
            self.set_entry(2, ZERO)
        self.set_compressed(3, 9 * self.cluster, deflate(b"C" * self.cluster))
        self.set_data(0, 8 * self.cluster, b"D", half=1)


def deflate(data):
    """Raw deflate with the window that QEMU uses."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -12)
    return packer.compress(data) + packer.flush()


def feature_names(*names):
    """The feature name table for (type, bit, name) triples; type 0 is incompatible."""
    return b"".join(struct.pack(">BB46s", kind, bit, name) for kind, bit, name in names)
