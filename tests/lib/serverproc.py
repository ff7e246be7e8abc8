#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""One NBD server under test as a child process: start, wait until ready, stop, kill."""

import os
import shlex
import socket
import subprocess
import time

SANITIZER_MARKS = ("ERROR: AddressSanitizer", "ERROR: LeakSanitizer",
                   "WARNING: ThreadSanitizer", "runtime error:")
SOCKET_PATH_MAX = 107


class ServerError(Exception):
    """The server did not start, did not stop, or ended in a way that it must not."""


class ServerProcess:
    """A foreground server on a unix socket; its output goes to a file."""

    def __init__(self, argv, socket_path, output_path, deadline):
        if len(socket_path) > SOCKET_PATH_MAX:
            raise ServerError(f"{socket_path}: socket path is longer than {SOCKET_PATH_MAX} bytes")
        self.argv = argv
        self.socket_path = socket_path
        self.output_path = output_path
        self._deadline = deadline
        self._child = None

    def start(self):
        """Start it and return when its socket accepts."""
        if os.path.exists(self.socket_path):
            os.unlink(self.socket_path)
        with open(self.output_path, "ab") as output:
            output.write(f"$ {shlex.join(self.argv)}\n".encode())
            output.flush()
            self._child = subprocess.Popen(self.argv, stdin=subprocess.DEVNULL,
                                           stdout=output, stderr=output)
        pause = 0.002
        while not self._accepts():
            if self._child.poll() is not None:
                raise ServerError(f"server ended at start with status {self._child.returncode}: "
                                  f"{self.last_line()}")
            self._deadline.left()
            time.sleep(pause)
            pause = min(pause * 1.5, 0.1)

    def _accepts(self):
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(self.socket_path)
            except OSError:
                return False
            return True

    def stop(self):
        """SIGTERM; the server must end in time and with status 0."""
        self._child.terminate()
        try:
            status = self._child.wait(self._deadline.left())
        except subprocess.TimeoutExpired as error:
            raise ServerError("server did not end after SIGTERM") from error
        self.check_sanitizers()
        if status != 0:
            raise ServerError(f"server ended with status {status} after SIGTERM: "
                              f"{self.last_line()}")

    def kill(self):
        """SIGKILL, if it still runs, and wait for its end. Never fails."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()

    def has_ended(self):
        """Whether the process is gone although nobody stopped it."""
        return self._child is not None and self._child.poll() is not None

    def last_line(self):
        lines = self._output().strip().splitlines()
        return lines[-1] if lines else ""

    def check_sanitizers(self):
        """Fail when a sanitizer complained in the output."""
        for line in self._output().splitlines():
            if any(mark in line for mark in SANITIZER_MARKS):
                raise ServerError(f"sanitizer: {line.strip()}")

    def _output(self):
        with open(self.output_path, encoding="utf-8", errors="replace") as output:
            return output.read()
