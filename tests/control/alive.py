#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Daemons that die and come back: the guard of a chain, and kill -9 many times in a row."""

import asyncio
import ctypes
import os
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(os.path.dirname(HERE), "lib"), os.path.join(os.path.dirname(HERE), "online")]

import harness
from harness import Qmp, expect, expect_equal, wait_until
from model import SECTOR, Model
from nbdclient import NbdClient, NbdDisconnected

# An image that has left the chain may have some: nobody opens it any more.
LEAKS = 3  # of qemu-img check
OPTIONS = {"kills": 40, "seed": 1}


# ---- helpers -------------------------------------------------------------------


def up(place, *more, status=0):
    return place.ctl("up", "seven", "./top.qcow2", "--no-ublk", "--nbd", "seven.sock", *more, status=status)


def up_guarded(place, *more):
    place.make_chain()
    up(place, "--restarts", "10", *more)
    return place.ctl_json("status", "seven")


def look(place):
    """status, or None while there is nothing."""
    done = place.ctl("status", "seven", "--json", status=None)
    return harness.json.loads(done.stdout) if done.returncode == 0 else None


def is_alive(pid):
    return os.path.exists(f"/proc/{pid}")


def wait_back(place, before):
    """Served again, and that is noted; returns its status. @before: what it was."""
    seen = []

    def is_back():
        seen[:] = [look(place)]
        return (seen[0]["state"] == "serving" and seen[0]["pid"] != before["pid"] and
                seen[0]["restarts"] > before["restarts"])
    wait_until(is_back, "the daemon comes back")
    return seen[0]


def wait_ended(pid, what):
    wait_until(lambda: not is_alive(pid), f"{what} ends")


# ---- the guard -------------------------------------------------------------------


def test_comes_back(place):
    """Nobody does anything: what was acknowledged and not flushed is there, and status tells of it."""
    before = up_guarded(place)
    expect(is_alive(before["guard"]), "no guard")
    expect_equal((before["restarts"], before["restarted"]), (0, None), "restarts before a death")

    async def write():
        client = await NbdClient.connect(place.path("seven.sock"))
        await asyncio.gather(*(client.write(n * 65536, bytes([n + 1]) * 4096) for n in range(40)))
        os.kill(before["pid"], signal.SIGKILL)
        await client.abandon()
    asyncio.run(write())
    after = wait_back(place, before)
    expect_equal((after["guard"], after["restarts"]), (before["guard"], 1), "guard and restarts")
    expect_equal(after["restarted"]["reason"], f"process {before['pid']} was killed by signal 9 (Killed)", "reason")
    expect(re.search(r"restarts +1, the last .*signal 9", place.ctl("status", "seven").stdout), "not in status")
    expect(re.search(r"seven +serving .* 1 ", place.ctl("list").stdout), "not in list")
    for n in range(0, 40, 13):
        place.run("qemu-io", "-f", "raw", "-c", f"read -P {n + 1} {n * 65536} 4k",
                  f"nbd+unix:///?socket={place.path('seven.sock')}")
    place.ctl("down", "seven")
    wait_ended(after["guard"], "the guard")
    expect(not is_alive(after["pid"]) and not os.path.exists(place.path("run/seven")), "something is left after down")
    place.check_images()


def test_asked_to_end(place):
    """A daemon that ends because it was asked to stays away: SIGTERM, quit."""
    for number, ask in enumerate((lambda seen: os.kill(seen["pid"], signal.SIGTERM),
                                  lambda seen: Qmp(place.path("run/seven/qmp.sock")).command("quit"))):
        if number:
            up(place, "--restarts", "10")
            seen = look(place)
        else:
            seen = up_guarded(place)
        ask(seen)
        wait_ended(seen["guard"], "the guard")
        expect_equal(look(place)["state"], "dead", "state")
        place.ctl("down", "seven")


def test_gives_up(place):
    """A daemon that dies again and again: its guard says so, in status too, and `up` begins anew."""
    seen = up_guarded(place, "--restarts", "2")
    for _ in range(2):
        os.kill(seen["pid"], signal.SIGKILL)
        seen = wait_back(place, seen)
    os.kill(seen["pid"], signal.SIGKILL)
    wait_ended(seen["guard"], "the guard")
    after = look(place)
    expect_equal((after["state"], after["guard"], after["restarts"]), ("dead", None, 2), "state, guard, restarts")
    text = after["restarted"]["gave-up"]
    expect(text.startswith("given up after 2 restarts in a minute (process ") and "qchainctl up seven" in text, text)
    expect(text in place.ctl("status", "seven").stdout, "not in status")
    with open(place.path("run/seven/qchaind.log"), encoding="utf-8") as log:
        expect(text in log.read(), "not in the log")
    place.ctl("up", "seven")
    again = look(place)
    expect_equal(("gave-up" in again["restarted"], again["restarts"]), (False, 3), "after up")
    expect(is_alive(again["guard"]), "no guard after up")
    place.ctl("down", "seven")


def test_tries_again(place):
    """What keeps it from starting may go away."""
    seen = up_guarded(place, "--restarts", "100")
    os.rename(place.path("base.qcow2"), place.path("away.qcow2"))
    os.kill(seen["pid"], signal.SIGKILL)
    log = place.path("run/seven/qchaind.log")

    def has_tried():
        with open(log, encoding="utf-8") as text:
            return re.search("guard: .*base.qcow2", text.read())
    wait_until(has_tried, "the guard has tried")
    os.rename(place.path("away.qcow2"), place.path("base.qcow2"))
    wait_back(place, seen)
    place.ctl("down", "seven")


def test_no_guard(place):
    """--restarts 0, or QCHAIN_RESTARTS: it stays dead. What is no number is refused."""
    place.make_chain()
    up(place)
    seen = look(place)
    expect_equal(seen["guard"], None, "guard")
    os.kill(seen["pid"], signal.SIGKILL)
    wait_until(lambda: look(place)["state"] == "dead", "it is dead")
    place.ctl("up", "seven", "--restarts", "3")
    expect(is_alive(look(place)["guard"]), "no guard with --restarts 3")
    place.ctl("down", "seven")
    for words in (("--restarts", "-1"), ("--restarts", "x"), ("--restarts", "10001")):
        expect("--restarts" in up(place, *words, status=2).stderr, f"{words}")
    done = place.run(place.program("qchainctl"), "up", "seven", "./top.qcow2", "--no-ublk", "--nbd", "seven.sock",
                     status=1, environment=dict(place.environment, QCHAIN_RESTARTS="often"))
    expect("QCHAIN_RESTARTS" in done.stderr, done.stderr)
    expect(look(place) is None, "something is left of a refused start")


def test_beside_an_administrator(place):
    """Who types `up` or `down` just after a death meets the guard: one daemon, or none, in the end."""
    seen = up_guarded(place, "--restarts", "1000")
    for _ in range(6):
        os.kill(seen["pid"], signal.SIGKILL)
        place.ctl("up", "seven", status=None)
        seen = wait_back(place, seen)
        expect(is_alive(seen["guard"]), "no guard")
    os.kill(seen["pid"], signal.SIGKILL)
    place.ctl("down", "seven")
    wait_ended(seen["guard"], "the guard")
    expect(not os.path.exists(place.path("run/seven")), "something is left after down")
    place.check_images()


# ---- privileges ------------------------------------------------------------------------

# CAP_ of linux/capability.h: CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER IPC_LOCK SYS_RAWIO SYS_PTRACE SYS_ADMIN
# SYS_NICE SYS_RESOURCE
KEPT = sum(1 << number for number in (0, 1, 2, 3, 14, 17, 19, 21, 23, 24))


def test_few_privileges(place):
    """Every thread has given up what it does not need, and cannot gain any; sockets are for the owner."""
    seen = up_guarded(place)
    for tid in os.listdir(f"/proc/{seen['pid']}/task"):
        with open(f"/proc/{seen['pid']}/task/{tid}/status", encoding="ascii", errors="replace") as status:
            fields = dict(line.rstrip("\n").split(":", 1) for line in status)
        expect_equal(fields["NoNewPrivs"].strip(), "1", f"NoNewPrivs of thread {tid}")
        for name in ("CapPrm", "CapEff", "CapInh"):
            expect_equal(int(fields[name], 16) & ~KEPT, 0, f"{name} of thread {tid}")
    for name in ("seven.sock", "run/seven/qmp.sock"):
        expect_equal(os.stat(place.path(name)).st_mode & 0o777, 0o600, f"mode of {name}")
    place.ctl("down", "seven")


# ---- upgrade ---------------------------------------------------------------------------


def test_upgrade(place):
    """Another qchaind, from where this qchainctl is, has the chain; nothing that was acknowledged is lost."""
    new = place.path("new")
    os.mkdir(new)
    for name in ("qchaind", "qchainctl"):
        shutil.copy(place.program(name), new)
    before = up_guarded(place)
    place.run("qemu-io", "-f", "raw", "-c", "write -P 7 1M 64k", f"nbd+unix:///?socket={place.path('seven.sock')}")
    upgrade = [os.path.join(new, "qchainctl"), "upgrade", "seven"]
    with socket.socket(socket.AF_UNIX) as user:
        user.settimeout(harness.WAIT_S)
        user.connect(place.path("seven.sock"))
        user.recv(18)
        expect("1 NBD client, whose" in place.run(*upgrade, status=1).stderr, "a client is no reason to refuse")
        answer = harness.json.loads(place.run(*upgrade, "--force", "--json").stdout)
    expect(answer["state"] == "serving" and answer["from"] and answer["to"].startswith("qchaind "), f"{answer}")
    after = look(place)
    expect_equal(os.readlink(f"/proc/{after['pid']}/exe"), os.path.join(new, "qchaind"), "program")
    wait_ended(before["guard"], "the old guard")
    expect(is_alive(after["guard"]), "no new guard")
    expect("upgrade from " in after["restarted"]["reason"], f"{after['restarted']}")
    place.run("qemu-io", "-f", "raw", "-c", "read -P 7 1M 64k", f"nbd+unix:///?socket={place.path('seven.sock')}")
    # By the new one's guard: the new one comes back.
    os.kill(after["pid"], signal.SIGKILL)
    expect_equal(os.readlink(f"/proc/{wait_back(place, after)['pid']}/exe"), os.path.join(new, "qchaind"), "program")
    place.ctl("down", "seven")
    place.check_images()


def test_upgrade_refused(place):
    """A program that does not run ends nobody's daemon; nor is there anything to do for a dead or unknown one."""
    new = place.path("new")
    os.mkdir(new)
    shutil.copy(place.program("qchainctl"), new)
    with open(os.path.join(new, "qchaind"), "w", encoding="ascii") as bad:
        bad.write("#!/bin/sh\necho no >&2\nexit 3\n")
    os.chmod(os.path.join(new, "qchaind"), 0o755)
    seen = up_guarded(place)
    said = place.run(os.path.join(new, "qchainctl"), "upgrade", "seven", status=1).stderr
    expect("new/qchaind: does not run" in said and ": no" in said, said)
    expect_equal(look(place)["pid"], seen["pid"], "process")
    place.ctl("upgrade", "eight", status=1)
    place.ctl("upgrade", status=2)
    place.ctl("down", "seven")


# ---- the watchdog ----------------------------------------------------------------------


class Stopped:
    """One thread of a process does not go on, the others do."""

    SEIZE, INTERRUPT, DETACH, WALL = 0x4206, 0x4207, 17, 0x40000000
    libc = ctypes.CDLL(None, use_errno=True)

    def __init__(self, pid, name):
        self.tid = next(int(tid) for tid in sorted(os.listdir(f"/proc/{pid}/task"), key=int)
                        if open(f"/proc/{pid}/task/{tid}/comm", encoding="ascii").read().strip() == name)

    def ptrace(self, request):
        self.libc.ptrace.argtypes = [ctypes.c_long] * 4
        return self.libc.ptrace(request, self.tid, 0, 0)

    def __enter__(self):
        if self.ptrace(self.SEIZE):
            raise harness.Skip(f"ptrace is not permitted: {os.strerror(ctypes.get_errno())}")
        expect_equal(self.ptrace(self.INTERRUPT), 0, "PTRACE_INTERRUPT")
        os.waitpid(self.tid, self.WALL)
        return self

    def __exit__(self, *_):
        self.ptrace(self.DETACH)


def start_watched(place, limit):
    place.make_chain()
    sock = place.path("nbd")
    child = place.start("--name", "seven", "--watchdog", limit, "--export", f"nbd,socket={sock}", place.path("top.qcow2"))
    place.wait_ready(child, sock)
    return child


def hanging(place):
    """From the file: who asks the daemon too early waits for the loop that hangs, and hangs with it."""
    try:
        with open(place.path("run/seven/hang.json"), encoding="utf-8") as hang:
            return {row["loop"] for row in harness.json.load(hang)["hanging"]}
    except FileNotFoundError:
        return set()


def test_hang(place):
    """A loop that does not go on: event, status, log; list answers; and all is well when it goes on."""
    child = start_watched(place, "3")
    qmp = Qmp(place.path("run/seven/qmp.sock"))

    def heartbeat():
        return qmp.command("query-status")["return"]["heartbeat"]
    wait_until(lambda: heartbeat()["loops"] >= 3, "all loops are looked at")
    expect_equal(heartbeat()["hanging"], [], "hanging loops")
    for thread, loop in (("qc-meta", "qc-meta"), ("qchaind", "control")):
        with Stopped(child.pid, thread):
            wait_until(lambda loop=loop: hanging(place) == {loop}, f"it is seen that {loop} hangs")
            expect_equal([row["loop"] for row in look(place)["hang"]["hanging"]], [loop], "status")
            expect(f"loop {loop} does not go on" in place.ctl("status", "seven").stdout, "not in status")
            rows = place.ctl_json("list")
            expect_equal([row["state"] for row in rows], ["unresponsive" if loop == "control" else "serving"], "list")
        wait_until(lambda: not hanging(place), f"it is seen that {loop} goes on")
        expect(f"loop {loop} does not go on" in place.output(), "not in the log")
    expect_equal(qmp.command("query-status")["return"]["heartbeat"]["hanging"], [], "hanging loops")
    events = [event["data"]["hanging"] for event in qmp.events if event["event"] == "QCHAIN_HANG"]
    expect_equal([[row["loop"] for row in rows] for rows in events], [["qc-meta"], [], ["control"], []], "events")
    child.terminate()
    expect_equal(child.wait(harness.WAIT_S), 0, "exit status")
    expect(not os.path.exists(place.path("run/seven/hang.json")), "hang.json is left")


def test_systemd_watchdog(place):
    """WATCHDOG=1 comes while all go on, and stays away while one hangs."""
    place.make_chain()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(place.path("notify"))
        notify.settimeout(harness.WAIT_S)
        place.environment.update(NOTIFY_SOCKET=place.path("notify"), WATCHDOG_USEC="60000000")
        child = start_watched(place, "1")
        for _ in range(2):
            expect_equal(notify.recv(100), b"WATCHDOG=1", "message")
        with Stopped(child.pid, "qc-meta"):
            wait_until(lambda: hanging(place) == {"qc-meta"}, "the hang is seen")
            notify.setblocking(False)
            try:
                while True:
                    notify.recv(100)  # those from before
            except BlockingIOError:
                pass
            notify.settimeout(2.5)
            try:
                notify.recv(100)
                raise harness.Failure("WATCHDOG=1 while a loop hangs")
            except TimeoutError:
                pass
        notify.settimeout(harness.WAIT_S)
        expect_equal(notify.recv(100), b"WATCHDOG=1", "message after the hang")


# ---- many times in a row -------------------------------------------------------------


class Killer:
    """A chain whose daemon is killed at random instants, by modes in turn."""

    size = 4 << 20

    def __init__(self, place):
        self.place = place
        self.random = random.Random(OPTIONS["seed"])
        self.model = Model(self.size)
        self.snapshots = 0

    async def connect(self):
        """As soon as somebody accepts, whoever it is."""
        while True:
            try:
                return await NbdClient.connect(self.place.path("seven.sock"))
            except (OSError, NbdDisconnected, asyncio.IncompleteReadError):
                await asyncio.sleep(0.01)

    def daemon_pid(self):
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(self.place.path("seven.sock"))
            return struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]

    async def write_on(self, client, lane):
        """Writes of one lane, until the daemon has died."""
        try:
            while True:
                sectors = self.random.randint(1, 64)
                first = lane * 1024 + self.random.randrange(1024 - sectors)
                write = self.model.issue(first, sectors, False)
                await client.write(first * SECTOR, write.data(), self.random.random() < 0.1)
                self.model.ack(write)
                if self.random.random() < 0.05:
                    await client.flush()
        except (NbdDisconnected, ConnectionError):
            pass

    def start_verb(self, mode):
        if mode == "snapshot":
            self.snapshots += 1
            words = ["snapshot", "seven", f"s{self.snapshots}"]
        elif mode == "merge":
            words = ["stream", "seven"]
        else:
            return None
        return subprocess.Popen([self.place.program("qchainctl"), *words], cwd=self.place.folder,
                                env=self.place.environment, stdin=subprocess.DEVNULL,
                                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    async def life(self, mode):
        """From a successor's first second to its end."""
        client = await asyncio.wait_for(self.connect(), harness.WAIT_S)
        parts = [bytes(await client.read(at, 1 << 20)) for at in range(0, self.size, 1 << 20)]
        content = b"".join(parts)
        self.model.check_present(content, "device after kill -9")
        self.model.forget_unacked(content)
        lanes = [] if mode == "idle" else [asyncio.create_task(self.write_on(client, n)) for n in range(8)]
        verb = self.start_verb(mode)
        await asyncio.sleep(self.random.random() * (0.12 if verb else 0.03))
        os.kill(self.daemon_pid(), signal.SIGKILL)
        await asyncio.gather(*lanes)
        await client.abandon()
        if verb:
            verb.wait(harness.WAIT_S)


def test_kill_many(place):
    """Every write that was acknowledged is there after each of the deaths; nobody types a command."""
    place.run("qemu-img", "create", "-q", "-f", "qcow2", place.path("top.qcow2"), str(Killer.size))
    up(place, "--restarts", "10000")
    guard = look(place)["guard"]
    killer = Killer(place)
    modes = ("idle", "load", "load", "snapshot", "load", "merge")
    for n in range(OPTIONS["kills"]):
        try:
            asyncio.run(killer.life(modes[n % len(modes)]))
        except Exception as error:
            raise harness.Failure(f"kill {n}, seed {OPTIONS['seed']}: {error!r}") from error
    wait_until(lambda: look(place)["state"] == "serving", "it serves in the end")
    seen = look(place)
    expect_equal(seen["guard"], guard, "guard")
    wait_until(lambda: place.ctl("down", "seven", status=None).returncode == 0, "the last merge has ended")
    for name in os.listdir(place.folder):
        if re.fullmatch(r"top(\.\d+)?\.qcow2", name):
            check = place.run("qemu-img", "check", "-q", "-f", "qcow2", place.path(name), status=None)
            expect(check.returncode in (0, LEAKS), f"{name}: qemu-img check: {check.stdout}{check.stderr}")
    print(f"     {OPTIONS['kills']} kills, {seen['restarts']} restarts, {killer.model.tick} requests")


def add_options(parser):
    parser.add_argument("--kills", type=int, default=OPTIONS["kills"], help="of kill_many")
    parser.add_argument("--seed", type=int, default=OPTIONS["seed"])


def other_action(arguments):
    OPTIONS.update(kills=arguments.kills, seed=arguments.seed)
    return False


if __name__ == "__main__":
    sys.exit(harness.main("alive", sys.modules[__name__], add_options))
