#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A volume that runs full, on a loop device: what waits, what goes on, what people are told (rule E2)."""

import asyncio
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "lib"))

import harness
import nbdclient
from harness import Qmp, Skip, expect, expect_equal, wait_until
from loopvolume import LoopVolume, NoLoop

CLUSTER = 65536
TAGS = 64  # of one NBD connection


class Volume(LoopVolume):
    """A file of @place as one; the test is skipped where there are none."""

    def __init__(self, place, name, size, block=512):
        try:
            super().__init__(place.path(name), size, block)
        except NoLoop as error:
            raise Skip(str(error)) from error


class Full:
    """qchaind on a small volume, with NBD and QMP; `with` removes the device."""

    def __init__(self, place, size, *words, prepare=None):
        self.place = place
        self.volume = Volume(place, "volume", size)
        place.run("qemu-img", "create", "-q", "-f", "qcow2", self.volume.path, "64M")
        if prepare:
            prepare(self.volume.path)
        self.child = place.start("--qmp", place.path("qmp"), "--export", f"nbd,socket={place.path('nbd')}",
                                 *words, self.volume.path)

    def __enter__(self):
        self.place.wait_ready(self.child, self.place.path("nbd"))
        self.events = Qmp(self.place.path("qmp"))
        return self

    def __exit__(self, *unused):
        self.child.kill()
        self.child.wait()
        self.volume.remove()

    def status(self):
        return Qmp(self.place.path("qmp")).command("query-status")["return"]

    def wait_event(self, name):
        while True:
            line = self.events.read()
            if line.get("event") == name:
                return line["data"]

    def stop(self):
        self.child.terminate()
        expect_equal(self.child.wait(harness.WAIT_S), 0, "exit status")
        self.place.run("qemu-img", "check", "-q", "-f", "qcow2", self.volume.path)


async def connect(place):
    return await nbdclient.NbdClient.connect(place.path("nbd"))


def start_writes(client, count, first=0):
    return [asyncio.create_task(client.write((first + n) * CLUSTER, bytes([n + 1]) * CLUSTER)) for n in range(count)]


async def wait_for(condition, what):
    """wait_until() for tests that have tasks under way."""
    for _ in range(harness.WAIT_S * 50):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise harness.Failure(f"waited in vain: {what}")


def parked(status):
    return sum(queue["parked"] for queue in status["queues"])


def test_wait(place):
    """Writes wait, reads and flushes do not; less than a quarter of the tags: event, status; growth: all go on."""
    async def run(full):
        client = await connect(place)
        tasks = start_writes(client, 60)
        await wait_for(lambda: parked(full.status()) > 3 * TAGS // 4, "most tags wait for space")
        await wait_for(lambda: parked(full.status()) == full.status()["requests"]["under-way"], "the others have ended")
        status = full.status()
        queue = status["queues"][0]
        expect_equal((queue["tags"], queue["low"], len(status["queues"])), (TAGS, True, 1), "queue")
        expect_equal(status["requests"]["stages"]["space"], queue["parked"], "requests at stage space")
        oldest = status["requests"]["oldest"][0]
        expect_equal((oldest["operation"], oldest["stage"], oldest["length"], oldest["queue"]),
                     ("write", "space", CLUSTER, queue["queue"]), "the oldest request")
        low = full.wait_event("QCHAIN_QUEUE_LOW")
        expect_equal((low["tags"], low["queue"]), (TAGS, queue["queue"]), "data of the event")
        expect(low["parked"] > 3 * TAGS // 4, f"event says {low}")
        await client.flush()
        expect_equal(len(await client.read(40 << 20, 1 << 16)), 1 << 16, "a read while writes wait")
        await wait_for(lambda: full.status()["metadata"]["full"], "status says full")
        await client.flush()
        expect(not all(task.done() for task in tasks), "writes went on without space")
        full.volume.grow(32 << 20)
        await asyncio.gather(*tasks)
        await wait_for(lambda: not full.status()["metadata"]["full"], "status says that there is space")
        expect_equal(full.status()["queues"], [], "queues after growth")
        for n in range(60):
            expect_equal(await client.read(n * CLUSTER, CLUSTER), bytes([n + 1]) * CLUSTER, f"cluster {n}")
        await client.close()
    with Full(place, 1 << 20) as full:
        asyncio.run(run(full))
        full.stop()


def test_fail(place):
    """--on-full fail: ENOSPC instead of waiting, also when all tags are taken; the device lives on."""
    async def run(full):
        client = await connect(place)
        for first in (0, 100):
            done = await asyncio.gather(*start_writes(client, TAGS, first), return_exceptions=True)
            failed = [str(error) for error in done if error is not None and not isinstance(error, bytes)]
            expect(len(failed) > TAGS // 2, f"only {len(failed)} writes failed")
            expect(all("ENOSPC" in text or "28" in text or "space" in text for text in failed), failed[0])
        expect_equal(full.status()["queues"], [], "queues when nothing waits")
        await client.read(0, CLUSTER)
        full.volume.grow(16 << 20)
        await wait_for_write(client)
        await client.close()
    with Full(place, 1 << 20, "--on-full", "fail") as full:
        asyncio.run(run(full))
        full.stop()


async def wait_for_write(client):
    """Until the growth was noticed."""
    for _ in range(harness.WAIT_S * 20):
        try:
            await client.write(300 * CLUSTER, b"z" * CLUSTER)
            return
        except nbdclient.NbdError:
            await asyncio.sleep(0.05)
    raise harness.Failure("writes still fail after growth")


def test_memory_of_a_connection(place):
    """Few long writes keep all memory of their connection: told as well, others go on."""
    async def run(full):
        client, other = await connect(place), await connect(place)
        tasks = [asyncio.create_task(client.write(n << 23, b"m" * (8 << 20))) for n in range(4)]
        low = await asyncio.to_thread(full.wait_event, "QCHAIN_QUEUE_LOW")
        expect(low["parked"] <= 4, f"event says {low}")
        await other.read(0, CLUSTER)
        await other.flush()
        full.volume.grow(64 << 20)
        await asyncio.gather(*tasks)
        await client.close()
        await other.close()
    with Full(place, 1 << 20) as full:
        asyncio.run(run(full))
        full.stop()


def test_quit_by_force(place):
    """quit with force fails what waits; without it, it is refused while somebody is connected."""
    async def run(full):
        client = await connect(place)
        tasks = start_writes(client, TAGS - 1)
        await wait_for(lambda: parked(full.status()) > TAGS // 2, "writes wait")
        answer = Qmp(place.path("qmp")).command("quit")
        expect("in use" in answer["error"]["desc"], answer)
        quit_by = Qmp(place.path("qmp"))
        expect_equal(await asyncio.to_thread(quit_by.command, "quit", force=True), {"return": {}}, "answer to quit")
        done = await asyncio.gather(*tasks, return_exceptions=True)
        expect(any(isinstance(error, Exception) for error in done), "no write failed")
    with Full(place, 1 << 20) as full:
        asyncio.run(run(full))
        wait_until(lambda: full.child.poll() is not None, "the daemon ends")
        expect_equal(full.child.returncode, 0, "exit status")
        place.run("qemu-img", "check", "-q", "-f", "qcow2", full.volume.path)


def leak_clusters(path, first, end):
    """Count clusters that nobody uses, in an image with one 16-bit refcount block."""
    with open(path, "r+b") as volume:
        volume.seek(48)
        volume.seek(int.from_bytes(volume.read(8), "big"))
        volume.seek(int.from_bytes(volume.read(8), "big") + 2 * first)
        volume.write(b"\0\1" * (end - first))


def test_leaks_before_full(place):
    """Before the volume is called full, leaked clusters are found and used (rule A4)."""
    async def run(full):
        client = await connect(place)
        expect_equal(full.status()["leak-scan"]["percent"], 0, "no scan before there is need")
        await asyncio.gather(*start_writes(client, 48))
        status = full.status()
        expect_equal((status["leak-scan"]["freed-clusters"], status["metadata"]["full"]), (44, False), "status")
        await client.flush()
        await client.close()
        full.child.terminate()
        events = [line["event"] for line in await asyncio.to_thread(full.events.until_end)]
        expect("QCHAIN_LEAK_SCAN" in events and "BLOCK_IO_ERROR" not in events, f"events: {events}")
    with Full(place, 4 << 20, prepare=lambda path: leak_clusters(path, 20, 64)) as full:
        asyncio.run(run(full))
        full.stop()


def test_discard_when_full(place):
    """On a full volume discards and zeroes still find room for their tables, and what they free is used (rule E2)."""
    def over_a_base(path):
        place.run("qemu-img", "create", "-q", "-f", "qcow2", place.path("base"), "4G")
        place.run("qemu-io", "-f", "qcow2", "-c", "write -P 9 1G 64k", "-c", "write -P 9 2G 64k", place.path("base"))
        place.run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", place.path("base"), path)

    async def run(full):
        client = await connect(place)
        tasks = start_writes(client, 60)
        await wait_for(lambda: full.status()["metadata"]["full"], "status says full")
        await asyncio.wait_for(client.trim(1 << 30, CLUSTER), harness.WAIT_S)
        await asyncio.wait_for(client.write_zeroes(2 << 30, CLUSTER), harness.WAIT_S)
        for offset in (1 << 30, 2 << 30):
            expect_equal(await client.read(offset, CLUSTER), bytes(CLUSTER), f"content at {offset} afterwards")
        done = [n for n, task in enumerate(tasks) if task.done()]
        waiting = len(tasks) - len(done)
        expect(len(done) > 20 and waiting, f"{len(done)} writes of {len(tasks)} found room")
        for n in done[:waiting]:
            await client.trim(n * CLUSTER, CLUSTER)
        await asyncio.wait_for(asyncio.gather(*tasks), harness.WAIT_S)
        for n in set(range(60)) - set(done[:waiting]):
            expect_equal(await client.read(n * CLUSTER, CLUSTER), bytes([n + 1]) * CLUSTER, f"cluster {n}")
        await client.close()
    with Full(place, 3 << 20, "--allow-backing", place.path("base"), prepare=over_a_base) as full:
        asyncio.run(run(full))
        full.stop()


def test_snapshot_when_full(place):
    """A snapshot to a new image takes what waits for space along; the full one is sealed and forgotten."""
    async def run(full):
        client = await connect(place)
        tasks = start_writes(client, 60)
        await wait_for(lambda: full.status()["metadata"]["full"], "status says full")
        qmp = Qmp(place.path("qmp"))
        for command, words in (("blockdev-add", {"node-name": "over", "driver": "qcow2",
                                                 "file": {"driver": "file", "filename": place.path("over")}}),
                               ("blockdev-snapshot", {"node": os.path.basename(full.volume.path), "overlay": "over"})):
            expect_equal(qmp.command(command, **words), {"return": {}}, f"answer to {command}")
        await asyncio.wait_for(asyncio.gather(*tasks), harness.WAIT_S)
        await wait_for(lambda: states(qmp) == ["active", "sealed"], "the full volume is sealed")
        # timers run in the order of their time: one that the volume had left has run before these entries are written
        commits = full.status()["metadata"]["commits"]
        await client.write(100 * CLUSTER, b"o" * CLUSTER)
        await wait_for(lambda: full.status()["metadata"]["commits"] > commits, "a commit by time")
        for n in range(60):
            expect_equal(await client.read(n * CLUSTER, CLUSTER), bytes([n + 1]) * CLUSTER, f"cluster {n}")
        await client.close()

    def states(qmp):
        return [node["state"] for node in qmp.command("query-named-block-nodes")["return"]]

    with Full(place, 1 << 20, prepare=lambda path: place.run(
            "qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", path, place.path("over"), "64M")) as full:
        asyncio.run(run(full))
        full.stop()


if __name__ == "__main__":
    sys.exit(harness.main("full", sys.modules["__main__"]))
