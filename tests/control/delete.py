#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""qchainctl delete on files: both ways, served under I/O and not, refusals, kill -9 at each crash point."""

import asyncio
import json
import os
import random
import subprocess
import sys
import threading

import harness
from harness import Qmp, Writer, expect, expect_equal, wait_until
from lifecycle import kill_daemon, nothing_left, one_line, up
from records import record_of
from snapshot import check_all, images, tree, wait_sealed

sys.path.insert(0, os.path.join(harness.HERE, "..", "lib"))
from nbdclient import NbdClient

MIB = 1 << 20
SIZE = 4 * MIB
SERVED = ("unrecorded", "recorded", "started", "merged", "unfinished", "finished", "retire.wiped", "retire.removed")


class Guest(Writer):
    """Writes at random all the time; @model is what the device holds, exact while @still is held."""

    def __init__(self, place, seed, sock="seven.sock", model=None):
        super().__init__()
        self.sock = place.path(sock)
        self.random = random.Random(seed)
        self.model = model or bytearray(SIZE)
        self.still = threading.Lock()
        self.writes = 0
        self.start()

    async def write_all(self):
        disk = await NbdClient.connect(self.sock)
        while self.running:
            length = 512 << self.random.randrange(8)
            at = self.random.randrange(0, SIZE - length, 512)
            data = self.random.randbytes(length)
            with self.still:
                await disk.write(at, data)
                self.model[at:at + length] = data
            self.writes += 1
            if self.writes % 50 == 0:
                await disk.flush()
            await asyncio.sleep(0.002)
        await disk.close()


async def write_some(place, rng, model, count, zeroes):
    """@count writes at random; @model is what the device holds then."""
    disk = await NbdClient.connect(place.path("seven.sock"))
    for _ in range(count):
        length = 512 << rng.randrange(8)
        at = rng.randrange(0, SIZE - length, 512)
        data = rng.randbytes(length)
        if zeroes and rng.random() < 0.2:
            await disk.write_zeroes(at, length)
            data = bytes(length)
        else:
            await disk.write(at, data)
        model[at:at + length] = data
    await disk.flush()
    await disk.close()


class Device:
    """A device with snapshots, and what each must hold."""

    def __init__(self, place, base="base.qcow2"):
        self.adopt(place)
        for name in images(place) + ["seven.qchain"]:
            if os.path.exists(place.path(name)):
                os.unlink(place.path(name))
        if base:
            place.make_chain(str(SIZE))
        else:
            place.run("qemu-img", "create", "-q", "-f", "qcow2", place.path("top.qcow2"), str(SIZE))

    def adopt(self, place):
        """One that is there already, empty."""
        self.place = place
        self.snapshots = {}
        self.model = bytearray(SIZE)
        self.random = random.Random(7)
        self.zeroes = True

    def write(self, count=30):
        asyncio.run(write_some(self.place, self.random, self.model, count, self.zeroes))

    def snapshot(self, name, count=30):
        """What was written so far is @name; then @count more writes."""
        self.place.ctl("snapshot", "seven", name)
        self.snapshots[name] = bytes(self.model)
        self.write(count)

    def make(self, *names):
        up(self.place)
        self.write()
        for name in names:
            self.snapshot(name)
            wait_sealed(self.place)  # no more than three may be on their way

    def up(self):
        self.place.ctl("up", "seven", "./", "--no-ublk", "--nbd", "seven.sock")

    def down(self):
        self.place.ctl("down", "seven")

    def content(self, image):
        raw = self.place.path("content")
        form = "raw" if image.endswith(".raw") else "qcow2"
        self.place.run("qemu-img", "convert", "-U", "-f", form, "-O", "raw", self.place.path(image), raw)
        with open(raw, "rb") as file:
            return file.read()

    def judge(self, what, dropped=()):
        """The device is down: it, and each snapshot of the record, hold what they must."""
        record = record_of(self.place)
        wanted = [name for name in self.snapshots if name not in dropped]
        expect_equal([snap["name"] for snap in record["snapshots"]], wanted, f"{what}: snapshots")
        expect("dead" not in record, f"{what}: {record}")
        expect(self.content(record["top"]) == bytes(self.model), f"{what}: the device holds something else")
        for snap in record["snapshots"]:
            expect("from" not in snap, f"{what}: {record}")
            expect(self.content(snap["image"]) == self.snapshots[snap["name"]],
                   f"{what}: {snap['name']} holds something else")
        check_all(self.place)
        info = json.loads(self.place.run("qemu-img", "info", "--backing-chain", "--output=json",
                                         self.place.path(record["top"])).stdout)
        return [os.path.basename(image["filename"]) for image in info]


def delete(place, *words):
    return place.ctl_json("delete", "seven", *words)


def fails(place, *words, status=1):
    return one_line(place.ctl(*words, status=status).stderr, "qchainctl", words)


def test_served(place):
    """All positions under guest I/O: the newest into the active layer, others down, or up into the one above."""
    device = Device(place)
    device.make("a", "b", "c", "d")
    guest = Guest(place, 1, model=device.model)
    for name, way, file, layers in (
            ("b", "commit", "top.2.qcow2", [(4, None), (3, "d"), (1, "c"), (0, "a")]),
            ("d", "stream", "top.3.qcow2", [(4, None), (1, "c"), (0, "a")]),
            ("a", "stream", "top.qcow2", [(4, None), (1, "c")]),
            ("c", "stream", "top.1.qcow2", [(4, None)])):
        before = guest.writes
        answer = delete(place, name, f"--{way}")
        expect_equal((answer["way"], os.path.basename(answer["file"]), answer["removed"]), (way, file, True), name)
        expect(answer["moved"] > 0 and answer["commit-bytes"] > 0 and answer["stream-bytes"] > 0, answer)
        wanted = [(f"top.{number}.qcow2" if number else "top.qcow2", snap) for number, snap in layers]
        expect_equal(tree(place), wanted + [("base.qcow2", None)], f"tree after {name}")
        expect(not os.path.exists(place.path(file)), f"{file} is still there")
        del device.snapshots[name]
        with guest.still:
            for snap in record_of(place)["snapshots"]:
                expect(device.content(snap["image"]) == device.snapshots[snap["name"]], f"{snap} after {name}")
        expect(guest.writes > before, "the guest was stopped")
    guest.end()
    device.down()
    expect_equal(device.judge("all"), ["top.4.qcow2", "base.qcow2"], "chain")
    nothing_left(place)


def test_newest(place):
    """The active layer goes down into the newest snapshot's image, which becomes it: asked for, and as the cheaper way."""
    device = Device(place)
    device.make("a", "b", "c")
    guest = Guest(place, 3, model=device.model)
    answer = delete(place, "c", "--commit")
    expect_equal((answer["way"], os.path.basename(answer["file"]), answer["removed"]), ("commit", "top.3.qcow2", True), "c")
    del device.snapshots["c"]
    expect_equal(tree(place), [("top.2.qcow2", None), ("top.1.qcow2", "b"), ("top.qcow2", "a"), ("base.qcow2", None)],
                 "tree")
    expect(not os.path.exists(place.path("top.3.qcow2")), "the old active layer's image is still there")
    guest.end()
    device.write(400)
    device.snapshot("d", 1)
    wait_sealed(place)
    text = place.ctl("delete", "seven", "d").stdout
    expect(": commit\n" in text and "is removed" in text, text)
    del device.snapshots["d"]
    device.write()
    device.down()
    expect_equal(len(device.judge("newest")), 4, "layers")
    nothing_left(place)


def test_newest_snapshot_beside(place):
    """A snapshot while that goes on: what was the active layer is its image, and goes down all the same."""
    device = Device(place)
    device.make("a", "b")
    device.write(100)
    deletion = subprocess.Popen([place.program("qchainctl"), "delete", "seven", "b", "--commit", "--speed", "64k"],
                                env=place.environment, cwd=place.folder, stdout=subprocess.DEVNULL)
    wait_until(lambda: record_of(place).get("jobs", []), "the job has begun")
    place.ctl("snapshot", "seven", "c")
    device.snapshots["c"] = bytes(device.model)
    device.write(5)
    place.ctl("job", "set-speed", "seven", record_of(place)["jobs"][0]["id"], "0", status=None)
    expect_equal(deletion.wait(harness.WAIT_S), 0, "exit status of delete")
    del device.snapshots["b"]
    expect_equal(tree(place), [("top.3.qcow2", None), ("top.1.qcow2", "c"), ("top.qcow2", "a"), ("base.qcow2", None)],
                 "tree")
    device.down()
    device.judge("beside")
    nothing_left(place)


def test_not_served(place):
    """Both ways at each position, the top included."""
    for way in ("--commit", "--stream"):
        device = Device(place)
        device.make("a", "b", "c", "d")
        device.down()
        for name in ("b", "d", "c", "a"):
            expect_equal(delete(place, name, "./", way)["way"], way[2:], "way")
            del device.snapshots[name]
            device.judge(f"{way} {name}")
        expect_equal(images(place), ["base.qcow2", "top.qcow2" if way == "--commit" else "top.4.qcow2"], "images")
        device.up()
        device.write()
        device.down()
        device.judge(f"{way} and up")
        nothing_left(place)


def test_raw(place):
    """The image of the snapshot is raw, and the top again when the overlay has gone down into it."""
    place.run("qemu-img", "create", "-q", "-f", "raw", place.path("disk.raw"), str(SIZE))
    place.ctl("up", "seven", "./disk.raw", "--format", "raw", "--no-ublk", "--nbd", "seven.sock")
    device = Device.__new__(Device)
    device.adopt(place)
    device.zeroes = False
    device.write()
    for served in (True, False):
        device.snapshot("a")
        wait_sealed(place)
        if not served:
            device.down()
        expect_equal(delete(place, "a", *([] if served else ["./"]), "--commit")["way"], "commit", "way")
        device.snapshots.clear()
        if served:
            kill_daemon(place)
            place.ctl("up", "seven")
        else:
            device.up()
        device.write()
        expect_equal(tree(place), [("disk.raw", None)], "tree")
        record = record_of(place)
        expect_equal((record["top"], record["format"], "dead" in record), ("disk.raw", "raw", False), "record")
    device.down()
    expect(device.content("disk.raw") == bytes(device.model), "the device holds something else")


def test_without_backing(place):
    """The lowest image of all: nothing is below what it is streamed into."""
    device = Device(place, base=None)
    device.make("a", "b")
    delete(place, "a", "--commit")
    delete(place, "b", "--stream")
    device.snapshots.clear()
    device.down()
    expect_equal(device.judge("none"), ["top.2.qcow2"], "chain")


def test_cheaper(place):
    """By bytes; what has nothing moves nothing; the words say it."""
    device = Device(place)
    device.make("a")
    device.write(200)
    device.snapshot("b", 0)
    device.snapshot("c", 2)
    device.down()
    answer = delete(place, "b", "./")
    expect_equal((answer["way"], answer["commit-bytes"], answer["moved"]), ("commit", 0, 0), "an empty overlay")
    del device.snapshots["b"]
    device.judge("b")
    text = place.ctl("delete", "seven", "c", "./").stdout
    expect("commit would move" in text and ": commit\n" in text and "is removed" in text, text)
    del device.snapshots["c"]
    device.judge("c")
    device.up()
    device.write(400)
    device.snapshot("d", 0)
    device.write(400)
    device.down()
    answer = delete(place, "a", "./")
    expect_equal(answer["way"], "stream", "what is overwritten nearly all")
    expect(answer["stream-bytes"] < answer["commit-bytes"], answer)
    del device.snapshots["a"]
    device.judge("a")


def test_refused(place):
    """With the reason, and nothing has changed."""
    device = Device(place)
    device.make("a", "b", "c")
    place.ctl("expose", "seven", "b", "--nbd", "b.sock")
    expect("unexpose seven b" in fails(place, "delete", "seven", "a"), "exposed, and below")
    expect("unexpose seven b" in fails(place, "delete", "seven", "b"), "exposed")
    place.ctl("unexpose", "seven", "b")
    place.run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "top.1.qcow2", "-F", "qcow2", place.path("clone.qcow2"))
    expect("2 images stand on it" in fails(place, "delete", "seven", "b"), "a clone stands on it")
    expect("several images stand" in fails(place, "delete", "seven", "a", "--commit"), "and on its overlay")
    os.unlink(place.path("clone.qcow2"))
    expect("no snapshot x" in fails(place, "delete", "seven", "x"), "no such snapshot")
    for word in ("--keep", "--wipe"):
        expect("not with --keep or --wipe" in fails(place, "delete", "seven", "c", "--commit", word), word)
    expect("from" not in record_of(place)["snapshots"][-1], "what was refused has begun")
    qmp = Qmp(place.path("run/seven/qmp.sock"))
    qmp.command("block-stream", **{"job-id": "slow", "device": "top.3.qcow2", "speed": 65536})
    expect("job slow (stream)" in fails(place, "delete", "seven", "a"), "a job")
    qmp.command("job-cancel", id="slow")
    wait_until(lambda: not qmp.command("query-jobs")["return"], "the job is gone")
    qmp.close()
    for words in (["delete"], ["delete", "seven"], ["delete", "seven", "a/b"], ["delete", "seven", "a", "--speed", "x"],
                  ["delete", "seven", "a", "--commit", "--stream"], ["delete", "seven", "a", "./", "x"]):
        fails(place, *words, status=2)
    expect("Examples:" in place.ctl("delete", "--help").stdout, "no examples")
    device.down()
    expect("say their directory" in fails(place, "delete", "seven", "a"), "not served, no directory")
    expect("no record" in fails(place, "delete", "eight", "a", "./"), "another name")
    device.judge("refused")
    nothing_left(place)


def test_keep_and_wipe(place):
    """--keep: the image stays, after a commit without its header; --wipe: nothing of it is left."""
    device = Device(place)
    device.make("a", "b", "c")
    delete(place, "c", "--keep")
    expect(device.content("top.2.qcow2") == device.snapshots.pop("c"), "what c held")
    os.unlink(place.path("top.2.qcow2"))
    with open(place.path("top.1.qcow2"), "rb") as kept:
        answer = delete(place, "a", "--wipe")
        expect(answer["wiped"] > 0, answer)
        expect(not any(kept.read()), "something is left of what was wiped")
    del device.snapshots["a"]
    device.snapshot("d")
    device.snapshot("e")
    wait_sealed(place)
    file = delete(place, "d", "--commit", "--keep", "--wipe")["file"]
    with open(file, "rb") as kept:
        expect(not any(kept.read()), "something is left of what was wiped")
    del device.snapshots["d"]
    os.unlink(file)
    device.down()
    device.judge("kept and wiped")


def slowly(place, *words):
    """A merge that does not end before hurry(); returns its job."""
    return place.ctl(*words, "--speed", "1k", "--detach").stdout.strip()


def hurry(place, job):
    place.ctl("job", "set-speed", "seven", job, "0")
    place.ctl("job", "wait", "seven", job)


def test_beside(place):
    """A merge of other layers goes on; one that shares a layer is refused, or the other way is taken."""
    device = Device(place)
    device.make("a")
    device.write(200)
    device.snapshot("b", 2)
    for snap in ("c", "d", "e"):
        device.snapshot(snap)
    wait_sealed(place)
    guest = Guest(place, 5, model=device.model)
    job = slowly(place, "stream", "seven", "--into", "e", "--base", "c")
    expect_equal(delete(place, "a", "--stream")["way"], "stream", "far below it")
    for snap in ("c", "d", "e"):
        text = fails(place, "delete", "seven", snap)
        expect(f"job {job} (stream) works on it" in text and f"qchainctl job wait seven {job}" in text, text)
    text = fails(place, "delete", "seven", "b", "--commit")
    expect("--commit: not possible now" in text and f"job {job} (stream) works on it" in text, text)
    answer = delete(place, "b")
    expect(answer["commit-bytes"] < answer["stream-bytes"], answer)
    expect_equal(answer["way"], "stream", "the header of what a commit would end with is the job's")
    hurry(place, job)
    guest.end()
    del device.snapshots["a"], device.snapshots["b"]
    device.down()
    expect_equal(device.judge("beside"), ["top.5.qcow2", "top.4.qcow2", "top.2.qcow2", "base.qcow2"], "chain")
    nothing_left(place)


def start_delete(place, *words):
    return subprocess.Popen([place.program("qchainctl"), "delete", "seven", *words], env=place.environment,
                            cwd=place.folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def test_two_at_once(place):
    """Each of them moves data while the other does; in which order they end does not matter."""
    device = Device(place)
    device.make("a", "b", "c", "d", "e")
    guest = Guest(place, 6, model=device.model)
    both = [start_delete(place, "a", "--stream", "--speed", "256k"), start_delete(place, "d", "--commit", "--speed", "256k")]
    wait_until(lambda: len(place.ctl_json("job", "list", "seven")) == 2 or any(one.poll() is not None for one in both),
               "two jobs")
    expect_equal([(one.wait(harness.WAIT_S), one.stderr.read()) for one in both], [(0, "")] * 2, "exit statuses")
    guest.end()
    del device.snapshots["a"], device.snapshots["d"]
    device.down()
    expect_equal(len(device.judge("two at once")), 5, "layers")
    nothing_left(place)


def killed_beside(place, point, snap, way, dies):
    """@point of a deletion while another merge goes on, which ends, with or without its daemon, before that is said again."""
    device = Device(place)
    device.make("a", "b", "c", "d", "e")
    job = slowly(place, "stream", "seven", "--into", "b")
    kill_at(place, point, snap, way)
    if dies:
        kill_daemon(place)
        place.ctl("up", "seven")
    else:
        hurry(place, job)
    harness.wait_until(lambda: all(row.get("status", "null") in ("concluded", "null") for row in
                                   place.ctl_json("job", "list", "seven")), "no job works")
    go_on(place, device, snap, [])
    device.write(5)
    device.down()
    device.judge(f"killed at {point} of {snap} beside a job, daemon {'dies' if dies else 'lives'}")
    nothing_left(place)


def test_killed_beside(place):
    for point, snap, way, dies in (("recorded", "d", "--commit", False), ("started", "d", "--commit", True),
                                   ("merged", "d", "--commit", False), ("started", "c", "--stream", True),
                                   ("unfinished", "c", "--stream", False), ("finished", "c", "--stream", False)):
        killed_beside(place, point, snap, way, dies)


def kill_at(place, point, *words):
    name = point if "." in point else f"delete.{point}"
    done = place.run(place.program("qchainctl"), "delete", "seven", *words, status=None,
                     environment=dict(place.environment, QCHAIN_CRASH_POINT=name))
    expect_equal(done.returncode, -9, f"exit status at {name}: {done.stderr}")


def go_on(place, device, snap, where):
    """The same words again: it is deleted, or was."""
    done = place.run(place.program("qchainctl"), "delete", "seven", snap, *where, status=None)
    expect(done.returncode == 0 or f"no snapshot {snap}" in done.stderr, done.stderr)
    device.snapshots.pop(snap)


def killed(place, point, snap, daemon, *words):
    """@daemon: what becomes of it meanwhile: lives, dies and is started again, or was never there."""
    device = Device(place)
    device.make("a", "b", "c")
    where = []
    if daemon == "none":
        device.down()
        where = ["./"]
    kill_at(place, point, snap, *where, *words)
    if daemon == "dies":
        kill_daemon(place)
        place.ctl("up", "seven")
    if daemon != "none":
        device.write(5)
        harness.wait_until(lambda: all(job.get("status", "null") in ("concluded", "null") for job in
                                       place.ctl_json("job", "list", "seven")), "no job works")
    go_on(place, device, snap, where)
    if daemon != "none":
        device.write(5)
        device.down()
    chain = device.judge(f"killed at {point} of {snap}, daemon {daemon}")
    expect_equal(sorted(chain), images(place), f"images after {point} of {snap}, daemon {daemon}")
    nothing_left(place)


def test_killed(place):
    """qchainctl is killed: nothing is lost, the same command again ends it, no image is left over."""
    for point in SERVED:
        killed(place, point, "c", "lives")
        killed(place, point, "b", "lives")
        killed(place, point, "b", "dies")


def test_killed_newest(place):
    """The same of a commit of the active layer."""
    for point in SERVED:
        killed(place, point, "c", "lives", "--commit")
        killed(place, point, "c", "dies", "--commit")


def test_killed_not_served(place):
    for point in SERVED:
        if point == "started":
            continue
        killed(place, point, "c", "none")
        killed(place, point, "b", "none")


if __name__ == "__main__":
    sys.exit(harness.main("delete", sys.modules[__name__]))
