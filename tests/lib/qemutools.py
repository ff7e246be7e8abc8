#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's command line tools as an oracle: run them, log them, read their answers."""

import hashlib
import json
import os
import shlex
import struct
import subprocess
import time

HEADER_AUTOCLEAR_OFFSET = 88
AUTOCLEAR_BITMAPS = 1


class ToolError(Exception):
    """A tool ended with a status that was not expected."""


class DeadlineExceeded(Exception):
    """The time for the whole test case is over."""


class Deadline:
    """One point in time that all waits of a test case share."""

    def __init__(self, seconds):
        self._end = time.monotonic() + seconds

    def left(self):
        """Seconds left; raises when there are none."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded("deadline of the case exceeded")
        return left


class Tools:
    """Runs qemu-img and qemu-io below one deadline and writes each command to a log."""

    def __init__(self, log_path, deadline):
        self._log_path = log_path
        self._deadline = deadline

    def run(self, argv, stdin="", accept=(0,)):
        """Run one command, return its standard output."""
        return self._run(argv, stdin, accept).stdout

    def _run(self, argv, stdin, accept):
        argv = [str(arg) for arg in argv]
        self._log(argv, stdin)
        try:
            done = subprocess.run(argv, input=stdin, text=True, stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT if stdin else subprocess.PIPE,
                                  timeout=self._deadline.left())
        except subprocess.TimeoutExpired as error:
            raise DeadlineExceeded(f"{argv[0]} did not end in time") from error
        if done.returncode not in accept:
            text = (done.stderr or done.stdout).strip()
            raise ToolError(f"{shlex.join(argv)}: status {done.returncode}: {text}")
        return done

    def _log(self, argv, stdin):
        with open(self._log_path, "a", encoding="utf-8") as log:
            here = f" <<'END'\n{stdin}END" if stdin else ""
            log.write(shlex.join(argv) + here + "\n")

    def qemu_io(self, path, commands, fmt="qcow2"):
        """Run commands of qemu-io on one image; any failed command is an error."""
        if not commands:
            return
        output = self.run(["qemu-io", "-f", fmt, "-d", "unmap", path], "\n".join(commands) + "\n")
        if "fail" in output.lower() or "error" in output.lower():
            raise ToolError(f"qemu-io {path}: {output.strip()}")

    def check(self, path, alone=False):
        """Return (errors, leaks) of qemu-img check; errors counts corruptions too.

        alone: without opening the backing images.
        """
        name = ["-f", "qcow2", path]
        if alone:
            name = ["json:" + json.dumps({"driver": "qcow2", "backing": None,
                                          "file": {"driver": "file", "filename": path}})]
        done = self._run(["qemu-img", "check", "--output=json", *name], stdin="",
                         accept=(0, 1, 2, 3))
        try:
            report = json.loads(done.stdout)
        except ValueError as error:
            said = (done.stdout + done.stderr).strip()
            raise ToolError(f"qemu-img check {path}: status {done.returncode}, no report: "
                            f"{said}") from error
        return report["check-errors"] + report.get("corruptions", 0), report.get("leaks", 0)

    def content(self, path, scratch, snapshot=None):
        """Return the guest content of an image, or of one of its internal snapshots."""
        select = ["-l", f"snapshot.name={snapshot}"] if snapshot else []
        self.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", *select, path, scratch])
        with open(scratch, "rb") as raw:
            content = bytearray(raw.read())
        os.unlink(scratch)
        return content

    def map(self, path):
        """Return the list of qemu-img map."""
        return json.loads(self.run(["qemu-img", "map", "-f", "qcow2", "--output=json", path]))


def file_digest(path):
    """Checksum of a whole file."""
    digest = hashlib.sha1()
    with open(path, "rb") as image:
        while chunk := image.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def autoclear_bits(path):
    """Autoclear feature bits in the header of a qcow2 image (0 in version 2)."""
    with open(path, "rb") as image:
        header = image.read(HEADER_AUTOCLEAR_OFFSET + 8)
    version, = struct.unpack_from(">I", header, 4)
    return struct.unpack_from(">Q", header, HEADER_AUTOCLEAR_OFFSET)[0] if version >= 3 else 0


def clear_autoclear_bits(path):
    """Clear all autoclear bits, as a writer does that maintains none of them."""
    with open(path, "r+b") as image:
        image.seek(HEADER_AUTOCLEAR_OFFSET)
        image.write(bytes(8))
