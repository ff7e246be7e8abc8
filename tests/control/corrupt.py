#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""An image found corrupt while it is served: an error, an event, read-only, the corrupt bit as QEMU sets it, and not a byte more."""

import asyncio
import os
import pathlib
import shutil
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "..", "lib"), os.path.join(HERE, "..", "images")]

import harness
import nbdclient
from full import Volume
from harness import Qmp, expect, expect_equal
from qcow2image import COPIED, INCOMPATIBLE, ZERO, Image

CLUSTER = 65536
BAD = 4  # the guest cluster whose entry is broken
FRESH = 5  # unallocated: a write there needs a cluster
CORRUPT_BIT = 2


# ---- damages: what is broken, what touches it, whether QEMU notices, too ----------------


def entry(value, bitmap=0):
    def damage(image):
        image.set_entry(BAD, value, bitmap)
    return damage


def free_tables(*clusters):
    """What is counted as free is handed out: it must be seen to be a table before it is written."""
    def damage(image):
        for cluster in clusters:
            image.put_refcount(cluster, 0)
    return damage


def read(cluster):
    return f"read {cluster * CLUSTER} 4096", lambda client: client.read(cluster * CLUSTER, 4096)


def write(cluster):
    at = cluster * CLUSTER + 4096
    return f"write {at} 4096", lambda client: client.write(at, b"\xee" * 4096)


def discard(cluster):
    return f"discard {cluster * CLUSTER} {CLUSTER}", lambda client: client.trim(cluster * CLUSTER, CLUSTER)


PLACE = 6 * CLUSTER | COPIED

# Name: damage, what touches it (for qemu-io, for us). Tables that the header or L1 name wrongly are refused
# at the start: tests/images/broken.py.
KINDS = {
    "unaligned_data_read": (entry(PLACE + 512), read(BAD)),
    "unaligned_data_written": (entry(PLACE + 512), write(BAD)),
    "unaligned_data_discarded": (entry(PLACE + 512), discard(BAD)),
    "unaligned_reservation": (entry(PLACE + 1024 | ZERO), write(BAD)),
    "reserved_bit": (entry(PLACE | 2), write(BAD)),
    "data_in_header": (entry(512 | COPIED), write(BAD)),
    "data_is_l1": (entry(3 * CLUSTER | COPIED), write(BAD)),
    "data_is_refcount_table": (entry(1 * CLUSTER | COPIED), write(BAD)),
    "data_is_refcount_block": (entry(2 * CLUSTER | COPIED), write(BAD)),
    "data_is_l2": (entry(5 * CLUSTER | COPIED), write(BAD)),
    "free_header": (free_tables(0), write(FRESH)),
    "free_l1": (free_tables(3), write(FRESH)),
    "free_l2": (free_tables(4, 5), write(FRESH)),
    "free_refcount_block": (free_tables(2), write(FRESH)),
}


# What QEMU, asked the same, does not mark: it ignores reserved bits, and fails the discard only.
NOT_QEMU = ("reserved_bit", "unaligned_data_discarded")


# ---- one image ---------------------------------------------------------------------------


def bytes_of(path):
    with open(path, "rb") as image:
        return image.read()


def is_marked(path):
    return bool(int.from_bytes(bytes_of(path)[INCOMPATIBLE:INCOMPATIBLE + 8], "big") & CORRUPT_BIT)


def qemu_marks(place, path, command):
    """Does QEMU set the bit when it is asked the same?"""
    place.run("qemu-io", "-f", "qcow2", "-c", command, path, status=None)
    return is_marked(path)


async def fails(coroutine):
    try:
        await asyncio.wait_for(coroutine, harness.WAIT_S)
    except nbdclient.NbdError:
        return True
    return False


async def guest(path, touch):
    client = await nbdclient.NbdClient.connect(path)
    try:
        expect(await fails(touch(client)), "no error for what touches the damage")
        expect(await fails(client.write(0, b"\xdd" * 4096)), "a write in place, afterwards, succeeded")
        expect(await fails(client.trim(0, CLUSTER)), "a discard, afterwards, succeeded")
        expect_equal(await client.read(0, 4096), b"A" * 4096, "what is good")
    finally:
        await client.close()


def corruptions(qmp):
    qmp.command("query-version")
    return [line["data"] for line in qmp.events if line["event"] == "BLOCK_IMAGE_CORRUPTED"]


def expect_told(qmp):
    told = corruptions(qmp)
    expect_equal(len(told), 1, f"number of BLOCK_IMAGE_CORRUPTED in {qmp.events}")
    expect(told[0]["fatal"] and told[0]["msg"] and "node-name" in told[0], f"event: {told[0]}")


def expect_only_marked(before, path):
    after = bytes_of(path)
    end = INCOMPATIBLE + 24  # the mark that it is open for writing is there, too
    expect(before[:INCOMPATIBLE] == after[:INCOMPATIBLE] and before[end:] == after[end:],
           "something was written besides the feature bits")
    expect(is_marked(path), "the corrupt bit is not set")


def serve(place, path):
    child = place.start("--qmp", place.path("qmp"), "--export", f"nbd,socket={place.path('nbd')}", "--warm", "off",
                        path)
    place.wait_ready(child, place.path("nbd"))
    return child


def stop(place, child):
    child.terminate()
    expect_equal(child.wait(harness.WAIT_S), 0, f"exit status; {place.output()}")


def expect_refused(place, path):
    done = place.run(place.program("qchaind"), "--export", f"nbd,socket={place.path('no')}", path, status=1)
    expect("marked corrupt" in done.stderr, f"refusal: {done.stderr}")


def damaged(place, damage):
    image = Image()
    damage(image)
    return str(image.save(pathlib.Path(place.path("top.qcow2"))))


def check_kind(place, name, damage, touched):
    command, touch = touched
    path, copy = damaged(place, damage), place.path("copy.qcow2")
    shutil.copyfile(path, copy)
    before = bytes_of(path)
    child = serve(place, path)
    qmp = Qmp(place.path("qmp"))
    asyncio.run(guest(place.path("nbd"), touch))
    expect_told(qmp)
    stop(place, child)
    expect_only_marked(before, path)
    expect_equal(qemu_marks(place, copy, command), name not in NOT_QEMU, "QEMU marks it")
    expect_refused(place, path)


def test_beyond_the_volume(place):
    """On a device, which ends where it ends."""
    path = damaged(place, entry(10 * CLUSTER | COPIED))
    volume = Volume(place, "volume", 10 * CLUSTER)
    try:
        shutil.copyfile(path, volume.path)
        before = bytes_of(path)
        child = serve(place, volume.path)
        qmp = Qmp(place.path("qmp"))
        asyncio.run(guest(place.path("nbd"), write(BAD)[1]))
        expect_told(qmp)
        stop(place, child)
        expect_only_marked(before, volume.path)
        expect_refused(place, volume.path)
    finally:
        volume.remove()


def test_freed_twice(place):
    """What was in use and is counted as free: the discard is right, what was found meanwhile ends writing."""
    path = damaged(place, free_tables(7))
    child = serve(place, path)
    qmp = Qmp(place.path("qmp"))

    async def run():
        client = await nbdclient.NbdClient.connect(place.path("nbd"))
        await client.trim(CLUSTER, CLUSTER)
        await client.flush()
        await asyncio.to_thread(harness.wait_until, lambda: corruptions(qmp), "the event")
        expect(await fails(client.write(0, b"\xdd" * 4096)), "a write afterwards succeeded")
        await client.close()
    asyncio.run(run())
    expect_told(qmp)
    stop(place, child)
    expect(is_marked(path), "the corrupt bit is not set")
    expect_refused(place, path)


def test_snapshot_below(place):
    """A layer below is corrupt: reads there fail, and nothing but the guest's own request is the worse for it."""
    below = damaged(place, entry(PLACE + 512))
    before = bytes_of(below)
    top = place.path("over.qcow2")
    place.run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", below, top)
    child = serve(place, top)
    qmp = Qmp(place.path("qmp"))

    async def run():
        client = await nbdclient.NbdClient.connect(place.path("nbd"))
        expect(await fails(client.read(BAD * CLUSTER, 4096)), "no error for what touches the damage")
        expect(await fails(client.write(BAD * CLUSTER + 4096, b"\xee" * 4096)), "copied from a corrupt entry")
        await client.write(0, b"\xdd" * 4096)
        await client.flush()
        await client.close()
    asyncio.run(run())
    told = corruptions(qmp)
    expect(len(told) == 1 and not told[0]["fatal"], f"events: {told}")
    stop(place, child)
    expect(before == bytes_of(below), "the layer below was written")
    expect(not is_marked(top), "the active layer is marked for what is below")


def kind_test(name):
    damage, touched = KINDS[name]
    return lambda place: check_kind(place, name, damage, touched)


globals().update({f"test_{name}": kind_test(name) for name in KINDS})

if __name__ == "__main__":
    sys.exit(harness.main("corrupt", sys.modules[__name__]))
