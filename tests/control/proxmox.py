#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Volumes of Proxmox VE, on LVs that a fake lvm makes of files: verbs, and kill -9 at each crash point."""

import asyncio
import json
import os
import random
import shutil
import sys

import harness
from delete import MIB, SIZE, write_some
from harness import Skip, expect, expect_equal
from lifecycle import kill_daemon, nothing_left, one_line
from snapshot import tree, wait_sealed

sys.path.insert(0, os.path.join(harness.HERE, "..", "lib"))
from fakelvm import FakeVg

VOLUME = "vm-103-disk-0.qcow2"
OVERLAY = "extended_l2=on,cluster_size=128k"
OPTIONS = {"kills": 8, "seed": 1}


def snap_lv(snap):
    return f"snap_vm-103-disk-0_{snap}.qcow2"


class Volume:
    """A disk as Proxmox VE makes it, and what it and its snapshots must hold."""

    def __init__(self, place):
        if os.geteuid() or not os.access("/dev", os.W_OK):
            raise Skip("no folder can be made in /dev")
        self.place = place
        self.vg = FakeVg(place)
        self.fresh()

    def fresh(self):
        """The disk, empty, and nothing else."""
        self.vg.clear()
        self.random = random.Random(7)
        self.model = bytearray(SIZE)
        self.snapshots = {}
        self.lvcreate(VOLUME)
        self.place.run("qemu-img", "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", self.vg.path(VOLUME),
                       str(SIZE))
        return self

    def lvm(self, *words):
        self.place.run("lvm", *words)

    def measure(self, options=""):
        words = ["-o", options] if options else []
        return json.loads(self.place.run("qemu-img", "measure", "--output=json", "--size", str(SIZE), "-O", "qcow2",
                                         *words).stdout)["fully-allocated"]

    def lvcreate(self, name, options=""):
        self.lvm("lvcreate", "--size", f"{self.measure(options)}b", "--name", name, "--addtag", "pve-vm-103",
                 "--addtag", f"pve-{name}", self.vg.name)

    # ---- as LVMPlugin.pm does it

    def pve_snapshot(self, snap):
        self.activate()
        self.snapshots[snap] = bytes(self.model)
        self.lvm("lvrename", self.vg.name, VOLUME, snap_lv(snap))
        self.lvcreate(VOLUME, OVERLAY)
        self.place.run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", snap_lv(snap), "-o",
                       f"{OVERLAY},preallocation=metadata", self.vg.path(VOLUME))

    def activate(self):
        """activate_volume(): all that is called as the volume or a snapshot of it."""
        for name in self.vg.lvs():
            if name == VOLUME or name.startswith(snap_lv("")[:-len(".qcow2")]):
                self.lvm("lvchange", "--activate", "y", f"{self.vg.name}/{name}")

    def pve_chain(self):
        """volume_snapshot_info(): current, and below it what is called as a snapshot of it is."""
        self.activate()
        info = json.loads(self.place.run("qemu-img", "info", "-U", "--backing-chain", "--output=json",
                                         self.vg.path(VOLUME)).stdout)
        return info, [os.path.basename(image["filename"]) for image in info]

    # ---- guests

    def write(self, count=20):
        asyncio.run(write_some(self.place, self.random, self.model, count, False))

    def write_down(self):
        """While nobody serves it, as a VM does."""
        at, byte = self.random.randrange(0, SIZE - MIB, 65536), self.random.randrange(1, 256)
        self.place.run("qemu-io", "-f", "qcow2", "-c", f"write -q -P {byte} {at} 512k", self.vg.path(VOLUME))
        self.model[at:at + 512 * 1024] = bytes([byte]) * 512 * 1024

    def make(self, *snaps):
        """Snapshots by Proxmox VE, with data of their own; the device is up."""
        for snap in snaps:
            self.write_down()
            self.pve_snapshot(snap)
        self.up()
        self.write()
        return self

    def up(self):
        self.place.ctl("up", "seven", self.vg.path(VOLUME), "--no-ublk", "--nbd", "seven.sock")

    def down(self):
        self.place.ctl("down", "seven")
        nothing_left(self.place)

    def snapshot(self, snap, *words, status=0):
        done = self.place.ctl("snapshot", "seven", snap, *words, status=status)
        if not status:
            self.snapshots[snap] = bytes(self.model)
        return done

    # ---- what must be

    def content(self, name):
        raw = self.place.path("content")
        self.place.run("qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", self.vg.path(name), raw)
        with open(raw, "rb") as file:
            return file.read()

    def judge(self, what):
        """Proxmox VE's rules; nobody serves it. All content."""
        info, chain = self.pve_chain()
        wanted = [VOLUME] + [snap_lv(snap) for snap in reversed(self.snapshots)]
        expect_equal(chain, wanted, f"{what}: chain")
        lvs = self.vg.lvs()
        expect_equal(sorted(lvs), sorted(wanted), f"{what}: LVs")
        for image, below in zip(info, wanted[1:] + [None]):
            expect_equal((image["format"], image.get("backing-filename"), image.get("backing-filename-format")),
                         ("qcow2", below, "qcow2" if below else None), f"{what}: header of {image['filename']}")
            expect_equal(image["virtual-size"], SIZE, f"{what}: size of {image['filename']}")
        for name, lv in lvs.items():
            options = OVERLAY if "backing-filename" in info[wanted.index(name)] else ""
            expect(lv["size"] >= self.measure(options), f"{what}: {name} is too small")
            expect_equal(sorted(lv["tags"]), ["pve-vm-103", f"pve-{VOLUME}"], f"{what}: tags of {name}")
            self.place.run("qemu-img", "check", "-q", "-f", "qcow2", self.vg.path(name))
        for snap, content in self.snapshots.items():
            expect(self.content(snap_lv(snap)) == content, f"{what}: {snap} holds something else")
        expect(self.content(VOLUME) == bytes(self.model), f"{what}: the volume holds something else")

    def judge_served(self, what):
        """What qchainctl shows of it while it is served."""
        wait_sealed(self.place)
        wanted = [(VOLUME, None)] + [(snap_lv(snap), snap) for snap in reversed(self.snapshots)]
        expect_equal(tree(self.place), wanted, f"{what}: tree")
        expect(not [tag for lv in self.vg.lvs().values() for tag in lv["tags"] if "qchain" in tag],
               f"{what}: tags are left")


def with_volume(function):
    """The VG goes, whatever happens; the daemons have gone before that."""
    def run(place):
        volume = Volume(place)
        try:
            function(place, volume)
        finally:
            place.end()
            volume.vg.close()
    run.__doc__ = function.__doc__
    return run


def killed(place, point, *words):
    done = place.run(place.program("qchainctl"), *words, status=None,
                     environment=dict(place.environment, QCHAIN_CRASH_POINT=point))
    expect_equal(done.returncode, -9, f"exit status at {point}: {done.stderr}")


def fails(place, *words, status=1):
    return one_line(place.ctl(*words, status=status).stderr, "qchainctl", words)


def lose_run(place):
    """As after a power cut."""
    kill_daemon(place)
    shutil.rmtree(place.path("run"))
    os.unlink(place.path("seven.sock"))


# ---- snapshot --------------------------------------------------------------------------------------


@with_volume
def test_snapshot(place, volume):
    """The volume keeps its name, what it was gets that of a snapshot; Proxmox VE goes on with it, and we with that."""
    volume.make("first")
    answer = json.loads(volume.snapshot("second", "--json").stdout)
    expect_equal((answer["file"], answer["top"]), (volume.vg.path(snap_lv("second")), volume.vg.path(VOLUME)), "answer")
    volume.write()
    volume.judge_served("snapshot")
    volume.snapshot("third")
    volume.write()
    volume.judge_served("another")
    expect_equal(place.ctl_json("list")[0]["top"], volume.vg.path(VOLUME), "top")
    for name in ("x", "1a", "a.b", "current", "a" * 41):
        expect("would not take" in fails(place, "snapshot", "seven", name), name)
    expect("has a snapshot third already" in fails(place, "snapshot", "seven", "third"), "a name twice")
    volume.down()
    volume.judge("down")
    volume.write_down()
    volume.pve_snapshot("fourth")
    volume.up()
    volume.write()
    volume.judge_served("up after Proxmox VE's snapshot")
    volume.down()
    volume.judge("down again")


# Where a verb is killed; the daemon lives on, dies and is started again, dies with all of /run, or was never there.
SNAPSHOT = ("snapshot.created", "snapshot.formatted", "snapshot.unrecorded", "snapshot.recorded", "snapshot.noted",
            "snapshot.published", "proxmox.renamed", "proxmox.renamed:2", "proxmox.unreleased", "proxmox.released")
DELETE = ("delete.unrecorded", "delete.recorded", "delete.started", "delete.merged", "delete.unfinished",
          "delete.finished", "proxmox.renamed", "proxmox.renamed:2", "retire.wiped", "retire.removed",
          "proxmox.unreleased", "proxmox.released")
STREAM = tuple(point for point in DELETE if not point.startswith("proxmox.re"))
REVERT = ("revert.formatted", "revert.unrecorded", "revert.recorded", "revert.published", "revert.applied",
          "proxmox.renamed", "proxmox.renamed:2", "retire.wiped", "retire.removed", "proxmox.unreleased",
          "proxmox.released")
FATES = ("lives", "dies", "power")


def fate(place, volume, what):
    """What becomes of the daemon after a verb was killed."""
    if what == "dies":
        kill_daemon(place)
        place.ctl("up", "seven")
    elif what == "power":
        lose_run(place)
        volume.up()


def chosen(points, fates):
    """--kills of all pairs, by the seed; 0: all."""
    pairs = [(point, what) for point in points for what in fates]
    return random.Random(OPTIONS["seed"]).sample(pairs, OPTIONS["kills"] or len(pairs))


@with_volume
def test_snapshot_killed(place, volume):
    """The next verb ends it, one way or the other; nothing is lost, Proxmox VE can go on."""
    for point, what in chosen(SNAPSHOT, FATES):
        volume.fresh().make("first")
        killed(place, point, "snapshot", "seven", "second")
        then = bytes(volume.model)
        volume.write(5)
        fate(place, volume, what)
        volume.write(5)
        volume.snapshot("third")
        taken = [snap for _, snap in tree(place)]
        if "second" in taken:
            volume.snapshots = {"first": volume.snapshots["first"], "second": then, "third": volume.snapshots["third"]}
        expect("second" in taken or point.startswith("snapshot."), f"{point}: second is missing")
        volume.write(5)
        if point != "snapshot.recorded" and point != "snapshot.noted" or what == "lives":
            volume.judge_served(f"{point}, daemon {what}")
        else: # the empty overlay is the top: what it stands on is what the device held when it was served
            volume.snapshots.update({"second": volume.content(snap_lv("second"))} if "second" in taken else {})
        volume.down()
        volume.judge(f"{point}, daemon {what}")


# ---- delete ----------------------------------------------------------------------------------------


def delete(place, volume, snap, *words):
    answer = place.ctl_json("delete", "seven", snap, *words)
    del volume.snapshots[snap]
    return answer


@with_volume
def test_delete(place, volume):
    """Both ways, at each position; names move with a commit."""
    volume.make("a", "b", "c", "d")
    for snap, way in (("b", "commit"), ("a", "commit"), ("d", "stream")):
        expect_equal(delete(place, volume, snap, f"--{way}")["way"], way, "way")
        volume.write(5)
        volume.judge_served(f"{snap} by {way}")
    expect("no --keep" in fails(place, "delete", "seven", "c", "--keep"), "kept")
    volume.snapshot("late")
    volume.write(5)
    expect_equal(delete(place, volume, "late", "--commit")["way"], "commit", "way of the newest")
    volume.write(5)
    volume.judge_served("the newest by commit")
    volume.down()
    volume.judge("after all")


@with_volume
def test_delete_not_served(place, volume):
    """The volume by its own name, the top included; refused while it is in use."""
    volume.make("a", "b", "c", "d")
    expect("in use" in fails(place, "delete", VOLUME, "a", volume.vg.name), "in use")
    volume.down()
    for snap, way in (("b", "commit"), ("d", "commit"), ("c", "stream"), ("a", "commit")):
        answer = place.ctl_json("delete", VOLUME, snap, volume.vg.name, f"--{way}")
        expect_equal((answer["way"], answer["removed"]), (way, True), snap)
        del volume.snapshots[snap]
        volume.judge(f"{snap} by {way}")
        if snap == "b":
            volume.write_down()
    volume.up()
    volume.write(5)
    volume.down()
    volume.judge("after all")


def delete_killed(place, volume, point, what, way):
    volume.fresh().make("a", "b", "c")
    words = ["delete", "seven", "b", f"--{way}"]
    if what == "none":
        volume.down()
        words = ["delete", VOLUME, "b", volume.vg.name, f"--{way}"]
    killed(place, point, *words)
    fate(place, volume, what)
    if what != "none":
        volume.write(5)
        harness.wait_until(lambda: all(job.get("status", "null") in ("concluded", "null") for job in
                                       place.ctl_json("job", "list", "seven")), "no job works")
    done = place.ctl(*words[:-1], status=None)
    expect(done.returncode == 0 or "no snapshot b" in done.stderr, f"{point}, {what}: {done.stderr}")
    del volume.snapshots["b"]
    if what != "none":
        volume.write(5)
        volume.judge_served(f"{way}: {point}, daemon {what}")
        volume.down()
    volume.judge(f"{way}: {point}, daemon {what}")


@with_volume
def test_commit_killed(place, volume):
    for point, what in chosen(DELETE, FATES + ("none",)):
        if (point, what) not in (("delete.started", "none"), ("proxmox.renamed:2", "none")):
            delete_killed(place, volume, point, what, "commit")


@with_volume
def test_stream_killed(place, volume):
    for point, what in chosen(STREAM, FATES + ("none",)):
        if (point, what) != ("delete.started", "none"):
            delete_killed(place, volume, point, what, "stream")


# ---- commit and stream -----------------------------------------------------------------------------


@with_volume
def test_commit(place, volume):
    """Layers of the middle, and the active one: names move down, what has gone down is removed."""
    volume.make("aa", "bb", "cc", "dd")
    words = ["commit", "seven", "--top", "cc", "--base", "aa"]
    expect("snapshot bb would be lost" in fails(place, *words), "not asked for")
    place.ctl(*words, "--drop-snapshots")
    del volume.snapshots["aa"], volume.snapshots["bb"]
    volume.judge_served("middle")
    volume.write(5)
    place.ctl("commit", "seven", "--drop-snapshots")
    del volume.snapshots["dd"]
    volume.judge_served("active")
    for snap in ("ee", "ff", "gg"):
        volume.snapshot(snap)
        volume.write(5)
    wait_sealed(place)
    answer = json.loads(place.ctl("commit", "seven", "--base", "ee", "--drop-snapshots", "--json").stdout)
    expect_equal(answer["snapshots"], ["ee", "ff", "gg"], "snapshots that went")
    for snap in answer["snapshots"]:
        del volume.snapshots[snap]
    volume.judge_served("active, past the next one")
    volume.write(5)
    volume.down()
    volume.judge("down")


def merge_words(volume, *words):
    """Of the volume that nobody serves: by the path of its LV."""
    return [words[0], volume.vg.path(VOLUME), *words[1:]]


MERGES = (
    (["stream"], ["aa", "bb", "cc", "dd"]),
    (["stream", "--base", "aa"], ["bb", "cc", "dd"]),
    (["stream", "--into", "cc", "--base", "aa"], ["bb"]),
    (["commit", "--base", "aa"], ["aa", "bb", "cc", "dd"]),
    (["commit"], ["dd"]),
    (["commit", "--top", "cc", "--base", "aa"], ["aa", "bb"]),
)


@with_volume
def test_merges(place, volume):
    """stream, served and not, and commit of what is not served: what is merged goes, all others keep name and content."""
    cases = [(served, words, gone) for served in (True, False) for words, gone in MERGES
             if not served or words[0] == "stream"]
    for served, words, gone in random.Random(OPTIONS["seed"]).sample(cases, min(2 * OPTIONS["kills"] or len(cases), len(cases))):
        volume.fresh().make("aa", "bb", "cc", "dd")
        if not served:
            volume.down()
            words = merge_words(volume, *words)
        else:
            words = [words[0], "seven", *words[1:]]
        line = fails(place, *words)
        expect("would be lost; say --drop-snapshots" in line and all(snap in line for snap in gone), line)
        answer = json.loads(place.ctl(*words, "--drop-snapshots", "--json").stdout)
        expect_equal(sorted(answer["snapshots"]), gone, f"{words}: what is gone")
        for snap in gone:
            del volume.snapshots[snap]
        if served:
            volume.write(5)
            volume.judge_served(words)
            volume.down()
        volume.judge(words)
        volume.write_down()
        volume.pve_snapshot("late")
        volume.judge(f"{words}, and a snapshot by Proxmox VE")
    for words in (["stream", volume.vg.path(snap_lv("late"))], ["commit", volume.vg.path(snap_lv("late"))]):
        expect("expected the volume itself" in fails(place, *words, "--drop-snapshots"), words)
    expect("expected a snapshot" in fails(place, *merge_words(volume, "stream", "--base", "zz")), "no such layer")
    volume.judge("refused")


def merge_killed(place, volume, point, what, verb):
    volume.fresh().make("aa", "bb", "cc")
    words = [verb, "seven", "--base", "aa", "--drop-snapshots"]
    if what == "none":
        volume.down()
        words[1] = volume.vg.path(VOLUME)
    killed(place, point, *words)
    fate(place, volume, what)
    if what != "none":
        harness.wait_until(lambda: all(job.get("status", "null") in ("concluded", "null") for job in
                                       place.ctl_json("job", "list", "seven")), "no job works")
    done = place.ctl(*words, status=None)
    if done.returncode: # the base has the name of the next one already
        expect("expected a snapshot" in done.stderr, f"{point}, {what}: {done.stderr}")
        place.ctl(words[0], words[1], "--base", "bb", "--drop-snapshots", status=None)
    for snap in ("aa", "bb", "cc"):  # out of the chain, and not removed yet
        where = [VOLUME, snap, volume.vg.name] if what == "none" else ["seven", snap]
        if not (verb == "stream" and snap == "aa"):
            place.ctl("delete", *where, status=None)
            del volume.snapshots[snap]
    if what != "none":
        volume.write(5)
        volume.judge_served(f"{verb}: {point}, daemon {what}")
        volume.down()
    volume.judge(f"{verb}: {point}, daemon {what}")


@with_volume
def test_merge_killed(place, volume):
    """In the first deletion of several; the same command goes on with the others."""
    for verb, points in (("stream", STREAM), ("commit", DELETE)):
        for point, what in chosen(points, FATES + ("none",)):
            if (point, what) not in (("delete.started", "none"), ("proxmox.renamed:2", "none")):
                merge_killed(place, volume, point, what, verb)


@with_volume
def test_other_managers(place, volume):
    """oVirt, Incus, CloudStack: served, and not changed."""
    uuid = "1b4e28ba-2fa1-11d2-883f-0016d3cca427"
    for name, tags, owner in ((uuid, ["IU_1", "MD_7", "PU_0"], "oVirt"), (f"template-{uuid}", [], "CloudStack"),
                              (uuid, [], "CloudStack"), ("virtual-machines_web.block", [], "Incus")):
        volume.vg.clear()
        words = [word for tag in tags for word in ("--addtag", tag)]
        volume.lvm("lvcreate", "--size", "8388608b", "--name", name, *words, volume.vg.name)
        volume.lvm("lvcreate", "--size", "8388608b", "--name", "below", volume.vg.name)
        place.run("qemu-img", "create", "-q", "-f", "qcow2", volume.vg.path("below"), str(SIZE))
        place.run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "below", "-F", "qcow2", volume.vg.path(name))
        place.ctl("up", "seven", volume.vg.path(name), "--no-ublk", "--nbd", "seven.sock")
        for words in (["snapshot", "seven", "one"], ["delete", "seven", "one"], ["revert", "seven", "one"],
                      ["commit", "seven", "--drop-snapshots"], ["stream", "seven"]):
            expect(f"belongs to {owner}" in fails(place, *words), words)
        place.ctl("down", "seven")
        for words in (["commit", volume.vg.path(name)], ["stream", volume.vg.path(name)],
                      ["delete", "seven", "one", volume.vg.name], ["revert", "seven", "one", volume.vg.name]):
            expect(f"belongs to {owner}" in fails(place, *words), words)


# ---- revert ----------------------------------------------------------------------------------------


def reverted(volume, snap):
    """The model: what was newer has gone."""
    names = list(volume.snapshots)
    for name in names[names.index(snap) + 1:]:
        del volume.snapshots[name]
    volume.model = bytearray(volume.snapshots[snap])


@with_volume
def test_revert(place, volume):
    """To the newest and to others, served and not."""
    volume.make("a", "b", "c")
    expect("no branches" in fails(place, "revert", "seven", "b", "--keep", "x"), "kept")
    expect("would be lost: c" in fails(place, "revert", "seven", "b"), "c")
    place.ctl("revert", "seven", "c")
    reverted(volume, "c")
    volume.judge_served("to the newest")
    volume.write(5)
    place.ctl("revert", "seven", "b", "--drop-snapshots")
    reverted(volume, "b")
    volume.judge_served("to another")
    volume.write(5)
    volume.down()
    volume.judge("down")
    volume.write_down()
    place.ctl("revert", VOLUME, "a", volume.vg.name, "--drop-snapshots")
    reverted(volume, "a")
    volume.judge("not served")
    volume.pve_snapshot("b")
    volume.up()
    volume.write(5)
    volume.down()
    volume.judge("after all")


@with_volume
def test_revert_killed(place, volume):
    for point, what in chosen(REVERT, FATES + ("none",)):
        if what == "none" and point in ("revert.recorded", "revert.published"):
            continue
        volume.fresh().make("a", "b")
        words = ["revert", "seven", "b"]
        if what == "none":
            volume.down()
            words = ["revert", VOLUME, "b", volume.vg.name]
        killed(place, point, *words)
        fate(place, volume, what)
        place.ctl(*words)
        reverted(volume, "b")
        if what != "none":
            volume.write(5)
            volume.judge_served(f"{point}, daemon {what}")
            volume.down()
        volume.judge(f"{point}, daemon {what}")


def add_options(parser):
    parser.add_argument("--kills", type=int, default=OPTIONS["kills"], help="of each verb; 0: at each point, each way")
    parser.add_argument("--seed", type=int, default=OPTIONS["seed"])


def other_action(arguments):
    OPTIONS.update(kills=arguments.kills, seed=arguments.seed)
    return False


if __name__ == "__main__":
    sys.exit(harness.main("proxmox", sys.modules["__main__"], add_options))
