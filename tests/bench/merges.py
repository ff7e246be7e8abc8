# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest beside a merge, each alone and both together: fio over NBD, block-commit by QMP."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "control"))

from harness import Failure, Qmp  # noqa: E402  (needs the path above)
from peers import PeerError, START_LIMIT_S  # noqa: E402

POLL_S = 0.01


class Server:
    """qchaind on a copy of a chain, so that each measurement finds the same."""

    def __init__(self, qchaind, top):
        self.folder = os.path.dirname(top) + "-copy"
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(os.path.dirname(top), self.folder)
        self.nbd, self.qmp_path = (os.path.join(self.folder, name) for name in ("nbd.sock", "qmp.sock"))
        self.child = subprocess.Popen([qchaind, "--qmp", self.qmp_path, "--export", f"nbd,socket={self.nbd}",
                                       os.path.join(self.folder, os.path.basename(top))],
                                      stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.qmp = None

    def __enter__(self):
        limit = time.monotonic() + START_LIMIT_S
        while not os.path.exists(self.nbd):
            if self.child.poll() is not None or time.monotonic() > limit:
                raise PeerError("qchaind did not start")
            time.sleep(POLL_S)
        self.qmp = Qmp(self.qmp_path)
        return self

    def __exit__(self, *unused):
        self.child.kill()
        self.child.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def layers(self):
        return [node["node-name"] for node in self.qmp.command("query-named-block-nodes")["return"]]

    def commit(self, name):
        """Once the base is sealed after the one before."""
        limit = time.monotonic() + START_LIMIT_S
        while True:
            answer = self.qmp.command("block-commit", **{"job-id": "m", "device": self.layers()[0],
                                                         "top-node": name, "auto-dismiss": False})
            if "error" not in answer:
                return
            if "sealed" not in answer["error"]["desc"] or time.monotonic() > limit:
                raise PeerError(f"block-commit: {answer['error']['desc']}")
            time.sleep(POLL_S)

    def merge_all(self):
        """Every layer between the active one and the base, one after the other, into it: bytes a second."""
        moved, start = 0, time.monotonic()
        for name in self.layers()[-2:0:-1]:
            self.commit(name)
            while True:
                job = self.qmp.command("query-jobs")["return"][0]
                if job["status"] == "concluded":
                    break
                time.sleep(POLL_S)
            if "error" in job:
                raise PeerError(f"block-commit: {job['error']}")
            moved += job["current-progress"]
            self.qmp.command("job-dismiss", id="m")
        return moved / (time.monotonic() - start)


class Guest:
    """fio over NBD on clusters that the active layer has already."""

    def __init__(self, server, depth, span):
        self.words = ["fio", "--name=guest", "--ioengine=nbd", f"--uri=nbd+unix:///?socket={server.nbd}",
                      "--bs=4k", f"--iodepth={depth}", f"--size={span}", "--norandommap",
                      "--output-format=json"]
        self.child = None

    def prepare(self):
        subprocess.run([*self.words, "--rw=write", "--bs=1M"], check=True, stdout=subprocess.DEVNULL)

    def start(self, seconds):
        self.child = subprocess.Popen([*self.words, "--rw=randrw", "--time_based", f"--runtime={seconds}"],
                                      stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    def result(self, interrupt=False):
        if interrupt:
            self.child.send_signal(signal.SIGINT)
        output = self.child.communicate()[0].decode()
        job = json.loads(output[output.index("{"):])["jobs"][0]
        return {"iops": job["read"]["iops"] + job["write"]["iops"],
                "p99_us": max(job[way]["clat_ns"]["percentile"]["99.000000"] for way in ("read", "write")) / 1000}


def guest_alone(qchaind, top, depth, span, seconds):
    with Server(qchaind, top) as server:
        guest = Guest(server, depth, span)
        guest.prepare()
        guest.start(seconds)
        return guest.result()


def merge_alone(qchaind, top):
    with Server(qchaind, top) as server:
        return {"rate": server.merge_all()}


def both(qchaind, top, depth, span):
    """The guest works as long as there is something to merge."""
    with Server(qchaind, top) as server:
        guest = Guest(server, depth, span)
        guest.prepare()
        guest.start(600)
        try:
            time.sleep(0.5)  # it is at work before the first merge begins
            rate = server.merge_all()
        except Failure as error:
            guest.child.kill()
            raise PeerError(str(error)) from error
        return {"rate": rate, **guest.result(interrupt=True)}
