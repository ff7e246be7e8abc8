#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Thin LVs that grow while they are written to, on loop devices that a fake lvm calls LVs; and kill -9 of all who take part."""

import asyncio
import json
import os
import random
import signal
import sys

import harness
from full import wait_for
from harness import Qmp, Skip, expect, expect_equal, wait_until
from lifecycle import kill_daemon, nothing_left

sys.path.insert(0, os.path.join(harness.HERE, "..", "lib"))
from fakelvm import EXTENT, FakeVg
from nbdclient import NbdClient, NbdError

MIB = 1 << 20
SIZE = 32 * MIB
PIECE = 256 << 10
OPTIONS = {"kills": 6, "seed": 1}


class Thin:
    """Device `seven` on a thin LV, in a VG whose space has been somebody else's."""

    def __init__(self, place, size=1 << 30):
        if os.geteuid() or not os.access("/dev", os.W_OK):
            raise Skip("no folder can be made in /dev")
        self.place = place
        try:
            self.vg = FakeVg(place, devices=True, size=size)
        except OSError as error:
            raise Skip(f"no fake VG: {error}") from error
        self.client = None
        self.model = {}  # number of a piece: its byte

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        try:
            if os.path.exists(self.place.path("run/seven")):
                self.down("--force")
        finally:
            self.vg.close()

    def create(self, *words):
        self.place.ctl("create", f"{self.vg.name}/disk", "--size", str(SIZE), "--thin", "--chunk", "1M", *words)
        return self

    def up(self, *words):
        self.place.ctl("up", "seven", f"{self.vg.name}/disk", "--no-ublk", "--nbd", self.place.path("sock"), *words)

    def down(self, *words):
        self.place.ctl("down", "seven", *words)
        nothing_left(self.place)

    def bytes(self, name="disk"):
        return self.vg.lvs()[name]["size"]

    def status(self):
        return self.place.ctl_json("status", "seven")

    def growth(self):
        return self.status()["status"].get("growth", {})

    async def connect(self):
        self.client = await NbdClient.connect(self.place.path("sock"))
        return self.client

    async def write(self, number, byte):
        await self.client.write(number * PIECE, bytes([byte]) * PIECE)
        self.model[number] = byte

    async def write_all(self, numbers, byte):
        """Several at a time."""
        numbers = list(numbers)
        for at in range(0, len(numbers), 8):
            await asyncio.gather(*[self.write(number, byte) for number in numbers[at:at + 8]])

    async def check(self):
        for number in range(SIZE // PIECE):
            data = await self.client.read(number * PIECE, PIECE)
            byte = self.model.get(number, 0)
            expect(data == bytes([byte]) * PIECE, f"piece {number}: not {byte} but {data[:16]}...")

    def check_image(self, name="disk"):
        self.place.run("qemu-img", "check", "-q", "-f", "qcow2", self.vg.path(name))


def pieces(part):
    return range(int(SIZE // PIECE * part))


async def write_half(thin):
    """By a client of its own: half of the disk, which is more than the LV has."""
    await thin.connect()
    await thin.write_all(pieces(0.5), 1)
    await thin.check()
    await thin.client.close()


def serve(place, run, *words, **more):
    """From create to the check of the image, with one guest."""
    with Thin(place, **more) as thin:
        thin.create().up(*words)
        asyncio.run(run(thin))
        thin.down()
        thin.check_image()


def test_grows(place):
    """From one chunk to all of it; never beyond what makes it thick; what was there before is never shown."""
    async def run(thin):
        await thin.connect()
        await thin.write_all(pieces(0.5), 1)
        await thin.check()
        expect(thin.bytes() >= SIZE // 2, f"LV has {thin.bytes()} bytes with half of {SIZE} written")
        await thin.write_all(pieces(1), 2)
        await thin.check()
        await thin.client.close()
    with Thin(place) as thin:
        thin.create()
        thick = json.loads(place.ctl("measure", "--size", str(SIZE), "--json").stdout)["lv-size"]
        expect_equal((thin.bytes(), thin.vg.lvs()["disk"]["tags"]), (EXTENT, ["qchain", f"qchain.thin={MIB}"]), "new LV")
        thin.up("--on-full", "fail")
        events = Qmp(place.path("run/seven/qmp.sock"))
        asyncio.run(run(thin))
        expect(thin.bytes() <= -(-thick // EXTENT) * EXTENT, f"LV has {thin.bytes()} bytes, thick are {thick}")
        expect(os.path.exists(f"/proc/{thin.status()['grower']}"), "status names no process that makes it larger")
        thin.down()
        said = [line["event"] for line in events.until_end()]
        expect("BLOCK_WRITE_THRESHOLD" in said and "QCHAIN_VOLUME_GROWTH" not in said, f"events: {said}")
        thin.check_image()


def test_discarded_first(place):
    """What was discarded is used again before the LV grows."""
    async def run(thin):
        await thin.connect()
        await thin.write_all(pieces(0.5), 1)
        await thin.client.flush()
        before = thin.bytes()
        for turn in range(2, 6):
            await thin.client.trim(0, SIZE // 2)
            thin.model.clear()
            await thin.client.flush()
            await wait_for(lambda: thin.status()["status"]["metadata"]["to-reclaim"] == 0, "clusters are free")
            await thin.write_all(pieces(0.5), turn)
        await thin.check()
        expect_equal(thin.bytes(), before, "size of the LV")
        await thin.client.close()
    serve(place, run)


async def is_open(client):
    await asyncio.wait_for(client.read(0, PIECE), harness.WAIT_S)
    await asyncio.wait_for(client.flush(), harness.WAIT_S)


def test_full_group(place):
    """The VG has no more: told once, writes wait, all else goes on; space comes, and they go on by themselves."""
    async def run(thin, events):
        await thin.connect()
        await thin.write_all(pieces(0.1), 1)
        tasks = [asyncio.create_task(thin.write(number, 2)) for number in pieces(0.6)[len(pieces(0.1)):]]
        await wait_for(lambda: thin.growth().get("state") == "stuck", "status says that it is stuck")
        await wait_for(lambda: thin.status()["status"]["metadata"]["full"], "status says full")
        expect("no free extent" in thin.growth()["reason"], thin.growth())
        expect("no free extent" in place.ctl("status", "seven").stdout, "status says why in words")
        await is_open(thin.client)
        await asyncio.wait_for(thin.write(0, 3), harness.WAIT_S)
        expect(any(not task.done() for task in tasks), "all was written without space")
        thin.vg.resize(1 << 30)
        await asyncio.wait_for(asyncio.gather(*tasks), harness.WAIT_S)
        await thin.check()
        await wait_for(lambda: thin.growth() == {"state": "grows"}, "status says that it grows")
        await thin.client.close()
        events.command("quit", force=True)
    with Thin(place, size=3 * EXTENT) as thin:
        thin.create().up()
        events = Qmp(place.path("run/seven/qmp.sock"))
        asyncio.run(run(thin, events))
        said = [line["data"]["state"] for line in events.events + events.until_end()
                if line["event"] == "QCHAIN_VOLUME_GROWTH"]
        expect_equal(said, ["stuck", "grows"], "events of the growth")
        expect_equal(place.ctl("down", "seven", status=None).returncode, 0, "down")
        thin.check_image()


def test_not_active(place):
    """As after a start of the host: the LV becomes active with `up`, and is made larger as ever."""
    with Thin(place) as thin:
        thin.create()
        place.run("lvm", "lvchange", "--activate", "n", f"{thin.vg.name}/disk")
        thin.up()
        wait_until(lambda: thin.status()["grower"], "somebody makes it larger")
        asyncio.run(write_half(thin))
        thin.down()


def test_fail(place):
    """--on-full fail: nothing fails as long as the VG has space; without any, writes fail, and go on when it has come."""
    async def run(thin):
        await thin.connect()
        done = await asyncio.gather(*[thin.write(number, 1) for number in pieces(1)], return_exceptions=True)
        failed = [error for error in done if isinstance(error, NbdError)]
        expect(failed and len(failed) < len(done), f"{len(failed)} of {len(done)} writes failed")
        expect(thin.bytes() == 4 * EXTENT, f"LV has {thin.bytes()} bytes, the VG {4 * EXTENT}")
        thin.vg.resize(1 << 30)
        for number in pieces(1):
            await write_in_the_end(thin, number)
        await thin.check()
        await thin.client.close()
    serve(place, run, "--on-full", "fail", size=4 * EXTENT)


async def write_in_the_end(thin, number):
    for _ in range(harness.WAIT_S * 20):
        try:
            return await thin.write(number, 2)
        except NbdError:
            await asyncio.sleep(0.05)
    raise harness.Failure(f"piece {number} is never written")


def test_snapshots(place):
    """An overlay is thin by --thin, and as the top is; with --size it is not. Each grows while it is the top."""
    async def fill(thin, byte):
        await thin.connect()
        await thin.write_all(pieces(0.4), byte)
        await thin.check()
        await thin.client.close()
    with Thin(place) as thin:
        place.ctl("create", f"{thin.vg.name}/disk", "--size", str(SIZE))
        thin.up()
        expect_equal(thin.status()["grower"], None, "process for a thick LV")
        place.ctl("snapshot", "seven", "a", "--thin", "--chunk", "2M")
        expect_equal(thin.bytes("disk.1.qcow2"), EXTENT, "LV of a")
        asyncio.run(fill(thin, 1))
        place.ctl("snapshot", "seven", "b")
        expect("qchain.thin=2097152" in thin.vg.lvs()["disk.2.qcow2"]["tags"], thin.vg.lvs())
        asyncio.run(fill(thin, 2))
        place.ctl("revert", "seven", "b", "--force")
        thin.model = {number: 1 for number in pieces(0.4)}
        asyncio.run(fill(thin, 3))
        place.ctl("snapshot", "seven", "c", "--size", "60M")
        top = os.path.basename(thin.status()["top"])
        expect_equal(thin.bytes(top), 60 * MIB, "LV of c")
        expect(not any("thin" in tag for tag in thin.vg.lvs()[top]["tags"]), thin.vg.lvs())
        asyncio.run(fill(thin, 4))
        thin.down()
        for name in ("disk.1.qcow2", "disk.3.qcow2", top):
            place.run("lvm", "lvchange", "--activate", "y", f"{thin.vg.name}/{name}")
            thin.check_image(name)


def test_files(place):
    """Files grow by themselves: --thin is refused, with that."""
    said = place.ctl("create", "./disk.qcow2", "--size", "1G", "--thin", status=1).stderr
    expect("this is a file: it grows by itself" in said, said)
    expect(not os.path.exists(place.path("disk.qcow2")), "the file was made")
    place.make_chain()
    place.ctl("up", "seven", "./top.qcow2", "--no-ublk", "--nbd", place.path("sock"))
    said = place.ctl("snapshot", "seven", "a", "--thin", status=1).stderr
    expect("it grows by itself" in said, said)
    place.ctl("down", "seven")


def test_chunk_alone(place):
    """Options that make no sense together."""
    expect("--chunk without --thin" in place.ctl("create", "vg/x", "--size", "1G", "--chunk", "1M", status=2).stderr, "chunk")
    expect("at least 1M" in place.ctl("create", "vg/x", "--size", "1G", "--thin", "--chunk", "1K", status=2).stderr, "1K")
    expect("expected one of them" in place.ctl("snapshot", "x", "y", "--thin", "--size", "1G", status=2).stderr, "size")


# ---- kill -9


class Killer:
    """Kills one of those who take part, and sees to it that things go on as they would."""

    def __init__(self, thin, rng):
        self.thin = thin
        self.random = rng

    def kill_grower(self):
        before = self.thin.status()["grower"]
        os.kill(before, signal.SIGKILL)
        wait_until(lambda: self.thin.status()["grower"] not in (None, before), "another process makes it larger")

    def kill_both(self):
        """The process that looks after it first: nobody is left, until somebody asks for it."""
        pid = self.thin.status()["grower"]
        with open(f"/proc/{pid}/stat", encoding="utf-8") as stat:
            parent = int(stat.read().rsplit(")", 1)[1].split()[1])
        for victim in (parent, pid):
            os.kill(victim, signal.SIGKILL)
        wait_until(lambda: self.thin.status()["grower"] is None, "nobody makes it larger")
        said = self.thin.place.ctl("up", "seven").stderr
        expect("started again" in said, said)

    def kill_served(self):
        kill_daemon(self.thin.place)
        self.thin.place.ctl("up", "seven")

    def once(self):
        self.random.choice([self.kill_grower, self.kill_both, self.kill_served])()


async def write_on(thin, number, byte):
    """Whoever is killed meanwhile."""
    while True:
        try:
            if thin.client is None:
                await thin.connect()
            return await thin.write(number, byte)
        except (OSError, EOFError, NbdError) as error:
            expect(not isinstance(error, NbdError) or "ENOSPC" not in str(error), f"piece {number}: {error}")
            thin.client = None
            await asyncio.sleep(0.01)


def test_killed(place):
    """The daemon, the one that makes the LV larger, the one that looks after that: it grows, and nothing is lost."""
    rng = random.Random(OPTIONS["seed"])

    async def run(thin):
        killer = Killer(thin, rng)
        for number in rng.sample(list(pieces(1)), len(pieces(1))):
            await write_on(thin, number, rng.randrange(1, 256))
            if rng.random() < OPTIONS["kills"] / len(pieces(1)):
                await asyncio.to_thread(killer.once)
        if thin.client is None:
            await thin.connect()
        await thin.check()
        await thin.client.close()
    serve(place, run)


def crash(place, point):
    """Killed there by itself; whoever comes next goes on."""
    with Thin(place) as thin:
        place.environment["QCHAIN_CRASH_POINT"] = point
        thin.create().up()
        del place.environment["QCHAIN_CRASH_POINT"]
        asyncio.run(write_half(thin))
        with open(place.path("run/seven/qchaind.log"), encoding="utf-8") as log:
            expect("started again" in log.read(), "nobody was killed")
        thin.down()
        thin.check_image()


def test_crash_before_the_extension(place):
    crash(place, "thin.unextended:2")


def test_crash_after_the_extension(place):
    crash(place, "thin.extended")


def test_crash_after_telling(place):
    crash(place, "thin.told")


def add_options(parser):
    parser.add_argument("--kills", type=int, default=OPTIONS["kills"], help="about how many at random")
    parser.add_argument("--seed", type=int, default=OPTIONS["seed"])


def other_action(arguments):
    OPTIONS.update(kills=arguments.kills, seed=arguments.seed)


if __name__ == "__main__":
    sys.exit(harness.main("thin", sys.modules["__main__"], add_options))
