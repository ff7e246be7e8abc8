#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The intent log of a daemon that was killed: what its successor replays, and what it refuses (rule A1)."""

import asyncio
import os
import signal
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "lib"))

import harness
import imagelocks
import nbdclient
from harness import expect, expect_equal, wait_until
from qemutools import Deadline

CLUSTER = 65536
COUNT = 40
BOOT_ID_AT = 16  # in the file
INCOMPATIBLE_AT = 72  # in a header; bit 0: dirty


def whole(n):
    """What a guest has written to cluster @n."""
    return bytes([n + 1]) * CLUSTER


def middle(n):
    """The same, of a write that fills two sectors."""
    return bytes(512) + bytes([n + 1]) * 1024 + bytes(512)


class Served:
    """qchaind with an intent log, on an overlay of its own."""

    def __init__(self, place, *options):
        self.place = place
        self.image = place.path("disk")
        place.run("qemu-img", "create", "-q", "-f", "qcow2", *options, self.image, "64M")

    def start(self):
        if os.path.exists(self.place.path("nbd")):
            os.unlink(self.place.path("nbd"))
        return self.place.start("--intent-log", self.place.path("intent.log"), "--export",
                                f"nbd,socket={self.place.path('nbd')}", self.image)

    def start_ready(self):
        child = self.start()
        self.place.wait_ready(child, self.place.path("nbd"))
        return child

    def write_and_die(self):
        """Acknowledged, not flushed."""
        child = self.start_ready()

        async def write():
            client = await nbdclient.NbdClient.connect(self.place.path("nbd"))
            await asyncio.gather(*(client.write(n * CLUSTER + 512, bytes([n + 1]) * 1024) for n in range(COUNT)))
            child.kill()
            await client.abandon()
        asyncio.run(write())
        child.wait()
        imagelocks.wait_unlocked(self.image, Deadline(harness.WAIT_S))

    def count_written(self):
        """Clusters that hold what was written, by who takes over."""
        child = self.start_ready()

        async def read():
            client = await nbdclient.NbdClient.connect(self.place.path("nbd"))
            got = [await client.read(n * CLUSTER, 2048) for n in range(COUNT)]
            await client.close()
            return got
        got = asyncio.run(read())
        child.terminate()
        expect_equal(child.wait(harness.WAIT_S), 0, "exit status")
        self.place.run("qemu-img", "check", "-q", "-f", "qcow2", self.image)
        return sum(data == middle(n) for n, data in enumerate(got))

    def refused(self, words):
        child = self.start()
        expect_equal(child.wait(harness.WAIT_S), 1, "exit status of a start that must be refused")
        expect(words in self.place.output(), f"\"{words}\" is not in: {self.place.output()[-400:]}")


def test_replayed(place):
    """What was acknowledged is there after a kill; a second successor finds nothing to do."""
    served = Served(place)
    served.write_and_die()
    expect_equal(served.count_written(), COUNT, "clusters after the takeover")
    expect_equal(served.count_written(), COUNT, "clusters after a clean stop")


def test_extended_l2(place):
    """The same with subclusters."""
    served = Served(place, "-o", "extended_l2=on,cluster_size=128k")
    served.write_and_die()
    expect_equal(served.count_written(), COUNT, "clusters after the takeover")


def test_version_2(place):
    """Without a mark in the header nothing is acknowledged early, so nothing is lost."""
    served = Served(place, "-o", "compat=0.10")
    served.write_and_die()
    expect_equal(served.count_written(), COUNT, "clusters after the takeover")


def test_below_a_dirty_overlay(place):
    """Death just after a snapshot: the overlay's refcounts are repaired after the log of the layer below was replayed."""
    served = Served(place)
    served.write_and_die()
    place.run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on", "-F", "qcow2", "-b", "disk",
              place.path("over"))
    with open(place.path("over"), "r+b") as image:
        image.seek(INCOMPATIBLE_AT)
        image.write((1).to_bytes(8, "big"))
    served.image = place.path("over")
    expect_equal(served.count_written(), COUNT, "clusters after the takeover")
    place.run("qemu-img", "check", "-q", "-f", "qcow2", place.path("disk"))


def write_unflushed(place, pid):
    """Through the chain of qchainctl; its daemon dies before anything is flushed."""
    async def write():
        client = await nbdclient.NbdClient.connect(place.path("sock"))
        await asyncio.gather(*(client.write(n * CLUSTER, whole(n)) for n in range(COUNT)))
        os.kill(pid, signal.SIGKILL)
        await client.abandon()
    asyncio.run(write())
    wait_until(lambda: place.ctl_json("list")[0]["state"] == "dead", "the daemon is dead")


def count_in_image(place, written=whole):
    """Clusters that hold what was written, in the image alone."""
    with tempfile.NamedTemporaryFile() as out:
        place.run("qemu-img", "convert", "-O", "raw", place.path("disk"), out.name)
        data = out.read()
    return sum(data.startswith(written(n), n * CLUSTER) for n in range(COUNT))


def test_down_of_a_dead_chain(place):
    """What was acknowledged is written before the log goes; --force says that it may be lost."""
    for options, word in (([], "recovered"), (["--force"], "cleaned up")):
        Served(place)
        place.ctl("up", "seven", "./disk", "--no-ublk", "--nbd", "sock")
        write_unflushed(place, place.ctl_json("status", "seven")["pid"])
        done = place.ctl("down", "seven", *options)
        expect(word in done.stderr, done.stderr)
        expect_equal(place.ctl_json("list"), [], "chains after down")
        if not options:
            expect_equal(count_in_image(place), COUNT, "clusters in the image")


def test_other_writer(place):
    """Another program wrote the image meanwhile: refused, no byte changes, again and again."""
    served = Served(place)
    served.write_and_die()
    place.run("qemu-io", "-f", "qcow2", "-c", "write -q -P 7 0 4k", served.image)
    with open(served.image, "rb") as image:
        before = image.read()
    for _ in range(2):
        served.refused("another program wrote this image")
    with open(served.image, "rb") as image:
        expect(image.read() == before, "the image was changed")


def test_other_image(place):
    """The log of another chain: refused."""
    served = Served(place)
    served.write_and_die()
    os.rename(served.image, place.path("first"))
    served = Served(place)
    served.refused("an image that is not in this chain")


def test_other_boot(place):
    """A log that has survived a boot is worth nothing: what was not flushed may be lost, and is not made up."""
    served = Served(place)
    served.write_and_die()
    with open(place.path("intent.log"), "r+b") as log:
        log.seek(BOOT_ID_AT)
        log.write(b"0000")
    before = count_in_image(place, middle)  # what a slow daemon had committed by itself
    expect_equal(served.count_written(), before, "clusters after a log of another boot")
    expect("earlier boot" in place.output(), "nothing was said about it")


if __name__ == "__main__":
    sys.exit(harness.main("takeover", sys.modules["__main__"]))
