#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The systemd units: how exposed they are, and that they let through what qchaind does."""

import os
import re
import shutil
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# Tenths, as systemd-analyze counts; a guard lives in the last two, which must not keep mounts.
MOST_EXPOSED = {"qchaind@.service": 29, "qchain.service": 40, "qchain-boot.service": 40}
# Before its own filter: namespace, capabilities, the filter itself, threads, lvm's cookies.
AT_THE_START = {"unshare", "mount", "umount2", "capget", "capset", "seccomp", "clone3", "vfork", "execve", "semget",
                "semop", "semctl"}


def run(*words):
    return subprocess.run(words, capture_output=True, text=True, check=False)


def calls_of(name):
    """The system calls that a word of SystemCallFilter= stands for."""
    if not name.startswith("@"):
        return {name}
    lines = run("systemd-analyze", "syscall-filter", "--no-pager", name).stdout.splitlines()[1:]
    words = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
    return set().union(*(calls_of(word) for word in words))


def unit_text(name):
    with open(os.path.join(ROOT, "debian", name), encoding="utf-8") as unit:
        return unit.read()


def exposure(name):
    """Empty, or what is wrong."""
    done = run("systemd-analyze", "security", "--offline=true", f"--threshold={MOST_EXPOSED[name]}",
               os.path.join(ROOT, "debian", name))
    return "" if done.returncode == 0 else (done.stdout + done.stderr).strip().splitlines()[-1]


def missing_calls(name):
    with open(os.path.join(ROOT, "ublk-target/control/seccomp.c"), encoding="utf-8") as source:
        wanted = set(re.findall(r"SCMP_SYS\((\w+)\)", source.read())) | AT_THE_START
    words = re.search(r"^SystemCallFilter=(.*)$", unit_text(name), re.M).group(1).split()
    missing = wanted - set().union(*(calls_of(word) for word in words))
    return f"refuses {', '.join(sorted(missing))}" if missing else ""


def missing_capabilities(name):
    with open(os.path.join(ROOT, "ublk-target/control/process.c"), encoding="utf-8") as source:
        kept = re.search(r"kept_capabilities\[\] = {(.*?)}", source.read(), re.S).group(1)
    given = " ".join(re.findall(r"^CapabilityBoundingSet=(.*)$", unit_text(name), re.M)).split()
    # Images of other owners are opened, not given away.
    missing = set(re.findall(r"CAP_\w+", kept)) - set(given) - {"CAP_CHOWN"}
    return f"does not give {', '.join(sorted(missing))}" if missing else ""


def main():
    if not shutil.which("systemd-analyze") or not calls_of("@mount"):
        print("units: skipped: no systemd-analyze")
        return 77
    failed = 0
    for name in MOST_EXPOSED:
        for check in (exposure, missing_calls, missing_capabilities):
            wrong = check(name)
            failed += bool(wrong)
            print(f"FAIL {name}: {wrong}" if wrong else f"ok   {name}: {check.__name__}")
    print(f"units: {3 * len(MOST_EXPOSED) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
