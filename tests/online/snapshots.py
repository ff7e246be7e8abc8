#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Online snapshots under random I/O of several clients, against a model; with kill -9 too."""

import argparse
import asyncio
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import traceback

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "..", "lib"), os.path.join(HERE, "..", "control")]

from harness import Qmp, expect, wait_until
from model import SECTOR, Model
from nbdclient import FLAG_SEND_WRITE_ZEROES, NbdClient, NbdDisconnected, NbdError

UNIT = 8  # sectors: half of the disk is owned by clients in turn, unit by unit
CLIENTS = 4
LAST = "last"  # no act may follow


class Case:
    """One seed: a chain, clients, snapshots, and what must be there in the end."""

    acts = 5  # of a session, at most

    def __init__(self, seed, build, folder, kill):
        self.random = random.Random(seed)
        self.build = build
        self.folder = folder
        self.kill = kill
        self.size = self.random.choice([4, 8, 12]) << 20
        self.model = Model(self.size)
        self.child = None
        self.environment = {}  # of the daemon, beside ours
        self.layers = []  # file names, the base first
        self.made = 0  # overlays
        self.snapshots = []  # (layer, tick before, tick after)
        self.running = True

    def path(self, name):
        return os.path.join(self.folder, name)

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

    # ---- clients -------------------------------------------------------------

    def pick_range(self, client):
        """Sectors that only this client writes: units in turn, or a region of its own."""
        half = self.model.sectors // 2
        if self.random.random() < 0.6:
            unit = self.random.randrange(half // UNIT // CLIENTS) * CLIENTS + client
            start = self.random.randrange(UNIT)
            return unit * UNIT + start, self.random.randint(1, UNIT - start)
        share = half // CLIENTS
        length = self.random.choice([8, 128, 256, 512, 1024])
        start = self.random.randrange(0, share - length + 1, 8)
        return half + client * share + start, length

    async def run_client(self, client):
        nbd = None
        try:
            nbd = await NbdClient.connect(self.path("nbd"))
            while self.running:
                await self.one_request(nbd, client)
        except (NbdDisconnected, ConnectionError):
            if not self.kill:
                raise
        finally:
            if nbd:
                await nbd.abandon()

    async def one_request(self, nbd, client):
        kind = self.random.random()
        if kind < 0.1:
            await nbd.flush()
            return
        first, sectors = self.pick_range(client)
        if kind < 0.2:
            await self.check_read(nbd, first, sectors)
            return
        zero = kind < 0.3 and nbd.has(FLAG_SEND_WRITE_ZEROES)
        write = self.model.issue(first, sectors, zero)
        if zero:
            await nbd.write_zeroes(first * SECTOR, sectors * SECTOR)
        else:
            await nbd.write(first * SECTOR, write.data(), 1 if kind > 0.9 else 0)
        self.model.ack(write)

    async def check_read(self, nbd, first, sectors):
        """What a client reads of its own sectors is what it wrote last."""
        content = await nbd.read(first * SECTOR, sectors * SECTOR)
        for i in range(sectors):
            history = self.model.history.get(first + i)
            wanted = bytes(SECTOR)
            if history and not history[-1].zero:
                at = (first + i - history[-1].first) * SECTOR
                wanted = history[-1].data()[at:at + SECTOR]
            expect(content[i * SECTOR:(i + 1) * SECTOR] == wanted,
                   f"sector {first + i} reads back wrong")

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

    def device_content(self):
        """What the daemon shows, which has just been started after a kill."""
        async def read():
            nbd = await NbdClient.connect(self.path("nbd"))
            parts = [bytes(await nbd.read(at, min(1 << 20, self.size - at)))
                     for at in range(0, self.size, 1 << 20)]
            await nbd.abandon()
            return b"".join(parts)
        return asyncio.run(read())

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
            content = self.device_content()
            self.model.check_present(content, "device after kill -9")
            self.stop()
            self.check_all()
            self.model.forget_unacked(content)
            self.snapshots.clear()  # their histories are cut now


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--kill", action="store_true")
    parser.add_argument("--keep", action="store_true")
    args = parser.parse_args()
    failed = 0
    for seed in range(args.seed, args.seed + args.count):
        folder = tempfile.mkdtemp(prefix="qchain-online-", dir="/dev/shm")
        case = Case(seed, os.path.abspath(args.build), folder, args.kill)
        try:
            case.run_case()
            print(f"ok {seed}: {len(case.layers)} layers, {len(case.model.writes)} writes",
                  flush=True)
        except Exception as error:
            failed += 1
            traceback.print_exc()
            again = " --kill" if args.kill else ""
            print(f"FAIL {seed}: {error}; again: tests/online/snapshots.py --build {args.build} "
                  f"--seed {seed} --count 1{again}", flush=True)
        finally:
            case.end()
            if not (args.keep and failed):
                shutil.rmtree(folder)
            else:
                print(f"kept {folder}")
    print(f"online: {args.count - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
