#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Offline commit, stream, rebase and resize of random chains, with QEMU's tools as the oracle.

Each case builds a chain with qemu-img and qemu-io, notes what every image shows, runs one verb
of qchainctl, and asks qemu-img: are all images free of errors, does every image that must show
the same still do so, has the receiving image what it must have. With --kill the verb is killed
with -9 at a random instant: then every image must be valid and show what the rule says, and the
verb, run again, must come to its end.

Exit status: 0 all passed, 1 a case failed, 77 nothing could be tested.
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
import time
import traceback

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, os.path.join(HERE, "..", "lib"))

import chainspec  # noqa: E402  (needs the path above)
from chainbuild import ChainBuilder, SkipCase  # noqa: E402
from content import first_difference  # noqa: E402
from imagelocks import wait_unlocked  # noqa: E402
from qemutools import Deadline, Tools, ToolError, file_digest  # noqa: E402

SECTOR = 512
TIMEOUT_S = 240
# Names that have no room in a small first cluster are refused, before anything was written.
REFUSALS = ("has no free room", "version 2 image with internal snapshots")


class Failure(Exception):
    """An image is not as it must be."""


class Refused(Exception):
    """The verb refused for a reason that the test knows."""


def expect(condition, text):
    if not condition:
        raise Failure(text)


class Case:
    """One chain and one verb on it."""

    def __init__(self, seed, settings, folder):
        self.rng = random.Random(f"offline {seed}")
        self.settings = settings
        self.folder = folder
        self.tools = Tools(os.path.join(folder, "log"), Deadline(TIMEOUT_S))
        self.chain = self.draw(seed)
        self.images = os.path.join(folder, "images")
        self.builder = ChainBuilder(self.chain, self.images, folder, self.tools)

    def draw(self, seed):
        """The first chain from this seed on that has something below its top."""
        for step in range(1000):
            chain = chainspec.draw_chain(seed * 1000 + step)
            if len(chain.layers) > 1:
                return chain
        raise Failure("no chain drawn")

    # ---- looking ---------------------------------------------------------------

    def path(self, index):
        return self.builder.path(self.chain.layers[index])

    def content_of(self, path, fmt="qcow2", snapshot=None):
        if fmt == "raw":
            with open(path, "rb") as raw:
                return bytearray(raw.read())
        return self.tools.content(path, os.path.join(self.folder, "scratch.raw"), snapshot)

    def note(self):
        """What all images show now, their snapshots, and their bytes."""
        self.contents = [self.content_of(self.path(i), layer.fmt)
                         for i, layer in enumerate(self.chain.layers)]
        self.snapshots = [{name: self.content_of(self.path(i), snapshot=name)
                           for name in layer.snapshots()} if layer.fmt == "qcow2" else {}
                          for i, layer in enumerate(self.chain.layers)]
        self.digests = [file_digest(self.path(i)) for i in range(len(self.chain.layers))]

    def same(self, index, expected, what, length=None):
        found = self.content_of(self.path(index), self.chain.layers[index].fmt)
        length = len(expected) if length is None else length
        expect(len(found) >= length, f"{what}: {len(found)} bytes, expected {length}")
        if found[:length] != expected[:length]:
            raise Failure(first_difference(0, memoryview(expected)[:length],
                                           memoryview(found)[:length], what))
        return found

    def check_all(self, leaks_allowed):
        for index, layer in enumerate(self.chain.layers):
            if layer.fmt != "qcow2" or not os.path.exists(self.path(index)):
                continue
            errors, leaks = self.tools.check(self.path(index))
            expect(errors == 0, f"{layer.path}: {errors} errors")
            # who writes an image drops its bitmaps, and qemu-img counts their clusters as leaks
            expect(leaks == 0 or leaks_allowed or layer.has_bitmap(),
                   f"{layer.path}: {leaks} leaked clusters")
            if index > self.steady:
                continue  # an internal snapshot shows what is below it, and that changed
            for name, content in self.snapshots[index].items():
                found = self.content_of(self.path(index), snapshot=name)
                length = min(len(found), len(content))  # qemu-img cuts it to the image's size
                expect(found[:length] == content[:length],
                       f"{layer.path}: snapshot {name} changed")

    def untouched(self, indexes):
        for index in indexes:
            expect(file_digest(self.path(index)) == self.digests[index],
                   f"{self.chain.layers[index].path}: changed although it must not")

    # ---- running ------------------------------------------------------------------

    def command(self, *words):
        return [self.settings.qchainctl, *map(str, words)]

    def run(self, *words):
        """To its end. Refused: nothing may have changed."""
        with open(os.path.join(self.folder, "log"), "a", encoding="utf-8") as log:
            log.write(" ".join(self.command(*words)) + "\n")
        done = subprocess.run(self.command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              text=True, timeout=TIMEOUT_S)
        if done.returncode != 0:
            if any(text in done.stderr for text in REFUSALS):
                raise Refused(done.stderr.strip())
            raise Failure(f"{words[0]}: status {done.returncode}: {done.stderr.strip()}")

    def kill_in_between(self, *words):
        """Run it and kill it; True: it was killed before its end."""
        child = subprocess.Popen(self.command(*words), stdout=subprocess.DEVNULL,
                                 stderr=subprocess.DEVNULL)
        end = time.monotonic() + self.rng.random() ** 2 * self.settings.kill_span
        while time.monotonic() < end and child.poll() is None:
            time.sleep(0.0005)
        child.kill()
        killed = child.wait() != 0
        for index in range(len(self.chain.layers)):
            wait_unlocked(self.path(index), Deadline(TIMEOUT_S))
        return killed

    def repair(self):
        """What a kill leaves: qcow2 images that say they were not closed."""
        for index, layer in enumerate(self.chain.layers):
            if layer.fmt == "qcow2":
                self.run_quiet("check", "--repair", "leaks", "--force", self.path(index))

    def run_quiet(self, *words):
        subprocess.run(self.command(*words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                       check=False, timeout=TIMEOUT_S)

    def perform(self, words, judge):
        """The verb, perhaps killed a few times first; @judge looks at what each leaves."""
        for _ in range(self.rng.randrange(1, 4) if self.settings.kill else 0):
            if not self.kill_in_between(*words):
                self.check_all(False)
                judge(True)
                return
            self.check_all(True)
            judge(False)
            self.repair()
        try:
            self.run(*words)
        except Failure as error:  # killed behind its last step: @judge tells whether that is so
            if not self.settings.kill or "is no layer of the chain" not in str(error):
                raise
        self.check_all(False)
        judge(True)

    # ---- the verbs --------------------------------------------------------------------

    def top(self):
        return len(self.chain.layers) - 1

    def layer_words(self, option, index):
        return [option, self.path(index)]

    def commit(self):
        top = self.rng.choice((self.top(), self.top(), self.rng.randrange(1, self.top() + 1)))
        base = self.rng.choice((top - 1, self.rng.randrange(0, top)))
        words = ["commit", self.path(self.top()), *self.layer_words("--top", top),
                 *self.layer_words("--base", base)]
        size = len(self.contents[top])
        self.steady = base

        def judge(complete):
            for index in range(top, self.top() + 1):
                self.same(index, self.contents[index], f"layer {index} after {' '.join(words)}")
            self.untouched(range(0, base))
            if not complete:
                return
            self.same(base, self.contents[top], "the base after commit", size)
            if top == self.top():
                self.is_empty(top)
            self.stands_on(min(top + 1, self.top()), base)

        self.perform(words, judge)

    def is_empty(self, index):
        for extent in self.tools.map(self.path(index)):
            expect(extent["depth"] > 0 or not extent.get("present", True),
                   f"layer {index}: maps {extent} although it was committed")

    def stands_on(self, index, base):
        chain = self.tools.run(["qemu-img", "info", "--output=json", self.path(index)])
        name = json.loads(chain).get("full-backing-filename")
        if base is None:
            expect(name is None, f"layer {index} stands on {name}, expected nothing")
        else:
            expect(name and os.path.samefile(name, self.path(base)),
                   f"layer {index} stands on {name}, expected {self.path(base)}")

    def stream(self):
        into = self.rng.choice((self.top(), self.rng.randrange(1, self.top() + 1)))
        base = self.rng.choice((None, self.rng.randrange(0, into)))
        words = ["stream", self.path(self.top()), *self.layer_words("--into", into)]
        if base is not None:
            words += self.layer_words("--base", base)
        self.steady = into - 1

        def judge(complete):
            for index in range(into, self.top() + 1):
                self.same(index, self.contents[index], f"layer {index} after {' '.join(words)}")
            self.untouched(range(0, into))
            if complete:
                self.stands_on(into, base)

        self.perform(words, judge)

    def make_other(self):
        """A backing image of its own: like some layer, with writes of its own, any size."""
        path = os.path.join(self.images, "other.qcow2")
        size = self.rng.randrange(1, 20) * 512 * 1024 + self.rng.randrange(0, 2) * SECTOR * 7
        below = self.rng.choice((None, self.rng.randrange(0, self.top())))
        words = ["qemu-img", "create", "-q", "-f", "qcow2"]
        if below is not None:
            words += ["-b", self.path(below), "-F", self.chain.layers[below].fmt]
        self.tools.run([*words, path, size])
        lines = []
        for _ in range(self.rng.randrange(0, 6)):
            length = self.rng.randrange(SECTOR, min(size, 300000), SECTOR)
            offset = self.rng.randrange(0, size - length + SECTOR, SECTOR)
            lines.append(self.rng.choice((f"write -q -P 7 {offset} {length}",
                                          f"write -q -z {offset} {length}")))
        self.tools.qemu_io(path, lines)
        return path

    def rebase(self):
        kind = self.rng.choice(("other", "other", "layer", "none"))
        other = "none"
        fmt = "qcow2"
        if kind == "other":
            other = self.make_other()
        elif kind == "layer":
            index = self.rng.randrange(0, self.top())
            other, fmt = self.path(index), self.chain.layers[index].fmt
        words = ["rebase", "--backing", other, "--backing-format", fmt, self.path(self.top())]

        def judge(complete):
            self.same(self.top(), self.contents[-1], f"the image after {' '.join(words)}")
            self.untouched(range(0, self.top()))

        self.perform(words, judge)

    def rebase_unsafe(self):
        other = os.path.join(self.images, "moved" * self.rng.randrange(1, 30) + ".img")
        fmt = self.chain.layers[-2].fmt
        shutil.copy(self.path(self.top() - 1), other)
        if fmt == "qcow2" and self.top() > 1:
            self.tools.run(["qemu-img", "rebase", "-u", "-f", "qcow2",
                            "-F", self.chain.layers[-3].fmt, "-b", self.path(self.top() - 2), other])
        words = ["rebase", "-u", "--backing", other, "--backing-format", fmt, self.path(self.top())]

        def judge(complete):
            self.same(self.top(), self.contents[-1], f"the image after {' '.join(words)}")
            self.untouched(range(0, self.top()))

        self.perform(words, judge)
        # and back, and without: whatever stood in the header is in the way now
        for index in range(3):
            name = self.path(self.top() - 1) if index % 2 == 0 else other
            self.perform(["rebase", "-u", "--backing", name, "--backing-format", fmt,
                          self.path(self.top())], judge)

    def resize(self):
        index = self.rng.choice((self.top(), 0, self.rng.randrange(0, self.top() + 1)))
        layer = self.chain.layers[index]
        old = len(self.contents[index])
        new = self.rng.choice((old + SECTOR, old * 2, old // 2, old - SECTOR, old + 5 * 1024 * 1024,
                               self.rng.randrange(SECTOR, 2 * old, SECTOR)))
        new = max(SECTOR, new // SECTOR * SECTOR)
        if layer.cluster_size < 2048:
            new = min(new, 6 * 1024 * 1024)
        words = ["resize", "--shrink", "--allow-backing", self.images, "--format", layer.fmt,
                 self.path(index), new]
        kept = min(old, new)
        self.steady = index

        def judge(complete):
            found = self.content_of(self.path(index), layer.fmt)
            expect(len(found) == new if complete else len(found) in (old, new),
                   f"size {len(found)} after {' '.join(map(str, words))}")
            expect(found[:kept] == self.contents[index][:kept],
                   f"layer {index}: content changed by {' '.join(map(str, words))}")
            if len(found) > old:
                expect(not any(found[old:]), f"layer {index}: new space is not zero")
            self.untouched(range(0, index))

        self.perform(words, judge)
        if new < old:  # what was cut off does not come back
            self.run("resize", "--allow-backing", self.images, "--format", layer.fmt, self.path(index), old)
            found = self.content_of(self.path(index), layer.fmt)
            expect(not any(found[new:]), f"layer {index}: old bytes are back after a growth")
            self.check_all(False)

    def play(self):
        self.builder.build()
        self.note()
        self.steady = self.top() - 1
        verb = self.rng.choice((self.commit, self.commit, self.commit, self.stream, self.stream,
                                self.rebase, self.rebase, self.rebase_unsafe, self.resize,
                                self.resize))
        verb()
        return verb.__name__


def run_case(seed, settings):
    """(status, text) of one case."""
    folder = tempfile.mkdtemp(prefix="qoffline-", dir=settings.folder)
    try:
        name = Case(seed, settings, folder).play()
        shutil.rmtree(folder)
        return "passed", name
    except SkipCase as skip:
        shutil.rmtree(folder)
        return "skipped", str(skip)
    except Refused as refusal:
        shutil.rmtree(folder)
        return "passed", "refused: " + str(refusal)[-60:]
    except (Failure, ToolError, subprocess.TimeoutExpired) as error:
        return "failed", f"{error} | kept: {folder}"
    except Exception:  # pylint: disable=broad-except
        return "failed", f"{traceback.format_exc()} | kept: {folder}"


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--kill", action="store_true", help="kill the verb at random instants first")
    parser.add_argument("--kill-span", type=float, default=0.15, metavar="SECONDS")
    parser.add_argument("--qchainctl", default=os.path.join(ROOT, "build", "qchainctl"))
    settings = parser.parse_args()
    settings.qchainctl = os.path.abspath(settings.qchainctl)
    settings.folder = os.environ.get("TMPDIR") or ("/dev/shm" if os.access("/dev/shm", os.W_OK) else "/tmp")
    if not shutil.which("qemu-img") or not os.access(settings.qchainctl, os.X_OK):
        print("offline: skipped: qemu-img or qchainctl not found")
        return 77
    print(f"offline: base seed {settings.seed}, {settings.count} cases", flush=True)
    totals = collections.Counter()
    verbs = collections.Counter()
    with concurrent.futures.ProcessPoolExecutor(max_workers=settings.jobs) as pool:
        cases = {pool.submit(run_case, settings.seed + i, settings): settings.seed + i
                 for i in range(settings.count)}
        for case in concurrent.futures.as_completed(cases):
            status, text = case.result()
            totals[status] += 1
            if status == "failed":
                print(f"FAIL seed {cases[case]}: {text} | repeat: tests/diff/offline.py --count 1 "
                      f"--seed {cases[case]}{' --kill' if settings.kill else ''}", flush=True)
            else:
                verbs[text.split(":")[0]] += 1
    print("offline: " + ", ".join(f"{name} {n}" for name, n in sorted(verbs.items())))
    print(f"offline: {totals['passed']} passed, {totals['failed']} failed, {totals['skipped']} skipped")
    return 1 if totals["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
