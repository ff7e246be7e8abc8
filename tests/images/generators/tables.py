#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""L1 and refcount tables in places and of sizes where no table can be, and their entries."""

from kinds import ANYTHING, SERVED, Kind, add, broken
from qcow2image import (
    COPIED, L1_OFFSET, L1_SIZE, REFTABLE_CLUSTERS, REFTABLE_OFFSET, Image)

CLUSTER = 65536
END = 10 * CLUSTER
L1 = 3 * CLUSTER
ALL_ONES = (1 << 64) - 1
CHECK_REPORTS = (1, 2, 3)

# name, summary, (offset, bytes, value) of each patch, message
PATCHES = (
    ("l1-at-0", "L1 table in the header", ((L1_OFFSET, 8, 0),),
     r"L1 table not aligned \(offset 0x0\), must be a multiple of 2\^16 above 0"),
    ("l1-unaligned", "L1 table in the middle of a cluster", ((L1_OFFSET, 8, L1 + 512),),
     r"L1 table not aligned \(offset 0x30200\), must be a multiple of 2\^16"),
    ("l1-beyond-end", "L1 table where the file has ended", ((L1_OFFSET, 8, END),),
     r"L1 table beyond the end of the image \(offset 0xa0000, 16 bytes\), must end by 0xa0000"),
    ("l1-far-beyond-end", "L1 table at 2^62", ((L1_OFFSET, 8, 1 << 62),),
     r"L1 table beyond the end of the image \(offset 0x4000000000000000"),
    ("l1-wraps", "L1 table whose end wraps around", ((L1_OFFSET, 8, ALL_ONES - 0xFFFF),),
     r"L1 table beyond the end of the image \(offset 0xffffffffffff0000"),
    ("l1-size-bomb", "L1 table of 32 GiB", ((L1_SIZE, 4, 0xFFFFFFFF),),
     r"L1 table too large \(4294967295 entries\), must be at most 4194304"),
    ("l1-size-overflow", "L1 size that times 8 is 0 in 32 bits", ((L1_SIZE, 4, 1 << 29),),
     r"L1 table too large \(536870912 entries\), must be at most 4194304"),
    ("l1-size-limit", "one entry more than 32 MiB", ((L1_SIZE, 4, 4194305),),
     r"L1 table too large \(4194305 entries\), must be at most 4194304"),
    ("l1-past-end", "L1 table that reaches past the end of the file", ((L1_SIZE, 4, 4194304),),
     r"L1 table beyond the end of the image \(offset 0x30000, 33554432 bytes\)"),
    ("reftable-at-0", "refcount table in the header", ((REFTABLE_OFFSET, 8, 0),),
     r"refcount table not aligned \(offset 0x0\)"),
    ("reftable-unaligned", "refcount table in the middle of a cluster",
     ((REFTABLE_OFFSET, 8, CLUSTER + 8),), r"refcount table not aligned \(offset 0x10008\)"),
    ("reftable-beyond-end", "refcount table where the file has ended",
     ((REFTABLE_OFFSET, 8, END),), r"refcount table beyond the end of the image \(offset 0xa0000"),
    ("reftable-wraps", "refcount table whose end wraps around",
     ((REFTABLE_OFFSET, 8, ALL_ONES - 0xFFFF), (REFTABLE_CLUSTERS, 4, 2)),
     r"refcount table beyond the end of the image \(offset 0xffffffffffff0000"),
    ("reftable-size-0", "no refcount table", ((REFTABLE_CLUSTERS, 4, 0),),
     r"refcount table missing \(0 clusters\)"),
    ("reftable-size-bomb", "refcount table of 256 TiB", ((REFTABLE_CLUSTERS, 4, 0xFFFFFFFF),),
     r"refcount table too large \(4294967295 clusters\), must be at most 8388608 bytes"),
    ("reftable-size-overflow", "refcount table size that is 0 in 32 bits",
     ((REFTABLE_CLUSTERS, 4, 1 << 16),), r"refcount table too large \(65536 clusters\)"),
    ("reftable-past-end", "refcount table that reaches past the end of the file",
     ((REFTABLE_CLUSTERS, 4, 128), (L1_OFFSET, 8, CLUSTER), (REFTABLE_OFFSET, 8, 2 * CLUSTER)),
     r"refcount table beyond the end of the image \(offset 0x20000, 8388608 bytes\)"),
    ("reftable-over-l1", "refcount table that is the L1 table", ((REFTABLE_OFFSET, 8, L1),),
     r"refcount table overlaps the L1 table \(offset 0x30000"),
    ("reftable-into-l1", "refcount table that runs into the L1 table",
     ((REFTABLE_CLUSTERS, 4, 3),), r"refcount table overlaps the L1 table \(offset 0x10000"),
)

# The same for the second L1 entry: the lower half of the disk would still be readable.
L1_ENTRIES = (
    ("l1-entry-reserved-low", "L1 entry with reserved bit 0", 0x50001 | COPIED,
     r"L1 table entry 1: reserved bits set \(0x8000000000050001\), bits 0\.\.8 and 56\.\.62"),
    ("l1-entry-reserved-high", "L1 entry with reserved bit 56", 0x50000 | 1 << 56,
     r"L1 table entry 1: reserved bits set \(0x0100000000050000\)"),
    ("l1-entry-compressed", "L1 entry with the flag of compressed clusters", 0x50000 | 1 << 62,
     r"L1 table entry 1: reserved bits set \(0x4000000000050000\)"),
    ("l1-entry-unaligned", "L2 table in the middle of a cluster", 0x50200 | COPIED,
     r"L1 table entry 1: L2 table not aligned \(0x50200\), must be a multiple of 2\^16"),
    ("l1-entry-to-header", "L2 table inside the header cluster", 0x200 | COPIED,
     r"L1 table entry 1: L2 table not aligned \(0x200\)"),
    ("l1-entry-to-l1", "L2 table that is the L1 table", L1 | COPIED,
     r"L1 table entry 1: L2 table overlaps the L1 table \(0x30000\)"),
    ("l1-entry-to-reftable", "L2 table that is the refcount table", CLUSTER | COPIED,
     r"L1 table entry 1: L2 table overlaps the refcount table \(0x10000\)"),
    ("l1-entry-beyond-end", "L2 table where the file has ended", END | COPIED,
     r"L1 table entry 1: L2 table beyond the end of the image \(0xa0000\), must end by 0xa0000"),
    ("l1-entry-far-beyond-end", "L2 table at the highest offset", 0x00FFFFFFFFFF0000 | COPIED,
     r"L1 table entry 1: L2 table beyond the end of the image \(0xffffffffff0000\)"),
)


def patch_maker(patches):
    """A generator that overwrites fields of a good image."""
    def make(folder):
        image = Image()
        for offset, width, value in patches:
            (image.put32 if width == 4 else image.put64)(offset, value)
        return image.save(folder / "image.qcow2")
    return make


for row in PATCHES:
    add(Kind(row[0], row[1], patch_maker(row[2]), row[3], check=CHECK_REPORTS))
for row in L1_ENTRIES:
    add(Kind(row[0], row[1], patch_maker(((L1 + 8, 8, row[2]),)), row[3], check=CHECK_REPORTS))


@broken("l1-first-entry-bad", "the message names the entry: here the first",
        r"L1 table entry 0: reserved bits set \(0x0000000000040002\)", check=CHECK_REPORTS)
def l1_first_entry_bad(folder):
    image = Image()
    image.put64(image.l1, image.l2[0] | 2)
    return image.save(folder / "image.qcow2")


# What only a writer may stumble over: refcounts. Reading does not need them.

UPPER = 1 << 29
GOOD = ((0, 65536, b"A" * 65536), (UPPER, 65536, b"D" * 65536))
ALLOCATE = ((5 << 16, 65536), (4 << 16, 4096), (UPPER + (9 << 16), 65536))


def refcount_kind(name, summary, **options):
    """
    A kind with bad refcounts: reads are good; writing is refused, or it fails, or it works, but
    nothing that is in use is overwritten.
    """
    return broken(name, summary, r"refcount|refcounts|corrupt", rw=ANYTHING, ro=SERVED, reads=GOOD,
                  may_write=ALLOCATE, protect=((L1, CLUSTER), (6 * CLUSTER, 4 * CLUSTER)),
                  check=(1, 2, 3), **options)


@refcount_kind("reftable-entry-reserved", "refcount table entry with reserved bits")
def reftable_entry_reserved(folder):
    image = Image()
    image.put64(image.reftable, image.refblock | 0x1FF)
    return image.save(folder / "image.qcow2")


@refcount_kind("refblock-unaligned", "refcount block in the middle of a cluster")
def refblock_unaligned(folder):
    image = Image()
    image.put64(image.reftable, image.refblock + 512)
    return image.save(folder / "image.qcow2")


@refcount_kind("refblock-beyond-end", "refcount block far beyond the end of the file")
def refblock_beyond_end(folder):
    image = Image()
    image.put64(image.reftable, 1 << 50)
    return image.save(folder / "image.qcow2")


@refcount_kind("refblock-is-l1", "refcount block that is the L1 table")
def refblock_is_l1(folder):
    image = Image()
    image.put64(image.reftable, image.l1)
    return image.save(folder / "image.qcow2")


@refcount_kind("refblock-is-reftable", "refcount block that is the refcount table")
def refblock_is_reftable(folder):
    image = Image()
    image.put64(image.reftable, image.reftable)
    return image.save(folder / "image.qcow2")


@refcount_kind("refblock-twice", "one refcount block for two ranges of clusters")
def refblock_twice(folder):
    image = Image()
    image.put64(image.reftable + 8, image.refblock)
    return image.save(folder / "image.qcow2")


@refcount_kind("refcount-of-tables-0", "tables counted as free: the next allocation would be one")
def refcount_of_tables_0(folder):
    image = Image()
    for number in (1, 2, 3, 4, 5):
        image.put_refcount(number, 0)
    return image.save(folder / "image.qcow2")


@refcount_kind("refcount-header-0", "the header cluster counted as free")
def refcount_header_0(folder):
    image = Image()
    image.put_refcount(0, 0)
    return image.save(folder / "image.qcow2")


@broken("l1-entries-same-l2", "one L2 table for both halves of the disk, as if each owned it",
        r"L1|L2|corrupt", rw=ANYTHING, ro=SERVED, check=(2,),
        reads=((0, 65536, b"A" * 65536), (1 << 16, 65536, b"B" * 65536)),
        may_write=((UPPER + (1 << 16), 4096),), protect=((0, 72), (CLUSTER, 9 * CLUSTER)))
def l1_entries_same_l2(folder):
    image = Image()
    image.put64(image.l1 + 8, image.l2[0] | COPIED)
    return image.save(folder / "image.qcow2")


@broken("l1-entry-to-refblock", "L2 table that is a refcount block: nothing of it may be written",
        r"L1|L2|refcount|corrupt", rw=ANYTHING, ro=SERVED, check=(2,),
        reads=((0, 65536, b"A" * 65536), (UPPER, 65536, ANYTHING)),
        may_write=((UPPER, 65536), (UPPER + (3 << 16), 4096)),
        protect=((0, 72), (CLUSTER, 9 * CLUSTER)))
def l1_entry_to_refblock(folder):
    image = Image()
    image.put64(image.l1 + 8, image.refblock | COPIED)
    return image.save(folder / "image.qcow2")
