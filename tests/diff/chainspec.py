#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Draws a random chain from a seed: which layers, with which options, written how."""

import random
from dataclasses import dataclass, field

from content import FILLS, SECTOR

KIB = 1 << 10
MIB = 1 << 20

# Names that --without takes
FEATURES = ("compressed", "zstd", "extended-l2", "lazy", "snapshots", "bitmaps", "preallocation",
            "v2", "raw", "zeroes", "discard", "subdirs", "dotdot", "sizes", "refcount-bits")

DEPTHS = (1, 1, 2, 2, 2, 3, 3, 4, 4, 5, 6, 7, 8, 10, 12)
CLUSTER_SIZES = (512, 1 * KIB, 2 * KIB, 4 * KIB, 16 * KIB, 32 * KIB, 64 * KIB, 64 * KIB, 64 * KIB,
                 128 * KIB, 128 * KIB, 256 * KIB, 1 * MIB, 2 * MIB)
DEEP_SIZE = 2 * MIB
DEEP_CLUSTER_SIZES = (4 * KIB, 4 * KIB, 16 * KIB, 64 * KIB)
EXTENDED_L2_CLUSTER_MIN = 16 * KIB
NAME_STYLES = ("relative", "relative", "dot", "absolute")


@dataclass
class Io:
    """One command of qemu-io: verb is write, zero, zero-unmap, discard or compressed."""
    verb: str
    offset: int
    length: int
    fill: str = "stamp"


@dataclass
class Step:
    """One step of building a layer: kind is io, snapshot, forget, bitmap, recompress or direct.

    A direct layer is made without QEMU: its commands are writes of whole clusters, sorted.
    """
    kind: str
    name: str = ""
    commands: list = field(default_factory=list)


@dataclass
class Layer:
    """One image: what qemu-img create is told, and the steps after it."""
    index: int
    path: str
    fmt: str
    size: int
    cluster_size: int = 64 * KIB
    version: int = 3
    name_style: str = "relative"
    options: dict = field(default_factory=dict)
    steps: list = field(default_factory=list)

    def snapshots(self):
        """Names of the internal snapshots that exist once the layer is built."""
        made = [step.name for step in self.steps if step.kind == "snapshot"]
        gone = [step.name for step in self.steps if step.kind == "forget"]
        return [name for name in made if name not in gone]

    def is_direct(self):
        return any(step.kind == "direct" for step in self.steps)

    def has_bitmap(self):
        return any(step.kind == "bitmap" for step in self.steps)


@dataclass
class Chain:
    """Layers from the base to the active layer; hot are offsets that all layers write near."""
    layers: list
    hot: list

    def top(self):
        return self.layers[-1]


class Dice:
    """Random draws, with a switch that turns features off."""

    def __init__(self, seed, without):
        self.random = random.Random(seed)
        self._without = without

    def chance(self, probability, feature=None):
        hit = self.random.random() < probability
        return hit and feature not in self._without

    def place(self, size, hot, longest):
        """A sector-aligned (offset, length) inside of size, often near a hot offset."""
        length = draw_length(self.random, min(longest, size))
        if self.chance(0.6):
            offset = self.random.choice(hot) + self.random.randrange(-128 * KIB, 128 * KIB, SECTOR)
        else:
            offset = self.random.randrange(0, size, SECTOR)
        offset = max(0, min(offset, size - length))
        return offset, length


def draw_length(rng, longest):
    """Mostly short, sometimes long; a multiple of the sector size."""
    limit = rng.choice((SECTOR, 4 * KIB, 4 * KIB, 64 * KIB, 64 * KIB, 256 * KIB, longest))
    return rng.randrange(SECTOR, max(min(limit, longest), SECTOR) + 1, SECTOR)


def align_out(offset, length, unit, size):
    """The smallest range of whole units around a range, cut at size."""
    start = offset // unit * unit
    end = min((offset + length + unit - 1) // unit * unit, size)
    return start, end - start


def draw_chain(seed, without=()):
    """The chain of a seed. Nothing here touches a file."""
    dice = Dice(f"chain {seed}", without)
    depth = dice.random.choice(DEPTHS)
    hot = []
    layers = []
    below = None
    for index in range(depth):
        layer = draw_layer(dice, index, depth, below)
        if not hot:
            hot = [dice.random.randrange(0, layer.size, 4 * KIB) for _ in range(4)]
            hot += [0, layer.size]
        if layer.fmt == "raw":
            layer.steps = [Step("io", commands=draw_io(dice, layer, hot, below))]
        else:
            layer.steps = draw_steps(dice, layer, hot, below)
        layers.append(layer)
        below = layer
    return Chain(layers, hot)


def draw_deep_chain(seed, depth, without=()):
    """Hundreds of layers, made directly but for the active one: few clusters in each.

    QEMU takes ten seconds to open a thousand layers, so it does not write the active one.
    """
    dice = Dice(f"deep {seed}", without)
    size = DEEP_SIZE + dice.random.choice((0, SECTOR, 5 * KIB))
    hot = [dice.random.randrange(0, size, 4 * KIB) for _ in range(4)] + [0, size]
    layers = [draw_direct(dice, index, size, hot) for index in range(depth - 1)]
    top = Layer(depth - 1, f"layer-{depth - 1:04}.qcow2", "qcow2", 0)
    draw_options(dice, top, True)
    top.size = min(size, size_limit(top.cluster_size))
    return Chain(layers + [top], hot)


def draw_direct(dice, index, size, hot):
    """One of the many layers: some clusters near the hot places, some anywhere."""
    layer = Layer(index, f"layer-{index:04}.qcow2", "qcow2", size)
    layer.cluster_size = dice.random.choice(DEEP_CLUSTER_SIZES)
    clusters = set()
    for _ in range(dice.random.randrange(0, 4)):
        offset, length = dice.place(size, hot, 2 * layer.cluster_size)
        last = (offset + length - 1) // layer.cluster_size
        clusters.update(range(offset // layer.cluster_size, last + 1))
    layer.steps = [Step("direct", commands=[
        Io("write", cluster * layer.cluster_size, layer.cluster_size, dice.random.choice(FILLS))
        for cluster in sorted(clusters)])]
    return layer


def draw_layer(dice, index, depth, below):
    """Format, options, size and place of one layer."""
    is_top = index == depth - 1
    is_raw = index == 0 and not is_top and dice.chance(0.2, "raw")
    folder = "sub/" if not is_top and dice.chance(0.25, "subdirs") else ""
    suffix = "raw" if is_raw else "qcow2"
    layer = Layer(index, f"{folder}layer-{index:02}.{suffix}", suffix, 0)
    layer.name_style = dice.random.choice(NAME_STYLES)
    if dice.chance(0.1, "dotdot"):
        layer.name_style = "dotdot"
    if not is_raw:
        draw_options(dice, layer, below is not None)
    layer.size = draw_size(dice, layer.cluster_size)
    if below is not None and not dice.chance(0.4, "sizes"):
        layer.size = min(below.size, size_limit(layer.cluster_size))
    return layer


def draw_options(dice, layer, has_backing):
    """Options of qemu-img create that go together."""
    layer.cluster_size = dice.random.choice(CLUSTER_SIZES)
    layer.version = 2 if dice.chance(0.12, "v2") else 3
    options = {"cluster_size": layer.cluster_size,
               "compat": "0.10" if layer.version == 2 else "1.1"}
    if layer.version == 3:
        bits = dice.random.choice((1, 2, 4, 8, 32, 64))
        if dice.chance(0.3, "refcount-bits"):
            options["refcount_bits"] = bits
        if layer.cluster_size >= EXTENDED_L2_CLUSTER_MIN and dice.chance(0.4, "extended-l2"):
            options["extended_l2"] = "on"
        if dice.chance(0.15, "lazy"):
            options["lazy_refcounts"] = "on"
        if dice.chance(0.4, "zstd"):
            options["compression_type"] = "zstd"
    # qemu-img refuses preallocation over a backing image without subclusters
    may_preallocate = not has_backing or "extended_l2" in options
    mode = dice.random.choice(("metadata", "falloc", "full"))
    if dice.chance(0.3, "preallocation") and may_preallocate:
        options["preallocation"] = mode
    layer.options = options


def size_limit(cluster_size):
    """Keep images with small clusters small: their tables are slow to make."""
    if cluster_size < 2 * KIB:
        return 4 * MIB
    return 16 * MIB if cluster_size < 16 * KIB else 64 * MIB


def draw_size(dice, cluster_size):
    size = dice.random.choice((1, 1, 2, 2, 3, 4, 4, 6, 8, 8, 12, 16, 32, 64)) * MIB
    if dice.chance(0.5):
        size += dice.random.randrange(SECTOR, MIB, SECTOR)
    return min(size, size_limit(cluster_size))


def draw_steps(dice, layer, hot, below):
    """How the layer gets its content, its snapshots and its bitmaps."""
    rng = dice.random
    steps = []
    if layer.version == 3 and dice.chance(0.2, "bitmaps"):
        steps.append(Step("bitmap", f"bitmap-{layer.index}"))
    compressible = "preallocation" not in layer.options
    if compressible and dice.chance(0.35, "compressed"):
        steps.append(Step("io", commands=draw_compressed(dice, layer, hot)))
    if not steps and compressible and dice.chance(0.15, "compressed"):
        steps.append(Step("io", commands=draw_io(dice, layer, hot, below)))
        steps.append(Step("recompress"))
    if rng.random() < 0.9:
        steps.append(Step("io", commands=draw_io(dice, layer, hot, below)))
    if dice.chance(0.25, "snapshots") and can_snapshot(layer, steps):
        steps += draw_snapshots(dice, layer, hot, below)
    return steps


def can_snapshot(layer, steps):
    """Narrow refcounts overflow with snapshots of shared compressed clusters."""
    bits = layer.options.get("refcount_bits", 16)
    compressed = any(step.kind == "recompress" or command.verb == "compressed"
                     for step in steps for command in step.commands or [Io("", 0, 0)])
    return bits >= 16 if compressed else bits >= 2


def draw_snapshots(dice, layer, hot, below):
    """One or two internal snapshots with writes after each; the first may be deleted."""
    steps = []
    for number in range(dice.random.choice((1, 1, 2))):
        steps.append(Step("snapshot", f"snap-{number}"))
        steps.append(Step("io", commands=draw_io(dice, layer, hot, below)))
    if dice.chance(0.2):
        steps.append(Step("forget", "snap-0"))
    return steps


def draw_compressed(dice, layer, hot):
    """Compressed writes: whole clusters, each at most once (QEMU does not overwrite them)."""
    commands = []
    taken = set()
    for _ in range(dice.random.randrange(1, 8)):
        offset, length = dice.place(layer.size, hot, 512 * KIB)
        offset, length = align_out(offset, length, layer.cluster_size, layer.size)
        last = (offset + length - 1) // layer.cluster_size
        clusters = set(range(offset // layer.cluster_size, last + 1))
        if len(clusters) > 128 or clusters & taken:
            continue
        taken |= clusters
        commands.append(Io("compressed", offset, length, dice.random.choice(FILLS)))
    return commands


def draw_io(dice, layer, hot, below):
    """Writes, zeroes and discards of one layer."""
    commands = []
    for _ in range(dice.random.randrange(3, 16)):
        verb = "write"
        if dice.chance(0.3, "zeroes"):
            verb = dice.random.choice(("zero", "zero-unmap"))
        elif dice.chance(0.1, "discard"):
            verb = "discard"
        offset, length = dice.place(layer.size, hot, 512 * KIB)
        if verb != "write" and dice.chance(0.5):
            offset, length = align_out(offset, length, layer.cluster_size, layer.size)
        commands.append(Io(verb, offset, length, dice.random.choice(FILLS)))
    if below is not None and layer.size > below.size and dice.chance(0.5):
        start = max(below.size - 8 * KIB, 0)
        commands.append(Io("write", start, min(16 * KIB, layer.size - start)))
    return commands


def describe(chain):
    """One line per layer, for logs."""
    lines = []
    for layer in chain.layers:
        options = ",".join(f"{key}={value}" for key, value in layer.options.items())
        steps = ",".join(step.kind for step in layer.steps)
        lines.append(f"{layer.path} {layer.size} {options} [{steps}] names: {layer.name_style}")
    return "\n".join(lines)
