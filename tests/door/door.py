#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The door: who may open an image while somebody else has it open.

One image in the middle of a chain is used in three roles: as a writable top (rw), as a
read-only top (ro), and as the backing image of a writable top (backing). For each pair of
roles, two openers come one after the other: ours and qemu-io or qemu-nbd, in both orders,
and ours twice. QEMU beside QEMU is the oracle: what it shares we share, what it refuses we
refuse. The rest are doors of their own: lock bytes, mounts, swap, PVs, file types.

Ours is qchaind, or tests/unit/door-probe.c as long as there is none:
    make build/tests/door-probe && tests/door/door.py
"""

import argparse
import contextlib
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "lib"))

from imagelocks import wait_unlocked  # noqa: E402  (needs the path above)
from qemutools import Deadline  # noqa: E402

EXIT_SKIP = 77
START_TIMEOUT_S = 20
ROOT = os.path.dirname(os.path.dirname(HERE))
QCHAIND_PLACES = ("qchaind", "build/qchaind")
PROBE_PLACES = ("build/tests/door-probe",)
ROLES = ("rw", "ro", "backing")
LOOP_BYTES = 8 << 20
LOCK_LINE = re.compile(r"OFDLCK\s+ADVISORY\s+READ\s+-1\s+\S+\s+(\d+)\s+(\d+)")


class Failure(Exception):
    """A case went otherwise than it must."""


class Skip(Exception):
    """A case cannot run here, with the reason."""


class Refused(Exception):
    """An opener was turned away; the text is its message."""


def run(*argv, accept=(0,)):
    done = subprocess.run(argv, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          timeout=START_TIMEOUT_S)
    if done.returncode not in accept:
        raise Failure(f"{' '.join(argv)}: status {done.returncode}: {done.stdout.strip()}")
    return done.stdout


# ---- openers -----------------------------------------------------------------

class Holder:
    """A process that has an image open until it is closed."""

    def __init__(self, argv, ready, stop_signal=signal.SIGTERM):
        self._stop_signal = stop_signal
        # without a buffer: what one that was refused did not take is not written once more
        self._child = subprocess.Popen(argv, bufsize=0, stdin=subprocess.PIPE,
                                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self._text = b""
        try:
            self.wait_until(ready)
        except BaseException:
            self.kill()
            raise

    @property
    def pid(self):
        return self._child.pid

    def wait_until(self, ready):
        end = time.monotonic() + START_TIMEOUT_S
        while not ready(self):
            if self._child.poll() is not None:
                self._text += self._child.stdout.read()
                raise Refused(self.text())
            if time.monotonic() > end:
                raise Failure(f"pid {self.pid}: neither open nor refused in {START_TIMEOUT_S} s: "
                              f"{self.text()}")
            self.read(0.005)

    def read(self, timeout):
        if select.select([self._child.stdout], [], [], timeout)[0]:
            self._text += os.read(self._child.stdout.fileno(), 65536)
            if not self._text:
                time.sleep(timeout)

    def ask(self, line):
        self._child.stdin.write(line.encode() + b"\n")

    def text(self):
        return self._text.decode(errors="replace").strip()

    def close(self):
        self._child.stdin.close()
        self._child.send_signal(self._stop_signal)
        try:
            self._child.wait(START_TIMEOUT_S)
        finally:
            self._child.kill()
            self._child.stdout.close()

    def kill(self):
        """May be called twice."""
        self._child.kill()
        self._child.wait()
        self._child.stdin.close()
        self._child.stdout.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Greeting:
    """Ready when an NBD server greets: qemu-nbd accepts before it has opened its image."""

    def __init__(self, path):
        self._path = path

    def __call__(self, _):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(0.2)
            try:
                client.connect(self._path)
                return client.recv(8) == b"NBDMAGIC"
            except OSError:
                return False


class Probe:
    """Ours: the library alone."""

    name = "ours"

    def __init__(self, program):
        self._program = program

    def command(self, path, read_only=False, fmt="qcow2", options=()):
        """What to run, and when it has the image open."""
        mode = ["--read-only"] if read_only else []
        return ([self._program, *mode, "--format", fmt, *options, path],
                lambda holder: "open" in holder.text().splitlines())

    def open(self, path, **how):
        return Holder(*self.command(path, **how))


class Qchaind:
    """Ours: the daemon, with an NBD socket that nobody uses."""

    name = "ours"

    def __init__(self, program, folder):
        self._program = program
        self._folder = folder
        self._count = 0

    def command(self, path, read_only=False, fmt="qcow2", options=()):
        """What to run, and when it has the image open."""
        self._count += 1
        sock = os.path.join(self._folder, f"ours-{self._count}.sock")
        mode = ["--read-only"] if read_only else []
        return ([self._program, *mode, "--format", fmt, "--export", f"nbd,socket={sock}",
                 *options, path], Greeting(sock))

    def open(self, path, **how):
        return Holder(*self.command(path, **how))


class QemuIo:
    name = "qemu-io"

    def open(self, path, read_only=False, fmt="qcow2", options=()):
        mode = ["-r"] if read_only else []
        asked = []

        def ready(holder):
            if not asked:
                asked.append(True)
                with contextlib.suppress(OSError):
                    holder.ask("length")
            # "8 MiB" after the prompt; a refusal has colons and no size.
            return re.search(r"^(qemu-io> )*[\d.]+ [KMG]iB", holder.text(), re.M)
        return Holder(["qemu-io", "-f", fmt, *mode, path], ready)


class QemuNbd:
    name = "qemu-nbd"

    def __init__(self, folder):
        self._folder = folder
        self._count = 0

    def open(self, path, read_only=False, fmt="qcow2", options=()):
        self._count += 1
        sock = os.path.join(self._folder, f"qemu-{self._count}.sock")
        mode = ["-r"] if read_only else []
        # SIGTERM just after the start is lost on it.
        return Holder(["qemu-nbd", "-t", "-k", sock, "-f", fmt, *mode, path],
                      Greeting(sock), signal.SIGKILL)


# ---- images ------------------------------------------------------------------

class Chain:
    """base <- mid <- top and top2; mid may lie on a block device.

    mid is a top, too: base and mid have a folder of their own, in which nothing stands on it.
    """

    def __init__(self, folder, mid=None):
        below = os.path.join(folder, "below")
        os.makedirs(below, exist_ok=True)
        self.mid = mid or os.path.join(below, "mid")
        self._tops = [os.path.join(folder, "top"), os.path.join(folder, "top2")]
        base = os.path.join(below, "base")
        self._create(base)
        self._create(self.mid, base)
        for top in self._tops:
            self._create(top, self.mid)
        # A block device below a file, and a file below that, must be named.
        self.options = ["--allow-backing", self.mid, "--allow-backing", base] if mid else []

    @staticmethod
    def _create(path, backing=None):
        below = ["-F", "qcow2", "-b", backing] if backing else []
        run("qemu-img", "create", "-q", "-f", "qcow2", *below, path, "4M")

    def open(self, opener, role, nth):
        """Open mid in @role; the nth of two openers has a top of its own."""
        path = self._tops[nth] if role == "backing" else self.mid
        return opener.open(path, read_only=role == "ro", options=self.options)


class World:
    """What the cases share: folder, openers, block devices."""

    def __init__(self, ours, folder):
        self.folder = folder
        self.ours = ours
        self.qemu = [QemuIo(), QemuNbd(folder)]
        self._count = 0

    def new_folder(self):
        self._count += 1
        path = os.path.join(self.folder, f"case-{self._count}")
        os.mkdir(path)
        return path

    @contextlib.contextmanager
    def loop(self, folder):
        """A loop device of 512-byte blocks; skips where there is none."""
        path = os.path.join(folder, "disk")
        with open(path, "wb") as disk:
            disk.truncate(LOOP_BYTES)
        if not shutil.which("losetup") or not os.path.exists("/dev/loop-control"):
            raise Skip("no loop devices here")
        done = subprocess.run(["losetup", "-f", "--show", path], text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if done.returncode:
            raise Skip(f"losetup: {done.stderr.strip()}")
        device = done.stdout.strip()
        try:
            yield device
        finally:
            run("losetup", "-d", device)


def try_second(chain, second, role):
    """None when it may open, else the refusal's text."""
    try:
        with chain.open(second, role, 1):
            return None
    except Refused as refused:
        return str(refused)


def held_bytes(pid, path):
    """The lock bytes that a process holds on one file."""
    stat = os.stat(path)
    place = f"{os.major(stat.st_dev):02x}:{os.minor(stat.st_dev):02x}:{stat.st_ino} "
    held = set()
    for fd in os.listdir(f"/proc/{pid}/fdinfo"):
        # The descriptor of the client that asked whether it is ready closes meanwhile.
        with contextlib.suppress(FileNotFoundError), \
                open(f"/proc/{pid}/fdinfo/{fd}", encoding="ascii") as info:
            for line in info:
                found = LOCK_LINE.search(line)
                if found and place in line:
                    held |= set(range(int(found[1]), int(found[2]) + 1))
    return held


# ---- cases -------------------------------------------------------------------

def expected_answers(world, chain):
    """QEMU beside QEMU: {(first role, second role): refused}."""
    answers = {}
    for first in ROLES:
        with chain.open(world.qemu[0], first, 0):
            for second in ROLES:
                answers[first, second] = try_second(chain, world.qemu[1], second) is not None
    return answers


def check_pair(world, chain, first, second, answers):
    for role in ROLES:
        with chain.open(first, role, 0) as holder:
            for other in ROLES:
                what = f"{first.name} {role}, then {second.name} {other}"
                refusal = try_second(chain, second, other)
                while refusal and "udev-worker" in refusal:  # it looks at what was closed
                    subprocess.run(["udevadm", "settle", "--timeout=30"], check=False)
                    refusal = try_second(chain, second, other)
                if (refusal is not None) != answers[role, other]:
                    raise Failure(f"{what}: {refusal or 'was let in'}, QEMU beside QEMU does "
                                  f"{'' if answers[role, other] else 'not '}refuse it")
                if refusal and second is world.ours and f"pid {holder.pid}" not in refusal:
                    raise Failure(f"{what}: the refusal does not name pid {holder.pid}: {refusal}")
                if refusal and second is not world.ours and "lock" not in refusal:
                    raise Failure(f"{what}: refused for another reason: {refusal}")


def pairs_on(world, chain):
    answers = expected_answers(world, chain)
    if sum(answers.values()) != 5:
        raise Failure(f"the oracle answers otherwise than known: {answers}")
    for qemu in world.qemu:
        check_pair(world, chain, world.ours, qemu, answers)
        check_pair(world, chain, qemu, world.ours, answers)
    check_pair(world, chain, world.ours, world.ours, answers)


def case_pairs_file(world):
    """Every pair of roles, images in files."""
    pairs_on(world, Chain(world.new_folder()))


def case_pairs_blockdev(world):
    """Every pair of roles, the shared image on a block device."""
    folder = world.new_folder()
    with world.loop(folder) as device:
        pairs_on(world, Chain(folder, device))


def case_raw(world):
    """A raw image: a writer of QEMU's is kept out; its readers deny and mind nothing."""
    path = os.path.join(world.new_folder(), "raw")
    run("qemu-img", "create", "-q", "-f", "raw", path, "4M")
    for first, second in ((world.ours, world.qemu[0]), (world.qemu[0], world.ours)):
        for mode in ((False, False), (False, True), (True, False), (True, True)):
            refused = False
            with first.open(path, read_only=mode[0], fmt="raw"):
                try:
                    second.open(path, read_only=mode[1], fmt="raw").close()
                except Refused:
                    refused = True
            qemu_writes = not mode[first is world.ours]
            if refused != qemu_writes:
                raise Failure(f"{first.name} then {second.name}, read-only {mode}: "
                              f"{'refused' if refused else 'let in'}")


def case_bytes(world):
    """The lock bytes are those of qemu-io, role by role; a writer has 102 besides."""
    chain = Chain(world.new_folder())
    for role in ROLES:
        held = []
        for opener in (world.ours, world.qemu[0]):
            with chain.open(opener, role, 0) as holder:
                held.append(held_bytes(holder.pid, chain.mid))
        if held[0] != held[1] | ({102} if role == "rw" else set()):
            raise Failure(f"{role}: ours {sorted(held[0])}, qemu-io {sorted(held[1])}")


def case_info(world):
    """qemu-img info: refused while we write, with -U never."""
    chain = Chain(world.new_folder())
    with chain.open(world.ours, "rw", 0):
        text = run("qemu-img", "info", chain.mid, accept=(1,))
        if 'Failed to get shared "write" lock' not in text:
            raise Failure(f"qemu-img info says: {text}")
        run("qemu-img", "info", "-U", chain.mid)
    with chain.open(world.ours, "backing", 0):
        run("qemu-img", "info", chain.mid)


def case_died(world):
    """kill -9: the image gets free by itself, for QEMU and for us."""
    chain = Chain(world.new_folder())
    for first, second in ((world.ours, world.qemu[0]), (world.qemu[0], world.ours),
                          (world.ours, world.ours)):
        chain.open(first, "rw", 0).kill()
        wait_unlocked(chain.mid, Deadline(START_TIMEOUT_S))
        with chain.open(second, "rw", 1):
            pass


def case_wait(world):
    """--wait: not refused, but let in when the other one has gone."""
    chain = Chain(world.new_folder())
    with contextlib.ExitStack() as stack:
        other = chain.open(world.qemu[0], "rw", 0)
        stack.callback(other.kill)

        def waits(holder):
            """What comes first: its message that it waits, or the open image."""
            return "waiting" in holder.text() or ready(holder)

        argv, ready = world.ours.command(chain.mid, options=["--wait"])
        holder = Holder(argv, waits)
        stack.callback(holder.close)
        if ready(holder):
            raise Failure("let in beside qemu-io")
        other.kill()
        holder.wait_until(ready)


def refused_with(world, path, words, **how):
    start = time.monotonic()
    try:
        world.ours.open(path, **how).close()
    except Refused as refused:
        if words not in str(refused):
            raise Failure(f"{path}: expected \"{words}\" in: {refused}") from refused
        if time.monotonic() - start > 5:
            raise Failure(f"{path}: refused only after {time.monotonic() - start:.0f} s")
        return
    raise Failure(f"{path}: was let in, expected: {words}")


def case_types(world):
    """Fifo, directory, character device: refused at once."""
    folder = world.new_folder()
    fifo = os.path.join(folder, "fifo")
    os.mkfifo(fifo)
    for read_only in (False, True):
        refused_with(world, fifo, "a fifo", read_only=read_only)
        refused_with(world, folder, "a directory", read_only=read_only)
        refused_with(world, "/dev/null", "a character device", read_only=read_only)
        refused_with(world, os.path.join(folder, "none"), "not found", read_only=read_only)


def case_mounted(world):
    """A mounted block device is not written, and the mount point is named."""
    folder = world.new_folder()
    where = os.path.join(folder, "mnt")
    os.mkdir(where)
    if not shutil.which("mkfs.ext4"):
        raise Skip("no mkfs.ext4")
    with world.loop(folder) as device:
        run("mkfs.ext4", "-q", device)
        done = subprocess.run(["mount", device, where], text=True, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT)
        if done.returncode:
            raise Skip(f"mount: {done.stdout.strip()}")
        try:
            refused_with(world, device, where, fmt="raw")
            # Waiting would be for ever: this does not end by itself.
            refused_with(world, device, "is mounted", fmt="raw", options=["--wait"])
        finally:
            run("umount", where)
        with world.ours.open(device, fmt="raw"):
            busy = subprocess.run(["mount", device, where], stdout=subprocess.DEVNULL,
                                  stderr=subprocess.DEVNULL)
            if busy.returncode == 0:
                run("umount", where)
                raise Failure("could be mounted while we write")


def case_swap(world):
    """Swap space is not written."""
    if not shutil.which("mkswap"):
        raise Skip("no mkswap")
    with world.loop(world.new_folder()) as device:
        run("mkswap", "-q", device)
        done = subprocess.run(["swapon", device], text=True, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT)
        if done.returncode:
            raise Skip(f"swapon: {done.stdout.strip()}")
        try:
            refused_with(world, device, "swap space", fmt="raw")
        finally:
            run("swapoff", device)


def case_pv(world):
    """A physical volume is not written, wherever its label stands."""
    with world.loop(world.new_folder()) as device:
        for sector in range(4):
            with open(device, "r+b", buffering=0) as disk:
                disk.write(bytes(4096))
                disk.seek(sector * 512)
                disk.write(b"LABELONE".ljust(24, b"\0") + b"LVM2 001")
                disk.flush()
                os.fsync(disk.fileno())
            refused_with(world, device, "physical volume", fmt="raw")
            with world.ours.open(device, read_only=True, fmt="raw"):
                pass


def case_loop_file(world):
    """The file of a loop device is not written below it."""
    folder = world.new_folder()
    with world.loop(folder) as device:
        refused_with(world, os.path.join(folder, "disk"), os.path.basename(device), fmt="raw")


def case_policy(world):
    """Backing images outside the directory, probed formats and protocols are refused."""
    folder, other = world.new_folder(), world.new_folder()
    secret = os.path.join(other, "secret")
    top = os.path.join(folder, "top")
    run("qemu-img", "create", "-q", "-f", "raw", secret, "4M")
    run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", secret, top)
    refused_with(world, top, secret)
    with world.ours.open(top, options=["--allow-backing", other]):
        pass
    for name, words in (("json:{\"driver\":\"file\",\"filename\":\"/etc/passwd\"}", "json:"),
                        ("nbd:unix:/run/x", "protocol"), ("../secret", "cannot be found")):
        run("qemu-img", "rebase", "-u", "-F", "raw", "-b", name, top)
        refused_with(world, top, words)


CASES = (case_pairs_file, case_pairs_blockdev, case_raw, case_bytes, case_info, case_died,
         case_wait, case_types, case_mounted, case_swap, case_pv, case_loop_file, case_policy)


# ---- running -----------------------------------------------------------------

def find(wanted, places):
    for place in [wanted] if wanted else [os.path.join(ROOT, place) for place in places]:
        if os.path.isfile(place) and os.access(place, os.X_OK):
            return os.path.abspath(place)
    return None


def choose_ours(arguments, folder):
    qchaind = None if arguments.probe else find(arguments.qchaind or os.environ.get("QCHAIND"),
                                                QCHAIND_PLACES)
    if qchaind:
        return Qchaind(qchaind, folder), qchaind
    probe = find(arguments.probe, PROBE_PLACES)
    return (Probe(probe), probe) if probe else (None, None)


def run_case(case, world):
    name = case.__name__[len("case_"):]
    try:
        case(world)
    except Skip as reason:
        print(f"door: {name}: skipped: {reason}", flush=True)
        return "skipped"
    except (Failure, Refused, subprocess.SubprocessError, OSError) as error:
        print(f"door: {name}: FAILED: {error}", flush=True)
        return "failed"
    print(f"door: {name}: passed", flush=True)
    return "passed"


def run_all(arguments, folder):
    ours, program = choose_ours(arguments, folder)
    missing = [tool for tool in ("qemu-io", "qemu-nbd", "qemu-img") if not shutil.which(tool)]
    if ours is None or missing:
        print(f"door: skipped: {', '.join(missing) or 'qchaind and door-probe'} not found")
        print("door: 0 passed, 0 failed, 0 skipped")
        return EXIT_SKIP
    print(f"door: {program}", flush=True)
    world = World(ours, folder)
    wanted = [case for case in CASES
              if not arguments.cases or case.__name__[len("case_"):] in arguments.cases]
    results = [run_case(case, world) for case in wanted]
    totals = {key: results.count(key) for key in ("passed", "failed", "skipped")}
    print(f"door: {totals['passed']} passed, {totals['failed']} failed, "
          f"{totals['skipped']} skipped")
    if totals["failed"]:
        return 1
    return 0 if totals["passed"] else EXIT_SKIP


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--qchaind", metavar="PATH",
                        help="the qchaind to test (default: $QCHAIND, then the build)")
    parser.add_argument("--probe", metavar="PATH", help="test this door-probe, not qchaind")
    parser.add_argument("cases", nargs="*", metavar="CASE",
                        help="only these: " + ", ".join(c.__name__[len("case_"):] for c in CASES))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="qchain-door-") as folder:
        return run_all(arguments, folder)


if __name__ == "__main__":
    sys.exit(main())
