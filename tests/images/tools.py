#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Differential test of qchainctl's image verbs: random images, with qemu-img as the oracle.

Each case makes images of random options with QEMU's tools, or with qchainctl, and
compares what qchainctl and qemu-img say about them: info, map, check, measure,
compare, create; and damages images, compares the verdict, repairs them. A case is
determined by its seed: case N of a run has the base seed plus N.

Exit status: 0 all passed, 1 a case failed, 2 wrong usage, 77 nothing could be tested.
"""

import argparse
import collections
import concurrent.futures
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import traceback

sys.dont_write_bytecode = True
HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path[:0] = [HERE, os.path.join(HERE, "..", "lib"), os.path.join(HERE, "..", "diff")]

import chainspec  # noqa: E402  (needs the paths above)
import damages  # noqa: E402
from chainbuild import ChainBuilder, SkipCase  # noqa: E402
from qemutools import Deadline, DeadlineExceeded, Tools  # noqa: E402

EXIT_SKIP = 77
COUNT_QUICK = 120
COUNT_LONG = 2000
TIMEOUT_S = 120
SECTOR = 512
MIB = 1 << 20
PLACES = ("build/qchainctl", "qchainctl", "ctl/qchainctl")
SANITIZER_MARKS = ("AddressSanitizer", "runtime error", "LeakSanitizer")


class Difference(Exception):
    """qchainctl and qemu-img do not agree."""


def narrow(ours, theirs, where=""):
    """The first place in two JSON values that differs, and both values there."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in sorted(ours.keys() | theirs.keys()):
            if ours.get(key) != theirs.get(key):
                return narrow(ours.get(key), theirs.get(key), f"{where} {key}")
    if isinstance(ours, list) and isinstance(theirs, list):
        for index, (one, other) in enumerate(zip(ours, theirs)):
            if one != other:
                return narrow(one, other, f"{where} [{index}]")
    return where, ours, theirs


def expect_equal(what, ours, theirs):
    if ours != theirs:
        where, ours, theirs = narrow(ours, theirs)
        raise Difference(f"{what}{where}: qchainctl {ours!r}, qemu-img {theirs!r}")


class Pair:
    """Both tools, in the folder of one case."""

    def __init__(self, qchainctl, folder):
        self._qchainctl = qchainctl
        self.deadline = Deadline(TIMEOUT_S)
        self.log = os.path.join(folder, "commands.log")
        self.tools = Tools(self.log, self.deadline)

    def run(self, *argv):
        """Run a command; returns (status, standard output, standard error)."""
        argv = [str(arg) for arg in argv]
        with open(self.log, "a", encoding="utf-8") as log:
            log.write(" ".join(argv) + "\n")
        try:
            done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True,
                                  timeout=self.deadline.left())
        except subprocess.TimeoutExpired as error:
            raise DeadlineExceeded(f"{argv[0]} did not end in time") from error
        out, err = (text.decode(errors="replace") for text in (done.stdout, done.stderr))
        return done.returncode, out, err

    def ours(self, *argv):
        status, out, err = self.run(self._qchainctl, *argv)
        if status < 0 or any(mark in err for mark in SANITIZER_MARKS):
            raise Difference(f"qchainctl {' '.join(map(str, argv))}: crashed ({status}): {err}")
        return status, out, err

    def theirs(self, *argv):
        return self.run("qemu-img", *argv)

    def ours_json(self, *argv, accept=(0,)):
        status, out, err = self.ours(*argv)
        if status not in accept:
            raise Difference(f"qchainctl {' '.join(map(str, argv))}: status {status}: {err}")
        return json.loads(out)

    def theirs_json(self, *argv, accept=(0,)):
        status, out, err = self.theirs(*argv)
        if status not in accept:
            raise SkipCase(f"qemu-img {' '.join(map(str, argv))}: status {status}: {err}")
        return json.loads(out)


def real_names(info):
    """The same, with the paths that both tools may spell differently resolved."""
    for image in info if isinstance(info, list) else [info]:
        for key in ("filename", "full-backing-filename"):
            if key in image:
                image[key] = os.path.realpath(image[key])
    return info


class Case:
    """What the kinds of cases have in common."""

    def __init__(self, seed, folder, qchainctl):
        self.seed = seed
        self.folder = folder
        self.rng = random.Random(f"tools {seed}")
        self.pair = Pair(qchainctl, folder)

    def build_chain(self, seed=None, without=()):
        """A random chain; returns its spec and builder."""
        chain = chainspec.draw_chain(self.seed if seed is None else seed, without)
        folder = os.path.join(self.folder, f"chain-{seed}")
        scratch = os.path.join(self.folder, "scratch")
        os.makedirs(folder, exist_ok=True)
        os.makedirs(scratch, exist_ok=True)
        builder = ChainBuilder(chain, folder, scratch, self.pair.tools)
        builder.build()
        return chain, builder

    def path(self, name):
        return os.path.join(self.folder, name)

    def compare_check(self, path, *repair):
        """Same verdict, same counts; returns (status, the report or None)."""
        status, out, err = self.pair.ours("check", "--json", *repair, path)
        return status, json.loads(out) if out else None, err

    def their_check(self, path, *repair):
        status, out, err = self.pair.theirs("check", "--output=json", "-f", "qcow2", *repair, path)
        return status, json.loads(out) if out else None, err

    def expect_same_check(self, path):
        ours, theirs = self.compare_check(path), self.their_check(path)
        expect_equal("status of check", ours[0], theirs[0])
        if theirs[1] is not None:
            expect_equal("report of check", ours[1], theirs[1])
        return theirs

    def expect_clean(self, path):
        status, report, err = self.their_check(path)
        if status != 0:
            raise Difference(f"qemu-img check: status {status}: {report}: {err}")


# ---- what the verbs show -----------------------------------------------------------------


class ShowCase(Case):
    """A random chain: info, map, check and measure of all its images."""

    def run(self):
        chain, builder = self.build_chain(self.seed)
        for layer in chain.layers:
            self.show(builder.path(layer), layer.fmt)
        top = builder.top_path()
        self.show_chain(top)
        self.expect_same_range(top, chain.top().size)
        self.expect_same_measure(top)

    def show(self, path, fmt):
        ours = self.pair.ours_json("info", "--json", "--format", fmt, path)
        theirs = self.pair.theirs_json("info", "-f", fmt, "--output=json", path)
        expect_equal(f"info of {path}", real_names(ours), real_names(theirs))
        if fmt == "qcow2":
            self.expect_same_check(path)
        self.expect_same_map(path, fmt)

    def show_chain(self, top):
        ours = self.pair.ours_json("info", "--json", "--backing-chain", top)
        theirs = self.pair.theirs_json("info", "--output=json", "--backing-chain", top)
        expect_equal("info of the chain", real_names(ours), real_names(theirs))

    def expect_same_map(self, path, fmt):
        ours = self.pair.ours_json("map", "--json", "--format", fmt,
                                   "--allow-backing", self.folder, path)
        theirs = self.pair.theirs_json("map", "-f", fmt, "--output=json", path)
        expect_equal(f"map of {path}", ours, theirs)

    def expect_same_range(self, top, size):
        start = self.rng.randrange(0, size, SECTOR)
        length = self.rng.randrange(SECTOR, 2 * size, SECTOR)
        ours = self.pair.ours_json("map", "--json", "--start-offset", start,
                                   "--max-length", length, top)
        theirs = self.pair.theirs_json("map", "--output=json", "-s", start, "-l", length, top)
        expect_equal("map of a range", ours, theirs)

    def expect_same_measure(self, top):
        ours_options, their_options = draw_measure(self.rng)
        ours = self.pair.ours_json("measure", "--json", *ours_options, top)
        theirs = self.pair.theirs_json("measure", "--output=json", "-O", "qcow2",
                                       *their_options, top)
        del ours["lv-size"]
        expect_equal("measure of an image", ours, theirs)


def draw_measure(rng):
    """The same options of the new image for both tools."""
    cluster = rng.choice((512, 4096, 65536, 131072, 2 * MIB))
    extended = cluster >= 16384 and rng.random() < 0.5
    bits = rng.choice((1, 8, 16, 64))
    ours = ["--cluster-size", cluster, "--refcount-bits", bits]
    theirs = f"cluster_size={cluster},refcount_bits={bits}"
    if extended:
        ours.append("--extended-l2")
        theirs += ",extended_l2=on"
    return ours, ["-o", theirs]


class DataFileCase(Case):
    """An external data file is told of and never opened."""

    def run(self):
        image, data = self.path("top.qcow2"), self.path("data.raw")
        raw = self.rng.choice(("on", "off"))
        self.pair.tools.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o",
                             f"data_file={data},data_file_raw={raw}", image, 4 * MIB])
        self.pair.tools.qemu_io(image, ["write -q 0 100k", "write -q -z 1M 64k"])
        theirs = self.pair.theirs_json("info", "--output=json", image)
        check = self.their_check(image)
        os.unlink(data)
        ours = self.pair.ours_json("info", "--json", image)
        expect_equal("info with a data file", ours, theirs)
        expect_equal("check with a data file", self.compare_check(image)[:2], check[:2])
        status, _, err = self.pair.ours("map", image)
        if status != 1 or "external data file" not in err:
            raise Difference(f"map with a data file: status {status}: {err}")


def snapshots(path):
    """Number of internal snapshots in the header."""
    with open(path, "rb") as image:
        return int.from_bytes(image.read(64)[60:], "big")


# ---- check and repair ---------------------------------------------------------------------


class DamageCase(Case):
    """A damaged image: the same verdict, and a repair that qemu-img finds good."""

    def run(self):
        chain, builder = self.build_chain(self.seed)
        layer = self.rng.choice([layer for layer in chain.layers if layer.fmt == "qcow2"])
        image = self.path("image.qcow2")
        shutil.copy(builder.path(layer), image)
        self.pair.tools.run(["qemu-img", "rebase", "-u", "-f", "qcow2", "-b", "", image])
        before = self.content(image)
        done = damages.damage_image(image, self.rng)
        with open(self.pair.log, "a", encoding="utf-8") as log:
            log.write(f"# damaged: {[damage.name for damage in done]}\n")
        if not done:
            raise SkipCase("nothing could be damaged")
        self.expect_same_check(image)
        self.repair_leaks(image)
        self.repair_all(image, done, before)

    def content(self, path):
        return self.pair.tools.content(path, self.path("content.raw"))

    def repair_leaks(self, image):
        ours, theirs = self.path("leaks-ours.qcow2"), self.path("leaks-theirs.qcow2")
        shutil.copy(image, ours)
        shutil.copy(image, theirs)
        our_check = self.compare_check(ours, "--repair", "leaks")
        their_check = self.their_check(theirs, "-r", "leaks")
        if their_check[0] == 1 or snapshots(theirs) != snapshots(image):
            return  # QEMU 7.2 can lose internal snapshots here
        expect_equal("status of repair leaks", our_check[0], their_check[0])
        for report in (our_check[1], their_check[1]):
            del report["filename"]
        expect_equal("report of repair leaks", our_check[1], their_check[1])

    def repair_all(self, image, done, before):
        theirs = self.path("all-theirs.qcow2")
        shutil.copy(image, theirs)
        their_status = self.their_check(theirs, "-r", "all")[0]
        status, report, err = self.compare_check(image, "--repair", "all")
        # Good, leaks, errors, given up.
        rank = (0, 3, 2, 1).index
        if rank(status) > rank(their_status) or (
                status and all(damage.heals for damage in done)):
            raise Difference(f"repair all: qchainctl {status} ({report}), qemu-img "
                             f"{their_status}: {err}")
        after = self.expect_same_check(image)
        expect_equal("status after repair", after[0], status)
        if all(damage.keeps for damage in done) and self.content(image) != before:
            raise Difference("content changed by the repair")


# ---- create ---------------------------------------------------------------------------------


def draw_create(rng, has_backing):
    """Options of create for both tools."""
    cluster = rng.choice((512, 1024, 4096, 65536, 65536, 131072, MIB, 2 * MIB))
    ours, theirs = ["--cluster-size", cluster], [f"cluster_size={cluster}"]

    def add(our_words, their_word):
        ours.extend(our_words)
        theirs.append(their_word)

    old = rng.random() < 0.15
    extended = not old and cluster >= 16384 and rng.random() < 0.5
    if old:
        add(["--compat", "0.10"], "compat=0.10")
    if extended:
        add(["--extended-l2"], "extended_l2=on")
    if not old and rng.random() < 0.5:
        bits = rng.choice((1, 2, 4, 8, 32, 64))
        add(["--refcount-bits", bits], f"refcount_bits={bits}")
    if not old and rng.random() < 0.3:
        add(["--compression-type", "zstd"], "compression_type=zstd")
    if not old and rng.random() < 0.2:
        add(["--lazy-refcounts=on"], "lazy_refcounts=on")
    if rng.random() < 0.6 and (extended or not has_backing):
        modes = ("falloc", "full") if old else ("metadata", "falloc", "full")
        mode = rng.choice(modes)
        add(["--preallocation", mode], f"preallocation={mode}")
    return ours, ["-o", ",".join(theirs)]


class CreateCase(Case):
    """An image of random options, as good as qemu-img's, on old bytes."""

    def run(self):
        rng = self.rng
        base = self.make_base() if rng.random() < 0.4 else None
        ours, theirs = draw_create(rng, base is not None)
        size = rng.randrange(0, 12 * MIB, SECTOR)
        if "--cluster-size" in ours and ours[1] < 4096:
            size = size // 4 // SECTOR * SECTOR
        image, twin = self.path("ours.qcow2"), self.path("theirs.qcow2")
        self.create(image, twin, size, base, ours, theirs)
        self.expect_twins(image, twin)
        self.expect_fresh(image, size, base)
        self.use(image, size)
        self.expect_same_size_measure(size, ours, theirs)

    def make_base(self):
        base = self.path("base.raw")
        with open(base, "wb") as raw:
            raw.write(self.rng.randbytes(self.rng.randrange(SECTOR, 3 * MIB, SECTOR)))
        return base

    def create(self, image, twin, size, base, ours, theirs):
        # What was there must not be seen again.
        with open(image, "wb") as old:
            old.write(b"\xaa" * (16 * MIB))
        backing = ["--backing", base, "--backing-format", "raw"] if base else []
        status, _, err = self.pair.ours("create", image, "--size", size, *backing, *ours)
        if status != 1 or "--force" not in err:
            raise Difference(f"create over old data: status {status}: {err}")
        report = self.pair.ours_json("create", "--json", "--force", image, "--size", size,
                                     *backing, *ours)
        expect_equal("report of create", report["virtual-size"], size)
        backing = ["-b", base, "-F", "raw"] if base else []
        self.pair.tools.run(["qemu-img", "create", "-q", "-f", "qcow2", *backing, *theirs,
                             twin, size])

    def expect_twins(self, image, twin):
        ours = self.pair.theirs_json("info", "-f", "qcow2", "--output=json", image)
        theirs = self.pair.theirs_json("info", "-f", "qcow2", "--output=json", twin)
        for info in (ours, theirs):
            del info["filename"], info["actual-size"]
            info.pop("backing-filename", None)
            info.pop("full-backing-filename", None)
        expect_equal("info of the twins", ours, theirs)
        self.expect_clean(image)
        self.expect_same_check(image)

    def expect_fresh(self, image, size, base):
        content = self.pair.tools.content(image, self.path("content.raw"))
        expected = b""
        if base:
            with open(base, "rb") as raw:
                expected = raw.read()[:size]
        if content != expected + bytes(size - len(expected)):
            raise Difference("a fresh image shows old bytes")

    def use(self, image, size):
        """QEMU can write it, compressed and not."""
        lines = []
        for number in range(4 if size else 0):
            offset = self.rng.randrange(0, size, SECTOR)
            length = min(self.rng.randrange(SECTOR, 256 * 1024, SECTOR), size - offset)
            lines.append(f"write -q -P {number + 1} {offset} {length}")
        self.pair.tools.qemu_io(image, lines)
        self.expect_clean(image)

    def expect_same_size_measure(self, size, ours, theirs):
        mine = self.pair.ours_json("measure", "--json", "--size", size, *ours)
        other = self.pair.theirs_json("measure", "--output=json", "-O", "qcow2",
                                      "--size", size, *theirs)
        if mine.pop("lv-size") < other["fully-allocated"]:
            raise Difference("a thick LV would run full")
        expect_equal("measure", mine, other)


class DeviceCase(Case):
    """create on a block device full of old bytes: nothing of them may be read."""

    def run(self):
        device = self.attach()
        try:
            for _ in range(3):
                self.create(device)
        finally:
            self.pair.run("losetup", "-d", device)

    def attach(self):
        backing = self.path("device.img")
        with open(backing, "wb") as old:
            old.write(b"\xaa" * (24 * MIB))
        status, out, err = self.pair.run("losetup", "--show", "-f", backing)
        if status:
            raise SkipCase(f"no loop device: {err.strip()}")
        return out.strip()

    def create(self, device):
        base = None
        if self.rng.random() < 0.5:
            base = self.path("base.raw")
            with open(base, "wb") as raw:
                raw.write(b"\x55" * MIB)
        options = draw_create(self.rng, base is not None)[0]
        size = 4 * MIB + self.rng.randrange(0, MIB, SECTOR)
        if options[1] < 4096:
            size = MIB
        backing = ["--backing", base, "--backing-format", "raw"] if base else []
        self.pair.ours_json("create", "--json", "--force", device, "--size", size, *backing,
                            "--allow-backing", self.folder, *options)
        self.expect_clean(device)
        content = self.pair.tools.content(device, self.path("content.raw"))
        expected = (b"\x55" * min(MIB, size) if base else b"").ljust(size, b"\0")
        if content != expected:
            raise Difference(f"old bytes of the device can be read ({options})")


# ---- compare -----------------------------------------------------------------------------------


class CompareCase(Case):
    """Two images that are alike, or differ in one place, or in size."""

    def run(self):
        _, builder = self.build_chain(self.seed, ("dotdot",))
        first, second = builder.top_path(), self.path("second")
        fmt = self.rng.choice(("qcow2", "raw"))
        options = ["-o", f"cluster_size={self.rng.choice((512, 65536, MIB))}"]
        self.pair.tools.run(["qemu-img", "convert", "-O", fmt, "-f", "qcow2",
                             *(options if fmt == "qcow2" else []), first, second])
        self.change(second, fmt)
        self.expect_same_verdict([first, second], ["qcow2", fmt])
        self.expect_same_verdict([second, first], [fmt, "qcow2"])

    def change(self, path, fmt):
        kind = self.rng.choice(("none", "grow", "write", "shrink"))
        size = int(self.pair.theirs_json("info", "-f", fmt, "--output=json", path)["virtual-size"])
        if kind == "grow":
            self.resize(path, fmt, size + MIB)
            if self.rng.random() < 0.5:
                self.pair.tools.qemu_io(path, [f"write -q {size + 4096} 512"], fmt)
        elif kind == "shrink":
            self.resize(path, fmt, size // 2 // SECTOR * SECTOR)
        elif kind == "write":
            offset = self.rng.randrange(0, size, SECTOR)
            self.pair.tools.qemu_io(path, [f"write -q -P {self.rng.randrange(256)} {offset} 512"],
                                    fmt)

    def resize(self, path, fmt, size):
        self.pair.tools.run(["qemu-img", "resize", "-q", "--shrink", "-f", fmt, path, size])

    def expect_same_verdict(self, paths, formats):
        status, out, err = self.pair.ours("compare", "--json", "--format", formats[0],
                                          "--second-format", formats[1], *paths)
        theirs, text, _ = self.pair.theirs("compare", "-f", formats[0], "-F", formats[1], *paths)
        expect_equal(f"status of compare ({err})", status, theirs)
        report = json.loads(out)
        expect_equal("verdict of compare", report["identical"], theirs == 0)
        if theirs == 1:
            expect_equal("offset of the difference", report["offset"],
                         int(text.split("offset ")[1].split("!")[0]))


# ---- running ---------------------------------------------------------------------------------------

# How often each kind comes in a round of cases.
KINDS = {"show": ShowCase, "damage": DamageCase, "create": CreateCase, "compare": CompareCase,
         "device": DeviceCase, "data-file": DataFileCase}
ROUND = ("damage", "show", "damage", "create", "damage", "show", "damage", "create", "compare",
         "damage", "show", "device", "damage", "create", "data-file", "compare")


def run_case(kind, seed, qchainctl, keep):
    """Returns (status, reason, folder)."""
    folder = tempfile.mkdtemp(prefix=f"qtools-{seed}-", dir=temporary_folder())
    status, reason = "passed", ""
    try:
        KINDS[kind](seed, folder, qchainctl).run()
    except SkipCase as error:
        status, reason = "skipped", str(error)
    except Exception as error:
        status, reason = "failed", f"{type(error).__name__}: {error}".replace("\n", " ")
        with open(os.path.join(folder, "commands.log"), "a", encoding="utf-8") as log:
            log.write(traceback.format_exc())
    if status != "failed" and not keep:
        shutil.rmtree(folder, ignore_errors=True)
    return status, reason, folder


def temporary_folder():
    wanted = os.environ.get("TMPDIR")
    if wanted:
        return wanted
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else "/tmp"


def find_program(wanted):
    wanted = wanted or os.environ.get("QCHAINCTL")
    places = [wanted] if wanted else [os.path.join(ROOT, place) for place in PLACES]
    for place in places:
        if os.path.isfile(place) and os.access(place, os.X_OK):
            return os.path.abspath(place)
    return None


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--qchainctl", metavar="PATH", help="the program (default: $QCHAINCTL, then the build)")
    add("--seed", type=int, default=1, help="base seed (default %(default)s)")
    add("--count", type=int, help=f"number of cases (default {COUNT_QUICK})")
    add("--long", action="store_true", help=f"{COUNT_LONG} cases")
    add("--kind", choices=KINDS, help="this kind of case only")
    add("--jobs", type=int, default=os.cpu_count(), help="cases at once (default: CPUs)")
    add("--keep", action="store_true", help="keep the folder of every case")
    arguments = parser.parse_args()
    if arguments.count is None:
        arguments.count = COUNT_LONG if arguments.long else COUNT_QUICK
    return arguments


def run_all(arguments, program):
    totals = collections.Counter()
    with concurrent.futures.ProcessPoolExecutor(max_workers=max(1, arguments.jobs)) as pool:
        cases = {}
        for index in range(arguments.count):
            seed = arguments.seed + index
            kind = arguments.kind or ROUND[seed % len(ROUND)]
            cases[pool.submit(run_case, kind, seed, program, arguments.keep)] = kind, seed
        for done in concurrent.futures.as_completed(cases):
            kind, seed = cases[done]
            status, reason, folder = done.result()
            totals[status] += 1
            if status == "failed":
                print(f"FAIL {kind} seed {seed}: {reason[:1500]} | kept: {folder} | repeat: "
                      f"tests/images/tools.py --kind {kind} --seed {seed} --count 1", flush=True)
            elif status == "skipped":
                print(f"SKIP {kind} seed {seed}: {reason[:300]}", flush=True)
    return totals


def main():
    arguments = parse_arguments()
    program = find_program(arguments.qchainctl)
    missing = [tool for tool in ("qemu-img", "qemu-io") if not shutil.which(tool)]
    if missing or program is None:
        print(f"tools: skipped: {', '.join(missing) or 'qchainctl'} not found")
        return EXIT_SKIP
    totals = run_all(arguments, program)
    print(f"tools: {totals['passed']} passed, {totals['failed']} failed, "
          f"{totals['skipped']} skipped")
    if totals["failed"]:
        return 1
    return 0 if totals["passed"] else EXIT_SKIP


if __name__ == "__main__":
    sys.exit(main())
