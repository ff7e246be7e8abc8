#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Sealed layers give back what they do not use: thin LVs on loop devices that a fake lvm calls LVs; kill -9 at each step."""

import asyncio
import json
import os
import signal
import sys

import harness
from full import wait_for
from harness import Qmp, expect, expect_equal, wait_until
from nbdclient import NbdClient
from thin import EXTENT, MIB, SIZE, Thin, pieces

SEALED = 0.3


def end_of(thin, name):
    """Where the image ends, in whole extents."""
    done = thin.place.run("qemu-img", "check", "-f", "qcow2", "--output", "json", "-U", thin.vg.path(name))
    return -(-json.loads(done.stdout)["image-end-offset"] // EXTENT) * EXTENT


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children", encoding="utf-8") as file:
        return [int(word) for word in file.read().split()]


def is_reducing(pid):
    try:
        with open(f"/proc/{pid}/cmdline", encoding="utf-8") as file:
            return "lvreduce" in file.read()
    except OSError:
        return False


def has_shrunk(thin, name="disk"):
    wait_until(lambda: thin.bytes(name) == end_of(thin, name), f"LV {name} ends where its image does")


async def with_guest(thin, work):
    await thin.connect()
    await work()
    await thin.client.close()


def wide(thin):
    """Far more was written than the snapshot will hold: the top is a large LV with little in it."""
    async def work():
        await thin.write_all(pieces(1), 1)
        await thin.client.trim(0, SIZE)
        thin.model.clear()
        await thin.client.flush()
        await wait_for(lambda: thin.status()["status"]["metadata"]["to-reclaim"] == 0, "clusters are free")
        await thin.write_all(pieces(SEALED), 2)
        await thin.client.flush()
    asyncio.run(with_guest(thin, work))
    return thin.bytes()


def write_over(thin, part=0.8, byte=3):
    async def work():
        await thin.check()
        await thin.write_all(pieces(part), byte)
        await thin.client.flush()
        await thin.check()
    asyncio.run(with_guest(thin, work))


def check_both(thin):
    """Taken down: both images are without an error, and LVs without a use."""
    thin.down()
    for name in ("disk", "disk.1.qcow2"):
        if name in thin.vg.lvs():
            thin.place.run("lvm", "lvchange", "--activate", "y", f"{thin.vg.name}/{name}")
            thin.check_image(name)


def test_snapshot(place):
    """The old top ends with its last cluster; what the device shows is the same, and the overlay grows as ever."""
    with Thin(place) as thin:
        thin.create().up()
        before = wide(thin)
        place.ctl("snapshot", "seven", "a")
        has_shrunk(thin)
        expect(thin.bytes() <= SIZE * SEALED + 2 * EXTENT < before, f"LV has {thin.bytes()} bytes, it had {before}")
        write_over(thin)
        layers = place.ctl_json("tree", "seven")["layers"]
        expect_equal(layers[1]["actual-size"], thin.bytes(), "actual-size of the daemon")
        check_both(thin)


def test_thick(place):
    """An LV that was to have all it may ever need keeps it: a commit into it must never wait for space."""
    with Thin(place) as thin:
        place.ctl("create", f"{thin.vg.name}/disk", "--size", str(SIZE))
        thin.up()
        before = wide(thin)
        place.ctl("snapshot", "seven", "a", "--thin", "--chunk", "1M")
        place.ctl("snapshot", "seven", "b")
        has_shrunk(thin, "disk.1.qcow2")
        expect_equal(thin.bytes(), before, "size of the thick LV")
        thin.down()


def commit(qmp):
    """Of the overlay into the LV that has shrunk, by nobody who would have extended that before; what is said against it."""
    said = qmp.command("block-commit", **{"job-id": "c", "device": "disk.1.qcow2", "auto-dismiss": False})
    return said.get("error", {}).get("desc")


def job_gets(qmp, *states):
    wait_until(lambda: qmp.command("query-jobs")["return"][0]["status"] in states, f"the commit is {states}")
    expect("error" not in qmp.command("query-jobs")["return"][0], qmp.command("query-jobs"))


def commit_ends(thin, qmp):
    job_gets(qmp, "ready")
    qmp.command("job-complete", id="c")
    job_gets(qmp, "concluded")
    qmp.command("job-dismiss", id="c")
    qmp.close()
    write_over(thin, 1, 4)
    thin.place.ctl("down", "seven", "--force", status=None)
    thin.check_image()


def begin_reducing(thin, *words):
    """A snapshot; until lvreduce runs, and stays there."""
    thin.vg.pause_reduce(True)
    thin.place.ctl("snapshot", "seven", "a", *words)
    grower = thin.status()["grower"]
    wait_until(lambda: any(is_reducing(pid) for child in children(grower) for pid in children(child)), "lvreduce runs")
    return grower


def test_written_again(place):
    """A commit into it asks for its size before it allocates: nobody has told the daemon. Then it grows."""
    with Thin(place) as thin:
        thin.create().up()
        wide(thin)
        grower = begin_reducing(thin, "--size", "60M")
        os.kill(grower, signal.SIGSTOP)
        thin.vg.pause_reduce(False)
        has_shrunk(thin)
        write_over(thin, 0.9)
        qmp = Qmp(place.path("run/seven/qmp.sock"))
        expect_equal(commit(qmp), None, "refusal")
        job_gets(qmp, "paused")
        os.kill(grower, signal.SIGCONT)
        commit_ends(thin, qmp)


def test_end_of_a_merge(place):
    """The base of a commit of layers below the active one is sealed again, and ends with its last cluster."""
    with Thin(place) as thin:
        thin.create().up()
        wide(thin)
        place.ctl("snapshot", "seven", "a")
        has_shrunk(thin)
        write_over(thin)
        place.ctl("snapshot", "seven", "b")
        has_shrunk(thin, "disk.1.qcow2")
        place.ctl("commit", "seven", "--top", "b", "--drop-snapshots")
        has_shrunk(thin)
        write_over(thin, 0.5, 5)
        thin.down()


def test_held_to_the_end(place):
    """lvreduce itself keeps the image's locks: who has begun it is killed, and still nobody can begin to write."""
    with Thin(place) as thin:
        thin.create().up()
        wide(thin)
        for pid in children(begin_reducing(thin)):
            os.kill(pid, signal.SIGKILL)
        qmp = Qmp(place.path("run/seven/qmp.sock"))
        refusal = commit(qmp)
        expect(refusal and 'image lock "write" is denied' in refusal, f"commit beside lvreduce: {refusal}")
        thin.vg.pause_reduce(False)
        has_shrunk(thin)
        wait_until(lambda: commit(qmp) is None, "a commit is taken again")
        commit_ends(thin, qmp)


def test_damaged(place):
    """A table that names what nobody counts: where such an image ends nobody knows, and it stays as it is."""
    with Thin(place) as thin:
        place.environment["QCHAIN_CRASH_POINT"] = "shrink.locked"
        thin.create().up()
        before = wide(thin)
        place.ctl("snapshot", "seven", "a")
        del place.environment["QCHAIN_CRASH_POINT"]
        thin.down()
        place.run("lvm", "lvchange", "--activate", "y", f"{thin.vg.name}/disk")
        count_nothing_at_the_end(thin, "disk")
        up_again(thin)
        def told():
            with open(place.path("run/seven/qchaind.log"), encoding="utf-8") as log:
                return "keeps its size: errors in its tables" in log.read()
        wait_until(told, "the log says that it keeps its size")
        expect(thin.bytes() >= before, f"LV has {thin.bytes()} bytes, it had {before}")
        thin.down()


def up_again(thin):
    thin.place.ctl("up", "seven", thin.vg.path("disk.1.qcow2"), "--no-ublk", "--nbd", thin.place.path("sock"))


def count_nothing_at_the_end(thin, name):
    """The last cluster in use has a refcount of 0 from now on."""
    with open(thin.vg.path(name), "r+b") as file:
        file.seek(48)
        table = int.from_bytes(file.read(8), "big")
        file.seek(table)
        block = int.from_bytes(file.read(8), "big")
        file.seek(block)
        counts = file.read(1 << 16)
        last = max(at for at in range(0, len(counts), 2) if counts[at:at + 2] != bytes(2))
        file.seek(block + last)
        file.write(bytes(2))


async def write_layer(place, byte, ranges):
    client = await NbdClient.connect(place.path("sock"))
    for begin, end in ranges:
        for at in range(begin, end):
            await client.write(at * MIB, bytes([byte]) * MIB)
    await client.flush()
    await client.close()


# The example of docs/space.md at a hundredth, in MiB: what is written before each of the four snapshots, and after.
CAPACITY = [[(0, 600)], [(0, 30), (600, 620)], [(100, 130), (620, 640)], [(200, 230), (640, 660)], [(300, 330), (660, 680)]]


def test_capacity(place):
    """A disk of 1.5 GB, 600 MB in it, four snapshots, 50 MB changed between two: the LVs take little more than is held."""
    with Thin(place, size=4 << 30) as thin:
        place.ctl("create", f"{thin.vg.name}/disk", "--size", "1500M", "--thin", "--chunk", "8M")
        thin.up()
        for number, ranges in enumerate(CAPACITY):
            if number:
                place.ctl("snapshot", "seven", f"day{number}")
            asyncio.run(write_layer(place, number + 1, ranges))
        for name in list(thin.vg.lvs())[:-1]:
            has_shrunk(thin, name)
        said = place.ctl_json("space", thin.vg.name)[0]
        layers = said["chains"][0]["layers"]
        held = sum(layer["held"] for layer in layers)
        taken = sum(lv["size"] for lv in thin.vg.lvs().values())
        expect_equal(held, 800 * MIB, "bytes that are held")
        expect(taken <= 1.15 * held, f"LVs take {taken / held:.2f} times what is held")
        thin.down()


def crash(place, point):
    """Killed there, every time: the LV is as it was or as it will be; without that it gets done."""
    with Thin(place) as thin:
        place.environment["QCHAIN_CRASH_POINT"] = point
        thin.create().up()
        before = wide(thin)
        place.ctl("snapshot", "seven", "a")
        del place.environment["QCHAIN_CRASH_POINT"]
        write_over(thin)
        expect(thin.bytes() >= before or thin.bytes() == end_of(thin, "disk"), f"LV has {thin.bytes()} bytes, it had {before}")
        check_both(thin)
        up_again(thin)
        has_shrunk(thin)
        write_over(thin, 1, 4)
        check_both(thin)


def test_crash_with_the_locks(place):
    crash(place, "shrink.locked")


def test_crash_before_lvreduce(place):
    crash(place, "shrink.checked")


def test_crash_after_lvreduce(place):
    crash(place, "shrink.reduced")


if __name__ == "__main__":
    sys.exit(harness.main("shrink", sys.modules["__main__"]))
