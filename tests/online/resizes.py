#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A chain grows beside random I/O, snapshots and merges, against a model; with kill -9 too."""

import os
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "..", "lib"), os.path.join(HERE, "..", "control")]

from harness import expect
from merges import MergeCase
from model import SECTOR
from runner import main
from snapshots import LAST

MIB = 1 << 20
MOST = 48 * MIB
CRASH_POINTS = ("resize.table", "resize.zeroed", "resize.sized")


class ResizeCase(MergeCase):
    """As MergeCase, on sizes that fit no cluster, some over a backing that is longer and not empty there."""

    acts = 10

    def __init__(self, *words):
        super().__init__(*words)
        self.size += SECTOR * self.random.randrange(0, 400)
        self.model.sectors = self.size // SECTOR
        self.first_sectors = self.model.sectors
        self.next_size = None
        self.sizes = {}  # of layers
        self.grown = 0

    def told(self):
        return f"grown {self.grown} times, {super().told()}"

    def create(self, name, backing):
        super().create(name, backing)
        self.sizes[name] = self.size

    def create_first(self):
        super().create_first()
        self.sizes[self.layers[0]] = self.size
        if self.random.random() < 0.6:
            self.create_longer()

    def create_longer(self):
        """What the base has beyond the end of the layer above it is nobody's."""
        base = self.layers[0]
        form = "raw" if base.endswith(".raw") else "qcow2"
        longer = self.size + self.random.randrange(1, 20 * MIB // SECTOR) * SECTOR
        subprocess.run(["qemu-img", "resize", "-q", "-f", form, self.path(base), str(longer)], check=True)
        subprocess.run(["qemu-io", "-f", form, "-c", f"write -P 77 {self.size} {longer - self.size}",
                        self.path(base)], check=True, stdout=subprocess.DEVNULL)
        self.create("l1.qcow2", base)
        self.sizes[base] = longer
        self.layers.append("l1.qcow2")
        self.made = 1

    def start(self):
        os.environ.pop("QCHAIN_CRASH_POINT", None)
        self.will_die = self.kill and self.random.random() < 0.5
        if self.will_die:
            os.environ["QCHAIN_CRASH_POINT"] = self.random.choice(CRASH_POINTS)
        super().start()
        os.environ.pop("QCHAIN_CRASH_POINT", None)

    # ---- growing ---------------------------------------------------------------------

    def adopt_size(self):
        self.regions.append((self.size // SECTOR, (self.next_size - self.size) // SECTOR))
        self.size = self.sizes[self.layers[-1]] = self.next_size
        self.model.sectors = self.size // SECTOR
        self.next_size = None
        self.grown += 1

    def resize(self, qmp):
        self.wait_sealed(qmp)
        top = self.layers[-1]
        most = self.random.choice([64, 2048, 16 * 2048])
        self.next_size = min(MOST, self.size + self.random.randint(1, most) * SECTOR)
        answer = qmp.command("block_resize", **{"node-name": top, "size": self.next_size})
        if answer is None:
            expect(self.kill, "the daemon ended in the middle of block_resize: " + self.last_line())
            return LAST
        if top.endswith(".raw"):
            expect("must be qcow2" in answer["error"]["desc"], f"a raw layer grows: {answer}")
            self.next_size = None
            return None
        expect(answer == {"return": {}}, f"block_resize: {answer}")
        self.adopt_size()
        return None

    def is_as_long(self, name):
        return self.sizes[name] == self.size

    def commit(self, qmp):
        """A base that is shorter than what comes down grows before; not a raw one."""
        base = self.layers[0]
        if base.endswith(".raw") and self.sizes[base] < self.size:
            return None
        before = list(self.layers)
        ended = super().commit(qmp)
        for name in set(before) & set(self.layers[:-1]):
            self.sizes[name] = max(self.sizes[name], self.size)
        return ended

    def may_die(self):
        """The base of a commit grows, too, and comes to the crash points of that."""
        return self.will_die or super().may_die()

    def act(self, qmp):
        if self.random.random() < 0.4 and self.size < MOST:
            return self.resize(qmp)
        return super().act(qmp)

    # ---- judging ---------------------------------------------------------------------

    def settle_layers(self):
        super().settle_layers()
        if not self.next_size:
            return
        seen = self.virtual_size(self.layers[-1])
        expect(seen in (self.size, self.next_size), f"size {seen}, must be {self.size} or {self.next_size}")
        if seen == self.next_size:
            self.adopt_size()
        self.next_size = None

    def virtual_size(self, name):
        with open(self.path(name), "rb") as image:
            return int.from_bytes(image.read(32)[24:], "big")

    def content(self, name):
        """A snapshot ends where the device did: what came later is as never written."""
        content = super().content(name)
        if name == self.layers[-1]:
            expect(len(content) == self.size, f"{name} has {len(content)} bytes, expected {self.size}")
        return content + bytes(max(0, self.size - len(content)))


if __name__ == "__main__":
    sys.exit(main(ResizeCase, "tests/online/resizes.py", __doc__))
