#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads the log of a dm-log-writes device (Documentation/admin-guide/device-mapper/log-writes.rst).

usage: log-writes.py points LOG COUNT SEED PREFIX
           COUNT places at random at which a flush has just ended, behind the first mark that begins
           with PREFIX, and the end of the log: one a line, "ENTRY MARK", the last such mark before it
       log-writes.py replay LOG TARGET FROM TO
           the writes of the entries FROM to TO, TO not among them, are made to TARGET
"""

import random
import struct
import sys

MAGIC = 0x6a736677736872
FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8
SUPER = struct.Struct("<QQQI")
ENTRY = struct.Struct("<QQQQ")


class Log:
    """The entries, one after the other."""

    def __init__(self, path):
        self.file = open(path, "rb")
        magic, version, self.count, self.unit = SUPER.unpack(self.file.read(SUPER.size))
        if magic != MAGIC or version != 1:
            sys.exit(f"{path}: no log of dm-log-writes (magic {magic:#x}, version {version})")

    def entries(self):
        """(number, flags, byte offset, byte length, data's place in the log, mark)."""
        place = self.unit
        for number in range(self.count):
            self.file.seek(place)
            head = self.file.read(self.unit)
            sector, sectors, flags, length = ENTRY.unpack(head[:ENTRY.size])
            mark = head[ENTRY.size:ENTRY.size + length].decode() if flags & MARK else None
            place += self.unit
            yield number, flags, sector * self.unit, sectors * self.unit, place, mark
            if not flags & (DISCARD | MARK):
                place += sectors * self.unit


def points(path, count, seed, prefix):
    log, found, last = Log(path), [], None
    for number, flags, _, _, _, mark in log.entries():
        if mark and mark.startswith(prefix):
            last = mark
        if last and flags & (FLUSH | FUA):
            found.append((number + 1, last))
    chosen = random.Random(int(seed)).sample(found, min(int(count), len(found)))
    for number, mark in sorted(chosen + [(log.count, last)]):
        print(number, mark)


def replay(path, target, start, end):
    log = Log(path)
    with open(target, "r+b", buffering=0) as out:
        for number, flags, offset, length, place, _ in log.entries():
            if number >= int(end):
                break
            if number < int(start) or not length or flags & (DISCARD | MARK):
                continue
            log.file.seek(place)
            out.seek(offset)
            out.write(log.file.read(length))


if __name__ == "__main__":
    {"points": points, "replay": replay}[sys.argv[1]](*sys.argv[2:])
