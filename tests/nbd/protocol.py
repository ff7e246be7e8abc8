#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Conformance of the NBD server: protocol, hostile clients, interoperation.

protocol.py [--build DIR] [--bringup PROGRAM] [--qchaind PROGRAM] [--seed N] [--list] [CASE]...

With --qchaind the cases that need data run against qchaind and a qcow2 image;
all others, and these without it, against nbd-bringup and one of its targets.
nbd-bringup is built from the library in --build (with $CC and $CFLAGS) unless
--bringup names one.
"""

import argparse
import os
import shlex
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(os.path.dirname(HERE), "lib")]

import cases_handshake  # noqa: E402,F401
import cases_hostile  # noqa: E402,F401
import cases_interop  # noqa: E402,F401
import cases_server  # noqa: E402,F401
import cases_transmission  # noqa: E402,F401
from nbdsuite import CASES, Suite  # noqa: E402


def build_bringup(build, directory):
    """Compile nbd-bringup; its path, or None when there is nothing to link with."""
    root = os.path.dirname(os.path.dirname(HERE))
    library = os.path.join(build, "libqchain.a")
    program = os.path.join(directory, "nbd-bringup")
    if not os.path.exists(library):
        return None
    packages = ("liburing", "liburcu", "json-c", "zlib", "libzstd", "devmapper", "libseccomp")
    libs = subprocess.run(["pkg-config", "--libs", *packages], stdout=subprocess.PIPE, text=True,
                          check=True).stdout
    subprocess.run([os.environ.get("CC", "cc"), *shlex.split(os.environ.get("CFLAGS", "-O2 -g")),
                    "-D_GNU_SOURCE", "-pthread", "-I", os.path.join(root, "include"),
                    "-o", program, os.path.join(HERE, "nbd-bringup.c"), library,
                    *shlex.split(libs), "-lurcu-common"], check=True)
    return program


def main():
    parser = argparse.ArgumentParser(description="protocol tests of the NBD server")
    parser.add_argument("--build", default="build")
    parser.add_argument("--bringup")
    parser.add_argument("--qchaind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("case", nargs="*")
    args = parser.parse_args()
    chosen = [c for c in CASES if not args.case or c.__name__ in args.case]
    if args.list:
        print("\n".join(f"{c.__name__}: {c.__doc__}" for c in chosen))
        return 0
    with tempfile.TemporaryDirectory(prefix="nbd-") as directory:
        bringup = args.bringup or build_bringup(args.build, directory)
        if not bringup and not args.qchaind:
            print(f"skipped: no library in {args.build}, give --build, --bringup or --qchaind")
            return 77
        suite = Suite(bringup, args.qchaind, args.seed)
        for function in chosen:
            suite.run_case(function)
    print("nbd: {passed} passed, {failed} failed, {skipped} skipped".format(**suite.counts))
    return 1 if suite.counts["failed"] or not chosen else 0


if __name__ == "__main__":
    sys.exit(main())
