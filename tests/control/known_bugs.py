#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Corruption bugs that QEMU's qcow2 driver has had, where no other test does the same: see docs/testing.md."""

import asyncio
import os
import random
import stat
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "lib"))

import harness
import nbdclient
from full import Volume
from harness import expect, expect_equal

CLUSTER = 65536
ALLOCATION = "base:allocation"


async def connect(place, **options):
    return await nbdclient.NbdClient.connect(place.path("nbd"), **options)


def served(place, run, *words):
    child = place.start_chain(*words)
    asyncio.run(run())
    child.terminate()
    expect_equal(child.wait(harness.WAIT_S), 0, f"exit status; {place.output()}")
    place.check_images()


def test_status_beside_allocation(place):
    """Block status is asked for while clusters are allocated: what was acknowledged is never shown as a hole."""
    place.make_chain("64M")
    written, todo = set(), list(range(1024))
    random.Random(4).shuffle(todo)

    async def write(client):
        while todo:
            cluster = todo.pop()
            await client.write(cluster * CLUSTER, bytes([cluster % 255 + 1]) * 4096)
            written.add(cluster)

    async def ask(client):
        while todo:
            known = set(written)
            extents = (await client.block_status(0, 32 << 20))[ALLOCATION]
            offset = 0
            for length, flags in extents:
                holes = set(range(-(-offset // CLUSTER), (offset + length) // CLUSTER)) if flags & 1 else set()
                expect(not holes & known, f"clusters {sorted(holes & known)[:5]} are written and shown as holes")
                offset += length

    async def run():
        guests = [await connect(place) for _ in range(2)]
        asks = [await connect(place, contexts=(ALLOCATION,)) for _ in range(2)]
        await asyncio.gather(*(write(c) for c in guests for _ in range(8)), *(ask(c) for c in asks))
        for cluster in sorted(written):
            expect_equal(await guests[0].read(cluster * CLUSTER, 4096), bytes([cluster % 255 + 1]) * 4096, f"cluster {cluster}")
        for client in guests + asks:
            await client.close()
    served(place, run, "--cache-size", "4K")


def test_subclusters_backwards(place):
    """Two writes of one new cluster, the later subcluster first, over data below (iotest 265)."""
    place.run("qemu-img", "create", "-q", "-f", "qcow2", place.path("base.qcow2"), "16M")
    place.run("qemu-io", "-f", "qcow2", "-c", "write -P 7 0 16M", place.path("base.qcow2"))
    place.run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2",
              "-o", "extended_l2=on,cluster_size=128k", place.path("top.qcow2"))

    async def run():
        client = await connect(place)
        expected = bytearray(b"\7" * (16 << 20))
        for start in range(0, 16 << 20, 128 << 10):
            pieces = [(start + at, bytes([at // 1024 + 1]) * 1024) for at in (127 << 10, 66 << 10, 65 << 10, 3 << 10)]
            await asyncio.gather(*(client.write(*piece) for piece in pieces))
            for at, data in pieces:
                expected[at:at + len(data)] = data
        await client.flush()
        for start in range(0, 16 << 20, 1 << 20):
            expect(await client.read(start, 1 << 20) == expected[start:start + (1 << 20)], f"content from {start} on")
        await client.close()
    served(place, run)


def test_discard_beside_allocation(place):
    """Discards of clusters whose allocating write is under way, then written again: the last one counts (QEMU before 11.1)."""
    place.make_chain("64M")

    async def cell(client, cluster, rng):
        for turn in range(1, 9):
            data = bytes([turn]) * CLUSTER
            over = [client.write(cluster * CLUSTER, data), client.trim(cluster * CLUSTER, CLUSTER),
                    client.write_zeroes(cluster * CLUSTER, CLUSTER)]
            rng.shuffle(over)
            await asyncio.gather(*over)
            got = await client.read(cluster * CLUSTER, CLUSTER)
            expect(got in (data, bytes(CLUSTER)), f"cluster {cluster}, turn {turn}: foreign or torn")
            await client.write(cluster * CLUSTER, data)
            expect_equal(await client.read(cluster * CLUSTER, CLUSTER), data, f"cluster {cluster}, turn {turn}")

    async def run():
        rng = random.Random(11)
        client = await connect(place)
        await asyncio.gather(*(cell(client, n, rng) for n in range(24)))
        await client.flush()
        await client.close()
    served(place, run)


def test_one_device_by_two_nodes(place):
    """The same volume twice in a chain, by two device nodes: refused, nothing is written."""
    volume = Volume(place, "volume", 4 << 20)
    try:
        node = place.path("node")
        try:
            os.mknod(node, stat.S_IFBLK | 0o600, os.stat(volume.path).st_rdev)
        except PermissionError:
            raise harness.Skip("no mknod here") from None
        place.run("qemu-img", "create", "-q", "-f", "qcow2", "-u", "-F", "qcow2", "-b", node, volume.path, "1M")
        with open(volume.path, "rb") as device:
            before = device.read()
        done = place.run(place.program("qchaind"), "--allow-backing", place.folder, "--export",
                         f"nbd,socket={place.path('nbd')}", volume.path, status=1)
        expect("already in the chain" in done.stderr, f"refusal: {done.stderr}")
        with open(volume.path, "rb") as device:
            expect(device.read() == before, "the volume was written")
    finally:
        volume.remove()


if __name__ == "__main__":
    sys.exit(harness.main("known-bugs", sys.modules[__name__]))
