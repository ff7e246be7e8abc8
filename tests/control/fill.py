#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A volume as large as `qchainctl create` makes it never runs full, whatever the geometry (rule A4)."""

import asyncio
import json
import os
import random
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "lib"))

import harness
from full import Volume, connect
from harness import Qmp, expect, expect_equal

MIB = 1 << 20
UNDER_WAY = 16  # requests


async def each(jobs):
    """Run all of them, some at a time."""
    gate = asyncio.Semaphore(UNDER_WAY)

    async def one(job):
        async with gate:
            await job
    await asyncio.gather(*[one(job) for job in jobs])


async def use_all(client, size, cluster):
    """Write every cluster, discard many, write all again; then discards and writes at once."""
    rng = random.Random(size + cluster)
    pieces = range(0, size, MIB)
    await each([client.write(at, b"a" * min(MIB, size - at)) for at in pieces])
    await each([client.trim(at, min(MIB // 2, size - at)) for at in pieces])
    await each([client.write(at, b"b" * min(MIB, size - at)) for at in pieces])
    jobs = []
    for at in rng.sample(pieces, len(pieces)):
        jobs += [client.trim(at, min(MIB, size - at)), client.write(at, b"c" * min(MIB, size - at))]
    await each(jobs)
    await each([client.write(at, b"d" * min(MIB, size - at)) for at in pieces])
    await client.flush()
    for at in pieces:
        length = min(MIB, size - at)
        expect_equal(await client.read(at, length) == b"d" * length, True, f"content at {at}")


def fill(place, size, cluster, *words):
    """create, on a device of the size that measure names for a thick volume; then all of it is used."""
    options = ["--size", str(size), "--cluster-size", str(cluster), *words]
    volume = Volume(place, "volume", json.loads(place.ctl("measure", *options, "--json").stdout)["lv-size"])
    try:
        place.ctl("create", volume.path, *options)
        child = place.start("--qmp", place.path("qmp"), "--export", f"nbd,socket={place.path('nbd')}", volume.path)
        place.wait_ready(child, place.path("nbd"))
        events = Qmp(place.path("qmp"))

        async def run():
            client = await connect(place)
            await use_all(client, size, cluster)
            await client.close()
        asyncio.run(run())
        child.terminate()
        said = [line["event"] for line in events.until_end()]
        expect("BLOCK_IO_ERROR" not in said, f"it ran full: {said}")
        expect_equal(child.wait(harness.WAIT_S), 0, "exit status")
        place.run("qemu-img", "check", "-q", "-f", "qcow2", volume.path)
    finally:
        volume.remove()


def test_usual(place):
    fill(place, 96 * MIB + 512, 65536)


def test_extended(place):
    fill(place, 96 * MIB, 131072, "--extended-l2")


def test_finest(place):
    """512-byte clusters with the widest refcounts: thousands of refcount blocks, and a table that grows often."""
    fill(place, 24 * MIB, 512, "--refcount-bits", "64")


def test_finest_narrow(place):
    fill(place, 16 * MIB, 512, "--refcount-bits", "1")


def test_fine(place):
    fill(place, 64 * MIB, 4096, "--refcount-bits", "64")


def test_fine_narrow(place):
    fill(place, 64 * MIB, 4096, "--refcount-bits", "1")


def test_coarse(place):
    fill(place, 128 * MIB, 2 * MIB, "--refcount-bits", "1")


def test_coarse_wide(place):
    fill(place, 128 * MIB, 2 * MIB, "--refcount-bits", "64")


if __name__ == "__main__":
    sys.exit(harness.main("fill", sys.modules["__main__"]))
