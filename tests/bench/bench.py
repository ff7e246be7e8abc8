#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Measures qchain against QEMU and the kernel, in turn, and writes a report with charts.

Every group of rows runs its contestants one after the other, round by round;
a bar is judged by the median of the rounds' own ratios. Results of a group
are kept in build/bench/groups, so groups can be measured one at a time: the
report shows the last result of each.

Exit status: 0 all bars of this run hold, 1 a bar is missed or a group failed, 2 wrong usage.
"""

import argparse
import json
import os
import subprocess
import sys
import time

import mergerows
import report
import rows
import vmrows
from chains import Folder
from judge import judge, medians
from peers import PeerError

ROUNDS_DEFAULT = 5


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--build", default="build", help="build directory (default %(default)s)")
    add("--rounds", type=int, default=ROUNDS_DEFAULT, help="default %(default)s")
    add("--images", default="/dev/shm", help="where images are built (default %(default)s)")
    add("--smoke", action="store_true",
        help="tiny sizes, one round, no VM: tests the scripts; bars are shown, not judged")
    add("--list", action="store_true", help="the groups' names")
    add("--report-only", action="store_true", help="write the report from what was measured")
    add("groups", nargs="*", metavar="GROUP",
        help="groups to measure, also by the beginning of the name (default: all)")
    return parser.parse_args()


class Progress:
    """Says what is under way, how fast, and how long it will take."""

    def __init__(self, total):
        self._total = total
        self._done = 0
        self._start = time.monotonic()

    def step(self, text):
        spent = time.monotonic() - self._start
        line = f"bench: {self._done}/{self._total} {text}"
        if self._done:
            left = spent / self._done * (self._total - self._done)
            line += f" ({self._done / spent * 60:.0f} a minute, about {left / 60:.1f} min left)"
        print(line, file=sys.stderr, flush=True)
        self._done += 1


def chosen(names, wanted):
    """The names that are wanted, in their own order."""
    hits = {name for word in wanted for name in names
            if name == word or (word not in names and name.startswith(word))}
    unknown = [word for word in wanted if not any(name.startswith(word) for name in names)]
    if unknown:
        print(f"bench: {', '.join(unknown)}: no such group, expected some of {' '.join(names)}",
              file=sys.stderr)
        sys.exit(2)
    return [name for name in names if not wanted or name in hits]


def commit():
    root = os.path.dirname(os.path.abspath(__file__))
    done = subprocess.run(["git", "-C", root, "describe", "--always", "--dirty", "--abbrev=10"],
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return done.stdout.strip() or "unknown"


def measure(group, rounds, progress):
    """The result of a group, as it is kept."""
    samples = []
    for number in range(rounds):
        one = {}
        for label, contestant in group.contestants.items():
            progress.step(f"{group.name}, round {number + 1}/{rounds}: {label}")
            one[label] = contestant()
        samples.append(one)
    return {"name": group.name, "title": group.title, "medians": medians(samples),
            "bars": [judge(bar, samples) for bar in group.bars], "samples": samples}


def native_groups(ctx):
    """{name: function that makes the group}, in the order of the table."""
    return {**rows.native_groups(ctx), **mergerows.groups(ctx)}


def measure_native(ctx, names, arguments, keep):
    """Measure and keep the groups; returns how many failed."""
    groups = native_groups(ctx)
    made = [groups[name]() for name in names]
    progress = Progress(sum(len(group.contestants) for group in made) * arguments.rounds)
    failed = 0
    for group in made:
        try:
            keep(measure(group, arguments.rounds, progress))
        except PeerError as error:
            print(f"bench: {group.name}: FAILED: {error}", flush=True)
            failed += 1
        ctx.folder.clear()
    return failed


def say(result):
    """The rows of a group, on the terminal, as soon as they are known."""
    for bar in result["bars"]:
        print(report.row_text(bar), flush=True)


def keeper(folder):
    """A function that keeps results of groups, each in a file."""
    os.makedirs(folder, exist_ok=True)
    stamp = {"commit": commit(), "date": time.strftime("%Y-%m-%d %H:%M")}
    missed = []

    def keep(result):
        result.update(stamp)
        with open(os.path.join(folder, result["name"] + ".json"), "w") as out:
            json.dump(result, out, indent=1)
        say(result)
        missed.extend(bar["what"] for bar in result["bars"] if not bar["holds"])

    return keep, missed


def main():
    arguments = parse_arguments()
    scale = rows.Scale.smoke() if arguments.smoke else rows.Scale()
    if arguments.smoke:
        arguments.rounds = 1
    out = os.path.join(arguments.build, "bench-smoke" if arguments.smoke else "bench")
    images = os.path.join(arguments.images, f"qchain-bench.{os.getpid()}")
    with Folder(images) as folder:
        ctx = rows.Context(os.path.abspath(arguments.build), folder, scale)
        native = list(native_groups(ctx))
        names = native + ([] if arguments.smoke else list(vmrows.GROUPS))
        if arguments.list:
            print("\n".join(names))
            return 0
        names = chosen(names, arguments.groups)
        keep, missed = keeper(os.path.join(out, "groups"))
        failed = 0
        if not arguments.report_only:
            failed = measure_native(ctx, [n for n in names if n in native], arguments, keep)
            for name in names:
                if name not in native:
                    failed += vmrows.measure(ctx, name, arguments.rounds, keep)
    report.write(out, native + list(vmrows.GROUPS))
    print(f"bench: {len(missed)} bars missed, {failed} groups failed; "
          f"report: {os.path.join(out, 'report.md')}")
    return 1 if failed or (missed and not arguments.smoke) else 0


if __name__ == "__main__":
    sys.exit(main())
