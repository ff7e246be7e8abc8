#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Proves that the differential tester can fail: each fault of mutant.py must be noticed.

And that its waits wait: for the image locks of a server that was killed.

Exit status: 0 every fault was noticed, 1 one was missed, 77 QEMU's tools are missing.
"""

import concurrent.futures
import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "lib"))

import imagelocks  # noqa: E402  (needs the path above)
from qemutools import Deadline, ToolError, Tools  # noqa: E402

EXIT_SKIP = 77
SEED = 4711
LIMIT_S = 300


@dataclass
class Check:
    """One fault, what the tester must say about it, and special arguments."""
    fault: str
    expected: str
    arguments: tuple = ()
    count: int = 6


CHECKS = (
    Check("none", ""),
    Check("drop-write", r"read|at end"),
    Check("move-write", r"differs"),
    Check("short-write", r"protocol|closed|ended|differs|not answered"),
    Check("move-read", r"outside of its request|differs"),
    Check("drop-zero", r"differs", count=10),
    Check("short-zero", r"differs", count=10),
    Check("trim-shows-foreign-data", r"neither old nor new: found foreign bytes", count=10),
    Check("false-status", r"block status|extents|allocation depth", count=10),
    Check("exit-early", r"server closed the connection", ("--timeout", "30")),
    Check("hang", r"not answered in time", ("--timeout", "6"), 2),
    Check("slow-start", r"deadline of the case exceeded", ("--timeout", "3"), 2),
    Check("bad-exit", r"ended with status 3"),
    Check("sanitizer", r"sanitizer: .*AddressSanitizer"),
    Check("leak", r"finds 1 leaks, 0 expected"),
    Check("broken-refcount", r"finds \d+ errors"),
    Check("spoilt-after-stop", r"qemu-img convert: .* differs|qemu-img check finds"),
    Check("changed-backing", r"a backing image was changed"),
    Check("wrong-base", r"differs", count=10),
    Check("spoilt-backing", r"differs", count=10),
    Check("read-only-changes-top", r"active layer was changed by a read-only server|read-only"),
    Check("read-only-spoilt", r"read-only: sector \d+ differs"),
    Check("forgetful", ""),
    Check("forgetful", r"at start: sector \d+ differs|neither old nor new", ("--kill",), 10),
)


def run_check(check, folder):
    """Return (check, problem or None). A fault is tried case by case until it is noticed."""
    problem = None
    for seed in range(SEED, SEED + check.count):
        problem = run_one(check, seed, folder)
        if (problem is None) == bool(check.expected):
            break
    return check, problem


def run_one(check, seed, folder):
    """One case of the tester with the fault: problem or None."""
    command = [os.path.join(HERE, "diff.py"), "--qchaind", os.path.join(HERE, "mutant.py"),
               "--seed", str(seed), "--count", "1", "--jobs", "1", "--ops", "80", *check.arguments]
    environment = dict(os.environ, MUTANT=check.fault, TMPDIR=folder)
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, timeout=LIMIT_S)
    return judge(check, done.returncode, done.stdout)


def judge(check, status, output):
    if not check.expected:
        return None if status == 0 else f"a faultless server failed: {output.strip()}"
    failures = [line for line in output.splitlines() if line.startswith("FAIL")]
    if status != 1 or not failures:
        return f"not noticed (status {status}): {output.strip()}"
    if not any(re.search(check.expected, line) for line in failures):
        return f"noticed for another reason: {failures[0]}"
    return None


def lock_waited_for(folder):
    """An image that is locked: qemu-img's refusal is told, and wait_unlocked() sits it out."""
    path = os.path.join(folder, "locked.qcow2")
    tools = Tools(os.path.join(folder, "commands.log"), Deadline(LIMIT_S))
    tools.run(["qemu-img", "create", "-f", "qcow2", path, "1M"])
    holder = os.open(path, os.O_RDWR)
    denied = imagelocks.FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, 201, 1, 0)
    used = imagelocks.FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, 101, 1, 0)
    for lock in (denied, used):
        fcntl.fcntl(holder, fcntl.F_OFD_SETLK, lock)
    try:
        tools.check(path)
        return "qemu-img check of a locked image gave a report"
    except ToolError as error:
        if "lock" not in str(error):
            return f"the cause is not told: {error}"
    pauses = []

    def pause():
        pauses.append(1)
        if len(pauses) == 3:
            os.close(holder)

    imagelocks.wait_unlocked(path, Deadline(LIMIT_S), pause)
    tools.check(path)
    return None if len(pauses) == 3 else f"{len(pauses)} pauses, expected 3"


def run_all(folder):
    """Run all checks; returns the number of those that went wrong."""
    problem = lock_waited_for(folder)
    print(f"not ok locks: {problem}" if problem else "ok locks", flush=True)
    wrong = int(problem is not None)
    with concurrent.futures.ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for check, problem in pool.map(lambda check: run_check(check, folder), CHECKS):
            name = " ".join((check.fault, *check.arguments))
            print(f"not ok {name}: {problem}" if problem else f"ok {name}", flush=True)
            wrong += problem is not None
    return wrong


def main():
    missing = [tool for tool in ("qemu-img", "qemu-io", "qemu-nbd") if not shutil.which(tool)]
    if missing:
        print(f"selftest: skipped: {', '.join(missing)} not found")
        return EXIT_SKIP
    place = os.environ.get("TMPDIR") or ("/dev/shm" if os.access("/dev/shm", os.W_OK) else "/tmp")
    folder = tempfile.mkdtemp(prefix="qself-", dir=place)
    try:
        wrong = run_all(folder)
    finally:
        shutil.rmtree(folder)
    print(f"selftest: {len(CHECKS) + 1 - wrong} passed, {wrong} failed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
