#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""L2 entries and compressed data that are found only when a guest touches them."""

import struct

from kinds import ANYTHING, IO_ERROR, SERVED, Kind, add, broken
from qcow2image import COMPRESSED, COPIED, ZERO, Image, deflate

CLUSTER = 65536
BAD = 4  # the guest cluster that is broken here; cluster 5 next to it stays unallocated
UPPER = 1 << 29
CORRUPT = (2, 3)

# Clusters that no entry spoils, and one of another L2 table.
GOOD = ((0, CLUSTER, b"A" * CLUSTER), (2 * CLUSTER, CLUSTER, bytes(CLUSTER)),
        (3 * CLUSTER, CLUSTER, b"C" * CLUSTER), (5 * CLUSTER, CLUSTER, bytes(CLUSTER)))
BAD_READS = ((BAD * CLUSTER, CLUSTER, IO_ERROR), (BAD * CLUSTER + 4096, 512, IO_ERROR)) + GOOD
BAD_WRITES = ((BAD * CLUSTER + 512, 512), (BAD * CLUSTER, CLUSTER))


def save(folder, image):
    return image.save(folder / "image.qcow2")


def entry_maker(entry, bitmap=0, **options):
    """A generator that gives guest cluster BAD an L2 entry."""
    def make(folder):
        image = Image(**options)
        image.set_entry(BAD, entry, bitmap)
        return save(folder, image)
    return make


def add_entry(name, summary, entry, bitmap=0, extl2=False, check=CORRUPT):
    """A kind whose one bad entry gives an I/O error, read or written; all else is fine."""
    add(Kind(name, summary, entry_maker(entry, bitmap, extl2=extl2), rw=SERVED, ro=SERVED,
             reads=BAD_READS, writes=BAD_WRITES, check=check))


PLACE = 6 * CLUSTER | COPIED

add_entry("l2-reserved-low", "L2 entry with reserved bit 1", PLACE | 2)
add_entry("l2-reserved-high", "L2 entry with reserved bit 56", PLACE | 1 << 56)
add_entry("l2-reserved-61", "L2 entry with reserved bit 61", PLACE | 1 << 61)
add_entry("l2-reserved-unallocated", "L2 entry with nothing but a reserved bit", 1 << 57)
add_entry("l2-reserved-zero", "zero flag and a reserved bit", ZERO | 1 << 4)
add_entry("l2-unaligned", "data in the middle of a cluster", PLACE + 512)
add_entry("l2-unaligned-zero", "zero cluster whose reservation is unaligned", PLACE + 1024 | ZERO)
add_entry("l2-in-header", "data inside the header cluster", 512 | COPIED)
add_entry("l2-compressed-in-header", "compressed data inside the header cluster", COMPRESSED | 112)
add_entry("l2-compressed-beyond-end", "compressed data where the file has ended",
          COMPRESSED | 10 * CLUSTER)
add_entry("l2-compressed-far-beyond-end", "compressed data at 2^53", COMPRESSED | 1 << 53)
add_entry("l2-compressed-all-ones", "compressed entry of ones only", COMPRESSED | (1 << 62) - 1)

add_entry("extl2-both-bits", "subcluster both allocated and zero", PLACE, 1 | 1 << 32, extl2=True)
add_entry("extl2-both-bits-elsewhere", "another subcluster is both: the whole entry is bad", PLACE,
          0x80000000 | 1 << 63, extl2=True)
add_entry("extl2-no-place", "subclusters allocated in a cluster without a place", 0, 0xFFFFFFFF,
          extl2=True)
add_entry("extl2-no-place-copied", "the same with COPIED set", COPIED, 1, extl2=True)
add_entry("extl2-standard-zero-flag", "the zero flag of standard entries", PLACE | ZERO, 0xFFFFFFFF,
          extl2=True)
add_entry("extl2-unaligned", "subclusters in an unaligned place", PLACE + 2048, 0xFFFFFFFF,
          extl2=True)


# ---- entries that lead into metadata: whatever is read, nothing of it may be written ----------

METADATA = (
    ("l2-to-l1", "data that is the L1 table", 3),
    ("l2-to-reftable", "data that is the refcount table", 1),
    ("l2-to-refblock", "data that is a refcount block", 2),
    ("l2-to-own-l2", "data that is the L2 table itself", 4),
    ("l2-to-other-l2", "data that is another L2 table", 5),
)

for row in METADATA:
    for suffix, flag, words in (("", 0, ""), ("-zero", ZERO, ", reserved by a zero cluster")):
        add(Kind(row[0] + suffix, row[1] + words, entry_maker(row[2] * CLUSTER | COPIED | flag),
                 rw=SERVED, ro=SERVED, writes=BAD_WRITES, check=CORRUPT,
                 reads=((BAD * CLUSTER, CLUSTER, ANYTHING),) + GOOD))


@broken("l2-to-snapshot-table", "data that is the snapshot table", rw=SERVED, ro=SERVED,
        writes=BAD_WRITES, check=CORRUPT, reads=((BAD * CLUSTER, CLUSTER, ANYTHING),) + GOOD)
def l2_to_snapshot_table(folder):
    image = Image()
    table = image.add_clusters(1)
    own_l1 = image.add_clusters(1)
    image.put(table, struct.pack(">QIHHIIQII", own_l1, 2, 1, 0, 0, 0, 0, 0, 0) + b"1")
    image.put32(60, 1)
    image.put64(64, table)
    image.set_entry(BAD, table | COPIED)
    return save(folder, image)


@broken("l2-shared-copied", "two guest clusters in one place, each as if it owned it",
        rw=SERVED, ro=SERVED, check=CORRUPT,
        reads=((BAD * CLUSTER, CLUSTER, b"A" * CLUSTER),) + GOOD)
def l2_shared_copied(folder):
    image = Image()
    image.set_entry(BAD, 6 * CLUSTER | COPIED)
    return save(folder, image)


@broken("l2-beyond-end", "data far beyond the end of the file: a sparse file has zeroes there",
        rw=SERVED, ro=SERVED, check=CORRUPT,
        reads=((BAD * CLUSTER, CLUSTER, ANYTHING),) + GOOD, may_write=BAD_WRITES[:1],
        protect=((CLUSTER, 9 * CLUSTER),))
def l2_beyond_end(folder):
    image = Image()
    image.set_entry(BAD, 0x00FFFFFFFFFF0000 | COPIED)
    return save(folder, image)


# ---- on a block device, which ends where it ends ------------------------------------------------

DEVICE_ENTRIES = (
    ("device-l2-beyond-end", "data where the device has ended", 10 * CLUSTER | COPIED),
    ("device-l2-far-beyond-end", "data at the highest offset", 0x00FFFFFFFFFF0000 | COPIED),
    ("device-l2-zero-beyond-end", "a zero cluster reserved where the device has ended",
     10 * CLUSTER | COPIED | ZERO),
    ("device-l2-compressed-beyond-end", "compressed data where the device has ended",
     COMPRESSED | 10 * CLUSTER),
    ("device-l2-compressed-past-end", "compressed data with one sector beyond the device",
     COMPRESSED | 1 << 54 | (10 * CLUSTER - 512)),
)

for row in DEVICE_ENTRIES:
    add(Kind(row[0], row[1], entry_maker(row[2]), rw=SERVED, ro=SERVED, reads=BAD_READS,
             writes=BAD_WRITES, on_device=True, check=CORRUPT))

add(Kind("device-l2-good", "nothing is wrong: what is on the device is served",
         entry_maker(6 * CLUSTER), rw=SERVED, ro=SERVED, on_device=True,
         reads=((BAD * CLUSTER, CLUSTER, b"A" * CLUSTER),) + GOOD))


# ---- compressed data --------------------------------------------------------------------------

def compressed_kind(name, summary, bad=IO_ERROR, **options):
    """A broken stream: reading gives an error. (A write may replace the whole cluster.)"""
    return broken(name, summary, rw=SERVED, ro=SERVED,
                  reads=((BAD * CLUSTER, CLUSTER, bad),) + GOOD, **options)


@compressed_kind("compressed-garbage", "a compressed cluster of noise")
def compressed_garbage(folder):
    image = Image()
    image.set_compressed(BAD, image.add_clusters(1), b"\xff\x5a\x00\x13" * 1000)
    return save(folder, image)


@compressed_kind("compressed-short", "a stream that ends after half a cluster")
def compressed_short(folder):
    image = Image()
    image.set_compressed(BAD, image.add_clusters(1), deflate(b"E" * (CLUSTER // 2)))
    return save(folder, image)


@compressed_kind("compressed-cut", "an entry that says one sector, for a stream of several")
def compressed_cut(folder):
    image = Image()
    noise = bytes((n * n * 40503 >> 7) & 0xFF for n in range(CLUSTER))
    place = image.add_clusters(2)
    image.put(place, deflate(noise))
    image.set_entry(BAD, image.compressed_entry(place, 512))
    return save(folder, image)


@compressed_kind("compressed-bomb", "a stream for 64 MiB: a cluster of it is enough",
                 bad=b"E" * CLUSTER)
def compressed_bomb(folder):
    image = Image()
    stream = deflate(b"E" * (64 << 20))[:CLUSTER - 512]
    image.set_compressed(BAD, image.add_clusters(1), stream)
    return save(folder, image)


@compressed_kind("compressed-zstd-garbage", "noise where zstd is expected")
def compressed_zstd_garbage(folder):
    image = Image()
    image.put64(72, 8)
    image.put8(104, 1)
    image.set_entry(3, 0)
    image.set_entry(2, 0)
    image.put(9 * CLUSTER, bytes(CLUSTER))
    image.set_compressed(BAD, image.add_clusters(1), b"\x28\xb5\x2f\xfd" + b"\xff" * 600)
    image.set_compressed(3, image.add_clusters(1), zstd_of_letter(b"C", CLUSTER))
    return save(folder, image)


def zstd_of_letter(letter, length):
    """A zstd frame of one run-length block: single segment, 4-byte content size."""
    assert length <= 1 << 17
    header = struct.pack("<IBI", 0xFD2FB528, 0xA0, length)
    return header + struct.pack("<I", 1 | 1 << 1 | length << 3)[:3] + letter
