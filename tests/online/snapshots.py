#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Online snapshots under random I/O of several clients, against a model; with kill -9 too."""

import asyncio
import json
import os
import random
import socket
import subprocess
import sys
import threading

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "..", "lib"), os.path.join(HERE, "..", "control")]

from guests import CLIENTS, Guests
from harness import Qmp, expect, wait_until
from model import Model
from runner import main

LAST = "last"  # no act may follow


class Case(Guests):
    """One seed: a chain, clients, snapshots, and what must be there in the end."""

    acts = 5  # of a session, at most

    def __init__(self, seed, build, folder, kill):
        rng = random.Random(seed)
        self.size = rng.choice([4, 8, 12]) << 20
        super().__init__(rng, Model(self.size), os.path.join(folder, "nbd"), kill)
        self.build = build
        self.folder = folder
        self.child = None
        self.environment = {}  # of the daemon, beside ours
        self.layers = []  # file names, the base first
        self.made = 0  # overlays
        self.snapshots = []  # (layer, tick before, tick after)

    def path(self, name):
        return os.path.join(self.folder, name)

    def told(self):
        return f"{self.made} overlays"

    # ---- images ------------------------------------------------------------

    def create(self, name, backing):
        cluster = self.random.choice([4096, 16384, 65536, 65536, 131072, 1048576])
        options = f"cluster_size={cluster}"
        if cluster >= 16384 and self.random.random() < 0.5:
            options += ",extended_l2=on"
        words = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", options]
        if backing:
            form = "raw" if backing.endswith(".raw") else "qcow2"
            words += ["-b", backing, "-F", form]
        subprocess.run(words + [self.path(name), str(self.size)], check=True)

    def create_first(self):
        name = "l0.raw" if self.random.random() < 0.15 else "l0.qcow2"
        if name.endswith(".raw"):
            with open(self.path(name), "wb") as raw:
                raw.truncate(self.size)
        else:
            self.create(name, None)
        self.layers = [name]

    # ---- the daemon ----------------------------------------------------------

    def start(self):
        for name in ("nbd", "qmp"):
            if os.path.exists(self.path(name)):
                os.unlink(self.path(name))
        top = self.layers[-1]
        words = [os.path.join(self.build, "qchaind"), "--qmp", self.path("qmp"), "--export",
                 f"nbd,socket={self.path('nbd')}", "--wait"]
        if self.kill:
            words += ["--intent-log", self.path("intent.log")]
        if top.endswith(".raw"):
            words += ["--format", "raw"]
        if self.random.random() < 0.3:
            words += ["--cache-size", "4K"]
        with open(self.path("output"), "ab") as output:
            self.child = subprocess.Popen(words + [self.path(top)], stdin=subprocess.DEVNULL,
                                          stdout=output, stderr=output,
                                          env={**os.environ, **self.environment})
        wait_until(lambda: self.answers() or self.child.poll() is not None, "the daemon serves")
        expect(self.child.poll() is None, "the daemon ended at start: " + self.last_line())

    def answers(self):
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(self.path("nbd")) == 0

    def last_line(self):
        with open(self.path("output"), encoding="utf-8", errors="replace") as output:
            return (output.read().strip().splitlines() or [""])[-1]

    def stop(self):
        self.child.terminate()
        expect(self.child.wait(60) == 0, "the daemon failed at its end: " + self.last_line())

    # ---- snapshots -----------------------------------------------------------

    def take_snapshot(self, qmp):
        """As rule D1: format, then the record says what is top, then the switch."""
        self.made += 1
        name = f"l{self.made}.qcow2"
        old = self.layers[-1]
        self.create(name, old)
        added = qmp.command("blockdev-add", **{
            "driver": "qcow2", "node-name": name,
            "file": {"driver": "file", "filename": self.path(name)}})
        expect(added == {"return": {}}, f"blockdev-add: {added}")
        before = self.model.tick
        self.layers.append(name)
        answer = qmp.command("blockdev-snapshot", node=old, overlay=name)
        expect(answer == {"return": {}}, f"blockdev-snapshot: {answer}")
        self.snapshots.append((old, before, self.model.tick))

    def wait_sealed(self, qmp):
        def states():
            nodes = qmp.command("query-named-block-nodes")["return"]
            return [node["state"] for node in nodes]
        wait_until(lambda: "sealing" not in states(), "all snapshots are sealed")

    def act(self, qmp):
        self.take_snapshot(qmp)
        if self.random.random() < 0.5:
            self.wait_sealed(qmp)

    def snapshot_session(self, count):
        """Runs on a thread of its own; ends with the daemon."""
        try:
            qmp = Qmp(self.path("qmp"))
            for _ in range(count):
                pause = self.random.random() * 0.15
                self.stopped.wait(pause)
                if self.act(qmp) is LAST:
                    break
            if self.kill:
                self.stopped.wait(self.random.random() * 0.05)
                self.child.kill()
            else:
                self.wait_sealed(qmp)
                self.stopped.wait(0.1)
                self.check_tree(qmp)
            qmp.close()
        finally:
            self.running = False

    def check_tree(self, qmp):
        nodes = qmp.command("query-named-block-nodes")["return"]
        seen = [os.path.basename(node["file"]) for node in nodes]
        expect(seen == self.layers[::-1], f"the daemon shows {seen}")
        if self.layers[0].endswith(".raw") and len(self.layers) == 1:
            return
        found = self.seen_layers()
        expect(found == self.layers, f"qemu-img sees {found}")

    def seen_layers(self):
        info = json.loads(subprocess.run(
            ["qemu-img", "info", "-U", "--backing-chain", "--output=json",
             self.path(self.layers[-1])], check=True, stdout=subprocess.PIPE).stdout)
        return [os.path.basename(image["filename"]) for image in info][::-1]

    # ---- the whole -------------------------------------------------------------

    async def session(self, count):
        self.stopped = threading.Event()
        self.running = True
        self.start()
        tasks = [asyncio.create_task(self.run_client(c)) for c in range(CLIENTS)]
        taker = asyncio.get_running_loop().run_in_executor(None, self.snapshot_session, count)
        done = await asyncio.gather(taker, *tasks, return_exceptions=True)
        for result in done:
            if isinstance(result, BaseException):
                raise result

    def content(self, name):
        raw = self.path("content")
        form = "raw" if name.endswith(".raw") else "qcow2"
        subprocess.run(["qemu-img", "convert", "-f", form, "-O", "raw", self.path(name), raw],
                       check=True)
        with open(raw, "rb") as image:
            return image.read()

    def check_images(self):
        for name in self.layers:
            if name.endswith(".raw"):
                continue
            check = subprocess.run(["qemu-img", "check", "-f", "qcow2", self.path(name)],
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            expect(check.returncode == 0, f"{name}: qemu-img check: {check.stdout.strip()}")

    def check_all(self):
        self.check_images()
        self.model.check_present(self.content(self.layers[-1]), "device")
        for name, before, after in self.snapshots:
            self.model.check_snapshot(self.content(name), before, after, name)

    def settle_layers(self):
        """After a kill."""

    def end(self):
        if self.child:
            self.child.kill()
            self.child.wait()

    def run_case(self):
        self.create_first()
        if not self.kill:
            asyncio.run(self.session(self.random.randint(2, self.acts)))
            self.stop()
            self.check_all()
            return
        for _ in range(2):
            asyncio.run(self.session(self.random.randint(1, self.acts // 2 + 1)))
            self.child.wait()
            self.settle_layers()
            self.start()
            content = self.read_device(self.size)
            self.model.check_present(content, "device after kill -9")
            self.stop()
            self.check_all()
            self.model.forget_unacked(content)
            self.snapshots.clear()  # their histories are cut now


if __name__ == "__main__":
    sys.exit(main(Case, "tests/online/snapshots.py", __doc__))
