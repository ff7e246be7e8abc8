# SPDX-License-Identifier: GPL-2.0-or-later
"""What is measured natively: groups of contestants that run in turn, and the bars on them."""

import os
from dataclasses import dataclass
from typing import Callable

import peers
from chains import GIB, KIB, MIB

QUEUE_DEPTH = 32
ENGINES = ("native", "io_uring")


@dataclass
class Scale:
    """How large everything is; the smoke test of the scripts uses a small one."""
    size: int = 2 * GIB
    depths: tuple = (1, 8, 64, 256, 1000)
    deep: int = 1000
    middle: int = 64
    count: int = 400000
    bulk: int = 8192  # requests of 1 MiB
    writes: int = 16384  # that allocate
    # QEMU at the depths above: about one to ten seconds each
    peer_counts: tuple = (300000, 200000, 40000, 4000, 256)
    memory_size: int = 1 << 40
    memory_depth: int = 500
    memory_clusters: int = 2000000
    memory_span: int = 64 * GIB
    merge_seconds: int = 5
    scattered_size: int = 8 * GIB
    scattered_clusters: int = GIB // (64 * KIB)
    stall_seconds: int = 30

    @staticmethod
    def smoke():
        return Scale(size=64 * MIB, depths=(1, 4, 8, 12, 20), deep=20, middle=8, count=2000,
                     bulk=32, writes=256, peer_counts=(2000, 1000, 500, 300, 200),
                     memory_size=1 << 32, memory_depth=10, memory_clusters=4000,
                     memory_span=GIB, merge_seconds=1, scattered_size=256 * MIB, scattered_clusters=300,
                     stall_seconds=2)


@dataclass
class Bar:
    """One row of the table. value: from {contestant: sample} of one round to the figure."""
    what: str
    limit: float
    value: Callable
    at_most: bool = False
    unit: str = "x"

    def holds(self, figure):
        return figure <= self.limit if self.at_most else figure >= self.limit


@dataclass
class Group:
    """Contestants run one after the other, round by round, on images that are shared."""
    name: str
    title: str
    contestants: dict  # label: callable that measures once
    bars: list


class Context:
    """Programs, images and scale of a run."""

    def __init__(self, build, folder, scale):
        self.qchainctl = os.path.join(build, "qchainctl")
        self.qchaind = os.path.join(build, "qchaind")
        self.folder = folder
        self.scale = scale

    def read(self, image, *options, count=None):
        """Random 4 KiB reads by our engine, warm."""
        return lambda: peers.ours(self.qchainctl, image(), count or self.scale.count,
                                  "-d", QUEUE_DEPTH, "--warm", "--pattern", "random", *options)

    def spread_step(self, unit):
        """A step that visits every @unit of the disk once, far from the one before."""
        units = self.scale.size // unit
        return (int(units * 0.618) | 1) * unit + 4 * KIB


def ratio(above, below, key="iops"):
    return lambda s: s[above][key] / max(s[below][key], 1e-9)


def over_best(above, key="iops"):
    """Over the better of QEMU's two engines, round by round."""
    return lambda s: s[above][key] / max(s[f"qemu {e}"][key] for e in ENGINES)


# ---- reads ------------------------------------------------------------------------------

PEER_BARS = (1.3, 2, 20, 250, 5000)


def read_group(ctx, index):
    scale = ctx.scale
    depth = scale.depths[index]
    label = f"ours depth {depth}"

    def top():
        return ctx.folder.chain(scale.size, depth)

    contestants = {label: ctx.read(top)}
    for engine in ENGINES:
        contestants[f"qemu {engine}"] = lambda engine=engine: peers.qemu_bench(
            engine, top(), scale.peer_counts[index], "-d", QUEUE_DEPTH,
            "-S", ctx.spread_step(64 * KIB))
    bars = [Bar(f"random 4 KiB read, depth {depth} / qemu-img bench", PEER_BARS[index],
                over_best(label))]
    if depth == 1:
        contestants["fio raw"] = lambda: peers.fio_read(ctx.folder.raw(scale.size), QUEUE_DEPTH,
                                                        1)
    if depth == scale.middle:
        contestants["ours raw"] = ctx.read(lambda: ctx.folder.raw(scale.size), "-f", "raw")
        bars.append(Bar(f"random 4 KiB read, depth {depth} / the same engine on a raw layer",
                        0.9, ratio(label, "ours raw")))
    if depth == scale.deep:
        contestants["ours depth 1"] = ctx.read(lambda: ctx.folder.chain(scale.size, 1))
        bars.append(Bar(f"random 4 KiB read, depth {depth} / own depth 1, warm", 0.95,
                        ratio(label, "ours depth 1")))
    return Group(f"read-{depth}", f"random 4 KiB reads, depth {depth}", contestants, bars)


def sequential_group(ctx):
    scale = ctx.scale

    def measure(image, *options):
        return lambda: peers.ours(ctx.qchainctl, image(), scale.bulk, "-d", QUEUE_DEPTH,
                                  "-s", "1M", "--warm", "--pattern", "seq", *options)

    return Group("read-seq", "sequential 1 MiB reads, interleaved layers", {
        "ours": measure(lambda: ctx.folder.chain(scale.size, scale.middle)),
        "ours raw": measure(lambda: ctx.folder.raw(scale.size), "-f", "raw"),
    }, [Bar(f"sequential 1 MiB read, depth {scale.middle}, interleaved layers / raw", 0.8,
            ratio("ours", "ours raw"))])


def queues_group(ctx):
    def top():
        return ctx.folder.chain(ctx.scale.size, ctx.scale.middle)

    return Group("queues", "one queue and two", {
        "1 queue": ctx.read(top),
        "2 queues": ctx.read(top, "--queues", 2),
    }, [Bar("--queues 2 / --queues 1, CPU time per I/O", 1.1,
            ratio("2 queues", "1 queue", "cpu_us"), at_most=True),
        Bar("--queues 2 / --queues 1, throughput (two free cores)", 1.5,
            ratio("2 queues", "1 queue"))])


# ---- writes -----------------------------------------------------------------------------

def write_group(ctx, name, what, limit, count, image, *options):
    """Ours and QEMU's two engines write the same places in the same order."""
    def own():
        return peers.ours(ctx.qchainctl, image(), count, "-w", "-d", QUEUE_DEPTH,
                          "--pattern", "step", *options)

    contestants = {"ours": own}
    for engine in ENGINES:
        contestants[f"qemu {engine}"] = lambda engine=engine: peers.qemu_bench(
            engine, image(), count, "-w", "-d", QUEUE_DEPTH, *options)
    return Group(name, what, contestants, [Bar(f"{what} / QEMU", limit, over_best("ours"))])


def overwrite_group(ctx):
    scale = ctx.scale
    return write_group(ctx, "overwrite", "random 4 KiB overwrite of allocated clusters", 1.3,
                       scale.count // 2, lambda: ctx.folder.chain(scale.size, 1),
                       "-S", ctx.spread_step(64 * KIB))


def fresh(ctx, *options):
    return lambda: ctx.folder.overlay(ctx.folder.chain(ctx.scale.size, 1), *options)


def cow_group(ctx):
    return write_group(ctx, "cow", "4 KiB random writes into a fresh overlay, 64 KiB clusters", 2,
                       ctx.scale.writes, fresh(ctx), "-S", ctx.spread_step(64 * KIB))


def subcluster_group(ctx):
    return write_group(ctx, "cow-extl2",
                       "4 KiB random writes into a fresh overlay, extended L2, 128 KiB clusters",
                       2, ctx.scale.writes * 4, fresh(ctx, "extended_l2=on", "cluster_size=128k"),
                       "-S", ctx.spread_step(128 * KIB))


def sequential_write_group(ctx):
    return write_group(ctx, "write-seq", "64 KiB sequential writes into a fresh overlay", 1.5,
                       ctx.scale.writes, fresh(ctx), "-s", 64 * KIB, "-S", 64 * KIB)


# ---- opening and memory --------------------------------------------------------------------

def open_group(ctx):
    scale = ctx.scale

    def top():
        return ctx.folder.chain(scale.size, scale.deep)

    def daemon():
        path = os.path.join(ctx.folder.path, "nbd.sock")
        return peers.first_read([ctx.qchaind, "--read-only", "--export", f"nbd,socket={path}",
                                 top()], path, scale.size // 2)

    return Group("open", f"opening a chain of {scale.deep} layers", {
        "open and read once": lambda: peers.process([ctx.qchainctl, "bench", "-c", 1, "-d", 1,
                                                     top()]),
        "daemon, first read": daemon,
        "qemu-img info --backing-chain": lambda: peers.process(
            ["qemu-img", "info", "--backing-chain", top()]),
    }, [Bar("qemu-img info --backing-chain / open and read once", 3,
            ratio("qemu-img info --backing-chain", "open and read once", "wall_s")),
        Bar("daemon's start to its first answer / qemu-img info --backing-chain", 0.5,
            ratio("daemon, first read", "qemu-img info --backing-chain", "wall_s"),
            at_most=True)])


def memory_group(ctx):
    scale = ctx.scale
    cache, per_layer, rest = 48 * MIB, 32 * KIB, 16 * MIB
    limit = (cache + per_layer * scale.memory_depth + rest) / MIB

    def measure():
        top = ctx.folder.sparse_runs(scale.memory_size, scale.memory_depth,
                                     scale.memory_clusters, scale.memory_span)
        return peers.ours(ctx.qchainctl, top, scale.memory_span // (64 * KIB), "-d", QUEUE_DEPTH,
                          "-S", 64 * KIB, "--pattern", "step")

    return Group("memory", f"resident memory, 1 TiB, depth {scale.memory_depth}, "
                 f"{scale.memory_clusters} mapped clusters in runs of 1 to 4", {"ours": measure},
                 [Bar(f"resident memory, 1 TiB, depth {scale.memory_depth}: MiB", limit,
                      lambda s: s["ours"]["rss"] / MIB, at_most=True, unit="MiB")])


def memory_deep_group(ctx):
    scale = ctx.scale
    size = min(GIB, scale.size)
    return Group("memory-deep", f"resident memory, 1 GiB, depth {scale.deep}", {
        "ours": ctx.read(lambda: ctx.folder.chain(size, scale.deep), count=scale.count // 4),
    }, [Bar(f"resident memory, 1 GiB, depth {scale.deep}: MiB", 80,
            lambda s: s["ours"]["rss"] / MIB, at_most=True, unit="MiB")])


def native_groups(ctx):
    """{name: function that makes the group}, in the order of the table."""
    groups = {f"read-{depth}": lambda i=i: read_group(ctx, i)
              for i, depth in enumerate(ctx.scale.depths)}
    groups.update({
        "read-seq": lambda: sequential_group(ctx),
        "overwrite": lambda: overwrite_group(ctx),
        "cow": lambda: cow_group(ctx),
        "cow-extl2": lambda: subcluster_group(ctx),
        "write-seq": lambda: sequential_write_group(ctx),
        "open": lambda: open_group(ctx),
        "memory": lambda: memory_group(ctx),
        "memory-deep": lambda: memory_deep_group(ctx),
        "queues": lambda: queues_group(ctx),
    })
    return groups
