#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""What the NBD cases share: registering them, servers to talk to, checks."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time

import nbdclient as nbd
from nbdwire import Wire
from qemutools import Deadline
from serverproc import ServerProcess

MIB = 1 << 20
GIB = 1 << 30
DATA_BYTES = 80 * MIB
ZERO_BYTES = 8 * GIB
CASE_SECONDS = 120

CASES = []


class Skip(Exception):
    """The case cannot run here; the text says why."""


class Failed(Exception):
    """A check did not hold."""


def case(function):
    """Register a test case; it gets the Suite."""
    CASES.append(function)
    return function


def equal(what, value, expected):
    if value != expected:
        raise Failed(f"{what}: {value!r}, expected {expected!r}")


def true(what, value):
    if not value:
        raise Failed(f"{what}: does not hold")


def tool(name):
    """Path of a client that the case needs."""
    path = shutil.which(name)
    if not path:
        raise Skip(f"{name} is not installed")
    return path


class Server:
    """One server under test, exporting 'data', 'zero' or 'error'."""

    def __init__(self, suite, kind, read_only, name):
        self.kind = kind
        self.socket = os.path.join(suite.directory, "nbd.sock")
        self.log = os.path.join(suite.directory, "server.log")
        self.file = None
        self.size = {"data": DATA_BYTES, "zero": ZERO_BYTES, "error": 64 * MIB}[kind]
        argv = suite.server_argv(self, read_only, name)
        self.process = ServerProcess(argv, self.socket, self.log, suite.deadline)
        self.suite = suite

    def __enter__(self):
        self.process.start()
        return self

    def __exit__(self, kind, *_):
        try:
            if kind is None and not self.process.has_ended():
                self.process.stop()
        finally:
            self.process.kill()
        self.process.check_sanitizers()

    def wire(self, **options):
        """A raw connection in its handshake."""
        return Wire(self.socket, **options)

    def open(self, **options):
        """A raw connection in transmission."""
        return Wire(self.socket).negotiate(**options)

    def need(self, flag, what):
        with self.open() as wire:
            if not wire.flags & flag:
                raise Skip(f"export has no {what}")

    def uri(self, export=""):
        return f"nbd+unix:///{export}?socket={self.socket}"

    @property
    def pid(self):
        return self.process._child.pid  # pylint: disable=protected-access

    def signal(self, number):
        os.kill(self.pid, number)

    def status(self):
        """What the export says about itself."""
        if not self.suite.is_bringup(self.kind):
            return self.query_export()
        before = self.output().count('"id"')
        self.signal(signal.SIGUSR1)
        while self.output().count('"id"') == before:
            self.suite.deadline.left()
            time.sleep(0.01)
        return json.loads([x for x in self.output().splitlines() if '"id"' in x][-1])

    def query_export(self):
        """The same from qchaind, which has one export."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(self.suite.deadline.left())
            sock.connect(self.suite.qmp_path())
            stream = sock.makefile("rw")
            stream.readline()
            for command in ("qmp_capabilities", "query-block-exports"):
                stream.write(json.dumps({"execute": command}) + "\n")
                stream.flush()
                answer = json.loads(stream.readline())
            return answer["return"][0]

    def output(self):
        with open(self.log, encoding="utf-8", errors="replace") as log:
            return log.read()

    def wait_until_idle(self):
        """Until all connections are gone."""
        self.wait_for_connections(0)

    def wait_for_connections(self, count):
        """Until there are @count, of which those that a test has closed are none."""
        while self.status()["connections"] != count:
            self.suite.deadline.left()
            time.sleep(0.02)

    def alive(self):
        """A good client gets an answer."""
        with self.open() as wire:
            reply = wire.call(nbd.CMD_READ, 0, 4096)
            expected = 5 if self.kind == "error" else 0
            equal("error of a read by another client", reply.error, expected)

    def content(self, offset, length):
        """What the file below holds (kind 'data' of nbd-bringup)."""
        with open(self.file, "rb") as file:
            file.seek(offset)
            return file.read(length)


class Suite:
    """Runs cases one after the other in a directory of their own."""

    def __init__(self, bringup, qchaind, seed):
        self.bringup = bringup
        self.qchaind = qchaind
        self.random = random.Random(seed)
        self.directory = None
        self.deadline = None
        self.counts = {"passed": 0, "failed": 0, "skipped": 0}

    def is_bringup(self, kind):
        return not (kind == "data" and self.qchaind)

    def server(self, kind="data", read_only=False, name="vm1"):
        return Server(self, kind, read_only, name)

    def server_argv(self, server, read_only, name):
        if not self.is_bringup(server.kind):
            return self.qchaind_argv(server, read_only, name)
        if not self.bringup:
            raise Skip("needs --bringup")
        argv = [self.bringup, "--name", name, "--description", "a disk"]
        argv += ["--read-only"] if read_only else []
        argv += [server.socket]
        if server.kind != "data":
            return argv + [server.kind, str(server.size)]
        server.file = self.data_file()
        return argv + ["linear", server.file]

    def qchaind_argv(self, server, read_only, name):
        top = os.path.join(self.directory, "top.qcow2")
        if not os.path.exists(top):
            self.run(tool("qemu-img"), "convert", "-f", "raw", "-O", "qcow2",
                     self.data_file(), top)
        server.file = self.data_file()
        export = f"nbd,socket={server.socket},name={name},description=a disk"
        argv = [self.qchaind, "--qmp", self.qmp_path(), "--export", export]
        return argv + (["--read-only"] if read_only else []) + [top]

    def qmp_path(self):
        return os.path.join(self.directory, "qmp.sock")

    def data_file(self):
        path = os.path.join(self.directory, "data.raw")
        if not os.path.exists(path):
            block = self.random.randbytes(MIB)
            with open(path, "wb") as file:
                for i in range(DATA_BYTES // MIB):
                    file.write(i.to_bytes(8, "big") + block[8:])
        return path

    def run(self, *argv, accept=(0,)):
        """Run a client; what it prints. nbdsh wants the system's Python."""
        env = dict(os.environ, PATH="/usr/bin:" + os.environ.get("PATH", ""))
        done = subprocess.run([str(a) for a in argv], stdout=subprocess.PIPE, text=True,
                              stderr=subprocess.STDOUT, timeout=self.deadline.left(),
                              env=env, check=False)
        if done.returncode not in accept:
            raise Failed(f"{argv[0]}: status {done.returncode}: {done.stdout.strip()[-500:]}")
        return done.stdout

    def run_case(self, function):
        name = function.__name__
        self.deadline = Deadline(CASE_SECONDS)
        begin = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="nbd-") as self.directory:
            try:
                function(self)
                outcome, text = "passed", ""
            except Skip as error:
                outcome, text = "skipped", f": {error}"
            except Exception as error:  # pylint: disable=broad-except
                outcome, text = "failed", f": {type(error).__name__}: {error}"
                text += self.log_tail()
        self.counts[outcome] += 1
        print(f"{outcome:8}{name} ({time.monotonic() - begin:.1f} s){text}", flush=True)

    def log_tail(self):
        path = os.path.join(self.directory, "server.log")
        if not os.path.exists(path):
            return ""
        with open(path, encoding="utf-8", errors="replace") as log:
            return "".join(f"\n    {line.rstrip()}" for line in log.readlines()[-40:])
