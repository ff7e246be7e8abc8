#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""qchainctl revert on files: served, in use and not, branches, refusals, kill -9 at each crash point."""

import json
import os
import sys

import harness
from delete import Device, Guest, fails
from harness import Qmp, expect, expect_equal, wait_until
from lifecycle import kill_daemon, nothing_left, states
from records import record_of
from snapshot import images, tree, wait_sealed

POINTS = ("formatted", "unrecorded", "recorded", "published", "applied", "retire.wiped", "retire.removed")
KILLS = {"recorded": ("lives", "down", "dies", "host"), "published": ("lives", "down", "dies", "host")}
DAEMON_POINTS = ("rest", "marked", "switched")


def revert(place, *words):
    return place.ctl_json("revert", "seven", *words)


def back_to(device, snap):
    """What the device holds now."""
    device.model[:] = device.snapshots[snap]


def test_served(place):
    """To the newest, further down, and again; what is newer goes only when that is said."""
    device = Device(place)
    device.make("a", "b", "c")
    answer = revert(place, "c")
    expect_equal((answer["snapshot"], answer["kept"], answer["removed"]), ("c", None, 1), "answer")
    back_to(device, "c")
    device.write()
    expect("would be lost: b c" in fails(place, "revert", "seven", "a"), "newer snapshots")
    answer = revert(place, "a", "--drop-snapshots")
    expect_equal(answer["removed"], 3, "images")
    back_to(device, "a")
    del device.snapshots["b"], device.snapshots["c"]
    expect_equal(tree(place), [(os.path.basename(answer["top"]), None), ("top.qcow2", "a"), ("base.qcow2", None)],
                 "tree")
    device.write()
    text = place.ctl("revert", "seven", "a").stdout
    expect("holds what snapshot a holds" in text and "1 image removed" in text, text)
    back_to(device, "a")
    device.write()
    device.snapshot("d")
    device.down()
    chain = device.judge("served")
    expect_equal(sorted(chain), images(place), "images")
    nothing_left(place)


def branches(image):
    """Snapshots that stand on an image of `tree` and are not below the top: (name, its branches)."""
    return [(above["snapshot"], branches(above)) for above in image.get("branches", [])]


def test_tree(place):
    """Branches are drawn where they stand, as long as there are any."""
    device = Device(place)
    device.make("a", "b")
    revert(place, "a", "--keep", "old")
    revert(place, "a", "--keep", "older")
    layers = place.ctl_json("tree", "seven")["layers"]
    expect_equal(sorted(branches(layers[1])), [("b", [("old", [])]), ("older", [])], "branches of the layer a")
    expect_equal([branches(layer) for layer in (layers[0], layers[2])], [[], []], "branches elsewhere")
    lines = [line[:4] for line in place.ctl("tree", "seven").stdout.splitlines()[1:]]
    one, two = ["| o ", "|/"], ["| o ", "| |", "| o ", "|/"]
    expect(lines in (["*  t", "|", *one, *two, "o  t", "|", "o  b"], ["*  t", "|", *two, *one, "o  t", "|", "o  b"]),
           lines)
    place.ctl("delete", "seven", "older")
    place.ctl("delete", "seven", "old")
    place.ctl("delete", "seven", "b")
    expect_equal([branches(layer) for layer in place.ctl_json("tree", "seven")["layers"]], [[], [], []], "branches")
    device.down()
    nothing_left(place)


def test_keep(place):
    """The old branch stays, with all its names, and is reverted to; branches are deleted like others."""
    device = Device(place)
    device.make("a", "b")
    before = bytes(device.model)
    revert(place, "a", "--keep", "old")
    device.snapshots["old"] = before
    back_to(device, "a")
    device.write()
    expect("has a snapshot old already" in fails(place, "revert", "seven", "a", "--keep", "old"), "a name twice")
    expect("another branch" in fails(place, "revert", "seven", "b"), "to another branch, served")
    expect("2 images stand on it" in fails(place, "delete", "seven", "a"), "where it branches")
    row = place.ctl_json("expose", "seven", "old", "--nbd", "old.sock")
    expect_equal(row["name"], "seven+old", "answer")
    expect("unexpose seven old" in fails(place, "delete", "seven", "b"), "exposed")
    place.ctl("unexpose", "seven", "old")
    place.ctl("delete", "seven", "b")
    del device.snapshots["b"]
    device.snapshot("c")
    device.down()
    device.judge("kept")
    before = bytes(device.model)
    expect_equal(revert(place, "old", "./", "--keep", "new")["kept"], "new", "answer")
    device.snapshots["new"] = before
    back_to(device, "old")
    device.judge("to the other branch")
    device.up()
    device.write()
    device.down()
    device.judge("and written")
    place.ctl("delete", "seven", "new", "./")
    place.ctl("delete", "seven", "c", "./")
    del device.snapshots["new"], device.snapshots["c"]
    device.judge("deleted")
    nothing_left(place)


def test_not_served(place):
    device = Device(place)
    device.make("a", "b", "c")
    device.down()
    revert(place, "b", "./", "--drop-snapshots")
    del device.snapshots["c"]
    back_to(device, "b")
    expect_equal(sorted(device.judge("not served")), images(place), "images")
    revert(place, "a", "./", "--keep", "d")
    device.snapshots["d"] = device.snapshots["b"]
    back_to(device, "a")
    device.judge("kept")
    device.up()
    device.write()
    device.down()
    device.judge("and up")


def test_raw_base(place):
    """A snapshot that is a raw image."""
    place.run("qemu-img", "create", "-q", "-f", "raw", place.path("disk.raw"), "4M")
    place.ctl("up", "seven", "./disk.raw", "--format", "raw", "--no-ublk", "--nbd", "seven.sock")
    device = Device.__new__(Device)
    device.adopt(place)
    device.zeroes = False
    device.write()
    device.snapshot("a")
    revert(place, "a")
    back_to(device, "a")
    device.write()
    device.down()
    record = record_of(place)
    expect(device.content(record["top"]) == bytes(device.model), "the device")
    expect(device.content("disk.raw") == device.snapshots["a"], "the snapshot")
    revert(place, "a", "./")
    expect(device.content(record_of(place)["top"]) == device.snapshots["a"], "not served")


def test_in_use(place):
    """Only with --force; a guest that writes meanwhile loses what it wrote before the switch, nothing after it."""
    device = Device(place)
    device.make("a")
    guest = Guest(place, 3, model=device.model)
    wait_until(lambda: guest.writes > 20 or guest.error, "the guest writes")
    expect("in use by 1 client" in fails(place, "revert", "seven", "a"), "in use")
    expect_equal(images(place), ["base.qcow2", "top.1.qcow2", "top.qcow2"], "images after a refusal")
    expect("revert" not in record_of(place), "the record after a refusal")
    with guest.still:
        revert(place, "a", "--force")
        guest.model[:] = device.snapshots["a"]
    seen = guest.writes
    wait_until(lambda: guest.writes > seen + 20 or guest.error, "the guest writes on")
    guest.end()
    for number in range(3):
        guest = Guest(place, 10 + number, model=device.model)
        wait_until(lambda g=guest: g.writes > 20 or g.error, "the guest writes")
        revert(place, "a", "--force", *(["--keep", f"k{number}"] if number == 1 else []))
        guest.end()  # whatever it holds: it goes on, and no error
        revert(place, "a")
        back_to(device, "a")
    device.down()
    device.snapshots["k1"] = device.content(record_of(place)["snapshots"][1]["image"])
    device.judge("in use")
    nothing_left(place)


def test_refused(place):
    device = Device(place)
    device.make("a", "b")
    expect("no snapshot x" in fails(place, "revert", "seven", "x"), "no such snapshot")
    place.ctl("expose", "seven", "b", "--nbd", "b.sock")
    expect("unexpose seven b" in fails(place, "revert", "seven", "a", "--drop-snapshots"), "exposed")
    place.ctl("unexpose", "seven", "b")
    qmp = Qmp(place.path("run/seven/qmp.sock"))
    for words in ({"node": "top.2.qcow2"}, {"node": "none"}, {"node": "top.qcow2"}):
        expect("error" in qmp.command("qchain-revert", overlay="x", **words), f"qchain-revert {words}")
    qmp.command("block-stream", **{"job-id": "slow", "device": "top.2.qcow2", "speed": 65536})
    expect("job slow (stream)" in fails(place, "revert", "seven", "a"), "a job")
    qmp.command("job-cancel", id="slow")
    qmp.close()
    for words in (["revert"], ["revert", "seven"], ["revert", "seven", "a/b"], ["revert", "seven", "a", "--keep", "a/b"],
                  ["revert", "seven", "a", "--keep", "c", "--wipe"], ["revert", "seven", "a", "./", "x"]):
        fails(place, *words, status=2)
    expect("Examples:" in place.ctl("revert", "--help").stdout, "no examples")
    place.run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "top.1.qcow2", "-F", "qcow2", place.path("clone.qcow2"))
    clone = device.content("clone.qcow2")
    answer = revert(place, "a", "--drop-snapshots")
    expect_equal(answer["removed"], 1, "what a clone stands on stays")
    back_to(device, "a")
    expect(device.content("clone.qcow2") == clone, "the clone has changed")
    device.down()
    device.judge("refused")


def test_wipe(place):
    device = Device(place)
    device.make("a")
    with open(place.path("top.1.qcow2"), "rb") as dropped:
        expect(revert(place, "a", "--wipe")["wiped"] > 0, "nothing was wiped")
        expect(not any(dropped.read()), "something is left")
    back_to(device, "a")
    device.down()
    device.judge("wiped")


def after_kill(place, device, what, old, keep):
    """Old or new: @old is what the device held; whichever it is, it is written on and survives a down."""
    disk = read_device(place)
    expect(disk in (old, device.snapshots["a"]), f"{what}: neither old nor new")
    device.model[:] = disk
    device.write(5)
    place.ctl("snapshot", "seven", "later")
    device.snapshots["later"] = bytes(device.model)
    record = record_of(place)
    expect("revert" not in record, f"{what}: {record}")
    if disk == old:
        expect_equal([snap["name"] for snap in record["snapshots"]], ["a", "b", "later"], f"{what}: names, old")
    elif keep:
        device.snapshots = {"a": device.snapshots["a"], "b": device.snapshots["b"], "old": old,
                            "later": device.snapshots["later"]}
    else:
        del device.snapshots["b"]
    device.down()
    chain = device.judge(what)
    if not keep:
        expect_equal(sorted(chain), images(place), f"{what}: images")
    nothing_left(place)
    return disk == old


def read_device(place):
    place.run("qemu-img", "convert", "-f", "raw", "-O", "raw", f"nbd+unix:///?socket={place.path('seven.sock')}",
              place.path("content"))
    with open(place.path("content"), "rb") as file:
        return file.read()


def killed(place, point, how, keep):
    """@how: what happens then: the daemon lives, goes down cleanly, dies, dies with the host; or was not there."""
    device = Device(place)
    device.make("a", "b")
    old = bytes(device.model)
    words = ["--keep", "old"] if keep else ["--drop-snapshots"]
    if how == "none":
        device.down()
        words.append("./")
    name = point if "." in point else f"revert.{point}"
    done = place.run(place.program("qchainctl"), "revert", "seven", "a", *words, status=None,
                     environment=dict(place.environment, QCHAIN_CRASH_POINT=name))
    expect_equal(done.returncode, -9, f"exit status at {name}: {done.stderr}")
    if how == "down":
        device.down()
    if how in ("dies", "host"):
        kill_daemon(place)
    if how == "host":
        place.run("rm", "-rf", place.path("run"), place.path("seven.sock"))
    if how == "dies":
        place.ctl("up", "seven")
    elif how != "lives":
        device.up()
    return after_kill(place, device, f"killed at {name}, {how}{', keep' if keep else ''}", old, keep)


def test_killed(place):
    """Never in between, whoever dies; before the switch it is the old state, after it the new one."""
    for point in POINTS:
        for how in KILLS.get(point, ("lives", "none")):
            is_old = killed(place, point, how, False)
            wanted = point in ("formatted", "unrecorded", "recorded")
            expect_equal(is_old, wanted, f"old state after {point}, {how}")


def test_killed_and_kept(place):
    for point in ("recorded", "published", "applied"):
        for how in ("lives", "host"):
            killed(place, point, how, True)


def test_daemon_killed(place):
    """The daemon dies on its way: the header of the overlay says which it is."""
    for point in DAEMON_POINTS:
        device = Device(place)
        device.make("a", "b")
        old = bytes(device.model)
        device.down()
        before = place.environment
        place.environment = dict(before, QCHAIN_CRASH_POINT=f"revert.{point}")
        device.up()
        place.environment = before
        place.ctl("revert", "seven", "a", "--drop-snapshots", status=1)
        wait_until(lambda: states(place)["seven"] == "dead", "the daemon is dead")
        place.ctl("up", "seven")
        is_old = after_kill(place, device, f"daemon killed at {point}", old, False)
        expect_equal(is_old, point == "rest", f"old state after {point}")


if __name__ == "__main__":
    sys.exit(harness.main("revert", sys.modules[__name__]))
