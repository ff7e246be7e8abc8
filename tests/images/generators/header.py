#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Header fields with values that no image may have."""

from kinds import IO_ERROR, SERVED, Kind, add, broken
from qcow2image import (
    CLUSTER_BITS, CRYPT_METHOD, HEADER_LENGTH, L1_SIZE, REFCOUNT_ORDER, SIZE, Image)

CHECK_FAILED = (1,)

# name, summary, offset, bytes of the field, value, message
FIELDS = (
    ("magic-zero", "no magic at all", 0, 4, 0,
     r"not a qcow2 image \(magic 0x00000000\), must be 0x514649fb"),
    ("magic-qed", "the magic of another format", 0, 4, 0x51454400,
     r"not a qcow2 image \(magic 0x51454400\), must be 0x514649fb"),
    ("version-0", "version 0", 4, 4, 0, r"version 0 not supported, must be 2 or 3"),
    ("version-1", "version 1 is the older format qcow", 4, 4, 1,
     r"version 1 not supported, must be 2 or 3"),
    ("version-4", "a version of the future", 4, 4, 4, r"version 4 not supported, must be 2 or 3"),
    ("cluster-bits-0", "clusters of one byte", CLUSTER_BITS, 4, 0,
     r"cluster size 2\^0 not supported, must be 2\^9\.\.2\^21"),
    ("cluster-bits-8", "clusters smaller than a sector", CLUSTER_BITS, 4, 8,
     r"cluster size 2\^8 not supported, must be 2\^9\.\.2\^21"),
    ("cluster-bits-22", "clusters of 4 MiB", CLUSTER_BITS, 4, 22,
     r"cluster size 2\^22 not supported, must be 2\^9\.\.2\^21"),
    ("cluster-bits-63", "a shift by 63", CLUSTER_BITS, 4, 63,
     r"cluster size 2\^63 not supported, must be 2\^9\.\.2\^21"),
    ("cluster-bits-max", "a shift by 2^32 - 1", CLUSTER_BITS, 4, 0xFFFFFFFF,
     r"cluster size 2\^4294967295 not supported"),
    ("crypt-aes", "method 1: the old AES encryption", CRYPT_METHOD, 4, 1,
     r"AES encryption not supported \(method 1\), must be 0"),
    ("crypt-luks", "method 2: LUKS", CRYPT_METHOD, 4, 2,
     r"LUKS encryption not supported \(method 2\), must be 0"),
    ("crypt-unknown", "a method that nobody knows", CRYPT_METHOD, 4, 0x80000000,
     r"unknown encryption not supported \(method 2147483648\), must be 0"),
    ("size-2-63", "virtual size 2^63", SIZE, 8, 1 << 63,
     r"virtual size 9223372036854775808 not supported, must be at most 2\^55"),
    ("size-max", "virtual size 2^64 - 1: rounding it up gives 0", SIZE, 8, (1 << 64) - 1,
     r"virtual size 18446744073709551615 not supported"),
    ("size-2-55", "the largest virtual size, with an L1 table for 1 GiB", SIZE, 8, 1 << 55,
     r"L1 table too small \(2 entries\), 67108864 needed for virtual size"),
    ("size-not-covered", "one byte more than the L1 table covers", SIZE, 8, (1 << 30) + 1,
     r"L1 table too small \(2 entries\), 3 needed for virtual size 1073741825"),
    ("l1-size-0", "no L1 table", L1_SIZE, 4, 0, r"L1 table too small \(0 entries\), 2 needed"),
    ("refcount-order-7", "refcounts of 128 bits", REFCOUNT_ORDER, 4, 7,
     r"refcount width 2\^7 bits not supported, must be 2\^0\.\.2\^6"),
    ("refcount-order-max", "refcounts of 2^(2^32 - 1) bits", REFCOUNT_ORDER, 4, 0xFFFFFFFF,
     r"refcount width 2\^4294967295 bits not supported"),
    ("header-length-0", "no header", HEADER_LENGTH, 4, 0,
     r"header length 0 not valid, must be a multiple of 8 in 104\.\.65536"),
    ("header-length-96", "shorter than version 3 allows", HEADER_LENGTH, 4, 96,
     r"header length 96 not valid"),
    ("header-length-105", "not a multiple of 8", HEADER_LENGTH, 4, 105,
     r"header length 105 not valid, must be a multiple of 8"),
    ("header-length-beyond", "longer than the first cluster", HEADER_LENGTH, 4, 65544,
     r"header length 65544 not valid"),
    ("header-length-huge", "a header of 4 GiB", HEADER_LENGTH, 4, 0xFFFFFFF8,
     r"header length 4294967288 not valid"),
)


def field_maker(offset, width, value):
    """A generator that overwrites one field of a good image."""
    def make(folder):
        image = Image()
        if width == 4:
            image.put32(offset, value)
        else:
            image.put64(offset, value)
        return image.save(folder / "image.qcow2")
    return make


for row in FIELDS:
    add(Kind(row[0], row[1], field_maker(*row[2:5]), row[5], check=CHECK_FAILED))


@broken("version-2-zero-flag", "version 2 with the zero flag of version 3 in an L2 entry",
        rw=SERVED, ro=SERVED, check=(0, 2),
        reads=((2 << 16, 65536, IO_ERROR), (1 << 16, 65536, b"B" * 65536)),
        writes=((2 << 16, 4096),))
def version_2_zero_flag(folder):
    image = Image(version=2)
    image.set_entry(2, 1)
    return image.save(folder / "image.qcow2")


@broken("text-file", "a text file instead of an image",
        r"not a qcow2 image \(magic 0x54686973\)", check=CHECK_FAILED)
def text_file(folder):
    path = folder / "image.qcow2"
    path.write_text("This is no disk, although somebody may want to try it.\n" * 100)
    return path
