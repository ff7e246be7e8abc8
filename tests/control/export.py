#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""qchainctl export and verify: full exports and increments, by QEMU's eyes; beside a guest, merges and a kill."""

import json
import os
import random
import subprocess
import sys

import harness
from harness import Writer, expect, expect_equal, wait_until
from lifecycle import guest_io, is_locked, one_line, up

sys.path.insert(0, os.path.join(harness.HERE, "..", "lib"))
from nbdclient import NbdClient
from snapshot import wait_sealed

SIZE = 16 << 20
SECTOR = 512
SEED = None


def fails(place, *words, status=1):
    return one_line(place.ctl(*words, status=status).stderr, "qchainctl", words)


def draw_writes(rng, nr):
    """qemu-io commands of a guest, at most 64 KiB each, as often as not on borders of clusters."""
    commands = []
    for _ in range(nr):
        align = rng.choice((SECTOR, 4096, 65536))
        at = rng.randrange(SIZE // align) * align
        length = min(rng.randrange(1, 65536 // SECTOR + 1) * SECTOR, SIZE - at)
        commands.append(rng.choice((f"write -P {rng.randrange(1, 256)} {at} {length}", f"write -z {at} {length}",
                                    f"discard {min(at & ~65535, SIZE - 131072)} 131072")))
    return commands


def make_snapshots(place, rng, names, geometry="cluster_size=64k"):
    """A device with a snapshot of each name; returns the layers that hold them."""
    place.run("qemu-img", "create", "-q", "-f", "qcow2", "-o", geometry, place.path("base.qcow2"), SIZE)
    place.run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", place.path("top.qcow2"))
    up(place)
    layers = {}
    for name in names:
        guest_io(place, "seven.sock", *draw_writes(rng, 12))
        layers[name] = place.ctl_json("snapshot", "seven", name)["file"]
        wait_sealed(place)  # no more than three may be on their way
    guest_io(place, "seven.sock", *draw_writes(rng, 12))
    return layers


def content(place, image, form="qcow2"):
    raw = place.path("content.raw")
    place.run("qemu-img", "convert", "-U", "-f", form, "-O", "raw", image, raw)
    with open(raw, "rb") as file:
        return file.read()


def same_content(place, layer, exported, form="qcow2"):
    expect(content(place, layer) == content(place, exported, form), f"{exported} and {layer} differ")


def own_map(place, image, depth):
    """[(start, end, zero)] of what the uppermost @depth layers map, joined."""
    rows = json.loads(place.run("qemu-img", "map", "-U", "--output=json", "-f", "qcow2", image).stdout)
    found = []
    for row in rows:
        if row["depth"] >= depth or not row["present"]:
            continue
        piece = (row["start"], row["start"] + row["length"], row["zero"])
        if found and found[-1][1] == piece[0] and found[-1][2] == piece[2]:
            found[-1] = (found[-1][0], piece[1], piece[2])
        else:
            found.append(piece)
    return found


def export(place, name, *words):
    place.ctl("export", "seven", f"./{name}", *words)
    return place.path(name)


def start_slow(place, name, *words):
    """An export that takes for ever; it holds the locks of what it reads."""
    child = subprocess.Popen([place.program("qchainctl"), "export", "seven", f"./{name}", "--speed", "4K", *words],
                             cwd=place.folder, env=place.environment, stdin=subprocess.DEVNULL,
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    place.children.append(child)
    wait_until(lambda: child.poll() is not None or
               (os.path.exists(place.path(f"{name}.part")) and is_locked(place.path(f"{name}.part"))),
               "the export copies")
    expect(child.poll() is None, "the export ended")
    return child


def test_increments(place):
    """Each export shows its snapshot, and holds exactly what the layers in between map."""
    rng = random.Random(SEED)
    names = ["one", "two", "three", "four"]
    layers = make_snapshots(place, rng, names, rng.choice(("cluster_size=64k", "cluster_size=4k", "cluster_size=128k,"
                                                           "extended_l2=on")))
    before = export(place, "one.qcow2", "--to", "one")
    same_content(place, layers["one"], before)
    for index, name in enumerate(names[1:]):
        exported = export(place, f"{name}.qcow2", "--from", names[index], "--to", name, "--backing", before)
        same_content(place, layers[name], exported)
        place.run("qemu-img", "check", "-q", "-f", "qcow2", exported)
        expect_equal(own_map(place, exported, 1), own_map(place, layers[name], 1), f"map of {name}")
        before = exported
    over = export(place, "over.qcow2", "--from", "one", "--backing", "./one.qcow2")
    same_content(place, layers["four"], over)
    expect_equal(own_map(place, over, 1), own_map(place, layers["four"], 3), "map over three layers")
    raw = export(place, "two.raw", "--to", "two", "--format", "raw")
    same_content(place, layers["two"], raw, "raw")
    place.ctl("down", "seven")
    whole = place.path("whole.qcow2")
    place.ctl("export", "./top.4.qcow2", whole)
    same_content(place, place.path("top.4.qcow2"), whole)
    again = place.path("again.qcow2")
    answer = place.ctl_json("export", "./top.4.qcow2", again, "--from", "three", "--to", "four",
                            "--backing", place.path("three.qcow2"))
    expect_equal((answer["device"], answer["from"], answer["to"], answer["virtual-size"]),
                 ("seven", "three", "four", SIZE), "answer")
    expect_equal(own_map(place, again, 1), own_map(place, place.path("four.qcow2"), 1), "map, not served")


def damage(path):
    """Another bit in the middle of what the file holds."""
    with open(path, "r+b") as file:
        rows = json.loads(subprocess.run(["qemu-img", "map", "--output=json", "-f", "qcow2", path], check=True,
                                         stdout=subprocess.PIPE).stdout)
        row = next(row for row in rows if row["depth"] == 0 and row["data"])
        file.seek(row["offset"] + row["length"] // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def test_verify(place):
    """A set that is whole, and each way in which it is not."""
    make_snapshots(place, random.Random(SEED), ["one", "two", "three"])
    one = export(place, "one.qcow2", "--to", "one")
    two = export(place, "two.qcow2", "--from", "one", "--to", "two", "--backing", one)
    three = export(place, "three.qcow2", "--from", "two", "--backing", two)
    raw = export(place, "raw", "--format", "raw")
    rows = place.ctl_json("verify", three, two, raw)
    expect_equal([(os.path.basename(row["filename"]), row["to"]) for row in rows],
                 [("one.qcow2", "one"), ("two.qcow2", "two"), ("three.qcow2", "three"), ("raw", "three")], "set")
    for image in (one, two, three):
        if image == one:
            place.run("qemu-io", "-f", "qcow2", "-c", "write -P 99 1M 1M", one)
        else:
            damage(image)
        refused = fails(place, "verify", three)
        expect(f"{os.path.basename(image)}: is not what was written" in refused, f"{image}: {refused}")
        name = os.path.basename(image)
        words = {"one.qcow2": [], "two.qcow2": ["--from", "one", "--backing", one],
                 "three.qcow2": ["--from", "two", "--backing", two]}[name]
        export(place, name, "--to", name[:-6], "--force", *words)
        place.ctl("verify", three)
    wrong = fails(place, "export", "seven", "./x.qcow2", "--from", "two", "--backing", one)
    expect("holds one, expected two" in wrong, wrong)
    os.rename(f"{two}.json", place.path("aside"))
    expect("two.qcow2.json: not readable" in fails(place, "verify", three), "no note")
    os.rename(place.path("aside"), f"{two}.json")
    os.rename(one, place.path("aside"))
    fails(place, "verify", three)
    os.rename(place.path("aside"), one)
    place.run("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "one.qcow2", three)
    expect("holds one, expected two" in fails(place, "verify", three), "a link of the chain is left out")
    place.run("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", two, three)
    place.ctl("verify", three)
    guest_io(place, "seven.sock", "write -P 5 0 64k")
    place.ctl("delete", "seven", "three")
    place.ctl("snapshot", "seven", "three")
    other = export(place, "other.qcow2", "--from", "two", "--to", "three", "--backing", two)
    last = place.ctl("snapshot", "seven", "four")
    expect(last.stdout, "no snapshot")
    four = export(place, "four.qcow2", "--from", "three", "--backing", three)
    place.ctl("verify", four)
    place.run("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", other, four)
    expect("another export of three" in fails(place, "verify", four), "another base of the same name")
    place.ctl("down", "seven")


def test_longer(place):
    """A raw base, and a device that has grown in between."""
    place.run("qemu-img", "create", "-q", "-f", "raw", place.path("disk.raw"), "4M")
    place.ctl("up", "seven", "./disk.raw", "--format", "raw", "--no-ublk", "--nbd", "seven.sock")
    guest_io(place, "seven.sock", "write -P 1 0 4M")
    place.ctl("snapshot", "seven", "one")
    place.ctl("resize", "seven", "6M")
    guest_io(place, "seven.sock", "write -P 2 5M 64k", "discard 1M 64k")
    layer = place.ctl_json("snapshot", "seven", "two")["file"]
    full = export(place, "full.raw", "--to", "one", "--format", "raw")
    expect(content(place, full, "raw") == b"\1" * (4 << 20), "the full export differs")
    last = export(place, "last.qcow2", "--from", "one", "--backing", full)
    same_content(place, layer, last)
    place.ctl("down", "seven")


class SteadyGuest(Writer):
    def __init__(self, place, rng):
        super().__init__()
        self.path = place.path("seven.sock")
        self.rng = rng
        self.nr = 0

    async def write_all(self):
        client = await NbdClient.connect(self.path)
        while self.running:
            at = self.rng.randrange(SIZE // 4096) * 4096
            await client.write(at, bytes([self.rng.randrange(256)]) * 4096)
            self.nr += 1
        await client.close()


def test_beside_a_guest(place):
    rng = random.Random(SEED)
    layers = make_snapshots(place, rng, ["one"])
    guest = SteadyGuest(place, random.Random(SEED + 1))
    guest.start()
    wait_until(lambda: guest.nr or guest.error, "the guest writes")
    layers["two"] = place.ctl_json("snapshot", "seven", "two")["file"]
    full = export(place, "full.qcow2", "--to", "one")
    written = guest.nr
    last = export(place, "last.qcow2", "--from", "one", "--to", "two", "--backing", full)
    wait_until(lambda: guest.nr > written or guest.error, "the guest writes on")
    guest.end()
    same_content(place, layers["one"], full)
    same_content(place, layers["two"], last)
    place.ctl("down", "seven")


def test_killed(place):
    """Whoever is killed leaves nothing that looks whole; the same command does it again."""
    layers = make_snapshots(place, random.Random(SEED), ["one", "two"])
    full = export(place, "one.qcow2", "--to", "one")
    words = ["--from", "one", "--backing", full]
    child = start_slow(place, "last.qcow2", *words)
    second = place.ctl("export", "seven", "./last.qcow2", *words, status=1).stderr
    expect("in use" in second, f"two at once: {second}")
    child.kill()
    child.wait(harness.WAIT_S)
    expect(not os.path.exists(place.path("last.qcow2")), "killed, and it looks whole")
    done = place.run(place.program("qchainctl"), "export", "seven", "./last.qcow2", *words, status=None,
                     environment=dict(place.environment, QCHAIN_CRASH_POINT="export.written"))
    expect_equal(done.returncode, -9, "exit status at the crash point")
    expect(not os.path.exists(place.path("last.qcow2")), "killed before the name, and it looks whole")
    fails(place, "verify", place.path("last.qcow2"))
    last = export(place, "last.qcow2", *words)
    place.ctl("verify", last)
    same_content(place, layers["two"], last)
    expect(not os.path.exists(f"{last}.part"), "a part is left")
    place.ctl("down", "seven")


def test_merge_meanwhile(place):
    """What an export reads is not written, and goes only when it has ended."""
    layers = make_snapshots(place, random.Random(SEED), ["one", "two"])
    wanted = content(place, layers["two"])
    child = start_slow(place, "two.qcow2")
    for words in (["commit", "seven", "--base", "two", "--drop-snapshots"],
                  ["commit", "seven", "--top", "two", "--base", "one", "--drop-snapshots"],
                  ["stream", "seven", "--into", "two"], ["delete", "seven", "one"]):
        refused = place.ctl(*words, status=1).stderr
        expect("in use" in refused and str(child.pid) in refused, f"{words}: {refused}")
    expect_equal([snap["name"] for snap in place.ctl_json("status", "seven")["snapshots"]], ["one", "two"],
                 "snapshots after what was refused")
    expect(content(place, layers["two"]) == wanted, "the snapshot has changed")
    child.kill()
    child.wait(harness.WAIT_S)
    job = place.ctl("commit", "seven", "--top", "two", "--base", "one", "--drop-snapshots", "--detach",
                    "--speed", "4K").stdout.strip()
    refused = fails(place, "export", "seven", "./more.qcow2")
    expect(f"job {job} writes to it" in refused, refused)
    place.ctl("job", "set-speed", "seven", job, "0", status=None)
    place.ctl("job", "wait", "seven", job, status=None)
    exported = export(place, "two.qcow2")
    expect(content(place, exported) == wanted, "the export differs")
    place.ctl("down", "seven")


def test_wrong(place):
    make_snapshots(place, random.Random(SEED), ["one", "two"])
    for words in ([], ["seven"], ["seven", "./x", "--from", "one"], ["seven", "./x", "--backing", "./y"],
                  ["seven", "./x", "--from", "one", "--backing", "./y", "--format", "raw"], ["seven", "./x", "y"],
                  ["seven", "./x", "--format", "vmdk"]):
        fails(place, "export", *words, status=2)
    expect("no snapshot nine" in fails(place, "export", "seven", "./x.qcow2", "--to", "nine"), "unknown snapshot")
    expect("is no path" in fails(place, "export", "seven", "vg/lv"), "a volume")
    full = export(place, "full.qcow2", "--to", "one")
    expect("--force" in fails(place, "export", "seven", full), "there already")
    export(place, "full.qcow2", "--to", "one", "--force")
    wrong = fails(place, "export", "seven", "./x.qcow2", "--from", "two", "--to", "one", "--backing", full)
    expect("is not below" in wrong, wrong)
    fails(place, "export", "seven", "./x.qcow2", "--from", "one", "--backing", "./missing.qcow2")
    expect(not [name for name in os.listdir(place.folder) if name.startswith("x.qcow2")], "something is left")
    expect("Examples:" in place.ctl("export", "--help").stdout, "no examples")
    place.ctl("down", "seven")


def add_options(parser):
    parser.add_argument("--seed", type=int, default=1, help="of what guests write")


def other_action(arguments):
    global SEED  # pylint: disable=global-statement
    SEED = arguments.seed
    return False


if __name__ == "__main__":
    sys.exit(harness.main("export", sys.modules[__name__], add_options))
