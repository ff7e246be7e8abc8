# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's image locks, seen from outside: who killed a server waits here for its last I/O.

A killed process is reaped before the kernel has ended the last of its io_uring requests, and
each of those keeps the image open, with its locks (rule A2: that is what fences the dead).
Under load this takes tens of milliseconds, in which qemu-img refuses the image.
"""

import fcntl
import os
import struct
import time

FLOCK = struct.Struct("hhqqi4x")
LOCK_FIRST = 100
LOCK_LENGTH = 104  # 100 + i: permission i is used, 200 + i: it is denied to others
PAUSE_S = 0.002


def is_locked(path):
    """Whether anybody has an image lock on the file."""
    image = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        wanted = FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, LOCK_FIRST, LOCK_LENGTH, 0)
        found = fcntl.fcntl(image, fcntl.F_OFD_GETLK, wanted)
        return FLOCK.unpack(found)[0] != fcntl.F_UNLCK
    finally:
        os.close(image)


def wait_unlocked(path, deadline, pause=lambda: time.sleep(PAUSE_S)):
    """Return when nobody has an image lock on the file; deadline.left() raises when it is late."""
    while is_locked(path):
        deadline.left()
        pause()
