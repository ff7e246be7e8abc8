#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Merges in the device record (rule D2): kill -9 on both sides of each write of it, errors, cancel, down."""

import json
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

import harness
from full import Volume
from harness import expect, expect_equal, wait_until
from lifecycle import guest_io, kill_daemon, up
from merge import break_compressed
from qemutools import file_digest
from records import record_of
from snapshot import check_all, forget_run, holds, images, tree, wait_sealed

# Before the merge may write, and from then on.
UNBEGUN = ("unrecorded", "planned", "unbegun")
BEGUN = ("begun", "started", "unsettled", "settled")
SLOW = ("--speed", "64k")
SHOWS = {"one": ("1 0 12M",), "two": ("2 0 4M", "1 4M 8M"), "three": ("2 0 4M", "3 4M 4M", "1 8M 4M")}
BEFORE = [("top.3.qcow2", None), ("top.2.qcow2", "three"), ("top.1.qcow2", "two"), ("top.qcow2", "one"),
          ("base.qcow2", None)]
# `two` was merged into the layer that held `one`, and is held by it.
AFTER = [("top.3.qcow2", None), ("top.2.qcow2", "three"), ("top.qcow2", "two"), ("base.qcow2", None)]


def make_device(place):
    """top.3 on top.2 (three) on top.1 (two) on top (one) on base."""
    for name in images(place) + ["seven.qchain"]:
        if os.path.exists(place.path(name)):
            os.unlink(place.path(name))
    place.make_chain("16M")
    up(place)
    for number, (snap, at) in enumerate((("one", "0 12M"), ("two", "0 4M"), ("three", "4M 4M"))):
        guest_io(place, "seven.sock", f"write -P {number + 1} {at}")
        place.ctl("snapshot", "seven", snap)
    guest_io(place, "seven.sock", "write -P 4 8M 64k")
    wait_sealed(place)


def commit_words(*more):
    return ["commit", "seven", "--top", "two", "--base", "one", "--drop-snapshots", *more]


def killed(place, point, words):
    done = place.run(place.program("qchainctl"), *words, status=None,
                     environment=dict(place.environment, QCHAIN_CRASH_POINT=f"merge.{point}"))
    expect_equal(done.returncode, -9, f"exit status at {point}")


def jobs(place):
    return [(job["id"], job["kind"], job["phase"]) for job in record_of(place).get("jobs", [])]


def snaps(place):
    return {snap["name"]: snap["image"] for snap in record_of(place)["snapshots"]}


def wait_settled(place):
    wait_until(lambda: not jobs(place), "the job is out of the record")


def guest_reads(place):
    guest_io(place, "seven.sock", "read -P 2 0 4M", "read -P 3 4M 4M", "read -P 4 8M 64k", "read -P 1 8256k 960k")


def judge(place, layers):
    """Chain, names, contents and images, as tree and QEMU see them."""
    guest_reads(place)
    expect_equal(tree(place), layers, "tree")
    expect_equal(snaps(place), {snap: image for image, snap in layers if snap}, "snapshots of the record")
    place.ctl("down", "seven")
    check_all(place)
    for image, snap in layers:
        if snap:
            holds(place, image, *SHOWS[snap])
    holds(place, "top.3.qcow2", "2 0 4M", "3 4M 4M", "4 8M 64k")


def check_record(place, point):
    """What the record says after a kill at @point."""
    wanted = {"unrecorded": [], "settled": [], "planned": ["planned"], "unbegun": ["planned"]}
    expect_equal([phase for _id, _kind, phase in jobs(place)], wanted.get(point, ["writing"]), f"phases at {point}")
    lost = set(SHOWS) - set(snaps(place))
    expect_equal(lost, set() if point in UNBEGUN else {"one"}, f"snapshots that are lost at {point}")


def start_and_kill(place, point):
    make_device(place)
    slow = SLOW if point in ("begun", "started") else ()
    killed(place, point, commit_words(*slow))
    check_record(place, point)


def go_on(place, point, *words):
    done = place.ctl("up", "seven", *words)
    if point in ("planned", "unbegun"):
        expect("had written nothing, forgotten" in done.stderr, f"{point}: {done.stderr}")
    if point in ("begun", "started"):
        expect("was interrupted, goes on" in done.stderr, f"{point}: {done.stderr}")
    wait_settled(place)
    judge(place, BEFORE if point in UNBEGUN else AFTER)


def test_killed(place):
    """qchainctl and the daemon die: up forgets what had written nothing, and goes on with the rest."""
    for point in UNBEGUN + BEGUN:
        start_and_kill(place, point)
        kill_daemon(place)
        if point == "started":
            expect("merging commit0: commit of" in place.ctl("list").stdout, "list without a daemon")
            expect("writing" in place.ctl("status", "seven").stdout, "status without a daemon")
            found = place.ctl_json("job", "list", "seven")
            expect_equal(found[0]["recorded"]["phase"], "writing", "job list without a daemon")
        go_on(place, point)


def test_killed_and_started_anew(place):
    """And the host, too: /run is empty; the directory has it all."""
    for point in ("planned", "started"):
        start_and_kill(place, point)
        kill_daemon(place)
        forget_run(place)
        listed = place.ctl("job", "list", "seven", "./").stdout
        expect("commit0" in listed and "commit of" in listed, f"{point}: {listed}")
        go_on(place, point, "./", "--no-ublk", "--nbd", "seven.sock")


def test_killed_and_again(place):
    """Only qchainctl dies: the daemon's job ends, and is written down by the next verb."""
    for point in ("planned", "started"):
        start_and_kill(place, point)
        if point == "planned":
            place.ctl("job", "dismiss", "seven", "commit0")
            expect_equal(jobs(place), [], "jobs after dismiss")
            judge(place, BEFORE)
            continue
        if point == "started":
            expect_equal([layer["state"] for layer in place.ctl_json("tree", "seven")["layers"]][3], "merging",
                         "state of the base")
            place.ctl("job", "set-speed", "seven", "commit0", "0")
        place.ctl("job", "wait", "seven", "commit0")
        expect_equal(jobs(place), [], "jobs after wait")
        judge(place, AFTER)


def test_stream(place):
    """The same for a stream; its layers are restore points all the time."""
    for point in ("planned", "started"):
        make_device(place)
        killed(place, point, ["stream", "seven", "--base", "one", *(SLOW if point != "planned" else ())])
        expect_equal(len(snaps(place)), 3, "snapshots")
        kill_daemon(place)
        place.ctl("up", "seven")
        wait_settled(place)
        guest_reads(place)
        left = [image for image, _snap in tree(place)]
        place.ctl("down", "seven")
        check_all(place)
        expect_equal(left, [image for image, _snap in BEFORE] if point == "planned" else
                     ["top.3.qcow2", "top.qcow2", "base.qcow2"], "layers")
        for image, snap in BEFORE[1:4]:
            holds(place, image, *SHOWS[snap])


# Of a chain with `now`, which is taken while the job runs: words of the job, images and snapshots in the end.
BESIDE = (
    (["commit", "seven", "--top", "two", "--base", "one", "--drop-snapshots"],
     [("top.4.qcow2", None), ("top.3.qcow2", "now"), ("top.2.qcow2", "three"), ("top.qcow2", "two"),
      ("base.qcow2", None)]),
    (["commit", "seven", "--top", "three", "--base", "two", "--drop-snapshots"],
     [("top.4.qcow2", None), ("top.3.qcow2", "now"), ("top.1.qcow2", "three"), ("top.qcow2", "one"),
      ("base.qcow2", None)]),
    (["commit", "seven", "--base", "three", "--drop-snapshots"],
     [("top.4.qcow2", None), ("top.2.qcow2", "now"), ("top.1.qcow2", "two"), ("top.qcow2", "one"),
      ("base.qcow2", None)]),
    (["commit", "seven", "--base", "one", "--drop-snapshots"],
     [("top.4.qcow2", None), ("top.qcow2", "now"), ("base.qcow2", None)]),
    (["stream", "seven", "--base", "one"],
     [("top.4.qcow2", None), ("top.3.qcow2", "now"), ("top.qcow2", "one"), ("base.qcow2", None)]),
    (["stream", "seven", "--into", "three"],
     [("top.4.qcow2", None), ("top.3.qcow2", "now"), ("top.2.qcow2", "three")]),
)


def judge_beside(place, layers):
    guest_io(place, "seven.sock", "read -P 2 0 4M", "read -P 3 4M 4M", "read -P 5 8M 16k", "read -P 4 8208k 4080k")
    expect_equal(tree(place), layers, "tree")
    found = snaps(place)  # a stream loses none, not even what is no layer any more
    expect_equal([(found[snap], snap) for _image, snap in layers if snap], [one for one in layers if one[1]], "names")
    place.ctl("down", "seven")
    check_all(place)
    for image, snap in layers:
        if snap:
            holds(place, image, *SHOWS.get(snap, ("2 0 4M", "3 4M 4M", "4 8M 4M")))


def test_snapshot_beside(place):
    """A snapshot while a merge runs, which goes on below it (rule D6), also after the daemon has died."""
    for words, layers in BESIDE:
        for dies in (False, True):
            make_device(place)
            guest_io(place, "seven.sock", "write -P 4 8M 4M")
            job = place.ctl(*words, "--detach", "--speed", "16k").stdout.strip()
            place.ctl("snapshot", "seven", "now")
            guest_io(place, "seven.sock", "write -P 5 8M 16k")
            if dies:
                kill_daemon(place)
                done = place.ctl("up", "seven")
                expect("was interrupted, goes on" in done.stderr, f"{words}: {done.stderr}")
            else:
                expect_equal([phase for _id, _kind, phase in jobs(place)], ["writing"], "phases")
                place.ctl("job", "set-speed", "seven", job, "0", status=None)
            wait_settled(place)
            judge_beside(place, layers)


def test_two_at_once(place):
    """A commit below and a stream above, and a third one that shares a layer; recovered both."""
    for dies in (False, True):
        make_device(place)
        lower = place.ctl("commit", "seven", "--top", "one", "--base", "base.qcow2", "--detach", *SLOW).stdout.strip()
        upper = place.ctl("stream", "seven", "--base", "two", "--detach", "--speed", "16k").stdout.strip()
        expect_equal(jobs(place), [(lower, "commit", "writing"), (upper, "stream", "writing")], "jobs")
        for words in (["commit", "seven", "--top", "two", "--base", "one", "--drop-snapshots"],
                      ["stream", "seven", "--into", "three"]):
            refused = place.ctl(*words, status=1).stderr
            expect("must share no layer" in refused and (lower in refused or upper in refused), refused)
        expect_equal(len(jobs(place)), 2, "jobs after what was refused")
        if dies:
            kill_daemon(place)
            done = place.ctl("up", "seven").stderr
            expect_equal(done.count("was interrupted, goes on"), 2, "jobs that go on")
        else:
            for job in (upper, lower):
                place.ctl("job", "set-speed", "seven", job, "0")
        wait_settled(place)
        layers = [("top.3.qcow2", None), ("top.1.qcow2", "two"), ("base.qcow2", "one")]
        guest_reads(place)
        expect_equal(tree(place), layers, "tree")
        place.ctl("down", "seven")
        check_all(place)
        holds(place, "top.1.qcow2", *SHOWS["two"])
        holds(place, "base.qcow2", *SHOWS["one"])


def test_exposed(place):
    """What a job writes is not exposed, what is exposed is not written: the names of both; else they go together."""
    make_device(place)
    expose = ["expose", "seven", "two", "--nbd", place.path("two.sock")]
    lower = ["commit", "seven", "--top", "one", "--base", "base.qcow2", "--detach"]
    into = ["stream", "seven", "--into", "two", "--detach"]
    place.ctl(*expose)
    for words, written in ((lower, "base.qcow2"), (into, "top.1.qcow2"),
                           (["commit", "seven", "--base", "two", "--drop-snapshots"], "top.1.qcow2")):
        refused = place.ctl(*words, status=1).stderr
        expect(f"{written}: would be written" in refused and "unexpose seven two" in refused, f"{words}: {refused}")
    expect_equal((jobs(place), len(snaps(place))), ([], 3), "jobs and snapshots after what was refused")
    place.ctl("stream", "seven", "--base", "two")  # nobody shows the active layer
    place.run("qemu-io", "-r", "-f", "raw", "-c", "read -P 2 0 4M", "-c", "read -P 1 4M 8M",
              f"nbd+unix:///?socket={place.path('two.sock')}")
    place.ctl("unexpose", "seven", "two")
    for words, written in ((lower, "base.qcow2"), (into, "top.1.qcow2")):
        job = place.ctl(*words, *SLOW).stdout.strip()
        refused = place.ctl(*expose, status=1).stderr
        expect(f"{written}: is shown by the snapshot, and job {job} writes to it" in refused, f"{words}: {refused}")
        place.ctl("job", "set-speed", "seven", job, "0", status=None)
        wait_settled(place)
        place.ctl(*expose)
        place.ctl("unexpose", "seven", "two")
    place.ctl("down", "seven")
    check_all(place)


def test_cancel(place):
    """A commit is not undone: cancel says so, and resume finishes it, also after down and up."""
    make_device(place)
    place.ctl(*commit_words("--detach", *SLOW))
    done = place.ctl("job", "cancel", "seven", "commit0")
    expect("is not undone" in done.stderr and "job resume seven commit0" in done.stderr, done.stderr)
    expect_equal(jobs(place), [("commit0", "commit", "failed")], "jobs")
    expect_equal(place.ctl_json("tree", "seven")["layers"][3]["state"], "merging", "state of the base")
    place.ctl("down", "seven")
    done = place.ctl("up", "seven", "./", "--no-ublk", "--nbd", "seven.sock")
    expect("cancelled" in done.stderr, done.stderr)
    expect_equal([layer["state"] for layer in place.ctl_json("tree", "seven")["layers"]],
                 ["active", "sealed", "sealed", "merging", "sealed"], "states")
    refused = place.ctl("expose", "seven", "one", "--nbd", place.path("x"), status=1)
    expect("has no snapshot one" in refused.stderr, refused.stderr)
    place.ctl("down", "seven")
    reader = ["up", "eight", "--read-only", "--no-ublk", "--nbd", "eight.sock"]
    for words in (["create", "./new.qcow2", "--backing", "./top.qcow2"], [*reader, "./top.qcow2"]):
        refused = place.ctl(*words, status=1).stderr
        expect("top.qcow2: is merging, job commit0 of device seven" in refused, f"{words}: {refused}")
    place.ctl("create", "./new.qcow2", "--size", "16M")
    refused = place.ctl("rebase", "./new.qcow2", "--backing", "./top.qcow2", status=1).stderr
    expect("is merging" in refused, f"rebase: {refused}")
    os.unlink(place.path("new.qcow2"))
    for image in ("./top.1.qcow2", "./top.2.qcow2"):  # what the commit's top shows stays as it is
        place.ctl(*reader, image)
        place.ctl("down", "eight")
    place.ctl("up", "seven", "./", "--no-ublk", "--nbd", "seven.sock")
    place.ctl("job", "resume", "seven", "commit0")
    wait_settled(place)
    judge(place, AFTER)


def test_down_by_force(place):
    """What runs is interrupted, not cancelled: the next up goes on."""
    make_device(place)
    place.ctl(*commit_words("--detach", *SLOW))
    refused = place.ctl("down", "seven", status=1)
    expect("commit0" in refused.stderr, refused.stderr)
    place.ctl("down", "seven", "--force")
    expect_equal(jobs(place), [("commit0", "commit", "writing")], "jobs")
    place.ctl("up", "seven", "./", "--no-ublk", "--nbd", "seven.sock")
    wait_settled(place)
    judge(place, AFTER)


def test_error(place):
    """Kept until somebody has dismissed it, across a death, down and up."""
    make_device(place)
    place.ctl("down", "seven")
    break_compressed(place, "top.qcow2", 15 << 20)
    place.ctl("up", "seven", "./", "--no-ublk", "--nbd", "seven.sock")
    failed = place.ctl("commit", "seven", "--top", "one", status=1)
    expect("commit0: " in failed.stderr, failed.stderr)
    expect_equal(jobs(place), [("commit0", "commit", "failed")], "jobs")
    error = record_of(place)["jobs"][0]["error"]
    expect(error in failed.stderr, f"{error!r} is not in {failed.stderr}")
    kill_daemon(place)
    expect(error in place.ctl("up", "seven").stderr, "up does not show the error")
    place.ctl("down", "seven")
    expect(error in place.ctl("job", "list", "seven", "./").stdout, "job list does not show the error")
    place.ctl("up", "seven", "./", "--no-ublk", "--nbd", "seven.sock")
    expect_equal(place.ctl_json("tree", "seven")["layers"][4]["state"], "merging", "state of the base")
    place.ctl("job", "dismiss", "seven", "commit0")
    expect_equal(jobs(place), [], "jobs after dismiss")
    expect_equal(place.ctl_json("tree", "seven")["layers"][4]["state"], "sealed", "state of the base")
    guest_io(place, "seven.sock", "read -P 2 0 4M", "read -P 3 4M 4M", "read -P 4 8M 64k")
    place.ctl("down", "seven")
    check_all(place)


def test_refused(place):
    """The daemon does not begin: record and snapshots are as before."""
    make_device(place)
    before = record_of(place)
    reader = place.start("--read-only", "--qmp", place.path("qmp2"), "--export",
                         f"nbd,socket={place.path('nbd2')}", place.path("top.qcow2"))
    place.wait_ready(reader, place.path("nbd2"))
    refused = place.ctl(*commit_words(), status=1)
    expect("in use" in refused.stderr, refused.stderr)
    after = record_of(place)
    expect(after.pop("sequence") > before.pop("sequence"), "the record was not written")
    expect_equal(json.dumps(after, sort_keys=True), json.dumps(before, sort_keys=True), "record")
    reader.terminate()
    reader.wait(harness.WAIT_S)
    place.ctl(*commit_words())
    judge(place, AFTER)


OFFLINE_POINTS = ("planned", "begun", "unsettled", "settled")


def test_offline(place):
    """The same for a commit of images that nobody serves: recorded, finished by the same command."""
    for point in OFFLINE_POINTS:
        make_device(place)
        place.ctl("down", "seven")
        words = ["commit", "./top.3.qcow2", "--top", "top.1.qcow2", "--base", "top.qcow2", "--drop-snapshots"]
        killed(place, point, words)
        wanted = {"planned": ["planned"], "settled": []}
        expect_equal([phase for _id, _kind, phase in jobs(place)], wanted.get(point, ["offline"]), f"at {point}")
        if point == "begun":
            refused = place.ctl("create", "./new.qcow2", "--backing", "./top.qcow2", status=1).stderr
            expect("is merging" in refused, refused)
            done = place.ctl("up", "seven", "./", "--no-ublk", "--nbd", "seven.sock")
            expect("interrupted while the device was down" in done.stderr, done.stderr)
            expect_equal(place.ctl_json("tree", "seven")["layers"][3]["state"], "merging", "state of the base")
            guest_reads(place)
            place.ctl("down", "seven")
            place.ctl(*words)
        place.ctl("up", "seven", "./", "--no-ublk", "--nbd", "seven.sock")
        expect_equal(jobs(place), [], f"jobs after {point}")
        judge(place, BEFORE if point == "planned" else AFTER)


def test_offline_pointed(place):
    """Killed when only the active layer was left to be emptied: done, below it nothing is written."""
    for changed in (False, True):
        make_device(place)
        place.ctl("down", "seven")
        words = ["commit", "./top.3.qcow2", "--base", "top.qcow2", "--drop-snapshots"]
        done = place.run(place.program("qchainctl"), *words, status=None,
                         environment=dict(place.environment, QCHAIN_CRASH_POINT="commit.pointed"))
        expect_equal(done.returncode, -9, "exit status")
        below = [place.path(name) for name in ("top.2.qcow2", "top.1.qcow2", "top.qcow2")]
        place.ctl("check", "--repair", "--force", below[2])
        before = [file_digest(path) for path in below]
        if changed:
            place.run("qemu-io", "-f", "qcow2", "-c", "write -P 9 1M 64k", place.path("top.3.qcow2"))
        again = place.ctl(*words, status=1 if changed else 0)
        expect_equal("rebase or remove that image first" in again.stderr, changed, f"refusal: {again.stderr}")
        expect_equal([file_digest(path) for path in below], before, "images below")
        holds(place, "top.3.qcow2", "4 8M 64k", "2 0 1M", *(("9 1M 64k",) if changed else ("2 1M 64k",)))
        check_all(place)


def test_offline_error(place):
    """Kept, and shown, as that of a daemon's job."""
    make_device(place)
    place.ctl("down", "seven")
    break_compressed(place, "top.qcow2", 15 << 20)
    failed = place.ctl("commit", "./top.3.qcow2", "--top", "top.qcow2", status=1).stderr
    expect_equal(jobs(place), [("commit0", "commit", "failed")], "jobs")
    expect(record_of(place)["jobs"][0]["error"] in failed, failed)
    expect("commit0" in place.ctl("job", "list", "seven", "./").stdout, "job list")


def test_room(place):
    """What receives must hold it all before it takes the first byte (rule D5); both numbers are told."""
    volume = Volume(place, "volume", 4 << 20)
    try:
        place.run("qemu-img", "create", "-q", "-f", "qcow2", volume.path, "64M")
        place.run("qemu-io", "-f", "qcow2", "-c", "write -P 1 0 2M", volume.path)
        for name, below in (("mid.qcow2", volume.path), ("top.qcow2", "mid.qcow2")):
            place.run("qemu-img", "create", "-q", "-f", "qcow2", "-b", below, "-F", "qcow2", place.path(name))
        place.run("qemu-io", "-f", "qcow2", "-c", "write -P 2 1M 8M", place.path("mid.qcow2"))
        words = ["--top", "mid.qcow2", "--allow-backing", "/dev"]
        # 7 MiB that have no place yet, and 2 MiB for commits
        for image in ("seven", "./top.qcow2"):
            if image == "seven":
                place.ctl("up", "seven", "./top.qcow2", "--no-ublk", "--nbd", "seven.sock", "--allow-backing", "/dev")
            refused = place.ctl("commit", image, *words, status=1).stderr
            expect("needs 9 MiB of free space (9437184 bytes)" in refused and "has 1.69 MiB" in refused, refused)
            expect_equal((jobs(place), snaps(place)), ([], {}), "the record")
            if image == "seven":
                place.ctl("down", "seven")
        place.run("qemu-io", "-f", "qcow2", "-c", "write -P 3 1M 7M", place.path("top.qcow2"))
        volume.grow(12 << 20)
        place.ctl("up", "seven", "./top.qcow2", "--no-ublk", "--nbd", "seven.sock", "--allow-backing", "/dev")
        place.ctl("commit", "seven", *words)
        guest_io(place, "seven.sock", "read -P 1 0 1M", "read -P 3 1M 7M", "read -P 2 8M 1M")
        place.ctl("down", "seven")
        place.run("qemu-img", "check", "-q", "-f", "qcow2", volume.path)
    finally:
        place.end()
        volume.remove()


if __name__ == "__main__":
    sys.exit(harness.main("jobs", sys.modules["__main__"]))
