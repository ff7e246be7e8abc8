# SPDX-License-Identifier: GPL-2.0-or-later
"""Merges and snapshots beside a guest, by QMP; the guest is fio over NBD. Also merges without a daemon."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "control"))

from harness import Failure, Qmp, listens  # noqa: E402  (needs the path above)
from peers import PeerError, START_LIMIT_S, process  # noqa: E402

POLL_S = 0.01
MIB = 1 << 20


@contextlib.contextmanager
def copied(top):
    """The same chain in another folder, so that each measurement finds the same."""
    folder = os.path.dirname(top) + "-copy"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(os.path.dirname(top), folder)
    try:
        yield os.path.join(folder, os.path.basename(top))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Server:
    """qchaind on a copy of a chain."""

    def __init__(self, qchaind, top):
        self.copy = copied(top)
        self.top = self.copy.__enter__()
        self.folder = os.path.dirname(self.top)
        self.nbd, self.qmp_path = (os.path.join(self.folder, name) for name in ("nbd.sock", "qmp.sock"))
        self.child = subprocess.Popen([qchaind, "--qmp", self.qmp_path, "--export", f"nbd,socket={self.nbd}",
                                       self.top],
                                      stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.qmp = None

    def __enter__(self):
        limit = time.monotonic() + START_LIMIT_S
        while not listens(self.child, self.nbd):
            if self.child.poll() is not None or time.monotonic() > limit:
                raise PeerError("qchaind did not start")
            time.sleep(POLL_S)
        self.qmp = Qmp(self.qmp_path)
        return self

    def __exit__(self, *unused):
        self.child.kill()
        self.child.wait()
        self.copy.__exit__(None, None, None)

    def layers(self):
        return [node["node-name"] for node in self.qmp.command("query-named-block-nodes")["return"]]

    def command(self, name, **words):
        answer = self.qmp.command(name, **words)
        if "error" in answer:
            raise PeerError(f"{name}: {answer['error']['desc']}")
        return answer["return"]

    def operations(self):
        """How many reads and writes the guest has made."""
        stats = self.command("query-blockstats")[0]["stats"]
        return stats["rd_operations"] + stats["wr_operations"]

    # ---- merges ----

    def commit(self, top, base):
        """Once the base is sealed after the one before."""
        limit = time.monotonic() + START_LIMIT_S
        while True:
            answer = self.qmp.command("block-commit", **{"job-id": "m", "device": self.layers()[0], "top-node": top,
                                                         "base-node": base, "auto-dismiss": False})
            if "error" not in answer:
                return
            if "sealed" not in answer["error"]["desc"] or time.monotonic() > limit:
                raise PeerError(f"block-commit: {answer['error']['desc']}")
            time.sleep(POLL_S)

    def job_until(self, *states):
        """The job, in one of these states."""
        while True:
            job = self.command("query-jobs")[0]
            if job["status"] in states:
                break
            time.sleep(POLL_S)
        if "error" in job:
            raise PeerError(f"block-commit: {job['error']}")
        return job

    def merge_all(self):
        """Every layer between the active one and the base, one after the other, into it: bytes a second."""
        moved, start = 0, time.monotonic()
        *others, base = self.layers()
        for name in others[:0:-1]:
            self.commit(name, base)
            moved += self.job_until("concluded")["current-progress"]
            self.command("job-dismiss", id="m")
        return moved / (time.monotonic() - start)

    def merge_active(self):
        """The active layer into the one below: bytes that were moved."""
        self.commit(*self.layers()[:2])
        self.job_until("ready")
        self.command("job-complete", id="m")
        return self.job_until("concluded")["current-progress"]

    # ---- snapshots ----

    def add_overlay(self, number):
        """A formatted overlay on the active layer, not switched in."""
        old, name = self.layers()[0], f"snap-{number}.qcow2"
        path = os.path.join(self.folder, name)
        subprocess.run(["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", old, path,
                        str(self.size())], check=True)
        self.command("blockdev-add", **{"driver": "qcow2", "node-name": name,
                                        "file": {"driver": "file", "filename": path}})
        return old, name

    def size(self):
        return self.command("query-named-block-nodes")[0]["image"]["virtual-size"]

    def snapshot(self, number):
        """Seconds from "overlay formatted" to "published"."""
        old, name = self.add_overlay(number)
        start = time.monotonic()
        self.command("blockdev-snapshot", node=old, overlay=name)
        return time.monotonic() - start


class Guest:
    """fio over NBD on clusters that the active layer has already."""

    def __init__(self, server, depth, span):
        self.words = ["fio", "--name=guest", "--ioengine=nbd", f"--uri=nbd+unix:///?socket={server.nbd}",
                      "--bs=4k", f"--iodepth={depth}", f"--size={span}", "--norandommap",
                      "--output-format=json"]
        self.child = None

    def prepare(self):
        subprocess.run([*self.words, "--rw=write", "--bs=1M"], check=True, stdout=subprocess.DEVNULL)

    def start(self, seconds, how="randrw"):
        self.child = subprocess.Popen([*self.words, f"--rw={how}", "--time_based", f"--runtime={seconds}"],
                                      stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    def result(self, interrupt=False):
        if interrupt:
            self.child.send_signal(signal.SIGINT)
        output = self.child.communicate()[0].decode()
        job = json.loads(output[output.index("{"):])["jobs"][0]
        ways = [job[way] for way in ("read", "write") if job[way]["total_ios"]]
        return {"iops": sum(way["iops"] for way in ways),
                "p99_us": max(way["clat_ns"]["percentile"]["99.000000"] for way in ways) / 1000,
                "max_us": max(way["clat_ns"]["max"] for way in ways) / 1000}


def guest_alone(qchaind, top, depth, span, seconds):
    with Server(qchaind, top) as server:
        guest = Guest(server, depth, span)
        guest.prepare()
        guest.start(seconds)
        return guest.result()


def guest_with_snapshots(qchaind, top, depth, span, seconds, count):
    """@count snapshots, evenly over the time; a layer is sealed meanwhile."""
    with Server(qchaind, top) as server:
        guest = Guest(server, depth, span)
        guest.prepare()
        start = time.monotonic()
        guest.start(seconds)
        for number in range(count):
            time.sleep(max(0, start + (number + 0.5) * seconds / count - time.monotonic()))
            server.snapshot(number)
        return guest.result()


def merge_alone(qchaind, top):
    with Server(qchaind, top) as server:
        return {"rate": server.merge_all()}


def plain_copy(top):
    """dd of the layers that merge_alone() merges, O_DIRECT both ways: bytes a second."""
    with copied(top) as path:
        folder = os.path.dirname(path)
        names = sorted(os.listdir(folder))[1:-1]
        moved, start = 0, time.monotonic()
        for name in names:
            source = os.path.join(folder, name)
            subprocess.run(["dd", f"if={source}", f"of={source}.copy", "bs=1M", "iflag=direct", "oflag=direct",
                            "status=none"], check=True)
            moved += os.stat(source).st_size
        return {"rate": moved / (time.monotonic() - start)}


@contextlib.contextmanager
def beside(server, guest, how="randrw"):
    """The guest works as long as something else does; it is at work before that begins."""
    enough = server.operations() + 1000
    guest.start(600, how)
    try:
        while server.operations() < enough:
            if guest.child.poll() is not None:
                raise PeerError("fio has ended")
            time.sleep(POLL_S)
        yield
    except (Failure, PeerError):
        guest.child.kill()
        raise


def both(qchaind, top, depth, span):
    with Server(qchaind, top) as server:
        guest = Guest(server, depth, span)
        guest.prepare()
        with beside(server, guest):
            rate = server.merge_all()
        return {"rate": rate, **guest.result(interrupt=True)}


def active_commit(qchaind, top, depth, span):
    """How much is moved of a layer that a guest rewrites all the time, as a share of what it holds."""
    with Server(qchaind, top) as server:
        server.snapshot(0)
        guest = Guest(server, depth, span)
        guest.prepare()
        with beside(server, guest, "randwrite"):
            moved = server.merge_active()
        return {"moved": moved, "share": moved / span, **guest.result(interrupt=True)}


def switch_times(qchaind, top, count):
    """The median of @count switches."""
    with Server(qchaind, top) as server:
        return {"wall_s": sorted(server.snapshot(number) for number in range(count))[count // 2]}


def offline_commit(words, top):
    with copied(top) as path:
        return process([*words, path])
