# SPDX-License-Identifier: GPL-2.0-or-later
"""A loop device on a file: a volume that has logical blocks, and can grow, as an LV does."""

import os
import subprocess


class NoLoop(Exception):
    """The host has no loop device to give."""


class LoopVolume:
    """`path` is the device, for `with` or until remove()."""

    def __init__(self, file, size, block=512):
        self.file = file
        with open(file, "wb") as new:
            new.truncate(size)
        done = subprocess.run(["losetup", "-f", "--show", "-b", str(block), file], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise NoLoop(f"no loop device: {done.stderr.strip()}")
        self.path = done.stdout.strip()

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self.remove()

    def grow(self, size):
        os.truncate(self.file, size)
        subprocess.run(["losetup", "-c", self.path], check=True)

    def remove(self):
        subprocess.run(["losetup", "-d", self.path], check=False)
