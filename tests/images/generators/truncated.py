#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A good image cut off at interesting lengths."""

from kinds import IO_ERROR, SERVED, Kind, add, broken
from qcow2image import Image, deflate

CHECK_REPORTS = (1, 2, 3)

# name, summary, length, message
LENGTHS = (
    ("truncated-0", "an empty file", 0, r"image too short \(0 bytes\), a qcow2 header has 72"),
    ("truncated-1", "one byte", 1, r"image too short \(1 bytes\)"),
    ("truncated-4", "only the magic", 4, r"image too short \(4 bytes\)"),
    ("truncated-71", "one byte less than a version 2 header", 71,
     r"image too short \(71 bytes\), a qcow2 header has 72"),
    ("truncated-103", "one byte less than a version 3 header", 103,
     r"image too short \(103 bytes\), a version 3 header has 104"),
    ("truncated-104", "one byte less than its own header length asks for", 111,
     r"image too short \(111 bytes\), the header needs 112"),
    ("truncated-512", "the first sector only", 512,
     r"L1 table beyond the end of the image \(offset 0x30000, 16 bytes\), must end by 0x200"),
    ("truncated-header-cluster", "the first cluster only", 1 << 16,
     r"L1 table beyond the end of the image .* must end by 0x10000"),
    ("truncated-before-l1", "up to the L1 table", 3 << 16, r"L1 table beyond the end of the image"),
    ("truncated-in-l1", "half an L1 table", (3 << 16) + 8,
     r"L1 table beyond the end of the image .* must end by 0x30008"),
    ("truncated-before-l2", "up to the first L2 table", 4 << 16,
     r"L1 table entry 0: L2 table beyond the end of the image \(0x40000\)"),
    ("truncated-in-l2", "in the middle of the second L2 table", (5 << 16) + 4096,
     r"L1 table entry 1: L2 table beyond the end of the image \(0x50000\), must end by 0x51000"),
)


def length_maker(length):
    """A generator that cuts a good image."""
    def make(folder):
        path = Image().save(folder / "image.qcow2")
        with path.open("r+b") as file:
            file.truncate(length)
        return path
    return make


for row in LENGTHS:
    add(Kind(row[0], row[1], length_maker(row[2]), row[3], check=CHECK_REPORTS))


@broken("truncated-in-extensions", "an extension that is longer than the file",
        r"image too short \(200 bytes\), the header needs 1120")
def truncated_in_extensions(folder):
    path = Image(extensions=[(0x11223344, bytes(1000))]).save(folder / "image.qcow2")
    with path.open("r+b") as file:
        file.truncate(200)
    return path


@broken("truncated-in-backing-name", "a backing name that is longer than the file",
        r"image too short \(1026 bytes\), the header needs 1032")
def truncated_in_backing_name(folder):
    path = Image(backing="base.raw").save(folder / "image.qcow2")
    with path.open("r+b") as file:
        file.truncate(1026)
    return path


@broken("truncated-in-data", "the last data cluster is half there: the rest reads as zeroes",
        rw=SERVED, ro=SERVED, reads=((0, 65536, b"A" * 65536), (3 << 16, 65536, b"C" * 65536),
                                     (4 << 16, 65536, b"E" * 32768 + bytes(32768))))
def truncated_in_data(folder):
    image = Image()
    image.set_data(4, image.add_clusters(1), b"E")
    path = image.save(folder / "image.qcow2")
    with path.open("r+b") as file:
        file.truncate(len(image.data) - 32768)
    return path


@broken("truncated-in-compressed", "a compressed cluster whose stream is cut off",
        rw=SERVED, ro=SERVED, check=(0, 2, 3),
        reads=((0, 65536, b"A" * 65536), (4 << 16, 65536, IO_ERROR), (1 << 16, 4096, b"B" * 4096)))
def truncated_in_compressed(folder):
    image = Image()
    noise = bytes((n * n * 2654435761 >> 13) & 0xFF for n in range(image.cluster))
    stream = deflate(noise[:40000] + bytes(image.cluster - 40000))
    image.set_compressed(4, image.add_clusters(1), stream)
    path = image.save(folder / "image.qcow2")
    with path.open("r+b") as file:
        file.truncate(10 * image.cluster + len(stream) // 2)
    return path
