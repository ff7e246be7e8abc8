#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Damages for valid qcow2 images of any options, each drawn at random from a seed."""

import struct
from dataclasses import dataclass
from typing import Callable

COPIED = 1 << 63
COMPRESSED = 1 << 62
ZERO = 1
OFFSET_MASK = 0x00FFFFFFFFFFFE00
INCOMPAT_EXTL2 = 1 << 4
SNAPSHOT_BYTES = 40


class NotPossible(Exception):
    """This image has nothing that the damage could be done to."""


class Victim:
    """The tables of an image file, to be changed in place."""

    def __init__(self, path, rng):
        self.path = path
        self.rng = rng
        with open(path, "rb") as image:
            self.data = bytearray(image.read())
        self.version = self.get(4, "I")
        self.cluster_bits = self.get(20, "I")
        self.cluster = 1 << self.cluster_bits
        self.l1_entries = self.get(36, "I")
        self.l1_at = self.get(40, "Q")
        self.reftable_at = self.get(48, "Q")
        self.reftable_entries = self.get(56, "I") * self.cluster // 8
        self.incompatible = self.get(72, "Q") if self.version >= 3 else 0
        self.order = self.get(96, "I") if self.version >= 3 else 4
        self.extended = bool(self.incompatible & INCOMPAT_EXTL2)
        self.entry_bytes = 16 if self.extended else 8

    def get(self, offset, kind):
        return struct.unpack_from(">" + kind, self.data, offset)[0]

    def put(self, offset, kind, value):
        struct.pack_into(">" + kind, self.data, offset, value)

    def save(self):
        with open(self.path, "wb") as image:
            image.write(self.data)

    def clusters(self):
        """Clusters of the file, a last part included."""
        return -(-len(self.data) // self.cluster)

    # ---- refcounts -------------------------------------------------------------

    def refcount_place(self, cluster):
        """Byte offset, bit in it and width in bits of a refcount; None without a block."""
        per_block = self.cluster * 8 >> self.order
        index = cluster // per_block
        if index >= self.reftable_entries:
            return None
        block = self.get(self.reftable_at + 8 * index, "Q")
        if not block:
            return None
        bit = (cluster % per_block) << self.order
        return block + bit // 8, bit % 8, 1 << self.order

    def refcount(self, cluster):
        place = self.refcount_place(cluster)
        if place is None:
            return 0
        offset, bit, width = place
        if width < 8:
            return self.data[offset] >> bit & (1 << width) - 1
        return int.from_bytes(self.data[offset:offset + width // 8], "big")

    def set_refcount(self, cluster, value):
        offset, bit, width = self.refcount_place(cluster)
        if value >= 1 << width or value < 0:
            raise NotPossible
        if width < 8:
            mask = (1 << width) - 1 << bit
            self.data[offset] = self.data[offset] & ~mask | value << bit
        else:
            self.data[offset:offset + width // 8] = value.to_bytes(width // 8, "big")

    def pick_cluster(self, wanted):
        """A cluster whose refcount is as wanted."""
        found = [n for n in range(self.clusters())
                 if self.refcount_place(n) and wanted(self.refcount(n))]
        return self.pick(found)

    def pick(self, candidates):
        if not candidates:
            raise NotPossible
        return self.rng.choice(candidates)

    # ---- tables ------------------------------------------------------------------

    def l2_tables(self):
        """(index, offset) of the L2 tables that can be read."""
        found = []
        for index in range(self.l1_entries):
            offset = self.get(self.l1_at + 8 * index, "Q") & OFFSET_MASK
            if offset and offset % self.cluster == 0 and offset + self.cluster <= len(self.data):
                found.append((index, offset))
        return found

    def entries(self, wanted):
        """Offsets of all L2 entries that are as wanted(entry, bitmap)."""
        found = []
        for _, table in self.l2_tables():
            for offset in range(table, table + self.cluster, self.entry_bytes):
                bitmap = self.get(offset + 8, "Q") if self.extended else 0
                if wanted(self.get(offset, "Q"), bitmap):
                    found.append(offset)
        return found

    def pick_entry(self, wanted):
        return self.pick(self.entries(wanted))

    def change(self, offset, function):
        self.put(offset, "Q", function(self.get(offset, "Q")))


def is_data(entry, bitmap=0):
    return not entry & COMPRESSED and bool(entry & OFFSET_MASK) and not entry & ZERO


def is_compressed(entry, bitmap=0):
    return bool(entry & COMPRESSED)


def is_empty(entry, bitmap=0):
    return entry == 0 and bitmap == 0


# ---- the damages ----------------------------------------------------------------------


@dataclass
class Damage:
    """keeps: the guest's content stays; heals: a repair can put everything right."""
    name: str
    do: Callable
    keeps: bool
    heals: bool


DAMAGES = []


def damage(keeps=True, heals=True):
    """Decorate a function that damages a Victim."""
    def register(do):
        DAMAGES.append(Damage(do.__name__.replace("_", "-"), do, keeps, heals))
        return do
    return register


@damage()
def refcount_too_high(victim):
    cluster = victim.pick_cluster(lambda count: count > 0)
    victim.set_refcount(cluster, victim.refcount(cluster) + victim.rng.choice((1, 1, 2)))


@damage()
def refcount_too_low(victim):
    cluster = victim.pick_cluster(lambda count: count > 1)
    victim.set_refcount(cluster, victim.refcount(cluster) - 1)


@damage()
def refcount_zero(victim):
    victim.set_refcount(victim.pick_cluster(lambda count: count > 0), 0)


@damage()
def free_cluster_counted(victim):
    for _ in range(victim.rng.randrange(1, 4)):
        victim.set_refcount(victim.pick_cluster(lambda count: count == 0), 1)


@damage()
def entry_freed_without_refcount(victim):
    """As an interrupted allocation leaves it: a data cluster that nobody refers to."""
    grown = victim.clusters()
    if not victim.refcount_place(grown) or victim.refcount(grown):
        raise NotPossible
    victim.data.extend(bytes((grown + 1) * victim.cluster - len(victim.data)))
    victim.set_refcount(grown, 1)


@damage()
def copied_flag_of_data(victim):
    victim.change(victim.pick_entry(is_data), lambda entry: entry ^ COPIED)


@damage()
def copied_flag_of_l2(victim):
    index, _ = victim.pick(victim.l2_tables())
    victim.change(victim.l1_at + 8 * index, lambda entry: entry ^ COPIED)


@damage(heals=False)
def copied_flag_of_compressed(victim):
    victim.change(victim.pick_entry(is_compressed), lambda entry: entry | COPIED)


@damage(heals=False)
def reserved_bits_of_l2_entry(victim):
    bit = 1 << victim.rng.choice((1, 5, 8, 57, 61))
    victim.change(victim.pick_entry(is_data), lambda entry: entry | bit)


@damage(heals=False)
def reserved_bits_of_l1_entry(victim):
    index, _ = victim.pick(victim.l2_tables())
    bit = 1 << victim.rng.choice((0, 8, 56, 62))
    victim.change(victim.l1_at + 8 * index, lambda entry: entry | bit)


@damage(keeps=False)
def reserved_place_not_aligned(victim):
    offset = victim.pick_entry(is_empty)
    if victim.extended:
        victim.put(offset, "Q", victim.cluster + 512)
        victim.put(offset + 8, "Q", victim.rng.getrandbits(32) << 32)
    elif victim.version >= 3 and victim.cluster > 512:
        victim.put(offset, "Q", victim.cluster + 512 | ZERO)
    else:
        raise NotPossible


@damage(keeps=False, heals=False)
def data_not_aligned(victim):
    if victim.cluster == 512:
        raise NotPossible
    victim.change(victim.pick_entry(is_data), lambda entry: entry + 512)


@damage(keeps=False, heals=False)
def data_beyond_the_end(victim):
    far = (victim.clusters() + victim.rng.randrange(1, 1000)) * victim.cluster
    victim.change(victim.pick_entry(is_data), lambda entry: entry & ~OFFSET_MASK | far)


@damage(keeps=False)
def two_entries_for_one_cluster(victim):
    if victim.order == 0:
        raise NotPossible  # cannot be counted
    source = victim.get(victim.pick_entry(is_data), "Q")
    offset = victim.pick_entry(is_empty)
    victim.put(offset, "Q", source)
    if victim.extended:
        victim.put(offset + 8, "Q", 0xFFFFFFFF)


@damage(keeps=False)
def entries_exchanged_for_nothing(victim):
    """A cluster loses its only reference."""
    offset = victim.pick_entry(is_data)
    victim.put(offset, "Q", 0)
    if victim.extended:
        victim.put(offset + 8, "Q", 0)


@damage(keeps=False, heals=False)
def l2_table_not_aligned(victim):
    if victim.cluster == 512:
        raise NotPossible
    index, _ = victim.pick(victim.l2_tables())
    victim.change(victim.l1_at + 8 * index, lambda entry: entry + 512)


@damage()
def refcount_block_missing(victim):
    victim.put(victim.reftable_at, "Q", 0)


@damage()
def refcount_block_reserved_bits(victim):
    victim.change(victim.reftable_at, lambda entry: entry | 1 << victim.rng.randrange(9))


@damage()
def refcount_block_of_data(victim):
    """The refcount table names a data cluster."""
    cluster = victim.get(victim.pick_entry(is_data), "Q") & OFFSET_MASK
    place = victim.rng.choice((0, 0, 1))
    victim.put(victim.reftable_at + 8 * place, "Q", cluster)


@damage()
def refcount_block_twice(victim):
    if victim.reftable_entries < 2:
        raise NotPossible
    victim.put(victim.reftable_at + 8, "Q", victim.get(victim.reftable_at, "Q"))


@damage()
def refcount_block_beyond_the_end(victim):
    far = (victim.clusters() + 5) * victim.cluster
    victim.put(victim.reftable_at + 8 * min(1, victim.reftable_entries - 1), "Q", far)


@damage()
def refcount_block_overwritten(victim):
    block = victim.get(victim.reftable_at, "Q")
    if victim.entries(lambda entry, bitmap: is_data(entry) and entry & OFFSET_MASK == block):
        raise NotPossible  # another damage made it data
    noise = victim.rng.randbytes(64)
    start = block + victim.rng.randrange(0, victim.cluster - len(noise))
    victim.data[start:start + len(noise)] = noise


@damage(keeps=False, heals=False)
def subcluster_allocated_and_zero(victim):
    if not victim.extended:
        raise NotPossible
    offset = victim.pick_entry(lambda entry, bitmap: is_data(entry) and bitmap & 0xFFFFFFFF)
    victim.change(offset + 8, lambda bitmap: bitmap | bitmap << 32 & (1 << 64) - 1)


@damage(keeps=False, heals=False)
def subcluster_allocated_nowhere(victim):
    if not victim.extended:
        raise NotPossible
    victim.put(victim.pick_entry(is_empty) + 8, "Q", victim.rng.getrandbits(32) | 1)


@damage(heals=False)
def bitmap_of_compressed(victim):
    if not victim.extended:
        raise NotPossible
    victim.put(victim.pick_entry(is_compressed) + 8, "Q", 1)


@damage()
def dirty_bit(victim):
    if victim.version < 3:
        raise NotPossible
    victim.change(72, lambda bits: bits | 1)


@damage()
def corrupt_bit(victim):
    if victim.version < 3:
        raise NotPossible
    victim.change(72, lambda bits: bits | 2)


@damage(keeps=False, heals=False)
def file_cut_off(victim):
    last = victim.clusters() - 1
    keep = victim.rng.randrange(max(last * 3 // 4, 5), last + 1) if last > 5 else 0
    if not keep or keep * victim.cluster <= victim.reftable_at + victim.cluster:
        raise NotPossible
    for _, table in victim.l2_tables():
        if table >= keep * victim.cluster:
            raise NotPossible
    if victim.l1_at + 8 * victim.l1_entries > keep * victim.cluster:
        raise NotPossible
    del victim.data[keep * victim.cluster:]


@damage()
def snapshot_without_extra_data(victim):
    """As old programs wrote the table; version 3 wants more."""
    count, table = victim.get(60, "I"), victim.get(64, "Q")
    if count != 1 or victim.version < 3:
        raise NotPossible
    id_bytes, name_bytes = victim.get(table + 12, "H"), victim.get(table + 14, "H")
    extra = victim.get(table + 36, "I")
    names = table + SNAPSHOT_BYTES + extra
    text = bytes(victim.data[names:names + id_bytes + name_bytes])
    victim.put(table + 36, "I", 0)
    rest = text + bytes(extra)
    victim.data[table + SNAPSHOT_BYTES:table + SNAPSHOT_BYTES + len(rest)] = rest


def damage_image(path, rng):
    """Do one to three damages to an image; returns what was done."""
    done = []
    wanted = rng.choice((1, 1, 1, 2, 3))
    for choice in rng.sample(DAMAGES, len(DAMAGES)):
        victim = Victim(path, rng)
        try:
            choice.do(victim)
        except (NotPossible, struct.error, IndexError, TypeError):
            continue
        victim.save()
        done.append(choice)
        if len(done) == wanted:
            break
    return done
