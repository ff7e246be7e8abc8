# SPDX-License-Identifier: GPL-2.0-or-later
"""What a device and its snapshots may hold: every write of every client, sector by sector."""

import struct

SECTOR = 512
ZEROES = bytes(SECTOR)
STAMP = struct.Struct("<QQ")


class ModelError(Exception):
    """The device, or a snapshot, holds what it must not."""


class Write:
    """One write, zero or trim. Ticks count issues and answers of all clients together."""

    def __init__(self, number, first, sectors, zero, issued):
        self.number = number
        self.first = first
        self.sectors = sectors
        self.zero = zero
        self.issued = issued
        self.acked = None

    def data(self):
        if self.zero:
            return bytes(self.sectors * SECTOR)
        return b"".join(stamp(self.number, self.first + i) for i in range(self.sectors))


def stamp(number, sector):
    return STAMP.pack(number, sector) * (SECTOR // STAMP.size)


class Clock:
    """Ticks; of all models whose instants are compared."""

    def __init__(self):
        self.now = 0

    def tick(self):
        self.now += 1
        return self.now


class Model:
    """Histories of all sectors. No two writes of one sector are under way at one time."""

    def __init__(self, size, clock=None):
        self.sectors = size // SECTOR
        self.clock = clock or Clock()
        self.writes = []
        self.history = {}

    def issue(self, first, sectors, zero):
        write = Write(len(self.writes) + 1, first, sectors, zero, self.clock.tick())
        self.writes.append(write)
        for sector in range(first, first + sectors):
            self.history.setdefault(sector, []).append(write)
        return write

    def ack(self, write):
        write.acked = self.clock.tick()

    @property
    def tick(self):
        return self.clock.now

    def _candidates(self, sector, content):
        """Writes whose data @content may be, as positions in the history; -1: none yet."""
        history = self.history.get(sector, [])
        if content == ZEROES:
            return [-1] + [i for i, write in enumerate(history) if write.zero]
        number, there = STAMP.unpack_from(content)
        for i, write in enumerate(history):
            if write.number == number and not write.zero:
                if there != sector or content != stamp(number, sector):
                    raise ModelError(f"sector {sector} is torn or of sector {there}")
                return [i]
        raise ModelError(f"sector {sector} holds write {number}, which it never got")

    def check_present(self, content, what):
        """@content must show every write that was acknowledged, and at most more."""
        self._check(content, self.tick + 1, what)

    def check_snapshot(self, content, before, after, what):
        """
        @content is that of one instant between ticks @before and @after: whatever
        was acknowledged before something in it was issued is in it, too.
        """
        last = self.newest(content, before)
        if last > after:
            raise ModelError(f"{what}: has a write that was issued after it was taken")
        self._check(content, last, what)

    def newest(self, content, before):
        """When the last write was issued that @content certainly has; @before, if that was earlier."""
        last = before
        for sector, history in self.history.copy().items():  # clients add to it meanwhile
            data = content[sector * SECTOR:(sector + 1) * SECTOR]
            found = self._candidates(sector, data) if data else [-1]
            if found[0] >= 0:
                last = max(last, history[found[0]].issued)
        return last

    def _check(self, content, tick, what):
        """Every write acknowledged before @tick is in @content, or a later one."""
        for sector in range(len(content) // SECTOR):
            history = self.history.get(sector)
            if not history:
                if content[sector * SECTOR:(sector + 1) * SECTOR] != ZEROES:
                    raise ModelError(f"{what}: sector {sector} was never written, and is not zero")
                continue
            least = -1
            for i, write in enumerate(history):
                if write.acked is not None and write.acked < tick:
                    least = i
            found = self._candidates(sector, content[sector * SECTOR:(sector + 1) * SECTOR])
            if found[-1] < least:
                missing = history[least]
                raise ModelError(f"{what}: sector {sector} lacks write {missing.number} (issued "
                                 f"{missing.issued}, acknowledged {missing.acked}), has position "
                                 f"{found[-1]} of {len(history)}, must be at least {least}")

    def forget_unacked(self, content):
        """After a crash: what the device shows now is what there is, once and for all."""
        for sector in range(self.sectors):
            history = self.history.get(sector)
            if not history:
                continue
            keep = self._candidates(sector, content[sector * SECTOR:(sector + 1) * SECTOR])[-1]
            for write in history[:keep + 1]:
                if write.acked is None:
                    write.acked = write.issued
            del history[keep + 1:]
            if not history:
                del self.history[sector]

    def adopt(self, content):
        """The device is set to @content, of any of its writes: that is what there is, once and for all."""
        self.history = {}
        for sector in range(len(content) // SECTOR):
            data = content[sector * SECTOR:(sector + 1) * SECTOR]
            if data == ZEROES:
                continue
            write = self.writes[STAMP.unpack_from(data)[0] - 1]
            write.acked = write.acked or write.issued
            self.history[sector] = [write]
