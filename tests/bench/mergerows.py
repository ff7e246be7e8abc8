# SPDX-License-Identifier: GPL-2.0-or-later
"""What is measured of snapshots and merges: groups of contestants as in rows.py."""

import merges
from rows import Bar, Group, ratio

GUEST_DEPTH = 8
CACHES = ("none", "writeback")  # of qemu-img


def beside_group(ctx):
    """The guest's share of the machine beside a merge, with the throttle that is the default."""
    scale = ctx.scale
    span = scale.size // 16

    def top():
        return ctx.folder.chain(scale.size, 4)

    return Group("merge", "a guest (fio over NBD, random 4 KiB reads and writes) beside block-commit", {
        "guest alone": lambda: merges.guest_alone(ctx.qchaind, top(), GUEST_DEPTH, span, scale.merge_seconds),
        "merge alone": lambda: merges.merge_alone(ctx.qchaind, top()),
        "both": lambda: merges.both(ctx.qchaind, top(), GUEST_DEPTH, span),
    }, [Bar("guest's throughput beside a merge / alone", 0.7, ratio("both", "guest alone")),
        Bar("rate of a merge beside a guest / alone", 0.3, ratio("both", "merge alone", "rate")),
        Bar("p99 of the guest beside a merge / alone", 3, ratio("both", "guest alone", "p99_us"), at_most=True)])


def copy_group(ctx):
    def top():
        return ctx.folder.chain(ctx.scale.size, 4)

    return Group("merge-rate", "block-commit of two layers without a guest, and dd of them", {
        "merge": lambda: merges.merge_alone(ctx.qchaind, top()),
        "dd": lambda: merges.plain_copy(top()),
    }, [Bar("rate of a merge / plain O_DIRECT copy", 0.8, ratio("merge", "dd", "rate"))])


def offline_group(ctx):
    scale = ctx.scale

    def top():
        return ctx.folder.scattered(scale.scattered_size, scale.scattered_clusters)

    contestants = {"ours": lambda: merges.offline_commit([ctx.qchainctl, "commit"], top())}
    for cache in CACHES:
        contestants[f"qemu-img {cache}"] = lambda cache=cache: merges.offline_commit(
            ["qemu-img", "commit", "-q", "-f", "qcow2", "-t", cache], top())
    return Group("merge-offline", "offline commit of scattered clusters", contestants, [
        Bar("qemu-img commit / offline commit, time", 1.5,
            lambda s: min(s[f"qemu-img {cache}"]["wall_s"] for cache in CACHES) / s["ours"]["wall_s"])])


def active_group(ctx):
    scale = ctx.scale

    def top():
        return ctx.folder.chain(scale.size, 2)

    return Group("merge-active", "commit of the active layer under a guest that rewrites all of it", {
        "ours": lambda: merges.active_commit(ctx.qchaind, top(), GUEST_DEPTH, scale.size // 8),
    }, [Bar("active commit: bytes copied / bytes allocated", 1.1, lambda s: s["ours"]["share"], at_most=True)])


def stall_group(ctx, depth):
    scale = ctx.scale
    words = (GUEST_DEPTH, scale.size // 16, scale.stall_seconds)

    def top():
        return ctx.folder.chain(scale.size, depth)

    return Group(f"stall-{depth}", f"{scale.stall_seconds} s of random reads and writes over NBD, depth {depth}", {
        "without": lambda: merges.guest_alone(ctx.qchaind, top(), *words),
        "20 snapshots": lambda: merges.guest_with_snapshots(ctx.qchaind, top(), *words, 20),
    }, [Bar(f"longest stall with 20 snapshots / without, depth {depth}", 2,
            ratio("20 snapshots", "without", "max_us"), at_most=True)])


def switch_group(ctx):
    scale = ctx.scale

    def switches(depth):
        return lambda: merges.switch_times(ctx.qchaind, ctx.folder.chain(scale.size, depth), 20)

    return Group("snapshot", "blockdev-snapshot of a formatted overlay, median of 20", {
        "depth 1": switches(1), f"depth {scale.deep}": switches(scale.deep),
    }, [Bar(f"snapshot, from formatted to published, depth {scale.deep} / 1", 1.5,
            ratio(f"depth {scale.deep}", "depth 1", "wall_s"), at_most=True)])


def groups(ctx):
    return {"merge": lambda: beside_group(ctx), "merge-rate": lambda: copy_group(ctx),
            "merge-offline": lambda: offline_group(ctx), "merge-active": lambda: active_group(ctx),
            "stall-1": lambda: stall_group(ctx, 1), f"stall-{ctx.scale.deep}": lambda: stall_group(ctx, ctx.scale.deep),
            "snapshot": lambda: switch_group(ctx)}
