#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Serve, show and check every kind of broken image: nothing may crash, hang, grow or be changed."""

import argparse
import asyncio
import contextlib
import hashlib
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.dont_write_bytecode = True
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "lib")]

import kinds  # noqa: E402
import nbdclient  # noqa: E402
import serverproc  # noqa: E402
from kinds import ANYTHING, IO_ERROR, REFUSED, SERVED  # noqa: E402

SKIP_ALL = 77
DEADLINE_S = 15
MEMORY_BYTES = 1 << 30
FEATURE_BITS = (72, 24)
NO_ERROR = ("<4>", "<6>", "<7>")  # the log's warnings and what is below
REPLY_DEADLINE_S = 5
CHECK_LINES_MAX = 200


class Failure(Exception):
    """A program did with an image what it must not do."""


class Skip(Exception):
    """This machine cannot try it."""


# ---- programs ---------------------------------------------------------------------


class Program:
    """A program under test, with a bound on its memory unless a sanitizer needs all of it."""

    def __init__(self, path):
        self.path = path
        self.limited = b"__asan_init" not in path.read_bytes()
        self.environment = dict(os.environ, MALLOC_ARENA_MAX="1", LC_ALL="C")

    def limit(self):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if self.limited:
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))

    def start(self, args, stdout, stderr):
        return subprocess.Popen([self.path, *args], stdin=subprocess.DEVNULL, stdout=stdout,
                                stderr=stderr, env=self.environment, preexec_fn=self.limit)


def end_of(child, what):
    """Exit status of a child that is to end by itself."""
    try:
        return child.wait(DEADLINE_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
        raise Failure(f"{what} did not end within {DEADLINE_S} s") from None


def no_crash(what, status, text):
    """Neither a signal nor a sanitizer."""
    for line in text.splitlines():
        if any(mark in line for mark in serverproc.SANITIZER_MARKS):
            raise Failure(f"{what}: sanitizer: {line.strip()}")
    if status < 0:
        last = text.strip().splitlines()[-1:] or ["without a word"]
        raise Failure(f"{what} was ended by {signal.Signals(-status).name}: {last[0]}")


def one_error_line(what, text, name, message=""):
    """Standard error must hold one error that names the image and says what is wrong."""
    lines = [line for line in text.splitlines() if line.strip() and line[:3] not in NO_ERROR]
    if len(lines) != 1:
        raise Failure(f"{what}: {len(lines)} lines on standard error, expected one: {text!r}")
    if name not in lines[0]:
        raise Failure(f"{what}: message does not name {name}: {lines[0]}")
    if not re.search(message, lines[0]):
        raise Failure(f"{what}: message does not match /{message}/: {lines[0]}")


# ---- files ------------------------------------------------------------------------


def digests(folder):
    """Checksums and sizes of all regular files below a folder."""
    result = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            result[path] = (len(data), hashlib.sha1(data).hexdigest())
    return result


def expect_unchanged(what, before, folder):
    after = digests(folder)
    for path in before.keys() | after.keys():
        if before.get(path) != after.get(path):
            raise Failure(f"{what} changed {path.name}")


def expect_protected(what, before, after, ranges):
    for offset, length in ranges:
        if before[offset:offset + length] != after[offset:offset + length]:
            raise Failure(f"{what} wrote between {offset:#x} and {offset + length:#x}")


def all_but_features(data):
    start, length = FEATURE_BITS
    return [(0, start), (start + length, len(data))]


@contextlib.contextmanager
def placed(kind, image):
    """Where programs shall find the image: the file itself, or a loop device around it."""
    if not kind.on_device:
        yield image
        return
    try:
        done = subprocess.run(["losetup", "--find", "--show", image], capture_output=True,
                              text=True)
    except FileNotFoundError:
        raise Skip("no losetup") from None
    if done.returncode:
        raise Skip(f"no loop device: {done.stderr.strip()}")
    device = Path(done.stdout.strip())
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


# ---- the daemon --------------------------------------------------------------------


class Daemon:
    """qchaind with one NBD export of one image."""

    def __init__(self, program, image, args, scratch):
        self.socket = str(scratch / "nbd")
        self.log_path = scratch / "stderr"
        self.what = " ".join(["qchaind", *args])
        with self.log_path.open("wb") as log:
            export = f"nbd,socket={self.socket}"
            self.child = program.start(["--export", export, *args, str(image)],
                                       subprocess.DEVNULL, log)

    def log(self):
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def is_served(self):
        """Wait for the socket, or for the end of the process."""
        end = time.monotonic() + DEADLINE_S
        while time.monotonic() < end:
            if self.child.poll() is not None:
                return False
            with socket.socket(socket.AF_UNIX) as probe:
                try:
                    probe.connect(self.socket)
                    return True
                except OSError:
                    time.sleep(0.005)
        raise Failure(f"{self.what} neither served nor refused within {DEADLINE_S} s")

    def stop(self):
        self.child.terminate()
        status = end_of(self.child, f"{self.what} after SIGTERM")
        no_crash(self.what, status, self.log())
        if status != 0:
            raise Failure(f"{self.what}: status {status} after SIGTERM: {self.log()}")

    def explain_end(self):
        """Raise the better failure where the connection failed because the process ended."""
        try:
            status = self.child.wait(1)
        except subprocess.TimeoutExpired:
            return
        no_crash(self.what, status, self.log())
        raise Failure(f"{self.what} ended with status {status}: {self.log()}")

    def kill(self):
        self.child.kill()
        self.child.wait()


async def expect_read(client, offset, length, expected):
    try:
        data = await asyncio.wait_for(client.read(offset, length), REPLY_DEADLINE_S)
    except nbdclient.NbdError as error:
        if expected not in (IO_ERROR, ANYTHING):
            raise Failure(f"read of {length} at {offset:#x}: {error}") from None
        return
    if expected == IO_ERROR:
        raise Failure(f"read of {length} at {offset:#x} gave data, expected an error")
    if expected != ANYTHING and bytes(data) != expected:
        raise Failure(f"read of {length} at {offset:#x}: wrong data, begins {bytes(data[:8])!r}")


async def try_write(client, offset, length, may_succeed):
    try:
        await asyncio.wait_for(client.write(offset, b"\xee" * length), REPLY_DEADLINE_S)
        await asyncio.wait_for(client.flush(), REPLY_DEADLINE_S)
    except nbdclient.NbdError:
        return
    if not may_succeed:
        raise Failure(f"write of {length} at {offset:#x} succeeded, expected an error")


async def talk(kind, path, writable):
    """All reads, the writes that it is about, and the good reads once more."""
    try:
        client = await nbdclient.NbdClient.connect(path)
        for read in kind.reads:
            await expect_read(client, *read)
        for write in kind.writes if writable else ():
            await try_write(client, *write, False)
        for write in kind.may_write if writable else ():
            await try_write(client, *write, True)
        for read in kind.reads:
            await expect_read(client, *read)
        await client.close()
    except asyncio.TimeoutError:
        raise Failure(f"no reply within {REPLY_DEADLINE_S} s") from None
    except (ConnectionError, nbdclient.NbdProtocolError) as error:
        raise Failure(f"NBD: {error}") from None


def try_serving(kind, program, folder, scratch, read_only):
    """One daemon, with or without --read-only."""
    image = kind.make(folder)
    before = digests(folder)
    content = image.read_bytes() if image.is_file() else b""
    args = [*kind.args, *(["--read-only"] if read_only else [])]
    with placed(kind, image) as place:
        read_only = serve(kind, program, place, args, scratch)
    if read_only:
        expect_unchanged("qchaind", before, folder)
    else:
        ranges = kind.protect or all_but_features(content)
        # Where the file system lets it, a write far beyond the end makes a file of petabytes.
        with image.open("rb") as after:
            expect_protected("qchaind", content, after.read(len(content) + 512), ranges)


def serve(kind, program, image, args, scratch):
    """Run the daemon once; whether nothing at all may have changed."""
    read_only = "--read-only" in args
    expected = kind.ro if read_only else kind.rw
    daemon = Daemon(program, image, args, scratch)
    try:
        if daemon.is_served():
            if expected == REFUSED:
                raise Failure(f"{daemon.what} serves it, expected a refusal")
            try:
                asyncio.run(talk(kind, daemon.socket, not read_only))
            except Failure:
                daemon.explain_end()
                raise
            daemon.stop()
        else:
            no_crash(daemon.what, daemon.child.returncode, daemon.log())
            if expected == SERVED or daemon.child.returncode != 1:
                raise Failure(f"{daemon.what}: status {daemon.child.returncode}: {daemon.log()}")
            one_error_line(daemon.what, daemon.log(), kind.names or image.name, kind.message)
            read_only = read_only or not kind.protect
        return read_only
    finally:
        daemon.kill()


# ---- the tool -----------------------------------------------------------------------


def try_verb(kind, program, folder, scratch, verb):
    """`qchainctl VERB IMAGE`: a verdict, no change."""
    image = kind.make(folder)
    before = digests(folder)
    what = f"qchainctl {verb}"
    with (scratch / "stderr").open("wb") as log, placed(kind, image) as place:
        child = program.start([verb, str(place)], subprocess.DEVNULL, log)
        status = end_of(child, what)
    text = (scratch / "stderr").read_text(encoding="utf-8", errors="replace")
    no_crash(what, status, text)
    expect_unchanged(what, before, folder)
    if verb == "check" and status not in kind.check:
        raise Failure(f"{what}: status {status}, expected one of {kind.check}: {text}")
    if verb == "check" and text.count("\n") > CHECK_LINES_MAX:
        raise Failure(f"{what}: {len(text.splitlines())} lines on standard error")
    if verb == "info" and status:
        one_error_line(what, text, kind.names or place.name)
    if status and not text:
        raise Failure(f"{what}: status {status} without a word on standard error")


# ---- all kinds ------------------------------------------------------------------------


def steps_of(kind, daemon, tool):
    """(name, function, arguments) of everything that is tried with one kind."""
    yield "rw", try_serving, (daemon,), (False,)
    yield "ro", try_serving, (daemon,), (True,)
    if tool and kind.info:
        yield "info", try_verb, (tool,), ("info",)
    if tool and kind.check:
        yield "check", try_verb, (tool,), ("check",)


def run_kind(kind, daemon, tool, root):
    """Try one kind in fresh folders; the texts of failures, and of what was skipped."""
    failures, skips = [], []
    for name, function, program, rest in steps_of(kind, daemon, tool):
        folder, scratch = root / name, root / "s"
        folder.mkdir(parents=True)
        scratch.mkdir()
        try:
            function(kind, *program, folder, scratch, *rest)
        except Failure as failure:
            failures.append(f"{name}: {failure}")
        except Skip as skip:
            skips.append(str(skip))
        shutil.rmtree(scratch)
    return failures, skips


def run(selected, daemon, tool, keep, verbose):
    """Run all kinds; (passed, failed, skipped)."""
    failed = skipped = 0
    for kind in selected:
        root = Path(tempfile.mkdtemp(prefix="broken-"))
        failures, skips = run_kind(kind, daemon, tool, root)
        for text in failures:
            print(f"FAIL {kind.name}: {text}", flush=True)
        if failures and keep:
            print(f"     kept in {root}")
        else:
            shutil.rmtree(root)
        if skips and not failures:
            print(f"skip {kind.name}: {skips[0]}", flush=True)
        elif verbose and not failures:
            print(f"ok   {kind.name}: {kind.summary}", flush=True)
        failed += bool(failures)
        skipped += bool(skips and not failures)
    return len(selected) - failed - skipped, failed, skipped


def parse_arguments():
    build = HERE.parent.parent / "build"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--qchaind", type=Path, default=build / "qchaind", metavar="PATH")
    parser.add_argument("--qchainctl", type=Path, metavar="PATH",
                        help="default: beside qchaind; not run where there is none")
    parser.add_argument("--filter", default="", metavar="X", help="kinds with X in their name")
    parser.add_argument("--list", action="store_true", help="list the kinds and end")
    parser.add_argument("--make", type=Path, metavar="DIR", help="only make the images, in DIR")
    parser.add_argument("--keep", action="store_true", help="keep the folders of failed kinds")
    parser.add_argument("--verbose", action="store_true")
    return parser.parse_args()


def make_all(selected, folder):
    for kind in selected:
        (folder / kind.name).mkdir(parents=True)
        kind.make(folder / kind.name)


def main():
    args = parse_arguments()
    selected = [kind for kind in kinds.load() if args.filter in kind.name]
    if args.list or args.make:
        for kind in selected if args.list else ():
            print(f"{kind.name:32} {kind.summary}")
        if args.make:
            make_all(selected, args.make)
        return 0
    if not args.qchaind.exists():
        print(f"broken: {args.qchaind} is not built")
        print(f"broken: 0 passed, 0 failed, {len(selected)} skipped")
        return SKIP_ALL
    tool = args.qchainctl or args.qchaind.parent / "qchainctl"
    passed, failed, skipped = run(selected, Program(args.qchaind),
                                  Program(tool) if tool.exists() else None, args.keep, args.verbose)
    print(f"broken: {passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
