#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tests of control share: running test functions, daemons, a QMP client."""

import argparse
import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
WAIT_S = 60
ACCEPTS = "00010000"  # in /proc/net/unix, the kernel's __SO_ACCEPTCON


class Skip(Exception):
    """This test cannot run here; the text says why."""


class Failure(Exception):
    """Something is not as it must be."""


def expect(condition, text):
    if not condition:
        raise Failure(text)


def expect_equal(got, wanted, what):
    expect(got == wanted, f"{what} is {got!r}, expected {wanted!r}")


class Writer(threading.Thread):
    """A guest beside the test: write_all() goes on as long as it is running; its error is the test's."""

    def __init__(self):
        super().__init__(daemon=True)
        self.running = True
        self.error = None

    async def write_all(self):
        raise NotImplementedError

    def run(self):
        try:
            asyncio.run(self.write_all())
        except Exception as error:  # pylint: disable=broad-except
            self.error = error

    def end(self):
        self.running = False
        self.join(WAIT_S)
        expect(self.error is None, f"guest: {self.error!r}")


def wait_until(condition, what, seconds=WAIT_S):
    end = time.monotonic() + seconds
    pause = 0.002
    while not condition():
        expect(time.monotonic() < end, f"waited {seconds} s in vain: {what}")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.1)


def open_sockets(pid):
    """Inodes of the sockets that process @pid has; none when it is gone."""
    folder = f"/proc/{pid}/fd"
    try:
        links = [os.readlink(os.path.join(folder, name)) for name in os.listdir(folder)]
    except OSError:
        return set()
    return {link[8:-1] for link in links if link.startswith("socket:[")}


def listens(child, path):
    """Does the process @child listen on the unix socket @path, an absolute name?

    That the name exists is not enough: bind() makes it, and connections are refused until listen(). A
    connection to try would be seen by the server, and one that was killed may listen a moment longer.
    """
    with open("/proc/net/unix", encoding="utf-8", errors="replace") as table:
        rows = [line.rstrip("\n").split(None, 7) for line in table]
    inodes = {row[6] for row in rows if len(row) == 8 and row[3] == ACCEPTS and row[7] == path}
    return bool(inodes and inodes & open_sockets(child.pid))


# ---- QMP -------------------------------------------------------------------


class Qmp:
    """One connection; replies and events in the order in which they came."""

    def __init__(self, path, negotiate=True):
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(WAIT_S)
        self.socket.connect(path)
        self.received = b""
        self.events = []
        self.greeting = self.read()
        if negotiate:
            expect_equal(self.command("qmp_capabilities"), {"return": {}}, "negotiation")

    def send(self, text):
        self.socket.sendall(text if isinstance(text, bytes) else text.encode())

    def read(self):
        """The next line as an object, None at the end of the stream."""
        while b"\n" not in self.received:
            try:
                piece = self.socket.recv(65536)
            except ConnectionResetError:
                return None
            if not piece:
                return None
            self.received += piece
        line, self.received = self.received.split(b"\n", 1)
        return json.loads(line)

    def reply(self):
        """The next line that is no event."""
        while True:
            line = self.read()
            if line is None or "event" not in line:
                return line
            self.events.append(line)

    def command(self, name, /, **arguments):
        request = {"execute": name}
        if arguments:
            request["arguments"] = arguments
        self.send(json.dumps(request) + "\n")
        return self.reply()

    def until_end(self):
        """All that comes until the daemon closes the connection."""
        lines = []
        while True:
            line = self.read()
            if line is None:
                return lines
            lines.append(line)

    def close(self):
        self.socket.close()


# ---- a place to test in ------------------------------------------------------


class Place:
    """A folder with images, run folders and the programs that were started there."""

    def __init__(self, build, folder):
        self.build = build
        self.folder = folder
        self.children = []
        self.environment = dict(os.environ, QCHAIN_RUN_DIR=self.path("run"), NO_COLOR="1", QCHAIN_RESTARTS="0",
                                ASAN_OPTIONS=f"log_path={self.path('sanitizer')}:exitcode=99",
                                TSAN_OPTIONS=f"log_path={self.path('sanitizer')}:exitcode=99",
                                UBSAN_OPTIONS=f"log_path={self.path('sanitizer')}:print_stacktrace=1")

    def path(self, name):
        return os.path.join(self.folder, name)

    def program(self, name):
        return os.path.join(self.build, name)

    def run(self, *words, status=0, environment=None, **more):
        """Run one command to its end; returns it with stdout and stderr as text."""
        done = subprocess.run([str(word) for word in words], cwd=self.folder, env=environment or self.environment,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True, timeout=WAIT_S, **more)
        expect(status is None or done.returncode == status,
               f"{' '.join(map(str, words))}: status {done.returncode}, expected {status}: "
               f"{done.stderr.strip()}")
        return done

    def ctl(self, *words, status=0):
        return self.run(self.program("qchainctl"), *words, status=status)

    def ctl_json(self, *words):
        return json.loads(self.ctl(*words, "--json").stdout)

    def start(self, *words):
        """Start qchaind in the foreground; its output is in the file `output`."""
        with open(self.path("output"), "ab") as output:
            child = subprocess.Popen([self.program("qchaind"), *map(str, words)], cwd=self.folder,
                                     env=self.environment, stdin=subprocess.DEVNULL,
                                     stdout=output, stderr=output)
        self.children.append(child)
        return child

    def start_chain(self, *words):
        """qchaind with QMP on `qmp` and NBD on `nbd`, ready."""
        child = self.start("--qmp", self.path("qmp"), "--export", f"nbd,socket={self.path('nbd')}",
                           *words, self.path("top.qcow2"))
        self.wait_ready(child, self.path("nbd"))
        return child

    def wait_ready(self, child, socket_path):
        wait_until(lambda: listens(child, socket_path) or child.poll() is not None, f"{socket_path} accepts")
        expect(child.poll() is None, f"qchaind ended at start: {self.output()}")

    def output(self):
        with open(self.path("output"), encoding="utf-8", errors="replace") as output:
            return output.read()

    def make_chain(self, size="16M"):
        """top.qcow2 over base.qcow2, both empty."""
        self.run("qemu-img", "create", "-q", "-f", "qcow2", self.path("base.qcow2"), size)
        self.run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2",
                 self.path("top.qcow2"))

    def check_images(self):
        for name in ("top.qcow2", "base.qcow2"):
            self.run("qemu-img", "check", "-q", "-f", "qcow2", self.path(name))

    def recorded_pids(self, key):
        """Processes of the records below run/ that are still ours; @key: pid or guard."""
        pids = []
        for name in os.listdir(self.path("run")) if os.path.isdir(self.path("run")) else []:
            try:
                with open(self.path(f"run/{name}/state.json"), encoding="utf-8") as record:
                    pid = json.load(record).get(key, 0)
                with open(f"/proc/{pid}/environ", "rb") as environment:
                    if self.path("run").encode() in environment.read():
                        pids.append(pid)
            except (OSError, ValueError):
                continue
        return pids

    def daemon_pids(self):
        return self.recorded_pids("pid")

    def end(self):
        """Kill what is left; fail on what a sanitizer has said."""
        for child in self.children:
            child.kill()
            child.wait()
        for pid in self.recorded_pids("guard") + self.daemon_pids():
            os.kill(pid, signal.SIGKILL)
        for name in sorted(os.listdir(self.folder)):
            if name.startswith("sanitizer"):
                with open(self.path(name), encoding="utf-8", errors="replace") as report:
                    raise Failure(f"sanitizer: {report.read()[:2000]}")


# ---- running -------------------------------------------------------------------


def run_one(build, name, function, keep):
    folder = tempfile.mkdtemp(prefix="qc-")
    place = Place(build, folder)
    try:
        try:
            function(place)
        finally:
            place.end()
    except Skip as reason:
        return "skip", f"{name}: {reason}"
    except Failure as reason:
        return "FAIL", f"{name}: {reason}"
    except Exception:  # pylint: disable=broad-except
        return "FAIL", f"{name}: {traceback.format_exc()}"
    finally:
        if keep:
            print(f"     {name}: files are in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return "ok", name


def find_tests(module):
    return [(name[5:], value) for name, value in vars(module).items()
            if name.startswith("test_") and callable(value)]


def main(suite, module, extra=None):
    """Run the test_* functions of @module; returns the exit status."""
    parser = argparse.ArgumentParser(description=module.__doc__)
    parser.add_argument("--build", default=os.environ.get("QCHAIN_BUILD", os.path.join(ROOT, "build")),
                        help="folder with qchaind and qchainctl")
    parser.add_argument("--keep", action="store_true", help="keep the files of each test")
    parser.add_argument("tests", nargs="*", help="names of tests, default: all")
    if extra:
        extra(parser)
    arguments = parser.parse_args()
    if hasattr(module, "other_action") and module.other_action(arguments):
        return 0
    arguments.build = os.path.abspath(arguments.build)
    missing = [name for name in ("qchaind", "qchainctl")
               if not os.access(os.path.join(arguments.build, name), os.X_OK)]
    if missing or not shutil.which("qemu-img"):
        print(f"{suite}: skipped: {', '.join(missing) or 'qemu-img'} not found")
        return 77
    counts = {"ok": 0, "FAIL": 0, "skip": 0}
    for name, function in find_tests(module):
        if arguments.tests and name not in arguments.tests:
            continue
        result, text = run_one(arguments.build, name, function, arguments.keep)
        counts[result] += 1
        print(f"{result:4} {text}", flush=True)
    print(f"{suite}: {counts['ok']} passed, {counts['FAIL']} failed, {counts['skip']} skipped")
    return 1 if counts["FAIL"] else 0


if __name__ == "__main__":
    sys.exit("harness: is imported by the tests beside it")
