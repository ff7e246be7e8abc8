#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""A served chain grows: what is new, what is refused, kill -9 at each crash point."""

import asyncio
import json
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "lib"))

import harness
from full import Volume
from harness import Qmp, expect, expect_equal, wait_until
from lifecycle import guest_io, kill_daemon, nothing_left, up
from nbdclient import NbdClient
from snapshot import check_all, fails, wait_sealed

MIB = 1 << 20
OLD = 8 * MIB - 1536  # ends in the middle of a cluster
NEW = 20 * MIB + 512
POINTS = ("table", "zeroed", "sized")


def make_longer(place, options="cluster_size=4k"):
    """top.qcow2 of OLD bytes over a base of 16 MiB that is full of data."""
    place.run("qemu-img", "create", "-q", "-f", "qcow2", place.path("base.qcow2"), "16M")
    place.run("qemu-io", "-f", "qcow2", "-c", "write -P 7 0 16M", place.path("base.qcow2"))
    place.run("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, "-b", "base.qcow2", "-F", "qcow2",
              place.path("top.qcow2"), str(OLD))


def size_of(place, image="top.qcow2"):
    info = place.run("qemu-img", "info", "-U", "--output=json", place.path(image)).stdout
    return json.loads(info)["virtual-size"]


def content(place, image="top.qcow2"):
    place.run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", place.path(image), place.path("raw"))
    with open(place.path("raw"), "rb") as raw:
        return raw.read()


def served_size(place, socket="seven.sock"):
    info = place.run("qemu-img", "info", "--output=json", f"nbd+unix:///?socket={place.path(socket)}").stdout
    return json.loads(info)["virtual-size"]


def resize(qmp, size, node="top.qcow2"):
    return qmp.command("block_resize", **{"node-name": node, "size": size})


def refused(answer, text):
    expect(text in (answer or {}).get("error", {}).get("desc", ""), f"{answer}, expected {text!r}")


def test_grow(place):
    """What is new reads as zero, whatever the backing has there, and can be written; the next start knows it."""
    make_longer(place)
    up(place)
    guest_io(place, "seven.sock", f"write -P 1 {OLD - 1024} 1024")
    answer = place.ctl_json("resize", "seven", str(NEW))
    expect_equal(answer, {"name": "seven", "filename": place.path("top.qcow2"), "virtual-size": NEW,
                          "previous-size": OLD, "device-size": NEW}, "answer")
    expect_equal((served_size(place), size_of(place)), (NEW, NEW), "sizes")
    expect_equal(place.ctl_json("tree", "seven")["layers"][0]["virtual-size"], NEW, "size in tree")
    guest_io(place, "seven.sock", f"read -P 1 {OLD - 1024} 1024", f"read -P 0 {OLD} {NEW - OLD}",
             f"read -P 7 0 {OLD - 1024}", f"write -P 2 {NEW - 4096} 4096", f"write -P 3 {OLD} 512")
    expect_equal(place.ctl("resize", "seven", "+4M").stdout, "seven: 24 MiB, was 20 MiB\n", "report")
    guest_io(place, "seven.sock", f"read -P 2 {NEW - 4096} 4096", f"read -P 0 {NEW} 4M")
    place.ctl("snapshot", "seven", "one")
    guest_io(place, "seven.sock", "write -P 4 23M 1M")
    place.ctl("down", "seven")
    check_all(place)
    wanted = b"\7" * (OLD - 1024) + b"\1" * 1024 + b"\3" * 512 + bytes(NEW - 4096 - OLD - 512) + b"\2" * 4096
    expect(content(place) == wanted + bytes(4 * MIB), "the snapshot holds something else")
    expect(content(place, "top.1.qcow2") ==
           wanted + bytes(23 * MIB - NEW) + b"\4" * MIB + bytes(512), "the device holds something else")
    nothing_left(place)


async def grow_beside_reads(place, qmp, rounds, step):
    """Some sectors at a time: what is written beyond each old end is read back, while others read around it."""
    disk = await NbdClient.connect(place.path("seven.sock"))
    others = [await NbdClient.connect(place.path("seven.sock")) for _ in range(2)]
    loop = asyncio.get_running_loop()
    size = OLD
    for number in range(1, rounds + 1):
        done = loop.run_in_executor(None, resize, qmp, size + step)
        while not done.done():
            await asyncio.gather(*(other.read(size - 512, 512) for other in others))
        expect_equal(await done, {"return": {}}, "block_resize")
        await disk.write(size, bytes([number]) * step)
        got = await disk.read(size - 512, 512 + step)
        expect(got[512:] == bytes([number]) * step, f"round {number}: what was written at {size} reads as {got[512:516]}")
        size += step
    for client in (disk, *others):
        await client.close()


def test_written_beyond_the_old_end(place):
    """A cluster that is there already has the old end in it: whoever reads meanwhile must not hide what comes."""
    make_longer(place, "cluster_size=64k")
    up(place)
    guest_io(place, "seven.sock", f"write -P 1 {OLD - 1024} 1024")
    qmp = Qmp(place.path("run/seven/qmp.sock"))
    asyncio.run(grow_beside_reads(place, qmp, 100, 512))
    qmp.close()
    place.ctl("down", "seven")
    check_all(place)
    wanted = b"\7" * (OLD - 1024) + b"\1" * 1024 + b"".join(bytes([n]) * 512 for n in range(1, 101))
    expect(content(place) == wanted, "the device holds something else")
    nothing_left(place)


def test_kinds(place):
    """Images of all kinds: tables that move, and what is compressed, shared or zero at the old end."""
    for options in ("cluster_size=512", "cluster_size=4k", "cluster_size=64k,extended_l2=on", "cluster_size=2M",
                    "compat=0.10", "lazy_refcounts=on", "cluster_size=1k,refcount_bits=64"):
        make_longer(place, options)
        place.run("qemu-io", "-f", "qcow2", "-c", f"write -P 5 {OLD - 5120} 5120", place.path("top.qcow2"))
        if options == "cluster_size=64k,extended_l2=on":
            place.run("qemu-img", "snapshot", "-c", "inner", place.path("top.qcow2"))
        child = place.start_chain()
        qmp = Qmp(place.path("qmp"))
        for size in (OLD + 512, 9 * MIB, NEW):
            expect_equal(resize(qmp, size), {"return": {}}, f"{options}: answer")
        guest_io(place, "nbd", f"write -P 6 {NEW - 512} 512", f"read -P 0 {OLD} {NEW - OLD - 512}")
        child.terminate()
        expect_equal(child.wait(harness.WAIT_S), 0, "exit status")
        check_all(place)
        expect(content(place) == b"\7" * (OLD - 5120) + b"\5" * 5120 + bytes(NEW - OLD - 512) + b"\6" * 512,
               f"{options}: content")


def test_refused(place):
    """Wrong nodes and sizes as QEMU says it; a layer below; less than there is; more than the tables can map."""
    make_longer(place, "cluster_size=512")
    up(place)
    qmp = Qmp(place.path("run/seven/qmp.sock"))
    refused(qmp.command("block_resize", size=NEW), "Cannot find device='' nor node-name=''")
    refused(qmp.command("block_resize", device="nope", size=NEW), "Cannot find device='nope' nor node-name=''")
    refused(resize(qmp, NEW, "nope"), "Cannot find device='' nor node-name='nope'")
    refused(resize(qmp, -1), "Parameter 'size' expects a >0 size")
    refused(resize(qmp, NEW + 1), "The new size must be a multiple of 512")
    refused(resize(qmp, NEW, "base.qcow2"), "is not the active layer (top.qcow2)")
    refused(resize(qmp, OLD - 512), "a device shrinks only while nobody serves it")
    refused(resize(qmp, 1 << 40), "too large for its cluster size")
    expect_equal(resize(qmp, OLD), {"return": {}}, "the size that it has")
    expect("shrinks only while nobody serves it" in fails(place, "resize", "seven", "1M"), "shrinking")
    fails(place, "resize", "--shrink", "seven", "--", "-1M", status=2)
    expect_equal((size_of(place), served_size(place)), (OLD, OLD), "sizes")
    place.ctl("down", "seven")


def test_refused_read_only(place):
    place.make_chain()
    up(place, "seven", "./top.qcow2", "seven.sock", "--read-only")
    expect("is read-only" in fails(place, "resize", "seven", "+1M"), "read-only")
    place.ctl("down", "seven")
    place.run("qemu-img", "create", "-q", "-f", "raw", place.path("disk.raw"), "4M")
    place.ctl("up", "seven", "./disk.raw", "--format", "raw", "--no-ublk", "--nbd", "seven.sock")
    expect("raw, what grows in use must be qcow2" in fails(place, "resize", "seven", "+1M"), "raw")
    place.ctl("snapshot", "seven", "one")
    wait_sealed(place)
    place.ctl("resize", "seven", "+1M")
    guest_io(place, "seven.sock", "read -P 0 0 5M")
    place.ctl("down", "seven")


def test_refused_by_job(place):
    """While a merge runs, with the job's name (rule D6); before anything has changed."""
    place.make_chain()
    place.run("qemu-io", "-f", "qcow2", "-c", "write -P 1 0 16M", place.path("base.qcow2"))
    up(place)
    qmp = Qmp(place.path("run/seven/qmp.sock"))
    started = qmp.command("block-stream", **{"job-id": "slow", "device": "top.qcow2", "speed": MIB})
    expect_equal(started, {"return": {}}, "stream")
    refused(resize(qmp, 17 * MIB), "job slow (stream) changes the chain")
    expect("job slow (stream)" in fails(place, "resize", "seven", "+1M"), "the job's name")
    qmp.command("job-cancel", id="slow")
    wait_until(lambda: not qmp.command("query-jobs")["return"], "the job is gone")
    place.ctl("resize", "seven", "+1M")
    place.ctl("down", "seven")


def test_full(place):
    """No space for a longer table: nothing has changed, and it is done once there is space."""
    volume = Volume(place, "volume", 64 << 10)
    try:
        place.run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", volume.path, "2M")
        child = place.start("--qmp", place.path("qmp"), "--export", f"nbd,socket={place.path('nbd')}",
                            "--on-full", "fail", volume.path)
        place.wait_ready(child, place.path("nbd"))
        qmp = Qmp(place.path("qmp"))
        name = os.path.basename(volume.path)
        words = [word for at in range(0, 48, 4) for word in ("-c", f"write -P 1 {at}k 4k")]
        place.run("qemu-io", "-f", "raw", *words, f"nbd+unix:///?socket={place.path('nbd')}", status=None)
        refused(resize(qmp, 1 << 32, name), "not resized, the L1 table could not be written")
        expect_equal(served_size(place, "nbd"), 2 * MIB, "size")
        volume.grow(8 * MIB)
        expect_equal(resize(qmp, 1 << 32, name), {"return": {}}, "with space")
        guest_io(place, "nbd", "write -P 2 4095M 1M", "read -P 0 2M 2M")
        child.terminate()
        expect_equal(child.wait(harness.WAIT_S), 0, "exit status")
        place.run("qemu-img", "check", "-q", "-f", "qcow2", volume.path)
        expect_equal(size_of(place, volume.path), 1 << 32, "size")
    finally:
        for child in place.children:
            child.kill()
            child.wait()
        volume.remove()


def judge_killed(place, point, wanted):
    """The size is the old or the new one; what is there reads as it must, and the image has no error."""
    done = size_of(place)
    expect_equal(done, NEW if point == "sized" else OLD, f"size after {point}")
    expect(content(place) == (wanted + bytes(NEW - OLD))[:done], f"content after {point}")
    check = place.run("qemu-img", "check", "-f", "qcow2", place.path("top.qcow2"), status=None)
    expect(check.returncode in (0, 3), f"{point}: {check.stdout}")


def test_killed(place):
    """The daemon, at each crash point; then it is served again, and grows."""
    for point in POINTS:
        make_longer(place)
        place.environment["QCHAIN_CRASH_POINT"] = f"resize.{point}"
        child = place.start_chain("--intent-log", place.path("log"))
        del place.environment["QCHAIN_CRASH_POINT"]
        guest_io(place, "nbd", f"write -P 1 {OLD - 512} 512")
        expect_equal(resize(Qmp(place.path("qmp")), NEW), None, "answer")
        expect_equal(child.wait(harness.WAIT_S), -9, f"exit status at {point}")
        for name in ("nbd", "qmp"):
            os.unlink(place.path(name))
        child = place.start_chain("--intent-log", place.path("log"))
        child.terminate()
        expect_equal(child.wait(harness.WAIT_S), 0, "exit status")
        judge_killed(place, point, b"\7" * (OLD - 512) + b"\1" * 512)
        os.unlink(place.path("log"))
        child = place.start_chain()
        expect_equal(resize(Qmp(place.path("qmp")), NEW), {"return": {}}, f"after {point}")
        child.terminate()
        expect_equal(child.wait(harness.WAIT_S), 0, "exit status")
        judge_killed(place, "sized", b"\7" * (OLD - 512) + b"\1" * 512)


def test_killed_ctl(place):
    """qchainctl, between volume and image: nothing has changed, and it can be done again."""
    make_longer(place)
    up(place)
    done = place.run(place.program("qchainctl"), "resize", "seven", str(NEW), status=None,
                     environment=dict(place.environment, QCHAIN_CRASH_POINT="resize.extended"))
    expect_equal((done.returncode, size_of(place)), (-9, OLD), "exit status, and size")
    place.ctl("resize", "seven", str(NEW))
    kill_daemon(place)
    place.ctl("up", "seven")
    expect_equal(served_size(place), NEW, "size after a takeover")
    place.ctl("down", "seven")
    expect("Examples:" in place.ctl("resize", "--help").stdout, "no examples")


if __name__ == "__main__":
    sys.exit(harness.main("resize", sys.modules[__name__]))
