#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""All verbs of qchainctl on devices in use, in a random order, beside random I/O of several clients.

After each verb: what the device holds, and each of its snapshots, is what the model says; `qemu-img check`
finds no error in any image; the chain that qemu-img sees is the one that `tree` shows. With --kill the
daemon is killed at random instants, or qchainctl at its crash points, and what comes after it goes on.
"""

import argparse
import collections
import copy
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import traceback

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "..", "lib"), os.path.join(HERE, "..", "control")]

from guests import Crowd, Guests
from harness import Failure, Place, expect, expect_equal, wait_until
from model import SECTOR, Clock, Model
from nbdclient import NbdDisconnected

MIB = 1 << 20
MOST = 8 * MIB
VERBS = 7  # of one sequence
# What a verb may be refused for, that came in the way of another one or of something older; nothing has changed then.
REFUSALS = ("unexpose", "exposed", "stand on it", "images stand", "stands on", "is the backing image of",
            "another branch", "no layer of", "in use, the image lock", "not possible now", "would be damaged", "job ",
            "does not change its size")
# Steps of qchainctl at which it is killed.
POINTS = {
    "snapshot": ("snapshot.marked", "snapshot.created", "snapshot.formatted", "snapshot.unrecorded", "snapshot.recorded",
                 "snapshot.noted", "snapshot.frozen", "snapshot.published"),
    "delete": tuple("delete." + point for point in ("unrecorded", "recorded", "started", "merged", "unfinished",
                                                    "finished")) + ("retire.wiped", "retire.removed"),
    "revert": tuple("revert." + point for point in ("formatted", "unrecorded", "recorded", "published", "applied"))
              + ("retire.wiped", "retire.removed"),
    "rename": ("rename.recorded",),
}
POINTS["group"] = POINTS["snapshot"]


class Refused(Exception):
    """The verb said no, with a reason that there may be."""


class Killed(Exception):
    """The verb, or the daemon under it, was killed."""


class Snapshot:
    """What it holds is one instant between two ticks, until it was looked at; then it is known, and stays so."""

    def __init__(self, before, after, content=None):
        self.before = before
        self.after = after
        self.content = content


class Device(Guests):
    """One device, in a folder of its own."""

    def __init__(self, case, name):
        self.case = case
        self.place = case.place
        self.name = name
        self.folder = case.place.path(name)
        self.rng = random.Random(f"{case.seed} {name}")
        self.size = self.rng.choice([2, 3, 4]) * MIB + SECTOR * self.rng.choice([0, 0, 8, 11])
        super().__init__(random.Random(f"{case.seed} guests of {name}"), Model(self.size, case.clock),
                         case.place.path(f"{name}.sock"), case.kill)
        self.pause_s = 0.02
        self.snapshots = {}
        self.number = 0
        self.exposed = None
        self.checked = {}  # images: what was found without an error
        self.crowd = None

    # ---- up and down ------------------------------------------------------------------

    def create(self):
        os.mkdir(self.folder)
        for index in range(self.rng.randint(1, 2)):
            cluster = self.rng.choice([4096, 16384, 65536, 65536, 131072])
            options = f"cluster_size={cluster}" + (",extended_l2=on" if cluster >= 16384 and self.rng.random() < 0.5
                                                  else "")
            below = ["-b", f"disk{index - 1}.qcow2", "-F", "qcow2"] if index else []
            self.place.run("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, *below,
                           os.path.join(self.folder, f"disk{index}.qcow2"), self.size)
        self.ctl("up", self.name, f"./{os.path.basename(self.folder)}/disk{index}.qcow2", "--no-ublk", "--nbd", self.sock)

    def guests_come(self):
        self.crowd = Crowd(self)

    def guests_go(self):
        self.crowd.end()

    def ctl(self, *words):
        return self.case.ctl(*words)

    def shown(self, verb, *more):
        return json.loads(self.place.ctl(verb, self.name, *more, "--json").stdout)

    def layers(self):
        """From the base up: (file, snapshot)."""
        return [(layer["file"], layer["snapshot"]) for layer in self.shown("tree")["layers"]][::-1]

    def listed(self):
        """Snapshots, of branches too: name and file."""
        return {row["name"]: row["file"] for row in self.shown("status")["snapshots"]}

    # ---- judging -------------------------------------------------------------------------

    def image_content(self, file):
        raw = os.path.join(self.folder, "content")
        self.place.run("qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", file, raw)
        with open(raw, "rb") as content:
            return content.read()

    def chain_of(self, file):
        info = json.loads(self.place.run("qemu-img", "info", "-U", "--backing-chain", "--output=json", file).stdout)
        return [os.path.join(self.folder, os.path.basename(image["filename"])) for image in info]

    def stamp(self, file):
        stat = os.stat(file)
        return stat.st_mtime_ns, stat.st_size, stat.st_ino

    def check_image(self, file, in_use):
        """No error; one that is being written may have leaks, and its tables may be on their way."""
        if self.checked.get(file) == self.stamp(file):
            return

        def is_fine():
            stamp = self.stamp(file)
            done = self.place.run("qemu-img", "check", "-U", "-f", "qcow2", file, status=None)
            self.checked[file] = stamp
            return done.returncode in ((0, 3) if in_use or self.kill else (0,)) or done.stdout
        last = []
        try:
            wait_until(lambda: last.append(is_fine()) or last[-1] is True, "no error", 5 if in_use else 0.01)
        except Failure as error:
            raise Failure(f"{os.path.basename(file)}: qemu-img check: {last[-1]}") from error

    def check_snapshot(self, name, file):
        """By the model at the first look; from then on to the last byte."""
        snapshot = self.snapshots[name]
        chain = [(image, self.stamp(image)) for image in self.chain_of(file)]
        if self.checked.get((name, "chain")) == chain:
            return
        content = self.image_content(file)
        if snapshot.content is None:
            self.model.check_snapshot(content, snapshot.before, snapshot.after, f"snapshot {name}")
            snapshot.content = content
        expect(content == snapshot.content, f"snapshot {name} has changed")
        self.checked[(name, "chain")] = chain

    def wait_sealed(self):
        wait_until(lambda: all(layer["state"] != "sealing" for layer in self.shown("tree")["layers"]), "all is sealed")

    def agrees(self):
        """What goes on after a death ends in the daemon first and in the record a moment later."""
        listed = self.listed()
        return all(name is None or listed.get(name) == file for file, name in self.layers())

    def judge(self):
        """While the guests rest."""
        self.wait_sealed()
        wait_until(self.agrees, "tree and status have the same image of each snapshot")
        listed = self.listed()
        expect_equal(sorted(listed), sorted(self.snapshots), "snapshots")
        layers = self.layers()
        top = layers[-1][0]
        expect_equal(self.chain_of(top)[::-1], [file for file, _ in layers], "the chain that qemu-img sees")
        for name, file in listed.items():
            self.check_snapshot(name, file)
        content = self.read_device(self.size)
        self.model.check_present(content, "device")
        for file in {file for file, _ in layers} | set(listed.values()):
            self.check_image(file, file == top)
        if self.exposed:
            name, sock = self.exposed
            expect(self.content_of(sock) == self.snapshots[name].content, f"exposed {name} shows something else")
        return content

    def content_of(self, sock):
        raw = os.path.join(self.folder, "exposed")
        self.place.run("qemu-img", "convert", "-f", "raw", "-O", "raw", f"nbd+unix:///?socket={sock}", raw)
        with open(raw, "rb") as content:
            return content.read()

    # ---- verbs: what each does to the model -----------------------------------------------

    def new_name(self):
        self.number += 1
        return f"s{self.number}"

    def snapshot(self):
        name, before = self.new_name(), self.case.clock.now
        self.case.possible = {name: Snapshot(before, None)}
        self.ctl("snapshot", self.name, name)
        self.snapshots[name] = Snapshot(before, self.case.clock.now)

    def merge_words(self, *words):
        return list(words) + (["--speed", f"{self.rng.choice([8, 32])}M"] if self.rng.random() < 0.3 else [])

    def forget(self, layers):
        """What a commit into the lowest of these holds is no restore point any more."""
        lost = [name for _, name in layers if name]
        self.case.lost = lost
        return lost

    def commit(self):
        layers = self.layers()
        if len(layers) < 3:
            return self.snapshot()
        top = self.rng.randrange(1, len(layers) - 1)
        base = self.rng.randrange(0, top)
        lost = self.forget(layers[base:top])
        self.ctl(*self.merge_words("commit", self.name, "--top", layers[top][0], "--base", layers[base][0],
                                   "--drop-snapshots"))
        for name in lost:
            del self.snapshots[name]
        return None

    def commit_active(self):
        layers = self.layers()
        if len(layers) < 2:
            return self.snapshot()
        base = self.rng.randrange(0, len(layers) - 1)
        lost = self.forget(layers[base:])
        self.ctl(*self.merge_words("commit", self.name, "--base", layers[base][0], "--drop-snapshots"))
        for name in lost:
            del self.snapshots[name]
        return None

    def stream(self):
        layers = self.layers()
        if len(layers) < 2:
            return self.snapshot()
        into = len(layers) - 1 if self.rng.random() < 0.5 else self.rng.randrange(1, len(layers))
        keep = self.rng.randrange(0, into + 1)
        words = ["stream", self.name] + (["--into", layers[into][0]] if into < len(layers) - 1 else [])
        self.ctl(*self.merge_words(*words, *(["--base", layers[keep - 1][0]] if keep else [])))
        return None

    def beside(self):
        """A stream of its own, and another verb while it goes on: that is refused, or both are done."""
        if len(self.layers()) < 2:
            return self.snapshot()
        self.ctl("stream", self.name, "--speed", "4M", "--detach")
        try:
            getattr(self, self.rng.choice(("snapshot", "commit", "stream", "delete", "resize", "expose", "rename")))()
        finally:
            self.wait_jobs()
        return None

    def wait_jobs(self):
        wait_until(lambda: all(job.get("status", "null") in ("concluded", "null") for job in self.shown_jobs()), "no job works")

    def shown_jobs(self):
        return json.loads(self.place.ctl("job", "list", self.name, "--json").stdout)

    def delete(self):
        if not self.snapshots:
            return self.snapshot()
        name = self.rng.choice(sorted(self.snapshots))
        self.case.lost = [name]
        self.ctl("delete", self.name, name, *self.rng.choice(((), (), ("--commit",), ("--stream",))))
        del self.snapshots[name]
        return None

    def revert(self):
        """The guests rest: what they write around the switch is nobody's to say."""
        below = [name for _, name in self.layers() if name]
        if not below:
            return self.snapshot()
        name = self.rng.choice(below)
        keep = self.new_name() if self.rng.random() < 0.4 else None
        newer = below[below.index(name) + 1:]
        self.crowd.hold()
        for one, file in self.listed().items():  # a group's may not have been looked at, and the model begins anew
            self.check_snapshot(one, file)
        now = self.read_device(self.size)
        self.case.possible = {keep: Snapshot(0, 0, now)} if keep else {}
        self.case.lost = [] if keep else newer
        self.case.reverting = name
        self.ctl("revert", self.name, name, "--force", *(["--keep", keep] if keep else ["--drop-snapshots"]))
        if keep:
            self.snapshots[keep] = Snapshot(0, 0, now)
        else:
            for one in newer:
                del self.snapshots[one]
        self.set_back(self.snapshots[name].content)
        return None

    # ---- after a death --------------------------------------------------------------------

    def recover(self):
        """Whoever died, and where: the state before the verb, or the one after it."""
        case = self.case
        if case.row(self)["state"] != "serving":
            self.guests_go()
            self.place.ctl("up", self.name)
        self.wait_jobs()
        if case.again:
            self.place.run(self.place.program("qchainctl"), *case.again, status=None)
        if case.renamed and any(row["name"] == case.renamed for row in case.rows()):
            self.name = case.renamed
        self.wait_sealed()
        self.crowd.end()
        listed = self.listed()
        surely = set(self.snapshots) - set(case.lost)
        expect(surely <= set(listed) <= set(self.snapshots) | set(case.possible), f"snapshots {sorted(listed)} after a "
               f"kill, were {sorted(self.snapshots)}, lost {case.lost}, new {sorted(case.possible)}")
        for name in listed:
            if name not in self.snapshots:
                self.snapshots[name] = copy.copy(case.possible[name])  # a group's is one of each device
                self.snapshots[name].after = self.snapshots[name].after or case.clock.now
        self.snapshots = {name: self.snapshots[name] for name in listed}
        if case.new_size and case.row(self)["size"] == case.new_size:
            self.regions.append((self.size // SECTOR, (case.new_size - self.size) // SECTOR))
            self.size = case.new_size
            self.model.sectors = self.size // SECTOR
        self.settle()
        self.held = False
        self.guests_come()

    def settle(self):
        """What it holds now is what there is."""
        for name, file in self.listed().items():
            self.check_snapshot(name, file)
        content = self.read_device(self.size)
        target = self.snapshots.get(self.case.reverting)
        if target and content == target.content + bytes(self.size - len(target.content)):
            self.set_back(target.content)
            return
        self.model.check_present(content, "device after a kill")
        self.model.adopt(content)

    def set_back(self, content):
        """The size stays what it was: beyond the snapshot's there is nothing."""
        self.model.adopt(content + bytes(self.size - len(content)))

    def resize(self):
        size = min(MOST, self.size + SECTOR * self.rng.randint(1, 2048))
        if size == self.size:
            return self.snapshot()
        self.case.new_size = size
        self.ctl("resize", self.name, str(size))
        self.grown(size)
        return None

    def grown(self, size):
        self.regions.append((self.size // SECTOR, (size - self.size) // SECTOR))
        self.size = size
        self.model.sectors = size // SECTOR
        self.guests_go()  # the size is told when a client connects
        self.guests_come()

    def rename(self):
        new = f"{self.name[0]}{self.new_name()}"
        if self.exposed:
            self.unexpose()
        self.case.renamed = new
        self.ctl("rename", self.name, new)
        self.name = new

    def expose(self):
        if self.exposed:
            return self.unexpose()
        if not self.snapshots:
            return self.snapshot()
        name = self.rng.choice(sorted(self.snapshots))
        sock = self.place.path(f"{self.name}-{name}.sock")
        self.ctl("expose", self.name, name, "--nbd", sock)
        self.exposed = name, sock
        return None

    def unexpose(self):
        name, self.exposed = self.exposed[0], None
        self.ctl("unexpose", self.name, name)


SINGLE = ("snapshot", "snapshot", "snapshot", "commit", "commit", "commit_active", "stream", "stream", "delete", "delete",
          "revert", "resize", "rename", "expose", "beside")


class Case:
    """One seed: two devices, a sequence of verbs."""

    def __init__(self, seed, build, folder, kill):
        self.seed = seed
        self.kill = kill
        self.rng = random.Random(seed)
        self.place = Place(build, folder)
        self.clock = Clock()
        self.told = collections.Counter()
        self.environment = None  # of the verb under way
        self.begin_verb()
        self.devices = [Device(self, "a"), Device(self, "b")]

    def begin_verb(self):
        """What the verb under way may have changed when it is killed."""
        self.possible = {}
        self.lost = []
        self.new_size = None
        self.reverting = None
        self.renamed = None
        self.again = None  # what ends a verb that was killed

    def ctl(self, *words):
        if self.kill and words[0] in POINTS:
            self.again = words
        done = self.place.run(self.place.program("qchainctl"), *words, status=None,
                              environment=self.environment or self.place.environment)
        if done.returncode == 0:
            return done
        said = done.stderr.strip()
        if self.kill and (done.returncode == -signal.SIGKILL or self.victim_is_dead()):
            raise Killed(said)
        if any(text in said for text in REFUSALS):
            raise Refused(said)
        raise Failure(f"{' '.join(words)}: status {done.returncode}: {said}")

    def victim_is_dead(self):
        return any(self.row(device)["state"] != "serving" for device in self.devices)

    def rows(self):
        return json.loads(self.place.ctl("list", "--json").stdout)

    def row(self, device):
        return next(row for row in self.rows() if row["name"] == device.name)

    # ---- verbs ------------------------------------------------------------------------------

    def group(self):
        """One instant: what one device has that was issued late tells what the other must have."""
        a, b = self.devices
        name, before = f"g{a.new_name()}", self.clock.now
        self.possible = {name: Snapshot(before, None)}
        self.ctl("snapshot", "--group", a.name, b.name, name)
        after = self.clock.now
        for device in self.devices:
            device.snapshots[name] = Snapshot(before, after)
            device.wait_sealed()
        contents = [device.image_content(device.listed()[name]) for device in self.devices]
        last = max(device.model.newest(content, before) for device, content in zip(self.devices, contents))
        expect(last <= after, "a write that was issued after the group snapshot is in it")
        for device, content in zip(self.devices, contents):
            device.model.check_snapshot(content, last, after, f"{name} of {device.name}")

    def one_verb(self):
        device = self.rng.choice(self.devices)
        verb = self.rng.choice(SINGLE + ("group",))
        run = self.group if verb == "group" else getattr(device, verb)
        self.begin_verb()
        killer = self.choose_killer(device, verb)
        try:
            run()
            self.told[verb] += 1
        except Refused:
            self.told["refused"] += 1
        except Killed:
            self.told[f"{verb}, killed"] += 1
        except (Failure, NbdDisconnected, ConnectionError):  # something else than the verb found it dead
            if not killer or self.row(device)["state"] == "serving":
                raise
            self.told[f"{verb}, killed"] += 1
        if killer:
            killer.cancel()
            killer.join()
        if self.kill:
            self.environment = None
            for one in self.devices if verb == "group" else [device]:
                one.recover()
        return device

    def choose_killer(self, device, verb):
        """qchainctl dies at one of its crash points, or its daemon at a random instant, by what is returned."""
        if not self.kill or verb in ("expose", "beside"):
            return None
        if verb in POINTS and (verb in ("group", "rename") or self.rng.random() < 0.6):
            point = self.rng.choice(POINTS[verb])
            self.environment = dict(self.place.environment, QCHAIN_CRASH_POINT=point)
            return None
        pid = json.loads(self.place.ctl("status", device.name, "--json").stdout)["pid"]
        killer = threading.Timer(self.rng.random() * 0.3, os.kill, (pid, signal.SIGKILL))
        killer.start()
        return killer

    def judge(self):
        for device in self.devices:
            device.crowd.hold()
            device.judge()
            device.crowd.release()

    # ---- the whole -----------------------------------------------------------------------------

    def run(self):
        for device in self.devices:
            device.create()
            device.guests_come()
        for _ in range(VERBS):
            device = self.one_verb()
            device.crowd.hold()
            device.judge()
            device.crowd.release()
        self.judge()
        self.finish()

    def finish(self):
        for device in self.devices:
            if device.exposed:
                device.unexpose()
            device.guests_go()
            content = device.read_device(device.size)
            listed, top = device.listed(), device.layers()[-1][0]
            self.place.ctl("down", device.name)
            device.checked.clear()
            expect(device.image_content(top)[:device.size] == content, "the device shows something else when it is down")
            for name, file in listed.items():
                device.check_snapshot(name, file)
            for file in sorted({top, *listed.values(), *device.chain_of(top)}):
                device.check_image(file, False)

    def end(self):
        for device in self.devices:
            device.kill = True
            if device.crowd:
                device.running = device.held = False
        self.place.end()


def run_seed(words):
    seed, build, kill, keep = words
    folder = tempfile.mkdtemp(prefix="qchain-verbs-", dir="/dev/shm")
    case = Case(seed, build, folder, kill)
    failed = None
    try:
        try:
            case.run()
        finally:
            case.end()
    except Exception as error:  # pylint: disable=broad-except
        failed = f"{error}\n{traceback.format_exc()}"
    if failed and keep:
        print(f"kept {folder}")
    else:
        shutil.rmtree(folder)
    return seed, failed, case.told


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--kill", action="store_true")
    parser.add_argument("--keep", action="store_true")
    args = parser.parse_args()
    build, failures, told = os.path.abspath(args.build), 0, collections.Counter()
    seeds = [(seed, build, args.kill, args.keep) for seed in range(args.seed, args.seed + args.count)]
    with multiprocessing.Pool(args.jobs) as pool:
        for seed, failed, verbs in pool.imap_unordered(run_seed, seeds):
            told.update(verbs)
            if failed:
                failures += 1
                again = " --kill" if args.kill else ""
                print(f"FAIL {seed}: {failed}again: tests/online/verbs.py --build {args.build} --seed {seed} --count 1"
                      f"{again}", flush=True)
    print(", ".join(f"{count} {verb}" for verb, count in sorted(told.items())))
    print(f"verbs: {args.count - failures} passed, {failures} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
