#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""qchainctl rename on files: record and run folder, served, dead and not served; kill -9 at each crash point."""

import json
import os
import signal
import subprocess
import sys

import harness
from harness import expect, expect_equal, wait_until
from lifecycle import guest_io, kill_daemon, nothing_left, states, up
from snapshot import check_all, fails, wait_sealed

POINTS = ("recorded",)


def record(place, name):
    with open(place.path(name + ".qchain"), encoding="utf-8") as file:
        return json.load(file)


def records(place):
    return sorted(name for name in os.listdir(place.folder) if name.endswith(".qchain"))


def start(place):
    place.make_chain()
    up(place)
    guest_io(place, "seven.sock", "write -P 1 0 1M", "write -P 5 4M 8M")
    place.ctl("snapshot", "seven", "one")
    wait_sealed(place)
    guest_io(place, "seven.sock", "write -P 2 0 64k")


def judge(place, name="eight"):
    """All verbs know the new name, none the old one; content and snapshots are there."""
    expect_equal(records(place), [name + ".qchain"], "records")
    guest_io(place, "seven.sock", "read -P 2 0 64k", "read -P 1 64k 960k")
    place.ctl("snapshot", name, "two")
    wait_sealed(place, name)
    expect_equal([snap["name"] for snap in record(place, name)["snapshots"]], ["one", "two"], "snapshots")
    fails(place, "tree", "seven")
    place.ctl("down", name)
    nothing_left(place)
    fails(place, "up", "seven", "./", "--no-ublk", "--nbd", "seven.sock")
    place.ctl("up", name, "./", "--no-ublk", "--nbd", "seven.sock")
    guest_io(place, "seven.sock", "read -P 2 0 64k")
    place.ctl("down", name)
    check_all(place)


def test_served(place):
    """The daemon goes on; what dies later is taken over under the new name."""
    start(place)
    pid = place.ctl_json("status", "seven")["pid"]
    expect_equal(place.ctl_json("rename", "seven", "eight"), {"name": "eight", "previous-name": "seven"}, "answer")
    expect_equal((states(place), place.ctl_json("status", "eight")["pid"]), ({"eight": "serving"}, pid), "after it")
    guest_io(place, "seven.sock", "write -P 2 0 4k")
    kill_daemon(place, "eight")
    place.ctl("up", "eight")
    judge(place)


def test_not_served(place):
    start(place)
    place.ctl("down", "seven")
    expect("say their directory as well" in fails(place, "rename", "seven", "eight"), "no directory")
    expect_equal(place.ctl("rename", "seven", "eight", "./").stdout, "seven: is called eight now\n", "report")
    nothing_left(place)
    place.ctl("up", "eight", "./", "--no-ublk", "--nbd", "seven.sock")
    judge(place)


def test_dead(place):
    start(place)
    kill_daemon(place)
    place.ctl("rename", "seven", "eight")
    expect_equal(states(place), {"eight": "dead"}, "states")
    place.ctl("up", "eight")
    judge(place)


def test_refused(place):
    """Names that are taken, served or not; an exposed snapshot; a chain that nobody knows."""
    start(place)
    fails(place, "rename", "seven", "a b", status=2)
    fails(place, "rename", "nobody", "eight")
    expect("is served" in fails(place, "rename", "seven", "seven"), "the same name")
    place.run("qemu-img", "create", "-q", "-f", "qcow2", place.path("other.qcow2"), "4M")
    up(place, "nine", "./other.qcow2", "nine.sock")
    expect("a chain of this name is served" in fails(place, "rename", "seven", "nine"), "served")
    place.ctl("down", "nine")
    expect("has the record of a device" in fails(place, "rename", "seven", "nine"), "a record")
    place.ctl("expose", "seven", "one", "--nbd", "one.sock")
    expect("its snapshot one is exposed" in fails(place, "rename", "seven", "eight"), "exposed")
    place.ctl("unexpose", "seven", "one")
    expect_equal(records(place), ["nine.qchain", "seven.qchain"], "records")
    os.unlink(place.path("nine.qchain"))
    place.ctl("rename", "seven", "eight")
    judge(place)


def slowly(place, *words):
    """A merge that does not end before it is told to; the snapshot of another layer stays."""
    return subprocess.Popen([place.program("qchainctl"), *words, "--speed", "1k"], env=place.environment, cwd=place.folder,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def recorded_jobs(place, name):
    return [job["id"] for job in record(place, name).get("jobs", [])] if name + ".qchain" in records(place) else []


def hurry(place, name, job):
    place.ctl("job", "set-speed", name, job, "0")


def test_beside_jobs(place):
    """A verb that waits for its merge, and one that nobody waits for, end under the new name."""
    start(place)
    commit = ["commit", "seven", "--top", "one", "--base", "base.qcow2"]
    waits = slowly(place, *commit)
    wait_until(lambda: recorded_jobs(place, "seven"), "the job has begun")
    place.ctl("rename", "seven", "eight")
    expect_equal(recorded_jobs(place, "eight"), ["commit0"], "jobs of the record")
    hurry(place, "eight", "commit0")
    out, err = waits.communicate(timeout=harness.WAIT_S)
    expect_equal((waits.returncode, err), (0, ""), out)
    expect_equal(recorded_jobs(place, "eight"), [], "jobs of the record")
    guest_io(place, "seven.sock", "write -P 3 8M 4M")
    place.ctl("snapshot", "eight", "late")
    wait_sealed(place, "eight")
    waits = slowly(place, "delete", "eight", "late", "--stream")
    wait_until(lambda: recorded_jobs(place, "eight"), "the deletion has begun")
    place.ctl("rename", "eight", "nine")
    hurry(place, "nine", recorded_jobs(place, "nine")[0])
    out, err = waits.communicate(timeout=harness.WAIT_S)
    expect_equal((waits.returncode, err), (0, ""), out)
    place.ctl("snapshot", "nine", "last")
    expect_equal(slowly(place, "stream", "nine", "--detach").wait(harness.WAIT_S), 0, "stream")
    place.ctl("rename", "nine", "eight")
    place.ctl("job", "set-speed", "eight", "stream0", "0")
    wait_until(lambda: not recorded_jobs(place, "eight"), "who watches has written down the end")
    place.ctl("down", "eight")
    expect_equal([snap["name"] for snap in record(place, "eight")["snapshots"]], ["one", "last"], "snapshots")
    check_all(place)


def test_killed_beside_job(place):
    """The record has its new name, the folder not yet: a merge that ends then is in the one record that there is."""
    start(place)
    expect_equal(slowly(place, "stream", "seven", "--detach").wait(harness.WAIT_S), 0, "stream")
    done = place.run(place.program("qchainctl"), "rename", "seven", "eight", status=None,
                     environment=dict(place.environment, QCHAIN_CRASH_POINT="rename.recorded"))
    expect_equal(done.returncode, -9, "exit status")
    place.ctl("job", "set-speed", "seven", "stream0", "0")
    wait_until(lambda: not recorded_jobs(place, "eight"), "its end is in the record")
    expect_equal(records(place), ["eight.qchain"], "records")
    place.ctl("rename", "seven", "eight")
    judge(place)


def test_guarded(place):
    """Who starts a daemon again finds it under the new name."""
    place.environment["QCHAIN_RESTARTS"] = "5"
    start(place)
    place.ctl("rename", "seven", "eight")
    pid = place.ctl_json("status", "eight")["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: states(place) == {"eight": "serving"} and place.daemon_pids() not in ([], [pid]), "it is brought back")
    judge(place)


def test_killed(place):
    """Half way: the device is served on, and the same command goes on."""
    for point in POINTS:
        start(place)
        done = place.run(place.program("qchainctl"), "rename", "seven", "eight", status=None,
                         environment=dict(place.environment, QCHAIN_CRASH_POINT=f"rename.{point}"))
        expect_equal(done.returncode, -9, f"exit status at {point}")
        guest_io(place, "seven.sock", "read -P 2 0 64k")
        place.ctl("rename", "seven", "eight")
        expect_equal(states(place), {"eight": "serving"}, "states")
        judge(place)


def test_killed_between_records(place):
    """Two records of one device, the newer one counts: the same command takes the old one away."""
    start(place)
    place.ctl("down", "seven")
    newer = dict(record(place, "seven"), device="eight")
    newer["sequence"] += 1
    with open(place.path("eight.qchain"), "w", encoding="utf-8") as file:
        json.dump(newer, file)
    fails(place, "up", "seven", "./", "--no-ublk", "--nbd", "seven.sock")
    place.ctl("rename", "seven", "eight", "./")
    place.ctl("up", "eight", "./", "--no-ublk", "--nbd", "seven.sock")
    judge(place)
    expect("Examples:" in place.ctl("rename", "--help").stdout, "no examples")


if __name__ == "__main__":
    sys.exit(harness.main("rename", sys.modules[__name__]))
