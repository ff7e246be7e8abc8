#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""blockdev-backup: the device at one instant, whatever guests, targets and administrators do meanwhile."""

import asyncio
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "lib"))

import harness
from harness import Qmp, Skip, expect, expect_equal, wait_until
from loopvolume import LoopVolume, NoLoop
from nbdclient import NbdClient

MIB = 1 << 20
SIZE = 16 * MIB
SLOW = 65536  # bytes a second: nothing but what guests ask for gets anywhere


def make(place):
    """base <- top with data in both, with zeroes and holes."""
    place.make_chain()
    place.run("qemu-io", "-f", "qcow2", "-c", "write -P 1 0 6M", "-c", "write -P 2 9M 100k", place.path("base.qcow2"))
    place.run("qemu-io", "-f", "qcow2", "-c", "write -P 3 2M 3M", "-c", "write -z 4M 1M", "-c", "write -P 4 12M 4M",
              place.path("top.qcow2"))
    place.run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", place.path("top.qcow2"), place.path("before.raw"))


def start(place, *words):
    make(place)
    child = place.start_chain(*words)
    return child, Qmp(place.path("qmp"))


def done(answer, what):
    expect_equal(answer, {"return": {}}, what)


def refused(answer, text, what):
    expect(text in answer.get("error", {}).get("desc", ""), f"{what} is answered with {answer}, expected {text}")


def add(qmp, driver, file, status=None):
    answer = qmp.command("blockdev-add", **{"driver": driver, "node-name": "copy",
                                            "file": {"driver": "file", "filename": file}})
    if status is None:
        done(answer, "blockdev-add")
    return answer


def add_target(place, qmp, *create, driver="qcow2"):
    place.run("qemu-img", "create", "-q", "-f", driver, *create, place.path("copy"), "16M")
    add(qmp, driver, place.path("copy"))


def backup(qmp, sync="full", **more):
    words = {"job-id": "j", "device": "top.qcow2", "target": "copy", "sync": sync, "auto-dismiss": False,
             **{key.replace("_", "-"): value for key, value in more.items()}}
    return qmp.command("blockdev-backup", **words)


def job(qmp):
    rows = qmp.command("query-jobs")["return"]
    return rows[0] if rows else None


def wait_state(qmp, *states):
    wait_until(lambda: job(qmp)["status"] in states, f"the job is {states}")
    return job(qmp)


def finish(qmp, error=None):
    row = wait_state(qmp, "concluded")
    expect((error is None and "error" not in row) or (error and error in row.get("error", "")), f"the end is {row}")
    done(qmp.command("job-dismiss", id="j"), "job-dismiss")
    done(qmp.command("blockdev-del", **{"node-name": "copy"}), "blockdev-del")


def compare(place, driver="qcow2", copy="copy"):
    """With what the device showed before."""
    place.run("qemu-img", "compare", "-f", "raw", "-F", driver, place.path("before.raw"), place.path(copy))
    if driver == "qcow2":
        place.run("qemu-img", "check", "-q", "-f", "qcow2", place.path(copy))


def expect_marked(place):
    """Nobody takes it for a backup."""
    told = place.run("qemu-img", "info", place.path("copy"), status=1).stderr
    expect("nsupported" in told, f"qemu-img info says {told}")
    told = place.run(place.program("qchainctl"), "info", place.path("copy"), status=1).stderr
    expect("a copy that was not finished" in told, f"qchainctl info says {told}")


def guest(place, *steps):
    async def run():
        client = await NbdClient.connect(place.path("nbd"))
        await asyncio.wait_for(asyncio.gather(*[step(client) for step in steps]), harness.WAIT_S)
        await client.close()
    asyncio.run(run())


def overwrite(place):
    """All of the device: writes, zeroes and discards, many at once."""
    guest(place, *[lambda c, at=at: c.write(at, b"n" * 65536) for at in range(0, 8 * MIB, 65536)],
          lambda c: c.write_zeroes(8 * MIB, 2 * MIB), lambda c: c.trim(10 * MIB, 4 * MIB),
          lambda c: c.write(15 * MIB + 512, b"n" * 1024), lambda c: c.write(14 * MIB + 512, b"n" * MIB))


def test_targets(place):
    """Every kind of target shows what the device shows, and is sparse where that is."""
    _, qmp = start(place)
    for driver, words in (("qcow2", ()), ("qcow2", ("-o", "cluster_size=2M")), ("qcow2", ("-o", "compat=0.10")),
                          ("qcow2", ("-o", "extended_l2=on,cluster_size=128k")), ("raw", ())):
        add_target(place, qmp, *words, driver=driver)
        done(backup(qmp), "blockdev-backup")
        finish(qmp)
        compare(place, driver)
        if driver == "qcow2" and not words:
            expect(os.stat(place.path("copy")).st_blocks * 512 < 11 * MIB, "the target is not sparse")
        os.unlink(place.path("copy"))


def test_top(place):
    """What the active layer holds, into an overlay of what is below it."""
    _, qmp = start(place)
    add_target(place, qmp, "-b", place.path("base.qcow2"), "-F", "qcow2")
    done(backup(qmp, "top"), "blockdev-backup")
    finish(qmp)
    compare(place)
    expect(os.stat(place.path("copy")).st_blocks * 512 < 7 * MIB, "more than the active layer is copied")


def test_instant(place):
    """A guest overwrites all of it while nothing but what it waits for is copied."""
    child, qmp = start(place)
    for driver in ("qcow2", "raw"):
        add_target(place, qmp, driver=driver)
        done(backup(qmp, speed=SLOW), "blockdev-backup")
        overwrite(place)
        overwrite(place)
        done(qmp.command("block-job-set-speed", device="j", speed=0), "set-speed")
        finish(qmp)
        compare(place, driver)
        os.unlink(place.path("copy"))
        place.run("qemu-img", "convert", "-f", "raw", "-O", "raw",
                  f"nbd+unix:///?socket={place.path('nbd')}", place.path("before.raw"))
    child.terminate()
    expect_equal(child.wait(harness.WAIT_S), 0, "exit status")
    place.check_images()


def test_paused(place):
    """Guests do not wait for who has paused it."""
    _, qmp = start(place)
    add_target(place, qmp)
    done(backup(qmp, speed=SLOW), "blockdev-backup")
    done(qmp.command("job-pause", id="j"), "job-pause")
    wait_state(qmp, "paused")
    overwrite(place)
    expect_equal(job(qmp)["status"], "paused", "state")
    done(qmp.command("block-job-set-speed", device="j", speed=0), "set-speed")
    done(qmp.command("job-resume", id="j"), "job-resume")
    finish(qmp)
    compare(place)


def test_cancelled(place):
    """Guests go on; the target is marked, and cannot be brought in again."""
    _, qmp = start(place)
    add_target(place, qmp)
    done(backup(qmp, speed=SLOW), "blockdev-backup")
    guest(place, lambda c: c.write(3 * MIB, b"n" * 65536))
    done(qmp.command("job-cancel", id="j"), "job-cancel")
    finish(qmp, "Operation canceled")
    guest(place, lambda c: c.write(0, b"n" * MIB))
    expect_marked(place)
    refused(add(qmp, "qcow2", place.path("copy"), status=1), "not finished", "blockdev-add of it")


def test_full(place):
    """A target without room: the job waits, or fails; a guest that needs it fails the job, and goes on."""
    try:
        volume = LoopVolume(place.path("volume"), 3 * MIB)
    except NoLoop as reason:
        raise Skip(str(reason)) from reason
    with volume:
        _, qmp = start(place)
        for policy in ("report", "enospc"):
            place.run("qemu-img", "create", "-q", "-f", "qcow2", volume.path, "16M")
            done(qmp.command("blockdev-add", **{"driver": "qcow2", "node-name": "copy",
                                                "file": {"driver": "host_device", "filename": volume.path}}), "add")
            done(backup(qmp, on_target_error=policy), "blockdev-backup")
            if policy == "enospc":
                expect_equal(wait_state(qmp, "paused")["io-status"], "nospace", "io-status")
                overwrite(place)
            finish(qmp, "No space left")
        errors = [event["data"] for event in qmp.events if event["event"] == "BLOCK_JOB_ERROR"]
        expect_equal({(one["operation"], one["action"]) for one in errors}, {("write", "report"), ("write", "stop")},
                     "BLOCK_JOB_ERROR")
        overwrite(place)


def test_killed(place):
    """The target is marked, the chain is as it was; the next daemon knows of no job."""
    child, qmp = start(place)
    add_target(place, qmp)
    done(backup(qmp, speed=SLOW), "blockdev-backup")
    guest(place, lambda c: c.write(3 * MIB, b"n" * 65536), lambda c: c.flush())
    child.kill()
    child.wait()
    expect_marked(place)
    os.unlink(place.path("nbd"))
    place.start_chain()
    qmp = Qmp(place.path("qmp"))
    expect_equal(qmp.command("query-jobs"), {"return": []}, "query-jobs")
    overwrite(place)


def test_beside(place):
    """What the daemon refuses while one runs, and what goes on."""
    child, qmp = start(place)
    add_target(place, qmp)
    done(backup(qmp, speed=SLOW), "blockdev-backup")
    refused(backup(qmp, job_id="k"), "is busy", "a second backup into it")
    refused(qmp.command("blockdev-del", **{"node-name": "copy"}), "is busy", "blockdev-del")
    refused(qmp.command("blockdev-snapshot", node="top.qcow2", overlay="copy"), "is busy", "a snapshot")
    refused(qmp.command("block_resize", **{"node-name": "top.qcow2", "size": 2 * SIZE}), "job j", "block_resize")
    refused(qmp.command("quit"), "j: job of kind backup runs", "quit")
    place.run("qemu-img", "create", "-q", "-f", "qcow2", place.path("second"), "16M")
    done(qmp.command("blockdev-add", **{"driver": "qcow2", "node-name": "second",
                                        "file": {"driver": "file", "filename": place.path("second")}}), "add")
    refused(backup(qmp, job_id="k", target="second"), "another backup runs", "a second backup")
    done(qmp.command("block-stream", **{"job-id": "s", "device": "top.qcow2"}), "block-stream")
    wait_until(lambda: len(qmp.command("query-jobs")["return"]) == 1, "the stream has ended")
    done(qmp.command("quit", force=True), "quit")
    expect_equal(child.wait(harness.WAIT_S), 0, "exit status")
    expect_marked(place)
    place.run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", place.path("before.raw"), place.path("top.qcow2"))


def test_refused(place):
    _, qmp = start(place)
    add_target(place, qmp)
    for sync in ("none", "incremental", "bitmap"):
        refused(backup(qmp, sync), "must be full or top", sync)
    refused(backup(qmp, device="base.qcow2"), "Cannot find", "a layer below")
    expect_equal(qmp.command("query-jobs"), {"return": []}, "query-jobs")
    place.run("qemu-img", "check", "-q", "-f", "qcow2", place.path("base.qcow2"))


def test_read_only(place):
    """A device that nobody writes can be copied, too."""
    _, qmp = start(place, "--read-only")
    add_target(place, qmp)
    done(backup(qmp), "blockdev-backup")
    finish(qmp)
    compare(place)


if __name__ == "__main__":
    sys.exit(harness.main("backup", sys.modules["__main__"]))
