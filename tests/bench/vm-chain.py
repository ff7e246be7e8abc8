#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes a chain on device-mapper devices NAME-000 (base) to the top, cut from a disk.

usage: vm-chain.py FOLDER NAME SIZE LAYERS DISK START_MB ROOM_MB

Each device has ROOM_MB more than its image needs. FOLDER holds the images for a while. Prints the top's device and how far the disk is used now.
"""

import os
import subprocess
import sys

import chains

MIB = chains.MIB
SECTORS = MIB // 512


def cut_all(names, sizes, disk, start, more):
    """One dmsetup for all: each alone costs a second here. Returns the first free MiB."""
    entries = []
    for name, size in zip(names, sizes):
        room = size // MIB + more
        entries.append(f"{name},,,rw,0 {room * SECTORS} linear {disk} {start * SECTORS}")
        start += room
    subprocess.run(["dmsetup", "create", "--concise", ";".join(entries)], check=True)
    return start


def copy(source, device):
    with open(source, "rb") as image, open(device, "wb", buffering=0) as out:
        while piece := image.read(MIB):
            out.write(piece)
        os.fsync(out.fileno())


def main():
    folder, name, size, layers, disk, start, more = sys.argv[1:]
    os.makedirs(folder)
    chains.make_spread(folder, int(size), int(layers), name + "-{:03}")
    names = sorted(os.listdir(folder))
    sizes = [os.stat(os.path.join(folder, one)).st_size for one in names]
    start = cut_all(names, sizes, disk, int(start), int(more))
    subprocess.run(["udevadm", "settle"], check=True)
    for one in names:
        copy(os.path.join(folder, one), "/dev/mapper/" + one)
        os.unlink(os.path.join(folder, one))
    print("/dev/mapper/" + names[-1], start)


if __name__ == "__main__":
    main()
