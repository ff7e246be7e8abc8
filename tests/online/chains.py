#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Online merges of random chains of all kinds of images, with a guest that writes, and QEMU's
tools as the oracle.

Each case builds a chain with qemu-img and qemu-io as tests/diff/offline.py does, serves it, merges
layers while one client writes all the time, and asks qemu-img: is every image free of errors, has
the device what it must have, are the images below as they were.

Exit status: 0 all passed, 1 a case failed, 77 nothing could be tested.
"""

import argparse
import asyncio
import collections
import os
import shutil
import subprocess
import sys
import tempfile
import traceback

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE] + [os.path.join(HERE, "..", name) for name in ("lib", "control", "diff")]

import offline
from chainbuild import SkipCase
from harness import Failure, Qmp, expect, listens, wait_until
from nbdclient import FLAG_SEND_WRITE_ZEROES, NbdClient
from qemutools import ToolError

SECTOR = 512
LONGEST = 200000
REFUSALS = ("is shorter", "what grows in use must be qcow2", "has no free room", "internal snapshots",
            "served read-only", "cannot be served")


class ChainCase(offline.Case):
    """One chain, one merge."""

    def __init__(self, seed, settings, folder):
        super().__init__(seed, settings, folder)
        self.child = None
        self.running = True
        self.committed = None

    def place(self, name):
        return os.path.join(self.folder, name)

    # ---- the daemon and its guest ------------------------------------------------

    def start(self):
        words = [self.settings.qchaind, "--qmp", self.place("qmp"), "--export",
                 f"nbd,socket={self.place('nbd')}", "--allow-backing", self.images,
                 self.path(self.top())]
        with open(self.place("output"), "ab") as output:
            self.child = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=output,
                                          stderr=output)
        wait_until(lambda: listens(self.child, self.place("nbd")) or self.child.poll() is not None,
                   "the daemon serves")
        expect(self.child.poll() is None, "the daemon ended at start: " + self.last_line())

    def last_line(self):
        with open(self.place("output"), encoding="utf-8", errors="replace") as output:
            return (output.read().strip().splitlines() or [""])[-1]

    def end(self):
        if self.child:
            self.child.kill()
            self.child.wait()

    async def guest(self):
        """Writes, zeroes and reads of one client; the content of the device is known."""
        nbd = await NbdClient.connect(self.place("nbd"))
        size = len(self.device) // SECTOR * SECTOR
        while self.running:
            length = self.rng.randrange(SECTOR, min(size, LONGEST) + SECTOR, SECTOR)
            offset = self.rng.randrange(0, size - length + SECTOR, SECTOR)
            kind = self.rng.random()
            if kind < 0.2:
                found = await nbd.read(offset, length)
                expect(found == self.device[offset:offset + length], f"read at {offset} is wrong")
                continue
            zero = kind < 0.4 and nbd.has(FLAG_SEND_WRITE_ZEROES)
            data = bytes(length) if zero else self.rng.randbytes(length)
            if zero:
                await nbd.write_zeroes(offset, length)
            else:
                await nbd.write(offset, data, 0)
            self.device[offset:offset + length] = data
            if kind > 0.9:
                await asyncio.sleep(0.002)
        await nbd.close()

    # ---- merges ---------------------------------------------------------------------

    def nodes(self, qmp):
        return [node["node-name"] for node in qmp.command("query-named-block-nodes")["return"]]

    def run_job(self, qmp, command, **words):
        answer = qmp.command(command, **{"job-id": "merge", "auto-dismiss": False, **words})
        if "error" in answer and any(text in answer["error"]["desc"] for text in REFUSALS):
            raise offline.Refused(answer["error"]["desc"])
        expect(answer == {"return": {}}, f"{command} {words}: {answer}")

        def row():
            return qmp.command("query-jobs")["return"][0]
        wait_until(lambda: row()["status"] == "concluded", "the job has ended")
        expect("error" not in row(), f"{command}: {row()}")

    def stream(self, qmp, names):
        base = self.rng.choice((None, self.rng.randrange(0, self.top())))
        words = {} if base is None else {"base-node": names[base]}
        self.run_job(qmp, "block-stream", device=names[-1], **words)
        self.above, self.base, self.untouched_below = self.top(), base, self.top()
        return ([] if base is None else names[:base + 1]) + names[-1:]

    def commit(self, qmp, names):
        top = self.rng.randrange(1, self.top())
        base = self.rng.randrange(0, top)
        self.run_job(qmp, "block-commit", device=names[-1],
                     **{"top-node": names[top], "base-node": names[base]})
        self.above, self.base, self.untouched_below = top + 1, base, base
        self.steady = base - 1
        self.committed = top
        return names[:base + 1] + names[top + 1:]

    def merge(self):
        """On a thread of its own; ends the guest."""
        try:
            qmp = Qmp(self.place("qmp"))
            names = self.nodes(qmp)[::-1]
            verb = self.stream if self.top() < 2 or self.rng.random() < 0.4 else self.commit
            left = verb(qmp, names)
            expect(self.nodes(qmp)[::-1] == left, f"nodes {self.nodes(qmp)}, expected {left}")
            qmp.close()
        finally:
            self.running = False

    async def session(self):
        merge = asyncio.get_running_loop().run_in_executor(None, self.merge)
        for result in await asyncio.gather(merge, self.guest(), return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

    def play(self):
        self.builder.build()
        self.note()
        self.steady = self.top() - 1
        self.device = bytearray(self.contents[-1])
        self.start()
        try:
            asyncio.run(self.session())
        finally:
            self.child.terminate()
        expect(self.child.wait(60) == 0, "the daemon failed at its end: " + self.last_line())
        self.check_all(False)
        self.same(self.top(), self.device, "the device")
        self.untouched(range(0, self.untouched_below))
        self.stands_on(self.above, self.base)
        if self.committed is not None:
            for index in range(self.committed, self.top()):
                self.same(index, self.contents[index], f"layer {index} after the commit")
            self.same(self.base, self.contents[self.committed], "the base after the commit",
                      len(self.contents[self.committed]))


def run_case(seed, settings):
    """(status, text) of one case."""
    folder = tempfile.mkdtemp(prefix="qchain-chains-", dir="/dev/shm")
    case = ChainCase(seed, settings, folder)
    try:
        case.play()
        result = "passed", "merged"
    except (SkipCase, offline.Refused) as skip:
        result = "skipped", str(skip)
    except (Failure, offline.Failure, ToolError) as error:
        result = "failed", str(error)
    except Exception:  # pylint: disable=broad-except
        result = "failed", traceback.format_exc()
    case.end()
    if result[0] != "failed" or not settings.keep:
        shutil.rmtree(folder)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--keep", action="store_true")
    settings = parser.parse_args()
    settings.kill = False
    settings.qchainctl = os.path.abspath(os.path.join(settings.build, "qchainctl"))
    settings.qchaind = os.path.abspath(os.path.join(settings.build, "qchaind"))
    totals = collections.Counter()
    for seed in range(settings.seed, settings.seed + settings.count):
        status, text = run_case(seed, settings)
        totals[status] += 1
        if status == "failed":
            print(f"FAIL seed {seed}: {text} | repeat: tests/online/chains.py --build "
                  f"{settings.build} --count 1 --seed {seed}", flush=True)
        elif status == "skipped":
            print(f"skipped {seed}: {text[-120:]}", flush=True)
    print(f"chains: {totals['passed']} passed, {totals['failed']} failed, {totals['skipped']} skipped")
    return 1 if totals["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
