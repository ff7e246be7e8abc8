#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""qchainctl snapshot on files: names, content, failures half way, kill -9 at each crash point."""

import asyncio
import json
import os
import shutil
import struct
import subprocess
import sys

import harness
from harness import Qmp, Writer, expect, expect_equal, wait_until
from lifecycle import guest_io, kill_daemon, nothing_left, one_line, up
from records import record_of

sys.path.insert(0, os.path.join(harness.HERE, "..", "lib"))
from nbdclient import NbdClient

POINTS = ("marked", "created", "formatted", "unrecorded", "recorded", "noted", "published")


def images(place):
    return sorted(name for name in os.listdir(place.folder) if name.endswith(".qcow2"))


def holds(place, image, *reads):
    """Content of an image, by QEMU's eyes; and no error in it."""
    words = [word for read in reads for word in ("-c", f"read -P {read}")]
    output = place.run("qemu-io", "-U", "-r", "-f", "qcow2", *words, place.path(image)).stdout
    expect("fail" not in output.lower(), f"{image}: {output}")


def check_all(place):
    for image in images(place):
        place.run("qemu-img", "check", "-q", "-f", "qcow2", place.path(image))


def wait_sealed(place, name="seven"):
    wait_until(lambda: all(layer["state"] != "sealing" for layer in place.ctl_json("tree", name)["layers"]),
               "all is sealed")


def tree(place, name="seven"):
    return [(os.path.basename(layer["file"]), layer["snapshot"]) for layer in place.ctl_json("tree", name)["layers"]]


def fails(place, *words, status=1):
    return one_line(place.ctl(*words, status=status).stderr, "qchainctl", words)


def test_snapshots(place):
    """Several, with their names, also after down and up."""
    place.make_chain()
    up(place)
    guest_io(place, "seven.sock", "write -P 1 0 1M")
    answer = place.ctl_json("snapshot", "seven", "one")
    expect_equal({key: answer[key] for key in ("name", "snapshot", "file", "top")},
                 {"name": "seven", "snapshot": "one", "file": place.path("top.qcow2"),
                  "top": place.path("top.1.qcow2")}, "answer")
    guest_io(place, "seven.sock", "write -P 2 0 1M")
    expect("snapshot two is" in place.ctl("snapshot", "seven", "two").stdout, "no word of success")
    guest_io(place, "seven.sock", "write -P 3 0 64k")
    wanted = [("top.2.qcow2", None), ("top.1.qcow2", "two"), ("top.qcow2", "one"), ("base.qcow2", None)]
    expect_equal(tree(place), wanted, "tree")
    expect_equal(place.ctl_json("list")[0]["top"], place.path("top.2.qcow2"), "top of list")
    expect_equal([snap["name"] for snap in place.ctl_json("status", "seven")["snapshots"]], ["one", "two"], "status")
    expect("has a snapshot one already" in fails(place, "snapshot", "seven", "one"), "a name twice")
    place.ctl("down", "seven")
    check_all(place)
    holds(place, "top.qcow2", "1 0 1M")
    holds(place, "top.1.qcow2", "2 0 1M")
    expect("snapshot two of device seven" in fails(place, "up", "seven", "./top.1.qcow2", "--no-ublk", "--nbd",
                                                   "seven.sock"), "a sealed layer is served")
    place.ctl("up", "seven", "./", "--no-ublk", "--nbd", "seven.sock")
    guest_io(place, "seven.sock", "read -P 3 0 64k", "read -P 2 64k 64k")
    expect_equal(tree(place), wanted, "tree after up")
    place.ctl("snapshot", "seven", "three")
    place.ctl("down", "seven")
    nothing_left(place)
    expect_equal(images(place), ["base.qcow2", "top.1.qcow2", "top.2.qcow2", "top.3.qcow2", "top.qcow2"], "images")


def test_wrong(place):
    place.make_chain()
    for words in (["snapshot"], ["snapshot", "seven"], ["snapshot", "seven", "a/b"], ["snapshot", "seven", ""],
                  ["snapshot", "seven", "a", "b"], ["snapshot", "seven", "a", "--size", "x"]):
        fails(place, *words, status=2)
    expect("no chain of this name" in fails(place, "snapshot", "seven", "one"), "not served")
    expect("Examples:" in place.ctl("snapshot", "--help").stdout, "no examples")
    child = place.start("--name", "hand", "--export", f"nbd,socket={place.path('hand.sock')}", place.path("top.qcow2"))
    place.wait_ready(child, place.path("hand.sock"))
    expect("not started by qchainctl" in fails(place, "snapshot", "hand", "one"), "by hand")
    child.terminate()
    child.wait(harness.WAIT_S)


def test_refused_by_the_daemon(place):
    """The switch itself fails: record, images and device are as before."""
    place.make_chain()
    up(place)
    place.ctl("down", "seven")
    up(place, "seven", "./top.qcow2", "seven.sock", "--read-only")
    before = record_of(place)
    expect("read-only" in fails(place, "snapshot", "seven", "one"), "no reason")
    after = record_of(place)
    expect_equal((after["top"], after["snapshots"], "new" in after), ("top.qcow2", [], False), "record")
    expect(after["sequence"] > before["sequence"], "the record was never written")
    expect_equal(images(place), ["base.qcow2", "top.qcow2"], "images")
    expect_equal(tree(place), [("top.qcow2", None), ("base.qcow2", None)], "tree")
    place.ctl("down", "seven")
    up(place)
    place.ctl("snapshot", "seven", "one")
    place.ctl("down", "seven")


def test_raw_base(place):
    place.run("qemu-img", "create", "-q", "-f", "raw", place.path("disk.raw"), "4M")
    place.ctl("up", "seven", "./disk.raw", "--format", "raw", "--no-ublk", "--nbd", "seven.sock")
    guest_io(place, "seven.sock", "write -P 1 0 64k")
    expect_equal(record_of(place)["format"], "raw", "format")
    place.ctl("snapshot", "seven", "one")
    expect("format" not in record_of(place), "the overlay is called raw")
    place.ctl("expose", "seven", "one", "--nbd", "one.sock")
    shown = place.run("qemu-io", "-r", "-f", "raw", "-c", "read -P 1 0 64k", f"nbd+unix:///?socket={place.path('one.sock')}")
    expect("read 65536/65536" in shown.stdout and "fail" not in shown.stdout.lower(), shown.stdout)
    place.ctl("unexpose", "seven", "one")
    guest_io(place, "seven.sock", "write -P 2 0 32k", "flush")
    kill_daemon(place)
    place.ctl("up", "seven")
    guest_io(place, "seven.sock", "read -P 2 0 32k", "read -P 1 32k 32k")
    place.ctl("down", "seven")
    holds(place, "disk.1.qcow2", "2 0 32k", "1 32k 32k")
    place.ctl("up", "seven", "./", "--no-ublk", "--nbd", "seven.sock")
    place.ctl("down", "seven")


def kill_at(place, point):
    done = place.run(place.program("qchainctl"), "snapshot", "seven", "one", status=None,
                     environment=dict(place.environment, QCHAIN_CRASH_POINT=f"snapshot.{point}"))
    expect_equal(done.returncode, -9, f"exit status at {point}")


def prepare_kill(place, point):
    """A device with content 1, killed while snapshot `one` is taken; then it is written on."""
    for name in images(place) + ["seven.qchain"]:
        if os.path.exists(place.path(name)):
            os.unlink(place.path(name))
    place.make_chain("4M")
    up(place)
    guest_io(place, "seven.sock", "write -P 1 0 1M")
    kill_at(place, point)
    guest_io(place, "seven.sock", "read -P 1 0 1M", "write -P 2 0 64k", "flush")


def judge(place, point, second):
    """The device holds all; snapshot `one`, if it is there, what it held then; no image too many."""
    guest_io(place, "seven.sock", "read -P 2 0 64k", "read -P 1 64k 960k", "write -P 3 1M 64k")
    wait_sealed(place)
    layers = tree(place)
    place.ctl("down", "seven")
    check_all(place)
    record = record_of(place)
    expect_equal((record["top"], "new" in record), (layers[0][0], False), f"record after {point}")
    expect_equal([(snap["image"], snap["name"]) for snap in reversed(record["snapshots"])],
                 [layer for layer in layers if layer[1]], f"snapshots after {point}")
    expect_equal(sorted(layer[0] for layer in layers), images(place), f"images after {point}")
    expect(second in [snap["name"] for snap in record["snapshots"]], f"{point}: {second} is missing")
    if point == "published":
        holds(place, "top.qcow2", "1 0 1M")
    nothing_left(place)


def test_killed_and_again(place):
    """The daemon lives on; the next snapshot clears up."""
    for point in POINTS:
        prepare_kill(place, point)
        done = place.ctl("snapshot", "seven", "one", status=1 if point == "published" else 0)
        expect(point != "published" or "already" in done.stderr, done.stderr)
        judge(place, point, "one")


def test_killed_and_up(place):
    """The daemon dies, too: up serves what the record says, and loses nothing."""
    for point in POINTS:
        prepare_kill(place, point)
        kill_daemon(place)
        place.ctl("up", "seven")
        place.ctl("snapshot", "seven", "two")
        judge(place, point, "two")


def forget_run(place):
    """As after a power cut: nothing that was in memory is left."""
    shutil.rmtree(place.path("run"))
    os.unlink(place.path("seven.sock"))


def test_killed_and_started_anew(place):
    """And the host, too: /run is empty."""
    for point in POINTS:
        prepare_kill(place, point)
        kill_daemon(place)
        forget_run(place)
        place.ctl("up", "seven", "./", "--no-ublk", "--nbd", "seven.sock")
        place.ctl("snapshot", "seven", "two")
        judge(place, point, "two")


def test_expose(place):
    """A snapshot is read while its chain is written and snapshotted."""
    place.make_chain()
    up(place)
    guest_io(place, "seven.sock", "write -P 1 0 1M")
    place.ctl("snapshot", "seven", "one")
    guest_io(place, "seven.sock", "write -P 2 0 1M")
    row = place.ctl_json("expose", "seven", "one", "--nbd", "one.sock")
    expect_equal((row["name"], row["exports"][0]["read-only"]), ("seven+one", True), "answer")
    place.ctl("snapshot", "seven", "two")
    guest_io(place, "seven.sock", "write -P 3 0 1M")
    place.run("qemu-io", "-r", "-f", "raw", "-c", "read -P 1 0 1M",
              f"nbd+unix:///?socket={place.path('one.sock')}")
    expect("has no snapshot three" in fails(place, "expose", "seven", "three", "--nbd", "x.sock"), "no such snapshot")
    expect_equal(place.ctl_json("unexpose", "seven", "one"), {"name": "seven+one", "before": "serving"}, "answer")
    place.ctl("down", "seven")
    nothing_left(place)
    for verb in ("expose", "unexpose", "events"):
        expect("Examples:" in place.ctl(verb, "--help").stdout, f"no examples in {verb} --help")


def test_events(place):
    """As they come, of all chains that are served; it ends with the last daemon."""
    place.make_chain()
    up(place, "dead", "./base.qcow2", "dead.sock", "--read-only")
    kill_daemon(place, "dead")
    expect("its daemon has ended" in fails(place, "events", "dead"), "a chain that is not served")
    up(place)
    with open(place.path("events"), "w", encoding="utf-8") as out:
        child = subprocess.Popen([place.program("qchainctl"), "events", "--json"], stdout=out, env=place.environment)
    place.children.append(child)

    def listens():
        """It sleeps without a limit: the daemon has let it in."""
        with open(f"/proc/{child.pid}/syscall", encoding="ascii") as call:
            words = call.read().split()
        return len(words) > 3 and words[3].endswith("ffffffff")
    wait_until(listens, "it listens")
    place.ctl("down", "seven")
    expect_equal(child.wait(harness.WAIT_S), 0, "exit status")
    with open(place.path("events"), encoding="utf-8") as out:
        events = [json.loads(line) for line in out]
    expect("SHUTDOWN" in [event["event"] for event in events], events)
    expect_equal({event["name"] for event in events}, {"seven"}, "names")
    place.ctl("down", "dead")


# ---- groups -----------------------------------------------------------------------------------


def make_group(place):
    for name in ("a", "b"):
        place.run("qemu-img", "create", "-q", "-f", "qcow2", place.path(f"{name}.qcow2"), "4M")
        up(place, name, f"./{name}.qcow2", f"{name}.sock")


class Counter(Writer):
    """Writes 1 to a, then 1 to b, then 2 to a, .. each when the one before is acknowledged."""

    def __init__(self, place):
        super().__init__()
        self.place = place
        self.count = 0

    async def write_all(self):
        disks = [await NbdClient.connect(self.place.path(f"{name}.sock")) for name in ("a", "b")]
        while self.running:
            self.count += 1
            for disk in disks:
                await disk.write(0, struct.pack("<Q", self.count) * 64)
        for disk in disks:
            await disk.abandon()


def counted(place, image):
    raw = place.path("content")
    place.run("qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", place.path(image), raw)
    with open(raw, "rb") as content:
        return struct.unpack("<Q", content.read(8))[0]


def test_group(place):
    """A write that was issued because of another one is in no snapshot without that one."""
    make_group(place)
    writer = Counter(place)
    writer.start()
    taken = []
    for number in range(12):
        seen = writer.count
        wait_until(lambda old=seen: writer.count > old + 3 or writer.error, "writes go on")
        rows = place.ctl_json("snapshot", "--group", "b", "a", f"s{number}")
        expect_equal([row["name"] for row in rows], ["a", "b"], "names")
        taken.append([os.path.basename(row["file"]) for row in rows])
    writer.end()
    for name in ("a", "b"):
        place.ctl("down", name)
    for first, second in taken:
        ahead = counted(place, first) - counted(place, second)
        expect(ahead in (0, 1), f"{first} is {ahead} writes ahead of {second}")
    nothing_left(place)
    check_all(place)


def test_group_or_nothing(place):
    """One that cannot: none is switched."""
    make_group(place)
    place.ctl("snapshot", "b", "one")
    before = images(place)
    for words in (["a", "b", "one"], ["a", "none", "two"]):
        place.ctl("snapshot", "--group", *words, status=1)
        expect_equal(images(place), before, "images")
        expect_equal(tree(place, "a"), [("a.qcow2", None)], "tree of a")
    fails(place, "snapshot", "--group", "a", "a", "two", status=2)
    qmp = Qmp(place.path("run/b/qmp.sock"))
    expect_equal(qmp.command("qchain-hold", milliseconds=5000), {"return": {}}, "hold")
    done = place.ctl("snapshot", "--group", "a", "b", "two", status=1)
    expect("held already" in done.stderr, done.stderr)
    expect_equal((images(place), tree(place, "a")), (before, [("a.qcow2", None)]), "after a hold in the way")
    qmp.close()
    for name in ("a", "b"):
        place.ctl("down", name)


def test_group_killed(place):
    """Between the switches of two: said again it is refused, and the one that was not switched is what it was before."""
    make_group(place)
    done = place.run(place.program("qchainctl"), "snapshot", "--group", "a", "b", "one", status=None,
                     environment=dict(place.environment, QCHAIN_CRASH_POINT="snapshot.published"))
    expect_equal(done.returncode, -9, "exit status")
    expect_equal(tree(place, "b"), [("b.qcow2", "one")], "tree of b, which was recorded and not switched")
    done = place.ctl("snapshot", "--group", "a", "b", "one", status=1)
    expect("already" in done.stderr and "b: snapshot one was interrupted and not taken" in done.stderr, done.stderr)
    expect_equal((tree(place, "a"), tree(place, "b")), ([("a.1.qcow2", None), ("a.qcow2", "one")], [("b.qcow2", None)]),
                 "trees")
    wait_until(lambda: place.ctl("snapshot", "--group", "a", "b", "two", status=None).returncode == 0,
               "the hold of the one that was killed ends, and a group is taken")
    for name in ("a", "b"):
        place.ctl("down", name)
    check_all(place)


def test_hold(place):
    """Writes wait for the release, or for the end of the time; reads do not."""
    make_group(place)
    qmp = Qmp(place.path("run/a/qmp.sock"))
    for wrong in (0, 5001):
        expect("error" in qmp.command("qchain-hold", milliseconds=wrong), f"hold of {wrong} ms")
    write = ["qemu-io", "-f", "raw", "-c", "write -P 7 0 64k", "-c", "write -z 64k 64k", "-c", "flush",
             f"nbd+unix:///?socket={place.path('a.sock')}"]
    for release in (True, False):
        expect_equal(qmp.command("qchain-hold", milliseconds=5000 if release else 300), {"return": {}}, "hold")
        child = subprocess.Popen(write, stdout=subprocess.DEVNULL)

        def held():
            return qmp.command("query-status")["return"]["requests"]["stages"].get("hold", 0) == 1
        wait_until(lambda: held() or not release, "the write is held")
        guest_io(place, "a.sock", "read 0 64k")
        if release:
            expect(child.poll() is None, "it was not held")
            expect_equal(qmp.command("qchain-release"), {"return": {}}, "release")
        expect_equal(child.wait(harness.WAIT_S), 0, "status of the writer")
    expect_equal(qmp.command("qchain-release"), {"return": {}}, "release of nothing")
    qmp.close()


def test_reads_while_sealing(place):
    """Tables of the old top are read for the first time all the while it is sealed."""
    windows, step, tables = 256, 1 << 18, 8
    place.run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=512", place.path("top.qcow2"),
              windows * step)
    place.run("qemu-io", "-f", "qcow2", *[word for n in range(windows * tables) for word in (
        "-c", f"write -q -P {n % 255 + 1} {n * step // tables} 512")], place.path("top.qcow2"))
    place.start_chain()
    qmp = Qmp(place.path("qmp"))
    place.run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "top.qcow2", "-F", "qcow2", place.path("over.qcow2"))
    added = qmp.command("blockdev-add", **{"driver": "qcow2", "node-name": "over.qcow2", "file": {
        "driver": "file", "filename": place.path("over.qcow2")}})
    expect_equal(added, {"return": {}}, "blockdev-add")

    async def read(client, first):
        for n in range(first, windows, 4):
            data = await client.read(n * step, 512)
            expect(data == bytes([n * tables % 255 + 1]) * 512, f"content of window {n}")

    async def read_all():
        client = await NbdClient.connect(place.path("nbd"))
        snapshot = asyncio.to_thread(qmp.command, "blockdev-snapshot", node="top.qcow2", overlay="over.qcow2")
        taken, *_ = await asyncio.gather(snapshot, *(read(client, n) for n in range(4)))
        expect_equal(taken, {"return": {}}, "blockdev-snapshot")
        await client.close()
    asyncio.run(read_all())
    wait_until(lambda: [node["state"] for node in qmp.command("query-named-block-nodes")["return"]] == [
        "active", "sealed"], "the old top is sealed")
    qmp.close()


def test_transaction(place):
    """QMP's word for it, with the one action that there can be."""
    place.make_chain()
    place.start_chain()
    qmp = Qmp(place.path("qmp"))
    place.run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "top.qcow2", "-F", "qcow2", place.path("over.qcow2"))
    added = qmp.command("blockdev-add", **{"driver": "qcow2", "node-name": "over.qcow2", "file": {
        "driver": "file", "filename": place.path("over.qcow2")}})
    expect_equal(added, {"return": {}}, "blockdev-add")
    action = {"type": "blockdev-snapshot", "data": {"node": "top.qcow2", "overlay": "over.qcow2"}}
    for wrong in ([], [action, action], [{"type": "blockdev-backup", "data": {}}], [{"data": {}}], [5],
                  [{"type": "blockdev-snapshot"}], [{"type": "blockdev-snapshot", "data": {"node": "top.qcow2"}}]):
        expect("error" in qmp.command("transaction", actions=wrong), f"{wrong} is taken")
    expect_equal(qmp.command("transaction", actions=[action]), {"return": {}}, "transaction")
    nodes = qmp.command("query-named-block-nodes")["return"]
    expect_equal([node["node-name"] for node in nodes], ["over.qcow2", "top.qcow2", "base.qcow2"], "nodes")
    expect_equal(qmp.command("query-status")["return"]["top"], place.path("over.qcow2"), "top")
    qmp.close()


def test_only_while_held(place):
    """A snapshot of a group comes while writes are held, or not at all: the hold may have ended on the way."""
    place.make_chain()
    place.start_chain()
    qmp = Qmp(place.path("qmp"))
    place.run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "top.qcow2", "-F", "qcow2", place.path("over.qcow2"))
    added = qmp.command("blockdev-add", **{"driver": "qcow2", "node-name": "over.qcow2", "file": {
        "driver": "file", "filename": place.path("over.qcow2")}})
    expect_equal(added, {"return": {}}, "blockdev-add")

    def take():
        return qmp.command("blockdev-snapshot", **{"node": "top.qcow2", "overlay": "over.qcow2", "qchain-held": True})
    expect("not held" in take()["error"]["desc"], "taken without a hold")
    expect_equal(qmp.command("qchain-hold", milliseconds=1), {"return": {}}, "a short hold")
    guest_io(place, "nbd", "write -P 1 0 64k")  # ends when the hold has ended
    expect("not held" in take()["error"]["desc"], "taken after the hold")
    expect_equal(len(qmp.command("query-named-block-nodes")["return"]), 2, "layers")
    expect_equal(qmp.command("qchain-hold", milliseconds=5000), {"return": {}}, "hold")
    expect_equal(take(), {"return": {}}, "answer while writes are held")
    expect_equal(qmp.command("qchain-release"), {"return": {}}, "release")
    qmp.close()


# ---- leftovers ---------------------------------------------------------------------------------


def test_leftovers_are_looked_at(place):
    """What is marked as unfinished but holds data is not removed."""
    place.make_chain()
    up(place)
    place.ctl("down", "seven")
    record = record_of(place)
    record["new"] = "odd.qcow2"
    with open(place.path("seven.qchain"), "w", encoding="utf-8") as out:
        json.dump(record, out)
    place.run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "top.qcow2", "-F", "qcow2", place.path("odd.qcow2"))
    place.run("qemu-io", "-f", "qcow2", "-c", "write 0 64k", place.path("odd.qcow2"))
    done = place.ctl("up", "seven", "./", "--no-ublk", "--nbd", "seven.sock", status=1)
    expect("odd.qcow2" in done.stderr and "holds data" in done.stderr, done.stderr)
    expect(os.path.exists(place.path("odd.qcow2")), "it was removed")


def test_daemon_keeps_nothing(place):
    """No descriptor and no node of an overlay that was not used stays in the daemon."""
    place.make_chain()
    up(place, "seven", "./top.qcow2", "seven.sock")
    kill_at(place, "formatted")
    place.ctl("snapshot", "seven", "one")
    qmp = Qmp(place.path("run/seven/qmp.sock"))
    expect("error" in qmp.command("remove-fd", **{"fdset-id": 71}), "a descriptor is left")
    qmp.close()
    place.ctl("down", "seven")


if __name__ == "__main__":
    sys.exit(harness.main("snapshot", sys.modules["__main__"]))
