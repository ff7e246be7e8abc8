#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Snapshot tables and bitmap directories that are not what they say."""

import struct

from kinds import SERVED, broken
from qcow2image import AUTOCLEAR, EXT_BITMAPS, NB_SNAPSHOTS, SNAPSHOTS_OFFSET, Image

CHECK_REPORTS = (1, 2, 3)
GOOD = ((0, 65536, b"A" * 65536), (2 << 16, 65536, bytes(65536)))


def save(folder, image):
    return image.save(folder / "image.qcow2")


def snapshot_entry(l1_offset, l1_size, name=b"monday", extra=bytes(24), extra_size=None):
    """One entry of the snapshot table, padded."""
    size = len(extra) if extra_size is None else extra_size
    entry = struct.pack(">QIHHIIQII", l1_offset, l1_size, 1, len(name), 0, 0, 0, 0, size)
    entry += extra + b"1" + name
    return entry + bytes(-len(entry) % 8)


def snapshot_image(entry=None, count=1, table=None):
    """An image with a snapshot table in a cluster of its own, and one for a copy of its L1."""
    image = Image()
    own_table = image.add_clusters(1)
    own_l1 = image.add_clusters(1)
    image.put64(own_l1, image.l2[0])
    image.put64(own_l1 + 8, image.l2[1])
    image.put(own_table, entry or snapshot_entry(own_l1, 2))
    image.put32(NB_SNAPSHOTS, count)
    image.put64(SNAPSHOTS_OFFSET, own_table if table is None else table)
    return image


@broken("snapshots-bomb", "four thousand million snapshots",
        r"snapshot table too large \(4294967295 entries\), must be at most 65536",
        check=CHECK_REPORTS)
def snapshots_bomb(folder):
    return save(folder, snapshot_image(count=0xFFFFFFFF))


@broken("snapshots-past-end", "as many snapshots as allowed, in a table that is too short",
        r"snapshot table beyond the end of the image \(offset 0xa0000, 2621440 bytes\)",
        check=CHECK_REPORTS)
def snapshots_past_end(folder):
    return save(folder, snapshot_image(count=65536))


@broken("snapshots-unaligned", "a snapshot table in the middle of a cluster",
        r"snapshot table not aligned \(offset 0xa0008\), must be a multiple of 2\^16",
        check=CHECK_REPORTS)
def snapshots_unaligned(folder):
    return save(folder, snapshot_image(table=(10 << 16) + 8))


@broken("snapshots-at-0", "a snapshot but no table",
        r"snapshot table not aligned \(offset 0x0\)", check=CHECK_REPORTS)
def snapshots_at_0(folder):
    return save(folder, snapshot_image(table=0))


@broken("snapshots-beyond-end", "a snapshot table at 2^56",
        r"snapshot table beyond the end of the image \(offset 0x100000000000000",
        check=CHECK_REPORTS)
def snapshots_beyond_end(folder):
    return save(folder, snapshot_image(table=1 << 56))


@broken("snapshots-over-l1", "a snapshot table that is the L1 table",
        r"snapshot table overlaps the L1 table \(offset 0x30000", check=CHECK_REPORTS)
def snapshots_over_l1(folder):
    return save(folder, snapshot_image(table=3 << 16))


@broken("snapshots-garbage", "a snapshot table full of ones",
        r"snapshot table entry 0 \(at 0xa0000\) with too much extra data, must be at most 1024",
        check=CHECK_REPORTS)
def snapshots_garbage(folder):
    return save(folder, snapshot_image(entry=b"\xff" * 65536, count=3))


@broken("snapshots-names-past-end", "a second entry whose names reach past the end of the file",
        r"snapshot table entry 1 \(at 0x[0-9a-f]+\) beyond the end of the table",
        check=CHECK_REPORTS)
def snapshots_names_past_end(folder):
    second = struct.pack(">QIHHIIQII", 0, 0, 65535, 65535, 0, 0, 0, 0, 0)
    entries = snapshot_entry(11 << 16, 2) + second
    return save(folder, snapshot_image(entry=entries, count=2))


@broken("snapshot-extra-bomb", "a snapshot with 4 GiB of extra data",
        r"snapshot table entry 0 \(at 0xa0000\) with too much extra data", check=CHECK_REPORTS)
def snapshot_extra_bomb(folder):
    return save(folder, snapshot_image(entry=snapshot_entry(11 << 16, 2, extra_size=0xFFFFFFFF)))


@broken("snapshot-l1-unaligned", "a snapshot whose L1 table is in the middle of a cluster",
        r"L1 table of snapshot 0 'monday' not aligned \(offset 0xb0200\)", check=CHECK_REPORTS)
def snapshot_l1_unaligned(folder):
    return save(folder, snapshot_image(entry=snapshot_entry((11 << 16) + 512, 2)))


@broken("snapshot-l1-outside", "a snapshot whose L1 table is beyond the end of the file",
        r"L1 table of snapshot 0 'monday' beyond the end of the image \(offset 0x4000000000",
        check=CHECK_REPORTS)
def snapshot_l1_outside(folder):
    return save(folder, snapshot_image(entry=snapshot_entry(1 << 38, 2)))


@broken("snapshot-l1-bomb", "a snapshot with an L1 table of 32 GiB",
        r"L1 table of snapshot 0 'monday' too large \(4294967295 entries\)", check=CHECK_REPORTS)
def snapshot_l1_bomb(folder):
    return save(folder, snapshot_image(entry=snapshot_entry(11 << 16, 0xFFFFFFFF)))


@broken("snapshot-l1-over-reftable", "a snapshot whose L1 table is the refcount table",
        r"L1 table of snapshot 0 'monday' overlaps the refcount table", check=CHECK_REPORTS)
def snapshot_l1_over_reftable(folder):
    return save(folder, snapshot_image(entry=snapshot_entry(1 << 16, 2)))


@broken("snapshot-hostile-name", "a bad snapshot whose name has line breaks and escapes",
        r"L1 table of snapshot 0 'a\?b\?\[2Jc' not aligned", check=CHECK_REPORTS)
def snapshot_hostile_name(folder):
    entry = snapshot_entry(513, 2, name=b"a\nb\x1b[2Jc")
    return save(folder, snapshot_image(entry=entry))


@broken("snapshots-same-l1", "two snapshots with one L1 table",
        r"L1 table of a snapshot overlaps the L1 table of a snapshot \(offset 0xb0000\)",
        check=CHECK_REPORTS)
def snapshots_same_l1(folder):
    entries = snapshot_entry(11 << 16, 2) + snapshot_entry(11 << 16, 2, name=b"tuesday")
    return save(folder, snapshot_image(entry=entries, count=2))


@broken("snapshot-missing", "a good image asked for a snapshot that it does not have",
        r"no snapshot 'friday' \(there are 1\)", args=("--snapshot", "friday"), info=False)
def snapshot_missing(folder):
    return save(folder, snapshot_image())


@broken("snapshot-l1-entry-bad", "a snapshot to be shown whose L1 entries are malformed",
        r"snapshot's L1 table entry 1: reserved bits set \(0x0000000000050001\)",
        args=("--snapshot", "monday"), check=CHECK_REPORTS, info=False)
def snapshot_l1_entry_bad(folder):
    image = snapshot_image()
    image.put64((11 << 16) + 8, image.l2[1] | 1)
    return save(folder, image)


@broken("snapshot-l1-too-small", "a snapshot to be shown whose L1 table does not cover its disk",
        r"L1 table of snapshot '1' too small \(2 entries\), 2048 needed",
        args=("--snapshot", "1"), info=False)
def snapshot_l1_too_small(folder):
    extra = struct.pack(">QQQ", 0, 1 << 40, 0)
    return save(folder, snapshot_image(entry=snapshot_entry(11 << 16, 2, extra=extra)))


# ---- bitmaps ----------------------------------------------------------------------


def bitmap_entry(table, entries, name=b"daily", name_size=None, extra_size=0):
    size = len(name) if name_size is None else name_size
    entry = struct.pack(">QIIBBHI", table, entries, 0, 1, 16, size, extra_size) + name
    return entry + bytes(-len(entry) % 8)


def bitmap_image(count=1, size=None, offset=None, directory=None, extension=None):
    """An image with a bitmap directory in cluster 10 and an empty bitmap table in 11."""
    directory = directory or bitmap_entry(11 << 16, 1)
    fields = struct.pack(">IIQQ", count, 0, len(directory) if size is None else size,
                         10 << 16 if offset is None else offset)
    image = Image(extensions=[(EXT_BITMAPS, fields if extension is None else extension)])
    image.put64(AUTOCLEAR, 1)
    image.put(image.add_clusters(1), directory)
    image.add_clusters(1)
    return image


@broken("bitmaps-0", "a bitmaps extension without bitmaps",
        r"bitmaps extension: number of bitmaps not valid \(0 bitmaps", check=CHECK_REPORTS)
def bitmaps_0(folder):
    return save(folder, bitmap_image(count=0))


@broken("bitmaps-many", "more bitmaps than allowed",
        r"bitmaps extension: number of bitmaps not valid \(4294967295 bitmaps",
        check=CHECK_REPORTS)
def bitmaps_many(folder):
    return save(folder, bitmap_image(count=0xFFFFFFFF))


@broken("bitmaps-extension-short", "a bitmaps extension that is too short",
        r"bitmaps extension of 16 bytes not valid, must be 24", check=CHECK_REPORTS)
def bitmaps_extension_short(folder):
    return save(folder, bitmap_image(extension=struct.pack(">IIQ", 1, 0, 40)))


@broken("bitmap-directory-bomb", "a bitmap directory of 2^63 bytes",
        r"bitmaps extension: directory size not valid \(1 bitmaps, 9223372036854775808 bytes\)",
        check=CHECK_REPORTS)
def bitmap_directory_bomb(folder):
    return save(folder, bitmap_image(size=1 << 63))


@broken("bitmap-directory-past-end", "a bitmap directory of 64 MiB in a small file",
        r"bitmap directory beyond the end of the image \(offset 0xa0000, 67108864 bytes\)",
        check=CHECK_REPORTS)
def bitmap_directory_past_end(folder):
    return save(folder, bitmap_image(size=64 << 20))


@broken("bitmap-directory-over-l1", "a bitmap directory that is the L1 table",
        r"bitmap directory overlaps the L1 table", check=CHECK_REPORTS)
def bitmap_directory_over_l1(folder):
    return save(folder, bitmap_image(offset=3 << 16))


def directory_kind(name, summary, message):
    """Entries of the directory concern writers only: served read-only."""
    return broken(name, summary, message, ro=SERVED, reads=GOOD, check=CHECK_REPORTS)


@directory_kind("bitmap-directory-garbage", "a bitmap directory full of ones",
                r"bitmap directory entry 0 beyond the end of the directory \(4096 bytes\)")
def bitmap_directory_garbage(folder):
    return save(folder, bitmap_image(directory=b"\xff" * 4096))


@directory_kind("bitmap-name-past-end", "a bitmap whose name leaves the directory",
                r"bitmap directory entry 0 beyond the end of the directory")
def bitmap_name_past_end(folder):
    return save(folder, bitmap_image(directory=bitmap_entry(11 << 16, 1, name_size=1023)))


@directory_kind("bitmap-extra-bomb", "a bitmap with 4 GiB of extra data",
                r"bitmap directory entry 0 beyond the end of the directory")
def bitmap_extra_bomb(folder):
    return save(folder, bitmap_image(directory=bitmap_entry(11 << 16, 1, extra_size=0xFFFFFFFF)))


@directory_kind("bitmap-table-outside", "a bitmap table of 32 GiB",
                r"table of bitmap 0 'daily' beyond the end of the image \(offset 0xb0000")
def bitmap_table_outside(folder):
    return save(folder, bitmap_image(directory=bitmap_entry(11 << 16, 0xFFFFFFFF)))


@directory_kind("bitmap-table-over-l1", "a bitmap table that is the L1 table",
                r"table of bitmap 0 'daily' overlaps the L1 table")
def bitmap_table_over_l1(folder):
    return save(folder, bitmap_image(directory=bitmap_entry(3 << 16, 1)))
