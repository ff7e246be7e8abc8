#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Stamped test data, and the model of what a device must contain."""

import random
import struct

SECTOR = 512
STAMP = struct.Struct("<4sIQQ8s")
STAMP_MAGIC = b"QCST"
ZERO_SECTOR = bytes(SECTOR)

# What a write is filled with
FILL_STAMP = "stamp"    # every sector repeats its own stamp: compressible
FILL_NOISE = "noise"    # stamp, then random bytes: not compressible
FILL_ZERO = "zero"      # explicit zeroes
FILL_MIXED = "mixed"    # stamped sectors and zero sectors in turns
FILLS = (FILL_STAMP, FILL_NOISE, FILL_ZERO, FILL_MIXED)


class Mismatch(Exception):
    """The device does not contain what it must."""


def make_data(source, number, offset, length, fill):
    """Data for one write: each sector names who wrote it and for which place.

    source tells builder layers (their index) from guests, number is the
    write's own; both are read back by describe_sector().
    """
    if fill == FILL_ZERO:
        return bytes(length)
    noise = random.Random(f"{source} {number}").randbytes(SECTOR - STAMP.size)
    name = source.encode()[:8]
    first = offset // SECTOR
    sectors = []
    for index in range(first, first + length // SECTOR):
        stamp = STAMP.pack(STAMP_MAGIC, number, index, index * 0x9E3779B97F4A7C15 % (1 << 64), name)
        if fill == FILL_MIXED and index % 5 == 0:
            sectors.append(ZERO_SECTOR)
        elif fill == FILL_NOISE:
            sectors.append(stamp + noise)
        else:
            sectors.append(stamp * (SECTOR // STAMP.size))
    return b"".join(sectors)


def describe_sector(sector):
    """Who wrote this sector, in words."""
    if sector == ZERO_SECTOR:
        return "zeroes"
    magic, number, index, _, source = STAMP.unpack_from(sector)
    if magic != STAMP_MAGIC:
        return f"foreign bytes {bytes(sector[:8]).hex()}"
    return f"write {number} of {source.rstrip(bytes(1)).decode()} for sector {index}"


def is_zero(data):
    """Whether all bytes are zero."""
    return not any(data) if len(data) <= SECTOR else data == bytes(len(data))


class Model:
    """The exact content of the device, and what may still be one of two things.

    In doubt are ranges of writes that were in flight when the server was
    killed: each sector holds the old content or the new.
    """

    def __init__(self, content):
        self.content = content
        self.doubts = []

    def __len__(self):
        return len(self.content)

    def put(self, offset, data):
        self.content[offset:offset + len(data)] = data

    def expect(self, offset, data, what):
        """data was read at offset: compare."""
        expected = memoryview(self.content)[offset:offset + len(data)]
        if expected != data:
            raise Mismatch(first_difference(offset, expected, data, what))

    def settle(self, offset, data, new, what):
        """Each sector of data is the model's or new's: take it over, or fail."""
        old = self.content[offset:offset + len(data)]
        if old == data:
            return
        for at in range(0, len(data), SECTOR):
            is_found, was, would_be = (part[at:at + SECTOR] for part in (data, old, new))
            if is_found not in (was, would_be):
                raise Mismatch(f"{what}: sector {(offset + at) // SECTOR} is neither old nor new: "
                               f"found {describe_sector(is_found)}, old {describe_sector(was)}, "
                               f"new {describe_sector(would_be)}")
        self.put(offset, data)

    def doubt(self, offset, new):
        """A request with this new content was in flight at a kill."""
        self.doubts.append((offset, new))

    def settle_doubts(self, device):
        """Take over old or new for all doubts from a read of the whole device."""
        for offset, new in self.doubts:
            self.settle(offset, device[offset:offset + len(new)], new, "in flight at the kill")
        self.doubts.clear()


def first_difference(offset, expected, found, what):
    """One line about the first sector that differs."""
    bad = [at for at in range(0, len(found), SECTOR)
           if expected[at:at + SECTOR] != found[at:at + SECTOR]]
    at = bad[0]
    return (f"{what}: sector {(offset + at) // SECTOR} differs "
            f"({len(bad)} in {offset}+{len(found)}): "
            f"found {describe_sector(found[at:at + SECTOR])}, "
            f"expected {describe_sector(expected[at:at + SECTOR])}")
