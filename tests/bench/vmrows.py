# SPDX-License-Identifier: GPL-2.0-or-later
"""What is measured end to end in the VM: which script, and the bars on its samples."""

import json
import os
import subprocess
import sys

from judge import judge, medians
from rows import Bar, ratio

HERE = os.path.dirname(os.path.abspath(__file__))
RUN_VM = os.path.join(HERE, "..", "vm", "run-vm.sh")
KERNEL = "7"
MEMORY = "4G"
MARK = "BENCH "
DEPTH = 64
ENGINES = ("native", "io_uring")


def over_best(above, below, key="iops"):
    """Over the better of QEMU's two engines, round by round."""
    return lambda s: s[above][key] / max(s[f"{below} {e}"][key] for e in ENGINES)


GROUPS = {
    "vm-read": ("end to end: random 4 KiB reads, Linux 7", [
        Bar(f"/dev/ublkbN depth {DEPTH} / depth 1", 0.95,
            ratio(f"ublk depth {DEPTH}", "ublk depth 1")),
        Bar(f"/dev/ublkbN depth {DEPTH} / our raw passthrough on ublk", 0.9,
            ratio(f"ublk depth {DEPTH}", "ublk raw")),
        Bar("/dev/ublkbN depth 1 / qemu-nbd and nbd.ko", 8,
            over_best("ublk depth 1", "qemu-nbd")),
        Bar("our raw passthrough / kernel loop device, direct I/O", 1.0,
            ratio("ublk raw", "loop"))]),
    "vm-zero-copy": ("end to end: zero copy and copy mode", [
        Bar("zero copy / copy mode, 64 KiB reads", 1.2, ratio("zero_copy 64k", "copy 64k")),
        Bar("zero copy / copy mode, 1 MiB reads", 1.2, ratio("zero_copy 1m", "copy 1m"))]),
    "vm-write": ("end to end: 4 KiB random writes, fresh overlay, extended L2, recovery on", [
        Bar("4 KiB random writes on /dev/ublkbN, extended L2 / qemu-nbd and nbd.ko", 6,
            over_best("ublk", "qemu-nbd"))]),
    "vm-latency": ("devices with 1 ms latency (dm-delay)", [
        Bar("4 KiB write and flush, fresh overlay, 1 ms / QEMU", 1.2,
            over_best("write and flush, ours", "write and flush, qemu")),
        Bar(f"cold: open and 256 random reads, depth {DEPTH}, 1 ms / qemu-io", 3,
            lambda s: min(s[f"cold, qemu {e}"]["wall_s"] for e in ENGINES) /
            s["cold, ours"]["wall_s"])]),
    "vm-offload": ("read-only chains in the kernel: up --offload", [
        Bar(f"4 KiB random reads, offloaded chain of depth {DEPTH} / plain device", 0.95,
            ratio("offloaded", "plain")),
        Bar("table of 100,000 targets: dmsetup create / ours, time (at most 1.3 times)", 0.77,
            ratio("load, dmsetup", "load, ours", "wall_s"))]),
    "vm-merge": ("merges on devices with 1 ms latency (dm-delay)", [
        Bar("offline commit, 1 ms: qemu-img commit / ours, time", 6,
            ratio("commit, qemu-img", "commit, ours", "wall_s")),
        Bar("online stream, 1 ms: qemu-storage-daemon / ours, time", 6,
            ratio("stream, qemu-storage-daemon", "stream, ours", "wall_s"))]),
}


def write_settings(build, rounds):
    folder = os.path.join(build, "bench")
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "vm-settings"), "w") as settings:
        settings.write(f"rounds={rounds}\ndepth={DEPTH}\n")


def run_vm(build, name):
    """The samples of a script, or None when it failed; its output goes to a log and to stderr."""
    samples = {}
    words = [RUN_VM, "--kernel", KERNEL, "--mem", MEMORY, os.path.join(HERE, name + ".sh")]
    with open(os.path.join(build, "bench", name + ".log"), "w") as log:
        child = subprocess.Popen(words, env={**os.environ, "QCHAIN_BUILD": build}, text=True,
                                 errors="replace", stdin=subprocess.DEVNULL,
                                 stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for line in child.stdout:
            log.write(line)
            if line.startswith(MARK):
                one = json.loads(line[len(MARK):])
                samples.setdefault(one["round"], {})[one["contestant"]] = one["sample"]
            elif line.startswith(("---", "===", "fail")):
                print(f"bench: {name}: {line.rstrip()}", file=sys.stderr, flush=True)
        status = child.wait()
    return None if status else [samples[key] for key in sorted(samples)]


def measure(ctx, name, rounds, keep):
    """Measure and keep one group; returns how many failed."""
    build = os.path.dirname(ctx.qchainctl)
    title, bars = GROUPS[name]
    write_settings(build, rounds)
    samples = run_vm(build, name)
    if not samples:
        print(f"bench: {name}: FAILED, see {os.path.join(build, 'bench', name + '.log')}",
              flush=True)
        return 1
    keep({"name": name, "title": title, "medians": medians(samples),
          "bars": [judge(bar, samples) for bar in bars], "samples": samples})
    return 0
